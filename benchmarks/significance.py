"""How often the inference finds what was planted, and how often what is not there, voxel by voxel and by region.

    python benchmarks/significance.py [--quick] [--rows FILE] [--write] [--only KIND …] [--people N]

SIMULATED subjects, seeds from 300 on; the method was developed on seeds from 1000 on, and nothing is tuned on what
comes out here.

``planted``: full size, two regions follow the film. A voxel counts as truly found where its own r2 is high enough; as
falsely found where nothing is planted within the 8 mm over which neighbours are averaged (strict: in itself).
``null, white, ar, drift, motion, rhythm``: nothing planted, small heads, ten films by the seed: the scan's noise as
simulated, white, strongly autocorrelated, drifting, moving, and with a rhythm of 61 s, near the blocks' cycle, which
is a known limit. ``blocks``: two regions follow the blocks and not the sound within them; ``sound``: the film's MFCCs.
``oneback``: a REAL scan without any sound, with a film of another seed each time. ``speed``: full size, this machine.

Rows go to --rows (JSON lines) as they come, and what is there is not measured again; those of ``--quick`` are kept
apart. ``--write`` puts the summary into the package, which reports print; it takes everybody. Ends with one line of
JSON.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bold_audio import film, inferred, simulate, workflow
from bold_audio.files import write_table
from bold_audio.params import load_params

SMALL, FULL = (18, 22, 22), simulate.FULL_SHAPE
FIRST_SEED = 300
NEAR = 8.0  # mm: the smoothing of the map
LEVELS = (0.01, 0.05, 0.10)
NULLS = {
    "null": {},
    "white": {"ar_share": 0.0, "drift": 0.0},
    "ar": {"ar_rho": 0.95, "ar_share": 0.9},
    "drift": {"drift": 1.5},
    "motion": {"motion": 1.0},
    "rhythm": {},
}
PEOPLE = {"planted": 20, "null": 100, "white": 12, "ar": 12, "drift": 12, "motion": 12, "rhythm": 12}
PEOPLE |= {"blocks": 20, "sound": 10, "oneback": 40, "speed": 1}
QUICK = {"null": 1, "sound": 1, "blocks": 1, "speed": 1}
RHYTHM = 61.0  # s
N_FILMS = 10  # of the null kinds: each has its own, by the last digit of the seed
CALIBRATION = Path(inferred.__file__).with_name("calibration.tsv")


def measure(kind, seed, *, folder, quick=False):
    """One row of figures: a dict."""
    started = time.perf_counter()
    label, outputs = f"{kind}{seed}", Path(folder, f"outputs{os.getpid()}")
    if kind == "oneback":
        subject = open_oneback(Path(folder), outputs, seed)
    else:
        subject = open_simulated(Path(folder, f"data{film_of(kind, seed)}"), outputs, kind, seed, label, quick)
    row = FIGURES.get(kind, null_figures)(subject, seed)
    params = subject.params
    del subject
    trees = [params.data_path / f"sub-{label}", params.data_path / f"derivatives/truth/sub-{label}"]
    caches = [path for path in params.cache_path.glob("*") if path.is_dir() and not path.name.startswith("mfcc-")]
    for path in (*trees, *caches, params.subject_path):
        shutil.rmtree(path, ignore_errors=True)
    return {"kind": kind, "seed": seed, "quick": quick, "took": round(time.perf_counter() - started, 1)} | row


def film_of(kind, seed):
    """Seed of the film: ten different ones where nothing follows it."""
    return seed % N_FILMS if kind in (*NULLS, "blocks") else 0


def open_simulated(tree, outputs, kind, seed, label, quick):
    """A SIMULATED subject of this kind."""
    options = {"shape": FULL if kind in ("planted", "speed") and not quick else SMALL, "film_seed": film_of(kind, seed)}
    if kind in (*NULLS, "blocks"):
        options |= NULLS.get(kind, {}) | {"null": True}
    path = simulate.simulate_subject(tree, subject=label, seed=seed, **options)
    if kind in ("rhythm", "blocks"):
        add_to_scan(path, kind, seed)
    return workflow.open_subject(load_params(label, "sim", data_dir=f"{tree}", outputs_dir=f"{outputs}"))


def add_to_scan(path, kind, seed):
    """Write a slow rhythm, or the response of two balls of voxels to the film's blocks, into a scan file."""
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.float32)
    mean, times = data.mean(axis=3), np.arange(data.shape[3]) * film.T_R
    rng = np.random.default_rng([seed, 9])
    if kind == "rhythm":
        phase = 2 * np.pi * ndimage.gaussian_filter(rng.random(mean.shape), 4)
        wave = np.cos(2 * np.pi * times / RHYTHM + phase[..., None] * 20)
        data += 0.007 * mean[..., None] * wave
    else:
        fine = np.arange(0, times[-1] + film.T_R, 0.1)
        boxcar = np.zeros(len(fine))
        for onset, length, what in film.film_blocks(times[-1] + film.T_R):
            boxcar[(fine >= onset) & (fine < onset + length)] = what == "speech"
        response = np.convolve(boxcar, film.canonical_response(np.arange(0, 32, 0.1)))[: len(fine)]
        response = np.interp(times, fine, response / response.max())
        data += 0.02 * mean[..., None] * balls(mean)[..., None] * (response - response.mean())
    nib.save(nib.Nifti1Image(np.round(data).astype(np.int16), image.affine, image.header), path)


