"""A MODEL that is not here yet is fetched when a command asks for it: from the server that plays the Hugging Face hub (tests/hub.py)."""

import json
import os
import signal
import subprocess
import threading

import gguf_model
import pytest
from conftest import GOLDEN, PROGRAM, Result, refused
from test_pull import good, wait_for, world  # noqa: F401 (a fixture)

from hub import LISTING, status

TINY = GOLDEN / "v2lite-tiny"
FILES = {path.name: path.read_bytes() for path in TINY.iterdir() if path.name in ("config.json", "model.safetensors")}
FILES.update({"tokenizer_config.json": b"{}", "README.md": b"# a model"})
WEIGHTS = "model.safetensors"


@pytest.fixture
def ask(world):
    """Runs a command with the world's hub and cache, in a folder of its own."""
    def ask(hub, *arguments, env=None):
        command = [PROGRAM, *map(str, arguments)]
        return Result(command, subprocess.run(command, env=world.env(hub, **(env or {})), cwd=world.folder, capture_output=True, timeout=60))
    return ask


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A model of one file in three formats by name, one of them in two shards by its name; every file can be read."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    gguf_model.convert(TINY, file)
    data = file.read_bytes()
    return {"tiny-Q8_0.gguf": data, "tiny-Q4_K_M.gguf": data, "IQ4/tiny-IQ4_XS.gguf": data, "mmproj-F16.gguf": b"eyes" * 500}


def logits(ask, hub, *arguments, **options):
    return ask(hub, "logits", *arguments, "--ids", "1,2,3", "--out", "last.f32", **options)


def last_line(result, *words):
    """One clear message, behind what was said on the way."""
    assert result.code in (1, 2) and "Sanitizer" not in result.err, str(result)
    line = result.err.strip().splitlines()[-1]
    for word in words:
        assert str(word) in line, f"the message lacks {word!r}: {result}"
    return line


def test_a_name_is_enough(world, ask):
    hub = world.hub(FILES)
    result = good(logits(ask, hub, "org/model"))
    assert "fetching" in result.err and "fits: everything in RAM" in result.err and "\r" not in result.err and not result.out
    world.check(hub, FILES)
    order = [request["path"].rsplit("/", 1)[-1] for request in hub.asked("/resolve/")]
    assert order[-1] == WEIGHTS and len(order) == len(FILES)  # what judges comes before what is large
    # What is here is not asked for again, by any name of it.
    hub.seen.clear()
    for name in ("org/model", "hf.co/org/model", "https://huggingface.co/org/model"):
        assert good(ask(hub, "info", name, "--json")).json["layers"] == 3
    assert not hub.seen
    # What has gone meanwhile comes again.
    (world.blobs(hub) / hub.files[WEIGHTS].etag).unlink()
    assert good(ask(hub, "info", "org/model", "--json")).json["layers"] == 3
    world.check(hub, FILES)


def test_small_files_are_enough_for_some(world, ask):
    hub = world.hub(FILES)
    assert ask(hub, "plan", "org/model", "--ram", "8@10", "--device", "cpu", "--json").json["fits"]
    world.check(hub, [name for name in FILES if name != WEIGHTS])
    last_line(ask(hub, "tokenize", "org/model"), "tokenizer.json")  # it has none
    assert not hub.asked(WEIGHTS)
    good(logits(ask, hub, "org/model"))
    world.check(hub, FILES)


def test_what_cannot_run_is_not_fetched(world, ask):
    hub = world.hub(FILES)
    last_line(logits(ask, hub, "org/model", env={"MOEBIUS_MEMORY": "0.001"}), "does not fit", "GB of memory", "moebius plan org/model", world.cache)
    other = {**json.loads(FILES["config.json"]), "architectures": ["OtherForCausalLM"]}
    foreign = world.hub({**FILES, "config.json": json.dumps(other).encode()}, name="org/foreign")
    last_line(logits(ask, foreign, "org/foreign"), "org/foreign: config.json", "OtherForCausalLM")
    for at in (hub, foreign):
        assert not at.asked(WEIGHTS) and not (world.blobs(at).parent / "snapshots").exists()
    good(world.run(hub))  # who pulls has said that it is wanted
    world.check(hub, FILES)


def test_a_disk_that_is_too_small(world, ask):
    hub = world.hub(FILES)
    listing = hub.listing()
    for file in listing["siblings"]:
        file["size"] = 10**15
        if "lfs" in file:
            file["lfs"]["size"] = 10**15
    hub.faults[LISTING] = [json.dumps(listing).encode()]
    last_line(logits(ask, hub, "org/model"), "GB more", "GB free", "nothing was downloaded")
    assert not world.cache.exists()


def test_offline(world, ask):
    hub = world.hub(FILES)
    for flags, env in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        refused(logits(ask, hub, "org/model", *flags, env=env), "org/model", "moebius pull org/model", world.cache)
    good(ask(hub, "plan", "org/model", "--ram", "8@10", "--device", "cpu"))
    hub.seen.clear()
    refused(logits(ask, hub, "org/model", "--offline"), "neither model.safetensors nor")  # half of it is here, and says what is missing
    assert not hub.seen


