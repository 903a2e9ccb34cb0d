"""Where each voxel of a scan lies in template (MNI) space: rigid, affine and nonlinear registration with dipy."""

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

TEMPLATE = "MNI152NLin2009aSym"  # the one that nilearn ships
FEWEST_SLICES = 6  # along each axis of a scan that can be placed; `motion` leaves out two on both sides
SMALLEST_BRAIN = 300.0  # ml; less is a phantom, a thin slab, or a mask of something else
FEWEST_VOXELS = 500
COARSE = 4.0  # mm of the voxels that are compared
MARGIN = 8.0  # mm round the brain that are compared as well: its edge says the most
SIZES = (0.7, 1.5)  # of the template against a head, along any direction, that can be right
LEAST_OVERLAP = 0.7  # Dice of the scan's brain and the template's below which nothing is believed


@dataclass(frozen=True)
class Registration:
    """A scan's place in the template.

    Parameters
    ----------
    steps : dict of str to array of shape (4, 4)
        Affine matrices by name, such as ``boldref_to_T1w``: mm → mm, in the order of their use.
    template_mm : array of shape (i, j, k, 3), float32
        Template mm of each voxel's centre.
    overlap : float
        Dice of the scan's brain and the template's, inside the picture.
    """

    steps: dict
    template_mm: np.ndarray
    overlap: float

    @property
    def failure(self):
        """Why this cannot be right, as a sentence; None where it can be."""
        matrix = np.eye(3)
        for step in self.steps.values():
            matrix = step[:3, :3] @ matrix
        sizes = np.linalg.svd(matrix)[1]
        if not (SIZES[0] <= sizes.min() and sizes.max() <= SIZES[1]):
            return f"registration failed: it would stretch the head by {sizes.min():.2f} to {sizes.max():.2f}"
        if not self.overlap >= LEAST_OVERLAP:
            return f"registration failed: the scan's brain and the template's overlap with a Dice of {self.overlap:.2f}"
        return None


def unfit(image, affine, brain):
    """Why a volume cannot be registered, as a sentence; None where it can be.

    Parameters
    ----------
    image : array of shape (i, j, k)
    affine : array of shape (4, 4)
        Grid index → mm.
    brain : bool array of shape (i, j, k)
    """
    if min(image.shape) < FEWEST_SLICES:
        return f"a grid of {' × '.join(map(str, image.shape))} voxels shows no head"
    ml = float(brain.sum() * abs(np.linalg.det(np.asarray(affine)[:3, :3])) / 1000)
    if ml < SMALLEST_BRAIN or brain.sum() < FEWEST_VOXELS:
        return f"the brain mask holds {ml:.0f} ml in {brain.sum()} voxels, too little to find a place in the template"
    if not np.ptp(image[brain]) > 0:
        return "the mean volume is flat inside the brain mask"
    return None


def template_points(points, affine):
    """``affine`` of points: arrays of shape (3, n)."""
    return affine[:3, :3] @ points + affine[:3, 3:]


def grid_points(shape, affine):
    """Mm of all voxels' centres, in C order: array of shape (3, n_voxels)."""
    return template_points(np.indices(shape).reshape(3, -1), np.asarray(affine, float))


