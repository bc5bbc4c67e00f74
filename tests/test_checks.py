"""Each check lets a good chapter pass and catches the defect that it is for."""

import nbformat
import pytest
from tiny_course import ADDRESS, ALT, CAPTION, chapter, code, mark_fresh, markdown, write_course

from brainlib import checks, notebooks

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def figure_cell(name="figure", alt=ALT, caption=CAPTION, label="fig-01-line", count=1):
    mystnb = {"image": {"alt": alt}, "figure": {"caption": caption, "name": label}}
    cell = code(name, "draw()", mystnb=mystnb)
    data = {"image/png": PIXEL, "text/plain": "<Figure size 640x480 with 1 Axes>"}
    cell.outputs = [nbformat.v4.new_output("display_data", data) for _ in range(count)]
    return cell


def control_cell(alt=ALT, caption=CAPTION, tags=("nbval-ignore-output",), source="show()"):
    """A cell that shows a control of `brainlib.interact`, whose pictures could hold any letters."""
    html = (
        f'<figure class="brainlib-scrub" id="x">\n<img src="data:image/webp;base64,A+/tmp/site/home/aZ=" alt="{alt}">\n'
        f"<figcaption>{caption}</figcaption>\n<script></script>\n</figure>"
    )
    cell = code("control", source, *tags)
    data = {"text/html": html, "text/plain": "Scrub(x: 2 values)\n" * 40}
    cell.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=None)]
    return cell


def printing(text, name="stdout"):
    cell = code("prints", "show()")
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text)]
    return cell


def problems_of(tmp_path, notebook, fresh=True):
    root = write_course(tmp_path / "course", **{"01_a": notebook})
    path = root / "chapters" / "01_a.ipynb"
    if fresh:
        mark_fresh(root, path)
    return checks.check_chapters(root)


