// The prompt and the answers of an item, and looking around among them.

import { Texts } from "./texts.js";
import { byId, make, say } from "./page.js";

const texts = new Texts();
export function showItem(item) {
  texts.start();
  byId("prompt").replaceChildren(...item.prompt.map((turn) => texts.turn(turn)));
  const whole = item.task === "demonstration" ? [] : item.responses;
  byId("answers").className = whole.length > 3 ? "strip" : "";
  byId("answers").replaceChildren(...whole.map((turns, index) => texts.answer(turns, index, item.responses.length)));
  if (whole.length > 3) for (const card of byId("answers").children) card.querySelector("h2").append(expander(card));
  byId("answers").scrollLeft = 0;
  byId("markdown-button").hidden = !texts.hasMarkdown;
}

function expander(card) {
  const button = make("button", { type: "button", class: "small", "aria-expanded": "false", "aria-label": "Expand", title: "Expand (X)" }, "↔");
  button.addEventListener("click", (event) => {
    event.stopPropagation(); // a click on the card ranks it
    expand(card);
  });
  return button;
}

export function expand(card = document.activeElement?.closest(".strip .answer")) {
  if (!card) return;
  const expanded = card.classList.toggle("expanded");
  card.querySelector("h2 button").setAttribute("aria-expanded", String(expanded));
  card.scrollIntoView({ block: "nearest", inline: "start" });
}

// Among answers that do not fit next to each other.
export function look(step) {
  const cards = [...document.querySelectorAll(".strip .answer")];
  const from = cards.indexOf(document.activeElement?.closest(".answer"));
  const card = cards[from < 0 ? (step > 0 ? 0 : cards.length - 1) : Math.min(Math.max(from + step, 0), cards.length - 1)];
  card?.focus({ preventScroll: true });
  card?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

export function toggleMarkdown() {
  if (byId("markdown-button").hidden) return;
  texts.toggle();
  showMarkdown();
  say(texts.asWritten ? "Texts as written" : "Texts with Markdown");
}

export const showMarkdown = () => byId("markdown-button").setAttribute("aria-pressed", String(!texts.asWritten));
