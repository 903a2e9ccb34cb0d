"""Executed notebooks, tables and maps → a folder of HTML pages that open without a network."""

import os
from pathlib import Path

import nbformat
import pandas as pd
from plotly.offline import get_plotlyjs

from bold_audio import model_card, prepare, subjects, thumbnails
from bold_audio.files import DataError, read_json, write_text
from bold_audio.locking import DATASET_LOCK, lock
from bold_audio.notebook_page import Failure, notebook_parts, read_failure, read_title
from bold_audio.steps import GROUP_STEP
from bold_audio.templates import plain, render

PLOTLY, CARD, INDEX = "plotly.min.js", "model_card.html", "index.html"
STAMP = "bold_audio"  # metadata of a notebook that `bold-audio run` executed: commit, packages, MD5 of inputs
MAP_PAGES = {
    "sweep": "03_dt_sweep.html",
    "inference": "map_of_the_sound.html",
}  # maps of all other models are drawn in the last notebook
LAST_PAGE = "06_inference.html"
GROUP_PAGE = f"group/report/{GROUP_STEP}.html"  # in a dataset's outputs


def write_page(executed, page, *, who="", failure=None, up=(INDEX, "all pages")):
    """Write an executed notebook as one HTML page; its figures need only the ``plotly.min.js`` beside it.

    The page is made of the notebook alone: the same notebook gives the same page. Cells tagged ``live`` (widgets, which
    need a kernel) are left out. A notebook that failed says so at its top, with what to do.

    Parameters
    ----------
    executed : path
        The notebook.
    page : path
        The HTML file.
    who : str
        Whose page it is, such as ``sub-09 · ds003688``.
    failure : Failure, optional
        Why the notebook stopped, where it does not say so itself, as when its kernel died.
    up : (str, str)
        Address of the page above it, and what is there.
    """
    executed, page = Path(executed), Path(page)
    notebook = _read(executed)
    parts = notebook_parts(notebook)
    seen = set()
    for part in parts:
        part["first"] = part["cell"] not in seen
        seen.add(part["cell"])
    figures = any(part["kind"] == "figure" for part in parts)
    html = render(
        "page.html.j2",
        scripts=("figures.js",) if figures else (),
        title=read_title(notebook, executed.stem),
        who=who or executed.parent.name,
        up=up,
        parts=parts,
        figures=figures,
        failure=_as_facts(read_failure(notebook) or failure),
        provenance=_provenance(notebook, executed.name),
    )
    write_text(page, html)
    if figures:
        write_plotly(page.parent)


def _read(executed):
    try:
        return nbformat.read(executed, as_version=4)
    except Exception as error:  # whatever nbformat and JSON make of a damaged file
        raise DataError(f"{executed} is no notebook ({type(error).__name__}) - run its step again") from error


def _as_facts(failure, step=""):
    return failure and {"step": step, **vars(failure)}


def write_plotly(folder):
    """Put plotly.js, which draws the figures of all pages, into a report's folder, once."""
    path, wanted = Path(folder) / PLOTLY, get_plotlyjs()
    if not (path.is_file() and path.read_text(encoding="utf-8") == wanted):
        write_text(path, wanted)


def _provenance(notebook, name):
    """How a notebook was executed, as (name, text)."""
    stamp, ran = notebook.metadata.get(STAMP, {}), notebook.metadata.get("papermill", {})
    given = ", ".join(f"{key} = {value}" for key, value in (ran.get("parameters") or {}).items())
    made = [("Notebook", name), ("Parameters given", given or "none, all as in params/")]
    if ran.get("end_time"):
        made.append(("Executed", f"{ran['end_time'][:19]} UTC, in {ran.get('duration') or 0:.0f} s"))
    if not stamp:
        return [*made, ("Commit", "not recorded: executed without bold-audio run")]
    made.append(("bold_audio", f"{stamp['version']}, commit {stamp.get('git_commit') or 'unknown'}"))
    made += [(f"MD5 of {file}", md5) for file, md5 in stamp.get("input_md5", {}).items()]
    packages = ", ".join(f"{package} {version}" for package, version in stamp["packages"].items())
    return [*made, ("Python and packages", f"{stamp['python']}; {packages}")]


