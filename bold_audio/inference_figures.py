"""Arrays of the inference → figures: the map with its threshold, and the gain of regions among their surrogates."""

import numpy as np
import plotly.graph_objects as go

from bold_audio import brain_figures, style
from bold_audio.significance import LEVEL


def plot_map(z, sure, *, affine, mean_image, title, note=None, names=None):
    """The unthresholded map over the mean volume, with the edge of what is significant.

    Parameters
    ----------
    z : array of shape (i, j, k)
        NaN outside the mask.
    sure : bool array of shape (i, j, k)
    affine : array of shape (4, 4), or None
    mean_image : array of shape (i, j, k)
    """
    look = {"affine": affine, "names": names, "unit": "evidence, scaled (no unit)", "title": title, "note": note}
    return brain_figures.plot_slices(z, background=mean_image, outline=sure, symmetric=True, **look)


def plot_gains(table, *, model, title):
    """Gain of each region, with p, beside the middle 95 % of what its surrogates reach.

    Parameters
    ----------
    table : DataFrame
        From `inferred.ensure_regions`, with ``null_low`` and ``null_high``.
    model : str
        Rows to draw.
    """
    rows = table[table["model"] == model]
    fig = style.figure(title, x="gain (share of squared error)", y="Region (name)", height=170 + 34 * len(rows))
    for row in rows.itertuples():
        span = dict(x=[row.null_low, row.null_high], y=[row.region] * 2, mode="lines", showlegend=False)
        hover = f"95 % of surrogates: {row.null_low:.4f} to {row.null_high:.4f}<extra></extra>"
        fig.add_trace(go.Scatter(**span, line=dict(color="#BBBBBB", width=12), hovertemplate=hover))
    passed = (rows["p"] <= LEVEL).to_numpy()
    for where, name, colour in ((passed, f"p ≤ {LEVEL:g}", style.PALETTE[1]), (~passed, f"p > {LEVEL:g}", "#666666")):
        if where.any():
            part = rows[where]
            text = [f" p = {p:.2g}" for p in part["p"]]
            look = dict(mode="markers+text", marker=dict(color=colour, size=11), name=name, textposition="middle right")
            fig.add_scatter(x=part["gain"], y=part["region"], text=text, hovertemplate="%{y}: %{x:.4f}", **look)
    everything = rows[["gain", "null_low", "null_high"]].to_numpy(float)
    low, high = np.nanmin(everything, initial=0), np.nanmax(everything, initial=1e-6)
    room = 0.08 * (high - low)
    fig.update_xaxes(range=[low - room, high + 4 * room], zeroline=True, zerolinecolor="#888888")
    return fig.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=list(rows["region"]))
