"""The recipe beside the optimizer: stages, the indexer's and the balance loss, lengths, recomputation, FP4, TOML."""

import pytest
import torch
from models import nano, random_ids, vivid_model
from train_cases import settings, small, trainer

from anychip.checkpoint import load_model, save_checkpoint
from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.model import Layout
from anychip.model.block import Block
from anychip.ops.formats import fake_quantize_fp4
from anychip.train.indexer_loss import indexer_loss
from anychip.train.objective import LanguageModel, balance_loss
from anychip.train.qat import QuantizedOps, turned_fp4
from anychip.train.recipe import make_settings
from anychip.train.trainer import _cut

REFERENCE = open_chip("cpu:reference")
SPARSE = {"index_topk": 3}  # of 6 entries in 24 tokens


def watched(dense):
    """What one CSA layer of a vivid model keeps of two sequences of 24 and 17 tokens."""
    model = vivid_model(small(**SPARSE), REFERENCE.ops())
    LanguageModel(0.0, indexer_weight=1.0).prepare(model, dense=dense)
    model(random_ids(41), Layout.whole([24, 17]))
    return model, model.layers[1].attn.watched


def naive_loss(kept):
    """The divergence token by token and head by head, float64, from the formulas."""
    keys, total = kept.keys, torch.zeros((), dtype=torch.float64)
    query, sink = kept.query_THC.double(), kept.sink_H.double()
    window, entries = keys.window_NC.double(), keys.compressed_MC.double()
    for t in range(query.shape[0]):
        first = int(keys.window.start[t])
        near = window[first : first + int(keys.window.count[t])]
        if isinstance(keys.selected, torch.Tensor):
            rows = [int(row) for row in keys.selected[t] if row >= 0]
        else:
            rows = list(range(int(keys.selected.start[t]), int(keys.selected.start[t] + keys.selected.count[t])))
        if not rows:
            continue
        looked = torch.zeros(len(rows), dtype=torch.float64)
        for head in range(query.shape[1]):
            logits = torch.cat((near, entries[rows])) @ query[t, head] * query.shape[2] ** -0.5
            looked += torch.cat((logits, sink[head : head + 1])).softmax(0)[len(near) : -1]
        p, score = looked / looked.sum(), torch.zeros(len(rows), dtype=torch.float64)
        for head in range(kept.index_query_THI.shape[1]):
            dots = kept.index_key_MI.double()[rows] @ kept.index_query_THI.double()[t, head]
            score = score + kept.index_weight_TH.double()[t, head] * dots.relu()
        total = total + (p * (p.log() - score.log_softmax(0))).sum()
    return total


@pytest.mark.parametrize("dense", [True, False], ids=["every entry", "selected entries"])
def test_the_indexers_loss_and_gradient_are_the_formulas_in_float64(dense):
    model, kept = watched(dense)
    indexer = dict(model.layers[1].attn.indexer.named_parameters())
    expected = naive_loss(kept)
    wanted = torch.autograd.grad(expected, indexer.values(), retain_graph=True)
    found = indexer_loss(kept)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and expected > 0.1
    for grad, want in zip(torch.autograd.grad(found, indexer.values()), wanted, strict=True):
        assert (grad - want).norm() <= 1e-4 * want.norm() and want.norm() > 0


def test_the_indexers_loss_reaches_nothing_but_the_indexer():
    gradients = []
    for weight in (0.0, 1e-2):
        work = trainer(small(**SPARSE), indexer_weight=weight)
        result = work.step()
        gradients.append({name: p.grad.clone() for name, p in work.model.named_parameters() if p.grad is not None
                          and ".indexer." not in name})
        got = [name for name, p in work.model.named_parameters() if ".indexer." in name and p.grad is not None]
        assert bool(got) == (weight > 0) and (result.indexer_loss is not None) == (weight > 0)
    assert gradients[0].keys() == gradients[1].keys()  # but for the clipped norm, which the indexer's gradient is in
    scale = gradients[1]["embed.weight"].norm() / gradients[0]["embed.weight"].norm()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad * scale, rtol=1e-4, atol=1e-8)


