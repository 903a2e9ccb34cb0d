"""One subject from files to arrays: find the scan, hear the sound, pair them in time, split the run."""

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bold_audio import (
    anatomy,
    atlases,
    bids,
    confounds,
    data,
    features,
    fetch,
    hearing,
    images,
    motion,
    pairing,
    region_specs,
    register,
    runs,
    sound,
    splits,
    truth,
)
from bold_audio.files import ParameterError, file_md5, fingerprint, read_json
from bold_audio.locking import lock
from bold_audio.provenance import code_fingerprint, record_step
from bold_audio.schema import SIMULATED

# Parameters that change where results go or how fast they come, not what they are.
NOT_RESULTS = {
    "data_dir", "outputs_dir", "models_dir", "checkpoint_dir", "mlflow_uri", "mlflow_experiment", "mlflow_required",
    "model_name",
    "model_version", "overwrite_model", "served_model", "runtime", "returns", "allow_other_subject", "triton_url",
    "triton_protocol", "triton_timeout", "prediction", "chunk_voxels", "dvc_remote", "dvc_url", "dvc_jobs",
    "dvc_timeout",
}  # fmt: skip

# On mlp_delays and mlp_history the volumes depend, too, on which everything is compared: they are not among these.
MLP_ONLY = {
    "hidden_dims", "dropout", "max_epochs", "batch_size", "n_components", "lr", "weight_decay", "target",
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
    split : splits.Split
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
    split: splits.Split
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
        return splits.volumes_of(self.params.gap, self.run.files.t_r)

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
        """Held-out blocks of the whole run, with a gap on both sides: list of (fit, held) arrays of int."""
        return splits.blocked_folds(self.whole_run, n_folds=self.params.n_folds, gap_volumes=self.gap_volumes)

    def inner_folds(self, fit):
        """Blocked folds inside the volumes fitted on, for choices nested in an outer fold."""
        return splits.blocked_folds(fit, n_folds=self.params.n_folds, gap_volumes=self.gap_volumes)

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
        for stretch in splits.stretches(volumes):
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
        read = (anatomy, atlases, bids, confounds, data, features, hearing, images, motion, pairing, region_specs)
        read = (*read, register, runs, sound, splits, truth, this)
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
    sources = list(itertools.chain(*([params.audio_files] if heard else hearing.annotation_paths(params))))
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


def open_subject(params):
    """Read a subject's scan and sound, pair them in time and split the run.

    Nothing is written but the cache, and what `ensure_scan` simulates or downloads where the scan is missing. Of people
    who are only compared this is all; `workflow.open_subject` opens the one that is run.

    Parameters
    ----------
    params : Params

    Returns
    -------
    Subject

    Raises
    ------
    DataError, ParameterError
        If the scan or the sound is missing or damaged, nothing is left to split, or the gap is shorter than the
        history: volumes of a held-out block would be the past of those that are fitted on.
    """
    files = ensure_scan(params)
    gap_volumes = splits.volumes_of(params.gap, files.t_r)
    if gap_volumes < params.history_order:
        raise ParameterError(
            f"gap {params.gap:g} s is {gap_volumes} volumes, fewer than history_order {params.history_order} - "
            "lengthen gap, or lower history_order"
        )
    sounds = hearing.read_features(params, files)
    blocks = [hearing.blocks_of(part) for part in files.parts]
    blocks = blocks if all(one is not None for one in blocks) else None
    # Lags of a boxcar are nearly the boxcar again, so fir keeps its one window there.
    boxcar_response = "hrf" if params.response == "hrf" else "delay"
    designs = {
        "sound": hearing.design_of(sounds, files, response=params.response, n_lags=params.sound_lags),
        "zero": hearing.design_of(sounds, files),
    } | ({"blocks": hearing.design_of(blocks, files, response=boxcar_response)} if blocks else {})
    # The same volumes for every delay compared, in the sweep, the MLP and the table.
    delays = [*params.delays, *params.mlp_delays]
    usable = pairing.covered_volumes([d for name, d in designs.items() if name != "zero"], delays)
    usable &= pairing.covered_volumes([designs["zero"]], [0.0])
    split = splits.split_runs(
        [part.n_volumes for part in files.parts],
        files.t_r,
        skip_initial=params.skip_initial,
        train_fraction=params.train_fraction,
        gap=params.gap,
        usable=usable,
        n_before=max(params.history_order, params.mlp_history),
        by=params.split_by,
    )
    folds = splits.blocked_folds(split.train, n_folds=params.n_folds, gap_volumes=gap_volumes)
    run = data.load_run(files, params, train=split.train, level_on=level_volumes(files, split, params))
    found = anatomy.find_anatomy(run, params)
    run.regions.update(found.regions)
    return Subject(params, run, hearing.first_sound(sounds), blocks and blocks[0], split, folds, designs, found)


def level_volumes(files, split, params):
    """Volumes of each run that its level is known from: its train part, or what was measured before its test part.

    Of a run without a train part these are all volumes between ``skip_initial`` and its test part, which last as long
    as ``gap`` at least: see `splits.split_runs`.
    """
    if len(files.parts) == 1:
        return None
    skipped, kept = splits.volumes_of(params.skip_initial, files.t_r), []
    for start, part in zip(files.starts, files.parts, strict=True):
        train = split.train[(split.train >= start) & (split.train < start + part.n_volumes)]
        if not len(train):
            train = np.arange(start + skipped, split.test[split.test >= start][0])
        kept.append(train)
    return kept
