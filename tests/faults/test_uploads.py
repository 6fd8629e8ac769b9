"""Thousands of damaged uploads: each is refused with a reason or answered, and the service keeps its memory."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from tests.faults.test_fuzz import dicom, jpeg, matlab, mutants, nifti, png

pytestmark = pytest.mark.slow

CLIENTS, MOST_GROWTH = 8, 60e6


def memory(service):
    """Bytes that the replicas hold for themselves."""
    return sum(
        one.memory_full_info().uss
        for one in service.children(recursive=True)
        if "ServeReplica" in " ".join(one.cmdline())
    )


# In the first requests caches fill.
@pytest.mark.parametrize(("requests", "warm"), [(800, 300), pytest.param(5000, 1000, marks=pytest.mark.platform)])
def test_thousands_of_uploads_leave_the_service_as_it_was(small_service, scans, tmp_path, requests, warm):
    url, pid = small_service
    service = psutil.Process(pid)
    damaged = [data for kind in (nifti, png, jpeg, matlab) for data in mutants(kind(tmp_path))]
    # Fewer of those whose decoders take the time that they are given.
    damaged += itertools.islice(mutants(dicom(tmp_path)), 100)
    good = [one.read_bytes() for one in sorted(scans.rglob("*.png"))[:50]]

    def upload(number):
        # One of ten is a scan: what is answered has to be let go of, too.
        content = good[number // 10 % len(good)] if number % 10 == 0 else damaged[number % len(damaged)]
        return http.post("/v1/search", files={"image": content}, data={"k": 3})

    with httpx.Client(base_url=url, timeout=120) as http, ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(upload, range(warm)))
        before = memory(service)
        answers += pool.map(upload, range(warm, requests))
        grown = memory(service) - before
        assert http.get("/readyz").is_success
    for answer in answers:
        assert answer.status_code in {200, 413, 422, 503}, answer.text
        assert answer.status_code == 200 or answer.json()["code"]
    assert sum(answer.status_code == 503 for answer in answers) < requests / 100
    assert sum(answer.status_code == 422 for answer in answers) > requests / 4
    assert grown < MOST_GROWTH, f"{grown / 1e6:.0f} MB more after {requests - warm} requests"
