"""The service follows its own OpenAPI document, for valid and invalid requests."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

pytestmark = pytest.mark.slow

OPERATIONS, EXAMPLES = 12, 25


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_response_is_documented_and_none_is_a_server_error(small_service, mode):
    url, _ = small_service
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        def follows_the_document(case):
            # The schema cannot say whether an image is usable, and in a form every value is a string.
            form = [negative_data_rejection] if case.media_type == "multipart/form-data" else []
            case.call_and_validate(excluded_checks=[positive_data_acceptance, *form])

        if mode == GenerationMode.POSITIVE or operation.label.startswith("POST") or operation.query:
            follows_the_document()  # the other operations have no input that could be invalid


def test_the_document_describes_every_route_with_an_example(small_service):
    url, _ = small_service
    document = httpx.get(f"{url}/openapi.json").json()
    assert {path for path in document["paths"] if path.startswith("/v1/search")} == {"/v1/search", "/v1/search:batch"}
    json_body = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]
    assert json_body["schema"]["examples"]
