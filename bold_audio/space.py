"""The whole brain's previous volume as a few numbers: principal components, fitted on train."""

from dataclasses import dataclass

import numpy as np

from bold_audio import gram


@dataclass(frozen=True)
class Space:
    """Principal components of volumes whose voxels have variance 1.

    Parameters
    ----------
    centre : array of shape (n_voxels,)
        Mean volume.
    loadings : array of shape (n_voxels, n_components), float32
        Raw intensities → scores of variance 1.
    """

    centre: np.ndarray
    loadings: np.ndarray

    def scores(self, volumes):
        """Scores of volumes, array of shape (n_volumes, n_components)."""
        return (np.asarray(volumes, dtype=np.float32) - self.centre) @ self.loadings

    def scores_before(self, Y):
        """Scores of the volume before each volume of a run: array of shape (n_volumes, n_components), first row 0."""
        return np.vstack([np.zeros((1, self.loadings.shape[1])), self.scores(Y[:-1])])


@dataclass(frozen=True)
class SpatialHistory:
    """What the components of the previous volume add to a prediction.

    Parameters
    ----------
    space : Space
    weights : array of shape (n_components, n_voxels), float32
    """

    space: Space
    weights: np.ndarray

    order = 1  # volumes that it looks back

    def __call__(self, rows, previous):
        """Contribution to the volumes ``rows``, shape (n_rows, n_voxels), from the volume before each."""
        return self.space.scores(previous[0]) @ self.weights


def principal_space(Y, *, rows, n_components, chunk_voxels=8192):
    """Fit the first principal components of the volumes ``rows``, from their Gram matrix.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
    rows : array of int
        Volumes fitted on, increasing.
    n_components : int
    chunk_voxels : int
        Voxels worked on at once: bounds memory.

    Returns
    -------
    Space
        At most as many components as the volumes span.

    Notes
    -----
    With Z the volumes, voxels centred and of variance 1, K = Z Zᵀ = U S² Uᵀ; the scores √n U follow from the
    loadings √n Zᵀ U / S². Voxels constant in ``rows`` have no part in them.
    """
    everywhere = {"all": np.ones(Y.shape[1], bool)}
    volumes = np.arange(rows[0], rows[-1] + 1)
    options = {"volumes": volumes, "train": rows, "scaled": True, "chunk_voxels": chunk_voxels}
    K = gram.gram_matrices(Y, regions=everywhere, **options)["all"].target([1.0], rows)
    s2, U = np.linalg.eigh(K)
    kept = np.flatnonzero(s2 > 1e-7 * s2[-1])[::-1][:n_components]
    per_volume = (U[:, kept] * np.sqrt(len(rows)) / s2[kept]).astype(np.float32)
    centre, loadings = np.empty(Y.shape[1], np.float32), np.empty((Y.shape[1], len(kept)), np.float32)
    for start in range(0, Y.shape[1], chunk_voxels):
        slab = slice(start, start + chunk_voxels)
        y = np.asarray(Y[rows, slab])
        z, _ = gram.centred_slab(y, slice(None), scaled=True)
        centre[slab], spread = y.mean(axis=0, dtype=np.float64), y.std(axis=0, dtype=np.float64)
        loadings[slab] = (z.T @ per_volume) / np.where(spread > 0, spread, np.inf)[:, None]
    return Space(centre, loadings)
