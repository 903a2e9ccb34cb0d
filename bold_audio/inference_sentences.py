"""What the inference over the whole run says, in plain sentences that are true for every subject."""

import numpy as np
import pandas as pd

from bold_audio.sentences import heard
from bold_audio.significance import LEVEL

WITHIN, OVER_PAST = "history_blocks_sound", "history_sound"
RATES = {  # kind in calibration.tsv → what it is called
    "null": "noise as simulated",
    "white": "white noise",
    "ar": "strongly autocorrelated noise",
    "drift": "drifting noise",
    "motion": "a moving head",
    "rhythm": "a rhythm of 61 s, near the blocks' cycle",
    "oneback": "the REAL one-back scan, which heard nothing",
}
ANY, REGION = "maps with any voxel at family-wise p <= .05", "one region, over past and blocks: p <= 0.05"
REGION_OVER_PAST = "one region, over the past: p <= 0.05"


def primary_region(table):
    """The region of the primary outcome, named before: ``auditory`` where there is one, else the first."""
    names = list(dict.fromkeys(table["region"]))
    return "auditory" if "auditory" in names else (names[0] if names else None)


def about_region(table, region, *, intervals=None, feature_source="audio"):
    """The primary outcome of a region: gain, partial r, p, delay; and whether it is the blocks or the sound in them.

    Parameters
    ----------
    table : DataFrame
        From `inferred.ensure_regions`.
    region : str
    intervals : DataFrame, optional
        ``regions`` of the sweep: the interval of the delay.
    feature_source : {"audio", "annotations"}
    """
    rows = table[table["region"] == region].set_index("model")
    if not len(rows):
        return f"Nothing was asked about `{region}`."
    row = rows.loc[WITHIN if WITHIN in rows.index else OVER_PAST]
    name = heard(feature_source)
    sure = row["p"] <= LEVEL
    verb = "adds" if row["gain"] >= 0 else "takes away"
    text = (
        f"In `{region}` {name} {verb} {abs(row['gain']):.2%} of the squared error that {row['over']} leave"
        f"{'s' if row['over'] == 'the past' else ''} (gain {row['gain']:+.4f}, partial r = {row['partial_r']:.3f} in "
        f"the median voxel, out of fold over the whole run), p = {row['p']:.2g} ({row['n_surrogates']:.0f} surrogates)."
    )
    if WITHIN in rows.index and rows.loc[OVER_PAST, "p"] <= LEVEL and not sure:
        over = rows.loc[OVER_PAST]
        text += (
            f" **It follows the blocks, not the sound within them:** over the past alone the gain is "
            f"{over['gain']:+.4f}, p = {over['p']:.2g}."
        )
    elif sure and row["gain"] > 0:
        text += f" **It follows {name}{' within the blocks' if row.name == WITHIN else ''}.**"
    else:
        text += " **Nothing is shown:** chance does as much."
    if sure:
        known = None if intervals is None else intervals.set_index("region")
        if known is not None and region in known.index and np.isfinite(known.loc[region, "low"]):
            low, high = known.loc[region, ["low", "high"]]
            text += f" The delay is {low:.1f} to {high:.1f} s (95 % interval, inside train)."
        else:
            text += f" The outer folds chose delays of {row['first_delay']:.1f} to {row['last_delay']:.1f} s."
    return text


def about_other_regions(table, region):
    """How many other regions pass, without a correction for their number."""
    others = table[(table["region"] != region) & table["p"].notna()]
    if not len(others):
        return "No other region was asked about."
    model = WITHIN if WITHIN in set(others["model"]) else OVER_PAST
    others = others[others["model"] == model]
    passed = list(others.loc[others["p"] <= LEVEL, "region"])
    named = ", ".join(f"`{name}`" for name in passed) or "none"
    return (
        f"Of {len(others)} other regions {len(passed)} reach p ≤ {LEVEL:g} by themselves ({named}); these p values are "
        f"not corrected for the number of regions, chance alone gives {LEVEL * len(others):.1f}."
    )


def about_map(found, *, fwhm, feature_source="audio"):
    """How many voxels follow the sound, by both corrections."""
    voxels = found.voxels
    by_q, by_fwe = int((voxels["q"] <= LEVEL).sum()), int((voxels["p_fwe"] <= LEVEL).sum())
    text = (
        f"{by_q:,} of {len(voxels):,} voxels follow {heard(feature_source)} beyond their past at q ≤ {LEVEL:g} (false "
        f"discovery rate), {by_fwe:,} at family-wise p ≤ {LEVEL:g}; {found.n_shifts} circular shifts and "
        f"{found.n_randomised} shifts of phase-randomised sound, averaged over the delays like the sound itself"
    )
    text += f"; voxels are averaged over {fwhm:g} mm." if fwhm else "."
    sure = voxels[voxels["q"] <= LEVEL]
    if len(sure):
        low, middle, high = sure["delay"].quantile([0.25, 0.5, 0.75])
        text += f" Half of their delays lie between {low:.1f} and {high:.1f} s (median {middle:.1f} s)."
    if by_q and not by_fwe:
        text += " None of them is sure by the stricter rule: read the map with care."
    return text


def about_calibration(table):
    """How often exactly this procedure is wrong where nothing is there, as the benchmark measured it.

    Parameters
    ----------
    table : DataFrame
        From `inferred.calibration`: ``kind, figure, value, n``.
    """
    at = table.set_index(["kind", "figure"])
    parts = []
    for kind, name in RATES.items():
        region = REGION if (kind, REGION) in at.index else REGION_OVER_PAST
        if (kind, ANY) not in at.index:
            continue
        any_voxel, n = at.loc[(kind, ANY), ["value", "n"]]
        one = f", one region in {at.loc[(kind, region), 'value']:.0%}" if (kind, region) in at.index else ""
        parts.append(f"{name}: a map with any voxel in {any_voxel:.0%}{one} (of {n:.0f})")
    return (
        "How often this procedure finds something at .05 where nothing is there, measured by "
        "`benchmarks/significance.py` on SIMULATED scans unless said otherwise: " + "; ".join(parts) + ". "
        "A rhythm near the blocks' cycle, such as a heart rate that the repetition time lays on it, is a known limit "
        "of every surrogate: see the spectrum in notebook 00."
    )


def calibration_rows(table):
    """The benchmark's rates as a table to show: one row per kind of scan, one column per figure."""
    kept = table[table["kind"].isin(RATES)]
    rows = []
    for kind, name in RATES.items():
        mine = kept[kept["kind"] == kind]
        if len(mine):
            figures = dict(zip(mine["figure"], mine["value"], strict=True))
            rows.append({"where nothing is there": name, "scans": int(mine["n"].max())} | figures)
    return pd.DataFrame(rows)
