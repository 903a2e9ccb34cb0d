"""What holds over people: means with intervals, sign flips with the maximum over regions, age and language dominance.

Everything takes arrays of shape (n_people, n_regions) with NaN where a person lacks a region, or a table of people. The
intervals are Student's t: people are few, and the percentiles of a bootstrap of few values are too narrow (of five, a
95 % interval holds the mean in about 85 of 100 studies). The p values are those of sign flips, which ask only that a
person's value is as likely below 0 as above it where nothing is there.
"""

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
ALL_FLIPS = 12  # people: up to here every one of the 2^n flips is made
SMALLEST_P = 1e-9  # of a voxel: no number of surrogates says more
N_FLIPS = 10_000
MOST_MOTION = 0.5  # mm of mean framewise displacement above which a person is left out once
FEWEST_FOR_AGE = 4  # people that an interval of a correlation takes
BLOCK = 256  # flips made at a time
CHUNK = 2048  # columns tested at a time
HUGE = 1e12  # t of values that do not vary


def t_interval(values):
    """Mean of each column and Student's 95 % confidence interval of it.

    Parameters
    ----------
    values : array of shape (n_people, n_columns)
        NaN where a person has no value.

    Returns
    -------
    mean, low, high : arrays of shape (n_columns,)
        The interval is NaN where fewer than two people have a value.

    Examples
    --------
    >>> [part.round(2).tolist() for part in t_interval(np.array([[1.0], [2.0], [3.0], [np.nan]]))]
    [[2.0], [-0.48], [4.48]]
    """
    n, mean, error = _moments(np.asarray(values, dtype=np.float64))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(n - 1, 1)) * error
    return mean, mean - half, mean + half


def _moments(values):
    """Number, mean and standard error of each column; NaN where there are too few."""
    known = np.isfinite(values)
    n, filled = known.sum(axis=0), np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=0) / n
        squares = (np.where(known, values - mean, 0.0) ** 2).sum(axis=0)
        error = np.sqrt(squares / np.where(n > 1, n - 1, np.nan) / n)
    return n, mean, error


def flips(n_people, *, n_flips=N_FLIPS, seed=0):
    """Signs of everybody, block by block: all 2^n flips of at most `ALL_FLIPS` people, else random ones.

    Parameters
    ----------
    n_people : int
    n_flips : int
        How many random ones, the first of which leaves everybody as they are.
    seed : int

    Yields
    ------
    array of shape (n_block, n_people)
        −1 and 1; the first row of the first block is all 1.

    Examples
    --------
    >>> next(flips(2)).tolist()
    [[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]
    """
    every = n_people <= ALL_FLIPS
    total, rng = 2**n_people if every else n_flips, np.random.default_rng(seed)
    for start in range(0, total, BLOCK):
        rows = np.arange(start, min(start + BLOCK, total))
        if every:
            signs = 1.0 - 2.0 * (rows[:, None] >> np.arange(n_people) & 1)
        else:
            signs = rng.choice([-1.0, 1.0], size=(len(rows), n_people))
            signs[rows == 0] = 1.0
        yield signs


def normal_scores(p):
    """p values as standard normal numbers, large where p is small: about 0 where nothing is there, as flips ask.

    Examples
    --------
    >>> normal_scores([0.5, 0.025, 0.975, 0.0]).round(2).tolist()
    [0.0, 1.96, -1.96, 6.0]
    """
    return stats.norm.isf(np.clip(p, SMALLEST_P, 1 - SMALLEST_P))


