/* Markdown within a line: text -> [string | {tag, attributes, children}], where a string is always text: no markup gets through,
 * and links go to http or https. Patterns are bounded, so that what begins without ending costs little. */

const DEPTH_MAX = 6;

export const node = (tag, children, attributes = {}) => ({ tag, attributes, children });

/* The characters at which something may begin. */
const SPECIAL = /[\\`*_[<h]/g;

const ESCAPE = /\\([!-'*-/:-@^-`{-~])/y; // but of brackets, which are mathematics: \( \)
const BREAK = /<br ?\/?>/iy;
const STRONG = /\*\*(?=\S)((?:(?!\*\*(?!\*))[^]){0,1000}?\S)\*\*(?!\*)|(?<!\w)__(?=\S)((?:(?!__)[^]){0,1000}?\S)__(?!\w)/y;
const EMPHASIS = /\*(?=[^\s*])([^*]{0,1000}?[^\s*])\*(?!\*)|(?<!\w)_(?=[^\s_])([^_]{0,1000}?[^\s_])_(?!\w)/y;
const RUN = /([*_])\1{3,}/y;
const LINK = /\[([^[\]\n]{1,500})\]\(<?(https?:\/\/(?:[^\s()<>]|\([^\s()<>]{0,200}\)){1,2000})>?(?: +"[^"\n]{0,300}")?\)/iy;
const ADDRESS = /(?<!\w)https?:\/\/[^\s<>"`]{1,2000}/iy;

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/* The address as a browser writes it, or null if it takes it for none. Patterns above let http and https through alone. */
function webAddress(text) {
  try {
    return new URL(text).href;
  } catch {
    return null;
  }
}

function link(href, children) {
  return node("a", children, { href, title: href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

/* Each takes (text, at, depth): {node, size} or nothing. A depth of DEPTH_MAX has no spans any more. */

function escaped(text, at) {
  const found = match(ESCAPE, text, at);
  return found && { node: found[1], size: 2 };
}

/* As many backticks as it began with end it. */
function code(text, at) {
  const [ticks] = match(/`+/y, text, at);
  for (let end = text.indexOf(ticks, at + ticks.length); end >= 0; end = text.indexOf(ticks, end)) {
    const run = match(/`+/y, text, end)[0].length;
    if (run !== ticks.length) {
      end += run;
      continue;
    }
    const inner = text.slice(at + ticks.length, end);
    const content = /^ .*[^ ].* $/s.test(inner) ? inner.slice(1, -1) : inner;
    return { node: node("code", [content]), size: end + ticks.length - at };
  }
  return { node: ticks, size: ticks.length };
}

function emphasis(text, at, depth) {
  const run = match(RUN, text, at); // a line drawn of them
  if (run) return { node: run[0], size: run[0].length };
  for (const [tag, pattern] of [["strong", STRONG], ["em", EMPHASIS]]) {
    const found = match(pattern, text, at);
    if (found) return { node: node(tag, inline(found[1] ?? found[2], depth + 1)), size: found[0].length };
  }
}

function namedLink(text, at) {
  const found = match(LINK, text, at);
  const href = found && webAddress(found[2]);
  return href && { node: link(href, inline(found[1], DEPTH_MAX - 1).map(withoutLink)), size: found[0].length };
}

/* A link's text may look like another address. */
const withoutLink = (child) => (child.tag === "a" ? child.children[0] : child);

/* Marks behind an address end a sentence, and a bracket that was not opened in it belongs to the text. */
function bareLink(text, at) {
  const found = match(ADDRESS, text, at);
  if (!found) return;
  let shown = found[0].replace(/[.,;:!?'*_~\]]{1,100}$/, "");
  if (shown.endsWith(")") && !shown.includes("(")) shown = shown.slice(0, -1);
  const href = webAddress(shown);
  return href && { node: link(href, [shown]), size: shown.length };
}

function lineBreak(text, at) {
  const found = match(BREAK, text, at);
  return found && { node: "\n", size: found[0].length };
}

const SPANS = { "\\": escaped, "`": code, "*": emphasis, _: emphasis, "[": namedLink, "<": lineBreak, h: bareLink };

export function inline(text, depth = 0) {
  if (depth >= DEPTH_MAX) return [text];
  const nodes = [];
  let plain = "";
  let at = 0;
  const add = (child) => {
    if (typeof child === "string") return void (plain += child);
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(child);
  };
  while (at < text.length) {
    const special = match(SPECIAL, text, at)?.index ?? text.length;
    add(text.slice(at, special));
    const found = special < text.length && SPANS[text[special]](text, special, depth);
    if (found) add(found.node);
    else add(text.slice(special, special + 1));
    at = special + (found ? found.size : 1);
  }
  if (plain) nodes.push(plain);
  return nodes;
}
