"""BIDS run → masked volumes: reading, mask, smoothing and their cache, and every check on a bad scan."""

import itertools
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from bold_audio import bids, confounds, images, motion, runs
from bold_audio.files import DataError, ParameterError, file_md5, fingerprint, read_json, write_json
from bold_audio.images import read_whole
from bold_audio.locking import cached_folder
from bold_audio.provenance import code_fingerprint
from bold_audio.runs import RunFiles
from bold_audio.truth import planted_regions, read_truth

MAX_BAD_VOXELS = 0.01  # share of the grid that may be NaN or infinite
READING = ("mask", "downsample", "smoothing_fwhm", "detrend", "realign", "confounds")  # parameters that count here
AS_MEASURED = {"detrend": False, "realign": False, "confounds": []}


@dataclass(frozen=True)
class BoldRun:
    """A masked run.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns
        Where it came from.
    volumes : array of shape (n_volumes, n_voxels)
        Intensities as measured, or realigned, smoothed, cleaned and brought to one level where that was asked for;
        float32, memory-mapped from the cache.
    mask : array of bool
        The voxels kept, on the grid of the run (after ``downsample``).
    affine : array of shape (4, 4)
        Grid index → mm, for that grid.
    value_range : (float, float)
        Smallest and largest value over all voxels of the whole grid in the train volumes.
    mean_image : array of shape (i, j, k)
        Mean of the train volumes on that grid.
    regions : dict of str to array of bool, shape (n_voxels,)
        Named regions; the first is the whole (``brain``, or ``volume`` without a mask).
    counts : dict
        How many voxels were left out, and why.
    """

    files: RunFiles
    volumes: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    value_range: tuple
    mean_image: np.ndarray
    regions: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)

    @property
    def n_voxels(self):
        """Number of voxels in the mask."""
        return self.volumes.shape[1]

    @property
    def whole(self):
        """Name of the region that holds every voxel."""
        return next(iter(self.regions))

    @property
    def shown_affine(self):
        """The affine for figures; None where the header says no orientation, and nibabel has made one up."""
        return self.affine if any(self.files.form_codes) else None

    def to_grid(self, values):
        """Put one value per voxel back on the grid, NaN outside the mask."""
        grid = np.full(self.mask.shape, np.nan, dtype=np.float32)
        grid[self.mask] = values
        return grid


def load_run(files, params, *, train, level_on=None):
    """Read, mask and cache a run, or several runs one after the other.

    Parameters
    ----------
    files : runs.RunFiles or runs.SeveralRuns
        From `runs.locate_runs`.
    params : Params
        ``mask``, ``downsample``, ``smoothing_fwhm``, ``detrend``, ``realign``, ``confounds`` and
        ``cache_path`` count.
    train : array of int
        Indices of the train volumes. The mask, the value range, the reference of ``realign`` and what
        ``detrend`` and ``confounds`` take off are made from these alone, so the test part changes none of them.
    level_on : list of arrays of int, optional
        For several runs: volumes of each whose mean is brought to the mean over ``train``, voxel by voxel, because a
        scanner's gain and the head's place differ from run to run. None of them is ever scored.

    Returns
    -------
    BoldRun

    Raises
    ------
    DataError
        If the scan is damaged, its mask is empty, or its events do not end where it does.
    ParameterError
        If ``confounds`` names what is neither a group nor a column, or too much for the train volumes.

    Notes
    -----
    The cache entry is named after the content of the scan, its repetition time, the parameters above, the train
    volumes and the source of the reading modules; a change in any of them makes a new entry.
    """
    import bold_audio.data as this

    settings = {name: getattr(params, name) for name in READING}
    chosen = mask_file(params)
    mask_md5 = None if chosen is None else file_md5(chosen)
    tables = [runs.read_confounds(part) for part in files.parts]
    from_tables = [confounds.used_of(one, params.confounds) for one in tables]
    scans = {path: file_md5(path) for part in files.parts for path in (part.bold, part.mask) if path is not None}
    for part in files.parts:
        bids.check_release_file(params, part.bold, md5=scans[part.bold])
    rows = [list(map(int, volumes)) for volumes in (train, *(level_on or ()))]
    code = code_fingerprint(bids, confounds, images, motion, runs, this)
    # The sidecar may give the repetition time, which the basis of drift is built from.
    key = "run-" + fingerprint(list(scans.values()), settings, mask_md5, from_tables, rows, files.t_r, code)
    made = {"train": train, "level_on": level_on, "tables": tables}
    folder = cached_folder(params.cache_path, key, lambda part: _write_masked(part, files, params, **made))
    if params.audio_onset is None:
        runs.check_events_end(files)  # a scan that is not whole has been noticed above
    with np.load(folder / "grid.npz") as grid:
        mask, affine, mean_image, value_range = (grid[k] for k in ("mask", "affine", "mean_image", "value_range"))
    volumes = np.load(folder / "volumes.npy", mmap_mode="r")
    run = BoldRun(
        files,
        volumes,
        mask,
        affine,
        tuple(map(float, value_range)),
        mean_image,
        counts=read_json(folder / "counts.json"),
    )
    run.regions.update(_regions(run, params))
    return run


