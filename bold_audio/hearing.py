"""Sound files or annotation tables of every run → features that all runs share, and what each volume hears of them."""

import itertools
from dataclasses import replace

import numpy as np

from bold_audio import adopt, bids, features, pairing
from bold_audio.files import DataError

SHORT_SOUND = 0.5  # s that a sound may lack at its end without a word


def read_features(params, files):
    """Sound features of each run, from sound files or from annotations, as ``feature_source`` says.

    Parameters
    ----------
    params : Params
    files : runs.RunFiles or runs.SeveralRuns

    Returns
    -------
    list of features.SoundFeatures
        Of several runs, warnings and alarms name the runs that they are of, but for those of every run.

    Raises
    ------
    DataError
        If a sound is missing or too short, or there are neither as many sounds as runs nor one for all.
    """
    annotated = params.feature_source == "annotations"
    sources = annotation_paths(params) if annotated else params.audio_files
    if not sources:
        raise DataError(f"dataset {params.dataset} names no sound file - set audio_path, or feature_source annotations")
    check_number(sources, files, parameter="annotation_tables" if annotated else "audio_path")
    parts, made = files.parts, []
    blocks = [blocks_of(part) for part in parts] if annotated else []
    blocks = blocks if all(one is not None for one in blocks) else []  # all runs have the same features
    for k, part in enumerate(parts):
        source = sources[k % len(sources)]
        if annotated:
            one = features.annotation_features(source, duration=part.heard)
            made.append(features.join_features(one, blocks[k]) if blocks else one)
        else:
            made.append(_mfcc(params, part, source, words=adopt.word_table(params, k, len(parts))))
    fewest = min(one.n_bands for one in made)
    for k, one in enumerate(made):  # MFCCs of more bands would be other features in one run than in another
        if one.n_bands > fewest:
            words = adopt.word_table(params, k, len(parts))
            made[k] = _mfcc(params, parts[k], sources[k % len(sources)], words=words, n_bands=fewest)
    told = [_told([getattr(one, kind) for one in made], parts) for kind in ("warnings", "alarms")]
    return [replace(one, warnings=warnings, alarms=alarms) for one, warnings, alarms in zip(made, *told, strict=True)]


def annotation_paths(params):
    """Paths of the annotation tables: a list for each run, or one that serves all.

    Raises
    ------
    DataError
        If the dataset names none.
    """
    if not params.annotation_tables:
        raise DataError(f"dataset {params.dataset} names no annotation_tables - set them, or feature_source audio")
    tables = params.annotation_tables
    tables = [tables] if isinstance(tables[0], str) else tables
    return [[params.data_path / path for path in one] for one in tables]


def check_number(sources, files, *, parameter):
    """Refuse sounds, or lists of annotation tables, that are neither as many as the runs nor one for all.

    Parameters
    ----------
    sources : list
    files : runs.RunFiles or runs.SeveralRuns
    parameter : str
        Which parameter names them.

    Raises
    ------
    DataError
    """
    if len(sources) not in (1, len(files.parts)):
        raise DataError(
            f"{parameter} has {len(sources)} for {len(files.parts)} runs - give one for each run, or one for all"
        )


def _mfcc(params, part, path, *, words, n_bands=None):
    settings = {name: getattr(params, name) for name in ("sample_rate", "n_mfcc", "n_fft", "hop_length")}
    made = features.cached_mfcc(path, params.cache_path, n_bands=n_bands, **settings)
    if n_bands is not None:
        less = f"the sound of another run has a lower rate: MFCCs of all runs are made of its {n_bands} mel bands"
        made = replace(made, warnings=(*made.warnings, less))
    if made.duration < part.heard - SHORT_SOUND:
        short = f"sound stops at {made.duration:.1f} s, the scan needs {part.heard:.1f} s of it"
        if not params.allow_short:
            raise DataError(
                f"{short}: {path.name} - use the whole sound, or set allow_short true to leave out the volumes after "
                "its end"
            )
        made = replace(
            made, warnings=(*made.warnings, f"{short}: the last {_unheard(made, params, part)} volumes are left out")
        )
    return adopt.judge_sound(made, params, part, path, words=words)


def _unheard(made, params, part):
    """How many volumes at the end of a run the sound does not cover at some delay."""
    design = design_of([made], part, response=params.response, n_lags=params.sound_lags)
    covered = pairing.covered_volumes([design], [*params.delays, *params.mlp_delays])
    return part.n_volumes - 1 - np.flatnonzero(covered)[-1] if covered.any() else part.n_volumes


def _told(texts, parts):
    """What is said of each run's sound, with the run's name before what is not said of all: a tuple for each run."""
    shared = set.intersection(*map(set, texts))
    named = []
    for said, part in zip(texts, parts, strict=True):
        run = bids.entities_of(part.bold).get("run")
        name = part.entities if run is None else f"run-{run}"
        named.append(tuple(text if text in shared else f"{name}: {text}" for text in said))
    return named


def first_sound(sounds):
    """The first run's sound, which names those of the others and says what is to be said of any of them."""
    warnings, alarms = (
        tuple(dict.fromkeys(itertools.chain(*(getattr(one, kind) for one in sounds))))
        for kind in ("warnings", "alarms")
    )
    source = " and ".join(dict.fromkeys(one.source for one in sounds))
    return replace(sounds[0], source=source, warnings=warnings, alarms=alarms)


def blocks_of(part):
    """The speech/music boxcar of a run, as `features.SoundFeatures`; None where it has no such blocks."""
    if part.events is None:
        return None
    return features.block_features(part.events, onset=part.onset, duration=part.heard)


def design_of(sounds, files, **how):
    """What the volumes of all runs hear."""
    return pairing.join_designs(
        [
            pairing.make_design(one, part.sound_times, files.t_r, **how)
            for one, part in zip(sounds, files.parts, strict=True)
        ]
    )
