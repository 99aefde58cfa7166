// The page: shows an item, keeps drafts, sends what people decide, and gives keys to whom they belong.

import { showItem } from "./answers.js";
import { formOf } from "./forms.js";
import { Outbox, isSaved, post } from "./outbox.js";
import { Clock, SIDES, banner, byId, digit, duration, ignored, inTextBox, letter, make, meta, newId, say } from "./page.js";
import { toggleMarkdown } from "./texts.js";

const DRAFT_AFTER = 400; // milliseconds without a change
const BREAK_AFTER = 50 * 60; // seconds of work
const FASTEST = 60; // characters per second that nobody reads
const DRAFT = `alignkit-draft:${meta("annotator")}`;
const TEXT = "a text"; // that somebody wrote
const FLAGGED = "flagged";
const LOOK = 10000; // milliseconds between two looks at the clock

const clock = new Clock();
const outbox = new Outbox(arrived);
let state = null; // what the server said last
let form = null;
let busy = true;
let eventId = null; // of what will be submitted about this item: the same, however often it is sent
let draftTimer = 0;
let hintTimer = 0;
let news = ""; // shown with the next item
let hasty = ""; // what to say about the last one

async function call(name, message) {
  busy = true;
  try {
    const answer = await post(name, message);
    banner("offline", "");
    arrived(answer);
  } catch (error) {
    busy = false;
    banner("offline", error.status ? error.message : "The server does not answer.");
    if (!state && error.status !== 401) setTimeout(() => state || call(name, message), 3000);
  }
}

function arrived(answer) {
  busy = false;
  if (answer === null) return refresh();
  state = answer;
  if (state.guidelines !== meta("guidelines")) {
    sessionStorage.setItem("guidelines-changed", "1");
    location.reload();
    return;
  }
  show();
}

function show() {
  const { item } = state;
  clearTimeout(draftTimer);
  eventId = newId();
  form = null;
  byId("form").hidden = byId("prompt").hidden = byId("answers").hidden = !item;
  byId("done").hidden = item !== null;
  byId("undo").disabled = byId("undo-last").disabled = !state.last;
  byId("results-button").hidden = !state.results;
  byId("results").replaceChildren();
  banner("notice", state.notice || news || breakReminder());
  news = "";
  showProgress();
  showConsent(state.consent && state.consent.granted);
  if (!item) {
    byId("end").textContent = state.end;
    say(state.end);
    return;
  }
  showItem(item);
  form = formOf(item, changed);
  byId("controls").replaceChildren(form.element);
  const draft = state.draft ?? savedDraft(item);
  const known = draft && JSON.stringify(draft.shown) === JSON.stringify(item.shown) ? draft : { value: {}, seconds: 0 };
  byId("note").value = known.value.note ?? "";
  form.fill(known.value);
  clearTimeout(draftTimer);
  clock.start(known.seconds);
  for (const [id, key] of Object.entries(SHIFTED)) byId(id).textContent = (form.letters.includes(key) ? "⇧" : "") + key;
  cover(item.task === "safety" && sessionStorage.getItem("uncovered") === null);
  showKeys();
  refresh();
  scrollTo(0, 0);
  byId("item").focus({ preventScroll: true });
  say(`${state.notice} Item ${state.progress.mine + 1}. ${hasty}`);
}

function showProgress() {
  const { mine, total } = state.progress;
  byId("bar").max = Math.max(total, 1);
  byId("bar").value = mine;
  byId("counts").textContent = `${mine} of ${total} done`;
}

function showTime() {
  byId("session").textContent = `${duration(clock.worked)} of work${clock.idle ? ", paused" : ""}`;
}

function breakReminder() {
  clock.tick();
  if (clock.unbroken < BREAK_AFTER) return "";
  clock.unbroken = 0;
  return "You have worked for 50 minutes. A break keeps your judgment good.";
}

// Drafts

function label() {
  const note = byId("note").value;
  return { ...form.value(), ...(note.trim() && { note }) };
}

