"""Who leads: one at a time, by nobody's clock but one's own, and fenced by the term."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from registry import Registry, StorageError, Superseded, open_registry
from registry.lease import PATIENCE, Lease
from registry.store import LocalStore


class Clock:
    """A monotonic clock of one machine: its own zero and its own speed."""

    def __init__(self, zero: float = 0.0, speed: float = 1.0) -> None:
        self.zero, self.speed, self.passed = zero, speed, 0.0

    def __call__(self) -> float:
        return self.zero + self.speed * self.passed


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path / "registry", 5.0)
    made.create()
    return made


def contender(store: LocalStore, owner: str, clock: Clock) -> Lease:
    return Lease(store, "leader.json", owner, 10.0, clock)


def test_the_first_leads_and_renews(store: LocalStore) -> None:
    clock = Clock()
    one, two = (contender(store, name, clock) for name in ("one", "two"))
    assert one.step()
    assert (one.held, one.term, one.holder) == (True, 1, "one")
    for _ in range(100):
        clock.passed += 2
        assert one.step()
        assert not two.step()
    assert (two.holder, two.term) == ("one", 1)


def test_what_is_not_renewed_is_taken_over_in_the_stated_time(store: LocalStore) -> None:
    clock = Clock()
    one, two = (contender(store, name, clock) for name in ("one", "two"))
    one.step()
    two.step()
    ended = None
    while not two.held:
        clock.passed += 0.5
        two.step()
        if ended is None and not one.held:
            ended = clock.passed
    assert ended is not None
    assert ended < clock.passed  # never two at once, and a gap between
    assert clock.passed <= 10.0 * (PATIENCE + 0.1) + 1.0
    assert two.term == 2
    assert not one.step()
    assert one.holder == "two"


def test_one_who_slept_is_no_leader_when_it_wakes(store: LocalStore) -> None:
    clock = Clock()
    one, two = (contender(store, name, clock) for name in ("one", "two"))
    one.step()
    two.step()
    clock.passed += 14  # one is frozen: it does not step
    assert two.step()
    assert not one.held
    assert not one.step()
    clock.passed += 14  # and now two is
    assert one.step()
    assert (one.term, two.held) == (3, False)


def test_given_back_it_is_taken_at_once(store: LocalStore) -> None:
    clock = Clock()
    one, two = (contender(store, name, clock) for name in ("one", "two"))
    one.step()
    two.step()
    one.release()
    assert not one.held
    clock.passed += 1
    assert two.step()
    assert two.term == 2


def test_clocks_that_disagree_do_not_matter(store: LocalStore) -> None:
    """Zeros years apart, one clock a tenth faster; each contender may sleep. Never two leaders."""
    chance = random.Random(3)
    clocks = [Clock(0.0), Clock(1e9, 1.05), Clock(-1e9, 0.95)]
    leases = [contender(store, f"c{i}", clock) for i, clock in enumerate(clocks)]
    asleep = [0.0] * 3
    terms: dict[int, str] = {}
    for _ in range(3000):
        for clock in clocks:
            clock.passed += 0.3
        for i, lease in enumerate(leases):
            if asleep[i] > 0:
                asleep[i] -= 0.3
                continue
            lease.step()
            if chance.random() < 0.01:
                asleep[i] = chance.uniform(0, 40)
        leaders = [lease for lease in leases if lease.held]
        assert len(leaders) <= 1
        for lease in leaders:
            assert terms.setdefault(lease.term, lease.owner) == lease.owner
    assert len(terms) > 5


def test_storage_that_is_away_costs_the_lease_only_when_it_runs_out(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    one = contender(store, "one", clock)
    one.step()

    def away(*_: object) -> None:
        raise StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "swap", away)
        clock.passed += 5
        with pytest.raises(StorageError):
            one.step()
        assert one.held
        clock.passed += 6
        assert not one.held
    clock.passed += 1
    assert not one.step()  # its own document, which it takes for another's
    clock.passed += 13
    assert one.step()
    assert one.term == 2


def test_a_leader_of_an_older_term_moves_nothing(tmp_path: Path) -> None:
    old, new, operator = (open_registry(tmp_path / "registry", create=True) for _ in range(3))
    old.lead(1, actor="one")
    new.lead(2, actor="two")
    with pytest.raises(Superseded, match="leads in term 2"):
        old.pause(actor="one", reason="why")
    with pytest.raises(Superseded):
        old.route(None, mode="off", actor="one", reason="why")
    with pytest.raises(Superseded):
        old.lead(1, actor="one")
    new.pause(actor="two", reason="why")
    operator.resume(actor="a person", reason="why")  # people are not fenced
    rows = list(operator.journal.rows(kinds=["leader"]))
    assert [(row.fields["actor"], row.fields["term"]) for row in rows] == [("one", 1), ("two", 2)]
    assert Registry(operator.store, operator.config).state().term == 2
