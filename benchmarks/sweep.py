r"""This engine and its peers on the same arrays: the delay sweep summed over voxels, the map per voxel, and growth.

    python benchmarks/sweep.py [--quick]

SIMULATED runs: a fifth of the voxels follow 20 smooth features at one delay. Everybody fits the same models: ridge
with an intercept, 20 strengths, 5 blocked folds with gaps. What counts is the ratios, taken within one run of this
program; each time is the best of as many rounds for the engine as for its peers. Each peer has to find the engine's
error and strength, or the program ends with 1.

A peer's time at 41 delays is reckoned, not measured: a loop over delays does some things once (it cuts the folds out of
the run and centres them) and others for each delay, so the NumPy loop and scikit-learn are timed with one delay and
with three, and the line through both is followed to 41. himalaya's solver takes one delay in a call and does all of it
again in the next, so its time at one delay is multiplied. himalaya has no error summed over voxels: with one strength
for all voxels it still scores each of them. ``local_alpha=True``, a strength for every voxel, is what it is made for,
and is held against the engine's map of the same: that is the ratio of like with like.

``settings``: every number of features, windows and blocks of one region at every delay from one look at the run
(`FeatureGrid.settings`), which a control in notebook 03 shows.

OpenBLAS slows down up to tenfold where another program holds one of its cores, and not all alike. On a machine that
is not idle, compare on one core: OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=1. Ends with one line
of JSON.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from resident import resident
from scipy.ndimage import gaussian_filter1d
from threadpoolctl import threadpool_info

from bold_audio import feature_grid, gram, voxelwise
from bold_audio.splits import blocked_folds

N_FEATURES, N_DELAYS, FEW_DELAYS, PLANTED = 20, 41, 5, 3
N_WINDOWS = 3  # of settings
ALPHAS = np.append(2.0 ** np.arange(19), np.inf)
FINITE = np.minimum(ALPHAS, 1e30)  # peers get no infinity; 1e30 predicts the mean as well
TOLERANCE = 1e-4  # relative difference of errors
FEW_FOR_SLOPE = 3  # delays of a peer's second timing
WIDTHS = (512, 1024)  # voxels in a slab of the map
BACKENDS = ("numpy", "torch") if importlib.util.find_spec("himalaya") else ()


@dataclass(frozen=True)
class Sizes:
    """Shapes (n_volumes, n_voxels) that are measured; the last summed one gives the headline ratios."""

    summed: tuple = ((641, 35_000), (513, 163_840), (641, 163_840))
    mapped: tuple = (641, 35_000)
    voxels: tuple = (10_000, 35_000, 164_000, 500_000, 2_000_000)  # at 641 volumes
    volumes: tuple = (641, 1282, 2500, 5000)
    voxels_of_volumes: int = 35_000
    rounds: int = 2


QUICK = Sizes(((641, 8_192),), (641, 4_096), (4_000, 16_000, 32_000), (641, 1282), 8_000, 1)


def simulate(n_volumes, n_voxels, *, path=None):
    """Raw intensities with 1 % noise, the first fifth of the voxels following the features at one delay.

    Returns
    -------
    Y : array of shape (n_volumes, n_voxels), float32
        Memory-mapped where ``path`` is given.
    X : array of shape (n_delays, n_volumes, n_features)
    """
    rng = np.random.default_rng(0)
    longer = gaussian_filter1d(rng.standard_normal((n_volumes + N_DELAYS - 1, N_FEATURES)), 2, axis=0)
    longer /= longer.std(axis=0)
    X = np.stack([longer[N_DELAYS - 1 - d : N_DELAYS - 1 - d + n_volumes] for d in range(N_DELAYS)])
    level = rng.uniform(500, 1500, n_voxels).astype(np.float32)
    weights = rng.standard_normal((N_FEATURES, n_voxels // 5), dtype=np.float32)
    shape = (n_volumes, n_voxels)
    Y = np.empty(shape, np.float32) if path is None else np.memmap(path, np.float32, "w+", shape=shape)
    for row, heard in zip(Y, X[PLANTED].astype(np.float32), strict=True):
        rng.standard_normal(dtype=np.float32, out=row)
        row *= 10
        row += level
        row[: n_voxels // 5] += heard @ weights
    return Y, X


def take_turns(*functions, rounds):
    """Best seconds of each function over rounds in which they take turns, and what each returned last."""
    best, made = [np.inf] * len(functions), [None] * len(functions)
    for _ in range(rounds):
        for k, function in enumerate(functions):
            start = time.perf_counter()
            made[k] = function()
            best[k] = min(best[k], time.perf_counter() - start)
    return best, made


def folds_of(n_volumes):
    """Five blocked folds with 27 volumes left out on either side."""
    return blocked_folds(np.arange(n_volumes), n_folds=5, gap_volumes=27)


def summed_sweep(Y, X):
    """The engine: error summed over voxels and folds, array of shape (n_designs, n_alphas)."""
    rows = np.arange(len(Y))
    everywhere = {"all": np.ones(Y.shape[1], bool)}
    K = gram.gram_matrices(Y, volumes=rows, train=rows, regions=everywhere, scaled=False)["all"].K
    return gram.ridge_errors(gram.fold_products(K, X, folds_of(len(Y))), ALPHAS).sum(axis=1)


def product(Y):
    """The reference: one matrix product of the run with itself."""
    Y = np.asarray(Y)
    return Y @ Y.T


def squared(residual):
    """Sum of squares, float32 along rows and float64 over them."""
    return float(np.einsum("kv,kv->k", residual, residual).sum(dtype=np.float64))


def numpy_loop(Y, X):
    """Delays as one would write it: folds cut and centred once, one decomposition per delay, then all strengths."""
    errors = np.zeros((len(X), len(ALPHAS)))
    for fit, held in folds_of(len(Y)):
        level = Y[fit].mean(axis=0)
        fitted, target = Y[fit] - level, Y[held] - level
        for d, x in enumerate(X):
            U, s, Vt = np.linalg.svd(x[fit] - x[fit].mean(axis=0), full_matrices=False)
            components = U.T.astype(np.float32) @ fitted
            heard = (x[held] - x[fit].mean(axis=0)) @ Vt.T
            for k, alpha in enumerate(ALPHAS):
                errors[d, k] += squared(target - (heard * (s / (s**2 + alpha))).astype(np.float32) @ components)
    return errors


def scikit_learn(Y, X):
    """Delays by scikit-learn: all voxels in one Ridge per fold, delay and strength, the fold cut out once."""
    from sklearn.linear_model import Ridge

    X, errors = X.astype(np.float32), np.zeros((len(X), len(ALPHAS)))
    for fit, held in folds_of(len(Y)):
        fitted, target = Y[fit], Y[held]
        for d, x in enumerate(X):
            for k, alpha in enumerate(FINITE):
                model = Ridge(alpha=alpha, solver="cholesky").fit(x[fit], fitted)
                errors[d, k] += squared(target - model.predict(x[held]))
    return errors


def himalaya(Y, x, *, backend, local):
    """One delay by himalaya's solver behind RidgeCV, without the final fit of weights, which nobody here needs.

    ``fit_intercept=True`` makes it centre within folds as the engine does; squared errors are summed over the fold,
    not averaged, as folds differ in length. 1,000 voxels at a time and all strengths at once were its fastest here.

    Returns
    -------
    alphas : array of shape (n_voxels,)
        The largest stands for infinity.
    errors : array of shape (n_voxels,)
        At these strengths, summed over folds.
    """
    from himalaya.backend import set_backend
    from himalaya.ridge import solve_group_ridge_random_search

    xp = set_backend(backend)
    folds = folds_of(len(Y))
    deltas, _, scores = solve_group_ridge_random_search(
        [xp.asarray(x.astype(np.float32))],
        xp.asarray(Y),
        n_iter=xp.asarray(np.ones((1, 1), np.float32)),
        alphas=xp.asarray(FINITE.astype(np.float32)),
        fit_intercept=True,
        score_func=lambda y, predicted: -((y - predicted) ** 2).sum(1),
        cv=folds,
        local_alpha=local,
        n_targets_batch=1000,
        progress_bar=False,
    )[:3]
    nearest = np.rint(-xp.to_numpy(deltas)[0] / np.log(2)).astype(int)
    return ALPHAS[np.clip(nearest, 0, len(ALPHAS) - 1)], -len(folds) * xp.to_numpy(scores)[0].astype(float)


def himalaya_sum(Y, X, *, backend):
    """himalaya with one strength for all voxels: error per delay and strength, NaN where it tells none."""
    made = (himalaya(Y, x, backend=backend, local=False) for x in X)
    return np.array([np.where(alphas[0] == ALPHAS, errors.sum(), np.nan) for alphas, errors in made])


PEERS = {"numpy_loop": numpy_loop, "sklearn": scikit_learn} | {
    f"himalaya_{backend}": partial(himalaya_sum, backend=backend) for backend in BACKENDS
}


def fastest(result):
    """Smallest ratio of himalaya's backends, None where it is not there."""
    return min((result[f"himalaya_{backend}_41"] for backend in BACKENDS), default=None)


