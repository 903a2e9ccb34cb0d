"""Every parameter, typed and checked: common < dataset file < subject file < what the caller passes."""

import difflib
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bold_audio.files import ParameterError, project_root, without_credentials
from bold_audio.plain_yaml import read_yaml
from bold_audio.region_specs import check_regions

SIMULATED = "sim"
DEFAULT_DATASET = "ds003688"
MODEL_KINDS = ("mlp", "history_sound")
LONGEST = 2000  # characters of a text
LABEL = re.compile(r"[A-Za-z0-9]+")
RESERVED = r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?![^.])"  # no names of files on Windows, whatever follows a dot
NAME = re.compile(rf"(?!{RESERVED})[A-Za-z0-9][A-Za-z0-9_.-]{{0,99}}")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of characters, which nobody can write


def _no_bool(value):
    # Without this, "true" in a file would quietly become 1.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _seconds(value):
    if not 0 <= value <= 120:
        raise ValueError("must be from 0 to 120 s")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Seconds = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_seconds)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, lt=1)]


def _as_label(value):
    # YAML and papermill turn run-1 and 9 into integers.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[str, BeforeValidator(_as_label), Field(pattern=r"^[A-Za-z0-9]+$", max_length=50)]


def _texts(value):
    """Every text in plain values."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _home(path):
    """A path whose ``~`` is the home of who runs this, of a length that disks take."""
    written = [os.fsencode(part) for part in Path(path).parts]
    if len(os.fsencode(path)) > 4000 or max(map(len, written), default=0) > 255:
        raise ParameterError(f"the path {str(path)[:60]} … is longer than a disk takes - choose a shorter one")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ParameterError(f"there is no home folder for {path} - write the whole path") from None


class Params(BaseModel):
    """All parameters of one run; the names and their defaults stand in ``params/common.yaml``.

    Frozen, and unknown names are refused. Times are seconds; paths are relative to the
    project folder unless said otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, str_max_length=LONGEST)

    subject: str
    # data
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=50)]
    data_dir: str
    session: Label | None = None
    task: Label
    run: Label | Annotated[list[Label], Field(min_length=1, max_length=99)] | None = None
    space: Label | None = None
    bids_entities: dict[Label, Label]
    derivatives: str | None
    desc: Label
    t_r_source: Literal["sidecar", "header"] | None = None
    audio_path: str | list[str] | None = None
    audio_onset: Number | None = None
    allow_short: bool
    feature_source: Literal["audio", "annotations"]
    annotation_tables: Annotated[list[str] | list[list[str]], Field(max_length=100)]
    data_note: str | None = None
    sound_note: str | None = None
    # sound features
    sample_rate: Count
    n_mfcc: Annotated[Count, Field(le=128)]
    n_fft: Annotated[Count, Field(ge=32)]
    hop_length: Count
    # scan
    mask: str
    downsample: Annotated[Count, Field(le=16)]
    smoothing_fwhm: Annotated[Number, Field(ge=0, le=50)]
    detrend: bool
    realign: bool
    confounds: Annotated[list[str], Field(max_length=200)]
    skip_initial: Seconds
    regions: Annotated[dict[str, dict[str, Any]], BeforeValidator(check_regions)]
    # pairing
    delays: Annotated[list[Seconds], Field(min_length=1, max_length=2000)]
    delay_region: str
    delay_by: Literal["evidence", "skill"]
    response: Literal["delay", "fir", "hrf"]
    sound_lags: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=60)]
    history_order: Annotated[Count, Field(le=20)]
    history_components: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=100)]
    target: Literal["whitened", "difference", "volume"]
    sweep_target: Literal["whitened", "difference", "volume"]
    sweep_fwhm: Annotated[Number, Field(ge=0, le=50)]
    # split
    split_by: Literal["time", "run"]
    train_fraction: Share
    gap: Seconds
    n_folds: Annotated[Count, Field(ge=2, le=20)]
    # linear models
    alphas: Annotated[
        list[Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]], Field(min_length=1, max_length=200)
    ]
    # MLP
    mlp_delays: Annotated[list[Seconds], Field(max_length=200)]
    mlp_history: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=10)]
    mlp_history_components: Annotated[Count, Field(le=1000)]
    hidden_dims: Annotated[list[Count], Field(min_length=1, max_length=20)]
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    max_epochs: Count
    batch_size: Count
    n_components: Count | None
    lr: Positive
    weight_decay: Annotated[Number, Field(ge=0)]
    checkpoint_dir: str | None
    # DVC
    dvc_remote: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=50)]
    dvc_url: str
    dvc_jobs: Annotated[Count, Field(le=64)]
    dvc_timeout: Annotated[Count, Field(le=3600)]
    # MLflow
    mlflow_uri: str | None
    mlflow_experiment: str | None
    mlflow_required: bool
    # export and inference
    model_name: str | None
    model_version: Count | None
    overwrite_model: bool
    served_model: Literal[MODEL_KINDS]
    runtime: Literal["onnxruntime", "torch", "triton"]
    returns: Literal["voxels", "coordinates"] | None
    allow_other_subject: bool
    triton_url: str | None
    triton_protocol: Literal["grpc", "http"]
    triton_timeout: Positive
    prediction: Literal["one_step", "open_loop"]
    # where things go, and the machine
    outputs_dir: str
    models_dir: str
    chunk_voxels: Annotated[Count, Field(ge=16)]
    seed: Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]

    @field_validator("*")
    @classmethod
    def _plain_text(cls, value):
        if any(CONTROL.search(text) for text in _texts(value)):
            raise ValueError("must not hold control characters")
        return value

    @field_validator("delays", "mlp_delays")
    @classmethod
    def _increasing(cls, value):
        if any(b <= a for a, b in pairwise(value)):
            raise ValueError("must be in increasing order, each delay once")
        return value

    @field_validator("alphas")
    @classmethod
    def _sorted(cls, value):
        return sorted(set(value))

    @field_validator("confounds")
    @classmethod
    def _each_once(cls, value):
        if len(set(value)) < len(value):
            raise ValueError("must name each group or column once")
        return value

    @field_validator("model_name", "mlflow_experiment")
    @classmethod
    def _plain_name(cls, value):
        if value is not None and not NAME.fullmatch(value):
            raise ValueError("must be letters, digits, '_', '-' or '.', beginning with a letter or digit")
        return value

    @field_validator("dvc_url")
    @classmethod
    def _safe_for_a_token(cls, value):
        parts = urlsplit(value)
        if "@" in parts.netloc:
            # Said without the value: it holds a password.
            raise ValueError("must not hold a user or password: the token comes from the environment")
        here = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if parts.scheme != "https" and not (parts.scheme == "http" and here):
            raise ValueError("must begin with https:// (http:// only on this machine), or the token could be read")
        if not parts.hostname or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", value):
            raise ValueError("must be the address of a folder, such as https://webdav.yandex.ru/data")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _fit_together(self):
        if self.response == "fir" and self.sound_lags == 0:
            raise ValueError("response fir needs sound_lags of at least 1")
        if self.mlp_history and self.target == "whitened":
            raise ValueError("mlp_history needs target difference or volume: whitened has taken the past off already")
        if self.hop_length > self.n_fft:
            raise ValueError(f"hop_length {self.hop_length} must not exceed n_fft {self.n_fft}, or sound is skipped")
        return self

    def resolve(self, path):
        """Path of ``path`` seen from the project folder."""
        return (project_root() / _home(path)).resolve()

    @property
    def data_path(self):
        """Root of the BIDS tree."""
        return self.resolve(self.data_dir)

    @property
    def derivatives_path(self):
        """Root of the preprocessed runs: below ``data_dir``, else below the project folder."""
        below = (self.data_path / _home(self.derivatives)).resolve()
        return below if below.exists() else self.resolve(self.derivatives)

    @property
    def label(self):
        """Name of the dataset in outputs; feature sources never share a folder."""
        return self.dataset if self.feature_source == "audio" else f"{self.dataset}-{self.feature_source}"

    @property
    def subject_path(self):
        """Folder of this subject's outputs."""
        return self.resolve(self.outputs_dir) / self.label / f"sub-{self.subject}"

    @property
    def cache_path(self):
        """Folder of what can be made again."""
        return self.resolve(self.outputs_dir) / "cache"

    @property
    def mlflow_path(self):
        """Folder of MLflow's local store."""
        return self.resolve(self.outputs_dir) / "mlflow"

    @property
    def checkpoint_path(self):
        """Folder of checkpoints: the subject's outputs, or its own folder below ``checkpoint_dir``."""
        if self.checkpoint_dir is None:
            return self.subject_path
        return self.resolve(self.checkpoint_dir) / self.label / f"sub-{self.subject}"

    @property
    def exported_name(self):
        """Name of the MLP in ``models_dir``."""
        return self.model_name or f"{self.label}_sub-{self.subject}"

    def exported_as(self, kind):
        """Name in ``models_dir`` of one of `MODEL_KINDS`; that of a linear one ends with its kind."""
        return self.exported_name if kind == "mlp" else f"{self.exported_name}_{kind}"

    @property
    def audio_files(self):
        """Sound files: below ``data_dir``, or below the project folder where they are there alone."""
        paths = [self.audio_path] if isinstance(self.audio_path, str) else self.audio_path or []
        both = [((self.data_path / _home(path)).resolve(), self.resolve(path)) for path in paths]
        return [there if there.exists() and not below.exists() else below for below, there in both]


