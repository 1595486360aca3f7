"A training or run that was killed, at any moment, goes on after its last epoch and ends with the bits of one that never was."
import json
import os
import random
import shutil
import subprocess
import sys
import time

import killed
import pytest
from conftest import QUICK, record, tl


@pytest.fixture(scope='module')
def server():
    return killed.server()


@pytest.fixture(scope='module')
def few_pictures(tmp_path_factory):
    from tl_notebooks.samples import PARTS, make_parts
    return make_parts(tmp_path_factory.mktemp('few')/'parts', kinds=PARTS[:3], n=12, size=48, progress=False)


@pytest.fixture(scope='module')
def small_bert(tmp_path_factory):
    transformers = pytest.importorskip('transformers')
    from tl_notebooks.core import seed_everything
    from tl_notebooks.pretrained import load_text_model
    folder = tmp_path_factory.mktemp('checkpoints')/'bert'
    seed_everything(0)
    config = transformers.AutoConfig.for_model('bert', vocab_size=30522, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    load_text_model('minilm_l6')[1].save_pretrained(folder)
    return folder


@pytest.mark.parametrize('kind,kills', [('by_hand', 6), ('in_a_run', 6), ('of_texts', 3), ('cache', 3)])
def test_killed_at_random_moments_the_same_bits(server, few_pictures, small_bert, tmp_path, kind, kills):
    data = small_bert if kind == 'of_texts' else few_pictures
    whole, others, n, _ = killed.kill_at_random(server, kind, tmp_path, data, kills, seed=kills)
    assert n >= kills
    for other in others: assert json.loads(other) == json.loads(whole)


def test_what_is_compared_can_differ(server, few_pictures, tmp_path):
    "Without its checkpoints a killed training without a seed of its own ends elsewhere: weights, losses and chance all tell"
    killed.run_and_kill(server, 'by_hand', tmp_path/'a', None, tmp_path/'cache')
    killed.run_and_kill(server, 'unlike', tmp_path/'b', None, tmp_path/'cache')
    a, b = (json.loads((tmp_path/n/'outcome.json').read_text()) for n in 'ab')
    assert all(a[k] != b[k] for k in ('weights', 'losses', 'moments', 'chance')) and a['lrs'] == b['lrs']


# The real use case, killed as the kernel of a machine that goes down kills it.

def start(*args, cwd):
    return subprocess.Popen([sys.executable, '-m', 'tl_notebooks', *map(str, args)], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env={**os.environ, 'TL_NOTEBOOKS_CHECKPOINTS': '1'})


def wait_for(what, p, seconds=250):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert p.poll() is None and time.monotonic() < end, 'it ended before it could be killed'
        time.sleep(.02)
    return found


@pytest.fixture(scope='module')
def cut_off(first_run, pictures, tmp_path_factory):
    "The same command as `first_run`, killed in the middle of its control's training, with a copy of the pictures"
    here = tmp_path_factory.mktemp('cut off')
    shutil.copytree(pictures, here/'parts')
    p = start('run', 'parts', '--data', 'parts', '--out', 'runs', '--seed', 5, *QUICK, cwd=here)
    wait_for(lambda: list(here.glob('runs/parts/*/checkpoints/2/0000001.safetensors')), p)
    p.kill(); p.wait()
    return here, next((here/'runs'/'parts').iterdir())


def test_a_run_does_not_go_on_with_other_data_or_code(cut_off):
    here, folder = cut_off
    before = record(folder)
    assert before['status'] == 'running' and (folder/'checkpoints'/'1').is_dir()
    (folder/'record.json').write_text(json.dumps(before | dict(code_version='0.0.1+abc')))
    done = tl('resume', folder, cwd=here)
    assert done.returncode == 2 and 'its code was 0.0.1+abc, and now is ' + before['code_version'] in done.stderr
    (folder/'record.json').write_text(json.dumps(before))
    picture = next((here/'parts').rglob('*.png'), None) or next((here/'parts').rglob('*.jpg'))
    was = picture.read_bytes()
    other = next(p for p in sorted(picture.parent.iterdir()) if p != picture)
    picture.write_bytes(other.read_bytes())
    done = tl('resume', folder, cwd=here, env=dict(TL_NOTEBOOKS_CHECKPOINTS='1'))
    picture.write_bytes(was)
    assert done.returncode == 2 and f"its data had fingerprint {before['data']['fingerprint'][:16]}, and now has " in done.stderr, done.stderr[-2000:]
    assert record(folder) == before and (folder/'checkpoints'/'2').is_dir()


def test_a_killed_run_goes_on_to_the_same_bits(cut_off, first_run, tmp_path):
    here, folder = cut_off
    done = tl('resume', folder, cwd=tmp_path, env=dict(TL_NOTEBOOKS_CHECKPOINTS='1')) # from elsewhere: its paths were relative
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(folder)
    assert '1 of 1 epochs are in' in done.stderr and '1 of 2 epochs are in' in done.stderr # fine-tuning restored, the control taken up
    a, b = record(first_run[1]), record(folder)
    assert (a['metrics'], a['control'], a['probe']['alpha'], a['kept']) == (b['metrics'], b['control'], b['probe']['alpha'], b['kept'])
    assert a['model']['artifact_sha256'] == b['model']['artifact_sha256'] and b['status'] == 'ok' and len(b['resumed']) == 1
    assert (first_run[1]/'model'/'weights.safetensors').read_bytes() == (folder/'model'/'weights.safetensors').read_bytes()
    assert {p.name for p in folder.iterdir()} == {p.name for p in first_run[1].iterdir()} # its checkpoints are gone
    again = tl('resume', folder, cwd=tmp_path)
    assert again.returncode == 2 and 'is finished' in again.stderr


def test_a_run_in_progress_is_left_alone(tmp_path):
    from tl_notebooks.run import check_params, find_usecase, held, make_run_folder, usecase_params
    nb = find_usecase('parts')
    folder = make_run_folder('parts', check_params(usecase_params(nb), {}), nb, str(tmp_path))
    with held(folder):
        done = tl('resume', folder, cwd=tmp_path)
        assert done.returncode == 2 and 'in use by another process' in done.stderr and record(folder)['status'] == 'running'
    assert tl('resume', 'no-such-run', cwd=tmp_path).returncode == 2


def test_checkpoints_hold_no_code(tmp_path):
    "Files that would run something when loaded are refused, not opened"
    import pickle
    from tl_notebooks.checkpoint import read_state
    class Bad:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'done'),)
    (tmp_path/'0000001.safetensors').write_bytes(pickle.dumps(Bad()))
    assert read_state(tmp_path/'0000001.safetensors') is None and not (tmp_path/'done').exists()


@pytest.mark.parametrize('n', range(3))
def test_half_a_checkpoint_is_passed_over(tmp_path, n):
    "Cut anywhere, the newest file counts for nothing, and the one before is taken"
    import torch
    from tl_notebooks.checkpoint import Slot
    slot = Slot(tmp_path)
    for k in (1, 2, 3): slot.write(k, {'w': torch.full((50,), float(k))}, dict(k=k))
    assert len(slot.paths()) == 2
    whole = slot.paths()[-1].read_bytes()
    slot.paths()[-1].write_bytes(whole[:random.Random(n).randrange(len(whole))])
    path, tensors, values = slot.last(); slot.release()
    assert values == dict(k=2) and tensors['w'][0] == 2
