"""Text from strangers: parameters, tables, sidecars, names of files and of models, HTML; see ``strangers.py``."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from strangers import (
    EVENTS,
    ITS_WORD,
    N_VOLUMES,
    PLAIN,
    SIDECAR,
    Kind,
    chosen,
    parameters,
    plain_run,
    read_scan,
    write_scan,
)

CODE = "x = 1; __import__('os').system('touch canary')#"
MARKUP = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "</title><b>", "&lt;b&gt;",
    "javascript:alert(1)", "{{ 7 * 7 }}", "{% raw %}", "</script><script>", "' onmouseover='alert(1)",
)  # fmt: skip
NAMES = (
    "../../etc", "a/b", "..", ".", "", " ", "-rf", "--help", "CON", "nul", "NUL.txt", "a\0b", "x" * 300, "é", "Ω" * 90,
    "a b", "a\nb", "a\x1b[31mb", "~root", "$HOME", "`id`", "*", "\\\\host\\x", "C:\\x", "\udcff", "\u202e", *MARKUP,
)  # fmt: skip
LAUGHS = "\n".join(
    ["a0: &a0 [ha, ha]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)), "task: *a11"]
)
YAMLS = (
    LAUGHS, LAUGHS.replace("task:", "hidden_dims:"), LAUGHS.replace("task:", "regions:"), LAUGHS.replace("task:", "x:"),
    "task: &a [*a]", "bids_entities: &a {x: *a}", "regions: &a {x: *a}", "[" * 5000, "a: {" * 3000, "- " * 4000,
    "task: !!python/object/apply:os.system ['touch canary']", "task: !!python/name:os.system", "task: !unknown x",
    "!!binary x", "task: !!binary aGFsbG8=", "data_dir: !!binary AAAA", "task: !!set {a, b}", "? [a, b]\n: c",
    "? {a: 1}\n: 2",
    f"n_mfcc: {'9' * 5000}", f"sample_rate: {'9' * 400}", "seed: 0x" + "f" * 400, "lr: 1e999", "lr: .nan", "gap: -.inf",
    "task: 2001-99-99", "task: 2001-01-01", "task: 12:30:45", "subject: 011", "1: 2", "null: 3", "true: no", "~: ~",
    ".nan: 1", "gap: !!int ''", "gap: !!bool maybe", "gap: !!timestamp x", "gap: !!float x", f"gap: 1{':01' * 400}.5",
    "task: \0", "task: a\x07", "\ufeffgap: 16", "task: \ud800", "<<: {task: x}", "<<: [1, 2]",
    "task: *nothing", "%YAML 9.9\n---\n",
    "---\na: 1\n---\nb: 2", "task: |\n  x\n  y", "gap: '16'", "gap: yes", "gap: 16\ngap: 17", "data_dir: 'a\\0b'",
    'data_dir: "a\\0b"', 'outputs_dir: "' + "x" * 5000 + '"', 'outputs_dir: "~nobody_at_all/x"',
    'audio_path: "\\uD800"',
    'mask: "a\\0"', 'derivatives: "a\\0"', f'outputs_dir: "{"d/" * 3000}"', 'models_dir: ""', 'data_dir: "\\x1b[31m"',
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 16, 2.5, 1e-3, 1e308, -1e308, float("inf"), float("nan"), 10**30, 10**400, "", "x",
    "1e-3",
    "a\0b", "x" * 5000, [], [1], [[1]], {}, {"a": 1}, {"a": {"sphere": [[10**400, 0, 0]], "radius": 5}}, "<b>", "../..",
)  # fmt: skip


def yaml_text():
    """YAML that hypothesis makes: names of parameters with any plain value, or text of any kind."""
    import yaml
    from hypothesis import strategies as st

    from bold_audio.params import Params

    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(VALUES)
    value = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
    name = st.sampled_from(sorted(Params.model_fields)) | st.text(max_size=10)
    written = st.dictionaries(name, value, min_size=1, max_size=3).map(lambda d: yaml.safe_dump(d, allow_unicode=True))
    return written | st.text(max_size=60) | st.sampled_from(YAMLS)


def known_yaml():
    """The texts that have broken readers of YAML elsewhere."""
    from hypothesis import strategies as st

    return st.sampled_from(YAMLS)


def json_text():
    """JSON of any kind, or nearly."""
    from hypothesis import strategies as st

    keys = ("RepetitionTime", "StartTime", "SliceTimingCorrected", "ROINames", "TaskName", "Description")
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(VALUES)
    value = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
    written = st.dictionaries(st.sampled_from(keys), value, max_size=3).map(
        lambda d: json.dumps({"RepetitionTime": 2.0} | d)
    )
    odd = st.sampled_from(
        ("[" * 100_000, '{"a":' * 50_000, "9" * 5000, "[]", '"x"', "", "NaN", '{"RepetitionTime": 2}x', "\ufeff{}")
    )
    return written | odd | st.text(max_size=30)


def table_text(columns):
    """Function that gives the strategy of tables with these columns, some of them missing, doubled or odd."""

    def strategy():
        from hypothesis import strategies as st

        odd = (
            "n/a",
            "",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "9" * 400,
            "0x10",
            "1,5",
            '"',
            '"a',
            "true",
            "\0",
            "é",
            "<b>",
            "=1+1",
            "1e15",
            "-1e15",
        )
        cell = (
            st.sampled_from(odd) | st.floats().map(repr) | st.integers().map(str) | st.text(max_size=6) | st.just("7.5")
        )
        kinds = st.sampled_from(("music", "speech", "story", "n/a", "7", "<script>", "sub-01", "01", "1"))
        row = st.lists(cell | kinds, min_size=1, max_size=len(columns) + 1).map("\t".join)
        heads = st.just(list(columns)) | st.lists(st.sampled_from([*columns, "", "x", "<b>"]), min_size=1, max_size=6)
        ends = st.sampled_from(("\n", "\r\n", "\r", "\n\n"))
        made = st.tuples(heads.map("\t".join), st.lists(row, max_size=6), ends)
        return made.map(lambda parts: parts[2].join([parts[0], *parts[1]]) + parts[2]) | st.text(max_size=40)

    return strategy


ENCODINGS = ("utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252")


def as_text(name):
    """Harm: hypothesis' text is what the file says, in some encoding."""

    def harm(rng, folder, text):
        coding = "utf-8" if rng.random() < 0.7 else chosen(rng, ENCODINGS)
        (folder / name).write_bytes(text.encode(coding, errors="replace"))

    return harm


