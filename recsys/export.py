"""A trained model as a file that needs nothing of this project: the query encoder as ONNX or as a
program of torch.export, and the item vectors beside it.

    model.onnx or model.pt2     items int64 [B, T], lengths int64 [B] -> query float32 [B, D]
    model.int8.onnx             the same with its linear layers in int8, where asked for
    item_vectors.safetensors    item_vectors float32 [V+1, D]; row 0 is padding
    items.parquet               row i-1: what is known of item i, its raw id first
    export.json                 inputs, outputs, weights, versions, and how far the answers differ

Models that see time take times int64 [B, T] too. A score is query . item vector. What is written is
read again and compared with the model itself; a folder appears whole or not at all.
"""

import importlib.metadata
import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from recsys.batch import PAD, Batch
from recsys.checkpoint import (
    ITEMS,
    MODEL_FACTS,
    WEIGHTS,
    load_model,
    read_config,
    read_items,
    sha256_of,
    write_json,
    write_tensors,
)
from recsys.data.sequences import SequenceDataset
from recsys.errors import InputError, WorkError
from recsys.eval.evaluator import evaluate
from recsys.eval.report import targets_of_run
from recsys.layers.plain import in_plain_operations, sees_time
from recsys.models.base import ReadsTexts, Recommender, Scorer, SequenceModel
from recsys.whole import folder_written_whole

Format = Literal["onnx", "torch"]
FACTS, VECTORS = "export.json", "item_vectors.safetensors"
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
INT8 = "model.int8.onnx"
PACKAGES = {
    "onnx": ("recsys", "torch", "onnx", "onnxruntime", "onnxscript"),
    "torch": ("recsys", "torch"),
}
"""What writes a format."""
TOLERANCE = 1e-4
"""Largest difference of a number in a query from that of the model itself."""
KS = (10,)
"""Cut-offs at which the loss by int8 is measured."""

Query = Callable[[Batch], Tensor]
"""batch -> [B, D] float32."""


