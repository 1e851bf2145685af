/** The fields of "More settings", made from what the service says about its parameters. */

import { afterPress, byId, make, mark, setText } from "./dom.js";
import { newSeed } from "./jobs.js";

// What creators reach for, in this order and in their words; all others follow under "Everything else".
const FIRST = {
  seed: ["Seed", "The same seed gives the same result; another one a variation."],
  num_inference_steps: ["Steps", "More are finer, and take longer."],
  guidance_scale: ["Strength of the instruction", "Higher follows the words more closely."],
  image_guidance_scale: ["Faithfulness to the source", "Higher keeps more of the picture as it is."],
  anchors: ["Anchors", "How many frames decide the look, or which: 0, 24, 60."],
  long_side: ["Long side in pixels", "Larger shows more detail, and takes longer."],
  negative_prompt: ["What it should not be", ""],
};
// These have places of their own.
const ELSEWHERE = new Set(["prompt", "start", "end", "compare"]);

const inWords = (name) => FIRST[name]?.[0] ?? name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const isNumber = ({ kind }) => kind === "whole" || kind === "number";

export class Parameters {
  #fields = new Map(); // name -> {parameter, input, error}

  /** @param {any[]} parameters as /v1/service has them @param {() => void} onChange */
  constructor(parameters, onChange) {
    this.onChange = onChange;
    const known = parameters.filter(({ name }) => !ELSEWHERE.has(name));
    const first = Object.keys(FIRST).flatMap((name) => known.filter((parameter) => parameter.name === name));
    const rest = known.filter((parameter) => !(parameter.name in FIRST));
    byId("parameters").replaceChildren(...first.map((parameter) => this.#row(parameter)));
    byId("rest-parameters").replaceChildren(...rest.map((parameter) => this.#row(parameter)));
    byId("rest").hidden = rest.length === 0;
    this.#changed();
  }

  /** Only what was set; numbers as numbers where JavaScript holds them exactly. */
  get values() {
    const values = {};
    for (const [name, { parameter, input }] of this.#fields) {
      const text = parameter.kind === "flag" ? (input.checked ? "true" : "") : input.value.trim();
      if (text) values[name] = typed(parameter, text);
    }
    return values;
  }

  /** Replace all by these. @param {Record<string, any>} values */
  set values(values) {
    for (const [name, { parameter, input }] of this.#fields) {
      const value = values[name];
      if (parameter.kind === "flag") input.checked = value === true || value === "true";
      else input.value = value === undefined || value === null ? "" : String(value);
      this.#check(name);
    }
    this.#changed();
  }

  /** The first field with a wrong value, focused; "" if all are right. */
  problem() {
    const wrong = [...this.#fields.keys()].filter((name) => !this.#check(name));
    if (wrong.length) this.focus(wrong[0]);
    return wrong.length ? `${inWords(wrong[0])}: ${this.#fields.get(wrong[0]).error.textContent}` : "";
  }

  /** Show the service's own sentence at the field it is about. @returns whether there is such a field */
  refuse(name, sentence) {
    const field = this.#fields.get(name);
    if (!field) return false;
    mark(field.input, field.error, sentence);
    this.focus(name);
    return true;
  }

  focus(name) {
    const { input } = this.#fields.get(name);
    for (let place = input.closest("details"); place; place = place.parentElement.closest("details")) place.open = true;
    input.focus();
  }

  #row(parameter) {
    const { name, kind, help } = parameter;
    const id = `parameter-${name}`;
    const input = control(parameter, id);
    const error = make("p", { className: "error", id: `${id}-error` });
    const hint = make("p", { className: "soft", id: `${id}-help` }, hintText(FIRST[name]?.[1] ?? help, parameter));
    input.setAttribute("aria-describedby", `${hint.id} ${error.id}`);
    input.addEventListener("change", () => afterPress(() => this.#check(name)));
    input.addEventListener("input", () => this.#changed());
    this.#fields.set(name, { parameter, input, error });
    const label = make("label", { htmlFor: id }, inWords(name));
    const line = make("div", { className: kind === "flag" ? "control flag" : "control" }, input);
    if (name === "seed") line.append(newSeedButton(input));
    const wide = name === "negative_prompt" ? " wide" : "";
    return make("div", { className: `parameter${wide}` }, label, line, hint, error);
  }

  #check(name) {
    const { parameter, input, error } = this.#fields.get(name);
    const sentence = wrongness(parameter, input.value?.trim() ?? "");
    mark(input, error, sentence);
    return !sentence;
  }

  #changed() {
    const count = Object.keys(this.values).length;
    setText(byId("more-changed"), count ? ` ${count} changed` : "");
    byId("reset").disabled = count === 0; // hiding it would move the button that is about to be pressed
    this.onChange();
  }
}

function newSeedButton(input) {
  const draw = () => {
    input.value = String(newSeed());
    for (const event of ["input", "change"]) input.dispatchEvent(new Event(event));
  };
  return make("button", { type: "button", on: { click: draw } }, "New seed");
}

function control(parameter, id) {
  const { kind, name, choices, usual } = parameter;
  if (kind === "choice") {
    const usually = make("option", { value: "" }, usual ? `usual (${usual})` : "usual");
    return make("select", { id, name }, usually, ...choices.map((choice) => make("option", { value: choice }, choice)));
  }
  if (kind === "flag") return make("input", { id, name, type: "checkbox" });
  // Numbers as text: a number field drops what it cannot read, and long seeds lose digits.
  const inputMode = kind === "whole" ? "numeric" : kind === "number" ? "decimal" : "text";
  const short = /^[\d.]+$/.test(String(usual ?? "")) ? String(usual) : "";
  return make("input", { id, name, type: "text", inputMode, autocomplete: "off", placeholder: short });
}

/** What is usual is said where it is a number; where the model decides, an empty field says enough. */
function hintText(help, { name, usual }) {
  const isSaid = !usual || !help || (name in FIRST && !/^[\d.]+$/.test(usual));
  return isSaid ? help : `${help.replace(/\.$/, "")}. Usually ${usual}.`;
}

function wrongness(parameter, text) {
  if (!text || !isNumber(parameter)) return "";
  const { kind, low, high } = parameter;
  const value = Number(text.replace(",", "."));
  const isRight = (kind === "whole" ? /^\d+$/.test(text) : Number.isFinite(value))
    && (low === null || low === undefined || value >= low) && (high === null || high === undefined || value <= high);
  if (isRight) return "";
  const what = kind === "whole" ? "a whole number" : "a number";
  if (low === null || low === undefined) return `Write ${what}.`;
  const isOpen = high === null || high === undefined || high > 1e9;
  return isOpen ? `Write ${what} of ${low} or more.` : `Write ${what} between ${low} and ${high}.`;
}

function typed(parameter, text) {
  if (parameter.kind === "flag") return true;
  if (!isNumber(parameter)) return text;
  const value = Number(text.replace(",", "."));
  return Number.isSafeInteger(value) || parameter.kind === "number" ? value : text;
}
