"""The networks to measure: what a command line names, its peers, and weights that they share."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import resize_attention_biases
from ..checkpoint.convert import convert_state
from ..checkpoint.key_maps import TIMM_FEATURES
from ..errors import ConfigError, UserError
from ..models import ARCHS, EfficientViTFPN
from .model_factory import TIMM, TORCHVISION, build_subject, is_config

__all__ = ['PARTS', 'Network', 'build_networks', 'natural_peers', 'randomise']

PARTS = ('backbone', 'neck', 'bbox_head', 'decode_head')
"""The attributes of single-stage detectors and of segmentors that inference runs, in order."""

_TIMM_PREFIX = f'{TIMM}efficientvit_'
_PEERS_FOR_ALL = (f'{TORCHVISION}resnet50', f'{TORCHVISION}mobilenet_v3_large')
_NECK_WIDTH = 256
_NECK_LEVELS = 5
_FINEST_STRIDE = 8
_SIDE = 448  # 64 x 7: the smallest images that fill a window of 7 in every stage
_SCALES = (0.2, 0.6)  # of BN; with larger ones attention hardens and amplifies rounding errors


@dataclass(frozen=True)
class Network:
    """A network as it is built: float32, on the CPU, in inference mode, nothing folded.

    Attributes:
        name: As the command line names it; a config's without folder and suffix.
        model: Its parts by name, in the order in which they run; None where it can't be built.
        arch: Of ours and of timm's port of it, ``'m0'`` to ``'m5'``.
        weights: Networks of equal ``weights`` compute the same, so that outputs can be compared.
        peer: Somebody else's, measured as it is.
        failure: Why it can't be built.
    """

    name: str
    model: nn.ModuleDict | None
    arch: str | None = None
    weights: str = ''
    peer: bool = False
    failure: str | None = None


class _FromStride8(nn.Module):
    """RetinaNet's neck for any backbone: the maps of strides 8 and more, five levels."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.skipped = sum(stride < _FINEST_STRIDE for stride in strides)
        doublings = (strides[self.skipped] // _FINEST_STRIDE).bit_length() - 1
        self.fpn = EfficientViTFPN(channels[self.skipped:], _NECK_WIDTH, _NECK_LEVELS,
                                   num_extra_trans_convs=doublings,
                                   in_strides=strides[self.skipped:])

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map the backbone's maps, finest first, to the pyramid."""
        return self.fpn(tuple(maps)[self.skipped:])


def natural_peers(subjects: Iterable[str]) -> list[str]:
    """Whom to compare with: timm's port of each of our variants, and two usual backbones.

    Raises:
        UserError: If no variant of ours is among the subjects.
    """
    archs = [name.lower() for name in subjects if name.lower() in ARCHS]
    if not archs:
        raise UserError('--peers go with backbones (m0 to m5), but none is among the models')
    return [*(_TIMM_PREFIX + arch for arch in archs), *_PEERS_FOR_ALL]


def build_networks(subjects: list[str], *, options: Mapping[str, Any] | None = None,
                   variants: Iterable[tuple[str, Mapping[str, Any]]] = (), with_neck: bool = False,
                   until: str | None = None, peers: bool = False, seed: int = 0) -> list[Network]:
    """Build what is to be measured, with random weights under which nothing is degenerate.

    timm's port of our backbone has the very weights of ours, and windows of 7 in every stage, as
    ours: timm would otherwise build the last stage for images of 224, with a window of 4. A name
    such as ``timm://efficientvit_m4?img_size=224`` asks for that.

    Args:
        subjects: Names for `build_subject`; what follows a ``?`` is given to timm.
        options: Its options, for all subjects but other people's.
        variants: Names, and options on top of those, for the only subject.
        with_neck: Put RetinaNet's neck behind backbones.
        until: Leave out what comes behind this part of a config's model.
        peers: Add `natural_peers`; one that can't be built is in the list with the reason.
        seed: Of the weights.

    Raises:
        UserError: If a subject can't be built or measured.
    """
    variants = list(variants)
    if variants and len(subjects) > 1:
        raise UserError('--variant varies one model, but several are given')
    if until and with_neck:
        raise UserError('--until cuts the model of a config, --with-neck is for backbones: '
                        'pass one of them')
    builder = _Builder(dict(options or {}), with_neck, until, seed)
    networks = [builder.build(name) for name in dict.fromkeys(subjects)]
    for name, changes in variants:
        networks.append(builder.build(subjects[0], changes, name))
    present = {network.name for network in networks}
    for name in natural_peers(subjects) if peers else ():
        if name in present:
            continue
        try:
            networks.append(builder.build(name))
        except UserError as error:
            networks.append(Network(name, None, peer=True, failure=str(error)))
    return networks


@dataclass
class _Builder:
    options: dict[str, Any]
    with_neck: bool
    until: str | None
    seed: int

    def build(self, name: str, changes: Mapping[str, Any] | None = None, title: str | None = None
              ) -> Network:
        torch.manual_seed(self.seed)
        if name.startswith((TIMM, TORCHVISION)):
            if changes:
                raise UserError(f'--variant does not vary {name}')
            return self._peer(name)
        if self.with_neck and is_config(name):
            raise UserError(f'--with-neck is for backbones, but {name} is a config, which has a '
                            'neck of its own')
        if self.until and not is_config(name):
            raise UserError(f'--until cuts the model of a config, but {name} is a backbone')
        options = {**self.options, **(changes or {})}
        if is_config(name):
            title = title or Path(name).stem
            model = self._parts_of_config(name, options)
            randomise(model, self.seed)
            return Network(title, model, weights=title)
        arch, title = name.lower(), title or name.lower()
        backbone = build_subject(name, options={'norm_eval': True, **options})
        model = self._model(backbone)
        # With options of its own it may compute something else than timm's.
        return Network(title, model, arch if arch in ARCHS else None,
                       title if options else arch)

    def _peer(self, name: str) -> Network:
        plain, options = _with_query(name)
        arch = plain.removeprefix(_TIMM_PREFIX).partition('.')[0]
        if not plain.startswith(_TIMM_PREFIX) or arch not in ARCHS:
            backbone = build_subject(plain, features_only=True, options=options)
            return Network(name, self._model(backbone), weights=name, peer=True)
        backbone = build_subject(plain, features_only=True,
                                 options={'img_size': _SIDE, **options})
        model = self._model(backbone)
        torch.manual_seed(self.seed)
        ours = self._model(build_subject(arch, options={'norm_eval': True}))
        same = _take_weights(model, ours)
        return Network(name, model, arch, arch if same else name, peer=True)

    def _model(self, backbone: nn.Module) -> nn.ModuleDict:
        model = nn.ModuleDict({'backbone': backbone})
        if self.with_neck:
            with torch.inference_mode():
                maps = backbone(torch.zeros(1, 3, 64, 64))
            model['neck'] = _FromStride8([x.shape[1] for x in maps],
                                         [64 // x.shape[2] for x in maps])
        randomise(model, self.seed)
        return model.eval()

    def _parts_of_config(self, path: str, options: dict[str, Any]) -> nn.ModuleDict:
        built = build_subject(path, options=options)
        kind = type(built).__name__
        parts = {part: module for part in PARTS
                 if isinstance(module := getattr(built, part, None), nn.Module)}
        if not parts:
            raise ConfigError(f'{kind} has none of the parts {", ".join(PARTS)}')
        if self.until:
            if self.until not in parts:
                raise UserError(f'--until {self.until}: the {kind} of {path} has only '
                                f'{", ".join(parts)}')
            kept = list(parts)[:list(parts).index(self.until) + 1]
            parts = {part: parts[part] for part in kept}
        elif hasattr(built, 'roi_head'):
            raise ConfigError(f'{kind} has a second stage, whose cost depends on the first one\'s '
                              'proposals: measure it --until neck')
        # What SyncBN does in inference is BN, and in training it works on GPUs alone.
        return revert_sync_batchnorm(nn.ModuleDict(parts)).eval()


def randomise(model: nn.ModuleDict, seed: int) -> None:
    """Give normalisations and bias tables values that they could have after training.

    Fresh ones are degenerate: a residual branch that starts at zero hides what is behind it. The
    statistics of BN become those of random images, so that activations keep a size that half
    precision can hold.

    Args:
        model: Parts by name; changed in place.
        seed: Of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            if norm.affine:
                norm.weight.uniform_(*_SCALES, generator=generator)
                norm.bias.normal_(0, 0.1, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith('attention_biases'):
                parameter.normal_(0, 0.5, generator=generator)
        with _learning(norms):
            x: Any = torch.randn(2, 3, _SIDE, _SIDE, generator=generator)
            for part in model.values():
                x = part(x)
        for norm in norms:
            if norm.running_var is not None:
                # A channel that was silent here would be amplified 300 times where it is not.
                norm.running_var.clamp_(min=0.1 * norm.running_var.mean().item())
    model.eval()


@contextmanager
def _learning(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let BN take over the statistics of what passes."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _take_weights(theirs: nn.ModuleDict, ours: nn.ModuleDict) -> bool:
    """Load our backbone's weights, and our neck's, into timm's port.

    Returns:
        bool: Whether both compute the same; not so where their windows differ, and bias tables
        had to be resized.
    """
    state = convert_state(ours['backbone'].state_dict(), TIMM_FEATURES).state
    wanted = theirs['backbone'].state_dict()
    same = True
    for key, value in state.items():
        if key.endswith('attention_biases') and value.shape != wanted[key].shape:
            state[key] = resize_attention_biases(value, round(wanted[key].shape[1] ** 0.5))
            same = False
    theirs['backbone'].load_state_dict(state)
    if 'neck' in ours:
        theirs['neck'].load_state_dict(ours['neck'].state_dict())
    return same


def _with_query(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME?KEY=VALUE&KEY=VALUE``; whole numbers become such."""
    plain, _, query = name.partition('?')
    options: dict[str, Any] = {}
    for pair in filter(None, query.split('&')):
        key, equals, value = pair.partition('=')
        if not key or not equals:
            raise UserError(f'{name}: what follows the ? must be KEY=VALUE pairs, joined by &')
        options[key] = int(value) if value.isdigit() else value
    return plain, options
