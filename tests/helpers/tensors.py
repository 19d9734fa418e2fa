"""Random weights for torch modules, and the distance between two arrays."""

import numpy as np
import torch


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random, norms and biases too: an unused one would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            sample = torch.randn(parameter.shape, generator=generator)
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(sample * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def relative_error(value, expected) -> float:
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
