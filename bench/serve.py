"""The server on one core, load from another: peers, a bare session, swaps, updates, overload.

Parts: identity, text, swaps, updates, overload (``--only NAME``). The server is the command an
operator starts, pinned to core 0; clients keep their connections, on core 1. Peers are started
likewise, each from an environment of its own that pip makes, one after the other in the same run.
``--quick``: seconds instead of minutes; only those peers whose environment is there already. A
full run takes a quarter of an hour, and some minutes more where it makes the environments.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench._peer_env import Unavailable, interpreter, made
from bench._serve_ours import (
    INFER,
    NAME,
    SERVER_CORE,
    Server,
    Text,
    finished,
    folds,
    identity,
    keeping_to,
    promote,
    ready,
    running,
    serving,
    static,
    text,
)
from bench.report import Row, row
from deploy.session import Session

Bits = NDArray[np.bool_]

PEERS = {  # requirements, path, body
    "mlserver": (
        ["mlserver"],
        "/v2/models/identity/infer",
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}]}',
    ),
    "litserve": (["litserve"], "/predict", b'{"x": 0.5}'),
    "bentoml": (["bentoml"], "/predict", b'{"x": [0.5]}'),
    "kserve": (["kserve"], "/v1/models/identity:predict", b'{"instances": [0.5]}'),
}
SCRIPT = Path(__file__).with_name("_peers_serve.py")
TEXT_CLIENTS = 128
TOGETHER = 8  # texts in a request, where the cost of a request is to be told from a text's
PEER_SECONDS = 10.0
LOOK_SECONDS = 0.01  # between two looks whether the new version answers: a server nearly idle
SWAPS = 200
SWAP_SECONDS = 0.25  # from one swap answered to the next promotion


def rows(quick: bool) -> Iterator[Row]:
    """The rows of all parts."""
    for part in PARTS.values():
        yield from part(quick)


def _with_folder(part: Callable[[bool, Path], Iterator[Row]]) -> Callable[[bool], Iterator[Row]]:
    def run(quick: bool) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as name:
            yield from part(quick, Path(name))

    return run


def _failures(found: dict[str, Any]) -> int:
    return sum(n for outcome, n in found["outcomes"].items() if outcome != "200")


def _said(found: dict[str, Any]) -> str:
    failed = {k: n for k, n in found["outcomes"].items() if k != "200"}
    words = f"p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms"
    return f"{words}, {f'failed: {failed}' if failed else 'none failed'}; {_cores(found)}"


def _cores(found: dict[str, Any]) -> str:
    return f"server on {found['server_cores']:.0%} of a core, load {found['load_cores']:.0%}"


# ------------------------------------------------------------------------------- identity model


def identity_model(quick: bool, folder: Path) -> Iterator[Row]:
    """A model that costs nothing: what the server itself costs, beside four others."""
    seconds = 2.0 if quick else 20.0
    bodies = identity(folder)
    with serving(folder) as server:
        for clients in (16, 64):
            found = server.load(folder, INFER, bodies, seconds, clients=clients)
            cost = 1e6 * found["server_cores"] * found["seconds"] / max(1, found["good"])
            figure = f"identity: requests a second, {clients} clients"
            note = f"{_said(found)}; {cost:.0f} us of CPU a request"
            yield row(figure, found["per_second"], "1/s", ">= 8000", note)
        found = server.load(folder, INFER, bodies, seconds, clients=1)
        yield row("identity: p50 at one client", found["p50_ms"], "ms", "<= 0.5", _said(found))
    for library, (requirements, path, body) in PEERS.items():
        if quick and not made(library):
            yield Row(f"identity: {library}", None, note="no environment; a full run makes it")
            continue
        try:
            python = interpreter(library, requirements)
        except Unavailable as error:
            yield Row(f"identity: {library}", None, note=f"does not install here: {error}")
            continue
        yield from _peer(library, python, path, body, folder / library, min(seconds, PEER_SECONDS))


def _peer(
    library: str, python: Path, path: str, body: bytes, folder: Path, seconds: float
) -> Iterator[Row]:
    from examples.demo.broker import free_port

    folder.mkdir()
    port = free_port()
    command = [str(python), str(SCRIPT), library, str(port), str(folder)]
    asked = f"import importlib.metadata as m; print(m.version({library!r}))"
    version = subprocess.run([str(python), "-c", asked], capture_output=True, text=True).stdout
    try:
        with running(command, folder / "log", folder) as process:
            server = Server(f"127.0.0.1:{port}", process)
            ready(server.address, path, body, process)
            for clients in (16, 64):
                found = server.load(folder, path, [body], seconds, clients=clients)
                figure = f"identity: {library} {version.strip()}, {clients} clients"
                yield row(figure, found["per_second"], "1/s", note=_said(found))
            found = server.load(folder, path, [body], seconds, clients=1)
            yield row(f"identity: {library}, p50 at one client", found["p50_ms"], "ms")
    except (RuntimeError, OSError) as error:
        said = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
        yield Row(f"identity: {library}", None, note=f"does not run here: {error} {said}"[:200])


# ------------------------------------------------------------------------------- MiniLM


def text_model(quick: bool, folder: Path) -> Iterator[Row]:
    """MiniLM in INT8 on banking77: beside a bare session, and PyTorch in the order of arrival."""
    seconds = 4.0 if quick else 30.0
    model = text(folder, quick)
    session = Session(model.int8, _preprocess(), model.labels, model.head)
    original = session.on(model.fp32)
    size = session.size_bytes / original.size_bytes
    yield row("text: size of INT8 over FP32", size, target="<= 0.26")
    ours, theirs = (one.predict(model.inputs).logits.argmax(axis=1) == model.truth
                    for one in (session, original))  # fmt: skip
    yield _cost("text: accuracy that INT8 costs, test texts", ours, theirs)
    if not quick:  # so few of them differ that chance decides: all texts say it better
        yield _cost("text: accuracy that INT8 costs, five folds", *folds(session), "<= 0.1")

    encoded = session.preprocessor.encode(model.inputs)

    def alone(of: Session = session) -> float:
        with keeping_to(SERVER_CORE):
            return _rate(lambda: _sorted(of, encoded), len(model.inputs), seconds)

    with keeping_to(SERVER_CORE):
        torch_rate, torch_ms = _torch(model, seconds)
    fixed = static(model)
    said = fixed.predict(model.inputs).logits.argmax(axis=1) == model.truth
    yield _cost("text: accuracy that static activations cost, test texts", said, theirs)
    fixed_rate, before = alone(fixed), alone()
    yield row("text: static activations, rate over dynamic", fixed_rate / before, "x")
    with serving(folder) as server:
        found = server.load(folder, "/predict", model.bodies, seconds, clients=TEXT_CLIENTS)
        one = server.load(folder, "/predict", model.bodies, seconds, clients=1)
        clients = TEXT_CLIENTS // TOGETHER  # as many texts under way
        together = server.load(folder, "/predict", _together(model), seconds, clients=clients)
    after = alone()
    bare = (before + after) / 2
    note = f"batches of 32, no tokenising; {before:.0f} before and {after:.0f} after the server"
    yield row("text: bare session, sorted by length", bare, "1/s", note=note)
    yield row("text: PyTorch FP32, order of arrival", torch_rate, "1/s", note="batches of 32")
    note = f"{TEXT_CLIENTS} clients, {_said(found)}"
    yield row("text: server", found["per_second"], "1/s", note=note)
    share = 100 * found["per_second"] / bare
    yield row("text: server, of the bare session", share, "%", ">= 90", "tokenising and HTTP too")
    share = 100 * TOGETHER * together["per_second"] / bare
    note = f"the same texts by {clients} clients: a request's own cost is shared; {_said(together)}"
    figure = f"text: server, of the bare session, {TOGETHER} texts a request"
    yield row(figure, share, "%", note=note)
    yield row("text: server over PyTorch", found["per_second"] / torch_rate, "x", ">= 4")
    note = f"{one['p50_ms']:.2f} ms against {torch_ms:.2f} ms; the server's over HTTP"
    yield row("text: latency at one client, PyTorch over the server", torch_ms / one["p50_ms"],
              "x", ">= 6", note)  # fmt: skip


def _together(model: Text) -> list[bytes]:
    """Requests of several texts each."""
    ends = range(TOGETHER, len(model.inputs) + 1, TOGETHER)
    return [json.dumps({"inputs": list(model.inputs[n - TOGETHER : n])}).encode() for n in ends]


def _cost(figure: str, ours: Bits, theirs: Bits, target: str = "") -> Row:
    """Points of accuracy, of texts that INT8 and FP32 got right; a head was fitted to each."""
    said, of = (100 * float(each.mean()) for each in (ours, theirs))
    lost, won = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    note = f"{said:.2f} % against {of:.2f} %, {len(ours):,} texts: {lost} lost, {won} won"
    return row(figure, of - said, "points", target, note)


def _preprocess() -> Any:
    from bench._learn_data import preprocess

    return preprocess()


def _sorted(session: Session, encoded: Any) -> None:
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), 32):
        session.run(encoded.take(order[start : start + 32]))


def _rate(work: Callable[[], None], items: int, seconds: float) -> float:
    """Items a second, of rounds that take at least so long together; the median round."""
    work()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return items / float(np.median(taken))


def _torch(model: Text, seconds: float) -> tuple[float, float]:
    """Items a second in batches of 32 as they come, and the median milliseconds of one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    preprocess = _preprocess()
    feeds = [
        preprocess(model.inputs[start : start + 32]) for start in range(0, len(model.inputs), 32)
    ]
    inputs = [{k: torch.from_numpy(a) for k, a in one.items()} for one in feeds]
    singles = [
        {k: torch.from_numpy(a) for k, a in preprocess(model.inputs[i : i + 1]).items()}
        for i in range(min(200, len(model.inputs)))
    ]

    def run() -> None:
        for one in inputs:
            model.module(**one)

    with torch.inference_mode():
        rate = _rate(run, len(model.inputs), seconds)
        taken: list[float] = []
        for one in singles:
            begun = time.perf_counter()
            model.module(**one)
            taken.append(time.perf_counter() - begun)
    torch.set_num_threads(before)
    return rate, 1e3 * float(np.median(taken))


