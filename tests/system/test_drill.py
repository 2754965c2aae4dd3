"""The disaster drill of docs/kubernetes.md, on this machine: all is lost but the backup."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import ManifestDraft, open_registry
from tests.system.stack import ROOT, Stack, get

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

Rows = Callable[..., list[bytes]]
ROW = {"features": {"a": 2.0, "b": 1.0}}


def again(registry: Path) -> str:
    """The champion published once more, and promoted: something to go back from."""
    found = open_registry(registry)
    first = found.version("v0001").manifest
    fields = {name: getattr(first, name) for name in ManifestDraft.model_fields}
    folder = registry.parent / "again"
    shutil.copytree(found.path("v0001"), folder, ignore=shutil.ignore_patterns("manifest.json"))
    made = found.publish(folder, ManifestDraft.model_validate(fields), actor="test").id
    found.promote(made, actor="test", reason="the drill")
    return made


@pytest.mark.timeout(400)
def test_what_is_backed_up_serves_again(
    stack: Stack, broker: Any, fast_group: dict[str, int], table: Rows
) -> None:
    topic = broker.topic()
    source = {
        "kind": "kafka",
        "bootstrap_servers": [broker.bootstrap],
        "topic": topic,
        "options": fast_group,
    }
    server = {"port": stack.server, "name": "table", "notice_seconds": 0}
    stack.configure(source, server=server)
    broker.produce(topic, table(600, seed=1))
    daemon = stack.start("run")
    stack.wait(lambda: stack.status().get("champion") and stack.events() == 600)
    serving = stack.start("serve")
    stack.wait(lambda: get(stack.server, "/v2/health/ready")[0] == 200)
    answer = get(stack.server, "/predict", ROW)[1]

    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (rest,) = re.findall(r"tar -C /var/lib/driftd/registry -cf - (.+) > registry\.tar", text)
    place = stack.folder / "registry"
    command = ["tar", "-C", str(place), "-cf", "-", *rest.split()]
    backup = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    versions = [version.id for version in open_registry(place).versions()]
    assert daemon.stop() == 0
    assert serving.stop() == 0

    shutil.rmtree(place)
    shutil.rmtree(stack.folder / "state")
    place.mkdir()
    command = ["tar", "-C", str(place), "-xf", "-"]
    subprocess.run(command, input=backup, check=True, timeout=60)
    stack.configure(source, server=server, bootstrap={"warmup_events": 1_000_000_000})
    broker.produce(topic, table(100, seed=2))
    daemon = stack.start("run")
    # On from the offsets that the group has: what was read before is not read again.
    stack.wait(lambda: stack.events() == 100)
    assert stack.status()["champion"] == "v0001"
    assert [version.id for version in open_registry(place).versions()] == versions
    assert stack.rows("started")[-1]["checkpoint"] is None  # its state is new
    serving = stack.start("serve")
    stack.wait(lambda: get(stack.server, "/v2/health/ready")[0] == 200)
    same = get(stack.server, "/predict", ROW)[1]
    assert (same["label"], same["probabilities"]) == (answer["label"], answer["probabilities"])

    damaged = again(place)
    stack.wait(lambda: stack.status().get("champion") == damaged)
    assert serving.stop() == 0
    file = place / "versions" / damaged / "model.int8.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # its bytes may be shared with the version before
    file.write_bytes(content)
    serving = stack.start("serve")
    failed = 'driftd_server_load_failures_total{model="table"'
    stack.wait(lambda: failed in str(get(stack.server, "/metrics")[1]))
    assert get(stack.server, "/v2/health/ready")[0] == 503
    assert stack.order("rollback", "--reason", "drill").returncode == 0
    stack.wait(lambda: get(stack.server, "/v2/health/ready")[0] == 200)
    assert get(stack.server, "/predict", ROW)[1]["label"] == answer["label"]
    for process in (daemon, serving):
        assert process.stop() == 0
