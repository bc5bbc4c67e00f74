"""What every committed chapter must be: each check returns the problems that it finds, in words, or nothing.

`check_chapters` runs them all; ``brainlib check`` and the tests print what it returns.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

from brainlib import notebooks
from brainlib.files import DataError
from brainlib.pictures import MIN_ALT

MAX_BYTES = 1_500_000
MAX_OUTPUT_LINES = 30
MAX_CODE_LINES = 20  # aim for 15
#: Of a demo run on two cores. The aim is 90 seconds; cloud machines that go by one name differ by half (one chapter
#: took 61 s and 94 s on two of them), and a processor that does not compute in bfloat16 may take far longer.
MAX_SECONDS = {"bf16-mixed": 135, "32-true": 360}
MAX_MEMORY_MB = 3000  # of the kernel in a demo run
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
TAGS = {
    # machinery
    "setup", "parameters", "facts", "nbval-ignore-output", "nbval-skip",
    # exercises
    "exercise-statement", "exercise-starter", "exercise-solution", "exercise-check",
    # the look of the page
    "hide-input", "hide-output", "hide-cell", "remove-input", "remove-output", "remove-cell", "output_scroll",
    "full-width", "margin",
}  # fmt: skip
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/\\~-])/(?:home|root|tmp|Users|work|opt|mnt|scratch|var/folders)/[^\s'\"]*|\b[A-Z]:\\\w[^\s'\"]*|\bsite-packages\b"
)
OBJECT = re.compile(r"<[\w.]+[^<>\n]* at 0x[0-9a-f]+>")
CONTROL = re.compile(r"<figure class=\"brainlib-.*?</figure>", re.DOTALL)  # of brainlib.interact
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[\w/+=]*")
WARNING = re.compile(r"\b[A-Z]\w*Warning:")
MEASURED = re.compile(r"(?<![\w.])\d+\.\d+ ?%|\b0\.\d{2,}\b|(?<![\w.])\d+ ?%")
EXERCISE = re.compile(r"\b(\d+\.\d+) \(([^()]*\bobjectives? (\d[\d, and]*)[^()]*)\)")
RUN_TIME = re.compile(r"\b(\d+) (?:s|seconds) to run\b")
MARKERS = {
    "exercise-solution": ("### BEGIN SOLUTION", "### END SOLUTION"),
    "exercise-check": ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"),
}
CARD = {"objectives": "objectives|you will", "prerequisites": "prerequisites|you need", "time": "time", "data": "data"}
HEADINGS = ("Recap", "Pitfalls", "Further reading", "Exercises")
NOT_A_DEVICE = "not a medical device"


def check_chapters(root: Path, paths: Sequence[Path] | None = None) -> list[str]:
    """All problems of the chapters at ``paths`` (default: every chapter of the course), one line each."""
    problems, labels = [], Counter()
    for path in notebooks.chapters(root) if paths is None else paths:
        where = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        problems += [f"{where}: {problem}" for problem in check_chapter(path, root)]
    for path in notebooks.chapters(root):
        try:
            labels.update(label for cell in notebooks.read(path).cells if (label := _figure(cell).get("name")))
        except DataError:
            continue  # reported above
    return problems + [f"the figure label {name} is used {n} times" for name, n in labels.items() if n > 1]


def check_chapter(path: Path, root: Path) -> list[str]:
    """All problems of one chapter."""
    try:
        notebook = notebooks.read(path)
    except DataError as error:
        return [str(error)]
    return [
        *check_freshness(path, notebook, root),
        *check_file(path, notebook),
        *check_setup(notebook, notebooks.repository_address(root)),
        *check_outputs(notebook),
        *check_figures(notebook, path.stem.split("_")[0]),
        *check_paths(notebook),
        *check_code(notebook),
        *check_numbers(notebook),
        *check_anatomy(notebook, path.stem.split("_")[0]),
        *check_exercises(notebook),
    ]


def check_freshness(path: Path, notebook: Any, root: Path) -> list[str]:
    """The outputs are those of this code, this library and these records; the run was fast enough; the card says so."""
    mark = dict(notebook.metadata.get("brainlib", {}))
    reasons = notebooks.stale(mark, notebooks.make_mark(path, notebook, root))
    problems = [f"stale outputs: {reason}; run 'brainlib run {path.stem}'" for reason in reasons]
    memory = mark.get("peak_memory_mb")
    if isinstance(memory, int) and memory > MAX_MEMORY_MB:
        problems.append(f"the demo run needed {memory} MB of memory, more than {MAX_MEMORY_MB} MB")
    seconds = mark.get("seconds")
    if isinstance(seconds, int):
        quick = MAX_SECONDS["bf16-mixed"]
        limit = MAX_SECONDS.get(mark.get("precision", ""), quick)
        if seconds > limit:
            problems.append(f"the demo run took {seconds} s, more than {limit} s")
        stated = [int(s) for cell in _markdown(notebook) for s in RUN_TIME.findall(cell.source)]
        if not stated:
            problems.append("the card does not say '<number> seconds to run'")
        # Loosely, since machines differ (the card means one with bfloat16): a reader plans with this number.
        wrong = [number for number in stated if not seconds / 3 * quick / limit <= number <= 3 * seconds + 10]
        problems += [f"the card says {number} seconds to run, measured {seconds}" for number in wrong]
    return problems


def check_file(path: Path, notebook: Any) -> list[str]:
    """Size, cell ids, and no trace of a particular run."""
    problems = []
    if path.stat().st_size > MAX_BYTES:
        problems.append(f"the file has {path.stat().st_size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.1f} MB")
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        problems.append("the notebook format is older than 4.5, so the cells have no fixed ids")
    # From the text: reading a notebook with nbformat gives cells that share an id new ones.
    counts = Counter(cell.get("id") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    problems += [f"the cell id {name!r} is used {n} times" for name, n in counts.items() if n > 1]
    unknown = set(notebook.metadata) - set(notebooks.NOTEBOOK_METADATA)
    problems += [f"notebook metadata {key!r} changes from run to run" for key in sorted(unknown)]
    if dict(notebook.metadata.get("kernelspec", {})) != notebooks.KERNELSPEC:
        problems.append(f"the kernelspec is not {notebooks.KERNELSPEC}")
    for cell in notebook.cells:
        for key in sorted(set(cell.metadata) - set(notebooks.CELL_METADATA)):
            problems.append(f"{_name(cell)}: cell metadata {key!r} changes from run to run")
        for tag in sorted(notebooks.tags(cell) - TAGS):
            problems.append(f"{_name(cell)}: unknown tag {tag!r}")
        if cell.cell_type == "code":
            counts_of_cell = [cell.execution_count, *(output.get("execution_count") for output in cell.outputs)]
            if any(count is not None for count in counts_of_cell):
                problems.append(f"{_name(cell)}: has an execution count")
            if any(notebooks.WIDGET_VIEW in output.get("data", {}) for output in cell.outputs):
                problems.append(f"{_name(cell)}: the output holds a widget")
    return problems


def check_setup(notebook: Any, address: str) -> list[str]:
    """One set-up cell with the canonical text; one parameters cell with the demo profile."""
    problems = []
    cells = notebooks.code_cells(notebook)
    setup = [cell for cell in cells if "setup" in notebooks.tags(cell)]
    if len(setup) != 1:
        problems.append(f"{len(setup)} cells are tagged 'setup', not 1")
    problems += [
        f"{_name(cell)}: not the canonical set-up cell; 'brainlib run' writes it"
        for cell in setup
        if cell.source != notebooks.setup_cell(address)
    ]
    if sum("parameters" in notebooks.tags(cell) for cell in cells) != 1:
        problems.append("there is not exactly 1 code cell tagged 'parameters'")
    values = notebooks.parameters(notebook)
    if values.get("profile") != "demo" or not isinstance(values.get("seed"), int):
        problems.append('the parameters cell does not set profile = "demo" and an integer seed')
    first = next((cell for cell in cells if cell.source.strip()), None)
    if setup and first is not setup[0]:
        problems.append("the set-up cell is not the first code cell")
    return problems


def check_outputs(notebook: Any) -> list[str]:
    """No error, nothing on stderr, no warning, and not more lines than a reader reads."""
    problems = []
    for cell in notebooks.code_cells(notebook):
        lines = 0
        for output in cell.outputs:
            text = _text(output)
            if output.output_type == "error":
                problems.append(f"{_name(cell)}: the output is an error, {output.ename}")
            elif output.output_type == "stream" and output.name == "stderr":
                problems.append(f"{_name(cell)}: writes to stderr: {text.strip().splitlines()[:1]}")
            elif found := WARNING.search(text):
                problems.append(f"{_name(cell)}: the output holds a warning, {found[0]}")
            elif found := OBJECT.search(text):
                problems.append(f"{_name(cell)}: the output shows an object's address, {found[0]}; assign it to a name")
            if not _controls(output):  # of which a reader sees no text
                lines += len((output.get("data", {}).get("text/plain") or output.get("text", "")).splitlines())
        if lines > MAX_OUTPUT_LINES:
            problems.append(f"{_name(cell)}: prints {lines} lines, more than {MAX_OUTPUT_LINES}")
    return problems


def check_figures(notebook: Any, number: str) -> list[str]:
    """Every figure on the page has alt text, a caption, and a label ``fig-NN-...``; one figure a cell.

    A control (`brainlib.interact`) brings its alt text and caption in its HTML; its pictures differ between machines.
    """
    problems = []
    for cell in notebooks.code_cells(notebook):
        if notebooks.tags(cell) & {"remove-cell", "remove-output"}:
            continue
        pictures = sum(any(mime in output.get("data", {}) for mime in IMAGES) for output in cell.outputs)
        for output in cell.outputs:
            html = _html(output)
            for control in _controls(output):
                caption = re.search(r"<figcaption>(.*?)</figcaption>", control, re.DOTALL)
                if caption is None or not caption[1].strip():
                    problems.append(f"{_name(cell)}: a control has no caption; give scrub or animate one")
                if "nbval-ignore-output" not in notebooks.tags(cell):
                    problems.append(f"{_name(cell)}: shows a control, but is not tagged 'nbval-ignore-output'")
            for tag in re.findall(r"<img\b[^>]*>", html):
                alt = re.search(r"\balt=([\"'])(.*?)\1", tag, re.DOTALL)
                if alt is None or len(unescape(alt[2]).strip()) < MIN_ALT:
                    problems.append(f"{_name(cell)}: a picture in HTML has no alt text of {MIN_ALT} characters or more")
        if not pictures:
            continue
        if pictures > 1:
            problems.append(f"{_name(cell)}: {pictures} figures, but a cell can label one; split the cell")
        figure, alt = _figure(cell), str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""))
        if len(alt) < MIN_ALT:
            problems.append(f"{_name(cell)}: the figure has no alt text (mystnb.image.alt) of {MIN_ALT} characters")
        if not str(figure.get("caption", "")).strip():
            problems.append(f"{_name(cell)}: the figure has no caption (mystnb.figure.caption)")
        if not re.fullmatch(rf"fig-{number}-[a-z0-9-]+", str(figure.get("name", ""))):
            problems.append(f"{_name(cell)}: the label of the figure (mystnb.figure.name) is not fig-{number}-...")
    return problems


def check_paths(notebook: Any) -> list[str]:
    """No absolute path of somebody's machine in a source or an output."""
    problems = []
    for cell in notebook.cells:
        text = cell.source if cell.cell_type == "code" else _without_math(cell.source)
        for kind, content in (("source", text), ("output", "\n".join(map(_text, cell.get("outputs", []))))):
            if found := ABSOLUTE_PATH.search(content):
                problems.append(f"{_name(cell)}: an absolute path in the {kind}: {found[0][:60]}")
    return problems


