"""Load a state dict of any known layout into a backbone, and account for every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..errors import CheckpointError
from .bias_table import is_resizable, resize_attention_biases
from .containers import strip_containers
from .key_maps import LAYOUTS, NATIVE
from .structure import describe_weights, find_prefixes, infer_structure

__all__ = ['LoadReport', 'load_backbone_weights', 'translate_backbone_state']

_BIAS_TABLE = 'attention_biases'
_COUNTER = 'num_batches_tracked'  # unused unless BN has no momentum


@dataclass
class LoadReport:
    """An account of every tensor of a checkpoint and of the model that receives it.

    Attributes:
        layout: Name of the checkpoint's key layout.
        loaded: Our names of the tensors that received a value, including resized ones.
        resized: Bias tables resized to another window size: 'name: 16 -> 49'.
        dropped: Keys of the checkpoint that are known and not needed.
        unexpected: Keys of the checkpoint that no rule covers.
        missing: Our names of the tensors for which the checkpoint has no value.
        mismatched: Tensors of another shape: 'name: (8,) in the checkpoint, (16,) here'.
    """

    layout: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True if no tensor of either side is unexpected, missing or mismatched."""
        return not (self.unexpected or self.missing or self.mismatched)

    def __str__(self) -> str:
        text = (f'{self.layout} layout: {len(self.loaded)} tensors loaded '
                f'({len(self.resized)} of them resized), {len(self.dropped)} dropped, '
                f'{len(self.missing)} missing')
        lists = {'dropped': list(dict.fromkeys(map(_family, self.dropped))), **{
            name: getattr(self, name) for name in ('missing', 'unexpected', 'mismatched')}}
        for name, entries in lists.items():
            if entries:
                more = f', and {len(entries) - 5} more' if len(entries) > 5 else ''
                text += f'; {name}: ' + ', '.join(entries[:5]) + more
        return text


def _family(key: str) -> str:
    """Return the group under which a dropped key is listed."""
    if key.endswith('.attention_bias_idxs'):
        return '*.attention_bias_idxs'
    return f'{key.split(".")[0]}.*'


def translate_backbone_state(state: Mapping[str, Tensor], target: Mapping[str, Tensor],
                             source: str = 'the checkpoint'
                             ) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename the tensors of a backbone to our names and resize its bias tables.

    Args:
        state: Keys of one of `LAYOUTS`, without a prefix.
        target: The state dict of the receiving backbone; only its names and shapes are read.
        source: File or address of the state dict, for the error.

    Returns:
        tuple: The tensors under our names, with unexpected keys unchanged, and the report.

    Raises:
        CheckpointError: If ``state`` is an export with BN folded into the convolutions.
    """
    structure = infer_structure(state)
    if structure and structure.fused:
        raise CheckpointError(
            f'{source} is a fused export in the {structure.layout.name} layout: BN is folded into '
            'its convolutions, which can\'t be undone; use the checkpoint that it was made from, '
            'or published weights (evit://efficientvit_m0 to evit://efficientvit_m5)')
    tables = [layout.table(target) for layout in LAYOUTS]
    matches = [sum(key in table for key in state) for table in tables]
    best = matches.index(max(matches))
    layout, table = LAYOUTS[best], tables[best]
    report = LoadReport(layout.name)
    num_stages = 1 + max(int(m[1]) for m in map(NATIVE.stage.match, target) if m)
    translated: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in table:
            if layout.is_dropped(key, num_stages):
                report.dropped.append(key)
            else:
                report.unexpected.append(key)
                translated[key] = value
            continue
        name, shape = table[key], tuple(target[table[key]].shape)
        if name.endswith(_BIAS_TABLE) and is_resizable(value, shape):
            report.resized.append(f'{name}: {value.shape[1]} -> {shape[1]}')
            value = resize_attention_biases(value, round(shape[1] ** 0.5))
        if tuple(value.shape) == shape:
            report.loaded.append(name)
        else:
            report.mismatched.append(
                f'{name}: {tuple(value.shape)} in the checkpoint, {shape} here')
        translated[name] = value
    report.missing = [name for name in target
                      if name not in translated and not name.endswith(_COUNTER)]
    return translated, report


class Backbone(Protocol):
    """A backbone that translates state dicts of any known layout to its own keys."""

    def translate_state(self, state: Mapping[str, Tensor], source: str
                        ) -> tuple[dict[str, Tensor], LoadReport]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...


def load_backbone_weights(backbone: Backbone, checkpoint: Any, *, source: str, prefix: str = ''
                          ) -> LoadReport:
    """Load a checkpoint of any known layout into a backbone, completely or not at all.

    Args:
        backbone: Receives the weights.
        checkpoint: Content of a file: a classifier, a detector or segmentor, or a backbone alone.
        source: Its file or address, for the error.
        prefix: Prefix of the backbone's keys, such as ``backbone.``; detected if the checkpoint
            contains only one backbone.

    Returns:
        LoadReport: The account. The parts of a detector outside its backbone count as dropped.

    Raises:
        CheckpointError: If a key is unexpected, a tensor is missing or of another shape, the
            weights are a fused export, or several backbones could be meant.
    """
    state = strip_containers(checkpoint, source)
    others: list[str] = []
    if not prefix:
        prefixes = find_prefixes(state)
        if len(prefixes) > 1:
            raise CheckpointError(f'{source} contains {len(prefixes)} backbones; choose one with '
                                  f'prefix= in init_cfg: {", ".join(map(repr, prefixes))}')
        if prefixes:
            prefix = prefixes[0]
        elif any(key.startswith('backbone.') for key in state):
            prefix = 'backbone.'
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        others = [key for key in state if not key.startswith(prefix)]
        state = {key.removeprefix(prefix): value for key, value in state.items()
                 if key.startswith(prefix)}
    translated, report = backbone.translate_state(state, source)
    report.dropped += others
    if not report.complete:
        raise CheckpointError(f'{source} does not fit this backbone (it looks like '
                              f'{describe_weights(state)}): {report}')
    backbone.load_state_dict(translated, strict=False)  # the counters may be missing
    return report
