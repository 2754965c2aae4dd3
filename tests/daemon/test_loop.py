"""The whole loop on a small table whose meaning turns over: with real processes and files."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from daemon.cli.app import run
from daemon.config import Config
from daemon.dead_letters import DeadLetterError
from daemon.events import EventBatch
from daemon.gate import Trial
from daemon.guard import Finding
from daemon.policy import Attempt, Incident
from daemon.policy_config import CanaryConfig
from daemon.reproduce import CannotReproduce, reproduce
from daemon.served import Opinion
from daemon.sources import open_source
from daemon.state import State
from registry import Counts, ManifestDraft, Stretch, Traffic, Withdrawn
from tests.daemon.loops import loop_of

TURN = 1500


BACK = 3200


@pytest.fixture
def stream(tmp_path):
    """2,600 rows; from `TURN` on the label means the opposite. Some lines are broken."""
    return write_stream(tmp_path, 2600)


def write_stream(tmp_path, rows, back=BACK):
    """Rows whose label means the opposite from `TURN` to ``back``; some lines are broken."""
    random = np.random.default_rng(3)
    lines = []
    for i in range(rows):
        x = random.normal(size=2)
        truth = bool(x[0] + 0.5 * x[1] > 0) != (TURN <= i < back)
        row = {"id": f"e{i}", "a": x[0], "b": x[1], "label": "yes" if truth else "no"}
        lines.append(json.dumps(row))
        if i % 500 == 7:
            lines.append('{"broken": ')
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def config(tmp_path, stream):
    return Config.model_validate(
        {
            "model": {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]},
            "source": {"kind": "file", "path": str(stream)},
            "fields": {"id": "id"},
            "dead_letters": {"kind": "file", "path": str(tmp_path / "dead.jsonl")},
            "bootstrap": {"warmup_events": 400},
            "policy": {"rungs": ["recall", "head"], "settle_events": 300, "cooldown_events": 200},
            # A table's model is so small that INT8 has nothing to shrink.
            "gate": {"size_ratio": 10.0, "parity_points": 10.0},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {
                "path": str(tmp_path / "state"),
                "every_events": 10_000,
                "every_seconds": 600,
            },
        }
    )


def test_drift_is_noticed_repaired_proven_and_promoted(config, tmp_path):
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    loop.close("the test is over")
    rows = list(loop.registry.journal.rows())
    kinds = [row.kind for row in rows]
    alarm = next(row for row in rows if row.kind == "alarm")
    assert TURN < alarm.fields["event"] < TURN + 300
    assert alarm.fields["drift"] == "concept"
    verdict = next(row for row in rows if row.kind == "verdict")
    assert verdict.fields["decision"] == "promote"
    assert loop.registry.state().champion != "v0001"
    assert kinds[0] == "started"
    assert kinds[-1] == "stopped"
    # Nothing lost, nothing twice, and the broken lines are where a person finds them.
    assert loop.state.events == 2600
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert [letter["reason"] for letter in letters] == ["invalid_json"] * 6
    lineage = loop.registry.version("v0001").manifest.lineage
    assert sum(r["end"] - r["start"] for r in lineage["trained_on"]) == lineage["examples"]
    exposition = loop.metrics.exposition().decode()
    assert 'driftd_promotions_total{model="model",rung="head"} 1.0' in exposition
    # What the repair is worth: the first version would be wrong about all since the turn.
    worth = loop.status()["baseline"]
    assert worth["version"] == "v0001"
    assert 100 < worth["events"] < 320
    assert worth["frozen"] + 0.2 < worth["champion"]
    assert 'driftd_baseline_accuracy{model="model",of="frozen"} 0.' in exposition
    again = loop_of(config)
    again.start()
    assert again.status()["baseline"] == worth
    again.close("the test is over")


def test_the_old_version_comes_back_with_its_regime(config, tmp_path):
    write_stream(tmp_path, 4000)
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    loop.close("the test is over")
    rows = list(loop.registry.journal.rows())
    # Versions share an encoder: they are compared on embeddings at hand, in no process of its own.
    recalled = [r for r in rows if r.kind == "recalled" and r.fields["event"] > BACK]
    assert recalled
    verdict = next(r for r in rows if r.kind == "verdict" and r.fields["rung"] == "recall")
    assert verdict.fields["decision"] == "promote"
    assert BACK < verdict.fields["event"] < BACK + 400
    trained = loop.registry.version(verdict.fields["version"]).manifest.lineage["trained_on"]
    assert max(r["end"] for r in trained) < TURN
    assert not [
        r
        for r in rows
        if r.kind == "refresh-started" and BACK < r.fields["event"] < verdict.fields["event"]
    ]


def test_an_alarm_is_explained_long_after(config, tmp_path, capsys):
    write_stream(tmp_path, 4600, back=3800)
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    told = [d["sentence"] for d in loop.status()["drift"]["distances"]]
    loop.close("the test is over")
    assert [line.split()[0] for line in told] == list(config.drift.detectors)
    place = ["--registry", str(tmp_path / "registry")]
    alarms = list(loop.registry.journal.rows(kinds=["alarm"]))

    assert run(["explain", str(alarms[0].seq), *place]) == 0
    shown = capsys.readouterr().out
    assert "concept: errors rose" in shown
    assert "raised by" in shown
    assert "class with more errors" in shown
    assert "event that shows it" in shown
    assert alarms[0].fields["examples"][0]["id"] in shown
    assert "incident-closed" in shown

    assert run(["explain", "--json", *place]) == 0
    last = json.loads(capsys.readouterr().out)
    assert last["seq"] == alarms[-1].seq
    assert last["diagnosis"]["errors"][0]["class"] in ("yes", "no")
    # The old regime came back: the alarm says which version was at home in it.
    assert last["diagnosis"]["recurrence"]["version"] == "v0001"

    assert run(["explain", "99999", *place]) == 3
    assert "no alarm 99999" in capsys.readouterr().err
    assert run(["explain", "--why-not", *place]) == 3
    assert "no daemon answers" in capsys.readouterr().err


def test_an_operators_move_counts_even_in_the_turn_of_the_daemons_own(config):
    loop = loop_of(config)
    loop.start()
    while loop.state.events < TURN or not loop.repair.trainer.running:
        loop.step()
    assert loop.state.incident.cause == "drift"
    while loop.repair.trainer.result() is None:
        time.sleep(0.02)
    versions = [version.id for version in loop.registry.versions()]
    other = next(v for v in versions if v != loop.champion.version)
    # Between two turns: in the next one the daemon publishes its own challenger first.
    loop.registry.promote(other, actor="an operator", reason="by hand", force=True)
    loop.repair.advance(loop.champion, paused=False, pinned=False)
    loop._generation = None
    loop.step()
    assert loop.champion.version == other
    assert loop.registry.state().champion_move.actor == "an operator"
    assert loop.state.incident is None or loop.state.incident.cause == "improvement"
    assert loop.state.probation is not None
    loop.close("the test is over")


def test_the_head_is_refitted_as_the_regime_grows(config):
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    loop.close("the test is over")
    rows = list(loop.registry.journal.rows())
    grown = [
        r.fields for r in rows if r.kind == "incident-opened" and r.fields["cause"] == "improvement"
    ]
    assert grown
    assert "when the model was last trained" in grown[0]["sentence"]
    # Rows met before the first version were embedded once, by the trainer, and are kept.
    found = loop.state.memory.recent(10_000, training=True).embeddings
    assert np.isfinite(found).all()


def test_drift_comes_before_an_improvement(config):
    loop = loop_of(config)
    loop.start()
    while not [row for row in loop.registry.journal.rows() if row.kind == "alarm"]:
        loop.step()
    told = [row for row in loop.registry.journal.rows() if row.kind.startswith("incident-")]
    assert [(row.kind, row.fields["cause"]) for row in told[2:]] == [
        ("incident-opened", "improvement"),
        ("incident-closed", "improvement"),
        ("incident-opened", "drift"),
    ]
    assert told[3].fields["outcome"] == "superseded"
    assert loop.state.incident.cause == "drift"
    assert loop.state.trial is None
    loop.close("the test is over")


def test_one_improvement_at_a_time(config):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None or loop.state.incident:
        loop.step()
    # Grounds for all three at once: a class to be learned, a better online head, a grown regime.
    known = len(loop.champion.labels)
    loop.repair._labels = lambda champion: [*champion.labels, "maybe"]
    loop.state.classes.add("maybe")
    right = np.ones(500, dtype=bool)
    loop.state.online_test.observe(right, ~right)
    loop.state.rest_until = loop.state.learned_event = 0
    began = loop.state.incidents
    loop.repair._propose(loop.champion)
    assert len(loop.state.classes) == known + 1
    assert loop.state.incidents == began + 1
    assert loop.state.incident.sentence == "enough examples of 'maybe' to learn it"
    loop.state.incident = None
    loop.repair._propose(loop.champion)
    assert "online head is better" in loop.state.incident.sentence
    # The third keeps its grounds for when its turn comes.
    assert loop.state.learned_event == 0
    loop.close("the test is over")


def test_a_restart_goes_on_where_the_checkpoint_was_taken(config):
    first = loop_of(config)
    first.start()
    while first.state.events < 1000:
        first.step()
    first.checkpoint()
    at, right = first.state.events, first.state.prequential.right
    # No orderly end: the process is gone. What it read after the checkpoint is read again.
    first.step()
    first.source.close()
    second = loop_of(config)
    second.start()
    assert second.state.events == at
    assert second.state.prequential.right == right
    assert second.champion.version == "v0001"
    second.run(threading.Event())
    second.close("the test is over")
    assert second.state.events == 2600
    assert second.registry.state().champion != "v0001"


def test_a_batch_that_failed_half_way_is_not_half_counted_after_the_restart(config, monkeypatch):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None or loop.state.events < 900:
        loop.step()
    loop.checkpoint()
    at, labelled = loop.state.events, loop.state.prequential.labelled
    monkeypatch.setattr(loop.state.watch, "observe", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run(threading.Event())
    assert loop.state.prequential.labelled > labelled
    loop.close("ZeroDivisionError")
    again = loop_of(config)
    again.start()
    assert (again.state.events, again.state.prequential.labelled) == (at, labelled)
    again.run(threading.Event())
    assert again.state.events == 2600
    again.close("the test is over")


class JumpingClock:
    """Set by hand, days back and forth; what measures durations goes on evenly."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self):
        self.jump = 0.0

    def time(self):
        return time.time() + self.jump


