"""The platform once, top to bottom: phantoms, pipeline, release, service, one search.

``make demo`` runs this. Every step is a command that you can type yourself; it is printed before it
runs. Nothing here knows more than the command line does.
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


def show(*words: str) -> list[str]:
    """The command of these words, printed as one would type it."""
    console.print(f"\n[bold]$ mrcg {shlex.join(words)}[/bold]", highlight=False, soft_wrap=True)
    return [*MRCG, *words]


def run(*words: str) -> None:
    """Run a command; its failure ends the demo."""
    if code := subprocess.run(show(*words), check=False).returncode:
        sys.exit(code)


def wait_ready(service: subprocess.Popen[str]) -> str:
    """URL of the service, as its first line of JSON states it."""
    assert service.stdout is not None
    for line in service.stdout:
        if line.startswith("{"):
            return str(json.loads(line)["url"])
    sys.exit(f"the service ended with {service.wait()}")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-serve", action="store_true", help="stop the service after the search")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    start = time.monotonic()
    # Held-out patients come from another seed: nobody has seen them.
    run("sample", str(SCANS), "--images", str(IMAGES), "--seed", str(SEED))
    run("sample", str(HELD_OUT), "--images", "4", "--seed", str(HELD_OUT_SEED))
    run("run", "--source", str(SCANS), "--store", str(STORE), "--recipe", "demo")
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
    """Print the table of the newest report and say where its picture is."""
    report = max(STORE.glob("reports/*/*/tables.md"), key=lambda path: path.stat().st_mtime)
    console.print(f"\n{report.read_text()}", highlight=False, markup=False)
    console.print(f"picture of the search: {PICTURE}", highlight=False)
    console.print(f"picture of the report: {report.with_name('retrieval.png')}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
