"""The Lightning MLP from sound to volumes, trained in principal coordinates of its targets.

Train volumes span at most as many dimensions as there are of them, so the network predicts
principal coordinates, and the basis is folded into its last layer afterwards: the mean
squared error over voxels is the error in coordinates plus a constant, and the losses
logged are those of all voxels.
"""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import requests
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bold_audio.files import ModelError, write_whole

PATIENCE = 15  # epochs without a better val_MSE before training stops


@dataclass(frozen=True)
class Basis:
    """Principal coordinates of the targets of the volumes fitted on.

    Parameters
    ----------
    mean : array of shape (n_voxels,)
        Mean target.
    components : array of shape (n_voxels, n_components)
        Orthonormal columns.
    scale : float
        Root mean square of a coordinate; the network predicts coordinates divided by it.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: float

    @property
    def n_components(self):
        """Number of coordinates."""
        return self.components.shape[1]

    def coordinates(self, T):
        """Coordinates of targets, shape (n, n_components), and the energy they leave out, shape (n,)."""
        centred = T - self.mean
        coordinates = centred @ self.components
        left_over = np.einsum("kv,kv->k", centred, centred) - np.einsum("kc,kc->k", coordinates, coordinates)
        return coordinates / self.scale, np.maximum(left_over, 0) / self.scale**2


def principal_basis(T, *, n_components=None):
    """Basis of the space that targets span.

    Parameters
    ----------
    T : array of shape (n_volumes, n_voxels)
        Targets of the volumes fitted on.
    n_components : int, optional
        How many components to keep; all that the volumes span by default, so that nothing
        a linear output layer could learn is lost.

    Returns
    -------
    Basis
    """
    mean = T.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = T - mean
    gram = (centred @ centred.T).astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > 1e-6 * max(values[0], np.finfo(float).tiny)
    kept[n_components or len(kept) :] = False
    if not kept.any():
        kept[0], values = True, np.maximum(values, 1.0)
    components = centred.T @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    scale = float(np.sqrt(values[kept].sum() / (len(T) * kept.sum())))
    return Basis(mean, np.ascontiguousarray(components), scale)


class AudioFmriDataModule(pl.LightningDataModule):
    """Sound features at one delay, paired with target coordinates.

    Parameters
    ----------
    X : array of shape (n_volumes, n_features)
        Sound features at the delay, scaled on the train part.
    T : array of shape (n_volumes, n_voxels)
        Targets: volumes, or differences to the previous one.
    fit, val : arrays of int
        Volumes to fit and to validate on; a gap lies between them.
    n_components, batch_size, seed : int
        See params/common.yaml.
    """

    def __init__(self, X, T, *, fit, val, n_components=None, batch_size=32, seed=0):
        super().__init__()
        self.basis = principal_basis(T[fit], n_components=n_components)
        self.fit_set = self._paired(X, T, fit)
        self.val_set = self._paired(X, T, val)
        self.val_targets = torch.from_numpy(np.ascontiguousarray(T[val], dtype=np.float32))
        self.batch_size = batch_size
        self.order = torch.Generator().manual_seed(seed)

    def _paired(self, X, T, rows):
        coordinates, left_over = self.basis.coordinates(T[rows])
        parts = (X[rows], coordinates, left_over)
        return TensorDataset(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in parts))

    def train_dataloader(self):
        """Batches of the volumes fitted on; each is one pair of its own, so their order may be drawn."""
        return DataLoader(self.fit_set, batch_size=self.batch_size, shuffle=True, generator=self.order)

    def val_dataloader(self):
        """All validation volumes at once, in order, so that val_Pearson is over time."""
        return DataLoader(self.val_set, batch_size=len(self.val_set))


class AudioFmriMLP(pl.LightningModule):
    """Multilayer perceptron from sound features to volumes.

    Parameters
    ----------
    n_features, n_outputs : int
        Width of the input and of the output (coordinates in training, voxels afterwards).
    hidden_dims : list of int
        One ``Linear → ReLU → Dropout`` for each entry.
    dropout : float
        Share of hidden units switched off in training.
    lr, weight_decay : float
        AdamW's settings.
    n_voxels : int
        Number of voxels the loss is averaged over.
    mse_unit : float
        What one unit of the loss is in scaled-BOLD MSE; multiplies the logged losses.
    """

    def __init__(
        self, n_features, n_outputs, *, hidden_dims, dropout=0.0, lr=1e-3, weight_decay=0.01, n_voxels=1, mse_unit=1.0
    ):
        super().__init__()
        self.save_hyperparameters()
        layers, width = [], n_features
        for size in hidden_dims:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.net = nn.Sequential(*layers, nn.Linear(width, n_outputs))

    def forward(self, features):
        """Map features (batch, n_features) to outputs (batch, n_outputs)."""
        return self.net(features)

    def loss(self, batch):
        """Squared error per volume summed over all voxels: that in coordinates plus what they leave out."""
        features, coordinates, left_over = batch
        return (nn.functional.mse_loss(self(features), coordinates, reduction="none").sum(dim=1) + left_over).mean()

    def training_step(self, batch, batch_idx):
        """Lightning's training step: the loss divided by the number of coordinates, so that lr means the same."""
        loss = self.loss(batch)
        self._log_mse("train_MSE", loss, len(batch[0]))
        return loss / self.hparams.n_outputs

    def validation_step(self, batch, batch_idx):
        """Log ``val_MSE`` and ``val_Pearson`` (per voxel over time, then the mean over voxels)."""
        self._log_mse("val_MSE", self.loss(batch), len(batch[0]))
        data = self.trainer.datamodule
        predicted = self(batch[0]) @ torch.from_numpy(data.basis.components).to(self.device).T
        self.log("val_Pearson", mean_pearson(predicted, data.val_targets.to(self.device)), batch_size=len(batch[0]))

    def _log_mse(self, name, loss, n):
        mse = loss.detach().double() * self.hparams.mse_unit / self.hparams.n_voxels
        self.log(name, mse, on_step=False, on_epoch=True, batch_size=n)

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)


