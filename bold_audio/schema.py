"""Every parameter: its name, its kind, what it may be, and the paths that follow from it."""

import os
import re
from itertools import pairwise
from math import isinf
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from bold_audio.files import ParameterError, project_root
from bold_audio.region_specs import check_regions

SIMULATED = "sim"
DEFAULT_DATASET = "ds003688"
MODEL_KINDS = ("mlp", "history_sound")
LONGEST = 2000  # characters of a text
PASSWORDS = {  # addresses that hold none, and what to do
    "mlflow_uri": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment",
    "triton_url": "give host:port of a server that asks for none",
}
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


def meaning_of(label):
    """A label without the zeros that a number may begin with: run-1 and run-01 are one run.

    Examples
    --------
    >>> meaning_of("01"), meaning_of("0"), meaning_of("01b")
    ('1', '0', '01b')
    """
    return str(int(label)) if label.isdecimal() else label


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

    @field_validator("run")
    @classmethod
    def _each_run_once(cls, value):
        # Named twice, a run would be train and test part at once where the last run is the test part.
        if isinstance(value, list) and len(set(map(meaning_of, value))) < len(value):
            raise ValueError("must name each run once (1 and 01 are the same run)")
        return value

    @field_validator("alphas")
    @classmethod
    def _sorted(cls, value):
        if all(map(isinf, value)):
            raise ValueError("must hold a finite strength: .inf alone leaves nothing to fit")
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

    @field_validator(*PASSWORDS)
    @classmethod
    def _without_password(cls, value, info):
        # Parameters are kept with every result. Said without the value: it holds a password.
        if value is not None and "@" in value:
            raise ValueError(f"must not hold a user or password - {PASSWORDS[info.field_name]}")
        return value

    @field_validator("mlflow_uri")
    @classmethod
    def _server(cls, value):
        # A database of one's own would be written by many at once without the care that the local file gets.
        if value is not None and not re.fullmatch(r"https?://[^\s/].*", value):
            raise ValueError("must be the address of a server, such as http://127.0.0.1:8080, or null for a local file")
        return value

    @field_validator("dvc_url")
    @classmethod
    def _safe_for_a_token(cls, value):
        parts = urlsplit(value)
        if "@" in parts.netloc:
            # Said without the value: it holds a password.
            raise ValueError("must not hold a user or password - set YANDEX_WEBDAV_TOKEN in the environment")
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
        if self.response != "fir" and self.sound_lags:
            raise ValueError(
                f"sound_lags does nothing with response {self.response} - set it to 0, or take response fir"
            )
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
