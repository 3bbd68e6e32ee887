"""Pictures of a run."""

from pathlib import Path

from recsys.checkpoint import read_history
from recsys.whole import written_whole


def plot_training(run: Path) -> Path | None:
    """Draw loss and validation metrics over epochs into RUN/training.png; None without epochs."""
    records = [record for record in read_history(run) if record.get("stage") == "train"]
    if not records:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    # Margins and titles in fixed places: looking for places draws all twice, and takes longer than
    # a small training.
    figure.subplots_adjust(left=0.08, right=0.985, bottom=0.14, top=0.91, wspace=0.17)
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    left.plot(epochs, [record["loss"] for record in records], color="#4c566a", marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    left.set_title("Loss", y=1)
    validated = [record for record in records if "valid" in record]
    if validated:
        at = [record["epoch"] for record in validated]
        colours = ("#2a6f97", "#c1666b", "#7a9e7e", "#d4a373")
        for name, colour in zip(validated[0]["valid"], colours * 3, strict=False):
            values = [record["valid"][name] for record in validated]
            right.plot(at, values, color=colour, marker=".", label=name)
            best = max(range(len(values)), key=values.__getitem__)
            right.annotate(
                f"{values[best]:.4f}",
                (at[best], values[best]),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
        right.set_ylim(bottom=0)
        right.margins(y=0.12)
        right.legend(frameon=False, fontsize=8)
    right.set(xlabel="epoch")
    right.set_title("Validation, full ranking", y=1)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    with written_whole(run / "training.png") as aside:
        figure.savefig(aside, dpi=130, format="png")
    return run / "training.png"
