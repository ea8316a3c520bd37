"""A training loop that ends in the middle, as a killed one does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from transformers import Trainer


class StopHere(Exception):
    """Stands for the kill of a run in the middle of training."""


@contextmanager
def cut_off_before(step: int, trainer: type[Trainer]) -> Iterator[None]:
    """Within this, a trainer ends before it makes the step after `step`; the test fails when it goes on."""
    whole_step = trainer.training_step

    def until_then(self: Trainer, *args, **kwargs):
        if self.state.global_step == step:
            raise StopHere
        return whole_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopHere):
        patch.setattr(trainer, "training_step", until_then)
        yield
