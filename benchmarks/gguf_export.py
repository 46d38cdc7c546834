"""Writes a DeepSeek-V4 model as GGUF in fp32, so that llama.cpp can run the very same weights.

Names, metadata keys and shapes are those of llama.cpp's `deepseek4` architecture (src/models/deepseek4.cpp and
src/llama-arch.cpp at b11434). Without a tokenizer the file takes and gives token ids only. The MTP block is left
out, as in llama.cpp's own conversion. GGUF lists dimensions innermost first, so a [out, in] matrix stays as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from torch import Tensor

from anychip.checkpoint.naming import in_model, stored_tensors
from anychip.config import ModelConfig
from anychip.errors import CheckpointError, NotSupported

ARCHITECTURE = "deepseek4"
SQRT_SOFTPLUS = 4  # llama.cpp's expert_gating_func
HADAMARD = 64  # llama.cpp rotates indexer vectors by a Hadamard matrix of 64, 128, ...: the largest that divides

# The publisher's name (experts stacked) -> llama.cpp's name, both without `layers.N.` and `blk.N.`.
_TOP_NAMES = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "attn_norm.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    "attn.compressor.wkv.weight": "attn_compressor_kv.weight",
    "attn.compressor.wgate.weight": "attn_compressor_gate.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.norm.weight": "attn_compressor_norm.weight",
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "attn.indexer.compressor.wkv.weight": "indexer_compressor_kv.weight",
    "attn.indexer.compressor.wgate.weight": "indexer_compressor_gate.weight",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.norm.weight": "indexer_compressor_norm.weight",
    "hc_attn_fn": "hc_attn_fn.weight",
    "hc_attn_base": "hc_attn_base.weight",
    "hc_attn_scale": "hc_attn_scale.weight",
    "hc_ffn_fn": "hc_ffn_fn.weight",
    "hc_ffn_base": "hc_ffn_base.weight",
    "hc_ffn_scale": "hc_ffn_scale.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.experts.w2": "ffn_down_exps.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
}


def export_gguf(path: str | Path, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]],
                tokenizer: Path | None = None) -> None:
    """Write `tensors` (a model's `state_dict().items()`: the publisher's names, experts stacked) to `path`.

    Streams: each tensor goes to a temporary file as it arrives, and the whole appears under `path` at the end or
    not at all. Floating-point tensors become fp32, the hash table int32; `mtp.*` is skipped. `tokenizer` is a
    byte-level BPE's tokenizer.json, whose tokens llama.cpp's server needs for its answers.

    Raises NotSupported with every reason why llama.cpp cannot run this model, and CheckpointError with every
    missing, unknown and misshapen tensor.
    """
    reasons = unsupported(config)
    if reasons:
        raise NotSupported("llama.cpp cannot run this model:\n  " + "\n  ".join(reasons))
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    writer = GGUFWriter(None, ARCHITECTURE, use_temp_file=True)
    try:
        _add_metadata(writer, config)
        _add_vocabulary(writer, config, tokenizer)
        _add_tensors(writer, config, tensors)
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(partial, target)
    finally:
        writer.close()
        if writer.temp_file is not None:
            writer.temp_file.close()
        partial.unlink(missing_ok=True)


def unsupported(config: ModelConfig) -> list[str]:
    """Return why llama.cpp b11434 cannot run a model of this configuration: empty where it can."""
    c, size = config, config.index_head_dim // HADAMARD
    yarn = c.rope_scaling
    rules = {
        f"hc_mult={c.hc_mult}: it asserts 4": c.hc_mult == 4,
        f"index_head_dim={c.index_head_dim}: it must be 64, 128, 256, ... (64 times a power of two)":
            c.index_head_dim % HADAMARD == 0 and size & (size - 1) == 0,
        f"head_dim={c.head_dim} equals index_head_dim: it then rotates the main cache and not the window's keys":
            c.head_dim != c.index_head_dim,
        f"n_routed_experts={c.n_routed_experts}: 1024 at most": c.n_routed_experts <= 1024,
        f"num_hidden_layers={c.num_hidden_layers}: 512 at most": c.num_hidden_layers <= 512,
        "rope_scaling beta_fast, beta_slow: it reads neither for this architecture and takes 32 and 1":
            yarn is None or (yarn.beta_fast, yarn.beta_slow) == (32, 1),
    }
    return [reason for reason, holds in rules.items() if not holds]


def gguf_names(name: str) -> tuple[str, ...]:
    """Return the names that a tensor has in the GGUF: two for `ffn.experts.w13` (gate, up), else one.

    Raises CheckpointError for a name that the layout does not have.
    """
    if name in _TOP_NAMES:
        return (_TOP_NAMES[name],)
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match and match[2] == "ffn.experts.w13":
        return (f"blk.{match[1]}.ffn_gate_exps.weight", f"blk.{match[1]}.ffn_up_exps.weight")
    if match and match[2] in _LAYER_NAMES:
        return (f"blk.{match[1]}.{_LAYER_NAMES[match[2]]}",)
    raise CheckpointError(f"{name}: a DeepSeek-V4 model has no such tensor")


def _add_metadata(writer: GGUFWriter, c: ModelConfig) -> None:
    writer.add_file_type(LlamaFileType.ALL_F32)
    layers = c.num_hidden_layers
    for key, value in _integers(c).items():
        writer.add_uint32(f"{ARCHITECTURE}.{key}", value)
    for key, number in _numbers(c).items():
        writer.add_float32(f"{ARCHITECTURE}.{key}", number)
    writer.add_bool(f"{ARCHITECTURE}.expert_weights_norm", True)
    writer.add_array(f"{ARCHITECTURE}.attention.compress_ratios", list(c.compress_ratios[:layers]))
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        writer.add_array(f"{ARCHITECTURE}.{key}", [float(c.swiglu_limit)] * layers)
    writer.add_string(f"{ARCHITECTURE}.rope.scaling.type", "none" if c.rope_scaling is None else "yarn")
    if c.rope_scaling is not None:
        original = c.rope_scaling.original_max_position_embeddings
        writer.add_float32(f"{ARCHITECTURE}.rope.scaling.factor", c.rope_scaling.factor)
        writer.add_uint32(f"{ARCHITECTURE}.rope.scaling.original_context_length", original)


def _add_vocabulary(writer: GGUFWriter, c: ModelConfig, path: Path | None) -> None:
    """Token texts and merges; without a tokenizer none: the file then takes and gives ids only."""
    if path is None:
        writer.add_tokenizer_model("no_vocab")
        return
    read = json.loads(path.read_text())
    special = {token["id"]: token["content"] for token in read["added_tokens"]}
    texts = {index: text for text, index in read["model"]["vocab"].items()} | special
    ids = range(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(index, f"[UNUSED{index}]") for index in ids])
    writer.add_token_types([TokenType.CONTROL if index in special else
                            TokenType.NORMAL if index in texts else TokenType.UNUSED for index in ids])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in read["model"]["merges"]])
    writer.add_bos_token_id(c.bos_token_id)
    writer.add_eos_token_id(c.eos_token_id)
    writer.add_add_bos_token(False)


def _integers(c: ModelConfig) -> dict[str, int]:
    return {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "embedding_length_out": c.hidden_size * c.hc_mult,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.q_lora_rank": c.q_lora_rank,
        "attention.sliding_window": c.sliding_window,
        "attention.output_group_count": c.o_groups,
        "attention.output_lora_rank": c.o_lora_rank,
        "attention.indexer.head_count": c.index_n_heads,
        "attention.indexer.key_length": c.index_head_dim,
        "attention.indexer.top_k": c.index_topk,
        "rope.dimension_count": c.qk_rope_head_dim,
        "feed_forward_length": c.moe_intermediate_size,
        "expert_feed_forward_length": c.moe_intermediate_size,
        "expert_count": c.n_routed_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_shared_count": 1,
        "expert_gating_func": SQRT_SOFTPLUS,
        "hash_layer_count": c.num_hash_layers,
        "hyper_connection.count": c.hc_mult,
        "hyper_connection.sinkhorn_iterations": c.hc_sinkhorn_iters,
    }


def _numbers(c: ModelConfig) -> dict[str, float]:
    return {
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "attention.compress_rope_freq_base": c.compress_rope_theta,
        "rope.freq_base": c.rope_theta,
        "expert_weights_scale": c.routed_scaling_factor,
        "hyper_connection.epsilon": c.hc_eps,
    }


def _add_tensors(writer: GGUFWriter, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]]) -> None:
    shapes = {stored.name: stored.shape for stored in stored_tensors(config, in_model)
              if not stored.name.startswith("mtp.")}
    problems, missing = [], set(shapes)
    for name, tensor in tensors:
        if name.startswith("mtp."):
            continue
        if name not in shapes:
            problems.append(f"{name}: this model has no such tensor")
        elif name not in missing:
            problems.append(f"{name}: given twice")
        elif tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name}: has shape {tuple(tensor.shape)}; the configuration says {shapes[name]}")
        elif not problems:
            for gguf_name, part in _parts(name, tensor):
                writer.add_tensor(gguf_name, part.numpy(), raw_dtype=_gguf_type(part))
        missing.discard(name)
    problems += [f"{name}: missing" for name in shapes if name in missing]
    if problems:
        raise CheckpointError("these tensors cannot be exported:\n  " + "\n  ".join(problems))


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    names = gguf_names(name)
    dtype = torch.float32 if tensor.is_floating_point() else torch.int32
    for gguf_name, part in zip(names, tensor.detach().chunk(len(names), dim=1 if len(names) == 2 else 0), strict=True):
        yield gguf_name, part.to("cpu", dtype).contiguous()


def _gguf_type(part: Tensor) -> GGMLQuantizationType:
    return GGMLQuantizationType.F32 if part.is_floating_point() else GGMLQuantizationType.I32
