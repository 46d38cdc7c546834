"""Every family's chat format: rendered as transformers renders it, read back whatever the split, clear when refused."""

import json
import random
from pathlib import Path

import pytest

import anychip
from anychip.chat import ChatParser, chat_format, parse_completion
from anychip.chat.formats import plain_template
from anychip.chat.syntax import SYNTAXES
from anychip.errors import InputError

FAMILIES = [name for name in SYNTAXES if name not in ("v4", "qwen3-moe")]
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {
    "zone": {"type": "string"}, "n": {"type": "integer"}}}}}
USER, SYSTEM = {"role": "user", "content": "Hi <é>"}, {"role": "system", "content": "Be brief."}
RESULT = {"role": "tool", "tool_call_id": "c0", "content": "12:00"}


def said(content="Hello!", reasoning="", *calls):
    turn = {"role": "assistant", "content": content} | ({"reasoning_content": reasoning} if reasoning else {})
    made = [{"type": "function", "id": f"c{i}", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)]
    return turn | ({"tool_calls": made} if made else {})


CALLING = said("Look.", "Think.", ("clock", {"zone": "CET", "n": 2}))
TALKS = [[USER], [SYSTEM, USER, said("A", "Old."), USER], [USER, said()], [SYSTEM, USER, CALLING, RESULT],
         [USER, said("", "", ("clock", {}), ("clock", {"n": [None, "é"]})), RESULT, RESULT, said("Noon.", "So.")]]
# A chat in each family's published format, thinking: system, user, a call, its result, the answer's opening.
WIRE = {
    "v3": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi <é><｜Assistant｜><think>Think.</think>Look."
          '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{"zone": "CET", "n": 2}<｜tool▁call▁end｜>'
          "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁output▁begin｜>12:00<｜tool▁output▁end｜>",
    "v32": "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi <é><｜Assistant｜><think>Think.</think>Look.\n\n"
           '<｜DSML｜function_calls>\n<｜DSML｜invoke name="clock">\n<｜DSML｜parameter name="zone" string="true">CET'
           '</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
           "</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>\n<result>12:00</result>\n"
           "</function_results>\n\n<think>",
    "glm5": "[gMASK]<sop><|system|>Be brief.<|user|>Hi <é><|assistant|><think>Think.</think>Look.<tool_call>clock"
            "<arg_key>zone</arg_key><arg_value>CET</arg_value><arg_key>n</arg_key><arg_value>2</arg_value></tool_call>"
            "<|observation|><tool_response>12:00</tool_response><|assistant|><think>",
    "qwen3": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <é><|im_end|>\n<|im_start|>assistant\n"
             '<think>\nThink.\n</think>\n\nLook.\n<tool_call>\n{"name": "clock", "arguments": {"zone": "CET", "n": 2}}'
             "\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n"
             "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_our_plain_templates_write_the_published_format(family):
    form = chat_format(family)
    assert form.encode(TALKS[3], thinking=True) == WIRE[family]
    assert '{"name": "clock", "parameters": {' in form.encode([USER], tools=[CLOCK])


@pytest.fixture(scope="module")
def their_tokenizer():
    hf = pytest.importorskip("transformers")
    folder = Path(anychip.__file__).parent / "text/tokenizer-4096"
    return hf.PreTrainedTokenizerFast.from_pretrained(folder)


EVERYTHING = """{% for m in messages %}
  {%- generation %}
    {{ [m.role, m.content] | tojson(indent=1) }}{{ bos_token }}
  {% endgeneration %}
  {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{{ tools | tojson }} é"""


@pytest.mark.parametrize("text", [*map(plain_template, FAMILIES), EVERYTHING])
def test_a_template_renders_as_transformers_renders_it(text, their_tokenizer):
    form = chat_format("qwen3", template=text)
    for talk in TALKS:
        for thinking in (False, True):
            for tools in (None, [CLOCK]):
                turns = [turn | {"content": turn["content"]} for turn in talk]
                theirs = their_tokenizer.apply_chat_template(
                    turns, tools=tools, chat_template=text, tokenize=False, thinking=thinking,
                    enable_thinking=thinking, add_generation_prompt=talk[-1]["role"] != "assistant")
                assert form.encode(talk, thinking=thinking, tools=tools) == theirs


@pytest.mark.parametrize("family", SYNTAXES)
def test_an_answer_comes_back_whatever_the_split(family):
    form, draw = chat_format(family), random.Random(family)
    values = ["", "a b", 1, -2.5, True, None, [1, "é"], {"k": [{}]}, '"', "12"]
    tools = [{"function": {"name": name, "parameters": {"properties": {
        "s": {"type": "string"}, "o": {"type": "object"}}}}} for name in "fg"]
    for _ in range(100):
        calls = [(draw.choice("fg"), {"s": draw.choice(["", "12", "a\nb", '{"x": 1}']), "o": draw.choice(values[2:8])})
                 for _ in range(draw.randint(0, 3))]
        turn, thinking = said(draw.choice(["Sure.", "A\n\nB"]), draw.choice(["Hm.", ""]), *calls), draw.random() < 0.5
        turn = turn if thinking else {name: value for name, value in turn.items() if name != "reasoning_content"}
        prompt = form.encode([USER], thinking=thinking)
        answer = form.encode([USER, turn], thinking=thinking)
        assert answer.startswith(prompt)
        parser, text = form.parser(prompt, tools), answer[len(prompt):]
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randint(0, 12)))
        deltas = [d for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) for d in parser.feed(text[a:b])]
        deltas += parser.finish()
        assert "".join(d.reasoning for d in deltas) == turn.get("reasoning_content", "")
        assert "".join(d.content for d in deltas) == turn["content"] and parser.malformed is None
        assert [(d.call.name, json.loads(d.call.arguments)) for d in deltas if d.call] == calls


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_gives_the_same_in_any_pieces_and_only_json_calls(family):
    syntax, draw = SYNTAXES[family], random.Random(family)
    tags = WIRE[family].replace(">", ">\0").replace("<", "\0<").split("\0")
    pieces = [*tags, *tags, "</think>", "<think>", "\n", "x", '"', "{", "</tool_call>", *syntax.ends]
    for seed in range(300):
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(0, 14)))
        if draw.random() < 0.5:
            text += syntax.forced("clock") + draw.choice(pieces) * 2
        options = {"thinking": draw.random() < 0.4, "calls": draw.random() < 0.9, "syntax": syntax}
        whole, parser = parse_completion(text, **options), ChatParser(**options)
        deltas = [d for letter in text for d in parser.feed(letter)] + parser.finish()
        assert "".join(d.reasoning for d in deltas) == whole.reasoning, (seed, text)
        assert "".join(d.content for d in deltas) == whole.content, (seed, text)
        assert tuple(d.call for d in deltas if d.call) == whole.calls and (parser.malformed is None) == (
            whole.malformed is None)
        assert all(isinstance(json.loads(call.arguments), dict) for call in whole.calls)


