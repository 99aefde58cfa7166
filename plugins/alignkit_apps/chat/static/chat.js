// The page: asks, shows answers while they are written, keeps what people say about them, and gives keys to whom they belong.

import { begin, last, history, renew, save, setup, takeBack, talk } from "./conversation.js";
import { change, draw, grow } from "./exchange.js";
import { SCALE } from "/static/forms.js";
import { Outbox, isSaved, post } from "/static/outbox.js";
import { banner, byId, digit, ignored, inTextBox, letter, make, meta, newId, say } from "/static/page.js";
import { toggleMarkdown } from "/static/texts.js";

const NEAR = 60; // pixels from the end of the page
const LONGEST_SPOKEN = 1000; // characters of an answer that a screen reader is told
const collect = setup.collect;
const outbox = new Outbox((answer) => answer === null && say("The server did not take it"));
let controller = null; // of the question that is being answered
let pinned = true; // whether the end of the page is seen

// Questions

async function ask(question) {
  if (controller || !question.trim()) return;
  banner("notice", "");
  const exchange = begin(question);
  pinned = true;
  controller = new AbortController();
  show();
  const message = { draw: exchange.draw, round: talk.asked - 1, system: byId("system").value, sides: exchange.sides.map((_, side) => history(side)) };
  try {
    await listen(exchange, message);
    banner("offline", "");
  } catch (error) {
    failed(exchange, error);
  }
  controller = null;
  for (const side of exchange.sides) finish(side);
  ended(exchange);
}

async function listen(exchange, message) {
  const headers = { "content-type": "application/json", "x-csrf-token": meta("csrf") };
  const response = await fetch("/api/chat/ask", { method: "POST", headers, body: JSON.stringify(message), signal: controller.signal });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
    throw Object.assign(new Error(error), { status: response.status });
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter(Boolean)) heard(exchange, JSON.parse(line));
  }
}

function heard(exchange, event) {
  if (event.unkept) banner("notice", `Not kept: ${event.unkept}`);
  if (event.kept) exchange.sides.forEach((side, place) => (side.kept = event.kept[place]));
  const side = exchange.sides[event.side];
  if (!side) return;
  if (event.begins) side.state = "writing";
  else if (event.said) Object.assign(side, { shown: event.said.text, state: "said" }, event.said);
  else if (event.error) Object.assign(side, { state: "failed", error: event.error, tooLong: event.too_long });
  else {
    side.text += event.text;
    side.shown += event.shown ?? event.text;
    return grow(event.side, side.shown, scroll);
  }
  change(exchange, acts);
}

function failed(exchange, error) {
  if (error.name === "AbortError") return;
  const began = exchange.sides.some(({ state }) => state !== "waiting");
  const why = error.status === 401 ? `${error.message}; the conversation stays in this tab` : error.message;
  banner("offline", error.status ? `Not asked: ${why}.` : "The server does not answer. The conversation stays in this tab.");
  if (began) return;
  byId("question").value = takeBack();
}

// What stays of an answer when nothing more of it comes.
function finish(side) {
  if (side.state === "waiting" || side.state === "writing") Object.assign(side, { state: "stopped", stopped: true });
}

function ended(exchange) {
  if (last() === exchange && exchange.sides.every(({ state, text }) => state === "stopped" && !text)) byId("question").value ||= takeBack();
  if (!save()) banner("notice", "The conversation is too long to outlive a reload.");
  show();
  const texts = exchange.sides.map(({ error, shown }, place) => `${setup.sides > 1 ? "AB"[place] : "The model"}: ${(error ?? shown).slice(0, LONGEST_SPOKEN)}`);
  say(texts.join(" "));
  if (last() !== exchange) return byId("question").focus();
  const decides = exchange.sides.some(({ kept }) => kept) || (setup.names === null && exchange.sides.every(({ state }) => state === "said"));
  if (decides) byId("log").focus({ preventScroll: true });
  else byId("question").focus();
}

const stop = () => controller?.abort();

function retry() {
  if (!controller && last()) ask(takeBack());
}

