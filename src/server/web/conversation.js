/* A conversation is a tree, so that nothing is lost: a question that is edited, and an answer that is asked for again, stand
 * beside what was there before.
 *
 *   {id, title, updated, system, head, messages: [{role, parent, content, ...}]}
 *
 * A message is known by its place in the list; `parent` is the one before it (-1: none), `head` the last one of the branch that
 * is shown. Answers have more (answer.js). */

export function newConversation(id, now, system = "") {
  return { id, title: "", updated: now, system, head: -1, messages: [] };
}

/* The places of the branch's messages, the first one first. */
export function pathOf({ messages, head }) {
  const path = [];
  for (let at = head; at >= 0; at = messages[at].parent) path.push(at);
  return path.reverse();
}

/* Puts `message` behind `parent`, where the branch then ends. */
export function append(conversation, parent, message) {
  conversation.head = conversation.messages.push({ ...message, parent }) - 1;
  return conversation.messages[conversation.head];
}

/* The messages that stand at the same place, this one among them. */
export function siblingsOf({ messages }, at) {
  const { parent } = messages[at];
  return messages.flatMap((message, place) => (message.parent === parent ? [place] : []));
}

/* Shows the branch through `at` that has the newest end. */
export function select(conversation, at) {
  const { messages } = conversation;
  let newest = messages.length - 1;
  while (!isBelow(messages, newest, at)) newest--;
  conversation.head = newest;
}

function isBelow(messages, place, ancestor) {
  while (place > ancestor) place = messages[place].parent;
  return place === ancestor;
}

export function titleOf({ title, messages }) {
  const first = messages.find(({ role }) => role === "user");
  const line = title || (first?.content.trim().split("\n")[0].trim() ?? "");
  return line.length > 60 ? line.slice(0, 59).trimEnd() + "…" : line || "New chat";
}

/* --- from a file, or from what was stored: only what is known is taken over --- */

const STATES = ["done", "stopped", "failed", "cut"];
const KNOWN = { reasoning: "string", error: "string", finish: "string", firstMs: "number" }; // of an answer
const TIMINGS = ["prompt", "cached", "tokens", "perSecond"];

const textOf = (value) => (typeof value === "string" ? value : "");

function picked(value, names, isGood) {
  const entries = names.map((name) => [name, value?.[name]]);
  return Object.fromEntries(entries.filter(([name, given]) => isGood(given, name)));
}

function answerOf(value) {
  const known = picked(value, Object.keys(KNOWN), (given, name) => typeof given === KNOWN[name]);
  const timings = picked(value.timings, TIMINGS, Number.isFinite);
  const state = STATES.includes(value.state) ? value.state : "cut"; // it was running when the page was left
  return { reasoning: "", ...known, state, ...(Object.keys(timings).length === TIMINGS.length && { timings }) };
}

function messageOf(value, place) {
  const { role, parent, content } = value ?? {};
  const refuse = (why) => {
    throw new Error(`message ${place}: ${why}`);
  };
  if (role !== "user" && role !== "assistant") refuse("neither a user's nor an assistant's");
  if (typeof content !== "string") refuse("its content is no text");
  if (!Number.isInteger(parent) || parent < -1 || parent >= place) refuse("it follows none before it");
  return { role, content, ...(role === "assistant" && answerOf(value)), parent };
}

/* A conversation made of any value; throws with what is wrong with it. */
export function readConversation(value) {
  const { id, title, updated, system, head } = value ?? {};
  if (!/^[\w-]{1,64}$/.test(textOf(id))) throw new Error("a conversation has no id");
  if (!Array.isArray(value.messages)) throw new Error(`conversation ${id}: no list of messages`);
  const messages = value.messages.map(messageOf);
  if (!Number.isInteger(head) || head < -1 || head >= messages.length) throw new Error(`conversation ${id}: it ends nowhere`);
  const when = Number.isFinite(updated) ? updated : 0;
  return { id, title: textOf(title), updated: when, system: textOf(system), head, messages };
}
