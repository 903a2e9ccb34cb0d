"""One subject from files to arrays: find the scan, hear the sound, pair them in time, split the run."""

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from bold_audio import (
    adopt,
    anatomy,
    atlases,
    bids,
    confounds,
    data,
    features,
    fetch,
    images,
    motion,
    pairing,
    region_specs,
    register,
    runs,
    sound,
    truth,
)
from bold_audio.files import DataError, ParameterError, file_md5, fingerprint, read_json
from bold_audio.locking import lock
from bold_audio.provenance import code_fingerprint, record_step
from bold_audio.schema import SIMULATED

SHORT_SOUND = 0.5  # s that a sound may lack at its end without a word
# Parameters that change where results go or how fast they come, not what they are.
NOT_RESULTS = {
    "data_dir", "outputs_dir", "models_dir", "checkpoint_dir", "mlflow_uri", "mlflow_experiment", "mlflow_required",
    "model_name",
    "model_version", "overwrite_model", "served_model", "runtime", "returns", "allow_other_subject", "triton_url",
    "triton_protocol", "triton_timeout", "prediction", "chunk_voxels", "dvc_remote", "dvc_url", "dvc_jobs",
    "dvc_timeout",
}  # fmt: skip

# Of mlp_delays the volumes depend, too, on which everything is compared: it is not among these.
MLP_ONLY = {
    "hidden_dims", "dropout", "max_epochs", "batch_size", "n_components", "lr", "weight_decay", "target", "mlp_history",
    "mlp_history_components",
}  # fmt: skip


@dataclass
class Subject:
    """A subject's run, sound and split, ready to be modelled.

    Parameters
    ----------
    params : Params
    run : data.BoldRun
    sound : features.SoundFeatures
    blocks : features.SoundFeatures or None
        Speech/music boxcar; None where the film has no such blocks.
    split : pairing.Split
    folds : list of (fit, held) arrays of int
        Blocked folds inside train.
    designs : dict of str to pairing.SoundDesign
        ``sound``, ``zero`` (one window, for Δt = 0) and, with blocks, ``blocks``.
    anatomy : anatomy.Anatomy
        How the regions of the parameter ``regions`` were found, or why there are none.
    """

    params: object
    run: data.BoldRun
    sound: features.SoundFeatures
    blocks: object
    split: pairing.Split
    folds: list
    designs: dict
    anatomy: object = field(default_factory=anatomy.Anatomy)

    @property
    def Y(self):
        """Volumes, array of shape (n_volumes, n_voxels), raw intensities."""
        return self.run.volumes

    @property
    def gap_volumes(self):
        """The gap in volumes."""
        return pairing.volumes_of(self.params.gap, self.run.files.t_r)

    @property
    def block_length(self):
        """Length of the film's alternating blocks, in seconds; None where it has none."""
        if self.blocks is None:
            return None
        speech = self.run.files.events["trial_type"].astype(str) == "speech"
        return float(self.run.files.events.loc[speech, "duration"].astype(float).median())

    @property
    def after_train(self):
        """Volumes right after train, through the gap to the end of test; of every run that has a test part."""
        return np.concatenate([path for path, _ in self.paths(self.split.test, self.split.train)])

    @cached_property
    def whole_run(self):
        """Every volume that is used at all, train, gap and test: what out-of-fold inference goes over."""
        return np.sort(np.concatenate([self.split.train, self.split.gap, self.split.test]))

    def outer_folds(self):
        """Contiguous held-out blocks of the whole run, with a gap on both sides: list of (fit, held) arrays of int.

        Raises
        ------
        ParameterError
            If the gap is shorter than the history: volumes of a held-out block would be the past of others.
        """
        params = self.params
        if self.gap_volumes < params.history_order:
            raise ParameterError(
                f"gap {params.gap:g} s is {self.gap_volumes} volumes, fewer than history_order "
                f"{params.history_order} - lengthen gap, or lower history_order"
            )
        return pairing.blocked_folds(self.whole_run, n_folds=self.params.n_folds, gap_volumes=self.gap_volumes)

    def inner_folds(self, fit):
        """Blocked folds inside the volumes fitted on, for choices nested in an outer fold."""
        return pairing.blocked_folds(fit, n_folds=self.params.n_folds, gap_volumes=self.gap_volumes)

    def check_folds(self, steps):
        """Refuse a run that is too short for the nested folds of some steps (their numbers), before the first begins.

        Raises
        ------
        ParameterError
        """
        nested = [self.folds[-1][0]] if {"02", "04"} & set(steps) else []
        nested += [fit for fit, _ in self.outer_folds()] if "06" in steps else []
        for fit in nested:
            self.inner_folds(fit)

    def paths(self, volumes, fitted_on):
        """Cut volumes into stretches without a break, each with the way to it from what was fitted on.

        Parameters
        ----------
        volumes : array of int
            Increasing.
        fitted_on : array of int

        Returns
        -------
        list of (path, stretch) arrays of int
            ``path`` ends with the stretch, and begins right after the last volume of ``fitted_on`` in the same run, or
            with the stretch itself where that run has none.
        """
        made = []
        for stretch in pairing.stretches(volumes):
            run_start = self.run.files.starts[self.run.files.starts <= stretch[0]][-1]
            before = fitted_on[(fitted_on >= run_start) & (fitted_on < stretch[0])]
            first = before[-1] + 1 if len(before) else stretch[0]
            made.append((np.arange(first, stretch[-1] + 1), stretch))
        return made

    def scaled(self, kind, delay, rows=None):
        """Features of a design at ``delay`` s, scaled on ``rows`` (train): array, mean, scale."""
        return pairing.scale_on(self.designs[kind].at(delay), self.split.train if rows is None else rows)

    @cached_property
    def input_md5(self):
        """MD5 of the scan and its mask, of what sound features were made from, and of what regions were found by."""
        return input_md5(self.params, self.run.files, others=self.anatomy.files)

    def result_key(self, *modules, without=frozenset()):
        """Hash of inputs, parameters and code that a result depends on."""
        import bold_audio.prepare as this

        kept = result_parameters(self.params.model_dump(), without=without)
        read = (anatomy, atlases, bids, confounds, data, features, images, motion, pairing, region_specs, register)
        read = (*read, runs, sound, truth, this)
        return fingerprint(kept, self.input_md5, code_fingerprint(*read, *modules))

    def record(self, step, **facts):
        """Write what a step did into ``provenance.json``."""
        parameters = self.params.model_dump()
        known = {"parameters": parameters, "input_md5": self.input_md5, "anatomy": self.anatomy.facts}
        record_step(self.path("provenance.json"), step, **known, **facts)

    def recorded(self, step):
        """What `record` wrote of a step: dict, empty where it was never done."""
        return read_json(self.path("provenance.json"), default={}).get(step, {})

    def has(self, step, key, *names):
        """Whether a step was done with this `result_key`, and the files that it writes are there."""
        return self.recorded(step).get("key") == key and all(self.path(name).is_file() for name in names)

    def path(self, name):
        """Path of one of this subject's result files."""
        return self.params.subject_path / name


