"""Checks of `evit_mm.engine.preflight` in any runner."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop

from .. import preflight
from ..initial_checkpoint import initial_checkpoint, release_checkpoint
from ..model_parts import plain_model
from ..preflight.model import check_model

__all__ = ['PreflightHook']

_SPLITS = ('train', 'val', 'test')


@HOOKS.register_module()
class PreflightHook(Hook):
    """Hook that finds mistakes in config, data and checkpoint before the first iteration.

    `evit_mm.train` and `evit_mm.test` always use it. Other tools, such as MMDetection's own
    tools/train.py, use it with these lines in a config::

        custom_imports = dict(imports=['evit_mm.engine.hooks'], allow_failed_imports=False)
        custom_hooks = [dict(type='PreflightHook')]

    or, where ``custom_imports`` has other entries already, with the type
    ``'evit_mm.engine.hooks.PreflightHook'`` alone.

    There it runs when the datasets are built, so that a missing annotation file is reported by the
    dataset itself. Everything else is reported here, as a `UserError`: missing images and label
    maps, categories in another order than the config's classes, wrong numbers of classes, damaged
    label maps, a checkpoint of another model, batches that are too small for a norm, and operators
    that mmcv-lite lacks.

    Args:
        ignore_unknown_categories: Accept annotation files with categories that the config does not
            have.
        check_model: Run a model on our backbone once, on a blank image, to see whether backbone,
            neck and heads fit together.
        skip_invalid_objects: Train and evaluate without the objects of COCO files that can't be
            used.
    """

    priority = 'HIGHEST'  # before other hooks work with what is checked

    def __init__(self, ignore_unknown_categories: bool = False, check_model: bool = True,
                 skip_invalid_objects: bool = False) -> None:
        self.ignore_unknown_categories = ignore_unknown_categories
        self.skip_invalid_objects = skip_invalid_objects
        self._check_model = check_model
        self._checked: set[tuple[str, str]] = set()

    def before_run(self, runner: Any) -> None:
        """Check all splits that the run uses, unless `check` did so before."""
        # A runner builds the loops that it is going to use, and says in no other way which.
        self.check(runner, [split for split in _SPLITS
                            if isinstance(getattr(runner, f'_{split}_loop'), BaseLoop)])

    def before_train(self, runner: Any) -> None:
        """Release the checkpoint, in case that the runner did not load it."""
        release_checkpoint()

    def before_test(self, runner: Any) -> None:
        """Release the checkpoint, in case that the runner did not load it."""
        release_checkpoint()

    def check_config(self, config: Config, splits: Sequence[str],
                     repaired: Path | None = None) -> None:
        """Check the files that a config names; this needs no runner.

        Args:
            config: A whole config. Annotation files that were repaired are replaced in it.
            splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the run uses. Each is
                checked once.
            repaired: Folder for repaired copies of annotation files; None raises an error where
                one is needed, for a runner that has built its datasets already.

        Raises:
            UserError: If a mistake is found.
        """
        for split in self._unchecked('config', splits):
            dataloader = config.get(f'{split}_dataloader')
            if isinstance(dataloader, Mapping):
                preflight.check_files(dataloader, self.ignore_unknown_categories,
                                      scope=config.get('default_scope'))
                preflight.check_numbering(dataloader, scope=config.get('default_scope'))
                preflight.check_annotations(config, split, repaired=repaired,
                                            skip_invalid=self.skip_invalid_objects)

    def check(self, runner: Any, splits: Sequence[str]) -> None:
        """Check everything that a runner uses for some splits; it builds their datasets.

        Args:
            runner: A runner that has not loaded its checkpoint yet.
            splits: As in `check_config`.

        Raises:
            UserError: If a mistake is found.
        """
        self.check_config(runner.cfg, splits)
        splits = self._unchecked('data', splits)
        model = plain_model(runner.model)
        preflight.check_operators(model)
        if 'train' in splits:
            preflight.check_segmentation_heads(model)
            preflight.warn_of_batch_size(runner.cfg, runner.world_size)
        if splits:
            self._check_checkpoint(runner, training='train' in splits)
        if splits and self._check_model and self._unchecked('model', ['model']):
            check_model(model, runner.cfg.get('model'))
        for split in splits:
            loop = f'{split}_loop'  # a property that builds it
            dataset = preflight.built_dataset(lambda loop=loop: getattr(  # type: ignore[misc]
                runner, loop).dataloader.dataset, split)
            preflight.check_classes(model, dataset, split)
            preflight.check_label_maps(dataset, split,
                                       ignore_index=preflight.ignored_label(model))
            if split != 'train':
                preflight.warn_of_missed_images(getattr(runner, loop).evaluator, dataset, split)
        if 'train' in splits and 'model' in runner.cfg:
            preflight.check_norms(model, runner.train_loop.dataloader, runner.cfg,
                                  runner.world_size)

    def _check_checkpoint(self, runner: Any, training: bool) -> None:
        source, resumes = initial_checkpoint(runner)
        if source and not runner._has_loaded and self._unchecked('checkpoint', [source]):
            purpose = 'resume' if resumes else 'finetune' if training else 'test'
            complete = preflight.check_checkpoint(plain_model(runner.model), source,
                                                  purpose=purpose)
            for backbone in complete:
                backbone.init_cfg = None  # the weights that it names would be overwritten

    def _unchecked(self, kind: str, names: Sequence[str]) -> list[str]:
        """Return the names that were not checked in this respect yet, and mark them as checked."""
        names = [name for name in names if (kind, name) not in self._checked]
        self._checked.update((kind, name) for name in names)
        return names
