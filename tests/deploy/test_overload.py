"""More than the server can do, clients that are slow, and clients that are gone."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from deploy.batcher import Batcher
from deploy.config import BatchConfig
from deploy.errors import QueueFullError
from deploy.listening import bind

BODY = {"text": "my card"}


def head(path="/predict", **headers):
    lines = [f"POST {path} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines).replace("_", "-") + "\r\n\r\n").encode()


def answer(connection):
    """The status of the answer, and whether the server then closes."""
    data = connection.recv(10_000)
    status = int(data.split()[1]) if data else None
    connection.settimeout(5)
    while data:
        data = connection.recv(10_000)
    return status


@pytest.fixture
def busy(serving, text, publish, held_back, eventually):
    """A server with one worker, held back, and a full queue; gives it and the gate."""
    publish(text, promote=True)
    with (
        serving(workers=1, queue_limit=2, max_items=2) as (server, client),
        ThreadPoolExecutor(3) as pool,
    ):
        gate = held_back(server)
        asked = [pool.submit(client.post, "/predict", json=BODY)]
        assert gate.entered.wait(5)
        asked += [pool.submit(client.post, "/predict", json=BODY) for _ in range(2)]
        eventually(lambda: server.engine.queued == 2)
        yield server, client, gate
        gate.open()
        assert [each.result(10).status_code for each in asked] == [200] * 3


def test_a_full_queue_refuses_before_the_body_is_there(busy, raw_connection):
    server, client, _ = busy
    for path in ("/predict", "/v2/models/driftd/infer", "/v2/models/other/infer"):
        with raw_connection(server) as connection:
            connection.sendall(head(path, content_length=1_000_000))
            response = connection.recv(10_000)
            assert b" 429 " in response.split(b"\r\n")[0]
            assert b"retry-after: " in response
    assert client.get("/v2/health/ready").status_code == 200
    exposed = client.get("/metrics").text
    assert 'code="429",model="driftd",protocol="plain",version="v0001"} 1.0' in exposed
    assert 'code="429",model="driftd",protocol="v2",version="v0001"} 2.0' in exposed


def test_a_refused_connection_can_ask_again(busy, eventually):
    server, _, gate = busy
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/predict", json=BODY).status_code == 429
        gate.open()
        eventually(lambda: server.engine.queued == 0)
        assert client.post("/predict", json=BODY).status_code == 200


def test_the_body_of_a_refused_request_is_passed_over(busy, raw_connection, eventually):
    server, _, gate = busy
    body = json.dumps(BODY).encode()
    asking = head(content_length=len(body))
    with raw_connection(server) as connection:
        connection.sendall(asking)
        assert b" 429 " in connection.recv(10_000)
        connection.sendall(body[:3])
        connection.sendall(body[3:] + asking + body + asking + body)
        received = b""
        while received.count(b" 429 ") < 2 or not received.endswith(b"}"):
            received += connection.recv(10_000)
        gate.open()
        eventually(lambda: server.engine.queued == 0)
        connection.sendall(asking + body)
        assert b" 200 " in connection.recv(10_000)


def test_a_refused_client_that_wants_no_more_is_let_go(busy, raw_connection):
    server, _, _ = busy
    with raw_connection(server) as connection:
        connection.sendall(head(content_length=0, connection="close"))
        assert answer(connection) == 429


def test_who_may_not_ask_is_told_so_though_the_queue_is_full(
    serving, text, publish, held_back, eventually, tmp_path
):
    tokens = tmp_path / "tokens"
    tokens.write_text("shop infer shop-7c1f2e90d3b84a55\n")
    publish(text, promote=True)
    limits = {"workers": 1, "queue_limit": 1, "max_items": 1, "access": {"tokens": tokens}}
    with serving(**limits) as (server, client), ThreadPoolExecutor(2) as pool:
        gate = held_back(server)
        known = {"Authorization": "Bearer shop-7c1f2e90d3b84a55"}

        def ask(headers=None):
            return client.post("/predict", json=BODY, headers=headers).status_code

        asked = [pool.submit(ask, known)]
        assert gate.entered.wait(5)
        asked += [pool.submit(ask, known)]
        eventually(lambda: server.engine.queued == 1)
        assert (ask(), ask(known)) == (401, 429)
        gate.open()
        assert [each.result(10) for each in asked] == [200] * 2


def test_a_deadline_is_kept_or_said_no_to(serving, text, publish, held_back, eventually):
    publish(text, promote=True)
    with serving(workers=1) as (server, client), ThreadPoolExecutor(2) as pool:

        def ask(milliseconds):
            headers = {"X-Driftd-Deadline-Ms": str(milliseconds)}
            return client.post("/predict", json=BODY, headers=headers)

        assert ask(5000).status_code == 200
        assert ask(0).status_code == 504
        for wrong in ("-1", "1.5", "soon", "9" * 30):
            response = ask(wrong)
            assert response.status_code == 400
            assert "X-Driftd-Deadline-Ms must be" in response.json()["error"]
        gate = held_back(server)
        first = pool.submit(client.post, "/predict", json=BODY)
        assert gate.entered.wait(5)
        waiting = pool.submit(ask, 200)
        eventually(lambda: server.engine.queued == 1)
        threading.Event().wait(0.3)
        gate.open()
        assert first.result(10).status_code == 200
        late = waiting.result(10)
        assert late.status_code == 504
        assert "dropped after waiting" in late.json()["error"]
        assert gate.runs == 1


def test_a_deadline_that_the_queue_outlasts_is_refused_at_once():
    batcher = Batcher(
        workers=2, batch=BatchConfig(), queue_limit=100, deliver=lambda outcomes: None
    )
    batcher.admit(0.001)
    batcher._queue._size, batcher._item_seconds = 50, 0.01
    batcher.admit()
    batcher.admit(0.3)
    with pytest.raises(QueueFullError, match=r"take about 0.25 seconds, and this request has 0.2"):
        batcher.admit(0.2)
    batcher._queue._size = 100
    with pytest.raises(QueueFullError, match="100 items wait already"):
        batcher.admit()


def test_overload_answers_or_refuses_everybody(serving, text, publish):
    """Nothing is lost, nothing fails, and no work is done that nobody gets."""
    publish(text, promote=True)
    limits = {"workers": 1, "queue_limit": 8, "max_items": 4}
    with serving(**limits) as (server, client):
        before = ran(client)

        async def hammer(asking, found):
            for _ in range(15):
                response = await asking.post("/predict", json={"inputs": ["my card", "money"]})
                found[response.status_code] += 1
                if response.status_code == 429:
                    assert int(response.headers["retry-after"]) >= 1

        async def overload():
            found = Counter()
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as asking:
                await asyncio.gather(*(hammer(asking, found) for _ in range(32)))
            return found

        found = asyncio.run(overload())
        assert set(found) <= {200, 429}
        assert found.total() == 480
        assert found[200] > 0
        assert ran(client) - before == 2 * found[200]


def ran(client):
    """Items that the model ran."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("driftd_server_batch_items_sum"):
            return float(line.split()[-1])
    return 0.0


