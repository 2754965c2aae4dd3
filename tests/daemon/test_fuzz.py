"""Broken records by the thousand: none stops the loop, each is refused with its reason or learned.

Records are made good, broken in a known way, or mutated byte by byte; every one must end in the
ledger or in the dead-letter topic, never in both and never in neither.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kafka")
pytest.importorskip("torch", reason="pip install 'driftd[daemon]'")

from daemon.config import Config
from daemon.decode import Reason
from tests.daemon.loops import loop_of

LIMIT = 20_000  # bytes of a record
KEPT = 1_000  # of a refused one in its letter
LEAD = 600  # good records first, for the first model

Event = dict[str, Any]
Made = tuple[bytes | None, Reason | str]  # or "good", or "either"

FEATURES = [
    {"name": "a"},
    {"name": "b"},
    {"name": "kind", "kind": "categorical"},
    {"name": "flag", "kind": "boolean"},
]

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, -(2**63), 2**64, 10**400, 1e308, -1e308, 5e-324, -0.0,
    "", " ", "\x00", "a\x00b", "nan", "inf", "1e999", "yes", "\u202e",
    "\U0001f600" * 100, "x" * 5_000, "1_000", "٣", "\ud7ff", [], [[]], [1, "a", None], {},
    {"a": {"b": {}}},
]  # fmt: skip

# Text that is no JSON, or not what JSON allows.
BROKEN: list[bytes] = [
    b"", b" \t", b"{", b"}", b"nul", b"\x00", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": Infinity}',
    b'{"a": -Infinity}', b'{"a": 01}', b'{"a": 1e}', b"{'a': 1}", b'{"a": "\xc3\x28"}',
    b'{"a": "\xed\xa0\x80"}', b'{"a": "\\ud800"}', b'{"a": "\x00"}', b'{"a": 1,}', b'{"a" 1}',
    b'{"a": 1} {"a": 2}', b"[" * 10_000, b'{"a":' * 3_000, b"[" * 5_000 + b"]" * 5_000,
    b'{"a": 1e999}', b'{"a": ' + b"9" * 400 + b"}",
    b'{"label": "yes", "deep": ' + b"[" * 2_000 + b"]" * 2_000 + b"}",
]  # fmt: skip


def good(chance: random.Random, n: int, task: str) -> Event:
    a, b = chance.gauss(0, 1), chance.gauss(0, 1)
    event: Event = {"id": f"e{n}", "time": 1.7e9 + n, "label": "yes" if a + b > 0 else "no"}
    if task == "text":
        return event | {"text": f"{'up' if a + b > 0 else 'down'} event {n}"}
    return event | {"a": a, "b": b, "kind": chance.choice("xyz"), "flag": chance.random() < 0.5}


def packed(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode(errors="surrogatepass")


def mutated(chance: random.Random, value: bytes) -> bytes:
    """The record with a few bytes changed, lost, doubled or put in."""
    content = bytearray(value)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(content) + 1)
        what = chance.randrange(5)
        if what == 0 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del content[at : at + chance.randint(1, 10)]
        elif what == 2:
            content[at:at] = chance.randbytes(chance.randint(1, 4))
        elif what == 3:
            content[at:at] = content[max(0, at - 10) : at]
        else:
            content[at:at] = chance.choice([b"\x00", b'"', b"{", b"]", b",", b"1e999", b"null"])
    return bytes(content)


def known(chance: random.Random, event: Event, task: str) -> Made:
    """Broken in a way whose reason is known."""
    kinds: list[Callable[[], Made]] = [
        lambda: (chance.choice(BROKEN), Reason.INVALID_JSON),
        lambda: (None, Reason.NO_VALUE),
        lambda: (packed(chance.choice([[event], [], 7, "a", None, True])), Reason.NOT_AN_OBJECT),
        lambda: (packed(event | {"more": "x" * LIMIT}), Reason.TOO_LARGE),
        lambda: (packed(event | {"time": chance.choice([1e300, -1e300, "soon", [], None])}),
                 Reason.BAD_TIME),
        lambda: (packed(event | {"time": 4e9}), Reason.FUTURE),
        lambda: (packed({k: v for k, v in event.items() if k != "id"}), Reason.MISSING_FIELD),
        lambda: (packed(event | {"id": chance.choice([None, [], {}, 1.5, "", "x" * 5_000])}),
                 Reason.WRONG_TYPE),
        lambda: (packed(event | {"label": chance.choice([[], {}, 0.5, 1e300])}), Reason.WRONG_TYPE),
        lambda: (packed(event | {"label": chance.choice(["a\x00b", "\u202e", " ", "x" * 300])}),
                 Reason.BAD_LABEL),
        lambda: (packed(event | {"label": f"new {chance.random()}"}), Reason.UNKNOWN_LABEL),
    ]  # fmt: skip
    if task == "text":
        kinds += [
            lambda: (
                packed(event | {"text": chance.choice(["", " ", "\n\t"])}),
                Reason.EMPTY_INPUT,
            ),
            lambda: (packed(event | {"text": chance.choice([1, None, [], {}])}), Reason.WRONG_TYPE),
        ]
    else:
        nothing = dict.fromkeys(("a", "b", "kind", "flag"))
        kinds += [
            lambda: (packed(event | nothing), Reason.EMPTY_INPUT),
            lambda: (packed(event | {"a": chance.choice(["x", [], {}])}),
                     Reason.WRONG_TYPE),
            lambda: (packed(event | {"flag": chance.choice(["maybe", 2, [], {}])}),
                     Reason.WRONG_TYPE),
        ]  # fmt: skip
    return chance.choice(kinds)()


def record(chance: random.Random, n: int, task: str) -> Made:
    event = good(chance, n, task)
    what = chance.random()
    if n < LEAD or what < 0.3:
        return packed(event), "good"
    if what < 0.6:
        return known(chance, event, task)
    if what < 0.8:
        return mutated(chance, packed(event)), "either"
    for field in chance.sample(sorted(event), chance.randint(1, 3)):
        event[field] = chance.choice(STRANGE)
    return packed(event), "either"


def settings(bootstrap: str, options: dict[str, int], task: str, place: Path) -> dict[str, Any]:
    model = {"task": "tabular", "features": FEATURES} if task == "table" else {"task": "text"}
    return {
        "model": {**model, "labels": ["yes", "no"]},
        "source": {
            "kind": "kafka",
            "bootstrap_servers": [bootstrap],
            "options": options,
        },
        "fields": {"id": "id", "time": "time"},
        "events": {"max_event_bytes": LIMIT, "unknown_label": "reject"},
        # A text's first model would need a download: there, everything is only remembered.
        "bootstrap": {"warmup_events": LEAD // 2 if task == "table" else 10**9},
        "policy": {"rungs": ["recall", "head"]},
        "gate": {"size_ratio": 10.0, "parity_points": 10.0},
        "registry": {"path": str(place / "registry")},
        "checkpoint": {"path": str(place / "state"), "ledger": True},
    }


@pytest.mark.parametrize("task", ["table", "text"])
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2_000, id="short"),
        pytest.param(100_000, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(2 * 3600)]),
    ],
)
def test_no_record_stops_the_loop_and_each_is_learned_or_refused_with_its_reason(
    broker: Any, fast_group: dict[str, int], tmp_path: Path, task: str, count: int
) -> None:
    topic, letters = broker.topic(), broker.topic()
    found = settings(broker.bootstrap, fast_group, task, tmp_path)
    found["source"]["topic"] = topic
    found["dead_letters"] = {"kind": "topic", "topic": letters, "max_value_bytes": KEPT}
    config = Config.model_validate(found)
    chance = random.Random(count)
    made = [record(chance, n, task) for n in range(count)]

    loop = loop_of(config)
    loop.start()
    quiet = time.monotonic()
    produced = 0

    def turn() -> None:
        nonlocal quiet
        if loop.step():
            quiet = time.monotonic()
        assert time.monotonic() - quiet < 60, "nothing comes in"

    while loop.state.positions.get((topic, 0), 0) < count:
        if produced - loop.state.positions.get((topic, 0), 0) < 5_000 and produced < count:
            if produced == LEAD and task == "table" and loop.champion is None:
                turn()
                quiet = time.monotonic()
                continue
            step = LEAD if produced < LEAD else 2_000
            broker.produce(topic, [value for value, _ in made[produced : produced + step]])
            produced = min(count, produced + step)
        turn()
    # Not one of them has poisoned the model.
    if task == "table":
        assert loop.state.prequential.recent_accuracy > 0.6
    loop.close("the test is over")

    refused = {letter["offset"]: letter for letter in read(broker.bootstrap, letters)}
    lines = (config.checkpoint.path / "ledger.jsonl").read_text().splitlines()
    learned = {row[3]: row for row in map(json.loads, lines)}
    assert len(learned) == len(lines) == loop.state.events
    assert not learned.keys() & refused.keys()
    assert learned.keys() | refused.keys() == set(range(count))
    for offset, (value, expected) in enumerate(made):
        if expected == "good":
            assert learned[offset][4] == "labelled"
        elif expected != "either":
            assert refused[offset]["reason"] == expected, (value, refused[offset])
    for offset, letter in refused.items():
        assert letter["reason"] in set(Reason)
        assert letter["detail"]
        assert _content(letter) == (made[offset][0] or b"")[: len(_content(letter))]
        assert letter["truncated"] or letter["size"] == len(made[offset][0] or b"")
    right = loop.state.prequential.accuracy
    print(f"prequential accuracy: {right:.3f}")
    reasons = Counter(letter["reason"] for letter in refused.values())
    print(f"{count} {task} records: {len(learned)} learned, refused {dict(reasons)}")


def _content(letter: dict[str, Any]) -> bytes:
    value: str = letter["value"]
    return value.encode() if letter["encoding"] == "text" else base64.b64decode(value)


def read(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False
    )
    consumer.assign([TopicPartition(topic, 0)])
    found: list[dict[str, Any]] = []
    quiet = 0
    while quiet < 5:
        polled = consumer.poll(timeout_ms=200, max_records=10_000)
        quiet = 0 if polled else quiet + 1
        for records in polled.values():
            found += [json.loads(record.value) for record in records]
    consumer.close()
    return found
