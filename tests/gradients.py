"""What several test files differentiate by."""

import torch


def gradients(output, inputs):
    """Differentiate a fixed weighting of the output, so that every element counts differently."""
    weighting = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).cos().view_as(output)
    return torch.autograd.grad((output * weighting).sum(), inputs)
