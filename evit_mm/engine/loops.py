"""Iteration-based training that resumes at once.

mmengine's `IterBasedTrainLoop` resumes at iteration N by loading N batches and dropping them, which
takes hours, and in a different order where no seed was set. Here only the sampler advances, by its
indices.
"""

import itertools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, IterBasedTrainLoop, set_random_seed
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, IterableDataset

from ..errors import ConfigError
from .initial_checkpoint import initial_checkpoint

__all__ = ['ResumingIterBasedTrainLoop', 'resume_at_once']

_STOCK_LOOP = (IterBasedTrainLoop, 'IterBasedTrainLoop', 'mmengine.IterBasedTrainLoop',
               'mmengine.runner.IterBasedTrainLoop', 'mmengine.runner.loops.IterBasedTrainLoop')


def resume_at_once(config: Config) -> None:
    """Replace mmengine's iteration-based loop in a config by `ResumingIterBasedTrainLoop`.

    Any other loop is left as it is.

    Args:
        config: Changed in place: the type of ``train_cfg``, and nothing else.
    """
    loop = config.get('train_cfg')
    if not isinstance(loop, dict):
        return
    if 'type' not in loop and loop.get('by_epoch') is False:
        del loop['by_epoch']  # mmengine's other way to name its loop; it accepts only one
    elif loop.get('type') not in _STOCK_LOOP:
        return
    # With its module, so that the config that a run writes to its work dir works in tools that
    # import `evit_mm` alone.
    loop['type'] = f'{__name__}.{ResumingIterBasedTrainLoop.__name__}'


@LOOPS.register_module()
class ResumingIterBasedTrainLoop(IterBasedTrainLoop):
    """mmengine's iteration-based loop, which resumes without loading what was seen before.

    A run that does not resume equals one of `IterBasedTrainLoop`, random numbers included. A run
    that resumes at iteration N

    - takes N batches of indices from the sampler and loads none of them. The samples that follow
      are those that would have followed, in the same order, in each process: samplers are built
      with the checkpoint's seed, whether a seed was set or drawn, and their epoch is the number of
      passes over the dataset;
    - does not repeat the augmentations and dropout of the run's start, as it would with the same
      seed: random numbers, in this process and in mmengine's workers, are seeded with the run's
      seed and N together. Resuming twice from one checkpoint gives the same numbers twice. A
      ``worker_init_fn`` of the config keeps control of its workers.

    Where indices don't determine what is loaded next (iterable datasets, subclasses of
    `DataLoader`, a `DataLoader` object that has been iterated already), it loads and drops N
    batches, as mmengine does, and warns. It also warns if the order can't be kept because the
    sampler draws from shared random numbers, or may change because the seed of a `DataLoader`
    object is up to the caller.

    Args:
        runner: The runner.
        dataloader: A dataloader or its config.
        *args: Passed to `IterBasedTrainLoop`, from ``max_iters`` on.
        **kwargs: Passed to `IterBasedTrainLoop`.
    """

    dataloader: DataLoader
    dataloader_iterator: Iterator[Any] | None

    def __init__(self, runner: Any, dataloader: DataLoader | dict, *args: Any, **kwargs: Any
                 ) -> None:
        self._dataloader_config = dataloader if isinstance(dataloader, dict) else None
        self._initial_seed = runner.seed
        if not initial_checkpoint(runner)[1]:
            super().__init__(runner, dataloader, *args, **kwargs)
            return
        # mmengine would start the workers here, and they would load the run's first samples.
        BaseLoop.__init__(self, runner, dataloader)
        loader: DataLoader = self.dataloader
        super().__init__(runner, _Unstarted(loader), *args, **kwargs)
        self.dataloader, self.dataloader_iterator = loader, None

    def run(self) -> Any:
        """Train until ``max_iters``.

        Returns:
            nn.Module: The model.

        Raises:
            ConfigError: If the sampler yields no batch.
        """
        if self._iter > 0:
            obstacle = self._obstacle()
            if obstacle:
                print_log(f'Resuming at iteration {self._iter} loads all earlier batches again, '
                          f'because {obstacle}', logger='current', level=logging.WARNING)
            else:
                self._renew_samplers()
                self.dataloader_iterator = self._batches_from(self._iter)
        if self.dataloader_iterator is None:
            self.dataloader_iterator = _InfiniteDataloaderIterator(self.dataloader)
        return super().run()

    def _obstacle(self) -> str | None:
        """Return why indices don't determine the position of this dataloader; None if they do."""
        loader = self.dataloader
        if type(loader) is not DataLoader:  # a subclass may take its indices from anywhere
            return f'the dataloader is a {type(loader).__name__}, not torch\'s DataLoader'
        if isinstance(loader.dataset, IterableDataset):
            return f'{type(loader.dataset).__name__} is an iterable dataset'
        started = self.dataloader_iterator is not None or loader._iterator is not None
        if started and self._dataloader_config is None:
            return ('the dataloader is an object that was iterated before the checkpoint was '
                    'read; pass a dict, or resume=True, to the runner')
        return None

    def _renew_samplers(self) -> None:
        """Build unused samplers with the seed of the checkpoint."""
        if self._dataloader_config is None:
            print_log('The dataloader is an object: the order of samples continues only if its '
                      'sampler has the same seed as before', logger='current',
                      level=logging.WARNING)
            return
        if self.dataloader_iterator is None and self.runner.seed == self._initial_seed:
            return
        # Keep the dataset: reading its annotations can take minutes, and hooks may refer to it.
        dataset = self.dataloader.dataset
        config = dict(self._dataloader_config, dataset=dict(type=lambda: dataset))
        self.dataloader_iterator = None  # ends its workers
        # With diff_rank_seed, a sampler draws its seed from numpy's random numbers, which must be
        # those of the run's start.
        set_random_seed(self.runner.seed)
        self.dataloader = self.runner.build_dataloader(
            config, seed=self.runner.seed,
            diff_rank_seed=self.runner._randomness_cfg.get('diff_rank_seed', False))

    def _batches_from(self, iteration: int) -> Iterator[Any]:
        """Yield batches endlessly, after the number of None that mmengine's loop drops.

        The first ``next()`` advances the sampler, not the call: by then the hooks have run, one of
        which sets the sampler's epoch.
        """
        loader = self.dataloader
        self._renew_random_numbers(iteration)
        before = _random_states(loader)
        indices, passes, samples = _skip_batches(loader, iteration)
        if _random_states(loader) != before:
            print_log(f'{_name_of_sampler(loader)} draws from random numbers that others share and '
                      'that no checkpoint keeps: after this resume, samples come in a new random '
                      'order', logger='current', level=logging.WARNING)
        print_log(f'Resumed at iteration {iteration}: skipped {samples} samples '
                  f'{"in each process " if self.runner.world_size > 1 else ""}without loading them',
                  logger='current')
        yield from itertools.repeat(None, iteration)
        # The workers start only now, with the first batch.
        with _continuing(loader, indices):
            batches = _InfiniteDataloaderIterator(loader)
        batches._epoch = passes
        yield from batches

    def _renew_random_numbers(self, iteration: int) -> None:
        """Seed all random numbers with the run's seed and the iteration together."""
        mixed = np.random.SeedSequence((self.runner.seed, iteration)).generate_state(1)
        seed = int(mixed[0]) // 2  # numpy takes 32 bits, and mmengine adds the worker's number
        set_random_seed(seed)
        config = self._dataloader_config
        if config is not None and 'worker_init_fn' not in config:
            worker_init_fn: Any = self.dataloader.worker_init_fn
            self.dataloader.worker_init_fn = partial(worker_init_fn, seed=seed)


