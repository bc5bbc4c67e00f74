"""The checks of the exercises accept their solutions, refuse wrong answers, and say what is wrong."""

import functools
import importlib
import json
import pkgutil
from pathlib import Path

import pytest
import wrong_answers

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
MODULES = {
    name: importlib.import_module(f"wrong_answers.{name}")
    for _, name, _ in pkgutil.iter_modules(wrong_answers.__path__)
}
EXERCISES = [(module, name) for module in MODULES for name in MODULES[module].WRONG]
ANSWERS = [(module, name, *answer) for module, name in EXERCISES for answer in MODULES[module].WRONG[name]]


@functools.cache
def cells(chapter: str) -> dict[str, str]:
    """The sources of a chapter's cells by their ids."""
    content = json.loads((CHAPTERS / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in content["cells"]}


@functools.cache
def begun(module: str) -> dict:
    """What the chapter has defined when its exercises begin, as far as they need it."""
    place: dict = {}
    exec(MODULES[module].GIVEN, place)
    for name, end in MODULES[module].CELLS.items():
        source = cells(MODULES[module].CHAPTER)[name]
        exec(source.split(end)[0] if end else source, place)
    return place


def check(module: str, name: str, old: str, new: str) -> None:
    """Run an exercise's check on its solution with ``old`` replaced by ``new``."""
    source = cells(MODULES[module].CHAPTER)
    solution = source[f"{name}-solution"] + "\n"
    assert old in solution, "the solution has changed: change its wrong answers as well"
    place = dict(begun(module))
    exec(solution.replace(old, new), place)
    exec(source[f"{name}-check"], place)


@pytest.mark.parametrize(("module", "name"), EXERCISES)
def test_the_solution_passes(module, name):
    check(module, name, "", "")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of roots of negative numbers, say, which is the mistake
@pytest.mark.parametrize(("module", "name", "old", "new", "message"), ANSWERS)
def test_a_wrong_answer_is_refused(module, name, old, new, message):
    with pytest.raises(AssertionError, match=message):
        check(module, name, old, new)


def test_every_exercise_of_every_chapter_is_tried():
    tried = {MODULES[module].CHAPTER: set(MODULES[module].WRONG) for module in MODULES}
    assert set(tried) == {path.stem for path in CHAPTERS.glob("[0-9]*.ipynb")}
    for chapter, names in tried.items():
        solutions = {name.removesuffix("-solution") for name in cells(chapter) if name.endswith("-solution")}
        assert names == solutions, chapter
