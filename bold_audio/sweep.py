"""Choose the delay inside train: every delay and ridge strength, by blocked folds, voxel by voxel.

Plain and exact: it forms every held-out prediction. A faster way must give these numbers.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bold_audio.encoding import fold_errors
from bold_audio.files import ParameterError
from bold_audio.pairing import leave_two_out

RESPONSIVE_SHARE = 0.03  # "the few per cent of voxels best predicted"
COARSE_STEP = 4  # every 4th strength when the responsive voxels are sought


@dataclass(frozen=True)
class DelaySweep:
    """What a sweep found.

    Parameters
    ----------
    table : DataFrame
        One row per region and delay: ``delay`` (s), ``region``, ``alpha`` (best strength at that
        delay), ``mse`` (scaled BOLD, held-out volumes of train), ``skill`` over the train mean
        (voxels weighted by their variance), ``fold_spread`` (standard error of the skill over folds).
    delay : float
        The chosen delay, in seconds.
    region : str
        The region whose skill chose it.
    responsive : array of bool, shape (n_voxels,)
        The voxels best predicted out of fold inside train, over all delays.
    """

    table: pd.DataFrame
    delay: float
    region: str
    responsive: np.ndarray

    @property
    def at_edge(self):
        """Whether the best delay is the first or the last one tried."""
        delays = self.table["delay"]
        return delays.nunique() > 1 and self.delay in (delays.min(), delays.max())


def sweep_delays(
    Y,
    designs,
    *,
    rows,
    folds,
    gap_volumes,
    alphas,
    regions,
    delay_region,
    target,
    value_range,
    chunk_voxels=8192,
):
    """Score every delay on the held-out blocks of train and choose one.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run.
    designs : dict of float to array of shape (n_volumes, n_features)
        Features at each delay, scaled on ``rows``.
    rows : array of int
        Train volumes.
    folds : list of (fit, held) arrays of int
        Blocked folds inside ``rows``.
    gap_volumes : int
        Gap on both sides of a held-out block, in volumes.
    alphas : sequence of float
        Ridge strengths.
    regions : dict of str to array of bool, shape (n_voxels,)
        Regions to give a curve of their own; ``responsive`` is added.
    delay_region : str
        The region that chooses: ``responsive``, ``brain`` (all voxels) or a name in ``regions``.
    target : {"volume", "difference"}
        What is predicted.
    value_range : (float, float)
        Scaling of BOLD for ``mse``.
    chunk_voxels : int
        Voxels per slab.

    Returns
    -------
    DelaySweep

    Raises
    ------
    ParameterError
        If ``delay_region`` is not a region of this run.

    Notes
    -----
    The responsive voxels that score held-out block f are found on the other blocks alone, by
    models that saw neither f nor its gaps (nested folds), so finding them flatters no delay.
    """
    alphas = np.asarray(alphas, dtype=float)
    variance = Y[rows].var(axis=0, dtype=np.float64)
    weight = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0.0)
    options = {"target": target, "chunk_voxels": chunk_voxels}
    whole = next(iter(regions))
    members = {name: [roi] * len(folds) for name, roi in regions.items()}
    if Y.shape[1] > 1 / RESPONSIVE_SHARE:
        members["responsive"] = _nested_responsive(Y, designs, folds, gap_volumes, alphas, options)
    # Each fold's error summed in each region, as (raw, weighted by 1 / variance).
    sums = {name: np.zeros((2, len(designs), len(folds), len(alphas) + 1)) for name in members}
    best_error = np.full(Y.shape[1], np.inf)
    for d, X in enumerate(designs.values()):
        total = 0.0
        for f, (fit, held) in enumerate(folds):
            error = fold_errors(Y, fit=fit, helds=(held,), ridge=X, alphas=[*alphas, np.inf], **options)[0]
            total = total + error
            for name, rois in members.items():
                inside = error[:, rois[f]].astype(np.float64)
                sums[name][0, d, f] = inside.sum(axis=1)
                sums[name][1, d, f] = inside @ weight[rois[f]]
        best_error = np.minimum(best_error, total.min(axis=0))
        null_error = total[-1]
    responsive = _best_share(1 - _divide(best_error, null_error))
    n_held = sum(len(held) for _, held in folds)
    scale = (value_range[1] - value_range[0]) ** 2
    table = pd.concat(
        _curve(name, list(designs), alphas, *sums[name], n_held * np.mean([roi.sum() for roi in members[name]]) * scale)
        for name in members
    )
    if delay_region not in (*members, "brain", "volume", "responsive"):
        raise ParameterError(
            f"delay_region must be responsive, brain or one of {', '.join(regions)}, got {delay_region!r}"
        )
    # Six regions in place of voxels have no "few per cent": the whole chooses then.
    region = delay_region if delay_region in members else whole
    curve = table[table["region"] == region]
    delay = float(curve["delay"].iloc[int(np.nanargmax(curve["skill"]))])
    return DelaySweep(table.reset_index(drop=True), delay, region, responsive)


def _nested_responsive(Y, designs, folds, gap_volumes, alphas, options):
    """Responsive voxels for each held-out block, found without it."""
    coarse = [*alphas[np.isfinite(alphas)][::COARSE_STEP], np.inf]
    pairs = leave_two_out(folds, gap_volumes)
    best = np.full((len(folds), Y.shape[1]), np.inf, dtype=np.float32)
    null = np.zeros_like(best)
    for d, X in enumerate(designs.values()):
        total = np.zeros((len(folds), len(coarse), Y.shape[1]), dtype=np.float32)
        for (f, g), fit in pairs.items():
            errors = fold_errors(Y, fit=fit, helds=(folds[f][1], folds[g][1]), ridge=X, alphas=coarse, **options)
            total[f] += errors[1]
            total[g] += errors[0]
        best = np.minimum(best, total.min(axis=1))
        if d == 0:
            null = total[:, -1]
    return [_best_share(1 - _divide(best[f], null[f])) for f in range(len(folds))]


def _divide(error, reference):
    return np.where(reference > 0, error / np.where(reference > 0, reference, 1), 1.0)


def _best_share(score):
    """The few per cent of voxels with the highest score; at least one."""
    n_best = max(1, int(round(RESPONSIVE_SHARE * len(score))))
    roi = np.zeros(len(score), bool)
    roi[np.argsort(-score, kind="stable")[:n_best]] = True
    return roi


def _curve(name, delays, alphas, raw, weighted, n_values):
    """One region's curve over delays, each with its own best strength."""
    total = weighted[:, :, :-1].sum(axis=1)
    best = np.argmin(total, axis=1)
    index = np.arange(len(delays))
    null = weighted[:, :, -1]
    per_fold = 1 - _divide(weighted[index, :, best], null)
    return pd.DataFrame(
        {
            "delay": delays,
            "region": name,
            "alpha": alphas[best],
            "mse": raw[index, :, best].sum(axis=1) / n_values,
            "skill": 1 - _divide(weighted[index, :, best].sum(axis=1), null.sum(axis=1)),
            "fold_spread": per_fold.std(axis=1, ddof=1) / np.sqrt(per_fold.shape[1]),
        }
    )
