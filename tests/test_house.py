"The house stands: floors, notebooks and package in agreement, tags that survive cleaning, cells that can be read."
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NBS = ROOT/'nbs'
# from the ground floor
ORDER = ['core', 'data', 'frozen', 'heads', 'learn', 'models', 'judge', 'expand', 'runs', 'serve', 'all', 'cli']
HOUSE = sorted(p for p in NBS.rglob('[0-9][0-9]_*.ipynb') if '.ipynb_checkpoints' not in p.parts)
def module(nb): return '.'.join([*nb.parent.relative_to(NBS).parts, nb.stem[3:]])
# such as heads.ridge: its place
MODULES = {module(nb): (ORDER.index(module(nb).split('.')[0]), int(nb.stem[:2])) for nb in HOUSE}
PARAMETERISED = sorted([*NBS.glob('usecases/*.ipynb'), *NBS.glob('benchmarks/*.ipynb')])
ALL = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
BY_HAND = ('__init__.py', '__main__.py')
def name(path): return path.relative_to(NBS).as_posix()


def imported(source:str, package:str='tl_notebooks') -> set[str]:
    "Our own modules that a module in `package` imports, at any depth, relative or absolute, in a function or not"
    own = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): own |= {m.name[13:] for m in node.names if m.name.startswith('tl_notebooks.')}
        if not isinstance(node, ast.ImportFrom): continue
        names = node.module or ''
        if node.level:
            names = '.'.join([*package.split('.')[:len(package.split('.')) + 1 - node.level], *filter(None, [names])])
        if names.split('.')[0] != 'tl_notebooks': continue
        for a in node.names: # a name of a module, or a module of a package
            full = f'{names}.{a.name}'[13:]
            own.add(full if full in MODULES else names[13:])
    return own - {''}


def copied(to:Path) -> Path:
    "The checkout's files in another folder, so that a test that writes leaves the working tree alone"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for d in ('nbs', 'tl_notebooks', 'docs'): shutil.copytree(ROOT/d, to/d, ignore=skip)
    for f in ROOT.iterdir():
        if f.is_file() and f.name != '.git': shutil.copy2(f, to)
    return to


