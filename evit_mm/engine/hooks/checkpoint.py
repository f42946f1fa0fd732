"""Checkpoints that an interruption can't damage."""

import logging
import math
import re
import shutil
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from ...errors import UserError
from ...files import write_atomically
from ..model_parts import non_finite, plain_model
from ..random_states import plain_states
from ..resume_point import describe_latest

__all__ = ['SafeCheckpointHook']

_BACKEND = 'evit_mm.AtomicLocalBackend'
_UNFINISHED = re.compile(r'(?:.*\.pth|last_checkpoint)\.\d+\.tmp')  # of write_atomically
# Tensors of its state for each weight; an optimizer that is not listed is taken for the largest.
_OPTIMIZER_STATE = {'SGD': 1, 'RMSprop': 2, 'Lion': 1, 'Adagrad': 1}
_LARGEST_STATE = 2


@register_backend(_BACKEND)
class AtomicLocalBackend(LocalBackend):
    """mmengine's backend of local files, which writes a file whole or not at all."""

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes to a file.

        Raises:
            UserError: If they can't be written; what the file held before is kept.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path, 'wb') as file:
            file.write(obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, made so that a sound checkpoint exists at any moment.

    - A checkpoint is written next to its place, and moved there when it is on the disk. Then
      ``last_checkpoint`` is replaced in the same way, and only then are older checkpoints deleted,
      also with ``max_keep_ckpts=1`` and for the best checkpoint.
    - Weights that are not finite are never written: the run ends with a `UserError`, and the
      checkpoint before them stays.
    - A disk with less space than a checkpoint needs is reported before the first iteration.
    - A validation that lacks the metric of ``save_best`` is passed over. MMDetection's metrics
      report nothing while a detector detects nothing, as it may at first.

    `evit_mm.train` uses it in the place of mmengine's; a config may name it in ``default_hooks``.
    Other storage than local files is written as mmengine does.
    """

    # mmengine's, which has no types.
    backend_args: dict[str, Any] | None
    file_backend: Any
    keep_ckpt_ids: deque[int]

    last_iteration: int | None = None  # of the latest checkpoint of this process
    _progress: list[Any] | None = None

    def before_train(self, runner: Any) -> None:
        """Prepare the folder of the checkpoints.

        Raises:
            UserError: If its disk has no space for one.
        """
        place = str(self.out_dir or runner.work_dir)
        self._is_local = '://' not in place and not place.startswith('s3:')
        if self._is_local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend=_BACKEND)
        super().before_train(runner)
        self._never_finite = set(non_finite(plain_model(runner.model).state_dict()))
        if self._is_local and is_main_process():
            for folder in {Path(self.out_dir), Path(runner.work_dir)}:
                _delete_unfinished(folder)
            _check_space(runner, Path(self.out_dir), self.save_optimizer)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that are not finite, and add what resuming exactly needs.

        Raises:
            UserError: If there are some; names the first of them.
        """
        for part in ('state_dict', 'ema_state_dict'):
            weights = checkpoint.get(part) or {}
            wrong = [name for name in non_finite(weights)
                     if name.removeprefix('module.') not in self._never_finite]
            if wrong:
                raise UserError(
                    f'{len(wrong)} of {len(weights)} weights are not finite after iteration '
                    f'{runner.iter + 1}, such as {wrong[0]}: no checkpoint is written of them; '
                    f'{describe_latest(runner.work_dir)}, with a lower learning rate')
        if self._progress is not None:
            checkpoint['progress'] = plain_states(self._progress)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float]) -> None:
        """Save the checkpoint if it is the best one so far."""
        wanted = [name for name in self.save_best or [] if name != 'auto']
        lacking = [name for name in wanted if name not in metrics]
        if self.save_best and (lacking or not metrics):
            print_log(f'this validation has no {", ".join(lacking) or "metric"}: it is not among '
                      'those that the best checkpoint is chosen from', logger='current',
                      level=logging.WARNING)
            return
        super().after_val_epoch(runner, metrics)

    def save_now(self, runner: Any, *, iteration: int, epoch: int) -> str:
        """Save a checkpoint outside the interval, which the next regular one deletes.

        Args:
            runner: The runner.
            iteration: Number of iterations that are complete.
            epoch: Number of epochs that are complete.

        Returns:
            str: Its path, or that of the latest checkpoint if it is of this iteration.
        """
        if self.last_iteration != iteration:
            name = f'iter_{iteration}.pth'
            path = self.file_backend.join_path(self.out_dir, name)
            hub = runner.message_hub
            hub.update_info('passing_ckpts', [*_passing(hub), path])
            self._write(runner, name, dict(epoch=epoch, iter=iteration))
        return str(self.last_ckpt)

    # mmengine's two methods, whose order of deleting and writing is what this class changes; there
    # is nothing public to change it by.
    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        obsolete: list[str] = []
        hub = runner.message_hub
        if self.max_keep_ckpts > 0:
            steps = [*(kept for kept in self.keep_ckpt_ids if kept != step), step]
            # With the obsolete ones: if this process ends before they are deleted, the resumed one
            # finds them in the checkpoint, and mmengine deletes them.
            hub.update_info('keep_ckpt_ids', steps)
            obsolete = [self._path(old) for old in steps[:-self.max_keep_ckpts]]
            self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts:], self.max_keep_ckpts)
        obsolete += _passing(hub)
        self._write(runner, self.filename_tmpl.format(step), meta)
        if self.max_keep_ckpts > 0:
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        hub.update_info('passing_ckpts', [])
        self._delete(obsolete)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, float]) -> None:
        backend = self.file_backend
        self.file_backend = postponed = _PostponedDeletions(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        self._delete(postponed.paths)

    def _write(self, runner: Any, name: str, meta: dict[str, Any]) -> None:
        """Write a checkpoint, and then the name of the latest one."""
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        progress = getattr(runner.train_loop, 'progress', None)
        # All processes come here, and the first one writes.
        self._progress = all_gather_object(progress()) if callable(progress) else None
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        self._progress = None
        self.last_iteration = meta['iter']
        if is_main_process():
            with write_atomically(Path(runner.work_dir) / 'last_checkpoint') as file:
                file.write(str(self.last_ckpt))

    def _delete(self, paths: Iterable[str]) -> None:
        if not is_main_process():
            return
        current = {str(self.last_ckpt), *map(str, self._best_paths())}
        for path in paths:
            if str(path) in current:
                continue
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # checkpoints saved by deepspeed
                self.file_backend.rmtree(path)

    def _best_paths(self) -> list[str]:
        if not self.save_best:
            return []
        if len(self.key_indicators) == 1:
            return [self.best_ckpt_path] if self.best_ckpt_path else []
        return [path for path in self.best_ckpt_path_dict.values() if path]

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))


