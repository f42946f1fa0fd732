"""Fit a state dict of any known layout to a backbone, and account for every tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError
from .bias_table import is_resizable, resize_attention_biases
from .key_maps import LAYOUTS, NATIVE, strip_containers
from .structure import find_prefixes, recognise

__all__ = ['LoadReport', 'load_backbone_weights', 'translate_backbone_state']

_BIAS_TABLE = 'attention_biases'
_COUNTER = 'num_batches_tracked'  # does nothing unless a BN has no momentum


@dataclass
class LoadReport:
    """What became of every tensor of a checkpoint and of a model.

    Attributes:
        layout: Whose key names the checkpoint has.
        loaded: Names of our tensors that got a value, resized ones included.
        resized: Bias tables that were resized to another window: 'name: 16 -> 49'.
        dropped: Keys of the checkpoint that are known and not needed.
        unexpected: Keys of the checkpoint that no rule explains.
        missing: Names of our tensors that the checkpoint has no value for.
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
        """Whether every tensor on both sides is explained."""
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
    """What dropped keys are listed by: a module of the model, or what they hold."""
    if key.endswith('.attention_bias_idxs'):
        return '*.attention_bias_idxs'
    return f'{key.split(".")[0]}.*'


def translate_backbone_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor],
                             source: str = 'the checkpoint'
                             ) -> tuple[dict[str, Tensor], LoadReport]:
    """Rename a backbone's tensors to our names and resize its bias tables.

    Args:
        state: Keys of one of `LAYOUTS`, without a prefix.
        wanted: The backbone's own state dict; only names and shapes are read.
        source: Where the state dict came from, for the error.

    Returns:
        tuple: The tensors under our names, unexplained keys under their own, and the account.

    Raises:
        CheckpointError: If it is an export with BN folded into the convolutions.
    """
    structure = recognise(state)
    if structure and structure.fused:
        raise CheckpointError(
            f'{source} is a fused export in the {structure.layout.name} layout: BN is folded into '
            'its convolutions, which can\'t be undone; take the checkpoint that it was made from, '
            'or published weights (evit://efficientvit_m0 to evit://efficientvit_m5)')
    tables = [layout.table(wanted) for layout in LAYOUTS]
    matches = [sum(key in table for key in state) for table in tables]
    best = matches.index(max(matches))
    layout, table = LAYOUTS[best], tables[best]
    report = LoadReport(layout.name)
    num_stages = 1 + max(int(m[1]) for m in map(NATIVE.stage.match, wanted) if m)
    translated: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in table:
            if layout.is_dropped(key, num_stages):
                report.dropped.append(key)
            else:
                report.unexpected.append(key)
                translated[key] = value
            continue
        name, shape = table[key], tuple(wanted[table[key]].shape)
        if name.endswith(_BIAS_TABLE) and is_resizable(value, shape):
            report.resized.append(f'{name}: {value.shape[1]} -> {shape[1]}')
            value = resize_attention_biases(value, round(shape[1] ** 0.5))
        if tuple(value.shape) == shape:
            report.loaded.append(name)
        else:
            report.mismatched.append(
                f'{name}: {tuple(value.shape)} in the checkpoint, {shape} here')
        translated[name] = value
    report.missing = [name for name in wanted
                      if name not in translated and not name.endswith(_COUNTER)]
    return translated, report


def load_backbone_weights(backbone: nn.Module, checkpoint: Any, *, source: str, prefix: str = '',
                          describe: Callable[[Mapping[str, Tensor]], str] | None = None
                          ) -> LoadReport:
    """Load a checkpoint of any known layout into a backbone; all of it, or nothing.

    Args:
        backbone: Receives the weights.
        checkpoint: What `torch.load` gave: a classifier, a detector, or a backbone alone.
        source: File or address, for the error.
        prefix: What precedes the backbone's keys, such as ``backbone.``; found by itself where
            the checkpoint holds only one backbone.
        describe: Says what model the state dict looks like, for the error.

    Returns:
        LoadReport: The account. Parts of a detector beside its backbone count as dropped.

    Raises:
        CheckpointError: If a key is not explained, a tensor is missing or of another shape, or
            the weights are a fused export.
    """
    state = strip_containers(checkpoint, source)
    others: list[str] = []
    if not prefix:
        found = find_prefixes(state)
        if len(found) > 1:
            raise CheckpointError(f'{source} holds {len(found)} backbones; name one with prefix= '
                                  f'in init_cfg: {", ".join(map(repr, found))}')
        if found:
            prefix = found[0]
        elif any(key.startswith('backbone.') for key in state):
            prefix = 'backbone.'
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        others = [key for key in state if not key.startswith(prefix)]
        state = {key.removeprefix(prefix): value for key, value in state.items()
                 if key.startswith(prefix)}
    translated, report = translate_backbone_state(state, backbone.state_dict(), source)
    report.dropped += others
    if not report.complete:
        looks_like = f' (it looks like {describe(state)})' if describe else ''
        raise CheckpointError(f'{source} does not fit this backbone{looks_like}: {report}')
    backbone.load_state_dict(translated, strict=False)  # the counters may be missing
    return report
