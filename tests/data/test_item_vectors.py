"""Fixed vectors of items: from words, from a file, from an encoder; kept and made again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_encoder import tiny_encoder

from recsys.data.encoder import encoder_digests
from recsys.data.item_vectors import (
    ITEM_VECTORS,
    EncoderVectors,
    FileVectors,
    TfidfVectors,
    fit_item_vectors,
    load_item_vectors,
)
from recsys.errors import InputError

TITLES = ["red face cream", "blue face cream", "garden hose long", "garden hose short", None]
CATALOGUE = pa.table({"item": [10, 11, 12, 13, 14], "title": TITLES})


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other)


def test_items_of_like_words_are_near_and_an_item_without_words_is_zero():
    vectors = TfidfVectors.fit(CATALOGUE).transform(CATALOGUE)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, rtol=1e-5)
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.3
    assert not vectors[4].any()


def test_they_are_those_of_scikit_learn():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [title or "" for title in TITLES]
    weighed = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    expected = TruncatedSVD(4, random_state=0).fit(weighed).transform(weighed)[:4]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    found = TfidfVectors.fit(CATALOGUE).transform(CATALOGUE)[:4]
    # Directions of equal weight may turn: the products of items do not.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_new_texts_are_read_as_scikit_learn_would_read_them(tmp_path: Path):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    weighed = words.fit_transform([title or "" for title in TITLES])
    svd = TruncatedSVD(4, random_state=0).fit(weighed)
    new = pa.table({"item": [1, 2], "title": ["red red hose of cream", "face face garden hose"]})
    expected = svd.transform(words.transform(new["title"].to_pylist()))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    fit_item_vectors(CATALOGUE, "tfidf").save(tmp_path)
    found = load_item_vectors(tmp_path).transform(new)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_run_folder_makes_the_same_of_old_and_new_items(tmp_path: Path):
    fitted = fit_item_vectors(CATALOGUE, "tfidf")
    fitted.save(tmp_path)
    loaded = load_item_vectors(tmp_path)
    new = pa.table({"item": [99], "title": ["green face cream"]})
    for table in (CATALOGUE, new):
        np.testing.assert_array_equal(loaded.transform(table), fitted.transform(table))
    assert cosine(loaded.transform(new)[0], loaded.transform(CATALOGUE)[0]) > 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == [ITEM_VECTORS]


def test_padding_has_a_row_of_its_own():
    fitted = TfidfVectors.fit(CATALOGUE)
    padded = fitted.padded(CATALOGUE)
    assert not padded[0].any()
    np.testing.assert_array_equal(padded[1:], fitted.transform(CATALOGUE))


def written(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("form", ["lists", "columns"])
def test_vectors_of_a_file_are_matched_by_id(tmp_path: Path, form: str):
    rows = [[1, 2], [3, 2**24 + 2], [5, 6]]
    x, y = zip(*rows, strict=True)
    columns = {"v": rows} if form == "lists" else {"x": x, "y": y}
    said: list[str] = []
    file = written(tmp_path / "v.parquet", item=["12", "10", "77"], **columns)
    found = fit_item_vectors(CATALOGUE, file, said.append).transform(CATALOGUE)
    np.testing.assert_array_equal(found, [[3, 2**24 + 2], [0, 0], [1, 2], [0, 0], [0, 0]])
    assert said == [f"3 of 5 items have no vector in {file}"]


def test_a_new_item_of_a_file_brings_its_vector(tmp_path: Path):
    new = pa.table({"item": [99], "vector": [[7.0, 8.0]]})
    gone = FileVectors(str(tmp_path / "gone.parquet"), 2)
    np.testing.assert_array_equal(gone.transform(new), [[7, 8]])
    with pytest.raises(InputError, match="does not exist"):
        gone.transform(CATALOGUE)
    with pytest.raises(InputError, match="vectors of 2 numbers, those of training had 3"):
        FileVectors("gone.parquet", 3).transform(new)


def test_a_run_knows_which_items_its_file_lacked_and_refuses_other_ones(tmp_path: Path):
    file = written(tmp_path / "v.parquet", title=["a", "b"], sku=[12, 10], v=[[1, 2], [3, 4]])
    fit_item_vectors(CATALOGUE, file).save(tmp_path / "run")
    loaded = load_item_vectors(tmp_path / "run")
    assert loaded.dim == 2
    np.testing.assert_array_equal(loaded.transform(CATALOGUE)[:3], [[3, 4], [0, 0], [1, 2]])
    with pytest.raises(InputError, match="no vector of 1 items, as '99': add them there, or give"):
        loaded.transform(pa.table({"item": [10, 99]}))


def test_the_index_that_pandas_writes_is_no_vector(tmp_path: Path):
    columns = {"item": [10, 12], "x": [1, 2], "__index_level_0__": [5, 6]}
    found = fit_item_vectors(CATALOGUE, written(tmp_path / "v.parquet", **columns))
    assert found.dim == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item": [10], "v": [[1.0, float("nan")]]}, "not finite"),
        ({"item": [10, 11], "v": [[1.0], [1.0, 2.0]]}, "lists of one length, found .1, 2."),
        ({"item": [10], "v": ["a"]}, "lists of numbers"),
        ({"item": [10], "v": [["a"]]}, "'v' must be a list of numbers in every row"),
        ({"item": [10], "v": [[1.0]], "w": [[1.0]]}, "holds vectors in v, w"),
        ({"item": [10, None], "v": [[1.0], [1.0]]}, "a row without an item"),
        ({"item": [10], "x": [1.0], "v": ["a"]}, "columns of numbers alone"),
        ({"code": [10], "v": [[1.0]]}, "no column of item ids, as 'item'"),
        ({"item": [10, 10], "v": [[1.0], [2.0]]}, "names 1 items twice"),
        ({"item": [1], "v": [[1.0]]}, "a vector of none of the 5 items"),
        ({"item": [{"id": 10}], "v": [[1.0]]}, "must be texts or numbers"),
    ],
)
def test_a_broken_file_of_vectors_is_refused(tmp_path: Path, columns, message):
    file = written(tmp_path / "v.parquet", **columns)
    with pytest.raises(InputError, match=message):
        fit_item_vectors(CATALOGUE, file).transform(CATALOGUE)


@pytest.mark.parametrize("source", ["no/such/folder/here", "./here", "tfidff", "/tmp"])
def test_what_is_no_source_of_vectors_is_refused(source: str):
    with pytest.raises(InputError, match=r"neither tfidf|not a text encoder"):
        fit_item_vectors(CATALOGUE, source)


def test_texts_without_words_are_refused():
    with pytest.raises(InputError, match="hold no words"):
        TfidfVectors.fit(pa.table({"item": [1, 2], "title": ["!", "?"]}))


def test_a_damaged_file_of_a_run_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="has no fixed vectors"):
        load_item_vectors(tmp_path)
    (tmp_path / ITEM_VECTORS).write_bytes(b"nothing")
    with pytest.raises(InputError, match="is damaged"):
        load_item_vectors(tmp_path)


def test_an_encoder_reads_each_text_alone_and_must_stay_what_it_was(tmp_path: Path):
    folder, run = tiny_encoder(tmp_path / "encoder"), tmp_path / "run"
    fitted = fit_item_vectors(CATALOGUE, str(folder))
    vectors = fitted.transform(CATALOGUE)
    assert vectors.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), 1, rtol=1e-5)
    assert not vectors[4].any()
    alone = fitted.transform(CATALOGUE.slice(1, 1))
    np.testing.assert_allclose(alone[0], vectors[1], atol=1e-5)
    fitted.save(run)
    again = load_item_vectors(run).transform(CATALOGUE)
    np.testing.assert_allclose(again, vectors, atol=1e-6)
    older = encoder_digests(str(folder))[1]  # runs of before have that of the weights alone
    assert EncoderVectors(str(folder), older, 8).transform(CATALOGUE).shape == (5, 8)
    tiny_encoder(folder)
    with pytest.raises(InputError, match="has other weights"):
        load_item_vectors(run).transform(CATALOGUE)
