"""Training loops that resume at once, and exactly.

mmengine's `IterBasedTrainLoop` resumes at iteration N by loading N batches and dropping them, which
takes hours, and in a different order where no seed was set; its `EpochBasedTrainLoop` resumes at
the start of an epoch alone. Neither keeps random numbers. Here only the sampler advances, by its
indices, and random numbers continue.
"""

import itertools
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, set_random_seed
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, IterableDataset

from ..errors import ConfigError
from .dataloader_workers import ReportedBatch, WorkerStart, report_batches
from .initial_checkpoint import initial_checkpoint
from .random_states import capture_random_states, restore_random_states

__all__ = ['ResumingEpochBasedTrainLoop', 'ResumingIterBasedTrainLoop', 'use_resuming_loops']

_PACKAGES = ('', 'mmengine.', 'mmengine.runner.', 'mmengine.runner.loops.')


def use_resuming_loops(config: Config) -> None:
    """Replace mmengine's training loops in a config by those of this module.

    Any other loop is left as it is.

    Args:
        config: Changed in place: the type of ``train_cfg``, and nothing else.
    """
    loop = config.get('train_cfg')
    if not isinstance(loop, dict):
        return
    stock: Mapping[Any, type] = {
        name: ours for theirs, ours in ((IterBasedTrainLoop, ResumingIterBasedTrainLoop),
                                        (EpochBasedTrainLoop, ResumingEpochBasedTrainLoop))
        for name in (theirs, *(package + theirs.__name__ for package in _PACKAGES))}
    ours = stock.get(loop.get('type'))
    if 'type' not in loop and 'by_epoch' in loop:  # mmengine's other way; it accepts only one
        ours = stock['EpochBasedTrainLoop' if loop.pop('by_epoch') else 'IterBasedTrainLoop']
    if ours is not None:
        # With its module, so that the config that a run writes to its work dir works in tools that
        # import `evit_mm` alone.
        loop['type'] = f'{__name__}.{ours.__name__}'


class _ResumingLoop:
    """What the two loops share: samplers, random numbers and workers that continue.

    A run that does not resume equals one of mmengine's loop, random numbers included, except that a
    validation leaves the random numbers of the training as they were.

    Attributes:
        skipped_images: Messages of the images that were replaced, as they could not be loaded.
    """

    dataloader: DataLoader
    runner: Any
    _iter: int

    def _follow(self, dataloader: DataLoader | dict) -> None:
        """Record how the dataloader was built, and what its workers report."""
        self._dataloader_config = dataloader if isinstance(dataloader, dict) else None
        self._initial_seed = self.runner.seed
        self._start: WorkerStart | None = report_batches(self.dataloader)
        self._saved: dict[str, Any] = {}
        self._taken = 0  # batches of the current pass over the dataset
        self._last_worker = -1
        self._workers: dict[int, tuple[int, dict[str, Any]]] = {}
        self._states_before_validation: dict[str, Any] | None = None
        self.skipped_images: list[str] = []
        self.runner.register_hook(_RandomStateHook(self), priority='LOWEST')

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint needs of this process to continue exactly from here."""
        return dict(
            taken=self._taken,
            main=self._states_before_validation or capture_random_states(),
            last_worker=self._last_worker,
            workers=[list(self._workers.get(worker, (worker, {})))
                     for worker in range(getattr(self.dataloader, 'num_workers', 0))])

    def _received(self, batch: Any) -> Any:
        """Return a batch of the dataloader, and record what its worker reports."""
        if not isinstance(batch, ReportedBatch):
            return batch
        self._taken += 1
        if batch.worker >= 0:
            self._last_worker = batch.worker
            number = self._workers.get(batch.worker, (batch.worker, {}))[0]
            self._workers[batch.worker] = (number, batch.states)
        self.skipped_images += batch.skipped
        return batch.data

    def _resumed_progress(self) -> dict[str, Any] | None:
        """Return the progress of this process in the checkpoint that the run resumes from.

        It is None, with a message, if the checkpoint has none, or if it fits this run no longer.
        """
        saved, self._saved = self._saved, {}
        processes = saved.get('processes')
        if not processes or saved.get('iter') != self._iter:
            reason = 'the checkpoint does not keep them'
        elif len(processes) != self.runner.world_size:
            reason = f'the checkpoint keeps those of {len(processes)} processes'
        elif self._dataloader_config is None or self._start is None:
            reason = 'the dataloader is an object'
        elif len(processes[get_rank()]['workers']) != self.dataloader.num_workers:
            reason = 'the number of workers has changed'
        else:
            return processes[get_rank()]
        print_log(f'augmentations and dropout draw new random numbers, as {reason}',
                  logger='current')
        return None

    def _continue_workers(self, progress: Mapping[str, Any], *, pass_is_over: bool) -> None:
        """Let the workers that start next continue those of a checkpoint.

        The first worker of an iterator loads its first batch: the one that was next.
        """
        workers = [(int(number), states) for number, states in progress['workers']]
        if self._start is None or not workers:
            return
        shift = 0 if pass_is_over else int(progress['last_worker']) + 1
        self._start.resumed = [workers[(place + shift) % len(workers)]
                               for place in range(len(workers))]
        self._workers = dict(enumerate(self._start.resumed))
        self._last_worker = -1

    def _workers_have_started(self) -> None:
        if self._start is not None:
            self._start.resumed = None

    def _end_workers(self) -> None:
        """Let go of the workers; those that the garbage collector ends take 5 s each."""
        if type(self.dataloader) is DataLoader and self._dataloader_config is not None:
            self.dataloader._iterator = None

    def _renew_samplers(self, *, started: bool) -> None:
        """Build unused samplers with the seed of the checkpoint."""
        if self._dataloader_config is None:
            print_log('The dataloader is an object: the order of samples continues only if its '
                      'sampler has the same seed as before', logger='current',
                      level=logging.WARNING)
            return
        if not started and self.runner.seed == self._initial_seed:
            return
        # Keep the dataset: reading its annotations can take minutes, and hooks may refer to it.
        dataset = self.dataloader.dataset
        config = dict(self._dataloader_config, dataset=dict(type=lambda: dataset))
        # With diff_rank_seed, a sampler draws its seed from numpy's random numbers, which must be
        # those of the run's start.
        set_random_seed(self.runner.seed)
        self.dataloader = self.runner.build_dataloader(
            config, seed=self.runner.seed,
            diff_rank_seed=self.runner._randomness_cfg.get('diff_rank_seed', False))
        self._start = report_batches(self.dataloader)

    def _renew_random_numbers(self, iteration: int) -> None:
        """Seed all random numbers with the run's seed and the iteration together."""
        mixed = np.random.SeedSequence((self.runner.seed, iteration)).generate_state(1)
        seed = int(mixed[0]) // 2  # numpy takes 32 bits, and mmengine adds the worker's number
        set_random_seed(seed)
        config = self._dataloader_config
        if config is not None and 'worker_init_fn' not in config and self._start is not None:
            worker_init_fn: Any = self._start.init
            self._start.init = partial(worker_init_fn, seed=seed)