def register(image, affine, brain, *, t1w=None):
    """Find where each voxel of a scan lies in template space.

    Parameters
    ----------
    image : array of shape (i, j, k)
        Mean volume.
    affine : array of shape (4, 4)
        Grid index → mm, with the orientation known.
    brain : bool array of shape (i, j, k)
    t1w : (array of shape (l, m, n), array of shape (4, 4)), optional
        A T1w image of the same head and its affine; any orientation, neck and all.

    Returns
    -------
    Registration
        With ``t1w``: rigid to it, affine from there to the template, then a symmetric diffeomorphic warp. Without it:
        affine to the template. Whether it can be right says its ``failure``.

    Notes
    -----
    Affine steps maximise mutual information [1]_ from coarse to fine, inside the brain and 8 mm round it, where
    the first guess brings centre and extent of the two brains together. The warp maximises local correlation [2]_
    between the T1w's brain and the template. Axes are sorted first, so that the order in which a scan is stored changes
    nothing; no step draws random numbers, and one thread is used.

    References
    ----------
    .. [1] Mattes, Haynor, Vesselle, Lewellen & Eubank (2003). PET-CT image registration in the chest using free-form
       deformations. IEEE Transactions on Medical Imaging 22(1), 120–128.
    .. [2] Avants, Epstein, Grossman & Gee (2008). Symmetric diffeomorphic image registration with cross-correlation.
       Medical Image Analysis 12(1), 26–41.
    """
    points = grid_points(image.shape, affine)
    with threadpool_limits(1):
        scan, place = _coarser(*_sorted(image, affine), COARSE)
        inside, _ = _coarser(*_sorted(brain, affine), COARSE)
        inside = inside > 0.5
        near = _grown(inside, place)
        guess = _first_guess(inside, place)
        reference, reference_place, _ = _template(2)
        direct = _affine(scan, place, reference, reference_place, kind="affine", starts=[guess], mask=near)
        if t1w is None:
            steps = {f"boldref_to_{TEMPLATE}": direct}
            found = template_points(points, direct)
        else:
            rigid, onward, found = _through_t1w(scan, place, near, [direct, guess], t1w, points)
            steps = {"boldref_to_T1w": rigid, f"T1w_to_{TEMPLATE}": onward}
    template_mm = found.T.reshape(*image.shape, 3).astype(np.float32)
    return Registration(steps, template_mm, _overlap(template_mm, brain))


def _through_t1w(scan, place, near, starts, t1w, points):
    """Rigid scan → T1w, affine T1w → template, and template mm of ``points`` after the warp."""
    head, head_place = _coarser(*_sorted(*t1w), COARSE)
    reference, reference_place, reference_brain = _template(2)
    places = [np.eye(4), _same_middle(near, place, head, head_place)]
    rigid = _affine(scan, place, head, head_place, kind="rigid", starts=places, mask=near)
    back = np.linalg.inv(rigid)
    compared = _carried(near, place, head.shape, back @ head_place)
    around = _grown(reference_brain, reference_place)
    compared |= _carried(around, reference_place, head.shape, starts[0] @ back @ head_place)
    onward = _affine(
        head,
        head_place,
        reference,
        reference_place,
        kind="affine",
        starts=[start @ back for start in starts],
        mask=compared,
    )
    bare = np.where(_carried(around, reference_place, head.shape, onward @ head_place), head, 0)
    return rigid, onward, _warped(bare, head_place, onward, template_points(points, rigid))


def _warped(head, place, onward, points):
    """Template mm of points in T1w mm, after a diffeomorphic warp of the T1w's brain to the template's."""
    from dipy.align import VerbosityLevels
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric

    reference, reference_place, _ = _template(3)
    # A large T1w is cut to the brain: the rest is empty and costs time.
    box = tuple(slice(max(at.min() - 3, 0), at.max() + 4) for at in np.nonzero(head))
    moved = place.copy()
    moved[:3, 3] += place[:3, :3] @ [part.start for part in box]
    search = SymmetricDiffeomorphicRegistration(metric=CCMetric(3, sigma_diff=4.0, radius=3), level_iters=[10, 10, 5])
    search.verbosity = VerbosityLevels.NONE
    warp = search.optimize(
        reference.astype(np.float32),
        np.ascontiguousarray(head[box], np.float32),
        static_grid2world=reference_place,
        moving_grid2world=moved,
        prealign=np.linalg.inv(onward),
    )
    return np.asarray(warp.transform_points_inverse(points.T)).T


@cache
def _template(resolution):
    """The template's brain, the rest 0; its affine; where its brain is."""
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=resolution)
    brain = datasets.load_mni152_brain_mask(resolution=resolution).get_fdata() > 0.5
    return np.where(brain, image.get_fdata(), 0), image.affine, brain


def _sorted(data, affine):
    """Axes from left to right, back to front and bottom to top, as nearly as the grid allows."""
    turns = nib.io_orientation(affine)
    return nib.apply_orientation(data, turns), affine @ nib.orientations.inv_ornt_aff(turns, data.shape)


