"""The watch over the champion: reference first, then drift signals.

A new champion has a new normal. The watch gathers its first events as the reference, fits the
monitors on them, and from then on hands every batch to them. Alarms are only raised while armed;
until then the gate and probation guard.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from daemon.checkpoint import prefixed, under
from drift import (
    AccuracyEstimate,
    DriftConfig,
    Interval,
    Monitors,
    NotEnoughReference,
    NoTraffic,
    Observations,
    Reference,
    SettingsChanged,
    Signal,
)
from drift.budget import DEFAULT

log = logging.getLogger("driftd.watch")

# How far back a diagnosis can look for the onset.
RECENT_EVENTS = 1_500
# How many of the latest events the accuracy is estimated on: known to about four points then.
ESTIMATED_EVENTS = 500

Arrays = dict[str, NDArray[np.generic]]


class Watch:
    """Collects a reference, fits the monitors, observes."""

    def __init__(self, config: DriftConfig, settle_events: int) -> None:
        self.config = config
        self.settle_events = settle_events
        self.space = ""
        self.estimate = AccuracyEstimate(minimum=config.reference_minimum)
        self.monitors: Monitors | None = None
        self.reference: Reference | None = None
        self.signals: list[Signal] = []
        #: The champion's accuracy on the latest events, told from its confidence alone; None
        #: before there is a reference with labels enough.
        self.estimated_accuracy: Interval | None = None
        self._gathered: list[Observations] = []
        self._recent: list[Observations] = []

    @property
    def armed(self) -> bool:
        """Whether the monitors are fitted."""
        return self.monitors is not None

    @property
    def gathered(self) -> int:
        """Labelled events gathered for the reference so far."""
        return sum(int(batch.labelled.sum()) for batch in self._gathered)

    @property
    def reference_accuracy(self) -> float:
        """The champion's accuracy on the reference, 0 to 1; NaN while there is none."""
        held = self._held()
        if held is None or not held.labelled.any():
            return float("nan")
        return 1.0 - float(held.errors.mean())

    @property
    def recent(self) -> Observations:
        """The last observations since armed, at most about 1,500: what a diagnosis looks at."""
        return Observations.join(self._recent)

    def observe(self, batch: Observations) -> list[Signal]:
        """Take in a batch; the signals, empty while the reference is being gathered."""
        if self.monitors is not None:
            self._keep(batch)
            self.estimated_accuracy = self._estimated()
            self.signals = self.monitors.observe(batch)
            return self.signals
        self._gathered.append(batch)
        if self.gathered >= max(self.settle_events, self.config.reference_minimum):
            self._arm(Observations.join(self._gathered))
        return []

    def _estimated(self) -> Interval | None:
        if not self._recent or not self.estimate.fitted:
            return None
        first = len(self._recent) - 1
        while first and sum(map(len, self._recent[first:])) < ESTIMATED_EVENTS:
            first -= 1
        return self.estimate.estimate(Observations.join(self._recent[first:]))

    def distances(self) -> list[dict[str, object]]:
        """How far each detector is from an alarm, as plain values with a sentence."""
        if self.monitors is None:
            return []
        return [
            {**asdict(distance), "sentence": distance.sentence()}
            for distance in self.monitors.distances()
        ]

    def rearm(self, space: str = "") -> None:
        """Forget what normal was: the next events are the new reference.

        ``space`` names the champion's encoder: regimes are compared within one.
        """
        self.space = space or self.space
        self.monitors = self.reference = None
        self.estimate = AccuracyEstimate(minimum=self.config.reference_minimum)
        self.signals = []
        self.estimated_accuracy = None
        self._gathered = []
        self._recent = []

    def adopt(self, reference: Reference) -> None:
        """What was normal for a champion that is back is normal again: watch from the next event.

        A regime that came in the meantime must not become its normal unseen.
        """
        self.rearm(self.space)
        self.reference, self.monitors = reference, Monitors(self.config)
        self.monitors.fit(reference)
        self._calibrate(reference)

    def _keep(self, batch: Observations) -> None:
        self._recent.append(batch)
        while sum(map(len, self._recent[1:])) >= RECENT_EVENTS:
            self._recent.pop(0)

    def _held(self) -> Observations | None:
        if self.reference is not None:
            return self.reference.observations
        return Observations.join(self._gathered) if self._gathered else None

    def _arm(self, gathered: Observations) -> None:
        reference = Reference.of(gathered, self.config.reference_events, self.space)
        monitors = Monitors(self.config)
        _fit(monitors, reference)
        self.monitors, self.reference = monitors, reference
        self._calibrate(reference)
        self._gathered = []
        log.info(
            "watching for drift; reference: %d events, accuracy %.1f %%; "
            "at most one false alarm per %d events",
            len(reference),
            100 * self.reference_accuracy,
            monitors.budget,
        )

    def _calibrate(self, reference: Reference) -> None:
        if reference.observations.wrong is not None:
            return  # a number comes without a confidence to estimate from
        try:
            self.estimate.fit(reference.observations)
        except NotEnoughReference as error:
            log.info("no estimate without labels: %s", error)

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        arrays: Arrays = {
            "armed": np.array(self.armed),
            "space": np.frombuffer(self.space.encode(), dtype=np.uint8),
        }
        if self.monitors is not None and self.reference is not None:
            arrays |= prefixed("reference", self.reference.arrays())
            arrays |= prefixed("monitors", self.monitors.state())
        for name, batches in (("gathered", self._gathered), ("recent", self._recent)):
            if batches:
                arrays |= prefixed(name, Observations.join(batches).arrays())
        return arrays

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on exactly where `state` was taken; with changed settings, from the reference."""
        self.rearm(state["space"].tobytes().decode() if "space" in state else "")
        for name, batches in (("gathered", self._gathered), ("recent", self._recent)):
            if columns := under(name, state):
                batches.append(Observations.from_arrays(columns))
        if not bool(state["armed"]):
            return
        self.reference = Reference.from_arrays(under("reference", state))
        self._calibrate(self.reference)
        self.estimated_accuracy = self._estimated()
        self.monitors = Monitors(self.config)
        try:
            self.monitors.restore(under("monitors", state))
        except SettingsChanged as error:
            log.warning("%s: the monitors start anew on the stored reference", error)
            _fit(self.monitors, self.reference)


def _fit(monitors: Monitors, reference: Reference) -> None:
    """On the configured budget; on the default one if it is per time and the stream has none."""
    try:
        monitors.fit(reference)
    except NoTraffic as error:
        log.error("%s Until then: one false alarm per %d events.", error, DEFAULT)
        monitors.fit(reference, budget=DEFAULT)
