"""Losses by which channels are ranked: on the training data of a config, or on a folder."""

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
    """Training loss of a detector or segmentor on the training data of its config.

    The model stays in eval mode, so that BN keeps its statistics and no path is dropped.

    Args:
        config: The config, with its data root set. For segmentors it is modified, so that label
            maps are checked while they are loaded.
        model: Its model, in eval mode.
        batches: Number of batches; at most those of the dataset.
        batch_size: Images per batch; the config's if None.
        seed: Random seed of the order of images and of the data pipeline.

    Attributes:
        num_batches (int): Number of batches.
        description (str): Description for messages.

    Raises:
        UserError: If the config has no training data, or it can't be read.
    """

    def __init__(self, config: Config, model: nn.Module, *, batches: int, batch_size: int | None,
                 seed: int) -> None:
        if not config.get('train_dataloader'):
            raise ConfigError('the config has no train_dataloader, but channels are ranked by the '
                              'training loss: use a config with training data')
        self.model = model
        self.seed = seed
        scope = config.get('default_scope')
        init_default_scope(scope or 'mmengine')
        with translate_errors():
            preflight.check_files(config.train_dataloader, False, scope=scope)
            if scope == 'mmseg':
                from ...segmentation import check_while_loading  # needs mmseg

                check_while_loading(config)
            settings = deepcopy(config.train_dataloader)
            # A worker process would have its own random state.
            settings.update(num_workers=0, persistent_workers=False)
            settings.pop('prefetch_factor', None)
            if batch_size:
                settings['batch_size'] = batch_size
            self._settings = settings
            dataset = preflight.built_dataset(lambda: self._loader().dataset, 'train')
            preflight.check_classes(model, dataset, 'train')
            preflight.check_label_maps(dataset, 'train')
            settings['dataset'] = dataset  # reads annotations only once
            self.num_batches = min(batches, len(self._loader()))
            if self.num_batches:
                with torch.no_grad():
                    self.loss(next(self.batches()))
        self.description = (f'training loss of {type(model).__name__} on '
                            f'{_count(self.num_batches, "batch", "es")} of '
                            f'{_count(settings["batch_size"], "image")}')

    def batches(self) -> Iterator[Any]:
        """Yield the batches of the dataloader; the same ones at every call."""
        set_random_seed(self.seed)
        yield from islice(self._loader(), self.num_batches)

    def fingerprint(self) -> str:
        """Return a digest of annotations, and of names, sizes and times of the files."""
        set_random_seed(self.seed)
        loader = self._loader()
        infos = [loader.dataset.get_data_info(index)
                 for batch in islice(loader.batch_sampler, self.num_batches) for index in batch]
        annotations = blake2b(json.dumps(infos, sort_keys=True, default=str).encode(),
                              digest_size=16)
        files = (Path(info[key]) for info in infos for key in ('img_path', 'seg_map_path')
                 if info.get(key))
        return f'{annotations.hexdigest()} {files_fingerprint(files)}'

    def loss(self, batch: Any) -> Tensor:
        """Return the sum of the losses that training minimises, a scalar."""
        model: Any = self.model
        data = model.data_preprocessor(batch, True)
        loss: Tensor = model.parse_losses(model(**data, mode='loss'))[0]
        return loss

    def _loader(self) -> Any:
        # A new one each time, because samplers keep their position.
        return Runner.build_dataloader(self._settings, seed=self.seed)


class FolderLoss:
    """Cross entropy of a classifier on the images of a folder.

    Args:
        folder: Folder with one subfolder of images per class. The subfolders are named by class
            index, or there is one per class in the order of their names.
        model: A classifier of timm, in eval mode.
        labels: ``'folders'``, or ``'predicted'`` for the predictions of the whole model, which
            need no subfolders.
        batches: Number of batches; fewer if there are fewer images.
        batch_size: Images per batch.
        seed: Random seed of the choice of images.

    Attributes:
        num_batches (int): Number of batches.
        description (str): Description for messages.

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
            raise UserError(f'{type(model).__name__} has no classifier, so it has no loss by which '
                            'to rank channels')
        images = [(path, -1) for path in list_images(folder)]
        if labels == 'folders':
            images = _labelled_images(folder, num_classes)
        random.Random(seed).shuffle(images)
        self._images = images[:batches * batch_size]
        self.num_batches = -(-len(self._images) // batch_size)
        if labels == 'predicted':
            self._images = [(path, label) for (path, _), label in zip(
                self._images, self._predicted(), strict=True)]
        source = 'folders' if labels == 'folders' else 'predictions of the model, not ground truth'
        self.description = (f'cross entropy on {_count(len(self._images), "image")} in '
                            f'{_count(self.num_batches, "batch", "es")} (labels: {source})')

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) and labels (B,); the same ones at every call."""
        for start in range(0, len(self._images), self._batch_size):
            batch = self._images[start:start + self._batch_size]
            images = torch.stack([self._transform(read_image(path)) for path, _ in batch])
            labels = torch.tensor([label for _, label in batch])
            yield images.to(self._device), labels.to(self._device)

    def fingerprint(self) -> str:
        """Return a digest of the images' names, sizes and modification times."""
        return files_fingerprint(path for path, _ in self._images)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross entropy, a scalar."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def _predicted(self) -> list[int]:
        batches = tqdm(self.batches(), desc='predicting labels', total=self.num_batches,
                       unit='batch', leave=False, disable=None)
        with torch.no_grad():
            return [int(label) for images, _ in batches for label in self.model(images).argmax(1)]


def _labelled_images(folder: Path, num_classes: int) -> list[tuple[Path, int]]:
    """Return images and their class indices, from one subfolder per class."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    alternative = 'pass --labels predicted to use the predictions of the model'
    if not folders:
        raise UserError(f'the images in {folder} have no labels: sort them into one subfolder per '
                        f'class, or {alternative}')
    if all(path.name.isdecimal() and int(path.name) < num_classes for path in folders):
        numbers: Sequence[int] = [int(path.name) for path in folders]
    elif len(folders) == num_classes:
        numbers = range(num_classes)
    else:
        raise UserError(
            f'{folder} has {len(folders)} subfolders, but the model has {num_classes} classes: '
            f'add one per class, name them by class index (0 to {num_classes - 1}), or '
            f'{alternative}')
    return [(path, number) for subfolder, number in zip(folders, numbers, strict=True)
            for path in list_images(subfolder)]


def _count(number: int, noun: str, plural: str = 's') -> str:
    return f'{number} {noun}{plural * (number != 1)}'
