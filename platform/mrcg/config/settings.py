"""The frozen tree of settings, read from a recipe and overridden key by key.

A recipe is a YAML file that lists only the values that differ from the defaults below; the defaults are the
paper's settings. An unknown key is an error that names the nearest known key.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mrcg.config.base import Count, Fraction, Positive, Settings
from mrcg.config.not_scans import NOT_SCANS, PLACEHOLDERS
from mrcg.config.service import ServeSettings
from mrcg.text import normalised, normalised_or_none

#: Plane of a slice; slices of a volume are stacked along x, y and z respectively.
Plane = Literal["sagittal", "coronal", "axial"]


class ReadSettings(Settings):
    """How a file becomes slices; a corpus and a query use the same rules (docs/corpus.md#formats)."""

    max_file_bytes: Count = 256 * 2**20
    max_pixels: int = Field(
        64_000_000, ge=1, le=89_000_000, description="pixels per image; larger ones are quarantined without decoding"
    )
    max_voxels: Count = Field(
        200_000_000, description="voxels per volume; larger ones are quarantined without decoding"
    )
    max_frames: Count = Field(4096, description="frames per DICOM file; files with more are quarantined")
    min_side: Count = Field(16, description="shorter side in pixels; smaller images are quarantined")
    max_side: Count = Field(512, description="longer side in pixels; larger images are scaled down to it")
    window: Literal["header", "percentiles"] = Field(
        "header",
        description="DICOM grey levels: header uses its VOI window, if any, else percentiles; or always percentiles",
    )
    volume_planes: Literal["acquired"] | Annotated[tuple[Plane, ...], Field(min_length=1)] = Field(
        "acquired", description="NIfTI: planes that slices are cut along; acquired: the one that the volume was made in"
    )
    volume_step: Count = Field(1, description="NIfTI: use every k-th slice of a plane")
    volume_slices: int = Field(
        16, ge=0, description="NIfTI: keep the n of them with the most contrast per plane; 0 keeps all"
    )
    allow_burned_in: bool = Field(
        False, description="accept DICOM whose header says that text is burned into the pixels"
    )
    allow_secondary_capture: bool = Field(False, description="accept DICOM screen captures and film scans")


class IngestSettings(ReadSettings):
    """How a source of scans is read, checked and grouped (docs/corpus.md)."""

    seconds_per_file: Positive = Field(60.0, description="decoding time per file; slower files are quarantined")
    reader_bytes: int = Field(2**30, ge=2**28, description="memory limit of the process that decodes files")
    classes: tuple[str, ...] | None = Field(
        None, description="folder names that are labels; null: all of them, or none if a pseudonym key is set"
    )
    include: tuple[str, ...] = Field(
        (),
        description="globs of the files that are scans, such as *.dcm; none: all that are not excluded",
    )
    exclude: tuple[str, ...] = Field(
        NOT_SCANS, description="globs of files that are no scans: counted, not read, not held against the source"
    )
    tenant: str | None = Field(None, description="tenant that owns every scan of the source")
    site: str | None = Field(None, description="site of every scan without a site in the manifest")
    unknown_patients: tuple[str, ...] = Field(
        PLACEHOLDERS, description="patient ids that name nobody, without case: the study is the group of such scans"
    )
    near_duplicate_bits: int = Field(
        12, ge=0, le=64, description="bits by which the 256-bit difference hashes of two near-duplicates differ at most"
    )
    file_bytes: int = Field(192 * 2**20, ge=2**16, le=2**30, description="target size of a Parquet file of pixels")
    images_per_row_group: Count = Field(
        8, description="images per Parquet row group: reading one image reads its group"
    )

    @field_validator("classes", mode="after")
    @classmethod
    def _equal_forms(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if classes is None else tuple(map(normalised, classes))

    @field_validator("tenant", "site", mode="after")
    @classmethod
    def _equal_form(cls, name: str | None) -> str | None:
        return normalised_or_none(name)


class SplitSettings(Settings):
    """How scans are assigned to the gallery and to test queries (docs/method.md#protocols)."""

    protocol: Literal["paper", "dedup", "given", "folds"] = "paper"
    train_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.1, description="share of the training groups used for validation"
    )
    held_out_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the training groups that the encoder does not see, to train the reranker on"
    )
    test_fold: int = Field(0, ge=0, description="protocol folds: the fold used for testing")


