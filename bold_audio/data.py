"""BIDS run ↔ masked volumes: paths, repetition time, onset, mask, and every check on a bad scan."""

import gzip
import json
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from bold_audio.features import BLOCK_TYPES, SPEECH_TYPES, read_table, read_times
from bold_audio.fetch import check_fmri_subject
from bold_audio.files import (
    DataError,
    ParameterError,
    cached_folder,
    code_fingerprint,
    file_md5,
    fingerprint,
    read_json,
    write_json,
)
from bold_audio.params import DEFAULT_DATASET, SIMULATED

T_R_TOLERANCE = 0.01  # relative; PAR/REC and DICOM headers round to this
MAX_BAD_VOXELS = 0.01  # share of the grid that may be NaN or infinite
SECONDS_OF_CODE = {8: 1.0, 16: 1e-3, 24: 1e-6}  # of xyzt_units; headers with no known unit mean seconds


@dataclass(frozen=True)
class RunFiles:
    """Where a BIDS run lies and what its header, sidecar and events say.

    ``onset`` is the onset of the sound on the clock of the run, in seconds; ``events`` is
    None where there is no events file.
    """

    bold: Path
    n_volumes: int
    grid: tuple
    affine: np.ndarray
    t_r: float
    onset: float
    events: object
    sidecar: dict
    form_codes: tuple = (1, 1)
    warnings: tuple = ()

    @property
    def entities(self):
        """File name without ``_bold.nii.gz``: the prefix of everything made from this run."""
        return self.bold.name.split("_bold.nii")[0]

    @property
    def volume_times(self):
        """Start of each volume on the clock of the run, in seconds."""
        return np.arange(self.n_volumes) * self.t_r


@dataclass(frozen=True)
class BoldRun:
    """A masked run.

    Parameters
    ----------
    files : RunFiles
        Where it came from.
    volumes : array of shape (n_volumes, n_voxels)
        Raw intensities, float32, memory-mapped from the cache.
    mask : array of bool
        The voxels kept, on the grid of the run (after ``downsample``).
    affine : array of shape (4, 4)
        Grid index → mm, for that grid.
    value_range : (float, float)
        Smallest and largest value over all voxels of the whole grid in the train volumes.
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

    def to_grid(self, values):
        """Put one value per voxel back on the grid, NaN outside the mask."""
        grid = np.full(self.mask.shape, np.nan, dtype=np.float32)
        grid[self.mask] = values
        return grid


def run_name(params):
    """File name of the run without extension, from its BIDS entities."""
    parts = [("sub", params.subject), ("ses", params.session), ("task", params.task)]
    parts += [("run", params.run), ("space", params.space)]
    return "_".join(f"{key}-{value}" for key, value in parts if value is not None) + "_bold"


def known_subjects(params):
    """Labels of the subjects in the dataset's tree."""
    return sorted(p.name[4:] for p in params.data_path.glob("sub-*") if p.is_dir())


def locate_run(params):
    """Find a subject's run and read what its header, sidecar and events say.

    Raises
    ------
    DataError
        If the run is missing or contradicts itself: repetition time, shape, onset.
    """
    folder = params.data_path / f"sub-{params.subject}"
    folder = (folder / f"ses-{params.session}" if params.session else folder) / "func"
    found = [p for p in (folder / f"{run_name(params)}.nii.gz", folder / f"{run_name(params)}.nii") if p.is_file()]
    if not found:
        raise _missing_run(params, folder / f"{run_name(params)}.nii.gz")
    image = _open_image(found[0])
    if len(image.shape) != 4 or image.shape[3] < 2:
        raise DataError(f"{found[0].name} holds one volume of shape {image.shape} - a film run needs a 4-D image")
    sidecar = _read_sidecar(params, folder)
    events_path = folder / f"{run_name(params).removesuffix('_bold')}_events.tsv"
    events = _read_events(events_path, needed=params.audio_onset is None)
    return RunFiles(
        bold=found[0],
        n_volumes=image.shape[3],
        grid=image.shape[:3],
        affine=image.affine,
        t_r=_repetition_time(image.header, sidecar, params.t_r_source, found[0].name),
        onset=_sound_onset(params.audio_onset, events, events_path),
        events=events,
        sidecar=sidecar,
        form_codes=(int(image.header["sform_code"]), int(image.header["qform_code"])),
        warnings=_orientation_warnings(image.header),
    )


