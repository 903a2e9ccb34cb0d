"""Subjects with a known answer, written as a BIDS tree like that of ds003688; all of it is SIMULATED."""

import functools
import gzip
import inspect
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import soundfile
from scipy import ndimage

from bold_audio.features import mfcc_features, read_table
from bold_audio.files import DataError, ParameterError, file_md5, read_json, write_json, write_table, write_whole
from bold_audio.film import SAMPLE_RATE, T_R, add_signal, film_blocks, film_sound, plant
from bold_audio.locking import lock, remove_scratch
from bold_audio.simulated_anatomy import (
    FULL_SHAPE,
    REGIONS,
    VOXEL_SIZE,
    draw_pose,
    epi_grid,
    rotation,
    simulated_head,
    simulated_t1w,
)

RUN = "ses-mri3t_task-film_run-1"
SHARED = ("README", "participants.tsv", "dataset_description.json", "film*")  # what all subjects of a tree share
DATASET_NAME = "SIMULATED film fMRI with a known answer (bold_audio)"
FILM_VERSION = 1  # count up when the same seed gives another sound
MFCC = {"sample_rate": SAMPLE_RATE, "n_mfcc": 13, "n_fft": 2048, "hop_length": 512}
README = """This dataset is SIMULATED. Nobody was scanned, and no film exists.

bold_audio made the sound (stimuli/film.wav) and the scans, with a known answer planted in them: two auditory regions
follow the sound's MFCCs at known delays, everything else is noise. The answer is in derivatives/truth.
Names and layout follow OpenNeuro ds003688, so that the same programs read both; nothing here was ever measured.
"""
NOTES = {
    "r2": "share of the voxel's variance over the run that the sound causes, before motion and rounding to integers",
    "best_single_delay": "by the response of the analysis: the noiseless response regressed on the means in "
    "[k TR - delay, (k + 1) TR - delay) of the MFCCs (delay) or of the MFCCs convolved with the planted kernel (hrf)",
    "noise": "ar_share of it autoregressive (ar_rho), the rest white; on top drift of `drift` times its deviation, "
    "cosines of 1 to 3 half-cycles over the run; all together with the sound 1 to 1.5 % of the voxel's mean",
}


def smooth(field, fwhm):
    """Smooth a volume; wraps round, so that the variance of noise stays the same everywhere."""
    return ndimage.gaussian_filter(field, fwhm / VOXEL_SIZE / np.sqrt(8 * np.log(2)), mode="wrap") if fwhm else field


def smooth_noise(rng, *, keep, n_volumes, ar_rho, ar_share, drift, fwhm):
    """Noise of variance 1 over time, with drift on top, smooth in space.

    Parameters
    ----------
    rng : numpy Generator
    keep : bool array of shape (i, j, k)
        Voxels to return.
    n_volumes : int
    ar_rho, ar_share : float
        Coefficient of the autoregressive part, and its share of the variance; the rest is white.
    drift : float
        Standard deviation of the drift: cosines of one, two and three half-cycles, smooth over 24 mm.
    fwhm : float
        Smoothness, in mm.

    Returns
    -------
    array of shape (n_volumes, n_kept)
        float32.
    """
    point = np.zeros(keep.shape, dtype=np.float32)
    point[0, 0, 0] = 1
    gain, slow_gain = (np.sqrt((smooth(point, width) ** 2).sum()) for width in (fwhm, 24.0))
    draw = functools.partial(rng.standard_normal, keep.shape, dtype=np.float32)
    state, noise = draw(), np.empty((n_volumes, np.count_nonzero(keep)), dtype=np.float32)
    for k in range(n_volumes):
        noise[k] = smooth(np.sqrt(ar_share) * state + np.sqrt(1 - ar_share) * draw(), fwhm)[keep] / gain
        state = ar_rho * state + np.sqrt(1 - ar_rho**2) * draw()
    waves = np.cos(np.pi * np.outer(np.arange(n_volumes) + 0.5, [1, 2, 3]) / n_volumes) / [1, 2, 3]
    for wave in (drift / np.sqrt((waves**2).mean(axis=0).sum()) * waves.T).astype(np.float32):
        noise += wave[:, None] * (smooth(draw(), 24.0)[keep] / slow_gain)
    return noise


