"""Figures that ask no other host for anything: in a notebook's output, and as a page of its own."""

import html
import os
import sys

import plotly.io as pio
from plotly.io.base_renderers import PlotlyRenderer
from plotly.offline import get_plotlyjs

from bold_audio.alt_text import describe_figure

CONFIG = {"displaylogo": False, "responsive": True}


class _FigureAsData(PlotlyRenderer):
    """Plotly's own kind of output, which JupyterLab draws with the plotly.js of plotly's extension; and its words."""

    def to_mimebundle(self, fig_dict):
        """Write the figure once, as data, and what it shows as text for whoever cannot draw it."""
        said = describe_figure(fig_dict)
        return super().to_mimebundle(fig_dict) | {"text/plain": said}


def use_notebook_renderer():
    """Show figures in JupyterLab, without network, and leave them in the notebook as data for the report's pages.

    Call it once per notebook. No output holds plotly.js: JupyterLab has it from plotly's own extension, and a report
    keeps it once per folder.
    """
    pio.renderers["bold_audio"] = _FigureAsData(config=CONFIG)
    pio.renderers.default = "bold_audio"


def offline_page(figures, *, title):
    """Figures as one HTML page that holds plotly.js and asks no other host for anything."""
    options = dict(include_plotlyjs=False, include_mathjax=False, full_html=False, auto_play=False, validate=False)
    parts = [pio.to_html(figure.to_dict(), config=CONFIG, default_width="100%", **options) for figure in figures]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><script>{get_plotlyjs()}</script>'
    return f"<!DOCTYPE html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def somebody_watches():
    """Whether progress bars would be seen: a terminal, or a notebook that a Jupyter server opened."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
