"""The short form of ``python -m bench registry``: races and kills on both kinds of storage."""

import pytest

from bench._registry_strain import RACERS, strain
from registry import Registry

on_both = pytest.mark.parametrize("registry", ["local", "s3"], indirect=True)


@on_both
def test_exactly_one_of_sixteen_racing_processes_wins_each_round(registry: Registry) -> None:
    rounds = 5 if registry.config.path.startswith("s3://") else 20
    assert RACERS == 16
    found = strain("race", registry.config, rounds)
    assert found["failed"] == 0
    assert found["rounds_won"] == {"1": rounds}
    assert (found["lost_rows"], found["gaps"], found["broken_links"]) == (0, False, 0)


@on_both
def test_a_process_killed_at_any_moment_leaves_a_registry_that_opens_and_loads(
    registry: Registry,
) -> None:
    found = strain("kill", registry.config, 9)
    assert (found["unopened"], found["unloaded"], found["rowless_moves"]) == (0, 0, 0)
    assert not found["gaps"]
    assert found["by_work"] == {"publish": 3, "promote": 3, "collect": 3}
