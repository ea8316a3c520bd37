"""How fast a training loop is, and how much of the machine it uses."""

import time

import torch
from torch import nn
from transformers import TrainerCallback


class Throughput(TrainerCallback):
    """Adds tokens/s and model FLOPs utilisation to the training log at the end of a loop, and prints them.

    Utilisation as in PaLM (2204.02311, appendix B): 6 FLOPs per parameter and token for the forward and the
    backward pass, attention's own products left out (short sequences), over what this machine reaches on large
    matrix products of the same type. Only what this process trained counts, not what a resumed run did before.
    """

    def __init__(self, name: str, bf16: bool) -> None:
        self.name, self.dtype = name, torch.bfloat16 if bf16 else torch.float32

    def on_train_begin(self, args, state, control, **kwargs):
        self.tokens, self.started = state.num_input_tokens_seen, time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        model: nn.Module = kwargs["model"]
        seconds = time.perf_counter() - self.started
        speed = (state.num_input_tokens_seen - self.tokens) / seconds
        parameters = sum(parameter.numel() for parameter in model.parameters())
        peak = reachable_flops(next(model.parameters()).device, self.dtype) * args.world_size
        used = 6 * parameters * speed / peak
        state.log_history.append({"step": state.global_step, "tokens_per_second": speed, "flops_utilisation": used})
        if state.is_world_process_zero:
            print(f"{self.name}: {speed:,.0f} tokens/s, {used:.0%} of this machine's {peak / 1e12:.2f} TFLOP/s")


def reachable_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several products of two square matrices, large enough to keep the device busy."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # reading a value waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
