"""Which index, how many shards, how much memory: pure functions of a few numbers (DESIGN §1, §2).

Unit costs are measured by ``python -m tests.bench.costs`` and lie beside this file; nothing here is guessed about a
machine. What a search has to look at for a wanted recall is only a first guess: the build measures and raises it.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from mrcg.errors import SettingsError
from mrcg.index.distances import BLOCK
from mrcg.index.faiss_backend import OPQ_VECTORS, SUPER_KMEANS_DIM, TRAIN_PER_LIST
from mrcg.index.layout import KindName, Shape

#: Of a node's memory; the rest is for the system and for the page cache of the exact vectors.
FILL = 0.8
#: An exact scan on one core that is shorter than this needs no approximation.
FLAT_SECONDS = 0.005
#: A shard's index is made to be about so large: it is the unit of building, of loading and of losing.
SHARD_BYTES = 4 * 2**30
#: FAISS wants at least this many training vectors per coarse cell.
VECTORS_PER_LIST = 39
#: FAISS makes no tables for PQ that are larger than this.
PQ_TABLES = 2**31
#: FAISS's inverted lists double as they grow.
LIST_SLACK = 1.3
#: Bytes of a row in the list that a part is filled from: as it is read, and as it is used.
_LISTED = 16
#: Distances that FAISS has at once where it finds the cells of many vectors.
_ASSIGNED = 4 * 4096 * 1024
#: Distances that an exact scan has at once: of 256 queries to 8,192 vectors.
_SCANNED = 4 * 256 * 8192
LINKS = 32
KINDS: tuple[KindName, ...] = ("flat", "hnsw", "ivf_flat", "ivf_sq", "opq_ivf_pq")


class Costs(BaseModel):
    """What one core of a machine takes, in seconds, and what a process and a row take, in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    faiss: str
    flat_scan: float  # one query, one vector, one dimension, in batches of 64
    coarse: float  # one vector, one cell, one dimension
    list_scan: dict[str, float]  # one vector of an IVF list, one dimension, by kind; one byte of a PQ code
    hnsw_add: float  # one vector, one dimension, among 100,000
    hnsw_step: float  # one unit of breadth, one dimension, among 100,000
    encode: dict[str, float]  # one vector, one dimension, by kind
    rotation: float  # training OPQ and PQ, one dimension squared
    store: float  # one byte read, hashed and written
    row: float  # one row's table and bookkeeping
    process_bytes: int  # that serves
    builder_bytes: int  # that builds
    row_bytes: int  # of a row, while it is served
    placed_bytes: int  # of a row, while recall is measured
    drawn_bytes: int  # of a row, while an index is drawn up


@functools.cache
def measured_costs() -> Costs:
    """The costs that are shipped."""
    return Costs.model_validate_json((importlib.resources.files("mrcg.index_build") / "costs.json").read_text("utf-8"))


@dataclass(frozen=True)
class IndexPlan:
    """An index that fits, and what it costs.

    Attributes:
        shards, nodes: how it is cut, and machines that hold it.
        nprobe_or_ef: initial nprobe (IVF) or ef_search (HNSW).
        node_bytes: memory in use on the fullest node while it serves.
        build_bytes: memory of the largest task of a build: that draws it up, trains, or fills a part.
        disk_bytes: of all files.
        build_seconds: work of one core, all shards together.
        query_seconds: work of one core for one query over all shards, in batches.
        why: one line a step of the choice.
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
        count: vectors.
        dim: of each.
        node_bytes: memory of a machine.
        recall: recall@50 that is wanted.
        kind: of index, None chooses.
        shards: 0 chooses.
        costs: of the machines; those that are shipped where none are given.

    Raises:
        SettingsError: a node is too small to hold anything.
    """
    costs = costs or measured_costs()
    if kind:
        return _explained(_planned(count, dim, node_bytes, recall, kind, shards, costs), "asked for", costs)
    found: list[IndexPlan] = []
    for one in KINDS:
        try:
            found.append(_planned(count, dim, node_bytes, recall, one, shards, costs))
        except SettingsError as error:
            # The last kind asks for least, but where nodes are tiny.
            refused = error
    if not found:
        raise refused
    flat = found[0]
    if flat.shape.kind == "flat" and flat.nodes == 1 and flat.query_seconds <= FLAT_SECONDS:
        return _explained(
            flat, f"an exact scan takes {1000 * flat.query_seconds:.1f} ms of a core: nothing is gained by less", costs
        )
    fewest = min(one.nodes for one in found)
    best = min((one for one in found if one.nodes == fewest), key=lambda one: one.query_seconds)
    others = ", ".join(f"{one.shape.kind} {one.nodes} nodes {1000 * one.query_seconds:.2g} ms" for one in found)
    return _explained(best, f"fewest nodes, then least work a query ({others})", costs)


