/* One message as it is shown. */

import { statsText } from "./answer.js";
import { siblingsOf } from "./conversation.js";
import { button, copyButton, element, showMarkdown } from "./dom.js";

/* Folded: who opens it keeps it open. */
function thoughtsView() {
  const text = element("div", { className: "thoughts-text" });
  const label = element("summary");
  const view = element("details", { className: "thoughts", hidden: true }, label, text);
  const update = ({ reasoning, content, state }) => {
    view.hidden = !reasoning;
    label.textContent = state === "running" && !content ? "Thinking…" : "Thoughts";
    text.textContent = reasoning;
  };
  return { view, update };
}

/* ‹ 2/3 ›, where there are several at the same place. */
function pager(conversation, at, show) {
  const all = siblingsOf(conversation, at);
  const here = all.indexOf(at);
  if (all.length === 1) return "";
  const step = (label, name, to) => button(label, () => show(all[to]), { "aria-label": name, disabled: !(to in all) });
  const [back, on] = [step("‹", "Version before", here - 1), step("›", "Next version", here + 1)];
  return element("span", { className: "pager" }, back, `${here + 1}/${all.length} `, on);
}

/* `actions`: {edit(at, text), show(at)}. */
function questionView(conversation, at, actions) {
  const { content } = conversation.messages[at];
  const body = element("div", { className: "body plain" }, content);
  const foot = element("div", { className: "foot" });
  const normal = () => foot.replaceChildren(button("Edit", edit), copyButton(() => content), pager(conversation, at, actions.show));
  function edit() {
    const area = element("textarea", { value: content, "aria-label": "the question, to be edited" });
    const leave = () => (body.replaceChildren(content), normal());
    area.rows = Math.min(20, content.split("\n").length + 1);
    area.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      leave();
    };
    body.replaceChildren(area);
    foot.replaceChildren(button("Ask again", () => actions.edit(at, area.value)), button("Cancel", leave));
    area.focus();
  }
  normal();
  return { view: element("article", { className: "question", "aria-label": "You" }, body, foot), update() {} };
}

/* `actions`: {again(at), show(at)}. */
function answerView(conversation, at, actions) {
  const message = conversation.messages[at];
  const thoughts = thoughtsView();
  const body = element("div", { className: "body" });
  const error = element("p", { className: "error", role: "alert", hidden: true });
  const stats = element("span", { className: "stats" });
  const tools = element("span", { className: "tools" });
  const foot = element("div", { className: "foot" }, tools, stats);
  let state;
  const update = () => {
    thoughts.update(message);
    showMarkdown(body, message.content);
    body.classList.toggle("waiting", message.state === "running");
    error.hidden = !message.error;
    error.textContent = message.error ?? "";
    stats.textContent = statsText(message);
    if (state === message.state) return; // buttons stay while one points at them
    state = message.state;
    const again = button("Regenerate", () => actions.again(at));
    const rest = [again, copyButton(() => message.content), pager(conversation, at, actions.show)];
    tools.replaceChildren(...(state === "running" ? [] : rest));
  };
  update();
  const view = element("article", { className: "answer", "aria-label": "Answer" }, thoughts.view, body, error, foot);
  return { view, update };
}

/* {view, update()} */
export function messageView(conversation, at, actions) {
  const make = conversation.messages[at].role === "user" ? questionView : answerView;
  return make(conversation, at, actions);
}
