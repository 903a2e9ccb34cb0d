"""What a subject's exported models are, from what a run left: bundles, scores beside what they must beat, limits."""

import pandas as pd

from bold_audio import bundle, prepare
from bold_audio.files import ModelError, read_json
from bold_audio.templates import plain

KINDS = {
    "mlp": "a small network from the sound to the voxels",
    "history_sound": "ridge from each voxel's own past and the sound to the voxel",
}
TARGETS = {
    "whitened": "the sound's part of the volume, of which own history makes a volume (docs/serving.md)",
    "difference": "the change since the previous volume",
    "volume": "the volume",
}
RIVALS = ("constant", "copy_previous", "history", "history_blocks", "linear_delay", "history_sound")
SHOWN = ("model", "mse", "r_median", "r2", "skill", "reference")
EXPORTED = ("model_name", "model_version", "bundle_hash")
WORDS = {"one_step": "one-step (previous volumes measured)", "open_loop": "open-loop (nothing measured afterwards)"}
CLEANING = ("realign", "detrend", "smoothing_fwhm", "downsample", "confounds", "mask")
MADE_BY = ("hidden_dims", "dropout", "lr", "weight_decay", "batch_size", "max_epochs", "n_components", "seed")


def card_facts(params):
    """Everything that a subject's model card says.

    Parameters
    ----------
    params : Params

    Returns
    -------
    dict or None
        ``models`` (list of dict: name, version, sentence, sections, tables), ``limits``, ``note``, ``alarms`` and
        ``provenance``; None where no model was exported.
    """
    folder = params.subject_path
    done, summary = (read_json(folder / f"{name}.json", default={}) for name in ("provenance", "summary"))
    entries = {kind: done[f"export_{kind}"] for kind in KINDS if f"export_{kind}" in done}
    if not entries:
        return None
    path = folder / "scores.tsv"
    scores = pd.read_csv(path, sep="\t") if path.is_file() else None
    kept = {
        kind: scores if _were_of(entry, done.get("inference", {}), kind) else None for kind, entry in entries.items()
    }
    models = [_model(params, kind, entry, kept[kind], summary) for kind, entry in entries.items()]
    return {
        "note": summary.get("about", params.data_note or ""),
        "alarms": summary.get("alarms", []),
        "models": models,
        "limits": _limits(params, entries, summary, kept, n_runs=max(model["n_runs"] for model in models)),
        "provenance": _made_by(entries),
    }


def _model(params, kind, entry, scores, summary):
    name, version = entry["model_name"], entry["model_version"]
    made = {"name": name, "version": version, "sections": [], "tables": [], "n_runs": 1}
    try:
        opened = bundle.open_bundle(params.resolve(params.models_dir), name, version)
    except ModelError as error:
        return made | {"sentence": f"This version cannot be opened: {error}."}
    facts = opened.facts
    made["n_runs"] = facts.get("n_runs", 1)
    made["sections"] = [
        ("What it is", _identity(opened)),
        ("Data", _data(facts, entry["parameters"])),
        ("Features", _features(facts)),
        ("Training", _training(kind, facts.get("training", {}), entry["parameters"])),
    ]
    made["tables"] = _tables(scores, kind, summary.get("region"))
    return made | {"sentence": about_scores(scores, kind, summary.get("region"))}


def _were_of(entry, scored, kind):
    """Whether the scores of the test part are of this export: of its version, or at least of what it was made from."""
    if scored.get("kind") == kind:
        return [scored.get(name) for name in EXPORTED] == [entry.get(name) for name in EXPORTED]
    without = () if kind == "mlp" else prepare.MLP_ONLY
    alike = [
        (prepare.result_parameters(one.get("parameters", {}), without=without), one.get("input_md5"))
        for one in (entry, scored)
    ]
    return alike[0] == alike[1]


