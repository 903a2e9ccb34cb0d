"""Regions of a subject by their place in the template: the T1w that helps, the cached registration, masks by name."""

import gzip
import hashlib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np

from bold_audio import atlases, bids, images, region_specs, register
from bold_audio.files import DataError, ParameterError, file_md5, fingerprint, read_json, write_json, write_whole
from bold_audio.locking import cached_folder
from bold_audio.provenance import code_fingerprint

OWN_SPACES = (None, "T1w", "orig", "individual", "scanner", "boldref")  # in which a head still has its own shape
GOOD_OVERLAP = 0.85  # Dice of the two brains below which the reader is told to look


@dataclass(frozen=True)
class Anatomy:
    """Regions of one subject's scan, and how they were found.

    Parameters
    ----------
    regions : dict of str to array of bool, shape (n_voxels,)
        In mask order.
    how : str
        ``T1w``, ``direct`` (scan to template), ``template space``, or ``none``.
    reason : str or None
        A sentence where there are no regions.
    warnings : tuple of str
    files : tuple of Path
        What they depend on besides the scan: the T1w, mask images.
    template_mm : array of shape (i, j, k, 3) or None
        Template mm of each voxel of the grid.
    overlap : float or None
        Dice of the scan's brain and the template's.
    registration : dict or None
        What the sidecar of the transform says of how it was made; None where none was needed, or possible.
    """

    regions: dict = field(default_factory=dict)
    how: str = "none"
    reason: str | None = None
    warnings: tuple = ()
    files: tuple = ()
    template_mm: np.ndarray | None = None
    overlap: float | None = None
    registration: dict | None = None

    @property
    def facts(self):
        """What provenance says of them."""
        counts = {name: int(roi.sum()) for name, roi in self.regions.items()}
        return {"how": self.how, "reason": self.reason, "warnings": list(self.warnings), "n_voxels": counts} | (
            {} if self.overlap is None else {"overlap": round(self.overlap, 3)}
        )


def find_anatomy(run, params):
    """Find the regions that the parameter ``regions`` asks for in a subject's scan.

    Parameters
    ----------
    run : data.BoldRun
    params : Params

    Returns
    -------
    Anatomy
        Without regions, and with a reason, where the scan has no grid, no orientation, no mask of a whole brain, or
        cannot be brought to the template. Registered once, then re-read from the cache; nothing else is written, as
        the scan may be that of a person who is only compared: see `write_transform`.

    Raises
    ------
    ParameterError
        If an atlas has no such label, or a mask image is missing.
    AccessError
        If an atlas cannot be fetched.
    DataError
        If the T1w or a mask image is damaged.
    """
    if not params.regions:
        return Anatomy(reason="the parameter regions asks for none")
    reason = _no_place(run, params)
    if reason:
        return Anatomy(reason=reason)
    masks = {name: _mask_path(name, spec["mask"], params) for name, spec in params.regions.items() if "mask" in spec}
    if (bids.entities_of(run.files.bold).get("space") or "").startswith("MNI"):
        points = register.grid_points(run.mask.shape, run.affine).T.reshape(*run.mask.shape, 3)
        found = Anatomy(how="template space", files=tuple(masks.values()), template_mm=points)
    else:
        reason = register.unfit(run.mean_image, run.affine, run.mask)
        if reason:
            return Anatomy(reason=reason)
        found = _registered(run, params, tuple(masks.values()))
        if found.reason:
            return found
    regions, empty = place_regions(params.regions, run, found.template_mm, masks)
    told = tuple(f"region {name} holds no voxel of the mask" for name in empty)
    return Anatomy(**{**vars(found), "regions": regions, "warnings": found.warnings + told})


def _no_place(run, params):
    """Why no voxel of a scan has a place in the template, as a sentence; None where they have."""
    if params.mask == "none":
        return "without a brain mask (mask: none) nothing says where the brain lies"
    if min(run.mask.shape) < register.FEWEST_SLICES:
        return f"a grid of {' × '.join(map(str, run.mask.shape))} voxels shows no head"
    if not any(run.files.form_codes):
        return "the header does not say how the scan lies (sform and qform are 0)"
    space = bids.entities_of(run.files.bold).get("space")
    if space not in OWN_SPACES and not space.startswith("MNI"):
        return f"the scan is in the space {space}, which is neither MNI nor the head's own"
    return None