def result_parameters(parameters, *, without=frozenset()):
    """The parameters that decide what results are, of all by name; ``without`` those that one result does not need."""
    return {name: value for name, value in parameters.items() if name not in NOT_RESULTS | set(without)}


def input_md5(params, files, *, others=()):
    """MD5 of the scan's files, sidecars and mask image, of what the sound is read from and of ``others``, by name.

    Raises
    ------
    DataError
        If what the sound is read from is not there.
    ParameterError
        If the mask image is not there.
    """
    heard = params.feature_source == "audio"
    sources = list(itertools.chain(*([params.audio_files] if heard else annotation_paths(params))))
    for path in sources:
        if not path.is_file():  # whoever reads it says what to do
            sound.open_sound(path) if heard else features.read_table(path, columns=())
    paths = [path for part in files.parts for path in (part.bold, part.mask, part.confounds, *part.beside)]
    paths = [path for path in (*paths, data.mask_file(params), *sources, *others) if path is not None]
    names = [path.name for path in dict.fromkeys(paths)]
    return {path.name if names.count(path.name) == 1 else str(path): file_md5(path) for path in dict.fromkeys(paths)}


def scans_in(inputs):
    """The MD5s of the scans among a result's inputs (from `input_md5`): by them a scan under another name is known."""
    return {md5 for name, md5 in inputs.items() if name.endswith(("_bold.nii.gz", "_bold.nii"))}


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


def ensure_scan(params):
    """Locate the subject's run or runs; the simulated subject is made when it is missing, a real one never replaced.

    One that another process is making is waited for, one whose making was stopped is made again. A missing subject of
    ds003688 is fetched where the token of DVC's remote is set.
    """
    if params.dataset == SIMULATED and _is_unmade(params):
        from bold_audio import simulate

        with lock(params.data_path.parent / f".{params.data_path.name}.lock", wait=600, doing="the simulation"):
            if _is_unmade(params):
                simulate.simulate_subject(params.data_path, subject=params.subject, only_missing=True)
    fetch.fetch_missing(params)
    return runs.locate_runs(params)


