"""Ops that compute shapes only, on the meta device: to count the work of a model that fits no machine here."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Keys, Ranges
from .experts import V4_RULE, RouteRule
from .hyper import HyperRule, HyperWeights
from .seam import Ops


class ShapeOps(Ops):
    """Each op's result as an empty tensor on the first argument's device. No value is computed."""

    @staticmethod
    def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
        return x_TI.new_empty(*x_TI.shape[:-1], weight_OI.shape[0])

    @staticmethod
    def grouped_linear(x_TGI: Tensor, weight: Tensor) -> Tensor:
        return x_TGI.new_empty(x_TGI.shape[0], weight.numel() // x_TGI.shape[2])

    @staticmethod
    def embed(ids_T: Tensor, weight_Vd: Tensor) -> Tensor:
        return weight_Vd.new_empty(ids_T.shape[0], weight_Vd.shape[1])

    @staticmethod
    def rms_norm(x: Tensor, weight_C: Tensor | None, eps: float) -> Tensor:
        return x.new_empty(x.shape)

    @staticmethod
    def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        return x.new_empty(x.shape)

    @staticmethod
    def rope(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False, half: bool = False,
             first: bool = False) -> Tensor:
        return x.new_empty(x.shape)

    @staticmethod
    def norm_rope(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor, *,
                  half: bool = False) -> Tensor:
        return x.new_empty(x.shape)

    @staticmethod
    def attention(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, *, scale: float | None = None,
                  value_width: int | None = None) -> Tensor:
        return query_THC.new_empty(*query_THC.shape[:2], query_THC.shape[2] if value_width is None else value_width)

    @staticmethod
    def grouped_attention(query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges,
                          scale: float) -> Tensor:
        return query_THC.new_empty(*query_THC.shape[:2], value_NGV.shape[2])

    @staticmethod
    def compress(
        value_NW: Tensor, gate_NW: Tensor, ape_mW: Tensor, first_E: Tensor, previous_E: Tensor | None
    ) -> Tensor:
        width = value_NW.shape[1] // (1 if previous_E is None else 2)
        return value_NW.new_empty(first_E.shape[0], width)

    @staticmethod
    def index_topk(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges, topk: int) -> Tensor:
        return query_THI.new_empty(query_THI.shape[0], topk, dtype=torch.int32)

    @staticmethod
    def route(x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None,
              ids_TK: Tensor | None = None, rule: RouteRule = V4_RULE) -> tuple[Tensor, Tensor]:
        shape = x_Td.shape[0], topk
        return x_Td.new_empty(shape, dtype=torch.int64), x_Td.new_empty(shape, dtype=torch.float32)

    @staticmethod
    def router_scores(x_Td: Tensor, weight_Ed: Tensor, rule: RouteRule = V4_RULE) -> Tensor:
        return x_Td.new_empty(x_Td.shape[0], weight_Ed.shape[0], dtype=torch.float32)

    @staticmethod
    def mlp(x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor, limit: float) -> Tensor:
        return x_Td.new_empty(x_Td.shape)

    @staticmethod
    def experts(x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor], limit: float) -> Tensor:
        return x_Td.new_empty(x_Td.shape)

    @staticmethod
    def add(x: Tensor, y: Tensor) -> Tensor:
        return x.new_empty(x.shape)

    @staticmethod
    def hc_pre(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
        tokens, n, d = streams_Tnd.shape
        mixing = (streams_Tnd.new_empty(*shape, dtype=torch.float32) for shape in ((tokens, n), (tokens, n, n)))
        return streams_Tnd.new_empty(tokens, d), *mixing  # type: ignore[return-value]

    @staticmethod
    def hc_post(y_Td: Tensor, streams_Tnd: Tensor, post_Tn: Tensor, comb_Tnn: Tensor) -> Tensor:
        return streams_Tnd.new_empty(streams_Tnd.shape)

    @staticmethod
    def hc_head(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> Tensor:
        return streams_Tnd.new_empty(streams_Tnd.shape[0], streams_Tnd.shape[2])

    @staticmethod
    def cross_entropy(hidden_Td: Tensor, head_Vd: Tensor, target_T: Tensor) -> Tensor:
        return hidden_Td.new_empty(hidden_Td.shape[0], dtype=torch.float32)
