"""A number in the daemon: judged by its error, watched, gated, promoted; and the evidence."""

import json
import threading

import numpy as np
import pytest

from daemon.awaiting import Awaiting
from daemon.config import Config
from daemon.decode import Decoder, Reason, Records
from daemon.evidence import PairedTest, Tally
from daemon.gate import Trial
from daemon.online import OnRows
from daemon.policy_config import GateConfig
from daemon.residuals import Residuals
from daemon.served import Opinion
from daemon.stream_config import EventsConfig, FieldsConfig
from daemon.undeclared import look, with_features
from deploy.session import Session
from drift import Observations
from learn.number_scale import NumberScale, errors
from tests.daemon.loops import loop_of

TURN, ROWS = 900, 2600

# ------------------------------------------------------------------ evidence of scores


def test_scores_that_are_alike_are_rarely_called_better_however_often_one_looks():
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        test = PairedTest(0.05)
        for _ in range(40):
            a, b = random.beta(5, 2, (2, 25))  # skewed, and of the same mean
            test.observe(a, b)
            if test.verdict == "better":
                wrong += 1
                break
    assert wrong <= 16  # 10 expected at most; 16 is two deviations more


def test_a_small_gain_of_scores_is_found_and_survives_a_checkpoint():
    random = np.random.default_rng(1)
    test = PairedTest(0.05)
    while test.verdict == "undecided" and test.events < 3000:
        a = random.uniform(0.4, 1.0, 50)
        test.observe(a, np.clip(a - 0.05 + random.normal(0, 0.1, 50), 0, 1))
    assert test.verdict == "better"
    assert test.events < 1500
    assert 3 < test.gain < 8
    again = PairedTest.restored(0.05, json.loads(json.dumps(test.state())))
    assert again.as_dict() == test.as_dict()
    mirrored = PairedTest(0.05)
    mirrored.observe(np.zeros(300) + 0.2, np.zeros(300) + 0.6)
    assert mirrored.verdict == "worse"


def test_a_loss_of_score_must_be_shown_to_exceed_the_floor():
    random = np.random.default_rng(2)
    tally = Tally()
    b = random.uniform(0.5, 1.0, 400)
    tally.observe(b - 0.1, b)
    assert tally.lost == pytest.approx(10.0)
    assert tally.loses_more(5.0, 0.05)
    assert not tally.loses_more(9.5, 0.05)
    few = Tally()
    few.observe(np.array([0.1]), np.array([0.9]))
    assert few.flipped == 1.0
    assert not few.loses_more(5.0, 0.05)
    assert Tally(*json.loads(json.dumps(tally.state()))).lost == tally.lost


def test_the_gate_judges_numbers_by_parts_of_their_range():
    scale = NumberScale(1.0, (0.0, 10.0))
    random = np.random.default_rng(3)
    truth = random.uniform(-10, 20, 3000)
    sure = np.ones(3000, np.float32)
    near = Opinion(truth + random.normal(0, 0.5, 3000), sure)
    far = Opinion(truth + random.normal(0, 2.0, 3000), sure)
    trial = Trial("v2", "head", GateConfig(), scale.names, scale=scale)
    trial.observe(truth, near, far)
    assert trial.verdict().decision == "promote"
    assert "calibration" not in [check.name for check in trial.verdict().checks]
    again = Trial.restored(
        trial.config, trial.labels, json.loads(json.dumps(trial.values())), trial.arrays(), scale
    )
    assert again.as_dict() == trial.as_dict()
    # Better on the whole, and much worse above ten.
    lost = Opinion(np.where(truth > 10, truth + 6.0, near.predicted), sure)
    trial = Trial("v3", "head", GateConfig(), scale.names, scale=scale)
    trial.observe(truth, lost, far)
    verdict = trial.verdict()
    assert verdict.decision == "reject"
    assert "class 'from 10' loses" in verdict.reason


def test_one_wild_error_decides_nothing():
    scale = NumberScale(1.0, (0.0,))
    truth = np.zeros(60)
    trial = Trial("v2", "head", GateConfig(), scale.names, scale=scale)
    ours = np.zeros(60)
    ours[30] = 1e12
    trial.observe(truth, Opinion(ours, ours), Opinion(truth + 0.1, truth))
    assert trial.test.worse < 2


# ------------------------------------------------------------------ small parts


def test_residuals_equal_the_plain_formulas_and_go_on():
    random = np.random.default_rng(0)
    truth = 1e7 + random.normal(size=1200)
    given = truth + random.normal(0, 0.1, 1200)
    residuals = Residuals()
    for start in range(0, 1200, 100):
        residuals.observe(given[start : start + 100], truth[start : start + 100])
    for found, expected in (
        (residuals.total, errors(given, truth)),
        (residuals.recent, errors(given[-500:], truth[-500:])),
    ):
        assert found == pytest.approx(expected, rel=1e-6)
    again = Residuals()
    again.restore(residuals.state())
    assert again.total == residuals.total


