"""Small courses for the tests of the machinery: a folder with ``_toc.yml`` and chapters of a few cells."""

import json
from pathlib import Path

import nbformat

from brainlib import notebooks

ADDRESS = "https://example.org/course"
CARD = """\
:::{admonition} Card
**Objectives.** You will be able to
1. count
2. add
3. subtract

**Prerequisites**: none. **Time**: 5 minutes to read, 4 seconds to run. **Data**: none.
:::"""
CAPTION, ALT = "A line that rises.", "Line plot of two points; the line rises from left to right at an even slope."


def markdown(name: str, source: str, *tags: str):
    cell = nbformat.v4.new_markdown_cell(source, id=name)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def code(name: str, source: str, *tags: str, **metadata):
    cell = nbformat.v4.new_code_cell(source, id=name, metadata=metadata)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def chapter(*body, number: int = 1):
    """A chapter that passes every check but freshness, with ``body`` before its exercises."""
    solved = []
    for k in (1, 2, 3, 4):
        solved += [
            markdown(f"exercise-{k}", f"**{number}.{k} (5 min, objective {min(k, 3)}).** Return {k}."),
            code(
                f"solution-{k}", f"### BEGIN SOLUTION\nanswer = {k}\n### END SOLUTION", "exercise-solution", "hide-cell"
            ),
            code(f"check-{k}", f"### BEGIN HIDDEN TESTS\nassert answer == {k}\n### END HIDDEN TESTS", "exercise-check"),
        ]
    cells = [
        markdown("title", "# A chapter\n\nFor teaching and research, not a medical device."),
        markdown("card", CARD),
        code("setup", notebooks.setup_cell(ADDRESS), "setup"),
        code("parameters", 'profile = "demo"\nseed = 0', "parameters"),
        *body,
        markdown("recap", "## Recap\n\nIt counts."),
        markdown("pitfalls", "## Pitfalls\n\nNone."),
        markdown("reading", "## Further reading\n\nNone."),
        markdown("exercises", "## Exercises"),
        *solved,
    ]
    metadata = {"kernelspec": dict(notebooks.KERNELSPEC), "language_info": dict(notebooks.LANGUAGE)}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def write_course(root: Path, **chapters) -> Path:
    """Write a course whose chapters are ``chapters`` (file stem to notebook), listed in reverse in ``_toc.yml``."""
    (root / "chapters").mkdir(parents=True)
    (root / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    files = [{"file": f"chapters/{stem}"} for stem in reversed(chapters)]
    contents = {"format": "jb-book", "root": "book/index", "parts": [{"caption": "All", "chapters": files}]}
    (root / "_toc.yml").write_text(json.dumps(contents))  # JSON is YAML
    for stem, notebook in chapters.items():
        notebooks.write(root / "chapters" / f"{stem}.ipynb", notebook)
    return root


def mark_fresh(root: Path, path: Path) -> None:
    """Give the chapter at ``path`` the mark that a run would give it."""
    notebook = notebooks.read(path)
    notebook.metadata["brainlib"] = {**notebooks.make_mark(path, notebook, root), "seconds": 3}
    notebooks.write(path, notebook)
