"""The loss is the training loss, on the same batches each time."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from evit_mm.analysis.channels.losses import FolderLoss, TrainingLoss
from evit_mm.benchmark.model_factory import build_model
from evit_mm.data import generate_coco
from evit_mm.engine.config import set_data_root
from evit_mm.errors import ConfigError, UserError


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'coco'
    generate_coco(root, num_train=8, num_val=1, image_size=(64, 64), progress=False)
    return root


@pytest.fixture
def config(small_detector, shapes):
    config = Config.fromfile(small_detector)
    set_data_root(config, shapes)
    return config


@pytest.fixture
def detector(small_detector):
    return build_model(str(small_detector))


def values(source):
    with torch.no_grad():
        return [float(source.loss(batch)) for batch in source.batches()]


def test_training_batches_are_the_same_each_time(config, detector):
    """Including order and flips; another seed gives other batches."""
    source = TrainingLoss(config, detector, batches=3, batch_size=2, seed=1)
    first = values(source)
    torch.rand(1), np.random.rand()
    assert first == values(source) and len(first) == source.num_batches == 3
    assert values(TrainingLoss(config, detector, batches=3, batch_size=2, seed=1)) == first
    assert values(TrainingLoss(config, detector, batches=3, batch_size=2, seed=2)) != first
    assert source.description == 'training loss of RetinaNet on 3 batches of 2 images'


def test_training_loss_is_the_sum_that_training_minimises(config, detector):
    source = TrainingLoss(config, detector, batches=1, batch_size=2, seed=0)
    [batch] = source.batches()
    data = detector.data_preprocessor(batch, True)
    with torch.no_grad():
        parts = detector.loss(data['inputs'], data['data_samples'])
    expected = sum(sum(part) if isinstance(part, list) else part for part in parts.values())
    assert values(source) == [pytest.approx(float(expected))]


def test_few_images_give_few_batches(config, detector):
    assert TrainingLoss(config, detector, batches=9, batch_size=3, seed=0).num_batches == 3


def test_other_training_data_have_other_fingerprints(config, detector, shapes, tmp_path):
    """Images that are used, and their annotations, change it."""
    root = tmp_path / 'coco'
    shutil.copytree(shapes, root)
    set_data_root(config, root)

    def make_source(seed=0):
        return TrainingLoss(config, detector, batches=3, batch_size=2, seed=seed)

    source = make_source()
    fingerprint = source.fingerprint
    first = fingerprint()
    torch.rand(1)
    assert fingerprint() == first != make_source(seed=1).fingerprint()
    used = {Path(sample.img_path) for batch in source.batches() for sample in batch['data_samples']}
    spare = set((root / 'train2017').iterdir()) - used
    assert len(used) == 6 and len(spare) == 2
    os.utime(spare.pop())
    assert fingerprint() == first
    for path in used:
        state = path.stat()
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert fingerprint() != first
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint() == first
    annotations = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(annotations.read_text())
    for instance in content['annotations']:
        instance['bbox'][2] -= 1
    annotations.write_text(json.dumps(content))
    assert make_source().fingerprint() != first


def test_unusable_training_data_is_reported(config, detector, tmp_path):
    settings = dict(batches=1, batch_size=2, seed=0)
    lacking = config.copy()
    lacking.train_dataloader = None
    with pytest.raises(ConfigError, match='no train_dataloader'):
        TrainingLoss(lacking, detector, **settings)
    detector.bbox_head.num_classes = 7
    with pytest.raises(ConfigError, match='predicts 7 classes, but the train dataset has 4'):
        TrainingLoss(config, detector, **settings)
    absent = config.copy()
    absent.train_dataloader.dataset.data_root = str(tmp_path / 'absent')
    with pytest.raises(UserError, match='absent'):
        TrainingLoss(absent, detector, **settings)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Folders 4, 10 and 2, with 2 images each."""
    root = tmp_path_factory.mktemp('pictures')
    numbers = np.random.default_rng(0)
    for name in ('4', '10', '2'):
        (root / name).mkdir()
        for index in range(2):
            pixels = numbers.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f'{index}.png')
    return root


def classifier(num_classes=12):
    timm = pytest.importorskip('timm')
    return timm.create_model('deit_tiny_patch16_224', num_classes=num_classes, img_size=32,
                             embed_dim=24, depth=1, num_heads=2,
                             pretrained_cfg_overlay=dict(input_size=(3, 32, 32))).eval()


def test_folders_give_labels(pictures, tmp_path):
    settings = dict(labels='folders', batches=9, batch_size=4, seed=0)
    source = FolderLoss(pictures, classifier(), **settings)
    labels = torch.cat([labels for _, labels in source.batches()]).tolist()
    assert sorted(labels) == [2, 2, 4, 4, 10, 10] and source.num_batches == 2
    assert values(source) == values(source)
    assert 'labels: folders' in source.description

    for name in ('bird', 'ant'):  # one per class, in the order of their names
        (tmp_path / name).mkdir()
        Image.new('RGB', (40, 40), 'red' if name == 'ant' else 'blue').save(
            tmp_path / name / 'x.jpg')
    source = FolderLoss(tmp_path, classifier(2), **settings)
    [(images, labels)] = source.batches()
    assert images.shape == (2, 3, 32, 32)
    redder = images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))
    assert torch.equal(labels, 1 - redder.long())


def test_predictions_as_labels(pictures):
    """They are those of the whole model: later changes of the model have no effect."""
    model = classifier()
    source = FolderLoss(pictures, model, labels='predicted', batches=1, batch_size=6, seed=0)
    [(images, labels)] = source.batches()
    with torch.no_grad():
        assert torch.equal(model(images).argmax(1), labels)
        model.head.weight.neg_()
    assert torch.equal(next(source.batches())[1], labels)
    assert 'not ground truth' in source.description


def test_other_images_have_other_fingerprints(pictures):
    settings = dict(labels='folders', batch_size=2, seed=0)
    source = FolderLoss(pictures, classifier(), batches=2, **settings)
    first = source.fingerprint()
    assert FolderLoss(pictures, classifier(), batches=2, **settings).fingerprint() == first
    assert FolderLoss(pictures, classifier(), batches=3, **settings).fingerprint() != first
    for path in pictures.rglob('*.png'):
        os.utime(path)
    assert FolderLoss(pictures, classifier(), batches=2, **settings).fingerprint() != first


def test_unusable_images_are_reported(pictures, tmp_path):
    settings = dict(batches=1, batch_size=4, seed=0)

    def sentence(folder, model=None, labels='folders'):
        with pytest.raises(UserError) as told:
            FolderLoss(folder, model or classifier(), labels=labels, **settings)
        return str(told.value)

    assert 'no such folder' in sentence(tmp_path / 'absent')
    assert 'no images' in sentence(tmp_path, labels='predicted')
    assert 'have no labels' in sentence(pictures / '4') and '--labels' in sentence(pictures / '4')
    assert '3 subfolders, but the model has 5 classes' in sentence(pictures, classifier(5))
    assert 'no classifier' in sentence(pictures, classifier(0))
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    told = sentence(tmp_path, labels='predicted')
    assert 'can\'t read the image' in told and 'broken.jpg' in told