def cells_changed(name):
    """Harm: some cells of a whole table hold other values, or a column, its name or a row goes."""

    def harm(rng, folder, _):
        rows = [line.split("\t") for line in (folder / name).read_text().splitlines()]
        for _ in range(int(rng.integers(1, 4))):
            row = rows[int(rng.integers(len(rows)))]
            odd = (
                "n/a",
                "nan",
                "inf",
                "9" * 400,
                "1e308",
                "-1e300",
                "1e15",
                "-5",
                '"',
                "é",
                "text",
                "",
                "\0",
                "1;2",
                "0b1",
            )
            row[int(rng.integers(len(row)))] = chosen(rng, odd)
        if rng.random() < 0.2:
            k = int(rng.integers(len(rows[0])))
            rows = [[cell for j, cell in enumerate(row) if j != k] for row in rows]
        text = "\n".join("\t".join(row) for row in rows) + "\n"
        (folder / name).write_bytes(text.encode(chosen(rng, ENCODINGS) if rng.random() < 0.2 else "utf-8"))

    return harm


def cells_added(name):
    """Harm: every row has one cell more than there are names."""

    def harm(rng, folder, _):
        head, *rows = (folder / name).read_text().splitlines()
        more = chosen(rng, ["", "more", "7"])
        rows = [chosen(rng, [f"{row}\t{more}", f"{more}\t{row}"]) for row in rows]
        (folder / name).write_text("\n".join([head, *rows]) + "\n")

    return harm


# --- parameters ---------------------------------------------------------------------------


def make_project(folder):
    """A project folder with a dataset's file of parameters."""
    from strangers import ROOT

    shutil.copytree(ROOT / "params", folder / "params")
    (folder / "notebooks").mkdir()
    (folder / "data").mkdir()
    (folder / "params" / "strange.yaml").write_text("data_dir: data\n")


def places(params):
    """Every place that parameters lead to, and what is written of them."""
    from bold_audio.files import fingerprint

    found = {name: str(getattr(params, name)) for name in ("data_path", "subject_path", "cache_path", "exported_name")}
    found |= {"sounds": [str(path) for path in params.audio_files], "hash": fingerprint(params.model_dump())}
    return found | {"derivatives": params.derivatives and str(params.derivatives_path)}


def in_project(read):
    """The reader, with the case's folder as project."""

    def read_there(folder, given):
        before = os.environ["BOLD_AUDIO_ROOT"]
        os.environ["BOLD_AUDIO_ROOT"] = str(folder)
        try:
            return read(folder, given)
        finally:
            os.environ["BOLD_AUDIO_ROOT"] = before

    return read_there


