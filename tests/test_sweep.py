"Many runs over many workers: the same bits on any number of them, and no death or interruption loses or repeats a run."
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import killed
import pytest
from conftest import record, tl

PARAMETERS = ("lr: float = 0.1  # {0..1}\nkind: str = 'a' # {a|b}\nseed: int = 0 # {0..99}\nthreads: int = 0 # "
              "{0..64}\nsleep: float = 0.0 # {0..60}")
WORK = """import time, torch
from pathlib import Path
here = Path('/proc/self/environ')
run.record['malloc'] = [v for v in here.read_text().split('\\0') if v.startswith('MALLOC_')] if here.exists() else None
time.sleep(p.sleep)
if p.lr > .4: raise ArithmeticError('the loss is not finite')
x = torch.randn(300, 300)
v = float(torch.sigmoid((x @ x.T @ x).mean()*p.lr + (p.kind == 'a')))"""


@pytest.fixture(scope='module')
def usecase(tmp_path_factory):
    return killed.small_usecase(tmp_path_factory.mktemp('usecase')/'toy.ipynb', PARAMETERS, WORK)


def state(folder): return json.loads((Path(folder)/'sweep.json').read_text())

def values(folder):
    "Parameters → every digit of the metric, from the runs' own records"
    return {json.dumps(r['params'], sort_keys=True): record(Path(folder).parents[1]/'toy'/r['run'])['metrics']
            for r in state(folder)['runs'].values() if r['status'] == 'ok'}


@pytest.fixture(scope='module')
def two_workers(usecase, tmp_path_factory):
    out = tmp_path_factory.mktemp('two')
    return tl('sweep', usecase, '-p', 'lr=0.1,0.2,0.5', '-p', 'kind=a', '--seeds', 2, '--workers', 2, '--out', out,
              cwd=out)


def test_a_failing_run_stops_no_other(two_workers):
    assert two_workers.returncode == 1, two_workers.stderr[-3000:]
    folder = Path(two_workers.stdout.splitlines()[-1])
    s = state(folder)
    assert [r['status'] for r in s['runs'].values()] == ['ok', 'ok', 'failed']*2
    table = [*csv.DictReader(open(folder/'table.csv'))]
    assert [r['lr'] for r in table] == ['0.2', '0.1', '0.5'] or [r['lr'] for r in table] == ['0.1', '0.2', '0.5']
    assert 'the loss is not finite' in table[-1]['error'] and [r['seeds'] for r in table] == ['2', '2', '0']
    scores = [[m['accuracy']['value'] for k,m in values(folder).items()
               if json.loads(k).get('lr', .1) == float(r['lr'])] for r in table[:2]]
    found = [float(r['test accuracy']) for r in table[:2]]      # this use case keeps no figures on validation data
    assert found == pytest.approx([sum(v)/2 for v in scores], rel=1e-12) and found[0] >= found[1]
    page = (folder/'sweep.html').read_text()
    links = [l.split('"')[0] for l in page.split('href="')[1:]]
    # those of the runs that ended well have a report
    assert len(links) == 6 and sum((folder/l).is_file() for l in links) == 4
    assert (folder/'sweep.png').stat().st_size > 5000 and '6 runs' in two_workers.stderr


def malloc(folder): return [record(f.parent)['malloc'] for f in Path(folder).glob('toy/*/record.json')]


@pytest.mark.skipif(not Path('/proc/self/environ').exists(),
                    reason='without /proc nobody knows what a process began with')
def test_memory_is_a_runs_own_matter(two_workers, usecase, tmp_path):
    """Dask's workers give what is free back at once, which takes half of a network's time; what somebody has chosen
    goes through"""
    assert malloc(Path(two_workers.stdout.splitlines()[-1]).parents[1]) == [[]]*6
    done = tl('sweep', usecase, '-p', 'lr=0.1', '--out', tmp_path, cwd=tmp_path,
              env={'MALLOC_TRIM_THRESHOLD_': '300000'})
    assert done.returncode == 0 and malloc(tmp_path) == [['MALLOC_TRIM_THRESHOLD_=300000']]


def test_workers_do_not_change_a_bit(two_workers, usecase, tmp_path):
    "Against one worker, and against plain `tl run`"
    one = tl('sweep', usecase, '-p', 'lr=0.1,0.2', '--seeds', 1, '--workers', 1, '--out', tmp_path, cwd=tmp_path)
    assert one.returncode == 0, one.stderr[-3000:]
    a, b = values(two_workers.stdout.splitlines()[-1]), values(one.stdout.splitlines()[-1])
    assert len(b) == 2 and all(a[k] == b[k] for k in b)
    run = tl('run', usecase, '-p', 'lr=0.2', '-p', 'threads=1', '--out', tmp_path, cwd=tmp_path)
    assert record(run.stdout.strip())['metrics'] == b[json.dumps({'lr': .2, 'threads': 1})]


