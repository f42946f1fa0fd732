"""The key layouts in which weights of this model are published."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .containers import find_weights

__all__ = ['LAYOUTS', 'Layout', 'MICROSOFT', 'NATIVE', 'TIMM', 'strip_containers']

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
        fused: From the name of a convolution's tensor to its name in the publisher's fused
            export, where BN is folded into it; None where there is no such export.
    """

    name: str
    rules: tuple[tuple[re.Pattern, _Name], ...]
    dropped: tuple[re.Pattern, ...]
    stage: re.Pattern
    first_stage: int
    fused: Callable[[str], str] | None = None

    def published_key(self, key: str) -> str:
        """The publisher's name of our tensor ``key``."""
        for pattern, name in self.rules:
            match = pattern.fullmatch(key)
            if match:
                return name(match)
        raise KeyError(f'no rule of the {self.name} layout covers {key}')

    def table(self, keys: Iterable[str]) -> dict[str, str]:
        """Our names by the publisher's, for those of a backbone's ``keys`` that it has names for.

        A backbone with several attentions or feed-forward parts in a row has more than those.
        """
        table = {}
        for key in keys:
            with suppress(KeyError):
                table[self.published_key(key)] = key
        return table

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


def _rules(*, stem: Callable[[int], str], block: Callable[[int, int], str],
           downsample: Callable[[int], str], residuals: tuple[str, str], merging: str, conv: str,
           linear: str) -> tuple[tuple[re.Pattern, _Name], ...]:
    """The rules of the reference implementation and its ports.

    They share the names inside a block, and differ in where things are and what a convolution is
    called.

    Args:
        stem: Path of a layer of the stem, by number.
        block: Path of an attention block, by stage and number.
        downsample: Path of what leads to a stage.
        residuals: In there, the names of the parts before and behind the merging.
        merging: In there, the name of the merging itself.
        conv: Name of the convolution beside a BN.
        linear: Name of the classifier's linear layer.
    """
    def leaf(match: re.Match) -> str:
        module = {'conv': conv, 'norm': 'bn'}[match['part']]
        return f'{module}.{match["tensor"]}'

    def in_block(match: re.Match) -> str:
        return block(int(match['stage']), int(match['block']))

    def in_downsample(match: re.Match) -> str:
        return downsample(int(match['stage']))

    def residual(match: re.Match) -> str:
        return f'{in_downsample(match)}.{residuals[int(match["n"]) - 1]}'

    conv_norm = r'\.(?P<part>conv|norm)\.(?P<tensor>\w+)'
    blocks = r'stages\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)'
    downsamples = r'stages\.(?P<stage>[1-9]\d*)\.downsample'
    pointwise = {'expand': 'pw1', 'project': 'pw2'}
    steps = {'expand': 'conv1', 'depthwise': 'conv2', 'project': 'conv3'}
    gate = {'reduce': 'fc1', 'expand': 'fc2'}
    attention = {'qkv': 'qkvs', 'query_conv': 'dws'}
    rules: list[tuple[str, _Name]] = [
        (r'stem\.(?P<layer>\d)' + conv_norm,
         lambda m: f'{stem(int(m["layer"]))}.{leaf(m)}'),
        (blocks + r'\.dw_conv(?P<n>[12])' + conv_norm,
         lambda m: f'{in_block(m)}.dw{int(m["n"]) - 1}.m.{leaf(m)}'),
        (blocks + r'\.ffn(?P<n>[12])\.(?P<pw>expand|project)' + conv_norm,
         lambda m: f'{in_block(m)}.ffn{int(m["n"]) - 1}.m.{pointwise[m["pw"]]}.{leaf(m)}'),
        (blocks + r'\.attn\.attention_biases',
         lambda m: f'{in_block(m)}.mixer.m.attn.attention_biases'),
        (blocks + r'\.attn\.(?P<list>qkv|query_conv)\.(?P<head>\d+)' + conv_norm,
         lambda m: f'{in_block(m)}.mixer.m.attn.{attention[m["list"]]}.{m["head"]}.{leaf(m)}'),
        (blocks + r'\.attn\.proj' + conv_norm,
         lambda m: f'{in_block(m)}.mixer.m.attn.proj.1.{leaf(m)}'),
        (downsamples + r'\.dw_conv(?P<n>[12])' + conv_norm,
         lambda m: f'{residual(m)}.0.m.{leaf(m)}'),
        (downsamples + r'\.ffn(?P<n>[12])\.(?P<pw>expand|project)' + conv_norm,
         lambda m: f'{residual(m)}.1.m.{pointwise[m["pw"]]}.{leaf(m)}'),
        (downsamples + r'\.merging\.(?P<step>expand|depthwise|project)' + conv_norm,
         lambda m: f'{in_downsample(m)}.{merging}.{steps[m["step"]]}.{leaf(m)}'),
        (downsamples + r'\.merging\.squeeze_excite\.(?P<fc>reduce|expand)\.(?P<tensor>\w+)',
         lambda m: f'{in_downsample(m)}.{merging}.se.{gate[m["fc"]]}.{m["tensor"]}'),
        (r'head\.norm\.(?P<tensor>\w+)', lambda m: f'head.bn.{m["tensor"]}'),
        (r'head\.linear\.(?P<tensor>\w+)', lambda m: f'head.{linear}.{m["tensor"]}'),
    ]
    return tuple((re.compile(pattern), name) for pattern, name in rules)


