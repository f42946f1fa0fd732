"""Distributed processes, on GPUs or, where there is none, on the CPU."""

import atexit
import logging
import os
import sys
from collections.abc import Mapping

import torch
from mmengine.config import Config

from ..errors import UserError
from .hooks.mean_loss import MeanLossHook

__all__ = ['prepare_processes', 'work_is_done']


def prepare_processes(config: Config, launcher: str) -> None:
    """Start the process group of a distributed run, and adapt the config to it.

    mmengine starts groups on GPUs itself. Without a GPU it would fail, as it binds each process to
    one; there this function starts the group with gloo, and the model stays on the CPU.

    Args:
        config: Changed in place.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        UserError: If the launcher's environment variables or its GPUs are missing.
    """
    config.launcher = launcher
    if launcher == 'none':
        return
    if launcher == 'pytorch':
        missing = [name for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')
                   if name not in os.environ]
        if missing:
            raise UserError(f'--launcher pytorch expects torchrun\'s environment, but '
                            f'{", ".join(missing)} is not set: start with torchrun, or '
                            'tools/dist_train.sh')
    # With its module, so that the config that a run writes to its work dir works in tools that
    # import `evit_mm` alone.
    mean_loss = f'{MeanLossHook.__module__}.{MeanLossHook.__name__}'
    hooks = [hook for hook in config.get('custom_hooks') or []
             if not (isinstance(hook, Mapping)
                     and hook.get('type') in (mean_loss, 'MeanLossHook'))]
    config.custom_hooks = [*hooks, dict(type=mean_loss)]
    atexit.register(_leave_processes)
    if torch.cuda.is_available():
        return
    if launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs, and torch finds none: use torchrun '
                        'with --launcher pytorch')
    config.env_cfg = dict(config.get('env_cfg') or {}, dist_cfg=dict(backend='gloo'))
    wrapper = config.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel', broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False))
    config.model_wrapper_cfg = dict(wrapper, device_ids=None)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')


_work_is_done = False


def work_is_done() -> None:
    """Declare that all work is done: a distributed process ends with status 0 from here on."""
    global _work_is_done
    _work_is_done = True


def _leave_processes() -> None:
    """Leave the group, and end the process before torch tears its threads down.

    Torch 2.11 with gloo sometimes aborts there ("terminate called without an active exception") in
    a process that has done its work, which torchrun takes for a failure; NCCL warns of a group that
    nobody has left. This function is registered before any experiment tracker's exit function, and
    thus runs after all of them.
    """
    # After an error, NCCL might wait for processes that are still training; torchrun ends them only
    # when this one has ended.
    if torch.distributed.is_initialized() and (
            _work_is_done or torch.distributed.get_backend() == 'gloo'):
        torch.distributed.destroy_process_group()
    if _work_is_done:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
