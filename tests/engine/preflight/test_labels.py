"""Invalid label maps end a run with one sentence: before its start, or when they are loaded."""

import logging
import sys
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from evit_mm.engine import config as configure
from evit_mm.engine import preflight, test, train
from evit_mm.errors import ConfigError, UserError, translate_errors
from evit_mm.segmentation import check_while_loading

test.__test__ = False  # not a test, in spite of its name


def larger(path):
    Image.fromarray(np.zeros((90, 80), np.uint8)).save(path)


def out_of_range(path):
    content = np.array(Image.open(path))
    content[0, 0] = 151
    Image.fromarray(content).save(path)


def in_16_bits(path):
    content = np.array(Image.open(path)).astype(np.uint16)
    content[0, 0] = 300
    Image.fromarray(content).save(path)


def in_colour(path):
    Image.open(path).convert('RGB').save(path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:200])


def emptied(path):
    path.write_bytes(b'')


def removed(path):
    path.unlink()


DAMAGES = [
    (larger, 'is 90x80 (height x width), but its image'), (in_colour, 'has 3 channels'),
    (out_of_range, 'no class: 151; valid are 0 to 150 and 255'), (in_16_bits, 'no class: 300;'),
    (cut_off, 'truncated'), (emptied, 'it is empty'), (removed, 'No such file')]


@pytest.fixture
def third(ade):
    """One of the label maps that are trained on."""
    return ade / 'annotations' / 'training' / 'ADE_train_00000003.png'


@pytest.fixture
def built(segmentor):
    """The dataset of the copy, as a run builds it."""
    def build():
        init_default_scope('mmseg')
        check_while_loading(segmentor)
        return DATASETS.build(segmentor.train_dataloader.dataset)

    return build


@pytest.fixture
def messages(monkeypatch):
    """The messages that the check logs."""
    lines = []
    monkeypatch.setattr(preflight.labels, 'print_log', lambda text, **_: lines.append(text))
    return lines


@pytest.mark.parametrize('damage,fragment', DAMAGES)
def test_errors_in_the_sample(built, third, damage, fragment):
    damage(third)
    with pytest.raises(UserError) as caught:
        preflight.check_label_maps(built(), 'train')
    assert str(third) in str(caught.value) and fragment in str(caught.value)
    assert '\n' not in str(caught.value)


def test_sample_is_limited(built, messages):
    dataset = built()
    preflight.check_label_maps(dataset, 'train')
    preflight.check_label_maps(dataset, 'train', limit=3)
    preflight.check_label_maps(dataset, 'train', seconds=0.0)
    assert messages[0] == '8 of the 8 label maps of the train dataset are valid'
    assert messages[1].startswith('3 of the 8 ') and messages[2].startswith('1 of the 8 ')
    assert messages[2].endswith('; the others are checked when they are loaded')


def test_sample_is_spread_over_wrapped_datasets(segmentor, built, messages):
    inner = segmentor.train_dataloader.dataset
    other = {**inner, 'data_prefix': segmentor.val_dataloader.dataset.data_prefix}
    segmentor.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[inner, other]))
    preflight.check_label_maps(built(), 'train')
    assert messages == ['12 of the 12 label maps of the train dataset are valid']


def test_stock_loaders_are_checked_too(segmentor, third, messages):
    """In the runner of another tool, whose config was not changed."""
    init_default_scope('mmseg')
    dataset = DATASETS.build(segmentor.train_dataloader.dataset)
    preflight.check_label_maps(dataset, 'train')
    assert messages == ['8 of the 8 label maps of the train dataset are valid']
    out_of_range(third)
    with pytest.raises(UserError, match='no class: 151; valid are 0 to 150 and 255'):
        preflight.check_label_maps(dataset, 'train')
    with pytest.raises(UserError, match='values of no class: .*; valid are 1 to 150:'):
        preflight.check_label_maps(dataset, 'train', ignore_index=0)


