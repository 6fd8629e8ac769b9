"""``import mrcg``: what it offers, and what it does not load."""

import subprocess
import sys

import pytest

import mrcg
from mrcg import errors

HEAVY = ("faiss", "matplotlib", "numpy", "pandas", "pyarrow", "ray", "scipy", "sklearn", "torch", "torchvision")


def loaded_by(code):
    """Which of the heavy packages a fresh process has loaded after some code."""
    probe = f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_public_name_is_there_and_no_other():
    for name in mrcg.__all__:
        assert getattr(mrcg, name) is not None
    assert dir(mrcg) == sorted(mrcg.__all__)
    with pytest.raises(AttributeError, match="module 'mrcg' has no attribute 'Shop'"):
        _ = mrcg.Shop


def test_it_offers_what_a_notebook_needs():
    names = {"Store", "LocalPipeline", "Client", "AsyncClient", "SearchParams", "Filters", "load_config"}
    assert names <= set(mrcg.__all__)
    assert {kind.__name__ for kind in errors.error_classes()} <= set(mrcg.__all__)


@pytest.mark.parametrize(
    "name", ["Client", "AsyncClient", "SearchParams", "Filters", "ImageIdQuery", "NotFoundError", "load_config"]
)
def test_a_client_loads_nothing_heavy(name):
    assert loaded_by(f"from mrcg import {name}") == []


def test_the_import_alone_loads_no_module_of_ours_but_the_version():
    code = "import sys, mrcg; print(*sorted(name for name in sys.modules if name.startswith('mrcg')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mrcg", "mrcg.version"]


def test_the_names_of_type_checkers_are_those_of_the_module():
    """``mrcg/__init__.py`` states each name three times: for ``__all__``, for type checkers and for loading."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(mrcg.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    stated = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(stated) | {"__version__"} == set(mrcg.__all__)
    for name, module in stated.items():
        assert getattr(sys.modules[module], name) is getattr(mrcg, name)


def test_the_help_loads_nothing_heavy():
    code = "import sys; sys.argv = ['mrcg', '--help']; from mrcg.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    assert loaded_by(f"{code}\nprint('#')")[-1] == "#"
