"""Train the shipped byte-level BPE (`anychip/text/tokenizer-4096`) on the corpus's training split.

    python tools/make_tokenizer.py

Its text splitting is that of DeepSeek-V4's tokenizer.json, its special tokens carry the same strings, and the
first three the same ids. Trains twice and refuses to write if the two differ. About 10 s on one core.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from anychip.text import corpus

OUT = Path(__file__).resolve().parent.parent / "anychip" / "text" / "tokenizer-4096"
VOCAB_SIZE = 4096
SPECIAL = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>",
    "<think>", "</think>",
)  # fmt: skip
# As in DeepSeek-V4's tokenizer.json: digits in threes, runs of Han and kana, words with their space.
SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def train() -> Tokenizer:
    """A tokenizer with exactly VOCAB_SIZE tokens, the special ones first."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.documents("train"), trainer)
    return as_published(tokenizer)


def as_published(tokenizer: Tokenizer) -> Tokenizer:
    """Mark the chat tokens as not special, as the publisher does: `skip_special_tokens` then keeps them."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL[:3]
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def config() -> dict[str, object]:
    """`tokenizer_config.json` in the publisher's fields."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1048576,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def main() -> None:
    """Train, check and write both files."""
    tokenizer, again = train(), train()
    if tokenizer.to_str() != again.to_str():
        raise SystemExit("training twice gave two different tokenizers; nothing written")
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, expected {VOCAB_SIZE}")
    OUT.mkdir(exist_ok=True)
    (OUT / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    text = json.dumps(config(), ensure_ascii=False, indent=2)
    (OUT / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    validation = corpus.load("validation")
    num_tokens = len(tokenizer.encode(validation).ids)
    print(f"{VOCAB_SIZE} tokens; validation: {len(validation.encode()) / num_tokens:.3f} bytes a token")


if __name__ == "__main__":
    main()
