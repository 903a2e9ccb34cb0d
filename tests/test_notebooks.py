"""The notebooks' sources: clean, told in words first, and calling only what the package has."""

import ast
import builtins
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import nbformat
import numpy as np
import papermill
import pytest

from bold_audio import effective, scores
from bold_audio.params import notebook_params
from bold_audio.schema import Params
from bold_audio.steps import STEPS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MOST_CELLS = {"06_inference": 46}  # the whole answer: prediction, inference, controls, studies
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tagged(cells, tag):
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def whole_code(path):
    """All code cells in order, as one syntax tree."""
    return ast.parse("\n".join(cell.source for cell in code_of(path)))


def imported(tree):
    """Name in the notebook → what it is, for every import; aliases such as ``says = sentences`` too."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                name = alias.asname or alias.name.split(".")[0]
                found[name] = sys.modules[alias.name if alias.asname else name]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = importlib.import_module(node.module)
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in found:
            found |= {target.id: found[node.value.id] for target in node.targets}
    return found


def test_there_is_one_notebook_for_each_step_of_the_command_line():
    assert tuple(path.stem for path in PATHS if path.stem[:2] <= "06") == STEPS


# --- clean sources ------------------------------------------------------------------------


@each_notebook
def test_source_is_valid_and_holds_no_results(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code_of(path):
        assert cell.outputs == [] and cell.execution_count is None, cell.source[:60]
        assert set(cell.metadata) <= {"tags"}
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert not set(notebook.metadata) - {"kernelspec", "language_info"}


@each_notebook
def test_kernel_is_the_one_every_machine_has(path):
    assert read(path).metadata.kernelspec.name == "python3"
    assert read(path).metadata.kernelspec.language == "python"


@each_notebook
def test_source_is_short(path):
    cells, lengths = read(path).cells, [len(cell.source.splitlines()) for cell in code_of(path)]
    assert len(cells) <= MOST_CELLS.get(path.stem, 26)
    assert max(lengths) <= 12, code_of(path)[lengths.index(max(lengths))].source
    assert median(lengths) <= 8


@each_notebook
def test_a_cell_of_words_comes_before_each_cell_of_code(path):
    cells = read(path).cells
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.cell_type == "code":
            assert before is not None and before.cell_type == "markdown", cell.source[:60]
            assert before.source.strip()
        assert cell.source.strip(), "an empty cell"


@each_notebook
def test_figures_name_the_sides_of_no_run_whose_header_does_not(path):
    for cell in code_of(path):
        assert not re.search(r"\b(run|measured)\.affine\b", cell.source), "figures take run.shown_affine"


@each_notebook
def test_source_defines_nothing_and_calls_no_shell(path):
    for cell in code_of(path):
        assert not re.search(r"^\s*[!%]|get_ipython|autoreload|os\.system|subprocess", cell.source, re.MULTILINE)
    tree = whole_code(path)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


@each_notebook
def test_opening_says_what_is_read_written_and_how_long_it_takes(path):
    first = read(path).cells[0]
    lines = first.source.splitlines()
    assert first.cell_type == "markdown"
    assert re.match(rf"# {path.stem[:2]} · \S", lines[0])
    header = lines.index("| Reads | Writes | Time |")
    assert lines[header + 1] == "|---|---|---|"
    reads, writes, time = (part.strip() for part in lines[header + 2].strip("|").split("|"))
    assert reads and writes
    assert re.search(r"\d+ (s|min)\b", time)


@each_notebook
def test_last_cell_says_what_is_not_shown(path):
    assert "What this does not show" in read(path).cells[-1].source


# --- parameters ---------------------------------------------------------------------------


@each_notebook
def test_parameters_cell_names_parameters_of_the_schema_and_leaves_them_to_params(path):
    (cell,) = tagged(code_of(path), "parameters")
    assert cell == code_of(path)[0], "papermill injects after it, so nothing may come before"
    given = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert set(given) <= set(Params.model_fields)
    assert list(given)[:2] == ["subject", "dataset"]
    assert given.pop("subject") == "sim"
    assert set(given.values()) == {None}


@each_notebook
def test_papermill_lists_each_parameter_with_its_kind_and_a_word(path):
    found = papermill.inspect_notebook(str(path))
    named = [node.targets[0].id for node in ast.parse(tagged(code_of(path), "parameters")[0].source).body]
    assert list(found) == named
    for one in found.values():
        assert one["inferred_type_name"] in {"str", "int", "float", "bool", "list[float]", "list[int]"} and one["help"]


@each_notebook
def test_first_cells_check_what_was_injected(path):
    parameters, check = code_of(path)[:2]
    namespace = {}
    exec(parameters.source, namespace)
    assert notebook_params(namespace).subject == "sim"
    assert "params = notebook_params(globals())" in check.source.splitlines()
    # A plain value set before the check would be taken for a parameter.
    plain = [n for n in ast.parse(check.source).body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
    assert not plain


# --- what the code calls ------------------------------------------------------------------


@each_notebook
def test_imports_are_there_and_used(path):
    tree = whole_code(path)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(imported(tree)) <= names


def modules_after(code):
    """Packages that a fresh Python has imported after this code."""
    code = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.slow
def test_what_takes_seconds_to_import_is_imported_by_who_needs_it_only():
    nodes = [node for path in PATHS[:4] for cell in code_of(path) for node in ast.parse(cell.source).body]
    lines = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert modules_after("\n".join(lines)).isdisjoint({"torch", "pytorch_lightning"})
    assert modules_after("import bold_audio.__main__").isdisjoint({"torch", "distributed"})


@each_notebook
def test_every_name_is_made_before_it_is_used(path):
    known = set(dir(builtins)) | set(imported(whole_code(path)))
    for cell in code_of(path):
        tree = ast.parse(cell.source)
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        known |= {node.id for node in named if isinstance(node.ctx, ast.Store)}
        known |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert {node.id for node in named} <= known, cell.source


def executed(path, **given):
    """The names that a notebook's code cells leave, run here with these parameters."""
    names = {}
    for k, cell in enumerate(code_of(path)):
        exec(cell.source, names)
        names.update(given if k == 0 else {})
    return names


