"""The trainer of a replay: the daemon's own child process, whose result comes when it would have.

The replay waits for the child, and the stream goes on for as long as a refresh of that rung takes
on the recorded clock. That time is nominal, not measured: the same recording and seed must give
the same replay on a fast machine and on a busy one. What is measured and charged is CPU time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from daemon.clock import Clock
from daemon.job import Job, Result
from daemon.policy_config import Rung, TrainerConfig
from daemon.trainer import Trainer

POLL_SECONDS = 0.01
#: Seconds of the stream that a refresh takes by default, by rung; a table's are shorter.
NOMINAL_SECONDS: Mapping[Rung, float] = {
    "recall": 10.0,
    "online": 10.0,
    "head": 15.0,
    "partial": 120.0,
    "progressive": 200.0,
    "ia3": 300.0,
    "lora": 300.0,
    "adapter": 300.0,
    "prefix": 300.0,
    "prompt": 300.0,
    "full": 900.0,
    "student": 300.0,
}


class WaitingTrainer(Trainer):
    """Runs each job to its end at once, and hands in the result ``seconds[rung]`` later.

    ``clock``: None hands it in at once, as for the warm-up. ``cpu_seconds``, ``jobs``: what all
    jobs have cost, the cancelled ones too, and how many there were by rung.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainerConfig,
        clock: Clock | None = None,
        seconds: Mapping[Rung, float] = NOMINAL_SECONDS,
    ) -> None:
        super().__init__(folder, config)
        self.cpu_seconds = 0.0
        self.jobs: Counter[str] = Counter()
        self._clock = clock
        self._takes = seconds
        self._due = 0.0
        self._ended: Result | None = None

    def start(self, job: Job) -> None:
        """Run the job to its end."""
        super().start(job)
        self._due = self._clock.monotonic() + self._takes[job.rung] if self._clock else 0.0
        while (ended := super().result()) is None:
            time.sleep(POLL_SECONDS)
        self._ended = ended
        self.cpu_seconds += ended.cpu_seconds
        self.jobs[job.rung] += 1

    def result(self) -> Result | None:
        """The result, once its time has come on the stream's clock."""
        if self._clock is not None and self._clock.monotonic() < self._due:
            return None
        return self._ended

    def done(self) -> None:
        """As `Trainer.done`."""
        super().done()
        self._ended = None