def transform_path(run, params, ending=".json"):
    """Path of the transform in the subject's outputs."""
    name = f"{run.files.entities}_from-boldref_to-{register.TEMPLATE}_mode-points_xfm{ending}"
    return params.subject_path / name


def _registered(run, params, masks):
    """The registration of the mean volume, from the cache or made: Anatomy without regions yet."""
    import bold_audio.anatomy as this

    t1w, warnings = _usable_t1w(run, params)
    arrays = [_content(a) for a in (run.mean_image, run.mask, run.affine)]
    md5 = None if t1w is None else file_md5(t1w)
    version = metadata.version("dipy")
    key = "anatomy-" + fingerprint(arrays, md5, version, code_fingerprint(images, register, this))
    folder = cached_folder(params.cache_path, key, lambda part: _write_registration(part, run, t1w))
    facts = read_json(folder / "facts.json")
    overlap, failure = facts["overlap"], facts["failure"]
    files = (*masks, *(() if t1w is None else (t1w,)))
    if failure:
        return Anatomy(reason=failure, warnings=warnings, files=files, overlap=overlap)
    if overlap < GOOD_OVERLAP:
        warnings += (
            f"brain and template overlap with a Dice of {overlap:.2f} only: look at the picture of the regions",
        )
    template_mm = np.load(folder / "template_mm.npy")
    how = "direct" if t1w is None else "T1w"
    known = {
        "Key": key,
        "Library": f"dipy {version}",
        "Steps": facts["steps"],
        "T1w": None if t1w is None else t1w.name,
    }
    known |= {"Overlap": overlap, "Warnings": list(warnings)}
    return Anatomy(
        how=how, warnings=warnings, files=files, template_mm=template_mm, overlap=overlap, registration=known
    )


def _content(array):
    """Shape, type and hash of an array."""
    array = np.ascontiguousarray(array)
    return [array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).hexdigest()]


def _usable_t1w(run, params):
    """The subject's T1w, of the scan's session if there is one, else None; and what must be told."""
    paths = bids.find_t1w(params, run.files.bold)
    told = []
    if len(paths) > 1:
        told.append(f"{len(paths)} T1w images, the first is used: {paths[0].name}")
    if not paths:
        return None, ("no T1w: the scan was registered to the template itself, which is less exact",)
    image = images.open_image(paths[0])
    why = None
    if (
        np.prod(image.shape) != np.prod(image.shape[:3])
        or len(image.shape) < 3
        or min(image.shape[:3]) < register.FEWEST_SLICES
    ):
        why = f"has the shape {' × '.join(map(str, image.shape))}"
    elif isinstance(image, nib.Nifti1Image) and not (image.header["sform_code"] or image.header["qform_code"]):
        why = "does not say how it lies (sform and qform are 0)"
    if why:
        told.append(f"{paths[0].name} {why}: not used, the scan was registered to the template itself")
        return None, tuple(told)
    return paths[0], tuple(told)


def _write_registration(folder, run, t1w):
    head = None
    if t1w is not None:
        data, affine = images.read_whole(t1w)
        head = (data.reshape(data.shape[:3]), affine)
    found = register.register(run.mean_image, run.affine, run.mask, t1w=head)
    np.save(folder / "template_mm.npy", found.template_mm)
    steps = {name: matrix.tolist() for name, matrix in found.steps.items()}
    write_json(folder / "facts.json", {"steps": steps, "overlap": found.overlap, "failure": found.failure})


