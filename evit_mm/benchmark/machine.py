"""Where an analysis runs: device, threads, random numbers."""

from pathlib import Path

import torch

from ..errors import UserError

__all__ = ['describe', 'use']


def use(device: str, *, threads: int | None = None, seed: int | None = None) -> torch.device:
    """Set what the process computes with.

    Args:
        device: As torch names it.
        threads: CPU threads; as torch chooses, unless given.
        seed: Of torch's random numbers on all devices.

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
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {device}: {str(error).splitlines()[0]}') from error
    return found


def describe(device: torch.device) -> str:
    """The device in words, such as ``'AMD EPYC 7R13 Processor, 2 threads'``."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = _processor() if device.type == 'cpu' else device.type
    count = torch.get_num_threads()
    return f'{name}, {count} thread{"" if count == 1 else "s"}'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # no Linux
        return 'cpu'
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else 'cpu'
