"""``build``: validates the arguments of the application and binds its deployments."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from mrcg.config.loading import load_config
from mrcg.config.service import Autoscale
from mrcg.execution import ray_environment
from mrcg.frozen import Frozen
from mrcg.releases.release import read_release
from mrcg.storage.store import Store
from mrcg_serve.gateway import Gateway
from mrcg_serve.http.application import api
from mrcg_serve.problem_details import RETRY_AFTER_S
from mrcg_serve.replicas import EmbedderReplica, Pin, RerankerReplica, SearcherReplica

APP_NAME = "mrcg"
#: JSON lines. The gateway logs each search once, so Serve's access log, one line per call, is off.
LOGGING = LoggingConfig(encoding="JSON", log_level="WARNING", enable_access_log=False)


class ServeArgs(Frozen):
    """Arguments of the application: ``serve run mrcg_serve.app:build store=URL``."""

    store: str
    recipe: str | None = None
    settings: list[str] = Field(default_factory=list, description="settings to override, each as a.b=value")
    release: int | None = Field(
        None, description="release to serve; without it the service follows the current release"
    )


def build(args: ServeArgs | dict[str, Any]) -> Application:
    """Return the application for arguments from a program or from a Serve config file.

    Deploying again with another ``release`` changes the release without a restart.

    Raises:
        SettingsError: unknown recipe or setting.
        NotFoundError: the store has no release, or not the given one.
    """
    args = ServeArgs.model_validate(args)
    settings = load_config(args.recipe, args.settings).serve
    store = Store(args.store)
    read_release(store, args.release)
    pin = Pin(release=args.release).model_dump()

    def deployment(cls: type, name: str, scale: Autoscale, *collaborators: object) -> Application:
        options = _options(scale, ray_environment.COMPUTE_ENV if scale is settings.embedder else {})
        deployed = serve.deployment(name=name, user_config=pin, **options)(cls)
        bound: Application = deployed.bind(store.url, settings, *collaborators)
        return bound

    parts = range(settings.searcher_parts)
    stages = (
        deployment(EmbedderReplica, "Embedder", settings.embedder),
        [deployment(SearcherReplica, f"Searcher{part or ''}", settings.searcher, part) for part in parts],
        deployment(RerankerReplica, "Reranker", settings.reranker),
    )
    return deployment(serve.ingress(api)(Gateway), "Gateway", settings.gateway, stages)


def _options(scale: Autoscale, env: dict[str, str]) -> dict[str, Any]:
    return {
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "initial_replicas": max(1, scale.min_replicas),
            "max_replicas": max(scale.max_replicas, scale.min_replicas),
            "target_ongoing_requests": scale.target_ongoing_requests,
            "upscale_delay_s": scale.upscale_delay_s,
            "downscale_delay_s": scale.downscale_delay_s,
        },
        "max_ongoing_requests": scale.max_ongoing_requests,
        "max_queued_requests": scale.max_queued_requests,
        "backpressure_config": BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        "logging_config": LOGGING,
        "ray_actor_options": {
            "num_cpus": scale.cpus,
            "num_gpus": scale.gpus,
            "runtime_env": {"env_vars": env},
        },
    }
