/** The page of `fairy serve`: signs in, follows the events, and shows the form or one job. */

import { api, EventLine } from "./api.js";
import { Compose } from "./compose.js";
import { byId, confirmed, say, setText } from "./dom.js";
import { History } from "./history.js";
import { hasEnded, Jobs } from "./jobs.js";
import { JobView } from "./progress.js";

const VIEWS = ["sign-in", "compose", "job", "missing"];
const RETRY_MS = 3000;
const LOST_AFTER_MS = 1500; // a stream that comes back at once is not worth a word

class App {
  #jobs = new Jobs();
  #compose = /** @type {Compose|null} */ (null);
  #view = "";
  #lostTimer = 0;
  #hasBeenOpen = false;
  #isWaiting = false; // for the model
  #notices = { lost: "", loading: "", refused: "" }; // the first that is not empty is shown

  constructor() {
    const listeners = {
      onMade: (job) => this.#made(job),
      onUse: (job) => this.#use(job),
      onDelete: (job) => this.#delete(job),
      onEditSource: (job) => this.#edit((compose) => compose.useSource(job)),
      onEditResult: (job) => this.#edit((compose) => compose.useResult(job)),
    };
    this.jobView = new JobView(listeners);
    this.history = new History(this.#jobs, listeners);
    this.events = new EventLine({
      video: (job) => this.#jobs.put(job),
      deleted: (id) => this.#jobs.remove(id),
      opened: () => this.#opened(),
      lost: () => this.#lost(),
    });
    this.#listen();
  }

  async start() {
    try {
      const session = await api.session();
      byId("sign-out").hidden = !(session.key_required && session.signed_in);
      if (session.key_required && !session.signed_in) this.#askKey();
      else await this.#enter();
    } catch (error) {
      this.#waitForService(error);
    }
  }

  async #enter() {
    const service = await api.service();
    this.#compose ??= new Compose(service, (job) => this.#made(job));
    this.#showService(service);
    await this.history.load();
    byId("history").hidden = false;
    this.#clearLost();
    await this.#route();
    this.events.open();
  }

  #listen() {
    addEventListener("hashchange", () => this.#route(true));
    addEventListener("pagehide", () => this.events.close());
    addEventListener("pageshow", (event) => event.persisted && this.events.open());
    addEventListener("beforeunload", (event) => this.#compose?.isSending && event.preventDefault());
    document.addEventListener("visibilitychange", () => this.#visibilityChanged());
    this.#jobs.addEventListener("change", (/** @type {any} */ event) => this.#changed(event.detail));
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#signIn();
    });
    byId("sign-out").addEventListener("click", () => this.#signOut());
    for (const id of ["brand", "new-edit"]) byId(id).addEventListener("click", (event) => this.#goHome(event));
  }

  // Where we are: "#<id of a job>", or nothing for the form.

  get #wanted() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return location.hash; // of nobody's making; no job is called so
    }
  }

