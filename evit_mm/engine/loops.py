"""Training by iterations that resumes at once, where mmengine loads again all that was seen.

mmengine's `IterBasedTrainLoop` resumes at iteration N by loading N batches and throwing them away,
which takes hours, and in an order of its own where no seed was given. Here only the sampler is
advanced, by its indices.
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
from mmengine.runner import (
    BaseLoop,
    IterBasedTrainLoop,
    find_latest_checkpoint,
    set_random_seed,
)
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, IterableDataset

from ..errors import ConfigError

__all__ = ['ResumingIterBasedTrainLoop', 'resume_at_once']

_STOCK_LOOP = (IterBasedTrainLoop, 'IterBasedTrainLoop', 'mmengine.IterBasedTrainLoop',
               'mmengine.runner.IterBasedTrainLoop', 'mmengine.runner.loops.IterBasedTrainLoop')


def resume_at_once(config: Config) -> None:
    """Let a config that trains with mmengine's loop by iterations resume without loading again.

    Any other loop is left as it is.

    Args:
        config: Changed in place: the type of ``train_cfg``, and nothing else in it.
    """
    loop = config.get('train_cfg')
    if not isinstance(loop, dict):
        return
    if 'type' not in loop and loop.get('by_epoch') is False:
        del loop['by_epoch']  # mmengine's other way to name its loop; it takes no two at once
    elif loop.get('type') not in _STOCK_LOOP:
        return
    # With its module, so that the config that a run leaves in its work dir is understood by tools
    # that import no more than `evit_mm`.
    loop['type'] = f'{__name__}.{ResumingIterBasedTrainLoop.__name__}'


@LOOPS.register_module()
class ResumingIterBasedTrainLoop(IterBasedTrainLoop):
    """mmengine's loop by iterations; only what happens at a resume differs.

    A run that does not resume is one of `IterBasedTrainLoop`, random numbers included. One that
    resumes at iteration N

    - takes N batches of indices from the sampler and loads none of them. The samples that follow
      are those that would have followed, in the same order, in each process: samplers are built
      with the seed of the checkpoint, whether a seed was given or not, and their epoch is the
      number of passes made over the dataset;
    - does not repeat the augmentations and dropout of the run's start, as it would with the same
      seed: random numbers, in this process and in mmengine's workers, start from the seed and N
      together. Resuming twice from one checkpoint gives the same numbers twice. A
      ``worker_init_fn`` of the config stays in charge of its workers.

    Where indices do not say what is loaded next (iterable datasets, subclasses of `DataLoader`,
    a `DataLoader` object that has been iterated already), it loads and drops N batches, as
    mmengine does, and says so. It warns if the order can't be kept, because the sampler draws
    from random numbers that others share, or may not be, because the seed of a `DataLoader` object
    is the caller's.

    Args:
        runner: The runner.
        dataloader: A dataloader, or the config of one.
        *args: As for `IterBasedTrainLoop`, from ``max_iters`` on.
        **kwargs: Likewise.
    """

    dataloader: DataLoader
    dataloader_iterator: Iterator[Any] | None

    def __init__(self, runner: Any, dataloader: DataLoader | dict, *args: Any, **kwargs: Any
                 ) -> None:
        self._dataloader_config = dataloader if isinstance(dataloader, dict) else None
        self._initial_seed = runner.seed
        if not _resumes(runner):
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
                print_log(f'Resuming at iteration {self._iter} loads again all that was seen, '
                          f'because {obstacle}', logger='current', level=logging.WARNING)
            else:
                self._renew_samplers()
                self.dataloader_iterator = self._batches_from(self._iter)
        if self.dataloader_iterator is None:
            self.dataloader_iterator = _InfiniteDataloaderIterator(self.dataloader)
        return super().run()

    def _obstacle(self) -> str | None:
        """Why indices can't tell where this dataloader stands, if they can't."""
        loader = self.dataloader
        if type(loader) is not DataLoader:  # a subclass may take its indices from anywhere
            return f'the dataloader is a {type(loader).__name__}, not a DataLoader of torch'
        if isinstance(loader.dataset, IterableDataset):
            return f'{type(loader.dataset).__name__} is an iterable dataset'
        started = self.dataloader_iterator is not None or loader._iterator is not None
        if started and self._dataloader_config is None:
            return ('the dataloader is an object that was started before the checkpoint was read; '
                    'give a dict, or resume=True to the runner')
        return None

    def _renew_samplers(self) -> None:
        """Have samplers that nothing was taken from, with the seed of the checkpoint."""
        if self._dataloader_config is None:
            print_log('The dataloader is an object: the order of samples goes on only if its '
                      'sampler has the seed that it had before', logger='current',
                      level=logging.WARNING)
            return
        if self.dataloader_iterator is None and self.runner.seed == self._initial_seed:
            return
        # The dataset is kept: reading its annotations can take minutes, and hooks may hold it.
        dataset = self.dataloader.dataset
        config = dict(self._dataloader_config, dataset=dict(type=lambda: dataset))
        self.dataloader_iterator = None  # ends its workers
        # With diff_rank_seed, a sampler draws its seed from numpy's random numbers, as they were
        # when the run began.
        set_random_seed(self.runner.seed)
        self.dataloader = self.runner.build_dataloader(
            config, seed=self.runner.seed,
            diff_rank_seed=self.runner._randomness_cfg.get('diff_rank_seed', False))

    def _batches_from(self, iteration: int) -> Iterator[Any]:
        """Batches without end, after as many None as mmengine's loop drops at a resume.

        The first ``next()`` moves the sampler, not the call: by then the hooks, one of which sets
        the sampler's epoch, have run.
        """
        loader = self.dataloader
        self._renew_random_numbers(iteration)
        before = _random_states(loader)
        indices, passes, samples = _pass_over(loader, iteration)
        if _random_states(loader) != before:
            print_log(f'{_name_of_sampler(loader)} draws from random numbers that others share and '
                      'that no checkpoint keeps: the order of samples after this resume is another '
                      'random one', logger='current', level=logging.WARNING)
        print_log(f'Resumed at iteration {iteration}: passed over {samples} samples '
                  f'{"in each process " if self.runner.world_size > 1 else ""}without loading them',
                  logger='current')
        yield from itertools.repeat(None, iteration)
        # Only now that a batch is wanted do the workers start.
        with _continuing(loader, indices):
            batches = _InfiniteDataloaderIterator(loader)
        batches._epoch = passes
        yield from batches

    def _renew_random_numbers(self, iteration: int) -> None:
        """Start random numbers anew, from the run's seed and the iteration together."""
        mixed = np.random.SeedSequence((self.runner.seed, iteration)).generate_state(1)
        seed = int(mixed[0]) // 2  # numpy takes 32 bits, and mmengine adds the worker's number
        set_random_seed(seed)
        config = self._dataloader_config
        if config is not None and 'worker_init_fn' not in config:
            mmengines: Any = self.dataloader.worker_init_fn
            self.dataloader.worker_init_fn = partial(mmengines, seed=seed)


