"""The forms in which a network is measured, and its preparation for a run."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import Tensor, nn

from ..deployment import deploy
from ..deployment.compile import check_compiler, compiled
from ..errors import UserError
from ..models import EfficientViT
from ..models.layers import ConvNorm
from ..ops.nested import tensors_in
from .timing import Steps, capture_cuda_graph, run_steps

__all__ = ['DTYPES', 'FORMS', 'LAYOUTS', 'PEER_FORMS', 'Form', 'PreparedModel',
           'largest_difference', 'prepare']

FORMS = {'inference': ('eager', 'deploy', 'compiled'),
         'train': ('eager', 'folded', 'efficient', 'compiled')}
"""Forms of our networks and of configs, by mode.

- ``eager``: as built, with BN after each convolution.
- ``deploy``: after `evit_mm.deployment.deploy`.
- ``folded``: training through convolutions that contain the frozen BN (``fold_norm=True``).
- ``efficient``: the same idea as mmengine implements it (`turn_on_efficient_conv_bn_eval`), on the
  layers of our backbone.
- ``compiled``: ``deploy`` or ``folded`` through torch.compile.
"""

PEER_FORMS = {'inference': ('eager', 'fused', 'compiled'), 'train': ('eager', 'compiled')}
"""Forms of the models of timm and torchvision, by mode.

