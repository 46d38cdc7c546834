"""Chat formats: messages to a prompt, and a completion back to reasoning, content and calls.

DeepSeek-V4 has its own encoding; the other families have a Jinja template, the checkpoint's own or a plain one of ours.
"""

from .encode import encode_messages
from .formats import ChatFormat, chat_format
from .layout import RELEASES
from .parse import ChatParser, Delta, ToolCall, parse_completion

__all__ = ["RELEASES", "ChatFormat", "ChatParser", "Delta", "ToolCall", "chat_format", "encode_messages",
           "parse_completion"]
