"The code of the guides runs as it stands, and what it makes is what the pages say."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def cells_of(guide):
    "The prose of a guide"
    cells = json.loads((ROOT/'nbs'/'guides'/f'{guide}.ipynb').read_text())['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


EXTEND = ROOT/'nbs'/'guides'/'extend.ipynb'


def test_a_backbone_a_task_and_a_use_case_are_added_as_the_guide_says(tmp_path):
    cells = [''.join(c['source']) for c in json.loads(EXTEND.read_text())['cells'] if c['cell_type'] == 'code']
    (tmp_path/'page.py').write_text('\n'.join(cells) + """
from sklearn.linear_model import RidgeClassifierCV
x = {s: model.features(sounds.files(s)).numpy() for s in ('train', 'test')}
theirs = RidgeClassifierCV(np.logspace(-2, 4, 13)).fit(x['train'], sounds.labels('train'))
print('scikit-learn', theirs.score(x['test'], sounds.labels('test')), found.metrics['accuracy'].value)
""")
    done = subprocess.run([sys.executable, 'page.py'], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = map(float, done.stdout.splitlines()[-1].split()[1:])
    assert ours >= theirs - .1
    certificate = json.loads((tmp_path/'larger listener'/'certificate.json').read_text())
    assert certificate['new_classes'] == ['noise'] and certificate['body_bit_identical']
    assert json.loads((tmp_path/'listener'/'manifest.json').read_text())['task'] == 'sound_classification'


def test_models_of_every_framework_are_brought_as_the_guide_says(tmp_path):
    "Each is trained by its framework alone; here the answers are compared once more, by the framework"
    guide = ROOT/'nbs'/'guides'/'bring_your_own.ipynb'
    cells = [''.join(c['source']) for c in json.loads(guide.read_text())['cells'] if c['cell_type'] == 'code']
    (tmp_path/'page.py').write_text('\n'.join(cells) + """
from transformers import pipeline
pipe = pipeline('text-classification', model='from_bert', top_k=None, device='cpu')
ours = [*load_model('my_bert').predict(texts)]
for text,p in zip(texts, ours):
    for r in pipe([text])[0]: assert abs(p.probabilities[r['label']] - r['score']) < 1e-5
""")
    done = subprocess.run([sys.executable, 'page.py'], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path/'never').exists() and 'They would fit timm/resnet10t' in done.stdout
    for name in ('timm', 'checkpoint', 'torchvision', 'vit', 'bert', 'fastai', 'setfit', 'onnx'):
        same = json.loads((tmp_path/f'my_{name}'/'manifest.json').read_text())['adopted']['same']
        assert same['passed'] and same['scores'] <= 1e-5*max(1, same['limit']/1e-5), name


def test_a_detector_that_has_seen_streets_works_as_the_guide_says(tmp_path):
    "Its commands as they stand, with a file of a few layers, in which colours are kinds, and a film of squares"
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed')
    import torch
    from test_expand_boxes import drawn
    commands = re.findall(r'```sh\n(.*?)```', cells_of('streets'), re.S)
    assert len(commands) == 5
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8, 8), torch.nn.ReLU(), last := torch.nn.Conv2d(16, 80 + 32, 1))
    torch.nn.init.normal_(last.weight, std=.02)
    torch.onnx.export(net.eval(), (torch.zeros(1, 3, 96, 96),), tmp_path/'DETECTOR.onnx', dynamo=False,
                      dynamic_axes={'input': {0: 'n'}}, input_names=['input'])
    for name,(colour,called) in {'JUNCTION': ('red', 'car'), 'MORE': ('green', 'tram')}.items():
        labels = drawn(tmp_path/name, 24, 0, [colour])/'labels.json'
        labels.write_text(labels.read_text().replace(f'"{colour}"', f'"{called}"'))
    film = cv2.VideoWriter(str(tmp_path/'FILM.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 5, (96, 96))
    for f in sorted((tmp_path/'JUNCTION').glob('*.png'))[:6]: film.write(cv2.imread(str(f)))
    film.release()
    (tmp_path/'tl').write_text(f'#!/bin/sh\nexec {sys.executable} -m tl_notebooks "$@"\n'); (tmp_path/'tl').chmod(0o755)
    script = '\n'.join(c for k,c in enumerate(commands) if k != 1) # its run does no more than the one after it
    script = script.replace(',pedestrian:person', '').replace('wanted=0.8', 'wanted=0.8 -p minutes=.1').replace(
        '--mode keep-scores', '--mode keep-scores --epochs 2')
    done = subprocess.run(['bash', '-euc', script + '\necho "RUN $RUN"'], cwd=tmp_path, capture_output=True, text=True,
                          timeout=900, env={**os.environ, 'PYTHONPATH': str(ROOT),
                                            'PATH': f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr[-3000:]
    run = Path(done.stdout.splitlines()[-1].removeprefix('RUN '))
    record = json.loads((tmp_path/run/'record.json').read_text())
    assert record['thresholds'].keys() == record['rates'].keys() == {'car'}
    assert record['params']['precision_wanted'] == .8
    assert {'before', 'mistakes', 'curves', 'map50'} <= {p.stem for p in (tmp_path/run/'figures').iterdir()}
    assert {p.name for p in (tmp_path/'counted').iterdir()} == {'counts.csv', 'FILM.png'}
    assert (tmp_path/'seen'/'FILM.mp4').is_file()
    certificate = json.loads((tmp_path/'larger'/'certificate.json').read_text())
    assert certificate['new_classes'] == ['tram'] and certificate['body_bit_identical']