@LOOPS.register_module()
class ResumingIterBasedTrainLoop(_ResumingLoop, IterBasedTrainLoop):
    """mmengine's iteration-based loop, which resumes without loading what was seen before.

    A run that does not resume equals one of `IterBasedTrainLoop`, random numbers included, except
    that a validation leaves the random numbers of the training as they were. A run that resumes at
    iteration N

    - takes N batches of indices from the sampler and loads none of them. The samples that follow
      are those that would have followed, in the same order, in each process: samplers are built
      with the checkpoint's seed, whether a seed was set or drawn, and their epoch is the number of
      passes over the dataset;
    - continues with the random numbers of the checkpoint, if `SafeCheckpointHook` has written it
      and processes and workers are as many as before: augmentations and dropout are those of an
      uninterrupted run. Otherwise it does not repeat those of the run's start, as it would with the
      same seed: random numbers, in this process and in mmengine's workers, are seeded with the
      run's seed and N together. Resuming twice from one checkpoint gives the same numbers twice. A
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

    dataloader_iterator: '_Batches | None'

    def __init__(self, runner: Any, dataloader: DataLoader | dict, *args: Any, **kwargs: Any
                 ) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        loader: DataLoader = self.dataloader
        self._follow(dataloader)
        # mmengine would start the workers here, and they would load the run's first samples.
        resumes = initial_checkpoint(runner)[1]
        super().__init__(runner, _Unstarted(loader) if resumes else loader, *args, **kwargs)
        self.dataloader = loader
        self.dataloader_iterator = None if resumes else _Batches(
            self._unwrapped(self.dataloader_iterator))

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
                started = self.dataloader_iterator is not None
                if started and self._dataloader_config is not None:
                    self.dataloader_iterator = None  # ends its workers
                self._renew_samplers(started=started)
                self.dataloader_iterator = _Batches(self._batches_from(self._iter))
            # onedl-mmengine's switch against loading what was seen, which isn't loaded here.
            self.fast_forward_on_resume = False
        if self.dataloader_iterator is None:
            self.dataloader_iterator = _Batches(self._unwrapped(
                _InfiniteDataloaderIterator(self.dataloader)))
        try:
            return super().run()
        finally:
            self.dataloader_iterator = None
            self._end_workers()

    def _unwrapped(self, batches: Any) -> Iterator[Any]:
        while True:
            yield self._received(next(batches))

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

    def _batches_from(self, iteration: int) -> Iterator[Any]:
        """Yield batches endlessly, after the number of None that mmengine's loop drops.

        The first ``next()`` advances the sampler, not the call: by then the hooks have run, one of
        which sets the sampler's epoch.
        """
        loader = self.dataloader
        progress = self._resumed_progress()
        if progress is None:
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
        if progress is not None:
            ahead = list(itertools.islice(indices, 1))
            indices = itertools.chain(ahead, indices)
            self._continue_workers(progress, pass_is_over=not ahead)
        # The workers start only now, with the first batch.
        with _continuing(loader, indices):
            batches = _InfiniteDataloaderIterator(loader)
            if batches._iterator is None:  # onedl-mmengine's starts with its first batch
                batches._iterator = iter(loader)
        batches._epoch = passes
        self._workers_have_started()
        if progress is not None:
            restore_random_states(progress['main'])
        yield from self._unwrapped(batches)


@LOOPS.register_module()
class ResumingEpochBasedTrainLoop(_ResumingLoop, EpochBasedTrainLoop):
    """mmengine's epoch-based loop, which also resumes within an epoch.

    A run that does not resume equals one of `EpochBasedTrainLoop`, random numbers included, except
    that a validation leaves the random numbers of the training as they were. A run that resumes
    from a checkpoint of `SafeCheckpointHook` continues exactly: with the batch that was next, and
    with the random numbers of augmentations and dropout, if processes and workers are as many as
    before. From any other checkpoint it resumes as mmengine does, with samplers and workers of the
    checkpoint's seed.

    Args:
        runner: The runner.
        dataloader: A dataloader or its config.
        *args: Passed to `EpochBasedTrainLoop`, from ``max_epochs`` on.
        **kwargs: Passed to `EpochBasedTrainLoop`.
    """

    def __init__(self, runner: Any, dataloader: DataLoader | dict, *args: Any, **kwargs: Any
                 ) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        self._follow(dataloader)
        self._progress: dict[str, Any] | None = None

    def run(self) -> Any:
        """Train until ``max_epochs``.

        Returns:
            nn.Module: The model.
        """
        if self._iter > 0:
            self._renew_samplers(started=False)
            self._progress = self._resumed_progress()
        try:
            return super().run()
        finally:
            self._end_workers()

    def run_epoch(self) -> None:
        """Train for an epoch, or for the rest of one."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in self._batches():
            self.run_iter(idx, data_batch)
        self._taken = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _batches(self) -> Iterator[tuple[int, Any]]:
        """Yield the numbers and batches of an epoch from the place on where it was left."""
        progress, self._progress = self._progress, None
        self._taken = start = int(progress['taken']) if progress is not None else 0
        loader = self.dataloader
        if progress is None:
            batches: Iterator[Any] = iter(loader)
        else:
            # An epoch draws a random number when it begins; within one, that is over, and workers
            # that persist have drawn theirs in the first epoch.
            begins = not start and not loader.persistent_workers
            if begins:
                restore_random_states(progress['main'])
            if not begins:
                self._continue_workers(progress, pass_is_over=not start)
            batches = self._skipped(start) if start else iter(loader)
            self._workers_have_started()
            if not begins:
                restore_random_states(progress['main'])
        for idx, batch in enumerate(batches, start):
            yield idx, self._received(batch)

    def _skipped(self, number: int) -> Iterator[Any]:
        """Return an iterator of the dataloader that begins after a number of batches."""
        loader = self.dataloader
        indices = iter(getattr(loader, _role_of_sampler(loader)))
        samples = sum(1 if loader.batch_sampler is None else len(index)
                      for index in itertools.islice(indices, number))
        print_log(f'Resumed within epoch {self._epoch + 1}: skipped {samples} samples '
                  f'{"in each process " if self.runner.world_size > 1 else ""}without loading them',
                  logger='current')
        with _continuing(loader, indices):
            return iter(loader)


class _Batches:
    """An iterator of batches with ``skip_iter``, by which onedl-mmengine drops those seen before.

    mmengine itself calls ``next()`` for each of them.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Drop this many batches."""
        for _ in range(num_iters):
            next(self)


class _RandomStateHook(Hook):
    """Hook that hands a checkpoint's progress to a loop, and keeps validations out of its numbers.

    Args:
        loop: The loop that has registered it.
    """

    def __init__(self, loop: _ResumingLoop) -> None:
        self._loop = loop

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the progress; whether the run resumes from it shows when it starts."""
        progress, meta = checkpoint.pop('progress', None), checkpoint.get('meta')
        if isinstance(progress, list) and isinstance(meta, Mapping):
            self._loop._saved = dict(processes=progress, iter=meta.get('iter'))

    def before_val(self, runner: Any) -> None:
        """Keep the random states of the training."""
        self._loop._states_before_validation = capture_random_states()

    def after_val(self, runner: Any) -> None:
        """Restore them."""
        states = self._loop._states_before_validation
        if states is not None:
            restore_random_states(states)
            self._loop._states_before_validation = None


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
