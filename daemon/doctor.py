"""``driftd doctor``: what the daemon rests on, tried out one thing after the other.

Each check is a generator of findings; one that fails in a way nobody thought of is a finding too.
Nothing is changed but for a document of the doctor's own in the registry, which is removed again.
Kafka is looked at in `doctor_kafka`.
"""

from __future__ import annotations

import importlib.util
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from daemon.checkpoint import CheckpointError
from daemon.config import Config
from daemon.stored_checkpoint import open_checkpoints
from daemon.stream_config import FileLettersConfig, FileSourceConfig, KafkaSourceConfig
from deploy.access import Tokens, exposures
from deploy.errors import AccessError, LoadError
from deploy.session import Session
from deploy.tls import make_context
from registry import (
    NotFound,
    Registry,
    RegistryError,
    StorageError,
    Untrusted,
    open_registry,
)

Outcome = Literal["ok", "warn", "fail"]
Positions = dict[tuple[str, int], int]

MIB = 1024**2
SKEW_SECONDS = 5.0  # more than a second's resolution and a slow answer explain
OLD_SECONDS = 600.0  # a checkpoint of a running daemon is younger
FREE_BYTES, FREE_SHARE = 1024 * MIB, 0.05  # less is worth a warning
FREE_INODES = 10_000
OPEN_FILES = 1024
# What a trainer takes beside the daemon: a MiniLM fully fine-tuned, a table's model.
TRAINER_BYTES = {"text": 2000 * MIB, "tabular": 400 * MIB}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    check: str
    outcome: Outcome
    says: str
    do: str = ""


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", says)


def warn(check: str, says: str, do: str) -> Finding:
    """It works, but not for ever."""
    return Finding(check, "warn", says, do)