``fused`` is after timm's `reparameterize_model`, for timm's models alone; ``compiled`` is the model
as built through torch.compile.
"""

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}

_COMPILED_PARTS = ('backbone', 'neck')
_FROZEN_IN_TRAINING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
                       nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Form:
    """The way in which a network runs.

    Attributes:
        name: One of `FORMS` or `PEER_FORMS`.
        dtype: One of `DTYPES`. In inference, weights and images have it; in training, weights
            stay float32 and the forward pass runs under autocast.
        layout: One of `LAYOUTS`, for images and, if it is channels-last, for weights; deployed
            weights are always channels-last.
        graph: Whether the run is replayed as a CUDA graph.
    """

    name: str = 'eager'
    dtype: str = 'fp32'
    layout: str = 'contiguous'
    graph: bool = False

    def __str__(self) -> str:
        """Return the form in words, such as ``'eager fp32'``; the default layout is left out."""
        parts = [self.name, self.dtype]
        if self.layout != 'contiguous':
            parts.append(self.layout)
        if self.graph:
            parts.append('graph')
        return ' '.join(parts)


@dataclass(frozen=True)
class PreparedModel:
    """A network in a form, ready to run.

    Attributes:
        steps: The steps of a run: the parts in inference, forward and backward in training.
        inputs: The images, which the first step takes.
        model: The modules that run.
        forward: Runs the forward pass.
        results: Runs all steps and returns the outputs, or the loss in training, by name. No
            gradients: where rounding flips a ReLU they differ, and nothing is wrong.
    """

    steps: Steps
    inputs: Tensor
    model: nn.ModuleDict
    forward: Callable[[], Any]
    results: Callable[[], dict[str, Tensor]]


def prepare(model: nn.ModuleDict, form: Form, images: Tensor, *, mode: str = 'inference',
            peer: bool = False) -> PreparedModel:
    """Make a copy of a network in a form, ready to run.

    Args:
        model: Its parts, as built; not changed.
        form: The form.
        images: Normalised images (B, 3, H, W), float32, on the device to run on.
        mode: ``'inference'``, or ``'train'`` for the forward and backward pass of a training step
            with frozen BN statistics. The loss is the sum of the outputs' mean squares.
        peer: Whether the network is timm's or torchvision's.

    Raises:
        UserError: If the network has no such form, or the form can't run here.
    """
    forms = (PEER_FORMS if peer else FORMS)[mode]
    if form.name not in forms:
        raise UserError(f'{form.name!r} is not a form of mode {mode!r}: choose from '
                        f'{", ".join(forms)}')
    if form.graph and images.device.type != 'cuda':
        raise UserError('CUDA graphs need a CUDA device')
    model = copy.deepcopy(model)
    _change_modules(model, form.name, mode, peer)
    dtype, layout = DTYPES[form.dtype], LAYOUTS[form.layout]
    if mode == 'inference':
        model.to(dtype=dtype)
        images = images.to(dtype)
    model.to(images.device)
    if form.layout == 'channels-last':  # otherwise it stays as it is, since deploy() chooses one
        model.to(memory_format=layout)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=layout)
    if form.name == 'compiled':
        _compile(model, images.device, mode)
    if mode == 'train':
        return _prepare_training(model, images, dtype, efficient=form.name == 'efficient',
                                 graph=form.graph)
    return _prepare_inference(model, images, form.graph)


def largest_difference(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference between tensors of one name, relative to their largest value.

    Returns:
        float: NaN if any value is NaN.
    """
    ratios = [((tensors[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
              for name, value in expected.items()]
    return float('nan') if any(map(math.isnan, ratios)) else max(ratios)


def _change_modules(model: nn.ModuleDict, form: str, mode: str, peer: bool) -> None:
    if peer and form == 'fused':
        from timm.utils import reparameterize_model

        reparameterize_model(model, inplace=True)
    if peer:
        return
    if mode == 'inference' and form != 'eager':
        deploy(model)  # in place, since the root is a ModuleDict
    for module in model.modules():
        if isinstance(module, EfficientViT) and mode == 'train':
            module.fold_norm = form in ('folded', 'compiled')


def _compile(model: nn.ModuleDict, device: torch.device, mode: str) -> None:
    check_compiler(device.type, '--forms compiled')
    for part in _COMPILED_PARTS:
        if part in model:
            module = model[part]
            module.forward = compiled(  # type: ignore[method-assign]
                module.forward, device.type, inference=mode == 'inference')


def _prepare_inference(model: nn.ModuleDict, images: Tensor, graph: bool) -> PreparedModel:
    model.eval()
    steps: Steps = {name: torch.inference_mode()(part) for name, part in model.items()}
    if graph:
        steps = _as_graph(steps, images)

    def forward() -> Any:
        return run_steps(steps, images)

    def results() -> dict[str, Tensor]:
        return {f'output {i}': tensor.detach().float().cpu().clone()
                for i, tensor in enumerate(tensors_in(forward()))}

    return PreparedModel(steps, images, model, forward, results)


def _prepare_training(model: nn.ModuleDict, images: Tensor, dtype: torch.dtype, *,
                      efficient: bool, graph: bool) -> PreparedModel:
    model.train()
    for module in model.modules():
        if isinstance(module, _FROZEN_IN_TRAINING):
            module.eval()
    if efficient:
        # One layer at a time: mmengine traces each module that is named, and a whole backbone has
        # control flow that torch.fx can't trace.
        turn_on_efficient_conv_bn_eval(model, [
            name for name, module in model.named_modules() if isinstance(module, ConvNorm)])

    def forward(x: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            outputs: Any = x
            for part in model.values():
                outputs = part(outputs)
        return torch.stack([y.float().square().mean() for y in tensors_in(outputs)]).sum()

    def backward(loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach()

    steps: Steps = {'forward': forward, 'backward': backward}
    if graph:
        steps = _as_graph(steps, images)

    def results() -> dict[str, Tensor]:
        return {'loss': run_steps(steps, images).float().cpu()}

    return PreparedModel(steps, images, model, lambda: forward(images), results)


def _as_graph(steps: Steps, images: Tensor) -> Steps:
    """Return one step that replays all steps as a CUDA graph.

    It covers the heads too, which torch.compile's own graphs would not, and all forms alike.
    """
    run_steps(steps, images)  # here and not while capturing, torch.compile does its work
    replay, outputs = capture_cuda_graph(lambda: run_steps(steps, images), images.device)

    def step(_: Any) -> Any:
        replay()
        return outputs

    return {'all': step}
