"""A server on loopback for tests: the real API over a scripted engine, or over the real one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO

from anychip.serve.api.app import make_app
from anychip.serve.api.log import Log
from anychip.serve.api.server import Server, bind
from anychip.serve.api.settings import ApiSettings
from anychip.serve.request import Output, Request, TokenLogprobs
from anychip.serve.settings import EngineStats
from anychip.serve.stream import Stream
from anychip.serve.text import AnswerText
from anychip.text.tokenizer import open_tokenizer

NEVER = "<never ends>"


class ScriptedEngine:
    """Answers each request with the text that `script` gives for its prompt's text, one token an output.

    A text that ends in NEVER leaves the answer open until it is aborted.
    """

    max_context = 4096

    def __init__(self, script: Callable[[str], str]) -> None:
        self.tokenizer = open_tokenizer("anychip-4096")
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self._script, self._streams = script, dict[str, Stream]()

    def submit(self, request: Request) -> Stream:
        text = self._script(self.tokenizer.decode(request.prompt_ids))
        stream = Stream(request.request_id, request.sampling.n, self._abort)
        self.requests.append(request)
        self._streams[request.request_id] = stream
        for index in range(request.sampling.n):
            stream.put(self._outputs(request, index, text))
        return stream

    def _outputs(self, request: Request, index: int, text: str) -> list[Output]:
        most, ids = request.sampling.max_tokens or 10**6, self.tokenizer.encode(text.removesuffix(NEVER))
        cut, shown = ids[:most], AnswerText(self.tokenizer)
        pieces = [shown.add(token) for token in cut]
        logprobs = [None if request.sampling.logprobs is None else
                    TokenLogprobs(token, -0.5, tuple((token + i, -0.5 - i) for i in range(request.sampling.logprobs)))
                    for token in cut]
        outputs = [Output(index, *each) for each in zip(cut, pieces, logprobs, strict=True)]
        if not text.endswith(NEVER):
            ended = "length" if len(ids) > most else "stop"
            outputs.append(Output(index, None if ended == "length" else 1, "", finish_reason=ended))
        return outputs

    def _abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        stream = self._streams[request_id]
        stream.put([Output(i, None, "", finish_reason="abort") for i in range(stream._open)])

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, len(self.requests), len(self.aborted), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, None, None, 1.0)

    def drain(self, timeout_s: float | None = None) -> bool:
        return True

    def stop(self) -> None:
        for request_id, stream in self._streams.items():
            if not stream.finished:
                self._abort(request_id)


@contextmanager
def serving(engine, **options) -> Iterator[tuple[str, StringIO]]:
    """Serve an engine on a free port; yield the address and what is logged."""
    import uvicorn

    settings = ApiSettings(**({"model": "test"} | options))
    logged = StringIO()
    listening, log = bind("127.0.0.1", 0), Log(logged)
    app = make_app(engine, settings, log)
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5)
    server = Server(config, engine, 1, log)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", logged
    finally:
        server.should_exit = True
        thread.join()
