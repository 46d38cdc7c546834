"""Quality: the same questions answered on both chips, and whether so many questions can tell the chips apart.

A question is a piece of real text and four continuations, its own and three from elsewhere in the text; the answer is
the one that the model finds likeliest. No data set is needed, and a small model does better than chance at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..chips import Chip
from ..model import Layout, Transformer
from .bundle import Bundle
from .statistics import Test, mcnemar, needed, resolvable
from .subject import Subject

CHOICES = 4
ASKED = 0.01  # the difference of shares that a comparison is asked to see, if not told otherwise
_BATCH = 64  # sequences of one pass


def record_quality(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Keep each question's log-probability of every choice, [questions, 4]; the first choice is the right one."""
    settings = subject.settings
    sequences = questions(subject.ids, settings.questions, settings.question_tokens, settings.answer_tokens)
    model = subject.model(chip)
    scores = [_scores(model, part, settings.answer_tokens) for part in sequences.flatten(0, 1).split(_BATCH)]
    bundle.tensors["quality/scores"] = torch.cat(scores).view(-1, CHOICES)


def questions(ids: Tensor, num: int, context: int, answer: int) -> Tensor:
    """Return int64 [num, 4, context + answer]: the text as it goes on, then the same with answers from elsewhere.

    Questions are spread evenly over the text; the wrong answers lie a third, a half and two thirds of it further on.
    """
    length = context + answer
    starts = torch.linspace(0, len(ids) - length - 1, num).long()
    offsets = [0, *(len(ids) * k // 6 for k in (2, 3, 4))]
    rows = []
    for start in starts.tolist():
        own = ids[start : start + context]
        ends = [(start + offset) % (len(ids) - length) + context for offset in offsets]
        rows.append(torch.stack([torch.cat((own, ids[end : end + answer])) for end in ends]))
    return torch.stack(rows)


def _scores(model: Transformer, sequences: Tensor, answer: int) -> Tensor:
    """Return each sequence's log-probability of its last `answer` tokens, in nats."""
    num, length = sequences.shape
    with torch.no_grad():
        hidden = model(sequences.flatten().to(model.embed.weight.device), Layout.whole([length] * num)).hidden_Td
        kept = hidden.view(num, length, -1)[:, -answer - 1 : -1].reshape(num * answer, -1)
        logprob = model.logits(kept).float().cpu().log_softmax(-1)
    return logprob.gather(1, sequences[:, -answer:].reshape(-1, 1)).view(num, answer).sum(1)


@dataclass(frozen=True)
class Quality:
    """Both chips on the same questions. `test` is b less a; `seen` the smallest difference that so many can show.

    `asked` is the difference that was asked for and `wanted` how many questions would show it; where `wanted` is
    more than `num`, no verdict of equality is given.
    """

    num: int
    right: tuple[float, float]
    changed: tuple[int, int]
    test: Test
    seen: float
    asked: float
    wanted: float


def judge_quality(a: Bundle, b: Bundle, asked: float = ASKED) -> Quality:
    """Compare two chips' answers: McNemar's exact test on the questions that only one of them got right."""
    right = [bundle.tensors["quality/scores"].argmax(1).numpy() == 0 for bundle in (a, b)]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    num = len(right[0])
    # one changed question more than seen: with none at all the share is small, not zero
    share = (only_a + only_b + 1) / num
    return Quality(num, (float(np.mean(right[0])), float(np.mean(right[1]))), (only_a, only_b),
                   mcnemar(only_a, only_b, num), resolvable(num, share), asked, needed(asked, share))


def quality_row(quality: Quality) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    d = quality.test.difference
    return {"questions": quality.num, "right": list(quality.right), "only_a": quality.changed[0],
            "only_b": quality.changed[1], "p": quality.test.p, "difference": [d.value, d.low, d.high],
            "resolvable": quality.seen, "asked": quality.asked, "questions_needed": quality.wanted}
