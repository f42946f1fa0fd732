"""Build the models to measure or analyse from a name."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import Tensor, nn

from ..arch import ARCHS
from ..checkpoint import strip_containers
from ..engine.config import load_config, without_pretrained_weights
from ..engine.preflight import check_checkpoint
from ..errors import CheckpointError, ConfigError, UserError, translate_errors
from ..models import EfficientViT

__all__ = ['FORMS', 'NAMES', 'TIMM', 'TORCHVISION', 'build_model', 'is_config', 'load_weights',
           'short_names', 'split_form']

TIMM = 'timm://'
TORCHVISION = 'torchvision://'

NAMES = (f'{min(ARCHS)} to {max(ARCHS)}, {TIMM}MODEL, {TORCHVISION}resnet50, '
         f'{TORCHVISION}mobilenet_v3_large, or the path of a config')
"""The names that `build_model` accepts, for messages."""

FORMS = ('plain', 'deploy')
"""The forms that may follow the name of a model after a colon."""

_RESNET_STEM = ('conv1', 'bn1', 'relu', 'maxpool')
_RESNET_STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
_MOBILENET_STAGES = ('3', '6', '12', '16')  # the last layers of strides 4, 8, 16 and 32

# Each head of mmseg warns of these when it is built: of its own code, and of a default of its loss
# that our configs keep. Users can't do anything about either.
_IGNORED_WARNINGS = ('``build_loss`` would be deprecated soon',
                     'Default ``avg_non_ignore`` is False')


class StageMaps(nn.ModuleDict):
    """A sequence of layers that returns the feature maps of some of them.

    Args:
        layers: The layers by name, in order.
        outputs: Names of the layers whose maps are returned; layers after the last one are left
            out.
    """

    def __init__(self, layers: Mapping[str, nn.Module], outputs: tuple[str, ...]) -> None:
        names = list(layers)
        super().__init__({name: layers[name] for name in names[:names.index(outputs[-1]) + 1]})
        self.outputs = outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, H, W) to one feature map per name in ``outputs``."""
        x, maps = image, []
        for name, layer in self.items():
            x = layer(x)
            if name in self.outputs:
                maps.append(x)
        return tuple(maps)


