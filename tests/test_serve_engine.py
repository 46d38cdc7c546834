"""The engine: tokens do not depend on what else runs, streams end as they should, and a crash reaches every reader."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import random_ids

from anychip.chips import open_chip
from anychip.errors import ConfigError, InputError
from anychip.model import Layout
from anychip.serve.engine import Engine
from anychip.serve.models import open_model
from anychip.serve.request import Busy, EngineError, Request, Sampling
from anychip.serve.settings import EngineSettings

GREEDY = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
SMALL = EngineSettings(max_batch=12, max_pass_tokens=512, cache_tokens=8192)


@pytest.fixture(scope="module")
def opened():
    chip = open_chip("cpu")
    return *open_model("nano", chip), chip


def start(opened, settings=SMALL, **fields):
    model, tokenizer, chip = opened
    return Engine.start(model, chip, tokenizer, replace(settings, **fields))


def requests():
    """Twelve requests of many lengths, greedy and sampled; every third shares a prefix of 260 tokens."""
    prefix, made = random_ids(260, seed=9).tolist(), []
    for i in range(12):
        own = random_ids([1, 5, 127, 128, 129, 200][i % 6], seed=i).tolist()
        sampling = Sampling(temperature=0 if i % 2 else 0.9, seed=i, max_tokens=8 + i, ignore_eos=True,
                            top_p=0.9 if i % 4 == 0 else 1, repetition_penalty=1.1 if i % 5 == 0 else 1)
        made.append(((prefix if i % 3 == 0 else []) + own, sampling))
    return made


def answers(engine, *, together):
    made = [Request(tuple(ids), sampling) for ids, sampling in requests()]
    list(engine.submit(replace(made[0], request_id="first")))  # leaves the shared prefix in the cache
    streams = [engine.submit(request) for request in made] if together else (engine.submit(r) for r in made)
    return [[output.token_id for output in stream] for stream in streams]


@pytest.fixture(scope="module")
def alone(opened):
    with start(opened, prefix_cache=False, max_pass_tokens=2048) as engine:
        return answers(engine, together=False)


@pytest.mark.parametrize("fields", [
    {"prefix_cache": False}, {}, {"max_pass_tokens": 40}, {"cache_tokens": 640},
    {"speculate": True}, {"speculate": True, "cache_tokens": 640, "max_pass_tokens": 72},
], ids=["batch", "prefix cache", "chunks", "preemption", "drafts", "all at once"])
def test_tokens_are_those_of_a_request_alone(opened, alone, fields):
    with start(opened, **fields) as engine:
        assert answers(engine, together=True) == alone
        found = engine.stats()
        assert engine.drain(10)
        engine._worker.book.check()
    assert (found.cached_tokens > 0) == engine.settings.prefix_cache
    assert (found.preempted > 0) == (found.cache_blocks == 5)
    assert (found.accepted_tokens > 0) == engine.settings.speculate


def test_greedy_tokens_are_transformers_own(opened):
    from peer import peer_of

    theirs = peer_of(opened[0])
    with start(opened, speculate=True) as engine:
        for seed, length in ((0, 40), (1, 150)):
            ids = random_ids(length, seed=seed)
            ours = [output.token_id for output in engine.submit(Request(tuple(ids.tolist()), GREEDY))]
            with torch.no_grad():
                made = theirs.generate(ids[None], max_new_tokens=12, do_sample=False, eos_token_id=None)
            assert ours == made[0, length:].tolist()


def test_forks_share_the_prompt_and_draw_as_if_alone(opened):
    rule = Sampling(n=3, seed=4, max_tokens=6, ignore_eos=True)
    ids = tuple(random_ids(200).tolist())
    with start(opened) as engine:
        together = {i: [] for i in range(3)}
        for output in engine.submit(Request(ids, rule)):
            together[output.index].append(output.token_id)
        first = [output.token_id for output in engine.submit(Request(ids, replace(rule, n=1)))]
    assert together[0] == first and len({tuple(tokens) for tokens in together.values()}) == 3


def test_a_request_that_comes_again_is_read_from_the_cache(opened):
    ids = tuple(random_ids(300).tolist())
    with start(opened) as engine:
        first, again = ([*engine.submit(Request(ids, GREEDY))] for _ in range(2))
        assert [o.token_id for o in first] == [o.token_id for o in again]
        assert (first[0].cached_tokens, again[0].cached_tokens) == (0, 256)
        assert engine.stats().cache_hit_rate == 256 / 600


def test_prompt_logprobs_are_the_models_own(opened):
    ids = random_ids(150)
    with start(opened) as engine:
        first = next(engine.submit(Request(tuple(ids.tolist()), GREEDY, prompt_logprobs=2)))
    with torch.no_grad():
        hidden = opened[0](ids, Layout.whole([150]))
        expected = opened[0].logits(hidden.hidden_Td).double().log_softmax(-1)[torch.arange(149), ids[1:]]
    np.testing.assert_allclose([each.logprob for each in first.prompt_logprobs], expected, atol=1e-4)
    assert all(len(each.top) == 2 and each.top[0][1] >= each.top[1][1] for each in first.prompt_logprobs)


def test_a_stream_can_be_read_by_an_event_loop_and_aborted(opened):
    async def read(engine):
        stream, texts = engine.submit(Request((1, 2, 3), Sampling(temperature=0, ignore_eos=True))), []
        async for output in stream:
            texts.append(output)
            if len(texts) == 3:
                stream.abort()
        return texts

    with start(opened) as engine:
        outputs = asyncio.run(read(engine))
        assert outputs[-1].finish_reason == "abort" and all(o.finish_reason is None for o in outputs[:-1])
        assert engine.drain(10) and engine.stats().aborted == 1 and engine.stats().cache_blocks_used == 0


def test_a_crash_reaches_every_reader_and_every_later_call(opened, monkeypatch):
    with start(opened) as engine:
        monkeypatch.setattr("threading.excepthook", lambda _: None)
        monkeypatch.setattr(engine._worker.scheduler, "next_pass", lambda: 1 / 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            list(engine.submit(Request((1, 2, 3), GREEDY)))
        with pytest.raises(EngineError, match="start it anew"):
            engine.submit(Request((1, 2, 3), GREEDY))
        assert "ZeroDivisionError" in engine.stats().failed


def test_what_can_never_be_answered_is_refused_with_numbers(opened):
    with start(opened, cache_tokens=256, max_queue=1) as engine:
        with pytest.raises(InputError, match=r"token 4096.*; the prompt has 300 tokens .* at most 256"):
            engine.submit(Request((4096,) * 300, GREEDY))
        held = Request((1,), Sampling(max_tokens=200, ignore_eos=True))
        streams = [engine.submit(held)]
        with pytest.raises(InputError, match="in flight"):
            engine.submit(held)
        with pytest.raises(Busy, match="max_queue=1"):
            streams += [engine.submit(Request((1,), held.sampling)) for _ in range(40)]


def test_settings_out_of_range_are_refused_with_all_reasons():
    with pytest.raises(ConfigError, match=r"max_batch=0 .*cache_format='fp4'"):
        EngineSettings(max_batch=0, cache_format="fp4")
