"""The page at the server's root: who gets it, with which headers; and its client, which talks to the server under node."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serving import FLAGS, Server, wait_until

PAGE = Path(__file__).resolve().parents[2] / "src/server/web"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
NODE = shutil.which("node")


def path_of(file):
    return "/index.html" if file.name == "index.html" else "/web/" + file.name


def is_page(reply):
    return reply.status == 200 and reply.body == (PAGE / "index.html").read_bytes()


def test_who_gets_it(server):
    assert is_page(server.get("/", BROWSER)) and is_page(server.get("/", {"Accept": "TEXT/HTML"})) and is_page(server.get("/index.html"))
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        assert server.get("/", accept).body == b"Ollama is running"
    head = server.request("HEAD", "/", headers=BROWSER)
    assert (head.status, head.body) == (200, b"") and head.headers["content-type"] == TYPES[".html"]
    assert int(head.headers["content-length"]) == (PAGE / "index.html").stat().st_size


@pytest.mark.parametrize("file", sorted(PAGE.iterdir()), ids=lambda file: file.name)
def test_files(server, file):
    """Every file of the folder is in the program as it is, with headers that let it do no more than it has to."""
    reply = server.get(path_of(file))
    assert reply.status == 200 and reply.body == file.read_bytes()
    assert reply.headers["content-type"] == TYPES[file.suffix]
    assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["cache-control"] == "no-cache"
    assert reply.headers["vary"] == "Accept" and reply.headers["referrer-policy"] == "no-referrer"
    rules = dict(rule.split(" ", 1) for rule in reply.headers["content-security-policy"].split("; "))
    assert {rules.pop(name) for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules) == {"script-src", "style-src", "img-src", "connect-src"} and set(rules.values()) == {"'self'"}


def test_what_it_asks_for():
    """All of it is there, by relative paths: the page may be below a path, and asks nobody else."""
    html = (PAGE / "index.html").read_text()
    asked = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert asked and all((PAGE / name.removeprefix("web/")).is_file() and name.startswith("web/") for name in asked), asked
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", html)  # the policy would forbid it
    for path in PAGE.glob("*.js"):
        text = path.read_text()
        for name in re.findall(r'^import .* from "([^"]*)";', text, re.M):
            assert name.startswith("./") and (PAGE / name).is_file(), (path, name)
        assert not re.search(r'"/|fetch\("', text), path


def test_elements_are_there():
    """Each element that a script asks for by its id."""
    ids = set(re.findall(r'\bid="([^"]*)"', (PAGE / "index.html").read_text()))
    for path in PAGE.glob("*.js"):
        for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text()):
            assert name in ids, (path.name, name)


def test_kept_by_the_browser(server):
    first = server.get("/web/app.js")
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{16}"', tag)
    for value in (tag, "W/" + tag, f'"other", {tag}', "*"):
        reply = server.get("/web/app.js", {"If-None-Match": value})
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", tag)
    for value in ('"other"', "", server.get("/web/chat.js").headers["etag"]):
        assert server.get("/web/app.js", {"If-None-Match": value}).body == first.body


def test_other_paths(server):
    for path in ("/web/", "/web/none.js", "/web/index.html", "/web/../app.js", "/web/app.js/", "/web/%00", "/favicon.ico", "/index.htm"):
        reply = server.get(path, BROWSER)
        assert reply.status == 404 and "there is nothing at /" in reply.error["message"], path
    for path in ("/", "/index.html", "/web/app.js"):
        assert server.post(path, {}).status == 405


def test_left_out(start, model):
    server = start(model, *FLAGS, "--no-webui")
    assert server.get("/", BROWSER).body == b"Ollama is running"
    for path in ("/index.html", "/web/app.js"):
        reply = server.get(path, BROWSER)
        assert (reply.status, reply.error["message"]) == (404, f"there is nothing at {path}")
    assert server.stop() == 0


def test_needs_no_key(start, model):
    """What it asks for does."""
    server = start(model, *FLAGS, "--api-key", "sesame")
    assert is_page(server.get("/", BROWSER)) and server.get("/web/app.js").status == server.get("/health").status == 200
    for path in ("/v1/models", "/props"):
        assert server.get(path).status == 401
    assert server.stop() == 0


def test_while_it_loads(slow_model, tmp_path):
    server = Server(slow_model, *FLAGS, folder=tmp_path, wait=False)
    try:
        assert is_page(server.get("/", BROWSER)) and server.get("/web/app.js").status == 200
        assert server.get("/health").json == {"status": "loading"}
    finally:
        server.process.kill()
        server.process.wait()


def test_what_it_reads(server, model):
    """The fields that the page takes from the server's answers, and what it says a request takes by itself."""
    served = server.get("/v1/models").json["data"][0]
    assert (served["chat"], served["fim"], served["max_model_len"]) == (True, True, 2048)
    assert server.get("/props").json["openai_defaults"] == {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0}
    assert "thinking" not in server.post("/api/show", {"model": served["id"]}).json["capabilities"]


