r"""Every delay, ridge strength and feature setting from one Gram matrix of the scan.

**The sum over voxels needs no voxels.** Ridge on features X that all voxels share predicts a held-out block
v from the volumes t that were fitted on as

    ŷ_v = ȳ_t + (X_v − x̄_t) W X̃_tᵀ Y_t,        W = (X̃_tᵀX̃_t + α)⁻¹,        X̃_t = X_t − x̄_t

with x̄_t, ȳ_t the means over t (the intercept). Its squared error summed over all voxels is a function of the
Gram matrix K = Y Yᵀ (n_volumes × n_volumes) alone. With A = X_v − x̄_t and four products per block,

    G = X̃_tᵀX̃_t,    H = AᵀA,    M = X̃_tᵀ K_tt X̃_t,    N = X̃_tᵀ (K_tv − K_tt 11ᵀ/n_t) A,

    Σ_voxels ‖y_v − ŷ_v‖² = c − 2 tr(W N) + tr(W M W H),
    c = tr K_vv − 2 · 1ᵀK_vt1/n_t + n_v · 1ᵀK_tt1/n_t²,

where c is the error of the mean ȳ_t. With G = V S² Vᵀ and d_i(α) = 1 / (s_i² + α) a strength costs p² operations,

    error(α) = c − 2 Σ_i d_i (VᵀNV)_ii + Σ_ij d_i d_j (VᵀMV)_ij (VᵀHV)_ij .

The scan is read once, to make K; after that 2,000 settings cost about as much as one.

**Everything linear in time follows from the same K.** A target t[k] = Σ_l a_l y[k−l] has the Gram matrix F K Fᵀ, F
the band matrix of a: (1) is the volume, (1, −1) the difference, (1, −φ_1, …, −φ_p) the volume whitened by an
autoregression. The φ that serve all voxels are themselves sums over K's diagonals. Features that are columns of a
larger design (fewer MFCCs, fewer lags) need sub-matrices of G, H, M, N only.

**Accuracy.** Each voxel's mean over train is taken off before the product (raw intensities near 1,000 with 1 % signal
would cancel in float32); slabs of voxels are multiplied in float32 and added in float64, and all that follows is
float64. The summed error differs from brute force in float64 by less than 1e-5 of itself (tests; about 1e-7 usually).
Slabs of another width change K by rounding, about 1e-7 of its diagonal; the same width gives the same bits.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from joblib import cpu_count
from threadpoolctl import threadpool_limits

RANK_TOLERANCE = 1e-12  # of the largest s²: smaller ones are rounding, not features


@dataclass(frozen=True)
class Gram:
    """Gram matrix of a region's voxels.

    Parameters
    ----------
    K : array of shape (n_volumes, n_volumes)
        Float64: K[j, k] = Σ_voxels y[j] y[k], each voxel's mean over train taken off.
    first : int
        The run's volume in row 0; rows are consecutive volumes.
    n_voxels : int
        Voxels that were summed over, constant ones not counted.
    """

    K: np.ndarray
    first: int
    n_voxels: int

    def target(self, taps, rows):
        """Gram matrix over ``rows`` of the target Σ_l taps[l] · y[k − l]: F K Fᵀ.

        Parameters
        ----------
        taps : sequence of float
            (1,) is the volume, (1, −1) the difference to the previous one.
        rows : array of int
            Volumes of the run, none nearer to ``first`` than there are further taps.
        """
        at = np.asarray(rows) - self.first
        if at.min() < len(taps) - 1 or at.max() >= len(self.K):
            raise ValueError(
                f"rows must lie in {self.first + len(taps) - 1} … {self.first + len(self.K) - 1}, got "
                f"{np.min(rows)} … {np.max(rows)}."
            )
        right = sum(weight * self.K[:, at - lag] for lag, weight in enumerate(taps))
        return sum(weight * right[at - lag] for lag, weight in enumerate(taps))

    def shared_history(self, rows, order):
        """Weights of the ``order`` previous volumes that predict ``rows`` best, the same for all voxels.

        Least squares over voxels and rows together, from sums along K's diagonals.

        Returns
        -------
        array of shape (order,)
        """
        at = np.asarray(rows) - self.first
        lags = range(order + 1)
        products = np.array([[self.K[at - a, at - b].sum() for b in lags] for a in lags])
        jitter = 1e-12 * np.trace(products) * np.eye(order)
        return np.linalg.solve(products[1:, 1:] + jitter, products[1:, 0])


def gram_matrices(Y, *, volumes, train, regions, scaled, chunk_voxels=8192):
    """Gram matrices of every region in one pass over the scan.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run; slabs of voxels are read one after the other, so it may be memory-mapped and larger than memory.
    volumes : array of int
        Consecutive volumes to keep: train, and before it the previous volumes that targets need.
    train : array of int
        Volumes whose mean (and, with ``scaled``, standard deviation) each voxel loses.
    regions : dict of str to array of bool, shape (n_voxels,)
        Regions may overlap; a region of all voxels costs no copy.
    scaled : bool
        Divide each voxel by its standard deviation over ``train``, so that loud voxels do not decide.
    chunk_voxels : int
        Voxels per slab: memory is about 3 · n_volumes · chunk_voxels · 4 bytes beside the result.

    Returns
    -------
    dict of str to Gram
    """
    first, last = int(volumes[0]), int(volumes[-1]) + 1
    inside = np.asarray(train) - first
    contiguous = slice(inside[0], inside[-1] + 1) if np.all(np.diff(inside) == 1) else inside
    sums = {name: np.zeros((last - first, last - first)) for name in regions}
    counts = dict.fromkeys(regions, 0)
    for start in range(0, Y.shape[1], chunk_voxels):
        slab = slice(start, start + chunk_voxels)
        wanted = {name: roi[slab] for name, roi in regions.items() if roi[slab].any()}
        if not wanted:
            continue
        y, varies = centred_slab(Y[first:last, slab], contiguous, scaled=scaled)
        for name, roi in wanted.items():
            part = y if roi.all() else y[:, roi]
            sums[name] += part @ part.T
            counts[name] += int(np.count_nonzero(varies & roi))
    return {name: Gram(K, first, counts[name]) for name, K in sums.items()}


def shared_filter(Y, *, volumes, train, order, chunk_voxels=8192):
    """The filter 1, −φ_1, … that whitens ``train``, one for all voxels, each of which counts alike.

    Y, volumes, train and chunk_voxels are as for `gram_matrices`.

    Returns
    -------
    array of shape (1 + order,)
        Drift is left in what it is estimated of.
    """
    everything = {"all": np.ones(Y.shape[1], bool)}
    K = gram_matrices(Y, volumes=volumes, train=train, regions=everything, scaled=True, chunk_voxels=chunk_voxels)[
        "all"
    ]
    return np.r_[1.0, -K.shared_history(train, order)]


def centred_slab(Y, train, *, scaled):
    """Take off each voxel's mean over ``train`` and, with ``scaled``, divide by its standard deviation there.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
    train : array of int, or slice
        Rows of Y.
    scaled : bool

    Returns
    -------
    y : array of shape (n_volumes, n_voxels), float32
        Voxels constant in train are 0 throughout.
    varies : array of bool, shape (n_voxels,)
    """
    y = np.array(Y, dtype=np.float32)
    inside = y[train]
    # A first guess of the mean, taken off twice, is exact to float32's rounding of the signal, not of the level.
    y -= inside[0].copy()
    y -= np.full(len(inside), 1 / len(inside), np.float32) @ y[train]
    power = np.einsum("kv,kv->v", y[train], y[train])
    varies = power > 0
    y[:, ~varies] = 0
    if scaled:
        y *= np.sqrt(len(inside) / np.where(varies, power, np.inf)).astype(np.float32)
    return y, varies


@dataclass(frozen=True)
class Slabs:
    """The target of all voxels in slabs of at most ``chunk_voxels``.

    Parameters
    ----------
    Y, volumes, train, chunk_voxels
        As for `gram_matrices`.
    taps : sequence of float
        As for `Gram.target`; its rows are ``train``.
    """

    Y: np.ndarray
    volumes: np.ndarray
    train: np.ndarray
    taps: np.ndarray
    chunk_voxels: int

    def read(self, slab):
        """The target of one slice of voxels: array of shape (n_rows, n_width), float32."""
        first = int(self.volumes[0])
        at = np.asarray(self.train) - first
        y, _ = centred_slab(self.Y[first : int(self.volumes[-1]) + 1, slab], at, scaled=False)
        return sum(np.float32(weight) * y[at - lag] for lag, weight in enumerate(self.taps))

    def map(self, work):
        """``work(slab, y)`` of every slab, in order, as many at once as there are cores."""
        starts = range(0, self.Y.shape[1], self.chunk_voxels)
        slabs = [slice(start, min(start + self.chunk_voxels, self.Y.shape[1])) for start in starts]
        return on_all_cores(lambda slab: work(slab, self.read(slab)), slabs)


def filtered(columns, taps, rows):
    """Filter columns of a run like the volumes: Σ_l taps[l] · columns[k − l] for every k of ``rows``.

    Parameters
    ----------
    columns : array of shape (n_volumes, n_columns)
    taps : sequence of float
        As for `Gram.target`.
    rows : array of int
        Volumes; as many as the filter looks back lie before each.

    Returns
    -------
    array of shape (n_rows, n_columns), float64

    Examples
    --------
    >>> filtered(np.array([[1.0], [3.0], [7.0]]), [1.0, -1.0], np.array([1, 2])).T
    array([[2., 4.]])
    """
    columns = np.asarray(columns, dtype=np.float64)
    return sum(weight * columns[rows - lag] for lag, weight in enumerate(taps))


def on_all_cores(work, items):
    """``[work(item) for item in items]``, each core on an item of its own.

    Many small products would otherwise be shared out between the cores one by one, and wait for each other: minutes
    in place of seconds where other programs run beside.
    """
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cpu_count()) as cores:
        return list(cores.map(work, items))


@dataclass(frozen=True)
class Fold:
    """Cross-products of one held-out block, for a batch of designs.

    Parameters
    ----------
    G, H : arrays of shape (n_designs, p, p)
        Features over the volumes fitted on, and over the held-out ones.
    M, N : arrays of shape (n_designs, p, p)
        The same with the scan's Gram matrix between.
    null : float
        Error of the mean of the volumes fitted on.
    """

    G: np.ndarray
    H: np.ndarray
    M: np.ndarray
    N: np.ndarray
    null: float

    def columns(self, chosen):
        """The same fold for designs of these columns only: array of int."""
        at = np.ix_(np.arange(len(self.G)), chosen, chosen)
        return Fold(self.G[at], self.H[at], self.M[at], self.N[at], self.null)


def fold_products(K, X, folds):
    """Reduce designs and a Gram matrix to the few products that every ridge strength and column subset needs.

    Parameters
    ----------
    K : array of shape (n_rows, n_rows) or (n_folds, n_rows, n_rows)
        Gram matrix of the target. One per fold where each block is scored on voxels of its own.
    X : array of shape (n_designs, n_rows, p)
        Designs, such as the features at each delay.
    folds : list of (fit, held) arrays of int
        Positions in K's rows.

    Returns
    -------
    list of Fold
    """
    products = []
    for Kf, (fit, held) in zip(_per_fold(K, folds), folds, strict=True):
        fitted, heard, through_fit, through_held = _centred(Kf, X, fit, held)
        turned = fitted.transpose(0, 2, 1)
        G, H = turned @ fitted, heard.transpose(0, 2, 1) @ heard
        products.append(
            Fold(G, H, turned @ through_fit, through_held.transpose(0, 2, 1) @ heard, null_error(Kf, fit, held))
        )
    return products


def _per_fold(K, folds):
    return np.broadcast_to(K, (len(folds), *np.shape(K)[-2:]))


def _centred(K, X, fit, held):
    """Features over the fitted and the held-out volumes without the former's mean, and K times the former.

    K's own rows lose the mean over ``fit`` where the block is held out: that is the intercept.
    """
    X = np.asarray(X, dtype=np.float64)
    mean = X[:, fit].mean(axis=1, keepdims=True)
    fitted, heard = X[:, fit] - mean, X[:, held] - mean
    n_designs, n_fit, p = fitted.shape
    flat = fitted.transpose(1, 0, 2).reshape(n_fit, -1)
    rows = np.concatenate([fit, held])
    through = (K[np.ix_(rows, fit)] @ flat).reshape(len(rows), n_designs, p).transpose(1, 0, 2)
    through_fit, through_held = through[:, :n_fit], through[:, n_fit:]
    return fitted, heard, through_fit, through_held - through_fit.mean(axis=1, keepdims=True)


def null_error(K, fit, held):
    """Squared error of the held-out volumes, summed over voxels, when the mean over ``fit`` predicts them.

    Parameters
    ----------
    K : array of shape (n_rows, n_rows)
        Gram matrix of the volumes.
    fit, held : arrays of int
        Rows of it.

    Returns
    -------
    float
    """
    losses = K[held, held] - 2 * K[np.ix_(held, fit)].mean(axis=1) + K[np.ix_(fit, fit)].mean()
    return float(losses.sum())


def ridge_errors(products, alphas):
    """Held-out squared error summed over voxels, for every design, fold and ridge strength.

    Parameters
    ----------
    products : list of Fold
    alphas : sequence of float
        Ridge strengths; infinite is the mean of the volumes fitted on.

    Returns
    -------
    array of shape (n_designs, n_folds, n_alphas)
    """
    errors = []
    for fold in products:
        V, D = ridge_strengths(fold.G, alphas)
        turn = V.transpose(0, 2, 1)
        linear = np.einsum("dij,dji->di", turn @ fold.N, V)
        square = (turn @ fold.M @ V) * (turn @ fold.H @ V)
        error = fold.null - 2 * np.einsum("dap,dp->da", D, linear) + np.einsum("dap,dap->da", D @ square, D)
        errors.append(np.maximum(error, 0))
    return np.stack(errors, axis=1)


def ridge_errors_at(products, alpha):
    """`ridge_errors` of one strength above 0, without eigenvectors and several times as fast: (n_designs, n_folds)."""
    errors = []
    for fold in products:
        if np.isinf(alpha):
            errors.append(np.full(len(fold.G), fold.null))
            continue
        W = np.linalg.inv(fold.G + alpha * np.eye(fold.G.shape[1]))
        linear = np.einsum("dij,dji->d", W, fold.N)
        errors.append(fold.null - 2 * linear + np.einsum("dij,dji->d", W @ fold.M, W @ fold.H))
    return np.maximum(np.stack(errors, axis=1), 0)


def ridge_strengths(G, alphas):
    """Eigenvectors of G, (n_designs, p, p), and 1 / (s² + α), (n_designs, n_alphas, p).

    ``alphas`` is (n_alphas,), the same for all designs, or (n_designs, n_alphas).
    """
    s2, V = np.linalg.eigh(G)
    kept = s2 > RANK_TOLERANCE * np.maximum(s2[:, -1:], np.finfo(float).tiny)
    return V, 1 / (np.where(kept, s2, np.inf)[:, None, :] + np.atleast_2d(np.asarray(alphas, dtype=float))[..., None])
