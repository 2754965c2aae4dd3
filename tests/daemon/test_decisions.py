"""Evidence, gate and policy: what is decided, on what, and that it holds its promises."""

from __future__ import annotations

import numpy as np
import pytest

from daemon.checkpoint import CheckpointError, CheckpointStore
from daemon.evidence import PairedTest
from daemon.gate import Trial, artefact_checks
from daemon.policy import Attempt, Incident, Situation, choose
from daemon.policy_config import GateConfig, PolicyConfig
from daemon.prequential import Prequential


def test_an_equal_challenger_is_rarely_called_better_however_often_one_looks():
    random = np.random.default_rng(5)
    fooled = 0
    for _ in range(300):
        test = PairedTest(0.05)
        for _ in range(60):
            test.observe(random.random(16) < 0.8, random.random(16) < 0.8)
            if test.verdict == "better":
                fooled += 1
                break
    # 5 % of 300 is 15; Ville's bound is loose here, so 15 is already generous.
    assert fooled <= 15


def test_a_better_challenger_is_found():
    random = np.random.default_rng(6)
    test = PairedTest(0.05)
    while test.verdict == "undecided" and test.events < 3000:
        test.observe(random.random(16) < 0.9, random.random(16) < 0.8)
    assert test.verdict == "better"
    assert test.events < 1500


def trial(**settings):
    return Trial("v0002", "head", GateConfig(**settings), ["a", "b"])


def test_the_gate_wants_events_before_it_promotes():
    gate = trial(min_events=40)
    truth = np.zeros(20, dtype=np.int64)
    gate.observe(truth, truth, truth + 1)
    assert gate.verdict().decision == "undecided"
    gate.observe(truth, truth, truth + 1)
    assert gate.verdict().decision == "promote"


def test_the_gate_rejects_the_worse_and_the_undecided_at_the_deadline():
    truth = np.zeros(60, dtype=np.int64)
    worse = trial()
    worse.observe(truth, truth + 1, truth)
    assert worse.verdict().decision == "reject"
    late = trial(min_events=50, max_events=60)
    late.observe(truth, truth, truth)
    verdict = late.verdict()
    assert verdict.decision == "reject"
    assert "deadline" in verdict.reason


def test_no_class_is_given_up_for_the_average():
    gate = trial(negative_flips=1.0)
    gate.observe(np.zeros(300, np.int64), np.zeros(300, np.int64), np.ones(300, np.int64))
    gate.observe(np.ones(40, np.int64), np.zeros(40, np.int64), np.ones(40, np.int64))
    verdict = gate.verdict()
    assert verdict.decision == "reject"
    assert "'b'" in verdict.reason


def test_the_file_itself_must_be_small_and_true():
    config = GateConfig()
    good = artefact_checks({"size_ratio": 0.25, "parity_points": 0.1}, config, 1.0)
    assert {check.outcome for check in good} == {"pass"}
    bad = artefact_checks({"size_ratio": 0.9, "parity_points": 5.0}, config, 9.0)
    assert {check.outcome for check in bad} == {"fail"}
    # A table's file is mostly graph, which quantising does not shrink.
    tiny = {"size_ratio": 0.9, "fp32_size_bytes": 70_000.0}
    assert not artefact_checks(tiny, config, None)
    assert artefact_checks({**tiny, "fp32_size_bytes": 9e7}, config, None)[0].outcome == "fail"


def incident(**changes):
    values = {
        "id": "i1", "cause": "drift", "kind": "covariate", "opened_event": 1000,
        "onset_event": 950, "since_event": 950, "reference_accuracy": 0.9,
    }  # fmt: skip
    return Incident(**(values | changes))


def situation(**changes):
    values = {
        "event": 1200, "labelled": 250, "accuracy": 0.7, "archived": 2, "online_head": True,
        "promotions_today": 0,
    }  # fmt: skip
    return Situation(**(values | changes))


def test_the_lowest_rung_comes_first_and_the_climb_goes_up():
    config = PolicyConfig()
    assert choose(incident(), situation(), config).rung == "recall"
    assert choose(incident(), situation(archived=0), config).rung == "online"
    tried = [Attempt(rung, 1200, "rejected") for rung in ("recall", "online", "head")]
    choice = choose(incident(attempts=tried), situation(labelled=2000), config)
    assert choice.rung == "partial"


def test_a_cheap_rung_is_tried_again_with_three_times_the_data():
    config = PolicyConfig(rungs=("head",))
    tried = incident(attempts=[Attempt("head", 1100, "rejected")])
    assert choose(tried, situation(event=1200), config).action == "close"
    assert choose(tried, situation(event=1500), config).rung == "head"


def test_drift_without_damage_is_left_alone():
    choice = choose(incident(), situation(accuracy=0.9), PolicyConfig())
    assert (choice.action, choice.outcome) == ("close", "harmless")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"paused": True}, "paused"),
        ({"pinned": True}, "pinned"),
        ({"labelled": 3}, "needs 20 labelled events, 3 so far"),
        ({"promotions_today": 24}, "budget"),
    ],
)
def test_reasons_to_wait(changes, word):
    choice = choose(incident(), situation(**changes), PolicyConfig())
    assert choice.action == "wait"
    assert word in choice.reason


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save({"events": 1}, {"a": np.arange(3)})
    store.save({"events": 2}, {"a": np.arange(4)})
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    found = CheckpointStore(tmp_path).load()
    assert found.values == {"events": 1}
    assert "digest mismatch" in found.fallback
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="start over"):
        CheckpointStore(tmp_path).load()


def test_prequential_survives_its_window_and_a_restart():
    score = Prequential(window=10)
    random = np.random.default_rng(1)
    outcomes = random.random(37) < 0.5
    for start in range(0, 37, 5):
        part = outcomes[start : start + 5]
        score.observe(np.arange(start, start + len(part)), part)
    assert score.since(30).tolist() == outcomes[30:].tolist()
    again = Prequential(window=10)
    again.restore(score.state())
    assert again.since(0).tolist() == outcomes[-10:].tolist()
    assert (again.labelled, again.right) == (37, int(outcomes.sum()))
