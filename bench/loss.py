"""Memory and time of the loss alone: all logits at once, and in chunks that are made again on the way back.

python -m bench.loss [--rows 8192] [--vocabulary 32768] [--hidden 512]
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.peak import forget_peak, peak
from compress.losses import cross_entropy_sum, divergence_sum, in_chunks, tempered_log_probs, top_k_log_probs

_TEMPERATURE = 2.0
_KEPT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="answer tokens of a micro-batch")
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=512)
    options = parser.parse_args()
    Console(width=110).print(compare(options.rows, options.vocabulary, options.hidden))


def compare(rows: int, vocabulary: int, width: int) -> Table:
    """Forward and backward of cross-entropy and KL, each way once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    head, teacher_head = (nn.Linear(width, vocabulary, bias=False, device=device) for _ in range(2))
    teacher_head.requires_grad_(False)
    states = torch.randn(rows, width, device=device)
    taught = torch.randn(rows, width, device=device)
    labels = torch.randint(0, vocabulary, (rows,), device=device)
    ids = torch.stack([torch.randperm(vocabulary, device=device)[:_KEPT] for _ in range(64)]).repeat(-(-rows // 64), 1)[
        :rows
    ]
    kept = torch.full((rows, _KEPT), -6.0, device=device)

    def online(own: Tensor, asked: Tensor, targets: Tensor) -> Tensor:
        logits = head(own)
        with torch.no_grad():
            softened = tempered_log_probs(teacher_head(asked), _TEMPERATURE)
        divergence = divergence_sum(tempered_log_probs(logits, _TEMPERATURE), softened)
        return cross_entropy_sum(logits, targets) + divergence

    def cached(own: Tensor, tokens: Tensor, log_probs: Tensor, targets: Tensor) -> Tensor:
        logits = head(own)
        return cross_entropy_sum(logits, targets) + divergence_sum(
            *top_k_log_probs(logits, tokens, log_probs, _TEMPERATURE)
        )

    table = Table(title=f"{rows:,} rows, {vocabulary:,} tokens, width {width}", title_justify="left")
    for name in ("", "peak, MB", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "cached, in chunks": lambda own: in_chunks(cached, own, (ids, kept, labels)),
        "online, in chunks": lambda own: in_chunks(online, own, (taught, labels)),
        "cached, all at once": lambda own: cached(own, ids, kept, labels),
        "online, all at once": lambda own: online(own, taught, labels),
    }
    for name, way in ways.items():
        for _ in range(2):  # the first time libraries make room for themselves
            own = states.clone().requires_grad_()
            before, started = forget_peak(), time.perf_counter()
            way(own).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds, most = time.perf_counter() - started, peak() - before
            head.weight.grad = None
        table.add_row(name, f"{most / 1e6:,.0f}", f"{seconds:.2f}")
    return table


if __name__ == "__main__":
    main()
