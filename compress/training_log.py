"""What a training loop logged, kept beside the weights it made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

TRAINING_LOG = "training.json"  # transformers' TrainerState

History = Sequence[Mapping[str, float]]


def training_history(checkpoint: Path) -> History:
    """The `log_history` of the loop that made a checkpoint; nothing for one that no loop of ours made."""
    file = checkpoint / TRAINING_LOG
    return msgspec.json.decode(file.read_bytes())["log_history"] if file.is_file() else []