def balls(mean):
    """Two balls of radius 3 voxels at a quarter and three quarters of the head's width: array of bool."""
    i, j, k = np.indices(mean.shape)
    head = np.argwhere(mean > 300)
    low, high = head.min(axis=0), head.max(axis=0)
    middle = (low + high) / 2
    found = np.zeros(mean.shape, bool)
    for share in (0.25, 0.75):
        x = low[0] + share * (high[0] - low[0])
        found |= (i - x) ** 2 + (j - middle[1]) ** 2 + (k - middle[2]) ** 2 <= 9
    return found & (mean > 300)


def open_oneback(folder, outputs, seed):
    """The REAL one-back scan, paired with a film that nobody heard."""
    sound = folder / f"film{seed}.wav"
    simulate.write_film(sound, seed=seed, n_volumes=641)
    return workflow.open_subject(load_params("02", "oneback", audio_path=str(sound), outputs_dir=f"{outputs}"))


def planted_figures(subject, seed):
    """What the map finds of what was planted, and beside it."""
    started = time.perf_counter()
    voxels = inferred.infer_subject_voxels(subject).voxels
    found, sure = (voxels[name].to_numpy() <= 0.05 for name in ("q", "p_fwe"))
    took = time.perf_counter() - started
    r2 = truth_of(subject)
    planted = np.nan_to_num(subject.run.to_grid(r2)) > 0
    size = np.linalg.norm(subject.run.affine[:3, :3], axis=0)
    away = ndimage.distance_transform_edt(~planted, sampling=size)[subject.run.mask]
    strong, weak = r2 >= 0.2, (r2 >= 0.1) & (r2 < 0.2)
    n = max(1, int(found.sum()))
    return {
        "n_voxels": len(r2),
        "n_planted": int(np.sum(r2 > 0)),
        "strong": float(found[strong].mean()),
        "weak": float(found[weak].mean()),
        "strong_fwe": float(sure[strong].mean()),
        "weak_fwe": float(sure[weak].mean()),
        "fdp": float(np.sum(found & (away > NEAR)) / n),
        "fdp_strict": float(np.sum(found & (r2 == 0)) / n),
        "seconds_map": took,
    }


def truth_of(subject):
    """Planted r2 of every voxel in the mask."""
    from bold_audio.truth import read_truth

    return np.asarray(nib.load(read_truth(subject.params)["r2_map"]).dataobj)[subject.run.mask]


def null_figures(subject, seed):
    """Whether any voxel passes, one voxel's p, and one compact region's p for both questions."""
    voxels = inferred.infer_subject_voxels(subject, seed=seed).voxels
    rng = np.random.default_rng([seed, 7])
    middle = int(rng.integers(len(voxels)))
    places = np.argwhere(subject.run.mask) @ subject.run.affine[:3, :3].T
    ball = np.zeros(len(voxels), bool)
    ball[np.argsort(np.linalg.norm(places - places[middle], axis=1), kind="stable")[:60]] = True
    table = inferred.infer_subject_regions(subject, {"ball": ball}, seed=seed).set_index("model")
    return {
        "any": bool((voxels["p_fwe"] <= 0.05).any()),
        "any_q": bool((voxels["q"] <= 0.05).any()),
        "voxel_p": float(voxels["p"].iloc[middle]),
        **{f"p_{model}": float(p) for model, p in table["p"].items()},
    }


