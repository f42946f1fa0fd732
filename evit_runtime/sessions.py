"""onnxruntime and OpenVINO behind one small interface."""

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .metadata import KEY

__all__ = ['BACKENDS', 'Session', 'open_session']

Arrays = dict[str, npt.NDArray[Any]]

BACKENDS = ('onnxruntime', 'openvino')

# Of a file in fp16 the weights are; no common CPU computes in it.
_HINTS = {'fp32': 'f32', 'fp16': 'f32', 'bf16': 'bf16', 'int8': 'f32'}


class Session(Protocol):
    """A model that is ready to compute.

    Attributes:
        backend: The package that computes.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Arrays) -> Arrays:
        """Compute the outputs by name."""


def open_session(path: Path, backend: str | None, threads: int | None, precision: str | None,
                 device: str) -> tuple[Session, str | None]:
    """Open a file.

    Args:
        path: An .onnx or .xml file.
        backend: One of `BACKENDS`; None for the one that fits the file and is installed.
        threads: CPU threads; None for the backend's choice.
        precision: In which OpenVINO computes, ``'fp32'`` or ``'bf16'``; None for the file's own.
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        tuple: The session, and the text of the file's metadata, or None if it has none.

    Raises:
        UserError: If the file can't be opened.
    """
    if backend not in (None, *BACKENDS):
        raise UserError(f'no such backend: {backend}; choose {" or ".join(BACKENDS)}')
    if not path.exists():
        raise UserError(f'no such file: {path}')
    suffix = path.suffix.lower()
    if suffix not in ('.onnx', '.xml'):
        raise UserError(f'{path} is not an exported model: their names end in .onnx or .xml')
    if suffix == '.xml' and backend == 'onnxruntime':
        raise UserError(f'{path} is OpenVINO\'s format, which onnxruntime can\'t read: leave the '
                        'backend out, or export to a name that ends in .onnx')
    if backend is None:
        backend = 'openvino' if suffix == '.xml' or not _is_installed('onnxruntime') \
            else 'onnxruntime'
    if not _is_installed(backend):
        raise UserError(f'{path} needs {backend}, which is not installed: pip install {backend}')
    if backend == 'openvino':
        if device != 'cpu':
            raise UserError(f'OpenVINO computes on the CPU: device={device} needs an .onnx file '
                            'and onnxruntime-gpu')
        return _open_with_openvino(path, threads, precision)
    if precision is not None:
        raise UserError(f'onnxruntime computes in the precision of the file: leave precision='
                        f'{precision} out, or use backend=\'openvino\'')
    return _open_with_onnxruntime(path, threads, device)


class _OnnxRuntime:
    backend = 'onnxruntime'

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(each.name for each in session.get_inputs())
        self.outputs = tuple(each.name for each in session.get_outputs())

    def run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))


class _OpenVINO:
    backend = 'openvino'

    def __init__(self, model: Any) -> None:
        self._request = model.create_infer_request()
        self.inputs = tuple(each.get_any_name() for each in model.inputs)
        self.outputs = tuple(each.get_any_name() for each in model.outputs)

    def run(self, inputs: Arrays) -> Arrays:
        results = self._request.infer(inputs, share_inputs=True)
        # Copies, as the next call overwrites the tensors.
        return {name: np.array(results[name]) for name in self.outputs}


def _open_with_onnxruntime(path: Path, threads: int | None,
                           device: str) -> tuple[Session, str | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a warning is about the file, which the user did not write
    if threads:
        options.intra_op_num_threads = threads
    providers = ['CPUExecutionProvider']
    if device.startswith('cuda'):
        providers.insert(0, 'CUDAExecutionProvider')
        if providers[0] not in onnxruntime.get_available_providers():
            raise UserError(f'device={device} needs onnxruntime-gpu: pip install onnxruntime-gpu '
                            'in place of onnxruntime')
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
    except Exception as error:  # onnxruntime has a class for each kind of failure, without a base
        raise UserError(f'{path} can\'t be loaded by onnxruntime {onnxruntime.__version__}: '
                        f'{_reason(error)}; is it a whole file of evit-mm export?') from error
    return _OnnxRuntime(session), session.get_modelmeta().custom_metadata_map.get(KEY)


def _open_with_openvino(path: Path, threads: int | None,
                        precision: str | None) -> tuple[Session, str | None]:
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(os.fspath(path))
    except Exception as error:  # RuntimeError, or one of a frontend
        raise UserError(f'{path} can\'t be loaded by OpenVINO '
                        f'{openvino.__version__.partition("-")[0]}: {_reason(error)}; is it a '
                        'whole file of evit-mm export, next to its .bin file if it is an .xml?'
                        ) from error
    text = _metadata_of(model)
    hint = precision or _precision_in(text)
    if hint not in _HINTS:
        raise UserError(f'no such precision: {hint}; choose {" or ".join(_HINTS)}')
    settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': _HINTS[hint],
                                'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    try:
        return _OpenVINO(core.compile_model(model, 'CPU', settings)), text
    except Exception as error:
        raise UserError(f'OpenVINO can\'t compile {path}: {_reason(error)}') from error


def _metadata_of(model: Any) -> str | None:
    """Return the text of the metadata of OpenVINO's model, or None."""
    for place in ([KEY], ['framework', KEY]):  # the second is where those of ONNX go
        if model.has_rt_info(place):
            return str(model.get_rt_info(place).astype(str))
    return None


def _precision_in(text: str | None) -> str:
    """Return the precision in the text of metadata."""
    from .metadata import Metadata

    try:
        return Metadata.from_json(text or '').precision
    except ValueError:
        return 'fp32'


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _reason(error: BaseException) -> str:
    """Return the last line of an error, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip('.')[:300]
