"The crossing use case, through a real papermill kernel: what a run leaves, that it repeats, and what is refused."
import re
from pathlib import Path

import pytest
from conftest import record, tl
from tl_notebooks.samples import make_scenes

QUICK = ['-p', 'size=96', '-p', 'bs=4', '-p', 'epochs=2', '-p', 'views=2', '-p', 'thaw=1', '-p', 'precision=fp32', '-p', 'threads=1']


@pytest.fixture(scope='module')
def scenes(tmp_path_factory): return make_scenes(tmp_path_factory.mktemp('scenes')/'s', n=24, size=160, progress=False)


@pytest.fixture(scope='module')
def run(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')
    done = tl('run', 'crossing', '--data', scenes, '--out', out, '--seed', 5, *QUICK, cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


def test_a_run_leaves_figures_with_intervals_and_a_control(run):
    rec = record(run)
    assert rec['status'] == 'ok' and next(iter(rec['metrics'])) == 'map50' and next(iter(rec['control'])) == 'map50'
    for m in [*rec['metrics'].values(), *rec['control'].values()]: assert 0 <= m['low'] <= m['value'] <= m['high'] <= 1 and m['n'] > 0
    assert {f'map50/{c}' for c in ('car', 'pedestrian', 'cyclist')} <= rec['metrics'].keys()
    assert 0 < rec['threshold'] < 1 and sum(rec['outcomes'].values()) > 0 and len(rec['losses']) == 2
    assert rec['losses'][-1]['train'] < rec['losses'][0]['train'] and rec['frozen'][0]['views'] == 2
    assert {p.stem for p in (run/'figures').iterdir()} >= {'samples', 'counts', 'augmented', 'map50', 'classes', 'curves', 'confusion', 'mistakes'}
    page = (run/'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and 'tl run crossing --data' in page


def test_its_model_loads_and_answers(run, scenes):
    import tl_notebooks # noqa: F401
    import torch
    from tl_notebooks.artifact import Model
    from tl_notebooks.core import hash_state
    model = Model(run/'model')
    assert model.manifest['task'] == 'boxes' and model.manifest['head']['threshold'] == record(run)['threshold']
    assert hash_state(model.net.state_dict()) == record(run)['model']['artifact_sha256']
    found = model.net.detect(model.net(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)))
    assert [*found[0]] == ['boxes', 'scores', 'labels']


def test_the_same_command_gives_the_same_bits(run, scenes, tmp_path):
    done = tl('run', 'crossing', '--data', scenes, '--out', tmp_path, '--seed', 5, *QUICK, '-p', 'control=no', cwd=tmp_path)
    again = Path(done.stdout.strip().splitlines()[-1])
    assert record(again)['metrics'] == record(run)['metrics'] and not record(again)['control']
    assert (again/'model'/'weights.safetensors').read_bytes() == (run/'model'/'weights.safetensors').read_bytes()


def test_bad_boxes_are_a_wrong_request_and_leave_nothing(scenes, tmp_path):
    done = tl('run', 'crossing', '--data', scenes, '--out', 'runs', *QUICK, '-p', 'classes=car:Truck', cwd=tmp_path)
    assert done.returncode == 2 and 'Truck' in done.stderr and 'Traceback' not in done.stderr and not list(tmp_path.glob('runs/**/*'))
