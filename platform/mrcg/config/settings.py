"""One frozen tree of settings, read from a recipe and overridden key by key (DESIGN §1, §3).

A recipe is a YAML file that names only what differs from the defaults below; the defaults are the
paper's settings. Unknown keys are refused and the nearest known key is named.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every node of the tree: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReadSettings(Settings):
    """Turning a file into slices (DESIGN §2): the same for a corpus and for a query."""

    max_file_bytes: Count = 256 * 2**20
    max_pixels: int = Field(64_000_000, ge=1, le=89_000_000, description="more pixels are quarantined unread")
    max_voxels: Count = Field(200_000_000, description="of a volume; more are quarantined unread")
    max_frames: Count = Field(4096, description="frames of one DICOM file")
    min_side: Count = Field(16, description="pixels; smaller images are quarantined")
    max_side: Count = Field(512, description="pixels; larger images are shrunk to this longest side")
    window: Literal["header", "percentiles"] = Field(
        "header", description="grey levels of DICOM: by the header's VOI window where it has one, or by percentiles"
    )
    volume_planes: tuple[Literal["axial", "coronal", "sagittal"], ...] = Field(("axial",), min_length=1)
    volume_step: Count = Field(1, description="NIfTI: take every k-th slice of a plane")
    volume_slices: int = Field(16, ge=0, description="NIfTI: of those the n most informative; 0 takes all")
    allow_burned_in: bool = Field(False, description="take DICOM whose header says that text is burned into the pixels")
    allow_secondary_capture: bool = Field(False, description="take DICOM screen shots and scans of film")


class IngestSettings(ReadSettings):
    """Reading, checking and grouping a source of scans (DESIGN §2)."""

    seconds_per_file: Positive = Field(60.0, description="a file that takes longer is quarantined")
    reader_bytes: int = Field(2**30, ge=2**28, description="memory of the process that decodes files")
    classes: tuple[str, ...] | None = Field(
        None, description="folder names that are labels; none given: all, or with a pseudonym key none"
    )
    tenant: str | None = Field(None, description="who owns all scans of the source")
    site: str | None = Field(None, description="site of all scans that a manifest does not give one")
    near_duplicate_bits: int = Field(12, ge=0, le=64, description="distance of two 256-bit difference hashes")
    file_bytes: int = Field(192 * 2**20, ge=2**16, le=2**30, description="size that a Parquet file of pixels aims at")
    images_per_row_group: Count = Field(8, description="read together where one image is wanted")


class SplitSettings(Settings):
    """Who is gallery and who is query (DESIGN §3, protocols)."""

    protocol: Literal["paper", "dedup", "given", "folds"] = "paper"
    train_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.1, description="of the training groups")
    held_out_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="of the training groups: unseen by the encoder, for the reranker to learn from"
    )
    test_fold: int = Field(0, ge=0, description="protocol folds: the fold that is the test part")


class EncoderSettings(Settings):
    """The triplet CNN, or the Siamese one it is compared with (paper §III, DESIGN §3)."""

    backbone: str = Field("vgg16", description="name of a torchvision classification model")
    weights: str = Field("imagenet", description="imagenet, none, a .safetensors file or a URL of one")
    head: Literal["paper", "pooled"] = "paper"
    embedding_dim: Count = 1000
    input_size: int = Field(224, ge=32)
    freeze: Literal["convolutions", "none"] | Annotated[int, Field(ge=0)] = Field(
        "convolutions", description="what stays as it is: the whole trunk, nothing, or the first so many of its modules"
    )
    cache_trunk: bool = Field(True, description="run a frozen trunk once and train on what it gave")
    cached_views: Count = Field(1, description="frozen trunk and augment: augmented views of each image that are kept")
    loss: Literal["triplet", "contrastive"] = "triplet"
    mining: Literal["explicit", "batch_all", "semi_hard", "hard"] = "explicit"
    gather: bool = Field(False, description="mine among the embeddings of all workers, not only the own ones")
    margin: Positive = Field(50.0, description="on squared L2")
    divide_by_margin: bool = Field(True, description="bring the metric term to the size of the cross-entropy")
    classification_weight: float = Field(1.0, ge=0.0, description="λ of the joint loss")
    sampler: Literal["shuffled", "class_balanced"] = "shuffled"
    images_per_class: int = Field(8, ge=2, description="class_balanced: images of each class in a batch")
    learning_rate: Positive = 1e-4
    weight_decay: float = Field(0.0, ge=0.0, description="decoupled, as in AdamW")
    schedule: Literal["constant", "cosine"] = "constant"
    batch_size: int = Field(32, ge=2)
    epochs: int = Field(100, ge=0, description="0 keeps the initial weights")
    patience: int = Field(0, ge=0, description="epochs without a better validation MAP before stopping; 0 never stops")
    keep: Literal["best", "last"] = Field("best", description="epoch that becomes the encoder, by validation MAP")
    snapshots: int = Field(0, ge=0, description="weights of the last so many epochs are kept beside the best")
    augment: bool = False
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.5, description="of the paper's head")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the convolutions in training and embedding")
    channels_last: bool = Field(False, description="memory format of images; faster on most CPUs and GPUs")

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.patience and self.keep == "last":
            raise ValueError("encoder.patience waits for a better validation MAP: set encoder.keep=best with it")
        if self.patience and self.snapshots:
            raise ValueError(
                "encoder.snapshots wants the last epochs, which encoder.patience may cut: set one of them to 0"
            )
        if self.mining == "explicit" and (self.sampler != "shuffled" or self.gather):
            raise ValueError("encoder.sampler and encoder.gather are for mined triplets: set encoder.mining=batch_all")
        if self.augment and self.freeze == "convolutions" and self.cache_trunk and self.cached_views == 1:
            raise ValueError(
                "encoder.augment with a cached trunk would learn from one altered view of each image: "
                "set encoder.cached_views above 1, or encoder.cache_trunk=false"
            )
        return self


class EmbedSettings(Settings):
    """Embedding the corpus."""

    batch_size: Count = 32


class IndexSettings(Settings):
    """The sharded FAISS index; what is 0 or auto the planner chooses (`mrcg plan`)."""

    kind: Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_sq", "opq_ivf_pq"] = "auto"
    shards: int = Field(0, ge=0)
    node_bytes: int = Field(16 * 2**30, ge=2**28, description="memory of a machine that holds shards")
    part_bytes: int = Field(
        8 * 2**30, ge=2**20, description="index that one task may hold: a larger shard is filled in parts"
    )
    effort: int = Field(0, ge=0, description="cells (IVF) or breadth (HNSW) that a search begins with")
    min_recall: Fraction = Field(0.95, description="recall@50 against exact search; effort is raised until it is there")
    recall_sample: Count = Field(256, description="queries that recall is measured with")
    compact_above: Fraction = Field(0.2, description="part of a part's rows that may be gone before it is filled anew")


class GraphSettings(Settings):
    """The query graph (DESIGN §3)."""

    neighbours: int = Field(50, ge=2, le=1024)


class RerankerSettings(Settings):
    """The GNN with skip connections, DropEdge and focal loss, or a baseline in its place (DESIGN §3)."""

    model: Literal["mrcg", "chebnet", "gcn", "graphsage", "gat"] = "mrcg"
    graphs: Literal["train", "held_out", "cross_fit"] = Field(
        "train", description="whose graphs are learned from: scans the encoder saw, or scans it did not see"
    )
    folds: int = Field(2, ge=2, description="cross_fit: encoders that each leave one part of the scans out")
    features: tuple[Literal["difference", "magnitude", "product", "distance", "rank"], ...] = Field(
        ("difference",), min_length=1, description="of a node: q - g, |q - g|, q * g, the distance, the ANN rank"
    )
    scale: bool = Field(False, description="learn a scale of each feature, from its spread among the first graphs")
    hidden: Count = 256
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    drop_edge: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    loss: Literal["focal", "listwise"] = "focal"
    focal_alpha: Fraction = 0.25
    focal_gamma: float = Field(2.0, ge=0.0)
    learning_rate: Positive = 5e-4
    weight_decay_first: float = Field(0.0, ge=0.0, description="L2 on the first layer")
    batch_size: Count = 64
    epochs: int = Field(100, ge=0)
    keep: Literal["best", "last"] = Field("best", description="epoch that becomes the reranker, by validation MAP")
    snapshots: int = Field(0, ge=0, description="weights of the last so many epochs are kept beside the best")


class EvaluateSettings(Settings):
    """The report."""

    picture_queries: int = Field(6, ge=1, le=32, description="rows of the retrieval picture")
    map_images: int = Field(2000, ge=1, description="images of the embedding map at most")
    bootstrap: int = Field(2000, ge=100, description="resamples of the queries' groups for each interval")
    ood_quantile: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.99, description="of validation queries' distance to the gallery: farther is out of distribution"
    )


class ReleaseSettings(Settings):
    """The gate of a promotion."""

    max_map_drop: Fraction = Field(0.01, description="reranked MAP may fall by this much below the current release")
    max_recall_drop: Fraction = Field(0.02, description="recall@50 of the index may fall by this much")


class Autoscale(Settings):
    """One Serve deployment: replicas, batching and its share of a machine."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: Count = 2
    target_ongoing_requests: Positive = Field(
        1.0, description="calls a replica has before another is started; each call brings all that wait"
    )
    upscale_delay_s: Positive = Field(30.0, description="how long there is more to do before a replica is started")
    downscale_delay_s: Positive = Field(600.0, description="how long there is less to do before one is stopped")
    max_ongoing_requests: Count = 32
    max_queued_requests: int = Field(256, ge=-1)
    cpus: float = Field(0.2, ge=0.0, description="CPUs a replica asks for")
    gpus: float = Field(0.0, ge=0.0)
    threads: Count = Field(2, description="compute threads of a replica")
    max_batch_size: Count = 16
    batch_wait_s: float = Field(0.0, ge=0.0, description="how long a batch waits to fill; 0 is right when idle")


