"""What the inference over the whole run says, in plain sentences that are true for every subject."""

import numpy as np
import pandas as pd
from scipy import stats

from bold_audio.sentences import heard, lowered
from bold_audio.significance import LEVEL, OVER_PAST, WITHIN

RATES = {  # kind in calibration.tsv → what it is called
    "null": "noise as simulated",
    "white": "white noise",
    "ar": "strongly autocorrelated noise",
    "drift": "drifting noise",
    "motion": "a moving head",
    "rhythm": "a rhythm of 61 s, near the blocks' cycle",
    "oneback": "one REAL one-back scan, which heard nothing",
}
TOGETHER = ("white", "ar", "drift", "motion")  # noises whose scans are too few for a rate of each
ANY, REGION = "maps with any voxel at family-wise p <= .05", "one region, over past and blocks: p <= 0.05"
REGION_OVER_PAST = "one region, over the past: p <= 0.05"
SHOWN = {
    ANY: "any voxel, family-wise",
    "one voxel: p <= 0.05": "one voxel",
    REGION_OVER_PAST: "one region, over the past",
    REGION: "one region, over past and blocks",
}


def primary_region(table, delay_region=None):
    """The region of the primary outcome, named before: ``auditory``, else the parameter ``delay_region``, else None."""
    names = set(table["region"])
    return next((name for name in ("auditory", delay_region) if name in names), None)


def about_region(table, region, *, intervals=None, feature_source="audio", may_claim=True):
    """The primary outcome of a region: gain, partial r, p, delay; and whether it is the blocks or the sound in them.

    Parameters
    ----------
    table : DataFrame
        From `inferred.ensure_regions`.
    region : str or None
        None where none was named before.
    intervals : DataFrame, optional
        ``regions`` of the sweep: the interval of the delay, where it is identifiable.
    feature_source : {"audio", "annotations"}
    may_claim : bool
        Whether speech lights the regions that must hear it, from `controls.may_claim`: else nothing finer than the
        film's blocks is claimed.
    """
    rows = table[table["region"] == region].set_index("model")
    if region is None or not len(rows):
        return "No region was named before, so there is no primary outcome: the table is for looking."
    row, name = rows.loc[WITHIN if WITHIN in rows.index else OVER_PAST], heard(feature_source)
    if not np.isfinite(row["gain"]):
        return f"`{region}` does not vary, so nothing can be asked of it."
    used = f"{row['n_voxels']:.0f}" + (f" of {row['n_region']:.0f}" if row["n_voxels"] < row["n_region"] else "")
    partial = f"partial r = {row['partial_r']:z.3f}" if np.isfinite(row["partial_r"]) else "no partial r"
    text = (
        f"In `{region}` {lowered(feature_source, row['gain'], row['over'])} (gain {row['gain']:+z.4f}, "
        f"{partial} in the median of {used} voxels, out of fold over the whole run), "
        f"p = {row['p']:.2g} ({row['n_surrogates']:.0f} surrogates)."
    )
    return f"{text} {_verdict(rows, row, name, may_claim)}{_delays(row, region, intervals)}"


def _verdict(rows, row, name, may_claim):
    sure, within = row["p"] <= LEVEL, row.name == WITHIN
    if sure and row["gain"] > 0:
        if within and not may_claim:
            return (
                "Its gain is above that of its surrogates, but not every region that must answer to speech was shown "
                f"to do so (see the controls): **that it follows {name} within the blocks is not claimed.**"
            )
        text = f"**It follows {name}{' within the blocks' if within else ''}.**"
        return text if may_claim else f"{text} But without blocks there is no positive control: see the controls."
    if sure:
        return "Its surrogates do worse still, but it predicts no better than the past: **nothing is shown.**"
    over = rows.loc[OVER_PAST] if within else None
    if over is not None and over["p"] <= LEVEL and over["gain"] > 0:
        return (
            "**It follows the blocks, not the sound within them**, as far as this run can tell: over the past alone "
            f"the gain is {over['gain']:+z.4f}, p = {over['p']:.2g}; that it follows more than the blocks is not shown."
        )
    return "**Nothing is shown:** chance does as much."


def _delays(row, region, intervals):
    if row["p"] > LEVEL or row["gain"] <= 0:
        return ""
    spans = _spans(intervals)
    left, right = (spans.get(f"{region}_{side}") for side in ("left", "right"))
    if left and right and max(left[0], right[0]) > min(left[1], right[1]):  # one number for both would be neither's
        return (
            f" The delay is {left[0]:.1f} to {left[1]:.1f} s on the left and {right[0]:.1f} to {right[1]:.1f} s on the "
            "right (95 % intervals, inside train)."
        )
    if region in spans:
        return " The delay is {:.1f} to {:.1f} s (95 % interval, inside train).".format(*spans[region])
    return f" The outer folds chose delays of {row['first_delay']:.1f} to {row['last_delay']:.1f} s."


def _spans(intervals):
    """The 95 % intervals of the regions whose delay is known: region → (low, high), in seconds."""
    rows = [] if intervals is None else intervals[["region", "low", "high", "identifiable"]].itertuples(index=False)
    return {row.region: (row.low, row.high) for row in rows if row.identifiable and np.isfinite(row.low)}