def _missing_run(params, wanted):
    there = known_subjects(params)
    if params.dataset == DEFAULT_DATASET:
        check_fmri_subject(params.subject)
    ways = "check the spelling, session, task and run, or set data_dir"
    if params.dataset == DEFAULT_DATASET:
        ways = (
            f"get it with 'bold-audio fetch --subject {params.subject}'; for the sound, set audio_path to your copy of "
            "the film's sound file, or feature_source annotations"
        )
    elif params.dataset == SIMULATED:
        ways = "make it with 'bold-audio simulate'"
    listed = ", ".join(there[:12]) + (", …" if len(there) > 12 else "") if there else "none"
    return DataError(f"sub-{params.subject} is not there: {wanted} is missing (subjects there: {listed}) - {ways}")


def _open_image(path):
    start = path.open("rb").read(64)
    if not start:
        raise DataError(f"scan is empty: {path} - fetch it again")
    if path.suffix == ".gz" and start[:2] != b"\x1f\x8b":
        raise DataError(
            f"scan is not compressed or a placeholder (first bytes {start[:24]!r}): {path} - fetch it again"
        )
    try:
        return nib.load(path)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise DataError(f"scan cannot be read: {path} ({' '.join(str(error).split())}) - fetch it again") from error


def _read_sidecar(params, folder):
    """The run's sidecar on top of what it inherits from the top of the dataset, key by key."""
    merged = {}
    for path in (params.data_path / f"task-{params.task}_bold.json", folder / f"{run_name(params)}.json"):
        content = read_json(path, default={}, mend="fetch it again")
        if not isinstance(content, dict):
            raise DataError(f"{path} must hold names and values - fetch it again")
        merged |= content
    return merged


def _read_events(path, *, needed):
    """Events of the run; None where there are none, or where they are of no use and not needed."""
    if not path.is_file():
        return None
    try:
        events = read_table(path, columns=("onset", "duration", "trial_type"))
        read_times(events, "onset", path.name)
    except DataError:
        if needed:
            raise
        return None
    return events


def _repetition_time(header, sidecar, source, name):
    in_header = float(header.get_zooms()[3]) * SECONDS_OF_CODE.get(int(header["xyzt_units"]) & 0x38, 1.0)
    in_sidecar = sidecar.get("RepetitionTime")
    if in_sidecar is not None and (isinstance(in_sidecar, bool) or not isinstance(in_sidecar, int | float)):
        raise DataError(
            f"{name}: RepetitionTime in the sidecar must be a number, got {in_sidecar!r} - mend the sidecar"
        )
    if source == "header" or (in_sidecar is None and source is None):
        chosen = in_header
    elif in_sidecar is None:
        raise DataError(f"{name}: t_r_source is sidecar, but there is no RepetitionTime - set t_r_source header")
    else:
        chosen = float(in_sidecar)
        if source is None and abs(in_header - chosen) > T_R_TOLERANCE * chosen:
            raise DataError(
                f"{name}: repetition time {in_header:g} s in the header, {chosen:g} s in the sidecar - set t_r_source"
            )
    if not 0.05 <= chosen <= 20:
        raise DataError(f"{name}: a repetition time of {chosen:g} s cannot be right - write it into the sidecar")
    return chosen


def _sound_onset(given, events, path):
    if given is not None:
        return float(given)
    kinds = () if events is None else events["trial_type"].astype(str)
    heard = [k for k, kind in enumerate(kinds) if kind in (*BLOCK_TYPES, *SPEECH_TYPES)]
    if not heard:
        raise DataError(
            f"no music, speech or story event in {path.name} - set audio_onset, the onset of the sound in s"
        )
    return float(read_times(events.iloc[heard], "onset", path.name).min())


def _orientation_warnings(header):
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return ("orientation unknown (sform and qform are 0): left and right are not labelled",)
    return ()


