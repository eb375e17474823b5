/* Markdown as models write it -> nodes (inline.js). A text is cut into blocks first, and a block's source says all that is shown
 * of it: so while an answer grows, only its last block is made anew. */

import { inline, node } from "./inline.js";

const DEPTH_MAX = 5; // of lists and quotes within each other
const LIST_ITEM = /^ {0,3}([-*+]|\d{1,9}[.)])([ \t]{1,4}|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *(\S*)/;
const TAB = 4; // columns

const isBlank = (line) => line.trim() === "";

function indentOf(line) {
  const [blanks] = /^[ \t]*/.exec(line);
  return blanks.replaceAll("\t", " ".repeat(TAB)).length;
}

/* The line with `columns` less of blanks before it, as far as it has them. */
function outdent(line, columns) {
  let at = 0;
  for (; columns > 0 && /[ \t]/.test(line[at] ?? ""); at++) columns -= line[at] === "\t" ? TAB : 1;
  return line.slice(at);
}

/* [whole, mark, language] of a line that opens code, or null. */
function fenceOf(line) {
  const found = FENCE.exec(line);
  return found?.[1][0] === "`" && line.slice(found[0].length - found[2].length).includes("`") ? null : found;
}

/* --- where a block ends: each takes (lines, at) and gives the line behind it, or `at` where there is no such block --- */

const closes = (line, mark) => line.trim().startsWith(mark) && line.trim().replaceAll(mark[0], "") === "";

function fenceEnd(lines, at) {
  const mark = fenceOf(lines[at])?.[1];
  if (!mark) return at;
  for (let end = at + 1; end < lines.length; end++) {
    if (closes(lines[end], mark)) return end + 1;
  }
  return lines.length; // it is still being written
}

const headingEnd = (lines, at) => (/^ {0,3}#{1,6} /.test(lines[at]) ? at + 1 : at);

const ruleEnd = (lines, at) => (/^ {0,3}([-*_])(?: *\1){2,200} *$/.test(lines[at]) ? at + 1 : at);

function quoteEnd(lines, at) {
  while (at < lines.length && /^ {0,3}>/.test(lines[at])) at++;
  return at;
}

const NESTED = 2; // columns that make a line part of an item: fewer than CommonMark asks for, as models count
const isOrdered = (item) => /\d/.test(item[1]);

/* Items and what is indented below them; blank lines only if the list goes on behind them. */
function listEnd(lines, at) {
  const first = LIST_ITEM.exec(lines[at]);
  if (!first) return at;
  const base = indentOf(lines[at]);
  let end = at + 1;
  for (let next = end; next < lines.length; next++) {
    if (isBlank(lines[next])) continue;
    const item = LIST_ITEM.exec(lines[next]);
    const isNext = () => (item ? isOrdered(item) === isOrdered(first) : next === end && isLazy(lines, next));
    if (indentOf(lines[next]) < base + NESTED && !isNext()) break;
    if (ruleEnd(lines, next) > next) break;
    end = next + 1;
  }
  return end;
}

/* A line that is not indented belongs to the item before it if nothing begins with it. */
const isLazy = (lines, at) => !KINDS.some(([, end]) => end !== listEnd && end(lines, at) > at);

/* Cells of a row of a table. */
function cellsOf(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function tableEnd(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return at;
  const rule = cellsOf(lines[at + 1]);
  if (!rule.every((cell) => /^:?-+:?$/.test(cell)) || rule.length !== cellsOf(lines[at]).length) return at;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  return end;
}

/* --- what is shown of a block: each takes (lines, depth) --- */

function fence(lines) {
  const [, mark, language] = fenceOf(lines[0]);
  const isClosed = lines.length > 1 && closes(lines.at(-1), mark);
  const content = lines.slice(1, isClosed ? -1 : undefined).map((line) => outdent(line, indentOf(lines[0])));
  return node("pre", [content.join("\n")], { language });
}

function heading(lines) {
  const [, marks, text] = /^ *(#+) +(.*)$/.exec(lines[0]);
  return node("h" + marks.length, inline(text.replace(/ #+ *$/, "")));
}

const rule = () => node("hr", []);

function quote(lines, depth) {
  return node("blockquote", nodesOf(lines.map((line) => line.replace(/^ {0,3}> ?/, "")), depth + 1));
}

/* Each item's lines, without the mark and the room that it takes. */
function itemsOf(lines) {
  const items = [];
  let width = 0;
  for (const line of lines) {
    const mark = indentOf(line) < indentOf(lines[0]) + NESTED && LIST_ITEM.exec(line);
    if (mark) {
      width = mark[0].length;
      items.push([line.slice(width)]);
    } else {
      items.at(-1).push(outdent(line, width));
    }
  }
  return items;
}

/* An item of one paragraph needs no room around it. */
function itemNode(lines, depth) {
  const children = nodesOf(lines, depth + 1);
  const [first] = children;
  return node("li", first?.tag === "p" ? [...first.children, ...children.slice(1)] : children);
}

function list(lines, depth) {
  const number = /^ *(\d+)/.exec(lines[0])?.[1];
  const children = itemsOf(lines).map((item) => itemNode(item, depth));
  return number === undefined ? node("ul", children) : node("ol", children, { start: number });
}

function table(lines) {
  const row = (line, tag) => node("tr", cellsOf(line).map((cell) => node(tag, inline(cell))));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return node("table", [node("thead", [row(lines[0], "th")]), node("tbody", body)]);
}

const paragraph = (lines) => node("p", inline(lines.join("\n").trim()));

const KINDS = [
  [fence, fenceEnd],
  [heading, headingEnd],
  [rule, ruleEnd],
  [quote, quoteEnd],
  [list, listEnd],
  [table, tableEnd],
];

function blockAt(lines, at) {
  for (const [show, endOf] of KINDS) {
    const end = endOf(lines, at);
    if (end > at) return { show, end };
  }
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !KINDS.some(([, endOf]) => endOf(lines, end) > end)) end++;
  return { show: paragraph, end };
}

function cut(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const { show, end } = blockAt(lines, at);
    blocks.push({ show, lines: lines.slice(at, end) });
    at = end;
  }
  return blocks;
}

function nodesOf(lines, depth) {
  if (depth > DEPTH_MAX) return [paragraph(lines)];
  return cut(lines).map(({ show, lines: own }) => show(own, depth));
}

/* [{source, node()}]: `node()` makes what is shown, and depends on the source alone. Answers may begin with a blank. */
export function blocksOf(text) {
  const lines = text.trimStart().split(/\r?\n/);
  return cut(lines).map(({ show, lines: own }) => ({ source: own.join("\n"), node: () => show(own, 0) }));
}
