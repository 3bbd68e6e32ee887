"""What every model promises. A new file in recsys/models is found and tested as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from toy_models import (
    CAUSAL,
    COUNTED,
    HISTORIES,
    LEARNED,
    NUM_ITEMS,
    SHORT,
    STEPWISE,
    batch_of,
    stepped,
    tiny_config,
    toy_features,
)
from worlds import cycle_world, world

from recsys.batch import Batch
from recsys.checkpoint import CONFIG, WEIGHTS, load_model, write_json, write_tensors
from recsys.config import to_dict
from recsys.data.loader import TrainLoader, query_batches
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Queries, Split, SplitConfig, split
from recsys.eval.evaluator import evaluate
from recsys.eval.report import fit_counting
from recsys.models.base import (
    CountingModel,
    Pairs,
    Recommender,
    SequenceModel,
    model_class,
    model_names,
    new_model,
)
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.state import fingerprint, state_from_bytes, state_to_bytes
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item
from recsys.training.optimizers import adamw
from recsys.training.trainer import Trainer, TrainerConfig
from recsys.training.watch import FolderWatcher, PlainReporter, StopRequest

NO_ORDER = ["popular"]
"""Models that cannot know what follows what."""

COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)


def untrained(name: str) -> Any:
    torch.manual_seed(0)
    model = new_model(name, tiny_config(name), NUM_ITEMS, toy_features(name)).eval()
    if isinstance(model, SequenceModel):
        model.begin(print)
        model.start_epoch(0)
    return model


def counted(name: str) -> tuple[CountingModel, SequenceDataset, Split]:
    dataset = cycle_world(NUM_ITEMS)
    parts = split(dataset, SplitConfig())
    model = untrained(name)
    fit_counting(model, dataset, parts.train)
    return model, dataset, parts


def ready(name: str) -> Recommender:
    return counted(name)[0] if name in COUNTED else untrained(name)


@torch.no_grad()
def training_pairs(model: SequenceModel, histories: list[list[int]], padding: int = 0) -> Pairs:
    torch.manual_seed(0)
    return model.training_pairs(batch_of(histories, padding))


def with_another_item(histories: list[list[int]], row: int, place: int) -> list[list[int]]:
    changed = [list(history) for history in histories]
    changed[row][place] = changed[row][place] % NUM_ITEMS + 1
    return changed


def saved_and_loaded(name: str, model: Recommender, run: Path) -> Recommender:
    described = {"name": name, **to_dict(tiny_config(name))}
    write_json(run / CONFIG, {"model": described, "dataset": {"items": NUM_ITEMS}})
    write_tensors(run / WEIGHTS, model.state_dict())
    return load_model(run)


def accuracy(model: Recommender, dataset: SequenceDataset, parts: Split) -> float:
    return evaluate(model, dataset, parts.test, seen="keep").metrics([1])["hr@1"]


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_positions_items_and_histories_have_vectors_of_one_width(name):
    model, batch = untrained(name), batch_of(SHORT)
    width = model.item_vectors().shape[1]
    assert model.encode(batch).shape == (3, 3, width)
    assert model.query(batch).shape == (3, width)
    assert model.item_vectors().shape == (NUM_ITEMS + 1, width)
    pairs = training_pairs(model, HISTORIES)
    assert pairs.query_ND.shape == (len(pairs.target_N), width)
    assert pairs.weight_N.shape == pairs.target_N.shape


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_padding_does_not_change_the_query(name):
    model = untrained(name)
    padded = model.query(batch_of(SHORT, padding=3))
    torch.testing.assert_close(padded, model.query(batch_of(SHORT)))
    alone = torch.cat([model.query(batch_of([history])) for history in SHORT])
    torch.testing.assert_close(padded, alone)


@pytest.mark.parametrize("name", LEARNED)
def test_padding_does_not_change_the_training_pairs(name):
    model, histories = untrained(name), [[3, 1, 4, 1], [6, 5]]
    plain, padded = (training_pairs(model, histories, padding) for padding in (0, 3))
    assert padded.target_N.tolist() == plain.target_N.tolist()
    torch.testing.assert_close(padded.query_ND, plain.query_ND)


@pytest.mark.parametrize("name", LEARNED)
def test_no_query_sees_its_own_target(name):
    model = untrained(name)
    before = training_pairs(model, HISTORIES)
    tried_N = torch.zeros(len(before.target_N), dtype=torch.bool)
    for row, history in enumerate(HISTORIES):
        for place in range(1, len(history)):
            after = training_pairs(model, with_another_item(HISTORIES, row, place))
            asked_N = after.target_N != before.target_N
            torch.testing.assert_close(after.query_ND[asked_N], before.query_ND[asked_N])
            tried_N |= asked_N
    assert tried_N.all()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_no_position_sees_what_comes_behind_it(name):
    model, history = untrained(name), HISTORIES[0][:-1]
    before = model.encode(batch_of([history]))
    for place in range(1, len(history)):
        behind = [item % NUM_ITEMS + 1 for item in history[place:]]
        after = model.encode(batch_of([history[:place] + behind]))
        torch.testing.assert_close(after[:, :place], before[:, :place])


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_a_query_sees_its_newest_item(name):
    model = untrained(name)
    before = model.query(batch_of([[3, 1, 4], [6]]))
    after = model.query(batch_of([[3, 1, 5], [7]]))
    assert ((after - before).abs().amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_every_item_with_a_history_is_asked_for_once_by_the_query_of_that_history(name):
    model = untrained(name)
    pairs = training_pairs(model, HISTORIES)
    before = [history[:place] for history in HISTORIES for place in range(1, len(history))]
    assert pairs.target_N.tolist() == [item for history in HISTORIES for item in history[1:]]
    torch.testing.assert_close(pairs.query_ND, model.query(batch_of(before)))
    assert (pairs.weight_N > 0).all()


@pytest.mark.parametrize("name", LEARNED)
def test_one_optimizer_step_changes_every_trained_parameter(name):
    model = untrained(name).train()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    loss, _ = next_item(Softmax(), COUNTS)(model, batch_of(HISTORIES))
    loss.backward()
    adamw(model, lr=0.01, weight_decay=0.0).step()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert [key for key, p in trained.items() if torch.equal(p, before[key])] == []


@pytest.mark.parametrize("name", LEARNED)
def test_a_model_trains_in_bfloat16_near_where_it_does_in_float32(name):
    losses = []
    for everywhere in (False, True):
        model = untrained(name)
        objective = next_item(Softmax(), COUNTS, torch.bfloat16, everywhere)
        torch.manual_seed(0)  # BERT4Rec draws what it hides
        loss, _ = objective(model, batch_of(HISTORIES))
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", LEARNED)
def test_one_step_of_softmax_moves_the_vector_of_every_item_seen_or_not(name):
    model = untrained(name).train()
    before = model.item_vectors().detach().clone()
    loss, _ = next_item(Softmax(), COUNTS)(model, batch_of(HISTORIES))
    loss.backward()
    adamw(model, lr=0.01, weight_decay=0.0).step()
    model.renew()
    assert (model.item_vectors() != before)[1:].any(dim=1).all()


@pytest.mark.parametrize("name", LEARNED)
def test_a_model_learns_what_follows_what(name, tmp_path: Path):
    dataset = cycle_world(NUM_ITEMS)
    parts = split(dataset, SplitConfig())
    model = untrained(name)
    assert accuracy(model, dataset, parts) < 0.5
    loader = TrainLoader(dataset, parts.train, 16, model.max_len + 1, seed=0)
    # A history asks a causal model at every position, and the others once.
    config = (
        TrainerConfig(epochs=10, lr=0.02) if name in CAUSAL else TrainerConfig(epochs=25, lr=0.005)
    )
    trainer = Trainer(model, next_item(Softmax(), COUNTS), config, loader, Accelerator(cpu=True))
    silent = FolderWatcher(tmp_path, "train", [], PlainReporter(), StopRequest(), False, False)
    trainer.fit(None, silent)
    assert accuracy(model, dataset, parts) > 0.98


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_a_loaded_model_gives_the_same_queries_to_the_bit(name, tmp_path: Path):
    model, batch = untrained(name), batch_of(SHORT)
    loaded = saved_and_loaded(name, model, tmp_path)
    assert torch.equal(loaded.query(batch), model.query(batch))
    assert torch.equal(loaded.item_vectors(), model.item_vectors())


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_long_histories_are_cut_to_their_last_items(name):
    model = untrained(name)
    long = [*range(1, NUM_ITEMS + 1)] * 2
    last = long[-model.max_len :]
    dataset = world([[*long, 3]])
    queries = Queries(np.array([0]), np.array([0]), np.array([len(long)]))
    ((_, batch),) = query_batches(dataset, queries, 8, model.max_len)
    assert torch.equal(model.query(batch), model.query(batch_of([last])))
    retriever = Retriever(Snapshot(model, pa.table({"item": range(1, NUM_ITEMS + 1)}), None, "cpu"))
    found = retriever.recommend(long, NUM_ITEMS, exclude_seen=False)
    assert found == retriever.recommend(last, NUM_ITEMS, exclude_seen=False)
    assert len(found.items) == NUM_ITEMS


def is_recurrent(name: str) -> bool:
    """Whether a state has the same size whatever the longest history."""
    sizes = set()
    for max_len in (6, 12):
        config = dataclasses.replace(tiny_config(name), max_len=max_len)
        state = model_class(name)(config, NUM_ITEMS).init_state(1)
        sizes.add(len(state_to_bytes(state, "")))
    return len(sizes) == 1


def long_history(model: Any, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two histories of factor * max_len items, and their times."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, factor * model.max_len)
    items_BT = torch.randint(1, NUM_ITEMS + 1, shape, generator=generator)
    gaps_BT = torch.randint(0, 100_000, shape, generator=generator)
    return items_BT, gaps_BT.cumsum(1)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("name", STEPWISE)
@torch.no_grad()
def test_going_on_item_by_item_equals_encoding_the_whole_history(name, timed):
    model = untrained(name)
    items_BT, times_BT = long_history(model, 10 if is_recurrent(name) else 1)
    times = times_BT if timed else None
    encoded = model.encode(Batch(items_BT, torch.full((2,), items_BT.shape[1]), times))
    torch.testing.assert_close(stepped(model, items_BT, times), encoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in STEPWISE if not is_recurrent(name)])
@torch.no_grad()
def test_beyond_its_longest_history_a_step_knows_the_last_items_alone(name):
    model = untrained(name)
    items_BT, times_BT = long_history(model, 2)
    queries = stepped(model, items_BT, times_BT)
    for end in range(model.max_len + 1, items_BT.shape[1] + 1):
        last = slice(end - model.max_len, end)
        batch = Batch(items_BT[:, last], torch.full((2,), model.max_len), times_BT[:, last])
        torch.testing.assert_close(queries[:, end - 1], model.query(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", STEPWISE)
@torch.no_grad()
def test_a_state_goes_through_bytes_and_a_step_leaves_it_as_it_was(name):
    model = untrained(name)
    _, state = model.step(torch.tensor([3, 1]), model.init_state(2))
    mark = fingerprint(model)
    kept = state_to_bytes(state, mark)
    query_BD, _ = model.step(torch.tensor([4, 9]), state)
    assert state_to_bytes(state, mark) == kept
    again_BD, _ = model.step(torch.tensor([4, 9]), state_from_bytes(kept, model, mark))
    assert torch.equal(again_BD, query_BD)


@pytest.mark.parametrize("name", model_names())
@torch.no_grad()
def test_scores_are_a_fresh_row_of_float32_for_each_history(name):
    scorer = ready(name).scorer()
    scores_BV = scorer(batch_of(SHORT))
    kept = scores_BV.clone()
    assert scores_BV.shape == (3, NUM_ITEMS + 1)
    assert scores_BV.dtype == torch.float32
    scores_BV.fill_(-torch.inf)
    assert torch.equal(scorer(batch_of(SHORT)), kept)


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_a_score_is_the_product_of_query_and_item_vector(name):
    model, batch = untrained(name), batch_of(SHORT)
    expected_BV = model.query(batch) @ model.item_vectors().T
    torch.testing.assert_close(model.scorer()(batch)[:, 1:], expected_BV[:, 1:])


@pytest.mark.parametrize("name", COUNTED)
def test_padding_does_not_change_counted_scores(name):
    scorer = counted(name)[0].scorer()
    padded = scorer(batch_of(SHORT, padding=3))
    assert torch.equal(padded, scorer(batch_of(SHORT)))
    assert torch.equal(padded, torch.cat([scorer(batch_of([history])) for history in SHORT]))


@pytest.mark.parametrize("name", COUNTED)
def test_a_loaded_counting_model_gives_the_same_scores_to_the_bit(name, tmp_path: Path):
    model, _, _ = counted(name)
    loaded = saved_and_loaded(name, model, tmp_path)
    scores_BV = model.scorer()(batch_of(SHORT))
    assert scores_BV.any()
    assert torch.equal(loaded.scorer()(batch_of(SHORT)), scores_BV)


@pytest.mark.parametrize("name", COUNTED)
def test_counting_again_gives_the_same_and_adds_nothing(name):
    model, dataset, parts = counted(name)
    first = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fit_counting(model, dataset, parts.train)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, first[key])


@pytest.mark.parametrize("name", [name for name in COUNTED if name not in NO_ORDER])
def test_a_counting_model_learns_what_follows_what(name):
    model, dataset, parts = counted(name)
    assert accuracy(model, dataset, parts) > 0.98
