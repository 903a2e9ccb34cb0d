"""What models predict of a subject's test part, kept on disk for viewers."""

import sys

import numpy as np

from bold_audio import prepare, serving, timecourse
from bold_audio.files import DataError, fingerprint, read_json, write_json, write_whole
from bold_audio.models import predict_row
from bold_audio.params import load_params

SHOWN = ("copy_previous", "blocks", "sound", "history", "history_sound", "history_blocks_sound", "mlp")
ABOUT = "about.json"


def kept_folder(params):
    """Where a subject's predictions for viewers lie."""
    return params.cache_path / "viewer" / f"{params.label}-sub-{params.subject}"


def keep_predictions(subject, rows, *, names=SHOWN):
    """Predict the test part by several rows, and keep it on disk in place of what was kept before.

    Parameters
    ----------
    subject : prepare.Subject
    rows : dict of str to models.Row
        Fitted on train.
    names : sequence of str
        Which rows; those that are not there are left out.

    Returns
    -------
    dict
        ``predictions`` and ``volumes``, as `slice_viewer.SliceViewer` takes them; memory-mapped.
    """
    folder, kept, split = kept_folder(subject.params), [], subject.split
    for name in (name for name in names if name in rows):
        for kind in timecourse.KINDS:
            made = predict_row(subject, rows[name], split.test, kind, fitted_on=split.train)
            with write_whole(folder / f"{name}-{kind}.npy") as part:
                np.save(part, np.asarray(made, np.float32))
            kept.append([name, kind])
    params, where = subject.params, {"data_dir": subject.params.data_dir}  # a dataset without a file needs it
    usual = load_params(params.subject, params.dataset, **where).model_dump()
    given = where | {name: value for name, value in params.model_dump().items() if value != usual[name]}
    about = {"subject": params.subject, "dataset": params.dataset, "given": given, "made_of": _made_of(subject)}
    write_json(folder / ABOUT, {**about, "predictions": kept, "volumes": split.test.tolist()})
    return kept_predictions(subject)


def kept_predictions(subject):
    """What `keep_predictions` kept, as it returned it; else the one prediction that notebook 06 always writes.

    Raises
    ------
    DataError
        If nothing was kept, or for another scan, another sound or other parameters, or by other code.
    """
    folder = kept_folder(subject.params)
    about = read_json(folder / ABOUT)
    if about is None:
        return _written(subject)
    if about["made_of"] != _made_of(subject):
        _stale(subject, "the predictions kept are of another scan or parameters, or another version made them")
    made = {(name, kind): np.load(folder / f"{name}-{kind}.npy", mmap_mode="r") for name, kind in about["predictions"]}
    return {"predictions": made, "volumes": np.array(about["volumes"], int)}


def _written(subject):
    """The predictions of notebook 06's own file."""
    path, done = subject.path("y_test_pred.npy"), read_json(subject.path("provenance.json"), default={})
    if not path.is_file() or "inference" not in done:
        _stale(subject, "no predictions are kept")
    made, test, known = np.load(path, mmap_mode="r"), subject.split.test, done["inference"]
    now = fingerprint(prepare.result_parameters(subject.params.model_dump()), subject.input_md5)
    then = fingerprint(prepare.result_parameters(known["parameters"]), known.get("input_md5"))
    if then != now or made.shape != (len(test), subject.run.n_voxels):
        _stale(subject, "y_test_pred.npy is of another scan or parameters")
    name = (known["kind"], known["prediction"])
    return {"predictions": {name: made}, "volumes": test}


def _stale(subject, why):
    raise DataError(f"sub-{subject.params.subject}: {why} - run notebook 06")


def _made_of(subject):
    """Names the scan and the sound as they were read, parameters and code of every model, and the volumes predicted."""
    key = subject.result_key(sys.modules[__name__], serving)
    return fingerprint(subject.run.files.entities, key, subject.split.test.tolist())


def kept_subjects(params):
    """Subjects that have predictions: list of dict with ``subject``, ``dataset`` and the parameters ``given``."""
    found = {}
    for path in sorted(params.resolve(params.outputs_dir).glob("*/sub-*/y_test_pred.npy")):
        given = read_json(path.with_name("provenance.json"), default={}).get("inference", {}).get("parameters")
        if given is not None:
            subject, dataset = given.pop("subject"), given.pop("dataset")
            found[path.parent.parent.name, subject] = {"subject": subject, "dataset": dataset, "given": given}
    for path in sorted((params.cache_path / "viewer").glob(f"*/{ABOUT}")):
        about = read_json(path)
        label, subject = path.parent.name.rsplit("-sub-", 1)
        found[label, subject] = {name: about[name] for name in ("subject", "dataset", "given")}
    return list(found.values())
