"""Training in one process: the trainer, runs that can be killed and resumed, and the loss on held-out text."""

from .evaluate import mean_loss, unigram_loss
from .run import Run, read_losses, train
from .settings import TrainSettings
from .trainer import Diverged, StepResult, Trainer

__all__ = ["Diverged", "Run", "StepResult", "TrainSettings", "Trainer", "mean_loss", "read_losses", "train",
           "unigram_loss"]
