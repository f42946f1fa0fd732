"""Detectors that look at proposals again: Faster R-CNN, Mask R-CNN, and their cascades."""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision  # noqa: F401  (registers the operators in torch.ops.torchvision)
from torch import Tensor, nn

from ...errors import ConfigError
from .boxes import TopCandidates, build_decoder, build_grids
from .dense import OffsetLevel, build_suppression, lowest_score, number_of_candidates
from .inputs import ImageInput
from .suppression import BestBoxes, Detections

__all__ = ['TwoStageDetector', 'build_two_stage']


class TwoStageDetector(nn.Module):
    """A detector of two stages, from pixels to boxes and masks.

    Args:
        inputs: The normalisation.
        network: Backbone and neck.
        propose: The first stage.
        detect: The second stage.
        masks: What predicts masks, if the detector does.
    """

    def __init__(self, inputs: ImageInput, network: 'FeatureNetwork', propose: 'Proposals',
                 detect: 'RegionBoxes', masks: 'RegionMasks | None') -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.propose = propose
        self.detect = detect
        self.masks = masks

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ('boxes', 'scores', 'labels', 'masks')[:4 if self.masks is not None else 3]

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: Pixels in the order BGR, uint8, shape (B, H, W, 3).
            sizes: Height and width of the part of each that is image, int64, shape (B, 2).

        Returns:
            tuple: Boxes (B, K, 4) in pixels of ``images``, scores (B, K) and labels (B, K), and
            perhaps the probabilities of a mask inside each box, (B, K, 28, 28).
        """
        features = self.network(self.inputs(images, sizes))
        proposals, is_proposed = self.propose(features, sizes)
        boxes, scores, labels = self.detect(features, proposals, is_proposed, sizes)
        if self.masks is None:
            return boxes, scores, labels
        return boxes, scores, labels, self.masks(features, boxes, labels)


class FeatureNetwork(nn.Module):
    """Backbone and neck.

    Args:
        backbone: From images to maps.
        neck: From maps to maps; None for no neck.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        """Map normalised images (B, 3, H, W) to features."""
        features = self.backbone(x.to(next(self.parameters()).dtype))
        return self.neck(features) if self.neck is not None else features