def test_custom_loaders_are_skipped(segmentor, third, messages):
    class Custom(LoadAnnotations):
        pass

    out_of_range(third)
    init_default_scope('mmseg')
    dataset = segmentor.train_dataloader.dataset
    dataset.pipeline[1].type = Custom
    preflight.check_label_maps(DATASETS.build(dataset), 'train')
    del dataset.pipeline[1]
    check_while_loading(segmentor)
    preflight.check_label_maps(DATASETS.build(dataset), 'train')
    assert not messages


@pytest.mark.parametrize('heads,ignored', [
    (nn.Identity(), 255), (nn.ModuleList([nn.Identity(), nn.Identity()]), 255)])
def test_ignored_label(heads, ignored):
    model = nn.Module()
    assert preflight.ignored_label(model) == 255  # a detector
    model.decode_head = heads
    assert preflight.ignored_label(model) == ignored
    last = heads[-1] if isinstance(heads, nn.ModuleList) else heads
    last.ignore_index = 0
    assert preflight.ignored_label(model) == 0


def test_detection_does_without_mmseg(config, copy, monkeypatch):
    """Its datasets have label maps of another kind."""
    init_default_scope('mmdet')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    monkeypatch.setitem(sys.modules, 'evit_mm.segmentation', None)
    preflight.check_label_maps(dataset, 'train')


def test_labels_after_resizing_and_inside_other_transforms(segmentor, built, third):
    segmentor.train_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[
            [dict(type='Resize', scale=(32, 32))], [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')]])]
    preflight.check_label_maps(dataset := built(), 'train')
    assert len(dataset[2]['inputs']) == 1
    larger(third)
    with pytest.raises(UserError, match='90x80'):
        preflight.check_label_maps(dataset, 'train')
    with pytest.raises(UserError, match='90x80'):
        dataset[2]


def test_images_that_can_not_be_read(built, ade):
    image = ade / 'images' / 'training' / 'ADE_train_00000002.jpg'
    image.write_bytes(b'no image')
    with pytest.raises(UserError, match=f"the image {image} can.t be read"):
        preflight.check_label_maps(built(), 'train')


@pytest.fixture
def unsampled(monkeypatch):
    """Runs check no label map before they start."""
    monkeypatch.setattr(preflight, 'check_label_maps',
                        partial(preflight.check_label_maps, limit=0))


@pytest.mark.parametrize('damage,fragment', [
    *DAMAGES[2:3], *(pytest.param(*row, marks=pytest.mark.slow) for row in (*DAMAGES[:2],
                                                                            *DAMAGES[3:]))])
def test_errors_in_a_worker_process(built, third, damage, fragment):
    """torch wraps a worker's error in a traceback."""
    dataset = built()
    damage(third)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=pseudo_collate)
    with pytest.raises(UserError) as caught, translate_errors():
        list(loader)
    assert f'the label map {third} ' in str(caught.value)
    assert fragment in str(caught.value) and '\n' not in str(caught.value)


def test_errors_while_training(unsampled, segmentor_file, ade, third, tmp_path):
    """All images are seen in the four steps, each in a worker process."""
    out_of_range(third)
    with pytest.raises(UserError) as caught:
        train(segmentor_file, data_root=ade, work_dir=tmp_path,
              cfg_options={'train_dataloader.num_workers': 1})
    text = str(caught.value)
    assert text.startswith(f'the label map {third} ') and 'no class: 151;' in text
    assert '\n' not in text


def test_processes_that_lose_another_one(monkeypatch):
    """The process with the mistake has reported it; the others have nothing to add."""
    lost = RuntimeError('[pair.cc:547] Connection closed by peer [127.0.0.1]:9444')
    with pytest.raises(ConfigError, match='closed by peer'), translate_errors():
        raise lost
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    with pytest.raises(UserError, match='^the connection to another process of this run '), \
            translate_errors():
        raise lost


@pytest.mark.parametrize('raised,text', [
    (FileNotFoundError(2, 'No such file or directory', 'none.json'),
     "FileNotFoundError: [Errno 2] No such file or directory: 'none.json'"),
    (KeyError('EfficientVit is not in the model registry'),
     'KeyError: EfficientVit is not in the model registry'),
    (TypeError(), 'TypeError:'), (ValueError('two\n  lines'), 'ValueError: two lines')], ids=repr)
def test_errors_of_a_config_are_reported_whole(raised, text):
    with pytest.raises(ConfigError) as caught, translate_errors():
        raise raised
    assert f"can't be used as it is: {text} " in str(caught.value)


@pytest.fixture
def weights(segmentor, tmp_path):
    """A checkpoint of the segmentor."""
    init_default_scope('mmseg')
    torch.save(dict(state_dict=MODELS.build(segmentor.model).state_dict()), tmp_path / 'w.pth')
    return tmp_path / 'w.pth'


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_while_testing(workers, unsampled, segmentor_file, ade, weights, tmp_path):
    second = ade / 'annotations' / 'validation' / 'ADE_val_00000002.png'
    out_of_range(second)
    with pytest.raises(UserError) as caught:
        test(segmentor_file, weights, data_root=ade, work_dir=tmp_path,
             cfg_options={'test_dataloader.num_workers': workers})
    text = str(caught.value)
    assert text.startswith(f'the label map {second} ') and 'no class: 151;' in text


def test_errors_before_testing(mistake, segmentor_file, ade, weights):
    second = ade / 'annotations' / 'validation' / 'ADE_val_00000002.png'
    in_16_bits(second)
    assert 'no class: 300;' in mistake(test, segmentor_file, weights, data_root=ade)
    removed(second)
    assert f'1 of the 4 label maps of the test dataset are missing or empty, the first is ' \
           f'{second}' in mistake(test, segmentor_file, weights, data_root=ade)


def test_test_sets_without_labels(segmentor, ade, weights, tmp_path):
    """Predictions can be drawn without ground truth, so that mmseg needs none."""
    removed(ade / 'annotations' / 'validation' / 'ADE_val_00000001.png')
    segmentor.test_dataloader.dataset.pipeline.pop(2)
    segmentor.test_evaluator = dict(type='IoUMetric', format_only=True,
                                    output_dir=str(tmp_path / 'predictions'))
    test(segmentor, weights, work_dir=tmp_path)
    assert len(list((tmp_path / 'predictions').iterdir())) == 4


def test_segmentation_without_mmdet(script, repository, segmentor_file, ade, third, tmp_path):
    """From the command line to the exit status, as a user without mmdet runs it."""
    in_colour(third)
    without = 'import runpy, sys; sys.modules["mmdet"] = None; del sys.argv[0]; ' \
              'runpy.run_path(sys.argv[0], run_name="__main__")'
    result = script(sys.executable, '-c', without, repository / 'tools' / 'train.py',
                    segmentor_file, '--data-root', ade, cwd=tmp_path)
    assert result.returncode == 2 and 'Traceback' not in result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        f'error: the label map {third} has 3 channels')


