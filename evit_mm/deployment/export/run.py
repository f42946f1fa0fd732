"""The export of a trained model, from a config and a checkpoint to a file."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evit_runtime.exported import ExportedModel
from evit_runtime.image_files import read_image
from evit_runtime.metadata import KEY, Metadata
from evit_runtime.preprocess import Preprocessing
from evit_runtime.sessions import open_session

from ...errors import ConfigError, UserError
from ..fuse import deploy
from .build import build_module, network_parts, size_divisor
from .quantize import quantize
from .rules import fixed_size, preprocessing_of, with_fixed_size
from .verify import compare_features, compare_results, drawn_image, require
from .writers import OPSET, make_signature, to_onnx, to_program

__all__ = ['FORMATS', 'PRECISIONS', 'export', 'fixed_predictor']

FORMATS = {'.onnx': 'ONNX', '.xml': 'OpenVINO', '.pt2': 'torch.export'}
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')

_Path = str | os.PathLike[str]
_IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_MAX_CALIBRATION = 128  # images


def export(config: _Path, checkpoint: _Path | None = None, *, out: _Path,
           size: Sequence[int] | None = None, dynamic: bool | None = None, batch_size: int = 1,
           precision: str = 'fp32', calibrate: _Path | None = None, verify: bool = True,
           image: _Path | None = None, backbone: bool = False,
           cfg_options: Mapping[str, Any] | None = None,
           report: Callable[[str], object] = lambda text: None) -> Path:
    """Write a trained model to a file that runs without this package.

        evit_mm.export('retinanet_evit_m4_coco', 'epoch_12.pth', out='model.onnx')

    Args:
        config: As in `load_model`, or ``'m0'`` to ``'m5'`` for a backbone.
        checkpoint: As in `load_model`; for a backbone, the file, address or name of its weights.
        out: The file to write: .onnx, .xml for OpenVINO, whose weights go into a .bin file next to
            it, or .pt2 for torch.export.
        size: Height and width of the images, in a file of a fixed size. Images are resized into
            it.
        dynamic: Whether the file takes images of any size, and any number of them. By default it
            does for segmentors, and if the config's test pipeline gives images of different sizes,
            because only then its results are those of the config for all images; .pt2 files have a
            fixed size.
        batch_size: Images that a file of a fixed size takes at a time.
        precision: ``'fp32'``; ``'fp16'``, which halves the file, and computes in float16 where the
            runtime can; for OpenVINO also ``'bf16'``, which computes in bfloat16 where the CPU
            can, and ``'int8'``, which needs ``calibrate``.
        calibrate: Folder of images like those that the model will see.
        verify: Compare the file with the model in PyTorch on an image, and write nothing if they
            differ by more than the precision explains.
        image: The image for that; a drawn one by default.
        backbone: Export the backbone of the config's model alone.
        cfg_options: Values of the config by dotted key.
        report: Called with lines of text about the progress.

    Returns:
        Path: ``out``.

    Raises:
        UserError: If the model can't be exported, or the file can't be written.
    """
    path = Path(out).expanduser()
    _check_options(path, size, dynamic, batch_size, precision, calibrate)
    samples = _images_in(Path(calibrate).expanduser()) if calibrate is not None else []
    picture = read_image(os.fspath(image)) if image is not None else None
    model, predictor = _load(config, checkpoint, backbone, cfg_options)
    task = predictor.task if predictor is not None else 'features'
    rule = preprocessing_of(model.cfg.get('test_pipeline') or ()) if predictor is not None else \
        Preprocessing(keep_ratio=False)
    is_dynamic = bool(dynamic)
    if dynamic is None:
        # Segmentors resize logits to the image, whose size the network's input may not tell.
        is_dynamic = size is None and path.suffix.lower() != '.pt2' and (
            task == 'semantic segmentation' or fixed_size(rule) is None)
    divisor, fill = size_divisor(model), _fill(model)
    if is_dynamic:
        rule = replace(rule, divisor=divisor, fill=fill)
    else:
        chosen = (size[0], size[1]) if size else (512, 512) if predictor is None else None
        rule = with_fixed_size(rule, chosen, divisor, fill=fill)
    expected = None
    if verify:
        # Before the model is changed.
        picture, expected = _expected(model, predictor, rule, picture)
    deploy(model)
    module = build_module(model, any_size=is_dynamic)
    metadata = _metadata(module, model, predictor, rule, task, is_dynamic, batch_size, precision,
                         config)
    report(f'exporting {metadata.model} to {FORMATS[path.suffix.lower()]}, {precision}, '
           + ('images of any size' if is_dynamic else 'images of {}x{}'.format(*rule.size or ())))
    signature = make_signature(
        metadata.inputs, rule.size or _traced_size(divisor),
        batch=2 if is_dynamic else batch_size, divisor=divisor, is_dynamic=is_dynamic)
    if precision == 'fp16' and path.suffix.lower() != '.xml':
        for part in network_parts(module):
            part.half()
    with _folder_beside(path) as folder:
        unfinished = folder / path.name
        model_in = ExportedModel(_NoSession(), metadata)
        feeds = ([model_in.prepare([rule(image)]) for image in samples] if samples else [])
        _write(module, signature, unfinished, metadata, feeds)
        if expected is not None:
            _verify(unfinished, metadata, picture, expected, path, report)
        _move(folder, path)
    return path


class _NoSession:
    """What stands for a session where only inputs are prepared."""

    backend = ''
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


def _check_options(path: Path, size: Sequence[int] | None, dynamic: bool | None,
                   batch_size: int, precision: str, calibrate: _Path | None) -> None:
    """Check options that exclude each other.

    Raises:
        UserError: If they do.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f'--out {path}: the name of the file ends in .onnx, in .xml for OpenVINO, '
                        'or in .pt2 for torch.export')
    if precision not in PRECISIONS:
        raise UserError(f'no such precision: {precision}; choose {", ".join(PRECISIONS)}')
    if precision in ('bf16', 'int8') and suffix != '.xml':
        raise UserError(f'--precision {precision} is for OpenVINO: give --out a name that ends in '
                        '.xml')
    if (precision == 'int8') != (calibrate is not None):
        raise UserError('--precision int8 and --calibrate, a folder of images, need each other')
    if size is not None and (len(size) != 2 or min(size) < 32):
        raise UserError(f'--size {" ".join(map(str, size))}: height and width, at least 32 each')
    if dynamic and size is not None:
        raise UserError('--size is for a file of a fixed size, and --dynamic for any size: leave '
                        'one of them out')
    if dynamic and suffix == '.pt2':
        raise UserError('.pt2 files have a fixed size: leave --dynamic out, or write .onnx or .xml')
    if batch_size < 1:
        raise UserError(f'--batch-size {batch_size} must be at least 1')
    if batch_size > 1 and (dynamic or size is None):
        raise UserError('--batch-size is for a file of a fixed size: pass --size too')
    if not path.absolute().parent.is_dir():
        raise UserError(f'no such folder: {path.absolute().parent}')
    for package in {'.onnx': ('onnx', 'onnxscript', 'onnxruntime'),
                    '.xml': ('onnx', 'onnxscript', 'openvino'), '.pt2': ()}[suffix]:
        _require_package(package)


