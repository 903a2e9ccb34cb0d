"""What ds003688 v1.0.7 holds: path, size and MD5 of every file, its subjects, and the blocks of its film.

``ds003688.tsv`` beside this module lists what each fMRI subject needs, and what all share: the annotation tables and
``participants.tsv`` with age and language dominance (CC0, doi 10.18112/openneuro.ds003688.v1.0.7). The film and its
sound are not in the release.
"""

import math
from collections import namedtuple
from functools import cache
from pathlib import Path

from bold_audio import files
from bold_audio.files import ParameterError, nearest

RELEASE = "ds003688 v1.0.7"
T_R, N_VOLUMES, BLOCK = 0.608, 641, 30.0  # s, volumes, s: the same for every subject
DURATION = T_R * N_VOLUMES  # s, of the run and of the film
SHARED = "n/a"  # the subject of files that all subjects need
# A row of the registry: the path is below the dataset's folder.
ReleaseFile = namedtuple("ReleaseFile", "subject kind path bytes md5")


@cache
def release_files():
    """Return the registry as a tuple of `ReleaseFile`; the kinds are bold, T1w, annotation and participants."""
    lines = Path(__file__).with_name("ds003688.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return tuple(ReleaseFile(subject, kind, path, int(size), md5) for subject, kind, path, size, md5 in rows)


def fmri_subjects(registry=None):
    """Return the subjects with a film run, sorted.

    >>> len(fmri_subjects()), fmri_subjects()[:4]
    (30, ['04', '07', '08', '09'])
    """
    return sorted(item.subject for item in registry or release_files() if item.kind == "bold")


def check_fmri_subject(subject, registry=None):
    """Refuse a subject of whom the release holds no fMRI; name those it holds, and the nearest to a misspelt one.

    Raises
    ------
    ParameterError
        If it is none of them.
    """
    known = fmri_subjects(registry)
    if subject not in known:
        listed = f"fMRI subjects: {' '.join(known)}"
        if subject in [f"{number:02}" for number in range(1, 64)]:  # 63 people, those without fMRI have iEEG
            raise ParameterError(f"sub-{subject} has no fMRI (iEEG only) - {listed}")
        said = [nearest(subject, known, otherwise=""), listed]
        raise ParameterError(f"unknown subject {subject!r} - {' '.join(filter(None, said))}")


def files_of(subjects, registry=None):
    """Return the rows of the registry that these subjects need, those they share among them."""
    return [item for item in registry or release_files() if item.subject in (*subjects, SHARED)]


def is_right(path, item):
    """Tell whether the file at ``path`` is the one of the release, by size and MD5."""
    return path.is_file() and path.stat().st_size == item.bytes and files.file_md5(path) == item.md5


def film_events():
    r"""Return the film's 13 blocks, music first, as the text of a BIDS ``_events.tsv``.

    >>> film_events().splitlines()[-1]
    '360.000\t29.728\tmusic'
    """
    lines = ["onset\tduration\ttrial_type"]
    for k in range(math.ceil(DURATION / BLOCK)):
        length = min(BLOCK, DURATION - k * BLOCK)
        lines.append(f"{k * BLOCK:.3f}\t{length:.3f}\t{('music', 'speech')[k % 2]}")
    return "\n".join(lines) + "\n"
