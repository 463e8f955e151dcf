"""Signs that a training is going wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unscanned.errors import TrainingError

__all__ = ["check_finite"]


def check_finite(loss: Tensor, network: nn.Module) -> None:
    """Refuse to take a step that would write NaN or infinity into every weight.

    Adam turns one such gradient into a network that is lost, with gradient clipping or without.

    Args:
        loss: Scalar, after its backward pass.
        network: Whose gradients are looked at.

    Raises:
        TrainingError: The loss or a gradient is not finite.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise TrainingError(
            "the loss or its gradient is not finite",
            found=f"loss {float(loss.detach()):g}, gradient norm {float(norm):g}",
            expected="finite numbers",
            do="The last checkpoint and the best epoch are kept. Check the data, or lower training.learning_rate.",
        )
