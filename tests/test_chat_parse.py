"""The parser of completions: any split gives the same, what was encoded comes back, and no text breaks it."""

import json
import random

import pytest

from anychip.chat import ChatParser, Delta, encode_messages, parse_completion
from anychip.chat.encode import calls_text
from anychip.chat.messages import Call

CALLS = calls_text([Call("f", {"a": "x\n<b>", "n": [1, {"k": None}]}), Call("g", {})])
PIECES = ["<think>", "</think>", "\n", "\n\n", "<", "｜DSML｜", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>",
          "<｜end▁of▁sentence｜>", '<｜DSML｜invoke name="f">\n', '<｜DSML｜invoke name="', "</｜DSML｜invoke>\n",
          '<｜DSML｜parameter name="p" string="true">', '<｜DSML｜parameter name="q" string="false">',
          "</｜DSML｜parameter>\n", "7", "{", "text ", '"', ">", "é", "\ufffd", CALLS, "<｜DSML｜tool",
          "[" * 2000, "NaN"]


def joined(deltas: list[Delta]) -> tuple:
    return "".join(d.reasoning for d in deltas), "".join(d.content for d in deltas), [d.call for d in deltas if d.call]


def in_pieces(text: str, cuts: list[int], **options: bool) -> tuple:
    parser = ChatParser(**options)
    ends = [0, *cuts, len(text)]
    deltas = [d for a, b in zip(ends, ends[1:], strict=False) for d in parser.feed(text[a:b])]
    return *joined(deltas + parser.finish()), parser.malformed is None


def fuzzed(seed: int) -> tuple[str, dict[str, bool], list[int]]:
    draw = random.Random(seed)
    text = "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 12)))
    if draw.random() < 0.3 and text:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(["", "x"]) + text[place + 1:]
    options = {"thinking": draw.random() < 0.5, "calls": draw.random() < 0.9}
    return text, options, sorted(draw.randrange(len(text) + 1) for _ in range(draw.randint(0, 8)))


def test_any_split_gives_the_same_and_every_call_is_json() -> None:
    for seed in range(3000):
        text, options, cuts = fuzzed(seed)
        whole = in_pieces(text, [], **options)
        assert in_pieces(text, cuts, **options) == whole, (seed, text, cuts)
        assert all(isinstance(json.loads(call.arguments), dict) for call in whole[2])


def test_one_character_at_a_time_gives_the_same() -> None:
    for seed in range(80):
        text, options, _ = fuzzed(seed)
        assert in_pieces(text, list(range(len(text))), **options) == in_pieces(text, [], **options), seed


def test_what_was_encoded_comes_back() -> None:
    draw = random.Random(7)
    values = ["", "a</b>", "\n\n", 1, -2.5, True, None, [1, "é"], {"k": [{}]}, '"', "｜DSML｜"]
    for _ in range(200):
        calls = [Call(draw.choice("fgh"), {f"p{i}": draw.choice(values) for i in range(draw.randint(0, 3))})
                 for _ in range(draw.randint(0, 3))]
        turn = {"role": "assistant", "content": "Sure.", "reasoning_content": "Hm.", "tool_calls": [
            {"function": {"name": c.name, "arguments": json.dumps(c.arguments)}} for c in calls]}
        start = encode_messages([{"role": "user", "content": "?"}], thinking=True)
        found = parse_completion(encode_messages([{"role": "user", "content": "?"}, turn], thinking=True)[len(start):],
                                 thinking=True)
        assert (found.reasoning, found.content, found.malformed) == ("Hm.", "Sure.", None)
        assert [(c.name, json.loads(c.arguments)) for c in found.calls] == [(c.name, c.arguments) for c in calls]


@pytest.mark.parametrize(("broken", "why"), [
    (CALLS.replace("</｜DSML｜parameter>", ""), "ends within a call"),
    (CALLS.replace('"true"', '"maybe"'), "not true or false"),
    (CALLS.replace('[1, {"k": null}]', "[1,"), "is not JSON"), (CALLS.replace('name="n"', 'name="a"'), "twice"),
    (CALLS.replace("invoke name", "invoke id"), "stands where"), (CALLS.replace('"f"', '""'), "has the name"),
    (CALLS[:60], "ends within a call")])
def test_a_malformed_call_is_content_to_the_byte(broken: str, why: str) -> None:
    found = parse_completion("Look:" + broken)
    assert found.malformed is not None and why in found.malformed
    assert found.content.startswith("Look:") and broken.startswith(found.content[5:]) and not [
        c for c in found.calls if c.name == "f"]


def test_whole_calls_before_a_malformed_one_stand() -> None:
    found = parse_completion(CALLS.replace('<｜DSML｜invoke name="g">', '<｜DSML｜invoke name="g" x>'))
    assert [c.name for c in found.calls] == ["f"] and "name=\"g\" x>" in found.content


def test_reasoning_may_quote_a_tag_and_calls_may_follow_it() -> None:
    text = f"I could write <｜DSML｜tool_calls> here.</think>Now.{CALLS}"
    found = parse_completion(text, thinking=True)
    assert found.reasoning == "I could write <｜DSML｜tool_calls> here." and found.content == "Now."
    assert [c.name for c in found.calls] == ["f", "g"]
    assert [c.name for c in parse_completion(f"No end{CALLS}", thinking=True).calls] == ["f", "g"]
    assert parse_completion(CALLS, calls=False).content == CALLS
