"""Wide 3x3 convolutions with a quarter of the multiplications, for inference on a CPU.

Winograd's minimal filtering F(4x4, 3x3): a tile of 4x4 outputs takes 36 products of a transformed
tile of 6x6 inputs with a transformed kernel, instead of 144 (Lavin and Gray, CVPR 2016). All tiles
and channels together are 36 products of matrices, which run near the full rate of the machine.

The transformations interpolate polynomials at 0, +-3/4, +-3/2 and infinity. The customary 0, +-1,
+-2 make for small integers, which products of matrices don't care for, and lose four times as many
digits: of 256 channels, results are 3e-6 of the largest off with these points, 1e-5 with those.
"""

import functools
from typing import cast

import torch
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from . import onednn
from .derived import Derived
from .onednn import PackedMatrices
from .tiling import IN, OUT, Chunk, Segment, count_tiles, cut_tiles

__all__ = ['WinogradConv2d', 'fits']

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_CHANNELS = 128
"""Of so many channels the products take as long as the transformations."""
_SEGMENT = 1e7
"""So many multiplications take as long as the calls that transform one segment."""
_MIN_CHANNELS = 128
"""With fewer, oneDNN's own convolution is about as fast whatever the map."""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution, computed by Winograd's method where that is faster.

    Anywhere else it is torch's convolution: with gradients, on a GPU, in other precisions than
    float32, where products of matrices may lose digits (`torch.set_float32_matmul_precision`),
    without oneDNN or MKL, for small maps, and where a compiler or an exporter looks on. Its weights
    and their names are those of the convolution that it is made of; their transformed copy takes
    four times their memory. An infinity or NaN in a map spreads over the tiles that read it.

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
                and torch.backends.mkl.is_available()
                and torch.get_float32_matmul_precision() == 'highest'
                and x.dim() == 4 and x.shape[1] == self.in_channels):
            sizes = PackedMatrices.usual_rows(IN ** 2, self.out_channels, self.in_channels)
            chunks = cut_tiles(len(x), *x.shape[2:], sizes)
            if x.numel() and _pays(chunks, x[:, 0].numel(), _mean_channels(self.weight)):
                matrices = self._transformed.get(
                    [self.weight], lambda: PackedMatrices(_transform(self.weight)))
                return _convolve(x, chunks, matrices, self.bias, relu=self.relu)
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


def _pays(chunks: tuple[Chunk, ...], pixels: int, channels: float) -> bool:
    """Whether products and transformations take less time than torch's convolution."""
    products = sum(chunk.size for chunk in chunks) * IN ** 2 * channels ** 2
    calls = sum(len(chunk.segments) for chunk in chunks) * _SEGMENT
    return products * (1 + _CHANNELS / channels) + calls <= 9 * pixels * channels ** 2


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
    # Divided by the leading ones, the polynomials' coefficients are short numbers in base two.
    leading = torch.cat([inputs[:-1, -2], inputs[-1:, -1]])[:, None]
    # Numbers of one size lose the least; powers of two lose nothing.
    size = leading * torch.exp2((inputs / leading).abs().amax(1, keepdim=True).log2().round())
    return kernel * size, (inputs / size * 2 ** 20).round() / 2 ** 20, evaluate(OUT).T


def _transform(weight: Tensor) -> Tensor:
    """A kernel (C_out, C_in, 3, 3) as 36 matrices (C_out, C_in), column by column."""
    kernel = _matrices()[0]
    matrix = torch.einsum('ia,jb->jiab', kernel, kernel).reshape(IN ** 2, -1)
    matrices = weight.new_empty(len(matrix), *weight.shape[:2])
    # Some outputs at a time: numbers of twice the size would leave the caches.
    for part, found in zip(weight.detach().split(32), matrices.split(32, 1), strict=True):
        rows = part.permute(0, 2, 3, 1).flatten(1, 2).double()
        found.copy_((matrix @ rows).transpose(0, 1))
    return matrices


