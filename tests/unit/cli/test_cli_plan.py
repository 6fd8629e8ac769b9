"""``mrcg plan``. (What it plans is tested in ``unit/index_build/test_sizing.py``.)"""

import json

import pytest
from tests.unit.cli.test_main import run

from mrcg.cli.store import parse_size
from mrcg.errors import UsageError


def test_a_plan_says_what_it_costs_and_why(capsys):
    code, out, _ = run(capsys, "plan", "--images", "50_000_000", "--memory-per-node", "64GB")
    assert code == 0
    words = " ".join(out.split())
    assert "50,000,000 images, recall@50 0.95" in words
    assert all(word in out for word in ("index", "shards", "nodes", "disk", "core hours", "one query", "why"))
    code, out, _ = run(capsys, "plan", "--images", "1000", "--kind", "hnsw", "--shards", "2", "--dim", "64", "--json")
    found = json.loads(out)
    assert (code, found["shape"]["kind"], found["shape"]["dim"], found["shards"]) == (0, "hnsw", 64, 2)
    assert {"nodes", "node_bytes", "build_bytes", "disk_bytes", "build_seconds", "query_seconds", "why"} <= set(found)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64GB", 64e9), ("64g", 64e9), ("1.5 TiB", 1.5 * 2**40), ("500_000", 5e5), (" 2 KiB ", 2048), ("7", 7), ("3B", 3)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1..5", "1e9", "64 GX", "64 G B", "٣"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="write a size such as 64GB, 1.5TiB or a number of bytes"):
        parse_size(text)