def test_slow_clients_are_given_up_and_stop_nobody(serving, text, publish, raw_connection):
    publish(text, promote=True)
    with serving(body_seconds=1) as (server, client), ExitStack() as opened:

        def connect(data):
            connection = opened.enter_context(raw_connection(server))
            connection.sendall(data)
            return connection

        slow_heads = [connect(b"POST /predict HTTP/1.1\r\nhost: x\r\nx-y") for _ in range(50)]
        slow_bodies = [connect(head(content_length=100) + b'{"te') for _ in range(50)]
        assert client.post("/predict", json=BODY).status_code == 200
        assert {answer(connection) for connection in slow_heads} == {400}
        for connection in slow_bodies:
            assert b" 408 " in connection.recv(10_000)
        assert client.post("/predict", json=BODY).status_code == 200


def test_a_head_in_pieces_is_fine_and_an_endless_one_is_not(serving, raw_connection):
    with serving(ready=False) as (server, _):
        with raw_connection(server) as connection:
            for piece in (b"GET /v2/health", b"/live HTTP/1.1\r\nho", b"st: x\r\n", b"\r\n"):
                connection.sendall(piece)
                threading.Event().wait(0.05)
            assert b"200 OK" in connection.recv(10_000)
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200 OK" in connection.recv(10_000)
        with raw_connection(server) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n")
            with pytest.raises(OSError):  # noqa: PT011
                for _ in range(2000):
                    connection.sendall(b"x" * 1000)
                answer(connection)
                raise ConnectionError


def test_a_silent_connection_is_closed(serving, raw_connection):
    with serving(ready=False, keepalive_seconds=1) as (server, client):
        with raw_connection(server) as connection:
            assert connection.recv(10) == b""
        # So is one that goes on with a body which nobody reads any more.
        with raw_connection(server) as connection:
            connection.sendall(head("/nothing", content_length=100) + b"{")
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(10_000)
            assert b" 404 " in received
            connection.sendall(b"x")
            assert connection.recv(10_000) == b""
        assert client.get("/v2/health/live").status_code == 200


def test_the_kernel_lets_go_of_the_dead():
    with bind("127.0.0.1", 0, 10) as listener:
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname(), timeout=5):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                timeout = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert timeout == 60_000


def test_a_client_that_resets_in_the_middle_does_no_harm(serving, text, publish, raw_connection):
    publish(text, promote=True)
    with serving() as (server, client):
        body = json.dumps({"text": "money"}).encode()
        for cut in (5, 60, len(head(content_length=len(body))) + 4, None):
            for _ in range(10):
                connection = raw_connection(server)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall((head(content_length=len(body)) + body)[:cut])
                connection.close()
        assert client.post("/predict", json=BODY).status_code == 200
        assert 'reason="internal"' not in client.get("/metrics").text