def test_a_clock_that_jumps_loses_no_event_and_stops_no_repair(config):
    source = open_source(config)
    clock = JumpingClock()
    loop = loop_of(config, source=source, clock=clock)
    loop.start()
    jumps = iter([1e7, -1e7, 3e8, -3e8] * 10_000)
    while not (source.ended and not loop.busy):
        clock.jump = next(jumps)
        loop.step()
    loop.close("the test is over")
    assert loop.state.events == 2600
    assert loop.registry.state().champion != "v0001"


def test_operators_are_obeyed(config):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None:
        loop.step()
    who = {"actor": "test", "reason": "trying"}
    loop.registry.pause(**who)
    loop.step()
    assert loop.paused
    assert loop.status()["state"] == "paused"
    known = loop.state.memory.labelled
    loop.step()
    assert loop.state.memory.labelled == known
    loop.registry.resume(**who)
    loop.registry.request("refresh", {"rung": "head"}, **who)
    loop.step()
    assert loop.state.incident.cause == "operator"
    assert loop.registry.requests() == []
    loop.close("the test is over")


def test_a_poisoned_stretch_is_forgotten_for_good(config):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None or loop.state.incident or loop.state.events < 700:
        loop.step()
    memory = loop.state.memory
    kept = memory.recent(10_000)
    topic, start, end = str(kept.topics[0]), int(kept.offsets[100]), int(kept.offsets[200])
    stretch = {"topic": topic, "partition": 0, "start": start, "end": end}
    # v0001 learned from it, and so did whatever was made from v0001.
    assert loop.registry.learned_from("v0001", [Stretch(**stretch)])
    held = len(loop.registry.versions())
    loop.registry.request("refresh", {"without": [stretch]}, actor="test", reason="poisoned")
    while len(loop.registry.versions()) == held:
        loop.step()
    rows = {row.kind: row.fields for row in loop.registry.journal.rows()}
    assert rows["excluded"]["forgotten"] == 100
    assert rows["refresh-started"]["rung"] == "head"
    made = loop.registry.versions()[-1].manifest
    assert made.parent is None
    assert made.lineage["excluded"] == [stretch]
    assert made.lineage["examples"] > 200
    assert not loop.registry.learned_from(made.version, [Stretch(**stretch)])
    # A restart remembers it, and an old event that is read again is not taken in.
    loop.checkpoint()
    loop.close("the test is over")
    again = loop_of(config)
    again.start()
    assert again.state.memory.excluded == ((topic, 0, start, end),)
    before = len(again.state.memory)
    again.state.memory.add(kept.take(np.arange(100, 200)), again.champion.encoder)
    assert len(again.state.memory) == before
    again.close("the test is over")


