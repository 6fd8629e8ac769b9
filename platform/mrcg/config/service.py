"""Settings of the online service, a group of the tree in ``mrcg.config.settings`` (docs/serving.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrcg.config.base import Count, Positive, Settings


class Autoscale(Settings):
    """One Ray Serve deployment: replicas, batching and resources."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: Count = 2
    target_ongoing_requests: Positive = Field(
        1.0, description="target of ongoing calls per replica; one call carries all waiting requests"
    )
    upscale_delay_s: Positive = Field(30.0, description="seconds of higher load before a replica is added")
    downscale_delay_s: Positive = Field(600.0, description="seconds of lower load before a replica is removed")
    max_ongoing_requests: Count = 32
    max_queued_requests: int = Field(256, ge=-1)
    cpus: float = Field(0.2, ge=0.0, description="CPUs reserved per replica")
    gpus: float = Field(0.0, ge=0.0)
    threads: Count = Field(2, description="compute threads per replica")
    max_batch_size: Count = 16
    batch_wait_s: float = Field(
        0.0, ge=0.0, description="seconds a batch waits to fill up; 0 gives the lowest latency without load"
    )


class GatewayScale(Autoscale):
    """The gateway, which mostly waits for uploads and for the other stages."""

    max_replicas: Count = 1
    target_ongoing_requests: Positive = 32.0
    max_ongoing_requests: Count = 64


class LightScale(Autoscale):
    """A stage whose batches are too small to use several threads."""

    threads: Count = Field(1, description="compute threads per replica")


EngineName = Literal["torch", "openvino", "openvino-int8"]


class ServeSettings(Settings):
    """The online service (docs/serving.md)."""

    gateway: GatewayScale = GatewayScale()
    embedder: Autoscale = Autoscale()
    engine: EngineName = Field("torch", description="runtime of the encoder; OpenVINO runs on CPUs")
    searcher: LightScale = LightScale()
    searcher_parts: Count = Field(1, description="number of searcher deployments; each holds some of the shards")
    part_ms: Count = Field(
        2_000, description="milliseconds that one of several searchers may take; after that the answer omits it"
    )
    reranker: LightScale = LightScale()
    max_upload_bytes: Count = 50 * 2**20
    deadline_ms: Count = Field(30_000, description="milliseconds a request may take before it is cancelled")
    rerank_reserve_ms: int = Field(50, ge=0, description="with fewer milliseconds left than this, return the ANN order")
    follow_s: Positive = Field(2.0, description="seconds between checks for a new release")
    grace_s: Positive = Field(
        60.0, description="seconds an old release stays loaded after its last use; longer than deadline_ms"
    )
