"""Every row of docs/faults.md has a test."""

import importlib
import re
from pathlib import Path

from faults import N_ROWS, ROWS


def test_every_row_has_a_test():
    for path in Path(__file__).parent.glob("test_faults_*.py"):
        importlib.import_module(path.stem)
    tested = {row.split("-")[0] for row in ROWS}
    wanted = {f"{letter}{number:02}" for letter, n in N_ROWS.items() for number in range(1, n + 1)}
    assert len(wanted) == 93
    assert len(set(ROWS)) == len(ROWS), "each case stands in one place"
    assert tested == wanted


def test_every_row_is_told_to_people():
    """The first cells of the tables name all rows, each once."""
    text = (Path(__file__).parents[1] / "docs/faults.md").read_text(encoding="utf-8")
    first = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    told = [row for cell in first for row in re.findall(r"\b[A-Z][0-9]{2}\b", cell)]
    assert sorted(told) == sorted(f"{letter}{k:02}" for letter, n in N_ROWS.items() for k in range(1, n + 1))
