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
  const line = title || (first?.content.trim().split("\n")[0] ?? "");
  return line.length > 60 ? line.slice(0, 59).trimEnd() + "…" : line || "New chat";
}

/* --- from a file, or from what was stored: only what is known is taken over ------------------------------------------- */

const STATES = ["done", "stopped", "failed", "cut"];

const textOf = (value) => (typeof value === "string" ? value : "");
const numberOf = (value) => (Number.isFinite(value) ? value : undefined);

function timingsOf(value) {
  const names = ["prompt", "cached", "tokens", "perSecond"];
  return names.every((name) => Number.isFinite(value?.[name])) ? Object.fromEntries(names.map((name) => [name, value[name]])) : undefined;
}

function messageOf(value, place) {
  if (value?.role !== "user" && value?.role !== "assistant") throw new Error(`message ${place}: neither a user's nor an assistant's`);
  if (typeof value.content !== "string") throw new Error(`message ${place}: its content is no text`);
  const { role, parent, content } = value;
  if (!Number.isInteger(parent) || parent < -1 || parent >= place) throw new Error(`message ${place}: it answers none before it`);
  if (role === "user") return { role, parent, content };
  return {
    role, parent, content,
    reasoning: textOf(value.reasoning),
    state: STATES.includes(value.state) ? value.state : "cut", // one that was running when the page was left
    error: textOf(value.error) || undefined,
    finish: textOf(value.finish) || undefined,
    firstMs: numberOf(value.firstMs),
    timings: timingsOf(value.timings),
  };
}

/* A conversation made of any value; throws with what is wrong with it. */
export function readConversation(value) {
  if (!/^[\w-]{1,64}$/.test(value?.id)) throw new Error("a conversation has no id");
  if (!Array.isArray(value.messages)) throw new Error(`conversation ${value.id}: no list of messages`);
  const messages = value.messages.map(messageOf);
  const { head } = value;
  if (!Number.isInteger(head) || head < -1 || head >= messages.length) throw new Error(`conversation ${value.id}: it ends nowhere`);
  return { id: value.id, title: textOf(value.title), updated: numberOf(value.updated) ?? 0, system: textOf(value.system), head, messages };
}
