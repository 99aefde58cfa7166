// How a question and its answers look. Texts become text nodes, never HTML; Markdown comes as lists when it is complete.

import { last, nameOf, setup } from "./conversation.js";
import { SCALE } from "/static/forms.js";
import { byId, make } from "/static/page.js";
import { showMarkdown, texts } from "/static/texts.js";

const button = (words, act, { key, ...more } = {}) => {
  const element = make("button", { type: "button", ...more }, words, key ? " " : null, key ? make("kbd", {}, key) : null);
  element.addEventListener("click", act);
  return element;
};

// `[helpful 0.53, best of 8, stopped]`. What a blind person would learn from it waits for the choice.
function remark(exchange, side) {
  const { rewards, of, state, stopped } = exchange.sides[side];
  const edited = exchange.from === side && exchange.edited !== null; // the rewards are those of the text before
  const scores = exchange.names && !edited ? Object.entries(rewards ?? {}) : [];
  const parts = scores.map(([name, score]) => `${name} ${score === null ? "no score" : Number(score.toPrecision(3))}`);
  if (of > 1) parts.push(`best of ${of}`);
  if (stopped) parts.push("stopped");
  if (state === "waiting") parts.push("waiting");
  if (edited) parts.push("edited");
  return parts.join(" · ");
}

const answering = ({ sides }) => sides.some(({ state }) => state === "waiting" || state === "writing");

function answer(exchange, side, acts) {
  const { shown, parts, state, error, tooLong } = exchange.sides[side];
  const edited = exchange.from === side ? exchange.edited : null;
  const said = remark(exchange, side);
  return make("article", { class: `answer ${state}${exchange.from === side && setup.sides > 1 ? " chosen" : ""}`, "aria-busy": state === "writing" ? "true" : null,
    "aria-label": setup.sides > 1 ? `Answer ${"AB"[side]}` : "Answer" },
    make("h2", {}, nameOf(exchange, side)),
    texts.text({ text: edited ?? shown, parts: edited === null ? parts : null }),
    error ? make("p", { class: "error" }, `${error}${tooLong ? ". Begin a new conversation." : ""}`) : null,
    said ? make("p", { class: "remark muted" }, said) : null,
    controls(exchange, side, acts));
}

function controls(exchange, side, acts) {
  const { kept, thumb, state, text } = exchange.sides[side];
  const found = [];
  if (kept && text.trim()) {
    for (const [good, words, key] of [[true, "Good", "1"], [false, "Bad", "2"]]) {
      const keyed = setup.sides === 1 && exchange === last() ? key : null;
      found.push(button(words, () => acts.rate(exchange, side, good), { key: keyed, "aria-pressed": String(thumb?.good === good), "data-act": `${good}${side}` }));
    }
  }
  if (exchange === last() && state === "said" && !answering(exchange)) {
    found.push(button("Edit", () => acts.edit(exchange, side), { key: setup.sides === 1 ? "Alt E" : null, "data-act": `edit${side}` }));
  }
  return found.length ? make("div", { class: "actions" }, ...found) : null;
}

function choice(exchange, acts) {
  const ready = exchange.sides.every(({ state, text }) => state === "said" || (state === "stopped" && text));
  if (setup.sides < 2 || exchange !== last() || !ready) return null;
  const places = SCALE.map(({ side, margin, words }, index) => {
    const element = button(make("kbd", { "aria-hidden": "true" }, index + 1), () => acts.choose(exchange, index), {
      "aria-pressed": String(exchange.margin === index), "aria-label": `${side} ${words}`, title: `${side} ${words}`, class: index === 4 ? "apart" : null, "data-act": `choose${index}` });
    element.append(" ", make("b", {}, side), " ", make("span", {}, margin));
    return element;
  });
  return make("div", { class: "choice", role: "group", "aria-label": "Which answer is better, and how much?" },
    make("div", { class: "muted", "aria-hidden": "true" }, "Which answer is better? Both continue from it."), make("div", { class: "scale" }, ...places));
}

function actions(exchange, acts) {
  if (exchange !== last() || answering(exchange)) return null;
  const lost = exchange.sides.some(({ tooLong }) => tooLong);
  return make("div", { class: "last" },
    button("Answer again", acts.retry, { key: "Alt R", "data-act": "retry" }), button("Change the question", acts.rephrase, { key: "Alt Q", "data-act": "rephrase" }),
    lost ? button("New conversation", acts.startAnew, { key: "Alt N", "data-act": "new" }) : null);
}

function section(exchange, number, acts) {
  return make("section", { class: "exchange", "aria-label": `Question ${number}` },
    make("div", { class: "asked", dir: "auto" }, exchange.question),
    make("div", { class: "answers" }, ...exchange.sides.map((_, side) => answer(exchange, side, acts))), choice(exchange, acts), actions(exchange, acts));
}

let exchanges = [];

export function draw(all, acts) {
  exchanges = all;
  texts.start();
  byId("log").replaceChildren(...all.map((exchange, index) => section(exchange, index + 1, acts)));
  showMarkdown();
}

// Draw the last exchange again. The button that had the focus keeps it.
export function change(exchange, acts) {
  const act = byId("log").contains(document.activeElement) ? document.activeElement.dataset.act : null;
  byId("log").lastElementChild.replaceWith(section(exchange, exchanges.length, acts));
  if (act) (byId("log").lastElementChild.querySelector(`[data-act="${act}"]`) ?? byId("log")).focus({ preventScroll: true });
}

// More of an answer that is being written.
export function grow(side, text, then) {
  byId("log").lastElementChild.querySelectorAll(".text")[side].textContent = text;
  then();
}