def about_other_regions(table, region):
    """How many other regions pass, without a correction for their number."""
    others = table[(table["region"] != region) & table["p"].notna()]
    if not len(others):
        return "No other region was asked about."
    model = WITHIN if WITHIN in set(others["model"]) else OVER_PAST
    others = others[others["model"] == model]
    passed = list(others.loc[(others["p"] <= LEVEL) & (others["gain"] > 0), "region"])
    named = ", ".join(f"`{name}`" for name in passed) or "none"
    other = ("other " if region in set(table["region"]) else "") + ("region" if len(others) == 1 else "regions")
    return (
        f"Of {len(others)} {other} {len(passed)} reach p ≤ {LEVEL:g} with a gain above 0 ({named}); these p values are "
        f"not corrected for the number of regions, chance alone gives {LEVEL * len(others):.1f}."
    )


def about_map(found, *, fwhm, blocks, feature_source="audio"):
    """How many voxels follow the sound, by both corrections; ``blocks``: the film has speech and music blocks."""
    voxels = found.voxels
    by_q, by_fwe = int((voxels["q"] <= LEVEL).sum()), int((voxels["p_fwe"] <= LEVEL).sum())
    text = (
        f"{by_q:,} of {len(voxels):,} voxels follow {heard(feature_source)} beyond their past at q ≤ {LEVEL:g} (false "
        f"discovery rate), {by_fwe:,} at family-wise p ≤ {LEVEL:g}; {found.n_shifts} circular shifts and "
        f"{found.n_randomised} shifts of phase-randomised sound, averaged over the delays like the sound itself"
    )
    text += f"; voxels are averaged over {fwhm:g} mm." if fwhm else "."
    if blocks:
        text += " The film's blocks are in this: a voxel that follows only speech against music counts."
    sure = voxels[voxels["q"] <= LEVEL]
    if len(sure):
        low, middle, high = sure["delay"].quantile([0.25, 0.5, 0.75])
        text += f" Half of their delays lie between {low:.1f} and {high:.1f} s (median {middle:.1f} s)."
    if by_q and not by_fwe:
        text += " None of them is sure by the stricter rule: read the map with care."
    return text


def about_calibration(table):
    """How often this procedure is wrong where nothing is there, as the benchmark measured it.

    Parameters
    ----------
    table : DataFrame
        From `inferred.calibration`: ``kind, figure, value, n``.

    Notes
    -----
    Counts come with their exact 95 % interval, but for the one-back scan: its films were paired with one realisation
    of noise, so they are not independent.
    """
    at = {(row.kind, row.figure): (round(row.value * row.n), int(row.n)) for row in table.itertuples()}
    parts = []
    for kind, name in RATES.items():
        if (kind, ANY) not in at:
            parts.append(f"{name}: not measured")
            continue
        what = {REGION: "over past and blocks", REGION_OVER_PAST: "over the past"}
        told = count_of if kind == "oneback" else rate_of
        regions = [f"{told(*at[kind, one])} {said}" for one, said in what.items() if (kind, one) in at]
        of = "films, which are not independent" if kind == "oneback" else "scans"
        parts.append(f"{name}: any voxel in {told(*at[kind, ANY], of)}, one region in {' and '.join(regions)}")
    if all((kind, ANY) in at for kind in TOGETHER):
        sums = np.sum([at[kind, ANY] for kind in TOGETHER], axis=0)
        parts.append(f"the {len(TOGETHER)} from {RATES['white']} to {RATES['motion']} together: any voxel in ")
        parts[-1] += rate_of(*sums, "scans")
    return (
        "How often this procedure finds something at .05 where nothing is there, by `benchmarks/significance.py` on "
        "small SIMULATED heads with the default parameters unless said otherwise (95 % intervals): "
        + "; ".join(parts)
        + ". "
        "A rhythm near the blocks' cycle, such as a heart rate that the repetition time lays on it, is a known limit "
        "of every surrogate: see the spectrum in notebook 00."
    )


def count_of(k, n, what=""):
    """``k of n``, and of what."""
    return f"{k} of {n} {what}".rstrip()


def rate_of(k, n, what=""):
    """``k of n`` with the exact 95 % interval (Clopper-Pearson) of the rate.

    Examples
    --------
    >>> rate_of(0, 12), rate_of(4, 100, "scans")
    ('0 of 12 (at most 26 %)', '4 of 100 scans (1 to 10 %)')
    """
    low, high = stats.binomtest(int(k), int(n)).proportion_ci(method="exact")
    span = f"{100 * low:.0f} to {100 * high:.0f} %" if k else f"at most {100 * high:.0f} %"
    return f"{count_of(k, n, what)} ({span})"


def calibration_rows(table):
    """The benchmark's rates as a table to show: one row per kind of scan, one column per figure."""
    kept = table[table["kind"].isin(RATES)]
    rows = []
    for kind, name in RATES.items():
        mine = kept[kept["kind"] == kind]
        if len(mine):
            known = dict(zip(mine["figure"], mine["value"], strict=True))
            figures = {said: known.get(figure, np.nan) for figure, said in SHOWN.items()}
            rows.append({"where nothing is there": name, "scans": int(mine["n"].max())} | figures)
    return pd.DataFrame(rows)
