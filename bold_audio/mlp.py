"""The Lightning MLP from sound (and previous volumes) to volumes, and its checkpoint.

It is trained on principal coordinates of the targets, not on voxels: with z a target's coordinates, ẑ the output and s
the coordinates' scales, the loss Σ_c s_c² (z_c − ẑ_c)² and what coordinates leave out are together the squared error
over voxels (`coordinates`). `fold_basis` then multiplies the basis into the last layer: what is kept gives voxels.
"""

import io
import warnings
import zipfile

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from bold_audio.coordinates import MONITOR, kept_shares
from bold_audio.files import ModelError, write_whole


def seed_of(seed, epoch, what):
    """A seed of its own for each epoch and use."""
    return int(np.random.SeedSequence([seed, epoch, *what.encode()]).generate_state(1)[0])


class AudioFmriMLP(pl.LightningModule):
    """Multilayer perceptron from sound features (and previous volumes) to volumes.

    Parameters
    ----------
    n_features, n_outputs : int
        Width of the sound's features and of the output (coordinates in training, voxels afterwards).
    hidden_dims : list of int
        One ``Linear → ReLU → Dropout`` for each entry.
    n_past : int
        Numbers that describe the previous volumes: their scores in training, their voxels afterwards; 0: none.
    dropout : float
        Share of hidden units switched off in training.
    lr, weight_decay : float
        AdamW's settings.
    seed : int
        Of the dropout, together with the epoch.
    """

    def __init__(
        self, n_features, n_outputs, *, hidden_dims, n_past=0, dropout=0.0, lr=1e-3, weight_decay=0.01, seed=0
    ):
        super().__init__()
        self.save_hyperparameters()
        layers, width = [], n_features + n_past
        for size in hidden_dims:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.net = nn.Sequential(*layers, nn.Linear(width, n_outputs))
        nn.init.zeros_(self.net[-1].weight)  # training starts from the mean: nobody hears anything
        nn.init.zeros_(self.net[-1].bias)
        self.register_buffer("past_mean", torch.zeros(n_past))

    def forward(self, features, previous=None):
        """Outputs (batch, n_outputs) from features (batch, n_features) and previous volumes (batch, n_past)."""
        if previous is not None:
            features = torch.cat([features, previous - self.past_mean], dim=-1)
        return self.net(features)

    def predict_target(self, inputs, targets):
        """Coordinates of the target from inputs (batch, n_taps, n_inputs): the outputs, summed over the taps."""
        return torch.einsum("blc,l->bc", self.net(inputs), torch.as_tensor(targets.output_taps, device=self.device))

    def in_voxels(self, inputs, targets, components):
        """Target of all voxels without its mean, by ``components`` (n_voxels, n_components), as a tensor."""
        scale, C = (torch.as_tensor(a, device=self.device) for a in (targets.basis.scale, components))
        return (self.predict_target(inputs, targets) * scale) @ C.T

    def loss(self, batch, targets):
        """Squared error per volume summed over all voxels: that in coordinates plus what they leave out."""
        inputs, coordinates, left_over = batch
        errors = nn.functional.mse_loss(self.predict_target(inputs, targets), coordinates, reduction="none")
        return (errors @ torch.as_tensor(targets.basis.scale**2, device=self.device) + left_over).mean()

    def shares(self, inputs, targets):
        """What each voxel keeps of the prediction of the validation block, and its evidence: see `kept_shares`."""
        true = torch.as_tensor(targets.smooth_val, device=self.device)
        predicted = self.in_voxels(inputs, targets, targets.smooth_components)
        return kept_shares(predicted, true, n_independent=targets.n_independent)

    def training_step(self, batch, batch_idx):
        """Lightning's training step: the loss in shares of the targets' variance, so that lr means the same."""
        targets = self.trainer.datamodule.targets
        # Dropout depends on seed, epoch and batch alone: making a loader draws numbers too, once more after a kill.
        torch.manual_seed(seed_of(self.hparams.seed, self.current_epoch, f"dropout {batch_idx}"))
        loss = self.loss(batch, targets)
        self._log("train_MSE", loss.detach().double() * targets.mse_unit, batch)
        return loss / float(np.sum(targets.basis.scale**2))

    def validation_step(self, batch, batch_idx):
        """Log ``val_MSE`` and, of all voxels, ``val_Pearson`` and ``val_evidence``."""
        targets = self.trainer.datamodule.targets
        self._log("val_MSE", self.loss(batch, targets).double() * targets.mse_unit, batch)
        predicted = self.in_voxels(batch[0], targets, targets.basis.components)
        r, n_constant = mean_pearson(predicted, torch.as_tensor(targets.val_voxels, device=self.device))
        shares, log_evidence = self.shares(batch[0], targets)
        for name, value in (
            ("val_Pearson", r),
            ("val_constant_voxels", n_constant),
            (MONITOR, log_evidence),
            ("val_kept_share", shares.mean()),
        ):
            self._log(name, torch.as_tensor(float(value), dtype=torch.float64), batch)

    def _log(self, name, value, batch):
        self.log(name, value, on_step=False, on_epoch=True, batch_size=len(batch[0]))

    def configure_optimizers(self):
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)


