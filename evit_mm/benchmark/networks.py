"""Build the networks to measure, their peers, and the weights that they share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from ..arch import ARCHS
from ..checkpoint import resize_attention_biases
from ..checkpoint.convert import convert_state
from ..checkpoint.key_maps import TIMM_FEATURES
from ..errors import ConfigError, UserError
from ..models import EfficientViTFPN
from .model_factory import TIMM, TORCHVISION, build_model, is_config
from .timing import raise_user_errors

__all__ = ['PARTS', 'Network', 'build_networks', 'default_peers', 'randomize']

PARTS = ('backbone', 'neck', 'bbox_head', 'decode_head')
"""Attributes of single-stage detectors and segmentors that inference runs, in order."""

_TIMM_PREFIX = f'{TIMM}efficientvit_'
_PEERS_FOR_ALL = (f'{TORCHVISION}resnet50', f'{TORCHVISION}mobilenet_v3_large')
_NECK_WIDTH = 256
_NECK_LEVELS = 5
_NUM_CLASSES = 80  # COCO's
_FINEST_STRIDE = 8
_SIDE = 448  # 64 x 7: the smallest images that fill a window of 7 in every stage
_BN_SCALES = (0.2, 0.6)  # larger ones saturate attention, which then amplifies rounding errors
_BN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Network:
    """A network as built: float32, on the CPU, in eval mode, nothing folded.

    Attributes:
        name: Its name; of a config, the file name without suffix.
        model: Its parts by name, in the order in which they run; None if it can't be built.
        arch: ``'m0'`` to ``'m5'`` for our backbones and timm's ports of them.
        weights: Networks with equal ``weights`` compute the same, so that outputs can be compared.
        peer: Whether it is timm's or torchvision's.
        failure: Why it can't be built, if so.
    """

    name: str
    model: nn.ModuleDict | None
    arch: str | None = None
    weights: str = ''
    peer: bool = False
    failure: str | None = None


class _FromStride8(nn.Module):
    """RetinaNet's neck for any backbone: five levels from stride 8."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.skipped = sum(stride < _FINEST_STRIDE for stride in strides)
        doublings = (strides[self.skipped] // _FINEST_STRIDE).bit_length() - 1
        self.fpn = EfficientViTFPN(channels[self.skipped:], _NECK_WIDTH, _NECK_LEVELS,
                                   num_extra_trans_convs=doublings,
                                   in_strides=strides[self.skipped:])

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map the backbone's feature maps, finest first, to the pyramid."""
        return self.fpn(tuple(maps)[self.skipped:])


def default_peers(names: Iterable[str]) -> list[str]:
    """Return the peers of our backbones: timm's port of each, and two widely used backbones.

    Raises:
        UserError: If none of the names is a backbone of ours.
    """
    archs = [name.lower() for name in names if name.lower() in ARCHS]
    if not archs:
        raise UserError('--peers needs a backbone (m0 to m5) among the models')
    return [*(_TIMM_PREFIX + arch for arch in archs), *_PEERS_FOR_ALL]


def build_networks(names: Sequence[str], *, options: Mapping[str, Any] | None = None,
                   variants: Iterable[tuple[str, Mapping[str, Any]]] = (), with_neck: bool = False,
                   with_head: bool = False, until: str | None = None, peers: Iterable[str] = (),
                   seed: int = 0) -> list[Network]:
    """Build networks with random weights that are not degenerate; see `randomize`.

    timm's port of a backbone of ours gets the same weights and, as ours, windows of 7 in every
    stage; for its default image size of 224 timm builds the last stage with a window of 4. The name
    ``timm://efficientvit_m4?img_size=224`` builds that.

    Args:
        names: Names for `build_model`; timm's may be followed by ``?KEY=VALUE&KEY=VALUE``, which
            are passed to timm.
        options: Options of `build_model` for all names but timm's and torchvision's.
        variants: Title and additional options of each variant of the model; only with one name.
        with_neck: Whether to put RetinaNet's neck after backbones.
        with_head: Whether to put RetinaNet's neck and head after backbones.
        until: Last part of a config's model to keep.
        peers: More names, such as `default_peers`; one that can't be built is in the list with the
            reason.
        seed: Seed of the weights.

    Raises:
        UserError: If a network can't be built or measured.
    """
    variants = list(variants)
    if variants and len(names) > 1:
        raise UserError(f'--variant needs a single model, but there are {len(names)}')
    if until and (with_neck or with_head):
        raise UserError('--until is for configs, --with-neck and --with-head for backbones: pass '
                        'one of them')
    builder = _Builder(dict(options or {}), with_neck or with_head, with_head, until, seed)
    networks = [builder.build(name) for name in dict.fromkeys(names)]
    for name, changes in variants:
        networks.append(builder.build(names[0], changes, name))
    present = {network.name for network in networks}
    for name in peers:
        if name in present:
            continue
        try:
            networks.append(builder.build(name))
        except UserError as error:
            networks.append(Network(name, None, peer=True, failure=str(error)))
    return networks


@dataclass
class _Builder:
    """What all networks of a run share, and our backbones so far by their arch."""

    options: dict[str, Any]
    with_neck: bool
    with_head: bool
    until: str | None
    seed: int
    ours: dict[str, nn.ModuleDict] = field(default_factory=dict)

    def build(self, name: str, changes: Mapping[str, Any] | None = None, title: str | None = None
              ) -> Network:
        torch.manual_seed(self.seed)
        if name.startswith((TIMM, TORCHVISION)):
            if changes:
                raise UserError(f'--variant can\'t change {name}, only our backbones and configs')
            return self._build_peer(name)
        if self.with_neck and is_config(name):
            flag = '--with-head' if self.with_head else '--with-neck'
            raise UserError(f'{flag} is for backbones, but {name} is a config')
        if self.until and not is_config(name):
            raise UserError(f'--until is for configs, but {name} is a backbone')
        options = {**self.options, **(changes or {})}
        if is_config(name):
            title = title or Path(name).stem
            model = self._build_parts(name, options)
            self._randomize(title, model)
            return Network(title, model, weights=title)
        arch, title = name.lower(), title or name.lower()
        backbone = build_model(name, options={'norm_eval': True, **options})
        model = self._randomized(name, backbone)
        if not options:
            self.ours[arch] = model
        # With options it may not compute the same as timm's port.
        return Network(title, model, arch if arch in ARCHS else None,
                       title if options else arch)

    def _build_peer(self, name: str) -> Network:
        plain, options = _split_query(name)
        arch = plain.removeprefix(_TIMM_PREFIX).partition('.')[0]
        if not plain.startswith(_TIMM_PREFIX) or arch not in ARCHS:
            backbone = build_model(plain, features_only=True, options=options)
            return Network(name, self._randomized(name, backbone), weights=name, peer=True)
        backbone = build_model(plain, features_only=True, options={'img_size': _SIDE, **options})
        model = self._assemble(backbone)
        same = _copy_weights(self._ours(arch), model)
        return Network(name, model, arch, arch if same else name, peer=True)

    def _ours(self, arch: str) -> nn.ModuleDict:
        """Return our backbone without options."""
        if arch not in self.ours:
            torch.manual_seed(self.seed)
            self.ours[arch] = self._randomized(
                arch, build_model(arch, options={'norm_eval': True}))
        return self.ours[arch]

    def _randomized(self, name: str, backbone: nn.Module) -> nn.ModuleDict:
        model = self._assemble(backbone)
        self._randomize(name, model)
        return model

    def _randomize(self, name: str, model: nn.ModuleDict) -> None:
        # The first run of a model, which shows whether its parts fit together.
        with raise_user_errors(f'{name} can\'t run on {_SIDE}x{_SIDE}', torch.device('cpu')):
            randomize(model, self.seed)

    def _assemble(self, backbone: nn.Module) -> nn.ModuleDict:
        """Return a backbone and, if asked for, its neck and head."""
        model = nn.ModuleDict({'backbone': backbone})
        if self.with_neck:
            with torch.inference_mode():
                maps = backbone(torch.zeros(1, 3, 64, 64))
            model['neck'] = _FromStride8([x.shape[1] for x in maps],
                                         [64 // x.shape[2] for x in maps])
        if self.with_head:
            from mmdet.models.dense_heads import RetinaHead

            model['bbox_head'] = RetinaHead(_NUM_CLASSES, _NECK_WIDTH)
        return model.eval()

    def _build_parts(self, path: str, options: dict[str, Any]) -> nn.ModuleDict:
        built = build_model(path, options=options)
        kind = type(built).__name__
        parts = {part: module for part in PARTS
                 if isinstance(module := getattr(built, part, None), nn.Module)}
        if not parts:
            raise ConfigError(f'the {kind} of {path} has none of the parts {", ".join(PARTS)}')
        if self.until:
            if self.until not in parts:
                raise UserError(f'--until {self.until}: the {kind} of {path} has only '
                                f'{", ".join(parts)}')
            kept = list(parts)[:list(parts).index(self.until) + 1]
            parts = {part: parts[part] for part in kept}
        elif hasattr(built, 'roi_head'):
            raise ConfigError(f'{kind} has a second stage, whose time depends on the proposals of '
                              'the first: measure it with --until neck')
        # SyncBN is BN in inference, and trains on GPUs only.
        return revert_sync_batchnorm(nn.ModuleDict(parts)).eval()


def randomize(model: nn.ModuleDict, seed: int) -> None:
    """Set BN and bias tables to values that they could have after training, in place.

    Initial ones are degenerate: a residual branch with a scale of zero hides its layers. BN takes
    its statistics from random images, so that activations stay in the range of half precision.

    Args:
        model: Parts by name.
        seed: Seed of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    norms: list[Any] = [module for module in model.modules() if isinstance(module, _BN)]
    with torch.no_grad():
        for norm in norms:
            if norm.affine:
                norm.weight.uniform_(*_BN_SCALES, generator=generator)
                norm.bias.normal_(0, 0.1, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith('attention_biases'):
                parameter.normal_(0, 0.5, generator=generator)
        with _replacing_statistics(norms):
            x: Any = torch.randn(2, 3, _SIDE, _SIDE, generator=generator)
            for part in model.values():
                x = part(x)
        for norm in norms:
            if norm.running_var is not None:
                # A channel without variance here would be amplified 300 times elsewhere.
                norm.running_var.clamp_(min=0.1 * norm.running_var.mean().item())
    model.eval()


@contextmanager
def _replacing_statistics(norms: list[Any]) -> Iterator[None]:
    """Let BN replace its statistics by those of the maps that it normalises."""
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


def _copy_weights(ours: nn.ModuleDict, theirs: nn.ModuleDict) -> bool:
    """Copy the weights of our backbone, neck and head into timm's port.

    Returns:
        bool: Whether both compute the same; they don't if their windows differ, so that bias
        tables had to be resized.
    """
    state = convert_state(ours['backbone'].state_dict(), TIMM_FEATURES).state
    target = theirs['backbone'].state_dict()
    same = True
    for key, value in state.items():
        if key.endswith('attention_biases') and value.shape != target[key].shape:
            state[key] = resize_attention_biases(value, round(target[key].shape[1] ** 0.5))
            same = False
    theirs['backbone'].load_state_dict(state)
    for part in ours.keys() - {'backbone'}:
        theirs[part].load_state_dict(ours[part].state_dict())
    return same


def _split_query(name: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME?KEY=VALUE&KEY=VALUE``; values of digits become integers."""
    plain, _, query = name.partition('?')
    options: dict[str, Any] = {}
    for pair in filter(None, query.split('&')):
        key, equals, value = pair.partition('=')
        if not key or not equals:
            raise UserError(f'{name}: the part after ? must be KEY=VALUE pairs joined by &')
        options[key] = int(value) if value.isdigit() else value
    return plain, options
