"""The official `anthropic` client, unmodified: messages, thinking, streams, tools, counts, errors."""

import pytest
from serve_cases import ScriptedEngine, serving
from test_api_openai_client import script

anthropic = pytest.importorskip("anthropic")
TOOLS = [{"name": "clock", "description": "Time", "input_schema": {"type": "object"}}]


@pytest.fixture(scope="module")
def client():
    with serving(ScriptedEngine(script)) as (url, _log):
        yield anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)


def ask(client, text="Time in Rome?", **options):
    return client.messages.create(**({"model": "test", "max_tokens": 400,
                                      "messages": [{"role": "user", "content": text}]} | options))


def test_message_with_thinking(client) -> None:
    found = ask(client, thinking={"type": "enabled", "budget_tokens": 1024}, system="Be brief.")
    assert [(b.type, getattr(b, b.type)) for b in found.content] == [("thinking", "I think so."),
                                                                     ("text", "Rome: 12:00 é")]
    assert found.stop_reason == "end_turn" and found.usage.output_tokens > 5


def test_stream_is_the_same_message(client) -> None:
    for options in ({}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"tools": TOOLS}):
        with client.messages.stream(model="test", max_tokens=400, messages=[{"role": "user", "content": "Hi"}],
                                    **options) as stream:
            streamed = stream.get_final_message()
        whole = ask(client, "Hi", **options)
        skip = {"id", "signature", "citations", "caller"}
        shown = [[{k: v for k, v in block.model_dump().items() if k not in skip} for block in m.content]
                 for m in (streamed, whole)]
        assert shown[0] == shown[1] and streamed.stop_reason == whole.stop_reason


def test_tools_are_called_and_answered(client) -> None:
    found = ask(client, tools=TOOLS)
    calls = [block for block in found.content if block.type == "tool_use"]
    assert found.stop_reason == "tool_use" and [call.input for call in calls] == [{"city": "Rome", "h": 24}, {}]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "12:00"} for call in reversed(calls)]
    after = ask(client, tools=TOOLS, messages=[{"role": "user", "content": "Time in Rome?"},
                                               {"role": "assistant", "content": found.content},
                                               {"role": "user", "content": results}])
    assert after.content[0].text == "It is noon."


def test_tokens_are_counted_and_long_answers_cut_to_the_context(client) -> None:
    messages = [{"role": "user", "content": "Time in Rome?"}]
    assert client.messages.count_tokens(model="test", messages=messages).input_tokens == ask(client).usage.input_tokens
    assert ask(client, max_tokens=20_000).stop_reason == "end_turn"
    assert ask(client, max_tokens=2).stop_reason == "max_tokens"


def test_errors_are_those_of_the_client(client) -> None:
    with pytest.raises(anthropic.NotFoundError, match="this server has 'test'"):
        ask(client, model="claude")
    with pytest.raises(anthropic.BadRequestError, match="invalid_request_error.*temperature=-1"):
        ask(client, extra_body={"temperature": -1})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: "):
        ask(client, "word " * 5000)
