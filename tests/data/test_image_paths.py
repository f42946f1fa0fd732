"""Paths of outputs below the folder of the images."""

import pytest

from evit_mm.data.image_paths import common_folder, path_below


def dataset(root, prefix, key='img'):
    return dict(data_root=root, data_prefix={key: prefix})


def test_common_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert common_folder([dataset('/data', 'train')]) == '/data/train'
    assert common_folder([dataset('/data/', 'images/val/', 'img_path')]) == '/data/images/val'
    assert common_folder([dataset('/data', 'a'), dataset('/data', 'b')]) == '/data'
    assert common_folder([dict(data_root='photos')]) == str(tmp_path / 'photos')
    assert common_folder([dataset('s3://bucket', 'a')]) is None
    assert common_folder([]) is None


@pytest.mark.parametrize('path,expected', [
    ('/data/a/0001.jpg', 'a/0001.jpg'), ('/data/0001.jpg', '0001.jpg'),
    ('/data/../other/0001.jpg', 'other/0001.jpg'), ('/data/..a/0001.jpg', '..a/0001.jpg'),
    ('s3://bucket/a/0001.jpg', '0001.jpg')])
def test_path_below(path, expected):
    assert path_below(path, '/data') == expected


def test_path_below_no_folder():
    assert path_below('/data/a/0001.jpg', None) == '0001.jpg'
