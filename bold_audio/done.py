"""What a step was made from, and whether it has to be made again.

``done.json`` in a subject's outputs says of every finished step what it was made from (parameters, input files,
notebook, code), and of a step under way what was there before it. A step is made again where one of them has changed,
or a file that it wrote is gone.
"""

import json
import os
import re
from itertools import chain
from pathlib import Path

from bold_audio import anatomy, bids, hemispheres, prepare, truth
from bold_audio.bundle import folders_of
from bold_audio.files import DataError, fingerprint, project_root, read_json, time_of_day, write_json
from bold_audio.provenance import imported_modules, package_versions
from bold_audio.schema import MODEL_KINDS
from bold_audio.steps import STEPS

DONE = "done.json"
NOT_DONE = "not done yet"
OWN_ROW = "participants.tsv"  # among the inputs, though not by its MD5
# Parameters that change nothing, or nothing before a step.
NEVER = {"data_dir", "outputs_dir", "chunk_voxels", "dvc_remote", "dvc_url", "dvc_jobs", "dvc_timeout"}
SERVING = {
    "model_name", "model_version", "overwrite_model", "served_model", "runtime", "returns", "allow_other_subject",
    "triton_url", "triton_protocol", "triton_timeout", "prediction", "models_dir",
}  # fmt: skip
FIRST_USE = {"04": prepare.MLP_ONLY | {"checkpoint_dir"}, "05": SERVING}
TRACKED = "04"  # the step whose trainings are logged; parameters of the logging count there alone
TRACKING = {"mlflow_uri", "mlflow_experiment", "mlflow_required"}
PASSING = re.compile(r"\..*|(status|done)\.json|(index|model_card)\.html")  # files that no step stands on


def made_from(params, files, steps):
    """What steps would be made from now.

    Parameters
    ----------
    params : Params
    files : runs.RunFiles or runs.SeveralRuns
    steps : sequence of str

    Returns
    -------
    dict of str to dict
        By step: ``parameters`` by name, ``inputs`` (MD5 by file name), hashes of ``notebook``, ``code`` and
        ``packages``; of the last step also ``people``, whom it compares.

    Raises
    ------
    DataError, ParameterError
        If an input is missing.
    """
    inputs = prepare.input_md5(params, files, others=_files_beside(params, files))
    # Of the table of people a person's own row alone: whoever joins the dataset makes nobody else's results stale.
    inputs[OWN_ROW] = fingerprint(hemispheres.read_dominance(params))
    made = {}
    for step in steps:
        path = project_root() / "notebooks" / f"{step}.ipynb"
        sources = _code_cells(path)
        made[step] = {
            "parameters": _parameters_of(step, params),
            "inputs": inputs,
            "notebook": fingerprint(sources),
            "code": _code_of(path, sources),
            "packages": fingerprint(package_versions()),
        }
        if step == STEPS[-1]:
            made[step]["people"] = bids.compared_subjects(params)
    return json.loads(json.dumps(made, default=str))  # as it is read back


def _parameters_of(step, params):
    left_out = NEVER.union(*(names for first, names in FIRST_USE.items() if step[:2] < first))
    left_out |= set() if step[:2] == TRACKED else TRACKING
    return {name: value for name, value in params.model_dump().items() if name not in left_out}


def _files_beside(params, files):
    """Files that results depend on besides scan, mask, sidecars, events and sound, where they are there."""
    masks = [anatomy.find_mask(spec["mask"], params) for spec in params.regions.values() if "mask" in spec]
    paths = (*bids.find_t1w(params, files.bold), *filter(None, masks), *sorted(truth.folder_of(params).glob("*")))
    return [path for path in paths if path.is_file()]


def _code_cells(path):
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a notebook ({type(error).__name__}) - get it again from git") from error


