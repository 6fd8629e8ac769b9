import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mrcg.errors import SettingsError
from mrcg.index_build.sizing import (
    FLAT_SECONDS,
    KINDS,
    VECTORS_PER_LIST,
    Costs,
    build_bytes,
    index_bytes,
    initial_nprobe_or_ef,
    max_part_rows,
    measured_costs,
    plan_bytes,
    plan_index,
    recall_bytes,
    serving_bytes,
    shape_of,
    train_bytes,
)

GIB = 2**30
#: A machine with round numbers, so that expected costs can be worked out by hand.
ROUND = Costs(
    machine="a round machine",
    faiss="0",
    flat_scan=1e-10,
    coarse=1e-10,
    list_scan={"ivf_flat": 2e-10, "ivf_sq": 1e-10, "opq_ivf_pq": 1e-9},
    hnsw_add=1e-6,
    hnsw_step=1e-7,
    encode={"ivf_sq": 1e-9, "opq_ivf_pq": 1e-8},
    rotation=1e-4,
    store=1e-9,
    row=1e-6,
    process_bytes=250_000_000,
    builder_bytes=250_000_000,
    row_bytes=180,
    placed_bytes=40,
    drawn_bytes=500,
)

counts = st.just(0) | st.floats(0, 9).map(lambda digits: int(10**digits))
dims = st.integers(1, 4096)
kinds = st.sampled_from(KINDS)
nodes = st.floats(28, 40).map(lambda bits: int(2**bits))
recalls = st.floats(0.5, 1.0)
seconds = st.floats(1e-12, 1e-3)
machines = st.builds(
    Costs,
    machine=st.just("drawn"),
    faiss=st.just("0"),
    flat_scan=seconds,
    coarse=seconds,
    list_scan=st.fixed_dictionaries(dict.fromkeys(("ivf_flat", "ivf_sq", "opq_ivf_pq"), seconds)),
    hnsw_add=seconds,
    hnsw_step=seconds,
    encode=st.fixed_dictionaries(dict.fromkeys(("ivf_sq", "opq_ivf_pq"), seconds)),
    rotation=seconds,
    store=seconds,
    row=seconds,
    process_bytes=st.integers(0, 10**9),
    builder_bytes=st.integers(0, 10**9),
    row_bytes=st.integers(1, 1000),
    placed_bytes=st.integers(0, 100),
    drawn_bytes=st.integers(0, 1000),
).map(lambda costs: costs.model_copy(update={"placed_bytes": min(costs.placed_bytes, costs.row_bytes)}))


def planned(*args, **more):
    """A plan, None where planning fails."""
    try:
        return plan_index(*args, **more)
    except SettingsError:
        return None


@given(counts, dims, nodes, recalls, st.none() | kinds, st.just(0) | st.integers(1, 10_000), machines)
def test_a_plan_never_exceeds_the_memory_of_a_node(count, dim, node_bytes, recall, kind, shards, costs):
    plan = planned(count, dim, node_bytes, recall, kind, shards, costs)
    assume(plan is not None)
    shape, rows = plan.shape, math.ceil(count / plan.shards)
    on_fullest = math.ceil(plan.shards / plan.nodes) * rows * (index_bytes(shape) + costs.row_bytes)
    # Shards on a node are joined: it holds the trained cells once.
    assert plan.node_bytes >= costs.process_bytes + serving_bytes(shape) + on_fullest
    # A shard that is too large to be built in one task is built in parts.
    part = build_bytes(shape, min(rows, max_part_rows(shape, node_bytes, costs)), costs)
    assert plan.build_bytes >= max(part, train_bytes(shape, count, costs), plan_bytes(count, costs))
    parts = math.ceil(rows / max(1, max_part_rows(shape, node_bytes, costs)))
    assert plan.build_bytes >= recall_bytes(shape, rows, costs, parts)
    assert max(plan.node_bytes, plan.build_bytes) <= node_bytes
    assert 1 <= plan.nodes <= plan.shards <= max(1, shards or count)
    assert plan.shards == (shards or plan.shards)
    assert min(plan.disk_bytes, plan.build_seconds, plan.query_seconds, plan.nprobe_or_ef) >= 0


@given(counts, dims, nodes, kinds, machines)
def test_the_largest_part_fits_and_one_more_row_does_not(count, dim, node_bytes, kind, costs):
    shape = shape_of(kind, count, dim, 0.95)
    most = max_part_rows(shape, node_bytes, costs)
    assume(most >= 1)
    assert build_bytes(shape, most, costs) <= node_bytes < build_bytes(shape, most + 1, costs) + 1


