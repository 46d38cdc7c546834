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
from anychip.model import Transformer

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
