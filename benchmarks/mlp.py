"""The MLP in principal coordinates against the same network with an output for every voxel, and against ridge.

    python benchmarks/mlp.py [--quick]

**Speed.** A SIMULATED full-size subject, the whole grid of 40 x 64 x 64 = 163,840 outputs. Both sides are the same
hidden layers in the same Lightning loop, batches and optimiser; one predicts coordinates, the other every voxel.
Time per epoch is the training alone: validation stands outside on both sides. The two take turns; the ratio is that of
the fastest epochs, which other work on the machine disturbed least, and beside it that of the medians. A third has
torch's fused AdamW on both sides, which helps the side with the many weights.

**Skill.** Both sides with the best of the same learning rates and the best epoch, by the error in the planted voxels
(which only a simulation knows) on the last block of train; skill over the mean of the train volumes in the same voxels
on the test part, at that rate and mean of several trainings, because one depends on its first weights. Dense targets
are divided by one number, their root mean square, so that a learning rate means as much on both sides. No shares per
voxel on either side.

**Against ridge.** SIMULATED subjects with a linear and with a non-linear response (seeds that nothing was tuned on),
brain mask, fitted on train and scored once on test, one-step, in voxels planted with r2 of 0.2 or more: gain over own
history of ridge (`history_sound`), of a network without hidden layers and of the MLP, the two trained alike. Ridge
chooses a strength voxel by voxel; the networks share what neighbouring voxels show, so it is the network without hidden
layers that says how much of the difference is the hidden layer's. Ends with one line of JSON; the exit status is 1
where a figure is not a finite number.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from bold_audio import candidates, mlp, simulate, training, workflow
from bold_audio.params import load_params

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
PLANTED = "planted_r2_over_0.2"
KINDS = {"linear": {}, "nonlinear": {"nonlinear": True, "response": "delay"}}


class Side(mlp.AudioFmriMLP):
    """The network with nothing but its loss in its steps."""

    fused = False

    def configure_optimizers(self):
        """AdamW, torch's plain or its fused one."""
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay, fused=self.fused
        )

    def training_step(self, batch, batch_idx):
        """In shares of the targets' variance, on both sides."""
        inputs, true, left_over = batch
        errors = nn.functional.mse_loss(self.net(inputs), true, reduction="none")
        return ((errors.mean(dim=1) if self.weights is None else errors @ self.weights) + left_over).mean()

    def validation_step(self, batch, batch_idx):
        """What chooses the epoch: the squared error in the planted voxels."""
        inputs, true = batch
        self.log("val", nn.functional.mse_loss(self.unfold(self.net(inputs)), true), batch_size=len(inputs))


class Clock(pl.Callback):
    """Seconds of each epoch's training, validation not counted."""

    def __init__(self):
        self.seconds = []

    def on_train_epoch_start(self, trainer, module):
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.now = time.perf_counter()

    def on_validation_start(self, trainer, module):
        self.seconds.append(self.now - self.begun)


def fit(n_inputs, side, val_set, *, rate, n_epochs, settings, fused=False, seed=0):
    """Train one side; seconds per epoch, the best validated error and the network of that epoch."""
    torch.manual_seed(seed)
    net = Side(n_inputs, side.n_outputs, hidden_dims=list(settings.hidden_dims), dropout=settings.dropout, lr=rate)
    net.weights, net.unfold, net.fused = side.weights, side.unfold, fused
    clock, best = Clock(), Best()
    trainer = pl.Trainer(
        max_epochs=n_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[clock, best],
    )
    order = training.EpochOrder(len(side.fit_set), seed, settings.batch_size)
    loaders = [
        torch.utils.data.DataLoader(side.fit_set, batch_size=None, sampler=order),
        torch.utils.data.DataLoader(val_set, batch_size=len(val_set)),
    ]
    trainer.fit(net, *loaders)
    net.load_state_dict(best.state)
    return clock.seconds, best.value, net.eval()


