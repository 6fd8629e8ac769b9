"""Errors of the library come out of Ray as they were raised in a worker."""

import pytest
import ray
import ray.data
from tests.unit.test_errors import TREE, assert_same, raised

from mrcg.errors import MrcgError, from_row, to_row
from mrcg_jobs.ray_runtime import cluster
from mrcg_jobs.ray_runtime.executor import RayExecutor

# Ray runs in this process here, and warns of settings of its own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module", autouse=True)
def _ray():
    cluster.start(None)
    yield
    cluster.stop()


def test_every_class_comes_out_of_a_task():
    def work(row):
        raise from_row(row)

    for kind in TREE:
        error = raised(kind)
        with pytest.raises(MrcgError) as caught:
            list(RayExecutor().map(work, [to_row(error)]))
        assert_same(error, caught.value)


def test_every_class_comes_out_of_ray_data():
    def work(row):
        try:
            raise from_row({"error": row["code"], "message": row["text"]})
        except MrcgError as error:
            return to_row(error)

    for kind in TREE:
        error = raised(kind)
        rows = [{"code": error.code, "text": str(error)}]
        with pytest.raises(MrcgError) as caught:
            list(cluster.each_row(ray.data.from_items(rows).map(work)))
        assert_same(error, caught.value)
