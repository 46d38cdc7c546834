"""The parts of the model between its ops, each recognised by the op argument that carries it."""

from __future__ import annotations

# Part -> what it is, in plain words.
PARTS = {
    "window": "the sliding window: which rows a token sees",
    "rows": "which rows of its sequence a token sees",
    "cache": "the keys and values of earlier tokens, carried from pass to pass",
    "attention_scale": "the scale of the attention scores",
    "route_rule": "the router's rule: score, groups, normalisation",
    "visible": "which compressed entries a token may see",
    "angles": "the rotary angles of tokens",
    "entry_angles": "the rotary angles of compressed entries",
    "compressor_windows": "which tokens a compressed entry pools",
    "overlap": "the window before, which a CSA entry overlaps",
    "compressor_state": "the compressor's open tokens, carried from chunk to chunk",
    "hash_table": "the table of hash-routed experts",
    "routing_scale": "the scale of the routing weights",
    "shared_expert": "the sum of routed and shared experts",
    "swiglu_limit": "the SwiGLU clamp's limit",
    "indexer": "the use of the indexer's choice",
    "weights": "the weights as loaded",
    "mtp_input": "what the MTP block gets from the model",
    "mtp_token": "the token that the MTP block embeds",
    "gradient": "the gradient through the model around the ops",
    "data flow": "a value passed from one op to another",
}
