"""TLS from files that are renewed while the server runs.

Each handshake gets the newest certificate: no restart, no signal, no timer. A renewal that cannot
be used (half written, key and certificate of two renewals) leaves the one before in place.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from deploy.config import TlsConfig
from deploy.errors import AccessError

log = logging.getLogger("driftd.access")

# Between two looks at the files; renewals overlap by days.
_LOOK_SECONDS = 1.0


class Renewed:
    """The TLS context of a listener, made anew when one of its files changes.

    Raises `AccessError` if the files cannot be used at first.
    """

    def __init__(self, config: TlsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._looked = clock()
        self._stamp = stamp(config)
        self._complaint = ""
        self._newest = make_context(config)
        # What listens keeps this one; it hands every handshake over to the newest.
        self.context = make_context(config)
        self.context.sni_callback = self._hand_over

    def newest(self) -> ssl.SSLContext:
        """The context from the files as they are now."""
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return self._newest
        self._looked = now
        try:
            found = stamp(self._config)
            if found != self._stamp:
                self._newest = make_context(self._config)
                self._stamp = found
                log.info("%s: read again", self._config.certificate)
            self._complaint = ""
        except AccessError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("the certificate stays as it was: %s", error)
        return self._newest

    def _hand_over(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self.newest()


def make_context(config: TlsConfig) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or newer. Raises `AccessError`, naming the file."""
    certificate, key = _files(config)[:2]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise AccessError(f"cannot use {certificate} with {key}: {_why(error)}") from error
    if config.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(config.client_ca)
        except OSError as error:
            raise AccessError(f"cannot use {config.client_ca}: {_why(error)}") from error
    return context


def stamp(config: TlsConfig) -> object:
    """What differs when one of the files was replaced. Raises `AccessError`."""
    try:
        found = [file.stat() for file in _files(config)]
    except OSError as error:
        raise AccessError(f"cannot use {error.filename}: {error.strerror}") from error
    return [(each.st_mtime_ns, each.st_size, each.st_ino, each.st_dev) for each in found]


def _files(config: TlsConfig) -> list[Path]:
    files = (config.certificate, config.key, config.client_ca)
    return [file for file in files if file is not None]


def _no_passphrase() -> str:
    # Asked for interactively otherwise, which would hang a service.
    raise ValueError("the key has a passphrase; a server needs one without")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{error.reason or error}".replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
