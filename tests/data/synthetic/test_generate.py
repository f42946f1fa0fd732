"""The generators are deterministic, and validate their arguments."""

import json
import os
import subprocess
import sys

import pytest

from evit_mm.data import generate_ade, generate_coco
from evit_mm.errors import UserError


@pytest.mark.parametrize('generate', [generate_coco, generate_ade])
class TestDeterminism:
    def test_same_seed_gives_same_files(self, generate, tmp_path, small, snapshot):
        for name in 'ab':
            generate(tmp_path / name, **small)
        assert snapshot(tmp_path / 'a') == snapshot(tmp_path / 'b')

    def test_another_seed_gives_other_images(self, generate, tmp_path, small, snapshot):
        generate(tmp_path / 'a', **small)
        generate(tmp_path / 'b', **{**small, 'seed': 4})
        a, b = snapshot(tmp_path / 'a'), snapshot(tmp_path / 'b')
        assert set(a) == set(b)
        assert not [name for name in a if a[name] == b[name] and name.endswith('.jpg')]

    def test_train_and_val_differ(self, generate, tmp_path, small, snapshot):
        generate(tmp_path, **small)
        images = [data for name, data in snapshot(tmp_path).items() if name.endswith('.jpg')]
        assert len(set(images)) == 15

    def test_images_do_not_depend_on_their_number(self, generate, tmp_path, small, snapshot):
        generate(tmp_path / 'few', **{**small, 'num_train': 3, 'num_val': 1})
        generate(tmp_path / 'many', **small)
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


def test_same_files_from_another_process(
        coco_root, ade_root, tmp_path, small, snapshot, repository):
    # With another hash seed, sets are iterated in another order.
    code = (f'import sys; sys.path.insert(0, {str(repository)!r})\n'
            'from evit_mm.data import generate_ade, generate_coco\n'
            f'generate_coco("coco", **{small!r})\n'
            f'generate_ade("ade", **{small!r})')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path,
                   env={**os.environ, 'PYTHONHASHSEED': '77'})
    assert snapshot(tmp_path / 'coco') == snapshot(coco_root)
    assert snapshot(tmp_path / 'ade') == snapshot(ade_root)


@pytest.mark.parametrize('generate', [generate_coco, generate_ade])
class TestCall:
    def test_returned_summary(self, generate, tmp_path):
        data = generate(tmp_path / 'new' / 'folder', num_train=3, num_val=1, image_size=(64, 64),
                        progress=False)
        assert not data.reused
        assert data.root == tmp_path / 'new' / 'folder'
        assert data.num_images == {'train': 3, 'val': 1}
        if generate is generate_coco:
            for split, count in data.num_annotations.items():
                path = data.root / 'annotations' / f'instances_{split}2017.json'
                assert len(json.loads(path.read_text())['annotations']) == count
        else:
            assert data.num_annotations == {}

    @pytest.mark.parametrize('change', [
        dict(num_train=0), dict(num_val=-1), dict(image_size=(8, 8)), dict(image_size=(64, 9999)),
        dict(image_size=(64, 200)), dict(seed=-1), dict(seed=2**32), dict(num_train=10**9)])
    def test_invalid_arguments(self, generate, tmp_path, small, change):
        with pytest.raises(UserError, match='must'):
            generate(tmp_path / 'new', **{**small, **change})
        assert not (tmp_path / 'new').exists()
