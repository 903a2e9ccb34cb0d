"""The clock and what may not leak: identity, planted and error tests."""

import numpy as np
import pytest

from bold_audio import pairing
from bold_audio.features import SoundFeatures
from bold_audio.files import DataError

T_R, N_VOLUMES = 0.608, 641
HOP = 512 / 44100  # s between MFCC frames


def frame_clock(duration=389.728, step=HOP):
    """Frames whose only feature is their own time."""
    times = np.arange(int(duration / step) + 1) * step
    return times[:, None], times


@pytest.mark.parametrize("onset", [0.0, -20.0, 3.3])
@pytest.mark.parametrize("delay", [0.0, 4.4, 12.0, -2.0])
@pytest.mark.parametrize("step", [HOP, 0.01, 0.1])
def test_clock(onset, delay, step):
    """With frame time as the feature, volume k holds k·TR + TR/2 − onset − Δt: first, middle and last volume."""
    frames, times = frame_clock(duration=450, step=step)
    sound_times = np.arange(N_VOLUMES) * T_R - onset
    seen = pairing.delay_features(frames, times, sound_times, delay=delay, window=T_R)[:, 0]
    covered = np.flatnonzero(np.isfinite(seen))
    for k in (covered[0], covered[len(covered) // 2], covered[-1]):
        assert seen[k] == pytest.approx(k * T_R + T_R / 2 - onset - delay, abs=step / 2 + 1e-9)
    assert len(covered) >= N_VOLUMES - int(np.ceil(max(delay + onset, 0) / T_R)) - 5


def test_clock_does_not_drift():
    """A clock of 641/390 s instead of TR = 0.608 s is off by 0.27 s at the end of the run; this one is not."""
    frames, times = frame_clock()
    seen = pairing.delay_features(frames, times, np.arange(N_VOLUMES) * T_R, delay=5, window=T_R)[:, 0]
    off = seen - (np.arange(N_VOLUMES) * T_R + T_R / 2 - 5)
    assert np.nanmax(np.abs(off)) <= HOP / 2 + 1e-9


def test_lags_look_further_back():
    """Each further window of fir is one repetition time earlier."""
    frames, times = frame_clock()
    sound = SoundFeatures(frames, times, ("time",), 389.728, "clock")
    design = pairing.make_design(sound, np.arange(N_VOLUMES) * T_R, T_R, response="fir", n_lags=3)
    seen = design.at(4.0)
    assert seen.shape == (N_VOLUMES, 4)
    np.testing.assert_allclose(seen[300, 0] - seen[300], T_R * np.arange(4), atol=HOP)


def test_hrf_peaks_at_the_delay():
    """A click at 100 s, convolved and shifted, is seen most by the volume acquired Δt later."""
    times = np.arange(40_000) * 0.01
    frames = np.zeros((len(times), 1))
    frames[np.argmin(np.abs(times - 100))] = 1
    click = SoundFeatures(frames, times, ("click",), 400.0, "click")
    for delay in (4.0, 6.5, 9.0):
        design = pairing.make_design(click, np.arange(N_VOLUMES) * T_R, T_R, response="hrf")
        peak = np.nanargmax(design.at(delay)[:, 0])
        assert (peak + 0.5) * T_R == pytest.approx(100 + delay, abs=T_R / 2 + 0.02)


def test_hrf_leaves_out_volumes_whose_kernel_has_no_sound():
    frames, times = frame_clock(step=0.05)
    sound = SoundFeatures(frames, times, ("time",), 389.728, "clock")
    design = pairing.make_design(sound, np.arange(N_VOLUMES) * T_R, T_R, response="hrf")
    first = np.flatnonzero(np.isfinite(design.at(6.0)[:, 0]))[0]
    assert first * T_R == pytest.approx(pairing.KERNEL_LENGTH + 6.0 - design.shift, abs=2 * T_R)


def test_uncovered_rows_are_nan_and_never_zero():
    """From the first volume whose whole window has sound to the last: a half-heard one has no value."""
    frames, times = frame_clock(duration=20)
    seen = pairing.delay_features(frames, times, np.arange(100) * T_R, delay=5, window=T_R)[:, 0]
    begins = np.arange(100) * T_R - 5
    heard = np.flatnonzero((begins >= -HOP) & (begins + T_R <= times[-1] + HOP))
    assert np.array_equal(np.flatnonzero(np.isfinite(seen)), heard)
    assert list(heard[[0, -1]]) == [9, 40]  # volume 8 begins at −0.1 s of the sound, volume 41 ends at 20.5 s


def test_a_window_between_frames_is_nan():
    """Frames further apart than the window: a volume that holds none has no value, not that of a neighbour."""
    times = np.arange(10) * 3.0
    seen = pairing.delay_features(times[:, None], times, np.arange(20) * 1.0, delay=0, window=1.0)[:, 0]
    assert np.isfinite(seen[[0, 3, 6]]).all() and np.isnan(seen[[1, 2, 4, 5]]).all()


def test_later_sound_does_not_change_earlier_volumes():
    """Bit for bit, for one window and for the convolved features."""
    rng = np.random.default_rng(0)
    times = np.arange(8000) * 0.05
    frames = rng.normal(size=(8000, 3))
    changed = frames.copy()
    changed[times > 250] = rng.normal(size=changed[times > 250].shape) * 1e3
    before = np.arange(N_VOLUMES) * T_R < 240
    for response in ("delay", "hrf"):
        a, b = (
            pairing.make_design(
                SoundFeatures(f, times, tuple("abc"), 400.0, ""), np.arange(N_VOLUMES) * T_R, T_R, response=response
            ).at(6.0)
            for f in (frames, changed)
        )
        assert np.array_equal(a[before], b[before], equal_nan=True)
        assert not np.array_equal(a, b, equal_nan=True)


def test_same_volumes_for_every_delay():
    """What is kept is covered at every delay compared, so no delay is scored on volumes of its own."""
    frames, times = frame_clock()
    sound = SoundFeatures(frames, times, ("time",), 389.728, "clock")
    design = pairing.make_design(sound, np.arange(N_VOLUMES) * T_R, T_R)
    delays = [0, 3, 6, 9, 12]
    usable = pairing.covered_volumes([design], delays)
    each = {d: np.isfinite(design.at(d)).all(axis=1) for d in delays}
    assert all(mask[usable].all() for mask in each.values())
    assert usable.sum() < each[0].sum(), "the longest delay must cost volumes, or this test says nothing"
    np.testing.assert_array_equal(usable, np.logical_and.reduce(list(each.values())))


def test_scaling_uses_train_rows_alone():
    rng = np.random.default_rng(1)
    X = rng.normal(3, 5, (100, 4))
    X[:, 3] = 7.0
    rows = np.arange(10, 60)
    scaled, mean, scale = pairing.scale_on(X, rows)
    np.testing.assert_allclose(scaled[rows, :3].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled[rows, :3].std(axis=0), 1)
    assert np.all(scaled[:, 3] == 0), "a feature that does not vary is off, not infinite"
    changed = X.copy()
    changed[60:] = 1e6
    _, mean_again, scale_again = pairing.scale_on(changed, rows)
    assert np.array_equal(mean, mean_again) and np.array_equal(scale, scale_again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window must be > 0"),
        ({"times": [0, 2, 1]}, "must increase"),
        ({"times": [0, 1]}, "one time per frame"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        pairing.delay_features(
            np.ones((3, 1)), change.get("times", [0, 1, 2]), [0.0], delay=0, window=change.get("window", 1)
        )


def test_sound_shorter_than_the_kernel():
    frames, times = frame_clock(duration=10)
    with pytest.raises(DataError, match="more than 32 s"):
        pairing.convolve_response(frames, times)
