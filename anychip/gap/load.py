"""Load what both chips run: a model by name or folder, and the tokens of a held-out text."""

from __future__ import annotations

from pathlib import Path

import torch

from ..chips import open_chip
from ..errors import InputError
from ..serve.models import open_model
from ..text.corpus import load as corpus_text
from ..text.files import read_text
from ..text.prompts import prompts
from .subject import Settings, Subject
from .untrained import is_untrained, random_model

NUM_PROMPTS = 3


def load_subject(model: str, text: Path | None, settings: Settings) -> Subject:
    """Return the subject of a run. `text` None takes the shipped corpus' validation split.

    A preset without trained weights gets random ones from the settings' seed (see `untrained`).

    Raises InputError or CheckpointError where the model or the text cannot be used.
    """
    trained = not is_untrained(model)
    network, tokenizer = (open_model(model, open_chip("cpu:reference")) if trained else
                          random_model(model, settings.seed))
    ids = torch.tensor(tokenizer.encode(corpus_text("validation") if text is None else read_text(text)))
    needed = max(settings.text_tokens, settings.probe_tokens, settings.train_length) + 1
    if len(ids) < needed:
        raise InputError(f"the text has {len(ids)} tokens; {needed} are needed: give a longer text or fewer tokens")
    weights = {name: value.detach() for name, value in network.state_dict().items()}
    chosen = tuple(prompts().values())[:NUM_PROMPTS]
    return Subject(model, network.config, weights, tokenizer, ids, chosen, settings,
                   None if text is None else str(text), trained)
