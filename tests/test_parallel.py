"""Ranks: every parallel kind gives the bits of one process; layouts that cannot be are refused; sums have one order."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from parallel_cases import joined, run_both, run_families, settings, train, world_of_one
from torch.testing._internal.distributed.fake_pg import FakeStore
from train_cases import small

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.errors import ConfigError, InputError, NotSupported
from anychip.model import Layout, Transformer, initialize
from anychip.model.initialize import initial_tensors
from anychip.parallel import Batch, Single
from anychip.parallel.context import Blocks
from anychip.parallel.degrees import Degrees
from anychip.parallel.launch import launch
from anychip.parallel.placement import fill
from anychip.parallel.ranks import Ranks
from anychip.parallel.stage import layers_of
from anychip.parallel.sums import RunningTree, tree_sum
from anychip.parallel.world import World, lay_out, leave
from anychip.text.store import TokenStore
from anychip.train.care import alone as alone_in_process
from anychip.train.make import _unpacked, make_run

KINDS = {"shard": Degrees(shard=2), "expert": Degrees(expert=2), "pipeline": Degrees(pipeline=2),
         "context": Degrees(context=2)}
FAMILIES = {"v32-nano": "expert", "glm5-nano": "pipeline", "qwen3-moe-nano": "shard"}


@pytest.fixture
def alone():
    world_of_one()
    yield
    leave()


@pytest.fixture(scope="module")
def one():
    torch.set_num_threads(1)
    try:
        return train(settings(), lambda model: alone_in_process(model, settings()))
    finally:
        leave()


@pytest.fixture(scope="module")
def launched():
    families = {name: KINDS[kind] for name, kind in FAMILIES.items()}
    return joined(launch(2, run_both, (list(KINDS.values()), families)))


@pytest.fixture(scope="module")
def two(launched):
    return dict(zip([*KINDS, *FAMILIES], launched, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_bits_of_one(one, two, kind):
    losses, weights = two[kind]
    assert losses == pytest.approx(one[0], rel=1e-6)  # blocks' losses are reported as a sum of other parts
    assert weights == one[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_have_the_bits_of_one_in_other_families(alone, two, family):
    assert two[family] == run_families({family: Degrees()})[0]


def test_one_rank_has_the_bits_of_a_single_process_in_as_many_micro_batches(alone):
    chosen = settings(micro_batches=4, context_blocks=1, length=32)
    ranked = train(chosen, lambda model: Ranks(model, lay_out("cpu", Degrees()), chosen), "cpu")
    single = train(chosen, lambda model: Single(model, 4), "cpu")
    assert ranked == single


def test_layouts_that_cannot_be_are_refused_with_all_reasons_and_choices():
    asked = settings(length=300, context_blocks=2, batch=6, micro_batches=6)
    with pytest.raises(ConfigError) as caught:
        Degrees(shard=4, expert=3, pipeline=9, context=2).check(load_config("nano"), asked)
    assert str(caught.value).splitlines()[1:] == [
        "  expert=3 does not divide n_routed_experts=16; use 1, 2, 4, 8, 16",
        "  pipeline=9 exceeds num_hidden_layers=5; use 1 to 5",
        "  micro_batches=6 cannot be dealt to shard=4 x expert=3 = 12 ranks evenly; use 12, 24, ...",
        "  length=300 in context_blocks=2 gives blocks of 150 tokens; a block must be a multiple of 128 "
        "(compress_ratios) and at least sliding_window=128: use a length that is a multiple of 256, at least 256"]
    with pytest.raises(ConfigError, match="micro_batches=2 leaves 2 for a pipeline of 4 stages; use at least 4"):
        Degrees(pipeline=4).check(load_config("nano"), settings(micro_batches=2))
    with pytest.raises(ConfigError, match="context_blocks=2 cannot be dealt to context=4 ranks; use 4, 8, ..."):
        Degrees(context=4).check(load_config("nano"), settings())
    with pytest.raises(ConfigError, match="context_blocks=2 is built for DeepSeek-V4 models, this is a qwen3-moe"):
        Degrees(context=2).check(load_config("qwen3-moe-nano"), settings())
    shared = replace(load_config("glm5-nano"), indexer_types=("full", "full", "full", "shared", "full"))
    with pytest.raises(ConfigError, match="layer 3 takes the rows that the indexer of layer 2 picks, which lies on an"):
        Degrees(pipeline=2).check(shared, settings(context_blocks=1))
    with pytest.raises(ConfigError, match="shard=0 must be at least 1"):
        Degrees(shard=0).check(load_config("nano"), settings())


def test_another_number_of_processes_than_the_layouts_is_refused():
    with pytest.raises(ConfigError, match=r"3 processes were started, but shard=2 x .* needs 4"):
        Degrees(shard=2, expert=2).check_ranks(3)


def test_1024_ranks_find_their_places():
    degrees = Degrees(shard=8, expert=16, pipeline=4, context=2)
    dist.init_process_group("fake", store=FakeStore(), rank=777, world_size=1024)
    try:
        world = lay_out("cpu", degrees)
        places = [world.at(axis) for axis in ("pipeline", "shard", "expert", "context")]
        assert places == [3, 0, 4, 1] and 777 == ((3 * 8 + 0) * 16 + 4) * 2 + 1
        assert world.data.size() == 256 and world.data_index == 4
        assert world.group("expert").size() == 16
    finally:
        leave()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_a_running_tree_is_the_tree_whatever_the_count(count):
    parts = list(torch.randn(count, 7, generator=torch.Generator().manual_seed(count)))
    running = RunningTree()
    for part in parts:
        running.add(part.clone())
    assert torch.equal(running.total(), tree_sum(parts))


def test_subtrees_of_ranks_make_the_whole_tree():
    parts = list(torch.randn(8, 7, generator=torch.Generator().manual_seed(0)))
    for ranks in (2, 4, 8):  # a rank's micro-batches are every ranks-th one
        slots = [tree_sum(parts[at : at + ranks]) for at in range(0, 8, ranks)]
        assert torch.equal(tree_sum(slots), tree_sum(parts))


def test_neighbours_may_do_each_others_work_where_sums_have_them_as_neighbours():
    def partners(**degrees):
        asked = Degrees(**degrees)
        return [World.partner.fget(SimpleNamespace(data_index=at, degrees=asked)) for at in range(asked.num_data)]

    assert partners(shard=2, expert=2) == [1, 0, 3, 2] and partners(shard=3) == [1, 0, 2]
    assert partners(shard=2, expert=3) == list(range(6)) and partners(shard=2, context=3) == [0, 1]


def test_layers_are_dealt_to_stages_in_order():
    assert [list(layers_of(5, stage, 3)) for stage in range(3)] == [[0, 1], [2, 3], [4]]


def test_blocks_of_a_batch_are_chunks_that_start_later():
    ids = torch.arange(2 * 8).view(2, 8)
    cut = Blocks(1, 1, 2).cut(Batch.of(ids, ids + 1))
    assert cut.inputs_BL.tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]] and cut.layout == Layout((4, 4), (4, 4))
    assert cut.further_BL.tolist() == [[6, 7, 8, -1], [14, 15, 16, -1]]
    packed = Batch.of(ids, ids + 1, Layout.whole([3, 5, 8]))
    with pytest.raises(NotSupported, match="context_blocks=2: sequences of several packed samples"):
        Blocks(0, 1, 2).cut(packed)


def test_with_blocks_the_text_is_one_stream(tmp_path):
    (tmp_path / "a.txt").write_text("It was the best of times. " * 200)
    cut = make_run(settings(), text=[tmp_path / "a.txt"])
    inputs, targets = cut.batches.at(0)
    assert inputs.shape == (4, 256) and torch.equal(inputs[:, 1:], targets[:, :-1])
    with pytest.raises(InputError, match="context_blocks=2: chats are packed samples"):
        _unpacked(TokenStore.of(cut.tokenizer, ["x"]), settings(), tmp_path / "chats.jsonl")


def test_micro_batches_keep_the_samples_of_their_rows():
    ids = torch.arange(2 * 8).view(2, 8)
    first, second = Batch.of(ids, ids + 1, Layout.whole([3, 5, 8])).split(2)
    assert (first.layout, second.layout) == (Layout.whole([3, 5]), Layout.whole([8]))
    assert first.further_BL.tolist() == [[2, 3, -1, 5, 6, 7, 8, -1]]


def test_a_model_on_meta_is_filled_with_the_weights_of_a_whole_one(alone):
    chosen, ops = settings(context_blocks=1, length=32), open_chip("cpu:reference").ops()
    whole = Transformer(small(), ops)
    initialize(whole, 3)
    with torch.device("meta"):
        model, again = Transformer(small(), ops), Transformer(small(), ops)
    placement = Ranks(model, lay_out("cpu", Degrees()), chosen)
    fill(placement, initial_tensors(again, 3))
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in (model, whole)), strict=True))
