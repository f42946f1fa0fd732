"""What predictions write, and which inputs they leave out."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from evit_runtime import predict as module
from evit_runtime.errors import UserError
from evit_runtime.model import Model
from evit_runtime.predict import predict

RED = (0, 204, 255)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_video(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (width, height))
    for image in images:
        writer.write(image)
    writer.release()


def read_table(folder):
    with open(folder / 'predictions.csv', newline='') as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


@pytest.fixture
def photos(tmp_path, two_spots):
    """Equal names in two folders."""
    write(tmp_path / 'photos' / 'a.png', two_spots)
    write(tmp_path / 'photos' / 'day' / 'a.png', two_spots[:, :40])
    return tmp_path / 'photos'


def test_objects_of_a_folder(spots, photos, tmp_path):
    summary = predict(spots, ['photos'])
    assert summary.out.name == 'predictions' and str(summary) == (
        '2 pictures: red 2, blue 1; see predictions')
    assert files(tmp_path / 'predictions') == [
        'pictures/a.png', 'pictures/day/a.png', 'predictions.csv', 'predictions.json']
    rows = read_table(tmp_path / 'predictions')
    assert [list(row.values()) for row in rows] == [
        ['a.png', '', 'red', '0.8000', '10.00', '20.00', '18.00', '26.00'],
        ['a.png', '', 'blue', '0.6000', '50.00', '30.00', '62.00', '50.00'],
        ['day/a.png', '', 'red', '0.8000', '10.00', '20.00', '18.00', '26.00']]
    coco = COCO(tmp_path / 'predictions' / 'predictions.json')
    assert [image['file_name'] for image in coco.dataset['images']] == ['a.png', 'day/a.png']
    assert [image['width'] for image in coco.dataset['images']] == [90, 40]
    [red, blue] = coco.loadAnns(coco.getAnnIds(imgIds=[0]))
    assert red['bbox'] == [10, 20, 8, 6] and blue['score'] == pytest.approx(0.6)
    assert coco.loadCats([blue['category_id']])[0]['name'] == 'blue'
    picture = cv2.imread('predictions/pictures/a.png')
    assert picture.shape == (341, 512, 3) and (picture == (0, 0, 255)).all(-1).any()
    # The next one goes to another folder.
    assert predict(spots, ['photos']).out.name == 'predictions_2'


def test_thresholds_and_classes(spots, photos):
    assert predict(spots, ['photos'], out='a', score_threshold=0.05).counts == {
        'red': 4, 'blue': 1}  # the pale spot is red
    assert predict(spots, ['photos'], out='b', classes=['blue']).counts == {'blue': 1}
    assert predict(spots, ['photos'], out='c', classes=[0], score_threshold=0.9).counts == {}


def test_batches(spots, tmp_path, two_spots):
    for number in range(5):
        write(tmp_path / 'many' / f'{number}.png', two_spots)
    (tmp_path / 'many' / '1.png').write_text('no image')
    summary = predict(spots, ['many'], batch_size=2, draw=False)
    assert [len(batch) for batch in spots.shapes] == [2, 2] and summary.pictures == 4
    assert [row['file'] for row in read_table(summary.out)[::2]] == [
        '0.png', '2.png', '3.png', '4.png']
    assert files(summary.out) == ['predictions.csv', 'predictions.json']


def test_what_can_not_be_read_is_named_and_left_out(spots, photos, capsys):
    (photos / 'b.jpg').write_text('no image')
    (photos / 'c.mp4').write_text('no video')
    Image.new('1', (11_000, 11_000)).save(photos / 'huge.png')
    half = (photos / 'a.png').read_bytes()[:-20]
    (photos / 'half.png').write_bytes(half)
    summary = predict(spots, ['photos'], batch_size=8)
    assert summary.pictures == 2 and len(summary.failures) == 4
    printed = capsys.readouterr().err.splitlines()
    printed = [line for line in printed if line.startswith(('error', 'note'))]
    assert printed == [f'error: {failure}' for failure in summary.failures]
    for line, name in zip(printed, ('b.jpg', 'c.mp4', 'half.png', 'huge.png'), strict=True):
        assert name in line
    assert '--max-megapixels 121' in printed[-1]


def test_a_picture_that_the_model_refuses(spots, photos, monkeypatch, capsys):
    predict_all = spots._predict

    def refuse(images, threshold):
        if any(image.shape[1] == 40 for image in images):
            raise UserError('it is too narrow')
        return predict_all(images, threshold)

    monkeypatch.setattr(spots, '_predict', refuse)
    summary = predict(spots, ['photos'], batch_size=2)
    assert summary.pictures == 1
    assert summary.failures == [f'can\'t predict {photos / "day" / "a.png"}: it is too narrow']


def test_animations_are_noted(spots, tmp_path, two_spots, capsys):
    first = Image.fromarray(two_spots[..., ::-1])
    first.save(tmp_path / 'a.webp', lossless=True, save_all=True,
               append_images=[Image.new('RGB', first.size)])
    first.save(tmp_path / 'b.webp', lossless=True)
    summary = predict(spots, ['a.webp', 'b.webp'])
    assert summary.pictures == 2
    [note] = [line for line in capsys.readouterr().err.splitlines() if line.startswith('note')]
    assert note.endswith('a.webp has several frames; the first one is predicted')
    assert files(summary.out)[0] == 'pictures/a.png'


def test_photographs_are_turned_once(spots, tmp_path, two_spots):
    """By EXIF's orientation, like their boxes."""
    tags = Image.Exif()
    tags[0x0112] = 6
    image = Image.fromarray(two_spots[..., ::-1])
    image.save(tmp_path / 'turned.png', exif=tags)
    summary = predict(spots, ['turned.png'], classes=['blue'])
    [row] = read_table(summary.out)
    left, top, right, bottom = (float(row[key]) for key in ('left', 'top', 'right', 'bottom'))
    assert (left, top, right, bottom) == (10, 50, 30, 62)
    picture = cv2.imread(str(summary.out / 'pictures' / 'turned.png'))
    assert picture.shape == (512, 341, 3)
    x, y = round((left + right) / 2 * 512 / 90), round((top + bottom) / 2 * 512 / 90)
    assert picture[y, x, 0] > 200  # blue in the middle of the box


