"""The service keeps to its own OpenAPI document, whatever it is sent."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def document(service):
    return schemathesis.openapi.from_url(f"{service}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_answer_is_undocumented_or_a_failure_of_ours(case):
    case.call_and_validate()


def test_the_document_describes_every_route_with_an_example(service):
    document = httpx.get(f"{service}/openapi.json").json()
    assert {path for path in document["paths"] if path.startswith("/v1/search")} == {"/v1/search", "/v1/search:batch"}
    json_body = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]
    assert json_body["schema"]["examples"]