class Best(pl.Callback):
    """The weights of the best validated epoch."""

    def __init__(self):
        self.value, self.state = np.inf, None

    def on_validation_end(self, trainer, module):
        value = float(trainer.callback_metrics["val"])
        if value < self.value:
            self.value = value
            self.state = {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Outputs(NamedTuple):
    """What one side predicts: its targets, their weights in the loss, and how planted voxels follow from them."""

    n_outputs: int
    fit_set: torch.utils.data.TensorDataset
    weights: torch.Tensor | None
    unfold: Callable


def both_sides(subject, targets, X, roi):
    """The two sides of the comparison, with losses in the same unit."""
    basis, fit_rows = targets.basis, targets.fit
    T = subject.Y[fit_rows] - basis.mean
    rms, variance = float(np.sqrt(np.mean(T**2))), float(np.sum(basis.scale**2))
    coordinates, left_over = targets.fit_part
    components = torch.from_numpy(basis.components[roi] * basis.scale)
    return {
        "coordinates": Outputs(
            basis.n_components,
            as_set(X[fit_rows], coordinates, left_over / variance),
            torch.from_numpy(basis.scale**2 / np.float32(variance)),
            lambda out: out @ components.T,
        ),
        "dense": Outputs(
            len(basis.mean),
            as_set(X[fit_rows], T / rms, np.zeros(len(T))),
            None,
            lambda out: out[:, np.flatnonzero(roi)] * rms,
        ),
    }


def speed_and_skill(params, *, n_epochs, n_trainings):
    """Dense outputs over coordinates: times per epoch, the same with a fused optimiser; and each one's skill."""
    subject = workflow.open_subject(params)
    targets, roi = candidates.subject_targets(subject), subject.run.regions[PLANTED]
    X = subject.scaled("sound", 5.0)[0].astype(np.float32)
    sides = both_sides(subject, targets, X, roi)
    planted = {
        part: subject.Y[rows][:, roi] - targets.basis.mean[roi]
        for part, rows in (("val", targets.val), ("test", subject.split.test))
    }
    val_set = as_set(X[targets.val], planted["val"])
    val_error = float(np.mean(planted["val"] ** 2))
    options = {"n_epochs": n_epochs, "settings": params}
    seconds, found = {name: [] for name in sides}, {name: [] for name in sides}
    for rate in RATES:
        for name, side in sides.items():
            took, error, _ = fit(X.shape[1], side, val_set, rate=rate, **options)
            seconds[name] += took[1:]
            found[name].append((error, rate))
            said = f"{min(took[1:]):.4f} to {np.median(took[1:]):.4f} s per epoch"
            print(f"  {name:12s} lr {rate:<6g} {said}, validation skill {1 - error / val_error:+.4f}", flush=True)
    skill = {}  # by side: mean, lowest and highest of the trainings
    for name, side in sides.items():
        rate, skills = min(found[name])[1], []
        for seed in range(n_trainings):
            net = fit(X.shape[1], side, val_set, rate=rate, seed=seed, **options)[2]
            with torch.no_grad():
                made = side.unfold(net.net(torch.from_numpy(X[subject.split.test]))).numpy()
            skills.append(1 - float(np.mean((planted["test"] - made) ** 2) / np.mean(planted["test"] ** 2)))
        skill[name] = {how.__name__: round(float(how(skills)), 4) for how in (np.mean, min, max)}
        each = ", ".join(f"{one:+.4f}" for one in skills)
        print(f"  {name:12s} lr {rate:<6g} skill on test {np.mean(skills):+.4f}: {each}", flush=True)
    ratios = {how.__name__: how(seconds["dense"]) / how(seconds["coordinates"]) for how in (min, np.median)}
    fused = {}
    for name, side in sides.items():
        took, *_ = fit(X.shape[1], side, val_set, rate=RATES[0], fused=True, **options)
        fused[name] = min(took[1:])
        print(f"  {name:12s} fused AdamW {fused[name]:.4f} s per epoch", flush=True)
    return {
        name: round(float(v), 1) for name, v in (ratios | {"fused": fused["dense"] / fused["coordinates"]}).items()
    }, skill


def as_set(*arrays):
    """Arrays as a data set, float32."""
    return torch.utils.data.TensorDataset(
        *(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays)
    )


def against_ridge(kind, seed, folder, outputs, shape, **settings):
    """Gain over own history on test, in planted voxels: ridge, linear network, MLP; and the MLP's MSE over ridge's."""
    planted, label = KINDS[kind], f"{kind}{seed}"
    simulate.simulate_subject(folder, subject=label, seed=seed, shape=shape, **planted)
    options = {"data_dir": str(folder), "outputs_dir": str(outputs), "response": planted.get("response")} | settings
    subject = workflow.open_subject(load_params(label, "sim", **options))
    params, found = subject.params, workflow.ensure_sweep(subject)
    names = ("constant", "history", "history_sound")
    rows = workflow.fit_linear_rows(subject, found.delay, follows=found.follows, names=names)
    targets = candidates.subject_targets(subject)
    for name, hidden in (("linear network", []), ("mlp", params.hidden_dims)):
        shaped = params.model_copy(update={"hidden_dims": hidden})
        trained = [
            training.train_mlp(
                subject.scaled("sound", delay)[0],
                targets,
                delay=delay,
                settings=shaped,
                folder=Path(outputs, "training", f"{label}-{name}-{delay:g}"),
            )
            for delay in params.mlp_delays
        ]
        best = max(trained, key=lambda one: one.best[mlp.MONITOR])
        facts = candidates.model_facts(subject, best.delay)
        rows[name] = workflow.trained_row(subject, best.model, facts, history=rows["history"])
    regions = {PLANTED: subject.run.regions[PLANTED]}
    table, _ = workflow.score_rows(
        subject, rows, subject.split.test, regions, fitted_on=subject.split.train, predictions=("one_step",)
    )
    table = table.set_index("model")
    gains = {name: float(table.loc[name, "skill"]) for name in ("history_sound", "linear network", "mlp")}
    return gains, float(table.loc["mlp", "mse"] / table.loc["history_sound", "mse"])


def main():
    """Measure all three and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a small head, few epochs, one subject of each kind, one delay"
    )
    options = parser.parse_args()
    shape = (18, 22, 22) if options.quick else simulate.FULL_SHAPE
    result = {"quick": options.quick}
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    for part in ("utilities.rank_zero", "callbacks"):
        logging.getLogger(f"pytorch_lightning.{part}").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="mlp-") as folder:
        data, outputs = Path(folder, "data"), Path(folder, "outputs")
        simulate.simulate_subject(data, subject="speed", shape=shape)
        given = {"data_dir": f"{data}", "outputs_dir": f"{outputs}", "target": "volume", "sweep_fwhm": 0}
        params = load_params("speed", "sim", **given, mask="none")
        print(f"SIMULATED subject, {np.prod(shape):,} outputs, training alone")
        ratios, skill = speed_and_skill(
            params, n_epochs=3 if options.quick else 20, n_trainings=1 if options.quick else 6
        )
        result["skill"] = skill
        print(f"dense over coordinates, time per epoch: {ratios}; best skill {skill}\n", flush=True)
        result |= {"dense_over_coordinates_epoch": ratios["min"], "ratio_of_medians": ratios["median"]}
        result |= {"ratio_with_fused_optimiser": ratios["fused"]}
        given = {"mlp_delays": [5.0], "max_epochs": 20} if options.quick else {}
        for kind in KINDS:
            seeds = range(300, 301 if options.quick else 303)
            made = [against_ridge(kind, seed, data, outputs, shape, **given) for seed in seeds]
            gains = {name: round(float(np.mean([one[0][name] for one in made])), 4) for name in made[0][0]}
            by_seed = dict(zip(map(str, seeds), (one[0] for one in made), strict=True))
            each = {name: {seed: round(one[name], 4) for seed, one in by_seed.items()} for name in gains}
            mse = round(float(np.mean([one[1] for one in made])), 4)
            print(f"SIMULATED, {kind} response, {len(made)} people: gain {gains}; MLP's MSE {mse} x ridge's")
            print("\n".join(f"  {name}, by seed: {values}" for name, values in each.items()), flush=True)
            result[kind] = gains | {"mlp_over_ridge_mse": mse, "each": each}
    print(json.dumps(result))
    if missed := not_finite(result):
        sys.exit(f"not a finite number: {', '.join(missed)}")


def not_finite(result, before=""):
    """Names of figures that are no finite numbers, those of dictionaries inside with the dictionary's name."""
    names = []
    for name, value in result.items():
        if isinstance(value, dict):
            names += not_finite(value, f"{before}{name} ")
        elif not np.isfinite(value):
            names.append(f"{before}{name}")
    return names


if __name__ == "__main__":
    main()