@in_project
def read_parameters(folder, given):
    from bold_audio.params import load_params

    return places(load_params("01", "strange"))


@in_project
def read_given(folder, given):
    """``-p`` as the command line reads it."""
    from bold_audio.params import load_params, parse_given

    return places(load_params("01", "strange", **parse_given(given or [])))


def values_given(rng, folder, text):
    from bold_audio.params import Params

    return [[chosen(rng, sorted(set(Params.model_fields) - {"subject", "dataset"})), text]]


def odd_names_given(rng, folder, text):
    codes = (
        CODE,
        "self",
        "cls",
        "__class__",
        "model_config",
        "given",
        "",
        " ",
        "\0",
        "gap ",
        "n_mfc",
        "x" * 5000,
        *MARKUP,
    )
    return [[chosen(rng, codes) if rng.random() < 0.7 else text, chosen(rng, ["1", "x", "[]", CODE])]]


def paths_given(rng, folder, text):
    names = (
        "data_dir",
        "outputs_dir",
        "models_dir",
        "mask",
        "audio_path",
        "derivatives",
        "checkpoint_dir",
        "mlflow_uri",
    )
    return [[chosen(rng, names), json.dumps(chosen(rng, NAMES), ensure_ascii=bool(rng.random() < 0.9))]]


def parameter_line(rng, folder, text):
    (folder / "params" / "strange.yaml").write_bytes(f"data_dir: data\n{text}".encode(errors="replace"))


def any_text():
    from hypothesis import strategies as st

    return st.text(min_size=1, max_size=40)


PARAMETERS = {
    "parameter file": Kind(
        make_project,
        read_parameters,
        {"text": as_text("params/strange.yaml"), "known": parameter_line, "lines": parameter_line},
        dict.fromkeys(("text", "known", "lines"), ITS_WORD),
        {"text": yaml_text, "known": known_yaml, "lines": yaml_text},
    ),
    "-p": Kind(
        make_project,
        read_given,
        {"values": values_given, "known": values_given, "names": odd_names_given, "paths": paths_given},
        dict.fromkeys(("values", "known", "names", "paths"), ITS_WORD),
        {"values": yaml_text, "known": known_yaml, "names": any_text},
    ),
}


# --- tables and sidecars ------------------------------------------------------------------

PEOPLE, WORDS = "data/participants.tsv", "data/stimuli/words.tsv"
CONFOUNDS = "data/derivatives/sub-01/func/sub-01_task-film_desc-confounds_timeseries.tsv"
PREPROCESSED = "data/derivatives/sub-01/func/sub-01_task-film_desc-preproc_bold"


def read_people(folder, given):
    from bold_audio.hemispheres import read_dominance

    return read_dominance(parameters(folder))


def make_people(folder):
    (folder / "data").mkdir()
    lines = ("participant_id\tage\tlanguage_dominance", "sub-01\t30\tL", "sub-02\t41\tR", "sub-03\tn/a\tn/a")
    (folder / PEOPLE).write_text("\n".join(lines) + "\n")


def make_words(folder):
    write_scan(folder)
    (folder / WORDS).parent.mkdir()
    rows = [f"{k * 1.5}\t{k * 1.5 + 0.5}\tword" for k in range(40)]
    (folder / WORDS).write_text("\n".join(["onset\toffset\titem", *rows]) + "\n")


def read_sounds(folder, given):
    """Features of annotation tables beside those of the events, as notebooks read them."""
    from bold_audio import hearing, runs

    params = parameters(folder, feature_source="annotations", annotation_tables=["stimuli/words.tsv"])
    files = runs.locate_runs(params)
    made = hearing.read_features(params, files)
    design = hearing.design_of(made, files).at(4.0)
    return {"frames": made[0].frames, "names": made[0].names, "source": made[0].source, "X": design}


def plain_features(found):
    return "" if np.isfinite(found["frames"]).all() else "frames"


def make_confounds(folder):
    from bold_audio.motion import NAMES as MOTION

    path = write_scan(folder, f"{PREPROCESSED}.nii")
    for ending in ("events.tsv", "bold.json"):
        (folder / "data" / "sub-01" / "func").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(
            path.parent / f"sub-01_task-film_desc-preproc_{ending}",
            folder / f"data/sub-01/func/sub-01_task-film_{ending}",
        )
    rng = np.random.default_rng(2)
    lines = [
        "\t".join((*MOTION, "csf")),
        *("\t".join(f"{v:.5f}" for v in row) for row in rng.normal(size=(N_VOLUMES, 7))),
    ]
    (folder / CONFOUNDS).write_text("\n".join(lines) + "\n")


