"""Registration on SIMULATED heads whose place in the template is known."""

import re

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bold_audio import register
from bold_audio.simulated_anatomy import FULL_SHAPE, REGIONS, draw_pose, simulated_head, simulated_t1w

CENTRES = {"left": (-54.0, -20.0, 3.0), "right": (57.0, -14.0, 2.0)}


@pytest.fixture(scope="module")
def head():
    """A full-size head, bent by 1.5 mm: EPI with noise, brain, affine, template mm of each voxel, T1w, its motion."""
    rng = np.random.default_rng(1)
    pose = draw_pose(np.random.default_rng(4000), bend=1.5)
    image, brain, _, affine = simulated_head(pose=pose)
    image = np.hypot(image + rng.normal(0, 10, image.shape), rng.normal(0, 10, image.shape)).astype(np.float32)
    t1w, t1w_affine, moved = simulated_t1w(rng, pose=pose)
    truth = pose.to_template(register.grid_points(image.shape, affine)).T.reshape(*image.shape, 3)
    return image, brain, affine, truth, (t1w, t1w_affine), moved


@pytest.fixture(scope="module")
def with_t1w(head):
    image, brain, affine, _, t1w, _ = head
    return register.register(image, affine, brain, t1w=t1w)


@pytest.fixture(scope="module")
def direct(head):
    image, brain, affine, *_ = head
    return register.register(image, affine, brain)


def dice(found, truth, brain, centre):
    a, b = (brain & (np.linalg.norm(mm - np.array(centre), axis=-1) <= 12) for mm in (found, truth))
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


@pytest.mark.slow
@pytest.mark.parametrize("side", CENTRES)
def test_spheres_lie_where_they_were_planted(head, with_t1w, direct, side):
    _, brain, _, truth, *_ = head
    assert dice(with_t1w.template_mm, truth, brain, CENTRES[side]) >= 0.8
    assert dice(direct.template_mm, truth, brain, CENTRES[side]) >= 0.7  # less is promised without a T1w
    assert dice(with_t1w.template_mm * [-1, 1, 1], truth, brain, CENTRES[side]) < 0.2  # sides are not exchanged


@pytest.mark.slow
def test_the_motion_between_the_two_images_is_found(head, with_t1w):
    _, brain, affine, _, _, moved = head
    points = register.grid_points(brain.shape, affine)[:, brain.ravel()]
    rigid = with_t1w.steps["boldref_to_T1w"]
    off = register.template_points(points, rigid) - register.template_points(points, moved)
    assert np.linalg.norm(off, axis=0).mean() < 1.0
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.norm(register.template_points(points, moved) - points, axis=0).mean() > 2  # there was one


@pytest.mark.slow
def test_steps_and_points_agree_and_can_be_right(head, with_t1w, direct):
    _, brain, affine, *_ = head
    assert list(direct.steps) == [f"boldref_to_{register.TEMPLATE}"]
    points = register.template_points(register.grid_points(brain.shape, affine), *direct.steps.values())
    np.testing.assert_allclose(direct.template_mm.reshape(-1, 3).T, points, atol=1e-3)
    for one in (with_t1w, direct):
        assert one.failure is None and one.overlap > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["LPS", "SRA"])
def test_the_storage_order_changes_nothing(head, direct, axes):
    image, brain, affine, *_ = head
    start, end = nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    wanted = nib.orientations.ornt_transform(start, end)
    stored = [nib.Nifti1Image(a.astype(np.float32), affine).as_reoriented(wanted) for a in (image, brain)]
    assert nib.aff2axcodes(stored[0].affine) == tuple(axes)
    found = register.register(stored[0].get_fdata(dtype=np.float32), stored[0].affine, stored[1].get_fdata() > 0.5)
    back = [nib.as_closest_canonical(nib.Nifti1Image(found.template_mm[..., k], stored[0].affine)) for k in range(3)]
    np.testing.assert_allclose(np.stack([b.get_fdata() for b in back], -1), direct.template_mm, atol=1e-3)


