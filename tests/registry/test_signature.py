"""Who may publish: what is not signed by a trusted key is neither promoted nor loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import LoadError
from deploy.versions import Versions
from registry import Invalid, ManifestDraft, Registry, RegistryConfig, Untrusted, open_registry

pytest.importorskip("cryptography", reason="pip install 'driftd[signing]'")
from daemon.cli import app
from registry.signature import new_keys

Open = Callable[..., Registry]


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name in ("ours", "theirs"):
        made[f"{name}.key"], made[f"{name}.pub"], _ = new_keys(tmp_path / name)
    return made


@pytest.fixture
def opened(tmp_path: Path, keys: dict[str, Path]) -> Open:
    """Open the registry with a signing key and trusted keys, by name."""

    def one(signing: str | None = None, *trusted: str) -> Registry:
        config = RegistryConfig(
            path=str(tmp_path / "registry"),
            signing_key=keys[signing] if signing else None,
            trusted_keys=tuple(keys[name] for name in trusted),
        )
        return open_registry(config, create=True)

    return one


def publish(registry: Registry, folder: Path, draft: ManifestDraft, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(text)
    return registry.publish(folder, draft, actor="test").id


def test_only_what_a_trusted_key_signed_serves(
    opened: Open, tmp_path: Path, draft: Callable[..., ManifestDraft]
) -> None:
    source = tmp_path / "source"
    signed = publish(opened("ours.key"), source, draft(), "1")
    unsigned = publish(opened(), source, draft(), "2")
    foreign = publish(opened("theirs.key"), source, draft(), "3")
    strict = opened("ours.key", "ours.pub")
    strict.promote(signed, actor="test", reason="ours")
    strict.path(signed)
    assert strict.signed_by(signed)
    for version in (unsigned, foreign):
        with pytest.raises(Untrusted, match=version):
            strict.promote(version, actor="test", reason="sneaked in", force=True)
        with pytest.raises(Untrusted):
            strict.rollback(to=version, actor="test", reason="sneaked in")
        for verify in (True, False):
            with pytest.raises(Untrusted):
                strict.path(version, verify=verify)
        with pytest.raises(LoadError) as error:
            Versions(strict.config).fetch(version)
        assert error.value.cause == "untrusted"
    assert strict.state().champion == signed
    # Keys change one after the other: for a while both count.
    opened(None, "ours.pub", "theirs.pub").promote(foreign, actor="test", reason="both")
    # Whoever asks for no signature gets what there is.
    opened().path(unsigned)


def test_a_changed_manifest_is_refused(
    opened: Open, tmp_path: Path, draft: Callable[..., ManifestDraft]
) -> None:
    from registry.sealed import seal, unseal

    registry = opened("ours.key", "ours.pub")
    version = publish(registry, tmp_path / "source", draft(), "1")
    folder = registry.path(version)
    manifest, signature = folder / "manifest.json", folder / "manifest.sig"
    sound, signed = manifest.read_bytes(), signature.read_bytes()
    for file in (manifest, signature):
        file.chmod(0o644)
    # Somebody who knows how seals are made still has no key.
    manifest.write_bytes(seal({**unseal(sound), "strategy": "another"}, indent=True))
    with pytest.raises(Untrusted, match="was changed"):
        registry.path(version)
    manifest.write_bytes(sound)
    registry.path(version)
    for damaged in (b"", b"{}", b"[]", signed.replace(b'"ed25519": "', b'"ed25519": "AAAA')):
        signature.write_bytes(damaged)
        with pytest.raises(Untrusted):
            registry.path(version)
    signature.unlink()
    with pytest.raises(Untrusted, match="not signed"):
        registry.path(version)


def test_keys_that_are_none_are_said_to_be_none(opened: Open, keys: dict[str, Path]) -> None:
    for signing, trusted in (("ours.pub", ()), (None, ("ours.key",))):
        with pytest.raises(Invalid, match="driftd keygen"):
            opened(signing, *trusted)
    assert keys["ours.key"].stat().st_mode & 0o077 == 0
    with pytest.raises(Invalid, match="exists"):
        new_keys(keys["ours.key"].with_suffix(""))


def test_verify_names_every_version_that_must_not_be_loaded(
    opened: Open,
    tmp_path: Path,
    keys: dict[str, Path],
    draft: Callable[..., ManifestDraft],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    registry = opened("ours.key")
    for text in "12":
        publish(registry, source, draft(), text)
    publish(opened(), source, draft(), "3")
    damaged = registry.path("v0002") / "weights"
    damaged.chmod(0o644)
    damaged.write_text("4")
    monkeypatch.chdir(tmp_path)
    config = {"path": str(tmp_path / "registry"), "trusted_keys": [str(keys["ours.pub"])]}
    Path("driftd.yaml").write_text(json.dumps({"registry": config}))
    assert app.run(["verify", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["version"] for row in rows] == ["v0001", "v0002", "v0003"]
    assert rows[0]["problem"] is None
    assert rows[0]["signed_by"] == registry.signer().id
    assert "SHA-256 differs" in rows[1]["problem"]
    assert "is not signed" in rows[2]["problem"]
    assert app.run(["verify", "v0001"]) == 0
    assert app.run(["verify", "v0009"]) == 3
    assert app.run(["keygen", "release"]) == 0
    assert "registry.signing_key" in capsys.readouterr().out
    assert Path("release.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")
