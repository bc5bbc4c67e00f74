"""Run chapters from top to bottom with papermill; keep the old outputs until the new ones are complete."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from brainlib import notebooks, palette
from brainlib.files import DataError, data_root, explain, write_text

PROFILES = ("demo", "full")
QUIET_SECONDS = 30  # a log file gets a line of a long cell's own output this often
SAVE_SECONDS = 10  # what a running chapter has given so far goes to the disk this often


class ChapterError(Exception):
    """A chapter did not run to its end; the message names the cell and the error."""


@dataclass(frozen=True)
class Settings:
    """How to run chapters.

    Attributes:
        profile: ``"demo"`` (the phantom, minutes) or ``"full"`` (the real data).
        parameters: values for names in the parameters cell, beside ``profile``.
        output: folder for the executed notebooks. Default: ``chapters/`` for a plain demo run, whose outputs are the
            ones that are published, else ``runs/<chapter>/`` under the data root.
        force: run fresh chapters too.
        here: a chapter counts as fresh only if it was executed on this machine (committed outputs do not count).
    """

    profile: str = "demo"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    force: bool = False
    here: bool = False

    @property
    def name(self) -> str:
        """Profile and parameters as part of a file name: runs of one chapter at the same time have different ones."""
        values = [f"{name}-{value}" for name, value in sorted(self.parameters.items())]
        return re.sub(r"[^\w.-]+", "-", "-".join([self.profile, *values]))[:120]

    def destination(self, chapter: Path) -> Path:
        """Where the executed notebook of ``chapter`` goes."""
        name = self.name
        if self.output is not None:
            return self.output / (chapter.name if name == "demo" else f"{chapter.stem}-{name}.ipynb")
        return chapter if name == "demo" else data_root() / "runs" / chapter.stem / f"{name}.ipynb"


class Progress:
    """Where a run stands, as plain text: one line that is rewritten on a terminal, one line a section in a log."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.started = self.shown = time.monotonic()
        self.line = self.heading = ""
        self.peak_memory = 0  # bytes that the kernel has needed at most

    def start(self, title: str) -> None:
        self.started, self.heading, self.peak_memory = time.monotonic(), "", 0
        print(title, file=self.stream, flush=True)

    def cell(self, number: int, total: int, heading: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        self.line = f"  cell {number:3d} of {total}  {minutes:3d}:{seconds:02d}  {heading}"
        if self.terminal:
            self._rewrite(self.line)
        elif heading != self.heading:
            print(self.line, file=self.stream, flush=True)
        self.heading = heading

    def write(self, text: str) -> None:
        """Text that a cell prints: its last line is shown beside the cell, so that a long training can be followed."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        if lines and self.terminal:
            self._rewrite(f"{self.line} | {lines[-1]}")
        elif lines and time.monotonic() - self.shown > QUIET_SECONDS:
            self.shown = time.monotonic()
            print(f"    {lines[-1]}", file=self.stream, flush=True)

    def flush(self) -> None:
        """papermill asks for it."""

    def end(self) -> None:
        if self.terminal:
            self._rewrite("")
            self.stream.write("\r")
            self.stream.flush()

    def _rewrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self.stream.write("\r" + line[:width].ljust(width))
        self.stream.flush()


def run_chapters(root: Path, paths: Sequence[Path], settings: Settings, progress: Progress | None = None) -> int:
    """Run chapters one after the other; a chapter that fails does not keep the next from running.

    Returns:
        The number of chapters that failed.

    Raises:
        DataError: an unknown parameter or profile (before anything runs).
    """
    progress = progress or Progress()
    for path in paths:
        check_parameters(path.stem, notebooks.read(path), settings)
    failed = []
    for position, path in enumerate(paths, 1):
        title = f"chapter {position} of {len(paths)}: {path.stem}, {settings.profile} profile"
        try:
            run_chapter(root, path, settings, progress, title)
        except ChapterError as error:
            progress.end()
            failed.append(path.stem)
            follows = "\n  The next chapter runs all the same." if position < len(paths) else ""
            print(f"brainlib: {path.stem} failed in {error}{follows}", file=sys.stderr, flush=True)
    if failed:
        print(f"brainlib: {len(failed)} of {len(paths)} chapters failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def check_parameters(chapter: str, notebook: Any, settings: Settings) -> None:
    """Refuse a parameter that the chapter does not have: papermill would set it, and nothing would read it."""
    if settings.profile not in PROFILES:
        raise DataError(f"profile {settings.profile!r}: choose one of {', '.join(PROFILES)}")
    known = notebooks.parameters(notebook)
    wanted = [*settings.parameters, *(["profile"] if settings.profile != "demo" else [])]
    for name in wanted:
        if name not in known:
            listing = ", ".join(f"{key} ({value!r})" for key, value in known.items()) or "none"
            raise DataError(f"{chapter} has no parameter {name!r}. Its parameters and their defaults: {listing}")


def stale_reasons(root: Path, path: Path, settings: Settings) -> list[str]:
    """What makes the outputs of a chapter stale under ``settings``, in words; an empty list means fresh."""
    destination = settings.destination(path)
    if not destination.is_file():
        return ["it was not executed yet"]
    expected = _mark(root, path, notebooks.read(path), settings)
    if settings.here and destination == path:
        stamp = _stamp(root, path)
        if not stamp.is_file() or notebooks.stale(json.loads(stamp.read_text(encoding="utf-8")), expected):
            return ["it was not executed on this machine yet"]
    return notebooks.stale(dict(notebooks.read(destination).metadata.get("brainlib", {})), expected)


def run_chapter(root: Path, path: Path, settings: Settings, progress: Progress, title: str) -> bool:
    """Run one chapter unless it is fresh; True if it ran.

    Raises:
        ChapterError: a cell failed. What ran is kept in ``runs/<chapter>/failed.ipynb`` under the data root (with the
            parameters in the name where there are some), and the chapter's own file is what it was.
    """
    notebook, destination = notebooks.read(path), settings.destination(path)
    stamped = notebooks.stamp_setup(notebook, notebooks.repository_address(root))
    if not settings.force and not stale_reasons(root, path, settings):
        if stamped and destination == path:  # no output depends on the set-up cell, so nothing has to run
            notebooks.write(path, notebook)
        progress.start(f"{title}: fresh, nothing to do")
        return False
    progress.start(title)
    expected = _mark(root, path, notebook, settings)  # of the code that is about to run, not of what it is by then
    started = time.monotonic()
    executed = execute(notebook, path, settings, progress)
    seconds = time.monotonic() - started
    # A full run writes records while it runs; the mark is that of the records which the outputs can have seen.
    expected["records"] = notebooks.records_hash(path.stem, notebook, root)
    notebooks.clean(executed, keep_injected=destination != path)
    palette.lighten(executed)
    executed.metadata["brainlib"] = {**expected, "seconds": round(seconds), "precision": _precision()}
    if progress.peak_memory:  # unknown where the system does not say
        executed.metadata["brainlib"]["peak_memory_mb"] = round(progress.peak_memory / 1e6)
    notebooks.write(destination, executed)
    if destination == path:
        write_text(_stamp(root, path), json.dumps(expected))
    progress.end()
    print(f"  done in {seconds:.0f} s: {destination}", file=progress.stream, flush=True)
    return True


def execute(notebook: Any, path: Path, settings: Settings, progress: Progress) -> Any:
    """Execute ``notebook``, the chapter at ``path``, in a new kernel of this interpreter; return it with outputs.

    The kernel works in the folder of the chapter. In the demo profile it sees no GPU, so that its outputs are those of
    any machine. No cell has a time limit.
    """
    import nbclient.exceptions
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    runs = data_root() / "runs" / path.stem
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, runs) from error
    running = runs / f"running-{settings.name}.ipynb"
    cells = [cell for cell in notebooks.code_cells(notebook) if cell.source.strip()]
    numbers = {cell.id: number for number, cell in enumerate(cells, 1)}
    headings = _headings(notebook)
    current: list[str] = []

    def finished(cell: Any, cell_index: int, execute_reply: Any) -> None:
        progress.peak_memory = max(progress.peak_memory, _peak_memory())

    def started(cell: Any, cell_index: int) -> None:
        if cell.id in numbers:
            current[:] = [cell.id]
            progress.cell(numbers[cell.id], len(cells), headings[cell.id])

    values = dict(settings.parameters)
    if settings.profile != "demo":
        values["profile"] = settings.profile
    try:
        executed = papermill.execute_notebook(
            copy.deepcopy(notebook),
            str(running),
            parameters=values,
            kernel_name="python3",
            language="python",
            cwd=str(path.parent.resolve()),
            progress_bar=False,
            stdout_file=progress,
            start_timeout=120,
            engine_name=_engine(),
            kernel_manager_class=_kernel_class(settings.profile),
            on_cell_execute=started,
            on_cell_executed=finished,
        )
        broken = [cell for cell in executed.cells if _has_error(cell)]
        if broken:  # papermill takes sys.exit() in a cell for the end of a notebook
            raise _failure(broken[0].id, "SystemExit: a chapter must run to its end", running, path, cells)
        return executed
    except PapermillExecutionError as error:
        # The file has papermill's own cells more, so the id tells which cell it was, not the position.
        failed = [cell.id for cell in notebooks.read(running).cells if _has_error(cell)]
        what = f"{error.ename}: {error.evalue or 'no message'}"
        raise _failure((failed or current or [""])[0], what, running, path, cells) from error
    except nbclient.exceptions.DeadKernelError as error:
        what = "the kernel died; often the memory was full"
        raise _failure((current or [""])[0], what, running, path, cells) from error
    except RuntimeError as error:  # what nbclient raises when a kernel does not come up
        raise _failure((current or [""])[0], f"the kernel does not answer: {error}", running, path, cells) from error
    except OSError as error:
        raise explain(error, running) from error
    finally:
        running.unlink(missing_ok=True)


def _precision() -> str:
    """What trainings compute in on this machine; one without bfloat16 takes several times as long."""
    from brainlib.train import automatic_precision  # it imports torch, which no other command of `brainlib run` needs

    return automatic_precision()


def _peak_memory() -> int:
    """Bytes that the largest process started by this one has needed at most; 0 where there is no /proc to say so."""
    peaks = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if int(facts["PPid"]) == os.getpid():
                peaks.append(int(facts["VmHWM"].split()[0]) * 1024)
        except (OSError, KeyError, ValueError):  # gone meanwhile, or a process of the kernel's own
            continue
    return max(peaks)


def _failure(cell_id: str, what: str, running: Path, path: Path, cells: list[Any]) -> ChapterError:
    """Keep what ran; say where it stopped and why."""
    name = running.stem.removeprefix("running-")
    kept = running.with_name("failed.ipynb" if name in PROFILES else f"failed-{name}.ipynb")
    if running.is_file():
        running.replace(kept)
    where = "its beginning, before the first cell"
    for number, cell in enumerate(cells, 1):
        if cell.id == cell_id:
            lines = [line.strip() for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
            where = f"code cell {number} of {len(cells)} (id {cell_id}): {(lines or [''])[0]}"
    return ChapterError(f"{where}\n  {what}\n  What ran is kept for inspection in {kept}; {path.name} is unchanged.")


def _has_error(cell: Any) -> bool:
    return cell.cell_type == "code" and any(output.output_type == "error" for output in cell.outputs)


def _headings(notebook: Any) -> dict[str, str]:
    """The heading above each cell, by cell id."""
    heading, found = "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = re.findall(r"^#{1,4}\s+(.+?)\s*$", cell.source, re.MULTILINE)
            heading = lines[-1] if lines else heading
        found[cell.id] = heading
    return found


def _mark(root: Path, path: Path, notebook: Any, settings: Settings) -> dict[str, Any]:
    mark = notebooks.make_mark(path, notebook, root, settings.profile)
    if settings.destination(path) != path:  # a full run makes the records; it cannot be stale because of them
        mark.pop("records")
    return {**mark, **{name: value for name, value in settings.parameters.items() if name not in mark}}


def _stamp(root: Path, path: Path) -> Path:
    """The file that remembers the mark of the last run on this machine; ``make clean`` removes it."""
    return root / "_build" / "executed" / f"{path.stem}.json"


def _engine() -> str:
    """The name of papermill's usual engine, but for one thing: it writes the notebook now and then.

    papermill writes all of it before and after each cell, Markdown too: 434 times in chapter 14, each up to a fiftieth
    of a second.
    """
    from papermill.engines import NBClientEngine, papermill_engines

    class Sparing(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, *args: Any, **options: Any) -> Any:
            save = nb_man.save

            def now_and_then(**unused: Any) -> None:
                if (nb_man.now() - nb_man.last_save_time).total_seconds() >= SAVE_SECONDS:
                    save()

            nb_man.save = now_and_then
            try:
                return super().execute_managed_notebook(nb_man, *args, **options)
            finally:
                nb_man.save = save  # for papermill's own last one

    papermill_engines.register("sparing", Sparing)
    return "sparing"


def _kernel_class(profile: str) -> type:
    """A kernel manager that starts the interpreter which runs this code, whatever kernels are installed."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                # The history of IPython is a database in the home folder, which network file systems lock badly.
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
                + ["--HistoryManager.enabled=False", "--Application.log_level=CRITICAL"],
                # Sets print in one order, figures go to the notebook even where MPLBACKEND says otherwise, and controls
                # hold all their pictures.
                env={
                    "PYTHONHASHSEED": "0",
                    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                    "BRAINLIB_CONTROLS": "static",
                    **({"CUDA_VISIBLE_DEVICES": ""} if profile == "demo" else {}),
                },
                language="python",
                **{k: v for k, v in notebooks.KERNELSPEC.items() if k == "display_name"},
            )

    return ThisInterpreter