function changed() {
  if (!form || busy) return;
  refresh();
  clearTimeout(draftTimer);
  draftTimer = setTimeout(saveDraft, DRAFT_AFTER);
}

// Stays in this browser until the item is done, so that nothing is lost when the page is closed.
function saveDraft() {
  clearTimeout(draftTimer);
  if (!form || busy) return;
  const { id, shown } = state.item;
  localStorage.setItem(DRAFT, JSON.stringify({ item: id, shown, value: label(), seconds: clock.tick() }));
}

function savedDraft(item) {
  const draft = JSON.parse(localStorage.getItem(DRAFT) ?? "null");
  return draft?.item === item.id ? draft : null;
}

// The characters that a label needs; who writes an answer need not read it.
function readable() {
  return state.item.task === "demonstration" ? 0 : [...state.item.prompt, ...state.item.responses.flat()].reduce((sum, part) => sum + part.text.length, 0);
}

function refresh() {
  clearTimeout(hintTimer);
  if (!form) return;
  const missing = form.missing();
  byId("submit").disabled = busy || missing !== "";
  const early = missing ? 0 : readable() / FASTEST - clock.tick();
  hint(missing ? [missing, hasty].filter(Boolean).join(" · ") : early > 0 ? "That was fast: have you read everything?" : "", early > 0);
  if (early > 0) hintTimer = setTimeout(refresh, early * 1000 + 50);
}

function hint(text, warns) {
  byId("missing").textContent = text;
  byId("missing").classList.toggle("warn", warns);
}

// Decisions

function send(kind, payload) {
  if (busy || !state?.item) return;
  busy = true;
  clearTimeout(draftTimer);
  clearTimeout(hintTimer);
  const { id, shown } = state.item;
  const fast = kind === "label" && clock.tick() * FASTEST < readable();
  hasty = fast ? `The last one took ${clock.seconds.toFixed(1)} s for ${readable()} characters; undo if it was too fast` : "";
  const body = { uuid: eventId, kind, item: id, shown, payload, guidelines: meta("guidelines"), seconds: clock.tick() };
  byId("submit").disabled = true;
  outbox.put({ name: "submit", body });
}

function submit() {
  if (!form || busy) return;
  if (form.missing()) {
    say(form.missing());
    hint(form.missing(), true);
    return;
  }
  send("label", label());
}

function undo() {
  if (busy || !state?.last) return;
  clearTimeout(draftTimer);
  call("undo", { uuid: newId(), of: state.last });
}

function open(name, input) {
  if (busy || !state?.item) return;
  input.value = "";
  byId(name).showModal();
  input.focus();
}

const openSkip = () => {
  open("skip-dialog", byId("skip-reason"));
  byId("skip-dialog").querySelector("button").focus(); // not the text box, so that digits choose
};
const openFlag = () => open("flag-dialog", byId("flag-note"));

function decide(dialog, kind, key, text) {
  if (!text.trim()) return;
  byId(dialog).close();
  send(kind, { [key]: text });
}

function guidelines(shown = byId("guidelines").hidden) {
  byId("guidelines").hidden = !shown;
  byId("guidelines-button").setAttribute("aria-expanded", String(shown));
  if (shown) byId("guidelines").focus({ preventScroll: true });
  else byId("item").focus({ preventScroll: true });
}

function showConsent(granted) {
  byId("consent").textContent = granted === null ? "not decided" : granted ? "yes" : "no";
  byId("consent-button").hidden = granted === null && state.progress.mine === 0; // nothing to share yet
}

const APART = " · ";
const NOTHING = /^[ ·]*$/;
const aboutMe = () => [...document.querySelectorAll(".about")];

// Nobody is asked twice: the dialog shows what was said before.
function openConsent() {
  const { credit = "", about = "" } = state.consent ?? {};
  byId("credit").value ||= credit;
  aboutMe().forEach((input, place) => (input.value ||= about.split(APART)[place] ?? ""));
  byId("consent-dialog").showModal();
}

