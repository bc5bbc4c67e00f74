"""The published site, as a reader's browser sees it: headless Chromium opens every page of the strict build.

The build of `make book` is used where it is newer than its sources; elsewhere the book is built into a temporary
folder, with every warning an error.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from headless import Browser, find_chromium

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
FILES = [TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])]
CHAPTERS = [name for name in FILES if name.startswith("chapters/")]
PAGES = [f"{name}.html" for name in FILES] + ["search.html", "genindex.html"]
PHONE, DESKTOP = 360, 1280


# ---- The build, a server, a browser ----


def newest(paths: list[Path]) -> float:
    """The time of the last change to a file in `paths`, folders taken whole."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return max(file.stat().st_mtime for file in files if file.is_file() and "__pycache__" not in file.parts)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    built = ROOT / "_build" / "html"
    sources = [ROOT / name for name in ("book", "chapters", "_config.yml", "_toc.yml", "pyproject.toml")]
    if (built / "searchindex.js").exists() and (built / "searchindex.js").stat().st_mtime > newest(sources):
        return built
    target = tmp_path_factory.mktemp("site")
    command = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", command, "build", str(ROOT), "--path-output", str(target), "-W", "--keep-going", "-n"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"the strict build failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return target / "_build" / "html"


@pytest.fixture(scope="session")
def base(site: Path) -> Iterator[str]:
    """The address of the site on the loopback interface."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # a page loads two dozen files: keep the connections

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # with the default of 5, a busy machine drops connections and the browser waits

    with Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    with Browser(executable) as running:
        yield running


# ---- Scripts that run in the page; each returns a list of what is wrong ----

# Text whose contrast with what lies behind it is below the WCAG AA limit.
LOW_CONTRAST = """(() => {
  const parse = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    if (text.startsWith('color(srgb')) return [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1];
    return [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      layers.push(color);
      if (color[3] === 1) break;
    }
    return layers.reduceRight((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const wrong = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim()) continue;
    if (e.closest('script, style, noscript, mjx-assistive-mml, .skip-link, button.copybtn')) continue;
    if (!e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    const style = getComputedStyle(e), under = ground(e), c = parse(style.color);
    let alpha = c[3];
    for (let a = e; a; a = a.parentElement) alpha *= Number(getComputedStyle(a).opacity);
    const [x, y] = [light(over([c[0], c[1], c[2], alpha], under)), light(under)].sort((p, q) => q - p);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (x + 0.05) / (y + 0.05);
    if (ratio < (large ? 3 : 4.5))
      wrong.add(`${ratio.toFixed(2)} ${e.tagName}.${e.className}: ${node.data.trim().slice(0, 40)}`);
  }
  return [...wrong];
})()"""

# Whatever sticks out of the window and cannot be scrolled into view inside its own box.
TOO_WIDE = """(() => {
  const wide = [], scrolls = e => ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  const page = document.documentElement.scrollWidth;
  if (page > innerWidth) wide.push(`the page is ${page} wide`);
  for (const e of document.querySelectorAll('main *')) {
    if (!e.checkVisibility() || e.closest('mjx-assistive-mml') || getComputedStyle(e).position === 'fixed') continue;
    const box = e.getBoundingClientRect();
    if (box.width === 0 || box.right <= innerWidth + 1) continue;
    let inside = scrolls(e);
    for (let a = e.parentElement; a && a.tagName !== 'MAIN'; a = a.parentElement) inside ||= scrolls(a);
    if (!inside) wide.push(`${e.tagName}.${e.className} ends at ${Math.round(box.right)}`);
  }
  return wide.slice(0, 8);
})()"""

# Displayed equations of which a part is outside their column: their end would be seen by nobody.
CUT = """[...document.querySelectorAll('article div.math > mjx-container')]
  .filter(m => m.scrollWidth > m.clientWidth + 1 || m.parentElement.scrollWidth > m.parentElement.clientWidth + 1)
  .map(m => `${m.parentElement.id || m.parentElement.closest('[id]').id}: ${m.scrollWidth} of ${m.clientWidth}`)"""

NO_ALT = "[...document.images].filter(i => !i.alt.trim() && !i.closest('a.navbar-brand')).map(i => i.src)"
NO_NAME = """[...document.querySelectorAll('a, button, summary')]
  .filter(e => e.checkVisibility() && !e.textContent.trim() && !e.querySelector('img[alt]'))
  .filter(e => !e.getAttribute('aria-label') && !e.title && !e.dataset.bsOriginalTitle)
  .map(e => e.outerHTML.slice(0, 120))"""


def texts(browser: Browser, selector: str) -> list[str]:
    """The text of every element that a CSS selector finds."""
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent.trim())")


def check_quiet(browser: Browser, base: str) -> None:
    """The page as loaded asked no other host, missed nothing and complained about nothing."""
    others = [address for address in browser.requests if not address.startswith(base)]
    assert not others, f"requests to another host: {others}"
    assert not browser.failures, f"failed requests: {browser.failures}"
    assert not browser.messages, f"console: {browser.messages}"


# ---- Every page ----


@pytest.mark.parametrize("page", PAGES)
def test_page_on_a_desktop_in_light_mode(browser: Browser, base: str, page: str) -> None:
    browser.open(base + page, width=DESKTOP)
    check_quiet(browser, base)
    assert browser.evaluate("document.documentElement.dataset.theme") == "light"
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate(LOW_CONTRAST) == []
    assert browser.evaluate(NO_ALT) == [], "images without alt text"
    assert browser.evaluate(NO_NAME) == [], "links or buttons without a name"
    assert browser.evaluate("document.querySelectorAll('main h1').length") >= 1
    math = browser.evaluate("document.querySelectorAll('article .math').length")
    loads = any("/mathjax/" in address for address in browser.requests)
    assert loads == bool(math), "MathJax is loaded where there is mathematics, and only there"
    assert browser.evaluate("document.querySelectorAll('article .math mjx-container').length") >= math
    assert browser.evaluate("document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0
    assert browser.evaluate(CUT) == [], "equations wider than their column"


@pytest.mark.parametrize("page", PAGES)
def test_page_on_a_phone_in_dark_mode(browser: Browser, base: str, page: str) -> None:
    browser.open(base + page, width=PHONE, height=740, dark=True)
    check_quiet(browser, base)
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"
    assert browser.evaluate(TOO_WIDE) == []
    assert browser.evaluate(LOW_CONTRAST) == []


@pytest.mark.parametrize("name", FILES)
def test_page_without_scripts(browser: Browser, base: str, name: str) -> None:
    browser.open(f"{base}{name}.html")
    headings = "[...document.querySelectorAll('article :is(h1, h2, h3)')].map(h => h.firstChild.textContent)"
    words = "document.querySelector('article').innerText.split(/\\s+/).length"
    pictures = "document.querySelectorAll('article img').length"
    wanted = browser.evaluate(headings), browser.evaluate(pictures)
    for width in (DESKTOP, PHONE):
        browser.open(f"{base}{name}.html", width=width, dark=width == PHONE, scripts=False)
        # The theme preloads its scripts, and a browser that runs none drops them: not a failure of the site.
        assert not [failure for failure in browser.failures if ".js" not in failure]
        assert (browser.evaluate(headings), browser.evaluate(pictures)) == wanted
        assert browser.evaluate(words) > 60
        assert browser.evaluate("[...document.querySelectorAll('article img')].every(i => i.naturalWidth > 0)")
        assert browser.evaluate("document.querySelector('nav.bd-links a').checkVisibility({checkVisibilityCSS: true})")
        assert browser.evaluate(TOO_WIDE) == []
        assert browser.evaluate(LOW_CONTRAST) == []


class Links(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.ids.update(found[key] for key in ("id", "name") if key in found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.loads.append(found["href"])
        self.loads += [found[key].split()[0] for key in ("src", "srcset") if found.get(key)]


def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {f"/{page}": Links((site / page).read_text(encoding="utf-8")) for page in PAGES}
    for page, content in pages.items():
        for address in content.loads:
            assert not urlparse(address).netloc, f"{page} loads {address}"
        for address in content.links + content.loads:
            if address.startswith("data:"):  # a picture inside the page
                continue
            if urlparse(address).scheme or address.startswith("//"):
                assert address.startswith("https://"), f"{page}: {address}"
                continue
            path, fragment = urldefrag(urljoin(page, address))
            path = unquote(urlparse(path).path)
            assert (site / path.lstrip("/")).is_file(), f"{page} links to {address}, which does not exist"
            if fragment and path in pages:
                known = pages[path].ids
                assert unquote(fragment) in known, f"{page} links to {address}, which has no such place"


# ---- The parts of the site ----


def test_the_front_door_leads_to_the_welcome_page(browser: Browser, base: str) -> None:
    browser.open(base)
    assert browser.wait_for("location.pathname === '/book/index.html' && document.readyState === 'complete'")


def test_welcome_picture(browser: Browser, base: str, site: Path) -> None:
    moving, still = (site / "_static" / "phantom" / name for name in ("sweep.webp", "sweep_still.webp"))
    assert moving.stat().st_size < 600_000
    with Image.open(moving) as picture, Image.open(still) as rest:
        size = picture.size
        assert picture.is_animated and not getattr(rest, "is_animated", False)
    image = "document.querySelector('figure.welcome-picture img')"
    for reduced, name in ((True, still.name), (False, moving.name)):
        browser.open(f"{base}book/index.html", reduced_motion=reduced)
        assert browser.evaluate(f"{image}.currentSrc").endswith(name)
    width, height = browser.evaluate(f"[{image}.width, {image}.height]")
    given = browser.evaluate(f"['width', 'height'].map(a => Number({image}.getAttribute(a)))")
    assert given[0] / given[1] == pytest.approx(size[0] / size[1], rel=0.01), "the page would jump when it loads"
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)


def test_welcome_states_the_limits(site: Path) -> None:
    for page in ("book/index.html", "book/not_a_device.html"):
        assert "not a medical device" in (site / page).read_text(encoding="utf-8")


def test_search_finds_a_word(browser: Browser, base: str) -> None:
    browser.open(f"{base}search.html?q=gadolinium")
    assert browser.wait_for("document.querySelectorAll('#search-results ul.search li').length > 0")
    assert "Glossary" in texts(browser, "#search-results a")
    check_quiet(browser, base)


def test_theme_button_changes_the_theme(browser: Browser, base: str) -> None:
    browser.open(f"{base}book/setup.html")
    seen = set()
    for _ in range(3):
        browser.evaluate("document.querySelector('.theme-switch-button').click()")
        seen.add(browser.evaluate("document.documentElement.dataset.mode"))
    browser.evaluate("localStorage.clear()")
    assert seen == {"auto", "light", "dark"}


def test_first_stop_of_the_keyboard_is_the_skip_link(browser: Browser, base: str) -> None:
    browser.open(f"{base}book/setup.html")
    for kind in ("rawKeyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
    assert browser.evaluate("document.activeElement.checkVisibility()")


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter(browser: Browser, base: str, name: str) -> None:
    cells = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    tagged = {
        tag: sum(tag in cell["metadata"].get("tags", []) for cell in cells if cell["cell_type"] == "code")
        for tag in ("exercise-solution", "exercise-check")
    }
    browser.open(f"{base}{name}.html")

    assert browser.evaluate("document.querySelectorAll('.admonition.chapter-card').length") == 1
    button = "document.querySelector('a.btn-colab-button').href"
    project = ADDRESS.removeprefix("https://github.com/")
    assert browser.evaluate(button) == f"https://colab.research.google.com/github/{project}/blob/main/{name}.ipynb"

    code, copies = (
        browser.evaluate(f"document.querySelectorAll('{selector}').length")
        for selector in ("div.cell_input pre", "div.cell_input button.copybtn")
    )
    assert code == copies > 0

    number = int(re.match(r"chapters/(\d+)_", name)[1])
    numbers = texts(browser, "figure .caption-number")
    assert numbers == [f"Figure {number}.{k}" for k in range(1, len(numbers) + 1)]
    assert (
        browser.evaluate("document.querySelectorAll('article figure:not([class^=brainlib-])').length")
        == len(numbers)
        > 0
    )
    exercises = texts(browser, "div.exercise > .admonition-title")
    assert exercises
    for k, title in enumerate(exercises, start=1):
        assert f"{number}.{k}" in title

    checks = "[...document.querySelectorAll('div.cell.tag_exercise-check')].map(c => c.querySelector('pre'))"
    assert browser.evaluate(f"{checks}.filter(pre => pre.checkVisibility()).length") == tagged["exercise-check"]
    folded = "[...document.querySelectorAll('div.cell.tag_exercise-solution')]"
    for scripts in (True, False):
        browser.open(f"{base}{name}.html", scripts=scripts)
        assert browser.evaluate(f"{folded}.length") == tagged["exercise-solution"] > 0
        assert not browser.evaluate(f"{folded}.some(c => c.querySelector('pre').checkVisibility())")
        browser.evaluate(f"{folded}.forEach(c => c.querySelector('summary').click())")
        assert browser.evaluate(f"{folded}.every(c => c.querySelector('pre').checkVisibility())")


# ---- The extension and its sources ----


@pytest.fixture(scope="module")
def extension():
    path = ROOT / "book" / "_ext" / "course_site.py"
    spec = importlib.util.spec_from_file_location("course_site", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_address_is_written_once() -> None:
    files = [ROOT / "_config.yml", ROOT / "_toc.yml"]
    files += [p for p in (ROOT / "book").rglob("*") if p.suffix in {".md", ".py", ".css", ".bib", ".svg", ".yml"}]
    spelled = [str(path.relative_to(ROOT)) for path in files if ADDRESS in path.read_text(encoding="utf-8")]
    assert not spelled, f"the address belongs to pyproject.toml alone: {spelled}"


def test_address_reaches_the_pages(site: Path) -> None:
    assert f"git clone {ADDRESS}" in re.sub(r"<[^>]+>", "", (site / "book/setup.html").read_text(encoding="utf-8"))
    for page in PAGES[:-2]:
        text = (site / page).read_text(encoding="utf-8")
        assert f'href="{ADDRESS}"' in text
        assert "REPOSITORY_URL" not in text


def test_address_that_cannot_be_read_stops_the_build(extension, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(extension.ConfigError, match="Repository"):
        extension.read_address(tmp_path)


def test_solutions_are_folded_and_other_cells_left_alone(extension) -> None:
    plain = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["seed = 0\n", "### BEGIN SOLUTION"]}
    answer = ["# @title Solution\n", "def f():\n", "    ### BEGIN SOLUTION\n", "    return 2\n", "    ### END SOLUTION"]
    secret = {"cell_type": "code", "metadata": {"tags": ["exercise-solution"]}, "source": answer}
    first, second = json.loads(extension.fold_solutions(json.dumps({"cells": [plain, secret]})))["cells"]
    assert first == plain
    assert "hide-cell" in second["metadata"]["tags"]
    assert second["source"] == "def f():\n    return 2"


def test_title_gets_the_number_of_the_chapter(extension) -> None:
    for title, wanted in (("# Kernels\n\ntext", "# 5. Kernels\n\ntext"), ("# 5. Kernels", "# 5. Kernels")):
        cells = [{"cell_type": "markdown", "source": [title]}, {"cell_type": "markdown", "source": ["# Other"]}]
        numbered = json.loads(extension.number_title(json.dumps({"cells": cells}), 5))["cells"]
        assert ["".join(cell["source"]) for cell in numbered] == [wanted, "# Other"]


def test_numbers_follow_the_chapter(extension) -> None:
    numbers = {
        "chapters/05_custom_cnn": {"figure": {"a": (3,), "b": (4,)}, "exercise": {"c": (1,)}},
        "book/phantom": {"figure": {"d": (2,)}},
    }
    extension.number_by_chapter(None, SimpleNamespace(toc_fignumbers=numbers))
    assert numbers["chapters/05_custom_cnn"] == {"figure": {"a": (5, 1), "b": (5, 2)}, "exercise": {"c": (5, 1)}}
    assert numbers["book/phantom"] == {"figure": {"d": (1,)}}
