"""Strains a registry: processes that race to promote, and processes killed at their work.

``python -m bench._registry_strain race|kill CONFIG.json COUNT`` prints what it found as JSON.
Children are forked from a process that has opened nothing, so that a round costs no start.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from registry import Conflict, ManifestDraft, Registry, RegistryConfig, open_registry

RACERS = 16
ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
WORK = ("publish", "promote", "collect")
ROUND_SECONDS = 120.0


def strain(kind: str, config: RegistryConfig, number: int) -> dict[str, Any]:
    """Run it in a process of its own, and return what it found."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "config.json")
        settings.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "bench._registry_strain", kind, str(settings), str(number)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ------------------------------------------------------------------------------- races


def race(config: RegistryConfig, rounds: int) -> dict[str, Any]:
    """In each round all processes try to promote at once, each a version of its own.

    rounds_won: how many rounds had how many winners, by that number. lost_rows: rows that should
    be in the journal and are not. broken_links: promotions whose ``previous`` did not serve.
    """
    registry = open_registry(config, create=True)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2 * RACERS + 1):
            _publish(registry, Path(folder))
    registry.promote("v0001", actor="race", reason="a start")
    before = registry.journal.rows()
    rows_before = sum(1 for _ in before)
    barrier, wins = FORK.Barrier(RACERS), FORK.SimpleQueue()
    racers = [
        FORK.Process(target=_racer, args=(config, barrier, me, rounds, wins))
        for me in range(RACERS)
    ]
    began = time.monotonic()
    for racer in racers:
        racer.start()
    won = Counter(number for _ in racers for number in wins.get())
    for racer in racers:
        racer.join()
    seconds = time.monotonic() - began
    rows = list(registry.journal.rows())
    moves = [row.fields for row in rows if row.kind == "promote"]
    return {
        "rounds_won": dict(Counter(won[number] for number in range(rounds))),
        "lost_rows": rows_before + rounds + RACERS * rounds - len(rows),
        "gaps": [row.seq for row in rows] != list(range(1, len(rows) + 1)),
        "broken_links": sum(b["previous"] != a["version"] for a, b in pairwise(moves)),
        "failed": sum(racer.exitcode != 0 for racer in racers),
        "seconds": seconds,
    }


def _racer(config: RegistryConfig, barrier: Any, me: int, rounds: int, wins: Any) -> None:
    registry = open_registry(config)
    won = []
    try:
        for number in range(rounds):
            version = f"v{2 + 2 * me + number % 2:04d}"
            champion = registry.state().champion
            barrier.wait(ROUND_SECONDS)
            try:
                registry.promote(
                    version, actor=f"racer {me}", reason="race", expect_champion=champion
                )
                won.append(number)
            except Conflict:
                pass
            registry.journal.append("note", racer=me, round=number)
            barrier.wait(ROUND_SECONDS)
    except BaseException:
        barrier.abort()
        raise
    finally:
        wins.put(won)


# ------------------------------------------------------------------------------- kills


def kill(config: RegistryConfig, times: int) -> dict[str, Any]:
    """A process publishes, promotes or collects, and is killed at a random moment of it.

    unopened, unloaded: how often the registry did not open, or the champion did not load, right
    after. by_work: how many kills hit each kind of work.
    """
    random.seed(0)
    config = config.model_copy(update={"keep": 3, "history": 2})
    registry = open_registry(config, create=True)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(4):
            _publish(registry, Path(folder))
        registry.promote("v0001", actor="strain", reason="a start")
        registry.promote("v0002", actor="strain", reason="a start")
        found: Counter[str] = Counter()
        by_work: Counter[str] = Counter()
        for number in range(times):
            work = WORK[number % len(WORK)]
            by_work[work] += 1
            _killed(config, work, Path(folder, f"work-{number}"))
            found.update(_troubles(config))
    registry = open_registry(config)
    registry.collect(actor="strain")
    rows = list(registry.journal.rows())
    return {
        "kills": times,
        "by_work": dict(by_work),
        "unopened": found["unopened"],
        "unloaded": found["unloaded"],
        "rowless_moves": found["rowless"],
        "gaps": [row.seq for row in rows] != list(range(1, len(rows) + 1)),
        "torn_rows_set_aside": sum(row.kind == "journal-mended" for row in rows),
        "versions": len(registry.names()),
    }


def _killed(config: RegistryConfig, work: str, folder: Path) -> None:
    folder.mkdir()
    started = FORK.Event()
    child = FORK.Process(target=_works, args=(config, work, folder, started))
    child.start()
    started.wait(ROUND_SECONDS)
    time.sleep(random.random() * 0.05)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def _works(config: RegistryConfig, work: str, folder: Path, started: Any) -> None:
    registry = open_registry(config)
    does: dict[str, Callable[[], object]] = {
        "publish": lambda: _publish(registry, folder),
        "promote": lambda: _promote_another(registry),
        "collect": lambda: (_publish(registry, folder), registry.collect(actor="strain")),
    }
    started.set()
    while True:
        does[work]()


def _promote_another(registry: Registry) -> None:
    champion = registry.state().champion
    other = next(name for name in reversed(registry.names()) if name != champion)
    registry.promote(other, actor="strain", reason="another")


def _troubles(config: RegistryConfig) -> list[str]:
    try:
        registry = open_registry(config)
        state = registry.state()
        found = []
        last = list(registry.journal.rows(kinds=("promote", "collected"), limit=2))
        if [row.fields["generation"] for row in last] != [state.generation - 1, state.generation]:
            found.append("rowless")
    except Exception as error:
        print(f"did not open: {error!r}", file=sys.stderr)
        return ["unopened"]
    try:
        assert state.champion is not None
        registry.path(state.champion)
        for version in registry.versions():
            registry.path(version.id)
    except Exception as error:
        print(f"did not load: {error!r}", file=sys.stderr)
        found.append("unloaded")
    return found


_numbers = count()


def _publish(registry: Registry, folder: Path) -> str:
    (folder / "shared").write_bytes(b"the same in every version " * 4000)
    (folder / "head").write_text(f"{os.getpid()} {next(_numbers)}")
    draft = ManifestDraft(strategy="head", rung="head", task="text", labels=["a"])
    return registry.publish(folder, draft, actor="strain").id


if __name__ == "__main__":
    kinds = {"race": race, "kill": kill}
    with suppress(ModuleNotFoundError):
        import boto3.session  # noqa: F401 - children find it imported
    chosen = RegistryConfig.model_validate_json(Path(sys.argv[2]).read_text())
    print(json.dumps(kinds[sys.argv[1]](chosen, int(sys.argv[3]))))