def write_transform(run, params, found):
    """Write the transform beside the subject's results, unless it lies there already; without one, remove an old one.

    For the subject that is itself run: the outputs of people whom it is compared with are theirs.

    Parameters
    ----------
    run : data.BoldRun
    params : Params
    found : Anatomy
        From `find_anatomy`.
    """
    path, points = transform_path(run, params), transform_path(run, params, ".nii.gz")
    if found.registration is None:
        for old in (path, points):  # of an earlier run with other parameters
            old.unlink(missing_ok=True)
        return
    if points.is_file() and path.is_file() and read_json(path).get("Key") == found.registration["Key"]:
        return
    image = nib.Nifti1Image(found.template_mm, run.affine)
    image.header.set_xyzt_units("mm")
    image.header.set_intent("vector")
    with write_whole(points) as part, gzip.GzipFile(part, "wb", compresslevel=1, mtime=0) as packed:
        image.to_stream(packed)
    by_t1w = found.registration["T1w"] is not None
    steps = "rigid to the T1w, affine to the template, then a warp" if by_t1w else "affine to the template"
    about = {
        "Description": f"where the scan lies in the template: {steps}. Steps are 4 × 4 matrices, mm to mm, in their "
        f"order; {points.name} holds the template mm of each voxel, the warp among it",
        "From": "boldref (mean of the train volumes)",
        "To": register.TEMPLATE,
        "Units": "mm",
    }
    write_json(path, about | found.registration)


def place_regions(specs, run, template_mm, masks):
    """Make each region, and its left and right part where it has both.

    Parameters
    ----------
    specs : dict of str to dict
        The parameter ``regions``.
    run : data.BoldRun
    template_mm : array of shape (i, j, k, 3)
    masks : dict of str to Path
        Of the regions that are mask images.

    Returns
    -------
    regions : dict of str to array of bool, shape (n_voxels,)
    empty : list of str
        Regions without a voxel, which are left out.
    """
    points = np.asarray(template_mm[run.mask], float)
    left, right = points[:, 0] < 0, points[:, 0] > 0
    regions, empty = {}, []
    for name, spec in specs.items():
        if "sphere" in spec:
            roi = np.any([np.linalg.norm(points - c, axis=1) <= spec["radius"] for c in spec["sphere"]], axis=0)
        elif "atlas" in spec:
            values, affine = atlases.label_map(name, spec["atlas"], spec["label"])
            roi = nearest_values(values, affine, points)
        else:
            roi = _of_mask(masks[name], run, points)
        if not roi.any():
            empty.append(name)
            continue
        regions[name] = roi
        if region_specs.has_sides(spec) and (roi & left).any() and (roi & right).any():
            regions |= dict(zip(region_specs.parts_of(name), (roi & left, roi & right), strict=True))
    return regions, empty


def _of_mask(path, run, points):
    """Voxels of a mask image: in the scan's grid where it has that one, else in template space."""
    values, affine = images.read_whole(path)
    if values.ndim > 3 and values.size != np.prod(values.shape[:3]):
        raise DataError(f"mask {path.name} has the shape {values.shape} - give an image of one volume")
    values = values.reshape(values.shape[:3]) > 0
    for grid, place in ((run.files.grid, run.files.affine), (run.mask.shape, run.affine)):
        if values.shape == tuple(grid) and np.allclose(affine, place, atol=1e-2):
            points = register.grid_points(run.mask.shape, run.affine)[:, run.mask.ravel()].T
            break
    return nearest_values(values, affine, points)


def nearest_values(values, affine, points):
    """Values of a bool grid at points.

    Parameters
    ----------
    values : array of bool, shape (i, j, k)
    affine : array of shape (4, 4)
        Grid index → mm.
    points : array of shape (n_points, 3)
        In mm.

    Returns
    -------
    array of bool, shape (n_points,)
        False outside the grid.
    """
    at = np.rint(register.template_points(points.T, np.linalg.inv(affine))).astype(int)
    inside = np.all((at >= 0) & (at < np.array(values.shape)[:, None]), axis=0)
    found = np.zeros(len(points), bool)
    found[inside] = values[tuple(at[:, inside])]
    return found


def find_mask(given, params):
    """Path of a region's mask image, below ``data_dir`` or else below the project; None where it is not there."""
    for path in ((params.data_path / Path(given).expanduser()).resolve(), params.resolve(given)):
        if path.is_file():
            return path
    return None


def _mask_path(name, given, params):
    path = find_mask(given, params)
    if path is None:
        raise ParameterError(f"regions: {name}: no mask image {given} below data_dir or the project - check its path")
    return path
