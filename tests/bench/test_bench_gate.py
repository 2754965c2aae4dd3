"""The simulated models of `bench gate` are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from bench.gate import ACCURACY, Pair, _fixed_size, _judge
from daemon.policy_config import GateConfig


@pytest.mark.parametrize("gain", [2.0, 0.0, -2.0])
def test_the_pair_has_its_gain_and_differs_as_often_as_it_says(gain: float) -> None:
    ours, theirs = Pair(gain, 0.1).outcomes(np.random.default_rng(0), 400_000)
    assert theirs.mean() == pytest.approx(ACCURACY, abs=0.003)
    assert 100 * (ours.mean() - theirs.mean()) == pytest.approx(gain, abs=0.2)
    assert (ours != theirs).mean() == pytest.approx(0.1, abs=0.003)


def test_the_fixed_test_has_the_power_it_is_planned_for() -> None:
    """McNemar's test on so many events finds so many of the gains."""
    random, pair = np.random.default_rng(1), Pair(2.0, 0.1)
    events = round(_fixed_size(pair, 0.8))
    found = 0
    for _ in range(2000):
        ours, theirs = pair.outcomes(random, events)
        won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        found += (won - lost) / np.sqrt(won + lost) > 1.645
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def test_a_large_gain_is_promoted_and_a_large_loss_rejected() -> None:
    random = np.random.default_rng(2)
    assert _judge(Pair(10.0, 0.12), GateConfig(), random)[0] == "promote"
    assert _judge(Pair(-10.0, 0.12), GateConfig(), random)[0] == "reject"
