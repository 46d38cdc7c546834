"""transformers' DeepseekV4ForCausalLM with a model's weights, through our own checkpoint and conversion."""

import tempfile
from pathlib import Path

import torch
from transformers import DeepseekV4ForCausalLM
from transformers.utils import logging

from anychip.checkpoint import convert, save_checkpoint
from anychip.checkpoint.naming import stored_tensors
from anychip.checkpoint.naming import transformers as naming
from anychip.model import Transformer

logging.disable_progress_bar()


def peer_of(model: Transformer) -> DeepseekV4ForCausalLM:
    """Save the model in fp32, convert it to transformers' naming, load it there."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, model.config, Path(folder, "ours"), format="fp32")
        convert(Path(folder, "ours"), Path(folder, "theirs"), to="transformers")
        return DeepseekV4ForCausalLM.from_pretrained(Path(folder, "theirs"), dtype=torch.float32).eval()


def their_names(model: Transformer) -> dict[str, str]:
    """Return our parameter name -> transformers' name, for every parameter that both have."""
    parameters = dict(model.named_parameters())
    return {piece.tensor: stored.name for stored in stored_tensors(model.config, naming) for piece in stored.pieces
            if piece.tensor in parameters and not piece.tensor.startswith("mtp.")}
