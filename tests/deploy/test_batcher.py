"""The queue and its workers: grouping, bounds, deadlines, dead clients, and lone failures."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from deploy.batcher import Batcher, Job
from deploy.config import BatchConfig
from deploy.errors import (
    ClientGoneError,
    DeadlineError,
    InferenceError,
    NotReadyError,
    QueueFullError,
)
from deploy.preprocess.text import TokenIds
from deploy.session import Prediction


class Model:
    """Answers each item with its first token; can be held back, and breaks on token 13."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def run(self, items):
        self.entered.set()
        self.go.wait(10)
        self.batches.append([len(ids) for ids in items.ids])
        first = [ids[0] for ids in items.ids]
        if 13 in first:
            raise RuntimeError("thirteen")
        scores = np.array(first, np.float32)[:, None]
        if 14 in first:
            scores = scores * np.nan
        return Prediction(scores, scores, scores)


@dataclass
class Desk:
    batcher: Batcher
    outcomes: list
    runs: list

    def wait(self, items):
        end = time.monotonic() + 10
        while sum(len(outcome.rows) for outcome in self.outcomes) < items:
            assert time.monotonic() < end, "no outcome"
            time.sleep(0.005)
        return self.outcomes


@pytest.fixture
def desk():
    made = []

    def make(workers=1, queue_limit=1000, max_items=4, start=True, spare_limit=0):
        outcomes, runs = [], []
        batcher = Batcher(
            workers=workers,
            batch=BatchConfig(max_items=max_items, padding=1.1),
            queue_limit=queue_limit,
            spare_limit=spare_limit,
            deliver=outcomes.extend,
            observe=runs.append,
        )
        if start:
            batcher.start()
        made.append(batcher)
        return Desk(batcher, outcomes, runs)

    yield make
    for batcher in made:
        batcher.stop(5)


def job(model, *items, seconds=10.0):
    return Job(model, TokenIds([list(item) for item in items]), time.monotonic() + seconds)


def item(first, length):
    return [first] + [0] * (length - 1)


def hold(desk, model):
    """Occupy the only worker, so that what is submitted next waits."""
    model.go.clear()
    model.entered.clear()
    desk.batcher.submit(job(model, item(1, 1)))
    assert model.entered.wait(5)


def test_every_item_gets_its_own_answer(desk):
    model, d = Model(), desk(workers=3)
    jobs = [job(model, item(20 + i, 1 + i % 7), item(100 + i, 3)) for i in range(50)]
    for each in jobs:
        d.batcher.submit(each)
    answers = {}
    for outcome in d.wait(100):
        for row, value in zip(outcome.rows, outcome.prediction.probabilities[:, 0], strict=True):
            answers[outcome.job, row] = value
    assert len(answers) == 100
    for i, each in enumerate(jobs):
        assert (answers[each, 0], answers[each, 1]) == (20 + i, 100 + i)
    assert d.batcher.depth == 0


def test_batches_hold_similar_lengths_oldest_first(desk):
    model, d = Model(), desk()
    hold(d, model)
    for length in (20, 3, 21, 40, 3, 20, 3, 3, 3):
        d.batcher.submit(job(model, item(1, length)))
    model.go.set()
    d.wait(10)
    assert model.batches[1:] == [[20, 20, 21], [3, 3, 3, 3], [40], [3]]
    assert [run.items for run in d.runs] == [1, 3, 4, 1, 1]


def test_models_do_not_share_batches(desk):
    model, other, d = Model(), Model(), desk()
    hold(d, model)
    for each in (model, other, model):
        d.batcher.submit(job(each, item(1, 5)))
    model.go.set()
    d.wait(4)
    assert model.batches[1:] == [[5, 5]]
    assert other.batches == [[5]]


def test_a_full_queue_refuses_whole_jobs(desk):
    model, d = Model(), desk(queue_limit=3)
    hold(d, model)
    d.batcher.submit(job(model, item(1, 2), item(1, 2)))
    with pytest.raises(QueueFullError) as caught:
        d.batcher.submit(job(model, item(1, 2), item(1, 2)))
    assert caught.value.retry_after >= 1
    d.batcher.submit(job(model, item(1, 2)))
    assert d.batcher.depth == 3
    model.go.set()
    d.wait(4)