class Proposals(nn.Module):
    """Boxes that may hold an object of any class: a region proposal network.

    Args:
        head: MMDetection's `RPNHead`.
        any_size: Whether images of any size must work.
    """

    def __init__(self, head: Any, *, any_size: bool) -> None:
        super().__init__()
        name, config = type(head).__name__, head.test_cfg
        self.head = head
        self.candidates = TopCandidates(
            head.num_classes, number_of_candidates(config, name), -1, sigmoid=head.use_sigmoid_cls,
            any_size=any_size)
        decoder = build_decoder(head.bbox_coder)
        self.levels = nn.ModuleList(OffsetLevel(grid, decoder)
                                    for grid in build_grids(head.prior_generator))
        self.suppress = build_suppression(config, name)

    def forward(self, features: Sequence[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Propose boxes.

        Args:
            features: Maps of all levels.
            sizes: Height and width of each image, shape (B, 2).

        Returns:
            tuple: Corners (B, K, 4), and which of the K are proposals (B, K).
        """
        boxes, scores, numbers, is_present = [], [], [], []
        maps = self.head(features)
        for number, (level, class_map, box_map) in enumerate(zip(self.levels, *maps, strict=True)):
            best = self.candidates(class_map.float())
            boxes.append(level(box_map.float(), best.priors, sizes))
            scores.append(best.scores)
            numbers.append(torch.full_like(best.labels, number))  # each level is suppressed apart
            is_present.append(best.is_present)
        chosen, _, labels = self.suppress(torch.cat(boxes, dim=1), torch.cat(scores, dim=1),
                                          torch.cat(numbers, dim=1), torch.cat(is_present, dim=1))
        return chosen, labels >= 0


class RegionFeatures(nn.Module):
    """Features of regions, each from the level that fits its size.

    Every level pools all regions, but those of other levels only as a point, which takes almost
    no time: so the graph needs no list of unknown length for each level.

    Args:
        extractor: MMDetection's `SingleRoIExtractor`.
    """

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.layers = [(tuple(layer.output_size), layer.spatial_scale, layer.sampling_ratio,
                        layer.aligned) for layer in extractor.roi_layers]
        self.finest_scale = extractor.finest_scale

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool the features of regions.

        Args:
            features: Maps of all levels.
            boxes: Corners in pixels of the image, shape (B, K, 4).

        Returns:
            Tensor: Shape (B * K, C, height, width).
        """
        batch, count = boxes.shape[:2]
        images = torch.arange(batch, device=boxes.device)[:, None].expand(-1, count)
        regions = torch.cat((images.to(boxes.dtype)[..., None], boxes), dim=2).flatten(0, 1)
        extents = regions[:, 3:] - regions[:, 1:3]
        size = torch.sqrt(extents[:, 0] * extents[:, 1])
        level_of = torch.floor(torch.log2(size / self.finest_scale + 1e-6)).clamp(
            0, len(self.layers) - 1)
        pooled = None
        for number, (level, layer) in enumerate(zip(features, self.layers, strict=False)):
            (height, width), scale, samples, aligned = layer
            is_here = (level_of == number)[:, None]
            here = torch.where(is_here, regions[:, 1:], 0.0)
            here = torch.cat((regions[:, :1], here), dim=1).to(level.dtype)
            values = torch.ops.torchvision.roi_align(level, here, scale, height, width, samples,
                                                     aligned)
            pooled = values if pooled is None else torch.where(is_here[..., None, None], values,
                                                               pooled)
        assert pooled is not None
        return pooled


class RegionBoxes(nn.Module):
    """Boxes and classes of regions, in one step or a cascade of several.

    Args:
        extractors: What pools the features of each step.
        heads: MMDetection's box head of each step.
        min_score: Boxes with a lower score are left out.
        suppress: What leaves the best boxes.
    """

    def __init__(self, extractors: Sequence[RegionFeatures], heads: Sequence[Any],
                 min_score: float, suppress: BestBoxes) -> None:
        super().__init__()
        self.extractors = nn.ModuleList(extractors)
        self.heads = nn.ModuleList(heads)
        self.decoders = nn.ModuleList(build_decoder(head.bbox_coder) for head in heads)
        self.num_classes = [1 if head.reg_class_agnostic else head.num_classes for head in heads]
        self.min_score = min_score
        self.suppress = suppress

    def forward(self, features: Sequence[Tensor], boxes: Tensor, is_present: Tensor,
                sizes: Tensor) -> Detections:
        """Detect objects in regions.

        Args:
            features: Maps of all levels.
            boxes: Corners of the regions, shape (B, R, 4).
            is_present: Which of them are regions, shape (B, R).
            sizes: Height and width of each image, shape (B, 2).

        Returns:
            Detections: The best boxes of each image.
        """
        count = boxes.shape[1]
        all_scores = []
        for step, (extract, head) in enumerate(zip(self.extractors, self.heads, strict=True)):
            class_scores, offsets = head(extract(features, boxes))
            all_scores.append(class_scores.float().unflatten(0, (-1, count)))
            offsets = offsets.float().unflatten(0, (-1, count)).unflatten(
                2, (self.num_classes[step], 4))  # (B, R, classes, 4)
            if step < len(self.heads) - 1:
                if self.num_classes[step] > 1:
                    best = all_scores[-1][..., :-1].argmax(dim=2)
                    offsets = offsets.gather(2, best[..., None, None].expand(-1, -1, 1, 4))
                boxes = self.decoders[step](boxes, offsets[:, :, 0], sizes)
        scores = sum(all_scores[1:], start=all_scores[0]) / float(len(all_scores))
        scores = scores.softmax(dim=2)[..., :-1]
        num_classes = scores.shape[2]
        repeated = boxes[:, :, None].expand(-1, -1, self.num_classes[-1], -1).flatten(1, 2)
        decoded = self.decoders[-1](repeated, offsets.flatten(1, 2), sizes)
        if self.num_classes[-1] == 1:
            decoded = decoded[:, :, None].expand(-1, -1, num_classes, -1).flatten(1, 2)
        is_present = is_present[..., None] & (scores > self.min_score)
        labels = torch.arange(num_classes, device=boxes.device).expand(scores.shape)
        return self.suppress(decoded, scores.flatten(1), labels.flatten(1), is_present.flatten(1))


class RegionMasks(nn.Module):
    """The masks of detections, the average over the heads of a cascade.

    Args:
        extractors: What pools the features of each head.
        heads: MMDetection's mask heads.
    """

    def __init__(self, extractors: Sequence[RegionFeatures], heads: Sequence[Any]) -> None:
        super().__init__()
        self.extractors = nn.ModuleList(extractors)
        self.heads = nn.ModuleList(heads)
        self.class_agnostic = [head.class_agnostic for head in heads]

    def forward(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Predict masks.

        Args:
            features: Maps of all levels.
            boxes: Corners of the detections, shape (B, K, 4).
            labels: Their classes, shape (B, K).

        Returns:
            Tensor: Probabilities inside each box, shape (B, K, h, w).
        """
        count = boxes.shape[1]
        classes = labels.clamp(min=0).flatten()[:, None, None, None]
        masks = []
        for extract, head, agnostic in zip(self.extractors, self.heads, self.class_agnostic,
                                           strict=True):
            mask = head(extract(features, boxes)).float()  # (B * K, classes, h, w)
            if not agnostic:
                mask = mask.gather(1, classes.expand(-1, 1, *mask.shape[2:]))
            masks.append(mask[:, 0].sigmoid())
        average = torch.stack(masks).mean(dim=0) if len(masks) > 1 else masks[0]
        return average.unflatten(0, (-1, count))


def build_two_stage(model: Any, inputs: ImageInput, *, any_size: bool) -> TwoStageDetector:
    """Build the exported form of MMDetection's Faster R-CNN, Mask R-CNN or Cascade R-CNN.

    Args:
        model: The detector.
        inputs: The normalisation.
        any_size: Whether images of any size must work.

    Raises:
        ConfigError: If a part of it computes in a way that is not known.
    """
    from mmdet.models.dense_heads import RPNHead

    rpn, roi = model.rpn_head, model.roi_head
    if not isinstance(rpn, RPNHead) or (
            type(rpn)._predict_by_feat_single is not RPNHead._predict_by_feat_single
            or type(rpn)._bbox_post_process is not RPNHead._bbox_post_process
            or type(rpn).predict_by_feat is not RPNHead.predict_by_feat):
        raise _unknown('head', rpn)
    _check_roi_head(roi)
    name = type(roi).__name__
    extractors = [RegionFeatures(each) for each in _stages(roi.bbox_roi_extractor)]
    detect = RegionBoxes(extractors, _stages(roi.bbox_head), lowest_score(roi.test_cfg, name),
                         build_suppression(roi.test_cfg, name))
    masks = None
    if roi.with_mask:
        masks = RegionMasks([RegionFeatures(each) for each in _stages(roi.mask_roi_extractor)],
                            _stages(roi.mask_head))
    return TwoStageDetector(inputs, FeatureNetwork(model.backbone, getattr(model, 'neck', None)),
                            Proposals(rpn, any_size=any_size), detect, masks)


def _check_roi_head(roi: Any) -> None:
    """Check that all parts of a second stage are known.

    Raises:
        ConfigError: If one is not.
    """
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    if type(roi) not in (StandardRoIHead, CascadeRoIHead) or roi.with_shared_head:
        raise _unknown('head', roi)
    for head in _stages(roi.bbox_head):
        methods = type(head)
        if (methods._predict_by_feat_single is not BBoxHead._predict_by_feat_single
                or methods.predict_by_feat is not BBoxHead.predict_by_feat
                or methods.regress_by_class is not BBoxHead.regress_by_class
                or head.custom_cls_channels or not head.with_reg or not head.with_cls):
            raise _unknown('head', head)
    masks = _stages(roi.mask_head) if roi.with_mask else []
    for head in masks:
        if (type(head)._predict_by_feat_single is not FCNMaskHead._predict_by_feat_single
                or type(head).predict_by_feat is not FCNMaskHead.predict_by_feat):
            raise _unknown('head', head)
    extractors = [*_stages(roi.bbox_roi_extractor),
                  *(_stages(roi.mask_roi_extractor) if masks else [])]
    for extractor in extractors:
        if type(extractor) is not SingleRoIExtractor or any(
                type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg'
                for layer in extractor.roi_layers):
            raise _unknown('RoI extractor', extractor)


def _stages(parts: Any) -> list[Any]:
    """Return the modules of all steps of a cascade, or the only one."""
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]


def _unknown(kind: str, part: Any) -> ConfigError:
    return ConfigError(f'the {kind} {type(part).__name__} of this config can\'t be exported yet')
