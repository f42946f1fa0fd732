"""The checkpoint that a run starts from, read once for its check and for the runner."""

import re
from collections.abc import Mapping
from typing import Any

from mmengine.runner import CheckpointLoader, find_latest_checkpoint

__all__ = ['initial_checkpoint', 'read_checkpoint', 'release_checkpoint', 'trained_classes']

_patterns: list[str] = []  # of the checkpoint that waits for its second reader, if any


def initial_checkpoint(runner: Any) -> tuple[str | None, bool]:
    """Return the checkpoint that a runner loads, and whether it resumes from it.

    The runner decides the same in `Runner.load_or_resume`, which can't be asked beforehand.
    """
    source, resumes = runner._load_from, runner._resume  # mmengine has no public name for them
    if resumes and source is None:
        source = find_latest_checkpoint(runner.work_dir)
    return source, bool(resumes and source)


def read_checkpoint(source: str) -> Any:
    """Read a checkpoint, and keep it for the next reader of the same source.

    Checkpoints have up to some hundred megabytes, and addresses are not always fast: what a check
    has read, the runner (or `mmengine.runner.load_checkpoint`) receives without reading it again.

    Args:
        source: A file, address or name, as `CheckpointLoader` takes it.

    Returns:
        The content, on the CPU.

    Raises:
        CheckpointError: If it can't be read.
    """
    release_checkpoint()
    checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')

    # mmengine logs a loader's name from its tenth letter on: "Loads checkpoint by memory backend".
    def load_from_memory(*_: Any, **__: Any) -> Any:
        release_checkpoint()
        return checkpoint

    pattern = re.escape(source) + '$'
    CheckpointLoader.register_scheme(pattern, load_from_memory, force=True)
    _patterns.append(pattern)
    return checkpoint


def release_checkpoint() -> None:
    """Forget a checkpoint that is still kept; the next reader reads its source again."""
    while _patterns:
        # A scheme can be registered publicly, but not removed.
        CheckpointLoader._schemes.pop(_patterns.pop(), None)


def trained_classes(source: str) -> list[str] | None:
    """Return the classes that a checkpoint was trained on; None if it does not tell.

    Args:
        source: A file, address or name.

    Raises:
        CheckpointError: If it can't be read.
    """
    checkpoint = read_checkpoint(source)
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    dataset = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    classes = dataset.get('classes') if isinstance(dataset, Mapping) else None
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None
