"""Raw ids and item numbers."""

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.vocab import Vocab
from recsys.errors import InputError


@pytest.mark.parametrize("raw", [["b", "a", "7"], [30, 10, 20], ["ä b", "", "日本"]])
def test_a_vocab_gives_raw_ids_back_and_reports_unknown_ones(raw: list):
    vocab = Vocab(pa.array(raw))
    assert vocab.encode([raw[2], "no such", raw[0]]) == ([3, 1], ["no such"])
    assert vocab.decode([2, 1]) == [raw[1], raw[0]]
    assert vocab.decode(np.array([3])) == [raw[2]]
    assert vocab.decode(vocab.encode(raw)[0]) == raw
    assert raw[1] in vocab
    assert "no such" not in vocab
    assert len(vocab) == 3


def test_a_number_is_not_the_text_of_it():
    assert Vocab(pa.array([12, 7])).encode(["12", 12]) == ([1], ["12"])
    assert Vocab(pa.array(["12"])).encode([12, "12"]) == ([1], [12])


def test_numpy_numbers_are_known_ids():
    assert Vocab(pa.array([12, 7])).encode(np.array([7, 12, 5])) == ([2, 1], [5])


def test_ids_may_come_in_chunks():
    vocab = Vocab(pa.chunked_array([["a"], ["b", "c"]]))
    assert vocab.decode([3, 1]) == ["c", "a"]


def test_typed_ids_are_read_in_the_type_of_the_catalogue():
    assert Vocab(pa.array([12, 7])).parse("12") == 12
    assert Vocab(pa.array([12, 7])).parse("x") == "x"
    assert Vocab(pa.array(["12"])).parse("12") == "12"


@pytest.mark.parametrize("raw", [["a", "b", "a"], [1, 1]])
def test_a_catalogue_that_names_an_item_twice_is_refused(raw: list):
    with pytest.raises(InputError, match="twice"):
        Vocab(pa.array(raw))
