/**
 * The chosen video with a strip of thumbnails and two handles. The browser decodes it by itself; where it cannot (HEVC
 * in most), the two fields alone are left.
 */

import { byId, clock, mark, parseClock, setText, span } from "./dom.js";

const LOAD_LIMIT_MS = 12000;
const THUMBNAIL_HEIGHT = 56; // CSS pixels, as in style.css

export class Timeline {
  #video = byId("source-video");
  #handles = { start: byId("handle-start"), end: byId("handle-end") };
  #fields = { start: byId("start"), end: byId("end") };
  #strip = byId("strip");
  #thumbnails = new Thumbnails(byId("thumbnails"));
  #duration = null; // seconds; null: not known
  #start = 0;
  #end = null; // null: to the end
  #loads = 0;

  /** @param {{maxSeconds: number|null, onChange: () => void}} options */
  constructor({ maxSeconds, onChange }) {
    this.maxSeconds = maxSeconds;
    this.onChange = onChange;
    for (const side of ["start", "end"]) {
      this.#handles[side].addEventListener("input", () => this.#dragged(side));
      this.#fields[side].addEventListener("change", () => this.#typed());
    }
    byId("play-part").addEventListener("click", () => this.#playOrPause());
    this.#video.addEventListener("timeupdate", () => this.#played());
    for (const event of ["play", "pause"]) this.#video.addEventListener(event, () => this.#showPlaying());
    new ResizeObserver(() => this.#thumbnails.fit()).observe(this.#strip);
  }

  get duration() {
    return this.#duration;
  }

  /** What the service is asked for: nothing where all is meant. */
  get part() {
    const part = {};
    if (this.#start > 0) part.start = this.#start;
    if (this.#end !== null && (this.#duration === null || this.#end < this.#duration - 0.001)) part.end = this.#end;
    return part;
  }

  /** Show another video; resolves to whether the browser can. @param {string} url */
  async load(url) {
    const load = ++this.#loads;
    this.clear();
    const known = await metadata(this.#video, url);
    if (load !== this.#loads) return false;
    this.#duration = known.duration;
    this.#showDecodable(known);
    if (known.decodable) this.#thumbnails.draw(url, known.duration);
    if (this.maxSeconds && known.duration > this.maxSeconds) this.#end = this.maxSeconds;
    this.#show();
    return known.decodable;
  }

  /** Forget the video. */
  clear() {
    this.#thumbnails.clear();
    this.#video.pause();
    this.#video.removeAttribute("src");
    this.#video.load();
    this.#duration = null;
    this.setPart(0, null);
  }

  /** @param {number} start @param {number|null} end seconds */
  setPart(start, end) {
    this.#start = start;
    this.#end = end;
    this.#show();
  }

  /** What is wrong with the chosen part, "" if nothing is; shown at the fields. */
  problem() {
    const start = parseClock(this.#fields.start.value);
    const end = parseClock(this.#fields.end.value);
    let text = "";
    if (Number.isNaN(start) || Number.isNaN(end)) text = "Write times as seconds (12.5) or minutes (1:05).";
    else if (end !== null && end <= (start ?? 0)) text = "The end must come after the start.";
    else if (this.#duration !== null && (start ?? 0) >= this.#duration) text = "The start lies behind the video’s end.";
    else if (this.#isTooLong()) {
      text = `This service edits up to ${span(this.maxSeconds)} at a time; choose a shorter part.`;
    }
    mark(this.#fields.start, byId("trim-error"), text);
    mark(this.#fields.end, byId("trim-error"), text);
    return text;
  }

  focus() {
    this.#fields.start.focus();
  }

  #isTooLong() {
    const end = this.#end ?? this.#duration;
    return Boolean(this.maxSeconds) && end !== null && end - this.#start > this.maxSeconds + 0.01;
  }

  #showDecodable({ decodable, width, height }) {
    byId("viewer").hidden = this.#strip.hidden = byId("play-part").hidden = !decodable;
    const hint = byId("undecodable");
    hint.hidden = decodable;
    setText(hint, decodable ? "" : "This browser cannot show this video; the service may well be able to read it. "
      + "To edit only a part, write its start and end in seconds.");
    if (decodable) byId("viewer").style.aspectRatio = `${width} / ${height}`;
  }

  #dragged(side) {
    const smallest = Math.min(0.1, this.#duration);
    const value = Number(this.#handles[side].value);
    if (side === "start") this.#start = Math.min(value, (this.#end ?? this.#duration) - smallest);
    else this.#end = Math.max(value, this.#start + smallest);
    if (this.#end !== null && this.#end >= this.#duration) this.#end = null;
    this.#video.pause();
    this.#video.currentTime = side === "start" ? this.#start : (this.#end ?? this.#duration) - 0.001;
    this.#show();
    this.onChange();
  }

  #typed() {
    const start = parseClock(this.#fields.start.value);
    const end = parseClock(this.#fields.end.value);
    if (!Number.isNaN(start) && !Number.isNaN(end)) {
      this.#start = start ?? 0;
      this.#end = end === null || (this.#duration !== null && end >= this.#duration) ? null : end;
      if (this.#duration !== null) this.#video.currentTime = Math.min(this.#start, this.#duration);
      this.#show();
    } else this.problem();
    this.onChange();
  }

  #show() {
    this.#fields.start.value = this.#start ? clock(this.#start, 2) : "";
    this.#fields.end.value = this.#end === null ? "" : clock(this.#end, 2);
    if (this.#duration !== null) this.#showOnStrip(this.#duration);
    const end = this.#end ?? this.#duration;
    setText(byId("part-length"), end === null ? "" : `${span(Math.max(0, end - this.#start))} ${
      Object.keys(this.part).length ? "chosen" : "in all"}`);
    this.problem();
  }

  #showOnStrip(duration) {
    const end = this.#end ?? duration;
    const { start: first, end: last } = this.#handles;
    for (const handle of [first, last]) {
      handle.max = String(duration);
      handle.step = duration < 20 ? "0.05" : "0.1";
    }
    // A range input rounds to its step: one that ends between two steps could not be moved to its end.
    last.max = String(Math.ceil(duration / Number(last.step)) * Number(last.step));
    first.value = String(this.#start);
    last.value = String(this.#end ?? last.max);
    first.setAttribute("aria-valuetext", clock(this.#start, 2));
    last.setAttribute("aria-valuetext", clock(end, 2));
    byId("shade-before").style.width = `${(100 * this.#start) / duration}%`;
    byId("shade-after").style.width = `${Math.max(0, 100 - (100 * end) / duration)}%`;
  }

  #playOrPause() {
    if (!this.#video.paused) return this.#video.pause();
    const end = this.#end ?? this.#duration;
    const { currentTime } = this.#video;
    if (currentTime < this.#start || currentTime >= end - 0.05) this.#video.currentTime = this.#start;
    return this.#video.play().catch(() => {}); // a new source interrupts it
  }

  #played() {
    const { currentTime, paused } = this.#video;
    byId("playhead").style.left = `${(100 * currentTime) / (this.#duration || 1)}%`;
    if (!paused && this.#end !== null && currentTime >= this.#end) this.#video.pause();
  }

  #showPlaying() {
    setText(byId("play-part"), this.#video.paused ? "Play" : "Pause");
  }
}

/** Load a video's beginning. A file whose sound alone is known counts as not decodable. */
function metadata(video, url) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      video.removeEventListener("loadedmetadata", end);
      video.removeEventListener("error", end);
      const duration = Number.isFinite(video.duration) && video.duration > 0 ? video.duration : null;
      const { videoWidth: width, videoHeight: height } = video;
      resolve({ duration, width, height, decodable: !video.error && duration !== null && width > 0 });
    };
    const timer = setTimeout(end, LOAD_LIMIT_MS);
    video.addEventListener("loadedmetadata", end);
    video.addEventListener("error", end);
    video.src = url;
  });
}

/** A strip of pictures, drawn one after the other by a second video element that nobody sees. */
class Thumbnails {
  #runs = 0;
  #shown = null; // {url, duration}

  constructor(canvas) {
    this.canvas = canvas;
  }

  clear() {
    this.#runs++;
    this.#shown = null;
    this.canvas.width = this.canvas.width; // forgets its picture
  }

  /** Draw again where the strip's width has changed by much. */
  fit() {
    const { clientWidth } = this.canvas;
    const drawn = this.canvas.width / devicePixelRatio;
    if (this.#shown && clientWidth && Math.abs(clientWidth - drawn) > 0.25 * drawn) {
      this.draw(this.#shown.url, this.#shown.duration);
    }
  }

  async draw(url, duration) {
    const run = ++this.#runs;
    this.#shown = { url, duration };
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto" });
    try {
      const known = await metadata(video, url);
      if (!known.decodable || run !== this.#runs) return;
      const cells = this.#cells(known.width / known.height);
      for (let i = 0; i < cells.length && run === this.#runs; i++) {
        await seek(video, ((i + 0.5) / cells.length) * duration);
        if (run === this.#runs) drawInto(this.canvas, cells[i], video);
      }
    } finally {
      video.removeAttribute("src");
      video.load(); // frees the decoder
    }
  }

  /** Equal cells over the whole strip, about as wide as the video's shape asks for. */
  #cells(aspect) {
    const width = Math.max(1, this.canvas.clientWidth);
    const count = Math.max(1, Math.round(width / (THUMBNAIL_HEIGHT * Math.min(Math.max(aspect, 0.5), 3))));
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(THUMBNAIL_HEIGHT * devicePixelRatio);
    const cell = this.canvas.width / count;
    return Array.from({ length: count }, (_, i) => ({ x: i * cell, width: cell, height: this.canvas.height }));
  }
}

function seek(video, time) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 3000); // a damaged place is left out
    video.addEventListener("seeked", () => {
      clearTimeout(timer);
      resolve(undefined);
    }, { once: true });
    video.currentTime = time;
  });
}

/** Fill a cell with the middle of the picture. */
function drawInto(canvas, { x, width, height }, video) {
  const scale = Math.max(width / video.videoWidth, height / video.videoHeight);
  const [w, h] = [width / scale, height / scale];
  const [left, top] = [(video.videoWidth - w) / 2, (video.videoHeight - h) / 2];
  canvas.getContext("2d").drawImage(video, left, top, w, h, x, 0, width, height);
}
