// Small things that all parts of the page use.

export const byId = (id) => document.getElementById(id);
export const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
export const SIDES = "ABCDEFGHI";

// An element with attributes and children. Texts become text nodes, never HTML.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// A UUID; `crypto.randomUUID` exists only on pages of this machine or with TLS.
export function newId() {
  return "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (digit) => (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16));
}

export function say(text) {
  byId("live").textContent = text;
}

export function banner(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = !text;
}

// Whether a key belongs to what is typed, to the browser or to an input method, and not to the page.
export function ignored(event) {
  if (event.isComposing || event.keyCode === 229 || event.repeat) return true;
  return event.ctrlKey || event.metaKey || event.altKey;
}

export function inTextBox(event) {
  return event.target instanceof Element && event.target.closest("textarea, input[type=text]") !== null;
}

// The digit of a key: what it types, or by its place, so that layouts whose digits need Shift work too; null if none.
export function digit(event) {
  if (/^[0-9]$/.test(event.key)) return Number(event.key);
  const found = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  return found && !event.shiftKey ? Number(found[1]) : null;
}

// The letter of a key: what it types, or by its place on layouts without Latin letters.
export function letter(event) {
  if (/^[a-z]$/i.test(event.key)) return event.key.toUpperCase();
  return /^[\x00-\x7f]$/.test(event.key) ? "" : (/^Key([A-Z])$/.exec(event.code) || ["", ""])[1];
}

// Seconds of work, on an item and in this tab: time between two actions counts up to five minutes, and not while the
// page is hidden. A longer gap is a break.
const IDLE = 300;
const KEY = "alignkit-session";
export class Clock {
  constructor() {
    this.seconds = 0;
    this.since = performance.now();
    Object.assign(this, { session: 0, unbroken: 0 }, JSON.parse(sessionStorage.getItem(KEY) ?? "{}"));
    for (const name of ["keydown", "pointerdown", "wheel", "scroll"]) {
      addEventListener(name, () => this.tick(), { passive: true, capture: true });
    }
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.tick();
      else this.resume();
    });
    addEventListener("pagehide", () => this.keep());
  }
  start(seconds = 0) {
    this.tick();
    this.seconds = seconds;
    this.keep();
  }
  get gap() {
    return (performance.now() - this.since) / 1000;
  }
  get idle() {
    return this.gap > IDLE;
  }
  get worked() {
    return this.session + Math.min(this.gap, IDLE);
  }
  tick() {
    const part = Math.min(this.gap, IDLE);
    this.unbroken = this.idle ? 0 : this.unbroken + part;
    this.seconds += part;
    this.session += part;
    this.since = performance.now();
    return Math.round(this.seconds * 1000) / 1000;
  }
  resume() {
    if (this.idle) this.unbroken = 0;
    this.since = performance.now();
  }
  keep() {
    sessionStorage.setItem(KEY, JSON.stringify({ session: this.session, unbroken: this.unbroken }));
  }
}

export function duration(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
