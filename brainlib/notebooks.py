"""Chapters as files: found in the order of the book, cleaned, and marked so that stale outputs are noticed."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from brainlib.files import DataError, write_text

PACKAGE = Path(__file__).resolve().parent
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python"}
# What survives cleaning. All else (times, counts, widget state, the traces of editors) changes from run to run.
NOTEBOOK_METADATA = ("accelerator", "brainlib", "kernelspec", "language_info", "mystnb")
# cellView (Colab) and jupyter fold a solution away in a live notebook.
CELL_METADATA = ("cellView", "deletable", "editable", "jupyter", "mystnb", "nbgrader", "slideshow", "tags")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

SETUP_CELL = """\
# Install the course's library where it is missing (in Colab).
# The torch and numpy that are there stay as they are.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version

if importlib.util.find_spec("brainlib") is None:
    source = "git+{address}"
    source = os.environ.get("BRAINLIB_SOURCE", source)
    print("Installing brainlib from", source)
    there = filter(importlib.util.find_spec, ("torch", "numpy"))
    keep = [f"{{name}}=={{version(name)}}" for name in there]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, source, *keep], check=True)
    importlib.invalidate_caches()"""


# Where the course and its chapters are


def course_root(start: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the course: the one that holds ``chapters/`` and ``_toc.yml``.

    Looked for from ``start`` (default: the working folder) upward, then around the installed library, which finds it
    for an editable install.

    Raises:
        DataError: brainlib was installed without the course.
    """
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents, PACKAGE.parent):
        if (folder / "chapters").is_dir() and (folder / "_toc.yml").is_file():
            return folder
    raise DataError(
        f"{here}: this is not the folder of the course (it has no chapters/ and _toc.yml). Clone it with "
        f"'git clone {repository_address()}' and run the command there."
    )