def write_report(params, *, anew=False, wait=600):
    """Write a subject's report: pages that are missing, the model card, the index, and the index of all subjects.

    Parameters
    ----------
    params : Params
    anew : bool
        Whether to write every page again.
    wait : float
        Seconds to wait for another process that writes the index of all subjects.

    Returns
    -------
    Path
        The subject's index.

    Raises
    ------
    DataError
        With ``anew``, if the subject has no executed notebook.
    """
    folder, who = params.subject_path, f"sub-{params.subject} · {params.label}"
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if anew and not notebooks:
        raise DataError(f"no executed notebook in {folder} - run 'bold-audio run --subject {params.subject}' first")
    status = read_json(folder / subjects.STATUS, default={})
    pages = []
    for executed in notebooks:
        page = folder / "report" / f"{executed.stem}.html"
        failed_here = status.get("state") == "failed" and status.get("step") == executed.stem
        failure = Failure.of(status.get("error", "")) if failed_here else None
        if anew or not page.is_file() or page.stat().st_mtime < executed.stat().st_mtime:
            write_page(executed, page, who=who, failure=failure)
        pages.append((page.name, *_listed(executed, failed_here)))
    facts = model_card.card_facts(params)
    if facts:
        for model in facts["models"]:
            model["tables"] = [_as_table(*one) for one in model["tables"]]
        write_text(
            folder / "report" / CARD, render("model_card.html.j2", title=f"Model card · {who}", who=who, **facts)
        )
    index = write_subject_index(params, pages, status=status, card=CARD if facts else None)
    title = f"Subjects of {params.label}"
    write_dataset_index(folder.parent, title=title, note=params.data_note or "", of=None if anew else folder, wait=wait)
    return index


def write_group_page(params, folder):
    """Write the page of a dataset's group notebook, where it was executed, and name it in the index of all subjects.

    Returns
    -------
    Path
        The page.
    """
    executed, page = folder / f"{GROUP_STEP}.ipynb", folder.parent / GROUP_PAGE
    if executed.is_file():
        write_page(executed, page, who=params.label, up=(f"../../{INDEX}", "all subjects"))
    write_dataset_index(folder.parent, title=f"Subjects of {params.label}", note=params.data_note or "")
    return page


def _listed(executed, failed):
    """Title of an executed notebook, and how its execution ended."""
    notebook = _read(executed)
    seconds = notebook.metadata.get("papermill", {}).get("duration")
    if failed or read_failure(notebook):
        return read_title(notebook, executed.stem), "failed"
    return read_title(notebook, executed.stem), "" if seconds is None else f"{seconds:.0f} s"


def _as_table(caption, table):
    return caption, list(table.columns), table.map(_cell).to_numpy().tolist()


def _cell(value):
    if isinstance(value, float):
        return "n/a" if pd.isna(value) else f"{value:.3g}"
    return "n/a" if pd.isna(value) else str(value)


def write_index(
    folder, *, title, note, sentences, tables, pages, provenance, alarms=(), maps=(), failure=None, up=None, card=None
):
    """Write ``index.html``: headline sentences, score tables, maps and links to the pages; all text is escaped.

    Parameters
    ----------
    folder : path
        The report's folder.
    title, note : str
        Heading, and what must be known of the data.
    sentences : list of str
        The first is the headline.
    tables : list of (str, DataFrame)
        Caption and table.
    pages : list of (str, str, str)
        File, name and state of each page.
    provenance : list of (str, str)
    alarms : list of str
        What makes every number doubtful, in red.
    maps : list of dict
        `thumbnails.subject_thumbnails`.
    failure : dict, optional
        What stopped the run: ``step``, ``what``, ``fix``, ``name``, ``cell``.
    up, card : str, optional
        Addresses of the index of all subjects and of the model card.
    """
    html = render(
        "index.html.j2",
        title=title,
        note=note,
        sentences=[plain(sentence) for sentence in sentences],
        tables=[_as_table(*one) for one in tables],
        pages=pages,
        provenance=provenance,
        alarms=alarms,
        maps=maps,
        failure=failure,
        up=up,
        card=card,
    )
    write_text(Path(folder) / INDEX, html)


