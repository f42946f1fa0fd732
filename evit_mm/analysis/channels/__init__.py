"""Which channels matter (section 2.3 of the paper): Taylor importance, and removal to a budget.

`gates` says which channels can go and puts gates on them; `losses` where the loss comes from;
`pruning` ranks and removes; `export` turns what is left into an architecture; `report` into a table
and a figure. Here they come together for `tools/analyze.py channels`.
"""

import zlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...benchmark import machine
from ...benchmark.model_factory import TIMM, build_subject, is_config, load_weights
from ...benchmark.timing import must_work
from ...engine import config as configure
from ...errors import UserError
from ...models import EfficientViT
from ..results import Results
from .export import suggest_arch, write_arch
from .gates import Site, find_sites, macs_per_channel, total_macs
from .losses import FolderLoss, TrainingLoss
from .pruning import Ranking, Removal, check_budget, prune, rank, replay
from .report import draw_shares, share_table, shares

__all__ = ['analyze_channels']


@dataclass(frozen=True)
class _Subject:
    """What is analysed.

    Attributes:
        body: The part whose channels and multiply-adds count: a backbone, or a whole classifier.
        name: That part, in words.
        source: The loss of the whole model.
        shape: Height and width that multiply-adds are counted for.
        weights: A fingerprint of the model's weights.
    """

    body: nn.Module
    name: str
    source: TrainingLoss | FolderLoss
    shape: tuple[int, int]
    weights: str


def analyze_channels(options: Namespace) -> None:
    """Do what the command line asks for; see `evit_mm.cli.analyze.channels`.

    Raises:
        UserError: If a model, its data, a budget or another option can't be used.
    """
    _check_flags(options)
    device = machine.use(options.device, threads=options.threads, seed=options.seed)
    with must_work(f'the loss of {options.model} can\'t be computed', device):
        subject = _subject(options, device)
    sites = find_sites(subject.body)
    height, width = subject.shape
    with must_work(f'{subject.name} can\'t run on {height}x{width}', device):
        image = torch.zeros(1, 3, height, width, device=device)
        total = total_macs(subject.body, image)
        cost = macs_per_channel(subject.body, sites, image)
    # Before anything is written: a mistake must not stand in the way of the corrected command.
    check_budget([site for site in sites if site.kind in options.kinds], cost, total,
                 options.budget)
    results = Results(
        options.out / 'channels.json', _settings(options, subject), overwrite=options.overwrite,
        wanted=[*(f'step {number}' for number in range(1, options.steps + 1)), 'result'],
        data={f'what is in {options.images}' if options.images
              else f'the training data of {options.model}': subject.source.fingerprint()})
    print(f'{subject.name}: {total / 1e6:.1f} M multiply-adds at {height}x{width}; '
          f'{subject.source.description}', flush=True)

    kept = replay(sites, _remove(options, subject, sites, cost, total, results))
    left = total - sum(int(site.count - kept[site.name].sum()) * cost[site.name] for site in sites)
    # Masking channels that cost nothing harms the network for no gain; an architecture has them.
    costly = {site.name: kept[site.name] if cost[site.name] else torch.ones(site.count)
              for site in sites}
    free = sum(int((costly[name] - kept[name]).sum()) for name in kept)
    if 'result' not in results:
        with _progress(subject, 2 if free else 1, 'loss') as bar:
            loss = _rank(subject, sites, kept, bar).loss
            with_free = _rank(subject, sites, costly, bar).loss if free else loss
        results.add('result', dict(macs_before=total, macs=left, share=left / total, loss=loss,
                                   free_channels=free, loss_with_free_channels=with_free,
                                   channels=[asdict(share) for share in shares(sites, kept)]))
    found = shares(sites, kept)
    print(share_table(found))
    print(f'{left / total:.1%} of the multiply-adds are left; without training, the loss went from '
          f'{results["step 1"]["loss"]:.4g} to {results["result"]["loss"]:.4g}')
    if free:
        again = results['result'].get('loss_with_free_channels')  # not in files of old versions
        if again is not None:
            print(f'{free} of the removed channels save no multiply-adds, and --export-arch leaves '
                  f'them in; with them the loss went to {again:.4g} instead')
    draw_shares(found, options.out / 'channels.png')
    if options.export_arch:
        assert isinstance(subject.body, EfficientViT)  # checked before the work
        suggestion = suggest_arch(subject.body.arch, sites, cost, kept, total)
        write_arch(options.export_arch, suggestion, config=options.model, total=total,
                   shape=subject.shape)
        print(f'{options.export_arch}: {suggestion.macs / 1e6:.1f} M multiply-adds '
              f'({suggestion.macs / total:.1%}) with key_dims={suggestion.arch.key_dims}, '
              f'ffn_ratio={suggestion.arch.ffn_ratio}')
        if not suggestion.near:
            print(f'These widths miss the {suggestion.promised / 1e6:.1f} M multiply-adds '
                  f'({suggestion.promised / total:.1%}) that are left without the removed '
                  f'channels by {suggestion.macs / suggestion.promised - 1:+.1%}: no multiples of '
                  f'4 come nearer')


