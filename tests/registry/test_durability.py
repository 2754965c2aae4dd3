"""What a registry promises while things break: crashes, decay. Races are in test_strain.py."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import Corrupt, DigestMismatch, Registry, Sound, durable, open_registry

Publish = Callable[..., str]


def fresh(registry: Registry) -> Registry:
    return open_registry(registry.config)


def root(registry: Registry) -> Path:
    return Path(registry.config.path)


def promote(registry: Registry, *versions: str) -> None:
    for version in versions:
        registry.promote(version, actor="test", reason="because")


@pytest.mark.parametrize("reopen", [True, False])
def test_a_torn_journal_line_is_set_aside(registry: Registry, reopen: bool) -> None:
    registry.journal.append("note", n=1)
    journal = root(registry) / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"seq":2,"kind":"no')
    assert [row.seq for row in registry.journal.rows()] == [1]
    if reopen:
        registry = fresh(registry)
    registry.journal.append("note", n=2)
    rows = list(registry.journal.rows())
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1].fields == {"n": 2}
    assert (root(registry) / "journal.jsonl.torn-2").read_bytes() == b'{"seq":2,"kind":"no'
    if reopen:
        assert rows[1].kind == "journal-mended"


def test_a_row_that_lacks_only_its_newline_is_kept(registry: Registry) -> None:
    registry.journal.append("note", n=1)
    registry.journal.append("note", n=2)
    journal = root(registry) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-1])
    again = fresh(registry)
    again.journal.append("note", n=3)
    assert [row.fields["n"] for row in again.journal.rows()] == [1, 2, 3]


def test_a_damaged_row_keeps_its_number(registry: Registry) -> None:
    for n in range(1, 4):
        registry.journal.append("note", n=n)
    journal = root(registry) / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines[1] = b"x" + lines[1][1:]
    journal.write_bytes(b"\n".join(lines))
    assert [(row.seq, row.kind) for row in registry.journal.rows()] == [
        (1, "note"),
        (2, "damaged"),
        (3, "note"),
    ]
    assert registry.journal.append("note", n=4).seq == 4


def test_a_crash_before_the_journal_row_is_repaired_at_the_next_opening(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = publish()

    class Crash(BaseException):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    monkeypatch.setattr(registry._store, "append", crash)
    with pytest.raises(Crash):
        promote(registry, one)
    assert list(registry.journal.rows(kinds=("promote",))) == []
    for _ in range(2):
        again = fresh(registry)
        assert again.state().champion == one
        (row,) = again.journal.rows(kinds=("promote",))
        assert (row.fields["version"], row.fields["generation"]) == (one, 1)


def test_a_long_quiet_journal_does_not_repeat_the_last_move(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, publish())
    monkeypatch.setattr("os.fsync", lambda fd: None)  # 1100 rows, quickly
    for n in range(1100):
        registry.journal.append("note", n=n)
    assert len(list(fresh(registry).journal.rows(kinds=("promote",)))) == 1


def test_a_flipped_bit_in_any_file_is_found_and_named(registry: Registry, publish: Publish) -> None:
    version = publish(model="abc" * 100, head="xyz" * 100, labels="[]")
    folder = registry.path(version)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["head", "labels", "manifest.json", "model"]
    for name in names:
        file = folder / name
        sound = file.read_bytes()
        file.chmod(0o644)
        for position in (0, len(sound) // 2, len(sound) - 2):
            damaged = bytearray(sound)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(DigestMismatch, match=name) as caught:
                fresh(registry).path(version)
            assert caught.value.file.endswith(name)
        file.write_bytes(sound)
        fresh(registry).path(version)


def test_a_missing_file_is_named(registry: Registry, publish: Publish) -> None:
    version = publish(model="abc", head="xyz")
    (registry.path(version) / "head").unlink()
    with pytest.raises(DigestMismatch, match="head"):
        registry.path(version)


def test_a_damaged_manifest_hides_only_its_version(registry: Registry, publish: Publish) -> None:
    one, two = publish(), publish()
    manifest = registry.path(one) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(b"{}")
    again = fresh(registry)
    assert [version.id for version in again.versions()] == [two]


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00" * 50, None])
def test_a_damaged_state_is_corrupt(
    registry: Registry, publish: Publish, data: bytes | None
) -> None:
    promote(registry, publish())
    state = root(registry) / "state.json"
    if data is None:
        data = state.read_bytes().replace(b"v0001", b"v0002", 1)
    state.write_bytes(data)
    with pytest.raises(Corrupt, match=r"state\.json") as caught:
        registry.state()
    assert caught.value.file == str(state)
    with pytest.raises(Corrupt):
        fresh(registry)


def test_what_a_killed_publisher_left_is_cleaned_up(registry: Registry, publish: Publish) -> None:
    publish()
    left = root(registry) / "staging" / "0123456789abcdef"
    left.mkdir()
    (left / "half").write_text("half")
    left.with_name(left.name + ".lock").touch()
    registry.collect(actor="test")
    assert list(left.parent.iterdir()) == []


def test_what_was_found_sound_is_read_again_once_it_is_written(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(model="abc" * 100, head="xyz" * 100)
    folder = registry.path(version)
    for name in ("model", "head"):
        os.utime(folder / name, ns=(0, time.time_ns() - 5_000_000_000))
    sound: set[Sound] = set()
    registry.path(version, sound=sound)
    assert len(sound) == 2
    read: list[str] = []
    digest = durable.sha256
    monkeypatch.setattr(
        "registry.durable.sha256", lambda path: (read.append(path.name), digest(path))[1]
    )
    registry.path(version, sound=sound)
    assert read == []
    file = folder / "model"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(DigestMismatch, match="model"):
        registry.path(version, sound=sound)
    # A file that is young is read each time: its clock may be too coarse to tell.
    young: set[Sound] = set()
    other = publish(model="def" * 100)
    registry.path(other, sound=young)
    assert young == set()
