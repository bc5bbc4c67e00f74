"""Chapters as files: order, cleaning, the set-up cell, and what makes a chapter stale."""

import ast
import shutil

import nbformat
import pytest
from tiny_course import ADDRESS, chapter, code, markdown, write_course

from brainlib import notebooks
from brainlib.files import DataError


@pytest.fixture
def course(tmp_path):
    return write_course(tmp_path / "course", **{"01_a": chapter(), "02_b": chapter(number=2)})


@pytest.fixture
def package(tmp_path):
    """A package ``brainlib`` of four modules; ``alone`` is imported by none."""
    folder = tmp_path / "brainlib"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""The library."""\n')
    (folder / "data" / "__init__.py").write_text("from .mri import load\n")
    (folder / "data" / "mri.py").write_text(
        'from ..files import root\n\ndef load():\n    """Load."""\n    return root()\n'
    )
    (folder / "files.py").write_text("def root():\n    return 1\n")
    (folder / "alone.py").write_text("x = 1\n")
    return folder


def test_chapters_come_in_the_order_of_the_book_and_unlisted_ones_last(course):
    notebooks.write(course / "chapters" / "00_new.ipynb", chapter())
    assert [path.stem for path in notebooks.chapters(course)] == ["02_b", "01_a", "00_new"]


@pytest.mark.parametrize("name", ["01", "01_a", "01_a.ipynb", "chapters/01_a.ipynb"])
def test_a_chapter_has_several_names(course, name):
    assert [path.stem for path in notebooks.find_chapters(course, [name])] == ["01_a"]


def test_an_unknown_chapter_is_refused_with_the_known_ones(course):
    with pytest.raises(DataError, match=r"^09: no such chapter. The chapters are: 02_b, 01_a$"):
        notebooks.find_chapters(course, ["01", "09"])


def test_the_course_is_found_from_any_folder_in_it(course, tmp_path, monkeypatch):
    assert notebooks.course_root(course / "chapters") == course.resolve()
    monkeypatch.setattr(notebooks, "PACKAGE", tmp_path / "site" / "brainlib")
    with pytest.raises(DataError, match="not the folder of the course.*git clone"):
        notebooks.course_root(tmp_path)


def test_a_broken_notebook_is_named(course):
    path = course / "chapters" / "01_a.ipynb"
    path.write_text('{"cells": [')
    with pytest.raises(DataError, match="01_a.ipynb: not a Jupyter notebook"):
        notebooks.read(path)
    with pytest.raises(DataError, match="09.ipynb: cannot be read"):
        notebooks.read(course / "chapters" / "09.ipynb")


# The set-up cell


def test_the_address_is_one_setting(repository, course):
    assert notebooks.repository_address(course) == ADDRESS
    assert f'Repository = "{notebooks.repository_address()}"' in (repository / "pyproject.toml").read_text()


def test_an_installed_library_knows_the_address_too(tmp_path, repository):
    assert notebooks.repository_address(tmp_path) == notebooks.repository_address(repository)


def test_the_set_up_cell_is_short_plain_python_and_names_the_address():
    text = notebooks.setup_cell("https://example.org/elsewhere")
    ast.parse(text)
    assert "git+https://example.org/elsewhere" in text
    assert len(text.splitlines()) <= 18 and max(map(len, text.splitlines())) <= 80


def test_stamping_writes_the_set_up_cell_and_nothing_else():
    notebook = chapter(code("other", "x = 1"))
    notebook.cells[2].source = "# old"
    before = [cell.source for cell in notebook.cells]
    assert notebooks.stamp_setup(notebook, ADDRESS)
    assert [i for i, cell in enumerate(notebook.cells) if cell.source != before[i]] == [2]
    assert not notebooks.stamp_setup(notebook, ADDRESS)


# Cleaning


def test_cleaning_leaves_what_does_not_change_from_run_to_run():
    cell = code("keep", "f()", "hide-input", papermill={"duration": 1}, execution={"iopub": "2026"}, collapsed=True)
    cell.execution_count = 7
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=" 10 %\r 50 %"),
        nbformat.v4.new_output("stream", name="stdout", text="\r100 %\ndone\n"),
        nbformat.v4.new_output("stream", name="stdout", text="\r      \r"),
        nbformat.v4.new_output("display_data", {notebooks.WIDGET_VIEW: {}, "text/plain": "IntSlider()"}),
        nbformat.v4.new_output("display_data", {notebooks.WIDGET_VIEW: {}, "text/html": "<p>frames</p>"}),
        nbformat.v4.new_output("execute_result", {"text/plain": "3"}, execution_count=7),
    ]
    injected = code("injected", "seed = 3", "injected-parameters")
    marker = markdown("marker", "An Exception", "papermill-error-cell-tag")
    notebook = chapter(injected, cell, marker)
    notebook.metadata.update(papermill={}, widgets={"state": {}}, accelerator="GPU")
    notebook.metadata["kernelspec"] = {"name": "my-env", "display_name": "Mine"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    notebooks.clean(notebook)
    names = [c.id for c in notebook.cells]
    assert "keep" in names and not {"injected", "marker"} & set(names)
    cell = notebook.cells[names.index("keep")]
    assert dict(cell.metadata) == {"tags": ["hide-input"]} and cell.execution_count is None
    assert [output.get("text") or dict(output.data) for output in cell.outputs] == [
        "100 %\ndone\n",
        {"text/html": "<p>frames</p>"},
        {"text/plain": "3"},
    ]
    assert cell.outputs[-1].execution_count is None
    assert set(notebook.metadata) == {"accelerator", "kernelspec", "language_info"}
    assert notebook.metadata["language_info"] == {"name": "python"}
    nbformat.validate(notebook)
    once = nbformat.writes(notebook)
    notebooks.clean(notebook)
    assert nbformat.writes(notebook) == once


def test_parameters_are_read_with_their_defaults():
    notebook = chapter()
    notebook.cells[3].source = 'profile = "demo"\nseed: int = 0\nrates = [0.1, 0.2]\nwhere = home()'
    assert notebooks.parameters(notebook) == {"profile": "demo", "seed": 0, "rates": [0.1, 0.2], "where": None}
    notebook.cells[3].source = 'n: int\nfor name in ("a", "b"):\n    print(name)\nn += 1\nepochs: int = 3'
    assert notebooks.parameters(notebook) == {"epochs": 3}


# The freshness mark


def test_the_code_hash_follows_code_only():
    before = notebooks.code_hash(chapter(code("a", "x = 1"), markdown("m", "one")))
    assert before == notebooks.code_hash(chapter(code("a", "x = 1"), markdown("m", "two")))
    assert before != notebooks.code_hash(chapter(code("a", "x = 2"), markdown("m", "one")))
    restamped = chapter(code("a", "x = 1"), markdown("m", "one"))
    restamped.cells[2].source = "# another address"
    assert before == notebooks.code_hash(restamped)


@pytest.mark.parametrize(
    "source",
    [
        "from brainlib.data import load",
        "import brainlib.data",
        "import brainlib.data.mri as mri",
        "from brainlib import data",
        "%matplotlib inline\n!ls\ndef f():\n    from brainlib.data.mri import load",
    ],
)
def test_imports_are_followed_through_packages_and_relative_imports(package, source):
    found = notebooks.imported_modules([source], package)
    assert sorted(found) == ["brainlib", "brainlib.data", "brainlib.data.mri", "brainlib.files"]


def test_other_imports_do_not_count(package):
    assert notebooks.imported_modules(["import numpy, os.path", "from torch import nn", "not python"], package) == {}
    assert sorted(notebooks.imported_modules(["from brainlib import something"], package)) == ["brainlib"]


def test_the_real_library_is_followed():
    found = notebooks.imported_modules(["from brainlib.models import create_model"])
    assert "brainlib.models.custom_cnn" in found and "brainlib.course" not in found


def test_the_library_hash_follows_what_a_module_does_not_what_it_says(package):
    notebook = chapter(code("a", "from brainlib.data import load"))
    before = notebooks.library_hash(notebook, package)
    mri, files = package / "data" / "mri.py", package / "files.py"
    mri.write_text(mri.read_text().replace('"""Load."""', '"""Load the slices."""  # all of them\n'))
    (package / "alone.py").write_text("x = 2\n")
    assert notebooks.library_hash(notebook, package) == before
    files.write_text("def root():\n    return 2\n")
    assert notebooks.library_hash(notebook, package) != before


def test_the_library_hash_follows_the_tables_that_a_module_reads(package):
    notebook, other = chapter(code("a", "from brainlib.data import load")), chapter(code("a", "import brainlib.alone"))
    table = package / "data" / "tables" / "patients.csv"
    table.parent.mkdir()
    table.write_text("id\n1\n")
    (table.parent / "README.md").write_text("What they are.")
    mri = package / "data" / "mri.py"
    mri.write_text(mri.read_text() + 'TABLE = "tables/patients.csv"\n')
    before = [notebooks.library_hash(n, package) for n in (notebook, other)]
    table.write_text("id\n2\n")
    (table.parent / "README.md").write_text("What else they are.")
    after = [notebooks.library_hash(n, package) for n in (notebook, other)]
    assert after[0] != before[0] and after[1] == before[1]


def test_the_library_hash_follows_the_tables_of_the_course(tmp_path):
    shutil.copytree(notebooks.PACKAGE, tmp_path / "brainlib", ignore=shutil.ignore_patterns("__pycache__"))
    for cell, name in (
        ("from brainlib.segmenters import split_patients", "patients.csv"),
        ("from brainlib.data import load_mri", "brain_tumor_mri_match.csv.gz"),
    ):
        notebook = chapter(code("a", cell))
        before = notebooks.library_hash(notebook, tmp_path / "brainlib")
        table = tmp_path / "brainlib" / "data" / "tables" / name
        table.write_bytes(table.read_bytes() + b" ")
        assert notebooks.library_hash(notebook, tmp_path / "brainlib") != before


def test_a_string_that_is_no_docstring_counts(package):
    notebook = chapter(code("a", "import brainlib.alone"))
    hashes = set()
    for text in ("x = 'a'\n", "x = 'b'\n", "x = None\n", "x = 1\n", "x = 1.0\n", "x = True\n"):
        (package / "alone.py").write_text(text)
        hashes.add(notebooks.library_hash(notebook, package))
    assert len(hashes) == 6
