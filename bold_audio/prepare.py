"""One subject from files to arrays: find the scan, hear the sound, pair them in time, split the run."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bold_audio import __version__, adopt, bids, brain, data, features, fetch, pairing, truth
from bold_audio.files import DataError, code_fingerprint, file_md5, fingerprint, lock, record_step
from bold_audio.params import SIMULATED

SHORT_SOUND = 0.5  # s that a sound may lack at its end without a word
# Parameters that change where results go or how fast they come, not what they are.
NOT_RESULTS = {
    "data_dir", "outputs_dir", "models_dir", "checkpoint_dir", "mlflow_uri", "mlflow_experiment", "model_name",
    "model_version", "overwrite_model", "served_model", "runtime", "returns", "allow_other_subject", "triton_url",
    "triton_protocol", "triton_timeout", "prediction", "chunk_voxels", "dvc_remote", "dvc_url", "dvc_jobs",
    "dvc_timeout",
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
    """

    params: object
    run: data.BoldRun
    sound: features.SoundFeatures
    blocks: object
    split: pairing.Split
    folds: list
    designs: dict

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
        """Volumes right after train, through the gap to the end of test."""
        return np.arange(self.split.train[-1] + 1, self.split.test[-1] + 1)

    def scaled(self, kind, delay, rows=None):
        """Features of a design at ``delay`` s, scaled on ``rows`` (train): array, mean, scale."""
        return pairing.scale_on(self.designs[kind].at(delay), self.split.train if rows is None else rows)

    @cached_property
    def input_md5(self):
        """MD5 of the scan and of what the sound features were made from."""
        params = self.params
        sources = [params.audio_file] if params.feature_source == "audio" else annotation_paths(params)
        return {path.name: file_md5(path) for path in (self.run.files.bold, *sources)}

    def result_key(self, *modules, without=frozenset()):
        """Hash of inputs, parameters and code that a result depends on."""
        import bold_audio.prepare as this

        kept = {k: v for k, v in self.params.model_dump().items() if k not in NOT_RESULTS | set(without)}
        return fingerprint(kept, self.input_md5, code_fingerprint(bids, data, features, pairing, truth, this, *modules))

    def record(self, step, **facts):
        """Write what a step did into ``provenance.json``."""
        parameters = self.params.model_dump()
        record_step(self.path("provenance.json"), step, parameters=parameters, input_md5=self.input_md5, **facts)

    def path(self, name):
        """Path of one of this subject's result files."""
        return self.params.subject_path / name


def annotation_paths(params):
    """Paths of the annotation tables."""
    if not params.annotation_tables:
        raise DataError(f"dataset {params.dataset} names no annotation_tables - set them, or feature_source audio")
    return [params.data_path / path for path in params.annotation_tables]


def ensure_scan(params):
    """Locate the subject's run; the simulated subject is made when it is missing, a real one never replaced.

    A missing subject of ds003688 is fetched where the token of DVC's remote is set.
    """
    if params.dataset == SIMULATED and not bids.known_subjects(params):
        from bold_audio.simulate import simulate_subject

        with lock(params.data_path.parent / f".{params.data_path.name}.lock", wait=600, doing="the simulation"):
            if not bids.known_subjects(params):
                simulate_subject(params.data_path, subject=params.subject)
    fetch.fetch_missing(params)
    return bids.locate_run(params)


def read_features(params, files):
    """Sound features from the sound file or from annotations, as ``feature_source`` says."""
    heard = files.n_volumes * files.t_r - files.onset
    if params.feature_source == "annotations":
        made = features.annotation_features(annotation_paths(params), duration=heard)
        boxcar = (
            None if files.events is None else features.block_features(files.events, onset=files.onset, duration=heard)
        )
        return made if boxcar is None else features.join_features(made, boxcar)
    if params.audio_file is None:
        raise DataError(f"dataset {params.dataset} names no sound file - set audio_path, or feature_source annotations")
    settings = {name: getattr(params, name) for name in ("sample_rate", "n_mfcc", "n_fft", "hop_length")}
    made = features.cached_mfcc(params.audio_file, params.cache_path, **settings)
    if made.duration < heard - SHORT_SOUND and not params.allow_short:
        raise DataError(
            f"sound stops at {made.duration:.1f} s, the scan needs {heard:.1f} s of it: {params.audio_file.name} - "
            "use the whole sound, or set allow_short true to leave out the volumes after its end"
        )
    return adopt.judge_sound(made, params, files)


def open_subject(params):
    """Read a subject's scan and sound, pair them in time and split the run.

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
    sound = read_features(params, files)
    heard = files.n_volumes * files.t_r - files.onset
    blocks = None if files.events is None else features.block_features(files.events, onset=files.onset, duration=heard)
    sound_times = files.volume_times - files.onset
    designs = {
        "sound": pairing.make_design(sound, sound_times, files.t_r, response=params.response, n_lags=params.sound_lags),
        "zero": pairing.make_design(sound, sound_times, files.t_r),
    }
    if blocks is not None:
        # Lags of a boxcar are nearly the boxcar again, so fir keeps its one window.
        response = "hrf" if params.response == "hrf" else "delay"
        designs["blocks"] = pairing.make_design(blocks, sound_times, files.t_r, response=response)
    # The same volumes for every delay compared, in the sweep, the MLP and the table.
    delays = [*params.delays, *params.mlp_delays]
    usable = pairing.covered_volumes([d for name, d in designs.items() if name != "zero"], delays)
    usable &= pairing.covered_volumes([designs["zero"]], [0.0])
    # Every volume used has sound, and so have the previous volumes that its history is made of.
    usable[: int(np.argmax(usable)) + params.history_order] = False
    split = pairing.split_volumes(
        files.n_volumes,
        files.t_r,
        skip_initial=params.skip_initial,
        train_fraction=params.train_fraction,
        gap=params.gap,
        usable=usable,
    )
    folds = pairing.blocked_folds(
        split.train, n_folds=params.n_folds, gap_volumes=pairing.volumes_of(params.gap, files.t_r)
    )
    run = data.load_run(files, params, train=split.train)
    brain.write_dataset_description(params, __version__)
    return Subject(params, run, sound, blocks, split, folds, designs)