# ------------------------------------------------------------------------------- swaps


def swaps(quick: bool, folder: Path) -> Iterator[Row]:
    """Promotions one after the other under 64 clients, each a load of other weights."""
    times = 12 if quick else SWAPS
    model = text(folder, True)
    registry = model.registry
    versions = [registry.state().champion or ""]
    for seed in range(2):
        made = model.write(f"swap-{seed}", weights=model.merged_adapter(seed))
        versions.append(model.publish(made, registry))
    with serving(folder) as server:
        seconds = 5.0 if quick else 20.0
        before = server.load(folder, "/predict", model.bodies, seconds, clients=64)
        load = server.loading(folder, "/predict", model.bodies, 3600.0, clients=64)
        memory, taken = [], []
        for n in range(times):
            version = versions[(n + 1) % len(versions)]
            promote(registry, version)
            promoted = time.perf_counter()
            _until(server, version)
            taken.append(time.perf_counter() - promoted)
            time.sleep(SWAP_SECONDS)
            memory.append(server.memory_mb())
        load.terminate()  # it tells what it saw
        found = finished(load)
        after = server.load(folder, "/predict", model.bodies, seconds, clients=64)
    note = f"{found['good']:,} requests, 64 clients; {_said(found)}"
    yield row(f"swaps: failed requests over {times} swaps", _failures(found), "", "<= 0", note)
    calm = (before["p99_ms"] + after["p99_ms"]) / 2
    note = (
        f"{found['p99_ms']:.0f} ms; without {before['p99_ms']:.0f} ms before and "
        f"{after['p99_ms']:.0f} ms after"
    )
    yield row("swaps: p99 during swaps over p99 without", found["p99_ms"] / calm, "x", "<= 2", note)
    grown = 100 * (memory[-1] / memory[9] - 1)
    note = f"{memory[9]:.0f} MB after 10, {memory[-1]:.0f} MB after {times}"
    yield row("swaps: memory grown since the tenth swap", grown, "%", "<= 5", note)
    yield row("swaps: promoted to answered under load, p50", 1e3 * float(np.median(taken)), "ms")


