"""The map of embeddings is the same however many threads a machine has."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from mrcg.evaluation.projection import MIN_POINTS, project_to_plane

CODE = """
import hashlib, numpy as np
from mrcg.evaluation.projection import project_to_plane
vectors = np.random.default_rng(1).normal(size=(120, 64)).astype(np.float16)
print(hashlib.sha256(project_to_plane(vectors).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_points_for_any_number_of_threads():
    found = set()
    for threads in ("1", "4"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        done = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True, timeout=200
        )
        found.add(done.stdout.strip())
    vectors = np.random.default_rng(1).normal(size=(120, 64)).astype(np.float16)
    assert found == {hashlib.sha256(project_to_plane(vectors).tobytes()).hexdigest()}


def test_too_few_points_have_no_map():
    assert project_to_plane(np.zeros((MIN_POINTS - 1, 4), np.float16)) is None
