"""The backbone alone, from pixels to feature maps."""

from torch import Tensor, nn

from ..layers import FoldedAttention, FoldedFeedForward
from .inputs import ImageInput

__all__ = ['FeatureMaps', 'suit_runtimes']


def suit_runtimes(model: nn.Module, *, any_size: bool) -> None:
    """Give the layers of a deployed model the form that runtimes compute fastest, in place.

    Runtimes choose the layout of maps themselves and have fast 1x1 convolutions, where PyTorch is
    faster with maps that have their channels last and with matrix products.

    Args:
        model: What `deploy` returns.
        any_size: Whether images of any size must work.
    """
    for module in list(model.modules()):
        if isinstance(module, FoldedAttention):
            module.any_size = any_size
        for name, child in module.named_children():
            if isinstance(child, FoldedFeedForward):
                setattr(module, name, nn.Sequential(child.expand, nn.ReLU(), child.project))


class FeatureMaps(nn.Module):
    """A backbone, from pixels to its maps.

    Args:
        inputs: The normalisation.
        network: The backbone.
        count: Number of its maps.
    """

    def __init__(self, inputs: ImageInput, network: nn.Module, count: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.outputs = tuple(f'feature_{number}' for number in range(count))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map pixels in the order BGR, uint8, shape (B, H, W, 3), to maps (B, C_i, H_i, W_i)."""
        x = self.inputs(images)
        x = x.to(next(self.network.parameters()).dtype)
        return tuple(level.float() for level in self.network(x))
