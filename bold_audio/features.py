"""Sound file, annotation tables or film blocks → feature frames that carry their own times."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bold_audio.files import DataError, file_md5, fingerprint, write_text
from bold_audio.locking import cached_folder
from bold_audio.provenance import code_fingerprint
from bold_audio.sound import open_sound

FRAMES_AT_ONCE = 2**16  # 13 minutes at 44.1 kHz; the spectra of two hours would be 5 GB
ANNOTATION_STEP = 0.01  # s between frames of annotation features
SPEECH_TYPES = ("speech", "story")
BLOCK_TYPES = ("music", "speech")


@dataclass(frozen=True)
class SoundFeatures:
    """Feature frames on the clock of the sound.

    Parameters
    ----------
    frames : array of shape (n_frames, n_features)
        Feature values, float32.
    frame_times : array of shape (n_frames,)
        Centre of each frame, in seconds from the onset of the sound; increasing.
    names : tuple of str
        One name per feature.
    duration : float
        How long the sound is, in seconds.
    source : str
        What the features were made from, in words for reports.
    warnings : tuple of str
        What the reader should know about the sound.
    alarms : tuple of str
        What makes every number doubtful, such as another film's sound.
    n_bands : int
        Mel bands that MFCCs were made of; 0 for other features.
    """

    frames: np.ndarray
    frame_times: np.ndarray
    names: tuple
    duration: float
    source: str
    warnings: tuple = ()
    alarms: tuple = ()
    n_bands: int = 0


def mfcc_features(path, *, sample_rate, n_mfcc, n_fft, hop_length, n_bands=None):
    """Mel-frequency cepstral coefficients of a sound file.

    Parameters
    ----------
    path : path
        Sound file, see `bold_audio.sound.open_sound`.
    sample_rate : int
        Rate the sound is converted to, in Hz.
    n_mfcc : int
        Number of coefficients; the first (c0) is loudness.
    n_fft, hop_length : int
        Window and step, in samples at ``sample_rate``.
    n_bands : int, optional
        Mel bands to use, the lowest; by default all that the file's rate holds. Coefficients of another number of bands
        are other coefficients, so that sounds which are compared must have the same.

    Returns
    -------
    SoundFeatures

    Raises
    ------
    DataError
        If the sound cannot be read, is shorter than one window, or holds fewer bands than asked for.

    Notes
    -----
    Decibels are taken without librosa's default floor of 80 dB below the loudest moment:
    that maximum is taken over the whole file, so the sound of the test part would change
    the features of the train part. A file of a lower rate than ``sample_rate`` holds nothing
    above half its own rate: the mel bands up there are left out, the others stay as they are.
    """
    import librosa

    sound = open_sound(path)
    y, warnings = sound.at(sample_rate), sound.warnings
    if len(y) < n_fft:
        raise DataError(
            f"{len(y) / sample_rate:.3f} s of sound in {path}, one window needs {n_fft / sample_rate:.3f} s - "
            "use the whole sound"
        )
    settings = {"n_fft": n_fft, "hop_length": hop_length}
    made = [
        librosa.feature.melspectrogram(y=piece, sr=sample_rate, center=False, **settings)
        for piece in _pieces(y, **settings)
    ]
    mel = np.concatenate(made, axis=1)
    # Edges of the bands: each reaches over its two neighbours.
    edges = librosa.mel_frequencies(n_mels=len(mel) + 2, fmin=0, fmax=sample_rate / 2)
    if sound.rate < sample_rate:
        mel = mel[: max(n_mfcc, int(np.sum(edges[2:] <= sound.rate / 2)))]
        warnings += (f"the file holds {sound.rate} samples a second: nothing above {sound.rate / 2:g} Hz was heard",)
    if n_bands is not None and len(mel) < n_bands:
        raise DataError(
            f"{path} holds {sound.rate} samples a second and with them {len(mel)} of the {n_bands} mel bands that the "
            f"features are made of - give the sound with {2 * edges[n_bands + 1]:.0f} or more"
        )
    mel = mel[:n_bands]
    frames = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=n_mfcc).T
    frame_times = librosa.frames_to_time(np.arange(len(frames)), sr=sample_rate, hop_length=hop_length)
    return SoundFeatures(
        frames=np.ascontiguousarray(frames, dtype=np.float32),
        frame_times=frame_times,
        names=tuple(f"mfcc{i}" for i in range(n_mfcc)),
        duration=len(y) / sample_rate,
        source=f"sound file {Path(path).name}",
        warnings=warnings,
        n_bands=len(mel),
    )


def _pieces(y, *, n_fft, hop_length):
    """Samples with half a window of silence on both sides, cut into pieces whose windows are all windows, each once."""
    silence = n_fft // 2
    for first in range(0, 1 + (len(y) + 2 * silence - n_fft) // hop_length, FRAMES_AT_ONCE):
        start = first * hop_length - silence
        stop = start + (FRAMES_AT_ONCE - 1) * hop_length + n_fft
        before, after = max(0, -start), min(max(0, stop - len(y)), silence)
        yield np.pad(y[max(0, start) : stop], (before, after))  # never the whole sound once more


def rms_features(path, *, sample_rate, n_fft, hop_length):
    """Envelope of a sound file: the root mean square of each window, on the frames of `mfcc_features`.

    Parameters
    ----------
    path, sample_rate, n_fft, hop_length
        As for `mfcc_features`.

    Returns
    -------
    SoundFeatures
        One feature, of full scale, not in decibels.

    Raises
    ------
    DataError
        If the sound cannot be read.
    """
    import librosa

    sound = open_sound(path)
    y = sound.at(sample_rate)
    pieces = _pieces(y, n_fft=n_fft, hop_length=hop_length)
    made = [librosa.feature.rms(y=one, frame_length=n_fft, hop_length=hop_length, center=False) for one in pieces]
    frames = np.concatenate(made, axis=1).T
    return SoundFeatures(
        frames=np.ascontiguousarray(frames, dtype=np.float32),
        frame_times=librosa.frames_to_time(np.arange(len(frames)), sr=sample_rate, hop_length=hop_length),
        names=("rms",),
        duration=len(y) / sample_rate,
        source=f"envelope of sound file {Path(path).name}",
        warnings=sound.warnings,
    )


def annotation_features(paths, *, duration):
    """Onsets and on-times of annotated words, syllables or phonemes, instead of a sound file.

    Parameters
    ----------
    paths : sequence of paths
        Tables (TSV) with columns ``onset`` and ``offset`` in seconds of the sound.
    duration : float
        How long the sound is, in seconds.

    Returns
    -------
    SoundFeatures
        Two features per table: onsets per second and whether an item is being heard.

    Raises
    ------
    DataError
        If a table is missing or lacks a column, or holds no item.
    """
    n_frames = int(round(duration / ANNOTATION_STEP))
    edges, columns, names = _edges(n_frames), [], []
    for path in map(Path, paths):
        table = read_table(path, columns=("onset", "offset"))
        onsets, offsets = (read_times(table, name, path) for name in ("onset", "offset"))
        kind = path.stem.removeprefix("sound_annotation_")
        columns += [np.histogram(onsets, edges)[0] / ANNOTATION_STEP, share_on(onsets, offsets, edges)]
        names += [f"{kind}_onset_rate", f"{kind}_on"]
    return SoundFeatures(
        frames=np.stack(columns, axis=1).astype(np.float32),
        frame_times=(np.arange(n_frames) + 0.5) * ANNOTATION_STEP,
        names=tuple(names),
        duration=duration,
        source="annotation features (" + ", ".join(Path(p).name for p in paths) + "), not the sound itself",
    )


def block_features(events, *, onset, duration):
    """Speech (1) blocks of the film against all else (0); None where the film has no blocks of speech and of music.

    Parameters
    ----------
    events : DataFrame
        BIDS events with ``onset``, ``duration`` (s, clock of the run) and ``trial_type``.
    onset : float
        Onset of the sound on the clock of the run, in seconds.
    duration : float
        How long the sound is, in seconds.

    Returns
    -------
    SoundFeatures or None
        One feature: the share of each frame that lies in a speech block. Music, silence and whatever else the events
        hold are 0 alike.

    Raises
    ------
    DataError
        If the time of a speech block is not a number.
    """
    kinds = events["trial_type"].astype(str)
    if not set(BLOCK_TYPES) <= set(kinds):
        return None
    speech = events[kinds == "speech"]
    start = read_times(speech, "onset", "events.tsv") - onset
    n_frames = int(round(duration / ANNOTATION_STEP))
    on = share_on(start, start + read_times(speech, "duration", "events.tsv"), _edges(n_frames))
    return SoundFeatures(
        frames=on[:, None].astype(np.float32),
        frame_times=(np.arange(n_frames) + 0.5) * ANNOTATION_STEP,
        names=("speech_block",),
        duration=duration,
        source="speech and music blocks of events.tsv",
    )


def join_features(first, second):
    """Put two sets of features on the same frames side by side.

    Raises
    ------
    ValueError
        If their frame times differ.
    """
    if first.frames.shape[0] != second.frames.shape[0] or not np.allclose(first.frame_times, second.frame_times):
        raise ValueError("features must share their frame times to be joined.")
    return SoundFeatures(
        frames=np.hstack([first.frames, second.frames]),
        frame_times=first.frame_times,
        names=first.names + second.names,
        duration=first.duration,
        source=f"{first.source}; {second.source}",
        warnings=first.warnings + second.warnings,
        alarms=first.alarms + second.alarms,
        n_bands=max(first.n_bands, second.n_bands),
    )


def read_table(path, *, columns):
    """Read a TSV and check that it holds ``columns`` and at least one row, each with a cell for every column.

    Raises
    ------
    DataError
        If it is missing, no such table, or lacks a column or rows.
    """
    if not Path(path).is_file():
        raise DataError(f"table not found: {path} - fetch it with the dataset, or set another path")
    try:
        table = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, quoting=3)
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a tab-separated table ({reason}) - fetch it again") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for names of rows: all are shifted
        raise DataError(f"{path} has rows of more cells than it has column names - mend the table")
    missing = [c for c in columns if c not in table.columns]
    if missing or not len(table):
        raise DataError(
            f"{path} has {'no rows' if not missing else 'no column ' + missing[0]} - "
            f"it needs {', '.join(columns) or 'a row for each volume'}"
        )
    return table


def read_times(table, column, path):
    """A column of times as floats, in seconds.

    Parameters
    ----------
    table : DataFrame
    column : str
    path : path
        What the table is called when a time is no number.

    Returns
    -------
    array of shape (n_rows,)

    Raises
    ------
    DataError
        If one of them is not a finite number.
    """
    times = as_numbers(table[column])
    if not np.isfinite(times).all():
        bad = table[column][~np.isfinite(times)].tolist()[0]
        raise DataError(f"{column} in {path} must be a number of seconds, got {bad!r} - mend the table")
    return times


def as_numbers(column):
    """A column as floats: NaN where it holds none, infinite where it holds more than a float can."""
    return pd.to_numeric(column.astype(str), errors="coerce").to_numpy(float)


def _edges(n_frames):
    """Where annotation frames begin and end, in seconds of the sound."""
    return np.arange(n_frames + 1) * ANNOTATION_STEP


def share_on(onsets, offsets, edges):
    """Share of each interval during which an item is on; where items overlap, the sum of theirs, at most 1.

    Parameters
    ----------
    onsets, offsets : arrays of shape (n_items,)
        In seconds. An item that ends before it begins is never on.
    edges : array of shape (n_intervals + 1,)
        In seconds, increasing.

    Returns
    -------
    array of shape (n_intervals,)
    """
    times = np.concatenate([edges, onsets, np.maximum(onsets, offsets)])
    changes = np.repeat([0, 1, -1], [len(edges), len(onsets), len(onsets)])
    order = np.argsort(times, kind="stable")
    times, n_on = times[order], np.cumsum(changes[order])
    # Stretch by stretch between neighbouring times: sums from the beginning would cancel after hours.
    lengths, interval = n_on[:-1] * np.diff(times), np.searchsorted(edges, times[:-1], side="right") - 1
    inside = (interval >= 0) & (interval < len(edges) - 1)
    on = np.bincount(interval[inside], lengths[inside], minlength=len(edges) - 1)
    return np.minimum(on / np.diff(edges), 1)


def cached_mfcc(path, cache_dir, **settings):
    """`mfcc_features`, kept in ``cache_dir`` until the sound, the settings or the code change."""
    import librosa

    import bold_audio.features as this
    import bold_audio.sound as reader

    path = Path(path)
    if not path.is_file():
        mfcc_features(path, **settings)  # raises the message for a missing file
    key = "mfcc-" + fingerprint(
        path.name, file_md5(path), settings, librosa.__version__, code_fingerprint(this, reader)
    )

    def make(folder):
        features = mfcc_features(path, **settings)
        np.savez(folder / "frames.npz", frames=features.frames, frame_times=features.frame_times)
        facts = {k: getattr(features, k) for k in ("names", "duration", "source", "warnings", "n_bands")}
        write_text(folder / "facts.json", json.dumps(facts))

    folder = cached_folder(cache_dir, key, make)
    facts = json.loads((folder / "facts.json").read_text())
    with np.load(folder / "frames.npz") as arrays:
        return SoundFeatures(
            frames=arrays["frames"],
            frame_times=arrays["frame_times"],
            names=tuple(facts["names"]),
            duration=facts["duration"],
            source=facts["source"],
            warnings=tuple(facts["warnings"]),
            n_bands=facts["n_bands"],
        )