  #goHome(event) {
    event.preventDefault(); // href="#" would leave a bare "#" in the address
    if (!location.hash) return;
    history.pushState(null, "", location.pathname);
    this.#route(true);
  }

  async #route(isAsked = false) {
    if (!this.#compose) return undefined;
    this.#notice("refused", "");
    const id = this.#wanted;
    this.history.select(id);
    if (!id) return this.#showView("compose", isAsked);
    if (!this.#jobs.get(id) && (await this.#fetch(id)) === "missing") return this.#showView("missing", isAsked);
    if (this.#wanted !== id || !this.#jobs.get(id)) return undefined;
    this.#showJob(this.#jobs.get(id));
    this.history.select(id);
    return this.#showView("job", isAsked);
  }

  /** Ask for one job; what else can go wrong is said by itself. @returns "there", "missing" or "refused" */
  async #fetch(id) {
    try {
      this.#jobs.put(await api.video(id));
      return "there";
    } catch (error) {
      if (error.status !== 404) {
        this.#refused(error);
        return "refused";
      }
      this.#jobs.remove(id);
      return "missing";
    }
  }

  #showView(name, takesFocus) {
    const isOther = this.#view !== name;
    this.#view = name;
    for (const view of VIEWS) byId(view).hidden = view !== name;
    byId("new-edit").hidden = name === "compose" || name === "sign-in";
    if (name !== "job") this.jobView.hide();
    this.#showTitle();
    if (!takesFocus) return;
    if (isOther || name === "job") scrollTo({ top: 0 });
    byId(`${name}-title`).focus({ preventScroll: true });
  }

  #showJob(job) {
    this.jobView.show(job);
    this.#showTitle();
  }

  #showTitle() {
    const job = this.#view === "job" ? this.#jobs.get(this.jobView.id) : undefined;
    if (!job) document.title = "fairy";
    else if (job.status === "in_progress") document.title = `${Math.round(job.progress)} % · ${job.prompt} · fairy`;
    else document.title = `${job.status === "completed" ? "✓ " : ""}${job.prompt} · fairy`;
  }

  // Jobs

  #changed({ id, job, before }) {
    if (this.jobView.id === id && job) this.#showJob(job);
    if (!job) this.#gone(id);
    else if (before && !hasEnded(before) && job.status === "completed" && this.jobView.id !== id) {
      say(`Ready: ${job.prompt}`);
    }
    if (document.hidden) this.#visibilityChanged();
  }

  #gone(id) {
    this.#compose?.forget(id);
    if (this.#wanted === id) this.#showView("missing", false);
  }

  #made(job) {
    this.#jobs.put(job);
    this.events.open();
    location.hash = encodeURIComponent(job.id);
  }

  #use(job) {
    this.#compose.use(job);
    if (location.hash) history.pushState(null, "", location.pathname);
    this.#route(true);
    say("The settings are in the form.");
  }

  #edit(fill) {
    history.pushState(null, "", location.pathname);
    this.#route(true);
    fill(this.#compose).then(() => this.#compose.focusPrompt());
  }

  async #delete(job) {
    const running = hasEnded(job) ? "" : " It is not finished yet, and will be stopped.";
    if (!(await confirmed(`Delete “${job.prompt}”? Its files are removed from the service.${running}`))) return;
    try {
      await api.remove(job.id);
      if (this.#wanted === job.id) {
        history.pushState(null, "", location.pathname);
        this.#route(true);
      }
      this.#jobs.remove(job.id);
      say("Deleted.");
    } catch (error) {
      this.#refused(error);
    }
  }

  // The connection

  #visibilityChanged() {
    if (!document.hidden) this.#compose && this.#view !== "sign-in" && this.events.open();
    else if (!this.#jobs.someRun) this.events.close();
  }

  /** What happened while nobody listened is not sent again: ask for it. */
  async #opened() {
    const wasAway = this.#hasBeenOpen;
    this.#hasBeenOpen = true;
    this.#clearLost();
    if (!wasAway) return;
    try {
      this.#showService(await api.service());
      await this.history.load();
      const { id } = this.jobView;
      if (id) await this.#fetch(id);
    } catch (error) {
      this.#refused(error);
    }
  }

  #lost() {
    this.#lostTimer ||= window.setTimeout(() => {
      this.#notice("lost", "The service does not answer. What it was doing is kept; "
        + "this page goes on as soon as it is back.");
    }, LOST_AFTER_MS);
    api.session().then(
      (session) => session.key_required && !session.signed_in && this.#askKey(), () => {});
  }

  #clearLost() {
    clearTimeout(this.#lostTimer);
    this.#lostTimer = 0;
    if (this.#notices.lost) say("The service is back.");
    this.#notice("lost", "");
  }

  /** Nothing could be loaded at all: try again until it can. */
  #waitForService(error) {
    if (error.status === 401) return this.#askKey();
    this.#notice("lost", `${error.message} Trying again.`);
    return setTimeout(() => this.start(), RETRY_MS);
  }

  #refused(error) {
    if (error.status === 401) this.#askKey();
    else this.#notice("refused", error.message);
  }

  #notice(kind, text) {
    this.#notices[kind] = text;
    const shown = Object.values(this.#notices).find(Boolean) ?? "";
    setText(byId("notice"), shown);
    byId("notice").hidden = !shown;
  }

  #showService({ model, version, ready }) {
    setText(byId("model"), [model, version && `fairy ${version}`].filter(Boolean).join(" · "));
    if (!ready) this.#waitForModel();
  }

  async #waitForModel() {
    if (this.#isWaiting) return;
    this.#isWaiting = true;
    this.#notice("loading", "The model is being loaded. You can prepare your edit meanwhile; "
      + "it starts as soon as it can.");
    let isReady = false;
    while (!isReady && this.#isWaiting) {
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      isReady = (await api.service().catch(() => ({ ready: false }))).ready;
    }
    this.#isWaiting = false;
    this.#notice("loading", "");
  }

  // The key

  #askKey() {
    this.#isWaiting = false;
    clearTimeout(this.#lostTimer);
    this.#lostTimer = 0;
    for (const kind of Object.keys(this.#notices)) this.#notice(kind, "");
    this.events.close();
    this.#jobs.clear();
    byId("history").hidden = true;
    byId("sign-out").hidden = true;
    this.#showView("sign-in", false);
    byId("key").focus();
  }

  async #signIn() {
    const key = byId("key");
    setText(byId("key-error"), "");
    try {
      await api.signIn(key.value.trim());
      key.value = ""; // the cookie holds it from here on
      await this.start();
      byId(`${this.#view}-title`).focus({ preventScroll: true });
    } catch (error) {
      setText(byId("key-error"), error.status === 401 ? "This key is not known here." : error.message);
      key.select();
    }
  }

  async #signOut() {
    await api.signOut().catch(() => {});
    location.assign(location.pathname); // forgets everything that was loaded
  }
}

new App().start();