def nbdev(command:str, cwd:Path) -> None:
    "An nbdev command on a copy; the copy comes first on the path, and nobody's home is written to"
    env = {**os.environ, 'PYTHONPATH': str(cwd), 'HOME': str(cwd/'home')}
    done = subprocess.run([Path(sys.executable).with_name(command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the checkout, its modules removed and made again, its notebooks cleaned"
    copy = copied(tmp_path_factory.mktemp('copy'))
    for p in (copy/'tl_notebooks').rglob('*.py'):
        if p.name not in BY_HAND: p.unlink()
    nbdev('nbdev_export', cwd=copy)
    nbdev('nbdev_clean', cwd=copy)
    return copy


@pytest.mark.parametrize('source,found', [
    ('from ..core import a', {'core'}), ('from .. import core', {'core'}), ('import tl_notebooks.core as c', {'core'}),
    ('from .ridge import a', {'heads.ridge'}), ('from . import ridge', {'heads.ridge'}),
    ('from tl_notebooks.core import a', {'core'}), ('from tl_notebooks import core, InputError', {'core'}),
    ('def f():\n  if 1:\n    from tl_notebooks.data.splits import a', {'data.splits'}),
    ('import torch.core\nfrom other.core import x', set())])
def test_every_form_of_import_is_seen(source, found):
    assert imported(source, 'tl_notebooks.heads') == found


@pytest.mark.parametrize('name', MODULES)
def test_imports_point_down(name):
    "A module imports only from packages below its own, or from a lower number in its own"
    path = ROOT/'tl_notebooks'/f"{name.replace('.', '/')}.py"
    package = '.'.join(['tl_notebooks', *name.split('.')[:-1]])
    for other in imported(path.read_text(encoding='utf-8'), package):
        assert other in MODULES, f'{name} imports {other}, which no notebook exports'
        assert MODULES[other] < MODULES[name], f'{name} imports {other}, which is not below it'


def test_one_notebook_exports_one_module():
    for nb in HOUSE:
        names = re.findall(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(c.source for c in nbformat.read(nb, 4).cells
                if c.cell_type == 'code'), re.M)
        assert names == [module(nb)], f'{nb.name} exports {names}'


def sources(root:Path) -> dict:
    return {p.relative_to(root).as_posix(): p.read_text(encoding='utf-8') for p in root.rglob('*.py')}


def test_package_is_what_the_notebooks_export(exported):
    made, here = sources(exported/'tl_notebooks'), sources(ROOT/'tl_notebooks')
    assert made.keys(
            ) == here.keys(), f'modules without a notebook, or not exported: {sorted(made.keys() ^ here.keys())}'
    assert [n for n in made if made[n] != here[n]] == [], 'run `make export`'


def test_notebooks_are_clean(exported):
    assert [name(p) for p in ALL if (exported/'nbs'/name(p)).read_bytes() != p.read_bytes()] == [], 'run `make export`'


def test_readme_is_what_the_index_says():
    done = subprocess.run([sys.executable, ROOT/'docs'/'build.py', 'readme', '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tags(nb:Path) -> list:
    return [c['metadata'].get('tags', []) for c in json.loads(nb.read_text(encoding='utf-8'))['cells']]


@pytest.mark.parametrize('nb', PARAMETERISED, ids=name)
def test_one_parameters_cell_that_cleaning_keeps(nb, exported):
    assert sum('parameters' in t
               for t in tags(nb)) == 1, 'without exactly one, papermill runs with the defaults and exits 0'
    assert tags(exported/'nbs'/name(nb)) == tags(nb)


def test_cleaning_would_drop_the_tag_without_the_setting(tmp_path):
    "The setting is what keeps the tag: without it nbdev deletes it, so the test above can fail"
    if not PARAMETERISED: pytest.skip('no use case in this checkout')
    copy = copied(tmp_path)
    cfg = (copy/'settings.ini').read_text(encoding='utf-8')
    (copy/'settings.ini').write_text(re.sub(r'(?m)^allowed_cell_metadata_keys.*\n', '', cfg), encoding='utf-8')
    nbdev('nbdev_clean', cwd=copy)
    assert not any('parameters' in t for t in tags(copy/'nbs'/name(PARAMETERISED[0])))


WIDTH, TALL = 120, 40 # columns of a line; lines of a function

@pytest.mark.parametrize('nb', ALL, ids=name)
def test_lines_fit_a_screen(nb):
    code = [c.source for c in nbformat.read(nb, 4).cells if c.cell_type == 'code']
    long = [l for source in code for l in source.splitlines() if len(l) > WIDTH]
    assert not long, f'{len(long)} lines of more than {WIDTH} columns, the first: {long[0]}'
    assert not re.search(r'^\s*from\s+tl_notebooks\S+\s+import\s+\*', '\n'.join(code),
                         re.M) or nb not in HOUSE, 'star import in exported code'


def test_pages_and_tests_fit_a_screen():
    files = [*(ROOT/'tl_notebooks'/'templates').iterdir(), *(ROOT/'tests').glob('*.py'), *(ROOT/'docs').glob('*.py')]
    long = [f'{p.name}:{i}' for p in files for i,l in enumerate(p.read_text(encoding='utf-8').splitlines(), 1)
            if len(l) > WIDTH]
    assert not long, long[:10]


def test_functions_can_be_read():
    "No function above 40 lines, half of them of twelve at most"
    sizes = {}
    for p in (ROOT/'tl_notebooks').rglob('*.py'):
        if p.name == '_modidx.py': continue
        for node in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if isinstance(node, ast.FunctionDef): sizes[f'{p.name}:{node.name}'] = node.end_lineno - node.lineno + 1
    assert [f for f,n in sizes.items() if n > TALL] == []
    assert sorted(sizes.values())[len(sizes)//2] <= 12


@pytest.mark.parametrize('nb', HOUSE, ids=name)
def test_exported_imports_have_cells_of_their_own(nb):
    "nbdev's docs step runs import cells alone, so an import beside other code would run that code too"
    for c in nbformat.read(nb, 4).cells:
        if c.cell_type != 'code' or not re.match(r'#\|\s*exporti?\b', c.source): continue
        body = ast.parse(c.source).body
        assert len({isinstance(n, (ast.Import, ast.ImportFrom))
                    for n in body}) <= 1, f'mixed with imports:\n{c.source[:300]}'


MACHINE = re.compile(r'(?<![\w.])/(?:home|root|Users|tmp|work|mnt|var/folders)/[\w.-]+|[A-Z]:\\Users\\')

@pytest.mark.parametrize('text,caught', [('saved to /home/ann/x.png', True), ('"/root/.cache/torch"', True),
                                         ('File /tmp/tmpa1/x', True),
                                         ('/Users/bo/x', True), ('https://a.org/home/b', False),
                                         ('folder/home/x', False)])
def test_machine_paths_are_seen(text, caught):
    assert bool(MACHINE.search(text)) == caught

@pytest.mark.parametrize('nb', ALL, ids=name)
def test_no_machine_paths(nb):
    "Neither in what was written nor in what was printed"
    for c in nbformat.read(nb, 4).cells:
        shown = [c.source, *(json.dumps(o, ensure_ascii=False) for o in c.get('outputs', []))]
        shown = re.sub(r'"image/\w+": "[^"]*"', '', '\n'.join(shown))
        assert not (m := MACHINE.search(shown)), f'{name(nb)} names a place on one machine: {m[0]}'


# The converter of README and pages, against links written by hand.

@pytest.fixture(scope='module')
def build():
    spec = importlib.util.spec_from_file_location('docs_build', ROOT/'docs'/'build.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_links_are_found_outside_code(build):
    text = ('[a](x.md) ![b](y.png "t") [`c`](z.ipynb#d) `[no](x.md)` <img src="y.png" width="3"> '
            '[up](#here)\n```\n[no](x.md)\n```\n[e](x.md)')
    seen = []
    out = build.relink(text, lambda to,at: seen.append((to, at)) or f'!{to}{at}')
    assert seen == [('x.md', ''), ('y.png', ''), ('z.ipynb', '#d'), ('y.png', ''), ('x.md', '')]
    assert out == text.replace('](x', '](!x').replace('](y', '](!y').replace('](z', '](!z').replace('src="y',
            'src="!y').replace('[no](!', '[no](')


def test_a_link_that_leads_nowhere_is_named(build):
    assert build.means('https://example.org/x', 'nbs/index.ipynb') is None
    assert build.means('00_core.ipynb', 'nbs/index.ipynb') == build.means('nbs/00_core.ipynb',
            'nbs/index.ipynb') == 'nbs/00_core.ipynb'
    with pytest.raises(ValueError, match='nbs/index.ipynb: the link `gone.md` leads nowhere'):
        build.means('gone.md', 'nbs/index.ipynb')


def test_constraints_pin_all_that_is_asked_for():
    "Every requirement in settings.ini has a pinned version that meets it, on every accepted Python"
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name as canonical
    import configparser
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    lines = [Requirement(l) for l in (ROOT/'constraints.txt').read_text(encoding='utf-8').splitlines() if l
             and l[0] != '#']
    asked = ' '.join(v for k,v in cfg['DEFAULT'].items() if k.endswith('requirements')).split()
    for python in ('3.10', '3.11', '3.13'):
        env = dict(python_version=python, python_full_version=f'{python}.9')
        pins = {canonical(r.name): str(r.specifier).lstrip('=') for r in lines if r.marker is None
                or r.marker.evaluate(env)}
        for r in map(Requirement, asked):
            assert r.specifier.contains(pins.get(canonical(r.name),
                                                 '0')), f'Python {python}: {r} is not met by constraints.txt'
