/* The settings, which the browser keeps; an empty field leaves the choice to the server. */

import { byId } from "./dom.js";

const NAMES = ["temperature", "top_p", "max_tokens", "seed", "thinking"];

/* {values, fit(model)}: `fit` once the server is there, with what it takes by itself. */
export function settingsPanel(store, keep) {
  const panel = byId("settings");
  const values = store.read("settings", {});
  for (const name of NAMES) {
    const field = byId(name);
    field.value = values[name] ?? "";
    field.oninput = () => {
      values[name] = field.value;
      keep(() => store.write("settings", values));
    };
  }
  byId("open-settings").onclick = () => panel.showModal();
  byId("close-settings").onclick = () => panel.close();
  const fit = ({ defaults, canThink }) => {
    for (const name of ["temperature", "top_p"]) byId(name).placeholder = Number(defaults[name].toPrecision(4)); // 32-bit floats
    byId("thinking-field").hidden = !canThink;
    if (!canThink) values.thinking = "";
  };
  return { values, fit };
}

/* The key that the user gives; the browser keeps it only if the user says so. */
export function askForKey(store, keep, reason) {
  const panel = byId("key-panel");
  const field = byId("key");
  byId("key-reason").textContent = reason;
  panel.showModal();
  panel.oncancel = (event) => event.preventDefault(); // nothing works without it
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      if (byId("keep-key").checked) keep(() => store.write("key", field.value));
      else store.forget("key");
      panel.close();
      resolve(field.value);
    };
  });
}
