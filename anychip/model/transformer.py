"""The model: one definition for every family, for training, prefill, chunked prefill and decode.

Shape suffixes: T tokens of all sequences, d hidden, n residual streams, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import InputError
from ..ops import Ops
from . import residual
from .block import Block, MTPBlock
from .layout import Layout
from .plan import Plan
from .state import State
from .weight import Weight


class Hidden(NamedTuple):
    """What a pass returns: the normalised hidden [T, d] (multiply by the head for logits), and the MTP block's input:
    mHC's streams [T, n, d] before they are joined; of a plain residual the normalised hidden as [T, 1, d]."""

    hidden_Td: Tensor
    streams_Tnd: Tensor


class Transformer(nn.Module):
    """The model on one chip's ops. Parameters are uninitialised: load a checkpoint or call `initialize`."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        d = config.hidden_size
        self.config, self.ops, self.rule = config, ops, residual.hyper_rule(config)
        self._last_plan: Plan | None = None
        self.embed, self.norm, self.head = Weight(config.vocab_size, d), Weight(d), Weight(config.vocab_size, d)
        if config.tie_word_embeddings:  # one weight with one name, and no parameter of its own
            del self.head
            self.__dict__["head"] = self.embed
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        residual.add_joining(self, config)
        self.mtp = nn.ModuleList(MTPBlock(config, config.num_hidden_layers + i)
                                 for i in range(config.num_nextn_predict_layers))

    def forward(self, ids_T: Tensor, layout: Layout, state: State | None = None) -> Hidden:
        """Run the new tokens of every sequence. With a `state` they continue it, without one they begin.

        Raises InputError where the layout does not fit the tokens, the state or the context length.
        """
        self._check(ids_T, layout, state)
        if state is not None:
            state.begin(layout)
        hidden = self._run(ids_T, self._plan(layout, state))
        if state is not None:
            state.commit()
        return hidden

    def _plan(self, layout: Layout, state: State | None) -> Plan:
        """Return the batch's plan; without a state the last one again where the layout is the same (training)."""
        device = self.embed.weight.device
        if state is not None:
            return Plan(self.config, layout, state, device)
        if self._last_plan is None or (self._last_plan.layout, self._last_plan.device) != (layout, device):
            self._last_plan = Plan(self.config, layout, None, device)
        return self._last_plan

    def _run(self, ids_T: Tensor, plan: Plan) -> Hidden:
        ops = self.ops.at("embed")
        x_Td = ops.embed(ids_T, self.embed.weight)
        streams_Tnd = residual.begin(x_Td, self.config)
        at_once = self.ops.blocks(self.layers, streams_Tnd, ids_T, plan)  # type: ignore[arg-type]
        if at_once is not None:
            return self.finish(at_once)
        for block in self.layers:
            streams_Tnd = block(streams_Tnd, ids_T, plan, self.ops)
        return self.finish(streams_Tnd)

    def finish(self, streams_Tnd: Tensor) -> Hidden:
        """Return what a pass returns, of the last block's streams."""
        ops = self.ops.at("head")
        x_Td = residual.join(self, streams_Tnd, ops)
        hidden_Td = ops.rms_norm(x_Td, self.norm.weight, self.config.rms_norm_eps)
        return Hidden(hidden_Td, hidden_Td[:, None] if self.rule is None else streams_Tnd)

    def logits(self, hidden_Td: Tensor) -> Tensor:
        """Return the head's logits [T, V], fp32."""
        return self.ops.at("head").linear(hidden_Td.float(), self.head.weight.float())

    def predict_next(self, streams_Tnd: Tensor, next_ids_T: Tensor, layout: Layout) -> Tensor:
        """Return the MTP block's hidden [T, d] for the token after `next_ids_T`, over whole sequences.

        Raises InputError where the model has no MTP block.
        """
        if not self.mtp:
            raise InputError("this model has no MTP block (num_nextn_predict_layers=0)")
        plan = self._plan(layout, None)
        embed_Td = self.ops.at("mtp.0").embed(next_ids_T, self.embed.weight)
        return self.mtp[0].predict(streams_Tnd, embed_Td, next_ids_T, plan, self.ops)  # type: ignore[union-attr,operator]

    def _check(self, ids_T: Tensor, layout: Layout, state: State | None) -> None:
        if ids_T.shape != (layout.num_tokens,):
            raise InputError(f"the layout has {layout.num_tokens} tokens, the ids have shape {tuple(ids_T.shape)}")
        if max(layout.ends) > self.config.max_position_embeddings:
            raise InputError(f"a sequence of {max(layout.ends)} tokens exceeds this model's context of "
                             f"{self.config.max_position_embeddings}: shorten it")
        if state is None and any(layout.starts):
            raise InputError("the layout continues sequences, but no state was given: pass the state that holds them")
