// The prompt and the answers of an item.

import { Texts } from "./texts.js";
import { byId, say } from "./page.js";

const texts = new Texts();
export function showItem(item) {
  texts.start();
  byId("prompt").replaceChildren(...item.prompt.map((turn) => texts.turn(turn)));
  const whole = item.task === "demonstration" ? [] : item.responses;
  byId("answers").replaceChildren(...whole.map((turns, index) => texts.answer(turns, index, item.responses.length)));
  byId("markdown-button").hidden = !texts.hasMarkdown;
}

export function toggleMarkdown() {
  if (byId("markdown-button").hidden) return;
  texts.toggle();
  showMarkdown();
  say(texts.asWritten ? "Texts as written" : "Texts with Markdown");
}

export const showMarkdown = () => byId("markdown-button").setAttribute("aria-pressed", String(!texts.asWritten));
