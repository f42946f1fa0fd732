"""The flags of the tools, a file for each group of them, and how a tool ends."""

from .benchmark import benchmark_parser
from .common import run_tool
from .data import prepare_data_parser
from .weights import convert_weights_parser

__all__ = ['benchmark_parser', 'convert_weights_parser', 'prepare_data_parser', 'run_tool']