def read_cleaned(folder, given):
    return read_scan(folder, {"derivatives": "derivatives", "confounds": ["motion", "csf"]})


def table_kind(make, read, name, columns, plain=None):
    return Kind(
        make,
        read,
        {"text": as_text(name), "cells": cells_changed(name), "more cells than names": cells_added(name)},
        dict.fromkeys(("text", "cells"), ITS_WORD),
        {"text": table_text(columns)},
        plain=plain,
    )


TABLES = {
    "sidecar": Kind(
        write_scan, read_scan, {"text": as_text(SIDECAR)}, {"text": ITS_WORD}, {"text": json_text}, plain=plain_run
    ),
    "events.tsv": table_kind(write_scan, read_scan, EVENTS, ("onset", "duration", "trial_type"), plain_run),
    "events.tsv as a sound": table_kind(
        make_words, read_sounds, EVENTS, ("onset", "duration", "trial_type"), plain_features
    ),
    "annotations": table_kind(make_words, read_sounds, WORDS, ("onset", "offset", "item"), plain_features),
    "participants.tsv": table_kind(make_people, read_people, PEOPLE, ("participant_id", "language_dominance")),
    "confounds": table_kind(make_confounds, read_cleaned, CONFOUNDS, ("trans_x", "trans_y", "csf"), plain_run),
}


# --- trees and names ----------------------------------------------------------------------


def make_tree(folder):
    write_scan(folder)
    make_people_beside(folder)


def make_people_beside(folder):
    (folder / PEOPLE).write_text("participant_id\nsub-01\n")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "secret.txt").write_text("of somebody else")


def odd_tree(rng, folder, _):
    """Odd things beside the run, or in its place."""
    func = folder / "data" / "sub-01" / "func"
    name = chosen(rng, [n for n in NAMES if n not in ("", ".", "..") and "/" not in n and "\0" not in n])
    name = name.encode(errors="surrogateescape").decode(errors="surrogateescape")[:80]
    plain = folder / PLAIN
    changes = [
        lambda: shutil.copyfile(plain, func / f"sub-01_task-film_acq-{name}_bold.nii"),
        lambda: plain.rename(func / f"sub-01_task-film_acq-{name}_bold.nii"),
        lambda: plain.rename(func / f"sub-01_task-film_{name}_bold.nii"),
        lambda: (plain.unlink(), plain.mkdir()),
        lambda: (plain.unlink(), plain.symlink_to(folder / "elsewhere" / "secret.txt")),
        lambda: (plain.unlink(), plain.symlink_to(chosen(rng, ["nowhere", plain.name, "/dev/zero", "/etc"]))),
        lambda: (plain.unlink(), os.mkfifo(plain)),
        lambda: (func / f"{name}_events.tsv").write_text("onset\n"),
        lambda: (func / f"sub-01_task-film_{name}_events.tsv").mkdir(),
        lambda: ((folder / EVENTS).unlink(), (folder / EVENTS).mkdir()),
        lambda: ((folder / SIDECAR).unlink(), (folder / SIDECAR).mkdir()),
        lambda: ((folder / SIDECAR).unlink(), os.mkfifo(folder / SIDECAR)),
        lambda: (folder / "data" / f"sub-{name}").mkdir(),
        lambda: (folder / "data" / "sub-01" / f"ses-{name}" / "func").mkdir(parents=True),
        lambda: (folder / "data" / "sub-01" / "ses-x").symlink_to(folder / "data"),
        lambda: (shutil.rmtree(func), func.write_text("not a folder")),
        lambda: (shutil.rmtree(folder / "data" / "sub-01"), (folder / "data" / "sub-01").symlink_to("sub-01")),
        lambda: (shutil.rmtree(folder / "data"), (folder / "data").write_text("not a folder")),
        lambda: shutil.copyfile(plain, func / f"sub-01_task-film_run-{chosen(rng, ['01', '٣', '9' * 150])}_bold.nii"),
        lambda: (func / "sub-01_task-film_run-1_bold.nii").write_bytes(b""),
    ]  # fmt: skip
    chosen(rng, changes)()
    return chosen(rng, [None, None, {"run": "all"}, {"session": "x"}, {"task": "film", "bids_entities": {"acq": "a"}}])


def odd_label(rng, folder, _):
    return chosen(rng, NAMES)


