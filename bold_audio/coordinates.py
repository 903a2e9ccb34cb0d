r"""What a network has to predict: principal coordinates of its targets, and what each voxel keeps of the prediction.

**Coordinates in place of voxels.** The targets of n volumes span at most n dimensions, so the network predicts
principal coordinates, n numbers in place of 35,000 voxels, and the basis C (orthonormal columns) is folded into its
last layer afterwards. With t a target, t̄ the mean and o the network's output,

    ‖t − t̄ − C o‖² = ‖Cᵀ(t − t̄) − o‖² + ‖t − t̄‖² − ‖Cᵀ(t − t̄)‖²:

the error over voxels is that in coordinates plus a constant, so losses, and the gradients of all shared layers, are
those of all voxels.

**Three targets.** ``volume`` and ``difference`` are what they say. ``whitened`` is generalised least squares: the
network gives the part of the volume that follows the sound, s(x), and is fitted where the noise is white,

    y[k] − Σ_l φ_l y[k−l]  ≈  s(x[k]) − Σ_l φ_l s(x[k−l]),

with φ the autoregression that serves all voxels (`gram.Gram.shared_history`). Slow noise that happens to go along with
the sound then counts as little as it should; one-step predictions are own history plus what the sound adds to it.

**The sound must be able to vanish.** Nearly all voxels hear nothing, and what a network learns in them is noise. Each
voxel keeps the share of the network's prediction that the validation block supports (`kept_shares`, empirical Bayes
over all voxels), after neighbouring voxels were averaged; the shares are folded into the last layer too. How well the
block is predicted by all shares together, against no network at all, is the evidence that chooses epoch and delay; its
few shares of shares cannot be fitted to luck as a share per voxel could.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import evidence

MONITOR = "val_evidence"  # what chooses epoch and delay: the largest
SHARES = np.linspace(0, 1, 9)  # of the network's prediction that a voxel may keep


@dataclass(frozen=True)
class TargetBasis:
    """Principal coordinates of the targets of the volumes fitted on.

    Parameters
    ----------
    mean : array of shape (n_voxels,)
        Mean target.
    components : array of shape (n_voxels, n_components)
        Orthonormal columns.
    scale : array of shape (n_components,)
        Root mean square of each coordinate; the network predicts coordinates divided by it, so that a step of the
        optimiser means as much for a faint one as for a strong one.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    @property
    def n_components(self):
        """Number of coordinates."""
        return self.components.shape[1]

    def coordinates(self, T):
        """Scaled coordinates of targets, shape (n, n_components), and the energy they leave out, shape (n,)."""
        centred = T - self.mean
        coordinates = centred @ self.components
        left_over = np.einsum("kv,kv->k", centred, centred) - np.einsum("kc,kc->k", coordinates, coordinates)
        return coordinates / self.scale, np.maximum(left_over, 0)


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
    TargetBasis
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
    scale = np.sqrt(values[kept] / len(T)).astype(np.float32)
    return TargetBasis(mean, np.ascontiguousarray(components), scale)


@dataclass(frozen=True)
class Targets:
    """What a network has to predict; the same for every delay.

    Parameters
    ----------
    basis : TargetBasis
    fit, val : arrays of int
        Volumes to fit and to validate on; a gap lies between them.
    output_taps : array of shape (n_taps,)
        The target is predicted by Σ_l output_taps[l] · output[k − l].
    fit_part, val_part : (coordinates, left_over)
        See `TargetBasis.coordinates`.
    val_voxels : array of shape (n_val, n_voxels), float32
        Targets of the validation block, the basis' mean taken off.
    smooth_components, smooth_val : arrays of shape (n_voxels, n_components), (n_val, n_voxels)
        The basis' components and ``val_voxels`` after neighbouring voxels were averaged.
    n_independent : float
        How many independent volumes the validation block is worth.
    mse_unit : float
        What a squared error in raw intensities, summed over voxels, is in MSE per voxel of scaled BOLD.
    level : array of shape (n_voxels,)
        What a model of voxels adds to its coordinates: the mean target; where it is whitened, the mean volume.
    """

    basis: TargetBasis
    fit: np.ndarray
    val: np.ndarray
    output_taps: np.ndarray
    fit_part: tuple
    val_part: tuple
    val_voxels: np.ndarray
    smooth_components: np.ndarray
    smooth_val: np.ndarray
    n_independent: float
    mse_unit: float
    level: np.ndarray


