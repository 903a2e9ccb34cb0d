"""Numbers that came out of fold → plain sentences that are true for every subject."""

import numpy as np

from bold_audio.sentences import heard
from bold_audio.significance import clear_of_0

NEAR = 0.01  # skill below which a model predicts no better than the mean, for the eye


def _with_spread(value, spread):
    return f"{value:+z.4f} ± {spread:.4f}"


def _row(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table.iloc[0] if len(table) else None


def about_out_of_fold(table, region, *, feature_source="audio"):
    """What the sound adds in a region over the whole run, each volume predicted by a model that never saw it."""
    lines, name, first = [], heard(feature_source), _row(table, region=region)
    if not np.isfinite(first["skill"]):
        return f"`{region}` does not vary, so there is nothing to predict out of fold."
    for model, past in (
        ("history_sound", "own history"),
        ("history_blocks_sound", "own history and the film's blocks"),
    ):
        row = _row(table, model=model, region=region)
        if row is None:
            continue
        verdict = "is not shown to add to"
        if clear_of_0(row["skill"], row["fold_spread"], row["n_folds"]):
            verdict = "adds to" if row["skill"] > 0 else "takes away from"
        partial = f", partial r {row['partial_r_median']:z.3f} in the median voxel that has it"
        partial = partial if np.isfinite(row["partial_r_median"]) else ", no voxel was given it"
        lines.append(
            f"In `{region}` {name} {verdict} what {past} predict{'s' if model == 'history_sound' else ''}: gain "
            f"{_with_spread(row['skill'], row['fold_spread'])} (standard error over folds{partial})."
        )
    lines.append(
        f"Out of fold over the whole run: {first['n_volumes']} volumes, {_voxels(first)}, one-step; delay, "
        "voxels and strengths were chosen inside each fold. No significance is claimed: that takes surrogates. The "
        "gain that has a p value is another model's, whose past is one filter for the brain, and another number."
    )
    return " ".join(lines)


def about_partition(table, region, *, feature_source="audio"):
    """What the sound alone explains, and what it shares."""
    whole, sound = table[table["kind"] == "model"].iloc[-1], _row(table, kind="unique", bands="sound")
    if not np.isfinite(whole["skill"]):
        return f"`{region}` does not vary, so there is nothing to part."
    text = (
        f"All bands together reach an out-of-fold skill of {whole['skill']:z.3f} in `{region}` "
        f"({_voxels(whole)}). Unique to {heard(feature_source)} is "
        f"{_with_spread(sound['skill'], sound['fold_spread'])}"
    )
    parts = []
    for bands, what in (
        ("history+sound", "own history"),
        ("blocks+sound", "the blocks"),
        ("history+blocks+sound", "both"),
    ):
        row = _row(table, kind="shared", bands=bands)
        if row is not None:
            parts.append(f"{row['skill']:+z.4f} with {what}")
    text += f"; it shares {', '.join(parts)}."
    if (table.loc[table["kind"] != "model", "skill"] < 0).any():
        text += " Parts below 0 are bands that did not hold on volumes they were not fitted on, or suppression."
    return text


def _voxels(row):
    n, of = int(row["n_voxels"]), int(row.get("n_region", row["n_voxels"]))
    return f"{n} voxel{'s' * (n != 1)}" if n == of else f"{n} evenly spaced ones of {of} voxels"


def about_ablations(table, region):
    """Whether loudness alone does what all coefficients do, and whether the rest does it without loudness."""
    done, missing = table.dropna(subset=["skill"]), _not_done(table)
    if done.empty:
        return f"No feature set could be compared in `{region}`.{missing}"
    best = done.loc[done["skill"].idxmax()]
    text = (
        f"In `{region}` ({_voxels(best)}, {best['n_volumes']:.0f} volumes, out of fold) the best of {len(done)} "
        f"feature sets is {best['features']}: skill {_with_spread(best['skill'], best['fold_spread'])}, "
        f"gain over own history {_with_spread(best['gain'], best['gain_spread'])}."
    )
    if not _is_more_than_nothing(best):
        return f"{text} That is within what chance gives: nothing here tells the sets apart.{missing}"
    loud, rest, whole = (_row(done, features=name) for name in ("c0 (loudness) only", "MFCCs without c0", "all MFCCs"))
    if loud is not None and rest is not None and whole is not None and _is_more_than_nothing(whole):
        text += (
            f" Loudness alone reaches {loud['skill'] / whole['skill']:z.0%} of the skill of all MFCCs, the others "
            f"without it {rest['skill'] / whole['skill']:z.0%}."
        )
    return text + missing


def _is_more_than_nothing(row):
    return row["skill"] > 0 and clear_of_0(row["skill"], row["fold_spread"], row["n_folds"])


def _not_done(table):
    """Which sets were not done and why, to stand at the end; nothing where all were."""
    missing = table[table["skill"].isna()]
    return " " + "; ".join(f"{row.features}: {row.note}" for row in missing.itertuples()) + "." if len(missing) else ""


def about_responses(table, region, *, feature_source="audio"):
    """What a single delay loses against windows over 12 s and the canonical response."""
    single, done, missing = table.iloc[0], table.dropna(subset=["skill"]), _not_done(table)
    if not len(done) or single["features"] not in set(done["features"]):
        return f"The responses could not be compared in `{region}`: {single['note']}."
    parts = [f"{row.features} {row.skill:+z.4f} ± {row.fold_spread:.4f}" for row in done.itertuples()]
    text = f"Out-of-fold skill of {heard(feature_source)} alone in `{region}` ({_voxels(single)}): {', '.join(parts)}."
    best = done.loc[done["skill"].idxmax()]
    if not np.isfinite(best["ratio"]):
        return f"{text} None is clearly above 0, so what a single delay loses cannot be said.{missing}"
    if best["features"] == single["features"]:
        return f"{text} A single delay loses nothing here.{missing}"
    return f"{text} A single delay reaches {single['ratio']:z.0%} of the best, {best['features']}.{missing}"


def about_horizon(table, t_r, region):
    """How long each model tells more than the mean, to within 1 % of its error."""
    if not table["skill"].notna().any():
        return f"`{region}` does not vary, so nothing can be said of how far ahead a model sees."
    parts = []
    for name in dict.fromkeys(table["model"]):
        rows = table[table["model"] == name].sort_values("horizon")
        if name == "constant":
            continue
        below = rows["horizon"][rows["skill"] < NEAR]
        if len(below) and below.iloc[0] == rows["horizon"].iloc[0]:
            parts.append(f"`{name}` is no better than the mean at the first volume already")
        elif len(below):
            parts.append(f"`{name}` first falls to the mean after {below.iloc[0] * t_r:.1f} s")
        else:
            parts.append(f"`{name}` is better than it through {rows['horizon'].iloc[-1] * t_r:.0f} s")
    starts, text = table["n_starts"].iloc[0], "; ".join(parts)
    return f"Open loop in `{region}`, from {starts} starting points out of fold (mean: skill below {NEAR}): {text}."


def about_learning_curve(table, region, *, feature_source="audio"):
    """Whether more data would still help."""
    done = table.dropna(subset=["skill"]).sort_values("share")
    if len(done) < 2:
        return f"Too few volumes to see in `{region}` how the skill grows with data."
    last, before = done.iloc[-1], done.iloc[-2]
    change, verdict = last["skill"] - before["skill"], "does not clearly change"
    if clear_of_0(change, last["rise_spread"], last["n_folds"]):
        verdict = "is still rising" if change > 0 else "is falling"
    return (
        f"In `{region}` the out-of-fold skill of {heard(feature_source)} {verdict} from {before['n_fit']:.0f} to "
        f"{last['n_fit']:.0f} volumes fitted on ({before['skill']:+z.4f} to "
        f"{_with_spread(last['skill'], last['fold_spread'])}); its gain over own history goes from "
        f"{before['gain']:+z.4f} to {_with_spread(last['gain'], last['gain_spread'])}."
    )


def about_effective(table, region):
    """How few independent samples a correlation is worth."""
    if not table["n_eff"].notna().any():
        return f"Neither `{region}` nor a feature varies, so no correlation is worth anything."
    low, high = table.loc[table["n_eff"].idxmin()], table.loc[table["n_eff"].idxmax()]
    return (
        f"A correlation of a feature with a voxel of `{region}` over {low['n_volumes']:.0f} volumes is worth "
        f"{low['n_eff']:.0f} ({low['feature']}) to {high['n_eff']:.0f} ({high['feature']}) independent samples in the "
        f"median voxel: unrelated series exceed |r| = {high['r_limit']:.2f} to {low['r_limit']:.2f} once in 20; "
        f"{1.96 / np.sqrt(low['n_volumes']):.2f} if samples were independent."
    )
