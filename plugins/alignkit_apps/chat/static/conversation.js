// The conversation of this tab. It is kept in the tab, so that it outlives a reload and another run of the server.

import { meta, newId } from "/static/page.js";

const KEY = `alignkit-chat:${meta("annotator")}`;

export const setup = JSON.parse(meta("setup"));

// exchanges: what was asked and answered. asked: questions so far, of all conversations. draw: which model is on which side.
const fresh = (asked, system) => ({ asked, draw: newId(), system, exchanges: [] });

function restored() {
  const known = JSON.parse(sessionStorage.getItem(KEY) || "null");
  const fits = known?.exchanges.every(({ sides }) => sides.length === setup.sides);
  return fits && known.blind === (setup.names === null) ? known : fresh(0, setup.system);
}

export let talk = restored();

export function renew() {
  talk = fresh(talk.asked, talk.system);
  save();
}

// Whether the conversation could be kept.
export function save() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ ...talk, blind: setup.names === null }));
    return true;
  } catch {
    return false;
  }
}

// sides: {text, shown, rewards, of, stopped, error, kept, thumb}. from: the side that the conversation continued from.
// edited: what its answer should have been. margin: the place on the scale. names: of the models, once they may be known.
export function begin(question) {
  const known = last();
  if (setup.names === null && known?.names) talk.draw = newId();
  talk.asked += 1;
  const sides = Array.from({ length: setup.sides }, () => ({ text: "", shown: "", state: "waiting", kept: null, thumb: null }));
  const exchange = { question, draw: talk.draw, sides, from: null, edited: null, margin: null, names: setup.names };
  talk.exchanges.push(exchange);
  return exchange;
}

export const last = () => talk.exchanges.at(-1);

// The turns of a side, until the question that is asked now. Whoever chose an answer chose its conversation.
export function history(side) {
  const turns = [];
  for (const exchange of talk.exchanges.toReversed()) {
    side = exchange.from ?? side;
    const { text, state } = exchange.sides[side];
    if (exchange === last()) turns.unshift({ role: "user", content: exchange.question });
    else if (state === "said" || text) {
      turns.unshift({ role: "user", content: exchange.question }, { role: "assistant", content: exchange.edited ?? text });
    }
  }
  return turns;
}

export function takeBack() {
  const { question, names } = talk.exchanges.pop();
  if (setup.names === null && names) talk.draw = newId();
  save();
  return question;
}

// The model of a side, or its letter.
export function nameOf(exchange, side) {
  if (setup.sides === 1) return exchange.names[0];
  return exchange.names ? `${"AB"[side]}: ${exchange.names[side]}` : "AB"[side];
}
