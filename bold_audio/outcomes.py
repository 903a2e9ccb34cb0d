"""What the sound adds, out of fold over the whole run, and the studies around it: made once, re-read after that.

Each function takes a subject and gives a table; it is written into the subject's folder, and re-read where inputs,
parameters and code are the same.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bold_audio import (
    ablations,
    brain,
    choices,
    data,
    delays,
    effective,
    encoding,
    evidence,
    feature_sets,
    gram,
    horizon,
    learning_curve,
    models,
    nested,
    out_of_fold,
    partition,
    ridge,
    scores,
    significance,
    space,
    sweep,
)
from bold_audio.files import file_md5, fingerprint, write_arrays, write_table
from bold_audio.hearing import annotation_paths
from bold_audio.prepare import MLP_ONLY

CHOICES = (gram, evidence, significance, sweep, nested)
FITS = (*CHOICES, choices, encoding, ridge, space, models, scores, out_of_fold)
# Parameters of the sweep's own reading and of the MLP, which nothing here looks at.
NOT_USED = MLP_ONLY | {"sweep_target", "delay_by", "seed"}
MAPS = {"r": "Pearson r", "gain": "share of the past's squared error that the sound removes", "partial_r": "partial r"}


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold scores of a subject's whole run.

    Parameters
    ----------
    table : DataFrame
        From `out_of_fold.score_table`.
    voxels : dict of (str, str) to dict
        As `models.score_rows` gives them: per model and ``one_step`` each voxel's ``mse``, ``r``, ``gain``,
        ``partial_r``.
    chosen : list of nested.FoldChoice
        What every outer fold chose.
    """

    table: pd.DataFrame
    voxels: dict
    chosen: list


def _this():
    """This module, whose own code the results depend on too."""
    import bold_audio.outcomes as this

    return this


def _key(subject, modules, *settings):
    return fingerprint(subject.result_key(*modules, _this(), without=NOT_USED), *settings)


def _smooth(subject):
    params, until = subject.params, subject.whole_run[-1] + 1
    return data.smooth_volumes(subject.run, params.sweep_fwhm, until=until, cache_path=params.cache_path)


def ensure_outer_folds(subject):
    """What every outer fold of the whole run chooses inside itself: list of nested.FoldChoice.

    Writes ``outer_folds.npz``.
    """
    name, key = "outer_folds.npz", _key(subject, CHOICES)
    if not subject.has("outer_folds", key, name):
        sound = delays.delayed_sound(subject, subject.params.delays)
        made = nested.choose_folds(subject, _smooth(subject), sound)
        kept = {field: np.stack([getattr(one, field) for one in made]) for field in nested.Supported.__annotations__}
        write_arrays(subject.path(name), kept)
        subject.record("outer_folds", key=key, delays=[one.delay for one in made])
    with np.load(subject.path(name)) as kept:
        known = [dict(zip(kept.files, values, strict=True)) for values in zip(*kept.values(), strict=True)]
    return [
        nested.FoldChoice(
            **one | {"delay": float(one["delay"]), "evidence": float(one["evidence"])},
            fit=fit,
            held=held,
            inner=subject.inner_folds(fit),
        )
        for one, (fit, held) in zip(known, subject.outer_folds(), strict=True)
    ]


def ensure_out_of_fold(subject):
    """Out-of-fold one-step scores of the linear rows over the whole run, in every region and voxel.

    Writes ``out_of_fold.tsv``, ``out_of_fold.npz`` (each voxel's scores) and maps of r, gain and partial r.

    Returns
    -------
    OutOfFold
    """
    names, key = ("out_of_fold.tsv", "out_of_fold.npz"), _key(subject, FITS)
    chosen = ensure_outer_folds(subject)
    if not subject.has("out_of_fold", key, *names):
        tallies = out_of_fold.tally_folds(subject, chosen)
        masks = dict(subject.run.regions)
        if any(one.responsive.any() for one in chosen):
            masks["responsive"] = nested.region_masks(subject, chosen, "responsive")
        value_range = subject.run.value_range
        write_table(subject.path(names[0]), out_of_fold.score_table(tallies, masks, value_range=value_range))
        voxels = out_of_fold.voxel_scores(tallies, value_range=value_range)
        flat = {f"{model} {stat}": values for (model, _), one in voxels.items() for stat, values in one.items()}
        write_arrays(subject.path(names[1]), {name: values.astype(np.float32) for name, values in flat.items()})
        write_maps(subject, voxels)
        subject.record("out_of_fold", key=key, delays=[one.delay for one in chosen])
    voxels = {}
    with np.load(subject.path(names[1])) as kept:
        for name in kept.files:
            model, stat = name.split(" ")
            voxels.setdefault((model, "one_step"), {})[stat] = kept[name]
    return OutOfFold(_read(subject, names[0]), voxels, chosen)


def write_maps(subject, voxels):
    """Write the out-of-fold maps: r of the sound, gain and partial r of the sound over the past (and the blocks)."""
    said = f"out of fold over the whole run, one-step, {len(subject.whole_run)} volumes; NaN outside the mask"
    for model, stats in (("sound", ["r"]), ("history_sound", MAPS), ("history_blocks_sound", MAPS)):
        found = voxels.get((model, "one_step"), {})
        for stat in stats:
            if stat in found and not (stat == "r" and model != "sound"):
                text = f"{MAPS[stat]}, {model.replace('_', ' and ')}; {said}"
                label = "oof" + "".join(word.capitalize() for word in model.split("_"))
                name = stat.replace("_", "")
                brain.write_map(subject.run, subject.params, found[stat], model=label, stat=name, description=text)


