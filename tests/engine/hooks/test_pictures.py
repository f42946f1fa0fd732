"""Pictures of detections and of label maps, under the paths of their images."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from evit_mm.engine.hooks import PictureHook

GREEN = (0, 255, 0)
METAINFO = dict(classes=('cat', 'dog'), palette=[(255, 0, 0), GREEN])


@pytest.fixture
def images(tmp_path):
    """Two images of one name."""
    paths = []
    for folder in ('a', 'b'):
        path = tmp_path / 'images' / folder / '0001.jpg'
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((40, 60, 3), 90, np.uint8))
        paths.append(str(path))
    return paths


def detected(path, *, score, with_truth=True):
    sample = DetDataSample(metainfo=dict(img_path=path, ori_shape=(40, 60)))
    box = torch.tensor([[10., 10, 30, 30]])
    sample.pred_instances = InstanceData(bboxes=box, labels=torch.tensor([1]),
                                         scores=torch.tensor([score]),
                                         masks=torch.ones(1, 40, 60, dtype=torch.bool))
    if with_truth:
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.tensor([0]))
    return sample


def runner_of(work_dir):
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=SimpleNamespace(metainfo=METAINFO)))
    return SimpleNamespace(test_loop=loop, val_loop=loop, _train_loop=None, iter=200,
                           work_dir=str(work_dir))


def green(path):
    image = cv2.imread(str(path)).astype(int)
    return int(((image[..., 1] > image[..., 0] + 60) & (image[..., 1] > image[..., 2] + 60)).sum())


def test_detections_of_one_name(images, tmp_path):
    hook = PictureHook(str(tmp_path / 'out'), str(tmp_path / 'images'), score_thr=0.5)
    hook.after_test_iter(runner_of(tmp_path), 0, None, [detected(images[0], score=0.6),
                                                        detected(images[1], score=0.4)])
    written = sorted((tmp_path / 'out').rglob('*.*'))
    assert [path.relative_to(tmp_path / 'out').as_posix() for path in written] == [
        'a/0001.jpg', 'b/0001.jpg']
    above, below = map(green, written)
    assert above > 10_000 and below < 100  # the second has no detection above the threshold
    wide, = {cv2.imread(str(path)).shape[1] for path in written}
    assert wide > 1000  # two panels of 512 or more


def test_predictions_alone(images, tmp_path):
    hook = PictureHook(str(tmp_path / 'out'))
    hook.after_test_iter(runner_of(tmp_path), 0, None, [detected(images[0], score=0.6,
                                                                 with_truth=False)])
    assert cv2.imread(str(tmp_path / 'out' / '0001.jpg')).shape[1] < 600


def test_label_maps(images, tmp_path):
    sample = SegDataSample(metainfo=dict(img_path=images[0], ori_shape=(40, 60)))
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 40, 60, dtype=torch.long))
    sample.gt_sem_seg = PixelData(data=torch.full((1, 20, 30), 255))  # of another size, unlabelled
    hook = PictureHook(str(tmp_path / 'out'), str(tmp_path / 'images'))
    hook.after_test_iter(runner_of(tmp_path), 0, None, [sample])
    picture = tmp_path / 'out' / 'a' / '0001.png'
    area = 512 * round(512 * 40 / 60)
    assert area * 0.95 < green(picture) < area * 1.05


def test_the_first_images_of_a_validation(images, tmp_path):
    hook = PictureHook(image_root=str(tmp_path / 'images'), val_images=1)
    for _ in range(2):
        hook.before_val_epoch(None)
        hook.after_val_iter(runner_of(tmp_path), 0, None, [detected(path, score=0.6)
                                                           for path in images])
    written, = (tmp_path / 'pictures').rglob('*.jpg')
    assert written == tmp_path / 'pictures' / 'iter_200' / 'a' / '0001.jpg'
    hook.after_test_iter(runner_of(tmp_path), 0, None, [detected(images[1], score=0.6)])
    assert len(list(tmp_path.rglob('0001.jpg'))) == 3  # a test draws into its own folder, or not


def test_an_image_annotated_as_stored(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new('RGB', (60, 40), (90, 90, 90)).save(tmp_path / 'x.jpg', exif=exif)
    for shape, is_wide in (((40, 60), True), ((60, 40), False)):
        sample = detected(str(tmp_path / 'x.jpg'), score=0.6, with_truth=False)
        sample.pred_instances.pop('masks')
        sample.set_metainfo(dict(ori_shape=shape))
        PictureHook(str(tmp_path / 'out')).after_test_iter(runner_of(tmp_path), 0, None, [sample])
        height, width = cv2.imread(str(tmp_path / 'out' / 'x.jpg')).shape[:2]
        assert (width > height) == is_wide
