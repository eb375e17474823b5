/* The page as a whole, without a browser (browser.mjs), before a server that is a function. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Store } from "../../src/server/web/store.js";
import { openPage, Storage, until } from "./browser.mjs";

const HREF = "http://h/below/";
const ANSWER = "A **bold** `<b>` answer";

const soon = globalThis.setTimeout;
globalThis.setTimeout = (work, ms) => soon(work, Math.min(ms, 5)); // nobody waits for a second here

/* What the server is asked goes to `asked`; `answers` are given to chats in turn, a function decides what comes. */
function server({ key, hasChat = true, hasHoles = true, capabilities = ["thinking"], loads = 0 } = {}) {
  const state = { asked: [], next: () => events(ANSWER), isThere: true };
  const json = (value, status = 200) => new Response(JSON.stringify(value), { status });
  state.fetch = async (url, { headers, body, signal } = {}) => {
    if (!state.isThere) throw new TypeError("refused");
    const path = String(url).replace(HREF, "");
    if (path === "health") return loads-- > 0 ? json({ status: "loading" }, 503) : json({ status: "ok" });
    if (key && headers.Authorization !== `Bearer ${key}`) return json({ error: { message: "a key is needed" } }, 401);
    if (path === "v1/models") return json({ data: [{ id: "m", max_model_len: 99, chat: hasChat, fim: hasHoles }] });
    if (path === "props") return json({ openai_defaults: { temperature: 0.300000012, top_p: 1 } });
    if (path === "api/show") return json({ capabilities });
    state.asked.push({ path, ...JSON.parse(body) });
    return new Response(state.next(signal));
  };
  return state;
}

