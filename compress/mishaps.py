"""What can end a training loop early, said so that a person can go on: no memory, a loss that is not a number."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from compress import ranks
from compress.errors import StageError

TRAINING_KNOBS = (
    "lower train.per_device_train_batch_size (or train.max_tokens_per_batch) and raise "
    "train.gradient_accumulation_steps by as much, which changes no gradient; set train.gradient_checkpointing: true; "
    "set train.optim: adamw_bnb_8bit"
)
LABELLING_KNOBS = (
    "lower data.max_tokens; hide GPUs that others use with CUDA_VISIBLE_DEVICES; or take a machine with more memory: "
    "the teacher's weights alone are what `deepcode-compress doctor` says"
)


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Turn an allocation that failed into an error that says what to change.

    Args:
        doing: what the memory was for.

    Raises:
        StageError: the device, or the machine, has no more memory.
    """
    try:
        yield
    except RuntimeError as error:
        # On CPUs torch has no type of its own for this.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise StageError(
            f"{doing} ran out of memory ({str(error).splitlines()[0]}). To need less: {advice}."
        ) from error


def stop_for(batch: dict[str, Tensor], what: str, step: int, known: dict[str, str], folder: Path) -> StageError:
    """The error for a loss or a gradient that is not a finite number, with the micro-batch saved as it was.

    Args:
        what: the loss, or the gradient.
        known: what else the loss depended on, by name; saved with the batch.
        folder: where to write `not-finite-step-<step>.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = f"-process-{ranks.number()}" if ranks.count() > 1 else ""
    file = folder / f"not-finite-step-{step}{process}.safetensors"
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()},
        file,
        metadata={"step": str(step), **known},
    )
    newest = max(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, default=None)
    return StageError(
        f"{what} of optimiser step {step + 1} is not a finite number. The micro-batch is in {file}, with what it "
        f"depended on in its metadata; the weights before it, or a few steps before, are in "
        f"{newest or 'the stage that came before'}. Lower train.learning_rate or train.max_grad_norm, raise "
        "train.warmup_steps, or set train.bf16: false, and give the same command again"
    )
