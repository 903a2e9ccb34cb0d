"""A subject's delays: swept once inside train, written, and re-read by every notebook that needs them."""

import nibabel as nib
import numpy as np
import pandas as pd

from bold_audio import brain, data, evidence, feature_grid, gram, significance, sweep, voxelwise
from bold_audio.files import write_arrays, write_table, write_text, write_whole
from bold_audio.prepare import MLP_ONLY

REGION = "region "  # before a region's name among the arrays of dt_gram.npz
MOST_LAGS = 2  # further windows tried, each one repetition time earlier


def ensure_sweep(subject):
    """The delay sweep of this subject: re-read where inputs, parameters and code are the same, else made.

    Writes ``dt_sweep.tsv``, ``dt_regions.tsv``, ``dt_voxels.npz``, ``dt_gram.npz``, ``best_dt.txt`` and the maps of
    responsive voxels and of each voxel's own delay.

    Returns
    -------
    sweep.DelaySweep
    """
    import bold_audio.delays as this

    key = subject.result_key(gram, evidence, significance, voxelwise, sweep, this, without=MLP_ONLY)
    paths = {name: subject.path(name) for name in ("dt_sweep.tsv", "dt_regions.tsv", "dt_voxels.npz", "dt_gram.npz")}
    mask_path = subject.path("responsive_mask.nii.gz")
    if subject.has("dt_sweep", key, *paths, mask_path.name):
        return _read_sweep(subject, paths, mask_path, subject.recorded("dt_sweep"))
    params, run = subject.params, subject.run
    Y = data.smooth_volumes(run, params.sweep_fwhm, until=subject.split.train[-1] + 1, cache_path=params.cache_path)
    found = sweep.sweep_delays(
        Y,
        delayed_sound(subject, params.delays),
        t_r=run.files.t_r,
        rows=subject.split.train,
        folds=subject.folds,
        order=params.history_order,
        alphas=params.alphas,
        regions=run.regions,
        delay_region=params.delay_region,
        target=params.sweep_target,
        choose_by=params.delay_by,
        block_length=subject.block_length,
        seed=params.seed,
        chunk_voxels=params.chunk_voxels,
    )
    write_table(paths["dt_sweep.tsv"], found.table)
    write_table(paths["dt_regions.tsv"], found.regions)
    write_arrays(paths["dt_voxels.npz"], {name: found.voxels[name].to_numpy() for name in found.voxels})
    matrices = {f"{REGION}{name}": np.stack([one.K for one in ones]) for name, ones in found.grams.items()}
    first = next(iter(found.grams.values()))[0].first
    write_arrays(paths["dt_gram.npz"], {"whitening": found.whitening, "first": np.array(first)} | matrices)
    write_text(subject.path("best_dt.txt"), f"{found.delay:.10g}\n")
    with write_whole(mask_path) as part:
        nib.save(nib.Nifti1Image((run.to_grid(found.responsive) > 0).astype(np.uint8), run.affine), part)
    write_delay_maps(subject, found)
    made = {"delay": found.delay, "region": found.region}
    subject.record("dt_sweep", key=key, **made, why=params.delay_by)
    return _read_sweep(subject, paths, mask_path, made)  # what was written is what is shown, by whichever process


def _read_sweep(subject, paths, mask_path, done):
    responsive = np.asarray(nib.load(mask_path).dataobj)[subject.run.mask] > 0
    table, regions = (pd.read_csv(paths[name], sep="\t") for name in ("dt_sweep.tsv", "dt_regions.tsv"))
    counts = regions.set_index("region")["n_voxels"]
    with np.load(paths["dt_voxels.npz"]) as voxels, np.load(paths["dt_gram.npz"]) as kept:
        known = pd.DataFrame({name: voxels[name] for name in voxels.files})
        names = [name.removeprefix(REGION) for name in kept.files if name.startswith(REGION)]
        first = int(kept["first"])
        grams = {name: [gram.Gram(K, first, int(counts[name])) for K in kept[f"{REGION}{name}"]] for name in names}
        whitening = kept["whitening"]
    return sweep.DelaySweep(table, regions, known, done["delay"], done["region"], responsive, grams, whitening)


def open_feature_grid(subject, found):
    """Every number of features and up to `MOST_LAGS` lags at every delay, from the sweep's Gram matrices.

    Parameters
    ----------
    subject : Subject
    found : sweep.DelaySweep

    Returns
    -------
    feature_grid.FeatureGrid
    """
    params = subject.params
    design = subject.designs["sound"].with_lags(MOST_LAGS)
    columns = [[design.at(delay)] for delay in params.delays]
    if subject.blocks is not None:
        for one, delay in zip(columns, params.delays, strict=True):
            one.append(subject.designs["blocks"].at(delay))
    return feature_grid.make_feature_grid(
        found.grams,
        np.stack([np.hstack(one) for one in columns]),
        target=params.sweep_target,
        whitening=found.whitening,
        rows=subject.split.train,
        folds=subject.folds,
        delays=params.delays,
        n_features=subject.sound.frames.shape[1],
        n_lags=MOST_LAGS,
        has_blocks=subject.blocks is not None,
    )


def delayed_sound(subject, delays):
    """Features of every volume at every delay."""
    design = subject.designs["sound"]
    return sweep.DelayedSound(np.asarray(delays, dtype=float), np.stack([design.at(delay) for delay in delays]))


def write_delay_maps(subject, found):
    """Write each voxel's own delay, its interval, p and skill, all inside train; NaN where it is not identifiable."""
    train = f"inside train, {len(subject.split.train)} volumes, {subject.params.sweep_fwhm:g} mm smoothing"
    voxels = found.voxels
    sure = voxels["p"].to_numpy() <= significance.LEVEL
    texts = {
        "delay": "posterior median of the delay, s",
        "low": "lower end of the 95 % interval of the delay, s",
        "high": "upper end of the 95 % interval of the delay, s",
        "p": "p of the sound's evidence among surrogates of the sound, one voxel at a time",
        "skill": "share of held-out error that the sound removes at the voxel's best delay and strength; it flatters",
    }
    for name, text in texts.items():
        values = voxels[name].to_numpy()
        shown = values if name in ("p", "skill") else np.where(sure, values, np.nan)
        stat = name if name in ("delay", "p", "skill") else f"delay{name}"
        brain.write_map(subject.run, subject.params, shown, model="sweep", stat=stat, description=f"{text}; {train}")
