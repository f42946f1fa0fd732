"""The synthetic data set: its two layouts, its annotations, and what it does to a folder."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

import evit_mm  # noqa: F401  (what mmdet and mmseg need of mmcv)
from evit_mm.data import SCENE_CLASSES, SHAPE_CLASSES, generate_ade, generate_coco
from evit_mm.data import shapes as shapes_module
from evit_mm.data.shapes import draw_scene, draw_shapes
from evit_mm.errors import UserError

SIZE = (96, 112)
SMALL = dict(num_train=11, num_val=4, image_size=SIZE, seed=3, progress=False)
TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'prepare_data.py'


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'coco'
    generate_coco(root, **SMALL)
    return root


@pytest.fixture(scope='module')
def ade_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'ade'
    generate_ade(root, **SMALL)
    return root


@pytest.fixture(scope='module')
def coco(coco_root):
    return COCO(str(coco_root / 'annotations' / 'instances_train2017.json'))


class TestCocoLayout:
    def test_files(self, coco_root):
        names = set(snapshot(coco_root))
        assert names == {
            'shapes.json', 'annotations/instances_train2017.json',
            'annotations/instances_val2017.json',
            *(f'train2017/{number:012d}.jpg' for number in range(1, 12)),
            *(f'val2017/{number:012d}.jpg' for number in range(1, 5))}

    def test_fields_are_those_of_coco(self, coco):
        content = coco.dataset
        assert set(content) == {'info', 'licenses', 'images', 'annotations', 'categories'}
        assert content['categories'] == [
            {'supercategory': 'shape', 'id': number, 'name': name}
            for number, name in enumerate(SHAPE_CLASSES, start=1)]
        assert [image['id'] for image in content['images']] == list(range(1, 12))
        assert [one['id'] for one in content['annotations']] == list(
            range(1, len(content['annotations']) + 1))
        for one in content['annotations']:
            assert set(one) == {'segmentation', 'area', 'iscrowd', 'image_id', 'bbox',
                                'category_id', 'id'}
            assert one['image_id'] in coco.imgs and one['category_id'] in coco.cats

    def test_image_sizes_are_recorded_and_vary_about_the_request(self, coco, coco_root):
        shapes = set()
        for image in coco.dataset['images']:
            pixels = cv2.imread(str(coco_root / 'train2017' / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert pixels.shape[0] * pixels.shape[1] == pytest.approx(SIZE[0] * SIZE[1], rel=0.03)
            shapes.add(pixels.shape[:2])
        assert len(shapes) > 4
        assert any(height > width for height, width in shapes)
        assert any(height < width for height, width in shapes)

    def test_every_image_has_an_ordinary_instance(self, coco):
        for image_id in coco.imgs:
            ordinary = coco.getAnnIds(image_id, iscrowd=False)
            assert 1 <= len(ordinary) <= 8


class TestCocoAnnotations:
    def test_mask_box_and_area_agree(self, coco):
        for one in coco.dataset['annotations']:
            mask = coco.annToMask(one).astype(bool)
            rows, columns = np.nonzero(mask)
            x, y, width, height = one['bbox']
            assert one['area'] == mask.sum() > 0
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert x + width <= mask.shape[1] and y + height <= mask.shape[0]

    def test_masks_are_the_visible_ones_and_never_overlap(self, coco):
        for index, image_id in enumerate(coco.imgs):
            _, instances = draw_shapes(SIZE, SMALL['seed'], 'train', index)
            annotations = coco.loadAnns(coco.getAnnIds(image_id))
            assert len(instances) == len(annotations)
            for instance, one in zip(instances, annotations, strict=True):
                assert instance.category_id == one['category_id']
                np.testing.assert_array_equal(coco.annToMask(one), instance.mask)
            assert sum(coco.annToMask(one).astype(int) for one in annotations).max() == 1

    def test_many_images_give_masks_back_exactly(self):
        # Shapes cut by others into pieces are rare: look at many more than are written.
        pieces = 0
        for index in range(200):
            _, instances = draw_shapes((80, 80), 0, 'train', index)
            for instance in instances:
                assert instance.mask.any()
                one = shapes_module._coco_annotation(instance, 1, 1)
                if instance.crowd:
                    continue
                height, width = instance.mask.shape
                polygons = one['segmentation']
                assert all(len(polygon) >= 8 for polygon in polygons)
                assert all(isinstance(value, float) for value in polygons[0])
                decoded = mask_utils.decode(mask_utils.merge(
                    mask_utils.frPyObjects(polygons, height, width)))
                np.testing.assert_array_equal(decoded, instance.mask)
                pieces += len(polygons) > 1
        assert pieces

    @pytest.mark.parametrize('rows', [
        ['####', '#..#', '####'],
        ['#####', '#.#.#', '#####', '#.#.#', '#####'],
        ['#######', '#.....#', '#.###.#', '#.#.#.#', '#.###.#', '#.....#', '#######'],
        ['#.', '.#'],
        ['#'],
    ], ids=['hole', 'holes', 'ring in ring', 'diagonal', 'one pixel'])
    def test_polygons_of_awkward_masks(self, rows):
        mask = np.array([[cell == '#' for cell in row] for row in rows])
        polygons = shapes_module._polygons(mask)
        decoded = mask_utils.decode(mask_utils.merge(
            mask_utils.frPyObjects(polygons, *mask.shape)))
        np.testing.assert_array_equal(decoded, mask)

    def test_crowd_is_an_uncompressed_rle_over_many_shapes(self, coco):
        crowds = [one for one in coco.dataset['annotations'] if one['iscrowd']]
        assert {one['image_id'] for one in crowds} == {3, 11}
        for one in crowds:
            image = coco.imgs[one['image_id']]
            assert one['segmentation']['size'] == [image['height'], image['width']]
            counts = one['segmentation']['counts']
            assert all(type(count) is int for count in counts)
            assert sum(counts) == image['height'] * image['width']
            others = coco.loadAnns(coco.getAnnIds(one['image_id'], iscrowd=False))
            assert others
            assert not any((coco.annToMask(one) & coco.annToMask(other)).any()
                           for other in others)

    def test_crowd_covers_its_members(self):
        rng = np.random.default_rng(0)
        for _ in range(10):
            before = np.full((120, 100, 3), 100, np.float32)
            after = before.copy()
            crowd = shapes_module._add_crowd(rng, after)
            painted = (before != after).any(axis=2)
            assert painted.sum() > 200
            assert not (painted & ~crowd.mask).any()

    def test_tiny_and_small_objects_occur(self, coco):
        ordinary = [one for one in coco.dataset['annotations'] if not one['iscrowd']]
        assert any(max(one['bbox'][2:]) < 8 for one in ordinary)
        assert any(one['area'] < 32 * 32 for one in ordinary)

    @pytest.mark.parametrize('size', [(64, 64), (64, 192), (192, 64)])
    def test_any_allowed_size_can_be_drawn(self, size):
        for index in range(24):
            image, instances = draw_shapes(size, 0, 'val', index)
            assert any(not instance.crowd for instance in instances)
            assert all(instance.mask.shape == image.shape[:2] for instance in instances)
            image, labels = draw_scene(size, 0, 'val', index)
            assert labels.shape == image.shape[:2]

    def test_most_objects_are_of_medium_size(self):
        extents = []
        for index in range(60):
            _, instances = draw_shapes((128, 128), 1, 'train', index)
            for instance in instances:
                if not instance.crowd:
                    extents.append(max(instance.mask.any(axis=0).sum(),
                                       instance.mask.any(axis=1).sum()) / 128)
        assert np.mean([0.15 < extent < 0.6 for extent in extents]) > 0.8

    def test_mmdet_loads_it(self, coco, coco_root):
        from mmdet.datasets import CocoDataset

        dataset = CocoDataset(
            data_root=str(coco_root), ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'), metainfo=dict(classes=SHAPE_CLASSES),
            pipeline=[dict(type='mmdet.LoadImageFromFile'),
                      dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
                      dict(type='mmdet.Resize', scale=(64, 64), keep_ratio=True),
                      dict(type='mmdet.PackDetInputs')])
        assert len(dataset) == 11
        counts = [len(dataset[index]['data_samples'].gt_instances)
                  for index in range(len(dataset))]
        ignored = [len(dataset[index]['data_samples'].ignored_instances)
                   for index in range(len(dataset))]
        assert sum(counts) == len(coco.getAnnIds(iscrowd=False))
        assert sum(ignored) == 2
        labels = {int(label) for index in range(len(dataset))
                  for label in dataset[index]['data_samples'].gt_instances.labels}
        assert labels <= set(range(len(SHAPE_CLASSES)))


class TestAdeLayout:
    def test_files(self, ade_root):
        expected = {'shapes.json'}
        for split, folder, count in (('train', 'training', 11), ('val', 'validation', 4)):
            for number in range(1, count + 1):
                expected.add(f'images/{folder}/ADE_{split}_{number:08d}.jpg')
                expected.add(f'annotations/{folder}/ADE_{split}_{number:08d}.png')
        assert set(snapshot(ade_root)) == expected

    def test_label_maps_fit_their_images(self, ade_root):
        seen = set()
        for path in (ade_root / 'images').rglob('*.jpg'):
            image = cv2.imread(str(path))
            label_path = ade_root / 'annotations' / path.parent.name / f'{path.stem}.png'
            labels = cv2.imread(str(label_path), cv2.IMREAD_UNCHANGED)
            assert labels.dtype == np.uint8 and labels.ndim == 2
            assert labels.shape == image.shape[:2]
            values = set(np.unique(labels).tolist())
            assert 0 in values and len(values) >= 4
            assert values <= {0, *SCENE_CLASSES}
            seen |= values
        assert seen == {0, *SCENE_CLASSES}

    def test_label_maps_are_stored_losslessly(self, ade_root):
        image, labels = draw_scene(SIZE, SMALL['seed'], 'val', 1)
        stored = cv2.imread(str(ade_root / 'annotations/validation/ADE_val_00000002.png'),
                            cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, labels)
        assert image.shape == (*labels.shape, 3)

    def test_mmseg_loads_it_and_names_the_classes_alike(self, ade_root):
        from mmseg.datasets import ADE20KDataset

        dataset = ADE20KDataset(
            data_root=str(ade_root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=[dict(type='mmseg.LoadImageFromFile'),
                      dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
                      dict(type='mmseg.PackSegInputs')])
        assert len(dataset) == 11
        names = dataset.metainfo['classes']
        assert len(names) == 150
        assert all(names[value - 1].strip() == name for value, name in SCENE_CLASSES.items())
        loaded = dataset[0]['data_samples'].gt_sem_seg.data
        assert set(loaded.unique().tolist()) <= {255, *(value - 1 for value in SCENE_CLASSES)}


@pytest.mark.parametrize('generate', [generate_coco, generate_ade])
class TestDeterminism:
    def test_same_seed_same_bytes(self, generate, tmp_path):
        for name in 'ab':
            generate(tmp_path / name, **SMALL)
        assert snapshot(tmp_path / 'a') == snapshot(tmp_path / 'b')

    def test_another_seed_differs(self, generate, tmp_path):
        generate(tmp_path / 'a', **SMALL)
        generate(tmp_path / 'b', **{**SMALL, 'seed': 4})
        a, b = snapshot(tmp_path / 'a'), snapshot(tmp_path / 'b')
        assert set(a) == set(b)
        assert not [name for name in a if a[name] == b[name] and name.endswith('.jpg')]

    def test_train_and_val_differ(self, generate, tmp_path):
        generate(tmp_path, **SMALL)
        images = [data for name, data in snapshot(tmp_path).items() if name.endswith('.jpg')]
        assert len(set(images)) == 15

    def test_images_do_not_depend_on_their_number(self, generate, tmp_path):
        generate(tmp_path / 'few', **{**SMALL, 'num_train': 3, 'num_val': 1})
        generate(tmp_path / 'many', **SMALL)
        few, many = snapshot(tmp_path / 'few'), snapshot(tmp_path / 'many')
        for name, data in few.items():
            if not name.endswith('.json'):
                assert many[name] == data, name
        if generate is generate_coco:
            contents = [json.loads(files['annotations/instances_train2017.json'])
                        for files in (few, many)]
            for key in ('images', 'annotations'):
                first, second = (content[key] for content in contents)
                assert first == second[:len(first)]


def test_same_bytes_in_another_process(coco_root, ade_root, tmp_path):
    # Other hash seed: the order of sets must not reach the files.
    code = (f'import sys; sys.path.insert(0, {str(TOOL.parents[1])!r})\n'
            'from evit_mm.data import generate_ade, generate_coco\n'
            f'generate_coco("coco", **{SMALL!r})\n'
            f'generate_ade("ade", **{SMALL!r})')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path,
                   env={**os.environ, 'PYTHONHASHSEED': '77'})
    assert snapshot(tmp_path / 'coco') == snapshot(coco_root)
    assert snapshot(tmp_path / 'ade') == snapshot(ade_root)


TINY = dict(num_train=3, num_val=1, image_size=(64, 64), progress=False)


@pytest.mark.parametrize('generate', [generate_coco, generate_ade])
class TestFolder:
    def test_reports_what_it_wrote(self, generate, tmp_path):
        data = generate(tmp_path / 'new' / 'folder', **TINY)
        assert not data.reused
        assert data.root == tmp_path / 'new' / 'folder'
        assert data.images == {'train': 3, 'val': 1}
        if generate is generate_coco:
            for split, count in data.annotations.items():
                path = data.root / 'annotations' / f'instances_{split}2017.json'
                assert len(json.loads(path.read_text())['annotations']) == count
        else:
            assert data.annotations == {}

    def test_same_settings_are_reused(self, generate, tmp_path):
        first = generate(tmp_path, **TINY)
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
        for overwrite in (False, True):
            again = generate(tmp_path, overwrite=overwrite, **TINY)
            assert again.reused
            assert (again.images, again.annotations) == (first.images, first.annotations)
        assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}

    def test_a_lost_file_is_made_again(self, generate, tmp_path):
        generate(tmp_path, **TINY)
        before = snapshot(tmp_path)
        next(tmp_path.rglob('*.jpg')).unlink()
        assert not generate(tmp_path, **TINY).reused
        assert snapshot(tmp_path) == before

    def test_other_settings_are_refused(self, generate, tmp_path):
        generate(tmp_path, **TINY)
        before = snapshot(tmp_path)
        for change in (dict(num_train=2), dict(seed=9), dict(image_size=(64, 80))):
            with pytest.raises(UserError, match=r'other settings.*--overwrite') as caught:
                generate(tmp_path, **{**TINY, **change})
            assert str(tmp_path) in str(caught.value)
        assert snapshot(tmp_path) == before

    def test_overwrite_replaces_and_leaves_no_old_file(self, generate, tmp_path):
        generate(tmp_path / 'a', **TINY)
        (tmp_path / 'a' / 'notes.txt').write_text('mine')
        image_folder = next((tmp_path / 'a').rglob('*.jpg')).parent
        (image_folder / 'mine.jpg').write_text('mine')
        fewer = {**TINY, 'num_train': 2, 'seed': 5}
        assert not generate(tmp_path / 'a', overwrite=True, **fewer).reused
        generate(tmp_path / 'b', **fewer)
        expected = snapshot(tmp_path / 'b')
        expected['notes.txt'] = b'mine'
        expected[(image_folder / 'mine.jpg').relative_to(tmp_path / 'a').as_posix()] = b'mine'
        assert snapshot(tmp_path / 'a') == expected

    def test_the_other_layout_counts_as_other_settings(self, generate, tmp_path):
        other = generate_ade if generate is generate_coco else generate_coco
        other(tmp_path / 'a', **TINY)
        with pytest.raises(UserError, match='other settings'):
            generate(tmp_path / 'a', **TINY)
        generate(tmp_path / 'a', overwrite=True, **TINY)
        generate(tmp_path / 'b', **TINY)
        assert snapshot(tmp_path / 'a') == snapshot(tmp_path / 'b')
        folders = [{path.relative_to(root) for path in root.rglob('*') if path.is_dir()}
                   for root in (tmp_path / 'a', tmp_path / 'b')]
        assert folders[0] == folders[1]

    def test_a_foreign_folder_is_refused(self, generate, tmp_path):
        (tmp_path / 'notes.txt').write_text('mine')
        with pytest.raises(UserError, match=r'not empty.*--overwrite'):
            generate(tmp_path, **TINY)
        assert snapshot(tmp_path) == {'notes.txt': b'mine'}
        generate(tmp_path, overwrite=True, **TINY)
        assert snapshot(tmp_path)['notes.txt'] == b'mine'

    @pytest.mark.parametrize('manifest', [
        '{}', '[]', 'no json', '{"generator": "evit_mm.data.shapes", "settings": {"layout": 1}}'])
    def test_a_manifest_of_something_else_is_foreign(self, generate, tmp_path, manifest):
        (tmp_path / 'shapes.json').write_text(manifest)
        with pytest.raises(UserError, match='not made by this generator'):
            generate(tmp_path, **TINY)
        with pytest.raises(UserError, match='shapes.json was not made by this generator'):
            generate(tmp_path, overwrite=True, **TINY)
        assert snapshot(tmp_path) == {'shapes.json': manifest.encode()}

    def test_foreign_files_are_never_replaced(self, generate, tmp_path):
        generate(tmp_path / 'sample', **TINY)
        for name in snapshot(tmp_path / 'sample'):
            root = tmp_path / 'foreign' / name.replace('/', '_')
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text('mine')
            with pytest.raises(UserError, match='was not made by this generator'):
                generate(root, overwrite=True, **TINY)
            assert snapshot(root) == {name: b'mine'}

    def test_foreign_files_are_not_replaced_by_growing_either(self, generate, tmp_path):
        generate(tmp_path, **TINY)
        new = next(tmp_path.rglob('*_train_*3.jpg'), tmp_path / 'train2017' / f'{3:012d}.jpg')
        mine = new.with_name(new.name.replace('3.jpg', '4.jpg'))
        mine.write_text('mine')
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=mine.name):
            generate(tmp_path, overwrite=True, **{**TINY, 'num_train': 4})
        assert snapshot(tmp_path) == before

    def test_an_interrupted_generation_is_redone(self, generate, tmp_path, monkeypatch):
        whole = tmp_path / 'whole'
        generate(whole, **TINY)
        real = shapes_module._write_image
        written = []

        def interrupt(path, image):
            if len(written) == 2:
                raise KeyboardInterrupt
            written.append(path)
            real(path, image)

        root = tmp_path / 'a'
        bigger = {**TINY, 'num_train': 5, 'seed': 8}
        with monkeypatch.context() as patch:
            patch.setattr(shapes_module, '_write_image', interrupt)
            with pytest.raises(KeyboardInterrupt):
                generate(root, **bigger)
        assert (root / 'shapes.partial').is_file() and not (root / 'shapes.json').exists()
        assert len(written) == 2
        assert not generate(root, **TINY).reused
        assert snapshot(root) == snapshot(whole)

    def test_an_interrupted_replacement_leaves_nothing_behind(
            self, generate, tmp_path, monkeypatch):
        whole, root = tmp_path / 'whole', tmp_path / 'a'
        generate(whole, **TINY)
        generate(root, **{**TINY, 'num_train': 6})

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        for number in (5, 4):  # twice: the second must remember what the first knew
            with monkeypatch.context() as patch:
                patch.setattr(shapes_module, '_remove_files', interrupt)
                with pytest.raises(KeyboardInterrupt):
                    generate(root, overwrite=True, **{**TINY, 'num_train': number})
            assert not (root / 'shapes.json').exists()
        generate(root, **TINY)
        assert snapshot(root) == snapshot(whole)

    def test_interrupted_between_manifest_and_marker(self, generate, tmp_path):
        generate(tmp_path, **TINY)
        before = snapshot(tmp_path)
        (tmp_path / 'shapes.partial').write_text('{"generator": "evit_mm.data.shapes"}')
        assert generate(tmp_path, **TINY).reused
        assert snapshot(tmp_path) == before

    def test_a_format_of_another_version_is_not_reused(self, generate, tmp_path, monkeypatch):
        generate(tmp_path, **TINY)
        monkeypatch.setattr(shapes_module, '_FORMAT', shapes_module._FORMAT + 1)
        with pytest.raises(UserError, match='other settings'):
            generate(tmp_path, **TINY)

    def test_a_file_in_the_way(self, generate, tmp_path):
        (tmp_path / 'file').write_text('mine')
        for root in (tmp_path / 'file', tmp_path / 'file' / 'below' / 'it'):
            with pytest.raises(UserError, match='is a file, but a folder is needed'):
                generate(root, **TINY)

    def test_a_failing_disk_is_told(self, generate, tmp_path, monkeypatch):
        def fail(path, image):
            raise OSError(28, 'No space left on device', str(path))

        monkeypatch.setattr(shapes_module, '_write_image', fail)
        with pytest.raises(UserError, match='No space left on device'):
            generate(tmp_path, **TINY)

    @pytest.mark.parametrize('change', [
        dict(num_train=0), dict(num_val=-1), dict(image_size=(8, 8)), dict(image_size=(64, 9999)),
        dict(image_size=(64, 200)), dict(seed=-1), dict(seed=2**32), dict(num_train=10**9)])
    def test_bad_numbers(self, generate, tmp_path, change):
        with pytest.raises(UserError, match='must'):
            generate(tmp_path / 'new', **{**TINY, **change})
        assert not (tmp_path / 'new').exists()


def run_tool(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), 'shapes', *map(str, args)], cwd=cwd,
                          capture_output=True, text=True)


def run_tool_here(monkeypatch, *args: str) -> int:
    """Exit code of the tool run in this process: a new one spends seconds on importing torch."""
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(sys, 'argv', [str(TOOL), 'shapes', *args])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name='__main__')
    return caught.value.code


class TestTool:
    def test_both_layouts_from_another_folder(self, tmp_path, monkeypatch, capsys):
        options = ('--num-train', '3', '--num-val', '1', '--size', '64', '--seed', '2')
        done = run_tool('--out', 'x', *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for layout in ('coco', 'ade'):
            assert str(tmp_path / 'x' / layout) in done.stdout
            assert (tmp_path / 'x' / layout / 'shapes.json').is_file()
        for text in ('3 images', '1 images', 'triangle', 'sky', 'next: '):
            assert text in done.stdout
        assert '100%' in done.stderr  # the progress bar

        monkeypatch.chdir(tmp_path)
        assert run_tool_here(monkeypatch, '--out', 'x', *options, '--layout', 'ade') == 0
        printed = capsys.readouterr().out
        assert 'was there already' in printed and 'coco' not in printed

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / 'file').write_text('mine')
        (tmp_path / 'foreign' / 'coco').mkdir(parents=True)
        (tmp_path / 'foreign' / 'coco' / 'notes.txt').write_text('mine')
        return tmp_path

    @pytest.mark.parametrize('options', [('--size', '8'), ('--out', 'foreign')])
    def test_mistakes_are_told_in_one_line(self, folder, options):
        done = run_tool(*options, cwd=folder)
        assert done.returncode == 2
        assert done.stdout == ''
        assert done.stderr.startswith('error: ') and len(done.stderr.splitlines()) == 1
        assert 'Traceback' not in done.stderr

    @pytest.mark.parametrize('options', [
        ('--num-train', '0'), ('--num-val', '-3'), ('--size', '5000'), ('--seed', '-1'),
        ('--out', 'file'), ('--out', 'file/x'),
        pytest.param(('--out', '/proc/none'), marks=pytest.mark.skipif(
            not Path('/proc/self').exists(), reason='needs a folder nobody can write')),
    ], ids=' '.join)
    def test_more_mistakes(self, folder, options, monkeypatch, capsys):
        monkeypatch.chdir(folder)
        assert run_tool_here(monkeypatch, *options) == 2
        printed = capsys.readouterr()
        assert printed.out == ''
        assert printed.err.startswith('error: ') and len(printed.err.splitlines()) == 1