def check_sum(name, *, errors, expected, faults):
    """Compare a peer's error per strength (NaN where it tells none) and its best strength with the engine's."""
    difference = float(np.nanmax(np.abs(errors / expected - 1)))
    same = np.nanargmin(errors) == np.argmin(expected)
    if not same or not difference <= TOLERANCE:  # not a number is no agreement
        faults.append(f"{name}: relative difference {difference:.1e}, same strength: {same}")
    return f"{'same' if same else 'OTHER'} strength, error within {difference:.0e}"


def check_map(name, Y, *, found, told, faults):
    """Compare strength and error that himalaya chose per voxel with the engine's at the same delay."""
    null = sum(np.square(Y[held] - Y[fit].mean(axis=0)).sum(axis=0) for fit, held in folds_of(len(Y)))
    same = float(np.mean(told[0] == found.alpha))
    difference = float(np.max(np.abs((1 - found.skill) * null / told[1] - 1)))
    if same < 0.98 or not difference <= TOLERANCE:
        faults.append(f"{name}: same strength in {same:.2%}, relative difference of errors {difference:.1e}")
    return f"same strength in {same:.2%} of voxels, errors within {difference:.0e}"


def reckoned(name, one, each, *, many, few, result):
    """Note and tell a peer's ratios over the engine: ``one`` s at one delay and ``each`` s for each further one."""
    at = [(one + (n - 1) * each) / seconds for n, seconds in ((N_DELAYS, many), (FEW_DELAYS, few))]
    result[f"{name}_41"], result[f"{name}_5"] = at
    said = f"{one:7.2f} s for 1 delay, {each:.2f} s for each further one"
    return f"  {name:15s} {said}: {at[0]:.0f} x at 41, {at[1]:.0f} x at 5; "


