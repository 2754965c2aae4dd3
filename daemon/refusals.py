"""Why a record is no event: a reason from a fixed list, and a sentence for who has to mend it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

MISSING: Any = object()  # in the place of a field that is not there


class Reason(StrEnum):
    """Why a record is no event. The values are stable: they label a metric and dead letters."""

    NO_VALUE = "no_value"
    TOO_LARGE = "too_large"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_INPUT = "empty_input"
    BAD_LABEL = "bad_label"
    UNKNOWN_LABEL = "unknown_label"
    BAD_TIME = "bad_time"
    FUTURE = "future"
    TOO_OLD = "too_old"
    INVALID_AVRO = "invalid_avro"
    UNKNOWN_SCHEMA = "unknown_schema"
    REFUSED_BY_DECODER = "refused_by_decoder"


class RefusedError(Exception):
    """A record is no event; raised while reading it, caught around it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail


def unfit(path: str, value: Any, what: str, wanted: str) -> RefusedError:
    """The refusal of a field that is not there, or not what it must be."""
    if value is MISSING:
        return RefusedError(Reason.MISSING_FIELD, f"{what} '{path}' is not there")
    return RefusedError(
        Reason.WRONG_TYPE, f"{what} in '{path}' must be {wanted}, this is {kind_of(value)}"
    )


def kind_of(value: Any) -> str:
    """What a JSON value is, in a reader's words, without giving away long contents."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"the text {short(value)}"
    return str(value).lower()  # a boolean as JSON has it, or a number


def short(text: str) -> str:
    """The text in quotes, cut to what a sentence bears."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
