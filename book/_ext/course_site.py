"""The book's own Sphinx extension: what Jupyter Book cannot be told in ``_config.yml``.

* The public address comes from ``[project.urls] Repository`` in ``pyproject.toml``. The word ``REPOSITORY_URL`` in a
  page of ``book/`` stands for it, and the repository and Colab buttons are built from it.
* Cells tagged ``exercise-solution`` are folded away; the reader opens them with "Show a solution".
  The markers for grading tools in these cells and in ``exercise-check`` cells are not shown.
* The title of ``chapters/NN_slug`` begins with its number. Figures, tables, equations and exercises are numbered NN.1,
  NN.2, ..., whatever the place of the chapter in the book: a number never changes when another chapter is written.
* Scripts that would fetch code from another host (Thebe) are left out of the pages, and MathJax, which is served from
  ``_static``, is loaded only by pages with mathematics.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: Sphinx brings the same parser under its old name
    import tomli as tomllib

ADDRESS_WORD = "REPOSITORY_URL"
CHAPTER = re.compile(r"^chapters/(\d+)_")
# What cuts a student's notebook and titles a Colab form means nothing to a reader of the site.
MARKER = re.compile(r"^[ \t]*(### (BEGIN|END) (SOLUTION|HIDDEN TESTS)|# @title .*)[ \t]*(\n|\Z)", re.MULTILINE)


def read_address(root: Path) -> str:
    """The public address of the course, from ``pyproject.toml`` in the folder ``root``."""
    path = root / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))["project"]["urls"]["Repository"].rstrip("/")
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot read [project.urls] Repository, which the book's links need") from error


def set_address(app: Sphinx, config: Any) -> None:
    """Give the theme the address, before it derives its buttons from it."""
    config.html_theme_options["repository_url"] = read_address(Path(app.srcdir))


def fold_solutions(text: str) -> str:
    """A notebook's JSON with every cell tagged ``exercise-solution`` folded away, and without grading markers."""
    notebook = json.loads(text)
    for cell in notebook.get("cells", []):
        tags = cell.get("metadata", {}).get("tags", [])
        if {"exercise-solution", "exercise-check"} & set(tags):
            cell["source"] = MARKER.sub("", "".join(cell["source"])).rstrip("\n")
        if cell.get("cell_type") == "code" and "exercise-solution" in tags:
            if "hide-cell" not in tags:
                tags.append("hide-cell")
            prompts = cell["metadata"].setdefault("mystnb", {})
            prompts.setdefault("code_prompt_show", "Show a solution")
            prompts.setdefault("code_prompt_hide", "Hide the solution")
    return json.dumps(notebook)


def number_title(text: str, number: int) -> str:
    """A notebook's JSON with the chapter's number before its title, unless the title has one."""
    notebook = json.loads(text)
    for cell in notebook.get("cells", []):
        if cell.get("cell_type") == "markdown":
            source = "".join(cell["source"])
            cell["source"] = re.sub(r"\A# (?!\d)", f"# {number}. ", source)
            break
    return json.dumps(notebook)


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adapt a page between disk and parser."""
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        source[0] = fold_solutions(source[0])
        if match := CHAPTER.match(docname):
            source[0] = number_title(source[0], int(match[1]))
    elif docname.startswith("book/"):
        source[0] = source[0].replace(ADDRESS_WORD, read_address(Path(app.srcdir)))


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Replace the running numbers of figures and their kin by chapter numbers, or by numbers within the page."""
    for docname, kinds in env.toc_fignumbers.items():
        match = CHAPTER.match(docname)
        for numbers in kinds.values():
            for position, name in enumerate(numbers, start=1):
                numbers[name] = (int(match[1]), position) if match else (position,)
    return []


def trim_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave Thebe's scripts out, and show the one launch button as a button, not as a menu with one entry."""
    # Sphinx also loads MathJax where a page below has mathematics, so on the welcome page, which has none.
    unwanted = ["thebe"] if app.env.get_domain("math").data["has_equations"].get(pagename) else ["thebe", "mathjax"]
    for kind in ("script_files", "css_files"):
        context[kind] = [item for item in context.get(kind, []) if not _mentions(item, unwanted)]
    buttons = context.get("header_buttons", [])
    for place, button in enumerate(buttons):
        if button.get("label") == "launch-buttons" and len(button["buttons"]) == 1:
            only = button["buttons"][0]
            buttons[place] = only | {"icon": "fas fa-rocket", "text": "Open in Colab", "label": "colab-button"}


def load_per_page(app: Sphinx, *unused: Any) -> None:
    """Load MathJax on pages with mathematics only. Jupyter Book asks for it everywhere, once the application exists."""
    app.set_html_assets_policy("per_page")


def drop_thebe(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Remove the settings that Thebe's extension appends to each notebook's page."""
    for node in list(doctree.findall(nodes.raw)):
        if "text/x-thebe-config" in node.astext():
            node.parent.remove(node)


def _mentions(item: Any, words: list[str]) -> bool:
    """Whether a script or style sheet has one of `words` in its address or its text."""
    body = getattr(item, "attributes", {}).get("body") or ""
    text = f"{getattr(item, 'filename', item)}{body}".lower()
    return any(word in text for word in words)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", set_address, priority=100)
    app.connect("env-before-read-docs", load_per_page)
    app.connect("source-read", read_source)
    app.connect("env-get-updated", number_by_chapter, priority=900)
    app.connect("doctree-resolved", drop_thebe, priority=900)
    app.connect("html-page-context", trim_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
