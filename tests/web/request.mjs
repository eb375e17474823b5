/* Requests, answers as they grow, and what a server or a connection may do. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { contextUsed, follow, newAnswer, statsText } from "../../src/server/web/answer.js";
import { Client, errorSentence } from "../../src/server/web/client.js";
import { chatRequest, completionRequest } from "../../src/server/web/request.js";

const user = (content) => ({ role: "user", content });
const COMMON = { model: "m", stream: true, timings_per_token: true };

test("a chat", () => {
  const messages = [user("a"), { role: "assistant", content: "", error: "x" }, user("b"), { role: "assistant", content: "c", reasoning: "r" }];
  assert.deepEqual(chatRequest("m", messages, " \n", {}), { ...COMMON, messages: [user("a"), user("b"), { role: "assistant", content: "c" }] });
  assert.deepEqual(chatRequest("m", [user("a")], "be kind", { temperature: " 0 ", top_p: "", max_tokens: "5", seed: "-1", thinking: "off" }), {
    ...COMMON, temperature: 0, max_tokens: 5, seed: -1, chat_template_kwargs: { thinking: false },
    messages: [{ role: "system", content: "be kind" }, user("a")],
  });
  assert.deepEqual(chatRequest("m", [], "", { thinking: "on" }).chat_template_kwargs, { thinking: true });
});

test("a completion, a hole", () => {
  assert.deepEqual(completionRequest("m", "a", "", {}), { ...COMMON, max_tokens: 128, prompt: "a" });
  assert.deepEqual(completionRequest("m", "a", "b", { max_tokens: "9", top_p: "0.5", thinking: "on" }), {
    ...COMMON, max_tokens: 9, top_p: 0.5, prompt: "a", suffix: "b",
  });
});

test("settings that are no numbers", () => {
  for (const [name, text] of [["temperature", "hot"], ["seed", "1.5"], ["seed", "99999999999999999"], ["max_tokens", "1e400"], ["top_p", "NaN"]]) {
    assert.throws(() => chatRequest("m", [], "", { [name]: text }), { message: new RegExp(`^${name}: expected a .*, found "${text}"$`) });
  }
});

/* --- answers --- */

const piece = (delta, more = {}) => ({ choices: [{ delta, finish_reason: null, ...more }] });
const timings = { cache_n: 2, prompt_n: 3, predicted_n: 4, predicted_per_second: 12.345 };

async function* given(chunks, error) {
  yield* chunks;
  if (error) throw error;
}

test("an answer grows", async () => {
  const answer = newAnswer();
  const seen = [];
  let clock = 0;
  const chunks = [piece({ role: "assistant", content: "" }), piece({ reasoning_content: "hm" }), piece({ content: "a" }),
    { ...piece({ content: "b" }, { finish_reason: "length" }), timings }, { choices: [], usage: {} }];
  assert.equal(await follow(answer, given(chunks), () => seen.push(answer.content), () => (clock += 10)), undefined);
  assert.deepEqual(seen, ["", "", "a", "ab", "ab"]);
  assert.deepEqual(answer, { role: "assistant", content: "ab", reasoning: "hm", state: "done", firstMs: 20, finish: "length",
    timings: { prompt: 5, cached: 2, tokens: 4, perSecond: 12.345 } });
  assert.equal(statsText(answer), "4 tokens · 12.3 tokens/s · first after 0.02 s · prompt 5 (2 cached) · ended by the limit of tokens");
  assert.equal(contextUsed(answer), 9);
  assert.deepEqual([statsText(newAnswer()), contextUsed(newAnswer())], ["", 0]);
});

test("a completion grows", async () => {
  const answer = newAnswer();
  await follow(answer, given([{ choices: [{ text: "a" }] }, { choices: [{ text: "b", finish_reason: "stop" }] }]), () => {});
  assert.deepEqual([answer.content, answer.state, answer.finish], ["ab", "done", "stop"]);
});

test("what came stays when it fails or is stopped", async () => {
  for (const [error, state, said] of [[new Error("why"), "failed", "why"], [new DOMException("x", "AbortError"), "stopped", undefined]]) {
    const answer = newAnswer();
    assert.equal(await follow(answer, given([piece({ content: "a" })], error), () => {}), error);
    assert.deepEqual([answer.content, answer.state, answer.error], ["a", state, said]);
  }
});

/* --- the client --- */

const bytes = (text) => new TextEncoder().encode(text);

