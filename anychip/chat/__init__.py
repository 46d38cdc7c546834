"""DeepSeek-V4's chat format: messages to a prompt, and a completion back to reasoning, content and calls."""

from .encode import encode_messages
from .layout import RELEASES
from .parse import ChatParser, Delta, ToolCall, parse_completion

__all__ = ["RELEASES", "ChatParser", "Delta", "ToolCall", "encode_messages", "parse_completion"]
