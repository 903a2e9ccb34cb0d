"""How much memory do large recordings take, and does the estimate that a run begins with hold?

    python benchmarks/memory.py [--quick] [--sizes demo hcp long] [--steps 00-06] [--folder /data/large] [-p NAME VALUE]

SIMULATED recordings, written volume by volume: ``demo`` is as large as the demo's (641 volumes of 40 × 64 × 64),
``hcp`` as a run of the Human Connectome Project (1,200 volumes of 91 × 109 × 91, 300,000 voxels in the mask), ``long``
lasts two hours (5,000 volumes of 40 × 64 × 64, 41,000 voxels). ``bold-audio run`` executes each step in a program of
its own; five times a second the memory of it and all its descendants is read: the proportional set size, which counts
a page that processes share once, pages of mapped files included. For every step: seconds, the largest sum, and what
`machine.memory_needed` says of the run. Linux alone.

``--quick`` runs a small recording, of which only the estimate is checked. With ``--folder`` recordings and outputs stay
there and are used again. Ends with one line of JSON; the exit status is 1 where a step failed, took more than 8 GiB or
more than was estimated. The constants of the estimate were fitted to `demo`, `hcp` and `long`, so a run of these shows
whether it still holds, not that it holds for others.
"""

import argparse
import contextlib
import gzip
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import soundfile
import yaml
from resident import share_of_memory
from scipy import ndimage

from bold_audio import machine, runs, simulate
from bold_audio.files import write_json, write_table, write_whole
from bold_audio.film import SAMPLE_RATE, film_blocks, film_sound
from bold_audio.params import load_params
from bold_audio.simulated_anatomy import VOXEL_SIZE, draw_pose, epi_grid, simulated_head, simulated_t1w
from bold_audio.steps import chosen_steps

LIMIT = 8 * 2**30  # bytes
PERIOD = 0.2  # s between two looks at the memory
PIECE = 600  # s of sound made at once, whole blocks of music and speech
DELAY = 5.0  # s from the sound to the voxels that follow it
SUBJECT, DATASET, NAME = "big", "memory", "sub-big_task-film_run-1"


@dataclass(frozen=True)
class Size:
    """A recording: grid and voxel size (mm), volumes, repetition time (s), voxels in the mask."""

    shape: tuple
    voxel_size: float
    n_volumes: int
    t_r: float
    n_voxels: int

    @property
    def duration(self):
        """Seconds."""
        return round(self.n_volumes * self.t_r, 3)


SIZES = {
    "quick": Size((20, 24, 24), 8.0, 300, 0.608, 3_000),
    "demo": Size((40, 64, 64), 4.0, 641, 0.608, 41_000),
    "hcp": Size((91, 109, 91), 2.0, 1200, 0.72, 300_000),
    "long": Size((40, 64, 64), 4.0, 5000, 1.44, 41_000),
}


def simulate_recording(folder, size):
    """Write scan, T1w, sound, events and mask of a SIMULATED recording; nothing is held whole."""
    rng, func = np.random.default_rng(0), folder / f"sub-{SUBJECT}" / "func"
    pose = draw_pose(rng, size=epi_grid(size.shape)[1])
    image, brain, distances, affine = simulated_head(shape=size.shape, pose=pose)
    zoom = np.diag([size.voxel_size / VOXEL_SIZE] * 3 + [1.0])  # the simulated head has voxels of 4 mm
    t1w, t1w_affine, _ = simulated_t1w(rng, shape=size.shape, pose=pose)
    made = {"Manufacturer": "SIMULATED by bold_audio: nobody was scanned", "TaskName": "film"}
    write_json(folder / "dataset_description.json", {"Name": "SIMULATED large recording", "BIDSVersion": "1.8.0"})
    simulate.write_nifti(folder / f"sub-{SUBJECT}/anat/sub-{SUBJECT}_T1w.nii.gz", t1w, zoom @ t1w_affine)
    nearest = np.argsort(ndimage.distance_transform_edt(~brain).ravel(), kind="stable")[: size.n_voxels]
    mask = np.zeros(brain.size, np.uint8)
    mask[nearest] = 1
    simulate.write_nifti(folder / "mask.nii.gz", mask.reshape(brain.shape), zoom @ affine)
    loudness = write_film(folder / "film.wav", size)
    rows = [(f"{onset:.3f}", f"{length:.3f}", kind) for onset, length, kind in film_blocks(size.duration)]
    write_table(func / f"{NAME}_events.tsv", pd.DataFrame(rows, columns=["onset", "duration", "trial_type"]))
    write_json(func / f"{NAME}_bold.json", made | {"RepetitionTime": size.t_r})
    follows = (0.5 * (distances.min(axis=0) < 1)).astype(np.float32)
    path = func / f"{NAME}_bold.nii.gz"
    write_scan(path, drawn_volumes(rng, image, follows, loudness), zoom @ affine, size)


