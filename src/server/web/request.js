/* What is sent: the fields of a request, of what was typed. */

const NUMBERS = {
  temperature: "a number",
  top_p: "a number",
  max_tokens: "a whole number",
  seed: "a whole number",
};

/* Settings are texts; an empty one leaves the choice to the server, which also judges what is out of range. */
function numbersOf(settings) {
  const fields = {};
  for (const [name, expected] of Object.entries(NUMBERS)) {
    const text = (settings[name] ?? "").trim();
    if (text === "") continue;
    const value = Number(text);
    const good = expected === "a number" ? Number.isFinite(value) : Number.isSafeInteger(value);
    if (!good) throw new Error(`${name}: expected ${expected}, found "${text}"`);
    fields[name] = value;
  }
  return fields;
}

/* Timings come with every piece, so that an answer that is stopped has them, too. */
function common(model, settings) {
  return { model, stream: true, timings_per_token: true, ...numbersOf(settings) };
}

/* `messages`: those before the answer, in order. Answers of which nothing came are left out. */
export function chatRequest(model, messages, system, settings) {
  const sent = messages
    .filter(({ role, content }) => role !== "assistant" || content)
    .map(({ role, content }) => ({ role, content }));
  if (system.trim()) sent.unshift({ role: "system", content: system });
  const body = { ...common(model, settings), messages: sent };
  if (settings.thinking) body.chat_template_kwargs = { thinking: settings.thinking === "on" };
  return body;
}

export const COMPLETION_TOKENS = 128; // the server's own default is OpenAI's 16

export function completionRequest(model, prefix, suffix, settings) {
  const body = { max_tokens: COMPLETION_TOKENS, ...common(model, settings), prompt: prefix };
  if (suffix) body.suffix = suffix;
  return body;
}