def load_run(files, params, *, train):
    """Read, mask and cache a run.

    Parameters
    ----------
    files : RunFiles
        From `locate_run`.
    params : Params
        ``mask``, ``downsample``, ``smoothing_fwhm``, ``detrend`` and ``cache_path`` count.
    train : array of int
        Indices of the train volumes. The mask, the value range and the straight line of
        ``detrend`` are made from these alone, so the test part changes none of them.

    Returns
    -------
    BoldRun

    Raises
    ------
    DataError
        If the scan is damaged or its mask is empty.

    Notes
    -----
    The cache entry is named after the content of the scan, the parameters above, the train
    volumes and the source of this module; a change in any of them makes a new entry.
    """
    import bold_audio.data as this

    settings = {name: getattr(params, name) for name in ("mask", "downsample", "smoothing_fwhm", "detrend")}
    mask_md5 = file_md5(_mask_file(params)) if params.mask not in ("brain", "none") else None
    key = "run-" + fingerprint(file_md5(files.bold), settings, mask_md5, list(map(int, train)), code_fingerprint(this))
    folder = cached_folder(params.cache_path, key, lambda part: _write_masked(part, files, params, train))
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
    """Average each row, array of shape (n, n_voxels) in the run's mask, with its neighbours: float32, into ``out``."""
    sigma = fwhm / np.sqrt(8 * np.log(2)) / np.linalg.norm(run.affine[:3, :3], axis=0)
    share = gaussian_filter(run.mask.astype(np.float32), sigma, mode="constant")[run.mask]
    grid = np.zeros(run.mask.shape, np.float32)
    out = np.empty(np.shape(rows), np.float32) if out is None else out
    for k, row in enumerate(rows):
        grid[run.mask] = row
        out[k] = gaussian_filter(grid, sigma, mode="constant")[run.mask] / share
    return out


def _mask_file(params):
    path = (params.data_path / params.mask).resolve()
    path = path if path.is_file() else params.resolve(params.mask)
    if not path.is_file():
        raise ParameterError(f"mask must be brain, none or a mask image, got {params.mask!r} - no such file")
    return path


def _write_masked(folder, files, params, train):
    """Decompress, mask and store a run as float32: the work that the cache saves."""
    data, affine = read_whole(files.bold)
    finite = np.isfinite(data).all(axis=3) if data.dtype.kind == "f" else np.ones(data.shape[:3], bool)
    if np.mean(~finite) > MAX_BAD_VOXELS:
        raise DataError(f"{np.mean(~finite):.0%} of the voxels of {files.bold.name} are not numbers - check the scan")
    if params.smoothing_fwhm > 0:
        data = _smooth(nib.Nifti1Image(data, affine), params.smoothing_fwhm)
    if params.downsample > 1:
        data, affine = downsample_grid(data, affine, params.downsample)
        finite = downsample_grid(finite, affine, params.downsample)[0] == 1
    train_data = data[..., train[0] : train[-1] + 1]
    mean_image = np.where(finite, train_data.mean(axis=3, dtype=np.float64), 0).astype(np.float32)
    mask = _make_mask(mean_image, affine, params, known_place=any(files.form_codes)) & finite
    varying = train_data.max(axis=3) > train_data.min(axis=3)
    counts = {"not finite": int(np.sum(~finite)), "constant in train": int(np.sum(mask & ~varying))}
    if params.mask != "none":
        mask &= varying
    if not mask.any():
        raise DataError(f"the {params.mask} mask of {files.bold.name} is empty - check the scan, or set mask")
    volumes = np.ascontiguousarray(data[mask].T, dtype=np.float32)
    in_range = train_data[finite]
    if params.detrend:
        volumes = _take_off_line(volumes, train)
    np.save(folder / "volumes.npy", volumes)
    np.savez(
        folder / "grid.npz",
        mask=mask,
        affine=affine,
        mean_image=mean_image,
        value_range=np.array([in_range.min(), in_range.max()], dtype=float),
    )
    write_json(folder / "counts.json", counts)


