"""What only a registry on S3 can get wrong: lost answers, damaged copies, left uploads."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import app
from registry import (
    DigestMismatch,
    Invalid,
    NotFound,
    Registry,
    RegistryConfig,
    StorageError,
    open_registry,
)

Publish = Callable[..., str]
on_s3 = pytest.mark.parametrize("registry", ["s3"], indirect=True)


def test_an_absent_registry_is_not_found(s3_config: Callable[..., RegistryConfig]) -> None:
    with pytest.raises(NotFound, match="s3://"):
        open_registry(s3_config())


def test_errors_say_what_to_do(
    s3_config: Callable[..., RegistryConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = s3_config()
    with pytest.raises(Invalid, match="names no bucket"):
        open_registry(config.model_copy(update={"path": "s3://"}))
    away = config.model_copy(update={"endpoint": "http://127.0.0.1:1"})
    with pytest.raises(StorageError, match="cannot reach s3://"):
        open_registry(away)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="check the credentials"):
        open_registry(config, create=True)


def test_check_connects_to_it(
    s3_config: Callable[..., RegistryConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for endpoint, code in ((s3_config().endpoint, 0), ("http://127.0.0.1:1", 3)):
        settings = {"path": s3_config().path, "endpoint": endpoint}
        registry = json.dumps({"source": {"kind": "stdin"}, "registry": settings})
        Path("driftd.yaml").write_text(registry)
        assert app.run(["check", "--connect"]) == code
    assert "registry.path" in capsys.readouterr().err


@on_s3
def test_a_write_whose_answer_was_lost_is_known_to_be_ones_own(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends a request again when the answer does not come; the first one counted."""
    store: Any = registry._store
    put = store._client.put_object
    monkeypatch.setattr(store._client, "put_object", lambda **k: (put(**k), put(**k)))
    assert [registry.journal.append("note", n=n).seq for n in range(3)] == [1, 2, 3]
    assert store.swap("document", b"1", None)
    assert not store.swap("document", b"1", None)
    assert store.swap("document", b"2", store.read("document").token)
    monkeypatch.undo()
    assert [row.fields["n"] for row in registry.journal.rows()] == [0, 1, 2]


@on_s3
def test_a_damaged_copy_is_fetched_again(registry: Registry, publish: Publish) -> None:
    version = publish(model="abc" * 100, head="xyz")
    for name in ("model", "head"):
        copy = registry.path(version) / name
        sound = copy.read_bytes()
        copy.chmod(0o644)
        copy.write_bytes(b"?" + sound[1:])
        assert (registry.path(version) / name).read_bytes() == sound
        (registry.path(version) / name).unlink()
        assert (registry.path(version) / name).read_bytes() == sound


@on_s3
def test_a_flipped_bit_in_the_bucket_is_refused(registry: Registry, publish: Publish) -> None:
    version = publish(model="abc" * 100, head="xyz" * 100)
    store: Any = registry._store
    for name, entry in store._files(f"versions/{version}").items():
        sound = store._get(entry.key).data
        damaged = bytearray(sound)
        damaged[len(sound) // 2] ^= 1
        store._put_plain(entry.key, bytes(damaged))
        cache = registry.config.cache.with_name(f"cache-{name}")
        config = registry.config.model_copy(update={"cache": cache})
        with pytest.raises(DigestMismatch, match=name):
            open_registry(config).path(version)
        store._put_plain(entry.key, sound)
        open_registry(config).path(version)


@on_s3
def test_equal_files_are_downloaded_once(registry: Registry, publish: Publish) -> None:
    one, two = publish(big="same" * 1000, head="1"), publish(big="same" * 1000, head="2")
    config = registry.config.model_copy(update={"cache": registry.config.cache / "other"})
    other = open_registry(config)
    assert (other.path(one) / "big").samefile(other.path(two) / "big")


@on_s3
def test_a_version_removed_elsewhere_leaves_the_cache(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    one, two = publish(), publish()
    registry.path(one)
    other = open_registry(registry.config.model_copy(update={"cache": tmp_path / "other"}))
    other._store.remove(f"versions/{one}")
    registry.path(two)
    assert [path.name for path in (registry.config.cache / "versions").iterdir()] == [two]
    with pytest.raises(NotFound):
        registry.path(one)


@on_s3
def test_left_uploads_are_removed_once_nobody_can_be_at_them(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish()
    store: Any = registry._store
    store._put_plain("files/0123456789abcdef/half", b"half")
    registry.collect(actor="test")
    assert "0123456789abcdef" in store.names("files")
    monkeypatch.setattr("registry.s3.ORPHAN_AGE", timedelta(seconds=-60))
    registry.collect(actor="test")
    assert len(store.names("files")) == 1
    registry.path(version)
