"""A report's pages are whole without a network, and text stays text."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from bold_audio.files import write_json, write_table
from bold_audio.report import remote_references, write_index, write_page, write_subject_index

ATTACK = "<script>alert('x')</script> & <b>bold</b>"
FETCHING = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "audio": "src",
    "video": "src",
    "source": "src",
}


class Fetched(HTMLParser):
    """What a browser would load for a page: an oracle that knows HTML, not a pattern."""

    def __init__(self, html):
        super().__init__()
        self.references, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        reference = dict(attributes).get(FETCHING.get(tag, ""))
        if reference is not None and not reference.startswith(("data:", "#")):
            self.references.append(reference)


def index(folder, **given):
    settings = {"title": "t", "note": "n", "sentences": ["s"], "tables": [], "pages": [], "foot": "f"} | given
    write_index(folder, **settings)
    return (folder / "index.html").read_text(encoding="utf-8")


# --- the index ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["title", "note", "sentence", "caption", "column", "cell", "page", "foot"])
def test_text_is_escaped_wherever_it_comes_from(tmp_path, where):
    said = dict.fromkeys(["title", "note", "sentence", "caption", "column", "cell", "page", "foot"], "harmless")
    said[where] = ATTACK
    html = index(
        tmp_path,
        title=said["title"],
        note=said["note"],
        sentences=["first", said["sentence"]],
        tables=[(said["caption"], pd.DataFrame({said["column"]: [said["cell"]]}))],
        pages=[("a.html", said["page"])],
        foot=said["foot"],
    )
    parsed = Fetched(html)
    assert "script" not in parsed.tags and "b" not in parsed.tags
    assert "&lt;script&gt;alert(" in html


def test_page_name_cannot_leave_its_attribute(tmp_path):
    html = index(tmp_path, pages=[('a.html"><script src="//evil.example/x.js"></script>', "a")])
    assert Fetched(html).tags.count("script") == 0


def test_index_shows_numbers_and_what_is_missing(tmp_path):
    table = pd.DataFrame({"model": ["mlp", None], "mse": [1.23456e-5, np.nan], "n": [3, 4]})
    html = index(tmp_path, tables=[("Scores", table)], sentences=["**Δt** is `5 s`"])
    rows = [
        [cell.split("</td>")[0] for cell in row.split("<td>")[1:]] for row in html.split("<tbody>")[1].split("<tr>")[1:]
    ]
    assert rows == [["mlp", "1.23e-05", "3"], ["n/a", "n/a", "4"]]
    assert "Δt is 5 s" in html


@pytest.fixture
def params(tmp_path):
    return SimpleNamespace(subject_path=tmp_path, subject="09", label="ds003688", data_note="real scan")


def test_subject_index_before_anything_ran(params):
    html = write_subject_index(params, []).read_text()
    assert "Not all notebooks have run yet." in html and "real scan" in html and "sub-09" in html


def test_subject_index_shows_the_region_it_speaks_of_one_step_and_open_loop_apart(params, tmp_path):
    lines = [
        {"model": "mlp", "prediction": p, "region": region, "mse": mse, "skill": 0.5, "n_volumes": 166, "n_voxels": 42}
        for p, region, mse in [
            ("one_step", "responsive", 1.25e-5),
            ("open_loop", "responsive", 2.5e-5),
            ("one_step", "brain", 9.75e-5),
        ]
    ]
    write_table(tmp_path / "scores.tsv", pd.DataFrame(lines))
    write_json(tmp_path / "summary.json", {"about": "about it", "sentences": ["The answer."], "region": "responsive"})
    write_json(tmp_path / "provenance.json", {"mlp": {"finished": "2026-01-02T03:04:05", "git_commit": "abc123"}})
    path = write_subject_index(params, [("04_train.html", "04_train")])
    html = path.read_text()
    assert path == tmp_path / "report/index.html"
    assert "One-step: previous volumes measured (responsive, 166 test volumes, 42 voxels)" in html
    assert "Open-loop (responsive" in html
    assert html.index("1.25e-05") < html.index("Open-loop") < html.index("2.5e-05")
    assert "9.75e-05" not in html
    assert all(
        text in html for text in ("about it", "The answer.", "abc123", "2026-01-02T03:04:05", 'href="04_train.html"')
    )


def test_alarms_stand_in_red_above_the_headline(params, tmp_path):  # A13
    alarm = "sound does not follow <the> film's 30 s blocks"
    write_json(tmp_path / "summary.json", {"about": "a", "alarms": [alarm], "sentences": ["The answer."]})
    html = write_subject_index(params, []).read_text()
    assert '<p class="alarm">sound does not follow &lt;the&gt; film&#39;s 30 s blocks</p>' in html
    assert html.index('class="alarm"') < html.index("The answer.") and ".alarm {" in html and "color: #b00020" in html
    write_json(tmp_path / "summary.json", {"about": "a", "alarms": [], "sentences": ["The answer."]})
    assert 'class="alarm"' not in write_subject_index(params, []).read_text()


# --- remote references --------------------------------------------------------------------

MISSED = [
    pytest.param(html)
    for html in (
        "<img src='https://example.org/a.png'>",
        '<IMG SRC="https://example.org/a.png">',
        "<img src=https://example.org/a.png>",
        '<style>@import url("https://example.org/a.css");</style>',
        '<video src="https://example.org/a.mp4"></video>',
    )
]


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.plot.ly/plotly.min.js"></script>',
        '<script async\n src="//cdn.example/x.js"></script>',
        '<img alt="a" src="http://example.org/a.png">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<iframe src="https://example.org/"></iframe>',
        *MISSED,
    ],
)
def test_remote_script_style_or_picture_is_found(html):
    (found,) = remote_references(f"<p>before</p>{html}<p>after</p>")
    assert "example" in found or "plot.ly" in found


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://openneuro.org/datasets/ds003688">the data</a>',
        "<p>see https://openneuro.org and //comment</p>",
        '<img src="data:image/png;base64,AAAA">',
        '<script src="local.js"></script><img src="figures/a.png"><link href="style.css">',
        '<script>var url = "https://example.org/topojson";</script>',
    ],
)
def test_links_to_follow_and_local_files_are_not_remote(html):
    assert remote_references(html) == []


# --- pages --------------------------------------------------------------------------------


def execute(folder, *cells, name="04_train"):
    """A notebook of these (kind, source, tags), executed by papermill."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for kind, source, *tags in cells:
        make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(make(source, metadata={"tags": tags}))
    nbformat.write(notebook, folder / "source.ipynb")
    target = folder / f"{name}.ipynb"
    quiet = {"progress_bar": False, "log_output": False}
    papermill.execute_notebook(
        str(folder / "source.ipynb"), str(target), kernel_name="python3", cwd=str(folder), **quiet
    )
    return target


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    start = (
        "from IPython.display import HTML\nfrom bold_audio import figures, renderer\nrenderer.use_notebook_renderer()"
    )
    series = "{'measured': [3.25, 1.5, 7.75]}"
    draw = f"figures.plot_time_course([0, 1, 2], {series}, title='A figure of its own', unit='r (1)')"
    executed = execute(
        folder,
        ("markdown", "# A story with a [link](https://openneuro.org) and $\\Delta t$"),
        ("code", start),
        ("code", draw),
        ("code", "print('seen in the page')"),
        ("code", f"HTML('<i>ok</i>'); {ATTACK!r}"),
        ("code", "import ipywidgets\nprint('a widget ' + 'that needs its kernel')\nipywidgets.IntSlider()", "live"),
    )
    write_page(executed, folder / "report" / "04_train.html")
    return (folder / "report" / "04_train.html").read_text(encoding="utf-8")


