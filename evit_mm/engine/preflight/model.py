"""Check that the backbone, the neck and the heads of a model fit together.

MMDetection and MMSegmentation build these parts independently, from separate parts of a config, so
that a wrong number of channels shows as a shape error in the first step. Which arguments describe
the inputs of a part, and in which order, differs between classes. Therefore this module doesn't
compare arguments. It runs the model on a small image, and looks for the layer that fails.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...errors import ConfigError
from ...models import EfficientViT
from ...ops.nested import tensors_in

__all__ = ['check_model']

# Strides up to half the longer side can be told apart by the sizes of the feature maps.
_IMAGE_SIZE = (128, 256)
# Some parts need a minimum size: what fails on the small image has to fail on this one, too.
_LARGE_IMAGE_SIZE = (512, 512)
_SHAPE_ERRORS = re.compile(
    r'size of tensor|sizes of tensors|expected size|expected input|shape mismatch|channels|'
    r'cannot be multiplied|invalid for input of size', re.IGNORECASE)
# Proposals and detections beyond a few only cost time.
_FEW_DETECTIONS = {'max_per_img': 2, 'nms_pre': 16}
_MAX_TRIALS = 16  # for each change
_MAX_CHANGES = 4
_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _Maps:
    """Feature maps between two parts of a model; strides in the order of the maps."""

    source: str
    channels: list[int]
    strides: list[int]

    def __str__(self) -> str:
        return (f'{self.source} returns feature maps with channels {self.channels} at strides '
                f'{self.strides}')


@dataclass(frozen=True)
class _Misfit:
    """A part that doesn't fit what it receives.

    Attributes:
        part: Dotted name of the part in the model.
        layer: Dotted name of the module in it that shows the misfit.
        sentence: What is wrong.
        advice: How to fix it, as far as the model tells.
        changes: Changes of the config that may fix it: arguments below ``part`` by name, and the
            values to try there.
    """

    part: str
    layer: str
    sentence: str
    advice: str
    changes: Mapping[str, list[Any]]


def check_model(model: nn.Module, config: Mapping[str, Any] | None = None) -> None:
    """Check that the parts around each EfficientViT of a model fit it and each other.

    The model runs once on a small image of zeros, in evaluation mode and without gradients.
    Afterwards its training modes, BN statistics and the random number generators are as before.
    A failure that isn't about channels, strides or the number of feature maps is ignored here, so
    that it shows in the run itself.

    Args:
        model: A detector, a segmentor, or a module that contains some. A model without EfficientViT
            isn't run.
        config: The config of ``model``. With it, the message names a change that was tried and
            works, if a simple one does.

    Raises:
        ConfigError: If a part doesn't fit what it receives; names both, and how to fix it.
    """
    for name, part in list(model.named_modules()):
        if not isinstance(getattr(part, 'backbone', None), EfficientViT):
            continue
        misfit = _find_misfit(part)
        if misfit is not None:
            part_config = _at(config, name)
            while isinstance(part_config, Mapping) and 'module' in part_config:
                part_config = part_config['module']  # of test-time augmentation
            has_config = isinstance(part_config, Mapping) and 'backbone' in part_config
            fix = _tried_fix(misfit, part_config) if has_config else None
            raise ConfigError(f'{misfit.sentence}: {fix or misfit.advice}')


def _find_misfit(model: nn.Module) -> _Misfit | None:
    with _restoring_state(model):
        if _misfit_on(model, _IMAGE_SIZE) is None:
            return None
        return _misfit_on(model, _LARGE_IMAGE_SIZE)


def _misfit_on(model: nn.Module, size: tuple[int, int]) -> _Misfit | None:
    trace = _Trace(model, size)
    image = next(model.parameters()).new_zeros(1, 3, *size)
    with trace.recording():
        misfit = trace.run(partial(_predict, model, image))
        if misfit is None and trace.maps is not None:
            misfit = _indices_misfit(model, trace.maps)
        for head in _auxiliary_heads(model):
            if misfit is None:
                misfit = trace.run(partial(head, trace.outputs))
    return misfit or trace.strides_misfit


def _predict(model: Any, image: Tensor) -> None:
    if not isinstance(model, BaseModel):
        maps = model.backbone(image)
        if getattr(model, 'neck', None) is not None:
            model.neck(maps)
        return
    height, width = image.shape[2:]
    sample = BaseDataElement(metainfo=dict(
        img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
        batch_input_shape=(height, width), scale_factor=(1.0, 1.0), border=(0, height, 0, width),
        flip=False, img_id=0, img_path=''))
    model(image, [sample], mode='predict')


def _auxiliary_heads(model: nn.Module) -> list[nn.Module]:
    """Return the heads of a segmentor that only its losses use."""
    head = getattr(model, 'auxiliary_head', None)
    if head is None:
        return []
    return list(head) if isinstance(head, nn.ModuleList) else [head]


@dataclass
class _Trace:
    """The run of a model: which maps its parts received, and in which layer it failed.

    Attributes:
        maps: Feature maps that the neck and the heads receive, once the part before has run.
        outputs: The tensors of ``maps``.
        strides_misfit: The first part that assumes other strides than its inputs have.
        levels_misfit: The first part that gets more or fewer maps than it assumes strides. Some
            choose among them, so this counts only if the run fails.
    """

    model: nn.Module
    size: tuple[int, int]
    maps: _Maps | None = None
    outputs: Any = None
    strides_misfit: _Misfit | None = None
    levels_misfit: _Misfit | None = None
    _running: list[tuple[str, nn.Module, Any]] = field(default_factory=list)

    @contextmanager
    def recording(self) -> Iterator[None]:
        handles = []
        for name, module in self.model.named_modules():
            if name and not name.startswith('backbone.'):
                handles += [module.register_forward_pre_hook(self._enter(name), with_kwargs=True),
                            module.register_forward_hook(self._leave(name))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, action: Callable[[], Any]) -> _Misfit | None:
        """Run ``action``; return the misfit that made it fail, if one did."""
        self._running.clear()
        try:
            action()
        except Exception as error:  # any code can run here; what isn't a misfit is ignored
            return self._explain(error)
        return None

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = (*args, *kwargs.values())
            self._running.append((name, module, inputs))
            if self.maps is not None:
                self._compare_strides(name, module, inputs, self.maps)
        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, outputs: Any) -> None:
            # What failed in a try block of the model has not left.
            while self._running and self._running.pop()[0] != name:
                pass
            if name in ('backbone', 'neck'):
                self.outputs = outputs
                self.maps = _describe(_name_of(module), outputs, self.size)
        return hook

    def _compare_strides(self, name: str, module: nn.Module, inputs: tuple, maps: _Maps) -> None:
        """Compare the strides that a head or an extractor assumes with those of its inputs."""
        levels = [x for x in tensors_in(inputs[:1]) if x.ndim == 4]
        generator = getattr(module, 'prior_generator', None)
        for declared in (getattr(module, 'featmap_strides', None),  # YOLOv3's head has both
                         getattr(generator, 'strides', None)):
            if isinstance(declared, list | tuple) and levels:
                self._compare_declared_strides(name, module, declared, levels, maps)

    def _compare_declared_strides(self, name: str, module: nn.Module, declared: Sequence[Any],
                                  levels: list[Tensor], maps: _Maps) -> None:
        assumed = [stride[0] if isinstance(stride, list | tuple) else stride for stride in declared]
        actual = [_stride(level, self.size) for level in levels]
        misfit = _Misfit(
            name, name, f'{name} ({type(module).__name__}) is built for feature maps at strides '
            f'{assumed}, but gets maps at strides {actual}; {maps}',
            f'set its strides to {actual}, or change the levels that its input has',
            {'strides': [actual]})
        if len(assumed) != len(actual):
            self.levels_misfit = self.levels_misfit or misfit
        # Strides may be rounded (SSD's 300 / 3 = 100), and a map of one column can have any.
        elif any(self.size[1] / stride >= 2 and not 0.7 < stride / true < 1.4
                 for stride, true in zip(assumed, actual, strict=True)):
            self.strides_misfit = self.strides_misfit or misfit

    def _explain(self, error: Exception) -> _Misfit | None:
        if not self._running or self.maps is None:
            return self.levels_misfit
        name, layer, inputs = self._running[-1]
        channels = _channels(layer, inputs)
        if channels is not None and channels[0] == channels[1]:
            channels = None
        is_neck = name.partition('.')[0] == 'neck'
        shape_error = isinstance(error, RuntimeError) and _SHAPE_ERRORS.search(str(error))
        count_error = is_neck and isinstance(error, AssertionError | IndexError | ValueError)
        if not (channels or shape_error or count_error):
            return self.levels_misfit
        if channels:
            detail = f'{name} takes {channels[0]} channels, but gets {channels[1]}'
        else:
            detail = ' '.join(f'{type(error).__name__} in {name}: {error}'.split()).rstrip(': ')
        return _channels_misfit(self.model, name, detail, self.maps, channels)


def _channels_misfit(model: nn.Module, name: str, detail: str, maps: _Maps,
                     layer: tuple[int, int] | None) -> _Misfit:
    """Describe a part whose input has other channels than it is built for.

    Args:
        name: The module that failed.
        detail: How it failed.
        layer: The channels that a layer takes and those that it gets, if that was the failure.
    """
    part = _part_name(model, name)
    module = model.get_submodule(part)
    declared = getattr(module, 'in_channels', None)
    if isinstance(declared, tuple):
        declared = list(declared)
    title = f'{part} ({type(module).__name__})'
    sentence = f'{title} doesn\'t fit its input ({detail}): {maps}'
    if declared is not None:
        sentence = f'{title} is built for in_channels={declared}, but {maps} ({detail})'
    count = len(declared) if isinstance(declared, list) else len(maps.channels)
    index = getattr(module, 'in_index', None)
    chosen = [maps.channels[i] for i in index] if isinstance(index, list | tuple) else maps.channels
    numbers = [layer[1]] if layer else []
    numbers = list(dict.fromkeys([*numbers, *reversed(maps.channels)]))
    changes: dict[str, list[Any]] = {
        'in_channels': [chosen, chosen[::-1], *numbers, sum(chosen)]}
    if part.partition('.')[0] == 'neck':
        advice = f'set the neck\'s in_channels to {maps.channels}, or change the backbone'
        if isinstance(declared, int):
            advice = f'set the neck\'s in_channels to {numbers[0]}, or change the backbone'
        if count > len(maps.channels):
            advice += '\'s out_indices and stem_strides'
        if declared == maps.channels:
            advice = 'use another neck'  # this one fails for another reason than its channels
    else:
        advice = f'set the input channels of {part}'
        if layer and getattr(model, 'neck', None) is not None:
            changes['neck.out_channels'] = [layer[0]]
            advice += ', or out_channels of the neck'
    return _Misfit(part, name, sentence, advice, changes)


def _indices_misfit(model: nn.Module, maps: _Maps) -> _Misfit | None:
    """Check the ``in_index`` and ``feature_strides`` of a segmentor's heads."""
    count = len(maps.channels)
    for name, head in model.named_modules():
        index: Any = getattr(head, 'in_index', None)
        indices: list[int] = list(index) if isinstance(index, list | tuple) else [index]
        if not all(isinstance(i, int) for i in indices):
            continue
        title = f'{name} ({type(head).__name__})'
        if any(i not in range(-count, count) for i in indices):
            return _Misfit(
                name, name, f'{title} takes the feature maps in_index={index}, but {maps}',
                f'choose from 0 to {count - 1}', {'in_index': [list(range(count)), count - 1]})
        strides: Any = getattr(head, 'feature_strides', None)
        taken = [maps.strides[i] for i in indices]
        # Only the ratios of the strides matter to such a head.
        if strides and [s * taken[0] for s in strides] != [s * strides[0] for s in taken]:
            return _Misfit(
                name, name, f'{title} is built for feature_strides={list(strides)}, but {maps}',
                f'set its feature_strides to {taken}', {'feature_strides': [taken]})
    return None


