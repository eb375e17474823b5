"""`moebius list` and `moebius rm`: what the Hugging Face cache has, and taking it out, with nothing else."""

import fcntl
import os
import subprocess

import pytest
from conftest import GOLDEN, PROGRAM, Result, open_terminal, refused, succeed

HASHES = [digit * 64 for digit in "abcdef"]
COMMIT, OTHER = "1" * 40, "2" * 40


class Cache:
    """Blobs and links as huggingface_hub makes them."""

    def __init__(self, folder):
        self.folder, self.hub = folder, folder / "hub"
        self.env = {"HF_HUB_CACHE": str(self.hub), "HOME": str(folder)}

    def repository(self, name):
        return self.hub / ("models--" + name.replace("/", "--"))

    def add(self, name, files, commit=COMMIT, revision="main"):
        """`files`: {path: (hash, bytes)}."""
        repository = self.repository(name)
        for path, (hash, data) in files.items():
            (repository / "blobs").mkdir(parents=True, exist_ok=True)
            (repository / "blobs" / hash).write_bytes(data)
            link = repository / "snapshots" / commit / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("../" * path.count("/") + "../../blobs/" + hash)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)

    def list(self):
        return succeed("list", "--json", env=self.env).json["models"]

    def rm(self, *arguments, **options):
        command = [PROGRAM, "rm", *arguments]
        return Result(command, subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, timeout=20, **{"input": b"", **options}))

    def blobs(self, name):
        return sorted(path.name for path in (self.repository(name) / "blobs").iterdir())


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path)
    tiny = GOLDEN / "v2lite-tiny"
    cache.add("org/tiny", {"config.json": (HASHES[0], (tiny / "config.json").read_bytes()), "model.safetensors": (HASHES[1], (tiny / "model.safetensors").read_bytes())})
    cache.add("org/two-GGUF", {"two-Q4_K_M.gguf": (HASHES[2], b"4" * 400), "Q8/two-Q8_0-00001-of-00002.gguf": (HASHES[3], b"8" * 800),
                               "Q8/two-Q8_0-00002-of-00002.gguf": (HASHES[4], b"8" * 600), "README.md": (HASHES[5], b"# two")})
    return cache


def test_list(cache):
    models = {(model["name"], model["file"]): model for model in cache.list()}
    tiny, q8 = models["org/tiny", None], models["org/two-GGUF", "Q8/two-Q8_0-00001-of-00002.gguf"]
    assert (tiny["format"], tiny["whole"], tiny["revision"], tiny["commit"]) == ("safetensors", True, "main", COMMIT)
    assert tiny["bytes"] == sum(path.stat().st_size for path in (cache.repository("org/tiny") / "blobs").iterdir())
    assert (q8["format"], q8["whole"], q8["bytes"]) == ("GGUF", True, 1400) and len(models) == 3
    assert succeed("info", tiny["path"], "--json").json["layers"] == 3
    text = succeed("list", env=cache.env).text
    assert text == succeed("ls", env=cache.env).text and "org/two-GGUF --hf-file two-Q4_K_M.gguf\n" in text and text.count("whole") == 3


def test_what_is_here_in_part(cache):
    (cache.repository("org/tiny") / "blobs" / HASHES[1]).unlink()
    (cache.repository("org/two-GGUF") / "blobs" / HASHES[4]).unlink()
    started = cache.repository("org/begun") / "blobs"
    started.mkdir(parents=True)
    (started / (HASHES[0] + ".incomplete")).write_bytes(b"x" * 1000)
    cache.add("org/small", {"config.json": (HASHES[0], b"{}")}, commit=OTHER, revision="v1")
    (cache.hub / "models--without-org").mkdir()
    models = {(model["name"], model["file"]): model for model in cache.list()}
    assert {name for name, model in models.items() if not model["whole"]} == {
        ("org/tiny", None), ("org/two-GGUF", "Q8/two-Q8_0-00001-of-00002.gguf"), ("org/begun", None), ("org/small", None)}
    assert models["org/begun", None]["bytes"] == 1000 and models["org/begun", None]["commit"] is None
    assert models["org/small", None]["revision"] == "v1" and models["org/small", None]["format"] == "-"
    assert "in part  org/small --revision v1\n" in succeed("list", env=cache.env).text


def test_no_cache(tmp_path):
    env = {"HF_HUB_CACHE": str(tmp_path / "none"), "HOME": str(tmp_path)}
    result = succeed("list", env=env)
    assert not result.out and "no models" in result.err and succeed("list", "--json", env=env).json["models"] == []


def test_a_whole_model_goes_and_nothing_else(cache):
    outside = cache.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (cache.repository("org/tiny") / "blobs" / "link").symlink_to(outside)
    (cache.repository("org/tiny") / "snapshots" / "folder").symlink_to(outside)
    locks = cache.hub / ".locks/models--org--tiny"
    locks.mkdir(parents=True)
    (locks / (HASHES[0] + ".lock")).touch()
    before = cache.blobs("org/two-GGUF")
    assert "taken away" in cache.rm("org/tiny", "--yes").err
    assert not os.path.lexists(cache.repository("org/tiny")) and not locks.exists()
    assert (outside / "file").read_text() == "mine" and cache.blobs("org/two-GGUF") == before
    refused(cache.rm("org/tiny", "--yes"), "org/tiny is not in the Hugging Face cache")


