"""What makes a model of a run faster: its deploy form, memory layout, compilation and bf16."""

import logging
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ...deployment.compile import check_compiler, compiled
from ...deployment.fuse import deploy
from ...deployment.precision import compute_in_bfloat16, replace_forward
from ...errors import ConfigError, UserError

__all__ = ['RECOMMENDED', 'Acceleration', 'AccelerationHook', 'accelerate', 'requested']


@dataclass(frozen=True)
class Acceleration:
    """What is done to a model; nothing by default.

    Attributes:
        deploy: Fold all that can be folded; for inference alone.
        channels_last: Keep weights and feature maps in torch's channels-last memory format.
        compile: Run backbone and neck through torch.compile; heads and losses stay as they are.
        bf16: Compute backbone, neck and heads in bfloat16 by autocast. What they return is float32
            again, so losses, boxes and scores lose no more digits; in a test, the last layers of
            the heads compute in float32 themselves.
    """

    deploy: bool = False
    channels_last: bool = False
    compile: bool = False
    bf16: bool = False

    def __bool__(self) -> bool:
        return self.deploy or self.channels_last or self.compile or self.bf16


RECOMMENDED = Acceleration(deploy=True, channels_last=True)
"""What ``--fast`` stands for: what leaves every figure as it is. bfloat16 moves an AP by tenths
of a point, and compiling pays only where images have few sizes; see docs/performance.md."""


def requested(options: Namespace) -> Acceleration:
    """What the flags ask for; see `evit_mm.cli.train_parser` and `evit_mm.cli.test_parser`.

    Raises:
        UserError: If this machine can't do it.
    """
    fast = getattr(options, 'fast', False)
    base = RECOMMENDED if fast else Acceleration()
    acceleration = Acceleration(
        deploy=base.deploy or getattr(options, 'deploy', False),
        channels_last=base.channels_last or options.channels_last,
        compile=base.compile or options.compile,
        bf16=base.bf16 or options.bf16)
    if acceleration.compile:
        check_compiler(get_device(), '--compile')
    if acceleration.bf16 and get_device() == 'cuda' and not torch.cuda.is_bf16_supported():
        raise UserError('--bf16 needs a GPU that computes in bfloat16, which this one does not: '
                        'leave --bf16 out')
    return acceleration


def accelerate(runner: Runner, model: nn.Module, acceleration: Acceleration) -> None:
    """Have ``model`` made faster when the run has loaded its weights.

    Args:
        runner: What trains or tests the model.
        model: The detector or segmentor itself, without what distributes it.
        acceleration: What to do to it.

    Raises:
        ConfigError: If the model has no backbone where one is needed.
    """
    if not acceleration:
        return
    if (acceleration.channels_last or acceleration.compile) and not _parts(model, 'backbone'):
        raise ConfigError(f'--channels-last and --compile find no backbone in '
                          f'{type(model).__name__}: leave them out')
    runner.register_hook(AccelerationHook(model, acceleration), priority='VERY_LOW')


class AccelerationHook(Hook):
    """Change the model between the loading of its weights and the first step, once.

    Args:
        model: The detector or segmentor itself, without what distributes it.
        acceleration: What to do to it; its deploy form is for tests alone.
    """

    def __init__(self, model: nn.Module, acceleration: Acceleration) -> None:
        self._model = model
        self._acceleration = acceleration
        self._done = False
        self._graphs_before = 0

    def before_run(self, runner: Any) -> None:
        """Take away what would mix unfolded weights into folded ones.

        Averages are what a checkpoint's ``state_dict`` holds, so a test has no need of the hook
        that swaps them in.
        """
        if self._acceleration.deploy:
            # A new list: the runner is going through the old one.
            runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, EMAHook)]

    def before_train(self, runner: Any) -> None:
        """Change the model for training."""
        self._apply(testing=False)

    def before_test(self, runner: Any) -> None:
        """Change the model for inference."""
        self._apply(testing=True)

    def after_run(self, runner: Any) -> None:
        """Say how often torch.compile was at work."""
        if self._acceleration.compile:
            print_log(f'torch.compile: {_graphs() - self._graphs_before} graphs compiled',
                      logger='current', level=logging.INFO)

    def _apply(self, *, testing: bool) -> None:
        if self._done:
            return
        self._done = True
        model, wanted = self._model, self._acceleration
        device = next(model.parameters()).device.type
        if wanted.deploy and testing:
            deploy(model.eval())
        if wanted.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for backbone in _parts(model, 'backbone'):
                backbone.register_forward_pre_hook(_to_channels_last)
        if wanted.compile:
            self._graphs_before = _graphs()
            for part in _parts(model, 'backbone', 'neck'):
                # A graph a size, up to dynamo's limit of them; further sizes run as they were.
                replace_forward(part, compiled(part.forward, device, inference=testing))
        if wanted.bf16:
            heads = set(_parts(model, 'head'))
            for part in _parts(model, 'backbone', 'neck', 'head'):
                # Rounding weights for good is for tests alone, and part of the deploy form.
                compute_in_bfloat16(part, device, rounds=testing and wanted.deploy,
                                    predicts=testing and part in heads)


def _parts(model: nn.Module, *kinds: str) -> list[nn.Module]:
    """The modules called like one of ``kinds``, such as head or bbox_head, in lists too."""
    found: dict[nn.Module, None] = {}  # a set that keeps the order
    for name, module in model.named_modules():
        # Not by the end of the name: a bottleneck is no neck.
        if name.rpartition('.')[2].rpartition('_')[2] in kinds:
            found.update(dict.fromkeys(_unlisted(module)))
    return list(found)


def _unlisted(module: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(module, nn.ModuleList):
        yield module
        return
    for child in module:  # of a cascade, or the auxiliary heads of a segmentor
        yield from _unlisted(child)


def _to_channels_last(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous(memory_format=torch.channels_last)
                 if isinstance(value, Tensor) and value.dim() == 4 else value
                 for value in arguments)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters['stats']['unique_graphs']
