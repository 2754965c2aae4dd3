"""The guard against labels that should not be learned: floods, and labels against high agreement.

Where the champion, the online head and the nearest neighbours in memory agree with each other, and
the champion is sure, a label that says otherwise is a *contradiction*. A few are noise. Many, from
one labeller or for one class, are either a concept drift, which must be learned, or labels that are
wrong, by malice or by mistake. They are told apart by what else happens to the same events:

- **One labeller.** A drift of the concept shows in everybody's labels, wrong labels in those of
  one. The labeller is compared with all others over the same stretch of events, from where its
  contradictions began; too few others say nothing, and nothing is done.
- **One class.** Without knowing who labelled, look at the neighbourhood: where the concept moved,
  most new labels of events alike have moved with it; wrong labels are scattered among right ones.
  A drift that creeps in event by event looks like that too, at first; so this is off by default.

Where its contradictions began, and that they are no noise, is shown by a cumulative sum (Page,
"Continuous inspection schemes", Biometrika 1954) of log likelihood ratios. It is below the sum of
the likelihood ratios of all beginnings, an e-detector, so that it takes at least `LIKELY` labels on
average before it is wrong about a labeller (Shin, Ramdas & Rinaldo, "E-detectors", 2022).

A *flood* is a burst of labels from one labeller: `guard.flood_factor` times its usual share, shown
at one in `LIKELY`. It says nothing of the labels, only that nobody should shape the model alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from daemon.policy_config import GuardConfig
from daemon.served import Answer
from learn.memory import Memory

Reason = Literal["flood", "labeller", "class"]
Arrays = dict[str, NDArray[np.generic]]

LIKELY = 10_000
#: Contradictions are bet to be so many times as frequent as is allowed.
RAISED = 3.0
#: Events of high agreement among which neighbours are looked for, and how many neighbours.
NEIGHBOURHOOD, NEIGHBOURS = 500, 8
#: Neighbours of an event are looked for among so many of the memory, read anew as often.
REMEMBERED, FRESH = 1000, 250
#: While a case is open, evidence for a drift is weighed by its age in events of high agreement.
HALF_LIFE = 50
#: The usual share of a labeller is counted over so many bursts.
USUAL = 10
#: One bound in a hundred fails, of each of the two rates compared.
DOUBT = 0.01


@dataclass(frozen=True, slots=True)
class Seen:
    """``n`` labelled events. agreed: int64 [n], the class that all three say, -1 where they differ.

    ids: object [n] of str. labellers: object [n] of str or None. labels: int64 [n]. embeddings:
    float32 [n, d].
    """

    ids: NDArray[np.object_]
    labellers: NDArray[np.object_]
    labels: NDArray[np.int64]
    agreed: NDArray[np.int64]
    embeddings: NDArray[np.float32]

    @property
    def contradicted(self) -> NDArray[np.bool_]:
        """Bool [n]: agreed on, and labelled otherwise."""
        found: NDArray[np.bool_] = (self.agreed >= 0) & (self.labels != self.agreed)
        return found


@dataclass(slots=True)
class Excursion:
    """A group whose contradictions are more frequent than allowed, since some event.

    score: the cumulative sum. since: which event of high agreement it began with. contradicted,
    agreed: the group's own since then; others: those of everybody else. ids: what the group gave.
    """

    score: float = 0.0
    since: int = 0
    contradicted: float = 0.0
    agreed: float = 0.0
    others_contradicted: float = 0.0
    others_agreed: float = 0.0
    ids: list[str] = field(default_factory=list)

    @property
    def apart(self) -> bool:
        """Whether the others, in the same stretch, are shown to contradict less often."""
        own = _at_least(self.contradicted, self.agreed)
        return own > _at_most(self.others_contradicted, self.others_agreed)

    @property
    def together(self) -> bool:
        """Whether the others have come to contradict too, a third as often or more."""
        own = self.contradicted / max(self.agreed, 1.0)
        return _at_least(self.others_contradicted, self.others_agreed) > own / 3

    def fade(self, events: int) -> None:
        """So many events of high agreement later: what was before counts for less."""
        kept = 0.5 ** (events / HALF_LIFE)
        self.contradicted *= kept
        self.agreed *= kept
        self.others_contradicted *= kept
        self.others_agreed *= kept


@dataclass(frozen=True, slots=True)
class Finding:
    """The guard's sentence about a labeller or a class. ids: what it gave before it was noticed."""

    reason: Reason
    group: str
    sentence: str
    ids: tuple[str, ...] = ()


