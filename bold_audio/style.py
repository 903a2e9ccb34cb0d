"""The one look of all figures: colours, axes, the frame, and what lies under and over a time axis.

``spans`` maps ``train``, ``gap``, ``test`` to start and end (s); ``blocks`` is a table with ``onset``, ``duration`` (s)
and ``trial_type``.
"""

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

# fmt: off
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#B5A400")  # after Okabe & Ito
MODEL_COLOURS = {
    "constant": "#A6A6A6", "copy_previous": "#666666", "linear": "#E69F00", "linear_delay": "#A65E00",
    "blocks": "#56B4E9", "sound": "#D55E00", "history": "#0072B2", "history_sound": "#009E73",
    "history_blocks": "#CC79A7", "history_blocks_sound": "#882255", "mlp": "#B5A400", "measured": "#000000",
}
OTHER_COLOURS = {
    "brain": "#666666", "volume": "#666666", "silent": "#666666", "responsive": "#D55E00", "auditory": "#0072B2",
    "speech": "#E69F00", "music": "#56B4E9", "train": "#9CC8E8", "gap": "#A6A6A6", "test": "#F2BE85",
}
# fmt: on
GREYS, DIVERGING, OVERLAY = [[0, "#000000"], [1, "#FFFFFF"]], "RdBu_r", "Viridis"
AXIS = dict(gridcolor="#E6E6E6", linecolor="#888888", showline=True, ticks="outside", zeroline=False) | dict(
    automargin=True,
    title_standoff=8,  # without the second, the first lays the title over long tick labels
)
pio.templates["bold_audio"] = go.layout.Template(
    layout=dict(font=dict(family="Arial, Helvetica, sans-serif", size=13, color="#222222"), colorway=PALETTE)
    | dict(title=dict(x=0, xref="paper", xanchor="left", font_size=16, subtitle_font_size=13), xaxis=AXIS, yaxis=AXIS)
    | dict(paper_bgcolor="white", plot_bgcolor="white", hovermode="closest")
)


def figure(title, *, x=None, y=None, fig=None, height=400, top=60, bottom=55, note=None):
    """Give a figure the look of the project, and names to its axes where these are given."""
    fig = fig or go.Figure().update_xaxes(title_text=x).update_yaxes(title_text=y)
    title, margin = dict(text=title, subtitle_text=note), dict(l=75, r=20, t=top, b=bottom)
    return fig.update_layout(template="bold_audio", title=title, height=height, margin=margin)


def line(fig, x, y, name, hover, *, mode="lines", **look):
    """Add a line, or markers by ``mode``, with what is shown under the pointer."""
    fig.add_scatter(x=x, y=y, name=name, mode=mode, line=look, hovertemplate=hover)


def limits(values, *, symmetric=False, limit=None):
    """Colour range: as told, or what holds 99 % of the finite values."""
    if np.iterable(limit):
        return tuple(limit)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 1.0])
    if symmetric:
        top = limit or np.percentile(np.abs(values), 99) or 1.0
        return -top, top
    low, high = np.percentile(values, (0.5, 99.5))
    return low, limit or (high if high > low else low + 1)


def colour(name, k):
    """Colour of a model, region or part by its name; the k-th of the palette for other names."""
    return (MODEL_COLOURS | OTHER_COLOURS).get(name, PALETTE[k % len(PALETTE)])


def colour_scale(scale, limits, text, **place):
    """A colour axis with its bar, titled ``text``: dict for plotly."""
    bar = dict(title=dict(text=text, side="right"), thickness=12, outlinewidth=0, tickfont_size=12, **place)
    return dict(colorscale=scale, cmin=limits[0], cmax=limits[1], colorbar=bar)


def draw_spans(fig, spans):
    """Shade train, gap and test under the plot."""
    for name, (start, end) in (spans or {}).items():
        look = dict(fillcolor=colour(name, 0), opacity=0.3, line_width=0, layer="below")
        fig.add_vrect(x0=start, x1=end, annotation_text=name, annotation_position="top left", **look)
    return fig


def draw_blocks(fig, blocks, times):
    """Put the film's blocks in a strip above the plot."""
    start, end = np.floor(np.min(times)), np.ceil(np.max(times))
    for block in [] if blocks is None else blocks.itertuples():
        x0, x1, kind = max(block.onset, start), min(block.onset + block.duration, end), block.trial_type
        if x1 > x0:
            strip = dict(y0=1.01, y1=1.08, yref="paper", line_width=0, fillcolor=colour(kind, 0), opacity=0.8)
            fig.add_shape(type="rect", x0=x0, x1=x1, **strip)
        if x1 - x0 > 0.05 * (end - start):
            place = dict(y=1.045, yref="paper", yanchor="middle", showarrow=False)
            fig.add_annotation(x=(x0 + x1) / 2, text=kind, **place)
    return fig.update_xaxes(range=[start, end])
