"""TLS: what is served, what a renewal does, what a broken one does not do."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import threading

import pytest
from pydantic import ValidationError

from deploy.config import TlsConfig
from deploy.errors import AccessError
from deploy.tls import Renewed
from tests.certificates import Authority


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "first")


@pytest.fixture
def handshake():
    """Shakes hands with a server once; gives the name in its certificate, or the error."""

    def handshake(renewed, ca, client=None):
        ours, theirs = socket.socketpair()
        errors = []

        def serve():
            try:
                with renewed.context.wrap_socket(theirs, server_side=True) as secure:
                    secure.sendall(b"hello")
            except OSError as error:
                errors.append(error)
                theirs.close()

        thread = threading.Thread(target=serve)
        thread.start()
        context = ssl.create_default_context(cafile=ca)
        if client:
            context.load_cert_chain(*client)
        try:
            with ours, context.wrap_socket(ours, server_hostname="localhost") as secure:
                if not secure.recv(5):
                    raise ConnectionResetError
                subject = secure.getpeercert()["subject"]
                return subject[0][0][1]
        except OSError as error:
            return error
        finally:
            thread.join(10)

    return handshake


def test_a_renewed_certificate_is_taken_up(authority, handshake, caplog):
    certificate, key = authority.issue("one")
    clock = Clock()
    renewed = Renewed(TlsConfig(certificate=certificate, key=key), clock)
    assert handshake(renewed, authority.ca) == "one"
    for old, new in zip((certificate, key), authority.issue("two"), strict=True):
        shutil.copy(new, old)
    assert handshake(renewed, authority.ca) == "one"
    clock.now = 2.0
    assert handshake(renewed, authority.ca) == "two"

    key.write_text("half writ")
    clock.now = 4.0
    with caplog.at_level(logging.ERROR):
        assert handshake(renewed, authority.ca) == "two"
        clock.now = 6.0
        assert handshake(renewed, authority.ca) == "two"
        key.unlink()
        clock.now = 8.0
        assert handshake(renewed, authority.ca) == "two"
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "the certificate stays as it was: cannot use" in said[0]


def test_clients_need_a_certificate_of_the_newest_authority(authority, handshake, tmp_path):
    certificate, key = authority.issue("server")
    other = Authority(tmp_path, "second")
    trusted = shutil.copy(authority.ca, tmp_path / "clients.pem")
    clock = Clock()
    config = TlsConfig(certificate=certificate, key=key, client_ca=trusted)
    renewed = Renewed(config, clock)
    ours, theirs = authority.issue("ours"), other.issue("theirs")
    assert handshake(renewed, authority.ca, ours) == "server"
    assert isinstance(handshake(renewed, authority.ca), OSError)
    assert isinstance(handshake(renewed, authority.ca, theirs), OSError)
    shutil.copy(other.ca, trusted)
    clock.now = 2.0
    assert handshake(renewed, authority.ca, theirs) == "server"
    assert isinstance(handshake(renewed, authority.ca, ours), OSError)


def test_unusable_files_are_named(authority, tmp_path):
    certificate, key = authority.issue("one")
    other = authority.issue("two")[1]
    locked = authority.issue("locked", b"passphrase")
    for files, message in (
        ({"certificate": tmp_path / "none", "key": key}, "cannot use .*none: No such file"),
        ({"certificate": certificate, "key": other}, "mismatch"),
        ({"certificate": key, "key": key}, f"cannot use {key} with"),
        ({"certificate": locked[0], "key": locked[1]}, "the key has a passphrase"),
        ({"certificate": certificate, "key": key, "client_ca": key}, f"cannot use {key}: "),
    ):
        with pytest.raises(AccessError, match=message):
            Renewed(TlsConfig(**files))


def test_half_a_configuration_is_refused(tmp_path):
    for files in ({"certificate": tmp_path}, {"key": tmp_path}, {"client_ca": tmp_path}):
        with pytest.raises(ValidationError, match="certificate"):
            TlsConfig(**files)
