"""Following the registry, one look at a time: loads, swaps, rollbacks, damage and repair."""

from __future__ import annotations

import os
import shutil
import threading
import time

import registry


def count(follower, name, *labels):
    return follower.metrics.counter(name, *labels)._value.get()


def failures(follower, version, reason):
    return count(follower, "driftd_server_load_failures_total", version, reason)


def swaps(follower, version, outcome):
    return count(follower, "driftd_server_swaps_total", version, outcome)


def damage(follower, version, name="model.int8.onnx"):
    path = follower.root / "versions" / version / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    return path


def test_waits_for_a_registry_and_for_a_champion(follower, text, publish):
    assert follower.watcher.step()
    assert not follower.engine.ready
    version = publish(text)
    assert follower.watcher.step()
    assert not follower.engine.ready
    registry.open_registry(str(follower.root)).promote(version, actor="test", reason="a test")
    assert follower.watcher.step()
    assert follower.engine.ready
    assert follower.engine.lineup.versions == (version,)
    assert swaps(follower, version, "done") == 1


def test_keeps_the_previous_and_rolls_back_without_a_load(follower, text, publish):
    first = publish(text, promote=True)
    assert follower.watcher.step()
    before = follower.engine.lineup.champion
    second = publish(text, seed=1, promote=True)
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (second, first)
    assert follower.engine.lineup.previous is before
    registry.open_registry(str(follower.root)).rollback(actor="test", reason="worse")
    assert follower.watcher.step()
    assert follower.engine.lineup.champion is before
    assert follower.engine.lineup.versions == (first,)


def test_at_most_two_versions_stay(follower, text, publish):
    for seed in range(4):
        version = publish(text, seed=seed, promote=True)
        assert follower.watcher.step()
    assert follower.engine.lineup.versions == (version, "v0003")


def test_loads_both_aliases_at_start(follower, text, publish):
    publish(text, promote=True)
    publish(text, seed=1, promote=True)
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == ("v0002", "v0001")


def test_shares_the_preprocessor_between_versions(follower, text, publish):
    publish(text, promote=True)
    follower.watcher.step()
    publish(text, seed=1, promote=True)
    follower.watcher.step()
    champion, previous, _ = follower.engine.lineup
    assert champion.preprocessor is previous.preprocessor


def test_a_damaged_version_never_serves(follower, text, publish):
    first = publish(text, promote=True)
    assert follower.watcher.step()
    second = publish(text, seed=1)
    path = damage(follower, second)
    registry.open_registry(str(follower.root)).promote(second, actor="test", reason="a test")
    assert not follower.watcher.step()
    assert follower.engine.lineup.versions == (first,)
    assert follower.engine.ready
    assert failures(follower, second, "digest_mismatch") == 1
    assert swaps(follower, second, "failed") == 1

    # Not tried again before its time; the pause doubles up to the limit.
    assert not follower.watcher.step()
    assert failures(follower, second, "digest_mismatch") == 1
    follower.clock.now += 10
    follower.watcher.step()
    follower.clock.now += 19
    follower.watcher.step()
    assert failures(follower, second, "digest_mismatch") == 2
    follower.clock.now += 1
    follower.watcher.step()
    assert failures(follower, second, "digest_mismatch") == 3

    # Repaired, it serves at the next try.
    damage(follower, second)
    assert path.exists()
    follower.clock.now += 25
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (second, first)


def test_a_move_is_tried_at_once_after_a_failure(follower, text, publish):
    first = publish(text, promote=True)
    second = publish(text, seed=1)
    damage(follower, second)
    store = registry.open_registry(str(follower.root))
    store.promote(second, actor="test", reason="a test")
    assert not follower.watcher.step()
    assert not follower.engine.ready
    store.rollback(actor="test", reason="broken")
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (first,)


def test_a_version_that_cannot_be_used_is_told_apart(follower, text, table, publish, tmp_path):
    folder = text.write(tmp_path / "wrong")
    shutil.copy(table.int8, folder / "model.int8.onnx")
    draft = registry.ManifestDraft(strategy="test", rung="head", task="text", labels=["a"])
    store = registry.open_registry(str(follower.root), create=True)
    version = store.publish(folder, draft, actor="test").id
    store.promote(version, actor="test", reason="a test")
    assert not follower.watcher.step()
    assert failures(follower, version, "bad_graph") == 1


def test_a_damaged_previous_does_not_hurt_the_champion(follower, text, publish):
    first = publish(text, promote=True)
    second = publish(text, seed=1, promote=True)
    damage(follower, first)
    assert not follower.watcher.step()
    assert follower.engine.lineup.versions == (second,)
    assert follower.engine.ready
    assert failures(follower, first, "digest_mismatch") == 1


def test_a_version_overtaken_while_loading_is_dropped(follower, text, publish, monkeypatch):
    first = publish(text, promote=True)
    assert follower.watcher.step()
    second = publish(text, seed=1, promote=True)
    load = follower.watcher._load

    def load_slowly(version):
        loaded = load(version)
        monkeypatch.undo()
        registry.open_registry(str(follower.root)).rollback(actor="test", reason="worse")
        return loaded

    monkeypatch.setattr(follower.watcher, "_load", load_slowly)
    assert not follower.watcher.step()
    assert swaps(follower, second, "superseded") == 1
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (first,)


def test_an_unreadable_registry_changes_nothing(follower, text, publish):
    first = publish(text, promote=True)
    assert follower.watcher.step()
    state = follower.root / "state.json"
    good = state.read_bytes()
    state.write_bytes(b"damaged")
    assert not follower.watcher.step()
    assert follower.engine.lineup.versions == (first,)
    assert follower.engine.ready
    state.write_bytes(good)
    follower.clock.now += 30
    assert follower.watcher.step()


def test_loading_stands_back_behind_answering(follower):
    follower.watcher.start()
    try:
        thread = next(t for t in threading.enumerate() if t.name == "driftd-watcher")
        own, end = os.getpriority(os.PRIO_PROCESS, 0), time.monotonic() + 10
        while os.getpriority(os.PRIO_PROCESS, thread.native_id) != min(own + 5, 19):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        follower.watcher.stop()
