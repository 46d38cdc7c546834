"""anychip: DeepSeek-V4-family models on any chip, and proof of how far apart the chips are."""

__version__ = "0.1.0"
