// Labels that the server has not confirmed stay in this browser, and are sent again until it does.

import { banner, byId, meta } from "./page.js";

const RETRY = 3000; // milliseconds
const KEY = `alignkit-outbox:${meta("annotator")}`;
const REFUSED = `${KEY}:refused`;

export async function post(name, message) {
  const body = JSON.stringify(message);
  const response = await fetch(`/api/label/${name}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": meta("csrf") },
    body,
    keepalive: body.length < 10000, // so that a draft arrives although the page closes
  });
  const failed = { error: { message: `the server answered ${response.status}` } };
  const answer = await response.json().catch(() => failed);
  if (!response.ok) throw Object.assign(new Error(answer.error.message), { status: response.status });
  return answer;
}

const stored = (key) => JSON.parse(localStorage.getItem(key) || "[]");
const keep = (key, messages) => localStorage.setItem(key, JSON.stringify(messages));

export class Outbox {
  constructor(arrived) {
    this.arrived = arrived; // called with the server's answer, or null if it refused the last message
    this.sending = null;
    addEventListener("online", () => this.send());
  }

  get waiting() {
    return stored(KEY);
  }

  put(message) {
    keep(KEY, [...stored(KEY).filter((other) => other.body.uuid !== message.body.uuid), message]);
    return this.send();
  }

  send() {
    clearTimeout(this.timer);
    this.sending ??= this.sendAll().finally(() => (this.sending = null));
    return this.sending;
  }

  async sendAll() {
    let answer;
    for (let message; (message = stored(KEY)[0]); ) {
      try {
        answer = await post(message.name, message.body);
        banner("offline", "");
      } catch (error) {
        if (error.status !== 422) return this.later(error);
        answer = null; // it will never be taken, so it must not hold up the others
        keep(REFUSED, [...stored(REFUSED), { ...message, error: error.message }]);
        banner("offline", `The server did not take this label: ${error.message}`);
      }
      keep(KEY, stored(KEY).filter((other) => other.body.uuid !== message.body.uuid));
    }
    if (answer !== undefined) this.arrived(answer);
  }

  later(error) {
    const count = stored(KEY).length;
    const what = count === 1 ? "1 label waits" : `${count} labels wait`;
    if (error.status === 401 || error.status === 403) {
      banner("offline", `${what} in this browser. ${error.message}; then they are sent.`);
      return;
    }
    const why = error.status ? `The server cannot store it: ${error.message}.` : "The server does not answer.";
    banner("offline", `${why} ${what} in this browser, and will be sent again.`);
    this.timer = setTimeout(() => this.send(), RETRY);
  }
}

export const isSaved = () => byId("offline").hidden;
