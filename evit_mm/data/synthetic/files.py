"""Read and write single files."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ['read_json', 'write_image', 'write_json']

_JPEG_QUALITY = 92


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON object; empty if the file is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object in one step from absent to complete, never cut short."""
    unfinished = path.with_name(f'{path.name}.tmp')
    unfinished.write_text(json.dumps(content) + '\n', encoding='utf-8')
    unfinished.replace(path)


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write a BGR image (H, W, 3) or a label map (H, W); the suffix says how."""
    # Encoded first and written by Python, because cv2.imwrite tells no reason when it fails.
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == '.jpg' else []
    done, encoded = cv2.imencode(path.suffix, image, options)
    if not done:
        raise RuntimeError(f'OpenCV cannot encode {path.suffix} files')
    path.write_bytes(encoded.tobytes())
