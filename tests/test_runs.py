"""Runs can be come back to: found, compared with the right test, run again to the same bits, tidied up; and none is
lost or mixed up when things go wrong."""
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import record, tl
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from tl_notebooks.core import InputError
from tl_notebooks.runs.history import diff_runs, find_runs, plan_prune, runs_table
from tl_notebooks.runs.record import new_record, save_record
from tl_notebooks.runs.reproduce import check_run, compare_runs, reproduce_run
from tl_notebooks.runs.run import RunFailed, make_run_folder, run_usecase

PARAMETERS = ("data: str = ''\nseed: int = 0       # {0..1000}\nshift: float = 0.0  # of the threshold "
              "{-1..1}\nthreads: int = 0    # {0..64}\n")
START = "from tl_notebooks.runs.run import start_run\nrun = start_run('toy', globals())\np = run.p"
WORK = """import os
import numpy as np
from safetensors.numpy import save_file
from tl_notebooks.judge import evidence
from tl_notebooks.core import hash_file
from tl_notebooks.data.decode import open_image; from tl_notebooks.data.images import read_images
with run.phase('reading'):
    images = read_images(p.data, valid_pct=0., test_pct=.5, seed=0, progress=False)
run.keep_data(images, p.data)
light = np.array([np.asarray(open_image(f))[...,0].mean()/255 for f in images.files('test')])
noise = float(os.environ.get('NOISE', 0))      # what a machine of another kind would add
"""
END = """w = np.array([p.shift + np.random.rand() + noise])
dark = 1/(1 + np.exp(40*(light - .5 - p.shift) + noise))
probs = np.stack([dark, 1 - dark], 1); y = images.labels('test')
run.predictions(images.subset('test'), probs, images.classes)
run.metric('accuracy', evidence.accuracy(y, probs.argmax(1)))
for name, r in evidence.per_class_recall(y, probs.argmax(1), images.classes).items(): run.metric(f'recall/{name}', r)
(run.folder/'model').mkdir(); save_file({'w': w}, run.folder/'model'/'weights.safetensors')
run.record['model'] = {'name': 'toy', 'artifact_sha256': hash_file(run.folder/'model'/'weights.safetensors')}
"""


def notebook(path, *cells):
    "A use case of a few cells; the last one finishes the run"
    parameters = new_code_cell(PARAMETERS, metadata={'tags': ['parameters']})
    nbformat.write(new_notebook(cells=[parameters, new_code_cell(START), *map(new_code_cell, cells),
                                       new_code_cell('run.finish()')]), path)
    return str(path)


def paint(folder, n=24, seed=0):
    "Dark and light images, some of which are neither"
    rng = np.random.default_rng(seed)
    for label, low, high in (('dark', 0, 160), ('light', 90, 255)):
        (folder/label).mkdir(parents=True)
        for i in range(n):
            Image.new('RGB', (8, 8), (int(rng.integers(low, high)), i, i)).save(folder/label/f'{i:02}.png')
    return folder


@pytest.fixture(scope='module')
def toy(tmp_path_factory): return notebook(tmp_path_factory.mktemp('nb')/'toy.ipynb', WORK, END)


@pytest.fixture(scope='module')
def home(toy, tmp_path_factory):
    "Images, and two runs on them that differ in one parameter"
    home = tmp_path_factory.mktemp('home')
    data = paint(home/'data')
    return home, data, *(run_usecase(toy, {'data': str(data), 'shift': s, 'seed': 3}, str(home/'outputs'))
                         for s in (0., .12))


# ---- the table

def fake(root, n, usecase='parts', **more):
    folder = root/usecase/f'20260101-{100000+n}-{n:04x}'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(n)
    rec = new_record(usecase, folder.name, dict(seed=n % 3, lr=float(10.**rng.integers(-5, 0)),
                                                epochs=int(rng.integers(1, 9)))) | dict(
        status='ok', metrics={'accuracy': dict(value=float(rng.random()), low=0., high=1., n=50)},
        started=f'2026-01-01T10:{n:02}:00+0000') | more
    save_record(folder, rec)
    return folder