# --- how to fix it ----------------------------------------------------------------------------


def _tried_fix(misfit: _Misfit, config: Mapping[str, Any]) -> str | None:
    """Return changes of the config after which the whole model fits; None if none are found."""
    fix: list[str] = []
    fixed_layers: set[str] = set()
    remaining: _Misfit | None = misfit
    while remaining is not None:
        fixed_layers.add(remaining.layer)
        step = _best_variant(remaining, config, fixed_layers)
        if step is None or len(fixed_layers) > _MAX_CHANGES:
            return None
        changes, remaining = step
        for path, value in changes.items():
            old = _at_path(config, path)
            fix.append(f'{".".join(map(str, path))}={value}'
                       + (f' instead of {old}' if old else ''))
        config = _changed(config, changes)
    return 'set ' + ' and '.join(fix)


def _best_variant(misfit: _Misfit, config: Mapping[str, Any], fixed_layers: set[str]
                  ) -> tuple[dict[_Path, Any], _Misfit | None] | None:
    """Try changes; return one that fixes everything, or else one that fixes this layer."""
    second_best = None
    for changes in islice(_variants(misfit, config), _MAX_TRIALS):
        try:
            with _preserved_randomness(torch.device('cpu')):
                model = MODELS.build(_changed(config, changes))
        except Exception:  # this value contradicts another argument
            continue
        with _restoring_state(model):
            remaining = _misfit_on(model, _IMAGE_SIZE)
        if remaining is None:
            return changes, None
        if second_best is None and remaining.layer not in fixed_layers:
            second_best = changes, remaining
    return second_best


