// Runs before the page is painted, so that a chosen theme does not flash. The switch is in console.js.
(() => {
  const root = document.documentElement;
  root.classList.add("has-script");
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    // Storage may be refused: the system's theme applies.
  }
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
})();
