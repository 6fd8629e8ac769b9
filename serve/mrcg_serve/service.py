"""A running service: Ray, Serve and the application, started and stopped together."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from dataclasses import dataclass
from types import FrameType, TracebackType

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import TracingConfig

from mrcg.errors import ServiceError, UsageError
from mrcg.execution import ray_environment
from mrcg_serve.app import APP_NAME, LOGGING
from mrcg_serve.rpc.servicer import SERVICER

READY_SECONDS = 180.0


@dataclass(frozen=True)
class ServiceOptions:
    """What a service has beside HTTP.

    Attributes:
        grpc_port: of Serve's gRPC proxy, which listens on all addresses; None starts none.
        spans: ``module:name`` of the function that gives OpenTelemetry's span processors; None traces nothing.
    """

    grpc_port: int | None = None
    spans: str | None = None

    def grpc(self) -> gRPCOptions | None:
        """For Serve."""
        if self.grpc_port is None:
            return None
        return gRPCOptions(port=self.grpc_port, grpc_servicer_functions=[SERVICER], enable_reflection=False)

    def tracing(self) -> TracingConfig | None:
        """For Serve, which carries W3C trace context through all stages."""
        if self.spans is None:
            return None
        return TracingConfig(enabled=True, exporter_import_path=self.spans, sampling_ratio=1.0)


class Service:
    """The application behind HTTP while its block runs; leaving it drains the replicas.

    Raises:
        ServiceError: it did not become ready in time.
        UsageError: the cluster cannot be reached.
    """

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        ray_address: str | None,
        ways: ServiceOptions = ServiceOptions(),
    ) -> None:
        self._application = application
        self._ways = ways
        self._host = host
        self._port = port
        self._ray_address = ray_address
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.release = 0

    def __enter__(self) -> Service:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            ray.init(**ray_environment.init_options(self._ray_address))
        except (ConnectionError, RayError, ValueError) as error:
            raise UsageError(f"--ray {self._ray_address}: {' '.join(str(error).split())[:200]}") from error
        # Only now: Ray puts a handler of its own in place. Both signals end the block, which drains.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=self._host, port=self._port),
                grpc_options=self._ways.grpc(),
                logging_config=LOGGING,
                tracing_config=self._ways.tracing(),
            )
            serve.run(self._application, name=APP_NAME, route_prefix="/")
            self.release = self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        # Deleting the application lets replicas finish what they have begun; shutting down would not.
        with contextlib.suppress(RayServeException):  # Serve had not started yet
            serve.delete(APP_NAME)
        if self._ray_address is None:
            serve.shutdown()  # on a given cluster there may be others' applications
        ray.shutdown()

    def _wait_ready(self) -> int:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=5.0)
                if answer.is_success:
                    return int(answer.json()["release"])
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.2)
        raise ServiceError(f"the service on {self.url} did not become ready in {READY_SECONDS:.0f} s: see Ray's logs")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
