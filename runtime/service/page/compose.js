/** The form: a source, an instruction, settings; and its way to the service. */

import { api } from "./api.js";
import { byId, make, mark, say, setText, size, span } from "./dom.js";
import { valuesOf } from "./jobs.js";
import { Parameters } from "./parameters.js";
import { Timeline } from "./timeline.js";

/**
 * What is edited: a file of this computer, or the source or the result of an earlier job.
 * @typedef {{kind: "file"|"source"|"result", name: string, url: string, file?: File, id?: string}} Source
 */

export class Compose {
  /** @type {Source|null} */
  #source = null;
  #sending = /** @type {AbortController|null} */ (null);

  /** @param {any} service as /v1/service has it @param {(job: any) => void} onMade */
  constructor(service, onMade) {
    this.service = service;
    this.onMade = onMade;
    this.timeline = new Timeline({ maxSeconds: service.max_seconds, onChange: () => this.#showReady() });
    this.parameters = new Parameters(service.parameters ?? [], () => {});
    this.#showLimits();
    this.#showLooks();
    this.#listen();
    this.#showReady();
  }

  get isSending() {
    return this.#sending !== null;
  }

  /** Fill the form with what a job was given; its source stays unless another is asked for. */
  use(job, { words = true } = {}) {
    if (words) this.#setPrompt(job.prompt ?? "");
    this.parameters.values = valuesOf(job);
    byId("more").open = Object.keys(this.parameters.values).length > 0;
  }

  /** Edit an earlier job's source again. */
  async useSource(job) {
    this.use(job);
    const { start, end } = job.params ?? {};
    await this.#setSource({ kind: "source", id: job.id, name: job.file_name ?? "the same video",
      url: api.content(job.id, "source") });
    this.timeline.setPart(Number(start ?? 0), end === undefined || end === null ? null : Number(end));
    this.#showReady();
  }

