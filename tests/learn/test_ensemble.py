"""The tabular ensemble and its parts: exact in blocks, one head, quick to follow a drift."""

import numpy as np
import pytest

from learn.config import ModelConfig
from learn.ensemble import TabularEnsemble
from learn.mixture import Mixture
from learn.moments import Moments
from learn.past import Past
from learn.random_features import Columns, RandomFeatures
from learn.recursive import RecursiveLeastSquares

COLUMNS = Columns(3, (4,))


def rows(seed: int, n: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A class that is an interaction of a number with a category."""
    generator = np.random.default_rng(seed)
    numeric = generator.normal(size=(n, 3)).astype(np.float32)
    category = generator.integers(0, 4, (n, 1))
    labels = (numeric[:, 0] * np.where(category[:, 0] % 2, 1, -1) > 0).astype(np.int64)
    return {"numeric": numeric, "category": category}, labels


def part(feeds: dict[str, np.ndarray], where: slice) -> dict[str, np.ndarray]:
    return {name: array[where] for name, array in feeds.items()}


def ensemble(classes: int = 2, features: int = 32) -> TabularEnsemble:
    return TabularEnsemble(COLUMNS, RandomFeatures.draw(COLUMNS, features, seed=0), classes)


@pytest.mark.parametrize("forgetting", [0.98, 1.0])
def test_least_squares_in_blocks_equal_the_weighted_solution(forgetting: float) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 5)), generator.normal(size=(200, 2))
    regression = RecursiveLeastSquares(5, 2, forgetting, prior=10.0)
    answers = regression.learn(x, y)
    for n in (1, 63, 64, 65, 199):
        weights = forgetting ** np.arange(n - 1, -1, -1)[:, None]
        prior = 10.0 * forgetting**n * np.eye(5)
        solved = np.linalg.solve(x[:n].T @ (weights * x[:n]) + prior, x[:n].T @ (weights * y[:n]))
        np.testing.assert_allclose(answers[n], x[n] @ solved, rtol=1e-6, atol=1e-8)


def test_forgetting_without_news_does_not_blow_up() -> None:
    regression = RecursiveLeastSquares(3, 1, 0.9, prior=1.0)
    dull = np.tile([1.0, 0.0, 0.0], (5000, 1))
    regression.learn(dull, np.ones((5000, 1)))
    assert np.trace(regression.covariance) <= 3 * 1000.0 * 1.01
    assert regression.weight[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_moments_equal_the_weighted_mean_and_do_not_depend_on_the_block() -> None:
    x = np.random.default_rng(0).normal(5.0, 2.0, (50, 2))
    once, piecewise = Moments(2, 10.0), Moments(2, 10.0)
    mean, deviation = once.observe(x)
    for i in range(50):
        one = piecewise.observe(x[i : i + 1])
        np.testing.assert_allclose(one[0][0], mean[i])
        np.testing.assert_allclose(one[1][0], deviation[i])
    weights = 0.5 ** (np.arange(49, -1, -1) / 10.0)
    np.testing.assert_allclose(mean[-1], weights @ x / weights.sum())
    np.testing.assert_array_equal(Moments(2, 10.0).deviation, [1.0, 1.0])


def test_a_mixture_trusts_the_rate_that_fits() -> None:
    """Experts that swap roles often need a quick rate; the answer follows within the swap."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 4000)
    right = np.where(labels[:, None] == np.arange(2), 1.0, -1.0)
    swapped = np.where(np.arange(4000) // 200 % 2, -1.0, 1.0)
    trusted = np.column_stack([swapped, -swapped])
    answers = trusted[:, :, None] * right[:, None, :]
    logits = Mixture(2, classes=2).learn(answers, labels)
    assert (logits.argmax(axis=1) == labels).mean() > 0.85


def test_intercepts_follow_how_frequent_the_classes_are() -> None:
    """Experts that know nothing of a class's share: the mixture does, and follows its change."""
    generator = np.random.default_rng(0)
    labels = (generator.random(4000) < np.repeat([0.8, 0.2], 2000)).astype(np.int64)
    mixture = Mixture(1, classes=2)
    logits = mixture.learn(np.zeros((4000, 1, 2)), labels)
    for half, most in ((slice(500, 2000), 1), (slice(2500, 4000), 0)):
        assert (logits[half].argmax(axis=1) == most).mean() > 0.95
    np.testing.assert_allclose(
        mixture.learn(np.zeros((1, 1, 2)), labels[:1])[0], mixture.offset, atol=0.2
    )


def test_a_new_class_leaves_the_intercepts_of_the_old() -> None:
    mixture = Mixture(1, classes=2)
    mixture.learn(np.zeros((50, 1, 2)), np.zeros(50, np.int64))
    before = mixture.offset
    mixture.grow(3)
    mixture.grow(2)
    np.testing.assert_array_equal(mixture.offset, [*before, 0.0])


def test_blocks_of_any_size_give_the_same_answers() -> None:
    feeds, labels = rows(0, 300)
    whole, singly = ensemble(), ensemble()
    expected = whole.learn(feeds, labels)
    found = [singly.learn(part(feeds, slice(i, i + 1)), labels[i : i + 1]) for i in range(300)]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


def test_it_learns_an_interaction_and_follows_its_reversal() -> None:
    model = ensemble(features=64)
    feeds, labels = rows(0, 2400)
    labels[1200:] = 1 - labels[1200:]
    right = model.learn(feeds, labels).argmax(axis=1) == labels
    assert right[600:1200].mean() > 0.9
    assert right[1800:].mean() > 0.9


def test_head_and_embedding_answer_as_the_ensemble_does() -> None:
    model = ensemble()
    feeds, labels = rows(0, 500)
    model.learn(feeds, labels)
    later, truth = rows(1, 1)
    answered = model.logits(later)
    # The row itself moves the standardisation a little before it is answered.
    np.testing.assert_allclose(model.learn(later, truth), answered, atol=0.05)
    assert (model.standardisation["encoder.gain"] > 0).all()


def test_no_answer_depends_on_its_own_label() -> None:
    feeds, labels = rows(0, 100)
    for changed in (0, 63, 64, 99):
        other = labels.copy()
        other[changed] = 1 - other[changed]
        one, two = ensemble().learn(feeds, labels), ensemble().learn(feeds, other)
        np.testing.assert_allclose(one[: changed + 1], two[: changed + 1], atol=1e-6)


def test_growing_keeps_the_old_classes_and_learns_the_new() -> None:
    model = ensemble()
    feeds, labels = rows(0, 400)
    model.learn(feeds, labels)
    before = model.logits(feeds)
    model.grow(3)
    model.grow(2)
    after = model.logits(feeds)
    np.testing.assert_allclose(after[:, :2], before, atol=1e-5)
    assert (after.argmax(axis=1) < 2).all()
    new = np.where(feeds["numeric"][:, 2] > 0.5, 2, labels)
    model.learn(feeds, new)
    assert (model.logits(feeds).argmax(axis=1) == new).mean() > 0.8


def test_state_round_trip() -> None:
    feeds, labels = rows(0, 200)
    model, again = ensemble(), ensemble()
    model.learn(feeds, labels)
    again.restore(model.state())
    np.testing.assert_array_equal(again.learn(feeds, labels), model.learn(feeds, labels))
    assert model.size_bytes == again.size_bytes > 0


def table(n: int) -> np.ndarray:
    found = np.empty(n, [("price", "<f8"), ("kind", "O")])
    found["price"] = np.random.default_rng(0).normal(10.0, 1.0, n)
    found["kind"] = "a"
    return found


CONFIG = ModelConfig(
    task="tabular",
    features=[{"name": "price"}, {"name": "kind", "kind": "categorical"}],
    relative=True,
    lagged_labels=2,
)


def test_context_is_of_the_past_only_and_the_same_in_any_batches() -> None:
    inputs = table(60)
    labels = np.array([None if i % 3 == 0 else str(i) for i in range(60)], dtype=object)
    whole = Past(CONFIG).extend(inputs, labels)
    assert list(whole.dtype.names) == [feature.name for feature in CONFIG.columns]
    past = Past(CONFIG)
    pieces = [past.extend(inputs[i : i + 7], labels[i : i + 7]) for i in range(0, 60, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces)["label~2"], whole["label~2"])
    np.testing.assert_allclose(np.concatenate(pieces)["price~8"], whole["price~8"])
    assert whole["label~1"][:4].tolist() == [None, None, "1", "2"]
    assert whole["label~2"][4:6].tolist() == ["1", "2"]  # event 3 had no label
    changed = labels.copy()
    changed[40] = "other"
    later = inputs.copy()
    later["price"][41:] += 5.0
    other = Past(CONFIG).extend(later, changed)
    np.testing.assert_array_equal(other["price~2"][:41], whole["price~2"][:41])
    np.testing.assert_array_equal(other["label~1"][:41], whole["label~1"][:41])
    assert other["label~1"][41] == "other"


def test_a_jump_stands_out_and_a_missing_number_is_the_last_one() -> None:
    inputs = table(200)
    gap = inputs.copy()
    gap["price"][150] = np.nan
    inputs["price"][150] = inputs["price"][149]
    gap["price"][199] = inputs["price"][199] = 30.0
    none = np.full(200, None, dtype=object)
    found, expected = Past(CONFIG).extend(gap, none), Past(CONFIG).extend(inputs, none)
    np.testing.assert_array_equal(found["price~32"], expected["price~32"])
    assert found["price~32"][199] > 3.0


def test_past_goes_on_from_its_state() -> None:
    inputs, labels = table(50), np.array(["x"] * 50, dtype=object)
    whole, first = Past(CONFIG), Past(CONFIG)
    expected = whole.extend(inputs, labels)[25:]
    first.extend(inputs[:25], labels[:25])
    second = Past(CONFIG)
    second.restore(first.values(), first.arrays())
    found = second.extend(inputs[25:], labels[25:])
    np.testing.assert_allclose(found["price~128"], expected["price~128"])
    assert found["label~2"].tolist() == expected["label~2"].tolist()


def test_the_torch_encoder_embeds_as_the_ensemble_and_its_int8_graph_decides_alike(
    tmp_path,
) -> None:
    torch = pytest.importorskip("torch")
    from deploy.export import export_onnx, quantize_int8
    from deploy.session import run_graph
    from learn.model import Classifier
    from learn.tabular import RandomFeatureEncoder

    model = ensemble(features=64)
    feeds, labels = rows(0, 1500)
    model.learn(feeds, labels)
    encoder = RandomFeatureEncoder(COLUMNS, 64)
    encoder.put(model.random)
    moved = {
        k.removeprefix("encoder."): torch.from_numpy(v) for k, v in model.standardisation.items()
    }
    encoder.load_state_dict(encoder.state_dict() | moved)
    module = Classifier(encoder, model.head.dimension, 2)
    with torch.no_grad():
        module.head.weight.copy_(torch.from_numpy(model.head.weight))
        module.head.bias.copy_(torch.from_numpy(model.head.bias))
    later, _ = rows(1, 2000)
    export_onnx(module, part(later, slice(0, 2)), tmp_path / "fp32.onnx")
    quantize_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    answer = run_graph(tmp_path / "int8.onnx", later)
    np.testing.assert_allclose(
        run_graph(tmp_path / "fp32.onnx", later).embeddings, model.embed(later), atol=0.2
    )
    expected = model.logits(later)
    assert (answer.logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.998
    # Exact but for rows that lie on the border of two steps of the grid.
    assert np.median(np.abs(answer.logits - expected)) < 1e-3
