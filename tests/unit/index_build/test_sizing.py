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
    draw_bytes,
    examine_bytes,
    index_bytes,
    initial_nprobe_or_ef,
    measured_costs,
    most_rows,
    plan_index,
    serving_bytes,
    shape_of,
    train_bytes,
)

GIB = 2**30
#: A machine whose numbers are round, so that an expected cost can be worked out by hand.
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
    """A plan; None where it is refused."""
    try:
        return plan_index(*args, **more)
    except SettingsError:
        return None


@given(counts, dims, nodes, recalls, st.none() | kinds, st.just(0) | st.integers(1, 10_000), machines)
def test_a_plan_never_takes_more_memory_than_a_node_has(count, dim, node_bytes, recall, kind, shards, costs):
    plan = planned(count, dim, node_bytes, recall, kind, shards, costs)
    assume(plan is not None)
    shape, rows = plan.shape, math.ceil(count / plan.shards)
    on_fullest = math.ceil(plan.shards / plan.nodes) * rows * (index_bytes(shape) + costs.row_bytes)
    # Shards on a node are joined: what was trained is there once.
    assert plan.node_bytes >= costs.process_bytes + serving_bytes(shape) + on_fullest
    # A shard that is too large to be filled at once is filled in parts.
    part = build_bytes(shape, min(rows, most_rows(shape, node_bytes, costs)), costs)
    assert plan.build_bytes >= max(part, train_bytes(shape, count, costs), draw_bytes(count, costs))
    parts = math.ceil(rows / max(1, most_rows(shape, node_bytes, costs)))
    assert plan.build_bytes >= examine_bytes(shape, rows, costs, parts)
    assert max(plan.node_bytes, plan.build_bytes) <= node_bytes
    assert 1 <= plan.nodes <= plan.shards <= max(1, shards or count)
    assert plan.shards == (shards or plan.shards)
    assert min(plan.disk_bytes, plan.build_seconds, plan.query_seconds, plan.nprobe_or_ef) >= 0


@given(counts, dims, nodes, kinds, machines)
def test_the_largest_part_can_be_filled_and_one_row_more_cannot(count, dim, node_bytes, kind, costs):
    shape = shape_of(kind, count, dim, 0.95)
    most = most_rows(shape, node_bytes, costs)
    assume(most >= 1)
    assert build_bytes(shape, most, costs) <= node_bytes < build_bytes(shape, most + 1, costs) + 1


@given(counts, counts, dims, nodes, kinds)
def test_more_vectors_never_take_less(count, more, dim, node_bytes, kind):
    few, many = (planned(n, dim, node_bytes, 0.95, kind, 0, ROUND) for n in sorted((count, more)))
    assume(few is not None and many is not None and few.shape.kind == many.shape.kind)
    assert few.disk_bytes <= many.disk_bytes
    assert few.build_seconds <= many.build_seconds
    if not few.shape.trained:
        # Cells come in powers of two: with twice as many a query looks at fewer vectors.
        assert few.query_seconds <= many.query_seconds
        assert few.shards <= many.shards
        assert few.nodes <= many.nodes


@given(counts, dims, nodes, nodes, kinds)
def test_more_memory_never_takes_more_nodes(count, dim, one, other, kind):
    small, large = (planned(count, dim, memory, 0.95, kind, 0, ROUND) for memory in sorted((one, other)))
    assume(small is not None)
    assert large is not None
    assert large.nodes <= small.nodes


@given(counts, dims, kinds, recalls, recalls)
def test_a_higher_recall_never_takes_less_effort(count, dim, kind, one, other):
    low, high = (planned(count, dim, 1024 * GIB, recall, kind, 0, ROUND) for recall in sorted((one, other)))
    assume(low is not None and high is not None)
    assert low.nprobe_or_ef <= high.nprobe_or_ef
    assert low.query_seconds <= high.query_seconds
    assert low.shape.refine <= high.shape.refine


