"""What a model reaches beside what people have in common → a plotly figure, in the look of `style`."""

import numpy as np

from bold_audio import style
from bold_audio.style import PALETTE


def plot_ceiling(table, *, note=None):
    """Draw the r of ``sound`` beside the inter-subject ceiling, region by region.

    Parameters
    ----------
    table : DataFrame
        From `ceiling.share_of_ceiling` or `ceiling.intersubject_ceiling`: ``region``, ``ceiling``, ``n_people``, and
        optionally ``r``, ``low`` and ``high`` (of people, drawn as whiskers), ``own`` (of this person) and ``chance``.
    note : str, optional
        What must be said of the scans, such as SIMULATED.
    """
    if table.empty:
        raise ValueError("a ceiling needs at least one region.")
    regions, people = list(table["region"]), int(table["n_people"].max())
    title = "sound beside the inter-subject ceiling" if "r" in table else "Inter-subject ceiling"
    x, height = "Pearson r with the region's mean time course (no unit)", 170 + 44 * max(len(regions), 3)
    fig = style.figure(
        f"{title} ({people} people)", x=x, y="Region (name)", height=height, note=note, top=60 + 25 * bool(note)
    )
    hover = "%{y}: r = %{x:.3f}<extra></extra>"
    whiskers = {}
    if {"low", "high"} <= set(table):
        spread = dict(array=table["high"] - table["ceiling"], arrayminus=table["ceiling"] - table["low"])
        whiskers = dict(error_x=dict(type="data", symmetric=False, thickness=1, width=4, color="#666666", **spread))
    bars = [("ceiling (whiskers: lowest and highest person)" if whiskers else "ceiling", "ceiling", "#BFBFBF")]
    bars = [("sound", "r", style.colour("sound", 0)), *bars] if "r" in table else bars
    for name, column, colour in bars:
        more = whiskers if column == "ceiling" else {}
        look = dict(orientation="h", marker_color=colour, marker_line_width=0, hovertemplate=hover)
        fig.add_bar(x=table[column], y=regions, name=name, **look, **more)
    if "own" in table:
        marks = dict(symbol="diamond", size=9, color="#222222")
        fig.add_scatter(
            x=table["own"], y=regions, mode="markers", marker=marks, hovertemplate=hover, name="this person"
        )
    if "chance" in table:
        marks = dict(symbol="line-ns", size=15, line=dict(width=2, color=PALETTE[0]))
        fig.add_scatter(
            x=table["chance"], y=regions, mode="markers", marker=marks, hovertemplate=hover,
            name="95 % of people shifted in time stay below",
        )  # fmt: skip
    for column in [name for name in ("r", "ceiling") if name in table]:
        above = (8 if column == "r" else -8) if "r" in table else 0
        for region in np.array(regions)[table[column].isna()]:
            fig.add_annotation(
                x=0, y=region, text=f"no {column}", yshift=above, showarrow=False, xanchor="left", font_size=12
            )
    fig.add_vline(x=0, line_width=1, line_color="#222222")
    order = dict(type="category", categoryorder="array", categoryarray=regions, autorange="reversed")
    legend = dict(orientation="h", y=-0.22, yanchor="top", x=0, traceorder="normal")
    return fig.update_yaxes(**order).update_layout(barmode="group", bargap=0.3, legend=legend, margin_b=110)
