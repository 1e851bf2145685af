/** One job: its progress and the look while it runs, its result or what went wrong afterwards. */

import { api } from "./api.js";
import { Compare } from "./compare.js";
import { byId, make, say, setText, span, timeLeft, when } from "./dom.js";
import { doing, hasEnded, newSeed, part, valuesOf, wasCancelled } from "./jobs.js";

const STEPS = ["probe", "anchors", "frames"];
const BEFORE_LOOK = "The look comes first: a few frames of the video, edited together. "
  + "You can leave this page; the edit goes on.";
const CHOICE = "This is the look of the whole video. The rest is already under way; "
  + "change it now if it is not what you meant.";
const AGREED = "The rest of the video follows this look.";
const LONG_PROMPT = 80; // characters, from which on a smaller heading reads better
const stepOf = (stage) => STEPS.indexOf(stage === "shots" ? "probe" : stage);

export class JobView {
  #job = null;
  #compare = new Compare();
  #agreed = new Set(); // ids of the jobs whose look was accepted
  #isBusy = false;

  /**
   * @param {{onMade: (job: any) => void, onUse: (job: any) => void, onEditSource: (job: any) => void,
   *          onEditResult: (job: any) => void, onDelete: (job: any) => void}} listeners
   */
  constructor(listeners) {
    this.listeners = listeners;
    this.#listen();
  }

  /** The id of the job that is shown, if any. */
  get id() {
    return this.#job?.id ?? null;
  }

  /** Show a job, or its next state. */
  show(job) {
    const before = this.#job?.id === job.id ? this.#job : null;
    this.#job = job;
    if (!before) this.#reset();
    this.#showHead(job);
    byId("running").hidden = hasEnded(job);
    byId("failed").hidden = job.status !== "failed";
    byId("done").hidden = job.status !== "completed";
    if (!hasEnded(job)) this.#showRunning(job);
    else if (job.status === "failed") this.#showFailure(job);
    else this.#showResult(job);
    this.#showFacts(job);
    if (before) announce(before, job);
  }

  hide() {
    this.#job = null;
    this.#compare.close();
  }

