"""transformers' model with a model's weights, through our own checkpoint and conversion."""

import re
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from anychip.checkpoint import convert, save_checkpoint
from anychip.checkpoint.naming import stored_tensors
from anychip.checkpoint.naming import transformers as naming
from anychip.model import Layout, Transformer

logging.disable_progress_bar()


def peer_of(model: Transformer) -> PreTrainedModel:
    """Save the model in fp32, convert it to transformers' naming, load it there."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, model.config, Path(folder, "ours"), format="fp32")
        convert(Path(folder, "ours"), Path(folder, "theirs"), to="transformers")
        return AutoModelForCausalLM.from_pretrained(Path(folder, "theirs"), dtype=torch.float32).eval()


def their_names(model: Transformer) -> dict[str, str]:
    """Return our parameter name -> that of transformers' model, which stacks experts, for every one that both have."""
    parameters = dict(model.named_parameters())
    return {piece.tensor: _stacked(stored.name)
            for stored in stored_tensors(model.config, naming) for piece in stored.pieces
            if piece.tensor in parameters and not piece.tensor.startswith("mtp.")}


def _stacked(name: str) -> str:
    name = re.sub(r"experts\.\d+\.(gate|up)_proj\.weight$", "experts.gate_up_proj", name)
    return re.sub(r"experts\.\d+\.down_proj\.weight$", "experts.down_proj", name)


def departing_gradients(model, peer, ids):
    """Return the parameters whose gradients of the mean loss differ, with cosine and ratio of norms."""
    model.zero_grad()
    peer.zero_grad()
    hidden = model(ids[:-1], Layout.whole([len(ids) - 1])).hidden_Td
    model.ops.cross_entropy(hidden, model.head.weight, ids[1:]).mean().backward()
    torch.nn.functional.cross_entropy(peer(ids[None, :-1]).logits[0], ids[1:]).backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    low, names = {}, their_names(model)
    for name, parameter in model.named_parameters():
        if name.startswith("mtp.") or ".indexer." in name:  # selection is not differentiable: neither side has one
            continue
        both = [torch.zeros_like(parameter) if g is None else g for g in (parameter.grad, theirs[names[name]])]
        grad, other = (g.double().flatten() for g in both)
        if not grad.any() and not other.any():  # no window of this layer has closed yet
            continue
        cosine, ratio = torch.nn.functional.cosine_similarity(grad, other, 0), grad.norm() / other.norm()
        if not cosine >= 0.99999 or not abs(ratio - 1) < 1e-4:
            low[name] = (float(cosine), float(ratio))
    return low
