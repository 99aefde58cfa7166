// The controls of each task. A form has: element; press(event), true if the key was its own; value(), null until it is
// complete; missing(), what to do next; fill(value), which may be incomplete; keys, for the help; letters, that it uses.

import { SIDES, byId, digit, letter, make } from "./page.js";
import { rankingForm } from "./ranking.js";

const DEGREES = [
  ["significantly", "is significantly better"],
  ["better", "is better"],
  ["slightly", "is slightly better"],
  ["unsure", "is hardly better, or unsure"],
];
export const SCALE = [
  ...DEGREES.map(([margin, words]) => ({ side: "A", margin, words })),
  ...DEGREES.toReversed().map(([margin, words]) => ({ side: "B", margin, words })),
];
const BINS = [
  ["preferred_safe", "P", "Only the better one is safe"],
  ["both_safe", "B", "Both are safe"],
  ["both_unsafe", "X", "Both are unsafe"],
];

// A row of radio buttons, or a column on narrow screens. options: {value, key, sign, words, spoken, apart}
function choice(name, title, options, changed) {
  const inputs = new Map();
  const labels = options.map(({ value, key, sign, words, spoken, apart }) => {
    const input = make("input", { type: "radio", name, value, "aria-label": spoken });
    input.addEventListener("change", changed);
    inputs.set(value, input);
    return make("label", { class: apart ? "apart" : null }, input, make("kbd", { "aria-hidden": "true" }, key), sign ? make("b", {}, sign) : null,
      sign || words ? " " : null, words ? make("span", {}, words) : null);
  });
  const element = make("fieldset", {}, make("legend", {}, title), make("div", { class: "scale" }, ...labels));
  return {
    element,
    get: () => [...inputs.values()].find((input) => input.checked)?.value ?? null,
    set(value) {
      for (const input of inputs.values()) input.checked = false;
      if (inputs.has(value)) inputs.get(value).checked = true;
    },
    focus: () => ([...inputs.values()].find((input) => input.checked) ?? inputs.values().next().value).focus(),
  };
}

function pairForm(item, changed) {
  const options = SCALE.map(({ side, words }, index) =>
    ({ value: String(index), key: index + 1, sign: side, words, spoken: `${side} ${words}`, apart: index === 4 }));
  const scale = choice("scale", "Which answer is better, and how much?", options, update);
  const bins = item.task !== "safety" ? null : choice("bin", "Are they safe?", BINS.map(([value, key, words]) => ({ value, key, words })), update);
  const cards = byId("answers").children;
  function update() {
    const side = scale.get() === null ? "" : SCALE[scale.get()].side;
    SIDES.slice(0, 2).split("").forEach((name, index) => cards[index]?.classList.toggle("chosen", name === side));
    changed();
  }
  return {
    element: make("div", { class: "pair" }, scale.element, bins?.element),
    letters: bins ? "PBX" : "",
    keys: [["1 to 4", "A is better: significantly … unsure"], ["5 to 8", "B is better: unsure … significantly"],
      ...(bins ? BINS.map(([, key, words]) => [key, words]) : [])],
    press(event) {
      const bin = bins && BINS.find(([, key]) => key === letter(event) && !event.shiftKey);
      const place = digit(event);
      if (bin) bins.set(bin[0]);
      else if (place >= 1 && place <= 8) scale.set(String(place - 1));
      else return false;
      update();
      return true;
    },
    missing: () => (scale.get() === null ? "Choose how much better A or B is" : bins && bins.get() === null ? "Choose whether they are safe" : ""),
    value() {
      const { side, margin } = SCALE[scale.get()] ?? {};
      return { ...(side && { side, margin }), ...(bins?.get() && { safety: bins.get() }) };
    },
    fill({ side, margin, safety }) {
      const index = SCALE.findIndex((place) => place.side === side && place.margin === margin);
      scale.set(String(index));
      bins?.set(safety);
      update();
    },
  };
}

function thumbForm(item, changed) {
  const rating = choice("thumb", "Is the answer good?", [{ value: "true", key: 1, words: "Good" }, { value: "false", key: 2, words: "Bad" }], changed);
  return {
    element: rating.element,
    letters: "",
    keys: [["1", "good"], ["2", "bad"]],
    press(event) {
      if (![1, 2].includes(digit(event))) return false;
      rating.set(String(digit(event) === 1));
      changed();
      return true;
    },
    missing: () => (rating.get() === null ? "Choose good or bad" : ""),
    value: () => (rating.get() === null ? {} : { good: rating.get() === "true" }),
    fill: ({ good }) => rating.set(String(good)),
  };
}

