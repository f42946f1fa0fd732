"""Keep freed memory in the process, which glibc would return to the kernel.

A network on a CPU frees and allocates the same megabytes in every layer. glibc returns such blocks
at once, so that each of them is faulted in again, page by page.
"""

import ctypes
import os

__all__ = ['keep_freed_memory']

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# The highest threshold that glibc takes; before 2.35 that is half of an arena's heap.
_MMAP_THRESHOLDS = (1 << 30, 32 << 20)
_NEVER = (1 << 31) - 1  # the largest int: mallopt takes no more


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory, from now on and for the whole process.

    Does nothing without glibc, or where the environment has settings of malloc of its own
    (``MALLOC_*``, or ``glibc.malloc`` in ``GLIBC_TUNABLES``).

    Returns:
        bool: Whether malloc accepted the setting.
    """
    if any(name.startswith('MALLOC_') for name in os.environ) \
            or 'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', ''):
        return False
    if 'CS_GNU_LIBC_VERSION' not in getattr(os, 'confstr_names', {}):
        return False
    try:
        if not (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc'):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, ValueError):  # another libc
        return False
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP_THRESHOLDS)
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER)) and mapped
