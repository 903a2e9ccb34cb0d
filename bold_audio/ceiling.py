"""How well the other people's scans predict a person's: the ceiling of any model of what all of them heard.

One run per person says nothing of the noise in it; what people who heard the same sound have in common does. Each
person's time course is correlated with the mean of the others' [1]_. With few people that mean is noisy itself, so the
ceiling is too low rather than too high; and it holds all that the film does to everybody, not the sound alone.

.. [1] Nastase, Gazzola, Hasson & Keysers (2019). Measuring shared responses across subjects using intersubject
   correlation. Social Cognitive and Affective Neuroscience 14(6), 667-685, doi 10.1093/scan/nsz037.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bold_audio import bids, contrast, prepare, runs
from bold_audio.confounds import DRIFT_PERIOD
from bold_audio.files import BoldAudioError, DataError
from bold_audio.params import load_params
from bold_audio.scores import pearson_r
from bold_audio.splits import MIN_PART
from bold_audio.whitening import high_pass

SAME_CLOCK = 0.05  # of a repetition time that two people's clocks may differ by


@dataclass(frozen=True)
class People:
    """Time courses of the people who can be compared.

    Parameters
    ----------
    courses : dict of str to array of shape (n_volumes, n_columns)
        By subject label: the mean of each region.
    names : tuple of str
        What the columns are.
    rows : array of int
        Volumes that all of them have kept.
    left_out : dict of str to str
        By subject label: why a person is not among them.
    t_r : float
        Repetition time, in seconds.
    """

    courses: dict
    names: tuple
    rows: np.ndarray
    left_out: dict
    t_r: float


def leave_one_out(courses, *, rows=None):
    """Correlate each person with the mean of all others, column by column.

    Parameters
    ----------
    courses : dict of str to array of shape (n_volumes, n_columns)
        By person. Each column is one region; NaN throughout where a person does not have it.
    rows : array of int, optional
        Volumes that are compared; all without it.

    Returns
    -------
    array of shape (n_people, n_columns)
        NaN where a person, or everybody else, lacks the column or does not vary.

    Raises
    ------
    DataError
        If there are fewer than two people, or their runs differ in length.

    Notes
    -----
    Everybody is z-scored over ``rows`` first, so that a scanner's gain gives nobody more weight. A person's own scan
    is in no mean that it is compared with.

    Examples
    --------
    >>> wave = np.array([[0.0], [1.0], [0.0], [2.0]])
    >>> leave_one_out({"01": wave, "02": 5 * wave, "03": 3 - wave}).round(2).T
    array([[nan, nan, -1.]])
    """
    _refuse_fewer_than_two(courses)
    shapes = {label: np.shape(one) for label, one in courses.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"people's time courses differ in shape: {shapes} - leave out those of another length")
    rows = slice(None) if rows is None else rows
    total, counts = 0.0, 0
    for one in courses.values():
        z = _standardised(one[rows])
        known = np.isfinite(z).all(axis=0)
        total, counts = total + np.where(known, z, 0), counts + known
    made = []
    for one in courses.values():
        z = _standardised(one[rows])
        known = np.isfinite(z).all(axis=0)
        others = total - np.where(known, z, 0)
        # What people who are each other's opposite leave of a mean is rounding, not a time course.
        there = known & (counts - known > 0) & (others.std(axis=0) > 1e-9)
        made.append(np.where(there, pearson_r(np.where(known, z, 0), others), np.nan))
    return np.array(made)


def _refuse_fewer_than_two(courses):
    if len(courses) < 2:
        raise DataError(f"it takes at least two people who heard the same, got {len(courses)} - run more subjects")


def _standardised(course):
    """Each column with mean 0 and standard deviation 1, float64; NaN where it does not vary."""
    course = np.asarray(course, dtype=np.float64)
    spread = course.std(axis=0)
    spread = np.where(spread > 1e-7 * np.abs(course).max(axis=0), spread, np.nan)
    return (course - course.mean(axis=0)) / spread


def fisher_mean(r):
    """Mean of correlations over the first axis by Fisher's z; NaN is left out.

    Examples
    --------
    >>> float(fisher_mean(np.array([0.0, 0.8, np.nan])).round(3))
    0.5
    """
    z = np.arctanh(np.clip(r, -0.999999, 0.999999))
    known = np.isfinite(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.tanh(np.where(known, z, 0).sum(axis=0) / known.sum(axis=0))


def intersubject_ceiling(people, *, of=None, rows=None, period=DRIFT_PERIOD, n_chance=200):
    """Ceiling of every region.

    Parameters
    ----------
    people : People
    of : str, optional
        Label of the person whose own r is asked for beside everybody's: the ceiling of that person's models.
    rows : array of int, optional
        Volumes of ``people.rows`` that are compared, such as test, where a model's r is known; all without it.
    period : float, optional
        Drift slower than this many seconds is taken off everybody first, see `whitening.high_pass`: slow drifts look
        alike, or opposite, by chance, and region means are full of them. None leaves it in. A model's r is comparable
        where it was made alike: `region_r`.
    n_chance : int
        How often the ceiling of people who are each shifted in time by a random part of the run is taken.

    Returns
    -------
    DataFrame
        One row per region: ``region``, ``ceiling`` (Fisher mean over people), ``low`` and ``high`` (the lowest and the
        highest person's r), ``chance`` (what 95 % of shifted people stay below), ``n_people``, ``n_volumes``; with
        ``of`` also ``own`` (that person's r) and ``own_chance`` (what it stays below in 95 % of the shifts).

    Raises
    ------
    DataError
        If there are fewer than two people, or fewer volumes than a part of the split may hold are shared by all of
        them, such as where somebody's sound ends before them.
    """
    _refuse_fewer_than_two(people.courses)
    rows = people.rows if rows is None else np.intersect1d(rows, people.rows)
    if len(rows) < MIN_PART:
        raise DataError(
            f"people share {len(rows) or 'no'} volume{'' if len(rows) < 2 else 's'} of those that are compared, "
            f"at least {MIN_PART} are needed - leave out whose sound or run is short"
        )
    courses = {label: _cleaned(one, rows, people.t_r, period) for label, one in people.courses.items()}
    r = leave_one_out(courses)
    rng, away = np.random.default_rng(0), len(rows) // 10
    shifted = [
        leave_one_out({label: np.roll(one, k, axis=0) for (label, one), k in zip(courses.items(), by, strict=True)})
        for by in rng.integers(away, len(rows) - away, (n_chance, len(courses)))
    ]
    made = pd.DataFrame(
        {
            "region": list(people.names),
            "ceiling": fisher_mean(r),
            "low": np.fmin.reduce(r),
            "high": np.fmax.reduce(r),
            "chance": np.quantile([fisher_mean(one) for one in shifted], 0.95, axis=0) if n_chance else np.nan,
            "n_people": np.isfinite(r).sum(axis=0),
            "n_volumes": len(rows),
        }
    )
    if of is None:
        return made
    at = list(courses).index(of)
    chance = np.quantile([one[at] for one in shifted], 0.95, axis=0) if n_chance else np.nan
    return made.assign(own=r[at], own_chance=chance)


def _cleaned(courses, rows, t_r, period):
    """Rows of time courses, without drift where a period is given; a constant stays one, so that it has no r."""
    if period is None:
        return np.asarray(courses[rows], dtype=np.float64)
    left = high_pass(courses, rows=rows, t_r=t_r, period=period)
    varies = np.ptp(courses[rows], axis=0) > 0  # what filtering leaves of a constant is rounding
    return np.where(varies, left, np.nan)


def share_of_ceiling(scores, ceiling):
    """Set the r of a person's model beside what the others' scans predict of that person.

    Parameters
    ----------
    scores : DataFrame
        ``region`` and ``r`` of a model: of the region's mean time course, on the volumes of the ceiling.
    ceiling : DataFrame
        From `intersubject_ceiling`, ``of`` the person.

    Returns
    -------
    DataFrame
        ``region``, ``r``, ``share`` (r / own; NaN where the person's own r is not above chance, because then nothing
        in common is shown that a model could reach), and all columns of ``ceiling``.

    Examples
    --------
    >>> scores = pd.DataFrame({"region": ["LPTL"], "r": [0.1]})
    >>> known = pd.DataFrame({"region": ["LPTL", "LIFG"], "ceiling": [0.4, 0.0], "own": [0.2, 0.0], "own_chance": 0.1})
    >>> share_of_ceiling(scores, known)
      region    r  share  ceiling  own  own_chance
    0   LPTL  0.1    0.5      0.4  0.2         0.1
    """
    both = scores[["region", "r"]].merge(ceiling, on="region")
    both.insert(2, "share", both["r"] / both["own"].where(both["own"] > both["own_chance"].clip(lower=0)))
    return both


def region_r(measured, predicted, regions, *, t_r, period=DRIFT_PERIOD):
    """Pearson r of each region's mean time course with the mean of its predictions: what a ceiling is comparable with.

    Parameters
    ----------
    measured, predicted : arrays of shape (n_rows, n_voxels)
        Consecutive volumes.
    regions : dict of str to array of bool, shape (n_voxels,)
    t_r : float
        Repetition time, in seconds.
    period : float, optional
        As for `intersubject_ceiling`; drift is taken off both.

    Returns
    -------
    DataFrame
        ``region`` and ``r``.
    """
    rows = np.arange(len(measured))
    both = (_cleaned(contrast.region_courses(one, regions), rows, t_r, period) for one in (measured, predicted))
    return pd.DataFrame({"region": list(regions), "r": pearson_r(*both)})


def read_people(params, *, labels=None):
    """Read the people of a dataset whose scans are there and have the clock of ``params.subject``'s.

    Parameters
    ----------
    params : Params
        Of one subject; the others' are those of their files, and what was passed for this one.
    labels : sequence of str, optional
        Whom to read; without it, `bids.compared_subjects`.

    Returns
    -------
    People
        Nobody is fetched: people whose scan is not there are left out, by name and reason.
    """
    reference = runs.locate_runs(params)
    labels = dict.fromkeys([params.subject, *(bids.compared_subjects(params) if labels is None else labels)])
    people, kept, left_out, owner = {}, [], {}, {}
    for label in labels:
        try:
            theirs = params_of(params, label)
            other_clock = clock_difference(reference, runs.locate_runs(theirs))
            if other_clock:
                left_out[label] = other_clock
                continue
            one = prepare.open_subject(theirs)
            scans = prepare.scans_in(one.input_md5)
        except BoldAudioError as error:
            left_out[label] = str(error)
            continue
        if known := scans & owner.keys():  # a person who predicts the own scan is no ceiling
            left_out[label] = f"its scan is that of sub-{owner[min(known)]}"
            continue
        owner |= dict.fromkeys(scans, label)
        kept.append(set(map(int, one.whole_run)))
        people[label] = _course_table(one)
    rows = np.array(sorted(set.intersection(*kept)) if kept else [], int)
    names = tuple(dict.fromkeys(name for table in people.values() for name in table))
    courses = {label: np.ascontiguousarray(table.reindex(columns=names)) for label, table in people.items()}
    return People(courses, names, rows, left_out, reference.t_r)


def _course_table(subject):
    """Mean time courses by region: DataFrame; all that is kept of a person, whose scan may be gigabytes."""
    regions = subject.run.regions
    return pd.DataFrame(contrast.region_courses(subject.Y, regions), columns=list(regions))


def params_of(params, label):
    """Another person's parameters: those of the files, and over them what the caller passed for this one."""
    in_files = load_params(params.subject, params.dataset, data_dir=params.data_dir).model_dump()
    passed = {name: value for name, value in params.model_dump().items() if value != in_files[name]}
    return load_params(label, params.dataset, **({"data_dir": params.data_dir} | passed))


def clock_difference(reference, other):
    """In what two people's runs differ so that volume k is not the same moment of the film; empty where in nothing.

    Parameters
    ----------
    reference, other : runs.RunFiles or runs.SeveralRuns

    Returns
    -------
    str
    """
    if other.n_volumes != reference.n_volumes:
        return f"{other.n_volumes} volumes in place of {reference.n_volumes}"
    if abs(other.t_r - reference.t_r) * reference.n_volumes > SAME_CLOCK * reference.t_r:
        return f"a repetition time of {other.t_r:g} s in place of {reference.t_r:g} s"
    apart = np.abs(np.asarray(other.sound_times) - np.asarray(reference.sound_times)).max()
    if apart > SAME_CLOCK * reference.t_r:
        return f"the sound begins {apart:g} s apart (onset {other.onset:g} s in place of {reference.onset:g} s)"
    return ""