def test_conditions_and_order_agree_with_pandas(tmp_path):
    for n in range(40): fake(tmp_path, n)
    table = runs_table(tmp_path)
    flat = pd.DataFrame([dict(run=p.parent.name, acc=r['metrics']['accuracy']['value'], **r['params'])
                         for p in tmp_path.glob('*/*/record.json')
                         for r in [json.loads(p.read_text())]]).set_index('run')
    assert set(table.run) == set(flat.index) and len(table) == 40
    for ours, theirs in (('params.lr>1e-3', 'lr > 1e-3'), ('epochs<=4', 'epochs <= 4'), ('accuracy>=0.5', 'acc >= .5'),
                         ('seed!=1', 'seed != 1'), ('seed==2', 'seed == 2'), ('lr<1e-4', 'lr < 1e-4')):
        assert set(runs_table(tmp_path, where=[ours]).run) == set(flat.query(theirs).index), ours
    assert set(runs_table(tmp_path,
                          where=['epochs>3', 'accuracy>.3']).run) == set(flat.query('epochs > 3 and acc > .3').index)
    assert runs_table(tmp_path, sort='accuracy').run.tolist() == flat.sort_values('acc', ascending=False).index.tolist()
    assert runs_table(tmp_path, sort='accuracy', reverse=True).value.is_monotonic_increasing
    assert runs_table(tmp_path, sort='lr')['params.lr'].is_monotonic_increasing


def test_the_table_as_csv_and_json_says_the_same(tmp_path):
    for n in range(3): fake(tmp_path/'outputs', n)
    as_csv, as_json = (tl('runs', 'outputs', '--sort', 'accuracy', '--format', f, cwd=tmp_path)
                       for f in ('csv', 'json'))
    a, b = pd.read_csv(io.StringIO(as_csv.stdout)), json.loads(as_json.stdout)
    assert a.run.tolist() == [r['run'] for r in b] and a['value'].tolist() == pytest.approx([r['value']
            for r in b]) and a.value.is_monotonic_decreasing
    wrong = tl('runs', 'outputs', '--where', 'param.lr>1', cwd=tmp_path)
    assert wrong.returncode == 2 and "'params.lr'" in wrong.stderr and not wrong.stdout


def test_whatever_lies_there_is_listed_and_nothing_crashes(tmp_path):
    good = fake(tmp_path, 1)
    text = (good/'record.json').read_text()
    rng = np.random.default_rng(0)
    for i in range(60):     # a good record with a piece cut out, doubled or overwritten
        a, b = sorted(rng.integers(0, len(text), 2))
        bad = [text[:a] + text[b:], text[:b] + text[a:], text[:a] + '\0'*int(b - a) + text[b:]][i % 3]
        (d := tmp_path/'parts'/f'x{i}').mkdir(); (d/'record.json').write_text(bad)
    for i, what in enumerate(({}, {'schema': 'tl_notebooks/record/9'}, {'metrics': {'a': None}},
                              {'timings': {'a': 'long'}}, {'params': []}, [], 3)):
        (d := tmp_path/'mail'/f'y{i}').mkdir(parents=True)
        (d/'record.json').write_text(json.dumps(json.loads(text) | what if isinstance(what, dict) and what else what))
    (tmp_path/'loop').symlink_to(tmp_path); (tmp_path/'parts'/'gone').symlink_to(tmp_path/'nowhere')
    found = tl('runs', tmp_path, '--sort', 'accuracy', cwd=tmp_path)
    assert found.returncode == 0 and good.name in found.stdout and found.stdout.count('damaged') >= 50, found.stderr
    assert len(find_runs(tmp_path)) == 68
    assert not [v for v in plan_prune(tmp_path, keep_best=0) if v.goes and v.entry.state == 'damaged']


def test_a_run_whose_process_is_gone_is_told_from_one_at_work(tmp_path, toy):
    nb = notebook(tmp_path/'slow.ipynb', "(run.folder/'here').touch()", 'import time; time.sleep(600)')
    p = subprocess.Popen([sys.executable, '-m', 'tl_notebooks', 'run', nb, '--out', 'r'], cwd=tmp_path,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: list(tmp_path.glob('r/slow/*/here')))
        assert [e.state for e in find_runs(tmp_path/'r')] == ['running']
        assert [v.goes for v in plan_prune(tmp_path/'r', keep_best=0, failed=True)] == [False]
        kernels = psutil.Process(p.pid).children(recursive=True)
    finally: p.kill(); p.wait()
    assert [e.state for e in find_runs(tmp_path/'r')] == ['vanished']
    # what is told apart is not written down by who looks
    assert record(find_runs(tmp_path/'r')[0].folder)['status'] == 'running'
    assert 'vanished' in tl('runs', 'r', cwd=tmp_path).stdout
    gone, alive = psutil.wait_procs(kernels, timeout=30)
    for k in alive: k.kill()
    assert not alive


