r"""How well each delay is supported by the volumes, voxel by voxel and pooled, and how sure that is.

**One voxel.** On volumes whose noise is nearly white, ridge is a Gaussian prior on the weights (variance σ²/α), and a
delay and strength have a closed-form likelihood with weights and σ² integrated out. Against the model without sound,
with U S Vᵀ the centred features, c = Uᵀ y / ‖y‖ and n volumes,

    log B(Δt, α) = −½ Σ_i log(1 + s_i²/α) − (n − 1)/2 · log(1 − Σ_i c_i² s_i² / (s_i² + α)).

The strengths tried are equally likely beforehand, and so is every second of delay; normalised over the delays, B is the
voxel's posterior. Its median is the voxel's delay, the shortest set of delays that holds 95 % of it the interval.

**A region.** A share π of the voxels follow the sound, nobody knows which: T(Δt) = Σ_voxels log(1 − π + π B(Δt)).

**Neighbours repeat one another**, so exp T is too sure of itself. T is a composite likelihood; its slope at the best
delay, g = Σ_k g_k summed over volumes k, has the variance J = Σ_k g_k² while its curvature is H, and J = H only if
voxels were independent. exp(T / τ) with τ = J/H has the right width [1]_. g_k is each voxel's residual times the
change of its prediction with the delay, weighted by how surely the voxel follows the sound; both the change that
the refitted weights cannot absorb and the one that the refitting itself makes are in it.

.. [1] Varin, Reid & Firth (2011). An overview of composite likelihood methods. Statistica Sinica 21, 5-42.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from bold_audio.gram import ridge_strengths
from bold_audio.significance import circular_designs

SHARE = 0.03  # π: the few per cent of a brain that follow a sound
LEVEL = 0.95
BATCH = 32  # designs multiplied at once
MANY_ROWS = 768  # from so many on all circular shifts of a design would be large, and slower than Fourier transforms
EM_STEPS = 100
EM_CHANGE = 1e-5  # of a prior that changes less from step to step nothing more is asked


@dataclass(frozen=True)
class Basis:
    """Designs ready for `log_evidence`.

    Parameters
    ----------
    U : array of shape (n_designs, p, n_rows), float32
        Orthonormal features, transposed.
    shrink : array of shape (n_designs, n_alphas, p), float32
        s² / (s² + α).
    volume : array of shape (n_designs, n_alphas), float32
        ½ Σ log(1 + s²/α).
    """

    U: np.ndarray
    shrink: np.ndarray
    volume: np.ndarray

    def projector(self, y):
        """A function: slice of designs → Uᵀ y of each, array of shape (n, p, n_voxels)."""
        n_rows, n_voxels = y.shape
        return lambda part: (self.U[part].reshape(-1, n_rows) @ y).reshape(-1, self.U.shape[1], n_voxels)


@dataclass(frozen=True)
class CircularBasis:
    """All circular shifts of one long design: as `Basis`, but U, of n_rows² numbers per feature, is never there.

    Parameters
    ----------
    spectrum : array of shape (n_frequencies, p)
        Conjugate Fourier transform of the unshifted features.
    turn : array of shape (n_designs, p, p), float32
        Uᵀ = turn Xᵀ.
    shrink, volume
        As for `Basis`.
    """

    spectrum: np.ndarray
    turn: np.ndarray
    shrink: np.ndarray
    volume: np.ndarray

    def projector(self, y):
        """As of `Basis`; ``y`` must not hold what was taken off the shifted designs.

        Products of y with all shifts of a feature are their circular correlation.
        """
        heard = fft.rfft(y.astype(np.float64), axis=0)
        products = np.empty((len(self.turn), len(self.turn[0]), y.shape[1]), np.float32)
        for feature, spectrum in enumerate(self.spectrum.T):
            products[:, feature] = fft.irfft(heard * spectrum[:, None], len(y), axis=0)
        return lambda part: self.turn[part] @ products[part]


def make_basis(X, alphas):
    """Prepare designs, array of shape (n_designs, n_rows, p), and finite ridge strengths."""
    X = np.asarray(X, dtype=np.float64)
    X = X - X.mean(axis=1, keepdims=True)
    turn, *sizes = _decompose(X.transpose(0, 2, 1) @ X, alphas)
    U = (X @ turn[0]) * turn[1][:, None, :]
    return Basis(np.ascontiguousarray(U.transpose(0, 2, 1), dtype=np.float32), *sizes)


def _decompose(G, alphas):
    """Of designs with the cross-products G: eigenvectors and 1 / s, and the ``shrink`` and ``volume`` of a basis."""
    alphas = np.asarray(alphas, dtype=float)
    alphas = alphas[np.isfinite(alphas)]
    V, D = ridge_strengths(G, [0.0])
    inverse = D[:, 0]  # 1 / s², 0 where there is no feature
    s2 = np.where(inverse > 0, 1 / np.where(inverse > 0, inverse, 1), 0.0)
    ratio = s2[:, None, :] / alphas[None, :, None]
    return (
        (V, np.sqrt(inverse)),
        (ratio / (1 + ratio)).astype(np.float32),
        (0.5 * np.log1p(ratio).sum(axis=2)).astype(np.float32),
    )


def circular_bases(played, alphas, Q=None):
    """Prepare all circular shifts of some designs of many rows.

    Parameters
    ----------
    played : list of arrays of shape (n_rows, p)
    alphas : sequence of float
        Finite ridge strengths.
    Q : array of shape (n_rows, q), optional
        Orthonormal columns taken off every shifted design, the mean among them; without it, the mean alone. They must
        have been taken off the volumes, too.

    Returns
    -------
    list of Basis or CircularBasis
        Of fewer than `MANY_ROWS` rows, one Basis of all designs; else one CircularBasis for each.
    """
    if len(played[0]) < MANY_ROWS:
        designs = np.concatenate([circular_designs(X) for X in played])
        return [make_basis(designs if Q is None else without(designs, Q), alphas)]
    Q = np.full((len(played[0]), 1), len(played[0]) ** -0.5) if Q is None else Q
    return [_circular_basis(np.asarray(X, dtype=np.float64), alphas, Q) for X in played]


def _circular_basis(X, alphas, Q):
    spectrum = np.conj(fft.rfft(X, axis=0))
    shared = fft.rfft(Q, axis=0)
    # Qᵀ X of every shift
    inside = np.stack([fft.irfft(shared * one[:, None], len(X), axis=0) for one in spectrum.T], axis=2)
    (V, per_s), shrink, volume = _decompose(X.T @ X - inside.transpose(0, 2, 1) @ inside, alphas)
    turn = (V * per_s[:, None, :]).transpose(0, 2, 1).astype(np.float32)
    return CircularBasis(spectrum, turn, shrink, volume)


def without(A, Q):
    """Columns of ``A`` (…, n_rows, m) without what the orthonormal ``Q`` spans."""
    Q = Q.astype(A.dtype, copy=False)
    return A - Q @ (Q.T @ A)


def log_evidence(y, basis):
    """Log evidence of every design against no sound, for each voxel of a slab.

    Parameters
    ----------
    y : array of shape (n_rows, n_voxels), float32
        Whitened volumes.
    basis : Basis or CircularBasis

    Returns
    -------
    array of shape (n_designs, n_voxels), float32
        Averaged over the ridge strengths. Constant voxels are at or below 0.
    """
    y = y - y.mean(axis=0)
    norm = np.sqrt(np.einsum("kv,kv->v", y, y))
    y /= np.where(norm > 0, norm, np.inf)
    n_designs, n_rows, projected = len(basis.volume), len(y), basis.projector(y)
    found = np.empty((n_designs, y.shape[1]), np.float32)
    for start in range(0, n_designs, BATCH):
        part = slice(start, start + BATCH)
        c = projected(part)
        np.square(c, out=c)
        explained = basis.shrink[part] @ c
        np.minimum(explained, 1 - 1e-6, out=explained)
        log_b = np.log1p(np.negative(explained, out=explained), out=explained)
        log_b *= -(n_rows - 1) / 2
        log_b -= basis.volume[part][:, :, None]
        found[part] = log_mean_exp(log_b, axis=1)
    return found


def log_mean_exp(values, axis):
    """Logarithm of the mean of exponentials, without overflow. Changes ``values``."""
    largest = values.max(axis=axis, keepdims=True)
    values -= largest
    return np.log(np.exp(values, out=values).mean(axis=axis)) + np.squeeze(largest, axis=axis)


def learn_prior(log_likelihood, *, pseudo_voxels=0.0):
    """How often each of some choices is right, learnt from all voxels: expectation maximisation, uniform at the start.

    Parameters
    ----------
    log_likelihood : array of shape (n_choices, n_voxels)
    pseudo_voxels : float
        Voxels added of which half make the first choice and half, evenly, the others: for few voxels.

    Returns
    -------
    prior : array of shape (n_choices,)
    posterior : array of shape (n_choices, n_voxels)
        Columns sum to 1.
    """
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=0))
    prior = np.full(len(likelihood), 1 / len(likelihood))
    believed = pseudo_voxels * np.r_[0.5, np.full(len(likelihood) - 1, 0.5 / max(1, len(likelihood) - 1))]
    for _ in range(EM_STEPS):
        counted = prior * (likelihood @ (1 / (prior @ likelihood)))
        prior, before = (counted + believed) / (likelihood.shape[1] + pseudo_voxels), prior
        if np.abs(prior - before).max() < EM_CHANGE:
            break
    posterior = prior[:, None] * likelihood
    return prior, posterior / posterior.sum(axis=0)


def follows(log_b):
    """Posterior probability that a voxel follows the sound, when a share `SHARE` does beforehand."""
    return np.exp(np.log(SHARE) + log_b - mixture(log_b))


def mixture(log_b):
    """log(1 − π + π B): what a voxel adds to the evidence of a region of which a share π follows the sound."""
    largest = np.maximum(log_b, 0)
    return largest + np.log((1 - SHARE) * np.exp(-largest) + SHARE * np.exp(log_b - largest))


def posterior(log_b, delays):
    """Posterior over the delays, every second of delay equally likely beforehand; columns sum to 1."""
    low, high = cells(delays)
    weight = np.exp(log_b - log_b.max(axis=0)) * (high - low).reshape(-1, *[1] * (log_b.ndim - 1))
    return weight / weight.sum(axis=0)


def cells(delays):
    """The span of delays that each delay tried stands for: two arrays, lower and upper ends.

    Examples
    --------
    >>> cells([4.0, 5.0, 7.0])
    (array([4. , 4.5, 6. ]), array([4.5, 6. , 7. ]))
    """
    delays = np.asarray(delays, dtype=float)
    if len(delays) == 1:
        return delays, delays + 1.0
    middle = (delays[1:] + delays[:-1]) / 2
    return np.r_[delays[0], middle], np.r_[middle, delays[-1]]


def interval(weight, delays, level=LEVEL):
    """Shortest set of delays that holds ``level`` of a posterior, as its two ends.

    Parameters
    ----------
    weight : array of shape (n_delays, …)
        From `posterior`.
    delays : array of shape (n_delays,)

    Returns
    -------
    low, high : arrays of shape (…)
        Where the posterior has several peaks the interval spans them all.
    """
    low, high = cells(delays)
    shape = (-1, *[1] * (weight.ndim - 1))
    # Density, not mass: a wide cell is not more likely for being wide.
    order = np.argsort(-weight / (high - low).reshape(shape), axis=0, kind="stable")
    ranked = np.take_along_axis(weight, order, axis=0)
    held = np.cumsum(ranked, axis=0) - ranked < level
    inside = np.zeros(weight.shape, bool)
    np.put_along_axis(inside, order, held, axis=0)
    return (
        np.where(inside, low.reshape(shape), np.inf).min(axis=0),
        np.where(inside, high.reshape(shape), -np.inf).max(axis=0),
    )


def median(weight, delays):
    """The delay at which half of a posterior is reached."""
    return np.asarray(delays, dtype=float)[(np.cumsum(weight, axis=0) >= 0.5).argmax(axis=0)]


def slope_by_volume(y, X, change, alphas, log_b):
    """Contribution of each volume to the slope of T with the delay, for one slab.

    Parameters
    ----------
    y : array of shape (n_rows, n_voxels)
        Whitened volumes.
    X, change : arrays of shape (n_rows, p)
        Features at the best delay, and their change per second of delay.
    alphas : sequence of float
        Finite ridge strengths.
    log_b : array of shape (n_voxels,)
        Evidence at that delay: voxels that hardly follow the sound are passed over.

    Returns
    -------
    array of shape (n_rows,)
    """
    sure = follows(log_b)
    use = sure > 0.01
    if not use.any():
        return np.zeros(len(y))
    y = np.asarray(y[:, use], dtype=np.float64)
    y -= y.mean(axis=0)
    U, s, Vt = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    shrink = s[:, None] ** 2 / (s[:, None] ** 2 + np.asarray(alphas)[None, :])  # (p, n_alphas)
    c = U.T @ y
    explained = np.minimum((shrink.T @ c**2) / (y**2).sum(axis=0), 1 - 1e-6)
    log_strength = -0.5 * np.log1p(s[:, None] ** 2 / np.asarray(alphas)).sum(axis=0)[:, None]
    log_strength = log_strength - (len(y) - 1) / 2 * np.log1p(-explained)
    by_strength = np.exp(log_strength - log_strength.max(axis=0))
    kept = shrink @ (by_strength / by_strength.sum(axis=0))  # (p, n_voxels): the mean shrinkage of each direction
    residual = y - U @ (kept * c)
    per_s = np.where(s > 1e-9 * s[0], 1 / np.where(s > 0, s, 1), 0.0)[:, None]
    change = change - change.mean(axis=0)
    moved = change @ (Vt.T @ (kept * c * per_s))
    moved -= U @ (U.T @ moved)
    moved += U @ (kept * per_s * (Vt @ (change.T @ residual)))
    return np.einsum("kv,kv,v->k", residual, moved, sure[use] / np.mean(residual**2, axis=0))


def curvature(T, delays, at):
    """−T″ at one of the delays, by its neighbours on both sides.

    Parameters
    ----------
    T : array of shape (n_delays,)
        Pooled log evidence.
    delays : array of shape (n_delays,)
        In seconds; increasing, not necessarily evenly.
    at : int
        Index of an inner delay.

    Returns
    -------
    float
        Per s².
    """
    x0, x1, x2 = (delays[at + k] for k in (-1, 0, 1))
    left, right = (T[at] - T[at - 1]) / (x1 - x0), (T[at + 1] - T[at]) / (x2 - x1)
    return -(right - left) / ((x2 - x0) / 2)


def temper(T, delays, slope, at):
    """τ = J/H, by which T must be divided for its width to be right.

    Parameters
    ----------
    T, delays, at
        As for `curvature`; ``at`` is the best delay.
    slope : array of shape (n_volumes,)
        g_k, each volume's part of T′ there, per s.

    Returns
    -------
    float
        At least 1; infinite where T has no peak.
    """
    H = curvature(T, delays, at)
    return max(1.0, float(np.sum(slope**2) / H)) if H > 0 else np.inf