  /** Edit an earlier job's result again. */
  async useResult(job) {
    this.use(job, { words: false });
    this.#setPrompt("");
    await this.#setSource({ kind: "result", id: job.id, name: `Result of “${job.prompt}”`,
      url: api.content(job.id, "video") });
  }

  /** A job is gone: what was to be edited may be gone with it. */
  forget(id) {
    if (this.#source?.id !== id) return;
    if (this.#source.kind === "file") delete this.#source.id;
    else this.#setSource(null);
  }

  focusPrompt() {
    byId("prompt").focus();
  }

  #listen() {
    byId("file").addEventListener("change", (event) => this.#choose(event.target.files[0]));
    byId("other-video").addEventListener("click", () => {
      this.#setSource(null);
      byId("file").focus();
    });
    byId("edit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("prompt").addEventListener("input", () => this.#promptChanged());
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("edit-form").requestSubmit();
    });
    byId("stop-sending").addEventListener("click", () => this.#sending?.abort());
    byId("reset").addEventListener("click", () => {
      this.parameters.values = {};
      byId("more").querySelector("summary").focus();
    });
    this.#listenToDrops();
  }

  /** A file may fall anywhere on the page; without this the browser would leave the page for it. */
  #listenToDrops() {
    let depth = 0; // of entered elements: leaving a child is not leaving the page
    const show = () => byId("drop").classList.toggle("over", depth > 0);
    const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragenter", (event) => {
      if (holdsFile(event)) depth++;
      show();
    });
    addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      show();
    });
    addEventListener("dragover", (event) => {
      if (holdsFile(event)) event.preventDefault();
    });
    addEventListener("drop", (event) => {
      depth = 0;
      show();
      if (!holdsFile(event)) return;
      event.preventDefault();
      if (!byId("compose").hidden && !this.isSending) this.#choose(event.dataTransfer.files[0]);
    });
  }

  #showLimits() {
    const { max_upload_bytes: bytes, max_seconds: seconds, max_frames: frames } = this.service;
    const limits = [];
    if (bytes) limits.push(`up to ${size(bytes)}`);
    if (seconds) limits.push(`up to ${span(seconds)} are edited at a time`);
    if (frames) limits.push(`up to ${frames.toLocaleString("en")} frames`);
    const text = limits.join(", ");
    setText(byId("limits"), text && `${text.charAt(0).toUpperCase()}${text.slice(1)}.`);
  }

  #showLooks() {
    const { looks = [] } = this.service;
    byId("looks-part").hidden = looks.length === 0;
    byId("looks").replaceChildren(...looks.map((look) => make("li", {}, this.#lookButton(look))));
  }

  #lookButton(look) {
    const picture = make("img", { src: look.picture, alt: "", loading: "lazy", width: 128, height: 96,
      on: { error: () => picture.classList.add("broken") } });
    const choose = () => this.#setPrompt(look.prompt);
    const frame = make("span", { className: "look-picture" }, picture);
    return make("button", { type: "button", className: "look", title: look.prompt, "aria-pressed": "false",
      "data-prompt": look.prompt, on: { click: choose } }, frame, make("span", { className: "look-name" }, look.name));
  }

  #setPrompt(text) {
    byId("prompt").value = text;
    this.#promptChanged();
  }

  #promptChanged() {
    const text = byId("prompt").value.trim();
    for (const button of byId("looks").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.prompt === text));
    }
    if (text) mark(byId("prompt"), byId("prompt-error"), "");
    this.#showReady();
  }

  async #choose(file) {
    byId("file").value = ""; // the same file may be chosen again
    if (!file) return;
    const problem = this.#fileProblem(file);
    mark(byId("file"), byId("file-error"), problem);
    if (problem) return;
    await this.#setSource({ kind: "file", file, name: file.name, url: URL.createObjectURL(file) });
    say(`${file.name} is chosen.`);
  }

  #fileProblem(file) {
    const limit = this.service.max_upload_bytes;
    if (file.size === 0) return `${file.name} is empty.`;
    if (limit && file.size > limit) {
      return `${file.name} has ${size(file.size)}; this service takes up to ${size(limit)}.`;
    }
    if (/^(image|audio|text)\//.test(file.type) && file.type !== "image/gif") return `${file.name} is not a video.`;
    return "";
  }

  /** @param {Source|null} source */
  async #setSource(source) {
    if (this.#source?.file) URL.revokeObjectURL(this.#source.url);
    this.#source = source;
    mark(byId("file"), byId("file-error"), "");
    byId("drop").hidden = source !== null;
    byId("source").hidden = source === null;
    this.#showReady();
    if (!source) return this.timeline.clear();
    setText(byId("source-name"), source.name);
    setText(byId("source-about"), source.file ? size(source.file.size) : "already here");
    if (!byId("other-video").contains(document.activeElement)) byId("other-video").focus({ preventScroll: true });
    await this.timeline.load(source.url);
    if (this.#source === source) this.#showLoaded();
    return undefined;
  }

  #showLoaded() {
    const { maxSeconds, duration } = this.timeline;
    if (duration && maxSeconds && duration > maxSeconds) {
      say(`The video lasts ${span(duration)}; its first ${span(maxSeconds)} are chosen.`);
    }
    this.#showReady();
  }

  /** What is still missing, beside the button. */
  #showReady() {
    const missing = [];
    if (!this.#source) missing.push("a video");
    if (!byId("prompt").value.trim()) missing.push("an instruction");
    setText(byId("submit-hint"), missing.length ? `Still needed: ${missing.join(" and ")}.` : "");
  }

  async #submit() {
    setText(byId("submit-error"), "");
    if (this.isSending || this.#hasProblem()) return;
    const prompt = byId("prompt").value.trim();
    const values = { prompt, ...this.parameters.values, ...this.timeline.part, compare: true };
    this.#sending = new AbortController();
    this.#showSending(0, 0);
    try {
      const job = await this.#send(values, this.#sending.signal);
      if (this.#source?.kind === "file") this.#source.id = job.id;
      this.onMade(job);
    } catch (error) {
      this.#showRefusal(error);
    } finally {
      this.#sending = null;
      this.#showSending();
    }
  }

  /** A file that has been sent once need not be sent again, as long as the service has it. */
  async #send(values, signal) {
    const { kind, file, id } = this.#source;
    if (kind === "result") return api.remix(id, values);
    if (!id) return api.create(values, file, (done, total) => this.#showSending(done, total), signal);
    try {
      return await api.create({ ...values, source_video_id: id }, null);
    } catch (error) {
      if (error.status !== 404 || !file) throw error;
      delete this.#source.id;
      return this.#send(values, signal);
    }
  }

  /** Whether something is missing or wrong; the first of it has the focus then. */
  #hasProblem() {
    if (!this.#source) {
      mark(byId("file"), byId("file-error"), byId("file-error").textContent || "Choose a video first.");
      byId("file").focus();
      return true;
    }
    if (this.timeline.problem()) {
      this.timeline.focus();
      return true;
    }
    if (!byId("prompt").value.trim()) {
      mark(byId("prompt"), byId("prompt-error"), "Write what the video should become, or choose a look.");
      byId("prompt").focus();
      return true;
    }
    return Boolean(this.parameters.problem());
  }

  #showRefusal(error) {
    if (error.code === "aborted") return say("Sending was stopped.");
    const { param, message } = error;
    setText(byId("submit-error"), message);
    if (param === "prompt") return byId("prompt").focus();
    if (param === "start" || param === "end") {
      mark(byId(param), byId("trim-error"), message);
      return byId(param).focus();
    }
    if (param && this.parameters.refuse(param, message)) setText(byId("submit-error"), "");
    return undefined;
  }

  /** Without arguments: nothing is being sent. */
  #showSending(done = null, total = null) {
    const { activeElement } = document;
    const isSending = this.isSending;
    byId("submit-line").hidden = isSending;
    byId("sending").hidden = !isSending;
    if (isSending && byId("start-edit") === activeElement) byId("stop-sending").focus();
    if (!isSending && byId("stop-sending") === activeElement) byId("start-edit").focus();
    byId("sent").value = total ? (100 * done) / total : 0;
    const isThere = total && done >= total;
    setText(byId("sending-text"), total && !isThere ? `Sending the video, ${size(done)} of ${size(total)}`
      : isThere ? "Sent, waiting for the service" : "Starting");
  }
}

