"""How alike the heads of a block are: the cosine of their attention maps (section 2.2).

What tools/analyze.py heads does: read images, run models, compare maps, print, draw.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn
from tqdm import tqdm

from ..benchmark import machine
from ..benchmark.figures import PALETTE, drawing, legend_columns
from ..benchmark.model_factory import TIMM, build_subject, is_config, load_weights, short_names
from ..benchmark.tables import format_table
from ..benchmark.timing import OUT_OF_MEMORY, reason
from ..engine.config import leaf_datasets, load_config, set_data_root
from ..engine.preflight import built_dataset, check_files
from ..errors import ConfigError, UserError
from ..models import ARCHS
from .attention_maps import AttentionMaps, capture_maps, drop_prefix_tokens
from .images import Preprocessing, evenly_spaced, files_fingerprint, list_images, read_image
from .results import Results

__all__ = ['BlockSimilarity', 'analyze_heads', 'head_similarity', 'pairwise_cosines']

CONVENTION = (
    'Cosine of two heads\' maps, each flattened to one vector of queries x keys per window (Swin, '
    'EfficientViT) or per image (ViT, DeiT). Maximum: of each head with any other head of its '
    'block; mean: of all pairs. Averaged over heads, windows and images; "all" over the blocks '
    'with two heads or more. Queries of padding are left out, its keys are not; what Swin masks '
    'counts as 0.')

_SAVED_EVERY = 32
"""Images after which the sums of a model that is not finished are written."""

_LINES = tuple(colour for name, colour in PALETTE.items() if name != 'yellow')
"""Colours of lines; a thin yellow one is hard to see on white."""

_STYLES = ('-', '--', '-.', ':')
_MARKERS = 'os^Dv<>P'
_MOST_TICKS = 14
_LINE = 100


@dataclass(frozen=True)
class BlockSimilarity:
    """How alike one block's heads are.

    Attributes:
        block: Path of the block inside the model.
        heads: Number of heads.
        windows: Windows that were averaged, of all images.
        tokens: Tokens of a window, or of an image.
        maximum: Largest cosine of a head with another one, mean over heads; None for one head.
        mean: Mean cosine of all pairs of heads; None for one head.
        maximum_per_head: What ``maximum`` is the mean of.
    """

    block: str
    heads: int
    windows: int
    tokens: int
    maximum: float | None
    mean: float | None
    maximum_per_head: tuple[float, ...]


def pairwise_cosines(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Cosine similarity of every pair of heads, per window.

    Args:
        maps: (windows, heads, queries, keys).
        inside: (windows, queries) bool, the queries that count; all, unless given.

    Returns:
        Tensor: (windows, heads, heads), float32, at most 1.
    """
    maps = maps.float()
    if inside is not None:
        maps = maps * inside[:, None, :, None]
    flat = F.normalize(maps.flatten(2), dim=2)
    return (flat @ flat.transpose(1, 2)).clamp(max=1)


class _Sums:
    """One block's cosines so far: the maps of no two batches are in memory at once."""

    def __init__(self, heads: int, tokens: int) -> None:
        self.heads, self.tokens, self.windows = heads, tokens, 0
        self.maximum = torch.zeros(heads, dtype=torch.float64)
        self.mean = torch.zeros(heads, dtype=torch.float64)

    def add(self, captured: AttentionMaps) -> None:
        """Add the windows of a batch."""
        self.windows += len(captured.maps)
        if self.heads == 1:
            return
        cosines = pairwise_cosines(captured.maps, captured.inside).cpu().double()
        own = torch.eye(self.heads, dtype=torch.bool)
        self.maximum += cosines.masked_fill(own, -1).amax(2).sum(0)
        self.mean += cosines.masked_fill(own, 0).sum((0, 2)) / (self.heads - 1)

    def plain(self) -> dict[str, Any]:
        """What JSON keeps exactly, for `restored`."""
        return {'heads': self.heads, 'tokens': self.tokens, 'windows': self.windows,
                'maximum': self.maximum.tolist(), 'mean': self.mean.tolist()}

    @classmethod
    def restored(cls, found: Mapping[str, Any]) -> '_Sums':
        """The sums that `plain` described."""
        sums = cls(found['heads'], found['tokens'])
        sums.windows = found['windows']
        for name in ('maximum', 'mean'):
            # None is what JSON has for numbers that are not finite.
            numbers = [float('nan') if number is None else number for number in found[name]]
            setattr(sums, name, torch.tensor(numbers, dtype=torch.float64))
        return sums

    def result(self, block: str) -> BlockSimilarity:
        """The averages over windows and heads."""
        if self.heads == 1:
            return BlockSimilarity(block, 1, self.windows, self.tokens, None, None, ())
        maximum, mean = self.maximum / self.windows, self.mean / self.windows
        if not mean.isfinite().all():
            raise UserError(f'the attention maps of block {block} have numbers that are not '
                            'finite: are its weights sound?')
        return BlockSimilarity(block, self.heads, self.windows, self.tokens, maximum.mean().item(),
                               mean.mean().item(), tuple(maximum.tolist()))


