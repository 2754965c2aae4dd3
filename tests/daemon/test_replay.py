"""Replays of a small table whose meaning turns over: the same loop, deterministic, resumable."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from daemon.cli.app import run
from daemon.config import Config
from daemon.policy_config import LADDER
from daemon.replay import Delay, PolicyError, Replay, ReplayError, measure, parse, read, write
from daemon.replay import replaying as module
from daemon.replay.embeddings import EmbeddingStore, keys_of
from daemon.replay.measures import useful_life
from daemon.replay.outcome import Outcome
from daemon.replay.recording import Player, SimulatedClock
from daemon.replay.training import NOMINAL_SECONDS

TURN, ROWS, WARM_UP = 1100, 2000, 400
# One fixture runs five replays: some twenty seconds, and more where others share the cores.
pytestmark = pytest.mark.timeout(600)

POLICIES = ("frozen", "every:600:head", "at-alarm:head", "online", "ladder")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    random = np.random.default_rng(3)
    path = folder / "events.jsonl"
    with path.open("w") as out:
        for i in range(ROWS):
            x = random.normal(size=2)
            truth = bool(x[0] + 0.5 * x[1] > 0) != (i >= TURN)
            row = {"id": f"e{i}", "a": x[0], "b": x[1], "label": "yes" if truth else "no"}
            out.write(json.dumps({**row, "at": 1_700_000_000 + 2 * i}) + "\n")
        out.write("broken\n")
    return {
        "name": "turning",
        "model": {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]},
        "source": {"kind": "file", "path": str(path)},
        "fields": {"id": "id", "time": "at"},
        "bootstrap": {"warmup_events": WARM_UP},
        "policy": {"rungs": ["recall", "head"], "settle_events": 200, "cooldown_events": 100},
    }


@pytest.fixture(scope="module")
def config(settings):
    return Config.model_validate(settings)


@pytest.fixture(scope="module")
def recording(config):
    return read(config)


@pytest.fixture(scope="module")
def done(config, recording, tmp_path_factory):
    """One replay of all policies, and what it said on the way."""
    replay = Replay(config, recording, parse(POLICIES, config), tmp_path_factory.mktemp("run"))
    replay.prepare(resume=False)
    said = []
    outcomes = replay.run(said.append)
    return SimpleNamespace(
        replay=replay, outcomes=outcomes, said=said, found=measure(recording, outcomes, window=300)
    )


def test_a_recording_is_the_stream_in_order_of_time(recording, config):
    assert len(recording) == ROWS
    assert recording.rejected == 1
    assert np.all(np.diff(recording.clock) == 2.0)
    assert recording.first.all()
    faster = read(config, rate=10.0)
    assert np.allclose(np.diff(faster.clock), 0.1)
    assert read(config, rate=10.0).digest() == faster.digest() != recording.digest()


def test_labels_are_late_by_events_or_by_time(recording):
    clock = SimulatedClock(0.0)
    player = Player(recording, Delay.parse("100"), clock)
    player.start({})
    player.arrive(150)
    assert clock.time() == recording.clock[149]
    batch = player.poll(256, 0.0).batch
    assert batch.ids.tolist() == [f"e{i}" for i in range(50)]
    assert player.ended
    # Two seconds lie between events: a minute is thirty of them.
    assert Delay.parse("1min").known(recording)[[29, 30, 99]].tolist() == [0, 1, 70]
    for wrong in ("soon", "2.5", "-3"):
        with pytest.raises(ValueError, match="is no delay"):
            Delay.parse(wrong)


def test_policies_are_named_once_and_share_what_they_must(config, settings, tmp_path):
    assert [p.name for p in parse(POLICIES, config)] == list(POLICIES)
    for wrong in ("froze", "every:0", "every:10:recall", "=x.yaml"):
        with pytest.raises(PolicyError):
            parse([wrong], config)
    with pytest.raises(PolicyError, match="two policies are called ladder"):
        parse(["ladder", "ladder"], config)
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({**settings, "gate": {"alpha": 0.01}}))
    (variant,) = parse([f"careful={path}"], config)
    assert (variant.name, variant.config.gate.alpha) == ("careful", 0.01)
    path.write_text(yaml.safe_dump({**settings, "bootstrap": {"warmup_events": 50}}))
    with pytest.raises(PolicyError, match="bootstrap"):
        parse([f"careful={path}"], config)


def test_every_policy_does_what_its_name_says(done, config):
    figures = done.found.figures
    outcomes = {outcome.policy: outcome for outcome in done.outcomes}
    assert [outcome.policy for outcome in done.outcomes] == list(POLICIES)
    assert all((o.predicted[WARM_UP:] >= 0).all() for o in done.outcomes)
    assert all((o.predicted[:WARM_UP] == -1).all() for o in done.outcomes)
    assert figures["frozen"]["promotions"] == figures["frozen"]["refreshes"] == 0
    assert figures["frozen"]["alarms"] > 0
    every = outcomes["every:600:head"].of_kind("refresh-started")
    first, second = (row["position"] for row in every)
    assert 1000 <= first <= 1000 + 2 * 32
    assert first + 600 <= second <= first + 600 + 2 * 32
    assert figures["every:600:head"]["promotions"] == 2
    alarmed = outcomes["at-alarm:head"].of_kind("refresh-started")
    assert alarmed[0]["position"] > TURN
    assert figures["online"]["promotions"] == 0
    assert figures["online"]["accuracy"] > figures["frozen"]["accuracy"] + 0.2
    assert figures["ladder"]["promotions"] >= 1
    assert figures["ladder"]["accuracy"] > figures["frozen"]["accuracy"] + 0.2
    assert figures["ladder"]["training_cpu_seconds"] > 0
    # Nothing of it reached what the configuration names.
    assert not config.checkpoint.path.exists()


def test_every_rung_has_a_nominal_time():
    assert set(NOMINAL_SECONDS) == set(LADDER)


def test_a_refresh_takes_the_time_it_takes_on_the_streams_clock(done):
    outcome = next(o for o in done.outcomes if o.policy == "every:600:head")
    started = outcome.of_kind("refresh-started")[0]["position"]
    # 15 seconds, 2 seconds between events, and turns of 32 events.
    assert 8 <= outcome.served[1]["position"] - started <= 8 + 2 * 32


def test_progress_tells_the_time_left(done):
    last = done.said[-1]
    assert (last.policy, last.done, last.events) == ("ladder", ROWS, ROWS)
    assert last.left == 0.0
    told = [p.left for p in done.said if p.policy == "frozen"]
    assert all(left > 0 for left in told)


def test_measures_agree_with_the_answers(done, recording):
    found = done.found
    assert len(found.positions) == ROWS - WARM_UP
    for outcome in done.outcomes:
        names = np.array(outcome.classes, dtype=object)
        right = names[outcome.predicted[WARM_UP:]] == recording.truth[WARM_UP:]
        assert found.figures[outcome.policy]["accuracy"] == pytest.approx(right.mean())
    truth = recording.truth
    same = truth[WARM_UP:] == truth[WARM_UP - 1 : -1]
    assert found.yardsticks["last label"] == pytest.approx(same.mean())
    frozen, ladder = found.figures["frozen"], found.figures["ladder"]
    avoided = round((ladder["accuracy"] - frozen["accuracy"]) * len(found.positions))
    assert ladder["errors_avoided"] == avoided
    assert frozen["forgetting"] == 0.0
    assert frozen["useful_life"] is not None
    assert ladder["forgetting"] > 0.5  # the first regime's meaning is gone, as it must be
    pairs = {
        (p["truth"], p["answer"]): (p["before"], p["after"]) for p in found.confusion["ladder"]
    }
    assert pairs["yes", "no"][0] > pairs["yes", "no"][1]


def test_a_life_ends_where_accuracy_stays_below():
    dip = np.r_[np.full(50, 0.9), np.full(15, 0.5), np.full(50, 0.9)]
    assert useful_life(dip, 0.8, window=10) is None
    assert useful_life(np.r_[dip, np.full(20, 0.5)], 0.8, window=10) == len(dip)
    assert useful_life(np.full(30, 0.5), 0.8, window=10) == 0


def test_an_interrupted_replay_goes_on_to_the_same_end(
    done, config, recording, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "SNAPSHOT_SECONDS", 0.3)
    first = Replay(config, recording, parse(["ladder"], config), tmp_path / "run")
    first.prepare(resume=False)

    def stop(progress):
        if progress.policy == "ladder" and progress.done >= 1700:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    kept = Outcome.read(tmp_path / "run" / "ladder" / "snapshot")
    assert WARM_UP < kept.arrived <= 1700
    second = Replay(config, recording, parse(["ladder"], config), tmp_path / "run")
    second.prepare(resume=True)
    seen = []
    (outcome,) = second.run(lambda progress: seen.append(progress))
    assert min(p.done for p in seen if p.policy == "ladder") > kept.arrived
    # As if it had not been interrupted, and as in another folder beside other policies.
    whole = next(o for o in done.outcomes if o.policy == "ladder")
    assert outcome.predicted.tolist() == whole.predicted.tolist()
    assert outcome.served == whole.served
    assert [r["kind"] for r in outcome.rows] == [r["kind"] for r in whole.rows]


def test_what_is_done_is_not_done_again(done, config, recording):
    again = Replay(config, recording, parse(["frozen", "ladder"], config), done.replay.folder)
    again.prepare(resume=True)
    said = []
    outcomes = again.run(said.append)
    assert not said
    assert [o.policy for o in outcomes] == ["frozen", "ladder"]
    other = config.model_copy(update={"seed": 7})
    changed = Replay(other, recording, parse(["frozen"], other), done.replay.folder)
    with pytest.raises(ReplayError, match="other events or settings"):
        changed.prepare(resume=True)


def test_too_few_events_are_an_error(config, recording, tmp_path):
    short = config.model_copy(
        update={"bootstrap": config.bootstrap.model_copy(update={"warmup_events": ROWS})}
    )
    replay = Replay(short, recording, parse(["frozen"], short), tmp_path / "run")
    replay.prepare(resume=False)
    with pytest.raises(ReplayError, match="warmup_events"):
        replay.run()


def test_embeddings_are_computed_once_and_found_again(done, recording, tmp_path):
    served = done.replay._first(_classes())
    before = done.replay._store.cpu_seconds
    answer = served.answer(recording.events.inputs)
    assert done.replay._store.cpu_seconds == before
    # To rounding what the INT8 graph itself answers.
    fresh = EmbeddingStore(tmp_path)
    session = served.session
    direct = session.encode(recording.events.inputs[:64])
    assert np.allclose(answer.embeddings[:64], direct, atol=1e-2)
    fresh.find("encoder", recording.events.inputs[:64], session)
    fresh.save()
    monitored = EmbeddingStore(tmp_path)
    found = monitored.find("encoder", recording.events.inputs[:64], None)
    assert np.array_equal(found, direct)
    texts = np.array(["a", "b", "a"], dtype=object)
    keys = keys_of(texts)
    assert keys[0] == keys[2] != keys[1]


def _classes():
    from daemon.served import Classes

    return Classes()


# ---------------------------------------------------------------- the report


class Page(HTMLParser):
    """Collects tags, and checks that they close in order."""

    VOID = frozenset({"meta", "link", "br", "img", "path", "rect", "circle"})

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.text, self._open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def report(done, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write(done.found, {"source": "a <b>old & new</b> stream", "events": ROWS}, folder)
    return folder


def test_the_page_needs_nothing_else_and_can_be_read_by_everyone(report):
    text = (report / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert not page._open
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert "<script" not in text
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text
    assert "<b>old" not in text
    assert len(page.ids) == len(set(page.ids))
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links
    assert all(link.removeprefix("#") in page.ids for link in links)
    charts = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len(charts) >= 3
    for chart in charts:
        assert chart["role"] == "img"
        assert all(name in page.ids for name in chart["aria-labelledby"].split())
    scrolling = [a for _, a in page.tags if a.get("class") == "scroll"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
    for policy in POLICIES:
        assert policy in " ".join(page.text)
    assert any("promote" in a.get("class", "") for tag, a in page.tags if tag == "path")
    assert any("alarm" in a.get("class", "") for tag, a in page.tags if tag == "path")


def test_programs_get_the_same_figures(report, done):
    found = json.loads((report / "report.json").read_text())
    assert found["policies"]["ladder"]["accuracy"] == done.found.figures["ladder"]["accuracy"]
    assert found["policies"]["ladder"]["served"][0]["version"] == "v0001"
    with (report / "policies.csv").open() as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    assert float(rows["online"]["accuracy"]) == done.found.figures["online"]["accuracy"]
    assert set(rows) == {*POLICIES, "majority", "last label"}
    with (report / "accuracy.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert float(curve[-1]["ladder"]) == pytest.approx(done.found.rolling["ladder"][-1], abs=1e-4)


def test_a_real_browser_draws_it(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1400"]
    page = (report / "report.html").as_uri()
    dumped = subprocess.run(
        [*command, "--dump-dom", page], capture_output=True, text=True, timeout=90, check=True
    ).stdout
    assert dumped.count("<section") == 8
    shot = tmp_path / "page.png"
    subprocess.run(
        [*command, f"--screenshot={shot}", page], capture_output=True, timeout=90, check=True
    )
    # A blank page of this size compresses to a few kilobytes.
    assert shot.read_bytes()[:4] == b"\x89PNG"
    assert shot.stat().st_size > 40_000


# ---------------------------------------------------------------- the command


def test_the_command_writes_a_report_and_says_what_is_in_it(settings, tmp_path, capsys):
    path = tmp_path / "driftd.yaml"
    path.write_text(yaml.safe_dump({**settings, "log": {"level": "error"}}))
    out = tmp_path / "out"
    order = ["replay", "-c", str(path), "--report", str(out), "--policy", "frozen"]
    assert run([*order, "--label-delay", "50", "--target", "70"]) == 0
    shown = capsys.readouterr().out
    assert "frozen" in shown
    assert "target 70.0 %" in shown
    assert (out / "report.html").exists()
    facts = json.loads((out / "report.json").read_text())["replayed"]
    assert facts["label delay"] == "50"
    assert facts["records that were no events"] == 1
    assert run([*order, "--label-delay", "50", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policies"]["frozen"]["events"] == ROWS - WARM_UP
    assert run([*order, "--resume"]) == 1
    assert "other events or settings" in capsys.readouterr().err
    assert run([*order, "--policy", "thaw"]) == 2
    assert "is no policy" in capsys.readouterr().err
    assert run([*order, "--source", "no-such-file"]) == 2
    timeless = {**settings, "fields": {"id": "id"}}
    path.write_text(yaml.safe_dump(timeless))
    assert run(order) == 1
    assert "--rate" in capsys.readouterr().err