def _changed(config: Mapping[str, Any], changes: Mapping[_Path, Any]) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    for path, value in changes.items():
        _at_path(changed, path[:-1])[path[-1]] = value
    return changed


def _variants(misfit: _Misfit, config: Mapping[str, Any]) -> Iterator[dict[_Path, Any]]:
    """Yield changes of a config that may fix a misfit, the most likely ones first."""
    part = tuple(misfit.part.split('.'))
    for name, values in misfit.changes.items():
        *outer, argument = name.split('.')
        # A part may get its arguments from the part around it.
        around = [tuple(outer)] if outer else [part[:end] for end in range(len(part), 0, -1)]
        for top in around:
            for path, old in _arguments(_at_path(config, top), argument, top):
                for value in values:
                    if isinstance(value, list) == isinstance(old, list | tuple) and value != old:
                        yield {path: value}
                if argument == 'in_channels' and isinstance(old, list | tuple):
                    yield from _with_stem(config['backbone'], path, list(old))


def _with_stem(backbone: Mapping[str, Any], path: _Path, in_channels: list[int]
               ) -> Iterator[dict[_Path, Any]]:
    """Let the stem contribute maps, so that there are as many as the part has inputs."""
    for stem_strides in ([8], [4, 8]):
        channels = EfficientViT(**{key: value for key, value in backbone.items()
                                   if key in ('arch', 'out_indices')},
                                stem_strides=stem_strides).out_channels
        if len(channels) == len(in_channels):
            change: dict[_Path, Any] = {('backbone', 'stem_strides'): stem_strides}
            if list(channels) != in_channels:
                change[path] = list(channels)
            yield change


