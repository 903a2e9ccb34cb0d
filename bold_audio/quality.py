"""What a scan is worth before any model: steadiness, jumps, bad volumes, the global signal and its aliases."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.signal import find_peaks, periodogram
from scipy.stats import norm

from bold_audio import motion

OUTLIER_CHANCE = 0.001  # over the volumes of the run gives the limit of an outlier (AFNI's 3dToutcount)
OUTLIER_SHARE = 0.05  # of voxels, above which a volume is called an outlier (AFNI's afni_proc.py)
JUMP = 6.0  # robust standard deviations of DVARS above its median that are called a jump
HALF_CYCLES = 2  # of cosine drift, besides the mean, that are no outlier
BAD = ("outlier", "empty")  # how findings begin whose volumes are left out of means, deviations and spectrum
CARPET_ROWS = 120
HEART, BREATHING = (40.0, 140.0), (6.0, 40.0)  # per minute; children's hearts included
CHUNK = 2048  # voxels worked on at once
COLUMNS = {  # of the table of volumes, as a BIDS sidecar
    "time": {"Description": "start of the volume on the clock of the run", "Units": "s"},
    "part": {"Description": "part of the run: train, gap or test"},
    "global_signal": {"Description": "mean over voxels, from the mean of train", "Units": "%"},
    "dvars": {"Description": "root mean square over voxels of the change since the volume before", "Units": "%"},
    "outlier_share": {"Description": "share of the voxels whose value is an outlier, as AFNI's 3dToutcount counts"},
    **{name: {"Description": "head motion against the mean of train", "Units": "mm"} for name in motion.NAMES[:3]},
    **{name: {"Description": "head motion against the mean of train", "Units": "rad"} for name in motion.NAMES[3:]},
    "framewise_displacement": {"Description": "Power et al. 2012", "Units": "mm"},
    "finding": {"Description": "what is wrong with the volume"},
}


@dataclass(frozen=True)
class ScanQuality:
    """What `scan_quality` found.

    Parameters
    ----------
    mean, sd, tsnr : arrays of shape (n_voxels,)
        Over the train volumes without the outliers among them; raw intensities and their ratio (0
        where nothing changes).
    volumes : DataFrame
        One row per volume: ``time`` (s), ``part`` (train, gap, test, or empty), ``global_signal``
        (% from the train mean), ``dvars`` (% of the train mean), ``outlier_share`` (0 to 1), the six
        parameters ``trans_x`` … ``rot_z`` (mm, rad), ``framewise_displacement`` (mm), and
        ``finding``, empty where there is none. What was not estimated is NaN.
    carpet : array of shape (n_rows, n_volumes)
        z-scores (standard deviations of a voxel in train), averaged over voxels of like order.
    spectrum : DataFrame
        ``frequency`` (Hz) and ``power`` (%² / Hz) of the global signal, bridged over outliers.
    """

    mean: np.ndarray
    sd: np.ndarray
    tsnr: np.ndarray
    volumes: pd.DataFrame
    carpet: np.ndarray
    spectrum: pd.DataFrame

    @property
    def found(self):
        """The volumes with a finding, as a table."""
        return self.volumes[self.volumes["finding"] != ""]

    @property
    def outliers(self):
        """Indices of outlier volumes: empty ones, and those that stand out from their neighbours."""
        return self.volumes.index[self.volumes["finding"].str.startswith(BAD)].to_numpy()


def scan_quality(volumes, *, t_r, train, parts=None, moved=None, starts=(0,), begins=None):
    """Measure the quality of a masked run.

    Parameters
    ----------
    volumes : array of shape (n_volumes, n_voxels)
        Raw intensities, as measured.
    t_r : float
        Repetition time, in seconds.
    train : array of int
        What means and standard deviations are of. Outliers are looked for in the whole run: for
        people to see, nothing of this goes into a model.
    parts : dict of str to array of int, optional
        Volumes of ``train``, ``gap`` and ``test``.
    moved : array of shape (n_volumes, 6), optional
        Head motion from `motion.estimate_motion`.
    starts : sequence of int
        First volume of each run: nothing is compared across a run's border, and each settles for itself.
    begins : sequence of float, optional
        When the first volume of each run begins on that run's clock, in seconds, see `runs.RunFiles`; 0 without it.

    Returns
    -------
    ScanQuality
    """
    n_volumes, n_voxels = volumes.shape
    runs = [slice(*ends) for ends in pairwise((*starts, n_volumes))]
    outlying, jumps = np.zeros(n_volumes), np.zeros(n_volumes - 1)
    for part in _chunks(n_voxels):
        block = np.asarray(volumes[:, part], dtype=np.float32)
        outlying += np.concatenate([outlier_values(block[run]).sum(axis=1) for run in runs])
        jumps += np.square(np.diff(block, axis=0)).sum(axis=1, dtype=float)
    dvars = np.append(np.nan, np.sqrt(jumps / n_voxels))
    dvars[list(starts)] = np.nan
    finding = []
    for run in runs:
        empty = [k for k, volume in enumerate(volumes[run]) if not np.any(volume)]
        finding += name_findings(dvars[run], outlying[run] / n_voxels, empty)
    good = ~pd.Series(finding).str.startswith(BAD).to_numpy()
    steady = train[good[train]] if good[train].any() else train
    mean, sd = np.empty(n_voxels), np.empty(n_voxels)
    for part in _chunks(n_voxels):
        block = np.asarray(volumes[steady, part], dtype=float)
        mean[part], sd[part] = block.mean(axis=0), block.std(axis=0)
    level = abs(mean.mean()) or 1.0
    signal = 100 * (volumes.mean(axis=1, dtype=float) - mean.mean()) / level
    moved = np.full((n_volumes, 6), np.nan) if moved is None else moved
    times = np.arange(n_volumes) * t_r
    for run, begin in zip(runs, begins or [0.0] * len(runs), strict=True):
        times[run] += begin
    table = pd.DataFrame({"time": times, "part": "", "global_signal": signal})
    for name, rows in (parts or {}).items():
        table.loc[rows, "part"] = name
    table = table.assign(dvars=100 * dvars / level, outlier_share=outlying / n_voxels)
    table[list(motion.NAMES)] = moved
    table = table.assign(framewise_displacement=motion.framewise_displacement(moved), finding=finding)
    table.loc[list(starts), "framewise_displacement"] = np.nan
    tsnr = np.divide(mean, sd, out=np.zeros(n_voxels), where=sd > 0)
    places = np.arange(n_volumes)
    bridged = np.interp(places, places[good], signal[good]) if good.any() else signal
    pictured = carpet(volumes, bridged, mean, sd, steady)
    return ScanQuality(mean, sd, tsnr, table, pictured, spectrum(bridged, t_r))


def _chunks(n_voxels):
    return (slice(start, start + CHUNK) for start in range(0, n_voxels, CHUNK))


def median_spread(volumes, parts, *, train):
    """Standard deviation over time of the median voxel, in % of its train mean.

    Parameters
    ----------
    volumes : array of shape (n_volumes, n_voxels)
    parts : dict of str to array of int
        Volumes over which to take it.
    train : array of int

    Returns
    -------
    dict of str to float
    """
    spread = {name: [] for name, rows in parts.items() if len(rows)}
    for part in _chunks(volumes.shape[1]):
        mean = np.abs(volumes[train, part].mean(axis=0, dtype=float))
        there = mean > 0
        for name, found in spread.items():
            found.append(100 * volumes[parts[name], part].std(axis=0, dtype=float)[there] / mean[there])
    return {name: float(np.median(np.concatenate(found))) for name, found in spread.items()}


def outlier_values(series):
    """Tell which values lie too far from the slow course of their own series.

    Parameters
    ----------
    series : array of shape (n_volumes, n_series)

    Returns
    -------
    bool array of shape (n_volumes, n_series)

    Notes
    -----
    The limit of AFNI's 3dToutcount: in a series of n values, one is an outlier when it is farther away than
    Φ⁻¹(1 − 0.001 / n) × √(π/2) × the median absolute deviation, in either direction. Of normal noise that is
    about 0.845 × Φ⁻¹(1 − 0.001 / n) standard deviations.
    Slow drift is taken off first: two half-cosines, fitted with values already clipped to 3 robust standard
    deviations (1.4826 × the median absolute deviation), so that one bad volume cannot bend the fit towards itself.
    """
    n = len(series)
    limit = norm.isf(OUTLIER_CHANCE / n) * np.sqrt(np.pi / 2)
    left = series - np.median(series, axis=0)
    spread = 1.4826 * np.median(np.abs(left), axis=0)
    waves = np.cos(np.pi * np.outer(np.arange(n) + 0.5, np.arange(HALF_CYCLES + 1)) / n).astype(series.dtype)
    left -= waves @ (np.linalg.pinv(waves) @ np.clip(left, -3 * spread, 3 * spread))
    left -= np.median(left, axis=0)
    return np.abs(left) > np.maximum(limit * np.median(np.abs(left), axis=0), np.finfo(series.dtype).tiny)


def name_findings(dvars, outlier_share, empty=()):
    """Say of each volume what is wrong with it.

    Parameters
    ----------
    dvars : array of shape (n_volumes,)
        Change since the volume before; the first is NaN.
    outlier_share : array of shape (n_volumes,)
    empty : sequence of int
        Volumes that hold nothing but 0.

    Returns
    -------
    list of str
        ``empty volume``; ``not settled yet`` before the end of the jumps that a run begins with (the
        magnetisation still settles); ``outlier: 98 % of the voxels`` (more than 5 %), ``outlier: stands out from
        both neighbours`` (DVARS jumps into it and out of it); ``jump since the volume before`` where
        the run stays elsewhere afterwards; or nothing.

    Examples
    --------
    >>> name_findings([np.nan, 1, 1.1, 9, 9, 1, 0.9, 1.1, 7, 1], np.zeros(10))[2:5]
    ['', 'outlier: stands out from both neighbours', '']
    >>> name_findings([np.nan, 1, 1.1, 9, 9, 1, 0.9, 1.1, 7, 1], np.zeros(10))[8]
    'jump since the volume before'
    """
    dvars, outlier_share = np.asarray(dvars, float), np.asarray(outlier_share, float)
    middle = np.nanmedian(dvars)
    spread = 1.4826 * np.nanmedian(np.abs(dvars - middle))
    jumped = dvars > middle + JUMP * max(spread, 1e-9 * middle)
    named = outlier_share > OUTLIER_SHARE
    named[list(empty)] = True
    # A volume that is named already accounts for the jumps into it and out of it.
    open_jump = jumped & ~named & ~np.append(False, named[:-1])
    unsettled = int(np.argmin(np.append(open_jump[1:], False)))  # how many jumps the run begins with
    both = open_jump & np.append(open_jump[1:], False)
    alone = both & ~np.append(False, both[:-1])
    found = []
    for k in range(len(dvars)):
        if k in empty:
            found.append("empty volume")
        elif named[k]:
            found.append(f"outlier: {100 * outlier_share[k]:.0f} % of the voxels")
        elif k < unsettled:
            found.append("not settled yet")
        elif alone[k]:
            found.append("outlier: stands out from both neighbours")
        elif open_jump[k] and k > unsettled and not alone[k - 1]:
            found.append("jump since the volume before")
        else:
            found.append("")
    return found


def carpet(volumes, signal, mean, sd, train):
    """Draw the run together: z-scores of all voxels, like ones side by side, averaged to a page's size.

    Parameters
    ----------
    volumes : array of shape (n_volumes, n_voxels)
    signal : array of shape (n_volumes,)
        Global signal. Voxels are ordered by their correlation with it in train, the highest first
        [1]_, which puts what the head has in common at the top and edges and vessels at the bottom.
    mean, sd : arrays of shape (n_voxels,)
        Of train.
    train : array of int

    Returns
    -------
    array of shape (n_rows, n_volumes), float32
        At most 120 rows, each the mean of as many neighbours in the order.

    References
    ----------
    .. [1] Aquino, Fulcher, Parkes, Sabaroedin & Fornito (2020). Identifying and removing widespread
       signal deflections from fMRI data. NeuroImage 212, 116614, doi 10.1016/j.neuroimage.2020.116614.
    """
    scale = np.where(sd > 0, sd, np.inf)
    course = signal[train] - signal[train].mean()
    alike = np.concatenate([course @ (volumes[train, part] - mean[part]) for part in _chunks(len(mean))])
    order = np.argsort(-alike / scale, kind="stable")
    rows = []
    for voxels in np.array_split(order, min(CARPET_ROWS, len(order))):
        inside = np.sort(voxels)
        rows.append(((volumes[:, inside] - mean[inside]) / scale[inside]).mean(axis=1))
    return np.array(rows, dtype=np.float32)


def spectrum(signal, t_r):
    """Power of a signal by frequency, after taking off its line: a Hann-windowed periodogram.

    Parameters
    ----------
    signal : array of shape (n_volumes,)
        In %.
    t_r : float

    Returns
    -------
    DataFrame
        ``frequency`` (Hz, above 0) and ``power`` (%² / Hz).
    """
    frequency, power = periodogram(signal, fs=1 / t_r, window="hann", detrend="linear")
    return pd.DataFrame({"frequency": frequency[1:], "power": power[1:]})


def alias(frequency, t_r):
    """Frequency at which a rhythm shows up in a scan: folded into 0 to half the sampling rate.

    Parameters
    ----------
    frequency : float or array
        In Hz.
    t_r : float
        Repetition time, in seconds.

    Examples
    --------
    >>> float(alias(1.2, 0.5)), float(alias(1.2, 1.0))  # 72 per minute
    (0.8, 0.2)
    """
    frequency = np.asarray(frequency, float)
    return np.round(np.abs(frequency - np.round(frequency * t_r) / t_r), 12)


def rates_onto(frequency, t_r, limits):
    """True rates within limits that show up at a frequency.

    Parameters
    ----------
    frequency : float
        In Hz, such as 1/60 for a block cycle of 60 s.
    t_r : float
        Repetition time, in seconds.
    limits : (float, float)
        Per minute.

    Returns
    -------
    list of float
        Per minute, increasing.

    Examples
    --------
    >>> [round(rate, 2) for rate in rates_onto(1 / 60, 0.608, (40, 140))]
    [97.68, 99.68]
    """
    low, high = np.array(limits) / 60
    folds = np.arange(np.floor(low * t_r), np.ceil(high * t_r) + 1)[:, None] / t_r
    rates = np.unique(np.round(np.abs(folds + [[-frequency, frequency]]).ravel(), 12))
    return [float(60 * rate) for rate in rates if low <= rate <= high]


def peak_frequencies(spectrum, n=3):
    """The frequencies (Hz) of the n highest local peaks of a spectrum, the highest first."""
    power, frequency = spectrum["power"].to_numpy(), spectrum["frequency"].to_numpy()
    peaks, _ = find_peaks(power)
    return frequency[peaks[np.argsort(-power[peaks], kind="stable")][:n]]
