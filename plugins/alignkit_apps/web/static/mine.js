// The page of an annotator's own labels: changes them, and contests known answers.

import { post } from "./outbox.js";
import { banner, newId } from "./page.js";

for (const form of document.querySelectorAll("form[data-item]")) {
  const uuid = newId(); // the same, however often it is sent
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await post("contest", { uuid, item: form.dataset.item, note: form.querySelector("input").value });
      location.reload();
    } catch (error) {
      banner("offline", error.status ? error.message : "The server does not answer; nothing was stored.");
    }
  });
}

for (const button of document.querySelectorAll("button[data-of]")) {
  const uuid = newId();
  button.addEventListener("click", async () => {
    try {
      await post("undo", { uuid, of: button.dataset.of });
      location.assign("/"); // which shows the item again, filled in
    } catch (error) {
      banner("offline", error.status ? error.message : "The server does not answer; nothing was changed.");
    }
  });
}
