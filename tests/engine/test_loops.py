"""A resumed run continues with the samples that were next, and loads no others.

Whole runs of mmengine's Runner: an uninterrupted one with mmengine's own loop is the reference.
"""

import itertools
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler, worker_init_fn
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.visualization import Visualizer
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
)

from evit_mm.engine import loops
from evit_mm.engine.loops import (
    ResumingEpochBasedTrainLoop,
    ResumingIterBasedTrainLoop,
    use_resuming_loops,
)
from evit_mm.errors import ConfigError

STOCK, OURS = 'IterBasedTrainLoop', 'ResumingIterBasedTrainLoop'
_names = itertools.count()


class Numbers(Dataset):
    """Dataset of indices with an augmentation, which logs each load to a file."""

    built = 0

    def __init__(self, log, size=10, first=0):
        type(self).built += 1
        self.log, self.size, self.first = log, size, first

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        index = int(index) + self.first
        with open(self.log, 'a') as file:  # workers are processes of their own
            file.write(f'{index}\n')
        return dict(index=index, draw=(torch.rand(1).item(), np.random.rand()))

    def get_data_info(self, index):
        return dict(width=10 if index % 3 else 30, height=20)


class Stream(IterableDataset):
    """Dataset without indices."""

    def __len__(self):  # mmengine's logger asks
        return 10**6

    def __iter__(self):
        for index in itertools.count():
            yield dict(index=index, draw=0.)


