import pickle
import re
from multiprocessing.connection import Pipe

import httpx
import pytest
from tests.conftest import REPOSITORY

from mrcg import errors
from mrcg.api import client as client_module
from mrcg.api.client import Client
from mrcg.api.requests import ImageIdQuery
from mrcg.execution.sandbox import without_cause
from mrcg_serve.problem_details import problem_of


def raised(kind):
    """An error of a class, as its callers make it."""
    text = "scans/1.png: the thing and the way out"
    return errors.ImageError("too_small", text) if kind is errors.ImageError else kind(text)


TREE = list(errors.error_classes())
every_class = pytest.mark.parametrize("error", list(map(raised, TREE)), ids=[kind.__name__ for kind in TREE])


def assert_same(error, other):
    assert type(other) is type(error)
    assert (str(other), other.code, other.exit_code) == (str(error), error.code, error.exit_code)
    assert getattr(other, "reason", None) == getattr(error, "reason", None)


def test_the_page_shows_every_error():
    assert len(TREE) > 15
    for kind in TREE:
        assert f" {kind.__name__} " in errors.__doc__


def test_no_other_page_defines_one():
    names = "|".join(kind.__name__ for kind in TREE)
    subclass = re.compile(rf"^class \w+\(({names})\b", re.M)
    for folder in ("platform", "jobs", "serve"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if path.name != "errors.py":
                assert subclass.findall(path.read_text("utf-8")) == [], path


def test_codes_are_unique_and_stable():
    assert len({kind.code for kind in TREE}) == len(TREE)
    # On the wire: clients, dashboards and old stores know these.
    stable = {
        errors.UsageError: "invalid_request", errors.FingerprintError: "other_encoder",
        errors.NotFoundError: "not_found", errors.ForbiddenError: "forbidden", errors.LostRaceError: "lost_race",
        errors.ReleaseError: "not_releasable", errors.StageUnavailableError: "unavailable",
    }  # fmt: skip
    assert {kind: kind.code for kind in stable} == stable
    assert errors.ImageError("truncated", "x").code == "image_truncated"


def test_usage_errors_exit_with_2_and_others_with_1():
    assert errors.SettingsError("x").exit_code == 2
    assert errors.SourceError("x").exit_code == 1


@every_class
def test_every_class_crosses_pickle(error):
    assert_same(error, pickle.loads(pickle.dumps(error)))


@every_class
def test_every_class_crosses_the_pipe_of_a_child_process(error):
    here, there = Pipe()
    try:
        raise error from ValueError("a header that must not leave the child")
    except errors.MrcgError as caught:
        there.send(without_cause(caught))
    assert_same(error, here.recv())


@every_class
def test_every_class_crosses_rows(error):
    assert_same(error, errors.from_row(errors.to_row(error)))


def test_rows_of_old_stores_name_the_class():
    error = errors.from_row({"error": "TrainingError", "message": "the loss is not a number"})
    assert_same(errors.TrainingError("the loss is not a number"), error)


def test_a_code_of_a_newer_version_keeps_its_text():
    error = errors.from_row({"error": "of_tomorrow", "message": "text"})
    assert (type(error), str(error)) == (errors.MrcgError, "text")


# Of the root only subclasses are raised: its code is that of an unexpected failure, which is the service's own.
@pytest.mark.parametrize("error", list(map(raised, TREE[1:])), ids=[kind.__name__ for kind in TREE[1:]])
def test_every_class_crosses_http(error, monkeypatch):
    problem = problem_of(error)
    answer = httpx.Response(
        problem.status, text=problem.model_dump_json(), headers={"content-type": "application/problem+json"}
    )
    transport = httpx.MockTransport(lambda request: answer)
    plain = httpx.Client
    monkeypatch.setattr(client_module.httpx, "Client", lambda **options: plain(transport=transport, **options))
    with Client("http://here", retries=0) as client, pytest.raises(errors.MrcgError) as caught:
        client.search(ImageIdQuery("a"))
    assert_same(error, caught.value)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(errors.EXTRAS, "no_such_module_here", "index")
    with pytest.raises(errors.MissingExtraError, match=r"no_such_module_here is not installed: install mrcg\[index\]"):
        errors.require("no_such_module_here.part")
    with pytest.raises(ModuleNotFoundError):
        errors.require("another_that_is_in_no_extra")