class QueryEncoder(nn.Module):
    """What is exported: tensors in, the query out."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, lengths: Tensor, times: Tensor | None = None) -> Tensor:
        """[B, D] of histories int64 [B, T] of lengths int64 [B] and times int64 [B, T]."""
        query_BD: Tensor = self.model.query(Batch(items, lengths, times))
        return query_BD.float()


class ByQuery(Recommender):
    """An exported encoder and the item vectors, to be evaluated as any model is."""

    def __init__(self, query: Query, item_vectors: Tensor, max_len: int):
        super().__init__()
        self.query = query
        self.vectors = item_vectors
        self.max_len = max_len

    def scorer(self) -> Scorer:
        """Scores are query . item."""
        return lambda batch: self.query(batch) @ self.vectors.T


@torch.no_grad()
def export_run(
    run: Path,
    format: Format,
    out: Path | None = None,
    int8: bool = False,
    *,
    dataset: SequenceDataset | None = None,
) -> dict[str, Any]:
    """Write the query encoder and the item vectors of a run to `out` (RUN/export-FORMAT where not
    given), in the place of an earlier export; and what export.json holds.

    `int8` measures its loss on the test split; `dataset` stands in where the prepared folder has
    moved. InputError for a model without a graph, a missing package or an `out` that holds
    something else; WorkError where the export does not answer as the model.
    """
    _check_wishes(format, int8)
    out = run / f"export-{format}" if out is None else out
    _check_export(out)
    model, num_items = _model_of(run), read_items(run).num_rows
    targets = targets_of_run(run, "test", dataset) if int8 else None
    timed, vectors_VD = sees_time(model), model.item_vectors().float()
    with folder_written_whole(out) as aside:
        program, file = _program(model, timed), aside / FILES[format]
        query = (
            _write_onnx(program, file, timed) if format == "onnx" else _write_torch(program, file)
        )
        facts = {
            "format": format,
            "file": file.name,
            "model": read_config(run, MODEL_FACTS)["model"]["name"],
            "items": num_items,
            "max_len": model.max_len,
            "inputs": dict.fromkeys(_names(timed), "int64 [B, T]") | {"lengths": "int64 [B]"},
            "outputs": {"query": f"float32 [B, {vectors_VD.shape[1]}]"},
            "largest_difference": _largest_difference(model, query, timed, num_items),
            "weights_sha256": sha256_of(run / WEIGHTS),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES[format]},
        }
        if not facts["largest_difference"] <= TOLERANCE:  # which nan is not either
            raise WorkError(
                f"the {format} export of {run} differs from its model by"
                f" {facts['largest_difference']:.2g}, more than {TOLERANCE:g}; nothing was written"
            )
        if targets is not None:
            _write_int8(file, aside / INT8)
            small = _onnx_query(aside / INT8, timed)
            facts["test"] = {}
            facts["int8"] = {
                "file": INT8,
                "bytes": (aside / INT8).stat().st_size,
                "float_bytes": file.stat().st_size,
                "largest_difference": _largest_difference(model, small, timed, num_items),
            }
            for name, one in (("float", query), ("int8", small)):
                asked = ByQuery(one, vectors_VD, model.max_len)
                facts["test"][name] = evaluate(asked, *targets).metrics(KS)
        write_tensors(aside / VECTORS, {"item_vectors": vectors_VD})
        shutil.copy(run / ITEMS, aside / ITEMS)
        write_json(aside / FACTS, facts)
    return facts


def _check_wishes(format: str, int8: bool) -> None:
    """InputError for an unknown format, int8 where there is none, or a package that is missing."""
    if format not in get_args(Format):
        raise InputError(f"--format takes onnx or torch, got {format!r}")
    if int8 and format != "onnx":
        raise InputError("--int8 is for --format onnx only: torch.export keeps float32")
    for package in PACKAGES[format]:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--format onnx needs the package {package}: pip install 'recsys[export]'"
            )


def _model_of(run: Path) -> SequenceModel:
    name = read_config(run, MODEL_FACTS)["model"]["name"]
    model = load_model(run)
    if not isinstance(model, SequenceModel):
        raise InputError(
            f"{run} holds {name}, which counts: it has no encoder of queries that could be exported"
        )
    if isinstance(model, ReadsTexts):
        raise InputError(
            f"{run} holds {name}, which reads the texts of a history: how long they are depends on"
            " the items, and a graph cannot; it is served by recsys itself"
        )
    return model


def _names(timed: bool) -> list[str]:
    return ["items", "lengths", "times"] if timed else ["items", "lengths"]


def _program(model: SequenceModel, timed: bool) -> torch.export.ExportedProgram:
    """The graph of the query encoder, free in B and in T up to max_len."""
    from torch._dynamo.exc import UserError  # imports torch's compiler

    encoder = QueryEncoder(in_plain_operations(model, model.max_len)).eval()
    # Sizes of 1 would be taken for what is always so.
    steps = min(3, model.max_len)
    lengths_B = torch.tensor([steps, 1])
    items_BT = torch.ones(2, steps, dtype=torch.int64)
    rows = torch.export.Dim("B", min=1)
    time = {1: torch.export.Dim("T", min=1, max=model.max_len)} if steps > 1 else {}
    shapes: dict[str, Any] = {"items": {0: rows, **time}, "lengths": {0: rows}}
    inputs = {"items": items_BT, "lengths": lengths_B}
    if timed:
        inputs["times"], shapes["times"] = torch.zeros_like(items_BT), shapes["items"]
    with _quiet():
        try:
            program = torch.export.export(encoder, (), inputs, dynamic_shapes=shapes)
        except UserError as error:
            raise InputError(
                f"{type(model).__name__} is no graph for every batch and length: a layer that runs"
                " a kernel needs a twin in recsys/layers/plain.py, and no step may depend on values"
                f" ({str(error).partition('!')[0]})"
            ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, which no reader needs
    return program


def _write_torch(program: torch.export.ExportedProgram, file: Path) -> Query:
    """Write a program; and what the file answers."""
    with _quiet():
        torch.export.save(program, file)
        read = torch.export.load(file).module()

    def query(batch: Batch) -> Tensor:
        times = {} if batch.timestamps_BT is None else {"times": batch.timestamps_BT}
        query_BD: Tensor = read(items=batch.items_BT, lengths=batch.lengths_B, **times)
        return query_BD

    return query


def _write_onnx(program: torch.export.ExportedProgram, file: Path, timed: bool) -> Query:
    """Write a program as ONNX; and what the file answers in ONNX Runtime."""
    with _quiet():
        written = torch.onnx.export(
            program, (), input_names=_names(timed), output_names=["query"], verbose=False
        )
        assert written is not None
        graphs: list[Any] = [written.model.graph, *written.model.functions.values()]
        for graph in graphs:
            for node in graph.all_nodes():
                node.metadata_props.clear()
        written.save(file)
    return _onnx_query(file, timed)


def _onnx_query(file: Path, timed: bool) -> Query:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def query(batch: Batch) -> Tensor:
        inputs = {"items": batch.items_BT.numpy(), "lengths": batch.lengths_B.numpy()}
        if timed:
            assert batch.timestamps_BT is not None
            inputs["times"] = batch.timestamps_BT.numpy()
        return torch.from_numpy(session.run(["query"], inputs)[0])

    return query


def _write_int8(file: Path, out: Path) -> None:
    """A copy of an ONNX file whose products with weights are in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            file,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            # Of eight bits a product overflows on CPUs without VNNI.
            reduce_range=True,
            extra_options={"EnableSubgraph": True},
        )


