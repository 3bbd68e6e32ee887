"""A state between events: its bytes, whose they are, and what other bytes are told."""

import dataclasses

import pytest
import torch

from recsys.errors import InputError
from recsys.models.sasrec import SASRec
from recsys.retrieval.state import fingerprint, state_from_bytes, state_to_bytes

CONFIG = SASRec.Config(dim=8, num_layers=2, max_len=5, dropout=0.0)


def model(seed: int = 0) -> SASRec:
    torch.manual_seed(seed)
    return SASRec(CONFIG, num_items=9).eval()


@torch.no_grad()
def kept(of: SASRec) -> bytes:
    _, state = of.step(torch.tensor([3, 1]), of.init_state(2))
    return state_to_bytes(state, fingerprint(of))


def test_a_fingerprint_is_that_of_the_weights_and_the_class():
    one = model()
    assert fingerprint(one) == fingerprint(model())
    assert fingerprint(one) != fingerprint(model(seed=1))
    other = type("Other", (SASRec,), {})(CONFIG, num_items=9)
    other.load_state_dict(one.state_dict())
    assert fingerprint(other) != fingerprint(one)
    with torch.no_grad():
        one.encoder.norm.bias[0] += 1
    assert fingerprint(one) != fingerprint(model())


def test_the_state_of_a_model_that_has_learned_since_is_refused():
    data, later = kept(model()), model(seed=1)
    with pytest.raises(InputError, match="belongs to another model"):
        state_from_bytes(data, later, fingerprint(later))


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\xff" * 64])
def test_bytes_that_are_no_state_are_refused(data: bytes):
    one = model()
    with pytest.raises(InputError, match="not the state of a model"):
        state_from_bytes(data, one, fingerprint(one))


def test_cut_bytes_are_refused():
    one = model()
    with pytest.raises(InputError, match="not the state of a model"):
        state_from_bytes(kept(one)[:-1], one, fingerprint(one))


def test_a_state_of_another_shape_is_damaged_even_under_the_right_fingerprint():
    one, mark = model(), fingerprint(model())
    longer = SASRec(dataclasses.replace(CONFIG, max_len=6), num_items=9)
    deeper = SASRec(dataclasses.replace(CONFIG, num_layers=3), num_items=9)
    for other in (longer, deeper):
        with pytest.raises(InputError, match="damaged"):
            state_from_bytes(state_to_bytes(other.init_state(1), mark), one, mark)
    window, blocks = one.init_state(2)
    mixed = (window._replace(count_B=window.count_B[:1]), blocks)
    with pytest.raises(InputError, match="damaged"):
        state_from_bytes(state_to_bytes(mixed, mark), one, mark)


def test_a_state_comes_back_with_its_types_and_values():
    one = model()
    window, blocks = state_from_bytes(kept(one), one, fingerprint(one))
    assert window.items_BW.tolist() == [[3, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert window.count_B.tolist() == [1, 1]
    assert [len(block) for block in blocks] == [3, 3]
