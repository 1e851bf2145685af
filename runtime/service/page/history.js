/** The list of earlier and running edits. */

import { api } from "./api.js";
import { byId, make, say, setText, when } from "./dom.js";
import { doing, hasEnded } from "./jobs.js";

export class History {
  #items = new Map(); // id -> {item, show}
  #last = null; // the id after which the next page begins

  /** @param {any} jobs @param {{onUse: (job: any) => void, onDelete: (job: any) => void}} listeners */
  constructor(jobs, listeners) {
    this.jobs = jobs;
    this.listeners = listeners;
    jobs.addEventListener("change", ({ detail }) => this.#change(detail));
    byId("older").addEventListener("click", () => this.#older());
  }

  /** Load the newest page. What was deleted elsewhere meanwhile is dropped. */
  async load() {
    const page = await api.list();
    const ids = new Set(page.data.map((job) => job.id));
    const oldest = page.data.at(-1)?.created_at ?? 0;
    for (const job of this.jobs.all()) {
      const belongs = !page.has_more || job.created_at > oldest;
      if (belongs && !ids.has(job.id)) this.jobs.remove(job.id);
    }
    if (this.#last === null || !page.has_more) this.#turn(page);
    this.#put(page);
  }

  /** Mark the job that is shown. */
  select(id) {
    for (const [other, { link }] of this.#items) {
      if (other === id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  async #older() {
    try {
      const page = await api.list(this.#last);
      this.#turn(page);
      this.#put(page);
      if (page.data.length) this.#items.get(page.data[0].id)?.link.focus();
    } catch (error) {
      say(error.message);
    }
  }

  #put(page) {
    for (const job of page.data.toReversed()) this.jobs.put(job);
  }

  #turn(page) {
    this.#last = page.last_id ?? page.data.at(-1)?.id ?? null;
    byId("older").hidden = !page.has_more;
  }

  #change({ id, job }) {
    if (!job) this.#drop(id);
    else if (this.#items.has(id)) this.#items.get(id).show(job);
    else this.#add(job);
    byId("history-empty").hidden = this.#items.size > 0;
  }

  #add(job) {
    const entry = makeItem(job, this.listeners);
    this.#items.set(job.id, entry);
    const ids = this.jobs.all().map(({ id }) => id);
    const next = ids.slice(ids.indexOf(job.id) + 1).find((id) => this.#items.has(id));
    byId("edits").insertBefore(entry.item, next ? this.#items.get(next).item : null);
  }

  #drop(id) {
    const entry = this.#items.get(id);
    if (!entry) return;
    const hadFocus = entry.item.contains(document.activeElement);
    const neighbour = entry.item.nextElementSibling ?? entry.item.previousElementSibling;
    entry.item.remove();
    this.#items.delete(id);
    if (hadFocus) (neighbour?.querySelector("a") ?? byId("history-title")).focus();
  }
}

function makeItem(job, listeners) {
  let current = job;
  const picture = make("img", { alt: "", width: 72, height: 54, hidden: true });
  picture.addEventListener("load", () => (picture.hidden = false));
  const words = make("span", { className: "edit-words" });
  const state = make("span", { className: "edit-state" });
  const bar = make("progress", { max: 100, "aria-hidden": "true" });
  const link = make("a", { href: `#${encodeURIComponent(job.id)}` },
    make("span", { className: "edit-picture" }, picture),
    make("span", { className: "edit-text" }, words, state, bar));
  const use = make("button", { type: "button", className: "quiet",
    on: { click: () => listeners.onUse(current) } }, "Use again");
  const remove = make("button", { type: "button", className: "quiet",
    on: { click: () => listeners.onDelete(current) } }, "Delete");
  const item = make("li", { className: "edit" }, link, make("div", { className: "edit-actions" }, use, remove));
  const show = (next) => {
    current = next;
    setText(words, next.prompt ?? "An edit");
    setText(state, stateOf(next));
    state.classList.toggle("bad-text", next.status === "failed" && stateOf(next).startsWith("Failed"));
    bar.hidden = hasEnded(next);
    bar.value = next.progress ?? 0;
    use.setAttribute("aria-label", `Use again: ${next.prompt}`);
    remove.setAttribute("aria-label", `Delete: ${next.prompt}`);
    showPicture(picture, next);
  };
  show(job);
  return { item, link, show };
}

function stateOf(job) {
  if (job.status === "queued") return doing(job);
  if (!hasEnded(job)) return `${doing(job)}, ${Math.round(job.progress ?? 0)} %`;
  if (job.status !== "completed") return `${doing(job)} · ${when(job.created_at)}`;
  const { seed } = job.params ?? {};
  return seed === undefined || seed === null ? when(job.created_at) : `${when(job.created_at)} · seed ${seed}`;
}

function showPicture(picture, job) {
  const variant = job.status === "completed" ? "thumbnail" : job.preview_ready ? "anchors" : null;
  if (!variant) return;
  const url = api.content(job.id, variant);
  if (picture.getAttribute("src") !== url) picture.src = url;
}
