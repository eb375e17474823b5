"""`moebius pull` against a server that plays the Hugging Face hub (tests/hub.py): what lands where, and every fault we could think of."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest
from conftest import GOLDEN, PROGRAM, Result, moebius, open_terminal, refused

from hub import LISTING, Hub, git_sha1, status

WEIGHTS = "model-00002-of-00002.safetensors"
BIG = bytes(range(256)) * 12000  # 3 MB
FILES = {
    "config.json": b'{"model_type": "deepseek_v2"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"t" * 5000,
    "tokenizer_config.json": b'{"a": 1}',
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"free",
    "README.md": b"# readme",
    "model-00001-of-00002.safetensors": b"one" * 1000,
    WEIGHTS: BIG,
    "model.safetensors.index.json": b'{"weight_map": {}}',
    # and what nobody needs here
    "modeling_deepseek.py": b"import torch",
    "pytorch_model.bin": b"b" * 2000,
    "consolidated.safetensors": b"c" * 2000,
    "original/model.safetensors": b"o" * 2000,
    "figures/a.png": b"png",
    # but these, which say how a V4 is talked to
    "encoding/encoding_dsv4.py": b"dsml_token = 1",
    "encoding/encoding.py": b"# and a V4.1",
    "encoding/README.md": b"# read me too",
}
WANTED = [name for name in FILES if name in ("encoding/encoding_dsv4.py", "encoding/encoding.py") or
          "/" not in name and not name.startswith(("modeling", "pytorch", "consol"))]
GGUF = {
    "README.md": b"# gguf",
    "lite.imatrix.gguf": b"no model",
    "Lite-Q4_K_M.gguf": b"4" * 3000,
    "Lite-Q8_0.gguf": b"8" * 6000,
    "Q6_K/Lite-Q6_K-00001-of-00002.gguf": b"6" * 2000,
    "Q6_K/Lite-Q6_K-00002-of-00002.gguf": b"7" * 1500,
}


class World:
    """A hub, an empty cache, and the program between them."""

    def __init__(self, folder):
        self.folder, self.cache, self.hubs = folder, folder / "cache", []

    def hub(self, files=FILES, **options):
        self.hubs.append(Hub(files, **options))
        return self.hubs[-1]

    def env(self, hub, **changes):
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING")) and "proxy" not in key.lower()}
        return {**env, "HOME": str(self.folder), "HF_HUB_CACHE": str(self.cache), "HF_ENDPOINT": hub.endpoint, **changes}

    def run(self, hub, *arguments, name=None, env=None, **options):
        command = [PROGRAM, "pull", name or hub.name, *map(str, arguments)]
        done = subprocess.run(command, env=self.env(hub, **(env or {})), capture_output=True, timeout=60, **options)
        return Result(command, done)

    def start(self, hub, *arguments):
        return subprocess.Popen([PROGRAM, "pull", hub.name, *arguments], env=self.env(hub), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def blobs(self, hub):
        return self.cache / ("models--" + hub.name.replace("/", "--")) / "blobs"

    def incomplete(self, hub, path):
        return self.blobs(hub) / (hub.files[path].etag + ".incomplete")

    def check(self, hub, wanted, revision="main"):
        """The layout that huggingface_hub documents, and nothing else in it."""
        repository = self.blobs(hub).parent
        snapshot = repository / "snapshots" / hub.commit
        found = sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if not path.is_dir())
        assert found == sorted(wanted)
        for path in wanted:
            link = snapshot / path
            assert os.readlink(link) == "../" * path.count("/") + f"../../blobs/{hub.files[path].etag}"
            assert link.read_bytes() == hub.files[path].data
        assert sorted(path.name for path in self.blobs(hub).iterdir()) == sorted({hub.files[path].etag for path in wanted})
        assert (repository / "refs" / revision).read_text() == hub.commit
        return snapshot


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    for hub in world.hubs:
        hub.close()


def good(result):
    assert result.code == 0 and "Sanitizer" not in result.err, str(result)
    return result


def wait_for(what):
    for _ in range(500):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("did not happen within ten seconds")


def test_what_a_model_needs_in_the_layout_of_hugging_face(world):
    hub = world.hub()
    result = good(world.run(hub))
    snapshot = world.check(hub, WANTED)
    assert result.text.strip() == str(snapshot)
    assert f"{len(WANTED)} files" in result.err and "\r" not in result.err
    assert (world.cache / ".locks/models--org--model" / f"{hub.files[WEIGHTS].etag}.lock").exists()
    # Again: nothing but the listing is asked for, and nothing is written: the cache may be read-only by now.
    hub.seen.clear()
    before = {path: path.lstat().st_mtime_ns for path in world.cache.rglob("*")}
    assert "all here already" in good(world.run(hub)).err
    assert before == {path: path.lstat().st_mtime_ns for path in world.cache.rglob("*")}
    assert [request["path"] for request in hub.seen] == ["/api/models/org/model/revision/main"]


def test_the_program_finds_what_was_pulled(world):
    files = {path.name: path.read_bytes() for path in (GOLDEN / "v2lite-tiny").iterdir() if path.name.startswith(("config", "model"))}
    hub = world.hub(files)
    env = world.env(hub)  # offline, as conftest has it: else tests/test_fetch.py
    message = refused(moebius("info", "org/model", env=env), "moebius pull org/model", "huggingface-cli")
    assert "--revision" not in message
    assert "moebius pull org/model --revision v1" in moebius("plan", "org/model", "--revision", "v1", env=env).err
    good(world.run(hub))
    assert moebius("info", "org/model", env=env).code == 0


def test_dry_run_and_json(world):
    hub = world.hub()
    plan = good(world.run(hub, "--dry-run", "--json")).json
    assert plan["dry_run"] and plan["commit"] == hub.commit and plan["bytes_received"] == 0
    assert sorted(file["path"] for file in plan["files"]) == sorted(WANTED)
    assert plan["bytes"] == sum(len(FILES[name]) for name in WANTED)
    text = good(world.run(hub, "--dry-run")).text
    assert WEIGHTS in text and "3.1 MB" in text and not world.cache.exists()
    done = good(world.run(hub, "--json")).json
    assert done["bytes_received"] == done["bytes"] and done["path"] == str(world.check(hub, WANTED))
    assert {file["path"]: file["blob"] for file in done["files"]}["config.json"] == git_sha1(FILES["config.json"])


def test_patterns(world):
    hub = world.hub()
    good(world.run(hub, "--include", "*.json", "--include", "figures/*", "--exclude", "tokenizer*"))
    world.check(hub, ["config.json", "generation_config.json", "model.safetensors.index.json", "figures/a.png"])
    refused(world.run(hub, "--include", "*.zip"), "no file is wanted", "config.json")


def test_the_same_content_twice_is_one_blob(world):
    hub = world.hub({"config.json": b"{}", "generation_config.json": b"{}", "model.safetensors": b"x" * 5000, "tokenizer.json": b""})
    good(world.run(hub))
    world.check(hub, list(hub.files))
    assert len(hub.asked("/resolve/")) == 2  # an empty file needs no request


def test_gguf_has_to_be_chosen(world):
    hub = world.hub(GGUF, name="org/lite-GGUF")
    result = world.run(hub)
    assert result.code == 2 and not world.cache.exists()
    for line in ("3.0 kB  --include 'Lite-Q4_K_M.gguf'", "6.0 kB  --include 'Lite-Q8_0.gguf'", "3.5 kB  --include 'Q6_K/Lite-Q6_K-00001-of-00002.gguf'  (2 files)"):
        assert line in result.err
    choices = world.run(hub, "--json").json["choices"]
    assert [(choice["bytes"], choice["files"]) for choice in choices] == [(3000, 1), (6000, 1), (3500, 2)]
    assert good(world.run(hub, "--include", "Q4_K_M")).text.endswith("/Lite-Q4_K_M.gguf\n")
    shards = good(world.run(hub, "--include", "*-00002-of-*"))  # one of two
    assert shards.text.endswith("/Q6_K/Lite-Q6_K-00001-of-00002.gguf\n") and shards.text.count("\n") == 1
    world.check(hub, ["Lite-Q4_K_M.gguf", "Q6_K/Lite-Q6_K-00001-of-00002.gguf", "Q6_K/Lite-Q6_K-00002-of-00002.gguf"])


def test_gguf_by_its_name(world):
    hub = world.hub(GGUF, name="org/lite-GGUF")
    assert good(world.run(hub, name="hf.co/org/lite-GGUF:q6_k")).text.endswith("/Q6_K/Lite-Q6_K-00001-of-00002.gguf\n")
    world.check(hub, ["Q6_K/Lite-Q6_K-00001-of-00002.gguf", "Q6_K/Lite-Q6_K-00002-of-00002.gguf"])
    result = world.run(hub, name="org/lite-GGUF:Q5_K_M")
    assert result.code == 2 and "--include 'Lite-Q4_K_M.gguf'" in result.err
    plain = world.hub()
    refused(world.run(plain, name="org/model:Q4_K_M"), "org/model has no GGUF file called Q4_K_M")


def test_no_weights_that_we_read(world):
    refused(world.run(world.hub({"config.json": b"{}", "pytorch_model.bin": b"x"})), "neither *.safetensors nor *.gguf", "pytorch_model.bin")


def test_the_token_goes_to_the_hub_alone(world):
    hub = world.hub()
    good(world.run(hub, env={"HF_TOKEN": " hf_secret\n"}))
    assert {request["token"] for request in hub.seen if not request["store"]} == {"Bearer hf_secret"}
    assert {request["token"] for request in hub.seen if request["store"]} == {None}
    hub.seen.clear()
    home = world.folder / "home"
    home.mkdir()
    (home / "token").write_text("hf_file\n")
    good(world.run(hub, env={"HF_HOME": str(home)}))
    assert [request["token"] for request in hub.seen] == ["Bearer hf_file"]
    refused(world.run(hub, env={"HF_TOKEN": "hf\nHost: x"}), "HF_TOKEN", "not a token")


def test_revisions(world):
    hub = world.hub()
    good(world.run(hub, "--revision", "refs/pr/1", "--include", "LICENSE"))
    world.check(hub, ["LICENSE"], revision="refs/pr/1")
    good(world.run(hub, "--revision", hub.commit, "--include", "LICENSE"))
    assert [path.name for path in (world.blobs(hub).parent / "refs").iterdir()] == ["refs"]
    hub.faults[LISTING] = [status(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id: nope")]
    refused(world.run(hub, "--revision", "nope"), "no such revision", "Invalid rev id")
    for revision in ("../x", "/x", "a/../b", "a\\b", ""):
        refused(world.run(hub, "--revision", revision), "--revision")


def test_a_cut_connection_goes_on(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["cut 1000000", "cut 500000"]
    result = good(world.run(hub))
    world.check(hub, WANTED)
    ranges = [request["range"] for request in hub.seen if request["store"] and request["path"] == "/" + WEIGHTS]
    assert ranges[0] is None and len(ranges) == 3 and all(text.startswith("bytes=") for text in ranges[1:])
    assert 0 < int(ranges[1][6:-1]) <= 1000000 and int(ranges[1][6:-1]) < int(ranges[2][6:-1]) <= 1500000
    assert result.err.count("again in 0.25 s (1 of 12)") == 2 and WEIGHTS in result.err


def test_servers_that_cannot_go_on_in_the_middle(world):
    files = {"no range": "cannot go on in the middle", "416": "another part", "other part": "another part"}
    hub = world.hub({f"{fault}.safetensors": BIG + fault.encode() for fault in files})
    hub.faults = {f"{fault}.safetensors": ["cut 1000000", fault] for fault in files}
    result = good(world.run(hub))
    world.check(hub, list(hub.files))
    for fault, words in files.items():
        assert any(fault in line and words in line for line in result.err.splitlines()), result.err


def test_wrong_bytes_are_thrown_away(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["wrong"]
    hub.faults["config.json"] = ["wrong"]
    result = good(world.run(hub))
    world.check(hub, WANTED)
    assert f"{WEIGHTS}: its SHA-256 is not" in result.err and "config.json: its SHA-1 is not" in result.err


def test_wrong_bytes_twice(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["wrong", "wrong"]
    result = world.run(hub)
    assert result.code == 1 and "is twice not the one" in result.err
    assert not world.incomplete(hub, WEIGHTS).exists() and not (world.blobs(hub) / hub.files[WEIGHTS].etag).exists()
    assert not (world.blobs(hub).parent / "snapshots").exists()  # half a model is not seen as one
    good(world.run(hub))
    world.check(hub, WANTED)


def test_more_bytes_than_listed(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["more"]
    assert "more than the file's size" in good(world.run(hub)).err
    world.check(hub, WANTED)


def test_what_python_has_left_is_gone_on_with(world):
    hub = world.hub()
    world.blobs(hub).mkdir(parents=True)
    world.incomplete(hub, WEIGHTS).write_bytes(BIG[:1234567])
    world.incomplete(hub, "tokenizer.json").write_bytes(b"?" * 100)  # another content: found out by the hash
    world.incomplete(hub, "README.md").write_bytes(b"longer than the file is" * 10)
    result = good(world.run(hub))
    world.check(hub, WANTED)
    assert hub.asked(WEIGHTS)[-1]["range"] == "bytes=1234567-"
    assert "tokenizer.json: its SHA-256 is not" in result.err


def test_all_of_it_was_there_but_the_name(world):
    hub = world.hub()
    world.blobs(hub).mkdir(parents=True)
    world.incomplete(hub, WEIGHTS).write_bytes(BIG)
    good(world.run(hub))
    world.check(hub, WANTED)
    assert not hub.asked(WEIGHTS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_in_the_middle(world, number):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["slow 1000000"]
    process = world.start(hub)
    wait_for(lambda: world.incomplete(hub, WEIGHTS).exists() and world.incomplete(hub, WEIGHTS).stat().st_size > 200000)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    if number == signal.SIGINT:
        assert process.returncode == 130 and b"stopped: 0.0" in err and b"goes on" in err and err.count(b"\n") == 1
    there = world.incomplete(hub, WEIGHTS).stat().st_size
    assert 200000 < there < len(BIG) and not (world.blobs(hub).parent / "snapshots").exists()
    good(world.run(hub))
    world.check(hub, WANTED)
    assert hub.asked(WEIGHTS)[-1]["range"] == f"bytes={there}-"


def test_two_at_once(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["slow 6000000"]
    processes = [world.start(hub) for _ in range(2)]
    texts = [process.communicate(timeout=30)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    world.check(hub, WANTED)
    assert len([request for request in hub.asked(WEIGHTS) if request["store"]]) == 1
    assert sum("another process downloads it" in text for text in texts) >= 1


def test_a_connection_that_says_nothing(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["stall 1000"]
    assert "not a byte for 1 s" in good(world.run(hub, "--timeout", 1)).err
    world.check(hub, WANTED)


def test_failures_that_pass(world):
    hub = world.hub()
    hub.faults = {LISTING: [status(503)], WEIGHTS: [status(500)], "config.json": [status(429, Retry_After="1")],
                  "tokenizer.json": [status(403)]}  # at the store: an address that has become too old
    start = time.monotonic()
    result = good(world.run(hub))
    assert time.monotonic() - start >= 1
    for words in ("answers 503", "answers 500", "answers 429 (too many requests), asks for a pause of 1 s; again in 1 s", "answers 403"):
        assert words in result.err
    assert "secret" not in result.err
    world.check(hub, WANTED)


def test_failures_that_stay(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = [status(500)] * 3
    result = world.run(hub, "--retries", 1)
    assert result.code == 1 and WEIGHTS in result.err.splitlines()[-1] and "answers 500" in result.err
    hub.faults[WEIGHTS] = [status(404)]
    refused(world.run(hub), WEIGHTS, "404")
    hub.faults[LISTING] = [status(429, Retry_After="86400")]
    refused(world.run(hub), "86400 s")


def test_who_may_not(world):
    hub = world.hub()
    gated = {"X_Error_Code": "GatedRepo", "X_Error_Message": "Access to model org/model is restricted"}
    hub.faults[LISTING] = [status(401, X_Error_Code="RepoNotFound"), status(401), status(403, **gated), status(401, **gated)]
    refused(world.run(hub), "does not exist, or is private", "/settings/tokens", "HF_TOKEN")
    refused(world.run(hub, env={"HF_TOKEN": "hf_x"}), "does not exist", "the token of HF_TOKEN")
    refused(world.run(hub, env={"HF_TOKEN": "hf_x"}), f"accept its conditions at {hub.endpoint}/org/model", "the token of HF_TOKEN")
    refused(world.run(hub), "accept its conditions", "/settings/tokens")
    hub.name = "org/other"
    hub.faults[LISTING] = [status(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")]
    refused(world.run(hub), "org/other", "404", "Repository not found")


def test_the_repository_changes_meanwhile(world):
    hub = world.hub()
    hub.faults["302 " + WEIGHTS] = ["f" * 64]
    assert "has changed at the hub meanwhile" in good(world.run(hub)).err
    world.check(hub, WANTED)
    assert len(hub.asked("/api/")) == 2
    # And between two runs: half of the old file is not part of the new one.
    world.incomplete(hub, WEIGHTS).write_bytes(b"old half")
    hub.change({**FILES, WEIGHTS: BIG[::-1]})
    hub.seen.clear()
    good(world.run(hub))
    assert all(request["range"] is None for request in hub.seen)
    assert (world.blobs(hub).parent / "refs/main").read_text() == hub.commit


def test_redirects_that_are_refused(world):
    hub = world.hub()
    for target, words in (("file:///etc/passwd", "refused"), ("ftp://localhost/x?signature=secret", "refused"), (f"{hub.endpoint}/org/model/resolve/main/{WEIGHTS}", "circles")):
        hub.faults["302 " + WEIGHTS] = [target] * 20
        assert "secret" not in refused(world.run(hub), WEIGHTS, words)


def sibling(name, **changes):
    return {"rfilename": name, "size": 2, "blobId": git_sha1(b"{}"), **changes}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//x", "a\\x", "a\0b", "./x", "x/", "", "a\nb", "\x1b[2J", "n" * 300, "d/" * 600 + "x"])
def test_names_that_leave_the_folder(world, name):
    hub = world.hub()
    siblings = [sibling("config.json"), sibling("model.safetensors"), sibling(name)]
    hub.faults[LISTING] = [json.dumps({"sha": "0" * 40, "siblings": siblings}).encode()]
    refused(world.run(hub), "a file's name")
    assert not world.cache.exists()


@pytest.mark.parametrize("listing, words", [
    (b"", "not valid JSON"),
    (b"<html>log in to this network</html>", "not valid JSON"),
    ({}, '"sha"'),
    ({"sha": "../../../../etc/" + "x" * 24, "siblings": []}, '"sha"'),
    ({"sha": "0" * 40, "siblings": 3}, '"siblings"'),
    ({"sha": "0" * 40, "siblings": [{}]}, "rfilename"),
    ({"sha": "0" * 40, "siblings": [sibling("a", size=-1)]}, '"size"'),
    ({"sha": "0" * 40, "siblings": [sibling("a", blobId="../../x")]}, "blobId"),
    ({"sha": "0" * 40, "siblings": [sibling("a", lfs={"sha256": "x" * 64, "size": 5})]}, "sha256"),
    ({"sha": "0" * 40, "siblings": [sibling("a"), sibling("a")]}, "twice"),
    ({"sha": "0" * 40, "siblings": [sibling(f"f{i}") for i in range(20001)]}, "20001 files"),
    (b"[" + b" " * (33 << 20) + b"]", "32 MiB"),
    ({"sha": "0" * 40, "siblings": [sibling("model.safetensors", size=10**15)]}, "nothing was downloaded"),
], ids=str(list(range(13))).strip("[]").split(", "))
def test_listings_that_are_none(world, listing, words):
    hub = world.hub()
    hub.faults[LISTING] = [listing if isinstance(listing, bytes) else json.dumps(listing).encode()]
    refused(world.run(hub), words)
    assert not world.cache.exists()


def test_a_disk_that_takes_no_more(world):
    hub = world.hub()
    limited = ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", PROGRAM, "pull", hub.name]
    done = subprocess.run(limited, env=world.env(hub), capture_output=True, timeout=30)
    refused(Result(limited, done), "cannot write", "File too large", "goes on")
    assert world.incomplete(hub, WEIGHTS).stat().st_size > 100000
    good(world.run(hub))
    world.check(hub, WANTED)


def test_a_cache_that_cannot_be_written(world):
    hub = world.hub()
    world.cache.write_text("a file")
    refused(world.run(hub), "cannot create", str(world.cache), "HF_HUB_CACHE")


def test_no_hub_there(world):
    hub = world.hub()
    hub.close()
    world.hubs.clear()
    result = world.run(hub, "--retries", 1)
    assert result.code == 1 and "127.0.0.1" in result.err.splitlines()[-1] and "again in" in result.err
    refused(world.run(hub, env={"HF_ENDPOINT": "hub.example"}), "HF_ENDPOINT=hub.example", "https://")
    refused(world.run(hub, env={"HF_HUB_OFFLINE": "1"}), "HF_HUB_OFFLINE")


def test_a_handshake_that_is_cut(world):
    """Is tried again: nothing says that it is for want of trust."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: [server.accept()[0].close() for _ in range(2)], daemon=True).start()
        endpoint = f"https://127.0.0.1:{server.getsockname()[1]}"
        result = world.run(world.hub(), "--retries", 1, env={"HF_ENDPOINT": endpoint})
    assert result.code == 1 and "again in" in result.err and "trust" not in result.err


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "a/..", "a b/c", "org/na%2e"])
def test_names_of_models(world, name):
    hub = world.hub()
    hub.name = name
    refused(world.run(hub), "expected org/name")


