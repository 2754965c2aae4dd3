"""An API server for Jobs: TLS, a token, validation by Kubernetes' own schemas, a process a pod."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "the-pod's-token"
PATH = "/apis/batch/v1/namespaces/models/jobs"


class Cluster:
    """Runs what the Jobs' manifests say as processes. ``answers``: asked before each request."""

    def __init__(self, folder: Path) -> None:
        self.account = folder / "account"
        self.account.mkdir(parents=True)
        (self.account / "token").write_text(TOKEN)
        (self.account / "namespace").write_text("models")
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self.deleted: list[str] = []
        self.answers: Callable[[], tuple[int, str] | None] = lambda: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(self.account / "ca.crt", folder / "key"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End the server and every pod."""
        self._server.shutdown()
        self._server.server_close()
        for name in list(self.pods):
            self.delete(name)

    def create(self, manifest: dict[str, Any]) -> None:
        """Start the Job's pod."""
        kubernetes_validate.validate(manifest, "1.36", strict=True)
        name = manifest["metadata"]["name"]
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        command = [sys.executable, *container["command"][1:], *container["args"]]
        self.pods[name] = subprocess.Popen(command, env=os.environ)
        self.jobs[name] = manifest

    def read(self, name: str) -> dict[str, Any]:
        """The Job, with the conditions that its pod's end makes."""
        code = self.pods[name].poll()
        if code is None:
            return self.jobs[name]
        how = {"type": "Complete"} if code == 0 else {
            "type": "Failed",
            "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
        }  # fmt: skip
        return {**self.jobs[name], "status": {"conditions": [{**how, "status": "True"}]}}

    def delete(self, name: str) -> None:
        """Delete the Job and kill its pod."""
        del self.jobs[name]
        pod = self.pods.pop(name)
        pod.kill()
        pod.wait()
        self.deleted.append(name)


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _do(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self._reply(401, {"message": "Unauthorized"})
            said = cluster.answers()
            if said:
                return self._reply(said[0], {"message": said[1]})
            url = urlsplit(self.path)
            name = url.path.removeprefix(PATH).strip("/")
            if self.command == "POST":
                manifest = json.loads(body)
                if manifest["metadata"]["name"] in cluster.jobs:
                    return self._reply(409, {"message": "already exists"})
                cluster.create(manifest)
                return self._reply(201, manifest)
            if self.command == "DELETE" and not name:
                key, _, value = parse_qs(url.query)["labelSelector"][0].partition("=")
                for job, manifest in list(cluster.jobs.items()):
                    if manifest["metadata"]["labels"].get(key) == value:
                        cluster.delete(job)
                return self._reply(200, {})
            if name not in cluster.jobs:
                return self._reply(404, {"message": f'jobs.batch "{name}" not found'})
            if self.command == "DELETE":
                cluster.delete(name)
                return self._reply(200, {})
            return self._reply(200, cluster.read(name))

        do_GET = do_POST = do_DELETE = _do  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def _certificate(certificate: Path, key: Path) -> Path:
    """A certificate for the loopback address; in one file with its key at ``key``."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cluster")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    certificate.write_bytes(pem)
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, plain) + pem)
    return key