def test_a_good_chapter_has_no_problems(tmp_path):
    body = [
        markdown(
            "math", "A loss of $0.693$ is $\\ln 2$, and\n$$x = 0.125 / 2$$\n```{math}\n0.25\n```\nso `0.75` is code."
        ),
        markdown("facts", "One adult in 3 % of cases {cite}`somebody`.", "facts"),
        markdown("link", "See [the paper](https://doi.org/10.1000/0.123) and 12 slices, 0.5 mm, section 1.10."),
        printing("one line\n" * 30),
        figure_cell(),
        control_cell(),
    ]
    assert problems_of(tmp_path, chapter(*body)) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # figures
        (figure_cell(alt="A plot."), "no alt text"),
        (figure_cell(caption=" "), "no caption"),
        (figure_cell(label="fig-02-line"), "is not fig-01-"),
        (figure_cell(count=2), "2 figures"),
        # controls
        (control_cell(alt="A plot."), "a picture in HTML has no alt text of 40"),
        (control_cell(alt="&quot;" * 39), "a picture in HTML has no alt text of 40"),
        (control_cell(caption=" "), "a control has no caption"),
        (control_cell(tags=()), "not tagged 'nbval-ignore-output'"),
        # outputs
        (printing("line\n" * 31), "prints 31 lines"),
        (printing("oh\n", "stderr"), "writes to stderr"),
        (printing("x.py:3: UserWarning: old\n"), "a warning, UserWarning:"),
        (printing("<matplotlib.legend.Legend object at 0x7f4f5d95b4d0>\n"), "an object's address"),
        (printing("saved to /home/ann/x.npz\n"), "an absolute path in the output: /home/ann/x.npz"),
        (printing("C:\\Users\\ann\n"), "an absolute path in the output"),
        (printing("lib/python3.11/site-packages/torch\n"), "an absolute path in the output"),
        # sources
        (code("path", "open('/tmp/x')"), "an absolute path in the source: /tmp/x"),
        (markdown("path", "Look in /Users/ann/data."), "an absolute path in the source"),
        (code("long", "x = 1\n" * 21), "21 lines of code"),
        (code("semicolon", "f();"), "ends with a semicolon"),
        (code("hides", "def seed(x):\n    return x"), "hides: seed hides the parameter of that name"),
        (code("hides", "from numpy import random as seed"), "seed hides the parameter"),
        (code("empty", ""), "an empty code cell"),
        (code("tag", "1", "exercise-soluton"), "unknown tag 'exercise-soluton'"),
        (code("tag", "1", "raises-exception"), "unknown tag 'raises-exception'"),
        (code("trace", "1", papermill={"duration": 1.0}), "cell metadata 'papermill'"),
        # numbers in prose
        (markdown("number", "It is right in 97.3 % of cases."), "typed into prose, '97.3 %'"),
        (markdown("number", "It is right in 97% of cases."), "typed into prose, '97%'"),
        (markdown("number", "The AUROC is 0.993."), "typed into prose, '0.993'"),
        (markdown("number", ":::{note}\nThe AUROC is 0.993.\n:::"), "typed into prose, '0.993'"),
        (
            markdown("number", "````{admonition} A\n```python\n0.25\n```\nIt is 0.993.\n````"),
            "typed into prose, '0.993'",
        ),
        # exercises
        (
            code("s", "### BEGIN SOLUTION\nx = 1\n### END SOLUTION", "exercise-solution"),
            "no cell tagged 'exercise-check'",
        ),
        (code("c", "### BEGIN HIDDEN TESTS\nassert 1\n### END HIDDEN TESTS", "exercise-check"), "follows no solution"),
        (
            code("s", "### BEGIN SOLUTION\n### END SOLUTION", "exercise-solution"),
            "not between lines '### BEGIN SOLUTION'",
        ),
        (code("s", "x = 1  # no marker", "exercise-solution"), "not between lines '### BEGIN SOLUTION'"),
        (code("s", "### BEGIN SOLUTION\nx = 1\n### END SOLUTION"), "a marker of an exercise but not its tag"),
        (markdown("e", "**1.9 (5 min, objective 3).** Unsolved."), "5 exercises are stated but 4 solved"),
        (markdown("e", "**1.1 (5 min, objective 3).** Again."), "exercise 1.1 is stated twice"),
        (markdown("e", "**2.9 (5 min, objective 3).** Elsewhere."), "number of another chapter"),
        (markdown("e", "**1.9 (5 min, objective 7).** Other."), "objective 7, which is not on the card"),
        (markdown("e", "**1.9 (objective 3).** Endless."), "exercise 1.9 does not say how long"),
        (markdown("h", "# A second title"), "more than one title"),
    ],
)
def test_a_defect_is_caught(tmp_path, body, expected):
    found = problems_of(tmp_path, chapter(body))
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda nb: nb.cells.pop(1), "no card"),
        (lambda nb: nb.cells.pop(2), "0 cells are tagged 'setup'"),
        (lambda nb: nb.cells.pop(3), "not exactly 1 code cell tagged 'parameters'"),
        (lambda nb: nb.cells[2].update(source="import os"), "not the canonical set-up cell"),
        (lambda nb: nb.cells[3].update(source='profile = "full"\nseed = 0'), 'does not set profile = "demo"'),
        (lambda nb: nb.cells[0].update(source="# A chapter"), "not a medical device"),
        (lambda nb: nb.cells[0].update(source="For research, not a medical device"), "not a title"),
        (lambda nb: nb.cells[1].update(source=nb.cells[1].source.replace("3. subtract", "")), "2 numbered objectives"),
        (lambda nb: nb.cells[1].update(source=nb.cells[1].source.replace("3. s", "3. s\n4. s")), "tests objective 4"),
        (
            lambda nb: nb.cells[1].update(source=nb.cells[1].source.replace("Prereq", "Req")),
            "does not state its prerequisites",
        ),
        (lambda nb: nb.cells[1].update(source=nb.cells[1].source.replace("4 seconds", "a while")), "seconds to run"),
        (
            lambda nb: nb.cells[1].update(source=nb.cells[1].source.replace("4 sec", "80 sec")),
            "80 seconds to run, measured 3",
        ),
        (lambda nb: nb.cells.pop(4), "no section 'Recap'"),
        (lambda nb: nb.cells[3].update(execution_count=2), "has an execution count"),
        (lambda nb: nb.metadata.update(widgets={}), "notebook metadata 'widgets'"),
        (lambda nb: nb.metadata.kernelspec.update(name="my-env"), "the kernelspec is not"),
        (lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\n" + "x" * 1_600_000), "1.6 MB"),
        (lambda nb: nb.update(nbformat_minor=4), "older than 4.5"),
    ],
)
def test_a_missing_or_wrong_part_is_caught(tmp_path, change, expected):
    notebook = chapter()
    change(notebook)
    found = problems_of(tmp_path, notebook)
    assert any(expected in problem for problem in found), found


def test_stale_outputs_are_caught(tmp_path):
    assert any("never executed" in p for p in problems_of(tmp_path, chapter(), fresh=False))
    path = tmp_path / "course" / "chapters" / "01_a.ipynb"
    mark_fresh(tmp_path / "course", path)
    assert checks.check_chapters(tmp_path / "course") == []
    notebook = notebooks.read(path)
    notebook.cells[3].source += "\nspeed = 1"
    notebooks.write(path, notebook)
    assert checks.check_chapters(tmp_path / "course") == [
        "chapters/01_a.ipynb: stale outputs: its code cells changed; run 'brainlib run 01_a'"
    ]


def test_a_new_record_makes_the_chapter_that_shows_it_stale(tmp_path):
    assert problems_of(tmp_path, chapter()) == []
    records = tmp_path / "course" / "book" / "results" / "01_a"
    records.mkdir(parents=True)
    (records / "run.json").write_text("{}")
    assert "its recorded results changed" in checks.check_chapters(tmp_path / "course")[0]


@pytest.mark.parametrize(
    ("shows", "stale"),
    [
        ("from brainlib.results import load_records\nload_records('02_b')", True),
        ("from brainlib.experiments import CHAPTER", False),
        ("1 + 1", False),
    ],
)
def test_records_of_a_chapter_that_it_names_count_too(tmp_path, shows, stale):
    root = write_course(tmp_path / "course", **{"01_a": chapter(code("shows", shows))})
    mark_fresh(root, root / "chapters" / "01_a.ipynb")
    records = root / "book" / "results" / "02_b"
    records.mkdir(parents=True)
    (records / "run.json").write_text("{}")
    assert any("its recorded results changed" in line for line in checks.check_chapters(root)) == stale


