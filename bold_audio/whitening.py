r"""One autoregressive filter for all voxels and slow drift: what makes the noise of a whole run nearly white.

The filter is estimated without the slow drift, which would pass for autocorrelation: with D the drift columns and
P = I − D D⁺, the volumes without drift have the Gram matrix P K Pᵀ, and `gram.Gram.shared_history` reads the filter
from it. Filter and drift are then applied together: y, the design and D are filtered alike, and the filtered D is
taken off by least squares.
"""

from dataclasses import dataclass

import numpy as np

from bold_audio import gram
from bold_audio.confounds import DRIFT_PERIOD, slow_cosines
from bold_audio.files import ParameterError
from bold_audio.splits import stretches


def drift_cosines(n_volumes, t_r, *, rows, before=0, period=DRIFT_PERIOD):
    """Constant and slow cosines for each stretch of rows, 0 elsewhere.

    Parameters
    ----------
    n_volumes : int
        Length of the run, or of all runs one after the other.
    t_r : float
        Repetition time, in seconds.
    rows : array of int
        Increasing volumes; each stretch without a break has a drift of its own.
    before : int
        Volumes before each stretch that its cosines begin with: those that a filter looks back to.
    period : float
        Shortest period of a cosine, in seconds. The cut-off in Hz is ``1 / period``.

    Returns
    -------
    array of shape (n_volumes, n_columns)
        The discrete cosine basis with frequencies up to the cut-off (`nilearn`'s).

    Raises
    ------
    ParameterError
        If ``period`` is not positive, or more columns than half the rows would be taken off.

    Examples
    --------
    >>> drift_cosines(6, 1.0, rows=np.arange(2, 6), period=8.0).round(2)
    array([[ 0.  ,  0.  ],
           [ 0.  ,  0.  ],
           [ 0.92,  1.  ],
           [ 0.38,  1.  ],
           [-0.38,  1.  ],
           [-0.92,  1.  ]])
    """
    if not period > 0:
        raise ParameterError(f"period must be > 0 s, got {period} - 128 s keeps the film's blocks")
    parts = []
    for stretch in stretches(np.asarray(rows)):
        volumes = np.arange(max(stretch[0] - before, 0), stretch[-1] + 1)
        part = np.zeros((n_volumes, 1))
        part[volumes] = 1
        if len(volumes) > 2:
            waves = slow_cosines(np.arange(len(volumes)) * t_r, period=period)
            part = np.pad(part, ((0, 0), (waves.shape[1], 0)))
            part[volumes, :-1] = waves / np.sqrt(2 / len(volumes))
        parts.append(part)
    made = np.hstack(parts)
    if 2 * made.shape[1] > len(rows):
        raise ParameterError(
            f"drift up to {1 / period:g} Hz is {made.shape[1]} columns for {len(rows)} volumes - use a longer period"
        )
    return made


@dataclass(frozen=True)
class Whitening:
    """A filter that all voxels share, and the drift that is taken off with it.

    Parameters
    ----------
    taps : array of shape (1 + order,)
        The whitened volume is Σ_l taps[l] · y[k − l].
    rows : array of int
        Volumes of the run that are whitened.
    Q : array of shape (n_rows, n_drift)
        Orthonormal basis of the filtered drift.
    """

    taps: np.ndarray
    rows: np.ndarray
    Q: np.ndarray

    def apply(self, columns):
        """Filter columns of the whole run, (n_volumes, p), and take the drift off: (n_rows, p), float64."""
        return self.without_drift(gram.filtered(columns, self.taps, self.rows))

    def without_drift(self, y):
        """Take the filtered drift off filtered rows, in their own precision."""
        Q = self.Q.astype(y.dtype)
        return y - Q @ (Q.T @ y)

    @property
    def dof(self):
        """Degrees of freedom that filter and drift leave the rows."""
        return len(self.rows) - self.Q.shape[1]


def fit_whitening(Y, *, rows, t_r, order, period=DRIFT_PERIOD, chunk_voxels=8192):
    """Estimate the filter that serves all voxels, apart from the drift.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run; read in slabs of voxels. Only ``rows`` and the ``order`` volumes before them are looked at.
    rows : array of int
        Increasing volumes; the ``order`` volumes before each are of its own run.
    t_r : float
        Repetition time, in seconds.
    order : int
        Previous volumes that the filter takes.
    period : float
        See `drift_cosines`.
    chunk_voxels : int
        Voxels per slab: bounds memory.

    Returns
    -------
    Whitening

    Raises
    ------
    ParameterError
        If there are not ``order`` volumes before the first row.
    """
    rows = np.asarray(rows)
    if rows[0] < order:
        raise ParameterError(f"a filter of order {order} needs {order} volumes before volume {rows[0]} - start later")
    drift = drift_cosines(len(Y), t_r, rows=rows, before=order, period=period)
    volumes = np.arange(rows[0] - order, rows[-1] + 1)
    everywhere = {"all": np.ones(Y.shape[1], bool)}
    made = gram.gram_matrices(
        Y, volumes=volumes, train=rows, regions=everywhere, scaled=True, chunk_voxels=chunk_voxels
    )["all"]
    D = np.linalg.qr(drift[volumes])[0]
    K = made.K - D @ (D.T @ made.K)
    K -= (K @ D) @ D.T
    taps = np.r_[1.0, -gram.Gram(K, made.first, made.n_voxels).shared_history(rows, order)]
    return Whitening(taps, rows, np.linalg.qr(gram.filtered(drift, taps, rows))[0])


def high_pass(courses, *, rows, t_r, period=DRIFT_PERIOD):
    """Take constant and drift off time courses.

    Parameters
    ----------
    courses : array of shape (n_volumes, p)
    rows, t_r, period
        As for `drift_cosines`.

    Returns
    -------
    array of shape (n_rows, p), float64
    """
    courses = np.asarray(courses, dtype=np.float64)
    D = np.linalg.qr(drift_cosines(len(courses), t_r, rows=rows, period=period)[rows])[0]
    return courses[rows] - D @ (D.T @ courses[rows])
