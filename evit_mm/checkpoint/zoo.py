"""The published weights: one table for configs, documentation and the loader, and their names.

Everything is fetched by `evit_mm.checkpoint.download`, the files of Hugging Face's hub too. Its own
client would bring a second cache and a dozen packages for what is one https address a file.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .safe_load import download_checkpoint, existing_file

__all__ = ['PUBLISHED', 'Published', 'address', 'local_copy', 'markdown_table',
           'published']

_RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
_HUB = 'https://huggingface.co'
_TIMM_TAG = 'r224_in1k'
_TIMM_NAME = r'efficientvit_m[0-5]'
_HUB_NAME = re.compile(r'(?:hf-hub:|hf://)(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?'
                       r'(?:/(?P<file>.+))?')


# A tag begins like r224; what ends in .pth is a file in a folder called timm.
TIMM_REPOSITORY = rf'timm/{_TIMM_NAME}(?:\.r\d[\w.-]*)?$'


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        name: What a config calls it.
        source: Its address, or its place on Hugging Face's hub (``hf-hub:owner/repository``).
        arch: The variant, ``'m0'`` to ``'m5'``.
        trained_for: Data and task.
        accuracy: As published; empty where nothing was.
        size: Bytes; None where it is not known.
        sha256: Of the file; None where it is not known.
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
        """Where it is downloaded from."""
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
"""Microsoft's classifiers and detectors, and timm's files."""


def published(name: str) -> Published | None:
    """The row of the table that a name means: with its scheme, or, for ours, without."""
    return next((row for row in PUBLISHED if name in (row.name, row.name.removeprefix('evit://'))),
                None)


def address(source: str) -> str:
    """The http or https address that ``source`` means.

    Args:
        source: One of

            - ``evit://efficientvit_m4``, or without the scheme: the first column of the table,
            - ``timm://efficientvit_m4``, with another tag too: ``timm://efficientvit_m4.mine``,
            - ``timm/efficientvit_m4.r224_in1k``: that repository on Hugging Face's hub,
            - ``hf-hub:owner/repository``, with ``@revision`` and ``/file`` where they are not
              main and model.safetensors; ``hf://`` is the same. ``HF_ENDPOINT`` names another
              server than huggingface.co.

    Returns:
        str: The address; anything else, a file or an address already, as it is.

    Raises:
        CheckpointError: If it is written like a name, but is none.
    """
    row = published(source)
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


def local_copy(source: str) -> Path:
    """The file that a name, an address or a path means, downloaded where it has to be.

    A file that is called like a name goes first.

    Raises:
        CheckpointError: If there is none, or it can't be downloaded.
    """
    if _is_file(source):
        return Path(source).expanduser()
    place = address(source)
    if place.startswith(('http://', 'https://')):
        row = published(source)
        return download_checkpoint(place, sha256=row.sha256 if row else None)
    return existing_file(place)


def markdown_table() -> str:
    """The table, as docs/weights.md shows it."""
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
        raise CheckpointError(f'{name} is no file of Hugging Face\'s hub: write '
                              'hf-hub:owner/repository, and /file where it is not '
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