def wait(what, seconds=60):
    for _ in range(int(seconds*20)):
        if found := what(): return found
        time.sleep(.05)
    raise AssertionError('it never came')


# ---- the difference

def test_paired_test_is_that_of_statsmodels(home):
    from statsmodels.stats.contingency_tables import mcnemar
    _, _, a, b = home
    x, y = (pd.read_csv(f/'predictions.csv') for f in (a, b))
    assert (x.sha256 == y.sha256).all()
    found = {m['name']: m['paired'] for m in diff_runs(a, b).metrics}
    for name, rows in (('accuracy', x.label == x.label), ('recall/dark', x.label == 'dark'),
                       ('recall/light', x.label == 'light')):
        r, s = (x.predicted == x.label)[rows], (y.predicted == y.label)[rows]
        table = [[(r & s).sum(), (r & ~s).sum()], [(~r & s).sum(), (~r & ~s).sum()]]
        assert found[name]['p'] == pytest.approx(mcnemar(table, exact=True).pvalue) and found[name]['n'] == len(r)
        assert found[name]['value'] == pytest.approx(s.mean() - r.mean())
    assert (found['accuracy']['only_a'], found['accuracy']['only_b']) != (0, 0)


def test_difference_names_files_parameters_and_cells(home, tmp_path):
    home, data, a, _ = home
    shutil.copytree(data, tmp_path/'data')
    (tmp_path/'data'/'dark'/'00.png').unlink()
    Image.new('RGB', (8, 8), (7, 7, 9)).save(tmp_path/'data'/'dark'/'01.png')
    Image.new('RGB', (8, 8), (7, 9, 9)).save(tmp_path/'data'/'dark'/'new.png')
    os.rename(tmp_path/'data'/'light'/'02.png', tmp_path/'data'/'light'/'renamed.png')
    other = run_usecase(notebook(tmp_path/'toy.ipynb', WORK, END + 'print("more")'),
                        {'data': str(tmp_path/'data'), 'shift': .05, 'seed': 3}, str(tmp_path))
    d = diff_runs(a, other)
    assert d.files['added'] == [
            'dark/new.png'] and d.files[
            'removed'] == [
            'dark/00.png'] and d.files['changed'] == ['dark/01.png'] and d.files['renamed'] == ['light/renamed.png']
    assert ('shift', 0., .05) in d.causes['parameters'] and [n for n,
                                                             *_ in d.causes['code']] == [
            'notebook_sha256'] and '+print("more")' in d.cells
    assert d.metrics[0]['paired']['n'] < record(a)['metrics']['accuracy']['n']      # on what both have
    assert tl('diff', a, other, cwd=tmp_path).stdout.strip() == str(d)
    assert json.loads(tl('diff', a, other, '--format', 'json', cwd=tmp_path).stdout)['files'] == d.files


# ---- again

def test_a_copied_run_comes_out_bit_identical_without_its_notebook_at_hand(home, tmp_path):
    home, data, a, _ = home
    shutil.copytree(a, tmp_path/'far'/'away'); shutil.copytree(data, tmp_path/'pictures')
    seen = [p.read_bytes() for p in sorted((tmp_path/'far').rglob('*')) if p.is_file()]
    done = tl('reproduce', 'far/away', '--data', 'pictures', '--out', 'again', cwd=tmp_path)
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0 and done.stdout.splitlines()[-2] == 'bit-identical', done.stdout + done.stderr
    assert (folder/'predictions.csv').read_bytes() == (a/'predictions.csv').read_bytes()
    assert (folder/'model'/'weights.safetensors').read_bytes() == (a/'model'/'weights.safetensors').read_bytes()
    assert record(folder)['reproduces']['run_id'] == a.name and record(folder)['metrics'] == record(a)['metrics']
    assert seen == [p.read_bytes() for p in sorted((tmp_path/'far').rglob('*')) if p.is_file()]
    assert all(o.verdict == 'bit-identical' for o in compare_runs(a, folder))


@pytest.mark.parametrize('noise,verdict', [('1e-9', 'within tolerance'), ('9', 'different')])
def test_what_comes_out_otherwise_is_said(home, tmp_path, monkeypatch, noise, verdict):
    monkeypatch.setenv('NOISE', noise)
    done = reproduce_run(home[2], str(tmp_path))
    found = {o.name: o.verdict for o in done.outcomes}
    assert (done.verdict, found["the model's weights"], found['data']) == (verdict, verdict, 'bit-identical')
    assert found['predictions'] == verdict and (found['accuracy'] == 'different') == (verdict == 'different')


