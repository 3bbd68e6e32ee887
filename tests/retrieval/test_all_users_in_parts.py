"""Recommendations for all users in parts: no stop, damage or number of processes changes a row."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from untrained import ITEMS, USERS, history_of_users, open_shop, rows_of_users, saved_run

from recsys.checkpoint import WEIGHTS, write_tensors
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError, Interrupted
from recsys.retrieval import Retriever, all_users
from recsys.retrieval.all_users import recommend_all


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_shop(tmp_path_factory.mktemp("shop"))


class Stopping(Retriever):
    """Fails when it is asked for the batch behind the first `left`."""

    left = 0
    error: BaseException = KeyboardInterrupt()

    def recommend_items(self, *arguments, **options):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return super().recommend_items(*arguments, **options)


def stopped(run: Path, out: Path, parts: int, k: int = 5) -> None:
    """Stop a work of six parts behind some of them."""
    retriever = Stopping.load(run)
    retriever.left = parts
    with pytest.raises(Interrupted, match=f"stopped with {parts} of 6 parts .* goes on"):
        recommend_all(run, retriever, out, k, users_a_part=10)


def test_an_interruption_in_the_first_part_leaves_the_old_file_and_nothing_beside_it(
    shop, tmp_path
):
    out = tmp_path / "out.parquet"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        recommend_all(shop / "sasrec", Stopping.load(shop / "sasrec"), out, 5)
    assert out.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_what_was_stopped_goes_on_with_the_parts_that_are_missing(shop, tmp_path):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    recommend_all(run, Retriever.load(run), tmp_path / "whole", 5)
    out.write_text("old")
    stopped(run, out, 2)
    assert out.read_text() == "old"
    parts = tmp_path / "out.parquet.parts"
    assert sorted(os.listdir(parts)) == ["part-00000.parquet", "part-00001.parquet", "plan.json"]
    rest = Stopping.load(run)
    rest.left = 4
    report = recommend_all(run, rest, out, 5, users_a_part=10)
    assert report is not None
    assert (report["parts"], report["resumed"], report["users"]) == (6, 2, USERS)
    assert report["rows"] == pq.read_metadata(out).num_rows
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole"))
    assert not parts.exists()


def test_a_failure_keeps_the_parts_and_is_not_taken_for_a_stop(shop, tmp_path):
    retriever = Stopping.load(shop / "sasrec")
    retriever.left, retriever.error = 3, RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        recommend_all(shop / "sasrec", retriever, tmp_path / "out", 5, users_a_part=10)
    assert len(os.listdir(tmp_path / "out.parts")) == 3 + 1


def test_a_work_killed_before_the_parts_are_removed_is_joined_again(shop, tmp_path, monkeypatch):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(all_users.Parts, "remove", lambda self: None)
        recommend_all(run, Retriever.load(run), out, 5, users_a_part=10)
    before = out.read_bytes()
    report = recommend_all(run, Stopping.load(run), out, 5, users_a_part=10)
    assert report is not None
    assert report["resumed"] == 6
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 6}, "k was 5, is 6"),
        ({"users_a_part": 20}, "users_a_part was 10, is 20, parts was 6, is 3"),
        ({"seen": "keep"}, "seen was mask, is keep"),
        ({"through": "exact"}, "through was auto, is exact"),
    ],
)
def test_another_plan_is_refused_with_the_difference_and_the_remedy(shop, tmp_path, options, said):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    stopped(run, out, 2)
    before = sorted(os.listdir(tmp_path / "out.parquet.parts"))
    with pytest.raises(InputError, match=r"remove the folder .*out.parquet.parts") as refusal:
        recommend_all(run, Retriever.load(run), out, **{"k": 5, "users_a_part": 10, **options})
    assert said in str(refusal.value)
    assert sorted(os.listdir(tmp_path / "out.parquet.parts")) == before


def test_parts_of_other_weights_are_refused(shop, tmp_path):
    run = saved_run(tmp_path / "run", SequenceDataset.load(shop / "data"), shop / "data")
    out = tmp_path / "out.parquet"
    stopped(run, out, 2)
    model = Retriever.load(run).model
    write_tensors(run / WEIGHTS, {name: -x for name, x in model.state_dict().items()})
    with pytest.raises(InputError, match="weights_sha256 was"):
        recommend_all(run, Retriever.load(run), out, 5, users_a_part=10)


@pytest.mark.parametrize("plan", [None, "", "[]", "{"])
def test_parts_without_a_plan_are_refused(shop, tmp_path, plan):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    stopped(run, out, 1)
    file = tmp_path / "out.parquet.parts" / "plan.json"
    if plan is None:
        file.unlink()
    else:
        file.write_text(plan)
    with pytest.raises(InputError, match=r"plan.json.*remove the folder .*out.parquet.parts"):
        recommend_all(run, Retriever.load(run), out, 5, users_a_part=10)


def flipped(data: bytes) -> bytes:
    """One byte in the middle of the rows is another."""
    place = len(data) // 4
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "harm",
    [lambda data: b"", lambda data: data[: len(data) // 2], flipped],
    ids=["emptied", "cut", "flipped"],
)
def test_a_damaged_part_is_written_again(shop, tmp_path, harm: Callable[[bytes], bytes]):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    recommend_all(run, Retriever.load(run), tmp_path / "whole", 5)
    stopped(run, out, 3)
    part = tmp_path / "out.parquet.parts" / "part-00001.parquet"
    part.write_bytes(harm(part.read_bytes()))
    report = recommend_all(run, Retriever.load(run), out, 5, users_a_part=10)
    assert report is not None
    assert (report["parts"], report["resumed"]) == (6, 2)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole"))


def test_half_a_part_of_a_killed_process_is_no_part(shop, tmp_path):
    run, out = shop / "sasrec", tmp_path / "out.parquet"
    stopped(run, out, 2)
    (tmp_path / "out.parquet.parts" / "part-00002.parquet.part").write_bytes(b"PAR1")
    report = recommend_all(run, Retriever.load(run), out, 5, users_a_part=10)
    assert report is not None
    assert report["resumed"] == 2
    assert sorted(rows_of_users(out)) == sorted(set(history_of_users()) - {30})


@pytest.mark.parametrize("users_a_part", [1, 7, 60, 1000])
def test_the_rows_do_not_depend_on_the_size_of_parts_and_tables(
    shop, tmp_path, monkeypatch, users_a_part
):
    run = shop / "popular"
    recommend_all(run, Retriever.load(run), tmp_path / "whole", 5)
    monkeypatch.setattr(all_users, "ROWS", 15)
    monkeypatch.setattr(all_users, "SCORES", 4 * (ITEMS + 1))
    monkeypatch.setattr(all_users, "FEWEST", 1)
    out = tmp_path / "out.parquet"
    recommend_all(run, Retriever.load(run), out, 5, users_a_part=users_a_part)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole"))
    groups = pq.ParquetFile(out).metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= 15


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
SHARED = """
import json, os, sys, torch
from pathlib import Path
from recsys.retrieval import Retriever, all_users
torch.set_num_threads(1)
run, out = Path(sys.argv[1]), Path(sys.argv[2])
written = all_users.Parts.write
def write(self, number, tables):
    assert int(os.environ["RANK"]) == number % 2
    if len(sys.argv) > 3 and number == int(sys.argv[3]):
        raise ValueError("a part that fails")
    written(self, number, tables)