def smooth_volumes(run, fwhm, *, until, cache_path):
    """Average each volume with its neighbours inside the mask, by a Gaussian of ``fwhm`` mm.

    Parameters
    ----------
    run : BoldRun
    fwhm : float
        Full width at half maximum, in mm; 0 returns the volumes as they are.
    until : int
        Volumes from here on are left out: nobody needs them smoothed.
    cache_path : Path
        Folder of the cache, which the volumes are written to one by one.

    Returns
    -------
    array of shape (until, n_voxels), float32
        Memory-mapped.
    """
    if fwhm == 0:
        return run.volumes[:until]
    import bold_audio.data as this

    made_of = Path(run.volumes.filename).parent.name  # names the scan, the mask and what was done to it
    key = f"smooth-{fingerprint(made_of, fwhm, until, code_fingerprint(this))}"
    folder = cached_folder(cache_path, key, lambda part: _write_smooth(part, run, fwhm, until))
    return np.load(folder / "volumes.npy", mmap_mode="r")


def _write_smooth(folder, run, fwhm, until):
    shape = (int(until), run.n_voxels)
    smooth = np.lib.format.open_memmap(folder / "volumes.npy", mode="w+", dtype=np.float32, shape=shape)
    smooth_rows(run, run.volumes[:until], fwhm=fwhm, out=smooth).flush()


def smooth_rows(run, rows, *, fwhm, out=None):
    """Average each row with its neighbours in the mask: a Gaussian, divided by the share of it that lies in the mask.

    Parameters
    ----------
    run : BoldRun
        Its ``mask`` and ``affine`` count.
    rows : array of shape (n, n_voxels)
        Such as volumes.
    fwhm : float
        Full width at half maximum, in mm.
    out : array of shape (n, n_voxels), float32, optional
        Where to write; may be memory-mapped.

    Returns
    -------
    array of shape (n, n_voxels), float32
    """
    sigma = fwhm / np.sqrt(8 * np.log(2)) / np.linalg.norm(run.affine[:3, :3], axis=0)
    share = gaussian_filter(run.mask.astype(np.float32), sigma, mode="constant")[run.mask]
    grid = np.zeros(run.mask.shape, np.float32)
    out = np.empty(np.shape(rows), np.float32) if out is None else out
    for k, row in enumerate(rows):
        grid[run.mask] = row
        out[k] = gaussian_filter(grid, sigma, mode="constant")[run.mask] / share
    return out


def mask_file(params):
    """Path of the image that the parameter ``mask`` names, below ``data_dir``, else below the project; None without.

    Raises
    ------
    ParameterError
        If it is not there.
    """
    if params.mask in ("brain", "none"):
        return None
    path = (params.data_path / params.mask).resolve()
    path = path if path.is_file() else params.resolve(params.mask)
    if not path.is_file():
        raise ParameterError(f"mask must be brain, none or a mask image, got {params.mask!r} - no such file")
    return path


