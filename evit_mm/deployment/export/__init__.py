"""Whole models as plain modules, written to ONNX, OpenVINO and torch.export's format."""

from .run import export

__all__ = ['export']
