"""Installing the stand-in, and operators that it lacks."""

import importlib
import importlib.machinery
import pickle
import sys
import types

import pytest
import torch

from evit_mm.compat import mmcv_ops

mmcv = pytest.importorskip('mmcv')
COMPILED = not mmcv_ops.install()
mmcv_functions = importlib.import_module('mmcv.ops')
stand_in_only = pytest.mark.skipif(
    COMPILED, reason='about the stand-in, and a compiled mmcv._ext is in use')


@pytest.fixture
def clean_imports():
    """Forget mmcv for one test, and bring back the modules that all others share."""
    names = ('mmcv', 'mmcv._ext')
    saved = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(saved)


def write_mmcv(folder, extension):
    package = folder / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    if extension:
        (package / '_ext.py').write_text('')


@pytest.mark.skipif(not COMPILED, reason='mmcv is installed without its compiled operators')
def test_a_compiled_extension_is_in_use_and_stays():
    extension = importlib.import_module('mmcv._ext')
    assert extension.__file__.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
    assert mmcv_ops.install() is False
    assert sys.modules['mmcv._ext'] is extension
    assert importlib.import_module('mmcv.ops.nms').ext_module is extension


@stand_in_only
def test_mmcv_uses_the_stand_in():
    extension = sys.modules['mmcv._ext']
    assert isinstance(extension, types.ModuleType)
    assert importlib.import_module('mmcv.ops.nms').ext_module is extension
    assert mmcv._ext is extension
    assert extension.__evit_mm_stand_in__


@pytest.mark.parametrize('name', ['mmcv.ops', 'mmdet.models', 'mmseg.models'])
def test_what_needs_the_extension_imports(name):
    pytest.importorskip(name.split('.')[0])
    assert importlib.import_module(name).__name__ == name


def test_install_twice_changes_nothing():
    before = importlib.import_module('mmcv._ext')
    assert mmcv_ops.install() is not COMPILED
    assert sys.modules['mmcv._ext'] is before


def test_install_keeps_an_extension_that_is_loaded(monkeypatch):
    other = types.ModuleType('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', other)
    bound = vars(mmcv).get('_ext')
    assert mmcv_ops.install() is False
    assert sys.modules['mmcv._ext'] is other
    assert vars(mmcv).get('_ext') is bound


def test_install_keeps_an_extension_that_can_be_found(clean_imports, tmp_path, monkeypatch):
    write_mmcv(tmp_path, extension=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert mmcv_ops.install() is False
    assert 'mmcv._ext' not in sys.modules
    assert importlib.import_module('mmcv._ext').__file__ == str(tmp_path / 'mmcv' / '_ext.py')


def test_install_serves_an_mmcv_that_is_imported_later(clean_imports, tmp_path, monkeypatch):
    write_mmcv(tmp_path, extension=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert mmcv_ops.install() is True
    assert 'mmcv' not in sys.modules
    stand_in = importlib.import_module('mmcv._ext')
    assert stand_in.__evit_mm_stand_in__
    package = importlib.import_module('mmcv')
    assert mmcv_ops.install() is True
    assert package._ext is stand_in is sys.modules['mmcv._ext']


def test_install_does_nothing_without_mmcv(clean_imports, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)  # as good as not installed
    assert mmcv_ops.install() is False
    assert 'mmcv._ext' not in sys.modules


@stand_in_only
def test_probes_for_compiled_operators_find_none():
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils.dl_utils import mmcv_full_available

    assert check_ops_exist() is False
    assert mmcv_full_available() is False


@stand_in_only
def test_environment_report_says_what_is_in_use():
    from mmcv.utils import collect_env

    report = collect_env()
    assert report['MMCV Compiler'].startswith('not compiled (evit_mm stand-in on torchvision')
    assert report['MMCV CUDA Compiler'].startswith('not compiled (torch was built for ')


MISSING = {
    'three_nn_forward': lambda: mmcv_functions.three_nn(torch.ones(1, 2, 3), torch.ones(1, 4, 3)),
    'min_area_polygons': lambda: mmcv_functions.min_area_polygons(torch.ones(1, 18)),
}


@stand_in_only
@pytest.mark.parametrize('name', MISSING)
def test_a_missing_operator_is_named_when_it_is_called(name):
    with pytest.raises(mmcv_ops.MissingOpError, match=f"mmcv op '{name}' is not available") as info:
        MISSING[name]()
    assert 'pip install mmcv==2.1.0' in str(info.value)
    assert torch.__version__ in str(info.value)


@stand_in_only
def test_the_error_is_a_not_implemented_error():
    assert issubclass(mmcv_ops.MissingOpError, NotImplementedError)
    error = pickle.loads(pickle.dumps(mmcv_ops.MissingOpError('knn_forward', 'a head')))
    assert error.operator == 'knn_forward' and error.user == 'a head'
    assert "mmcv op 'knn_forward' is not available, which a head needs: " in str(error)


@stand_in_only
def test_provided_operators_are_in_the_stand_in():
    names = mmcv_ops.provided_operators()
    assert {'nms', 'roi_align_forward', 'deform_conv_forward'} <= set(names)
    assert 'three_nn_forward' not in names
    assert set(names) <= set(vars(sys.modules['mmcv._ext']))


@stand_in_only
def test_a_missing_operator_can_be_asked_for_but_a_dunder_cannot():
    extension = sys.modules['mmcv._ext']
    assert extension.three_nn_forward.__name__ == 'three_nn_forward'
    assert not hasattr(extension, '__path__')
    with pytest.raises(AttributeError, match='__wrapped__'):
        _ = extension.__wrapped__
