// Rows of a file: a list of those that the filters choose, one of them in full, and marks on bad ones.

import { post } from "/static/outbox.js";
import { banner, byId, ignored, inTextBox, letter, make, say } from "/static/page.js";
import { showMarkdown, texts, toggleMarkdown } from "/static/texts.js";

const PAGE = 50; // rows
const TYPING = 250, LOOK = 2000; // milliseconds
const NAMES = { any: "rows with a fault", marked: "marked rows" }; // of flags that are no rule
const numbers = (count) => count.toLocaleString("en");

let listed = []; // the rows in the list
let total = 0;
let first = 0; // of the list, among the rows that are wanted
let shown = null; // the row in full
let known = false; // whether the rows have been looked through for faults
let asTokens = false;
let wish = null; // the row that was asked for last; answers about others come too late
let asked = 0; // lists, of which only the last one counts
let timer = 0;

async function call(name, message) {
  try {
    const answer = await post(name, message);
    banner("offline", "");
    return answer;
  } catch (error) {
    banner("offline", error.status ? error.message : "The server does not answer.");
    return null;
  }
}

// The address keeps the filters and the row, so that a reload shows the same.

const FIELDS = ["text", "column", "flag", "least", "most"];

function remember() {
  const kept = new URLSearchParams(FIELDS.map((id) => [id, byId(id).value]).filter(([, value]) => value));
  if (byId("whole").checked) kept.set("whole", "1");
  if (first) kept.set("first", first);
  if (shown) kept.set("row", shown.at);
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const id of FIELDS) {
    const value = kept.get(id) ?? "";
    if (id === "flag" && value) byId(id).append(make("option", { value }, value)); // until the list names it
    byId(id).value = value;
  }
  byId("whole").checked = kept.has("whole");
  first = Number(kept.get("first") ?? 0);
  return kept.has("row") ? Number(kept.get("row")) : null;
}

// The list

function wanted() {
  const number = (id) => (/^\d{1,9}$/.test(byId(id).value) ? Number(byId(id).value) : null);
  return { text: byId("text").value, column: byId("column").value, whole: byId("whole").checked, flag: byId("flag").value,
    least: number("least"), most: number("most"), first };
}

async function list(at = null) {
  const question = ++asked;
  clearTimeout(timer);
  const answer = await call("rows", wanted());
  if (question !== asked || !answer) return;
  if (!answer.rows.length && first) return go(0);
  const news = !known && answer.flags !== null;
  [listed, total, known] = [answer.rows, answer.total, answer.flags !== null];
  flags(answer);
  byId("list").replaceChildren(...listed.map(line));
  byId("list").scrollTop = 0;
  const last = first + listed.length;
  byId("count").textContent = total ? `${numbers(first + 1)}–${numbers(last)} of ${numbers(total)}` : "0 rows";
  byId("before").disabled = first === 0;
  byId("after").disabled = last >= total;
  byId("nothing").hidden = total > 0;
  const next = listed.find((row) => row.at === at) ?? listed[0];
  if (next?.at !== shown?.at || (news && document.activeElement !== byId("reason"))) await open(next?.at ?? null);
  else current();
}

async function look() {
  const answer = known ? null : await call("rows", { ...wanted(), flag: "", least: null, most: null });
  if (answer?.flags) await list(shown?.at);
  if (!known) setTimeout(look, LOOK);
}

function line(row) {
  const number = make("span", { class: "number" }, `${row.file}${row.file && ":"}${numbers(row.number)}${row.marked ? " · bad" : ""}`);
  const flag = row.flag && make("span", { class: "chip" }, row.flag.replaceAll("_", " "));
  const button = make("button", { type: "button", class: row.marked ? "bad" : null }, number, flag || null, make("span", { class: "preview" }, row.preview));
  button.addEventListener("click", () => open(row.at));
  return make("li", {}, button);
}

