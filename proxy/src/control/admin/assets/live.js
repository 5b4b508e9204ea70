// Shows a page as it changes: what the server sends takes the place of the content, and focus and scrolling stay where they are.
"use strict";
const main = document.querySelector("main");
const live = document.querySelector("#live");
// Where the server refuses, the browser does not try again by itself; and of one that has gone without a word it knows nothing.
const RETRY_MS = 10000;
const SILENCE_MS = 60000;
let source, retry, silence;
// While a button is down, what it was pressed on stays; then the latest content is shown.
let isHeld = false;
let latest;

function say(text, isBad) {
  if (live.textContent === text) return;
  live.textContent = text;
  live.className = isBad ? "bad" : "";
}

function isCopying() {
  return !getSelection().isCollapsed && main.contains(getSelection().anchorNode);
}

function show() {
  if (isHeld || latest === undefined) return;
  if (isCopying()) return say("paused: text is selected", false);
  say("live", false);
  const html = latest;
  latest = undefined;
  const focused = main.contains(document.activeElement) && document.activeElement.id;
  const scrolled = [...main.querySelectorAll(".wide")].map((part) => part.scrollLeft);
  main.innerHTML = html;
  main.querySelectorAll(".wide").forEach((part, at) => { part.scrollLeft = scrolled[at] || 0; });
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function close() {
  clearTimeout(retry);
  clearTimeout(silence);
  source?.close();
}

function open() {
  close();
  source = new EventSource(location.href);
  listen();
  source.onmessage = ({ data }) => {
    listen();
    latest = data;
    show();
  };
  source.onerror = () => {
    say("no connection, trying again", true);
    if (source.readyState === EventSource.CLOSED) retry = setTimeout(open, RETRY_MS);
  };
}

function listen() {
  clearTimeout(silence);
  silence = setTimeout(() => {
    say("no answer, trying again", true);
    open();
  }, SILENCE_MS);
}

main.addEventListener("pointerdown", () => { isHeld = true; });
for (const end of ["pointerup", "pointercancel"]) {
  // The click comes first.
  addEventListener(end, () => setTimeout(() => {
    isHeld = false;
    show();
  }));
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
addEventListener("pageshow", (event) => { if (event.persisted) open(); });
if (!document.hidden) open();
