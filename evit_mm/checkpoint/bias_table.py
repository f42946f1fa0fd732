"""Attention bias tables for another window size."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ['is_resizable', 'resize_attention_biases']


def resize_attention_biases(biases: Tensor, window_size: int) -> Tensor:
    """Resize bias tables to another window size, as the reference does for dense prediction.

    Weights trained at 224x224 have a 4x4 last stage and so 16 entries per head there, while windows
    of 7x7 need 49. A table is an image over (|dy|, |dx|) and is resized as one: bicubic, without
    aligned corners.

    Args:
        biases: (heads, S * S), tables for windows of S x S tokens.
        window_size: The new side.

    Returns:
        Tensor: (heads, window_size ** 2), of the same dtype.

    Raises:
        ValueError: If the tables are not square.
    """
    heads, entries = biases.shape
    side = round(entries ** 0.5)
    if side * side != entries:
        raise ValueError(f'a bias table with {entries} entries is not square')
    if side == window_size:
        return biases
    resized = F.interpolate(biases.float().view(1, heads, side, side),
                            size=(window_size, window_size), mode='bicubic', align_corners=False)
    return resized.view(heads, window_size ** 2).to(biases.dtype)


def is_resizable(biases: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether `resize_attention_biases` can bring ``biases`` to ``shape``.

    Args:
        biases: Any tensor of a checkpoint.
        shape: (heads, entries) of the model's table.
    """
    return (biases.dim() == 2 and biases.shape[0] == shape[0] and biases.shape[1] != shape[1]
            and round(biases.shape[1] ** 0.5) ** 2 == biases.shape[1])