def build_model(name: str, *, features_only: bool = False, pretrained: bool = False,
                options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model by name, in eval mode on the CPU.

    Args:
        name: ``'m0'`` to ``'m5'`` for our backbone, ``'timm://MODEL'``,
            ``'torchvision://resnet50'``, ``'torchvision://mobilenet_v3_large'``, or the path of
            a config, whose whole detector or segmentor is built.
        features_only: Whether a model of timm or torchvision returns feature maps of several
            strides instead of classifying. No effect on our backbones and on configs.
        pretrained: Whether to load the published weights; for a config, those that it names.
        options: Keyword arguments of `EfficientViT` or of the other package's model; for a config,
            values by dotted key.

    Raises:
        UserError: If there is no such model, it can't be built, or its weights can't be loaded.
    """
    options = dict(options or {})
    if name.lower() in ARCHS:
        return _build_ours(name.lower(), pretrained, options)
    if name.startswith(TIMM):
        return _build_timm(name.removeprefix(TIMM), features_only, pretrained, options)
    if name.startswith(TORCHVISION):
        return _build_torchvision(name.removeprefix(TORCHVISION), features_only, pretrained,
                                  options)
    if not is_config(name):
        raise UserError(f'no such model: {name}; choose {NAMES}')
    return _build_from_config(Path(name), pretrained, options)


def is_config(name: str) -> bool:
    """Return whether a name is the path of a config; the file may not exist."""
    return Path(name).suffix in ('.py', '.json', '.yaml', '.yml')


def split_form(name: str) -> tuple[str, str]:
    """Split ``'m4:deploy'`` into model and form; a name without one is plain.

    Raises:
        UserError: If the form does not exist.
    """
    model, colon, form = name.rpartition(':')
    if not colon or form.startswith('//'):
        return name, 'plain'
    if form not in FORMS:
        raise UserError(f'{name}: {form!r} is not a form of a model: choose from '
                        f'{", ".join(FORMS)}')
    return model, form


def short_names(names: Iterable[str]) -> list[str]:
    """Return the labels of models in a figure: short, or the full name where two would be equal."""
    short = {name: _short(name) for name in names}
    count = Counter(short.values())
    return [label if count[label] == 1 else name for name, label in short.items()]


def _short(name: str) -> str:
    """Return a name without its folder, its scheme and the size of its images."""
    model, form = split_form(name)
    model = Path(model).stem if is_config(model) else model.rpartition('//')[2]
    model = re.sub(r'_patch\d+|_window\d+|_(224|256|384)\b', '', model)
    return model + f' ({form})' * (form != 'plain')


def load_weights(model: nn.Module, name: str, source: str) -> None:
    """Load all tensors of a checkpoint into a whole model.

    Args:
        model: The model, from `build_model`.
        name: Its name.
        source: File or address of the checkpoint.

    Raises:
        CheckpointError: If it can't be read, or belongs to another model.
    """
    with translate_errors():
        if is_config(name):
            check_checkpoint(model, source, purpose='test')
            load_checkpoint(model, source, map_location='cpu', logger='silent')
            return
        checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
        try:
            model.load_state_dict(strip_containers(checkpoint, source))
        except RuntimeError as error:
            raise CheckpointError(f'{source} does not fit {name}: '
                                  f'{" ".join(str(error).split())[:300]}') from error


def _build_ours(arch: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        options = {'init_cfg': dict(type='Pretrained', checkpoint=f'evit://efficientvit_{arch}'),
                   **options}
    try:
        backbone = EfficientViT(**{'arch': arch, **options})
    except TypeError as error:
        raise ConfigError(f'EfficientViT has no such argument: {error}') from error
    if backbone.init_cfg:
        backbone.init_weights()
    return backbone.eval()


def _build_timm(model: str, features_only: bool, pretrained: bool, options: dict[str, Any]
                ) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f'{TIMM}{model} needs timm, which is not installed: pip install timm'
                        ) from error
    if not timm.is_model(model):
        similar = timm.list_models(f'*{model}*')[:5]
        raise UserError(f'timm {timm.__version__} has no model {model!r}'
                        + f'; similar names: {", ".join(similar)}' * bool(similar))
    return _build_peer(f'{TIMM}{model}', pretrained, lambda: timm.create_model(
        model, pretrained=pretrained, features_only=features_only, **options))


def _build_torchvision(model: str, features_only: bool, pretrained: bool, options: dict[str, Any]
                       ) -> nn.Module:
    # mmcv imports torchvision too, but a broken installation fails only in its models.
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise UserError(f'{TORCHVISION}{model} needs torchvision, which can\'t be imported: '
                        f'{_one_line(error)}') from error
    if model not in ('resnet50', 'mobilenet_v3_large'):
        raise UserError(f'no such model: {TORCHVISION}{model}; choose {NAMES}')
    weights = 'DEFAULT' if pretrained else None
    built: Any = _build_peer(f'{TORCHVISION}{model}', pretrained,
                             lambda: getattr(models, model)(weights=weights, **options))
    if not features_only:
        return built
    if model == 'resnet50':
        layers = {name: getattr(built, name) for name in (*_RESNET_STEM, *_RESNET_STAGES)}
        return StageMaps(layers, _RESNET_STAGES).eval()
    return StageMaps(dict(built.features.named_children()), _MOBILENET_STAGES).eval()


def _build_from_config(path: Path, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    config = load_config(path, options)
    if not config.get('model'):
        raise ConfigError(f'{path} has no model')
    init_default_scope(config.get('default_scope', 'mmengine'))
    if not pretrained:
        without_pretrained_weights(config)
    try:
        with warnings.catch_warnings():
            for message in _IGNORED_WARNINGS:
                warnings.filterwarnings('ignore', message, UserWarning)
            model: Any = MODELS.build(config.model)
        if pretrained:
            model.init_weights()
    except UserError:
        raise
    except Exception as error:  # other packages' models raise anything
        raise ConfigError(f'the model of {path} can\'t be built: {_one_line(error)}') from error
    return model.eval()


def _build_peer(name: str, pretrained: bool, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model of another package, and turn its errors into ours."""
    try:
        return build().eval()
    except Exception as error:
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise UserError(f'the weights of {name} can\'t be loaded: {_one_line(error)}; check '
                            'the network, or leave pretrained weights out') from error
        raise ConfigError(f'{name} can\'t be built: {_one_line(error)}') from error


def _one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
