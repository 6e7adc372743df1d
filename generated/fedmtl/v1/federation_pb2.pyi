from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ElementType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ELEMENT_TYPE_UNSPECIFIED: _ClassVar[ElementType]
    ELEMENT_TYPE_FLOAT32: _ClassVar[ElementType]
    ELEMENT_TYPE_FLOAT16: _ClassVar[ElementType]
    ELEMENT_TYPE_BFLOAT16: _ClassVar[ElementType]
    ELEMENT_TYPE_FLOAT64: _ClassVar[ElementType]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT32: _ClassVar[Encoding]
    ENCODING_FLOAT16: _ClassVar[Encoding]
    ENCODING_BFLOAT16: _ClassVar[Encoding]
    ENCODING_INT8: _ClassVar[Encoding]
    ENCODING_TOPK: _ClassVar[Encoding]

class Compression(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMPRESSION_UNSPECIFIED: _ClassVar[Compression]
    COMPRESSION_ZSTD: _ClassVar[Compression]

class RoundPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_PURPOSE_UNSPECIFIED: _ClassVar[RoundPurpose]
    ROUND_PURPOSE_TRAIN: _ClassVar[RoundPurpose]
    ROUND_PURPOSE_EVALUATE: _ClassVar[RoundPurpose]

class UpdateKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPDATE_KIND_UNSPECIFIED: _ClassVar[UpdateKind]
    UPDATE_KIND_PARAMETERS: _ClassVar[UpdateKind]
    UPDATE_KIND_DELTA: _ClassVar[UpdateKind]
    UPDATE_KIND_METRICS: _ClassVar[UpdateKind]

class TaskType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_TYPE_UNSPECIFIED: _ClassVar[TaskType]
    TASK_TYPE_CLASSIFICATION: _ClassVar[TaskType]
    TASK_TYPE_REGRESSION: _ClassVar[TaskType]
    TASK_TYPE_CUSTOM: _ClassVar[TaskType]
    TASK_TYPE_MASKED_LM: _ClassVar[TaskType]

class LocalOptimizer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCAL_OPTIMIZER_UNSPECIFIED: _ClassVar[LocalOptimizer]
    LOCAL_OPTIMIZER_ADAMW: _ClassVar[LocalOptimizer]
    LOCAL_OPTIMIZER_SGD: _ClassVar[LocalOptimizer]

class AdapterKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_KIND_UNSPECIFIED: _ClassVar[AdapterKind]
    ADAPTER_KIND_LORA: _ClassVar[AdapterKind]
    ADAPTER_KIND_RSLORA: _ClassVar[AdapterKind]
    ADAPTER_KIND_DORA: _ClassVar[AdapterKind]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_CLS: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_LAST: _ClassVar[Pooling]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_ACCEPTED: _ClassVar[Outcome]
    OUTCOME_DUPLICATE: _ClassVar[Outcome]

class RoundEventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_EVENT_KIND_UNSPECIFIED: _ClassVar[RoundEventKind]
    ROUND_EVENT_KIND_WAITING: _ClassVar[RoundEventKind]
    ROUND_EVENT_KIND_OPENED: _ClassVar[RoundEventKind]
    ROUND_EVENT_KIND_CLOSING: _ClassVar[RoundEventKind]
    ROUND_EVENT_KIND_COMMITTED: _ClassVar[RoundEventKind]
    ROUND_EVENT_KIND_FINISHED: _ClassVar[RoundEventKind]
    ROUND_EVENT_KIND_FAILED: _ClassVar[RoundEventKind]

class RoundWarningKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUND_WARNING_KIND_UNSPECIFIED: _ClassVar[RoundWarningKind]
    ROUND_WARNING_KIND_DOMINANT_CLIENT: _ClassVar[RoundWarningKind]
    ROUND_WARNING_KIND_LARGE_UPDATE: _ClassVar[RoundWarningKind]
    ROUND_WARNING_KIND_DAMAGED_MODEL: _ClassVar[RoundWarningKind]

class MetricBasis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_BASIS_UNSPECIFIED: _ClassVar[MetricBasis]
    METRIC_BASIS_POOLED: _ClassVar[MetricBasis]
    METRIC_BASIS_MEAN: _ClassVar[MetricBasis]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_WAITING: _ClassVar[Phase]
    PHASE_OPEN: _ClassVar[Phase]
    PHASE_AGGREGATING: _ClassVar[Phase]
    PHASE_FINISHED: _ClassVar[Phase]
ELEMENT_TYPE_UNSPECIFIED: ElementType
ELEMENT_TYPE_FLOAT32: ElementType
ELEMENT_TYPE_FLOAT16: ElementType
ELEMENT_TYPE_BFLOAT16: ElementType
ELEMENT_TYPE_FLOAT64: ElementType
ENCODING_UNSPECIFIED: Encoding
ENCODING_FLOAT32: Encoding
ENCODING_FLOAT16: Encoding
ENCODING_BFLOAT16: Encoding
ENCODING_INT8: Encoding
ENCODING_TOPK: Encoding
COMPRESSION_UNSPECIFIED: Compression
COMPRESSION_ZSTD: Compression
ROUND_PURPOSE_UNSPECIFIED: RoundPurpose
ROUND_PURPOSE_TRAIN: RoundPurpose
ROUND_PURPOSE_EVALUATE: RoundPurpose
UPDATE_KIND_UNSPECIFIED: UpdateKind
UPDATE_KIND_PARAMETERS: UpdateKind
UPDATE_KIND_DELTA: UpdateKind
UPDATE_KIND_METRICS: UpdateKind
TASK_TYPE_UNSPECIFIED: TaskType
TASK_TYPE_CLASSIFICATION: TaskType
TASK_TYPE_REGRESSION: TaskType
TASK_TYPE_CUSTOM: TaskType
TASK_TYPE_MASKED_LM: TaskType
LOCAL_OPTIMIZER_UNSPECIFIED: LocalOptimizer
LOCAL_OPTIMIZER_ADAMW: LocalOptimizer
LOCAL_OPTIMIZER_SGD: LocalOptimizer
ADAPTER_KIND_UNSPECIFIED: AdapterKind
ADAPTER_KIND_LORA: AdapterKind
ADAPTER_KIND_RSLORA: AdapterKind
ADAPTER_KIND_DORA: AdapterKind
POOLING_UNSPECIFIED: Pooling
POOLING_CLS: Pooling
POOLING_MEAN: Pooling
POOLING_LAST: Pooling
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_ACCEPTED: Outcome
OUTCOME_DUPLICATE: Outcome
ROUND_EVENT_KIND_UNSPECIFIED: RoundEventKind
ROUND_EVENT_KIND_WAITING: RoundEventKind
ROUND_EVENT_KIND_OPENED: RoundEventKind
ROUND_EVENT_KIND_CLOSING: RoundEventKind
ROUND_EVENT_KIND_COMMITTED: RoundEventKind
ROUND_EVENT_KIND_FINISHED: RoundEventKind
ROUND_EVENT_KIND_FAILED: RoundEventKind
ROUND_WARNING_KIND_UNSPECIFIED: RoundWarningKind
ROUND_WARNING_KIND_DOMINANT_CLIENT: RoundWarningKind
ROUND_WARNING_KIND_LARGE_UPDATE: RoundWarningKind
ROUND_WARNING_KIND_DAMAGED_MODEL: RoundWarningKind
METRIC_BASIS_UNSPECIFIED: MetricBasis
METRIC_BASIS_POOLED: MetricBasis
METRIC_BASIS_MEAN: MetricBasis
PHASE_UNSPECIFIED: Phase
PHASE_WAITING: Phase
PHASE_OPEN: Phase
PHASE_AGGREGATING: Phase
PHASE_FINISHED: Phase

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: ElementType
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[ElementType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ...) -> None: ...

class Component(_message.Message):
    __slots__ = ("scope", "tensors", "num_bytes", "digest", "start_offset", "encoding", "encoded_bytes", "base_digest", "read_only")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    START_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    ENCODED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    scope: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    num_bytes: int
    digest: bytes
    start_offset: int
    encoding: Encoding
    encoded_bytes: int
    base_digest: bytes
    read_only: bool
    def __init__(self, scope: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., num_bytes: _Optional[int] = ..., digest: _Optional[bytes] = ..., start_offset: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., encoded_bytes: _Optional[int] = ..., base_digest: _Optional[bytes] = ..., read_only: _Optional[bool] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("scope", "offset", "data", "crc32c", "uncompressed_bytes")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    UNCOMPRESSED_BYTES_FIELD_NUMBER: _ClassVar[int]
    scope: str
    offset: int
    data: bytes
    crc32c: int
    uncompressed_bytes: int
    def __init__(self, scope: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32c: _Optional[int] = ..., uncompressed_bytes: _Optional[int] = ...) -> None: ...

class TrainingPlan(_message.Message):
    __slots__ = ("local_epochs", "batch_size", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "max_length", "seed", "client_model", "num_hidden_layers", "head_dropout", "update_kind", "train_samples", "val_samples", "num_rounds", "pooling", "task_type", "labels", "task_kind", "proximal_mu", "optimizer", "group_by_length", "head_epochs", "local", "schedule_first_round", "schedule_num_rounds", "adapters")
    LOCAL_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    WARMUP_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_HIDDEN_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DROPOUT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_KIND_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    VAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TASK_KIND_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_MU_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    HEAD_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    local_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    max_length: int
    seed: int
    client_model: str
    num_hidden_layers: int
    head_dropout: float
    update_kind: UpdateKind
    train_samples: int
    val_samples: int
    num_rounds: int
    pooling: Pooling
    task_type: TaskType
    labels: _containers.RepeatedScalarFieldContainer[str]
    task_kind: str
    proximal_mu: float
    optimizer: LocalOptimizer
    group_by_length: bool
    head_epochs: int
    local: _containers.RepeatedScalarFieldContainer[str]
    schedule_first_round: int
    schedule_num_rounds: int
    adapters: Adapters
    def __init__(self, local_epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., weight_decay: _Optional[float] = ..., warmup_ratio: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., max_length: _Optional[int] = ..., seed: _Optional[int] = ..., client_model: _Optional[str] = ..., num_hidden_layers: _Optional[int] = ..., head_dropout: _Optional[float] = ..., update_kind: _Optional[_Union[UpdateKind, str]] = ..., train_samples: _Optional[int] = ..., val_samples: _Optional[int] = ..., num_rounds: _Optional[int] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., task_type: _Optional[_Union[TaskType, str]] = ..., labels: _Optional[_Iterable[str]] = ..., task_kind: _Optional[str] = ..., proximal_mu: _Optional[float] = ..., optimizer: _Optional[_Union[LocalOptimizer, str]] = ..., group_by_length: _Optional[bool] = ..., head_epochs: _Optional[int] = ..., local: _Optional[_Iterable[str]] = ..., schedule_first_round: _Optional[int] = ..., schedule_num_rounds: _Optional[int] = ..., adapters: _Optional[_Union[Adapters, _Mapping]] = ...) -> None: ...

class Adapters(_message.Message):
    __slots__ = ("kind", "rank", "alpha", "targets", "dropout", "a_is_frozen", "seed", "is_stacked")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    A_IS_FROZEN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    IS_STACKED_FIELD_NUMBER: _ClassVar[int]
    kind: AdapterKind
    rank: int
    alpha: float
    targets: _containers.RepeatedScalarFieldContainer[str]
    dropout: float
    a_is_frozen: bool
    seed: int
    is_stacked: bool
    def __init__(self, kind: _Optional[_Union[AdapterKind, str]] = ..., rank: _Optional[int] = ..., alpha: _Optional[float] = ..., targets: _Optional[_Iterable[str]] = ..., dropout: _Optional[float] = ..., a_is_frozen: _Optional[bool] = ..., seed: _Optional[int] = ..., is_stacked: _Optional[bool] = ...) -> None: ...

class GetSliceRequest(_message.Message):
    __slots__ = ("run_id", "client_id", "task", "all_tasks", "round", "held", "encoding", "compression", "max_chunk_bytes", "variant", "base")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ALL_TASKS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    client_id: str
    task: str
    all_tasks: bool
    round: int
    held: _containers.RepeatedCompositeFieldContainer[HeldComponent]
    encoding: Encoding
    compression: Compression
    max_chunk_bytes: int
    variant: str
    base: bool
    def __init__(self, run_id: _Optional[str] = ..., client_id: _Optional[str] = ..., task: _Optional[str] = ..., all_tasks: _Optional[bool] = ..., round: _Optional[int] = ..., held: _Optional[_Iterable[_Union[HeldComponent, _Mapping]]] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., compression: _Optional[_Union[Compression, str]] = ..., max_chunk_bytes: _Optional[int] = ..., variant: _Optional[str] = ..., base: _Optional[bool] = ...) -> None: ...

class HeldComponent(_message.Message):
    __slots__ = ("scope", "digest", "num_bytes", "encoding")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    scope: str
    digest: bytes
    num_bytes: int
    encoding: Encoding
    def __init__(self, scope: _Optional[str] = ..., digest: _Optional[bytes] = ..., num_bytes: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ...) -> None: ...

class GetSliceResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SliceHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[SliceHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class SliceVariant(_message.Message):
    __slots__ = ("name", "components", "start_margin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    START_MARGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    components: _containers.RepeatedCompositeFieldContainer[Component]
    start_margin: float
    def __init__(self, name: _Optional[str] = ..., components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., start_margin: _Optional[float] = ...) -> None: ...

class SliceHeader(_message.Message):
    __slots__ = ("run_id", "round", "task", "components", "total_bytes", "plan", "purpose", "compression", "control_since", "variants", "variant", "base_digest", "base_tensor_digests", "stack_base_digest")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_SINCE_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_TENSOR_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    STACK_BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    task: str
    components: _containers.RepeatedCompositeFieldContainer[Component]
    total_bytes: int
    plan: TrainingPlan
    purpose: RoundPurpose
    compression: Compression
    control_since: int
    variants: _containers.RepeatedCompositeFieldContainer[SliceVariant]
    variant: str
    base_digest: bytes
    base_tensor_digests: _containers.RepeatedScalarFieldContainer[bytes]
    stack_base_digest: bytes
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., task: _Optional[str] = ..., components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., plan: _Optional[_Union[TrainingPlan, _Mapping]] = ..., purpose: _Optional[_Union[RoundPurpose, str]] = ..., compression: _Optional[_Union[Compression, str]] = ..., control_since: _Optional[int] = ..., variants: _Optional[_Iterable[_Union[SliceVariant, _Mapping]]] = ..., variant: _Optional[str] = ..., base_digest: _Optional[bytes] = ..., base_tensor_digests: _Optional[_Iterable[bytes]] = ..., stack_base_digest: _Optional[bytes] = ...) -> None: ...

class PushUpdateRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class ClassCounts(_message.Message):
    __slots__ = ("correct", "predicted", "actual")
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    correct: _containers.RepeatedScalarFieldContainer[int]
    predicted: _containers.RepeatedScalarFieldContainer[int]
    actual: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, correct: _Optional[_Iterable[int]] = ..., predicted: _Optional[_Iterable[int]] = ..., actual: _Optional[_Iterable[int]] = ...) -> None: ...

class Moments(_message.Message):
    __slots__ = ("num_examples", "sum_x", "sum_y", "sum_xx", "sum_yy", "sum_xy")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SUM_X_FIELD_NUMBER: _ClassVar[int]
    SUM_Y_FIELD_NUMBER: _ClassVar[int]
    SUM_XX_FIELD_NUMBER: _ClassVar[int]
    SUM_YY_FIELD_NUMBER: _ClassVar[int]
    SUM_XY_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    sum_x: float
    sum_y: float
    sum_xx: float
    sum_yy: float
    sum_xy: float
    def __init__(self, num_examples: _Optional[int] = ..., sum_x: _Optional[float] = ..., sum_y: _Optional[float] = ..., sum_xx: _Optional[float] = ..., sum_yy: _Optional[float] = ..., sum_xy: _Optional[float] = ...) -> None: ...

class EvaluationDetails(_message.Message):
    __slots__ = ("undefined", "class_counts", "moments")
    UNDEFINED_FIELD_NUMBER: _ClassVar[int]
    CLASS_COUNTS_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    undefined: _containers.RepeatedScalarFieldContainer[str]
    class_counts: ClassCounts
    moments: Moments
    def __init__(self, undefined: _Optional[_Iterable[str]] = ..., class_counts: _Optional[_Union[ClassCounts, _Mapping]] = ..., moments: _Optional[_Union[Moments, _Mapping]] = ...) -> None: ...

class VariantEvaluation(_message.Message):
    __slots__ = ("name", "diverged", "num_examples", "loss", "loss_difference", "squared_deviations", "metrics", "details")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    SQUARED_DEVIATIONS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    name: str
    diverged: bool
    num_examples: int
    loss: float
    loss_difference: float
    squared_deviations: float
    metrics: _containers.ScalarMap[str, float]
    details: EvaluationDetails
    def __init__(self, name: _Optional[str] = ..., diverged: _Optional[bool] = ..., num_examples: _Optional[int] = ..., loss: _Optional[float] = ..., loss_difference: _Optional[float] = ..., squared_deviations: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., details: _Optional[_Union[EvaluationDetails, _Mapping]] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("run_id", "client_id", "task", "base_round", "update_id", "kind", "num_examples", "components", "received_metrics", "trained_metrics", "num_eval_examples", "compression", "num_steps", "next_task", "learning_rate_sum", "control_round", "received_details", "trained_details", "variants")
    class ReceivedMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TrainedMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BASE_ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_METRICS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_METRICS_FIELD_NUMBER: _ClassVar[int]
    NUM_EVAL_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TASK_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_SUM_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ROUND_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_DETAILS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DETAILS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    client_id: str
    task: str
    base_round: int
    update_id: str
    kind: UpdateKind
    num_examples: int
    components: _containers.RepeatedCompositeFieldContainer[Component]
    received_metrics: _containers.ScalarMap[str, float]
    trained_metrics: _containers.ScalarMap[str, float]
    num_eval_examples: int
    compression: Compression
    num_steps: int
    next_task: str
    learning_rate_sum: float
    control_round: int
    received_details: EvaluationDetails
    trained_details: EvaluationDetails
    variants: _containers.RepeatedCompositeFieldContainer[VariantEvaluation]
    def __init__(self, run_id: _Optional[str] = ..., client_id: _Optional[str] = ..., task: _Optional[str] = ..., base_round: _Optional[int] = ..., update_id: _Optional[str] = ..., kind: _Optional[_Union[UpdateKind, str]] = ..., num_examples: _Optional[int] = ..., components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., received_metrics: _Optional[_Mapping[str, float]] = ..., trained_metrics: _Optional[_Mapping[str, float]] = ..., num_eval_examples: _Optional[int] = ..., compression: _Optional[_Union[Compression, str]] = ..., num_steps: _Optional[int] = ..., next_task: _Optional[str] = ..., learning_rate_sum: _Optional[float] = ..., control_round: _Optional[int] = ..., received_details: _Optional[_Union[EvaluationDetails, _Mapping]] = ..., trained_details: _Optional[_Union[EvaluationDetails, _Mapping]] = ..., variants: _Optional[_Iterable[_Union[VariantEvaluation, _Mapping]]] = ...) -> None: ...

class PushUpdateResponse(_message.Message):
    __slots__ = ("outcome", "round", "num_bytes")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    round: int
    num_bytes: int
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., round: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class QueryUploadRequest(_message.Message):
    __slots__ = ("run_id", "client_id", "update_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    client_id: str
    update_id: str
    def __init__(self, run_id: _Optional[str] = ..., client_id: _Optional[str] = ..., update_id: _Optional[str] = ...) -> None: ...

class QueryUploadResponse(_message.Message):
    __slots__ = ("components",)
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    components: _containers.RepeatedCompositeFieldContainer[StagedComponent]
    def __init__(self, components: _Optional[_Iterable[_Union[StagedComponent, _Mapping]]] = ...) -> None: ...

class StagedComponent(_message.Message):
    __slots__ = ("scope", "num_bytes")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    scope: str
    num_bytes: int
    def __init__(self, scope: _Optional[str] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class WatchRoundsRequest(_message.Message):
    __slots__ = ("client_id", "task", "run_id", "tasks")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    task: str
    run_id: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, client_id: _Optional[str] = ..., task: _Optional[str] = ..., run_id: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchRoundsResponse(_message.Message):
    __slots__ = ("run_id", "kind", "round", "num_rounds", "purpose", "in_cohort", "reported", "deadline_seconds", "waiting_for", "report", "cohort_size", "oldest_base_round", "task")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    IN_COHORT_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    COHORT_SIZE_FIELD_NUMBER: _ClassVar[int]
    OLDEST_BASE_ROUND_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    kind: RoundEventKind
    round: int
    num_rounds: int
    purpose: RoundPurpose
    in_cohort: bool
    reported: bool
    deadline_seconds: float
    waiting_for: str
    report: RoundReport
    cohort_size: int
    oldest_base_round: int
    task: str
    def __init__(self, run_id: _Optional[str] = ..., kind: _Optional[_Union[RoundEventKind, str]] = ..., round: _Optional[int] = ..., num_rounds: _Optional[int] = ..., purpose: _Optional[_Union[RoundPurpose, str]] = ..., in_cohort: _Optional[bool] = ..., reported: _Optional[bool] = ..., deadline_seconds: _Optional[float] = ..., waiting_for: _Optional[str] = ..., report: _Optional[_Union[RoundReport, _Mapping]] = ..., cohort_size: _Optional[int] = ..., oldest_base_round: _Optional[int] = ..., task: _Optional[str] = ...) -> None: ...

class RoundReport(_message.Message):
    __slots__ = ("round", "purpose", "opened_at_unix_ms", "duration_seconds", "components", "tasks", "missing_clients", "refused", "num_refused", "bytes_received", "bytes_sent", "unchanged_tasks", "aggregation_seconds", "failed", "discarded", "warnings")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    MISSING_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_TASKS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    round: int
    purpose: RoundPurpose
    opened_at_unix_ms: int
    duration_seconds: float
    components: _containers.RepeatedCompositeFieldContainer[ComponentReport]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskReport]
    missing_clients: _containers.RepeatedScalarFieldContainer[str]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedUpdate]
    num_refused: int
    bytes_received: int
    bytes_sent: int
    unchanged_tasks: _containers.RepeatedScalarFieldContainer[str]
    aggregation_seconds: float
    failed: bool
    discarded: _containers.RepeatedCompositeFieldContainer[DiscardedComponent]
    warnings: _containers.RepeatedCompositeFieldContainer[RoundWarning]
    def __init__(self, round: _Optional[int] = ..., purpose: _Optional[_Union[RoundPurpose, str]] = ..., opened_at_unix_ms: _Optional[int] = ..., duration_seconds: _Optional[float] = ..., components: _Optional[_Iterable[_Union[ComponentReport, _Mapping]]] = ..., tasks: _Optional[_Iterable[_Union[TaskReport, _Mapping]]] = ..., missing_clients: _Optional[_Iterable[str]] = ..., refused: _Optional[_Iterable[_Union[RefusedUpdate, _Mapping]]] = ..., num_refused: _Optional[int] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., unchanged_tasks: _Optional[_Iterable[str]] = ..., aggregation_seconds: _Optional[float] = ..., failed: _Optional[bool] = ..., discarded: _Optional[_Iterable[_Union[DiscardedComponent, _Mapping]]] = ..., warnings: _Optional[_Iterable[_Union[RoundWarning, _Mapping]]] = ...) -> None: ...

class RoundWarning(_message.Message):
    __slots__ = ("kind", "message", "scope", "client_ids")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_IDS_FIELD_NUMBER: _ClassVar[int]
    kind: RoundWarningKind
    message: str
    scope: str
    client_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[_Union[RoundWarningKind, str]] = ..., message: _Optional[str] = ..., scope: _Optional[str] = ..., client_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DiscardedComponent(_message.Message):
    __slots__ = ("scope", "reason", "client_ids")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLIENT_IDS_FIELD_NUMBER: _ClassVar[int]
    scope: str
    reason: str
    client_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, scope: _Optional[str] = ..., reason: _Optional[str] = ..., client_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ComponentReport(_message.Message):
    __slots__ = ("scope", "num_tensors", "contributions", "scaling")
    class ScalingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NUM_TENSORS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    scope: str
    num_tensors: int
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    scaling: _containers.ScalarMap[str, float]
    def __init__(self, scope: _Optional[str] = ..., num_tensors: _Optional[int] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., scaling: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("client_id", "task", "num_examples", "weight", "staleness", "norm", "clipped_to", "counted_examples")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_TO_FIELD_NUMBER: _ClassVar[int]
    COUNTED_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    task: str
    num_examples: int
    weight: float
    staleness: int
    norm: float
    clipped_to: float
    counted_examples: float
    def __init__(self, client_id: _Optional[str] = ..., task: _Optional[str] = ..., num_examples: _Optional[int] = ..., weight: _Optional[float] = ..., staleness: _Optional[int] = ..., norm: _Optional[float] = ..., clipped_to: _Optional[float] = ..., counted_examples: _Optional[float] = ...) -> None: ...

class MetricReport(_message.Message):
    __slots__ = ("basis", "num_clients", "num_eval_examples", "num_undefined")
    BASIS_FIELD_NUMBER: _ClassVar[int]
    NUM_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_EVAL_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_UNDEFINED_FIELD_NUMBER: _ClassVar[int]
    basis: MetricBasis
    num_clients: int
    num_eval_examples: int
    num_undefined: int
    def __init__(self, basis: _Optional[_Union[MetricBasis, str]] = ..., num_clients: _Optional[int] = ..., num_eval_examples: _Optional[int] = ..., num_undefined: _Optional[int] = ...) -> None: ...

class VariantReport(_message.Message):
    __slots__ = ("name", "num_clients", "num_examples", "num_diverged", "loss", "loss_difference", "standard_error", "metrics", "chosen")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_DIVERGED_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_clients: int
    num_examples: int
    num_diverged: int
    loss: float
    loss_difference: float
    standard_error: float
    metrics: _containers.ScalarMap[str, float]
    chosen: bool
    def __init__(self, name: _Optional[str] = ..., num_clients: _Optional[int] = ..., num_examples: _Optional[int] = ..., num_diverged: _Optional[int] = ..., loss: _Optional[float] = ..., loss_difference: _Optional[float] = ..., standard_error: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., chosen: _Optional[bool] = ...) -> None: ...

class TaskReport(_message.Message):
    __slots__ = ("task", "num_updates", "num_examples", "encoder_share", "received_metrics", "trained_metrics", "auxiliary_weight", "received_metric_reports", "trained_metric_reports", "variants")
    class ReceivedMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TrainedMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ReceivedMetricReportsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetricReport
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetricReport, _Mapping]] = ...) -> None: ...
    class TrainedMetricReportsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetricReport
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetricReport, _Mapping]] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATES_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ENCODER_SHARE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_METRICS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_METRICS_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_METRIC_REPORTS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_METRIC_REPORTS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    task: str
    num_updates: int
    num_examples: int
    encoder_share: float
    received_metrics: _containers.ScalarMap[str, float]
    trained_metrics: _containers.ScalarMap[str, float]
    auxiliary_weight: float
    received_metric_reports: _containers.MessageMap[str, MetricReport]
    trained_metric_reports: _containers.MessageMap[str, MetricReport]
    variants: _containers.RepeatedCompositeFieldContainer[VariantReport]
    def __init__(self, task: _Optional[str] = ..., num_updates: _Optional[int] = ..., num_examples: _Optional[int] = ..., encoder_share: _Optional[float] = ..., received_metrics: _Optional[_Mapping[str, float]] = ..., trained_metrics: _Optional[_Mapping[str, float]] = ..., auxiliary_weight: _Optional[float] = ..., received_metric_reports: _Optional[_Mapping[str, MetricReport]] = ..., trained_metric_reports: _Optional[_Mapping[str, MetricReport]] = ..., variants: _Optional[_Iterable[_Union[VariantReport, _Mapping]]] = ...) -> None: ...

