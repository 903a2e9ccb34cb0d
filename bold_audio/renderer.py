"""Figures as HTML that asks no other host for anything: in a notebook's output, and as a page of its own."""

import html

import plotly.io as pio
from plotly.io.base_renderers import HtmlRenderer
from plotly.offline import get_plotlyjs


class _OfflinePage(HtmlRenderer):
    """Plotly's ``notebook`` renderer without the link to MathJax that it writes into every figure."""

    def to_mimebundle(self, fig_dict):
        """Write the figure as HTML for a page that already holds plotly.js."""
        options = dict(include_plotlyjs=False, include_mathjax=False, full_html=False, auto_play=False, validate=False)
        return {"text/html": pio.to_html(fig_dict, config=self.config, default_width="100%", **options)}


def use_notebook_renderer():
    """Show figures in JupyterLab and in nbconvert's HTML, both without network.

    Call it once per notebook, in a cell whose output stays in the report: that output holds plotly.js (4.8 MB).
    """
    from IPython import get_ipython
    from IPython.display import display_html

    pio.renderers["bold_audio"] = _OfflinePage(config={"displaylogo": False, "responsive": True})
    pio.renderers.default = "plotly_mimetype+bold_audio"
    if get_ipython() is not None:
        display_html(f"<script>{get_plotlyjs()}</script>", raw=True)


def offline_page(figures, *, title):
    """Figures as one HTML page that asks no other host for anything."""
    parts = [_OfflinePage().to_mimebundle(figure.to_dict())["text/html"] for figure in figures]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><script>{get_plotlyjs()}</script>'
    return f"<!DOCTYPE html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"
