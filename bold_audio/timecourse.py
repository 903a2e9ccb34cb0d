"""What a viewer draws over time: a voxel as measured and as each model predicts it, the best voxel, and its doubles.

The best of many voxels looks good whatever was heard, so two others stand beside it: one drawn at random, and the best
one for a sound that was shifted, which cannot have been followed.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import scores, significance, splits
from bold_audio.features import BLOCK_TYPES, SPEECH_TYPES
from bold_audio.files import DataError

KINDS = ("one_step", "open_loop")
WITHOUT_PAST = ("blocks", "sound")  # a shifted prediction of these is the prediction of a shifted sound
CHUNK_VOXELS = 8192
RANDOM_SEED = 0


@dataclass(frozen=True)
class Prediction:
    """What a model says of some volumes of a run.

    Parameters
    ----------
    volumes : array of int, shape (n,)
        Which volumes, increasing.
    values : array of shape (n, n_voxels)
        May lie on disk.
    """

    volumes: np.ndarray
    values: np.ndarray

    def row_of(self, k):
        """Row that holds volume ``k``; None where there is none."""
        at = int(np.searchsorted(self.volumes, k))
        return at if at < len(self.volumes) and self.volumes[at] == k else None


def as_predictions(given, *, volumes, n_volumes, n_voxels):
    """Check predictions that a viewer was given.

    Parameters
    ----------
    given : dict of (str, str) to array
        (model, ``one_step`` or ``open_loop``) → array of shape (n, n_voxels), or a pair (volumes, array).
    volumes : array of int or None
        Which volumes the arrays are for; None: all of the run.
    n_volumes, n_voxels : int
        Of the run.

    Returns
    -------
    dict of (str, str) to Prediction

    Raises
    ------
    DataError
    """
    made = {}
    for key, value in (given or {}).items():
        if not (isinstance(key, tuple) and len(key) == 2 and key[1] in KINDS):
            raise DataError(f"predictions must be named (model, one_step or open_loop), got {key!r}")
        own, values = value if isinstance(value, tuple) else (volumes, value)
        own = np.arange(n_volumes) if own is None else np.asarray(own)
        name = f"{key[0]}, {key[1]}"
        if np.ndim(values) != 2 or values.shape[1] != n_voxels:
            raise DataError(f"prediction of {name} has the shape {np.shape(values)}, the run {n_voxels} voxels")
        if len(values) != len(own):
            raise DataError(f"prediction of {name} has {len(values)} volumes for {len(own)} - say which, by volumes")
        if own.dtype.kind not in "iu" or np.any(np.diff(own) <= 0) or not 0 <= own[0] <= own[-1] < n_volumes:
            raise DataError(f"volumes of {name} must increase within 0 to {n_volumes - 1}")
        made[key] = Prediction(own, values)
    return made


def courses(measured, predictions, kind, voxel, *, starts=(0,)):
    """One voxel over time, as measured and as each model predicts it.

    Parameters
    ----------
    measured : array of shape (n_volumes,)
        The voxel.
    predictions : dict of (str, str) to Prediction
    kind : {"one_step", "open_loop"}
    voxel : int
        Column of the predictions.
    starts : sequence of int
        First volume of each run, which no volume precedes.

    Returns
    -------
    dict of str to array of shape (n_volumes,)
        ``measured``, the models in their order, and one-step ``copy_previous``; NaN where nothing was predicted.
    """
    made = {"measured": np.asarray(measured, np.float32)}
    for (model, of_kind), prediction in predictions.items():
        if of_kind == kind:
            made[model] = np.full(len(measured), np.nan, np.float32)
            made[model][prediction.volumes] = prediction.values[:, voxel]
    if kind == "one_step" and "copy_previous" not in made:
        made["copy_previous"] = np.r_[np.float32(np.nan), made["measured"][:-1]]
        made["copy_previous"][list(starts)] = np.nan
    return made


def voxel_r(row, prediction, n_voxels, *, shift=0):
    """Correlation over time of each voxel with its prediction, read a slab of voxels at a time.

    Parameters
    ----------
    row : callable
        Volume and slice of columns → measured values.
    prediction : Prediction
    n_voxels : int
    shift : int
        Volumes that the prediction is moved on by, round its end.

    Returns
    -------
    array of shape (n_voxels,)
        NaN where either is constant.
    """
    r = np.full(n_voxels, np.nan)
    for start in range(0, n_voxels, CHUNK_VOXELS):
        slab = slice(start, min(start + CHUNK_VOXELS, n_voxels))
        measured = np.stack([row(int(k), slab) for k in prediction.volumes])
        predicted = np.roll(np.asarray(prediction.values[:, slab]), shift, axis=0)
        r[slab] = scores.pearson_r(measured, predicted)
    return r


def null_shift(n_rows, t_r, *, block_length=None):
    """A circular shift of about half of a part that breaks the pairing.

    Of a film with blocks it ends half-way between two multiples of their length, where shifted blocks and blocks have
    nothing in common.

    Parameters
    ----------
    n_rows : int
        Volumes of the part.
    t_r : float
        Repetition time, in seconds.
    block_length : float, optional
        Of the film's blocks, in seconds.

    Returns
    -------
    int or None
        Volumes; None where no shift is admissible.

    Examples
    --------
    >>> null_shift(120, 1.0, block_length=30)
    45
    """
    shifts = significance.admissible_shifts(n_rows, t_r, longest_delay=0.0, block_length=block_length)
    if not len(shifts):
        return None
    if block_length:
        off = np.abs(shifts * t_r % block_length - block_length / 2)
        shifts = shifts[off < off.min() + t_r]
    return int(shifts[np.argmin(np.abs(shifts - n_rows / 2))])


def best_voxel(r):
    """Column of the largest correlation, and it; None where there is none."""
    if not np.isfinite(r).any():
        return None
    best = int(np.nanargmax(r))
    return best, float(r[best])


def random_voxel(r, *, seed=RANDOM_SEED):
    """A column drawn at random from those that have a correlation, and it; None where there is none."""
    found = np.flatnonzero(np.isfinite(r))
    if not len(found):
        return None
    drawn = int(np.random.default_rng(seed).choice(found))
    return drawn, float(r[drawn])


def film_blocks(files):
    """Music, speech and story of all runs on the run's clock: list of (start, end, what), s."""
    made = []
    for start, part in zip(files.starts, files.parts, strict=True):
        if part.events is None:
            continue
        events = part.events[part.events["trial_type"].astype(str).isin((*BLOCK_TYPES, *SPEECH_TYPES))]
        for event in events.itertuples():
            begin = float(start * files.t_r) + float(event.onset)
            made.append((begin, begin + float(event.duration), str(event.trial_type)))
    return made


def block_length(blocks):
    """Length of alternating blocks, s; None where they are not of at least two kinds."""
    if len({kind for *_, kind in blocks}) < 2:
        return None
    return float(np.median([end - start for start, end, _ in blocks]))


def stretches(volumes, times, t_r):
    """Where volumes lie on the clock: list of (start, end), s."""
    return [(float(times[p[0]]), float(times[p[-1]] + t_r)) for p in splits.stretches(np.asarray(volumes))]
