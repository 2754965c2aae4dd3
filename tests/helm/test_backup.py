"""The backup that docs/kubernetes.md describes, of a registry that is being written to."""

import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helm.builder.files import ROOT
from registry import ManifestDraft, Registry, RegistryConfig, open_registry

TEXT = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def publish(registry: Registry, folder: Path, content: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text(content)
    draft = ManifestDraft(parent=None, strategy="head", rung="head", task="text", labels=["a"])
    return registry.publish(folder, draft, actor="test").id


@pytest.mark.parametrize("round", range(3))
def test_a_backup_of_a_running_registry_is_whole(tmp_path: Path, round: int) -> None:
    (rest,) = re.findall(r"tar -C /var/lib/driftd/registry -cf - (.+) > registry\.tar", TEXT)
    registry = open_registry(tmp_path / "registry", create=True)
    done = threading.Event()

    def write() -> None:
        for number in range(10_000):
            version = publish(registry, tmp_path / "new", f"{round} {number}")
            registry.promote(version, actor="test", reason="a test")
            registry.attach(version, "gate", {"n": number})
            if done.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(registry.versions()) < 5:
            pass
        packed = subprocess.run(
            ["tar", "-C", str(tmp_path / "registry"), "-cf", "-", *rest.split()],
            capture_output=True,
            timeout=60,
        )
    finally:
        done.set()
        writer.join()
    assert packed.returncode in (0, 1)  # 1: something grew while it was read, as it may
    (tmp_path / "restored").mkdir()
    unpack = ["tar", "-C", str(tmp_path / "restored"), "-xf", "-"]
    subprocess.run(unpack, input=packed.stdout, check=True, timeout=60)
    restored = open_registry(tmp_path / "restored")
    champion = restored.state().champion
    assert champion is not None
    assert restored.path(champion, verify=True).is_dir()
    kinds = {row.kind for row in restored.journal.rows()}
    assert {"published", "promote"} <= kinds
    publish(restored, tmp_path / "new", "goes on")


def test_a_backup_of_a_bucket_is_whole(
    tmp_path: Path, s3: Any, s3_config: Callable[..., RegistryConfig]
) -> None:
    """What the two commands do, copy by copy: who serves first, then all else."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    origin, target = s3_config(), s3_config()
    registry = open_registry(origin, create=True)
    for number in range(3):
        version = publish(registry, tmp_path / "new", str(number))
        registry.promote(version, actor="test", reason="a test")
    bucket, _, start = origin.path.removeprefix("s3://").partition("/")
    place = target.path.removeprefix(f"s3://{bucket}/")

    def copied(name: str) -> None:
        origin = {"Bucket": bucket, "Key": f"{start}/{name}"}
        client.copy_object(Bucket=bucket, Key=f"{place}/{name}", CopySource=origin)

    assert "aws s3 cp s3://models/intents/state.json" in TEXT
    copied("state.json")
    later = publish(registry, tmp_path / "new", "in between")
    registry.promote(later, actor="test", reason="a test")
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{start}/")["Contents"]
    for name in (file["Key"].removeprefix(f"{start}/") for file in found):
        if name != "state.json":
            copied(name)
    restored = open_registry(target)
    assert restored.state().champion == version
    for kept in restored.versions():
        assert restored.path(kept.id, verify=True).is_dir()
    publish(restored, tmp_path / "new", "goes on")
