"""Does the whole brain's past help where a voxel's own past is known?

    python benchmarks/history.py [--quick]

Next-volume prediction inside train of real scans: the visual one-back run (real EPI, no sound) and twelve people
listening to Alice (six regions). Own history (order and strength chosen) against own history with the scores of the
first k principal components of the previous volume, fitted on each fold's own volumes and penalised by one strength
for all voxels. The best k and strength are picked on the very blocks that score them, in favour of the components;
if they do not help even so, they do not help. Error summed over voxels, each divided by its variance. Ends with one
line of JSON.
"""

import argparse
import json

import numpy as np

from bold_audio import data, encoding, gram, workflow
from bold_audio.params import load_params

N_COMPONENTS = (1, 2, 5, 10, 20, 50)
ALPHAS = tuple(10.0**k for k in range(1, 7))


def component_scores(subject, fit, n_components):
    """Scores of every volume up to the end of train on the components of ``fit``, each of variance 1 there.

    The score of component j at volume k is K[k, fit] u_j / s_j, with K the Gram matrix of volumes whose voxels have
    variance 1 and u_j, s_j² the eigenpairs of K over ``fit``.
    """
    end = subject.split.train[-1] + 1
    everywhere = {"all": np.ones(subject.run.n_voxels, bool)}
    K = gram.gram_matrices(subject.Y, volumes=np.arange(end), train=fit, regions=everywhere, scaled=True)["all"].K
    s2, U = np.linalg.eigh(K[np.ix_(fit, fit)])
    s2, U = s2[::-1][:n_components], U[:, ::-1][:, :n_components]
    scores = K[:, fit] @ U / np.sqrt(s2)
    return scores / scores[fit].std(axis=0)


def measure(params, n_folds_used):
    """Error of own history, and of own history with components: array (n_components, n_alphas), relative to it."""
    subject = workflow.open_subject(params)
    rows, folds = subject.split.train, subject.folds[:n_folds_used]
    past = encoding.choose_history(subject.Y, rows=rows, folds=folds, max_order=params.history_order)
    sizes = [k for k in N_COMPONENTS if k < min(subject.run.n_voxels + 1, len(folds[0][0]))]
    variance = subject.Y[rows].var(axis=0, dtype=np.float64)
    weight = np.where(variance > 0, 1 / np.where(variance > 0, variance, 1), 0)
    options = {"order": past.order, "history_alphas": (past.alpha,)}
    own, both = 0.0, np.zeros((len(sizes), len(ALPHAS)))
    for fit, held in folds:
        own += encoding.fold_errors(subject.Y, fit=fit, helds=(held,), **options)[0, 0, 0] @ weight
        scores = component_scores(subject, fit, max(sizes))
        before = np.zeros((len(subject.Y), max(sizes)))
        before[1 : len(scores) + 1] = scores[: len(before) - 1]
        for i, k in enumerate(sizes):
            errors = encoding.fold_errors(
                subject.Y, fit=fit, helds=(held,), ridge=before[:, :k], alphas=ALPHAS, **options
            )
            both[i] += errors[0, 0] @ weight
    print(f"  sub-{params.subject}: order {past.order}, strength {past.alpha:g}", flush=True)
    return sizes, both / own


def main():
    """Measure both datasets and say plainly whether components help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two people of Alice, one block of the one-back run")
    options = parser.parse_args()
    result = {"quick": options.quick}
    workflow.ensure_scan(load_params("sim"))  # its film is what the one-back run is paired with
    for dataset, label in (("oneback", "02"), ("alice", "18")):
        people = data.known_subjects(load_params(label, dataset))
        print(f"\n{dataset}")
        n_folds = 1 if options.quick and dataset == "oneback" else None
        measured = [measure(load_params(p, dataset), n_folds) for p in people[: 2 if options.quick else None]]
        sizes, ratio = measured[0][0], np.mean([one[1] for one in measured], axis=0)
        print("  error with components of the previous volume over error of own history, by number and strength")
        print("  " + "".join(f"{a:>10g}" for a in ALPHAS))
        for k, line in zip(sizes, ratio, strict=True):
            print(f"{k:4d}" + "".join(f"{v:10.4f}" for v in line))
        best = float(ratio.min())
        print(f"  best {best:.4f}: " + ("they help" if best < 0.999 else "they do not help"))
        result[f"{dataset}_best_over_own"] = round(best, 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
