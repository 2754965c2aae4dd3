"""Labels on a topic of their own: early, late, never, twice, changed, and through a crash."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.config import Config, ConfigError, load_config
from daemon.dead_letters import open_dead_letters
from daemon.decode import Decoder, Records
from daemon.decode_labels import LabelDecoder
from daemon.delayed import QUIET_TURNS, open_waiting
from daemon.joining import JoinFull
from daemon.loop import Loop
from daemon.sources import Partition, Poll
from daemon.sources.source import Positions
from daemon.stored_checkpoint import StoredCheckpoints, open_checkpoints
from daemon.trainer import Trainer
from registry import ManifestDraft, RegistryConfig, open_registry

Row = dict[str, Any]
TRAINED: list[tuple[Path, ManifestDraft]] = []
START = 1.7e9
pytestmark = pytest.mark.timeout(600)  # the first trains a version


class Clock:
    """Time that only passes when a test says so."""

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class Topics:
    """Two topics in memory, as a source: what a test has put there is read, from the positions."""

    connected, ended, caught_up = True, False, True

    def __init__(self, config: Config, clock: Clock) -> None:
        features = config.model.features
        self.decoder = Decoder(config.fields, config.events, features, clock.time)
        settings = config.source.labels  # type: ignore[union-attr]
        self.label_decoder = LabelDecoder(
            config.fields, config.events, settings, self.decoder.known, clock.time
        )
        self.topics: dict[str, list[bytes]] = {"events": [], "labels": []}
        self.at = {"events": 0, "labels": 0}

    def start(self, positions: Positions) -> None:
        self.at = {topic: positions.get((topic, 0), 0) for topic in self.topics}

    def _read(self, topic: str, most: int) -> Records:
        start = self.at[topic]
        values = self.topics[topic][start : start + most]
        self.at[topic] += len(values)
        n = len(values)
        offsets = list(range(start, start + n))
        return Records(list(values), [topic] * n, [0] * n, offsets, [int(START * 1000)] * n)

    def poll(self, max_events: int, timeout: float) -> Poll:
        batch, refused = self.decoder.decode(self._read("events", max_events))
        labels, others = self.label_decoder.decode(self._read("labels", max_events))
        return Poll(batch, refused + others, self.positions(), labels)

    def hold(self) -> None:
        pass

    def positions(self) -> dict[Partition, int]:
        return {(topic, 0): at for topic, at in self.at.items()}

    def checkpointed(self, positions: Positions) -> None:
        pass

    def lag(self) -> int:
        return 0

    def lags(self) -> dict[Partition, int]:
        return {}

    def know(self, labels: Any) -> None:
        self.decoder.know(labels)

    def close(self) -> None:
        pass


def rows(start: int, stop: int) -> tuple[list[Row], list[Row]]:
    """Events without, and their labels by themselves."""
    events, labels = [], []
    for n in range(start, stop):
        a, b = np.random.default_rng(n).normal(size=2)
        events.append({"id": f"e{n}", "a": a, "b": b, "time": START + n / 100})
        truth = "yes" if a + 0.5 * b > 0 else "no"
        labels.append({"id": f"e{n}", "label": truth, "time": START + n / 100 + 5})
    return events, labels


class Daemon:
    """A loop on two topics, that can be killed and begun again on its last checkpoint."""

    def __init__(
        self,
        folder: Path,
        *,
        checkpoint: str = "folder",
        registry: RegistryConfig | None = None,
        **labels: Any,
    ) -> None:
        self.config = Config.model_validate(
            {
                "model": {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]},
                "source": {
                    "kind": "kafka",
                    "bootstrap_servers": "127.0.0.1:1",
                    "topic": "events",
                    "labels": {"topic": "labels", "time": "time", **labels},
                },
                "fields": {"id": "id", "time": "time"},
                "dead_letters": {"kind": "file", "path": str(folder / "dead.jsonl")},
                "bootstrap": {"warmup_events": 10**9 if TRAINED else 300},
                "policy": {"rungs": ["head"], "settle_events": 300, "online_head": False},
                "gate": {"size_ratio": 10.0, "parity_points": 10.0},
                "registry": registry or {"path": str(folder / "registry")},
                "checkpoint": {
                    "path": str(folder / "state"),
                    "store": checkpoint,
                    "every_events": 1_000_000,
                    "every_seconds": 1e9,
                },
            }
        )
        self.clock = Clock()
        self.topics = Topics(self.config, self.clock)
        self.loop = self._begin()

    def _begin(self) -> Loop:
        folder = self.config.checkpoint.path
        loop = Loop(
            self.config,
            open_registry(self.config.registry, create=True),
            self.topics,
            open_dead_letters(self.config),
            checkpoints=self.claimed(),
            trainer=Trainer(folder / "jobs", self.config.trainer),
            clock=self.clock,
            waiting=open_waiting(self.config),
        )
        loop.start()
        return loop

    def claimed(self) -> Any:
        """Its checkpoints, as at the start of its process."""
        found = open_checkpoints(self.config, open_registry(self.config.registry, create=True))
        if isinstance(found, StoredCheckpoints):
            found.claim("test")
        return found

    def put(self, topic: str, found: list[Row]) -> None:
        self.topics.topics[topic] += [json.dumps(row).encode() for row in found]

    def turn(self) -> None:
        while self.loop.step():
            pass

    def bootstrap(self) -> None:
        """The first version serves: trained on the labels that have come, once for all tests."""
        registry = self.loop.registry
        if TRAINED:
            folder, draft = TRAINED[0]
            version = registry.publish(folder, draft, actor="test").id
            registry.promote(version, actor="test", reason="as trained before")
            self.loop.step()
            assert self.loop.champion is not None
            return
        deadline = time.monotonic() + 500
        while self.loop.champion is None:
            assert time.monotonic() < deadline
            self.loop.step()
            time.sleep(0.02)  # the trainer has the core
        folder = Path(tempfile.mkdtemp(prefix="driftd-test-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for file in registry.path("v0001").iterdir():
            if file.name != "manifest.json":
                shutil.copy(file, folder / file.name)
        manifest = registry.version("v0001").manifest
        fields = {name: getattr(manifest, name) for name in ManifestDraft.model_fields}
        TRAINED.append((folder, ManifestDraft.model_validate(fields)))

    def kill(self) -> None:
        """As -9 does: nothing is closed, nothing is written."""
        self.loop.repair.close()
        assert self.loop.delayed is not None
        self.loop.delayed.close()
        self.loop = self._begin()

    def counts(self) -> Row:
        assert self.loop.delayed is not None
        return self.loop.delayed.status()

    def memory(self) -> dict[str, str]:
        names = self.loop.state.classes.names
        known = self.loop.state.memory.recent(100_000)
        assert len(set(known.ids)) == len(known)
        return {i: names[label] for i, label in zip(known.ids, known.labels, strict=True)}


def truth(labels: list[Row]) -> dict[str, str]:
    return {row["id"]: row["label"] for row in labels}


def test_labels_make_examples_of_the_events_that_wait(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 1000)
    daemon.put("events", events[:400])
    daemon.turn()
    assert daemon.counts()["pending"] == 400
    assert daemon.memory() == {}
    daemon.put("labels", labels[:400])
    daemon.turn()
    assert daemon.memory() == truth(labels[:400])
    daemon.bootstrap()
    daemon.put("events", events[400:])
    daemon.turn()
    assert daemon.counts()["pending"] == 600
    state = daemon.loop.state
    assert state.prequential.labelled == 0
    assert state.events == 1000
    daemon.put("labels", labels[400:][::-1])  # in another order
    daemon.turn()
    assert daemon.memory() == truth(labels)
    assert state.events == 1000  # labels are no events
    assert state.prequential.labelled == 600
    assert state.prequential.accuracy > 0.9
    assert state.records[state.champion or ""].labelled == 600
    assert state.watch.armed
    assert state.watch.gathered == 0
    counts = daemon.counts()
    assert counts["joined"] == 1000
    assert counts["pending"] == counts["held"] == counts["bytes"] == 0
    # What was remembered of an event is where it lay, not where its label lay.
    lineage = state.memory.recent(100_000).lineage()
    assert lineage == [{"topic": "events", "partition": 0, "start": 0, "end": 1000}]


def test_early_repeated_and_changed_labels(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 400)
    daemon.put("events", events[:300])
    daemon.put("labels", labels)  # 100 of them come before their events
    daemon.turn()
    assert daemon.counts()["held"] == 100
    daemon.put("events", events[:350])  # 300 of them for the second time
    daemon.turn()
    counts = daemon.counts()
    assert (counts["early"], counts["joined"], counts["held"]) == (50, 300, 50)
    assert daemon.loop.state.events == 350
    assert daemon.memory() == truth(labels[:350])
    daemon.bootstrap()
    daemon.put("labels", labels[:10])  # the same again
    right = {**labels[20], "label": "maybe", "time": START + 100}
    older = {**labels[21], "label": "maybe", "time": START - 100}
    daemon.put("labels", [right, older])
    daemon.turn()
    counts = daemon.counts()
    assert (counts["repeated"], counts["corrected"]) == (11, 1)
    assert daemon.memory() == truth(labels[:350]) | {"e20": "maybe"}
    assert daemon.loop.state.classes.names[-1] == "maybe"


def test_a_correction_mends_the_record_of_who_answered(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 500)
    daemon.put("events", events[:400])
    daemon.put("labels", labels[:400])
    daemon.turn()
    daemon.bootstrap()
    daemon.put("events", events[400:])
    daemon.put("labels", labels[400:])
    daemon.turn()
    record = daemon.loop.state.records["v0001"]
    assert record.labelled == 100
    right = record.right
    other = {"yes": "no", "no": "yes"}
    wrong = [{**x, "label": other[x["label"]], "time": START + 99} for x in labels[400:]]
    daemon.put("labels", wrong)
    daemon.turn()
    assert (record.labelled, record.right) == (100, 100 - right)
    assert daemon.memory() == truth(labels[:400]) | truth(wrong)


def test_what_waits_too_long_is_never_learned_but_a_late_label_counts(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, window_seconds=60)
    events, labels = rows(0, 600)
    daemon.put("events", events[:400])
    daemon.put("labels", labels[:400])
    daemon.turn()
    daemon.bootstrap()
    daemon.put("events", events[400:450])
    daemon.put("labels", [{"id": "nobody", "label": "yes", "time": START}])
    daemon.turn()
    assert (daemon.counts()["pending"], daemon.counts()["held"]) == (50, 1)
    daemon.clock.now += 59
    for _ in range(QUIET_TURNS + 1):
        daemon.clock.now += 0.001
        daemon.turn()
    assert daemon.counts()["never"] == 0
    daemon.clock.now += 61
    daemon.turn()
    counts = daemon.counts()
    assert (counts["never"], counts["pending"], counts["unmatched"]) == (50, 0, 1)
    (row,) = daemon.loop.registry.journal.rows(kinds=["labels-never"])
    assert row.fields["events"] == 50
    daemon.put("labels", labels[400:450])
    daemon.turn()
    assert daemon.counts()["late"] == 50
    assert daemon.loop.state.records["v0001"].labelled == 50
    assert daemon.loop.state.prequential.labelled == 0
    assert daemon.memory() == truth(labels[:400])
    daemon.put("labels", labels[400:450])
    daemon.turn()
    assert daemon.counts()["repeated"] == 50
    assert daemon.loop.state.records["v0001"].labelled == 50


def test_a_topic_that_is_behind_is_waited_for(tmp_path: Path) -> None:
    """A daemon that was away for longer than the window reads the labels first."""
    daemon = Daemon(tmp_path, window_seconds=60)
    events, labels = rows(0, 100)
    daemon.put("events", events)
    daemon.turn()
    daemon.topics.caught_up = False
    daemon.clock.now += 3600
    for _ in range(2 * QUIET_TURNS):
        daemon.turn()
    assert daemon.counts()["never"] == 0
    daemon.put("labels", labels)
    daemon.turn()
    assert daemon.counts()["joined"] == 100


def test_the_window_is_bounded_in_events_and_bytes(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, max_events=100, max_bytes=16 * 1024)
    events, labels = rows(0, 500)
    strangers = [{"id": f"s{n}", "label": "yes", "time": START} for n in range(300)]
    daemon.put("events", events)
    daemon.put("labels", strangers)
    for _ in range(30):
        daemon.turn()
        daemon.clock.now += 2
    counts = daemon.counts()
    assert counts["bytes"] <= 16 * 1024
    assert counts["pending"] <= 100
    assert counts["never"] == 500 - counts["pending"]
    assert (counts["held"], counts["unmatched"]) == (100, 200)
    assert daemon.loop.delayed is not None
    assert daemon.loop.delayed.waiting.remembered <= 100
    daemon.put("labels", labels)
    daemon.turn()
    # The newest are the ones that waited.
    assert list(daemon.memory()) == [f"e{n}" for n in range(500 - counts["pending"], 500)]


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment_learns_each_event_once(tmp_path: Path, seed: int) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 1200)
    random = np.random.default_rng(seed)
    order = random.permutation(1200)
    daemon.put("events", events[:400])
    daemon.put("labels", labels[:300])
    daemon.turn()
    daemon.bootstrap()
    daemon.loop.checkpoint()
    mixed = [labels[n] for n in sorted(order, key=lambda n: n + random.integers(-200, 200))]
    for start in range(400, 1200, 100):
        daemon.put("events", events[start : start + 100])
        daemon.put("labels", mixed[start - 400 : start - 300])
        daemon.turn()
        if random.random() < 0.5:
            daemon.loop.checkpoint()
        if random.random() < 0.5:
            daemon.kill()
    daemon.put("labels", mixed)
    daemon.turn()
    state, counts = daemon.loop.state, daemon.counts()
    assert state.events == 1200
    assert daemon.memory() == truth(labels)
    assert counts["joined"] + counts["early"] == 1200
    assert counts["pending"] == counts["held"] == 0
    # All but the 300 that were labelled before the first version served, whatever was killed.
    assert state.prequential.labelled == sum(r.labelled for r in state.records.values()) == 900


def test_a_full_disk_holds_reading_up_and_loses_nothing(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 400)
    delayed = daemon.loop.delayed
    assert delayed is not None
    database = delayed.waiting._db
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    daemon.put("events", events)
    daemon.put("labels", labels)
    for _ in range(3):
        daemon.loop.step()
    assert daemon.loop.state.events == 256  # one poll
    with pytest.raises(JoinFull):
        daemon.loop.checkpoint()
    assert "takes no more" in daemon.loop.health.why or daemon.loop.champion is None
    database.execute("PRAGMA max_page_count = 1000000")
    daemon.turn()
    daemon.turn()
    daemon.loop.checkpoint()
    assert daemon.memory() == truth(labels)


def test_other_columns_are_not_mixed_up(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    events, labels = rows(0, 50)
    daemon.put("events", events)
    daemon.turn()
    daemon.loop.checkpoint()
    model = daemon.config.model.model_copy(update={"lagged_labels": 2})
    daemon.config = daemon.config.model_copy(update={"model": model})
    daemon.kill()
    assert daemon.counts()["never"] == 50
    daemon.put("labels", labels)
    daemon.turn()
    assert daemon.counts()["late"] == 50
    assert daemon.memory() == {}


def test_the_settings_must_fit_together(tmp_path: Path) -> None:
    path = tmp_path / "driftd.yaml"
    path.write_text(
        "source: {kind: kafka, bootstrap_servers: 'x:1', topic: a, labels: {topic: a}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert "is needed to join events and labels" in str(caught.value)
    assert "must not be the topic of the events" in str(caught.value)
