"""A running service: starts and stops Ray, Serve and the application together."""

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
    """Options of a service beyond HTTP.

    Attributes:
        grpc_port: port of Serve's gRPC proxy, which listens on all addresses; None starts no proxy.
        spans: ``module:name`` of the function that returns OpenTelemetry span processors; None disables tracing.
    """

    grpc_port: int | None = None
    spans: str | None = None

    def grpc(self) -> gRPCOptions | None:
        """Return Serve's gRPC options, or None without a port."""
        if self.grpc_port is None:
            return None
        return gRPCOptions(port=self.grpc_port, grpc_servicer_functions=[SERVICER], enable_reflection=False)

    def tracing(self) -> TracingConfig | None:
        """Return Serve's tracing settings, or None. Serve passes W3C trace context through all stages."""
        if self.spans is None:
            return None
        return TracingConfig(enabled=True, exporter_import_path=self.spans, sampling_ratio=1.0)


class Service:
    """Context manager that serves the application over HTTP; on exit the replicas finish their running requests.

    Args:
        application: from ``mrcg_serve.app.build``.
        host: address to listen on.
        port: to listen on.
        ray_address: of a Ray cluster; None starts Ray on this machine.
        options: gRPC and tracing.

    Raises:
        ServiceError: on enter, the service did not become ready in time.
        UsageError: on enter, the Ray cluster cannot be reached.
    """

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        ray_address: str | None,
        options: ServiceOptions = ServiceOptions(),
    ) -> None:
        self._application = application
        self._options = options
        self._host = host
        self._port = port
        self._ray_address = ray_address
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.release = 0

    def __enter__(self) -> Service:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            ray_environment.connect(ray, self._ray_address)
        except (ConnectionError, RayError, ValueError) as error:
            raise UsageError(f"--ray {self._ray_address}: {' '.join(str(error).split())[:200]}") from error
        # After ray.init, which installs its own handlers. Both signals end the block, so the replicas drain.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=self._host, port=self._port),
                grpc_options=self._options.grpc(),
                logging_config=LOGGING,
                tracing_config=self._options.tracing(),
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
        # Deleting the application lets replicas finish their running requests; serve.shutdown alone would not.
        with contextlib.suppress(RayServeException):  # Serve had not started yet
            serve.delete(APP_NAME)
        if self._ray_address is None:
            serve.shutdown()  # a cluster that was already running may serve other applications
        ray.shutdown()

    def _wait_ready(self) -> int:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=5.0, trust_env=False)
                if answer.is_success:
                    return int(answer.json()["release"])
            except httpx.HTTPError:
                pass  # not listening yet
            time.sleep(0.2)
        raise ServiceError(
            f"the service on {self.url} did not become ready in {READY_SECONDS:.0f} s: see Ray's logs for the reason"
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