all_users.Parts.write = write
report = all_users.recommend_all(run, Retriever.load(run), out, 5, users_a_part=10)
if report is not None:
    print(json.dumps(report))
"""


@pytest.mark.slow
def test_two_processes_share_the_parts_and_one_failure_loses_no_part(shop, tmp_path):
    run, out, script = shop / "sasrec", tmp_path / "out.parquet", tmp_path / "shared.py"
    recommend_all(run, Retriever.load(run), tmp_path / "whole", 5, users_a_part=10)
    script.write_text(SHARED)
    words = [*LAUNCH, "2", str(script), str(run), str(out)]
    failed = subprocess.run([*words, "3"], capture_output=True, text=True, timeout=100)
    assert failed.returncode != 0
    assert "a part that fails" in failed.stderr
    assert not out.exists()
    left = set(os.listdir(tmp_path / "out.parquet.parts"))
    assert {"plan.json", "part-00001.parquet"} <= left
    assert not {"part-00003.parquet", "part-00005.parquet"} & left
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["parts"], report["resumed"]) == (6, len(left) - 1)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


@pytest.mark.slow
def test_a_command_under_torchrun_speaks_once(shop, tmp_path):
    out = tmp_path / "out.parquet"
    words = ["recommend", shop / "sasrec", "--all-users", "--out", out, "-k", 5, "--json"]
    done = subprocess.run(
        [*LAUNCH, "2", "-m", "recsys.cli", *map(str, words)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["users"] == USERS
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_processes_that_torchrun_did_not_start_are_refused(shop, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, .* start them with torchrun"):
        recommend_all(shop / "sasrec", Retriever.load(shop / "sasrec"), tmp_path / "out", 5)
    assert not list(tmp_path.iterdir())