@pytest.mark.slow
@pytest.mark.parametrize("response", ["hrf", "delay"])
def test_the_sound_is_shown_as_models_get_it(small_params, response):
    params = small_params()
    folders = {name: getattr(params, name) for name in ("data_dir", "outputs_dir")}
    shown = executed(FOLDER / "01_mfcc_exploration.ipynb", subject="sim", response=response, **folders)
    subject, train = shown["subject"], shown["subject"].split.train
    X = subject.scaled("sound", shown["delay"])[0]
    heard = shown["heard"][train][:, None]
    np.testing.assert_allclose(scores.pearson_r(X[train][:, :1], heard), 1)
    rho = effective.autocorrelation(X[train], train)
    names = subject.sound.names[:4]
    drawn = np.column_stack([shown["series"][name] for name in names])
    np.testing.assert_array_equal(drawn, rho[:60, :4])
    B = subject.scaled("blocks", shown["delay"])[0][train]
    np.testing.assert_array_equal(shown["r"], scores.pearson_r(X[train], np.repeat(B, X.shape[1], axis=1)))


@each_notebook
def test_what_a_volume_hears_is_never_shown_by_the_window_of_linear_alone(path):
    assert not re.search("[\"']zero[\"']", "".join(cell.source for cell in code_of(path)))


@each_notebook
def test_every_call_into_the_package_fits_its_signature(path):
    tree = whole_code(path)
    ours = {
        name: what for name, what in imported(tree).items() if getattr(what, "__name__", "").startswith("bold_audio")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            assert hasattr(ours[node.value.id], node.attr), ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module = ours.get(getattr(node.func.value, "id", None))
            if module is not None and not any(isinstance(a, ast.Starred) for a in node.args):
                named = {k.arg: None for k in node.keywords if k.arg}
                signature = inspect.signature(getattr(module, node.func.attr))
                bind = signature.bind_partial if any(k.arg is None for k in node.keywords) else signature.bind
                try:
                    bind(*node.args, **named)
                except TypeError as error:
                    pytest.fail(f"{ast.unparse(node)}: {error}")
