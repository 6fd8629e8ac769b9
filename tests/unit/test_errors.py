import pickle

import pytest

from mrcg import errors


def test_the_page_shows_every_error():
    tree = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.MrcgError)]
    assert len(tree) > 10
    for error in tree:
        assert error.__name__ in errors.__doc__


def test_usage_errors_exit_with_2_and_others_with_1():
    assert errors.SettingsError("x").exit_code == 2
    assert errors.SourceError("x").exit_code == 1


def test_image_error_crosses_processes():
    error = pickle.loads(pickle.dumps(errors.ImageError("truncated", "ends early")))
    assert (error.reason, str(error)) == ("truncated", "ends early")


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(errors.EXTRAS, "no_such_module_here", "index")
    with pytest.raises(errors.MissingExtraError, match=r"no_such_module_here is not installed: install mrcg\[index\]"):
        errors.require("no_such_module_here.part")
    with pytest.raises(ModuleNotFoundError):
        errors.require("another_that_is_in_no_extra")