def read_labels(folder, given):
    """A name given as subject, dataset, entity, model, version and output; what each says of it."""
    from bold_audio import bundle, runs, steps
    from bold_audio.files import BoldAudioError
    from bold_audio.params import load_params, normalise_subject

    name, said = "01" if given is None else given, {}
    uses = {
        "subject": lambda: normalise_subject(name),
        "dataset": lambda: load_params("01", name, data_dir=str(folder / "data")).label,
        "task": lambda: runs.locate_runs(parameters(folder, task=name)).entities,
        "session": lambda: runs.locate_runs(parameters(folder, session=name)).entities,
        "model": lambda: str(bundle.version_folder(folder / "outputs", name, 1)),
        "version": lambda: str(bundle.version_folder(folder / "outputs", "model", name)),
        "opened": lambda: bundle.open_bundle(folder / "outputs", name),
        "parameter": lambda: parameters(folder, model_name=name).exported_name,
        "experiment": lambda: parameters(folder, mlflow_experiment=name).mlflow_experiment,
        "steps": lambda: steps.chosen_steps(name),
        "outputs": lambda: str(parameters(folder, outputs_dir=str(folder / "outputs" / name)).subject_path),
    }
    for use, ask in uses.items():
        try:
            said[use] = {"is": ask()}
        except BoldAudioError as error:
            said[use] = {"refused": str(error)}
    return said


def plain_labels(found):
    """Folders named by a stranger lie where they should, refusals are one plain line."""
    inside = {"model": 1, "version": 1}  # folders that a name may add above the last
    wrong = [
        use
        for use, depth in inside.items()
        if "is" in found[use] and ".." in Path(found[use]["is"]).parts[-depth - 1 :]
    ]
    told = [use for use, said in found.items() if "refused" in said and not said["refused"].isprintable()]
    return ", ".join(wrong + told)


# --- pages --------------------------------------------------------------------------------


def make_nothing(folder):
    (folder / "data").mkdir()


def markup(rng, folder, text):
    return chosen(rng, MARKUP) if text is None else f"a{text}b"


def read_page(folder, given):
    """Pages that name things; what they are made of, and whether the name is among their words."""
    import nbformat
    import pandas as pd
    from bs4 import BeautifulSoup

    from bold_audio import report
    from bold_audio.files import write_json

    name, out = "x" if given is None else given, folder / "outputs"
    table = pd.DataFrame({"model": [name, "y"], "mse": [1.0, 2.0]})
    failure = {"step": name, "what": name, "fix": name, "name": name, "cell": 1}
    report.write_index(
        out / "sub-01" / "report", title=name, note=name, sentences=[name], tables=[(name, table)], alarms=[name],
        pages=[("00.html", name, name)], provenance=[(f"MD5 of {name}", name)], failure=failure,
        maps=[dict.fromkeys(("alt", "caption", "model", "stat"), name) | {"src": "data:image/png;,", "page": None}],
    )  # fmt: skip
    write_json(out / "sub-01" / "status.json", {"state": "failed", "step": name, "error": f"{name} - {name}"})
    write_json(out / "sub-01" / "summary.json", {"about": f"a; {name}", "region": name, "sentences": [name]})
    report.write_dataset_index(out, title=name, note=name)
    cells = [
        nbformat.v4.new_markdown_cell("# A page"),
        nbformat.v4.new_code_cell(
            "pass",
            outputs=[
                nbformat.v4.new_output("stream", name="stdout", text=f"{name}\n"),
                nbformat.v4.new_output("execute_result", data={"text/plain": f"'{name}'"}),
                nbformat.v4.new_output("execute_result", data={"text/html": table.to_html()}),
                nbformat.v4.new_output("error", ename="DataError", evalue=f"{name} - {name}", traceback=[name]),
            ],
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["papermill"] = {"parameters": {"subject": name, name: name}}
    nbformat.write(notebook, out / "00.ipynb")
    report.write_page(out / "00.ipynb", out / "page.html", who=name)
    made = {}
    for path in (out / "sub-01" / "report" / "index.html", out / "index.html", out / "page.html"):
        html = path.read_text(encoding="utf-8")
        soup = BeautifulSoup(html, "html.parser")
        # Names that cannot be printed may be shown in another way; none may become a tag or an attribute.
        told = name in soup.get_text() or not name.isprintable()
        made[str(path.relative_to(out))] = [told, [[tag.name, sorted(tag.attrs)] for tag in soup.find_all(True)]]
    return made


NAMED = {
    "tree": Kind(make_tree, read_scan, {"odd": odd_tree}, {"odd": ITS_WORD}, plain=plain_run),
    "labels": Kind(make_tree, read_labels, {"odd": odd_label}, {"odd": ITS_WORD}, plain=plain_labels),
    "pages": Kind(make_nothing, read_page, {"markup": markup, "text": markup}, {}, {"text": any_text}),
}
TEXTS = PARAMETERS | TABLES | NAMED
