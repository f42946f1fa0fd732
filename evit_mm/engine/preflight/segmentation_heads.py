"""Heads of segmentors: their losses can fall, and they ignore the same label."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ...errors import ConfigError

__all__ = ['check_segmentation_heads']


def check_segmentation_heads(model: nn.Module) -> None:
    """Check the heads of a segmentor that predict a class for each pixel.

    Args:
        model: Any model; only MMSegmentation's heads of `BaseDecodeHead`'s kind are checked.

    Raises:
        ConfigError: If no loss of a head has a gradient, whatever the head predicts. That is so
            for a softmax over one channel, which is always 1.
    """
    heads = dict(_heads(model))
    for path, head in heads.items():
        if head.out_channels == 1 and not _can_learn(head):
            raise ConfigError(
                f'model.{path} has one output channel (num_classes={head.num_classes}) and a '
                'softmax loss, which is 0 for whatever it predicts, so that nothing is learnt: '
                'name the background as a second class and set num_classes=2, or set '
                'num_classes=2, out_channels=1, threshold=0.5 and loss_decode=dict(type='
                '\'CrossEntropyLoss\', use_sigmoid=True) with background 0 and object 1')
    ignored = {path: head.ignore_index for path, head in heads.items()}
    if len(set(ignored.values())) > 1:
        print_log('the heads ignore different labels: ' + ', '.join(
            f'model.{path}.ignore_index={label}' for path, label in ignored.items())
            + '; set the same in all', logger='current', level=logging.WARNING)


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the heads that compute a loss from the logits of each pixel, with their paths."""
    for path, module in model.named_modules():
        if all(hasattr(module, name) for name in ('out_channels', 'num_classes', 'loss_decode',
                                                  'ignore_index', 'conv_seg')):
            yield path, module


def _can_learn(head: Any) -> bool:
    """Return whether any loss of a head depends on its only channel."""
    losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    for loss in losses:
        # A loss may have a gradient for one of the two labels only.
        for num_labels in (1, min(2, head.num_classes)):
            labels = torch.arange(64).reshape(1, 8, 8) % num_labels
            logits = torch.linspace(-2, 2, 64).reshape(1, 1, 8, 8).requires_grad_()
            try:
                value = loss(logits, labels, ignore_index=head.ignore_index)
                gradient, = torch.autograd.grad(value.sum(), logits, allow_unused=True)
            except Exception:  # what goes wrong in a loss shows in the first step
                continue
            if gradient is not None and bool(gradient.abs().max() > 0):
                return True
    return False