async function agree(granted) {
  byId("consent-dialog").close();
  try {
    const [credit, ...about] = [byId("credit"), ...aboutMe()].map((input) => (granted ? input.value.trim() : ""));
    state.consent = { granted, credit, about: about.join(APART).replace(NOTHING, "") };
    showConsent((await post("consent", { uuid: newId(), ...state.consent })).consent);
  } catch (error) {
    banner("notice", `Your answer was not stored: ${error.message}`);
  }
}

// A vote, by the letters of the answers in the order that this person saw: "B > A = C".
function inWords({ better, ranks, good, flagged }, order) {
  if (flagged) return FLAGGED;
  if (good !== null) return good ? "good" : "bad";
  if (better !== null) ranks = [better, 1 - better];
  if (!ranks) return TEXT;
  const places = order.map((answer, place) => [ranks[answer], SIDES[place]]).sort();
  return places.map(([rank, side], place) => (place ? (rank === places[place - 1][0] ? " = " : " > ") : "") + side).join("");
}

// What others said of this person's items; the server shows it only to those who are done, and nothing can be undone then.
async function results() {
  if (busy || !state?.results) return;
  try {
    const rows = (await post("results", {})).results;
    state.last = null;
    byId("undo-last").disabled = true;
    const columns = rows.some(({ votes }) => votes.some((vote) => vote.note)) ? 4 : 3;
    const cells = (tag, texts) => make("tr", {}, ...texts.slice(0, columns).map((text) => make(tag, {}, text)));
    const isVote = (words) => words !== TEXT && words !== FLAGGED;
    let [same, all] = [0, 0];
    const lines = rows.map(({ prompt, answers, order, votes }) => {
      const shown = answers.map((text, place) => `${SIDES[place]}: ${text.length > 100 ? `${text.slice(0, 99)}…` : text}`);
      const own = votes.find((vote) => vote.mine);
      const mine = own ? inWords(own, order) : TEXT;
      const counts = new Map();
      for (const vote of votes.filter((each) => each !== own)) {
        const words = inWords(vote, order);
        counts.set(words, (counts.get(words) ?? 0) + 1);
        if (isVote(mine) && isVote(words)) all += 1;
      }
      same += isVote(mine) ? counts.get(mine) ?? 0 : 0;
      const notes = votes.map((vote) => vote.note && `${inWords(vote, order)}: ${vote.note}`).filter(Boolean);
      return cells("td", [[prompt, ...shown].join("\n"), mine, [...counts].map(([words, count]) => `${count} × ${words}`).join(", "), notes.join(" · ")]);
    });
    const agreement = all ? `${same} of ${all} votes of others are the same as yours.` : "";
    byId("results").replaceChildren(make("p", {}, agreement), make("table", {}, cells("th", ["Prompt", "You", "Others", "Notes"]), ...lines));
  } catch (error) {
    banner("notice", error.message);
  }
}

function cover(covered) {
  document.body.classList.toggle("covered", covered);
  byId("warning").hidden = !covered;
  byId("reveal").hidden = state.item.task !== "safety";
  byId("reveal-word").textContent = covered ? "Show texts" : "Blur texts";
}

function reveal() {
  if (byId("reveal").hidden) return;
  const covered = document.body.classList.contains("covered");
  if (covered) sessionStorage.setItem("uncovered", "1");
  else sessionStorage.removeItem("uncovered");
  cover(!covered);
}

// Keys

function showKeys() {
  const shift = (key) => (form?.letters.includes(key) ? `Shift ${key}` : key);
  const keys = [...(form?.keys ?? []), ["Enter", "submit"], [`${shift("U")} or Ctrl Z`, "undo, and change the last one"], ["S", "skip, with a reason"],
    [shift("F"), "flag, with a note"], ["N", "note"], [shift("G"), "guidelines"], ["M", "Markdown, or texts as written"],
    ...(byId("reveal").hidden ? [] : [["V", "show or blur texts"]]), [shift("C"), "sharing"], ["Esc", "leave a text box, close a dialog"], ["?", "this help"]];
  byId("keys").replaceChildren(...keys.flatMap(([key, words]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, words)]));
}

