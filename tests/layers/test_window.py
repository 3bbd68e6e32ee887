"""The last items of histories, one event at a time."""

import torch

from recsys.layers.window import Window


def pushed(window: Window, *events: tuple[list[int], list[int] | None]) -> Window:
    for items, times in events:
        times_B = None if times is None else torch.tensor(times)
        window = window.push(torch.tensor(items), times_B)
    return window


def test_a_window_keeps_the_last_items_with_their_times_oldest_first():
    window = Window.empty(2, 3, torch.device("cpu"))
    events = [([item, item + 10], [100 * item, 0]) for item in range(1, 6)]
    window = pushed(window, *events[:2])
    assert window.items_BW.tolist() == [[1, 2, 0], [11, 12, 0]]
    assert not window.overfull_B.any()
    window = pushed(window, events[2])
    assert not window.overfull_B.any()
    window = pushed(window, *events[3:])
    assert window.items_BW.tolist() == [[3, 4, 5], [13, 14, 15]]
    assert window.times_BW.tolist() == [[300, 400, 500], [0, 0, 0]]
    assert window.overfull_B.all()


def test_histories_of_different_lengths_share_a_window():
    short, long = (Window.empty(1, 3, torch.device("cpu")) for _ in range(2))
    short = pushed(short, ([7], None))
    long = pushed(long, *(([item], None) for item in (1, 2, 3, 4)))
    both = Window(*(torch.cat(pair) for pair in zip(short, long, strict=True)))
    both = pushed(both, ([8, 5], None))
    assert both.items_BW.tolist() == [[7, 8, 0], [3, 4, 5]]
    assert both.overfull_B.tolist() == [False, True]
