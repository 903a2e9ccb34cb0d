"""docs/faults.md, sound: what a person sees of a sound file that is missing, damaged, odd or another film's."""

import io

import numpy as np
import pytest
import soundfile
from faults import N_VOLUMES, OUTPUTS, T_R, noticed, rows

from bold_audio import sentences, workflow
from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject

pytestmark = pytest.mark.slow
NEEDED = N_VOLUMES * T_R  # s
RATE = 44100


@pytest.fixture
def film(site):
    """Samples of the film's sound, of the simulation's 44.1 kHz."""
    return soundfile.read(site.sound, dtype="float32")[0]


def write(site, y, rate=RATE, name=None, **kind):
    """Put samples in place of the film's sound, or into another file in the dataset."""
    path = site.sound if name is None else site.sound.with_name(name)
    held = io.BytesIO()
    soundfile.write(held, y, rate, format=path.suffix[1:].upper(), **kind)
    return site.replace(path, held.getvalue())


def resampled(y, rate):
    import librosa

    return librosa.resample(y, orig_sr=RATE, target_sr=rate)


# --- no sound -----------------------------------------------------------------------------


@rows("A01-missing", "A01-not given")
def test_no_sound(site, row):
    if row == "A01-missing":
        site.sound.unlink()
        says = [f"sound file not found: {site.sound} - set audio_path, or feature_source annotations", "see README"]
        site.refuse_run(3, says)
    else:
        entities = {"session": "mri3t", "run": 1}
        site.refuse_run(3, "dataset mine names no sound file - set audio_path", dataset="mine", **entities)


@rows("A02-empty", "A02-20 bytes", "A03-page", "A05-header", "A05-0 samples", "A05-100 samples")
def test_file_that_holds_no_sound(site, film, row):
    whole = site.sound.read_bytes()
    convert = ["convert it: ffmpeg -i film.wav"]
    spoil, says = {
        "A02-empty": (lambda: site.replace(site.sound, b""), ["sound file is empty", "copy it again"]),
        "A02-20 bytes": (lambda: site.replace(site.sound, whole[:20]), ["damaged or of an unknown kind"]),
        "A03-page": (lambda: site.replace(site.sound, b"<html><body>404" * 99), ["unknown kind", *convert]),
        "A05-header": (lambda: site.replace(site.sound, whole[:44]), ["sound stops at 0.0 s, its header says 79.0 s"]),
        "A05-0 samples": (lambda: write(site, film[:0]), ["0.0 s of sound"]),
        "A05-100 samples": (lambda: write(site, film[:100]), ["0.002 s of sound"]),
    }[row]
    spoil()
    site.refuse_run(3, [str(site.sound), *says])


@rows("A03-video")
def test_video_without_ffmpeg(site, row, monkeypatch, tmp_path):
    site.replace(site.sound.with_name("film.mp4"), b"\0\0\0\x20ftypisom")
    monkeypatch.setenv("PATH", str(tmp_path))
    says = "cannot decode film.mp4 without ffmpeg - install ffmpeg, or convert it elsewhere: ffmpeg -i film.mp4"
    site.refuse_run(3, says, audio_path="stimuli/film.mp4")