def _require_package(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(f'exporting needs {package}, which is not installed: pip install '
                        '"evit-mm[export]"')


def _images_in(folder: Path) -> list[Any]:
    """Return images of a folder and those below it, evenly chosen.

    Raises:
        UserError: If there are none.
    """
    if not folder.is_dir():
        raise UserError(f'no such folder: {folder}')
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in _IMAGES)
    if not paths:
        raise UserError(f'--calibrate {folder} has no images')
    step = max(len(paths) / _MAX_CALIBRATION, 1)
    return [read_image(os.fspath(paths[int(number * step)]))
            for number in range(int(len(paths) / step))]


def _load(config: _Path, checkpoint: _Path | None, backbone: bool,
          cfg_options: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Return the model to export, and what predicts with it: None for a backbone."""
    from ...arch import ARCHS
    from ...engine.config import load_config
    from ...predict import TorchModel, load_model

    if str(config).lower() in ARCHS:
        return _load_backbone(str(config).lower(), checkpoint), None
    predictor = load_model(load_config(config, cfg_options), checkpoint)
    assert isinstance(predictor, TorchModel)
    if backbone:
        return predictor.module.backbone, None
    return predictor.module, predictor


def _load_backbone(arch: str, checkpoint: _Path | None) -> nn.Module:
    from ...models import EfficientViT

    if checkpoint is None:
        raise UserError(f'the weights are missing: name a file, or evit://efficientvit_{arch} for '
                        'the published ones')
    model = EfficientViT(arch, init_cfg=dict(type='Pretrained', checkpoint=os.fspath(checkpoint)))
    model.init_weights()
    return model.eval()


def _fill(model: Any) -> tuple[int, int, int]:
    """Return the colour, blue, green and red, that is nearest to zero after the normalisation."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None or not preprocessor._enable_normalize:
        return 0, 0, 0
    mean = [round(float(value)) for value in preprocessor.mean.flatten()]
    swap = getattr(preprocessor, 'channel_conversion', getattr(preprocessor, '_channel_conversion',
                                                               False))
    blue, green, red = mean[::-1] if swap else mean
    return blue, green, red


def _traced_size(divisor: int) -> tuple[int, int]:
    """Return a size at which no map has a single row or column, which tracing would remember."""
    height, width = (-(-length // divisor) * divisor for length in (1120, 1216))
    return height, width


def _metadata(module: Any, model: Any, predictor: Any, rule: Preprocessing, task: str,
              is_dynamic: bool, batch_size: int, precision: str, config: _Path) -> Metadata:
    """Return what a file says about itself."""
    inputs = {'features': ('images',), 'semantic segmentation': ('images', 'output_size')}.get(
        task, ('images', 'sizes'))
    if task == 'semantic segmentation' and not is_dynamic:
        inputs = ('images',)
    test_cfg: Any = {}
    if predictor is not None and task != 'semantic segmentation':
        test_cfg = model.test_cfg or {}
        test_cfg = test_cfg.get('rcnn') or test_cfg
    return Metadata(
        task=task, inputs=inputs, outputs=tuple(module.outputs), preprocessing=rule,
        batch=None if is_dynamic else batch_size,
        class_names=predictor.class_names if predictor is not None else (),
        palette=predictor.palette if predictor is not None else (), precision=precision,
        score_threshold=float(test_cfg.get('score_thr', 0)), max_objects=_max_objects(module),
        nms=dict(test_cfg.get('nms') or {}),
        mask_threshold=float(test_cfg.get('mask_thr_binary', 0.5)),
        strides=tuple(getattr(model, 'out_strides', ())) if predictor is None else (),
        model=Path(os.fspath(config)).stem,
        versions={name: found for name in ('evit-mm', 'torch', 'onnx', 'openvino', 'nncf')
                  if (found := _version(name))} | {'opset': str(OPSET)})


def _max_objects(module: Any) -> int:
    boxes = getattr(module, 'detect', None) or getattr(module, 'decode', None)
    return boxes.suppress.count if boxes is not None else 0


def _version(package: str) -> str | None:
    if package == 'evit-mm':
        from ...version import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _expected(model: Any, predictor: Any, rule: Preprocessing, picture: Any) -> tuple[Any, Any]:
    """Return an image, and what the model in PyTorch makes of it."""
    if rule.size and picture is not None:
        # The whole of a fixed size, so that there is no padding that MMDetection would not have.
        import cv2

        picture = cv2.resize(picture, rule.size[::-1])
    if picture is None:
        picture = drawn_image(rule.size or (480, 640))
    if predictor is None:
        from .inputs import ImageInput

        with torch.no_grad():
            maps = model(ImageInput()(torch.from_numpy(rule(picture).pixels)[None]))
        return picture, [level.numpy() for level in maps]
    if rule.size:
        predictor = _resized_predictor(predictor, rule)
    return picture, predictor([picture], score_threshold=0.0)[0]


def fixed_predictor(predictor: Any, size: tuple[int, int]) -> Any:
    """Return a model in PyTorch that resizes images as a file of a fixed size does.

    Args:
        predictor: A `TorchModel`.
        size: Height and width.
    """
    rule = preprocessing_of(predictor.module.cfg.get('test_pipeline') or ())
    return _resized_predictor(predictor, with_fixed_size(
        rule, size, size_divisor(predictor.module), fill=(0, 0, 0)))


def _resized_predictor(predictor: Any, rule: Preprocessing) -> Any:
    """Return a model that resizes images to the size of a file."""
    from ...predict import TorchModel

    module = predictor.module
    config = module.cfg
    resized = deepcopy(config)
    for step in resized.test_pipeline:
        name = str(getattr(step['type'], '__name__', step['type'])).rpartition('.')[2]
        if name == 'Resize' and rule.scale is not None:
            step['scale'] = rule.scale
        elif name == 'Pad':
            step.pop('pad_to_square', None)
            step.update(dict(size=rule.pad_size) if rule.pad_size is not None else
                        dict(size=None, size_divisor=1))
    module.cfg = resized
    try:
        wrapped = TorchModel(module)
        wrapped._pipeline  # noqa: B018  (built from the config that is there now)
    finally:
        module.cfg = config
    return wrapped


def _write(module: nn.Module, signature: Any, path: Path, metadata: Metadata,
           feeds: Sequence[dict[str, Any]]) -> None:
    """Write a module to a file.

    Raises:
        UserError: If the exporter or the file system fails.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == '.pt2':
            from .program import save_program

            save_program(to_program(module, signature), path, metadata)
            return
        program = to_onnx(module, signature, metadata.outputs)
        if suffix == '.onnx':
            program.model.metadata_props[KEY] = metadata.to_json()
            program.save(os.fspath(path), external_data=False)
            return
        _write_openvino(program, path, metadata, feeds)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f'can\'t write {path.name}: {error.strerror or error}') from error
    except Exception as error:
        # OpenVINO names no reason, and removes what it has written.
        if 'No space left' in str(error) or 'iostream error' in str(error) \
                or shutil.disk_usage(path.parent).free < 2 ** 20:
            raise UserError(f'can\'t write {path.name}: No space left on device') from error
        if os.environ.get('EVIT_MM_TRACEBACK'):
            raise
        line = ' '.join(str(error).split())[-300:]
        raise ConfigError(f'{metadata.model} can\'t be exported: {type(error).__name__}: {line} '
                          '(EVIT_MM_TRACEBACK=1 shows where)') from error


def _write_openvino(program: Any, path: Path, metadata: Metadata,
                    feeds: Sequence[dict[str, Any]]) -> None:
    import openvino

    between = path.with_suffix('.onnx')
    program.save(os.fspath(between), external_data=False)
    model = openvino.Core().read_model(os.fspath(between))
    if metadata.precision == 'int8':
        model = quantize(model, feeds)
    model.set_rt_info(metadata.to_json(), KEY)
    openvino.save_model(model, os.fspath(path), compress_to_fp16=metadata.precision == 'fp16')
    between.unlink()


def _verify(path: Path, metadata: Metadata, picture: Any, expected: Any, out: Path,
            report: Callable[[str], object]) -> None:
    """Compare a file with what the model in PyTorch makes of an image.

    Raises:
        UserError: If they differ too much.
    """
    session: Any
    if path.suffix.lower() == '.pt2':
        from .program import ProgramSession

        session = ProgramSession(torch.export.load(path), metadata)
    else:
        session, _ = open_session(path, None, None, None, 'cpu')
    model = ExportedModel(session, metadata)
    if metadata.task == 'features':
        outputs = session.run(model.prepare([metadata.preprocessing(picture)]))
        difference = compare_features(expected, [outputs[name][:1] for name in metadata.outputs],
                                      metadata.precision)
    else:
        difference = compare_results(expected, model([picture], score_threshold=0.0)[0],
                                     metadata)
    report(f'compared with PyTorch by {session.backend}: {difference.text}')
    require(difference, metadata.precision, os.fspath(out))


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Create a folder next to a file, on the same disk, which is removed in the end.

    Raises:
        UserError: If it can't be created.
    """
    try:
        folder = tempfile.mkdtemp(prefix='.evit-mm-export-', dir=path.absolute().parent)
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror or error}') from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, path: Path) -> None:
    """Move finished files out of their folder, the one that names the others last.

    Raises:
        UserError: If they can't be moved.
    """
    try:
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
    except OSError as error:
        raise UserError(f'can\'t write {path}: {error.strerror or error}') from error
