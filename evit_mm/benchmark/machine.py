"""Set up and describe the machine that models run on."""

from pathlib import Path

import torch

from ..errors import UserError

__all__ = ['describe', 'use']


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


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        return 'cpu'
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else 'cpu'
