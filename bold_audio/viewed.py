"""What models predict of a subject's test part, kept on disk for viewers; and the same for a sound that was shifted."""

import numpy as np

from bold_audio import models, prepare, timecourse
from bold_audio.files import DataError, fingerprint, read_json, write_json, write_whole
from bold_audio.models import predict_row
from bold_audio.params import load_params

SHOWN = ("copy_previous", "blocks", "sound", "history", "history_sound", "history_blocks_sound", "mlp")
SHIFTED = ("blocks", "sound", "history_sound")
ABOUT = "about.json"


def kept_folder(params):
    """Where a subject's predictions for viewers lie."""
    return params.cache_path / "viewer" / f"{params.label}-sub-{params.subject}"


def keep_predictions(subject, rows, *, shifted=None, names=SHOWN):
    """Predict the test part by several rows, and keep it on disk in place of what was kept before.

    Parameters
    ----------
    subject : prepare.Subject
    rows : dict of str to models.Row
        Fitted on train.
    shifted : dict of str to models.Row, optional
        The same models fitted to a shifted sound, such as `shifted_rows`.
    names : sequence of str
        Which rows; those that are not there are left out.

    Returns
    -------
    dict
        ``predictions``, ``null`` and ``volumes``, as `slice_viewer.SliceViewer` takes them; memory-mapped.
    """
    folder, kept, split = kept_folder(subject.params), {"predictions": [], "null": []}, subject.split
    for group, given in (("predictions", rows), ("null", shifted or {})):
        for name in names:
            for kind in timecourse.KINDS if name in given else ():
                made = predict_row(subject, given[name], split.test, kind, fitted_on=split.train)
                with write_whole(folder / f"{group}-{name}-{kind}.npy") as part:
                    np.save(part, np.asarray(made, np.float32))
                kept[group].append([name, kind])
    params, where = subject.params, {"data_dir": subject.params.data_dir}  # a dataset without a file needs it
    usual = load_params(params.subject, params.dataset, **where).model_dump()
    given = where | {name: value for name, value in params.model_dump().items() if value != usual[name]}
    about = {"subject": params.subject, "dataset": params.dataset, "given": given, "made_of": _made_of(subject)}
    write_json(folder / ABOUT, {**about, **kept, "volumes": split.test.tolist()})
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
    groups = {
        group: {tuple(key): np.load(folder / f"{group}-{key[0]}-{key[1]}.npy", mmap_mode="r") for key in about[group]}
        for group in ("predictions", "null")
    }
    return groups | {"volumes": np.array(about["volumes"], int)}


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
    return {"predictions": {name: made}, "null": {}, "volumes": test}


def _stale(subject, why):
    raise DataError(f"sub-{subject.params.subject}: {why} - run notebook 06")


def _made_of(subject):
    """Names the scan and the sound as they were read, every parameter of a result, and the volumes predicted."""
    return fingerprint(subject.run.files.entities, subject.result_key(), subject.split.test.tolist())


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


def shifted_rows(subject, delay, *, names=SHIFTED):
    """Fit linear rows to the film moved in a circle by about half of the run, so that nothing can have followed it.

    Blocks move with the sound. Every voxel may follow, since no voxel was chosen for this sound.

    Returns
    -------
    dict of str to models.Row
    float
        By how much the film was moved, s.

    Raises
    ------
    DataError
        If the run is too short for an admissible shift.
    """
    used, params, t_r = subject.whole_run, subject.params, subject.run.files.t_r
    shift = timecourse.null_shift(len(used), t_r, block_length=subject.block_length)
    if shift is None:
        raise DataError(f"sub-{params.subject}: the run is too short to shift its sound")

    def moved(kind, at):
        X = np.array(subject.scaled(kind, at, subject.split.train)[0])
        X[used] = np.roll(X[used], shift, axis=0)
        return X

    fitted = models.fit_rows(
        subject.Y,
        rows=subject.split.train,
        folds=subject.folds,
        sound=moved("sound", delay),
        sound_at_zero=moved("zero", 0.0),
        blocks=moved("blocks", delay) if subject.blocks is not None else None,
        alphas=params.alphas,
        max_order=params.history_order,
        n_components=params.history_components,
        names=names,
    )
    return models.linear_rows(fitted), shift * t_r
