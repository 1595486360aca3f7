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
