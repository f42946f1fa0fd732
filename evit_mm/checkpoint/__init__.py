"""Weights from wherever they come: every key is mapped, dropped by name, or an error."""

from .bias_table import resize_attention_biases
from .key_maps import LAYOUTS, MICROSOFT, NATIVE, TIMM, Layout, strip_containers
from .load import LoadReport, load_backbone_weights, translate_backbone_state
from .structure import (
    Structure,
    backbone_names,
    classifier_names,
    describe_weights,
    find_prefixes,
    recognise,
    variant_of,
)
from .zoo import PUBLISHED, Published, address, local_copy, markdown_table

__all__ = ['LAYOUTS', 'MICROSOFT', 'NATIVE', 'PUBLISHED', 'TIMM', 'Layout', 'LoadReport',
           'Published', 'Structure', 'address', 'backbone_names', 'classifier_names',
           'describe_weights', 'find_prefixes', 'load_backbone_weights', 'local_copy',
           'markdown_table', 'recognise', 'resize_attention_biases', 'strip_containers',
           'translate_backbone_state', 'variant_of']
