"""Volumes as three planes through one voxel: how the head lies, the values on the planes, and values as bytes."""

import mmap
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from plotly import colors

from bold_audio import style
from bold_audio.files import DataError
from bold_audio.style import DIVERGING, GREYS, OVERLAY

PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}  # axis cut, axis to the right, axis up
SIDES = ("LR", "PA", "IS")
LOOKS = {"grey": GREYS, "diverging": DIVERGING, "overlay": OVERLAY}
STEPS = 254  # of colour; the byte 0 is for what has no value
SAMPLED_VOLUMES, SAMPLED_VOXELS = 16, 20_000  # that a colour range is made from
KEPT_ROWS = 64  # volumes looked at before their pages are given back


@dataclass(frozen=True)
class Frame:
    """A grid turned to run left to right, back to front and bottom to top, as far as that is known.

    Parameters
    ----------
    shape : (int, int, int)
        Of the turned grid.
    turns : array of shape (3, 2)
        As of `nibabel.io_orientation`.
    affine : array of shape (4, 4)
        Turned voxel → mm; turned voxel → itself where the orientation is unknown.
    reason : str
        Why there are no mm and no sides; empty where there are.
    """

    shape: tuple
    turns: np.ndarray
    affine: np.ndarray
    reason: str = ""

    @property
    def names(self):
        """Of the axes."""
        return ("i", "j", "k") if self.reason else ("x", "y", "z")

    @property
    def sizes(self):
        """Of a voxel along the turned axes: mm, or 1."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def tilt(self):
        """Largest angle between an axis of the grid and one of the head, in degrees."""
        return float(np.degrees(nib.affines.obliquity(self.affine)).max())

    def turn(self, grid):
        """A grid (i, j, k) of the scan in this frame: a view where NumPy can."""
        return nib.apply_orientation(grid, self.turns)

    def voxel_of(self, index):
        """Turned voxel of a voxel (i, j, k) of the scan: tuple of int."""
        back = np.linalg.inv(nib.orientations.inv_ornt_aff(self.turns, self._source_shape()))
        return tuple(int(round(v)) for v in (back @ np.append(index, 1))[:3])

    def index_of(self, voxel):
        """Voxel (i, j, k) of the scan of a turned voxel: tuple of int."""
        forth = nib.orientations.inv_ornt_aff(self.turns, self._source_shape())
        return tuple(int(round(v)) for v in (forth @ np.append(voxel, 1))[:3])

    def place(self, voxel):
        """Coordinates of a voxel: list of 3 floats, mm (or indices)."""
        return [round(float(v), 2) + 0.0 for v in (self.affine @ np.append(voxel, 1))[:3]]

    def nearest(self, place):
        """Turned voxel nearest to coordinates, inside the grid: tuple of int."""
        at = (np.linalg.inv(self.affine) @ np.append(place, 1))[:3]
        return tuple(int(v) for v in np.clip(np.round(at), 0, np.array(self.shape) - 1))

    def coordinates(self, axis):
        """Of each slice along an axis, at its middle: array, mm (or indices)."""
        at = (np.array(self.shape) - 1) / 2
        middle = self.affine[:3] @ np.append(at, 1)
        return middle[axis] + self.affine[axis, axis] * (np.arange(self.shape[axis]) - at[axis])

    def _source_shape(self):
        shape = np.empty(3, int)
        shape[:] = [self.shape[int(axis)] for axis in self.turns[:, 0]]
        return tuple(shape)


def make_frame(shape, affine, *, reason=""):
    """Frame of a grid.

    Parameters
    ----------
    shape : (int, int, int)
    affine : array of shape (4, 4) or None
        Grid index → mm.
    reason : str
        Why ``affine`` is not to be believed; then the grid is not turned and no side is named.

    Returns
    -------
    Frame

    Raises
    ------
    DataError
        If ``affine`` flattens an axis.

    Examples
    --------
    >>> make_frame((2, 3, 4), np.diag([-4.0, 4, 4, 1])).place((0, 0, 0))
    [-4.0, 0.0, 0.0]
    """
    if affine is None and not reason:
        reason = "no affine is known"
    used = np.eye(4) if reason else np.asarray(affine, float)
    turns = nib.io_orientation(used)
    if np.isnan(turns).any():
        raise DataError("the affine flattens an axis of the grid - mend the header's sform and qform")
    turned = nib.apply_orientation(np.empty(shape, bool), turns).shape
    return Frame(tuple(turned), turns, used @ nib.orientations.inv_ornt_aff(turns, shape), reason)


@dataclass(frozen=True)
class Volumes:
    """Volumes that may lie on disk, and where their values stand in a turned grid.

    Parameters
    ----------
    values : array of shape (n_volumes, n_values)
        Only what is asked for is read.
    index : array of int32
        Turned grid: column of ``values``, −1 where there is none.
    slope, inter : float
        What is shown is ``values * slope + inter``.
    """

    values: np.ndarray
    index: np.ndarray
    slope: float = 1.0
    inter: float = 0.0

    def row(self, k, where=slice(None)):
        """Values of volume ``k`` in columns ``where``, NaN where that is −1: array, float32."""
        row = self.values[k]
        if isinstance(where, slice):
            found = np.array(row[where], np.float32)
        else:
            found = row.take(where, mode="clip").astype(np.float32)
            found[where < 0] = np.nan
        return found if (self.slope, self.inter) == (1, 0) else found * np.float32(self.slope) + np.float32(self.inter)

    def course(self, column):
        """One voxel over time: array of shape (n_volumes,), float32."""
        return np.asarray(self.values[:, column], np.float32) * np.float32(self.slope) + np.float32(self.inter)

    def mean(self):
        """Of all volumes: array of shape (n_values,), float32."""
        total = np.zeros(self.values.shape[1], np.float64)
        for k, row in enumerate(self.values):
            total += row
            if k % KEPT_ROWS == KEPT_ROWS - 1:
                give_back(self.values)
        return (total / len(self.values) * self.slope + self.inter).astype(np.float32)


def masked_index(mask, frame):
    """Columns of values in mask order on the turned grid; −1 outside: array of int32."""
    index = np.full(mask.shape, -1, np.int32)
    index[mask] = np.arange(np.count_nonzero(mask))
    return np.ascontiguousarray(frame.turn(index))


def image_volumes(image, frame):
    """Volumes of an opened image whose values lie uncompressed on disk; they stay there.

    Returns
    -------
    Volumes
    """
    data = image.dataobj.get_unscaled()
    shape = image.shape[:3]
    index = np.arange(np.prod(shape), dtype=np.int32).reshape(shape, order="F")
    rows = data.reshape(int(np.prod(shape)), -1, order="F").T
    scale = (float(image.dataobj.slope), float(image.dataobj.inter))
    return Volumes(rows, np.ascontiguousarray(frame.turn(index)), *scale)


def give_back(values):
    """Give pages of a memory-mapped array back to the machine; they are read again when they are needed."""
    # Only of a file that cannot be written to through this array: what was written would be lost.
    mapped = values._mmap if isinstance(values, np.memmap) and values.mode == "r" else None
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def cut(index, voxel):
    """The three planes through a voxel, row by row from the top, one after the other: array of shape (n_pixels,)."""
    parts = []
    for axis, right, up in PLANES.values():
        plane = index.take(voxel[axis], axis=axis)  # the axes that are left keep their order
        plane = plane.T if right < up else plane
        parts.append(plane[::-1].ravel())
    return np.concatenate(parts)


def as_bytes(values, limits):
    """Values as steps of colour: 1 at the lower limit (or below), 255 at the upper (or above), 0 for NaN.

    Examples
    --------
    >>> as_bytes(np.array([-5.0, 0.0, 1.0, 9.0, np.nan]), (0.0, 2.0))
    array([  1,   1, 128, 255,   0], dtype=uint8)
    """
    low, high = limits
    with np.errstate(invalid="ignore"):
        steps = (np.asarray(values, np.float32) - np.float32(low)) * np.float32(STEPS / max(high - low, 1e-30))
        steps = np.where(np.isnan(steps), 0, np.clip(steps, 0, STEPS) + 1.5)
    return steps.astype(np.uint8)


def lookup_table(look):
    """Colours of the bytes 0 to 255 for one of `LOOKS`: array of shape (256, 3), uint8; the first is not used."""
    named = colors.sample_colorscale(LOOKS[look], np.linspace(0, 1, STEPS + 1).tolist())
    return np.vstack([np.zeros((1, 3)), [colors.unlabel_rgb(c) for c in named]]).round().astype(np.uint8)


def sampled_limits(row, rows, n_columns, *, symmetric=False):
    """Colour range of a whole run, from a few of its volumes.

    Parameters
    ----------
    row : callable
        Volume and columns → values, such as `Volumes.row`.
    rows : array of int
        Volumes that may be drawn from.
    n_columns : int
    symmetric : bool
        Around 0.

    Returns
    -------
    (float, float)
    """
    few = np.asarray(rows)[np.unique(np.linspace(0, len(rows) - 1, SAMPLED_VOLUMES).round().astype(int))]
    columns = np.arange(0, n_columns, -(-n_columns // SAMPLED_VOXELS))
    values = np.concatenate([row(int(k), columns) for k in few])
    return tuple(float(v) for v in style.limits(values, symmetric=symmetric))
