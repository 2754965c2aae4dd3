"""What a registry promises while nothing breaks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from registry import (
    Conflict,
    Invalid,
    ManifestDraft,
    NotFound,
    PinnedError,
    Registry,
    RegistryConfig,
    Withdrawn,
    open_registry,
)

Publish = Callable[..., str]


def promote(registry: Registry, *versions: str) -> None:
    for version in versions:
        registry.promote(version, actor="test", reason="because")


def test_an_absent_registry_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_registry(tmp_path / "nowhere")


def test_publish_numbers_versions_and_keeps_their_files(
    registry: Registry, publish: Publish
) -> None:
    assert [publish(a="1"), publish(a="2")] == ["v0001", "v0002"]
    assert (registry.path("v0002") / "a").read_text() == "2"
    assert [version.id for version in registry.versions()] == ["v0001", "v0002"]
    assert list(registry.diff("v0001", "v0002")) != []
    rows = list(registry.journal.rows(kinds=("published",)))
    assert [row.fields["version"] for row in rows] == ["v0001", "v0002"]


def test_unchanged_files_are_hard_links(registry: Registry, publish: Publish) -> None:
    one, two = publish(big="same" * 1000, head="1"), publish(big="same" * 1000, head="2")
    first, second = registry.path(one), registry.path(two)
    assert (first / "big").samefile(second / "big")
    assert not (first / "head").samefile(second / "head")


def test_a_decayed_twin_is_not_shared(registry: Registry, publish: Publish) -> None:
    one = publish(big="same" * 1000)
    twin = registry.path(one) / "big"
    twin.chmod(0o644)
    twin.write_text("diff" * 1000)
    two = publish(big="same" * 1000)
    assert (registry.path(two) / "big").read_text() == "same" * 1000


def test_files_that_cannot_be_published_are_invalid(registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    draft = ManifestDraft(strategy="s", rung="head", task="text", labels=[])
    with pytest.raises(Invalid):
        registry.publish(folder, draft, actor="test")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(Invalid):
        registry.publish(folder, draft, actor="test")
    assert registry.versions() == []
    assert list((Path(registry.config.path) / "staging").iterdir()) == []


def test_two_rollbacks_go_two_steps_back(registry: Registry, publish: Publish) -> None:
    one, two, three = publish(), publish(), publish()
    promote(registry, one, two, three)
    assert registry.state().previous == two
    assert registry.rollback(actor="test", reason="bad").champion == two
    state = registry.rollback(actor="test", reason="bad too")
    assert state.champion == one
    assert state.previous is None
    assert set(state.withdrawn) == {two, three}
    with pytest.raises(Conflict):
        registry.rollback(actor="test", reason="no further")


def test_who_moved_the_champion_is_known_after_other_moves(
    registry: Registry, publish: Publish
) -> None:
    one, two = publish(a="1"), publish(a="2")
    registry.promote(one, actor="an operator", reason="tested by hand")
    registry.set_challenger(two, actor="the daemon", reason="trained")
    registry.pause(actor="another", reason="because")
    state = registry.state()
    assert state.move is not None
    assert state.move.kind == "pause"
    assert state.champion_move is not None
    assert (state.champion_move.kind, state.champion_move.actor) == ("promote", "an operator")


def test_rollback_to_a_named_version(registry: Registry, publish: Publish) -> None:
    one, two, three = publish(), publish(), publish()
    promote(registry, one, two, three)
    with pytest.raises(Conflict):
        registry.rollback(to=three, actor="test", reason="it serves")
    with pytest.raises(NotFound):
        registry.rollback(to="v9999", actor="test", reason="unknown")
    state = registry.rollback(to=one, actor="test", reason="far back", withdraw=False)
    assert (state.champion, state.chain, state.withdrawn) == (one, (), ())


def test_a_withdrawn_version_needs_force(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    promote(registry, one, two)
    registry.rollback(actor="test", reason="bad")
    with pytest.raises(Withdrawn):
        promote(registry, two)
    state = registry.promote(two, actor="test", reason="still", force=True)
    assert (state.champion, state.withdrawn) == (two, ())


def test_pinned_refuses_promotion_but_not_rollback(registry: Registry, publish: Publish) -> None:
    one, two, three = publish(), publish(), publish()
    promote(registry, one, two)
    state = registry.pin(actor="ops", reason="release week")
    assert state.pinned is not None
    assert state.pinned.reason == "release week"
    with pytest.raises(PinnedError, match="release week"):
        promote(registry, three)
    assert registry.rollback(actor="ops", reason="trouble").champion == one
    registry.promote(three, actor="ops", reason="sure", force=True)
    assert registry.unpin(actor="ops", reason="over").pinned is None


def test_conflicts(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    promote(registry, one)
    with pytest.raises(Conflict):
        promote(registry, one)
    with pytest.raises(Conflict):
        registry.promote(two, actor="test", reason="r", expect_champion=two)
    assert registry.promote(two, actor="t", reason="r", expect_champion=one).champion == two
    with pytest.raises(NotFound):
        promote(registry, "v0042")
    with pytest.raises(NotFound):
        promote(registry, "../lock")


def test_an_empty_reason_is_invalid(registry: Registry, publish: Publish) -> None:
    one = publish()
    for reason in ("", "  \n"):
        with pytest.raises(Invalid):
            registry.promote(one, actor="test", reason=reason)
        with pytest.raises(Invalid):
            registry.pin(actor="test", reason=reason)
    assert registry.state().generation == 0


def test_the_stamp_changes_with_every_move(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    seen = {registry.generation()}
    promote(registry, one)
    seen.add(registry.generation())
    promote(registry, two)
    seen.add(registry.generation())
    assert len(seen) == 3
    assert registry.generation() in seen


def test_challenger_pause_and_serving_at(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    promote(registry, one)
    registry.set_challenger(two, actor="d", reason="trained")
    assert registry.state().challenger == two
    assert registry.pause(actor="ops", reason="quiet").paused is not None
    assert registry.resume(actor="ops", reason="go on").paused is None
    promote(registry, two)
    assert registry.state().challenger is None
    assert registry.serving_at("9999") == two
    assert registry.serving_at("2000") is None


def test_requests_wait_until_done(registry: Registry) -> None:
    made = [
        registry.request("refresh", {"rung": "head", "n": n}, actor="ops", reason="now")
        for n in range(12)
    ]
    other = open_registry(registry.config)
    assert other.requests() == made
    other.done(made[0])
    assert registry.requests() == made[1:]
    row = next(iter(registry.journal.rows(kinds=("request",))))
    assert row.fields["rung"] == "head"


def test_a_damaged_request_is_dropped(registry: Registry) -> None:
    registry.request("refresh", {}, actor="ops", reason="now")
    folder = Path(registry.config.path) / "requests"
    next(folder.iterdir()).write_bytes(b"{}")
    assert registry.requests() == []
    assert list(folder.iterdir()) == []


def test_evidence_in_order(registry: Registry, publish: Publish) -> None:
    one = publish()
    registry.attach(one, "gate", {"passed": True})
    registry.attach(one, "probation", {"passed": False})
    found = registry.evidence(one)
    assert [row["name"] for row in found] == ["gate", "probation"]
    assert found[0]["evidence"] == {"passed": True}
    with pytest.raises(NotFound):
        registry.attach("v0099", "gate", {})


def test_collect_keeps_what_serves_and_never_reuses_a_number(tmp_path: Path) -> None:
    config = RegistryConfig(path=str(tmp_path / "r"), keep=1, history=1)
    registry = open_registry(config, create=True)
    folder = tmp_path / "source"
    folder.mkdir()
    draft = ManifestDraft(strategy="s", rung="head", task="text", labels=[])
    for number in range(4):
        (folder / "w").write_text(str(number))
        registry.publish(folder, draft, actor="test")
    promote(registry, "v0001", "v0002")
    assert registry.collect(actor="test") == ["v0003"]
    assert [version.id for version in registry.versions()] == ["v0001", "v0002", "v0004"]
    registry.path("v0001")
    assert registry.publish(folder, draft, actor="test").id == "v0005"


def test_journal_rows_filter_and_limit(registry: Registry) -> None:
    for number in range(5):
        registry.journal.append("note" if number % 2 else "other", n=number)
    rows = list(registry.journal.rows())
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5]
    assert [row.seq for row in registry.journal.rows(since=3)] == [4, 5]
    assert [row.fields["n"] for row in registry.journal.rows(kinds=("note",))] == [1, 3]
    assert [row.seq for row in registry.journal.rows(limit=2)] == [4, 5]
