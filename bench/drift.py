"""Drift: false alarms against the budget, delay against the best possible and peers, cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import poisson

from bench import _drift_streams as made
from bench._drift_errors import (
    RunLengths,
    Trial,
    alarmed,
    calm,
    missing_as,
)
from bench._drift_peers import measured, write_errors, write_texts
from bench._drift_plot import Axes, Point, Series, chart
from bench._drift_streams import CACHE, REFERENCE, Bits, Pool
from bench._drift_texts import HORIZON, SHARES, Entering, entering
from bench._peer_env import Unavailable
from bench.report import RESULTS, Row, row
from bench.streams import NoData
from drift import Monitors
from drift.concept.run_length import BudgetOutOfReach
from drift.signal import Observations

BUDGET = 20_000
RUNS = 30
# Budgets of the curve, and those from which one is chosen that alarms no more than a peer; the last
# are for peers that never alarm by chance.
BUDGETS = [round(250 * 2 ** (step / 2)) for step in range(18)]
BUDGETS += [128_000 * 2**step for step in range(8)]
STREAM = 20_000  # events of a drift-free stream after its reference
RENEWED = 50_000  # events after which a drift-free stream is given a fresh reference
PEER_SECONDS = 2.0  # of CPU, for each detector and kind of stream
WINDOW_SECONDS = 8.0  # of CPU, for each test of windows, beyond the first ones
RIVER_CURVES = ("adwin", "hddm_w", "hddm_a", "page_hinkley")
OURS, YARDSTICK = "#0b6e4f", "#888888"
LIBRARIES = {"river": "#d1495b", "frouros": "#3366aa", "capymoa": "#e08e0b"}
CALIBRATED = ("#7a4fa3", "#2a9db0", "#8a6d3b", "#d977b5")


@dataclass(frozen=True, slots=True)
class Curve:
    """`error_rate` at every budget, on the same streams. counts: alarms by drift-free stream."""

    counts: dict[int, list[int]]
    abrupt: dict[int, list[int | None]]

    def budget_for(self, alarms: int, streams: int) -> int | None:
        """The lowest budget with no more false alarms in the first ``streams``."""
        return next((b for b, c in self.counts.items() if sum(c[:streams]) <= alarms), None)

    def per_10k(self, budget: int, streams: int | None = None) -> float:
        """Measured false alarms per 10,000 events."""
        counts = self.counts[budget][:streams]
        return 10_000 * sum(counts) / (len(counts) * STREAM)


@dataclass(frozen=True, slots=True)
class Streams:
    """The error streams that ours and every peer are measured on."""

    drift_free: Bits
    trials: dict[str, Trial]

    @classmethod
    def of(cls, quick: bool) -> Streams:
        """2,000,000 drift-free events (a tenth if quick), and `RUNS` runs of each change."""
        trials = {
            "abrupt": Trial.of(np.full(4_000, 0.4), RUNS, seed=2),
            "slight": Trial.of(np.full(20_000, 0.25), RUNS, seed=3),
            "ramp": Trial.of(np.minimum(0.2 + np.arange(6_000) * 1e-4, 0.4), RUNS, seed=4),
        }
        return cls(calm(10 if quick else 100, STREAM, seed=1), trials)


def rows(quick: bool) -> Iterable[Row]:
    yield from false_alarms(quick)
    streams = Streams.of(quick)
    budgets = BUDGETS[::3] if quick else BUDGETS
    abrupt = streams.trials["abrupt"]
    curve = Curve(
        {b: [len(alarmed(e, b)) for e in streams.drift_free] for b in budgets},
        {b: abrupt.delays(b) for b in budgets},
    )
    yardstick = RunLengths.simulated(4_000_000 if quick else 40_000_000)
    yield from delays(streams, yardstick, quick)
    peers, refused = on_errors(streams, quick)
    yield from against(peers, refused, curve, streams)
    yield from texts(quick)
    yield from cost(peers, quick)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        drawing = plot(curve, yardstick, abrupt, peers, river_curves(streams))
        (RESULTS / "drift.svg").write_text(drawing)


# --- false alarms ---


def false_alarms(quick: bool) -> Iterator[Row]:
    """Against the budget: on coin flips, and of all default detectors together on real events."""
    each, flipped = (50_000, 500_000) if quick else (500_000, 2_000_000)
    pools: dict[str, Callable[[], Pool]] = {
        "Elec2": lambda: made.table("elec2"),
        "NOAA": lambda: made.table("noaa_weather"),
    }
    if not quick:
        pools |= {"CLINC150": made.clinc150, "banking77": made.banking77}
    drawn: dict[str, Pool] = {}
    for name, make in pools.items():
        try:
            drawn[name] = make()
        except NoData as reason:
            yield Row(f"false alarms, {name}", None, note=str(reason))
    for budget in (10_000,) if quick else (10_000, 100_000):
        total = counted = 0
        for rate in (0.02, 0.05, 0.2, 0.4):
            flips = calm(flipped // RENEWED, RENEWED, seed=round(1000 * rate), rate=rate)
            found = sum(len(alarmed(errors, budget)) for errors in flips)
            yield _kept(f"errors at {rate:g}, error_rate", found, flipped, budget)
            total, counted = total + found, counted + flipped
        for name, pool in drawn.items():
            by = _drift_free(pool, budget, each)
            found = sum(by.values())
            note = ", ".join(f"{detector} {count}" for detector, count in by.items())
            yield _kept(f"{name} shuffled, defaults together", found, each, budget, note)
            total, counted = total + found, counted + each
        yield _kept("all of these", total, counted, budget)


def _drift_free(pool: Pool, budget: int, events: int) -> dict[str, int]:
    """Alarms of each default detector; a fresh reference every `RENEWED` events."""
    random = np.random.default_rng(7)
    monitors = Monitors(made.config(budget))
    found: dict[str, int] = {}
    for _ in range(0, events, RENEWED):
        monitors.fit(pool.events.take(pool.draw(REFERENCE, random)))
        for part in made.shuffled(pool, RENEWED, random):
            for name, at in made.alarms(monitors, part).items():
                found[name] = found.get(name, 0) + len(at)
    return found


def _kept(what: str, found: int, events: int, budget: int, note: str = "") -> Row:
    allowed = events // budget
    low, high = poisson.interval(0.95, events / budget)
    said = f"{events:,} events; just on the budget: {low:.0f} to {high:.0f} in 95 of 100 tries"
    note = f"{said}; {note}" if note else said
    figure = f"false alarms at 1 per {budget:,}: {what}"
    return row(figure, found, "alarms", f"<= {allowed}", note)


# --- delay ---


def delays(streams: Streams, yardstick: RunLengths, quick: bool) -> Iterator[Row]:
    """Of `error_rate` at the default budget, and of the CUSUM that knows both rates."""
    events = streams.drift_free.shape[0] * STREAM
    found = sum(len(alarmed(errors, BUDGET)) for errors in streams.drift_free)
    run_length = events / max(found, 1)
    yield row(
        "events for one false alarm, error_rate at the default budget",
        run_length,
        "events",
        f">= {BUDGET}",
        f"{found} in {events:,} at an error rate of 0.2",
    )
    told = yardstick.threshold(run_length)
    abrupt = streams.trials["abrupt"]
    many = Trial.of(np.full(4_000, 0.4), 60 if quick else 600, seed=5)
    for trial in (abrupt, many):
        runs = len(trial.errors)
        ours = trial.delays(BUDGET)
        best = missing_as(trial.cusum_delays(told), trial.horizon)
        at_budget = missing_as(trial.cusum_delays(yardstick.threshold(BUDGET)), trial.horizon)
        mean = _delay(ours, trial.horizon)
        yield row(f"delay, 0.2 -> 0.4, {runs} runs", mean, "events", note=_spread(ours))
        yield row(
            f"ratio to the CUSUM told both rates, {runs} runs",
            mean / float(best.mean()),
            target="<= 1.3",
            note=f"CUSUM at the same measured run length {best.mean():.1f}; with one false alarm "
            f"per {BUDGET:,} {at_budget.mean():.1f}, ratio {mean / at_budget.mean():.2f}",
        )
    for name, words in (("slight", "0.2 -> 0.25"), ("ramp", "0.2 -> 0.4 over 2,000 events")):
        trial = streams.trials[name]
        ours = trial.delays(BUDGET)
        share = sum(d is not None for d in ours) / len(ours)
        yield row(f"found, {words}", share, target=">= 1", note=f"within {trial.horizon:,} events")
        yield row(
            f"delay, {words}",
            float(missing_as(ours, trial.horizon).mean()),
            "events",
            note=_spread(ours),
        )


def _spread(found: Sequence[int | None]) -> str:
    seen = np.array([d for d in found if d is not None], dtype=np.float64)
    said = f"found {len(seen)} of {len(found)}"
    if len(seen) < 2:
        return said
    error = seen.std(ddof=1) / np.sqrt(len(seen))
    low, middle, high = np.quantile(seen, (0.1, 0.5, 0.9))
    return f"{said}; se {error:.1f}; 10, 50, 90 %: {low:.0f}, {middle:.0f}, {high:.0f}"


# --- peers ---


Peers = dict[str, dict[str, Any]]


def on_errors(streams: Streams, quick: bool) -> tuple[Peers, dict[str, str]]:
    """What each library's detectors did, by ``library detector``; and why one could not run."""
    folder = CACHE / "drift" / ("quick" if quick else "full")
    write_errors(folder, streams.drift_free, streams.trials)
    peers: Peers = {}
    refused: dict[str, str] = {}
    for library in ("river",) if quick else LIBRARIES:
        try:
            found = measured(library, folder, seconds=0.5 if quick else PEER_SECONDS)
        except Unavailable as reason:
            refused[library] = str(reason)
            continue
        for name, figures in found["detectors"].items():
            if "failed" in figures:
                refused[f"{library} {name}"] = figures["failed"]
            else:
                peers[f"{library} {name}"] = figures | {"version": found["version"]}
    return peers, refused


