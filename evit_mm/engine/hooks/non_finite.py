"""Losses and gradients that are not finite: they end a training, or are skipped."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from ...errors import UserError
from ..model_parts import plain_model
from ..processes import any_process
from ..resume_point import describe_latest

__all__ = ['NonFiniteHook']

_COUNT = 'skipped_non_finite_steps'  # in the message hub, which checkpoints keep
_MOST_IMAGES = 4
# A loss scaler halves its scale at each overflow. One below this has met nothing else for dozens of
# steps in a row, so that no gradient is finite at any scale.
_LEAST_SCALE = 1e-6


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Hook that ends a training at the first loss or gradient norm that is not finite.

    It does so before the optimizer's step: weights, averages and checkpoints are those of the last
    finite step. With mixed precision in float16, steps that the loss scaler skips are not counted.

    Args:
        skip: Number of steps that may be skipped instead. A skipped step leaves weights, statistics
            of BN, averages and the optimizer as they were; with gradient accumulation, all batches
            of the step are left out. The schedule goes on.
    """

    priority = 'VERY_HIGH'

    def __init__(self, skip: int = 0) -> None:
        self.skip = skip
        self._batch: Any = None
        self._terms: dict[str, Any] = {}
        self._checked: list[tuple[str, torch.Tensor]] = []
        self._buffers: dict[str, torch.Tensor] = {}
        self._spoiled = False
        self._restore: list[Callable[[], None]] = []

    def before_train(self, runner: Any) -> None:
        """Put the checks around the model's losses and the optimizer's step."""
        model = plain_model(runner.model)
        # Those that are infinite from the start are masks.
        self._checked = [(name, value) for name, value in model.named_buffers()
                         if value.is_floating_point() and value.numel()
                         and torch.isfinite(value).all()]
        if hasattr(model, 'parse_losses'):
            self._replace(model, 'parse_losses', self._noting_terms)
        for wrapper in _wrappers(runner.optim_wrapper):
            self._replace(wrapper, 'update_params', partial(self._checking_loss, runner, wrapper))
            self._replace(wrapper, 'step', partial(self._checking_norm, runner, wrapper))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what a skipped step needs: the batch, and the buffers before it."""
        self._batch = data_batch
        if not self.skip:
            return
        for hook in _averages(runner):
            vars(hook.ema_model).pop('update_parameters', None)
        if not self._between_batches(runner):
            self._spoiled = False
            with torch.no_grad():
                self._buffers = {name: value.clone()
                                 for name, value in plain_model(runner.model).named_buffers()}

    def after_train(self, runner: Any) -> None:
        """Take the checks out again, and report what was skipped."""
        while self._restore:
            self._restore.pop()()
        self._batch, self._buffers, self._checked = None, {}, []
        count = runner.message_hub.runtime_info.get(_COUNT, 0)
        if count:
            print_log(f'{count} steps were skipped because their losses or gradients were not '
                      'finite', logger='current', level=logging.WARNING)

    def _replace(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """Replace a method of one object until the training ends."""
        setattr(owner, name, wrap(getattr(owner, name)))
        self._restore.append(lambda: delattr(owner, name))

    def _noting_terms(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def parse_losses(losses: Any) -> Any:
            total, terms = call(losses)
            self._terms = terms
            return total, terms

        return parse_losses

    def _checking_loss(self, runner: Any, wrapper: OptimWrapper, call: Callable[..., Any]
                       ) -> Callable[..., Any]:
        @wraps(call)
        def update_params(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            if self._spoiled or any_process(not (bool(torch.isfinite(loss).all())
                                                 and self._buffers_are_finite())):
                if not self._spoiled:
                    self._pass_over(runner, self._describe_loss(loss))
                self._leave_out(runner, wrapper)
                return
            call(loss, *args, **kwargs)

        return update_params

    def _checking_norm(self, runner: Any, wrapper: OptimWrapper, call: Callable[..., Any]
                       ) -> Callable[..., Any]:
        @wraps(call)  # mmengine's schedulers look for a mark on it
        def step(**kwargs: Any) -> None:
            scaler = getattr(wrapper, 'loss_scaler', None)
            if scaler is not None and scaler.is_enabled():
                if scaler.get_scale() < _LEAST_SCALE:
                    raise UserError(self._sentence(runner, 'no gradient is finite, although the '
                                                   'losses are scaled down as far as possible'))
                call(**kwargs)
                return
            gradients = [weight.grad.coalesce().values() if weight.grad.is_sparse else weight.grad
                         for group in wrapper.optimizer.param_groups
                         for weight in group['params'] if weight.grad is not None]
            finite = not gradients or bool(torch.isfinite(
                torch.nn.utils.get_total_norm(gradients, foreach=None)))
            if not any_process(not finite):
                call(**kwargs)
                return
            self._pass_over(runner, '' if finite else 'the norm of the gradients')
            self._undo(runner)

        return step

    def _pass_over(self, runner: Any, what: str) -> None:
        """Count a step as skipped, or end the training.

        Args:
            runner: The runner.
            what: What is not finite in this process; empty if it is only in another one.

        Raises:
            UserError: If no more steps may be skipped.
        """
        described = what and f'{what} is not finite{self._describe_images()}'
        found = '; '.join(dict.fromkeys(filter(None, all_gather_object(described))))
        sentence = self._sentence(runner, found)
        hub = runner.message_hub
        count = hub.runtime_info.get(_COUNT, 0) + 1
        if count > self.skip:
            already = f' (after {count - 1} skipped steps)' if count > 1 else ''
            raise UserError(f'{sentence}{already}; {describe_latest(runner.work_dir)}, with a '
                            'lower learning rate or gradient clipping, or look at these images; '
                            f'--skip-nan {count} would skip such a step')
        hub.update_info(_COUNT, count)
        print_log(f'{sentence}: the step is skipped ({count} of {self.skip})', logger='current',
                  level=logging.WARNING)

    def _sentence(self, runner: Any, what: str) -> str:
        return f'iteration {runner.iter + 1}: {what}'

    def _describe_loss(self, loss: torch.Tensor) -> str:
        if torch.isfinite(loss).all():
            # An input may be so large that BN's statistics overflow, and its output does not.
            return next((f'the buffer {name}' for name, value in self._checked
                         if not torch.isfinite(value).all()), '')
        terms = [name for name, value in self._terms.items()
                 if isinstance(value, torch.Tensor) and not torch.isfinite(value).all()]
        parts = [name for name in terms if name != 'loss'] or ['loss']
        return ', '.join(f'{name} ({_number(self._terms.get(name, loss))})' for name in parts)

    def _buffers_are_finite(self) -> bool:
        values = [value for _, value in self._checked]
        return not values or bool(torch.isfinite(
            torch.nn.utils.get_total_norm(values, norm_type=float('inf'))))

    def _describe_images(self) -> str:
        paths = list(dict.fromkeys(_image_paths(self._batch)))
        if not paths:
            return ''
        more = f' and {len(paths) - _MOST_IMAGES} more' if len(paths) > _MOST_IMAGES else ''
        return f', in a batch of {", ".join(paths[:_MOST_IMAGES])}{more}'

    def _leave_out(self, runner: Any, wrapper: OptimWrapper) -> None:
        """Count a batch without a backward pass, and drop the gradients of its step."""
        self._spoiled = True
        wrapper.zero_grad()
        # mmengine counts batches in its backward(), which must not run: nothing public counts one.
        wrapper._inner_count += 1
        self._undo(runner)

    def _undo(self, runner: Any) -> None:
        """Restore what the forward pass has changed, and keep it from the averages."""
        with torch.no_grad():
            for name, value in plain_model(runner.model).named_buffers():
                if name in self._buffers:
                    value.copy_(self._buffers[name])
        for hook in _averages(runner):
            hook.ema_model.update_parameters = lambda _: None

    def _between_batches(self, runner: Any) -> bool:
        """Return whether gradients of earlier batches wait for the next step."""
        return not all(wrapper.should_update() for wrapper in _wrappers(runner.optim_wrapper))


def _wrappers(optim_wrapper: Any) -> list[OptimWrapper]:
    """Return the wrapper of an optimizer, or the wrappers of several."""
    if isinstance(optim_wrapper, OptimWrapper):
        return [optim_wrapper]
    return [wrapper for wrapper in getattr(optim_wrapper, 'optim_wrappers', {}).values()
            if isinstance(wrapper, OptimWrapper)]


def _averages(runner: Any) -> Iterator[Any]:
    yield from (hook for hook in runner.hooks
                if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'))


def _image_paths(batch: Any) -> Iterator[str]:
    """Yield the image files that the samples of a batch name."""
    metainfo = getattr(batch, 'metainfo', None)
    if isinstance(metainfo, Mapping) and metainfo.get('img_path'):
        yield str(metainfo['img_path'])
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _image_paths(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _image_paths(value)


def _number(value: Any) -> str:
    return f'{float(value.detach()):g}' if value.numel() == 1 else 'not a number'
