"""The whole-block kernel of the cpu chip is held to the ops one by one: results, and what they leave in the state."""

import copy

import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.model import Layout, State

TOLERANCE = 2e-5  # fp32; both sum in another order


FAMILIES = ["qwen3-nano", "qwen3-moe-nano", "v3-nano", "v32-nano", "glm5-nano"]


@pytest.fixture(scope="module")
def pair():
    """The same model with the kernel, and with it switched off."""
    return both(nano())


def both(config):
    model = vivid_model(config, open_chip("cpu").ops())
    other = copy.deepcopy(model)
    other.ops.blocks = lambda *_: None
    return model, other


class Counted:
    """Counts the blocks that the kernel ran and that it left to the ops."""

    def __init__(self, model, monkeypatch):
        self.ran = self.left = 0
        inner = model.ops.blocks

        def run(blocks, *arguments):
            out = inner(blocks, *arguments)
            self.ran += (out is not None) * len(blocks)
            self.left += out is None and len(blocks) == 1  # all at once are tried first
            return out

        monkeypatch.setattr(model.ops, "blocks", run, raising=False)


def run(model, ids, passes, num_sequences=1, chunk=512):
    """Feed each sequence `passes[i][s]` tokens a pass; return the hidden rows of all passes, and the state."""
    state = State(model.config, 700, num_sequences=num_sequences, chunk=chunk)
    at, out = [0] * num_sequences, []
    with torch.no_grad():
        for lengths in passes:
            part = torch.cat([ids[s][a : a + n] for s, (a, n) in enumerate(zip(at, lengths, strict=True))])
            out.append(model(part, Layout(tuple(at), tuple(lengths)), state).streams_Tnd)
            at = [a + n for a, n in zip(at, lengths, strict=True)]
    return torch.cat(out), state


def assert_same(pair, passes, num_sequences=1, chunk=512):
    ids = [random_ids(700, seed=s) for s in range(num_sequences)]
    (a, state_a), (b, state_b) = (run(model, ids, passes, num_sequences, chunk) for model in pair)
    assert (a - b).abs().max() <= TOLERANCE * b.abs().max()
    for layer in range(pair[0].config.num_hidden_layers):
        for name, expected in state_b.buffers(layer).items():
            got = state_a.buffers(layer)[name]
            assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max(), (layer, name)


def test_every_kind_of_layer_runs_in_the_kernel(pair, monkeypatch):
    count = Counted(pair[0], monkeypatch)
    run(pair[0], [random_ids(700)], [[300], [1], [1]])
    assert count.left == count.ran / 2 == pair[0].config.num_hidden_layers == len(pair[0].layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_blocks_equal_their_ops(family, monkeypatch):
    models = both(load_config(family))
    assert_same(models, [[300, 40], [1, 1], [3, 5], [1, 1]], num_sequences=2)
    count = Counted(models[0], monkeypatch)
    run(models[0], [random_ids(700)], [[300], [1], [8]])
    assert count.left == count.ran / 2 == models[0].config.num_hidden_layers


@pytest.mark.parametrize("tokens", range(1, 9))
def test_a_block_at_once_equals_its_ops_for_up_to_eight_tokens(pair, tokens):
    assert_same(pair, [[300], *[[tokens]] * 5])


def test_windows_that_close_while_decoding_equal_those_of_the_ops(pair):
    assert_same(pair, [[126], *[[1]] * 140])


def test_decoding_from_nothing_equals_the_ops(pair):
    assert_same(pair, [[1]] * 12)


def test_sequences_of_unequal_length_equal_the_ops(pair):
    assert_same(pair, [[300, 1, 126], *[[1, 1, 1]] * 6, [3, 1, 4], [1, 5, 2]], num_sequences=3)


def test_rows_that_move_while_decoding_equal_those_of_the_ops(pair):
    passes = [[50]] * 3 + [[1]] * 200 + [[8]] * 10
    moved = State(pair[0].config, 700, chunk=50)
    assert moved._books["window"].capacity < 150 + 200 and moved._books["tokens4"].capacity < 200
    assert_same(pair, passes, chunk=50)


def test_one_thread_and_two_give_the_same_numbers(pair):
    threads, ids = torch.get_num_threads(), [random_ids(700)]
    try:
        torch.set_num_threads(1)
        one = run(pair[0], ids, [[300], [1], [1]])[0]
        torch.set_num_threads(2)
        two = run(pair[0], ids, [[300], [1], [1]])[0]
    finally:
        torch.set_num_threads(threads)
    assert (one - two).abs().max() <= TOLERANCE * one.abs().max()


@pytest.mark.parametrize("why", ["gradients", "nine tokens", "no state"])
def test_any_other_pass_is_left_to_the_ops(pair, monkeypatch, why):
    model = pair[0]
    count = Counted(model, monkeypatch)
    state = None if why == "no state" else State(model.config, 64, chunk=9)
    tokens = 9 if why == "nine tokens" else 4
    with torch.set_grad_enabled(why == "gradients"):
        model(random_ids(tokens), Layout.whole([tokens]), state)
    assert count.ran == 0 and count.left == len(model.layers)


def test_new_weights_are_seen_by_the_kernel(pair):
    model, other = (copy.deepcopy(m) for m in pair)
    model.ops = pair[0].ops
    other.ops = pair[1].ops
    ids = [random_ids(700)]
    before = run(model, ids, [[4], [1]])[0]
    for each in (model, other):
        gate = each.layers[1].ffn.gate
        gate.weight = torch.nn.Parameter(gate.weight.detach() * -1)
        each.layers[0].attn.wq_a.weight.data = each.layers[0].attn.wq_a.weight.data.flip(0).contiguous()
    after, expected = run(model, ids, [[4], [1]])[0], run(other, ids, [[4], [1]])[0]
    assert (after - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert (after - before).abs().max() > 0.01 * before.abs().max()


def test_a_token_id_outside_the_table_is_refused(pair):
    model = pair[0]
    with torch.no_grad(), pytest.raises(IndexError):
        state = State(model.config, 64)
        model(torch.tensor([1]), Layout.whole([1]), state)
        state.begin(Layout((1,), (1,)))
        plan = model._plan(Layout((1,), (1,)), state)
        model.layers[0](torch.zeros(1, 4, 128), torch.tensor([5000]), plan, model.ops)
