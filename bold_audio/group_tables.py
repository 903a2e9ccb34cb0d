"""What the finished subjects of a dataset left, in one table for all of them; who cannot be counted, and why.

Only small tables are read, one subject after the other, so that thousands of folders need seconds and little memory.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bold_audio import hemispheres
from bold_audio.features import as_numbers
from bold_audio.files import DataError, fingerprint, read_json
from bold_audio.prepare import MLP_ONLY, NOT_RESULTS, scans_in
from bold_audio.significance import OVER_PAST, WITHIN
from bold_audio.subjects import STATUS

# Parameters in which people may differ and still be asked the same: whose scan it is, where it begins, the network's.
OWN = {"subject", "session", "run", "bids_entities", "audio_onset", "t_r_source", "allow_short"}
NOT_COMPARED = OWN | NOT_RESULTS | MLP_ONLY | {"mlp_delays", "mlp_history"}
STEPS = ("inference_regions", "out_of_fold", "dt_sweep")  # in provenance.json: what made the three tables
GAINS = {"gain": OVER_PAST, "gain_within": WITHIN}
VALUES = ["r", "gain", "p", "gain_within", "p_within", "delay", "low", "high"]
COLUMNS = ["subject", "region", *VALUES, "identifiable", "n_voxels"]
PERSON = ["subject", "age", "language_side", "language_certain", "mean_fd"]
DAMAGED = (DataError, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Group:
    """The finished subjects of a dataset.

    Parameters
    ----------
    regions : DataFrame
        One row per person and region: ``subject``, ``region``, ``r`` (of the sound alone, median voxel, out of fold),
        ``gain`` over the past and its ``p`` (no gain where the person's table withholds p), ``gain_within`` over past
        and blocks and its ``p_within`` (out of fold, p by the person's own surrogates), ``delay``, ``low``, ``high``
        (s, 95 % interval, inside train), ``identifiable``, ``n_voxels``. NaN where a person has no such value.
    people : DataFrame
        One row per person: ``subject``, ``age``, ``language_side``, ``language_certain``, ``mean_fd`` (mean framewise
        displacement, mm).
    left_out : DataFrame
        ``subject``, ``state`` (``failed``, ``not finished``, ``damaged``, ``other parameters`` or ``same scan``) and
        ``reason``.
    settings : dict
        Parameters that all of them share, by name.
    """

    regions: pd.DataFrame
    people: pd.DataFrame
    left_out: pd.DataFrame
    settings: dict


class _LeftOutError(Exception):
    """Why a person cannot be counted: state and reason."""


def read_group(folder, *, data_path=None):
    """Read what the subjects of a dataset left.

    Parameters
    ----------
    folder : Path
        ``outputs/<dataset>``.
    data_path : Path, optional
        Root of the BIDS tree, whose participants.tsv knows age and language dominance.

    Returns
    -------
    Group
        People whose parameters are those of most. A failed, unfinished or damaged person stops nobody. A scan that two
        labels share is one person's: sign flips take people for independent, so that it is counted once.

    Raises
    ------
    DataError
        If participants.tsv is there and cannot be read.
    """
    found, left_out, settings, scans = {}, [], {}, {}
    for path in sorted(path for path in Path(folder).glob("sub-*") if path.is_dir()):
        label = path.name.removeprefix("sub-")
        try:
            own, scans[label] = _finished(path)
            key = fingerprint(own)
            found[label] = key, _region_rows(path, label), mean_displacement(path)
            settings.setdefault(key, own)
        except _LeftOutError as why:
            left_out.append((label, *why.args))
        except DAMAGED as error:
            left_out.append((label, "damaged", f"{type(error).__name__}: {error}"[:300]))
    most = Counter(key for key, _, _ in found.values()).most_common(1)
    shared = settings[most[0][0]] if most else {}
    for label, (key, _, _) in found.items():
        if settings[key] != shared:
            left_out.append((label, "other parameters", _difference(settings[key], shared)))
    counted = {label: rest for label, (key, *rest) in found.items() if settings[key] == shared}
    for label, twin in _same_scans({label: scans[label] for label in counted}):
        left_out.append((label, "same scan", f"its scan is that of sub-{twin}, who is counted"))
        del counted[label]
    rows = [row for rows, _ in counted.values() for row in rows]
    return Group(
        pd.DataFrame(rows, columns=COLUMNS).astype({name: float for name in VALUES}),
        _people({label: moved for label, (_, moved) in counted.items()}, data_path),
        pd.DataFrame(sorted(left_out), columns=["subject", "state", "reason"]),
        shared,
    )


def _finished(path):
    """Of a subject whose inference is done: the parameters that matter, and the MD5 of its scans.

    Raises
    ------
    _LeftOutError
    """
    status = read_json(path / STATUS, default={})
    done = read_json(path / "provenance.json", default={})
    if status.get("state") in ("failed", "stopped"):
        where = ": ".join(filter(None, (status.get("step"), status.get("error"))))
        state = "failed" if status["state"] == "failed" else "not finished"
        raise _LeftOutError(state, where or "its run was stopped")
    if STEPS[0] not in done:
        raise _LeftOutError("not finished", "no inference yet: run its notebook 06")
    own = _settings(done[STEPS[0]])
    for step in STEPS[1:]:
        if step in done and _settings(done[step]) != own:
            why = f"{step} and {STEPS[0]} differ: {_difference(_settings(done[step]), own)}; run the subject again"
            raise _LeftOutError("other parameters", why)
        if step in done and done[step]["input_md5"] != done[STEPS[0]]["input_md5"]:
            raise _LeftOutError("other parameters", f"{step} and {STEPS[0]} were made from other files; run it again")
    return own, scans_in(done[STEPS[0]]["input_md5"])


def _same_scans(scans):
    """People one of whose scans (MD5) somebody before them has, with that person: list of (label, label)."""
    owner, twins = {}, []
    for label, own in scans.items():
        if known := own & owner.keys():
            twins.append((label, owner[min(known)]))
        else:
            owner |= dict.fromkeys(own, label)
    return twins


def _settings(entry):
    return {name: value for name, value in entry["parameters"].items() if name not in NOT_COMPARED}


def _difference(own, shared):
    """In what two settings differ, in a few words."""
    names = [name for name in sorted(own | shared) if own.get(name) != shared.get(name)]
    pairs = ((name, str(own.get(name)), str(shared.get(name))) for name in names[:3])
    told = [f"{name} is {a} in place of {b}" if len(a + b) < 60 else f"another {name}" for name, a, b in pairs]
    return ", ".join(told) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _region_rows(path, label):
    """A person's rows of the table of regions: list of dict."""
    gains = read_rows(path / "inference_regions.tsv", ("region", "model", "gain", "p", "n_voxels"))
    sound = {
        row["region"]: _number(row["r_median"])
        for row in read_rows(
            path / "out_of_fold.tsv", ("model", "prediction", "region", "r_median"), may_be_missing=True
        )
        if (row["model"], row["prediction"]) == ("sound", "one_step")
    }
    columns = ("region", "delay", "low", "high", "identifiable")
    delays = {row["region"]: row for row in read_rows(path / "dt_regions.tsv", columns, may_be_missing=True)}
    by_model = {model: {row["region"]: row for row in gains if row["model"] == model} for model in GAINS.values()}
    rows = []
    for region, n_voxels in {row["region"]: row["n_voxels"] for row in gains}.items():
        past, within, delay = (known.get(region, {}) for known in (*by_model.values(), delays))
        p = _number(past.get("p"))
        rows.append(
            {
                "subject": label,
                "region": region,
                "r": sound.get(region, math.nan),
                # Withheld with its p: over people, too, it would be a circle (`inferred.PICKED`).
                "gain": math.nan if math.isnan(p) else _number(past.get("gain")),
                "p": p,
                "gain_within": _number(within.get("gain")),
                "p_within": _number(within.get("p")),
                "delay": _number(delay.get("delay")),
                "low": _number(delay.get("low")),
                "high": _number(delay.get("high")),
                "identifiable": delay.get("identifiable") == "True",
                "n_voxels": int(n_voxels),
            }
        )
    return rows


def read_rows(path, columns, *, may_be_missing=False):
    """Columns of a small table as one dict of text per row; pandas takes several times as long.

    Raises
    ------
    DataError
        If the table is missing, has other columns, or was cut.
    """
    if may_be_missing and not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise DataError(f"{path.name} was cut - run the subject again")
    head, *lines = (line.split("\t") for line in text.splitlines())
    missing = [name for name in columns if name not in head]
    if missing:
        raise DataError(f"{path.name} has no column {missing[0]} - run the subject again")
    if any(len(line) != len(head) for line in lines):
        raise DataError(f"{path.name} has rows of another length than its head - run the subject again")
    places = [head.index(name) for name in columns]
    return [dict(zip(columns, [line[k] for k in places], strict=True)) for line in lines]


def _number(text):
    """A cell as a float: NaN for n/a or None; nothing else that is not finite is taken for a value."""
    if text is None or text == "n/a":
        return math.nan
    value = float(text)
    if not math.isfinite(value):
        raise DataError(f"a table holds {text} where a number is due - run the subject again")
    return value


def mean_displacement(path):
    """Mean framewise displacement of a subject's scan in mm; NaN where it was not estimated."""
    tables = sorted(path.glob("*_desc-quality_timeseries.tsv"), key=lambda one: one.stat().st_mtime)
    if not tables:
        return math.nan
    moved = [_number(row["framewise_displacement"]) for row in read_rows(tables[-1], ("framewise_displacement",))]
    known = [value for value in moved if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _people(moved, data_path):
    """Age, language dominance and motion of the people counted."""
    people = pd.DataFrame({"subject": list(moved), "mean_fd": list(moved.values())}, dtype=object)
    known = None if data_path is None else hemispheres.read_participants(Path(data_path))
    known = pd.DataFrame(index=people["subject"]) if known is None else known.reindex(people["subject"])
    nothing = pd.Series(np.nan, index=known.index, dtype=object)
    people["age"] = as_numbers(known.get("age", nothing))
    sides = [hemispheres.side_of(text) for text in known.get("language_dominance", nothing)]
    people["language_side"] = [side for side, _ in sides]
    people["language_certain"] = [certain for _, certain in sides]
    return people[PERSON].astype({"mean_fd": float, "age": float})
