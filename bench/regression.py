"""Numbers predicted on drifting tables: prequential errors and cost, beside river's forest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bench import _tabular_peers as peers
from bench._tabular_ours import (
    BLOCK,
    Floats,
    Setting,
    ensemble,
    feeds,
    int8_logits,
    structured,
)
from bench.report import Row, row
from bench.streams import NoData, table
from learn.blas import one_blas_thread
from learn.past import Past

EVENTS = 10_000
PARITY_EVENTS = 2_000
PRICE, DEMAND = 3, 4  # columns of Elec2
SETTINGS = {
    "driftd (the default)": Setting(relative=False, number=True),
    "driftd, with relative": Setting(number=True),
    "driftd, with relative and the last 2 values": Setting(lagged_labels=2, number=True),
}


@dataclass(frozen=True, slots=True)
class Answers:
    """values: float64 [n], what was predicted of each event before it was learned."""

    values: Floats
    cpu_seconds: float

    def r2(self, y: Floats) -> float:
        """Share of the target's variance over the whole stream that is explained."""
        return 1.0 - float(np.square(self.values - y).sum() / np.square(y - y.mean()).sum())

    def note(self, y: Floats) -> str:
        """The other two measures, and the rate where it was measured."""
        error = self.values - y
        words = f"MAE {np.abs(error).mean():.4g}, RMSE {np.sqrt(np.square(error).mean()):.4g}"
        if self.cpu_seconds:
            words += f"; {len(y) / self.cpu_seconds:,.0f} events a CPU-second"
        return words


def rows(quick: bool) -> Iterator[Row]:
    """R2 of each on river's Friedman streams and on Elec2 seen as two regressions."""
    events = 1_500 if quick else EVENTS
    streams: dict[str, Callable[[], tuple[Floats, Floats]]] = {
        f"Friedman, {words}": lambda kind=kind: peers.friedman(kind, events)  # type: ignore[misc]
        for kind, words in peers.FRIEDMAN.items()
    }
    for column, words in ((PRICE, "price"), (DEMAND, "demand")):
        streams[f"Elec2, {words}"] = lambda c=column: elec2(c, events)  # type: ignore[misc]
    for name, make in streams.items():
        try:
            x, y = make()
        except NoData as error:
            yield Row(name, None, note=str(error))
            continue
        title = f"{name} ({len(y):,} events)"
        forest = Answers(*peers.regress(peers.arf_regressor, x, y))
        for words, setting in SETTINGS.items():
            found = run(x, y, setting)
            target = f">= {forest.r2(y):.4f}" if words in list(SETTINGS)[:1] else ""
            yield row(f"{title}: {words}", found.r2(y), "R2", target, found.note(y))
        yield row(f"{title}: ARF10 of river", forest.r2(y), "R2", note=forest.note(y))
        yield _parity(title, x, y, 200 if quick else PARITY_EVENTS)
        last = Answers(np.concatenate([[0.0], y[:-1]]), 0.0)
        yield row(f"{title}: the last value", last.r2(y), "R2", note=last.note(y))


def _parity(title: str, x: Floats, y: Floats, events: int) -> Row:
    """How far the INT8 file's numbers are from the ensemble's, asked one by one."""
    expected, singly, _ = int8_logits(x, y, Setting(relative=False, number=True), 0, events)
    away = 100 * np.abs(expected - singly)[:, 0] / float(y.std())
    words = f"on {events:,} events; 99 of 100 by at most {np.quantile(away, 0.99):.2g} %"
    figure = f"{title}: INT8 against the ensemble, mean difference"
    return row(figure, float(away.mean()), "% of the deviation", "<= 1", words)


@one_blas_thread()
def run(x: Floats, y: Floats, setting: Setting, seed: int = 0, block: int = BLOCK) -> Answers:
    """Prequential, from the first event: float64 [n, f], float64 [n]."""
    config = setting.config(x.shape[1])
    inputs, names = structured(x), y.astype(str).astype(object)
    past, model = Past(config), ensemble(config, 1, seed)
    values = np.zeros(len(y))
    began = time.process_time()
    for start in range(0, len(y), block):
        part = slice(start, start + block)
        rows = feeds(past.extend(inputs[part], names[part]), config)
        values[part] = model.learn(rows, y[part])[:, 0]
    return Answers(values, time.process_time() - began)


def elec2(column: int, events: int) -> tuple[Floats, Floats]:
    """The first events of Elec2 with one column for the target, the others for features."""
    x, _ = table("elec2")
    return np.delete(x[:events], column, axis=1), x[:events, column]
