"The use case adopt: a checkpoint of timm, two of its classes' images, and a third class."
import json

import tl_notebooks  # noqa: F401  before timm
import timm
import torch
from conftest import page, record, tl
from tl_notebooks.data.samples import PARTS, make_parts
from tl_notebooks.models.save import load_model


def test_a_model_is_taken_in_looked_at_and_grown(tmp_path):
    make_parts(tmp_path/'old', kinds=PARTS[:2], n=8, size=64)
    make_parts(tmp_path/'new', kinds=PARTS[2:3], n=8, size=64)
    torch.manual_seed(0)
    torch.save(timm.create_model('resnet10t', num_classes=2).state_dict(), tmp_path/'own.pth')
    given = dict(source='own.pth', arch='resnet10t', classes=','.join(PARTS[:2]), old='old', size=64, mean='0.5',
                 std='0.5', threads=1, max_old_drop=1)
    args = [x for k,v in given.items() for x in ('-p', f'{k}={v}')]
    done = tl('run', 'adopt', '--data', 'new', '--out', 'runs', *args, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path/done.stdout.splitlines()[-1]
    r, model = record(folder), load_model(folder/'model')
    assert r['status'] == 'ok' and model.classes == [*PARTS[:3]] and r['certificate']['new_classes'] == [PARTS[2]]
    assert r['adopted']['same']['passed'] and r['adopted']['assumed'] == ['resize', 'interpolation']
    assert 'preparation_checked' in r['adopted'] and r['metrics']['accuracy']['n'] == 6
    assert json.loads((folder/'model'/'manifest.json').read_text())['lineage'][0]['adopted_from'] == 'own.pth'
    assert 'What it is → what the model says' in page(folder/'report.html')
