"""The registry: versions, moves, controls, and what a crash or a flipped bit may do to it."""

from __future__ import annotations

import multiprocessing
import os
import stat

import pytest

from registry import (
    Conflict,
    Corrupt,
    DigestMismatch,
    Invalid,
    ManifestDraft,
    NotFound,
    PinnedError,
    Withdrawn,
    open_registry,
)

DRAFT = ManifestDraft(strategy="head", rung="head", task="text", labels=["a", "b"])
WHO = {"actor": "test", "reason": "because"}


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "model.int8.onnx").write_bytes(b"x" * 2000)
    (folder / "head.safetensors").write_bytes(b"y" * 100)
    return folder


@pytest.fixture
def registry(tmp_path):
    return open_registry(tmp_path / "registry", create=True)


@pytest.fixture
def three(registry, files):
    return [registry.publish(files, DRAFT, actor="test").id for _ in range(3)]


def test_versions_are_numbered_and_share_equal_files(registry, three):
    assert three == ["v0001", "v0002", "v0003"]
    assert [version.id for version in registry.versions()] == three
    file = registry.path("v0003") / "model.int8.onnx"
    assert file.stat().st_nlink == 3
    assert not file.stat().st_mode & stat.S_IWUSR


def test_rollback_goes_further_back_each_time(registry, three):
    for version in three:
        registry.promote(version, **WHO)
    assert registry.state().previous == "v0002"
    assert registry.rollback(**WHO).champion == "v0002"
    state = registry.rollback(**WHO)
    assert (state.champion, state.previous) == ("v0001", None)
    with pytest.raises(Conflict, match="no earlier champion"):
        registry.rollback(**WHO)


def test_what_was_taken_back_stays_back_unless_forced(registry, three):
    registry.promote("v0001", **WHO)
    registry.promote("v0002", **WHO)
    registry.rollback(**WHO)
    with pytest.raises(Withdrawn, match="v0002"):
        registry.promote("v0002", **WHO)
    assert registry.promote("v0002", force=True, **WHO).champion == "v0002"


def test_a_pin_stops_promotions_but_not_a_rollback(registry, three):
    registry.promote("v0001", **WHO)
    registry.promote("v0002", **WHO)
    registry.pin(**WHO)
    with pytest.raises(PinnedError, match="because"):
        registry.promote("v0003", **WHO)
    assert registry.rollback(**WHO).champion == "v0001"
    registry.unpin(**WHO)
    assert registry.promote("v0003", **WHO).champion == "v0003"


def test_moves_need_a_reason_and_a_version(registry, three):
    with pytest.raises(Invalid, match="say why"):
        registry.promote("v0001", actor="test", reason=" ")
    with pytest.raises(NotFound, match="v0009"):
        registry.promote("v0009", **WHO)


def test_every_move_is_in_the_journal_with_who_and_why(registry, three):
    registry.promote("v0001", **WHO)
    registry.promote("v0002", **WHO)
    row = list(registry.journal.rows(kinds=["promote"]))[-1]
    assert (row.fields["version"], row.fields["previous"]) == ("v0002", "v0001")
    assert (row.fields["actor"], row.fields["reason"]) == ("test", "because")
    assert registry.serving_at(row.time) == "v0002"
    assert registry.serving_at("1999-01-01") is None


def test_requests_wait_until_they_are_done(registry, tmp_path):
    registry.request("refresh", {"rung": "head"}, **WHO)
    again = open_registry(tmp_path / "registry")
    (request,) = again.requests()
    assert (request.kind, request.body) == ("refresh", {"rung": "head"})
    again.done(request)
    assert registry.requests() == []
    assert os.listdir(tmp_path / "registry" / "staging") == []


@pytest.mark.parametrize("name", ["model.int8.onnx", "head.safetensors", "manifest.json"])
def test_a_flipped_bit_is_refused_by_name(registry, three, tmp_path, name):
    file = tmp_path / "registry" / "versions" / "v0002" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(bytes(data))
    with pytest.raises(DigestMismatch, match=name):
        open_registry(tmp_path / "registry").path("v0002")
    assert open_registry(tmp_path / "registry").path("v0001").is_dir()


def test_a_move_whose_row_was_lost_is_mended(registry, three, tmp_path):
    registry.promote("v0001", **WHO)
    registry.promote("v0002", **WHO)
    journal = tmp_path / "registry" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    rows = list(open_registry(tmp_path / "registry").journal.rows())
    assert rows[-1].kind == "promote"
    assert rows[-1].fields["version"] == "v0002"
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))


def test_a_damaged_state_says_what_to_do(registry, three, tmp_path):
    registry.promote("v0001", **WHO)
    (tmp_path / "registry" / "state.json").write_text("{")
    with pytest.raises(Corrupt, match="restore it from a backup"):
        registry.state()


def test_there_is_no_registry(tmp_path):
    with pytest.raises(NotFound, match="start the daemon first"):
        open_registry(tmp_path / "nowhere")


def _race(path, version, expected, barrier, results):
    registry = open_registry(path)
    barrier.wait()
    try:
        registry.promote(version, expect_champion=expected, **WHO)
        results.put(version)
    except Conflict:
        results.put(None)


def test_of_several_contenders_one_wins(registry, files, tmp_path):
    versions = [registry.publish(files, DRAFT, actor="test").id for _ in range(5)]
    registry.promote(versions[0], **WHO)
    context = multiprocessing.get_context("spawn")
    for _ in range(3):
        champion = registry.state().champion
        contenders = [v for v in versions if v != champion]
        barrier, results = context.Barrier(len(contenders)), context.Queue()
        workers = [
            context.Process(
                target=_race, args=(tmp_path / "registry", v, champion, barrier, results)
            )
            for v in contenders
        ]
        for worker in workers:
            worker.start()
        winners = [w for w in (results.get(timeout=60) for _ in workers) if w]
        for worker in workers:
            worker.join()
        assert winners == [registry.state().champion]
    rows = list(registry.journal.rows())
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row.kind == "promote" for row in rows) == 4
