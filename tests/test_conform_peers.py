"""`anychip conform` against implementations that are not ours: transformers, and llama.cpp's server."""

from dataclasses import replace

import pytest
from llama_server import llama_server, missing

from anychip.conform.answers import Vocabulary, generated_rows, prompt_rows
from anychip.conform.cases import shipped
from anychip.conform.endpoint import connect
from anychip.conform.judge import judge
from anychip.conform.weights import weight_set, widened
from anychip.errors import InputError
from anychip.serve.models import model_folder


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(weight_set("nano").tokenizer)


def chosen_cases(weights, *names):
    suite = shipped(weights)
    return replace(suite, cases=tuple(case for case in suite.cases if case.name in names))


@pytest.mark.parametrize("weights", ["nano", "outliers"])
def test_transformers_in_fp32_passes_all_that_it_can_run(weights):
    peer = pytest.importorskip("anychip.conform.peer")
    pytest.importorskip("transformers.models.deepseek_v4")
    whole = shipped(weights)
    suite = whole if weights == "outliers" else replace(whole, cases=whole.cases[3:10] + whole.cases[12:])  # the short
    with peer.opened(weight_set(weights), "float32") as model:
        rows = judge(peer.functions(model), suite, "float32").rows
    assert [row.verdict for row in rows] == ["pass"] * (len(rows) - 4) + ["skipped"] * 4 and len(rows) >= 14


def test_transformers_in_bf16_fails_fp32_s_tolerance_and_shows_where_it_rounds():
    pytest.importorskip("transformers.models.deepseek_v4")
    from anychip.conform import peer
    from anychip.conform.rounding import roundings

    chosen, suite = weight_set("outliers"), chosen_cases("outliers", "text of 257")  # one past the indexer's limit
    with peer.opened(chosen, "bfloat16") as model:
        assert judge(peer.functions(model), suite, "bfloat16").rows[0].verdict == "pass"
        assert judge(peer.functions(model), suite, "float32").rows[0].verdict == "FAIL"
    found = roundings(chosen, suite.cases[0])
    first = {one.part: one for one in reversed(found)}
    assert {"RoPE tables", "router", "mHC", "compressor"} <= set(first)
    weights = first.pop("weights")
    assert weights.size == weights.effect == 0  # nano is stored in FP8, and bf16 holds its values
    assert all(1e-4 < one.size < 5e-3 for one in found if one.part != "weights")  # bf16's unit roundoff is 2e-3
    assert "cos.to(dtype=x.dtype)" in first["RoPE tables"].where
    assert all(one.effect is not None for one in first.values()) and first["router"].effect > 1e-4


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_llama_cpp_s_server_is_judged_from_outside(tmp_path):
    from benchmarks.gguf_export import export_gguf

    chosen = widened(weight_set("outliers"), 128)
    export_gguf(tmp_path / "m.gguf", chosen.config, chosen.weights.items(), model_folder("nano") / "tokenizer.json")
    suite = chosen_cases("outliers", "text of 5", "text of 129", "text of 257", "decode", "packed samples",
                         "MTP, text of 6")
    with llama_server(tmp_path / "m.gguf", tmp_path) as address:
        endpoint = connect(address, None, None, chosen.tokenizer)
        rows = judge(endpoint, suite, "float32").rows
        wrong = judge(endpoint, chosen_cases("nano", "text of 129"), "float32").rows[0]
    assert endpoint.top == 20 and endpoint.as_ids
    assert [row.verdict for row in rows] == ["pass"] * 5 + ["skipped"] and all(row.positions > 2 for row in rows[:5])
    assert wrong.verdict == "FAIL" and wrong.size > 0.1  # another model's vectors


def test_every_form_of_answer_gives_the_same_rows(vocabulary):
    texts = [vocabulary._tokenizer.decode([i]) for i in (300, 301)]
    top = {texts[0]: -1.0, texts[1]: -2.0}
    legacy = {"logprobs": {"tokens": [texts[0]], "token_logprobs": [-1.0], "top_logprobs": [top]}}
    ids = {"logprobs": {"tokens": ["token_id:300"], "token_logprobs": [-1.0],
                        "top_logprobs": [{"token_id:300": -1.0, "token_id:301": -2.0}]}}
    chat = {"logprobs": {"content": [{"token": texts[0], "logprob": -1.0, "top_logprobs": [
        {"token": text, "logprob": value} for text, value in top.items()]}]}}
    assert all(generated_rows(form, vocabulary) == [{300: -1.0, 301: -2.0}] for form in (legacy, ids, chat))
    assert generated_rows({"logprobs": None}, vocabulary) == []


def test_the_prompt_s_rows_come_from_echo_or_from_prompt_logprobs(vocabulary):
    echo = {"logprobs": {"tokens": ["token_id:5", "token_id:6", "token_id:7"], "token_logprobs": [None, -1.0, -2.0],
                         "top_logprobs": [None, {"token_id:6": -1.0}, {"token_id:7": -2.0}]}}
    vllm = {"prompt_logprobs": [None, {"6": {"logprob": -1.0}}],
            "logprobs": {"tokens": ["token_id:7"], "token_logprobs": [-2.0], "top_logprobs": None}}
    assert prompt_rows(echo, 2, vocabulary) == prompt_rows(vllm, 2, vocabulary) == [{6: -1.0}, {7: -2.0}]
    assert prompt_rows({"logprobs": echo["logprobs"]}, 9, vocabulary) is None


def test_a_part_of_a_character_has_no_id(vocabulary):
    assert vocabulary.id_of("\ufffd") is None and vocabulary.id_of("no such token at all") is None


def test_a_server_that_is_not_there_is_said_to_be_absent():
    with pytest.raises(InputError, match="does not answer as an OpenAI-compatible server"):
        connect("http://127.0.0.1:9", "m", None, weight_set("nano").tokenizer)
