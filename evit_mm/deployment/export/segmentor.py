"""Segmentors with a decode head: UperNet, Semantic FPN, DeepLabV3+, SegFormer's head..."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from .inputs import ImageInput

__all__ = ['Segmentor', 'SegmentorNetwork', 'build_segmentor', 'check_segmentor']


class Segmentor(nn.Module):
    """A segmentor, from pixels to the class of each pixel.

    Args:
        inputs: The normalisation.
        network: Backbone, neck and decode head.
        threshold: For a single class, the probability from which a pixel belongs to it.
        align_corners: How maps are resized, as in `torch.nn.functional.interpolate`.
    """

    outputs = ('label_map',)

    def __init__(self, inputs: ImageInput, network: 'SegmentorNetwork', *,
                 threshold: float | None, align_corners: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.threshold = threshold
        self.align_corners = align_corners

    def forward(self, images: Tensor, output_size: Tensor | None = None) -> tuple[Tensor]:
        """Segment images.

        Args:
            images: Pixels in the order BGR, uint8, shape (B, H, W, 3).
            output_size: Height and width of the label maps, int64, shape (2,); by default those
                of the images.

        Returns:
            tuple: The label maps, int64, shape (B, height, width).
        """
        x = self.inputs(images)
        logits = self._resize(self.network(x), tuple(x.shape[2:]))
        if output_size is not None:
            height, width = output_size.tolist()
            torch._check(height >= 2)
            torch._check(width >= 2)
            logits = self._resize(logits, (height, width))
        if self.threshold is not None:
            return ((logits[:, 0].sigmoid() > self.threshold).long(),)
        return (logits.argmax(dim=1),)

    def _resize(self, maps: Tensor, size: Any) -> Tensor:
        return F.interpolate(maps, size, mode='bilinear', align_corners=self.align_corners)


class SegmentorNetwork(nn.Module):
    """Backbone, neck and decode head.

    Args:
        backbone: From images to maps.
        neck: From maps to maps; None for no neck.
        head: From maps to a map of classes.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to the logits of classes (B, classes, h, w)."""
        features = self.backbone(x.to(next(self.parameters()).dtype))
        if self.neck is not None:
            features = self.neck(features)
        return self.head(features).float()


def check_segmentor(model: Any) -> None:
    """Check that a segmentor computes its label map as `Segmentor` does.

    Raises:
        ConfigError: If a part of it computes in a way that is not known.
    """
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    head = model.decode_head
    if type(model).encode_decode is not EncoderDecoder.encode_decode:
        raise ConfigError(f'the segmentor {type(model).__name__} of this config can\'t be exported '
                          'yet')
    if (not isinstance(head, BaseDecodeHead) or type(head).predict is not BaseDecodeHead.predict
            or type(head).predict_by_feat is not BaseDecodeHead.predict_by_feat):
        raise ConfigError(f'the head {type(head).__name__} of this config can\'t be exported yet')
    if model.test_cfg.get('mode', 'whole') != 'whole':
        raise ConfigError(f'test_cfg.mode={model.test_cfg["mode"]!r} of this config can\'t be '
                          'exported, because the number of windows depends on the image: pass '
                          '--cfg-options model.test_cfg.mode=whole')


def build_segmentor(model: Any, inputs: ImageInput) -> Segmentor:
    """Build the exported form of MMSegmentation's encoder and decoder.

    Args:
        model: The segmentor, which `check_segmentor` has accepted.
        inputs: The normalisation.
    """
    head = model.decode_head
    threshold = head.threshold if model.out_channels == 1 else None
    return Segmentor(inputs, SegmentorNetwork(model.backbone, getattr(model, 'neck', None), head),
                     threshold=threshold, align_corners=head.align_corners)
