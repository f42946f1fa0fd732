"""A training of a toy model that takes a fraction of a second, by mmengine's own runner.

The dataset, the model and the optimizer have all that makes a resumed run differ from an
uninterrupted one: random augmentations from three generators, dropout, momentum and statistics of
batch normalization.
"""

import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import Dataset

_names = itertools.count()


class Points(Dataset):
    """Dataset of points that are moved by all three generators of random numbers."""

    metainfo = dict(classes=('point',))

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        moved = torch.rand(4) + random.random() + np.random.rand() + int(index)
        # Not as a tensor: torch ends workers that share one only after 5 s.
        return dict(inputs=moved.numpy(), data_samples=f'image_{int(index)}.jpg')


class Toy(BaseModel):
    """Model with dropout and batch normalization.

    Args:
        pad: Size of a buffer that makes its checkpoints larger.
        bf16: Whether to compute by autocast in bfloat16.
    """

    def __init__(self, pad: int = 0, bf16: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 1))
        self.register_buffer('pad', torch.zeros(pad))
        self.bf16 = bf16

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'loss') -> Any:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=self.bf16):
            values = self.layers(torch.from_numpy(np.stack(inputs)))
        if mode == 'predict':
            torch.rand(1)  # a validation draws random numbers too
            return [float(value) for value in values]
        return dict(loss_near=values.float().square().mean(), loss_far=values.float().abs().mean())


class Mean(BaseMetric):
    """Metric of the mean prediction."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(acc=float(np.mean(results)))


class Slow(Hook):
    """Hook that makes each iteration take some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        time.sleep(self.seconds)


def build(work_dir: Path, *, by_epoch: bool = False, length: int = 12, interval: int = 1,
          workers: int = 0, persistent: bool = False, hooks: Any = (), pad: int = 0,
          bf16: bool = False, validate: bool = False, ema: bool = False, keep: int = 1,
          accumulate: int = 1, size: int = 10, **options: Any) -> Runner:
    """Return a runner of a training with our checkpoint hook and loops.

    Args:
        work_dir: Its folder.
        by_epoch: Whether it counts epochs, of five iterations each.
        length: Epochs or iterations.
        interval: Of checkpoints.
        workers: Processes that load data.
        persistent: Whether these live on from epoch to epoch.
        hooks: Further hooks.
        pad: As in `Toy`.
        bf16: As in `Toy`.
        validate: Whether to validate and keep the best checkpoint.
        ema: Whether to average the weights.
        keep: Checkpoints to keep.
        accumulate: Batches of a step.
        size: Samples in the dataset.
        options: For the runner.
    """
    torch.manual_seed(0)
    model = Toy(pad, bf16)
    kind = 'Epoch' if by_epoch else 'Iter'
    train_cfg: dict[str, Any] = dict(type=f'evit_mm.engine.loops.Resuming{kind}BasedTrainLoop',
                                     val_interval=1 if by_epoch else 3)
    train_cfg['max_epochs' if by_epoch else 'max_iters'] = length
    loader = dict(dataset=Points(size), batch_size=2, num_workers=workers,
                  persistent_workers=persistent, sampler=dict(type='DefaultSampler'))
    checkpoint = dict(type='evit_mm.engine.hooks.SafeCheckpointHook', by_epoch=by_epoch,
                      interval=interval, max_keep_ckpts=keep)
    more: list[Any] = list(hooks)
    if ema:
        more.append(dict(type='EMAHook', momentum=0.2))
    if validate:
        checkpoint['save_best'] = 'acc'
        options.update(val_dataloader=dict(loader, sampler=dict(type='DefaultSampler',
                                                                shuffle=False)),
                       val_cfg=dict(), val_evaluator=dict(type=Mean))
    name = f'toy{next(_names)}'
    return Runner(**dict(dict(
        model=model, work_dir=str(work_dir), experiment_name=name, train_dataloader=loader,
        train_cfg=train_cfg, visualizer=Visualizer.get_instance('toy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
                           accumulative_counts=accumulate),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=8, by_epoch=False),
        default_hooks=dict(checkpoint=checkpoint), custom_hooks=more, default_scope='mmengine',
        randomness=dict(seed=7), log_level='ERROR'), **options))


def final_state(work_dir: Path) -> dict[str, Any]:
    """Return weights, averages and the optimizer of the latest checkpoint."""
    path = (Path(work_dir) / 'last_checkpoint').read_text()
    checkpoint = torch.load(path, weights_only=False)
    return {key: checkpoint.get(key) for key in ('state_dict', 'ema_state_dict', 'optimizer')}


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
