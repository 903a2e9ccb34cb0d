"""Head motion: six numbers per volume by rigid least squares, the volumes put back in place, and the displacement."""

import itertools

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bold_audio import images
from bold_audio.files import DataError, file_md5, fingerprint
from bold_audio.locking import cached_folder
from bold_audio.provenance import code_fingerprint
from bold_audio.register import FEWEST_SLICES

NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")  # mm and radians, as fMRIPrep names them
HEAD_RADIUS = 50.0  # mm at which a turn counts as a displacement (Power et al. 2012)
FWHM = 5.0  # mm of smoothing before alignment: noise off, edges wide enough to be linear over a step
N_POINTS = 10_000  # voxels compared, those with the steepest edges: the others say little about place
MAX_STEPS = 20
TOLERANCE = 1e-3  # mm (a turn counts as at HEAD_RADIUS) at which a volume's steps end
WORST_SCALE = 0.2  # a volume with less than this share of the reference's contrast shows no head


def estimate_motion(volumes, affine, *, reference):
    """Estimate where the head is in each volume, as a rigid motion away from a reference.

    Parameters
    ----------
    volumes : iterable of array of shape (i, j, k)
        Raw intensities, one volume after the other.
    affine : array of shape (4, 4)
        Grid index → mm.
    reference : array of shape (i, j, k)
        A volume, or a mean of volumes; of train, so that nothing of the test part is in it.

    Returns
    -------
    array of shape (n_volumes, 6)
        Shifts along x, y, z in mm, then turns about x, then y, then z in radians, about the centre
        of the grid: a point x (mm from that centre) of the reference's head lies at ``R x + t``.
        A volume that shows no head (empty, not a number) or cannot be aligned is a row of NaN.

    Raises
    ------
    DataError
        If the grid has fewer than 6 voxels along an axis: there is no head to align.

    Notes
    -----
    Iterated linear least squares, as AFNI's 3dvolreg and SPM's realign do it [1]_ [2]_. The
    reference, smoothed by 5 mm, is linearised in the six parameters once, at the 10,000 voxels of
    its steepest edges; each step samples the volume where the head is thought to be and solves for
    what is left, together with one brightness and one offset, so that a bright or a dark volume
    moves nobody. Each volume starts from the one before it, never from a later one.

    References
    ----------
    .. [1] Cox & Jesmanowicz (1999). Real-time 3D image registration for functional MRI. Magnetic
       Resonance in Medicine 42(6), 1014–1018.
    .. [2] Friston, Ashburner, Frith, Poline, Heather & Frackowiak (1995). Spatial registration and
       normalization of images. Human Brain Mapping 3(3), 165–189.
    """
    if not can_align(reference.shape):
        raise DataError(
            f"a grid of {' × '.join(map(str, reference.shape))} voxels shows no head to align - "
            "set realign false and take motion out of confounds"
        )
    to_mm = np.asarray(affine, float)[:3, :3]
    sigma = FWHM / np.sqrt(8 * np.log(2)) / np.linalg.norm(to_mm, axis=0)
    still = ndimage.gaussian_filter(_finite(reference), sigma)
    points, places, solve = _linearise(still, to_mm)
    wanted = still[points]
    centre = (np.array(still.shape) - 1) / 2
    to_index = np.linalg.inv(to_mm)
    found, turn, shift = [], np.eye(3), np.zeros(3)
    for volume in volumes:
        volume = ndimage.gaussian_filter(_finite(volume), sigma)
        placed = _align(volume, wanted, places, solve, to_index, centre, turn, shift)
        found.append(np.full(6, np.nan))
        if placed is not None:
            turn, shift = placed
            found[-1][:3], found[-1][3:] = shift, Rotation.from_matrix(turn).as_euler("xyz")
    return np.array(found)


def _finite(volume):
    """As float32, with 0 for what is not a number."""
    volume = np.asarray(volume, np.float32)
    return volume if np.isfinite(volume).all() else np.nan_to_num(volume, nan=0, posinf=0, neginf=0)


def _linearise(still, to_mm):
    """Voxels compared, their places in mm from the centre, and what turns differences there into parameters."""
    slopes = np.linalg.inv(to_mm).T @ np.array(np.gradient(still)).reshape(3, -1)  # per mm
    inner = np.zeros(still.shape, bool)
    inner[2:-2, 2:-2, 2:-2] = True
    steepness = np.where(inner.ravel(), np.sum(slopes**2, axis=0), -1)
    chosen = np.sort(np.argsort(steepness, kind="stable")[-min(N_POINTS, int(inner.sum())) :])
    points = np.unravel_index(chosen, still.shape)
    places = to_mm @ (np.array(points) - (np.array(still.shape)[:, None] - 1) / 2)
    slopes = slopes[:, chosen].T
    design = np.column_stack([-slopes, -np.cross(places.T, slopes), still[points], np.ones(len(chosen))])
    size = np.linalg.norm(design, axis=0)
    size[size == 0] = 1
    return points, places, np.linalg.pinv(design / size) / size[:, None]


