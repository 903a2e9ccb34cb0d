"""An executed notebook → the parts of its page: words, code, tables, figures as data, and why it failed."""

import json
import re
from dataclasses import dataclass

import mistune
from bs4 import BeautifulSoup, Comment
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from bold_audio.alt_text import describe_figure

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/jpeg", "image/gif")
LIVE = "live"  # tag of cells that need a kernel
INJECTED_ERROR = {"papermill-error-cell-tag"}
UNFORESEEN = "This error was not foreseen. Its traceback is at the cell that failed, below."
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TABLE_TAGS = {"table", "thead", "tbody", "tfoot", "tr", "th", "td", "caption"}
KEPT_TAGS = TABLE_TAGS | {"p", "div", "span", "b", "strong", "i", "em", "code", "pre", "br", "hr", "ul", "ol", "li"}
KEPT_TAGS |= {"sub", "sup", "dl", "dt", "dd", "a", "img", "h2", "h3", "h4", "h5", "h6", "small", "u"}
DROPPED_TAGS = ["script", "style", "iframe", "object", "embed", "link", "meta", "base", "svg", "math", "template"]
DROPPED_TAGS += ["noscript", "video", "audio", "form", "input", "button", "textarea", "select"]
KEPT_ATTRIBUTES = {"colspan", "rowspan", "href", "src", "alt"}
WIDE = '<div class="wide" role="region" tabindex="0" aria-label="{}">{}</div>'
_markdown = mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])


@dataclass(frozen=True)
class Failure:
    """Why a notebook stopped: what is wrong and what to do, and the number of the cell (1, 2, …; None if unknown)."""

    what: str
    fix: str
    name: str = ""
    cell: int | None = None

    @classmethod
    def of(cls, line, **more):
        """From one line ``what is wrong - what to do``."""
        what, _, fix = " ".join(line.split()).partition(" - ")
        return cls(what, fix or UNFORESEEN, **more)