function rephrase() {
  if (controller || !last()) return;
  byId("question").value = takeBack();
  show();
  byId("question").focus();
}

function startAnew() {
  stop();
  renew();
  show();
  byId("question").focus();
  say("New conversation");
}

// What people say about answers

const put = (name, body) => outbox.put({ name, body: { uuid: newId(), ...body } });

async function rate(exchange, place, good) {
  const side = exchange.sides[place];
  if (!side.kept) return say("This answer is not kept");
  const before = side.thumb;
  const uuid = newId();
  side.thumb = before?.good === good ? null : { good, uuid };
  if (side.thumb) put("rate", { uuid, kept: side.kept, good });
  else put("undo", { of: before.uuid });
  changed(exchange, side.thumb ? (good ? "Good" : "Bad") : "Taken back");
}

async function choose(exchange, index) {
  if (controller || exchange !== last() || !exchange.sides.every(({ state }) => state === "said" || state === "stopped")) return;
  const { side, margin, words } = SCALE[index];
  const kept = exchange.sides.map((one) => one.kept);
  Object.assign(exchange, { from: "AB".indexOf(side), margin: index, edited: null });
  if (kept.every((one) => one)) put("choose", { kept, side, margin });
  changed(exchange, `${side} ${words}`);
  if (exchange.names) return;
  try {
    exchange.names = (await post("names", { draw: exchange.draw })).names;
    changed(exchange, `${side} is ${exchange.names[exchange.from]}`);
  } catch (error) {
    banner("notice", `The names are not known: ${error.status ? error.message : "the server does not answer"}.`);
  }
}

function edit(exchange, place) {
  if (controller || exchange !== last()) return;
  const side = exchange.sides[place];
  byId("edited").value = (exchange.from === place && exchange.edited) || side.text;
  byId("edit-dialog").dataset.side = place;
  byId("edit-dialog").showModal();
  byId("edited").focus();
}

function saveEdit() {
  const [exchange, place, text] = [last(), Number(byId("edit-dialog").dataset.side), byId("edited").value];
  byId("edit-dialog").close();
  const side = exchange.sides[place];
  if (!text.trim() || text === side.text) return say("Nothing was changed");
  Object.assign(exchange, { from: place, edited: text });
  if (side.kept) put("edit", { kept: side.kept, text });
  changed(exchange, "Edited");
}

function changed(exchange, words) {
  save();
  if (exchange === last()) change(exchange, acts);
  else show();
  scroll();
  say(words);
}

const acts = { rate, choose, edit, retry, rephrase, startAnew };

// Consent

function showConsent() {
  if (collect) byId("consent").textContent = collect.agreed ? "yes" : "no";
}

async function agree(granted) {
  byId("consent-dialog").close();
  sessionStorage.setItem("alignkit-asked", "1");
  if (!granted && !collect.agreed) return;
  try {
    collect.agreed = (await post("consent", { uuid: newId(), granted })).agreed;
    if (!granted) for (const { sides } of talk.exchanges) for (const side of sides) side.kept = null;
    show();
  } catch (error) {
    banner("notice", `Your answer was not stored, so nothing is kept: ${error.message}.`);
  }
}

// What is shown

function show() {
  save();
  draw(talk.exchanges, acts);
  byId("empty").hidden = talk.exchanges.length > 0;
  byId("send").disabled = controller !== null;
  byId("stop").hidden = controller === null;
  byId("status").textContent = controller ? "Answering …" : "";
  byId("new").disabled = talk.exchanges.length === 0;
  showConsent();
  scroll();
}

// Follow what is written, unless the person has scrolled up.
function scroll() {
  if (pinned) scrollTo(0, document.documentElement.scrollHeight);
}

