"""Training: the trainer, runs that any number of processes can share and that go on after faults, held-out loss."""

from .care import Care
from .evaluate import mean_loss, unigram_loss
from .export import export
from .fault import Fault, FaultKind, Stopped
from .run import Run, read_losses, train
from .settings import TrainSettings
from .trainer import Diverged, StepResult, Trainer

__all__ = ["Care", "Diverged", "Fault", "FaultKind", "Run", "StepResult", "Stopped", "TrainSettings", "Trainer",
           "export", "mean_loss", "read_losses", "train", "unigram_loss"]
