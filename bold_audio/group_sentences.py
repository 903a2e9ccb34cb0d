"""What holds over people, in plain sentences that are true for every dataset."""

import numpy as np

from bold_audio.sentences import heard, lowered
from bold_audio.significance import LEVEL, OVER_PAST, QUESTIONS, WITHIN

OVER = {"gain": QUESTIONS[OVER_PAST], "gain_within": QUESTIONS[WITHIN]}
EVIDENCE = "the evidence of the sound beyond the past (the film's blocks are in it)"
MOST_NAMED = 5


def note_of(found):
    """What every figure must say of the people's scans and sound, such as SIMULATED; None where there is nothing."""
    notes = [found.settings.get("data_note"), found.settings.get("sound_note")]
    if found.settings.get("feature_source") == "annotations":
        notes[1] = "features from ANNOTATIONS, not from the sound"
    return "; ".join(filter(None, notes)) or None


def about_people(found, label):
    """Whose answer this is, and how many could not be counted."""
    n, states = len(found.people), found.left_out["state"].value_counts()
    note = note_of(found)
    text = f"{n} people of {label}{f'; {note}' if note else ''}."
    if len(found.left_out):
        text += f" {len(found.left_out)} left out: {', '.join(f'{count} {state}' for state, count in states.items())}."
    return text


def about_region(table, region, *, value, feature_source="audio"):
    """The primary outcome over people: mean, interval, p, and whether it can be shown at all.

    Parameters
    ----------
    table : DataFrame
        From `group_stats.region_table` of ``value``.
    region : str or None
        None where none was named before.
    value : {"gain", "gain_within"}
    feature_source : {"audio", "annotations"}
    """
    rows = table[table["region"] == region]
    if not len(rows):
        return "No region was named before that people have, so there is no primary outcome: the table is for looking."
    row, name = rows.iloc[0], heard(feature_source)
    if row["n_people"] < 2:
        return f"`{region}` was found in one person only: there is nothing to say over people."
    text = (
        f"In `{region}` {lowered(feature_source, row['mean'], OVER[value])}, in the mean of {row['n_people']:.0f} "
        f"people (gain: 95 % interval {row['low']:+z.2%} to {row['high']:+z.2%}, Student's t; "
        f"above 0 in {row['n_above']:.0f}), "
        f"p = {row['p']:.2g} by sign flips, {row['p_fwe']:.2g} family-wise over {table['p'].notna().sum()} regions. "
    )
    if row["smallest_p"] > LEVEL:
        return text + (
            f"**So few people can show nothing:** no p of {row['n_people']:.0f} is below {row['smallest_p']:.2g}."
        )
    if row["p"] <= LEVEL:
        return text + f"**People like these follow {name}{' within the blocks' if value == 'gain_within' else ''}.**"
    return text + "**Nothing is shown over people:** chance does as much."


def about_other_regions(table, region):
    """Which other regions hold over people, family-wise."""
    others = table[(table["region"] != region) & table["p_fwe"].notna()]
    if not len(others):
        return "No other region was asked about."
    other = ("other " if len(others) < len(table) else "") + ("region" if len(others) == 1 else "regions")
    sure = list(others.loc[others["p_fwe"] <= LEVEL, "region"])
    return f"Of {len(others)} {other} {len(sure)} hold at family-wise p ≤ {LEVEL:g} ({_named(sure)})."


def about_motion(table, still, region, people, *, limit):
    """Whether the answer changes without the people who moved much."""
    known = people["mean_fd"].notna()
    moved = people.loc[people["mean_fd"] > limit, "subject"]
    unknown = f" The head motion of {_people((~known).sum())} is not known." if not known.all() else ""
    if not known.any():
        return "The head motion is known of nobody."
    if not len(moved):
        return f"Nobody moved more than {limit:g} mm on average (framewise displacement).{unknown}"
    whole, rest = (part[part["region"] == region] for part in (table, still))
    text = f"Without {_people(len(moved))} who moved more than {limit:g} mm on average ({_named(moved)})"
    if not len(whole) or not len(rest) or not rest["n_people"].iloc[0] > 1:
        return f"{text} too few are left to ask again.{unknown}"
    a, b = whole.iloc[0], rest.iloc[0]
    same = "the answer is the same" if (a["p"] <= LEVEL) == (b["p"] <= LEVEL) else "**the answer changes**"
    return (
        f"{text} {same}: mean {a['mean']:+z.4f}, p = {a['p']:.2g} becomes {b['mean']:+z.4f}, p = {b['p']:.2g}.{unknown}"
    )


