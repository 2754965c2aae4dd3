"""Who may ask for what: bearer tokens with scopes, read from a file.

`Tokens` knows the tokens (their digests only), `Guard` is the ASGI middleware that asks it before
any route is reached; each server says which scopes a path needs. A file that changes is read again.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import orjson
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from deploy.config import AccessConfig, TlsConfig
from deploy.errors import AccessError, DeployError, ForbiddenError, UnauthorizedError

log = logging.getLogger("driftd.access")

# Between two looks at the file: a token that was taken back works no longer than this.
_LOOK_SECONDS = 1.0

# A digest hides only what cannot be guessed.
_SHORTEST_TOKEN = 16

_LOOPBACK = re.compile(r"127\.|::1$|localhost$")


class Scope(StrEnum):
    """What a token can be good for; operating includes reading."""

    INFER = "infer"
    READ = "read"
    OPERATE = "operate"


# Which scopes open a path: any one of them. None at all: it is open to everyone.
Scopes = frozenset[Scope]
OPEN: Scopes = frozenset()


class Caller(NamedTuple):
    """Whose token it was, and what it is good for."""

    name: str
    scopes: Scopes


class _Token(NamedTuple):
    digest: bytes
    caller: Caller


class Tokens:
    """The tokens of a file, as they are now.

    A line is ``NAME SCOPE[,SCOPE] TOKEN``, where the token is ``sha256:`` with its digest in
    hexadecimal, ``env:`` with the name of a variable that holds it, or the token itself. Empty
    lines and lines that begin with ``#`` do not count.

    Raises `AccessError` if the file cannot be read or a line not understood. If that happens to
    it later, the tokens stay as they were and the log says so.
    """

    def __init__(
        self,
        file: Path,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._looked = clock()
        self._stamp: object = None
        self._complaint = ""
        self._tokens: tuple[_Token, ...] = ()
        self._read()

    def who(self, authorization: str | None) -> Caller:
        """Whose token an Authorization header holds. Raises `UnauthorizedError`."""
        self._look()
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise UnauthorizedError("a token is needed: send the header 'Authorization: Bearer …'")
        digest = hashlib.sha256(token.strip().encode()).digest()
        found = None
        for known in self._tokens:  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, known.digest):
                found = known.caller
        if found is None:
            raise UnauthorizedError(
                "this token is not known here: it may have been replaced; ask who runs the server"
            )
        return found

    def allow(self, authorization: str | None, needed: Scopes) -> Caller:
        """As `who`; raises `ForbiddenError` if the token has none of the scopes needed."""
        caller = self.who(authorization)
        if not caller.scopes & needed:
            raise ForbiddenError(
                f"the token of {caller.name!r} lacks the scope {_either(needed)!r}: use another "
                "token, or ask who runs the server to add the scope"
            )
        return caller

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            if _stamp(self._file.stat()) != self._stamp:
                self._read()
                log.info("%s: %d tokens, read again", self._file, len(self._tokens))
            self._complaint = ""
        except (AccessError, OSError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.error("the tokens stay as they were: %s", error)

    def _read(self) -> None:
        try:
            found = self._file.stat()
            text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise AccessError(f"cannot read the tokens: {error}") from error
        self._tokens = tuple(_parse(text, self._file, self._environ))
        self._stamp = _stamp(found)
        if found.st_mode & 0o004:
            log.warning("every user of this machine can read %s: chmod 640 it", self._file)
        if not self._tokens:
            log.warning("%s holds no token: nobody gets in", self._file)


class Guard:
    """ASGI middleware: asks for a token where ``needed`` says that a path needs one.

    needed: the scopes that open a method and path, any one of them; `OPEN` for all.
    refused: told each refusal's reason, for the metrics.
    The caller's name is left in the ASGI connection scope as ``caller``, for the journal.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        needed: Callable[[str, str], Scopes],
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._needed = needed
        self._refused = refused

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        if connection["type"] == "http":
            needed = self._needed(connection["method"], connection["path"])
            if needed:
                try:
                    caller = self._tokens.allow(_authorization(connection), needed)
                    connection["caller"] = caller.name
                except (UnauthorizedError, ForbiddenError) as error:
                    self._refused(error.reason)
                    await _refuse(send, error, needed)
                    return
        await self._app(connection, receive, send)


