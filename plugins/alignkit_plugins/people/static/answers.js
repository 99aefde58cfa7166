// The prompt and the answers of an item.

import { byId } from "./page.js";
import { showMarkdown, texts } from "./texts.js";

export function showItem(item) {
  texts.start();
  byId("prompt").replaceChildren(...item.prompt.map((turn) => texts.turn(turn)));
  const whole = item.task === "demonstration" ? [] : item.responses;
  byId("answers").replaceChildren(...whole.map((turns, index) => texts.answer(turns, index, item.responses.length)));
  showMarkdown();
  byId("prompt").classList.toggle("stays", byId("prompt").offsetHeight < innerHeight / 4); // in sight
}
