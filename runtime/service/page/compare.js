/**
 * Source and result beside each other. Both are halves of one video, so they are in step by construction; each of its
 * frames is drawn into a canvas, with the border where the slider is.
 */

import { byId, clock, setText } from "./dom.js";

const GAP = 4; // pixels between the halves

export class Compare {
  #video = byId("player-video");
  #canvas = byId("picture");
  #pen = this.#canvas.getContext("2d");
  #split = byId("split");
  #seek = byId("seek");
  #isFlipped = false;
  #isBeside = false;
  #hasHalves = true;
  #shown = ""; // the job whose video is loaded
  #wholeSecond = -1;

  constructor() {
    this.#listen();
  }

  /**
   * @param {string} id of the job; the same one again changes nothing
   * @param {string} url
   * @param {boolean} hasHalves false: the video is the result alone
   */
  load(id, url, hasHalves) {
    if (this.#shown === id) return;
    this.close();
    this.#shown = id;
    this.#hasHalves = hasHalves;
    for (const name of ["views", "split", "tag-source", "tag-result"]) byId(name).hidden = !hasHalves;
    setText(byId("player-error"), "");
    this.#setBeside(false);
    this.#setSplit(50);
    this.#video.src = url;
  }

  close() {
    if (!this.#shown) return;
    this.#shown = "";
    this.#video.pause();
    this.#video.removeAttribute("src");
    this.#video.load();
    this.#canvas.width = this.#canvas.width; // forgets its picture
  }

  #listen() {
    const video = this.#video;
    video.addEventListener("loadedmetadata", () => this.#showLength());
    for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, () => this.#draw());
    for (const event of ["play", "pause"]) video.addEventListener(event, () => this.#showPlaying());
    video.addEventListener("play", () => this.#follow());
    video.addEventListener("error", () => this.#showError());
    byId("play").addEventListener("click", () => this.#playOrPause());
    this.#seek.addEventListener("input", () => (video.currentTime = Number(this.#seek.value)));
    this.#split.addEventListener("input", () => this.#setSplit(Number(this.#split.value)));
    this.#split.addEventListener("keydown", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      this.#playOrPause();
    });
    byId("mute").addEventListener("click", () => this.#mute());
    byId("beside").addEventListener("click", () => this.#setBeside(!this.#isBeside));
    byId("full").addEventListener("click", () => this.#fullScreen());
    document.addEventListener("fullscreenchange", () => this.#showFull());
    this.#listenToFlip(byId("flip"));
  }

  /** Held by pointer or key; one that only clicks, such as a screen reader, switches over and back. */
  #listenToFlip(button) {
    const flip = (isFlipped) => () => this.#setFlipped(isFlipped);
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.#setFlipped(true);
    });
    for (const event of ["pointerup", "pointercancel", "blur"]) button.addEventListener(event, flip(false));
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch opens it
    let isKey = false;
    button.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      isKey = true;
      this.#setFlipped(true);
    });
    button.addEventListener("keyup", () => {
      isKey = false;
      this.#setFlipped(false);
    });
    button.addEventListener("click", (event) => {
      if (event.detail === 0 && !isKey) this.#setFlipped(!this.#isFlipped);
    });
  }

  /** Draw every frame that is shown, for as long as it plays. */
  #follow() {
    const step = () => {
      this.#draw();
      if (this.#video.paused) return;
      if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(step);
      else requestAnimationFrame(step);
    };
    step();
  }

  #draw() {
    const video = this.#video;
    if (video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    const height = video.videoHeight;
    const width = this.#hasHalves ? (video.videoWidth - GAP) / 2 : video.videoWidth;
    this.#resize(this.#isBeside ? 2 * width + GAP : width, height);
    if (!this.#hasHalves) this.#pen.drawImage(video, 0, 0);
    else if (this.#isBeside) this.#pen.drawImage(video, 0, 0);
    else this.#drawSplit(width, height);
    this.#showTime();
  }

  #drawSplit(width, height) {
    const border = this.#isFlipped ? width : Math.round((width * Number(this.#split.value)) / 100);
    const result = width + GAP;
    if (border > 0) this.#pen.drawImage(this.#video, 0, 0, border, height, 0, 0, border, height);
    if (border < width) {
      this.#pen.drawImage(this.#video, result + border, 0, width - border, height, border, 0, width - border, height);
    }
  }

  #resize(width, height) {
    if (this.#canvas.width === width && this.#canvas.height === height) return;
    Object.assign(this.#canvas, { width, height });
    byId("stage").style.setProperty("--aspect", String(width / height));
  }

  #setSplit(percent) {
    this.#split.value = String(percent);
    this.#split.style.setProperty("--at", `${percent}%`);
    this.#split.setAttribute("aria-valuetext", `${percent} % source, ${100 - percent} % result`);
    this.#showTags();
    this.#draw();
  }

  #setFlipped(isFlipped) {
    if (this.#isFlipped === isFlipped) return;
    this.#isFlipped = isFlipped;
    byId("flip").classList.toggle("held", isFlipped);
    this.#showTags();
    this.#draw();
  }

  #setBeside(isBeside) {
    this.#isBeside = isBeside;
    this.#isFlipped = false;
    byId("beside").setAttribute("aria-pressed", String(isBeside));
    this.#split.hidden = isBeside || !this.#hasHalves;
    byId("flip").disabled = isBeside;
    this.#showTags();
    this.#draw();
  }

  /** A name stands only where its half is seen. */
  #showTags() {
    const percent = this.#isBeside ? 50 : this.#isFlipped ? 100 : Number(this.#split.value);
    byId("tag-source").classList.toggle("away", percent < 12);
    byId("tag-result").classList.toggle("away", percent > 88);
  }

  #playOrPause() {
    if (this.#video.paused) this.#video.play().catch(() => {}); // closing interrupts it
    else this.#video.pause();
  }

  #mute() {
    this.#video.muted = !this.#video.muted;
    byId("mute").setAttribute("aria-pressed", String(this.#video.muted));
    setText(byId("mute"), this.#video.muted ? "Muted" : "Mute");
  }

  #fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else byId("player").requestFullscreen?.().catch(() => {}); // not everywhere for what is no video
  }

  #showFull() {
    setText(byId("full"), document.fullscreenElement ? "Leave full screen" : "Full screen");
  }

  #showPlaying() {
    setText(byId("play"), this.#video.paused ? "Play" : "Pause");
  }

  #showLength() {
    this.#wholeSecond = -1;
    this.#seek.max = String(this.#video.duration);
    this.#showTime();
  }

  #showTime() {
    const { currentTime, duration } = this.#video;
    this.#seek.value = String(currentTime);
    const second = Math.floor(currentTime);
    if (second === this.#wholeSecond) return; // a text for every frame would keep screen readers busy
    this.#wholeSecond = second;
    const text = `${clock(second)} of ${clock(Math.round(duration))}`;
    this.#seek.setAttribute("aria-valuetext", text);
    setText(byId("time"), `${clock(second)} / ${clock(Math.round(duration))}`);
  }

  #showError() {
    if (!this.#shown) return;
    setText(byId("player-error"), "This browser cannot play the result here; it can be downloaded all the same.");
  }
}
