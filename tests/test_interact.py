"""Controls: what they draw, what they refuse, their recorded and their live face, and the page that a browser shows."""

import base64
import io
import re
from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pytest
from headless import Browser, find_chromium
from PIL import Image
from tiny_course import chapter, code, write_course

from brainlib import checks, execute, interact, notebooks
from brainlib.files import DataError
from brainlib.interact import animate, scrub

ALT = "A gray square that gets brighter with the first slider and wider with the second one."
CAPTION = "Gray < white & more."
AXES = {"gray (%)": [10, 50, 90], "width": ["narrow", "wide"]}


@pytest.fixture(autouse=True)
def mode(monkeypatch):
    monkeypatch.setenv("BRAINLIB_CONTROLS", "static")
    yield
    plt.close("all")


def square(gray, width="narrow"):
    image = np.zeros((40, 60), np.uint8)
    image[5:35, : 20 if width == "narrow" else 50] = int(2.55 * gray)
    return image


def plot(slope):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1], [0, slope])
    ax.set_ylim(0, 3)
    return figure


def pictures(html):
    """Pictures in the order in which the script has them, the one shown at first in its place."""
    shown, *others = re.findall(r"data:image/webp;base64,([\w/+=]+)", html)
    place = re.search(r"\[(?:\"data[^]]*?,)?0[],]", html)
    before = place[0].count("data:")
    order = [*others[:before], shown, *others[before:]]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(p))).convert("L")).astype(int) for p in order]


# The recorded face ----------------------------------------------------------------------------------------------------


def test_pictures_stand_in_order_and_the_last_axis_changes_fastest():
    frames = pictures(scrub(square, AXES, alt=ALT, caption=CAPTION).html)
    assert len(frames) == 6
    expected = [(gray, width) for gray in AXES["gray (%)"] for width in AXES["width"]]
    for frame, values in zip(frames, expected, strict=True):
        assert abs(frame - square(*values)).mean() < 4


def test_sliders_start_in_the_middle_or_where_they_are_told():
    html = scrub(square, AXES, alt=ALT).html
    assert re.findall(r'max="(\d)" step="1" value="(\d)"', html) == [("2", "1"), ("1", "1")]
    assert re.findall(r'aria-label="([^"]*)" aria-valuetext="([^"]*)"', html) == [("gray (%)", "50"), ("width", "wide")]
    html = scrub(square, AXES, alt=ALT, start=(2, 0)).html
    assert re.findall(r"<output[^>]*>([^<]*)</output>", html) == ["90", "narrow"]
    assert 'value="0"' in scrub(square, {"gray": [10, 20]}, alt=ALT, start=0).html


def test_the_page_part_is_complete_and_escaped():
    html = scrub(square, {'a <b> & "c"': [0.1, 1e-05]}, alt=ALT + ' <"&', caption=CAPTION, name="fig-x").html
    assert html.startswith('<figure class="brainlib-scrub" id="fig-x">') and html.endswith("</figure>")
    assert "<figcaption>Gray &lt; white &amp; more.</figcaption>" in html and html.count("<img") == 1
    assert unescape(re.search(r'alt="(.*?)"', html)[1]) == ALT + ' <"&'
    assert "<b>" not in html and '"0.1","1e-05"' in html
    assert not re.search(r"https?:|src=\"(?!data:)|0x[0-9a-f]{6}", html)
    assert ";width:320px" in html and ";width:" not in scrub(plot, {"slope": [1, 2]}, alt=ALT).html
    assert ";width:200px" in scrub(square, AXES, alt=ALT, width=200).html
    assert "figcaption" not in scrub(square, AXES, alt=ALT).html


def test_the_same_content_gives_the_same_bytes():
    first, again = (scrub(plot, {"slope": [1, 2]}, alt=ALT, caption=CAPTION).html for _ in range(2))
    assert first == again
    assert first != scrub(plot, {"slope": [1, 3]}, alt=ALT, caption=CAPTION).html
    moving = [animate((square(g) for g in (10, 90)), alt=ALT).html for _ in range(2)]
    assert moving[0] == moving[1]


