"""Contrast, controls, ceiling, hemispheres → plain sentences that are true for every subject."""

import numpy as np
import pandas as pd

LANGUAGE = {"left": "on the left", "right": "on the right", "bilateral": "on both sides"}


def about_contrast(found):
    """Where speech and music differ on the map.

    Parameters
    ----------
    found : contrast.ContrastMap
    """
    known = np.isfinite(found.t)
    if not known.any():
        return "No voxel varies, so speech and music cannot be compared."
    limit = found.threshold
    over, under = int(np.sum(found.t[known] > limit)), int(np.sum(found.t[known] < -limit))
    text = (
        f"Speech against music blocks, {found.n_volumes} volumes: {over} of {known.sum()} voxels are higher during "
        f"speech and {under} during music (|t| > {limit:.1f}, 5 % family-wise by the spread of all t values"
    )
    text += f"; the median t is {np.median(found.t[known]):+z.1f}). "
    if over:
        peak = int(np.nanargmax(found.t))
        text += f"The highest t is {found.t[peak]:z.1f} ({found.percent[peak]:+z.2f} % of that voxel's mean). "
    elif not under:
        text += "The blocks show nowhere on this map. "
    return text.strip()


BY_BLOCKS = ("speech > music", "speech = music")  # controls that are named by their region


def about_controls(table):
    """Whether what must show the film shows it, and what must not does not.

    Parameters
    ----------
    table : DataFrame
        From `controls.control_table`.
    """
    done = table[~table["verdict"].str.startswith("not done")]
    wrong, not_done = done[done["verdict"] != "as expected"], table.drop(done.index)
    text = f"{len(done) - len(wrong)} of {len(done)} controls came out as expected. " if len(done) else ""
    positive = table[table["control"] == "speech > music"]
    if (positive["verdict"] == "as expected").all() and len(positive):
        text += (
            f"Speech is above music in {_listed(positive['region'])}: finer claims about the sound may be looked at. "
        )
    elif positive["verdict"].str.startswith("not done").all():
        text += "**No positive control could be made**, so nothing here shows that this scan can see speech at all. "
    else:
        dark = positive[positive["verdict"] == "NOT as expected"]
        text += (
            f"**The positive control failed:** speech is not above music in {_listed(dark['region'])}, so nothing "
            if len(dark)
            else "**Not every positive control could be made,** so nothing "
        )
        text += "finer about the sound of this film is to be believed in this subject. "
    negative = wrong[wrong["control"] != "speech > music"]
    for row in negative.itertuples():
        found = f"**`{row.region}` shows the film** (p = {row.p:.2g})"
        if row.control not in BY_BLOCKS:  # a sound that nobody heard
            found = (
                f"**{row.control}, adds within the blocks of `{row.region}`** (gain {row.value:+z.4f}, p = {row.p:.2g})"
            )
        text += f"{found}, which it must not: look for motion, drift or leaks. "
    if len(negative) == 1:
        text += f"Chance alone gives a p this small once in {1 / negative['p'].iloc[0]:,.0f} times. "
    if len(not_done):
        named = not_done["region"].where(not_done["control"].isin(BY_BLOCKS), not_done["control"])
        whys = not_done["verdict"].str.removeprefix("not done: ")
        reasons = [f"{name} ({why})" for name, why in zip(named, whys, strict=True)]
        text += f"Not done: {'; '.join(reasons)}."
    return text.strip()


def about_ceiling(table, *, left_out=None, reason=""):
    """What people who heard the same have in common, and how much of it ``sound`` reaches.

    Parameters
    ----------
    table : DataFrame or None
        From `ceiling.share_of_ceiling` or `ceiling.intersubject_ceiling`; None where nobody can be compared.
    left_out : dict of str to str, optional
        By subject label: why a person was left out.
    reason : str
        Why there is no table, where there is none.
    """
    reasons = [f"sub-{label} ({why})" for label, why in (left_out or {}).items()]
    tail = f" Left out: {'; '.join(reasons)}." if reasons else ""
    if table is None:
        return f"No inter-subject ceiling: {reason}.{tail}"
    if not table["ceiling"].notna().any():
        return f"No inter-subject ceiling: no region varies in two people.{tail}"
    best = table.loc[table["ceiling"].idxmax()]
    n_people = int(best["n_people"])
    text = (
        f"The mean of the other people's scans predicts a person's best in `{best['region']}`, r = "
        f"{best['ceiling']:z.2f} (Fisher mean of {n_people} people"
    )
    text += f", from {best['low']:z.2f} to {best['high']:z.2f}). " if "low" in table else "). "
    if "chance" in table:
        under = table[table["ceiling"] <= table["chance"]]
        if len(under):
            text += f"In {_listed(under['region'])} it is not above what people shifted in time reach. "
    if "own" in table:
        if np.isfinite(best["share"]):
            text += (
                f"Of this person it predicts r = {best['own']:z.2f} there; `sound` reaches r = {best['r']:z.2f}, "
                f"{best['share']:.0%} of that. "
            )
        elif np.isfinite(best["own"]):
            text += (
                f"Of this person it predicts r = {best['own']:z.2f} there, which is not shown to be more than chance: "
                "`sound` has no ceiling to be held against. "
            )
        over = table[table["r"] > table["own"]]
        if len(over):
            text += f"In {_listed(over['region'])} the model is above this person's ceiling, which is then too low. "
    text += "It counts all that people who heard the same have in common, not their answer to the sound alone"
    text += ", and with so few people it is rather too low." if n_people < 20 else "."
    return text + tail


def about_hemispheres(table):
    """Delay and score of the two sides beside the person's language dominance.

    Parameters
    ----------
    table : DataFrame
        From `hemispheres.hemisphere_table`.
    """
    if table.empty:
        return "No region has a twin on the other side, so left and right are not compared."
    lines = []
    for row in table.itertuples():
        if pd.isna(row.delay_right_minus_left):
            lost = [side for side in ("left", "right") if not getattr(row, f"identifiable_{side}")]
            text = (
                f"`{row.region}`: the delay is not identifiable on the {' and '.join(lost)}, so no delays are compared"
            )
        else:
            gap = row.delay_right_minus_left
            when = f"{abs(gap):.1f} s {'after' if gap > 0 else 'before'}" if gap else "together with"
            sure = "their 95 % intervals do not overlap" if row.apart else "their 95 % intervals overlap"
            if not np.isfinite([row.low_left, row.low_right]).all():
                sure = "no intervals: fewer than three delays were tried"
            text = (
                f"`{row.region}`: the right side follows {when} the left ({row.delay_left:g} s left, "
                f"{row.delay_right:g} s right; {sure})"
            )
        if np.isfinite(row.score_difference):
            text += f"; gain {row.score_left:+z.4f} left, {row.score_right:+z.4f} right"
        lines.append(text + ".")
    first = table.iloc[0]
    if first["language_side"] == "n/a":
        known = first["language_dominance"]
        lines.append("Language dominance of this person is not known" + (f" ({known})." if known != "n/a" else "."))
    else:
        how = "" if first["technique"] == "n/a" else f" by {first['technique']}"
        hedge = "is" if first["language_certain"] else "is possibly"
        lines.append(
            f"This person's language {hedge} {LANGUAGE[first['language_side']]}{how}; one person shows no rule."
        )
    return " ".join(lines)


def _listed(names):
    """Names in backticks, one after the other."""
    return ", ".join(f"`{name}`" for name in names)
