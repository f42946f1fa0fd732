"""The key layouts in which weights of this model are published."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

__all__ = ['LAYOUTS', 'Layout', 'MICROSOFT', 'NATIVE', 'strip_containers']

_Name = Callable[[re.Match], str]


@dataclass(frozen=True)
class Layout:
    """How one publisher names the backbone's tensors.

    Attributes:
        name: For people.
        rules: Pairs of a pattern over our names and the publisher's name for it. Each name must
            match exactly one pattern, in full.
        dropped: Patterns of the publisher's keys that have no place in a backbone.
        stage: Pattern of the start of a stage's keys, with the stage's number as its group.
        first_stage: Number of the first stage.
    """

    name: str
    rules: tuple[tuple[re.Pattern, _Name], ...]
    dropped: tuple[re.Pattern, ...]
    stage: re.Pattern
    first_stage: int

    def published_key(self, key: str) -> str:
        """The publisher's name of our tensor ``key``."""
        for pattern, name in self.rules:
            match = pattern.fullmatch(key)
            if match:
                return name(match)
        raise KeyError(f'no rule of the {self.name} layout covers {key}')

    def table(self, keys: Iterable[str]) -> dict[str, str]:
        """Our names by the publisher's, for all of a backbone's ``keys``."""
        return {self.published_key(key): key for key in keys}

    def is_dropped(self, key: str, num_stages: int) -> bool:
        """Whether the publisher's ``key`` is known and not needed.

        Args:
            key: A key of the publisher's.
            num_stages: Stages that the backbone has; it may leave out the last ones.
        """
        stage = self.stage.match(key)
        if stage and int(stage[1]) - self.first_stage >= num_stages:
            return True
        return any(pattern.fullmatch(key) for pattern in self.dropped)


def _microsoft_rules() -> tuple[tuple[re.Pattern, _Name], ...]:
    """Our modules in the order of the published code.

    Its `blocks1` is the first stage; `blocks2` and `blocks3` begin with the three parts of a
    downsampling, so that their attention blocks start at index 3.
    """
    def leaf(match: re.Match) -> str:
        module = {'conv': 'c', 'norm': 'bn'}[match['part']]
        return f'{module}.{match["tensor"]}'

    def block(match: re.Match) -> str:
        stage = int(match['stage'])
        return f'blocks{stage + 1}.{int(match["block"]) + (3 if stage else 0)}'

    def downsample(match: re.Match) -> str:
        return f'blocks{int(match["stage"]) + 1}'

    conv_norm = r'\.(?P<part>conv|norm)\.(?P<tensor>\w+)'
    in_block = r'stages\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)'
    in_downsample = r'stages\.(?P<stage>[1-9]\d*)\.downsample'
    pointwise = {'expand': 'pw1', 'project': 'pw2'}
    merging = {'expand': 'conv1', 'depthwise': 'conv2', 'project': 'conv3'}
    gate = {'reduce': 'fc1', 'expand': 'fc2'}
    attention = {'qkv': 'qkvs', 'query_conv': 'dws'}
    rules: list[tuple[str, _Name]] = [
        (r'stem\.(?P<layer>\d)' + conv_norm,
         lambda m: f'patch_embed.{2 * int(m["layer"])}.{leaf(m)}'),
        (in_block + r'\.dw_conv(?P<n>[12])' + conv_norm,
         lambda m: f'{block(m)}.dw{int(m["n"]) - 1}.m.{leaf(m)}'),
        (in_block + r'\.ffn(?P<n>[12])\.(?P<pw>expand|project)' + conv_norm,
         lambda m: f'{block(m)}.ffn{int(m["n"]) - 1}.m.{pointwise[m["pw"]]}.{leaf(m)}'),
        (in_block + r'\.attn\.attention_biases',
         lambda m: f'{block(m)}.mixer.m.attn.attention_biases'),
        (in_block + r'\.attn\.(?P<list>qkv|query_conv)\.(?P<head>\d+)' + conv_norm,
         lambda m: f'{block(m)}.mixer.m.attn.{attention[m["list"]]}.{m["head"]}.{leaf(m)}'),
        (in_block + r'\.attn\.proj' + conv_norm,
         lambda m: f'{block(m)}.mixer.m.attn.proj.1.{leaf(m)}'),
        (in_downsample + r'\.dw_conv(?P<n>[12])' + conv_norm,
         lambda m: f'{downsample(m)}.{2 * int(m["n"]) - 2}.0.m.{leaf(m)}'),
        (in_downsample + r'\.ffn(?P<n>[12])\.(?P<pw>expand|project)' + conv_norm,
         lambda m: f'{downsample(m)}.{2 * int(m["n"]) - 2}.1.m.{pointwise[m["pw"]]}.{leaf(m)}'),
        (in_downsample + r'\.merging\.(?P<step>expand|depthwise|project)' + conv_norm,
         lambda m: f'{downsample(m)}.1.{merging[m["step"]]}.{leaf(m)}'),
        (in_downsample + r'\.merging\.squeeze_excite\.(?P<fc>reduce|expand)\.(?P<tensor>\w+)',
         lambda m: f'{downsample(m)}.1.se.{gate[m["fc"]]}.{m["tensor"]}'),
    ]
    return tuple((re.compile(pattern), name) for pattern, name in rules)


NATIVE = Layout('evit-mm', ((re.compile('.*'), lambda match: match[0]),), (),
                re.compile(r'stages\.(\d+)\.'), first_stage=0)
"""Our own names."""

MICROSOFT = Layout('Microsoft', _microsoft_rules(), (
    re.compile(r'head\..*'),  # the ImageNet classifier, plain and fused
    re.compile(r'.*\.attention_bias_idxs'),  # follows from the window
), re.compile(r'blocks(\d+)\.'), first_stage=1)
"""The reference implementation's names, for classifiers and detectors."""

LAYOUTS = (NATIVE, MICROSOFT)


def strip_containers(checkpoint: Any, source: str = 'the checkpoint') -> dict[str, Any]:
    """Take the tensors out of what surrounds them in a file.

    Args:
        checkpoint: A state dict, or a dict that holds one as ``state_dict`` or ``model``.
        source: Where it came from, for the error.

    Returns:
        dict: The state dict, without the ``module.`` that distributed training puts before keys.

    Raises:
        CheckpointError: If there is no state dict in it.
    """
    state = checkpoint
    for container in ('state_dict', 'model'):
        if isinstance(state, Mapping) and isinstance(state.get(container), Mapping):
            state = state[container]
            break
    if not isinstance(state, Mapping) or not any(hasattr(v, 'shape') for v in state.values()):
        raise CheckpointError(f'{source} holds no weights')
    state = {str(key): value for key, value in state.items() if hasattr(value, 'shape')}
    if all(key.startswith('module.') for key in state):
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    return state
