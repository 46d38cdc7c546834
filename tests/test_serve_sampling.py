"""Drawing tokens: the right distribution, filters, penalties, stops, and drafts that never change it."""

import numpy as np
import pytest

from anychip.errors import InputError
from anychip.serve.request import Sampling
from anychip.serve.sampler import Sampler, log_probabilities
from anychip.serve.text import AnswerText
from anychip.text.tokenizer import open_tokenizer

LOGITS = np.array([0.0, 1.0, 2.0, -1.0, 0.5], np.float32)


def softmax(logits):
    made = np.exp(logits - logits.max())
    return made / made.sum()


def counts(sampler, logits=LOGITS, draws=4000):
    tokens = [sampler.draw(logits, position) for position in range(draws)]
    return np.bincount(tokens, minlength=len(logits)) / draws


def test_tokens_are_drawn_with_their_probabilities():
    np.testing.assert_allclose(counts(Sampler(Sampling(temperature=0.7), 0, ())), softmax(LOGITS / 0.7), atol=0.025)


@pytest.mark.parametrize(("fields", "kept"), [
    ({"top_k": 2}, [1, 2]), ({"top_p": 0.6}, [1, 2]), ({"min_p": 0.2}, [1, 2, 4]), ({"top_p": 1e-9}, [2]),
    ({"logit_bias": {0: -100, 2: -100}}, [1, 3, 4]),
])
def test_filters_keep_the_right_tokens_in_proportion(fields, kept):
    expected = np.zeros(5)
    expected[kept] = softmax(LOGITS[kept])
    np.testing.assert_allclose(counts(Sampler(Sampling(**fields), 0, ())), expected, atol=0.025)


def test_penalties_are_the_documented_formulas():
    rule = Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=2.0)
    sampler = Sampler(rule, 0, (3,))
    for token in (2, 2):
        sampler.accept(token)
    expected = [0.0, 1.0, 2.0 / 2 - 0.5 - 2 * 0.3, -1.0 * 2, 0.5]
    np.testing.assert_allclose(sampler._changed(LOGITS), expected, rtol=1e-6)


def test_a_draw_depends_on_seed_answer_and_position_alone():
    one, other = (Sampler(Sampling(seed=5), index, ()) for index in (0, 1))
    forward = [one.draw(LOGITS, position) for position in range(50)]
    assert forward == [one.draw(LOGITS, position) for position in reversed(range(50))][::-1]
    assert forward != [other.draw(LOGITS, position) for position in range(50)]
    assert Sampler(Sampling(seed=None), 0, ()).draw(LOGITS, 0) in range(5)


def test_drafts_with_the_same_noise_are_kept_nearly_as_often_as_can_be():
    """The token drawn from p is p's whatever was drafted from q; they coincide at least (1-TV)/(1+TV) of the time."""
    sampler, other = Sampler(Sampling(), 0, ()), LOGITS + np.array([0.5, -0.5, 0, 0.3, 0], np.float32)
    pairs = [(sampler.draw(LOGITS, p), sampler.draw(other, p)) for p in range(4000)]
    distance = np.abs(softmax(LOGITS) - softmax(other)).sum() / 2
    assert np.mean([a == b for a, b in pairs]) >= (1 - distance) / (1 + distance) - 0.02
    kept = np.bincount([a for a, _ in pairs], minlength=5) / 4000
    chi2 = 4000 * ((kept - softmax(LOGITS)) ** 2 / softmax(LOGITS)).sum()
    assert chi2 < 18.5  # 0.1 % of true distributions with 4 degrees of freedom exceed it


def test_logprobs_are_natural_and_sorted():
    found = log_probabilities(LOGITS, 3, 2)
    assert found.token_id == 3 and found.logprob == pytest.approx(np.log(softmax(LOGITS.astype(float))[3]))
    assert [token for token, _ in found.top] == [2, 1]


def test_stop_strings_end_the_text_before_them_even_across_tokens():
    tokenizer = open_tokenizer("anychip-4096")
    text, shown = AnswerText(tokenizer, ("ther END", "zzz")), ""
    for token in tokenizer.encode("Here and there, neither END of it"):
        shown += text.add(token)
    assert shown == "Here and there, nei" and text.stopped == "ther END" and text.rest() == ""


def test_text_held_back_for_a_stop_string_comes_at_the_end():
    tokenizer = open_tokenizer("anychip-4096")
    text = AnswerText(tokenizer, ("neither END",))
    pieces = [text.add(token) for token in tokenizer.encode("é, 世界 and nei")]
    assert "\ufffd" not in "".join(pieces) and "".join(pieces) + text.rest() == "é, 世界 and nei"


def test_sampling_out_of_range_is_refused_with_all_reasons():
    with pytest.raises(InputError, match=r"temperature=-1 .*; top_p=0 .*; top_k=-1 .*; n=0 "):
        Sampling(temperature=-1, top_p=0, top_k=-1, n=0)
