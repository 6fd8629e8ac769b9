"""The service keeps to its own OpenAPI document, whatever it is sent."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from tests.making import make_release
from tests.serving import serving

from mrcg.storage.store import Store

pytestmark = pytest.mark.slow

OPERATIONS, EXAMPLES = 12, 25


@pytest.fixture(scope="module")
def url(scans, tmp_path_factory):
    """A service of its own: what it is sent promotes and rolls back."""
    store = Store(str(tmp_path_factory.mktemp("openapi") / "store"))
    make_release(store, scans)
    with serving(store.url) as url:
        yield url


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_answer_is_undocumented_or_a_failure_of_ours(url, mode):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        def keeps_to_it(case):
            # Whether an image can be used is not in its schema; in a form everything is a string.
            form = [negative_data_rejection] if case.media_type == "multipart/form-data" else []
            case.call_and_validate(excluded_checks=[positive_data_acceptance, *form])

        if mode == GenerationMode.POSITIVE or operation.label.startswith("POST") or operation.query:
            keeps_to_it()  # the others take nothing that could be wrong


def test_the_document_describes_every_route_with_an_example(url):
    document = httpx.get(f"{url}/openapi.json").json()
    assert {path for path in document["paths"] if path.startswith("/v1/search")} == {"/v1/search", "/v1/search:batch"}
    json_body = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]
    assert json_body["schema"]["examples"]