class RefusedUpdate(_message.Message):
    __slots__ = ("client_id", "task", "code", "reason")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    task: str
    code: str
    reason: str
    def __init__(self, client_id: _Optional[str] = ..., task: _Optional[str] = ..., code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("run_id", "phase", "round", "num_rounds", "waiting_for", "tasks", "clients", "last_report", "model", "uptime_seconds", "warnings")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_REPORT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    phase: Phase
    round: int
    num_rounds: int
    waiting_for: str
    tasks: _containers.RepeatedCompositeFieldContainer[TaskStatus]
    clients: _containers.RepeatedCompositeFieldContainer[ClientStatus]
    last_report: RoundReport
    model: ModelSummary
    uptime_seconds: float
    warnings: _containers.RepeatedCompositeFieldContainer[RoundWarning]
    def __init__(self, run_id: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., round: _Optional[int] = ..., num_rounds: _Optional[int] = ..., waiting_for: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskStatus, _Mapping]]] = ..., clients: _Optional[_Iterable[_Union[ClientStatus, _Mapping]]] = ..., last_report: _Optional[_Union[RoundReport, _Mapping]] = ..., model: _Optional[_Union[ModelSummary, _Mapping]] = ..., uptime_seconds: _Optional[float] = ..., warnings: _Optional[_Iterable[_Union[RoundWarning, _Mapping]]] = ...) -> None: ...