def head_similarity(model: nn.Module, batches: Iterable[Tensor], *, class_token: bool = True,
                    earlier: Mapping[str, Any] | None = None,
                    after_batch: Callable[[Callable[[], dict[str, Any]]], Any] = lambda sums: None
                    ) -> list[BlockSimilarity]:
    """Compare the attention maps of the heads of every block; see `CONVENTION`.

    Args:
        model: In inference mode; of the kinds that `capture_maps` knows.
        batches: Normalised images (B, 3, H, W), on the model's device.
        class_token: Whether tokens before those of the image belong to a map.
        earlier: Sums to go on from, of batches that are not repeated.
        after_batch: Called after each batch with a function that gives the sums so far.

    Returns:
        list[BlockSimilarity]: In the order in which the blocks run.

    Raises:
        UserError: If the model has no attention block of a known kind, or maps that are not
            finite.
    """
    sums = {block: _Sums.restored(found) for block, found in (earlier or {}).items()}

    def receive(captured: AttentionMaps) -> None:
        if not class_token:
            captured = drop_prefix_tokens(captured)
        _, heads, tokens, _ = captured.maps.shape
        sums.setdefault(captured.block, _Sums(heads, tokens)).add(captured)

    with capture_maps(model, receive), torch.inference_mode():
        for images in batches:
            model(images)
            after_batch(lambda: {block: found.plain() for block, found in sums.items()})
    return [found.result(block) for block, found in sums.items()]


def analyze_heads(options: Namespace) -> Results:
    """Analyse the models that ``options`` name; see `evit_mm.cli.analyze.heads`.

    Raises:
        UserError: If a model, a checkpoint, an image or a flag can't be used.
    """
    for name, number in (('--num-images', options.num_images), ('--batch', options.batch),
                         ('--shape', min(options.shape or (1,)))):
        if number < 1:
            raise UserError(f'{name} must be positive, got {number}')
    models = list(dict.fromkeys(options.models))
    if options.checkpoint and len(models) > 1:
        raise UserError('--checkpoint holds the weights of one MODEL, but '
                        f'{len(models)} are given: {", ".join(models)}')
    if options.data_root and not options.dataset:
        raise UserError('--data-root moves the data of --dataset, which is not given')
    device = machine.use(options.device, threads=options.threads, seed=options.seed)
    paths = _images(options)
    chosen = evenly_spaced(paths, options.num_images)
    results = Results(options.out / 'heads.json', {
        'convention': CONVENTION, 'class_token': options.class_token,
        'images': options.images or options.dataset, 'data_root': options.data_root,
        'num_images': len(chosen), 'of_images': len(paths), 'shape': options.shape,
        'seed': options.seed, 'pretrained': options.pretrained, 'checkpoint': options.checkpoint,
        'cfg_options': options.cfg_options}, overwrite=options.overwrite, wanted=models,
        data={f'what is in {options.images}' if options.images
              else f'the test data of {options.dataset}': files_fingerprint(chosen)})
    for name in models:
        if name not in results:
            results.add(name, _analyze(name, options, chosen, device, results))
    found = {name: results[name] for name in models}
    print(_report(found, results.settings))
    _draw(found, options.out / 'heads.png')
    print(f'written: {results.path} and {options.out / "heads.png"}')
    return results


