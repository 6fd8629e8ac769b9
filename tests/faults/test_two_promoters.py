"""Two `mrcg releases promote` at once, of different reports: one wins, the other is told."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.factories import MRCG, publish, tiny_config
from tests.faults.killing import copy_of

from mrcg.corpus.sources import open_source, survey
from mrcg.pipeline.plan import plan
from mrcg.releases.release import read_release, release_numbers, rollback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MEET = str(Path(__file__).with_name("meet.py"))
ROUNDS = 4


@pytest.fixture
def store(library_store, tmp_path):
    return copy_of(library_store, tmp_path / "store")


@pytest.fixture
def reports(store, scans):
    """Two more reports on the same models."""
    data = {"report.json": store.artefact("reports", read_release(store).report).read_bytes("report.json")}
    source = survey(open_source(str(scans)))
    steps = [plan(tiny_config(f"evaluate.picture_queries={n}"), source, "none")[-1] for n in (3, 4)]
    return [publish(store, step, data).version for step in steps]


def started(words):
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes):
    """Exit code, output and errors of each."""
    return [(process.returncode, *said) for process in processes for said in [process.communicate(timeout=120)]]


def promotion(store, report):
    return ["releases", "promote", report, "--store", store.url, "--no-gate", "--json"]


def history(store):
    """Reports of all releases; no number is skipped and none has two files."""
    numbers = release_numbers(store)
    assert numbers == list(range(1, len(numbers) + 1))
    assert [name for name in store.listdir("releases/history") if not name.startswith(".")] == sorted(
        f"{number}.json" for number in numbers
    )
    return [read_release(store, number).report for number in numbers]


def test_of_two_that_decided_at_once_one_wins_and_the_other_is_told(store, reports, tmp_path):
    winners = set()
    for number in range(ROUNDS):
        (meeting := tmp_path / str(number)).mkdir()
        before = history(store)
        words = [sys.executable, MEET, str(meeting), "2"]
        first, second = ended([started([*words, *promotion(store, report)]) for report in reports])
        assert sorted((first[0], second[0])) == [0, 1], (first, second)
        winner, loser = (0, second) if first[0] == 0 else (1, first)
        assert json.loads((first, second)[winner][1])["promoted"]
        told = [line for line in loser[2].splitlines() if line.strip()]
        assert len(told) == 1, loser
        assert f"release {len(before) + 1} has just been made by another process" in told[0]
        assert history(store) == [*before, reports[winner]]
        winners.add(winner)
        rollback(store, 1)


def test_without_an_appointment_every_promotion_is_a_release_or_is_told(store, reports):
    rng = random.Random(3)
    for _ in range(ROUNDS):
        before = history(store)
        first = started([MRCG, *promotion(store, reports[0])])
        time.sleep(rng.uniform(0, 0.05))
        results = ended([first, started([MRCG, *promotion(store, reports[1])])])
        assert all(code in (0, 1) for code, _, _ in results), results
        won = sum(code == 0 for code, _, _ in results)
        after = history(store)
        assert won >= 1, results
        assert len(after) == len(before) + won
        assert all("has just been made by another process" in err for code, _, err in results if code == 1), results
        rollback(store, 1)
