import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.factories import strings
from tests.references import shard_of

from mrcg.hashing import digest
from mrcg.index.layout import (
    IndexFacts,
    PartFacts,
    Shape,
    allocate_shards,
    count_scans_by_site,
    part_files,
    part_name,
    shards_of,
)

counts_of_sites = st.dictionaries(st.text(max_size=3), st.integers(0, 5000), max_size=12)
shards = st.integers(1, 60)


def ids(count):
    return [digest(["scan", number], 32) for number in range(count)]


@given(counts_of_sites, shards)
def test_every_site_gets_shards_that_exist(counts, shards):
    found = allocate_shards(counts, shards)
    assert set(found) == set(counts)
    assert all(first >= 0 and count >= 1 and first + count <= shards for first, count in found.values())


@given(counts_of_sites, shards)
def test_two_sites_share_at_most_one_shard(counts, shards):
    owned = [set(range(first, first + count)) for first, count in allocate_shards(counts, shards).values()]
    assert all(len(one & other) <= 1 for place, one in enumerate(owned) for other in owned[:place])


@given(counts_of_sites, shards)
def test_no_shard_gets_more_than_twice_its_share(counts, shards):
    load = Counter()
    for site, (first, count) in allocate_shards(counts, shards).items():
        load.update(dict.fromkeys(range(first, first + count), counts[site] / count))
    assert max(load.values(), default=0) <= 2 * sum(counts.values()) / shards + 1


def test_a_single_site_has_all_shards_and_small_sites_share_one():
    assert allocate_shards({"": 1000}, 5) == {"": (0, 5)}
    assert allocate_shards({"big": 900, "small": 50, "tiny": 50}, 4) == {"big": (0, 3), "small": (3, 1), "tiny": (3, 1)}
    assert allocate_shards({}, 3) == {}


@given(counts_of_sites, shards, st.text(max_size=3), st.integers(0, 10**6))
def test_a_shard_is_determined_by_site_and_id(counts, shards, site, number):
    sites, image = allocate_shards(counts, shards), digest(["scan", number], 32)
    first, count = sites.get(site, (0, shards))
    assert first <= shard_of(site, image, sites, shards) < first + count
    assert shard_of(None, image, sites, shards) == shard_of("", image, sites, shards)


def test_shards_of_agrees_with_shard_of():
    sites, images = allocate_shards({"a": 60, "b": 40}, 5), ids(50)
    of = ["a", "b", None, "new", ""] * 10
    expected = [shard_of(*one, sites, 5) for one in zip(of, images, strict=True)]
    assert shards_of(strings(images), strings(of), sites, 5).tolist() == expected
    assert shards_of(strings([]), strings([]), sites, 5).tolist() == []


@given(st.lists(st.none() | st.sampled_from(["", "a", "b"]), max_size=30))
def test_scans_are_counted_by_site(of):
    assert count_scans_by_site(strings(of)) == Counter(site or "" for site in of)


def test_a_site_spreads_evenly_over_its_shards():
    found = Counter(
        shards_of(strings(ids(4000)), strings(["a"] * 4000), allocate_shards({"a": 1, "b": 1}, 8), 8).tolist()
    )
    assert set(found) == {0, 1, 2, 3}
    assert all(abs(count - 1000) < 120 for count in found.values())


def test_part_names_are_unique_and_sort_in_order_of_creation():
    names = [part_name(*one) for one in [(0, 0, 0), (0, 0, 1), (0, 2, 0), (1, 0, 0), (12, 0, 0)]]
    assert names == sorted(set(names))
    files = part_files(names[1])
    assert (files.index, files.vectors, files.rows) == (
        f"parts/{names[1]}.faiss",
        f"parts/{names[1]}.vectors.f16",
        f"rows/{names[1]}.arrow",
    )
    assert all(re.fullmatch(r"\d{5}-\d{3}-\d{2}", name) for name in names)


def test_facts_survive_a_round_trip():
    facts = IndexFacts(
        shape=Shape(kind="ivf_sq", dim=8, lists=4, refine=2),
        shards=2,
        nprobe_or_ef=3,
        recall=0.97,
        measured=100,
        trained_on=90,
        generation=1,
        sites={"": (0, 2), "a": (1, 1)},
        parts=(PartFacts(shard=1, name="00001-001-00", rows=100, live=99),),
    )
    assert IndexFacts.model_validate_json(facts.model_dump_json()) == facts
    with pytest.raises(ValidationError):
        IndexFacts.model_validate({**facts.model_dump(), "nprobe": 3})


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_only_ivf_kinds_are_trained(kind):
    assert not Shape(kind=kind, dim=8, links=16).trained
    assert Shape(kind="ivf_flat", dim=8, lists=2).trained
