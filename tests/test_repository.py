"""The repository as a whole: one address, one version, commands that exist, and nothing in it that does not belong."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brainlib import notebooks

ROOT = Path(__file__).resolve().parents[1]
OURS = ("Makefile", ".ci/run", "*.toml", "*.txt", "*.md", "*.cff", "*.yml", "*.py", "*.ipynb", "*.css", "*.js", "*.bib")
VENDORED = "book/_static/mathjax"
# Put together here, so that this file does not find itself.
REGISTRIES = re.compile("|".join(re.escape("".join(parts)) for parts in [
    ("py", "pi.org"), ("python", "hosted.org"), ("download.py", "torch.org"), ("registry.npm", "js.org"),
    ("cdn.jsdelivr.", "net"), ("unpkg.", "com"), ("cdnjs.", "cloudflare.com"), ("fonts.", "googleapis.com"),
]))  # fmt: skip


def sources() -> list[Path]:
    """The text files of the course that were written by hand."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a git clone")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z", "--", *OURS]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and not name.startswith(VENDORED) and (ROOT / name).is_file()]


def test_the_public_address_is_written_in_one_place():
    """Elsewhere it is read from pyproject.toml; where a file format cannot do that, the copy is equal."""
    address = notebooks.repository_address(ROOT)
    owner = address.rsplit("/", 1)[0].rsplit("/", 1)[1] + "/" + address.rsplit("/", 1)[1]
    copies = {"pyproject.toml", "README.md", "CITATION.cff"}
    for path in sources():
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if name in copies:
            assert not re.search(rf"github\.com/(?!{re.escape(owner)})[\w-]*/brain-mri-course", text), name
        elif path.suffix == ".ipynb":  # stamped by `brainlib run`, and compared by the checks of the chapters
            assert text.count(owner) == text.count(f"git+{address}"), name
        else:
            assert owner not in text, f"{name} repeats the address; read it from pyproject.toml"


def test_no_file_names_a_package_registry_or_a_script_host():
    for path in sources():
        found = REGISTRIES.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found[0]}"


def test_nothing_is_pickled():
    """A pickle file runs code when it is opened."""
    pattern = re.compile(
        r"^\s*(?:import|from) (?:pickle|joblib|dill)\b|\btorch\.(?:load|save)\(|allow_pickle=True", re.M
    )
    for path in (ROOT / "brainlib").rglob("*.py"):
        found = pattern.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found[0].strip()}"


def test_citation_and_package_have_one_version():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert re.search(r"^version: \"?([^\"\n]+)", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version


def test_the_library_imports_only_what_it_declares():
    """Colab gets what pyproject.toml lists and nothing else; the modules of the machinery may need the course extra."""
    project = (ROOT / "pyproject.toml").read_text()
    declared = set(re.findall(r'^    "([a-z0-9-]+)[>=<]', project, re.M))
    named = {"scikit-learn": "sklearn", "pillow": "PIL"}
    allowed = {named.get(name, name.replace("-", "_")) for name in declared} | {"brainlib"}
    machinery = {"notebooks", "execute", "checks", "course"}
    for path in (ROOT / "brainlib").rglob("*.py"):
        if path.stem in machinery:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # at the top: what every import of it needs
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
                assert name in allowed, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not list"


@pytest.mark.skipif(os.environ.get("BRAINLIB_TEST_CUDA") == "1", reason="the GPU is asked for")
def test_the_tests_see_no_gpu():
    import torch

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_lists_its_commands_and_names_what_it_would_do():
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^make (\w+)", answer.stdout, re.M)
    assert {"all", "book", "test", "bench", "clean", "help"} <= set(listed)
    for target in listed:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_an_environment_that_is_given_is_used_as_it_is(tmp_path):
    """`make VENV=...` must not install into an environment that somebody else made."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    command = ["make", "--dry-run", "book", f"VENV={tmp_path}"]
    given = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" not in given and f"{tmp_path}/bin/jupyter-book build" in given
    command[-1] = f"VENV={tmp_path / 'new'}"
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m venv" in made and "-m pip install" in made and "-r requirements.txt" in made


def test_ci_runs_the_command_that_the_readme_gives():
    text = (ROOT / ".ci" / "run").read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    assert text.rstrip().endswith("make test")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    readme = ROOT / "README.md"
    assert not readme.exists() or "make test" in readme.read_text()
