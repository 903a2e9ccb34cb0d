"""Parameters of a subject, as files and callers give them: common < dataset file < subject file < what is passed."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bold_audio.files import ParameterError, nearest, project_root, without_credentials
from bold_audio.plain_yaml import NamedTwice, read_yaml
from bold_audio.schema import DEFAULT_DATASET, LABEL, RESERVED, SIMULATED, Params

# Labels of BIDS, whose zeros count: YAML takes 011 for the octal number 9, and on for True.
LABELS = ("session", "task", "run", "space", "desc")
LONGEST_VALUE = 100_000  # characters of a value on the command line, which YAML takes its time to read


def normalise_subject(subject):
    """Return the BIDS label meant by any usual spelling of a subject.

    Raises
    ------
    ParameterError
        If it cannot be a label.

    Examples
    --------
    >>> [normalise_subject(s) for s in (9, "9", "09", "sub-09", " SUB-09 ", "sim")]
    ['09', '09', '09', '09', '09', 'sim']
    """
    if isinstance(subject, bool) or not isinstance(subject, int | str):
        raise ParameterError(f"subject must be a label such as 09, got {subject!r} - write it in quotes")
    label = str(subject).strip()
    label = label[4:] if label.lower().startswith("sub-") else label
    if not LABEL.fullmatch(label) or len(label) > 50:
        raise ParameterError(
            f"subject must be letters and digits such as 09 or sub-09, got {subject!r} - check its spelling"
        )
    return label.zfill(2) if label.isdigit() else label


def read_parameter_file(path):
    """Read one YAML file of parameters as a dictionary; an empty file is an empty dictionary.

    Raises
    ------
    ParameterError
        If it is missing or does not hold ``name: value`` lines.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = read_yaml(text) or {}
    except FileNotFoundError:
        raise ParameterError(f"parameter file not found: {path} - check its name") from None
    except NamedTwice as error:
        raise ParameterError(
            f"{path}, line {error.problem_mark.line + 1}: {error.problem} - keep one of them"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ParameterError(f"cannot read parameter file {path}{line} - write it as 'name: value' lines") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path} must hold 'name: value' lines, got a {type(content).__name__} - mend the file")
    if bare := re.search(r"^\s*subject:\s*(0\d+)\s*(?:#.*)?$", text, flags=re.MULTILINE):
        # YAML reads 011 as the octal number 9.
        raise ParameterError(
            f'{path}: YAML may read {bare[1]} as another number - write the subject in quotes: "{bare[1]}"'
        )
    if bare := re.search(rf"^\s*({'|'.join(LABELS)}):\s*(0+[1-7][0-7]+)\s*(?:#.*)?$", text, flags=re.MULTILINE):
        raise ParameterError(
            f'{path}: YAML reads {bare[2]} as another number - write the {bare[1]} in quotes: "{bare[2]}"'
        )
    return content


def load_params(subject, dataset=None, **given):
    """Merge the parameter files of a subject with what the caller gives.

    Parameters
    ----------
    subject : int or str
        Any spelling of the subject: 9, "9", "09" or "sub-09".
    dataset : str, optional
        Name of a file in ``params/``; ``sim`` for the simulated subject, else ds003688.
        A dataset without a file needs ``data_dir``.
    **given
        Parameters that win over the files. ``None`` means "as in the files".

    Returns
    -------
    Params

    Raises
    ------
    ParameterError
        If a name is unknown (the nearest right one is named) or a value cannot be right.
    """
    label = normalise_subject(subject)
    dataset = dataset or (SIMULATED if label == SIMULATED else DEFAULT_DATASET)
    if not isinstance(dataset, str) or not re.fullmatch(rf"(?!{RESERVED})[A-Za-z0-9_]{{1,50}}", dataset):
        raise ParameterError(f"dataset must be letters, digits and '_', got {dataset!r} - check its spelling")
    folder = project_root() / "params"
    given = {name: value for name, value in given.items() if value is not None}
    merged = read_parameter_file(folder / "common.yaml")
    dataset_file = folder / f"{dataset}.yaml"
    if dataset_file.is_file():
        merged |= read_parameter_file(dataset_file)
    elif "data_dir" not in given:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml") if p.stem != "common"))
        raise ParameterError(f"dataset {dataset} has no file in params/ (there are {known}) - pass data_dir with it")
    subject_file = folder / dataset / f"sub-{label}.yaml"
    if subject_file.is_file():
        merged |= read_parameter_file(subject_file)
    merged |= given | {"subject": label, "dataset": dataset}
    try:
        params = Params(**merged)
    except ValidationError as error:
        raise ParameterError(_one_line(error)) from None
    except TypeError as error:
        raise ParameterError(
            f"a parameter's name is no word ({error}) - see params/common.yaml for the names"
        ) from None
    for name in ("outputs_dir", "models_dir", "checkpoint_dir"):
        folder = params.resolve(getattr(params, name) or params.outputs_dir)
        if folder == params.data_path or params.data_path in folder.parents:
            raise ParameterError(
                f"{name} must lie outside the data, got {folder} inside {params.data_path} - choose another folder"
            )
    return params