def _identity(opened):
    facts = opened.facts
    widths = bundle.input_widths(facts, facts["n_voxels"])
    size = (opened.folder / "model.onnx").stat().st_size / 1e6
    return [
        ("Model", KINDS.get(facts["kind"], facts["kind"])),
        ("Predicts", f"{TARGETS.get(facts['target'], facts['target'])}, in {facts['n_voxels']} voxels"),
        ("Inputs", "; ".join(f"{name} (batch, {width})" for name, width in widths.items())),
        ("Outputs", f"voxels (batch, {facts['n_voxels']}); coordinates (batch, {opened.n_coordinates})"),
        ("Delay", f"Δt = {facts['delay']:g} s, response {facts['response']}"),
        ("File", f"model.onnx, opset {facts['opset']}, {size:.2f} MB, MD5 {facts['onnx_md5']}"),
        ("Bundle", f"hash {facts['bundle_hash']}; mask {facts['mask_hash']} on the grid {_times(facts['mask_shape'])}"),
    ]


def _data(facts, parameters):
    parts, t_r = facts.get("train_stretches", [facts["train_volumes"]]), facts["t_r"]
    volumes = ", ".join(f"{first} to {last}" for first, last in parts)
    times = ", ".join(f"{first * t_r:.1f} to {(last + 1) * t_r:.1f} s" for first, last in parts)
    n_runs = facts.get("n_runs", 1)
    where = "the run" if n_runs == 1 else f"{n_runs} runs, counted one after the other"
    cleaned = "; ".join(f"{name} {parameters[name]}" for name in CLEANING if name in parameters)
    inputs = [(f"MD5 of {name}", md5) for name, md5 in facts["input_md5"].items()]
    return [
        ("Subject", f"sub-{facts['subject']} of {facts['dataset']}"),
        ("Train part", f"volumes {volumes} ({times} of {where}), TR {t_r:g} s"),
        ("Cleaning", cleaned),
        *inputs,
    ]


def _features(facts):
    heard = facts["feature_source"] == "audio"
    made = f"{facts['n_inputs']} inputs per volume from {facts['sound']}"
    settings = f"{facts['n_mfcc']} MFCCs, {facts['sample_rate']} Hz, window {facts['n_fft']}, hop {facts['hop_length']}"
    return [
        ("Source", made if heard else f"{made}; ANNOTATIONS, no sound was heard"),
        *([("MFCCs", settings)] if heard else []),
        ("Windows", f"{1 + facts['sound_lags']} per volume, each one TR earlier"),
        ("Previous volumes", facts["n_previous"] or "none among the inputs"),
        ("Scaling", "mean and scale of the train part, in bundle.json"),
    ]


def _training(kind, made, parameters):
    if kind != "mlp":
        return [
            ("Delay", f"{made.get('delay', 'n/a')} s, by {made.get('why', 'n/a')} in {made.get('region', 'n/a')}"),
            (
                "Strengths",
                f"chosen by {parameters['n_folds']} blocked folds with gaps of {parameters['gap']:g} s in train",
            ),
            ("Past", f"at most {parameters['history_order']} previous volumes"),
        ]
    tried = ", ".join(f"{delay:g}" for delay in made.get("candidates", []))
    looks = [(name, made.get(f"best_{name}")) for name in ("val_MSE", "val_Pearson", "val_evidence")]
    return [
        ("Settings", "; ".join(f"{name} {parameters[name]}" for name in MADE_BY if name in parameters)),
        ("Delay", f"{made.get('delay', 'n/a')} s of {tried or 'n/a'} s: {made.get('why', 'n/a')}"),
        ("Epoch", made.get("best_epoch", "n/a")),
        ("Validation", "; ".join(f"{name} {value:.4g}" for name, value in looks if value is not None) or "n/a"),
    ]


def _rows(scores, kind, prediction, region):
    """The model's row and those it must beat; an empty table where it was not scored."""
    if scores is None:
        return pd.DataFrame(columns=["model"])
    here = scores[(scores["prediction"] == prediction) & (scores["region"] == region)]
    if not (here["model"] == kind).any():
        return here.iloc[:0]
    return here[here["model"].isin({kind, *RIVALS})]