def test_page_holds_no_state_of_widgets(page):
    assert "IntSliderModel" not in page and "widget-state" not in page


def test_page_asks_no_other_host_for_anything(page):
    assert remote_references(page) == []
    assert [r for r in Fetched(page).references if "//" in r] == []
    assert "require.min.js" not in page and "MathJax.js" not in page


def test_page_holds_its_figure_and_the_library_that_draws_it(page):
    assert "A figure of its own" in page
    assert page.count("Plotly.newPlot(") >= 1
    assert len(page) > 4e6, "plotly.js itself"
    assert "seen in the page" in page


def test_page_leaves_cells_for_a_kernel_out(page):
    assert "needs its kernel" not in page


def test_page_shows_markup_in_results_as_text(page):
    assert "&lt;script&gt;alert(" in page
    assert "<script>alert('x')" not in page


def test_page_that_would_not_be_whole_offline_is_refused(tmp_path):
    executed = execute(
        tmp_path, ("code", "from IPython.display import HTML\nHTML('<img src=\"https://example.org/a.png\">')")
    )
    with pytest.raises(ValueError, match="example.org/a.png, so its page would not be whole offline"):
        write_page(executed, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_executed_notebook_is_not_changed_by_its_page(tmp_path):
    executed = execute(tmp_path, ("code", "1 + 1"), ("code", "2 + 2", "live"))
    before = executed.read_bytes()
    write_page(executed, tmp_path / "page.html")
    assert executed.read_bytes() == before
    assert len(json.loads(before)["cells"]) == 2
