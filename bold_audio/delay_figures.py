"""Curves over the delay → plotly figures, in the look of `style`; no files, no widgets."""

import numpy as np

from bold_audio import style
from bold_audio.style import PALETTE


def plot_delay_curve(table, *, chosen=None, interval=None, truth=None, block_period=None):
    """Draw the cross-validated skill against Δt, one line per region.

    Parameters
    ----------
    table : DataFrame
        ``delay`` (s), ``region``, ``skill`` over the train mean, and optionally ``fold_spread`` (standard error).
    chosen, truth : float and dict of str to float, optional
        The chosen delay and, for simulated data, the planted ones (s).
    interval : (float, float), optional
        95 % interval of the chosen delay (s), shaded.
    block_period : float, optional
        Period of the film's blocks (s); the figure then says which delays cannot be told apart.
    """
    title, y = "How well the sound predicts held-out volumes, by delay", "Skill over the train mean (fraction of error)"
    fig = _delay_axes(title, y, block_period)
    for k, (region, rows) in enumerate(table.sort_values("delay", kind="stable").groupby("region", sort=False)):
        x, y, colour = rows["delay"].to_numpy(), rows["skill"].to_numpy(), style.colour(region, k)
        if "fold_spread" in rows:
            edge = np.append(y + rows["fold_spread"], (y - rows["fold_spread"])[::-1])
            band = dict(fill="toself", fillcolor=colour, opacity=0.2, line_width=0, hoverinfo="skip", showlegend=False)
            fig.add_scatter(x=np.append(x, x[::-1]), y=edge, mode="lines", **band)
        mode = "lines+markers" if len(x) <= 15 else "lines"
        style.line(fig, x, y, region, "skill %{y:.4f} at %{x:.2f} s", mode=mode, color=colour)
    return _mark_delays(fig, chosen, interval, truth)


def plot_delay_evidence(table, row, *, truth=None, block_period=None):
    """Draw a region's evidence for each Δt beside what surrogates of the sound reach.

    Parameters
    ----------
    table : DataFrame
        ``delay`` (s) and ``evidence`` (log ratio against no sound) of one region.
    row : Series
        That region's ``delay``, ``low``, ``high`` (s), ``threshold``, ``n_surrogates`` and ``identifiable``.
    truth, block_period
        As for `plot_delay_curve`.
    """
    title = "How much the volumes support each delay" + ("" if row["identifiable"] else ": NOT IDENTIFIABLE")
    fig = _delay_axes(title, "Log evidence against no sound (nats)", block_period)
    style.line(fig, table["delay"], table["evidence"], "evidence", "%{y:.1f} at %{x:.2f} s", color=PALETTE[0])
    if np.isfinite(row["threshold"]):
        bottom = min(table["evidence"].min(), row["threshold"])
        fig.add_hrect(
            y0=bottom - 0.05 * abs(bottom), y1=row["threshold"], fillcolor="#999999", opacity=0.25, line_width=0
        )
        text = f"the best of any delay stays below this line in 95 % of {row['n_surrogates']:.0f} surrogates"
        place = dict(xref="paper", x=0.99, xanchor="right", yanchor="top", showarrow=False, font_size=12)
        fig.add_annotation(y=row["threshold"], text=text, **place)
    return _mark_delays(fig, row["delay"], (row["low"], row["high"]), truth)


def plot_delay_intervals(regions, *, truth=None):
    """Draw every region's best delay with its 95 % interval; grey where it is not identifiable.

    Parameters
    ----------
    regions : DataFrame
        ``region``, ``delay``, ``low``, ``high`` (s), ``p``, ``identifiable``.
    truth : dict of str to float, optional
        Planted delays of simulated regions (s).
    """
    fig = _delay_axes("Each region's own delay, with its 95 % interval", "Region (name)", None)
    for sure, name, colour in ((True, "identifiable", PALETTE[0]), (False, "not identifiable", "#aaaaaa")):
        rows = regions[regions["identifiable"].astype(bool) == sure]
        ends = dict(array=rows["high"] - rows["delay"], arrayminus=rows["delay"] - rows["low"], thickness=2)
        hover = "%{y}: %{x:.2f} s, %{customdata[0]:.2f} to %{customdata[1]:.2f} s, p = %{customdata[2]:.3g}"
        look = dict(
            mode="markers", marker=dict(color=colour, size=9), error_x=ends | {"type": "data", "symmetric": False}
        )
        fig.add_scatter(
            x=rows["delay"],
            y=rows["region"],
            name=name,
            customdata=rows[["low", "high", "p"]],
            hovertemplate=hover,
            **look,
        )
    if truth:
        there = {name: at for name, at in truth.items() if name in set(regions["region"])}
        marks = dict(mode="markers", marker=dict(symbol="line-ns-open", size=18, color="#222222", line_width=2))
        fig.add_scatter(x=list(there.values()), y=list(there), name="planted", hovertemplate="%{x:.2f} s", **marks)
    fig.update_yaxes(categoryorder="array", categoryarray=list(regions["region"])[::-1], automargin=True)
    return fig.update_layout(height=170 + 34 * len(regions))