def parse_given(pairs, *, null=False):
    """``-p NAME VALUE`` pairs as a dictionary; values are read as YAML, labels of BIDS as they stand.

    ``null`` says whether that is a value: for a parameter it would be dropped without a word.

    Raises
    ------
    ParameterError
        If a value is not readable YAML, too long, null, or has an option of its own.
    """
    given = {}
    for name, value in pairs:
        if name in ("subject", "dataset"):
            raise ParameterError(f"-p {name} has an option of its own - use --{name} {value}")
        if len(value) > LONGEST_VALUE:
            raise ParameterError(f"-p {name}: {len(value)} characters are too many - give at most {LONGEST_VALUE}")
        if name in LABELS and re.fullmatch("[A-Za-z0-9]+", value) and value != "null":
            given[name] = value
            continue
        try:
            given[name] = read_yaml(value)
        except yaml.YAMLError:
            raise ParameterError(f"-p {name}: cannot read {value[:60]!r} - quote it") from None
        if given[name] is None and not null:  # what the notebooks' own parameters are before anything is passed
            raise ParameterError(
                f"-p {name} {value!r}: null leaves what the files say - write null into a file of params/"
            )
    return given


def _one_line(error):
    """Say the first thing pydantic found in one line."""
    first = error.errors()[0]
    # Of the kinds that a value may have, pydantic names each; the reader wants the parameter.
    name = ".".join(str(part) for k, part in enumerate(first["loc"]) if k == 0 or isinstance(part, int)) or "parameters"
    if first["type"] == "extra_forbidden":
        return _unknown(name)
    if first["type"] == "missing":
        return f"parameter {name} is missing - set it in params/"
    what = first["msg"].removeprefix("Value error, ")
    got = without_credentials(str(first["input"]))[:80]
    whole = first["type"] == "value_error" and (not first["loc"] or " - " in what)  # it says what to do itself
    value = "" if whole else f", got {got!r}"
    mend = "" if " - " in what else f" - see {name.split('.')[0]} in params/common.yaml"
    return f"{name}: {what[0].lower() + what[1:]}{value}{mend}"


def _unknown(name):
    """Of a name that is no parameter, and of the one that it probably means."""
    meant = nearest(name, Params.model_fields, otherwise="see params/common.yaml for the names")
    return f"unknown parameter {' '.join(name.split())[:80]} - {meant}"


def notebook_params(variables):
    """Parameters as a notebook's cells set them.

    Parameters
    ----------
    variables : dict
        ``globals()`` of the notebook, after the parameters cell and what papermill
        injected. Plain values (numbers, text, lists, None) must be parameters, so that a
        misspelt ``-p`` is refused although papermill itself would only warn.

    Returns
    -------
    Params

    Raises
    ------
    ParameterError
        If a name is no parameter, a value is not allowed, or there is no subject.
    """
    plain: dict[str, Any] = {
        name: value
        for name, value in variables.items()
        if not name.startswith("_")
        and name not in ("In", "Out")
        and isinstance(value, bool | int | float | str | list | tuple | dict | type(None))
    }
    for name in plain:
        if name not in Params.model_fields:
            raise ParameterError(_unknown(name))
    if "subject" not in plain:
        raise ParameterError("subject is missing - pass one, such as -p subject 09")
    return load_params(plain.pop("subject"), plain.pop("dataset", None), **plain)