def measure_summed(shape, rounds, faults):
    """One shape: engine and product in turns at 41 and 5 delays, then every peer on one delay."""
    Y, X = simulate(*shape)
    take_turns(partial(product, Y[:, :4096]), partial(summed_sweep, Y[:, :4096], X), rounds=2)  # warm-up
    race = partial(product, Y), partial(summed_sweep, Y, X), partial(summed_sweep, Y, X[:FEW_DELAYS])
    (reference, many, few), (_, errors, _) = take_turns(*race, rounds=rounds)
    best = np.unravel_index(errors.argmin(), errors.shape)[0]
    if best != PLANTED:
        faults.append(f"sweep at {shape}: delay {best} was found, {PLANTED} was planted")
    print(f"\nSum over voxels, {shape[0]} x {shape[1]:,}; Y @ Y.T {reference:.3f} s; best delay {best}")
    print(f"  sweep, 41 delays {many:7.3f} s = {many / reference:.2f} products")
    print(f"  sweep,  5 delays {few:7.3f} s = {few / reference:.2f} products")
    result = {"sweep_over_matmul": many / reference, "sweep_5_over_matmul": few / reference}
    one, three = X[PLANTED : PLANTED + 1], X[PLANTED : PLANTED + FEW_FOR_SLOPE]
    for name, peer in PEERS.items():
        peer(Y[:, :2048], one)  # warm-up
        timed = [partial(peer, Y, one)] + [partial(peer, Y, three)] * (not name.startswith("himalaya"))
        seconds, (told, *_) = take_turns(*timed, rounds=rounds)
        each = (seconds[-1] - seconds[0]) / (FEW_FOR_SLOPE - 1) if len(seconds) > 1 else seconds[0]
        note = check_sum(f"{name} at {shape}", errors=told[0], expected=errors[PLANTED], faults=faults)
        print(reckoned(name, seconds[0], each, many=many, few=few, result=result) + note)
    return result


