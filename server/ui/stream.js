// The stream of messages, read with fetch: an EventSource could not send a key.

const STORED_KEY = "octavo-key";
const FIRST_WAIT = 1000, LONGEST_WAIT = 10000;

/** Asks the server, with the key that this tab has been given, if any. */
export class Connection {
  constructor(base) {
    this.base = base;
  }

  set key(value) { sessionStorage.setItem(STORED_KEY, value); }

  fetch(path, options = {}) {
    const key = sessionStorage.getItem(STORED_KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    return fetch(new URL(path, this.base), { ...options, headers, cache: "no-store" });
  }

  /**
   * Reads messages for ever, and connects again when the stream ends.
   * onMessage(message); onState(word, text): "connected", "lost" or "refused"; needKey(reason): resolves once there is one.
   */
  async read({ onMessage, onState, needKey }) {
    for (let wait = FIRST_WAIT; ; wait = Math.min(2 * wait, LONGEST_WAIT)) {
      let seconds = 0;
      try {
        const response = await this.fetch("stream");
        if (response.status === 401 || response.status === 403) {
          await needKey(await reasonOf(response));
          wait = FIRST_WAIT / 2;
          continue;
        }
        if (!response.ok) {
          seconds = Number(response.headers.get("retry-after") ?? 0);
          onState("refused", await reasonOf(response));
        } else {
          onState("connected", "");
          await eachEvent(response.body, (data) => { wait = FIRST_WAIT / 2; onMessage(JSON.parse(data)); });
          onState("lost", "the server ended the stream");
        }
      } catch (error) {
        onState("lost", String(error.message ?? error));
      }
      await new Promise((resolve) => setTimeout(resolve, Math.max(wait, 1000 * seconds)));
    }
  }
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** Calls take(data) for each server-sent event of a body. */
export async function eachEvent(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    // Events may be megabytes in many pieces: they are joined once, when their end is there.
    parts.push(value);
    if (!value.includes("\n") ) continue;
    const events = parts.join("").split("\n\n");
    parts = [events.pop()];
    for (const event of events) {
      if (event.startsWith("data: ")) take(event.slice(6));
    }
  }
}