const SHIFTED = { "flag-key": "F", "guidelines-key": "G", "consent-key": "C" }; // letters of answers win
const COMMANDS = { U: undo, S: openSkip, F: openFlag, G: () => guidelines(), N: () => byId("note").focus(), V: reveal, M: toggleMarkdown,
  O: results, C: () => byId("consent-button").hidden || openConsent() };

function inDialog(event) {
  if (inTextBox(event) || ignored(event)) return;
  const button = byId("skip-dialog").open
    ? byId("skip-dialog").querySelectorAll("[data-reason]")[digit(event) - 1]
    : document.querySelector(`dialog[open] [data-key="${letter(event)}"]`);
  if (!button) return;
  event.preventDefault();
  button.click();
}

function inText(event) {
  if (event.isComposing || event.keyCode === 229) return; // an input method's
  if (event.key === "Escape") {
    event.target.blur();
    byId("item").focus({ preventScroll: true });
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) {
    event.preventDefault();
    submit();
  }
}

function pressed(event) {
  if (document.querySelector("dialog[open]")) return inDialog(event);
  if (inTextBox(event)) return inText(event);
  const undoing = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "z";
  if (undoing && !event.repeat) {
    event.preventDefault();
    return undo();
  }
  if (ignored(event)) return;
  const onControl = event.target.closest?.("button, a, summary");
  if (event.key === "Enter" && !onControl) submit();
  else if (event.key === "?") byId("help-dialog").showModal();
  else if (event.key === "Escape") guidelines(false);
  else if (form && !busy && form.press(event)) refresh();
  else if (COMMANDS[letter(event)]) COMMANDS[letter(event)]();
  else return;
  event.preventDefault();
}

addEventListener("keydown", pressed);
addEventListener("focusin", (event) => {
  // Not on the way to a button, which would move away under the pointer.
  if (!event.target.closest("button")) byId("submit-key").textContent = inTextBox(event) ? "Ctrl Enter" : "Enter";
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("note").addEventListener("input", changed);
const clicks = { undo, "undo-last": undo, "results-button": results, skip: openSkip, flag: openFlag, reveal, "guidelines-button": () => guidelines(), "markdown-button": toggleMarkdown, "help-button": () => byId("help-dialog").showModal(),
  "consent-button": openConsent };
for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);
for (const button of document.querySelectorAll("[data-granted]")) {
  button.addEventListener("click", () => agree(button.dataset.granted === "true"));
}
for (const dialog of document.querySelectorAll("dialog")) {
  // Not back to the button that opened it: the next Enter should submit. The event may come after the next key.
  dialog.addEventListener("close", () => document.activeElement?.matches("textarea") || byId("item").focus({ preventScroll: true }));
}
for (const button of document.querySelectorAll(".cancel")) button.addEventListener("click", () => button.closest("dialog").close());
for (const button of document.querySelectorAll("[data-reason]")) {
  button.addEventListener("click", () => decide("skip-dialog", "skip", "reason", button.dataset.reason));
}
byId("skip-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  decide("skip-dialog", "skip", "reason", byId("skip-reason").value);
});
byId("flag-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  decide("flag-dialog", "flag", "note", byId("flag-note").value);
});
addEventListener("pagehide", saveDraft);
addEventListener("beforeunload", (event) => {
  if (outbox.waiting.length && !isSaved()) event.preventDefault();
});

showTime();
setInterval(showTime, LOOK);
addEventListener("keydown", showTime);
if (sessionStorage.getItem("guidelines-changed")) {
  sessionStorage.removeItem("guidelines-changed");
  guidelines(true);
  news = "The guidelines changed. Read them before you continue.";
}
showKeys();
if (outbox.waiting.length) await outbox.send();
if (!state) call("next", {});
