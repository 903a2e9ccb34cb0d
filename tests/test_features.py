"""Sound and annotations become frames with the right values at the right seconds, or one clear line."""

import contextlib
import os
import shutil
import subprocess
import threading
import warnings
from dataclasses import replace

import librosa
import numpy as np
import pandas as pd
import pytest
import scipy.fft
import scipy.signal
import soundfile
from processes import peak
from refusals import refused

from bold_audio import features, sound
from bold_audio.features import (
    annotation_features,
    block_features,
    cached_mfcc,
    join_features,
    mfcc_features,
    read_table,
)
from bold_audio.files import DataError
from bold_audio.sound import open_sound

RATE = 16000  # Hz
SMALL = {"sample_rate": RATE, "n_mfcc": 13, "n_fft": 512, "hop_length": 256}
FULL = {"sample_rate": 44100, "n_mfcc": 20, "n_fft": 2048, "hop_length": 512}
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here")


def syllables(seconds=2.0, rate=RATE):
    """Harmonic sound, on and off four times a second, with a little noise; float32 below 1."""
    time = np.arange(int(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * f * time) / k for k, f in enumerate((220, 440, 660, 1320, 2640), start=1))
    on = 0.5 + 0.5 * scipy.signal.square(2 * np.pi * 4 * time)
    return (0.2 * tone * on + 0.003 * np.random.default_rng(0).standard_normal(time.size)).astype(np.float32)


def write(path, y, rate=RATE, **kind):
    soundfile.write(path, y, rate, **kind)
    return path


def write_text(path, text):
    path.write_text(text)
    return path


def loudness(y):
    """RMS of each 10 ms."""
    step = RATE // 100
    return np.sqrt(np.mean(y[: len(y) // step * step].reshape(-1, step) ** 2, axis=1))


def read_sound(path, *, sample_rate):
    """Samples at one rate, and what was unusual about the file."""
    sound = open_sound(path)
    return sound.at(sample_rate), sound.warnings


def same_sound(made, original):
    """Assert that a decoder kept the length, the moments and the loudness of a sound."""
    assert abs(len(made) - len(original)) < 0.1 * RATE
    n = min(len(made), len(original))
    assert np.corrcoef(loudness(made[:n]), loudness(original[:n]))[0, 1] > 0.95


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


# --- MFCCs ------------------------------------------------------------------------------


@pytest.mark.slow
def test_mfccs_equal_librosas_without_its_floor(tmp_path):
    y = syllables()
    made = mfcc_features(write(tmp_path / "a.wav", y, subtype="FLOAT"), **SMALL)
    mel = librosa.feature.melspectrogram(y=y, sr=RATE, n_fft=512, hop_length=256)
    direct = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), sr=RATE, n_mfcc=13)
    by_hand = scipy.fft.dct(10 * np.log10(np.maximum(mel, 1e-10)), axis=0, norm="ortho")[:13]
    np.testing.assert_array_equal(made.frames, direct.T)
    np.testing.assert_allclose(made.frames, by_hand.T, atol=1e-3)
    assert made.frames.dtype == np.float32
    assert made.names == tuple(f"mfcc{k}" for k in range(13))
    assert made.duration == 2.0
    assert made.warnings == ()
    assert "a.wav" in made.source


@pytest.mark.parametrize("settings", [SMALL, FULL])
@pytest.mark.parametrize("second", [0.25, 1.0, 1.9])
def test_frame_times_are_the_seconds_of_the_sound(tmp_path, settings, second):
    rate = settings["sample_rate"]
    y = 1e-4 * np.random.default_rng(0).standard_normal(2 * rate)
    y[int(second * rate)] = 1.0  # a click
    made = mfcc_features(write(tmp_path / "click.wav", y, rate, subtype="FLOAT"), **settings)
    step = settings["hop_length"] / rate
    heard = made.frames[:, 0] > made.frames[:, 0].min() + 0.5 * np.ptp(made.frames[:, 0])
    assert abs(made.frame_times[heard].mean() - second) <= step  # the frames that hold the click lie around it
    np.testing.assert_allclose(made.frame_times, np.arange(len(made.frames)) * step)
    assert made.frame_times[-1] <= made.duration < made.frame_times[-1] + step + 1e-9


def test_a_louder_end_changes_no_earlier_frame(tmp_path):
    y = 1e-5 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)  # quiet, then very loud
    change = 1.5  # s
    louder = y.copy()
    louder[int(change * RATE) :] *= 1e5
    quiet, loud = (
        mfcc_features(write(tmp_path / name, sound, subtype="FLOAT"), **SMALL)
        for name, sound in (("quiet.wav", y), ("loud.wav", louder))
    )
    before = quiet.frame_times + SMALL["n_fft"] / 2 / RATE <= change
    np.testing.assert_array_equal(quiet.frames[before], loud.frames[before])
    assert not np.allclose(quiet.frames[~before], loud.frames[~before])
    # librosa's default, top_db=80 below the loudest moment of the file, lets the end reach the beginning.
    keep = {"sr": RATE, "n_mfcc": 13, "n_fft": 512, "hop_length": 256}
    default = [librosa.feature.mfcc(y=sound, **keep).T for sound in (y, louder)]
    assert np.abs(default[0] - default[1])[before].max() > 10


