"""A sound annotation file to damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_files import sound_content

from evit_mm.data.check import CocoCheck, check_coco


@pytest.fixture
def content() -> dict[str, Any]:
    """The content of a sound file."""
    return sound_content()


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., CocoCheck]:
    """Function that writes a content to a file, and checks that."""
    def run(content: Any, **options: Any) -> CocoCheck:
        path = tmp_path / 'mine.json'
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return check_coco(path, **options)
    return run
