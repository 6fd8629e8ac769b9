"""``build``: validates its arguments and binds the four deployments. Nothing else happens here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from mrcg.config.loading import load_config
from mrcg.config.settings import Autoscale
from mrcg.execution import ray_environment
from mrcg.releases.release import read_release
from mrcg.storage.store import Store
from mrcg_serve.gateway import Gateway
from mrcg_serve.http.application import api
from mrcg_serve.problem_details import RETRY_AFTER_S
from mrcg_serve.replicas import EmbedderReplica, Pin, RerankerReplica, SearcherReplica

APP_NAME = "mrcg"
#: One JSON object a line; the gateway says once of each request what came of it, so Serve need not for each call.
LOGGING = LoggingConfig(encoding="JSON", log_level="WARNING", enable_access_log=False)


class ServeArgs(BaseModel):
    """Arguments of the application: ``serve run mrcg_serve.app:build store=URL``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    recipe: str | None = None
    settings: list[str] = Field(default_factory=list, description="overrides, a.b=value each")
    release: int | None = Field(None, description="the current one, whichever it is, where none is given")


def build(args: ServeArgs | dict[str, Any]) -> Application:
    """The service, from arguments as a program or a Serve config file has them.

    Another ``release`` in them is taken on without a restart.

    Raises:
        SettingsError: unknown recipe or setting.
        NotFoundError: the store has no (such) release.
    """
    args = ServeArgs.model_validate(args)
    settings = load_config(args.recipe, args.settings).serve
    store = Store(args.store)
    read_release(store, args.release)
    pin = Pin(release=args.release).model_dump()

    def deployment(cls: type, name: str, scale: Autoscale, *collaborators: object) -> Application:
        options = _options(scale, ray_environment.COMPUTE_ENV if scale is settings.embedder else {})
        made = serve.deployment(name=name, user_config=pin, **options)(cls)
        bound: Application = made.bind(store.url, settings, *collaborators)
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