def test_figures_have_the_style_of_the_course_and_none_stays_open():
    mine = plt.figure()
    before = dict(plt.rcParams)
    seen = []

    def draw(slope):
        plt.figure()  # forgotten
        seen.append(plt.rcParams["axes.spines.top"])
        return plot(slope)

    frame, _ = pictures(scrub(draw, {"slope": [1, 2]}, alt=ALT, start=0).html)
    assert seen == [False, False] and plt.rcParams == before and plt.get_fignums() == [mine.number]
    assert frame.shape == (220, 330) and frame[0, 0] > 250
    with pytest.raises(ZeroDivisionError):
        scrub(lambda x: plot(1) and 1 / 0, {"x": [1, 2]}, alt=ALT)
    assert plt.get_fignums() == [mine.number]
    scrub(lambda x: mine, {"x": [1, 2]}, alt=ALT)  # one figure, drawn again and again, is not shown below the cell
    assert plt.get_fignums() == []


def test_text_for_notebooks_says_what_it_is():
    bundle = scrub(square, AXES, alt=ALT)._repr_mimebundle_()
    assert bundle["text/plain"] == "Scrub(gray (%): 3 values, width: 2 values)"
    assert set(bundle) == {"text/html", "text/plain"}
    bundle = animate([square(10), square(90)], alt=ALT)._repr_mimebundle_()
    assert bundle["text/plain"] == "Animation(2 pictures, 12 a second)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alt": "A square."}, "alt has 9 characters"),
        ({"axes": {}}, "map 1 to 3 labels"),
        ({"axes": [1, 2]}, "map 1 to 3 labels"),
        ({"axes": {c: [1, 2] for c in "abcd"}}, "map 1 to 3 labels"),
        ({"axes": {"gray": [10]}}, "'gray' has 1"),
        ({"start": (1,)}, "1 positions for 2 axes"),
        ({"start": (3, 0)}, "start 3 is no position of 'gray"),
        ({"start": (0, "wide")}, "start 'wide' is no position of 'width'; they are 0 to 1"),
        ({"draw": lambda gray, width: np.zeros((4, 4))}, "an array of uint8, not float64"),
        ({"draw": lambda gray, width: None}, "not NoneType"),
        ({"draw": lambda gray, width: np.zeros((4, 4, 4), np.uint8)}, r"not \(4, 4, 4\)"),
        ({"draw": lambda gray, width: np.zeros((gray, 9), np.uint8)}, "at gray .* = 50, width = narrow has 9 x 50 pix"),
        ({"max_bytes": 300}, "6 pictures .3 of gray ... x 2 of width. need about .* kB, more than 0 kB: use fewer"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    arguments = {"draw": square, "axes": AXES, "alt": ALT} | change
    with pytest.raises(DataError, match=message):
        scrub(arguments.pop("draw"), arguments.pop("axes"), **arguments)


def test_the_limit_counts_everything_and_stops_early():
    size = len(scrub(square, AXES, alt=ALT).html)
    assert scrub(square, AXES, alt=ALT, max_bytes=size)
    with pytest.raises(DataError, match="lower quality"):
        scrub(square, AXES, alt=ALT, max_bytes=size - 1)
    drawn = []
    with pytest.raises(DataError):
        scrub(lambda g: drawn.append(g) or square(g), {"g": range(1000)}, alt=ALT, max_bytes=1000)
    assert len(drawn) < 20


# Animations -----------------------------------------------------------------------------------------------------------


def test_an_animation_repeats_and_has_a_still_picture():
    html = animate((plot(s) for s in (1, 2, 3)), alt=ALT, caption=CAPTION, fps=10, still=0).html
    still, moving = (
        Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall(r"data:image/webp;base64,([\w/+=]+)", html)
    )
    assert (still.n_frames, moving.n_frames, moving.info["loop"]) == (1, 3, 0) and still.size == moving.size
    moving.load()
    assert moving.info["duration"] == 100
    assert '<img src="data:image/webp;base64,' in html and "prefers-reduced-motion: reduce" in html
    assert 'alt="' + ALT in html and "<figcaption>" in html and not plt.get_fignums()


def test_an_animation_is_made_smaller_until_it_fits():
    noise = list(np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8))
    sizes = [len(animate(noise, alt=ALT, max_bytes=limit).html) for limit in (100_000, 12_000)]
    assert sizes[0] > 12_000 >= sizes[1]
    with pytest.raises(DataError, match="4 pictures need .* kB even at quality 50 and 50% of their size"):
        animate(noise, alt=ALT, max_bytes=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alt": ""}, "alt has 0 characters"),
        ({"fps": 0}, "fps must be above 0"),
        ({"still": 2}, "still=2 is no position of a picture; they are 0 to 1"),
        ({"frames": [square(10)]}, "1 pictures are given"),
        ({"frames": [square(10), np.zeros((9, 9), np.uint8)]}, "at position 1 has 9 x 9 pixels"),
    ],
)
def test_an_animation_that_cannot_work_is_refused(change, message):
    arguments = {"frames": [square(10), square(90)], "alt": ALT} | change
    with pytest.raises(DataError, match=message):
        animate(**arguments)


