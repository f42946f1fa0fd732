"""The backbone alone, from pixels to feature maps."""

from torch import Tensor, nn

from .inputs import ImageInput

__all__ = ['FeatureMaps']


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
