"""Which delay: skill of every delay on held-out blocks, the delay that the volumes support best, and how sure that is.

Three readings of the same volumes, all inside train. **Skill**: squared error on held-out blocks, summed over a region
(`gram`). **Evidence**: how much better than no sound a delay explains a region of which a few per cent follow the
sound (`evidence`); it chooses the delay and gives the interval, because it uses every volume at once and weighs voxels
by what they show. **Surrogates**: the same evidence for sound out of its place, shifted or phase-randomised
(`significance`); a region whose best evidence is not above 95 % of them has no identifiable delay.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bold_audio import evidence, gram, significance, voxelwise
from bold_audio.files import ParameterError
from bold_audio.pairing import scale_on

RESPONSIVE_SHARE = evidence.SHARE  # "the few per cent of voxels" that follow the sound best
SMALLEST_P = 0.01  # smallest p that the surrogates must allow; sets how many phase-randomised versions are made
SLAB = 512  # voxels worked on at once: what follows the products stays in the processor's cache


@dataclass(frozen=True)
class DelaySweep:
    """What a sweep found.

    Parameters
    ----------
    table : DataFrame
        One row per region and delay: ``delay`` (s), ``region``, ``alpha`` (best strength at that delay), ``skill``
        over the train mean (held-out volumes, voxels of equal variance), ``fold_spread`` (standard error of the skill
        over folds), ``evidence`` (T of the region).
    regions : DataFrame
        One row per region: ``delay`` (best supported, s), its 95 % interval ``low`` … ``high`` (s), ``tau``, ``p`` of
        its evidence among ``n_surrogates``, of which ``alike`` neighbouring shifts count as one, ``threshold``
        (evidence that must be passed for p ≤ .05), ``identifiable`` (p ≤ .05), ``n_voxels``.
    voxels : DataFrame
        One row per voxel: ``delay``, ``low``, ``high`` (s), ``p``, ``skill`` (of the best delay and strength tried).
    delay : float
        The chosen delay, in seconds.
    region : str
        The region that chose it.
    responsive : array of bool, shape (n_voxels,)
        The few per cent of voxels with the highest evidence at any delay.
    grams : dict of str to list of gram.Gram
        Each region's volumes, voxels of equal variance: further questions about features need no voxels. One matrix, or
        one per fold where each held-out block has voxels of its own.
    whitening : array of shape (1 + order,)
        Filter that whitened the volumes.
    """

    table: pd.DataFrame
    regions: pd.DataFrame
    voxels: pd.DataFrame
    delay: float
    region: str
    responsive: np.ndarray
    grams: dict
    whitening: np.ndarray

    @property
    def at_edge(self):
        """Whether the best delay is the first or the last one tried."""
        delays = self.table["delay"]
        return delays.nunique() > 1 and self.delay in (delays.min(), delays.max())

    @property
    def follows(self):
        """Voxels in which the sound may add to the past: array of bool, shape (n_voxels,).

        Those whose own evidence is above 95 % of the surrogates, and none where the region that chose the delay
        is not identifiable: slow noise that goes along with the sound by chance must not enter a model.
        """
        return (self.voxels["p"].to_numpy() <= significance.LEVEL) & bool(self.chosen["identifiable"])

    @property
    def chosen(self):
        """The row of ``regions`` that chose the delay."""
        return self.regions.set_index("region").loc[self.region]


@dataclass(frozen=True)
class DelayedSound:
    """Features of every volume of a run at every delay, not yet scaled.

    Parameters
    ----------
    delays : array of shape (n_delays,)
        In seconds, increasing.
    at : array of shape (n_delays, n_volumes, n_features)
        Rows outside the part used may be NaN.
    """

    delays: np.ndarray
    at: np.ndarray


def sweep_delays(
    Y,
    sound,
    *,
    t_r,
    rows,
    folds,
    order,
    alphas,
    regions,
    delay_region="responsive",
    target="whitened",
    choose_by="evidence",
    block_length=None,
    seed=0,
    chunk_voxels=8192,
):
    """Score every delay inside train, choose one, and say how sure it is.

    Parameters
    ----------
    Y : array of shape (n_volumes, n_voxels)
        Run; read in slabs of voxels, so it may be memory-mapped.
    sound : DelayedSound
    t_r : float
        Repetition time, in seconds.
    rows : array of int
        Train volumes, increasing; the ``order`` volumes before each are of its own run and have sound too.
    folds : list of (fit, held) arrays of int
        Blocked folds inside ``rows``.
    order : int
        Previous volumes of the filter that whitens.
    alphas : sequence of float
        Ridge strengths.
    regions : dict of str to array of bool, shape (n_voxels,)
        Regions to give a curve of their own, the whole first; ``responsive`` is added.
    delay_region : str
        The region that chooses: ``responsive``, ``brain`` (all voxels) or a name in ``regions``.
    target : {"whitened", "difference", "volume"}
        What the skill is of. The evidence is always of whitened volumes.
    choose_by : {"evidence", "skill"}
    block_length : float, optional
        Length of the film's alternating blocks, in seconds.
    seed : int
        Of the phase-randomised surrogates.
    chunk_voxels : int
        Voxels per slab: bounds memory.

    Returns
    -------
    DelaySweep

    Raises
    ------
    ParameterError
        If ``delay_region`` is not a region of this run.
    """
    check_region(delay_region, regions)
    whole = next(iter(regions))
    delays = np.asarray(sound.delays, dtype=float)
    run = {"volumes": np.arange(rows[0] - order, rows[-1] + 1), "train": rows}
    grams = gram.gram_matrices(Y, **run, regions=regions, scaled=True, chunk_voxels=chunk_voxels)
    white = np.r_[1.0, -grams[whole].shared_history(rows, order)]
    X = np.stack([features_of(A, white, rows) for A in sound.at])
    inside = [(np.searchsorted(rows, fit), np.searchsorted(rows, held)) for fit, held in folds]
    slabs = gram.Slabs(Y, **run, taps=white, chunk_voxels=min(chunk_voxels, SLAB))

    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    shifts = significance.admissible_shifts(
        len(rows), t_r, longest_delay=delays[-1], block_length=block_length, starts=(0, *breaks)
    )
    rng = np.random.default_rng(seed)
    window = 1 + int((delays[-1] - delays[0]) / t_r + 1e-9)
    n_versions = significance.versions_needed(len(rows), window, p=SMALLEST_P)
    played = [X[0], *(significance.phase_randomised(X[0], rng) for _ in range(n_versions))]
    seen = _see_evidence(slabs, X, played, window=window, shifts=shifts, delays=delays, alphas=alphas, regions=regions)
    best = voxelwise.best_per_voxel(slabs, X, inside, alphas)
    voxels = seen.voxels.assign(skill=best.skill)

    members, parts = dict(regions), {name: [one] for name, one in grams.items()}
    if Y.shape[1] > 1 / RESPONSIVE_SHARE:
        members["responsive"] = best_share(seen.score)
        nested = dict(enumerate(_nested_responsive(slabs, X, inside, alphas)))
        made = gram.gram_matrices(Y, **run, regions=nested, scaled=True, chunk_voxels=chunk_voxels)
        parts["responsive"] = list(made.values())
    plain = X if target == "whitened" else np.stack([features_of(A, [1.0], rows) for A in sound.at])
    # The evidence of the whole is that of its few responsive voxels, whoever they are.
    pooled = {name: whole if name == "responsive" else name for name in members}
    table = pd.concat(
        region_curve(name, target_matrix(parts[name], target, white, rows), plain, inside, delays, alphas).assign(
            evidence=seen.pooled[pooled[name]]
        )
        for name in members
    ).reset_index(drop=True)
    taus = _temper(slabs, X, seen.pooled, regions, delays=delays, alphas=alphas)
    summary = pd.DataFrame(
        {"region": name, "n_voxels": int(roi.sum())}
        | _summary(seen.pooled[pooled[name]], seen.ranked[pooled[name]], delays, taus[pooled[name]], window)
        for name, roi in members.items()
    )
    # Six regions in place of voxels have no "few per cent": the whole chooses then.
    region = delay_region if delay_region in members else whole
    if choose_by == "evidence":
        delay = summary.set_index("region").loc[region, "delay"]
    else:
        curve = table[table["region"] == region]
        delay = curve["delay"].iloc[int(curve["skill"].argmax())]
    responsive = members.get("responsive", best_share(seen.score))
    return DelaySweep(table, summary, voxels, float(delay), region, responsive, parts, white)


def check_region(name, regions):
    """Refuse a ``delay_region`` that this run has not.

    Raises
    ------
    ParameterError
    """
    if name not in (*regions, "brain", "volume", "responsive"):
        raise ParameterError(f"delay_region must be responsive, brain or one of {', '.join(regions)}, got {name!r}")


def target_matrix(grams, target, whitening, rows):
    """Gram matrix of what is predicted of a region.

    Parameters
    ----------
    grams : list of gram.Gram
        One for all folds, or one for each.
    target : {"whitened", "difference", "volume"}
    whitening : sequence of float
        Filter for ``whitened``, as for `gram.Gram.target`.
    rows : array of int

    Returns
    -------
    array of shape (n_folds or 1, n_rows, n_rows)
    """
    taps = {"whitened": whitening, "difference": [1.0, -1.0], "volume": [1.0]}[target]
    return np.stack([one.target(taps, rows) for one in grams])


def features_of(A, taps, rows):
    """Features filtered like the volumes, then scaled on those rows that have sound.

    Parameters
    ----------
    A : array of shape (n_volumes, n_features)
    taps, rows
        As for `gram.filtered`.

    Returns
    -------
    array of shape (n_rows, n_features)
        NaN where a volume has no sound.
    """
    filtered = gram.filtered(A, taps, rows)
    return scale_on(filtered, np.flatnonzero(np.isfinite(filtered).all(axis=1)))[0]


@dataclass(frozen=True)
class _Ranked:
    """Best evidence over the delays: of the sound in its place, and of its surrogates."""

    observed: np.ndarray
    surrogates: np.ndarray


def _rank(values, n_played, window, shifts):
    """Best evidence over the delays from that of every circular design of every sound played."""
    best = [significance.best_in_window(part, window) for part in np.split(values, n_played)]
    return _Ranked(best[0][0], np.concatenate([best[0][shifts], *best[1:]]))


@dataclass(frozen=True)
class _Evidence:
    pooled: dict  # region → (n_delays,)
    ranked: dict  # region → _Ranked
    voxels: pd.DataFrame
    score: np.ndarray  # (n_voxels,), best over the delays


def _see_evidence(slabs, X, played, *, window, shifts, delays, alphas, regions):
    """Evidence of every delay and of every surrogate, per voxel and summed over regions, slab by slab."""
    here = evidence.make_basis(X, alphas)
    elsewhere = evidence.circular_bases(played, alphas)
    names = list(regions)

    def see(slab, y):
        log_b = evidence.log_evidence(y, here)
        log_elsewhere = np.concatenate([evidence.log_evidence(y, basis) for basis in elsewhere])
        member = np.stack([regions[name][slab] for name in names]).astype(np.float32).T
        ranked = _rank(log_elsewhere, len(played), window, shifts)
        weight = evidence.posterior(log_b, delays)
        low, high = evidence.interval(weight, delays) if len(delays) > 2 else (np.nan, np.nan)
        known = {"delay": evidence.median(weight, delays), "low": low, "high": high}
        voxels = pd.DataFrame(known | {"p": significance.p_value(ranked.observed, ranked.surrogates, alike=window)})
        return evidence.mixture(log_b) @ member, evidence.mixture(log_elsewhere) @ member, voxels, log_b.max(axis=0)

    sums, elsewhere_sums, voxels, scores = zip(*slabs.map(see), strict=True)
    pooled, surrogate_sums = (np.sum(one, axis=0, dtype=np.float64).T for one in (sums, elsewhere_sums))
    ranked = [_rank(one, len(played), window, shifts) for one in surrogate_sums]
    return _Evidence(
        dict(zip(names, pooled, strict=True)),
        dict(zip(names, ranked, strict=True)),
        pd.concat(voxels, ignore_index=True),
        np.concatenate(scores),
    )


def _nested_responsive(slabs, X, folds, alphas):
    """Responsive voxels for each held-out block, found by the evidence of the other volumes alone."""
    fits = [(fit, evidence.make_basis(X[:, fit], alphas)) for fit, _ in folds]
    scores = slabs.map(lambda _, y: [evidence.log_evidence(y[fit], basis).max(axis=0) for fit, basis in fits])
    return [best_share(score) for score in np.concatenate(scores, axis=1)]


def best_share(score):
    """The few per cent of voxels with the highest score; at least one."""
    n_best = max(1, int(round(RESPONSIVE_SHARE * len(score))))
    roi = np.zeros(len(score), bool)
    roi[np.argsort(-score, kind="stable")[:n_best]] = True
    return roi


def region_curve(name, K, X, folds, delays, alphas):
    """One region's skill over the delays, each with its own best strength; every strength leaves the sound in.

    Parameters
    ----------
    name : str
    K, X, folds
        As for `gram.fold_products`.
    delays : array of shape (n_delays,)
        In seconds.
    alphas : sequence of float
        Those that are infinite are left out.

    Returns
    -------
    DataFrame
        ``delay, region, alpha, skill`` and ``fold_spread``, the standard error over folds.
    """
    alphas = np.asarray(alphas, dtype=float)
    alphas = alphas[np.isfinite(alphas)]
    errors = gram.ridge_errors(gram.fold_products(K, X, folds), [*alphas, np.inf])
    best = errors[:, :, :-1].sum(axis=1).argmin(axis=1)
    chosen, null = errors[np.arange(len(X)), :, best], errors[:, :, -1]
    null = np.where(null > 0, null, np.inf)
    per_fold = 1 - chosen / null
    return pd.DataFrame(
        {
            "delay": delays,
            "region": name,
            "alpha": alphas[best],
            "skill": 1 - chosen.sum(axis=1) / null.sum(axis=1),
            "fold_spread": per_fold.std(axis=1, ddof=1) / np.sqrt(len(folds)),
        }
    )


def _temper(slabs, X, pooled, regions, *, delays, alphas):
    """τ of every region, at its own best delay; NaN where too few delays were tried to see a slope."""
    if len(delays) < 3:
        return dict.fromkeys(regions, np.nan)
    finite = [a for a in alphas if np.isfinite(a)]
    at = {name: int(np.clip(T.argmax(), 1, len(delays) - 2)) for name, T in pooled.items()}
    change = {name: (X[k + 1] - X[k - 1]) / (delays[k + 1] - delays[k - 1]) for name, k in at.items()}
    bases = {name: evidence.make_basis(X[k : k + 1], finite) for name, k in at.items()}

    def slopes(slab, y):
        return {
            name: evidence.slope_by_volume(
                y[:, roi[slab]],
                X[at[name]],
                change[name],
                finite,
                evidence.log_evidence(y[:, roi[slab]], bases[name])[0],
            )
            for name, roi in regions.items()
            if roi[slab].any()
        }

    made = slabs.map(slopes)
    slope = {name: sum(one[name] for one in made if name in one) for name in regions}
    return {name: evidence.temper(pooled[name], delays, slope[name], k) for name, k in at.items()}


def _summary(T, ranked, delays, tau, window):
    """What a region's evidence says: best delay, interval, and whether the sound's place matters."""
    low = high = np.nan
    if np.isfinite(tau):
        low, high = evidence.interval(evidence.posterior(T / tau, delays), delays)
    elif len(delays) > 2:
        low, high = delays[0], delays[-1]
    p = float(significance.p_value(ranked.observed, ranked.surrogates, alike=window))
    return {
        "delay": delays[T.argmax()],
        "low": float(low),
        "high": float(high),
        "tau": tau,
        "p": p,
        "n_surrogates": len(ranked.surrogates),
        "alike": window,
        "threshold": significance.threshold_of(ranked.surrogates, alike=window),
        "identifiable": p <= significance.LEVEL,
    }
