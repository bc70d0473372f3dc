"""The live pages do what they show: the numbers are PyTorch's, the controls work by keyboard, and nothing else is asked
for. The pages stand alone here; what the book makes of them, the tests of the site look at."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import live_page
import numpy as np
import pytest
import torch
from browsing import served
from playwright.sync_api import Browser, Page
from small import ROOT, generator

from assim_lib import ObservationModel, load_filter
from assim_lib.systems import Lorenz96

BOOK = ROOT / "book"
CYCLES = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two pages without the book around them."""
    folder = tmp_path_factory.mktemp("live")
    shutil.copytree(BOOK / "_static", folder / "_static")
    live_page.write(folder / "_static")
    (folder / "book").mkdir()
    for name in live_page.PAGES:
        section = re.search(r"```\{raw\} html\n(.*?)```", (BOOK / f"{name}.md").read_text(), re.DOTALL)
        assert section is not None
        text = f'<!doctype html><html lang="en"><meta charset="utf-8"><body>{section[1]}<p style="height: 300vh"></p>'
        (folder / "book" / f"{name}.html").write_text(text)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a page; an error, or a request for anything that lies elsewhere, fails the test."""
    problems: list[str] = []
    pages: list[Page] = []

    def open_page(url: str, **options: Any) -> Page:
        page, home = browser.new_page(**options), url.rsplit("/book/", 1)[0]
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(home) else problems.append(f"outside: {r.url}"))
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # browsers ask every server for one
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def number(page: Page, name: str) -> float:
    return float(page.locator(f'[data-part="{name}"]').inner_text())


def wait_for(page: Page, name: str, condition: str, seconds: float = 60) -> None:
    """Wait until a number on the page meets a condition."""
    page.wait_for_function(
        f"""Number(document.querySelector('[data-part="{name}"]').textContent) {condition}""", timeout=1000 * seconds
    )


# ---- the same numbers as the library's


def test_runge_kutta_is_the_librarys(visit: Callable[..., Page], address: str):
    state = 8 + torch.randn(1, 40, dtype=torch.float64, generator=generator())
    page = visit(f"{address}/book/scalar.html")
    moved = page.evaluate(
        "async (x) => [...(await import('/_static/live/dynamics.js')).flow(Float64Array.from(x), 40)]",
        state.flatten().tolist(),
    )
    np.testing.assert_allclose(moved, Lorenz96().flow(state, 40).flatten(), rtol=0, atol=1e-10)


def test_the_weights_are_those_of_the_checkpoint(visit: Callable[..., Page], address: str):
    _, model = load_filter(live_page.FILTER, device="cpu")
    page = visit(f"{address}/book/scalar.html")
    layers = page.evaluate("""async () => {
        const { Filter } = await import('/_static/live/filter.js');
        const { WEIGHTS } = await import('/_static/live/weights.js');
        const filter = new Filter(WEIGHTS);
        return [filter.embed, ...filter.blocks, filter.head].map(({ weight, bias }) => [[...weight], [...bias]]);
    }""")
    exported = [torch.tensor(part) for layer in layers for part in layer]
    trained = [part.flatten() for part in model.analysis.trunk.parameters()]
    assert len(exported) == len(trained)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(exported, trained, strict=True))


def test_weights_are_exported_beside_a_gpu_as_well(monkeypatch: pytest.MonkeyPatch):
    without = live_page.exported()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert live_page.exported() == without


@pytest.mark.parametrize(
    ("obs_conf", "noise"), [("full_obs", 3.0), ("random_25_moving", 1.0), ("random_25_moving", 0.3)]
)
def test_a_cycle_is_pytorchs(visit: Callable[..., Page], address: str, obs_conf: str, noise: float):
    """Each from the library's own state: chaos has no time to make rounding larger."""
    experiment, model = load_filter(
        live_page.FILTER, n_settings=0, obs_conf=obs_conf, noise=noise, step_size=live_page.STEP_SIZE, device="cpu"
    )
    observations = torch.from_numpy(experiment.setting.load().observations[:CYCLES])
    carry = model.cold_start(generator=generator())
    given, expected = [], []
    with torch.no_grad():
        for k, y in enumerate(observations):
            given.append([carry.forecast.flatten().tolist(), carry.memory.flatten().tolist(), _or_none(y)])
            carry, analysis = model.cycle(carry, y, k)
            expected.append(torch.cat([part.flatten() for part in (analysis, carry.forecast, carry.memory)]))
    page = visit(f"{address}/book/scalar.html")
    ours = page.evaluate(
        """async ([cycles, sigma]) => {
            const { Filter } = await import('/_static/live/filter.js');
            const { WEIGHTS } = await import('/_static/live/weights.js');
            const filter = new Filter(WEIGHTS);
            return cycles.map(([forecast, memory, observation]) => {
                filter.forecast = Float64Array.from(forecast);
                filter.remembered = Float64Array.from(memory);
                const analysis = filter.cycle(Float64Array.from(observation, (value) => value ?? NaN), sigma);
                return [...analysis, ...filter.forecast, ...filter.remembered];
            });
        }""",
        [given, noise],
    )
    torch.testing.assert_close(torch.tensor(ours), torch.stack(expected), rtol=0, atol=1e-4)


