"""The models that are measured and analysed, built from a name."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import Tensor, nn

from ..checkpoint import strip_containers
from ..engine.config import load_config, without_pretrained_weights
from ..engine.preflight import check_checkpoint
from ..errors import CheckpointError, ConfigError, UserError, translate_errors
from ..models import ARCHS, EfficientViT

__all__ = ['FORMS', 'NAMES', 'TIMM', 'TORCHVISION', 'build_subject', 'is_config', 'load_weights',
           'short_names', 'split_form']

TIMM = 'timm://'
TORCHVISION = 'torchvision://'

NAMES = (f'{min(ARCHS)} to {max(ARCHS)}, {TIMM}MODEL, {TORCHVISION}resnet50, '
         f'{TORCHVISION}mobilenet_v3_large, or the path of a config')
"""The names that there are, for messages."""

FORMS = ('plain', 'deploy')
"""What may follow a model's name behind a colon."""

_RESNET_STEM = ('conv1', 'bn1', 'relu', 'maxpool')
_RESNET_STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
_MOBILENET_STAGES = ('3', '6', '12', '16')  # the last layers of strides 4, 8, 16 and 32

# What every head of mmseg says when it is built: about its own code, and about a default of its
# loss that our configs keep. Nobody who analyses a model can do anything about either.
_NO_NEWS = ('``build_loss`` would be deprecated soon', 'Default ``avg_non_ignore`` is False')


class StageMaps(nn.ModuleDict):
    """Layers that run one after the other, some of whose maps are the output.

    Args:
        layers: The layers by name, in their order.
        outputs: Names of those whose maps are returned; layers behind the last one are left out.
    """

    def __init__(self, layers: Mapping[str, nn.Module], outputs: tuple[str, ...]) -> None:
        names = list(layers)
        super().__init__({name: layers[name] for name in names[:names.index(outputs[-1]) + 1]})
        self.outputs = outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, H, W) to one map per name of ``outputs``."""
        x, maps = image, []
        for name, layer in self.items():
            x = layer(x)
            if name in self.outputs:
                maps.append(x)
        return tuple(maps)


def build_subject(name: str, *, features_only: bool = False, pretrained: bool = False,
                  options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model by name, in eval mode on the CPU.

    Args:
        name: ``'m0'`` to ``'m5'`` for our backbone, ``'timm://MODEL'``,
            ``'torchvision://resnet50'``, ``'torchvision://mobilenet_v3_large'``, or the path of
            a config, whose whole detector or segmentor is built.
        features_only: Of timm's and torchvision's models, build the maps of several strides in
            place of the classifier. Ours have no classifier, configs are taken as they are.
        pretrained: Fetch the published weights; for a config, those that it names.
        options: Keyword arguments of `EfficientViT` or of timm's model; for a config, values by
            dotted key.

    Raises:
        UserError: If there is no such model, it can't be built, or its weights can't be had.
    """
    options = dict(options or {})
    if name.lower() in ARCHS:
        return _ours(name.lower(), pretrained, options)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), features_only, pretrained, options)
    if name.startswith(TORCHVISION):
        return _torchvision(name.removeprefix(TORCHVISION), features_only, pretrained, options)
    if not is_config(name):
        raise UserError(f'there is no model {name!r}: name one of {NAMES}')
    return _from_config(Path(name), pretrained, options)


def is_config(name: str) -> bool:
    """Whether a name is the path of a config, there or not."""
    return Path(name).suffix in ('.py', '.json', '.yaml', '.yml')


def split_form(name: str) -> tuple[str, str]:
    """Split ``'m4:deploy'`` into model and form; a name without one is plain.

    Raises:
        UserError: If there is no such form.
    """
    model, colon, form = name.rpartition(':')
    if not colon or form.startswith('//'):
        return name, 'plain'
    if form not in FORMS:
        raise UserError(f'{name}: {form!r} is no form of a model: choose one of '
                        f'{", ".join(FORMS)}')
    return model, form