def guarded(
    app: ASGIApp,
    config: AccessConfig,
    needed: Callable[[str, str], Scopes],
    refused: Callable[[str], None] = lambda reason: None,
) -> ASGIApp:
    """The application behind a `Guard`; as it is where no tokens are configured.

    Raises `AccessError` if the file of tokens cannot be used.
    """
    if config.tokens is None:
        return app
    return Guard(app, Tokens(config.tokens), needed, refused)


def exposures(host: str, access: AccessConfig, tls: TlsConfig, section: str) -> Iterator[str]:
    """What an operator should know about who can reach and overhear a port, in sentences.

    section: the section of the configuration that holds ``access`` and ``tls``.

    >>> list(exposures("127.0.0.1", AccessConfig(), TlsConfig(), "server"))
    []
    >>> next(exposures("0.0.0.0", AccessConfig(), TlsConfig(), "server"))
    'everyone who reaches 0.0.0.0 may use this port: set server.access.tokens'
    """
    if _LOOPBACK.match(host):
        return
    if access.tokens is None and tls.client_ca is None:
        yield f"everyone who reaches {host} may use this port: set {section}.access.tokens"
    if access.tokens is not None and tls.certificate is None:
        yield (
            "tokens travel in the clear on this port: set "
            f"{section}.tls, or let a proxy on this machine or pod speak TLS"
        )


def _parse(text: str, file: Path, environ: Mapping[str, str]) -> Iterator[_Token]:
    names = set[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{file}, line {number}"
        if len(words) != 3:  # the line may hold a token: it is not shown
            raise AccessError(f"{where}: must be NAME SCOPE[,SCOPE] TOKEN")
        name, scopes, token = words
        if name in names:
            raise AccessError(f"{where}: {name!r} is there already; give each token its own name")
        names.add(name)
        yield _Token(_digest(token, where, environ), Caller(name, _scopes(scopes, where)))


def _scopes(listed: str, where: str) -> Scopes:
    try:
        scopes = frozenset(Scope(each) for each in listed.split(","))
    except ValueError as error:
        known = ", ".join(Scope)
        raise AccessError(f"{where}: scopes are {known}, joined by commas") from error
    return scopes | {Scope.READ} if Scope.OPERATE in scopes else scopes


def _digest(token: str, where: str, environ: Mapping[str, str]) -> bytes:
    kind, colon, value = token.partition(":")
    if colon and kind == "sha256":
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            raise AccessError(f"{where}: sha256: must be followed by 64 hexadecimal digits")
        return bytes.fromhex(value)
    if colon and kind == "env":
        token = environ.get(value, "").strip()
        if not token:
            raise AccessError(f"{where}: the variable {value!r} is not set")
    if len(token) < _SHORTEST_TOKEN:
        raise AccessError(
            f"{where}: the token is shorter than {_SHORTEST_TOKEN} characters, so it can be "
            "guessed; make one with `openssl rand -hex 32`"
        )
    return hashlib.sha256(token.encode()).digest()


def _stamp(found: os.stat_result) -> object:
    """What differs when a file was edited or replaced, as a mounted Secret is."""
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _authorization(connection: Connection) -> str | None:
    for name, value in connection["headers"]:
        if name == b"authorization":
            return str(value.decode("latin-1"))
    return None


def _either(scopes: Scopes) -> str:
    return " or ".join(sorted(scopes))


async def _refuse(send: Send, error: DeployError, needed: Scopes) -> None:
    if isinstance(error, ForbiddenError):
        status, detail = 403, f', error="insufficient_scope", scope="{" ".join(sorted(needed))}"'
    else:
        status, detail = 401, ""
    body = orjson.dumps({"error": str(error)})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", f'Bearer realm="driftd"{detail}'.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