def _analyze(name: str, options: Namespace, paths: Sequence[Path], device: torch.device,
             results: Results) -> dict[str, Any]:
    torch.manual_seed(options.seed)  # not what the models before it left
    model, weights = _model(name, options)
    preprocessing = _preprocessing(name, model, options.shape)
    # Neck and heads have no say in the maps, and a second stage needs more than images.
    backbone = getattr(model, 'backbone', None)
    runs = backbone if isinstance(backbone, nn.Module) else model
    partial = results.partial(name) or {'images': 0, 'blocks': {}}
    done = saved = partial['images']
    batches = _batches(paths[done:], preprocessing, options.batch, device, _label(name))

    def after_batch(sums: Callable[[], dict[str, Any]]) -> None:
        nonlocal done, saved
        done = min(done + options.batch, len(paths))
        if done - saved >= _SAVED_EVERY and done < len(paths):
            results.add_partial(name, {'images': done, 'blocks': sums()})
            saved = done

    height, width = preprocessing.shape
    try:
        blocks = head_similarity(runs.to(device), batches,
                                 class_token=options.class_token == 'keep',
                                 earlier=partial['blocks'], after_batch=after_batch)
    except UserError:
        raise
    except Exception as error:  # of others' models, at sizes and batches that they can't take
        why = reason(error)
        if why == OUT_OF_MEMORY:
            raise UserError(f'{device} has too little memory for {options.batch} images of '
                            f'{height}x{width} at once: pass a smaller --batch') from error
        advice = ('leave --shape out, or give it that size with --cfg-options '
                  'img_size="[HEIGHT,WIDTH]"' if name.startswith(TIMM) else 'pass another --shape')
        raise ConfigError(f'{name} can\'t take images of {height}x{width}: {advice} ({why})'
                          ) from error
    compared = [block for block in blocks if block.heads > 1]
    return {
        'weights': weights, 'preprocessing': str(preprocessing), 'images': len(paths),
        'maximum': _mean(block.maximum for block in compared),
        'mean': _mean(block.mean for block in compared),
        'blocks': [vars(block) for block in blocks]}


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def _model(name: str, options: Namespace) -> tuple[nn.Module, str]:
    """The model, and what its weights are."""
    changes = dict(options.cfg_options or {})
    if name.lower() in ARCHS and options.checkpoint:
        changes['init_cfg'] = dict(type='Pretrained', checkpoint=options.checkpoint)
    model = build_subject(name, pretrained=options.pretrained, options=changes)
    if not options.checkpoint:
        return model, 'published' if options.pretrained else f'random, seed {options.seed}'
    if name.lower() not in ARCHS:
        load_weights(model, name, options.checkpoint)
    return model, options.checkpoint


def _preprocessing(name: str, model: nn.Module, shape: Sequence[int] | None) -> Preprocessing:
    """What the model was trained with, as far as it says so."""
    usual = Preprocessing()
    if name.startswith(TIMM):
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(model)
        usual = Preprocessing(
            tuple(config['input_size'][1:]), config['crop_pct'], config['interpolation'],
            tuple(255 * value for value in config['mean']),
            tuple(255 * value for value in config['std']))
    elif is_config(name):
        # The whole image, as far as the shape allows it: detectors see no crop.
        usual = replace(usual, crop=1.0, interpolation='bilinear')
        given: Any = getattr(model, 'data_preprocessor', None)
        if isinstance(getattr(given, 'mean', None), Tensor):
            # Images are loaded as BGR; mmseg and mmengine spell the switch differently.
            to_rgb = any(getattr(given, switch, False)
                         for switch in ('channel_conversion', '_channel_conversion'))
            usual = replace(
                usual, mean=tuple(given.mean.flatten().tolist()),
                std=tuple(given.std.flatten().tolist()), channels='rgb' if to_rgb else 'bgr')
    return replace(usual, shape=(shape[0], shape[1])) if shape else usual


