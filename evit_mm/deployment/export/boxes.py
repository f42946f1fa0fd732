"""From the maps of a detection head to boxes: candidates, priors, and the decoding of offsets."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError

__all__ = ['AnchorGrid', 'Candidates', 'DeltaDecoder', 'DistanceDecoder', 'PointGrid',
           'TopCandidates', 'build_decoder', 'build_grids', 'take']


class Candidates(NamedTuple):
    """The best predictions of a level of the pyramid, K of each image."""

    scores: Tensor
    """Scores of their classes, shape (B, K)."""
    labels: Tensor
    """Classes, int64, shape (B, K)."""
    priors: Tensor
    """Priors that predict them, int64, shape (B, K): ``number of the prior at its place * H * W +
    row * W + column``."""
    is_present: Tensor
    """Which of them are above the lowest score, bool, shape (B, K)."""


class TopCandidates(nn.Module):
    """The best pairs of prior and class of a level.

    The best priors are chosen by their best class first. No pair among the best K can be lost by
    that: a prior that is left out has K better ones before it. So only K priors are sorted by
    class, and the map is neither transposed nor activated as a whole.

    Args:
        num_classes: Number of classes.
        count: Number of candidates K, ``nms_pre`` in a config.
        min_score: Only candidates with a higher score are present.
        sigmoid: Whether scores are the sigmoid of the maps; otherwise their softmax over the
            classes and the background, which comes last.
        activated: Whether the maps hold scores already.
        any_size: Whether maps may have fewer priors than K.
    """

    def __init__(self, num_classes: int, count: int, min_score: float, *, sigmoid: bool = True,
                 activated: bool = False, any_size: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.count = count
        self.min_score = float(min_score)
        self.is_sigmoid = sigmoid and not activated
        self.is_softmax = not sigmoid
        self.any_size = any_size

    def forward(self, maps: Tensor) -> Candidates:
        """Choose candidates from maps of shape (B, priors * channels, H, W)."""
        channels = self.num_classes + self.is_softmax
        maps = maps.flatten(2)  # (B, priors * channels, places)
        places = maps.shape[2]
        maps = maps.unflatten(1, (-1, channels))
        if self.is_softmax:
            maps = maps.softmax(dim=2)[:, :, :-1]
        best = maps.amax(dim=2).flatten(1)  # (B, priors * places)
        num_priors = best.shape[1]
        if self.any_size:
            best = torch.cat((best, best.new_full((1, self.count), -math.inf).expand(
                best.shape[0], -1)), dim=1)
            best, priors = best.topk(self.count)
            priors = priors.clamp(max=num_priors - 1)
        else:
            best, priors = best.topk(min(self.count, num_priors))
        scores = take(maps.flatten(1, 2), priors, self.num_classes, places)  # (B, K, classes)
        # A place of the list beyond the last prior repeats it.
        scores = torch.where(best[..., None] > -math.inf, scores, -math.inf).flatten(1)
        scores, order = scores.topk(min(self.count, scores.shape[1]))
        is_present = scores > -math.inf
        if self.is_sigmoid:
            scores = scores.sigmoid()
        chosen, labels = split_index(order, self.num_classes)
        return Candidates(scores, labels, priors.gather(1, chosen),
                          is_present & (scores > self.min_score))


def take(maps: Tensor, priors: Tensor, channels: int, places: Any = None) -> Tensor:
    """Return what maps predict for some priors.

    Args:
        maps: Shape (B, priors * channels, H, W), or (B, priors * channels, places).
        priors: As in `Candidates`, shape (B, K).
        channels: Number of values for each prior.
        places: H * W, if the maps have the second shape.

    Returns:
        Tensor: Shape (B, K, channels).
    """
    if places is None:
        places = maps.shape[2] * maps.shape[3]
    numbers, position = split_index(priors, places)
    index = torch.arange(channels, device=maps.device) + (numbers * channels)[..., None]
    index = index * places + position[..., None]
    return maps.flatten(1).gather(1, index.flatten(1)).unflatten(1, (-1, channels))


def split_index(index: Tensor, size: Any) -> tuple[Tensor, Tensor]:
    """Return quotient and remainder of a division by a size, which may be unknown yet."""
    quotient = index // size
    return quotient, index - quotient * size  # ONNX's exporter takes no remainder by such a size


class AnchorGrid(nn.Module):
    """The anchors of a level: some boxes, moved to each place.

    Args:
        base_anchors: Corners at the first place, shape (A, 4).
        stride: Distance of two places in pixels, along x and y.
    """

    def __init__(self, base_anchors: Tensor, stride: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer('base_anchors', base_anchors.float())
        self.stride = stride

    def forward(self, priors: Tensor, height: Any, width: Any) -> Tensor:
        """Return the anchors (B, K, 4) of priors (B, K) of a map of this size."""
        numbers, position = split_index(priors, height * width)
        rows, columns = split_index(position, width)
        base: Any = self.base_anchors
        shifts = torch.stack((columns.to(base.dtype) * self.stride[0],
                              rows.to(base.dtype) * self.stride[1]), dim=-1)
        return base[numbers] + shifts.repeat(1, 1, 2)


class PointGrid(nn.Module):
    """The points of a level, one at each place.

    Args:
        offset: Place of the first point, as a part of the stride.
        stride: Distance of two places in pixels, along x and y.
    """

    def __init__(self, offset: float, stride: tuple[int, int]) -> None:
        super().__init__()
        self.offset = offset
        self.stride = stride

    def forward(self, priors: Tensor, height: Any, width: Any) -> Tensor:
        """Return the points (B, K, 2) of priors (B, K) of a map of this size."""
        rows, columns = split_index(priors, width)
        return torch.stack(((columns.float() + self.offset) * self.stride[0],
                            (rows.float() + self.offset) * self.stride[1]), dim=-1)


class DeltaDecoder(nn.Module):
    """Boxes from offsets relative to anchors: the centre moved by parts of the anchor's size, the
    size multiplied by an exponential.

    Args:
        means: Mean of the four offsets.
        stds: Their standard deviation.
        clip: Whether boxes end at the border of the image.
        max_center_offset: Largest offset of the centre in pixels; None for any.
    """

    max_log_ratio = abs(math.log(16 / 1000))

    def __init__(self, means: Any, stds: Any, *, clip: bool,
                 max_center_offset: float | None = None) -> None:
        super().__init__()
        self.register_buffer('means', torch.tensor(tuple(means)).float())
        self.register_buffer('stds', torch.tensor(tuple(stds)).float())
        self.clip = clip
        self.max_center_offset = max_center_offset

    def forward(self, anchors: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
        """Return boxes.

        Args:
            anchors: Corners, shape (B, K, 4).
            offsets: Shape (B, K, 4).
            sizes: Height and width of each image, shape (B, 2).

        Returns:
            Tensor: Corners, shape (B, K, 4).
        """
        stds: Any = self.stds
        offsets = offsets * stds + self.means
        center = (anchors[..., :2] + anchors[..., 2:]) * 0.5
        extent = anchors[..., 2:] - anchors[..., :2]
        moved = extent * offsets[..., :2]
        growth = offsets[..., 2:]
        if self.max_center_offset is not None:
            moved = moved.clamp(-self.max_center_offset, self.max_center_offset)
            growth = growth.clamp(max=self.max_log_ratio)
        else:
            growth = growth.clamp(-self.max_log_ratio, self.max_log_ratio)
        center, extent = center + moved, extent * growth.exp()
        boxes = torch.cat((center - extent * 0.5, center + extent * 0.5), dim=-1)
        return clip_boxes(boxes, sizes) if self.clip else boxes


class DistanceDecoder(nn.Module):
    """Boxes from the distances of a point to their sides.

    Args:
        clip: Whether boxes end at the border of the image.
    """

    def __init__(self, *, clip: bool) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, points: Tensor, distances: Tensor, sizes: Tensor) -> Tensor:
        """Return boxes.

        Args:
            points: (x, y), shape (B, K, 2).
            distances: To the left, the upper, the right and the lower side, shape (B, K, 4).
            sizes: Height and width of each image, shape (B, 2).

        Returns:
            Tensor: Corners, shape (B, K, 4).
        """
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)
        return clip_boxes(boxes, sizes) if self.clip else boxes


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Move corners (B, K, 4) outside images of sizes (B, 2), height and width, to their border."""
    ends = sizes.flip(1).repeat(1, 2).to(boxes.dtype)  # width, height, width, height
    return torch.minimum(boxes.clamp(min=0), ends[:, None])


