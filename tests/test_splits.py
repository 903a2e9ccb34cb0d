"""Train, gap and test are cut by time, and folds keep their gaps."""

import numpy as np
import pytest

from bold_audio import splits
from bold_audio.files import ParameterError

T_R, N_VOLUMES = 0.608, 641


def test_split_is_by_time_and_has_a_gap():
    usable = np.arange(N_VOLUMES) >= 30
    split = splits.split_volumes(N_VOLUMES, T_R, skip_initial=10, train_fraction=0.7, gap=16, usable=usable)
    assert split.train[0] == 30 and split.train[-1] == int(0.7 * N_VOLUMES) - 1
    assert (split.test[0] - split.train[-1] - 1) * T_R >= 16
    for part in (split.train, split.gap, split.test):
        assert np.all(np.diff(part) == 1)


@pytest.mark.parametrize("n_volumes", [90, 170, 180, 330, 641])
def test_train_is_not_a_volume_short_by_rounding(n_volumes):
    """.7 · 90 is 62.999… in floating point."""
    split = splits.split_volumes(n_volumes, 2.0, skip_initial=0, train_fraction=0.7, gap=16)
    assert split.train[-1] + 1 == n_volumes * 7 // 10


@pytest.mark.parametrize("bad", [{"gap": 300}, {"train_fraction": 0.01}, {"skip_initial": 380}])
def test_split_that_cannot_be(bad):
    settings = {"skip_initial": 10, "train_fraction": 0.7, "gap": 16} | bad
    with pytest.raises(ParameterError, match="at least 8"):
        splits.split_volumes(N_VOLUMES, T_R, **settings)


def test_split_refuses_a_hole():
    usable = np.ones(N_VOLUMES, bool)
    usable[300] = False
    with pytest.raises(ParameterError, match="contiguous"):
        splits.split_volumes(N_VOLUMES, T_R, skip_initial=10, train_fraction=0.7, gap=16, usable=usable)


def test_folds_have_gaps_on_both_sides_and_hold_every_volume_once():
    rows = np.arange(20, 448)
    folds = splits.blocked_folds(rows, n_folds=5, gap_volumes=27)
    np.testing.assert_array_equal(np.concatenate([held for _, held in folds]), rows)
    for fit, held in folds:
        assert np.min(np.abs(fit[:, None] - held[None])) == 28


def test_folds_that_cannot_be():
    with pytest.raises(ParameterError, match="left to fit on"):
        splits.blocked_folds(np.arange(40), n_folds=2, gap_volumes=20)
