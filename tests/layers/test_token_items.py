"""Items as rows of packed tokens, and histories as texts of them."""

import torch

from recsys.layers.token_items import TokenItems


def random_items(num_items: int = 30, width: int = 6) -> TokenItems:
    """Items of 0 to `width` tokens; [CLS] is 2, [MASK] 3 and [PAD] 0."""
    generator = torch.Generator().manual_seed(0)
    length_V1 = torch.randint(0, width + 1, (num_items + 1, 1), generator=generator)
    token_VW = torch.randint(5, 99, (num_items + 1, width), generator=generator)
    type_VW = torch.randint(1, 3, (num_items + 1, width), generator=generator)
    features_VW = (token_VW * 4 + type_VW) * (torch.arange(width) < length_V1)
    features_VW[0] = torch.tensor([2 * 4, 3 * 4] + [0] * (width - 2))
    return TokenItems(features_VW.to(torch.int32), dim=4)


def test_random_histories_equal_those_put_together_item_by_item():
    items = random_items()
    generator = torch.Generator().manual_seed(1)
    item_BT = torch.randint(1, 31, (20, 7), generator=generator)
    item_BT *= torch.arange(7) < torch.randint(1, 8, (20, 1), generator=generator)
    token_BL, type_BL, place_BL, real_BL = items.text(item_BT, 16)
    for row, history in enumerate(item_BT.tolist()):
        text = [(2, 0, 0)]
        for place, item in enumerate(history, start=1):
            packed = items.features[item].tolist() if item else []
            text += [(token >> 2, token & 3, place) for token in packed if token & 3]
        text = text[:16]
        assert real_BL[row].tolist() == [i < len(text) for i in range(real_BL.shape[1])]
        text += [(0, 0, 0)] * (real_BL.shape[1] - len(text))
        got = zip(*(part[row].tolist() for part in (token_BL, type_BL, place_BL)), strict=True)
        assert list(got) == text


def test_a_history_without_any_text_is_cls_alone():
    items = random_items()
    items.features[7] = 0
    token_BL, _, _, real_BL = items.text(torch.tensor([[7, 0], [7, 7]]), 16)
    assert token_BL.tolist() == [[2], [2]]
    assert real_BL.all()


def test_new_items_have_their_tokens_and_no_vector_yet():
    items = random_items()
    items.table.normal_()
    grown = items.with_items(torch.tensor([3, 31]), items.features[[9, 10]])
    assert torch.equal(grown.features[[3, 31]], items.features[[9, 10]])
    assert torch.equal(grown.table[:31], items.table)
    assert not grown.table[31].any()
    assert len(items.features) == 31