def build_grids(generator: Any) -> nn.ModuleList:
    """Build the priors of each level of MMDetection's prior generator.

    Raises:
        ConfigError: If it is another one than those of this module.
    """
    from mmdet.models.task_modules import AnchorGenerator, MlvlPointGenerator

    if type(generator) is AnchorGenerator:
        return nn.ModuleList(AnchorGrid(base, stride) for base, stride in zip(
            generator.base_anchors, generator.strides, strict=True))
    if type(generator) is MlvlPointGenerator:
        return nn.ModuleList(PointGrid(generator.offset, stride) for stride in generator.strides)
    raise ConfigError(f'the priors {type(generator).__name__} of this config can\'t be exported '
                      'yet')


def build_decoder(coder: Any) -> nn.Module:
    """Build the form of MMDetection's box coder that is exported.

    Raises:
        ConfigError: If it is another one than those of this module.
    """
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder, DistancePointBBoxCoder

    if type(coder) is DeltaXYWHBBoxCoder:
        return DeltaDecoder(coder.means, coder.stds, clip=bool(coder.clip_border),
                            max_center_offset=coder.ctr_clamp if coder.add_ctr_clamp else None)
    if type(coder) is DistancePointBBoxCoder:
        return DistanceDecoder(clip=coder.clip_border is not False)
    raise ConfigError(f'the box coder {type(coder).__name__} of this config can\'t be exported yet')