class EncoderSettings(Settings):
    """The triplet CNN (paper §III), or the Siamese network it is compared with (docs/method.md#encoder)."""

    backbone: str = Field("vgg16", description="name of a torchvision classification model")
    weights: str = Field(
        "imagenet", description="initial weights: imagenet, none, or the path or URL of a .safetensors file"
    )
    head: Literal["paper", "pooled"] = "paper"
    embedding_dim: Count = 1000
    input_size: int = Field(224, ge=32)
    freeze: Literal["convolutions", "none"] | Annotated[int, Field(ge=0)] = Field(
        "convolutions", description="weights that are not trained: the whole trunk, none, or its first n modules"
    )
    cache_trunk: bool = Field(
        True, description="run a frozen trunk once, and train and embed on the stored features: 100 KB a scan for VGG16"
    )
    trunk_engine: Literal["torch", "openvino"] = Field(
        "torch", description="runtime of a frozen trunk that is run once; OpenVINO runs on CPUs"
    )
    cached_views: Count = Field(1, description="augmented views stored per image when a frozen trunk is cached")
    loss: Literal["triplet", "contrastive"] = "triplet"
    mining: Literal["explicit", "batch_all", "semi_hard", "hard"] = "explicit"
    gather: bool = Field(
        False, description="mine triplets among all workers' embeddings, not only those of this worker"
    )
    margin: Positive = Field(50.0, description="margin of the metric loss, on squared L2 distances")
    divide_by_margin: bool = Field(
        True, description="divide the metric loss by the margin, which brings it to the scale of the cross-entropy"
    )
    classification_weight: float = Field(
        1.0, ge=0.0, description="λ, the weight of the cross-entropy in the joint loss"
    )
    sampler: Literal["shuffled", "class_balanced"] = "shuffled"
    images_per_class: int = Field(8, ge=2, description="class_balanced: images per class in a batch")
    learning_rate: Positive = 1e-4
    weight_decay: float = Field(0.0, ge=0.0, description="decoupled weight decay, as in AdamW")
    schedule: Literal["constant", "cosine"] = "constant"
    batch_size: int = Field(32, ge=2)
    epochs: int = Field(100, ge=0, description="training epochs; 0 keeps the initial weights")
    patience: int = Field(
        0, ge=0, description="stop after this many epochs without a better validation MAP; 0 never stops early"
    )
    keep: Literal["best", "last"] = Field("best", description="weights to keep: best validation MAP, or the last epoch")
    snapshots: int = Field(0, ge=0, description="weights of the last so many epochs are kept beside the best")
    augment: bool = False
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.5, description="dropout in the paper's head")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="precision of the convolutions, in training and embedding"
    )
    channels_last: bool = Field(False, description="use the channels-last memory format: faster on most CPUs and GPUs")

    mirror: bool = Field(False, description="embed the mean of a scan and its mirror image, for twice the time")
    whiten: int = Field(
        0, ge=0, description="reduce the trained embedding to this many numbers of nearly equal weight; 0: as trained"
    )

    @property
    def stores_features(self) -> bool:
        """Whether the trunk runs once over the corpus, as a stage of its own (docs/method.md#encoder)."""
        return self.freeze == "convolutions" and self.cache_trunk

    @model_validator(mode="after")
    def _reject_ignored_settings(self) -> Self:
        if self.patience and self.keep == "last":
            raise ValueError(
                "encoder.patience stops on the validation MAP, so it needs encoder.keep=best: set encoder.keep=best"
            )
        if self.patience and self.snapshots:
            raise ValueError(
                "encoder.snapshots needs the last epochs, which encoder.patience may skip: set one of them to 0"
            )
        if self.trunk_engine != "torch" and not (self.stores_features and self.precision == "fp32"):
            raise ValueError(
                "encoder.trunk_engine runs a frozen trunk once, in fp32: set encoder.freeze=convolutions, "
                "encoder.cache_trunk=true and encoder.precision=fp32, or encoder.trunk_engine=torch"
            )
        if self.whiten > self.embedding_dim:
            raise ValueError(f"encoder.whiten: set it to at most encoder.embedding_dim ({self.embedding_dim})")
        if self.whiten and self.snapshots:
            raise ValueError(
                "encoder.snapshots are weights before whitening: set encoder.whiten or encoder.snapshots to 0"
            )
        if self.mining == "explicit" and (self.sampler != "shuffled" or self.gather):
            raise ValueError(
                "encoder.sampler and encoder.gather apply only to mined triplets: set encoder.mining=batch_all"
            )
        if self.augment and self.freeze == "convolutions" and self.cache_trunk and self.cached_views == 1:
            raise ValueError(
                "encoder.augment with a cached trunk would train on a single augmented view of each image: "
                "set encoder.cached_views above 1, or encoder.cache_trunk=false"
            )
        return self