def test_stages_are_dense_then_the_indexer_alone_then_sparse():
    work = trainer(small(**SPARSE), steps=6, dense_steps=2, indexer_steps=2, indexer_rate=5e-3)
    moved, selections = [], []
    index_topk = work.model.ops.index_topk
    work.model.ops.index_topk = lambda *args: selections.append(work.steps_done) or index_topk(*args)
    for _ in range(6):
        before = {name: p.detach().clone() for name, p in work.model.state_dict().items()}
        result = work.step()
        moved.append({".indexer." in name for name, p in work.model.state_dict().items() if not p.equal(before[name])})
        assert (result.learning_rate == 5e-3) == (result.step in (2, 3))
    assert moved == [{False}] * 2 + [{True}] * 2 + [{False, True}] * 2
    assert sorted(set(selections)) == [4, 5]


def test_the_indexers_own_stage_lowers_its_loss():
    work = trainer(small(**SPARSE), steps=14, indexer_steps=14, indexer_rate=2e-2)
    losses = [work.step().indexer_loss for _ in range(14)]
    assert losses[-1] < 0.95 * losses[0]


def test_the_balance_loss_is_one_where_the_load_is_even_and_the_formula_elsewhere():
    even = torch.tensor([[2.0, 1, 0, 0], [0, 0, 2, 1], [1, 2, 0, 0], [0, 0, 1, 2]])
    assert float(balance_loss(even, Layout.whole([4]), 2)) == pytest.approx(1)
    scores = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for part in (scores[:3], scores[3:]):
        for expert in range(4):
            hits = sum(expert in row.topk(2).indices.tolist() for row in part)
            expected += hits * 4 / (2 * len(part)) * float((part[:, expert] / part.sum(1)).mean())
    assert float(balance_loss(scores, Layout.whole([3, 4]), 2)) == pytest.approx(expected, rel=1e-6)


def test_recomputation_changes_no_bit_and_keeps_less():
    results = []
    for recompute in (False, True):
        work, kept = trainer(recompute=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            hidden = work.model(random_ids(48), Layout.whole([24, 24])).hidden_Td
        results.append((hidden.detach(), work.step(), [p.detach() for p in work.model.parameters()], sum(kept)))
    (hidden, step, weights, all_bytes), (other, again, others, few_bytes) = results
    assert hidden.equal(other) and step.loss == again.loss and step.grad_norm == again.grad_norm
    assert all(a.equal(b) for a, b in zip(weights, others, strict=True)) and few_bytes < all_bytes / 4
    assert all(block.recompute for block in work.model.modules() if isinstance(block, Block))


def test_shorter_sequences_come_first_with_as_many_tokens():
    work = trainer(lengths=((0, 8), (2, 12)))
    assert [work.settings.length_at(step) for step in range(5)] == [8, 8, 12, 12, 12]
    assert work._batch(0).layout.lengths == (8,) * 6 and work._batch(2).layout.lengths == (12,) * 4
    assert _cut(Layout.whole([5, 17]), 8).lengths == (5, 8, 8, 1)
    inputs, targets = work.batches.at(0)
    alone = sum(work.losses(i[None], t[None])[0].item() for i, t in zip(inputs.view(6, 8), targets.view(6, 8),
                                                                       strict=True)) / 6
    assert work.step().loss == pytest.approx(alone, rel=1e-5)


def fp4_model():
    """A small model whose experts' rows and indexer's heads are multiples of 32."""
    config = small(hidden_size=32, moe_intermediate_size=32, index_head_dim=32, **SPARSE)
    return vivid_model(config, QuantizedOps(REFERENCE.ops()))


def test_fp4_training_sees_what_an_fp4_checkpoint_holds(tmp_path):
    model, ids = fp4_model(), random_ids(24)
    save_checkpoint(model, model.config, tmp_path, format="fp32")
    plain, _ = load_model(tmp_path, REFERENCE.ops())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if ".experts." in name:
                parameter.copy_(fake_quantize_fp4(parameter))
        plain.ops = QuantizedOps(REFERENCE.ops())  # rounding what is round changes nothing
        layout = Layout.whole([24])
        torch.testing.assert_close(plain(ids, layout).hidden_Td, model(ids, layout).hidden_Td, rtol=0, atol=0)
        plain.ops = REFERENCE.ops()
        rounded = (plain(ids, layout).hidden_Td - model(ids, layout).hidden_Td).norm()
    assert rounded <= 0.5 * model(ids, layout).hidden_Td.norm()  # the indexer chooses among other rows, no more


def test_fp4_gradients_pass_straight_through_to_the_masters():
    work = trainer(small(hidden_size=32, moe_intermediate_size=32, index_head_dim=32, **SPARSE), fp4=True)
    bank = work.model.layers[1].ffn.experts.w2
    before = bank.detach().clone()
    assert isinstance(work.model.ops, QuantizedOps)
    losses = [work.step().loss for _ in range(3)]
    assert bank.grad.norm() > 0 and not bank.equal(before) and not fake_quantize_fp4(bank.detach()).equal(bank)
    assert losses[-1] < losses[0]


def test_turning_by_hadamard_keeps_products_up_to_rounding():
    query, key = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0))
    exact, found = query @ key.T, turned_fp4(query) @ turned_fp4(key).T
    assert (found - exact).norm() < 0.25 * exact.norm() and not found.equal(exact)
    with pytest.raises(InputError, match="index_head_dim=48 must be a power of two"):
        turned_fp4(torch.zeros(1, 48))


