"""Training in one process: the trainer, runs that can be killed and resumed, and the loss on held-out text."""

from .evaluate import mean_loss, unigram_loss
from .settings import TrainSettings
from .trainer import Diverged, StepResult, Trainer

__all__ = ["Diverged", "StepResult", "TrainSettings", "Trainer", "mean_loss", "unigram_loss"]