def write_film(path, size):
    """Write the film's sound piece by piece; how loud each volume's sound was `DELAY` ago, of variance 1."""
    loud = []
    with (
        write_whole(path) as part,
        soundfile.SoundFile(part, "w", SAMPLE_RATE, 1, subtype="PCM_16", format="WAV") as handle,
    ):
        for k, start in enumerate(np.arange(0, size.duration, PIECE)):
            y = film_sound(min(PIECE, size.duration - start), seed=k)
            handle.write(y)
            power = np.square(y[: len(y) // 441 * 441].reshape(-1, 441), dtype=np.float32).mean(axis=1)
            loud.append(np.log(power + 1))
    loud = np.concatenate(loud)  # every 10 ms
    heard = np.interp(np.arange(size.n_volumes) * size.t_r - DELAY, 0.01 * np.arange(len(loud)), loud)
    return (heard - heard.mean()) / heard.std()


def drawn_volumes(rng, image, follows, course):
    """Volumes of 1.3 % autoregressive noise, smooth in space, and of the sound where it is followed, as int16."""
    draw = lambda: rng.standard_normal(image.shape, dtype=np.float32)  # noqa: E731
    smooth = lambda field: ndimage.gaussian_filter(field, 0.7, mode="wrap")  # noqa: E731
    gain, state = smooth(draw()).std(), draw()
    for heard in course.astype(np.float32):
        state = np.float32(0.6) * state + np.float32(0.8) * smooth(draw()) / gain
        changed = image * (1 + np.float32(0.013) * (state + follows * heard))
        yield np.round(np.hypot(changed, 8 * draw())).astype(np.int16)


def write_scan(path, volumes, affine, size):
    """Write volumes as they come into a gzipped NIfTI."""
    header = nib.Nifti1Header()
    header.set_data_shape((*size.shape, size.n_volumes))
    header.set_data_dtype(np.int16)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_zooms((*[size.voxel_size] * 3, size.t_r))
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"SIMULATED by bold_audio"
    header["vox_offset"] = 352
    with write_whole(path) as part, gzip.open(part, "wb", compresslevel=1) as packed:
        header.write_to(packed)
        packed.write(bytes(352 - packed.tell()))
        for volume in volumes:
            packed.write(volume.tobytes(order="F"))


def watch(command):
    """Run a command: exit status, seconds, largest memory of it and its descendants (bytes), last line it wrote."""
    begun, largest = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, stderr=said) as running:
        tree = psutil.Process(running.pid)
        while running.poll() is None:
            with contextlib.suppress(psutil.Error):
                largest = max(largest, sum(map(share_of_memory, [tree, *tree.children(recursive=True)])))
            time.sleep(PERIOD)
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1]
    return running.returncode, time.perf_counter() - begun, largest, last


def measure(name, folder, steps, given):
    """Simulate one recording where it is not there yet, and run its steps one by one: a row for each."""
    size, data = SIZES[name], folder / name / "data"
    where = {"data_dir": data, "outputs_dir": folder / name / "outputs", "models_dir": folder / name / "models"}
    where = {key: str(path) for key, path in where.items()}
    where |= {"audio_path": "film.wav", "mask": "mask.nii.gz", "data_note": "SIMULATED recording"}
    grid = " x ".join(map(str, size.shape))
    print(f"\n{name}: {size.n_volumes} volumes of {grid}, {size.n_voxels:,} voxels in the mask", flush=True)
    if not list(data.glob(f"sub-{SUBJECT}/func/*_bold.nii.gz")):
        code, seconds, largest, said = watch([sys.executable, __file__, "--simulate", name, "--folder", str(folder)])
        print(f"  simulation         {seconds:7.0f} s  {largest / 2**30:5.2f} GiB")
        if code:
            sys.exit(said)
    params = load_params(subject=SUBJECT, dataset=DATASET, **(where | given))
    needed = machine.memory_needed(runs.locate_runs(params), params)
    command = [f"{common.SCRIPTS}/bold-audio", "run", "--subject", SUBJECT, "--dataset", DATASET, "--force"]
    command += common.words_of(where | given)
    rows = []
    for step in steps:
        code, seconds, largest, said = watch([*command, "--steps", step[:2]])
        row = {"size": name, "step": step, "status": code, "seconds": round(seconds), "GiB": round(largest / 2**30, 3)}
        rows.append(row | {"of_estimate": round(largest / needed, 3)})
        print(f"  {step:18s} {seconds:7.0f} s  {row['GiB']:5.2f} GiB of {needed / 2**30:.2f} estimated", flush=True)
        if code:
            print(f"    status {code}: {said}")
    return rows


def main():
    """Simulate, run, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small recording alone (5 minutes)")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["demo", "hcp", "long"])
    parser.add_argument("--steps", default="00-06")
    parser.add_argument("--folder", type=Path, help="where recordings and outputs stay")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--simulate", choices=list(SIZES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.simulate:
        return simulate_recording(options.folder / options.simulate / "data", SIZES[options.simulate])
    print("SIMULATED recordings")
    given, rows = {key: yaml.safe_load(value) for key, value in options.p}, []
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        for name in ["quick"] if options.quick else options.sizes:
            rows += measure(name, folder.resolve(), chosen_steps(options.steps), given)
    print(json.dumps({"quick": options.quick, "simulated": True, "limit_GiB": LIMIT / 2**30, "steps": rows}))
    if any(row["status"] or row["GiB"] * 2**30 > LIMIT or row["of_estimate"] > 1 for row in rows):
        sys.exit("a step failed or took too much: see above")


if __name__ == "__main__":
    main()
