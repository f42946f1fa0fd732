"""The checkpoint in a work dir that a run resumes from."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoint.safe_load import load_checkpoint_file
from ..errors import CheckpointError
from ..files import write_atomically
from .model_parts import non_finite

__all__ = ['describe_latest', 'find_resume_point', 'latest_checkpoint']

_POINTER = 'last_checkpoint'


def find_resume_point(config: Config) -> str | None:
    """Find the newest sound checkpoint in the work dir of a config, and make it the latest.

    A checkpoint is sound if it can be read, tells its iteration, and has no weight that is NaN.
    Those that are passed over are logged. mmengine, and every other tool, then finds the sound one
    by the file ``last_checkpoint``.

    Args:
        config: A whole config, with its ``work_dir``.

    Returns:
        Its path; None if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints, and none of them is sound.
    """
    work_dir = Path(config.work_dir)
    named = latest_checkpoint(work_dir)
    passed: list[str] = []
    for path in _candidates(config, work_dir, named):
        damage = _damage(path)
        if damage is None:
            for text in passed:
                _warn(f'passed over {text}')
            if path != named:
                _warn(f'resuming from {path}')
                with write_atomically(work_dir / _POINTER) as file:
                    file.write(path)
            return path
        passed.append(damage)
    if passed:
        raise CheckpointError(f'there is no sound checkpoint in {work_dir} to resume from: '
                              f'{"; ".join(passed)}; leave --resume out to start anew')
    return None


def latest_checkpoint(work_dir: str | os.PathLike[str]) -> str | None:
    """Return what the file ``last_checkpoint`` of a work dir names; None if it names nothing."""
    try:
        return Path(work_dir, _POINTER).read_text(encoding='utf-8').strip() or None
    except (OSError, ValueError):
        return None


def describe_latest(work_dir: str | os.PathLike[str]) -> str:
    """Return where a run that ends here can go on, as a part of a sentence."""
    path = latest_checkpoint(work_dir)
    return f'go back to {path} with --resume' if path else 'there is no checkpoint yet: start anew'


def _candidates(config: Config, work_dir: Path, named: str | None) -> Iterator[str]:
    """Yield paths, the newest first; the one that ``last_checkpoint`` names wins a tie."""
    template = str(((config.get('default_hooks') or {}).get('checkpoint') or {}
                    ).get('filename_tmpl') or 'epoch_{}.pth')
    pattern = re.compile(rf'(?:epoch|iter)_\d+\.pth|{_pattern(template)}')
    folders = {work_dir, Path(named).parent if named else work_dir}
    paths = {str(path): path.stat().st_mtime_ns for folder in folders if folder.is_dir()
             for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file()}
    if named and named not in paths:
        place = Path(named)
        paths[named] = place.stat().st_mtime_ns if place.is_file() else sys.maxsize

    def age(path: str) -> tuple[int, bool, int]:
        number = re.search(r'(\d+)\D*$', Path(path).name)
        return paths[path], path == named, int(number[1]) if number else 0

    yield from sorted(paths, key=age, reverse=True)


def _pattern(template: str) -> str:
    """Return a regular expression for the names of a ``filename_tmpl``."""
    before, _, after = template.partition('{}')
    return rf'{re.escape(before)}\d+{re.escape(after)}'


def _damage(path: str) -> str | None:
    """Return why a run can't resume from a file, in a sentence that names it."""
    try:
        checkpoint: Any = load_checkpoint_file(path, map_location='cpu')
    except CheckpointError as error:
        return str(error)
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    weights = checkpoint.get('state_dict') if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict) or not isinstance(weights, dict) or not {
            'iter', 'epoch'} <= set(meta) or 'message_hub' not in checkpoint:
        return f'{path}, which has weights but not the state of a training'
    wrong = non_finite(weights, infinite=False)  # a mask of a model may be infinite
    if wrong:
        return f'{path}, where {len(wrong)} of {len(weights)} weights are not a number (NaN)'
    return None


def _warn(text: str) -> None:
    if os.environ.get('RANK', '0') == '0':
        print_log(text, logger='current', level=logging.WARNING)
