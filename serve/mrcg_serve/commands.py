"""The command ``mrcg serve``. Ray is imported only when the command runs."""

from __future__ import annotations

import socket
import threading
from typing import Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, RecipeOption, SetOption, StoreOption
from mrcg.errors import UsageError
from mrcg.execution import ray_environment


def serve(
    store: StoreOption,
    host: Annotated[str, typer.Option("--host", help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Address of a Ray cluster; without it, Ray is started on this machine.")
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port",
            min=1,
            max=65535,
            help="Also serve gRPC. It listens on all addresses; calls from other machines are refused.",
        ),
    ] = None,
    spans: Annotated[
        str | None,
        typer.Option("--spans", help="Trace requests: module:function that returns OpenTelemetry span processors."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the current release over HTTP until Ctrl-C or SIGTERM; running requests are finished first."""
    ray_environment.prepare_serving()
    from mrcg_serve.app import ServeArgs, build
    from mrcg_serve.auth import is_loopback
    from mrcg_serve.service import Service, ServiceOptions

    if not is_loopback(host):
        raise UsageError(
            f"--host {host}: without authentication only loopback is served; "
            "use 127.0.0.1 behind a proxy that authenticates callers"
        )
    _check_port(host, port)
    application = build(ServeArgs(store=store, recipe=recipe, settings=settings or []))
    try:
        with Service(application, host, port, ray, ServiceOptions(grpc_port, spans)) as service:
            if as_json:
                console.emit_json({"url": service.url, "release": service.release})
            else:
                console.say(
                    f"serving release {service.release} on {service.url} (API at {service.url}/docs); Ctrl-C stops it"
                )
            threading.Event().wait()
    except KeyboardInterrupt:
        console.err.print("stopped", highlight=False)


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"--port {port} on {host} cannot be used ({error.strerror}): choose another port"
            ) from error