# The live face --------------------------------------------------------------------------------------------------------


def test_which_face_is_shown(monkeypatch):
    assert not interact.is_live()
    monkeypatch.delenv("BRAINLIB_CONTROLS")
    assert not interact.is_live()  # no kernel
    monkeypatch.setenv("BRAINLIB_CONTROLS", "live")
    assert interact.is_live()
    monkeypatch.setenv("BRAINLIB_CONTROLS", "yes")
    with pytest.raises(DataError, match="set it to static or live"):
        interact.is_live()


def test_live_sliders_draw_when_they_move(monkeypatch):
    monkeypatch.setenv("BRAINLIB_CONTROLS", "live")
    drawn = []

    def draw(gray, width):
        drawn.append((gray, width))
        if gray == 90:
            raise ValueError("too < bright")
        return square(gray, width)

    control = scrub(draw, AXES, alt=ALT, caption=CAPTION, max_bytes=10)
    assert drawn == [(50, "wide")]
    picture, gray, width, caption = control.widget().children
    assert drawn == [(50, "wide")] and ALT in picture.value and "Gray &lt; white" in caption.value
    assert gray.options == (("10", 0), ("50", 1), ("90", 2)) and gray.description == "gray (%)" and gray.value == 1
    assert width.options == (("narrow", 0), ("wide", 1))
    before = picture.value
    gray.value = 0
    assert drawn[1:] == [(10, "wide")] and picture.value != before
    gray.value = 1
    assert len(drawn) == 2 and picture.value == before  # kept
    gray.value = 2
    assert picture.value == "<p>No picture at gray (%) = 90, width = wide: too &lt; bright</p>"
    with pytest.raises(ValueError, match="too"):  # at once, so that the cell stops
        scrub(draw, AXES, alt=ALT, start=(2, 0))


def test_few_live_pictures_are_kept(monkeypatch):
    monkeypatch.setenv("BRAINLIB_CONTROLS", "live")
    monkeypatch.setattr(interact, "CACHED_FRAMES", 2)
    drawn = []
    control = scrub(lambda g: drawn.append(g) or square(g), {"g": [1, 2, 3]}, alt=ALT, start=0)
    for i in (1, 1, 2, 2, 0):
        control.frame(i)
    assert drawn == [1, 2, 3, 1]


# In a kernel ----------------------------------------------------------------------------------------------------------

SCRUB = f"""\
import numpy as np
import matplotlib.pyplot as plt
from brainlib.interact import scrub
def draw(x):
    figure, ax = plt.subplots()
    ax.plot([0, x])
    return figure
scrub(draw, {{"x": [1, 2]}}, alt="{ALT}", caption="c")"""


@pytest.mark.parametrize("variable", [None, "live"])
def test_a_recorded_run_holds_html_and_later_figures_are_shown(tmp_path, monkeypatch, variable):
    """Whatever the user's own setting is; and a control as the first figure of a kernel leaves its backend alone."""
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("BRAINLIB_CONTROLS")
    if variable:
        monkeypatch.setenv("BRAINLIB_CONTROLS", variable)
    figure = {"image": {"alt": ALT}, "figure": {"caption": "c", "name": "fig-01-x"}}
    shown = code("control", SCRUB, "nbval-ignore-output")
    notebook = chapter(shown, code("figure", "_ = draw(3)", mystnb=figure))
    root = write_course(tmp_path / "course", **{"01_a": notebook})
    (path,) = notebooks.chapters(root)
    executed = execute.execute(notebook, path, execute.Settings(), execute.Progress(io.StringIO()))
    notebooks.clean(executed)
    outputs = {cell.id: cell.outputs for cell in notebooks.code_cells(executed)}
    (control,), (later,) = outputs["control"], outputs["figure"]
    assert set(control.data) == {"text/html", "text/plain"} and control.data["text/plain"] == "Scrub(x: 2 values)"
    assert "image/png" in later.data
    assert checks.check_outputs(executed) == checks.check_figures(executed, "01") == checks.check_paths(executed) == []