class _Unstarted:
    """Stands for a dataloader while mmengine's constructor looks at it: iter() starts nothing."""

    def __init__(self, loader: DataLoader) -> None:
        self.dataset = loader.dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Continued:
    """A sampler whose first iterator was begun elsewhere; the ones that follow are its own."""

    def __init__(self, sampler: Any, begun: Iterator[Any]) -> None:
        self._sampler = sampler
        self._begun: Iterator[Any] | None = begun

    def __iter__(self) -> Iterator[Any]:
        # A generator, as torch asks for an iterator twice before it takes the first index.
        begun, self._begun = self._begun, None
        yield from self._sampler if begun is None else begun

    def __len__(self) -> int:
        return len(self._sampler)


def _resumes(runner: Any) -> bool:
    """Whether `Runner.train` is going to resume; decided as it does."""
    return bool(runner._resume) and bool(runner._load_from
                                         or find_latest_checkpoint(runner.work_dir))


def _pass_over(loader: DataLoader, iterations: int) -> tuple[Iterator[Any], int, int]:
    """Take the indices of so many batches from a dataloader's sampler, pass by pass.

    Returns:
        tuple: What is left of the current pass over the dataset, the passes completed before it,
        and the number of samples passed over.

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
            raise ConfigError(f'train_dataloader yields no batch: {_name_of_sampler(loader)} gives '
                              'no indices; with drop_last, there must be as many samples as '
                              'batch_size')
        passes += 1
        _set_epoch(loader, passes)


@contextmanager
def _continuing(loader: DataLoader, indices: Iterator[Any]) -> Iterator[None]:
    """Let an iterator that is made of ``loader`` meanwhile go on with ``indices``.

    An iterator keeps the sampler that it finds, so that the loader itself stays as it was.
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
    """The attribute whose indices are loaded: without batch_size, torch loads one by one."""
    return 'sampler' if loader.batch_sampler is None else 'batch_sampler'


def _name_of_sampler(loader: DataLoader) -> str:
    """The types of what makes the indices, such as ``BatchSampler of InfiniteSampler``."""
    outer = getattr(loader, _role_of_sampler(loader))
    inner = getattr(outer, 'sampler', None)
    return type(outer).__name__ + (f' of {type(inner).__name__}' if inner is not None else '')


def _set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the sampler the number of the pass, as mmengine does after each."""
    # Beside a batch sampler of the config, loader.sampler is a stopgap of torch without epochs.
    samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
    for sampler in samplers:
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return


def _random_states(loader: DataLoader) -> list[Any]:
    """Where all generators of random numbers stand that a sampler shares with others."""
    numpy_state = np.random.get_state(legacy=False)['state']
    generators = [torch.default_generator]
    if loader.generator is not None:
        generators.append(loader.generator)
    return [random.getstate(), numpy_state['key'].tolist(), numpy_state['pos'],
            *(generator.get_state().tolist() for generator in generators)]
