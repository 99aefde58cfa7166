// Rankings: type the letters from best to worst, with = between answers that are equally good, or drag them.

import { draggable } from "./dragging.js";
import { SIDES, byId, letter, make, say } from "./page.js";

const EDGE = 0.3; // of a place's width: a drop there is before or after it, and not equal to it
const NEAR = 40; // pixels around the order that belong to it

// clicked(answer): whether a click on the text of an answer ranks it.
export function rankingForm(item, changed, clicked = () => true) {
  const names = SIDES.slice(0, item.responses.length).split("");
  const cards = [...byId("answers").children];
  let places = []; // the best first; each place holds the names that share it
  let tying = false; // the next name shares the last place

  const tray = make("div", { class: "tray", role: "group", "aria-label": "Order, the best first" });
  const rest = make("div", { class: "rest", role: "group", "aria-label": "Not ranked" });
  const tie = make("button", { type: "button", "aria-pressed": "false" }, "Equal ", make("kbd", {}, "="));
  const back = make("button", { type: "button" }, "Take back ", make("kbd", {}, "Backspace"));
  tie.addEventListener("click", toggle);
  back.addEventListener("click", takeBack);
  const badges = cards.map((card, index) => {
    const badge = make("span", { class: "badge" });
    const title = card.querySelector("h2");
    title.firstChild.after(badge);
    card.tabIndex = 0;
    card.setAttribute("role", "group");
    card.addEventListener("click", () => getSelection().isCollapsed && clicked(index) && add(names[index]));
    draggable(title, names[index], { over, drop: (x, y) => put(names[index], target(x, y)) });
    return badge;
  });
  const ranked = () => places.flat();

  function chip(name) {
    const rank = placeOf(name) + 1;
    const button = make("button", { type: "button", class: "chip", "data-name": name, "aria-label": `${name}, ${rank ? `rank ${rank}` : "not ranked"}` }, name);
    button.addEventListener("click", () => (placeOf(name) < 0 ? add(name) : put(name, { out: true })));
    draggable(button, name, { over, drop: (x, y) => put(name, target(x, y) ?? { out: true }) });
    return button;
  }

  const placeOf = (name) => places.findIndex((place) => place.includes(name));

  function showOrder() {
    const held = document.activeElement?.dataset?.name;
    tray.replaceChildren(...places.map((place, index) => make("div", { class: "place" }, make("span", { class: "rank" }, index + 1), ...place.map(chip))));
    if (!places.length) tray.append(make("span", { class: "muted" }, "Type, tap or drag letters, the best first"));
    const open = names.filter((name) => placeOf(name) < 0);
    rest.replaceChildren(...(open.length ? [make("span", { class: "muted" }, "not ranked "), ...open.map(chip)] : []));
    if (held) byId("controls").querySelector(`[data-name="${held}"]`)?.focus();
  }

  function update(spoken = true) {
    names.forEach((name, index) => {
      const rank = placeOf(name) + 1;
      badges[index].textContent = rank ? `rank ${rank}` : "";
      badges[index].hidden = !rank;
      cards[index].classList.toggle("chosen", rank === 1);
      cards[index].setAttribute("aria-label", `Answer ${name}, ${rank ? `rank ${rank}` : "not ranked"}`);
    });
    showOrder();
    tie.setAttribute("aria-pressed", String(tying));
    const text = places.map((place) => place.join(" = ")).join(" > ");
    if (spoken) say(`${text || "no order"}${tying ? ", next one equal" : ""}`);
    changed();
  }

  function add(name) {
    if (ranked().includes(name)) return say(`${name} is ranked; take it back first`);
    if (tying && places.length) places.at(-1).push(name);
    else places.push([name]);
    tying = false;
    update();
  }

  function toggle() {
    tying = !tying && places.length > 0;
    update();
  }

  function takeBack() {
    if (tying) tying = false;
    else if (places.length && places.at(-1).length > 1) places.at(-1).pop();
    else places.pop();
    update();
  }

  // Move the focused answer one place up or down.
  function move(name, step) {
    const from = placeOf(name);
    if (from < 0) return add(name);
    const alone = places[from].length === 1;
    const left = without(name);
    const to = alone ? from + step : from + (step > 0 ? 1 : 0);
    left.splice(Math.min(Math.max(to, 0), left.length), 0, [name]);
    places = left;
    update();
  }

  const without = (name) => places.map((place) => place.filter((other) => other !== name)).filter((place) => place.length);

  // Where a drop at this point belongs: out of the order, at its end, or at a place of it; null if nowhere.
  function target(x, y) {
    const inside = ({ left, right, top, bottom }, near) => x >= left - near && x <= right + near && y >= top - near && y <= bottom + near;
    if (rest.childElementCount && inside(rest.getBoundingClientRect(), 0)) return { out: true };
    if (!inside(tray.getBoundingClientRect(), NEAR)) return null;
    const away = (value, low, high) => Math.max(low - value, 0, value - high);
    const near = [...tray.querySelectorAll(".place")]
      .map((element, index) => ({ element, index, box: element.getBoundingClientRect() }))
      .sort((one, other) => distance(one.box) - distance(other.box))[0];
    if (!near) return { end: true };
    const share = (x - near.box.left) / near.box.width;
    return { ...near, side: share < EDGE ? "before" : share > 1 - EDGE ? "after" : "equal" };
    function distance(box) {
      return 10000 * away(y, box.top, box.bottom) + away(x, box.left, box.right);
    }
  }

  function over(x, y) {
    for (const marked of tray.querySelectorAll(".before, .after, .equal")) marked.classList.remove("before", "after", "equal");
    const found = x === null ? null : target(x, y);
    tray.classList.toggle("open", found !== null && !found.out);
    found?.element?.classList.add(found.side);
  }

  function put(name, to) {
    over(null);
    if (to === null) return;
    const beside = to.element ? places[to.index].filter((other) => other !== name) : [];
    if (to.element && !beside.length) return; // onto itself
    places = without(name);
    const at = places.findIndex((place) => place.includes(beside[0]));
    if (to.end) places.push([name]);
    else if (to.side === "equal") places[at].push(name);
    else if (to.side) places.splice(at + (to.side === "after"), 0, [name]);
    tying = false;
    update();
  }

  update(false);
  return {
    element: make("div", { class: "order" }, tray, rest, make("div", { class: "actions" }, tie, back)),
    letters: names.join(""),
    keys: [[`${names[0]} to ${names.at(-1)}`, "the next best answer"], ["=", "equal to the one before"], ["Backspace", "take the last one back"],
      ["↑ ↓", "move the answer that has the focus"], ["Drag", "a letter or a title into the order: between two, or onto one that is equal"]],
    press(event) {
      const card = cards.indexOf(event.target.closest?.(".answer"));
      const name = event.target.closest?.(".chip")?.dataset.name ?? names[card];
      if (names.includes(letter(event)) && !event.shiftKey) add(letter(event));
      else if (event.key === "=") toggle();
      else if (event.key === "Backspace") takeBack();
      else if (name && event.key === "ArrowUp") move(name, -1);
      else if (name && event.key === "ArrowDown") move(name, 1);
      else return false;
      return true;
    },
    missing() {
      const open = names.filter((name) => !ranked().includes(name));
      return open.length ? `Rank ${open.join(", ")}` : "";
    },
    value: () => ({ ranks: names.map((name) => placeOf(name) + 1) }),
    fill({ ranks }) {
      const known = [...new Set(ranks ?? [])].filter((rank) => rank > 0).sort((one, other) => one - other);
      places = known.map((rank) => names.filter((_, index) => ranks[index] === rank));
      tying = false;
      update(false);
    },
  };
}