def flip_test(values, *, n_flips=N_FLIPS, seed=0):
    """Ask of each column whether its mean is above 0: one-sided p by sign flips, alone and for the largest of all.

    Parameters
    ----------
    values : array of shape (n_people, n_columns)
        NaN where a person has no value. A column with fewer than two people gets no p and is in no maximum. Read
        `CHUNK` columns at a time, so it may be memory-mapped.
    n_flips : int
        Random flips where more than `ALL_FLIPS` people make all of them too many.
    seed : int

    Returns
    -------
    DataFrame
        One row per column: ``n_people``, ``mean``, ``t``, ``p``, ``p_fwe`` (of t among the largest t of all columns in
        each flip: the family-wise error rate is held whatever the columns share), ``smallest_p`` (that so many flips
        can give).

    Notes
    -----
    A person is flipped as a whole, all columns at once [1]_. The observed signs count as one of the flips, so that
    no p is 0. For up to `ALL_FLIPS` people all flips are made: the exact p of ``scipy.stats.permutation_test``. The
    random flips of more people are added up in float32, which takes half the time; a flip whose t is as good as the
    observed one counts against it.

    References
    ----------
    .. [1] Nichols & Holmes (2002). Nonparametric permutation tests for functional neuroimaging. Human Brain Mapping
       15(1), 1-25.

    Examples
    --------
    >>> flip_test(np.array([[1.0, -1.0], [2.0, 3.0], [3.0, -2.0]]))[["p", "p_fwe"]].values.tolist()
    [[0.125, 0.25], [0.625, 0.875]]
    """
    maxima, parts, dtype = -np.inf, [], np.float64 if len(values) <= ALL_FLIPS else np.float32
    for start in range(0, max(1, np.shape(values)[1]), CHUNK):
        some = np.asarray(values[:, start : start + CHUNK], dtype=np.float64)
        n, mean, _ = _moments(some)
        tested, filled = n >= 2, np.nan_to_num(some[:, n >= 2])
        squares, count = (filled**2).sum(axis=0), n[tested]
        t = _t(filled.sum(axis=0), squares, count)
        above, largest, added = np.zeros(len(t)), [], filled.astype(dtype)
        for k, signs in enumerate(flips(len(some), n_flips=n_flips, seed=seed)):
            flipped = _t(signs.astype(dtype) @ added, squares, count)
            if k == 0:
                flipped[0] = t  # the observed signs, whatever rounding makes of them
            above += (flipped >= _least(t, dtype)).sum(axis=0)
            largest.append(flipped.max(axis=1, initial=-np.inf))
        maxima = np.maximum(maxima, np.concatenate(largest))
        found = pd.DataFrame({"n_people": n, "mean": mean} | dict.fromkeys(["t", "p", "p_fwe", "smallest_p"], np.nan))
        found.loc[tested, ["t", "p"]] = np.c_[t, above / len(maxima)]
        found.loc[tested, "smallest_p"] = np.maximum(1 / len(maxima), 0.5**count)
        parts.append(found)
    found = pd.concat(parts, ignore_index=True)
    tested = found["t"].notna()
    below = np.searchsorted(np.sort(maxima), _least(found.loc[tested, "t"].to_numpy(), dtype))
    found.loc[tested, "p_fwe"] = 1 - below / len(maxima)
    return found


def _least(t, dtype):
    """What counts as t at least: equal sums come out a few last digits apart in another order of adding."""
    return t - (1e-9 if dtype is np.float64 else 1e-4) * np.maximum(1, np.abs(t))


