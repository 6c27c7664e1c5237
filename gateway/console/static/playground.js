// The playground: quotes while the form is filled, images by drop, a painted mask, and partial
// images as they come. Without this script the form is sent and answered as a whole.

import { MaskPainter } from "./mask_painter.js";

const QUOTE_DELAY_MS = 350;
const form = document.getElementById("playground");
const byId = (id) => document.getElementById(id);
const files = [];
let painter = null;
let quoteTimer = null;
let quoteNumber = 0;
let isMaking = false;

// With the mode, and with the mark of the tenant and person for whom the page was made.
const address = (path) => {
  const [base, query] = form.getAttribute("action").split("?");
  return `${base}${path}?${query}`;
};

// Texts alone: files are sent only to buy.
function texts() {
  const sent = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (typeof value === "string") sent.append(name, value);
  }
  const sizes = files.map((one) => one.size).filter(Boolean);
  sent.set("sizes", sizes.join(","));
  sent.set("masked", byId("mask")?.files.length ? "yes" : "");
  return sent;
}

async function post(path, body) {
  const answer = await fetch(address(path), { method: "POST", body, redirect: "manual" });
  if (answer.type === "opaqueredirect" || answer.status === 401) {
    location.reload(); // the session has ended: the sign-in leads back here
    throw new Error("signed out");
  }
  return answer;
}

function replace(id, html) {
  const made = new DOMParser().parseFromString(html, "text/html").getElementById(id);
  if (made) byId(id).replaceWith(made);
}

function askQuote() {
  clearTimeout(quoteTimer);
  quoteTimer = setTimeout(async () => {
    const number = ++quoteNumber;
    try {
      const answer = await post("/quote", texts());
      if (number !== quoteNumber) return;
      if (!answer.ok) throw new Error("refused");
      const parts = await answer.json();
      const open = document.querySelector("#code details[open] summary")?.textContent;
      replace("quote", parts.quote);
      replace("code", parts.code);
      for (const one of document.querySelectorAll("#code details")) {
        if (one.querySelector("summary").textContent === open) one.open = true;
      }
    } catch {
      // An older quote must not stand beside a changed form.
      byId("quote").textContent = "No quote at the moment.";
    }
  }, QUOTE_DELAY_MS);
}

async function showFields() {
  const answer = await post("/fields", texts());
  if (!answer.ok) return;
  const parts = await answer.json();
  replace("fields", parts.fields);
  if (!byId("inputs")) files.length = 0;
  painter = null;
  showChosen();
  askQuote();
}

// Input images

function hostedItems() {
  return [...document.querySelectorAll("#chosen [data-hosted]")];
}

function take(list) {
  const most = Number(byId("inputs").dataset.most);
  for (const file of list) {
    if (files.length + hostedItems().length >= most) break;
    const one = { file, source: URL.createObjectURL(file), size: "" };
    files.push(one);
    const image = new Image();
    image.onload = () => {
      one.size = `${image.naturalWidth}x${image.naturalHeight}`;
      askQuote();
    };
    image.src = one.source;
  }
  showChosen();
}

function showChosen() {
  const list = byId("chosen");
  if (!list) return;
  const transfer = new DataTransfer();
  for (const item of list.querySelectorAll("[data-file]")) item.remove();
  for (const one of files) {
    transfer.items.add(one.file);
    list.append(itemOf(one));
  }
  byId("image").files = transfer.files;
  const hosted = document.querySelector("[name=hosted]");
  hosted.value = hostedItems().map((item) => item.dataset.hosted).join(",");
  loadPainter();
  askQuote();
}

function itemOf(one) {
  const item = document.createElement("li");
  item.dataset.file = "";
  const frame = document.createElement("span");
  frame.className = "thumb";
  const image = document.createElement("img");
  image.src = one.source;
  image.alt = one.file.name;
  frame.append(image);
  const remove = document.createElement("button");
  remove.className = "button button--plain button--icon";
  remove.type = "button";
  remove.textContent = "\u00d7";
  remove.setAttribute("aria-label", `Remove ${one.file.name}`);
  remove.addEventListener("click", () => {
    URL.revokeObjectURL(one.source);
    files.splice(files.indexOf(one), 1);
    showChosen();
  });
  item.append(frame, remove);
  return item;
}