def test_what_an_operator_took_back_is_neither_recalled_nor_promoted_again(config):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None or loop.state.events < 600:
        loop.step()
    bad = loop.registry.version("v0001")
    folder = loop.registry.path("v0001")
    # The same files under another number: as a second training on the same events would give.
    source = config.checkpoint.path / "again"
    source.mkdir()
    for name in bad.manifest.files:
        (source / name).write_bytes((folder / name).read_bytes())
    draft = ManifestDraft(**bad.manifest.model_dump(include=set(ManifestDraft.model_fields)))
    again = loop.registry.publish(source, draft, actor="test").id
    (source / "note").write_text("another")
    other = draft.model_copy(update={"lineage": {}, "parent": None})
    good = loop.registry.publish(source, other, actor="test").id
    loop.registry.promote(good, actor="test", reason="a start")
    loop.registry.promote("v0001", actor="test", reason="a mistake")
    loop.registry.rollback(actor="test", reason="poisoned")
    loop.step()
    assert loop.champion.version == good
    assert loop.registry.taken_back(again) == "v0001"
    assert loop.repair._archived(loop.champion) == []
    with pytest.raises(Withdrawn, match="the same as, v0001"):
        loop.registry.promote(again, actor="driftd", reason="looks better")
    loop.close("the test is over")