def write_subject_index(params, pages, *, status=None, card=None):
    """Write a subject's index from what its notebooks left: scores, sentences, maps, provenance."""
    folder, status = params.subject_path, status or {}
    done = read_json(folder / "provenance.json", default={})
    summary = read_json(folder / "summary.json", default={})
    failure = None
    if status.get("state") == "failed":
        failure = _as_facts(Failure.of(status.get("error", "")), status.get("step") or "The run")
    there = {name for name, *_ in pages}
    maps = thumbnails.subject_thumbnails(folder)
    for one in maps:
        page = MAP_PAGES.get(one["model"], LAST_PAGE)
        one["page"] = page if page in there or (folder / "report" / page).is_file() else None
    last = max(done.values(), key=lambda entry: entry["finished"], default={})
    write_index(
        folder / "report",
        title=f"sub-{params.subject} · {params.label}",
        note=summary.get("about", params.data_note or ""),
        alarms=[*summary.get("alarms", []), *_mixed(folder)],
        sentences=summary.get("sentences", ["Not all notebooks have run yet."]),
        tables=_score_tables(folder, summary.get("region")),
        pages=pages,
        maps=maps,
        failure=failure,
        up=f"../../{INDEX}",
        card=card,
        provenance=[
            ("bold_audio", f"commit {last.get('git_commit') or 'unknown'}"),
            ("Finished", last.get("finished", "not yet")),
            *((f"MD5 of {name}", md5) for name, md5 in last.get("input_md5", {}).items()),
            ("More", "parameters, seeds and package versions of every step are in provenance.json"),
        ],
    )
    return folder / "report" / INDEX


def _mixed(folder):
    """A sentence for each notebook that was run with other parameters than the last one: its page does not say so."""
    try:
        made = {
            step: (entry["finished"], entry["made_from"]["parameters"])
            for step, entry in read_json(folder / "done.json", default={}).items()
            if "made_from" in entry
        }
        last = max(made, key=lambda step: made[step][0], default=None)
        now = {} if last is None else prepare.result_parameters(made[last][1])
        changed = {step: sorted(k for k in now if k in old and old[k] != now[k]) for step, (_, old) in made.items()}
    except (DataError, KeyError, TypeError, AttributeError):  # damaged: every step will be made again
        return []
    return [
        f"{step} was run with other parameters than {last} ({', '.join(names)}): run it again, or read it apart."
        for step, names in changed.items()
        if names
    ]


def _score_tables(folder, region):
    """The score tables of the region that the sentences speak of, each kind of prediction apart."""
    if not (folder / "scores.tsv").is_file() or region is None:
        return []
    table, tables = pd.read_csv(folder / "scores.tsv", sep="\t"), []
    kept = [c for c in table.columns if c not in ("prediction", "region", "n_volumes", "n_voxels")]
    for prediction, words in (("one_step", "One-step: previous volumes measured"), ("open_loop", "Open-loop")):
        rows = table[(table["prediction"] == prediction) & (table["region"] == region)]
        if len(rows):
            size = f"{rows['n_volumes'].iloc[0]} test volumes, {rows['n_voxels'].iloc[0]} voxels"
            tables.append((f"{words} ({region}, {size})", rows[kept]))
    return tables


def write_dataset_index(folder, *, title, note="", of=None, wait=600):
    """Write ``index.html`` of a dataset's outputs: a row per subject, sortable, those that failed with their error.

    Parameters
    ----------
    folder : path
    title, note : str
    of : Path, optional
        The subject for whose sake it is written: left as it is where another process has done so meanwhile.
    wait : float
        Seconds to wait for such a process.

    Returns
    -------
    Path
    """
    folder = Path(folder)
    with lock(folder / DATASET_LOCK, wait=wait, doing=f"{folder}"):
        if of is None or not (folder / INDEX).is_file() or not subjects.is_counted(of):
            rows = subjects.subject_rows(folder)
            _write_rows(folder, [entry["row"] for entry in rows.values()], title=title, note=note)
            subjects.keep_rows(folder, rows)
    return folder / INDEX


def _write_rows(folder, rows, *, title, note):
    shown = []
    for row in rows:
        report = folder / row["subject"] / "report" / INDEX
        link = os.path.relpath(report, folder).replace(os.sep, "/") if report.is_file() else None
        shown.append({"cells": subjects.cells(row), "failed": row["failed"], "link": link})
    html = render(
        "subjects.html.j2",
        scripts=("sort.js",),
        title=title,
        note=note,
        counts=subjects.counted(rows),
        columns=subjects.COLUMNS,
        words=subjects.WORDS,
        rows=shown,
        group=GROUP_PAGE if (folder / GROUP_PAGE).is_file() else None,
        foot="Each row is read from the subject's scores.tsv, summary.json, provenance.json and status.json.",
    )
    write_text(folder / INDEX, html)
