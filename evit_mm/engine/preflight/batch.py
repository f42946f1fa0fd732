"""The size of a training batch, for the learning rate and for norms."""

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

__all__ = ['check_norms', 'check_synced_norms', 'describe_batch_size', 'explain_norms',
           'warn_of_batch_size']

# Norms and mmcv's layers keep a map of one value; other modules may not.
_KEEP_SIZE = (_BatchNorm, ConvModule, DepthwiseSeparableConvModule)


def describe_batch_size(config: Any, world_size: int) -> str:
    """Return the effective batch size and the learning rate of a config in words.

    Args:
        config: A whole config.
        world_size: Number of processes.

    Returns:
        str: Empty where the config does not tell them.
    """
    sizes = _batch_sizes(config)
    if sizes is None:
        return ''
    batch, accumulated, rate = sizes
    text = (f'effective batch size {batch * world_size * accumulated} ({world_size} '
            f'process{"es" * (world_size > 1)} x {batch} images'
            f'{f" x {accumulated} accumulated steps" if accumulated > 1 else ""})')
    scaling = config.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if scaling.get('enable') and base:
        # mmengine scales by the images of one step, without accumulation.
        return f'{text}, learning rate {rate * batch * world_size / base:g} (scaled from {rate:g})'
    return f'{text}, learning rate {rate:g}'


def warn_of_batch_size(config: Any, world_size: int) -> None:
    """Warn if a config's learning rate is meant for another effective batch size.

    Args:
        config: A whole config.
        world_size: Number of processes.
    """
    sizes = _batch_sizes(config)
    scaling = config.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if sizes is None or not base or scaling.get('enable'):
        return
    batch, accumulated, rate = sizes
    effective = batch * world_size * accumulated
    if effective != base:
        print_log(f'the learning rate of this config is for a batch of {base} images, not '
                  f'{effective}: pass --auto-scale-lr, or set optim_wrapper.optimizer.lr '
                  f'(in proportion: {rate * effective / base:g})', logger='current',
                  level=logging.WARNING)


def _batch_sizes(config: Any) -> tuple[int, int, float] | None:
    """Return images per process, accumulated steps and learning rate, where a config has them."""
    try:
        return (config['train_dataloader']['batch_size'],
                config['optim_wrapper'].get('accumulative_counts', 1),
                config['optim_wrapper']['optimizer']['lr'])
    except (KeyError, TypeError, AttributeError):  # objects, or several optimizers
        return None


def check_synced_norms(config: Any) -> None:
    """Check that SyncBN has GPUs in a distributed run; elsewhere mmengine replaces it by BN.

    Args:
        config: A whole config, with the launcher set.

    Raises:
        ConfigError: If it has none; torch can't wrap such a model.
    """
    if config.get('launcher', 'none') == 'none' or torch.cuda.is_available():
        return
    fixes = ['sync_bn=None'] if config.get('sync_bn') else []
    fixes += [f'{path}.type=BN' for path, part in _mappings(config.model, 'model')
              if part.get('type') in (nn.SyncBatchNorm, 'SyncBN', 'mmengine.SyncBN')]
    if fixes:
        raise ConfigError('SyncBN needs GPUs in several processes, and torch finds none: '
                          f'set {" ".join(fixes)}')


def check_norms(model: nn.Module, dataloader: DataLoader, config: Any, world_size: int) -> None:
    """Check that batches are large enough for the norms that use their statistics.

    In training, torch's BN refuses a single value per channel, which is what a global pooling
    leaves of one image. This check sees poolings inside an `nn.Sequential`; other poolings, and
    images that are too small, are reported by `explain_norms` in the first step.

    Args:
        model: A detector or segmentor.
        dataloader: The dataloader of the training.
        config: The config that the model is built from.
        world_size: Number of processes.

    Raises:
        ConfigError: If batches are too small for a norm; it names the norm and what to change.
    """
    learning = _learning_norms(model)
    if world_size > 1:  # SyncBN sees the batches of all processes
        learning = {norm for norm in learning if not isinstance(norm, nn.SyncBatchNorm)}
    pooled = [norm for norm in _pooled_norms(model) if norm in learning]
    single, fix = _single_image(dataloader)
    if pooled and single:
        raise ConfigError(
            f'{_name(model, pooled[0])} can\'t learn from {single}, as a global pooling leaves it '
            f'one value per channel: set {fix}, or {_without_batches(model, pooled, config)}')


