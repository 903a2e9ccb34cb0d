"""Every command, link and notebook that the README names is there."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import bold_audio
from bold_audio import inference_sentences, inferred, run
from bold_audio.params import parse_given

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.ru.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for page in PAGES
    for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("command", [c for c in [*COMMANDS, *run.EXAMPLES.values()] if c.startswith("bold-audio ")])
def test_commands_are_understood(command):
    options = run._parser().parse_args(shlex.split(command)[1:])
    assert callable(options.work)
    parse_given(getattr(options, "given", []))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("papermill ")])
def test_papermill_commands_name_files_that_exist(command):
    words = shlex.split(command)
    assert (ROOT / words[1]).is_file()
    if "-f" in words:
        assert (ROOT / words[words.index("-f") + 1]).is_file()


@pytest.mark.parametrize("name", run.EXAMPLES)
def test_every_command_shows_an_example_of_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main([name, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: bold-audio {name}" in shown and "==SUPPRESS==" not in shown


def test_every_option_is_told_in_words():
    commands = run._parser()._subparsers._group_actions[0].choices
    options = {f"{name} {one.dest}": one.help for name, command in commands.items() for one in command._actions}
    assert len(options) > 50 and [name for name, told in options.items() if not told] == []


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"bold-audio {bold_audio.__version__}\n"


def test_every_kind_of_command_was_found():
    assert {c.split()[0] for c in COMMANDS if c} >= {"make", "bold-audio", "papermill"}


@pytest.mark.parametrize(("page", "link"), [(p, one) for p, one in LINKS if "://" not in one])
def test_links_lead_somewhere(page, link):
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    if heading:
        titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_index_lists_every_notebook(page):
    listed = re.findall(r"\(notebooks/(\w+)\.ipynb\)", page.read_text(encoding="utf-8"))
    assert listed == sorted(p.stem for p in ROOT.glob("notebooks/*.ipynb"))


def test_every_pitfall_is_answered_by_a_test_or_a_program_that_exists():
    text = (ROOT / "docs/pitfalls.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 29))
    for number, answers in rows:
        named = re.findall(r"`([^`]+)`", answers)
        assert named, number
        for one in named:
            path, _, test = one.partition("::")
            file = ROOT / path if path.startswith("benchmarks/") else ROOT / "tests" / path
            assert file.is_file(), one
            assert not test or f"def {test}(" in file.read_text(), one


@pytest.mark.parametrize(("n_people", "told"), [(0, "no results"), (3, "results of 3 of the 12 people")])
def test_the_picture_of_alice_is_of_all_people_or_not_drawn(project, monkeypatch, capsys, n_people, told):
    monkeypatch.setenv("BOLD_AUDIO_ROOT", str(project))
    for k in range(n_people):
        table = project / f"outputs/alice/sub-{k}/dt_sweep.tsv"
        table.parent.mkdir(parents=True)
        table.write_text("region\tdelay\tskill\nLPTL\t5\t0.1\n")
    runpy.run_path(str(ROOT / "docs/readme.py"))["alice"]()
    assert capsys.readouterr().out.startswith(f"\n{told} of Alice - run python benchmarks/alice.py")
    assert not (project / "docs").exists()


@pytest.fixture(scope="module")
def rates():
    """docs/rates.py, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield __import__("rates")
    sys.modules.pop("rates")


def test_the_tables_of_rates_are_those_of_the_calibration(rates):
    page = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    assert rates.written(page, inferred.calibration()) == page
    other = inferred.calibration()
    other.loc[other["figure"] == inference_sentences.ANY, "value"] = 1.0
    assert "| 100 | 100; 7 |" in rates.written(page, other) != page


@pytest.mark.parametrize(
    ("pattern", "kind", "figure"),
    [
        (r"nothing planted, (\d+) have any voxel at family-wise p ≤ \.05", "null", inference_sentences.ANY),
        (r"family-wise p ≤ \.05 and (\d+) at q ≤ \.05", "null", "maps with any voxel at q <= .05"),
        (r"REAL one-back scan, (\d+) give any voxel", "oneback", inference_sentences.ANY),
        (r"the first rule finds the share (\.\d+)", "planted", "sensitivity at family-wise p <= .05, r2 >= 0.2"),
        (r"the second (\.\d+)", "planted", "sensitivity, voxels with r2 >= 0.2"),
    ],
)
def test_the_rates_that_the_readme_quotes_are_measured(pattern, kind, figure):
    (row,) = inferred.calibration().query("kind == @kind and figure == @figure").itertuples()
    (told,) = re.findall(pattern, README)
    assert float(told) == pytest.approx(row.value if told.startswith(".") else row.value * row.n, abs=0.005)
