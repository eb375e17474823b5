/* The settings, which the browser keeps; an empty field leaves the choice to the server. */

import { byId } from "./dom.js";

const NAMES = ["temperature", "top_p", "max_tokens", "seed", "thinking"];

/* Shows what the server takes by itself. */
function showDefaults(model) {
  const show = (name, value) => (byId(name).placeholder = value === undefined ? "the server's" : String(value));
  show("temperature", model.defaults.temperature);
  show("top_p", model.defaults.top_p);
  show("max_tokens", "up to the context's end");
  show("seed", "random");
  byId("thinking-field").hidden = !model.canThink;
}

/* Fields and store go together; `onError(error)` where the browser cannot keep them. */
export class Settings {
  constructor(store, onError) {
    this.values = store.read("settings", {});
    for (const name of NAMES) {
      const field = byId(name);
      field.value = this.values[name] ?? "";
      field.oninput = () => {
        this.values[name] = field.value;
        try {
          store.write("settings", this.values);
        } catch (error) {
          onError(error);
        }
      };
    }
    const panel = byId("settings");
    byId("open-settings").onclick = () => panel.showModal();
    byId("close-settings").onclick = () => panel.close();
  }

  /* Once the server is there. */
  fit(model) {
    showDefaults(model);
    if (!model.canThink) this.values = { ...this.values, thinking: "" };
  }
}

/* Asks for the key until `attempt(key)` succeeds; it is kept in the browser only if the user says so. */
export function askForKey(store, reason) {
  const panel = byId("key-panel");
  const field = byId("key");
  byId("key-reason").textContent = reason;
  panel.showModal();
  field.focus();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      if (byId("keep-key").checked) store.write("key", field.value);
      else store.forget("key");
      panel.close();
      resolve(field.value);
    };
    panel.oncancel = (event) => event.preventDefault(); // nothing works without it
  });
}
