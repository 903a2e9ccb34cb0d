"""How often the group map finds what was planted in twelve people, and how often what is in nobody.

    python benchmarks/group.py [--quick] [--rows FILE] [--repetitions 20] [--people 12] [--processes N]

SIMULATED people, seeds from 200,000 on, on which nothing was developed or measured before; the maps' smoothing and test
were settled on others (from 300 on one repetition was seen, of maps of the gain, which showed nothing). In each
repetition twelve people hear the same film, another one each time; half of the repetitions have the auditory cortex
planted in everybody, the others have nobody planted. The grid is small: whole heads in voxels of 8 mm, so an eighth of
a full-size scan's. Each person's map of the evidence is the product's own (notebook 06's), and so is the group map, on
the template's grid. Where a head lies in the template is known here and not estimated: ``benchmarks/anatomy.py``
measures how well it is.

A voxel of the template counts as planted where anybody's planted voxels lie after the maps' smoothing (twice 8 mm: each
person's neighbours and the group's). ``found``: repetitions in which both planted sides hold a voxel at family-wise
p <= .05. ``elsewhere``: repetitions in which any other voxel does.

Rows go to --rows (JSON lines) as they come, and what is there of as many people and the same code is not measured
again. Ends with one line of JSON; the exit status is 1 where fewer than nine of ten planted repetitions have both sides
found, or where more have anything elsewhere than chance at .05 gives in one case of twenty.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import joblib
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage, stats

from bold_audio import brain, group_maps, inferred, register, simulate, workflow
from bold_audio.group import MODELS
from bold_audio.params import load_params
from bold_audio.simulated_anatomy import HeadPose
from bold_audio.truth import read_truth

SHAPE, TIMES = (20, 32, 32), 2  # half as many voxels each way, of twice the size
FIRST_SEED = 200_000
MEASURED = (inferred, group_maps, simulate, register, workflow)
KINDS = ("planted", "null")
NEAR = 2 * group_maps.FWHM  # mm
LEAST_FOUND = 0.9


def make_person(label, *, folder, seed, film_seed, null):
    """Simulate a person; write the maps of the evidence and where the head lies in the template.

    Parameters
    ----------
    label : str
    folder : Path
        Of the repetition: data and outputs.
    seed, film_seed : int
    null : bool

    Returns
    -------
    array of shape (l, m, n), float32
        On the template's grid: 1 where the nearest voxel of the scan is planted on the left, 2 on the right, 0
        elsewhere, NaN outside the scan.
    """
    scan = simulate.simulate_subject(
        folder / "data", subject=label, seed=seed, film_seed=film_seed, shape=SHAPE, null=null
    )
    image = nib.load(scan)
    affine = image.affine.copy()
    affine[:3] *= TIMES
    volumes = np.asarray(image.dataobj)
    simulate.write_nifti(scan, volumes, affine)
    params = load_params(label, "sim", data_dir=f"{folder / 'data'}", outputs_dir=f"{folder / 'outputs'}", regions={})
    subject = workflow.open_subject(params)
    inferred.ensure_voxels(subject)
    points = template_points(params, affine, volumes.shape[:3])
    bold = scan.name.removesuffix("_bold.nii.gz")
    path = params.subject_path / f"{bold}_from-boldref_to-{register.TEMPLATE}_mode-points_xfm.nii.gz"
    said = {"Description": "SIMULATED: where the head was placed, not an estimate"}
    brain.write_statmap(path, points, affine, about=said, named="SIMULATED template points", form_codes=(1, 1))
    label_map = np.asarray(nib.load(read_truth(params)["region_map"]).dataobj).astype(np.float32)
    mask, place = group_maps.template_grid()
    reach = np.linalg.norm(np.linalg.norm(affine[:3, :3], axis=0))
    planted = group_maps.to_template(label_map, points, mask, place, reach=reach)
    shutil.rmtree(folder / "data" / f"sub-{label}")
    return planted


def template_points(params, affine, shape):
    """Template mm of each voxel by the pose that the simulated head was given: array of shape (i, j, k, 3)."""
    head = read_truth(params)["head"]
    pose = HeadPose(np.array(head["shift"]), np.array(head["scale"])[:, None], np.array(head["turn"]))
    mm = register.grid_points(shape, affine) / TIMES  # the pose is that of a head of half the size
    return pose.to_template(mm).T.reshape(*shape, 3).astype(np.float32)


def measure(kind, number, *, folder, n_people):
    """One repetition: a dict."""
    started, folder = time.perf_counter(), Path(folder, f"{kind}{number}")
    labels = [f"{k:02}" for k in range(n_people)]
    how = {"folder": folder, "film_seed": FIRST_SEED + number, "null": kind == "null"}
    first = FIRST_SEED + 10_000 * KINDS.index(kind) + n_people * number
    planted = np.stack([make_person(one, seed=first + k, **how) for k, one in enumerate(labels)])
    planted *= kind == "planted"  # the simulator names the regions of a null person, too; there any voxel is false
    model, stat = MODELS["evidence"]
    found = group_maps.group_map(folder / "outputs/sim", labels, model=model, stat=stat, seed=number)
    row = {"kind": kind, "number": number} | figures(found, planted)
    shutil.rmtree(folder)
    return row | {"took": round(time.perf_counter() - started, 1)}


def figures(found, planted):
    """What a group map finds where something is planted in somebody, and elsewhere."""
    sure = found.to_grid("p_fwe") <= 0.05
    size = np.linalg.norm(found.affine[:3, :3], axis=0)
    near = np.zeros(sure.shape, bool)
    made = {"n_voxels": int(found.tested.sum()), "n_people": len(found.labels)}
    for label, side in ((1, "left"), (2, "right")):
        here = (planted == label).any(axis=0)
        if not here.any():
            continue
        around = ndimage.distance_transform_edt(~here, sampling=size) <= NEAR
        made[side] = bool((sure & around).any())
        near |= around
    return made | {"n_found": int(sure.sum()), "n_elsewhere": int((sure & ~near).sum())}


def summary(rows):
    """Repetitions of each kind: in how many both sides are found, in how many anything else is."""
    lines = []
    for kind, part in rows.groupby("kind", sort=False):
        line = {"kind": kind, "repetitions": len(part), "elsewhere": int((part["n_elsewhere"] > 0).sum())}
        line |= {"found": int((part["left"] & part["right"]).sum())} if kind == "planted" else {}
        for name in ("elsewhere", "found"):
            if name in line:
                low, high = common.interval(line[name], len(part))
                line[f"{name}, 95 %"] = f"{low:.3f} to {high:.3f}"
        lines.append(line)
    return pd.DataFrame(lines)


def failures(table):
    """What is not as asked, in words: list of str."""
    said = []
    for row in table.to_dict("records"):
        if stats.binomtest(row["elsewhere"], row["repetitions"], 0.05, alternative="greater").pvalue < 0.05:
            said.append(f"{row['elsewhere']} of {row['repetitions']} {row['kind']} groups show what is in nobody")
        if row["kind"] == "planted" and row["found"] < LEAST_FOUND * row["repetitions"]:
            said.append(f"in {row['found']:.0f} of {row['repetitions']} planted groups both sides were found")
    return said


def main():
    """Measure every repetition and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition of eight planted people (a minute)")
    parser.add_argument("--rows", type=Path, help="JSON lines of every repetition; those there are kept")
    parser.add_argument("--repetitions", type=int, default=20, help="of each kind")
    parser.add_argument("--people", type=int, default=12, help="in each repetition (12)")
    parser.add_argument("--processes", type=int, default=joblib.cpu_count(), help="repetitions at once")
    options = parser.parse_args()
    kinds, n = (KINDS[:1], 1) if options.quick else (KINDS, options.repetitions)
    tasks = [(kind, number) for number in range(n) for kind in kinds]
    with tempfile.TemporaryDirectory() as folder:
        rows_file, n_people = options.rows or Path(folder, "rows.jsonl"), 8 if options.quick else options.people
        same = {
            "people": n_people,
            "code": common.code_of(__file__, *MEASURED),
        }
        work, n_processes = partial(measure, n_people=n_people), options.processes
        rows = common.measure_rows(tasks, work, rows_file, same=same, n_processes=n_processes)
    table = summary(rows)
    print(f"SIMULATED people, {n_people} in each repetition\n")
    print(table.to_string(index=False))
    last = {f"{row.kind}_elsewhere": row.elsewhere for row in table.itertuples()}
    found = {"planted_found": int(table["found"].sum())} if "found" in table else {}
    print(json.dumps({"repetitions": n, "people": n_people} | last | found))
    if missed := failures(table):
        sys.exit(f"not as asked: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