function loadPainter() {
  const place = byId("painter");
  if (!place) return;
  painter ??= new MaskPainter(place, setMask);
  const first = hostedItems()[0]?.dataset.source ?? files[0]?.source;
  if (first) painter.load(first).catch(() => painter.hide());
  else painter.hide();
}

function setMask(blob) {
  const transfer = new DataTransfer();
  if (blob) transfer.items.add(new File([blob], "mask.png", { type: "image/png" }));
  byId("mask").files = transfer.files;
  askQuote();
}

// Buying

async function make() {
  if (isMaking) return;
  isMaking = true;
  const button = byId("make");
  button.disabled = true;
  byId("refusal").replaceChildren();
  byId("nothing").hidden = true;
  byId("output").replaceChildren();
  byId("partial").replaceChildren();
  byId("live").hidden = false;
  const began = Date.now();
  const tell = () => {
    byId("live-text").textContent = `Making the image … ${Math.round((Date.now() - began) / 1000)} s`;
  };
  const timer = setInterval(tell, 1000);
  tell();
  try {
    await painter?.exported;
    const answer = await post("/stream", new FormData(form));
    if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) {
      throw new Error(`The gateway answered ${answer.status}.`);
    }
    let isTold = false;
    for await (const event of events(answer.body)) isTold = show(event) || isTold;
    if (!isTold) throw new Error("The connection broke.");
  } catch (error) {
    showBroken(error);
  } finally {
    clearInterval(timer);
    byId("live").hidden = true;
    byId("nothing").hidden = byId("output").childElementCount > 0;
    button.disabled = false;
    isMaking = false;
  }
}

// The events of a stream, as they come.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const one of whole) {
      const kind = /^event: (.*)$/m.exec(one)?.[1];
      const data = /^data: (.*)$/m.exec(one)?.[1];
      if (kind && data) yield { kind, data: JSON.parse(data) };
    }
  }
}

// Returns true for the last event.
function show({ kind, data }) {
  if (kind === "partial") {
    const image = document.createElement("img");
    image.src = data.source;
    image.alt = `Partial image ${data.index + 1}`;
    byId("partial").replaceChildren(image);
    return false;
  }
  if (kind === "result") {
    fill("output", data.html);
    form.elements.key.value = data.key; // the next image is another purchase
  }
  if (kind === "refused") {
    fill("refusal", data.html);
    const field = data.param ? form.elements.namedItem(data.param) : null;
    field?.focus?.();
    byId("refusal").scrollIntoView({ block: "nearest" });
  }
  return true;
}

function fill(id, html) {
  const made = new DOMParser().parseFromString(html, "text/html");
  byId(id).replaceChildren(...made.body.childNodes);
}

function showBroken(error) {
  const notice = document.createElement("div");
  notice.className = "notice notice--bad";
  notice.role = "alert";
  notice.textContent =
    `${error.message} The call goes on at the gateway. Send the same form again: it shows the ` +
    "result, and buys nothing twice.";
  byId("refusal").replaceChildren(notice);
}

// Events of the page

form.addEventListener("submit", (event) => {
  event.preventDefault();
  make();
});

form.addEventListener("input", (event) => {
  if (event.target.type !== "file") askQuote();
});

form.addEventListener("change", (event) => {
  const { id, name } = event.target;
  if (id === "model" || name === "operation") showFields();
  if (id === "image") take([...event.target.files].filter((file) => !isKnown(file)));
  if (id === "mask") askQuote();
});

// A file input has all chosen files again after each choice.
function isKnown(file) {
  return files.some((one) => one.file === file);
}

form.addEventListener("click", (event) => {
  const remove = event.target.closest("[data-remove]");
  if (!remove) return;
  remove.closest("li").remove();
  showChosen();
});

for (const kind of ["dragenter", "dragover"]) {
  form.addEventListener(kind, (event) => {
    const drop = event.target.closest?.("#drop");
    if (!drop) return;
    event.preventDefault();
    drop.classList.add("is-over");
  });
}

form.addEventListener("dragleave", (event) => {
  event.target.closest?.("#drop")?.classList.remove("is-over");
});

form.addEventListener("drop", (event) => {
  const drop = event.target.closest?.("#drop");
  if (!drop) return;
  event.preventDefault();
  drop.classList.remove("is-over");
  take([...event.dataTransfer.files].filter((file) => file.type.startsWith("image/")));
});

showChosen();
askQuote();