  #listen() {
    const on = (id, listener) => byId(id).addEventListener("click", () => listener(this.#job));
    on("go-on", (job) => this.#agree(job));
    on("other-seed", (job) => this.#replace(job, { seed: newSeed() }, "choice-error"));
    on("other-words", () => this.#askWords(true));
    on("keep-words", () => this.#askWords(false));
    on("cancel", (job) => this.#try(() => api.cancel(job.id), "choice-error"));
    on("again", (job) => this.#again(job, {}, "again-error"));
    on("another-seed", (job) => this.#again(job, { seed: newSeed() }, "done-error"));
    on("change", (job) => this.listeners.onEditSource(job));
    on("edit-source", (job) => this.listeners.onEditSource(job));
    on("edit-result", (job) => this.listeners.onEditResult(job));
    on("use-settings", (job) => this.listeners.onUse(job));
    on("delete-job", (job) => this.listeners.onDelete(job));
    byId("words-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const prompt = byId("words").value.trim();
      if (prompt) this.#replace(this.#job, { prompt }, "choice-error");
    });
    const picture = byId("anchors-picture");
    picture.addEventListener("load", () => (picture.hidden = false));
  }

  #reset() {
    this.#compare.close();
    this.#askWords(false);
    for (const id of ["choice-error", "again-error", "done-error"]) setText(byId(id), "");
    byId("anchors-picture").hidden = true;
    byId("anchors-picture").removeAttribute("src");
    byId("settings").open = false;
  }

  #showHead(job) {
    setText(byId("job-title"), job.prompt ?? "An edit");
    byId("job-title").classList.toggle("long", (job.prompt ?? "").length > LONG_PROMPT);
    const about = [job.file_name ?? "video", part(job)];
    const { seed } = job.params ?? {};
    if (seed !== undefined && seed !== null) about.push(`seed ${seed}`);
    const text = about.filter(Boolean).join(" · ");
    const from = job.remixed_from_video_id;
    const place = byId("job-about");
    if (place.dataset.shown === job.id + text) return;
    place.dataset.shown = job.id + text;
    place.replaceChildren(text);
    if (from) place.append(" · ", make("a", { href: `#${encodeURIComponent(from)}` }, "made from this result"));
  }

  #showRunning(job) {
    const now = job.status === "queued" ? -1 : Math.max(0, stepOf(job.stage));
    for (const [i, item] of [...byId("stages").children].entries()) {
      item.classList.toggle("past", i < now);
      if (i === now) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    }
    byId("bar").value = job.progress ?? 0;
    setText(byId("stage-line"), lineOf(job));
    setText(byId("time-left"), typeof job.eta_s === "number" && job.status !== "queued" ? timeLeft(job.eta_s) : "");
    this.#showChoice(job);
  }

  #showChoice(job) {
    const hasLook = Boolean(job.preview_ready);
    const isOpen = hasLook && !this.#agreed.has(job.id);
    const isAsking = !byId("words-form").hidden;
    byId("choice-actions").hidden = isAsking;
    for (const id of ["go-on", "other-seed", "other-words"]) byId(id).hidden = !isOpen;
    setText(byId("cancel"), isOpen ? "Stop" : "Cancel");
    setText(byId("choice-text"), isOpen ? CHOICE : hasLook ? AGREED : BEFORE_LOOK);
    if (hasLook) this.#showAnchors(job);
  }

  #showAnchors(job) {
    const url = api.content(job.id, "anchors");
    const picture = byId("anchors-picture");
    if (picture.getAttribute("src") === url) return;
    picture.alt = `Frames of the video, edited: ${job.prompt}`;
    picture.src = url;
    setText(byId("anchors-caption"), "The anchors: every other frame takes its look from these.");
  }

  #agree(job) {
    this.#agreed.add(job.id);
    this.#showRunning(job);
    byId("job-title").focus({ preventScroll: true });
    say(AGREED);
  }

  #askWords(isAsking) {
    const wasAsking = !byId("words-form").hidden;
    byId("words-form").hidden = !isAsking;
    byId("choice-actions").hidden = isAsking;
    if (isAsking) {
      byId("words").value = this.#job.prompt ?? "";
      byId("words").focus();
      byId("words").select();
    } else if (wasAsking && this.#job && !hasEnded(this.#job)) byId("other-words").focus();
  }

  /** Start it otherwise and stop this one; in that order, so that a full queue costs nothing. */
  #replace(job, changes, errorId) {
    return this.#try(async () => {
      const next = await this.#make(job, changes);
      await api.cancel(job.id).catch(() => {}); // it may have ended meanwhile
      this.listeners.onMade(next);
    }, errorId);
  }

  #again(job, changes, errorId) {
    return this.#try(async () => this.listeners.onMade(await this.#make(job, changes)), errorId);
  }

  #make(job, changes) {
    const values = { ...valuesOf(job), prompt: job.prompt, ...changes, compare: true, source_video_id: job.id };
    return api.create(values, null);
  }

  /** One thing at a time; what goes wrong is said where it was asked for. */
  async #try(act, errorId) {
    if (this.#isBusy) return;
    this.#isBusy = true;
    setText(byId(errorId), "");
    try {
      await act();
    } catch (error) {
      setText(byId(errorId), error.message);
    } finally {
      this.#isBusy = false;
    }
  }

  #showFailure(job) {
    const why = job.error?.message || "It failed, and the service does not say why.";
    setText(byId("failure"), wasCancelled(job) ? "This edit was stopped." : why);
    byId("failed").firstElementChild.classList.toggle("bad", !wasCancelled(job));
  }

  #showResult(job) {
    byId("download").href = api.content(job.id, "video", true);
    this.#compare.load(job.id, api.content(job.id, job.has_compare ? "compare" : "video"), job.has_compare);
  }

  #showFacts(job) {
    const facts = factsOf(job);
    const list = byId("facts");
    const key = JSON.stringify([job.id, facts, job.notes]);
    if (list.dataset.shown === key) return;
    list.dataset.shown = key;
    list.replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    byId("notes").replaceChildren(...(job.notes ?? []).map((note) => make("li", {}, note)));
    byId("report").hidden = job.status !== "completed";
    byId("report").href = api.content(job.id, "report", true);
  }
}

/** The steps of a stage are the model's, not the video's: a share says more than their number. */
function lineOf(job) {
  const share = job.status === "in_progress" && job.progress > 0 ? `, ${Math.round(job.progress)} %` : "";
  return `${doing(job)}${share}`;
}

function factsOf(job) {
  const facts = [["Source", job.file_name ?? ""], ["Part", part(job) || "the whole video"], ["Model", job.model ?? ""]];
  for (const [name, value] of Object.entries(valuesOf(job))) {
    if (name !== "start" && name !== "end") facts.push([name.replaceAll("_", " "), String(value)]);
  }
  if (job.size) facts.push(["Size", job.size.replace("x", " × ")]);
  if (job.num_frames) facts.push(["Frames", String(job.num_frames)]);
  if (job.seconds) facts.push(["Length", `${job.seconds} s`]);
  facts.push(["Made", when(job.created_at)]);
  if (job.completed_at && job.started_at) facts.push(["Took", span(job.completed_at - job.started_at)]);
  if (job.expires_at) facts.push(["Kept until", when(job.expires_at)]);
  if (job.frames_sha256) facts.push(["SHA-256 of the frames", job.frames_sha256]);
  return facts.filter(([, value]) => value !== "");
}

/** Milestones alone are spoken, not every step. */
function announce(before, job) {
  if (job.status === "completed" && before.status !== "completed") say("The video is ready.");
  else if (job.status === "failed" && before.status !== "failed") say(byId("failure").textContent);
  else if (job.preview_ready && !before.preview_ready) {
    say("The anchors are ready. You can go on, take another seed, write other words, or stop.");
  } else if (doing(job) !== doing(before)) say(doing(job));
}
