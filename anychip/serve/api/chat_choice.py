"""One answer of a chat as it grows: reasoning, content and calls from the engine's outputs."""

from __future__ import annotations

import uuid
from typing import Any

from ...chat import Delta
from ..request import FinishReason, Output
from .chat_prompt import ChatPrompt


class ChatChoice:
    """Reads one answer's outputs, and keeps what they add up to."""

    def __init__(self, prompt: ChatPrompt) -> None:
        self._parser, found = prompt.parser()
        self._ends = prompt.stop
        self.reasoning, self.content = "", ""
        self.calls: list[dict[str, Any]] = []
        self.reasoning_tokens = 0
        self.finish: FinishReason | None = None
        self.stop: str | int | None = None
        self._keep(found)

    @property
    def malformed(self) -> str | None:
        """What in the answer only looked like a call; None: nothing."""
        return self._parser.malformed

    def add(self, output: Output) -> list[Delta]:
        """Return what an output adds."""
        self.reasoning_tokens += self._parser.in_reasoning and output.token_id is not None
        deltas = self._parser.feed(output.text)
        if output.finish_reason is not None:
            deltas += self._parser.finish()
            self.finish = output.finish_reason
            self.stop = None if output.stop in self._ends else output.stop
        return self._keep(deltas)

    def _keep(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            self.reasoning += delta.reasoning
            self.content += delta.content
            if delta.call is not None:
                self.calls.append({"id": "call_" + uuid.uuid4().hex[:24], "type": "function", "function": {
                    "name": delta.call.name, "arguments": delta.call.arguments}})
        return deltas
