"The use case that grows a classifier step by step, through a real papermill kernel."
from pathlib import Path

import pytest
from conftest import QUICK, need, record, tl

from tl_notebooks.models.folder import Model, read_manifest


def run(tmp_path, *args):
    done = tl('run', 'expand_parts', '--out', tmp_path, *args, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


def test_grown_is_joint_and_what_forgets_is_shown(pictures, tmp_path):
    folder = run(tmp_path, '--data', pictures, *QUICK)
    rec = record(folder)
    curves = rec['curves']['all kinds so far']
    assert list(curves['grown']) == ['2', '3', '4'] and curves['grown'] == curves['joint']   # to the last digit
    assert rec['curves'][
            'first kinds'][
            'fine-tuned on new images alone']['4']['value'] < rec['curves']['first kinds']['grown']['4']['value']
    assert rec['metrics']['accuracy'] == pytest.approx(curves['grown']['4']) and 'accuracy' in rec['control']
    assert len(rec['certificates']) == 2 and all(c['body_bit_identical'] and c['old_accuracy_after']['n'] > 0
                                                 for c in rec['certificates'])
    m = read_manifest(folder)
    assert m['classes'] == sorted(p.name for p in pictures.iterdir()
                                  if p.is_dir()) and len(m['lineage']) == 2 and m['parent'] == rec['model']['parent']
    assert {p.stem for p in (folder/'figures').iterdir()} == {'steps', 'growing', 'old_kinds',
                                                              'confusion'} and (
            folder/'model'/'certificate.html').is_file()
    again = run(tmp_path, '--data', pictures, *QUICK, '-p', 'control=false')
    assert (again/'model'/'weights.safetensors').read_bytes() == (folder/'model'/'weights.safetensors').read_bytes()


@pytest.mark.parametrize('bricks, least', [('', .5), ('lego6', .6)])
def test_two_at_a_time_with_kept_scores_on_the_last_blocks(tmp_path, bricks, least):
    "On the parts that come with the project, and on real bricks where they lie beside it"
    folder = run(tmp_path, *(['--data', need(bricks)] if bricks else []), *QUICK, '-p', 'step=2', '-p',
                 'mode=keep-scores', '-p', 'features=blocks', '-p', 'control=false', '-p', 'forget_epochs=0')
    rec, net = record(folder), Model(folder).net
    assert all(c['greatest_change_of_an_old_logit'] == 0 for c in rec['certificates'])
    assert len(net.head.parts) == len(rec['certificates']) + 1 > 2 and net.n_features == 1248
    assert rec['metrics']['accuracy']['value'] > least


@pytest.mark.parametrize('args, says', [(('start=4',), 'accepted: 2 to 3'),
                                        (('mode=exactly',), "'exact' or 'keep-scores'")])
def test_a_wrong_request_names_its_place(pictures, tmp_path, args, says):
    done = tl('run', 'expand_parts', '--data', pictures, '--out', 'o', *[x for a in args for x in ('-p', a)],
              cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and not (
            tmp_path/'o'/'expand_parts').exists(), done.stderr[-1000:]