@rows("A04-WAV", "A04-MP3")
def test_sound_that_is_cut(site, film, row):
    path = site.sound if row == "A04-WAV" else write(site, film, name="film.mp3")
    whole = path.read_bytes()
    site.replace(path, whole[: len(whole) // 2])
    line = site.refuse_run(3, [f"{path}", "copy it again"], audio_path=f"stimuli/{path.name}")
    assert "sound stops at 39.5 s, its header says 79.0 s" in line or row == "A04-MP3"
    assert "sound stops at " in line


@rows("A10", "A11")
def test_samples_that_are_no_sound(site, film, row):
    y = film.copy()
    y[slice(None) if row == "A10" else slice(12_000)] = 0 if row == "A10" else np.nan
    write(site, y, subtype="FLOAT")
    site.refuse_run(3, "sound is silent" if row == "A10" else "12000 samples of")


# --- lengths ------------------------------------------------------------------------------


@rows("A06-refused", "A06-allowed")
def test_sound_that_is_too_short(site, film, row):
    short = 20 if row == "A06-refused" else 10
    write(site, film[: -short * RATE])
    says = f"sound stops at {NEEDED - short:.1f} s, the scan needs {NEEDED:.1f} s of it"
    if row == "A06-refused":
        site.refuse_run(3, [f"{says}: film.wav - use the whole sound", "allow_short"])
    else:
        subject = site.open(allow_short=True)
        left_out = N_VOLUMES - 1 - subject.split.test[-1]
        assert short / T_R - 1 < left_out < (short + 2) / T_R
        assert noticed(subject) == f"{says}: the last {left_out} volumes are left out"


@rows("A07-0.27", "A07-1.0")
def test_sound_that_is_too_long(site, film, row):
    seconds = float(row.split("-")[1])
    write(site, np.concatenate([film, film[: round(seconds * RATE)]]))
    told = f"the sound lasts {NEEDED + 1:.1f} s, the run needs {NEEDED:.1f} s: 1.0 s are not used"
    assert noticed(site.open()) == (told if seconds > 0.5 else "")


# --- kinds of files -----------------------------------------------------------------------


@rows("A08-stereo 48 kHz", "A08-mono 8 bit", "A08-float 44.1 kHz")
def test_same_sound_in_another_file(site, film, row):
    expected = site.open().sound.frames
    if row == "A08-stereo 48 kHz":
        write(site, np.stack([resampled(film, 48000)] * 2, axis=1), 48000)
    else:
        write(site, film, subtype="PCM_U8" if row == "A08-mono 8 bit" else "FLOAT")
    subject = site.open()
    assert noticed(subject) == "" and subject.sound.frames.shape == expected.shape
    same = [np.corrcoef(a, b)[0, 1] for a, b in zip(subject.sound.frames.T, expected.T, strict=True)]
    assert same[0] > 0.98 if row == "A08-mono 8 bit" else min(same) > 0.98


@rows("A09")
def test_channels_that_cancel(site, film, row):
    expected = site.open().sound.frames
    write(site, np.stack([film, -film], axis=1), subtype="PCM_16")
    subject = site.open()
    np.testing.assert_allclose(subject.sound.frames, expected, atol=1e-3)
    assert noticed(subject) == "the channels cancel each other, so the first channel was used"


@rows("A12-clipped", "A12-8 kHz")
def test_sound_of_poor_quality(site, film, row):
    if row == "A12-clipped":
        write(site, np.clip(20 * film / np.abs(film).max(), -1, 1))
        assert "the sound is clipped: " in noticed(site.open())
    else:
        write(site, resampled(film, 8000), 8000)
        assert "the file holds 8000 samples a second: nothing above 4000 Hz was heard" in noticed(site.open())


# --- another film's sound -----------------------------------------------------------------


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A simulated subject with enough blocks for the audit, and its film's sound."""
    root = tmp_path_factory.mktemp("long")
    simulate_subject(root / "sim", subject="sim", shape=(12, 12, 12), n_volumes=500)
    return root, soundfile.read(root / "sim/stimuli/film.wav", dtype="float32")[0]


@rows("A13-another film", "A13-5 s late")
def test_sound_that_does_not_follow_the_film(long_run, row, tmp_path):
    root, y = long_run
    path = tmp_path / "other.wav"
    late = row == "A13-5 s late"
    noise = np.random.default_rng(0).normal(scale=0.1, size=len(y))
    soundfile.write(path, np.roll(y, 5 * RATE) if late else noise, RATE)
    folders = {"data_dir": str(root / "sim"), "outputs_dir": str(tmp_path / OUTPUTS), "audio_path": str(path)}
    params = load_params("sim", **folders)
    (sound,) = workflow.read_features(params, workflow.ensure_scan(params))
    told = sentences.about_data(params, sound)  # the first words of every notebook and of the report
    says = "sound is 5 s late against the film's blocks: audio_onset -5" if late else "sound does not follow"
    assert f"WARNING: {says}" in told
