"""Numbers instead of classes: the same ensemble, exact in blocks, one head, no size of its own."""

import numpy as np
import pytest

from learn.config import ModelConfig
from learn.ensemble import TabularEnsemble
from learn.number_mixture import NumberMixture
from learn.past import Past
from learn.random_features import Columns, RandomFeatures

COLUMNS = Columns(3, (4,))


def rows(seed: int, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A number with a bend in it, and another sign for every other category."""
    generator = np.random.default_rng(seed)
    numeric = generator.normal(size=(n, 3)).astype(np.float32)
    category = generator.integers(0, 4, (n, 1))
    sign = np.where(category[:, 0] % 2, 1, -1)
    values = np.abs(numeric[:, 0]) * sign + 0.5 * numeric[:, 1]
    return {"numeric": numeric, "category": category}, values.astype(np.float64)


def part(feeds: dict[str, np.ndarray], where: slice) -> dict[str, np.ndarray]:
    return {name: array[where] for name, array in feeds.items()}


def ensemble(features: int = 32) -> TabularEnsemble:
    random = RandomFeatures.draw(COLUMNS, features, seed=0)
    return TabularEnsemble(COLUMNS, random, 1, number=True)


def r2(answers: np.ndarray, values: np.ndarray) -> float:
    spread = np.square(values - values.mean()).sum()
    return 1.0 - float(np.square(answers[:, 0] - values).sum() / spread)


def test_it_learns_a_bend_and_follows_its_reversal() -> None:
    model = ensemble(64)
    feeds, values = rows(0, 3000)
    values[1500:] *= -1
    answers = model.learn(feeds, values)
    assert r2(answers[800:1500], values[800:1500]) > 0.8
    assert r2(answers[2400:], values[2400:]) > 0.7


def test_blocks_of_any_size_give_the_same_answers() -> None:
    feeds, values = rows(0, 300)
    expected, singly = ensemble().learn(feeds, values), ensemble()
    found = [singly.learn(part(feeds, slice(i, i + 1)), values[i : i + 1]) for i in range(300)]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


@pytest.mark.parametrize(("scale", "level"), [(1e-3, 0.0), (1e6, 5e7)])
def test_the_targets_unit_and_level_make_no_difference(scale: float, level: float) -> None:
    feeds, values = rows(0, 800)
    plain = ensemble().learn(feeds, values)
    moved = ensemble().learn(feeds, level + scale * values)
    tolerance = 0.02 if level else 1e-3  # float32 holds seven digits
    np.testing.assert_allclose(((moved - level) / scale)[2:], plain[2:], atol=tolerance)


def test_no_answer_depends_on_its_own_value() -> None:
    feeds, values = rows(0, 100)
    for changed in (1, 63, 64, 99):
        other = values.copy()
        other[changed] += 3.0
        one, two = ensemble().learn(feeds, values), ensemble().learn(feeds, other)
        np.testing.assert_allclose(one[: changed + 1], two[: changed + 1], atol=1e-6)


def test_the_head_answers_as_the_ensemble_does_and_goes_on_from_its_state() -> None:
    model, again = ensemble(), ensemble()
    feeds, values = rows(0, 500)
    model.learn(feeds, values)
    later, truth = rows(1, 1)
    answered = model.logits(later)
    again.restore(model.state())
    np.testing.assert_array_equal(again.logits(later), answered)
    # The row itself moves the standardisation a little before it is answered.
    np.testing.assert_allclose(model.learn(later, truth), answered, atol=0.05)
    again.learn(later, truth)
    np.testing.assert_array_equal(again.learn(feeds, values), model.learn(feeds, values))


def test_one_wild_value_does_not_spoil_the_rest() -> None:
    feeds, values = rows(0, 1600)
    wild = values.copy()
    wild[800] = 1e6
    spoiled, calm = ensemble().learn(feeds, wild), ensemble().learn(feeds, values)
    assert r2(calm[1200:], values[1200:]) > 0.75
    assert r2(spoiled[1200:], values[1200:]) > 0.5


def test_a_mixture_trusts_the_rate_that_fits() -> None:
    """Experts that swap roles ask for a quick rate."""
    values = np.random.default_rng(0).normal(size=4000)
    swapped = np.where(np.arange(4000) // 200 % 2, -1.0, 1.0)
    mixture = NumberMixture(2)
    targets = mixture.targets(values)
    answers = np.stack([targets * swapped[:, None], -targets * swapped[:, None]], axis=1)
    found = mixture.learn(answers, values)
    assert r2(found[200:], values[200:]) > 0.7


def test_earlier_values_are_numbers_of_the_past() -> None:
    config = ModelConfig(
        task="tabular", target="number", features=[{"name": "price"}], lagged_labels=2
    )
    table = np.zeros(4, [("price", "<f8")])
    labels = np.array(["1.5", None, "-2", "3"], dtype=object)
    found = Past(config).extend(table, labels)
    np.testing.assert_array_equal(found["label~1"], [np.nan, 1.5, 1.5, -2.0])
    np.testing.assert_array_equal(found["label~2"], [np.nan, np.nan, np.nan, 1.5])


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": "text"},
        {"table": "network"},
        {"labels": ["a"]},
    ],
)
def test_numbers_are_for_the_ensemble_of_a_table(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"target: number"):
        ModelConfig.model_validate({"task": "tabular", "target": "number", **wrong})
