"""Install what the tests use beyond Python packages. `make tools` and `make test` run it.

As root on Debian or Ubuntu, missing packages are installed with apt. Elsewhere the script names what is missing: the
tests that need it are skipped, with the name of the tool.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """A command, the apt package that brings it, and what uses it."""

    command: str
    package: str
    used_by: str


TOOLS = (Tool("chromium", "chromium", "tests that open pages in a browser"),)


def missing() -> list[Tool]:
    """Return the tools whose commands are not on the path."""
    return [tool for tool in TOOLS if shutil.which(tool.command) is None]


def install(tools: list[Tool]) -> None:
    """Install packages with apt; a failure is left to ``main``, which names what is still missing."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    packages = [tool.package for tool in tools]
    for words in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", *words], env=environment, stdout=subprocess.DEVNULL, check=False)


def main() -> None:
    """Install what is missing, where that is possible, and name the rest."""
    tools = missing()
    if tools and os.geteuid() == 0 and shutil.which("apt-get"):
        install(tools)
    for tool in missing():
        line = f"{tool.command} is missing: install the package {tool.package}, or {tool.used_by} are skipped\n"
        sys.stderr.write(line)


if __name__ == "__main__":
    main()
