"""The SIMULATED head: where it lies in the scanner, what an EPI and a T1w image show of it, and its template mm."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

VOXEL_SIZE = 4.0  # mm
FULL_SHAPE = (40, 64, 64)  # left-right, back-front, down-up
# Centre in template (MNI) mm and radius in mm. Left is the larger, so that the pooled delay leans to one side.
REGIONS = {"auditory_left": ((-54.0, -20.0, 6.0), 16.0), "auditory_right": ((54.0, -20.0, 6.0), 12.0)}
HEAD_SCALE, HEAD_CENTRE = 0.92, ((0.0,), (-18.0,), (6.0,))  # size against the template's; template mm at its centre
T1W_VOXEL_SIZE = 2.0  # mm
# Mean intensity of what the two images show; cerebrospinal fluid is the rest of the brain. EPI: grey above white.
EPI_TISSUES = {"grey": 1040, "white": 870, "fluid": 640, "skull": 60, "scalp": 150}
T1W_TISSUES = {"grey": 650, "white": 900, "fluid": 250, "skull": 80, "scalp": 750}


@functools.cache
def _tissues():
    """Return maps (0 to 1) of the MNI head's tissues and of its brain on their own grid, and that grid's affine."""
    from nilearn import datasets

    resolution = 2  # mm
    grey = datasets.load_mni152_gm_template(resolution=resolution)
    white = datasets.load_mni152_wm_template(resolution=resolution)
    mask = datasets.load_mni152_brain_mask(resolution=resolution)
    gm, wm, brain = (np.pad(image.get_fdata(dtype=np.float32), 8) for image in (grey, white, mask))
    away = ndimage.distance_transform_edt(brain < 0.5) * resolution  # mm outside the brain
    affine = grey.affine.copy()
    affine[:3, 3] -= 8 * resolution
    maps = {"grey": gm, "white": wm, "fluid": np.clip(brain - gm - wm, 0, 1), "brain": brain}
    return maps | {"skull": (away > 0) & (away <= 6), "scalp": (away > 6) & (away <= 13)}, affine


@functools.cache
def _template(**intensities):
    """Return the MNI head's intensity and brain (0 to 1) on its own grid, and that grid's affine."""
    tissues, affine = _tissues()
    inner = sum(intensities[name] * tissues[name] for name in ("grey", "white", "fluid"))
    outer = sum(intensities[name] * tissues[name] for name in ("skull", "scalp"))
    return np.where(tissues["brain"] > 0.5, inner, outer).astype(np.float32), tissues["brain"], affine


@dataclass(frozen=True)
class HeadPose:
    """Where a head lies in the scanner, and how it differs from the template's.

    Parameters
    ----------
    shift : array of shape (3,)
        Of its centre, in mm.
    scale : array of shape (3, 1)
        Its size against the template's.
    turn : array of shape (3, 3)
        Rotation, scanner to template.
    bend : array of shape (n_waves, 3), optional
        What no affine transform undoes: mm by which smooth waves move template points.
    """

    shift: np.ndarray
    scale: np.ndarray
    turn: np.ndarray
    bend: np.ndarray | None = None

    def to_template(self, points):
        """Template (MNI) mm of points in scanner mm: both arrays of shape (3, n_points)."""
        mni = self.turn @ (points - self.shift[:, None]) / self.scale + HEAD_CENTRE
        if self.bend is None:
            return mni
        waves, phases = _waves(len(self.bend))
        return mni + self.bend.T @ np.sin(waves @ mni + phases[:, None])


def _waves(n_waves):
    """Wave vectors (1/mm; lengths of 80 to 160 mm) and phases of a bend: the same ones in every head."""
    rng = np.random.default_rng(7)
    directions = rng.normal(size=(n_waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * (2 * np.pi / rng.uniform(80, 160, (n_waves, 1))), rng.uniform(0, 2 * np.pi, n_waves)


def draw_pose(rng, *, size=1.0, bend=0.0):
    """Draw a head a little off centre, turned and of its own size.

    Parameters
    ----------
    rng : numpy Generator
    size : float or array of shape (3,)
        Of the head against a full-size one.
    bend : float
        Root mean square of the mm by which the head is bent.
    """
    size = np.broadcast_to(np.asarray(size, float), 3)
    shift = rng.normal(0, 3, 3) * size
    scale = HEAD_SCALE * rng.uniform(0.97, 1.03) * size[:, None]
    turn = rotation(rng.normal(0, 0.03, 3))
    waves = rng.normal(0, bend * np.sqrt(2 / 3 / 6), (6, 3)) if bend else None
    return HeadPose(shift, scale, turn, waves)


def epi_grid(shape):
    """The affine (RAS+) of a scan of ``shape`` voxels of 4 mm, and the size of the head that fills it."""
    size = np.array(shape) / FULL_SHAPE
    affine = np.diag([VOXEL_SIZE] * 3 + [1.0])
    affine[:3, 3] = np.round(-VOXEL_SIZE * (np.array(shape) - 1) / 2 + (1.5, -9.0, 6.0) * size, 2)
    return affine, size


def simulated_head(rng=None, *, shape=FULL_SHAPE, pose=None):
    """Place a head in the scanner, a little off centre, turned and of its own size.

    The head fills the grid of ``shape``, in voxels of 4 mm, so that a small grid holds a small head.

    Parameters
    ----------
    rng : numpy Generator, optional
        Draws the pose where none is given.
    shape : (int, int, int)
    pose : HeadPose, optional

    Returns
    -------
    image : array of ``shape``
        Mean intensity, float32; 0 is air.
    brain : bool array of ``shape``
    distances : array of shape (n_regions, *shape)
        Distance to each region's centre, relative to its radius.
    affine : array of shape (4, 4)
        Voxel to scanner mm, RAS+.
    """
    affine, size = epi_grid(shape)
    pose = draw_pose(rng, size=size) if pose is None else pose
    indices = np.indices(shape).reshape(3, -1)
    mni = pose.to_template(indices * VOXEL_SIZE + affine[:3, 3:])
    # one of our voxels averages over itself
    image, inside = _seen(mni, EPI_TISSUES, blur=0.7 / pose.scale[:, 0])
    image *= 1 + 0.06 * np.sin(mni[1] / 70)  # sensitivity of the coil
    image[image < 20] = 0
    distances = []
    for centre, radius in REGIONS.values():
        near = np.linalg.norm(mni - np.array(centre)[:, None], axis=0)
        middle = indices[:, [np.where(inside > 0.5, near, np.inf).argmin()]]
        mm = VOXEL_SIZE * np.linalg.norm(indices - middle, axis=0)
        distances.append(mm.reshape(shape) / max(radius * size.mean(), 1.8 * VOXEL_SIZE))
    return image.reshape(shape).astype(np.float32), inside.reshape(shape) > 0.5, np.array(distances), affine


def _seen(mni, tissues, *, blur):
    """Intensity and brain (0 to 1) at template points, ``blur`` in voxels of the template."""
    *maps, template = _template(**tissues)
    at = np.linalg.inv(template)[:3] @ np.vstack([mni, np.ones(mni.shape[1])])
    return [ndimage.map_coordinates(ndimage.gaussian_filter(a, blur), at, order=1) for a in maps]


def simulated_t1w(rng, *, shape=FULL_SHAPE, pose):
    """Image the same head as T1w: voxels of 2 mm stored from front to back, from top to bottom and from left to right.

    Between the two images the head has moved by some mm, as people do.

    Parameters
    ----------
    rng : numpy Generator
    shape : (int, int, int)
        Of the EPI grid, which says how large the head is.
    pose : HeadPose
        Of the EPI.

    Returns
    -------
    image : array of shape (front-back, top-down, left-right)
        Intensity, int16.
    affine : array of shape (4, 4)
        Voxel to scanner mm: orientation PIR.
    moved : array of shape (4, 4)
        Where the head went: mm in the EPI → mm in the T1w, rigid.
    """
    _, size = epi_grid(shape)
    moved = np.eye(4)
    moved[:3, :3] = rotation(rng.normal(0, 0.03, 3))
    moved[:3, 3] = rng.normal(0, 3, 3) * size
    extent = np.ceil(np.array(shape) * VOXEL_SIZE * (1.1, 0.9, 0.8) / T1W_VOXEL_SIZE).astype(int)[[1, 2, 0]]
    affine = np.zeros((4, 4))  # storage axes run to P, I and R
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -T1W_VOXEL_SIZE, -T1W_VOXEL_SIZE, T1W_VOXEL_SIZE, 1
    affine[:3, 3] = (0, 0, 10 * size[2]) - affine[:3, :3] @ ((extent - 1) / 2)
    indices = np.indices(extent).reshape(3, -1)
    here = affine[:3, :3] @ indices + affine[:3, 3:]
    back = np.linalg.inv(moved)
    image, _ = _seen(pose.to_template(back[:3, :3] @ here + back[:3, 3:]), T1W_TISSUES, blur=0.35 / pose.scale[:, 0])
    image *= 1 + 0.15 * np.sin(here[1] / 90)  # sensitivity of the coil
    noise = 12 * rng.standard_normal((2, image.size), dtype=np.float32)
    image = np.hypot(image + noise[0], noise[1])
    return np.round(image).astype(np.int16).reshape(extent), affine, moved


def rotation(angles):
    """Return the matrix that turns about x, then y, then z, by ``angles`` in radians."""
    (a, b, c), (x, y, z) = np.cos(angles), np.sin(angles)
    about_z, about_y = np.array([[c, -z, 0], [z, c, 0], [0, 0, 1]]), np.array([[b, 0, y], [0, 1, 0], [-y, 0, b]])
    return about_z @ about_y @ np.array([[1, 0, 0], [0, a, -x], [0, x, a]])