@pytest.mark.parametrize("family", SYNTAXES)
def test_a_forced_call_is_the_start_of_that_call(family):
    form = chat_format(family)
    call = form.encode([USER, said("", "", ("clock", {"n": 2}))])[len(form.encode([USER])):]
    opening = form.syntax.forced("clock")
    assert call.lstrip("\n").startswith(opening.lstrip("\n")) and opening.startswith(form.syntax.forced(None))


def test_what_deepseek_v3_wrote_at_first_is_read_too():
    text = "Now.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```" \
           "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    found = parse_completion(text, syntax=SYNTAXES["v3"])
    assert (found.content, [(c.name, c.arguments) for c in found.calls]) == ("Now.", [("f", '{"a": 1}'), ("g", "{}")])


def test_glms_strings_are_told_from_json_by_the_tools_schema():
    text = "<tool_call>clock" + "".join(f"<arg_key>{key}</arg_key><arg_value>12</arg_value>" for key in ("zone", "n")) \
           + "</tool_call>"
    known = parse_completion(text, syntax=SYNTAXES["glm5"], tools=[CLOCK]).calls[0]
    assert json.loads(known.arguments) == {"zone": "12", "n": 12}


def test_the_last_turn_can_be_continued():
    for family in SYNTAXES:
        form = chat_format(family)
        whole = form.encode([USER, said("It is")])
        begun = form.encode([USER, said("It is") | {"wo_eos": True}])
        assert begun.endswith("It is") and whole.startswith(begun)


@pytest.mark.parametrize(("options", "talk", "why"), [
    ({"template": "{% if"}, [USER], "cannot be read: line 1"),
    ({"template": "{{ raise_exception('no ' + messages[0].role) }}"}, [USER], "cannot take these messages: no user"),
    ({"template": "{{ messages.append(1) }}"}, [USER], "cannot take these messages"),
    ({"template": "{{ messages.__class__.__mro__ }}"}, [USER], "cannot take these messages"),
    ({}, [USER | {"task": "title"}, {"role": "bird"}], r"task is DeepSeek-V4's only; messages\[1\].role is 'bird'")])
def test_what_cannot_be_encoded_is_said(options, talk, why):
    with pytest.raises(InputError, match=why):
        chat_format("qwen3", **options).encode(talk)


def test_unknown_families_releases_and_efforts_are_refused():
    with pytest.raises(InputError, match="Did you mean 'qwen3'"):
        chat_format("qwen33")
    with pytest.raises(InputError, match="use preview or 0731"):
        chat_format("v4", release="1")
    with pytest.raises(InputError, match="has no efforts"):
        chat_format("glm5").encode([USER], effort="high")
    form = chat_format("glm5", template="{{ reasoning_effort }}")
    assert form.efforts == ("low", "medium", "high") and form.encode([USER], effort="low") == "low"
