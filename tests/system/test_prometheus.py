"""A real Prometheus scrapes a real daemon and server through drift, repair and rollback.

Every query of every panel and rule is put to it; one alert goes all the way through Alertmanager.
As root, daemon and server run as on Kubernetes: another user, no capabilities, nothing to write but
their own folder.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helm.builder.alerts import ALERTS
from helm.builder.dashboards import DASHBOARDS
from helm.builder.files import CHART, ROOT
from helm.builder.pages import used

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="Prometheus is not installed (Debian: prometheus)",
    ),
    pytest.mark.timeout(180),
]

USER = 10001
MODEL = "turning"
CHOSEN = {
    "$namespace": "ml",
    "$model": MODEL,
    "$__rate_interval": "2m",
    "$__range": "10m",
}
# What comes into being only with a failure that this stream does not have.
NEVER_HERE = {"driftd_errors_total", "driftd_server_load_failures_total"}
# A mount namespace in which only the folder $1 can be written. Where the interpreter $2 lies below
# a folder $3 that is closed to other users, it shines through. The rest is the command.
CONFINE = f"""
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
if [ -n "$3" ]; then
  mkdir -p "$1/python"
  mount --bind "$2" "$1/python"
  mount -t tmpfs -o mode=755 none "$3"
  mkdir -p "$2"
  mount --bind "$1/python" "$2"
fi
mount -o remount,bind,ro /
cd "$1"
shift 3
exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --inh-caps=-all \\
  --bounding-set=-all "$@"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def confined(folder: Path, *command: str) -> list[str]:
    base = Path(sys.base_prefix)
    above = (path for path in reversed(base.parents) if not path.stat().st_mode & 0o001)
    closed = str(next(above, ""))
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        CONFINE,
        "sh",
        str(folder),
        str(base),
        closed,
        *command,
    ]


def can_confine(folder: Path) -> bool:
    """Whether a process can be shut in here, and is: it writes in its folder, and not beside it."""
    if os.getuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        return False
    test = f'touch inside && ! touch /var/tmp/outside && test "$(id -u)" = {USER}'
    nested = (
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import ssl']))"
    )
    python = [sys.executable, "-c", nested]
    done = [
        subprocess.run(confined(folder, *command), capture_output=True, timeout=30).returncode
        for command in (["sh", "-c", test], python)
    ]
    return done == [0, 0]


def rows(count: int, turned: bool, seed: int) -> str:
    """Rows of a table of two numbers; ``turned``: the label means the opposite."""
    random = np.random.default_rng(seed)
    lines = []
    for a, b in random.normal(size=(count, 2)):
        truth = bool(a + 0.5 * b > 0) != turned
        lines.append(json.dumps({"a": a, "b": b, "label": "yes" if truth else "no"}))
    return "\n".join(lines) + "\n"


