"""Classes of a model by name or number, and a colour for each."""

import colorsys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from .errors import UserError

__all__ = ['Colour', 'class_colours', 'class_numbers', 'complete_names']

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_GOLDEN_RATIO = 0.618034


def class_colours(count: int, palette: Sequence[Sequence[int]] | None = None) -> list[Colour]:
    """Return a colour for each class: those of the dataset, or colours far apart."""
    if palette is not None and len(palette) >= count:
        return [(int(r), int(g), int(b)) for r, g, b in palette[:count]]
    # Each hue is far from those of its neighbours, for any number of classes.
    colours = (colorsys.hsv_to_rgb(k * _GOLDEN_RATIO % 1, 0.85 if k % 2 else 0.6, 0.9)
               for k in range(count))
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours]


def class_numbers(classes: Iterable[str | int], class_names: Sequence[str]) -> set[int]:
    """Return the numbers of classes that are given by name or by number.

    A name is looked for as it is written, and then without regard to case.

    Raises:
        UserError: If there is no such class; the message has the nearest names.
    """
    if isinstance(classes, str | int):
        classes = [classes]
    by_name = {name: number for number, name in reversed(list(enumerate(class_names)))}
    by_lower_case = {name.lower(): by_name[name] for name in reversed(class_names)}
    numbers = set()
    for given in classes:
        if not isinstance(given, str):
            number = int(given) if 0 <= given < len(class_names) else None
        else:
            number = by_name.get(given, by_lower_case.get(given.lower()))
        if number is None:
            near = get_close_matches(str(given).lower(), by_lower_case, n=3)
            names = [class_names[by_lower_case[name]] for name in near] or list(class_names[:5])
            rest = len(class_names) - 5
            raise UserError(
                f'the model has no class {given!r}; '
                + ('did you mean ' if near else f'it has {len(class_names)}: ')
                + (' or ' if near else ', ').join(names)
                + ('?' if near else f' and {rest} more' if rest > 0 else ''))
        numbers.add(number)
    return numbers


def complete_names(class_names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return a name for each of a model's classes: those known, or numbers for all of them."""
    if len(class_names) == count:
        return tuple(class_names)
    return tuple(f'class {number}' for number in range(count))
