"""Demo of the whole platform: phantoms, pipeline, release, service, one search.

``make demo`` runs it. Every step is an ``mrcg`` command that is printed before it runs, so you can type it yourself.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

HERE = Path("demo")
SCANS, HELD_OUT, STORE, PICTURE = HERE / "scans", HERE / "held-out", HERE / "store", HERE / "result.png"
IMAGES, SEED, HELD_OUT_SEED = 480, 1, 2
READY_SECONDS = 180
MRCG = [str(Path(sys.executable).parent / "mrcg")]

console = Console()


def show(*arguments: str) -> list[str]:
    """Print an ``mrcg`` command as one would type it, and return its command line."""
    console.print(f"\n[bold]$ mrcg {shlex.join(arguments)}[/bold]", highlight=False, soft_wrap=True)
    return [*MRCG, *arguments]


def run(*arguments: str) -> None:
    """Run an ``mrcg`` command; exit with its code if it fails."""
    if code := subprocess.run(show(*arguments), check=False).returncode:
        sys.exit(code)


def wait_ready(service: subprocess.Popen[str]) -> str:
    """Wait for the first JSON line of the service and return the URL in it."""
    assert service.stdout is not None
    for line in service.stdout:
        if line.startswith("{"):
            return str(json.loads(line)["url"])
    sys.exit(f"the service exited with code {service.wait()}")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-serve", action="store_true", help="stop the service after the search")
    parser.add_argument("--port", type=int, default=8000, help="port of the service")
    options = parser.parse_args()
    start = time.monotonic()
    # Held-out patients come from another seed, so they are not in the training data.
    run("sample", str(SCANS), "--images", str(IMAGES), "--seed", str(SEED))
    run("sample", str(HELD_OUT), "--images", "4", "--seed", str(HELD_OUT_SEED))
    # The manifest also says where each phantom's lesion is, so the report can grade how alike the hits are.
    run("run", "--source", str(SCANS / "manifest.csv"), "--store", str(STORE), "--recipe", "demo")
    run("releases", "list", "--store", str(STORE))
    service = subprocess.Popen(
        [*show("serve", "--store", str(STORE), "--recipe", "demo", "--port", str(options.port)), "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = wait_ready(service)
        console.print(f"serving on {url}, API at {url}/docs", highlight=False)
        scan = sorted(HELD_OUT.glob("*/*.png"))[0]
        run("query", str(scan), "--url", url, "--out", str(PICTURE))
        show_report()
        console.print(f"\ndemo done in {time.monotonic() - start:.0f} s", highlight=False)
        if not options.no_serve:
            console.print(f"the service stays up on {url}; Ctrl-C stops it", highlight=False)
            service.wait()
    except KeyboardInterrupt:
        pass  # the service got the same Ctrl-C and drains
    finally:
        if service.poll() is None:
            service.send_signal(signal.SIGTERM)
        service.wait()


def show_report() -> None:
    """Print the tables of the newest report and the paths of the pictures."""
    report = max(STORE.glob("reports/*/*/tables.md"), key=lambda path: path.stat().st_mtime)
    console.print(f"\n{report.read_text()}", highlight=False, markup=False)
    console.print(f"picture of the search: {PICTURE}", highlight=False)
    console.print(f"picture of the report: {report.with_name('retrieval.png')}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
