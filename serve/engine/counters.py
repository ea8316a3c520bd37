"""What an engine has done since it started."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from serve.engine.base import EngineStats, StepTimes

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass
class Counters:
    """Written by the engine's thread alone; the fields are those of `EngineStats`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    decoded_tokens: int = 0
    forced_tokens: int = 0
    finished: Counter[str] = field(
        default_factory=lambda: Counter({"stop": 0, "length": 0, "cancelled": 0, "deadline": 0, "error": 0})
    )
    _steps: list[int] = field(default_factory=lambda: [0] * (len(STEP_SECONDS) + 1))
    _step_seconds: float = 0.0

    def add_step(self, seconds: float) -> None:
        """Count a step that took so long."""
        self._steps[bisect_left(STEP_SECONDS, seconds)] += 1
        self._step_seconds += seconds

    def stats(
        self, *, slots: int, running: int, waiting: int, waiting_batch: int, kv_tokens: int, kv_tokens_used: int
    ) -> EngineStats:
        """A snapshot, beside what the engine does now: the arguments are the gauges of `EngineStats`."""
        return EngineStats(
            slots=slots,
            running=running,
            waiting=waiting,
            waiting_batch=waiting_batch,
            kv_tokens=kv_tokens,
            kv_tokens_used=kv_tokens_used,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            decoded_tokens=self.decoded_tokens,
            forced_tokens=self.forced_tokens,
            finished=dict(self.finished),
            step_times=self._step_times(),
        )

    def _step_times(self) -> StepTimes:
        counts = list(self._steps)
        bounds = (*STEP_SECONDS, float("inf"))
        return StepTimes(
            buckets=tuple((bound, sum(counts[: place + 1])) for place, bound in enumerate(bounds)),
            total_s=self._step_seconds,
        )