def _is_unmade(params):
    """Whether nobody is in the tree, or only this simulated subject, whose scan, which is written last, is missing."""
    there = bids.known_subjects(params)
    if there != [params.subject]:
        return not there
    from bold_audio import simulate

    scan = simulate.scan_path(params.data_path, params.subject)
    if params.derivatives is not None or any(scan.parent.glob("sub-*_bold.nii*")):
        return False
    about = read_json(params.data_path / "dataset_description.json", default={})  # a real subject is never replaced
    return isinstance(about, dict) and about.get("Name") == simulate.DATASET_NAME


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
    blocks = [_blocks(part) for part in parts] if annotated else []
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


def _told(texts, parts):
    """What is said of each run's sound, with the run's name before what is not said of all: a tuple for each run."""
    shared = set.intersection(*map(set, texts))
    named = []
    for said, part in zip(texts, parts, strict=True):
        run = bids.entities_of(part.bold).get("run")
        name = part.entities if run is None else f"run-{run}"
        named.append(tuple(text if text in shared else f"{name}: {text}" for text in said))
    return named


def _blocks(part):
    """The speech/music boxcar of a run; None where it has no such blocks."""
    if part.events is None:
        return None
    return features.block_features(part.events, onset=part.onset, duration=part.heard)


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


def open_subject(params):
    """Read a subject's scan and sound, pair them in time and split the run; write nothing but the cache.

    Of people who are only compared this is all; `workflow.open_subject` opens the one that is run.

    Parameters
    ----------
    params : Params

    Returns
    -------
    Subject

    Raises
    ------
    DataError, ParameterError
        If the scan or the sound is missing or damaged, or nothing is left to split.
    """
    files = ensure_scan(params)
    sounds = read_features(params, files)
    blocks = [_blocks(part) for part in files.parts]
    blocks = blocks if all(one is not None for one in blocks) else None
    # Lags of a boxcar are nearly the boxcar again, so fir keeps its one window there.
    boxcar_response = "hrf" if params.response == "hrf" else "delay"
    designs = {
        "sound": design_of(sounds, files, response=params.response, n_lags=params.sound_lags),
        "zero": design_of(sounds, files),
    } | ({"blocks": design_of(blocks, files, response=boxcar_response)} if blocks else {})
    # The same volumes for every delay compared, in the sweep, the MLP and the table.
    delays = [*params.delays, *params.mlp_delays]
    usable = pairing.covered_volumes([d for name, d in designs.items() if name != "zero"], delays)
    usable &= pairing.covered_volumes([designs["zero"]], [0.0])
    split = pairing.split_runs(
        [part.n_volumes for part in files.parts],
        files.t_r,
        skip_initial=params.skip_initial,
        train_fraction=params.train_fraction,
        gap=params.gap,
        usable=usable,
        n_before=params.history_order,
        by=params.split_by,
    )
    folds = pairing.blocked_folds(
        split.train, n_folds=params.n_folds, gap_volumes=pairing.volumes_of(params.gap, files.t_r)
    )
    run = data.load_run(files, params, train=split.train, level_on=level_volumes(files, split, params))
    found = anatomy.find_anatomy(run, params)
    run.regions.update(found.regions)
    return Subject(params, run, first_sound(sounds), blocks and blocks[0], split, folds, designs, found)


def level_volumes(files, split, params):
    """Volumes of each run that its level is known from: its train part, or what was measured before its test part."""
    if len(files.parts) == 1:
        return None
    skipped, kept = pairing.volumes_of(params.skip_initial, files.t_r), []
    for start, part in zip(files.starts, files.parts, strict=True):
        train = split.train[(split.train >= start) & (split.train < start + part.n_volumes)]
        if not len(train):
            first = split.test[split.test >= start][0]
            train = np.arange(min(start + skipped, first - params.history_order), first)
        kept.append(train)
    return kept


def first_sound(sounds):
    """The first run's sound, which names those of the others and says what is to be said of any of them."""
    warnings, alarms = (
        tuple(dict.fromkeys(itertools.chain(*(getattr(one, kind) for one in sounds))))
        for kind in ("warnings", "alarms")
    )
    source = " and ".join(dict.fromkeys(one.source for one in sounds))
    return replace(sounds[0], source=source, warnings=warnings, alarms=alarms)


def design_of(sounds, files, **how):
    """What the volumes of all runs hear."""
    return pairing.join_designs(
        [
            pairing.make_design(one, part.sound_times, files.t_r, **how)
            for one, part in zip(sounds, files.parts, strict=True)
        ]
    )
