/** Small helpers for elements and for text. Data becomes text nodes only, never markup. */

/** The element with this id. @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {Record<string, any>} [properties] properties; names with a dash are attributes, `on` holds listeners
 * @param {...(Node|string)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Set text only when it differs, so that nothing is painted or announced twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Tell screen readers one milestone, politely. @param {string} text */
export function say(text) {
  const region = byId("say");
  region.textContent = "";
  requestAnimationFrame(() => (region.textContent = text));
}

/** Show what is wrong with a field, or that nothing is. */
export function mark(field, place, text) {
  setText(place, text);
  if (text) field?.setAttribute("aria-invalid", "true");
  else field?.removeAttribute("aria-invalid");
}

/** 75.25 -> "1:15.25"; whole seconds stay whole. @param {number} seconds @param {number} [digits] */
export function clock(seconds, digits = 0) {
  const scale = 10 ** digits;
  const rounded = Math.round(Math.max(0, seconds) * scale) / scale;
  const hours = Math.floor(rounded / 3600);
  const minutes = Math.floor((rounded % 3600) / 60);
  const rest = (rounded % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** "1:15.25" or "75.25" or "75,25" -> 75.25; "" -> null; anything else -> NaN. @param {string} text */
export function parseClock(text) {
  const clean = text.trim().replace(",", ".");
  if (!clean) return null;
  if (!/^(\d+:){0,2}\d*\.?\d*$/.test(clean) || !/\d$|\.$/.test(clean)) return NaN;
  return clean.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  if (bytes < 1e9) return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
  return `${Number((bytes / 1e9).toFixed(1))} GB`;
}

/** A length of time in words. @param {number} seconds */
export function span(seconds) {
  if (seconds < 60) return `${Number(seconds.toFixed(1))} s`;
  return seconds % 60 ? `${clock(seconds)} min` : `${seconds / 60} min`;
}

/** What is left, coarse enough not to flicker. @param {number} seconds */
export function timeLeft(seconds) {
  if (seconds < 5) return "a few seconds left";
  if (seconds < 58) return `about ${Math.ceil(seconds / 5) * 5} s left`;
  if (seconds < 5400) return `about ${Math.max(1, Math.round(seconds / 60))} min left`;
  return `about ${Math.round(seconds / 3600)} h left`;
}

/** @param {number} unixSeconds */
export function when(unixSeconds) {
  const date = new Date(unixSeconds * 1000);
  const time = date.toLocaleTimeString([], { hour: "numeric", minute: "2-digit" });
  if (date.toDateString() === new Date().toDateString()) return `today, ${time}`;
  return `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

/** Ask before something is lost; resolves to whether it was agreed to. @param {string} question */
export function confirmed(question) {
  const dialog = byId("confirm");
  setText(byId("confirm-text"), question);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

let isPressed = false;
const afterwards = [];
addEventListener("pointerdown", () => (isPressed = true), true);
for (const end of ["pointerup", "pointercancel"]) {
  addEventListener(end, () => {
    isPressed = false;
    setTimeout(() => afterwards.splice(0).forEach((work) => work())); // the click itself comes first
  }, true);
}

/** Do what may move things on the page, but not from under a button that is being pressed: its click would be lost. */
export function afterPress(work) {
  if (isPressed) afterwards.push(work);
  else work();
}
