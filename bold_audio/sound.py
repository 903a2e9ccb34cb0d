"""A sound file → samples of one channel, with every check on a file that is not what it seems."""

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bold_audio.files import DataError

VIDEO_ENDINGS = (".mp4", ".mkv", ".m4a", ".mov", ".avi", ".webm", ".aac")
SILENT = 1e-6  # of full scale
CLIPPED_SHARE = 1e-3  # of the samples at the file's loudest value, in runs: less is music, more is clipping
CLIPPED_RUN = 3  # samples in a row
PIECE = 2**26  # samples of all channels, read at a time
RATES = (1000, 1_000_000)  # Hz
STDERR = threading.Lock()  # two threads that exchange it at once could leave it silent for good
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Sound:
    """One channel of a sound file.

    Parameters
    ----------
    y : array of shape (n_samples,)
        Samples, float32, at the file's own rate.
    rate : int
        Samples per second of the file.
    channels : int
        Channels in the file.
    warnings : tuple of str
        What was unusual and how it was met.
    """

    y: np.ndarray
    rate: int
    channels: int
    warnings: tuple = ()

    @property
    def duration(self):
        """Length in seconds."""
        return len(self.y) / self.rate

    def at(self, sample_rate):
        """Return the samples converted to ``sample_rate`` Hz."""
        import librosa

        if self.rate == sample_rate:
            return self.y
        return librosa.resample(self.y, orig_sr=self.rate, target_sr=sample_rate)


