"""Daemons and a server under a real Prometheus, and what happens to them: drift, repair, rollback.

As root they run as on Kubernetes: another user, no capabilities, nothing to write but their folder.
Beside the model that drifts there are those that one cannot be at the same time: one whose labels
come later, one that two daemons share, and one that predicts a number.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helm.builder.files import CHART, ROOT
from tests.confined import PLACE, USER, confined, why_not
from tests.conftest import FAST_GROUP, BrokerForTests

MODEL, LATER, SHARED, PRICE = "turning", "later", "shared", "price"
MODELS = (MODEL, LATER, SHARED, PRICE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(count: int, turned: bool, seed: int) -> str:
    """Rows of a table of two numbers; ``turned``: the label means the opposite."""
    random = np.random.default_rng(seed)
    lines = []
    for a, b in random.normal(size=(count, 2)):
        truth = bool(a + 0.5 * b > 0) != turned
        lines.append(json.dumps({"a": a, "b": b, "label": "yes" if truth else "no"}))
    return "\n".join(lines) + "\n"


def prices(count: int, seed: int) -> str:
    """Rows of a table with a number to predict."""
    random = np.random.default_rng(seed)
    lines = [{"a": a, "label": 3 * a + e} for a, e in random.normal(size=(count, 2))]
    return "".join(json.dumps(line) + "\n" for line in lines)


def fetch(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
        return json.loads(answer.read())


def eventually(true: Callable[[], Any], seconds: float = 150.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except (OSError, KeyError, IndexError):
            pass
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


class Stack:
    """Daemons and a server, Prometheus, and Alertmanager if it is there.

    Each model has a folder of its own; `MODEL` is the table that turns over, and is served.
    """

    def __init__(self, folder: Path, broker: BrokerForTests) -> None:
        self.folder = folder
        self.broker = broker
        self.confined = why_not() is None
        self.daemon, self.server, self.prometheus, self.alertmanager = (
            f"http://127.0.0.1:{free_port()}" for _ in range(4)
        )
        self.targets = [self.daemon, self.server]
        self.received: list[dict[str, Any]] = []
        self.asked = 0
        self.processes: list[subprocess.Popen[bytes]] = []
        self.driftds: list[subprocess.Popen[bytes]] = []
        self._hook = self._receiver()

    # -------------------------------------------------------------- processes

    def start(self) -> None:
        self.configure(
            MODEL,
            self.daemon,
            model={
                "task": "tabular",
                "table": "network",
                "features": [{"name": "a"}, {"name": "b"}],
                "rivals": [{"model": "hoeffding-adaptive-tree"}],
            },
            policy={
                # The whole network, so that there are rounds of training to show.
                "rungs": ["full"],
                "min_labelled_by_rung": {"full": 200},
                "online_head": False,
            },
            # A table's model is so small that INT8 has nothing to shrink. More events than the
            # backlog that a trial begins with, so that it stays open for a while.
            gate={"size_ratio": 10.0, "parity_points": 10.0, "min_events": 550},
            server={
                "port": _port(self.server),
                "name": MODEL,
                "notice_seconds": 0,
                "prediction_log": {
                    "bootstrap_servers": [self.broker.bootstrap],
                    "topic": self.broker.topic(),
                },
            },
        )
        self.driftd(MODEL, "run")
        self.driftd(MODEL, "serve")
        self.others()
        self._alertmanager()
        self._prometheus()

    def others(self) -> None:
        """The models that only a daemon of another kind can show."""
        events, labels, shared, handover = (self.broker.topic(n) for n in (1, 1, 2, 1))
        kafka = {"kind": "kafka", "bootstrap_servers": [self.broker.bootstrap]}
        kafka["options"] = FAST_GROUP
        self.extra(LATER, source={**kafka, "topic": events, "labels": {"topic": labels}})
        self.broker.produce(events, [b'{"id": "%d", "a": 1, "b": 1}' % n for n in range(40)])
        self.broker.produce(labels, [b'{"id": "%d", "label": "yes"}' % n for n in range(30, 60)])
        sharing = {"enabled": True, "topic": handover, "lease_seconds": 2.0}
        # One registry and one group: the second one's configuration lies in the same folder.
        for name in ("driftd", "second"):
            self.extra(
                SHARED,
                file=name,
                source={**kafka, "topic": shared},
                sharing={**sharing, "handover_share": 1.0},
                checkpoint={"path": f"{self.place}/{name}", "every_seconds": 1},
            )
        for number in range(2):
            rows = [
                b'{"id": "%d-%d", "a": 1, "b": 1, "label": "yes"}' % (number, n) for n in range(50)
            ]
            self.broker.produce(shared, rows, partition=number)
        self.extra(
            PRICE,
            model={"task": "tabular", "target": "number", "features": [{"name": "a"}]},
            fields={},
            bootstrap={"warmup_events": 200},
        )
        self.feed(prices(400, seed=1), PRICE)

    @property
    def place(self) -> str:
        """How a process finds its model's folder; it starts in it where it is not shut in."""
        return str(PLACE) if self.confined else "."

    def configure(self, name: str, url: str, file: str = "driftd", **sections: Any) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "events.jsonl").touch(mode=0o644)
        config = {
            "name": name,
            "source": {"kind": "file", "path": f"{self.place}/events.jsonl", "follow": True},
            "bootstrap": {"warmup_events": 400},
            "registry": {"path": f"{self.place}/registry"},
            "checkpoint": {"path": f"{self.place}/state", "every_seconds": 1},
            "dead_letters": {"kind": "file", "path": f"{self.place}/{file}-dead.jsonl"},
            "http": {"port": _port(url)},
            **sections,
        }
        self._write(f"{name}/{file}.yaml", config)
        if self.confined:
            os.chown(folder, USER, USER)

    def extra(self, name: str, file: str = "driftd", **sections: Any) -> None:
        """One daemon more."""
        url = f"http://127.0.0.1:{free_port()}"
        self.targets.append(url)
        table = {"task": "tabular", "features": [{"name": "a"}, {"name": "b"}]}
        own = {"model": table, "fields": {"id": "id"}, **sections}
        self.configure(name, url, file, **own)
        self.driftd(name, "run", file=file)

    def driftd(self, model: str, *arguments: str, file: str = "driftd") -> None:
        command, environment = self._command(model, file, arguments)
        name = f"{model}-{file}-{arguments[0]}"
        self.driftds.append(self._start(name, command, environment, self.folder / model))

    def _command(
        self, model: str, file: str, arguments: Sequence[str]
    ) -> tuple[list[str], dict[str, str]]:
        folder = self.folder / model
        if self.confined:
            config = f"DRIFTD_CONFIG={PLACE}/{file}.yaml"
            return confined(folder, *arguments, environment=[config])
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DRIFTD_CONFIG": str(folder / f"{file}.yaml"),
        }
        return [sys.executable, "-m", "daemon.cli", *arguments], environment

    def ask(self) -> None:
        """One request that is answered."""
        fetch(f"{self.server}/predict", {"features": {"a": 1.0, "b": 0.0}})
        self.asked += 1

    def order(self, *arguments: str) -> None:
        """An operator's command."""
        orders = (*arguments, "--reason", "a test")
        command, environment = self._command(MODEL, "driftd", orders)
        folder = self.folder / MODEL
        subprocess.run(command, cwd=folder, env=environment, check=True, timeout=60)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._hook.shutdown()
        self._hook.server_close()

    def _start(
        self, name: str, command: list[str], environment: dict[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def _write(self, name: str, value: Any) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(value))
        path.chmod(0o644)
        return path

    # -------------------------------------------------------------- monitoring

    def _prometheus(self) -> None:
        rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["for"] = "0s"
        self._write("rules.yaml", rules)
        targets = [url.removeprefix("http://") for url in self.targets]
        config = self._write(
            "prometheus.yaml",
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yaml"],
                "scrape_configs": [
                    {
                        "job_name": "driftd",
                        "static_configs": [{"targets": targets, "labels": {"namespace": "ml"}}],
                    }
                ],
                "alerting": {
                    "alertmanagers": [
                        {"static_configs": [{"targets": [self.alertmanager.partition("//")[2]]}]}
                    ]
                },
            },
        )
        data = self.folder / "prometheus"
        self._start(
            "prometheus",
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={data}",
                f"--web.listen-address={self.prometheus.partition('//')[2]}",
            ],
            dict(os.environ),
            self.folder,
        )

    def _alertmanager(self) -> None:
        if shutil.which("prometheus-alertmanager") is None:
            return
        hook = f"http://127.0.0.1:{self._hook.server_port}/"
        config = self._write(
            "alertmanager.yaml",
            {
                "route": {
                    "receiver": "test",
                    "group_by": ["alertname"],
                    "group_wait": "0s",
                    "group_interval": "1s",
                },
                "receivers": [{"name": "test", "webhook_configs": [{"url": hook}]}],
            },
        )
        self._start(
            "alertmanager",
            [
                "prometheus-alertmanager",
                f"--config.file={config}",
                f"--storage.path={self.folder / 'alertmanager'}",
                f"--web.listen-address={self.alertmanager.partition('//')[2]}",
                "--cluster.listen-address=",
            ],
            dict(os.environ),
            self.folder,
        )

    def _receiver(self) -> ThreadingHTTPServer:
        received = self.received

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                received.extend(body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    # -------------------------------------------------------------- questions

    def feed(self, text: str, model: str = MODEL) -> None:
        with (self.folder / model / "events.jsonl").open("a") as file:
            file.write(text)

    def status(self) -> dict[str, Any]:
        return fetch(f"{self.daemon}/status")

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that Prometheus answers with; an assertion if it refuses."""
        url = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        try:
            return fetch(url)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from error

    def value(self, expr: str) -> float:
        return float(self.query(expr)[0]["value"][1])


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def live(stack: Stack) -> None:
    """All that a dashboard shows happens once."""
    eventually(stack.status)
    stack.feed('{"broken": \n' + rows(500, turned=False, seed=1))
    eventually(lambda: stack.status()["champion"] == "v0001")
    stack.feed(rows(1000, turned=False, seed=2) + '{"a": 1, "b": 0}\n')
    eventually(lambda: stack.status()["events"] > 1500)
    eventually(lambda: fetch(f"{stack.server}/v2/health/ready")["ready"])
    seeds = itertools.count(3)

    def repaired() -> bool:
        stack.feed(rows(50, turned=True, seed=next(seeds)))
        time.sleep(0.3)
        return stack.status()["champion"] == "v0002"

    eventually(repaired)
    for _ in range(5):
        stack.ask()
        with pytest.raises(urllib.error.HTTPError):
            fetch(f"{stack.server}/predict", {"text": "a table has none"})
    stack.order("rollback")
    eventually(lambda: stack.value('driftd_server_champion_info{version="v0001"}') == 1)
    stack.order("route", "shadow", "v0002", "--slow-seconds", "1e-9")

    def reported() -> bool:
        stack.ask()
        seen = stack.query('driftd_server_routed_requests_total{role="shadow"}')
        return bool(seen and stack.query("driftd_server_traffic_reports_total"))

    eventually(reported)
    stack.feed(rows(100, turned=False, seed=99))
    eventually(lambda: stack.query("driftd_rollbacks_total"))
    decayed(stack)

    def judged() -> bool:
        stack.feed(prices(20, seed=next(seeds)), PRICE)
        return bool(stack.query("driftd_prequential_error"))

    eventually(judged)
    eventually(lambda: stack.query('driftd_delayed_labels_total{outcome="joined"} > 0'))
    eventually(lambda: stack.query('driftd_handovers_total{what="taken"} > 0'))
    last = time.time()
    eventually(lambda: stack.value("min(timestamp(driftd_drift_score))") > last + 1)


def decayed(stack: Stack) -> None:
    """A version whose file has changed is promoted: nobody loads it, and all say so."""
    stack.order("route", "off")
    file = stack.folder / MODEL / "registry/versions/v0002/model.int8.onnx"
    file.chmod(0o644)
    with file.open("ab") as changed:
        changed.write(b"decay")
    stack.order("promote", "v0002", "--force")
    eventually(lambda: stack.query("driftd_errors_total"))
    eventually(lambda: stack.query("driftd_server_load_failures_total"))
    stack.order("rollback")