@functools.cache
def _map_transforms() -> tuple[Tensor, Tensor]:
    """What makes 6 factors of 6 numbers in a row or column, and 16 outputs of 36 products."""
    _, inputs, products = _matrices()
    return inputs.float(), torch.kron(products, products).float()


def _convolve(x: Tensor, chunks: tuple[Chunk, ...], matrices: PackedMatrices, bias: Tensor | None,
              *, relu: bool) -> Tensor:
    """Convolve chunk by chunk, so that what is computed in between stays in the caches."""
    maps = x.permute(0, 2, 3, 1)
    if maps.stride(-1) != 1:
        maps = maps.contiguous()
    width, channels = maps.shape[2:]
    outputs = x.new_empty(*maps.shape[:-1], matrices.columns)
    factors = x.new_empty(max(chunk.size for chunk in chunks), IN ** 2, channels)
    # The columns of a row of tiles, of which those outside of the map stay zero.
    columns = x.new_empty(OUT * count_tiles(*maps.shape[1:3])[1] + 2, IN, channels)
    columns[:1].zero_()
    columns[width + 1:].zero_()
    for size, segments in chunks:
        filled = 0
        for segment in segments:
            _read(maps, segment, columns, factors, filled)
            filled += segment.tiles
        if filled < size:
            factors[filled:size].zero_()
        products = matrices.matmul(factors[:size])[:filled]
        tiles = torch.bmm(_map_transforms()[1].expand(filled, -1, -1), products)
        for segment in segments:
            _write(tiles[:segment.tiles], bias, segment, outputs)
            tiles = tiles[segment.tiles:]
    if relu:
        outputs.relu_()
    return outputs.permute(0, 3, 1, 2)


def _read(maps: Tensor, segment: Segment, columns: Tensor, factors: Tensor, start: int) -> None:
    """Make the factors of a segment's tiles: of whole columns first, which neighbours share.

    Args:
        maps: (B, H, W, C), of which C is contiguous.
        segment: Which tiles.
        columns: (4 T + 2, 6, C), for the T tiles of a row and the columns beside them.
        factors: (N, 36, C), where those of the segment go.
        start: Its first tile among the N.
    """
    image, row, first, last = segment
    matrix = _map_transforms()[0]
    top, left = OUT * row - 1, OUT * first - 1
    # Rows outside of the map are left out, as zeros would be.
    rows = range(max(top, 0), min(top + IN, maps.shape[1]))
    inside = range(max(left, 0), min(OUT * last + 1, maps.shape[2]))
    torch.bmm(matrix[:, rows.start - top:rows.stop - top].expand(len(inside), -1, -1),
              maps[image, rows.start:rows.stop, inside.start:inside.stop].transpose(0, 1),
              out=columns[inside.start + 1:inside.stop + 1])
    # Tiles share two columns with the next one: no view but this one says so in one step.
    column = columns.stride(0)
    tiles = columns.as_strided((last - first, IN, column), (OUT * column, column, 1),
                               OUT * first * column)
    torch.bmm(matrix.expand(len(tiles), -1, -1), tiles,
              out=factors[start:start + len(tiles)].view(tiles.shape))


def _write(tiles: Tensor, bias: Tensor | None, segment: Segment, outputs: Tensor) -> None:
    """Put a segment's tiles (N, 16, C), column by column, where they belong in (B, H, W, C)."""
    image, row, first, last = segment
    target = outputs[image, OUT * row:OUT * (row + 1), OUT * first:OUT * last]
    height, width, channels = target.shape
    rows = tiles.view(-1, OUT, OUT, channels).permute(2, 0, 1, 3)[:height]
    whole, rest = divmod(width, OUT)
    if rest:
        _add(rows[:, -1, :rest], bias, target[:, -rest:])
        rows, target = rows[:, :whole], target[:, :-rest]
    if whole:
        _add(rows, bias, target.view(height, whole, OUT, channels))


def _add(part: Tensor, bias: Tensor | None, place: Tensor) -> None:
    if bias is None:
        place.copy_(part)
    else:
        torch.add(part, bias, out=place)