def about_delay(table, region):
    """The delay over the people in whom it is identifiable."""
    rows = table[table["region"] == region]
    if not len(rows) or not rows["n_identifiable"].iloc[0]:
        return f"The delay of `{region}` is not identifiable in anybody." if region else "No delay was asked for."
    row = rows.iloc[0]
    text = f"The delay of `{region}` is identifiable in {row['n_identifiable']} of {row['n_people']} people, mean "
    text += f"{row['delay']:.1f} s"
    return (
        f"{text} (95 % interval {row['low']:z.1f} to {row['high']:z.1f} s)."
        if row["n_identifiable"] > 1
        else f"{text}."
    )


def about_map(found, *, quantity, fwhm):
    """How many voxels of the template hold over people, and who is not in the map.

    Parameters
    ----------
    found : group_maps.GroupMap
    quantity : {"evidence", "gain", "gain_within"}
    fwhm : float
        mm of the smoothing in the template.
    """
    whose = {}
    for who, why in found.left_out.items():
        whose.setdefault(why, []).append(f"sub-{who}")
    tail = f" Not in it: {'; '.join(f'{_named(who)} ({why})' for why, who in whose.items())}." if whose else ""
    what = f"the gain over {OVER[quantity]}" if quantity in OVER else EVIDENCE
    if found.table.empty:
        return f"No group map of {what}: fewer than two people have a map in the template's space.{tail}"
    sure, fewest, n = (found.table["p_fwe"] <= LEVEL).sum(), found.table["n_people"].min(), len(found.labels)
    of = f"{n}" if fewest == n else f"at least {fewest} of {n}"
    return (
        f"{sure:,} of {len(found.table):,} voxels that {of} people share hold for {what} at family-wise "
        f"p ≤ {LEVEL:g} (one-sided sign flips, largest t of all voxels; {fwhm:g} mm smoothing).{tail}"
    )


def about_age(table, region):
    """Whether the gain goes along with age; one region, so nothing is corrected."""
    rows = table[table["region"] == region]
    if not len(rows):
        return "Age: fewer than four people have a known age and a gain, or one of the two does not vary."
    row = rows.iloc[0]
    return (
        f"Age: r = {row['r']:+z.2f} with the gain in `{region}` (95 % interval {row['low']:+z.2f} to "
        f"{row['high']:+z.2f}, {row['n_people']} people, p = {row['p']:.2g})."
    )


def about_dominance(table, region):
    """Left minus right of the gain by language side."""
    rows = table[(table["region"] == region) & (table["language_side"] != "n/a")]
    if not len(rows):
        return "Language dominance: not known of anybody here."
    told = []
    for row in rows.itertuples():
        span = f" (95 % interval {row.low:+z.4f} to {row.high:+z.4f})" if np.isfinite(row.low) else ""
        side = "both sides" if row.language_side == "bilateral" else f"the {row.language_side} side"
        unsure = row.n_people - row.n_certain
        hedge = f" ({unsure} of them possibly)" if unsure else ""
        told.append(f"{row.mean:+z.4f}{span} in {_people(row.n_people)} with language on {side}{hedge}")
    return f"Left − right of the gain in `{region}`: {'; '.join(told)}."


def _people(n):
    return "one person" if n == 1 else f"{n} people"


def _named(names):
    """A few names, and how many more."""
    names = [str(name) for name in names]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more or "none"