function showKeys() {
  const two = [["1 to 4", "A is better: significantly … unsure"], ["5 to 8", "B is better: unsure … significantly"]];
  const one = [["1", "good"], ["2", "bad"]];
  const keys = [["Enter", "send; elsewhere: to your question"], ["Shift Enter", "a new line"], ["Esc", "leave a text box; stop the answers"],
    ...(setup.sides > 1 ? two : collect ? one : []), ["Alt E", "edit the answer, or the one that you chose"], ["Alt R", "answer again, with other draws"],
    ["Alt Q", "change the question"], ["Alt N", "new conversation"], ["Alt M", "Markdown, or texts as written"], ["Any other key", "begins your next question"]];
  byId("keys").replaceChildren(...keys.flatMap(([key, words]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, words)]));
}

// Keys

function editKey() {
  if (setup.sides > 1 && last()?.from == null) return say("Choose an answer first, or use its Edit button");
  if (last()) edit(last(), last().from ?? 0);
}

// With Alt, so that no letter of a question is one, wherever the focus is.
const COMMANDS = { KeyE: editKey, KeyR: retry, KeyQ: rephrase, KeyN: startAnew, KeyM: toggleMarkdown };

function command(event) {
  if (!event.altKey || event.ctrlKey || event.metaKey || event.repeat || !COMMANDS[event.code]) return false;
  event.preventDefault();
  COMMANDS[event.code]();
  return true;
}

function inText(event) {
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Escape") {
    event.target.blur();
    byId("log").focus({ preventScroll: true });
    stop();
  } else if (event.key === "Enter" && event.target.id === "question" && !event.shiftKey && !event.repeat) {
    event.preventDefault();
    send();
  }
}

function inDialog(event) {
  const answer = byId("consent-dialog")?.open && !ignored(event) && { Y: "agree", N: "refuse" }[letter(event)];
  if (answer) {
    event.preventDefault();
    return byId(answer).click();
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && byId("edit-dialog").open) {
    event.preventDefault();
    saveEdit();
  }
}

function place(event) {
  const number = digit(event);
  const exchange = last();
  if (!number || !exchange) return false;
  if (setup.sides > 1 && number <= SCALE.length) choose(exchange, number - 1);
  else if (setup.sides === 1 && number <= 2) rate(exchange, 0, number === 1);
  else return false;
  return true;
}

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return inDialog(event);
  if (command(event)) return;
  if (inTextBox(event)) return inText(event);
  if (ignored(event)) return;
  const onControl = event.target.closest?.("button, a, summary");
  if (onControl && (event.key === "Enter" || event.key === " ")) return;
  if (event.key === "Enter") byId("question").focus();
  else if (event.key === "Escape") stop();
  else if (!place(event)) {
    if (event.key.length === 1) byId("question").focus(); // which the key is then typed into
    return;
  }
  event.preventDefault();
});

function send() {
  const box = byId("question");
  if (controller || !box.value.trim()) return;
  const text = box.value;
  box.value = "";
  ask(text);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
for (const example of document.querySelectorAll("#empty button")) example.addEventListener("click", () => ask(example.textContent));
const clicks = { stop, new: startAnew, "markdown-button": toggleMarkdown, "help-button": () => byId("help-dialog").showModal() };
if (collect) Object.assign(clicks, { "consent-button": () => byId("consent-dialog").showModal(), agree: () => agree(true), refuse: () => agree(false) });
for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
byId("edit-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  saveEdit();
});
for (const button of document.querySelectorAll(".cancel")) button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => (last() ? byId("log") : byId("question")).focus({ preventScroll: true }));
}
byId("system").value = talk.system;
byId("system").addEventListener("input", () => {
  talk.system = byId("system").value;
  save();
});
addEventListener("scroll", () => (pinned = innerHeight + scrollY > document.documentElement.scrollHeight - NEAR));
addEventListener("pagehide", save);
addEventListener("beforeunload", (event) => {
  if (outbox.waiting.length && !isSaved()) event.preventDefault();
});

for (const exchange of talk.exchanges) for (const side of exchange.sides) finish(side);
showKeys();
show();
if (collect && !collect.agreed && !sessionStorage.getItem("alignkit-asked")) byId("consent-dialog").showModal();
else byId("question").focus();
if (outbox.waiting.length) outbox.send();
