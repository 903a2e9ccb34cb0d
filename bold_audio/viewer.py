"""Live widgets on top of the figures: they need a kernel, and each has a twin in `figures` that does not."""

import time

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bold_audio import delay_figures


def delay_explorer(grid, *, region, alphas, alpha):
    """Redraw the whole Δt curve while number of features, further windows, strength or region move.

    Parameters
    ----------
    grid : feature_grid.FeatureGrid
    region : str
        The region shown first.
    alphas : sequence of float
        Ridge strengths of the slider.
    alpha : float
        The strength shown first.

    Returns
    -------
    ipywidgets.VBox
        Knobs, a line that says what is best and how long the curve took to compute, and the figure.
    """
    wide = {"style": {"description_width": "130px"}, "layout": {"width": "420px"}}
    strengths = [(f"{a:g}", float(a)) for a in alphas]
    nearest = min(alphas, key=lambda a: abs(np.log(min(a, 1e300)) - np.log(min(alpha, 1e300))))
    knobs = {
        "region": widgets.Dropdown(options=list(grid.products), value=region, description="region", **wide),
        "n_features": widgets.IntSlider(
            value=grid.n_features, min=1, max=grid.n_features, description="features", **wide
        ),
        "n_lags": widgets.IntSlider(value=0, min=0, max=grid.n_lags, description="further windows", **wide),
        "alpha": widgets.SelectionSlider(
            options=strengths, value=float(nearest), description="ridge strength α", **wide
        ),
    }
    if grid.has_blocks:
        knobs["blocks"] = widgets.Checkbox(value=False, description="with the film's blocks", indent=False)
    drawn = delay_figures.plot_delay_curve(_as_table(grid, knobs)[0])
    figure, verdict = go.FigureWidget(drawn), widgets.Label()

    def redraw(_=None):
        table, seconds = _as_table(grid, knobs)
        # One message with the line alone: the browser draws a new title more slowly than a new curve.
        figure.data[0].y = table["skill"].to_numpy()
        best = table.loc[table["skill"].idxmax()]
        verdict.value = (
            f"{best['region']}: best at Δt = {best['delay']:g} s, skill {best['skill']:.4f} "
            f"({len(table)} delays, exact, in {1000 * seconds:.0f} ms)"
        )

    for knob in knobs.values():
        knob.observe(redraw, names="value")
    redraw()
    return widgets.VBox([*knobs.values(), verdict, figure])


def _as_table(grid, knobs):
    started = time.perf_counter()
    chosen = {name: knob.value for name, knob in knobs.items()}
    skill = grid.curve(**chosen)
    seconds = time.perf_counter() - started
    return pd.DataFrame({"delay": grid.delays, "region": chosen["region"], "skill": skill}), seconds