class _Unstarted:
    """Placeholder of a dataloader in mmengine's constructor, whose iter() starts no worker."""

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = loader.dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Continued:
    """Sampler whose first iterator is one that has been advanced already."""

    def __init__(self, sampler: Any, advanced: Iterator[Any]) -> None:
        self._sampler = sampler
        self._advanced: Iterator[Any] | None = advanced

    def __iter__(self) -> Iterator[Any]:
        # A generator, as torch calls iter() twice before it takes the first index.
        advanced, self._advanced = self._advanced, None
        yield from self._sampler if advanced is None else advanced

    def __len__(self) -> int:
        return len(self._sampler)


def _skip_batches(loader: DataLoader, iterations: int) -> tuple[Iterator[Any], int, int]:
    """Take the indices of a number of batches from a dataloader's sampler, pass by pass.

    Returns:
        tuple: The rest of the current pass over the dataset, the number of passes completed before
        it, and the number of samples skipped.

    Raises:
        ConfigError: If a pass yields nothing.
    """
    sampler = getattr(loader, _role_of_sampler(loader))
    passes = samples = 0
    _set_epoch(loader, passes)
    while True:
        indices, left = iter(sampler), iterations
        for index in itertools.islice(indices, iterations):
            iterations -= 1
            samples += 1 if loader.batch_sampler is None else len(index)
        if not iterations:
            return indices, passes, samples
        if iterations == left:
            raise ConfigError(f'train_dataloader yields no batch: {_name_of_sampler(loader)} '
                              'yields no indices; with drop_last, the dataset needs at least '
                              'batch_size samples')
        passes += 1
        _set_epoch(loader, passes)


@contextmanager
def _continuing(loader: DataLoader, indices: Iterator[Any]) -> Iterator[None]:
    """Make iterators that are created of ``loader`` in this block continue with ``indices``.

    An iterator keeps the sampler of its creation, so that the loader itself is restored at the end.
    """
    role = _role_of_sampler(loader)
    sampler = getattr(loader, role)
    # Past DataLoader.__setattr__, which refuses another sampler.
    object.__setattr__(loader, role, _Continued(sampler, indices))
    try:
        yield
    finally:
        object.__setattr__(loader, role, sampler)


def _role_of_sampler(loader: DataLoader) -> str:
    """Return the attribute whose indices are loaded; without batch_size, torch loads singly."""
    return 'sampler' if loader.batch_sampler is None else 'batch_sampler'


def _name_of_sampler(loader: DataLoader) -> str:
    """Return the types of a loader's samplers, such as ``BatchSampler of InfiniteSampler``."""
    outer = getattr(loader, _role_of_sampler(loader))
    inner = getattr(outer, 'sampler', None)
    return type(outer).__name__ + (f' of {type(inner).__name__}' if inner is not None else '')


def _set_epoch(loader: DataLoader, epoch: int) -> None:
    """Set the sampler's epoch to the number of the pass, as mmengine does after each."""
    # With a batch sampler of the config, loader.sampler is a placeholder of torch without epochs.
    samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
    for sampler in samplers:
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return


def _random_states(loader: DataLoader) -> list[Any]:
    """Return the states of all random number generators that a sampler shares with others."""
    numpy_state = np.random.get_state(legacy=False)['state']
    generators = [torch.default_generator]
    if loader.generator is not None:
        generators.append(loader.generator)
    return [random.getstate(), numpy_state['key'].tolist(), numpy_state['pos'],
            *(generator.get_state().tolist() for generator in generators)]
