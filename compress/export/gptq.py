"""GPTQ: a linear layer's weights in 4 bits, so that its outputs on real inputs change as little as possible."""

import torch
from torch import Tensor

LOWEST, HIGHEST = -8, 7
_DAMPING = 0.01  # of the mean diagonal: keeps the inverse of a Hessian from few examples in bounds
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Symmetric 4-bit levels of a weight, and the scale of each group of `group_size` inputs.

    Columns are rounded one after another; what rounding one does to the output is made up for by those that are not
    rounded yet (Frantar et al., 2210.17323, section 3). Columns stay in their order, so kernels need no index.

    Args:
        weight: [out, in], `in` a multiple of `group_size`.
        hessian: float32 [in, in], the sum of x xᵀ over the layer's inputs x.

    Returns:
        levels: int8 [out, in], LOWEST to HIGHEST. scales: bfloat16 [out, in / group_size].
    """
    rest = weight.float().clone()
    hessian = hessian.float().clone()
    inputs = rest.shape[1]
    # An input that is always 0 says nothing about its column, and would make the Hessian singular.
    unused = hessian.diagonal() == 0
    hessian.diagonal()[unused] = 1.0
    hessian.diagonal().add_(_DAMPING * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    levels = torch.zeros_like(rest, dtype=torch.int8)
    scales = torch.zeros(rest.shape[0], inputs // group_size, dtype=torch.bfloat16, device=rest.device)
    importance = hessian.diagonal()
    for group, start in enumerate(range(0, inputs, group_size)):
        end = start + group_size
        scales[:, group] = best_scales(rest[:, start:end], importance[start:end])
        scale = scales[:, group].float()
        errors = torch.zeros_like(rest[:, start:end])
        for column in range(start, end):
            level = (rest[:, column] / scale).round().clamp(LOWEST, HIGHEST)
            levels[:, column] = level.to(torch.int8)
            error = (rest[:, column] - level * scale) / factor[column, column]
            rest[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    return levels, scales


def best_scales(group: Tensor, importance: Tensor) -> Tensor:
    """For each row of [out, group_size] the scale with the least squared rounding error, weighted by column.

    The largest weight may be cut when that rounds all others more finely.
    """
    full = (group.abs().amax(dim=1) / 7.5).clamp_min(1e-8)
    candidates = torch.stack([full * shrink for shrink in _SHRINKS]).bfloat16().float()  # as they are stored
    rounded = (group / candidates[..., None]).round().clamp(LOWEST, HIGHEST) * candidates[..., None]
    errors = ((group - rounded).square() * importance).sum(-1)
    return candidates.gather(0, errors.argmin(dim=0, keepdim=True))[0].bfloat16()
