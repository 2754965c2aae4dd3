"""For `bench serve`: versions to serve, the real server on one core, and load from the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bench._learn_data import embeddings, new_model, preprocess
from bench._serve_load import family
from bench.streams import texts
from deploy.config import ExportConfig
from deploy.patch import patch_head, patch_weights
from deploy.preprocess import TabularPreprocessor
from deploy.session import Head, Session
from learn.config import LearnConfig
from learn.head import fit_softmax
from registry import ManifestDraft, Registry, open_registry

SERVER_CORE, LOAD_CORE = 0, 1
START_SECONDS = 120.0
NAME = "driftd"
INFER = f"/v2/models/{NAME}/infer"


def on_core(core: int) -> Callable[[], None]:
    """What a child does first: keep to one core, and die with its parent."""
    from examples.demo.broker import die_with_parent

    die, cores = die_with_parent(), os.sched_getaffinity(0)

    def begin() -> None:
        if die is not None:
            die()
        if core in cores:
            os.sched_setaffinity(0, {core})

    return begin


@contextmanager
def keeping_to(core: int) -> Iterator[None]:
    """This process on one core for a while."""
    before = os.sched_getaffinity(0)
    if core in before:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it is, and its process."""

    address: str
    process: subprocess.Popen[bytes]

    def memory_mb(self) -> float:
        """What it holds in RAM now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if "VmRSS" in line)
        return int(kilobytes) / 1024

    def get(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The JSON that it answers. Raises OSError."""
        with urllib.request.urlopen(f"http://{self.address}{path}", body, timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def load(
        self, folder: Path, path: str, bodies: Sequence[bytes], seconds: float, **options: float
    ) -> dict[str, Any]:
        """See `bench._serve_load`."""
        return finished(self.loading(folder, path, bodies, seconds, **options))

    def loading(
        self, folder: Path, path: str, bodies: Sequence[bytes], seconds: float, **options: float
    ) -> subprocess.Popen[bytes]:
        """The same, begun."""
        return loading(
            self.address, folder, path, bodies, seconds, server=self.process.pid, **options
        )


def loading(
    address: str,
    folder: Path,
    path: str,
    bodies: Sequence[bytes],
    seconds: float,
    **options: float,
) -> subprocess.Popen[bytes]:
    """Load on a server, from the core for it."""
    file = folder / "bodies"
    file.write_bytes(b"\n".join(bodies))
    command = [sys.executable, "-m", "bench._serve_load", address, path, str(file), str(seconds)]
    for name, value in options.items():
        command += [f"--{name}", f"{value:.9g}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=on_core(LOAD_CORE))


def finished(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a load saw."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the load generator failed")
    found: dict[str, Any] = json.loads(out)
    return found


@contextmanager
def running(command: Sequence[str], log: Path, folder: Path | None = None) -> Iterator[Any]:
    """A server on its core, while this process keeps to the other; ended with all its children."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            cwd=folder,
            preexec_fn=on_core(SERVER_CORE),
        )
    try:
        with keeping_to(LOAD_CORE):
            yield process
    finally:
        started = family(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in started:  # some servers end without their children
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Server]:
    """The server as an operator starts it, on its core, over the registry in ``folder``."""
    from examples.demo.broker import free_port

    port = free_port()
    config = {
        "registry": {"path": str(folder / "registry")},
        "server": {"port": port, "name": NAME, "notice_seconds": 0, **settings},
        "log": {"level": "warning"},
    }
    (folder / "driftd.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "daemon.cli", "serve", "-c", str(folder / "driftd.yaml")]
    with running(command, folder / "server.log") as process:
        server = Server(f"127.0.0.1:{port}", process)
        ready(server.address, "/v2/health/ready", None, process)
        yield server


def ready(address: str, path: str, body: bytes | None, process: subprocess.Popen[bytes]) -> None:
    """Wait until it answers with 200."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            request = urllib.request.Request(
                f"http://{address}{path}", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"no server came up at {address}{path}")
        time.sleep(0.05)


# ------------------------------------------------------------------------------- versions


def promote(registry: Registry, version: str) -> None:
    """Let it serve, whatever it was before."""
    registry.promote(version, actor="bench", reason="bench", force=True)


def identity(folder: Path) -> list[bytes]:
    """A promoted version that gives its one number back; bodies of requests for it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = folder / "identity"
    made.mkdir(parents=True)
    column = np.array([(-1.0,), (1.0,)], [("x", "<f8")])
    TabularPreprocessor.fit(column, {"x": "numeric"}).save(made)
    weight, bias = np.array([[1, -1]], np.float32), np.zeros(2, np.float32)
    nodes = [
        helper.make_node("Identity", ["numeric"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "head.weight"], ["product"]),
        helper.make_node("Add", ["product", "head.bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    shapes = {
        "numeric": ["n", 1],
        "head.weight": [1, "k"],
        "head.bias": ["k"],
        "embedding": ["n", 1],
        "logits": ["n", "k"],
        "probabilities": ["n", "k"],
    }
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    head = [numpy_helper.from_array(weight, "head.weight")]
    head += [numpy_helper.from_array(bias, "head.bias")]
    graph = helper.make_graph(nodes, "identity", infos[:3], infos[3:], head)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=8),
        str(made / "model.int8.onnx"),
    )
    save_file({"weight": weight, "bias": bias}, made / "head.safetensors")
    (made / "model.json").write_text(json.dumps({"kind": "tabular", "labels": ["a", "b"]}))
    registry = open_registry(str(folder / "registry"), create=True)
    draft = ManifestDraft(strategy="none", rung="full", task="tabular", labels=["a", "b"])
    promote(registry, registry.publish(made, draft, actor="bench").id)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}
    wanted = [{"name": "embedding"}]
    return [json.dumps({"inputs": [tensor], "outputs": wanted}).encode()]


def folds(session: Session, count: int = 5) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of banking77's texts a head gets right that was fitted to the other folds.

    On the embeddings of the session, and on those of PyTorch in FP32.
    """
    read = [texts(f"banking77_{part}") for part in ("train", "test")]
    inputs = np.array([text for each, _ in read for text in each], object)
    names = [name for _, each in read for name in each]
    labels = sorted(set(names))
    y = np.array([labels.index(name) for name in names], np.int64)
    fold = np.random.default_rng(0).permutation(len(y)) % count
    found = []
    for embedded in (session.predict(inputs).embeddings, embeddings(inputs)):
        right = np.zeros(len(y), np.bool_)
        for k in range(count):
            rest, held = fold != k, fold == k
            head = fit_softmax(embedded[rest], y[rest], None, len(labels), LearnConfig().l2)
            right[held] = head.logits(embedded[held]).argmax(axis=1) == y[held]
        found.append(right)
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Text:
    """MiniLM for banking77: its graphs, each with a head of its own, its module, and test texts.

    head: the INT8 graph's.
    """

    folder: Path
    fp32: Path
    int8: Path
    module: Any
    labels: list[str]
    head: Head
    inputs: NDArray[np.object_]
    truth: NDArray[np.int64]

    @property
    def registry(self) -> Registry:
        """Where its versions are published."""
        return open_registry(str(self.folder / "registry"), create=True)

    @property
    def bodies(self) -> list[bytes]:
        """A request for each text."""
        return [json.dumps({"text": text}).encode() for text in self.inputs]

    def write(
        self, name: str, head: Head | None = None, weights: dict[str, Any] | None = None
    ) -> Path:
        """A version's folder with another head, or other weights too, as the trainer writes it."""
        head = head or self.head
        made = self.folder / name
        made.mkdir()
        save_file({"weight": head.weight, "bias": head.bias}, made / "head.safetensors")
        (made / "model.json").write_text(json.dumps({"kind": "text", "labels": self.labels}))
        first = self.folder / "registry" / "versions" / "v0001"
        for file in (self.folder / "base").iterdir():  # as the trainer links its parent's files
            published = first / file.name
            os.link(published if published.exists() else file, made / file.name)
        graph = made / "model.int8.onnx"
        if weights is None:
            patch_head(self.int8, head.weight, head.bias, graph)
        else:
            save_file(weights, made / "delta.safetensors")
            patch_weights(
                self.int8, {**weights, "head.weight": head.weight, "head.bias": head.bias}, graph
            )
        return made

    def publish(self, made: Path, registry: Registry) -> str:
        """Its number."""
        draft = ManifestDraft(strategy="bench", rung="head", task="text", labels=self.labels)
        return registry.publish(made, draft, actor="bench", given=True).id

    def other_head(self, seed: int) -> Head:
        """The head, moved a little."""
        random = np.random.default_rng(seed)
        moved = self.head.weight + 0.01 * random.normal(size=self.head.weight.shape)
        return Head(moved.astype(np.float32), self.head.bias)

    def merged_adapter(self, seed: int) -> dict[str, NDArray[np.float32]]:
        """All query and value weights, each with a LoRA product of rank 8 added."""
        random = np.random.default_rng(seed)
        found = {}
        for name, tensor in self.module.state_dict().items():
            if name.endswith(("query.weight", "value.weight")):
                weight = tensor.detach().cpu().numpy()
                a, b = (random.normal(size=(8, n)) for n in weight.shape)
                found[name] = (weight + 1e-3 * (a.T @ b)).astype(np.float32)
        return found


def text(folder: Path, quick: bool) -> Text:
    """MiniLM, exported and quantised, its head fitted to banking77; the first version promoted."""
    from deploy.export import export_onnx, quantize_int8

    folder.mkdir(parents=True, exist_ok=True)
    read, names = texts("banking77_train")
    unseen, truths = texts("banking77_test")
    n, m = (1500, 300) if quick else (len(read), len(unseen))
    labels = sorted(set(names))
    # In an order of their own, as the file has them by class.
    order = np.random.default_rng(0).permutation(len(read))[:n]
    later = np.random.default_rng(1).permutation(len(unseen))[:m]
    train = np.array([read[i] for i in order], object)
    y = np.array([labels.index(names[i]) for i in order], np.int64)
    l2 = LearnConfig().l2
    found = fit_softmax(embeddings(train), y, None, len(labels), l2)
    model = new_model(labels)
    model.set_head(found)
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export_onnx(model.module, preprocess().sample(2).feeds(), fp32)
    quantize_int8(fp32, int8)
    # As the trainer does: a head is fitted to the embeddings of the file that will serve.
    first = Head(found.weight, found.bias)
    served = Session(int8, preprocess(), labels, first).predict(train).embeddings
    found = fit_softmax(served, y, None, len(labels), l2)
    patch_head(int8, found.weight, found.bias, int8)
    base = folder / "base"
    base.mkdir()
    preprocess().save(base)
    state = model.module.encoder.state_dict().items()
    arrays = {name: np.ascontiguousarray(t.detach().cpu().numpy()) for name, t in state}
    save_file(arrays, base / "encoder.safetensors")
    made = Text(
        folder,
        fp32,
        int8,
        model.module,
        labels,
        Head(found.weight.astype(np.float32), found.bias.astype(np.float32)),
        np.array([unseen[i] for i in later], object),
        np.array([labels.index(truths[i]) for i in later], np.int64),
    )
    registry = made.registry
    promote(registry, made.publish(made.write("first"), registry))
    return made


def static(model: Text) -> Session:
    """The same model with static activations, calibrated on texts that are not the test's."""
    from deploy.export import calibration, quantize_int8

    config, out = ExportConfig(activations="static"), model.folder / "static.onnx"
    read, _ = texts("banking77_train")
    some = np.random.default_rng(2).permutation(len(read))[: config.calibration_events]
    batches = calibration(preprocess(), np.array([read[i] for i in some], object), config)
    quantize_int8(model.fp32, out, config, batches)
    return Session(out, preprocess(), model.labels, model.head)