def fail(check: str, says: str, do: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", says, do)


def examine(config: Config, running: Callable[[], dict[str, object] | None]) -> Iterator[Finding]:
    """All findings. ``running``: what the daemon of this machine says of itself, if it answers."""
    positions: Positions = {}
    registry: list[Registry] = []
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("config", lambda: settings(config)),
        ("packages", lambda: packages(config)),
        ("daemon", lambda: process(config, running())),
        ("state", lambda: state(config, positions)),
        ("store", lambda: store(config, registry)),
        ("champion", lambda: champion(registry)),
        ("source", lambda: source(config, positions)),
        ("disk", lambda: disk(config)),
        ("memory", lambda: memory(config)),
        ("threads", lambda: threads(config)),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield fail(name, f"{type(error).__name__}: {error}", "this is unforeseen: report it")


def settings(config: Config) -> Iterator[Finding]:
    """What the configuration allows and should be known; that it can be read is known already."""
    found = False
    for section, port in (("http", config.http), ("server", config.server)):
        for sentence in exposures(port.host, port.access, port.tls, section):
            found = True
            says, _, do = sentence.partition(": ")
            yield warn("config", says, do)
        try:
            if port.access.tokens is not None:
                Tokens(port.access.tokens)
            if port.tls.certificate is not None:
                make_context(port.tls)
        except AccessError as error:
            found = True
            yield fail("config", str(error), f"mend {section}.access or {section}.tls")
    if not found:
        yield ok("config", "every setting is valid")


def packages(config: Config) -> Iterator[Finding]:
    """Whether what the daemon imports is installed, and the base model there."""
    names = ["onnx", "scipy", "torch", "transformers"]
    names += ["kafka"] if isinstance(config.source, KafkaSourceConfig) else []
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        says = f"{', '.join(missing)} cannot be imported"
        yield fail("packages", says, 'pip install "driftd[daemon]"')
    else:
        yield ok("packages", "the training packages are installed")
    base = config.model.base
    if config.model.task != "text":
        return
    if base.startswith("package:"):
        package = base.removeprefix("package:")
        if importlib.util.find_spec(package) is None:
            yield fail("packages", f"model.base: {package} is not installed", "install it")
    elif base.startswith((".", "/")) and not Path(base).is_dir():
        yield fail("packages", f"model.base: there is no folder {base}", "mount or copy it there")


def process(config: Config, status: dict[str, object] | None) -> Iterator[Finding]:
    """Whether a daemon runs here, and how it is."""
    if status is None:
        where = f"{config.http.host}:{config.http.port}"
        says = f"no daemon answers at {where}"
        yield warn("daemon", says, "`driftd run` starts it; with tokens, set DRIFTD_TOKEN")
    elif status.get("ready"):
        yield ok("daemon", f"runs, {status.get('state')}, at event {status.get('events')}")
    else:
        do = "its log and `driftd status` say more"
        yield warn("daemon", f"runs and is not ready: {status.get('reason')}", do)


def state(config: Config, positions: Positions) -> Iterator[Finding]:
    """The checkpoints: readable, whole, recent. Fills in ``positions``."""
    folder = config.checkpoint.path
    if problem := unwritable(folder):
        yield fail("state", problem, "set checkpoint.path to a folder that the daemon may write")
        return
    where = f"in {folder}" if config.checkpoint.store == "folder" else "in the registry's store"
    try:
        begun = config.checkpoint.store == "registry" or (folder / "checkpoints").is_dir()
        found = open_checkpoints(config).load() if begun else None
    except NotFound:
        found = None
    except (CheckpointError, RegistryError) as error:
        says, _, do = str(error).partition(". ")
        yield fail("state", says, do)
        return
    if found is None:
        yield ok("state", f"no checkpoint {where} yet")
        return
    positions |= {(topic, p): offset for topic, p, offset in found.values["positions"]}
    says = f"checkpoint {found.sequence} is whole, at event {found.values['events']}"
    if found.fallback:
        do = "the events since it are read again; look after the disk"
        yield warn("state", f"{says}; a newer one is damaged: {found.fallback}", do)
    else:
        yield ok("state", says)


def store(config: Config, opened: list[Registry]) -> Iterator[Finding]:
    """The registry's storage: reads, writes, keeps its word, and has the right time."""
    try:
        registry = open_registry(config.registry)
    except NotFound as error:
        if config.registry.path.startswith("s3://"):
            yield warn("store", str(error), "the daemon makes it, if it may write there")
        elif problem := unwritable(Path(config.registry.path).expanduser()):
            yield fail("store", problem, "set registry.path to a folder that the daemon may write")
        else:
            yield ok("store", "no registry yet: the daemon makes it")
        return
    except RegistryError as error:
        yield fail("store", str(error), "see registry.path, its permissions or its credentials")
        return
    opened.append(registry)
    try:
        began = time.monotonic()
        ahead = registry.try_out()
        took = time.monotonic() - began
    except StorageError as error:
        yield fail("store", str(error), "the daemon must be able to write there")
        return
    yield ok("store", f"{config.registry.path} reads, writes and compares-and-swaps, {took:.2f} s")
    if abs(ahead) > SKEW_SECONDS:
        says = f"the storage's clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
        yield fail("clock", says, "synchronise this machine's clock (NTP), or the storage's")
    else:
        yield ok("clock", "this machine and the storage agree on the time")


def champion(opened: list[Registry]) -> Iterator[Finding]:
    """The version that serves: signature, digests, and that it loads and answers."""
    if not opened:
        return
    registry = opened[0]
    try:
        name = registry.state().champion
    except RegistryError as error:
        says, _, do = str(error).partition(": ")
        yield fail("champion", says, do)
        return
    if name is None:
        yield ok("champion", "none yet: the daemon trains the first one (bootstrap.warmup_events)")
        return
    do = f"restore it from a backup, or `driftd rollback --reason ...`; `driftd verify {name}`"
    try:
        folder = registry.path(name)
        signer = registry.signed_by(name)
        began = time.monotonic()
        Session.open(folder).warm()
    except Untrusted as error:
        yield fail("champion", str(error), "see registry.trusted_keys, or roll back")
        return
    except (LoadError, RegistryError) as error:
        yield fail("champion", str(error), do)
        return
    signed = f", signed by {signer}" if signer else ""
    took = time.monotonic() - began
    yield ok("champion", f"{name} is as published{signed}, loads and answers ({took:.1f} s)")


def source(config: Config, positions: Positions) -> Iterator[Finding]:
    """Where events come from, and dead letters go."""
    if isinstance(config.source, KafkaSourceConfig):
        if importlib.util.find_spec("kafka") is not None:
            from daemon.doctor_kafka import kafka

            yield from kafka(config, config.source, positions)
    elif isinstance(config.source, FileSourceConfig):
        path = config.source.path
        if not path.is_file():
            yield fail("source", f"there is no file {path}", "mend source.path")
        elif not os.access(path, os.R_OK):
            yield fail("source", f"{path} may not be read", "give the daemon's user access")
        else:
            yield ok("source", f"{path} can be read")
    else:
        yield ok("source", "standard input")
    letters = config.dead_letters
    if isinstance(letters, FileLettersConfig):
        if problem := unwritable(letters.path.absolute().parent):
            yield fail("letters", problem, "set dead_letters.path to a file that can be written")
        else:
            yield ok("letters", f"{letters.path} can be written")


def disk(config: Config) -> Iterator[Finding]:
    """Room for state, registry and dead letters; what lies on one disk is told once."""
    local = not config.registry.path.startswith("s3://")
    folders = {
        "checkpoint.path": config.checkpoint.path,
        "registry.path" if local else "registry.cache": Path(config.registry.path).expanduser()
        if local
        else config.registry.cache.expanduser(),
    }
    if isinstance(config.dead_letters, FileLettersConfig):
        folders["dead_letters.path"] = config.dead_letters.path.absolute().parent
    disks: dict[int, tuple[Path, list[str]]] = {}
    for key, folder in folders.items():
        here = existing(folder)
        disks.setdefault(here.stat().st_dev, (here, []))[1].append(key)
    for here, keys in disks.values():
        yield _room(here, ", ".join(keys), needed(config) if "checkpoint.path" in keys else MIB)


def needed(config: Config) -> int:
    """Bytes of the next checkpoint, beside the two that are kept: as large as the last one."""
    found = list((config.checkpoint.path / "checkpoints").glob("*.safetensors"))
    last = max((path.stat().st_size for path in found), default=0)
    return max(2 * last, 64 * MIB)


def _room(here: Path, keys: str, need: int) -> Finding:
    usage, inodes = shutil.disk_usage(here), os.statvfs(here)
    says = f"{usage.free / MIB:,.0f} MiB free at {here} ({keys})"
    do = f"free space there, or move {keys}"
    if usage.free < need:
        return fail("disk", f"{says}: the next checkpoint needs {need / MIB:,.0f}", do)
    if usage.free < FREE_BYTES or usage.free < FREE_SHARE * usage.total:
        return warn("disk", says, do)
    if inodes.f_files > 0 and inodes.f_favail < FREE_INODES:
        return warn("disk", f"{inodes.f_favail} files more fit at {here} ({keys})", do)
    return ok("disk", says)


def memory(config: Config) -> Iterator[Finding]:
    """Room for the trainer beside the daemon."""
    free = available_bytes()
    if math.isinf(free):
        yield warn("memory", "the system does not say how much memory is free", "look yourself")
        return
    trains_elsewhere = config.trainer.job.enabled
    need = TRAINER_BYTES["tabular" if trains_elsewhere else config.model.task]
    need += config.memory.max_bytes
    says = f"{free / MIB:,.0f} MiB available, {need / MIB:,.0f} wanted for memory and training"
    limit = config.trainer.memory_mb
    if free < need:
        do = "give it more memory, leave deep rungs out (policy.rungs), or set trainer.memory_mb"
        yield warn("memory", says, do)
    elif limit is not None and limit * MIB < need - config.memory.max_bytes:
        says = f"trainer.memory_mb is {limit}; {(need - config.memory.max_bytes) / MIB:,.0f} wanted"
        yield warn("memory", says, "raise it, or leave deep rungs out (policy.rungs)")
    else:
        yield ok("memory", says)


def threads(config: Config) -> Iterator[Finding]:
    """Cores for the loop and the trainer, and open files."""
    cores = usable_cores()
    wanted = config.trainer.threads + 1
    says = f"{cores:g} cores for the loop and {config.trainer.threads} of the trainer"
    if cores < wanted:
        yield warn("threads", says, "training will slow the loop: lower trainer.threads, add cores")
    else:
        yield ok("threads", says)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        says = f"at most {files} open files"
        yield warn("threads", says, f"raise the limit to {OPEN_FILES}: `ulimit -n`, LimitNOFILE=")


# -------------------------------------------------------------------- what the system says


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    return here


def unwritable(folder: Path) -> str | None:
    """Why a folder could not be written, or made; it is not made here."""
    here = existing(folder)
    if not here.is_dir():
        return f"{here} is not a folder"
    return None if os.access(here, os.W_OK | os.X_OK) else f"not permitted to write in {here}"


def available_bytes(root: Path = Path("/")) -> float:
    """Memory that can be had: of the machine, or what is left of the container's limit."""
    free = math.inf
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = float(line.split()[1]) * 1024
    except OSError:
        pass
    cgroup = root / "sys/fs/cgroup"
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = float((cgroup / "memory.current").read_text())
        if limit != "max":
            free = min(free, float(limit) - used)
    except (OSError, ValueError):
        pass
    return free


def usable_cores(root: Path = Path("/")) -> float:
    """Cores that the process may use: of the machine, or of the container's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, float(quota) / float(period))
    except (OSError, ValueError):
        pass
    return cores


def worst(findings: list[Finding]) -> Outcome:
    """The worst outcome of all.

    >>> worst([ok("a", ""), fail("b", "", ""), warn("c", "", "")])
    'fail'
    """
    outcomes: tuple[Outcome, ...] = ("fail", "warn", "ok")
    return next((o for o in outcomes if any(f.outcome == o for f in findings)), "ok")


def shortened(finding: Finding, length: int = 400) -> Finding:
    """The finding with a sentence of at most so many characters: clients' errors can be long."""
    says = " ".join(finding.says.split())
    return replace(finding, says=says if len(says) <= length else says[: length - 3] + "...")