def test_a_scheduler_of_ones_own_and_two_runs_at_once_in_one_worker(two_workers, usecase, tmp_path):
    start = lambda module, *args: subprocess.Popen([sys.executable, '-m', f'distributed.cli.{module}', *args],
                                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    address = f'tcp://127.0.0.1:{free_port()}'
    nobody = tl('sweep', usecase, '-p', 'lr=0.1', '--scheduler', address, '--out', tmp_path, cwd=tmp_path,
                env={'DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT': '1s'})
    assert nobody.returncode == 2 and f'no scheduler answers at `{address}`' in nobody.stderr
    both = [start('dask_scheduler', '--host', '127.0.0.1', '--port', address.rpartition(':')[2], '--no-dashboard'),
            start('dask_worker', address, '--host', '127.0.0.1', '--nthreads', '2', '--no-dashboard', '--no-nanny')]
    try: done = tl('sweep', usecase, '-p', 'lr=0.1,0.2', '--scheduler', address, '--out', tmp_path, cwd=tmp_path)
    finally:
        for p in reversed(both): p.terminate(); p.wait(20)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = values(two_workers.stdout.splitlines()[-1]), values(done.stdout.splitlines()[-1])
    assert len(b) == 2 and all(a[k] == b[k] for k in b)
    starts = [os.path.getctime(f) for f in (tmp_path/'toy').glob('*/figures')]
    # at once
    assert max(starts) - min(starts) < min(r['seconds'] for r in state(done.stdout.splitlines()[-1])['runs'].values())


def free_port():
    import socket
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def test_what_is_wrong_is_said_at_once_and_nothing_is_written(usecase, tmp_path):
    rows = tmp_path/'rows.csv'; rows.write_text('lr,kind\n0.1,a\n2,c\n')
    out = tmp_path/'out'
    done = tl('sweep', usecase, '--list', rows, '-p', 'seed=1,x', '-p', 'thread=2', '-p', 'sleep=0..1', '--out', out,
              cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, '') and not out.exists()
    for says in ("parameter `seed`: found 'x'", "Did you mean 'threads'?", 'parameter `sleep`: a range has no end'):
        assert says in done.stderr
    done = tl('sweep', usecase, '--list', rows, '--out', out, cwd=tmp_path)
    for says in ("row 2 of the list: parameter `lr`: found '2'", "row 2 of the list: parameter `kind`: found 'c'"):
        assert says in done.stderr
    assert done.returncode == 2 and not out.exists()


def test_without_dask_the_way_out_is_named(usecase, tmp_path):
    code = (f"import sys; sys.modules['distributed'] = None; from tl_notebooks.cli import main; "
            f"sys.exit(main(['sweep', {str(usecase)!r}, '--out', {str(tmp_path/'o')!r}]))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and f'{sys.executable} -m pip install' in done.stderr and not (tmp_path/'o').exists()


def wait_for(what, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what(): return found
        time.sleep(.1)
    raise AssertionError('did not happen in time')


def test_a_killed_worker_and_an_interrupted_sweep_lose_nothing_and_repeat_nothing(usecase, tmp_path):
    command = [sys.executable, '-m', 'tl_notebooks', 'sweep', str(usecase), '-p', 'lr=0.1,0.15,0.2,0.25,0.3', '-p',
               'sleep=4', '--workers', '2', '--out', str(tmp_path)]
    # a shell's background job ignores SIGINT, and its children inherit that
    p = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    records = lambda: [json.loads(f.read_text()) for f in (tmp_path/'toy').glob('*/record.json')]
    running = lambda: [r for r in records() if r['status'] == 'running' and r['environment']]
    wait_for(lambda: len(running()) == 2)
    busy = running()[0]['run_id']
    below = psutil.Process(p.pid).children(recursive=True)
    victim = next(c.parent() for c in below if 'run' in c.cmdline()[1:4] and c.environ().get('TL_RUN_ID') == busy)
    victim.kill()                                                        # a worker in the middle of a run
    # somebody is at it
    assert tl('sweep', '--resume', next((tmp_path/'sweeps').iterdir()), cwd=tmp_path).returncode == 2
    other, went_on = tmp_path/'toy'/f'{busy}.2', lambda: 'resumed' in record(tmp_path/'toy'/busy)
    wait_for(lambda: other.exists() or went_on())                        # another takes its run
    wait_for(lambda: sum(r['status'] == 'ok' for r in records()) >= 2 and running())
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    folder = Path(out.splitlines()[-1])
    assert p.returncode == 130 and folder.parent == tmp_path/'sweeps', err[-3000:]
    assert wait_for(lambda: not killed.processes_of(tmp_path), 20) # no kernel goes on
    assert not any(r['status'] == 'running' for r in [*records(), *state(folder)['runs'].values()])
    done = {r['run'] for r in state(folder)['runs'].values() if r['status'] == 'ok'}
    assert 2 <= len(done) < 5 and (went_on() or record(tmp_path/'toy'/busy)['error']['type'] == 'WorkerLost')

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and Path(
            again.stdout.splitlines(
            )[-1]) == folder and f'{len(done)} of 5 runs are done already' in again.stderr, again.stderr[-3000:]
    s = state(folder)
    assert {r['status'] for r in s['runs'].values()} == {'ok'} and done < {r['run'] for r in s['runs'].values()}
    assert sum(r['status'] == 'ok' for r in records()) == 5              # each once
    assert len({json.dumps(m) for m in values(folder).values()}) == 5


def test_sweeps_killed_at_random_moments_end_with_the_same_bits(tmp_path):
    whole, ends, kills, _ = killed.kill_sweeps(tmp_path, 3, seed=2)
    assert len({weights for _,weights in whole.values()}) == len(whole) == 4 and sum(kills.values()) == 3
    assert all(e == whole for e in ends)
