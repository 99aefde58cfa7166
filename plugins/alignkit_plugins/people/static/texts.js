// Prompts and answers: as they were written, or with their Markdown. The server sends Markdown as lists, never as HTML.

import { SIDES, byId, make, say } from "./page.js";

const TAGS = new Set(["p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td",
  "strong", "em", "s", "code", "pre", "hr"]);
const TITLES = new Set(["h3", "h4", "h5", "h6"]); // look like headings, and stay out of the page's own outline
const CHOICE = "alignkit-as-written";

function element([tag, ...parts]) {
  const [attributes, children] = parts[0]?.constructor === Object ? [parts[0], parts.slice(1)] : [{}, parts];
  if (tag === "pre") return make("pre", {}, attributes.info ? make("span", { class: "info" }, attributes.info) : null, ...children);
  if (tag === "ol") return make("ol", { start: Number(attributes.start ?? 1) }, ...elements(children));
  if (TITLES.has(tag)) return make("p", { class: tag }, ...elements(children));
  // A wide table scrolls by itself, also by keyboard.
  if (tag === "table") return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, make("table", {}, ...elements(children)));
  return TAGS.has(tag) ? make(tag, {}, ...elements(children)) : make("span", {}, ...elements(children));
}

const elements = (parts) => parts.map((part) => (typeof part === "string" ? part : element(part)));

class Texts {
  constructor() {
    this.asWritten = localStorage.getItem(CHOICE) !== null;
    this.shown = [];
  }

  start() {
    this.shown = [];
  }

  get hasMarkdown() {
    return this.shown.some(({ parts }) => parts);
  }

  toggle() {
    this.asWritten = !this.asWritten;
    if (this.asWritten) localStorage.setItem(CHOICE, "1");
    else localStorage.removeItem(CHOICE);
    for (const entry of this.shown) this.fill(entry);
  }

  fill({ box, text, parts }) {
    const marked = parts && !this.asWritten;
    box.classList.toggle("marked", Boolean(marked));
    const written = text.trim() ? text : make("em", {}, "(empty)");
    box.replaceChildren(...(marked ? elements(parts) : [written]));
  }

  text({ text, parts }) {
    const entry = { box: make("div", { class: "text", dir: "auto" }), text, parts };
    this.shown.push(entry);
    this.fill(entry);
    return entry.box;
  }

  turn(turn) {
    return make("div", {}, make("p", { class: "role" }, turn.role), this.text(turn));
  }

  answer(turns, index, count) {
    const title = count === 1 ? "Answer" : `Answer ${SIDES[index]}`;
    const parts = turns.length === 1 ? [this.text(turns[0])] : turns.map((turn) => this.turn(turn));
    return make("section", { class: "answer", "aria-label": title }, make("h2", {}, title), ...parts);
  }
}

export const texts = new Texts(); // of the page

export function toggleMarkdown() {
  if (!texts.hasMarkdown) return;
  texts.toggle();
  showMarkdown();
  say(texts.asWritten ? "Texts as written" : "Texts with Markdown");
}

export function showMarkdown() {
  byId("markdown-button").hidden = !texts.hasMarkdown;
  byId("markdown-button").setAttribute("aria-pressed", String(!texts.asWritten));
}
