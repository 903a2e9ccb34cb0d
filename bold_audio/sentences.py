"""Numbers → plain sentences that are true for every subject."""

import numpy as np

from bold_audio.significance import LEVEL
from bold_audio.splits import stretches
from bold_audio.truth import read_truth

EXPECTED_OF = ("ds003688", "sim")  # whose results the original project spoke of, and their simulation
EXPECTED_MSE = 1e-5  # the original project's expectation for the test part
EXPECTED_R = (0.05, 0.1)  # on average in auditory cortex
EXPECTED_BEST_R = (0.1, 0.2)  # in its best voxels


def about_data(params, sound):
    """What a reader must know of the scan and the sound before any number."""
    parts = [f"sub-{params.subject} of {params.dataset}"]
    parts += [note for note in (scan_note(params),) if note]
    if params.feature_source == "annotations":
        parts.append(f"features from ANNOTATIONS, not from the sound: {', '.join(sound.names)}")
    else:
        parts.append(f"{len(sound.names)} MFCCs of {params.sound_note or sound.source}")
    parts += [f"WARNING: {alarm}" for alarm in sound.alarms]
    return "; ".join(parts) + "."


def scan_note(params):
    """What every figure of a scan must say of it, such as that it is SIMULATED; None where nothing must be said."""
    parts = [params.data_note] if params.data_note else []
    if read_truth(params) and "SIMULATED" not in " ".join((params.dataset, *parts)):
        parts.append("SIMULATED by bold_audio, whatever the dataset is called")
    return "; ".join(parts) or None


def about_split(split, t_r):
    """The split in volumes and seconds; of several runs every part, counted through all of them."""

    def spans(part):
        return ", ".join(f"{one[0] * t_r:.1f}–{(one[-1] + 1) * t_r:.1f} s" for one in stretches(part))

    parts = ((name, getattr(split, name)) for name in ("train", "gap", "test"))
    return ", ".join(f"{name} {len(part)} volumes ({spans(part)})" for name, part in parts if len(part)) + "."


def about_left_out(n_volumes, n_used, params):
    """Why some volumes are in no part of the split; nothing where all are."""
    left = n_volumes - n_used
    if not left:
        return ""
    delays, order = [*params.delays, *params.mlp_delays], params.history_order
    return (
        f"{left} of {n_volumes} volumes are in no part: they lie in the first {params.skip_initial:g} s, or not all of "
        f"the sound that reaches them at some delay of {min(delays):g} to {max(delays):g} s is there (a response lasts "
        "half a minute; all delays are compared on the same volumes)"
        + (f", or fewer than {order} volumes with all of it lie before them." if order else ".")
    )


def about_delay(found, *, block_length=None, truth=None, feature_source="audio"):
    """The chosen delay, how sure it is, and what it cannot tell; annotations are never called the sound."""
    row, again = found.chosen, _named_again(feature_source)
    curve = found.table[found.table["region"] == found.region].set_index("delay")
    here = curve.loc[found.delay]
    sure = f"p = {row['p']:.2g} among {row['n_surrogates']:.0f} surrogates of {again}"
    if row["alike"] > 1:
        sure += f" (every {row['alike']:.0f} neighbouring shifts count as one)"
    span = f"95 % interval {row['low']:g} to {row['high']:g} s" if np.isfinite(row["low"]) else ""
    if not np.isclose(found.delay, row["delay"]):  # evidence has the interval, skill chose
        span = f"chosen by skill; by evidence {row['delay']:g} s" + (f", {span}" if span else "")
    span = f" ({span})" if span else ""
    if row["identifiable"]:
        text = f"Inside train, the volumes of `{found.region}` follow {heard(feature_source)} best at "
        text += f"**Δt = {found.delay:g} s**{span}; "
        text += f"{sure}. "
    else:
        text = (
            f"**Not identifiable:** {heard(feature_source)} explains `{found.region}` no better in its place than "
            f"shifted ({sure}). "
        )
        text += f"Δt = {found.delay:g} s{span} is only the largest of what chance gives. "
    text += f"At that delay the skill on held-out volumes is {here['skill']:z.4f} ± {here['fold_spread']:.4f}"
    text += f"; by skill alone the best delay is {curve['skill'].idxmax():g} s."
    if not np.isfinite(row["low"]):
        text += " An interval needs at least three delays."
    if found.at_edge:
        text += " It lies at the edge of the delays tried: try a wider grid before trusting it."
    if block_length:
        text += (
            f" Speech and music alternate every {block_length:g} s, so a delay and the same delay ± "
            f"{2 * block_length:g} s look alike to the blocks."
        )
    if truth is not None:
        off = found.delay - truth
        text += f" The delay that fits the planted (simulated) response best is {truth:.2f} s: off by {off:+z.2f} s."
    return text


