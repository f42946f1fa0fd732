"""Wide 3x3 convolutions with a quarter of the multiplications, for inference on a CPU.

Winograd's minimal filtering F(4x4, 3x3): a tile of 4x4 outputs takes 36 products of a transformed
tile of 6x6 inputs with a transformed kernel, instead of 144 (Lavin and Gray, CVPR 2016). All tiles
and channels together are 36 products of matrices, which run near the full rate of the machine.

The transformations interpolate polynomials at 0, +-3/4, +-3/2 and infinity. The customary 0, +-1,
+-2 make for small integers, which products of matrices don't care for, and lose four times as many
digits: of 256 channels, results are 2e-6 of the largest off with these points, 1e-5 with those.
"""

import functools
from typing import cast

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from . import onednn
from .derived import Derived
from .onednn import PackedMatrices
from .tiling import IN, OUT, Group, Piece, count_chunks, group_tiles

__all__ = ['WinogradConv2d', 'fits']

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_CHUNK = PackedMatrices.CHUNK
_CHANNELS = 256
"""Of so many channels the products take as long as the transformations."""
_MIN_CHANNELS = 128
"""With fewer, oneDNN's own convolution is about as fast whatever the map."""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution, computed by Winograd's method where that is faster.

    Anywhere else it is torch's convolution: with gradients, on a GPU, in other precisions than
    float32, where products of matrices may lose digits (`torch.set_float32_matmul_precision`),
    without oneDNN, for small maps, and where a compiler or an exporter looks on. Its weights and
    their names are those of the convolution that it is made of; their transformed copy takes four
    times their memory. An infinity or NaN in a map spreads over the tiles that read it.

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
        self._transformed: Derived[PackedMatrices] = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W), in channels last or in the layout of torch."""
        if (self.weight.dtype == torch.float32 and onednn.usable(x, self.weight)
                and torch.get_float32_matmul_precision() == 'highest'
                and x.dim() == 4 and x.shape[1] == self.in_channels):
            plan = _plan(len(x), *x.shape[2:], _mean_channels(self.weight))
            if any(pays for _, pays in plan):
                matrices = self._transformed.get(
                    [self.weight], lambda: PackedMatrices(_transform(self.weight)))
                return _convolve(x, plan, matrices, self.weight, self.bias, relu=self.relu)
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
            and _mean_channels(conv.weight) >= _MIN_CHANNELS)


@functools.lru_cache
def _plan(batch: int, height: int, width: int, channels: float) -> tuple[tuple[Group, bool], ...]:
    """How maps are divided, and for which groups products and transformations pay."""
    def pays(group: Group) -> bool:
        cost = _whole_chunks(group) * IN ** 2 * (1 + _CHANNELS / channels)
        return cost <= 9 * sum(piece.pixels(height, width) for piece in group)

    if not height or not width:
        return ()
    return tuple((group, pays(group)) for group in group_tiles(batch, height, width, _CHUNK))


def _whole_chunks(group: Group) -> int:
    """The tiles of a group, and those that fill its last chunk."""
    return count_chunks(group, _CHUNK) * _CHUNK


def _mean_channels(weight: Tensor) -> float:
    """The harmonic mean: transformations go by the sum of channels, products by their product."""
    return 2 / (1 / weight.shape[0] + 1 / weight.shape[1])


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """The transformations of kernels (6, 3), of inputs (6, 6) and of products (4, 6), in float64.

    An input tile's filtering is the transpose of a product of polynomials, which evaluates both
    factors at six points and interpolates.
    """
    def evaluate(coefficients: int) -> Tensor:
        # On a CPU, whatever the default device is: the first call's matrices serve all others.
        powers = torch.arange(coefficients, dtype=torch.float64, device='cpu')
        finite = torch.tensor(_POINTS, dtype=torch.float64, device='cpu')[:, None] ** powers
        infinity = (powers == coefficients - 1).double()[None]
        return torch.cat([finite, infinity])

    kernel, inputs = evaluate(3), torch.linalg.inv(evaluate(IN)).T
    # Numbers of one size lose the least; powers of two lose nothing.
    size = torch.exp2(inputs.abs().amax(1, keepdim=True).log2().round())
    return kernel * size, inputs / size, evaluate(OUT).T


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


def _convolve(x: Tensor, plan: tuple[tuple[Group, bool], ...], matrices: PackedMatrices,
              weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """Convolve group by group, so that what is computed in between stays in the caches."""
    batch, channels, height, width = x.shape
    result = x.new_empty(batch, height, width, len(weight))
    chosen = [group for group, pays in plan if pays]
    reader = _Reader(x, chosen)
    # Tiles that fill up a chunk are whatever was there before.
    factors = x.new_zeros(max(map(_whole_chunks, chosen)), IN ** 2, channels)
    for group, pays in plan:
        if not pays:
            for piece in group:
                _convolve_piece(x, weight, bias, relu, piece, _outputs(result, piece))
            continue
        sizes = [piece.tiles for piece in group]
        for piece, part in zip(group, factors[:sum(sizes)].split(sizes), strict=True):
            reader.read(piece, part)
        products = matrices.matmul(factors[:_whole_chunks(group)])[:sum(sizes)]
        for piece, part in zip(group, products.split(sizes), strict=True):
            _write(part, bias, relu, piece, _outputs(result, piece))
    return result.permute(0, 3, 1, 2)


def _outputs(maps: Tensor, piece: Piece) -> Tensor:
    """The pixels of (B, H, W, C) that are a piece's outputs."""
    rows = slice(OUT * piece.rows.start, OUT * piece.rows.stop)
    return maps[piece.images.start:piece.images.stop, rows]


