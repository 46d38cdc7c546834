"""The official `openai` client, unmodified: chat, stream, tools, JSON schema, log-probabilities, errors."""

import json

import pytest
from serve_cases import NEVER, ScriptedEngine, serving

openai = pytest.importorskip("openai")

CALL = ('Let me look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="clock">\n<｜DSML｜parameter name="city" string='
        '"true">Rome</｜DSML｜parameter>\n<｜DSML｜parameter name="h" string="false">24</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>')
TOOLS = [{"type": "function", "function": {"name": "clock", "description": "Time", "parameters": {"type": "object"}}}]
ASKED = [{"role": "user", "content": "Time in Rome?"}]


def script(prompt: str) -> str:
    if "<tool_result>" in prompt:
        return "It is noon."
    if prompt.endswith('<｜DSML｜invoke name="clock">\n'):
        return ('<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
                '</｜DSML｜tool_calls>')
    if "## Tools" in prompt:
        return CALL
    if "## Response Format" in prompt:
        return '{"answer": 4}'
    if "for ever" in prompt:
        return "on and on" + NEVER
    return "I think so.</think>Rome: 12:00 é" if prompt.endswith("<think>") else "Hello, world! é"


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine(script)


@pytest.fixture(scope="module")
def client(engine):
    with serving(engine, timeout_s=0.5) as (url, _log):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def chat(client, **options):
    return client.chat.completions.create(**({"model": "test", "messages": ASKED} | options))


def test_chat_with_reasoning_and_usage(client) -> None:
    plain, found = chat(client), chat(client, reasoning_effort="high")
    assert plain.choices[0].message.content == "Hello, world! é" and plain.choices[0].finish_reason == "stop"
    assert found.choices[0].message.reasoning_content == "I think so."
    assert found.choices[0].message.content == "Rome: 12:00 é"
    usage = found.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_stream_adds_up_to_the_whole_and_ends_with_usage(client) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, extra_body={
        "thinking": {"type": "enabled"}}))
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(d.content or "" for d in deltas) == "Rome: 12:00 é"
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "I think so."
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop" and len(deltas) > 6
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 6 and chunks[0].usage is None


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_and_answered(client, stream: bool) -> None:
    if stream:
        with client.chat.completions.stream(model="test", messages=ASKED, tools=TOOLS) as events:
            answer = events.get_final_completion().choices[0]
    else:
        answer = chat(client, tools=TOOLS).choices[0]
    calls = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content == "Let me look."
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Rome", "h": 24}, {}]
    assert len({call.id for call in calls}) == 2
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12:00"} for call in calls]
    after = chat(client, tools=TOOLS, messages=[*ASKED, answer.message.model_dump(exclude_none=True), *results])
    assert after.choices[0].message.content == "It is noon."


def test_a_call_can_be_required_named_or_forbidden(client, engine) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "clock"}}):
        call = chat(client, tools=TOOLS, tool_choice=choice).choices[0].message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {"city": "Oslo"})
    assert chat(client, tools=TOOLS, tool_choice="none").choices[0].message.content == "Hello, world! é"
    with pytest.raises(openai.BadRequestError, match="tool_choice names 'nope'; the tools are clock"):
        chat(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "nope"}})


def test_json_schema_reaches_prompt_and_grammar(client, engine) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
    assert json.loads(chat(client, response_format=wanted).choices[0].message.content) == {"answer": 4}
    grammar = engine.requests[-1].sampling.grammar
    assert grammar.kind == "json_schema" and json.loads(grammar.text) == schema
    chat(client, response_format={"type": "json_object"})
    assert engine.requests[-1].sampling.grammar.kind == "json"
    chat(client, response_format=wanted, reasoning_effort="high", tools=TOOLS)
    assert engine.requests[-1].sampling.grammar.kind == "lark" and "<[6]>" in engine.requests[-1].sampling.grammar.text


def test_log_probabilities_of_both_endpoints(client) -> None:
    entries = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == "Hello, world! é"
    assert all(len(entry.top_logprobs) == 2 and entry.logprob == -0.5 for entry in entries)
    found = client.completions.create(model="test", prompt=["a b", "c"], logprobs=3, n=2, max_tokens=3)
    assert len(found.choices) == 4 and [c.index for c in found.choices] == [0, 1, 2, 3]
    assert all(len(c.logprobs.tokens) == 3 == len(c.logprobs.top_logprobs) for c in found.choices)
    assert "".join(found.choices[0].logprobs.tokens) == found.choices[0].text
    assert found.choices[0].finish_reason == "length"


def test_sampling_options_reach_the_engine(client, engine) -> None:
    chat(client, temperature=0.5, top_p=0.9, seed=3, stop=["a", "b"], n=2, max_completion_tokens=5,
         logit_bias={"7": -100}, presence_penalty=1, frequency_penalty=-1,
         extra_body={"top_k": 4, "min_p": 0.1, "ignore_eos": True})
    sampling = engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.n, sampling.max_tokens) == (0.5, 0.9, 3, 2, 5)
    assert (sampling.stop, sampling.logit_bias, sampling.top_k, sampling.ignore_eos) == (("a", "b"), {7: -100}, 4, True)


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"model": "gpt-9"}, "NotFoundError", "this server has 'test'"),
    ({"temperature": -1}, "BadRequestError", "temperature=-1"),
    ({"extra_body": {"topp": 1}}, "BadRequestError", "topp: Extra inputs"),
    ({"messages": []}, "BadRequestError", "messages"),
    ({"top_logprobs": 2}, "BadRequestError", "needs logprobs=true"),
    ({"n": 99}, "BadRequestError", "at most 16 answers"),
    ({"stream_options": {"include_usage": True}}, "BadRequestError", "need stream=true"),
    ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "BadRequestError", "prefix=true"),
    ({"messages": [{"role": "user", "content": "for ever"}]}, "InternalServerError", "not complete after 0.5 s"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "BadRequestError",
     "reads text only")])
def test_errors_are_those_of_the_client(client, options, error, words) -> None:
    with pytest.raises(getattr(openai, error), match=words) as found:
        chat(client, **options)
    assert found.value.body["message"] and found.value.request_id.startswith("req_")


def test_an_error_in_a_stream_is_raised(client) -> None:
    with pytest.raises(openai.APIError, match="not complete after 0.5 s"):
        list(chat(client, stream=True, messages=[{"role": "user", "content": "for ever"}]))


def test_models_are_listed(client) -> None:
    assert [model.id for model in client.models.list()] == ["test"] and client.models.retrieve("test").id == "test"
