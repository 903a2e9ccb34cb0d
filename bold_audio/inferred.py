"""A subject's inference over the whole run: voxels and regions held against surrogates, written, and read again."""

from pathlib import Path

import numpy as np
import pandas as pd

from bold_audio import brain, contrast, data, gram, region_inference, significance, sweep, voxel_inference
from bold_audio.files import write_arrays, write_table
from bold_audio.pairing import scale_on
from bold_audio.prepare import MLP_ONLY
from bold_audio.scores import evenly_spaced
from bold_audio.significance import QUESTIONS, WITHIN

BRAIN_VOXELS = 2000  # evenly spaced ones, of which the filter of the regions' inference is estimated
PICKED = "speech_music"  # found by the film's blocks, which the sound tells: over the past alone its p is a circle
BLOCK_STEP = 2.0  # s: the blocks are in the past at delays of the window at most so far apart
COLUMNS = ["region", "model", "over", "gain", "partial_r", "p", "n_surrogates", "delay", "first_delay", "last_delay"]
COLUMNS += ["n_voxels", "n_region", "null_low", "null_high"]
STEP = "inference_map", "inference_regions"


def ensure_voxels(subject):
    """Voxels that follow the sound beyond their past: read again where inputs, parameters and code are the same.

    Writes ``inference_voxels.npz`` and the maps of z, p, q and delay.

    Returns
    -------
    voxel_inference.VoxelInference
    """
    import bold_audio.inferred as this

    key = subject.result_key(this, without=MLP_ONLY)
    path = subject.path("inference_voxels.npz")
    if not subject.has(STEP[0], key, path.name):
        found = infer_subject_voxels(subject)
        arrays = {name: found.voxels[name].to_numpy() for name in found.voxels}
        counts = np.array([found.n_shifts, found.n_randomised])
        write_arrays(path, arrays | {"counts": counts})
        write_voxel_maps(subject, found)
        subject.record(STEP[0], key=key)
    with np.load(path) as kept:
        voxels = pd.DataFrame({name: kept[name] for name in kept.files if name != "counts"})
        return voxel_inference.VoxelInference(voxels, *map(int, kept["counts"]))


def infer_subject_voxels(subject, *, seed=None):
    """`voxel_inference.infer_voxels` of a subject."""
    params, run, rows = subject.params, subject.run, subject.whole_run
    Y = data.smooth_volumes(run, params.sweep_fwhm, until=len(run.volumes), cache_path=params.cache_path)
    volumes = np.arange(rows[0] - params.history_order, rows[-1] + 1)
    taps = _taps(Y, volumes, rows, params)
    grid = voxel_inference.delay_grid(params.delays, run.files.t_r)
    design = subject.designs["sound"]
    X = np.stack([sweep.features_of(design.at(delay), taps, rows) for delay in grid.offsets])
    nuisance = voxel_inference.drift_of(run.files.volume_times, run.files.starts, rows, taps)
    slabs = gram.Slabs(Y, volumes, rows, taps, min(params.chunk_voxels, sweep.SLAB))
    seed = params.seed if seed is None else seed
    return voxel_inference.infer_voxels(slabs, X, grid, nuisance=nuisance, shifts=_shifts(subject, grid), seed=seed)


def ensure_regions(subject):
    """What the sound adds in every region, with its p: ``inference_regions.tsv``, made once.

    Returns
    -------
    DataFrame
        ``region, model, over, gain, partial_r, p, n_surrogates, delay, first_delay, last_delay, n_voxels`` (used, of
        the region's ``n_region``): ``model`` is past_sound or, where the film has blocks, past_blocks_sound too; delays
        (s) are those of the outer folds; ``null_low, null_high`` hold the middle 95 % of the surrogates' gains. p is
        missing for `PICKED` over the past alone.
    """
    import bold_audio.inferred as this

    key = subject.result_key(this, without=MLP_ONLY)
    path = subject.path("inference_regions.tsv")
    if not subject.has(STEP[1], key, path.name):
        write_table(path, infer_subject_regions(subject, asked_regions(subject)))
        subject.record(STEP[1], key=key)
    return pd.read_csv(path, sep="\t")


def asked_regions(subject):
    """Regions that are asked about: all but the whole brain, which is the map's, and `speech_music` where there is one.

    The voxels that answer to speech and music blocks are found inside train alone.
    """
    whole, params = subject.run.whole, subject.params
    asked = {name: roi for name, roi in subject.run.regions.items() if name != whole and roi.any()}
    if subject.blocks is not None:
        how = {"t_r": subject.run.files.t_r, "order": params.history_order, "chunk_voxels": params.chunk_voxels}
        boxcar = subject.designs["blocks"].at(float(np.median(params.delays)))
        found = contrast.blocks_region(subject.Y, boxcar, train=subject.split.train, **how)
        asked |= {PICKED: found} if found.any() else {}
    return asked


