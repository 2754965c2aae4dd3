"""Daemon and server run as the chart confines them: its user, no capabilities, a read-only root."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.demo.broker import free_port
from tests.confined import confined as shut_in
from tests.confined import why_not
from tests.helm.test_chart import of_kind, pods
from tests.system.conftest import table as table
from tests.system.stack import get

FEATURES = [{"name": "a"}, {"name": "b"}]
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def spec(render: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """The pod of `mode: together`; its two configurations are left in ``tmp_path/data``."""
    values = {
        "config": {
            "model": {"task": "tabular", "features": FEATURES},
            "source": {"kind": "file", "path": "/var/lib/driftd/events.jsonl"},
            "bootstrap": {"warmup_events": 400},
            "gate": {"size_ratio": 10.0, "parity_points": 10.0},
        }
    }
    rendered = render(values)
    (found,) = pods(of_kind(rendered, "StatefulSet"))
    data = tmp_path / "data"
    data.mkdir()
    for config in (m["data"] for m in of_kind(rendered, "ConfigMap") if "driftd.yaml" in m["data"]):
        for name, text in config.items():
            (data / name).write_text(text)
    # fsGroup gives a volume to the pod's group; what is mounted by subPath is made alike.
    parts = {m["subPath"] for c in found["containers"] for m in c["volumeMounts"] if _part(m)}
    for folder in (data, *(data / below for part in parts for below in _below(part))):
        folder.mkdir(exist_ok=True)
        os.chown(folder, 0, found["securityContext"]["fsGroup"])
        folder.chmod(0o2775)
    return found


def _part(mount: dict[str, Any]) -> bool:
    """Whether it is a part of the volume that may be written to."""
    return mount["name"] == "data" and "subPath" in mount


def _below(part: str) -> list[Path]:
    return [*reversed(Path(part).parents), Path(part)]


class Confined:
    """Starts the chart's containers on one volume, and ends them."""

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.http, self.server = free_port(), free_port()
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> tuple[subprocess.Popen[bytes], Path]:
        (container,) = (c for c in self.spec["containers"] if c["name"] == name)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        context = self.spec["securityContext"]
        config = f"/var/lib/driftd/{mounts['/etc/driftd/driftd.yaml']['subPath']}"
        command, environment = shut_in(
            self.folder / "data",
            *container["args"],
            environment=(
                f"DRIFTD_CONFIG={config}",
                *(f"DRIFTD_{part}__HOST=127.0.0.1" for part in ("HTTP", "SERVER")),
                f"DRIFTD_HTTP__PORT={self.http}",
                f"DRIFTD_SERVER__PORT={self.server}",
            ),
            user=context["runAsUser"],
            group=context["runAsGroup"],
            read_only=mounts["/var/lib/driftd"].get("readOnly", False),
            writable=next((m["subPath"] for m in mounts.values() if _part(m)), ""),
        )
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self.running.append(child)
        return child, log


@pytest.fixture
def confined(spec: dict[str, Any], tmp_path: Path) -> Iterator[Confined]:
    made = Confined(spec, tmp_path)
    yield made
    for child in made.running:
        if child.poll() is None:
            child.kill()
        child.wait()


def wait_until(
    reached: Callable[[], object], child: subprocess.Popen[bytes], log: Path, seconds: float = 60.0
) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert child.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def test_daemon_and_server_run_as_the_chart_confines_them(
    confined: Confined,
    table: Callable[..., list[bytes]],
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    (data / "events.jsonl").write_bytes(b"\n".join(table(900, seed=1)) + b"\n")
    daemon, log = confined.start("daemon")
    assert daemon.wait(120) == 0, log.read_text()[-3000:]
    made = list((data / "registry" / "versions").iterdir())
    assert made
    user = confined.spec["securityContext"]["runAsUser"]
    assert {path.stat().st_uid for path in (data / "state", *made)} == {user}

    server, log = confined.start("server")
    wait_until(lambda: get(confined.server, "/v2/health/ready")[0] == 200, server, log)
    status, answer = get(confined.server, "/predict", {"features": {"a": 2.0, "b": 1.0}})
    assert (status, answer["label"]) == (200, "yes")
    state = Path(f"/proc/{server.pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in state.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == [str(user)] * 4
    assert {int(facts[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert facts["NoNewPrivs"] == "1"
    server.terminate()
    assert server.wait(60) == 0, log.read_text()[-3000:]
