import pytest

from mrcg.index import faiss_backend


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # Small work is not done sooner by several, and on a busy machine they wait for each other.
    faiss_backend.use_threads(1)