def fetch(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
        return json.loads(answer.read())


def eventually(true: Callable[[], Any], seconds: float = 60.0) -> Any:
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
    """Daemon and server on a table that turns over, Prometheus, and Alertmanager if it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.confined = can_confine(folder)
        self.daemon, self.server, self.prometheus, self.alertmanager = (
            f"http://127.0.0.1:{free_port()}" for _ in range(4)
        )
        self.received: list[dict[str, Any]] = []
        self.asked = 0
        self.processes: list[subprocess.Popen[bytes]] = []
        self._hook = self._receiver()

    # -------------------------------------------------------------- processes

    def start(self) -> None:
        (self.folder / "events.jsonl").touch(mode=0o644)
        self._write(
            "driftd.yaml",
            {
                "name": MODEL,
                "model": {
                    "task": "tabular",
                    "table": "network",
                    "features": [{"name": "a"}, {"name": "b"}],
                    "rivals": [{"model": "hoeffding-adaptive-tree"}],
                },
                "source": {"kind": "file", "path": "events.jsonl", "follow": True},
                "bootstrap": {"warmup_events": 400},
                "policy": {
                    # The whole network, so that there are rounds of training to show.
                    "rungs": ["full"],
                    "min_labelled_by_rung": {"full": 200},
                    "online_head": False,
                },
                # A table's model is so small that INT8 has nothing to shrink. More events than the
                # backlog that a trial begins with, so that it stays open for a while.
                "gate": {"size_ratio": 10.0, "parity_points": 10.0, "min_events": 550},
                "registry": {"path": "registry"},
                "checkpoint": {"path": "state", "every_seconds": 1},
                "http": {"port": _port(self.daemon)},
                "server": {"port": _port(self.server), "name": MODEL, "notice_seconds": 0},
            },
        )
        self.driftd("run")
        self.driftd("serve")
        self._alertmanager()
        self._prometheus()

    def driftd(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "daemon.cli", *arguments]
        if self.confined:
            command = confined(self.folder, *command)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }
        self._start(arguments[0], command, environment)

    def ask(self) -> None:
        """One request that is answered."""
        fetch(f"{self.server}/predict", {"features": {"a": 1.0, "b": 0.0}})
        self.asked += 1

    def order(self, *arguments: str) -> None:
        """An operator's command."""
        command = [sys.executable, "-m", "daemon.cli", *arguments, "--reason", "a test"]
        command = confined(self.folder, *command) if self.confined else command
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        subprocess.run(command, cwd=self.folder, env=environment, check=True, timeout=60)

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

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

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
        targets = [url.removeprefix("http://") for url in (self.daemon, self.server)]
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

    def feed(self, text: str) -> None:
        with (self.folder / "events.jsonl").open("a") as file:
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


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The stack after the table has turned, was learned anew, and an operator went a step back."""
    pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")
    folder = Path(tempfile.mkdtemp(prefix="driftd-"))
    if os.getuid() == 0:
        os.chown(folder, USER, USER)
    found = Stack(folder)
    try:
        found.start()
        live(found)
        yield found
    except BaseException:
        print(found.log("run"), found.log("serve"), (folder / "registry/journal.jsonl").read_text())
        raise
    finally:
        found.stop()
        shutil.rmtree(folder)


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
    last = time.time()
    eventually(lambda: stack.value("min(timestamp(driftd_drift_score))") > last + 1)


def panels() -> Iterator[Any]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield pytest.param(
                    target["expr"], id=f"{name}: {panel['title']}: {target['legendFormat']}"
                )
        for annotation in dashboard["annotations"]["list"]:
            yield pytest.param(annotation["expr"], id=f"{name}: {annotation['name']}")


@pytest.mark.parametrize("expr", list(panels()))
def test_a_panel_shows_something(stack: Stack, expr: str) -> None:
    for variable, value in CHOSEN.items():
        expr = expr.replace(variable, value)
    found = stack.query(expr.replace("[1m]", "[10m]"))
    assert found or used(expr) & NEVER_HERE


def test_variables_of_the_dashboards_find_the_model(stack: Stack) -> None:
    for dashboard in DASHBOARDS.values():
        for variable in dashboard["templating"]["list"][1:]:
            match, label = (
                variable["query"]["query"].removeprefix("label_values(")[:-1].rsplit(", ")
            )
            match = match.replace("$namespace", ".*")
            asked = urllib.parse.urlencode({"match[]": match})
            found = fetch(f"{stack.prometheus}/api/v1/label/{label}/values?{asked}")["data"]
            assert found == [CHOSEN[f"${label}"]]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_rule_is_accepted(stack: Stack, alert: Any) -> None:
    stack.query(alert.expr)


def test_rules_are_evaluated_without_errors(stack: Stack) -> None:
    groups = fetch(f"{stack.prometheus}/api/v1/rules")["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert rules.keys() == {alert.name for alert in ALERTS}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    assert rules["DriftdRolledBack"]["state"] == "firing"
    assert rules["DriftdNoServer"]["state"] == "inactive"


def test_metrics_tell_what_happened(stack: Stack) -> None:
    assert stack.value('driftd_dead_letters_total{reason="invalid_json"}') == 1
    assert stack.value('driftd_events_total{outcome="unlabelled"}') == 1
    assert stack.value("sum(driftd_alarms_total)") >= 1
    assert stack.value('driftd_promotions_total{rung="full"}') == 1
    assert stack.value('driftd_rollbacks_total{cause="operator"}') == 1
    assert stack.value('sum(driftd_server_requests_total{code="200"})') == stack.asked
    assert stack.value('driftd_server_requests_total{code="400"}') == 5


def test_an_alert_reaches_a_person(stack: Stack) -> None:
    if shutil.which("prometheus-alertmanager") is None:
        pytest.skip("Alertmanager is not installed (Debian: prometheus-alertmanager)")
    stack.order("pause")

    def arrived() -> list[dict[str, Any]]:
        return [a for a in stack.received if a["labels"]["alertname"] == "DriftdHeld"]

    alert = eventually(arrived)[0]
    assert alert["labels"]["model"] == MODEL
    assert alert["labels"]["namespace"] == "ml"
    assert alert["labels"]["severity"] == "info"
    assert alert["annotations"]["summary"] == f"{MODEL} has been paused or pinned for a day"
    stack.order("resume")
    eventually(lambda: any(a["status"] == "resolved" for a in arrived()))


def test_helm_test_tells_a_stack_that_works_from_one_that_does_not(stack: Stack) -> None:
    helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")
    values = {"config": {"source": {"kind": "file", "path": "/events.jsonl"}}}
    rendered = helm.Chart.load(CHART).render(values, name="driftd", namespace="ml")
    pod = yaml.safe_load(rendered["driftd/templates/tests/test.yaml"])
    (script,) = pod["spec"]["containers"][0]["args"]
    for server, code in ((stack.server, 0), (f"http://127.0.0.1:{free_port()}", 1)):
        command = script.replace("http://driftd-daemon:8081", stack.daemon)
        command = command.replace("http://driftd:8080", server)
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, timeout=60)
        assert done.returncode == code, done.stderr


def test_it_runs_as_on_kubernetes(stack: Stack) -> None:
    """Without root, without capabilities, and with nothing to write but its folder."""
    if not stack.confined:
        pytest.skip("needs root, unshare and setpriv, to give the rights up again")
    for process in stack.processes[:2]:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        assert status["Uid"] == [str(USER)] * 4
        assert int(status["CapEff"][0], 16) == int(status["CapBnd"][0], 16) == 0
        assert status["NoNewPrivs"] == ["1"]
        mounts = Path(f"/proc/{process.pid}/mounts").read_text().splitlines()
        root = [line.split() for line in mounts if line.split()[1] == "/"][-1]
        assert "ro" in root[3].split(",")
    for name in ("run", "serve"):
        assert "Traceback" not in stack.log(name)