@pytest.mark.parametrize(
    ("name", "rate", "channels", "kind"),
    [
        ("stereo48.flac", 48000, 2, {}),
        ("stereo48.wav", 48000, 2, {"subtype": "PCM_16"}),
        ("float44.wav", 44100, 1, {"subtype": "FLOAT"}),
        ("mono32.wav", 32000, 1, {"subtype": "PCM_24"}),
    ],
)
def test_the_same_sound_in_another_file_gives_the_same_mfccs(tmp_path, name, rate, channels, kind):  # A08
    master = syllables(rate=48000)
    mono = scipy.signal.resample_poly(master, 441, 480)
    reference = mfcc_features(write(tmp_path / "mono44.wav", mono, 44100), **SMALL)
    y = scipy.signal.resample_poly(master, rate // 100, 480)
    made = mfcc_features(write(tmp_path / name, np.stack([y] * channels, axis=1), rate, **kind), **SMALL)
    assert made.frames.shape == reference.frames.shape
    np.testing.assert_allclose(made.frame_times, reference.frame_times)
    difference = np.median(np.abs(made.frames - reference.frames), axis=0)
    assert np.all(difference < 0.1 * reference.frames.std(axis=0))


def test_eight_bit_sound_keeps_its_loudness_curve(tmp_path):  # A08
    y = syllables()
    made, reference = (
        read_sound(write(tmp_path / f"{k}.wav", y, subtype=k), sample_rate=RATE)[0] for k in ("PCM_U8", "FLOAT")
    )
    assert np.corrcoef(loudness(made), loudness(reference))[0, 1] > 0.99


@pytest.mark.parametrize(("ending", "kind"), [("ogg", "OGG"), ("mp3", "MP3")])
def test_compressed_sound_is_read(tmp_path, ending, kind):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile writes no {kind}")
    path = write(tmp_path / f"a.{ending}", syllables())
    same_sound(read_sound(path, sample_rate=RATE)[0], syllables())
    assert mfcc_features(path, **SMALL).frames.shape == (126, 13)


# --- reading sound ----------------------------------------------------------------------


def test_channels_are_averaged(tmp_path):
    left, right = syllables(), np.roll(syllables(), 999)
    y, noted = read_sound(write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"), sample_rate=RATE)
    np.testing.assert_allclose(y, (left + right) / 2, atol=1e-7)
    assert noted == ()


@pytest.mark.parametrize("tilt", [1.0, 1.001])
def test_channels_that_cancel_fall_back_to_the_first_with_a_warning(tmp_path, tilt):  # A09
    y = syllables()
    path = write(tmp_path / "anti.wav", np.stack([y, -tilt * y], 1), subtype="FLOAT")
    got, noted = read_sound(path, sample_rate=RATE)
    np.testing.assert_array_equal(got, y)
    assert noted == ("the channels cancel each other, so the first channel was used",)
    assert mfcc_features(path, **SMALL).warnings == noted
    path = write(tmp_path / "three.wav", np.stack([np.zeros_like(y), y, -tilt * y], 1), subtype="FLOAT")
    got, noted = read_sound(path, sample_rate=RATE)
    np.testing.assert_array_equal(got, y)
    assert noted == ("the channels cancel each other, so channel 2 of 3 was used",)


def test_a_clipped_sound_is_named(tmp_path):  # A12
    y = syllables()
    clipped = write(tmp_path / "clipped.wav", np.clip(20 * y, -1, 1))
    assert "the sound is clipped: " in " ".join(read_sound(clipped, sample_rate=RATE)[1])
    touching = 0.5 * y / np.abs(y).max()
    touching[::10] = 0.8  # loud single samples are not a clipped wave
    for whole in (y, y / np.abs(y).max(), touching):
        assert read_sound(write(tmp_path / "whole.wav", whole), sample_rate=RATE)[1] == ()


def test_mel_bands_that_a_slow_file_cannot_hold_are_left_out(tmp_path):  # A12
    """The same sound at 8 kHz: the bands below its 4 kHz are those of the fast file, the others are not there."""
    y = librosa.resample(librosa.resample(syllables(), orig_sr=RATE, target_sr=8000), orig_sr=8000, target_sr=44100)
    slow = write(tmp_path / "slow.wav", librosa.resample(y, orig_sr=44100, target_sr=8000), 8000, subtype="FLOAT")
    made = mfcc_features(slow, **FULL)
    assert made.warnings == ("the file holds 8000 samples a second: nothing above 4000 Hz was heard",)
    mel = librosa.feature.melspectrogram(y=y, sr=44100, n_fft=2048, hop_length=512)
    reach = librosa.mel_frequencies(n_mels=130, fmin=0, fmax=22050)[2:]
    expected = scipy.fft.dct(10 * np.log10(np.maximum(mel[reach <= 4000], 1e-10)), axis=0, norm="ortho")[:20].T
    assert made.frames.shape == expected.shape
    assert np.median(np.abs(made.frames - expected)) < 0.05 * expected.std()
    assert mfcc_features(write(tmp_path / "fast.wav", y, 44100), **FULL).warnings == ()


def test_the_same_bands_of_a_fast_and_a_slow_file_are_the_same_features(tmp_path):
    y = librosa.resample(syllables(), orig_sr=RATE, target_sr=16000)
    slow = mfcc_features(write(tmp_path / "slow.wav", y, 16000, subtype="FLOAT"), **FULL)
    fast = write(tmp_path / "fast.wav", librosa.resample(y, orig_sr=16000, target_sr=44100), 44100, subtype="FLOAT")
    alike, whole = mfcc_features(fast, **FULL, n_bands=slow.n_bands), mfcc_features(fast, **FULL)
    assert whole.n_bands == 128 > alike.n_bands == slow.n_bands
    assert np.median(np.abs(alike.frames - slow.frames)) < 0.02 * slow.frames.std()
    assert np.median(np.abs(whole.frames - slow.frames)) > 0.2 * slow.frames.std()
    says = f"16000 samples a second and with them {slow.n_bands} of the 128 mel bands .* give the sound with 44100 or"
    with pytest.raises(DataError, match=says):
        mfcc_features(tmp_path / "slow.wav", **FULL, n_bands=128)
    assert mfcc_features(tmp_path / "slow.wav", **FULL, n_bands=30).n_bands == 30


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_any_rate_becomes_the_one_asked_for(tmp_path, rate):
    time = np.arange(rate) / rate
    y, _ = read_sound(write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), rate), sample_rate=RATE)
    assert len(y) == RATE
    assert np.argmax(np.abs(np.fft.rfft(y))) == 1000  # still 1000 Hz, one bin per Hz


