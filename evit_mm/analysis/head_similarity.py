"""Similarity of the heads of a block: the cosine of their attention maps (section 2.2)."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn
from tqdm import tqdm

from ..arch import ARCHS
from ..benchmark import machine
from ..benchmark.figures import PALETTE, drawing, legend_columns
from ..benchmark.model_factory import TIMM, build_model, is_config, load_weights, short_names
from ..benchmark.tables import format_table
from ..benchmark.timing import OUT_OF_MEMORY, failure_reason
from ..engine.config import leaf_datasets, load_config, set_data_root
from ..engine.preflight import built_dataset, check_files
from ..errors import ConfigError, UserError
from .attention_maps import AttentionMaps, capture_maps, drop_prefix_tokens
from .images import Preprocessing, evenly_spaced, files_fingerprint, list_images, read_image
from .results import Results

__all__ = ['BlockSimilarity', 'analyze_heads', 'head_similarity', 'pairwise_cosines']

# Part of the settings in heads.json: another text would refuse the results of earlier versions.
CONVENTION = (
    'Cosine of two heads\' maps, each flattened to one vector of queries x keys per window (Swin, '
    'EfficientViT) or per image (ViT, DeiT). Maximum: of each head with any other head of its '
    'block; mean: of all pairs. Averaged over heads, windows and images; "all" over the blocks '
    'with two heads or more. Queries of padding are left out, its keys are not; what Swin masks '
    'counts as 0.')

_SAVE_INTERVAL = 32
"""Number of images after which the sums of an unfinished model are written."""

_COLOURS = tuple(colour for name, colour in PALETTE.items() if name != 'yellow')
"""Colours of lines; a thin yellow line is hard to see on white."""

_LINE_STYLES = ('-', '--', '-.', ':')
_MARKERS = 'os^Dv<>P'
_MAX_TICKS = 14
_LINE_LENGTH = 100


@dataclass(frozen=True)
class BlockSimilarity:
    """Similarity of the heads of one block.

    Attributes:
        block: Path of the block inside the model.
        heads: Number of heads.
        windows: Number of windows averaged over, of all images.
        tokens: Tokens of a window, or of an image if the attention is not windowed.
        maximum: Largest cosine of a head with another one, mean over heads; None for one head.
        mean: Mean cosine of all pairs of heads; None for one head.
        maximum_per_head: ``maximum`` before the mean over heads.
    """

    block: str
    heads: int
    windows: int
    tokens: int
    maximum: float | None
    mean: float | None
    maximum_per_head: tuple[float, ...]


def pairwise_cosines(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Compute the cosine similarity of every pair of heads, per window.

    Args:
        maps: (windows, heads, queries, keys).
        inside: (windows, queries) bool, the queries that count; all if None.

    Returns:
        Tensor: (windows, heads, heads), float32, at most 1.
    """
    maps = maps.float()
    if inside is not None:
        maps = maps * inside[:, None, :, None]
    flat = F.normalize(maps.flatten(2), dim=2)
    return (flat @ flat.transpose(1, 2)).clamp(max=1)