def test_defaults_of_the_model(start, model, tmp_path):
    for path in model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "top_p": 0.95}))
    server = start(tmp_path, *FLAGS)
    assert server.get("/props").json["openai_defaults"] == pytest.approx({"temperature": 0.3, "top_p": 0.95, "min_p": 0.0, "top_k": 0})
    assert server.stop() == 0


LIVE = """
import { follow, newAnswer } from "./answer.js";
import { Client } from "./client.js";
import { chatRequest, completionRequest } from "./request.js";

const client = new Client(process.argv[2]);
const { id } = (await client.get("v1/models")).data[0];
const settings = { temperature: "0", max_tokens: "12", seed: "1" };
const ask = async (path, body, signal, onChange = () => {}) => {
  const answer = newAnswer();
  await follow(answer, client.stream(path, body, signal), onChange);
  return answer;
};
const messages = [{ role: "user", content: "the é" }];
const abort = new AbortController();
console.log(JSON.stringify({
  chat: await ask("v1/chat/completions", chatRequest(id, messages, "in", settings)),
  hole: await ask("v1/completions", completionRequest(id, "the ", " of", settings)),
  refused: await ask("v1/chat/completions", chatRequest(id, messages, "", { temperature: "-1" })),
  stopped: await ask("v1/chat/completions", { ...chatRequest(id, messages, "", {}), ignore_eos: true }, abort.signal, () => abort.abort()),
}));
"""


@pytest.mark.skipif(not NODE, reason="no node: the page's client is not run (Debian: nodejs)")
def test_its_client(server, tmp_path):
    """Answers are those that the same requests get elsewhere, and a stopped one gives its place back."""
    shutil.copytree(PAGE, tmp_path / "page")
    (tmp_path / "page/package.json").write_text('{"type": "module"}')
    (tmp_path / "page/live.js").write_text(LIVE)
    done = subprocess.run([NODE, "live.js", server.url + "/"], cwd=tmp_path / "page", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    messages = [{"role": "system", "content": "in"}, {"role": "user", "content": "the é"}]
    chat = server.chat(messages, temperature=0, max_tokens=12)
    hole = server.complete("the ", suffix=" of", temperature=0, max_tokens=12)
    for answer, whole, text in ((said["chat"], chat, chat["choices"][0]["message"]["content"]), (said["hole"], hole, hole["choices"][0]["text"])):
        assert (answer["content"], answer["state"], answer["finish"]) == (text, "done", whole["choices"][0]["finish_reason"])
        assert answer["timings"]["tokens"] == whole["usage"]["completion_tokens"]
        assert answer["timings"]["prompt"] == whole["usage"]["prompt_tokens"]
        assert answer["timings"]["perSecond"] > 0 and answer["firstMs"] > 0
    assert said["refused"]["state"] == "failed" and "temperature" in said["refused"]["error"], said["refused"]
    assert said["stopped"]["state"] == "stopped" and server.becomes_idle()
