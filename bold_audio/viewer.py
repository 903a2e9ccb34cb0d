"""Live widgets, which need a kernel: the delay curve under one's hands, and a subject in the slice viewer.

Modules of figures show parts of them without one.
"""

import time

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bold_audio import delay_figures, prepare, sentences, viewed
from bold_audio.files import BoldAudioError
from bold_audio.params import load_params
from bold_audio.schema import SIMULATED
from bold_audio.slice_viewer import SliceViewer


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


def subject_viewer(subject, kept):
    """The slice viewer of a subject's run, with its sound where it has one.

    Parameters
    ----------
    subject : prepare.Subject
    kept : dict
        From `viewed.keep_predictions` or `viewed.kept_predictions`.

    Returns
    -------
    slice_viewer.SliceViewer
    """
    sound = subject.params.audio_files if subject.params.feature_source == "audio" else None
    about = sentences.about_data(subject.params, subject.sound)
    return SliceViewer(subject.run, **kept, sound=sound or None, title=about)


def app():
    """A page: choose one of the subjects that notebook 06 has predicted, and look at it.

    Returns
    -------
    ipywidgets.VBox
    """
    found = viewed.kept_subjects(load_params(SIMULATED))
    if not found:
        return widgets.HTML("No subject has been predicted yet - run <code>make demo</code>, or notebook 06.")
    names = [f"{one['dataset']}, sub-{one['subject']}" for one in found]
    choice = widgets.Dropdown(options=list(zip(names, found, strict=True)), index=None, description="subject")
    shown, said = widgets.VBox([]), widgets.Label("Choose a subject.")

    def show(change):
        said.value, shown.children = "Opening …", ()
        try:
            one = change["new"]
            subject = prepare.open_subject(load_params(one["subject"], one["dataset"], **one["given"]))
            shown.children = (subject_viewer(subject, viewed.kept_predictions(subject)),)
            said.value = ""
        except BoldAudioError as error:
            said.value = str(error)
        except Exception as error:  # else "Opening …" would stand there for ever
            said.value = f"{type(error).__name__}: {error}"

    choice.observe(show, names="value")
    if len(found) == 1:
        choice.index = 0
    return widgets.VBox([choice, said, shown])