def against(peers: Peers, refused: dict[str, str], curve: Curve, streams: Streams) -> Iterator[Row]:
    """Ours at no more measured false alarms than each peer has at its defaults."""
    for name, peer in peers.items():
        theirs, count = _delay(peer["abrupt"], streams.trials["abrupt"].horizon), len(peer["calm"])
        budget = curve.budget_for(sum(peer["calm"]), count)
        figure = f"delay, 0.2 -> 0.4, at no more false alarms than {name}"
        said = (
            f"{name}: {_per_10k(peer):.3g} per 10,000 in {count * STREAM:,} events, delay "
            f"{theirs:.0f}, {_found(peer['abrupt'])}; 0.2 -> 0.25 {_found(peer['slight'])}, "
            f"ramp {_found(peer['ramp'])}"
        )
        if budget is None:
            yield Row(figure, None, "events", note=f"{said}; ours alarms more at every budget")
            continue
        runs = len(peer["abrupt"])
        ours = _delay(curve.abrupt[budget][:runs], streams.trials["abrupt"].horizon)
        rate = curve.per_10k(budget, count)
        note = f"{said}; ours {rate:.3g} at a budget of {budget:,}"
        # Too slow a peer has seen too few runs to be held against anything.
        yield row(figure, ours, "events", f"<= {theirs:.1f}" if runs == RUNS else "", note)
    for name, reason in refused.items():
        yield Row(f"delay against {name}", None, note=reason)


