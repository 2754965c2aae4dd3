"""What is compared: the daemon's own ladder, and what people do without it.

Each policy is the same loop under another operator. Frozen is a pinned champion; retraining on a
timer or at every alarm is an operator who orders a refresh and promotes whatever comes of it,
without a gate; `ladder` is left to itself. `online` answers with the loop's online head.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from daemon.config import Config, load_config
from daemon.loop import Loop
from daemon.policy_config import LADDER, Rung
from daemon.undeclared import undeclared, with_features
from learn.config import RivalConfig, RiverModelName

OPERATOR = "replay"
# Without the student: one of a student of a student would be nothing in the end.
TRAINED_RUNGS = tuple(rung for rung in LADDER if rung not in ("recall", "online", "student"))
COMMON = ("model", "fields", "events", "bootstrap")
RIVERS = get_args(RiverModelName)
FORMS = (
    "frozen, online, ladder, every:N, every:N:RUNG, at-alarm, at-alarm:RUNG, river:MODEL, "
    "NAME=CONFIG.yaml"
)


class PolicyError(ValueError):
    """A policy that cannot be replayed; the message says what to do."""


class Operator(Protocol):
    """What is done to the loop from outside."""

    def begin(self, loop: Loop) -> None:
        """Before the first event after the warm-up."""

    def answer(self, loop: Loop, inputs: NDArray[Any]) -> NDArray[np.int64]:
        """The classes served for ``inputs`` [n], int64 [n], in the loop's class indices."""

    def after(self, loop: Loop) -> None:
        """After each turn of the loop."""

    @property
    def idle(self) -> bool:
        """Whether nothing is pending: a replay may stop here and go on later."""


class Nobody:
    """Leaves the loop to itself."""

    @property
    def idle(self) -> bool:
        """Always: nothing is ordered."""
        return True

    def begin(self, loop: Loop) -> None:
        """Nothing to do."""

    def answer(self, loop: Loop, inputs: NDArray[Any]) -> NDArray[np.int64]:
        """The champion's."""
        assert loop.champion is not None
        return loop.champion.answer(inputs).predicted

    def after(self, loop: Loop) -> None:
        """Nothing to do."""


class Pinned(Nobody):
    """Keeps the first version, as `driftd pin` does."""

    def begin(self, loop: Loop) -> None:
        """Pin it."""
        loop.registry.pin(actor=OPERATOR, reason="this policy changes no version")
        loop.follow()


class Online(Pinned):
    """Serves the loop's online head, which learns from every label; no versions, no gate."""

    def answer(self, loop: Loop, inputs: NDArray[Any]) -> NDArray[np.int64]:
        """Of what learns online, on the first version's embeddings or on the rows."""
        assert loop.champion is not None
        assert loop.state.online is not None
        embeddings = loop.champion.answer(inputs).embeddings
        return loop.state.online.judge(inputs, embeddings)


class Outside(Pinned):
    """Answers with a model of river, which learns from every label; nothing of it is a version."""

    def __init__(self, rival: str) -> None:
        self._rival = rival

    @property
    def idle(self) -> bool:
        """Never: what it has learned cannot be stored, so it is not to be resumed in the middle."""
        return False

    def answer(self, loop: Loop, inputs: NDArray[Any]) -> NDArray[np.int64]:
        """The rival's; where it knows no class yet, -1."""
        return loop.state.classes.index(loop.state.rivals[self._rival].answer(inputs))


class Retrain(Pinned):
    """Orders a refresh of one rung when it is due, and promotes the result whatever it is.

    ``every``: events between two orders, each on what came since the last version. None orders
    at each alarm, on what came since the drift's onset, as soon as that is as many events as the
    configuration wants for the rung. Between orders the champion is pinned: nothing else happens.
    """

    def __init__(self, rung: Rung, every: int | None) -> None:
        self._rung = rung
        self._every = every
        self._pending = False
        self._versions = 0

    @property
    def idle(self) -> bool:
        """Whether no refresh is under way."""
        return not self._pending

    def after(self, loop: Loop) -> None:
        """Promote what has come, order what is due."""
        if self._pending:
            self._promote(loop)
        if not self._pending and self._due(loop):
            loop.registry.unpin(actor=OPERATOR, reason="a refresh is due")
            loop.follow()
            self._versions = len(loop.registry.versions())
            self._pending = True
            drift = loop.state.incident
            loop.repair.request(self._rung, "a refresh is due")
            if self._every is None and drift and loop.state.incident:
                loop.state.incident.onset_event = drift.onset_event

    def _due(self, loop: Loop) -> bool:
        if self._every is not None:
            return loop.state.events - loop.state.learned_event >= self._every
        incident, policy = loop.state.incident, loop.config.policy
        need = policy.min_labelled_by_rung.get(self._rung, policy.min_labelled)
        return (
            incident is not None
            and incident.cause == "drift"
            and len(loop.state.prequential.since(incident.onset_event)) >= need
        )

    def _promote(self, loop: Loop) -> None:
        incident = loop.state.incident
        if loop.busy or (incident and incident.cause == "operator" and not loop.state.trial):
            return
        versions = loop.registry.versions()
        newest = versions[-1].id
        if len(versions) > self._versions and loop.registry.state().champion != newest:
            reason = "this policy promotes what it has trained"
            loop.registry.promote(newest, actor=OPERATOR, reason=reason, force=True)
        self._pending = False
        self.begin(loop)


