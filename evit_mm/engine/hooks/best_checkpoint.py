"""The earlier name of the checkpoint hook, which work dirs of earlier versions contain."""

from mmengine.registry import HOOKS

from .checkpoint import SafeCheckpointHook

__all__ = ['BestCheckpointHook']


@HOOKS.register_module()
class BestCheckpointHook(SafeCheckpointHook):
    """`SafeCheckpointHook` under its earlier name."""