/* A fetch that answers with these pieces of a body, and then ends or fails. */
function fetchOf(status, pieces, failure) {
  const asked = [];
  const fetch = async (url, options) => {
    asked.push([String(url), options]);
    const start = (control) => {
      for (const text of pieces) control.enqueue(bytes(text));
      if (!failure) control.close();
    };
    const pull = (control) => failure && control.error(failure); // after what came: an error drops what nobody has read
    return new Response(new ReadableStream({ start, pull }, { highWaterMark: 0 }), { status });
  };
  return { fetch, asked };
}

async function all(stream) {
  const objects = [];
  try {
    for await (const object of stream) objects.push(object);
  } catch (error) {
    return { objects, error };
  }
  return { objects };
}

const BASE = "http://h/below/";

test("paths are relative to the page, the key is sent", async () => {
  const { fetch, asked } = fetchOf(200, ['{"a": 1}']);
  const client = new Client(BASE, fetch);
  assert.deepEqual(await client.get("v1/models"), { a: 1 });
  client.key = "sesame";
  assert.deepEqual((await all(new Client(BASE, fetch).stream("x", {}))).error.status, 0); // no [DONE]
  await client.post("api/show", { model: "m" });
  assert.deepEqual(asked.map(([url]) => url), [BASE + "v1/models", BASE + "x", BASE + "api/show"]);
  assert.deepEqual(asked.map(([, { headers }]) => headers.Authorization), [undefined, undefined, "Bearer sesame"]);
  assert.deepEqual([asked[2][1].method, asked[2][1].body], ["POST", '{"model":"m"}']);
});

test("a stream", async () => {
  const { fetch } = fetchOf(200, ['data: {"n"', ': 1}\n\n: still here\n\ndata: {"n": 2}\n', "\ndata: [DONE]\n\n", "data: {}\n\n"]);
  assert.deepEqual(await all(new Client(BASE, fetch).stream("x", {})), { objects: [{ n: 1 }, { n: 2 }] });
});

test("a stream that ends too early, fails, or is cut", async () => {
  const first = 'data: {"n": 1}\n\n';
  const cases = [
    [fetchOf(200, [first]), /^the connection ended before the answer did$/, 0],
    [fetchOf(200, [first, 'data: {"error": {"message": "not finite"}}\n\n']), /^not finite$/, 200],
    [fetchOf(200, [first], new TypeError("reset")), /^the connection was lost \(reset\)$/, 0],
  ];
  for (const [{ fetch }, message, status] of cases) {
    const { objects, error } = await all(new Client(BASE, fetch).stream("x", {}));
    assert.deepEqual([objects, error.status], [[{ n: 1 }], status]);
    assert.match(error.message, message);
  }
});

test("stopped", async () => {
  const abort = new AbortController();
  const fetch = async (url, { signal }) => {
    signal.throwIfAborted();
    return new Response(new ReadableStream({ start: (control) => signal.addEventListener("abort", () => control.error(signal.reason)) }));
  };
  setTimeout(() => abort.abort(), 5);
  const { error } = await all(new Client(BASE, fetch).stream("x", {}, abort.signal));
  assert.equal(error.name, "AbortError");
  assert.equal((await all(new Client(BASE, fetch).stream("x", {}, abort.signal))).error.name, "AbortError");
});

test("who stops listening ends the request", async () => {
  let cancelled = 0;
  const body = () => new ReadableStream({ start: (control) => control.enqueue(bytes("data: {}\n\ndata: {}\n\n")), cancel: () => void cancelled++ });
  for await (const object of new Client(BASE, async () => new Response(body())).stream("x", {})) {
    assert.deepEqual(object, {});
    break;
  }
  assert.equal(cancelled, 1);
});

test("errors are said as the server says them", async () => {
  const cases = [
    ['{"error": {"message": "no such model", "code": 1}}', "no such model"], ['{"error": "Ollama\'s way"}', "Ollama's way"],
    ["<html>502</html>", "HTTP 502"], ["bad gateway\n", "HTTP 502: bad gateway"], ["", "HTTP 502"], ["{}", "HTTP 502: {}"], ["null", "HTTP 502: null"],
    ["x".repeat(500), "HTTP 502"],
  ];
  for (const [text, expected] of cases) assert.equal(errorSentence(502, text), expected);
  const { fetch } = fetchOf(400, ['{"error": {"message": "why"}}']);
  await assert.rejects(new Client(BASE, fetch).get("x"), { message: "why", status: 400 });
  const none = async () => {
    throw new TypeError("refused");
  };
  await assert.rejects(new Client(BASE, none).get("x"), { message: "the server cannot be reached (refused)", status: 0 });
  await assert.rejects(new Client(BASE, none).health(), { status: 0 });
  assert.equal(await new Client(BASE, fetchOf(503, ['{"status": "loading"}']).fetch).health(), "loading");
});
