"The code of the guides runs as it stands, and what it makes is what the pages say."
import json
import os
import subprocess
import sys

from conftest import ROOT

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
