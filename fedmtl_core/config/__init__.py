"""The configuration: one YAML file for the server, the clients and `fedmtl-local`.

Every key except a few has a default, and an unknown key is an error that names the key. `reference()` lists all keys.
Each section has a module; `root` combines the sections, and `loading` reads files.
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
from fedmtl_core.config.reference import Setting, reference, section_purposes
from fedmtl_core.config.root import Config, contradictions, flattened
from fedmtl_core.config.rounds import (
    TASK_SELECTIONS,
    CohortSelection,
    EarlyStoppingConfig,
    MissingQuorum,
    RoundsConfig,
)
from fedmtl_core.config.schedule import ScheduleEntry
from fedmtl_core.config.section import READERS, Reader
from fedmtl_core.config.server import (
    Durability,
    LimitsConfig,
    Readers,
    SecurityConfig,
    ServerConfig,
    StoreConfig,
    TlsConfig,
)
from fedmtl_core.config.sharing import AdaptiveConfig, SharingConfig, sharing_keys
from fedmtl_core.config.sharing_modes import sharing_in_words
from fedmtl_core.config.tasks import MAX_LABELS, AuxiliaryConfig, DataConfig, TaskConfig
from fedmtl_core.config.tracking import TracingConfig, TrackerName, TrackingConfig
from fedmtl_core.config.training import DEFAULT_MODEL, ModelConfig, TrainingConfig

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_MODEL",
    "MAX_LABELS",
    "OPTIMIZERS",
    "READERS",
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
    "Reader",
    "Readers",
    "ResolvedServerOptimizer",
    "RobustnessConfig",
    "RoundsConfig",
    "ScheduleEntry",
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
    "section_purposes",
    "sharing_in_words",
    "sharing_keys",
    "validated",
]