class Line(BaseModel):
    """Model whose weight depends on all batches and random numbers it has seen."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def init_weights(self):
        torch.nn.init.normal_(self.weight)

    def forward(self, index, draw=None, mode='loss'):
        values = torch.as_tensor(index, dtype=torch.float32)
        noise = torch.nn.functional.dropout(torch.ones(64), 0.5).sum()
        if mode == 'predict':
            return [0]
        return dict(loss=(self.weight * values.sum() + 1e-3 * self.weight * noise).sum())


class Record(Hook):
    """Hook that keeps the batches of a training."""

    def __init__(self):
        self.batches, self.draws = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        assert batch_idx == runner.iter
        index = data_batch['index']
        self.batches.append(np.ravel(index).tolist())
        self.draws.append(np.ravel(data_batch['draw']).tolist())

    def after_train(self, runner):
        self.workers = multiprocessing.active_children()


@pytest.fixture(scope='module')
def visualizer():
    """One for all: its figures take longer to make than these runs."""
    return Visualizer.get_instance('loops')


@pytest.fixture
def train(tmp_path, visualizer):
    """Trains with a dataloader and returns what was drawn, loaded and logged.

    ``resume`` is a checkpoint, or 'auto'; ``by_hand`` leaves it to `Runner.resume`.
    """
    def train(dataloader, iterations, loop=STOCK, resume=None, by_hand=False, schedule=None,
              seed=None, diff_rank_seed=False, save_every=1, custom_hooks=(), **options):
        log_of_loading = tmp_path / 'loaded'
        log_of_loading.write_text('')
        for log in tmp_path.glob('run/*/*.log'):  # runs of the same second share a file
            log.unlink()
        record = Record()
        runner = Runner(**dict(dict(
            model=Line(), work_dir=str(tmp_path / 'run'), experiment_name=f'run{next(_names)}',
            train_dataloader=dataloader, visualizer=visualizer,
            train_cfg=dict(type=loop, max_iters=iterations, **(schedule or {})),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3), accumulative_counts=3),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False,
                                               interval=save_every)),
            custom_hooks=[record, *custom_hooks], default_scope='mmengine',
            randomness=dict(seed=seed, diff_rank_seed=diff_rank_seed),
            resume=bool(resume) and not by_hand,
            load_from=None if by_hand or resume == 'auto' else resume), **options))
        if by_hand:
            runner.resume(resume)
        runner.train()
        # Ends the workers; those that are left to the garbage collector take 5 s each.
        runner.train_loop.dataloader_iterator = runner.train_dataloader._iterator = None
        log, = tmp_path.glob('run/*/*.log')
        return SimpleNamespace(
            batches=record.batches, draws=record.draws, log=log.read_text(), runner=runner,
            loaded=[int(line) for line in log_of_loading.read_text().split()],
            workers=record.workers, weight=runner.model.weight.item())

    return train


@pytest.fixture
def checkpoint(tmp_path):
    """The checkpoint of an iteration."""
    return lambda iteration: str(tmp_path / 'run' / f'iter_{iteration}.pth')


@pytest.fixture
def dataloader(tmp_path):
    """The config of a dataloader over 10 samples, in batches of 4."""
    def dataloader(sampler='DefaultSampler', num_workers=0, size=10, **options):
        sampler = dict(type=sampler) if isinstance(sampler, str) else sampler
        return dict(dict(dataset=dict(type=Numbers, log=str(tmp_path / 'loaded'), size=size),
                         sampler=sampler, batch_size=4, num_workers=num_workers), **options)

    return dataloader


@pytest.fixture
def two_sources(tmp_path):
    """Two datasets in one, for the samplers that weigh them."""
    parts = [Numbers(str(tmp_path / 'loaded')), Numbers(str(tmp_path / 'loaded'), 6, first=100)]
    return dict(type=ConcatDataset, datasets=parts)


class OwnBatches(BatchSampler):
    """Batch sampler of two to four neighbours."""

    def __iter__(self):
        for number, index in enumerate(self.sampler):
            yield [(index + step) % len(self.sampler.dataset) for step in range(2 + number % 3)]


SAMPLERS = {
    'endless': dict(sampler='InfiniteSampler'),
    'in passes': dict(sampler='DefaultSampler'),
    'in order': dict(sampler=dict(type='InfiniteSampler', shuffle=False)),
    'not rounded up': dict(sampler=dict(type='DefaultSampler', round_up=False), drop_last=True),
    'a seed of its own': dict(sampler=dict(type='InfiniteSampler', seed=5)),
    'short passes': dict(sampler='DefaultSampler', num_batch_per_epoch=2),
    'one by one': dict(sampler='DefaultSampler', batch_size=None, collate_fn=dict(type=dict)),
    'like shapes': dict(sampler='DefaultSampler',
                        batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')),
    'like shapes, endless': dict(sampler='InfiniteSampler',
                                 batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')),
    'batches of its own': dict(sampler='DefaultSampler',
                               batch_sampler=dict(type=OwnBatches, drop_last=False)),
}


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('options', SAMPLERS.values(), ids=SAMPLERS.keys())
def test_order_continues_without_a_seed(options, num_workers, train, dataloader, checkpoint):
    config = dataloader(num_workers=num_workers, **options)
    whole = train(config, 9)
    assert len(whole.batches) == 9
    for iteration in (5,) if num_workers else (3, 5):
        resumed = train(config, 9, OURS, resume=checkpoint(iteration))
        assert resumed.batches == whole.batches[iteration:]
        assert resumed.runner.seed == whole.runner.seed
        samples = sum(len(batch) for batch in whole.batches[:iteration])
        assert f'Resumed at iteration {iteration}: skipped {samples} samples ' in resumed.log
        if not num_workers:  # workers load ahead
            assert resumed.loaded == [index for batch in resumed.batches for index in batch]


@pytest.mark.parametrize('sampler', [dict(type='mmdet.MultiDataSampler', dataset_ratio=[1, 2]),
                                     dict(type='mmdet.MultiSourceSampler', batch_size=4,
                                          source_ratio=[1, 3]),
                                     dict(type='mmdet.CustomSampleSizeSampler',
                                          dataset_size=[4, -1])])
def test_order_of_several_datasets(sampler, train, dataloader, two_sources, checkpoint):
    if DATA_SAMPLERS.get(sampler['type']) is None:
        pytest.skip(f'this mmdet has no {sampler["type"]}')
    config = dataloader(sampler, dataset=two_sources)
    whole = train(config, 9)
    assert {index >= 100 for batch in whole.batches for index in batch} == {True, False}
    resumed = train(config, 9, OURS, resume=checkpoint(6))
    assert resumed.batches == whole.batches[6:]


def test_persistent_workers_continue_from_pass_to_pass(train, dataloader, checkpoint):
    config = dataloader(num_workers=2, persistent_workers=True)
    whole = train(config, 11)
    for iteration in (4, 6):  # within a pass, and at the end of one
        resumed = train(config, 11, OURS, resume=checkpoint(iteration))
        assert resumed.batches == whole.batches[iteration:]


@pytest.mark.parametrize('seed,other', [(3, 3), (3, 4), (None, 4)])
@pytest.mark.parametrize('diff_rank_seed', [False, True])
def test_seed_is_that_of_the_checkpoint(seed, other, diff_rank_seed, train, dataloader, checkpoint):
    config = dataloader('InfiniteSampler')
    whole = train(config, 6, seed=seed, diff_rank_seed=diff_rank_seed)
    built = Numbers.built
    resumed = train(config, 6, OURS, resume=checkpoint(4), seed=other,
                    diff_rank_seed=diff_rank_seed)
    assert resumed.batches == whole.batches[4:]
    assert Numbers.built == built + 1  # annotations are read once


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_each_process_skips_its_own_share(sampler, train, dataloader, checkpoint,
                                                monkeypatch):
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        whole = train(dataloader(sampler), 6, seed=1)
        resumed = train(dataloader(sampler), 6, OURS, resume=checkpoint(4))
        assert resumed.batches == whole.batches[4:]
        shares.append(resumed.batches)
    assert shares[0] != shares[1]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_earlier_samples_are_not_loaded(num_workers, train, dataloader, checkpoint):
    config = dataloader(dict(type='InfiniteSampler', shuffle=False), num_workers, size=1000)
    train(config, 20, save_every=20)
    resumed = train(config, 22, OURS, resume=checkpoint(20))
    assert resumed.batches == [[80, 81, 82, 83], [84, 85, 86, 87]]
    # The samples after them are those that two workers prepare for steps that do not come.
    assert min(resumed.loaded) == 80 and max(resumed.loaded) < 88 + 4 * 2 * num_workers


def test_a_long_training_is_skipped_at_once(train, dataloader, checkpoint):
    """160000 steps of 16, which would take hours to load."""
    config = dataloader('InfiniteSampler', size=2000, batch_size=16)
    whole = train(config, 1)
    late = torch.load(checkpoint(1), weights_only=False)
    late['meta']['iter'] = 160_000
    torch.save(late, checkpoint(160_000))
    resumed = train(config, 160_002, OURS, resume=checkpoint(160_000))
    assert len(resumed.loaded) == 32
    expected = itertools.islice(InfiniteSampler(range(2000), seed=whole.runner.seed),
                                160_000 * 16, 160_002 * 16)
    assert resumed.loaded == [int(index) for index in expected]
    assert 'skipped 2560000 samples without loading them' in resumed.log


def test_resuming_a_resumed_run(train, dataloader, checkpoint):
    config = dataloader()
    whole = train(config, 9)
    train(config, 5, OURS, resume=checkpoint(2))
    again = train(config, 9, OURS, resume=checkpoint(5))
    assert again.batches == whole.batches[5:]


def test_extending_a_run_that_was_saved_as_an_epoch(train, dataloader, tmp_path):
    """Its checkpoint says epoch 1, and the hook that seeds samplers believes it."""
    whole = train(dataloader(), 7, seed=1)
    by_epoch = dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    train(dataloader(), 2, seed=1, **by_epoch)
    resumed = train(dataloader(), 7, OURS, resume=str(tmp_path / 'run' / 'epoch_1.pth'), **by_epoch)
    assert resumed.batches == whole.batches[2:]


def test_resuming_a_finished_run_starts_no_worker(train, dataloader, checkpoint):
    config = dataloader(num_workers=2)
    train(config, 4)
    resumed = train(config, 4, OURS, resume=checkpoint(4))
    assert resumed.batches == [] and resumed.runner.iter == 4 and not resumed.workers


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('resume', [None, 'auto'])
def test_a_run_that_does_not_resume_is_mmengines(num_workers, resume, train, dataloader, tmp_path):
    config = dataloader('InfiniteSampler', num_workers)
    stock = train(config, 5, seed=2)
    (tmp_path / 'run' / 'last_checkpoint').unlink()
    ours = train(config, 5, OURS, seed=2, resume=resume)
    assert (ours.batches, ours.draws, ours.weight) == (stock.batches, stock.draws, stock.weight)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_augmentations_are_fresh_and_repeatable(num_workers, train, dataloader, checkpoint):
    config = dataloader('InfiniteSampler', num_workers)
    whole = train(config, 8, seed=2)
    first, second = (train(config, 8, OURS, resume=checkpoint(4), seed=2) for _ in range(2))
    assert first.draws == second.draws and first.weight == second.weight
    later = train(config, 8, OURS, resume=checkpoint(6), seed=2)
    drawn = {value for run in (whole, first, later) for batch in run.draws for value in batch}
    assert len(drawn) == (8 + 4 + 2) * 4 * 2


def test_worker_init_fn_of_the_config_stays(train, dataloader, checkpoint):
    config = dataloader('InfiniteSampler', 2, worker_init_fn=dict(
        type=worker_init_fn, num_workers=2, rank=0, seed=77))
    whole = train(config, 4)
    resumed = train(config, 8, OURS, resume=checkpoint(4))
    assert resumed.batches != whole.batches
    assert resumed.draws == whole.draws


@pytest.mark.parametrize('randomness', [dict(), dict(seed=3), dict(seed=3, diff_rank_seed=True)])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_resuming_by_hand(num_workers, randomness, train, dataloader, checkpoint):
    """`Runner.resume` reads the checkpoint when the loop has started its dataloader already."""
    config = dataloader('InfiniteSampler', num_workers)
    whole = train(config, 6, **randomness)
    resumed = train(config, 6, OURS, resume=checkpoint(4), by_hand=True, **randomness)
    assert resumed.batches == whole.batches[4:]
    assert 'skipped 16 samples' in resumed.log


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_dataloader_object(num_workers, train, checkpoint, tmp_path):
    def loader(seed):
        dataset = Numbers(str(tmp_path / 'loaded'))
        return DataLoader(dataset, 4, sampler=DefaultSampler(dataset, seed=seed),
                          num_workers=num_workers)

    whole = train(loader(3), 7)
    resumed = train(loader(3), 7, OURS, resume=checkpoint(4))
    assert resumed.batches == whole.batches[4:]
    assert 'only if its sampler has the same seed as before' in resumed.log
    if not num_workers:
        assert len(resumed.loaded) == 4 + 2 + 4


def test_a_dataloader_object_that_was_started_is_replayed(train, checkpoint, tmp_path):
    def loader():
        dataset = Numbers(str(tmp_path / 'loaded'))
        return DataLoader(dataset, 4, sampler=InfiniteSampler(dataset, seed=3), num_workers=2,
                          persistent_workers=True)

    whole = train(loader(), 6)
    resumed = train(loader(), 6, OURS, resume=checkpoint(4), by_hand=True)
    assert resumed.batches == whole.batches[4:]
    assert 'loads all earlier batches again, because the dataloader is an object' in resumed.log
    assert 'skipped' not in resumed.log


def test_an_iterable_dataset_is_replayed(train, dataloader, checkpoint):
    config = dataloader(sampler=None, dataset=dict(type=Stream))
    train(config, 4)
    resumed = train(config, 6, OURS, resume=checkpoint(4))
    assert resumed.batches == [[16, 17, 18, 19], [20, 21, 22, 23]]
    assert 'loads all earlier batches again, because Stream is an iterable dataset' in resumed.log


def test_another_class_of_dataloader_is_replayed(train, checkpoint, tmp_path):
    class Reversed(DataLoader):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    def loader():
        return Reversed(Numbers(str(tmp_path / 'loaded')), 4)

    whole = train(loader(), 7)
    resumed = train(loader(), 7, OURS, resume=checkpoint(2))
    assert resumed.batches == whole.batches[2:]
    assert 'because the dataloader is a Reversed' in resumed.log


def test_shared_random_numbers_are_reported(train, dataloader, checkpoint, two_sources, tmp_path):
    config = dataloader(sampler=None, shuffle=True)
    train(config, 4)
    resumed = train(config, 6, OURS, resume=checkpoint(4))
    assert len(resumed.batches) == 2
    assert 'BatchSampler of RandomSampler draws from random numbers' in resumed.log

    class Dice(Sampler):
        def __init__(self, dataset, seed):
            self.dataset = dataset

        def __iter__(self):
            while True:
                yield np.random.randint(len(self.dataset))

        def __len__(self):
            return len(self.dataset)

    resumed = train(dataloader(dict(type=Dice)), 6, OURS, resume=checkpoint(4))
    assert 'BatchSampler of Dice draws from random numbers' in resumed.log

    dataset, generator = Numbers(str(tmp_path / 'loaded')), torch.Generator().manual_seed(1)
    resumed = train(DataLoader(dataset, 4, shuffle=True, generator=generator), 6, OURS,
                    resume=checkpoint(4))
    assert 'BatchSampler of RandomSampler draws from random numbers' in resumed.log


def test_a_sampler_without_batches_is_reported(train, dataloader, checkpoint):
    train(dataloader(), 2)
    with pytest.raises(ConfigError, match='yields no batch: BatchSampler of DefaultSampler'):
        train(dataloader(size=3, drop_last=True), 4, OURS, resume=checkpoint(2))


@pytest.mark.parametrize('iteration', [3, 5])
def test_validation_comes_as_often(iteration, train, dataloader, checkpoint):
    """Dynamic intervals too."""
    class Validations(Hook):
        def __init__(self):
            self.at = []

        def before_val(self, runner):
            self.at.append(runner.iter)

    class Nothing(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return {}

    def validations(loop, resume=None):
        hook = Validations()
        options = dict(val_dataloader=dataloader(), val_cfg=dict(), custom_hooks=[hook],
                       val_evaluator=dict(type=Nothing))
        schedule = dict(val_interval=3, val_begin=2, dynamic_intervals=[(4, 2), (7, 1)])
        train(dataloader(), 9, loop, resume=resume, schedule=schedule, **options)
        return hook.at

    whole = validations(STOCK)
    assert whole == [4, 6, 7, 8, 9]
    assert validations(OURS, checkpoint(iteration)) == [at for at in whole if at > iteration]


@pytest.mark.parametrize('stock', [
    dict(type='IterBasedTrainLoop'), dict(type='mmengine.IterBasedTrainLoop'),
    dict(type='mmengine.runner.loops.IterBasedTrainLoop'), dict(type=IterBasedTrainLoop),
    dict(by_epoch=False)])
def test_the_swap_changes_the_type_alone(stock):
    config = Config(dict(train_cfg=dict(max_iters=9, val_interval=3, dynamic_intervals=[(4, 2)],
                                        **stock), val_cfg=dict(type='ValLoop')))
    use_resuming_loops(config)
    expected = dict(type='evit_mm.engine.loops.ResumingIterBasedTrainLoop', max_iters=9,
                    val_interval=3, dynamic_intervals=[(4, 2)])
    assert config.train_cfg == expected and config.val_cfg == dict(type='ValLoop')
    use_resuming_loops(config)
    assert config.train_cfg == expected


@pytest.mark.parametrize('stock', [
    dict(type='EpochBasedTrainLoop'), dict(type=EpochBasedTrainLoop), dict(by_epoch=True)])
def test_the_swap_of_the_loop_of_epochs(stock):
    config = Config(dict(train_cfg=dict(max_epochs=2, **stock)))
    use_resuming_loops(config)
    assert config.train_cfg == dict(type='evit_mm.engine.loops.ResumingEpochBasedTrainLoop',
                                    max_epochs=2)
    assert LOOPS.get(config.train_cfg.type) is ResumingEpochBasedTrainLoop


@pytest.mark.parametrize('other', [dict(type='mine.IterBasedTrainLoop', max_iters=9), None])
def test_the_swap_leaves_other_loops(other):
    config = Config(dict(train_cfg=other))
    use_resuming_loops(config)
    assert config.train_cfg == other
    use_resuming_loops(Config())


def test_the_swapped_type_is_found_by_its_name(train, dataloader, checkpoint):
    config = Config(dict(train_cfg=dict(type=STOCK, max_iters=9)))
    use_resuming_loops(config)
    whole = train(dataloader(), 6)
    resumed = train(dataloader(), 6, config.train_cfg.type, resume=checkpoint(4),
                    default_scope='mmdet')
    assert type(resumed.runner.train_loop) is ResumingIterBasedTrainLoop
    assert resumed.batches == whole.batches[4:]


def test_an_iterator_that_starts_with_its_first_batch(train, dataloader, checkpoint, monkeypatch):
    """As that of onedl-mmengine does, whose loop also skips batches by a method of it."""
    class Lazy(loops._InfiniteDataloaderIterator):
        def __init__(self, loader):
            self._dataloader, self._iterator, self._epoch = loader, None, 0

        def __next__(self):
            if self._iterator is None:
                self._iterator = iter(self._dataloader)
            return super().__next__()

    config = dataloader(sampler=dict(type='DefaultSampler'))
    whole = train(config, 9)
    monkeypatch.setattr(loops, '_InfiniteDataloaderIterator', Lazy)
    resumed = train(config, 9, OURS, resume=checkpoint(5))
    assert resumed.batches == whole.batches[5:]

    batches = loops._Batches(iter(range(5)))
    batches.skip_iter(2)
    assert list(batches) == [2, 3, 4]
