"""Detectors that predict boxes at every place of their maps: RetinaNet, FCOS, GFL, YOLOX..."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from .boxes import (
    TopCandidates,
    build_decoder,
    build_grids,
    take,
)
from .inputs import ImageInput
from .suppression import BestBoxes, Detections

__all__ = ['DenseBoxes', 'DenseDetector', 'DetectorNetwork', 'ObjectBoxes', 'build_dense_boxes',
           'build_dense_head', 'build_suppression']

Maps = Sequence[Sequence[Tensor]]
"""Maps of classes, of boxes and perhaps of factors of the score, each for all levels."""


class DenseDetector(nn.Module):
    """A detector of one stage, from pixels to boxes.

    Args:
        inputs: The normalisation.
        network: Backbone, neck and the convolutions of the head.
        decode: What turns their maps into boxes.
    """

    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, inputs: ImageInput, network: 'DetectorNetwork',
                 decode: nn.Module) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.decode = decode

    def forward(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect objects.

        Args:
            images: Pixels in the order BGR, uint8, shape (B, H, W, 3).
            sizes: Height and width of the part of each that is image, int64, shape (B, 2).

        Returns:
            Detections: Boxes in pixels of ``images``, the best first.
        """
        return self.decode(self.network(self.inputs(images, sizes)), sizes)


class DetectorNetwork(nn.Module):
    """Backbone, neck and the convolutions of a head.

    Args:
        backbone: From images to maps.
        neck: From maps to maps; None for no neck.
        head: From maps to predictions.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, x: Tensor) -> Maps:
        """Map normalised images (B, 3, H, W) to the maps of the head, in float32."""
        features = self.backbone(x.to(next(self.parameters()).dtype))
        if self.neck is not None:
            features = self.neck(features)
        return [[level.float() for level in levels] for levels in self.head(features)]


class DenseBoxes(nn.Module):
    """The boxes that the maps of a head stand for.

    Args:
        candidates: What chooses the best predictions of a level.
        levels: For each level, what computes boxes from a map of boxes.
        suppress: What leaves the best boxes.
    """

    def __init__(self, candidates: TopCandidates, levels: Sequence[nn.Module],
                 suppress: BestBoxes) -> None:
        super().__init__()
        self.candidates = candidates
        self.levels = nn.ModuleList(levels)
        self.suppress = suppress

    def forward(self, maps: Maps, sizes: Tensor) -> Detections:
        """Compute boxes from maps, for images whose heights and widths are ``sizes`` (B, 2)."""
        boxes, scores, labels, is_present = [], [], [], []
        for index, level in enumerate(self.levels):
            class_map, box_map, *factors = (kind[index] for kind in maps)
            best = self.candidates(class_map)
            boxes.append(level(box_map, best.priors, sizes))
            scores.append(best.scores)
            for factor in factors:
                scores[-1] = scores[-1] * take(factor, best.priors, 1)[..., 0].sigmoid()
            labels.append(best.labels)
            is_present.append(best.is_present)
        return self.suppress(torch.cat(boxes, dim=1), torch.cat(scores, dim=1),
                             torch.cat(labels, dim=1), torch.cat(is_present, dim=1))


class OffsetLevel(nn.Module):
    """A level whose map holds offsets relative to its priors.

    Args:
        grid: The priors.
        decoder: What computes boxes from them.
    """

    def __init__(self, grid: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.grid = grid
        self.decoder = decoder

    def forward(self, box_map: Tensor, priors: Tensor, sizes: Tensor) -> Tensor:
        """Return the boxes (B, K, 4) of priors (B, K)."""
        return self.decoder(self.grid(priors, *box_map.shape[2:]), take(box_map, priors, 4), sizes)


class DistributionLevel(nn.Module):
    """A level whose map holds distributions over the distances to the sides of a box, as GFL's.

    Args:
        grid: The anchors, of which the centres are used.
        decoder: What computes boxes from the distances.
        values: The distances, in strides, that the distributions are over.
        stride: Distance of two places in pixels.
    """

    def __init__(self, grid: nn.Module, decoder: nn.Module, values: Tensor, stride: int) -> None:
        super().__init__()
        self.grid = grid
        self.decoder = decoder
        self.register_buffer('values', values.float())
        self.stride = stride

    def forward(self, box_map: Tensor, priors: Tensor, sizes: Tensor) -> Tensor:
        """Return the boxes (B, K, 4) of priors (B, K)."""
        values: Any = self.values
        anchors = self.grid(priors, *box_map.shape[2:])
        probabilities = take(box_map, priors, 4 * len(values)).unflatten(2, (4, -1)).softmax(3)
        distances = F.linear(probabilities, values[None])[..., 0] * self.stride
        return self.decoder((anchors[..., :2] + anchors[..., 2:]) / 2, distances, sizes)


class BoxLevel(nn.Module):
    """A level whose map holds boxes in strides.

    Args:
        stride: Pixels of a stride.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, box_map: Tensor, priors: Tensor, sizes: Tensor) -> Tensor:
        """Return the boxes (B, K, 4) of priors (B, K)."""
        return take(box_map, priors, 4) * self.stride


