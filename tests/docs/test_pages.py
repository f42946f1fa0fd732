"""Links, names and Python snippets of the README and the documentation, and the project's files."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from documented_commands import CONFIG, blocks
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, WEIGHT_INITIALIZERS, init_default_scope

from evit_mm.checkpoint import address
from evit_mm.checkpoint.zoo import PUBLISHED
from evit_mm.models import EfficientViT
from evit_mm.version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]
PAGES += sorted((REPOSITORY / 'docs').glob('*.md'))
PUBLIC = {'ARCHS', 'EfficientViT', 'EfficientViTFPN', '__version__', 'convert_checkpoint', 'deploy',
          'export', 'list_weights', 'load_model', 'test', 'train'}


def without_code(text: str) -> str:
    return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def snippets() -> list:
    return [pytest.param(block.text, id=f'{page.name}-{number}') for page in PAGES
            for number, block in enumerate(
                (block for block in blocks(page) if block.language == 'python'), 1)]


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs and GitHub make them."""
    titles = re.findall(r'^#+ (.*)', without_code(page.read_text()), re.M)
    return {re.sub(r'[\s-]+', '-', re.sub(r'[^\w\s-]', '', title.lower()).strip())
            for title in titles}


def resolve(name: str) -> object:
    """Import what a dotted name stands for."""
    parts = name.split('.')
    value: object = import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            import_module('.'.join(parts[:number]))
        value = getattr(value, part)
    return value


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_images_exist(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', without_code(page.read_text())):
        if re.match(r'[a-z]+:', target):
            assert target.startswith('https://')
            continue
        path, _, anchor = target.partition('#')
        file = page.parent / path if path else page
        assert file.exists(), f'{page.name} links to {target}'
        if anchor:
            assert anchor in headings(file), f'{page.name} links to {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_and_names_in_the_text_exist(page):
    if page.name == 'CHANGELOG.md':
        return  # has names of earlier versions
    for code in re.findall(r'`([^`\n]+)`', without_code(page.read_text())):
        if re.fullmatch(r'(configs|docs|evit_mm|requirements|tests|tools)/[\w./-]+', code):
            assert (REPOSITORY / code).exists(), f'{page.name} names {code}'
        elif re.fullmatch(r'evit_mm(\.\w+)+', code):
            resolve(code)


@pytest.mark.parametrize('code', snippets())
def test_snippets_compile_and_their_imports_resolve(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'evit_mm':
            for alias in node.names:
                resolve(f'{node.module}.{alias.name}')
        elif isinstance(node, ast.Import):
            for alias in node.names:
                import_module(alias.name)


@pytest.mark.parametrize('code', [snippet for snippet in snippets()
                                  if re.match(CONFIG, snippet.values[0])])
def test_config_snippets_build(code, tmp_path):
    """A part of a config is read as one that inherits the demo's."""
    base = '' if '_base_ = ' in code else "_base_ = 'evit_mm::retinanet_evit_m0_shapes.py'\n"
    (tmp_path / 'own.py').write_text(base + code)
    config = Config.fromfile(tmp_path / 'own.py')
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model)
    assert isinstance(model.backbone, EfficientViT)
    classes = config.train_dataloader.dataset.get('metainfo', {}).get('classes')
    if classes:
        head = getattr(model, 'bbox_head', None) or model.decode_head
        assert head.num_classes == len(classes)
    for hook in config.get('custom_hooks') or ():
        HOOKS.build(hook)
    if 'init_cfg' in config:
        WEIGHT_INITIALIZERS.build(config.init_cfg)
    for name in re.findall(r"checkpoint='(\w+://[^']+)'", code):
        assert address(name).startswith('https://')


def test_the_reference_describes_every_public_name():
    page = (REPOSITORY / 'docs' / 'api.md').read_text()
    assert set(re.findall(r'^::: evit_mm\.(\w+)$', page, re.M)) | {'ARCHS', '__version__'} == PUBLIC
    for name in re.findall(r'^::: (\S+)$', page, re.M):
        assert getattr(resolve(name), '__doc__', None) or isinstance(resolve(name), dict), name


def test_every_page_is_in_the_navigation():
    text = (REPOSITORY / 'mkdocs.yml').read_text()
    pages = set(re.findall(r': ([a-z0-9-]+\.md)$', text, re.M))
    assert pages == {page.name for page in (REPOSITORY / 'docs').glob('*.md')}


def test_index_of_models_has_published_weights_only():
    index = yaml.safe_load((REPOSITORY / 'model-index.yml').read_text())
    collections = {collection['Name'] for collection in index['Collections']}
    rows = {row.name: row for row in PUBLISHED if row.name.startswith('evit://')}
    assert {model['Alias'] for model in index['Models']} == set(rows)
    for model in index['Models']:
        row = rows[model['Alias']]
        assert model['In Collection'] in collections and model['Weights'] == row.address
        assert 'Config' not in model or (REPOSITORY / model['Config']).is_file()
        figures = [figure for result in model['Results'] for figure in result['Metrics'].values()]
        assert figures == [float(figure) for figure in re.findall(r'\d+\.\d', row.accuracy)]
    for collection in index['Collections']:
        assert (REPOSITORY / collection['README']).is_file()


def test_citation_names_the_authors_of_the_readme():
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    paper = citation['preferred-citation']
    authors = ' and '.join(f'{author["family-names"]}, {author["given-names"]}'
                           for author in paper['authors'])
    readme = (REPOSITORY / 'README.md').read_text()
    assert authors in readme and paper['title'] in readme
    assert citation['license'] == 'Apache-2.0'


def test_the_changelog_describes_the_version():
    versions = re.findall(r'^## \[([\d.]+)\]', (REPOSITORY / 'CHANGELOG.md').read_text(), re.M)
    assert __version__ in versions