def _write_masked(folder, files, params, *, train, level_on, tables):
    """Decompress, mask and store runs as float32: the work that the cache saves."""
    moved = motion.cached_motion(files, params.cache_path, train=train) if params.realign else np.empty((0, 6))
    given = _given_masks(files, params)
    seen = []
    for part, start, inside in zip(files.parts, files.starts, given or [None] * len(files.parts), strict=True):
        how = {"inside": inside, "scratch": folder / f"prepared-{start}"}  # the scan may be larger than memory
        seen.append(_prepare(part, params, moved[start : start + part.n_volumes], train - start, **how))
    n_train = np.array([one.n_train for one in seen])
    mean_image = np.average([one.mean for one in seen if one.n_train], axis=0, weights=n_train[n_train > 0])
    mean_image = mean_image.astype(np.float32)
    finite = np.logical_and.reduce([one.finite for one in seen])
    varying = np.logical_or.reduce([one.highest > one.lowest for one in seen if one.n_train])
    mask = _make_mask(mean_image, seen[0].affine, given, params)
    looked_at = mask if given else np.ones_like(mask)
    counts = {"not finite": int(np.sum(looked_at & ~finite))}
    mask &= finite
    counts["constant in train"] = int(np.sum(mask & ~varying))
    if params.mask != "none":
        mask &= varying
    if not mask.any():
        raise DataError(f"the {params.mask} mask of {files.bold.name} is empty - check the scan, or set mask")
    shape = (files.n_volumes, int(mask.sum()))
    volumes = np.lib.format.open_memmap(folder / "volumes.npy", mode="w+", dtype=np.float32, shape=shape)
    for k, volume in enumerate(itertools.chain.from_iterable(one.volumes() for one in seen)):
        volumes[k] = volume[mask]
    for one in seen:
        one.scratch.unlink()
    confounds.clean(volumes, files, params, train=train, tables=tables)
    if level_on is not None:
        _level(volumes, files, train, level_on)
    volumes.flush()
    with_train = [one for one in seen if one.n_train]
    low = min(one.lowest[one.finite].min() for one in with_train)
    high = max(one.highest[one.finite].max() for one in with_train)
    np.savez(
        folder / "grid.npz",
        mask=mask,
        affine=seen[0].affine,
        mean_image=mean_image,
        value_range=np.array([low, high], dtype=float),
    )
    write_json(folder / "counts.json", counts)


@dataclass(frozen=True)
class _Prepared:
    """One run, its volumes in the file ``scratch``, and what its train volumes say, voxel by voxel of the grid."""

    scratch: Path
    dtype: np.dtype
    affine: np.ndarray
    finite: np.ndarray
    n_train: int
    mean: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    def volumes(self):
        """Volumes, (i, j, k) each, one after the other."""
        with self.scratch.open("rb") as handle:
            while content := handle.read(self.mean.size * self.dtype.itemsize):
                yield np.frombuffer(content, self.dtype).reshape(self.mean.shape, order="F")


def _prepare(part, params, moved, train, *, inside, scratch):
    """Put one run in place, smooth it and make it coarser as the parameters say, slab by slab, into a scratch file.

    ``inside`` is the mask that is given for it, of which alone it is asked whether its voxels are numbers: SPM, for
    one, writes NaN around the head.
    """
    train = train[(train >= 0) & (train < part.n_volumes)]
    first, last = (train[0], train[-1]) if len(train) else (0, -1)
    finite, total, lowest, highest, k = np.ones(part.grid, bool), 0.0, np.inf, -np.inf, 0
    with scratch.open("wb") as handle:
        for data in images.read_slabs(part.bold):
            if data.dtype.kind == "f":
                finite &= np.isfinite(data).all(axis=3)
            data = _in_place(data, part.affine, params, moved[k : k + data.shape[3]])
            for volume in np.moveaxis(data, 3, 0):
                handle.write(volume.tobytes(order="F"))
                if first <= k <= last:
                    total = total + volume.astype(np.float64)
                    lowest, highest = np.minimum(lowest, volume), np.maximum(highest, volume)
                k += 1
    bad = ~finite[... if inside is None or inside.shape != part.grid else inside]
    if bad.size and np.mean(bad) > MAX_BAD_VOXELS:
        where = "of the voxels" if bad.size == finite.size else "of the mask's voxels"
        mend = "check the scan" + ("" if inside is not None else ", or name a mask without them")
        raise DataError(f"{np.mean(bad):.0%} {where} of {part.bold.name} are not numbers - {mend}")
    affine = part.affine
    if params.downsample > 1:
        finite, affine = downsample_grid(finite, affine, params.downsample)
        finite = finite == 1
    mean = np.where(finite, total / max(1, last + 1 - first), 0)
    return _Prepared(scratch, data.dtype, affine, finite, len(train), mean, lowest, highest)


def _in_place(data, affine, params, moved):
    if params.realign:
        data = motion.realign(data, affine, moved)
    if params.smoothing_fwhm > 0:
        data = _smooth(nib.Nifti1Image(data, affine, dtype=data.dtype), params.smoothing_fwhm)  # int64 must be named
    if params.downsample > 1:
        data, _ = downsample_grid(data, affine, params.downsample)
    return data


