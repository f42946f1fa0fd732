"""Finding and reading configs, and the options that change them."""

import pytest
from mmengine.config import Config

from evit_mm.engine import config as configure
from evit_mm.errors import ConfigError, UserError


def test_data_root_reaches_every_dataset_and_evaluator(config, tmp_path):
    config.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(
            type='ConcatDataset', datasets=[config.train_dataloader.dataset] * 2))
    config.val_evaluator = [config.val_evaluator]
    configure.set_data_root(config, tmp_path)
    root = f'{tmp_path.resolve()}/'
    parts = config.train_dataloader.dataset.dataset.datasets
    parts = [*parts, config.val_dataloader.dataset, config.test_dataloader.dataset]
    assert [part.data_root for part in parts] == [root] * 4
    assert config.val_evaluator[0].ann_file == root + 'annotations/instances_val2017.json'
    assert config.test_evaluator.ann_file == root + 'annotations/instances_val2017.json'
    assert parts[0].ann_file == 'annotations/instances_train2017.json'
    assert 'data/shapes' not in str({key: config[key] for key in config if key != 'data_root'
                                     and ('dataloader' in key or 'evaluator' in key)})


def test_configs_are_found_by_path_and_by_name(repository, monkeypatch, tmp_path):
    folder = repository / 'configs'
    by_path = folder / 'retinanet_evit_m4_coco.py'
    for name in (by_path, str(by_path), 'retinanet_evit_m4_coco', 'retinanet_evit_m4_coco.py'):
        assert configure.find_config(name).samefile(by_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'retinanet_evit_m4_coco.py').write_text('a = 1')  # what is there comes first
    assert configure.load_config('retinanet_evit_m4_coco.py').a == 1
    for name in ('_base_/ade20k', 'elsewhere/retinanet_evit_m4_coco', '\0', 'x' * 5000, ''):
        with pytest.raises(UserError, match='^no such config: '):
            configure.find_config(name)
    with pytest.raises(UserError, match='upernet_evit_m7_ade20k; did you mean upernet_evit_m'):
        configure.find_config('upernet_evit_m7_ade20k')

    installed = tmp_path / '.mim' / 'configs'
    installed.mkdir(parents=True)
    (installed / 'own.py').write_text('a = 2')
    monkeypatch.setattr(configure, '_CONFIG_FOLDERS', (installed, folder))
    assert configure.find_config('own') == installed / 'own.py'


def test_configs_of_other_packages_are_found():
    path = configure.find_config('mmdet::yolox/yolox_nano_8xb8-300e_coco.py')
    assert Config.fromfile(path).model.type == 'YOLOX'
    assert configure.find_config('evit_mm::evit_det_s_coco.py').stem == 'evit_det_s_coco'
    with pytest.raises(UserError, match='no such config: mmdet::yolox/yolox_nano.py; did you mean '
                       '.*yolox_nano_8xb8-300e_coco.py'):
        configure.find_config('mmdet::yolox/yolox_nano.py')
    for name in ('nobody::a.py', 'no-package::a.py', '::a.py'):
        with pytest.raises(UserError, match='is not installed'):
            configure.find_config(name)
    with pytest.raises(UserError, match='no such config'):
        configure.find_config('mmdet::../../../mmdet/version.py')


def test_a_config_object_is_copied(config):
    loaded = configure.load_config(config, {'train_dataloader.batch_size': 3})
    assert loaded.train_dataloader.batch_size == 3 and loaded.filename == config.filename
    assert config.train_dataloader.batch_size == 8


def test_options_of_no_effect(config):
    """mmengine takes any key; at the top level, nothing would read it."""
    with pytest.raises(ConfigError) as caught:
        configure.load_config(config, {'batch_size': 8})
    text = str(caught.value)
    assert 'batch_size: ' in text and 'no effect' in text
    assert 'did you mean train_dataloader.batch_size or ' in text
    with pytest.raises(ConfigError, match='optim_wrapper.optimizer.lr'):
        configure.load_config(config, {'lr': 0.1})
    with pytest.raises(ConfigError, match='no effect$'):
        configure.load_config(config, {'nonsense': 1})
    # What mmengine reads may be missing in a config.
    loaded = configure.load_config(config, {'load_from': 'a.pth', 'sync_bn': 'torch'})
    assert (loaded.load_from, loaded.sync_bn) == ('a.pth', 'torch')