def planted_region_figures(subject, seed):
    """p of the gain in the planted regions, over the past and over the past and the blocks."""
    if subject.run.regions.get("planted_auditory_left") is not None:
        regions = {
            n: r for n, r in subject.run.regions.items() if n in ("planted_auditory_left", "planted_auditory_right")
        }
        regions = {"planted": np.logical_or.reduce(list(regions.values()))}
    else:
        regions = {"planted": balls(subject.run.mean_image)[subject.run.mask]}
    table = inferred.infer_subject_regions(subject, regions, seed=seed).set_index("model")
    return {f"p_{model}": float(p) for model, p in table["p"].items()} | {
        f"gain_{model}": float(g) for model, g in table["gain"].items()
    }


def speed_figures(subject, seed):
    """Seconds for the map of a full-size run and for one region with both questions."""
    started = time.perf_counter()
    inferred.infer_subject_voxels(subject)
    mapped = time.perf_counter()
    regions = {n: r for n, r in subject.run.regions.items() if n == "planted_auditory_left"}
    inferred.infer_subject_regions(subject, regions)
    return {
        "n_voxels": subject.run.n_voxels,
        "seconds_map": mapped - started,
        "seconds_region": time.perf_counter() - mapped,
    }


FIGURES = {
    "planted": planted_figures,
    "blocks": planted_region_figures,
    "sound": planted_region_figures,
    "speed": speed_figures,
}


def measure_all(tasks, rows_file, *, n_processes, quick):
    """Every (kind, seed) that ``rows_file`` does not hold yet, as quick as asked: table of the rows asked for."""
    kept_rows = rows_file.is_file()
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if kept_rows else []
    rows = [row for row in rows if row.get("quick", False) == quick]  # older full rows do not say it
    done = {(row["kind"], row["seed"]) for row in rows}
    # One core each. The speed is measured alone, by as many cores as there are.
    alone = [task for task in tasks if task[0] == "speed" and task not in done]
    rest = [task for task in tasks if task[0] != "speed" and task not in done]
    with tempfile.TemporaryDirectory(prefix="significance-") as folder, rows_file.open("a") as kept:

        def keep(row):
            rows.append(row)
            kept.write(json.dumps(row) + "\n")
            kept.flush()
            print(f"{len(rows)}: {row['kind']} {row['seed']}, {row['took']:.0f} s", file=sys.stderr, flush=True)

        for kind, seed in alone:
            keep(measure(kind, seed, folder=folder, quick=quick))
        os.environ |= {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}
        with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as processes:
            work = partial(measure, folder=folder, quick=quick)
            for one in as_completed([processes.submit(work, kind, seed) for kind, seed in rest]):
                keep(one.result())
    wanted = set(tasks)
    return pd.DataFrame([row for row in rows if (row["kind"], row["seed"]) in wanted])


