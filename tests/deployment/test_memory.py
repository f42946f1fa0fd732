"""Keeping freed memory in the process."""

import os
import subprocess
import sys

import pytest

from evit_mm.deployment import memory as malloc
from evit_mm.deployment.memory import keep_freed_memory

GLIBC = 'CS_GNU_LIBC_VERSION' in getattr(os, 'confstr_names', {})
# Prints the page faults of taking 24 MiB for the second time. Loads the one file, not torch.
PROGRAM = '''
import ctypes, resource, runpy, sys
if sys.argv[2] == 'keep':
    assert runpy.run_path(sys.argv[1])['keep_freed_memory']()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 24 << 20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''


@pytest.mark.skipif(not GLIBC, reason='needs glibc')
def test_memory_is_not_faulted_in_twice():
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('MALLOC_', 'GLIBC_TUNABLES'))}

    def faults(way):
        return int(subprocess.run([sys.executable, '-c', PROGRAM, malloc.__file__, way],
                                  env=environment, check=True, capture_output=True,
                                  text=True).stdout)

    # 6144 pages of 4 KiB, or 12 of 2 MiB.
    assert faults('keep') < 6 < faults('leave')


@pytest.mark.parametrize('name,value', [('MALLOC_ARENA_MAX', '1'),
                                        ('GLIBC_TUNABLES', 'glibc.malloc.trim_threshold=1')])
def test_settings_of_the_environment_are_kept(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False


@pytest.mark.parametrize('libc', [None, 'musl'])
def test_other_libraries_are_left_alone(monkeypatch, libc):
    monkeypatch.setattr(os, 'confstr', lambda _: libc, raising=False)
    assert keep_freed_memory() is False