@dataclass(frozen=True, slots=True)
class Policy:
    """One column of the comparison: a name, the daemon's settings, and who operates it.

    ``changes`` are settings over the replay's own; ``spec`` is how the user wrote it.
    """

    name: str
    spec: str
    config: Config
    kind: str

    def operator(self) -> Operator:
        """A fresh operator for one run."""
        if self.kind == "frozen":
            return Pinned()
        if self.kind == "online":
            return Online()
        if self.kind == "river":
            return Outside(self.config.model.rivals[0].name)
        if self.kind in ("every", "at-alarm"):
            found = re.fullmatch(r"(every|at-alarm)(?::(\d+))?(?::([a-z]+))?", self.spec)
            assert found is not None
            rung: Any = found[3] or deepest(self.config)
            return Retrain(rung, int(found[2]) if found[2] else None)
        return Nobody()


def deepest(config: Config) -> Rung:
    """The rung that trains all there is to train: a table's ensemble has no layers."""
    model = config.model
    return "head" if model.task == "tabular" and model.table == "ensemble" else "full"


def parse(specs: Sequence[str], config: Config) -> list[Policy]:
    """The policies named by ``specs``, on ``config``, in that order.

    Raises:
        PolicyError: one is unknown, named twice, or a variant changes what all must share.
        ConfigError: a variant's file has problems.
    """
    found = [_parse(spec.strip(), config) for spec in specs]
    # Rivals would only cost time: each that is to be compared has a policy of its own.
    found = [
        p if p.kind == "river" else replace(p, config=_changed(p.config, model={"rivals": ()}))
        for p in found
    ]
    names = [policy.name for policy in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PolicyError(
            f"two policies are called {', '.join(twice)}: give each a name of its own"
        )
    return found


def _parse(spec: str, config: Config) -> Policy:
    passive = _changed(config, policy={"online_head": False, "refit_growth": 0.0})
    if spec == "frozen":
        return Policy(spec, spec, passive, spec)
    if spec == "online":
        return Policy(spec, spec, _changed(config, policy={"online_head": True}), spec)
    if spec == "ladder":
        return Policy(spec, spec, config, spec)
    if spec.startswith("river:"):
        return _river(spec, passive)
    retrain = re.fullmatch(r"(every:([1-9]\d*)|at-alarm)(:([a-z]+))?", spec)
    if retrain:
        if retrain[4] and retrain[4] not in TRAINED_RUNGS:
            rungs = ", ".join(TRAINED_RUNGS)
            raise PolicyError(f"{spec}: {retrain[4]} is not one of the trained rungs: {rungs}")
        if retrain[4] not in (None, "head") and deepest(config) == "head":
            raise PolicyError(f"{spec}: a table's ensemble has no layers to train; say head")
        ungated = _changed(passive, probation={"events": 0})
        return Policy(spec, spec, ungated, retrain[1].partition(":")[0])
    name, sign, path = spec.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not path:
        raise PolicyError(f"{spec!r} is no policy; there are: {FORMS}")
    variant = load_config(Path(path), os.environ)
    if undeclared(variant):
        variant = with_features(variant, config.model.features)
    other = [part for part in COMMON if getattr(variant, part) != getattr(config, part)]
    if other:
        raise PolicyError(
            f"{path} differs in {', '.join(other)}: all policies share events and warm-up, so"
            " these sections must be the same"
        )
    return Policy(name, spec, variant, "variant")


def _river(spec: str, config: Config) -> Policy:
    model = spec.partition(":")[2]
    if model not in RIVERS:
        raise PolicyError(f"{spec}: the models of river are {', '.join(RIVERS)}")
    if config.model.task != "tabular":
        raise PolicyError(f"{spec}: the models of river are for tables")
    rival = RivalConfig.model_validate({"model": model})
    return Policy(spec, spec, _changed(config, model={"rivals": (rival,)}), "river")


def _changed(config: Config, **sections: dict[str, Any]) -> Config:
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update=values)
            for name, values in sections.items()
        }
    )
