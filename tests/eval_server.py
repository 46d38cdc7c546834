"""A stand-in that speaks OpenAI's and Anthropic's protocols on loopback and can misbehave as real services do."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """Answers each prompt with `reply(prompt)`. The first `limited` requests get 429; `broken(count)` may give a status
    for the count-th request. `asked` holds the prompts that were answered."""

    def __init__(self, reply: Callable[[str], str], limited: int = 0, broken: Callable[[int], int] = lambda n: 0):
        self.asked: list[str] = []
        self.seen = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                with lock:
                    self.seen += 1
                    status = 429 if self.seen <= limited else broken(self.seen)
                    if not status:
                        self.asked.append(prompt)
                anthropic = handler.path.endswith("/messages")
                found = {"error": {"type": "refused", "message": "not now"}, "type": "error"} if status else (
                    _anthropic if anthropic else _openai)(reply(prompt), body["model"])
                data = json.dumps(found).encode()
                handler.send_response(status or 200)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(data)))
                handler.send_header("retry-after-ms", "1")
                handler.end_headers()
                handler.wfile.write(data)

            def log_message(handler, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self._server.shutdown()
        self._server.server_close()


def _openai(text: str, model: str) -> dict:
    message = {"role": "assistant", "content": text}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}}


def _anthropic(text: str, model: str) -> dict:
    return {"id": "x", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn",
            "content": [{"type": "text", "text": text}], "usage": {"input_tokens": 10, "output_tokens": 2}}
