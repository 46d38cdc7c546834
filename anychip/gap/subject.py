"""What both chips run: the same weights, the same tokens, the same settings, each with its hash."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..chips import Chip
from ..config import ModelConfig
from ..model import Transformer, initialize
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """How much is run. Token counts; the probe is one sequence, the text is cut into `text_length` sequences."""

    probe_tokens: int = 320
    text_tokens: int = 2048
    text_length: int = 512
    logit_positions: int = 256
    new_tokens: int = 40
    train_seeds: int = 3
    train_steps: int = 20
    questions: int = 120
    question_tokens: int = 24
    answer_tokens: int = 12
    train_batch: int = 2
    train_length: int = 128
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model with its weights (fp32 or bf16 on the host), its tokenizer, and the token stream of a real text."""

    name: str
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    ids: Tensor
    prompts: tuple[str, ...]
    settings: Settings
    text: str | None = None  # the file that `ids` came from; None: the shipped text
    trained: bool = True  # False: the weights are random, and nothing that the model says means anything

    def model(self, chip: Chip, *, trained: bool = True, seed: int = 0) -> Transformer:
        """Return the model on a chip: with the subject's weights, or (not `trained`) initialised from `seed`."""
        model = Transformer(self.config, chip.ops())
        if trained:
            model.load_state_dict(self.weights)
        else:
            initialize(model, seed)
        chip.prepare(model)
        return model.to(chip.device)

    def probe(self) -> Tensor:
        """Return the first `probe_tokens` ids: enough to cross the 4- and 128-token edges and the sparse limit."""
        return self.ids[: self.settings.probe_tokens]

    def digests(self) -> dict[str, str]:
        """Return the hashes that two bundles must share."""
        weights = hashlib.sha256()
        for name in sorted(self.weights):
            weights.update(name.encode())
            weights.update(self.weights[name].contiguous().view(torch.uint8).numpy().tobytes())
        settings = repr(sorted(asdict(self.settings).items())) + repr(self.prompts)
        return {"weights": weights.hexdigest(), "tokens": hashlib.sha256(self.ids.numpy().tobytes()).hexdigest(),
                "settings": hashlib.sha256(settings.encode()).hexdigest()}
