"""Files of torch.export's format, which PyTorch runs without the code of the model."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evit_runtime.exported import ExportedModel, checked_metadata
from evit_runtime.metadata import KEY, Metadata

from ...errors import UserError
from . import suppression  # noqa: F401  (registers the operator that files name)

__all__ = ['ProgramSession', 'load_program', 'save_program']


class ProgramSession:
    """A program of torch.export that is ready to compute.

    Args:
        program: The program.
        metadata: What its file says about itself.
        device: Where it computes.
    """

    backend = 'torch'

    def __init__(self, program: torch.export.ExportedProgram, metadata: Metadata,
                 device: str = 'cpu') -> None:
        if device != 'cpu':
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        self._module = program.module()
        self._device = device
        self.inputs = metadata.inputs
        self.outputs = metadata.outputs

    def run(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute the outputs by name."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device)
                   for name in self.inputs]
        with torch.no_grad():
            outputs = self._module(*tensors)
        return {name: value.cpu().numpy()
                for name, value in zip(self.outputs, outputs, strict=True)}


def save_program(program: torch.export.ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Write a program with its metadata.

    Raises:
        OSError: If it can't be written.
    """
    # In memory first: where the disk is full, PyTorch's writer of files ends the whole process.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={KEY: metadata.to_json()})
    path.write_bytes(content.getbuffer())


def load_program(path: str | os.PathLike[str], device: str = 'cpu') -> ExportedModel:
    """Open a .pt2 file of `evit-mm export`.

    Args:
        path: The file. Open only files of people whose programs you would run.
        device: Where it computes, such as ``'cuda'``.

    Raises:
        UserError: If it can't be read, or is no such file.
    """
    path = Path(path)
    session, text = _open(path, device)
    return ExportedModel(session, checked_metadata(path, session, text))


def _open(path: Path, device: str) -> tuple[ProgramSession, str]:
    if not path.exists():
        raise UserError(f'no such file: {path}')
    extra = {KEY: ''}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # of the archive's reader, or of the program's
        text = ' '.join(str(error).split())[:200]
        raise UserError(f'{path} can\'t be loaded by torch {torch.__version__}: {text}; is it a '
                        'whole file of evit-mm export?') from error
    try:
        metadata = Metadata.from_json(extra[KEY])
    except ValueError as error:
        raise UserError(f'{path} was not written by evit-mm export: {error}') from error
    return ProgramSession(program, metadata, device), extra[KEY]
