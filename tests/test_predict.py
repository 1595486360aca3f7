"A model folder gives outside the run what it gave inside, and a damaged one is refused by name."
import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import record, tl
from safetensors.torch import load_file, save_file


def test_predictions_have_the_accuracy_that_the_record_states(first_run, pictures):
    "The test pictures, read again from disk by another process"
    from tl_notebooks.data.images import read_images
    folder = first_run[1]
    rec = record(folder)
    data = read_images(pictures, valid_pct=rec['params']['valid_pct'], test_pct=rec['params']['test_pct'],
                       seed=rec['seed'], progress=False)
    assert data.fingerprint == rec['data']['fingerprint']
    done = tl('predict', folder/'model', *data.files('test'), cwd=folder)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0 and len(rows) == rec['metrics']['accuracy']['n']
    right = np.mean([r['label'] == l for r, l in zip(rows, data.subset('test').label)])
    assert right == pytest.approx(rec['metrics']['accuracy']['value'])
    for r in rows:
        probs = {c: float(r[c]) for c in data.classes}
        assert sum(probs.values()) == pytest.approx(1, abs=1e-4) and max(probs, key=probs.get) == r['label']
        assert probs[r['label']] == pytest.approx(float(r['probability']))


def test_json_and_csv_say_the_same(first_run, pictures):
    folder = first_run[1]
    some = sorted(pictures.glob('*/*_0003.*'))
    js = json.loads(tl('predict', folder, *some, '--format', 'json', cwd=folder).stdout.splitlines()[-1])
    rows = list(csv.DictReader(io.StringIO(tl('predict', folder, *some, '--bs', '3', cwd=folder).stdout)))
    assert [(j['path'], j['label']) for j in js] == [(r['path'], r['label']) for r in rows]
    assert [j['probability'] for j in js] == pytest.approx([float(r['probability']) for r in rows], abs=1e-3)


def flip(path, at): data = bytearray(path.read_bytes()); data[at] ^= 4; path.write_bytes(data)
def edit(m, **kw): p = m/'manifest.json'; p.write_text(json.dumps(json.loads(p.read_text()) | kw, indent=1))
def fewer_classes(m): edit(m, classes=json.loads((m/'manifest.json').read_text())['classes'][:-1])
def other_file(name):
    return lambda m: edit(m, files={name: {'sha256': '0'*64}, **json.loads((m/'manifest.json').read_text())['files']})
def wider_head(m):
    "Weights and manifest that fit neither each other nor their hashes"
    w = load_file(m/'weights.safetensors'); w['head.1.bias'] = w['head.1.bias'].repeat(2)
    save_file(w, m/'weights.safetensors')


DAMAGE = {
    'byte in the weights': (lambda m: flip(m/'weights.safetensors', 40_000), 'weights.safetensors` was changed'),
    'byte in the weights header': (lambda m: flip(m/'weights.safetensors', 30), 'weights.safetensors` was changed'),
    'weights cut short': (lambda m: (m/'weights.safetensors').write_bytes((m/'weights.safetensors').read_bytes()[:-9]),
                          'weights.safetensors` was changed'),
    'weights missing': (lambda m: (m/'weights.safetensors').unlink(), 'weights.safetensors` is missing'),
    'weights replaced': (wider_head, 'weights.safetensors` was changed'),
    'manifest missing': (lambda m: (m/'manifest.json').unlink(), 'manifest.json` does not exist'),
    'manifest cut short': (lambda m: (m/'manifest.json').write_bytes((m/'manifest.json').read_bytes()[:300]),
                           'manifest.json` is not valid JSON'),
    'byte in the manifest': (
        lambda m: (m/'manifest.json').write_text((m/'manifest.json').read_text().replace('"squish"', '"crop"')),
        'manifest.json` was changed'),
    'one class fewer': (fewer_classes, 'names 3 classes, but the head'),
    'class twice': (lambda m: edit(m, classes=['a', 'a', 'b', 'c']), '`classes` must be different names'),
    'points up': (other_file('../weights.safetensors'), 'points to `../weights.safetensors`'),
    'points to the root': (other_file('/etc/passwd'), 'points to `/etc/passwd`'),
    'a pickle': (other_file('model.pkl'), 'points to `model.pkl`'),
    'schema of tomorrow': (lambda m: edit(m, schema='tl_notebooks/model/9'), "`schema` is 'tl_notebooks/model/9'"),
    'field missing': (lambda m: edit(m, preprocessing=None), '`preprocessing` is missing'),
    'unknown task': (lambda m: edit(m, task='translation'), 'manifest.json'),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_damaged_model_folder_is_refused_by_name(case, first_run, tmp_path, capsys):
    from tl_notebooks.cli import main
    damage, says = DAMAGE[case]
    model = Path(shutil.copytree(first_run[1]/'model', tmp_path/'model'))
    damage(model)
    assert main(['predict', str(model), str(first_run[1]/'figures')]) == 2
    out, err = capsys.readouterr()
    assert out == '' and says in err, err


def test_an_untouched_copy_is_accepted_elsewhere(first_run, tmp_path):
    "The damage tests can fail: the same call on an undamaged copy works"
    from tl_notebooks.models.folder import Model
    assert len(Model(shutil.copytree(first_run[1]/'model', tmp_path/'elsewhere')).classes) == 4
