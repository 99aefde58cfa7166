// Dragging with a mouse or a finger. The server's policy forbids style attributes, but not the style of an element.

import { make } from "./page.js";

const FAR = 5; // pixels before a press is a drag

// Let `handle` be dragged. over(x, y): called on every move; drop(x, y): at the end; over(null): when it is cancelled.
export function draggable(handle, title, { over, drop }) {
  handle.classList.add("handle");
  handle.addEventListener("pointerdown", (down) => {
    if (down.button !== 0 || (down.target.closest("button") ?? handle) !== handle) return;
    let ghost = null;
    const move = (event) => {
      if (!ghost && Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < FAR) return;
      if (!ghost) {
        ghost = document.body.appendChild(make("div", { class: "ghost", "aria-hidden": "true" }, title));
        getSelection().removeAllRanges();
      }
      event.preventDefault();
      ghost.style.transform = `translate(${event.clientX + 8}px, ${event.clientY + 8}px)`;
      over(event.clientX, event.clientY);
    };
    const end = (event) => {
      finish();
      if (!ghost) return;
      ghost.remove();
      // The click that follows belongs to the drag.
      addEventListener("click", stop, { capture: true, once: true });
      setTimeout(() => removeEventListener("click", stop, { capture: true }));
      if (event.type === "pointerup") drop(event.clientX, event.clientY);
      else over(null);
    };
    const escape = (event) => {
      if (event.key !== "Escape" || !ghost) return;
      event.stopPropagation();
      end(event);
    };
    const listeners = { pointermove: move, pointerup: end, pointercancel: end, keydown: escape };
    const finish = () => Object.entries(listeners).forEach(([name, act]) => removeEventListener(name, act, true));
    for (const [name, act] of Object.entries(listeners)) addEventListener(name, act, true);
  });
  handle.addEventListener("dragstart", (event) => event.preventDefault());
}

const stop = (event) => {
  event.stopPropagation();
  event.preventDefault();
};