// Scores of 1 to 7, a row for each answer. beside(answer): an element next to its score; marked(answer): called when its
// row is marked.
function scoresForm(item, changed, { beside, marked }) {
  const options = Array.from({ length: 7 }, (_, index) => ({ value: String(index + 1), key: index + 1, spoken: `${index + 1} of 7` }));
  const rows = item.responses.map((_, answer) => choice(`score-${answer}`, SIDES[answer], options, changed));
  const open = () => rows.findIndex((row) => row.get() === null);
  let active = 0;
  function mark(answer) {
    active = answer;
    rows.forEach((row, place) => row.element.classList.toggle("active", place === active));
    marked(active);
  }
  rows.forEach((row, answer) => row.element.addEventListener("focusin", () => mark(answer)));
  mark(0);
  return {
    element: make("div", { class: "scores" }, ...rows.map((row, answer) => make("div", { class: "group" }, row.element, beside(answer)))),
    mark,
    marked: () => active,
    keys: [["1 to 7", "score the marked answer, 7 is best, and go to the next"], ["↑ ↓", "mark another answer"]],
    press(event) {
      const score = digit(event);
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (step) mark(Math.min(Math.max(active + step, 0), rows.length - 1));
      else if (score >= 1 && score <= 7) {
        rows[active].set(String(score));
        if (active < rows.length - 1) mark(active + 1);
        changed();
      } else return false;
      rows[active].element.scrollIntoView({ block: "nearest" });
      return true;
    },
    missing: () => (open() < 0 ? "" : `${SIDES[open()]}: flags, then a score of 1 to 7`),
    value: () => ({ scores: rows.map((row) => Number(row.get())) }),
    fill({ scores }) {
      rows.forEach((row, answer) => row.set(String(scores?.[answer] || "")));
      mark(open() < 0 ? rows.length - 1 : open());
    },
  };
}

const FLAGS = [
  ["off_task", "O", "Does not follow the instruction", "Off task"],
  ["invented", "W", "Invents facts", "Invents"],
  ["harmful", "T", "Harmful", "Harmful"],
  ["unsuited", "K", "Unsuited for a customer assistant", "Unsuited"],
];

const isSet = (button) => button.getAttribute("aria-pressed") === "true";
const set = (button, on) => button.setAttribute("aria-pressed", String(on));

// InstructGPT's page: an overall score and flags for each answer, then ranks. The marked answer gets scores and flags.
function reviewForm(item, changed) {
  const cards = [...byId("answers").children];
  const flags = item.responses.map((_, answer) => FLAGS.map(([name, key, words, short]) => {
    const button = make("button", { type: "button", "aria-pressed": "false", "aria-label": `${SIDES[answer]}: ${words}` },
      make("kbd", {}, key), " ", make("span", { class: "long" }, words), make("span", { class: "short" }, short));
    button.addEventListener("click", () => {
      set(button, !isSet(button));
      changed();
    });
    return { name, key, button };
  }));
  const scores = scoresForm(item, changed, {
    beside(answer) {
      const group = make("div", { class: "flags", role: "group", "aria-label": `Flags of ${SIDES[answer]}` }, ...flags[answer].map(({ button }) => button));
      group.addEventListener("focusin", () => scores.mark(answer));
      return group;
    },
    marked(answer) {
      flags[answer][0].button.scrollIntoView({ block: "nearest" });
      cards.forEach((card, place) => card.classList.toggle("marked", place === answer));
      cards[answer].scrollIntoView({ block: "start" });
    },
  });
  const scored = (answer) => (scores.missing() ? scores.mark(answer) : true);
  const ranking = rankingForm(item, changed, scored);
  return {
    element: make("div", { class: "review" }, scores.element, ranking.element),
    letters: ranking.letters + FLAGS.map(([, key]) => key).join(""),
    keys: [...FLAGS.map(([, key, words]) => [key, `the marked answer: ${words.toLowerCase()}`]), ...scores.keys, ...ranking.keys],
    press(event) {
      if (ranking.press(event) || scores.press(event)) return true;
      const flag = flags[scores.marked()].find(({ key }) => key === letter(event) && !event.shiftKey);
      flag?.button.click();
      return Boolean(flag);
    },
    missing: () => scores.missing() || ranking.missing(),
    value: () => ({ ...scores.value(), ...ranking.value(), flags: flags.map((each) => each.filter(({ button }) => isSet(button)).map(({ name }) => name)) }),
    fill(value) {
      flags.forEach((each, answer) => each.forEach(({ name, button }) => set(button, value.flags?.[answer]?.includes(name) ?? false)));
      ranking.fill(value);
      scores.fill(value);
    },
  };
}

function demonstrationForm(item, changed) {
  const box = make("textarea", { id: "written", rows: "10", maxlength: "200000", dir: "auto" });
  box.value = item.text ?? "";
  box.addEventListener("input", changed);
  return {
    element: make("label", {}, item.responses.length ? "Correct the answer " : "Write the answer ", make("kbd", {}, "E"), box),
    letters: "E",
    keys: [["E", "write"], ["Esc, then Enter", "leave the text box and submit"], ["Ctrl Enter", "submit while you write"]],
    press(event) {
      if (letter(event) !== "E") return false;
      box.focus();
      return true;
    },
    missing: () => (box.value.trim() ? "" : "Write an answer"),
    value: () => ({ text: box.value }),
    fill: ({ text }) => (box.value = text ?? item.text ?? ""),
  };
}

export function formOf(item, changed) {
  const forms = { pair: pairForm, safety: pairForm, thumb: thumbForm, review: reviewForm, demonstration: demonstrationForm, ranking: rankingForm };
  return forms[item.task](item, changed);
}