def test_why_it_cannot_or_may_not_is_said_before_anything_runs(home, tmp_path):
    home, data, a, _ = home
    shutil.copytree(data, tmp_path/'data'); shutil.copytree(a, tmp_path/'run')
    Image.new('RGB', (8, 8), (1, 2, 3)).save(tmp_path/'data'/'dark'/'03.png')
    done = tl('reproduce', 'run', '--data', 'data', cwd=tmp_path)
    old = pd.read_csv(a/'data.csv').set_index('path').sha256['dark/03.png']
    assert (done.returncode == 2 and 'dark/03.png' in done.stderr and old in done.stderr and '--anyway' in done.stderr
            and not (tmp_path/'outputs').exists())
    gone = tl('reproduce', 'run', '--data', 'nowhere', '--check', cwd=tmp_path)
    assert gone.returncode == 1 and 'give its place with --data' in gone.stdout
    rec = record(tmp_path/'run')
    rec['environment'] |= dict(processor='an older one', packages=rec['environment']['packages'] | {'torch': '2.0.1'})
    rec['code_version'] = '0.0.1+0'
    (tmp_path/'run'/'record.json').write_text(json.dumps(rec))
    nb = nbformat.read(tmp_path/'run'/'notebook.ipynb', 4); nb.cells[-1].source += '\n'
    nbformat.write(nb, tmp_path/'run'/'notebook.ipynb')
    found = {f.what: f for f in check_run(tmp_path/'run', str(data))[0]}
    assert {n for n, f in found.items() if f.effect == 'may differ'} == {'notebook', 'code', 'torch',
            'processor'} and found['data'].effect == 'same'
    assert found['torch'].then == '2.0.1' and found['torch'].now and found['notebook'].then != found['notebook'].now


def test_a_failed_run_has_nothing_to_be_compared_with(tmp_path):
    with pytest.raises(InputError, match='is failed; accepted: one that ended well'):
        reproduce_run(fake(tmp_path, 1, status='failed', metrics={}))


