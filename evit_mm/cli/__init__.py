"""The flags of the tools, a file for each group of them, and how a tool ends."""

from .benchmark import benchmark_parser
from .common import run_tool
from .data import prepare_data_parser
from .training import test_parser, train_parser

__all__ = ['benchmark_parser', 'prepare_data_parser', 'run_tool', 'test_parser', 'train_parser']