def test_reading_pauses_while_dead_letters_cannot_be_delivered(config, monkeypatch):
    loop = loop_of(config)
    loop.start()
    letters = loop.dead_letters

    def away(timeout=0.0):
        raise DeadLetterError("the broker is away")

    monkeypatch.setattr(type(letters), "full", property(lambda self: True))
    monkeypatch.setattr(letters, "flush", away)
    assert loop.step() == 0
    assert loop.state.events == 0
    monkeypatch.undo()
    assert loop.step() > 0
    loop.close("the test is over")


def test_a_version_is_made_again_from_its_lineage_while_its_events_are_kept(
    config, tmp_path, capsys
):
    memory = config.memory.model_copy(update={"recent": 1500, "replay": 0})
    learn = config.learn.model_copy(update={"replay": 0})
    config = config.model_copy(update={"memory": memory, "learn": learn})
    loop = loop_of(config)
    loop.start()
    loop.run(threading.Event())
    loop.close("the test is over")
    registry = loop.registry
    first, *_, last = (v.id for v in registry.versions() if v.manifest.strategy == "head")
    found = reproduce(config, registry, last)
    assert found.reproduced == pytest.approx(found.recorded, abs=0.01)
    assert found.examples == registry.version(last).manifest.lineage["examples"]
    assert found.code == []
    # The first regime's events have left so small a memory.
    with pytest.raises(CannotReproduce, match=r"no longer in memory: .*/0 \d+-\d+"):
        reproduce(config, registry, first)
    written = tmp_path / "driftd.yaml"
    written.write_text(config.model_dump_json(exclude_none=True))
    assert run(["refresh", "--reproduce", first, "-c", str(written)]) == 1
    assert "no longer in memory" in capsys.readouterr().err
    assert run(["refresh", "--reproduce", first, "--rung", "head", "-c", str(written)]) == 2


def batch_of(loop, numbers, labels):
    """Events of the table by number, all alike but for their ids, with labels or None."""
    n = len(numbers)
    inputs = np.zeros(n, dtype=[("a", "<f8"), ("b", "<f8")])
    inputs["a"] = 2.0
    texts = np.empty(n, dtype=object)
    texts[:] = labels
    return EventBatch(
        ids=np.array([f"late{i}" for i in numbers], dtype=object),
        times=np.full(n, time.time()),
        inputs=inputs,
        labels=texts,
        topics=np.array(["t"] * n, dtype=object),
        partitions=np.zeros(n, dtype=np.int32),
        offsets=np.array(numbers, dtype=np.int64),
    )


