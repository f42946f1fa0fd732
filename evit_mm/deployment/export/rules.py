"""From a config's test pipeline to the way an exported file wants its images."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from evit_runtime.preprocess import Preprocessing

from ...errors import ConfigError

__all__ = ['fixed_size', 'preprocessing_of', 'with_fixed_size']

_LOADING = ('LoadAnnotations', 'CheckedLoadAnnotations', 'PackDetInputs', 'PackSegInputs')


def preprocessing_of(pipeline: Iterable[Mapping[str, Any]]) -> Preprocessing:
    """Return what a test pipeline does with images.

    Raises:
        ConfigError: If it does something that a file can't say.
    """
    rule = Preprocessing(scale=None, keep_ratio=True)
    for step in pipeline:
        name = str(getattr(step['type'], '__name__', step['type'])).rpartition('.')[2]
        if 'LoadImage' in name:
            _check_loading(name, step)
        elif name == 'Resize' and rule.scale is None:
            rule = _resize(rule, step)
        elif name == 'Pad':
            rule = _pad(rule, step)
        elif 'LoadAnnotations' not in name and name not in _LOADING:
            raise _unknown(name, step)
    return rule


def fixed_size(rule: Preprocessing) -> tuple[int, int] | None:
    """Return height and width of all images of a rule, or None if they vary."""
    if rule.scale is None:
        return None
    if not rule.keep_ratio and not rule.pad_divisor:
        width, height = rule.pad_size or rule.scale
        return height, width
    if rule.pad_size and min(rule.pad_size) >= max(rule.scale):
        return rule.pad_size[1], rule.pad_size[0]
    return None


def with_fixed_size(rule: Preprocessing, size: tuple[int, int] | None, divisor: int, *,
                    fill: tuple[int, int, int]) -> Preprocessing:
    """Return a rule for a file of a fixed size.

    Args:
        rule: The rule of the config.
        size: Height and width; by default those of the rule, in landscape if they vary.
        divisor: Number that they are rounded up to multiples of.
        fill: Colour of the padding that is no part of the image.

    Raises:
        ConfigError: If neither is known.
    """
    own = fixed_size(rule)
    if size is None and own is None and rule.scale is None:
        raise ConfigError('the config does not resize images: pass --size HEIGHT WIDTH, or '
                          '--dynamic')
    if size is None:
        assert own is not None or rule.scale is not None
        size = own or (min(rule.scale), max(rule.scale))  # type: ignore[arg-type]
    elif size != own:
        # The padding of a pipeline belongs to the size that it was written for.
        rule = replace(rule, scale=size[::-1],
                       pad_size=size[::-1] if rule.pad_size else None, pad_divisor=None)
    height, width = (-(-length // divisor) * divisor for length in size)
    return replace(rule, size=(height, width), divisor=divisor, fill=fill)


def _check_loading(name: str, step: Mapping[str, Any]) -> None:
    if step.get('to_float32'):
        raise ConfigError(f'{name}(to_float32=True) in the test pipeline can\'t be exported: '
                          'exported files take pixels of 8 bits')
    if step.get('color_type', 'color') != 'color' or step.get('imdecode_backend',
                                                             'cv2') not in ('cv2', None):
        raise _unknown(name, step)


def _resize(rule: Preprocessing, step: Mapping[str, Any]) -> Preprocessing:
    scale = step.get('scale')
    if scale is None or step.get('backend', 'cv2') != 'cv2':
        raise _unknown('Resize', step)
    width, height = (scale, scale) if isinstance(scale, int) else scale
    return replace(rule, scale=(int(width), int(height)), keep_ratio=step.get('keep_ratio', False),
                   interpolation=step.get('interpolation', 'bilinear'))


def _pad(rule: Preprocessing, step: Mapping[str, Any]) -> Preprocessing:
    value = step.get('pad_val', 0)
    value = value.get('img', 0) if isinstance(value, Mapping) else value
    colour = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    size, divisor = step.get('size'), step.get('size_divisor')
    # The longer side of an image that fits into a square, as scaled before, is that of the square.
    if (step.get('pad_to_square') and not (size or divisor) and rule.scale and rule.keep_ratio
            and rule.scale[0] == rule.scale[1]):
        size = rule.scale
    elif step.get('pad_to_square'):
        raise _unknown('Pad', step)
    if step.get('padding_mode', 'constant') != 'constant' or not (size or divisor):
        raise _unknown('Pad', step)
    return replace(rule, pad_size=tuple(size) if size else None, pad_divisor=divisor,
                   pad_value=tuple(int(channel) for channel in colour))  # type: ignore[arg-type]


def _unknown(name: str, step: Mapping[str, Any]) -> ConfigError:
    arguments = ', '.join(f'{key}={value!r}' for key, value in step.items() if key != 'type')
    return ConfigError(f'{name}({arguments}) in the test pipeline of this config can\'t be '
                       'exported yet: only Resize with a scale, and Pad, can')