def _align(volume, wanted, places, solve, to_index, centre, turn, shift):
    """Turn and shift of one volume, starting from those given; None where it cannot be aligned."""
    for _ in range(MAX_STEPS):
        at = to_index @ (turn @ places + shift[:, None]) + centre[:, None]
        left = solve @ (ndimage.map_coordinates(volume, at, order=1, mode="nearest") - wanted)
        scale = 1 + left[6]
        if not scale > WORST_SCALE:
            return None
        step = left[:6] / scale
        shift = shift + turn @ step[:3]
        turn = turn @ Rotation.from_euler("xyz", step[3:]).as_matrix()
        if np.abs(step * [1, 1, 1, HEAD_RADIUS, HEAD_RADIUS, HEAD_RADIUS]).max() < TOLERANCE:
            return turn, shift
    return None


def realign(data, affine, motion):
    """Put each volume back to where the head was in the reference, by cubic splines.

    Parameters
    ----------
    data : array of shape (i, j, k, n_volumes)
        What is not a number counts as 0.
    affine : array of shape (4, 4)
    motion : array of shape (n_volumes, 6)
        From `estimate_motion`; a volume whose row is NaN stays as it is.

    Returns
    -------
    array of the shape of ``data``, float32
        What was outside the picture takes the value of its edge.
    """
    to_mm = np.asarray(affine, float)[:3, :3]
    to_index = np.linalg.inv(to_mm)
    centre = (np.array(data.shape[:3]) - 1) / 2
    out = np.empty(data.shape, np.float32, order="F")
    for k, row in enumerate(motion):
        if not np.isfinite(row).all():
            out[..., k] = data[..., k]
            continue
        matrix = to_index @ Rotation.from_euler("xyz", row[3:]).as_matrix() @ to_mm
        offset = centre - matrix @ centre + to_index @ row[:3]
        ndimage.affine_transform(_finite(data[..., k]), matrix, offset, order=3, mode="nearest", output=out[..., k])
    return out


def framewise_displacement(motion):
    """How far the head moved since the volume before, in mm.

    Parameters
    ----------
    motion : array of shape (n_volumes, 6)
        In mm and radians.

    Returns
    -------
    array of shape (n_volumes,)
        NaN for the first volume, and wherever one of the two has no estimate.

    Notes
    -----
    FD = |Δx| + |Δy| + |Δz| + 50 mm · (|Δα| + |Δβ| + |Δγ|): turns count as arcs on a sphere of
    50 mm [1]_. It is a difference between neighbouring volumes, so it shrinks with the repetition
    time; limits such as 0.5 mm were set for 2 to 3 s.

    References
    ----------
    .. [1] Power, Barnes, Snyder, Schlaggar & Petersen (2012). Spurious but systematic correlations
       in functional connectivity MRI networks arise from subject motion. NeuroImage 59(3),
       2142–2154, doi 10.1016/j.neuroimage.2011.10.018.

    Examples
    --------
    >>> framewise_displacement(np.array([[0, 0, 0, 0, 0, 0], [0.1, -0.2, 0, 0.01, 0, 0]]))
    array([nan, 0.8])
    """
    motion = np.asarray(motion, float)
    change = np.abs(np.diff(motion, axis=0))
    return np.append(np.nan, change[:, :3].sum(axis=1) + HEAD_RADIUS * change[:, 3:].sum(axis=1))


def can_align(grid):
    """Whether a grid is large enough for a head to be aligned in it, rather than a list of regions or a few slices."""
    return min(grid) >= FEWEST_SLICES


def cached_motion(files, cache_path, *, train):
    """Estimate the head motion of runs against one reference, once.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns
    cache_path : Path
    train : array of int
        The reference is the mean of these volumes; of several runs, of the first that has any.

    Returns
    -------
    array of shape (n_volumes, 6)
        See `estimate_motion`.
    """
    import bold_audio.motion as this

    scans = [file_md5(part.bold) for part in files.parts]
    key = f"motion-{fingerprint(scans, list(map(int, train)), code_fingerprint(images, this))}"
    folder = cached_folder(cache_path, key, lambda part: _write_motion(part, files, train))
    return np.load(folder / "motion.npy")


def _write_motion(folder, files, train):
    runs = list(zip(files.parts, files.starts, strict=True))
    first, start = next(
        (part, start) for part, start in runs if np.any((train >= start) & (train < start + part.n_volumes))
    )
    mine = train[(train >= start) & (train < start + first.n_volumes)] - start
    reference = np.zeros(first.grid)
    with np.errstate(invalid="ignore"):  # what is not a number is 0 for the alignment
        for volume in itertools.islice(_volumes(first), int(mine[0]), int(mine[-1]) + 1):
            reference += volume
    reference /= mine[-1] + 1 - mine[0]
    found = [estimate_motion(_volumes(part), first.affine, reference=reference) for part, _ in runs]
    np.save(folder / "motion.npy", np.concatenate(found))


def _volumes(part):
    """Volumes of a run, (i, j, k) each, one after the other: the scan is never held whole."""
    return (volume for slab in images.read_slabs(part.bold) for volume in np.moveaxis(slab, 3, 0))
