// Shows a page as it changes: what the server sends takes the place of the content, and focus and scrolling stay where they are.
"use strict";
const main = document.querySelector("main");
const live = document.querySelector("#live");
const RETRY_MS = 10000;
let source, retry;

function show(html) {
  // Somebody copies something.
  if (!getSelection().isCollapsed && main.contains(getSelection().anchorNode)) return;
  const focused = main.contains(document.activeElement) && document.activeElement.id;
  const scrolled = [...main.querySelectorAll(".wide")].map((part) => part.scrollLeft);
  main.innerHTML = html;
  main.querySelectorAll(".wide").forEach((part, at) => { part.scrollLeft = scrolled[at] || 0; });
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function close() {
  clearTimeout(retry);
  source?.close();
}

function open() {
  close();
  source = new EventSource(location.href);
  source.onmessage = ({ data }) => {
    live.textContent = "live";
    live.className = "";
    show(data);
  };
  source.onerror = () => {
    live.textContent = "no connection, trying again";
    live.className = "bad";
    // Where it was refused, the browser does not try again by itself.
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(open, RETRY_MS);
  };
}

// The first link of a row stands for the row.
function rows() {
  return [...main.querySelectorAll("tbody tr")].map((row) => row.querySelector("a")).filter(Boolean);
}

function step(by) {
  const links = rows();
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + by, 0), links.length - 1)]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "/") document.querySelector("#filter").focus();
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "u") document.querySelector("#up")?.click();
  else return;
  event.preventDefault();
});

// A page that nobody sees costs nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
addEventListener("pagehide", close);
if (!document.hidden) open();