def _until(server: Server, version: str) -> None:
    end = time.monotonic() + 60
    while server.get(f"/v2/models/{NAME}")["versions"][0] != version:
        if time.monotonic() > end:
            raise RuntimeError(f"the server does not serve {version}")
        time.sleep(0.005)


# ------------------------------------------------------------------------------- updates


def updates(quick: bool, folder: Path) -> Iterator[Row]:
    """From new weights in memory to the first answer with them, on an idle server."""
    times = 4 if quick else 30
    model = text(folder, True)
    registry = model.registry
    body = model.bodies[0]
    with serving(folder) as server:
        for kind, target in (("adapter", "<= 300"), ("head", "")):
            whole, moved = [], []
            for n in range(times):
                weights = model.merged_adapter(n) if kind == "adapter" else None
                head = model.other_head(n)
                begun = time.perf_counter()
                version = model.publish(model.write(f"{kind}-{n}", head, weights), registry)
                promote(registry, version)
                promoted = time.perf_counter()
                while server.get("/predict", body)["version"] != version:
                    time.sleep(LOOK_SECONDS)
                whole.append(1e3 * (time.perf_counter() - begun))
                moved.append(1e3 * (time.perf_counter() - promoted))
                time.sleep(0.3)
            note = f"{times} times, max {max(whole):.0f} ms; patched, published, promoted, loaded"
            figure = f"updates: {kind} trained to answering, p50"
            yield row(figure, float(np.median(whole)), "ms", target, note)
            note = f"{times} times, max {max(moved):.0f} ms; of it up to 20 ms until it is noticed"
            figure = f"updates: {kind} promoted to answering, p50"
            target = "<= 50" if kind == "head" else ""
            yield row(figure, float(np.median(moved)), "ms", target, note)


