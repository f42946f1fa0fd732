"""The operators that the code of a class calls."""

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

__all__ = ['called_operators']

_OPS = 'mmcv.ops'


@cache
def called_operators(cls: type) -> frozenset[str]:
    """Return the names of the operators that methods of a class call.

    It reads code, and runs none. Functions of ``mmcv.ops`` are followed, and those of the module
    that calls them. Other `torch.nn.Module` classes aren't: if a model has them, they are asked
    themselves. A call on a condition counts.

    Args:
        cls: Any class.
    """
    operators: set[str] = set()
    seen: set[int] = set()
    open_ends: list[Any] = [cls]
    while open_ends:
        item = open_ends.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        for function in _functions(item):
            for value, attribute in _references(function):
                if isinstance(value, ModuleType) and value.__name__ == 'mmcv._ext':
                    operators.add(attribute)
                    continue
                if isinstance(value, ModuleType) and _is_of_ops(value.__name__):
                    value = getattr(value, attribute, None)
                value = getattr(value, '__self__', value)  # `Function.apply` belongs to its class
                is_module = isinstance(value, type) and issubclass(value, nn.Module)
                home = getattr(value, '__module__', None)
                is_neighbor = isinstance(value, FunctionType) and home == function.__module__
                if (_is_of_ops(home) or is_neighbor) and not is_module:
                    open_ends.append(value)
    return frozenset(operators)


def _is_of_ops(name: object) -> bool:
    return isinstance(name, str) and (name == _OPS or name.startswith(f'{_OPS}.'))


def _functions(item: Any) -> Iterator[FunctionType]:
    """Yield the functions of which a function, or a class with its bases, consists."""
    members = [item]
    if isinstance(item, type):
        members = [member for base in item.__mro__ if base.__module__.partition('.')[0] != 'torch'
                   for member in vars(base).values()]
    for member in members:
        parts = ([member.fget, member.fset] if isinstance(member, property)
                 else [getattr(member, '__func__', member)])
        for part in parts:
            function = inspect.unwrap(part) if callable(part) else part
            if isinstance(function, FunctionType):
                yield function


@cache  # classes share methods of their bases
def _references(function: FunctionType) -> tuple[tuple[Any, str], ...]:
    return tuple(_globals_in(function.__code__, function.__globals__))


def _globals_in(code: CodeType, scope: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield the values of the global names in code, each with the attribute taken of it, or ''."""
    instructions = [i for i in dis.get_instructions(code) if i.opname != 'EXTENDED_ARG']
    for instruction, following in zip(instructions, [*instructions[1:], None], strict=True):
        if instruction.opname == 'LOAD_GLOBAL' and instruction.argval in scope:
            takes = following is not None and following.opname in ('LOAD_ATTR', 'LOAD_METHOD')
            yield scope[instruction.argval], following.argval if takes and following else ''
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # of a function or comprehension inside
            yield from _globals_in(constant, scope)