def test_records_of_a_chapter_that_a_module_names_count_too(tmp_path):
    shows = code("shows", "from brainlib.experiments import CHAPTER")
    root = write_course(tmp_path / "course", **{"01_a": chapter(shows)})
    mark_fresh(root, root / "chapters" / "01_a.ipynb")
    records = root / "book" / "results" / "08_comparing_classifiers"
    records.mkdir(parents=True)
    (records / "run.json").write_text("{}")
    assert any("its recorded results changed" in line for line in checks.check_chapters(root))


def test_a_new_figure_of_a_record_makes_the_chapter_stale(tmp_path):
    root = write_course(tmp_path / "course", **{"01_a": chapter()})
    records = root / "book" / "results" / "01_a"
    records.mkdir(parents=True)
    (records / "run.json").write_text("{}")
    (records / "run.loss.webp").write_bytes(b"old")
    mark_fresh(root, root / "chapters" / "01_a.ipynb")
    assert checks.check_chapters(root) == []
    (records / "run.loss.webp").write_bytes(b"new")
    assert "its recorded results changed" in checks.check_chapters(root)[0]


def test_a_slow_or_greedy_chapter_is_caught(tmp_path):
    root = write_course(tmp_path / "course", **{"01_a": chapter()})
    path = root / "chapters" / "01_a.ipynb"
    notebook = notebooks.read(path)
    notebook.metadata["brainlib"] = {**notebooks.make_mark(path, notebook, root), "seconds": 200}
    notebook.metadata["brainlib"]["peak_memory_mb"] = 3100
    problems = checks.check_freshness(path, notebook, root)
    assert "the demo run took 200 s, more than 135 s" in problems
    assert "the demo run needed 3100 MB of memory, more than 3000 MB" in problems
    # Without bfloat16 a chapter may take longer, and the card, which means a processor that has it, is read loosely.
    notebook.metadata["brainlib"] |= {"precision": "32-true", "peak_memory_mb": 300, "seconds": 30}
    assert checks.check_freshness(path, notebook, root) == []
    notebook.metadata["brainlib"] |= {"precision": "bf16-mixed"}
    assert checks.check_freshness(path, notebook, root) == ["the card says 4 seconds to run, measured 30"]
    notebook.metadata["brainlib"] |= {"precision": "32-true", "seconds": 400}
    assert "the demo run took 400 s, more than 360 s" in checks.check_freshness(path, notebook, root)


def test_a_figure_label_may_be_used_once_in_the_book(tmp_path):
    root = write_course(tmp_path, **{"01_a": chapter(figure_cell()), "02_b": chapter(figure_cell(), number=2)})
    assert "the figure label fig-01-line is used 2 times" in checks.check_chapters(root)


def test_a_widget_and_an_error_in_an_output_are_caught(tmp_path):
    widget, failed = code("widget", "slider()"), code("failed", "1 / 0")
    widget.outputs = [nbformat.v4.new_output("display_data", {notebooks.WIDGET_VIEW: {"model_id": "1"}})]
    failed.outputs = [nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
    found = problems_of(tmp_path, chapter(widget, failed))
    assert any("holds a widget" in p for p in found) and any("an error, ZeroDivisionError" in p for p in found)


def test_a_picture_in_html_needs_alt_text(tmp_path):
    cell = code("html", "frames()")
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": '<img src="data:,">', "text/plain": "x"})]
    assert any("a picture in HTML" in p for p in problems_of(tmp_path, chapter(cell)))


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    root = write_course(tmp_path, **{"01_a": chapter()})
    (root / "chapters" / "01_a.ipynb").write_text("{")
    (found,) = checks.check_chapters(root)
    assert "01_a.ipynb: not a Jupyter notebook" in found


def test_the_address_of_the_set_up_cell_is_that_of_the_course(tmp_path):
    notebook = chapter()
    assert checks.check_setup(notebook, ADDRESS) == []
    assert checks.check_setup(notebook, "https://example.org/moved") != []


@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
def test_an_id_that_two_cells_share_is_caught(tmp_path):
    root = write_course(tmp_path, **{"01_a": chapter(code("twin-1", "1"), code("twin-2", "2"))})
    path = root / "chapters" / "01_a.ipynb"
    path.write_text(path.read_text().replace("twin-2", "twin-1"))
    found = checks.check_file(path, notebooks.read(path))
    assert found == ["the cell id 'twin-1' is used 2 times"]


def test_a_solution_may_have_several_blocks(tmp_path):
    source = "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n\n"
    cell = code("solution-1", source + source.replace("f()", "g()"), "exercise-solution", "hide-cell")
    notebook = chapter()
    position = [c.id for c in notebook.cells].index("solution-1")
    notebook.cells[position] = cell
    assert checks.check_exercises(notebook) == []
    cell.source = cell.source.replace("    ### END SOLUTION\n\ndef g", "\ndef g")
    assert "not between lines" in checks.check_exercises(notebook)[0]
