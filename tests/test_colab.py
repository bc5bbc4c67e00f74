"""The set-up cell in an environment like Colab's: torch and numpy are there, brainlib is not.

The environment is fresh; it sees the packages of this one through a folder of links, all but brainlib. pip installs
from a clone of the repository.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from brainlib import notebooks

PROBE = """\
import importlib.metadata, importlib.util, json
print(json.dumps({n: [importlib.metadata.version(n), importlib.util.find_spec(n).origin] for n in ("torch", "numpy")}))
"""
REPORT = """\
import json
import brainlib
from brainlib.results import results_root
files = sorted(p.relative_to(results_root()).as_posix() for p in results_root().rglob("*.json"))
print(json.dumps({"brainlib": brainlib.__file__, "records": str(results_root()), "files": files}))
"""


def run(*command, **options):
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory, repository):
    """A clone of the repository, with what is changed in the working tree committed on top."""
    if shutil.which("git") is None or not (repository / ".git").exists():
        pytest.skip("there is no git, or this is not a clone")
    folder = tmp_path_factory.mktemp("colab") / "clone"
    git = ["git", "-c", "safe.directory=*", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    run(*git, "clone", "--quiet", repository.as_uri(), folder)
    changed = run(*git, "-C", repository, "ls-files", "-mo", "--exclude-standard", "-z").split("\0")
    for name in filter(None, changed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).is_file():
            shutil.copyfile(repository / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    run(*git, "-C", folder, "add", "--all")
    run(*git, "-C", folder, "commit", "--quiet", "--allow-empty", "-m", "working tree")
    return folder


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The interpreter of a new environment that has everything but brainlib."""
    folder = tmp_path_factory.mktemp("colab")
    run(sys.executable, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    links = folder / "links"
    links.mkdir()
    hidden = ("brainlib", "__editable__", "pip", "setuptools", "_distutils_hack", "wheel", "__pycache__")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(hidden) and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    (Path(site) / "links.pth").write_text(f"{links}\n")
    # Building a package needs setuptools; where pip cannot get it, Colab could not either.
    probe = [python, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder / "download", "setuptools>=77"]
    if subprocess.run([str(part) for part in probe], capture_output=True, check=False).returncode:
        pytest.skip("pip reaches no package index")
    return python


@pytest.mark.skipif(os.name != "posix", reason="Colab is Linux")
def test_the_set_up_cell_installs_brainlib_and_touches_nothing_else(colab, clone, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_SOURCE", f"git+file://{clone}")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "*")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    before = json.loads(run(colab, "-c", PROBE, cwd=tmp_path))
    assert run(colab, "-c", "import importlib.util as u; print(u.find_spec('brainlib'))", cwd=tmp_path) == "None\n"

    # In one interpreter, as in a notebook: the cell, and then the import.
    printed = run(colab, "-c", f"{notebooks.setup_cell()}\n{REPORT}", cwd=tmp_path).splitlines()

    assert printed[:-1] == [f"Installing brainlib from git+file://{clone}"]
    found = json.loads(printed[-1])
    environment = str(colab.parents[1])
    assert found["brainlib"].startswith(environment) and found["records"].startswith(environment)
    records = clone / "book" / "results"
    assert found["files"] == sorted(path.relative_to(records).as_posix() for path in records.rglob("*.json"))
    assert json.loads(run(colab, "-c", PROBE, cwd=tmp_path)) == before

    # The second run of the cell calls nothing and prints nothing.
    forbid = (
        "import subprocess\ndef forbidden(*a, **k): raise SystemExit('installs again')\nsubprocess.run = forbidden\n"
    )
    assert run(colab, "-c", forbid + notebooks.setup_cell(), cwd=tmp_path) == ""


@pytest.mark.skipif(os.name != "posix", reason="Colab is Linux")
def test_a_brainlib_that_wants_another_numpy_is_refused_not_obeyed(colab, tmp_path, monkeypatch):
    """The pins in the cell hold: pip stops with an error before it would replace numpy."""
    package = tmp_path / "wants"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "wants"\nversion = "1"\ndependencies = ["numpy<{version("numpy")}"]\n'
        "[tool.setuptools]\npy-modules = []\n"
    )
    monkeypatch.setenv("BRAINLIB_SOURCE", str(package))
    before = json.loads(run(colab, "-c", PROBE, cwd=tmp_path))
    missing = notebooks.setup_cell().replace('find_spec("brainlib")', 'find_spec("not_there")')
    answer = subprocess.run([str(colab), "-c", missing], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode != 0 and "numpy" in answer.stderr
    assert json.loads(run(colab, "-c", PROBE, cwd=tmp_path)) == before
