"""What a run leaves as a BIDS derivative: statistical maps as NIfTI in the scan's own space, and their dataset."""

import nibabel as nib
import numpy as np

from bold_audio.files import write_json, write_text, write_whole
from bold_audio.locking import DATASET_LOCK, lock
from bold_audio.schema import DEFAULT_DATASET


def write_map(run, params, values, *, model, stat, description):
    """Write one value per voxel as a NIfTI map beside its JSON description.

    The map has the scan's own affine and carries all its BIDS entities; voxels outside
    the mask are NaN.

    Parameters
    ----------
    run : data.BoldRun
    params : Params
    values : array of shape (n_voxels,)
    model, stat : str
        Letters and digits: the entities ``desc`` and ``stat`` of the map's name.
    description : str
        What the values are, with their unit.

    Returns
    -------
    Path
    """
    path = params.subject_path / f"{run.files.entities}_desc-{model}_stat-{stat}_statmap.nii.gz"
    # Without a space in its name a map is in the scan's own, which BIDS wants to be said.
    where = {} if "space-" in run.files.entities else {"SpatialReference": "orig"}
    about = {"Description": description, "Sources": sources(run, params)} | where
    named = f"bold_audio {model} {stat}"
    return write_statmap(
        path, run.to_grid(values), run.affine, about=about, named=named, form_codes=run.files.form_codes
    )


def write_statmap(path, grid, affine, *, about, named, form_codes):
    """Write a map as NIfTI beside its JSON description.

    Parameters
    ----------
    path : Path
        Ends in ``.nii.gz``.
    grid : array of shape (i, j, k)
    affine : array of shape (4, 4)
        Grid index → mm.
    about : dict
        What goes into the JSON file.
    named : str
        What the header says of it.
    form_codes : (int, int)
        Of sform and qform.

    Returns
    -------
    Path
    """
    _write_image(path, _image(grid, affine, form_codes, named), about)
    return path


def _image(grid, affine, form_codes, named):
    """A NIfTI image in mm with these codes of sform and qform, and what its header says of it."""
    image = nib.Nifti1Image(grid, affine)
    image.set_sform(affine, code=form_codes[0])
    image.set_qform(affine, code=form_codes[1])
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = named[:79].encode()
    return image


def _write_image(path, image, about):
    """Write an image beside its JSON description; nibabel packs the same image as the same bytes."""
    with write_whole(path) as part:
        nib.save(image, part)
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")), about)


def write_volumes(path, volumes, *, mask, affine, t_r, about, form_codes=(1, 1)):
    """Write volumes as a NIfTI run, 0 outside the mask, beside its JSON description.

    Parameters
    ----------
    path : path
        Ends in ``.nii.gz``.
    volumes : array of shape (n_volumes, n_voxels)
    mask, affine
        Where the voxels are.
    t_r : float
        Repetition time, s.
    about : dict
        What goes into the JSON file besides ``RepetitionTime``.
    form_codes : (int, int)
        Of sform and qform.
    """
    grid = np.zeros((*mask.shape, len(volumes)), dtype=np.float32, order="F")
    grid[mask] = volumes.T
    image = _image(grid, affine, form_codes, "bold_audio prediction")
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = t_r
    _write_image(path, image, {"RepetitionTime": t_r, **about})


def sources(run, params):
    """The scans that a result was made from, as BIDS URIs."""
    found = []
    for part in run.files.parts:
        try:
            found.append(f"bids:raw:{part.bold.relative_to(params.data_path).as_posix()}")
        except ValueError:  # preprocessed runs may lie elsewhere
            found.append(part.bold.name)
    return found


def write_dataset_description(params, version):
    """Make the outputs of a dataset a BIDS derivative."""
    source = {"DOI": "doi:10.18112/openneuro.ds003688.v1.0.7", "Version": "1.0.7"}
    folder = params.subject_path.parent
    about = {
        "Name": f"bold_audio outputs for {params.label}",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "bold_audio", "Version": version}],
        "SourceDatasets": [source] if params.dataset == DEFAULT_DATASET else [],
        "DatasetLinks": {"raw": params.data_path.as_uri()},
    }
    with lock(folder / DATASET_LOCK, wait=60, doing=f"{folder}"):
        write_json(folder / "dataset_description.json", about)
        write_text(folder / ".bidsignore", "**/*_statmap.*\n**/*_xfm.*\n**/*.html\n**/*.ipynb\n")