def test_through_a_proxy(world):
    hub = world.hub()
    endpoint = f"http://hub.invalid:{hub.hub.server_port}"
    env = {"HF_ENDPOINT": endpoint, "http_proxy": hub.endpoint, "HF_TOKEN": "hf_x"}
    assert "the token is not sent" in good(world.run(hub, "--include", "LICENSE", env=env)).err
    world.check(hub, ["LICENSE"])
    assert all(request["proxied"] and request["token"] is None for request in hub.seen)


def test_tls(world):
    if not shutil.which("openssl"):
        pytest.skip("there is no program openssl to make a certificate")
    key, certificate = world.folder / "key.pem", world.folder / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out",
                    certificate, "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
                   check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    hub = world.hub(tls=context)
    refused(world.run(hub), "no trust in the connection", "SSL_CERT_FILE")
    trusted = {"SSL_CERT_FILE": str(certificate)}
    hub.faults["302 " + WEIGHTS] = [f"http://127.0.0.1:{hub.store.server_port}/{WEIGHTS}"]
    refused(world.run(hub, env=trusted), "refused, only https")
    good(world.run(hub, env=trusted))
    world.check(hub, WANTED)


def test_the_line_on_a_terminal(world):
    hub = world.hub()
    hub.faults[WEIGHTS] = ["slow 3000000"]
    ours, theirs = open_terminal()
    seen = []

    def read():
        try:
            while data := os.read(ours, 4096):
                seen.append(data)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    process = subprocess.Popen([PROGRAM, "pull", hub.name], env=world.env(hub), stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    process.communicate(timeout=30)
    reader.join(timeout=10)
    os.close(ours)
    text = b"".join(seen).decode()
    assert process.returncode == 0
    for words in ("org/model at " + hub.commit[:10], f"{len(WANTED)} files, 3.1 MB", "machine has", f" of {len(WANTED)} files, 0.00 of 0.00 GB, ", "MB/s", " s left", "hashes are right"):
        assert words in text, text
