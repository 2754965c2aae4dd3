"""Inputs to feeds: shapes, padding, missing values, round trips through files, and bad inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deploy.errors import InputError
from deploy.preprocess import (
    UNCUT,
    Feature,
    TabularPreprocessor,
    TextPreprocessor,
    load_preprocessor,
)


def texts(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.fixture
def text_preprocessor(tokenizer_json):
    return TextPreprocessor(tokenizer_json, 8)


@pytest.fixture
def table_preprocessor():
    return TabularPreprocessor(
        [
            Feature("price", "numeric", mean=10.0, scale=2.0),
            Feature("peak", "boolean", mean=0.5, scale=0.5),
            Feature("region", "categorical", categories=("north", "south")),
        ]
    )


def rows(*values):
    table = np.empty(len(values), [("price", "<f8"), ("peak", "<f8"), ("region", "O")])
    table[:] = list(values)
    return table


def test_text_feeds_are_padded_to_the_longest(text_preprocessor):
    feeds = text_preprocessor(texts("card", "my card is lost"))
    assert feeds["input_ids"].dtype == feeds["attention_mask"].dtype == np.int64
    assert feeds["input_ids"].shape == (2, 6)
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert feeds["input_ids"][0].tolist() == [2, 6, 3, 0, 0, 0]


def test_text_is_truncated(text_preprocessor):
    assert text_preprocessor.lengths(texts("card " * 50, "a card")).tolist() == [8, 4]


def test_a_megabyte_of_text_is_cut_before_tokenising(text_preprocessor):
    huge = "card " * 400_000
    assert text_preprocessor(texts(huge))["input_ids"].shape == (1, 8)


def test_text_take_and_join(text_preprocessor):
    encoded = text_preprocessor.encode(texts("card", "my card", "lost"))
    again = encoded.take([2]).join([encoded.take([1])])
    assert again.ids == [encoded.ids[2], encoded.ids[1]]
    assert len(again) == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (texts("card", ""), "item 1: the text is empty"),
        (texts("card", " \n\t"), "item 1: the text is empty"),
        (texts("card", "lost", 3), "item 2: expected a text, got int"),
        (texts(None), "item 0: expected a text, got NoneType"),
        (texts("\ud800"), "item 0: the text is not valid Unicode"),
    ],
)
def test_bad_texts_are_named(text_preprocessor, bad, message):
    with pytest.raises(InputError, match=message):
        text_preprocessor.encode(bad)


def test_text_round_trip(text_preprocessor, tmp_path):
    text_preprocessor.save(tmp_path)
    again = load_preprocessor(tmp_path)
    inputs = texts("my card is lost", "when")
    for name, feed in text_preprocessor(inputs).items():
        np.testing.assert_array_equal(feed, again(inputs)[name])
    assert again.schema() == {"kind": "text", "max_length": 8}


def test_raw_token_ids(text_preprocessor):
    ids = np.array([[2, 5, 3, 0], [2, 6, 7, 3]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    encoded = text_preprocessor.read({"input_ids": ids, "attention_mask": mask})
    assert encoded.ids == [[2, 5, 3], [2, 6, 7, 3]]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[2, 99, 3]], [[1, 1, 1]], "token ids must lie in 0 to"),
        ([[2, -1, 3]], [[1, 1, 1]], "token ids must lie in 0 to"),
        ([[2, 5, 3]], [[1, 0, 1]], "ones, then zeros"),
        ([[2, 5, 3]], [[2, 1, 0]], "ones, then zeros"),
        ([[2, 5, 3]], [[0, 0, 0]], "1 to 8 tokens"),
        ([[2] * 9], [[1] * 9], "1 to 8 tokens"),
        ([[2, 5, 3]], [[1, 1]], "differ in shape"),
        ([[2.0, 5.0, 3.0]], [[1, 1, 1]], "must be INT64"),
    ],
)
def test_bad_token_ids(text_preprocessor, ids, mask, message):
    with pytest.raises(InputError, match=message):
        text_preprocessor.read({"input_ids": np.array(ids), "attention_mask": np.array(mask)})


def test_table_is_standardised_and_indexed(table_preprocessor):
    feeds = table_preprocessor(rows((14.0, 1.0, "south"), (np.nan, np.nan, None), (1e300, 0, "?")))
    assert feeds["numeric"].dtype == np.float32
    np.testing.assert_array_equal(feeds["numeric"], [[2, 1], [0, 0], [10, -1]])
    assert feeds["category"].tolist() == [[2], [0], [0]]
    assert table_preprocessor.category_sizes == (3,)


def test_table_fit_ignores_what_is_missing():
    table = rows((1.0, 0.0, "b"), (3.0, 1.0, "a"), (np.nan, np.nan, None), (2.0, 1.0, "a"))
    kinds = {"price": "numeric", "peak": "boolean", "region": "categorical"}
    price, peak, region = TabularPreprocessor.fit(table, kinds).features
    assert price.mean == 2.0
    assert price.scale == pytest.approx(np.std([1, 3, 2]))
    assert (peak.mean, peak.scale) == (0.5, 0.5)
    assert region.categories == ("a", "b")


def test_table_fit_of_a_constant_or_absent_column():
    table = rows((5.0, 0.0, None), (5.0, 0.0, None))
    kinds = {"price": "numeric", "peak": "boolean", "region": "categorical"}
    fitted = TabularPreprocessor.fit(table, kinds)
    assert fitted.features[0].scale == 1.0
    assert np.isfinite(fitted(table)["numeric"]).all()
    table["price"] = np.nan
    assert TabularPreprocessor.fit(table, kinds).features[0].mean == 0.0


def test_table_round_trip(table_preprocessor, tmp_path):
    table_preprocessor.save(tmp_path)
    again = load_preprocessor(tmp_path)
    assert again.features == table_preprocessor.features
    assert [spec.datatype for spec in again.tensors()] == ["FP64", "BOOL", "BYTES"]


def test_table_from_json_values(table_preprocessor):
    table = table_preprocessor.rows(
        [{"price": 12, "peak": True, "region": "north"}, dict.fromkeys(("price", "peak", "region"))]
    )
    feeds = table_preprocessor(table)
    np.testing.assert_array_equal(feeds["numeric"], [[1, 1], [0, 0]])
    assert feeds["category"].tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"price": "12"}, "item 0: feature 'price' must be a number, not '12'"),
        ({"price": True}, "must be a number, not True"),
        ({"price": float("inf")}, "item 0: feature 'price' is infinite"),
        ({"price": 10**400}, "is infinite"),
        ({"peak": 2}, "must be true or false, not 2"),
        ({"region": 7}, "must be a string, not 7"),
        ({"regoin": "north"}, "unknown feature 'regoin'"),
        ({"price": [1]}, "must be a number"),
    ],
)
def test_bad_rows_are_named(table_preprocessor, row, message):
    good = {"price": 1.0, "peak": False, "region": "north"}
    with pytest.raises(InputError, match=message):
        table_preprocessor.encode(table_preprocessor.rows([good | row]))


def test_a_missing_feature_is_named(table_preprocessor):
    with pytest.raises(InputError, match="item 1: feature 'peak' is missing"):
        table_preprocessor.rows(
            [{"price": 1, "peak": True, "region": "north"}, {"price": 1, "region": "north"}]
        )


def test_table_from_feeds(table_preprocessor):
    numeric = np.zeros((2, 2), np.float32)
    encoded = table_preprocessor.read({"numeric": numeric, "category": np.array([[0], [2]])})
    assert len(encoded) == 2
    with pytest.raises(InputError, match="item 1: category indices"):
        table_preprocessor.read({"numeric": numeric, "category": np.array([[0], [3]])})
    numeric[1, 0] = np.nan
    with pytest.raises(InputError, match="item 1: tensor 'numeric' must be finite"):
        table_preprocessor.read({"numeric": numeric, "category": np.array([[0], [0]])})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"kind": "image"}',
        b'{"kind": "text"}',
        b'{"kind": "text", "max_length": "many"}',
        b'{"kind": "tabular", "features": []}',
        b'{"kind": "tabular", "features": [{"name": "a"}]}',
        b'{"kind": "tabular", "cut": 0, "features": []}',
    ],
)
def test_malformed_files_are_refused(tmp_path, content):
    (tmp_path / "preprocess.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"preprocess\.json"):
        load_preprocessor(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "preprocess.json").write_text(json.dumps({"kind": "text", "max_length": 8}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer file"):
        load_preprocessor(tmp_path)


def test_categories_that_come_later_are_told_apart_where_there_are_many(tmp_path):
    shops = [f"shop{i}" for i in range(40)]
    table = rows(*((1.0, 0.0, shop) for shop in shops[:20]))
    kinds = {"price": "numeric", "peak": "boolean", "region": "categorical"}
    fitted = TabularPreprocessor.fit(table, kinds)
    assert fitted.category_sizes == (20 + 1 + 64,)
    fitted.save(tmp_path)
    again = load_preprocessor(tmp_path)
    later = rows(*((1.0, 0.0, shop) for shop in shops[20:]), (1.0, 0.0, None))
    found = again(later)["category"][:, 0]
    assert found[-1] == 0
    assert (found[:-1] > 20).all()
    assert found.max() < 85
    assert len(set(found.tolist())) > 10
    np.testing.assert_array_equal(fitted(later)["category"][:, 0], found)


def test_a_model_that_cuts_for_itself_gets_numbers_uncut(tmp_path):
    table = rows((0.0, 0.0, "a"), (2.0, 0.0, "a"))
    kinds = {"price": "numeric", "peak": "boolean", "region": "categorical"}
    far = rows((5000.0, 0.0, "a"))
    assert TabularPreprocessor.fit(table, kinds)(far)["numeric"][0, 0] == 10.0
    TabularPreprocessor.fit(table, kinds, UNCUT).save(tmp_path)
    assert load_preprocessor(tmp_path)(far)["numeric"][0, 0] == 4999.0
