"""A registry on S3-compatible storage that has conditional writes (If-Match, If-None-Match).

Documents and journal rows are objects, each written on a condition, so that of several writers
one wins and the others learn of it. A folder's files are uploaded under a name of their own; one
last object points to them and makes them a version. Readers get copies in a local cache.
Credentials and region come from where AWS tools look for them. Needs the extra ``s3`` (boto3).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .durable import copy_file, make_folder, sha256
from .errors import Invalid, StorageError, explained
from .log import Entry, Torn, parse
from .store import VERSIONS, Document, Stage

MARK = "registry.json"
POINTER = "folder.json"
ORPHAN_AGE = timedelta(days=1)  # no upload takes longer, so older files without a pointer are left
_READERS = 16  # connections that read journal rows
_ROWS_AT_ONCE = 256
_PAUSE_SECONDS = 0.01  # after a lost race for a row, so that many writers do not meet again
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_CONFLICT = frozenset({"409", "412", "PreconditionFailed", "ConditionalRequestConflict"})


class _AbsentError(StorageError):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class _File:
    """Where a published file lies, and what it must be."""

    key: str
    sha256: str
    size: int


class S3Store:
    """The primitives of `registry.store.Store` on a bucket.

    url: ``s3://bucket/prefix``. cache: a local folder for copies. endpoint: of a server that is
    not Amazon's; else as boto3 finds it.
    """

    writable = True

    def __init__(self, url: str, cache: Path, endpoint: str | None = None) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise Invalid(f"registry.path: {url!r} names no bucket: s3://BUCKET/PREFIX")
        self.location = url
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._cache = cache.absolute()
        self._client = _client(endpoint)
        self._folders: dict[str, dict[str, _File]] = {}
        self._last = 0

    # ---------------------------------------------------------------- documents

    def exists(self) -> bool:
        return self._tag(MARK) is not None

    def create(self) -> None:
        self._put(MARK, b'{"schema": 1}', None)

    def read(self, name: str) -> Document | None:
        folder, _, file = name.rpartition("/")
        if folder.startswith(f"{VERSIONS}/"):
            found = self._files(folder) or {}
            if file not in found:
                return None
            return self._get(found[file].key)
        return self._get(name)

    def stamp(self, name: str) -> object:
        return self._tag(name)

    def swap(self, name: str, data: bytes, token: str | None) -> bool:
        return self._put(name, data, token)

    def write(self, name: str, data: bytes) -> None:
        self._put_plain(name, data)

    def written(self, name: str) -> float:
        with self._talking():
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
            return float(found["LastModified"].timestamp())
        raise AssertionError  # what does not answer has raised

    def names(self, folder: str) -> list[str]:
        # Not by delimiter: some servers go on naming folders that have become empty.
        start = f"{self._prefix}{folder}/"
        keys = (file["Key"].removeprefix(start) for file in self._listed(folder))
        return sorted({key.partition("/")[0] for key in keys})

    # ---------------------------------------------------------------- folders

    def folder(self, name: str) -> Path | None:
        files = self._files(name)
        if files is None:
            return None
        place = self._cache / name
        with explained(place):
            if not place.is_dir():
                self._prune()
            make_folder(place)
            for file, entry in files.items():
                if not (place / file).exists():
                    self._fetch(entry, place / file)
        return place

    def refetch(self, name: str, file: str) -> bool:
        files = self._files(name) or {}
        if file not in files:
            return False
        copy, entry = self._cache / name / file, files[file]
        with explained(copy):
            for bad in (copy, self._blob(entry.sha256)):
                bad.unlink(missing_ok=True)
            make_folder(copy.parent)
            self._fetch(entry, copy)
        return True

    @contextmanager
    def stage(self) -> Iterator[Stage]:
        stage = _S3Stage(self, f"files/{secrets.token_hex(16)}")
        try:
            yield stage
        finally:
            if not stage.committed:
                with suppress(StorageError):
                    self._delete_all(stage.place)

    def remove(self, name: str) -> None:
        files = self._files(name) if name.startswith(f"{VERSIONS}/") else None
        if files is None:
            self._delete(name)
            return
        self._delete(f"{name}/{POINTER}")  # out of sight; from here on it is rubbish
        self._folders.pop(name, None)
        for entry in files.values():
            self._delete(entry.key)

    def clean(self) -> list[str]:
        self._prune()
        used = {
            entry.key.rsplit("/", 1)[0]
            for version in self.names(VERSIONS)
            for entry in (self._files(f"{VERSIONS}/{version}") or {}).values()
        }
        removed = []
        limit = datetime.now(UTC) - ORPHAN_AGE
        for name in self.names("files"):
            place = f"files/{name}"
            if place in used:
                continue
            if all(file["LastModified"] < limit for file in self._listed(place)):
                self._delete_all(place)
                removed.append(name)
        return removed

    # ---------------------------------------------------------------- journal

    def last_row(self) -> int:
        # Rows have no gaps, so a few questions find the last one, however many there are.
        low, step = self._last, 1
        while self._tag(_row(low + step)) is not None:
            low += step
            step *= 2
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            if self._tag(_row(middle)) is not None:
                low = middle
            else:
                high = middle
        self._last = low
        return low

    def rows(self, after: int) -> Iterator[Entry]:
        last = self.last_row()
        with ThreadPoolExecutor(_READERS) as readers:
            for first in range(after + 1, last + 1, _ROWS_AT_ONCE):
                numbers = range(first, min(first + _ROWS_AT_ONCE, last + 1))
                yield from readers.map(self._entry, numbers)

    def append(self, make: Callable[[int], bytes], after: int | None = None) -> int | None:
        last, losses = self._last if after is None else self.last_row(), 0
        while after is None or last == after:
            if self._put(_row(last + 1), make(last + 1), None):
                self._last = last + 1
                return last + 1
            self._last = last + 1  # somebody else's
            losses += 1
            time.sleep(random.random() * min(losses, 10) * _PAUSE_SECONDS)
            last = self.last_row()
        return None

    def mend(self) -> Torn | None:
        return None  # an object is there whole or not at all

    def _entry(self, seq: int) -> Entry:
        document = self._get(_row(seq))
        if document is None:
            return Entry(seq, None, b"")
        entry = parse(document.data, seq - 1)
        return entry if entry.seq == seq else Entry(seq, None, document.data)

    # ---------------------------------------------------------------- copies

    def _files(self, folder: str) -> dict[str, _File] | None:
        """The files of a published folder, which never change."""
        if folder not in self._folders:
            document = self._get(f"{folder}/{POINTER}")
            if document is None:
                return None
            try:
                found = {name: _File(**entry) for name, entry in json.loads(document.data).items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise StorageError(f"{self.location}/{folder}/{POINTER} is damaged") from error
            self._folders[folder] = found
        return self._folders[folder]

    def _fetch(self, entry: _File, target: Path) -> None:
        """Put a file in the cache: from what another version has there, else from the bucket.

        What arrives damaged is left for the registry's own check to find, and is never shared.
        """
        blob = self._blob(entry.sha256)
        if _link(blob, target):
            return
        make_folder(blob.parent)
        part = blob.with_name(f"{blob.name}.{secrets.token_hex(4)}")
        try:
            with self._talking():
                self._client.download_file(self._bucket, self._prefix + entry.key, str(part))
            part.chmod(0o444)
            _link(part, target)
            if sha256(part) == entry.sha256:
                _link(part, blob)
        finally:
            part.unlink(missing_ok=True)

    def _keep(self, source: Path, digest: str) -> None:
        """What is uploaded need not be downloaded again."""
        blob = self._blob(digest)
        if not blob.exists():
            with suppress(OSError):
                make_folder(blob.parent)
                part = blob.with_name(f"{blob.name}.{secrets.token_hex(4)}")
                copy_file(source, part, 0o444)
                os.rename(part, blob)

    def _prune(self) -> None:
        """Drop copies of versions that are no longer published, and what only they used."""
        published = set(self.names(VERSIONS))
        copies = self._cache / VERSIONS
        with suppress(OSError):
            for name in set(os.listdir(copies)) - published:
                shutil.rmtree(copies / name, ignore_errors=True)
        old = (datetime.now(UTC) - ORPHAN_AGE).timestamp()
        with suppress(OSError):
            for blob in (self._cache / "blobs").iterdir():
                with suppress(OSError):
                    if blob.stat().st_nlink == 1 and blob.stat().st_mtime < old:
                        blob.unlink()

    def _blob(self, digest: str) -> Path:
        return self._cache / "blobs" / digest

    # ---------------------------------------------------------------- objects

    def _get(self, name: str) -> Document | None:
        with suppress(_AbsentError), self._talking():
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            return Document(found["Body"].read(), found["ETag"])
        return None

    def _tag(self, name: str) -> str | None:
        with suppress(_AbsentError), self._talking():
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
            return str(found["ETag"])
        return None

    def _put(self, name: str, data: bytes, token: str | None) -> bool:
        """Write on condition that the object is still the one with ``token``, or absent."""
        from botocore.exceptions import ClientError

        writer = secrets.token_hex(16)
        where = {"Bucket": self._bucket, "Key": self._prefix + name}
        condition = {"IfNoneMatch": "*"} if token is None else {"IfMatch": token}
        with self._talking():
            try:
                self._client.put_object(
                    **where, Body=data, Metadata={"writer": writer}, **condition
                )
            except ClientError as error:
                if _code(error) in _ABSENT and token is not None:
                    return False
                if _code(error) not in _CONFLICT:
                    raise
            else:
                return True
        # A try whose answer was lost is made again by the client, and meets what it wrote itself.
        with suppress(_AbsentError), self._talking():
            found = self._client.head_object(**where)
            return bool(found["Metadata"].get("writer") == writer)
        return False

    def _upload(self, key: str, source: Path, copy_of: str | None) -> None:
        """Put a file there: from an object that has the same bytes, if it is still there."""
        where = {"Bucket": self._bucket, "Key": self._prefix + key}
        if copy_of is not None:
            with suppress(_AbsentError), self._talking():
                origin = {"Bucket": self._bucket, "Key": self._prefix + copy_of}
                self._client.copy_object(**where, CopySource=origin)
                return
        with self._talking():
            self._client.upload_file(str(source), self._bucket, self._prefix + key)

    def _put_plain(self, key: str, data: bytes) -> None:
        with self._talking():
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def _delete(self, name: str) -> None:
        with suppress(_AbsentError), self._talking():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def _delete_all(self, folder: str) -> None:
        for file in self._listed(folder):
            self._delete(file["Key"].removeprefix(self._prefix))

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        with self._talking():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}{folder}/"
            )
            return [file for page in pages for file in page.get("Contents", ())]

    def _talking(self) -> AbstractContextManager[None]:
        return _explained(self.location)


class _S3Stage:
    def __init__(self, store: S3Store, place: str) -> None:
        self.place = place
        self.committed = False
        self._store = store
        self._files: dict[str, _File] = {}

    def add(
        self, name: str, source: Path, twins: Mapping[tuple[str, int], str], given: bool
    ) -> tuple[str, int]:
        source = source.resolve()
        digest, size = sha256(source), source.stat().st_size
        key, copy_of = f"{self.place}/{name}", None
        if twin := twins.get((digest, size)):
            folder, _, file = twin.rpartition("/")
            entry = (self._store._files(folder) or {}).get(file)
            copy_of = entry.key if entry else None
        self._store._upload(key, source, copy_of)
        self._store._keep(source, digest)
        self._files[name] = _File(key, digest, size)
        return digest, size

    def write(self, name: str, data: bytes) -> None:
        key = f"{self.place}/{name}"
        self._store._put_plain(key, data)
        self._files[name] = _File(key, hashlib.sha256(data).hexdigest(), len(data))

    def commit(self, name: str) -> bool:
        pointer = {file: asdict(entry) for file, entry in self._files.items()}
        self.committed = self._store._put(f"{name}/{POINTER}", json.dumps(pointer).encode(), None)
        return self.committed


def _client(endpoint: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as error:
        raise Invalid('a registry on S3 needs boto3: pip install "driftd[s3]"') from error
    config = Config(
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=2 * _READERS,
        retries={"mode": "standard", "max_attempts": 5},
        # Digests are the registry's own; not every server knows Amazon's newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@contextmanager
def _explained(location: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _ABSENT:
            raise _AbsentError(f"an object of {location} is gone") from error
        if code == "NoSuchBucket":
            message = f"there is no bucket for {location}: make it, or set registry.path"
        elif code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            message = (
                f"not permitted at {location} ({code}): check the credentials and their policy"
            )
        else:
            message = f"cannot use {location}: {error}"
        raise StorageError(message) from error
    except NoCredentialsError as error:
        raise StorageError(
            f"no credentials for {location}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "give the machine a role"
        ) from error
    except BotoCoreError as error:
        raise StorageError(f"cannot reach {location}: {error}") from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _link(source: Path, target: Path) -> bool:
    """Give ``source`` a second name; True if ``target`` is there afterwards."""
    try:
        os.link(source, target)
    except FileExistsError:
        return True
    except OSError:
        if not source.exists():
            return False
        shutil.copy2(source, target)  # a file system without links
    return True


def _row(seq: int) -> str:
    return f"journal/{seq:012d}.json"