def _level(volumes, files, train, level_on):
    """Bring each run's mean over its ``level_on`` to the mean over ``train``, in place."""
    for voxels in confounds.chunks(volumes):
        level = volumes[train, voxels].mean(axis=0, dtype=np.float64)
        for start, part, rows in zip(files.starts, files.parts, level_on, strict=True):
            own = volumes[rows, voxels].mean(axis=0, dtype=np.float64)
            volumes[start : start + part.n_volumes, voxels] += (level - own).astype(np.float32)


def _smooth(image, fwhm):
    from nilearn.image import smooth_img

    return smooth_img(image, fwhm).get_fdata(dtype=np.float32)


def downsample_grid(data, affine, factor):
    """Average blocks of ``factor`` voxels along the three axes; what does not fill a block is cut.

    Parameters
    ----------
    data : array of shape (i, j, k) or (i, j, k, n_volumes)
    affine : array of shape (4, 4)
        Grid index → mm.
    factor : int

    Returns
    -------
    data : array of shape (i // factor, j // factor, k // factor), or with n_volumes
        float32, on the coarser grid.
    affine : array of shape (4, 4)
        Its grid index → mm: a block's centre keeps its place in the head.

    Raises
    ------
    ParameterError
        If ``factor`` is larger than the grid.
    """
    kept = [n - n % factor for n in data.shape[:3]]
    if min(kept) == 0:
        raise ParameterError(f"downsample {factor} is larger than the grid {data.shape[:3]} - use a smaller factor")
    data = data[: kept[0], : kept[1], : kept[2]]
    shape = [part for n in kept for part in (n // factor, factor)]
    coarse = data.reshape(*shape, *data.shape[3:]).mean(axis=(1, 3, 5), dtype=np.float32)
    scale = np.diag([factor, factor, factor, 1.0])
    scale[:3, 3] = (factor - 1) / 2
    return coarse, affine @ scale


def _given_masks(files, params):
    """The mask of each run, where all runs come with one or ``mask`` names one: a list of array of bool; else None.

    On the scan's grid, or on that which ``downsample`` makes of it.
    """
    if params.mask == "none" or (params.mask == "brain" and not all(part.mask for part in files.parts)):
        return None
    return [
        _read_mask(part.mask if params.mask == "brain" else mask_file(params), files, params) for part in files.parts
    ]


def _make_mask(mean_image, affine, given, params):
    if params.mask == "none":
        return np.ones(mean_image.shape, bool)
    if given:
        coarse = [
            one if one.shape == mean_image.shape else downsample_grid(one, affine, params.downsample)[0] == 1
            for one in given
        ]
        return np.logical_and.reduce(coarse)
    from nilearn.masking import compute_epi_mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask gets our own message
        try:
            # A head fills little of a film scan's grid: the gap between air and brain lies above nilearn's
            # default upper cut-off of 0.85.
            image = compute_epi_mask(nib.Nifti1Image(mean_image, affine), upper_cutoff=0.95, opening=2)
        except (ValueError, IndexError):
            return np.zeros(mean_image.shape, bool)
    return np.asarray(image.dataobj) > 0


def _read_mask(path, files, params):
    """A mask image in the scan's grid, or in the coarser one: array of bool."""
    values, place = read_whole(path)
    grid, affine = values.shape[:3], files.affine
    fits = grid == files.grid
    if not fits and params.downsample > 1:
        coarse, affine = downsample_grid(np.zeros(files.grid, bool), affine, params.downsample)
        fits = grid == coarse.shape
    if not fits or values.size != np.prod(grid):
        raise DataError(f"mask {path.name} has the grid {values.shape}, the scan {files.grid} - resample the mask")
    if any(files.form_codes) and not np.allclose(place, affine, atol=1e-2):
        raise DataError(f"mask {path.name} lies elsewhere in the head than the scan - resample the mask")
    return values.reshape(grid) > 0


def _regions(run, params):
    """The whole, then the sidecar's own regions, then (simulated data) the planted ones."""
    regions = {"volume" if params.mask == "none" else "brain": np.ones(run.n_voxels, bool)}
    names = run.files.sidecar.get("ROINames")
    if isinstance(names, list) and len(names) == run.n_voxels:
        regions |= {str(name): np.arange(run.n_voxels) == k for k, name in enumerate(names)}
    truth = read_truth(params)
    if truth and params.downsample == 1:
        regions |= planted_regions(truth, run.mask)
    return regions
