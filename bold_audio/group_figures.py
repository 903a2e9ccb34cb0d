"""What holds over people → plotly figures, in the look of `style`."""

import numpy as np

from bold_audio import style
from bold_audio.significance import LEVEL


def plot_regions(table, people, value, *, title, unit, note=None):
    """Draw each region's mean over people with its 95 % interval, and every person as a dot.

    Parameters
    ----------
    table : DataFrame
        From `group_stats.region_table` or, without p, `group_stats.delay_table`.
    people : DataFrame
        ``region`` and the column ``value``: one row per person and region.
    value : str
    title, unit : str
    note : str, optional
        What must be said of the scans, such as SIMULATED.
    """
    mean = "mean" if "mean" in table else value
    height = 170 + 34 * len(table)
    fig = style.figure(title, x=unit, y="Region (name)", height=height, note=note, top=60 + 25 * bool(note))
    dots = people[people["region"].isin(table["region"]) & people[value].notna()]
    look = dict(mode="markers", marker=dict(color="#BBBBBB", size=5, opacity=0.6), name="a person")
    fig.add_scatter(x=dots[value], y=dots["region"], hovertemplate="%{y}: %{x:.4f}<extra></extra>", **look)
    sure = table["p_fwe"].to_numpy(float) <= LEVEL if "p_fwe" in table else np.zeros(len(table), bool)
    names = (f"family-wise p ≤ {LEVEL:g}", "mean and 95 % interval")
    for where, name, colour in ((sure, names[0], style.PALETTE[1]), (~sure, names[1], "#444444")):
        rows = table[where]
        if len(rows):
            spread = dict(array=rows["high"] - rows[mean], arrayminus=rows[mean] - rows["low"])
            whiskers = dict(type="data", symmetric=False, thickness=1.5, width=5, **spread)
            marks = dict(mode="markers", marker=dict(color=colour, size=10), error_x=whiskers)
            fig.add_scatter(x=rows[mean], y=rows["region"], name=name, hovertemplate="%{y}: %{x:.4f}", **marks)
    if "p_fwe" in table:  # of a delay 0 means nothing
        fig.add_vline(x=0, line_width=1, line_color="#888888")
    order = dict(type="category", categoryorder="array", categoryarray=list(table["region"]), autorange="reversed")
    return fig.update_yaxes(**order)