def make_targets(Y, *, target, fit, val, whitening=None, n_components=None, smooth=None, value_range=(0.0, 1.0)):
    """Targets of a run in principal coordinates.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
    target : {"whitened", "difference", "volume"}
    fit, val : arrays of int
        Volumes, none nearer to the start of the run than the target has further taps.
    whitening : array of shape (1 + order,), optional
        (1, −φ_1, …); needed for ``whitened``.
    n_components : int, optional
        As for `principal_basis`.
    smooth : callable, optional
        Averages neighbouring voxels of volumes, array of shape (n, n_voxels).
    value_range : (float, float)
        Scaling of BOLD for the losses.

    Returns
    -------
    Targets
    """
    taps = {"whitened": whitening, "difference": [1.0, -1.0], "volume": [1.0]}[target]
    output_taps = np.asarray(whitening if target == "whitened" else [1.0], dtype=np.float32)

    def of(rows):
        made = np.zeros((len(rows), Y.shape[1]), np.float32)
        for lag, weight in enumerate(taps):
            part = np.array(Y[rows - lag], dtype=np.float32)
            made += np.multiply(part, np.float32(weight), out=part)
        return made

    T, T_val = of(fit), of(val)
    basis = principal_basis(T, n_components=n_components)
    fit_part = basis.coordinates(T)
    del T  # as large as the run, as are the basis and its smooth copy
    c = fit_part[0] * basis.scale
    memory = np.einsum("kc,kc->", c[1:], c[:-1]) / max(np.einsum("kc,kc->", c, c), np.finfo(float).tiny)
    memory = float(np.clip(memory, 0, 0.99))  # of neighbouring volumes
    return Targets(
        basis,
        fit,
        val,
        output_taps,
        fit_part,
        basis.coordinates(T_val),
        T_val - basis.mean,
        basis.components if smooth is None else np.ascontiguousarray(smooth(basis.components.T).T),
        T_val - basis.mean if smooth is None else smooth(T_val - basis.mean),
        len(val) * (1 - memory) / (1 + memory),
        1 / (value_range[1] - value_range[0]) ** 2 / Y.shape[1],
        np.asarray(Y[fit]).mean(axis=0, dtype=np.float64) if target == "whitened" else basis.mean,
    )


def kept_shares(predicted, true, *, n_independent):
    """Share of the network's prediction that each voxel should keep, and how much all of them are worth.

    Gaussian noise of unknown variance gives share s the likelihood ratio (error(s) / error(0))^(−n/2) against no
    prediction at all; how often each share is right beforehand is learnt from all voxels.

    Parameters
    ----------
    predicted, true : tensors of shape (n_volumes, n_voxels)
        Both without the mean of the volumes fitted on.
    n_independent : float
        Number n of independent volumes that they are worth.

    Returns
    -------
    shares : array of shape (n_voxels,)
        Posterior mean, from 0 to 1; 0 throughout where the network is worth nothing.
    log_evidence : float
        Logarithm of how much likelier ``true`` is with the network than without, summed over voxels. Neighbours repeat
        one another, so its size says less than its order.
    """
    import torch  # slow to import; making targets does not need it

    products = (true * true, true * predicted, predicted * predicted)
    tt, tp, pp = (one.sum(dim=0, dtype=torch.float64).cpu().numpy() for one in products)
    s = SHARES[:, None]
    error = (tt - 2 * s * tp + s**2 * pp) / np.where(tt > 0, tt, np.inf)
    log_likelihood = -n_independent / 2 * np.log(np.maximum(np.where(tt > 0, error, 1.0), 1e-12))
    prior, posterior = evidence.learn_prior(log_likelihood)
    largest = log_likelihood.max(axis=0)
    log_evidence = float(np.sum(np.log(prior @ np.exp(log_likelihood - largest)) + largest))
    return SHARES @ posterior * (log_evidence > 0), log_evidence
