"""What a slice viewer shows, and its answers to what is asked of it: planes as bytes, courses, and the best voxel.

No widget is needed here: a question is a dictionary, an answer a dictionary and an array.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bold_audio import scores, slices, timecourse

RAW = "raw intensity (a.u.)"
QUANTITIES = {"intensity": RAW, "change": "change from the mean volume (a.u.)"}
NO_PREDICTION = "no prediction of this volume"


@dataclass(frozen=True)
class Scene:
    """One run, image or set of maps, as a viewer shows it.

    Parameters
    ----------
    frame : slices.Frame
    measured : slices.Volumes
    times : array of shape (n_volumes,)
        Start of each volume on the run's clock, s.
    t_r : float
        Repetition time, s.
    predictions, null : dict of (str, str) to timecourse.Prediction
        Of the sound, and of a sound that was shifted.
    starts : sequence of int
        First volume of each run.
    blocks : list of (start, end, what)
    maps : dict of str to array of shape (n_values,)
    regions : dict of str to array of bool, shape (n_values,)
    given_mean : array of shape (n_values,), optional
        What a change is measured from, and what maps lie on; the mean of all volumes without it.
    title, note : str
    """

    frame: slices.Frame
    measured: slices.Volumes
    times: np.ndarray
    t_r: float
    predictions: dict = field(default_factory=dict)
    null: dict = field(default_factory=dict)
    starts: tuple = (0,)
    blocks: list = field(default_factory=list)
    maps: dict = field(default_factory=dict)
    regions: dict = field(default_factory=dict)
    given_mean: np.ndarray | None = None
    title: str = ""
    note: str = ""
    _kept: dict = field(default_factory=dict, repr=False)

    @property
    def n_volumes(self):
        """Volumes of the run; 1 where there is no time."""
        return len(self.times)

    @property
    def n_voxels(self):
        """Columns of the values."""
        return self.measured.values.shape[1]

    @cached_property
    def mean(self):
        """What a change is measured from: array of shape (n_values,)."""
        return self.measured.mean() if self.given_mean is None else np.asarray(self.given_mean, np.float32)

    @property
    def panels(self):
        """Names of what stands side by side."""
        first = ["measured"] if self.n_volumes > 1 else ["mean"]
        return first + (["predicted", "difference"] if self.predictions else []) + (["map"] if self.maps else [])

    @cached_property
    def middle(self):
        """A voxel to begin with: where most values are, tuple of int."""
        inside = self.measured.index >= 0
        found = np.argwhere(inside)
        at = found[np.argmin(np.abs(found - found.mean(axis=0)).sum(axis=1))]
        return tuple(int(v) for v in at)

    def column_of(self, voxel):
        """Column of a turned voxel; None outside the mask."""
        column = int(self.measured.index[tuple(voxel)])
        return column if column >= 0 else None

    def voxel_of(self, column):
        """Turned voxel of a column: tuple of int."""
        return tuple(int(v) for v in np.argwhere(self.measured.index == column)[0])

    def limits(self, panel, *, kind=None, quantity="intensity", name=None):
        """Colour range of a panel, the same for all volumes; made once.

        Measured and predicted share theirs. Those of differences lie around 0 and hold for all models of a kind: the
        median of each model's own, so that one that runs away does not turn the others white.
        """
        key = (panel in ("difference", "map") and panel, kind if panel == "difference" else None, quantity, name)
        if key not in self._kept:
            self._kept[key] = self._make_limits(panel, kind, quantity, name)
        return self._kept[key]

    def _make_limits(self, panel, kind, quantity, name):
        if panel == "map":
            values = self.maps[name]
            return tuple(float(v) for v in slices.style.limits(values, symmetric=bool(np.nanmin(values) < 0)))
        whole = np.arange(self.n_volumes)
        if panel != "difference":
            mean = self.mean if quantity == "change" else 0
            sampled = {"symmetric": quantity == "change"}
            row = self.measured.row if quantity != "change" else lambda k, c: self.measured.row(k, c) - mean[c]
            return slices.sampled_limits(row, whole, self.n_voxels, **sampled)
        found = []
        for (_, of_kind), prediction in self.predictions.items():
            if of_kind == kind:
                diff = self._difference_of(prediction)
                found.append(slices.sampled_limits(diff, prediction.volumes, self.n_voxels, symmetric=True)[1])
        top = float(np.median(found or [1.0]))
        return -top, top

    def _difference_of(self, prediction):
        return lambda k, c: prediction.values[prediction.row_of(k)][c] - self.measured.row(k, c)

    def look(self, panel, quantity="intensity", name=None):
        """Name of the colours of a panel, one of `slices.LOOKS`."""
        if panel == "map":
            return "diverging" if self.limits("map", name=name)[0] < 0 else "overlay"
        return "diverging" if panel == "difference" or (quantity == "change" and panel != "mean") else "grey"

    def planes(self, volume, voxel, *, model=None, kind=None, quantity="intensity", name=None, threshold=0.0):
        """The three planes of every panel through a voxel, at one volume.

        Parameters
        ----------
        volume : int
        voxel : (int, int, int)
            Turned.
        model, kind : str, optional
            Whose prediction.
        quantity : str
            One of `QUANTITIES`, for measured and predicted.
        name : str, optional
            Which map.
        threshold : float
            Values of the map nearer to 0 are not drawn.

        Returns
        -------
        (dict, array of uint8)
            What the panels are, and their planes one panel after the other; a map's comes after the mean's.
        """
        where = slices.cut(self.measured.index, voxel)
        here = self.measured.index[tuple(voxel)]
        where = np.append(where, here)  # the last value is the crosshair's own
        measured = self.measured.row(volume, where)
        base = self._taken(self.mean, where) if quantity == "change" else np.float32(0)
        values = {"measured": measured - base, "mean": measured}
        prediction = self.predictions.get((model, kind))
        row = None if prediction is None else prediction.row_of(volume)
        if row is not None:
            predicted = self._taken(prediction.values[row], where)
            values |= {"predicted": predicted - base, "difference": predicted - measured}
        about, parts = [], []
        for panel in self.panels:
            if panel == "map":
                parts.append(self._bytes(self._taken(self.mean, where), "mean", name=None))
                shown = self._taken(self.maps[name], where)
                drawn = np.where(np.abs(shown) < threshold, np.nan, shown)
                parts.append(self._bytes(drawn, "map", name=name))
            else:
                shown = values.get(panel, np.full(len(where), np.nan, np.float32))
                parts.append(self._bytes(shown, panel, kind=kind, quantity=quantity))
            about.append(self._about(panel, shown[-1], kind=kind, quantity=quantity, name=name))
            if panel in ("predicted", "difference") and panel not in values:
                about[-1]["empty"] = NO_PREDICTION
        header = {"volume": int(volume), "voxel": [int(v) for v in voxel], "panels": about}
        header["place"] = self.frame.place(voxel)
        header["index"] = list(self.frame.index_of(voxel))
        header["regions"] = [region for region, inside in self.regions.items() if here >= 0 and inside[here]]
        self._kept["looks"] = self._kept.get("looks", 0) + 1
        if self._kept["looks"] % slices.KEPT_ROWS == 0:
            self._give_back()
        return header, np.concatenate(parts)

    def _give_back(self):
        """What was read of the run and its predictions need not stay in memory."""
        for one in (self.measured, *self.predictions.values(), *self.null.values()):
            slices.give_back(one.values)

    @staticmethod
    def _taken(row, where):
        found = np.asarray(row).take(where, mode="clip").astype(np.float32)
        found[where < 0] = np.nan
        return found

    def _bytes(self, values, panel, **options):
        return slices.as_bytes(values[:-1], self.limits(panel, **options))

    def _about(self, panel, value, *, kind, quantity, name):
        low, high = self.limits(panel, kind=kind, quantity=quantity, name=name if panel == "map" else None)
        shown = None if np.isnan(value) else float(value)
        look = self.look(panel, quantity, name)
        return {"name": panel, "low": low, "high": high, "look": look, "value": shown}

    def courses(self, voxel, kind):
        """One voxel over time, measured and by every model.

        Each r is over the volumes that all models of this kind predict.

        Returns
        -------
        (dict, array of shape (n_courses, n_volumes), float32)
            Names, and r over the predicted volumes by name; no names outside the mask.
        """
        column = self.column_of(voxel)
        if column is None:
            return {"names": [], "r": {}, "voxel": list(map(int, voxel))}, np.empty((0, self.n_volumes), np.float32)
        measured = self.measured.course(column)
        made = timecourse.courses(measured, self.predictions, kind, column, starts=self.starts)
        if not self.predictions:
            made.pop("copy_previous", None)
        # All over the same volumes, those that every model predicts: else no r could be held against another.
        known = np.isfinite([course for name, course in made.items() if name in self._models(kind)]).all(axis=0)
        r = {name: _r(measured[known], course[known]) for name, course in made.items() if name != "measured"}
        self._give_back()
        return {"names": list(made), "r": r, "voxel": list(map(int, voxel))}, np.stack(list(made.values()))

    def _models(self, kind):
        return {model for model, of_kind in self.predictions if of_kind == kind} or {"measured"}

    def r_map(self, model, kind, *, shift=0):
        """Correlation of each voxel with a prediction over its volumes, made once: array of shape (n_values,)."""
        return self._r_of(self.predictions, (model, kind), shift)

    def _r_of(self, predictions, key, shift=0):
        kept = ("r", predictions is self.null, key, shift)
        if kept not in self._kept:
            self._kept[kept] = timecourse.voxel_r(self.measured.row, predictions[key], self.n_voxels, shift=shift)
        return self._kept[kept]

    def compared(self, model, kind):
        """The voxel that a model predicts best, one drawn at random, and the best one for a shifted sound.

        Returns
        -------
        (list of dict, array of shape (2 * n_found, n_volumes), float32)
            ``role``, ``voxel`` and ``r`` (None where there is no such voxel) and a ``note``; measured and predicted of
            each that was found.
        """
        r, parts, rows = self.r_map(model, kind), [], []
        prediction = self.predictions[model, kind]
        n = int(np.isfinite(r).sum())
        found = {
            "best": (timecourse.best_voxel(r), prediction, 0, f"the best of {n:,} voxels"),
            "random": (timecourse.random_voxel(r), prediction, 0, "drawn at random"),
            "null": self._null(model, kind),
        }
        for role, (which, of, shift, note) in found.items():
            if which is None:
                parts.append({"role": role, "voxel": None, "r": None, "note": note})
                continue
            column, value = which
            course = np.full((2, self.n_volumes), np.nan, np.float32)
            course[0] = self.measured.course(column)
            course[1, of.volumes] = np.roll(of.values[:, column], shift)
            voxel = self.voxel_of(column)
            about = {"role": role, "voxel": voxel, "place": self.frame.place(voxel), "r": value, "note": note}
            parts.append(about)
            rows.append(course)
        self._give_back()
        return parts, np.concatenate(rows) if rows else np.empty((0, self.n_volumes), np.float32)

    def _null(self, model, kind):
        if (model, kind) in self.null:
            which = timecourse.best_voxel(self._r_of(self.null, (model, kind)))
            return which, self.null[model, kind], 0, "the best voxel for a shifted sound, the model fitted to it anew"
        prediction = self.predictions[model, kind]
        if model not in timecourse.WITHOUT_PAST:
            note = "none: a model with a past would have to be fitted again to a shifted sound"
            return None, prediction, 0, note
        length = timecourse.block_length(self.blocks)
        shift = timecourse.null_shift(len(prediction.volumes), self.t_r, block_length=length)
        if shift is None:
            return None, prediction, 0, "too few volumes for a shift"
        which = timecourse.best_voxel(self.r_map(model, kind, shift=shift))
        return which, prediction, shift, f"the best voxel for a prediction moved on by {shift * self.t_r:.0f} s"


def _r(measured, course):
    """Correlation where both are known; None where there is none."""
    known = np.isfinite(course) & np.isfinite(measured)
    if known.sum() < 3:
        return None
    r = float(scores.pearson_r(measured[known, None], course[known, None])[0])
    return r if np.isfinite(r) else None