def index_bytes(shape: Shape) -> float:
    """Memory of one vector in the FAISS index."""
    match shape.kind:
        case "flat":
            return 4.0 * shape.dim
        case "hnsw":
            # 2 links per node on level 0, one level more for every shape.links-th node, level and offset.
            return 4.0 * shape.dim + 8 * shape.links * (1 + 0.5 / shape.links) + 12
        case "ivf_flat":
            return 4.0 * shape.dim + 8
        case "ivf_sq":
            return shape.dim + 8.0
        case "opq_ivf_pq":
            return shape.pq_bytes + 8.0


def trained_bytes(shape: Shape) -> int:
    """Memory of what is the same in every part: cells, codebooks, rotation."""
    if not shape.trained:
        return 0
    codes = 4 * shape.inner_dim * (shape.dim + 256) if shape.kind == "opq_ivf_pq" else 0
    return 4 * shape.lists * shape.inner_dim + codes


def serving_bytes(shape: Shape) -> int:
    """The same and the tables of distances that FAISS makes for PQ codes, where a search is prepared for."""
    tables = 4 * shape.lists * shape.pq_bytes * 256 if shape.kind == "opq_ivf_pq" else 0
    return trained_bytes(shape) + (tables if tables <= PQ_TABLES else 0)


def shape_of(kind: KindName, count: int, dim: int, recall: float) -> Shape:
    """A shape of this kind for so many vectors; with too few to train on it is flat."""
    if kind == "flat":
        return Shape(kind="flat", dim=dim)
    if kind == "hnsw":
        return Shape(kind="hnsw", dim=dim, links=LINKS)
    wanted = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(max(count, 1)))))
    lists = min(wanted, count // VECTORS_PER_LIST)
    code = 8 * max(1, min(dim, 256) // 32)
    if lists < 2 or (kind == "opq_ivf_pq" and (count < 256 * VECTORS_PER_LIST or dim < code)):
        return Shape(kind="flat", dim=dim)
    if kind == "opq_ivf_pq":
        return Shape(kind=kind, dim=dim, lists=lists, pq_bytes=code, refine=8 if recall > 0.95 else 4)
    return Shape(kind=kind, dim=dim, lists=lists, refine=2 if kind == "ivf_sq" and recall > 0.95 else 1)


def initial_nprobe_or_ef(shape: Shape, recall: float) -> int:
    """Cells or breadth that a search begins with; the build raises it until the recall is reached."""
    missing = max(1 - recall, 1e-4)
    if shape.trained:
        return max(1, min(shape.lists, round(math.sqrt(shape.lists) * 0.08 / math.sqrt(missing))))
    return max(16, round(14 / math.sqrt(missing))) if shape.kind == "hnsw" else 0


def _planned(
    count: int, dim: int, node_bytes: int, recall: float, kind: KindName, shards: int, costs: Costs
) -> IndexPlan:
    shape = shape_of(kind, count, dim, recall)
    # Cells are there once on a node: the shards on it are joined.
    fixed, each = costs.process_bytes + serving_bytes(shape), index_bytes(shape) + costs.row_bytes
    room, once = int(node_bytes * FILL) - fixed, max(train_bytes(shape, count, costs), draw_bytes(count, costs))
    least, examining = math.ceil(each), examine_bytes(shape, 0, costs) + 6 * min(count, BLOCK) * dim
    # A shard is opened as a whole to be examined, in memory where it has grown by parts.
    room = min(room, node_bytes - examining)
    building = max(build_bytes(shape, 1, costs), once, examining + least)
    if room < least or node_bytes < building:
        raise SettingsError(
            f"a node of {node_bytes / 2**30:.2g} GiB holds and builds no {kind} index of {count:,} x {dim} "
            f"({max((least + fixed) / FILL, building) / 2**30:.2g} GiB at least): give --memory-per-node more"
        )
    builds = most_rows(shape, node_bytes, costs)
    if not shards:
        # Shards of one size that fill a node together; so small that building one fits too.
        on_node = math.ceil(room / min(SHARD_BYTES, builds * each))
        on_node = max(1, min(on_node, room // (2 * least)))
        rows = min(int((room // on_node) // each), builds)
        shards = max(1, math.ceil(count / rows))
    largest = math.ceil(count / shards)
    each_shard = math.ceil(largest * each)
    if each_shard > room:
        raise SettingsError(
            f"a shard of {each_shard / 2**30:.2g} GiB does not fit on a node of {node_bytes / 2**30:.2g} GiB: "
            f"ask for {math.ceil(count / (room // each))} shards or more"
        )
    nodes = math.ceil(shards / (room // max(1, each_shard)))
    fullest = math.ceil(shards / nodes) * each_shard
    nprobe_or_ef = initial_nprobe_or_ef(shape, recall)
    return IndexPlan(
        shape=shape,
        count=count,
        shards=shards,
        nodes=nodes,
        nprobe_or_ef=nprobe_or_ef,
        node_bytes=fixed + fullest,
        build_bytes=max(
            build_bytes(shape, min(largest, builds), costs),
            examine_bytes(shape, largest, costs, math.ceil(largest / max(1, builds))),
            once,
        ),
        disk_bytes=math.ceil(count * ((0 if kind == "flat" else index_bytes(shape)) + 2 * dim + costs.row_bytes / 2)),
        build_seconds=build_seconds(shape, count, costs),
        query_seconds=query_seconds(shape, count, nprobe_or_ef, costs),
        why=(),
    )


def build_bytes(shape: Shape, rows: int, costs: Costs) -> int:
    """Memory of a task that fills one part: the index as it grows, one block of vectors, its rows."""
    block = _block(shape, min(rows, BLOCK))
    return costs.builder_bytes + math.ceil(rows * _filling(shape) + block + trained_bytes(shape))


def most_rows(shape: Shape, node_bytes: int, costs: Costs | None = None) -> int:
    """Rows of the largest part that a task can fill on a node."""
    costs = costs or measured_costs()
    rest, each = node_bytes - costs.builder_bytes - trained_bytes(shape), _filling(shape)
    # With a whole block of vectors beside them; or fewer than a block.
    return int(max((rest - _block(shape, BLOCK)) / each, min(BLOCK, rest / (each + _block(shape, 1)))))


def _filling(shape: Shape) -> float:
    """Memory of one row while a part is filled."""
    index = 0.0 if shape.kind == "flat" else index_bytes(shape) * (LIST_SLACK if shape.trained else 1.0)
    return index + _LISTED


def _block(shape: Shape, rows: int) -> int:
    """Memory of vectors that are added at once: as they are stored, as FAISS wants them, and what it makes of them."""
    # For PQ: turned, and what is left of them when their cell is taken away.
    each = 2 * shape.dim if shape.kind == "flat" else 6 * shape.dim
    each += 8 * shape.inner_dim if shape.kind == "opq_ivf_pq" else 0
    return each * rows + (_ASSIGNED * rows // BLOCK if shape.trained else 0)


def train_bytes(shape: Shape, count: int, costs: Costs) -> int:
    """Memory of training: the sample, FAISS's copies of it, and what is learned."""
    if not shape.trained:
        return 0
    sample = min(count, max(OPQ_VECTORS, shape.lists * TRAIN_PER_LIST))
    # Beside the sample: two copies of SuperKMeans, or for codes what is left when its cell is taken away; for PQ the
    # sample turned, too, and slices.
    least = 2 if shape.inner_dim >= SUPER_KMEANS_DIM else 0
    copies = max(least, {"ivf_flat": 0, "ivf_sq": 1, "opq_ivf_pq": 3}[shape.kind]) * shape.inner_dim
    return costs.builder_bytes + 4 * sample * (shape.dim + copies) + _ASSIGNED + serving_bytes(shape)


def examine_bytes(shape: Shape, rows: int, costs: Costs, parts: int = 1) -> int:
    """Memory of the task that measures the recall of one shard: all of it is searched, and scanned block by block.

    Inverted lists of a single part stay on disk; of several they are joined.
    """
    if shape.kind == "flat":
        return 0  # it is exact
    each = costs.placed_bytes + (0.0 if shape.trained and parts == 1 else index_bytes(shape))
    block = 6 * min(rows, BLOCK) * shape.dim + _SCANNED
    return costs.builder_bytes + serving_bytes(shape) + math.ceil(rows * each) + block


def draw_bytes(count: int, costs: Costs) -> int:
    """Memory of the one task that draws an index up: it knows every row."""
    return costs.builder_bytes + count * costs.drawn_bytes


def build_seconds(shape: Shape, count: int, costs: Costs) -> float:
    """Work of one core to train and to fill."""
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
    """Work of one core for one query, in batches."""
    if shape.kind == "flat":
        return count * shape.dim * costs.flat_scan
    if shape.kind == "hnsw":
        return nprobe_or_ef * shape.dim * costs.hnsw_step * math.log2(max(count, 2)) / math.log2(100_000)
    width = shape.pq_bytes if shape.kind == "opq_ivf_pq" else shape.dim
    scanned = count * nprobe_or_ef / shape.lists
    return shape.lists * shape.inner_dim * costs.coarse + scanned * width * costs.list_scan[shape.kind]


def _explained(plan: IndexPlan, choice: str, costs: Costs) -> IndexPlan:
    shape = plan.shape
    lines = [
        f"{shape.kind}: {choice}",
        f"{plan.shards} shards on {plan.nodes} nodes: {index_bytes(shape):.0f} bytes of index and {costs.row_bytes} of "
        f"facts a vector, {plan.node_bytes / 2**30:.2f} GiB on the fullest node",
    ]
    if shape.trained:
        lines.append(
            f"{shape.lists} coarse cells for all shards, trained on "
            f"{min(plan.count, shape.lists * TRAIN_PER_LIST):,} vectors; the initial nprobe is {plan.nprobe_or_ef}"
        )
    if shape.kind == "hnsw":
        lines.append(
            f"{shape.links} links a vector, the initial ef_search is {plan.nprobe_or_ef}; "
            "it cannot delete: parts are rebuilt"
        )
    if shape.refine > 1:
        lines.append(f"{shape.refine} candidates for each wanted one, ordered again by the exact fp16 vectors on disk")
    lines.append(f"costs of one core: {costs.machine}, faiss {costs.faiss}")
    return IndexPlan(**{**plan.__dict__, "why": tuple(lines)})
