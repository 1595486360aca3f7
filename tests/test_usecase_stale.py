"The use case stale: from the alarm over labels to a larger model, and quiet again."
import csv
import json

import pytest
from conftest import page, record, tl
from tl_notebooks.data.samples import PARTS
from tl_notebooks.models.save import load_model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('stale')
    done = tl('run', 'stale', '--out', 'runs', '-p', 'threads=1', cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return root/done.stdout.splitlines()[-1]


def test_the_fifth_class_is_noticed_labelled_and_learned(folder):
    r, known = record(folder), sorted(PARTS)[:5]
    assert r['status'] == 'ok' and r['certificate']['new_classes'] == known[4:]
    assert load_model(folder/'first').classes == known[:4] and load_model(folder/'model').classes == known
    unknown = {n: i['value'] for n,i in r['unknown'].items()}
    assert unknown['night 2'] > 2*max(unknown['night 1'], unknown['night 3']), unknown
    night = json.loads((folder/'night 2'/'watch.json').read_text())
    with open(folder/'labels.csv', newline='') as f: labels = [l['label'] for l in csv.DictReader(f)]
    assert len(labels) == 30 and labels.count(known[4]) >= 4 and night['groups'][0]['n'] >= 5
    truth = [e.split('/')[-2] for e in night['groups'][0]['examples']]
    assert truth.count(known[4]) > len(truth)/2, truth


def test_its_page_shows_each_step(folder):
    text = page(folder/'report.html')
    assert 'p-values in the second night' in text and 'look alike, and like nothing' in text
    assert (folder/'night 2'/'label.html').is_file() and record(folder)['metrics']['accuracy']['n'] > 50