@given(counts, counts, dims, nodes, kinds)
def test_more_vectors_never_cost_less(count, more, dim, node_bytes, kind):
    few, many = (planned(n, dim, node_bytes, 0.95, kind, 0, ROUND) for n in sorted((count, more)))
    assume(few is not None and many is not None and few.shape.kind == many.shape.kind)
    assert few.disk_bytes <= many.disk_bytes
    assert few.build_seconds <= many.build_seconds
    if not few.shape.trained:
        # The number of cells is a power of two: when it doubles, a query scans fewer vectors.
        assert few.query_seconds <= many.query_seconds
        assert few.shards <= many.shards
        assert few.nodes <= many.nodes


@given(counts, dims, nodes, nodes, kinds)
def test_more_memory_never_needs_more_nodes(count, dim, one, other, kind):
    small, large = (planned(count, dim, memory, 0.95, kind, 0, ROUND) for memory in sorted((one, other)))
    assume(small is not None)
    assert large is not None
    assert large.nodes <= small.nodes


@given(counts, dims, kinds, recalls, recalls)
def test_a_higher_recall_never_lowers_nprobe_or_ef(count, dim, kind, one, other):
    low, high = (planned(count, dim, 1024 * GIB, recall, kind, 0, ROUND) for recall in sorted((one, other)))
    assume(low is not None and high is not None)
    assert low.nprobe_or_ef <= high.nprobe_or_ef
    assert low.query_seconds <= high.query_seconds
    assert low.shape.refine <= high.shape.refine


@given(counts, dims, nodes, recalls, st.just(0) | st.integers(1, 100))
def test_the_choice_is_the_best_plan_over_all_kinds(count, dim, node_bytes, recall, shards):
    each = [planned(count, dim, node_bytes, recall, kind, shards, ROUND) for kind in KINDS]
    plan = planned(count, dim, node_bytes, recall, None, shards, ROUND)
    fitting = [one for one in each if one is not None]
    assert (plan is None) == (not fitting)
    assume(plan is not None)
    if each[0] is not None and each[0].nodes == 1 and each[0].query_seconds <= FLAT_SECONDS:
        best = each[0]
    else:
        best = min(fitting, key=lambda one: (one.nodes, one.query_seconds))
    assert {**plan.__dict__, "why": ()} == {**best.__dict__, "why": ()}


def test_a_kind_that_does_not_fit_does_not_prevent_another():
    assert planned(10_000_000, 800, 16 * GIB, 0.95, "flat", 2, ROUND) is None
    assert plan_index(10_000_000, 800, 16 * GIB, 0.95, None, 2, ROUND).shape.kind == "opq_ivf_pq"


