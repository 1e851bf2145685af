/** The jobs this page knows, newest first, and what they are called in words. */

import { clock } from "./dom.js";

const ENDED = new Set(["completed", "failed"]);

export const hasEnded = (job) => ENDED.has(job.status);
export const wasCancelled = (job) => job.status === "failed" && job.error?.code === "cancelled";

export class Jobs extends EventTarget {
  #jobs = new Map();
  #order = new Map(); // id -> number; newer jobs have higher ones

  get(id) {
    return this.#jobs.get(id);
  }

  /** Newest first. */
  all() {
    const newer = (a, b) => b.created_at - a.created_at || this.#order.get(b.id) - this.#order.get(a.id);
    return [...this.#jobs.values()].sort(newer);
  }

  get someRun() {
    return this.all().some((job) => !hasEnded(job));
  }

  /** Keep a job's newest state. A list that was asked for earlier may arrive later: an end is never taken back. */
  put(job) {
    const before = this.#jobs.get(job.id);
    if (before && hasEnded(before) && !hasEnded(job)) return;
    this.#jobs.set(job.id, job);
    if (!before) this.#order.set(job.id, this.#order.size); // of one second's jobs the newest comes last
    this.dispatchEvent(new CustomEvent("change", { detail: { id: job.id, job, before } }));
  }

  remove(id) {
    const before = this.#jobs.get(id);
    if (!before) return;
    this.#jobs.delete(id);
    this.dispatchEvent(new CustomEvent("change", { detail: { id, job: undefined, before } }));
  }

  clear() {
    for (const id of [...this.#jobs.keys()]) this.remove(id);
  }
}

/** Where a waiting job stands. */
export function queuePlace(position) {
  if (position === null || position === undefined) return "Waiting";
  if (position === 0) return "Waiting, next in the queue";
  return `Waiting, ${position} ${position === 1 ? "edit comes" : "edits come"} first`;
}

const STAGES = {
  probe: "Reading the video",
  shots: "Looking for cuts",
  anchors: "Editing the anchors",
  frames: "Editing every frame",
};

/** What a job is doing, in a few words. */
export function doing(job) {
  if (job.status === "queued") return queuePlace(job.queue_position);
  if (job.status === "completed") return "Done";
  if (wasCancelled(job)) return "Cancelled";
  if (job.status === "failed") return "Failed";
  return STAGES[job.stage] ?? "Starting";
}

/** Which part of the source a job edits, "" for all of it. */
export function part(job) {
  const { start, end } = job.params ?? {};
  if (start === undefined && end === undefined) return "";
  const text = (value, none) => (value === undefined || value === null ? none : clock(Number(value), 1));
  return `${text(start, "0:00")}–${text(end, "end")}`;
}

/** What makes a job again: the values it was given, without its words and its source. */
export function valuesOf(job) {
  const { prompt: _prompt, compare: _compare, ...values } = job.params ?? {};
  const entries = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return Object.fromEntries(entries.map(([name, value]) => [name, asText(value)]));
}

/** Lists as the fields of a form write them: 0,24,60; those with pairs in them as JSON. */
function asText(value) {
  if (!Array.isArray(value)) return typeof value === "object" ? JSON.stringify(value) : value;
  return value.some((item) => typeof item === "object") ? JSON.stringify(value) : value.join(",");
}

/** A seed that a person can read out. */
export const newSeed = () => 1 + Math.floor(Math.random() * 999_999);