def test_parts_comes_out_bit_identical(first_run, tmp_path):
    _, folder = first_run
    done = tl('reproduce', folder, '--out', tmp_path/'again', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[-2] == 'bit-identical', done.stdout + done.stderr[-2000:]
    again = Path(done.stdout.splitlines()[-1])
    assert (again/'model'/'weights.safetensors').read_bytes() == (folder/'model'/'weights.safetensors').read_bytes()
    assert len(pd.read_csv(folder/'predictions.csv')) == record(folder)['metrics']['accuracy']['n']
    assert 'pretrained weights' in {f.what for f in check_run(folder)[0]} and {f.effect
            for f in check_run(folder)[0]} == {'same'}


# ---- tidying up

def test_pruning_takes_what_it_lists_and_only_when_told(tmp_path):
    folders = [fake(tmp_path/'outputs', n) for n in range(6)]
    best = sorted(folders, key=lambda f: -record(f)['metrics']['accuracy']['value'])
    # the best one grew from the fifth
    for f, h, parent in ((best[4], 'a', None), (best[0], 'b', 'a'), (best[5], 'c', None)):
        (f/'model').mkdir()
        (f/'model'/'manifest.json').write_text(json.dumps(dict(sha256=h*64, backbone={}, parent=parent and parent*64,
                                                               lineage=[])))
    listed = tl('prune', 'outputs', '--keep-best', 2, '--keep-last', 0, cwd=tmp_path)
    assert (listed.returncode == 0 and '3 of 6 folders would go' in listed.stdout
            and f'stays  outputs/parts/{best[4].name}' in listed.stdout and all(f.exists() for f in folders))
    done = tl('prune', 'outputs', '--keep-best', 2, '--yes', cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == '3 of 6 folders removed' and [f.exists() for f in best] == [True, True,
            False, False, True, False]
    assert {p.name for p in (tmp_path/'outputs'/'parts').iterdir()} == {best[i].name for i in (0, 1, 4)}


# ---- when things go wrong

COLLIDE = """import sys, time
import tl_notebooks.runs.run as r
from pathlib import Path
names = iter([f'id{i//2:03}' for i in range(2000)])      # every name comes twice, in both processes
r.new_run_id = lambda: next(names)
Path(f'ready{sys.argv[1]}').touch()
while not Path('go').exists(): time.sleep(.001)
for _ in range(60): print(r.make_run_folder('toy', {}, Path(sys.argv[2]), 'o'))
"""

def test_two_processes_with_the_same_ids_never_share_a_folder(tmp_path, toy):
    ps = [subprocess.Popen([sys.executable, '-c', COLLIDE, str(i), toy], cwd=tmp_path, stdout=subprocess.PIPE,
                           text=True) for i in range(2)]
    wait(lambda: all((tmp_path/f'ready{i}').exists() for i in range(2)))
    (tmp_path/'go').touch()
    a, b = (p.communicate(timeout=60)[0].split() for p in ps)
    assert len(a) == len(b) == 60 and not {*a} & {*b} and len({*a, *b}) == 120
    assert {e.folder.name for e in find_runs(tmp_path/'o')} == {Path(f).name for f in a + b} and {e.state
            for e in find_runs(tmp_path/'o')} == {'vanished'}


def test_a_clock_that_jumps_back_leaves_times_and_names_in_order(tmp_path, toy, monkeypatch):
    from tl_notebooks.runs import record as records, run
    from tl_notebooks.runs.run import Run
    # time stands still
    monkeypatch.setattr(records.time, 'strftime', lambda *a: '20260101-000000-' if a[0].endswith('-')
                        else '2026-01-01T00:00:00+0000')
    monkeypatch.setattr(records.os, 'urandom', lambda n, it=iter([b'aa', b'aa', b'bb']): next(it) if n == 2
                        else bytes(n))
    a, b = (make_run_folder('toy', {}, Path(toy), str(tmp_path)) for _ in range(2))
    assert a != b
    r = Run(b, {'threads': 2})
    monkeypatch.setattr(run.time, 'time', lambda t=time.time(): t - 1e6)
    with r.phase('work'): pass
    assert r.record['timings']['work'] >= 0


def test_a_notebook_that_never_ends_is_stopped_with_its_kernel(tmp_path):
    nb = notebook(tmp_path/'deaf.ipynb',
                  "import os, signal, time\nsignal.signal(signal.SIGINT, "
                  "signal.SIG_IGN)\n(run.folder/'pid').write_text(str(os.getpid()))", 'while True: time.sleep(1)')
    for seconds in (8, 32, 128):      # a busy machine may not have come to the endless cell
        done = tl('run', nb, '--out', 'r', '--timeout', seconds, cwd=tmp_path, timeout=300)
        folder = Path(done.stdout.strip().splitlines()[-1])
        rec = record(folder)
        assert (done.returncode == 1 and f'stopped after {seconds} seconds' in done.stderr
                and 'Traceback' not in done.stderr)
        assert (rec['status'], rec['error']['type']) == ('failed', 'Timeout')
        if (folder/'pid').exists(): break
    assert rec['error']['cell'] == 'while True: time.sleep(1)'
    assert not psutil.pid_exists(
            int((folder/'pid').read_text())) and (
            folder/'notebook.ipynb').is_file() and not (folder/'.reserve').exists()


def test_a_kernel_that_is_killed_is_named(tmp_path):
    with pytest.raises(RunFailed,
                       match='the kernel died: it was killed, or it ran out of memory; at work was the cell that '
                             'begins with `import os, signal`') as e:
        run_usecase(notebook(tmp_path/'die.ipynb', 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)'), {},
                    str(tmp_path))
    assert record(e.value.folder)['error']['type'] == 'KernelDied' and record(e.value.folder)['status'] == 'failed'


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 400 kB"
    (disk := tmp_path/'disk').mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('only root may mount a small disk')
    yield disk
    subprocess.run(['umount', '-l', disk])


def test_a_full_disk_is_a_failed_run_that_says_so(small_disk, tmp_path):
    with pytest.raises(RunFailed, match='No space left on device') as e:
        run_usecase(notebook(tmp_path/'big.ipynb', "open(run.folder/'big', 'wb').write(bytes(10_000_000))"), {},
                    str(small_disk))
    rec = record(e.value.folder)        # whole, though the disk is full
    assert rec['status'] == 'failed' and 'No space left' in rec[
            'error']['message'] and 'open(run.folder' in rec['error']['cell']


def test_a_disk_that_is_full_or_read_only_at_the_start_is_a_wrong_request(small_disk, toy):
    (small_disk/'big').write_bytes(bytes(390*1024))
    with pytest.raises(InputError, match='cannot be made .No space left on device.*--out DIR'):
        run_usecase(toy, {}, str(small_disk))
    assert not list(small_disk.rglob('record.json')) and not list(small_disk.glob('toy/*'))
    assert subprocess.run(['mount', '-o', 'remount,ro', small_disk]).returncode == 0
    with pytest.raises(InputError, match='cannot be made .Read-only file system'): run_usecase(toy, {}, str(small_disk))
