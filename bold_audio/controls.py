"""One table of controls: what must show the film's blocks, and what must not.

A **positive** control is a region that must answer to speech more than to music before anything finer is believed. A
**negative** control is what hears nothing - white matter, air - or a sound that nobody heard: whatever shows the film
there is an artefact of the scanner, of the head's motion, or of the method.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import soundfile

from bold_audio import contrast, features, film
from bold_audio.data import downsample_grid
from bold_audio.files import DataError, fingerprint
from bold_audio.images import read_slabs
from bold_audio.locking import cached_folder
from bold_audio.provenance import code_fingerprint
from bold_audio.scores import evenly_spaced
from bold_audio.significance import LEVEL

MUST_LIGHT = ("auditory", "auditory_left", "auditory_right")  # regions of ds003688: bilateral, or nothing is claimed
AIR_VOXELS = 2000
DARK = 0.1  # of the brain's median intensity; skull and scalp, which move and blink with the film, are brighter
OTHER_FILM = 1_000_003  # seed of a film that no simulated subject was ever shown
SAME_BLOCKS = 1.0  # s that a block of the other film may begin earlier or later
COLUMNS = ("control", "region", "expected", "statistic", "value", "p", "n", "verdict")
AS_EXPECTED, NOT_EXPECTED = "as expected", "NOT as expected"


@dataclass(frozen=True)
class NotDone:
    """Why a control could not be made: stands in the place of its data.

    Parameters
    ----------
    reason : str
    """

    reason: str


def control_table(courses, pairs, *, rows, t_r, white=None, air=None, other_film=None, tested=""):
    """Make every control of a subject.

    Parameters
    ----------
    courses : dict of str to array of shape (n_volumes,)
        Mean time course of each region; those of `MUST_LIGHT` are positive controls. Where none is
        there, one row says so.
    pairs : list of (music, speech) arrays of int, or NotDone
        From `contrast.subject_pairs`.
    rows : array of int
        Volumes that the high-pass filter is fitted on; `contrast.settled_rows`.
    t_r : float
        Repetition time, in seconds.
    white, air : array of shape (n_volumes,), or NotDone
        Mean time course of white matter and of voxels outside the head.
    other_film : (float, float), or NotDone
        What another film's sound with the same blocks gains, and its p; see `other_film_row`.
    tested : str
        The region that the other film was tested in.

    Returns
    -------
    DataFrame
        One row per control: ``control``, ``region``, ``expected``, ``statistic`` (its name), ``value``, ``p``, ``n``
        (pairs of blocks; 0 where it does not apply), and ``verdict``: "as expected", "NOT as expected", or "not done: "
        and why.
    """
    what = {"pairs": pairs, "rows": rows, "t_r": t_r}
    light = [name for name in MUST_LIGHT if name in courses]
    missing = NotDone(f"no region {' or '.join(MUST_LIGHT)} in this run")
    made = [contrast_row("speech > music", name, courses[name], positive=True, **what) for name in light] or [
        contrast_row("speech > music", MUST_LIGHT[0], missing, positive=True, **what)
    ]
    quiet = {
        "white matter": NotDone("no anatomical transform of this subject") if white is None else white,
        "air": NotDone("the scan was not read outside the mask") if air is None else air,
    }
    made += [contrast_row("speech = music", name, course, positive=False, **what) for name, course in quiet.items()]
    made.append(other_film_row(NotDone("no test of the sound was given") if other_film is None else other_film, tested))
    return pd.DataFrame(made, columns=list(COLUMNS))


def contrast_row(control, region, course, *, pairs, rows, t_r, positive):
    """One control by speech against music: dict of `COLUMNS`.

    Parameters
    ----------
    control, region : str
    course : array of shape (n_volumes,), or NotDone
    pairs, rows, t_r
        As for `control_table`.
    positive : bool
        Whether speech must be above music (one-sided), or neither above the other (two-sided).
    """
    expected = f"speech above music, p ≤ {LEVEL:g}" if positive else f"no difference, p > {LEVEL:g}"
    row = {"control": control, "region": region, "expected": expected, "statistic": "t over pairs of blocks"}
    for part in (course, pairs):
        if isinstance(part, NotDone):
            return _not_done(row, part.reason)
    try:
        found = contrast.region_contrast(
            course, pairs, rows=rows, t_r=t_r, alternative="greater" if positive else "two-sided"
        ).iloc[0]
    except DataError as error:
        return _not_done(row, str(error))
    if not np.isfinite(found["t"]):
        return _not_done(row, "the time course does not vary")
    shown = found["p"] <= LEVEL
    return row | {"value": found["t"], "p": found["p"], "n": found["n_pairs"]} | _verdict(shown == positive)


def other_film_row(result, region=""):
    """The control by another film's sound: ``result`` is (value, p) in ``region``, or NotDone; dict of `COLUMNS`."""
    row = {
        "control": "another film's sound, same blocks",
        "region": region,
        "expected": f"no gain within the blocks, or p > {LEVEL:g}",
        "statistic": "gain over past and blocks",
    }
    if isinstance(result, NotDone):
        return _not_done(row, result.reason)
    value, p = map(float, result)
    if not np.isfinite(p):
        return _not_done(row, "the region does not vary")
    adds = value > 0 and p <= LEVEL  # a sound that makes things worse, but less so than its surrogates, shows nothing
    return row | {"value": value, "p": p, "n": 0} | _verdict(not adds)


def _verdict(good):
    return {"verdict": AS_EXPECTED if good else NOT_EXPECTED}


def _not_done(row, reason):
    return row | {"value": np.nan, "p": np.nan, "n": 0, "verdict": f"not done: {reason}"}


