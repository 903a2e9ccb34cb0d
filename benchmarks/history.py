"""Does the whole brain's past help where a voxel's own past is known?

    python benchmarks/history.py [--quick]

Next-volume prediction inside train of real scans: the visual one-back run (real EPI, no sound) and twelve people
listening to Alice (six regions). A voxel's own history against own history with the scores of the first k principal
components of the previous volume, penalised by one strength for all voxels. For each held-out block the order of the
history, its strength, the components, their number and their strength come from the volumes fitted on alone, by the
other blocks; an infinite strength, no components, is among the choices. Error summed over voxels, each divided by its
variance in train, relative to that of own history. No sound is read. In how many people it helps comes with its exact
95 % interval and the two-sided p of the sign test. Ends with one line of JSON.
"""

import argparse
import json
import tempfile

import common
import numpy as np
import pandas as pd
from scipy import stats

from bold_audio import bids, choices, data, ridge, runs, splits
from bold_audio.params import load_params
from bold_audio.space import principal_space

N_COMPONENTS = (1, 2, 5, 6, 10, 20, 50)
ALPHAS = (1.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, np.inf)
N_FOLDS = 5


def open_train(params):
    """Volumes up to the end of train, the rows of train and blocked folds inside them."""
    files = runs.locate_runs(params)
    usable = np.arange(files.n_volumes) >= params.history_order
    part = {"skip_initial": params.skip_initial, "train_fraction": params.train_fraction, "gap": params.gap}
    rows = splits.split_volumes(files.n_volumes, files.t_r, usable=usable, **part).train
    run = data.load_run(files, params, train=rows)
    gap = splits.volumes_of(params.gap, files.t_r)
    return run.volumes[: rows[-1] + 1], rows, splits.blocked_folds(rows, n_folds=N_FOLDS, gap_volumes=gap)


def other_blocks(folds, at):
    """The blocks other than ``at``, each with what lies outside both it and ``at`` to fit on."""
    others = [(np.intersect1d(folds[at][0], fit), held) for k, (fit, held) in enumerate(folds) if k != at]
    return [(fit, held) for fit, held in others if len(fit) >= splits.MIN_PART]


def held_errors(Y, fit, held, past, sizes, weight):
    """Held-out error by number of components and strength: array (n_sizes, n_alphas)."""
    space = principal_space(Y, rows=fit, n_components=max(sizes))
    before = space.scores_before(Y)
    options = {"order": past.order, "history_alphas": (past.alpha,), "alphas": ALPHAS}
    errors = [ridge.fold_errors(Y, fit=fit, held=held, ridge=before[:, :k], **options)[0] for k in sizes]
    return np.array([one @ weight for one in errors])


def measure(params):
    """One person: error of own history, with components, and with a fixed number of them; a row per held-out block."""
    Y, rows, folds = open_train(params)
    variance = Y[rows].var(axis=0, dtype=np.float64)
    weight = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0)
    sizes = [k for k in N_COMPONENTS if k <= Y.shape[1]]
    blocks = []
    for f, (fit, held) in enumerate(folds):
        inner = other_blocks(folds, f)
        past = choices.choose_history(Y, rows=fit, folds=inner, max_order=params.history_order)
        seen = sum(held_errors(Y, *fold, past, sizes, weight) for fold in inner)
        outer = held_errors(Y, fit, held, past, sizes, weight)
        k, a = np.unravel_index(seen.argmin(), seen.shape)
        of_size = dict(zip(sizes, outer[np.arange(len(sizes)), seen.argmin(axis=1)], strict=True))
        picked = {"k": sizes[k] if np.isfinite(ALPHAS[a]) else 0, "alpha": ALPHAS[a], "order": past.order}
        blocks.append({"own": outer[0, -1], "both": outer[k, a], **picked, **of_size})
    return pd.DataFrame(blocks).assign(person=params.subject, n_train=len(rows))


def main():
    """Measure both datasets and say plainly whether components help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two people of Alice, coarser voxels of one-back (a minute)"
    )
    options = parser.parse_args()
    result = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="history-") as outputs:
        for dataset, label in (("oneback", "02"), ("alice", "18")):
            coarser = 2 if options.quick and dataset == "oneback" else None
            people = bids.known_subjects(load_params(label, dataset))[: 2 if options.quick else None]
            made = [measure(load_params(p, dataset, outputs_dir=outputs, downsample=coarser)) for p in people]
            blocks = pd.concat(made, ignore_index=True)
            sizes = [name for name in blocks if isinstance(name, int)]
            person = blocks.groupby("person")[["own", "both", *sizes]].sum()
            ratio = person.div(person["own"], axis=0).drop(columns="own")
            n_train = blocks["n_train"].iloc[0]
            print(f"\n{dataset}: {len(people)} people, {n_train} volumes of train, {N_FOLDS} blocks")
            print("error over that of own history")
            print(ratio.rename(columns={"both": "chosen"}).to_string(float_format=lambda v: f"{v:.4f}"))
            counts = blocks["k"].value_counts().sort_index()
            print("components chosen (blocks): " + ", ".join(f"{k} ({n})" for k, n in counts.items()))
            both = ratio["both"]
            helped, n = int((both < 1).sum()), len(both)
            low, high = common.interval(helped, n)
            sign = stats.binomtest(helped, n).pvalue
            print(f"mean {both.mean():.4f}, smaller than 1 in {helped} of {n} ({low:.2f} to {high:.2f}, p {sign:.2f})")
            result[dataset] = {
                "people": n,
                "train_volumes": int(n_train),
                "error": round(float(both.mean()), 4),
                "helped": helped,
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