def about_voxel_delays(found, *, feature_source="audio"):
    """How many voxels have a delay of their own, and how these spread; annotations are never called the sound."""
    sure = found.voxels[found.voxels["p"] <= LEVEL]
    share = len(sure) / len(found.voxels)
    text = f"{len(sure)} of {len(found.voxels)} voxels ({share:.1%}) follow {heard(feature_source)} at "
    text += f"p ≤ {LEVEL:g} each; "
    text += f"chance alone gives {LEVEL:.0%}, so this map is for looking, not for counting."
    known = sure[sure["high"] - sure["low"] <= (found.table["delay"].max() - found.table["delay"].min()) / 2]
    if len(known):
        low, middle, high = known["delay"].quantile([0.25, 0.5, 0.75])
        text += (
            f" {len(known)} of them have a known delay: its 95 % interval spans at most half of the delays tried. "
            f"Half of these delays lie between {low:.1f} and {high:.1f} s (median {middle:.1f} s)."
        )
    return text


def about_settings(table, *, feature_source="audio"):
    """Which features predict best inside train, and whether the blocks alone do as well; as `about_delay`."""
    sound, again = table[~table["blocks"]], _named_again(feature_source).removeprefix("the ")
    first = again if feature_source == "audio" else "ANNOTATIONS (no sound was heard)"
    best = sound.loc[sound["skill"].idxmax()]
    text = (
        f"{len(table):,} settings. The best with {first} alone: {best['n_features']:.0f} features, "
        f"{best['n_lags']:.0f} further windows, Δt = {best['delay']:g} s, skill {best['skill']:z.4f}. "
        "It is the best of many, so it flatters."
    )
    blocks = table[table["n_features"] == 0]
    if len(blocks):
        both = table[table["blocks"] & (table["n_features"] > 0)]
        text += f" The blocks alone reach {blocks['skill'].max():z.4f}, {again} and blocks {both['skill'].max():z.4f}."
    return text


def row_of(table, model, region, prediction="one_step"):
    """The one row of a score table for a model, region and prediction; None where absent."""
    rows = table[(table["model"] == model) & (table["region"] == region) & (table["prediction"] == prediction)]
    return rows.iloc[0] if len(rows) else None


def about_baselines(table, region):
    """How strong the models that hear nothing are."""
    copy, history = (row_of(table, name, region) for name in ("copy_previous", "history"))
    if not np.isfinite(copy["skill"]):
        return f"`{region}` does not vary in these volumes, so there is nothing to predict."
    return (
        f"Copying the previous volume {_changes(copy['skill'])} the train mean's squared error in `{region}` by "
        f"{abs(copy['skill']):.1%} ({_r(copy['r_median'])} in the median voxel), each voxel's own history "
        f"{_changes(history['skill'])} it by {abs(history['skill']):.1%} ({_r(history['r_median'])}). Neither knows "
        "what was heard: a model that does must add to these."
    )


def about_mlp(table, region):
    """Whether the MLP beats ridge on the same volumes: the row with the same past, or the better of those without."""
    mlp = row_of(table, "mlp", region)
    if mlp is None:
        return "The MLP is not among these rows."
    names = ("history_sound",) if mlp["reference"] == "history" else ("linear_delay", "sound")
    ridge = min((row_of(table, name, region) for name in names), key=lambda row: row["mse"])
    verdict = "has a smaller error than" if mlp["mse"] < ridge["mse"] else "does **not** beat"
    gains = ""
    if mlp["reference"] == "history" and np.isfinite(mlp["skill"]):
        gains = f"; over own history the network gains {mlp['skill']:+z.4f}, ridge {ridge['skill']:+z.4f}"
    return (
        f"In `{region}` the MLP {verdict} ridge (`{ridge['model']}`): MSE {mlp['mse']:.4g} against "
        f"{ridge['mse']:.4g}, same volumes, one-step{gains}."
    )


