"""Key layouts in which weights of this model are published."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

__all__ = ['LAYOUTS', 'MICROSOFT', 'NATIVE', 'TIMM', 'TIMM_FEATURES', 'Layout']

_Name = Callable[[re.Match], str]


@dataclass(frozen=True)
class Layout:
    """Naming scheme of one publisher for the tensors of the backbone.

    Attributes:
        name: Shown in messages.
        rules: Pairs of a pattern for our name of a tensor and a function from its match to the
            publisher's name. Every name must fully match exactly one pattern.
        dropped: Patterns of published keys that a backbone has no use for.
        stage: Pattern of the prefix of a stage's keys; its group is the number of the stage.
        first_stage: Number of the first stage.
        fused: Maps the published name of a convolution's tensor to its name in the publisher's
            fused export, where BN is folded into the convolution; None if no such export exists.
    """

    name: str
    rules: tuple[tuple[re.Pattern, _Name], ...]
    dropped: tuple[re.Pattern, ...]
    stage: re.Pattern
    first_stage: int
    fused: Callable[[str], str] | None = None

    def published_key(self, key: str) -> str:
        """Return the publisher's name of our tensor ``key``.

        Raises:
            KeyError: If the layout has no name for it.
        """
        for pattern, name in self.rules:
            match = pattern.fullmatch(key)
            if match:
                return name(match)
        raise KeyError(f'no rule of the {self.name} layout covers {key}')

    def table(self, keys: Iterable[str]) -> dict[str, str]:
        """Map the publisher's names to ours.

        Args:
            keys: Our names of a backbone's tensors. Those without a published name are left out,
                such as the additional ones of a block with several attentions.
        """
        table = {}
        for key in keys:
            with suppress(KeyError):
                table[self.published_key(key)] = key
        return table

    def is_dropped(self, key: str, num_stages: int) -> bool:
        """Return whether the published ``key`` is known and not needed.

        Args:
            key: A name of the publisher's.
            num_stages: Number of stages of the backbone, which may lack the last ones.
        """
        stage = self.stage.match(key)
        if stage and int(stage[1]) - self.first_stage >= num_stages:
            return True
        return any(pattern.fullmatch(key) for pattern in self.dropped)


def _rules(*, stem: Callable[[int], str], block: Callable[[int, int], str],
           downsample: Callable[[int], str], residuals: tuple[str, str], merging: str, conv: str,
           linear: str) -> tuple[tuple[re.Pattern, _Name], ...]:
    """Return the rules of the reference implementation or one of its ports.

    They share the names inside a block, and differ in the paths of the blocks and in the name of a
    convolution.

    Args:
        stem: Path of a layer of the stem, by its number.
        block: Path of an attention block, by stage and number.
        downsample: Path of the downsampling before a stage, by stage.
        residuals: Names in it of the residual parts before and after the patch merging.
        merging: Name in it of the patch merging.
        conv: Name of the convolution in a conv-BN pair.
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
    re.compile(r'.*\.attention_bias_idxs'),  # computed from the window size
)

NATIVE = Layout('evit-mm', ((re.compile('.*'), lambda match: match[0]),),
                (re.compile(r'head\.(norm|linear)\..*'),),  # the classifier of a converted file
                re.compile(r'stages\.(\d+)\.'), first_stage=0)
"""The names of this package."""

MICROSOFT = Layout('Microsoft', _rules(
    stem=lambda layer: f'patch_embed.{2 * layer}',
    # `blocks1` is the first stage. `blocks2` and `blocks3` begin with the three modules of a
    # downsampling, so their attention blocks start at index 3.
    block=lambda stage, block: f'blocks{stage + 1}.{block + (3 if stage else 0)}',
    downsample=lambda stage: f'blocks{stage + 1}',
    residuals=('0', '2'), merging='1', conv='c', linear='l',
), _CLASSIFIER_AND_INDEX, re.compile(r'blocks(\d+)\.'), first_stage=1,
    fused=lambda key: key.replace('.c.', '.'))
"""The names of the reference implementation, in classifiers and detectors."""

TIMM = _timm('timm', '.')
"""The names of timm's port."""

TIMM_FEATURES = _timm('timm features_only', '_')
"""The names of timm's port built with ``features_only=True``."""

LAYOUTS = (NATIVE, MICROSOFT, TIMM, TIMM_FEATURES)