class AppearanceSettings(Settings):
    """The appearance part of an embedding, beside the trained part (docs/method.md#appearance-part)."""

    components: int = Field(
        128,
        ge=0,
        le=144,
        description="principal components of a thumbnail of 12 x 12; 0: embeddings have the trained part only",
    )
    weight: Positive = Field(0.5, description="spread of the appearance part relative to that of the trained part")


class EmbedSettings(Settings):
    """How the corpus is embedded."""

    batch_size: Count = 32
    appearance: AppearanceSettings = AppearanceSettings()


class IndexSettings(Settings):
    """The sharded FAISS index; the planner chooses every value that is 0 or auto (docs/index.md#planning)."""

    kind: Literal["auto", "flat", "hnsw", "ivf_flat", "ivf_sq", "opq_ivf_pq"] = "auto"
    shards: int = Field(0, ge=0)
    node_bytes: int = Field(16 * 2**30, ge=2**28, description="memory of a machine that holds shards, in bytes")
    part_bytes: int = Field(
        8 * 2**30,
        ge=2**20,
        description="largest part that one task builds, in bytes; a larger shard is built in several parts",
    )
    effort: int = Field(0, ge=0, description="initial nprobe (IVF) or ef_search (HNSW)")
    min_recall: Fraction = Field(
        0.95, description="minimum recall@50 against exact search; effort is raised to reach it"
    )
    recall_sample: Count = Field(256, description="number of queries used to measure recall")
    compact_above: Fraction = Field(0.2, description="share of deleted rows above which a part is rebuilt")


class GraphSettings(Settings):
    """The query graph (docs/method.md#query-graph)."""

    neighbours: int = Field(50, ge=2, le=1024)


class RerankerSettings(Settings):
    """The GNN with skip connections, DropEdge and focal loss, or a baseline instead (docs/method.md#reranker)."""

    model: Literal["mrcg", "chebnet", "gcn", "graphsage", "gat"] = "mrcg"
    graphs: Literal["train", "held_out", "cross_fit"] = Field(
        "train", description="training graphs: of scans the encoder was trained on (train), or of scans it did not see"
    )
    folds: int = Field(2, ge=2, description="cross_fit: number of encoders, each trained without one fold of the scans")
    features: tuple[Literal["difference", "magnitude", "product", "distance", "rank"], ...] = Field(
        ("difference",), min_length=1, description="node features: q - g, |q - g|, q * g, the distance, the ANN rank"
    )
    scale: bool = Field(
        False, description="learn a scale for each feature, initialised from its spread in the first graphs"
    )
    hidden: Count = 256
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    drop_edge: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    loss: Literal["focal", "listwise"] = "focal"
    focal_alpha: Fraction = 0.25
    focal_gamma: float = Field(2.0, ge=0.0)
    learning_rate: Positive = 5e-4
    weight_decay_first: float = Field(0.0, ge=0.0, description="L2 penalty on the first layer")
    batch_size: Count = 64
    epochs: int = Field(100, ge=0)
    keep: Literal["best", "last"] = Field("best", description="weights to keep: best validation MAP, or the last epoch")
    snapshots: int = Field(0, ge=0, description="weights of the last so many epochs are kept beside the best")