def _tables(scores, kind, region):
    made = []
    for prediction, words in WORDS.items():
        rows = _rows(scores, kind, prediction, region)
        if len(rows):
            size = f"{rows['n_volumes'].iloc[0]} test volumes, {rows['n_voxels'].iloc[0]} voxels"
            made.append((f"{words}, {region}, {size}", rows[[c for c in SHOWN if c in rows]]))
    return made


def about_scores(scores, kind, region):
    """Which models that must be beaten a model beats on the test part, one sentence for each kind of prediction.

    Parameters
    ----------
    scores : DataFrame or None
        ``scores.tsv``.
    kind : str
        The model's row.
    region : str

    Returns
    -------
    str
    """
    said = []
    for prediction, words in WORDS.items():
        rows = _rows(scores, kind, prediction, region).set_index("model")
        if not len(rows):
            continue
        own = rows.loc[kind, "mse"]
        others = rows["mse"].drop(kind)
        compared = {
            "smaller than that of": [name for name, mse in others.items() if own < mse],
            "not smaller than that of": [f"{name} ({mse:.4g})" for name, mse in others.items() if own >= mse],
            "not compared with": [f"{name} (no MSE)" for name, mse in others.items() if pd.isna(mse)],
        }
        told = ", ".join(f"{how} {', '.join(names)}" for how, names in compared.items() if names)
        said.append(f"{words.capitalize()}, in {region}: MSE {own:.4g}{'; ' if told else ''}{told}.")
    return " ".join(said) or "It was not scored on the test part: run notebook 06."


def _limits(params, entries, summary, kept, *, n_runs):
    """Sentences; ``entries`` and ``kept`` hold, by kind of model, its export as recorded and the scores that are its.

    Of parameters those of the exports count: whoever writes the card may give others.
    """
    region, made_with = summary.get("region"), {one["model_name"]: one["parameters"] for one in entries.values()}
    sizes = [
        table.loc[(table["region"] == region) & (table["model"] == kind), "n_volumes"]
        for kind, table in kept.items()
        if table is not None
    ]
    n = next((rows.iloc[0] for rows in sizes if len(rows)), None)
    limits = [
        f"{'One run' if n_runs == 1 else f'{n_runs} runs'} of one person (sub-{params.subject}): nothing is known of "
        "other people, and the voxels are those of this scan's grid and mask.",
        "One delay for all voxels, although regions need not share one.",
    ]
    if n is not None:
        what = f"one test part of {n} volumes that follow one another" if n_runs == 1 else f"{n} test volumes"
        limits.append(f"Scored once, on {what}; a smaller error there is not yet a significant one.")
    if "SIMULATED" in summary.get("about", params.data_note or ""):
        limits.insert(0, "The scan is SIMULATED: its scores say how the method works, nothing about a brain.")
    if any(one.get("feature_source", "audio") != "audio" for one in made_with.values()):
        limits.append("Trained on ANNOTATIONS: it cannot be given a sound file.")
    if still := [name for name, one in made_with.items() if not one.get("realign")]:
        of = "" if len(still) == len(made_with) else f" for {', '.join(still)}"
        limits.append(f"Head motion was not corrected{of} (realign false).")
    limits += [plain(sentence) for sentence in summary.get("sentences", [])[1:2]]
    return [*limits, "For research: no decision about a person may rest on it."]


def _made_by(entries):
    last = max(entries.values(), key=lambda entry: entry["finished"])
    packages = ", ".join(f"{name} {version}" for name, version in last["packages"].items())
    return [
        ("Exported", last["finished"]),
        ("Commit", last.get("git_commit") or "unknown"),
        ("Python", last["python"]),
        ("Packages", packages),
    ]


def _times(shape):
    return " × ".join(map(str, shape))
