/* An answer that grows, piece by piece: of a chat or of a completion. */

export function newAnswer() {
  return { role: "assistant", content: "", reasoning: "", state: "running" };
}

/* `waitedMs`: since the request was sent. */
export function addChunk(answer, chunk, waitedMs) {
  const choice = chunk.choices?.[0];
  const text = choice?.text ?? choice?.delta?.content ?? "";
  const thought = choice?.delta?.reasoning_content ?? "";
  answer.content += text;
  answer.reasoning += thought;
  if ((text || thought) && answer.firstMs === undefined) answer.firstMs = waitedMs;
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.timings) answer.timings = brief(chunk.timings);
}

function brief(timings) {
  return {
    prompt: timings.cache_n + timings.prompt_n,
    cached: timings.cache_n,
    tokens: timings.predicted_n,
    perSecond: timings.predicted_per_second,
  };
}

/* Takes the objects of `stream` until it ends; `onChange` after each. Never throws: what went wrong is in the answer. */
export async function follow(answer, stream, onChange, now = () => performance.now()) {
  const start = now();
  try {
    for await (const chunk of stream) {
      addChunk(answer, chunk, now() - start);
      onChange();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    if (answer.state === "failed") answer.error = error.message;
    return error;
  }
}

const rounded = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/* "12 tokens, 34.5 tokens/s, first after 0.12 s, ...": as far as it is known. */
export function statsText({ timings, firstMs, finish, state }) {
  const parts = [];
  if (timings) parts.push(`${timings.tokens} tokens`);
  if (timings?.perSecond > 0 && timings.tokens > 1) parts.push(`${rounded.format(timings.perSecond)} tokens/s`);
  if (firstMs !== undefined) parts.push(`first after ${rounded.format(firstMs / 1000)} s`);
  if (timings) parts.push(`prompt ${timings.prompt}${timings.cached ? ` (${timings.cached} cached)` : ""}`);
  if (finish === "length") parts.push("ended by the limit of tokens");
  if (state === "stopped") parts.push("stopped");
  if (state === "cut") parts.push("cut off: the page was left");
  return parts.join(" · ");
}

/* Tokens of the context that the conversation takes up to this answer, or 0. */
export function contextUsed({ timings }) {
  return timings ? timings.prompt + timings.tokens : 0;
}