def _arguments(config: Any, name: str, path: _Path) -> Iterator[tuple[_Path, Any]]:
    """Yield the path and the value of all arguments that end with a name."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if str(key).endswith(name):
                yield (*path, key), value
        for key, value in config.items():
            yield from _arguments(value, name, (*path, key))
    elif isinstance(config, list | tuple):
        for i, value in enumerate(config):
            yield from _arguments(value, name, (*path, i))


def _at(config: Any, name: str) -> Any:
    return _at_path(config, tuple(name.split('.')) if name else ())


def _at_path(config: Any, path: tuple) -> Any:
    """Return the part of a config at a path of keys and indices; None if there is none."""
    for key in path:
        if isinstance(config, Mapping):
            config = config.get(key)
        elif isinstance(config, list | tuple) and str(key).isdigit() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return config


# --- modules and maps -------------------------------------------------------------------------


def _part_name(model: nn.Module, name: str) -> str:
    """Return the outermost part around a layer that has ``in_channels``; by default, a child."""
    path = name.split('.')
    for end in range(1, len(path) + 1):
        part = model.get_submodule('.'.join(path[:end]))
        if isinstance(part, nn.modules.conv._ConvNd | ConvModule):
            break
        if hasattr(part, 'in_channels'):
            return '.'.join(path[:end])
    return path[0]


def _channels(layer: nn.Module, inputs: tuple) -> tuple[int, int] | None:
    """Return the input channels that a layer takes and those that it gets; None if unknown."""
    x = next(tensors_in(inputs), None)
    if x is None:
        return None
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels, x.shape[1]
    if isinstance(layer, nn.Linear):
        return layer.in_features, x.shape[-1]
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return layer.num_features, x.shape[1]
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels, x.shape[1]
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1], x.shape[-1]
    if isinstance(layer, nn.MultiheadAttention):
        return layer.embed_dim, x.shape[-1]
    return None


def _name_of(part: nn.Module) -> str:
    name = type(part).__name__
    return f'{name} arch={part.arch_name!r}' if isinstance(part, EfficientViT) else name


def _describe(source: str, outputs: Any, size: tuple[int, int]) -> _Maps:
    maps = [x for x in tensors_in(outputs) if x.ndim == 4]
    return _Maps(source, [x.shape[1] for x in maps], [_stride(x, size) for x in maps])


def _stride(feature_map: Tensor, size: tuple[int, int]) -> int:
    return round(size[1] / feature_map.shape[3])


# --- state of the model -----------------------------------------------------------------------


@contextmanager
def _restoring_state(model: nn.Module) -> Iterator[None]:
    """Evaluate the model without gradients, and restore everything afterwards that this changes."""
    # Set directly, because train() of some models does more than that.
    modes = [(module, module.training) for module in model.modules()]
    test_cfgs = [(cfg, dict(cfg)) for cfg in _test_cfgs(model)]
    try:
        for module, _ in modes:
            module.training = False
        for cfg, _ in test_cfgs:
            if 'nms' in cfg:
                cfg.update({key: value for key, value in _FEW_DETECTIONS.items() if key in cfg})
            if 'score_thr' in cfg:
                # The mask head of a two-stage detector doesn't run without a detection.
                cfg['score_thr'] = 0.0 if 'mask_thr_binary' in cfg else 2.0
        with torch.no_grad(), _preserved_randomness(next(model.parameters()).device):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for cfg, values in reversed(test_cfgs):
            cfg.update(values)


def _test_cfgs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        cfgs = getattr(module, 'test_cfg', None)
        for cfg in cfgs if isinstance(cfgs, list | tuple) else [cfgs]:
            if isinstance(cfg, Mapping):
                yield cfg


@contextmanager
def _preserved_randomness(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
