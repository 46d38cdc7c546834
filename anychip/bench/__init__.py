"""Load on OpenAI-compatible servers: speed under a stated load, and how long one runs without a failure."""
