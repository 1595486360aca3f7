"What several test files share: real data where it lies beside the project, and one real run of the parts use case."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent/'shared'/'data'

# Small images and batches: the same notebook, in seconds.
QUICK = ['-p', 'size=96', '-p', 'bs=16', '-p', 'precision=fp32']
WHOLE = [*QUICK, '-p', 'control=yes'] # with a control that no stopwatch ends


# `pytest -m fast`: no network trains in these, and no kernel starts.
FAST = 'as_found box_layouts box_scores data evidence house texts boxes samples'.split()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix('test_') in FAST: item.add_marker('fast')


def need(name):
    "The folder of a real data set; skips with the reason where it is not beside the project"
    if not (DATA/name).is_dir(): pytest.skip(f'real data set {name} is not beside this checkout (shared/data/{name})')
    return DATA/name


def tl(*args, cwd, timeout=300, env=None):
    "Run `tl` as a user does, in a process of its own"
    return subprocess.run([sys.executable, '-m', 'tl_notebooks', *map(str, args)], cwd=cwd, capture_output=True,
                          text=True,
                          timeout=timeout, env={**os.environ, **(env or {})})


def page(path):
    "The text of an HTML page, on one line, without images"
    return ' '.join(re.sub(r'data:image/png;base64,[^"]*', '', Path(path).read_text(encoding='utf-8')).split())


def record(folder): return json.loads((Path(folder)/'record.json').read_text())


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    "Nothing a test does may land in the user's own caches"
    old = os.environ.get('TL_NOTEBOOKS_CACHE')
    os.environ['TL_NOTEBOOKS_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield
    os.environ.pop('TL_NOTEBOOKS_CACHE')
    if old: os.environ['TL_NOTEBOOKS_CACHE'] = old


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    "Four kinds of parts, 15 small images each, made by the project"
    from tl_notebooks.data.samples import PARTS, make_parts
    return make_parts(tmp_path_factory.mktemp('pictures')/'parts', kinds=PARTS[:4], n=15, size=96)


@pytest.fixture(scope='session')
def first_run(pictures, tmp_path_factory):
    "A finished `tl run parts` and its run folder"
    out = tmp_path_factory.mktemp('runs')
    done = tl('run', 'parts', '--data', pictures, '--out', out, '--seed', 5, *WHOLE, cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return done, Path(done.stdout.strip().splitlines()[-1])


def tree(root, spec, draw=None):
    """Make files: str and bytes → content, None → a folder, callable → called with the path, a number → what `draw`
    makes of it"""
    for name, what in spec.items():
        p = root/name
        p.parent.mkdir(parents=True, exist_ok=True)
        if what is None: p.mkdir(exist_ok=True)
        elif callable(what): what(p)
        else: p.write_bytes(draw(what) if isinstance(what, int) else what.encode() if isinstance(what, str) else what)
    return root