def study_region(subject):
    """The region of a study where none is named: auditory, else the one that chooses the delay, else the whole."""
    regions, wanted = subject.run.regions, subject.params.delay_region
    if "auditory" in regions or wanted in regions:
        return "auditory" if "auditory" in regions else wanted
    enough = subject.run.n_voxels > 1 / sweep.RESPONSIVE_SHARE
    return "responsive" if wanted == "responsive" and enough else next(iter(regions))


def _study(subject, kind, region, modules, make, *settings):
    """The table of one study of one region, made from its outer folds where it is not there yet."""
    step = kind if region is None else f"{kind}_{region}"
    region = region or study_region(subject)
    key = _key(subject, modules, region, *settings)
    if not subject.has(step, key, f"{step}.tsv"):
        folds = nested.region_folds(subject, ensure_outer_folds(subject), region, _smooth(subject))
        write_table(subject.path(f"{step}.tsv"), make(folds).assign(region=region))
        subject.record(step, key=key)
    return _read(subject, f"{step}.tsv")


def _read(subject, name):
    table = pd.read_csv(subject.path(name), sep="\t")
    return table.assign(note=table["note"].astype(object).fillna("")) if "note" in table else table


def ensure_partition(subject, region=None):
    """What sound, blocks and own history predict alone and in common in a region; see `partition.partition_region`.

    Writes ``partition.tsv``, for another region than `study_region` ``partition_<region>.tsv``.
    """

    def make(folds):
        designs, settings = subject.designs, _settings(subject)
        return partition.partition_region(folds, designs["sound"], designs.get("blocks"), **settings)

    return _study(subject, "partition", region, (*FITS, partition), make)


def ensure_ablations(subject, region=None):
    """Loudness, MFCCs without it, all of them, envelope, blocks, annotations; see `ablations.compare_sets`.

    Writes ``ablations.tsv``, for another region than `study_region` ``ablations_<region>.tsv``.
    """
    tables = []
    if subject.params.annotation_tables:
        tables = [path for paths in annotation_paths(subject.params) for path in paths]
    read = {str(path): file_md5(path) for path in tables if path.is_file()}

    def make(folds):
        return ablations.compare_sets(folds, feature_sets.ablation_sets(subject), **_settings(subject))

    return _study(subject, "ablations", region, (*FITS, ablations, feature_sets), make, read)


def ensure_responses(subject, region=None):
    """What a single delay loses against windows over 0 to 12 s and the canonical response: `ablations.compare_sets`.

    Writes ``responses.tsv``, for another region than `study_region` ``responses_<region>.tsv``.
    """

    def make(folds):
        return ablations.compare_sets(folds, feature_sets.response_sets(subject), **_settings(subject))

    return _study(subject, "responses", region, (*FITS, ablations, feature_sets), make)


def ensure_horizon(subject, region=None):
    """Open-loop skill by how far ahead, from many starting points; see `horizon.skill_by_horizon`.

    Writes ``horizon.tsv``, for another region than `study_region` ``horizon_<region>.tsv``.
    """

    def make(folds):
        settings = _settings(subject) | {"value_range": subject.run.value_range}
        return horizon.skill_by_horizon(folds, subject.designs["sound"], subject.designs.get("blocks"), **settings)

    return _study(subject, "horizon", region, (*FITS, horizon), make)


def ensure_learning_curve(subject, region=None):
    """Skill and gain in a region by the share of volumes fitted on; see `learning_curve.learning_curve`.

    Writes ``learning_curve.tsv``, for another region than `study_region` ``learning_curve_<region>.tsv``.
    """
    params = subject.params

    def make(folds):
        inner = {"n_folds": params.n_folds, "gap_volumes": subject.gap_volumes}
        return learning_curve.learning_curve(
            folds, subject.designs["sound"], params.delays, **inner, **_settings(subject)
        )

    return _study(subject, "learning_curve", region, (*FITS, horizon, learning_curve), make)


def ensure_effective_samples(subject, region=None):
    """How many independent samples a feature's correlation with a region's voxels is worth; see `effective`.

    Over the whole run, at the median delay of the outer folds; a description of the data, nothing is chosen by it.
    Writes ``effective_samples.tsv``, for another region than `study_region` ``effective_samples_<region>.tsv``.
    """

    def make(folds):
        delay, volumes = float(np.median([fold.delay for fold in folds])), subject.whole_run
        X, names = subject.designs["sound"].at(delay)[volumes], _column_names(subject)
        if subject.blocks is not None:
            X, names = np.hstack([X, subject.designs["blocks"].at(delay)[volumes]]), [*names, "blocks"]
        at = np.unique(np.concatenate([fold.at for fold in folds]))
        return effective.effective_table(subject.Y[volumes][:, at], X, names, volumes)

    return _study(subject, "effective_samples", region, (*CHOICES, effective), make)


def _column_names(subject):
    """Names of the sound design's columns; those of a further window of ``fir`` say which."""
    lags = subject.params.sound_lags if subject.params.response == "fir" else 0
    return [name if not lag else f"{name}, {lag} earlier" for lag in range(lags + 1) for name in subject.sound.names]


def _settings(subject):
    return {"alphas": subject.params.alphas, "max_order": subject.params.history_order}
