"""Maps of the people of a dataset, brought into the template's space, and what holds over people voxel by voxel."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from scipy import ndimage
from scipy.spatial import KDTree

from bold_audio import brain, group_stats, images, register
from bold_audio.files import BoldAudioError, DataError, file_md5, fingerprint, read_json
from bold_audio.provenance import code_fingerprint

RESOLUTION = 4  # mm of the template's grid
FWHM = 8.0  # mm: heads that a registration brings together still lie some millimetres apart
COVERED = 0.8  # of the voxels of the person in the middle that a person must have
SHARED = 0.95  # of the people must have a voxel, or it is not tested: all of 19; of 1,000, fifty may lack it
FOLDER = "group"  # in a dataset's outputs
MADE_FROM = {"evidence": "p"}  # maps that are made from another of the person's: normal scores of p
TEMPLATE_CODE = 4  # NIfTI's for MNI space


@dataclass(frozen=True)
class GroupMap:
    """One quantity over people, voxel by voxel.

    Parameters
    ----------
    table : DataFrame
        From `group_stats.flip_test`: one row per voxel of ``tested``.
    tested : bool array of shape (i, j, k)
        Voxels that at least `SHARED` of the people have.
    affine : array of shape (4, 4)
    labels : tuple of str
        Whose maps these are.
    left_out : dict of str to str
        Who is not among them, and why.
    """

    table: pd.DataFrame
    tested: np.ndarray
    affine: np.ndarray
    labels: tuple
    left_out: dict

    def to_grid(self, column):
        """A column of the table as an array of shape (i, j, k); NaN outside ``tested``."""
        grid = np.full(self.tested.shape, np.nan, np.float32)
        grid[self.tested] = self.table[column]
        return grid


def template_grid():
    """The template's brain on a coarse grid: bool array of shape (i, j, k), and its affine."""
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=RESOLUTION)
    return image.get_fdata() > 0.5, image.affine


def to_template(values, template_mm, mask, affine, *, reach):
    """Bring a map to the template's grid: each voxel there gets the value of the nearest voxel of the scan.

    Parameters
    ----------
    values : array of shape (i, j, k)
        NaN outside the scan's brain.
    template_mm : array of shape (i, j, k, 3)
        Where each voxel of the scan lies in the template, mm.
    mask : bool array of shape (l, m, n)
        Voxels of the template.
    affine : array of shape (4, 4)
        Of ``mask``.
    reach : float
        mm within which a voxel of the scan must lie; NaN where none does.

    Returns
    -------
    array of shape (l, m, n), float32
    """
    known = np.isfinite(values) & np.isfinite(template_mm).all(axis=-1)
    made = np.full(mask.shape, np.nan, np.float32)
    if known.any():
        away, nearest = KDTree(template_mm[known]).query(
            register.template_points(np.argwhere(mask).T, affine).T, distance_upper_bound=reach
        )
        made[mask] = np.where(np.isfinite(away), np.append(values[known], np.nan)[nearest], np.nan)
    return made


def smoothed(values, affine, fwhm):
    """Gaussian average over the known voxels of a grid; what is NaN stays NaN and counts for nothing.

    The Gaussian ends ``fwhm`` mm from its middle. Where the sound adds nothing a gain is exactly 0, and t has no scale:
    among zeros the faintest tail of a Gaussian would be as sure as its middle.
    """
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    reach = np.floor(fwhm / mm).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) * d for n, d in zip(reach, mm, strict=True)), indexing="ij"))
    squares = (steps**2).sum(axis=0)
    kernel = np.where(squares <= fwhm**2, np.exp(-4 * np.log(2) * squares / fwhm**2), 0.0)
    known = np.isfinite(values)
    total, weight = (
        ndimage.convolve(part, kernel, mode="constant")
        for part in (np.where(known, values, 0.0).astype(float), known.astype(float))
    )
    return np.where(known, total / np.where(known, weight, 1), np.nan).astype(np.float32)


def ensure_map(folder, label, *, model, stat="gain"):
    """A person's map in the template's space, smoothed: array on `template_grid`, made and written once.

    Parameters
    ----------
    folder : Path
        ``outputs/<dataset>``.
    label : str
    model, stat : str
        Which of the person's maps, such as ``oofHistorySound`` and ``gain``; or ``inference`` and ``evidence``, the
        normal scores of the p with which notebook 06 tells which voxels follow the sound.

    Raises
    ------
    DataError
        If there is no such map, or the scan has no place in the template.
    """
    import bold_audio.group_maps as this

    source, points = _sources(folder / f"sub-{label}", model, stat)
    made_of = [file_md5(path) for path in (source, points) if path is not None]
    key = fingerprint(made_of, RESOLUTION, FWHM, code_fingerprint(register, images, group_stats, this))
    entities = source.name.partition("_desc-")[0].partition("_space-")[0]
    path = folder / FOLDER / "maps" / f"{entities}_{_name(model, stat)}"
    if path.is_file() and read_json(_sidecar(path), default={}).get("Key") == key:
        return images.read_whole(path)[0]
    values, affine = images.read_whole(source)
    values = group_stats.normal_scores(values) if stat in MADE_FROM else values
    template_mm = register.grid_points(values.shape, affine).T if points is None else images.read_whole(points)[0]
    mask, place = template_grid()
    template_mm = template_mm.reshape(*values.shape, 3)
    # A point of a voxel lies at most half its diagonal from the middle, in a head that may have been stretched.
    reach = register.SIZES[1] * np.linalg.norm(np.linalg.norm(affine[:3, :3], axis=0)) / 2
    grid = smoothed(to_template(values, template_mm, mask, place, reach=reach), place, FWHM)
    said = f"{stat} of {source.name} in the template, nearest voxel, then averaged over {FWHM:g} mm (FWHM)"
    about = {"Description": said, "Sources": [f"bids::sub-{label}/{source.name}"], "Key": key}
    _write(path, grid, place, about, named=f"bold_audio {model} {stat}")
    return grid