def _per_10k(peer: dict[str, Any]) -> float:
    return 10_000 * float(sum(peer["calm"])) / (len(peer["calm"]) * STREAM)


def _delay(found: list[int | None], horizon: int) -> float:
    return float(missing_as(found, horizon).mean())


def _found(found: list[int | None]) -> str:
    seen = [d for d in found if d is not None]
    mean = f" in {np.mean(seen):.0f}" if seen else ""
    return f"found {len(seen)} of {len(found)}{mean}"


# --- texts ---


def texts(quick: bool) -> Iterator[Row]:
    """Delay and hit rate of a class or domain that enters; peers' tests on the same windows."""
    runs = 4 if quick else RUNS
    for name, what, make in (
        ("banking77", "a class", made.banking77),
        ("CLINC150", "a domain", made.clinc150),
    ):
        try:
            pool = make()
        except NoData as reason:
            yield Row(f"{name}: {what} enters", None, note=str(reason))
            continue
        drawn = list(entering(pool, runs, seed=11))
        for labels in (False, True):
            found = [run.delays(BUDGET, labels=labels) for run in drawn]
            by = "defaults, with labels" if labels else "embedding, no labels"
            for share in SHARES:
                each = [run[share] for run in found]
                where = f"{name}: {what} enters at {share:.0%}, {by}"
                yield from _entered(where, each)
        if not quick and name == "CLINC150":
            yield from on_windows(list(entering(pool, 10, seed=12)))


