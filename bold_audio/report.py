"""Executed notebooks and tables → HTML pages that open without a network."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment

from bold_audio.files import read_json, write_text

# Scripts that nbconvert's template asks other hosts for; plotly's own are embedded by the notebooks.
REMOTE_SCRIPT = re.compile(r'<script[^>]*\bsrc="(?:https?:)?//[^"]*"[^>]*>\s*</script>')
REMOTE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
REMOTE_STYLE = re.compile(r"""(?:@import\s+(?:url\()?|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
MATHJAX_CONFIG = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.DOTALL)

INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
 h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
 .note { background: #fff4d6; border-left: .3rem solid #b35c00; padding: .5rem .8rem; }
 .alarm { background: #fbe3e4; border-left: .3rem solid #b00020; color: #b00020; padding: .5rem .8rem; }
 .lead { font-size: 1.08rem; }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
 th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
 th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
 .wide { overflow-x: auto; } footer { margin-top: 2.5rem; font-size: .85rem; color: #555; }
 a { color: #00558c; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="note">{{ note }}</p>
{% for alarm in alarms %}<p class="alarm">{{ alarm }}</p>
{% endfor %}{% for sentence in sentences %}<p class="{{ 'lead' if loop.first else '' }}">{{ sentence }}</p>
{% endfor %}
{% for caption, columns, rows in tables %}<h2>{{ caption }}</h2>
<div class="wide"><table><thead><tr>{% for c in columns %}<th scope="col">{{ c }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endfor %}
<h2>Notebooks</h2>
<ol start="0">{% for page, name in pages %}<li><a href="{{ page }}">{{ name }}</a></li>
{% endfor %}</ol>
<footer>{{ foot }}</footer>
</body></html>
"""


def write_page(executed, page):
    """Render an executed notebook as one HTML file that asks no other host for anything.

    Cells tagged ``live`` (widgets, which need a kernel) are left out.

    Raises
    ------
    ValueError
        If a remote script or style remains: the page would not be whole offline.
    """
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [c for c in notebook.cells if "live" not in c.metadata.get("tags", [])]
    notebook.metadata.pop("widgets", None)  # their state, megabytes of it with the program that would draw them
    exporter = HTMLExporter(
        template_name="lab", exclude_input_prompt=True, exclude_output_prompt=True, require_js_url="", mathjax_url=""
    )
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": Path(executed).stem}})
    html = REMOTE_SCRIPT.sub("", MATHJAX_CONFIG.sub("", html))
    if remote := remote_references(html):
        raise ValueError(f"{Path(executed).name} refers to {remote[0]}, so its page would not be whole offline.")
    write_text(page, html)


class _Remote(HTMLParser):
    """Collect what tags and styles would fetch from another host."""

    def __init__(self):
        super().__init__()
        self.found, self.in_style = [], False

    def handle_starttag(self, tag, attributes):
        self.in_style = tag == "style"
        if tag != "a":
            self.found += [v for k, v in attributes if k in ("src", "href", "poster", "data") and REMOTE.match(v or "")]

    def handle_endtag(self, tag):
        self.in_style = False

    def handle_data(self, text):
        if self.in_style:
            self.found += REMOTE_STYLE.findall(text)


def remote_references(html):
    """What a page would fetch from another host: scripts, styles and pictures, not links to follow."""
    parser = _Remote()
    parser.feed(html)
    return parser.found


def write_index(folder, *, title, note, sentences, tables, pages, foot, alarms=()):
    """Write ``index.html``: headline sentences, score tables and links to the pages.

    Parameters
    ----------
    folder : path
        The report's folder.
    title, note, foot : str
        Heading, what must be known of the data, and provenance. All text is escaped.
    sentences : list of str
        The first is the headline.
    alarms : list of str
        What makes every number doubtful, in red.
    tables : list of (str, DataFrame)
        Caption and table.
    pages : list of (str, str)
        File and name of each page.
    """
    template = Environment(autoescape=True).from_string(INDEX)
    made = [(caption, list(t.columns), t.map(_cell).to_numpy().tolist()) for caption, t in tables]
    sentences = [s.replace("**", "").replace("`", "") for s in sentences]
    html = template.render(
        title=title, note=note, sentences=sentences, tables=made, pages=pages, foot=foot, alarms=alarms
    )
    write_text(Path(folder) / "index.html", html)


def _cell(value):
    if isinstance(value, float):
        return "n/a" if pd.isna(value) else f"{value:.3g}"
    return "n/a" if pd.isna(value) else str(value)


def write_subject_index(params, pages):
    """Write a subject's index from what its notebooks left: scores, sentences, provenance."""
    folder = params.subject_path
    done = read_json(folder / "provenance.json", default={})
    summary = read_json(folder / "summary.json", default={})
    tables = []
    if (folder / "scores.tsv").is_file() and "region" in summary:
        table = pd.read_csv(folder / "scores.tsv", sep="\t")
        kept = [c for c in table.columns if c not in ("prediction", "region", "n_volumes", "n_voxels")]
        for prediction, words in (("one_step", "One-step: previous volumes measured"), ("open_loop", "Open-loop")):
            rows = table[(table["prediction"] == prediction) & (table["region"] == summary["region"])]
            if len(rows):
                size = f"{rows['n_volumes'].iloc[0]} test volumes, {rows['n_voxels'].iloc[0]} voxels"
                tables.append((f"{words} ({summary['region']}, {size})", rows[kept]))
    last = max((entry["finished"] for entry in done.values()), default="")
    commit = next((entry["git_commit"] for entry in done.values() if entry.get("git_commit")), None)
    write_index(
        folder / "report",
        title=f"sub-{params.subject} · {params.label}",
        note=summary.get("about", params.data_note or ""),
        alarms=summary.get("alarms", []),
        sentences=summary.get("sentences", ["Not all notebooks have run yet."]),
        tables=tables,
        pages=pages,
        foot=f"bold_audio, commit {commit or 'unknown'}, finished {last}; parameters, input MD5s and package versions "
        "are in provenance.json.",
    )
    return folder / "report" / "index.html"