def repository_address(root: Path | None = None) -> str:
    """The public address of the course: ``[project.urls] Repository`` of ``pyproject.toml``.

    In a source tree the file itself is read, elsewhere the metadata of the installed package.
    """
    project = (root or PACKAGE.parent) / "pyproject.toml"
    if project.is_file():
        # One line of TOML, read by hand: Python 3.10 has no TOML reader.
        found = re.search(r'^Repository\s*=\s*"([^"]+)"', project.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    try:
        urls = importlib.metadata.metadata("brainlib").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        urls = []
    for url in urls:
        label, _, address = url.partition(", ")
        if label == "Repository":
            return address
    raise DataError("the address of the course is not set: write it to [project.urls] Repository in pyproject.toml")


def chapters(root: Path) -> list[Path]:
    """The chapters of the course in the order of ``_toc.yml``; those that it does not name come last."""
    import yaml

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "file" in node:
                yield str(node["file"])
            for child in node.values():
                yield from files(child)
        elif isinstance(node, list):
            for child in node:
                yield from files(child)

    try:
        contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{root / '_toc.yml'}: the table of contents cannot be read: {error}") from error
    present = sorted((root / "chapters").glob("*.ipynb"))
    order = [Path(name).with_suffix("").name for name in files(contents) if name.startswith("chapters/")]
    return sorted(present, key=lambda path: order.index(path.stem) if path.stem in order else len(order))


def find_chapters(root: Path, names: Iterable[str]) -> list[Path]:
    """The chapters that ``names`` mean, in the order of the book; all of them when there is no name.

    Each of ``05``, ``05_custom_cnn``, ``05_custom_cnn.ipynb`` and ``chapters/05_custom_cnn.ipynb`` names a chapter.

    Raises:
        DataError: no chapter, or more than one, has that name.
    """
    known = chapters(root)
    wanted = []
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        matches = [path for path in known if path.stem == stem or path.stem.split("_")[0] == stem]
        if len(matches) != 1:
            listing = ", ".join(path.stem for path in known) or "none yet"
            raise DataError(f"{name}: no such chapter. The chapters are: {listing}")
        wanted += matches
    return [path for path in known if path in wanted] if wanted else known


# Reading, cleaning, writing


def read(path: Path) -> Any:
    """Read a notebook as an nbformat version 4 node.

    Raises:
        DataError: there is no such file, or it is not a notebook.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise DataError(f"{path}: not a Jupyter notebook: {str(error).splitlines()[0]}") from error


def write(path: Path, notebook: Any) -> None:
    """Write a notebook atomically, its keys in a fixed order."""
    import nbformat

    write_text(path, nbformat.writes(notebook) + "\n")


def tags(cell: Any) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", []))


def code_cells(notebook: Any) -> list[Any]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook: Any) -> dict[str, Any]:
    """Names and default values set in the cell tagged ``parameters``; a default that is not a literal is None."""
    found: dict[str, Any] = {}
    for cell in code_cells(notebook):
        if "parameters" not in tags(cell):
            continue
        for statement in parse_cell(cell.source).body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
                continue
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                if isinstance(target, ast.Name):
                    try:
                        found[target.id] = ast.literal_eval(statement.value)
                    except ValueError:
                        found[target.id] = None
    return found


def setup_cell(address: str | None = None) -> str:
    """The text of the set-up cell of every chapter (tag ``setup``), for the public ``address`` of the course."""
    return SETUP_CELL.format(address=address or repository_address())


def stamp_setup(notebook: Any, address: str | None = None) -> bool:
    """Write the canonical set-up cell into the cells tagged ``setup``; True if that changed something."""
    text, changed = setup_cell(address), False
    for cell in code_cells(notebook):
        if "setup" in tags(cell) and cell.source != text:
            cell.source, changed = text, True
    return changed


def clean(notebook: Any, *, keep_injected: bool = False) -> None:
    """Remove, in place, all that differs between two runs of the same code: counts, times, injected cells, widgets.

    Args:
        keep_injected: keep the cell with the parameters of this run (for notebooks that stay on this machine).
    """
    unwanted = {"papermill-error-cell-tag"} if keep_injected else {"papermill-error-cell-tag", "injected-parameters"}
    notebook.cells = [cell for cell in notebook.cells if not tags(cell) & unwanted]
    for cell in notebook.cells:
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill gives every cell an empty list
        for key in set(cell.metadata) - set(CELL_METADATA):
            del cell.metadata[key]
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = list(_clean_outputs(cell.outputs))
    for key in set(notebook.metadata) - set(NOTEBOOK_METADATA):
        del notebook.metadata[key]
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    notebook.metadata["language_info"] = dict(LANGUAGE)


def _clean_outputs(outputs: list[Any]) -> Iterator[Any]:
    previous = None
    for output in outputs:
        if output.output_type == "stream":
            if previous is not None and previous.output_type == "stream" and previous.name == output.name:
                previous.text += output.text
                continue
        elif WIDGET_VIEW in output.get("data", {}):
            del output.data[WIDGET_VIEW]
            if set(output.data) <= {"text/plain"}:  # the text of a widget is its constructor: nothing for a reader
                continue
        if "execution_count" in output:
            output.execution_count = None
        if previous is not None:
            yield from _settle(previous)
        previous = output
    if previous is not None:
        yield from _settle(previous)


def _settle(output: Any) -> Iterator[Any]:
    """A stream as it looks when a terminal has obeyed its carriage returns: a progress bar becomes its last state."""
    if output.output_type == "stream":
        lines = output.text.split("\n")
        output.text = "\n".join(([part for part in line.split("\r") if part.strip()] or [""])[-1] for line in lines)
        if not output.text.strip():
            return
    yield output


# The freshness mark


def code_hash(notebook: Any) -> str:
    """Sixteen hex digits over the sources of the code cells.

    The set-up cell is left out: it is the same in every chapter, has a check of its own, and changes no result.
    """
    sources = [c.source.strip() for c in code_cells(notebook) if not tags(c) & {"setup", "injected-parameters"}]
    return _digest(json.dumps(sources))


def library_hash(notebook: Any, package: Path = PACKAGE) -> str:
    """Sixteen hex digits over the modules of ``package`` that the code cells import, directly or through others.

    Comments, docstrings and layout do not count: what a module does makes a chapter stale, what it says does not. The
    tables in ``data/tables`` that a module names count with it.
    """
    modules = imported_modules([cell.source for cell in code_cells(notebook)], package)
    parts = [(name, _canonical(ast.parse(path.read_bytes()))) for name, path in sorted(modules.items())]
    code = repr(parts)
    tables = [path for path in sorted((package / "data" / "tables").glob("*")) if path.name in code]
    return _digest(code + "".join(f"\n{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in tables))


def records_hash(chapter: str, notebook: Any, root: Path, package: Path = PACKAGE) -> str:
    """Sixteen hex digits over the recorded results that a chapter may show; "none" without any.

    These are its own, and those of every chapter that its code cells name, or that a module does which they import.
    """
    sources = [cell.source for cell in code_cells(notebook)]
    named = [*sources, *(path.read_text(encoding="utf-8") for path in imported_modules(sources, package).values())]
    folders = [folder for folder in sorted((root / "book" / "results").glob("*")) if folder.is_dir()]
    files = [
        path
        for folder in folders
        if folder.name == chapter or any(folder.name in text for text in named)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    parts = [path.name + hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return _digest("\n".join(parts)) if parts else "none"


def make_mark(path: Path, notebook: Any, root: Path, profile: str = "demo", package: Path = PACKAGE) -> dict[str, Any]:
    """The mark that a run of ``notebook`` (the chapter at ``path``) leaves, without the seconds that it took."""
    return {
        "code": code_hash(notebook),
        "library": library_hash(notebook, package),
        "records": records_hash(path.stem, notebook, root, package),
        "profile": profile,
    }


def stale(mark: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What has changed since ``mark`` was made, in words; an empty list means fresh."""
    if not mark:
        return ["it was never executed by 'brainlib run'"]
    words = {
        "code": "its code cells changed",
        "library": "a brainlib module that it uses changed",
        "records": "its recorded results changed",
        "profile": "it was executed in another profile",
    }
    words = {key: words.get(key, f"the parameter {key} changed") for key in expected}
    return [text for key, text in words.items() if mark.get(key) != expected[key]]


def imported_modules(sources: Iterable[str], package: Path = PACKAGE) -> dict[str, Path]:
    """The modules of ``package`` that Python ``sources`` import, transitively: dotted name to file."""

    def file_of(name: str) -> Path | None:
        base = package.parent.joinpath(*name.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    found: dict[str, Path] = {}
    waiting = [name for source in sources for name in _imports(parse_cell(source), "")]
    while waiting:
        parts = waiting.pop().split(".")
        if parts[0] != package.name:
            continue
        for length in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b first
            name = ".".join(parts[:length])
            path = file_of(name)
            if path is not None and name not in found:
                found[name] = path
                parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
                waiting += _imports(ast.parse(path.read_bytes()), parent)
    return found


def _imports(tree: ast.AST, parent: str) -> Iterator[str]:
    """Dotted names that ``tree`` may import; ``parent`` is the package in which relative imports start."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = parent.split(".")[: len(parent.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # a module, or a name that no file matches


def parse_cell(source: str) -> ast.Module:
    """Parse a cell; lines for IPython (``%magic``, ``!command``) are blanked. A cell that is not Python is empty."""
    lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def _canonical(node: Any) -> Any:
    """A syntax tree as nested tuples, without docstrings.

    Empty fields are left out, because new versions of Python add some: the mark must not depend on the version.
    """
    if isinstance(node, ast.Constant):
        return (type(node.value).__name__, repr(node.value))
    if isinstance(node, ast.AST):
        fields = {name: getattr(node, name, None) for name in node._fields}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                fields["body"] = node.body[1:]
        return (type(node).__name__, [(k, _canonical(v)) for k, v in fields.items() if v is not None and v != []])
    return [_canonical(item) for item in node] if isinstance(node, list) else repr(node)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