def _code_of(path, sources):
    """Hash of all modules of the package that a notebook imports, directly or not."""
    package, read, todo = Path(__file__).parent, {}, set()
    for source in sources:
        # Lines for IPython alone are no Python; none of the notebooks has one, a person's own may.
        plain = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        try:
            todo |= set(imported_modules(package / path.name, plain))
        except SyntaxError:
            continue  # the notebook's own text is in the hash of its cells
    while todo:
        module = todo.pop()
        if module not in read:
            read[module] = module.read_bytes()
            todo |= set(imported_modules(module, read[module]))
    return fingerprint(*(fingerprint(module.name, read[module].decode()) for module in sorted(read)))


def is_begun(folder, steps):
    """Whether any of the steps is done, so that what it was made from has to be compared."""
    return not _read_done(folder).keys().isdisjoint(steps)


def why_again(folder, step, now):
    """Why a step has to be made again, in words; None where it is done.

    Parameters
    ----------
    folder : Path
        The subject's outputs.
    step : str
    now : dict
        From `made_from`.
    """
    done = _read_done(folder).get(step)
    if done is None:
        return NOT_DONE
    before = done["made_from"]
    for name, words in (("parameters", "parameter"), ("inputs", "file")):
        old, new = before[name], now[name]
        if changed := sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return f"{words} {', '.join(changed[:3])}{more} changed"
    for name in ("notebook", "code", "packages", "people"):
        if before.get(name) != now.get(name):
            return f"{name} changed"
    gone = [path for path in done["files"] if not (folder / path).is_file()]
    return f"{gone[0]} is gone" if gone else None


def _read_done(folder):
    """Entries of finished steps; a damaged one is none, so that its step is made again."""
    return {step: entry for step, entry in _read(folder).items() if _is_entry(entry)}


def _read(folder):
    try:
        known = read_json(folder / DONE, default={})
    except DataError:
        return {}
    return {k: v for k, v in known.items() if isinstance(v, dict)} if isinstance(known, dict) else {}


def _is_entry(entry):
    return (
        isinstance(entry.get("files"), list)
        and isinstance(made := entry.get("made_from"), dict)
        and all(isinstance(made.get(name), dict) for name in ("parameters", "inputs"))
    )


def begin(params, step):
    """Take a step off the list, and say what was there before it began.

    A step that was stopped half-way and begins again began then: what it had written by then is its own.

    Returns
    -------
    dict
        As of `snapshot`.
    """
    folder = params.subject_path
    before = _read(folder).get(step, {}).get("before")
    if before is None:
        before = snapshot(params)
    write_json(folder / DONE, _read_done(folder) | {step: {"before": before}})
    return before


def mark_done(folder, step, now, *, files, seconds):
    """Put a step on the list, last of all that it writes.

    Parameters
    ----------
    folder : Path
    step : str
    now : dict
        From `made_from`, of before it began.
    files : list of str
        What it wrote, from `files_written`.
    seconds : float
    """
    entry = {
        "made_from": now, "files": files, "seconds": round(seconds, 1),
        "finished": time_of_day(),
    }  # fmt: skip
    write_json(folder / DONE, _read_done(folder) | {step: entry})


def snapshot(params):
    """State of the files that a step may write, by path from the subject's outputs: time and size."""
    models = params.resolve(params.models_dir)
    roots = {params.subject_path, params.checkpoint_path}
    roots |= set(chain.from_iterable(folders_of(models, params.exported_as(kind)) for kind in MODEL_KINDS))
    found = {}
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not any(PASSING.fullmatch(part) for part in path.relative_to(root).parts):
                state = path.stat()
                found[os.path.relpath(path, params.subject_path)] = [state.st_mtime_ns, state.st_size]
    return found


def files_written(before, after, *, step):
    """Paths that a step stands on: what it wrote and, of the export, the versions that were there already."""
    exported = "05" in step and (path for path in after if path.startswith(".."))
    return sorted({path for path, state in after.items() if before.get(path) != state} | set(exported or ()))
