"""Who made a version: an Ed25519 signature over its manifest, which holds every file's digest.

Optional. Who publishes signs with a private key; whoever loads with public keys configured refuses
what none of them has signed. Needs the extra ``signing`` (the package cryptography).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Invalid, Untrusted, explained

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PRIVATE, PUBLIC = ".key", ".pub"


class Signer:
    """A private key, read from a PEM file. Raises `Invalid` if the file holds none."""

    def __init__(self, file: Path) -> None:
        _, serialization = _cryptography()
        data = _read(file)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise _no_key(file, "private") from error
        self._key: Ed25519PrivateKey = _checked(key, "Ed25519PrivateKey", file, "private")
        self.id = key_id(self._key.public_key())

    def sign(self, manifest: bytes) -> bytes:
        """The signature file for these bytes: which key, and the signature, as JSON."""
        made = base64.b64encode(self._key.sign(manifest)).decode()
        return json.dumps({"key": self.id, "ed25519": made}).encode()


class Trust:
    """Public keys, read from PEM files, one of which must have signed."""

    def __init__(self, files: Iterable[Path]) -> None:
        _, serialization = _cryptography()
        self._keys: dict[str, Ed25519PublicKey] = {}
        for file in files:
            try:
                found = serialization.load_pem_public_key(_read(file))
            except ValueError as error:
                raise _no_key(file, "public") from error
            key = _checked(found, "Ed25519PublicKey", file, "public")
            self._keys[key_id(key)] = key

    def check(self, version: str, manifest: bytes, signature: bytes | None) -> str:
        """The id of the key that signed. Raises `Untrusted`."""
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise Untrusted(
                f"{version} is not signed, and registry.trusted_keys asks for it: publish it with "
                "registry.signing_key, or go back to a version that is signed"
            )
        try:
            parsed = json.loads(signature)
            signed_by, made = str(parsed["key"]), base64.b64decode(parsed["ed25519"], validate=True)
        except (ValueError, KeyError, TypeError) as error:
            raise Untrusted(f"{version}: its signature is damaged: {error}") from error
        if signed_by not in self._keys:
            known = ", ".join(self._keys)
            raise Untrusted(
                f"{version} is signed with the key {signed_by}, which is none of the trusted ones "
                f"({known}): add its public key to registry.trusted_keys if you trust it"
            )
        try:
            self._keys[signed_by].verify(made, manifest)
        except InvalidSignature:
            raise Untrusted(
                f"{version}: the signature does not fit its manifest: one of them was changed"
            ) from None
        return signed_by


def new_keys(name: Path) -> tuple[Path, Path, str]:
    """Write a new pair of keys to ``NAME.key``, readable by its owner only, and ``NAME.pub``.

    Returns both paths and the key's id. Raises `Invalid` where one of the files exists.
    """
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    files = name.with_name(name.name + PRIVATE), name.with_name(name.name + PUBLIC)
    for file, data, mode in zip(files, (private, public), (0o600, 0o644), strict=True):
        with explained(file):
            try:
                fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                raise Invalid(f"{file} exists: a key in use must not be lost") from None
            with os.fdopen(fd, "wb") as out:
                out.write(data)
    return *files, key_id(key.public_key())


def key_id(key: Ed25519PublicKey) -> str:
    """16 hex digits that name a key: the beginning of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise Invalid('signatures need cryptography: pip install "driftd[signing]"') from error
    return ed25519, serialization


def _read(file: Path) -> bytes:
    with explained(file):
        return file.expanduser().read_bytes()


def _checked(key: Any, kind: str, file: Path, which: str) -> Any:
    ed25519, _ = _cryptography()
    if not isinstance(key, getattr(ed25519, kind)):
        raise _no_key(file, which)
    return key


def _no_key(file: Path, which: str) -> Invalid:
    return Invalid(f"{file} is no {which} Ed25519 key in PEM: `driftd keygen NAME` makes a pair")