def head_motion(rng, n_volumes, size):
    """Slow random motion from 0: shifts along x, y, z that reach ``size`` mm, turns that do so at 80 mm.

    Returns an array of shape (n_volumes, 6), in mm and radians.
    """
    walk = ndimage.gaussian_filter1d(np.cumsum(rng.standard_normal((n_volumes, 6)), axis=0), 8, axis=0)
    walk -= walk[0]
    reach = np.abs(walk).reshape(n_volumes, 2, 3).max(axis=(0, 2))
    return walk * np.repeat(size / reach / [1, 80], 3)


def simulated_volumes(rng, image, amplitude, changes, *, motion=None, thermal=8.0):
    """Turn relative changes into raw-looking images.

    Parameters
    ----------
    rng : numpy Generator
    image, amplitude : arrays of shape (i, j, k)
        Mean intensity, 0 in air, and standard deviation over time.
    changes : array of shape (n_volumes, n_voxels)
        Unit variance, for the voxels with ``image`` above 0.
    motion : array of shape (n_volumes, 6), optional
        See `head_motion`.
    thermal : float
        Scanner noise: what air looks like (Rayleigh); next to nothing on top of tissue.

    Returns
    -------
    array of shape (i, j, k, n_volumes)
        int16, in the order of NIfTI files.
    """
    head, volume = image > 0, image.copy()
    volumes = np.empty((*image.shape, len(changes)), dtype=np.int16, order="F")
    middle = (np.array(image.shape) - 1) / 2
    for k, change in enumerate(changes):
        volume[head] = image[head] + amplitude[head] * change
        moved = volume
        if motion is not None:
            back = rotation(motion[k, 3:]).T
            moved = ndimage.affine_transform(
                volume, back, middle - back @ (middle + motion[k, :3] / VOXEL_SIZE), order=1
            )
        air = thermal * np.sqrt(2 * rng.standard_exponential(image.shape, dtype=np.float32))
        volumes[..., k] = np.round(np.hypot(moved, air))
    return volumes


def simulate_subject(
    data_dir,
    *,
    subject="sim",
    seed=0,
    n_volumes=641,
    shape=FULL_SHAPE,
    delays=(5.0, 6.5),
    response="hrf",
    strength=0.25,
    nonlinear=False,
    null=False,
    motion=0.0,
    ar_rho=0.85,
    ar_share=0.6,
    drift=0.4,
    fwhm=6.0,
    film_seed=0,
    runs=1,
    annotations=None,
    only_missing=False,
):
    """Simulate one subject who hears the film, and write scan, sound and truth as a BIDS tree.

    Parameters
    ----------
    data_dir : path
        Where the tree is, or will be. Subjects in one tree share its film.
    subject : str
        Letters and digits.
    seed : int
        With the label, decides head, noise and the subject's own part of the tuning; ``film_seed`` decides the rest.
    n_volumes, shape : int, (int, int, int)
        At least 50, and at least 10 voxels of 4 mm each way.
    delays : (float, float)
        Seconds from sound to response, left and right: the shift, or where the haemodynamic response peaks.
    response : {"hrf", "delay"}
    strength : float
        Share of the variance that the sound causes at a region's centre.
    nonlinear : bool
        Regions that answer above a threshold only, which a linear model of the same features predicts in part.
    null : bool
        Plant nothing.
    motion : float
        How far the head moves in the run, in mm.
    ar_rho, ar_share, drift, fwhm : float
        See `smooth_noise`.
    film_seed : int
        Decides the film, and the tuning that all its subjects share.
    runs : int
        Runs of the subject, each with a film of its own: the next ones are ``stimuli/film2.wav``, …
    annotations : path, optional
        The dataset's ``sound_annotation_syllables.tsv``: speech at the real film's syllable times.
    only_missing : bool
        Leave a subject alone that is complete by now, because another process made it.

    Returns
    -------
    Path
        The BOLD file, which is written last.

    Raises
    ------
    ParameterError
        If a parameter is out of range or the folder holds another dataset or film.
    DataError
        If the annotation table, or a film made before, is damaged.
    MachineError
        If another process makes this subject for more than ten minutes, or its film for more than five.
    """
    settings = {k: v for k, v in locals().items() if k not in ("data_dir", "annotations", "only_missing")}
    _check(settings)
    data_dir, label = Path(data_dir), f"sub-{subject}"
    with lock(data_dir / f".{label}.lock", wait=600, doing=f"the simulation of {label}"):
        if only_missing and scan_path(data_dir, subject).is_file():
            return scan_path(data_dir, subject)
        return _simulate(data_dir, settings, annotations)


