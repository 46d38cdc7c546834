"""Generation: chunks of the prompt do not matter, seeds do, and what cannot be run is refused with numbers."""

import pytest
import torch
from models import random_ids, vivid_model
from train_cases import small

from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.model import Layout
from anychip.serve.generate import draw, generate
from anychip.serve.request import Sampling

CHIP = open_chip("cpu:reference")
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model():
    return vivid_model(small(), CHIP.ops())


def test_greedy_tokens_are_the_argmax_of_a_whole_pass(model):
    ids = random_ids(20).tolist()
    for token in generate(model, CHIP, ids.copy(), 5, GREEDY):
        with torch.no_grad():
            hidden = model(torch.tensor(ids), Layout.whole([len(ids)]))
        assert token == int(model.logits(hidden.hidden_Td)[-1].argmax())
        ids.append(token)
    assert len(ids) == 25


def test_a_prompt_longer_than_a_chunk_is_read_whole(model):
    ids = random_ids(1100).tolist()
    (token,) = generate(model, CHIP, ids, 1, GREEDY)
    with torch.no_grad():
        hidden = model(torch.tensor(ids), Layout.whole([1100]))
    assert token == int(model.logits(hidden.hidden_Td[-1:]).argmax())


def test_the_seed_decides_the_tokens(model):
    def text(seed):
        return list(generate(model, CHIP, [1, 2, 3], 8, Sampling(seed=seed)))

    assert text(1) == text(1) != text(2)


def test_generation_ends_after_the_end_token(model):
    new = list(generate(model, CHIP, [1, 2, 3], 8, GREEDY))
    assert list(generate(model, CHIP, [1, 2, 3], 8, GREEDY, eos_id=new[2])) == new[: new.index(new[2]) + 1]


def test_tokens_can_be_used_between_passes_with_gradients_on(model):
    for _ in generate(model, CHIP, [1, 2, 3], 2, GREEDY):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def frequencies(logits, sampling, draws=4000):
    random = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw(logits, sampling, random) for _ in range(draws)]), minlength=4)
    return counts / draws


def test_tokens_are_drawn_with_their_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    found = frequencies(logits, Sampling(temperature=0.7))
    torch.testing.assert_close(found, torch.softmax(logits / 0.7, -1), atol=0.025, rtol=0)  # 3 standard errors


def test_top_p_keeps_the_fewest_likeliest_tokens():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    found = frequencies(logits, Sampling(top_p=0.6))  # 0.5 is not enough, 0.5 + 0.3 is
    assert found[0] == found[3] == 0
    torch.testing.assert_close(found[1:3], torch.tensor([0.625, 0.375]), atol=0.025, rtol=0)


def test_a_tiny_top_p_is_greedy():
    assert frequencies(torch.tensor([0.1, 0.5, 0.4, 0.0]), Sampling(top_p=1e-9))[1] == 1


@pytest.mark.parametrize(("prompt", "new", "words"), [
    ([], 5, "the prompt is empty"),
    ([1], 0, "max_new_tokens=0 must be at least 1"),
    ([1, 4096], 5, "the prompt has token 4096, the model's ids are 0 to 4095"),
    ([1] * 8000, 193, "the prompt has 8000 tokens and 193 new ones were asked for, together 8193; "
                      "this model's context is 8192"),
])
def test_what_cannot_be_generated_is_refused_at_the_call(model, prompt, new, words):
    with pytest.raises(InputError, match=words):
        generate(model, CHIP, prompt, new)


def test_sampling_out_of_range_is_refused_with_all_reasons():
    with pytest.raises(InputError, match=r"temperature=-1 .*; top_p=0 "):
        Sampling(temperature=-1, top_p=0)


def test_what_only_the_engine_does_is_refused(model):
    with pytest.raises(InputError, match="top_k, stop need the serving engine"):
        generate(model, CHIP, [1], 1, Sampling(top_k=3, stop=("x",)))
