/** The service's HTTP interface: calls, uploads with progress, and the stream of events. */

/** An answer that is not a success. `status` 0: there was no answer. */
export class ServiceError extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfterS = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfterS });
  }
}

const NO_ANSWER = "The service does not answer.";

function errorFrom(status, text, retryAfter) {
  let body = {};
  try {
    body = JSON.parse(text).error ?? {};
  } catch {
    // A proxy's own page; its status says enough.
  }
  const wait = retryAfter ? Number(retryAfter) : null;
  let message = body.message || `The service answered with status ${status}.`;
  if (status === 429 && wait) message += ` Try again in ${wait} s.`;
  return new ServiceError(message, { status, param: body.param, code: body.code, retryAfterS: wait });
}

async function call(method, path, body) {
  const options = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new ServiceError(NO_ANSWER);
  }
  const text = await answer.text();
  if (!answer.ok) throw errorFrom(answer.status, text, answer.headers.get("Retry-After"));
  return JSON.parse(text);
}

const ofVideo = (id, rest = "") => `/v1/videos/${encodeURIComponent(id)}${rest}`;

export const api = {
  session: () => call("GET", "/v1/session"),
  signIn: (key) => call("POST", "/v1/session", { key }),
  signOut: () => call("DELETE", "/v1/session"),
  service: () => call("GET", "/v1/service"),
  list: (after, limit = 20) =>
    call("GET", `/v1/videos?limit=${limit}&order=desc${after ? `&after=${encodeURIComponent(after)}` : ""}`),
  video: (id) => call("GET", ofVideo(id)),
  cancel: (id) => call("POST", ofVideo(id, "/cancel")),
  remove: (id) => call("DELETE", ofVideo(id)),
  remix: (id, values) => call("POST", ofVideo(id, "/remix"), values),
  content: (id, variant, download = false) =>
    ofVideo(id, `/content?variant=${variant}${download ? "&download=1" : ""}`),

  /**
   * Make an edit. The values go before the file, so that a wrong one can be answered before the file has arrived.
   * @param {Record<string, any>} values
   * @param {File|null} file
   * @param {(done: number, total: number) => void} onProgress bytes
   * @param {AbortSignal} [signal]
   */
  create(values, file, onProgress = () => {}, signal = undefined) {
    const form = new FormData();
    for (const [name, value] of Object.entries(values)) form.append(name, String(value));
    if (file) form.append("input_reference", file, file.name);
    return send(form, onProgress, signal);
  },
};

function send(form, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch cannot report how much has been sent
    request.open("POST", "/v1/videos");
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else reject(errorFrom(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(new ServiceError("The connection broke while sending. Nothing was started."));
    request.onabort = () => reject(new ServiceError("Stopped.", { code: "aborted" }));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

const FIRST_RETRY_MS = 1000;
const LONGEST_RETRY_MS = 5000;

/** One stream of events for the whole page; it comes back by itself. */
export class EventLine {
  /** @param {{video: Function, deleted: Function, opened: Function, lost: Function}} listeners */
  constructor(listeners) {
    this.listeners = listeners;
    this.source = null;
    this.timer = 0;
    this.retryMs = FIRST_RETRY_MS;
  }

  get isOpen() {
    return this.source !== null || this.timer !== 0;
  }

  open() {
    if (this.isOpen) return;
    const source = new EventSource("/v1/events");
    source.addEventListener("video", (event) => this.listeners.video(JSON.parse(event.data)));
    source.addEventListener("deleted", (event) => this.listeners.deleted(JSON.parse(event.data).id));
    source.onopen = () => {
      this.retryMs = FIRST_RETRY_MS;
      this.listeners.opened();
    };
    source.onerror = () => this.#again();
    this.source = source;
  }

  close() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.timer);
    this.timer = 0;
  }

  /** Browsers give up after some answers and go on after others; we always go on, ever more slowly. */
  #again() {
    this.close();
    this.listeners.lost();
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.open();
    }, this.retryMs);
    this.retryMs = Math.min(2 * this.retryMs, LONGEST_RETRY_MS);
  }
}
