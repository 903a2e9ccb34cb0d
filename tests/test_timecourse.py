"""Courses of voxels, the best voxel and its doubles; and the sound for a page."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy import stats

from bold_audio import soundtrack, timecourse
from bold_audio.files import DataError
from bold_audio.timecourse import Prediction

N, V = 60, 30


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((N, V)) + 100
    volumes = np.arange(20, N)
    predicted = rng.standard_normal((40, V))
    predicted[:, 7] += 3 * (Y[20:, 7] - 100)  # planted: the only voxel that is predicted
    Y[:, 3] = 5.0
    return Y.astype(np.float32), Prediction(volumes, predicted.astype(np.float32))


def row_of(Y):
    return lambda k, where: Y[k][where]


def test_r_is_scipys_and_finds_the_planted_voxel(data, monkeypatch):
    Y, prediction = data
    monkeypatch.setattr(timecourse, "CHUNK_VOXELS", 7)
    r = timecourse.voxel_r(row_of(Y), prediction, V)
    assert np.isnan(r[3])
    for v in set(range(V)) - {3}:
        assert r[v] == pytest.approx(stats.pearsonr(Y[20:, v], prediction.values[:, v])[0], abs=1e-5)
    assert timecourse.best_voxel(r)[0] == 7
    shifted = timecourse.voxel_r(row_of(Y), prediction, V, shift=17)
    assert shifted[7] == pytest.approx(stats.pearsonr(Y[20:, 7], np.roll(prediction.values[:, 7], 17))[0], abs=1e-5)
    assert timecourse.best_voxel(np.full(4, np.nan)) is None
    assert timecourse.random_voxel(np.full(4, np.nan)) is None


def test_random_voxel_is_drawn_from_all_that_have_a_value():
    r = np.full(50, np.nan)
    r[[3, 9, 40]] = 0.1, 0.9, 0.2
    assert {timecourse.random_voxel(r, seed=s)[0] for s in range(40)} == {3, 9, 40}
    assert timecourse.random_voxel(r) == timecourse.random_voxel(r)


def test_courses_stand_at_their_volumes(data):
    Y, prediction = data
    both = {("sound", "one_step"): prediction, ("sound", "open_loop"): prediction}
    made = timecourse.courses(Y[:, 5], both, "one_step", 5, starts=(0, 30))
    assert list(made) == ["measured", "sound", "copy_previous"]
    assert np.isnan(made["sound"][:20]).all()
    assert np.array_equal(made["sound"][20:], prediction.values[:, 5])
    assert np.array_equal(made["copy_previous"][1:30], Y[:29, 5])
    assert np.isnan(made["copy_previous"][[0, 30]]).all()  # no volume of the same run comes before
    assert np.array_equal(made["copy_previous"][31:], Y[30:-1, 5])
    assert list(timecourse.courses(Y[:, 5], both, "open_loop", 5)) == ["measured", "sound"]


def test_rows_of_predictions(data):
    _, prediction = data
    assert [prediction.row_of(k) for k in (0, 19, 20, 59)] == [None, None, 0, 39]


@pytest.mark.parametrize(
    ("given", "volumes", "match"),
    [
        ({"sound": np.zeros((N, V))}, None, "must be named"),
        ({("sound", "two_step"): np.zeros((N, V))}, None, "must be named"),
        ({("sound", "one_step"): np.zeros((N, V + 1))}, None, "shape .60, 31., the run 30 voxels"),
        ({("sound", "one_step"): np.zeros((10, V))}, None, "10 volumes for 60"),
        ({("sound", "one_step"): np.zeros((3, V))}, [4, 4, 5], "must increase"),
        ({("sound", "one_step"): np.zeros((2, V))}, [58, 60], "within 0 to 59"),
        ({("sound", "one_step"): ([1.5, 2.5], np.zeros((2, V)))}, None, "must increase"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(given, volumes, match):
    with pytest.raises(DataError, match=match):
        timecourse.as_predictions(given, volumes=volumes, n_volumes=N, n_voxels=V)


def test_each_prediction_may_have_volumes_of_its_own():
    given = {("a", "one_step"): np.zeros((2, V)), ("b", "one_step"): ([7, 9], np.zeros((2, V)))}
    made = timecourse.as_predictions(given, volumes=[3, 4], n_volumes=N, n_voxels=V)
    assert [made[name, "one_step"].volumes.tolist() for name in "ab"] == [[3, 4], [7, 9]]
    assert timecourse.as_predictions(None, volumes=None, n_volumes=N, n_voxels=V) == {}


def test_the_shift_of_the_null_keeps_off_the_blocks():
    shift = timecourse.null_shift(161, 0.608, block_length=30.0)
    seconds = shift * 0.608
    assert seconds == pytest.approx(45, abs=0.608)
    boxcar = np.arange(0, 60, 0.1) % 60 < 30
    assert abs(np.corrcoef(boxcar, np.roll(boxcar, int(round(10 * seconds))))[0, 1]) < 0.05
    assert timecourse.null_shift(10, 0.608) is None


def test_blocks_of_several_runs_follow_each_other():
    events = pd.DataFrame({"onset": [0.0, 30.0, 31.0], "duration": 30.0, "trial_type": ["music", "speech", "button"]})
    parts = (SimpleNamespace(events=events), SimpleNamespace(events=events), SimpleNamespace(events=None))
    files = SimpleNamespace(parts=parts, starts=np.array([0, 100, 200]), t_r=0.5)
    blocks = timecourse.film_blocks(files)
    assert blocks == [(0, 30, "music"), (30, 60, "speech"), (50, 80, "music"), (80, 110, "speech")]
    assert timecourse.block_length(blocks) == 30
    assert timecourse.block_length([(0, 600, "story")]) is None


def test_stretches_are_cut_where_a_volume_is_missing():
    times = np.arange(10) * 2.0
    assert timecourse.stretches(np.array([1, 2, 5, 6, 7]), times, 2.0) == [(2, 6), (10, 16)]


@pytest.fixture
def clicks(tmp_path):
    """A sound of 6 s with a click at 2 s and at 5 s, at 16 kHz."""
    y = np.zeros(6 * 16_000, np.float32)
    for at in (2, 5):
        y[at * 16_000 : at * 16_000 + 80] = 0.9
    soundfile.write(tmp_path / "clicks.wav", y, 16_000)
    return tmp_path / "clicks.wav"


def loud_times(y, rate):
    """When a sound gets loud after half a second of silence, s."""
    loud = np.flatnonzero(np.abs(y) > 0.3) / rate
    return loud[np.r_[True, np.diff(loud) > 0.5]].tolist()


@pytest.mark.parametrize("kind", list(soundtrack.KINDS))
def test_compressed_copy_keeps_its_time(clicks, kind, tmp_path):
    track = soundtrack.open_soundtrack([clicks], [-1.0], end=20.0)
    assert (track.onset, track.duration) == (-1.0, 6.0)
    packed = soundtrack.compressed(track, kind)
    assert len(packed) < clicks.stat().st_size / 2
    (tmp_path / "copy").write_bytes(packed)
    y, rate = soundfile.read(tmp_path / "copy")
    assert loud_times(y, rate) == pytest.approx([2.0, 5.0], abs=0.06)  # an MP3 begins with the encoder's delay
    assert len(y) / rate == pytest.approx(6, abs=0.1)


def test_sounds_of_several_runs_lie_on_one_clock(clicks):
    track = soundtrack.open_soundtrack([clicks, clicks], [1.0, 5.0], end=9.0)
    # The first run's sound ends where the second's begins, and the scan ends at 9 s.
    assert track.onset == 1.0
    assert track.duration == pytest.approx(8.0)
    assert loud_times(track.y, soundtrack.RATE) == pytest.approx([2.0, 6.0], abs=0.01)


def test_envelope_shows_clicks_where_they_are_heard(clicks):
    track = soundtrack.open_soundtrack([clicks], [-1.0], end=20.0)
    loud = soundtrack.envelope(track, end=10.0, bins=100)
    assert loud.dtype == np.uint8
    assert np.flatnonzero(loud > 100).tolist() == [10, 40]


def test_sounds_that_cannot_be_used_are_refused(clicks):
    with pytest.raises(DataError, match="1 sound files for 2 runs"):
        soundtrack.open_soundtrack([clicks], [0.0, 5.0], end=9.0)
    with pytest.raises(DataError, match="does not play during the scan"):
        soundtrack.open_soundtrack([clicks], [-7.0], end=9.0)
    with pytest.raises(DataError, match="not found"):
        soundtrack.open_soundtrack([Path("nowhere.wav")], [0.0], end=9.0)
    with pytest.raises(DataError, match="neither Ogg Vorbis nor MP3"):
        soundtrack.playable(["video/mp4"])
    assert soundtrack.playable(["audio/mpeg", "audio/ogg"]) == "audio/ogg"
