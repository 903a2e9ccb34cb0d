"""What doctests find, and how the tests are shared out between processes."""

from pathlib import Path

import numpy as np
import pytest

LONGEST_FIRST = (
    "test_run",
    "test_acceptance",
    "test_stages",
    "test_serving",
    "test_faults_runs",
    "test_warm",
    "test_crash",
    "test_bids",
)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["np"] = np
    with np.printoptions(precision=8, threshold=1000, edgeitems=3, linewidth=75, suppress=False, legacy=False):
        yield


def pytest_collection_modifyitems(items):
    """Processes take whole files (``--dist loadfile``), so that each fixture is made once: the longest first."""
    order = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(order)))
