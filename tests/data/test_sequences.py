"""The data set folder: read without copying, and never trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data import sequences
from recsys.data.sequences import FORMAT_VERSION, SequenceDataset, fingerprint, write_sequences
from recsys.errors import InputError

ITEMS = np.array([1, 2, 3, 2, 1], dtype=np.int32)
OFFSETS = np.array([0, 2, 2, 5])
TIMES = np.array([10, 11, 5, 5, 9])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sequences(tmp_path / "sequences.arrow", pa.array(["a", "b", "c"]), ITEMS, OFFSETS, TIMES)
    catalogue = pa.table({"item": ["x", "y", "z"], "count": [2, 2, 1]})
    pq.write_table(catalogue, tmp_path / "items.parquet")
    info = {"format": FORMAT_VERSION, "name": "tiny", "fingerprint": "f", "time_unit": "s"}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    return tmp_path


def test_what_was_written_is_read_back(folder: Path):
    dataset = SequenceDataset.load(folder)
    assert (dataset.items.dtype, dataset.offsets.dtype) == (np.int32, np.int64)
    assert dataset.items.tolist() == ITEMS.tolist()
    assert dataset.offsets.tolist() == OFFSETS.tolist()
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == TIMES.tolist()
    assert dataset.users.to_pylist() == ["a", "b", "c"]
    assert dataset.name == "tiny"
    assert len(dataset) == 3
    assert dataset[2].tolist() == [3, 2, 1]


def test_a_log_without_times_has_none(folder: Path):
    write_sequences(folder / "sequences.arrow", pa.array(["a", "b", "c"]), ITEMS, OFFSETS, None)
    assert SequenceDataset.load(folder).timestamps is None


def test_sequences_are_mapped_and_not_copied(folder: Path):
    items = np.ones(1_000_000, dtype=np.int32)
    offsets = np.array([0, 400_000, 1_000_000])
    users = pa.array(["a", "b"])
    write_sequences(folder / "sequences.arrow", users, items, offsets, items.astype(np.int64))
    before = pa.total_allocated_bytes()
    dataset = SequenceDataset.load(folder)
    assert pa.total_allocated_bytes() - before < 100_000
    assert not dataset.items.flags.owndata
    assert not dataset.items.flags.writeable
    assert dataset.items.sum() == 1_000_000


def test_other_tools_can_open_the_sequences(folder: Path):
    with pa.memory_map(str(folder / "sequences.arrow")) as source:
        frame = pa.ipc.open_file(source).read_all()
    assert frame["items"].to_pylist() == [[1, 2], [], [3, 2, 1]]


USERS = pa.array(["a", "b", "c"])


def rewrite(folder: Path, columns: dict[str, pa.Array]) -> None:
    """Another sequences.arrow, as no version of this project would write it."""
    batch = pa.record_batch(columns)
    path = str(folder / "sequences.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def lists(values: list[list[int | None]], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.large_list(kind))


def broken_json(folder: Path) -> None:
    (folder / "dataset.json").write_text("{")


def json_that_is_no_object(folder: Path) -> None:
    (folder / "dataset.json").write_text("[1]")


def json_without_fingerprint(folder: Path) -> None:
    (folder / "dataset.json").write_text(json.dumps({"format": FORMAT_VERSION}))


def other_format(folder: Path) -> None:
    (folder / "dataset.json").write_text(json.dumps({"format": 99}))


def cut_sequences(folder: Path) -> None:
    data = (folder / "sequences.arrow").read_bytes()
    (folder / "sequences.arrow").write_bytes(data[: len(data) // 2])


def empty_sequences_file(folder: Path) -> None:
    (folder / "sequences.arrow").write_bytes(b"")


def item_above_the_catalogue(folder: Path) -> None:
    items = np.array([1, 2, 3, 9, 1], dtype=np.int32)
    write_sequences(folder / "sequences.arrow", USERS, items, OFFSETS, TIMES)


def item_zero(folder: Path) -> None:
    items = np.array([1, 2, 3, 0, 1], dtype=np.int32)
    write_sequences(folder / "sequences.arrow", USERS, items, OFFSETS, TIMES)


def fewer_times_than_items(folder: Path) -> None:
    rewrite(
        folder,
        {
            "user": USERS,
            "items": lists([[1, 2], [], [3, 2, 1]], pa.int32()),
            "timestamps": lists([[1, 2], [], [3, 2]], pa.int64()),
        },
    )


def times_of_other_lengths(folder: Path) -> None:
    rewrite(
        folder,
        {
            "user": USERS,
            "items": lists([[1, 2], [], [3, 2, 1]], pa.int32()),
            "timestamps": lists([[1], [2], [3, 4, 5]], pa.int64()),
        },
    )


def items_of_another_width(folder: Path) -> None:
    rewrite(folder, {"user": USERS, "items": lists([[1, 2], [], [3, 2, 1]], pa.int64())})


def items_in_short_lists(folder: Path) -> None:
    items = pa.array([[1, 2], [], [3, 2, 1]], pa.list_(pa.int32()))
    rewrite(folder, {"user": USERS, "items": items})


def an_item_that_is_null(folder: Path) -> None:
    rewrite(folder, {"user": USERS, "items": lists([[1, 2], [], [3, None, 1]], pa.int32())})


def no_item_column(folder: Path) -> None:
    rewrite(folder, {"user": USERS})


def no_user_column(folder: Path) -> None:
    rewrite(folder, {"items": lists([[1, 2], [], [3, 2, 1]], pa.int32())})


def no_rows(folder: Path) -> None:
    rewrite(folder, {"user": USERS[:0], "items": lists([], pa.int32())})


def no_items_anywhere(folder: Path) -> None:
    rewrite(folder, {"user": USERS, "items": lists([[], [], []], pa.int32())})


def no_sequences(folder: Path) -> None:
    (folder / "sequences.arrow").unlink()


def no_catalogue(folder: Path) -> None:
    (folder / "items.parquet").unlink()


def damaged_catalogue(folder: Path) -> None:
    (folder / "items.parquet").write_bytes(b"PAR1 not really")


def catalogue_without_ids(folder: Path) -> None:
    pq.write_table(pa.table({"count": [2, 2, 1]}), folder / "items.parquet")


def json_of_endless_depth(folder: Path) -> None:
    (folder / "dataset.json").write_text("[" * 100_000)


def name_that_is_no_text(folder: Path) -> None:
    named(folder, 5)


NO_TEXT = pa.array([b"\xff", b"b", b"c"]).view(pa.string())


def a_user_that_is_no_text(folder: Path) -> None:
    rewrite(folder, {"user": NO_TEXT, "items": lists([[1, 2], [], [3, 2, 1]], pa.int32())})


def a_user_beyond_the_texts(folder: Path) -> None:
    """The file says that the text of the second user begins far behind all texts."""
    file = folder / "sequences.arrow"
    data = file.read_bytes()
    sound, harmed = (np.array([0, 1, n, n + 1], dtype=np.int32).tobytes() for n in (2, 2**30))
    start = data.rindex(sound, 0, data.index(b"abc"))  # the places lie before the texts
    file.write_bytes(data[:start] + harmed + data[start + len(sound) :])


def an_item_that_is_no_text(folder: Path) -> None:
    pq.write_table(pa.table({"item": NO_TEXT, "count": [2, 2, 1]}), folder / "items.parquet")


def times_that_fall_within_a_user(folder: Path) -> None:
    times = np.array([10, 11, 5, 9, 8])
    write_sequences(folder / "sequences.arrow", USERS, ITEMS, OFFSETS, times)


def nothing_at_all(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("user,item")


@pytest.mark.parametrize(
    "harm",
    [
        broken_json,
        json_that_is_no_object,
        json_without_fingerprint,
        other_format,
        cut_sequences,
        empty_sequences_file,
        item_above_the_catalogue,
        item_zero,
        fewer_times_than_items,
        times_of_other_lengths,
        items_of_another_width,
        items_in_short_lists,
        an_item_that_is_null,
        no_item_column,
        no_user_column,
        no_rows,
        no_items_anywhere,
        no_sequences,
        no_catalogue,
        damaged_catalogue,
        catalogue_without_ids,
        json_of_endless_depth,
        name_that_is_no_text,
        a_user_that_is_no_text,
        a_user_beyond_the_texts,
        an_item_that_is_no_text,
        times_that_fall_within_a_user,
        nothing_at_all,
        a_file_instead,
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder: Path, harm: Callable[[Path], None]):
    harm(folder)
    with pytest.raises(InputError, match=folder.name) as refusal:
        SequenceDataset.load(folder)
    assert str(refusal.value).count("\n") <= 1


def named(folder: Path, name: object) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "name": name}))


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "a\\b", "a\0b", ".", ".."])
def test_a_name_that_leads_elsewhere_is_refused(folder: Path, name: str):
    named(folder, name)
    with pytest.raises(InputError, match=r"dataset\.json is damaged: its name is .*"):
        SequenceDataset.load(folder)


@pytest.mark.parametrize("name", ["amazon2018:Gift_Cards", "one+two", "..b", "my log.v2", "café"])
def test_a_name_of_a_file_is_read(folder: Path, name: str):
    named(folder, name)
    assert SequenceDataset.load(folder).name == name


def test_times_fall_from_one_user_to_the_next_alone():
    offsets = np.array([0, 0, 3, 3, 5, 6, 6])
    sound = np.array([7, 7, 9, 1, 2, 0])
    items = np.ones(6, dtype=np.int32)
    SequenceDataset.from_arrays(items, offsets, sound).check("here")
    for place in (1, 2, 4):
        fallen = sound.copy()
        fallen[place] = sound[place - 1] - 1
        with pytest.raises(InputError, match="here is damaged: its times fall within a sequence"):
            SequenceDataset.from_arrays(items, offsets, fallen).check("here")


def test_times_are_looked_through_block_by_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sequences, "BLOCK", 3)
    items, offsets = np.ones(10, dtype=np.int32), np.array([0, 6, 10])
    sound = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    SequenceDataset.from_arrays(items, offsets, sound).check("here")
    for place in [*range(1, 6), *range(7, 10)]:
        fallen = sound.copy()
        fallen[place] = -1
        with pytest.raises(InputError, match="its times fall"):
            SequenceDataset.from_arrays(items, offsets, fallen).check("here")


@pytest.mark.parametrize("offsets", [[0, 2, 2, 4], [1, 2, 2, 5], [0, 4, 2, 5], [0]])
def test_offsets_that_do_not_cover_the_items_are_refused(offsets: list[int]):
    dataset = SequenceDataset.from_arrays(ITEMS, np.array(offsets), TIMES)
    with pytest.raises(InputError, match=r"here .*(do not cover|no interactions)"):
        dataset.check("here")


def test_the_fingerprint_changes_with_items_order_times_and_ids():
    def digest(items=ITEMS, offsets=OFFSETS, times=TIMES, raw=("x", "y", "z"), test=0) -> str:
        return fingerprint(np.asarray(items, dtype=np.int32), offsets, times, pa.array(raw), test)

    found = [
        digest(),
        digest([2, 1, 3, 2, 1]),
        digest(offsets=np.array([0, 1, 2, 5])),
        digest(times=TIMES + 1),
        digest(times=None),
        digest(raw=("y", "x", "z")),
        digest(test=1),
    ]
    assert len(set(found)) == len(found)
    assert digest() == found[0]


def test_the_fingerprint_does_not_depend_on_how_the_arrays_were_made(folder: Path):
    def digest(items: np.ndarray, offsets: np.ndarray, times: np.ndarray) -> str:
        return SequenceDataset.from_arrays(items, offsets, times).fingerprint

    base = digest(ITEMS, OFFSETS, TIMES)
    assert digest(ITEMS.astype(np.int64), OFFSETS.astype(np.int32), TIMES.astype(np.int32)) == base
    assert digest(np.repeat(ITEMS, 2)[::2], OFFSETS.copy(), TIMES[::-1].copy()[::-1]) == base
    read = SequenceDataset.load(folder)
    raw = pa.chunked_array([pa.array([1, 2]), pa.array([3])])
    assert fingerprint(read.items, read.offsets, read.timestamps, raw) == base


def test_numbers_alone_make_a_data_set():
    dataset = SequenceDataset.from_arrays(ITEMS, OFFSETS, num_items=5)
    assert dataset.num_items == 5
    assert dataset.catalogue["item"].to_pylist() == [1, 2, 3, 4, 5]
    assert dataset.catalogue["count"].to_pylist() == [2, 2, 1, 0, 0]
    assert dataset.timestamps is None