def read_whole(path):
    """Read an image to its last byte, so that a gzip checksum that does not fit is noticed.

    Returns
    -------
    data : array
        In the image's own type, usually int16, or float32 where its header scales the values:
        a float64 copy of a whole film run would be 840 MB.
    affine : array of shape (4, 4)

    Raises
    ------
    DataError
        If the file is damaged.
    """
    image = _open_image(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            image = type(image).from_bytes(handle.read())
        scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
        data = np.asanyarray(image.dataobj, dtype=np.float32 if scaled else None)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"scan damaged: {path} ({' '.join(str(error).split())}) - fetch it again") from error
    return data.astype(np.float32, copy=False) if data.dtype.kind == "f" else data, image.affine


def _smooth(image, fwhm):
    from nilearn.image import smooth_img

    return smooth_img(image, fwhm).get_fdata(dtype=np.float32)


def downsample_grid(data, affine, factor):
    """Average blocks of ``factor`` voxels along the three axes; what does not fill a block is cut.

    Returns
    -------
    data : array
        float32, on the coarser grid.
    affine : array of shape (4, 4)
        Its grid index → mm: a block's centre keeps its place in the head.
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


def _make_mask(mean_image, affine, params, *, known_place):
    if params.mask == "none":
        return np.ones(mean_image.shape, bool)
    if params.mask == "brain":
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
    values, place = read_whole(_mask_file(params))
    if values.size != mean_image.size or values.shape[:3] != mean_image.shape:
        raise DataError(
            f"mask {params.mask} has the grid {values.shape}, the scan {mean_image.shape} - resample the mask"
        )
    if known_place and not np.allclose(place, affine, atol=1e-2):
        raise DataError(f"mask {params.mask} lies elsewhere in the head than the scan - resample the mask")
    return values.reshape(mean_image.shape) > 0


def _take_off_line(volumes, train):
    """Take each voxel's straight line, fitted on ``train``, off the whole run; the mean stays."""
    time = np.arange(len(volumes), dtype=np.float32)
    time -= time[train].mean()
    slope = time[train] @ (volumes[train] - volumes[train].mean(axis=0)) / np.sum(time[train] ** 2)
    return volumes - time[:, None] * slope


def _regions(run, params):
    """The whole, then the sidecar's own regions, then (simulated data) the planted ones."""
    regions = {"volume" if params.mask == "none" else "brain": np.ones(run.n_voxels, bool)}
    names = run.files.sidecar.get("ROINames") or []
    if len(names) == run.n_voxels:
        regions |= {str(name): np.arange(run.n_voxels) == k for k, name in enumerate(names)}
    truth = read_truth(params)
    if truth and params.downsample == 1:
        label = np.asarray(nib.load(truth["region_map"]).dataobj)[run.mask]
        r2 = np.asarray(nib.load(truth["r2_map"]).dataobj)[run.mask]
        regions |= {
            f"planted_{name}": label == number for name, number in truth["labels"].items() if np.any(label == number)
        }
        if np.any(r2 >= 0.2):
            regions["planted_r2_over_0.2"] = r2 >= 0.2
        regions["silent"] = r2 == 0
    return regions


def read_truth(params):
    """What was planted in a simulated subject; None for data that were not simulated by us."""
    folder = params.data_path / "derivatives" / "truth" / f"sub-{params.subject}"
    return _simulated_truth(folder) if (folder / "truth.json").is_file() else None


def _simulated_truth(folder):
    truth = json.loads((folder / "truth.json").read_text())
    truth["labels"] = {region["name"]: region["label"] for region in truth["regions"]}
    truth["region_map"] = next(folder.glob("*_dseg.nii.gz"))
    truth["r2_map"] = next(folder.glob("*r2*.nii.gz"))
    return truth


def planted_delay(params):
    """The single Δt that fits a simulated subject's noiseless responses best, for features made as ``response`` says.

    None for real data, for a subject in whom nothing was planted, and for ``fir``, which has several windows.
    """
    truth = read_truth(params)
    best = truth and truth["pooled"]["best_single_delay"]
    return best.get(params.response) if best else None
