"""What may be given to each of the operators' verbs, and how it is checked: one table.

The API's routes and its OpenAPI document are made from it, and the command line carries its
commands out through it, here or over HTTP.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon import control
from daemon.control import Desk, Order
from daemon.policy_config import LADDER
from registry import MODES, Invalid, Repeated

MOST_ROWS = 10_000
LONGEST_REASON, LONGEST_ID = 2000, 200

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value that a verb takes: its JSON schema, what it means, whether it must be given."""

    schema: Schema
    text: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: the function, what it takes, whether it orders, and what its answer looks like."""

    run: Callable[..., Any]
    answer: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    orders: bool = False

    @property
    def name(self) -> str:
        """As it is called everywhere."""
        return self.run.__name__

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.run.__doc__ or "").partition("\n")[0]


def _verbs(*verbs: Verb) -> dict[str, Verb]:
    return {verb.name: verb for verb in verbs}


VERSION = Parameter(TEXT, "A version's id, such as v0012.", required=True)
ALIASED = Parameter(TEXT, "A version's id, or champion, challenger or previous.", required=True)
NAMED = Parameter(TEXT, "A version's id.")
CASE = Parameter(TEXT, "The case's id, such as q0001.", required=True)

VERBS = _verbs(
    Verb(control.status, "Status"),
    Verb(
        control.versions,
        "Versions",
        {"number": Parameter({"type": "integer", "minimum": 1}, "Only the newest so many.")},
    ),
    Verb(
        control.serving,
        "Row",
        {"at": Parameter(TEXT, "A time, ISO 8601, in UTC where it names no zone.", True)},
    ),
    Verb(control.show, "Version", {"version": ALIASED}),
    Verb(control.diff, "Difference", {"a": ALIASED, "b": ALIASED}),
    Verb(
        control.verify,
        "Verified",
        {"versions": Parameter(TEXTS, "Which versions, or aliases; all by default.")},
    ),
    Verb(
        control.journal,
        "Rows",
        {
            "limit": Parameter(
                {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": 100},
                "Most rows to answer with.",
            ),
            "since": Parameter(
                {"type": "integer", "minimum": 0, "default": 0}, "Only rows after this number."
            ),
            "kinds": Parameter(TEXTS, "Only rows of these kinds."),
            "oldest": Parameter(FLAG, "The oldest of them instead of the newest."),
        },
    ),
    Verb(
        control.explain,
        "Explained",
        {
            "alarm": Parameter(
                TEXT, "The number of the alarm's row, or its incident's id; else the last alarm."
            )
        },
    ),
    Verb(control.distances, "Distances"),
    Verb(control.quarantine, "Cases"),
    Verb(control.routing, "Routing"),
    Verb(
        control.promote,
        "State",
        {
            "version": VERSION,
            "force": Parameter(FLAG, "Even if serving is pinned or the version withdrawn."),
        },
        orders=True,
    ),
    Verb(
        control.rollback,
        "State",
        {
            "to": NAMED,
            "before_offset": Parameter(
                TEXT,
                "TOPIC:PARTITION:OFFSET; the latest champion that learned nothing from there on.",
            ),
            "before_time": Parameter(
                TEXT, "ISO 8601; the latest champion that learned nothing from that time on."
            ),
        },
        orders=True,
    ),
    Verb(
        control.route,
        "Routing",
        {
            "mode": Parameter(
                {"type": "string", "enum": list(MODES)},
                "shadow: a copy of all requests; canary: a share of them; off.",
                required=True,
            ),
            "version": Parameter(TEXT, "The challenger's id; none for off."),
            "share": Parameter(
                {"type": "number", "minimum": 0, "maximum": 100}, "Percent; for a canary."
            ),
            "slow_seconds": Parameter(
                {"type": "number", "minimum": 0}, "From where on servers count a request as slow."
            ),
        },
        orders=True,
    ),
    Verb(control.pin, "State", {"version": NAMED}, orders=True),
    Verb(control.unpin, "State", orders=True),
    Verb(control.pause, "State", orders=True),
    Verb(control.resume, "State", orders=True),
    Verb(
        control.refresh,
        "Request",
        {
            "rung": Parameter(
                {"type": "string", "enum": list(LADDER)}, "Only this rung; else the policy chooses."
            ),
            "without": Parameter(
                TEXTS, "TOPIC:PARTITION:START-END; offsets never to learn from, END excluded."
            ),
        },
        orders=True,
    ),
    Verb(control.release, "Request", {"case": CASE}, orders=True),
    Verb(control.drop, "Request", {"case": CASE}, orders=True),
)

ORDER = {
    "reason": Parameter(
        {"type": "string", "minLength": 1, "maxLength": LONGEST_REASON},
        "Why; goes to the journal.",
        required=True,
    ),
    "actor": Parameter(
        {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
        "Who gives the order, beside what the token says.",
    ),
    "request_id": Parameter(
        {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
        "An order that was carried out under this id is not carried out again.",
    ),
}


def carry_out(desk: Desk, verb: Verb, given: Mapping[str, Any], order: Order | None = None) -> Any:
    """The verb's answer. Raises the registry's errors; `Invalid` for what it does not take."""
    arguments = checked(verb.parameters, given)
    if order is None:
        return verb.run(desk, **arguments)
    try:
        return verb.run(desk, order, **arguments)
    except Repeated as error:
        row = error.row
        sentence = f"Carried out before, at {row['time']}: {row['kind']} by {row['actor']}."
        state = desk.open().state().as_dict()
        return {**state, "id": row.get("id"), "repeated": row, "sentence": sentence}


def checked(parameters: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, nulls left out. Raises `Invalid` for what does not fit the parameters."""
    for name in given:
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise Invalid(f"{name!r} is not known here{meant}")
    found = {name: value for name, value in given.items() if value is not None}
    for name, parameter in parameters.items():
        if name in found:
            _check(name, found[name], parameter.schema)
        elif parameter.required:
            raise Invalid(f"{name} is missing: {parameter.text}")
    return found