class ObjectBoxes(nn.Module):
    """The boxes that the maps of YOLOX's head stand for: every place is a candidate of one class.

    Args:
        grids: For each level, the points that boxes are centred around.
        strides: For each level, the distance of two points in pixels.
        min_score: Lowest score of a box.
        suppress: What leaves the best boxes.
    """

    def __init__(self, grids: nn.ModuleList, strides: Sequence[int], min_score: float,
                 suppress: BestBoxes) -> None:
        super().__init__()
        self.grids = grids
        self.strides = strides
        self.min_score = min_score
        self.suppress = suppress

    def forward(self, maps: Maps, sizes: Tensor) -> Detections:
        """Compute boxes from the maps of classes, boxes and objectness."""
        boxes, scores, labels = [], [], []
        for grid, stride, class_map, box_map, object_map in zip(
                self.grids, self.strides, *maps, strict=True):
            height, width = class_map.shape[2:]
            class_scores, level_labels = class_map.flatten(2).sigmoid().max(dim=1)
            scores.append(class_scores * object_map.flatten(1).sigmoid())
            labels.append(level_labels)
            offsets = box_map.flatten(2).transpose(1, 2)
            places = torch.arange(height * width, device=box_map.device)[None]
            centres = offsets[..., :2] * stride + grid(places, height, width)
            extents = offsets[..., 2:].exp() * stride
            boxes.append(torch.cat((centres - extents / 2, centres + extents / 2), dim=2))
        all_scores = torch.cat(scores, dim=1)
        return self.suppress(torch.cat(boxes, dim=1), all_scores, torch.cat(labels, dim=1),
                             all_scores >= self.min_score)


