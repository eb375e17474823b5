/* Elements of the page. Text gets in as text only: nothing here or elsewhere makes markup of a string. */

import { blocksOf } from "./markdown.js";

export const byId = (id) => document.getElementById(id);

/* Properties are the element's; attributes where a name has a dash or is "role". */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export function button(label, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, label);
}

/* Pages by plain http from another machine have no navigator.clipboard. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", { value: text, className: "offscreen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not let this page copy");
}

export function copyButton(textOf) {
  const made = button("Copy", async () => {
    try {
      await copyText(textOf());
      made.textContent = "Copied";
    } catch (error) {
      made.textContent = error.message;
    }
    setTimeout(() => (made.textContent = "Copy"), 1500);
  });
  return made;
}

function codeBlock(text, language) {
  const head = element("div", { className: "code-head" }, element("span", {}, language), copyButton(() => text));
  return element("div", { className: "code" }, head, element("pre", { tabIndex: 0 }, element("code", {}, text)));
}

function toDom(node) {
  if (typeof node === "string") return node;
  const { tag, attributes, children } = node;
  if (tag === "pre") return codeBlock(children[0], attributes.language);
  return element(tag, attributes, ...children.map(toDom));
}

/* Shows markdown in `place`. Of what was shown before, the blocks that are still the same stay as they are. */
export function showMarkdown(place, text) {
  const blocks = blocksOf(text);
  blocks.forEach((block, at) => {
    const shown = place.children[at];
    if (shown?.source === block.source) return;
    const made = toDom(block.node());
    made.source = block.source;
    if (shown) shown.replaceWith(made);
    else place.append(made);
  });
  while (place.children.length > blocks.length) place.lastElementChild.remove();
}

/* A file for the user to keep. */
export function download(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

/* At most once in `ms`, the last time included; `now()` does at once what is due. */
export function sparingly(ms, work) {
  let timer;
  const now = () => {
    clearTimeout(timer);
    timer = undefined;
    work();
  };
  const soon = () => (timer ??= setTimeout(now, ms));
  return { soon, now };
}