class _Sums:
    """Running sums of one block's cosines; only the maps of one batch are in memory."""

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
        diagonal = torch.eye(self.heads, dtype=torch.bool)
        self.maximum += cosines.masked_fill(diagonal, -1).amax(2).sum(0)
        self.mean += cosines.masked_fill(diagonal, 0).sum((0, 2)) / (self.heads - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the sums as JSON values, without loss."""
        return {'heads': self.heads, 'tokens': self.tokens, 'windows': self.windows,
                'maximum': self.maximum.tolist(), 'mean': self.mean.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> '_Sums':
        """Restore sums from the values of `to_json`."""
        sums = cls(values['heads'], values['tokens'])
        sums.windows = values['windows']
        for name in ('maximum', 'mean'):
            # JSON has None for numbers that are not finite.
            numbers = [float('nan') if number is None else number for number in values[name]]
            setattr(sums, name, torch.tensor(numbers, dtype=torch.float64))
        return sums

    def result(self, block: str) -> BlockSimilarity:
        """Return the averages over windows and heads."""
        if self.heads == 1:
            return BlockSimilarity(block, 1, self.windows, self.tokens, None, None, ())
        maximum, mean = self.maximum / self.windows, self.mean / self.windows
        if not mean.isfinite().all():
            raise UserError(f'the attention maps of block {block} are not finite: check the '
                            'weights of the model')
        return BlockSimilarity(block, self.heads, self.windows, self.tokens, maximum.mean().item(),
                               mean.mean().item(), tuple(maximum.tolist()))


def head_similarity(model: nn.Module, batches: Iterable[Tensor], *, class_token: bool = True,
                    earlier: Mapping[str, Any] | None = None,
                    after_batch: Callable[[Callable[[], dict[str, Any]]], Any] = lambda sums: None
                    ) -> list[BlockSimilarity]:
    """Compare the attention maps of the heads of every block; see `CONVENTION`.

    Args:
        model: In eval mode; of a kind that `capture_maps` supports.
        batches: Normalised images (B, 3, H, W), on the model's device.
        class_token: Whether tokens before those of the image belong to a map.
        earlier: Sums of earlier batches to continue from, as ``after_batch`` received them.
        after_batch: Called after each batch with a function that returns the sums so far.

    Returns:
        list[BlockSimilarity]: In the order in which the blocks run.

    Raises:
        UserError: If the model has no attention block of a supported kind, or maps that are not
            finite.
    """
    sums = {block: _Sums.from_json(values) for block, values in (earlier or {}).items()}

    def receive(captured: AttentionMaps) -> None:
        if not class_token:
            captured = drop_prefix_tokens(captured)
        _, heads, tokens, _ = captured.maps.shape
        sums.setdefault(captured.block, _Sums(heads, tokens)).add(captured)

    with capture_maps(model, receive), torch.inference_mode():
        for images in batches:
            model(images)
            after_batch(lambda: {block: own.to_json() for block, own in sums.items()})
    return [own.result(block) for block, own in sums.items()]


@dataclass(frozen=True)
class _Settings:
    """Settings of a run that every model needs; see `analyze_heads`."""

    shape: Sequence[int] | None
    batch: int
    class_token: bool
    pretrained: bool
    checkpoint: str | None
    cfg_options: Mapping[str, Any]
    seed: int


def analyze_heads(models: Sequence[str], *, images: str | os.PathLike[str] | None = None,
                  dataset: str | os.PathLike[str] | None = None,
                  data_root: str | os.PathLike[str] | None = None, num_images: int = 128,
                  shape: Sequence[int] | None = None, batch: int = 8,
                  class_token: Literal['keep', 'drop'] = 'keep', pretrained: bool = False,
                  checkpoint: str | os.PathLike[str] | None = None,
                  cfg_options: Mapping[str, Any] | None = None,
                  out: str | os.PathLike[str] = 'work_dirs/analysis/heads',
                  overwrite: bool = False, device: str = 'cpu', threads: int | None = None,
                  seed: int = 0) -> dict[str, dict[str, Any]]:
    """Compare the heads of models, print a table, and write ``heads.json`` and ``heads.png``.

    Args:
        models: ``'m0'`` to ``'m5'``, ``'timm://MODEL'`` or a config.
        images: Folder of images, including its subfolders.
        dataset: Config whose test images are used, instead of ``images``.
        data_root: Folder that replaces the data root of ``dataset``.
        num_images: Number of images, evenly spaced in their sorted order; at most all.
        shape: Height and width to which images are resized and cropped. By default 224x224, and
            for timm's models the size with which they were trained.
        batch: Images per forward pass; changes memory, not results.
        class_token: Whether maps of ViT and DeiT include the class token.
        pretrained: Load published weights; otherwise the weights are random.
        checkpoint: Weights of the only model; for a config, of its whole model.
        cfg_options: Values of configs by dotted key, arguments of EfficientViT and of timm's
            models.
        out: Folder of the results; those of an earlier run with the same settings are reused.
        overwrite: Discard the results of an earlier run.
        device: Device name, as in torch.
        threads: Number of CPU threads; torch's default if None.
        seed: Random seed of the weights.

    Returns:
        dict: By model, ``'maximum'``, ``'mean'`` and, under ``'blocks'``, the fields of
        `BlockSimilarity`.

    Raises:
        UserError: If a model, a checkpoint, an image or another argument can't be used.
    """
    for flag, number in (('--num-images', num_images), ('--batch', batch),
                         ('--shape', min(shape or (1,)))):
        if number < 1:
            raise UserError(f'{flag} must be positive, got {number}')
    models = list(dict.fromkeys(models))
    if checkpoint and len(models) > 1:
        raise UserError(f'--checkpoint is for one model, but there are {len(models)}: '
                        f'{", ".join(models)}')
    if (images is None) == (dataset is None):
        raise UserError('pass either --images or --dataset')
    if data_root and not dataset:
        raise UserError('--data-root needs --dataset, whose data root it replaces')
    torch_device = machine.use(device, threads=threads, seed=seed)
    settings = _Settings(shape, batch, class_token == 'keep', pretrained,
                         str(checkpoint) if checkpoint else None, cfg_options or {}, seed)
    all_paths = _list_images(images, dataset, data_root)
    paths = evenly_spaced(all_paths, num_images)
    out = Path(out)
    results = Results(out / 'heads.json', {
        'convention': CONVENTION, 'class_token': class_token,
        'images': str(images or dataset), 'data_root': str(data_root) if data_root else None,
        'num_images': len(paths), 'of_images': len(all_paths), 'shape': shape, 'seed': seed,
        'pretrained': pretrained, 'checkpoint': settings.checkpoint, 'cfg_options': cfg_options},
        overwrite=overwrite, names=models,
        data={f'the image folder {images}' if images else f'the test data of {dataset}':
              files_fingerprint(paths)})
    for name in models:
        if name not in results:
            results.add(name, _analyze(name, settings, paths, torch_device, results))
    items = {name: results[name] for name in models}
    print(_report(items, results.settings))
    _draw(items, out / 'heads.png')
    print(f'written: {results.path} and {out / "heads.png"}')
    return items


def _analyze(name: str, settings: _Settings, paths: Sequence[Path], device: torch.device,
             results: Results) -> dict[str, Any]:
    torch.manual_seed(settings.seed)  # independent of the models before it
    model, weights = _build_model(name, settings)
    preprocessing = _preprocessing(name, model, settings.shape)
    # Neck and heads do not affect the maps, and a second stage needs more than images.
    backbone = getattr(model, 'backbone', None)
    body = backbone if isinstance(backbone, nn.Module) else model
    partial = results.partial(name) or {'images': 0, 'blocks': {}}
    done = saved = partial['images']
    batches = _batches(paths[done:], preprocessing, settings.batch, device, _label(name))

    def after_batch(sums: Callable[[], dict[str, Any]]) -> None:
        nonlocal done, saved
        done = min(done + settings.batch, len(paths))
        if done - saved >= _SAVE_INTERVAL and done < len(paths):
            results.add_partial(name, {'images': done, 'blocks': sums()})
            saved = done

    height, width = preprocessing.shape
    try:
        blocks = head_similarity(body.to(device), batches, class_token=settings.class_token,
                                 earlier=partial['blocks'], after_batch=after_batch)
    except UserError:
        raise
    except Exception as error:  # models of other packages, at sizes that they don't support
        cause = failure_reason(error)
        if cause == OUT_OF_MEMORY:
            raise UserError(f'{device} has too little memory for {settings.batch} images of '
                            f'{height}x{width} at once: pass a smaller --batch') from error
        advice = ('omit --shape, or build the model for that size with --cfg-options '
                  'img_size="[HEIGHT,WIDTH]"' if name.startswith(TIMM) else 'pass another --shape')
        raise ConfigError(f'{name} can\'t take images of {height}x{width}: {advice} ({cause})'
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


def _build_model(name: str, settings: _Settings) -> tuple[nn.Module, str]:
    """Return the model and a description of its weights."""
    options, checkpoint = dict(settings.cfg_options), settings.checkpoint
    if name.lower() in ARCHS and checkpoint:
        options['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint)
    model = build_model(name, pretrained=settings.pretrained, options=options)
    if not checkpoint:
        return model, 'published' if settings.pretrained else f'random, seed {settings.seed}'
    if name.lower() not in ARCHS:
        load_weights(model, name, checkpoint)
    return model, checkpoint


def _preprocessing(name: str, model: nn.Module, shape: Sequence[int] | None) -> Preprocessing:
    """Return the preprocessing with which a model was trained, as far as it declares it."""
    preprocessing = Preprocessing()
    if name.startswith(TIMM):
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(model)
        preprocessing = Preprocessing(
            tuple(config['input_size'][1:]), config['crop_pct'], config['interpolation'],
            tuple(255 * value for value in config['mean']),
            tuple(255 * value for value in config['std']))
    elif is_config(name):
        # As much of the image as the shape permits, because detectors are not trained on crops.
        preprocessing = replace(preprocessing, crop=1.0, interpolation='bilinear')
        data_preprocessor: Any = getattr(model, 'data_preprocessor', None)
        if isinstance(getattr(data_preprocessor, 'mean', None), Tensor):
            # Images are loaded as BGR; mmseg and mmengine spell the attribute differently.
            to_rgb = any(getattr(data_preprocessor, name, False)
                         for name in ('channel_conversion', '_channel_conversion'))
            preprocessing = replace(
                preprocessing, mean=tuple(data_preprocessor.mean.flatten().tolist()),
                std=tuple(data_preprocessor.std.flatten().tolist()),
                channels='rgb' if to_rgb else 'bgr')
    return replace(preprocessing, shape=(shape[0], shape[1])) if shape else preprocessing


def _list_images(images: str | os.PathLike[str] | None, dataset: str | os.PathLike[str] | None,
                 data_root: str | os.PathLike[str] | None) -> list[Path]:
    """Return the images of a folder, or of the test data of a config."""
    if images:
        return list_images(Path(images).expanduser())
    assert dataset is not None
    config = load_config(dataset)
    dataloader = config.get('test_dataloader')
    if not dataloader:
        raise ConfigError(f'--dataset {dataset}: the config has no test_dataloader')
    if data_root:
        set_data_root(config, str(data_root))
    scope = config.get('default_scope', 'mmengine')
    init_default_scope(scope)
    check_files(config.test_dataloader, True, scope=scope)
    paths: list[Path] = []
    for part in leaf_datasets(config.test_dataloader):
        built = built_dataset(partial(DATASETS.build, {**part, 'pipeline': []}), 'test')
        paths += [Path(built.get_data_info(index)['img_path']) for index in range(len(built))]
    if not paths:
        raise ConfigError(f'--dataset {dataset}: its test_dataloader has no images: name a folder '
                          'of images with --images')
    return sorted(paths)


def _batches(paths: Sequence[Path], preprocessing: Preprocessing, size: int, device: torch.device,
             label: str) -> Iterator[Tensor]:
    with tqdm(total=len(paths), desc=label, unit='image', leave=False, disable=None) as bar:
        for start in range(0, len(paths), size):
            batch = [preprocessing(read_image(path)) for path in paths[start:start + size]]
            yield torch.stack(batch).to(device)
            bar.update(len(batch))


def _report(items: dict[str, Any], settings: dict[str, Any]) -> str:
    introduction = (f'{settings["num_images"]} of {settings["of_images"]} images of '
                    f'{settings["images"]}, class token: {settings["class_token"]}. {CONVENTION}')
    lines = [fill(introduction, _LINE_LENGTH, break_long_words=False, break_on_hyphens=False), '']
    rows: list[list[object]] = []
    for name, item in items.items():
        label = _label(name)
        lines.append(f'{label}: weights {item["weights"]}; {item["preprocessing"]}')
        for block in item['blocks']:
            rows.append([label, block['block'], block['heads'],
                         f'{block["windows"] / item["images"]:g}', block['tokens'],
                         _percent(block['maximum']), _percent(block['mean'])])
        rows.append([label, 'all', None, None, None, _percent(item['maximum']),
                     _percent(item['mean'])])
    header = ['model', 'block', 'heads', 'windows per image', 'tokens', 'maximum (%)', 'mean (%)']
    return '\n'.join([*lines, '', format_table(header, rows, align='llrrrrr')])


def _draw(items: dict[str, Any], path: Path) -> None:
    """Draw one line per model over its blocks, as in the paper's figure."""
    labels = short_names(items)
    columns = legend_columns(labels)
    with drawing(path, height=2.25 + 0.14 * -(-len(labels) // columns)) as figure:
        axes = figure.add_subplot()
        for index, (label, item) in enumerate(zip(labels, items.values(), strict=True)):
            heights = [float('nan') if block['maximum'] is None else block['maximum']
                       for block in item['blocks']]
            axes.plot(range(1, len(heights) + 1), heights, color=_COLOURS[index % len(_COLOURS)],
                      linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
                      marker=_MARKERS[index % len(_MARKERS)], label=label)
        max_blocks = max(len(item['blocks']) for item in items.values())
        axes.set_xticks(range(1, max_blocks + 1, -(-max_blocks // _MAX_TICKS)))
        axes.set_xlabel('block')
        axes.set_ylim(0, 1.05)  # the whole range, so that figures compare
        axes.set_ylabel('maximum cosine similarity')
        axes.grid(axis='y', visible=True)
        # Long handles, so that dashes and dots are visible.
        figure.legend(loc='outside upper center', ncols=columns, handlelength=2.6)


def _label(name: str) -> str:
    return Path(name).stem if is_config(name) else name.removeprefix(TIMM)


def _percent(value: float | None) -> str | None:
    return None if value is None else f'{100 * value:.2f}'