def _or_none(y: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in y.flatten().tolist()]


def test_observations_have_their_error_and_their_places(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/scalar.html")
    values, again = page.evaluate("""async () => {
        const { Random, drawPlaces, observe } = await import('/_static/live/observations.js');
        const draw = (random) => Array.from({ length: 1000 }, () =>
            [...observe(new Float64Array(40).fill(5), drawPlaces(40, 10, random), 2, random)].map((v) => v || null));
        return [draw(new Random(1)), draw(new Random(1))];
    }""")
    assert values == again
    seen = np.array(values, dtype=float)
    assert (np.isfinite(seen).sum(1) == 10).all()
    assert np.isfinite(seen).mean(0) == pytest.approx(np.full(40, 0.25), abs=0.06)
    assert np.nanmean(seen) == pytest.approx(5, abs=0.1)
    assert np.nanstd(seen) == pytest.approx(2, abs=0.1)


# ---- what the page says of its experiments


@pytest.fixture(scope="module")
def at_work() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The filter of the page: errors of its analyses, (cycle, start), and of a forecast from the last of them."""
    _, model = load_filter(live_page.FILTER, device="cpu")
    starts, cycles = 48, 100
    source = generator(3)
    truth = model.climatology[torch.randint(len(model.climatology), (starts,), generator=source)]

    @torch.no_grad()
    def run(seen: int, fixed: bool = False, kick: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.rand(1 if fixed else cycles, 1, 40, generator=source).argsort(-1) < seen
        seeing = model.with_observations(ObservationModel(places), live_page.STEP_SIZE)
        carry, state, errors = seeing.cold_start(starts, generator=source), truth, []
        for k in range(cycles):
            y = torch.where(places[k % len(places)], state + torch.randn(state.shape, generator=source), torch.nan)
            if k == 50:
                moved = carry.forecast + kick * torch.randn(carry.forecast.shape, generator=source)
                carry = carry._replace(base=moved, forecast=moved)
            carry, analysis = seeing.cycle(carry, y, k)
            errors.append(_size(analysis[:, 0] - state))
            state, last = seeing.flow(state), state
        free, growth = analysis[:, 0], []
        for _ in range(30):
            free, last = seeing.flow(free), seeing.flow(last)
            growth.append(_size(free - last))
        return torch.stack(errors), torch.stack(growth)

    return run


def _size(error: torch.Tensor) -> torch.Tensor:
    return error.square().mean((-2, -1)).sqrt()


def said(pattern: str) -> list[float]:
    """The numbers in a sentence of the page."""
    found = re.search(pattern, " ".join((BOOK / "live.md").read_text().split()))
    assert found is not None, pattern
    return [float(number) for number in found.groups()]


def test_the_fewer_sites_it_sees_the_larger_its_error(at_work: Callable[..., tuple[torch.Tensor, torch.Tensor]]):
    means = [float(at_work(seen)[0][50:].mean()) for seen in (40, 20, 10)]
    assert means == pytest.approx(said(r"the mean error rises from ([\d.]+) to ([\d.]+) and to ([\d.]+),"), abs=0.12)
    low, high = said(r"with 10 of them it lies between ([\d.]+) and ([\d.]+)\. ")
    fixed = [float(at_work(10, fixed=True)[0][50:].mean()) for _ in range(5)]  # each with places of its own
    assert low < sorted(fixed)[2] < high
    assert max(fixed) - min(fixed) < high - low


def test_it_is_back_soon_after_a_kick(at_work: Callable[..., tuple[torch.Tensor, torch.Tensor]]):
    """Which the page gives to the forecast between two measurements."""
    (error,) = said(r"With all sites seen the error is about ([\d.]+) again after seven measurements")
    assert at_work(40, kick=3.0)[0][57:60].mean() == pytest.approx(error, abs=0.12)
    usual, kicked = at_work(10)[0][50:].mean(), at_work(10, kick=3.0)[0]
    assert "With 10 of 40 it takes some thirty" in (BOOK / "live.md").read_text()
    assert kicked[60].mean() > 1.15 * usual
    assert kicked[85:95].mean() < 1.15 * usual


def test_it_is_good_soon_and_a_forecast_is_lost_soon(at_work: Callable[..., tuple[torch.Tensor, torch.Tensor]]):
    errors, growth = at_work(40)
    assert errors[5:10].mean() < 0.5
    assert (growth[:20].amax(0) > 1).float().mean() > 0.75  # two units of time are twenty cycles
    assert (growth.amax(0) > 3.64).float().mean() > 0.75


# ---- the live page


@pytest.mark.parametrize("kind", ["served", "opened"])
def test_the_filter_finds_the_truth(visit: Callable[..., Page], folder: Path, address: str, kind: str):
    """Also as a file that nobody serves."""
    page = visit(f"{address if kind == 'served' else folder.as_uri()}/book/live.html")
    wait_for(page, "now-filter", "< 0.5")
    assert number(page, "now-free") > 2
    # At rest: on a busy machine the filter is back before anybody looks.
    for name in ("Pause", "Kick the filter", "One step"):
        page.get_by_role("button", name=name).click()
    assert number(page, "now-filter") > 1
    page.get_by_role("button", name="Start", exact=True).click()
    wait_for(page, "now-filter", "< 0.5")


def test_every_control_works_by_keyboard(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/live.html", reduced_motion="reduce")
    page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator('[data-part="sigma-value"]').inner_text() == "1.1"
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    least = page.locator('[data-part="seen"]').get_attribute("min")
    assert page.locator('[data-part="seen-value"]').inner_text() == f"{least} of 40"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.get_by_role("checkbox").is_checked()
    names = []
    for _ in range(5):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names == ["Start", "One step", "Kick the filter", "Forecast from here", "Start over"]
    page.get_by_role("button", name="Start", exact=True).focus()
    page.keyboard.press("Space")
    wait_for(page, "now-time", "> 0.3")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.textContent") == "Start"


def test_who_wants_no_motion_gets_none(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/live.html", reduced_motion="reduce")
    page.wait_for_timeout(500)
    assert number(page, "now-time") == 0
    page.get_by_role("button", name="One step").click()
    assert number(page, "now-time") == 0.1


def test_it_rests_while_nobody_looks(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/live.html")
    wait_for(page, "now-time", "> 0.2")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(400)
    time = number(page, "now-time")
    page.wait_for_timeout(600)
    assert number(page, "now-time") == time
    page.evaluate("window.scrollTo(0, 0)")
    wait_for(page, "now-time", f"> {time}")


def test_a_screen_reader_is_told(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/live.html")
    status = page.locator('[data-part="summary"]')
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Time')")
    first = status.text_content()
    page.wait_for_timeout(1500)
    assert status.text_content() == first  # not at every step
    page.wait_for_function("(first) => document.querySelector('[role=status]').textContent !== first", arg=first)
    unlabelled = page.locator("canvas:not([role=img][aria-label])")
    assert unlabelled.count() == 0


def test_a_new_start_is_the_same(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/live.html", reduced_motion="reduce")
    runs = []
    for _ in range(2):
        page.get_by_role("button", name="Start over").click()
        for _ in range(4):
            page.get_by_role("button", name="One step").click()
        runs.append(page.locator(".live-numbers").first.inner_text())
    assert runs[0] == runs[1]
    assert "time 0.4" in runs[0]


# ---- the scalar update


def test_the_update_is_kalmans(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/scalar.html")
    page.locator('[data-part="spread"]').fill("3")
    page.locator('[data-part="observation"]').fill("6")
    assert page.locator('[data-part="gain"]').inner_text() == "9.00 / (9.00 + 1.00) = 0.90"
    assert page.locator('[data-part="mean"]').inner_text() == "10 + 0.90 · (6.0 − 10) = 6.40"
    assert page.locator('[data-part="deviation"]').inner_text() == "√(1 − 0.90) · 3.0 = 0.95"


def test_the_measurement_can_be_dragged(visit: Callable[..., Page], address: str):
    page = visit(f"{address}/book/scalar.html")
    box = page.locator("canvas").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.7 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], middle, steps=3)
    page.mouse.up()
    dragged = number(page, "observation-value")
    assert 4 < dragged < 7
    page.mouse.move(box["x"] + 0.5 * box["width"], middle)
    assert number(page, "observation-value") == dragged
