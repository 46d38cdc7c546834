"""The serving engine over HTTP: OpenAI's and Anthropic's dialects, metrics, limits, and a page to chat with."""
