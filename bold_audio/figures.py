"""Time courses, scores and losses → plotly figures, in the look of `style`; no files, no widgets.

In every function ``unit`` is what an axis shows, with its unit (``"r (no unit)"``). ``blocks`` is a table with
``onset``, ``duration`` (s) and ``trial_type``; ``spans`` maps ``train``, ``gap``, ``test`` to start and end (s).
"""

import numpy as np

from bold_audio import style
from bold_audio.style import DIVERGING, PALETTE

# fmt: off
METRICS = {  # column of the score table: what it is (unit), which way is better
    "mse": "Mean squared error (squared scaled BOLD), lower", "r_median": "Median r over voxels (no unit), higher",
    "r_best": "Best voxel's r (no unit), higher", "r2": "Median R², 1 − residual / variance (no unit), higher",
    "skill": "Skill (fraction of the reference's error removed), higher",
    "partial_r_median": "Median partial r of the sound, given the past (no unit), higher",
}
# fmt: on
MSE = "MSE (squared scaled BOLD)"


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
    fig = style.figure(title, x="Time in the sound (s)", y="Sound feature (name)", top=60 if blocks is None else 90)
    hover = "%{y} at %{x:.1f} s: %{z:.2f} SD<extra></extra>"
    fig.add_heatmap(z=z, x=times, y=[str(n) for n in names], hovertemplate=hover, coloraxis="coloraxis")
    fig.update_layout(coloraxis=style.colour_scale(DIVERGING, style.limits(z, symmetric=True), "z-score (SD)"))
    return style.draw_blocks(fig.update_yaxes(type="category", showgrid=False), blocks, times)


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
    fig = style.figure(title, x=x, y="Size (z-score, SD)", top=60 if blocks is None else 90)
    for label, values, colour in ((name, sound_feature, "#D55E00"), ("voxel", voxel, "#000000")):
        style.line(fig, volume_times, _zscore(values), label, "%{y:.2f} SD at %{x:.1f} s", color=colour)
    return style.draw_blocks(style.draw_spans(fig, spans), blocks, volume_times)


def plot_time_course(times, series, *, title, unit, x="Time since the run began (s)"):
    """Draw series by name over time (or over what ``x`` says); ``measured`` is black, models keep their colours."""
    fig = style.figure(title, x=x, y=unit)
    for k, (name, values) in enumerate(series.items()):
        style.line(
            fig,
            times,
            values,
            name,
            "%{y:.3g} at %{x:.4g}",
            color=style.colour(name, k),
            width=3 - (name != "measured"),
        )
    return fig


def plot_scores(table, *, region, prediction, metric="mse"):
    """Draw one score per model, in the order of the table, each with its number.

    Parameters
    ----------
    table : DataFrame
        As in ``scores.tsv``: ``model``, ``prediction``, ``region``, ``reference`` and the metrics.
    region, prediction, metric : str
        Which rows and which column; a skill names its reference.

    Raises
    ------
    ValueError
        If the table has no such row.
    """
    rows = table[(table["region"] == region) & (table["prediction"] == prediction)]
    if rows.empty:
        raise ValueError(f"no row of the table has region {region!r} and prediction {prediction!r} - give what it has.")
    axis, better = METRICS.get(metric, f"{metric} (no unit), higher").rsplit(", ", 1)
    title = f"{axis.split(' (')[0]} in {region}, {prediction.replace('_', '-')}: {better} is better"
    fig = style.figure(title, x=axis, y="Model (name)", height=140 + 26 * max(len(rows), 5))
    models, values = list(rows["model"]), rows[metric]
    text = [f"{v:.3g}" for v in values]
    if metric == "skill" and "reference" in rows:
        text = [f"{t} over {name}" for t, name in zip(text, rows["reference"], strict=True)]
    look = dict(cliponaxis=False, marker=dict(size=11, color=[style.colour(m, k) for k, m in enumerate(models)]))
    hover = dict(text=text, textposition="middle right", hovertemplate="%{y}: %{x:.4g}<extra></extra>")
    fig.add_scatter(x=values, y=models, mode="markers+text", **look, **hover)
    for model in rows["model"][values.isna()]:
        fig.add_annotation(x=0.01, xref="x domain", y=model, text="no value", showarrow=False, xanchor="left")
    log = dict(type="log", dtick=1) if metric == "mse" and values.max() > 20 * values.min() > 0 else {}
    order = dict(type="category", categoryorder="array", categoryarray=models, autorange="reversed")
    return fig.update_yaxes(**order).update_xaxes(exponentformat="power", **log).update_layout(margin_r=170)


def plot_loss(history):
    """Draw the columns ``train_MSE`` (dashed) and ``val_MSE`` (solid) by ``epoch`` for each ``run`` of a table."""
    fig = style.figure("Error per epoch: train dashed, validation solid", x="Epoch (number)", y=MSE)
    for k, (run, rows) in enumerate(history.groupby("run", sort=False)):
        for part, dash in (("train", "dash"), ("val", "solid")):
            seen = rows.dropna(subset=[f"{part}_MSE"])  # validation is not looked at in every epoch
            look = dict(color=PALETTE[k % len(PALETTE)], dash=dash)
            style.line(fig, seen["epoch"], seen[f"{part}_MSE"], f"{run}, {part}", "%{y:.3g} at epoch %{x}", **look)
    return fig.update_yaxes(exponentformat="power")


def plot_evidence(history):
    """Draw the column ``val_evidence`` by ``epoch`` for each ``run`` of a table."""
    fig = style.figure("Evidence of the validation block for each network", x="Epoch (number)", y="Log evidence (nats)")
    for k, (run, rows) in enumerate(history.dropna(subset=["val_evidence"]).groupby("run", sort=False)):
        look = dict(color=PALETTE[k % len(PALETTE)])
        style.line(
            fig, rows["epoch"], rows["val_evidence"], run, "%{y:.0f} at epoch %{x}", mode="lines+markers", **look
        )
    return fig.add_hline(y=0, line_width=1, line_color="#222222")


def _zscore(values):
    """Standardise each column, NaN aside; a constant column gives 0."""
    values = np.asarray(values, float)
    spread = np.nanstd(values, axis=0)
    return (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, 1)
