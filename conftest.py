"""What doctests find, and how the tests are shared out between processes."""

from pathlib import Path

import numpy as np
import pytest

SHARED_BY_MANY = "finished"  # one whole run of all notebooks, which some tests of a file look at, and the others do not
LONGEST_FIRST = (
    "test_run",
    "test_acceptance",
    "test_stages",
    "test_serving",
    "test_faults_runs",
    "test_crash",
    "test_bids",
)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    doctest_namespace["np"] = np
    with np.printoptions(precision=8, threshold=1000, edgeitems=3, linewidth=75, suppress=False, legacy=False):
        yield


def pytest_collection_modifyitems(config, items):
    """Processes take whole files, so that each fixture is made once; the longest first, so that none waits at the end.

    A file with a fixture as costly as all the rest of it is two: the tests that share the fixture, and the others.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    shared = {item.path for item in items if SHARED_BY_MANY in getattr(item, "fixturenames", ())}
    for item in items:
        file = Path(item.path).stem
        alone = item.path in shared and SHARED_BY_MANY not in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group(f"{file}, others" if alone else file))
    order = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(order)))
