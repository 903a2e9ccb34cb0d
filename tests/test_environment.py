"""The four lists of packages agree, nothing committed belongs to one machine, and imports go one way."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from bold_audio import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
LOCKED = [package for package in LOCK["package"] if package["name"] != PROJECT["name"]]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
CONSTRAINTS = [Requirement(line) for line in LINES if line and not line.startswith("#")]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["dev"]]
LISTED = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]
MACHINE = re.compile(r"file:/{2}|(?<![\w.~)}-])/(?:opt|work|home|root|Users)/")


def applying():
    """Return {name: version} of the constraints that hold for the running Python."""
    here = [c for c in CONSTRAINTS if c.marker is None or c.marker.evaluate()]
    pins = {canonicalize_name(c.name): str(c.specifier).removeprefix("==") for c in here}
    assert len(pins) == len(here), "two constraints on one package hold at once"
    return pins


def test_the_citation_names_this_version_and_papers_that_can_be_found():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["version"], cited["license"]) == (__version__, PROJECT["license"])
    assert all(one["title"] and one["authors"] and one["doi"].startswith("10.") for one in cited["references"])


@pytest.mark.slow
def test_every_package_that_is_imported_is_declared():
    """Also those that others of the list bring along today."""
    imported = set()
    for path in (ROOT / "bold_audio").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    of = packages_distributions()
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    undeclared = {
        name
        for name in imported - {*sys.stdlib_module_names, "bold_audio"}
        if not declared & {canonicalize_name(one) for one in of.get(name, [])}
    }
    assert undeclared <= {"google"}  # protobuf's, which tritonclient[grpc] makes its messages of


def test_lock_is_made_from_this_pyproject():
    (ours,) = (package for package in LOCK["package"] if package["name"] == PROJECT["name"])
    wanted = {(canonicalize_name(r.name), str(r.specifier), frozenset(r.extras)) for r in LISTED}
    locked = {
        (r["name"], str(SpecifierSet(r.get("specifier", ""))), frozenset(r.get("extras", ())))
        for r in ours["metadata"]["requires-dist"]
    }
    assert locked == wanted, "pyproject.toml changed: make lock"
    assert LOCK["requires-python"] == PROJECT["requires-python"]


@pytest.mark.parametrize("requirement", LISTED, ids=lambda r: r.name)
def test_direct_dependency_is_locked_within_its_specifier(requirement):
    versions = [p["version"] for p in LOCKED if p["name"] == canonicalize_name(requirement.name)]
    assert versions
    assert all(v in requirement.specifier for v in versions)


def test_constraints_equal_lock():
    assert {(canonicalize_name(c.name), str(c.specifier)) for c in CONSTRAINTS} == {
        (p["name"], f"=={p['version']}") for p in LOCKED
    }, "make lock"


def test_environment_yml_uses_the_same_lists():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (p["pip"] for p in packages if isinstance(p, dict))
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    (python,) = (p.removeprefix("python=") for p in packages if str(p).startswith("python="))
    assert python in SpecifierSet(PROJECT["requires-python"])
    conda = {re.split("[=<>]", p)[0] for p in packages if isinstance(p, str)}
    assert not conda & {p["name"] for p in LOCKED}, "a package of the lock must not come from conda as well"


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_installed_version_is_the_locked_one(requirement):
    # A local suffix such as +cpu names a build of the same version.
    assert Version(version(requirement.name)).public == applying()[canonicalize_name(requirement.name)]


def test_lightning_is_locked_under_one_name_only():
    names = {p["name"] for p in LOCKED}
    assert "pytorch-lightning" in names
    assert "lightning" not in names


def test_lock_names_public_sources_only():
    assert {p["source"].get("registry") for p in LOCKED} == {"https://pypi.org/simple"}
    files = [f["url"] for p in LOCKED for f in [*p.get("wheels", ()), *filter(None, [p.get("sdist")])]]
    assert {url.split("/")[2] for url in files} == {"files.pythonhosted.org"}


def test_no_file_names_a_path_of_one_machine():
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # not text; deleted but not committed
            continue
        found += [f"{name}: {line.strip()[:100]}" for line in text.splitlines() if MACHINE.search(line)]
    assert not found


def test_imports_go_one_way():
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 kept" in done.stdout


def test_each_module_stands_under_one_topic():
    written = runpy.run_path(str(ROOT / "docs/modules.py"))
    said = written["first_lines"]()
    assert len(said) > 100 and not written["misplaced"](said)
    assert (ROOT / "docs/modules.md").read_text(encoding="utf-8") == written["page"](said), "run python docs/modules.py"


def test_licences_of_the_constraints_are_listed_and_fit_mit():
    """Whatever Python the list was written on: where packages differ by Python, it names one of the versions."""
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)[1:]
    listed = {(canonicalize_name(name), version.partition("+")[0]) for name, version, *_ in rows}
    assert len(listed) == len(rows) > 250
    pinned = {(canonicalize_name(c.name), str(c.specifier).removeprefix("==")) for c in CONSTRAINTS}
    assert listed <= pinned, "run python docs/licences.py"
    assert {canonicalize_name(one.name) for one in DIRECT} <= {name for name, _ in listed}, (
        "run python docs/licences.py"
    )
    asking = {name for name, _, _, kind in rows if kind == "copyleft"}
    assert asking <= {"asyncssh", "grandalf", "pygit2", "soxr"}, (
        "a licence that needs a second look, see CONTRIBUTING.md"
    )


def test_make_app_says_only_this_machine():
    said = subprocess.run(["make", "-n", "app"], cwd=ROOT, capture_output=True, text=True).stdout
    assert 'JUPYTER_PATH="' in said and 'notebooks/app" .venv/bin/voila notebooks/app/viewer.ipynb' in said
    assert "--template=bold_audio" in said and "--Voila.ip=127.0.0.1 --Voila.auto_token=True" in said
    notebook = json.loads((ROOT / "notebooks/app/viewer.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])


def test_ci_does_not_pass_over_programs_that_are_missing(tmp_path):
    """Without ffmpeg, and without apt to bring it, tests would be skipped and CI would be green."""
    for name in ("bash", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = {"CI": "true", "PATH": str(tmp_path)}
    said = subprocess.run(["bash", ROOT / ".ci/run"], env=environment, capture_output=True, text=True)
    assert said.returncode == 1 and said.stdout == ""
    assert said.stderr.endswith("Error: ffmpeg is missing and could not be installed; tests would be skipped.\n")