def _timm(name: str, separator: str) -> Layout:
    return Layout(name, _rules(
        stem=lambda layer: f'patch_embed{separator}conv{layer + 1}',
        block=lambda stage, block: f'stages{separator}{stage}.blocks.{block}',
        downsample=lambda stage: f'stages{separator}{stage}.downsample',
        residuals=('res1', 'res2'), merging='patchmerge', conv='conv', linear='linear',
    ), _CLASSIFIER_AND_INDEX, re.compile(rf'stages{re.escape(separator)}(\d+)\.'), first_stage=0,
        fused=lambda key: key.replace('.conv.', '.'))


_CLASSIFIER_AND_INDEX = (
    re.compile(r'head\..*'),  # the ImageNet classifier, plain and fused
    re.compile(r'.*\.attention_bias_idxs'),  # follows from the window
)

NATIVE = Layout('evit-mm', ((re.compile('.*'), lambda match: match[0]),),
                (re.compile(r'head\.(norm|linear)\..*'),),  # the classifier in a converted file
                re.compile(r'stages\.(\d+)\.'), first_stage=0)
"""Our own names."""

MICROSOFT = Layout('Microsoft', _rules(
    stem=lambda layer: f'patch_embed.{2 * layer}',
    # Its `blocks1` is the first stage; `blocks2` and `blocks3` begin with the three parts of a
    # downsampling, so that their attention blocks start at index 3.
    block=lambda stage, block: f'blocks{stage + 1}.{block + (3 if stage else 0)}',
    downsample=lambda stage: f'blocks{stage + 1}',
    residuals=('0', '2'), merging='1', conv='c', linear='l',
), _CLASSIFIER_AND_INDEX, re.compile(r'blocks(\d+)\.'), first_stage=1,
    fused=lambda key: key.replace('.c.', '.'))
"""The reference implementation's names, for classifiers and detectors."""

TIMM = _timm('timm', '.')
"""The names of timm's port."""

TIMM_FEATURES = _timm('timm features_only', '_')
"""The names that timm's port has when it is built with ``features_only=True``."""

LAYOUTS = (NATIVE, MICROSOFT, TIMM, TIMM_FEATURES)


def strip_containers(checkpoint: Any, source: str = 'the checkpoint') -> dict[str, Any]:
    """Take the tensors out of what surrounds them in a file.

    Args:
        checkpoint: A state dict, or a dict that holds one; see `evit_mm.checkpoint.containers`.
        source: Where it came from, for the error.

    Returns:
        dict: The state dict, without what wrappers such as DDP put before keys.

    Raises:
        CheckpointError: If there is no state dict in it.
    """
    weights = find_weights(checkpoint)
    if weights is None:
        held = list(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else []
        raise CheckpointError(f'{source} holds no weights in a place that is known here'
                              + f' (it holds {", ".join(held[:8])})' * bool(held))
    return weights.state