def _t(sums, squares, n):
    """Student's t of sums of flipped values, whose squares no flip changes; `HUGE` where nothing varies around it."""
    mean = sums / n
    spread = squares / n - mean**2
    spread = np.where(spread > 1e-12 * squares / n, spread, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = mean / np.sqrt(spread / (n - 1))
    return np.clip(np.nan_to_num(t, nan=0.0, posinf=HUGE, neginf=-HUGE), -HUGE, HUGE)


def wide(table, value):
    """One quantity of a table of people and regions as an array with a row per person: DataFrame."""
    regions = list(dict.fromkeys(table["region"]))
    return table.pivot(index="subject", columns="region", values=value).reindex(columns=regions)


def region_table(table, value, *, seed=0):
    """One quantity over people, region by region.

    Parameters
    ----------
    table : DataFrame
        ``subject``, ``region`` and the column ``value``: one row per person and region.
    value : str
    seed : int
        As for `flip_test`.

    Returns
    -------
    DataFrame
        ``region``, ``n_people``, ``mean``, ``low``, ``high`` (95 % interval, t), ``n_above`` (people above 0), ``t``,
        ``p`` (one-sided), ``p_fwe`` (over the regions of the table), ``smallest_p``. Regions that nobody has a value of
        are left out.
    """
    values = wide(table, value).dropna(axis="columns", how="all")
    found = flip_test(values.to_numpy(float), seed=seed)
    _, low, high = t_interval(values.to_numpy(float))
    found.insert(0, "region", list(values.columns))
    for place, (name, column) in enumerate(
        {"low": low, "high": high, "n_above": (values > 0).sum().to_numpy()}.items()
    ):
        found.insert(3 + place, name, column)
    return found


def delay_table(table):
    """Delay over the people in whom it is identifiable, region by region.

    Parameters
    ----------
    table : DataFrame
        ``subject``, ``region``, ``delay`` (s) and ``identifiable``.

    Returns
    -------
    DataFrame
        ``region``, ``n_people``, ``n_identifiable``, ``delay``, ``low``, ``high``: mean and its 95 % interval (t), s.
    """
    asked = table[table["delay"].notna()]
    sure = asked.assign(delay=asked["delay"].where(asked["identifiable"].astype(bool)))
    values = wide(sure, "delay")
    mean, low, high = t_interval(values.to_numpy(float))
    n_people = asked.groupby("region")["subject"].nunique().reindex(values.columns).to_numpy()
    counts = {"n_people": n_people, "n_identifiable": values.notna().sum().to_numpy()}
    return pd.DataFrame({"region": list(values.columns)} | counts | {"delay": mean, "low": low, "high": high})


def still_people(people, *, limit=MOST_MOTION):
    """Who moved little: bool array, one for each row of ``people``; who has no estimate of motion is kept.

    Parameters
    ----------
    people : DataFrame
        ``mean_fd``: mean framewise displacement, mm.
    limit : float
        mm.
    """
    return ~(people["mean_fd"].to_numpy(float) > limit)


def age_table(table, value, people):
    """Pearson correlation of a quantity with age over people, region by region, with Fisher's 95 % interval.

    Parameters
    ----------
    table : DataFrame
        As for `region_table`.
    value : str
    people : DataFrame
        ``subject`` and ``age`` (years; NaN where not known).

    Returns
    -------
    DataFrame
        ``region``, ``n_people``, ``r``, ``low``, ``high``, ``p`` (two-sided, not corrected for the number of regions).
        No row where fewer than four people have an age and a value, or where either does not vary.
    """
    values = wide(table, value)
    age = people.set_index("subject")["age"].reindex(values.index).to_numpy(float)
    rows = []
    for region in values:
        y = values[region].to_numpy(float)
        known = np.isfinite(y) & np.isfinite(age)
        if known.sum() < FEWEST_FOR_AGE or not (np.ptp(y[known]) > 0 and np.ptp(age[known]) > 0):
            continue
        found = stats.pearsonr(y[known], age[known])
        low, high = found.confidence_interval(CONFIDENCE)
        rows.append([region, int(known.sum()), found.statistic, low, high, found.pvalue])
    return pd.DataFrame(rows, columns=["region", "n_people", "r", "low", "high", "p"])


def dominance_table(table, value, people):
    """Left minus right of a quantity by the side that people's language is on.

    Parameters
    ----------
    table : DataFrame
        As for `region_table`; regions whose names end in ``_left`` and ``_right`` are pairs.
    value : str
    people : DataFrame
        ``subject``, ``language_side`` and ``language_certain`` (`hemispheres.side_of`).

    Returns
    -------
    DataFrame
        ``region``, ``language_side``, ``n_people``, ``n_certain``, ``mean``, ``low``, ``high`` (left − right and its
        95 % interval, t). "possibly left" counts as left, and not as certain; nobody's side is guessed at.
    """
    values, known = wide(table, value), people.set_index("subject")
    rows = []
    for stem in [name.removesuffix("_left") for name in values if name.endswith("_left")]:
        if f"{stem}_right" not in values:
            continue
        apart = (values[f"{stem}_left"] - values[f"{stem}_right"]).dropna()
        sides = known["language_side"].reindex(apart.index)
        certain = known["language_certain"].reindex(apart.index).eq(True)
        for side, mine in apart.groupby(sides):
            moments = [float(part[0]) for part in t_interval(mine.to_numpy(float)[:, None])]
            rows.append([stem, side, len(mine), int(certain[mine.index].sum()), *moments])
    columns = ["region", "language_side", "n_people", "n_certain", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
