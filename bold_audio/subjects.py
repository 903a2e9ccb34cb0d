"""One row per subject of a dataset, from what the runs left: what was found, or where it stopped and why."""

import json
import math

import pandas as pd

from bold_audio.files import DataError, read_json, write_text
from bold_audio.provenance import code_fingerprint
from bold_audio.sentences import row_of

STATUS = "status.json"  # what became of a subject's last run
READ = (STATUS, "summary.json", "provenance.json", "scores.tsv")  # what a row is made from
KEPT = ".subjects.json"  # in a dataset's outputs: the rows that were last shown
COLUMNS = ("subject", "state", "Δt (s)", "region", "r of the sound", "gain over the past")
COLUMNS += ("gain over past and blocks", "MSE of past and sound", "finished", "where it stopped", "data")
WORDS = {"region", "where it stopped", "data", "state"}


def subject_rows(folder):
    """Rows of the table of all subjects in a dataset's outputs.

    Only what has changed since the rows were last shown is read again: of thousands of people, each of whom writes the
    table anew when done, that is one. Whoever calls this holds the dataset's lock.

    Parameters
    ----------
    folder : Path
        ``outputs/<dataset>``.

    Returns
    -------
    dict of str to dict
        By folder: ``row`` (``subject``, ``failed`` and, for each of `COLUMNS`, a text, a number or None) and ``of``,
        the state of the files that it was read from. `keep_rows` keeps them for the next time.
    """
    before, now = _kept_rows(folder), {}
    for path in sorted(path for path in folder.glob("sub-*") if path.is_dir()):
        state = _state(path)
        if state[0] or any(path.glob("*.ipynb")):
            known = before.get(path.name, {})
            now[path.name] = known if known.get("of") == state else {"of": state, "row": _row(path)}
    return now


def keep_rows(folder, rows):
    """Keep rows that have been shown."""
    write_text(folder / KEPT, json.dumps({"code": _code(), "people": rows}))


def is_counted(path):
    """Whether the rows that were last shown are of a subject's files as they are now."""
    return _kept_rows(path.parent).get(path.name, {}).get("of") == _state(path)


def _kept_rows(folder):
    """The rows that were last shown, by folder; none where other code read them, or they are damaged."""
    try:
        kept = read_json(folder / KEPT, default={})
        return kept["people"] if kept.get("code") == _code() else {}
    except (DataError, AttributeError, KeyError):
        return {}


def _code():
    import bold_audio.subjects as this

    return code_fingerprint(this)


def _state(path):
    """Size and time of each of the files that a row is made from; 0 for one that is not there."""
    states = []
    for name in READ:
        try:
            state = (path / name).stat()
            states.append([state.st_size, state.st_mtime_ns])
        except OSError:
            states.append(0)
    return states


def _row(path):
    try:
        return _known(path)
    except (DataError, ValueError, KeyError, TypeError) as error:  # a damaged file must not hide the others
        broken = f"{type(error).__name__}: {error}"[:300]
        return {"subject": path.name, "failed": True, "state": "unreadable", "where it stopped": broken}


def _known(path):
    status = read_json(path / STATUS, default={})
    summary, done = (read_json(path / f"{name}.json", default={}) for name in ("summary", "provenance"))
    row = {"subject": path.name, "failed": status.get("state") in ("failed", "stopped")}
    row["state"] = status.get("state", "done" if summary else "not finished")
    row["where it stopped"] = ": ".join(filter(None, (status.get("step"), status.get("error"))))
    finished = status.get("finished") or max((entry["finished"] for entry in done.values()), default="")
    row["finished"] = finished[:16].replace("T", " ")
    row["data"] = summary.get("about", "").partition("; ")[2]
    row["region"], scores = summary.get("region"), path / "scores.tsv"
    if row["region"] and scores.is_file():
        row |= _scores(pd.read_csv(scores, sep="\t"), row["region"])
    row["Δt (s)"] = done.get("dt_sweep", {}).get("delay")
    return row


def _scores(table, region):
    wanted = {
        "r of the sound": ("sound", "r_median"),
        "gain over the past": ("history_sound", "skill"),
        "gain over past and blocks": ("history_blocks_sound", "skill"),
        "MSE of past and sound": ("history_sound", "mse"),
    }
    found = {column: row_of(table, model, region) for column, (model, _) in wanted.items()}
    return {column: None if row is None else float(row[wanted[column][1]]) for column, row in found.items()}


def cells(row):
    """A row as cells: text to read, a value to sort by (empty where missing), and whether it is words."""
    return [{"text": _text(row.get(name)), "value": _value(row.get(name)), "words": name in WORDS} for name in COLUMNS]


def _text(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _value(value):
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def counted(rows):
    """How many subjects there are, and how many of them failed."""
    failed = sum(row["failed"] for row in rows)
    return f"{len(rows)} subject{'s' * (len(rows) != 1)}, {failed} of them failed."
