"""Train | gap | test, by time and never shuffled: the parts of a run or of several, and blocked folds inside train."""

from dataclasses import dataclass

import numpy as np

from bold_audio.files import ParameterError

MIN_PART = 8  # fewest volumes that a part of the split may hold


@dataclass(frozen=True)
class Split:
    """Parts of a run or of several, as increasing indices of volumes, each contiguous within a run."""

    train: np.ndarray
    gap: np.ndarray
    test: np.ndarray


def split_volumes(n_volumes, t_r, *, skip_initial, train_fraction, gap, usable=None):
    """Split a run by time into ``train | gap | test``.

    Parameters
    ----------
    n_volumes : int
        Length of the run.
    t_r : float
        Repetition time, in seconds.
    skip_initial : float
        Volumes that start before this many seconds are left out.
    train_fraction : float
        Train ends after this share of all the run's volumes.
    gap : float
        Time between the end of train and the start of test, in seconds.
    usable : array of bool, shape (n_volumes,), optional
        Volumes that can be used at all (the sound covers them at every delay).

    Raises
    ------
    ParameterError
        If a part holds fewer than 8 volumes, or a volume between the first and the last
        usable one is not usable.

    Examples
    --------
    >>> split = split_volumes(641, 0.608, skip_initial=10, train_fraction=0.7, gap=16)
    >>> [(int(part[0]), int(part[-1])) for part in (split.train, split.gap, split.test)]
    [(17, 447), (448, 474), (475, 640)]
    """
    kept = kept_volumes(n_volumes, t_r, skip_initial=skip_initial, usable=usable)
    end_train = int(np.floor(np.round(train_fraction * n_volumes, 6)))  # .7 of 90 are 63, not 62.99…
    start_test = end_train + volumes_of(gap, t_r)
    parts = Split(kept[kept < end_train], kept[(kept >= end_train) & (kept < start_test)], kept[kept >= start_test])
    for name in ("train", "test"):
        if len(getattr(parts, name)) < MIN_PART:
            raise ParameterError(
                f"{len(getattr(parts, name))} of {n_volumes} volumes of {t_r:g} s are left for {name} "
                f"(skip_initial {skip_initial:g} s, train_fraction {train_fraction:g}, gap {gap:g} s, "
                f"{n_volumes - len(kept)} volumes without sound or skipped) - at least {MIN_PART} are needed"
            )
    return parts


def split_runs(lengths, t_r, *, skip_initial, train_fraction, gap, usable, n_before, by="time"):
    """Split one or several runs, their volumes counted one after the other.

    Parameters
    ----------
    lengths : sequence of int
        Volumes of each run.
    t_r, skip_initial, train_fraction, gap
        As for `split_volumes`.
    usable : array of bool, shape (n_volumes,)
        Volumes that the sound covers at every delay.
    n_before : int
        Previous volumes of the same run, with sound, that every volume used must have: no delay and no lag crosses a
        run's border.
    by : {"time", "run"}
        ``time``: every run has a train and a test part. ``run``: the last run is the test part, the others train. As
        nothing is fitted on the last run, its level is known from what was measured before its test part, which begins
        no earlier than ``gap`` seconds after ``skip_initial``.

    Returns
    -------
    Split

    Raises
    ------
    ParameterError
        As `split_volumes`, and if there is one run to split by runs.
    """
    if by == "run" and len(lengths) < 2:
        raise ParameterError("split_by run needs several runs - set run to a list or all, or split_by time")
    parts, start = [], 0
    for k, length in enumerate(lengths):
        mine = usable[start : start + length].copy()
        mine[: int(np.argmax(mine)) + n_before] = False
        if by == "time":
            split = split_volumes(
                length, t_r, skip_initial=skip_initial, train_fraction=train_fraction, gap=gap, usable=mine
            )
        else:
            kept, none = kept_volumes(length, t_r, skip_initial=skip_initial, usable=mine), np.zeros(0, int)
            last = k == len(lengths) - 1
            before = kept < volumes_of(skip_initial, t_r) + volumes_of(gap, t_r) if last else np.zeros(len(kept), bool)
            part = kept[~before]
            if len(part) < MIN_PART:
                raise ParameterError(f"{len(part)} volumes of run {k + 1} can be used - at least {MIN_PART} are needed")
            split = Split(none, kept[before], part) if last else Split(part, none, none)
        parts.append([part + start for part in (split.train, split.gap, split.test)])
        start += length
    return Split(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def stretches(volumes):
    """Cut increasing volumes where one is missing: list of arrays of int.

    Examples
    --------
    >>> stretches(np.array([3, 4, 5, 9, 10]))
    [array([3, 4, 5]), array([ 9, 10])]
    """
    return np.split(volumes, np.flatnonzero(np.diff(volumes) != 1) + 1)


def kept_volumes(n_volumes, t_r, *, skip_initial, usable=None):
    """Volumes of a run that are used at all, without a break between them.

    Parameters as for `split_volumes`.

    Returns
    -------
    array of int

    Raises
    ------
    ParameterError
        If the usable volumes do not follow each other.
    """
    volumes = np.arange(n_volumes)
    # Rounded before ceiling, so that 16 s is exactly 8 volumes of 2 s.
    keep = volumes >= volumes_of(skip_initial, t_r)
    if usable is not None:
        keep &= usable
    kept = volumes[keep]
    if len(kept) and len(kept) != kept[-1] - kept[0] + 1:
        raise ParameterError("usable volumes are not contiguous - check the sound's coverage of the run")
    return kept


def volumes_of(seconds, t_r):
    """Smallest number of volumes that lasts at least ``seconds``.

    Examples
    --------
    >>> volumes_of(16, 2.0), volumes_of(16, 0.608)
    (8, 27)
    """
    return int(np.ceil(np.round(seconds / t_r, 6)))


def blocked_folds(rows, *, n_folds, gap_volumes):
    """Held-out blocks, each of rows that follow one another, with a gap on both sides.

    Parameters
    ----------
    rows : array of int
        Increasing volumes, the train part or a part of it. Of several runs, a block may be the end of one run and the
        beginning of the next: nothing within the gap of either is fitted on.
    n_folds : int
        Number of blocks.
    gap_volumes : int
        Volumes left out on either side of a held-out block.

    Returns
    -------
    list of (fit, held) arrays of int

    Raises
    ------
    ParameterError
        If there are fewer rows than folds, or gaps leave too few volumes to fit on.

    Examples
    --------
    >>> fit, held = blocked_folds(np.arange(18), n_folds=3, gap_volumes=2)[1]
    >>> fit, held
    (array([ 0,  1,  2,  3, 14, 15, 16, 17]), array([ 6,  7,  8,  9, 10, 11]))
    """
    folds = []
    for held in np.array_split(rows, n_folds):
        if len(held) == 0:
            raise ParameterError(f"{len(rows)} volumes cannot be cut into {n_folds} folds - use fewer n_folds")
        fit = rows[(rows < held[0] - gap_volumes) | (rows > held[-1] + gap_volumes)]
        if len(fit) < MIN_PART:
            raise ParameterError(
                f"{len(fit)} volumes are left to fit on beside a held-out block of {len(held)} and gaps of "
                f"{gap_volumes} volumes - shorten gap, or change n_folds {n_folds}"
            )
        folds.append((fit, held))
    return folds
