"""Published weights: every key is mapped, dropped by name, or an error."""

from .bias_table import resize_attention_biases
from .layouts import LAYOUTS, Layout, strip_containers
from .load import LoadReport, load_backbone_weights, translate_backbone_state

__all__ = ['LAYOUTS', 'Layout', 'LoadReport', 'load_backbone_weights',
           'resize_attention_biases', 'strip_containers', 'translate_backbone_state']