class EvaluateSettings(Settings):
    """How the report is made (docs/design.md#evaluation)."""

    order: Literal["fused", "score"] = Field(
        "fused", description="order of the hits: by score and distance, or by score alone as in the paper"
    )
    known_items: int = Field(
        1000, ge=0, description="gallery scans that are searched for themselves, unchanged and changed; 0 omits this"
    )
    picture_queries: int = Field(
        6, ge=1, le=32, description="queries in the retrieval picture, with a row for each order"
    )
    map_images: int = Field(2000, ge=1, description="maximum number of images on the embedding map")
    bootstrap: int = Field(2000, ge=100, description="bootstrap resamples of the query groups per interval")
    ood_quantile: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.99, description="quantile of the validation queries' distances above which a query is out of distribution"
    )


class ReleaseSettings(Settings):
    """Limits that a new release must meet to be promoted."""

    max_map_drop: Fraction = Field(0.01, description="largest allowed drop in MAP against the current release")
    max_recall_drop: Fraction = Field(
        0.02, description="largest allowed drop in the index's recall@50 against the current release"
    )
    max_known_drop: Fraction = Field(
        0.02, description="largest allowed drop in the share of changed gallery scans that find themselves first"
    )


class CheckSettings(Settings):
    """Limits at which a job fails. They are not part of any version."""

    max_bad_fraction: Fraction = Field(
        0.05, description="largest share of quarantined files; with more, ingestion fails"
    )


class ComputeSettings(Settings):
    """Resources of the jobs. Not part of any version, but the number of workers changes trained weights slightly."""

    encoder_workers: Count = 1
    encoder_workers_min: int = Field(
        0, ge=0, description="continue with at least this many when nodes are lost; 0 waits for all"
    )
    reranker_workers: Count = 1
    embed_actors: Count = 1
    index_threads: int = Field(
        0,
        ge=0,
        description="threads of a task that builds a part; 0: all cores, but one for HNSW, whose bytes vary with more",
    )
    use_gpu: bool = False
    cpus_per_trainer: float = Field(
        0.0, ge=0.0, description="CPUs per training worker; 0 divides the cluster's CPUs equally"
    )
    max_failures: int = Field(2, ge=0, description="training worker failures to tolerate before the run fails")
    checkpoint_minutes: float = Field(
        5.0, ge=0.0, description="minimum minutes between two checkpoints of a training; 0 writes one after every epoch"
    )

    @model_validator(mode="after")
    def _min_workers_within_workers(self) -> Self:
        if self.encoder_workers_min > self.encoder_workers:
            raise ValueError("compute.encoder_workers_min is above compute.encoder_workers: lower it")
        return self


class Config(Settings):
    """All settings of the pipeline and the service."""

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
    def _reject_what_does_not_fit(self) -> Self:
        if self.reranker.graphs == "held_out" and not self.split.held_out_fraction:
            raise ValueError("reranker.graphs=held_out needs held-out scans: set split.held_out_fraction above 0")
        if self.encoder.trunk_engine == "openvino" and self.compute.use_gpu:
            raise ValueError("encoder.trunk_engine=openvino runs on CPUs: set it to torch or compute.use_gpu=false")
        if self.reranker.graphs == "cross_fit" and self.encoder.whiten:
            raise ValueError("reranker.graphs=cross_fit cannot align whitened encoders: set encoder.whiten=0")
        return self
