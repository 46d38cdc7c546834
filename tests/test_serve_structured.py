"""Structured output: whatever the model would say, the text keeps the schema or the expression."""

import json
import random
import re

import jsonschema
import pytest

from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.serve.engine import Engine
from anychip.serve.models import open_model
from anychip.serve.request import Grammar, Request, Sampling
from anychip.serve.settings import EngineSettings
from benchmarks.schemas import random_schema


@pytest.fixture(scope="module")
def engine():
    chip = open_chip("cpu")
    with Engine.start(*opened(chip), EngineSettings(max_batch=8, cache_tokens=8192, speculate=True)) as started:
        yield started


def opened(chip):
    model, tokenizer = open_model("nano", chip)
    return model, chip, tokenizer


def text_of(engine, grammar, **fields):
    request = Request((5, 6, 7), Sampling(grammar=grammar, **({"max_tokens": 400} | fields)))
    outputs = list(engine.submit(request))
    return "".join(output.text for output in outputs), outputs[-1].finish_reason


def test_twelve_random_schemas_give_valid_json(engine):
    for seed in range(12):
        schema = random_schema(random.Random(seed))
        text, reason = text_of(engine, Grammar("json_schema", json.dumps(schema)), seed=seed, temperature=1.2)
        assert reason == "stop"
        jsonschema.validate(json.loads(text), schema)


def test_a_regular_expression_is_kept_in_every_fork(engine):
    rule = Sampling(n=3, max_tokens=50, grammar=Grammar("regex", "[a-c]{3,5}-[0-9]{2}x"))
    stream = engine.submit(Request((5, 6), rule))
    texts = ["", "", ""]
    for output in stream:
        texts[output.index] += output.text
    assert all(re.fullmatch("[a-c]{3,5}-[0-9]{2}x", text) for text in texts)


def test_what_is_no_grammar_is_refused_before_it_waits(engine):
    for grammar, words in ((Grammar("json_schema", '{"type": "nonsense"}'), "nonsense"),
                           (Grammar("json_schema", "{"), "is not JSON"), (Grammar("regex", "(a"), "regex")):
        with pytest.raises(InputError, match=words):
            engine.submit(Request((1,), Sampling(grammar=grammar)))
    with pytest.raises(InputError, match="choose one of json_schema, json, regex, lark"):
        Grammar("bnf")