class AlwaysNo:
    """A yardstick that answers "no", which is right below."""

    def __init__(self, number):
        self.number = number

    def predict(self, inputs, embeddings, encoder):
        return Opinion(np.full(len(inputs), self.number), np.ones(len(inputs), np.float32))


def twin_of(loop, version, tmp_path):
    """The same model again, published under a new name."""
    folder = tmp_path / "twin"
    folder.mkdir()
    for file in loop.registry.path(version).iterdir():
        if file.name != "manifest.json":
            (folder / file.name).write_bytes(file.read_bytes())
    manifest = loop.registry.version(version).manifest
    draft = ManifestDraft.model_validate(
        {name: getattr(manifest, name) for name in ManifestDraft.model_fields}
    )
    return loop.registry.publish(folder, draft, actor="test").id


def test_a_late_label_counts_for_the_version_that_answered(config, tmp_path):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None:
        loop.step()
    first = loop.champion.version
    none = [None] * 60
    loop.take_in(batch_of(loop, range(60), none))
    assert len(loop.state.awaiting) == 60

    # The same model again, under a new name: on probation against the first.
    twin = twin_of(loop, first, tmp_path)
    loop.registry.promote(twin, actor="test", reason="a twin")
    loop.follow()
    assert loop.state.probation.previous == first
    loop.repair.yardstick = AlwaysNo(loop.state.classes.add("no"))

    # All that the first version answered was wrong, as it now turns out.
    loop.take_in(batch_of(loop, range(60), ["no"] * 60))
    record = loop.state.records
    assert (record[first].labelled, record[first].right) == (60, 0)
    assert loop.state.probation.test.events == 0
    assert loop.state.prequential.labelled == 0
    assert not loop.repair._judge_probation(loop.champion)

    # And now what the twin answered: it is taken back within the batch that shows it.
    loop.take_in(batch_of(loop, range(100, 160), none))
    restored = State(config)
    loop.checkpoint()
    restored.restore(loop.checkpoints.load())
    assert len(restored.awaiting) == 60
    assert restored.records == record
    loop.take_in(batch_of(loop, range(100, 160), ["no"] * 60))
    assert (record[twin].labelled, record[twin].right) == (60, 0)
    loop.repair.advance(loop.champion, paused=False, pinned=False)
    loop.follow()
    assert loop.champion.version == first
    late = 'driftd_late_labels_total{answered="%s",model="model"} 60.0'
    exposition = loop.metrics.exposition().decode()
    assert late % "champion" in exposition
    assert late % "earlier" in exposition
    loop.close("the test is over")


def test_an_operator_decides_about_labels_that_are_held(config):
    loop = loop_of(config)
    loop.start()
    while loop.champion is None:
        loop.step()
    finding = Finding("labeller", "dan", "always wrong")
    for number, action in ((1, "release"), (2, "drop")):
        case = loop.state.quarantine.open(finding, loop.state.events, loop.champion.encoder)
        held = loop.state.memory.take_out(loop.state.memory.recent(20).ids)
        case.hold(held, 100)
        known = loop.state.memory.labelled
        body = {"action": action, "case": f"q000{number}"}
        loop.registry.request("quarantine", body, actor="test", reason="looked at")
        assert loop.status()["quarantine"][0]["held"] == 20
        loop._serve_requests()
        assert loop.state.quarantine.cases == {}
        assert loop.registry.requests() == []
        assert loop.state.memory.labelled - known == (20 if action == "release" else 0)
    kinds = [row.kind for row in loop.registry.journal.rows()]
    assert [kind for kind in kinds if kind.startswith("quarantine-")] == [
        "quarantine-released",
        "quarantine-dropped",
    ]
    loop.close("the test is over")