class GatewayScale(Autoscale):
    """The gateway only waits: for uploads, and for the stages."""

    max_replicas: Count = 1
    target_ongoing_requests: Positive = 32.0
    max_ongoing_requests: Count = 64


class LightScale(Autoscale):
    """A stage whose batches are too small to be shared out."""

    threads: Count = Field(1, description="compute threads of a replica")


EngineName = Literal["torch", "openvino", "openvino-int8"]


class ServeSettings(Settings):
    """The online chain (DESIGN §4)."""

    gateway: GatewayScale = GatewayScale()
    embedder: Autoscale = Autoscale()
    engine: EngineName = Field("torch", description="what computes the encoder; OpenVINO is for CPUs")
    searcher: LightScale = LightScale()
    searcher_parts: Count = Field(1, description="deployments of searchers, each with a part of the shards")
    part_ms: Count = Field(2_000, description="time of one of several parts, after which it is answered without it")
    reranker: LightScale = LightScale()
    max_upload_bytes: Count = 50 * 2**20
    deadline_ms: Count = Field(30_000, description="time a request may take before it is given up")
    rerank_reserve_ms: int = Field(50, ge=0, description="with less than this left the ANN order is returned")
    follow_s: Positive = Field(2.0, description="how often replicas and gateways look for a new release")
    grace_s: Positive = Field(
        60.0, description="how long a release stays after it was asked for last; above deadline_ms"
    )