def mean_pearson(predicted, true):
    """Pearson r per voxel over time, averaged over the voxels that vary; NaN where none does."""
    a, b = predicted - predicted.mean(dim=0), true - true.mean(dim=0)
    aa, bb = (a * a).sum(dim=0), (b * b).sum(dim=0)
    # What rounding leaves of a constant series is not variation.
    floors = ((len(x) * (1e-6 * x.abs().amax(dim=0)) ** 2) for x in (predicted, true))
    varies = (aa > next(floors)) & (bb > next(floors))
    return ((a * b).sum(dim=0) / torch.sqrt(aa * bb))[varies].mean()


def fold_basis(model, basis):
    """Return the same network with the basis in its last layer: features → voxels."""
    settings = {name: value for name, value in model.hparams.items() if name not in ("n_features", "n_outputs")}
    folded = AudioFmriMLP(model.hparams.n_features, len(basis.mean), **settings)
    with torch.no_grad():
        for own, trained in zip(folded.net[:-1], model.net[:-1], strict=True):
            own.load_state_dict(trained.state_dict())
        components = torch.from_numpy(basis.components) * basis.scale
        folded.net[-1].weight.copy_(components @ model.net[-1].weight)
        folded.net[-1].bias.copy_(components @ model.net[-1].bias + torch.from_numpy(basis.mean))
    return folded.eval()


class _History(Callback):
    """Keep the logged losses of every epoch."""

    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, module):
        # Runs after validation of the same epoch, so all three are there.
        got = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("train_MSE", "val_MSE", "val_Pearson")}
        self.rows.append({"epoch": trainer.current_epoch, **got})


@dataclass(frozen=True)
class TrainedMLP:
    """One finished training: the folded network, its delay and its losses epoch by epoch."""

    model: AudioFmriMLP
    delay: float
    history: list
    best_epoch: int
    val_mse: float
    val_pearson: float


