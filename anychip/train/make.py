"""A run from what a person says: names of presets, files and folders. Every rank makes the same one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..chat.formats import plain_template
from ..config import load_config
from ..errors import InputError
from ..text import corpus
from ..text.batches import TokenBatches
from ..text.packing import DocumentRows, PackedBatches
from ..text.store import TokenStore, open_store
from ..text.tokenizer import Tokenizer, open_tokenizer
from .chats import chat_rows
from .run import Run
from .settings import TrainSettings


def make_run(settings: TrainSettings, *, preset: str = "nano", tokenizer: str | None = None,
             text: Sequence[Path] = (), sft: Path | None = None, start: Path | None = None) -> Run:
    """Return the run: pre-training on `text` (files; none: the shipped corpus), or fine-tuning on the chats of `sft`.

    With `start`, a checkpoint's folder, configuration and weights are its own, and so is the tokenizer where none is
    named (else anychip-4096). Raises ConfigError and InputError for what cannot be read or does not fit.
    """
    if text and sft:
        raise InputError("text is for pre-training and chats for fine-tuning: give one of --text and --sft")
    if sft and start is None:
        raise InputError("fine-tuning needs a checkpoint to begin from: --from FOLDER (or --from nano)")
    config = load_config(start if start is not None else preset)
    words = open_tokenizer(tokenizer or start or "anychip-4096")
    if words.chat_template is None and config.family != "v4":
        words = words.with_template(plain_template(config.family))  # so that any engine chats as it learnt to
    if settings.context_blocks > 1:
        return Run(config, words, _unpacked(_store(words, text), settings, sft), settings, start)
    rows = chat_rows(sft, words, settings.length, config.family) if sft else DocumentRows(
        _store(words, text), settings.length, settings.seed)
    return Run(config, words, PackedBatches(rows, settings.batch, settings.seed), settings, start)


def _unpacked(store: TokenStore, settings: TrainSettings, sft: Path | None) -> TokenBatches:
    """Windows of the text as one stream, in memory: blocks of a sequence cannot be cut where samples are packed."""
    if sft:
        raise InputError(f"context_blocks={settings.context_blocks}: chats are packed samples, which cannot be cut "
                         "into blocks; use context_blocks=1")
    return TokenBatches(torch.from_numpy(store.tokens.astype("int64")), settings.batch, settings.length, settings.seed)


def _store(words: Tokenizer, text: Sequence[Path]) -> TokenStore:
    return open_store(words, text) if text else TokenStore.of(words, corpus.documents("train"))
