"""Wide 3x3 convolutions with a quarter of the multiplications, for inference on a CPU.

Winograd's minimal filtering F(4x4, 3x3): a tile of 4x4 outputs takes 36 products of a transformed
tile of 6x6 inputs with a transformed kernel, instead of 144 (Lavin and Gray, CVPR 2016). All tiles
and channels together are 36 products of matrices, which run at the full rate of the machine.

The transformations interpolate polynomials at 0, +-3/4, +-3/2 and infinity. The customary 0, +-1,
+-2 make for small integers, which products of matrices don't care for, and lose four times as many
digits: of 256 channels, results are 2e-6 of the largest off with these points, 1e-5 with those.
"""

import functools
from typing import cast

import torch
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from .derived import Derived
from .eager import computes_plainly

__all__ = ['WinogradConv2d', 'fits']

_OUT = 4
"""Side of a tile of outputs."""
_IN = 6
"""Side of the tile of inputs that it depends on."""
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_BAND = 128
"""Tiles that are computed together: few enough for the caches, enough for products of matrices."""
_MIN_CHANNELS = 128
"""Their harmonic mean on both sides, from which on it was faster than oneDNN's convolution: the
transformations cost in proportion to the sum of the channels, and save in proportion to their
product."""
_MIN_TILES = 12
"""The same for tiles; with fewer, reading 36 matrices instead of 9 takes longer than it saves."""
_MAX_SHARE = 2 / 3
"""The same for the share of the convolution's products: tiles may reach beyond a map's edge."""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution, computed by Winograd's method where that is faster.

    Anywhere else it is torch's convolution: with gradients, on a GPU, in other precisions than
    float32, for small maps, and where a compiler or an exporter looks on. Its weights and their
    names are those of the convolution that it is made of.

    Args:
        conv: A convolution that `fits`; its parameters are shared, not copied.
        relu: Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1,
                         bias=conv.bias is not None, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.relu = relu
        self.train(conv.training)
        self._transformed: Derived[Tensor] = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); channels last where they are in ``x``."""
        if (self.weight.dtype == torch.float32 and computes_plainly(x, self.weight)
                and _saves(x)):
            weight = self._transformed.get([self.weight], lambda: _transform(self.weight))
            return _convolve(x, weight, self.bias, relu=self.relu)
        y = super().forward(x)
        return torch.relu_(y) if self.relu else y

    def extra_repr(self) -> str:
        """What torch's convolution says, and the ReLU."""
        return super().extra_repr() + (', relu=True' if self.relu else '')


def fits(module: nn.Module) -> bool:
    """Whether a module is a convolution that `WinogradConv2d` can take the place of, and pays."""
    if type(module) not in (nn.Conv2d, wrappers.Conv2d):  # others may change their weights
        return False
    conv = cast(nn.Conv2d, module)
    if conv._forward_hooks or conv._forward_pre_hooks or 'forward' in vars(conv):
        return False
    return (conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.dilation == (1, 1)
            and conv.padding in ((1, 1), 'same') and conv.padding_mode == 'zeros'
            and conv.groups == 1
            and 1 / conv.in_channels + 1 / conv.out_channels <= 2 / _MIN_CHANNELS)


def _saves(x: Tensor) -> bool:
    """Whether there are enough tiles for products of matrices, and enough of them in the map."""
    if x.dim() != 4:
        return False
    height, width = x.shape[2:]
    tiles = _tiles(height) * _tiles(width)
    return (x.shape[0] * tiles >= _MIN_TILES
            and _IN ** 2 * tiles <= _MAX_SHARE * 9 * height * width)


