"""Planted head motion is found again, and a realigned scan has lost it."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bold_audio import motion
from bold_audio.files import DataError
from bold_audio.runs import locate_runs
from bold_audio.simulate import FULL_SHAPE, simulate_subject, simulated_head

SHAPE = (24, 30, 28)  # of 4 mm; a small head, which tells turns apart less well than a full-size one
OBLIQUE = Rotation.from_euler("xyz", [0.2, -0.1, 0.3]).as_matrix()
SHIFT, TURN = 0.06, 0.06  # mm and degrees: how well a planted motion must be found again at full size
SMALL_SHIFT, SMALL_TURN = 0.07, 0.15  # and in the small head


@pytest.fixture(scope="module")
def head():
    """A SIMULATED head at rest, array of SHAPE."""
    return simulated_head(np.random.default_rng(0), shape=SHAPE)[0]


@pytest.fixture(scope="module")
def full_head():
    """A SIMULATED head at rest, at full size."""
    return simulated_head(np.random.default_rng(0), shape=FULL_SHAPE)[0]


def moved_volumes(head, affine, planted, *, noise=8):
    """The head moved by cubic splines, which the estimate does not use, with noise of its own in each volume."""
    to_mm = affine[:3, :3]
    smooth, centre = ndimage.gaussian_filter(head, 0.5), (np.array(head.shape) - 1) / 2
    rng, volumes = np.random.default_rng(0), []
    for row in planted:
        # A point x of the head goes to R x + t, so the value at y comes from R⁻¹ (y − t).
        back = np.linalg.inv(Rotation.from_euler("xyz", row[3:]).as_matrix())
        matrix = np.linalg.inv(to_mm) @ back @ to_mm
        offset = centre - matrix @ (centre + np.linalg.inv(to_mm) @ row[:3])
        volumes.append(ndimage.affine_transform(smooth, matrix, offset, order=3) + rng.normal(0, noise, head.shape))
    return np.stack(volumes, axis=3).astype(np.float32)


def estimate(volumes, affine, *, reference):
    return motion.estimate_motion(np.moveaxis(volumes, 3, 0), affine, reference=reference)


def planted_motion(n=12):
    rng = np.random.default_rng(1)
    return np.column_stack([rng.uniform(-2, 2, (n, 3)), np.radians(rng.uniform(-2, 2, (n, 3)))])


def grid(turn=None):
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = 11, -7, 3
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    return affine


@pytest.mark.slow
@pytest.mark.parametrize(
    "affine", [grid(), grid(OBLIQUE), grid(np.diag([-1.0, 1, 1]))], ids=["straight", "oblique", "LAS"]
)
def test_planted_shifts_and_turns_are_found(full_head, affine):
    head, planted = full_head, planted_motion(6)
    reference = moved_volumes(head, affine, np.zeros((1, 6)), noise=0)[..., 0]
    found = estimate(moved_volumes(head, affine, planted), affine, reference=reference)
    assert np.abs(found[:, :3] - planted[:, :3]).max() < SHIFT
    assert np.degrees(np.abs(found[:, 3:] - planted[:, 3:]).max()) < TURN
    # FD adds up six parameters' errors; here it is 4 to 12 mm.
    np.testing.assert_allclose(motion.framewise_displacement(found), motion.framewise_displacement(planted), atol=0.2)


@pytest.mark.parametrize("axis", range(6))
def test_each_parameter_is_the_one_it_is_named_after(head, axis):
    planted = np.zeros((1, 6))
    planted[0, axis] = 1.5 if axis < 3 else np.radians(1.5)
    reference = moved_volumes(head, grid(), np.zeros((1, 6)), noise=0)[..., 0]
    (found,) = estimate(moved_volumes(head, grid(), planted), grid(), reference=reference)
    assert int(np.argmax(np.abs(found * [1, 1, 1, 50, 50, 50]))) == axis
    assert found[axis] == pytest.approx(planted[0, axis], rel=0.1)


@pytest.mark.slow
def test_a_head_at_rest_hardly_moves(full_head):
    """False alarm: the displacement that noise alone makes (measured: 0.016 mm)."""
    still = moved_volumes(full_head, grid(), np.zeros((20, 6)))
    found = estimate(still, grid(), reference=still.mean(axis=3))
    assert motion.framewise_displacement(found)[1:].mean() < 0.03


@pytest.mark.parametrize("factor", [0.5, 10])
def test_brightness_moves_nobody(head, factor):  # S15
    planted = planted_motion(4)
    volumes = moved_volumes(head, grid(), planted)
    brighter = volumes.copy()
    brighter[..., 2] = factor * brighter[..., 2] + 30
    kept = [estimate(v, grid(), reference=volumes[..., 0]) for v in (volumes, brighter)]
    np.testing.assert_allclose(kept[1], kept[0], atol=2e-3)


@pytest.mark.parametrize("value", [0, np.nan, np.inf, 500])
def test_a_volume_without_a_head_is_not_placed_and_misleads_no_later_one(head, value):  # S15
    planted = planted_motion(5)
    volumes = moved_volumes(head, grid(), planted)
    reference = volumes[..., 0].copy()
    before = estimate(volumes, grid(), reference=reference)
    volumes[..., 2] = value
    after = estimate(volumes, grid(), reference=reference)
    assert np.isnan(after[2]).all()
    np.testing.assert_allclose(after[[0, 1, 3, 4]], before[[0, 1, 3, 4]], atol=2e-3)
    assert np.isnan(motion.framewise_displacement(after)[[0, 2, 3]]).all()
    realigned = motion.realign(volumes, grid(), after)
    np.testing.assert_array_equal(realigned[..., 2], volumes[..., 2])


def test_later_volumes_change_no_earlier_estimate(head):
    volumes = moved_volumes(head, grid(), planted_motion(6))
    spoilt = volumes.copy()
    spoilt[..., 4:] = np.random.default_rng(5).normal(500, 300, spoilt[..., 4:].shape)
    first, second = (estimate(v, grid(), reference=v[..., :4].mean(axis=3)) for v in (volumes, spoilt))
    np.testing.assert_array_equal(first[:4], second[:4])


@pytest.mark.parametrize("affine", [grid(), grid(OBLIQUE)], ids=["straight", "oblique"])
def test_a_realigned_scan_lies_still(head, affine):
    planted = planted_motion(6)
    volumes = moved_volumes(head, affine, planted)
    still = moved_volumes(head, affine, np.zeros((1, 6)), noise=0)[..., 0]
    realigned = motion.realign(volumes, affine, estimate(volumes, affine, reference=still))
    left = estimate(realigned, affine, reference=still)
    assert np.abs(left[:, :3]).max() < SMALL_SHIFT and np.degrees(np.abs(left[:, 3:]).max()) < SMALL_TURN
    inner = (slice(4, -4),) * 3
    before, after = (np.std(v[inner] - still[inner][..., None]) for v in (volumes, realigned))
    assert after < 0.25 * before
    assert realigned.dtype == np.float32 and realigned.shape == volumes.shape


def test_what_is_no_number_spreads_to_no_neighbour(head):
    volumes = moved_volumes(head, grid(), planted_motion(2))
    volumes[5, 5, 5, 1] = np.nan
    assert np.isfinite(motion.realign(volumes, grid(), planted_motion(2))).all()


def test_a_list_of_regions_is_no_head():
    with pytest.raises(DataError, match="a grid of 6 × 1 × 1 voxels shows no head to align - set realign false"):
        estimate(np.ones((6, 1, 1, 5)), np.eye(4), reference=np.ones((6, 1, 1)))
    assert not motion.can_align((40, 64, 5)) and motion.can_align((40, 64, 6))


@pytest.mark.slow
def test_the_simulators_planted_motion_is_found_and_cached(small_params, tmp_path, monkeypatch):
    """The simulator moves by linear interpolation, about the same centre and axes; the mean of train is the origin."""
    root = tmp_path / "moved"
    simulate_subject(root, subject="sim", shape=SHAPE, n_volumes=60, motion=2.0)
    params = small_params(data_dir=str(root))
    files, train = locate_runs(params), np.arange(10, 40)
    found = motion.cached_motion(files, params.cache_path, train=train)
    planted = np.genfromtxt(next(root.glob("derivatives/truth/sub-sim/*motion*.tsv")), skip_header=1)
    error = found - planted
    error -= error[train].mean(axis=0)
    assert np.abs(planted[:, :3]).max() > 1.5
    assert np.abs(error[:, :3]).max() < 0.1 and np.degrees(np.abs(error[:, 3:]).max()) < 0.2
    monkeypatch.setattr(motion, "estimate_motion", lambda *a, **k: pytest.fail("estimated twice"))
    np.testing.assert_array_equal(motion.cached_motion(files, params.cache_path, train=train), found)
    with pytest.raises(pytest.fail.Exception):
        motion.cached_motion(files, params.cache_path, train=train[:-1])


def test_displacement_is_powers_sum_of_six_steps():
    """Independent oracle: the formula written out, with degrees turned into arcs on a sphere of 50 mm."""
    moved = planted_motion(9)
    for k in range(1, 9):
        arcs = [2 * np.pi * 50 * abs(np.degrees(moved[k, a] - moved[k - 1, a])) / 360 for a in (3, 4, 5)]
        steps = [abs(moved[k, a] - moved[k - 1, a]) for a in (0, 1, 2)]
        assert motion.framewise_displacement(moved)[k] == pytest.approx(sum(arcs) + sum(steps))
