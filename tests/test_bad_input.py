"What a user can get wrong on the command line: one message that names the place, exit 2, and nothing written."
import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import record, refusals, tl

WRONG = {
    'unknown command': (['trian', 'parts'], 'invalid choice'),
    'no command': ([], 'required'),
    'unknown use case': (['run', 'part'], "use case `part` does not exist. Did you mean 'parts'?"),
    'use case far from any': (['run', 'zzz'], 'Accepted: '),
    'notebook that is not one': (['run', 'notes.ipynb'], 'cannot be read as a notebook'),
    'notebook without parameters': (['run', 'plain.ipynb'], 'has 0 cells tagged `parameters`'),
    'unknown parameter': (['run', 'parts', '-p', 'epoch=3'],
                          "parameter `epoch` does not exist. Did you mean 'epochs'?"),
    'two wrong at once': (['run', 'parts', '-p', 'epoch=3', '-p', 'bs=0'], 'parameter `bs`: found '),
    'parameter without value': (['run', 'parts', '-p', 'epochs'], 'accepted: name=value'),
    'parameter without name': (['run', 'parts', '-p', '=3'], 'accepted: name=value'),
    'parameter twice': (['run', 'parts', '-p', 'bs=3', '-p', 'bs=4'], '`bs` is given twice'.replace('`bs`', '-p `bs`')),
    'word for a number': (['run', 'parts', '-p', 'epochs=five'],
                          "found 'five'; accepted: a whole number from 0 to 1000"),
    'fraction for a whole number': (['run', 'parts', '-p', 'epochs=2.5'], "found '2.5'; accepted: a whole number"),
    'negative': (['run', 'parts', '-p', 'epochs=-1'], "found '-1'; accepted: a whole number from 0"),
    'not a number': (['run', 'parts', '-p', 'lr=nan'], "found 'nan'; accepted: a number from 0 to 1"),
    'infinite': (['run', 'parts', '-p', 'lr=inf'], "found 'inf'"),
    'empty number': (['run', 'parts', '-p', 'bs='], "found ''"),
    'out of range': (['run', 'parts', '-p', 'test_pct=0.9'], "found '0.9'; accepted: a number from 0.05 to 0.5"),
    'not a choice': (['run', 'parts', '-p', 'resize=stretch'], "accepted: 'squish' or 'crop' or 'pad'"),
    'not a truth value': (['run', 'parts', '-p', 'augment=maybe'], 'accepted: true or false'),
    'seed not a number': (['run', 'parts', '--seed', 'x'], "parameter `seed`: found 'x'"),
    'seed too large': (['run', 'parts', '--seed', '4294967296'], 'parameter `seed`'),
    'seed twice': (['run', 'parts', '--seed', '1', '-p', 'seed=1'], '`seed` is given twice'),
    'data missing': (['run', 'parts', '--data', 'pictuers'],
                     "data `pictuers` does not exist. Did you mean 'pictures'?"),
    'data far away': (['run', 'parts', '--data', 'no/such/place'], 'data `no/such/place` does not exist'),
    'out is a file': (['run', 'parts', '--out', 'a-file'], 'run folder below `a-file'),
    'predict without input': (['predict', 'model'], 'required: INPUT'),
    'model missing': (['predict', 'modle', 'x.png'], 'is not a folder'),
    'model is a file': (['predict', 'a-file', 'x.png'], 'model `a-file` is not a folder'),
    'model folder without manifest': (['predict', 'pictures', 'x.png'], 'manifest.json` does not exist'),
    'half a value in a sweep': (['sweep', 'reviews', '-p', 'names=0:negative,1:positive'],
                                "if it is one, -p 'names=\"0:negative,1:positive\"'"),
    'unknown format': (['predict', 'm', 'x.png', '--format', 'xml'], "invalid choice: 'xml'"),
}


@pytest.fixture(scope='module')
def desk(tmp_path_factory):
    "A user's folder"
    d = tmp_path_factory.mktemp('desk')
    (d/'pictures'/'a').mkdir(parents=True)
    (d/'a-file').write_text('x'); (d/'notes.ipynb').write_text('not json')
    (d/'plain.ipynb').write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    return d


def test_a_mistyped_model_is_heard_of_before_torch(desk):
    code = ("import sys; from tl_notebooks.cli import main; "
            "codes = [main(a.split()) for a in ('predict modle x.png', 'expand modle --data d', "
            "'watch modle --data d', 'export modle --out o', 'merge modle other --out o')]; "
            "print(codes, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, '-c', code], cwd=desk, capture_output=True, text=True)
    assert done.stdout.strip() == '[2, 2, 2, 2, 2] False', done.stdout + done.stderr


@pytest.mark.parametrize('case', WRONG)
def test_wrong_request(case, desk, monkeypatch, capsys):
    from tl_notebooks.cli import main
    args, says = WRONG[case]
    before = sorted(map(str, desk.rglob('*')))
    monkeypatch.chdir(desk)
    try: code = main(args)
    except SystemExit as e: code = e.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, '') and says in err, (code, out, err)
    assert sorted(map(str, desk.rglob('*'))) == before