function flags({ flags: found, marked }) {
  byId("looking").hidden = found !== null;
  for (const id of ["least", "most"]) byId(id).disabled = found === null;
  const any = Object.values(found ?? {}).reduce((sum, count) => sum + count, 0);
  const all = [...(found ? [["any", any]] : []), ...Object.entries(found ?? {}), ["marked", marked]];
  const options = all.map(([value, count]) => make("option", { value }, `${NAMES[value] ?? value.replaceAll("_", " ")} (${numbers(count)})`));
  const chosen = byId("flag").value;
  const lost = chosen && !all.some(([value]) => value === chosen) ? [make("option", { value: chosen }, `${chosen} (0)`)] : [];
  byId("flag").replaceChildren(make("option", { value: "" }, "all rows"), ...options, ...lost);
  byId("flag").value = chosen;
}

function go(to) {
  first = Math.max(0, to);
  return list();
}

function filter() {
  clearTimeout(timer);
  timer = setTimeout(() => go(0), TYPING);
}

async function move(by) {
  const place = listed.findIndex((row) => row.at === wish) + by;
  if (listed[place]) return open(listed[place].at);
  if (place < 0 && first > 0) {
    first = Math.max(0, first - PAGE);
    await list();
    return open(listed.at(-1)?.at ?? null);
  }
  if (place >= 0 && first + place < total) return go(first + PAGE);
}

// One row

async function open(at) {
  wish = at;
  const row = at === null ? null : await call("row", { at });
  if (at !== wish || (at !== null && !row)) return;
  shown = row;
  byId("bar").hidden = !row;
  byId("shown").replaceChildren();
  texts.start();
  if (row) fill(row);
  showMarkdown();
  current();
  remember();
}

function current() {
  const place = listed.findIndex((row) => row.at === shown?.at);
  byId("list").querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-current", String(index === place)));
  byId("list").children[place]?.scrollIntoView({ block: "nearest" });
}

function fill(row) {
  byId("where").textContent = row.where;
  const [rule, reason] = row.fault ?? ["", ""];
  byId("fault").hidden = !rule;
  byId("fault").textContent = rule === "unreadable" ? rule : `${rule.replaceAll("_", " ")}: ${reason}`;
  marked(row.mark);
  if (row.unread) byId("shown").append(make("p", { class: "banner", id: "warning" }, `This row cannot be read: ${row.unread}`));
  if (asTokens && !row.unread) tokens(row.at);
  else byId("shown").append(...row.groups.flatMap(group));
  byId("shown").append(make("details", { open: Boolean(row.unread) }, make("summary", {}, "The row as it was read"), make("pre", { dir: "auto" }, row.raw || "nothing")));
  byId("item").scrollTop = 0;
  say(`${row.where}. ${row.mark === null ? "" : "Marked as bad."} ${rule} ${reason}`);
}

function group({ prompt, responses, tools, columns, left }) {
  const turns = [...(tools.length ? [make("p", { class: "muted" }, `Tools: ${tools.join(", ")}`)] : []), ...prompt.map((turn) => texts.turn(turn))];
  const answers = responses.map((response, index) => {
    const box = texts.answer(response.turns, index, responses.length);
    const badges = response.facts.map((fact) => make("span", { class: fact.startsWith("better") ? "badge" : "badge plain" }, fact));
    box.querySelector("h2").append(...badges);
    return box;
  });
  const cells = columns.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  return [
    turns.length ? make("section", { class: "prompt", "aria-label": "Prompt" }, ...turns) : "",
    make("section", { class: "answers", "aria-label": "Answers" }, ...answers),
    cells.length ? make("section", { class: "box more", "aria-label": "Other columns" }, make("table", {}, make("tbody", {}, ...cells))) : "",
    left.length ? make("p", { class: "muted" }, `Not shown: ${left.join(", ")}.`) : "",
  ];
}