def train_mlp(X, T, *, fit, val, delay, value_range, settings, folder, loggers=(), progress=False):
    """Train the MLP at one delay and return its best epoch by ``val_MSE``.

    Parameters
    ----------
    X : array of shape (n_volumes, n_features)
        Sound features at ``delay``, scaled on train.
    T : array of shape (n_volumes, n_voxels)
        Targets.
    fit, val : arrays of int
        Volumes to fit and to validate on, both inside train, with a gap between.
    delay : float
        BOLD delay, in seconds.
    value_range : (float, float)
        Scaling of BOLD for the logged losses.
    settings : Params
        ``hidden_dims, dropout, lr, weight_decay, max_epochs, batch_size, n_components, seed``.
    folder : path
        Where Lightning keeps this training's checkpoint.
    loggers : sequence of Lightning loggers
        Where the losses go besides the returned history.
    progress : bool
        Whether to draw a progress bar.

    Returns
    -------
    TrainedMLP

    Raises
    ------
    ModelError
        If the loss is not a number.
    """
    # Weights, dropout and batch order each come from the seed, whatever ran before in this process.
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(settings.seed)
        data = AudioFmriDataModule(
            X,
            T,
            fit=fit,
            val=val,
            n_components=settings.n_components,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        model = AudioFmriMLP(
            X.shape[1],
            data.basis.n_components,
            hidden_dims=list(settings.hidden_dims),
            dropout=settings.dropout,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            n_voxels=T.shape[1],
            mse_unit=data.basis.scale**2 / (value_range[1] - value_range[0]) ** 2,
        )
        checkpoint = ModelCheckpoint(folder, filename="best", monitor="val_MSE", enable_version_counter=False)
        history = _History()
        trainer = pl.Trainer(
            max_epochs=settings.max_epochs,
            accelerator="auto",
            devices=1,
            logger=list(loggers),
            callbacks=[checkpoint, EarlyStopping("val_MSE", patience=PATIENCE, check_finite=True), history],
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        trainer.fit(model, datamodule=data)
        losses = [row.get(name, np.nan) for row in history.rows[-1:] for name in ("train_MSE", "val_MSE")]
        if not losses or not np.isfinite(losses).all() or not checkpoint.best_model_path:
            raise ModelError(f"the loss is not a number at epoch {len(history.rows) - 1} - lower lr {settings.lr:g}")
        # Read back from disk: the best weights, not a reference to the last ones.
        best = AudioFmriMLP.load_from_checkpoint(checkpoint.best_model_path, map_location="cpu", weights_only=True)
        folded = fold_basis(best, data.basis)
    row = min(history.rows, key=lambda r: r["val_MSE"])
    return TrainedMLP(folded, delay, history.rows, row["epoch"], row["val_MSE"], row["val_Pearson"])


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


def mlflow_logger(uri, experiment, run_name, *, local_folder):
    """A Lightning logger into MLflow: the server where it answers, else the local sqlite file.

    Returns
    -------
    logger : MLFlowLogger
    warning : str or None
        Why the server was not used.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    warning = None
    if uri and uri.startswith("http") and not _answers(uri):
        # Asked first, because MLflow's own retries are silent for four minutes.
        warning = f"MLflow does not answer at {uri}; runs are logged in {local_folder} instead"
        uri = None
    local_folder = Path(local_folder)
    local_folder.mkdir(parents=True, exist_ok=True)
    local = uri is None
    for chatty in ("alembic", "pytorch_lightning.loggers.mlflow"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    logger = MLFlowLogger(
        experiment_name=experiment,
        run_name=run_name,
        tracking_uri=f"sqlite:///{local_folder / 'mlflow.db'}" if local else uri,
        artifact_location=(local_folder / "artifacts").as_uri() if local else None,
    )
    return logger, warning


def _answers(uri):
    """Whether an MLflow server says that it is well, within three seconds."""
    try:
        return requests.get(f"{uri.rstrip('/')}/health", timeout=3).ok
    except requests.RequestException:
        return False


def save_checkpoint(path, model, facts):
    """Write ``best.ckpt``: opens with ``torch.load(weights_only=True)`` and Lightning's ``load_from_checkpoint``.

    ``facts`` (delay, target, mask hash, …) must be plain values; they are kept beside the weights.
    """
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": pl.__version__,
        "epoch": 0,
        "global_step": 0,
        "bold_audio": facts,
    }
    with write_whole(path) as part:
        torch.save(content, part)


def load_checkpoint(path):
    """Open ``best.ckpt`` without running anything that is in it; return the model and its facts."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        model = AudioFmriMLP(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"])
        return model.eval(), content["bold_audio"]
    except FileNotFoundError:
        raise ModelError(f"{path} is missing - run notebook 04 to train it") from None
    except Exception as error:
        raise ModelError(
            f"{path} is damaged or not a safe checkpoint ({type(error).__name__}) - delete it and train again"
        ) from error


def mlp_drive(model, X):
    """Output of the folded network for features (n, n_features): array (n, n_voxels), float32."""
    with torch.no_grad():
        return model(torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))).numpy()
