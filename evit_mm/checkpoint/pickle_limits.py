"""Limits on what a checkpoint's pickle may take, checked without executing it.

torch's own reader of weights runs no code, but a few hundred bytes can keep it busy for years, or
let it allocate gigabytes: tuples of tuples that share their parts and are hashed as a key, a
bytearray of any length, a tensor that repeats one number a billion times. Here the instructions of
the pickle are followed with the sizes of what they would create, in time and memory that follow the
size of the file.
"""

import io
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

__all__ = ['check_limits']

_LARGEST_KEY = 1000  # values in a tuple and the tuples inside; those of a checkpoint have a few
_DEEPEST = 200  # containers inside containers
_REPEATS = 64  # times that a part may be reached, on average: a checkpoint shares names and types
_LEAST = 1 << 20  # values and bytes that any file may take
_LEGACY_PICKLES = 5  # of torch's old format: a magic number, a version, a system, data, keys
_STORAGE = 'a storage'  # no global has a space in its name
_ALLOCATING = ('bytearray', 'bytes', 'Tensor', 'Storage')  # ends of the names of types


class _Value:
    """A value that a pickle would create: what it is, its parts, and what it takes.

    Attributes:
        kind: ``'tuple'``, ``'list'``, ``'dict'``, ``'set'``, ``'global'``, ``'object'`` or
            ``'plain'``.
        plain: A number or text; the name of a global, or of the global that made an object.
        parts: The values inside.
        size: Number of values inside a tuple, with those of its tuples.
    """

    __slots__ = ('kind', 'parts', 'plain', 'size')

    def __init__(self, kind: str, plain: Any = None, parts: list['_Value'] | None = None) -> None:
        self.kind = kind
        self.plain = plain
        self.parts = parts if parts is not None else []
        self.size: int = 1
        if kind == 'tuple':
            self.size += sum(part.size for part in self.parts)


