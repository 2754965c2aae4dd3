"""The report as one HTML page: readable offline, by keyboard, on paper and by a screen reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from daemon.replay.charts import Line, Mark, bars, curves
from daemon.replay.measures import Comparison
from daemon.replay.outcome import Outcome

# Okabe and Ito's colours, which most colour-blind people tell apart; the last for yardsticks.
STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#fff;--rule:#d0d7de;
--c0:#57606a;--c1:#0072b2;--c2:#b34700;--c3:#00795a;--c4:#a8457f;--c5:#8a6d00;--c6:#2f7fa8;
--c7:#7d7d7d}
@media (prefers-color-scheme:dark){:root{
--ink:#e6edf3;--soft:#9da7b1;--paper:#0d1117;--rule:#30363d;
--c0:#9da7b1;--c1:#56b4e9;--c2:#ff9f5c;--c3:#2fd6a3;--c4:#e69fcb;--c5:#f0e442;--c6:#9bd2f2;
--c7:#8d8d8d}}
body{margin:0 auto;max-width:64rem;padding:1.5rem;font:1rem/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;margin:.2em 0}h2{font-size:1.25rem;margin:2em 0 .4em}
a{color:var(--c1)}:focus-visible{outline:3px solid var(--c1);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;background:var(--paper);padding:.4rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;
font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:.3em 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
th:first-child,td:first-child,.words td,.words th{text-align:left}
svg{width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
.grid{stroke:var(--rule)}.level{stroke:var(--ink);stroke-dasharray:2 4}
.line{fill:none;stroke-width:2}.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;
list-style:none;font-size:.9rem}.key svg{width:34px;display:inline-block;vertical-align:middle}
.mark{stroke:var(--paper);stroke-width:.6}.mark.alarm{stroke-width:1.5}
.note{color:var(--soft);font-size:.9rem}.best{font-weight:700}
@media print{body{max-width:none;padding:0}
details::details-content{content-visibility:visible;display:block;block-size:auto}
h2{break-after:avoid}
figure,tr{break-inside:avoid}nav,.skip{display:none}}
figure{margin:0}
"""
DASHES = ("", "", "7 3", "2 3", "9 3 2 3", "5 2", "12 4", "1 3")
YARDSTICK = 7

WORDS = {
    "accuracy": "Share of the events answered rightly, each by what served when it arrived.",
    "kappa": "0: no better than answers as frequent, but given at random. 1: perfect.",
    "kappa-temporal": "Share of the errors of `last label` that are avoided.",
    "below target": "Share of the events at which rolling accuracy lay below the target.",
    "useful life": "Events until rolling accuracy stays below the target, and how many times"
    " frozen's; at least that where it lives to the end.",
    "cost": "CPU-seconds of training, and of the loop beyond frozen's loop.",
    "avoided": "Errors of the frozen model that did not happen, in all and per CPU-second.",
    "forgotten": "Points lost on held-out events of the warm-up, between the first version and"
    " what served last.",
}


def page(found: Comparison, facts: dict[str, Any]) -> str:
    """The whole document."""
    title = f"Replay of {facts.get('source', 'a recorded stream')}"
    places = {name: number % YARDSTICK for number, name in enumerate(found.figures)}
    sections = {
        "summary": ("In short", _summary(found)),
        "accuracy": ("Accuracy over time", _accuracy(found, places)),
        "policies": ("Policies compared", _policies(found)),
        "cost": ("Cost", _cost(found, places)),
        "drift": ("Drift scores", "".join(_drift(found))),
        "confusion": ("Confusion that changed", "".join(_confusion(found))),
        "versions": ("Versions", "".join(_versions(found))),
    }
    links = "".join(f'<li><a href="#{k}">{escape(h)}</a></li>' for k, (h, _) in sections.items())
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(head)}</h2>'
        f"{content}</section>"
        for key, (head, content) in sections.items()
    )
    told = _table(["what", "value"], [[k, str(v)] for k, v in facts.items()], words=True)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_dashes()}</style></head><body>"
        '<a class="skip" href="#main">Skip to the report</a>'
        f"<header><h1>{escape(title)}</h1><p class='note'>What driftd, and what others, would have"
        " done with these events: the same loop over the recorded stream, on its own clock.</p>"
        f'<nav aria-label="Sections"><ul class="key">{links}</ul></nav></header>'
        f'<main id="main" tabindex="-1">{body}<section aria-labelledby="facts-h">'
        f'<h2 id="facts-h">What was replayed</h2>{told}</section></main></body></html>\n'
    )


