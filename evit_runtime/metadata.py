"""What an exported file says about itself."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .class_names import Colour
from .preprocess import Preprocessing

__all__ = ['KEY', 'Metadata']

KEY = 'evit_mm'
"""The key of the metadata in a file."""

_FORMAT = 1


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself, as JSON.

    Attributes:
        task: ``'detection'``, ``'instance segmentation'``, ``'semantic segmentation'`` or
            ``'features'``.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        preprocessing: How images are resized and padded.
        batch: Images of a batch; None for any number.
        class_names: Names of the classes.
        palette: A colour (red, green, blue) for each.
        precision: ``'fp32'``, ``'fp16'``, ``'bf16'`` or ``'int8'``.
        score_threshold: Objects with a lower score are left out inside the file.
        max_objects: Most objects of an image.
        nms: The suppression inside the file.
        mask_threshold: Probability from which a pixel belongs to a mask.
        strides: Of a backbone, the stride of each output.
        model: Name of the config or the backbone.
        versions: Of the packages that wrote the file.
    """

    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    preprocessing: Preprocessing
    batch: int | None = None
    class_names: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    precision: str = 'fp32'
    score_threshold: float = 0.0
    max_objects: int = 0
    nms: dict[str, Any] = field(default_factory=dict)
    mask_threshold: float = 0.5
    strides: tuple[int, ...] = ()
    model: str = ''
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the metadata as JSON."""
        return json.dumps({'format': _FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> 'Metadata':
        """Read metadata.

        Raises:
            ValueError: If it is something else, or of a later format; the message says what.
        """
        try:
            content = json.loads(text)
            if content.pop('format') > _FORMAT:
                raise ValueError('a later version of evit-mm has written it')
            content['preprocessing'] = Preprocessing(**_known(Preprocessing,
                                                              content['preprocessing']))
            return cls(**_known(cls, content))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f'its metadata is damaged: {error}') from error
        except json.JSONDecodeError as error:
            raise ValueError(f'its metadata is not JSON: {error}') from error


def _known(kind: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that a class has a field for, lists as tuples."""
    names = {each.name for each in fields(kind)}
    return {name: _tuples(value) for name, value in content.items() if name in names}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