def test_crops(spots, photos):
    spots.class_names = ('a/b: red', '..')
    summary = predict(spots, ['photos'], save_crops=True, draw=False)
    assert files(summary.out) == [
        'crops/a_b_ red/a_1.jpg', 'crops/a_b_ red/day/a_1.jpg', 'crops/unnamed/a_2.jpg',
        'predictions.csv', 'predictions.json']
    crop = cv2.imread(str(summary.out / 'crops/unnamed/a_2.jpg'))
    assert crop.shape == (20, 12, 3) and abs(crop.mean((0, 1)) - (255, 153, 0)).max() < 5


def test_crops_of_slivers(spots, tmp_path, monkeypatch, two_spots):
    write(tmp_path / 'a.png', two_spots)
    predict_all = spots._predict

    def narrow(images, threshold):
        results = predict_all(images, threshold)
        results[0].boxes[:3] = [[89.9, 59.8, 90, 60], [5.2, 5.2, 5.2, 5.2], [-3, -3, 0, 0]]
        return results

    monkeypatch.setattr(spots, '_predict', narrow)
    summary = predict(spots, ['a.png'], save_crops=True, score_threshold=0)
    crops = [cv2.imread(str(summary.out / name)) for name in files(summary.out)
             if name.startswith('crops')]
    assert [crop.shape for crop in crops] == [(1, 1, 3)] * 3


def test_masks(mask_spots, photos):
    summary = predict(mask_spots, ['photos'])
    coco = COCO(summary.out / 'predictions.json')
    [red, _] = coco.loadAnns(coco.getAnnIds(imgIds=[0]))
    mask = coco.annToMask(red)
    assert mask.shape == (60, 90) and mask.sum() == 48 == red['area']


