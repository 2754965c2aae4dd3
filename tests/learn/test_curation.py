"""Curation: what is left out, merged, drawn and added, and what is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learn.config import CurationConfig
from learn.curation import curate
from learn.curation.augment import augmented
from learn.curation.duplicates import merged, near_duplicates
from learn.curation.noise import confident_errors, out_of_fold, outdone
from learn.curation.tiers import mixed
from learn.examples import Examples
from learn.head import fit_softmax, score


def clusters(n: int, seed: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    points = np.eye(classes, 12)[labels] + 0.35 * generator.normal(size=(n, 12))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points.astype(np.float32), labels


def examples(points: np.ndarray, labels: np.ndarray, texts: list[str] | None = None) -> Examples:
    n = len(labels)
    number = np.arange(n, dtype=np.int64)
    inputs = np.empty(n, dtype=object)
    inputs[:] = texts or [f"text number {i}" for i in range(n)]
    return Examples(
        ids=np.array([f"e{i}" for i in number], dtype=object),
        times=number.astype(np.float64),
        inputs=inputs,
        labels=labels,
        embeddings=points,
        weights=np.ones(n, np.float32),
        topics=np.full(n, "t", dtype=object),
        partitions=np.zeros(n, np.int32),
        offsets=number,
        arrivals=number,
    )


def same(found: Examples) -> Examples:
    return found


def test_flipped_labels_are_found_and_accuracy_won_back() -> None:
    points, labels = clusters(800, 0)
    generator = np.random.default_rng(1)
    flipped = generator.random(800) < 0.2
    noisy = np.where(flipped, (labels + generator.integers(1, 4, 800)) % 4, labels)
    probabilities = out_of_fold(points, noisy, 4, 0.1, 5, seed=0)
    found = confident_errors(probabilities, noisy)
    assert found[flipped].mean() > 0.7
    assert found[~flipped].mean() < 0.1
    kept, report = curate(
        examples(points, noisy), 4, CurationConfig(noise="confident"), 0.1, 0, same
    )
    assert report["noise"] == -int(found.sum())
    test, truth = clusters(2000, 2)
    assert outdone(probabilities, noisy, 5.0)[flipped].mean() > 0.7
    assert outdone(probabilities, noisy, 5.0)[~flipped].mean() < 0.1
    before = score(fit_softmax(points, noisy, None, 4, 0.1).logits(test), truth)
    assert kept.embeddings is not None
    after = score(fit_softmax(kept.embeddings, kept.labels, None, 4, 0.1).logits(test), truth)
    assert after.loss < 0.6 * before.loss


def test_a_class_whose_labels_are_all_wrong_ends_in_a_defined_way() -> None:
    points, labels = clusters(200, 0, classes=2)
    kept, _ = curate(
        examples(points, 1 - labels), 2, CurationConfig(noise="confident"), 0.1, 0, same
    )
    # Consistently wrong is consistent: no filter can know, so nearly all stays.
    assert len(kept) > 180


@pytest.mark.parametrize("n", [1, 5, 60])
def test_what_gives_no_ground_to_judge_is_passed_over(n: int) -> None:
    points, _ = clusters(n, 0)
    one_class = examples(points, np.zeros(n, np.int64))
    config = CurationConfig(noise="confident", tiers=(0.6, 0.3, 0.1))
    kept, report = curate(one_class, 1, config, 0.1, 0, same)
    assert len(kept) == n
    assert report == {"duplicates": 0}


def test_merging_keeps_the_loss() -> None:
    points, labels = clusters(60, 0)
    twice = np.concatenate([points, points[:30]])
    texts = [f"t{i}" for i in [*range(60), *range(30)]]
    found = examples(twice, np.concatenate([labels, labels[:30]]), texts)
    once = merged(found)
    assert len(once) == 60
    assert once.weights.sum() == 90
    ours = fit_softmax(once.embeddings, once.labels, once.weights, 4, 0.1)
    theirs = fit_softmax(twice, found.labels, None, 4, 0.1)
    np.testing.assert_allclose(ours.logits(points), theirs.logits(points), atol=0.05)
    disputed = replace(found, labels=np.concatenate([labels, (labels[:30] + 1) % 4]))
    assert len(merged(disputed)) == 90  # another label is another example


def test_near_duplicates_of_a_class_are_left_out() -> None:
    points, labels = clusters(700, 0)
    near = points + 1e-3
    both = np.concatenate([points, near])
    again = near_duplicates(both, np.concatenate([labels, labels]), 0.999)
    assert again[700:].all()
    assert again[:700].mean() < 0.05
    other = near_duplicates(both, np.concatenate([labels, (labels + 1) % 4]), 0.999)
    assert other[700:].mean() < 0.05


def test_tiers_have_their_shares() -> None:
    chance = np.random.default_rng(0).random(300).astype(np.float32)
    chosen = mixed(chance, (0.6, 0.3, 0.1), seed=1)
    rank = np.empty(300, np.int64)
    rank[np.argsort(-chance)] = np.arange(300)
    counts = np.bincount(rank[chosen] // 100, minlength=3)
    assert counts.tolist() == [100, 50, 17]
    assert len(set(chosen.tolist())) == len(chosen)


def test_augmented_texts_stay_in_their_class_and_need_embeddings() -> None:
    points, labels = clusters(60, 0, classes=2)
    texts = [("my card is lost" if label else "send money home now") for label in labels]
    few = examples(points, labels, [f"{t} {i}" for i, t in enumerate(texts)]).take(np.arange(50))
    few = few.take(np.flatnonzero((few.labels == 0) | (np.arange(50) < 10)))  # 25 and 5
    found = augmented(few, 3, 20, seed=0)
    new = found.take(np.arange(len(few), len(found)))
    assert len(new) == 15
    assert set(new.labels.tolist()) == {1}
    assert np.isnan(new.embeddings).all()
    assert len(set(new.inputs)) > 10
    own = {word for text in few.inputs[few.labels == 1] for word in text.split()}
    assert all(set(text.split()) <= own for text in new.inputs)
    assert set(new.ids) <= set(few.ids)
    again = augmented(few, 3, 20, seed=0)
    assert again.inputs.tolist() == found.inputs.tolist()
    single = examples(points[:4], labels[:4], ["карта", "卡丢了", "word", "x"])
    assert len(augmented(single, 3, 20, seed=0)) == 4


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="shares"):
        CurationConfig(tiers=(0.6, 0.6))