def test_late_work_and_dead_clients_are_dropped_unstarted(desk):
    model, d = Model(), desk()
    hold(d, model)
    late = job(model, item(1, 5), seconds=-1)
    dead, good = job(model, item(1, 5)), job(model, item(1, 5))
    for each in (late, dead, good):
        d.batcher.submit(each)
    dead.cancelled = True
    model.go.set()
    d.wait(4)
    errors = {outcome.job: outcome.error for outcome in d.outcomes}
    assert isinstance(errors[late], DeadlineError)
    assert isinstance(errors[dead], ClientGoneError)
    assert errors[good] is None
    assert model.batches[1:] == [[5]]


@pytest.mark.parametrize("poison", [13, 14])
def test_a_bad_item_fails_alone(desk, poison):
    model, d = Model(), desk()
    hold(d, model)
    jobs = [job(model, item(first, 5)) for first in (1, poison, 2)]
    for each in jobs:
        d.batcher.submit(each)
    model.go.set()
    d.wait(4)
    by_job = {outcome.job: outcome for outcome in d.outcomes}
    assert isinstance(by_job[jobs[1]].error, InferenceError)
    assert by_job[jobs[0]].prediction.probabilities[0, 0] == 1
    assert by_job[jobs[2]].prediction.probabilities[0, 0] == 2


def test_all_idle_workers_share_one_large_job(desk):
    model, d = Model(), desk(workers=2)
    model.go.clear()
    d.batcher.submit(job(model, *(item(1, 5) for _ in range(8))))
    end = time.monotonic() + 5
    while d.batcher.depth and time.monotonic() < end:
        time.sleep(0.005)
    assert d.batcher.depth == 0  # both hold a batch of four
    model.go.set()
    d.wait(8)


def test_stopping_finishes_what_waits(desk):
    model, d = Model(), desk()
    hold(d, model)
    waiting = job(model, item(7, 5))
    d.batcher.submit(waiting)
    threading.Timer(0.1, model.go.set).start()
    d.batcher.stop(5)
    assert {outcome.job for outcome in d.outcomes} >= {waiting}
    assert all(outcome.error is None for outcome in d.outcomes)
    assert not d.batcher.alive
    with pytest.raises(NotReadyError):
        d.batcher.submit(job(model, item(1, 1)))


def test_stopping_in_vain_fails_what_waits(desk):
    model, d = Model(), desk()
    hold(d, model)
    waiting = job(model, item(7, 5))
    d.batcher.submit(waiting)
    d.batcher.stop(0.05)
    (outcome,) = [each for each in d.outcomes if each.job is waiting]
    assert isinstance(outcome.error, NotReadyError)
    model.go.set()


def test_spare_work_waits_for_an_empty_queue_and_is_bounded(desk):
    model, spare = Model(), Model()
    d = desk(spare_limit=3)
    hold(d, model)
    assert d.batcher.submit_spare(job(spare, item(1, 5), item(1, 5)))
    assert not d.batcher.submit_spare(job(spare, item(1, 5), item(1, 5)))
    assert d.batcher.submit_spare(job(spare, item(1, 5)))
    order = []
    for each in (model, spare):
        run = each.run
        each.run = lambda items, each=each, run=run: (order.append(each), run(items))[1]
    late = [job(model, item(1, 3)) for _ in range(6)]
    for each in late:
        d.batcher.submit(each)
    assert d.batcher.depth == 6
    model.go.set()
    d.wait(10)
    assert order == [model, model, spare]
    assert all(each.begun >= each.arrived for each in late)


def test_spare_work_left_at_the_end_is_handed_back(desk):
    model, d = Model(), desk(spare_limit=3, start=False)
    assert d.batcher.submit_spare(job(model, item(1, 5)))
    d.batcher.stop(1)
    (outcome,) = d.outcomes
    assert isinstance(outcome.error, NotReadyError)
    assert not d.batcher.submit_spare(job(model, item(1, 5)))