def _coarser(data, affine, size):
    """Average blocks of voxels that together are not larger than ``size`` mm; what fills no block is cut."""
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    blocks = np.maximum(1, np.floor(size / mm + 0.01)).astype(int)
    kept = data.shape - np.array(data.shape) % blocks
    data = np.nan_to_num(data[tuple(map(slice, kept))].astype(np.float64), posinf=0, neginf=0)
    data = data.reshape([part for n, block in zip(kept, blocks, strict=True) for part in (n // block, block)])
    scale = np.diag([*blocks, 1.0])
    scale[:3, 3] = (blocks - 1) / 2
    return data.mean(axis=(1, 3, 5)), affine @ scale


def _grown(mask, affine):
    """The mask and what is within the margin of it."""
    away = ndimage.distance_transform_edt(~mask, sampling=np.linalg.norm(affine[:3, :3], axis=0))
    return away <= MARGIN


def _carried(mask, place, shape, to_place):
    """A mask with the affine ``place`` seen on another grid; ``to_place``: that grid's index → mm of the mask."""
    at = np.linalg.inv(place) @ to_place
    return ndimage.affine_transform(mask.astype(np.float32), at[:3, :3], at[:3, 3], shape, order=1) > 0.5


def _first_guess(brain, place):
    """Bring centre and extent of the brain to the template's, along each axis."""
    _, reference_place, reference_brain = _template(2)
    here = template_points(np.argwhere(brain).T, place)
    there = template_points(np.argwhere(reference_brain).T, reference_place)
    scale = there.std(axis=1) / here.std(axis=1)
    guess = np.diag([*scale, 1.0])
    guess[:3, 3] = there.mean(axis=1) - scale * here.mean(axis=1)
    return guess


def _same_middle(brain, place, head, head_place):
    """Shift the middle of the scan's brain to that of a T1w's head without its neck: for other scanner coordinates."""
    seen = template_points(np.argwhere(head > head.mean()).T, head_place)
    upper = seen[:, seen[2] > seen[2].max() - 150]  # mm from the top of the head down to the chin
    shift = np.eye(4)
    shift[:3, 3] = upper.mean(axis=1) - template_points(np.argwhere(brain).T, place).mean(axis=1)
    return shift


def _affine(static, static_place, moving, moving_place, *, kind, starts, mask):
    """Static mm → moving mm of the greatest mutual information, from the best of several starts."""
    from dipy.align.imaffine import AffineRegistration, MutualInformationMetric
    from dipy.align.transforms import AffineTransform3D, RigidTransform3D

    transform = {"rigid": RigidTransform3D, "affine": AffineTransform3D}[kind]()
    levels = [(4, 3.0, 100), (2, 1.0, 50), (1, 0.0, 20)]  # every so many voxels, smoothed by so many, steps
    levels = levels[1:] if np.linalg.norm(static_place[:3, :3], axis=0).max() > 1.5 * COARSE else levels

    def search(some, start):
        factors, sigmas, steps = (list(part) for part in zip(*some, strict=True))
        asked = {"factors": factors, "sigmas": sigmas, "level_iters": steps, "verbosity": 0}
        engine = AffineRegistration(metric=MutualInformationMetric(nbins=32, sampling_proportion=None), **asked)
        found, _, cost = engine.optimize(
            static,
            moving,
            transform,
            None,
            static_grid2world=static_place,
            moving_grid2world=moving_place,
            starting_affine=start,
            static_mask=mask.astype(np.int32),
            ret_metric=True,
        )
        return cost, found.affine

    if len(starts) > 1:
        starts = [min((search([(*levels[0][:2], 10)], start) for start in starts), key=lambda pair: pair[0])[1]]
    return search(levels, starts[0])[1]


def _overlap(template_mm, brain):
    """Dice of the scan's brain and the template's, inside the picture."""
    _, place, reference_brain = _template(2)
    at = template_points(template_mm.reshape(-1, 3).T.astype(float), np.linalg.inv(place))
    there = ndimage.map_coordinates(reference_brain.astype(np.float32), at, order=1).reshape(brain.shape) > 0.5
    return float(2 * np.sum(there & brain) / (there.sum() + brain.sum()))
