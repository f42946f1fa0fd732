"""COCO's metrics for MMDetection: fast, class by class, and 0 where nothing was detected."""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmdet.datasets.api_wrappers import COCO, COCOeval, COCOevalMP
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.logging import print_log
from terminaltables import AsciiTable

from ..errors import ConfigError
from ..report.evaluation import Evaluation

__all__ = ['PerClassCocoMetric']

BACKENDS = ('faster-coco-eval', 'pycocotools')

_AREAS = {'': 0, '_s': 1, '_m': 2, '_l': 3}
_CONFUSION_IOU = 0.5


@METRICS.register_module()
class PerClassCocoMetric(CocoMetric):
    """CocoMetric of MMDetection that reports every class.

    Its metrics have the names and the digits of CocoMetric's. Where nothing was detected, they are
    0 (CocoMetric has none then), so that a checkpoint hook which looks for the best one goes on.

    Args:
        *args: Arguments of CocoMetric.
        backend: ``'faster-coco-eval'`` or ``'pycocotools'``, which compute the same; None takes the
            first, where it is installed.
        score_thr: Lowest score of the detections in the confusion matrix.
        **kwargs: Arguments of CocoMetric.

    Attributes:
        evaluation: The last evaluation, class by class; None before there was one, and in other
            processes than the first.

    Raises:
        ConfigError: If there is no such backend.
    """

    metrics: list[str]
    _coco_api: Any
    cat_ids: Any
    img_ids: Any

    def __init__(self, *args: Any, backend: str | None = None, score_thr: float = 0.3,
                 **kwargs: Any) -> None:
        if backend is None:
            backend = BACKENDS[0] if _is_installed('faster_coco_eval') else BACKENDS[1]
        if backend not in BACKENDS:
            raise ConfigError(f'the evaluator\'s backend={backend!r} must be '
                              f'{" or ".join(map(repr, BACKENDS))}')
        if backend == BACKENDS[0] and not _is_installed('faster_coco_eval'):
            raise ConfigError(f'the evaluator\'s backend={backend!r} is not installed: '
                              'pip install faster-coco-eval')
        super().__init__(*args, **kwargs)
        self.backend = backend
        self.score_thr = score_thr
        self.evaluation: Evaluation | None = None

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        """Compute the metrics, print a table of the classes, and keep it in ``evaluation``."""
        self.evaluation = None
        ours = [] if self.format_only else [name for name in self.metrics
                                            if name in ('bbox', 'segm')]
        values: dict[str, float] = {}
        if len(ours) < len(self.metrics) or self.format_only or self.outfile_prefix:
            # Proposals, and the files of results, are left to CocoMetric.
            metrics, self.metrics = self.metrics, [name for name in self.metrics
                                                   if name not in ours]
            try:
                values.update(super().compute_metrics(results))
            finally:
                self.metrics = metrics
        if not ours:
            return values
        truths, predictions = zip(*results, strict=True)
        self._read_truth(truths)
        classes = [self._coco_api.loadCats(number)[0]['name'] for number in self.cat_ids]
        columns: dict[str, Any] = {'objects': self._count_objects()}
        curves = {}
        for name in ours:
            evaluator = self._evaluate(name, predictions)
            summary = _Summary(evaluator, self.cat_ids)
            _log(f'{name}:\n{summary}')
            values |= {f'{name}_{item}': summary.metrics()[item]
                       for item in self.metric_items or ['mAP', 'mAP_50', 'mAP_75', 'mAP_s',
                                                         'mAP_m', 'mAP_l']}
            per_class = summary.per_class()
            columns |= {f'{name}_{column}': list(numbers) for column, numbers in per_class.items()}
            if self.classwise:
                values |= {f'{label}_precision': round(float(number), 3)
                           for label, number in zip(classes, per_class['AP'], strict=True)}
            _log(_table(classes, columns['objects'], per_class))
            if (curve := summary.precision_at(0.5)) is not None:
                curves[name] = curve
        confusion = self._count_confusion(predictions)
        self.evaluation = Evaluation(
            classes, columns, precision=curves, confusion=confusion,
            confusion_title=f'boxes of score {self.score_thr:g} or more, '
                            f'matched at IoU {_CONFUSION_IOU:g}')
        return values

    def _read_truth(self, truths: Sequence[dict]) -> None:
        """Read what CocoMetric reads at its first evaluation."""
        if self._coco_api is None:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                self._coco_api = COCO(self.gt_to_coco_json(truths, str(Path(folder, 'truth'))))
        self._coco_api.dataset.setdefault('annotations', [])
        if self.cat_ids is None:
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        if self.img_ids is None:
            self.img_ids = self._coco_api.get_img_ids()
        # CocoMetric counts the objects of images that the dataset left out as missed.
        seen = {truth['img_id'] for truth in truths}
        self._evaluated = [number for number in self.img_ids if number in seen]
        if len(self._evaluated) < len(self.img_ids):
            _log(f'evaluated on the {len(self._evaluated)} images that were predicted, of '
                 f'{len(self.img_ids)} in the annotation file')

    def _evaluate(self, name: str, predictions: Sequence[dict]) -> Any:
        """Return an evaluator that has matched and accumulated; see pycocotools' COCOeval."""
        detections = list(self._detections(name, predictions))
        truth: Any = self._coco_api
        with contextlib.redirect_stdout(io.StringIO()):  # both libraries report each of their steps
            if self.backend == BACKENDS[0]:
                from faster_coco_eval import COCO as FasterCOCO
                from faster_coco_eval import COCOeval_faster

                truth = FasterCOCO(truth.dataset)
                evaluator = COCOeval_faster(truth, truth.loadRes(detections), name)
            else:
                kind = COCOevalMP if self.use_mp_eval else COCOeval
                evaluator = kind(truth, _load(truth, detections), name)
            evaluator.params.catIds = self.cat_ids
            evaluator.params.imgIds = self._evaluated
            evaluator.params.maxDets = list(self.proposal_nums)
            evaluator.params.iouThrs = np.atleast_1d(self.iou_thrs)
            evaluator.evaluate()
            evaluator.accumulate()
        return evaluator

    def _detections(self, name: str, predictions: Sequence[dict]) -> Iterator[dict[str, Any]]:
        """Yield the detections as COCO's files of results have them."""
        for prediction in predictions:
            scores = prediction['scores']
            if name == 'segm':
                if 'masks' not in prediction:
                    raise ConfigError('the evaluator has the metric \'segm\', but the model '
                                      'predicts no masks: remove it from metric')
                scores = prediction.get('mask_scores', scores)
            for k, (label, score) in enumerate(zip(prediction['labels'].tolist(), scores.tolist(),
                                                   strict=True)):
                detection = dict(image_id=prediction['img_id'], category_id=self.cat_ids[label],
                                 score=score)
                if name == 'bbox':
                    detection['bbox'] = self.xyxy2xywh(prediction['bboxes'][k])
                else:  # without a box, so that the areas are those of the masks
                    mask = dict(prediction['masks'][k])
                    if isinstance(mask['counts'], bytes):
                        mask['counts'] = mask['counts'].decode()
                    detection['segmentation'] = mask
                yield detection

    def _count_objects(self) -> list[int]:
        """Return the number of objects of each class in the evaluated images, without crowds."""
        counts = dict.fromkeys(self.cat_ids, 0)
        evaluated = set(self._evaluated)
        for entry in self._coco_api.dataset['annotations']:
            if (entry['image_id'] in evaluated and entry['category_id'] in counts
                    and not entry.get('iscrowd')):
                counts[entry['category_id']] += 1
        return list(counts.values())

    def _count_confusion(self, predictions: Sequence[dict]) -> npt.NDArray[np.int64] | None:
        """Count the pairs of true and predicted classes; the last of each is the background."""
        if not _is_installed('supervision'):
            print_log('no confusion matrix, as supervision is not installed: pip install '
                      'supervision', logger='current')
            return None
        from supervision.metrics.detection import ConfusionMatrix

        label_of = {number: k for k, number in enumerate(self.cat_ids)}
        matrix = np.zeros((len(label_of) + 1,) * 2, np.int64)
        for prediction in predictions:
            true = [(x, y, x + width, y + height, label_of[entry['category_id']])
                    for entry in self._coco_api.imgToAnns[prediction['img_id']]
                    if entry['category_id'] in label_of and not entry.get('iscrowd')
                    for x, y, width, height in [entry['bbox']]]
            predicted = np.column_stack([prediction['bboxes'], prediction['labels'],
                                         prediction['scores']]).astype(np.float32)
            matrix += ConfusionMatrix.evaluate_detection_batch(
                predicted.reshape(-1, 6), np.array(true, np.float32).reshape(-1, 5), len(label_of),
                self.score_thr, _CONFUSION_IOU)
        return matrix


