/* The list of conversations, and files of them. */

import { button, byId, download, element } from "./dom.js";
import { newId } from "./store.js";

/* `actions`: {open(id), rename(id, title), remove(id), create(), changed(), report(text)}. What it returns makes the list anew. */
export function sidebar(store, actions) {
  const list = byId("conversations");

  function item({ id, title }, openId) {
    const open = button(title, () => actions.open(id), { className: "open", title });
    if (id === openId) open.setAttribute("aria-current", "true");
    const rename = () => {
      const given = prompt("Title of this conversation", title);
      if (given !== null) actions.rename(id, given.trim());
    };
    const remove = () => {
      if (confirm(`Delete “${title}”? It cannot be brought back.`)) actions.remove(id);
    };
    return element(
      "li", {}, open,
      button("✎", rename, { "aria-label": `Rename ${title}`, title: "Rename" }),
      button("✕", remove, { "aria-label": `Delete ${title}`, title: "Delete" }),
    );
  }

  async function importFrom(file) {
    try {
      const n = store.take(await file.text(), newId);
      actions.report(`${file.name}: ${n} new conversation${n === 1 ? "" : "s"}`);
    } catch (error) {
      actions.report(`${file.name}: ${error.message}`);
    }
    actions.changed();
  }

  const picker = byId("import-file");
  byId("new").onclick = actions.create;
  byId("export").onclick = () => download(`moebius-${new Date().toISOString().slice(0, 10)}.json`, store.exported());
  byId("import").onclick = () => picker.click();
  picker.onchange = async () => {
    for (const file of picker.files) await importFrom(file);
    picker.value = "";
  };
  return (openId) => list.replaceChildren(...store.list().map((entry) => item(entry, openId)));
}
