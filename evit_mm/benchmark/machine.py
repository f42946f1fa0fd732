"""Set up and describe the machine that models run on."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..errors import UserError
from ..version import __version__

__all__ = ['describe', 'driver', 'use', 'versions']


def use(device: str, *, threads: int | None = None, seed: int | None = None) -> torch.device:
    """Choose the device, the CPU threads and the random seed of this process.

    Args:
        device: The device as torch names it.
        threads: Number of CPU threads; by default torch's choice.
        seed: Seed of torch's random numbers on all devices.

    Returns:
        torch.device: The device.

    Raises:
        UserError: If the device can't be used, or the number of threads is not positive.
    """
    if threads is not None:
        if threads < 1:
            raise UserError(f'--threads must be positive, got {threads}')
        torch.set_num_threads(threads)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device}: {str(error).splitlines()[0]}') from error
    return chosen


def describe(device: torch.device) -> str:
    """Return the name of a device, such as ``'AMD EPYC 7R13 Processor, 2 threads'``."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = _processor() if device.type == 'cpu' else device.type
    count = torch.get_num_threads()
    return f'{name}, {count} thread{"" if count == 1 else "s"}'


def driver() -> str | None:
    """Return the version of NVIDIA's driver; None where ``nvidia-smi`` can't tell."""
    if not shutil.which('nvidia-smi'):
        return None
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.split()), None)


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, and what models are built from or run on."""
    found = {'evit_mm': __version__, 'python': platform.python_version(),
             'torch': torch.__version__}
    for name in ('timm', 'torchvision'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found['cuda'] = torch.version.cuda
        found['cudnn'] = str(torch.backends.cudnn.version())
    return found


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        return 'cpu'
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else 'cpu'