def about_expectations(table, region, *, feature_source="audio"):
    """The original project's expectations beside what came out; annotations are never called the sound."""
    sound, rows = (
        row_of(table, "sound", region),
        table[(table["region"] == region) & (table["prediction"] == "one_step")],
    )
    best = rows.loc[rows["mse"].idxmin()]
    exponent = int(np.floor(np.log10(best["mse"]))) if best["mse"] > 0 else 0
    words = "as expected" if 0.1 < best["mse"] / EXPECTED_MSE < 10 else f"not of the order {EXPECTED_MSE:.0e}"
    r, top = sound["r_median"], sound["r_best"]
    name = heard(feature_source)
    name = name[0].upper() + name[1:]
    if not np.isfinite(r):
        tail = "The sound's strength" if feature_source == "audio" else f"{name}: its strength"
        tail += " vanished in every voxel, so it has no r to compare."
    else:
        tail = (
            f"{name} alone reaches r = {r:z.3f} in the median {_voxel_with_r(sound)} of `{region}` and {top:z.3f} in "
            f"the best one; it expected {EXPECTED_R[0]}–{EXPECTED_R[1]} on average and "
            f"{EXPECTED_BEST_R[0]}–{EXPECTED_BEST_R[1]} in the best voxels of auditory cortex"
            f"{'' if region == 'auditory' else ', which is not the same region'}."
        )
    return (
        f"The project that bold_audio replaces expected a test MSE of the order {EXPECTED_MSE:.0e}: the smallest "
        "one-step MSE here is "
        f"{best['mse']:.2g} (`{best['model']}`, order 1e{exponent}), {words}. {tail}"
    )


def heard(feature_source):
    """What the features are called: annotations are never called the sound."""
    return "the sound" if feature_source == "audio" else "what was ANNOTATED of the sound (no sound was heard)"


def _named_again(feature_source):
    """What the features are called where `heard` stands before."""
    return "the sound" if feature_source == "audio" else "the annotations"


def lowered(feature_source, gain, over):
    """What the sound does to the error that ``over`` leaves, such as "the past": half a sentence.

    Examples
    --------
    >>> lowered("audio", 0.0322, "the past and the film's blocks")
    "the sound lowers the squared error that the past and the film's blocks leave by 3.22%"
    >>> lowered("audio", -0.002, "the past")
    'the sound raises the squared error that the past leaves by 0.20%'
    """
    leave = "leave" if " and " in over else "leaves"
    return f"{heard(feature_source)} {_changes(gain)} the squared error that {over} {leave} by {abs(gain):.2%}"


def _changes(skill):
    """What a model does to an error of which its skill is this share."""
    return "lowers" if skill >= 0 else "raises"


def _r(value):
    return f"r = {value:z.2f}" if np.isfinite(value) else "no r"


def _voxel_with_r(row):
    """What a median of r is of: where the sound vanished there is no r, and a reader must know in how many voxels."""
    n, of = row["n_with_r"], row["n_voxels"]
    return f"of {n:,} of {of:,} voxels (it vanished in the others)" if n < of else "voxel"


def headline(table, region, delay, *, feature_source="audio", identifiable=True):
    """The sentence at the top of a subject's report; annotations are never called the sound."""
    at = f"Δt = {delay:g} s" + ("" if identifiable else " (not identifiable: no delay is shown)")
    name = "history_blocks_sound" if row_of(table, "history_blocks_sound", region) is not None else "history_sound"
    row, alone = row_of(table, name, region), row_of(table, "sound", region)
    if not np.isfinite(row["skill"]):
        return f"`{region}` does not vary in the test part, so nothing can be said of it."
    alone_r = "no r (its strength vanished)"
    if np.isfinite(alone["r_median"]):
        alone_r = f"r = {alone['r_median']:z.2f} in the median {_voxel_with_r(alone)}"
    return (
        f"In `{region}` {heard(feature_source)} alone reaches {alone_r} at {at}; added "
        f"to `{row['reference']}`, it {_changes(row['skill'])} the one-step squared error by {abs(row['skill']):.2%}."
    )