@pytest.mark.slow
def test_the_same_input_gives_the_same_bits(head, direct):
    image, brain, affine, *_ = head
    np.testing.assert_array_equal(register.register(image, affine, brain).template_mm, direct.template_mm)


def test_blocks_are_averaged_where_they_lie():
    data = np.arange(6 * 4 * 5.0).reshape(6, 4, 5)
    affine = nib.affines.from_matvec(np.diag([2, 4, 1.5]), (5, 6, 7))
    coarse, place = register._coarser(data, affine, 4.0)
    assert coarse.shape == (3, 4, 2)
    np.testing.assert_allclose(coarse[1, 2, 0], data[2:4, 2, 0:2].mean())
    centre = np.mean([nib.affines.apply_affine(affine, (i, 2, k)) for i in (2, 3) for k in (0, 1)], axis=0)
    np.testing.assert_allclose(nib.affines.apply_affine(place, (1, 2, 0)), centre)


def test_a_mask_is_carried_by_its_mm():
    mask, place = np.zeros((9, 9, 9), bool), np.diag([4.0, 4, 4, 1])
    mask[2:5, 3:6, 4:7] = True
    fine = np.diag([2.0, 2, 2, 1])
    carried = register._carried(mask, place, (18, 18, 18), fine)
    middle = ndimage.center_of_mass(carried)
    np.testing.assert_allclose(nib.affines.apply_affine(fine, middle), nib.affines.apply_affine(place, (3, 4, 5)))


def test_the_first_guess_brings_a_brain_of_another_size_into_place():
    _, place, brain = register._template(2)
    planted = nib.affines.from_matvec(np.diag([0.8, 0.9, 0.85]), (10, -20, 5))
    guess = register._first_guess(brain, planted @ place)
    np.testing.assert_allclose(guess @ planted, np.eye(4), atol=1e-6)


@pytest.mark.parametrize(
    "shape, size, held, flat, why",
    [
        ((20, 20, 4), 4.0, 1.0, False, "a grid of 20 × 20 × 4 voxels shows no head"),
        ((18, 22, 22), 4.0, 0.3, False, "the brain mask holds .* ml in .* voxels, too little"),
        ((8, 8, 8), 20.0, 0.9, False, "too little to find a place"),
        ((24, 24, 24), 6.0, 0.9, True, "flat inside the brain mask"),
    ],
)
def test_what_shows_no_head_is_told(shape, size, held, flat, why):
    rng = np.random.default_rng(0)
    image = np.ones(shape) if flat else rng.normal(size=shape)
    brain = rng.random(shape) < held
    assert re.search(why, register.unfit(image, np.diag([size] * 3 + [1.0]), brain))
    assert register.unfit(rng.normal(size=FULL_SHAPE), np.diag([4.0, 4, 4, 1]), np.ones(FULL_SHAPE, bool)) is None


def test_a_registration_that_cannot_be_right_says_so():
    at = np.zeros((2, 2, 2, 3), np.float32)
    assert "stretch the head by 0.50" in register.Registration({"a": np.diag([0.5, 1, 1, 1])}, at, 0.9).failure
    assert "Dice of 0.60" in register.Registration({"a": np.eye(4)}, at, 0.6).failure
    assert "Dice of nan" in register.Registration({"a": np.eye(4)}, at, np.nan).failure
    twice = {"a": np.diag([0.5, 1, 1, 1]), "b": np.diag([2.0, 1, 1, 1])}
    assert register.Registration(twice, at, 0.9).failure is None


def test_a_pose_is_undone_by_hand():
    pose = draw_pose(np.random.default_rng(3))
    centre = np.array(REGIONS["auditory_left"][0])
    point = np.linalg.inv(pose.turn) @ ((centre - (0, -18, 6)) * pose.scale.ravel()) + pose.shift
    np.testing.assert_allclose(pose.to_template(point[:, None])[:, 0], centre)
    assert point[0] < 0  # left is left
