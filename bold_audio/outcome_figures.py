"""What came out of fold → plotly figures, in the look of `style`: parts of the skill, feature sets, horizon, data."""

import numpy as np

from bold_audio import style
from bold_audio.style import PALETTE

SKILL = "Skill over the mean (fraction of error)"


def plot_partition(table, *, region, note=None):
    """Draw the unique and shared parts of the out-of-fold skill, with their standard errors over folds.

    Parameters
    ----------
    table : DataFrame
        From `partition.partition_region`.
    region : str
    note : str, optional
        What must be said of the scan, such as that it is SIMULATED.
    """
    rows = table[table["kind"] != "model"]
    whole = table[table["kind"] == "model"].iloc[-1]
    title = f"Parts of the out-of-fold skill in {region}: they add up to {whole['skill']:.3f}"
    fig = style.figure(title, x="Part of the skill (fraction of the mean's error)", y="Bands (name)", note=note)
    names = rows["bands"].str.replace("+", " and ") + np.where(rows["kind"] == "unique", " only", "")
    for kind, colour in (("unique", PALETTE[0]), ("shared", PALETTE[1])):
        here = rows["kind"] == kind
        _points(fig, rows["skill"][here], names[here], rows["fold_spread"][here], colour, name=kind)
    return _categories(fig, list(names))


def plot_feature_sets(table, *, title, note=None):
    """Draw out-of-fold skill alone and gain over own history of feature sets, with standard errors over folds.

    Parameters
    ----------
    table : DataFrame
        From `ablations.compare_sets`; sets that were not done say so.
    title : str
    note : str, optional
        As for `plot_partition`.
    """
    fig = style.figure(title, x="Squared error removed (fraction)", y="Features (name)", note=note, top=80)
    names = list(table["features"])
    _points(fig, table["skill"], names, table["fold_spread"], PALETTE[0], name="alone, over the mean")
    _points(fig, table["gain"], names, table["gain_spread"], PALETTE[1], name="added to own history", below=True)
    for name in table["features"][table["skill"].isna()]:
        fig.add_annotation(x=0.01, xref="x domain", y=name, text="not done", showarrow=False, xanchor="left")
    return _categories(fig, names)


def plot_horizon_skill(table, *, t_r, region, note=None):
    """Draw open-loop skill over the mean by how far ahead; 0 is the mean.

    Parameters
    ----------
    table : DataFrame
        From `horizon.skill_by_horizon`.
    t_r : float
        Repetition time, in seconds.
    region : str
    note : str, optional
        As for `plot_partition`.
    """
    title = f"Open-loop skill in {region}, from {table['n_starts'].iloc[0]} starting points out of fold"
    fig = style.figure(title, x="Time since the last measured volume (s)", y=SKILL, note=note, top=80)
    lowest = 0.0
    for k, (name, rows) in enumerate(table[table["model"] != "constant"].groupby("model", sort=False)):
        hover = "%{y:.3f} at %{x:.1f} s"
        style.line(fig, rows["horizon"] * t_r, rows["skill"], name, hover, color=style.colour(name, k))
        if name != "copy_previous":
            lowest = min(lowest, rows["skill"].min())
    fig.add_hline(y=0, line_width=1, line_color="#222222")
    # Copying falls far below the others, which could not be told apart on its axis.
    top = max(0.05, table["skill"].max())
    low = max(table["skill"].min(), min(lowest, -0.5 * top))
    return fig.update_yaxes(range=[low - 0.05 * (top - low), top + 0.05 * (top - low)])


def plot_learning_curve(table, *, region, note=None):
    """Draw out-of-fold skill of the sound and its gain over own history by how many volumes were fitted on.

    Parameters
    ----------
    table : DataFrame
        From `learning_curve.learning_curve`.
    region : str
    note : str, optional
        As for `plot_partition`.
    """
    title = f"Skill in {region} by how much data was fitted on, with standard errors over folds"
    fig = style.figure(title, x="Volumes fitted on (number)", y="Squared error removed (fraction)", note=note, top=80)
    for column, spread, name, colour in (
        ("skill", "fold_spread", "sound, over the mean", "sound"),
        ("gain", "gain_spread", "sound added to own history", "history_sound"),
    ):
        fig.add_scatter(
            x=table["n_fit"],
            y=table[column],
            error_y=dict(type="data", array=table[spread], thickness=1.5),
            name=name,
            mode="lines+markers",
            line_color=style.colour(colour, 0),
            hovertemplate="%{y:.4f} with %{x:.0f} volumes",
        )
    return fig.add_hline(y=0, line_width=1, line_color="#222222").update_xaxes(rangemode="tozero")


def _points(fig, values, names, spread, colour, *, name, below=False):
    fig.add_scatter(
        x=values,
        y=names,
        error_x=dict(type="data", array=spread, thickness=1.5),
        mode="markers+text",
        text=[f"{round(v, 3) + 0.0:.3f}" if np.isfinite(v) else "" for v in values],  # + 0.0: no "-0.000"
        textposition="bottom center" if below else "top center",
        marker=dict(size=10, color=colour),
        name=name,
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )


def _categories(fig, names):
    # Room for the numbers above the first and below the last row.
    order = dict(type="category", categoryorder="array", categoryarray=names, range=[len(names) - 0.3, -0.7])
    fig.add_vline(x=0, line_width=1, line_color="#222222")
    return fig.update_yaxes(**order).update_layout(height=170 + 46 * len(names), showlegend=True)
