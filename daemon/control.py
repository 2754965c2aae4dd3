"""The operators' verbs, one function each: what the command line and the HTTP API both carry out.

A verb takes a `Desk` (where it works) and plain values, and answers with plain values: what the
API sends as JSON and the command line prints. An order takes an `Order` too: who, why, and a
request id that makes it happen once however often it is sent. What may be given to each verb, and
how it is checked, stands in `control_form`.

Works without the training extra. Raises the registry's errors, whose messages say what to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from daemon.policy_config import UNTRAINED, Rung
from registry import (
    CHAMPION_MOVES,
    Corrupt,
    Invalid,
    Mode,
    NotFound,
    Registry,
    Repeated,
    Routing,
    Row,
    State,
    StorageError,
    Stretch,
    Untrusted,
    Version,
    moment,
)

Answer = dict[str, Any]

# Rows of the journal that tell the story of an alarm.
ALARM_KINDS = (
    "alarm",
    "incident-opened",
    "recalled",
    "attempt-ended",
    "promote",
    "rollback",
    "incident-closed",
)


@dataclass(frozen=True, slots=True)
class Desk:
    """Where verbs are carried out.

    open: the registry; raises `NotFound` where there is none. snapshot: what the running daemon
    last said of itself (`/status`), None if none answers. place: where it was asked, for messages.
    """

    open: Callable[[], Registry]
    snapshot: Callable[[], Answer | None]
    place: str


@dataclass(frozen=True, slots=True)
class Order:
    """Who orders, why, and the id under which it is carried out once."""

    actor: str
    reason: str
    request_id: str | None = None

    def words(self) -> dict[str, Any]:
        """As the registry's moves take them."""
        return {"actor": self.actor, "reason": self.reason, "request_id": self.request_id}


# -------------------------------------------------------------------- looking


def status(desk: Desk) -> Answer:
    """Who serves, how accurate it is, and what goes on."""
    try:
        state, missing = desk.open().state().as_dict(), None
    except NotFound as error:
        state, missing = None, str(error)
    return {"registry": state, "daemon": desk.snapshot(), "missing": missing}


def versions(desk: Desk, number: int | None = None) -> list[Answer]:
    """The versions' manifests, oldest first, each with its role; the newest ``number``."""
    registry = desk.open()
    state, found = registry.state(), registry.versions()
    return [_listed(version, state) for version in (found[-number:] if number else found)]


def serving(desk: Desk, at: str) -> Answer:
    """Which version served at a time, and the journal's row of the move that made it."""
    when = moment(at)
    row = desk.open().serving_at(when)
    return {"at": when.isoformat(), **(row.as_dict() if row else {"version": None})}


def show(desk: Desk, version: str) -> Answer:
    """One version, or the one behind an alias: manifest, evidence, and its moves."""
    registry = desk.open()
    state = registry.state()
    found = registry.version(resolve(state, version))
    history = [
        row.as_dict()
        for row in registry.journal.rows(kinds=CHAMPION_MOVES)
        if found.id in (row.fields.get("version"), row.fields.get("previous"))
    ]
    evidence = registry.evidence(found.id)
    return {**_listed(found, state), "evidence": evidence, "history": history}


def diff(desk: Desk, a: str, b: str) -> Answer:
    """What differs between the manifests of two versions, or aliases."""
    registry = desk.open()
    state = registry.state()
    one, two = resolve(state, a), resolve(state, b)
    return {"a": one, "b": two, "differences": registry.diff(one, two)}


def verify(desk: Desk, versions: Sequence[str] = ()) -> list[Answer]:
    """Whether versions are what was published, file by file, and by whom; all by default."""
    registry = desk.open()
    state = registry.state()
    names = [resolve(state, name) for name in versions] or registry.names()
    return [_verified(registry, name) for name in names]


def journal(
    desk: Desk,
    limit: int = 100,
    since: int = 0,
    kinds: Sequence[str] = (),
    oldest: bool = False,
) -> Answer:
    """The last ``limit`` rows numbered above ``since``, of these kinds; or the ``oldest`` of them.

    ``last`` is the number to go on after: ask again with it as ``since``.
    """
    rows = desk.open().journal
    if oldest:
        found, last = [], since
        for row in rows.rows(since):
            last = row.seq
            if not kinds or row.kind in kinds:
                found.append(row)
            if len(found) == limit:
                break
    else:
        last = max((row.seq for row in rows.rows(limit=1)), default=0)
        found = [row for row in rows.rows(since, kinds or None, limit) if row.seq <= last]
        last = max(last, since)
    return {"rows": [row.as_dict() for row in found], "last": last}