def summary(rows):
    """The figures: one row each, with how many subjects stand behind it and what is asked."""
    lines = []

    def add(kind, figure, value, n, asked=""):
        lines.append({"kind": kind, "figure": figure, "value": value, "n": n, "asked": asked})

    kinds = {kind: part for kind, part in rows.groupby("kind", sort=False)}
    if "planted" in kinds:
        part = kinds["planted"]
        add("planted", "sensitivity, voxels with r2 >= 0.2", part["strong"].mean(), len(part), ">= .95")
        add("planted", "sensitivity, voxels with r2 0.1 to 0.2", part["weak"].mean(), len(part), ">= .60")
        add("planted", "sensitivity at family-wise p <= .05, r2 >= 0.2", part["strong_fwe"].mean(), len(part))
        add("planted", "sensitivity at family-wise p <= .05, r2 0.1 to 0.2", part["weak_fwe"].mean(), len(part))
        add("planted", "false discovery proportion, beyond 8 mm", part["fdp"].mean(), len(part), "<= .07")
        add("planted", "false discovery proportion, strict", part["fdp_strict"].mean(), len(part))
    for kind in (*NULLS, "oneback"):
        if kind not in kinds:
            continue
        part = kinds[kind]
        limit = "<= .10" if kind in ("null", "oneback") else ""
        add(kind, "maps with any voxel at family-wise p <= .05", part["any"].mean(), len(part), limit)
        add(kind, "maps with any voxel at q <= .05", part["any_q"].mean(), len(part))
        columns = {"voxel_p": "one voxel", "p_past_sound": "one region, over the past"}
        columns["p_past_blocks_sound"] = "one region, over past and blocks"
        for column, what in columns.items():
            if column in part and part[column].notna().all():
                for level in LEVELS:
                    error = 2 * np.sqrt(level * (1 - level) / len(part))
                    share = (part[column] <= level).mean()
                    add(kind, f"{what}: p <= {level:.2f}", share, len(part), f"<= {level + error:.3f}")
    for kind, within in (("blocks", "<= .147"), ("sound", "1")):  # .05 and two Monte-Carlo errors of 20
        if kind in kinds:
            for model, asked in (("past_sound", "1"), ("past_blocks_sound", within)):
                share = (kinds[kind][f"p_{model}"] <= 0.05).mean()
                add(kind, f"planted region, {model}: p <= .05", share, len(kinds[kind]), asked)
    if "speed" in kinds:
        add("speed", "seconds, map", kinds["speed"]["seconds_map"].mean(), 1, "<= 120")
        add("speed", "seconds, one region, both questions", kinds["speed"]["seconds_region"].mean(), 1, "<= 10")
    return pd.DataFrame(lines)


def figure(table, kind, figure):
    """One number of the summary; None where it was not measured."""
    rows = table[(table["kind"] == kind) & (table["figure"] == figure)]
    return round(float(rows["value"].iloc[0]), 4) if len(rows) else None


def main():
    """Measure everybody and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small subject of four kinds, at most a minute")
    parser.add_argument("--rows", type=Path, help="JSON lines of every subject measured; those there are kept")
    parser.add_argument("--write", action="store_true", help="write the summary into the package")
    parser.add_argument("--only", nargs="+", choices=list(PEOPLE), help="some kinds alone")
    parser.add_argument("--people", type=int, help="subjects of each kind")
    parser.add_argument("--seed0", type=int, default=FIRST_SEED, help="seed of the first subject of each kind")
    parser.add_argument("--processes", type=int, default=joblib.cpu_count(), help="subjects measured at once")
    options = parser.parse_args()
    if options.write and (options.quick or options.only or options.people):
        parser.error("--write puts everybody's figures into the package: not with --quick, --only or --people")
    people = QUICK if options.quick else PEOPLE
    people = {kind: options.people or n for kind, n in people.items() if not options.only or kind in options.only}
    if "oneback" in people and not load_params("02", "oneback").data_path.is_dir():
        print("The one-back scan is not there: left out.", file=sys.stderr)
        people.pop("oneback")
    tasks = [(kind, options.seed0 + k) for kind, n in people.items() for k in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        rows_file = options.rows or Path(folder, "rows.jsonl")
        rows = measure_all(tasks, rows_file, n_processes=options.processes, quick=options.quick)
    table = summary(rows)
    print("SIMULATED subjects; one-back is a REAL scan without any sound\n")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4f}", justify="left"))
    if options.write:
        write_table(CALIBRATION, table)
    oneback = rows[rows["kind"] == "oneback"]
    print(
        json.dumps(
            {
                "null_fwe": figure(table, "null", "maps with any voxel at family-wise p <= .05"),
                "null_fdp": figure(table, "planted", "false discovery proportion, beyond 8 mm"),
                "sensitivity": figure(table, "planted", "sensitivity, voxels with r2 >= 0.2"),
                "sensitivity_weak": figure(table, "planted", "sensitivity, voxels with r2 0.1 to 0.2"),
                "seconds_map": figure(table, "speed", "seconds, map"),
                "seconds_region": figure(table, "speed", "seconds, one region, both questions"),
                "oneback_false_positives": int(oneback["any"].sum()) if len(oneback) else None,
            }
        )
    )


if __name__ == "__main__":
    main()
