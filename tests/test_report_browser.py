"""A report in a real Chromium, from disk and without a network: drawn, operable by keyboard, accessible."""

import importlib.util
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from bold_audio.files import write_json
from bold_audio.report import write_dataset_index, write_index, write_page

ROOT = Path(__file__).resolve().parents[1]


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
WHY = benchmark.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY), reason=f"no browser: {WHY}")]
TABLE = """import itertools
rows = [dict(n_features=n, n_lags=lag, blocks=b, delay=d, skill=100 * n + 10 * lag + b + d / 10)
        for n, lag, b, d in itertools.product(range(1, 6), range(2), (False, True), (4.0, 5.0, 6.0))]"""
CELLS = (
    *benchmark.CELLS,
    ("markdown", "**Choose.**"),
    ("code", "from bold_audio import delay_figures\n" + TABLE),
    ("code", "delay_figures.delay_chooser({'<b>A1</b>': pd.DataFrame(rows)})"),
    ("code", "import ipywidgets\nipywidgets.IntSlider()", "live"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report: a page with every kind of figure, one that failed, a subject's index, and the index of subjects."""
    base = tmp_path_factory.mktemp("outputs") / "sim"
    report = benchmark.small_report(base / "sub-1", CELLS)
    failed = nbformat.v4.new_notebook()
    said = nbformat.v4.new_output("error", ename="DataError", evalue="no <scan> - fetch it", traceback=["line"] * 40)
    failed.cells = [nbformat.v4.new_markdown_cell("# Failed"), nbformat.v4.new_code_cell("x = 1", outputs=[said])]
    nbformat.write(failed, base / "failed.ipynb")
    write_page(base / "failed.ipynb", report / "failed.html", who="sub-1")
    table = pd.DataFrame({"model": ["mlp"], "mse": [1e-5]})
    pages = [("00_small.html", "small", "3 s"), ("failed.html", "failed", "failed")]
    shown = {"title": "sub-1", "note": "SIMULATED", "sentences": ["The answer."], "provenance": [("commit", "abc")]}
    maps = [{"src": "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "alt": "a map", "caption": "r", "page": None}]
    write_index(report, tables=[("One", table), ("Two", table)], pages=pages, maps=maps, up="../../index.html", **shown)
    for name, finished in (("sub-1", "2026-01-03"), ("sub-2", "2026-01-01"), ("sub-10", "2026-01-02")):
        (base / name).mkdir(exist_ok=True)
        state = {"state": "failed", "step": "03", "error": "e - f"} if name == "sub-2" else {"state": "done"}
        write_json(base / name / "status.json", state | {"finished": finished})
    write_dataset_index(base, title="Subjects", note="SIMULATED")
    return report


@pytest.fixture(scope="module")
def page():
    with benchmark.browser() as opened:
        yield opened


def test_report_opens_from_disk_without_a_request_an_error_or_a_violation(folder, page):
    pages = [*sorted(folder.glob("*.html")), folder.parents[1] / "index.html"]
    found = benchmark.measure(folder, pages=pages, page=page)
    assert found["found"] == []
    assert (found["report_pages"], found["report_figures"], found["report_figures_missing"]) == (4, 3, 0)
    assert found["report_requests"] == found["report_console_errors"] == 0
    assert not found["report_violations"]


def test_measure_sees_requests_errors_empty_figures_and_violations(page, tmp_path):
    bad = """<!DOCTYPE html><html><body><img src="http://127.0.0.1:9/a.png"><script>throw new Error("broken")</script>
    <figure class="plot"><div class="plot-area"></div></figure>
    <script>document.documentElement.dataset.drawn = "yes"</script></body></html>"""
    (tmp_path / "bad.html").write_text(bad)
    found = benchmark.measure(tmp_path, page=page)
    assert found["report_requests"] == 1 and found["report_console_errors"] >= 1
    assert found["report_figures_missing"] == 1
    assert found["report_violations"] is None or found["report_violations"] >= 1


def test_policy_of_a_page_stops_what_came_in_from_outside(folder, page):
    text = (folder / "failed.html").read_text()
    evil = '<img src="http://127.0.0.1:9/a.png"><script>document.title = "taken"</script><b onclick="x()">'
    (folder.parent / "evil.html").write_text(text.replace("<main", f"{evil}<main"))
    benchmark.open_page(page, folder.parent / "evil.html")
    assert page.title() != "taken"
    refused = [one for one in page.errors if "Content Security Policy" in one or "not loaded" in one]
    assert len(refused) >= 2
    assert page.locator("b[onclick]").count() == 1


def test_code_is_hidden_until_the_switch_is_turned_by_keyboard(folder, page):
    benchmark.open_page(page, folder / "00_small.html")
    code = page.locator("pre.code")
    assert code.count() >= 5 and not any(one.is_visible() for one in code.all())
    switch = page.get_by_role("switch", name="Show the code")
    for _ in range(3):  # skip link, link to the index, switch
        page.keyboard.press("Tab")
    assert switch.evaluate("one => one === document.activeElement")
    page.keyboard.press("Space")
    assert switch.is_checked() and all(one.is_visible() for one in code.all())
    page.keyboard.press("Space")
    assert not code.first.is_visible()


def test_skip_link_is_seen_when_it_has_the_focus(folder, page):
    benchmark.open_page(page, folder / "00_small.html")
    page.keyboard.press("Tab")
    box = page.locator("a.skip").bounding_box()
    assert box["x"] >= 0 and page.locator("a.skip").evaluate("one => one === document.activeElement")


SLICE = """() => [...document.querySelectorAll("figure.plot")[1].querySelectorAll(".heatmaplayer image")]
  .map((one) => one.getAttribute("href") || one.getAttribute("xlink:href")).join(" ")"""


def test_slider_over_slices_is_moved_by_keyboard_and_the_picture_follows(folder, page):
    benchmark.open_page(page, folder / "00_small.html")
    slider = page.get_by_role("slider", name="Time")
    first = page.evaluate(SLICE)
    assert slider.get_attribute("aria-valuetext") == "0.0 s"
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"(first) => ({SLICE})() !== first", arg=first, timeout=60_000)
    assert slider.get_attribute("aria-valuetext") == "0.6 s"
    page.keyboard.press("Home")
    page.wait_for_function(f"(first) => ({SLICE})() === first", arg=first, timeout=60_000)


def test_play_moves_the_slider_to_the_end(folder, page):
    benchmark.open_page(page, folder / "00_small.html")
    page.get_by_role("button", name="play").press("Enter")
    page.wait_for_function(
        "() => document.querySelectorAll('figure.plot')[1].querySelector('input').value === '5'", timeout=60_000
    )
    assert page.get_by_role("slider", name="Time").get_attribute("aria-valuetext") == "3.0 s"


CURVE = """() => Array.from(document.querySelectorAll("figure.plot")[2].querySelector(".plot-area")._fullData[0].y)"""


def test_every_setting_of_the_delay_curve_can_be_chosen(folder, page):
    benchmark.open_page(page, folder / "00_small.html")
    assert page.evaluate(CURVE) == [500.4, 500.5, 500.6]
    page.get_by_label("Blocks").select_option("with")
    assert page.evaluate(CURVE) == [501.4, 501.5, 501.6]
    page.get_by_role("slider", name="Features").focus()
    page.keyboard.press("Home")
    assert page.evaluate(CURVE) == [101.4, 101.5, 101.6]
    page.get_by_label("Further windows").select_option("1")
    assert page.evaluate(CURVE) == [111.4, 111.5, 111.6]


def test_page_whose_library_is_missing_says_so_and_keeps_its_words(folder, page, tmp_path):
    (tmp_path / "alone.html").write_text((folder / "00_small.html").read_text())
    benchmark.open_page(page, tmp_path / "alone.html")
    said = page.locator(".plot-area").first.inner_text()
    assert "plotly.min.js, which draws this figure, is not beside this page" in said and "A line" in said


def test_narrow_page_does_not_scroll_sideways(folder, page):
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    size = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 800})
    try:
        for path in (folder / "00_small.html", folder / "index.html", folder.parents[1] / "index.html"):
            benchmark.open_page(page, path)
            assert page.evaluate(wide) <= 0, path.name
    finally:
        page.set_viewport_size(size)


def first_column(page):
    return page.locator("tbody th").all_inner_texts()


def test_subjects_are_sorted_by_click_and_by_keyboard_what_is_missing_last(folder, page):
    benchmark.open_page(page, folder.parents[1] / "index.html")
    assert first_column(page) == ["sub-1", "sub-10", "sub-2"]
    page.get_by_role("button", name="finished").click()
    assert first_column(page) == ["sub-2", "sub-10", "sub-1"]
    heading = page.get_by_role("columnheader", name="finished")
    assert heading.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="finished").press("Enter")
    assert first_column(page) == ["sub-1", "sub-10", "sub-2"] and heading.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="subject").press("Space")
    assert first_column(page) == ["sub-1", "sub-2", "sub-10"]  # by number, not by letter
    for _ in range(2):
        page.get_by_role("button", name="where it stopped").click()
        assert first_column(page)[0] == "sub-2"
    assert page.locator("tr.failed").inner_text().startswith("sub-2")
