"""Can bad input get a 500, a hang or a stack trace out of the server? Requests, and completions to be parsed.

Limits: over --cases completions made of DSML's and SSE's pieces, cut anywhere, the parser never fails, any cut gives
the same, and every call has valid JSON arguments; over --requests requests with broken, huge, deep and mistyped bodies,
every answer is JSON in its dialect with a status below 500, within 10 s. Requests made from the OpenAPI
document are tests/test_api_schema.py.

    python -m benchmarks.serve_fuzz [--cases 100000] [--requests 20000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from anychip.chat import ChatParser, Delta

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

WHOLE = ('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="p" string='
         '"true">x</｜DSML｜parameter>\n'
         '<｜DSML｜parameter name="q" string="false">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>')
PIECES = ["<think>", "</think>", "\n", "\n\n", "<", "｜DSML｜", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>",
          "<｜end▁of▁sentence｜>", '<｜DSML｜invoke name="f">\n', '<｜DSML｜invoke name="', "</｜DSML｜invoke>\n",
          '<｜DSML｜parameter name="p" string="true">', '<｜DSML｜parameter name="q" string="false">', "data: ", "\r\n",
          "</｜DSML｜parameter>\n", "7", "{", "[1]", "text ", '"', ">", "é", "\ufffd", "<｜DSML｜tool", "[" * 2000,
          "NaN", WHOLE, WHOLE, "1e999", "\x00", "\ud83d\ude00", "event: error\n\n", "9" * 5000]
VALUES: list[Any] = [None, True, 0, -1, 1.5, 1e308, 2**63, "", "x", "\x00", "<think>", [], {}, [[]], [None],
                     {"a": None}, "x" * 5000, [{"role": "user", "content": "x"}], {"type": "json_schema"},
                     {"type": "object"},
                     -(2**70)]
NAMES = ["model", "messages", "prompt", "max_tokens", "stream", "tools", "tool_choice", "response_format", "n",
         "stop", "logit_bias", "logprobs", "top_logprobs", "temperature", "top_p", "seed", "system", "thinking",
         "stream_options", "reasoning_effort", "echo", "prompt_logprobs", "tokens", "stop_sequences",
         "guided_regex", "output_config"]
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/tokenize",
         "/v1/detokenize"]


def parse(text: str, cuts: list[int], **options: bool) -> tuple[str, str, list[Any], bool]:
    parser = ChatParser(**options)
    ends = [0, *cuts, len(text)]
    deltas: list[Delta] = [d for a, b in zip(ends, ends[1:], strict=False) for d in parser.feed(text[a:b])]
    deltas += parser.finish()
    return ("".join(d.reasoning for d in deltas), "".join(d.content for d in deltas),
            [d.call for d in deltas if d.call], parser.malformed is None)


def fuzz_parser(num_cases: int) -> Counter[str]:
    """Return what was found; raises at the first case that breaks a limit."""
    found: Counter[str] = Counter()
    for seed in range(num_cases):
        draw = random.Random(seed)
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 14)))
        options = {"thinking": draw.random() < 0.5, "calls": draw.random() < 0.9}
        whole = parse(text, [], **options)
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randint(1, 8)))
        assert parse(text, cuts, **options) == whole, (seed, text, cuts)
        for call in whole[2]:
            assert isinstance(json.loads(call.arguments), dict), (seed, call)
        found["with calls" if whole[2] else "malformed" if not whole[3] else "text"] += 1
    return found


def body(draw: random.Random) -> bytes:
    """A request's body, wrong in one of many ways, or right."""
    kind = draw.random()
    if kind < 0.05:
        return draw.randbytes(draw.randint(0, 200))
    if kind < 0.1:
        return b'{"model": "test", "messages": ' + b"[" * draw.choice([10, 900, 50_000])
    good: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    if draw.random() < 0.4:
        good = {"model": "test", "prompt": "Hi", "max_tokens": 5}
    for _ in range(draw.choice([0, 0, 1, 2])):
        good[draw.choice(NAMES)] = draw.choice(VALUES)
    if kind < 0.4:
        message = {draw.choice(["role", "content", "tool_calls", "tool_call_id", "task", "prefix", "tools"]):
                   draw.choice([*VALUES, "assistant", "tool", "user"]) for _ in range(3)}
        good["messages"] = [{"role": draw.choice(["user", "assistant", "tool", "system", "developer"])} | message]
    text = json.dumps(good)
    if kind > 0.9:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(['"', "}", "\\ud800", "NaN", ",", ""]) + text[place + 1:]
    return text.encode()


async def fuzz_requests(num_requests: int) -> Counter[str]:
    """Send requests to the application itself; return the counts by status."""
    import httpx
    from serve_cases import ScriptedEngine

    from anychip.serve.api.app import make_app
    from anychip.serve.api.log import Log
    from anychip.serve.api.settings import ApiSettings

    with open("/dev/null", "w") as nowhere:
        app = make_app(ScriptedEngine(lambda _: "Hello"), ApiSettings("test"), Log(nowhere))
        found: Counter[str] = Counter()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for seed in range(num_requests):
                draw = random.Random(seed)
                path, content = draw.choice(PATHS), body(draw)
                async with asyncio.timeout(10):
                    answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
                assert answer.status_code < 500 and "Traceback" not in answer.text, (seed, path, content, answer.text)
                assert answer.status_code == 200 or "error" in answer.json(), (seed, answer.text)
                found[str(answer.status_code)] += 1
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=100_000)
    arguments.add_argument("--requests", type=int, default=20_000)
    options = arguments.parse_args()
    started = time.perf_counter()
    parsed = fuzz_parser(options.cases)
    parser_s = time.perf_counter() - started
    answered = asyncio.run(fuzz_requests(options.requests))
    print(json.dumps({"kind": "measured", "passed": True, "completions": options.cases, "found": dict(parsed),
                      "parser_time_s": round(parser_s, 1), "requests": options.requests, "statuses": dict(answered),
                      "requests_time_s": round(time.perf_counter() - started - parser_s, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
