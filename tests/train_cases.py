"""A model of about 60,000 parameters with every kind of layer, and runs on it, for tests of training."""

from dataclasses import replace

import torch
from models import nano

from anychip.chips import open_chip
from anychip.config import ModelConfig
from anychip.model import Transformer, initialize
from anychip.text.batches import TokenBatches, encode_documents
from anychip.text.tokenizer import open_tokenizer
from anychip.train import Run, Trainer, TrainSettings

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 40


def small(**fields) -> ModelConfig:
    """Return the configuration: sliding-window, CSA and HCA layers and an MTP block, hash- and score-routed."""
    values = {
        "vocab_size": 4096, "hidden_size": 16, "num_hidden_layers": 3, "compress_ratios": (0, 4, 128, 0),
        "head_dim": 16, "qk_rope_head_dim": 8, "num_attention_heads": 2, "q_lora_rank": 8, "o_lora_rank": 8,
        "index_n_heads": 2, "index_head_dim": 16, "moe_intermediate_size": 16, "n_routed_experts": 4,
    }
    return replace(nano(), **(values | fields))


def settings(**values) -> TrainSettings:
    """Return settings of a short run."""
    return TrainSettings(**({"steps": 6, "batch": 2, "length": 24, "learning_rate": 3e-3} | values))


def run(**values) -> Run:
    """Return a run on a short English text."""
    tokenizer, chosen = open_tokenizer("anychip-4096"), settings(**values)
    ids = encode_documents(tokenizer, [TEXT])
    return Run(small(), tokenizer, TokenBatches(ids, chosen.batch, chosen.length, chosen.seed), chosen)


def trainer(config: ModelConfig | None = None, **values) -> Trainer:
    """Return a trainer on the reference ops."""
    chip, plan = open_chip("cpu:reference"), run(**values)
    model = Transformer(config or small(), chip.ops())
    initialize(model, 0)
    return Trainer(model, chip, plan.batches, plan.settings)


class OneBatch:
    """The same random tokens at every step."""

    def __init__(self, batch: int, length: int) -> None:
        ids = torch.randint(0, 4096, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        self.inputs, self.targets = ids[:, :-1], ids[:, 1:]

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs, self.targets