def test_the_config_that_a_run_writes(segmentor_file, ade, mistake, third, tmp_path):
    """It contains the checked loader, with the number of classes at that time."""
    config = configure.load_config(segmentor_file)
    check_while_loading(config)
    config.dump(tmp_path / 'written.py')
    out_of_range(third)
    assert 'no class: 151;' in mistake(train, tmp_path / 'written.py', data_root=ade)


# --- what the labels of a dataset teach -------------------------------------------------------


@pytest.fixture
def relabelled(segmentor, ade):
    """Function that changes all label maps, and checks those of a dataset of another type."""

    def run(change, **dataset):
        for path in (ade / 'annotations' / 'training').iterdir():
            Image.fromarray(change(np.array(Image.open(path)))).save(path)
        segmentor.train_dataloader.dataset.update(dataset)
        init_default_scope('mmseg')
        check_while_loading(segmentor)
        preflight.check_label_maps(DATASETS.build(segmentor.train_dataloader.dataset), 'train')

    return run


BINARY = dict(type='LabelMapDataset', metainfo=dict(classes=('background', 'object')))


def black_and_white(content):
    return np.where(content > np.median(content), 255, 0).astype(np.uint8)


def test_masks_in_black_and_white(relabelled):
    with pytest.raises(UserError, match='only 0 and 255, which .*mask_values=') as caught:
        relabelled(black_and_white, **BINARY)
    assert '\n' not in str(caught.value)
    relabelled(lambda content: content, **BINARY, mask_values=(0, 255))


