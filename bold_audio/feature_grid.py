"""Which features: every number of them and of windows, with and without blocks, from the sweep's Gram matrices."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bold_audio import gram, sweep


@dataclass(frozen=True)
class FeatureGrid:
    """Every choice of features, delays and strengths of some regions, answered from a few small products.

    Parameters
    ----------
    delays : array of shape (n_delays,)
        In seconds.
    products : dict of str to list of gram.Fold
        Per region, of the design with all features and lags, and the blocks as its last column.
    n_features, n_lags : int
        Most of them; features are prefixes of one extraction.
    has_blocks : bool
    """

    delays: np.ndarray
    products: dict
    n_features: int
    n_lags: int
    has_blocks: bool

    def columns(self, n_features, n_lags, *, blocks=False):
        """Columns of the first ``n_features`` features in the window and ``n_lags`` further ones, and of the blocks."""
        sound = [lag * self.n_features + k for lag in range(n_lags + 1) for k in range(n_features)]
        return np.array(sound + [self.n_features * (self.n_lags + 1)] * blocks)

    def curve(self, region, *, alpha, n_features, n_lags=0, blocks=False):
        """Skill over the train mean at every delay, for one ridge strength: array of shape (n_delays,)."""
        chosen = [fold.columns(self.columns(n_features, n_lags, blocks=blocks)) for fold in self.products[region]]
        errors = gram.ridge_errors_at(chosen, alpha).sum(axis=1)
        return 1 - errors / sum(fold.null for fold in chosen)

    def settings(self, region, alphas):
        """Skill of every choice of delay, features, lags and blocks, each at its best strength.

        Returns
        -------
        DataFrame
            ``n_features`` (0: the blocks alone), ``n_lags``, ``blocks``, ``delay``, ``alpha``, ``skill``.
        """
        alphas = np.array([a for a in alphas if np.isfinite(a)])
        wanted = [(n, lags, blocks) for blocks in range(1 + self.has_blocks) for lags in range(self.n_lags + 1)
                  for n in range(1, self.n_features + 1)] + [(0, 0, 1)] * self.has_blocks  # fmt: skip
        null = sum(fold.null for fold in self.products[region])

        def score(setting):
            n_features, n_lags, blocks = setting
            at = self.columns(n_features, n_lags, blocks=bool(blocks))
            errors = gram.ridge_errors([fold.columns(at) for fold in self.products[region]], alphas).sum(axis=1)
            known = {"n_features": n_features, "n_lags": n_lags, "blocks": bool(blocks), "delay": self.delays}
            best = errors.argmin(axis=1)
            return pd.DataFrame(known | {"alpha": alphas[best], "skill": 1 - errors.min(axis=1) / null})

        return pd.concat(gram.on_all_cores(score, wanted), ignore_index=True)


def make_feature_grid(grams, X, *, target, whitening, rows, folds, delays, n_features, n_lags, has_blocks):
    """Reduce all features at every delay to a `FeatureGrid`.

    Parameters
    ----------
    grams, whitening
        From `sweep.DelaySweep`.
    X : array of shape (n_delays, n_volumes, n_columns)
        Features, the window's first, then each further window's, then the blocks. Volumes without sound are NaN and
        are left out, the same for all settings.
    target : {"whitened", "difference", "volume"}
    rows, folds
        As for `sweep.sweep_delays`.
    delays : array of shape (n_delays,)
        In seconds.
    n_features, n_lags, has_blocks
        What the columns of ``X`` are, as in `FeatureGrid`.
    """
    made = np.stack([sweep.features_of(A, whitening if target == "whitened" else [1.0], rows) for A in X])
    heard = np.isfinite(made).all(axis=(0, 2))
    inside = [tuple(np.searchsorted(rows, part) for part in fold) for fold in folds]
    inside = [(fit[heard[fit]], held[heard[held]]) for fit, held in inside]
    products = {
        name: gram.fold_products(sweep.target_matrix(ones, target, whitening, rows), made, inside)
        for name, ones in grams.items()
    }
    return FeatureGrid(np.asarray(delays, dtype=float), products, n_features, n_lags, has_blocks)
