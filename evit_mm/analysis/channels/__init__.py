"""Importance of channels (section 2.3 of the paper): Taylor ranking, and removal to a budget.

`gates` finds removable channels and puts gates on them, `losses` provides the loss, `pruning` ranks
and removes, `export` turns the result into an architecture, `report` into a table and a figure.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...benchmark import machine
from ...benchmark.model_factory import TIMM, build_model, is_config, load_weights
from ...benchmark.timing import raise_user_errors
from ...engine.config import load_config, set_data_root
from ...errors import UserError
from ...models import EfficientViT
from ..results import Results
from .export import suggest_arch, write_suggestion
from .gates import KINDS, Site, find_sites, macs_per_channel, total_macs
from .losses import FolderLoss, TrainingLoss
from .pruning import Ranking, Removal, check_budget, prune, rank, replay
from .report import draw_shares, share_table, shares

__all__ = ['analyze_channels']


@dataclass(frozen=True)
class _Options:
    """Arguments of a run; see `analyze_channels`."""

    model: str
    checkpoint: str | None
    pretrained: bool
    budget: float
    steps: int
    kinds: Sequence[str]
    batches: int
    batch_size: int | None
    shape: Sequence[int] | None
    export_arch: Path | None
    data_root: str | None
    cfg_options: Mapping[str, Any] | None
    images: Path | None
    labels: str
    seed: int

    @property
    def is_classifier(self) -> bool:
        return self.model.startswith(TIMM)

    def check(self) -> None:
        """Raise a `UserError` if the arguments do not fit together."""
        for flag, number in (('--steps', self.steps), ('--batches', self.batches),
                             ('--batch-size', self.batch_size),
                             ('--shape', min(self.shape) if self.shape else None)):
            if number is not None and number < 1:
                raise UserError(f'{flag} must be positive, got {number}')
        if self.is_classifier:
            for flag, value in (('--cfg-options', self.cfg_options),
                                ('--data-root', self.data_root), ('--shape', self.shape),
                                ('--export-arch', self.export_arch)):
                if value:
                    raise UserError(f'{flag} is for configs, but {self.model} is not a config')
            if not self.images:
                raise UserError(f'{self.model} needs images by which to rank its channels: pass a '
                                'folder with --images')
        elif not is_config(self.model):
            raise UserError(f'{self.model} has no loss by which to rank its channels: pass the '
                            f'config of a detector or segmentor, or {TIMM}MODEL with --images')
        elif self.images:
            raise UserError('--images is for classifiers: a config has its own training data')
        if self.export_arch:
            self._check_export(self.export_arch)

    def _check_export(self, path: Path) -> None:
        changed = [key for key in self.cfg_options or {} if key.split('.')[0] == 'model']
        if changed:
            raise UserError(f'--export-arch writes a config that inherits {self.model}, without '
                            f'{changed[0]} of --cfg-options: write that value into a config that '
                            f'inherits {self.model}, and analyze that config')
        if path.resolve() == Path(self.model).resolve():
            raise UserError(f'--export-arch {path} is the analyzed config: choose another file')
        if path.suffix != '.py':
            raise UserError(f'--export-arch {path} must be a .py file')
        if not path.absolute().parent.is_dir():
            raise UserError(f'no such folder: {path.parent}')

    def settings(self) -> dict[str, Any]:
        """Return the arguments on which the results depend."""
        names = ('model', 'checkpoint', 'pretrained', 'budget', 'steps', 'kinds', 'batches',
                 'batch_size', 'data_root', 'cfg_options', 'images', 'labels', 'seed')
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Subject:
    """The analyzed model.

    Attributes:
        body: Part whose channels and multiply-adds count: a backbone, or a whole classifier.
        name: Name of that part, for messages.
        source: Loss of the whole model.
        shape: Height and width of the image for which multiply-adds are counted.
        weights: Fingerprint of the model's weights.
    """

    body: nn.Module
    name: str
    source: TrainingLoss | FolderLoss
    shape: tuple[int, int]
    weights: str


def analyze_channels(model: str | os.PathLike[str], *,
                     checkpoint: str | os.PathLike[str] | None = None, pretrained: bool = False,
                     budget: float = 0.66, steps: int = 10, kinds: Sequence[str] = KINDS,
                     batches: int = 8, batch_size: int | None = None,
                     shape: Sequence[int] | None = None,
                     export_arch: str | os.PathLike[str] | None = None,
                     data_root: str | os.PathLike[str] | None = None,
                     cfg_options: Mapping[str, Any] | None = None,
                     images: str | os.PathLike[str] | None = None,
                     labels: Literal['folders', 'predicted'] = 'folders',
                     out: str | os.PathLike[str] = 'work_dirs/analysis/channels',
                     overwrite: bool = False, device: str = 'cpu', threads: int | None = None,
                     seed: int = 0) -> Results:
    """Rank the channels of a model and remove the least important ones to a budget.

    Prints a table, and writes ``channels.json`` and ``channels.png``.

    Args:
        model: Config of a detector or segmentor with an EfficientViT backbone, or
            ``'timm://MODEL'``: a ViT, DeiT or Swin classifier.
        checkpoint: Weights of the whole model.
        pretrained: Load published weights; for a config, those that it names.
        budget: Share of the multiply-adds to keep, of the backbone or the classifier.
        steps: Number of removal steps; the remaining channels are ranked before each.
        kinds: Kinds of channels that may be removed.
        batches: Number of batches over which a ranking averages.
        batch_size: Images per batch; by default the config's, and 16 for classifiers.
        shape: Height and width of the image for which a backbone's multiply-adds are counted; by
            default 512x512.
        export_arch: File for a config with the remaining widths.
        data_root: Folder that replaces the data root of every dataset of the config.
        cfg_options: Values of the config by dotted key.
        images: Folder of images for a classifier, with one subfolder per class.
        labels: Labels of those images: their folders, or the predictions of the model.
        out: Folder of the results; those of an earlier run with the same settings are reused.
        overwrite: Discard the results of an earlier run.
        device: Device name, as in torch.
        threads: Number of CPU threads; torch's default if None.
        seed: Random seed.

    Returns:
        Results: ``'channels'`` (importances), ``'step 1'``, ``'step 2'``, ... and ``'result'``.

    Raises:
        UserError: If the model, its data, the budget or another argument can't be used.
    """
    options = _Options(
        str(model), _text(checkpoint), pretrained, budget, steps, kinds, batches, batch_size, shape,
        Path(export_arch) if export_arch else None, _text(data_root), cfg_options,
        Path(images) if images else None, labels, seed)
    options.check()
    torch_device = machine.use(device, threads=threads, seed=seed)
    with raise_user_errors(f'can\'t compute the loss of {model}', torch_device):
        build = _build_classifier if options.is_classifier else _build_detector
        subject = build(options, torch_device)
    sites = find_sites(subject.body)
    height, width = subject.shape
    with raise_user_errors(f'{subject.name} can\'t run on {height}x{width}', torch_device):
        image = torch.zeros(1, 3, height, width, device=torch_device)
        total = total_macs(subject.body, image)
        cost = macs_per_channel(subject.body, sites, image)
    # Before anything is written, so that a mistake does not block the corrected command.
    check_budget([site for site in sites if site.kind in kinds], cost, total, budget)
    out = Path(out)
    results = Results(
        out / 'channels.json',
        {**options.settings(), 'shape': subject.shape, 'weights': subject.weights,
         'loss': subject.source.description},
        overwrite=overwrite, names=[*(f'step {number}' for number in range(1, steps + 1)),
                                    'result'],
        data={f'the image folder {images}' if images else f'the training data of {model}':
              subject.source.fingerprint()})
    print(f'{subject.name}: {total / 1e6:.1f} M multiply-adds at {height}x{width}; '
          f'{subject.source.description}', flush=True)
    kept = replay(sites, _remove(options, subject, sites, cost, total, results))
    if 'result' not in results:
        results.add('result', _evaluate(subject, sites, cost, total, kept))
    rows = shares(sites, kept)
    print(share_table(rows))
    _report(results)
    draw_shares(rows, out / 'channels.png')
    if options.export_arch:
        _export(options.export_arch, options.model, subject, sites, cost, total, kept)
    return results


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else str(path)


def _build_classifier(options: _Options, device: torch.device) -> _Subject:
    model = build_model(options.model, pretrained=options.pretrained)
    from timm.data import resolve_model_data_config

    if options.checkpoint:
        load_weights(model, options.model, options.checkpoint)
    weights = _weights_fingerprint(model)
    model.to(device).requires_grad_(False)
    assert options.images is not None
    source = FolderLoss(options.images, model, labels=options.labels, batches=options.batches,
                        batch_size=options.batch_size or 16, seed=options.seed)
    height, width = resolve_model_data_config(model)['input_size'][1:]
    return _Subject(model, options.model, source, (height, width), weights)


def _build_detector(options: _Options, device: torch.device) -> _Subject:
    config = load_config(options.model, options.cfg_options)
    if options.data_root:
        set_data_root(config, options.data_root)
    model = build_model(options.model, pretrained=options.pretrained,
                          options=options.cfg_options)
    body = getattr(model, 'backbone', None)
    if not isinstance(body, nn.Module):
        raise UserError(f'the model of {options.model} has no backbone whose channels could be '
                        'ranked')
    if options.export_arch and not isinstance(body, EfficientViT):
        raise UserError(f'--export-arch is for EfficientViT, but the backbone of {options.model} '
                        f'is {type(body).__name__}')
    if options.checkpoint:
        load_weights(model, options.model, options.checkpoint)
    weights = _weights_fingerprint(model)
    model.to(device).eval().requires_grad_(False)
    source = TrainingLoss(config, model, batches=options.batches, batch_size=options.batch_size,
                          seed=options.seed)
    height, width = options.shape or (512, 512)
    return _Subject(body, f'backbone of {options.model}', source, (height, width), weights)


def _weights_fingerprint(model: nn.Module) -> str:
    """Return a checksum of all weights, which a replaced checkpoint changes."""
    code = 0
    for tensor in model.state_dict().values():
        code = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(), code)
    return f'{code:08x}'


def _remove(options: _Options, subject: _Subject, sites: list[Site], cost: Mapping[str, int],
            total: int, results: Results) -> list[Removal]:
    """Remove channels to the budget, store each step in the results, and return all steps."""
    numbers = range(1, options.steps + 1)
    done = [Removal(**results[f'step {number}']) for number in numbers
            if f'step {number}' in results]
    removable = [site for site in sites if site.kind in options.kinds]
    with _progress(subject, options.steps - len(done), 'ranking') as bar:

        def ranking(kept: Mapping[str, Tensor]) -> Ranking:
            ranked = _rank(subject, removable, kept, bar)
            if 'channels' not in results:
                results.add('channels', {
                    site.name: dict(
                        kind=site.kind, block=site.block, macs=cost[site.name],
                        importance=[float(f'{value:.4g}') for value
                                    in ranked.importance[site.name].tolist()])
                    for site in removable})
            return ranked

        for removal in prune(removable, cost, total, budget=options.budget, steps=options.steps,
                             ranking=ranking, done=done):
            done.append(removal)
            results.add(f'step {len(done)}', asdict(removal))
    return done


def _evaluate(subject: _Subject, sites: list[Site], cost: Mapping[str, int], total: int,
              kept: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the multiply-adds and the loss after the removal."""
    macs = total - sum(int(site.count - kept[site.name].sum()) * cost[site.name] for site in sites)
    # An exported architecture keeps channels without a cost, so the loss with them counts too.
    costly = {site.name: kept[site.name] if cost[site.name] else torch.ones(site.count)
              for site in sites}
    free = sum(int((costly[name] - kept[name]).sum()) for name in kept)
    with _progress(subject, 2 if free else 1, 'loss') as bar:
        loss = _rank(subject, sites, kept, bar).loss
        loss_with_free = _rank(subject, sites, costly, bar).loss if free else loss
    return dict(macs_before=total, macs=macs, share=macs / total, loss=loss, free_channels=free,
                loss_with_free_channels=loss_with_free,
                channels=[asdict(share) for share in shares(sites, kept)])


