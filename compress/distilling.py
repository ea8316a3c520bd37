"""What learning from cached soft labels and from an online teacher share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.losses import scheduled
from compress.recipe import Distill, Ramp
from compress.training import AnswerTrainer


class Distilling(AnswerTrainer):
    """What all ways to distil share: alpha and temperature by optimiser step, and each term's mean in the log."""

    def __init__(self, *args, distill: Distill, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.distill = distill
        self._sums: dict[str, Tensor] = {}
        self._tokens = 0

    @property
    def alpha(self) -> float:
        """The weight of cross-entropy in this step."""
        return self._scheduled(self.distill.alpha, self.distill.alpha_schedule)

    @property
    def temperature(self) -> float:
        """What the distributions of this step are softened by."""
        return self._scheduled(self.distill.temperature, self.distill.temperature_schedule)

    def _scheduled(self, constant: float, schedule: Ramp | Sequence[float] | None) -> float:
        return scheduled(constant, schedule, self.state.global_step, self.state.max_steps)

    def note(self, tokens: int, **sums: Tensor) -> None:
        """Keep a micro-batch's sums over its tokens for the log."""
        self._tokens += tokens
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()

    def circumstances(self) -> dict[str, str]:
        return {**super().circumstances(), "alpha": str(self.alpha), "temperature": str(self.temperature)}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs["alpha"], logs["temperature"] = self.alpha, self.temperature
            sums = {"tokens": torch.tensor(float(self._tokens), device=self.args.device), **self._sums}
            sums = self.accelerator.reduce(sums, "sum")  # over all processes
            logs |= {
                name: float(value / sums["tokens"].clamp_min(1)) for name, value in sums.items() if name != "tokens"
            }
            self._sums, self._tokens = {}, 0
        super().log(logs, *args, **kwargs)