def test_labels_that_are_no_numbers_are_refused():
    decoder = Decoder(FieldsConfig(), EventsConfig(), numbers=True)
    values = [
        b'{"text": "a", "label": %s}' % label
        for label in (b"3", b"2.5", b'"-1e3"', b"null", b'""', b'"x"', b"true", b'"nan"', b"[1]")
    ]
    n = len(values)
    records = Records(values, ["t"] * n, [0] * n, list(range(n)), [0] * n)
    batch, rejected = decoder.decode(records)
    assert batch.labels.tolist() == ["3.0", "2.5", "-1000.0", None, None]
    assert {letter.reason for letter in rejected} == {Reason.WRONG_TYPE}
    assert len(rejected) == 4
    assert "must be a finite number" in rejected[0].detail


def test_a_number_that_was_answered_waits_for_its_label():
    awaiting = Awaiting(10)
    who = np.array(["v0001"], dtype=object)
    awaiting.remember(np.array(["a"], dtype=object), np.array([3.25]), who)
    again = Awaiting(10)
    again.restore(awaiting.state())
    assert again.settle(np.array(["a"], dtype=object)) == [("v0001", 3.25)]


def test_what_is_wrong_of_a_number_is_kept_with_the_observations():
    zeros = np.zeros((3, 2), np.float32)
    wrong = np.array([True, False, True])
    labels = np.array([0, 1, -1])
    seen = Observations(zeros, zeros, labels, np.zeros(3), wrong=wrong)
    assert seen.errors.tolist() == [True, False]
    joined = Observations.join([seen, seen.take(np.array([0]))])
    assert Observations.from_arrays(joined.arrays()).errors.tolist() == [True, False, True]


# ------------------------------------------------------------------ the loop


@pytest.fixture
def config(tmp_path):
    """A price whose dependence on the size turns over at `TURN`; every seventh has no label."""
    random = np.random.default_rng(1)
    lines = []
    for i in range(ROWS):
        size, kind = random.normal(100, 20), str(random.choice(["x", "y"]))
        slope = (3.0 if kind == "x" else -1.0) * (1 if i < TURN else -1)
        price = 500 + slope * (size - 100) + random.normal(0, 4)
        row = {"size": size, "kind": kind, "price": None if i % 7 == 3 else round(price, 3)}
        lines.append(json.dumps({"id": f"e{i}", **row}))
        if i % 7 == 3 and i > 400:  # it comes later
            lines.append(json.dumps({"id": f"e{i}", **row, "price": round(price, 3)}))
    lines.append('{"id": "odd", "size": 1, "kind": "x", "price": "much"}')
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    return Config.model_validate(
        {
            "model": {
                "task": "tabular",
                "target": "number",
                "random_features": 64,
                "lagged_labels": 1,
            },
            "source": {"kind": "file", "path": str(tmp_path / "events.jsonl")},
            "fields": {"id": "id", "label": "price"},
            "bootstrap": {"warmup_events": 400},
            "dead_letters": {"kind": "file", "path": str(tmp_path / "letters.jsonl")},
            "policy": {"settle_events": 200, "cooldown_events": 100},
            "gate": {"min_events": 50},
            "registry": {"path": str(tmp_path / "registry")},
            "checkpoint": {"path": str(tmp_path / "state")},
        }
    )


def make_loop(config):
    config = with_features(config, look(config).features)
    return loop_of(config)


def test_a_number_is_learned_watched_repaired_served_and_goes_on(config, tmp_path):
    loop = make_loop(config)
    loop.start()
    loop.run(threading.Event())
    state = loop.state
    rows = list(loop.registry.journal.rows())
    kinds = {row.kind for row in rows}
    assert {"alarm", "verdict", "promote"} <= kinds
    alarm = next(row for row in rows if row.kind == "alarm")
    assert alarm.fields["drift"] == "concept"
    assert alarm.fields["event"] >= TURN * 8 // 7 - 400
    assert state.classes.names == ["value"]
    assert state.prequential.accuracy > 0.4
    recent = state.residuals.recent
    assert recent["r2"] > 0.75
    status = loop.status()
    assert status["errors"]["recent"]["mae"] == pytest.approx(recent["mae"], rel=1e-4)
    assert b'driftd_prequential_error{measure="rmse"' in loop.metrics.exposition()

    champion = loop.registry.version(loop.registry.state().champion)
    assert champion.id != "v0001"
    assert {"mae", "r2"} <= champion.manifest.metrics.keys()
    session = Session.open(loop.registry.path(champion.id))
    session.warm()
    asked = [{"size": 130.0, "kind": "x", "label~1": None}]
    value = session.predict(session.preprocessor.rows(asked)).logits[0, 0]
    assert value == pytest.approx(500 - 3 * 30, abs=15)

    assert isinstance(state.online, OnRows)
    inputs = state.memory.recent(100, since=0).inputs
    nothing = np.empty((len(inputs), 0), np.float32)
    expected = state.online.judge(inputs, nothing)
    loop.close("the test is over")
    assert "must be a finite number" in (tmp_path / "letters.jsonl").read_text()
    again = make_loop(config)
    again.start()
    assert again.state.scale == state.scale
    np.testing.assert_array_equal(again.state.online.judge(inputs, nothing), expected)
    assert again.state.residuals.total == state.residuals.total
    again.close("the test is over")


def test_what_a_number_cannot_have_is_said(config):
    settings = config.model_dump()
    settings["bootstrap"]["strategy"] = "full"
    with pytest.raises(ValueError, match="must be head"):
        Config.model_validate(settings)
