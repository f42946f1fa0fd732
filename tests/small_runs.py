"""Options of small trainings, and what several of them in one process need."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

LOADERS = {f'{split}_dataloader.{key}': value for split in ('train', 'val', 'test')
           for key, value in (('num_workers', 0), ('persistent_workers', False))}
# Two epochs of four iterations, without the flips that a resumed process would draw differently.
DETECTION = {
    **LOADERS, 'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2,
    'train_dataloader.batch_size': 2, 'train_dataloader.dataset.pipeline.2.scale': (96, 96),
    'train_dataloader.dataset.pipeline.3.prob': 0.0,
    'val_dataloader.dataset.pipeline.1.scale': (96, 96),
    'test_dataloader.dataset.pipeline.1.scale': (96, 96),
    'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
    # A model that has hardly learnt predicts nothing above the usual threshold.
    'model.test_cfg.score_thr': 0.0}


@contextmanager
def fresh_registries() -> Iterator[None]:
    """Hide the logger, message hub, visualizer and default scope of earlier runs.

    mmengine keeps them for the life of the process under the config's name and the second at which
    the run began, so that the second of two quick runs would log to the first one's streams.
    """
    with pytest.MonkeyPatch.context() as patch:
        for kind in (DefaultScope, MessageHub, MMLogger, Visualizer):
            patch.setattr(kind, '_instance_dict', type(kind._instance_dict)())
        yield


def read_scalars(work_dir: Path) -> list[dict]:
    """Return the logged training steps of the latest run in a work dir."""
    path = max(Path(work_dir).glob('*/vis_data/scalars.json'),
               key=lambda path: path.stat().st_mtime)
    return [entry for entry in map(json.loads, path.read_text().splitlines())
            if 'loss' in entry]
