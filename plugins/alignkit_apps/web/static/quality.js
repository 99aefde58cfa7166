// The page of figures follows new labels, but not while nobody looks at it.

import { meta } from "./page.js";

const LOOK = 30000; // milliseconds

setInterval(async () => {
  if (document.hidden) return;
  const response = await fetch("/quality/state").catch(() => null); // the server may be gone for a while
  if (response?.ok && String((await response.json()).state) !== meta("state")) location.reload();
}, LOOK);