def _entered(where: str, found: list[int | None]) -> Iterator[Row]:
    seen = [d for d in found if d is not None]
    yield row(f"{where}: hits", len(seen) / len(found), note=f"within {HORIZON:,} events")
    mean = float(np.mean(seen)) if seen else None
    yield Row(f"{where}: delay", mean, "events", note=_spread(found))


def on_windows(drawn: list[Entering]) -> Iterator[Row]:
    """The batch tests of alibi-detect and evidently on windows of 256, and ours beside them."""
    folder = CACHE / "drift" / "full"
    write_texts(folder, drawn)
    ours = [run.delays(BUDGET, labels=False) for run in drawn]
    said = ", ".join(f"{s:.0%}: {_found([run[s] for run in ours])}" for s in SHARES)
    yield Row("CLINC150 in windows: ours", None, note=f"the same 10 streams: {said}")
    for library in ("alibi_detect", "evidently"):
        try:
            found = measured(library, folder, seconds=WINDOW_SECONDS)
        except Unavailable as reason:
            yield Row(f"CLINC150 in windows: {library}", None, note=str(reason))
            continue
        for name, peer in found["detectors"].items():
            figure = f"CLINC150 in windows of 256: {library} {name}, rows a CPU-second"
            if "failed" in peer:
                yield Row(figure, None, note=peer["failed"])
                continue
            calm_windows = [answer for answers in peer["rows-calm"] for answer in answers]
            parts = [f"{sum(calm_windows)} of {len(calm_windows)} drift-free windows alarmed"]
            for share in SHARES:
                parts.append(f"{share:.0%}: {_windows(peer[f'rows-{round(100 * share):02}'])}")
            yield row(figure, peer["events"] / peer["seconds"], "rows", note="; ".join(parts))