# ------------------------------------------------------------------------------- overload


def overload(quick: bool, folder: Path) -> Iterator[Row]:
    """Requests at twice the rate that the server can answer: what comes of those it answers."""
    seconds = 6.0 if quick else 40.0
    model = text(folder, True)
    with serving(folder) as server:
        most = server.load(folder, "/predict", model.bodies, seconds, clients=TEXT_CLIENTS)
        rate = 2 * most["per_second"]
        found = server.load(folder, "/predict", model.bodies, seconds, clients=2048, rate=rate)
        after = server.load(folder, "/predict", model.bodies, seconds / 2, clients=64)
    yield row("overload: most it answers", most["per_second"], "1/s", note=_said(most))
    share = 100 * found["per_second"] / most["per_second"]
    asked = found["asked_per_second"] / most["per_second"]
    yield row("overload: asked, over that", asked, "x", ">= 1.9", f"{found['outcomes']}")
    figure = "overload: goodput at twice that, of the most"
    yield row(figure, share, "%", ">= 90", _cores(found))
    note = f"p50 {found['p50_ms']:.0f} ms, longest {found['max_ms']:.0f} ms"
    yield row("overload: p99 of the answers", found["p99_ms"], "ms", "<= 10000", note)
    back = 100 * after["per_second"] / most["per_second"]
    yield row("overload: rate after it, 64 clients", back, "%", note=_said(after))


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "identity": _with_folder(identity_model),
    "text": _with_folder(text_model),
    "swaps": _with_folder(swaps),
    "updates": _with_folder(updates),
    "overload": _with_folder(overload),
}
