"""The rendered book, looked at as a reader does: in a browser, without a network."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import served
from playwright.sync_api import Browser
from playwright.sync_api import Page as BrowserPage
from small import ROOT, TOC

PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
LOOK = """() => ({
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    anchors: [...document.querySelectorAll("[id], a[name]")].flatMap(e => [e.id, e.name]),
    images: [...document.images].map(i => [i.currentSrc.slice(0, 200), i.getAttribute("alt") ?? "", i.naturalWidth]),
    broken_formulas: [...document.querySelectorAll("mjx-merror")].map(e => e.title),
    formulas: [document.querySelectorAll(".math").length, document.querySelectorAll("mjx-container").length],
})"""


# Alike everywhere and long, so that axe-core reads them on one page: formulas, code, and entries of the reference.
ENTRIES = "section:has(dl.py)"
ALIKE = f"mjx-container, .highlight pre > span, dl.py ~ dl.py, {ENTRIES} ~ {ENTRIES} ~ {ENTRIES}"
IN_FULL = "book/classical.html"

# What a page would do if somebody else's text had come into it.
STRANGE = """() => {
    window.refused = []
    document.addEventListener("securitypolicyviolation", e => window.refused.push(e.effectiveDirective))
    document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran = 1'>")
    document.head.append(Object.assign(document.createElement("script"), {text: "window.ran = 2"}))
    fetch("https://example.org").catch(() => {})
}"""


@dataclass
class Page:
    """What a browser saw."""

    problems: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    images: list[tuple[str, str, int]] = field(default_factory=list)
    broken_formulas: list[str] = field(default_factory=list)
    formulas: tuple[int, int] = (0, 0)
    violations: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book, rendered from the committed notebooks."""
    site = tmp_path_factory.mktemp("site") / "site"
    build = [sys.executable, ROOT / "book" / "build_site.py", ROOT / "notebooks", site]
    run = subprocess.run(build, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:] or run.stdout[-3000:]
    return site / "_build" / "html"


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    """Where the book is served."""
    with served(html) as url:
        yield url


def wait_until(page: BrowserPage, true: str) -> None:
    """Wait until an expression is true; by a promise, for a page's policy forbids to evaluate it again and again."""
    page.evaluate(f"() => new Promise(done => {{ const look = () => {true} ? done() : setTimeout(look, 20); look() }})")