def _tiles(side: int) -> int:
    return -(-side // _OUT)


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """The transformations of kernels (6, 3), of inputs (6, 6) and of products (4, 6), in float64.

    An input tile's filtering is the transpose of a product of polynomials, which evaluates both
    factors at six points and interpolates.
    """
    def evaluate(coefficients: int) -> Tensor:
        powers = torch.arange(coefficients, dtype=torch.float64)
        finite = torch.tensor(_POINTS, dtype=torch.float64)[:, None] ** powers
        infinity = (powers == coefficients - 1).double()[None]
        return torch.cat([finite, infinity])

    kernel, inputs = evaluate(3), torch.linalg.inv(evaluate(_IN)).T
    # Numbers of one size lose the least; powers of two lose nothing.
    size = torch.exp2(inputs.abs().amax(1, keepdim=True).log2().round())
    return kernel * size, inputs / size, evaluate(_OUT).T


def _transform(weight: Tensor) -> Tensor:
    """A kernel (C_out, C_in, 3, 3) as 36 matrices (C_in, C_out)."""
    kernel = _matrices()[0].to(weight.device)
    transformed = torch.einsum('ia,jb,ocab->ijco', kernel, kernel, weight.detach().double())
    return transformed.flatten(0, 1).to(weight.dtype)


@functools.cache
def _tile_transforms() -> tuple[Tensor, Tensor]:
    """What makes 36 factors of an input tile's 36 numbers, and 16 outputs of 36 products."""
    _, inputs, products = _matrices()
    return torch.kron(inputs, inputs).float(), torch.kron(products, products).float()


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """Convolve band by band, so that what is computed in between stays in the caches."""
    batch, channels, height, width = x.shape
    tall, wide = _tiles(height), _tiles(width)
    images = min(batch, max(1, _BAND // (tall * wide)))
    rows = min(tall, max(1, _BAND // wide))
    maps = x.permute(0, 2, 3, 1)
    result = x.new_empty(batch, height, width, weight.shape[2])
    # The columns of zeros at its sides are written once.
    padded = x.new_zeros(images, _OUT * rows + 2, _OUT * wide + 2, channels)
    for image in range(0, batch, images):
        for row in range(0, height, _OUT * rows):
            band = result[image:image + images, row:row + _OUT * rows]
            inputs = padded[:len(band), :_OUT * _tiles(band.shape[1]) + 2]
            _fill(inputs, maps[image:image + images], row)
            _convolve_band(inputs, weight, bias, relu, band)
    return result.permute(0, 3, 1, 2)


def _fill(padded: Tensor, maps: Tensor, row: int) -> None:
    """Copy the rows around a band that begins at ``row``; zeros where there are none."""
    first, last = max(row - 1, 0), min(row - 1 + padded.shape[1], maps.shape[1])
    above = first - (row - 1)
    padded[:, :above].zero_()
    padded[:, above:above + last - first, 1:1 + maps.shape[2]].copy_(maps[:, first:last])
    padded[:, above + last - first:].zero_()


def _convolve_band(padded: Tensor, weight: Tensor, bias: Tensor | None, relu: bool,
                   result: Tensor) -> None:
    """Convolve (N, 4 R + 2, 4 W + 2, C_in) into (N, at most 4 R, at most 4 W, C_out)."""
    images, high, broad, channels = padded.shape
    rows, wide = high // _OUT, broad // _OUT
    to_factors, to_outputs = _tile_transforms()
    # (6, 6, N, R, W, C): the first two are a place in a tile.
    tiles = padded.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(4, 5, 0, 1, 2, 3)
    factors = torch.mm(to_factors, tiles.reshape(_IN * _IN, -1))
    products = torch.bmm(factors.view(_IN * _IN, -1, channels), weight)
    outputs = torch.mm(to_outputs, products.view(_IN * _IN, -1))
    outputs = outputs.view(_OUT, _OUT, images, rows, wide, -1).permute(2, 3, 0, 4, 1, 5)
    if bias is not None:
        outputs += bias
    if relu:
        outputs.relu_()
    if result.shape[1:3] == (_OUT * rows, _OUT * wide):
        result.view(outputs.shape).copy_(outputs)
    else:
        outputs = outputs.reshape(images, _OUT * rows, _OUT * wide, -1)
        result.copy_(outputs[:, :result.shape[1], :result.shape[2]])
