"""What a registry promises while nothing breaks, on a folder and on a real S3 server alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import (
    Conflict,
    Invalid,
    ManifestDraft,
    NotFound,
    PinnedError,
    Registry,
    RegistryConfig,
    Repeated,
    Stretch,
    Withdrawn,
    log,
    moment,
    open_registry,
)

Publish = Callable[..., str]
on_both = pytest.mark.parametrize("registry", ["local", "s3"], indirect=True)


def promote(registry: Registry, *versions: str) -> None:
    for version in versions:
        registry.promote(version, actor="test", reason="because")


def test_an_absent_registry_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_registry(tmp_path / "nowhere")


@on_both
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


@on_both
def test_files_that_were_given_are_published_whole(registry: Registry, tmp_path: Path) -> None:
    draft = ManifestDraft(strategy="s", rung="head", task="text", labels=[])
    for name, own in (("one", "1"), ("two", "2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "big").write_text("same" * 1000)
        (folder / "own").write_text(own)
        registry.publish(folder, draft, actor="test", given=True)
    found = [registry.path(id, verify=True) for id in ("v0001", "v0002")]
    assert [(path / "own").read_text() for path in found] == ["1", "2"]
    assert [(path / "big").read_text() for path in found] == ["same" * 1000] * 2
    assert {path.name for path in found[1].iterdir()} == {"big", "own", "manifest.json"}


def test_a_given_file_is_not_copied(registry: Registry, tmp_path: Path) -> None:
    draft = ManifestDraft(strategy="s", rung="head", task="text", labels=[])
    folder, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("somebody else's")
    (folder / "own").write_text("ours alone")
    (folder / "linked").hardlink_to(elsewhere)
    (folder / "symbolic").symlink_to(elsewhere)
    published = registry.path(registry.publish(folder, draft, actor="test", given=True).id)
    assert (published / "own").samefile(folder / "own")
    assert (published / "own").stat().st_mode & 0o777 == 0o444
    for name in ("linked", "symbolic"):  # whoever has them may write them again
        assert not (published / name).samefile(elsewhere)
        assert (published / name).read_text() == "somebody else's"


def test_a_given_file_that_is_published_already_shares_its_bytes(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    first = registry.path(publish(big="same" * 1000))
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "big").write_text("same" * 1000)
    draft = ManifestDraft(strategy="s", rung="head", task="text", labels=[])
    second = registry.path(registry.publish(folder, draft, actor="test", given=True).id)
    assert (first / "big").samefile(second / "big")


@on_both
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
    assert registry._store.names("staging") == registry._store.names("files") == []


@on_both
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


@on_both
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


@on_both
def test_rollback_to_a_named_version(registry: Registry, publish: Publish) -> None:
    one, two, three = publish(), publish(), publish()
    promote(registry, one, two, three)
    with pytest.raises(Conflict):
        registry.rollback(to=three, actor="test", reason="it serves")
    with pytest.raises(NotFound):
        registry.rollback(to="v9999", actor="test", reason="unknown")
    state = registry.rollback(to=one, actor="test", reason="far back", withdraw=False)
    assert (state.champion, state.chain, state.withdrawn) == (one, (), ())


@on_both
def test_a_withdrawn_version_needs_force(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    promote(registry, one, two)
    registry.rollback(actor="test", reason="bad")
    with pytest.raises(Withdrawn):
        promote(registry, two)
    state = registry.promote(two, actor="test", reason="still", force=True)
    assert (state.champion, state.withdrawn) == (two, ())


@on_both
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


@on_both
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


@on_both
def test_an_empty_reason_is_invalid(registry: Registry, publish: Publish) -> None:
    one = publish()
    for reason in ("", "  \n"):
        with pytest.raises(Invalid):
            registry.promote(one, actor="test", reason=reason)
        with pytest.raises(Invalid):
            registry.pin(actor="test", reason=reason)
    assert registry.state().generation == 0


@on_both
def test_the_stamp_changes_with_every_move(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    seen = {registry.generation()}
    promote(registry, one)
    seen.add(registry.generation())
    promote(registry, two)
    seen.add(registry.generation())
    assert len(seen) == 3
    assert registry.generation() in seen


@on_both
def test_challenger_pause_and_serving_at(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    promote(registry, one)
    registry.set_challenger(two, actor="d", reason="trained")
    assert registry.state().challenger == two
    assert registry.pause(actor="ops", reason="quiet").paused is not None
    assert registry.resume(actor="ops", reason="go on").paused is None
    promote(registry, two)
    assert registry.state().challenger is None
    assert registry.serving_at("9999-01-01").fields["version"] == two
    assert registry.serving_at("2000-01-01") is None


@on_both
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
    assert row.fields["body"] == {"rung": "head", "n": 0}


def test_a_damaged_request_is_dropped(registry: Registry) -> None:
    registry.request("refresh", {}, actor="ops", reason="now")
    folder = Path(registry.config.path) / "requests"
    next(folder.iterdir()).write_bytes(b"{}")
    assert registry.requests() == []
    assert list(folder.iterdir()) == []


@on_both
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


@on_both
def test_what_is_being_removed_cannot_be_promoted(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = registry.config.model_copy(update={"keep": 1, "history": 1})
    one, two, three = publish(), publish(), publish()
    promote(registry, two)
    other = open_registry(config)
    remove = other._store.remove

    def meanwhile(name: str) -> None:
        with pytest.raises(NotFound, match="being removed"):
            registry.promote(one, actor="another", reason="at this very moment", force=True)
        with pytest.raises(NotFound, match="being removed"):
            registry.set_challenger(one, actor="another", reason="at this very moment")
        remove(name)

    monkeypatch.setattr(other._store, "remove", meanwhile)
    assert other.collect(actor="test") == [one]
    (row,) = registry.journal.rows(kinds=("collected",))
    assert row.fields["versions"] == [one]
    assert other.collect(actor="test") == []
    assert registry.names() == [two, three]


@on_both
def test_journal_rows_filter_and_limit(registry: Registry) -> None:
    for number in range(5):
        registry.journal.append("note" if number % 2 else "other", n=number)
    rows = list(registry.journal.rows())
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5]
    assert [row.seq for row in registry.journal.rows(since=3)] == [4, 5]
    assert [row.fields["n"] for row in registry.journal.rows(kinds=("note",))] == [1, 3]
    assert [row.seq for row in registry.journal.rows(limit=2)] == [4, 5]


@pytest.fixture
def line(registry: Registry, tmp_path: Path) -> Callable[..., str]:
    """Publish a version that learned from offsets ``start`` to ``end`` of t:0, after ``parent``."""
    folder = tmp_path / "line"
    folder.mkdir()

    def one(parent: str | None, start: int, end: int, **lineage: Any) -> str:
        (folder / "weights").write_text(f"{parent} {start} {end} {lineage}")
        place = {"topic": "t", "partition": 0, "start": start, "end": end}
        draft = ManifestDraft(
            parent=parent, strategy="head", rung="head", task="text", labels=["a"],
            lineage={"trained_on": [place], **lineage},
        )  # fmt: skip
        return registry.publish(folder, draft, actor="test").id

    return one


@on_both
def test_lineage_counts_what_was_inherited(registry: Registry, line: Callable[..., str]) -> None:
    one = line(None, 0, 100)
    two = line(one, 100, 200)
    for text, learned in (
        ("t:0:0-50", True),
        ("t:0:99", True),
        ("t:0:199-900", True),
        ("t:0:200", False),
        ("t:1:0", False),
        ("s:0:0", False),
    ):
        assert registry.learned_from(two, [Stretch.parse(text)]) is learned, text
    assert not registry.learned_from(one, [Stretch.parse("t:0:100")])


def test_lineage_outlives_the_parents_files(tmp_path: Path, draft: Any) -> None:
    config = RegistryConfig(path=str(tmp_path / "r"), keep=1, history=1)
    registry = open_registry(config, create=True)
    folder = tmp_path / "source"
    folder.mkdir()
    parent = None
    for start in (0, 100, 200):
        (folder / "w").write_text(str(start))
        place = {"topic": "t", "partition": 0, "start": start, "end": start + 100}
        made = draft(parent).model_copy(update={"lineage": {"trained_on": [place]}})
        parent = registry.publish(folder, made, actor="test").id
    assert registry.collect(actor="test") == ["v0001", "v0002"]
    again = open_registry(config)
    assert again.learned_from("v0003", [Stretch.parse("t:0:50-60")])
    assert again.publish(folder, draft("v0003"), actor="test").id == "v0004"


@on_both
def test_before_an_offset_skips_what_never_served_or_was_taken_back(
    registry: Registry, line: Callable[..., str]
) -> None:
    one = line(None, 0, 100)
    two = line(one, 100, 200)
    never = line(two, 200, 250)
    three = line(two, 200, 300)
    four = line(three, 300, 400)
    promote(registry, one, two)
    registry.rollback(actor="test", reason="slow")
    registry.promote(three, actor="test", reason="made from two, knowingly", force=True)
    promote(registry, four)
    state = registry.rollback(before=Stretch("t", 0, 260), actor="test", reason="poisoned")
    assert (state.champion, state.chain) == (one, ())
    assert set(state.withdrawn) == {two, three, four}
    assert never not in state.withdrawn
    with pytest.raises(Withdrawn):
        promote(registry, never)  # it is made from two
    with pytest.raises(Conflict, match="nothing to take back"):
        registry.rollback(before=Stretch("t", 0, 260), actor="test", reason="again")


@on_both
def test_before_a_time_goes_by_the_newest_event(
    registry: Registry, line: Callable[..., str]
) -> None:
    one = line(None, 0, 100, newest_event="2026-01-01T10:00:00+00:00")
    two = line(one, 100, 200, newest_event="2026-01-01T12:00:00+00:00")
    promote(registry, one, two)
    with pytest.raises(Conflict, match="nothing to take back"):
        registry.rollback(before=moment("2026-01-01T12:00:01"), actor="test", reason="r")
    with pytest.raises(Conflict, match="every version"):
        registry.rollback(before=moment("2026-01-01T09:00"), actor="test", reason="r")
    state = registry.rollback(before=moment("2026-01-01T13:00+01:00"), actor="test", reason="r")
    assert (state.champion, state.withdrawn) == (one, (two,))


@on_both
def test_passing_over_versions_takes_them_back_too(registry: Registry, publish: Publish) -> None:
    one, two, three = publish(), publish(), publish()
    promote(registry, one, two, three)
    state = registry.rollback(to=one, actor="test", reason="far back")
    assert set(state.withdrawn) == {two, three}


@pytest.mark.parametrize("how", ["files", "recipe"])
@on_both
def test_the_same_again_is_not_promoted(
    registry: Registry, line: Callable[..., str], how: str
) -> None:
    one = line(None, 0, 100)
    bad = line(one, 100, 200)
    promote(registry, one, bad)
    registry.rollback(actor="test", reason="poisoned")
    same = line(one, 100, 200) if how == "files" else line(one, 100, 200, seed=2)
    assert registry.taken_back(same) == bad
    with pytest.raises(Withdrawn, match=bad):
        promote(registry, same)
    assert registry.taken_back(line(one, 100, 201)) is None
    child = line(bad, 300, 400)
    assert registry.taken_back(child) == bad
    # Whoever forces it through accepts what comes of it.
    registry.promote(child, actor="test", reason="mended by hand", force=True)
    assert registry.taken_back(line(child, 400, 500)) is None


@on_both
def test_a_request_may_hold_any_keys(registry: Registry) -> None:
    body = {"kind": "k", "actor": "a", "reason": "r", "seq": 9, "time": "t", "seal": "s"}
    made = registry.request("refresh", body, actor="ops", reason="now")
    assert registry.requests() == [made]
    (row,) = registry.journal.rows(kinds=("request",))
    assert (row.fields["actor"], row.fields["body"]) == ("ops", body)


def test_old_rows_are_not_read(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = publish(), publish()
    promote(registry, one)
    with monkeypatch.context() as quickly:
        quickly.setattr("os.fsync", lambda fd: None)
        for n in range(4000):
            registry.journal.append("note", n=n)
    again = open_registry(registry.config)
    read = 0
    entry = log.parse

    def counted(line: bytes, previous: int) -> Any:
        nonlocal read
        read += 1
        return entry(line, previous)

    monkeypatch.setattr(log, "parse", counted)
    again.mend()
    promote(again, two)
    assert publish() == "v0003"
    assert [row.fields["n"] for row in again.journal.rows(kinds=("note",), limit=2)] == [3998, 3999]
    assert [row.seq for row in again.journal.rows(since=2000, limit=2)][-1] > 4000
    assert read < 2500, "of more than 4,000 rows"
    assert len(list(registry.journal.rows(kinds=("promote",)))) == 2


@on_both
def test_a_request_id_makes_a_move_happen_once(registry: Registry, publish: Publish) -> None:
    first, second = publish(), publish()
    promote(registry, first, second)
    registry.rollback(actor="a", reason="errors", request_id="r1")
    with pytest.raises(Repeated, match="r1 was carried out before: rollback") as error:
        registry.rollback(actor="a", reason="errors", request_id="r1")
    assert error.value.row["version"] == first
    registry.pause(actor="a", reason="x", request_id="r2")
    with pytest.raises(Repeated):
        registry.resume(actor="a", reason="x", request_id="r1")
    asked = registry.request("refresh", {}, actor="a", reason="x", request_id="r3")
    with pytest.raises(Repeated) as error:
        registry.request("refresh", {}, actor="a", reason="x", request_id="r3")
    assert error.value.row["id"] == asked.id
    assert registry.requests() == [asked]


def test_a_request_id_holds_across_a_crash_between_move_and_row(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = publish(), publish()
    promote(registry, first, second)
    write_row = Registry._write_row

    def killed(self: Registry, state: Any) -> None:
        if state.move.kind == "rollback":
            raise KeyboardInterrupt
        write_row(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "_write_row", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.rollback(actor="a", reason="errors", request_id="r1")
    other = open_registry(registry.config.path)
    with pytest.raises(Repeated):
        other.rollback(actor="a", reason="errors", request_id="r1")
    assert other.state().champion == first
