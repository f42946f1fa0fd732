"""Train and test a config: edit it, check everything, then hand over to mmengine's runner."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from ..deployment.memory import keep_freed_memory
from ..errors import ConfigError, UserError, translate_errors
from . import config as configure
from . import preflight
from .hooks.acceleration import accelerate, requested
from .hooks.mean_loss import MeanLossHook  # noqa: F401  (registered by name)
from .launch import prepare_processes
from .loops import resume_at_once

__all__ = ['test', 'train']


def train(options: Namespace) -> None:
    """Train the config that ``options.config`` names; see `evit_mm.cli.train_parser`.

    Raises:
        UserError: If a mistake is found: before the first step, but for what only a step can show,
            label maps beyond the sample that was looked into and batches too small for a norm.
    """
    with translate_errors():
        config = _common_config(options, needed=('model', 'train_dataloader', 'optim_wrapper'))
        acceleration = requested(options)
        if get_device() == 'cpu':
            keep_freed_memory()
        if options.from_scratch:
            configure.set_from_scratch(config)
        if options.amp:
            if acceleration.bf16:
                raise UserError('--amp and --bf16 are two ways of mixed precision: name one')
            configure.use_amp(config)
        if options.auto_scale_lr:
            if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
                raise ConfigError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the '
                                  'config')
            config.auto_scale_lr['enable'] = True
        checkpoint, purpose = _starting_point(config, options.resume)
        if purpose == 'resume':
            configure.without_pretrained_weights(config)
            resume_at_once(config)
        _check_files(config, ('train', 'val'), options.ignore_unknown_categories)

        runner = _build_runner(config)
        preflight.log_batch_size(config, runner.world_size)
        if checkpoint:
            preflight.check_checkpoint(_plain_model(runner), checkpoint, purpose=purpose)
        _check_data(runner, 'train')
        if config.get('val_dataloader'):
            _check_data(runner, 'val')
        model = _plain_model(runner)
        accelerate(runner, model, acceleration)
        preflight.check_norms(model, runner.train_loop.dataloader, config, runner.world_size)
    started = _StartMark()
    runner.register_hook(started, priority='VERY_LOW')
    with translate_errors(pass_if=lambda: started.set), preflight.explain_norms(model, config):
        runner.train()


def test(options: Namespace) -> dict[str, float]:
    """Test ``options.checkpoint`` on the config's test data; see `evit_mm.cli.test_parser`.

    Returns:
        dict: The metrics by name.

    Raises:
        UserError: If a mistake is found: before the first image, but for label maps beyond the
            sample that was looked into.
    """
    with translate_errors():
        config = _common_config(options, needed=('model', 'test_dataloader', 'test_evaluator'))
        acceleration = requested(options)
        if options.fast and get_device() == 'cpu':
            keep_freed_memory()
        config.load_from = options.checkpoint
        config.resume = False
        if options.show_dir:
            configure.draw_predictions(config, _writable_folder(
                Path(options.show_dir).expanduser().resolve(), '--show-dir'))
        if options.tta:
            configure.add_test_time_augmentation(config)
        if options.out:
            _store_predictions(config, options.out)
        _check_files(config, ('test',), options.ignore_unknown_categories)

        runner = _build_runner(config)
        preflight.check_checkpoint(_plain_model(runner), options.checkpoint, purpose='test')
        _check_data(runner, 'test')
        accelerate(runner, _plain_model(runner), acceleration)
    started = _StartMark()
    runner.register_hook(started, priority='VERY_LOW')
    with translate_errors(pass_if=lambda: started.set):
        return runner.test()


class _StartMark(Hook):
    """Notes that data flows: what fails from then on is no mistake in the config."""

    set = False

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        self.set = True

    before_test_iter = before_train_iter


def _common_config(options: Namespace, needed: tuple[str, ...]) -> Config:
    config = configure.load_config(options.config, options.cfg_options)
    lacking = [name for name in needed if not config.get(name)]
    if lacking:
        raise ConfigError(f'{options.config} has no {", ".join(lacking)}: it is a part of a config '
                          'to inherit from, or one for something else')
    if options.data_root:
        configure.set_data_root(config, options.data_root)
    if options.work_dir:
        config.work_dir = options.work_dir
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs') / Path(options.config).stem)
    _writable_folder(Path(config.work_dir), '--work-dir')
    if options.seed is not None:
        config.randomness = dict(config.get('randomness') or {}, seed=options.seed)
    prepare_processes(config, options.launcher)
    preflight.check_synced_norms(config)
    return config


def _writable_folder(folder: Path, flag: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(0, 'not writable')
    except OSError as error:
        raise UserError(f'{flag}: {folder} can\'t be written to ({error.strerror}); name another '
                        'folder') from error
    return folder


def _starting_point(config: Config, resume: str | None) -> tuple[str | None, str]:
    """The checkpoint to start from, if any, and whether to resume it or to fine-tune it."""
    if resume == 'auto':
        config.resume, config.load_from = True, None
    elif resume:
        config.resume, config.load_from = True, resume
    if not config.get('resume'):
        return config.get('load_from'), 'finetune'
    checkpoint = config.get('load_from') or find_latest_checkpoint(config.work_dir)
    return checkpoint, 'resume' if checkpoint else 'finetune'


def _build_runner(config: Config) -> Runner:
    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def _check_files(config: Config, names: tuple[str, ...], ignore_unknown_categories: bool) -> None:
    scope = config.get('default_scope')
    dataloaders = [config[f'{name}_dataloader'] for name in names
                   if config.get(f'{name}_dataloader')]
    for dataloader in dataloaders:
        preflight.check_files(dataloader, ignore_unknown_categories, scope=scope)
    types = [str(dataset.get('type')) for dataset in configure.leaf_datasets(dataloaders)]
    if scope == 'mmseg' or any('mmseg.' in kind for kind in types):
        from ..segmentation import check_while_loading  # mmdet's configs do without mmseg

        check_while_loading(config)


def _check_data(runner: Runner, name: str) -> None:
    loop = getattr(runner, f'{name}_loop')  # built at the first look, with its metrics
    dataset = preflight.built_dataset(lambda: loop.dataloader.dataset, name)
    preflight.check_classes(_plain_model(runner), dataset, name)
    preflight.check_label_maps(dataset, name)


def _plain_model(runner: Runner) -> Any:
    """The detector or segmentor inside what distributes it or augments its tests."""
    model = runner.model
    while hasattr(model, 'module'):
        model = model.module
    return model


def _store_predictions(config: Config, out: str) -> None:
    evaluators = config.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
    if config.get('default_scope') == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise UserError(f'--out {out}: name a .pkl file for the predictions')
        _writable_folder(Path(out).expanduser().absolute().parent, '--out')
        evaluators.append(dict(type='DumpDetResults', out_file_path=out))
    else:
        evaluators[0].update(output_dir=out, keep_results=True)
    config.test_evaluator = evaluators