def voxel_map(Y, X, width):
    """The engine's map: every voxel's own delay and strength."""
    rows = np.arange(len(Y))
    return voxelwise.best_per_voxel(gram.Slabs(Y, rows, rows, (1.0,), width), X, folds_of(len(Y)), ALPHAS)


def measure_map(shape, rounds, faults):
    """Per-voxel choice of delay and strength against himalaya with ``local_alpha=True``; memory in a fresh process."""
    Y, X = simulate(*shape)
    trial, _ = take_turns(*(partial(voxel_map, Y[:, :4096], X, w) for w in WIDTHS), rounds=2)
    width = next(w for w, seconds in zip(WIDTHS, trial, strict=True) if seconds < 1.1 * min(trial))
    race = partial(voxel_map, Y, X, width), partial(voxel_map, Y, X[:FEW_DELAYS], width)
    (many, few), (found, _) = take_turns(*race, rounds=rounds)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        run, extra = fresh.submit(peak_memory, Sizes.mapped, width).result()
    memory = 1 + extra / run
    if memory > 2:
        faults.append(f"the map needs {memory:.2f} runs of memory, at most 2 are meant")
    right = np.mean(found.design[: shape[1] // 5] == PLANTED)
    print(
        f"\nMap per voxel, {shape[0]} x {shape[1]:,}, slabs of {width}; {right:.1%} of planted voxels have their delay"
    )
    print(f"  map, 41 delays   {many:7.2f} s\n  map,  5 delays   {few:7.2f} s")
    print(f"  memory at {Sizes.mapped}: run {run >> 20} MiB + at most {extra >> 20} MiB = {memory:.2f} runs")
    result = {"voxelwise_memory_over_run": memory, "width": width}
    one = voxel_map(Y, X[PLANTED : PLANTED + 1], width)
    for backend in BACKENDS:
        peer = partial(himalaya, Y, X[PLANTED], backend=backend, local=True)
        (seconds,), (told,) = take_turns(peer, rounds=rounds)
        note = check_map(f"himalaya_{backend} map", Y, found=one, told=told, faults=faults)
        print(reckoned(f"himalaya_{backend}", seconds, seconds, many=many, few=few, result=result) + note)
    return result


def measure_settings(n_volumes, n_voxels):
    """Seconds for every number of features, windows and blocks of one region at every delay, the run being read."""
    Y, X = simulate(n_volumes, n_voxels)
    rows, boxcar = np.arange(n_volumes), (np.arange(n_volumes) // 49 % 2).astype(float)
    made = np.stack([np.column_stack([*(np.roll(x, lag, axis=0) for lag in range(N_WINDOWS)), boxcar]) for x in X])
    grams = gram.gram_matrices(Y, volumes=rows, train=rows, regions={"all": np.ones(n_voxels, bool)}, scaled=False)
    how = {"rows": rows, "folds": folds_of(n_volumes), "delays": np.arange(N_DELAYS), "n_features": N_FEATURES}
    how |= {"target": "volume", "whitening": None, "n_lags": N_WINDOWS - 1, "has_blocks": True}
    (reduced, answered), (_, table) = take_turns(
        lambda: feature_grid.make_feature_grid({"all": [grams["all"]]}, made, **how),
        lambda: feature_grid.make_feature_grid({"all": [grams["all"]]}, made, **how).settings("all", ALPHAS),
        rounds=2,
    )
    print(
        f"\n{len(table):,} settings of one region: {answered:.2f} s from its Gram matrix, {reduced:.2f} s of it shared"
    )
    return {"settings": len(table), "settings_s": answered}


def peak_memory(shape, width):
    """Bytes of the run, and what the map needs beside it at its peak. For a process that did nothing else."""
    Y, X = simulate(*shape)
    before = resident("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    voxel_map(Y, X, width)
    return Y.nbytes, resident("VmHWM") - before


def measure_growth(shapes, folder):
    """Seconds and products at each shape, 41 delays; runs above 3 GB are read from a temporary file."""
    ratios = {}
    for n_volumes, n_voxels in shapes:
        size, name = 4 * n_volumes * n_voxels, f"{n_volumes}x{n_voxels}"
        path = Path(folder, name) if size > 3e9 else None
        if path and shutil.disk_usage(folder).free < 2 * size:
            print(f"  {name} left out: {2 * size / 1e9:.0f} GB of free disk are needed in {folder}")
            continue
        Y, X = simulate(n_volumes, n_voxels, path=path)
        rounds = 2 if size > 1e8 else 4
        (reference, many), _ = take_turns(partial(product, Y), partial(summed_sweep, Y, X), rounds=rounds)
        ratios[name] = many / reference
        print(f"  {n_volumes:4d} x {n_voxels:9,} {many:8.3f} s = {ratios[name]:.2f} products of {reference:.3f} s")
        if path:
            del Y
            path.unlink()
    return ratios


def print_machine(quick):
    """What the ratios were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    blas = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    libraries = {f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads" for lib in blas}
    names = ["numpy", "scikit-learn", "torch"] + ["himalaya"] * bool(BACKENDS)
    print(f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; BLAS {'; '.join(sorted(libraries))}")
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
    print(f"{len(ALPHAS)} strengths, 5 folds, {N_FEATURES} features; ratios are peer over engine")
    print(f"each time is the best of {(QUICK if quick else Sizes()).rounds} rounds, for the engine and its peers alike")
    if quick:
        print("Quick: smaller runs, one round - the ratios of the full run are larger and steadier.")
    if not BACKENDS:
        print("himalaya is not installed - pip install -e '.[dev]'")


def rounded(value):
    """Ratios to three digits, in dictionaries too."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def main():
    """Measure everything and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller runs, at most a minute")
    options = parser.parse_args()
    sizes, faults = QUICK if options.quick else Sizes(), []
    sys.stdout.reconfigure(line_buffering=True)
    print("SIMULATED volumes and sounds")
    print_machine(options.quick)
    sums = {f"{shape[0]}x{shape[1]}": measure_summed(shape, sizes.rounds, faults) for shape in sizes.summed}
    mapped = measure_map(sizes.mapped, sizes.rounds, faults)
    settings = measure_settings(*sizes.mapped)
    print(f"\nGrowth of the sweep, {N_DELAYS} delays")
    shapes = [(641, n) for n in sizes.voxels] + [(n, sizes.voxels_of_volumes) for n in sizes.volumes]
    with tempfile.TemporaryDirectory() as folder:
        growth = measure_growth(dict.fromkeys(shapes), folder)
    last = list(sums.values())[-1]
    result = {
        "quick": options.quick,
        "simulated": True,
        "sweep_over_matmul": last["sweep_over_matmul"],
        "numpy_loop_over_sweep": last["numpy_loop_41"],
        "sklearn_over_sweep": last["sklearn_41"],
        "himalaya_over_sweep": fastest(last),
        "himalaya_local_over_voxelwise": fastest(mapped),
        "voxelwise_memory_over_run": mapped["voxelwise_memory_over_run"],
        **settings,
        "sum": sums,
        "map": mapped,
        "growth_over_matmul": growth,
    }
    print(f"\nload {os.getloadavg()[0]:.1f}" + "".join(f"\nDISAGREEMENT {fault}" for fault in faults))
    print(json.dumps(rounded(result)))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