@given(counts, dims, nodes, recalls, st.just(0) | st.integers(1, 100))
def test_the_choice_is_the_best_of_what_each_kind_would_be(count, dim, node_bytes, recall, shards):
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


def test_a_kind_that_does_not_fit_does_not_keep_another_from_being_chosen():
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
def test_a_node_that_is_too_small_is_told_how_much_it_takes(count, dim, node_bytes, kind, costs):
    try:
        plan_index(count, dim, node_bytes, 0.95, kind, 0, costs)
        assume(False)
    except SettingsError as error:
        said = re.search(
            r"builds no (\w+) index of ([\d,]+) x (\d+) \(([^ ]+) GiB at least\): give --memory-per-node more",
            str(error),
        )
    assert said is not None
    assert (said[2], said[3]) == (f"{count:,}", str(dim))
    # Two digits are said.
    enough = int(float(said[4]) * 1.06 * GIB)
    assert enough > node_bytes
    assert plan_index(count, dim, enough, 0.95, said[1], 0, costs).nodes >= 1


@given(st.integers(10**6, 10**8), st.integers(64, 1024), st.floats(30, 34).map(lambda bits: int(2**bits)), kinds)
def test_too_few_shards_are_told_how_many_it_takes(count, dim, node_bytes, kind):
    # Otherwise the node is too small to draw the index up, and that is said first.
    costs = ROUND.model_copy(update={"drawn_bytes": 0})
    try:
        plan_index(count, dim, node_bytes, 0.95, kind, 1, costs)
        assume(False)
    except SettingsError as error:
        said = re.search(r"does not fit on a node of .* GiB: ask for (\d+) shards or more", str(error))
    assume(said is not None)
    fewest = int(said[1])
    assert fewest > 1
    assert planned(count, dim, node_bytes, 0.95, kind, fewest, costs) is not None
    assert planned(count, dim, node_bytes, 0.95, kind, fewest - 1, costs) is None


@given(counts, dims, recalls, kinds)
def test_a_shape_can_be_trained_on_what_there_is(count, dim, recall, kind):
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


def test_few_vectors_are_scanned_exactly_whatever_was_asked_for():
    plan = plan_index(50, 8, GIB, 0.95, "ivf_flat", 0, ROUND)
    assert (plan.shape.kind, plan.nprobe_or_ef) == ("flat", 0)


def test_costs_are_those_that_are_given():
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


def test_the_costs_that_are_shipped_are_taken_where_none_are_given():
    assert plan_index(10**6, 100, 16 * GIB, 0.95).why[-1].startswith(f"costs of one core: {measured_costs().machine}, ")
    assert min(measured_costs().process_bytes, measured_costs().row_bytes) > 0


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_plan_says_why(kind):
    plan = plan_index(50_000_000, 1000, 64 * GIB, 0.98, kind, 0, ROUND)
    why = "\n".join(plan.why)
    assert why.startswith(f"{plan.shape.kind}: ")
    assert ("asked for" in why) == (kind is not None)
    assert ("fewest nodes, then least work a query" in why) == (kind is None)
    assert f"{plan.shards} shards on {plan.nodes} nodes" in why
    assert f"{index_bytes(plan.shape):.0f} bytes of index" in why
    assert ("coarse cells for all shards" in why) == plan.shape.trained
    assert ("links a vector" in why) == (plan.shape.kind == "hnsw")
    assert ("candidates for each wanted one" in why) == (plan.shape.refine > 1)
    assert "a round machine" in plan.why[-1]
    if kind is None:
        assert all(f"{one} " in why for one in KINDS)


def test_a_small_gallery_is_scanned_and_the_plan_says_that_nothing_is_gained_by_less():
    plan = plan_index(7000, 1000, 16 * GIB, 0.95, None, 0, ROUND)
    assert plan.shape.kind == "flat"
    assert "an exact scan takes 0.7 ms of a core: nothing is gained by less" in plan.why[0]