def check_limits(path: Path) -> None:
    """Check the pickles of a file of `torch.save`.

    Raises:
        pickle.UnpicklingError: If loading it would take more than its size explains, or it contains
            what no checkpoint needs.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        with path.open('rb') as file:
            for _ in range(_LEGACY_PICKLES):
                _follow(file, size)
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise pickle.UnpicklingError(f'compressed entry {entry.filename}')
        for name in archive.namelist():
            if name.endswith('/data.pkl') or name == 'data.pkl':
                _follow(io.BytesIO(archive.read(name)), size)


def _follow(file: Any, file_size: int) -> None:
    """Follow the instructions of one pickle."""
    stack: list[_Value] = []
    marks: list[list[_Value]] = []
    memo: dict[int, _Value] = {}
    created = 0

    def above_mark() -> list[_Value]:
        nonlocal stack
        values, stack = stack, marks.pop()
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        created += 1
        if name == 'STOP':
            _check_whole(stack[-1], created)
            return
        if name in ('PROTO', 'FRAME'):
            continue
        if name == 'MARK':
            marks.append(stack)
            stack = []
        elif name in ('POP', 'POP_MARK'):
            above_mark() if name == 'POP_MARK' else stack.pop()
        elif name == 'DUP':
            stack.append(stack[-1])
        elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
            memo[int(argument)] = stack[-1]
        elif name == 'MEMOIZE':
            memo[len(memo)] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET', 'GET'):
            stack.append(memo[int(argument)])
        elif name == 'GLOBAL':
            stack.append(_Value('global', argument.replace(' ', '.')))
        elif name == 'STACK_GLOBAL':
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Value('global', f'{module.plain}.{attribute.plain}'))
        elif name in ('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_TUPLE'):
            count = int(name[5:] or 0) if name != 'EMPTY_TUPLE' else 0
            if name == 'TUPLE':
                parts = above_mark()
            else:
                parts = stack[len(stack) - count:]
                del stack[len(stack) - count:]
            stack.append(_Value('tuple', parts=parts))
        elif name in ('EMPTY_LIST', 'EMPTY_DICT', 'EMPTY_SET'):
            stack.append(_Value(name[6:].lower()))
        elif name in ('LIST', 'DICT', 'FROZENSET'):
            stack.append(_Value(name.lower(), parts=above_mark()))
        elif name == 'APPEND':
            value = stack.pop()
            stack[-1].parts.append(value)
        elif name in ('APPENDS', 'SETITEMS', 'ADDITEMS'):
            values = above_mark()
            _check_keys(values if name == 'ADDITEMS' else
                        values[::2] if name == 'SETITEMS' else [])
            stack[-1].parts.extend(values)
        elif name == 'SETITEM':
            value, key = stack.pop(), stack.pop()
            _check_keys([key])
            stack[-1].parts.extend((key, value))
        elif name in ('REDUCE', 'NEWOBJ'):
            arguments, function = stack.pop(), stack.pop()
            _check_call(str(function.plain), arguments.parts, file_size)
            stack.append(_Value('object', function.plain, list(arguments.parts)))
        elif name == 'BUILD':
            state = stack.pop()
            _check_state(stack[-1], state)
            stack[-1].parts.append(state)
        elif name == 'BINPERSID':
            stack.append(_storage(stack.pop(), file_size))
        else:  # a number, a text or the like; what it takes is in the file
            stack.append(_Value('plain', argument))
    raise pickle.UnpicklingError('no end')


def _check_keys(keys: list[_Value]) -> None:
    for key in keys:
        if key.size > _LARGEST_KEY:
            raise pickle.UnpicklingError(f'a key of {min(key.size, 10**30)} values')


def _check_call(function: str, arguments: list[_Value], file_size: int) -> None:
    """Check the arguments of a function that would be called."""
    if arguments and function.endswith(_ALLOCATING):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {function} with a length')
    if function == '_codecs.encode' and [value.plain for value in arguments[1:]] not in (
            ['latin1'], ['latin-1'], []):
        raise pickle.UnpicklingError('Unsupported global: GLOBAL _codecs.encode of a codec')
    for value in arguments:
        _check_keys(value.parts if function in ('builtins.set', 'builtins.frozenset') else [])
    # A view of a storage: its offset, shape and strides follow.
    if len(arguments) > 2 and arguments[0].plain == _STORAGE:
        shape = [part.plain for part in arguments[2].parts]
        if any(not isinstance(number, int) for number in shape) or \
                math.prod(map(abs, shape)) > max(file_size, _LEAST):
            raise pickle.UnpicklingError(f'a tensor of shape {shape}')


def _check_state(instance: _Value, state: _Value) -> None:
    """Check the attributes that an object would receive."""
    if str(instance.plain).endswith(('OrderedDict', 'Counter')):
        names = [key.plain for key in state.parts[::2]]
        if state.kind != 'dict' or any(hasattr(dict, str(name)) for name in names):
            raise pickle.UnpicklingError(f'a dictionary with attributes {names}')


def _storage(place: _Value, file_size: int) -> _Value:
    """Return the storage that a persistent id names."""
    length = place.parts[4].plain if len(place.parts) > 4 else 0
    if not isinstance(length, int) or not 0 <= length <= file_size:
        raise pickle.UnpicklingError(f'a storage of {length} numbers')
    return _Value('object', _STORAGE)


def _check_whole(root: _Value, created: int) -> None:
    """Check how often the parts of the result would be visited, and how deep they lie."""
    visits: dict[int, int] = {}
    depths: dict[int, int] = {}
    stack: list[tuple[_Value, bool]] = [(root, False)]
    open_values: set[int] = set()
    while stack:
        value, leaving = stack.pop()
        key = id(value)
        if leaving:
            open_values.discard(key)
            visits[key] = 1 + sum(visits.get(id(part), 1) for part in value.parts)
            depths[key] = 1 + max((depths.get(id(part), 1) for part in value.parts), default=0)
            continue
        if key in visits:
            continue
        if key in open_values:
            continue
        open_values.add(key)
        stack.append((value, True))
        # Whoever visits a container that contains itself has to stop by its own means.
        stack.extend((part, False) for part in value.parts
                     if part.parts and id(part) not in visits and id(part) not in open_values)
    if visits[id(root)] > max(_LEAST, _REPEATS * created):
        raise pickle.UnpicklingError('a few values that are repeated without end')
    if depths[id(root)] > _DEEPEST:
        raise pickle.UnpicklingError(f'{depths[id(root)]} containers inside each other')