def open_sound(path):
    """Read a sound file and check it.

    Parameters
    ----------
    path : path
        wav, flac, ogg or mp3; a video or AAC file where ffmpeg is installed.

    Returns
    -------
    Sound

    Raises
    ------
    DataError
        If the file is missing, empty, silent or not sound.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"sound file not found: {path} - set audio_path, or feature_source annotations (the film of ds003688 is "
            "not in the public release, see README, Sound)"
        )
    if path.stat().st_size == 0:
        raise DataError(f"sound file is empty: {path} - copy it again")
    if path.suffix.lower() in VIDEO_ENDINGS:
        with tempfile.TemporaryDirectory() as folder:
            wav = _sound_of_video(path, Path(folder) / "sound.wav")
            try:
                return open_sound(wav)
            except DataError as error:
                raise DataError(str(error).replace(str(wav), str(path))) from error
    _check_riff(path)
    _check_ogg(path)
    try:
        with _decoder_silent(), soundfile.SoundFile(path) as handle:
            n_samples, rate = handle.frames, handle.samplerate
            samples = _read_pieces(handle)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise DataError(
            f"sound file is damaged or of an unknown kind: {path} ({' '.join(str(error).split())}) - convert it: "
            f"{_ffmpeg(path)}"
        ) from error
    if len(samples) == 0:
        raise DataError(f"0.0 s of sound in {path} - export it again")
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"a rate of {rate} Hz cannot be right: {path} - export it again")
    if len(samples) < n_samples:
        raise DataError(
            f"sound stops at {len(samples) / rate:.1f} s, its header says {n_samples / rate:.1f} s: {path} - "
            "copy it again"
        )
    if not np.isfinite(samples).all():
        raise DataError(
            f"{np.count_nonzero(~np.isfinite(samples))} samples of {path} are not numbers - export it again"
        )
    y, warnings = _one_channel(samples)
    if _loudest(y) <= SILENT:
        raise DataError(f"sound is silent: {path} - check the export")
    if (share := clipped_share(samples)) > CLIPPED_SHARE:
        warnings += (f"the sound is clipped: {share:.2%} of its samples stand at its loudest value",)
    return Sound(y, int(rate), samples.shape[1], warnings)


def _read_pieces(handle):
    """Samples of an opened sound file, in pieces, since its header may speak of more than there are.

    A piece is as long as most films: a decoder that is asked again has to find its place first.
    """
    samples, length = np.empty((0, handle.channels), np.float32), PIECE // handle.channels
    while len(samples) % length == 0:
        piece = handle.read(length, dtype="float32", always_2d=True)
        if not len(piece):
            break
        known = len(samples)
        samples.resize((known + len(piece), handle.channels), refcheck=False)  # in place: sounds last hours
        samples[known:] = piece
    return samples


@contextlib.contextmanager
def _decoder_silent():
    """Silence stderr while the MP3 decoder (C code) runs; its faults are raised as errors here."""
    with STDERR:
        stderr = os.dup(2)
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
                yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _loudest(samples):
    """The largest absolute value, without a copy of all: sounds last hours."""
    return max(samples.max(), -samples.min())


def _level(y):
    """Root mean square, without a copy either."""
    return np.sqrt(np.dot(y, y) / len(y))


def clipped_share(samples):
    """Share of samples at the loudest value of their file, in runs of three or more.

    >>> clipped_share(np.clip(np.sin(np.arange(1000) / 20), -0.5, 0.5)[:, None]) > 0.5
    True
    """
    top = _loudest(samples) * (1 - 1e-4)  # 16-bit steps
    at_top = (samples >= top) | (samples <= -top)
    runs = at_top[CLIPPED_RUN - 1 :].copy()
    for k in range(CLIPPED_RUN - 1):
        runs &= at_top[k : len(at_top) - CLIPPED_RUN + 1 + k]
    return float(runs.mean()) if runs.size else 0.0


def _ffmpeg(path):
    """The command a person can paste to take the sound out of a file."""
    return f"ffmpeg -i {shlex.quote(path.name)} -vn sound.wav"


def _check_riff(path):
    """Notice a cut WAV file: libsndfile takes what is left of it for the whole."""
    with path.open("rb") as handle:
        start = handle.read(12)
        size = path.stat().st_size
        if start[:4] != b"RIFF" or start[8:] != b"WAVE":
            return
        byte_rate = 0
        while len(header := handle.read(8)) == 8:
            kind, length = header[:4], int.from_bytes(header[4:], "little")
            after = handle.tell() + length + length % 2
            if kind == b"fmt ":
                byte_rate = int.from_bytes(handle.read(12)[8:], "little")
            elif kind == b"data":
                there = size - handle.tell()
                # Lengths of 0 and 2³² − 1 are what a recorder writes before it knows.
                if byte_rate and there < length < 2**32 - 2**16:
                    heard, said = there / byte_rate, length / byte_rate
                    raise DataError(
                        f"sound stops at {heard:.1f} s, its header says {said:.1f} s: {path} - copy it again"
                    )
                return
            handle.seek(after)


def _check_ogg(path):
    """Notice an Ogg file that is cut or changed: libsndfile leaves out what does not fit, and says nothing.

    References
    ----------
    RFC 3533: each page has a number and a checksum, the last one a mark.
    """
    with path.open("rb") as handle:
        content = handle.read(4)
        content += handle.read() if content == b"OggS" else b""
    start, numbers, flags = 0, {}, 4
    while content[:4] == b"OggS" and start < len(content):
        n_parts = int.from_bytes(content[start + 26 : start + 27], "little")
        end = start + 27 + n_parts + sum(content[start + 27 : start + 27 + n_parts])
        page, flags = content[start:end], int.from_bytes(content[start + 5 : start + 6], "little")
        stream, number, checksum = (int.from_bytes(page[k : k + 4], "little") for k in (14, 18, 22))
        follows = page[:4] == b"OggS" and number == numbers.get(stream, number)
        if not follows or end > len(content) or _ogg_checksum(page) != checksum:
            raise DataError(f"sound file is damaged after {start} of {len(content)} bytes: {path} - copy it again")
        start, numbers[stream] = end, number + 1
    if not flags & 4:
        raise DataError(f"sound stops before its end, the last part is missing: {path} - copy it again")


def _ogg_checksum(page):
    """Ogg's checksum of a page: the polynomial of zlib's, with the bits of each byte the other way round."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(MIRRORED)
    value = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def _sound_of_video(path, wav):
    """Let ffmpeg write the sound of a video to ``wav``."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path), "-vn", str(wav)]
    if shutil.which("ffmpeg") is None:
        raise DataError(
            f"cannot decode {path.name} without ffmpeg - install ffmpeg, or convert it elsewhere: {_ffmpeg(path)}"
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not wav.is_file():
        reason = (done.stderr.strip().splitlines() or ["no sound track"])[-1]
        raise DataError(f"ffmpeg cannot read the sound of {path}: {reason} - check the file")
    return wav


def _one_channel(samples):
    """Average channels; fall back to the first that is not silent where they cancel each other."""
    if samples.shape[1] == 1:
        return samples[:, 0], ()
    y = samples.mean(axis=1)
    levels = np.array([_level(channel) for channel in samples.T])
    if _level(y) < 0.01 * levels.max():
        heard = int(np.argmax(levels > 0.01 * levels.max()))
        which = "the first channel" if heard == 0 else f"channel {heard + 1} of {samples.shape[1]}"
        return samples[:, heard], (f"the channels cancel each other, so {which} was used",)
    return y, ()
