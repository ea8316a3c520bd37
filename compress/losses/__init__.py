"""The losses of distillation: pure functions, sums over tokens.

Every loss returns a *sum* over the N rows it is given. The caller divides once by the number of valid
tokens of the whole accumulation window (all micro-batches, all ranks), so that cutting a batch into
micro-batches changes nothing. Rows are positions that predict a valid token: position t of the logits
belongs with the label at t + 1 (`predicting_positions`), for every loss alike.
"""

from compress.losses.divergence import (
    divergence_sum,
    entropy_sum,
    logit_mse_sum,
    sampled_kl_sum,
    tempered_log_probs,
    top_k_log_probs,
)
from compress.losses.layers import attention_map_sum, hidden_cosine_sum, hidden_mse_sum, map_layers, relation_sum
from compress.losses.schedule import scheduled
from compress.losses.tokens import IGNORED, cross_entropy_sum, in_chunks, predicting_positions

__all__ = [
    "IGNORED",
    "attention_map_sum",
    "cross_entropy_sum",
    "divergence_sum",
    "entropy_sum",
    "hidden_cosine_sum",
    "hidden_mse_sum",
    "in_chunks",
    "logit_mse_sum",
    "map_layers",
    "predicting_positions",
    "relation_sum",
    "sampled_kl_sum",
    "scheduled",
    "tempered_log_probs",
    "top_k_log_probs",
]
