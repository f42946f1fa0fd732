"""Devices that the operators are tested on."""

from collections.abc import Generator

import pytest
import torch

from evit_mm.compat import mmcv_ops

COMPILED = not mmcv_ops.install()


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def device(request):
    """Return the name of a device; the tests on CUDA are skipped without it."""
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test for which a compiled mmcv has no kernel on its device."""
    try:
        return (yield)
    except RuntimeError as error:
        if COMPILED and 'implementation for device' in str(error):
            pytest.skip(f'the compiled mmcv: {error}')
        raise
