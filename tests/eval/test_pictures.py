"""The picture of a training: real, whole, and of the numbers in the history."""

import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from recsys.checkpoint import HISTORY, write_lines
from recsys.eval.pictures import plot_training

PNG = b"\x89PNG\r\n\x1a\n"
PICTURE = "training.png"


def epoch(number: int, stage: str = "train", **valid: float) -> dict[str, Any]:
    """A line of a history; the loss is 10 / epoch."""
    record = {"epoch": number, "loss": 10 / number, "stage": stage}
    return (
        {**record, "valid": {f"{name}@10": value for name, value in valid.items()}}
        if valid
        else record
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    scores = (0.1, 0.3, 0.2)
    lines = [epoch(i, hr=score, ndcg=score / 2) for i, score in enumerate(scores, start=1)]
    write_lines(tmp_path / HISTORY, lines)
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the order they were saved in."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def lines_of(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


def test_the_picture_is_a_png_with_something_on_it(run):
    assert plot_training(run) == run / PICTURE
    assert (run / PICTURE).read_bytes().startswith(PNG)
    pixels = imread(run / PICTURE)
    height, width = pixels.shape[:2]
    assert (height > 300, width > 2 * height) == (True, True)
    assert pixels[:, : width // 2, 0].std() > 0.01
    assert pixels[:, width // 2 :, 0].std() > 0.01
    assert set(os.listdir(run)) == {HISTORY, PICTURE}


def test_loss_and_metrics_are_those_of_the_history(run, drawn):
    plot_training(run)
    left, right = drawn[0].axes
    assert list(lines_of(left).values()) == [([1, 2, 3], [10, 5, 10 / 3])]
    assert lines_of(right) == {
        "hr@10": ([1, 2, 3], [0.1, 0.3, 0.2]),
        "ndcg@10": ([1, 2, 3], [0.05, 0.15, 0.1]),
    }


def test_the_best_value_of_each_metric_is_written_where_it_stands(run, drawn):
    plot_training(run)
    _, right = drawn[0].axes
    assert [(text.get_text(), text.xy) for text in right.texts] == [
        ("0.3000", (2, 0.3)),
        ("0.1500", (2, 0.15)),
    ]


def test_epochs_without_a_validation_have_a_loss_only(run, drawn):
    write_lines(run / HISTORY, [epoch(1), epoch(2, ndcg=0.5), epoch(3), epoch(4, ndcg=0.25)])
    plot_training(run)
    left, right = drawn[0].axes
    assert next(iter(lines_of(left).values()))[0] == [1, 2, 3, 4]
    assert lines_of(right) == {"ndcg@10": ([2, 4], [0.5, 0.25])}


def test_the_epochs_of_a_refit_are_not_drawn_over_the_training(run, drawn):
    lines = [epoch(1, ndcg=0.5), epoch(2, ndcg=0.25), epoch(1, "refit")]
    write_lines(run / HISTORY, lines)
    plot_training(run)
    left, _ = drawn[0].axes
    assert next(iter(lines_of(left).values()))[0] == [1, 2]


@pytest.mark.parametrize("lines", [[epoch(1)], [epoch(1, ndcg=0.0)], [epoch(1), epoch(2)]])
def test_short_histories_are_drawn_too(run, lines):
    write_lines(run / HISTORY, lines)
    plot_training(run)
    assert (run / PICTURE).read_bytes().startswith(PNG)


@pytest.mark.parametrize("lines", [[], [{"epoch": 1, "loss": None, "seconds": 0.1}]])
def test_a_run_without_epochs_has_no_picture(run, lines):
    write_lines(run / HISTORY, lines)
    assert plot_training(run) is None
    assert os.listdir(run) == [HISTORY]


@pytest.mark.parametrize("error", [OSError("broken"), KeyboardInterrupt()])
def test_a_picture_is_drawn_whole_or_not_at_all(run, monkeypatch, error):
    def broken(self: Figure, path: Path, **options: Any) -> None:
        Path(path).write_bytes(PNG)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", broken)
        with pytest.raises(type(error)):
            plot_training(run)
    assert os.listdir(run) == [HISTORY]
    plot_training(run)
    whole = (run / PICTURE).read_bytes()
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(type(error)):
        plot_training(run)
    assert (run / PICTURE).read_bytes() == whole
    assert set(os.listdir(run)) == {HISTORY, PICTURE}
