"""Tokens: the file, what is refused and how, what a changed file does; and the middleware."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from deploy.access import OPEN, Scope, Tokens, exposures, guarded
from deploy.config import AccessConfig, TlsConfig
from deploy.errors import AccessError, ForbiddenError, UnauthorizedError

SHOP, ALICE, PROM = "shop-7c1f2e90d3b84a55", "alice-44e0c7ab91f26d38", "prom-0d9c8b7a6f5e4d3c"
INFER, READ, OPERATE = (frozenset({each}) for each in Scope)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def write(tmp_path):
    def write(text, mode=0o640):
        file = tmp_path / "tokens"
        file.write_text(text)
        file.chmod(mode)
        return file

    return write


def usual():
    digest = hashlib.sha256(ALICE.encode()).hexdigest()
    return f"""
# name  scopes  token
shop    infer          {SHOP}
alice   operate,infer  sha256:{digest.upper()}

prom    read           env:PROM_TOKEN
"""


def test_three_kinds_of_tokens(write):
    tokens = Tokens(write(usual()), {"PROM_TOKEN": PROM})
    assert tokens.who(f"Bearer {SHOP}") == ("shop", {"infer"})
    assert tokens.who(f"bearer  {ALICE} ") == ("alice", {"infer", "read", "operate"})
    assert tokens.who(f"Bearer {PROM}") == ("prom", {"read"})
    assert tokens.allow(f"Bearer {SHOP}", INFER | READ).name == "shop"
    for header in (None, "", "Bearer", "Bearer ", f"Basic {SHOP}", SHOP):
        with pytest.raises(UnauthorizedError, match="a token is needed: send"):
            tokens.who(header)
    for header in (f"Bearer {SHOP}x", "Bearer é", f"Bearer {'x' * 10_000}"):
        with pytest.raises(UnauthorizedError, match="not known here"):
            tokens.who(header)
    with pytest.raises(ForbiddenError, match="token of 'prom' lacks the scope 'infer or operate'"):
        tokens.allow(f"Bearer {PROM}", INFER | OPERATE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shop infer", "line 1: must be NAME SCOPE"),
        (f"shop infer, read {SHOP}", "line 1: must be NAME SCOPE"),
        (f"shop predict {SHOP}", "scopes are infer, read, operate"),
        (f"shop infer, {SHOP}", "scopes are infer, read, operate"),
        ("shop infer sha256:12ab", "64 hexadecimal digits"),
        ("shop infer env:NO_SUCH", "the variable 'NO_SUCH' is not set"),
        ("shop infer secret", "shorter than 16 characters"),
        (f"shop infer {SHOP}\nshop read {ALICE}", "line 2: 'shop' is there already"),
    ],
)
def test_a_bad_line_is_named_but_not_shown(write, line, message):
    with pytest.raises(AccessError, match=message) as raised:
        Tokens(write(line), {})
    assert SHOP not in str(raised.value)
    assert ALICE not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AccessError, match=f"cannot read the tokens: .*{tmp_path}/none"):
        Tokens(tmp_path / "none")


def test_only_digests_stay_in_memory(write):
    tokens = Tokens(write(usual()), {"PROM_TOKEN": PROM})
    held = gc.get_referents(tokens, *vars(tokens).values(), *tokens._tokens)
    assert len(tokens._tokens) == 3
    assert not any(isinstance(each, str) and SHOP in each for each in held)
    assert SHOP not in repr(vars(tokens))


def test_a_changed_file_counts_from_the_next_look(write, caplog):
    clock = Clock()
    file = write(f"shop infer {SHOP}\n")
    tokens = Tokens(file, {}, clock)
    write(f"alice read {ALICE}\n")
    assert tokens.who(f"Bearer {SHOP}").name == "shop"
    clock.now = 1.5
    assert tokens.who(f"Bearer {ALICE}").name == "alice"
    with pytest.raises(UnauthorizedError):
        tokens.who(f"Bearer {SHOP}")

    with caplog.at_level(logging.ERROR):
        write("alice read, oops\n")
        for clock.now in (3.0, 5.0):
            assert tokens.who(f"Bearer {ALICE}").name == "alice"
        file.unlink()
        clock.now = 7.0
        assert tokens.who(f"Bearer {ALICE}").name == "alice"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the tokens stay as they were"
    ] * 2
    write(f"shop infer {SHOP}\n")
    clock.now = 9.0
    assert tokens.who(f"Bearer {SHOP}").name == "shop"


def test_what_is_unwise_is_said(write, caplog):
    with caplog.at_level(logging.WARNING):
        Tokens(write(usual()), {"PROM_TOKEN": PROM})
        assert not caplog.records
        Tokens(write(usual(), mode=0o644), {"PROM_TOKEN": PROM})
        Tokens(write("# none yet\n"))
    said = " ".join(record.message for record in caplog.records)
    assert "every user of this machine can read" in said
    assert "holds no token: nobody gets in" in said


def test_exposures(tmp_path):
    tokens = AccessConfig(tokens=tmp_path)
    tls = TlsConfig(certificate=tmp_path, key=tmp_path)
    mutual = TlsConfig(certificate=tmp_path, key=tmp_path, client_ca=tmp_path)
    for host in ("127.0.0.1", "127.0.1.1", "::1", "localhost"):
        assert list(exposures(host, AccessConfig(), TlsConfig(), "http")) == []
    for host in ("0.0.0.0", "::", "10.0.0.7", ""):
        (said,) = exposures(host, AccessConfig(), tls, "http")
        assert "set http.access.tokens" in said
        (said,) = exposures(host, tokens, TlsConfig(), "http")
        assert "in the clear" in said
        assert list(exposures(host, tokens, tls, "http")) == []
        assert list(exposures(host, AccessConfig(), mutual, "http")) == []


def needed(method, path):
    if path == "/health":
        return OPEN
    return INFER if method == "POST" else READ | INFER


async def show(request):
    return JSONResponse({"caller": request.scope.get("caller")})


@pytest.fixture
def ask(write):
    def ask(method, path, token=None, config=None, refused=lambda reason: None):
        config = config or AccessConfig(tokens=write(f"shop infer {SHOP}\nprom read {PROM}\n"))
        app = Starlette(routes=[Route("/{all:path}", show, methods=["GET", "POST"])])

        async def run():
            transport = httpx.ASGITransport(guarded(app, config, needed, refused))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                return await client.request(method, path, headers=headers)

        return asyncio.run(run())

    return ask


def test_the_guard(ask):
    reasons = []
    assert ask("GET", "/health").json() == {"caller": None}
    assert ask("POST", "/predict", SHOP).json() == {"caller": "shop"}
    assert ask("GET", "/status", PROM).json() == {"caller": "prom"}

    response = ask("POST", "/predict", refused=reasons.append)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="driftd"'
    assert "Authorization: Bearer" in response.json()["error"]
    response = ask("POST", "/predict", PROM, refused=reasons.append)
    assert response.status_code == 403
    challenge = response.headers["www-authenticate"]
    assert 'error="insufficient_scope", scope="infer"' in challenge
    assert "the token of 'prom' lacks the scope 'infer'" in response.json()["error"]
    assert reasons == ["unauthorized", "forbidden"]


def test_without_tokens_nothing_is_asked(ask):
    assert ask("POST", "/predict", config=AccessConfig()).status_code == 200