class TaskStatus(_message.Message):
    __slots__ = ("task", "min_clients", "connected_clients", "cohort_size", "reported_clients", "last_metrics", "auxiliary")
    class LastMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    MIN_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    COHORT_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPORTED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_METRICS_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    task: str
    min_clients: int
    connected_clients: int
    cohort_size: int
    reported_clients: int
    last_metrics: _containers.ScalarMap[str, float]
    auxiliary: bool
    def __init__(self, task: _Optional[str] = ..., min_clients: _Optional[int] = ..., connected_clients: _Optional[int] = ..., cohort_size: _Optional[int] = ..., reported_clients: _Optional[int] = ..., last_metrics: _Optional[_Mapping[str, float]] = ..., auxiliary: _Optional[bool] = ...) -> None: ...

class ClientStatus(_message.Message):
    __slots__ = ("client_id", "task", "connected", "in_cohort", "reported", "tasks")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    IN_COHORT_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    task: str
    connected: bool
    in_cohort: bool
    reported: bool
    tasks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, client_id: _Optional[str] = ..., task: _Optional[str] = ..., connected: _Optional[bool] = ..., in_cohort: _Optional[bool] = ..., reported: _Optional[bool] = ..., tasks: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("base_model", "shared_parameters", "head_parameters", "total_parameters", "scope_parameters", "frozen_parameters")
    class HeadParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ScopeParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARED_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    HEAD_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCOPE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    shared_parameters: int
    head_parameters: _containers.ScalarMap[str, int]
    total_parameters: int
    scope_parameters: _containers.ScalarMap[str, int]
    frozen_parameters: int
    def __init__(self, base_model: _Optional[str] = ..., shared_parameters: _Optional[int] = ..., head_parameters: _Optional[_Mapping[str, int]] = ..., total_parameters: _Optional[int] = ..., scope_parameters: _Optional[_Mapping[str, int]] = ..., frozen_parameters: _Optional[int] = ...) -> None: ...