def plot_settings(table):
    """Draw the best skill over the delays against the number of features, one line per number of further windows.

    Parameters
    ----------
    table : DataFrame
        ``n_features``, ``n_lags``, ``blocks``, ``skill``.
    """
    title = "Best skill over all delays, by what the sound is described with"
    x, y = "Features, the first of one extraction (number)", "Skill over the train mean (fraction of error)"
    fig = style.figure(title, x=x, y=y)
    best = table.groupby(["blocks", "n_lags", "n_features"])["skill"].max()
    for k, n_lags in enumerate(sorted(table["n_lags"].unique())):
        for blocks in sorted(table["blocks"].unique()):
            name = f"{n_lags} further windows" + (" and blocks" if blocks else "")
            rows = best.loc[blocks, n_lags]
            rows = rows[rows.index > 0]
            look = dict(color=PALETTE[k % len(PALETTE)], dash="dot" if blocks else "solid")
            style.line(fig, rows.index, rows, name, "skill %{y:.4f} with %{x} features", **look)
    alone = table[table["n_features"] == 0]
    if len(alone):
        fig.add_hline(y=alone["skill"].max(), line=dict(color="#222222", dash="dash"), annotation_text="blocks alone")
    return fig


def curve_player(curves, delays, *, prefix, title):
    """Scrub through delay curves, one per setting, in a page that needs no kernel.

    Parameters
    ----------
    curves : dict of str to dict of str to array of shape (n_delays,)
        Setting → region → skill.
    delays : array of shape (n_delays,)
        In seconds.
    prefix : str
        What the setting is, before its value on the slider.
    """
    fig = _delay_axes(title, "Skill over the train mean (fraction of error)", None)
    settings = list(curves)
    for k, region in enumerate(curves[settings[-1]]):
        style.line(
            fig,
            delays,
            curves[settings[-1]][region],
            region,
            "skill %{y:.4f} at %{x:.2f} s",
            color=style.colour(region, k),
        )
    values = np.concatenate([curve for one in curves.values() for curve in one.values()])
    room = 0.05 * (values.max() - values.min() or 1)
    fig.update_yaxes(range=[values.min() - room, values.max() + room])
    steps = [
        dict(label=setting, method="restyle", args=[{"y": [list(map(float, curve)) for curve in one.values()]}])
        for setting, one in curves.items()
    ]
    slider = dict(steps=steps, active=len(steps) - 1, currentvalue_prefix=prefix, pad_t=50)
    return fig.update_layout(sliders=[slider], height=500, margin_b=130)


def delay_chooser(tables):
    """Choose features, further windows and blocks, and see the whole Δt curve, in a page that needs no kernel.

    On a report's page every setting has a control of its own. Elsewhere plotly's slider moves the number of features,
    with one window and without the blocks.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Region → `feature_grid.FeatureGrid.settings`: each setting at each delay, at its best ridge strength.

    Returns
    -------
    plotly.graph_objects.Figure
        ``layout.meta`` holds ``knobs`` (name, values, active) and ``curves``: a list over all combinations, the last
        knob fastest, of a list over regions of skills.
    """
    heard = {region: table[table["n_features"] > 0] for region, table in tables.items()}
    first = next(iter(heard.values()))
    levels = {name: sorted(first[name].unique()) for name in ("n_features", "n_lags", "blocks")}
    knobs = [
        dict(name="Features", values=[f"{n:.0f}" for n in levels["n_features"]], active=len(levels["n_features"]) - 1),
        dict(name="Further windows", values=[f"{n:.0f}" for n in levels["n_lags"]], active=0),
        dict(name="Blocks", values=["with" if with_them else "without" for with_them in levels["blocks"]], active=0),
    ]
    by = [*levels, "delay"]
    arrays = [
        table.sort_values(by)["skill"].to_numpy().reshape(*map(len, levels.values()), -1) for table in heard.values()
    ]
    curves = np.round(np.stack(arrays, axis=-2), 5)  # features, windows, blocks, regions, delays
    shown = {n: dict(zip(tables, curves[k, 0, 0], strict=True)) for k, n in enumerate(knobs[0]["values"])}
    delays = np.sort(first["delay"].unique())
    title = "Skill by delay, for each way to describe the sound"
    fig = curve_player(shown, delays, prefix="Features: ", title=title)
    room = 0.05 * (curves.max() - curves.min() or 1)
    fig.update_yaxes(range=[curves.min() - room, curves.max() + room])
    return fig.update_layout(meta=dict(knobs=knobs, curves=curves.reshape(-1, *curves.shape[3:]).tolist()))


def _delay_axes(title, y, block_period):
    note = block_period and f"blocks repeat every {block_period:g} s, so Δt and Δt ± {block_period:g} s look alike"
    return style.figure(title, x="Δt, from sound to scan (s)", y=y, top=90 if note else 60, note=note)


def _mark_delays(fig, chosen, interval, truth):
    """Shade an interval of delays, and mark the chosen and the planted ones."""
    if interval is not None and np.isfinite(interval[0]):
        fig.add_vrect(x0=interval[0], x1=interval[1], fillcolor=PALETTE[0], opacity=0.12, line_width=0, layer="below")
    marks = [(f"planted, {name}: {at:g} s", at, "dash") for name, at in (truth or {}).items()]
    span = "" if interval is None or not np.isfinite(interval[0]) else f" ({interval[0]:g} to {interval[1]:g} s)"
    marks += [] if chosen is None else [(f"chosen: {chosen:g} s{span}", chosen, "solid")]
    for k, (text, at, dash) in enumerate(marks):
        fig.add_vline(x=at, line=dict(color="#222222", width=1.5, dash=dash))
        place = dict(yref="paper", y=1 - 0.08 * k, xanchor="left", showarrow=False, bgcolor="rgba(255,255,255,0.8)")
        fig.add_annotation(x=at, text=text, xshift=3, **place)
    return fig
