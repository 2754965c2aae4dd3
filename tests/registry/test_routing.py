"""Which traffic a challenger sees: one routing at a time, and for one champion only."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry import Conflict, Corrupt, Counts, Invalid, PinnedError, Registry, Routing, Traffic

Publish = Callable[..., str]
WHO = {"actor": "test", "reason": "because"}


@pytest.fixture
def two(registry: Registry, publish: Publish) -> Registry:
    """A champion, v0001, and a challenger, v0002."""
    publish()
    publish()
    registry.promote("v0001", **WHO)
    return registry


def test_without_an_order_no_challenger_sees_traffic(two: Registry) -> None:
    assert two.routing() == Routing()
    assert two.routing().mode == "off"


def test_a_routing_holds_until_the_champion_moves(two: Registry) -> None:
    before = two.routing_stamp()
    made = two.route("v0002", mode="canary", share=5, slow_seconds=0.1, **WHO)
    assert two.routing_stamp() != before
    assert two.routing() == made
    assert (made.mode, made.share, made.slow_seconds) == ("canary", 5, 0.1)
    (row,) = two.journal.rows(kinds=("route",))
    assert (row.fields["challenger"], row.fields["share"]) == ("v0002", 5)
    two.promote("v0002", **WHO)
    assert two.routing().mode == "off"
    two.rollback(**WHO)
    assert two.routing() == made  # the same champion again: it was never taken back
    two.route(None, mode="off", **WHO)
    assert two.routing().mode == "off"


def test_only_one_of_many_who_expect_the_same_wins(two: Registry) -> None:
    before = two.routing()

    def contend(share: int) -> bool:
        try:
            two.route("v0002", mode="canary", share=share, expect=before, **WHO)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(contend, range(1, 17)))
    assert won.count(True) == 1
    assert two.routing().share == 1 + won.index(True)
    assert len(list(two.journal.rows(kinds=("route",)))) == 1


@pytest.mark.parametrize(
    ("challenger", "mode", "share"),
    [
        ("v0002", "canary", 0),
        ("v0002", "canary", 101),
        ("v0002", "shadow", 5),
        ("v0002", "off", 0),
        (None, "canary", 5),
        ("v0002", "half", 5),
    ],
)
def test_what_is_no_routing_is_refused(
    two: Registry, challenger: str, mode: str, share: float
) -> None:
    with pytest.raises(Invalid):
        two.route(challenger, mode=mode, share=share, **WHO)  # type: ignore[arg-type]
    assert two.routing() == Routing()


def test_the_champion_is_no_challenger_and_a_pin_allows_no_canary(two: Registry) -> None:
    with pytest.raises(Conflict):
        two.route("v0001", mode="shadow", **WHO)
    two.pin(**WHO)
    with pytest.raises(PinnedError):
        two.route("v0002", mode="canary", share=5, **WHO)
    assert two.route("v0002", mode="shadow", **WHO).mode == "shadow"


def test_traffic_is_the_sum_of_the_reports_for_this_routing(two: Registry) -> None:
    first = two.route("v0002", mode="canary", share=5, **WHO)
    two.report("server-a", Traffic(first.generation, Counts(10, 1, 2), Counts(100, 3, 4)))
    two.report("server-a", Traffic(first.generation, Counts(20, 1, 2), Counts(200, 3, 4)))
    two.report("server-b", Traffic(first.generation, Counts(1, 1, 1), Counts(2, 2, 2)))
    total = two.traffic(first.generation)
    assert total.challenger == Counts(21, 2, 3)
    assert total.champion == Counts(202, 5, 6)
    second = two.route("v0002", mode="canary", share=25, **WHO)
    # One that has not noticed yet still tells of the step before.
    two.report("server-b", Traffic(first.generation, Counts(9, 9, 9), Counts(9, 9, 9)))
    assert two.traffic(second.generation) == Traffic(second.generation)
    with pytest.raises(Invalid):
        two.report("../state", Traffic(1))


def test_a_report_needs_only_its_own_folder(two: Registry) -> None:
    made = two.route("v0002", mode="shadow", **WHO)
    root = two._store.root  # type: ignore[attr-defined]
    (root / "traffic").mkdir(exist_ok=True)
    (root / "lock").unlink()
    root.chmod(0o555)
    try:
        two.report("server-a", Traffic(made.generation, Counts(1, 0, 0)))
    finally:
        root.chmod(0o755)
    assert two.traffic(made.generation).challenger.requests == 1
    assert not (root / "lock").exists()


def test_a_damaged_routing_is_said_to_be(two: Registry) -> None:
    two.route("v0002", mode="shadow", **WHO)
    file = next(two._store.root.glob("routing.json"))  # type: ignore[attr-defined]
    file.write_bytes(file.read_bytes().replace(b"shadow", b"canary"))
    with pytest.raises(Corrupt, match="remove it"):
        two.routing()
