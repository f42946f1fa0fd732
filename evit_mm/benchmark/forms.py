"""The forms in which a network runs, and what one run of it is."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..deployment.compile import check_compiler, compiled
from ..deployment.fuse import deploy
from ..errors import UserError
from ..models.layers import ConvNorm
from .timing import Work, run

__all__ = ['DTYPES', 'FORMS', 'LAYOUTS', 'Case', 'Form', 'dress', 'largest_difference']

FORMS = {'inference': ('eager', 'deploy', 'compiled'), 'train': ('eager', 'folded', 'compiled')}
"""What a network can be measured as, by mode; the first is the network as it was built.

``deploy`` folds what can be folded; ``folded`` folds frozen BN on the fly, so that its scale and
shift still learn; ``compiled`` is the mode's folded form through torch.compile (other people's
networks are compiled as they are).
"""

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}

_COMPILED_PARTS = ('backbone', 'neck')


@dataclass(frozen=True)
class Form:
    """How a network runs.

    Attributes:
        name: One of `FORMS`.
        dtype: One of `DTYPES`. In inference, weights and images have it; in training, weights
            stay float32 and the forward pass runs under autocast.
        layout: One of `LAYOUTS`, of images and, if it is channels-last, of weights too; deployed
            weights always are.
        graph: Replay the run as a CUDA graph.
    """

    name: str = 'eager'
    dtype: str = 'fp32'
    layout: str = 'contiguous'
    graph: bool = False

    def __str__(self) -> str:
        """Such as ``'eager fp32'``; the usual layout is not named."""
        parts = [self.name, self.dtype]
        if self.layout != 'contiguous':
            parts.append(self.layout)
        if self.graph:
            parts.append('graph')
        return ' '.join(parts)


@dataclass(frozen=True)
class Case:
    """A network in a form, ready to run.

    Attributes:
        work: The steps of a run: the parts, or forward and backward.
        given: What the first step is given.
        model: What runs, with its parameters.
        forward: What a run computes before it goes backward; all of it in inference.
        outcome: What one run gives, by name: its outputs, or its loss. Gradients are left to the
            tests: where a rounding error turns a ReLU over they differ, and nothing is wrong.
    """

    work: Work
    given: Tensor
    model: nn.ModuleDict
    forward: Callable[[], Any]
    outcome: Callable[[], dict[str, Tensor]]


def dress(model: nn.ModuleDict, form: Form, image: Tensor, *, mode: str = 'inference',
          peer: bool = False) -> Case:
    """Make a copy of a network ready to run in a form.

    Args:
        model: Its parts, as built; stays as it is.
        form: The form to run in.
        image: Normalised images (B, 3, H, W), float32, on the device to run on.
        mode: ``'inference'``, or ``'train'`` for forward and backward pass of a training step
            with frozen BN statistics. The mean square of every output, summed, is its loss.
        peer: Whether it is somebody else's, whose only forms are eager and compiled.

    Raises:
        UserError: If the network has no such form, or it can't run here.
    """
    if form.name not in FORMS[mode]:
        raise UserError(f'{form.name} is no form of {mode}: choose from {", ".join(FORMS[mode])}')
    if form.graph and image.device.type != 'cuda':
        raise UserError('CUDA graphs need a CUDA device')
    model = copy.deepcopy(model)
    if not peer:
        _fold(model, mode, plain=form.name == 'eager')
    dtype, layout = DTYPES[form.dtype], LAYOUTS[form.layout]
    if mode == 'inference':
        model.to(dtype=dtype)
        image = image.to(dtype)
    model.to(image.device)
    if form.layout == 'channels-last':  # else it stays as it is: deploying chooses a layout itself
        model.to(memory_format=layout)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=layout)
    if form.name == 'compiled':
        _compile(model, image.device, mode, form.graph)
    if mode == 'train':
        return _training(model, image, dtype)
    return _inference(model, image, form.graph and form.name != 'compiled')


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference between tensors of one name, relative to each one's largest value.

    Returns:
        float: NaN where a value is none.
    """
    ratios = [((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
              for name, value in expected.items()]
    return float('nan') if any(map(math.isnan, ratios)) else max(ratios)


def _fold(model: nn.ModuleDict, mode: str, *, plain: bool) -> None:
    if mode == 'inference':
        if not plain:
            deploy(model)
        return
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.fold_norm = not plain


def _compile(model: nn.ModuleDict, device: torch.device, mode: str, graph: bool) -> None:
    check_compiler(device.type, '--forms compiled')
    # The networks of a run share the code of their classes, and torch.compile counts by code: past
    # its limit of eight it would go on uncompiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for part in _COMPILED_PARTS:
        if part in model:
            module = model[part]
            module.forward = compiled(  # type: ignore[method-assign]
                module.forward, device.type, inference=mode == 'inference', cuda_graphs=graph)


def _inference(model: nn.ModuleDict, image: Tensor, graph: bool) -> Case:
    model.eval()
    work: Work = {name: torch.inference_mode()(part) for name, part in model.items()}
    if graph:
        whole = work

        @torch.inference_mode()
        def captured() -> Any:
            return run(whole, image)

        replay, outputs = _captured(captured, image.device)

        def step(_: Any) -> Any:
            replay()
            return outputs

        work = {'all': step}

    def forward() -> Any:
        return run(work, image)

    def outcome() -> dict[str, Tensor]:
        return {f'output {i}': tensor.detach().float().cpu().clone()
                for i, tensor in enumerate(_tensors(forward()))}

    return Case(work, image, model, forward, outcome)


def _training(model: nn.ModuleDict, image: Tensor, dtype: torch.dtype) -> Case:
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm | _DropoutNd):
            module.eval()

    def forward(x: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            maps: Any = x
            for part in model.values():
                maps = part(maps)
        return torch.stack([y.float().square().mean() for y in _tensors(maps)]).sum()

    def backward(loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach()

    work: Work = {'forward': forward, 'backward': backward}

    def outcome() -> dict[str, Tensor]:
        return {'loss': run(work, image).float().cpu()}

    return Case(work, image, model, lambda: forward(image), outcome)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors inside what a network returns, in their order."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)


def _captured(action: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Record ``action`` as a CUDA graph; returns its replay, and the tensors that it writes."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is chosen or made at the first calls must not be recorded
            action()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = action()
    return graph.replay, outputs
