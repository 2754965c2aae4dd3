"""A challenger beside the champion: its share, its copies, its counts, and its failures."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import registry
from deploy.errors import ClientGoneError, DeadlineError, InferenceError, InputError, QueueFullError
from deploy.routing import Counts, Split, Trial
from deploy.session import Session

ROOT = Path(__file__).parents[2]
WHO = {"actor": "test", "reason": "because"}
INFER = "/v2/models/driftd/infer"
KEYS = [f"user-{i}" for i in range(20_000)]


def split(share=50.0, challenger="v0002", mode="canary"):
    return Split(1, mode, challenger, share, 0.25)


# ------------------------------------------------------------------ the share


@pytest.mark.parametrize("share", [1, 5, 25, 50, 99])
def test_a_share_of_the_keys_is_a_share_of_the_requests(share):
    chosen = sum(split(share).chooses(key) for key in KEYS)
    assert chosen / len(KEYS) == pytest.approx(share / 100, abs=0.012)
    by_chance = sum(split(share).chooses("") for _ in KEYS)
    assert by_chance / len(KEYS) == pytest.approx(share / 100, abs=0.015)


def test_a_key_stays_with_its_version_while_the_share_grows():
    chosen = [{key for key in KEYS if split(share).chooses(key)} for share in (5, 25, 50, 100)]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3] == set(KEYS)


def test_another_challenger_meets_other_keys():
    ours = {key for key in KEYS if split(5).chooses(key)}
    others = {key for key in KEYS if split(5, "v0003").chooses(key)}
    assert len(ours & others) < 0.2 * len(ours)


def test_another_process_chooses_alike():
    program = (
        "from deploy.routing import Split;"
        "print([Split(9, 'canary', 'v0002', 50, 1).chooses(f'user-{i}') for i in range(200)])"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str([split().chooses(key) for key in KEYS[:200]])


def test_a_shadow_answers_nobody():
    assert not any(split(100, mode="shadow").chooses(key) for key in KEYS[:100])


@pytest.mark.parametrize(
    ("error", "seconds", "expected"),
    [
        (None, 0.1, "ok"),
        (None, 0.25, "slow"),
        (InferenceError("broken"), 0.1, "error"),
        (DeadlineError("late"), 10, "error"),
        (ClientGoneError("gone"), 0.1, None),
        (ClientGoneError("gone"), 3, "slow"),
        (InputError("no text"), 0.1, None),
        (QueueFullError("full", 1), 3, None),
    ],
)
def test_what_a_request_counts_as(error, seconds, expected):
    assert split().outcome(error, seconds) == expected


def test_requests_for_a_challenger_that_cannot_be_loaded_count_as_its_errors():
    trial = Trial(split(100), None)
    assert trial.chosen("anna") is None
    trial.count(False, "ok")
    assert trial.counted() == (1, Counts(1, 1, 0), Counts(1, 0, 0))


# ------------------------------------------------------------------ following the registry


@pytest.fixture
def store(tmp_path):
    return registry.open_registry(str(tmp_path / "registry"), create=True)


@pytest.fixture
def two(text, publish, store):
    """A champion and another version, by name."""
    return publish(text, promote=True), publish(text, seed=1)


def damage(root, version, name="model.int8.onnx"):
    path = root / "versions" / version / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def failures(follower, version, reason):
    counter = follower.metrics.counter("driftd_server_load_failures_total", version, reason)
    return counter._value.get()


def test_a_challenger_is_loaded_beside_the_champion_and_goes_when_told(follower, store, two):
    first, second = two
    assert follower.watcher.step()
    store.route(second, mode="canary", share=100, **WHO)
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (first, second)
    assert follower.engine.route("anna").version == second
    assert follower.engine.pick().version == first
    store.route(None, mode="off", **WHO)
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (first,)
    assert follower.engine.route("anna").version == first


def test_the_next_step_keeps_the_session_and_begins_to_count_anew(follower, store, two):
    _, second = two
    for share in (25, 50):
        store.route(second, mode="canary", share=share, **WHO)
        assert follower.watcher.step()
        trial = follower.engine.lineup.trial
        assert (trial.split.share, trial.counted().champion) == (share, Counts())
        trial.count(False, "ok")
        loaded, trial = trial.loaded, None
    assert follower.engine.lineup.trial.loaded is loaded
    share = follower.metrics.gauge("driftd_server_canary_share")
    assert share._value.get() == 0.5


def test_a_promoted_challenger_serves_without_a_load(follower, store, two):
    first, second = two
    store.route(second, mode="canary", share=5, **WHO)
    assert follower.watcher.step()
    challenger = follower.engine.lineup.trial.loaded
    store.promote(second, **WHO)
    assert follower.watcher.step()
    champion, previous, trial = follower.engine.lineup
    assert champion is challenger
    assert (previous.version, trial) == (first, None)


def test_the_routing_is_void_once_the_champion_moves(follower, text, publish, store, two):
    first, second = two
    store.route(second, mode="canary", share=100, **WHO)
    assert follower.watcher.step()
    third = publish(text, seed=2, promote=True)
    assert follower.watcher.step()
    assert follower.engine.lineup.versions == (third, first)
    assert follower.engine.route("anna").version == third
    store.rollback(**WHO)  # it was made against this one, and was never taken back
    assert follower.watcher.step()
    assert follower.engine.route("anna").version == second


def test_a_challenger_that_cannot_be_loaded_hurts_only_itself(follower, store, two):
    first, second = two
    damage(follower.root, second)
    store.route(second, mode="canary", share=100, **WHO)
    assert not follower.watcher.step()
    assert follower.engine.ready
    assert failures(follower, second, "digest_mismatch") == 1
    assert follower.engine.route("anna").version == first
    assert follower.engine.lineup.trial.counted().challenger == Counts(1, 1, 0)
    follower.watcher.report()
    assert store.traffic(1).challenger == registry.Counts(1, 1, 0)

    damage(follower.root, second)  # mended
    follower.clock.now += 10
    assert follower.watcher.step()
    assert follower.engine.route("anna").version == second
    assert follower.engine.lineup.trial.counted().challenger == Counts(1, 1, 0)


def test_a_damaged_routing_stops_no_promotion(follower, text, publish, store, two):
    _, second = two
    store.route(second, mode="shadow", **WHO)
    assert follower.watcher.step()
    (follower.root / "routing.json").write_bytes(b"damaged")
    third = publish(text, seed=2, promote=True)
    assert not follower.watcher.step()
    assert follower.engine.lineup.champion.version == third
    assert follower.engine.lineup.trial is None
    assert failures(follower, "none", "registry") == 1


def test_counts_are_reported_on_an_interval_and_once(follower, store, two, monkeypatch):
    store.route(two[1], mode="canary", share=50, **WHO)
    assert follower.watcher.step()
    trial = follower.engine.lineup.trial
    trial.count(True, "slow")
    follower.watcher.step()
    assert store.traffic(1) == registry.Traffic(1)
    follower.clock.now += 2
    follower.watcher.step()
    assert store.traffic(1).challenger == registry.Counts(1, 0, 1)
    done = follower.metrics.counter("driftd_server_traffic_reports_total", "done")
    assert done._value.get() == 1
    follower.clock.now += 2
    follower.watcher.step()
    assert done._value.get() == 1  # nothing new

    def refuse(*_):
        raise registry.StorageError("read-only")

    monkeypatch.setattr(registry.Registry, "report", refuse)
    trial.count(True, "ok")
    follower.clock.now += 2
    assert follower.watcher.step()  # serving goes on
    failed = follower.metrics.counter("driftd_server_traffic_reports_total", "failed")
    assert failed._value.get() == 1


# ------------------------------------------------------------------ answering


def ask(client, key=None, **headers):
    headers = headers if key is None else {"x-driftd-key": key}
    response = client.post("/predict", json={"text": "my card"}, headers=headers)
    assert response.status_code == 200
    return response.json()["version"]


def begin(server, store, eventually, version, mode, share=0.0):
    store.route(version, mode=mode, share=share, **WHO)
    eventually(lambda: server.engine.lineup.trial is not None)


def test_a_canary_answers_its_keys_and_the_registry_hears_of_it(serving, store, two, eventually):
    first, second = two
    with serving(report_seconds=0.05) as (server, client):
        begin(server, store, eventually, second, "canary", 50)
        rule = split(50, second)
        for key in KEYS[:40]:
            expected = second if rule.chooses(key) else first
            assert {ask(client, key) for _ in range(2)} == {expected}
            assert ask(client, **{"x-request-id": key}) == expected
            body = {
                "id": key,
                "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hi"]}],
            }
            assert client.post(INFER, json=body).json()["model_version"] == expected
            by_version = f"/v2/models/driftd/versions/{first}/infer"
            assert client.post(by_version, json=body).json()["model_version"] == first
        eventually(lambda: store.traffic(1).champion.requests > 0)
    # What came after the last interval is told at the end.
    chosen = sum(rule.chooses(key) for key in KEYS[:40])
    total = store.traffic(1)
    assert total.challenger.requests == 4 * chosen
    assert total.champion.requests == 4 * (40 - chosen) + 40
    assert (total.challenger.errors, total.champion.errors) == (0, 0)


def test_failures_of_the_challenger_are_its_own(serving, store, two, eventually, monkeypatch):
    _, second = two
    with serving() as (server, client):
        begin(server, store, eventually, second, "canary", 50)
        broken = server.engine.lineup.trial.loaded.session
        run = Session.run

        def fail(self, *arguments):
            if self is broken:
                raise RuntimeError("broken")
            return run(self, *arguments)

        monkeypatch.setattr(Session, "run", fail)
        codes = [
            client.post(
                "/predict", json={"text": "my card"}, headers={"x-driftd-key": key}
            ).status_code
            for key in KEYS[:30]
        ]
    chosen = sum(split(50, second).chooses(key) for key in KEYS[:30])
    assert (codes.count(500), codes.count(200)) == (chosen, 30 - chosen)
    assert store.traffic(1).challenger == registry.Counts(chosen, chosen, 0)
    assert store.traffic(1).champion == registry.Counts(30 - chosen, 0, 0)


def test_a_shadow_sees_a_copy_of_all_and_answers_nobody(serving, store, two, eventually):
    first, second = two
    with serving() as (server, client):
        begin(server, store, eventually, second, "shadow")
        assert {ask(client, key) for key in KEYS[:20]} == {first}
        eventually(lambda: server.engine.lineup.trial.counted().challenger.requests == 20)
        assert server.engine.lineup.trial.counted().champion.requests == 20
        compared = [
            server.metrics.counter("driftd_server_shadow_items_total", second, outcome)
            for outcome in ("same", "differs")
        ]
        eventually(lambda: sum(counter._value.get() for counter in compared) == 20)
    assert store.traffic(1).challenger == registry.Counts(20, 0, 0)


def test_a_shadow_that_encodes_otherwise_reads_the_inputs_itself(
    serving, store, table, sampler, tmp_path, eventually, publish
):
    """A refitted scaler is another preprocessor; its copies must be its own encoding."""
    publish(table, promote=True)
    draft = registry.ManifestDraft(strategy="t", rung="head", task="tabular", labels=["no", "yes"])
    folder = table.write(tmp_path / "other", 1)
    settings = folder / "preprocess.json"
    settings.write_text(settings.read_text().replace("30.", "31.", 1) + "\n")
    second = store.publish(folder, draft, actor="test").id
    with serving() as (server, client):
        begin(server, store, eventually, second, "shadow")
        lineup = server.engine.lineup
        assert lineup.trial.loaded.preprocessor is not lineup.champion.preprocessor
        body = {"features": {"price": 3, "peak": None, "region": "north"}}
        assert client.post("/predict", json=body).status_code == 200
        eventually(lambda: server.engine.lineup.trial.counted().challenger.requests == 1)


def test_nobody_waits_for_a_slow_shadow_and_its_copies_are_dropped(
    serving, store, two, eventually, monkeypatch
):
    first, second = two
    release = threading.Event()
    with serving(workers=2, shadow_limit=4) as (server, client):
        begin(server, store, eventually, second, "shadow")
        slow, run = server.engine.lineup.trial.loaded.session, Session.run
        stuck = threading.Semaphore(1)

        def wait(self, *arguments):
            if self is slow and stuck.acquire(blocking=False):
                release.wait(20)
                stuck.release()
            return run(self, *arguments)

        monkeypatch.setattr(Session, "run", wait)
        begun = time.monotonic()
        assert {ask(client, key) for key in KEYS[:10]} == {first}
        assert time.monotonic() - begun < 10
        release.set()
        eventually(lambda: server.engine.lineup.trial.counted().challenger.requests >= 1)

    def full():
        async def many(url):
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                await asyncio.gather(
                    *(client.post("/predict", json={"inputs": ["my card"] * 8}) for _ in range(6))
                )

        asyncio.run(many(server.url))

    with serving(shadow_limit=4) as (server, _):
        eventually(lambda: server.engine.lineup.trial is not None)
        full()  # eight copied items never fit into four places
        dropped = server.metrics.counter(
            "driftd_server_routed_requests_total", second, "shadow", "dropped"
        )
        eventually(lambda: dropped._value.get() == 6)


def test_a_swap_under_a_canary_fails_nobody(serving, text, publish, store, two, eventually):
    """Steps, promotion, rollback, off, one after the other, while requests come."""
    _, second = two
    stop, answers, failed = threading.Event(), [], []

    def keep_asking(url, name):
        with httpx.Client(base_url=url, timeout=20) as client:
            while not stop.is_set():
                response = client.post(
                    "/predict", json={"text": "my card"}, headers={"x-driftd-key": name}
                )
                (answers if response.status_code == 200 else failed).append(response.text)

    with serving() as (server, _):
        threads = [
            threading.Thread(target=keep_asking, args=(server.url, f"user-{i}")) for i in range(4)
        ]
        for thread in threads:
            thread.start()
        moves = [
            lambda: store.route(second, mode="shadow", **WHO),
            lambda: store.route(second, mode="canary", share=50, **WHO),
            lambda: store.route(second, mode="canary", share=100, **WHO),
            lambda: store.promote(second, **WHO),
            lambda: store.rollback(**WHO, withdraw=False),
            lambda: store.route(None, mode="off", **WHO),
        ]
        for move in moves:
            move()
            seen = len(answers)
            eventually(lambda n=seen: len(answers) >= n + 40)
        stop.set()
        for thread in threads:
            thread.join(20)
    assert failed == []
    assert any(second in answer for answer in answers)


def test_a_swap_leaves_no_challenger_behind(follower, store, two):
    """The engine holds what the lineup names, nothing else."""
    import gc
    import weakref

    alive = weakref.WeakSet()
    store.route(two[1], mode="canary", share=5, **WHO)
    assert follower.watcher.step()
    alive.add(follower.engine.lineup.trial.loaded.session)
    gc.disable()
    try:
        store.route(None, mode="off", **WHO)
        assert follower.watcher.step()
        assert len(alive) == 0
    finally:
        gc.enable()
