"""Find a user's mistakes before training or testing starts, and report each in one sentence.

`files` checks the files that a config names, before anything is built; `categories` COCO's
annotation files; `datasets` built datasets; `labels` label maps; `batch` the size of a training
batch and the norms that it passes; `operators` those of mmcv that a model needs; `checkpoint`
weights. `evit_mm.engine.hooks.preflight` calls them all.
"""

from .batch import (
    check_norms,
    check_synced_norms,
    describe_batch_size,
    explain_norms,
    warn_of_batch_size,
)
from .checkpoint import check_checkpoint
from .datasets import built_dataset, check_classes
from .files import check_files
from .labels import check_label_maps, ignored_label
from .operators import check_operators

__all__ = ['built_dataset', 'check_checkpoint', 'check_classes', 'check_files', 'check_label_maps',
           'check_norms', 'check_operators', 'check_synced_norms', 'describe_batch_size',
           'explain_norms', 'ignored_label', 'warn_of_batch_size']