def read_failure(notebook):
    """The `Failure` of an executed notebook; None where every cell ran."""
    for number, cell in enumerate(_told(notebook), 1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                said = output.get("evalue") or output["ename"]
                return Failure.of(said, name=output["ename"], cell=number)
    return None


def read_title(notebook, default):
    """The first heading of a notebook, as plain text."""
    for cell in _told(notebook):
        if cell.cell_type == "markdown" and (found := re.search(r"^# +(.+)$", cell.source, re.MULTILINE)):
            return found[1].strip()
    return default


def notebook_parts(notebook):
    """What a page shows, in order.

    Returns
    -------
    list of dict
        ``kind`` is ``words`` or ``table`` (``html``), ``code`` (``html``), ``figure`` (``id``, ``alt``, ``data``),
        ``picture`` (``src``, ``alt``), ``text`` (``text``, ``label``), ``error`` (``text``) or ``live``; each has the
        number of its ``cell``. HTML is safe: nothing in it runs, and nothing in it is fetched.
    """
    parts = []
    for number, cell in enumerate(_told(notebook), 1):
        made = []
        if cell.cell_type == "markdown":
            made.append({"kind": "words", "html": markdown_html(cell.source)})
        elif cell.cell_type == "code":
            made.append({"kind": "code", "html": _code_html(cell.source)})
            if LIVE in cell.metadata.get("tags", []):
                made.append({"kind": "live"})
            else:
                made += [part for output in cell.get("outputs", []) if (part := _output_part(output))]
        parts += [{"cell": number, **part} for part in made]
    for number, part in enumerate((part for part in parts if part["kind"] == "figure"), 1):
        part["id"] = f"figure-{number}"
    return parts


def _told(notebook):
    return [cell for cell in notebook.cells if not INJECTED_ERROR & set(cell.metadata.get("tags", []))]


def _output_part(output):
    """One result of a cell as a part of the page; None where there is nothing to show."""
    if output["output_type"] == "stream":
        text, label = _joined(output["text"]), "message" if output["name"] == "stderr" else "printed"
        return {"kind": "text", "text": ANSI.sub("", text).rstrip(), "label": label} if text.strip() else None
    if output["output_type"] == "error":
        return {"kind": "error", "text": ANSI.sub("", "\n".join(output.get("traceback", [])))}
    return _rich_part({kind: _joined(content) for kind, content in output.get("data", {}).items()})


def _joined(content):
    return "".join(content) if isinstance(content, list) else content


def _rich_part(data):
    """A result that comes in several forms: the form that a page shows best."""
    if PLOTLY in data:
        return {"kind": "figure", "alt": describe_figure(data[PLOTLY]), "data": script_json(data[PLOTLY])}
    if WIDGET in data:
        return {"kind": "live"}
    if "text/markdown" in data:
        return {"kind": "words", "html": markdown_html(data["text/markdown"])}
    for kind in PICTURES:
        if kind in data:
            source = f"data:{kind};base64,{''.join(data[kind].split())}"
            return {"kind": "picture", "src": source, "alt": data.get("text/plain", "picture")}
    if "text/html" in data:
        made = clean_html(data["text/html"])
        if made.strip():
            return {"kind": "table" if "<table" in made else "words", "html": made}
        return None
    text = data.get("text/plain", "").strip()
    return {"kind": "text", "text": text, "label": "result"} if text else None


def script_json(content):
    """JSON that may stand inside ``<script type="application/json">``: no ``<`` ends it."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def markdown_html(text):
    """Markdown as HTML; markup in it is shown as text, wide tables can be reached and scrolled by keyboard.

    Examples
    --------
    >>> print(markdown_html("**Δt** of <b>x</b>"))
    <p><strong>Δt</strong> of &lt;b&gt;x&lt;/b&gt;</p>
    <BLANKLINE>
    """
    made = _markdown(text).replace("<th>", '<th scope="col">')
    made = re.sub(r"<table>.*?</table>", lambda found: WIDE.format("Table", found[0]), made, flags=re.DOTALL)
    return clean_html(made) if "<img" in made else Markup(made)


def _code_html(source):
    formatter = HtmlFormatter(nowrap=True)
    return Markup(highlight(source, PythonLexer(), formatter).rstrip())


def clean_html(html):
    """HTML of a result without anything that runs or is fetched; tables get what readers of tables need.

    Pictures stay where they are data in the page itself; in the place of others stands that they were left out.
    """
    soup = BeautifulSoup(html, "html.parser")
    for found in soup.find_all(string=lambda text: isinstance(text, Comment)):
        found.extract()
    for tag in soup.find_all(DROPPED_TAGS):
        tag.decompose()
    for tag in soup.find_all(True):
        if tag.name not in KEPT_TAGS:
            tag.unwrap()
        elif tag.name == "img" and not re.match(r"data:image/(png|jpeg|gif);", tag.get("src", "")):
            tag.replace_with(f"[picture left out: {tag.get('src', '')[:100]}]")
        else:
            _clean_attributes(tag)
    for table in soup.find_all("table"):
        _dress_table(soup, table)
    return Markup(str(soup))


def _clean_attributes(tag):
    for name in set(tag.attrs) - KEPT_ATTRIBUTES:
        if not (name == "class" and tag.name in ("div", "table")):
            del tag[name]
    if "class" in tag.attrs and tag["class"] not in (["wide"], "wide"):
        del tag["class"]
    if "href" in tag.attrs and not re.match(r"(https?:|mailto:|#|[\w.][\w./-]*$)", tag["href"]):
        del tag["href"]


def _dress_table(soup, table):
    """Say which cells are headings, and let a table that is too wide be scrolled by keyboard."""
    for cell in table.find_all("th"):
        if cell.find_parent("thead") and not cell.get_text().strip():
            cell.name = "td"  # the corner of a table names nothing
        else:
            cell["scope"] = "col" if cell.find_parent("thead") else "row"
    if not (table.parent is not None and table.parent.get("class") == ["wide"]):
        columns = [cell.get_text().strip() for cell in (table.find("tr") or soup).find_all(["th"])]
        said = f"Table: {', '.join(filter(None, columns))}"[:200]
        table.wrap(soup.new_tag("div", attrs={"class": "wide", "role": "region", "tabindex": "0", "aria-label": said}))