def scan_path(data_dir, subject):
    """Path of a simulated subject's first run, which is written last: without it the subject is unfinished."""
    label = f"sub-{subject}"
    return Path(data_dir) / label / "ses-mri3t/func" / f"{label}_{RUN}_bold.nii.gz"


def _simulate(data_dir, settings, annotations):
    """Write the subject of checked settings; its lock is held."""
    subject, seed, n_volumes, film_seed, runs, strength, motion = (
        settings[k] for k in ("subject", "seed", "n_volumes", "film_seed", "runs", "strength", "motion")
    )
    shape, null = tuple(map(int, settings["shape"])), settings["null"]
    paths = [data_dir / f"stimuli/film{'' if k == 0 else k + 1}.wav" for k in range(runs)]
    with lock(data_dir / ".simulate.lock", wait=300, doing="the simulated film"):
        write_dataset(data_dir, subject)
        _remove_leftovers(data_dir, subject)
        films = [
            write_film(path, seed=film_seed + 1000 * k, n_volumes=n_volumes, annotations=annotations)
            for k, path in enumerate(paths)
        ]

    rng_head, rng_tuning, *rngs = np.random.default_rng([seed, *subject.encode()]).spawn(4)
    pose = draw_pose(rng_head, size=epi_grid(shape)[1])
    image, brain, distances, affine = simulated_head(shape=shape, pose=pose)
    moved = write_t1w(
        data_dir, f"sub-{subject}", rng=np.random.default_rng([seed, *subject.encode(), 1000]), shape=shape, pose=pose
    )
    amplitude = image * (0.0125 + 0.0025 * np.sin(np.indices(shape).sum(axis=0) / 5)).astype(np.float32)
    # Both sides answer to much the same sound, or no single delay would fit both; people share most of their tuning.
    tuning, both = np.random.default_rng([film_seed, 6]), (MFCC["n_mfcc"], 1)
    weights = 0.8 * tuning.standard_normal(both) + 0.5 * rng_tuning.standard_normal(both)
    weights = weights + 0.3 * tuning.standard_normal((MFCC["n_mfcc"], len(REGIONS)))
    weights *= np.exp(-np.arange(len(weights)) / 4)[:, None]  # ears follow the coarse spectrum more than its ripples,
    weights[0] *= 0.5  # and loudness is not everything
    answer = {k: settings[k] for k in ("delays", "response", "n_volumes", "nonlinear")} | {
        "strength": 0.0 if null else strength
    }
    noise = {k: settings[k] for k in ("ar_rho", "ar_share", "drift", "fwhm")}
    for k in reversed(range(runs)):  # the first run last: it completes the subject
        rng_noise, rng_motion = rngs if k == 0 else np.random.default_rng([seed, *subject.encode(), k]).spawn(2)
        sound = mfcc_features(paths[k], **MFCC)
        planted = plant(sound, brain=brain, distances=distances, amplitude=amplitude, weights=weights, **answer)
        changes = smooth_noise(rng_noise, keep=image > 0, n_volumes=n_volumes, **noise)
        add_signal(changes, planted.responses, r2=planted.r2[image > 0], region=planted.label[image > 0])
        moves = head_motion(rng_motion, n_volumes, motion) if motion else None
        volumes = simulated_volumes(rng_noise, image, amplitude, changes, motion=moves)
        if k:
            folder = data_dir / f"sub-{subject}" / "ses-mri3t/func"
            name = f"sub-{subject}_{RUN.replace('run-1', f'run-{k + 1}')}"
            write_run(folder / name, volumes, affine, duration=films[k]["duration"])
    head = {"shift": pose.shift, "scale": pose.scale.ravel(), "turn": pose.turn, "epi_to_t1w": moved}
    facts = {"settings": settings, "film": films[0], "n_voxels_brain": int(brain.sum())}
    facts |= {"head": {name: array.tolist() for name, array in head.items()}}
    return write_subject(data_dir, volumes, planted, affine=affine, brain=brain, moves=moves, facts=facts)


def _remove_leftovers(data_dir, subject):
    """Remove what a killed process left half-written of this subject, or of what all subjects of the tree share."""
    for folder in (data_dir, data_dir / "derivatives/truth", data_dir / "stimuli"):
        for name in SHARED:  # by name: other subjects may be under way in this tree
            remove_scratch(folder, of=name)
    for folder in (data_dir, data_dir / "derivatives/truth"):
        remove_scratch(folder / f"sub-{subject}", below=True)