class _Reader:
    """Reads transformed tiles, through memory that all pieces share.

    Args:
        x: (B, C, H, W).
        groups: What of it will be read.
    """

    def __init__(self, x: Tensor, groups: list[Group]) -> None:
        self._maps = x.permute(0, 2, 3, 1)
        images, rows, wide = map(max, zip(
            *(piece.shape for group in groups for piece in group), strict=True))
        # The columns of zeros at its sides are written once.
        self._padded = x.new_zeros(images, OUT * rows + 2, OUT * wide + 2, x.shape[1])
        self._tiles = x.new_empty(images * rows * wide, IN ** 2, x.shape[1])

    def read(self, piece: Piece, factors: Tensor) -> None:
        """Write the factors (N, 36, C) of a piece of N tiles."""
        images, rows, _ = piece.shape
        padded = self._padded[:images, :OUT * rows + 2]
        _fill(padded, self._maps[piece.images.start:piece.images.stop], OUT * piece.rows.start)
        tiles = self._tiles[:piece.tiles]
        tiles.view(*piece.shape, IN, IN, -1).copy_(
            padded.unfold(1, IN, OUT).unfold(2, IN, OUT).permute(0, 1, 2, 4, 5, 3))
        torch.bmm(_tile_transforms()[0].expand(len(tiles), -1, -1), tiles, out=factors)


def _fill(padded: Tensor, maps: Tensor, row: int) -> None:
    """Copy the rows around a piece that begins at ``row``; zeros where there are none."""
    first, last = max(row - 1, 0), min(row - 1 + padded.shape[1], maps.shape[1])
    above = first - (row - 1)
    padded[:, :above].zero_()
    padded[:, above:above + last - first, 1:1 + maps.shape[2]].copy_(maps[:, first:last])
    padded[:, above + last - first:].zero_()


def _write(products: Tensor, bias: Tensor | None, relu: bool, piece: Piece, result: Tensor) -> None:
    """Make outputs (N, H, W, C_out) of a piece's products (tiles, 36, C_out)."""
    outputs = torch.bmm(_tile_transforms()[1].expand(len(products), -1, -1), products)
    if bias is not None:
        outputs += bias
    if relu:
        outputs.relu_()
    images, rows, wide = piece.shape
    outputs = outputs.view(images, rows, wide, OUT, OUT, -1).transpose(2, 3)
    if result.shape[1:3] == (OUT * rows, OUT * wide):
        result.view(outputs.shape).copy_(outputs)
    else:
        outputs = outputs.reshape(images, OUT * rows, OUT * wide, -1)
        result.copy_(outputs[:, :result.shape[1], :result.shape[2]])


def _convolve_piece(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, piece: Piece,
                    result: Tensor) -> None:
    """Let oneDNN convolve what does not fill a chunk, into (N, H, W, C_out)."""
    first, last = OUT * piece.rows.start, OUT * piece.rows.stop
    above, below = min(first, 1), min(max(x.shape[2] - last, 0), 1)  # rows of the map around it
    rows = x[piece.images.start:piece.images.stop, :, first - above:last + below]
    if not (above and below):
        rows = F.pad(rows, (0, 0, 1 - above, 1 - below))
    y = F.conv2d(rows, weight, bias, padding=(0, 1))
    result.copy_((y.relu_() if relu else y).permute(0, 2, 3, 1))