def with_nan(y):
    y = y.copy()
    y[100:105] = np.nan
    return y


BAD_SOUNDS = {
    "missing": (lambda p: p.with_name("missing.wav"), "not found: .*missing.wav - set audio_path, or feature_source"),
    "folder": (lambda p: p.parent, "sound file not found"),
    "empty": (lambda p: write_text(p, ""), "sound file is empty"),
    "20 bytes": (lambda p: p.write_bytes(write(p, syllables()).read_bytes()[:20]) and p, "damaged or of an unknown"),
    "HTML": (lambda p: write_text(p, "<html>\n<body>\n" * 50), "unknown kind: .*convert it: ffmpeg -i sound.wav"),
    "NaN": (lambda p: write(p, with_nan(syllables()), subtype="FLOAT"), "^5 samples of .* are not numbers"),
    "silent": (lambda p: write(p, np.zeros(RATE)), "sound is silent"),
    "100 samples": (lambda p: write(p, syllables()[:100]), r"0\.006 s of sound in .* one window needs 0\.032 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_SOUNDS)
def test_bad_sound_gives_one_line(tmp_path, kind):  # A01 A02 A03 A05 A10 A11
    make, match = BAD_SOUNDS[kind]
    path = make(tmp_path / "sound.wav")
    with refused(match) as caught:
        mfcc_features(path, **SMALL)
    assert str(path) in str(caught.value)


def test_a_sound_without_samples_tells_its_length(tmp_path):  # A05
    path = write(tmp_path / "sound.wav", np.zeros(0))
    with warnings.catch_warnings(), refused(r"0\.0+ s of sound"):
        warnings.simplefilter("error")
        mfcc_features(path, **SMALL)


@pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="this libsndfile writes no MP3")
def test_a_cut_mp3_is_noticed(tmp_path):  # A04
    whole = write(tmp_path / "whole.mp3", syllables(4.0)).read_bytes()
    (tmp_path / "cut.mp3").write_bytes(whole[: len(whole) // 2])
    with refused(r"sound stops at \d\.\d s, its header says 4\.\d s: .*cut.mp3 - copy it again"):
        read_sound(tmp_path / "cut.mp3", sample_rate=RATE)


def test_a_raw_file_is_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"\1\2" * 5000)
    with refused("unknown kind"):
        read_sound(tmp_path / "a.raw", sample_rate=RATE)


def test_a_cut_wav_is_noticed(tmp_path):  # A04
    whole = write(tmp_path / "whole.wav", syllables()).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    with refused("sound stops at 1.0 s, its header says 2.0 s"):
        read_sound(tmp_path / "cut.wav", sample_rate=RATE)


def test_a_cut_or_changed_ogg_is_noticed(tmp_path):
    whole = write(tmp_path / "whole.ogg", syllables(4.0)).read_bytes()
    open_sound(tmp_path / "whole.ogg")
    last = whole.rindex(b"OggS")
    for content in (whole[:last], whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / "cut.ogg").write_bytes(content)
        with refused("sound (stops before its end|file is damaged after)"):
            open_sound(tmp_path / "cut.ogg")
    for place in range(0, len(whole), len(whole) // 40):
        (tmp_path / "flipped.ogg").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with refused("sound file is damaged|unknown kind"):
            open_sound(tmp_path / "flipped.ogg")


def test_a_header_that_speaks_of_more_samples_than_there_are_costs_no_memory(tmp_path):
    path = write(tmp_path / "a.flac", syllables(4.0))
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the highest bits of the number of samples: 64 thousand million
    path.write_bytes(content)
    with peak() as most, refused("sound stops at|damaged"):
        open_sound(path)
    assert most() < 1e9


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
def test_a_long_sound_is_in_memory_once(tmp_path, monkeypatch, channels):
    y = np.tile(syllables(), 40)
    path = write(tmp_path / "a.wav", np.stack([y] * channels, axis=1), subtype="FLOAT")
    whole = open_sound(path).y
    for piece in (1000 * channels, 2 * len(y), len(y) * channels // 40):  # the last one divides the sound
        monkeypatch.setattr(sound, "PIECE", piece)
        np.testing.assert_array_equal(open_sound(path).y, whole)
    monkeypatch.setattr(sound, "PIECE", 1000)
    with peak() as most:
        open_sound(path)
    assert most() < (1.6 if channels == 1 else 4.2) * whole.nbytes  # two channels, their mean, what is clipped


@pytest.mark.parametrize("place", [16, 40])  # the lengths of the format and of the samples
@pytest.mark.parametrize("length", [2**32 - 1, 2**32 - 2**17, 0])
def test_a_part_of_a_wav_that_claims_gigabytes_costs_no_memory(tmp_path, place, length):
    path = write(tmp_path / "a.wav", syllables())
    content = bytearray(path.read_bytes())
    content[place : place + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    with peak() as most, contextlib.suppress(DataError):  # 0 and 2³² − 1 samples: a recorder that does not know yet
        open_sound(path)
    assert most() < 1e9


@pytest.mark.parametrize("rate", [1, 7, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_refused(tmp_path, rate):
    path = write(tmp_path / "a.wav", syllables())
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    with refused(f"a rate of {rate} Hz cannot be right"):
        open_sound(path)


# --- video ------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path):
    """Function: a small mp4 with the given sound, None for none."""

    def make(y, seconds=2):
        path = tmp_path / "film.mp4"
        picture = ["-f", "lavfi", "-i", f"color=c=black:s=16x16:r=5:d={seconds}"]
        if y is None:
            ffmpeg(*picture, path)
        else:
            ffmpeg(*picture, "-i", write(tmp_path / "sound.wav", y), "-c:a", "aac", path)
        return path

    return make


@pytest.mark.slow
@needs_ffmpeg
def test_the_sound_of_a_video_is_read(video):
    path = video(syllables())
    same_sound(read_sound(path, sample_rate=RATE)[0], syllables())
    assert "film.mp4" in mfcc_features(path, **SMALL).source


@pytest.mark.slow
@needs_ffmpeg
def test_a_video_without_sound_or_not_a_video_is_refused(video, tmp_path):
    with refused("ffmpeg cannot read the sound of .*film.mp4: .* - check the file"):
        read_sound(video(None), sample_rate=RATE)
    with refused("ffmpeg cannot read the sound of .*page.mp4: .* - check the file"):
        read_sound(write_text(tmp_path / "page.mp4", "<html>\n" * 99), sample_rate=RATE)


@pytest.mark.slow
@needs_ffmpeg
def test_a_fault_in_the_sound_of_a_video_names_the_video(video):
    with refused("silent: .*film.mp4"):
        read_sound(video(np.zeros(2 * RATE)), sample_rate=RATE)


def test_without_ffmpeg_the_message_holds_the_exact_command(tmp_path, monkeypatch):  # A03
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "film.mp4").write_bytes(b"anything")
    with refused(r"cannot decode film.mp4 without ffmpeg - .*: ffmpeg -i film.mp4 -vn \w+\.wav$"):
        read_sound(tmp_path / "film.mp4", sample_rate=RATE)


def test_the_command_can_be_pasted_when_the_name_has_a_space(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "my film.mp4").write_bytes(b"anything")
    with refused("ffmpeg -i ['\"]my film.mp4['\"] -vn"):
        read_sound(tmp_path / "my film.mp4", sample_rate=RATE)


# --- annotations ------------------------------------------------------------------------

FIVE_LINES = 'item\tonset\toffset\npippi\t0.102\t0.208\nwil\t0.253\t0.257\n"je\t0.4\t0.5\nn/a\t0.455\t0.65\n'


@pytest.fixture
def words(tmp_path):
    return write_text(tmp_path / "sound_annotation_words.tsv", FIVE_LINES)


def test_annotations_of_five_lines_by_hand(words):
    made = annotation_features([words], duration=1.0)
    rate, on = np.zeros(100), np.zeros(100)
    rate[[10, 25, 40, 45]] = 100.0  # one item in a frame of 0.01 s
    on[10], on[11:20], on[20] = 0.8, 1, 0.8
    on[25] = 0.4
    on[40:65] = 1  # two items at once still count once
    np.testing.assert_allclose(made.frames, np.stack([rate, on], axis=1), atol=1e-5)
    np.testing.assert_allclose(made.frame_times, np.arange(0.005, 1, 0.01))
    assert made.names == ("words_onset_rate", "words_on")
    assert made.duration == 1.0
    assert "not the sound itself" in made.source


def test_annotation_features_end_with_the_sound(words):
    made = annotation_features([words], duration=0.3)
    assert made.frames.shape == (30, 2)
    assert made.frames[:, 0].sum() * 0.01 == pytest.approx(2)  # two of the four words begin before 0.3 s


def test_two_tables_give_two_features_each_in_their_order(words, tmp_path):
    phonemes = write_text(tmp_path / "sound_annotation_phonemes.tsv", "onset\toffset\n0.001\t0.009\n")
    made = annotation_features([phonemes, words], duration=1.0)
    assert made.names == ("phonemes_onset_rate", "phonemes_on", "words_onset_rate", "words_on")
    assert made.frames[0].tolist() == pytest.approx([100, 0.8, 0, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("item\tstart\toffset\na\t1\t2\n", "words.tsv has no column onset - it needs onset, offset"),
        ("item\tonset\na\t1\n", "words.tsv has no column offset - "),
        ("item\tonset\toffset\n", "words.tsv has no rows - "),
        ("", "words.tsv is not a tab-separated table .* - fetch it again"),
        ("<html>\n<p>Not found</p>\n", "words.tsv has no column onset - "),
    ],
)
def test_a_bad_table_gives_one_line(tmp_path, text, match):
    with refused(match):
        annotation_features([write_text(tmp_path / "words.tsv", text)], duration=1.0)


def test_a_missing_or_binary_table_gives_one_line(tmp_path):
    with refused("table not found: .*none.tsv - "):
        annotation_features([tmp_path / "none.tsv"], duration=1.0)
    (tmp_path / "binary.tsv").write_bytes(b"\xff\xfe\x00\x01\n")
    with refused("binary.tsv is not a tab-separated table .* - "):
        annotation_features([tmp_path / "binary.tsv"], duration=1.0)


def test_a_ragged_table_gives_one_line(tmp_path):
    with refused("not a tab-separated table"):
        annotation_features([write_text(tmp_path / "w.tsv", "onset\toffset\n0.1\t0.2\n0.1\t0.2\t3\t4\n")], duration=1.0)


@pytest.mark.parametrize("row", ["0.1\t0.2\t", "word\t0.1\t0.2"])
def test_rows_of_more_cells_than_names_are_refused_and_not_shifted(tmp_path, row):
    with refused("has rows of more cells than it has column names"):
        annotation_features([write_text(tmp_path / "w.tsv", f"onset\toffset\n{row}\n{row}\n")], duration=1.0)


@pytest.mark.parametrize("time", ["9" * 400, "1e999", "-inf"])
def test_a_time_beyond_all_times_gives_one_line(tmp_path, time):
    with refused("onset in .*w.tsv must be a number of seconds"):
        annotation_features([write_text(tmp_path / "w.tsv", f"onset\toffset\n{time}\t0.2\n")], duration=1.0)


@pytest.mark.parametrize(("column", "row"), [("onset", "n/a\t0.5"), ("offset", "0.4\tn/a")])
def test_a_missing_time_is_refused_and_spoils_no_frame(tmp_path, column, row):
    path = write_text(tmp_path / "w.tsv", f"onset\toffset\n0.1\t0.2\n{row}\n")
    with refused(f"{column} in .*w.tsv must be a number of seconds, got nan - mend the table"):
        annotation_features([path], duration=1.0)


def test_a_time_that_is_no_number_gives_one_line(tmp_path):
    with refused("w.tsv"):
        annotation_features([write_text(tmp_path / "w.tsv", "onset\toffset\n0,1\t0.2\n")], duration=1.0)


def test_a_table_is_read_as_bids_writes_it(words):
    table = read_table(words, columns=("item",))
    assert table["item"].tolist()[:3] == ["pippi", "wil", '"je']  # quotes are letters
    assert table["item"].isna().tolist() == [False, False, False, True]  # n/a is a missing value


# --- blocks -----------------------------------------------------------------------------


def events(*rows):
    return pd.DataFrame(rows, columns=["onset", "duration", "trial_type"])


def test_blocks_are_one_during_speech_on_the_clock_of_the_sound():
    table = events((10.0, 0.3, "music"), (10.3, 0.3, "speech"), (10.6, 0.2, "music"), (10.8, 0.205, "speech"))
    made = block_features(table, onset=10.0, duration=1.01)
    expected = np.zeros(101)
    expected[30:60] = 1
    expected[80:100] = 1
    expected[100] = 0.5
    np.testing.assert_allclose(made.frames[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(made.frame_times, np.arange(101) * 0.01 + 0.005)
    assert made.names == ("speech_block",)


@pytest.mark.parametrize(
    "table",
    [
        events((-20.0, 744.0, "story")),
        events((0.0, 30.0, "speech")),
        events((0.0, 30.0, "music")),
        events((12.0, 1.0, "face"), (14.0, 1.0, "house")),
        events((0.0, 30.0, 1), (30.0, 30.0, 2)),
    ],
)
def test_without_both_kinds_of_block_there_is_no_boxcar(table):
    assert block_features(table, onset=0.0, duration=10.0) is None


def test_a_block_of_unknown_length_is_refused_and_spoils_no_frame():
    table = events((0.0, 1.0, "music"), (1.0, np.nan, "speech"), (2.0, 1.0, "music"), (3.0, 1.0, "speech"))
    with refused("duration in events.tsv must be a number of seconds, got nan - mend the table"):
        block_features(table, onset=0.0, duration=4.0)


def test_features_on_the_same_frames_are_joined(words):
    first = annotation_features([words], duration=1.0)
    second = block_features(events((0.0, 0.5, "music"), (0.5, 0.5, "speech")), onset=0.0, duration=1.0)
    first, second = replace(first, alarms=("another film's",)), replace(second, n_bands=40)
    joined = join_features(first, second)
    assert (joined.alarms, joined.n_bands) == (("another film's",), 40)
    np.testing.assert_array_equal(joined.frames, np.hstack([first.frames, second.frames]))
    assert joined.names == (*first.names, "speech_block")
    assert joined.frames.dtype == np.float32
    for part in (first, second):
        assert part.source in joined.source


@pytest.mark.parametrize("duration", [0.9, 2.0])
def test_features_on_other_frames_are_not_joined(words, duration):
    first, second = (annotation_features([words], duration=d) for d in (1.0, duration))
    with pytest.raises(ValueError, match="frame times"):
        join_features(first, second)


# --- the cache --------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The calls that went to `mfcc_features`."""
    calls, make = [], features.mfcc_features
    monkeypatch.setattr(features, "mfcc_features", lambda *a, **k: calls.append(a) or make(*a, **k))
    return calls


def test_cached_features_are_made_once_and_come_back_the_same(tmp_path, counted):
    y = syllables()
    path = write(tmp_path / "anti.wav", np.stack([y, -y], 1))
    made = cached_mfcc(path, tmp_path / "cache", **SMALL)
    again = cached_mfcc(path, tmp_path / "cache", **SMALL)
    assert len(counted) == 1
    fresh = mfcc_features(path, **SMALL)
    for got in (made, again):
        np.testing.assert_array_equal(got.frames, fresh.frames)
        np.testing.assert_array_equal(got.frame_times, fresh.frame_times)
        assert got.frames.dtype == np.float32
        assert (got.names, got.duration, got.source, got.warnings) == (
            fresh.names, fresh.duration, fresh.source, fresh.warnings
        )  # fmt: skip
        assert got.warnings


def test_cached_features_follow_the_content_of_the_sound(tmp_path, counted):
    path = write(tmp_path / "a.wav", syllables())
    before, stat = cached_mfcc(path, tmp_path / "cache", **SMALL), path.stat()
    write(path, syllables()[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same name, size and time: only the bytes differ
    assert path.stat().st_size == stat.st_size
    after = cached_mfcc(path, tmp_path / "cache", **SMALL)
    assert len(counted) == 2
    assert not np.allclose(before.frames, after.frames)


@pytest.mark.parametrize(
    "change", [{"n_mfcc": 5}, {"hop_length": 128}, {"n_fft": 1024}, {"sample_rate": 8000}], ids=str
)
def test_cached_features_follow_every_setting(tmp_path, counted, change):
    path = write(tmp_path / "a.wav", syllables())
    cached_mfcc(path, tmp_path / "cache", **SMALL)
    after = cached_mfcc(path, tmp_path / "cache", **(SMALL | change))
    assert len(counted) == 2
    np.testing.assert_array_equal(after.frames, mfcc_features(path, **(SMALL | change)).frames)


def test_cached_features_follow_the_code(tmp_path, counted, monkeypatch):
    path = write(tmp_path / "a.wav", syllables())
    cached_mfcc(path, tmp_path / "cache", **SMALL)
    monkeypatch.setattr(features, "code_fingerprint", lambda *modules: "another version")
    cached_mfcc(path, tmp_path / "cache", **SMALL)
    assert len(counted) == 2


def test_a_bad_sound_leaves_nothing_in_the_cache(tmp_path):
    path = write_text(tmp_path / "a.wav", "<html>")
    with refused("unknown kind"):
        cached_mfcc(path, tmp_path / "cache", **SMALL)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]
    with refused("sound file not found"):
        cached_mfcc(tmp_path / "none.wav", tmp_path / "cache", **SMALL)


# --- real tables ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["words", "syllables", "phonemes", "sentences"])
def test_the_films_annotations_lie_in_its_speech_blocks(shared, kind):
    path = shared / "ds003688" / "stimuli" / "annotations" / "sound" / f"sound_annotation_{kind}.tsv"
    if not path.is_file():
        pytest.skip(f"no annotation tables in {shared}")
    film = read_table(
        shared / "ds003688/sub-09/ses-mri3t/func/sub-09_ses-mri3t_task-film_run-1_events.tsv", columns=("onset",)
    )
    made = annotation_features([path], duration=389.728)
    assert made.names == (f"{kind}_onset_rate", f"{kind}_on")
    lines = path.read_text().count("\n")
    assert made.frames[:, 0].sum() * 0.01 == pytest.approx(lines - 1, rel=1e-4)  # the header is no item
    speech = block_features(film, onset=0.0, duration=389.728).frames[:, 0]
    on = made.frames[:, 1]
    assert on[speech == 1].mean() > 0.5
    assert on[speech == 0].mean() < 0.05


@pytest.mark.slow
def test_the_words_of_alice_load(shared):
    words = shared / "realdata" / "alice" / "stimuli" / "words.tsv"
    made = annotation_features([words], duration=744.0)
    onsets = [float(line.split("\t")[1]) for line in words.read_text().splitlines()[1:]]
    assert made.frames[:, 0].sum() * 0.01 == pytest.approx(sum(0 <= t < 744.0 for t in onsets), rel=1e-4)
    assert made.frame_times[np.argmax(made.frames[:, 0] > 0)] == pytest.approx(onsets[0], abs=0.01)
    assert np.isfinite(made.frames).all()
    assert 0.5 < made.frames[:, 1].mean() < 1


@pytest.mark.parametrize("n_fft", [512, 511])
def test_the_spectra_of_a_long_sound_are_made_in_pieces(tmp_path, monkeypatch, n_fft):
    path = write(tmp_path / "a.wav", np.tile(syllables(), 20))
    settings = SMALL | {"n_fft": n_fft}

    def made():
        with peak() as largest:
            found = (
                mfcc_features(path, **settings),
                features.rms_features(path, sample_rate=RATE, n_fft=n_fft, hop_length=256),
            )
        return found, largest()

    (whole, most), _ = made(), monkeypatch.setattr(features, "FRAMES_AT_ONCE", 50)
    pieces, least = made()
    assert least < 0.7 * most
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(other.frames, one.frames, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(other.frame_times, one.frame_times)


@pytest.mark.parametrize("start", [0, 7200])
def test_share_of_each_frame_by_brute_force(start):
    """Items that overlap, touch, end before they begin or lie outside; two hours in, too."""
    rng = np.random.default_rng(start)
    edges = start + np.arange(5001) * 0.01
    onsets = np.r_[start + np.round(rng.uniform(-5, 55, 400), 2), start + rng.uniform(-5, 55, 400), start - 9]
    offsets = onsets + np.r_[np.round(rng.normal(0.02, 0.02, 400), 2), rng.normal(0.02, 0.02, 400), 10]
    share = np.zeros(5000)
    for onset, offset in zip(onsets, offsets, strict=True):
        share += np.clip(np.minimum(edges[1:], offset) - np.maximum(edges[:-1], onset), 0, None)
    made = features.share_on(onsets, offsets, edges)
    np.testing.assert_allclose(made, np.minimum(share / np.diff(edges), 1), atol=1e-9)
    assert made.min() == 0 and made.max() == 1 and np.sum((made > 0) & (made < 1)) > 200


def test_two_threads_that_read_sounds_at_once_leave_stderr_as_it_was():
    """The second begins before the first has ended, and ends after it, unless it has to wait."""
    before, kept = os.fstat(2), os.dup(2)
    inside, leave = threading.Event(), threading.Event()

    def second():
        with sound._decoder_silent():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=second)
    try:
        with sound._decoder_silent():
            thread.start()
            inside.wait(timeout=0.2)
        inside.wait()
        leave.set()
        thread.join()
        assert os.path.samestat(os.fstat(2), before)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