def test_a_count_that_no_shard_size_divides_still_fits():
    rows = int((0.8 * GIB - ROUND.process_bytes) // (4 * 1000 + ROUND.row_bytes))
    assert plan_index(2 * rows, 1000, GIB, 0.95, "flat", 0, ROUND).nodes == 2
    assert plan_index(2 * rows + 1, 1000, GIB, 0.95, "flat", 0, ROUND).nodes == 3


def test_an_empty_gallery_has_one_empty_shard():
    plan = plan_index(0, 1000, 16 * GIB, 0.95, None, 0, ROUND)
    assert (plan.shards, plan.nodes, plan.disk_bytes, plan.query_seconds) == (1, 1, 0, 0.0)
    assert plan_index(0, 1000, 16 * GIB, 0.95, "ivf_sq", 3, ROUND).shards == 3


@given(counts, dims, st.floats(16, 30).map(lambda bits: int(2**bits)), st.none() | kinds, machines)
def test_the_error_for_a_small_node_names_the_memory_needed(count, dim, node_bytes, kind, costs):
    try:
        plan_index(count, dim, node_bytes, 0.95, kind, 0, costs)
        assume(False)
    except SettingsError as error:
        match = re.search(
            r"cannot hold and build a (\w+) index of ([\d,]+) x (\d+) \(([^ ]+) GiB at least\): "
            r"raise index.node_bytes \(--memory-per-node\)",
            str(error),
        )
    assert match is not None
    assert (match[2], match[3]) == (f"{count:,}", str(dim))
    # The message has two digits.
    enough = int(float(match[4]) * 1.06 * GIB)
    assert enough > node_bytes
    assert plan_index(count, dim, enough, 0.95, match[1], 0, costs).nodes >= 1


@given(st.integers(10**6, 10**8), st.integers(64, 1024), st.floats(30, 34).map(lambda bits: int(2**bits)), kinds)
def test_the_error_for_too_few_shards_names_the_number_needed(count, dim, node_bytes, kind):
    # Otherwise the node may be too small to plan the build, and that error comes first.
    costs = ROUND.model_copy(update={"drawn_bytes": 0})
    try:
        plan_index(count, dim, node_bytes, 0.95, kind, 1, costs)
        assume(False)
    except SettingsError as error:
        match = re.search(r"does not fit on a node of .* GiB: use (\d+) shards or more", str(error))
    assume(match is not None)
    fewest = int(match[1])
    assert fewest > 1
    assert planned(count, dim, node_bytes, 0.95, kind, fewest, costs) is not None
    assert planned(count, dim, node_bytes, 0.95, kind, fewest - 1, costs) is None


@given(counts, dims, recalls, kinds)
def test_a_shape_can_be_trained_on_the_vectors_available(count, dim, recall, kind):
    shape = shape_of(kind, count, dim, recall)
    assert shape.kind in (kind, "flat")
    assert shape.lists * VECTORS_PER_LIST <= count
    assert 0 <= initial_nprobe_or_ef(shape, recall) <= max(shape.lists, 2**14)
    assert (initial_nprobe_or_ef(shape, recall) == 0) == (shape.kind == "flat")
    if shape.kind == "opq_ivf_pq":
        assert shape.pq_bytes <= dim
        assert count >= 256 * VECTORS_PER_LIST
    if kind in ("flat", "hnsw"):
        assert shape.kind == kind


def test_few_vectors_get_a_flat_index_whatever_kind_is_requested():
    plan = plan_index(50, 8, GIB, 0.95, "ivf_flat", 0, ROUND)
    assert (plan.shape.kind, plan.nprobe_or_ef) == ("flat", 0)


def test_costs_can_be_given():
    flat = plan_index(1000, 100, 16 * GIB, 0.95, None, 0, ROUND)
    assert flat.query_seconds == pytest.approx(1000 * 100 * 1e-10)
    assert flat.build_seconds == pytest.approx(1000 * (1e-6 + 200e-9))
    assert flat.node_bytes == 250_000_000 + 1000 * (400 + 180)
    assert flat.disk_bytes == 1000 * (200 + 90)
    slow = ROUND.model_copy(update={"flat_scan": 1e-6})
    assert plan_index(1000, 100, 16 * GIB, 0.95, None, 0, slow).shape.kind != "flat"
    ivf = plan_index(10**6, 100, 16 * GIB, 0.95, "ivf_flat", 0, ROUND)
    scanned = 10**6 * ivf.nprobe_or_ef / ivf.shape.lists
    assert ivf.query_seconds == pytest.approx(ivf.shape.lists * 100 * 1e-10 + scanned * 100 * 2e-10)


def test_the_shipped_costs_are_the_default():
    last_reason = plan_index(10**6, 100, 16 * GIB, 0.95).why[-1]
    assert last_reason.startswith(f"unit costs of one core: {measured_costs().machine}, ")
    assert min(measured_costs().process_bytes, measured_costs().row_bytes) > 0


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_plan_gives_its_reasons(kind):
    plan = plan_index(50_000_000, 1000, 64 * GIB, 0.98, kind, 0, ROUND)
    why = "\n".join(plan.why)
    assert why.startswith(f"{plan.shape.kind}: ")
    assert ("requested" in plan.why[0]) == (kind is not None)
    assert ("fewest nodes, then least work per query" in why) == (kind is None)
    assert f"{plan.shards} shards on {plan.nodes} nodes" in why
    assert f"{index_bytes(plan.shape):.0f} bytes of index" in why
    assert ("coarse cells for all shards" in why) == plan.shape.trained
    assert ("links per vector" in why) == (plan.shape.kind == "hnsw")
    assert ("candidates per requested neighbour" in why) == (plan.shape.refine > 1)
    assert "a round machine" in plan.why[-1]
    if kind is None:
        assert all(f"{one} " in why for one in KINDS)


def test_a_small_gallery_gets_a_flat_index_and_the_reason():
    plan = plan_index(7000, 1000, 16 * GIB, 0.95, None, 0, ROUND)
    assert plan.shape.kind == "flat"
    assert "an exact scan takes 0.7 ms of a core; no approximate index is needed" in plan.why[0]
