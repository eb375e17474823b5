/* Conversations as trees, what the browser keeps of them, and files. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { append, newConversation, pathOf, readConversation, select, siblingsOf, titleOf } from "../../src/server/web/conversation.js";
import { newAnswer } from "../../src/server/web/answer.js";
import { Store } from "../../src/server/web/store.js";
import { Storage } from "./browser.mjs";

const question = (content) => ({ role: "user", content });
const answer = (content) => ({ ...newAnswer(), content, state: "done" });
const texts = (conversation) => pathOf(conversation).map((at) => conversation.messages[at].content);

/* One question with two answers, of which the first has a question behind it with two versions. */
function tree(id = "x") {
  const made = newConversation(id, 5, "be kind");
  append(made, -1, question("Q"));
  append(made, 0, answer("A1"));
  append(made, 1, question("R1"));
  append(made, 1, question("R2"));
  append(made, 3, answer("B"));
  append(made, 0, answer("A2"));
  return made;
}

test("branches", () => {
  const made = tree();
  assert.deepEqual(texts(made), ["Q", "A2"]);
  assert.deepEqual(siblingsOf(made, 1), [1, 5]);
  assert.deepEqual(siblingsOf(made, 0), [0]);
  select(made, 1); // goes on to the newest end
  assert.deepEqual(texts(made), ["Q", "A1", "R2", "B"]);
  select(made, 2);
  assert.deepEqual(texts(made), ["Q", "A1", "R1"]);
  assert.deepEqual(texts(newConversation("y", 0)), []);
});

test("titles", () => {
  const made = newConversation("x", 0);
  assert.equal(titleOf(made), "New chat");
  append(made, -1, question("  first line \nsecond"));
  assert.equal(titleOf(made), "first line");
  append(made, 0, answer("no title"));
  made.title = "t".repeat(100);
  assert.equal(titleOf(made), "t".repeat(59) + "…");
});

test("what is read is what was written", () => {
  const made = tree();
  Object.assign(made.messages[1], { reasoning: "hm", firstMs: 12.5, finish: "stop", timings: { prompt: 3, cached: 1, tokens: 4, perSecond: 5.5 } });
  Object.assign(made.messages[4], { state: "failed", error: "why" });
  assert.deepEqual(readConversation(JSON.parse(JSON.stringify(made))), made);
});

test("what was running when the page was left is cut", () => {
  const made = tree();
  made.messages[5].state = "running";
  assert.equal(readConversation(made).messages[5].state, "cut");
});

test("only what is known is taken over", () => {
  const made = readConversation({ ...tree(), extra: 1, title: 7, updated: "x", system: null,
    messages: [{ role: "assistant", content: "c", parent: -1, state: "odd", timings: { prompt: "x" }, error: {}, html: "<b>", __proto__: { a: 1 } }], head: 0 });
  assert.deepEqual(made, { id: "x", title: "", updated: 0, system: "", head: 0,
    messages: [{ role: "assistant", content: "c", reasoning: "", state: "cut", parent: -1 }] });
});

const BAD = {
  "no object": null, "no id": { ...tree(), id: undefined }, "an id with signs": { ...tree(), id: "a/b" }, "no list": { ...tree(), messages: {} },
  "an end that is none": { ...tree(), head: 6 }, "half an end": { ...tree(), head: 0.5 },
  "a message that is none": { ...tree(), messages: [null], head: 0 }, "another role": { ...tree(), messages: [{ role: "system", content: "", parent: -1 }] },
  "no text": { ...tree(), messages: [{ role: "user", content: 3, parent: -1 }] },
  "a circle": { ...tree(), messages: [{ role: "user", content: "", parent: 0 }] },
};

for (const [name, value] of Object.entries(BAD)) test(`refused: ${name}`, () => assert.throws(() => readConversation(value), /conversation|message/));

test("kept, listed, removed", () => {
  const storage = new Storage();
  const store = new Store(storage, "/");
  const other = new Store(storage, "/other/"); // another server behind the same name
  const newer = { ...tree("newer"), updated: 9, title: "given" };
  store.save(tree("older"));
  store.save(newer);
  assert.deepEqual(store.list(), [{ id: "newer", title: "given", updated: 9 }, { id: "older", title: "Q", updated: 5 }]);
  assert.deepEqual(store.load("newer"), newer);
  assert.deepEqual([store.load("none"), other.load("newer"), other.list()], [undefined, undefined, []]);
  store.remove("newer");
  assert.deepEqual(store.list().map(({ id }) => id), ["older"]);
  assert.deepEqual([...storage.items.keys()].map((name) => [store.idOf(name), other.idOf(name)]), [["older", undefined]]);
  assert.equal(store.idOf(null), undefined); // as an event has it when all is cleared
});

test("what cannot be read stays where it is", () => {
  const storage = new Storage();
  const store = new Store(storage, "/");
  storage.setItem("moebius:/:chat:bad", "{");
  storage.setItem("moebius:/:settings", "{");
  assert.deepEqual([store.load("bad"), store.list(), store.read("settings", 7)], [undefined, [], 7]);
  assert.equal(storage.getItem("moebius:/:chat:bad"), "{");
});

test("a full storage is an error, and what was there stays", () => {
  const store = new Store(new Storage(2000), "/");
  store.save(tree());
  const large = tree();
  large.messages[0].content = "x".repeat(2000);
  assert.throws(() => store.save(large), /Quota/);
  assert.deepEqual(store.load("x"), tree());
});

test("files", () => {
  const [from, to] = [new Store(new Storage(), "/"), new Store(new Storage(), "/")];
  from.save(tree("a"));
  from.save(tree("b"));
  to.save({ ...tree("a"), title: "mine" });
  const never = () => assert.fail("no new id is needed");
  assert.equal(to.take(from.exported(), () => "c"), 2);
  assert.deepEqual(to.list().map(({ id, title }) => [id, title]).sort(), [["a", "mine"], ["b", "Q"], ["c", "Q"]]);
  assert.equal(from.take(from.exported(), never), 0); // again: nothing is doubled
  assert.equal(new Store(new Storage(), "/").take(from.exported(), never), 2);
});

test("of a file with a fault nothing is taken", () => {
  const store = new Store(new Storage(), "/");
  const file = { format: "moebius-conversations", conversations: [tree("a"), BAD["a circle"]] };
  const bad = ["", "{}", "[]", "null", JSON.stringify({ ...file, format: "x" }), JSON.stringify(file)];
  for (const text of bad) assert.throws(() => store.take(text, () => "n"), Error, text);
  assert.deepEqual(store.list(), []);
});
