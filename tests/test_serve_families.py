"""Models of every family behind the API: the engine's tokens are those of plain generation; chats and grammars."""

import asyncio
import json

import httpx
import jsonschema
import pytest
from models import vivid_model

from anychip.chat import chat_format
from anychip.chips import open_chip
from anychip.config import load_config
from anychip.serve.api.app import make_app
from anychip.serve.api.settings import ApiSettings
from anychip.serve.engine import Engine
from anychip.serve.generate import generate
from anychip.serve.models import open_model
from anychip.serve.request import Request, Sampling
from anychip.serve.settings import EngineSettings
from anychip.text.tokenizer import open_tokenizer

FAMILIES = ("v3", "v32", "glm5", "qwen3-moe", "qwen3")
WORDS = open_tokenizer("anychip-4096")
TALK = [{"role": "user", "content": "Who hunts the whale?"}]
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["kind"], "properties": {
    "kind": {"enum": ["red", "green"]}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def ask(engine, body, style):
    async def post():
        app = make_app(engine, ApiSettings("test", chat=style))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
            asked = {"model": "test", "messages": TALK} | body
            return await client.post("/v1/chat/completions", json=asked, timeout=120)

    answer = asyncio.run(post())
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_served_and_its_tokens_are_those_of_plain_generation(family):
    chip = open_chip("cpu")
    model = vivid_model(load_config(f"{family}-nano"), chip.ops())
    style, prompt = chat_format(family), tuple(WORDS.encode("In the beginning the whale said, come. " * 30))
    expected = list(generate(model, chip, prompt, 12, Sampling(0)))
    ids = WORDS.encode(style.encode(TALK))
    told = WORDS.decode(list(generate(model, chip, ids, 8, Sampling(0))))
    rule = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
    settings = EngineSettings(max_batch=4, max_pass_tokens=96, cache_tokens=4096, speculate=bool(model.mtp))
    with Engine.start(model, chip, WORDS, settings) as engine:
        streams = [engine.submit(Request(prompt[cut:], rule)) for cut in (0, 7)]
        assert [output.token_id for output in streams[0]] == expected
        assert sum(1 for _ in streams[1]) == 12
        again = list(engine.submit(Request(prompt, rule)))
        assert [output.token_id for output in again] == expected and again[0].cached_tokens >= 128
        choice = ask(engine, {"temperature": 0, "max_tokens": 8, "ignore_eos": True}, style)
        assert choice["message"]["content"] == told and choice["finish_reason"] == "length"


@pytest.fixture(scope="module")
def nano():
    chip = open_chip("cpu")
    model, tokenizer = open_model("nano", chip)
    with Engine.start(model, chip, tokenizer, EngineSettings(max_batch=4, cache_tokens=4096)) as engine:
        yield engine


@pytest.mark.parametrize("family", ("v4", "qwen3", "glm5"))
def test_an_answer_keeps_its_schema_after_reasoning_and_beside_tools(nano, family):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for begins, extra in (("</think>", {"thinking": {"type": "enabled"}}), ("{", {"tools": TOOLS})):
        pull = {str(WORDS.encode(begins)[0]): 100}  # else free text may go on for ever
        body = {"response_format": wanted, "logit_bias": pull, "max_tokens": 60} | extra
        choice = ask(nano, body, chat_format(family))
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
