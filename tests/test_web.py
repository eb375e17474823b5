"""The page's modules that need no browser (src/server/web), under node: tests/web has what is asked of them."""

import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "src/server/web"
NODE = shutil.which("node")
TIMEOUT_S = 120  # also what a pattern gets that takes too long for a hostile text
MAX_PAGE_BYTES = 60 << 10


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The two folders beside each other. Node takes files of this name for modules where a package says so, and the tree is none."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(PAGE, folder / "src/server/web")
    shutil.copytree(TESTS / "web", folder / "tests/web")
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.mark.skipif(not NODE, reason="no node: the page's modules are not run (Debian: nodejs)")
@pytest.mark.parametrize("name", sorted(path.stem for path in (TESTS / "web").glob("*.mjs") if path.stem != "browser"))
def test_modules(tree, name):
    done = subprocess.run([NODE, f"tests/web/{name}.mjs"], cwd=tree, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "# fail 0" in done.stdout and "# pass 0" not in done.stdout, done.stdout[-2000:]  # tests ran


def test_no_markup_of_strings():
    """What a browser would make elements of: the page has none of it, and its policy forbids it besides."""
    for path in PAGE.glob("*.js"):
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function(", "srcdoc"):
            assert word not in path.read_text(), f"{path.name}: {word}"


def test_size():
    sizes = {path.name: path.stat().st_size for path in PAGE.iterdir()}
    assert sum(sizes.values()) < MAX_PAGE_BYTES, sizes
