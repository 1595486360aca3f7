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
    "The test images, read again from disk by another process"
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


def said(capsys, *args):
    "Exit code, output and messages of a command in this process"
    from tl_notebooks.cli import main
    capsys.readouterr()
    code = main([*map(str, args)])
    return code, *capsys.readouterr()


HAM, SPAM = 'we meet for lunch in the garden with the kids', 'you are the winner of a casino prize click now'

@pytest.fixture(scope='module')
def mail_model(tmp_path_factory):
    "A model of a table whose columns nobody could guess: label v1, text v2"
    from tl_notebooks.data.texts import read_texts
    from tl_notebooks.learn.text import text_learner
    from tl_notebooks.models import save  # noqa: F401  gives learners `save_model`
    root = tmp_path_factory.mktemp('mails')
    rows = [(c, f'{w} {i}') for i in range(8) for c,w in (('ham', HAM), ('spam', SPAM))]
    with open(root/'d.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('v1', 'v2', 'from'), *((*r, 'de') for r in rows)])
    learn = text_learner(read_texts(root/'d.csv', 'v2', 'v1', subject='none', sender='none'), max_tokens=32,
                         precision='fp32', cache=False)
    with learn.no_bar(): learn.probe(); learn.calibrate()
    learn.save_model(root/'model')
    return root/'model'


def test_a_model_remembers_the_columns_that_it_was_made_from(mail_model, tmp_path, capsys):
    assert json.loads((mail_model/'manifest.json').read_text())['preprocessing']['columns'] == {
        'text': 'v2', 'label': 'v1', 'subject': 'none', 'sender': 'none'}
    (tmp_path/'new.csv').write_text(f'v2,from,other\n{SPAM},a@b.org,x\n{HAM},c@d.org,y\n')
    code, out, _ = said(capsys, 'predict', mail_model, tmp_path/'new.csv')
    assert code == 0 and [r['label'] for r in csv.DictReader(io.StringIO(out))] == ['spam', 'ham']
    (tmp_path/'other.csv').write_text(f'body,from\n{SPAM},a@b.org\n')
    code, other, _ = said(capsys, 'predict', mail_model, tmp_path/'other.csv')
    first = lambda out: [float(r['spam']) for r in csv.DictReader(io.StringIO(out))][0]
    assert code == 0 and first(other) == pytest.approx(first(out), abs=1e-4) # the sender is in neither
    (tmp_path/'odd.csv').write_text(f'q,r\n{SPAM},1\n')
    code, _, err = said(capsys, 'predict', mail_model, tmp_path/'odd.csv')
    assert code == 2 and '`--text-column q`' in err
    code, odd, _ = said(capsys, 'predict', mail_model, tmp_path/'odd.csv', '--text-column', 'q')
    assert code == 0 and first(odd) == pytest.approx(first(out), abs=1e-4)


def test_an_expansion_reads_the_columns_that_the_model_was_made_from(mail_model, tmp_path):
    from tl_notebooks.expand.classes import read_new
    from tl_notebooks.models.folder import Model
    (tmp_path/'new.csv').write_text('v1,v2,from\n' + ''.join(f'news,the paper of day {i},a@b.org\n' for i in range(6)))
    model = Model(mail_model)
    new = read_new(model, tmp_path/'new.csv', **model.task.options({}))
    assert new.data.classes == ['news'] and sorted(new.train + new.test) == [f'the paper of day {i}' for i in range(6)]


def test_texts_that_cannot_be_read_have_a_row(mail_model, tmp_path, capsys):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'a.txt').write_text(HAM); (tmp_path/'in'/'b.txt').write_bytes(b'\xff\xfe\xff')
    (tmp_path/'in'/'c.pdf').write_bytes(b'%PDF')
    code, out, err = said(capsys, 'predict', mail_model, tmp_path/'in')
    rows = {r['path'][-5:]: r for r in csv.DictReader(io.StringIO(out))}
    assert code == 1 and rows['a.txt']['label'] == 'ham' and '2 of 3 files could not be read' in err
    assert rows['b.txt']['error'] and "suffix '.pdf'" in rows['c.pdf']['error']
    code, out, err = said(capsys, 'predict', mail_model, tmp_path/'in'/'b.txt')
    assert (code, out) == (2, '') and 'b.txt' in err
    code, out, err = said(capsys, 'predict', mail_model, 'my mails/inbox 2024.eml')
    assert (code, out) == (2, '') and 'does not exist' in err


def test_a_model_of_images_of_12_bits_answers_for_such(tmp_path, capsys):
    "The range is in the manifest, and predictions are those of the same images saved with all 16 bits of range"
    from tl_notebooks.data.images import read_images
    from tl_notebooks.learn.vision import image_learner
    from tl_notebooks.models import save  # noqa: F401
    from tl_notebooks.models.folder import Model
    from PIL import Image
    def put(path, seed, bright, bits=12):
        a = np.random.default_rng(seed).integers(0, 4096, (64, 64) if bright else (64, 1)) + np.zeros((64, 64), int)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((a << (bits - 12)).astype('uint16')).save(path)
    for c in (0, 1):
        for i in range(6): put(tmp_path/'d'/'ab'[c]/f'{i}.png', 10*c + i, c)
    data = read_images(tmp_path/'d', progress=False)
    learn = image_learner(data, size=64, augment=False, precision='fp32', cache=False, seed=0)
    with learn.no_bar(): learn.probe()
    learn.save_model(tmp_path/'model')
    model = Model(tmp_path/'model')
    assert model.manifest['preprocessing']['depth'] == 12
    for c in (0, 1): put(tmp_path/f'{c}.png', 90 + c, c)
    assert [p.label for p in model.predict([tmp_path/'0.png', tmp_path/'1.png'])] == ['a', 'b']
    put(tmp_path/'full.png', 90, 0, bits=16)
    code, out, err = said(capsys, 'predict', tmp_path/'model', tmp_path/'full.png')
    assert code == 2 and 'those that this model learned from have 12 bits' in err
