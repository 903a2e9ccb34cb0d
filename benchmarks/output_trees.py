"""What two runs left, compared: the same names and, but for what tells the time, the same content."""

import contextlib
import json
import re
import sqlite3
from collections import Counter
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup

from bold_audio.locking import lock
from bold_audio.subjects import KEPT

TIMES = {"started", "finished", "seconds"}
TIMED = {"seconds", "s per call"}  # columns of tables: how long the program took


def without_times(content):
    """JSON without the entries that tell times."""
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def timeless(text):
    """A text without dates, how long a notebook took, random ids, and whether a model was there before.

    Other seconds are content: delays, intervals, lengths of films.
    """
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+\d{4}|Z)?", "<date>", text)
    text = re.sub(r"<date> UTC, in \d+ s\b", "<date> UTC, in <seconds>", text)
    text = text.replace("was there already", "was written")
    return re.sub(r"\b([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})\b", "<id>", text)


def table_content(table):
    """Rows of an HTML table, without columns that tell how long the program took."""
    rows = [
        [timeless(" ".join(cell.get_text(" ").split())) for cell in row.find_all(["th", "td"])]
        for row in table.find_all("tr")
    ]
    timed = {k for row in rows for k, text in enumerate(row) if text in TIMED}
    return [[text for k, text in enumerate(row) if k not in timed] for row in rows]


def output_content(output):
    """An output of a cell; of a table that tells times, what else is in its HTML."""
    html = output.get("data", {}).get("text/html", "")
    if any(f">{name}<" in html for name in TIMED):
        tables = BeautifulSoup(html, "html.parser").find_all("table")
        # As plain text it is the same table once more.
        data = {kind: value for kind, value in output["data"].items() if kind != "text/plain"}
        output = {**output, "data": data | {"text/html": [table_content(table) for table in tables]}}
    return timeless(json.dumps(output, sort_keys=True))


def notebook_content(path):
    """Cells of an executed notebook: kind, source, number, outputs."""
    made = []
    for cell in nbformat.read(path, as_version=4).cells:
        outputs = [output_content(output) for output in cell.get("outputs", [])]
        made.append([cell.cell_type, cell.source, cell.get("execution_count"), outputs])
    return made


def page_content(path):
    """Texts, data of figures, pictures and links of a page."""
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    figures = [timeless(one.text) for one in page.find_all("script")]
    links = [timeless(one.get("src") or one.get("href") or "") for one in page.find_all(["img", "a", "link"])]
    tables = [table_content(one) for one in page.find_all("table")]
    for one in page.select("li > a"):  # an index tells beside each page how long its notebook took
        if one.next_sibling and re.fullmatch(r"\s*— \d+ s\s*", str(one.next_sibling)):
            one.next_sibling.extract()
    for one in page.find_all(["script", "table", "style"]):
        one.extract()
    return [timeless(" ".join(page.get_text(" ").split())), tables, figures, links]


def mlflow_runs(path):
    """Runs of a local store: finished ones by name with parameters and metrics, and the others' states."""
    if not path.is_file():
        return {}, []
    with contextlib.closing(sqlite3.connect(path)) as store:
        runs = store.execute("select run_uuid, name, status from runs order by name").fetchall()
        finished, others = {}, []
        for number, name, status in runs:
            if status != "FINISHED":
                others.append(status)
                continue
            of = [
                store.execute(f"select {columns} from {table} where run_uuid = ? order by 1, 2", (number,)).fetchall()
                for table, columns in (("params", "key, value"), ("metrics", "key, step, value"))
            ]
            files = sorted((path.parent / "artifacts" / number).rglob("*.*"))
            finished.setdefault(name, []).append([*of, [[one.name, content(one)] for one in files]])
    return finished, others


def content(path):
    """What must be equal of a file."""
    if path.suffix == ".ipynb":
        return notebook_content(path)
    if path.suffix == ".html":
        return page_content(path)
    if path.name in ("done.json", "provenance.json", "status.json"):
        return without_times(json.loads(path.read_text(encoding="utf-8")))
    if path.name == KEPT:
        people = json.loads(path.read_text(encoding="utf-8"))["people"]
        return timeless(json.dumps({name: entry["row"] for name, entry in people.items()}))
    return path.read_bytes()


def files_of(state):
    """Files and folders of a state by path, without locks, which stay, and MLflow's, which it names at random."""
    found = {path.relative_to(state).as_posix(): path for path in sorted(state.rglob("*"))}
    return {name: path for name, path in found.items() if path.suffix != ".lock" and "outputs/mlflow/" not in name}


def differences(reference, state):
    """How a state differs from the reference, in words; and how many runs of MLflow never finished."""
    wanted, made = files_of(reference), files_of(state)
    said = [f"{name} is missing" for name in wanted if name not in made]
    said += [f"{name} was left" for name in made if name not in wanted]
    for name in sorted(wanted.keys() & made.keys()):
        if wanted[name].is_file() and wanted[name].read_bytes() != made[name].read_bytes():
            one, other = content(wanted[name]), content(made[name])
            if one != other:
                said.append(f"{name} differs: {_first(one, other)}")
    ours, _ = mlflow_runs(reference / "outputs/mlflow/mlflow.db")
    theirs, others = mlflow_runs(state / "outputs/mlflow/mlflow.db")
    if ours != theirs:
        said.append(f"MLflow's finished runs differ: {Counter(map(str, ours))}, {Counter(map(str, theirs))}")
    for name in wanted:
        if name.startswith("outputs/") and name.endswith("status.json"):
            with lock(state / Path(name).parent / ".lock"):
                pass
    return said, len(others)


def _first(one, other):
    """Where two contents differ first, shortly."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next(_first(a, b) for a, b in zip(one, other, strict=True) if a != b)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(f"{name}: {_first(one[name], other[name])}" for name in one if one[name] != other[name])
    one, other = str(one), str(other)
    at = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{one[max(0, at - 40) : at + 80]!r} is {other[max(0, at - 40) : at + 80]!r}"
