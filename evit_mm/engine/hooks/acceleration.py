"""A faster model in a run: deploy form, memory layout, compilation and bfloat16."""

import logging
from dataclasses import dataclass, fields
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
from ..model_parts import parts

__all__ = ['RECOMMENDED', 'Acceleration', 'AccelerationHook', 'accelerate']


@dataclass(frozen=True)
class Acceleration:
    """Set of changes that make a model faster; none by default.

    Attributes:
        deploy: Fold BN and everything else that can be folded; only tests do it.
        channels_last: Keep weights and feature maps in torch's channels-last memory format.
        compile: Run backbone and neck through torch.compile; heads and losses stay as they are.
        bf16: Compute backbone, neck and heads in bfloat16 by autocast. They return float32, so that
            losses, boxes and scores lose no further digits; in a test, the last layers of the
            heads compute in float32 too.
    """

    deploy: bool = False
    channels_last: bool = False
    compile: bool = False
    bf16: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        return ', '.join(field.name.replace('_', '-') for field in fields(self)
                         if getattr(self, field.name)) or 'nothing'

    def check_device(self) -> None:
        """Check that this machine can compute so.

        Raises:
            UserError: If it has no compiler for `compile`, or its GPU no bfloat16 for `bf16`.
        """
        if self.compile:
            check_compiler(get_device(), '--compile')
        if self.bf16 and get_device() == 'cuda' and not torch.cuda.is_bf16_supported():
            raise UserError('--bf16 needs a GPU that computes in bfloat16, and this one does not: '
                            'leave it out')


RECOMMENDED = Acceleration(deploy=True, channels_last=True)
"""The changes that ``--fast`` makes: those that leave every metric as it is. bfloat16 changes an AP
by tenths of a point, and compiling pays off only for few image sizes; see docs/performance.md."""


def accelerate(runner: Runner, model: nn.Module, acceleration: Acceleration) -> None:
    """Register a hook that makes ``model`` faster after the run has loaded its weights.

    Args:
        runner: The runner that trains or tests the model.
        model: The detector or segmentor itself, without a wrapper that distributes it.
        acceleration: The changes to make.

    Raises:
        ConfigError: If the model has no backbone where one is needed.
    """
    if not acceleration:
        return
    if (acceleration.channels_last or acceleration.compile) and not parts(model, 'backbone'):
        raise ConfigError(f'--channels-last and --compile need a backbone, and '
                          f'{type(model).__name__} has none: leave them out')
    runner.register_hook(AccelerationHook(model, acceleration), priority='VERY_LOW')


class AccelerationHook(Hook):
    """Hook that changes the model once, between the loading of its weights and the first step.

    Args:
        model: The detector or segmentor itself, without a wrapper that distributes it.
        acceleration: The changes to make; `deploy` applies to tests alone.
    """

    def __init__(self, model: nn.Module, acceleration: Acceleration) -> None:
        self._model = model
        self._acceleration = acceleration
        self._done = False
        self._graphs_before = 0

    def before_run(self, runner: Any) -> None:
        """Remove the hook that would swap unfolded averages into folded weights.

        A checkpoint's ``state_dict`` holds the averages, so that a test does not need that hook.
        """
        if self._acceleration.deploy:
            # A new list, as the runner is iterating over the old one.
            runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, EMAHook)]

    def before_train(self, runner: Any) -> None:
        """Change the model for training."""
        self._apply(testing=False)

    def before_test(self, runner: Any) -> None:
        """Change the model for inference."""
        self._apply(testing=True)

    def after_run(self, runner: Any) -> None:
        """Log how many graphs torch.compile has compiled."""
        if self._acceleration.compile:
            print_log(f'torch.compile: {_graphs() - self._graphs_before} graphs compiled',
                      logger='current', level=logging.INFO)

    def _apply(self, *, testing: bool) -> None:
        if self._done:
            return
        self._done = True
        model, acceleration = self._model, self._acceleration
        device = next(model.parameters()).device.type
        if acceleration.deploy and testing:
            deploy(model.eval())
        if acceleration.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for backbone in parts(model, 'backbone'):
                backbone.register_forward_pre_hook(_to_channels_last)
        if acceleration.compile:
            self._graphs_before = _graphs()
            for part in parts(model, 'backbone', 'neck'):
                # One graph per size, up to dynamo's limit; further sizes run uncompiled.
                replace_forward(part, compiled(part.forward, device, inference=testing))
        if acceleration.bf16:
            heads = set(parts(model, 'head'))
            for part in parts(model, 'backbone', 'neck', 'head'):
                # Only the deploy form in a test rounds the weights permanently.
                compute_in_bfloat16(part, device,
                                    round_weights=testing and acceleration.deploy,
                                    keep_last_layers=testing and part in heads)


def _to_channels_last(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous(memory_format=torch.channels_last)
                 if isinstance(value, Tensor) and value.dim() == 4 else value
                 for value in arguments)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return counters['stats']['unique_graphs']
