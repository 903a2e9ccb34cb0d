"""One training of the MLP: batches, losses, the best epoch; it goes on where it was killed."""

import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader, Sampler, TensorDataset

from bold_audio.files import MachineError, ModelError
from bold_audio.mlp import MONITOR, AudioFmriMLP, fold_basis, read_checkpoint, seed_of, write_torch

LOOK_EVERY = 5  # epochs between two looks at all voxels, each of which may leave a checkpoint
PATIENCE = 4  # looks without more evidence before training stops


class EpochOrder(Sampler):
    """Batches in an order drawn from the seed and the number of the epoch, so that a resumed run draws it again.

    They are of about ``batch_size``, all alike: a few volumes left over would make a step as costly as any other, and
    a noisy one.
    """

    def __init__(self, n, seed, batch_size):
        self.n, self.seed, self.n_batches, self.epoch = n, seed, max(1, round(n / batch_size)), 0

    def set_epoch(self, epoch):
        """Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        # A generator: after a kill Lightning asks for the iterator before it says which epoch it is.
        order = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, "order"))
        yield from torch.randperm(self.n, generator=order).tensor_split(self.n_batches)


class AudioFmriDataModule(pl.LightningDataModule):
    """Inputs at one delay, paired with the coordinates of their targets.

    Parameters
    ----------
    X : array of shape (n_volumes, n_inputs)
        Sound features at the delay, scaled on train; behind them scores of previous volumes, if any.
    targets : Targets
    batch_size, seed : int
        See params/common.yaml.
    """

    def __init__(self, X, targets, *, batch_size=64, seed=0):
        super().__init__()
        self.targets = targets
        self.fit_set = self._paired(X, targets.fit, targets.fit_part)
        self.val_set = self._paired(X, targets.val, targets.val_part)
        self.order = EpochOrder(len(self.fit_set), seed, batch_size)

    def _paired(self, X, rows, part):
        lags = np.arange(len(self.targets.output_taps))
        arrays = (X[rows[:, None] - lags], *part)  # (n, n_taps, n_inputs)
        return TensorDataset(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays))

    def train_dataloader(self):
        """Batches of the volumes fitted on, one look-up each; every pair stands alone, so their order may be drawn."""
        return DataLoader(self.fit_set, batch_size=None, sampler=self.order)

    def val_dataloader(self):
        """All validation volumes at once, in order, so that val_Pearson is over time."""
        return DataLoader(self.val_set, batch_size=len(self.val_set))


class _Losses(Callback):
    """Keep the logged losses of every epoch; a checkpoint takes them along."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, module):
        # Lightning keeps the last value of what was not logged in this epoch.
        looked = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        names = [name for name in trainer.callback_metrics if looked or name == "train_MSE"]
        self.rows.append({"epoch": trainer.current_epoch, **{n: float(trainer.callback_metrics[n]) for n in names}})

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = list(state["rows"])


class _WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints beside where they go; Lightning writes them in /tmp, which may be another disk, and copies."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        write_torch(path, checkpoint)


@dataclass(frozen=True)
class TrainedMLP:
    """One finished training: the folded network, its delay and its losses epoch by epoch.

    Parameters
    ----------
    model : AudioFmriMLP
        Best epoch's, folded.
    delay : float
    losses : list of dict
        ``epoch, train_MSE`` of every epoch; at every look also ``val_MSE, val_Pearson, val_evidence, …``.
    best : dict
        The epoch that was kept.
    kept : float
        Mean share of the network's prediction that a voxel keeps.
    middle : (array, array)
        True and predicted target of the middle validation volume, without the mean: shape (n_voxels,).
    """

    model: AudioFmriMLP
    delay: float
    losses: list
    best: dict
    kept: float
    middle: tuple


