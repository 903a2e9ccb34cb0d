"""How often the inference finds what was planted, and how often what is not there, voxel by voxel and by region.

    python benchmarks/significance.py [--quick] [--rows FILE] [--write] [--only KIND …] [--people N]

SIMULATED subjects, seeds from 300 on; the method was developed on seeds from 1000 on, and nothing is tuned on what
comes out here. These seeds were measured twice, before and after a correction of the method (docs/evidence.md has both
numbers). Whoever changes the method again takes a fresh ``FIRST_SEED``, which no commit has measured.

``planted``: full size, two regions follow the film. A voxel counts as truly found where its own r2 is high enough; as
falsely found where nothing is planted within the 8 mm over which neighbours are averaged (strict: in itself).
``null, white, ar, drift, motion, rhythm``: nothing planted, small heads, ten films by the seed: the scan's noise as
simulated, white, strongly autocorrelated, drifting, moving, and with a rhythm of 61 s, near the blocks' cycle, which
is a known limit. ``blocks``: two regions follow the blocks and not the sound within them; ``sound``: the film's MFCCs.
These two are planted with the response and the features that the analysis assumes. ``blocks_late`` and ``sound_late``
are planted with another response, which is later and wider and has no undershoot, and MFCCs of another window.
``oneback``: ONE realisation of REAL noise, a scan without any sound, with a film of another seed each time; the films
change their blocks at the same times, so their maps are not independent: this can show a fault, not a rate.
``speed``: full size, this machine.

Shares have exact 95 % intervals. A rate that is meant to be .05 may be as large as a right method exceeds in at most
one case of forty at that number of scans. NaN counts as not found, and it is said how many there were.

Rows go to --rows (JSON lines) as they come, and what is there is not measured again, unless the code that made it was
other code; those of ``--quick`` are kept apart. ``--write`` puts the summary into the package, which reports print; it
takes everybody, from the first seed on. Ends with one line of JSON; the exit status is 1 where something is not as
asked and is not among ``KNOWN_MISSES`` (not with ``--quick``, which is too small for it).
"""

import argparse
import json
import os
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

from bold_audio import audit, features, film, inferred, simulate, workflow
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
PEOPLE |= {"blocks": 20, "sound": 10, "blocks_late": 20, "sound_late": 10, "oneback": 40, "speed": 1}
QUICK = {"null": 1, "sound": 1, "blocks": 1, "blocks_late": 1, "sound_late": 1, "speed": 1}
SILENT = (*NULLS, "blocks", "blocks_late", "sound_late")  # the simulator plants nothing in these
ADDED = ("rhythm", "blocks", "blocks_late", "sound_late")  # what is added to the scan here
KNOWN_MISSES = {("blocks", "planted region, past_sound: p <= .05")}  # .95: docs/evidence.md
RHYTHM = 61.0  # s
STEP = 0.1  # s: the clock of what is added to a scan
N_FILMS = 10  # of the null kinds: each has its own, by the last digit of the seed
CALIBRATION = Path(inferred.__file__).with_name("calibration.tsv")


def measure(kind, seed, *, folder, quick=False):
    """One row of figures: a dict."""
    started = time.perf_counter()
    label, outputs = f"{kind}{seed}".replace("_", ""), Path(folder, f"outputs{os.getpid()}")
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
    return {"kind": kind, "number": seed, "took": round(time.perf_counter() - started, 1)} | row


def film_of(kind, seed):
    """Seed of the film: ten different ones where nothing follows it."""
    return seed % N_FILMS if kind in SILENT else 0


def open_simulated(tree, outputs, kind, seed, label, quick):
    """A SIMULATED subject of this kind."""
    options = {"shape": FULL if kind in ("planted", "speed") and not quick else SMALL, "film_seed": film_of(kind, seed)}
    if kind in SILENT:
        options |= NULLS.get(kind, {}) | {"null": True}
    path = simulate.simulate_subject(tree, subject=label, seed=seed, **options)
    if kind in ADDED:
        add_to_scan(path, kind, seed, tree / "stimuli/film.wav")
    return workflow.open_subject(load_params(label, "sim", data_dir=f"{tree}", outputs_dir=f"{outputs}"))


