"""One small simulated BIDS tree for all tests, and the shared folder of real data where it is."""

import os
from pathlib import Path

import pytest

from bold_audio.params import load_params
from bold_audio.simulate import simulate_subject

SMALL = (18, 22, 22)  # voxels: a small head in the same 641 volumes of the full-size run


@pytest.fixture(scope="session")
def sim_dir(tmp_path_factory):
    """Root of a small SIMULATED dataset, 641 volumes, response hrf, delays 5.0 and 6.5 s."""
    root = tmp_path_factory.mktemp("data") / "sim"
    simulate_subject(root, subject="sim", shape=SMALL)
    return root


@pytest.fixture
def small_params(sim_dir, tmp_path):
    """Function: parameters of the small simulated subject, outputs in a folder of the test's own."""

    def make(**given):
        folders = {
            "data_dir": str(sim_dir),
            "outputs_dir": str(tmp_path / "outputs"),
            "models_dir": str(tmp_path / "models"),
        }
        return load_params("sim", **(folders | given))

    return make


@pytest.fixture(scope="session")
def shared():
    """Folder of real data; tests that need it are skipped, visibly, where it is absent."""
    folder = Path(os.environ.get("BOLD_AUDIO_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "realdata").is_dir():
        pytest.skip(f"no real data at {folder} - set BOLD_AUDIO_SHARED")
    return folder