def test_a_repository_that_is_a_link(cache):
    moved = cache.folder / "moved"
    cache.repository("org/tiny").rename(moved)
    cache.repository("org/tiny").symlink_to(moved)
    assert cache.rm("org/tiny", "--yes").code == 0
    assert not os.path.lexists(cache.repository("org/tiny")) and len(list((moved / "blobs").iterdir())) == 2


def test_one_gguf_file_goes(cache):
    cache.add("org/two-GGUF", {"two-Q8_0-again-00002-of-00002.gguf": (HASHES[4], b"8" * 600)}, commit=OTHER, revision="v1")  # links to a blob of both
    assert cache.rm("org/two-GGUF:q8_0", "--yes").code == 0
    assert cache.blobs("org/two-GGUF") == sorted([HASHES[2], HASHES[4], HASHES[5]])
    assert [model["file"] for model in cache.list() if model["name"] == "org/two-GGUF" and model["whole"]] == ["two-Q4_K_M.gguf"]
    refused(cache.rm("org/two-GGUF:Q8_0", "--yes"), "no GGUF file called Q8_0")


def test_a_name_that_is_a_part_of_others(cache):
    """The shards alone, whatever else begins with their name; and a path rather than a word of another one."""
    cache.add("org/three-GGUF", {"A/m-Q8_0.gguf": (HASHES[0], b"a"), "m-Q8_0.gguf": (HASHES[1], b"b"), "m-Q8_0-new.gguf": (HASHES[2], b"c"),
                                 "m-Q6_K-00001-of-00002.gguf": (HASHES[3], b"d"), "m-Q6_K-00002-of-00002.gguf": (HASHES[4], b"e"),
                                 "m-Q6_K-best.gguf": (HASHES[5], b"f")})
    assert "m-Q6_K-00001-of-00002.gguf" in cache.rm("org/three-GGUF:Q6_K", "--yes").err
    assert cache.blobs("org/three-GGUF") == sorted([HASHES[0], HASHES[1], HASHES[2], HASHES[5]])
    assert cache.rm("org/three-GGUF:m-Q8_0.gguf", "--yes").code == 0
    assert cache.blobs("org/three-GGUF") == sorted([HASHES[0], HASHES[2], HASHES[5]])
    long = "x" * 500
    refused(cache.rm("org/three-GGUF:" + long, "--yes"), long)


def test_a_snapshot_that_leads_elsewhere(cache):
    """Links to folders are not followed, round and round; and one that is too large hides no others."""
    snapshot = cache.repository("org/tiny") / "snapshots" / COMMIT
    for name in ("a", "b", "c", "d"):
        (snapshot / name).symlink_to(".")
    (snapshot / "root").symlink_to("/")
    crowded = cache.repository("org/crowded") / "snapshots" / COMMIT
    crowded.mkdir(parents=True)
    for i in range(20001):
        (crowded / str(i)).touch()
    (cache.repository("org/other") / "snapshots").mkdir(parents=True)
    os.makedirs(os.fsencode(cache.repository("org/other") / "snapshots") + b"/\xff\xfe")
    models = {model["name"]: model for model in cache.list()}
    assert models["org/tiny"]["whole"] and not models["org/crowded"]["whole"] and models["org/other"]["commit"] == "\ufffd\ufffd"
    assert "more than 20000 files" in succeed("list", env=cache.env).err


@pytest.mark.parametrize("ref", ["", ".", "../../../outside"])
def test_a_ref_that_is_no_commit(cache, ref):
    outside = cache.folder / "outside"
    outside.mkdir()
    (outside / "two-Q4_K_M.gguf").write_text("mine")
    repository = cache.repository("org/two-GGUF")
    (repository / "refs/main").write_text(ref)
    before = cache.blobs("org/two-GGUF")
    refused(cache.rm("org/two-GGUF:Q4_K_M", "--yes"), "org/two-GGUF", "nor in the Hugging Face cache")
    refused(cache.rm("org/two-GGUF:Q4_K_M", "--yes", "--revision", "."), "org/two-GGUF", "nor in the Hugging Face cache")
    (repository / "refs/main").write_text(OTHER)
    (repository / "snapshots" / OTHER).symlink_to(outside)
    refused(cache.rm("org/two-GGUF:Q4_K_M", "--yes"), OTHER, "is a link")
    assert cache.blobs("org/two-GGUF") == before and (outside / "two-Q4_K_M.gguf").read_text() == "mine"


def test_nobody_is_here_to_ask(cache):
    refused(cache.rm("org/tiny"), "org/tiny", "--yes")
    ours, theirs = open_terminal()
    for answer, gone in ((b"n\n", False), (b"y\n", True)):
        os.write(ours, answer)
        result = cache.rm("org/tiny", stdin=theirs, input=None)
        assert result.code == (0 if gone else 130) and "y/N" in result.err and cache.repository("org/tiny").exists() != gone
    os.close(ours)
    os.close(theirs)


def test_not_while_it_is_downloaded(cache):
    locks = cache.hub / ".locks/models--org--tiny"
    locks.mkdir(parents=True)
    with open(locks / (HASHES[1] + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(cache.rm("org/tiny", "--yes"), "downloads it now")
    assert len(cache.blobs("org/tiny")) == 2


@pytest.mark.parametrize("name", ["tiny", "../hub/x", "org/..", "/etc/passwd", "org/tiny:", "org/tiny/x", "."])
def test_names_that_are_none(cache, name):
    refused(cache.rm(name, "--yes"), name)
    assert len(cache.list()) == 3