def _check(settings):
    """Refuse settings that cannot be right: name, rule, value, what to do."""

    def whole(low):
        return lambda v: isinstance(v, int | np.integer) and not isinstance(v, bool) and v >= low

    def within(low, high):
        return lambda v: isinstance(v, int | float | np.number) and not isinstance(v, bool) and low <= v <= high

    rules = {
        "runs": (whole(1), "be a whole number >= 1"),
        "subject": (lambda v: re.fullmatch("[A-Za-z0-9]+", str(v)), "be letters and digits"),
        "seed": (whole(0), "be a whole number >= 0"),
        "film_seed": (whole(0), "be a whole number >= 0"),
        "n_volumes": (whole(50), "be a whole number >= 50"),
        "shape": (lambda v: np.shape(v) == (3,) and all(map(whole(10), v)), "be three whole numbers >= 10"),
        "delays": (lambda v: np.shape(v) == (2,) and all(map(within(0, 12), v)), "be two numbers from 0 to 12 s"),
        "response": (lambda v: v in ("delay", "hrf"), "be delay or hrf"),
        "strength": (within(1e-6, 0.99), "be above 0 and at most 0.99 (null plants nothing)"),
        "motion": (within(0, 20), "be from 0 to 20 mm"),
        "ar_rho": (within(0, 0.999), "be from 0 to 0.999"),
        "ar_share": (within(0, 1), "be from 0 to 1"),
        "drift": (within(0, 10), "be from 0 to 10"),
        "fwhm": (within(0, 40), "be from 0 to 40 mm"),
    }
    for name, (holds, rule) in rules.items():
        if not holds(settings[name]):
            usual = inspect.signature(simulate_subject).parameters[name].default
            raise ParameterError(f"{name} must {rule}, got {settings[name]!r} - the usual one is {usual!r}")


def write_dataset(data_dir, subject):
    """Write what describes the tree, and add the subject to ``participants.tsv``."""
    description, path = data_dir / "dataset_description.json", data_dir / "participants.tsv"
    if read_json(description, default={"Name": DATASET_NAME}).get("Name") != DATASET_NAME:
        raise ParameterError(f"data_dir must be new or hold simulated data, got {data_dir} - choose another folder")
    about = {"Name": DATASET_NAME, "BIDSVersion": "1.8.0", "GeneratedBy": [{"Name": "bold_audio simulate"}]}
    write_json(description, about | {"DatasetType": "raw", "License": "CC0"})
    write_json(data_dir / "derivatives/truth/dataset_description.json", about | {"DatasetType": "derivative"})
    with write_whole(data_dir / "README") as part:
        part.write_text(README)
    row = {"participant_id": f"sub-{subject}", "sex": None, "age": None, "fMRI": "yes", "simulated": "yes"}
    rows = read_table(path, columns=("participant_id",)).to_dict("records") if path.is_file() else []
    rows = [r for r in rows if r["participant_id"] != row["participant_id"]] + [row]
    write_table(path, pd.DataFrame(sorted(rows, key=lambda r: r["participant_id"])))


def write_film(path, *, seed, n_volumes, annotations=None):
    """Write the film's sound and, beside it, what it was made from, unless it is there already; return these facts."""
    facts = {"simulated": True, "seed": seed, "n_volumes": n_volumes, "duration": round(n_volumes * T_R, 3)}
    facts |= {"sample_rate": SAMPLE_RATE, "version": FILM_VERSION, "annotations_md5": None}
    syllables = None
    if annotations is not None:
        table = read_table(annotations, columns=("item", "onset", "offset")).query("offset <= @facts['duration']")
        syllables = list(zip(table["item"].astype(str), table["onset"], table["offset"], strict=True))
        facts["annotations_md5"] = file_md5(annotations)
    if path.is_file():
        known = read_json(path.with_suffix(".json"), default={})
        for name in facts:
            if known.get(name) != facts[name]:
                had = f"{known.get(name)!r} as in the film at {path}"
                raise ParameterError(f"{name} must be {had}, got {facts[name]!r} - choose another folder")
        if known.get("md5") != file_md5(path):
            raise DataError(f"{path} is not the film that film.json describes - delete it, it is made again")
        return known
    with write_whole(path) as part:
        soundfile.write(
            part, film_sound(facts["duration"], seed=seed, syllables=syllables), SAMPLE_RATE, subtype="PCM_16"
        )
        facts["md5"] = file_md5(part)
        write_json(path.with_suffix(".json"), facts)
    return facts