def add_to_scan(path, kind, seed, sound):
    """Write into a scan file a slow rhythm, or what two balls of voxels answer to the film's blocks or its sound."""
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.float32)
    mean, times = data.mean(axis=3), np.arange(data.shape[3]) * film.T_R
    rng = np.random.default_rng([seed, 9])
    if kind == "rhythm":
        phase = 2 * np.pi * ndimage.gaussian_filter(rng.random(mean.shape), 4)
        wave = np.cos(2 * np.pi * times / RHYTHM + phase[..., None] * 20)
        data += 0.007 * mean[..., None] * wave
    else:
        course = answer_to_sound(sound, times, rng) if kind == "sound_late" else answer_to_blocks(kind, times)
        data += 0.02 * mean[..., None] * balls(mean)[..., None] * (course - course.mean())
    nib.save(nib.Nifti1Image(np.round(data).astype(np.int16), image.affine, image.header), path)


def answer_to_blocks(kind, times):
    """Response to speech against music at ``times``, of height 1; late for ``blocks_late``."""
    fine = np.arange(0, times[-1] + film.T_R, STEP)
    boxcar = np.zeros(len(fine))
    for onset, length, what in film.film_blocks(times[-1] + film.T_R):
        boxcar[(fine >= onset) & (fine < onset + length)] = what == "speech"
    kernel = film.canonical_response if kind == "blocks" else late_response
    course = np.convolve(boxcar, kernel(np.arange(0, 32, STEP)))[: len(fine)]
    return np.interp(times, fine, course / course.max())


def answer_to_sound(sound, times, rng):
    """Late response to a random sum of the sound's MFCCs at ``times``, as spread as that to the blocks."""
    heard = features.mfcc_features(sound, **audit.SETTINGS)
    frames = (heard.frames - heard.frames.mean(axis=0)) / heard.frames.std(axis=0)
    fine = np.arange(0, times[-1] + film.T_R, STEP)
    drive = np.interp(fine, heard.frame_times, ndimage.uniform_filter1d(frames, 10, axis=0) @ rng.normal(size=13))
    course = np.interp(times, fine, np.convolve(drive, late_response(np.arange(0, 32, STEP)))[: len(fine)])
    return 0.4 * course / course.std()


def late_response(times):
    """A response that peaks at 7 s, is half as wide again as the canonical one, and never falls below 0."""
    return stats.gamma.pdf(times, 6, scale=1.4)


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
        "n_voxels": len(voxels),
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
    "blocks_late": planted_region_figures,
    "sound_late": planted_region_figures,
    "speed": speed_figures,
}


def summary(rows):
    """The figures: one row each, with how many subjects stand behind it, what is asked, and whether that holds."""
    lines = []

    def add(kind, figure, value, n, asked=None, counted=False):
        line = {"kind": kind, "figure": figure, "value": float(value), "n": n, "asked": common.in_words(asked)}
        lines.append(line | {"held": common.held(value, asked), "counted": counted})

    def count(kind, figure, found, asked=None):
        if found.isna().any():
            print(f"{kind}, {figure}: {found.isna().sum()} of {len(found)} are NaN and count as not found")
        add(kind, figure, (found == 1).mean(), len(found), asked, counted=True)

    kinds = {kind: part for kind, part in rows.groupby("kind", sort=False)}
    if "planted" in kinds:
        part = kinds["planted"]
        add("planted", "sensitivity, voxels with r2 >= 0.2", part["strong"].mean(), len(part), (">=", 0.95))
        add("planted", "sensitivity, voxels with r2 0.1 to 0.2", part["weak"].mean(), len(part), (">=", 0.60))
        add("planted", "sensitivity at family-wise p <= .05, r2 >= 0.2", part["strong_fwe"].mean(), len(part))
        add("planted", "sensitivity at family-wise p <= .05, r2 0.1 to 0.2", part["weak_fwe"].mean(), len(part))
        add("planted", "false discovery proportion, beyond 8 mm", part["fdp"].mean(), len(part), ("<=", 0.07))
        add("planted", "false discovery proportion, strict", part["fdp_strict"].mean(), len(part))
    for kind in ("planted", "null"):
        for column in ("n_planted", "n_voxels") if kind in kinds else ():
            for which in ("min", "max"):
                if column in kinds[kind] and not kinds[kind][column].isna().all():
                    add(kind, f"{column}, {which}", kinds[kind][column].agg(which), len(kinds[kind]))
    for kind in (*NULLS, "oneback"):
        if kind not in kinds:
            continue
        part, limits = kinds[kind], kind != "oneback"  # of one scan, the films are not independent: no limit
        asked = common.most(len(part), 0.05) if limits else None
        count(kind, "maps with any voxel at family-wise p <= .05", part["any"], asked)
        count(kind, "maps with any voxel at q <= .05", part["any_q"])
        columns = {"voxel_p": "one voxel", "p_past_sound": "one region, over the past"}
        if kind != "oneback":  # which was shown no blocks
            columns["p_past_blocks_sound"] = "one region, over past and blocks"
        for column, what in columns.items():
            for level in LEVELS:
                asked = common.most(len(part), level) if limits else None
                count(kind, f"{what}: p <= {level:.2f}", at_most(part[column], level), asked)
    for kind in ("blocks", "sound", "blocks_late", "sound_late"):
        if kind in kinds:
            part = kinds[kind]
            for model, asked in region_targets(kind, len(part)).items():
                count(kind, f"planted region, {model}: p <= .05", at_most(part[f"p_{model}"], 0.05), asked)
    if "speed" in kinds:
        add("speed", "seconds, map", kinds["speed"]["seconds_map"].mean(), 1, ("<=", 120))
        add("speed", "seconds, one region, both questions", kinds["speed"]["seconds_region"].mean(), 1, ("<=", 10))
    return pd.DataFrame(lines)


