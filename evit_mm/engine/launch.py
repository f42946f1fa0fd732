"""Processes that train together, on GPUs or, where there is none, on the CPU."""

import atexit
import logging
import os
import sys

import torch
from mmengine.config import Config

from ..errors import UserError

__all__ = ['prepare_processes', 'work_is_done']


def prepare_processes(config: Config, launcher: str) -> None:
    """Start the process group and tell the config what it needs to know.

    mmengine starts groups on GPUs itself. On the CPU it would ask for a GPU first and bind the
    model to one, so here the group is started with gloo and the model is left where it is.

    Args:
        config: Changed in place.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        UserError: If the launcher's environment is not there.
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
    config.custom_hooks = [*(config.get('custom_hooks') or []), dict(type='MeanLossHook')]
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
        atexit.register(_leave_processes)


_work_is_done = False


def work_is_done() -> None:
    """Tell that nothing can go wrong any more: the process will end with status 0."""
    global _work_is_done
    _work_is_done = True


def _leave_processes() -> None:
    """Leave the group, and the process before torch's threads are torn down.

    On their way out these now and then abort a process that has done its work ("terminate called
    without an active exception", seen in torch 2.11 with gloo), and torchrun calls that a failure.
    Registered before any tracker's own such function, so that it runs behind all of them.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if _work_is_done:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
