"""Installing the loaders needs mmengine only, and can be limited to the published names."""

import json
import os
import subprocess
import sys

# The parent package is replaced by an empty one, because importing it would import the models.
PROGRAM = '''
import json, os, pathlib, sys, types

package = types.ModuleType('evit_mm')
package.__path__ = [str(pathlib.Path(sys.argv[1], 'evit_mm'))]
sys.modules['evit_mm'] = package
from evit_mm.checkpoint import mmengine_loader
assert 'mmengine' not in sys.modules  # its import calls install()
import mmengine

def is_ours(function):
    return hasattr(function, '_evit_mm_guarded') or function.__module__.startswith('evit_mm')

def install():
    mmengine_loader.install()
    mmengine_loader.install()  # idempotent
    from mmengine.infer import BaseInferencer
    from mmengine.runner import checkpoint
    return {
        'imported': [name for name in ('mmcv', 'mmdet', 'mmseg', 'evit_mm.models',
                                       'evit_mm.checkpoint.convert') if name in sys.modules],
        'loaders': {name: is_ours(checkpoint.CheckpointLoader._get_checkpoint_loader(name))
                    for name in json.loads(sys.argv[2])},
        'load_from_http': is_ours(checkpoint.load_from_http),
        'inferencer': is_ours(BaseInferencer._init_model)}

os.environ['EVIT_MM_SAFE_LOADING'] = '0'
off = install()
del os.environ['EVIT_MM_SAFE_LOADING']
print(json.dumps([off, install()]))
'''
NAMES = ('evit://efficientvit_m4', 'timm://efficientvit_m4', 'hf-hub:owner/repository',
         'hf://owner/repository', 'efficientvit_m4', 'timm/efficientvit_m4.r224_in1k')
OTHERS = ('a.pth', '~/a.safetensors', 'http://host/a.pth', 'https://host/a.pth', 's3://bucket/a',
          'open-mmlab://a', 'torchvision://resnet50', 'mmcls://a')


def test_install_right_after_mmengine(repository):
    """Without safe loading first, then with it."""
    result = subprocess.run(
        [sys.executable, '-c', PROGRAM, repository, json.dumps(NAMES + OTHERS)], text=True,
        capture_output=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [{
        'imported': [],
        'loaders': {**dict.fromkeys(NAMES, True), **dict.fromkeys(OTHERS, safe)},
        'load_from_http': safe, 'inferencer': safe} for safe in (False, True)]