def _dashes() -> str:
    rules = []
    for place, dash in enumerate(DASHES):
        colour = f"var(--c{place})"
        rules.append(f".line.p{place}{{stroke:{colour};stroke-dasharray:{dash or 'none'}}}")
        rules.append(f".bar.p{place},.mark.p{place}{{fill:{colour}}}")
        rules.append(f".mark.alarm.p{place}{{stroke:{colour}}}")
    return "".join(rules)


def _summary(found: Comparison) -> str:
    figures = found.figures
    best = max(figures, key=lambda k: figures[k]["accuracy"])
    yard = ", ".join(f"{name} {_percent(v)}" for name, v in found.yardsticks.items())
    most = figures[best]
    lines = [
        f"<strong>{escape(best)}</strong> was right most often: {_percent(most['accuracy'])}"
        f" of {most['events']:,} events. Without any model: {escape(yard)}."
    ]
    if "frozen" in figures and "ladder" in figures:
        ours, frozen = figures["ladder"], figures["frozen"]
        gain = 100 * (ours["accuracy"] - frozen["accuracy"])
        lines.append(
            f"driftd's ladder: {_percent(ours['accuracy'])}, {gain:+.1f} points against the frozen"
            f" model, for {ours['cost_cpu_seconds']:,.0f} CPU-seconds,"
            f" {ours['promotions']} promotions, {ours['follow_ups']:,} versions that followed them"
            f" and {ours['rollbacks']} rollbacks."
        )
    lines.append(
        f"The target is an accuracy of {_percent(found.target)}: {escape(found.target_reason)}."
    )
    return "".join(f"<p>{line}</p>" for line in lines)


def _accuracy(found: Comparison, places: dict[str, int]) -> str:
    lines = [
        Line(name, found.positions, curve, places.get(name, YARDSTICK))
        for name, curve in found.rolling.items()
        if name != "majority"
    ]
    settled = [line.y[min(found.window, len(line.y)) - 1 :] for line in lines]
    low = min(float(y.min()) for y in settled)
    low = max(0.0, np.floor(10 * low) / 10)
    marks = [mark for name, place in places.items() for mark in _marks(found, name, place)]
    description = "; ".join(
        f"{name}: {_percent(f['accuracy'])} in all, ends at {_percent(found.rolling[name][-1])}"
        for name, f in found.figures.items()
    )
    chart = curves(
        f"Accuracy on the last {found.window:,} events, by policy",
        description,
        lines,
        marks,
        low=low,
        high=1.0,
        level=(found.target, "target"),
        identity="chart-accuracy",
    )
    key = _key([(line.name, line.place) for line in lines])
    return (
        f"<figure>{chart}<figcaption>{key}<p class='note'>Accuracy on the last {found.window:,}"
        " events. Triangles upwards: promotions; downwards: rollbacks; ticks at the foot: alarms,"
        f" in the colour of their policy.</p></figcaption></figure>{_decisions(found)}"
    )