def check_code(notebook: Any) -> list[str]:
    """Short cells, no trailing semicolon (nbval takes the output for missing), no name that hides a parameter."""
    problems, parameters = [], notebooks.parameters(notebook)
    for cell in notebooks.code_cells(notebook):
        problems += [
            f"{_name(cell)}: {name} hides the parameter of that name, so nobody can set it any more; call it otherwise"
            for name in _defined(cell.source)
            if name in parameters
        ]
        source = cell.source.strip()
        lines, tags = len(source.splitlines()), notebooks.tags(cell)
        exempt = "setup" in tags or any(tag.startswith("exercise-") for tag in tags)
        if lines > MAX_CODE_LINES and not exempt:
            problems.append(f"{_name(cell)}: {lines} lines of code, more than {MAX_CODE_LINES} (aim for 15)")
        if source.endswith(";"):
            problems.append(f"{_name(cell)}: ends with a semicolon; write '_ = ...' to hide a value")
        if not source:
            problems.append(f"{_name(cell)}: an empty code cell")
    return problems


def _defined(source: str) -> list[str]:
    """Names that functions, classes and imports of a cell take."""
    body = notebooks.parse_cell(source).body
    named = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    imports = (node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    return named + [alias.asname or alias.name for node in imports for alias in node.names]


def check_numbers(notebook: Any) -> list[str]:
    """No measured number is typed into prose: decimals and percentages belong to the output of a cell.

    Math, code and the targets of links are left out, and so are cells tagged ``facts``, whose numbers carry a citation.
    """
    return [
        f"{_name(cell)}: a number typed into prose, {found[0]!r}; print it, or tag the cell 'facts' and cite a source"
        for cell in _markdown(notebook)
        if "facts" not in notebooks.tags(cell)
        for found in MEASURED.finditer(prose(cell.source))
    ]


def check_anatomy(notebook: Any, number: str) -> list[str]:
    """The parts of a chapter: title, card with objectives, closing sections, the sentence on what this is not."""
    problems = []
    markdown = _markdown(notebook)
    everything = "\n\n".join(cell.source for cell in markdown)
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not re.match(r"#\s+\S", first.source):
        problems.append("the first cell is not a title ('# ...')")
    if len(re.findall(r"^# ", prose(everything), re.MULTILINE)) > 1:
        problems.append("there is more than one title ('# ...'), so the site would split the chapter")
    card = _card(notebook)
    if card is None:
        problems.append("no card: an admonition among the first cells with objectives, prerequisites, time and data")
    else:
        for part, words in CARD.items():
            if not re.search(words, card.source, re.IGNORECASE):
                problems.append(f"the card does not state its {part}")
        objectives = _objectives(card)
        if not 3 <= len(objectives) <= 5 or objectives != set(range(1, len(objectives) + 1)):
            problems.append(f"the card has {len(objectives)} numbered objectives, not 3 to 5")
        tested = {int(n) for _, _, numbers in _exercises(notebook) for n in re.findall(r"\d+", numbers)}
        problems += [f"no exercise tests objective {n}" for n in sorted(objectives - tested)]
        problems += [f"an exercise tests objective {n}, which is not on the card" for n in sorted(tested - objectives)]
    for heading in HEADINGS:
        if not re.search(rf"^#{{2,3}} .*{heading}", everything, re.MULTILINE | re.IGNORECASE):
            problems.append(f"no section '{heading}'")
    if NOT_A_DEVICE not in " ".join(everything.split()):
        problems.append(f"the sentence '... {NOT_A_DEVICE}' is missing")
    names = [name for name, _, _ in _exercises(notebook)]
    wrong = [name for name in names if name.split(".")[0] != number.lstrip("0")]
    return problems + [f"exercise {name} has the number of another chapter" for name in wrong]


def check_exercises(notebook: Any) -> list[str]:
    """Each solution is followed by its check, both with the markers that the student version is made by."""
    problems = []
    solutions = 0
    tagged = [cell for cell in notebooks.code_cells(notebook) if notebooks.tags(cell) & set(MARKERS)]
    for position, cell in enumerate(tagged):
        kind = "exercise-solution" if "exercise-solution" in notebooks.tags(cell) else "exercise-check"
        begin, end = MARKERS[kind]
        # One letter a line: a block is a begin, something, an end, and there is at least one.
        shape = "".join(
            {begin: "b", end: "e"}.get(line.strip(), "x") for line in cell.source.splitlines() if line.strip()
        )
        if not re.fullmatch(r"x*(bx+ex*)+", shape):
            problems.append(f"{_name(cell)}: the code is not between lines '{begin}' and '{end}'")
        if kind == "exercise-solution":
            solutions += 1
            after = tagged[position + 1] if position + 1 < len(tagged) else None
            if after is None or "exercise-check" not in notebooks.tags(after):
                problems.append(f"{_name(cell)}: no cell tagged 'exercise-check' follows this solution")
        elif position == 0 or "exercise-solution" not in notebooks.tags(tagged[position - 1]):
            problems.append(f"{_name(cell)}: this check follows no solution")
    for cell in notebooks.code_cells(notebook):
        if cell not in tagged and any(marker in cell.source for pair in MARKERS.values() for marker in pair):
            problems.append(f"{_name(cell)}: has a marker of an exercise but not its tag")
    stated = _exercises(notebook)
    if len(stated) < 4:
        problems.append(f"{len(stated)} exercises are stated as 'N.k (M min, objective j)', not 4 or more")
    if len(stated) != solutions:
        problems.append(f"{len(stated)} exercises are stated but {solutions} solved")
    problems += [f"exercise {name} does not say how long it takes" for name, text, _ in stated if "min" not in text]
    repeated = [name for name, n in Counter(name for name, _, _ in stated).items() if n > 1]
    return problems + [f"exercise {name} is stated twice" for name in repeated]


def prose(source: str) -> str:
    """Markdown without fenced code, math, code spans, link targets, comments and directive options.

    The body of a directive such as ``{admonition}`` is prose and stays; that of ``{math}`` or ``{code-cell}`` goes.
    """
    kept, fences = [], []  # of the open fences: their marker, and whether their body is prose
    for line in source.splitlines():
        mark = re.match(r"\s*(`{3,}|~{3,}|:{3,})(.*)$", line)
        # A closing fence is at least as long as the one that it closes.
        if mark and not mark[2].strip() and fences and mark[1].startswith(fences[-1][0]):
            fences.pop()
        elif mark and all(is_prose for _, is_prose in fences):
            directive = re.match(r"\s*\{([\w:-]+)\}(.*)", mark[2])
            is_prose = directive is not None and not directive[1].startswith(("math", "code", "literalinclude", "raw"))
            fences.append((mark[1], is_prose))
            if is_prose:
                kept.append(directive[2])
        elif all(is_prose for _, is_prose in fences) and not (fences and re.match(r"\s*:[\w-]+:", line)):
            kept.append(line)
    text = _without_math("\n".join(kept))
    text = re.sub(r"<!--.*?-->", " ", text, flags=re.DOTALL)
    text = re.sub(r"(`+).*?\1", " ", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)|<https?://[^>]*>|https?://\S+", "]", text)


def _without_math(text: str) -> str:
    text = re.sub(r"\$\$.*?\$\$", " ", text, flags=re.DOTALL)
    return re.sub(r"(?<!\\)\$[^$\n]+(?:\n[^$\n]+)?\$", " ", text)


def _markdown(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def _card(notebook: Any) -> Any | None:
    cards = (c for c in notebook.cells[:5] if c.cell_type == "markdown" and "{admonition}" in c.source)
    return next((cell for cell in cards if re.search(CARD["objectives"], cell.source, re.IGNORECASE)), None)


def _objectives(card: Any) -> set[int]:
    """Numbers of the items of the card's numbered list."""
    return {int(n) for n in re.findall(r"^\s*(\d+)\. ", card.source, re.MULTILINE)}


def _exercises(notebook: Any) -> list[tuple[str, str, str]]:
    """(number, time and objectives, objectives) of each exercise that the prose states."""
    return [found for cell in _markdown(notebook) for found in EXERCISE.findall(cell.source)]


def _figure(cell: Any) -> dict[str, Any]:
    return dict(cell.metadata.get("mystnb", {}).get("figure", {}))


def _text(output: Any) -> str:
    """What a reader sees of an output, as text."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.get("traceback", []))
    texts = ("".join(content) for mime, content in output.get("data", {}).items() if mime.startswith("text/"))
    return DATA_URI.sub("data:", "\n".join(texts))


def _html(output: Any) -> str:
    return "".join(output.get("data", {}).get("text/html", ""))


def _controls(output: Any) -> list[str]:
    """The scrubs and animations of an output, each as its HTML."""
    return CONTROL.findall(_html(output))


def _name(cell: Any) -> str:
    return f"cell {cell.get('id', '(no id)')}"
