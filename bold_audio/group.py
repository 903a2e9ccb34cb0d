"""The group answer of a dataset, as notebook 07 asks for it: who is counted, tables, maps and ceiling."""

import numpy as np

from bold_audio import bids, ceiling, group_maps, group_stats, group_tables
from bold_audio.files import BoldAudioError, DataError, write_json, write_table

# Quantity → model and stat of the person's map. The gain is exactly 0 in most voxels, where the sound was not believed;
# the evidence is not, and so tells more of where people follow the sound.
MODELS = {
    "evidence": ("inference", "evidence"),
    "gain_within": ("oofHistoryBlocksSound", "gain"),
    "gain": ("oofHistorySound", "gain"),
}


def open_group(params):
    """Read what the finished subjects of a dataset left.

    Parameters
    ----------
    params : Params
        Of any of its subjects.

    Returns
    -------
    group_tables.Group

    Raises
    ------
    DataError
        If fewer than two people can be counted.
    """
    folder = folder_of(params).parent
    found = group_tables.read_group(folder, data_path=params.data_path)
    if len(found.people) < 2:
        whys = "; ".join(f"sub-{row.subject} {row.state}: {row.reason}" for row in found.left_out[:3].itertuples())
        raise DataError(
            f"a group answer needs at least 2 finished people, {params.label} has {len(found.people)}"
            f"{f' ({whys})' if whys else ''} - run more subjects through all steps"
        )
    return found


def folder_of(params):
    """Where a dataset's group answer goes."""
    return params.subject_path.parent / group_maps.FOLDER


def asked(found):
    """The primary outcome: the gain over past and blocks where the film has blocks, else over the past."""
    return "gain_within" if found.regions["gain_within"].notna().any() else "gain"


def still(found, *, limit=group_stats.MOST_MOTION):
    """The table of regions without the people who moved more than ``limit`` mm on average."""
    kept = found.people["subject"][group_stats.still_people(found.people, limit=limit)]
    return found.regions[found.regions["subject"].isin(kept)]


def group_map(params, found, quantity):
    """The map of one of `MODELS` over people; see `group_maps.group_map`."""
    folder, labels, (model, stat) = folder_of(params).parent, list(found.people["subject"]), MODELS[quantity]
    return group_maps.group_map(folder, labels, model=model, stat=stat, seed=params.seed)


def find_ceiling(params, found):
    """What people have in common, over the whole run, from at most `bids.MOST_COMPARED` of them whose scans are there.

    Returns
    -------
    table : DataFrame or None
        From `ceiling.intersubject_ceiling`; None where no two people can be compared.
    left_out : dict of str to str
        Who is not among them, and why.
    reason : str
        Why there is no table; empty where there is one.
    """
    labels = list(found.people["subject"][: bids.MOST_COMPARED])
    try:
        people = ceiling.read_people(ceiling.params_of(params, labels[0]), labels=labels)
    except BoldAudioError as error:
        return None, {}, f"sub-{labels[0]}: {error}"
    try:
        return ceiling.intersubject_ceiling(people), people.left_out, ""
    except DataError as error:
        return None, people.left_out, str(error)


def write_group(params, found, tables, sentences):
    """Write the tables (by name) and the sentences of the answer into the dataset's folder ``group``."""
    folder = folder_of(params)
    every = {"regions": found.regions, "people": found.people, "left_out": found.left_out} | tables
    for name, table in every.items():
        write_table(folder / f"{name}.tsv", table)
    write_json(folder / "summary.json", {"sentences": sentences, "people": list(found.people["subject"])})


def background(mask, affine):
    """The template itself on the grid of the maps, to draw them over: array of shape (i, j, k).

    Raises
    ------
    DataError
        If the grids of the template and of its mask differ.
    """
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=group_maps.RESOLUTION)
    if image.shape != mask.shape or not np.allclose(image.affine, affine):
        raise DataError("the template and its mask have different grids - this version of nilearn ships others")
    return image.get_fdata(dtype=np.float32)
