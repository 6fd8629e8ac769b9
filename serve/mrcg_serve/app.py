"""``build``: validates its arguments and binds the four deployments. Nothing else happens here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from mrcg.config import Autoscale, load_config
from mrcg.release import read_release
from mrcg.store import Store
from mrcg_serve.api import api
from mrcg_serve.gateway import Gateway
from mrcg_serve.replicas import EmbedderReplica, RerankerReplica, SearcherReplica

APP_NAME = "mrcg"


class ServeArgs(BaseModel):
    """Arguments of the application: ``serve run mrcg_serve.app:build store=URL``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    recipe: str | None = None
    settings: list[str] = Field(default_factory=list, description="overrides, a.b=value each")
    release: int | None = Field(None, description="the current one where none is given")


def build(args: ServeArgs) -> Application:
    """The service of one release.

    Raises:
        SettingsError: unknown recipe or setting.
        NotFoundError: the store has no (such) release.
    """
    settings = load_config(args.recipe, args.settings).serve
    store = Store(args.store)
    release = read_release(store, args.release).number

    def stage(cls: type, name: str, scale: Autoscale) -> Application:
        bound: Application = serve.deployment(name=name, **_options(scale))(cls).bind(store.url, release, scale)
        return bound

    stages = (
        stage(EmbedderReplica, "Embedder", settings.embedder),
        stage(SearcherReplica, "Searcher", settings.searcher),
        stage(RerankerReplica, "Reranker", settings.reranker),
    )
    gateway = serve.ingress(api)(Gateway)
    return serve.deployment(name="Gateway", **_options(settings.gateway))(gateway).bind(
        store.url, release, settings, stages
    )


def _options(scale: Autoscale) -> dict[str, Any]:
    return {
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "initial_replicas": max(1, scale.min_replicas),
            "max_replicas": max(scale.max_replicas, scale.min_replicas),
            "target_ongoing_requests": scale.target_ongoing_requests,
        },
        "max_ongoing_requests": scale.max_ongoing_requests,
        "max_queued_requests": scale.max_queued_requests,
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
    }