def test_data_root_of_segmentation_layouts(tmp_path):
    config = Config(dict(
        train_dataloader=dict(dataset=dict(
            type='ADE20KDataset', data_root='data/ade', pipeline=[],
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))),
        val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU'])))
    configure.set_data_root(config, tmp_path)
    assert config.train_dataloader.dataset.data_root == f'{tmp_path.resolve()}/'
    assert config.train_dataloader.dataset.data_prefix.img_path == 'images/training'


def test_missing_data_root(config):
    with pytest.raises(UserError, match='^no such folder: nowhere; --data-root'):
        configure.set_data_root(config, 'nowhere')


def test_from_scratch_reaches_the_backbone(repository):
    config = Config.fromfile(repository / 'configs' / 'retinanet_evit_m4_coco.py')
    assert config.model.backbone.norm_eval and config.model.backbone.init_cfg
    configure.set_from_scratch(config)
    assert config.model.backbone.init_cfg is None
    assert config.model.backbone.norm_eval is False


def test_options_merge_and_malformed_ones_are_reported(config_file, tmp_path):
    config = configure.load_config(config_file, {'train_dataloader.batch_size': 3,
                                                 'train_dataloader.dataset.pipeline.2.scale': 64})
    assert config.train_dataloader.batch_size == 3
    assert config.train_dataloader.dataset.pipeline[2].scale == 64
    with pytest.raises(ConfigError, match='--cfg-options does not fit'):
        configure.load_config(config_file, {'train_dataloader.dataset.pipeline.20.scale': 64})
    with pytest.raises(UserError, match='no such config'):
        configure.load_config(tmp_path / 'none.py')
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    with pytest.raises(ConfigError, match='broken.py can.t be read as a config'):
        configure.load_config(tmp_path / 'broken.py')


def test_a_misspelt_option_is_reported(config_file, monkeypatch):
    messages = []
    monkeypatch.setattr(configure, 'print_log', lambda text, **_: messages.append(text))
    configure.load_config(config_file, {'modle.backbone.arch': 'm1', 'train_cfg.max_epochs': 1,
                                        'randomness': dict(seed=1)})
    assert len(messages) == 1 and 'modle.backbone.arch' in messages[0]


def test_flips_for_a_config_without_tta(config):
    for key in ('tta_model', 'tta_pipeline'):
        config.pop(key)
    configure.add_test_time_augmentation(config)
    assert config.model.type == 'DetTTAModel' and config.model.module.type == 'RetinaNet'
    flips, pack = config.test_dataloader.dataset.pipeline[-1].transforms
    assert [step.prob for step in flips] == [1.0, 0.0]
    assert 'flip_direction' in pack[0].meta_keys


def test_tta_of_masks_warns_that_it_merges_boxes(repository, monkeypatch):
    messages = []
    monkeypatch.setattr(configure, 'print_log', lambda text, **_: messages.append(text))
    config = Config.fromfile(repository / 'configs' / 'mask_rcnn_evit_m0_coco.py')
    configure.add_test_time_augmentation(config)
    assert config.test_evaluator.metric == ['bbox'] and 'boxes only' in messages[0]


def test_pictures_replace_the_drawing_of_other_packages(config, tmp_path):
    configure.draw_predictions(config, tmp_path, score_thr=0.5)
    hook = config.default_hooks.visualization
    assert hook.type.endswith('.PictureHook') and hook.score_thr == 0.5
    assert hook.folder == str(tmp_path) and hook.image_root.endswith('data/shapes/coco/val2017')
    assert 'checkpoint' in config.default_hooks
    with pytest.raises(UserError, match='--score-thr 30 must be between 0 and 1'):
        configure.draw_predictions(config, tmp_path, score_thr=30)
    config.val_dataloader = None
    with pytest.raises(ConfigError, match='--show-val needs a validation'):
        configure.draw_validations(config)


def test_trackers(config, monkeypatch):
    monkeypatch.setattr(configure.importlib.util, 'find_spec',
                        lambda name: None if name == 'wandb' else name)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    for _ in range(2):  # a config may name one already
        configure.add_trackers(config, ['tensorboard', 'mlflow'])
    assert [backend.type for backend in config.visualizer.vis_backends] == [
        'LocalVisBackend', 'TensorboardVisBackend', 'MLflowVisBackend']
    assert config.visualizer.vis_backends[2].tracking_uri == 'sqlite:///mlflow.db'
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:5000')
    config.visualizer.vis_backends.pop()
    configure.add_trackers(config, ['mlflow'])
    assert config.visualizer.vis_backends[2].tracking_uri == 'http://127.0.0.1:5000'
    assert config.visualizer.type == 'DetLocalVisualizer'
    with pytest.raises(UserError, match='needs the package wandb, .*: pip install wandb$'):
        configure.add_trackers(config, ['wandb'])
    with pytest.raises(UserError, match='no such tracker: comet; choose from tensorboard'):
        configure.add_trackers(config, ['comet'])
    config.pop('visualizer')
    configure.add_trackers(config, ['tensorboard'])
    assert [backend.type for backend in config.visualizer.vis_backends] == [
        'LocalVisBackend', 'TensorboardVisBackend']


def test_image_size_reaches_every_pipeline():
    config = configure.load_config('evit_det_s_coco')
    before = config.copy()
    configure.set_image_size(config, 640)
    assert config.image_size == (640, 640)

    def sizes(part):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if key in ('scale', 'img_scale', 'crop_size', 'size'):
                yield key, value
            elif isinstance(value, dict | list):
                yield from sizes(value)

    for part, expected in (('train_dataloader', 5), ('test_dataloader', 1), ('custom_hooks', 3)):
        found = list(sizes(config[part]))
        assert len(found) == expected
        assert found == [(key, tuple(side * 640 // 416 for side in size))
                         for key, size in sizes(before[part])]
    # Ranges of factors and colours stay as they are.
    mixup = config.train_dataloader.dataset.pipeline[8]
    assert (mixup.ratio_range, mixup.pad_val) == ((1.0, 1.0), (114, 114, 114))


@pytest.mark.parametrize('split', ['train', 'test'])
def test_image_size_that_belongs_to_other_pipelines(split):
    config = configure.load_config('evit_det_s_coco')
    config[f'{split}_dataloader'].dataset.pipeline = [dict(type='Resize', scale=(640, 640))]
    with pytest.raises(ConfigError, match=rf'\(416, 416\).*{split}_dataloader have \(640, 640\)'):
        configure.set_image_size(config, 320)


def test_image_size_of_the_demo():
    config = configure.load_config('evit_det_s_shapes')
    configure.set_image_size(config, 320)
    assert config.train_dataloader.dataset.pipeline[2].scale == (320, 320)
    assert config.test_dataloader.dataset.pipeline[1].scale == (320, 320)


def test_image_size_of_a_config_without_one():
    config = configure.load_config('retinanet_evit_m0_coco')
    with pytest.raises(ConfigError, match='image_size=.*--cfg-options'):
        configure.set_image_size(config, 416)
    with pytest.raises(UserError, match='--image-size must be at least 1, but is 0'):
        configure.set_image_size(configure.load_config('evit_det_s_coco'), 0)
