"""The size of a training batch: what it means for the learning rate, and for norms."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.dataset import DefaultSampler
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd
from torch.utils.data import BatchSampler, DataLoader

from ...errors import ConfigError

__all__ = ['check_norms', 'check_synced_norms', 'explain_norms', 'log_batch_size']

# Norms and mmcv's layers keep a map of one value; what other modules do to it can't be told.
_KEEP_SIZE = (_BatchNorm, ConvModule, DepthwiseSeparableConvModule)


def log_batch_size(config: Any, world_size: int) -> None:
    """Print the effective batch size and learning rate, and warn when they are off the base."""
    batch = config.train_dataloader['batch_size']
    accumulated = config.optim_wrapper.get('accumulative_counts', 1)
    effective = batch * world_size * accumulated
    rate = config.optim_wrapper['optimizer']['lr']
    text = (f'effective batch size {effective} ({world_size} process{"es" * (world_size > 1)} x '
            f'{batch} images{f" x {accumulated} accumulated steps" if accumulated > 1 else ""})')
    scaling = config.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if scaling.get('enable') and base:
        # mmengine scales by what one step sees and leaves accumulation out.
        text += f', learning rate {rate * batch * world_size / base:g} (scaled from {rate:g})'
    else:
        text += f', learning rate {rate:g}'
    print_log(text, logger='current')
    if base and effective != base and not scaling.get('enable'):
        print_log(f'the learning rate of this config is for a batch of {base} images, not '
                  f'{effective}: pass --auto-scale-lr, or set optim_wrapper.optimizer.lr '
                  f'(in proportion: {rate * effective / base:g})', logger='current',
                  level=logging.WARNING)


def check_synced_norms(config: Any) -> None:
    """Check that SyncBN has GPUs where processes train together; elsewhere mmengine makes it BN.

    Args:
        config: A whole config, with the launcher set.

    Raises:
        ConfigError: If it has none; torch can't wrap such a model.
    """
    if config.get('launcher', 'none') == 'none' or torch.cuda.is_available():
        return
    mend = ['sync_bn=None'] if config.get('sync_bn') else []
    mend += [f'{path}.type=BN' for path, part in _mappings(config.model, 'model')
             if part.get('type') in (nn.SyncBatchNorm, 'SyncBN', 'mmengine.SyncBN')]
    if mend:
        raise ConfigError('SyncBN needs GPUs to work in several processes, and torch finds none: '
                          f'set {" ".join(mend)}')


def check_norms(model: nn.Module, dataloader: DataLoader, config: Any, world_size: int) -> None:
    """Check that the norms which learn from batches can learn from these.

    torch refuses BN a single value per channel, which is what a global pooling leaves of one
    image. Poolings are seen where an `nn.Sequential` has them; of others, and of images that are
    too small, `explain_norms` tells in the first step.

    Args:
        model: A detector or segmentor.
        dataloader: The training's.
        config: The config that the model is built from.
        world_size: Number of processes.

    Raises:
        ConfigError: If batches are too small for a norm; it names the norm and what to change.
    """
    learning = _learning_norms(model)
    if world_size > 1:  # SyncBN sees the batches of all processes
        learning = {norm for norm in learning if not isinstance(norm, nn.SyncBatchNorm)}
    pooled = [norm for norm in _pooled_norms(model) if norm in learning]
    single, mend = _single_image(dataloader)
    if pooled and single:
        raise ConfigError(
            f'{_name(model, pooled[0])} can\'t learn from {single}, as a global pooling leaves it '
            f'one value per channel: set {mend}, or {_without_batches(model, pooled, config)}')


@contextmanager
def explain_norms(model: nn.Module, config: Any) -> Iterator[None]:
    """Turn torch's refusal to normalise a single value per channel into a sentence.

    Args:
        model: The detector or segmentor that is trained inside.
        config: The config that it is built from.

    Raises:
        ConfigError: In place of torch's error; it names the norm and what to change.
    """
    try:
        yield
    except ValueError as error:
        norm = _norm_in(error.__traceback__)
        if norm is None or 'Expected more than 1 value per channel' not in str(error):
            raise
        raise ConfigError(
            f'{_name(model, norm)} can\'t learn from one value per channel, which is what it got: '
            'set train_dataloader.batch_size=2 or more (and train_dataloader.drop_last=True, if '
            'it got the last batch of an epoch), use larger images, or '
            f'{_without_batches(model, [norm], config)}') from error


def _learning_norms(model: nn.Module) -> set[_BatchNorm]:
    """The norms that use the statistics of the batch in training; the model is left as it is."""
    modes = {module: module.training for module in model.modules()}
    model.train()  # the model's own: a part may keep its norms frozen
    learning = {module for module in modes if isinstance(module, _BatchNorm)
                and (module.training or module.running_mean is None)}
    for module, mode in modes.items():
        module.training = mode
    return learning


def _pooled_norms(model: nn.Module) -> list[_BatchNorm]:
    """The norms that a sequence of modules puts behind a global pooling."""
    found: dict[_BatchNorm, None] = {}  # in order
    for sequence in model.modules():
        pooled = False
        for step in _flat(sequence) if isinstance(sequence, nn.Sequential) else ():
            if _pools_globally(step):
                pooled = True
            elif isinstance(step, nn.Upsample):
                pooled = False
            elif pooled and isinstance(step, _KEEP_SIZE):
                found.update((module, None) for module in step.modules()
                             if isinstance(module, _BatchNorm))
    return list(found)


def _flat(sequence: nn.Sequential) -> Iterator[nn.Module]:
    for step in sequence:
        if isinstance(step, nn.Sequential):
            yield from _flat(step)
        else:
            yield step


def _pools_globally(module: nn.Module) -> bool:
    size = getattr(module, 'output_size', None)
    return isinstance(module, _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd) and \
        set(size if isinstance(size, tuple) else (size,)) == {1}


def _single_image(dataloader: DataLoader) -> tuple[str, str]:
    """Which batch holds one image only, and what to set against it; empty if none does."""
    batches: Any = dataloader.batch_sampler
    size = getattr(batches, 'batch_size', 0)
    if size == 1:
        return 'a batch of one image', 'train_dataloader.batch_size=2 or more'
    # What other samplers do at the end of an epoch, if they have one, can't be told.
    order: Any = getattr(batches, 'sampler', None)
    if type(batches) is BatchSampler and type(order) is DefaultSampler \
            and not batches.drop_last and len(order) % size == 1:
        return 'the last batch of an epoch, one image', 'train_dataloader.drop_last=True'
    return '', ''


def _without_batches(model: nn.Module, norms: Iterable[_BatchNorm], config: Any) -> str:
    """What to set so that the parts of a model that have these norms need no batches."""
    return ' '.join(_part_without_batches(model.get_submodule(part.partition('.')[2]), part, values)
                    for part, values in _parts(model, norms, config).items())


def _part_without_batches(module: nn.Module, part: str, values: Mapping[str, Any]) -> str:
    if getattr(module, 'norm_eval', None) is False:
        return f'{part}.norm_eval=True'
    widths = [norm.num_features for norm in module.modules() if isinstance(norm, _BatchNorm)]
    # A group of one channel would have a single value again.
    groups = next(count for count in (32, 16, 8, 4, 2, 1)
                  if all(width % count == 0 and width > count for width in widths) or count == 1)
    if set(values.get('norm_cfg') or ()) <= {'type', 'requires_grad', 'eps', 'num_groups'}:
        return f'{part}.norm_cfg.type=GN {part}.norm_cfg.num_groups={groups}'
    # Options that GN does not take can't be removed from the command line.
    return f"{part}.norm_cfg=dict(_delete_=True, type='GN', num_groups={groups}) in the config"


def _parts(model: nn.Module, norms: Iterable[_BatchNorm], config: Any
           ) -> dict[str, Mapping[str, Any]]:
    """The parts of the config that norms are built from, by path, such as 'model.decode_head'."""
    return dict(_part(_name(model, norm), config) for norm in norms)


def _part(name: str, config: Any) -> tuple[str, Mapping[str, Any]]:
    """The innermost part of the config that has a type, on the way to a module."""
    inner = config['model']
    path = 'model'
    found = path, inner
    for key in name.split('.'):
        if isinstance(inner, Mapping) and key in inner:
            inner = inner[key]
        elif isinstance(inner, list | tuple) and key.isdigit() and int(key) < len(inner):
            inner = inner[int(key)]
        else:
            break
        path = f'{path}.{key}'
        if isinstance(inner, Mapping) and 'type' in inner:
            found = path, inner
    return found


def _mappings(part: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings in a part of a config, by path."""
    if isinstance(part, Mapping):
        yield path, part
    keys: Any = part if isinstance(part, Mapping) else \
        range(len(part)) if isinstance(part, list | tuple) else ()
    for key in keys:
        yield from _mappings(part[key], f'{path}.{key}')


def _name(model: nn.Module, wanted: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is wanted), 'a norm')


def _norm_in(trace: TracebackType | None) -> _BatchNorm | None:
    """The norm in whose forward pass an error was raised."""
    found = None
    while trace is not None:
        module = trace.tb_frame.f_locals.get('self')
        found = module if isinstance(module, _BatchNorm) else found
        trace = trace.tb_next
    return found
