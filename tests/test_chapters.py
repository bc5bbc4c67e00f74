"""The committed chapters hold what `brainlib.checks` asks of a chapter."""

from pathlib import Path

import pytest

from brainlib import checks, notebooks

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = notebooks.chapters(ROOT)


def test_there_are_chapters_and_the_book_lists_them():
    contents = (ROOT / "_toc.yml").read_text()
    assert CHAPTERS
    assert [path.stem for path in CHAPTERS if f"chapters/{path.stem}" not in contents] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_no_problems(path):
    problems = checks.check_chapter(path, ROOT)
    assert not problems, "\n".join(problems)


def test_figure_labels_are_used_once():
    assert [problem for problem in checks.check_chapters(ROOT, []) if "figure label" in problem] == []