def _check_flags(options: Namespace) -> None:
    for name in ('steps', 'batches', 'batch_size'):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f'--{name.replace("_", "-")} must be positive, got '
                            f'{getattr(options, name)}')
    if options.shape and min(options.shape) < 1:
        raise UserError(f'--shape must be positive, got {min(options.shape)}')
    if options.model.startswith(TIMM):
        for name in ('cfg_options', 'data_root', 'shape', 'export_arch'):
            if getattr(options, name):
                raise UserError(f'--{name.replace("_", "-")} is for configs, and {options.model} '
                                'is none')
        if not options.images:
            raise UserError(f'{options.model} needs images to rank its channels by: name a folder '
                            'of them with --images')
    elif not is_config(options.model):
        raise UserError(f'{options.model} alone has no loss to rank its channels by: name the '
                        f'config of a detector or segmentor, or {TIMM}MODEL with --images')
    elif options.images:
        raise UserError('--images is for classifiers: a config brings its own training data')
    export = options.export_arch
    changed = [key for key in options.cfg_options or {} if key.split('.')[0] == 'model']
    if export and changed:
        raise UserError(f'--export-arch writes a config that inherits {options.model}, without '
                        f'{changed[0]} of --cfg-options: write that into a config of its own that '
                        f'inherits {options.model}, and name this one')
    if export and export.resolve() == Path(options.model).resolve():
        raise UserError(f'--export-arch {export} is the config that is analysed: name another file')
    if export and (export.suffix != '.py' or not export.absolute().parent.is_dir()):
        raise UserError(f'--export-arch {export}: name a .py file in a folder that exists')


def _subject(options: Namespace, device: torch.device) -> _Subject:
    build = _classifier if options.model.startswith(TIMM) else _detector
    return build(options, device)


def _classifier(options: Namespace, device: torch.device) -> _Subject:
    model = build_subject(options.model, pretrained=options.pretrained)
    from timm.data import resolve_model_data_config

    if options.checkpoint:
        load_weights(model, options.model, options.checkpoint)
    weights = _fingerprint(model)
    model.to(device).requires_grad_(False)
    source = FolderLoss(options.images, model, labels=options.labels, batches=options.batches,
                        batch_size=options.batch_size or 16, seed=options.seed)
    shape = tuple(resolve_model_data_config(model)['input_size'][1:])
    return _Subject(model, options.model, source, shape, weights)


def _detector(options: Namespace, device: torch.device) -> _Subject:
    config = configure.load_config(options.model, options.cfg_options)
    if options.data_root:
        configure.set_data_root(config, options.data_root)
    model = build_subject(options.model, pretrained=options.pretrained,
                          options=options.cfg_options)
    body = getattr(model, 'backbone', None)
    if not isinstance(body, nn.Module):
        raise UserError(f'the model of {options.model} has no backbone whose channels could be '
                        'ranked')
    if options.export_arch and not isinstance(body, EfficientViT):
        raise UserError(f'--export-arch writes architectures of EfficientViT, but the backbone of '
                        f'{options.model} is {type(body).__name__}')
    if options.checkpoint:
        load_weights(model, options.model, options.checkpoint)
    weights = _fingerprint(model)
    model.to(device).eval().requires_grad_(False)
    source = TrainingLoss(config, model, batches=options.batches, batch_size=options.batch_size,
                          seed=options.seed)
    height, width = options.shape or (512, 512)
    return _Subject(body, f'backbone of {options.model}', source, (height, width), weights)


def _fingerprint(model: nn.Module) -> str:
    """Tells models apart whose weights differ, such as those of a checkpoint that was replaced."""
    code = 0
    for tensor in model.state_dict().values():
        code = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(), code)
    return f'{code:08x}'


def _settings(options: Namespace, subject: _Subject) -> dict[str, Any]:
    names = ('model', 'checkpoint', 'pretrained', 'budget', 'steps', 'kinds', 'batches',
             'batch_size', 'data_root', 'cfg_options', 'images', 'labels', 'seed')
    return {**{name: getattr(options, name) for name in names},
            'shape': subject.shape, 'weights': subject.weights,
            'loss': subject.source.description}


def _remove(options: Namespace, subject: _Subject, sites: list[Site], cost: Mapping[str, int],
            total: int, results: Results) -> list[Removal]:
    """Remove channels to the budget, keeping each step in the results; all steps."""
    numbers = range(1, options.steps + 1)
    done = [Removal(**results[f'step {number}']) for number in numbers
            if f'step {number}' in results]
    chosen = [site for site in sites if site.kind in options.kinds]
    with _progress(subject, options.steps - len(done), 'ranking') as bar:

        def ranking(kept: Mapping[str, Tensor]) -> Ranking:
            found = _rank(subject, chosen, kept, bar)
            if 'channels' not in results:
                results.add('channels', {
                    site.name: dict(
                        kind=site.kind, block=site.block, macs=cost[site.name],
                        importance=[float(f'{value:.4g}') for value
                                    in found.importance[site.name].tolist()])
                    for site in chosen})
            return found

        for removal in prune(chosen, cost, total, budget=options.budget, steps=options.steps,
                             ranking=ranking, done=done):
            done.append(removal)
            results.add(f'step {len(done)}', asdict(removal))
    return done


def _rank(subject: _Subject, sites: list[Site], kept: Mapping[str, Tensor], bar: tqdm) -> Ranking:
    device = next(subject.body.parameters()).device
    with must_work(f'the slopes of {subject.name} can\'t be computed', device):
        return rank(sites, kept, subject.source, after_batch=bar.update)


def _progress(subject: _Subject, passes: int, what: str) -> tqdm:
    """A progress bar of batches, on a terminal."""
    return tqdm(total=passes * subject.source.number, desc=what, unit='batch', leave=False,
                disable=None)
