"""Arrays → plotly figures, in one look; no files, no widgets.

In every function ``unit`` is what an axis or colour shows, with its unit (``"r (no unit)"``). A brain map is a grid
(i, j, k), or one value per voxel together with ``mask``; without ``affine`` (mm) axes are in voxels and no side is
named; a grid with fewer than two axes longer than 1 becomes bars, one per region in ``names``. ``blocks`` is a table
with ``onset``, ``duration`` (s) and ``trial_type``; ``spans`` maps ``train``, ``gap``, ``test`` to start and end (s).
"""

import html

import nibabel as nib
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import HtmlRenderer
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

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
METRICS = {  # column of the score table: what it is (unit), which way is better
    "mse": "Mean squared error (squared scaled BOLD), lower", "r_median": "Median r over voxels (no unit), higher",
    "r_best": "Best voxel's r (no unit), higher", "r2": "Median r² over voxels (no unit), higher",
    "skill": "Skill (fraction of the reference's error removed), higher",
    "partial_r_median": "Median partial r of the sound, given the past (no unit), higher",
}
# fmt: on
VIEWS = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}  # axis cut, axis to the right, axis up
PANELS = {"original": (0, 0.26), "predicted": (0.29, 0.55), "predicted − original": (0.7, 0.96)}  # share of the width
GREYS, DIVERGING, OVERLAY = [[0, "#000000"], [1, "#FFFFFF"]], "RdBu_r", "Viridis"
MSE = "MSE (squared scaled BOLD)"
AXIS = dict(gridcolor="#E6E6E6", linecolor="#888888", showline=True, ticks="outside", zeroline=False) | dict(
    automargin=True,
    title_standoff=8,  # without the second, the first lays the title over long tick labels
)
pio.templates["bold_audio"] = go.layout.Template(
    layout=dict(font=dict(family="Arial, Helvetica, sans-serif", size=13, color="#222222"), colorway=PALETTE)
    | dict(title=dict(x=0, xref="paper", xanchor="left", font_size=16, subtitle_font_size=13), xaxis=AXIS, yaxis=AXIS)
    | dict(paper_bgcolor="white", plot_bgcolor="white", hovermode="closest")
)


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


