"""Find a user's mistakes before training or testing starts, and report each in one sentence.

`files` checks the files that a config names, before anything is built; `categories` and
`annotations` COCO's annotation files; `datasets` built datasets; `evaluators` built evaluators;
`labels` label maps;
`segmentation_heads` the losses that learn from them; `batch` the size of a training batch and the
norms that it passes; `operators` those of mmcv that a model needs; `checkpoint` weights.
`evit_mm.engine.hooks.preflight` calls them all.
"""

from .annotations import check_annotations, needs_masks
from .batch import (
    check_norms,
    check_synced_norms,
    describe_batch_size,
    explain_norms,
    warn_of_batch_size,
)
from .checkpoint import check_checkpoint
from .datasets import built_dataset, check_classes
from .evaluators import warn_of_missed_images
from .files import check_files, coco_classes
from .labels import check_label_maps, check_numbering, ignored_label
from .operators import check_operators
from .segmentation_heads import check_segmentation_heads

__all__ = ['built_dataset', 'check_annotations', 'check_checkpoint', 'check_classes', 'check_files',
           'check_label_maps', 'check_norms', 'check_numbering', 'check_operators',
           'check_segmentation_heads', 'check_synced_norms', 'coco_classes', 'describe_batch_size',
           'explain_norms', 'ignored_label', 'needs_masks', 'warn_of_batch_size',
           'warn_of_missed_images']
