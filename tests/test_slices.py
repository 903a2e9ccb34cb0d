"""Slices of a viewer: the way the head lies, colours as bytes, and runs that stay on disk."""

import itertools
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from plotly import colors

from bold_audio import slices
from bold_audio.files import DataError
from bold_audio.scene import Scene

SHAPE = (3, 4, 5)


def affines():
    """An affine for every way a grid can lie, with voxels of three sizes."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            affine = np.zeros((4, 4))
            affine[3, 3] = 1
            for i, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
                affine[axis, i] = sign * (2.0, 3.0, 4.0)[i]
            affine[:3, 3] = (-7, 11, 13)
            yield affine


@pytest.mark.parametrize("affine", list(affines()))
def test_planes_are_those_of_nibabels_canonical_image(affine):
    grid = np.arange(60, dtype=np.float32).reshape(SHAPE)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(grid, affine))
    turned = canonical.get_fdata()
    frame = slices.make_frame(SHAPE, affine)
    index = slices.masked_index(np.ones(SHAPE, bool), frame)
    volumes = slices.Volumes(grid.reshape(1, -1), index)
    x, y, z = voxel = (1, 2, 1)
    wanted = [np.rot90(plane) for plane in (turned[:, :, z], turned[:, y, :], turned[x, :, :])]
    got = volumes.row(0, slices.cut(index, voxel))
    assert np.array_equal(got, np.concatenate([plane.ravel() for plane in wanted]))
    assert np.allclose(frame.place(voxel), (canonical.affine @ [*voxel, 1])[:3])
    assert np.allclose((affine @ [*frame.index_of(voxel), 1])[:3], frame.place(voxel))
    assert frame.voxel_of(frame.index_of(voxel)) == voxel
    assert frame.nearest(frame.place(voxel)) == voxel
    assert [frame.coordinates(a)[v] for a, v in enumerate(voxel)] == pytest.approx(frame.place(voxel))


def test_left_is_left_whatever_the_header_does():
    grid = np.zeros((5, 4, 3), np.float32)
    left_first = np.diag([2.0, 2, 2, 1])
    left_first[0, 3] = -4
    right_first = np.diag([-2.0, 2, 2, 1])
    right_first[0, 3] = 4
    grid[4] = 1  # the right side of the one, the left side of the other
    for affine, side in ((left_first, "R"), (right_first, "L")):
        frame = slices.make_frame(grid.shape, affine)
        index = slices.masked_index(np.ones(grid.shape, bool), frame)
        axial = slices.Volumes(grid.reshape(1, -1), index).row(0, slices.cut(index, (0, 0, 0)))[:20].reshape(4, 5)
        assert np.flatnonzero(axial[0]).tolist() == [4 if side == "R" else 0]


def test_unknown_orientation_is_not_turned_and_has_no_mm():
    frame = slices.make_frame(SHAPE, np.diag([-2.0, 2, 2, 1]), reason="nobody knows")
    assert frame.names == ("i", "j", "k")
    assert frame.place((2, 3, 4)) == [2, 3, 4]
    assert np.array_equal(frame.turn(np.arange(60).reshape(SHAPE)), np.arange(60).reshape(SHAPE))
    assert slices.make_frame(SHAPE, None).reason == "no affine is known"


def test_flat_affine_is_refused():
    with pytest.raises(DataError, match="flattens an axis"):
        slices.make_frame(SHAPE, np.diag([0.0, 2, 2, 1]))


def test_tilt_is_the_angle_of_the_grid():
    turn = np.eye(4)
    a = np.radians(12)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    assert slices.make_frame(SHAPE, turn).tilt == pytest.approx(12)


def test_bytes_keep_the_value_within_half_a_step():
    rng = np.random.default_rng(0)
    values = rng.uniform(-3, 5, 10_000).astype(np.float32)
    steps = slices.as_bytes(values, (-3, 5))
    assert steps.min() >= 1
    back = (steps.astype(float) - 1) / slices.STEPS * 8 - 3
    assert np.abs(back - values).max() <= 8 / slices.STEPS / 2 * 1.01
    assert slices.as_bytes(np.array([np.nan, -9, 9, np.inf, -np.inf]), (-3, 5)).tolist() == [0, 1, 255, 255, 1]


def test_a_constant_range_divides_by_nothing():
    assert slices.as_bytes(np.array([1.0, 2.0, np.nan]), (1.0, 1.0)).tolist() == [1, 255, 0]


@pytest.mark.parametrize(("look", "scale"), [("diverging", "RdBu_r"), ("overlay", "Viridis"), ("grey", None)])
def test_colours_are_those_of_plotly(look, scale):
    at = np.linspace(0, 1, 255)
    if scale is None:
        wanted = np.repeat(np.round(255 * at)[:, None], 3, axis=1)
    else:
        wanted = np.array([colors.unlabel_rgb(c) for c in colors.sample_colorscale(scale, at)])
    assert np.abs(slices.lookup_table(look)[1:].astype(float) - wanted).max() <= 1


def test_middle_of_a_diverging_range_is_its_middle_colour():
    zero = slices.as_bytes(np.array([0.0]), (-2.0, 2.0))[0]
    assert slices.lookup_table("diverging")[zero].min() > 240  # nearly white


def test_image_on_disk_is_read_by_plane(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(-500, 500, (*SHAPE, 7)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([-2.0, 2, 2, 1]))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "run.nii")
    opened = nib.load(tmp_path / "run.nii")
    frame = slices.make_frame(SHAPE, opened.affine)
    volumes = slices.image_volumes(opened, frame)
    wanted = opened.get_fdata()
    index = volumes.index
    axial = np.rot90(wanted[::-1, :, 3, 6])
    assert volumes.row(6, slices.cut(index, (0, 0, 3)))[: axial.size] == pytest.approx(axial.ravel())
    column = int(index[1, 2, 3])
    assert volumes.course(column) == pytest.approx(wanted[1, 2, 3])
    assert volumes.mean() == pytest.approx(wanted.mean(axis=3).ravel(order="F"), rel=1e-5)


def mapped_mb(path):
    """How much of a mapped file is in this process's memory."""
    text = Path("/proc/self/smaps").read_text()
    held = re.findall(rf"^\S+-\S+ .*{re.escape(str(path))}\n(?:\w+: .*\n)*?Rss: +(\d+) kB", text, re.MULTILINE)
    assert held
    return sum(map(int, held)) / 1024


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the size of mapped files is read from /proc")
def test_a_run_that_is_looked_through_does_not_fill_the_memory(tmp_path):
    shape = (32, 35, 36)
    values = np.random.default_rng(0).random((256, np.prod(shape)), dtype=np.float32)  # 41 MB
    path = tmp_path / "run.npy"
    np.save(path, values)
    rows = np.load(path, mmap_mode="r")
    index = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    frame = slices.make_frame(shape, np.eye(4))
    shown = Scene(frame, slices.Volumes(rows, index), np.arange(256.0), 1.0, given_mean=values[0])
    shown.limits("measured")
    slices.give_back(rows)
    for k in range(256):
        assert shown.planes(k, (3, 4, 5))[0]["panels"][0]["value"] == values[k, index[3, 4, 5]]
    assert mapped_mb(path) < 15  # of 41
    shown.courses((3, 4, 5), "one_step")
    assert mapped_mb(path) < 5
    assert np.array_equal(rows, values)  # read again
    slices.give_back(rows[3:].T)
    assert mapped_mb(path) < 5
    slices.give_back(values)  # in memory: nothing to give


def test_sampled_range_does_not_move_with_the_volume():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 500)).astype(np.float32)
    volumes = slices.Volumes(values, np.arange(500, dtype=np.int32).reshape(5, 10, 10))
    low, high = slices.sampled_limits(volumes.row, np.arange(40), 500)
    assert (low, high) == pytest.approx(np.percentile(values, (0.5, 99.5)), abs=0.2)
    low, high = slices.sampled_limits(volumes.row, np.arange(40), 500, symmetric=True)
    assert low == -high == pytest.approx(-np.percentile(np.abs(values), 99), abs=0.2)