def at_most(p, level):
    """1 where p is at most the level, 0 where it is above, NaN where there is none."""
    return (p <= level).astype(float).where(p.notna())


def region_targets(kind, n):
    """What is asked of a planted region's p over the past, and over past and blocks; None: nothing."""
    always = (">=", 1.0)
    return {
        "past_sound": None if kind.endswith("_late") else always,
        "past_blocks_sound": {"sound": always, "sound_late": None}.get(kind, common.most(n, 0.05)),
    }


def figure(table, kind, figure):
    """One number of the summary; None where it was not measured."""
    rows = table[(table["kind"] == kind) & (table["figure"] == figure)]
    return round(float(rows["value"].iloc[0]), 4) if len(rows) else None


def main():
    """Measure everybody and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small subject of six kinds, at most two minutes")
    parser.add_argument("--rows", type=Path, help="JSON lines of every subject measured; those there are kept")
    parser.add_argument("--write", action="store_true", help="write the summary into the package")
    parser.add_argument("--only", nargs="+", choices=list(PEOPLE), help="some kinds alone")
    parser.add_argument("--people", type=int, help="subjects of each kind")
    parser.add_argument("--seed0", type=int, default=FIRST_SEED, help="seed of the first subject of each kind (300)")
    parser.add_argument("--processes", type=int, default=joblib.cpu_count(), help="subjects measured at once")
    options = parser.parse_args()
    if options.write and (options.quick or options.only or options.people or options.seed0 != FIRST_SEED):
        parser.error("--write puts everybody's figures into the package: not with --quick, --only, --people or --seed0")
    people = QUICK if options.quick else PEOPLE
    people = {kind: options.people or n for kind, n in people.items() if not options.only or kind in options.only}
    if "oneback" in people and not load_params("02", "oneback").data_path.is_dir():
        if options.write:
            parser.error(
                "--write takes every kind, and the one-back scan is not there - set data_dir in its parameters"
            )
        print("The one-back scan is not there: left out.", file=sys.stderr)
        people.pop("oneback")
    tasks = [(kind, options.seed0 + k) for kind, n in people.items() for k in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        rows_file = options.rows or Path(folder, "rows.jsonl")
        same = {"quick": options.quick, "code": common.code_of(__file__, inferred, simulate, workflow)}
        work, n = partial(measure, quick=options.quick), options.processes
        rows = common.measure_rows(tasks, work, rows_file, same=same, n_processes=n, alone=("speed",))
    table = summary(rows)
    print("SIMULATED subjects; one-back is a REAL scan without any sound. low, high: exact 95 % interval\n")
    shown = common.with_intervals(table)
    print(shown.to_string(index=False, float_format=lambda v: f"{v:.4f}", justify="left", na_rep=""))
    if options.write:
        write_table(CALIBRATION, table.drop(columns="counted"))
    oneback = rows[rows["kind"] == "oneback"]
    print(
        json.dumps(
            {
                "null_fwe": figure(table, "null", "maps with any voxel at family-wise p <= .05"),
                "fdp": figure(table, "planted", "false discovery proportion, beyond 8 mm"),
                "sensitivity": figure(table, "planted", "sensitivity, voxels with r2 >= 0.2"),
                "sensitivity_weak": figure(table, "planted", "sensitivity, voxels with r2 0.1 to 0.2"),
                "seconds_map": figure(table, "speed", "seconds, map"),
                "seconds_region": figure(table, "speed", "seconds, one region, both questions"),
                "oneback_false_positives": int(oneback["any"].sum()) if len(oneback) else None,
            }
        )
    )
    missed = common.missed(table, KNOWN_MISSES, ["kind", "figure"])
    if missed and not options.quick:
        sys.exit(f"not as asked: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
