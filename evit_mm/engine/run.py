"""Train and test a config: edit it, check everything, then start mmengine's runner."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..data.loading import check_images_while_loading, skip_images_that_fail
from ..deployment.memory import keep_freed_memory
from ..errors import ConfigError, LostProcessError, UserError, translate_errors
from ..files import locked_folder
from . import config as configure
from . import preflight
from .console import ConciseRunner, TestRunner
from .evaluation import evaluate_by_class
from .exported import (
    ExportedPredictor,
    check_exported_classes,
    is_exported,
    load_exported,
)
from .hooks.acceleration import RECOMMENDED, Acceleration, accelerate
from .hooks.first_iteration import FirstIterationHook
from .hooks.non_finite import NonFiniteHook
from .hooks.peer_watch import PeerWatchHook
from .hooks.preflight import PreflightHook
from .hooks.progress import ProgressHook
from .hooks.report import ReportHook
from .hooks.resumed_schedule import ResumedScheduleHook
from .hooks.skipped_images import SkippedImagesHook
from .hooks.stop_signals import StopSignalHook
from .hooks.summary import SummaryHook
from .initial_checkpoint import release_checkpoint, trained_classes
from .launch import prepare_processes
from .loops import use_resuming_loops
from .model_parts import parts, plain_model
from .own_data import OwnData, use_own_data
from .own_label_maps import OwnLabelMaps, use_label_maps
from .processes import lost_processes
from .recipe import (
    RecipeFlags,
    add_switches,
    apply_flags,
    fit_recipe,
    keep_best_checkpoint,
    warn_of_schedule,
    write_safe_checkpoints,
)
from .resume_point import describe_latest, find_resume_point

__all__ = ['test', 'train']

_Path = str | os.PathLike[str]


def train(config: _Path | Config, *, work_dir: _Path | None = None,
          data_root: _Path | None = None, image_size: int | None = None,
          resume: _Path | bool | None = None,
          new_schedule: bool = False, show_val: bool = False,
          tracker: str | Sequence[str] = (), from_scratch: bool = False, amp: bool = False,
          bf16: bool = False, channels_last: bool | None = None, compile: bool = False,
          auto_scale_lr: bool = False, seed: int | None = None,
          cfg_options: Mapping[str, Any] | None = None, train_ann: _Path | None = None,
          val_ann: _Path | None = None, images: _Path | None = None,
          val_images: _Path | None = None, data: _Path | None = None,
          from_checkpoint: _Path | None = None, epochs: int | None = None,
          iters: int | None = None, lr: float | None = None, batch_size: int | None = None,
          early_stopping: int | None = None, ema: bool = False, masks: _Path | None = None,
          val_masks: _Path | None = None, classes: _Path | None = None,
          zero_is_unlabelled: bool = False, mask_values: Sequence[int] | None = None,
          ignore_unknown_categories: bool = False, skip_invalid_objects: bool = False,
          skip_nan: int = 0, skip_bad_images: bool = False, launcher: str = 'none') -> Path:
    """Train a detector or segmentor.

    Args:
        config: Path of a config, name of a packaged one such as ``'retinanet_evit_m4_coco'``, or a
            config, which is left as it is.
        work_dir: Folder of logs and checkpoints; the config's, or ``work_dirs/NAME``, by default.
        data_root: Folder that replaces the ``data_root`` of every dataset and evaluator.
        image_size: Longer side of the images in pixels, for a config that has an ``image_size``;
            all sizes in its pipelines are scaled with it.
        resume: Checkpoint to resume from; True or ``'auto'`` for the latest one in the work dir.
        new_schedule: Resume with the learning rate and schedule of the config instead of those of
            the checkpoint.
        show_val: Draw predictions of the first images of each validation, in ``pictures`` of the
            work dir.
        tracker: Where to send losses and metrics, besides the work dir: ``'tensorboard'``,
            ``'wandb'`` or ``'mlflow'``, or several of them.
        from_scratch: Start from random weights, and let BN learn its statistics.
        amp: Train with mmengine's automatic mixed precision; needs a CUDA GPU.
        bf16: Compute in bfloat16 by autocast, on CPU or GPU.
        channels_last: Keep feature maps in the channels-last memory format; None does so on a CPU
            in a single process.
        compile: Run backbone and neck through torch.compile.
        auto_scale_lr: Scale the learning rate with the batch size.
        seed: Seed of all random numbers.
        cfg_options: Values to change in the config, by dotted key.
        train_ann: COCO annotation file of your own data. Classes, heads, datasets, evaluators,
            schedule and batch size of the config are fitted to it.
        val_ann: The same for validation; by default, a fifth of the images is held out.
        images: Folder of the images; by default, it is looked for around the annotation file or
            the label maps.
        val_images: Folder of the images of ``val_ann`` or ``val_masks``, if it is another one.
        data: A data.yaml of YOLO's layout, instead of ``train_ann`` and the others.
        from_checkpoint: Detector or segmentor to start from: file, address or name. What does not
            fit, such as the layers of other classes, starts anew.
        epochs: Length of the training; the schedule is stretched with it.
        iters: The same in iterations.
        lr: Learning rate.
        batch_size: Images of each process in a step.
        early_stopping: Stop after this many validations without a better result.
        ema: Validate and save an exponential moving average of the weights.
        masks: Folder of your own label maps. Classes, heads, datasets and evaluators of the config
            are fitted to them.
        val_masks: The same for validation; by default, a subfolder of ``masks``, or a fifth of the
            images is held out.
        classes: File of the names of the classes, in the order of their numbers; by default, they
            are numbered.
        zero_is_unlabelled: Whether 0 in your label maps means unlabelled, and 1 is the first class.
        mask_values: The number of each class in your label maps, if not 0, 1, 2 and so on.
        ignore_unknown_categories: Accept annotation files with categories that the config does not
            have.
        skip_invalid_objects: Go on without the objects of annotation files that can't be used.
        skip_nan: Number of steps to skip where a loss or the norm of the gradients is not finite;
            the next one ends the training.
        skip_bad_images: Train on another image in the place of one that can't be loaded; how many
            there were is reported at the end.
        launcher: What started the processes: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Returns:
        The work dir.

    Raises:
        UserError: If config, data or a checkpoint has a mistake. All mistakes are found before the
            first iteration, except label maps beyond a sample of them, and batches too small for a
            norm that only the first iteration can find. Also if another process trains in the work
            dir, if a loss or gradient is not finite, if an image can't be loaded, if the disk is
            full, and if another process of the run has died.
        Interrupted: After Ctrl-C, when a checkpoint is saved; it is a KeyboardInterrupt.
        Terminated: After SIGTERM, when a checkpoint is saved; it is a SystemExit.
    """
    with ExitStack() as stack:
        with translate_errors():
            config = _prepare_config(
                config, ('model', 'train_dataloader', 'optim_wrapper'), work_dir=work_dir,
                data_root=data_root, image_size=image_size, seed=seed, cfg_options=cfg_options,
                launcher=launcher)
            if os.environ.get('RANK', '0') == '0':
                stack.enter_context(locked_folder(config.work_dir, 'trains in'))
            flags = RecipeFlags(epochs=epochs, iters=iters, lr=lr, batch_size=batch_size)
            maps = OwnLabelMaps(masks, val_masks, images, val_images, classes, zero_is_unlabelled,
                                mask_values)
            own = OwnData(train_ann, val_ann, None if maps else images,
                          None if maps else val_images, data)
            maps.check_flags()
            if own or maps:
                num_images = _use_own(config, own, maps, data_root, training=True,
                                      skip_invalid=skip_invalid_objects)
                fit_recipe(config, num_images, flags, cfg_options or ())
            else:
                apply_flags(config, flags)
            if skip_nan < 0:
                raise UserError(f'--skip-nan must be at least 0, but is {skip_nan}')
            keep_best_checkpoint(config)
            write_safe_checkpoints(config)
            use_resuming_loops(config)
            if from_checkpoint:
                _start_from(config, from_checkpoint, resume=resume, from_scratch=from_scratch)
            on_cpu = get_device() == 'cpu'
            if on_cpu:
                keep_freed_memory()
            acceleration = Acceleration(
                # Not under a launcher: DDP is built before, and would copy gradients of other
                # strides.
                channels_last=(on_cpu and launcher == 'none' if channels_last is None
                               else channels_last),
                compile=compile, bf16=bf16)
            acceleration.check_device()
            if from_scratch:
                configure.set_from_scratch(config)
            if amp:
                if bf16:
                    raise UserError('--amp and --bf16 are two kinds of mixed precision: choose one')
                configure.use_amp(config)
            if auto_scale_lr:
                if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
                    raise ConfigError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the '
                                      'config')
                config.auto_scale_lr['enable'] = True
            if _set_starting_point(config, resume):
                configure.without_pretrained_weights(config)
            elif resume:
                print_log(f'nothing to resume from in {config.work_dir}: the training starts anew',
                          logger='current', level=logging.WARNING)
            elif new_schedule:
                raise UserError('--new-schedule changes how a run is resumed: pass it with '
                                '--resume')
            if show_val:
                configure.draw_validations(config)
            configure.add_trackers(config, [tracker] if isinstance(tracker, str) else tracker)
            if skip_bad_images:
                skip_images_that_fail(config)
            splits = ['train', 'val'] if config.get('val_dataloader') else ['train']
            runner = _build_runner(config, splits,
                                   ignore_unknown_categories=ignore_unknown_categories,
                                   skip_invalid_objects=skip_invalid_objects)
            runner.register_hook(ResumedScheduleHook(use_config=new_schedule))
            runner.register_hook(NonFiniteHook(skip=skip_nan))
            signals = StopSignalHook()
            stack.callback(signals.close)
            runner.register_hook(signals)
            runner.register_hook(SkippedImagesHook())
            runner.register_hook(PeerWatchHook())
            add_switches(runner, early_stopping=early_stopping, ema=ema)
            warn_of_schedule(runner)
            model = plain_model(runner.model)
            if channels_last is None and not parts(model, 'backbone'):
                acceleration = replace(acceleration, channels_last=False)
            _accelerate(runner, acceleration)
        with preflight.explain_norms(model, config):
            _run(runner, runner.train)
    return Path(runner.work_dir)


def test(config: _Path | Config, checkpoint: _Path, *, work_dir: _Path | None = None,
         data_root: _Path | None = None, image_size: int | None = None,
         out: _Path | None = None, show_dir: _Path | None = None,
         score_thr: float = 0.3, tta: bool = False, fast: bool = False, deploy: bool = False,
         channels_last: bool = False, compile: bool = False, bf16: bool = False,
         seed: int | None = None, cfg_options: Mapping[str, Any] | None = None,
         val_ann: _Path | None = None, images: _Path | None = None,
         val_images: _Path | None = None, data: _Path | None = None,
         masks: _Path | None = None, classes: _Path | None = None,
         zero_is_unlabelled: bool = False, mask_values: Sequence[int] | None = None,
         ignore_unknown_categories: bool = False, skip_invalid_objects: bool = False,
         launcher: str = 'none') -> dict[str, float]:
    """Test a checkpoint on the test data of a config.

    Args:
        config: As in `train`.
        checkpoint: File, address or name of the weights, such as ``'run/epoch_12.pth'``; or a file
            of `export`, which is tested in the place of the config's model.
        work_dir: Folder of logs and metrics; as in `train`.
        data_root: As in `train`.
        image_size: As in `train`.
        out: Where to store the predictions: a .pkl file for detection, a folder for segmentation.
        show_dir: Folder for pictures of predictions next to the ground truth.
        score_thr: Lowest score of the detections in these pictures.
        tta: Test on scaled and flipped copies of each image.
        fast: Make the model as fast as the metrics allow: `deploy` and `channels_last`.
        deploy: Fold BN and everything else that can be folded.
        channels_last: Keep feature maps in the channels-last memory format.
        compile: As in `train`.
        bf16: As in `train`.
        seed: As in `train`.
        cfg_options: As in `train`.
        val_ann: COCO annotation file of your own data to test on. The classes are those that the
            checkpoint was trained on.
        images: As in `train`.
        val_images: As ``images``.
        data: As in `train`; its validation data are tested on.
        masks: Folder of your own label maps to test on, or of those in its subfolder val/.
        classes: As in `train`; those that the model was trained on.
        zero_is_unlabelled: As in `train`.
        mask_values: As in `train`.
        ignore_unknown_categories: As in `train`.
        skip_invalid_objects: As in `train`.
        launcher: As in `train`.

    Returns:
        The metrics by name.

    Raises:
        UserError: As in `train`.
    """
    with translate_errors():
        config = _prepare_config(
            config, ('model', 'test_dataloader', 'test_evaluator'), work_dir=work_dir,
            data_root=data_root, image_size=image_size, seed=seed, cfg_options=cfg_options,
            launcher=launcher)
        maps = OwnLabelMaps(masks, None, images, None, classes, zero_is_unlabelled, mask_values)
        own = OwnData(None, val_ann, None if maps else images, val_images, data)
        maps.check_flags()
        exported = load_exported(checkpoint) if is_exported(checkpoint) else None
        if exported and (tta or fast or deploy or channels_last or compile or bf16):
            raise UserError(f'{os.fspath(checkpoint)} is tested as it is: leave out flags that '
                            'change the model, and --tta')
        if own or maps:
            _use_own(config, own, maps, data_root, training=False,
                     skip_invalid=skip_invalid_objects,
                     classes=exported.class_names if exported else
                     trained_classes(os.fspath(checkpoint)))
        acceleration = Acceleration(
            deploy=deploy or fast and RECOMMENDED.deploy,
            channels_last=channels_last or fast and RECOMMENDED.channels_last,
            compile=compile or fast and RECOMMENDED.compile,
            bf16=bf16 or fast and RECOMMENDED.bf16)
        acceleration.check_device()
        if fast and get_device() == 'cpu':
            keep_freed_memory()
        config.load_from = None if exported else os.fspath(checkpoint)
        config.resume = False
        if exported:
            config.model = dict(type=ExportedPredictor.__name__, path=os.fspath(checkpoint))
            # mmengine would add it to the model's arguments; the file normalises by itself.
            config.pop('data_preprocessor', None)
        if show_dir:
            configure.draw_predictions(config, _create_folder(show_dir, '--show-dir'),
                                       score_thr=score_thr)
        if tta:
            configure.add_test_time_augmentation(config)
        if out:
            _store_predictions(config, Path(out).expanduser())
        runner = _build_runner(config, ['test'],
                               ignore_unknown_categories=ignore_unknown_categories,
                               skip_invalid_objects=skip_invalid_objects)
        if exported:
            check_exported_classes(exported, runner.test_loop.dataloader.dataset)
        _accelerate(runner, acceleration)
    return _run(runner, runner.test)


def _prepare_config(source: _Path | Config, required: tuple[str, ...], *, work_dir: _Path | None,
                    data_root: _Path | None, image_size: int | None, seed: int | None,
                    cfg_options: Mapping[str, Any] | None, launcher: str) -> Config:
    """Read a config and apply the options that training and testing share.

    Raises:
        UserError: If it can't be read, lacks a required part, or an option does not fit.
    """
    config = configure.load_config(source, cfg_options)
    name = Path(config.filename).stem if config.filename else 'config'
    missing = [key for key in required if not config.get(key)]
    if missing:
        raise ConfigError(f'{config.filename or "the config"} has no {", ".join(missing)}: it is '
                          'a base config to inherit from, or one for another purpose')
    if data_root:
        configure.set_data_root(config, data_root)
    if image_size is not None:
        configure.set_image_size(config, image_size)
    if work_dir:
        config.work_dir = os.fspath(work_dir)
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs') / name)
    config.work_dir = str(_create_folder(config.work_dir, '--work-dir'))
    if seed is not None:
        config.randomness = dict(config.get('randomness') or {}, seed=seed)
    prepare_processes(config, launcher)
    preflight.check_synced_norms(config)
    return config


def _use_own(config: Config, own: OwnData, maps: OwnLabelMaps, data_root: _Path | None, *,
             training: bool, skip_invalid: bool, classes: Sequence[str] | None = None) -> int:
    """Replace the data of a config by a user's, and return the number of training images.

    Raises:
        UserError: If the flags contradict each other.
    """
    if data_root:
        raise UserError('--data-root moves the dataset of the config, and --train-ann, --val-ann, '
                        '--data, --masks and --images replace it: leave one of them out')
    if own and maps:
        raise UserError('--masks is for segmentation, and --train-ann, --val-ann and --data for '
                        'detection: leave one of them out')
    if maps:
        return use_label_maps(config, maps, training=training, classes=classes)
    return use_own_data(config, own, training=training, skip_invalid=skip_invalid, classes=classes)


def _start_from(config: Config, checkpoint: _Path, *, resume: _Path | bool | None,
                from_scratch: bool) -> None:
    """Let a training start from the weights of a whole model.

    Raises:
        UserError: If another flag says to start differently.
    """
    if resume or from_scratch:
        raise UserError(f'--from and {"--resume" if resume else "--from-scratch"} are two ways to '
                        'start: choose one')
    config.load_from, config.resume = os.fspath(checkpoint), False


def _create_folder(folder: _Path, flag: str) -> Path:
    """Create a folder where it is missing, and return its absolute path.

    Raises:
        UserError: If it can't be written to.
    """
    path = Path(folder).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(0, 'Permission denied')
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror}; {flag} needs another folder'
                        ) from error
    return path


def _set_starting_point(config: Config, resume: _Path | bool | None) -> bool:
    """Set the checkpoint that a training starts from, and return whether it resumes.

    Raises:
        CheckpointError: If none of the checkpoints to resume from is sound.
    """
    if resume is True or resume == 'auto':
        config.resume, config.load_from = True, None
    elif resume:
        config.resume, config.load_from = True, os.fspath(resume)
    return bool(config.get('resume') and (config.get('load_from') or find_resume_point(config)))


def _build_runner(config: Config, splits: list[str], **tolerated: bool) -> Runner:
    """Build a runner, with everything checked that its run over ``splits`` uses.

    Args:
        config: A whole config.
        splits: As in `PreflightHook.check`.
        **tolerated: Arguments of `PreflightHook` that let a run go on.
    """
    checks = _take_preflight(config, tolerated)
    training = 'train' in splits
    checks.check_config(config, splits, repaired=configure.adapted_folder(
        config, 'annotations', training=training))
    scope = config.get('default_scope')
    types = [str(dataset.get('type')) for split in splits
             for dataset in configure.leaf_datasets(config[f'{split}_dataloader'])]
    check_images_while_loading(config)
    evaluate_by_class(config)
    if scope == 'mmseg' or any('mmseg.' in kind for kind in types):
        from ..segmentation import check_while_loading  # mmdet's configs do without mmseg

        check_while_loading(config)
    runner_class = ConciseRunner if training else TestRunner
    runner = RUNNERS.build(config) if 'runner_type' in config else runner_class.from_cfg(config)
    runner.register_hook(checks)
    runner.register_hook(ReportHook())
    checks.check(runner, splits)
    return runner


def _take_preflight(config: Config, tolerated: Mapping[str, bool]) -> PreflightHook:
    """Build the hook that checks a run, and take it out of the config's own hooks.

    A config may name it, with arguments, for tools that don't add it themselves.
    """
    tolerated = {name: True for name, value in tolerated.items() if value}
    hooks = list(config.get('custom_hooks') or [])
    named = [hook for hook in hooks if _is_preflight(hook)]
    config.custom_hooks = [hook for hook in hooks if not _is_preflight(hook)]
    if named and not isinstance(named[0], Mapping):
        checks: PreflightHook = named[0]
        for name in tolerated:
            setattr(checks, name, True)
        return checks
    arguments = {key: value for key, value in (named[0] if named else {}).items()
                 if key not in ('type', 'priority')}
    return PreflightHook(**{**arguments, **tolerated})


def _is_preflight(hook: Any) -> bool:
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
    return kind is PreflightHook or str(kind).rpartition('.')[2] == PreflightHook.__name__


def _accelerate(runner: Runner, acceleration: Acceleration) -> None:
    accelerate(runner, plain_model(runner.model), acceleration)
    runner.register_hook(SummaryHook(acceleration))


def _run(runner: Runner, action: Callable[[], Any]) -> Any:
    """Call ``runner.train`` or ``runner.test``; errors until the first iteration are the config's.

    Raises:
        UserError: In place of these errors.
    """
    first_iteration = FirstIterationHook()
    runner.register_hook(first_iteration)
    progress = ProgressHook()
    runner.register_hook(progress)
    try:
        with translate_errors(pass_if=lambda: first_iteration.reached):
            return action()
    except LostProcessError as error:
        lost = lost_processes(wait=True)
        raise UserError(f'{lost}; {describe_latest(runner.work_dir)}' if lost else str(error)
                        ) from error
    finally:
        progress.close()
        release_checkpoint()


def _store_predictions(config: Config, out: Path) -> None:
    """Let the evaluators of a config write the predictions.

    Raises:
        UserError: If they can't be written to ``out``.
    """
    evaluators = config.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
    if config.get('default_scope') == 'mmdet':
        if out.suffix not in ('.pkl', '.pickle'):
            raise UserError(f'--out {out}: detections are stored in a .pkl file')
        _create_folder(out.absolute().parent, '--out')
        evaluators.append(dict(type='DumpDetResults', out_file_path=str(out)))
    else:
        evaluators[0].update(output_dir=str(out), keep_results=True)
    config.test_evaluator = evaluators
