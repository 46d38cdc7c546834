"""transformers' DeepseekV4ForCausalLM as an implementation under test, on the exported weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NotSupported, nearest
from .logits import Functions
from .weights import WeightSet, export

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDS = "bfloat16"  # the format whose roundings are traced
_ABSENT = {"mtp": "transformers ignores the MTP weights", "packed": "transformers' V4 takes no packed samples"}


def version() -> str:
    """Return the installed version. Raises NotSupported where transformers, or its V4, is not installed."""
    wanted = "pip install 'transformers>=5.23'"
    if importlib.util.find_spec("transformers") is None:
        raise NotSupported(f"--transformers needs transformers, which is not installed: {wanted}")
    found = importlib.metadata.version("transformers")
    if importlib.util.find_spec("transformers.models.deepseek_v4") is None:
        raise NotSupported(f"transformers {found} has no DeepSeek-V4: {wanted}")
    return found


@contextmanager
def opened(chosen: WeightSet, dtype: str) -> Iterator[Any]:
    """Export the weights, load them by AutoModelForCausalLM in `dtype` on the host, and yield the model.

    Experts run one after the other, in transformers' own definition ("eager"). Raises as `version`, and InputError
    for an unknown dtype.
    """
    version()
    if dtype not in DTYPES:
        raise InputError(f"transformers is run in {', '.join(DTYPES)}; not {dtype!r}.{nearest(dtype, DTYPES)}")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        export(chosen, Path(folder, "model"), "transformers")
        yield AutoModelForCausalLM.from_pretrained(Path(folder, "model"), dtype=DTYPES[dtype],
                                                   experts_implementation="eager").eval()


def functions(model: Any) -> Functions:
    """Return a transformers model's ways of running a text: whole, and in chunks with its DynamicCache."""

    @torch.no_grad()
    def logits(ids: Sequence[int]) -> Tensor:
        return model(torch.tensor([ids])).logits[0].float()

    @torch.no_grad()
    def chunked(chunks: Sequence[Sequence[int]]) -> Tensor:
        cache, parts = None, []
        for chunk in chunks:
            result = model(torch.tensor([chunk]), past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            parts.append(result.logits[0].float())
        return torch.cat(parts)

    return Functions({"logits": logits, "chunked": chunked}, model.config.vocab_size, _ABSENT)