async function tokens(at) {
  const box = make("section", { "aria-label": "Tokens", "aria-busy": "true" });
  byId("shown").prepend(box);
  const answer = await call("tokens", { at });
  box.replaceChildren(...(answer?.tokens ?? []).map(({ title, pieces, learned }) => {
    const marks = pieces.map((piece, index) => make("span", { class: learned[index] ? "token learned" : "token" }, piece.replaceAll("\n", "⏎\n")));
    return make("section", { class: "box" }, make("h2", {}, title), make("p", { class: "tokens", dir: "auto" }, ...marks));
  }), make("p", { class: "muted" }, "Underlined tokens carry the loss of a stage that learns this row."));
  box.setAttribute("aria-busy", "false");
}

function toggleTokens() {
  if (!byId("tokens-button")) return;
  asTokens = !asTokens;
  byId("tokens-button").setAttribute("aria-pressed", String(asTokens));
  if (shown) open(shown.at);
}

// Marks

function marked(reason) {
  byId("mark").setAttribute("aria-pressed", String(reason !== null));
  byId("mark-word").textContent = reason === null ? "Mark as bad" : "Marked as bad";
  byId("reason").value = reason === "marked by hand" ? "" : reason ?? "";
}

async function mark(bad = shown?.mark === null) {
  if (!shown) return;
  const answer = await call("mark", { at: shown.at, bad, reason: byId("reason").value });
  if (!answer) return;
  shown.mark = answer.mark;
  marked(answer.mark);
  const row = listed.find((one) => one.at === shown.at);
  if (row) {
    row.marked = bad;
    const old = byId("list").children[listed.indexOf(row)];
    const renewed = line(row);
    const focused = old.contains(document.activeElement);
    old.replaceWith(renewed);
    if (focused) renewed.firstChild.focus();
    current();
  }
  const option = byId("flag").querySelector("[value=marked]");
  if (option) option.textContent = `${NAMES.marked} (${numbers(answer.marked)})`;
  say(bad ? "Marked as bad" : "No longer marked");
}

// Keys

const KEYS = [["J", "next row"], ["K", "row before"], ["↓ ↑", "the same, in the list"], ["N", "next page of rows"], ["P", "page before"], ["X", "mark the row as bad, or take it back"],
  ["R", "why the row is bad; Enter marks it"], ["/", "search"], ["M", "Markdown, or texts as written"],
  ...(byId("tokens-button") ? [["T", "tokens, or texts"]] : []), ["Esc", "leave a text box, close a dialog"], ["?", "this help"]];
const COMMANDS = { J: () => move(1), K: () => move(-1), N: () => first + PAGE < total && go(first + PAGE), P: () => first && go(first - PAGE),
  X: () => mark(), R: () => byId("reason").focus(), M: toggleMarkdown, T: toggleTokens };

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (inTextBox(event)) {
    if (event.key === "Escape" && !event.isComposing) byId("item").focus({ preventScroll: true });
    return;
  }
  if (event.target.closest?.("select") || ignored(event)) return;
  const moves = event.target.closest?.("#list") ? { ArrowDown: 1, ArrowUp: -1 }[event.key] : 0;
  if (moves) move(moves).then(() => byId("list").querySelector("[aria-current=true]")?.focus());
  else if (event.key === "/") byId("text").select();
  else if (event.key === "?") byId("help-dialog").showModal();
  else if (COMMANDS[letter(event)]) COMMANDS[letter(event)]();
  else return;
  event.preventDefault();
});
byId("filters").addEventListener("input", filter);
byId("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  go(0);
});
byId("clear").addEventListener("click", () => {
  byId("filters").reset();
  go(0);
});
byId("bar").addEventListener("submit", (event) => {
  event.preventDefault();
  mark(event.submitter === null || document.activeElement === byId("reason") ? true : shown?.mark === null);
});
const clicks = { before: () => go(first - PAGE), after: () => go(first + PAGE), "markdown-button": toggleMarkdown, "tokens-button": toggleTokens,
  "help-button": () => byId("help-dialog").showModal() };
for (const [id, act] of Object.entries(clicks)) byId(id)?.addEventListener("click", act);
byId("keys").replaceChildren(...KEYS.flatMap(([key, words]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, words)]));
byId("item").focus({ preventScroll: true });
await list(recall());
if (!known) setTimeout(look, LOOK);