def from_query(parameters: Mapping[str, Parameter], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The values of a query string as the parameters' types; what is none stays text."""
    found: dict[str, Any] = {}
    for name, text in pairs:
        kind = parameters[name].schema["type"] if name in parameters else "string"
        if kind == "array":
            found.setdefault(name, []).append(text)
        elif kind == "integer":
            found[name] = int(text) if text.removeprefix("-").isdecimal() else text
        elif kind == "boolean":
            found[name] = {"true": True, "1": True, "false": False, "0": False}.get(text, text)
        else:
            found[name] = text
    return found


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "a text"),
    "integer": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "boolean": ((bool,), "true or false"),
    "array": ((list, tuple), "a list"),
}


def _check(name: str, value: Any, schema: Schema) -> None:
    """The few words of JSON schema that the table uses. Raises `Invalid`."""
    kind, words = _TYPES[schema["type"]]
    if not isinstance(value, kind) or (kind != (bool,) and isinstance(value, bool)):
        raise Invalid(f"{name} must be {words}")
    if "enum" in schema and value not in schema["enum"]:
        close = difflib.get_close_matches(value, schema["enum"], n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise Invalid(f"{name} must be one of {', '.join(schema['enum'])}{meant}")
    if isinstance(value, str) and not value.strip():
        raise Invalid(f"{name} must not be empty")
    if isinstance(value, str) and len(value) > schema.get("maxLength", LONGEST_REASON):
        raise Invalid(f"{name} is longer than {schema.get('maxLength', LONGEST_REASON)} characters")
    low, high = schema.get("minimum"), schema.get("maximum")
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise Invalid(f"{name} must be {limits}")
    if isinstance(value, list | tuple):
        for item in value:
            _check(name, item, schema["items"])