class CheckSettings(Settings):
    """When a job gives up. Not part of any version."""

    max_bad_fraction: Fraction = Field(0.05, description="of the source's files in quarantine: more fail the ingestion")


class ComputeSettings(Settings):
    """Where and how wide the jobs run. Not part of any version, though other workers train slightly other weights."""

    encoder_workers: Count = 1
    encoder_workers_min: int = Field(0, ge=0, description="go on with so many where nodes are lost; 0 waits for all")
    reranker_workers: Count = 1
    embed_actors: Count = 1
    index_threads: int = Field(
        0,
        ge=0,
        description="of one task that fills a part; 0 takes all cores, and one for HNSW: more, and bytes differ",
    )
    use_gpu: bool = False
    cpus_per_trainer: float = Field(0.0, ge=0.0, description="0: all CPUs of the cluster shared out among the workers")
    max_failures: int = Field(2, ge=0, description="times a training worker may die before the run fails")

    @model_validator(mode="after")
    def _fewest_are_no_more_than_all(self) -> Self:
        if self.encoder_workers_min > self.encoder_workers:
            raise ValueError("compute.encoder_workers_min is above compute.encoder_workers: lower it")
        return self


class Config(Settings):
    """All settings of a pipeline and its service."""

    seed: int = Field(1, ge=0)
    ingest: IngestSettings = IngestSettings()
    split: SplitSettings = SplitSettings()
    encoder: EncoderSettings = EncoderSettings()
    embed: EmbedSettings = EmbedSettings()
    index: IndexSettings = IndexSettings()
    graph: GraphSettings = GraphSettings()
    reranker: RerankerSettings = RerankerSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    release: ReleaseSettings = ReleaseSettings()
    serve: ServeSettings = ServeSettings()
    checks: CheckSettings = CheckSettings()
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="after")
    def _held_out_is_there(self) -> Self:
        if self.reranker.graphs == "held_out" and not self.split.held_out_fraction:
            raise ValueError("reranker.graphs = held_out needs scans to hold out: set split.held_out_fraction above 0")
        return self
