"""Does structured output always keep its schema, and what does it cost a token?

1,000 random JSON schemas (benchmarks/schemas.py: finite documents) answered by the shipped `nano`, 16 at a time, at
temperature 1.2; every text is parsed and judged by `jsonschema`. Then the time a token with a schema against the time
without, in turn, one and 16 streams of `tiny`. Held to: 100 % valid, overhead <= 20 % a token.

    python -m benchmarks.structured [--schemas 1000] [--processor-time]

--schemas 0 leaves the first part out; --processor-time counts the process's own time, for a machine with other work.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable

import jsonschema

from anychip.chips import open_chip
from anychip.serve.engine import Engine
from anychip.serve.models import open_model
from anychip.serve.request import Grammar, Request, Sampling
from anychip.serve.settings import EngineSettings

from .rows import append, row
from .schemas import random_schema
from .serving import engine, tiny

LONG = {"type": "array", "minItems": 40, "maxItems": 40, "items": {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "kind"],
    "properties": {"name": {"type": "string", "maxLength": 12},
                   "age": {"type": "integer", "minimum": 0, "maximum": 120},
                   "kind": {"enum": ["red", "green", "blue"]}}}}


def judge(count: int) -> tuple[int, list[str]]:
    """Return how many of `count` schemas were kept, and what went wrong."""
    chip, wrong = open_chip("cpu"), list[str]()
    model, tokenizer = open_model("nano", chip)
    prompt = tuple(tokenizer.encode("The answer is"))
    schemas = [random_schema(random.Random(seed)) for seed in range(count)]
    with Engine.start(model, chip, tokenizer, EngineSettings(max_batch=16, max_queue=count + 1)) as serving:
        streams = [serving.submit(Request(prompt, Sampling(temperature=1.2, seed=seed, max_tokens=1500,
                                                           grammar=Grammar("json_schema", json.dumps(schema)))))
                   for seed, schema in enumerate(schemas)]
        for seed, (schema, stream) in enumerate(zip(schemas, streams, strict=True)):
            outputs = list(stream)
            text = "".join(output.text for output in outputs)
            try:
                jsonschema.validate(json.loads(text), schema)
            except (ValueError, jsonschema.ValidationError) as error:
                wrong.append(f"schema {seed}: {str(error).splitlines()[0]} ({outputs[-1].finish_reason}) {text[:80]!r}")
    return count - len(wrong), wrong


def seconds_a_token(serving: Engine, grammar: Grammar | None, num_streams: int, clock: Callable[[], float]) -> float:
    """Return seconds a token of all streams together, each of 120 tokens."""
    streams = [serving.submit(Request((5, 6, 7), Sampling(seed=i, max_tokens=120, ignore_eos=True, grammar=grammar)))
               for i in range(num_streams)]
    for stream in streams:
        next(stream)
    start, before = clock(), serving.stats().new_tokens
    for stream in streams:
        for _ in stream:
            pass
    return (clock() - start) / (serving.stats().new_tokens - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    count, clock = options.schemas, time.process_time if options.processor_time else time.perf_counter
    gc.freeze()
    kept, wrong = judge(count) if count else (0, [])
    print("\n".join(wrong))
    grammar, times = Grammar("json_schema", json.dumps(LONG)), dict[tuple[str, int], list[float]]()
    with engine(tiny(), prefix_cache=False) as serving:
        for round_ in range(6):
            for streams in (1, 16):
                for what, asked in (("plain", None), ("schema", grammar)):
                    found = seconds_a_token(serving, asked, streams, clock)
                    if round_:
                        times.setdefault((what, streams), []).append(1e3 * found)
    rows = []
    if count:
        rows.append(row("structured", "schemas kept", [kept / count], "share", f"{count} random schemas, nano"))
    timed = "tiny, 120 tokens a stream" + (", processor time" if options.processor_time else "")
    rows += [row("structured", f"{what} x{streams}", values, "ms/token", timed)
             for (what, streams), values in times.items()]
    append(rows)
    middle = {key: statistics.median(values) for key, values in times.items()}
    overhead = {f"overhead_{streams}": round(middle["schema", streams] / middle["plain", streams] - 1, 4)
                for streams in (1, 16)}
    print(json.dumps({"schemas": count, "valid": kept, **overhead, "kind": "measured"}))


if __name__ == "__main__":
    main()