def explain(desk: Desk, alarm: str | None = None) -> Answer:
    """An alarm, by the number of its row or its incident's id; the last one by default."""
    rows = list(desk.open().journal.rows(kinds=ALARM_KINDS))
    found = _alarm(rows, alarm)
    if found is None:
        wanted = f"no alarm {alarm}" if alarm else "no alarm yet"
        raise NotFound(f"{wanted}; `driftd journal --kind alarm --all` lists them")
    story = _story(found, [row for row in rows if row.seq > found.seq])
    return {**found.as_dict(), "story": [row.as_dict() for row in story]}


def distances(desk: Desk) -> Answer:
    """How far each detector of the running daemon is from an alarm."""
    return _running(desk).get("drift") or {}


def quarantine(desk: Desk) -> list[Answer]:
    """The labels that the running daemon holds back, case by case."""
    return _running(desk).get("quarantine") or []


def routing(desk: Desk) -> Answer:
    """Which traffic a challenger sees before its promotion, and what servers have counted."""
    registry = desk.open()
    found = registry.routing()
    return {**asdict(found), "traffic": registry.traffic(found.generation).as_dict()}


# -------------------------------------------------------------------- orders


def promote(desk: Desk, order: Order, version: str, force: bool = False) -> Answer:
    """Let a version serve; the champion becomes the previous one."""
    state = desk.open().promote(version, force=force, **order.words())
    return _moved(state, f"{state.champion} serves now; {state.previous or 'nothing'} before.")


def rollback(
    desk: Desk,
    order: Order,
    to: str | None = None,
    before_offset: str | None = None,
    before_time: str | None = None,
) -> Answer:
    """Take the champion back: the previous version, or another one, serves again."""
    if sum(given is not None for given in (to, before_offset, before_time)) > 1:
        raise Invalid("give one of a version, an offset and a time")
    before = Stretch.parse(before_offset) if before_offset else None
    registry = desk.open()
    withdrawn = registry.state().withdrawn
    state = registry.rollback(
        to=to,
        before=before or (moment(before_time) if before_time else None),
        **order.words(),
    )
    gone = [name for name in state.withdrawn if name not in withdrawn]
    verb = "is" if len(gone) == 1 else "are"
    sentence = f"; {', '.join(gone)} {verb} withdrawn" if gone else ""
    return _moved(state, f"{state.champion} serves again{sentence}.")


def route(
    desk: Desk,
    order: Order,
    mode: Mode,
    version: str | None = None,
    share: float | None = None,
    slow_seconds: float | None = None,
) -> Answer:
    """Let a challenger see a copy of the traffic, or answer a share of it; or end that."""
    found = desk.open().route(
        version,
        mode=mode,
        share=share or 0.0,
        slow_seconds=slow_seconds or Routing().slow_seconds,
        **order.words(),
    )
    what = "a copy of the requests" if mode == "shadow" else f"{found.share:g} % of the requests"
    sentence = f"{version} sees {what}, beside {found.champion}."
    if mode == "off":
        sentence = f"Only the champion, {found.champion}, sees traffic."
    return {**asdict(found), "sentence": sentence}


def pin(desk: Desk, order: Order, version: str | None = None) -> Answer:
    """Freeze what serves, after promoting a version where one is named."""
    registry = desk.open()
    words = order.words()
    if version is not None and registry.state().champion != version:
        # A move of its own: a request that is sent again may find it done and the pin not.
        first = f"{order.request_id}/promote" if order.request_id else None
        with suppress(Repeated):
            registry.promote(version, **words | {"request_id": first})
    state = registry.pin(**words)
    return _moved(state, f"Pinned: {state.champion or 'nothing'} goes on serving until unpin.")


def unpin(desk: Desk, order: Order) -> Answer:
    """Allow promotions again."""
    state = desk.open().unpin(**order.words())
    return _moved(state, "Unpinned: promotions are allowed again.")


def pause(desk: Desk, order: Order) -> Answer:
    """Stop learning; predicting and watching go on."""
    state = desk.open().pause(**order.words())
    return _moved(state, "Paused: nothing is learned until resume.")


def resume(desk: Desk, order: Order) -> Answer:
    """Learn again after a pause."""
    state = desk.open().resume(**order.words())
    return _moved(state, "Resumed: learning goes on.")


