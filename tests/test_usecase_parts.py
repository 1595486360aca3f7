"""The parts use case, through a real papermill kernel: what a run leaves, that it repeats, and what happens when it
fails."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import QUICK, ROOT, WHOLE, need, record, tl
from safetensors import safe_open

PARTS = ROOT/'nbs'/'usecases'/'parts.ipynb'


def test_run_folder_holds_what_the_design_promises(first_run):
    done, folder = first_run
    assert folder.parent.name == 'parts'
    rec = record(folder)
    assert set(rec) >= {'schema', 'usecase', 'run_id', 'status', 'params', 'seed', 'data', 'model', 'metrics',
                        'control', 'timings',
                        'environment', 'notebook_sha256', 'code_version'}
    assert (rec['status'], rec['usecase'], rec['run_id'], rec['seed']) == ('ok', 'parts', folder.name, 5)
    assert next(iter(rec['metrics'])) == 'accuracy'
    for m in [*rec['metrics'].values(), *rec['control'].values()]:
        assert 0 <= m['low'] <= m['value'] <= m['high'] <= 1 and m['n'] > 0
    assert rec['control']['accuracy']['n'] == rec['metrics']['accuracy']['n']
    assert rec['params']['epochs'] == 1 and rec['params']['valid_pct'] == .2  # defaults are there too
    assert sum(rec['data']['counts']['train'].values()) > 0 and len(rec['data']['fingerprint']) == 64
    assert len(rec['model']['weights_sha256']) == 64 and rec['model']['parent'] is None
    pages = {'review.html'} if 'see review.html' in (folder/'notebook.ipynb').read_text() else set() # of mistakes
    assert {p.name for p in folder.iterdir()} == pages | {'notebook.ipynb', 'record.json', 'report.html', 'model',
                                                          'figures', 'data.csv', 'predictions.csv'}
    assert {p.suffix for p in (folder/'figures').iterdir()} == {'.png'}


def test_notebook_is_executed_and_without_progress_bars(first_run):
    nb = nbformat.read(first_run[1]/'notebook.ipynb', 4)
    code = [c for c in nb.cells if c.cell_type == 'code']
    assert all(c.execution_count for c in code) and any('injected-parameters' in c.metadata.get('tags', [])
                                                        for c in code)
    assert any('image/png' in o.get('data', {}) for c in code for o in c.outputs)
    assert not any('\r' in o.get('text', '') for c in code for o in c.outputs)


def test_report_is_one_self_contained_page(first_run):
    folder = first_run[1]
    page, rec = (folder/'report.html').read_text(), record(folder)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)      # nothing is loaded from elsewhere
    assert page.count('data:image/png;base64') == len(list((folder/'figures').iterdir()))
    assert (f"{100*rec['metrics']['accuracy']['value']:.1f} %" in page
            and f"{100*rec['control']['accuracy']['low']:.1f} %" in page)
    assert 'tl run parts --data' in page and '--seed 5' in page and '-p size=96' in page


def test_same_command_gives_the_same_bits_and_another_seed_does_not(first_run, pictures, tmp_path):
    _, folder = first_run
    # nothing is looked up: no activations, no control
    again = Path(tl('run', 'parts', '--data', pictures, '--out', tmp_path, '--seed', 5, *WHOLE, cwd=tmp_path,
                    env={'TL_NOTEBOOKS_CACHE': str(tmp_path/'cache')}).stdout.strip())
    other = Path(tl('run', 'parts', '--data', pictures, '--out', tmp_path, '--seed', 6, *QUICK, '-p', 'control=false',
                    cwd=tmp_path).stdout.strip())
    a, b, c = record(folder), record(again), record(other)
    assert (a['metrics'], a['control'], a['probe']['alpha']) == (b['metrics'], b['control'], b['probe']['alpha'])
    assert (folder/'model'/'weights.safetensors').read_bytes() == (again/'model'/'weights.safetensors').read_bytes()
    assert (folder/'model'/'weights.safetensors').read_bytes() != (other/'model'/'weights.safetensors').read_bytes()
    assert a['data']['fingerprint'] == b['data']['fingerprint'] != c['data']['fingerprint']


def test_plain_papermill(pictures, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'papermill', PARTS, 'out.ipynb', '-p', 'epochs', '0', '-p', 'data',
                           str(pictures), '-p', 'size', '64',
                           '-p', 'control', 'False'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    folder, = (tmp_path/'outputs'/'parts').iterdir()
    assert record(folder)[
            'status'] == 'ok' and record(folder)['params']['epochs'] == 0 and not record(folder)['control']
    assert (folder/'report.html').is_file() and (folder/'model'/'manifest.json').is_file()


def test_plain_papermill_notices_a_typo_that_papermill_lets_pass(pictures, tmp_path):
    done = subprocess.run([sys.executable, '-m', 'papermill', PARTS, 'out.ipynb', '-p', 'epoch', '0', '-p', 'data',
                           str(pictures)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "Did you mean 'epochs'?" in done.stderr
    assert not (tmp_path/'outputs').exists()


def broken_copy(folder, cell):
    "The parts notebook with one more cell after the data was read and the network loaded"
    nb = nbformat.read(PARTS, 4)
    at = next(i for i, c in enumerate(nb.cells) if 'learn.probe()' in c.source and c.cell_type == 'code')
    nb.cells.insert(at, nbformat.v4.new_code_cell(cell))
    nbformat.write(nb, folder/'broken.ipynb')
    return folder/'broken.ipynb'


def test_failing_cell_leaves_notebook_record_and_exit_1(pictures, tmp_path):
    done = tl('run', broken_copy(tmp_path, 'raise ValueError("no more disk")'), '--data', pictures, '--out', 'runs',
              *QUICK, cwd=tmp_path)
    folder = Path(done.stdout.strip().splitlines()[-1])
    rec = record(folder)
    assert done.returncode == 1 and 'no more disk' in done.stderr and 'Traceback' not in done.stderr
    assert rec['status'] == 'failed' and rec['error']['type'] == 'ValueError' and 'no more disk' in rec['error']['cell']
    assert rec['data']['fingerprint'] and rec['timings']['reading data'] >= 0      # how far it came
    assert 'no more disk' in (folder/'notebook.ipynb').read_text()


def test_a_kernel_that_dies_is_a_failed_run(pictures, tmp_path):
    done = tl('run', broken_copy(tmp_path, 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)'), '--data',
              pictures, '--out', 'runs', *QUICK, cwd=tmp_path)
    assert done.returncode == 1 and record(done.stdout.strip().splitlines()[-1])['status'] == 'failed'


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_a_record_that_says_so(pictures, tmp_path, stop):
    notebook = broken_copy(tmp_path, 'import pathlib, time\npathlib.Path("here").touch()\ntime.sleep(60)')
    # a shell's background job ignores SIGINT, and its children inherit that
    p = subprocess.Popen([sys.executable, '-m', 'tl_notebooks', 'run', str(notebook), '--data', str(pictures), '--out',
                          'runs', *QUICK],
                         cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for _ in range(600):
        if (tmp_path/'here').exists() or p.poll() is not None: break
        time.sleep(.1)
    os.killpg(p.pid, stop) # as the terminal does
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130, err[-2000:]
    assert record(out.strip().splitlines()[-1])['status'] == 'interrupted' and 'Traceback' not in err


def test_bad_data_found_by_the_notebook_is_a_wrong_request_and_leaves_nothing(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path/'parts')
    bad = next((tmp_path/'parts').glob('*/*_0001.*')); bad.write_bytes(bad.read_bytes()[:700])
    other = next((tmp_path/'parts').glob('*/*_0002.*')); other.write_bytes(b'')
    done = tl('run', 'parts', '--data', 'parts', '--out', 'runs', *QUICK, cwd=tmp_path)
    assert (done.returncode == 2 and bad.name in done.stderr and other.name in done.stderr
            and 'on_bad=skip' in done.stderr)
    assert not list(tmp_path.glob('runs/**/*')) and 'Traceback' not in done.stderr
    done = tl('run', 'parts', '--data', 'parts', '--out', 'runs', *QUICK, '-p', 'on_bad=skip', '-p', 'epochs=0', '-p',
              'control=no', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {Path(s['path']).name for s in record(done.stdout.strip())['data']['skipped']} == {bad.name, other.name}


def test_electronic_components_small_and_unsplit(tmp_path):
    done = tl('run', 'parts', '--data', need('electronic_components'), '--out', tmp_path, '-p', 'control=false', '-p',
              'epochs=0', cwd=tmp_path)
    m = record(done.stdout.strip())['metrics']['accuracy']
    assert m['value'] >= .9 and m['high'] - m['low'] > .03, m


def test_statistics_in_the_model_folder_solve_to_the_probed_head(pictures, tmp_path):
    done = tl('run', 'parts', '--data', pictures, '--out', tmp_path, *QUICK, '-p', 'epochs=0', '-p', 'control=false',
              cwd=tmp_path)
    folder = Path(done.stdout.strip())
    with safe_open(folder/'model'/'statistics.safetensors', 'pt') as f: names = set(f.keys())
    assert names
    from tl_notebooks.models.folder import read_manifest
    assert read_manifest(folder)['files'].keys() == {'weights.safetensors', 'statistics.safetensors',
                                                     'learned.safetensors', 'heldout.safetensors'}