def train_mlp(X, targets, *, delay, settings, folder, space=None, n_previous=0, progress=False):
    """Train the MLP at one delay and return its best epoch by ``val_evidence``.

    A training that was killed goes on from the last checkpoint in ``folder`` and ends as if it had not been.

    Parameters
    ----------
    X : array of shape (n_volumes, n_inputs)
        Sound features at ``delay``, scaled on train, and behind them the scores of the ``n_previous`` volumes before.
    targets : Targets
    delay : float
        BOLD delay, in seconds.
    settings : Params
        ``hidden_dims, dropout, lr, weight_decay, max_epochs, batch_size, seed``.
    folder : path
        Where Lightning keeps the checkpoints of this very training, of these inputs and settings.
    space : Space, optional
        Previous volumes → scores.
    n_previous : int
    progress : bool
        Whether to draw a progress bar.

    Returns
    -------
    TrainedMLP

    Raises
    ------
    ModelError
        If the loss is not a number.
    MachineError
        If a checkpoint cannot be written.
    """
    folder = Path(folder)
    n_past = 0 if space is None else n_previous * space.loadings.shape[1]
    # Weights, dropout and batch order each come from the seed, whatever ran before in this process.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), _quiet():
        torch.manual_seed(settings.seed)
        data = AudioFmriDataModule(X, targets, batch_size=settings.batch_size, seed=settings.seed)
        model = AudioFmriMLP(
            X.shape[1] - n_past,
            targets.basis.n_components,
            n_past=n_past,
            hidden_dims=list(settings.hidden_dims),
            dropout=settings.dropout,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
        )
        look_every = min(LOOK_EVERY, settings.max_epochs)
        # Saved after the epoch's losses are logged; `best` before `last`, so that `last` records which epoch is best.
        often = {"every_n_epochs": look_every, "save_on_train_epoch_end": True, "enable_version_counter": False}
        checkpoints = [
            ModelCheckpoint(folder, filename="best", monitor=MONITOR, mode="max", **often),
            ModelCheckpoint(folder, filename="last", **often),
        ]
        early = EarlyStopping(MONITOR, mode="max", patience=PATIENCE, check_finite=True, check_on_train_epoch_end=False)
        losses = _Losses()
        trainer = pl.Trainer(
            max_epochs=settings.max_epochs,
            check_val_every_n_epoch=look_every,
            accelerator="auto",
            devices=1,
            logger=False,
            callbacks=[losses, early, *checkpoints],
            plugins=[_WholeCheckpoints()],
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        rows, finished = _resume_or_clear(folder, losses, early, settings.max_epochs)
        if finished:
            losses.rows = rows
        else:
            last = folder / "last.ckpt" if rows else None
            try:
                trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True if rows else None)
            except OSError as error:
                raise MachineError(
                    f"a checkpoint cannot be written in {folder} ({error.strerror}) - free space or permit writing; "
                    "training goes on from the last one"
                ) from error
        looks = [row for row in losses.rows if MONITOR in row]
        if not looks or not np.isfinite([looks[-1][n] for n in ("train_MSE", MONITOR)]).all():
            raise ModelError(f"the loss is not a number at epoch {len(losses.rows) - 1} - lower lr {settings.lr:g}")
        # Read back from disk: the best weights, not a reference to the last ones.
        best = AudioFmriMLP.load_from_checkpoint(folder / "best.ckpt", map_location="cpu", weights_only=True).eval()
        inputs = data.val_set[:][0]
        with torch.no_grad():
            shares, _ = best.shares(inputs, targets)
            k = len(inputs) // 2
            middle = best.in_voxels(inputs[k : k + 1], targets, targets.basis.components).numpy()[0]
        folded = fold_basis(best, targets, shares=shares, space=space, n_previous=n_previous)
    row = max(looks, key=lambda r: r[MONITOR])
    pictures = (targets.val_voxels[k], shares * middle)
    return TrainedMLP(folded, delay, losses.rows, row, float(shares.mean()), pictures)


def _resume_or_clear(folder, losses, early, max_epochs):
    """What the last checkpoint in ``folder`` says: its losses, and whether training had come to its end.

    No losses where there is none. One that cannot be read is deleted with its folder, and so are its losses.
    """
    try:
        states = read_checkpoint(folder / "last.ckpt")["callbacks"]
        rows = states[losses.state_key]["rows"]
        waited = states[early.state_key]["wait_count"]
    except FileNotFoundError:
        return [], False
    except Exception:  # torn by a kill, or of another kind: it is made again from the start
        shutil.rmtree(folder)
        return [], False
    return rows, waited >= PATIENCE or len(rows) >= max_epochs


class _quiet:
    """Silence Lightning's tips while a headless training runs; its errors stay."""

    def __enter__(self):
        self.catcher = warnings.catch_warnings()
        self.catcher.__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        self.loggers = [logging.getLogger(f"pytorch_lightning.{part}") for part in ("utilities.rank_zero", "callbacks")]
        self.levels = [log.level for log in self.loggers]
        for log in self.loggers:
            log.setLevel(logging.ERROR)

    def __exit__(self, *error):
        for log, level in zip(self.loggers, self.levels, strict=True):
            log.setLevel(level)
        return self.catcher.__exit__(*error)