def _sources(folder, model, stat):
    """A person's map and the file that says where its voxels lie; None in place of this one in a template's space."""
    stat = MADE_FROM.get(stat, stat)
    found = sorted(folder.glob(f"*_desc-{model}_stat-{stat}_statmap.nii.gz"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(f"no map of {stat} of {model} - run notebook 06")
    entities = found[-1].name.partition("_desc-")[0]
    if "_space-MNI" in entities:
        return found[-1], None
    points = folder / f"{entities}_from-boldref_to-{register.TEMPLATE}_mode-points_xfm.nii.gz"
    if not points.is_file():
        raise DataError("the scan has no place in the template - see notebook 06 for the reason")
    return found[-1], points


def _name(model, stat):
    return f"space-{register.TEMPLATE}_res-{RESOLUTION}_desc-{model}_stat-{stat}_statmap.nii.gz"


def _sidecar(path):
    return path.with_name(path.name.replace(".nii.gz", ".json"))


def _write(path, grid, affine, about, *, named):
    codes = (TEMPLATE_CODE, TEMPLATE_CODE)
    return brain.write_statmap(path, grid, affine, about=about, named=named, form_codes=codes)


def group_map(folder, labels, *, model, stat="gain", seed=0):
    """Ask of each voxel of the template whether a quantity is above 0 over people, and write the maps of it.

    Parameters
    ----------
    folder : Path
        ``outputs/<dataset>``; maps go into its folder ``group``.
    labels : sequence of str
    model, stat : str
        As for `ensure_map`.
    seed : int
        As for `group_stats.flip_test`.

    Returns
    -------
    GroupMap
        One-sided; ``p_fwe`` is that of t among the largest t of all voxels in each flip. Without a voxel where fewer
        than two people have a map; then nothing is written.

    Notes
    -----
    The p values are those of ``nilearn.mass_univariate.permuted_ols`` (an intercept, ``two_sided_test=False``). It is
    not called, because it makes one flip at a time: of 500 people and 28,000 voxels 0.13 s each, here 0.002 s.
    """
    folder, left_out = Path(folder), {}
    mask, affine = template_grid()
    values, kept = np.empty((len(labels), mask.sum()), np.float32), []

    def values_of(label):
        try:
            return ensure_map(folder, label, model=model, stat=stat)[mask]
        except (BoldAudioError, ValueError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(cpu_count()) as pool:  # what takes its time, C code and zlib, leaves Python free
        for label, found in zip(labels, pool.map(values_of, labels), strict=True):
            if isinstance(found, str):
                left_out[label] = found
            else:
                values[len(kept)] = found
                kept.append(label)
    values = values[: len(kept)]
    covered = np.isfinite(values).sum(axis=1)
    enough = covered >= COVERED * np.median(covered) if kept else np.zeros(0, bool)
    left_out |= {
        label: f"its scan covers {n / mask.sum():.0%} of the template's brain, far less than others'"
        for label, n in zip(itertools.compress(kept, ~enough), covered[~enough], strict=True)
    }
    kept, values = tuple(itertools.compress(kept, enough)), values if enough.all() else values[enough]
    shared = np.isfinite(values).sum(axis=0) >= max(2, math.ceil(SHARED * len(kept)))
    tested = mask.copy()
    tested[mask] = shared
    table = group_stats.flip_test(values[:, shared], seed=seed)
    found = GroupMap(table, tested, affine, kept, left_out)
    if shared.any():
        _write_group(folder / FOLDER, found, model, stat)
    return found


def _write_group(folder, found, model, stat):
    texts = {
        "mean": f"mean of {stat}",
        "t": f"t of {stat} over people",
        "pfwe": f"family-wise p of t: one-sided, sign flips, largest t of all {found.tested.sum()} voxels",
        "people": "people who have the voxel",
    }
    for name, text in texts.items():
        about = {"Description": f"{text}; {model}, {len(found.labels)} people, {FWHM:g} mm smoothing"}
        about |= {"People": list(found.labels), "LeftOut": found.left_out}
        grid = found.to_grid({"pfwe": "p_fwe", "people": "n_people"}.get(name, name))
        _write(
            folder / _name(model, f"{stat}{name}"), grid, found.affine, about, named=f"bold_audio group {model} {name}"
        )