def infer_subject_regions(subject, regions, *, design=None, questions=None, n_randomised=None, seed=None):
    """`region_inference.infer_regions` of a subject for every question its film allows.

    Parameters
    ----------
    subject : Subject
    regions : dict of str to array of bool, shape (n_voxels,)
    design : pairing.SoundDesign, optional
        Another sound in place of its own.
    questions : sequence of str, optional
        Some of `significance.QUESTIONS`.
    n_randomised, seed : int, optional
        As for `region_inference.infer_regions`; its usual number, and the parameter ``seed``, without them.

    Returns
    -------
    DataFrame
        As `ensure_regions`.
    """
    params = subject.params
    grid = voxel_inference.delay_grid(params.delays, subject.run.files.t_r)
    design = design or subject.designs["sound"]
    members = {name: spread(roi) for name, roi in regions.items()}
    questions = questions or list(QUESTIONS)
    options = {
        "shifts": _shifts(subject, grid),
        "seed": params.seed if seed is None else seed,
        "n_randomised": region_inference.N_RANDOMISED if n_randomised is None else n_randomised,
    }
    lines = []
    for model in questions:
        with_blocks = model == WITHIN
        if not members or (with_blocks and subject.blocks is None):
            continue
        folds = [_fold(subject, members, design, grid, fit, held, with_blocks) for fit, held in subject.outer_folds()]
        for name, one in region_inference.infer_regions(folds, grid, **options).items():
            lines.append(
                {
                    "region": name,
                    "model": model,
                    "over": QUESTIONS[model],
                    "gain": one.gain,
                    "partial_r": one.partial_r,
                    "p": np.nan if name == PICKED and not with_blocks else one.p,
                    "n_surrogates": one.n_surrogates,
                    "delay": float(np.median(one.delays)),
                    "first_delay": float(one.delays.min()),
                    "last_delay": float(one.delays.max()),
                    "n_voxels": len(members[name]),
                    "n_region": int(regions[name].sum()),
                    "null_low": float(np.quantile(one.surrogates, 0.025)),
                    "null_high": float(np.quantile(one.surrogates, 0.975)),
                }
            )
    return pd.DataFrame(lines, columns=COLUMNS)


def spread(roi):
    """Indices of a region's voxels, or of `region_inference.MOST_VOXELS` evenly spaced ones of a larger region."""
    return evenly_spaced(np.flatnonzero(roi), region_inference.MOST_VOXELS)


def _fold(subject, members, design, grid, fit, held, with_blocks):
    """One outer block: everything filtered, centred and scaled by what the fit says."""
    params, rows = subject.params, subject.whole_run
    volumes = np.arange(rows[0] - params.history_order, rows[-1] + 1)
    until = slice(None, rows[-1] + 1)
    # Of the brain: what a region gains must not depend on which others are asked about.
    brain = evenly_spaced(np.arange(subject.Y.shape[1]), BRAIN_VOXELS)
    taps = _taps(np.asarray(subject.Y[until, brain]), volumes, fit, params)
    everything = np.unique(np.concatenate(list(members.values())))
    Y = np.asarray(subject.Y[until, everything], dtype=np.float64)
    Y = Y - Y[fit].mean(axis=0)
    white = gram.filtered(Y, taps, rows)
    where = np.searchsorted(rows, fit)
    X = np.stack([_scaled(design.at(delay), taps, rows, where) for delay in grid.offsets])
    free = np.zeros((len(rows), 0))
    if with_blocks:
        first, last = grid.delays[0], grid.delays[-1]
        delays = np.linspace(first, last, 1 + int(np.ceil((last - first) / BLOCK_STEP)))
        free = np.hstack([_scaled(subject.designs["blocks"].at(d), taps, rows, where) for d in delays])
    y = {name: white[:, np.searchsorted(everything, inside)] for name, inside in members.items()}
    return region_inference.Fold(where, np.searchsorted(rows, held), y, X, free)


def _scaled(A, taps, rows, fit):
    return scale_on(gram.filtered(A, taps, rows), fit)[0]


def _taps(Y, volumes, rows, params):
    """The filter that whitens ``rows``, one for all voxels of Y."""
    # Estimated with the drift in, unlike that of `whitening`. Voxels lose it afterwards, by cosines filtered alike
    # (`drift_of`); of regions the filter itself takes what it can. The rates in calibration.tsv were measured so.
    how = {"order": params.history_order, "chunk_voxels": params.chunk_voxels}
    return gram.shared_filter(Y, volumes=volumes, train=rows, **how)


def _shifts(subject, grid):
    rows = subject.whole_run
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return significance.admissible_shifts(
        len(rows),
        subject.run.files.t_r,
        longest_delay=grid.delays[-1],
        block_length=subject.block_length,
        starts=(0, *breaks),
    )


def calibration():
    """How often the procedure is wrong where nothing is there: ``kind, figure, value, n, asked, held``."""
    # One kind of scan is called "null", which pandas would take for a missing value.
    path = Path(__file__).with_name("calibration.tsv")
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values={"value": ["n/a"]})


def write_voxel_maps(subject, found):
    """Maps of what `ensure_voxels` found, in the scan's own space."""
    about = (
        f"whole run, {len(subject.whole_run)} volumes, past and drift taken off, {subject.params.sweep_fwhm:g} mm "
        f"smoothing, {found.n_shifts} circular shifts and {found.n_randomised} shifts of phase-randomised sound"
    )
    sure = found.voxels["q"].to_numpy() <= significance.LEVEL
    texts = {
        "z": "evidence of the sound, scaled by the voxel's own circular designs",
        "p": "p of z among the surrogates of all voxels",
        "q": "false discovery rate (Benjamini and Hochberg) of p",
        "pfwe": "family-wise p of z among the largest of all voxels in each surrogate",
        "delay": "posterior median of the delay, s, where q is at most 0.05",
        "delaylow": "lower end of the delay's 95 % interval, s, where q is at most 0.05",
        "delayhigh": "upper end of the delay's 95 % interval, s, where q is at most 0.05",
    }
    columns = {"pfwe": "p_fwe", "delaylow": "low", "delayhigh": "high"}
    for stat, text in texts.items():
        values = found.voxels[columns.get(stat, stat)].to_numpy()
        values = np.where(sure, values, np.nan) if stat.startswith("delay") else values
        brain.write_map(
            subject.run, subject.params, values, model="inference", stat=stat, description=f"{text}; {about}"
        )
