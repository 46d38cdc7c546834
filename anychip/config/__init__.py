"""Model configurations: a family's published `config.json` fields, and the specs that the model is built from."""

from .base import ModelConfig, only
from .deepseek_v4 import DeepseekV4Config
from .files import PRESETS, load_config
from .specs import YarnScaling

__all__ = ["PRESETS", "DeepseekV4Config", "ModelConfig", "YarnScaling", "load_config", "only"]