def normalise_subject(subject):
    """Return the BIDS label meant by any usual spelling of a subject.

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
    """Read one YAML file of parameters as a dictionary; an empty file is an empty dictionary."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = read_yaml(text) or {}
    except FileNotFoundError:
        raise ParameterError(f"parameter file not found: {path} - check its name") from None
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


def _one_line(error):
    """Say the first thing pydantic found in one line."""
    first = error.errors()[0]
    # Of the kinds that a value may have, pydantic names each; the reader wants the parameter.
    name = ".".join(str(part) for k, part in enumerate(first["loc"]) if k == 0 or isinstance(part, int)) or "parameters"
    if first["type"] == "extra_forbidden":
        return f"unknown parameter {' '.join(name.split())[:80]}{nearest(name)}"
    if first["type"] == "missing":
        return f"parameter {name} is missing - set it in params/"
    what = first["msg"].removeprefix("Value error, ")
    got = without_credentials(str(first["input"]))[:80]
    whole = first["type"] == "value_error" and (not first["loc"] or " - " in what)  # it says what to do itself
    value = "" if whole else f", got {got!r}"
    mend = "" if " - " in what else f" - see {name.split('.')[0]} in params/common.yaml"
    return f"{name}: {what[0].lower() + what[1:]}{value}{mend}"


def nearest(name):
    """The parameter that ``name`` probably means, as an ending for a message."""
    close = difflib.get_close_matches(str(name), Params.model_fields, n=1, cutoff=0.5)
    return f" - did you mean {close[0]}?" if close else " - see params/common.yaml for the names"


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
            raise ParameterError(f"unknown parameter {name}{nearest(name)}")
    if "subject" not in plain:
        raise ParameterError("subject is missing - pass one, such as -p subject 09")
    return load_params(plain.pop("subject"), plain.pop("dataset", None), **plain)