def test_label_maps(halves, photos):
    summary = predict(halves, ['photos'], classes=['bright'])
    assert files(summary.out)[:2] == ['label_maps/a.png', 'label_maps/day/a.png']
    image = Image.open(summary.out / 'label_maps' / 'a.png')
    values = np.asarray(image)
    assert image.mode == 'P' and values.shape == (60, 90) and set(np.unique(values)) == {1, 255}
    assert image.getpalette()[3:6] == [200, 210, 220]
    assert list(read_table(summary.out)[0].values()) == ['a.png', '', 'bright', '288', '0.053333']
    assert summary.counts == {'bright': 2}


def test_label_maps_of_many_classes(halves, photos):
    halves.class_names = tuple(map(str, range(300)))
    summary = predict(halves, ['photos'], classes=['1'])
    values = cv2.imread(str(summary.out / 'label_maps' / 'a.png'), cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16 and set(np.unique(values)) == {1, 65535}


class TestVideos:
    @pytest.fixture
    def moving(self, tmp_path, draw):
        """A red spot that moves to the right, in 8 frames."""
        images = [draw(64, 96, (10 + 3 * k, 20, 24, 24, RED)) for k in range(8)]
        write_video(tmp_path / 'clips' / 'a.mp4', images)
        return tmp_path / 'clips'

    def test_a_video(self, spots, moving):
        summary = predict(spots, ['clips'], batch_size=3)
        assert (summary.pictures, summary.frames) == (0, 8) and '8 frames: red 8' in str(summary)
        assert [len(batch) for batch in spots.shapes] == [3, 3, 2]
        rows = read_table(summary.out)
        assert [row['frame'] for row in rows] == [str(k) for k in range(1, 9)]
        assert np.diff([float(row['left']) for row in rows]) == pytest.approx([3] * 7, abs=2)
        images = json.loads((summary.out / 'predictions.json').read_text())['images']
        assert [image['frame'] for image in images] == list(range(1, 9))
        video = cv2.VideoCapture(str(summary.out / 'videos' / 'a.mp4'))
        assert video.get(cv2.CAP_PROP_FPS) == 10 and video.get(cv2.CAP_PROP_FRAME_COUNT) == 8
        assert video.read()[1].shape == (64, 96, 3)

    def test_between_pictures(self, spots, moving, two_spots):
        for name in ('0.png', 'b.png', 'c.png'):
            write(moving / name, two_spots)
        summary = predict(spots, ['clips'], batch_size=2)
        assert (summary.pictures, summary.frames) == (3, 8)
        assert list(dict.fromkeys(row['file'] for row in read_table(summary.out))) == [
            '0.png', 'a.mp4', 'b.png', 'c.png']

    def test_label_maps_and_crops_of_frames(self, halves, spots, moving):
        names = files(predict(halves, ['clips']).out)
        assert names[:2] == ['label_maps/a/000001.png', 'label_maps/a/000002.png']
        names = files(predict(spots, ['clips'], save_crops=True).out)
        assert names[0] == 'crops/red/a/000001_1.jpg'

    def test_a_video_that_ends_early(self, spots, moving, monkeypatch, capsys):
        import supervision

        monkeypatch.setattr(supervision.VideoInfo, 'from_video_path', classmethod(
            lambda cls, path: cls(width=96, height=64, fps=0, total_frames=100)))
        summary = predict(spots, ['clips'])
        assert summary.frames == 8
        assert 'a.mp4 ends after 8 of the 100 frames that it announces' in capsys.readouterr().err
        video = cv2.VideoCapture(str(summary.out / 'videos' / 'a.mp4'))
        assert video.get(cv2.CAP_PROP_FPS) == 25

    def test_a_frame_that_does_not_fit_ends_its_video_alone(self, spots, moving, monkeypatch,
                                                             two_spots):
        import supervision

        read = supervision.get_video_frames_generator

        def frames(path):
            yield from list(read(path))[:4]
            yield two_spots

        monkeypatch.setattr(supervision, 'get_video_frames_generator', frames)
        write(moving / 'b.png', two_spots)
        summary = predict(spots, ['clips'], batch_size=2)
        assert summary.failures == [
            f'frame 5 of {moving / "a.mp4"} has another size than those before it; the video is '
            'predicted up to there']
        assert (summary.frames, summary.pictures) == (4, 1)
        video = cv2.VideoCapture(str(summary.out / 'videos' / 'a.mp4'))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 4

    def test_frames_that_the_model_refuses(self, spots, moving, monkeypatch):
        def refuse(images, threshold):
            raise UserError('they are too narrow')

        monkeypatch.setattr(spots, '_predict', refuse)
        [failure] = predict(spots, ['clips']).failures
        assert failure.endswith('a.mp4 from frame 1 on: they are too narrow')

    def test_a_disk_that_can_not_be_written_ends_all(self, spots, moving):
        (moving / 'out').mkdir()
        (moving / 'out' / 'videos').touch()
        with pytest.raises(UserError, match="^can't write .*videos/a.mp4: "):
            predict(spots, ['clips/a.mp4'], out=moving / 'out', overwrite=True)

    def test_a_webcam_until_ctrl_c(self, spots, monkeypatch, two_spots):
        class Camera:
            count = 0

            def isOpened(self):
                return True

            def read(self):
                Camera.count += 1
                if Camera.count > 3:
                    raise KeyboardInterrupt
                return True, two_spots

            def release(self):
                Camera.count = None

        capture = cv2.VideoCapture
        monkeypatch.setattr(module.cv2, 'VideoCapture', lambda source: Camera() if source == 0
                            else capture(source))
        summary = predict(spots, ['0'])
        assert summary.interrupted and summary.frames == 3 and Camera.count is None
        assert len(COCO(summary.out / 'predictions.json').dataset['annotations']) == 6
        assert (summary.out / 'videos' / 'webcam_0.mp4').stat().st_size > 1000

    def test_no_webcam(self, spots, monkeypatch):
        class Camera:
            isOpened = release = staticmethod(lambda: False)

        monkeypatch.setattr(module.cv2, 'VideoCapture', lambda number: Camera())
        summary = predict(spots, ['3'])
        assert summary.failures[0].startswith('webcam 3 can\'t be opened')

    def test_tracks(self, spots, moving):
        pytest.importorskip('trackers')
        summary = predict(spots, ['clips'], track=True)
        tracks = [row['track'] for row in read_table(summary.out)]
        assert tracks[0] == '' and len(set(tracks[2:])) == 1 and tracks[2].isdecimal()
        entries = json.loads((summary.out / 'predictions.json').read_text())['annotations']
        assert entries[0]['track_id'] == -1 and entries[-1]['track_id'] == int(tracks[-1])


def test_tiles(spots, photos):
    assert predict(spots, ['photos'], tiles=64, batch_size=2).counts == {'red': 2, 'blue': 1}
    assert {shape for batch in spots.shapes for shape in batch} == {(60, 64), (60, 40)}


@pytest.mark.parametrize('options, message', [
    (dict(score_threshold=2), 'score_threshold is from 0 to 1'),
    (dict(classes=['bleu']), "no class 'bleu'; did you mean blue?"),
    (dict(batch_size=0), 'batch_size is at least 1'), (dict(tiles=2), 'at least 32 pixels'),
    (dict(track=True), '--track follows objects through videos, and there is none'),
    (dict(out='photos'), '^photos is not empty: choose another folder with --out'),
    (dict(out='photos/a.png/b'), "can't write photos/a.png/b: Not a directory")])
def test_mistakes_leave_no_folder(options, message, spots, photos, tmp_path):
    with pytest.raises(UserError, match=message):
        predict(spots, ['photos'], **options)
    assert not spots.shapes and not (tmp_path / 'predictions').exists()


def test_a_full_folder_is_overwritten_on_demand(spots, photos):
    predict(spots, ['photos'], out='out')
    assert predict(spots, ['photos'], out='out', overwrite=True).pictures == 2


@pytest.mark.parametrize('flag', ['save_crops', 'track'])
def test_label_maps_have_no_objects(flag, halves, photos):
    with pytest.raises(UserError, match=f'^--{flag.replace("_", "-")} needs a detector'):
        predict(halves, ['photos'], **{flag: True})


def test_the_folder_of_outputs_is_no_input(spots, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    first = predict(spots, ['.'], out='results')
    assert predict(spots, ['.'], out='results', overwrite=True).pictures == first.pictures == 2


def test_a_base_class_is_not_a_model():
    with pytest.raises(TypeError):
        Model()