class _Summary:
    """The figures of an evaluator of COCO.

    Both backends have summaries of their own, which take AP from different numbers of detections
    if an image may have more than 100.

    Args:
        evaluator: One that has accumulated.
        cat_ids: Ids of the categories in the order of the classes.
    """

    def __init__(self, evaluator: Any, cat_ids: Sequence[int]) -> None:
        self._params = evaluator.params
        order = [list(self._params.catIds).index(number) for number in cat_ids]
        # (IoU, recall, class, area, number of detections), and the same without recalls
        self._precision = evaluator.eval['precision'][:, :, order]
        self._recall = evaluator.eval['recall'][:, order]
        numbers = list(self._params.maxDets)
        self._at_100 = numbers.index(100) if 100 in numbers else -1

    def metrics(self) -> dict[str, float]:
        """Return the metrics of COCO under MMDetection's names, with its three decimals."""
        values = {f'mAP{name}': self._ap(area=area, most=-1) for name, area in _AREAS.items()}
        values |= {'mAP': self._ap(most=self._at_100), 'mAP_50': self._ap(iou=0.5),
                   'mAP_75': self._ap(iou=0.75)}
        for position, number in enumerate((100, 300, 1000)):
            values[f'AR@{number}'] = self._ar(most=min(position, self._recall.shape[-1] - 1))
        values |= {f'AR{name}@1000': self._ar(area=area) for name, area in _AREAS.items() if name}
        return {name: round(value, 3) for name, value in values.items()}

    def per_class(self) -> dict[str, npt.NDArray[Any]]:
        """Return the average precisions (K,) of each class by name; NaN where it has no object."""
        columns = {'AP': self._ap_of_each(), 'AP_50': self._ap_of_each(iou=0.5),
                   'AP_75': self._ap_of_each(iou=0.75)}
        return columns | {f'AP{name}': self._ap_of_each(area=area)
                          for name, area in _AREAS.items() if name}

    def precision_at(self, iou: float) -> npt.NDArray[Any] | None:
        """Return the precision (R, K) at each recall; None if this IoU was not evaluated."""
        chosen = self._precision[self._ious(iou)]
        return chosen[0, :, :, 0, -1] if len(chosen) else None

    def __str__(self) -> str:
        """Return the lines in which COCO's tools report."""
        areas = dict(zip(_AREAS.values(), ('all', 'small', 'medium', 'large'), strict=True))
        last = self._params.maxDets[-1]
        rows = [('Precision', None, 0, self._params.maxDets[self._at_100],
                 self._ap(most=self._at_100)),
                *(('Precision', iou, 0, last, self._ap(iou=iou)) for iou in (0.5, 0.75)),
                *(('Precision', None, area, last, self._ap(area=area)) for area in (1, 2, 3)),
                *(('Recall', None, 0, number, self._ar(most=position))
                  for position, number in enumerate(self._params.maxDets)),
                *(('Recall', None, area, last, self._ar(area=area)) for area in (1, 2, 3))]
        thresholds = self._params.iouThrs
        spread = f'{thresholds[0]:.2f}:{thresholds[-1]:.2f}'
        return '\n'.join(
            f'Average {kind:<9} ({"AP" if kind == "Precision" else "AR"}) @[ IoU='
            f'{spread if iou is None else format(iou, ".2f"):<9} | area={areas[area]:>6} | '
            f'maxDets={most:>4} ] = {value:.3f}' for kind, iou, area, most, value in rows)

    def _ious(self, iou: float | None) -> npt.NDArray[np.bool_]:
        return np.isclose(self._params.iouThrs, iou) if iou is not None else np.ones(
            len(self._params.iouThrs), bool)

    def _ap(self, *, iou: float | None = None, area: int = 0, most: int = -1) -> float:
        return _mean(self._precision[self._ious(iou)][..., area, most])

    def _ap_of_each(self, *, iou: float | None = None, area: int = 0) -> npt.NDArray[Any]:
        chosen = self._precision[self._ious(iou)][..., area, -1]
        values = np.array([_mean(chosen[..., k]) for k in range(chosen.shape[-1])])
        return np.where(values < 0, np.nan, values)

    def _ar(self, *, area: int = 0, most: int = -1) -> float:
        return _mean(self._recall[..., area, most])


def _mean(values: npt.NDArray[Any]) -> float:
    """Return the mean of what is defined; -1 if nothing is, as in COCO's tools."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def _load(truth: Any, detections: list[dict[str, Any]]) -> Any:
    """Return detections as a COCO object; pycocotools fails where there are none."""
    if detections:
        return truth.loadRes(detections)
    empty = COCO()
    empty.dataset = {**truth.dataset, 'annotations': []}
    empty.createIndex()
    return empty


def _table(classes: Sequence[str], objects: Sequence[int],
           columns: Mapping[str, npt.NDArray[Any]]) -> str:
    rows = [[name, str(objects[k]),
             *('-' if np.isnan(values[k]) else f'{values[k]:.3f}' for values in columns.values())]
            for k, name in enumerate(classes)]
    table = AsciiTable([['class', 'objects', *columns], *rows])
    table.justify_columns = {column: 'right' for column in range(1, len(columns) + 2)}
    return str(table.table)


def _log(text: str) -> None:
    print_log('\n' + text, logger='current')


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