def test_what_passed_the_gate_climbs_a_canary_and_is_promoted_after_it(config, tmp_path):
    gate = config.gate.model_copy(update={"canary": CanaryConfig(steps=(10, 50))})
    loop = loop_of(config.model_copy(update={"gate": gate}))
    loop.start()
    while loop.champion is None:
        loop.step()
    first, registry = loop.champion.version, loop.registry
    twin = twin_of(loop, first, tmp_path)
    now = loop.state.events
    loop.state.incident = Incident(
        id="i0009", cause="operator", kind="request", opened_event=now, onset_event=now,
        since_event=now, reference_accuracy=1.0, only="head", attempts=[Attempt("head", now)],
    )  # fmt: skip
    loop.repair._begin_trial(twin, "head", loop.champion)
    loop.state.trial.test.observe(np.ones(60, bool), np.zeros(60, bool))

    def turn():
        loop.repair.advance(loop.champion, paused=False, pinned=False)
        loop.follow()

    def report(errors):
        counts = Counts(3000, errors, 0), Counts(27_000, 0, 0)
        registry.report("server", Traffic(registry.routing().generation, *counts))

    turn()
    assert (registry.routing().challenger, registry.routing().share) == (twin, 10)
    assert loop.status()["state"] == "canary"
    turn()  # nothing is known of it yet
    assert registry.routing().share == 10
    report(errors=0)
    turn()
    assert registry.routing().share == 50

    # A restart from the checkpoint: the step begins anew, under a routing of its own.
    loop.checkpoint()
    before = registry.routing().generation
    again = loop_of(loop.config)
    again.start()
    assert again.state.canary.share == registry.routing().share == 50
    assert again.state.canary.generation == registry.routing().generation > before
    again.source.close()
    loop.state.canary.generation = registry.routing().generation

    report(errors=0)
    turn()
    assert loop.champion.version == twin
    assert registry.routing().mode == "off"
    assert loop.state.canary is None
    kinds = [row.kind for row in registry.journal.rows() if row.kind.startswith("canary")]
    assert kinds == ["canary-step", "canary-step", "canary-passed"]
    assert "canary" in [found["name"] for found in registry.evidence(twin)]
    loop.close("the test is over")


def test_a_canary_that_fails_requests_goes_back(config, tmp_path):
    gate = config.gate.model_copy(update={"canary": CanaryConfig(steps=(10, 50))})
    loop = loop_of(config.model_copy(update={"gate": gate}))
    loop.start()
    while loop.champion is None:
        loop.step()
    first, registry = loop.champion.version, loop.registry
    twin = twin_of(loop, first, tmp_path)
    loop.repair.request("head", "a try")
    loop.state.incident.attempts.append(Attempt("head", loop.state.events))
    loop.repair._begin_trial(twin, "head", loop.champion)
    loop.state.trial.test.observe(np.ones(60, bool), np.zeros(60, bool))
    loop.repair.advance(loop.champion, paused=False, pinned=False)
    counts = Counts(300, 90, 0), Counts(2700, 0, 0)
    registry.report("server", Traffic(registry.routing().generation, *counts))
    loop.repair.advance(loop.champion, paused=False, pinned=False)
    loop.follow()
    assert loop.champion.version == first
    assert registry.routing().mode == "off"
    assert loop.state.trial is None
    assert twin in loop.state.failed
    back = next(iter(registry.journal.rows(kinds=("canary-back",))))
    assert "errors" in back.fields["reason"]
    loop.close("the test is over")


def test_a_champion_that_is_back_knows_what_was_normal_for_it(config, tmp_path):
    loop = loop_of(config)
    loop.start()
    while not loop.state.watch.armed:
        loop.step()
    first, normal = loop.champion.version, loop.state.watch.reference_accuracy
    twin = twin_of(loop, first, tmp_path)
    loop.registry.promote(twin, actor="test", reason="a try")
    loop.follow()
    assert not loop.state.watch.armed
    loop.checkpoint()
    restored = State(config)
    restored.restore(loop.checkpoints.load())
    assert restored.former[0] == first
    assert len(restored.former[1]) == len(loop.state.former[1])
    loop.registry.rollback(actor="test", reason="no good", withdraw=False)
    loop.follow()
    assert loop.champion.version == first
    assert loop.state.watch.armed
    assert loop.state.watch.reference_accuracy == normal
    loop.close("the test is over")


