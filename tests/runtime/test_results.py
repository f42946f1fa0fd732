"""Results: their order, filters, formats and pictures."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from evit_runtime.errors import UserError
from evit_runtime.results import Result

NAMES = ('cat', 'dog', 'tree')


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def masks():
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 1:5, 2:9] = masks[1, 10:40, 20:60] = masks[2, 3, 4] = True
    return masks


@pytest.fixture
def found(image, masks):
    """Three objects, given from the lowest score on."""
    return Result(shape=(40, 60), class_names=NAMES, image=image, masks=masks,
                  boxes=[[2, 1, 9, 5], [20, 10, 60, 40], [4, 3, 5, 4]], scores=[0.3, 0.5, 0.9],
                  labels=[0, 1, 0], track_ids=np.array([1, 2, -1]))


@pytest.fixture
def label_map(image):
    values = np.full((40, 60), 255)
    values[:10], values[10:20, 5:] = 2, 0
    return Result(shape=(40, 60), class_names=NAMES, image=image, label_map=values)


class TestObjects:
    def test_they_are_sorted_by_score(self, found, masks):
        assert len(found) == 3 and found.names == ['cat', 'dog', 'cat']
        assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
        assert found.boxes.tolist() == [[4, 3, 5, 4], [20, 10, 60, 40], [2, 1, 9, 5]]
        assert found.track_ids.tolist() == [-1, 2, 1]
        assert (found.masks == masks[::-1]).all()
        assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)

    def test_equal_scores_keep_their_order(self):
        boxes = np.arange(80).reshape(20, 4)
        result = Result(shape=(90, 90), class_names=NAMES, boxes=boxes, scores=[0.5] * 20)
        assert (result.boxes == boxes).all()

    def test_filters_leave_the_result_as_it_is(self, found):
        few = found.filter(score_threshold=0.5)
        assert few.names == ['cat', 'dog'] and few.masks.shape == (2, 40, 60)
        assert found.filter(classes=['dog']).names == found.filter(classes=[1]).names == ['dog']
        assert found.filter(score_threshold=0.4, classes=['cat']).boxes.tolist() == [[4, 3, 5, 4]]
        assert len(found) == len(found.filter()) == 3 and len(found.masks) == 3
        with pytest.raises(UserError, match="no class 'dogs'; did you mean dog"):
            found.filter(classes=['dogs'])

    def test_a_threshold_keeps_scores_that_are_rounded_to_it(self):
        result = Result(shape=(9, 9), class_names=NAMES, boxes=np.zeros((2, 4)),
                        scores=np.float32([0.3, 0.7]))
        assert len(result.filter(score_threshold=0.3)) == 2
        assert len(result.filter(score_threshold=0.7)) == 1

    def test_coco(self, found, masks):
        entries = found.to_coco(image_id=7)
        assert entries[1]['bbox'] == [20, 10, 40, 30] and entries[1]['category_id'] == 1
        assert [entry['image_id'] for entry in entries] == [7] * 3
        for entry, mask in zip(entries, masks[::-1], strict=True):
            assert (coco_mask.decode(entry['segmentation']) == mask).all()
            assert entry['area'] == mask.sum()
        found.masks = found.track_ids = None
        assert set(found.to_coco()[0]) == {'image_id', 'category_id', 'bbox', 'area', 'score'}

    def test_supervision(self, found):
        detections = found.to_supervision()
        assert (detections.xyxy == found.boxes).all() and (detections.mask == found.masks).all()
        assert detections.data['class_name'].tolist() == ['cat', 'dog', 'cat']
        assert detections.tracker_id.tolist() == [-1, 2, 1]

    def test_nothing_found(self, image, tmp_path):
        result = Result(shape=(40, 60), class_names=NAMES, boxes=[], image=image,
                        masks=np.zeros((0, 40, 60)))
        assert len(result) == 0 and result.names == [] and result.to_coco() == []
        assert len(result.to_supervision()) == 0 and len(result.filter(classes=['cat'])) == 0
        assert (result.plot() == image).all() and 'nothing' in repr(result)

    def test_pictures(self, found, image, tmp_path):
        drawn = found.plot()
        assert drawn.shape == image.shape and (drawn != image).any()
        assert found.plot(enlarge=True).shape == (341, 512, 3)
        found.save(tmp_path / 'new' / 'a.png')
        assert (tmp_path / 'new' / 'a.png').stat().st_size > 1000
        found.image = None
        with pytest.raises(UserError, match='has no image to draw on'):
            found.plot()

    def test_repr(self, found):
        found.source = 'a.jpg'
        assert repr(found) == '<Result of a.jpg, 60x40: 2 cat, dog>'


class TestLabelMaps:
    def test_classes_that_occur(self, label_map):
        assert label_map.names == ['cat', 'tree'] and len(label_map) == 2
        assert label_map.label_map.dtype == np.uint8 and label_map.no_class == 255

    def test_other_classes_become_none(self, label_map):
        trees = label_map.filter(classes=['tree'], score_threshold=0.9)
        assert np.unique(trees.label_map).tolist() == [2, 255]
        assert label_map.names == ['cat', 'tree']

    def test_more_classes_than_a_byte_holds(self):
        values = np.array([[0, 255, 299]])
        result = Result(shape=(1, 3), class_names=tuple(map(str, range(300))), label_map=values)
        assert result.names == ['0', '255', '299'] and result.no_class == 65535
        assert result.filter(classes=['255']).label_map.tolist() == [[65535, 255, 65535]]

    def test_coco(self, label_map):
        cat, tree = label_map.to_coco(3)
        assert (cat['category_id'], cat['area'], cat['bbox']) == (0, 550, [5, 10, 55, 10])
        assert (coco_mask.decode(tree['segmentation']) == (label_map.label_map == 2)).all()

    def test_supervision(self, label_map):
        detections = label_map.to_supervision()
        assert detections.class_id.tolist() == [0, 2]
        assert (detections.mask[1] == (label_map.label_map == 2)).all()

    def test_pictures_have_the_names(self, label_map, image):
        drawn = label_map.plot(enlarge=True)
        label_map.class_names = ('', '', '')
        assert drawn.shape == (341, 512, 3) and (label_map.plot(enlarge=True) != drawn).any()
        assert label_map.plot().shape == image.shape

    def test_nothing_kept(self, label_map, image):
        nothing = label_map.filter(classes=[])
        assert nothing.names == [] and nothing.to_coco() == []
        assert len(nothing.to_supervision()) == 0 and (nothing.plot() == image).all()


def test_a_result_is_of_one_kind():
    for options in ({}, dict(boxes=[], label_map=np.zeros((2, 2)))):
        with pytest.raises(ValueError, match='either'):
            Result(shape=(2, 2), class_names=NAMES, **options)