const timings = { cache_n: 1, prompt_n: 2, predicted_n: 3, predicted_per_second: 4 };
const frame = (value) => new TextEncoder().encode(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
const said = (text) => ({ choices: [{ text, delta: { content: text, reasoning_content: "hm" } }], timings });

function events(text) {
  return new ReadableStream({
    start(control) {
      for (const value of [said(text.slice(0, 6)), said(text.slice(6)), "[DONE]"]) control.enqueue(frame(value));
      control.close();
    },
  });
}

/* An answer that goes on until it is stopped; `line.control` writes to it. */
const line = {};
function endless(signal) {
  return new ReadableStream({
    start(control) {
      line.control = control;
      control.enqueue(frame(said("begun")));
      signal.addEventListener("abort", () => control.error(signal.reason));
    },
  });
}

async function opened(options = {}, storage = new Storage()) {
  const made = server(options);
  const page = await openPage({ href: HREF, storage, fetch: made.fetch });
  await page.ready;
  return { ...page, server: made, storage };
}

const idle = ({ byId }) => until(() => byId("send").textContent === "Send", "the answer's end");

async function ask(page, text) {
  page.byId("say").type(text);
  page.byId("say").press("Enter");
  await idle(page);
}

const messagesOf = (page) => page.byId("log").children.map(({ className, children }) => [className, children.find(({ className }) => className.startsWith("body")).textContent]);

test("a conversation", async () => {
  const page = await opened();
  assert.equal(page.byId("note").hidden, true);
  assert.equal(page.byId("model").textContent, "m");
  await ask(page, "one");
  assert.deepEqual(messagesOf(page), [["question", "one"], ["answer", "A bold <b> answer"]]);
  assert.equal(page.byId("log").find("strong").textContent, "bold");
  assert.equal(page.byId("log").find("details").hidden, false);
  assert.equal(page.byId("context").textContent, "6 of 99 tokens of context");
  page.byId("system").type("be kind");
  await ask(page, "two");
  const { path, messages, model } = page.server.asked.at(-1);
  assert.deepEqual([path, model], ["v1/chat/completions", "m"]);
  assert.deepEqual(messages.map(({ role, content }) => [role, content]), [["system", "be kind"], ["user", "one"], ["assistant", ANSWER], ["user", "two"]]);
  assert.deepEqual([page.byId("say").value, page.byId("conversations").children.length], ["", 1]);
});

test("Enter with Shift, or while a word is put together, sends nothing", async () => {
  const page = await opened();
  page.byId("say").type("x");
  page.byId("say").press("Enter", { shiftKey: true });
  page.byId("say").press("Enter", { isComposing: true });
  await ask(page, " \n");
  assert.deepEqual(page.server.asked, []);
});

test("edited, and asked again: nothing is lost", async () => {
  const page = await opened();
  const log = page.byId("log");
  await ask(page, "one");
  log.find("button", "Edit").click();
  log.find("textarea").value = "other";
  log.find("button", "Ask again").click();
  await idle(page);
  assert.deepEqual(messagesOf(page)[0], ["question", "other"]);
  page.server.next = () => events("second");
  log.find("button", "Regenerate").click();
  await idle(page);
  assert.deepEqual(messagesOf(page), [["question", "other"], ["answer", "second"]]);
  assert.equal(page.server.asked.at(-1).messages.length, 1);
  log.find("button", "‹").click(); // the question's
  assert.deepEqual(messagesOf(page), [["question", "one"], ["answer", "A bold <b> answer"]]);
  log.find("button", "›").click();
  assert.deepEqual(messagesOf(page), [["question", "other"], ["answer", "second"]]);
});

test("of an answer that grows, what is shown already stays as it is", async () => {
  const page = await opened();
  const body = () => page.byId("log").lastElementChild.children.find(({ className }) => className === "body");
  page.server.next = endless;
  page.byId("say").type("go on");
  page.byId("composer").submit();
  await until(() => body()?.textContent === "begun");
  line.control.enqueue(frame(said("\n\n- a")));
  await until(() => body().textContent === "beguna");
  const [first, second] = body().children;
  line.control.enqueue(frame(said("\n- b")));
  await until(() => body().textContent === "begunab");
  assert.deepEqual([body().children[0] === first, body().children[1] === second], [true, false]);
  page.fire("keydown", { key: "Escape" });
  await idle(page);
});

test("stopped by Esc, by the button", async () => {
  const page = await opened();
  page.server.next = endless;
  for (const stop of [() => page.fire("keydown", { key: "Escape" }), () => page.byId("composer").submit()]) {
    page.byId("say").type("go on");
    page.byId("composer").submit();
    await until(() => messagesOf(page).at(-1)[1] === "begun");
    assert.equal(page.byId("send").textContent, "Stop");
    stop();
    await idle(page);
    assert.match(page.byId("log").lastElementChild.textContent, /begun.*3 tokens.*stopped$/);
  }
});

test("what came before the page was left is there again", async () => {
  const page = await opened();
  page.server.next = endless;
  page.byId("say").type("go on");
  page.byId("composer").submit();
  await until(() => messagesOf(page).at(-1)[1] === "begun");
  page.byId("say").type("a draft");
  page.fire("pagehide");
  line.control.error(new TypeError("network error")); // so a browser ends it
  await idle(page);
  const again = await opened({}, page.storage);
  assert.deepEqual(messagesOf(again), [["question", "go on"], ["answer", "begun"]]);
  assert.match(again.byId("log").lastElementChild.textContent, /cut off: the page was left$/);
  assert.equal(again.byId("say").value, "a draft");
});

test("conversations: new, renamed, deleted, of another window", async () => {
  const page = await opened();
  const list = page.byId("conversations");
  const titles = () => list.children.map((item) => item.children[0].textContent);
  await ask(page, "first");
  page.byId("new").click();
  assert.deepEqual([messagesOf(page), titles()], [[], ["first"]]);
  await ask(page, "second");
  assert.deepEqual(titles().sort(), ["first", "second"]);
  list.find("button", "first").click();
  assert.deepEqual(messagesOf(page)[0], ["question", "first"]);
  const item = list.children.find((one) => one.children[0].textContent === "first");
  item.children[1].click();
  assert.ok(titles().includes("A title"));
  list.find("button", "A title").parent.children[2].click();
  assert.deepEqual([titles(), messagesOf(page)[0]], [["second"], ["question", "second"]]);
  const name = [...page.storage.items.keys()].find((one) => one.includes(":chat:"));
  page.storage.setItem(name, page.storage.getItem(name).replaceAll("second", "elsewhere"));
  page.fire("storage", { key: name });
  assert.deepEqual([titles(), messagesOf(page)[0]], [["elsewhere"], ["question", "elsewhere"]]);
});

test("files of conversations", async () => {
  const page = await opened();
  await ask(page, "first");
  const picker = page.byId("import-file");
  const file = (text) => ({ name: "f.json", text: async () => text });
  picker.files = [file(new Store(page.storage, "/below/").exported().replaceAll("first", "given"))];
  await picker.onchange();
  assert.equal(page.byId("note").textContent, "f.json: 1 new conversation");
  assert.deepEqual(page.byId("conversations").children.map((item) => item.children[0].textContent).sort(), ["first", "given"]);
  picker.files = [file("no")];
  await picker.onchange();
  assert.match(page.byId("note").textContent, /^f\.json: .*JSON/);
});

test("errors are said, and a server that was gone is found again", async () => {
  const page = await opened();
  page.byId("temperature").type("hot");
  await ask(page, "x");
  const { hidden, textContent } = page.byId("log").lastElementChild.children.find(({ className }) => className === "error");
  assert.deepEqual([hidden, textContent], [false, 'temperature: expected a number, found "hot"']);
  page.byId("temperature").type("0.5");
  page.server.isThere = false;
  await ask(page, "y");
  assert.match(page.byId("log").lastElementChild.find("p").textContent, /^the server cannot be reached/);
  await until(() => /trying again/.test(page.byId("note").textContent));
  page.server.isThere = true;
  await until(() => page.byId("note").hidden);
  await ask(page, "z");
  assert.deepEqual([page.server.asked.length, page.server.asked[0].temperature], [1, 0.5]);
});

test("loading, then the key", async () => {
  const storage = new Storage();
  const made = server({ key: "sesame", loads: 2 });
  const page = await openPage({ href: HREF, storage, fetch: made.fetch });
  await until(() => page.byId("note").textContent === "The model is loading …");
  for (const key of ["wrong", "sesame"]) {
    await until(() => page.byId("key-panel").open);
    assert.equal(page.byId("key-reason").textContent, "a key is needed");
    page.byId("key").value = key;
    page.byId("key-form").submit();
  }
  await page.ready;
  assert.ok(![...storage.items.values()].some((text) => text.includes("sesame"))); // only if the user says so
  const again = await openPage({ href: HREF, storage, fetch: made.fetch });
  await until(() => again.byId("key-panel").open);
  Object.assign(again.byId("key"), { value: "sesame" });
  again.byId("keep-key").checked = true;
  again.byId("key-form").submit();
  await again.ready;
  await (await openPage({ href: HREF, storage, fetch: made.fetch })).ready;
});

test("a model without a chat template", async () => {
  const page = await opened({ hasChat: false });
  assert.deepEqual([page.byId("complete").hidden, page.byId("chat").hidden, page.byId("no-chat").hidden], [false, true, false]);
  assert.deepEqual([page.byId("send").disabled, page.byId("say").disabled], [true, true]);
});

test("completion, and a hole", async () => {
  const page = await opened();
  const generated = () => until(() => page.byId("generate").textContent === "Generate", "the text's end");
  page.byId("tab-complete").click();
  page.server.next = () => events("MIDDLE");
  page.byId("prefix").type("before ");
  page.byId("suffix").type(" after");
  page.byId("completer").submit();
  await generated();
  const { path, prompt, suffix, max_tokens } = page.server.asked[0];
  assert.deepEqual([path, prompt, suffix, max_tokens], ["v1/completions", "before ", " after", 128]);
  assert.equal(page.byId("middle").value, "MIDDLE");
  page.byId("take").click();
  assert.deepEqual([page.byId("prefix").value, page.byId("middle").value], ["before MIDDLE", ""]);
  page.server.next = endless;
  page.byId("completer").press("Enter", { ctrlKey: true });
  await until(() => page.byId("middle").value === "begun");
  page.fire("keydown", { key: "Escape" });
  await generated();
  assert.match(page.byId("completion-stats").textContent, /stopped$/);
  const again = await opened({ hasHoles: false }, page.storage);
  assert.deepEqual(["prefix", "middle", "suffix"].map((name) => again.byId(name).value), ["before MIDDLE", "begun", " after"]);
  assert.equal(again.byId("suffix").disabled, true);
  again.byId("completer").submit();
  await until(() => again.server.asked.length);
  assert.equal(again.server.asked[0].suffix, undefined);
});

test("settings", async () => {
  const page = await opened();
  assert.deepEqual([page.byId("temperature").placeholder, page.byId("thinking-field").hidden], [0.3, false]);
  for (const [name, value] of Object.entries({ temperature: "0.5", max_tokens: "7", thinking: "off" })) page.byId(name).type(value);
  const again = await opened({}, page.storage);
  await ask(again, "x");
  const { temperature, max_tokens, chat_template_kwargs } = again.server.asked[0];
  assert.deepEqual([temperature, max_tokens, chat_template_kwargs], [0.5, 7, { thinking: false }]);
  const other = await opened({ capabilities: [] }, page.storage);
  assert.equal(other.byId("thinking-field").hidden, true);
  await ask(other, "x");
  assert.equal(other.server.asked[0].chat_template_kwargs, undefined);
});

test("a full storage is said, and the answer is shown all the same", async () => {
  const page = await opened({}, new Storage(300));
  await ask(page, "x".repeat(400));
  assert.match(page.byId("note").textContent, /^not kept \(QuotaExceededError\)/);
  assert.equal(messagesOf(page)[1][1], "A bold <b> answer");
});