def test_labels_that_are_all_ignored(relabelled):
    """ADE20K has these classes, but under other numbers than the files."""
    with pytest.raises(UserError, match='every pixel .* ADE20KDataset numbers label maps by its own'
                                        ".* set type='LabelMapDataset'"):
        relabelled(lambda content: np.uint8(content > np.median(content)),
                   reduce_zero_label=False, metainfo=dict(classes=('sky', 'road')))


@pytest.fixture
def warnings(monkeypatch):
    """The warnings that checks log."""
    lines = []

    def record(text, logger=None, level=logging.INFO):
        if level == logging.WARNING:
            lines.append(text)

    monkeypatch.setattr(preflight.labels, 'print_log', record)
    monkeypatch.setattr(preflight.findings, 'print_log', record)
    return lines


def test_classes_without_a_pixel(relabelled, warnings):
    relabelled(lambda content: np.uint8(content > np.median(content)), type='LabelMapDataset',
               metainfo=dict(classes=('a', 'b', 'c')))
    assert warnings == ['no pixel of 1 of the 3 classes in the 8 label maps of the train dataset: '
                        'c']


def test_images_that_exif_turns(segmentor, ade, warnings):
    """The label maps of some were drawn on the pixels as stored."""
    images = sorted((ade / 'images' / 'training').iterdir())
    exif = Image.Exif()
    for path, orientation in zip(images, (3, 6, *[1] * 6), strict=True):
        exif[0x0112] = orientation
        Image.open(path).resize((96, 64)).save(path, exif=exif)
        label_map = ade / 'annotations' / 'training' / f'{path.stem}.png'
        Image.open(label_map).resize((96, 64), Image.NEAREST).save(label_map)
    init_default_scope('mmseg')
    check_while_loading(segmentor)
    dataset = DATASETS.build(segmentor.train_dataloader.dataset)
    with pytest.raises(UserError, match='turned by EXIF without a change of size'):
        preflight.check_label_maps(dataset, 'train')
    images[1].write_bytes(images[2].read_bytes())
    preflight.check_label_maps(dataset, 'train')
    assert any('taken as drawn on the image as a viewer shows it' in text for text in warnings)


def numbering(segmentor, **dataset):
    segmentor.train_dataloader.dataset.update(dataset)
    preflight.check_numbering(segmentor.train_dataloader, scope='mmseg')


def test_classes_that_a_type_does_not_have(segmentor, warnings):
    with pytest.raises(ConfigError, match="'crack', 'rust' are not among them.*LabelMapDataset"):
        numbering(segmentor, metainfo=dict(classes=('sky', 'crack', 'rust')))
    numbering(segmentor, metainfo=dict(classes=('sky', 'road')))
    assert len(warnings) == 1 and '2 (sky) becomes 0, 6 (road) becomes 1' in warnings[0]
    assert '148 other classes are ignored' in warnings[0]
    numbering(segmentor, type='LabelMapDataset')
    numbering(segmentor, type='BaseSegDataset', metainfo=dict(classes=('crack',)))
    assert len(warnings) == 1


def test_images_that_are_passed_over(segmentor, ade, warnings):
    numbering(segmentor)
    assert not warnings
    folder = ade / 'images' / 'training'
    for number, suffix in ((1, '.JPG'), (2, '.jpeg'), (3, '.JPG')):
        path = folder / f'ADE_train_0000000{number}.jpg'
        path.rename(path.with_suffix(suffix))
    numbering(segmentor)
    assert len(warnings) == 1 and f'3 of the 8 images in {folder} are passed over' in warnings[0]
    assert "2 end in '.JPG', 1 end in '.jpeg'" in warnings[0]
    numbering(segmentor, type='LabelMapDataset')
    assert len(warnings) == 1


def test_images_and_label_maps_in_one_folder(segmentor, ade, warnings):
    folder = ade / 'images' / 'training'
    for path in (ade / 'annotations' / 'training').iterdir():
        path.rename(folder / path.name)
    numbering(segmentor, data_prefix=dict(img_path='images/training',
                                          seg_map_path='images/training'))
    assert not warnings
