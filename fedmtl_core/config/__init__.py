"""The configuration: one YAML file, read by the server, by clients and by `fedmtl-local` alike.

Every key has a default, an unknown key is an error that names it, and `reference()` is the documentation. The sections
are in modules of their own; `root` puts them together, and `loading` reads them.
"""

from fedmtl_core.config.aggregation import (
    OPTIMIZERS,
    TASK_WEIGHTINGS,
    AggregationConfig,
    NormAction,
    Normalization,
    NormsConfig,
    ResolvedServerOptimizer,
    RobustnessConfig,
    ServerOptimizerConfig,
)
from fedmtl_core.config.clients import (
    DEFAULT_ADDRESS,
    WHOLE,
    ClientConfig,
    ClientSelection,
    LocalClient,
    PartitionConfig,
    WireConfig,
    parse_address,
    parse_shard,
)
from fedmtl_core.config.loading import dump, load, resolve, validated
from fedmtl_core.config.reference import Setting, reference
from fedmtl_core.config.root import Config, contradictions, flattened
from fedmtl_core.config.rounds import (
    TASK_SELECTIONS,
    CohortSelection,
    EarlyStoppingConfig,
    MissingQuorum,
    RoundsConfig,
)
from fedmtl_core.config.server import (
    Durability,
    LimitsConfig,
    Readers,
    SecurityConfig,
    ServerConfig,
    StoreConfig,
    TlsConfig,
)
from fedmtl_core.config.sharing import AdaptiveConfig, SharingConfig
from fedmtl_core.config.tasks import MAX_LABELS, AuxiliaryConfig, DataConfig, TaskConfig
from fedmtl_core.config.tracking import TracingConfig, TrackerName, TrackingConfig
from fedmtl_core.config.training import DEFAULT_MODEL, ModelConfig, TrainingConfig

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_MODEL",
    "MAX_LABELS",
    "OPTIMIZERS",
    "TASK_SELECTIONS",
    "TASK_WEIGHTINGS",
    "WHOLE",
    "AdaptiveConfig",
    "AggregationConfig",
    "AuxiliaryConfig",
    "ClientConfig",
    "ClientSelection",
    "CohortSelection",
    "Config",
    "DataConfig",
    "Durability",
    "EarlyStoppingConfig",
    "LimitsConfig",
    "LocalClient",
    "MissingQuorum",
    "ModelConfig",
    "NormAction",
    "Normalization",
    "NormsConfig",
    "PartitionConfig",
    "Readers",
    "ResolvedServerOptimizer",
    "RobustnessConfig",
    "RoundsConfig",
    "SecurityConfig",
    "ServerConfig",
    "ServerOptimizerConfig",
    "Setting",
    "SharingConfig",
    "StoreConfig",
    "TaskConfig",
    "TlsConfig",
    "TracingConfig",
    "TrackerName",
    "TrackingConfig",
    "TrainingConfig",
    "WireConfig",
    "contradictions",
    "dump",
    "flattened",
    "load",
    "parse_address",
    "parse_shard",
    "reference",
    "resolve",
    "validated",
]