def _largest_difference(model: SequenceModel, query: Query, timed: bool, num_items: int) -> float:
    """Of any number in the queries of random histories, of many lengths and in batches of many
    sizes."""
    random = torch.Generator().manual_seed(0)
    differences = []
    for rows, steps in (
        (1, 1),
        (1, model.max_len),
        (3, 1 + model.max_len // 2),
        (8, model.max_len),
    ):
        batch = _random_batch(rows, steps, timed, num_items, random)
        differences.append((query(batch) - model.query(batch).float()).abs().max())
    return float(torch.stack(differences).max())


def _random_batch(
    rows: int, steps: int, timed: bool, num_items: int, random: torch.Generator
) -> Batch:
    """Histories of 1 to `steps` items, one of them of all; gaps from 0 to years of seconds."""
    lengths_B = torch.randint(1, steps + 1, (rows,), generator=random)
    lengths_B[0] = steps
    padding_BT = torch.arange(steps) >= lengths_B[:, None]
    items_BT = torch.randint(1, num_items + 1, (rows, steps), generator=random)
    gaps_BT = torch.exp(18 * torch.rand(rows, steps, generator=random)).long() - 1
    times_BT = gaps_BT.cumsum(dim=1).masked_fill(padding_BT, 0) if timed else None
    return Batch(items_BT.masked_fill(padding_BT, PAD), lengths_B, times_BT)


def _check_export(folder: Path) -> None:
    """InputError where `folder` holds something that is no export: it would be replaced whole."""
    if not folder.exists():
        return
    holds = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if holds and not _are_facts(folder / FACTS):
        raise InputError(f"{folder} exists and is not an export: choose another --out")
    if others := sorted(holds - {FACTS, VECTORS, ITEMS, INT8, *FILES.values()}):
        raise InputError(
            f"{folder} holds more than an export, {others[0]!r}, which would be lost: move it, or"
            " choose another --out"
        )


def _are_facts(path: Path) -> bool:
    """Whether a file is what an export says of itself."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and {"format", "weights_sha256"} <= facts.keys()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say to their own developers: what comes out is measured anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