def test_wrong_request_in_a_process_of_its_own(desk):
    "The same through the door users take: no traceback, exit status 2"
    done = tl('run', 'parts', '-p', 'epoch=3', cwd=desk)
    assert (done.returncode, done.stdout) == (2, '') and 'Traceback' not in done.stderr and "'epochs'" in done.stderr


def test_wrong_network(pictures, tmp_path):
    "A backbone that does not exist, has no weights here, or is not for images: told before anything is trained"
    wrong = {'resnet': dict(backbone='resnet81'), 'weights': dict(backbone='vgg16'), 'from 1 to 6': dict(thaw=0),
             'no-such-file.pth': dict(weights='no-such-file.pth', backbone='efficientnet_lite0'),
             'image': dict(backbone='bert_base_uncased')}
    said = refusals('parts', [dict(data=str(pictures)) | w for w in wrong.values()], tmp_path, {'HF_HUB_OFFLINE': '1'})
    assert [says for says,message in zip(wrong, said) if says not in message] == [], said


def test_a_wrong_network_ends_with_2_and_leaves_nothing(pictures, tmp_path):
    done = tl('run', 'parts', '--data', pictures, '--out', 'runs', '-p', 'backbone=resnet81', cwd=tmp_path)
    assert done.returncode == 2 and 'resnet' in done.stderr and 'Traceback' not in done.stderr, done.stderr[-2000:]
    assert not list(tmp_path.glob('runs/**/*'))


def test_predict_does_the_rest_when_files_are_bad(first_run, pictures, tmp_path):
    good = sorted(pictures.glob('*/*_0001.*'))
    shutil.copy(good[0], tmp_path/'good.png'); shutil.copy(good[1], tmp_path/'zcut.png')
    (tmp_path/'empty.png').touch(); (tmp_path/'text.jpg').write_text('hello')
    data = (tmp_path/'zcut.png').read_bytes(); (tmp_path/'zcut.png').write_bytes(data[:len(data)//2])
    done = tl('predict', first_run[1], tmp_path, cwd=tmp_path)
    rows = {Path(r['path']).name: r for r in csv.DictReader(io.StringIO(done.stdout))}
    assert done.returncode == 1 and [n for n,r in rows.items() if r['label']] == ['good.png']
    assert not rows['good.png']['error']
    assert 'zero bytes' in rows['empty.png']['error'] and 'not an image' in rows['text.jpg']['error']
    assert 'truncated' in rows['zcut.png']['error'] and rows['zcut.png']['probability'] == ''
    assert all(n in done.stderr for n in ('empty.png', 'text.jpg', 'zcut.png', '3 of 4 files'))


def test_predict_where_nothing_can_be_read_is_a_wrong_request(first_run, tmp_path):
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'empty.png').touch(); (tmp_path/'in'/'text.jpg').write_text('hello')
    for form in ('csv', 'json'):
        done = tl('predict', first_run[1], tmp_path/'in', '--format', form, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, '') and 'none of 2 files can be read' in done.stderr


def test_a_model_that_is_not_there_is_looked_for_among_models(first_run, tmp_path):
    "Not among files, and not among folders that hold none"
    shutil.copytree(first_run[1]/'model', tmp_path/'m'/'nuts')
    (tmp_path/'m'/'other').mkdir(); (tmp_path/'m'/'x.csv').touch()
    for command in (['predict', 'm/ntus', 'x.png'], ['show', 'm/ntus'], ['expand', 'm/ntus', '--data', 'm']):
        done = tl(*command, cwd=tmp_path)
        assert done.returncode == 2 and "Did you mean 'm/nuts'?" in done.stderr, done.stderr
        done = tl(command[0], 'm/zzz', *command[2:], cwd=tmp_path)
        assert 'Accepted: m/nuts.' in done.stderr and 'other' not in done.stderr and 'x.csv' not in done.stderr


def test_texts_for_a_model_of_images(first_run, tmp_path):
    (tmp_path/'d.csv').write_text('text,label\nso good,a\nso bad,b\n')
    done = tl('expand', first_run[1], '--data', 'd.csv', cwd=tmp_path)
    assert done.returncode == 2 and 'This looks like a table of texts' in done.stderr
    done = tl('expand', first_run[1], '--data', 'd.csv', '--text-column', 'text', cwd=tmp_path)
    assert done.returncode == 2 and '`text` is not about images' in done.stderr


def test_predict_inputs_that_do_not_exist(first_run, tmp_path):
    done = tl('predict', first_run[1]/'model', 'nowhere.png', cwd=tmp_path)
    assert done.returncode == 2 and 'input `nowhere.png` does not exist' in done.stderr and done.stdout == ''