def _marks(found: Comparison, name: str, place: int) -> Iterable[Mark]:
    outcome, curve = found.outcomes[name], found.rolling[name]

    def at(position: int) -> float:
        row = int(np.searchsorted(found.positions, position))
        return float(curve[min(row, len(curve) - 1)])

    first = int(found.positions[0])
    if name != "frozen":  # its alarms say nothing that the others' do not
        seen = -found.window
        for row in outcome.of_kind("alarm"):
            if row["position"] - seen >= found.window and row["position"] >= first:
                seen = row["position"]
                text = f"{name}, event {seen:,}: alarm, {row.get('sentence', '')}"
                yield Mark("alarm", seen, 0.0, text, place)
    for row in outcome.served[1:]:
        if row["move"] == "follow":
            continue  # one of many; with what they began, and what ended them, is marked
        kind = "rollback" if row["move"] == "rollback" else "promote"
        text = f"{name}, event {row['position']:,}: {row['version']} serves ({row['rung']})"
        yield Mark(kind, max(first, row["position"]), at(row["position"]), text, place)


def _decisions(found: Comparison) -> str:
    """What the marks say, as a table."""
    rows = []
    for name, outcome in found.outcomes.items():
        for row in outcome.served[1:]:
            if row["move"] == "follow":
                continue
            rows.append((row["position"], name, row["move"], f"{row['version']}: {row['reason']}"))
        for row in outcome.of_kind("incident-opened"):
            rows.append((row["position"], name, "incident", row.get("sentence", "")))
    rows.sort(key=lambda row: row[0])
    listed = [[f"{row[0]:,}", *map(str, row[1:])] for row in rows]
    return _details(
        "Every promotion, rollback and incident, in order",
        _table(["event", "policy", "what", "why"], listed, words=True),
    )


def _policies(found: Comparison) -> str:
    heads = [
        "policy", "accuracy", "kappa", "kappa-temporal", "below target", "useful life",
        "refreshes", "promotions", "followed", "rollbacks", "cost", "avoided", "forgotten",
    ]  # fmt: skip
    best = max(f["accuracy"] for f in found.figures.values())
    rows = []
    for name, f in found.figures.items():
        accuracy = _percent(f["accuracy"])
        rows.append(
            [
                escape(name),
                f'<span class="best">{accuracy}</span>' if f["accuracy"] == best else accuracy,
                f"{f['kappa']:.3f}",
                f"{f['kappa_temporal']:.3f}",
                _percent(f["below_target"]),
                _life(f),
                f"{f['refreshes']:,}",
                f"{f['promotions']:,}",
                f"{f['follow_ups']:,}",
                f"{f['rollbacks']:,}",
                "-" if f["cost_cpu_seconds"] is None else f"{f['cost_cpu_seconds']:,.1f}",
                _avoided(f),
                "-" if f["forgetting"] is None else f"{100 * f['forgetting']:.1f}",
            ]
        )
    for name, accuracy_value in found.yardsticks.items():
        rows.append([escape(name), _percent(accuracy_value), *[""] * (len(heads) - 2)])
    explained = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in WORDS.items())
    return _table(heads, rows, raw=True) + _details(
        "What the columns mean", f"<dl>{explained}</dl>"
    )


def _cost(found: Comparison, places: dict[str, int]) -> str:
    rows = []
    for name, f in found.figures.items():
        rungs = ", ".join(f"{n} {rung}" for rung, n in f["refreshes_by_rung"].items())
        words = f"{f['training_cpu_seconds']:,.1f} CPU-s; {rungs or 'nothing trained'}"
        rows.append((name, f["training_cpu_seconds"], words, places[name]))
    description = "; ".join(f"{name}: {words}" for name, _, words, _ in rows)
    chart = bars("CPU-seconds of training, by policy", description, rows, identity="chart-cost")
    return f"<figure>{chart}</figure>"


def _drift(found: Comparison) -> Iterable[str]:
    """Score over threshold of each detector, for the policies that act on alarms or show drift."""
    yield "<p class='note'>Score over threshold: at 1 a detector alarms.</p>"
    for number, (name, outcome) in enumerate(found.outcomes.items()):
        lines = _scores(outcome)
        if not lines:
            continue
        top = max(1.2, min(5.0, max(float(line.y.max()) for line in lines)))
        alarms = len(outcome.of_kind("alarm"))
        chart = curves(
            f"Drift scores under {name}",
            f"{len(lines)} detectors; {alarms} alarms were raised",
            lines,
            low=0.0,
            high=top,
            level=(1.0, "alarm"),
            percent=False,
            identity=f"chart-drift-{number}",
        )
        figure = f"<figure>{chart}<figcaption>{_key([(x.name, x.place) for x in lines])}"
        yield _details(
            f"{name}: alarms {alarms}", f"{figure}</figcaption></figure>", shown=name == "ladder"
        )