def _images(options: Namespace) -> list[Path]:
    if options.images:
        return list_images(Path(options.images).expanduser())
    config = load_config(options.dataset)
    dataloader = config.get('test_dataloader')
    if not dataloader:
        raise ConfigError(f'--dataset {options.dataset}: the config has no test_dataloader')
    if options.data_root:
        set_data_root(config, options.data_root)
    scope = config.get('default_scope', 'mmengine')
    init_default_scope(scope)
    check_files(config.test_dataloader, True, scope=scope)
    found: list[Path] = []
    for part in leaf_datasets(config.test_dataloader):
        dataset = built_dataset(partial(DATASETS.build, {**part, 'pipeline': []}), 'test')
        found += [Path(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]
    if not found:
        raise ConfigError(f'--dataset {options.dataset}: no images are found in its '
                          'test_dataloader: name a folder of them with --images')
    return sorted(found)


def _batches(paths: Sequence[Path], preprocessing: Preprocessing, size: int, device: torch.device,
             label: str) -> Iterator[Tensor]:
    # Without a terminal there is no bar.
    with tqdm(total=len(paths), desc=label, unit='image', leave=False, disable=None) as bar:
        for start in range(0, len(paths), size):
            batch = [preprocessing(read_image(path)) for path in paths[start:start + size]]
            yield torch.stack(batch).to(device)
            bar.update(len(batch))


def _report(found: dict[str, Any], settings: dict[str, Any]) -> str:
    said = (f'{settings["num_images"]} of {settings["of_images"]} images of {settings["images"]}, '
            f'class token: {settings["class_token"]}. {CONVENTION}')
    lines = [fill(said, _LINE, break_long_words=False, break_on_hyphens=False), '']
    rows: list[list[object]] = []
    for name, item in found.items():
        label = _label(name)
        lines.append(f'{label}: weights {item["weights"]}; {item["preprocessing"]}')
        for block in item['blocks']:
            rows.append([label, block['block'], block['heads'],
                         _plain_number(block['windows'] / item['images']), block['tokens'],
                         _percent(block['maximum']), _percent(block['mean'])])
        rows.append([label, 'all', None, None, None, _percent(item['maximum']),
                     _percent(item['mean'])])
    header = ['model', 'block', 'heads', 'windows per image', 'tokens', 'maximum (%)', 'mean (%)']
    return '\n'.join([*lines, '', format_table(header, rows, align='llrrrrr')])


def _draw(found: dict[str, Any], path: Path) -> None:
    """One line per model over its blocks, as in the paper's figure of head similarity."""
    labels = short_names(found)
    columns = legend_columns(labels)
    with drawing(path, height=2.25 + 0.14 * -(-len(labels) // columns)) as figure:
        axes = figure.add_subplot()
        for index, (label, item) in enumerate(zip(labels, found.values(), strict=True)):
            heights = [float('nan') if block['maximum'] is None else block['maximum']
                       for block in item['blocks']]
            axes.plot(range(1, len(heights) + 1), heights, color=_LINES[index % len(_LINES)],
                      linestyle=_STYLES[index % len(_STYLES)],
                      marker=_MARKERS[index % len(_MARKERS)], label=label)
        most = max(len(item['blocks']) for item in found.values())
        axes.set_xticks(range(1, most + 1, -(-most // _MOST_TICKS)))
        axes.set_xlabel('block')
        axes.set_ylim(0, 1.05)  # all that cosines of maps can be, so that figures compare
        axes.set_ylabel('maximum cosine similarity')
        axes.grid(axis='y', visible=True)
        # Long handles, so that dashes and dots show.
        figure.legend(loc='outside upper center', ncols=columns, handlelength=2.6)


def _label(name: str) -> str:
    return Path(name).stem if is_config(name) else name.removeprefix(TIMM)


def _plain_number(value: float) -> str:
    return f'{value:g}'


def _percent(value: float | None) -> str | None:
    return None if value is None else f'{100 * value:.2f}'