class AlignedHead(nn.Module):
    """The convolutions of TOOD's head.

    MMDetection's own computes anchors for a fixed number of images and samples by a deformable
    convolution, which few runtimes have; a kernel of one pixel is bilinear sampling.

    Args:
        head: MMDetection's `TOODHead`.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.grids = build_grids(head.prior_generator)
        self.is_anchor_based = head.anchor_type == 'anchor_based'
        self.decoder = build_decoder(head.bbox_coder)
        for name in ('inter_convs', 'cls_decomp', 'reg_decomp', 'tood_cls', 'tood_reg', 'scales',
                     'cls_prob_module', 'reg_offset_module'):
            self.add_module(name, getattr(head, name))

    def forward(self, features: Sequence[Tensor]) -> Maps:
        """Map features to the scores of classes, and to boxes in strides."""
        scores, boxes = [], []
        part: Any = self  # mypy takes the layers for tensors
        for x, scale, grid in zip(features, part.scales, self.grids, strict=True):
            steps = []
            for convolution in part.inter_convs:
                x = convolution(x)
                steps.append(x)
            x = torch.cat(steps, dim=1)
            mean = F.adaptive_avg_pool2d(x, (1, 1))
            class_map = part.tood_cls(part.cls_decomp(x, mean))
            scores.append((class_map.sigmoid() * part.cls_prob_module(x).sigmoid()).sqrt())
            regular = self._boxes(scale, part.tood_reg(part.reg_decomp(x, mean)), grid)
            moved = sample_beside(regular, part.reg_offset_module(x))
            is_invalid = (moved[:, :2] > moved[:, 2:]).any(dim=1, keepdim=True)
            boxes.append(torch.where(is_invalid, regular, moved))
        return scores, boxes

    def _boxes(self, scale: Any, x: Tensor, grid: Any) -> Tensor:
        """Return the box at each place in strides, shape (B, 4, H, W)."""
        height, width = x.shape[2:]
        everything = torch.arange(height * width, device=x.device)[None]
        anchors = grid(everything, height, width)
        distances = (scale(x) if self.is_anchor_based else scale(x.exp())).float()
        distances = distances.flatten(2).transpose(1, 2)
        stride = grid.stride[0]
        if self.is_anchor_based:
            boxes = self.decoder(anchors, distances, torch.full(
                (1, 2), torch.iinfo(torch.int32).max)) / stride
        else:
            points = (anchors[..., :2] + anchors[..., 2:]) / 2 / stride
            boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=2)
        return boxes.transpose(1, 2).unflatten(2, (height, width))


def sample_beside(maps: Tensor, offsets: Tensor) -> Tensor:
    """Sample each channel of a map bilinearly at the places beside its pixels.

    Args:
        maps: Shape (B, C, H, W); zero outside.
        offsets: For each channel the offset along y and along x in pixels, shape (B, 2 C, H, W).

    Returns:
        Tensor: Shape (B, C, H, W).
    """
    channels, height, width = maps.shape[1:]
    offsets = offsets.unflatten(1, (channels, 2)).flatten(0, 1)
    rows = torch.arange(height, device=maps.device)[:, None] + offsets[:, 0]
    columns = torch.arange(width, device=maps.device) + offsets[:, 1]
    places = torch.stack(((columns * 2 + 1) / width - 1, (rows * 2 + 1) / height - 1), dim=-1)
    sampled = F.grid_sample(maps.flatten(0, 1)[:, None], places.to(maps.dtype),
                            align_corners=False)
    return sampled.unflatten(0, (-1, channels))[:, :, 0]


def build_dense_head(head: Any) -> nn.Module:
    """Return the module that computes the maps of a head."""
    from mmdet.models.dense_heads import TOODHead

    return AlignedHead(head) if isinstance(head, TOODHead) else head


def build_dense_boxes(head: Any, *, any_size: bool) -> nn.Module:
    """Build what MMDetection's ``predict_by_feat`` computes for a head.

    YOLOX's returns all boxes that are left by the suppression, and the module built for it at most
    ``max_per_img``.

    Args:
        head: A dense head.
        any_size: Whether images of any size must work.

    Raises:
        ConfigError: If the head computes its boxes in a way that is not known.
    """
    from mmdet.models.dense_heads import GFLHead, TOODHead, YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    name = type(head).__name__
    config = head.test_cfg
    methods = type(head)
    if (methods.predict_by_feat is YOLOXHead.predict_by_feat
            and methods._bbox_post_process is YOLOXHead._bbox_post_process
            and methods._bbox_decode is YOLOXHead._bbox_decode):
        return ObjectBoxes(build_grids(head.prior_generator),
                           [stride[0] for stride in head.prior_generator.strides],
                           lowest_score(config, name), build_suppression(config, name))
    if (methods.predict_by_feat is not BaseDenseHead.predict_by_feat
            or methods.predict is not BaseDenseHead.predict
            or methods._bbox_post_process is not BaseDenseHead._bbox_post_process
            or getattr(head.loss_cls, 'custom_cls_channels', False)):
        raise ConfigError(f'the head {name} of this config can\'t be exported yet')
    strides = [stride[0] for stride in head.prior_generator.strides]
    activated = False
    levels: list[nn.Module]
    if methods._predict_by_feat_single is BaseDenseHead._predict_by_feat_single:
        decoder = build_decoder(head.bbox_coder)
        levels = [OffsetLevel(grid, decoder) for grid in build_grids(head.prior_generator)]
    elif methods._predict_by_feat_single is GFLHead._predict_by_feat_single:
        decoder = build_decoder(head.bbox_coder)
        levels = [DistributionLevel(grid, decoder, head.integral.project, stride)
                  for grid, stride in zip(build_grids(head.prior_generator), strides, strict=True)]
    elif methods._predict_by_feat_single is TOODHead._predict_by_feat_single:
        activated = True
        levels = [BoxLevel(stride) for stride in strides]
    else:
        raise ConfigError(f'the head {name} of this config can\'t be exported yet')
    return DenseBoxes(
        TopCandidates(head.num_classes, number_of_candidates(config, name),
                      lowest_score(config, name), sigmoid=head.use_sigmoid_cls,
                      activated=activated, any_size=any_size),
        levels, build_suppression(config, name))


def number_of_candidates(config: Any, name: str) -> int:
    """Return ``nms_pre`` of a head's ``test_cfg``.

    Raises:
        ConfigError: If all candidates are to be kept, for which a graph would need their number.
    """
    count = int(config.get('nms_pre', -1))
    if count < 1:
        raise ConfigError(f'{name} keeps all candidates (nms_pre={count}), which can\'t be '
                          'exported: set nms_pre in its test_cfg, such as 1000')
    return count


def lowest_score(config: Any, name: str) -> float:
    """Return ``score_thr`` of a head's ``test_cfg``.

    Raises:
        ConfigError: If it is negative.
    """
    score = float(config.get('score_thr', 0))
    if score < 0:
        raise ConfigError(f'score_thr={score} of {name} can\'t be exported: it must not be '
                          'negative')
    return score


def build_suppression(config: Any, name: str) -> BestBoxes:
    """Build the suppression of a ``test_cfg``.

    Raises:
        ConfigError: If it is another one than the usual.
    """
    nms = dict(config.get('nms') or {})
    kind = nms.pop('type', 'nms')
    # Above this many boxes MMDetection suppresses class by class, with the same result.
    nms.pop('split_thr', None)
    threshold, class_agnostic = nms.pop('iou_threshold', None), nms.pop('class_agnostic', False)
    if kind != 'nms' or threshold is None or nms:
        raise ConfigError(f'the suppression {dict(config.get("nms") or {})} of {name} can\'t be '
                          'exported yet: only dict(type=\'nms\', iou_threshold=...) can')
    count = int(config.get('max_per_img', -1))
    if count < 1:
        raise ConfigError(f'{name} returns any number of boxes (max_per_img={count}), which can\'t '
                          'be exported: set max_per_img in its test_cfg, such as 100')
    return BestBoxes(threshold, count, min_size=config.get('min_bbox_size', -1),
                     class_agnostic=class_agnostic)
