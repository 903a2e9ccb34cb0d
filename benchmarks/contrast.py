"""How often the contrast of speech and music finds what is not there.

    python benchmarks/contrast.py [--quick] [--runs 500] [--seed0 2000]

SIMULATED noise of a run like that of ds003688 (641 volumes, repetition time 0.608 s, 13 blocks of 30 s), autoregressive
and white, with slow drift, smooth in space; nothing follows the blocks. Counted are maps with any voxel over the
threshold (whole run; train alone), voxels with a nominal p of .05 or less, and regions with p of .05 or .01 or less.
The methods were developed on seeds 1000 to 1999. Ends with one line of JSON; the exit code is 0 whatever comes out.
"""

import argparse
import json

import numpy as np
import pandas as pd
from scipy import stats

from bold_audio import contrast, film
from bold_audio.features import block_features
from bold_audio.pairing import make_design
from bold_audio.simulate import smooth_noise

N, T_R, DELAY, ORDER, END_OF_TRAIN = 641, 0.608, 5.0, 4, 448
GRID = (12, 14, 12)  # voxels of 4 mm
NOISES = {
    "as simulated subjects": {"ar_rho": 0.85, "ar_share": 0.6, "drift": 0.4, "fwhm": 6.0},
    "strong drift": {"ar_rho": 0.85, "ar_share": 0.6, "drift": 1.0, "fwhm": 6.0},
    "slower": {"ar_rho": 0.95, "ar_share": 0.6, "drift": 0.4, "fwhm": 6.0},
    "white": {"ar_rho": 0.0, "ar_share": 0.0, "drift": 0.0, "fwhm": 0.0},
}


def film_design():
    """Blocks, their boxcar as the scan is expected to show it, rows that it covers, and pairs of blocks."""
    blocks = pd.DataFrame(film.film_blocks(N * T_R), columns=["onset", "duration", "trial_type"])
    times = np.arange(N) * T_R
    boxcar = make_design(block_features(blocks, onset=0, duration=N * T_R), times, T_R, response="hrf").at(DELAY)
    settled = np.arange(17, N)
    pairs = contrast.block_pairs(blocks, times, rows=settled, t_r=T_R, delay=DELAY)
    return boxcar, np.flatnonzero(np.isfinite(boxcar[:, 0]))[ORDER:], settled, pairs


def measure(seed, how, design):
    """One run of noise: any voxel over the threshold in the run and in train, nominal share, p of three regions."""
    boxcar, rows, settled, pairs = design
    keep = np.ones(GRID, bool)
    Y = 1000 + 10 * smooth_noise(np.random.default_rng(seed), keep=keep, n_volumes=N, **how)
    maps = [contrast.contrast_map(Y, boxcar, rows=r, t_r=T_R, order=ORDER) for r in (rows, rows[rows < END_OF_TRAIN])]
    over = [bool(np.abs(one.t).max() > one.threshold) for one in maps]
    centre = np.linalg.norm(np.indices(GRID).reshape(3, -1).T - np.array(GRID) / 2, axis=1)
    regions = {f"within {size}": centre < size for size in (1, 2.5, 5)}
    found = contrast.region_contrast(contrast.region_courses(Y, regions), pairs, rows=settled, t_r=T_R)
    return [*over, np.mean(np.abs(maps[0].t) > stats.norm.isf(0.025)), *found["p"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 runs of each kind of noise")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed0", type=int, default=2000)
    options = parser.parse_args()
    n_runs, design, result = 10 if options.quick else options.runs, film_design(), {}
    for name, how in NOISES.items():
        made = np.array([measure(options.seed0 + k, how, design) for k in range(n_runs)])
        p = made[:, 3:]
        result[name] = {
            "maps_with_any_voxel": round(float(made[:, 0].mean()), 4),
            "train_maps_with_any_voxel": round(float(made[:, 1].mean()), 4),
            "voxels_nominal_05": round(float(made[:, 2].mean()), 4),
            "regions_05": round(float(np.mean(p <= 0.05)), 4),
            "regions_01": round(float(np.mean(p <= 0.01)), 4),
        }
        print(f"{name}: {n_runs} runs of SIMULATED noise, {result[name]}", flush=True)
    print(json.dumps({"benchmark": "contrast", "runs": n_runs, "seed0": options.seed0, "noise": result}))


if __name__ == "__main__":
    main()