def look(browser: Browser, address: str, name: str) -> Page:
    """Load one page, let it come to rest, and note what it did and holds."""
    seen = Page()
    with browser.new_context(color_scheme="light") as context, context.new_page() as page:
        page.on("console", lambda message: seen.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        page.on("requestfailed", lambda request: seen.problems.append(f"failed: {request.url}"))

        def check_request(url: str) -> None:
            if not url.startswith((address, "data:", "blob:")):
                seen.problems.append(f"outside request: {url[:200]}")

        page.on("request", lambda request: check_request(request.url))
        page.on("response", lambda r: seen.problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(f"{address}/{name}", wait_until="load")
        page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        # Lazy pictures load when they come into view.
        page.evaluate("() => document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
        page.wait_for_load_state("networkidle")
        for key, value in page.evaluate(LOOK).items():
            setattr(seen, key, value)
        own = seen.problems.copy()  # axe-core tries what the page's policy forbids
        if name.removesuffix(".html") in PAGES:
            seen.violations = violations(page, in_full=name == IN_FULL)
        seen.problems = own
    return seen


def violations(page: BrowserPage, in_full: bool) -> list[tuple[str, str]]:
    """What axe-core finds serious or critical in a page at rest, and where; in the dark, colours alone are others.

    Args:
        in_full: otherwise the page loses most of what is alike on it.
    """
    # Halfway from one colour to the next, a contrast says nothing.
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")
    if not in_full:
        page.evaluate("alike => document.querySelectorAll(alike).forEach(e => e.remove())", ALIKE)
    found = Axe().run(page).response["violations"]
    page.emulate_media(color_scheme="dark")
    wait_until(page, "document.documentElement.dataset.theme === 'dark'")
    found += Axe().run(page, options={"runOnly": ["color-contrast"]}).response["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], node["html"][:200]) for one in grave for node in one["nodes"]]


@pytest.fixture(scope="session")
def pages(browser: Browser, html: Path, address: str) -> dict[str, Page]:
    """Every page of the site, visited once; index.html only sends its reader on."""
    files = (path for path in html.rglob("*.html") if "_static" not in path.parts and path != html / "index.html")
    names = sorted(path.relative_to(html).as_posix() for path in files)
    return {name: look(browser, address, name) for name in names}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_rendered(html: Path, name: str):
    """Building it gave no warning, and there it is."""
    assert (html / f"{name}.html").is_file()


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_without_trouble(pages: dict[str, Page], name: str):
    page = pages[f"{name}.html"]
    assert page.problems == []
    assert page.broken_formulas == []
    assert page.formulas[0] == page.formulas[1]


@pytest.mark.parametrize("name", PAGES)
def test_images_are_there_and_described(pages: dict[str, Page], name: str):
    for source, alt, width in pages[f"{name}.html"].images:
        assert width > 0, source
        # Without a text of its own an image gets its file name.
        assert alt.strip(), source
        assert not alt.endswith((".png", ".svg", ".gif", ".jpg", ".jpeg")), source


def test_generated_pages_load_without_trouble(pages: dict[str, Page]):
    """The index, the search page and whatever else is not in the table of contents."""
    generated = {name: page.problems for name, page in pages.items() if name.removesuffix(".html") not in PAGES}
    assert "search.html" in generated
    assert {name: problems for name, problems in generated.items() if problems} == {}


def test_internal_links_resolve(pages: dict[str, Page], html: Path, address: str):
    dead = []
    for name, page in pages.items():
        for link in page.links:
            if not link.startswith(address):
                continue
            url, anchor = urldefrag(link)
            target = unquote(urlsplit(url).path).lstrip("/") or "index.html"
            known = pages.get(target)
            if not (html / target).is_file() or (anchor and known and unquote(anchor) not in known.anchors):
                dead.append(f"{name} -> {target}#{anchor}")
    assert dead == []


def test_fields_of_docstrings_are_read(html: Path):
    """Of one that is written otherwise, Sphinx shows the marks, or takes a name for the type of another."""
    page = (html / "book" / "api.html").read_text()
    assert page.count(">Raises<") > 50
    assert "pydantic.functional" not in page  # in the signature of a record
    assert re.findall(r"<p>:\w[^<]*|<p><strong>\w+</strong> \([^)]*,\)", page) == []


def test_the_site_is_small_and_a_stray_reader_finds_back(html: Path, browser: Browser, address: str):
    files = [path for path in html.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/404.html")
        assert page.get_attribute("#home", "href") == "/index.html"


def test_a_page_runs_nothing_but_what_it_was_built_with(html: Path, browser: Browser, address: str):
    """Of every page: what its policy forbids is a problem in the console, which the tests above look for."""
    pages = [path for path in html.rglob("*.html") if "_static" not in path.parts and path != html / "index.html"]
    assert [path.name for path in pages if "Content-Security-Policy" not in path.read_text()] == []
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/{TOC['root']}.html")
        page.evaluate(STRANGE)
        wait_until(page, "window.refused.length === 3")
        assert page.evaluate("window.refused.sort()") == ["connect-src", "script-src-attr", "script-src-elem"]
        assert page.evaluate("window.ran") is None


def test_the_moving_picture_moves_and_can_be_stopped(browser: Browser, address: str):
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/{TOC['root']}.html")
        player = page.locator("div[id^=player-]")
        frame = player.locator("input")
        page.wait_for_function(
            "n => document.querySelector('div[id^=player-] input').value !== n", arg=frame.input_value()
        )
        player.locator("button", has_text="Pause").click()
        still = frame.input_value()
        page.wait_for_timeout(400)
        assert frame.input_value() == still
        assert player.locator("button").inner_text() == "Play"
    with browser.new_context(reduced_motion="reduce") as context, context.new_page() as page:
        page.goto(f"{address}/{TOC['root']}.html")
        assert page.locator("div[id^=player-] button").inner_text() == "Play"


def test_front_page_leads_to_the_welcome(browser: Browser, address: str):
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/")
        page.wait_for_url(f"{address}/{TOC['root']}.html")


def test_search_finds_a_word(browser: Browser, address: str):
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/search.html?q=localization")
        page.wait_for_selector("#search-results li a", timeout=20_000)
        found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("book/glossary.html" in link for link in found)


def test_figures_keep_a_light_background_in_the_dark(pages: dict[str, Page], browser: Browser, address: str):
    name = next(name for name, page in pages.items() if any("_images/" in source for source, *_ in page.images))
    with browser.new_context(color_scheme="dark") as context, context.new_page() as page:
        page.goto(f"{address}/{name}")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        image = page.locator(".bd-article img[src*='_images/']").first
        assert image.evaluate("i => getComputedStyle(i).backgroundColor") == "rgb(255, 255, 255)"
        assert image.evaluate("i => getComputedStyle(i).filter") == "none"


def test_abbreviations_are_spelled_out_for_mouse_and_keyboard(browser: Browser, address: str):
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/notebooks/08_baselines.html")
        (short,) = [one for one in page.locator(".bd-article abbr").all() if one.inner_text() == "iEnKS"]
        assert short.get_attribute("title") == "Iterative ensemble Kalman smoother"
        short.focus()
        shown = short.evaluate("e => e === document.activeElement && getComputedStyle(e, '::after').content")
        assert shown == '"Iterative ensemble Kalman smoother"'


def test_solutions_are_folded_and_open_with_the_keyboard(browser: Browser, address: str):
    with browser.new_context() as context, context.new_page() as page:
        page.goto(f"{address}/notebooks/11_recipe.html")
        cell = page.locator(".cell.tag_solution").first
        code = cell.locator(".cell_input")
        assert not code.is_visible()
        cell.locator("summary").focus()
        page.keyboard.press("Enter")
        assert code.is_visible()


@pytest.mark.parametrize("name", PAGES)
def test_page_keeps_nobody_out(pages: dict[str, Page], name: str):
    """No serious or critical violation by axe-core: contrast, names of controls, what a keyboard cannot reach."""
    assert pages[f"{name}.html"].violations == []
