// What pages do beyond plain links and forms: the theme switch, copy buttons, forms that are sent once,
// tooltips of charts.
// Each is added to what the server has rendered, which works without it.

const root = document.documentElement;

function showTheme() {
  const chosen = root.dataset.theme ?? "system";
  for (const button of document.querySelectorAll("[data-theme-choice]")) {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === chosen));
  }
}

function chooseTheme(choice) {
  if (choice === "system") delete root.dataset.theme;
  else root.dataset.theme = choice;
  try {
    if (choice === "system") localStorage.removeItem("theme");
    else localStorage.setItem("theme", choice);
  } catch {
    // Storage may be refused: the choice lasts until the next page.
  }
  showTheme();
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const text = source instanceof HTMLInputElement ? source.value : source.textContent;
  const label = button.querySelector("[data-copy-label]");
  const before = label.textContent;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    label.textContent = "Select and copy";
  }
  setTimeout(() => {
    label.textContent = before;
  }, 2000);
}

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const theme = target?.closest("[data-theme-choice]");
  if (theme) chooseTheme(theme.dataset.themeChoice);
  const button = target?.closest("[data-copy]");
  if (button) copy(button);
});

// Selects marked so send their form at once; the form's button remains for those without scripts.
document.addEventListener("change", (event) => {
  if (event.target instanceof Element && event.target.matches("[data-submits]")) {
    event.target.form?.requestSubmit();
  }
});

// A form is sent once. Its second sending, by a double click, would make a second key.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post") return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
});

// Back on a page that the browser has kept, its forms can be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// Tooltips: a chart's <title> texts, shown beside the pointer rather than after the browser's delay.
let tip = null;

function hideTip() {
  tip?.remove();
  tip = null;
}

function showTip(plot, slot, event) {
  const text = slot.dataset.tip;
  if (!text) return;
  if (!tip || tip.parentElement !== plot) {
    hideTip();
    tip = document.createElement("div");
    tip.className = "chart-tip is-shown";
    tip.setAttribute("aria-hidden", "true");
    plot.append(tip);
  }
  if (tip.textContent !== text) tip.textContent = text;
  const box = plot.getBoundingClientRect();
  const x = event.clientX - box.left;
  const y = event.clientY - box.top;
  const left = x + 16 + tip.offsetWidth > box.width ? x - tip.offsetWidth - 16 : x + 16;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(y - 20, box.height - tip.offsetHeight))}px`;
}

document.addEventListener("pointermove", (event) => {
  const slot = event.target instanceof Element ? event.target.closest(".slot") : null;
  const plot = slot?.closest(".chart__plot");
  if (plot) showTip(plot, slot, event);
  else if (tip) hideTip();
});

// The browser's own tooltip would appear over ours.
function moveTitles(within) {
  for (const slot of within.querySelectorAll(".chart .slot")) {
    const title = slot.querySelector(":scope > title");
    if (!title) continue;
    slot.dataset.tip = title.textContent;
    title.remove();
  }
}

document.addEventListener("htmx:after:swap", () => moveTitles(document));
moveTitles(document);
showTheme();
