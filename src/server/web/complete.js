/* The tab for texts that go on, and for holes in them. */

import { follow, newAnswer, statsText } from "./answer.js";
import { byId, copyButton } from "./dom.js";
import { completionRequest } from "./request.js";

export class Completion {
  constructor({ client, store, settings, report, failed }) {
    Object.assign(this, { client, store, settings, report, failed });
    this.prefix = byId("prefix");
    this.suffix = byId("suffix");
    this.middle = byId("middle");
    this.abort = null; // while it runs
    const kept = store.read("completion", {});
    for (const name of ["prefix", "suffix", "middle"]) {
      this[name].value = kept[name] ?? "";
      this[name].oninput = () => this.keep();
    }
    this.listen();
  }

  listen() {
    byId("completer").onsubmit = (event) => {
      event.preventDefault();
      if (this.abort) this.stop();
      else this.run();
    };
    byId("completer").onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !this.abort) this.run();
    };
    byId("take").onclick = () => {
      this.prefix.value += this.middle.value;
      this.middle.value = "";
      this.keep();
    };
    byId("take").after(copyButton(() => this.prefix.value + this.middle.value + this.suffix.value));
    addEventListener("pagehide", () => this.keep());
  }

  /* Once the server is there: {id, hasHoles}. */
  fit(model) {
    this.model = model;
    this.suffix.disabled = !model.hasHoles;
    this.suffix.placeholder = model.hasHoles ? "" : "this model does not fill in the middle";
    byId("generate").disabled = false;
  }

  keep() {
    const { prefix, suffix, middle } = this;
    try {
      this.store.write("completion", { prefix: prefix.value, suffix: suffix.value, middle: middle.value });
    } catch (error) {
      this.report(`not kept by the browser: ${error.message}`);
    }
  }

  async *request(signal) {
    const suffix = this.model.hasHoles ? this.suffix.value : "";
    yield* this.client.stream("v1/completions", completionRequest(this.model.id, this.prefix.value, suffix, this.settings.values), signal);
  }

  async run() {
    if (!this.model) return this.report("the server is not there yet");
    const answer = newAnswer();
    this.abort = new AbortController();
    this.show(answer);
    const error = await follow(answer, this.request(this.abort.signal), () => this.show(answer));
    this.abort = null;
    this.show(answer);
    this.keep();
    if (answer.state === "failed") this.failed(error);
  }

  stop() {
    this.abort?.abort();
  }

  show(answer) {
    this.middle.value = answer.content;
    byId("generate").textContent = this.abort ? "Stop" : "Generate";
    byId("completion-stats").textContent = statsText(answer);
    byId("completion-error").hidden = !answer.error;
    byId("completion-error").textContent = answer.error ?? "";
  }
}