def short_names(names: Iterable[str]) -> list[str]:
    """What names a model in a figure: short, and full where two would be called the same."""
    short = {name: _short(name) for name in names}
    count = Counter(short.values())
    return [label if count[label] == 1 else name for name, label in short.items()]


def _short(name: str) -> str:
    """A name without its folder, its scheme and the size of its images."""
    model, form = split_form(name)
    model = Path(model).stem if is_config(model) else model.rpartition('//')[2]
    model = re.sub(r'_patch\d+|_window\d+|_(224|256|384)\b', '', model)
    return model + f' ({form})' * (form != 'plain')


def load_weights(model: nn.Module, name: str, source: str) -> None:
    """Load a checkpoint of a whole model, every tensor of it.

    Args:
        model: What `build_subject` built.
        name: Its name.
        source: The checkpoint.

    Raises:
        CheckpointError: If it can't be read, or is of another model.
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


def _ours(arch: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        options = {'init_cfg': dict(type='Pretrained', checkpoint=f'evit://efficientvit_{arch}'),
                   **options}
    try:
        backbone = EfficientViT(**{'arch': arch, **options})
    except TypeError as error:
        raise ConfigError(f'EfficientViT takes no such argument: {error}') from error
    if backbone.init_cfg:
        backbone.init_weights()
    return backbone.eval()


def _timm(model: str, features_only: bool, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f'{TIMM}{model} needs timm, which is not installed: pip install timm'
                        ) from error
    if not timm.is_model(model):
        near = timm.list_models(f'*{model}*')[:5]
        raise UserError(f'timm {timm.__version__} has no model {model!r}'
                        + f'; it has {", ".join(near)}' * bool(near))
    return _built(f'{TIMM}{model}', pretrained, lambda: timm.create_model(
        model, pretrained=pretrained, features_only=features_only, **options))


def _torchvision(model: str, features_only: bool, pretrained: bool, options: dict[str, Any]
                 ) -> nn.Module:
    # mmcv imports torchvision, but a broken one shows only in its models.
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise UserError(f'{TORCHVISION}{model} needs torchvision, which can\'t be imported: '
                        f'{_one_line(error)}') from error
    if model not in ('resnet50', 'mobilenet_v3_large'):
        raise UserError(f'there is no model {TORCHVISION}{model}: name one of {NAMES}')
    weights = 'DEFAULT' if pretrained else None
    built: Any = _built(f'{TORCHVISION}{model}', pretrained,
                        lambda: getattr(models, model)(weights=weights, **options))
    if not features_only:
        return built
    if model == 'resnet50':
        layers = {name: getattr(built, name) for name in (*_RESNET_STEM, *_RESNET_STAGES)}
        return StageMaps(layers, _RESNET_STAGES).eval()
    return StageMaps(dict(built.features.named_children()), _MOBILENET_STAGES).eval()


def _from_config(path: Path, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    config = load_config(path, options)
    if not config.get('model'):
        raise ConfigError(f'{path} has no model')
    init_default_scope(config.get('default_scope', 'mmengine'))
    if not pretrained:
        without_pretrained_weights(config)
    try:
        with warnings.catch_warnings():
            for message in _NO_NEWS:
                warnings.filterwarnings('ignore', message, UserWarning)
            model: Any = MODELS.build(config.model)
        if pretrained:
            model.init_weights()
    except UserError:
        raise
    except Exception as error:  # of others' models, at any value of a config
        raise ConfigError(f'the model of {path} can\'t be built: {_one_line(error)}') from error
    return model.eval()


def _built(name: str, pretrained: bool, build: Callable[[], nn.Module]) -> nn.Module:
    """Build somebody else's model, whose errors are of many kinds."""
    try:
        return build().eval()
    except Exception as error:
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise UserError(f'the weights of {name} can\'t be had: {_one_line(error)}; check '
                            'the network, or go without pretrained weights') from error
        raise ConfigError(f'{name} can\'t be built: {_one_line(error)}') from error


def _one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