def mean_pearson(predicted, true):
    """Pearson r over time, mean over the voxels that vary (NaN where none does), and how many do not."""
    a, b = predicted - predicted.mean(dim=0), true - true.mean(dim=0)
    aa, bb = (a * a).sum(dim=0), (b * b).sum(dim=0)
    # What rounding leaves of a constant series is not variation.
    floors = ((len(x) * (1e-6 * x.abs().amax(dim=0)) ** 2) for x in (predicted, true))
    varies = (aa > next(floors)) & (bb > next(floors))
    r = (a * b).sum(dim=0) / torch.sqrt(aa * bb)
    return r[varies].mean(), int((~varies).sum())


def fold_basis(model, targets, *, shares=None, space=None, n_previous=0):
    """Return the same network with the basis in its last layer, and that of previous volumes in its first.

    Parameters
    ----------
    model : AudioFmriMLP
        Scores in, coordinates out.
    targets : Targets
    shares : array of shape (n_voxels,), optional
        What each voxel keeps of the prediction.
    space : Space, optional
        Previous volumes → scores, for ``n_previous`` of them, nearest first.

    Returns
    -------
    AudioFmriMLP
        Features (and previous volumes, one after the other) → voxels.
    """
    basis = targets.basis
    kept = torch.ones(len(basis.mean)) if shares is None else torch.from_numpy(np.asarray(shares, dtype=np.float32))
    settings = {k: v for k, v in model.hparams.items() if k not in ("n_features", "n_outputs", "n_past")}
    n_features, n_past = model.hparams.n_features, n_previous * len(basis.mean)
    folded = AudioFmriMLP(n_features, len(basis.mean), n_past=n_past, **settings)
    with torch.no_grad():
        for own, trained in zip(folded.net[1:-1], model.net[1:-1], strict=True):
            own.load_state_dict(trained.state_dict())
        first = model.net[0].weight
        if n_past:
            by_lag = first[:, n_features:].chunk(n_previous, dim=1)
            loadings = torch.from_numpy(space.loadings)
            first = torch.cat([first[:, :n_features], *(weights @ loadings.T for weights in by_lag)], dim=1)
            folded.past_mean.copy_(torch.from_numpy(space.centre).repeat(n_previous))
        if len(model.net) > 1:
            folded.net[0].weight.copy_(first)
            folded.net[0].bias.copy_(model.net[0].bias)
        components = torch.from_numpy(basis.components) * torch.from_numpy(basis.scale) * kept[:, None]
        folded.net[-1].weight.copy_(components @ model.net[-1].weight)
        folded.net[-1].bias.copy_(components @ model.net[-1].bias + torch.from_numpy(targets.level.astype(np.float32)))
    return folded.eval()


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
    write_torch(path, content)


def write_torch(path, content):
    """Write what torch can save, whole or not at all; a full disk is an ``OSError``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with write_whole(path) as part:
        part.write_bytes(buffer.getbuffer())


def read_checkpoint(path):
    """What a checkpoint holds: nothing in it is run, and each part has the checksum that it was written with.

    Raises
    ------
    Exception
        Whatever zipfile, pickle and torch make of a damaged file.
    """
    with zipfile.ZipFile(path) as archive:  # torch itself does not look at checksums
        packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
        if spoilt := packed or archive.testzip():
            raise zipfile.BadZipFile(f"{spoilt} is not as torch writes it")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(path):
    """Open ``best.ckpt`` without running anything that is in it; return the model and its facts.

    Raises
    ------
    ModelError
        If it is missing, damaged, or holds more than plain weights and facts.
    """
    try:
        content = read_checkpoint(path)
        # No memory for sizes that the weights may not have, and no word on sizes of 0.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AudioFmriMLP(**content["hyper_parameters"])
        if not all(w.dtype == torch.float32 and w.is_contiguous() for w in content["state_dict"].values()):
            raise TypeError("weights must be float32, each with a place of its own")
        model.load_state_dict(content["state_dict"], assign=True)
        model.eval()(
            torch.zeros(1, content["state_dict"]["net.0.weight"].shape[1])
        )  # one that cannot answer is no model
        return model, content["bold_audio"]
    except FileNotFoundError:
        raise ModelError(f"{path} is missing - run notebook 04 to train it") from None
    except Exception as error:
        raise ModelError(
            f"{path} is damaged or not a safe checkpoint ({type(error).__name__}) - delete it and train again"
        ) from error


def mlp_output(model, X, previous=None):
    """Output of the folded network, array (n, n_voxels), float32.

    Parameters
    ----------
    model : AudioFmriMLP
    X : array of shape (n, n_features)
    previous : array of shape (n, n_previous, n_voxels), optional
        Previous volumes, nearest first, for a network that has them as inputs.
    """
    arrays = [X] if previous is None else [X, np.reshape(previous, (len(X), -1))]
    with torch.no_grad():
        return model(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays)).numpy()