class Guard:
    """Notices; what becomes of the labels is `Quarantine`'s business.

    `observe` a batch of labelled events, and act on the findings; ``lifted`` are the groups whose
    case a drift explains after all.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._excursions: dict[tuple[Reason, str], Excursion] = {}
        self._burst: deque[str] = deque()
        self._usual: deque[str] = deque()
        self._counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._near = np.zeros((0, 0), dtype=np.float32)
        self._near_agreed = self._near_labels = np.zeros(0, dtype=np.int64)
        self._agreed = 0  # events of high agreement so far

    def observe(
        self, seen: Seen, open_cases: Mapping[tuple[Reason, str], object], names: list[str]
    ) -> tuple[list[Finding], list[tuple[Reason, str]]]:
        """The new findings, and the open cases that are lifted. ``names``: of the classes."""
        findings: list[Finding] = []
        self._keep_near(seen)
        self._agreed += int((seen.agreed >= 0).sum())
        findings += self._floods(seen.labellers, open_cases)
        for key, own in self._groups(seen, names):
            found = self._follow(key, own, seen, key in open_cases)
            if key in open_cases or found.score < math.log(LIKELY):
                continue
            if self._wrong(key, found, names):
                findings.append(Finding(*key, self._sentence(key, found), tuple(found.ids)))
                self._excursions[key] = Excursion(found.score, self._agreed)
        lifted = [key for key in open_cases if self._drifted(key, names)]
        for key in lifted:
            self._excursions.pop(key, None)
        quiet = [k for k, e in self._excursions.items() if e.score <= 0 and k not in open_cases]
        for key in quiet:
            del self._excursions[key]
        return findings, lifted

    def forget(self, key: tuple[Reason, str]) -> None:
        """A case is closed: the group begins anew."""
        self._excursions.pop(key, None)
        if key[0] == "flood":
            # What came in the burst is this labeller's usual share from now on.
            self._usual.extend(self._burst)
            self._counts[1].update(self._burst)
            self._burst.clear()
            self._counts[0].clear()

    # ---------------------------------------------------------------- contradictions

    def _groups(
        self, seen: Seen, names: list[str]
    ) -> Iterator[tuple[tuple[Reason, str], NDArray[np.bool_]]]:
        agreed = seen.agreed >= 0
        for labeller in sorted({who for who in seen.labellers[agreed].tolist() if who is not None}):
            yield ("labeller", labeller), agreed & (seen.labellers == labeller)
        if self.config.by_class:
            for label in np.unique(seen.labels[agreed]).tolist():
                yield ("class", names[label]), agreed & (seen.labels == label)

    def _follow(
        self, key: tuple[Reason, str], own: NDArray[np.bool_], seen: Seen, is_open: bool
    ) -> Excursion:
        """Take the group's cumulative sum through its events, in order."""
        allowed = self.config.contradictions
        raised = min(RAISED * allowed, (1 + allowed) / 2)
        up, down = math.log(raised / allowed), math.log((1 - raised) / (1 - allowed))
        contradicted, agreed = seen.contradicted, seen.agreed >= 0
        before = self._agreed - int(agreed.sum())
        numbers = before + np.cumsum(agreed)  # of each event, among those of high agreement
        found = self._excursions.setdefault(key, Excursion(since=before))
        if is_open:
            found.fade(int(agreed.sum()))
        first = 0
        for row in np.flatnonzero(own).tolist():
            found.score += up if contradicted[row] else down
            if found.score <= 0 and not is_open:
                found, first = Excursion(since=int(numbers[row])), row + 1
                self._excursions[key] = found
                continue
            found.agreed += 1
            found.contradicted += int(contradicted[row])
        since = np.arange(len(own)) >= first
        others = agreed & ~own & since
        found.others_agreed += int(others.sum())
        found.others_contradicted += int((others & contradicted).sum())
        mine = self._members(key, seen, own) & since
        found.ids = (found.ids + seen.ids[mine].tolist())[-NEIGHBOURHOOD:]
        return found

    @staticmethod
    def _members(key: tuple[Reason, str], seen: Seen, own: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """All that a labeller gave; of a class only what contradicts."""
        if key[0] == "labeller":
            return np.asarray(seen.labellers == key[1])
        return own & seen.contradicted

    def _wrong(self, key: tuple[Reason, str], found: Excursion, names: list[str]) -> bool:
        if key[0] == "labeller":
            return found.apart
        share = self._moved_share(names.index(key[1]), found.since)
        return share is not None and share < 0.5

    def _drifted(self, key: tuple[Reason, str], names: list[str]) -> bool:
        """Whether what has come since a case was opened speaks for a drift."""
        found = self._excursions.get(key)
        if found is None or key[0] == "flood":
            return False
        if key[0] == "labeller":
            return found.agreed > 0 and found.contradicted > 0 and found.together
        share = self._moved_share(names.index(key[1]), found.since)
        return share is not None and share >= 0.5

    def _sentence(self, key: tuple[Reason, str], found: Excursion) -> str:
        own = f"{found.contradicted:.0f} of {found.agreed:.0f} labels against high agreement"
        if key[0] == "labeller":
            others = f"{found.others_contradicted:.0f} of {found.others_agreed:.0f}"
            return f"{own}; of the others, in the same stretch, {others}"
        return f"{own}; most events like them keep the label that was agreed on"

    # ---------------------------------------------------------------- the neighbourhood

    def _keep_near(self, seen: Seen) -> None:
        if not self.config.by_class:
            return
        rows = np.flatnonzero(seen.agreed >= 0)
        fresh = unit(seen.embeddings[rows])
        if self._near.shape[1] == fresh.shape[1]:
            fresh = np.concatenate([self._near, fresh])
            agreed = np.concatenate([self._near_agreed, seen.agreed[rows]])
            labels = np.concatenate([self._near_labels, seen.labels[rows]])
        else:  # nothing yet, or another encoder
            agreed, labels = seen.agreed[rows], seen.labels[rows]
        self._near = fresh[-NEIGHBOURHOOD:]
        self._near_agreed, self._near_labels = agreed[-NEIGHBOURHOOD:], labels[-NEIGHBOURHOOD:]

    def _moved_share(self, label: int, since: int) -> float | None:
        """Around the contradictions for ``label``: how many of the events alike have it too.

        Of the events of high agreement after the one numbered ``since``.
        """
        fresh = min(len(self._near), self._agreed - since)
        first = len(self._near) - fresh
        near, labels = self._near[first:], self._near_labels[first:]
        agreed = self._near_agreed[first:]
        moved = (agreed != label) & (labels == label)
        rows = np.flatnonzero(moved)
        if len(rows) < NEIGHBOURS:
            return None
        alike = near[rows] @ near.T
        # Only events of which the same was agreed on, and not the event itself.
        alike[agreed[rows][:, None] != agreed[None]] = -np.inf
        alike[np.arange(len(rows)), rows] = -np.inf
        nearest = np.argsort(-alike, axis=1)[:, :NEIGHBOURS]
        there = np.isfinite(np.take_along_axis(alike, nearest, axis=1))
        return float((moved[nearest] & there).sum() / max(there.sum(), 1))

    # ---------------------------------------------------------------- floods

    def _floods(
        self,
        labellers: NDArray[np.object_],
        open_cases: Mapping[tuple[Reason, str], object],
    ) -> list[Finding]:
        size, (burst, usual) = self.config.flood_labels, self._counts
        for who in labellers.tolist():
            if who is None or ("flood", who) in open_cases:
                continue
            self._burst.append(who)
            burst[who] += 1
            if len(self._burst) > size:
                old = self._burst.popleft()
                burst[old] -= 1
                self._usual.append(old)
                usual[old] += 1
            if len(self._usual) > USUAL * size:
                usual[self._usual.popleft()] -= 1
        if len(self._usual) < size:
            return []  # nobody knows yet what is usual
        found = []
        for who, count in burst.most_common(3):
            share = usual[who] / len(self._usual)
            least = float(beta.ppf(1 / LIKELY, count, size - count + 1))
            if least > self.config.flood_factor * max(share, 1 / size):
                sentence = f"{count} of the last {size} labels, where {share:.1%} are usual"
                found.append(Finding("flood", who, sentence))
                gone = [one for one in self._burst if one != who]
                self._burst = deque(gone)
                del burst[who]
        return found

    # ---------------------------------------------------------------- checkpoint

    def state(self) -> Arrays:
        """Plain arrays, for the checkpoint."""
        body = {
            "excursions": [[*key, asdict(found)] for key, found in self._excursions.items()],
            "burst": list(self._burst),
            "usual": list(self._usual),
            "agreed": self._agreed,
        }
        return {
            "body": np.frombuffer(json.dumps(body).encode(), dtype=np.uint8),
            "near": self._near,
            "near_agreed": self._near_agreed,
            "near_labels": self._near_labels,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken."""
        body = json.loads(state["body"].tobytes())
        self._excursions = {
            (reason, group): Excursion(**values) for reason, group, values in body["excursions"]
        }
        self._burst, self._usual = deque(body["burst"]), deque(body["usual"])
        self._agreed = body["agreed"]
        self._counts = (Counter(self._burst), Counter(self._usual))
        self._near = state["near"]
        self._near_agreed, self._near_labels = state["near_agreed"], state["near_labels"]


class Agreement:
    """Where the champion, the online head and the nearest neighbours say the same."""

    def __init__(self) -> None:
        self._encoder = ""
        self._made_at = -FRESH
        self._known = np.zeros((0, 0), dtype=np.float32)
        self._labels = np.zeros(0, dtype=np.int64)

    def of(
        self,
        answer: Answer,
        online: NDArray[np.int64] | None,
        memory: Memory,
        event: int,
        *,
        confidence: float,
    ) -> NDArray[np.int64]:
        """int64 [n]: the class that all three say, -1 where they differ or the champion is unsure.

        online: int64 [n], the online head's answers, None where there is no such head. ``event``:
        the number of events so far; neighbours are looked for in what the memory held lately.
        """
        self._refresh(memory, event)
        agreed = np.where(answer.opinion.confidence >= confidence, answer.predicted, -1)
        if online is not None:
            agreed[online != agreed] = -1
        rows = np.flatnonzero(agreed >= 0)
        if self._known.shape[1] != answer.embeddings.shape[1] or len(self._labels) < NEIGHBOURS:
            return np.full(len(agreed), -1)
        alike = unit(answer.embeddings[rows]) @ self._known.T
        nearest = np.argpartition(-alike, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        same = (self._labels[nearest] == agreed[rows][:, None]).mean(axis=1)
        agreed[rows[same <= 0.5]] = -1
        return agreed

    def _refresh(self, memory: Memory, event: int) -> None:
        if event - self._made_at < FRESH and self._encoder == memory.encoder:
            return
        found = memory.recent(REMEMBERED, training=True)
        self._made_at, self._encoder = event, memory.encoder
        if found.embeddings is None:
            self._labels = np.zeros(0, dtype=np.int64)
            return
        known = np.isfinite(found.embeddings).all(axis=1)
        self._known, self._labels = unit(found.embeddings[known]), found.labels[known]


def unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [n, d], each row of length 1."""
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    found: NDArray[np.float32] = embeddings / np.maximum(length, 1e-12)
    return found


def _at_least(count: float, of: float) -> float:
    """The lower bound of a rate (Clopper & Pearson, Biometrika 1934)."""
    return float(beta.ppf(DOUBT, count, of - count + 1)) if count > 0 else 0.0


def _at_most(count: float, of: float) -> float:
    return float(beta.ppf(1 - DOUBT, count + 1, of - count)) if count < of else 1.0
