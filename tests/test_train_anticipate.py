"""Anticipatory routing: whose weights route a step, what turns it on, and that a resumed run has the same bits."""

import shutil

import torch
from train_cases import run, small, trainer

from anychip.chips import open_chip
from anychip.model import Transformer
from anychip.model.moe import MoE
from anychip.train import Care, train
from anychip.train.anticipate import Anticipation, Window, windows_of
from anychip.train.folder import EVENTS, METRICS, read_lines
from anychip.train.inject import parse_injections
from anychip.train.objective import next_ids
from anychip.train.saves import save_folder
from anychip.train.shards import ShardReader


def chosen_by(model):
    """Return what each layer's router chooses from now on in passes that build gradients, as the set of all choices."""
    found = set()

    def note(layer, *_):
        if torch.is_grad_enabled():
            found.add(tuple(layer.chosen.flatten().tolist()))

    for layer in model.modules():
        if isinstance(layer, MoE) and layer.gate.tid2eid is None:
            layer.register_forward_hook(note)
    return found


def test_a_step_in_a_window_is_routed_by_the_weights_of_delay_steps_before():
    work = trainer(steps=6, batch=2, micro_batches=2, learning_rate=0.03, recompute=True)
    work.anticipation = Anticipation([Window(first=1, end=5, delay=2)])
    found, weights, by_step = chosen_by(work.model), [], []
    for _ in range(6):
        weights.append({name: tensor.clone() for name, tensor in work.model.state_dict().items()})
        found.clear()
        work.step()
        by_step.append(set(found))
    other = Transformer(small(), work.model.ops)
    fresh = chosen_by(other)

    def choice(step, of):
        """Return what the weights before step `of` choose for the batch of `step`."""
        other.load_state_dict(weights[of])
        fresh.clear()
        for part in work._batch(step).split(2):
            hidden = other(part.inputs_BL.flatten(), part.layout)
            other.predict_next(hidden.streams_Tnd, next_ids(part), part.layout)
        return set(fresh)

    assert [choice(step, of) for step, of in enumerate((0, 1, 1, 1, 2, 5))] == by_step
    assert all(choice(step, step) != by_step[step] for step in (2, 3, 4))


def go(out):
    """Train 22 steps with a batch whose loss is a spike, whatever the weights."""
    care = Care(save_every=4, keep=9, check_every=0, spike_nats=0.5, anticipate_steps=6, anticipate_delay=3,
                inject=parse_injections("spike@step18", 1))
    folder = train(run(steps=22, learning_rate=0.06), open_chip("cpu"), out, care=care)
    return folder.joinpath("model.safetensors").read_bytes()


def test_a_spike_that_comes_back_turns_it_on_for_a_while_and_a_stop_within_changes_no_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    weights = go(whole)
    events = read_lines(whole / EVENTS)
    assert [event["event"] for event in events if event.get("step") == 18] == [
        "injected", "fault", "fault", "anticipate", "fault", "skip"]
    assert windows_of(events) == (Window(16, 22, 3),)
    assert {line["step"] for line in read_lines(whole / METRICS) if "anticipate" in line["phases_s"]} == {16, 17, 18}

    shutil.copytree(whole, parts)
    shutil.rmtree(save_folder(parts, 22))  # as if the run had been ended at step 20 or 21
    keys = ShardReader(save_folder(parts, 20)).read_metadata().state_dict_metadata
    assert {key.split("/")[0] for key in keys if key.startswith("routing.")} == {"routing.21", "routing.22"}
    assert go(parts) == weights
