"""Plans the kind, shards, memory and cost of an index: pure functions of a few numbers (docs/index.md#planning).

Unit costs are measured by ``python -m tests.bench.costs`` and stored in ``costs.json`` beside this file; none is
assumed. The initial nprobe or ef_search for a recall is only an estimate: the build measures recall and raises it.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from dataclasses import dataclass

from mrcg.errors import SettingsError
from mrcg.frozen import Frozen
from mrcg.index.distances import BLOCK
from mrcg.index.faiss_backend import OPQ_VECTORS, SUPER_KMEANS_DIM, TRAIN_PER_LIST
from mrcg.index.layout import KindName, Shape

#: Share of a node's memory that an index may use; the rest is for the system and the page cache of the exact vectors.
MEMORY_SHARE = 0.8
#: A gallery that fits on one node and is scanned in at most this many seconds of one core needs no approximate index.
FLAT_SECONDS = 0.005
#: Target size of a shard's index in memory: a shard is the unit of building, loading and loss.
SHARD_BYTES = 4 * 2**30
#: FAISS recommends at least this many training vectors per coarse cell.
VECTORS_PER_LIST = 39
#: FAISS does not precompute PQ tables larger than this.
MAX_PQ_TABLE_BYTES = 2**31
#: Memory of FAISS's inverted lists per byte in them: their capacity doubles as they grow.
LIST_SLACK = 1.3
#: Bytes of a row in the list that a part is built from: as read, and as used.
_ROW_LIST_BYTES = 16
#: Distances that FAISS holds while it assigns many vectors to cells, in bytes.
_ASSIGN_BYTES = 4 * 4096 * 1024
#: Distances that an exact scan holds, in bytes: of 256 queries to 8,192 vectors.
_SCAN_BYTES = 4 * 256 * 8192
LINKS = 32
KINDS: tuple[KindName, ...] = ("flat", "hnsw", "ivf_flat", "ivf_sq", "opq_ivf_pq")


class Costs(Frozen):
    """Unit costs of a machine: seconds of one core, and bytes of a process and of a row."""

    machine: str
    faiss: str
    flat_scan: float  # one query, one vector, one dimension, in batches of 64
    coarse: float  # one vector, one cell, one dimension
    list_scan: dict[str, float]  # one vector of an IVF list, one dimension, by kind; one byte of a PQ code
    hnsw_add: float  # one vector, one dimension, among 100,000
    hnsw_step: float  # one unit of ef_search, one dimension, among 100,000
    encode: dict[str, float]  # one vector, one dimension, by kind
    rotation: float  # training OPQ and PQ, per dimension squared
    store: float  # one byte read, hashed and written
    row: float  # one row: its entry in the table of rows, and bookkeeping
    process_bytes: int  # of a process that serves
    builder_bytes: int  # of a process that builds
    row_bytes: int  # of a row, while it is served
    placed_bytes: int  # of a row, while recall is measured
    drawn_bytes: int  # of a row, while a build is planned


@functools.cache
def measured_costs() -> Costs:
    """Return the unit costs shipped with the package."""
    return Costs.model_validate_json((importlib.resources.files("mrcg.index_build") / "costs.json").read_text("utf-8"))


@dataclass(frozen=True)
class IndexPlan:
    """An index that fits into the nodes, and its costs.

    Attributes:
        shape: kind and parameters of the index.
        count: number of vectors.
        shards, nodes: number of shards, and of the nodes that hold them.
        nprobe_or_ef: initial nprobe (IVF) or ef_search (HNSW).
        node_bytes: memory in use on the fullest node while it serves.
        build_bytes: memory of the largest task of a build: plan it, train, build a part, or measure recall.
        disk_bytes: size of all files.
        build_seconds: seconds of one core to build all shards.
        query_seconds: seconds of one core for one query over all shards, in batches.
        why: reasons for the choice, one line each.
    """

    shape: Shape
    count: int
    shards: int
    nodes: int
    nprobe_or_ef: int
    node_bytes: int
    build_bytes: int
    disk_bytes: int
    build_seconds: float
    query_seconds: float
    why: tuple[str, ...]


def plan_index(
    count: int,
    dim: int,
    node_bytes: int,
    recall: float,
    kind: KindName | None = None,
    shards: int = 0,
    costs: Costs | None = None,
) -> IndexPlan:
    """Choose an index for squared L2.

    Args:
        count: number of vectors.
        dim: dimensions of each.
        node_bytes: memory of a node.
        recall: requested recall@50.
        kind: of the index; None chooses.
        shards: number of shards; 0 chooses.
        costs: of the machines; None takes the shipped ones.

    Raises:
        SettingsError: a node is too small to hold or build the index, or ``shards`` is too small a number.
    """
    costs = costs or measured_costs()
    if kind:
        return _with_reasons(_plan_kind(count, dim, node_bytes, recall, kind, shards, costs), "requested", costs)
    plans: list[IndexPlan] = []
    for candidate in KINDS:
        try:
            plans.append(_plan_kind(count, dim, node_bytes, recall, candidate, shards, costs))
        except SettingsError as error:
            # The error of the last kind is kept: it needs the least memory, except on very small nodes.
            refused = error
    if not plans:
        raise refused
    flat = plans[0]
    if flat.shape.kind == "flat" and flat.nodes == 1 and flat.query_seconds <= FLAT_SECONDS:
        milliseconds = f"{1000 * flat.query_seconds:.1f} ms"
        return _with_reasons(
            flat, f"an exact scan takes {milliseconds} of a core; no approximate index is needed", costs
        )
    fewest = min(plan.nodes for plan in plans)
    best = min((plan for plan in plans if plan.nodes == fewest), key=lambda plan: plan.query_seconds)
    others = ", ".join(f"{plan.shape.kind} {plan.nodes} nodes {1000 * plan.query_seconds:.2g} ms" for plan in plans)
    return _with_reasons(best, f"fewest nodes, then least work per query ({others})", costs)


def index_bytes(shape: Shape) -> float:
    """Return the memory of one vector in the FAISS index."""
    match shape.kind:
        case "flat":
            return 4.0 * shape.dim
        case "hnsw":
            # Per node: 2 * links on level 0, links on one more level for every links-th node; its level and offset.
            return 4.0 * shape.dim + 8 * shape.links * (1 + 0.5 / shape.links) + 12
        case "ivf_flat":
            return 4.0 * shape.dim + 8
        case "ivf_sq":
            return shape.dim + 8.0
        case "opq_ivf_pq":
            return shape.pq_bytes + 8.0


def trained_bytes(shape: Shape) -> int:
    """Return the memory of what all parts have in common: cells, codebooks, rotation."""
    if not shape.trained:
        return 0
    codes = 4 * shape.inner_dim * (shape.dim + 256) if shape.kind == "opq_ivf_pq" else 0
    return 4 * shape.lists * shape.inner_dim + codes


def serving_bytes(shape: Shape) -> int:
    """Return ``trained_bytes`` plus the distance tables that FAISS precomputes to search PQ codes."""
    tables = 4 * shape.lists * shape.pq_bytes * 256 if shape.kind == "opq_ivf_pq" else 0
    return trained_bytes(shape) + (tables if tables <= MAX_PQ_TABLE_BYTES else 0)


def shape_of(kind: KindName, count: int, dim: int, recall: float) -> Shape:
    """Return a shape of a kind for a number of vectors; flat where there are too few to train on."""
    if kind == "flat":
        return Shape(kind="flat", dim=dim)
    if kind == "hnsw":
        return Shape(kind="hnsw", dim=dim, links=LINKS)
    lists = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(max(count, 1)))))
    lists = min(lists, count // VECTORS_PER_LIST)
    code_bytes = 8 * max(1, min(dim, 256) // 32)
    if lists < 2 or (kind == "opq_ivf_pq" and (count < 256 * VECTORS_PER_LIST or dim < code_bytes)):
        return Shape(kind="flat", dim=dim)
    if kind == "opq_ivf_pq":
        return Shape(kind=kind, dim=dim, lists=lists, pq_bytes=code_bytes, refine=8 if recall > 0.95 else 4)
    return Shape(kind=kind, dim=dim, lists=lists, refine=2 if kind == "ivf_sq" and recall > 0.95 else 1)


def initial_nprobe_or_ef(shape: Shape, recall: float) -> int:
    """Return the initial nprobe (IVF) or ef_search (HNSW); the build raises it until the recall is reached."""
    missing = max(1 - recall, 1e-4)
    if shape.trained:
        return max(1, min(shape.lists, round(math.sqrt(shape.lists) * 0.08 / math.sqrt(missing))))
    return max(16, round(14 / math.sqrt(missing))) if shape.kind == "hnsw" else 0


def _plan_kind(
    count: int, dim: int, node_bytes: int, recall: float, kind: KindName, shards: int, costs: Costs
) -> IndexPlan:
    shape = shape_of(kind, count, dim, recall)
    # A node holds the cells once: its shards are joined.
    fixed, row_bytes = costs.process_bytes + serving_bytes(shape), index_bytes(shape) + costs.row_bytes
    once = max(train_bytes(shape, count, costs), plan_bytes(count, costs))
    min_bytes, measuring = math.ceil(row_bytes), recall_bytes(shape, 0, costs) + 6 * min(count, BLOCK) * dim
    # One task measures the recall of a full shard; if the shard has several parts, it is in memory then.
    room = min(int(node_bytes * MEMORY_SHARE) - fixed, node_bytes - measuring)
    building = max(build_bytes(shape, 1, costs), once, measuring + min_bytes)
    if room < min_bytes or node_bytes < building:
        raise SettingsError(
            f"a node of {node_bytes / 2**30:.2g} GiB cannot hold and build a {kind} index of {count:,} x {dim} "
            f"({max((min_bytes + fixed) / MEMORY_SHARE, building) / 2**30:.2g} GiB at least): "
            "raise index.node_bytes (--memory-per-node)"
        )
    part_rows = max_part_rows(shape, node_bytes, costs)
    if not shards:
        # Shards of equal size that fill a node together, each small enough to be built on a node.
        per_node = math.ceil(room / min(SHARD_BYTES, part_rows * row_bytes))
        per_node = max(1, min(per_node, room // (2 * min_bytes)))
        rows = min(int((room // per_node) // row_bytes), part_rows)
        shards = max(1, math.ceil(count / rows))
    largest = math.ceil(count / shards)
    shard_bytes = math.ceil(largest * row_bytes)
    if shard_bytes > room:
        raise SettingsError(
            f"a shard of {shard_bytes / 2**30:.2g} GiB does not fit on a node of {node_bytes / 2**30:.2g} GiB: "
            f"use {math.ceil(count / (room // row_bytes))} shards or more"
        )
    nodes = math.ceil(shards / (room // max(1, shard_bytes)))
    fullest = math.ceil(shards / nodes) * shard_bytes
    nprobe_or_ef = initial_nprobe_or_ef(shape, recall)
    return IndexPlan(
        shape=shape,
        count=count,
        shards=shards,
        nodes=nodes,
        nprobe_or_ef=nprobe_or_ef,
        node_bytes=fixed + fullest,
        build_bytes=max(
            build_bytes(shape, min(largest, part_rows), costs),
            recall_bytes(shape, largest, costs, math.ceil(largest / max(1, part_rows))),
            once,
        ),
        disk_bytes=math.ceil(count * ((0 if kind == "flat" else index_bytes(shape)) + 2 * dim + costs.row_bytes / 2)),
        build_seconds=build_seconds(shape, count, costs),
        query_seconds=query_seconds(shape, count, nprobe_or_ef, costs),
        why=(),
    )


def build_bytes(shape: Shape, rows: int, costs: Costs) -> int:
    """Return the memory of a task that builds one part: the growing index, one block of vectors, and the row list."""
    block = _block_bytes(shape, min(rows, BLOCK))
    return costs.builder_bytes + math.ceil(rows * _building_row_bytes(shape) + block + trained_bytes(shape))


def max_part_rows(shape: Shape, node_bytes: int, costs: Costs | None = None) -> int:
    """Return the number of rows of the largest part that a task can build on a node."""
    costs = costs or measured_costs()
    room, row_bytes = node_bytes - costs.builder_bytes - trained_bytes(shape), _building_row_bytes(shape)
    # Either the rows and a full block of vectors fit, or the part is smaller than a block.
    with_block = (room - _block_bytes(shape, BLOCK)) / row_bytes
    return int(max(with_block, min(BLOCK, room / (row_bytes + _block_bytes(shape, 1)))))


def _building_row_bytes(shape: Shape) -> float:
    """Return the memory of one row while its part is built."""
    index = 0.0 if shape.kind == "flat" else index_bytes(shape) * (LIST_SLACK if shape.trained else 1.0)
    return index + _ROW_LIST_BYTES


def _block_bytes(shape: Shape, rows: int) -> int:
    """Return the memory of vectors added together: as fp16, as float32, and FAISS's intermediate results."""
    row_bytes = 2 * shape.dim if shape.kind == "flat" else 6 * shape.dim
    # For PQ: the rotated vectors, and their residuals to the centroids.
    row_bytes += 8 * shape.inner_dim if shape.kind == "opq_ivf_pq" else 0
    return row_bytes * rows + (_ASSIGN_BYTES * rows // BLOCK if shape.trained else 0)


def train_bytes(shape: Shape, count: int, costs: Costs) -> int:
    """Return the memory of training: the sample, FAISS's copies of it, and the trained index."""
    if not shape.trained:
        return 0
    sample = min(count, max(OPQ_VECTORS, shape.lists * TRAIN_PER_LIST))
    # In addition to the sample: two copies in SuperKMeans, or the residuals that codes are trained on; for PQ also the
    # rotated sample and slices of it.
    kmeans_copies = 2 if shape.inner_dim >= SUPER_KMEANS_DIM else 0
    copies = max(kmeans_copies, {"ivf_flat": 0, "ivf_sq": 1, "opq_ivf_pq": 3}[shape.kind]) * shape.inner_dim
    return costs.builder_bytes + 4 * sample * (shape.dim + copies) + _ASSIGN_BYTES + serving_bytes(shape)


def recall_bytes(shape: Shape, rows: int, costs: Costs, parts: int = 1) -> int:
    """Return the memory of the task that measures the recall of one shard by searching it and scanning it in blocks.

    The inverted lists of a single part stay on disk; those of several parts are joined in memory.
    """
    if shape.kind == "flat":
        return 0  # an exact search is not measured
    row_bytes = costs.placed_bytes + (0.0 if shape.trained and parts == 1 else index_bytes(shape))
    block = 6 * min(rows, BLOCK) * shape.dim + _SCAN_BYTES
    return costs.builder_bytes + serving_bytes(shape) + math.ceil(rows * row_bytes) + block


def plan_bytes(count: int, costs: Costs) -> int:
    """Return the memory of the task that plans a build: it holds every row."""
    return costs.builder_bytes + count * costs.drawn_bytes


def build_seconds(shape: Shape, count: int, costs: Costs) -> float:
    """Return the seconds of one core to train the index and build all parts."""
    depth = math.log2(max(count, 2)) / math.log2(100_000)
    stored = (index_bytes(shape) if shape.kind != "flat" else 0) + 2 * shape.dim
    seconds = count * (costs.row + stored * costs.store)
    if shape.kind == "hnsw":
        return seconds + count * shape.dim * costs.hnsw_add * depth
    if shape.trained:
        sample = min(count, shape.lists * TRAIN_PER_LIST)
        seconds += (10 * sample + count) * shape.lists * shape.inner_dim * costs.coarse
        seconds += count * shape.dim * costs.encode.get(shape.kind, 0.0)
        seconds += shape.dim**2 * costs.rotation if shape.kind == "opq_ivf_pq" else 0.0
    return seconds


def query_seconds(shape: Shape, count: int, nprobe_or_ef: int, costs: Costs) -> float:
    """Return the seconds of one core for one query, searched in batches."""
    if shape.kind == "flat":
        return count * shape.dim * costs.flat_scan
    if shape.kind == "hnsw":
        return nprobe_or_ef * shape.dim * costs.hnsw_step * math.log2(max(count, 2)) / math.log2(100_000)
    width = shape.pq_bytes if shape.kind == "opq_ivf_pq" else shape.dim
    scanned = count * nprobe_or_ef / shape.lists
    return shape.lists * shape.inner_dim * costs.coarse + scanned * width * costs.list_scan[shape.kind]


def _with_reasons(plan: IndexPlan, choice: str, costs: Costs) -> IndexPlan:
    shape = plan.shape
    lines = [
        f"{shape.kind}: {choice}",
        f"{plan.shards} shards on {plan.nodes} nodes: {index_bytes(shape):.0f} bytes of index and {costs.row_bytes} "
        f"bytes of metadata per vector, {plan.node_bytes / 2**30:.2f} GiB on the fullest node",
    ]
    if shape.trained:
        lines.append(
            f"{shape.lists} coarse cells for all shards, trained on "
            f"{min(plan.count, shape.lists * TRAIN_PER_LIST):,} vectors; the initial nprobe is {plan.nprobe_or_ef}"
        )
    if shape.kind == "hnsw":
        lines.append(
            f"{shape.links} links per vector, the initial ef_search is {plan.nprobe_or_ef}; "
            "HNSW cannot delete vectors: parts are rebuilt"
        )
    if shape.refine > 1:
        lines.append(
            f"{shape.refine} candidates per requested neighbour, ordered again by the exact fp16 vectors on disk"
        )
    lines.append(f"unit costs of one core: {costs.machine}, faiss {costs.faiss}")
    return IndexPlan(**{**plan.__dict__, "why": tuple(lines)})