def plot_sound(frames, frame_times, names, *, blocks=None, max_seconds=None, title="Sound features over time"):
    """Draw sound features as a heat map, each z-scored over the whole sound.

    Parameters
    ----------
    frames, frame_times : arrays of shape (n_frames, n_features) and (n_frames,)
        Features and frame centres (s); averaged to at most 1,500 columns.
    names : sequence of str
        One per feature.
    max_seconds : float, optional
        Draw the start only.
    """
    keep = np.asarray(frame_times) < (np.inf if max_seconds is None else max_seconds)
    starts = np.arange(0, keep.sum(), -(-keep.sum() // 1500))
    columns = np.column_stack([np.asarray(frame_times, float), _zscore(frames)])[keep]
    columns = np.add.reduceat(columns, starts) / np.diff(np.append(starts, len(columns)))[:, None]
    times, z = columns[:, 0], columns[:, 1:].T.astype(np.float32)
    fig = _figure(title, x="Time in the sound (s)", y="Sound feature (name)", top=60 if blocks is None else 90)
    hover = "%{y} at %{x:.1f} s: %{z:.2f} SD<extra></extra>"
    fig.add_heatmap(z=z, x=times, y=[str(n) for n in names], hovertemplate=hover, coloraxis="coloraxis")
    fig.update_layout(coloraxis=_colours(DIVERGING, _limits(z, symmetric=True), "z-score (SD)"))
    return _draw_blocks(fig.update_yaxes(type="category", showgrid=False), blocks, times)


def plot_blocks_and_voxel(volume_times, sound_feature, voxel, *, delay, name="sound", blocks=None, spans=None):
    """Draw the sound, as each volume sees it, and one voxel on one time axis, both z-scored.

    Parameters
    ----------
    volume_times, sound_feature, voxel : arrays of shape (n_volumes,)
        Start of each volume (s), the feature at ``delay``, and the voxel; NaN leaves a gap.
    delay : float
        In s. The blocks stand where they were played, the feature this much later.
    """
    title, x = f"The sound, {delay:g} s later, and one voxel", "Time since the run began (s)"
    fig = _figure(title, x=x, y="Size (z-score, SD)", top=60 if blocks is None else 90)
    for label, values, colour in ((name, sound_feature, "#D55E00"), ("voxel", voxel, "#000000")):
        _line(fig, volume_times, _zscore(values), label, "%{y:.2f} SD at %{x:.1f} s", color=colour)
    return _draw_blocks(_draw_spans(fig, spans), blocks, volume_times)


def plot_time_course(times, series, *, title, unit, x="Time since the run began (s)", spans=None):
    """Draw series by name over time (or over what ``x`` says); ``measured`` is black, models keep their colours."""
    fig = _figure(title, x=x, y=unit)
    for k, (name, values) in enumerate(series.items()):
        _line(fig, times, values, name, "%{y:.3g} at %{x:.4g}", color=_colour(name, k), width=3 - (name != "measured"))
    return _draw_spans(fig, spans)


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
    title, y = "How well the sound predicts held-out scans, by delay", "Skill over the train mean (fraction of error)"
    fig = _delay_axes(title, y, block_period)
    for k, (region, rows) in enumerate(table.sort_values("delay", kind="stable").groupby("region", sort=False)):
        x, y, colour = rows["delay"].to_numpy(), rows["skill"].to_numpy(), _colour(region, k)
        if "fold_spread" in rows:
            edge = np.append(y + rows["fold_spread"], (y - rows["fold_spread"])[::-1])
            band = dict(fill="toself", fillcolor=colour, opacity=0.2, line_width=0, hoverinfo="skip", showlegend=False)
            fig.add_scatter(x=np.append(x, x[::-1]), y=edge, mode="lines", **band)
        mode = "lines+markers" if len(x) <= 15 else "lines"
        _line(fig, x, y, region, "skill %{y:.4f} at %{x:.2f} s", mode=mode, color=colour)
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
    _line(fig, table["delay"], table["evidence"], "evidence", "%{y:.1f} at %{x:.2f} s", color=PALETTE[0])
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


def plot_settings(table, *, title="Best skill over all delays, by what the sound is described with"):
    """Draw the best skill over the delays against the number of features, one line per number of further windows.

    Parameters
    ----------
    table : DataFrame
        ``n_features``, ``n_lags``, ``blocks``, ``skill``.
    """
    fig = _figure(
        title, x="Features, the first of one extraction (number)", y="Skill over the train mean (fraction of error)"
    )
    best = table.groupby(["blocks", "n_lags", "n_features"])["skill"].max()
    for k, n_lags in enumerate(sorted(table["n_lags"].unique())):
        for blocks in sorted(table["blocks"].unique()):
            name = f"{n_lags} further windows" + (" and blocks" if blocks else "")
            rows = best.loc[blocks, n_lags]
            rows = rows[rows.index > 0]
            look = dict(color=PALETTE[k % len(PALETTE)], dash="dot" if blocks else "solid")
            _line(fig, rows.index, rows, name, "skill %{y:.4f} with %{x} features", **look)
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
        _line(
            fig, delays, curves[settings[-1]][region], region, "skill %{y:.4f} at %{x:.2f} s", color=_colour(region, k)
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


def _delay_axes(title, y, block_period):
    note = block_period and f"blocks repeat every {block_period:g} s, so Δt and Δt ± {block_period:g} s look alike"
    return _figure(title, x="Δt, from sound to scan (s)", y=y, top=90 if note else 60, note=note)


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


# fmt: off
def plot_slices(volume, *, title, unit, affine=None, mask=None, background=None, outline=None, symmetric=False,
                limit=None, n_slices=6, view="axial", names=None, note=None):
    """Draw a row of slices; NaN and voxels outside the mask are transparent.

    Parameters
    ----------
    background : array of shape (i, j, k), optional
        Drawn in grey under the map.
    outline : bool array of shape (i, j, k), optional
        Its edge is drawn as a line, on a map without background.
    symmetric : bool
        Red and blue around 0, for correlations and differences.
    limit : float or (float, float), optional
        End (or both ends) of the colour range; by default it holds 99 % of the values.
    """
    # fmt: on
    grid = _as_grid(volume, mask)
    if sorted(grid.shape)[1] == 1:
        return plot_regions(_listed(grid, names), names, title=title, unit=unit, symmetric=symmetric)
    cut = _Cut(grid.shape, affine, view)
    grid, under = cut.turn(grid), None if background is None else cut.turn(np.asarray(background, np.float32))
    edge = None if outline is None else cut.turn(np.asarray(outline, np.float32))
    inside = np.isfinite(grid)
    if edge is not None:  # air is cut off here, too
        under, inside = np.where(inside, grid, 0), edge > 0.5
    window = cut.box(inside if under is None else inside | (under > 0.2 * _limits(under)[1]))  # air is cut off
    low, high = (cut.box(inside) if inside.any() else window)[0]
    ks = np.unique(np.linspace(low - 0.5, high - 0.5, n_slices + 2)[1:-1].round().astype(int))
    fig = make_subplots(1, len(ks), horizontal_spacing=0.008)
    for n, k in enumerate(ks, 1):
        if background is not None:
            fig.add_trace(cut.picture(under, k, window, coloraxis="coloraxis2", hoverinfo="skip"), 1, n)
        fig.add_trace(cut.picture(grid, k, window, coloraxis="coloraxis", hovertemplate=cut.hover + unit), 1, n)
        if edge is not None:
            fig.add_trace(cut.line(edge, k, window), 1, n)
        cut.dress(fig, n, cut.where(k))
    scale = DIVERGING if symmetric else GREYS if background is None else OVERLAY
    fig.update_layout(coloraxis=_colours(scale, _limits(grid, symmetric=symmetric, limit=limit), unit))
    if background is not None:
        fig.update_layout(coloraxis2=_colours(GREYS, _limits(under), unit) | {"showscale": False})
    extra = 25 if note else 0
    height = 135 + cut.height(window, 1 / len(ks)) + extra
    return _figure(title, fig=fig, height=height, note=note, top=60 + extra)


def plot_truth_prediction(true, predicted, *, title, unit, time, **options):
    """Draw one slice of one volume, measured at ``time`` (s): original, predicted, and their difference.

    ``options`` are those of `slice_player`, which says what the arrays may be; here they have no axis of time.
    """
    return slice_player(np.array([true]), np.array([predicted]), [time], title=title, unit=unit, **options)


def slice_player(
    true, predicted, times, *, title, unit, affine=None, mask=None, voxel=None, view="axial", names=None, max_frames=40
):
    """Play one slice of the original, the prediction and their difference, which has its own range around 0.

    Parameters
    ----------
    true, predicted : arrays of shape (n_times, i, j, k), or (n_times, n_voxels) in mask order
        At most ``max_frames`` volumes, evenly spaced, go into the page, which needs no kernel.
    times : array of shape (n_times,)
        In s.
    voxel : (int, int, int), optional
        The slice goes through it; by default through the middle of the voxels shown.
    """
    picks = np.unique(np.linspace(0, len(times) - 1, min(max_frames, len(times))).round().astype(int))
    pairs = [(_as_grid(true[k], mask), _as_grid(predicted[k], mask)) for k in picks]
    movie, labels = [(a, b, b - a) for a, b in pairs], [f"{times[k]:.1f}" for k in picks]
    shared, own = np.array(pairs), np.array([difference for *_, difference in movie])
    fig, height = make_subplots(1, 3), 260
    if sorted(movie[0][0].shape)[1] == 1:
        pictures = [[_bars(_listed(g, names), names, unit) for g in grids] for grids in movie]
        for n, panel in enumerate(PANELS, 1):
            end = 1.05 * np.nanmax(np.abs(own if n == 3 else shared))
            fig.update_xaxes(title_text=f"{panel}<br>{unit}", range=[-end, end], zeroline=True, col=n)
            fig.update_yaxes(title_text="Region (name)" if n == 1 else "", showticklabels=n == 1, col=n)
        fig.update_yaxes(autorange="reversed")
    else:
        cut = _Cut(movie[0][0].shape, affine, view)
        movie = [[cut.turn(g) for g in grids] for grids in movie]
        window = cut.box(np.isfinite(movie[0][0]))
        k = sum(window[0]) // 2
        if voxel is not None:
            marked = np.zeros(pairs[0][0].shape, bool)
            marked[tuple(voxel)] = True
            k = cut.box(cut.turn(marked))[0][0]
        pictures = [[cut.picture(g, k, window, hovertemplate=cut.hover + unit) for g in grids] for grids in movie]
        for first, second, difference in pictures:
            first.coloraxis, second.coloraxis, difference.coloraxis = "coloraxis", "coloraxis", "coloraxis2"
        for n, (panel, domain) in enumerate(PANELS.items(), 1):
            cut.dress(fig, n, panel)
            fig.update_xaxes(domain=domain, col=n)
        fig.update_layout(coloraxis=_colours(GREYS, _limits(shared), unit, x=0.57))
        fig.update_layout(coloraxis2=_colours(DIVERGING, _limits(own, symmetric=True), unit))
        title, height = f"{title}, {cut.where(k)}", cut.height(window, 0.26)
    fig.add_traces(pictures[0], rows=[1, 1, 1], cols=[1, 2, 3])
    if len(labels) == 1:
        return _figure(f"{title}, {labels[0]} s", fig=fig, height=height + 150, bottom=75)
    fig.frames = [go.Frame(data=p, name=label, traces=[0, 1, 2]) for p, label in zip(pictures, labels, strict=True)]
    still = dict(frame=dict(duration=0, redraw=True), mode="immediate", transition=dict(duration=0))
    play = dict(frame=dict(duration=300, redraw=True), fromcurrent=True, transition=dict(duration=0))
    steps = [dict(label=label, method="animate", args=[[label], still]) for label in labels]
    both = (("▶ play", [None, play]), ("❚❚ pause", [[None], still]))
    buttons = [dict(label=text, method="animate", args=args) for text, args in both]
    slider = dict(steps=steps, currentvalue=dict(prefix="Time: ", suffix=" s"), y=0, pad_t=96)
    place = dict(x=1, xanchor="right", y=0, yanchor="top", pad_t=74)
    menu = dict(type="buttons", direction="left", buttons=buttons, showactive=False, **place)
    fig.update_layout(sliders=[slider], updatemenus=[menu])
    return _figure(title, fig=fig, height=height + 266, bottom=191)


def plot_regions(values, names=None, *, title, unit, symmetric=False):
    """Draw one bar and its number per region, for data without a voxel grid; ``symmetric`` centres the axis on 0."""
    fig = _figure(title, x=unit, y="Region (name)", height=150 + 36 * len(values))
    text = [f"{v:.3g}" if np.isfinite(v) else "n/a" for v in values]
    fig.add_trace(_bars(values, names, unit).update(text=text, textposition="outside"))
    low, high = (1.2 * v for v in _limits(np.asarray(values, float), symmetric=symmetric))
    fig.update_xaxes(range=[min(low, 0), max(high, 0)], zeroline=True, zerolinecolor="#888888")
    return fig.update_yaxes(autorange="reversed", showgrid=False)


def plot_scores(table, *, region, prediction, metric="mse"):
    """Draw one score per model, in the order of the table, each with its number.

    Parameters
    ----------
    table : DataFrame
        As in ``scores.tsv``: ``model``, ``prediction``, ``region``, ``reference`` and the metrics.
    region, prediction, metric : str
        Which rows and which column; a skill names its reference.
    """
    rows = table[(table["region"] == region) & (table["prediction"] == prediction)]
    if rows.empty:
        raise ValueError(f"no row of the table has region {region!r} and prediction {prediction!r}.")
    axis, better = METRICS.get(metric, f"{metric} (no unit), higher").rsplit(", ", 1)
    title = f"{axis.split(' (')[0]} in {region}, {prediction.replace('_', '-')}: {better} is better"
    fig = _figure(title, x=axis, y="Model (name)", height=140 + 26 * max(len(rows), 5))
    models, values = list(rows["model"]), rows[metric]
    text = [f"{v:.3g}" for v in values]
    if metric == "skill" and "reference" in rows:
        text = [f"{t} over {name}" for t, name in zip(text, rows["reference"], strict=True)]
    look = dict(cliponaxis=False, marker=dict(size=11, color=[_colour(m, k) for k, m in enumerate(models)]))
    hover = dict(text=text, textposition="middle right", hovertemplate="%{y}: %{x:.4g}<extra></extra>")
    fig.add_scatter(x=values, y=models, mode="markers+text", **look, **hover)
    for model in rows["model"][values.isna()]:
        fig.add_annotation(x=0.01, xref="x domain", y=model, text="no value", showarrow=False, xanchor="left")
    log = dict(type="log", dtick=1) if metric == "mse" and values.max() > 20 * values.min() > 0 else {}
    order = dict(type="category", categoryorder="array", categoryarray=models, autorange="reversed")
    return fig.update_yaxes(**order).update_xaxes(exponentformat="power", **log).update_layout(margin_r=170)


def plot_loss(history, *, unit=MSE):
    """Draw the columns ``train_MSE`` (dashed) and ``val_MSE`` (solid) by ``epoch`` for each ``run`` of a table."""
    fig = _figure("Error per epoch: train dashed, validation solid", x="Epoch (number)", y=unit)
    for k, (run, rows) in enumerate(history.groupby("run", sort=False)):
        for part, dash in (("train", "dash"), ("val", "solid")):
            seen = rows.dropna(subset=[f"{part}_MSE"])  # validation is not looked at in every epoch
            look = dict(color=PALETTE[k % len(PALETTE)], dash=dash)
            _line(fig, seen["epoch"], seen[f"{part}_MSE"], f"{run}, {part}", "%{y:.3g} at epoch %{x}", **look)
    return fig.update_yaxes(exponentformat="power")


def plot_evidence(history):
    """Draw the column ``val_evidence`` by ``epoch`` for each ``run`` of a table."""
    fig = _figure("Evidence of the validation block for each network", x="Epoch (number)", y="Log evidence (nats)")
    for k, (run, rows) in enumerate(history.dropna(subset=["val_evidence"]).groupby("run", sort=False)):
        look = dict(color=PALETTE[k % len(PALETTE)])
        _line(fig, rows["epoch"], rows["val_evidence"], run, "%{y:.0f} at epoch %{x}", mode="lines+markers", **look)
    return fig.add_hline(y=0, line_width=1, line_color="#222222")


def plot_horizon(table, *, t_r=None, unit=MSE):
    """Draw ``mse`` by ``horizon`` (volumes since the last measured one; in s with ``t_r``) for each ``model``."""
    title, word = "Open-loop error by how far ahead the model predicts", "volumes" if t_r is None else "s"
    fig = _figure(title, x=f"Time since the last measured volume ({word})", y=unit)
    for k, (name, rows) in enumerate(table.groupby("model", sort=False)):
        hover = f"%{{y:.3g}} at %{{x:.1f}} {word}"
        _line(fig, rows["horizon"] * (t_r or 1), rows["mse"], name, hover, color=_colour(name, k))
    return fig.update_yaxes(exponentformat="power")


def plot_histogram(values, *, title, unit, groups=None, n_bins=60):
    """Draw how one number per voxel is spread; NaN is left out.

    ``groups`` maps names to bool arrays of shape (n_voxels,); each group is drawn as a share of its own size.
    """
    values = np.asarray(values, float)
    edges = np.histogram_bin_edges(values[np.isfinite(values)], n_bins)
    fig = _figure(title, x=unit, y="Share of the group's voxels (%)" if groups else "Voxels (number)")
    for k, (name, inside) in enumerate((groups or {"all": np.full(values.shape, True)}).items()):
        part = values[inside & np.isfinite(values)]
        height = np.histogram(part, edges)[0] * (100 / max(len(part), 1) if groups else 1)
        look = dict(marker_color=_colour(name, k), marker_line_width=0, opacity=0.65 if groups else 1)
        middles, label = (edges[1:] + edges[:-1]) / 2, f"{name} ({len(part):,} voxels)"
        fig.add_bar(x=middles, y=height, name=label, hovertemplate="%{y:.3g} near %{x:.3g}", **look)
    return fig.update_layout(barmode="overlay", bargap=0, showlegend=bool(groups))


class _Cut:
    """Slices of a grid, turned to run left to right, back to front and bottom to top where the affine is known."""

    def __init__(self, shape, affine, view):
        self.axes, self.sided = VIEWS[view], affine is not None
        affine = np.asarray(affine) if self.sided else np.eye(4)
        self.turns = nib.io_orientation(affine)
        turned = affine @ nib.orientations.inv_ornt_aff(self.turns, shape)
        sizes = np.array(self.turn(np.empty(shape, bool)).shape)
        middle = turned[:3] @ np.append((sizes - 1) / 2, 1)
        self.coords = [middle[a] + turned[a, a] * (np.arange(n) - (n - 1) / 2) for a, n in enumerate(sizes)]
        self.names, unit = ("xyz", "mm") if self.sided else ("ijk", "voxel")
        self.labels = [f"{name} ({unit})" for name in self.names]
        right, up = (self.names[a] for a in self.axes[1:])
        self.hover = f"{right} %{{x:.0f}}, {up} %{{y:.0f}} {unit}<extra></extra><br>%{{z:.4g}} "

    def turn(self, grid):
        return nib.apply_orientation(grid, self.turns)

    def box(self, inside):
        """Bounds of a turned bool grid along the axes (cut, right, up)."""
        seen = [np.flatnonzero(inside.any(tuple({0, 1, 2} - {a}))) for a in self.axes]
        return [(s[0], s[-1] + 1) if len(s) else (0, inside.shape[a]) for s, a in zip(seen, self.axes, strict=True)]

    def height(self, window, share):
        """Pixels that square voxels need when a picture has this share of a page about 950 pixels wide."""
        across, up = (np.ptp(self.coords[a][slice(*w)]) + 1 for a, w in zip(self.axes[1:], window[1:], strict=True))
        return int(np.clip(800 * share * up / across, 90, 420))

    def where(self, k):
        return f"{self.names[self.axes[0]]} = {round(self.coords[self.axes[0]][k])}" + (" mm" if self.sided else "")

    def picture(self, grid, k, window, **options):
        cut, right, up = self.axes
        (x0, x1), (y0, y1) = window[1:]
        z = np.moveaxis(grid, (cut, up, right), (0, 1, 2))[k, y0:y1, x0:x1]
        return go.Heatmap(z=z, x=self.coords[right][x0:x1], y=self.coords[up][y0:y1], **options)

    def line(self, grid, k, window):
        """The edge of a region, half-way between 0 and 1."""
        cut = self.picture(grid, k, window)
        level = dict(start=0.5, end=0.5, size=1, coloring="none")
        look = dict(line=dict(color="#E69F00", width=1.5, smoothing=0), hoverinfo="skip", showlegend=False)
        return go.Contour(z=cut.z, x=cut.x, y=cut.y, contours=level, **look)

    def dress(self, fig, n, text):
        """Name the axes of picture n, and its sides where they are known."""
        _, right, up = self.axes
        x, y = (f"{a}{n}" if n > 1 else a for a in "xy")
        look = dict(constrain="domain", showgrid=False, col=n)
        fig.update_xaxes(title_text=self.labels[right], nticks=4, **look)
        first = dict(title_text=self.labels[up]) if n == 1 else dict(showticklabels=False, ticks="")
        fig.update_yaxes(scaleanchor=x, constraintoward="top", **first, **look)
        place = dict(xref=f"{x} domain", yref=f"{y} domain", showarrow=False)
        fig.add_annotation(text=text, x=0.5, y=1, yanchor="bottom", **place)
        for side, at in zip("PA" if right == 1 else "LR", (0, 1), strict=True) if self.sided else ():
            fig.add_annotation(text=f"<b>{side}</b>", x=at, y=0, font_color="#D55E00", **place)


def _as_grid(values, mask):
    """Give a 3-D grid with NaN outside the mask."""
    values = np.asarray(values, np.float32)
    if values.ndim != 3 and mask is None:
        raise ValueError(f"a map must be a grid (i, j, k), or come with its mask; got shape {values.shape}.")
    if mask is None:
        return values
    grid = np.full(mask.shape, np.nan, np.float32)
    grid[mask] = values[mask] if values.ndim == 3 else values
    return grid


def _limits(values, *, symmetric=False, limit=None):
    """Colour range: as told, or what holds 99 % of the finite values."""
    if np.iterable(limit):
        return tuple(limit)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 1.0])
    if symmetric:
        top = limit or np.percentile(np.abs(values), 99) or 1.0
        return -top, top
    low, high = np.percentile(values, (0.5, 99.5))
    return low, limit or (high if high > low else low + 1)


def _zscore(values):
    """Standardise each column, NaN aside; a constant column gives 0."""
    values = np.asarray(values, float)
    spread = np.nanstd(values, axis=0)
    return (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1)


def _colour(name, k):
    return (MODEL_COLOURS | OTHER_COLOURS).get(name, PALETTE[k % len(PALETTE)])


def _colours(scale, limits, text, **place):
    bar = dict(title=dict(text=text, side="right"), thickness=12, outlinewidth=0, tickfont_size=12, **place)
    return dict(colorscale=scale, cmin=limits[0], cmax=limits[1], colorbar=bar)


def _figure(title, *, x=None, y=None, fig=None, height=400, top=60, bottom=55, note=None):
    """Give a figure the look of the project, and names to its axes where these are given."""
    fig = fig or go.Figure().update_xaxes(title_text=x).update_yaxes(title_text=y)
    title, margin = dict(text=title, subtitle_text=note), dict(l=75, r=20, t=top, b=bottom)
    return fig.update_layout(template="bold_audio", title=title, height=height, margin=margin)


def _line(fig, x, y, name, hover, *, mode="lines", **look):
    fig.add_scatter(x=x, y=y, name=name, mode=mode, line=look, hovertemplate=hover)


def _listed(grid, names):
    """Values of a grid that is a list of regions; one without a value keeps its place beside its name."""
    values = grid.ravel()
    return values if names is not None and len(names) == len(values) else values[np.isfinite(values)]


def _bars(values, names, unit):
    names = [f"region {k}" for k in range(1, len(values) + 1)] if names is None else list(names)
    look = dict(orientation="h", marker_color=PALETTE[0], showlegend=False)
    return go.Bar(x=values, y=names, hovertemplate=f"%{{y}}: %{{x:.4g}} {unit}<extra></extra>", **look)


def _draw_spans(fig, spans):
    for name, (start, end) in (spans or {}).items():
        look = dict(fillcolor=_colour(name, 0), opacity=0.3, line_width=0, layer="below")
        fig.add_vrect(x0=start, x1=end, annotation_text=name, annotation_position="top left", **look)
    return fig


def _draw_blocks(fig, blocks, times):
    """Put the film's blocks in a strip above the plot."""
    start, end = np.floor(np.min(times)), np.ceil(np.max(times))
    for block in [] if blocks is None else blocks.itertuples():
        x0, x1, kind = max(block.onset, start), min(block.onset + block.duration, end), block.trial_type
        if x1 > x0:
            strip = dict(y0=1.01, y1=1.08, yref="paper", line_width=0, fillcolor=_colour(kind, 0), opacity=0.8)
            fig.add_shape(type="rect", x0=x0, x1=x1, **strip)
        if x1 - x0 > 0.05 * (end - start):
            place = dict(y=1.045, yref="paper", yanchor="middle", showarrow=False)
            fig.add_annotation(x=(x0 + x1) / 2, text=kind, **place)
    return fig.update_xaxes(range=[start, end])
