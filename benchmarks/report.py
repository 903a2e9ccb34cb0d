"""Open a report's pages from disk in Chromium, its network taken away: requests, errors, figures drawn, accessibility.

    python benchmarks/report.py --quick                     a small notebook, executed and rendered here
    python benchmarks/report.py outputs/sim/sub-sim/report  the pages of a run

Needs Chromium and playwright; axe-playwright-python for the accessibility rules. The last line is JSON; the exit status
is 1 where a page asks for anything, says an error, breaks a rule or has an empty figure, or where there is no page.
Without a browser nothing is measured: the line of JSON says so, and the exit status is 0.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import nbformat

from bold_audio import execution, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import chromium_path, missing

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]
PATIENCE = 180_000  # ms: other work may hold the machine up
LOCAL = ("file:", "data:", "blob:", "about:")
SERIOUS = ("serious", "critical")
NONE_OF = ("report_requests", "report_console_errors", "report_figures_missing", "report_violations")
DRAWN = """() => [...document.querySelectorAll("figure.plot .plot-area")].map((area) => {
  const plot = area.querySelector(".plot-container");
  const marks = area.querySelectorAll("path.js-line, .points path, .barlayer path, .hm image, .heatmaplayer image, "
    + ".scatterlayer path, .shapelayer path, .errorbars path, canvas");
  return Boolean(plot) && marks.length > 0;
})"""


@contextlib.contextmanager
def browser():
    """A page of Chromium without network; ``page.requests`` and ``page.errors`` are what it was refused and said."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        try:
            context = opened.new_context(viewport={"width": 1280, "height": 1000}, offline=True)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.requests, page.errors = [], []
            page.on("request", lambda asked: page.requests.append(asked.url) if not asked.url.startswith(LOCAL) else 0)
            page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("requestfailed", lambda asked: page.errors.append(f"not loaded: {asked.url[:200]}"))
            yield page
        finally:
            opened.close()


def open_page(page, path):
    """Open an HTML file from disk and wait until its figures are drawn."""
    page.goto(Path(path).resolve().as_uri(), wait_until="load")
    if page.locator("figure.plot").count():
        page.wait_for_function("() => document.documentElement.dataset.drawn === 'yes'")


def violations(page):
    """What axe finds against the page, as ``rule: element``; None where axe is not installed."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        return None
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:160]}" for one in found if one["impact"] in SERIOUS for node in one["nodes"]]


def measure(folder, *, pages=None, page=None):
    """Open every page of a report and count what a careful page has none of.

    Parameters
    ----------
    folder : path
        The report's folder.
    pages : list of path, optional
        By default every HTML file in the folder.
    page : optional
        From `browser`, when one is open already.

    Returns
    -------
    dict
        Counts over all pages, sizes in MB, and what was found, in words.
    """
    paths = sorted(Path(folder).glob("*.html")) if pages is None else pages
    made = {"report_pages": len(paths), "report_requests": 0, "report_console_errors": 0, "report_figures": 0}
    made |= {"report_figures_missing": 0, "report_violations": 0}
    found = []
    with contextlib.nullcontext(page) if page else browser() as page:
        for path in paths:
            page.requests.clear()
            page.errors.clear()
            open_page(page, path)
            drawn, broken = page.evaluate(DRAWN), violations(page)
            made["report_figures"] += len(drawn)
            made["report_figures_missing"] += drawn.count(False)
            made["report_requests"] += len(page.requests)
            made["report_console_errors"] += len(page.errors)
            made["report_violations"] = None if broken is None else made["report_violations"] + len(broken)
            found += [f"{path.name}: {one}" for one in (*page.requests, *page.errors, *(broken or []))]
            found += [f"{path.name}: figure {k} has no mark" for k, ok in enumerate(drawn, 1) if not ok]
    sizes = [path.stat().st_size / 1e6 for path in paths]
    made["report_page_mb"] = round(max(sizes, default=0), 3)
    made["report_folder_mb"] = round(sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6, 3)
    return made | {"found": found}


CELLS = (
    ("markdown", "# 00 · A small notebook\n\nIt has **words**, and a table.\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
    ("code", "import numpy as np\nimport pandas as pd\nfrom bold_audio import brain_figures, figures, renderer\n"
     "renderer.use_notebook_renderer()\npd.DataFrame({'model': ['mlp', 'ridge'], 'mse': [1.5, 2.5]})"),
    ("markdown", "**A line.**"),
    ("code", "figures.plot_time_course([0, 1, 2], {'measured': [3.25, 1.5, 7.75]}, title='A line', unit='r')"),
    ("markdown", "**Slices over time.**"),
    ("code", "run = np.random.default_rng(0).normal(size=(6, 8, 9, 7))\n"
     "brain_figures.slice_player(run, run / 2, np.arange(6) * 0.6, title='Slices', unit='raw intensity (a.u.)')"),
)  # fmt: skip


def small_report(folder, cells=CELLS):
    """Execute a notebook of these (kind, source) cells and render it: path of the report's folder."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook.cells = [make[kind](source, metadata={"tags": tags}) for kind, source, *tags in cells]
    source = Path(folder) / "notebooks" / "00_small.ipynb"
    source.parent.mkdir(parents=True)
    nbformat.write(notebook, source)
    executed = execution.execute_file(source, Path(folder) / source.name, {}, cwd=folder)
    report.write_page(executed, Path(folder) / "report" / "00_small.html", who="a small notebook")
    return Path(folder) / "report"


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a report's folder")
    parser.add_argument("--quick", action="store_true", help="a small notebook, executed here (15 s)")
    options = parser.parse_args()
    if why := missing():
        print(f"not measured: {why}", file=sys.stderr)
        print(json.dumps({"report_requests": None, "report_console_errors": None, "skipped": why}))
        return
    if not (options.quick or options.folder):
        parser.error("name a report's folder, or give --quick")
    with tempfile.TemporaryDirectory() as made:
        found = measure(options.folder or small_report(Path(made) / "quick"))
    for line in found.pop("found"):
        print(line)
    print(json.dumps(found))
    if missed := failures(found):
        sys.exit(f"not as asked: {', '.join(missed)}")


def failures(found):
    """Names of counts that a careful report has at 0; a report without a page fails, rules that nobody asked do not."""
    return [name for name in NONE_OF if found[name]] + ["report_pages"] * (not found["report_pages"])


if __name__ == "__main__":
    main()
