"""Every row of FAULTS.md has a test, or a reason why none can show it."""

import importlib
from pathlib import Path

from faults import CANNOT_APPLY, N_ROWS, ROWS


def test_every_row_has_a_test_or_a_reason():
    for path in Path(__file__).parent.glob("test_faults_*.py"):
        importlib.import_module(path.stem)
    tested = {row.split("-")[0] for row in ROWS}
    wanted = {f"{letter}{number:02}" for letter, n in N_ROWS.items() for number in range(1, n + 1)}
    assert len(wanted) == 93
    assert len(set(ROWS)) == len(ROWS), "each case stands in one place"
    assert tested | CANNOT_APPLY.keys() == wanted
    assert not tested & CANNOT_APPLY.keys()
    assert all(reason.strip() for reason in CANNOT_APPLY.values())
