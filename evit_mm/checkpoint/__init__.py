"""Checkpoints: published names, safe loading, key layouts and conversion.

Only this package opens weight files and their addresses. Every key of a checkpoint is mapped by a
table, dropped by name, or an error. `convert` is imported separately; it writes files.
"""

from .bias_table import resize_attention_biases
from .containers import strip_containers
from .key_maps import LAYOUTS, MICROSOFT, NATIVE, TIMM, Layout
from .load import LoadReport, load_backbone_weights, translate_backbone_state
from .structure import (
    Structure,
    backbone_names,
    classifier_names,
    describe_weights,
    find_prefixes,
    infer_structure,
    variant_of,
)
from .zoo import (
    PUBLISHED,
    Published,
    address,
    list_weights,
    local_copy,
    markdown_table,
    read_checkpoint,
)

__all__ = ['LAYOUTS', 'MICROSOFT', 'NATIVE', 'PUBLISHED', 'TIMM', 'Layout', 'LoadReport',
           'Published', 'Structure', 'address', 'backbone_names', 'classifier_names',
           'describe_weights', 'find_prefixes', 'infer_structure', 'list_weights',
           'load_backbone_weights', 'local_copy', 'markdown_table', 'read_checkpoint',
           'resize_attention_biases', 'strip_containers', 'translate_backbone_state',
           'variant_of']
