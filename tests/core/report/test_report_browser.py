"""The report in a browser: it draws the logged values, loads nothing, and fits phones."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest

from sftkit_commands.report.page import write_report
from sftkit_commands.report.reading import read_runs

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"there is none of {', '.join(NAMES)}")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page, and returns it with what it has complained about and requested."""

    def open_page(path, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        seen = {"errors": [], "requests": []}
        page.on("console", lambda message: seen["errors"].append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: seen["errors"].append(str(error)))
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("window.sftkitCharts !== undefined")
        return page, seen

    return open_page


@pytest.fixture(scope="module")
def report(real_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, read_runs([real_run]))
    return path


def paper(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def too_wide(page):
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


def test_the_page_draws_the_logged_values_and_loads_nothing(visit, report, real_run):
    page, seen = visit(report, width=360)
    log = [json.loads(line) for line in (real_run / "log.jsonl").read_text().splitlines()]
    drawn = page.evaluate("""() => Object.fromEntries(Object.entries(sftkitCharts).map(
        ([name, chart]) => [name, Object.fromEntries(chart.series.map((one, at) => [one.label, chart.data[at]]))]))""")
    for key, chart, label in (("loss", "loss", "training"), ("grad_norm", "grad_norm", "grad norm")):
        values = dict(zip(drawn[chart]["step"], drawn[chart][label], strict=True))
        assert {step: value for step, value in values.items() if value is not None} == {
            one["step"]: one[key] for one in log if key in one
        }
    assert page.title() == "run · sftkit report", "the scripts in the data did not run"
    assert not too_wide(page)
    assert seen == {"errors": [], "requests": [report.as_uri()]}
    light = paper(page)
    page.click("#theme")
    assert paper(page) != light
    assert page.inner_text("#theme") == "Light theme"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("number", [1, 3])
def test_the_page_fits_its_screen_in_both_themes(visit, real_run, tmp_path, width, number):
    directories = [real_run]
    for name in ["a-run-with-quite-a-long-name-in-which-there-is-no-space", "other"][: number - 1]:
        shutil.copytree(real_run, tmp_path / name)
        directories.append(tmp_path / name)
    path = tmp_path / "report.html"
    write_report(path, read_runs(directories))
    papers = []
    for scheme in ("light", "dark"):
        page, seen = visit(path, width, scheme)
        for details in page.query_selector_all("details"):
            details.evaluate("one => one.open = true")
        assert not too_wide(page)
        assert seen["errors"] == []
        papers.append(paper(page))
    assert papers[0] != papers[1]


@pytest.mark.slow
def test_every_chart_has_a_canvas_and_the_headings_go_one_way(visit, report):
    page, _ = visit(report)
    assert page.evaluate("""() => [...document.querySelectorAll('.plot')].every(
        (one) => one.getAttribute('role') === 'img' && one.querySelector('canvas').width > 200)""")
    levels = page.evaluate("() => [...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("() => ['header', 'nav', 'main', 'footer'].every((name) => document.querySelector(name))")
