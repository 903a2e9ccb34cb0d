"""The sound described in other ways, ready to be compared: parts of the MFCCs, its envelope, words, other responses."""

from dataclasses import dataclass, replace

import numpy as np

from bold_audio import features, pairing, splits
from bold_audio.files import DataError
from bold_audio.hearing import annotation_paths, check_number

FIR_SPAN = 12.0  # s of sound before a volume that the windows of fir cover


@dataclass(frozen=True)
class FeatureSet:
    """One way to describe the sound.

    Parameters
    ----------
    name : str
    design : pairing.SoundDesign or JoinedDesign, or None
        None where it could not be made.
    delays : tuple of float
        Delays it may choose from, in seconds.
    reason : str
        Why it could not be made.
    """

    name: str
    design: object
    delays: tuple
    reason: str = ""


def ablation_sets(subject):
    """Loudness alone, everything but loudness, all, the envelope, the blocks and the annotations: list of FeatureSet.

    All are seen through the subject's ``response``, except lags of the blocks. What a dataset lacks has a reason.
    """
    params, delays = subject.params, tuple(subject.params.delays)
    annotated = params.feature_source == "annotations"
    n_features = len(subject.sound.names)
    sets = []
    for name, columns in (("c0 (loudness) only", [0]), ("MFCCs without c0", range(1, n_features)), ("all MFCCs", None)):
        reason = "the features are annotations, not MFCCs" if annotated else ""
        if not reason and columns is not None and not len(columns):
            reason = "there is only one MFCC"
        design = None if reason else take_features(subject.designs["sound"], columns)
        sets.append(FeatureSet(name, design, delays, reason))
    sets.append(_made(subject, "envelope (RMS)", _envelopes, "the features are annotations" if annotated else ""))
    blocks = subject.designs.get("blocks")
    sets.append(
        FeatureSet("blocks only", blocks, delays, "" if blocks else "the film has no blocks of music and speech")
    )
    sets.append(_made(subject, "annotations (not the sound)", _annotations))
    return sets


def response_sets(subject):
    """The same features through one window, through windows that cover 0 to 12 s, and through the canonical response.

    Returns
    -------
    list of FeatureSet
        ``fir`` begins with the volume itself, so it has no delay to choose.
    """
    one = subject.designs["zero"]
    delays = tuple(subject.params.delays)
    n_lags = splits.volumes_of(FIR_SPAN, subject.run.files.t_r) - 1
    sets = [
        FeatureSet("delay (one window)", one, delays),
        FeatureSet(f"fir (0 to {FIR_SPAN:g} s)", one.with_lags(n_lags), (0.0,)),
    ]
    try:
        convolved = pairing.join_designs([_convolved(part) for part in parts_of(one)])
        return [*sets, FeatureSet("hrf (canonical)", convolved, delays)]
    except DataError as error:
        return [*sets, FeatureSet("hrf (canonical)", None, delays, str(error))]


def parts_of(design):
    """The design of each run."""
    return design.parts if isinstance(design, pairing.JoinedDesign) else (design,)


def take_features(design, columns):
    """The same design with some features only; all without ``columns``."""
    if columns is None:
        return design
    return pairing.join_designs([replace(part, frames=part.frames[:, list(columns)]) for part in parts_of(design)])


def _convolved(part):
    frames, times, peak = pairing.convolve_response(part.frames, part.frame_times)
    return replace(part, frames=frames, frame_times=times, shift=peak)


def _made(subject, name, make, reason=""):
    """A set of features read from files of its own; what keeps it from being read becomes its reason."""
    delays, params, files = tuple(subject.params.delays), subject.params, subject.run.files
    if reason:
        return FeatureSet(name, None, delays, reason)
    try:
        sounds = make(subject)
        how = {"response": params.response, "n_lags": params.sound_lags}
        designs = [
            pairing.make_design(sounds[k % len(sounds)], part.sound_times, files.t_r, **how)
            for k, part in enumerate(files.parts)
        ]
    except DataError as error:
        return FeatureSet(name, None, delays, str(error).split(" - ")[0])
    return FeatureSet(name, pairing.join_designs(designs), delays)


def _envelopes(subject):
    params = subject.params
    check_number(params.audio_files, subject.run.files, parameter="audio_path")
    settings = {name: getattr(params, name) for name in ("sample_rate", "n_fft", "hop_length")}
    return [features.rms_features(path, **settings) for path in params.audio_files]


def _annotations(subject):
    files, sources = subject.run.files, annotation_paths(subject.params)
    check_number(sources, files, parameter="annotation_tables")
    heard = [part.heard for part in files.parts]
    lengths = heard if len(sources) == len(heard) else [max(heard)]
    return [features.annotation_features(paths, duration=span) for paths, span in zip(sources, lengths, strict=True)]


def covered(sets, n_volumes):
    """Volumes that each set covers at all of its delays: array of bool, shape (n_sets, n_volumes)."""
    made = [pairing.covered_volumes([one.design], one.delays) for one in sets]
    return np.stack(made) if made else np.ones((0, n_volumes), bool)
