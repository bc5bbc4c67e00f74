"""Running chapters: what is written, what is kept, and what happens when a run fails or is killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from helpers import hear_ctrl_c
from tiny_course import chapter, code, markdown, write_course

from brainlib import checks, execute, notebooks
from brainlib.execute import Progress, Settings
from brainlib.files import DataError

GOOD = """\
import os
import sys
from pathlib import Path
assert Path.cwd().name == "chapters"
assert sys.executable == os.environ["EXPECTED_PYTHON"]
print("hash seed", os.environ["PYTHONHASHSEED"])
print(profile, seed, repr(os.environ.get("CUDA_VISIBLE_DEVICES")))
_ = bytearray(b"x") * 300_000_000"""
WAITING = """\
import time
from pathlib import Path
if not Path("../go").exists():
    Path("../waiting").write_text(str(__import__("os").getpid()))
    time.sleep(120)
print("done")"""


def run(root, names=(), **settings):
    """Run chapters of ``root``; the number that failed and the progress that was printed."""
    stream = io.StringIO()
    failed = execute.run_chapters(
        root, notebooks.find_chapters(root, names), Settings(**settings), execute.Progress(stream)
    )
    return failed, stream.getvalue()


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A machine whose installed ``python3`` kernel is broken: the running interpreter must be used instead."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "Broken", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("EXPECTED_PYTHON", sys.executable)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # a demo run must not see it, a full run must
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))


def test_a_demo_run_of_good_and_failing_chapters(tmp_path, kernels, capsys):
    bad = chapter(markdown("section", "## Where it breaks"), code("bad", "# why\nx = 1 / 0\nprint(x)"))
    leaves = chapter(code("leaves", "import sys\nsys.exit()"))
    root = write_course(tmp_path / "course", **{"03_c": chapter(code("a", GOOD)), "02_b": leaves, "01_a": bad})
    paths = {path.stem: path for path in notebooks.chapters(root)}
    before = {stem: path.read_bytes() for stem, path in paths.items()}

    failed, progress = run(root)

    # The chapters that fail are named with their cell, keep their file, and do not stop the others.
    assert failed == 2
    message = capsys.readouterr().err
    assert "01_a failed in code cell 3 of 11 (id bad): x = 1 / 0" in message
    assert "ZeroDivisionError: division by zero" in message and "The next chapter runs all the same" in message
    assert "02_b failed in code cell 3 of 11 (id leaves)" in message and "SystemExit" in message
    assert "2 of 3 chapters failed: 01_a, 02_b" in message
    kept = tmp_path / "data" / "runs" / "01_a" / "failed.ipynb"
    assert "ZeroDivisionError" in kept.read_text() and str(kept) in message
    assert paths["01_a"].read_bytes() == before["01_a"] and paths["02_b"].read_bytes() == before["02_b"]
    assert "chapter 1 of 3: 01_a" in progress and "cell   3 of 11" in progress and "Where it breaks" in progress
    assert not list((tmp_path / "data").rglob("running*"))

    # The one that runs is written back, clean and marked.
    notebook = notebooks.read(paths["03_c"])
    cell = next(cell for cell in notebook.cells if cell.id == "a")
    assert cell.outputs[0].text == "hash seed 0\ndemo 0 ''\n"
    assert [c.id for c in notebook.cells] == [c.id for c in chapter(code("a", GOOD)).cells]
    mark = dict(notebook.metadata["brainlib"])
    assert mark.pop("seconds") >= 0
    assert mark.pop("precision") in checks.MAX_SECONDS
    peak = mark.pop("peak_memory_mb", None)
    assert peak is None if not Path("/proc/self/status").exists() else 300 < peak < 3000  # GOOD takes 300 MB
    assert mark == notebooks.make_mark(paths["03_c"], notebook, root)
    assert set(notebook.metadata) == {"brainlib", "kernelspec", "language_info"}
    assert all(set(c.metadata) <= {"tags"} for c in notebook.cells)

    # A second run does nothing, here or anywhere; a copy of the course has executed nothing "here".
    content = paths["03_c"].read_bytes()
    assert run(root, ["03"]) == (0, "chapter 1 of 1: 03_c, demo profile: fresh, nothing to do\n")
    assert run(root, ["03"], here=True) == (0, "chapter 1 of 1: 03_c, demo profile: fresh, nothing to do\n")
    assert paths["03_c"].read_bytes() == content
    (root / "_build" / "executed" / "03_c.json").unlink()
    assert execute.stale_reasons(root, paths["03_c"], Settings(here=True)) == [
        "it was not executed on this machine yet"
    ]
    assert execute.stale_reasons(root, paths["03_c"], Settings()) == []

    # A new address is stamped without running anything.
    (root / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/moved"\n')
    assert "fresh" in run(root, ["03"])[1]
    assert "https://example.org/moved" in paths["03_c"].read_text()


def test_a_run_with_parameters_leaves_the_chapter_alone(tmp_path, kernels):
    root = write_course(tmp_path / "course", **{"01_a": chapter(code("a", GOOD))})
    (path,) = notebooks.chapters(root)
    before = path.read_bytes()
    failed, _ = run(root, profile="full", parameters={"seed": 3})
    target = tmp_path / "data" / "runs" / "01_a" / "full-seed-3.ipynb"
    assert failed == 0 and path.read_bytes() == before
    assert "full 3 '7'" in target.read_text()
    assert "fresh" in run(root, profile="full", parameters={"seed": 3})[1]
    assert execute.stale_reasons(root, path, Settings("full", {"seed": 4})) == ["it was not executed yet"]
    target = tmp_path / "out" / "01_a.ipynb"
    assert Settings(output=tmp_path / "out").destination(path) == target


def test_nothing_runs_when_a_parameter_or_profile_is_unknown(tmp_path):
    root = write_course(tmp_path / "course", **{"01_a": chapter(), "02_b": chapter(number=2)})
    with pytest.raises(DataError, match=r"no parameter 'epoch'. Its parameters.*profile \('demo'\), seed \(0\)"):
        run(root, parameters={"epoch": 3})
    with pytest.raises(DataError, match="profile 'fast': choose one of demo, full"):
        run(root, profile="fast")


def test_a_changed_chapter_or_setting_is_stale(tmp_path):
    root = write_course(tmp_path / "course", **{"01_a": chapter()})
    (path,) = notebooks.chapters(root)
    assert execute.stale_reasons(root, path, Settings()) == ["it was never executed by 'brainlib run'"]
    notebook = notebooks.read(path)
    notebook.metadata["brainlib"] = {**notebooks.make_mark(path, notebook, root), "seconds": 1}
    notebook.cells[3].source += "\nx = 1"
    notebooks.write(path, notebook)
    assert execute.stale_reasons(root, path, Settings()) == ["its code cells changed"]


@pytest.mark.parametrize(("seconds", "least", "most"), [(execute.SAVE_SECONDS, 1, 8), (0, 60, 150)])
def test_a_running_chapter_is_written_now_and_then(tmp_path, kernels, monkeypatch, seconds, least, most):
    import papermill.engines

    written, write = [], papermill.engines.write_ipynb
    monkeypatch.setattr(papermill.engines, "write_ipynb", lambda nb, path: written.append(path) or write(nb, path))
    monkeypatch.setattr(execute, "SAVE_SECONDS", seconds)
    cells = [code(f"cell-{i}", f"print({i})") for i in range(30)]
    root = write_course(tmp_path / "course", **{"01_a": chapter(*cells)})
    assert run(root)[0] == 0
    assert least <= len(written) <= most


def test_a_kernel_that_dies_is_reported_with_its_cell(tmp_path, kernels, capsys):
    dies = chapter(code("dies", "import os\nos.kill(os.getpid(), 9)"))
    root = write_course(tmp_path / "course", **{"01_a": dies})
    before = notebooks.chapters(root)[0].read_bytes()
    assert run(root)[0] == 1
    message = capsys.readouterr().err
    assert "(id dies): import os" in message and "the kernel died" in message
    assert notebooks.chapters(root)[0].read_bytes() == before


def test_a_data_folder_that_cannot_be_made_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "file" / "data"))
    root = write_course(tmp_path / "course", **{"01_a": chapter()})
    with pytest.raises(DataError, match="cannot write"):
        run(root)


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_run_changes_nothing_and_can_be_repeated(tmp_path, sent):
    root = write_course(tmp_path / "course", **{"01_a": chapter(code("waits", WAITING))})
    (path,) = notebooks.chapters(root)
    before = path.read_bytes()
    environment = {**os.environ, "BRAINLIB_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "brainlib", "run", "01"]
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    wait_for((root / "waiting").exists)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["01_a.ipynb"]
    kernel = int((root / "waiting").read_text())
    wait_for(lambda: not alive(kernel))
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in errors and "Traceback" not in errors
        (root / "go").touch()
        again = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        assert '"done\\n"' in path.read_text()


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_progress_on_a_terminal_rewrites_one_line_and_shows_what_a_cell_prints():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    progress = Progress(Terminal())
    progress.start("chapter 1 of 1")
    progress.cell(2, 9, "Training")
    progress.write("epoch 1\repoch 2\n")
    progress.end()
    text = progress.stream.getvalue()
    assert text.count("\n") == 1 and "cell   2 of 9" in text and "Training | epoch 2" in text


# nbval reads the same chapters


NBVAL = ["-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-q"]


def test_nbval_compares_outputs_although_no_execution_count_is_kept(tmp_path, repository):
    right = code("right", "import os\nprint(1 + 1, os.environ['BRAINLIB_CONTROLS'])")
    wrong, free = code("wrong", "print(1 + 1)"), code("free", "print(1 + 1)")
    silent = code("silent", "print('new')")  # no output is recorded, but there is one
    free.metadata["tags"] = ["nbval-ignore-output"]
    for cell, text in ((right, "2 static\n"), (wrong, "3\n"), (free, "3\n")):
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    root = write_course(tmp_path / "course", **{"01_a": chapter(right, free, wrong, silent)})
    (root / "chapters" / "conftest.py").write_bytes((repository / "chapters" / "conftest.py").read_bytes())
    answer = subprocess.run([sys.executable, *NBVAL, "chapters"], cwd=root, capture_output=True, text=True, check=False)
    assert "2 failed, 12 passed" in answer.stdout, answer.stdout
    assert "Cell 4" in answer.stdout and "Cell 5" in answer.stdout