def _scores(outcome: Outcome) -> list[Line]:
    by_name: dict[str, list[tuple[int, float]]] = {}
    for position, detector, ratio in outcome.signals:
        by_name.setdefault(detector, []).append((position, ratio))
    return [
        Line(name, np.array([p for p, _ in rows]), np.array([r for _, r in rows]), 1 + place % 6)
        for place, (name, rows) in enumerate(sorted(by_name.items()))
    ]


def _confusion(found: Comparison) -> Iterable[str]:
    if not found.confusion:
        yield "<p>Nothing to compare with: add the policy frozen.</p>"
    for name, pairs in found.confusion.items():
        rows = [
            [p["truth"], p["answer"], f"{p['before']:,}", f"{p['after']:,}",
             f"{p['after'] - p['before']:+,}"]
            for p in pairs
        ]  # fmt: skip
        heads = ["truth", "answered", "frozen", name, "change"]
        content = _table(heads, rows) if rows else "<p>No mistake changed in number.</p>"
        yield _details(f"{name} against frozen", content, shown=name == "ladder")


def _versions(found: Comparison) -> Iterable[str]:
    for name, outcome in found.outcomes.items():
        ends = [row["position"] for row in outcome.served[1:]] + [outcome.arrived]
        examples = {v["version"]: v["examples"] for v in outcome.versions}
        rows = []
        for row, end in zip(outcome.served, ends, strict=True):
            mine = (found.positions >= row["position"]) & (found.positions < end)
            right = found.right[name][mine]
            rows.append(
                [
                    row["version"],
                    row["rung"],
                    f"{row['position']:,} to {end:,}",
                    _percent(float(right.mean())) if len(right) else "-",
                    str(examples.get(row["version"]) or "-"),
                    row["move"],
                    row["reason"],
                ]
            )
        heads = ["version", "rung", "served events", "accuracy", "examples", "by", "why"]
        yield _details(
            f"{name}: {len(rows)} served, {len(outcome.versions)} kept",
            _table(heads, rows, words=True),
            shown=name == "ladder",
        )


def _life(f: dict[str, Any]) -> str:
    life, ratio = f["useful_life"], f["useful_life_ratio"]
    shown = "to the end" if life is None else f"{life:,}"
    if ratio is None:
        return shown
    return f"{shown} ({'≥ ' if life is None else ''}{ratio:.1f}x)"


def _avoided(f: dict[str, Any]) -> str:
    if f["errors_avoided"] is None:
        return "-"
    each = f["errors_avoided_per_cpu_second"]
    return f"{f['errors_avoided']:,}" + (f" ({each:,.1f})" if each is not None else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _key(entries: Sequence[tuple[str, int]]) -> str:
    items = (
        f'<li><svg viewBox="0 0 34 10" aria-hidden="true"><path class="line p{place}"'
        f' d="M0 5H34"/></svg> {escape(name)}</li>'
        for name, place in entries
    )
    return f'<ul class="key" aria-label="Lines">{"".join(items)}</ul>'


def _details(summary: str, content: str, *, shown: bool = False) -> str:
    state = " open" if shown else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{content}</details>"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: bool = False,
    raw: bool = False,
) -> str:
    """A table that scrolls by keyboard too; ``raw``: the cells are HTML already."""

    def cell(text: str) -> str:
        return text if raw else escape(str(text))

    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join(
        f'<tr><th scope="row">{cell(first)}</th>'
        + "".join(f"<td>{cell(value)}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(heads[0])} table">'
        f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