def may_claim(table):
    """Whether every positive control lights: before that, nothing finer about the sound is to be believed.

    Parameters
    ----------
    table : DataFrame
        From `control_table`.
    """
    positive = table[table["control"] == "speech > music"]
    return bool(len(positive) and (positive["verdict"] == AS_EXPECTED).all())


def subject_controls(subject, delay, *, white=None, test_sound=None, tested=""):
    """Read what the controls of a subject need, and make the table.

    Parameters
    ----------
    subject : prepare.Subject
    delay : float
        Between sound and response, in seconds.
    white : array of bool, shape (n_voxels,), or NotDone, optional
        White matter; without it the row says that there is no anatomical transform.
    test_sound : function, optional
        `features.SoundFeatures` → (value, p): tests a sound on this subject, the film's blocks taken off. A test that
        leaves the blocks in would rightly find them in another film with the same blocks.
    tested : str
        The region that ``test_sound`` tests.

    Returns
    -------
    DataFrame
        See `control_table`.
    """
    regions = subject.run.regions
    names = [name for name in MUST_LIGHT if name in regions and regions[name].any()]
    means = contrast.region_courses(subject.Y, {name: regions[name] for name in names}).T if names else []
    if subject.blocks is None:
        pairs = NotDone("this film has no speech and music blocks")
    else:
        pairs = contrast.subject_pairs(subject, delay)
    if isinstance(white, np.ndarray):
        there = white.any()
        white = subject.Y[:, white].mean(axis=1, dtype=np.float64) if there else NotDone("no voxel is white matter")
    try:
        air = read_air(subject.run, subject.params).mean(axis=1)
    except DataError as error:
        air = NotDone(str(error))
    return control_table(
        dict(zip(names, means, strict=True)),
        pairs,
        rows=contrast.settled_rows(subject),
        t_r=subject.run.files.t_r,
        white=white,
        air=air,
        other_film=_try_other_film(subject, test_sound),
        tested=tested,
    )


def _try_other_film(subject, test_sound):
    if test_sound is None:
        return None
    try:
        return test_sound(other_film(subject))
    except DataError as error:
        return NotDone(str(error))


def air_voxels(mean_image, mask, *, n_voxels=AIR_VOXELS):
    """Choose voxels outside the head, evenly spread: outside the mask, dark, and not empty.

    Parameters
    ----------
    mean_image : array of shape (i, j, k)
        Mean intensity over the run.
    mask : array of bool, shape (i, j, k)
        The brain.
    n_voxels : int
        At most so many.

    Returns
    -------
    array of int, shape (n_chosen,)
        Flat indices of the grid, increasing.

    Raises
    ------
    DataError
        If there is no such voxel.
    """
    # Eyes, scalp and muscles lie outside the brain too, and they do follow a film.
    dark = ~mask & (mean_image > 0) & (mean_image < DARK * np.median(mean_image[mask]))
    there = np.flatnonzero(dark)
    if not len(there):
        raise DataError("no voxel outside the mask is dark and not empty - the scan may have been masked before")
    return evenly_spaced(there, n_voxels)


def read_air(run, params, *, n_voxels=AIR_VOXELS):
    """Read the time courses of voxels outside the head from the scan's own file or files.

    Parameters
    ----------
    run : data.BoldRun
    params : Params
        ``downsample`` counts; nothing else is done to the values.
    n_voxels : int
        At most so many.

    Returns
    -------
    array of shape (n_volumes, n_chosen)

    Raises
    ------
    DataError
        If the scan was read without a mask, is damaged, or has no air.
    """
    if run.mask.all():
        raise DataError("the scan was read without a mask, so no voxel is known to be outside the head")

    def slabs(part):
        for data in read_slabs(part.bold):
            yield downsample_grid(data, part.affine, params.downsample)[0] if params.downsample > 1 else data

    first, *_ = run.files.parts
    mean = sum(data.sum(axis=3, dtype=np.float64) for data in slabs(first)) / first.n_volumes
    at = np.unravel_index(air_voxels(np.nan_to_num(mean), run.mask, n_voxels=n_voxels), run.mask.shape)
    made = [data[at].T.astype(np.float64) for part in run.files.parts for data in slabs(part)]
    return np.nan_to_num(np.concatenate(made))


def other_film(subject):
    """Features of another (SIMULATED) film with the same blocks, made like those of the subject's own sound.

    Parameters
    ----------
    subject : prepare.Subject
        Its film must alternate music and speech every 30 s as that of ds003688 does.

    Returns
    -------
    features.SoundFeatures

    Raises
    ------
    DataError
        If the subject's film has other blocks, or there are several runs with films of their own.
    """
    if len(subject.run.files.parts) > 1:
        raise DataError("another film is made for one run only - take one run at a time")
    files, params = subject.run.files, subject.params
    known = [] if files.events is None else files.events[files.events["trial_type"].isin(features.BLOCK_TYPES)]
    wanted = film.film_blocks(files.heard)
    same = len(known) == len(wanted) and all(
        kind == block.trial_type and abs(onset - (float(block.onset) - files.onset)) <= SAME_BLOCKS
        for (onset, _, kind), block in zip(wanted, known.itertuples(), strict=True)
    )
    if not same:
        raise DataError("this film's blocks are not those that another film can be made with")

    def make(folder):
        with soundfile.SoundFile(folder / "other_film.wav", "w", film.SAMPLE_RATE, 1, subtype="PCM_16") as handle:
            for y in film.film_reels(files.heard, seed=OTHER_FILM):
                handle.write(y)

    key = "other-film-" + fingerprint(files.heard, OTHER_FILM, code_fingerprint(film))
    folder = cached_folder(params.cache_path, key, make)
    settings = {name: getattr(params, name) for name in ("sample_rate", "n_mfcc", "n_fft", "hop_length")}
    return features.cached_mfcc(folder / "other_film.wav", params.cache_path, **settings)
