"""Where the loss comes from that channels are ranked by: a config's training data, or a folder."""

import json
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn
from tqdm import tqdm

from ...engine import preflight
from ...errors import ConfigError, UserError, translate_errors
from ..images import files_fingerprint, list_images, read_image

__all__ = ['FolderLoss', 'TrainingLoss']


class TrainingLoss:
    """The loss of a detector or segmentor on the training data of its config.

    The model computes it in eval mode, so that BN keeps its statistics and no path is dropped.

    Args:
        config: The config, with its data root set; segmentors' label maps are checked as they
            are loaded, which changes it.
        model: Its model, in eval mode.
        batches: How many batches to use; fewer where the dataset has fewer.
        batch_size: Images of a batch; as the config says, unless given.
        seed: Of the order of images and of what the pipeline does at random.

    Attributes:
        number (int): Batches that there are.
        description (str): In words.

    Raises:
        UserError: If the config has no training data, or it can't be read.
    """

    def __init__(self, config: Config, model: nn.Module, *, batches: int, batch_size: int | None,
                 seed: int) -> None:
        if not config.get('train_dataloader'):
            raise ConfigError('the config has no train_dataloader, and channels are ranked by the '
                              'loss of training data: add one, or name a config that has it')
        self.model = model
        self.seed = seed
        scope = config.get('default_scope')
        init_default_scope(scope or 'mmengine')
        with translate_errors():
            preflight.check_files(config.train_dataloader, False, scope=scope)
            if scope == 'mmseg':
                from ...segmentation import check_while_loading  # mmdet's configs do without mmseg

                check_while_loading(config)
            settings = deepcopy(config.train_dataloader)
            # Random numbers of a worker would not be those of this process.
            settings.update(num_workers=0, persistent_workers=False)
            settings.pop('prefetch_factor', None)
            if batch_size:
                settings['batch_size'] = batch_size
            self._settings = settings
            dataset = preflight.built_dataset(lambda: self._loader().dataset, 'train')
            preflight.check_classes(model, dataset, 'train')
            preflight.check_label_maps(dataset, 'train')
            settings['dataset'] = dataset  # read once
            self.number = min(batches, len(self._loader()))
            if self.number:
                with torch.no_grad():
                    self.loss(next(self.batches()))
        self.description = (f'training loss of {type(model).__name__} on '
                            f'{_counted(self.number, "batch", "es")} of '
                            f'{_counted(settings["batch_size"], "image")}')

    def batches(self) -> Iterator[Any]:
        """The batches as the dataloader gives them; the same ones at every call."""
        set_random_seed(self.seed)
        yield from islice(self._loader(), self.number)

    def fingerprint(self) -> str:
        """Tells the batches' data apart: annotations, and names, sizes and times of the files."""
        set_random_seed(self.seed)
        loader = self._loader()
        listed = [loader.dataset.get_data_info(index)
                  for batch in islice(loader.batch_sampler, self.number) for index in batch]
        annotations = blake2b(json.dumps(listed, sort_keys=True, default=str).encode(),
                              digest_size=16)
        files = (Path(info[key]) for info in listed for key in ('img_path', 'seg_map_path')
                 if info.get(key))
        return f'{annotations.hexdigest()} {files_fingerprint(files)}'

    def loss(self, batch: Any) -> Tensor:
        """The sum of the losses that training would minimise, a scalar."""
        model: Any = self.model
        data = model.data_preprocessor(batch, True)
        loss: Tensor = model.parse_losses(model(**data, mode='loss'))[0]
        return loss

    def _loader(self) -> Any:
        # A new one each time: samplers remember where an earlier round stopped.
        return Runner.build_dataloader(self._settings, seed=self.seed)


class FolderLoss:
    """The cross entropy of a classifier on the images of a folder.

    Args:
        folder: Images, one folder for each class. Folders are called by the classes' numbers, or
            there are as many as classes, and the order of their names is that of the classes.
        model: The classifier of timm, in eval mode.
        labels: ``'folders'``, or ``'predicted'`` to take what the model itself predicts, before
            any channel is removed, for true; then no folders are needed.
        batches: How many batches to use; fewer where there are fewer images.
        batch_size: Images of a batch.
        seed: Of the choice of images.

    Attributes:
        number (int): Batches that there are.
        description (str): In words.

    Raises:
        UserError: If there are no images, or no labels.
    """

    def __init__(self, folder: Path, model: nn.Module, *, labels: str, batches: int,
                 batch_size: int, seed: int) -> None:
        from timm.data import create_transform, resolve_model_data_config

        self.model = model
        self._batch_size = batch_size
        self._transform = create_transform(**resolve_model_data_config(model), is_training=False)
        self._device = next(model.parameters()).device
        num_classes = int(getattr(model, 'num_classes', 0))
        if num_classes < 2:
            raise UserError(f'{type(model).__name__} has no classifier, so there is no loss to '
                            'rank its channels by')
        found = [(path, -1) for path in list_images(folder)]
        if labels == 'folders':
            found = _labelled_images(folder, num_classes)
        random.Random(seed).shuffle(found)
        self._images = found[:batches * batch_size]
        self.number = -(-len(self._images) // batch_size)
        if labels == 'predicted':
            self._images = [(path, label) for (path, _), label in zip(
                self._images, self._predicted(), strict=True)]
        truth = 'folders' if labels == 'folders' else 'what the model itself predicts, no truth'
        self.description = (f'cross entropy on {_counted(len(self._images), "image")} in '
                            f'{_counted(self.number, "batch", "es")} (labels: {truth})')

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, H, W) and labels (B,); the same ones at every call."""
        for start in range(0, len(self._images), self._batch_size):
            part = self._images[start:start + self._batch_size]
            images = torch.stack([self._transform(read_image(path)) for path, _ in part])
            labels = torch.tensor([label for _, label in part])
            yield images.to(self._device), labels.to(self._device)

    def fingerprint(self) -> str:
        """Tells the batches' images apart by names, sizes and times of change."""
        return files_fingerprint(path for path, _ in self._images)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean cross entropy, a scalar."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def _predicted(self) -> list[int]:
        batches = tqdm(self.batches(), desc='predicting labels', total=self.number, unit='batch',
                       leave=False, disable=None)
        with torch.no_grad():
            return [int(label) for images, _ in batches for label in self.model(images).argmax(1)]


def _labelled_images(folder: Path, num_classes: int) -> list[tuple[Path, int]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    way_out = 'pass --labels predicted to take what the model itself predicts for true'
    if not folders:
        raise UserError(f'--images {folder} has no folders in it, one for each class, so its '
                        f'images have no labels: sort them into such folders, or {way_out}')
    if all(path.name.isdecimal() and int(path.name) < num_classes for path in folders):
        numbers: Sequence[int] = [int(path.name) for path in folders]
    elif len(folders) == num_classes:
        numbers = range(num_classes)
    else:
        raise UserError(
            f'--images {folder} has {len(folders)} folders for the {num_classes} classes of the '
            f'model: give one for each class, call them by the classes\' numbers (0 to '
            f'{num_classes - 1}), or {way_out}')
    return [(path, number) for sub, number in zip(folders, numbers, strict=True)
            for path in list_images(sub)]


def _counted(number: int, noun: str, plural: str = 's') -> str:
    return f'{number} {noun}{plural * (number != 1)}'
