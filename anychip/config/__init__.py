"""Model configurations: a family's published `config.json` fields, and the specs that the model is built from."""

from .base import ModelConfig, only
from .deepseek_v3 import DeepseekV3Config, DeepseekV32Config, GlmMoeDsaConfig
from .deepseek_v4 import DeepseekV4Config
from .files import PRESETS, load_config
from .qwen3 import Qwen3Config, Qwen3MoeConfig
from .specs import YarnScaling

__all__ = [
    "PRESETS",
    "DeepseekV3Config",
    "DeepseekV4Config",
    "DeepseekV32Config",
    "GlmMoeDsaConfig",
    "ModelConfig",
    "Qwen3Config",
    "Qwen3MoeConfig",
    "YarnScaling",
    "load_config",
    "only",
]
