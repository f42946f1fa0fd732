"""The script of docs/deploy.md is the one in examples/, and runs without torch."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from exported_files import write

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / 'examples' / 'predict_without_torch.py'


def test_the_page_shows_the_script():
    code = SCRIPT.read_text().partition('\n\n')[2]
    assert f'```python\n{code}```' in (REPOSITORY / 'docs' / 'deploy.md').read_text()
    assert len(code.splitlines()) <= 15


def test_the_script_runs_without_torch(tmp_path):
    write(tmp_path / 'model.onnx')
    cv2.imwrite(str(tmp_path / 'street.png'), np.zeros((9, 7, 3), np.uint8))
    (tmp_path / 'torch.py').write_text('raise ImportError("refused")')
    (tmp_path / 'evit_mm.py').write_text('raise ImportError("refused")')
    done = subprocess.run(
        [sys.executable, '-c', f'import runpy, sys; sys.argv = ["x", "model.onnx", "street.png"]; '
         f'sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]; '
         f'runpy.run_path({str(SCRIPT)!r})'],
        cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ('street.png: 1 objects\n  dog 0.75: 0.0, 0.0 to 7.0, 9.0\n')
