/* Markdown: what is shown of it, and that no text becomes more than text. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { blocksOf } from "../../src/server/web/markdown.js";

/* Nodes as one line; what a text says of itself as markup is escaped, as an element's text would be. */
function line(node) {
  if (typeof node === "string") return node.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const { href, start, language } = node.attributes;
  const shown = [href && `href=${href}`, start && `start=${start}`, language && `language=${language}`].filter(Boolean);
  return `<${[node.tag, ...shown].join(" ")}>${node.children.map(line).join("")}</${node.tag}>`;
}

const nodesOf = (text) => blocksOf(text).map((block) => block.node());
const shown = (text) => nodesOf(text).map(line).join("");

const CASES = [
  ["plain", "<p>plain</p>"],
  ["a\nb\n\nc", "<p>a\nb</p><p>c</p>"],
  ["# One\n###### Six ##\n#no", "<h1>One</h1><h6>Six</h6><p>#no</p>"],
  ["**a** *b* ***c*** __d__ _e_", "<p><strong>a</strong> <em>b</em> <strong><em>c</em></strong> <strong>d</strong> <em>e</em></p>"],
  ["2 * 3 * 4, snake_case_name, **open", "<p>2 * 3 * 4, snake_case_name, **open</p>"],
  ["`a*b*` and `` ` `` and `open", "<p><code>a*b*</code> and <code>`</code> and `open</p>"],
  ["\\*no\\* but \\(x_1 + y_1\\)", "<p>*no* but \\(x_1 + y_1\\)</p>"],
  ["```c\nint *a;\n\n\tb;\n```\nx", "<pre language=c>int *a;\n\n\tb;</pre><p>x</p>"],
  ["```\nstill being written", "<pre>still being written</pre>"],
  ["~~~~\n```\n~~~\n~~~~", "<pre>```\n~~~</pre>"],
  [" ```py\n def f():\n     pass\n ```", "<pre language=py> def f():\n     pass</pre>"],
  ["- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"],
  ["3. a\n\n   ```\n   x\n   ```\n4. b", "<ol start=3><li>a<pre>x</pre></li><li>b</li></ol>"],
  ["- a\nlazy\n\nnot in it", "<ul><li>a\nlazy</li></ul><p>not in it</p>"],
  ["- a\n1. b", "<ul><li>a</li></ul><ol start=1><li>b</li></ol>"],
  ["> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"],
  ["a | b\n--|:-:\n1 | `2` \\| 3", "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>2</code> | 3</td></tr></tbody></table>"],
  ["***\n- - -", "<hr></hr><hr></hr>"],
  ["see https://a.org/x_(y), (https://b.org).", "<p>see <a href=https://a.org/x_(y)>https://a.org/x_(y)</a>, (<a href=https://b.org/>https://b.org</a>).</p>"],
  ["[`a`](http://b.org \"t\") ![i](http://c.org)", "<p><a href=http://b.org/><code>a</code></a> !<a href=http://c.org/>i</a></p>"],
  ["[http://a.org](http://b.org)", "<p><a href=http://b.org/>http://a.org</a></p>"],
  ["<b>x</b> &amp; <br> y", "<p>&lt;b>x&lt;/b> &amp;amp; \n y</p>"],
];

for (const [text, expected] of CASES) test(JSON.stringify(text), () => assert.equal(shown(text), expected));

test("links go to the web and nowhere else", () => {
  const places = ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd", "//a.org", "/x",
    "http://", "https://[", "\u0001javascript:alert(1)", "java\nscript:alert(1)"];
  for (const place of places) {
    for (const text of [`[x](${place})`, `[x](<${place}>)`, `<${place}>`, place]) assert.ok(!shown(text).includes("<a "), text);
  }
});

const TAGS = new Set("p h1 h2 h3 h4 h5 h6 strong em code pre ul ol li blockquote table thead tbody tr th td hr a".split(" "));

function checkNode(node) {
  if (typeof node === "string") return;
  assert.ok(TAGS.has(node.tag), node.tag);
  const known = { a: ["href", "rel", "target", "title"], ol: ["start"], pre: ["language"] }[node.tag] ?? [];
  assert.deepEqual(Object.keys(node.attributes).sort(), known);
  if (node.tag === "a") assert.match(node.attributes.href, /^https?:\/\//);
  if (node.tag === "ol") assert.match(node.attributes.start, /^\d+$/);
  node.children.forEach(checkNode);
}

/* The same on every run. */
function* textsAtRandom(n) {
  const words = ["*", "**", "_", "`", "```", "~~~", "\n", "\n\n", "    ", "\t", "- ", "1. ", "> ", "| ", "|-|", "#", "[", "](", ")", "<", ">", "\"",
    "http://a.org", "javascript:x", "<script>", "\\", "a", "b c", "é🐋", "---", "<br>", "\r\n", "onerror="];
  let seed = 1;
  for (let i = 0; i < n; i++) {
    let text = "";
    for (let left = i % 40; left >= 0; left--) {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      text += words[(seed >>> 8) % words.length];
    }
    yield text;
  }
}

test("any text gives known elements only", () => {
  for (const text of textsAtRandom(6000)) nodesOf(text).forEach(checkNode);
});

test("a block's source says all that is shown of it", () => {
  for (const text of textsAtRandom(2000)) {
    for (const block of blocksOf(text)) {
      const alone = blocksOf(block.source);
      if (block.source !== block.source.trimStart()) continue; // an answer's first blanks are not shown
      assert.deepEqual(alone.map((one) => one.node()), [block.node()], JSON.stringify([text, block.source]));
    }
  }
});

test("what never ends costs little", () => {
  const many = 30000;
  const parts = ["*", "_", "[", "`", "> ", "- ", "|", " ", "# ", "**a ", "_a ", "a_", "x\n", "- a\n", "- a\n  ```x\n", "`` ` ", "http://", "[a](http://", "(", "~~~\n", "<br"];
  for (const part of parts) nodesOf(part.repeat(many));
  for (const [begin, part] of [["```", "a"], ["[a](http://", "("], ["http://", "."], ["|a|\n|-|\n", "|"]]) nodesOf(begin + part.repeat(many) + "`");
});
