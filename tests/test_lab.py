"In JupyterLab a person works on a copy, sees what is being done, and the run folder gets the executed notebook."
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tl_notebooks.runs.lab import working_copy
from tl_notebooks.runs.params import find_usecase

SMALL = dict(data='photos', backbone='resnet18', weights='random', size=64, epochs=0, control='no', engine='torch',
             precision='fp32')


def browser():
    "playwright's driver for the system's Chromium; a test without one is skipped, and says so"
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: no browser is driven')
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
    path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not path: pytest.skip('no Chromium on this machine: JupyterLab is not tried in a browser')
    return playwright, path


@contextlib.contextmanager
def jupyterlab(cwd, *args):
    "`tl lab` in a folder; gives its address"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | dict(JUPYTER_TOKEN='t', JUPYTER_PORT=str(port)) | {
        f'JUPYTER_{k}_DIR': str(cwd/f'.jupyter-{k.lower()}') for k in ('CONFIG', 'RUNTIME')}
    (cwd/'.jupyter-config').mkdir()
    (cwd/'.jupyter-config'/'jupyter_server_config.json').write_text('{"ServerApp": {"allow_root": true}}')
    with open(cwd/'lab.log', 'w') as log:
        p = subprocess.Popen([sys.executable, '-m', 'tl_notebooks', 'lab', *args, '--no-browser'], cwd=cwd, env=env,
                             stdout=log, stderr=log)
    try:
        for _ in range(300):
            assert p.poll() is None, (cwd/'lab.log').read_text()
            with contextlib.suppress(OSError): urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token=t'); break
            time.sleep(.2)
        yield f'http://127.0.0.1:{port}/lab/tree/outputs/notebooks/parts.ipynb?token=t'
    finally: p.send_signal(signal.SIGTERM); p.wait(60)


def with_parameters(notebook, **values):
    "A notebook whose parameters have other defaults, as a person would type them"
    nb = json.loads(Path(notebook).read_text())
    cell = next(c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags', []))
    lines = ''.join(cell['source']).splitlines()
    for name,value in values.items():
        at = next(i for i,line in enumerate(lines) if line.startswith(f'{name}:'))
        lines[at] = f'{name} = {value!r}'
    cell['source'] = '\n'.join(lines)
    Path(notebook).write_text(json.dumps(nb))


@pytest.fixture
def home(tmp_path):
    for k,kind in enumerate(('bolt', 'gear', 'nut')):
        (tmp_path/'photos'/kind).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng([k, i]).integers(0, 255, (40, 40, 3), dtype=np.uint8)//(k + 1)
            Image.fromarray(pixels).save(tmp_path/'photos'/kind/f'{i}.png')
    return tmp_path


def outputs_of(notebook): return [o for c in json.loads(notebook.read_text())['cells'] for o in c.get('outputs', ())]


@pytest.mark.skipif(not os.environ.get('TL_TEST_JUPYTERLAB'), reason='drives JupyterLab in a browser, which takes '
                    'minutes on a busy machine: set TL_TEST_JUPYTERLAB=1')
def test_a_run_in_jupyterlab(home):
    playwright, chromium = browser()
    pristine, notebook = find_usecase('parts').read_bytes(), home/'outputs'/'notebooks'/'parts.ipynb'
    working_copy('parts', notebook.parent); with_parameters(notebook, **SMALL)
    with jupyterlab(home, 'parts') as url, playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=chromium, args=['--no-sandbox']).new_page(
            viewport=dict(width=1400, height=1000))
        page.goto(url)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status=idle]', timeout=120_000)
        page.wait_for_selector('text=/ipykernel.*Idle/', timeout=120_000) # before, Run All is lost without a word
        page.click('text=Run >> nth=0'); page.click('li[data-command="runmenu:run-all"]')
        status, quiet = "document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status", 0
        for _ in range(200):
            time.sleep(2)
            began = (home/'outputs'/'parts').is_dir()
            quiet = quiet + 1 if began and page.evaluate(status) == 'idle' else 0
            if quiet == 2: break
        assert not page.query_selector('[data-mime-type="application/vnd.jupyter.stderr"]')
        page.keyboard.press('Control+s')
        folder, = (home/'outputs'/'parts').iterdir()
        executed = folder/'notebook.ipynb'
        for _ in range(150):
            if executed.exists(): break
            time.sleep(.2)
    assert find_usecase('parts').read_bytes() == pristine
    texts = [str(o) for o in outputs_of(executed)]
    assert '](./report.html)' in texts[-1] and not any("'name': 'stderr'" in t for t in texts)
    assert json.loads((folder/'record.json').read_text())['params']['data'] == 'photos'
    assert not any('\\r' in t for t in texts)
