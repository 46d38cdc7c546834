"""Generation of one sequence: prefill in chunks, then one token a pass, sampled as the publisher does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from ..chips import Chip
from ..errors import InputError
from ..model import Layout, State, Transformer
from .request import Sampling

_DRAWN = ("temperature", "top_p", "seed")  # of Sampling: what a single sequence takes


def generate(model: Transformer, chip: Chip, prompt_ids: Sequence[int], max_new_tokens: int,
             sampling: Sampling | None = None, *, eos_id: int | None = None) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue the prompt, each as soon as it is drawn.

    Of `sampling`, temperature, top_p and seed count; the rest is the engine's, and refused here. Ends after `eos_id`
    where one is given (it is yielded). The same seed draws the same tokens; two chips whose logits differ a little
    mostly draw the same ones too. Raises InputError at the call for an empty prompt, ids outside the vocabulary, fewer
    than one new token, or more tokens than the model's context.
    """
    sampling = sampling or Sampling()
    _check(model, prompt_ids, max_new_tokens, sampling)
    return _continue(model, chip, list(prompt_ids), max_new_tokens, (sampling, eos_id))


def _continue(model: Transformer, chip: Chip, prompt: list[int], max_new_tokens: int,
              rule: tuple[Sampling, int | None]) -> Iterator[int]:
    sampling, eos_id = rule
    random = torch.Generator()
    random.seed() if sampling.seed is None else random.manual_seed(sampling.seed)
    state = State(model.config, len(prompt) + max_new_tokens, device=chip.device)
    logits = _prefill(model, prompt, state)
    for count in range(1, max_new_tokens + 1):
        token = draw(logits, sampling, random)
        yield token
        if token == eos_id or count == max_new_tokens:
            return
        logits = _pass(model, [token], state)


def _prefill(model: Transformer, prompt: list[int], state: State) -> Tensor:
    for start in range(0, len(prompt), state.chunk):
        logits = _pass(model, prompt[start : start + state.chunk], state)
    return logits


@torch.inference_mode()
def _pass(model: Transformer, ids: list[int], state: State) -> Tensor:
    """Run new tokens and return the logits [V] after the last one."""
    tokens = torch.tensor(ids, device=model.embed.weight.device)
    hidden = model(tokens, Layout((state.num_tokens[0],), (len(ids),)), state)
    return model.logits(hidden.hidden_Td[-1:])[0]


def draw(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """Draw one token id, on the host in float64: the first, by id, at which the probabilities pass a random number.

    Adding up in the order of ids, not of likelihood, keeps the draw when logits change a little.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax().cpu())
    probability = torch.softmax(logits_V.cpu().double() / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, ids = probability.sort(descending=True, stable=True)
        dropped = ids[ordered.cumsum(0) - ordered >= sampling.top_p]
        probability[dropped] = 0
    total = probability.cumsum(0)
    bound = torch.rand((), generator=random, dtype=torch.float64) * total[-1]
    return int(torch.searchsorted(total, bound, right=True).clamp_max(int(probability.nonzero()[-1])))


def _check(model: Transformer, prompt: Sequence[int], max_new_tokens: int, sampling: Sampling) -> None:
    config, problems = model.config, []
    asked = [each.name for each in fields(Sampling) if each.name not in _DRAWN
             and getattr(sampling, each.name) != getattr(Sampling(), each.name)]
    if asked:
        problems.append(f"{', '.join(asked)} need the serving engine")
    if not prompt:
        problems.append("the prompt is empty: give at least one token")
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens={max_new_tokens} must be at least 1")
    outside = [token for token in prompt if not 0 <= token < config.vocab_size]
    if outside:
        problems.append(f"the prompt has token {outside[0]}, the model's ids are 0 to {config.vocab_size - 1}: use the "
                        "tokenizer that belongs to it")
    if len(prompt) + max_new_tokens > config.max_position_embeddings:
        problems.append(f"the prompt has {len(prompt)} tokens and {max_new_tokens} new ones were asked for, together "
                        f"{len(prompt) + max_new_tokens}; this model's context is {config.max_position_embeddings} "
                        "(max_position_embeddings): shorten the prompt or ask for fewer")
    if problems:
        raise InputError("cannot generate: " + "; ".join(problems))
