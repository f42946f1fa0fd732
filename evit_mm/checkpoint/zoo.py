"""Published weights: one table for configs, documentation and the loader.

`evit_mm.checkpoint.download` fetches all of them, including those on Hugging Face's hub. The hub's
own client would add a second cache and a dozen packages, for what is one https address per file.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .safe_load import MapLocation, download_checkpoint, existing_file, load_checkpoint_file

__all__ = ['PUBLISHED', 'TIMM_REPOSITORY', 'Published', 'address', 'find_published', 'list_weights',
           'local_copy', 'markdown_table', 'read_checkpoint']

_RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
_HUB = 'https://huggingface.co'
_TIMM_TAG = 'r224_in1k'
_TIMM_NAME = r'efficientvit_m[0-5]'
_HUB_NAME = re.compile(r'(?:hf-hub:|hf://)(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?'
                       r'(?:/(?P<file>.+))?')

# A tag starts like r224; a name that ends in .pth is a file in a folder called timm.
TIMM_REPOSITORY = rf'timm/{_TIMM_NAME}(?:\.r\d[\w.-]*)?$'
"""Pattern of timm's names of its repositories on Hugging Face's hub."""


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        name: Its name in configs.
        source: Its address, or its repository on Hugging Face's hub (``hf-hub:owner/repository``).
        arch: The variant, ``'m0'`` to ``'m5'``.
        trained_for: Dataset and task.
        accuracy: As published; empty if it was not.
        size: In bytes; None if unknown.
        sha256: SHA-256 of the file; None if unknown.
    """

    name: str
    source: str
    arch: str
    trained_for: str
    accuracy: str = ''
    size: int | None = None
    sha256: str | None = None

    @property
    def address(self) -> str:
        """The https address of the file."""
        return _hub_address(self.source) if _HUB_NAME.fullmatch(self.source) else self.source


_TOP1 = {'m0': 63.2, 'm1': 68.4, 'm2': 70.8, 'm3': 73.4, 'm4': 74.3, 'm5': 77.1}

PUBLISHED: tuple[Published, ...] = (
    *(Published(f'evit://efficientvit_{arch}', f'{_RELEASE}efficientvit_{arch}.pth', arch,
                'ImageNet-1k at 224', f'{top1} top-1') for arch, top1 in _TOP1.items()),
    Published('evit://retinanet_efficientvit_m4_fpn_1x_coco',
              f'{_RELEASE}retinanet_efficientvit_m4_fpn_1x_coco.pth', 'm4',
              'COCO, RetinaNet, 12 epochs', '32.7 box AP'),
    Published('evit://mask_rcnn_efficientvit_m4_fpn_1x_coco',
              f'{_RELEASE}mask_rcnn_efficientvit_m4_fpn_1x_coco.pth', 'm4',
              'COCO, Mask R-CNN, 12 epochs', '32.8 box AP, 31.0 mask AP'),
    *(Published(f'timm://efficientvit_{arch}', f'hf-hub:timm/efficientvit_{arch}.{_TIMM_TAG}', arch,
                'ImageNet-1k at 224') for arch in _TOP1),
)
"""Microsoft's classifiers and detectors, and timm's classifiers."""


def list_weights() -> tuple[Published, ...]:
    """Return the published weights that can be loaded by name."""
    return PUBLISHED


def find_published(name: str) -> Published | None:
    """Return the published weights of a name; ``evit://`` may be left out."""
    return next((row for row in PUBLISHED if name in (row.name, row.name.removeprefix('evit://'))),
                None)


def address(source: str) -> str:
    """Return the http or https address of weights.

    Args:
        source: One of

            - ``evit://efficientvit_m4``, or the same without ``evit://``: a name in `PUBLISHED`,
            - ``timm://efficientvit_m4``, also with another tag: ``timm://efficientvit_m4.mine``,
            - ``timm/efficientvit_m4.r224_in1k``: that repository on Hugging Face's hub,
            - ``hf-hub:owner/repository``, with ``@revision`` and ``/file`` if these differ from
              main and model.safetensors; ``hf://`` is the same. ``HF_ENDPOINT`` selects another
              server than huggingface.co.

    Returns:
        str: The address; anything else, such as a file or an address, is returned unchanged.

    Raises:
        CheckpointError: If the name is not published or malformed.
    """
    row = find_published(source)
    if row:
        return row.address
    if source.startswith('evit://'):
        names = [row.name for row in PUBLISHED if row.name.startswith('evit://')]
        near = difflib.get_close_matches(source, names, 3, 0.8) or names
        raise CheckpointError(f'{source} is not published; choose from {", ".join(near)}')
    if source.startswith('timm://'):
        if not re.fullmatch(_TIMM_NAME + r'\.[\w.-]+', source.removeprefix('timm://')):
            raise CheckpointError(f'{source} is not one of timm://efficientvit_m0 to '
                                  'timm://efficientvit_m5')
        return _hub_address('hf-hub:timm/' + source.removeprefix('timm://'))
    if _is_timm_repository(source):
        return _hub_address(f'hf-hub:{source}')
    if source.startswith(('hf-hub:', 'hf://')):
        return _hub_address(source)
    return source


def local_copy(source: str | os.PathLike[str]) -> Path:
    """Return the local file of a name, an address or a path, and download it if necessary.

    A local file with the same name takes precedence over a published one.

    Raises:
        MissingCheckpointError: If there is no such file.
        CheckpointError: If the file may not be opened or can't be downloaded.
    """
    source = os.fspath(source)
    if _is_file(source):
        return Path(source).expanduser()
    url = address(source)
    if url.startswith(('http://', 'https://')):
        row = find_published(source)
        return download_checkpoint(url, sha256=row.sha256 if row else None)
    return existing_file(source)


def read_checkpoint(source: str | os.PathLike[str], map_location: MapLocation = None, *,
                    trust: bool = False) -> Any:
    """Load a checkpoint from a file, an address or a published name, without running code from it.

    Args:
        source: As in `local_copy`.
        map_location: As in `torch.load`.
        trust: As in `load_checkpoint_file`.

    Returns:
        The content, usually a dict; see `load_checkpoint_file`.

    Raises:
        CheckpointError: As in `local_copy` and `load_checkpoint_file`.
    """
    return load_checkpoint_file(local_copy(source), map_location, trust=trust)


def markdown_table() -> str:
    """Return the table of published weights, as docs/weights.md shows it."""
    rows = [('name', 'variant', 'trained for', 'published accuracy', 'size', 'SHA-256', 'address'),
            ('---',) * 7]
    for row in PUBLISHED:
        rows.append((f'`{row.name}`', row.arch, row.trained_for, row.accuracy or '–',
                     f'{row.size / 1e6:.1f} MB' if row.size else '–', row.sha256 or '–',
                     f'<{row.address}>'))
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in rows)


def _is_timm_repository(source: str) -> bool:
    return re.fullmatch(TIMM_REPOSITORY, source) is not None


def _hub_address(name: str) -> str:
    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise CheckpointError(f'{name} is not a file on Hugging Face\'s hub: write '
                              'hf-hub:owner/repository, followed by /file if it is not '
                              'model.safetensors')
    repository = match['repository']
    if re.fullmatch(f'timm/{_TIMM_NAME}', repository):
        repository += f'.{_TIMM_TAG}'
    endpoint = os.environ.get('HF_ENDPOINT', '').rstrip('/') or _HUB
    return (f'{endpoint}/{repository}/resolve/{match["revision"] or "main"}/'
            f'{match["file"] or "model.safetensors"}')


def _is_file(source: str) -> bool:
    try:
        return Path(source).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null byte
        return False
