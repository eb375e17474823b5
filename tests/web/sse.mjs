/* Server-sent events, however their bytes are cut. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { EventParser } from "../../src/server/web/sse.js";

function parse(pieces) {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

const bytesOf = (text) => new TextEncoder().encode(text);

const CASES = [
  ["data: a\n\ndata: b\n\n", ["a", "b"]],
  ["data: é🐋\n\n", ["é🐋"]],
  ["data: a\r\n\r\ndata: b\r\rdata: c\n\n", ["a", "b", "c"]],
  [": a comment\n\ndata:no blank\n\n", ["no blank"]],
  ["data: one\r\ndata: two\r\n\r\n", ["one\ntwo"]],
  ["event: x\nid: 3\ndata: one\ndata: two\n\n", ["one\ntwo"]],
  ["data\n\n", [""]],
  ["dataset: no\n\n", []],
  ["data: never ended\n", []],
  ["\ufeffdata: a mark before\n\n", ["a mark before"]],
];

for (const [text, expected] of CASES) {
  test(`wherever it is cut: ${JSON.stringify(text)}`, () => {
    const bytes = bytesOf(text);
    assert.deepEqual(parse([...bytes].map((byte) => Uint8Array.of(byte))), expected);
    for (let i = 0; i <= bytes.length; i++) {
      for (let j = i; j <= bytes.length; j++) {
        assert.deepEqual(parse([bytes.slice(0, i), bytes.slice(i, j), bytes.slice(j)]), expected, `cut at ${i} and ${j}`);
      }
    }
  });
}
