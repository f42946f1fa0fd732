"""Label maps in any folder train a segmentor, whose config is fitted to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmseg.models import EncoderDecoder
from PIL import Image

from evit_mm.engine import config as configure
from evit_mm.engine import test, train
from evit_mm.engine.own_label_maps import OwnLabelMaps, use_label_maps
from evit_mm.errors import ConfigError, UserError

test.__test__ = False  # not a test, in spite of its name


@pytest.fixture
def write(tmp_path):
    """Function that writes pictures and label maps of a folder; each picture shows its labels."""

    def run(images='images', masks='masks', *, names='abcde', numbers=(0, 1, 2), size=(33, 64),
            suffix='.png', ending='.png'):
        for i, name in enumerate(names):
            labels = np.random.default_rng(i).choice(np.array(numbers, np.uint8), (4, 8))
            labels = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.NEAREST))
            for folder, content, end in ((images, labels, suffix), (masks, labels, ending)):
                path = tmp_path / folder / f'{name}{end}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(path)
        return tmp_path / masks

    return run


@pytest.fixture
def use(tmp_path):
    """Function that fits a config to label maps."""

    def run(config='upernet_evit_m0_shapes', *, training=True, **own):
        config = configure.load_config(config)
        config.work_dir = str(tmp_path / 'work')
        config.count = use_label_maps(config, OwnLabelMaps(**own), training=training)
        return config

    return run


def names(dataset):
    listed = dataset.get('ann_file')
    return Path(listed).read_text().split() if listed else None


def test_the_config_is_fitted(use, write, tmp_path):
    config = use(masks=write())
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 3
    train_set, val_set = config.train_dataloader.dataset, config.val_dataloader.dataset
    assert train_set.metainfo.classes == ('class_0', 'class_1', 'class_2')
    assert len({tuple(colour) for colour in train_set.metainfo.palette}) == 3
    assert train_set.data_prefix == dict(img_path=str(tmp_path / 'images'),
                                         seg_map_path=str(tmp_path / 'masks'))
    assert not train_set.reduce_zero_label and 'data_root' not in train_set
    assert val_set == config.test_dataloader.dataset
    held_out = names(val_set)
    assert len(held_out) == 1 and config.count == 4
    assert sorted(names(train_set) + held_out) == [f'{name}.png' for name in 'abcde']
    assert names(use(masks=tmp_path / 'masks').val_dataloader.dataset) == held_out


@pytest.mark.parametrize('train_folder,val_folder', [
    ('training', 'validation'), ('train', 'val'), ('train', 'valid')])
def test_subfolders_of_splits(use, write, tmp_path, train_folder, val_folder):
    write(f'images/{train_folder}', f'masks/{train_folder}', names='ab')
    write(f'images/{val_folder}', f'masks/{val_folder}', names='c')
    config = use(masks=tmp_path / 'masks')
    for split, folder in (('train', train_folder), ('val', val_folder)):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.data_prefix == dict(img_path=str(tmp_path / 'images' / folder),
                                           seg_map_path=str(tmp_path / 'masks' / folder))
        assert names(dataset) is None
    assert config.count == 2


def test_named_folders(use, write, tmp_path):
    write('x/photos', 'x/png', names='ab', suffix='.bmp')
    write('y', 'z', names='c')
    config = use(masks=tmp_path / 'x' / 'png', val_masks=tmp_path / 'z', val_images=tmp_path / 'y')
    assert config.train_dataloader.dataset.data_prefix.img_path == str(tmp_path / 'x' / 'photos')
    assert config.test_dataloader.dataset.data_prefix.img_path == str(tmp_path / 'y')


def test_one_folder_of_images_for_both_splits(use, write, tmp_path):
    write('all', 'm/train', names='ab')
    write('all', 'm/val', names='c')
    config = use(masks=tmp_path / 'm', images=tmp_path / 'all')
    assert names(config.train_dataloader.dataset) == ['a.png', 'b.png']
    assert names(config.val_dataloader.dataset) == ['c.png']


def test_endings_of_label_maps(use, write, tmp_path):
    config = use(masks=write(ending='_mask.png', suffix='.bmp'))
    assert config.train_dataloader.dataset.seg_map_suffix == '_mask.png'
    write('images', 'more', names='xyz', ending='_mask.png', suffix='.bmp')
    config = use(masks=tmp_path / 'masks', val_masks=tmp_path / 'more',
                 images=tmp_path / 'images')
    assert names(config.val_dataloader.dataset) == ['x.bmp', 'y.bmp', 'z.bmp']


def test_label_maps_in_folders_and_images_in_one(use, write, tmp_path):
    write('images', 'masks/training', names='ab')
    write('images', 'masks/validation', names='c')
    config = use(masks=tmp_path / 'masks')
    assert names(config.train_dataloader.dataset) == ['a.png', 'b.png']


@pytest.mark.parametrize('file,content', [
    ('c.txt', 'a\nb\n\nc\n'), ('c.json', '["a", "b", "c"]'), ('c.yaml', '- a\n- b\n- c'),
    ('c.yml', 'names: {0: a, 1: b, 2: c}')])
def test_names_of_classes(use, write, tmp_path, file, content):
    (tmp_path / file).write_text(content)
    config = use(masks=write(), classes=tmp_path / file)
    assert config.val_dataloader.dataset.metainfo.classes == ('a', 'b', 'c')


def test_zero_is_unlabelled(use, write):
    config = use('upernet_evit_m4_ade20k', masks=write(), zero_is_unlabelled=True)
    dataset = config.train_dataloader.dataset
    assert dataset.metainfo.classes == ('class_1', 'class_2') and dataset.reduce_zero_label
    assert 'reduce_zero_label' not in str(config.train_dataloader.dataset.pipeline)
    assert 'reduce_zero_label' not in str(config.test_dataloader.dataset.pipeline)


def test_masks_in_black_and_white(use, write):
    config = use(masks=write(numbers=(0, 255)))
    assert config.train_dataloader.dataset.mask_values == [0, 255]
    assert config.model.decode_head.num_classes == 2


def test_other_numbers(use, write):
    masks = write(numbers=(0, 100, 200))
    with pytest.raises(UserError, match='--mask-values 0,100,200'):
        use(masks=masks)
    config = use(masks=masks, mask_values=[0, 200, 100])
    dataset = config.train_dataloader.dataset
    assert dataset.mask_values == [0, 200, 100]
    assert dataset.metainfo.classes == ('class_0', 'class_200', 'class_100')
    with pytest.raises(UserError, match='does not name: 200'):
        use(masks=masks, mask_values=[0, 100])


@pytest.mark.parametrize('config', ['mask2former_evit_m4_ade20k', 'segformer_evit_m4_ade20k',
                                    'semantic_fpn_evit_m4_ade20k'])
def test_other_segmentors(use, write, config):
    fitted = use(config, masks=write())
    assert fitted.model.decode_head.num_classes == 3
    weights = fitted.model.decode_head.get('loss_cls', {}).get('class_weight')
    assert weights in (None, [1.0, 1.0, 1.0, 0.1])
    MODELS.build(dict(fitted.model.decode_head, _scope_='mmseg'))


def test_heads_of_several_stages_and_their_weights(use, write, tmp_path):
    (tmp_path / 'cascade.py').write_text("""
