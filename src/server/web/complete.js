/* The tab for texts that go on, and for holes in them. */

import { follow, newAnswer, statsText } from "./answer.js";
import { byId, copyButton } from "./dom.js";
import { completionRequest } from "./request.js";

export function completeTab({ client, store, settings, report, keep, failed }) {
  const fields = { prefix: byId("prefix"), middle: byId("middle"), suffix: byId("suffix") };
  const { prefix, middle, suffix } = fields;
  const kept = store.read("completion", {});
  let model; // once the server is there
  let abort = null; // while it runs

  const texts = () => Object.fromEntries(Object.entries(fields).map(([name, { value }]) => [name, value]));
  const save = () => keep(() => store.write("completion", texts()));
  const stop = () => abort?.abort();

  function show(answer) {
    middle.value = answer.content;
    byId("generate").textContent = abort ? "Stop" : "Generate";
    byId("completion-stats").textContent = statsText(answer);
    byId("completion-error").hidden = !answer.error;
    byId("completion-error").textContent = answer.error ?? "";
  }

  async function* request(signal) {
    const after = model.hasHoles ? suffix.value : "";
    const body = completionRequest(model.id, prefix.value, after, settings.values);
    yield* client.stream("v1/completions", body, signal);
  }

  async function run() {
    if (abort) return stop();
    if (!model) return report("the server is not there yet");
    const answer = newAnswer();
    abort = new AbortController();
    show(answer);
    const error = await follow(answer, request(abort.signal), () => show(answer));
    abort = null;
    show(answer);
    save();
    if (answer.state === "failed") failed(error);
  }

  function take() {
    prefix.value += middle.value;
    middle.value = "";
    save();
  }

  for (const [name, field] of Object.entries(fields)) {
    field.value = kept[name] ?? "";
    field.oninput = save;
  }
  byId("completer").onsubmit = (event) => {
    event.preventDefault();
    run();
  };
  byId("completer").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !abort) run();
  };
  byId("take").onclick = take;
  byId("take").after(copyButton(() => Object.values(texts()).join("")));
  addEventListener("pagehide", save);

  return {
    stop,
    fit(served) {
      model = served;
      suffix.disabled = !model.hasHoles;
      suffix.placeholder = model.hasHoles ? "" : "this model does not fill in the middle";
      byId("generate").disabled = false;
    },
  };
}