def test_what_no_rung_repaired_is_still_owed_at_the_next_alarm(config, monkeypatch):
    gone = {"rungs": ("recall",), "online_head": False, "patience_events": 0}
    policy = config.policy.model_copy(update=gone)
    loop = loop_of(config.model_copy(update={"policy": policy}))
    alarm, seen = loop.repair.alarm, []
    monkeypatch.setattr(loop.repair, "alarm", lambda d, o, e: (seen.append((d, o)), alarm(d, o, e)))
    loop.start()
    loop.run(threading.Event())
    closed = loop.registry.journal.rows(kinds=("incident-closed",))
    (lost,) = [row.fields for row in closed if row.fields["cause"] == "drift"]
    assert lost["outcome"] == "unrepaired"
    assert loop.state.owed == pytest.approx(lost["reference_accuracy"], abs=1e-4)
    assert loop.state.watch.reference_accuracy < loop.state.owed
    loop.checkpoint()
    restored = State(config)
    restored.restore(loop.checkpoints.load())
    assert restored.owed == loop.state.owed
    alarm(*seen[0])
    assert loop.state.incident.reference_accuracy == loop.state.owed
    loop.repair._close("repaired", "a try")
    assert loop.state.owed == 0.0
    loop.close("the test is over")


def under_repair(config):
    """A loop whose champion has answered events, and a diagnosis of a drift."""
    loop = loop_of(config)
    loop.start()
    while loop.champion is None or loop.state.events < 900:
        loop.step()
    state = loop.state
    state.incident, state.events = None, 10_000
    diagnosis = SimpleNamespace(
        kind="covariate",
        severity=0.5,
        sentence=lambda names: "a drift",
        as_dict=dict,
    )
    return loop, diagnosis


def answer(loop, events, accuracy):
    """So many more labelled events, of which the champion has that share right."""
    numbers = np.arange(loop.state.events, loop.state.events + events)
    # As evenly as can be.
    outcomes = np.diff(np.floor(accuracy * np.arange(events + 1))) > 0
    loop.state.prequential.observe(numbers, outcomes)
    loop.state.events += events


def test_a_drift_on_top_of_a_drift_is_an_incident_of_its_own(config):
    loop, diagnosis = under_repair(config)
    loop.repair.alarm(diagnosis, loop.state.events - 100)
    first = loop.state.incident
    first.since_event = loop.state.events  # what was promoted repaired the most of it
    answer(loop, 400, 0.9)
    answer(loop, 100, 0.8)
    loop.repair._notice_another()
    assert loop.state.incident is first  # that may be chance
    answer(loop, 100, 0.0)
    loop.repair._notice_another()
    second = loop.state.incident
    assert second is not first
    assert second.onset_event == pytest.approx(loop.state.events - 100, abs=20)
    assert second.reference_accuracy >= first.reference_accuracy
    closed = list(loop.registry.journal.rows(kinds=("incident-closed",)))[-1]
    assert closed.fields["outcome"] == "superseded"
    assert "accuracy fell again under repair" in closed.fields["reason"]
    loop.close("the test is over")


@pytest.mark.parametrize(("accuracy", "ends"), [(0.3, True), (0.95, False)])
def test_a_trial_gives_way_once_its_challenger_is_outgrown(config, accuracy, ends):
    loop, diagnosis = under_repair(config)
    loop.repair.alarm(diagnosis, loop.state.events - 100)
    state, incident = loop.state, loop.state.incident
    incident.reference_accuracy = 0.95
    incident.since_event = state.events
    incident.attempts.append(Attempt("head", incident.onset_event + 100, "trial", "v0001"))
    state.trial = Trial("v0001", "head", config.gate, state.classes.names)
    answer(loop, 90, accuracy)
    loop.repair._replace_outgrown()
    assert state.trial is not None  # not twice the events yet
    answer(loop, 30, accuracy)
    loop.repair._replace_outgrown()
    assert (state.trial is None) == ends
    assert (incident.attempts[-1].outcome == "outgrown") == ends
    loop.close("the test is over")


def test_a_proven_loss_is_not_left_to_cool_down(config):
    loop, _ = under_repair(config)
    reference = loop.state.watch.reference_accuracy
    loop.state.owed = 0.95 if np.isnan(reference) else 0.0
    answer(loop, 100, 0.93)
    assert not loop.repair.losing
    answer(loop, 100, 0.4)
    assert loop.repair.losing
    loop.close("the test is over")