def _windows(runs: list[list[bool]]) -> str:
    """Hits among the runs that were watched to a hit or to the end of their horizon."""
    whole = [r for r in runs if r and (r[-1] or len(r) == HORIZON // 256)]
    cut = len(runs) - len(whole)
    said = _found([256 * len(r) if r[-1] else None for r in whole]) if whole else ""
    late = f"{cut} cut short after {sum(map(len, runs))} windows in all" if cut else ""
    return ", ".join(filter(None, (said, late))) or "not reached in the time given"


# --- cost ---


def cost(peers: Peers, quick: bool) -> Iterator[Row]:
    """CPU for batches of 256, on one thread; and the size of what is kept."""
    random = np.random.default_rng(9)
    events = 200_000 if quick else 2_000_000
    errors = (random.random(events + REFERENCE) < 0.2).astype(np.uint8)
    speed, sizes = _speed("error_rate", made.outcomes(errors))
    yield row("error_rate, batches of 256", speed, "events/CPU-s", ">= 1000000")
    yield _state("error_rate", sizes, events)
    for library in LIBRARIES:
        theirs = {k: p["events"] / p["seconds"] for k, p in peers.items() if k.startswith(library)}
        if theirs:
            quickest = max(theirs, key=lambda k: theirs[k])
            note = ", ".join(f"{k.removeprefix(library + ' ')} {v:,.0f}" for k, v in theirs.items())
            yield row(
                f"error_rate, times as fast as {quickest}",
                speed / theirs[quickest],
                "x",
                note=f"events a CPU-second in a loop, one by one: {note}",
            )
    rows_seen = 40_000 if quick else 200_000
    rows_ = random.standard_normal((rows_seen + REFERENCE, 384), dtype=np.float32)
    for name in ("embedding", "mmd", "classifier", "reconstruction"):
        speed, sizes = _speed(name, made.unlabelled(rows_))
        target = ">= 100000" if name == "embedding" else ""
        yield row(f"{name}, 384 wide, batches of 256", speed, "rows/CPU-s", target)
        yield _state(name, sizes, rows_seen)


def _state(name: str, sizes: list[int], events: int) -> Row:
    each = ", ".join(f"{size:,}" for size in sizes)
    note = f"at each quarter of {events:,} events: {each}"
    return row(f"{name}, state at most", max(sizes), "bytes", note=note)


def _speed(name: str, events: Observations) -> tuple[float, list[int]]:
    """Events a CPU-second, and bytes of state at each quarter of the way."""
    monitors = Monitors(made.config(BUDGET, name))
    monitors.fit(events.take(slice(0, REFERENCE)))
    begins = range(REFERENCE, len(events), 256)
    batches = [events.take(slice(begin, begin + 256)) for begin in begins]
    spent, sizes = 0.0, []
    for quarter in np.array_split(np.arange(len(batches)), 4):
        began = time.process_time()
        for i in quarter.tolist():
            monitors.observe(batches[i])
        spent += time.process_time() - began
        sizes.append(sum(array.nbytes for array in monitors.state().values()))
    return (len(events) - REFERENCE) / spent, sizes


# --- plot ---


def river_curves(streams: Streams) -> dict[str, list[Point]]:
    """River's detectors on our budget, at three, on a fifth of the streams."""
    drift_free = streams.drift_free[: len(streams.drift_free) // 5]
    abrupt = streams.trials["abrupt"]
    found: dict[str, list[Point]] = {}
    for name in RIVER_CURVES:
        found[name] = []
        for budget in (1_000, 10_000, 100_000):
            try:
                counts = sum(len(alarmed(e, budget, name)) for e in drift_free)
                delay = _delay(abrupt.delays(budget, name), abrupt.horizon)
            except BudgetOutOfReach:
                continue
            found[name].append(
                Point(10_000 * counts / (len(drift_free) * STREAM), delay, str(budget))
            )
    return found


def plot(
    curve: Curve,
    yardstick: RunLengths,
    abrupt: Trial,
    peers: Peers,
    calibrated: dict[str, list[Point]],
) -> str:
    """Delay against false alarms: the whole curve of ours, the yardstick's, and peers."""
    ours = [
        Point(curve.per_10k(b), _delay(d, abrupt.horizon), f"{b:,}")
        for b, d in curve.abrupt.items()
    ]
    best = []
    for run_length in (500, 2_000, 10_000, 50_000, 200_000, 1_000_000):
        delay = _delay(abrupt.cusum_delays(yardstick.threshold(run_length)), abrupt.horizon)
        best.append(Point(10_000 / run_length, delay, f"{run_length:,}"))
    series = [
        Series("error_rate, told nothing", OURS, ours, line=True),
        Series("CUSUM told both rates", YARDSTICK, best, line=True),
    ]
    series += [
        Series(f"{name} on our budget", colour, points, line=True)
        for (name, points), colour in zip(calibrated.items(), CALIBRATED, strict=True)
    ]
    for library, colour in LIBRARIES.items():
        points = [
            Point(_per_10k(peer), _delay(peer["abrupt"], abrupt.horizon), name.split(" ", 1)[1])
            for name, peer in peers.items()
            if name.startswith(library)
        ]
        if points:
            named = library == "river"
            series.append(Series(f"{library} at its defaults", colour, points, named=named))
    return chart("Error rate 0.2 -> 0.4: delay against false alarms", series, Axes(0.001, 100, 400))
