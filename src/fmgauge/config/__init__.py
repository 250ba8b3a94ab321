"""The YAML config as strict frozen types. Knows what may be asked; not how anything is done."""

from fmgauge.config.keys import key_parts
from fmgauge.config.loading import LoadedConfig, differing_keys, load_config
from fmgauge.config.model import Config
from fmgauge.config.stages import LoadLevel, PlannedStage, planned_stages

__all__ = [
    "Config",
    "LoadLevel",
    "LoadedConfig",
    "PlannedStage",
    "differing_keys",
    "key_parts",
    "load_config",
    "planned_stages",
]