class _PostponedDeletions:
    """File backend that collects what is to be deleted.

    Attributes:
        paths: The files and folders.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.paths: list[str] = []

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def _passing(hub: Any) -> list[str]:
    return list(hub.runtime_info.get('passing_ckpts') or ())


def _delete_unfinished(folder: Path) -> None:
    """Delete what a killed process has left of a checkpoint; it may be as large as a whole one."""
    for path in folder.glob('*.tmp'):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _check_space(runner: Any, folder: Path, with_optimizer: bool) -> None:
    """Compare the free space of a folder with the size of a checkpoint.

    Raises:
        UserError: If one has no place.
    """
    model = plain_model(runner.model)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values()
               if hasattr(value, 'element_size'))
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    if with_optimizer and optimizer is not None:
        trained = sum(weight.numel() * weight.element_size()
                      for group in optimizer.param_groups for weight in group['params'])
        kind = type(optimizer).__name__
        size += trained * _OPTIMIZER_STATE.get(kind, _LARGEST_STATE)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < size:
        raise UserError(
            f'{folder} has {_megabytes(free)} MB left, and a checkpoint of this training takes '
            f'about {_megabytes(size)} MB: free some space, or choose another --work-dir')
    # The new one is written before the old one is deleted.
    if free < 2 * size:
        print_log(f'{folder} has {_megabytes(free)} MB left: room for one checkpoint of about '
                  f'{_megabytes(size)} MB, and none for the next one beside it', logger='current',
                  level=logging.WARNING)


def _megabytes(size: float) -> str:
    return f'{math.ceil(size / 1e6):,}'
