/* Requests to the server. */

import { EventParser } from "./sse.js";

/* What the server said; `status` is HTTP's, or 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/* The sentence in an error's body: OpenAI's shape, Ollama's, or a proxy's text. */
export function errorSentence(status, text) {
  try {
    const { error } = JSON.parse(text);
    const said = error.message ?? error;
    if (typeof said === "string") return said;
  } catch {
    // no such JSON
  }
  const plain = text.trim();
  return `HTTP ${status}${plain && plain.length < 200 && !plain.startsWith("<") ? ": " + plain : ""}`;
}

export class Client {
  key = "";

  /* `base`: the URL that the page's paths are relative to. */
  constructor(base, fetch = (...given) => globalThis.fetch(...given)) {
    this.base = base;
    this.fetch = fetch;
  }

  /* "ok", "loading" or "draining". */
  async health() {
    try {
      return (await (await this.fetch(new URL("health", this.base), { cache: "no-store" })).json()).status;
    } catch (error) {
      throw asServerError(error);
    }
  }

  async get(path) {
    return (await this.#send(path, {})).json();
  }

  async post(path, body) {
    return (await this.#send(path, { method: "POST", body: JSON.stringify(body) })).json();
  }

  /* The objects of a stream as they come, up to [DONE]; without that it throws. */
  async *stream(path, body, signal) {
    const reply = await this.#send(path, { method: "POST", body: JSON.stringify(body), signal });
    const reader = reply.body.getReader();
    const parser = new EventParser();
    try {
      for (;;) {
        const { done, value } = await this.#read(reader);
        if (done) throw new ServerError("the connection ended before the answer did", 0);
        for (const data of parser.push(value)) {
          if (data === "[DONE]") return;
          yield checked(JSON.parse(data));
        }
      }
    } finally {
      reader.cancel().catch(() => {}); // who stops listening frees the place at the server
    }
  }

  async #read(reader) {
    try {
      return await reader.read();
    } catch (error) {
      throw asServerError(error, "the connection was lost");
    }
  }

  async #send(path, options) {
    const headers = { "Content-Type": "application/json" };
    if (this.key) headers.Authorization = "Bearer " + this.key;
    let reply;
    try {
      reply = await this.fetch(new URL(path, this.base), { ...options, headers, cache: "no-store" });
    } catch (error) {
      throw asServerError(error);
    }
    if (reply.ok) return reply;
    throw new ServerError(errorSentence(reply.status, await reply.text()), reply.status);
  }
}

/* An error in the middle of a stream is an object of it. */
function checked(object) {
  if (object.error) throw new ServerError(object.error.message ?? String(object.error), 200);
  return object;
}

/* That it was stopped stays what it is; for anything else there was no connection. */
function asServerError(error, what = "the server cannot be reached") {
  return error.name === "AbortError" ? error : new ServerError(`${what} (${error.message})`, 0);
}
