"""Tests that need a program which is no Python package."""

from __future__ import annotations

import shutil

import pytest


def needs(command: str) -> pytest.MarkDecorator:
    """Skip a test where a program is missing, and name it."""
    return pytest.mark.skipif(shutil.which(command) is None, reason=f"{command} is missing: `make tools` installs it")