def write_subject(data_dir, volumes, planted, *, affine, brain, moves, facts):
    """Write one subject's truth, sidecar, events and, last of all, the scan; return its path."""
    label = f"sub-{facts['settings']['subject']}"
    bold, truth = scan_path(data_dir, facts["settings"]["subject"]), data_dir / "derivatives/truth" / label
    bids = bold.with_name(f"{label}_{RUN}")
    for old in (bold, truth / "truth.json"):  # an interrupted run must not look complete
        old.unlink(missing_ok=True)
    files = {"r2": f"{bids.name}_stat-r2_statmap.nii.gz", "regions": f"{bids.name}_desc-auditory_dseg.nii.gz"}
    files |= {"brain": f"{bids.name}_desc-brain_mask.nii.gz", "responses": f"{bids.name}_desc-noiseless_timeseries.tsv"}
    write_nifti(truth / files["r2"], planted.r2.astype(np.float32), affine)
    write_nifti(truth / files["regions"], planted.label.astype(np.uint8), affine)
    write_nifti(truth / files["brain"], brain.astype(np.uint8), affine)
    write_table(truth / files["responses"], pd.DataFrame(planted.responses, columns=list(REGIONS)))
    if moves is not None:
        columns = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
        files["motion"] = f"{bids.name}_desc-motion_timeseries.tsv"
        write_table(truth / files["motion"], pd.DataFrame(moves, columns=columns))
    write_json(truth / "truth.json", truth_facts(planted, facts) | {"files": files})
    return write_run(bids, volumes, affine, duration=facts["film"]["duration"])


def write_t1w(data_dir, label, *, rng, shape, pose):
    """Write a T1w of the head and its sidecar; return where the head went meanwhile: mm in the EPI → mm in the T1w."""
    image, affine, moved = simulated_t1w(rng, shape=shape, pose=pose)
    path = data_dir / label / "ses-mri3t/anat" / f"{label}_ses-mri3t_run-1_T1w.nii.gz"
    made = "SIMULATED by bold_audio from the template's tissues: nobody was scanned"
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"Manufacturer": made, "SequenceName": made})
    write_nifti(path, image, affine)
    return moved


def write_run(bids, volumes, affine, *, duration):
    """Write a run's sidecar, events and, last of all, the scan; ``bids`` is the beginning of their names."""
    made, bold = "SIMULATED by bold_audio", bids.with_name(f"{bids.name}_bold.nii.gz")
    sidecar = {"RepetitionTime": T_R, "TaskName": "film", "TaskDescription": f"{made}: music and speech in turn"}
    sidecar |= {"MRAcquisitionType": "3D"} | dict.fromkeys(("Manufacturer", "InstitutionName", "Sequence"), made)
    write_json(bids.with_name(f"{bids.name}_bold.json"), sidecar)
    rows = [(f"{onset:.3f}", f"{length:.3f}", kind) for onset, length, kind in film_blocks(duration)]
    events = pd.DataFrame(rows, columns=["onset", "duration", "trial_type"])
    write_table(bids.with_name(f"{bids.name}_events.tsv"), events)
    write_nifti(bold, volumes, affine)
    return bold


def truth_facts(planted, facts):
    """Everything that was planted, and every setting, in a form JSON can hold."""
    settings, null = facts["settings"], facts["settings"]["null"]
    best = [
        {k: None if null or v is None else v[i] for k, v in planted.best.items()} | {"fir": None}
        for i in range(len(REGIONS) + 1)
    ]
    regions = [
        {
            "name": name,
            "label": i + 1,
            "delay": None if null else settings["delays"][i],
            "best_single_delay": best[i],
            "n_voxels": int((planted.label == i + 1).sum()),
            "weights": [round(float(w), 6) for w in planted.weights[:, i]],
        }
        for i, name in enumerate(REGIONS)
    ]
    power = [planted.r2[planted.label == region["label"]].sum() for region in regions]
    pooled = None if null else round(float(np.average(settings["delays"], weights=power)), 3)
    pooled = {"delay": pooled, "best_single_delay": best[-1]}
    return facts | {"simulated": True, "regions": regions, "pooled": pooled, "features": MFCC, "notes": NOTES}


def write_nifti(path, data, affine):
    """Write a gzipped NIfTI in scanner space, the same bytes each time."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"SIMULATED by bold_audio"
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if data.ndim == 4:
        image.header["pixdim"][4] = T_R
    with (
        write_whole(path) as part,
        open(part, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0) as packed,
    ):
        image.to_stream(packed)
