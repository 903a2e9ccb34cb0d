"""Would more data help? Skill on the same held-out volumes, of models fitted on more and more of the others.

In every outer fold the volumes nearest to the held-out block are used first, so what is fitted on always ends next to
the gap, on both sides where there are two. Everything is chosen anew inside them. The held-out blocks are those of
the whole run, each volume once, never the test part alone.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from bold_audio import encoding, horizon, models, nested, out_of_fold, scores, splits, sweep
from bold_audio.files import ParameterError

SHARES = (0.25, 0.5, 0.75, 1.0)
NAMES = ("constant", "sound", "history", "history_sound")


def nearest_volumes(fit, held, n):
    """The ``n`` volumes of ``fit`` that are nearest to a held-out block, in order.

    Examples
    --------
    >>> nearest_volumes(np.r_[0:6, 14:20], np.arange(8, 12), 6)
    array([ 3,  4,  5, 14, 15, 16])
    """
    away = np.where(fit < held[0], held[0] - fit, fit - held[-1])
    return np.sort(fit[np.argsort(away, kind="stable")[:n]])


def learning_curve(folds, sound, delays, *, alphas, max_order, n_folds, gap_volumes):
    """Score ``sound`` and ``history_sound`` fitted on `SHARES` of each fold's volumes.

    Parameters
    ----------
    folds : list of nested.RegionFold
    sound : design with ``at(delay)``
    delays : sequence of float
        Delays to choose from, in seconds.
    alphas : sequence of float
    max_order : int
    n_folds, gap_volumes : int
        Inner folds, as for `splits.blocked_folds`.

    Returns
    -------
    DataFrame
        ``share``, ``n_fit`` (volumes, mean over folds), ``skill`` of the sound over the mean of the same volumes,
        ``fold_spread``, ``rise_spread`` (standard error over folds of its rise from the share done before), ``gain`` of
        the sound over own history, ``gain_spread``, ``delay_low``, ``delay_high`` (s, over folds), ``n_volumes``,
        ``n_voxels``, ``n_region``, ``n_folds``, ``note`` (why a share was not done).
    """
    heard = sweep.DelayedSound(np.asarray(delays, dtype=float), np.stack([sound.at(delay) for delay in delays]))
    counts, lines, before = nested.counts(folds), [], np.full(len(folds), np.nan)
    for share in SHARES:
        used = [nearest_volumes(fold.fit, fold.held, int(round(share * len(fold.fit)))) for fold in folds]
        line = {"share": share, "n_fit": float(np.mean([len(rows) for rows in used]))}
        try:
            inner = [splits.blocked_folds(rows, n_folds=n_folds, gap_volumes=gap_volumes) for rows in used]
        except ParameterError as error:
            lines.append(line | counts | {"note": f"not done: {str(error).split(' - ')[0]}"})
            continue
        known = [
            _one_fold(replace(fold, fit=rows, inner=folds_inside), sound, heard, alphas, max_order)
            for fold, rows, folds_inside in zip(folds, used, inner, strict=True)
        ]
        skills = np.array([scores.skill(one["sound"], one["constant"]) for one in known])
        lines.append(line | _line(known, skills - before) | counts | {"note": ""})
        before = skills
    return pd.DataFrame(lines)


def _one_fold(fold, sound, heard, alphas, max_order):
    found = nested.choose_delay(fold.smooth, heard, rows=fold.fit, order=max_order, alphas=alphas)
    fold = replace(fold, delay=found.delay, follows=found.follows)
    fitted = horizon.fit_region(fold, sound, alphas=alphas, max_order=max_order, names=NAMES)
    rows, errors = models.linear_rows(fitted), {}
    for name, row in rows.items():
        made = encoding.predict(row.phi, row.drive(fold.held), fold.Y, fold.held)
        errors[name] = nested.squared_error(fold, made)
    return errors | {"delay": found.delay}


def _line(known, rise):
    column = {name: np.array([one[name] for one in known]) for name in (*NAMES, "delay")}
    skill, spread = out_of_fold.skill_and_spread(column["sound"], column["constant"])
    gain, gain_spread = out_of_fold.skill_and_spread(column["history_sound"], column["history"])
    made = {"skill": skill, "fold_spread": spread, "rise_spread": np.std(rise, ddof=1) / np.sqrt(len(rise))}
    return (
        made
        | {"gain": gain, "gain_spread": gain_spread}
        | {
            "delay_low": column["delay"].min(),
            "delay_high": column["delay"].max(),
        }
    )