def test_a_recipe_file_stands_between_the_presets_and_what_is_given(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('steps = 7\noptimizer = "adamw"\nbetas = [0.8, 0.9]\nlengths = [[0, 128], [3, 256]]\n')
    found = make_settings("nano", path, {"learning_rate": 5e-4, "steps": None, "batch": 3})
    assert (found.steps, found.batch, found.length, found.learning_rate) == (7, 3, 512, 5e-4)
    assert (found.optimizer, found.betas, found.lengths) == ("adamw", (0.8, 0.9), ((0, 128), (3, 256)))
    assert make_settings("my/config.json", None, {}).length == 256 and make_settings("nano", None, {}).fp4 is False
    assert make_settings("nano", None, {}, sft=True).dense_steps == 0
    path.write_text('stpes = 7\nbatch = "two"\n')
    with pytest.raises(InputError, match=r"stpes: no such setting.*steps.*\n  batch='two': expected int"):
        make_settings("nano", path, {})


@pytest.mark.parametrize("preset", ["nano", "tiny", "mini"])
def test_every_presets_recipe_is_one_that_can_train(preset):
    found = make_settings(preset, None, {})
    assert found.dense_steps + found.indexer_steps < found.steps and found.optimizer == "muon"


def test_contradicting_settings_are_refused_together():
    with pytest.raises(InputError, match=r"optimizer='sgd' is not one of muon, adamw; .*lengths=\(0, 7\): .*divides"):
        settings(optimizer="sgd", lengths=((0, 7),))


def test_a_nano_model_trains_through_all_stages_on_the_cpu_chip():
    from anychip.model import Transformer, initialize
    from anychip.text.batches import TokenBatches
    from anychip.train import Trainer

    chip = open_chip("cpu")
    model = Transformer(nano(), chip.ops())
    initialize(model, 0)
    plan = settings(steps=3, batch=1, length=320, dense_steps=1, indexer_steps=1)
    work = Trainer(model, chip, TokenBatches(random_ids(400), 1, 320, 0), plan)
    results = [work.step() for _ in range(3)]
    assert [r.indexer_loss is None for r in results] == [True, False, False]
    assert all(r.balance_loss is None or 3 < r.balance_loss < 20 for r in results)
