"""A sound COCO file for tests that damage it."""

from typing import Any


def sound_content() -> dict[str, Any]:
    """Return 3 images of 100x80 pixels with 6 objects of two classes, and a crowd region."""
    boxes = [(1, 1, [10, 10, 20, 30]), (1, 2, [50, 20.5, 40, 25]), (1, 2, [0, 0, 100, 80]),
             (2, 1, [5, 5, 10, 10]), (2, 2, [60, 60, 12, 9]), (2, 1, [30, 30, 30, 30])]
    annotations = [dict(id=n, image_id=image, category_id=category, bbox=box,
                        area=box[2] * box[3], iscrowd=0,
                        segmentation=[[box[0], box[1], box[0] + box[2], box[1],
                                       box[0] + box[2], box[1] + box[3], box[0], box[1] + box[3]]])
                   for n, (image, category, box) in enumerate(boxes, 1)]
    crowd = dict(size=[80, 100], counts=[400, 80, 7520])
    annotations.append(dict(id=7, image_id=2, category_id=1, bbox=[5, 0, 1, 80], area=80,
                            iscrowd=1, segmentation=crowd))
    return dict(
        info={}, annotations=annotations,
        images=[dict(id=n, file_name=f'{n}.jpg', width=100, height=80) for n in (1, 2, 3)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
