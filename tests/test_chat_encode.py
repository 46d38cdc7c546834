"""The chat encoding, against prompts written out from the publisher's description (encoding/README.md)."""

import json

import pytest

from anychip.chat import encode_messages
from anychip.errors import InputError

USER_ONLY = [{"role": "user", "content": "2+2?"}]
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."}, *USER_ONLY]
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time in a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}


def call(call_id: str, **arguments: object) -> dict:
    return {"id": call_id, "type": "function", "function": {"name": "clock", "arguments": json.dumps(arguments)}}


def test_chat_without_thinking() -> None:
    assert encode_messages(TALK) == ("<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>Hello!"
                                     "<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜></think>")


def test_earlier_reasoning_is_dropped_and_kept_on_demand() -> None:
    assert encode_messages(TALK, thinking=True) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>Hello!<｜end▁of▁sentence｜><｜User｜>2+2?"
        "<｜Assistant｜><think>")
    assert encode_messages(TALK, thinking=True, drop_thinking=False) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜><think>A greeting.</think>Hello!"
        "<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>")


def test_tools_results_and_kept_reasoning() -> None:
    talk = [{"role": "user", "content": "Time in Rome and Oslo?"},
            {"role": "assistant", "content": "", "reasoning_content": "Two calls.",
             "tool_calls": [call("a", city="Rome"), call("b", city="Oslo", hours=24, exact=False)]},
            {"role": "tool", "tool_call_id": "b", "content": "13:00"},
            {"role": "tool", "tool_call_id": "a", "content": "12:59"},
            {"role": "user", "content": "Which is later?"}]
    prompt = encode_messages(talk, thinking=True, tools=[CLOCK])
    head, tail = prompt.split("### Available Tool Schemas\n\n")
    assert head.startswith('<｜begin▁of▁sentence｜>\n\n## Tools\n\nYou have access to a set of tools to help '
                           'answer the user\'s question. You can invoke tools by writing a "<｜DSML｜tool_calls>"')
    assert tail == (
        json.dumps(CLOCK["function"]) + "\n\nYou MUST strictly follow the above defined tool name and parameter "
        "schemas to invoke tool calls.\n<｜User｜>Time in Rome and Oslo?<｜Assistant｜><think>Two calls.</think>\n\n"
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="clock">\n<｜DSML｜parameter name="city" string="true">Rome'
        '</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n<｜DSML｜parameter name="city" string='
        '"true">Oslo</｜DSML｜parameter>\n<｜DSML｜parameter name="hours" string="false">24</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="exact" string="false">false</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜tool_calls><｜end▁of▁sentence｜><｜User｜><tool_result>12:59</tool_result>\n\n<tool_result>13:00"
        "</tool_result>\n\nWhich is later?<｜Assistant｜><think>")


@pytest.mark.parametrize(("release", "effort", "begins"), [
    ("preview", None, "<｜User｜>"), ("preview", "high", "<｜User｜>"),
    ("preview", "max", "Reasoning Effort: Absolute maximum with no shortcuts permitted.\nYou MUST be very thorough"),
    ("0731", "low", "<｜User｜>"), ("0731", "high", "Reasoning Effort: Absolute maximum"),
    ("0731", "max", "Reasoning Effort: Beyond maximum — exhaustive")])
def test_effort_stands_right_after_bos(release: str, effort: str | None, begins: str) -> None:
    prompt = encode_messages(USER_ONLY, thinking=True, effort=effort, release=release)
    assert prompt.startswith("<｜begin▁of▁sentence｜>" + begins)
    assert encode_messages(USER_ONLY, effort=effort, release=release).startswith("<｜begin▁of▁sentence｜><｜User｜>")


@pytest.mark.parametrize(("task", "ends"), [
    ("action", "<｜Assistant｜><think><｜action｜>"), ("query", "2+2?<｜query｜>"), ("read_url", "2+2?<｜read_url｜>"),
    ("domain", "2+2?<｜domain｜>")])
def test_quick_instructions(task: str, ends: str) -> None:
    assert encode_messages([USER_ONLY[0] | {"task": task}], thinking=True).endswith(ends)
    titled = [*USER_ONLY, {"role": "assistant", "content": "4", "task": "title"},
              {"role": "assistant", "content": "Sums"}]
    assert encode_messages(titled).endswith("4<｜end▁of▁sentence｜><｜title｜>Sums<｜end▁of▁sentence｜>")


def test_developer_reminder_and_response_format() -> None:
    talk = [{"role": "latest_reminder", "content": "2026-11-24"}, {"role": "developer", "content": "Search."}]
    assert encode_messages(talk, response_format={"type": "object"}) == (
        "<｜begin▁of▁sentence｜>\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
        '{"type": "object"}<｜latest_reminder｜>2026-11-24<｜User｜>Search.<｜Assistant｜></think>')


def test_a_turn_without_end_is_continued() -> None:
    talk = [*USER_ONLY, {"role": "assistant", "content": "It is", "wo_eos": True}]
    assert encode_messages(talk).endswith("<｜Assistant｜></think>It is")


def test_all_reasons_are_said_at_once() -> None:
    wrong = [{"role": "bot", "content": "x"}, {"role": "user", "content": [{"type": "image_url"}]},
             {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]
    with pytest.raises(InputError, match=r"messages\[0\].role is 'bot'.*\[1\].*'image_url'.*\[2\].*not JSON"):
        encode_messages(wrong)
    with pytest.raises(InputError, match=r"messages.0..tools must be a list; messages.0..tool_calls must be a list"):
        encode_messages([{"role": "assistant", "tools": 1.5, "tool_calls": "x"}])
    with pytest.raises(InputError, match="effort='low' is not one of release preview: high, max"):
        encode_messages(USER_ONLY, effort="low")
