"""Find a user's mistakes before training or testing starts, and say each in one sentence.

`files` looks at what a config names, before anything is built; `categories` at COCO's annotation
files; `datasets` at built datasets; `labels` into label maps; `batch` at the size of a training
batch and the norms that it goes through; `checkpoint` at weights.
"""

from .batch import check_norms, check_synced_norms, explain_norms, log_batch_size
from .checkpoint import check_checkpoint
from .datasets import built_dataset, check_classes
from .files import check_files
from .labels import check_label_maps

__all__ = ['built_dataset', 'check_checkpoint', 'check_classes', 'check_files', 'check_label_maps',
           'check_norms', 'check_synced_norms', 'explain_norms', 'log_batch_size']