default_scope = 'mmseg'
loss = dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0])
model = dict(decode_head=[dict(num_classes=2, loss_decode=loss),
                          dict(num_classes=2, out_channels=2, loss_decode=[loss])],
             auxiliary_head=[dict(num_classes=2, out_channels=1)])
dataset = dict(type='CityscapesDataset', data_root='x', pipeline=[])
train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset))
val_dataloader = test_dataloader = dict(dataset=dataset)
val_evaluator = [dict(type='CityscapesMetric', output_dir='x')]
test_evaluator = dict(type='IoUMetric', iou_metrics=['mDice'])
""")
    config = use(str(tmp_path / 'cascade.py'), masks=write())
    assert config.model == dict(
        decode_head=[dict(num_classes=3, loss_decode=dict(type='CrossEntropyLoss')),
                     dict(num_classes=3, out_channels=3,
                          loss_decode=[dict(type='CrossEntropyLoss')])],
        auxiliary_head=[dict(num_classes=3, out_channels=3)])
    assert 'LabelMapDataset' in config.train_dataloader.dataset.dataset.type
    assert config.train_dataloader.dataset.times == 2
    assert 'UnroundedIoUMetric' in config.val_evaluator.type
    assert config.test_evaluator == dict(type='IoUMetric', iou_metrics=['mDice'])


@pytest.mark.parametrize('change,fragment', [
    (dict(masks='none'), 'no such folder: none; --masks'),
    (dict(masks=None, val_masks='masks'), '--masks is missing'),
    (dict(images='none'), 'no such folder: none; --images'),
    (dict(val_images='images'), '--val-masks, which is missing'),
    (dict(classes='none.txt'), 'no such file: none.txt; --classes'),
    (dict(classes='two.txt'), 'but there are 2 classes, 0 to 1: if 0 means unlabelled'),
    (dict(classes='dict.json'), 'is not a list of classes'),
    (dict(classes='same.txt'), "'a' twice"),
    (dict(mask_values=[0, 1, 1]), 'give each class another number'),
    (dict(mask_values=[0, 1, 2], classes='two.txt'), 'has 3 numbers, and --classes 2'),
    (dict(mask_values=[0, 1, 2], zero_is_unlabelled=True), 'two ways to number')])
def test_mistakes(use, write, tmp_path, monkeypatch, change, fragment):
    monkeypatch.chdir(tmp_path)
    write()
    (tmp_path / 'two.txt').write_text('a\nb\n')
    (tmp_path / 'same.txt').write_text('a\na\nb\n')
    (tmp_path / 'dict.json').write_text(json.dumps(dict(a=1)))
    with pytest.raises(UserError) as caught:
        use(**{'masks': 'masks', **change})
    assert fragment in str(caught.value) and '\n' not in str(caught.value)


def test_mistakes_in_the_files(use, write, tmp_path):
    masks = write()
    with pytest.raises(UserError, match=r'have 1 classes \(class_0\)'):
        use(masks=write('p', 'q', numbers=(0,)), images=tmp_path / 'p')
    with pytest.raises(UserError, match='no folder of images next to .*: name it by --images'):
        use(masks=write('somewhere/x', 'elsewhere/y'))
    (tmp_path / 'images' / 'a.png').unlink()
    with pytest.raises(UserError, match='1 of the 5 label maps .* have no image .*: a.png'):
        use(masks=masks)
    write()
    Image.new('L', (5, 5)).save(masks / 'b.png')
    with pytest.raises(UserError, match='b.png is 5x5 .*, but its image'):
        use(masks=masks)


def test_other_configs(use, write):
    with pytest.raises(ConfigError, match='retinanet_evit_m0_shapes is not a segmentor'):
        use('retinanet_evit_m0_shapes', masks=write())
    with pytest.raises(UserError, match='--classes is missing'):
        use(masks=write(), training=False)


@MODELS.register_module()
class PerfectSegmentor(EncoderDecoder):
    """A segmentor that predicts the true labels."""

    def predict(self, inputs, data_samples=None):
        for sample in data_samples:
            sample.pred_sem_seg = sample.gt_sem_seg.clone()
        return data_samples


# mmengine's, of the second run in one process.
@pytest.mark.filterwarnings('ignore:.*instance named of visualizer')
@pytest.mark.parametrize('numbers,flags', [
    ((0, 1, 2, 255), {}), ((0, 255), {}), ((0, 1, 2), dict(zero_is_unlabelled=True)),
    ((0, 7, 50), dict(mask_values=[0, 7, 50]))])
def test_trains_and_a_perfect_predictor_is_perfect(write, segmentor_file, tmp_path, numbers, flags):
    """From folders to metrics, with images of any sides."""
    for name, size in (('a', (33, 97)), ('b', (70, 40)), ('c', (64, 64)), ('d', (50, 201))):
        masks = write(names=name, numbers=numbers, size=size)
    options = {'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1}
    work_dir = train(segmentor_file, masks=masks, work_dir=tmp_path / 'run', cfg_options=options,
                     **flags)
    classes = Config.fromfile(work_dir / 'segmentor.py').train_dataloader.dataset.metainfo.classes
    (tmp_path / 'classes.txt').write_text('\n'.join(classes))
    checkpoint = work_dir / 'iter_1.pth'
    assert checkpoint.is_file()
    assert torch.load(checkpoint, weights_only=False)['meta']['dataset_meta']['classes'] == classes
    metrics = test(segmentor_file, checkpoint, masks=masks, classes=tmp_path / 'classes.txt',
                   work_dir=tmp_path / 'test', cfg_options={'model.type': 'PerfectSegmentor'},
                   **flags)
    assert metrics['mIoU'] == metrics['aAcc'] == 100
