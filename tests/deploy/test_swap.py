"""Swaps under load: not one request fails, and none is answered by a version that is gone."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import httpx
import pytest

import registry
from deploy.session import Session

SWAPS = 24


@pytest.fixture
def sessions(monkeypatch):
    """Counts the sessions that are alive, without help from the garbage collector."""
    alive = weakref.WeakSet()
    opened = Session.open

    def watched(*args, **kwargs):
        session = opened(*args, **kwargs)
        alive.add(session)
        return session

    made = Session.with_head

    def shared(*args):
        session = made(*args)
        alive.add(session)
        return session

    monkeypatch.setattr(Session, "open", watched)
    monkeypatch.setattr(Session, "with_head", shared)
    gc.collect()
    gc.disable()
    yield alive
    gc.enable()


@pytest.mark.parametrize("opened", ["each", "heads shared"])
def test_no_request_fails_while_versions_change(
    serving, text, publish, tmp_path, eventually, sessions, opened, monkeypatch
):
    if opened == "each":
        monkeypatch.setattr("deploy.watcher.same_but_head", lambda *_: False)
    versions = [publish(text, seed=seed) for seed in range(4)]
    store = registry.open_registry(str(tmp_path / "registry"))
    store.promote(versions[0], actor="test", reason="a test")
    stop = threading.Event()
    answers, failures = [], []

    async def one(client, text_input):
        while not stop.is_set():
            try:
                response = await client.post("/predict", json={"text": text_input})
            except httpx.HTTPError as error:
                failures.append(repr(error))
                continue
            if response.status_code == 200:
                answers.append(response.json()["version"])
            else:
                failures.append(response.text)
            await asyncio.sleep(0.002)

    async def load(url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            await asyncio.gather(*(one(client, str(each)) for each in text.inputs[:12]))

    with serving() as (server, _):
        clients = threading.Thread(target=lambda: asyncio.run(load(server.url)))
        clients.start()
        try:
            for swap in range(1, SWAPS + 1):
                if swap % 4 == 0:  # back to a version that is still warm
                    store.rollback(actor="test", reason="worse", withdraw=False)
                else:
                    at = store.state().champion
                    wanted = versions[(versions.index(at) + 1) % len(versions)]
                    store.promote(wanted, actor="test", reason="better")
                champion = store.state().champion
                eventually(lambda c=champion: server.engine.lineup.versions[0] == c)
                seen = len(answers)
                eventually(lambda n=seen: len(answers) >= n + 30)
                assert answers[-1] == champion
            eventually(lambda: len(sessions) == 2)
        finally:
            stop.set()
            clients.join(30)
        done = sum(
            server.metrics.counter("driftd_server_swaps_total", version, "done")._value.get()
            for version in versions
        )
    assert failures == []
    assert done == SWAPS + 1
    assert set(answers) == set(versions)
