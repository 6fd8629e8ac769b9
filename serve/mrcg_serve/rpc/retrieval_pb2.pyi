from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SearchRequest(_message.Message):
    __slots__ = ("image", "image_id", "sent", "wanted")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    image_id: str
    sent: Embedding
    wanted: Wanted
    def __init__(self, image: _Optional[bytes] = ..., image_id: _Optional[str] = ..., sent: _Optional[_Union[Embedding, _Mapping]] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ...) -> None: ...

class SearchBatchRequest(_message.Message):
    __slots__ = ("images", "wanted")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    wanted: Wanted
    def __init__(self, images: _Optional[_Iterable[bytes]] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("embedding", "encoder")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    encoder: str
    def __init__(self, embedding: _Optional[_Iterable[float]] = ..., encoder: _Optional[str] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("k", "rerank", "group_by", "filters", "exclude_patient", "deadline_ms", "explain")
    K_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_PATIENT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    k: int
    rerank: bool
    group_by: str
    filters: Filters
    exclude_patient: str
    deadline_ms: int
    explain: bool
    def __init__(self, k: _Optional[int] = ..., rerank: _Optional[bool] = ..., group_by: _Optional[str] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., exclude_patient: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., explain: _Optional[bool] = ...) -> None: ...

class Filters(_message.Message):
    __slots__ = ("label", "site", "sequence", "plane", "years")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PLANE_FIELD_NUMBER: _ClassVar[int]
    YEARS_FIELD_NUMBER: _ClassVar[int]
    label: _containers.RepeatedScalarFieldContainer[str]
    site: _containers.RepeatedScalarFieldContainer[str]
    sequence: _containers.RepeatedScalarFieldContainer[str]
    plane: _containers.RepeatedScalarFieldContainer[str]
    years: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, label: _Optional[_Iterable[str]] = ..., site: _Optional[_Iterable[str]] = ..., sequence: _Optional[_Iterable[str]] = ..., plane: _Optional[_Iterable[str]] = ..., years: _Optional[_Iterable[int]] = ...) -> None: ...

class SearchAnswer(_message.Message):
    __slots__ = ("release", "request_id", "hits", "classes", "reranked", "partial", "shards_answered", "shards", "requested", "found", "allowed", "passing", "out_of_distribution", "milliseconds", "explanation", "order", "probability_withheld")
    class ClassesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class MillisecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    RERANKED_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    SHARDS_ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    PASSING_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_WITHHELD_FIELD_NUMBER: _ClassVar[int]
    release: int
    request_id: str
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    classes: _containers.ScalarMap[str, int]
    reranked: bool
    partial: bool
    shards_answered: int
    shards: int
    requested: int
    found: int
    allowed: int
    passing: int
    out_of_distribution: bool
    milliseconds: _containers.ScalarMap[str, float]
    explanation: Explanation
    order: str
    probability_withheld: str
    def __init__(self, release: _Optional[int] = ..., request_id: _Optional[str] = ..., hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., classes: _Optional[_Mapping[str, int]] = ..., reranked: _Optional[bool] = ..., partial: _Optional[bool] = ..., shards_answered: _Optional[int] = ..., shards: _Optional[int] = ..., requested: _Optional[int] = ..., found: _Optional[int] = ..., allowed: _Optional[int] = ..., passing: _Optional[int] = ..., out_of_distribution: _Optional[bool] = ..., milliseconds: _Optional[_Mapping[str, float]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., order: _Optional[str] = ..., probability_withheld: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("image_id", "label", "plane", "sequence", "site", "group", "score", "distance", "ann_rank", "preview", "probability", "similarity", "rank", "score_rank")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PLANE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    ANN_RANK_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCORE_RANK_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    label: str
    plane: str
    sequence: str
    site: str
    group: str
    score: float
    distance: float
    ann_rank: int
    preview: str
    probability: float
    similarity: float
    rank: int
    score_rank: int
    def __init__(self, image_id: _Optional[str] = ..., label: _Optional[str] = ..., plane: _Optional[str] = ..., sequence: _Optional[str] = ..., site: _Optional[str] = ..., group: _Optional[str] = ..., score: _Optional[float] = ..., distance: _Optional[float] = ..., ann_rank: _Optional[int] = ..., preview: _Optional[str] = ..., probability: _Optional[float] = ..., similarity: _Optional[float] = ..., rank: _Optional[int] = ..., score_rank: _Optional[int] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("nodes", "weights", "hits", "graph_changed_order")
    NODES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_CHANGED_ORDER_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    weights: _containers.RepeatedCompositeFieldContainer[Row]
    hits: _containers.RepeatedCompositeFieldContainer[Explained]
    graph_changed_order: bool
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., weights: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., hits: _Optional[_Iterable[_Union[Explained, _Mapping]]] = ..., graph_changed_order: _Optional[bool] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("image_id", "ann_rank", "rank", "score")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    ANN_RANK_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    ann_rank: int
    rank: int
    score: float
    def __init__(self, image_id: _Optional[str] = ..., ann_rank: _Optional[int] = ..., rank: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Explained(_message.Message):
    __slots__ = ("image_id", "rank_change", "neighbours", "by_distance")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_CHANGE_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    BY_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    rank_change: int
    neighbours: _containers.RepeatedCompositeFieldContainer[Influence]
    by_distance: int
    def __init__(self, image_id: _Optional[str] = ..., rank_change: _Optional[int] = ..., neighbours: _Optional[_Iterable[_Union[Influence, _Mapping]]] = ..., by_distance: _Optional[int] = ...) -> None: ...

class Influence(_message.Message):
    __slots__ = ("image_id", "moved")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    moved: int
    def __init__(self, image_id: _Optional[str] = ..., moved: _Optional[int] = ...) -> None: ...

class BatchLine(_message.Message):
    __slots__ = ("index", "answer", "code", "detail")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    index: int
    answer: SearchAnswer
    code: str
    detail: str
    def __init__(self, index: _Optional[int] = ..., answer: _Optional[_Union[SearchAnswer, _Mapping]] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