def test_no_such_model_and_no_network(world, ask):
    hub = world.hub(FILES)
    hub.faults[LISTING] = [status(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")]
    last_line(logits(ask, hub, "org/model"), "org/model is neither a folder nor whole", world.cache, "404", "Repository not found")
    good(logits(ask, hub, "org/model", "--hf-token", "hf_secret"))
    assert {request["token"] for request in hub.seen if not request["store"]} == {None, "Bearer hf_secret"}
    hub.close()
    world.hubs.clear()
    last_line(ask(hub, "info", "org/other"), world.cache, "127.0.0.1")
    for name in ("model", "a/b/c", "org/model:", "./org/model"):
        refused(ask(hub, "info", name), name, "no such model")


def test_no_home(world, ask):
    hub = world.hub(FILES)
    refused(ask(hub, "info", "org/model", env={"HOME": "", "HF_HUB_CACHE": "", "XDG_CACHE_HOME": ""}), "moebius info: no Hugging Face cache: set HF_HOME or HOME")


def test_a_folder_of_that_name_goes_first(world, ask):
    hub = world.hub(FILES)
    (world.folder / "org").mkdir()
    (world.folder / "org/model").symlink_to(TINY)
    last_line(ask(hub, "info", "org/model", "--hf-file", "x.gguf"), "--hf-file x.gguf", "org/model is here")
    good(logits(ask, hub, "org/model"))
    assert not hub.seen
    good(logits(ask, hub, "-hf", "org/model"))
    world.check(hub, FILES)


def test_gguf_files_by_their_names(world, ask, gguf):
    hub = world.hub(gguf, name="org/tiny-GGUF")
    q4, q8, iq = ("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "IQ4/tiny-IQ4_XS.gguf")
    message = last_line(logits(ask, hub, "org/tiny-GGUF:Q5_K_M"), "no GGUF file called Q5_K_M", q4, q8, iq)
    assert "mmproj" not in message
    good(logits(ask, hub, "-hf", "org/tiny-GGUF"))  # Q4_K_M, as llama.cpp chooses
    world.check(hub, [q4])
    good(logits(ask, hub, "org/tiny-GGUF:q8_0"))
    world.check(hub, [q4, q8])
    good(logits(ask, hub, "hf.co/org/tiny-GGUF", "--hf-file", iq))
    world.check(hub, [q4, q8, iq])
    hub.seen.clear()
    for name, file in (("org/tiny-GGUF", q4), ("org/tiny-GGUF:Q8_0", q8), ("org/tiny-GGUF:IQ4_XS", iq)):
        assert good(ask(hub, "info", name, "--offline")).text.splitlines()[0].endswith("/" + file)
    refused(ask(hub, "info", "org/tiny-GGUF:Q4_K", "--offline"), "no GGUF file called Q4_K is whole", "offline")
    assert not hub.seen


def test_shards_that_are_not_all_here(world, ask, gguf):
    names = [f"tiny-F32-0000{i}-of-00002.gguf" for i in (1, 2)]
    hub = world.hub({names[0]: next(iter(gguf.values())), names[1]: b"GGUF" * 400}, name="org/shards")
    ask(hub, "info", "org/shards")
    world.check(hub, names)
    (world.blobs(hub) / hub.files[names[1]].etag).unlink()
    hub.seen.clear()
    ask(hub, "info", "org/shards")
    assert [request["path"] for request in hub.seen if request["store"]] == ["/" + names[1]]


def test_plan_of_gguf_files_that_are_not_here(world, ask, gguf):
    hub = world.hub(gguf, name="org/tiny-GGUF")
    last_line(ask(hub, "plan", "org/tiny-GGUF", "--ram", "8@10", "--device", "cpu"), "moebius pull org/tiny-GGUF --include Q4_K_M")
    assert not world.cache.exists()


def test_stopped_while_it_is_fetched(world, ask):
    hub = world.hub(FILES)
    hub.faults[WEIGHTS] = ["slow 500000"]
    process = subprocess.Popen([PROGRAM, "serve", "org/model", "--port", "0"], env=world.env(hub), stderr=subprocess.PIPE)
    wait_for(lambda: world.incomplete(hub, WEIGHTS).exists() and world.incomplete(hub, WEIGHTS).stat().st_size > 50000)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=10)[1]
    assert process.returncode == 130 and b"goes on" in err, err
    good(logits(ask, hub, "org/model"))
    world.check(hub, FILES)
    assert int(hub.asked(WEIGHTS)[-1]["range"].removeprefix("bytes=").removesuffix("-")) > 50000


def test_a_certificate_is_looked_at_first(world, ask, tmp_path):
    """Hours of fetching come after it."""
    hub = world.hub(FILES)
    words = tmp_path / "words.pem"
    words.write_text("no PEM")
    last_line(ask(hub, "serve", "org/model", "--port", "0", "--ssl-certfile", words, "--ssl-keyfile", words), "words.pem")
    assert not hub.seen


def test_a_server_of_a_model_that_was_not_here(world):
    hub = world.hub(FILES)
    process = subprocess.Popen([PROGRAM, "serve", "org/model", "--port", "0", "--max-model-len", "64"], env=world.env(hub), stderr=subprocess.PIPE)
    limit = threading.Timer(60, process.kill)
    limit.start()
    lines = []
    for line in process.stderr:
        lines.append(line.decode())
        if "serving org/model on" in lines[-1]:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    limit.cancel()
    assert process.returncode == 0 and "serving org/model on" in lines[-1], lines
    assert os.path.exists(world.check(hub, FILES))
