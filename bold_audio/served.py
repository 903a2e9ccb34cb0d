"""What a model version computes, as one network: features (and previous volumes) → voxels and coordinates.

The last layer of a network, and the weights of a linear model, are matrices of low rank: W = U S Vᵀ, with at most as
many columns as the last hidden layer has units. ``coordinates`` are S Vᵀ h, and U is the orthonormal basis that unfolds
them (`bundle.Bundle.unfold`): a few dozen numbers for a volume, exactly.
"""

import numpy as np
import torch
from torch import nn

from bold_audio.space import Space, SpatialHistory


def low_rank(W):
    """Orthonormal basis and coordinates of a matrix (n_voxels, n_hidden): ``W = basis @ to_coordinates``.

    Returns
    -------
    basis : array of shape (n_voxels, rank), float32
    to_coordinates : array of shape (rank, n_hidden), float32
        A matrix of zeros has rank 1 here, for a model that says nothing is a model too.
    """
    W = np.asarray(W, dtype=np.float64)
    values, vectors = np.linalg.eigh(W.T @ W)
    kept = np.flatnonzero(values > 1e-14 * max(values[-1], np.finfo(float).tiny))[::-1]
    if not len(kept):
        return np.zeros((len(W), 1), np.float32), np.zeros((1, W.shape[1]), np.float32)
    S = np.sqrt(values[kept])
    return (W @ (vectors[:, kept] / S)).astype(np.float32), (vectors[:, kept] * S).T.astype(np.float32)


class ServedModel(nn.Module):
    """A trained model as it is exported.

    Parameters
    ----------
    hidden : nn.Module
        Features (and previous volumes) → last hidden layer.
    basis, to_coordinates : arrays of shape (n_voxels, rank), (rank, n_hidden)
        See `low_rank`.
    level : array of shape (n_voxels,)
        Volume at coordinates 0.
    phi : array of shape (order, n_voxels), optional
        Weights of a voxel's own previous volumes, nearest first.
    space : SpatialHistory, optional
        What components of the previous volume add.
    """

    def __init__(self, hidden, basis, to_coordinates, level, *, phi=None, space=None):
        super().__init__()
        self.hidden = hidden
        past = {} if phi is None else {"phi": phi}
        if space is not None:
            past |= {
                "space_centre": space.space.centre,
                "space_loadings": space.space.loadings,
                "space_weights": space.weights,
            }
        arrays = {"basis": basis, "level": level, "to_coordinates": to_coordinates} | past
        for name, values in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.float32)))
        self.has_phi, self.has_space = phi is not None, space is not None

    def forward(self, features, previous=None):
        """Voxels (batch, n_voxels) and coordinates (batch, rank).

        ``previous`` (batch, n_previous · n_voxels): the previous volumes one after the other, nearest first.
        """
        coordinates = self.hidden(features, previous) @ self.to_coordinates.T
        voxels = coordinates @ self.basis.T + self.level
        if self.has_phi:
            order, n_voxels = self.phi.shape
            voxels = voxels + (self.phi * previous.reshape(-1, order, n_voxels)).sum(dim=1)
        if self.has_space:
            scores = (previous[:, : len(self.level)] - self.space_centre) @ self.space_loadings
            voxels = voxels + scores @ self.space_weights
        return voxels, coordinates

    def bundle_arrays(self):
        """The arrays that unfold coordinates: see `bundle.Bundle`."""
        kept = ("basis", "level", "to_coordinates", "phi", "space_centre", "space_loadings", "space_weights")
        return {name: getattr(self, name).numpy() for name in kept if hasattr(self, name)}


class _MLPHidden(nn.Module):
    """All layers of an `mlp.AudioFmriMLP` but its last."""

    def __init__(self, model):
        super().__init__()
        self.net = model.net[:-1]
        self.register_buffer("past_mean", model.past_mean)

    def forward(self, features, previous=None):
        if previous is not None:
            features = torch.cat([features, previous - self.past_mean], dim=-1)
        return self.net(features)


class _LinearHidden(nn.Module):
    """The features themselves."""

    def forward(self, features, previous=None):
        return features


def from_mlp(model):
    """A folded `mlp.AudioFmriMLP` as it is served."""
    last = model.net[-1]
    basis, to_coordinates = low_rank(last.weight.detach().numpy())
    return ServedModel(_MLPHidden(model), basis, to_coordinates, last.bias.detach().numpy()).eval()


def from_linear(model):
    """An `encoding.LinearModel`, such as that of ``history_sound``, as it is served."""
    basis, to_coordinates = low_rank(model.weights.T)
    phi = model.phi if len(model.phi) else None
    return ServedModel(_LinearHidden(), basis, to_coordinates, model.intercept, phi=phi, space=model.space).eval()


def from_arrays(arrays):
    """The linear model that a bundle's arrays hold."""
    space = None
    if "space_loadings" in arrays:
        space = SpatialHistory(Space(arrays["space_centre"], arrays["space_loadings"]), arrays["space_weights"])
    head = (arrays["basis"], arrays["to_coordinates"], arrays["level"])
    return ServedModel(_LinearHidden(), *head, phi=arrays.get("phi"), space=space).eval()