@contextmanager
def explain_norms(model: nn.Module, config: Any) -> Iterator[None]:
    """Explain torch's error about a single value per channel, for the training in this block.

    Args:
        model: The detector or segmentor that is trained.
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
            f'{_name(model, norm)} can\'t learn from one value per channel: '
            'set train_dataloader.batch_size=2 or more (and train_dataloader.drop_last=True, if '
            'this was the last batch of an epoch), use larger images, or '
            f'{_without_batches(model, [norm], config)}') from error


def _learning_norms(model: nn.Module) -> set[_BatchNorm]:
    """Return the norms that use batch statistics in training; the model's modes are restored."""
    modes = {module: module.training for module in model.modules()}
    model.train()  # the model's own method: a part may keep its norms frozen
    learning = {module for module in modes if isinstance(module, _BatchNorm)
                and (module.training or module.running_mean is None)}
    for module, mode in modes.items():
        module.training = mode
    return learning


def _pooled_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the norms that follow a global pooling in an `nn.Sequential`."""
    norms: dict[_BatchNorm, None] = {}  # a set that keeps the order
    for sequence in model.modules():
        pooled = False
        for step in _flat(sequence) if isinstance(sequence, nn.Sequential) else ():
            if _pools_globally(step):
                pooled = True
            elif isinstance(step, nn.Upsample):
                pooled = False
            elif pooled and isinstance(step, _KEEP_SIZE):
                norms.update((module, None) for module in step.modules()
                             if isinstance(module, _BatchNorm))
    return list(norms)


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
    """Return a description of a batch with one image, and its remedy; empty if there is none."""
    batches: Any = dataloader.batch_sampler
    size = getattr(batches, 'batch_size', 0)
    if size == 1:
        return 'a batch of one image', 'train_dataloader.batch_size=2 or more'
    # Other samplers may not end an epoch in this way.
    order: Any = getattr(batches, 'sampler', None)
    if type(batches) is BatchSampler and type(order) is DefaultSampler \
            and not batches.drop_last and len(order) % size == 1:
        return 'the last batch of an epoch, one image', 'train_dataloader.drop_last=True'
    return '', ''


def _without_batches(model: nn.Module, norms: Iterable[_BatchNorm], config: Any) -> str:
    """Return the options with which the parts of a model that have these norms need no batches."""
    # By path, such as 'model.decode_head': several norms belong to one part.
    parts = dict(_innermost_part(_name(model, norm), config) for norm in norms)
    return ' '.join(_part_without_batches(model.get_submodule(path.partition('.')[2]), path, part)
                    for path, part in parts.items())


def _part_without_batches(module: nn.Module, part: str, values: Mapping[str, Any]) -> str:
    if getattr(module, 'norm_eval', None) is False:
        return f'{part}.norm_eval=True'
    widths = [norm.num_features for norm in module.modules() if isinstance(norm, _BatchNorm)]
    # A group of one channel would again have a single value.
    groups = next(count for count in (32, 16, 8, 4, 2, 1)
                  if all(width % count == 0 and width > count for width in widths) or count == 1)
    if set(values.get('norm_cfg') or ()) <= {'type', 'requires_grad', 'eps', 'num_groups'}:
        return f'{part}.norm_cfg.type=GN {part}.norm_cfg.num_groups={groups}'
    # The command line can't remove options that GN does not accept.
    return f"{part}.norm_cfg=dict(_delete_=True, type='GN', num_groups={groups}) in the config"


def _innermost_part(name: str, config: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the path and value of the innermost part of a config that a module is built from."""
    inner = config['model']
    path = 'model'
    innermost = path, inner
    for key in name.split('.'):
        if isinstance(inner, Mapping) and key in inner:
            inner = inner[key]
        elif isinstance(inner, list | tuple) and key.isdigit() and int(key) < len(inner):
            inner = inner[int(key)]
        else:
            break
        path = f'{path}.{key}'
        if isinstance(inner, Mapping) and 'type' in inner:
            innermost = path, inner
    return innermost


def _mappings(part: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all mappings in a part of a config, with their paths."""
    if isinstance(part, Mapping):
        yield path, part
    keys: Any = part if isinstance(part, Mapping) else \
        range(len(part)) if isinstance(part, list | tuple) else ()
    for key in keys:
        yield from _mappings(part[key], f'{path}.{key}')


def _name(model: nn.Module, norm: nn.Module) -> str:
    return next((name for name, module in model.named_modules() if module is norm), 'a norm')


def _norm_in(trace: TracebackType | None) -> _BatchNorm | None:
    """Return the norm in whose forward pass an error was raised, if any."""
    norm = None
    while trace is not None:
        module = trace.tb_frame.f_locals.get('self')
        norm = module if isinstance(module, _BatchNorm) else norm
        trace = trace.tb_next
    return norm
