"""What the chip does with the model: text it generates, and the first training steps it takes."""

from __future__ import annotations

import statistics

from ..chips import Chip
from ..serve.generate import Sampling, generate
from ..text.batches import TokenBatches
from ..train.settings import TrainSettings
from ..train.trainer import Trainer
from .bundle import Bundle
from .subject import Subject


def record_generation(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Greedy text for every prompt, and on a real chip the time of a decoded token."""
    model, rows = subject.model(chip), []
    for prompt in subject.prompts:
        ids, times = subject.tokenizer.encode(prompt), [chip.clock()]
        new = []
        for token in generate(model, chip, ids, subject.settings.new_tokens, Sampling(temperature=0.0)):
            new.append(token)
            times.append(chip.clock())
        steps = [after - before for before, after in zip(times[1:], times[2:], strict=False)]
        rows.append({"prompt": prompt, "ids": new, "text": subject.tokenizer.decode(new),
                     "token_s": statistics.median(steps) if steps else None})
    bundle.tables["generation"] = rows


def record_training(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Losses, gradient norms and times of the first steps from seeded weights, on the same batches."""
    settings = subject.settings
    batches = TokenBatches(subject.ids, settings.train_batch, settings.train_length, settings.seed)
    trainer = Trainer(subject.model(chip, trained=False), chip, batches,
                      TrainSettings(steps=settings.train_steps, batch=settings.train_batch,
                                    length=settings.train_length, seed=settings.seed,
                                    learning_rate=settings.learning_rate, warmup_steps=5))
    steps = [trainer.step() for _ in range(settings.train_steps)]
    bundle.tables["training"] = [{"loss": s.loss, "grad_norm": s.grad_norm, "time_s": s.time_s, "tokens": s.tokens}
                                 for s in steps]