def _report(results: Results) -> None:
    result = results['result']
    print(f'{result["share"]:.1%} of the multiply-adds remain; without training, the loss went '
          f'from {results["step 1"]["loss"]:.4g} to {result["loss"]:.4g}')
    free, loss = (result.get(name) for name in ('free_channels', 'loss_with_free_channels'))
    if free and loss is not None:  # files of old versions have neither
        print(f'{free} of the removed channels save no multiply-adds, and --export-arch keeps '
              f'them; with them the loss went to {loss:.4g}')


def _export(path: Path, config: str, subject: _Subject, sites: list[Site],
            cost: Mapping[str, int], total: int, kept: Mapping[str, Tensor]) -> None:
    assert isinstance(subject.body, EfficientViT)  # checked before the work
    suggestion = suggest_arch(subject.body.arch, sites, cost, kept, total)
    write_suggestion(path, suggestion, config=config, total=total, shape=subject.shape)
    arch, macs, target = suggestion.arch, suggestion.macs, suggestion.target_macs
    print(f'{path}: {macs / 1e6:.1f} M multiply-adds ({macs / total:.1%}) with '
          f'key_dims={arch.key_dims}, ffn_ratio={arch.ffn_ratio}')
    if not suggestion.within_tolerance:
        print(f'These widths miss the {target / 1e6:.1f} M multiply-adds ({target / total:.1%}) '
              f'that remain without the removed channels by {macs / target - 1:+.1%}: no multiples '
              'of 4 are closer')


def _rank(subject: _Subject, sites: list[Site], kept: Mapping[str, Tensor], bar: tqdm) -> Ranking:
    device = next(subject.body.parameters()).device
    with raise_user_errors(f'can\'t compute the gradients of {subject.name}', device):
        return rank(sites, kept, subject.source, after_batch=bar.update)


def _progress(subject: _Subject, passes: int, description: str) -> tqdm:
    """Return a progress bar of batches; it is only shown on a terminal."""
    return tqdm(total=passes * subject.source.num_batches, desc=description, unit='batch',
                leave=False, disable=None)