def refresh(
    desk: Desk, order: Order, rung: Rung | None = None, without: Sequence[str] = ()
) -> Answer:
    """Ask the daemon to train a challenger, of one rung and without offset ranges if named."""
    stretches = [Stretch.parse(text) for text in without]
    if any(stretch.end is None for stretch in stretches):
        raise Invalid("a range needs an end, such as orders:0:1200-1400")
    if stretches and rung in UNTRAINED:
        raise Invalid(f"the rung {rung} trains nothing: it cannot leave events out")
    body = {"rung": rung, "without": [stretch.as_dict() for stretch in stretches]}
    return _asked(desk, order, "refresh", body, f"for a refresh ({rung or 'rung by policy'})")


def release(desk: Desk, order: Order, case: str) -> Answer:
    """Have the daemon learn the labels of a case that it holds back."""
    return _decided(desk, order, "release", case)


def drop(desk: Desk, order: Order, case: str) -> Answer:
    """Have the daemon never learn the labels of a case that it holds back."""
    return _decided(desk, order, "drop", case)


# -------------------------------------------------------------------- what they share


def role(state: State, version: str) -> str:
    """What a version is at the moment: champion, challenger, previous, withdrawn."""
    aliases = ("champion", "challenger", "previous")
    roles = [name for name in aliases if getattr(state, name) == version]
    if version == state.champion and state.pinned:
        roles.append("pinned")
    if version in state.withdrawn:
        roles.append("withdrawn")
    return ", ".join(roles)


def resolve(state: State, name: str) -> str:
    """The version behind an alias, or the name itself. Raises `NotFound` for an empty alias."""
    if name not in ("champion", "challenger", "previous"):
        return name
    version: str | None = getattr(state, name)
    if version is None:
        raise NotFound(f"there is no {name} at the moment")
    return version


def _running(desk: Desk) -> Answer:
    found = desk.snapshot()
    if found is None:
        raise NotFound(f"no daemon answers at {desk.place}; `driftd run` starts it")
    return found


def _moved(state: State, sentence: str) -> Answer:
    return {**state.as_dict(), "sentence": sentence}


def _asked(desk: Desk, order: Order, kind: str, body: Answer, what: str) -> Answer:
    request = desk.open().request(kind, body, **order.words())
    return {
        "id": request.id,
        "kind": kind,
        **body,
        "sentence": f"Asked {what}: request {request.id}.",
    }


def _decided(desk: Desk, order: Order, action: str, case: str) -> Answer:
    daemon = desk.snapshot()
    if daemon is not None and case not in {c.get("case") for c in daemon.get("quarantine") or ()}:
        raise NotFound(f"there is no case {case} in the quarantine; `driftd quarantine` lists them")
    body = {"action": action, "case": case}
    return _asked(desk, order, "quarantine", body, f"to {action} {case}")


def _listed(version: Version, state: State) -> Answer:
    return {**version.manifest.model_dump(mode="json"), "role": role(state, version.id)}


def _verified(registry: Registry, name: str) -> Answer:
    row: Answer = {
        "version": name, "files": None, "bytes": None, "signed_by": None, "problem": None,
    }  # fmt: skip
    try:
        row["signed_by"] = registry.signed_by(name)
        registry.path(name)
        files = registry.version(name).manifest.files.values()
        row |= {"files": len(files), "bytes": sum(entry.size for entry in files)}
    except (Corrupt, Untrusted, StorageError) as error:
        row["problem"] = str(error)
    return row


def _alarm(rows: list[Row], wanted: str | None) -> Row | None:
    """The alarm of that row number, or the one that opened that incident; the last by default."""
    alarms = [row for row in rows if row.kind == "alarm"]
    if wanted is None:
        return alarms[-1] if alarms else None
    if wanted.isdigit():
        return next((row for row in alarms if row.seq == int(wanted)), None)
    opened = next(
        (r for r in rows if r.kind == "incident-opened" and r.fields.get("incident") == wanted),
        None,
    )
    if opened is None:
        return None
    return next((row for row in reversed(alarms) if row.seq < opened.seq), None)


def _story(alarm: Row, later: list[Row]) -> list[Row]:
    """What was done about it: the rows of the incident that it opened or added to."""
    incident = alarm.fields.get("incident")
    if incident is None:
        opened = next((row for row in later if row.kind in ("incident-opened", "alarm")), None)
        if opened is None or opened.kind == "alarm":
            return []
        incident = opened.fields.get("incident")
    mine = [r for r in later if r.fields.get("incident") == incident and r.kind != "alarm"]
    before = list(itertools.takewhile(lambda row: row.kind != "incident-closed", mine))
    return mine[: len(before) + 1]