def test_a_kernel_without_the_variable_shows_widgets(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    notebook = chapter(code("control", 'import os\ndel os.environ["BRAINLIB_CONTROLS"]\n' + SCRUB))
    path = write_course(tmp_path / "course", **{"01_a": notebook}) / "chapters" / "01_a.ipynb"
    executed = execute.execute(notebook, path, execute.Settings(), execute.Progress(io.StringIO()))
    (output,) = next(cell.outputs for cell in executed.cells if cell.id == "control")
    assert notebooks.WIDGET_VIEW in output.data


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    with Browser(executable) as running:
        yield running


@pytest.fixture
def page(tmp_path):
    """Two controls with the same content (so with the same id) and an animation, in a plain page."""
    control = scrub(square, AXES, alt=ALT, caption=CAPTION, start=(0, 0)).html
    moving = animate((square(g) for g in (10, 90)), alt=ALT, caption=CAPTION).html
    path = tmp_path / "page.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Controls</title>'
    path.write_text(head + control + control + moving, encoding="utf-8")
    return path.as_uri()


SHOWN = "[...document.querySelectorAll('img')].map(i => i.currentSrc)"
VISIBLE = "[...document.querySelectorAll('{}')].map(e => e.checkVisibility())"


def press(browser, key, code):
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def test_keys_change_the_picture(browser, page):
    browser.open(page, width=390)
    assert browser.messages == browser.requests[1:] == [] and all(browser.evaluate(VISIBLE.format("input")))
    first, twin, _ = browser.evaluate(SHOWN)
    assert first == twin
    browser.evaluate("document.querySelectorAll('input')[2].focus()")  # of the second control
    press(browser, "ArrowRight", 39)
    untouched, changed, _ = browser.evaluate(SHOWN)
    assert untouched == first and changed != first
    state = "(i => [i.value, i.getAttribute('aria-valuetext'), i.nextElementSibling.textContent])"
    assert browser.evaluate(state + "(document.querySelectorAll('input')[2])") == ["1", "50", "50"]
    press(browser, "Tab", 9)
    press(browser, "End", 35)
    assert browser.evaluate(state + "(document.activeElement)") == ["1", "wide", "wide"]
    assert browser.evaluate(SHOWN)[1] not in (first, changed)
    press(browser, "Home", 36)
    assert browser.evaluate(SHOWN)[1] == changed
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(browser.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => true)))"))


def test_without_scripts_a_picture_and_its_caption_remain(browser, page):
    browser.open(page, scripts=False)
    tree = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in tree if not node["ignored"]]
    names = [node.get("name", {}).get("value", "") for node in tree if not node["ignored"]]
    assert roles.count("image") == 3 and names.count(ALT) == 3 and names.count(CAPTION) >= 3
    assert "slider" not in roles and "button" not in roles


def test_an_animation_can_be_stopped_and_respects_the_wish_for_less_motion(browser, page):
    button = "document.querySelector('button')"
    browser.open(page, reduced_motion=False)
    moving = browser.evaluate(SHOWN)[2]
    assert browser.evaluate(f"{button}.textContent") == "Stop"
    browser.evaluate(f"{button}.click()")
    still = browser.evaluate(SHOWN)[2]
    assert browser.evaluate(f"{button}.textContent") == "Play" and still != moving
    browser.open(page, reduced_motion=True)
    assert (browser.evaluate(SHOWN)[2], browser.evaluate(f"{button}.textContent")) == (still, "Play")
    browser.evaluate(f"{button}.click()")
    assert browser.wait_for(f"{SHOWN}[2] !== {still!r}") and browser.evaluate(SHOWN)[2] == moving
