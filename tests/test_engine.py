"""OpenVINO computes the frozen part: torch's own numbers, the same bits every time, the weights as they are now, and
nobody is told."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import record, tl
from torch import nn

import tl_notebooks  # noqa: F401  before fastai and timm: it guards torchvision
import timm
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from torch.utils.data import TensorDataset

from tl_notebooks.core import InputError, seed_everything
from tl_notebooks.data.images import read_images
from tl_notebooks.frozen import openvino as by_openvino
from tl_notebooks.frozen.cut import find_split_point
from tl_notebooks.frozen.openvino import CannotConvert, OpenVINOPrefix, difference, graphs_dir
from tl_notebooks.frozen.store import hash_prefix, list_stores, remove_store
from tl_notebooks.learn import precision
from tl_notebooks.learn.learner import TransferLearner
from tl_notebooks.learn.machine import begin_choices, end_choices
from tl_notebooks.learn.network import TransferNet
from tl_notebooks.learn.text import TextBody, text_groups
from tl_notebooks.learn.vision import image_learner, image_net, noise_images, test_dl as dl_of_split
from tl_notebooks.models import folder as model_folder
from tl_notebooks.models.save import load_model

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache of its own"
    if torch.cuda.is_available(): pytest.skip('on a GPU torch computes everything')
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'


@pytest.fixture(scope='module')
def data(pictures): return read_images(pictures, progress=False)


def learner(data, engine='openvino', size=64, **kwargs):
    kwargs = dict(precision='fp32') | kwargs
    return image_learner(data, size=size, bs=16, engine=engine, seed=0, augment=False, **kwargs)


def quiet(learn, what):
    with learn.no_bar(), learn.no_logging(): return what()


def prefix_of(body, split_points, xb, micro_batch, precision='fp32'):
    return OpenVINOPrefix(body, split_points, xb, micro_batch, [hash_prefix(body, c) for c in split_points], precision)


# The same numbers as torch, timm and transformers

IMAGE_NETS = ['efficientnet_lite0', 'resnet18', 'timm/vit_tiny_patch16_224', 'timm/edgenext_xx_small',
              'torchvision/mobilenet_v3_small']

@pytest.mark.parametrize('name', IMAGE_NETS)
def test_bodies_and_split_points_of_images_are_torchs_own(name):
    "Whole batches and short ones; the oracle is the library's forward pass, and what a hook of torch's sees in it"
    size = 224 if 'vit' in name else 64
    net, _ = image_net(name, 3, 'random', size)
    seed_everything(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.uniform_(-.2, .2); m.running_var.uniform_(.5, 2)
    body, x, seen = net.eval().body, torch.rand(5, 3, size, size), []
    xb = [x[:2].contiguous(memory_format=torch.channels_last)]
    n = len(body.groups)
    middle, end = (find_split_point(body, [p for g in body.groups[:k] for p in g], xb) for k in (n//2, n))
    hook = body.get_submodule(middle.place).register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    with torch.no_grad():
        maps = getattr(body.model, 'forward_features', body.model)(x)
    hook.remove()
    pooled = torch.cat([maps[:,1:].mean(1), maps[:,0]] if maps.ndim == 3 else [maps.mean((2, 3)), maps.amax((2, 3))], 1)
    at_cut, at_end = prefix_of(body, [middle, end], xb, 4)(x)
    assert difference(at_cut, seen[0]) < 1e-3 and difference(at_end, pooled) < 1e-3
    assert at_cut.shape == seen[0].shape and at_cut.dtype == torch.float32
    alone, = prefix_of(body, [end], xb, 4)(x[3:4]) # of a graph without the middle
    assert torch.equal(alone, at_end[3:4])


def configs():
    import transformers
    c = dict(vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)
    return {'bert': transformers.BertConfig(**c), 'roberta': transformers.RobertaConfig(**c),
            'xlnet': transformers.XLNetConfig(vocab_size=60, d_model=32, n_layer=4, n_head=4, d_inner=64),
            'gpt2': transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=4, n_head=4)}

@pytest.mark.parametrize('kind', ['bert', 'roberta', 'xlnet', 'gpt2'])
def test_a_text_has_the_features_that_it_has_alone(kind):
    "The oracle is transformers' model on the text alone, without padding, and its hidden states"
    import transformers
    seed_everything(0)
    model = transformers.AutoModel.from_config(configs()[kind]).eval()
    if getattr(model, 'pooler', None) is not None: model.pooler = None
    body = TextBody(model); body.groups = text_groups(body)
    texts = [torch.randint(3, 60, (n,)) for n in (20, 3, 11, 1, 24)]
    padded = torch.stack([nn.functional.pad(t, (0, 24 - len(t)), value=-1) for t in texts])
    middle, end = (find_split_point(body, [p for g in body.groups[:k] for p in g], [padded[:3,:20]], True)
                   for k in (3, len(body.groups)))
    hidden, pooled = prefix_of(body, [middle, end], [padded[:3,:20]], lambda x: 2)(padded)
    block = body.get_submodule(middle.place)
    for k,t in enumerate(texts):
        seen = []
        hook = block.register_forward_pre_hook(lambda m, a, kw: seen.append(a[0] if a else kw['hidden_states']),
                                               with_kwargs=True)
        with torch.no_grad(): own = model(input_ids=t[None], attention_mask=torch.ones(1, len(t)).long())[0]
        hook.remove()
        one = seen[0].transpose(0, 1) if middle.turned else seen[0]
        assert difference(pooled[k], own[0].mean(0)) < 1e-3
        assert difference(middle.rows(hidden)[k,:len(t)], one[0]) < 1e-3


def test_bfloat16_is_no_farther_from_float32_than_torchs(data):
    net, _ = image_net('resnet18', 3, 'random', 64)
    x = torch.rand(8, 3, 64, 64)
    fast = precision.whole_body(net.eval(), x, 'bf16')(x)[0]
    with torch.no_grad():
        full = net.pooled(x)
        net.precision = 'bf16'
        assert 0 < difference(fast, full, 2) < max(2*difference(net.pooled(x), full, 2), 2**-8) < .1


# What cannot be converted is torch's

class Odd(nn.Module):
    "`way`: how OpenVINO fails on it"
    cache_key = 'body of a test'
    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(6, 12), nn.Linear(12, 8), way
        self.groups = [list(self.a.parameters()), list(self.b.parameters())]
    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.way == 'an operation that it lacks': h = torch.special.bessel_j0(h)
        if self.way == 'a number that is not the same for all batches': h = h*len(h)/len(h).__float__()*(1 + len(h))
        return torch.relu(self.b(h))


def odd_learner(way, engine):
    seed_everything(0)
    x = torch.randn(60, 6); y = (x[:,0] > 0).long()
    dls = DataLoaders(DataLoader(TensorDataset(x[:40], y[:40]), bs=20, shuffle=True),
                      DataLoader(TensorDataset(x[40:], y[40:]), bs=20), device='cpu')
    learn = TransferLearner(dls, TransferNet(Odd(way), 8, 2), info=dict(engine=engine))
    learn.model.engine, learn.model.micro_batch = engine, 4
    learn.freeze_to(-2)
    seed_everything(1)
    quiet(learn, lambda: learn.fit(2, 1e-2))
    return learn, [float(l) for l in learn.recorder.losses]


@pytest.mark.parametrize('way', ['an operation that it lacks', 'a number that is not the same for all batches'])
def test_what_cannot_be_converted_is_computed_by_torch_and_that_is_said_once(way, capsys):
    with pytest.raises(CannotConvert):
        precision.whole_body(TransferNet(Odd(way), 8, 2).eval(), torch.randn(4, 6), 'fp32')
    _, own = odd_learner(way, 'torch')
    capsys.readouterr()
    try:
        choices = begin_choices()
        learn, losses = odd_learner(way, 'openvino')
    finally: end_choices()
    assert losses == own and learn.model.engine == learn.info['engine'] == 'torch'
    assert capsys.readouterr().err.count('OpenVINO') == 1
    (name, made), = [(n, c) for n,c in choices.items() if n.startswith('engine')]
    assert (made['asked'], made['took']) == ('openvino', 'torch') and 'up to b' in name


def test_the_odd_ones_would_pass_if_they_were_not_odd():
    learn, losses = odd_learner('none', 'openvino')
    assert learn.model.engine == 'openvino' and np.allclose(losses, odd_learner('none', 'torch')[1], rtol=1e-4)


def test_a_transformer_whose_padding_spoils_its_numbers_is_found_out():
    "ModernBERT's windows leave rows without a token, which become NaN"
    import transformers
    seed_everything(0)
    model = transformers.AutoModel.from_config(transformers.ModernBertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2,
        local_attention=8))
    ids = torch.randint(3, 60, (2, 32))
    try: fast = precision.whole_body(TransferNet(TextBody(model).eval(), 32, 2), ids, 'fp32')
    except CannotConvert: return
    ids[1,2:] = -1
    assert fast(ids)[0].isfinite().all()


def test_without_openvino_there_is_torch(data, monkeypatch, capsys):
    def gone(): raise CannotConvert('OpenVINO cannot be imported: no such thing')
    monkeypatch.setattr(by_openvino, 'load_openvino', gone); by_openvino._core.cache_clear()
    learn = learner(data)
    learn.probe(thaw=2)
    assert learn.model.engine == learn.info['engine'] == 'torch'
    assert capsys.readouterr().err.count('no such thing') == 1
    by_openvino._core.cache_clear()
    monkeypatch.setattr(precision, '_missing', lambda took: 'openvino is not installed' if took == 'openvino' else '')
    assert learner(data).info['engine'] == 'torch' and 'is not installed' in capsys.readouterr().err
    assert learner(data, 'auto').info['engine'] == 'torch' and not capsys.readouterr().err
    with pytest.raises(InputError, match="`engine` is 'tensorrt'; accepted: auto, torch, openvino"):
        learner(data, engine='tensorrt')


# The same bits, here and in another process

BITS = '''
import sys, torch, tl_notebooks
from tl_notebooks.core import hash_state
from tl_notebooks.data.images import read_images
from tl_notebooks.learn.vision import image_learner
torch.set_num_threads(1)
data = read_images(sys.argv[1], progress=False)
for precision in ('fp32', 'bf16'):
    learn = image_learner(data, size=64, bs=16, engine='openvino', precision=precision, seed=0, augment=False)
    learn.probe(thaw=2)
    print(learn.model.engine, hash_state(dict(x=learn.probe_features[0])))
'''

def test_the_same_bits_again_without_a_graph_on_disk_and_in_another_process(pictures, tmp_path):
    def bits(cache):
        done = subprocess.run([sys.executable, '-c', BITS, pictures], capture_output=True, text=True,
                              env={**os.environ, 'TL_NOTEBOOKS_CACHE': str(cache)})
        assert done.returncode == 0 and done.stdout.count('openvino') == 2, done.stderr[-2000:]
        return done.stdout
    first = bits(tmp_path/'a')
    made = {p: p.stat().st_ino for p in (tmp_path/'a'/'engines').glob('*/model.xml')}
    shutil.rmtree(tmp_path/'a'/'activations') # computed anew
    assert bits(tmp_path/'a') == bits(tmp_path/'b') == first and made
    assert {p: p.stat().st_ino for p in (tmp_path/'a'/'engines').glob('*/model.xml')} == made # converted once


def test_stores_know_their_engine(data):
    for engine in ('torch', 'openvino'): learner(data, engine).probe()
    stores = [json.loads((Path(os.environ['TL_NOTEBOOKS_CACHE'])/'activations'/s.key/'store.json').read_text())['spec']
              for s in list_stores()]
    assert sorted(s['engine'] for s in stores) == ['openvino', 'torch']
    assert all(s['packages']['openvino'] for s in stores)


# The weights as they are now

def test_trained_weights_are_not_answered_for_by_what_was_made_before(data, tmp_path):
    learn = learner(data)
    learn.probe()
    was = learn.features(dl_of_split(learn, data))[0]
    for p in learn.model.body.parameters(): p.data.mul_(1.01) # as an optimiser does it
    now = learn.features(dl_of_split(learn, data))[0]
    x = torch.cat([b[0].as_subclass(torch.Tensor) for b in dl_of_split(learn, data)])
    with torch.no_grad(): own = learn.model.eval().pooled(x)
    assert difference(now, own) < 1e-3 < difference(was, own)


def test_a_model_answers_with_the_weights_that_it_has(data, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, 'FEW', 0)
    learn = learner(data)
    learn.probe(); learn.calibrate(); learn.save_model(tmp_path/'model', metrics={})
    model, files = load_model(tmp_path/'model'), data.files('test')
    was = model.features(files)
    assert model.fast[1] and torch.equal(was, learn.features(dl_of_split(learn, data))[0]) # as in training
    for p in model.net.body.parameters(): p.data.mul_(1.01)
    now = model.features(files)
    model.net.engine = 'torch'
    assert difference(now, model.features(files)) < 1e-3 < difference(was, now)


def test_few_inputs_of_float32_are_torchs_and_the_answers_the_same(data, tmp_path, monkeypatch, capsys):
    learn = learner(data)
    learn.probe(); learn.calibrate(); learn.save_model(tmp_path/'model', metrics={})
    assert json.loads((tmp_path/'model'/'manifest.json').read_text())['preprocessing']['engine'] == 'openvino'
    files, answers, made = data.files('test'), [], []
    for few in (10**6, 0):
        monkeypatch.setattr(model_folder, 'FEW', few)
        model = load_model(tmp_path/'model')
        answers.append([*model.predict(files)]); made.append(model.fast[1] is not None)
    def gone(*_): raise CannotConvert('OpenVINO cannot be imported')
    monkeypatch.setattr(model_folder, 'whole_body', gone)
    capsys.readouterr()
    model = load_model(tmp_path/'model')
    answers += [[*model.predict(files)], [*model.predict(files)]]
    assert capsys.readouterr().err.count('OpenVINO cannot be imported') == 1 and made == [False, True]
    for other in answers[1:]:
        assert [p.label for p in other] == [p.label for p in answers[0]]
        for p, q in zip(other, answers[0]):
            assert max(abs(p.probabilities[c] - q.probabilities[c]) for c in data.classes) < 1e-3


def test_a_damaged_graph_is_made_again(data):
    learn = learner(data)
    was = learn.features(learn.dls.valid)[0]
    for p in graphs_dir().glob('*/model.bin'): p.write_bytes(p.read_bytes()[:-9])
    for s in list_stores(): remove_store(s.key)
    again = learner(data)
    assert torch.equal(again.features(again.dls.valid)[0], was)


# The choice

def keep(monkeypatch, choice, asked, **kwargs):
    "A measurement of an earlier, larger job, that gave `choice`"
    with monkeypatch.context() as m:
        m.setattr(precision, 'passes_of', lambda *_: ({}, ''))
        m.setattr(precision, 'measure_twice', lambda *_: {})
        m.setattr(precision, 'find_fastest', lambda _: (choice, True, 'written here'))
        net = image_net('efficientnet_lite0', 4, size=64)[0]
        net.micro_batch = 64
        return precision.settle(net, noise_images(16, 64), asked, 'efficientnet_lite0', CPU, 'auto', **kwargs)


def test_few_images_get_torch_unless_a_larger_job_has_measured(data, monkeypatch):
    assert learner(data, 'auto').model.engine == 'torch' and not graphs_dir().exists()
    assert keep(monkeypatch, 'openvino fp32', 'fp32').engine == 'openvino'
    learn = learner(data, 'auto')
    assert learn.model.engine == 'openvino'
    # what a record says goes before what was kept
    name = 'engine of efficientnet_lite0, 3×64×64, fp32'
    for engine in ('torch', 'openvino'):
        try:
            begin_choices({name: dict(asked='auto', took=engine, why='')})
            assert learner(data, 'auto').model.engine == engine
        finally: end_choices()


def test_what_is_measured_is_compared_in_turns_and_kept(monkeypatch, tmp_path):
    net = image_net('efficientnet_lite0', 4, size=64)[0]
    net.micro_batch, clock = 2, [0.]
    monkeypatch.setattr(precision, '_has_bf16', lambda: True)
    monkeypatch.setattr(precision.time, 'perf_counter', lambda: clock[0])
    real = precision.passes_of
    seconds = {'torch fp32': 1., 'torch bf16': .7, 'openvino fp32': .5, 'openvino bf16': .2}
    def timed(*args):
        def run(name, work): work(); clock[0] += seconds[name]
        passes, why = real(*args)
        return {n: lambda n=n, p=p: run(n, p) for n,p in passes.items()}, why
    monkeypatch.setattr(precision, 'passes_of', timed)
    settle = lambda asked: precision.settle(net, noise_images(4, 64), asked, 'net', CPU, 'auto')
    assert (settle('auto').engine, net.precision) == ('openvino', 'bf16')
    assert (settle('fp32').engine, net.precision) == ('openvino', 'fp32') # never bf16 where it was not allowed
    kept = [json.loads(p.read_text()) for p in sorted((tmp_path/'cache'/'precision').glob('*.json'))]
    assert {len(k['seconds']) for k in kept} == {4, 2} and all(len(s) == 9 for k in kept for s in k['seconds'].values())
    monkeypatch.setattr(precision, 'measure', lambda *_: pytest.fail('it was measured before'))
    assert (settle('auto').engine, net.precision) == ('openvino', 'bf16')


def test_a_reproduction_takes_the_recorded_engine(pictures, tmp_path):
    args = ['-p', 'size=64', '-p', 'bs=16', '-p', 'precision=fp32', '-p', 'epochs=0', '-p', 'control=false']
    done = tl('run', 'parts', '--data', pictures, '--out', tmp_path/'a', *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = Path(done.stdout.split()[-1])
    was = record(folder)
    name, = [n for n in was['choices'] if n.startswith('engine')]
    assert was['model']['engine'] == was['choices'][name]['took'] == 'torch'
    assert 'too few' in was['choices'][name]['why']
    was['choices'][name]['took'] = 'openvino'
    (folder/'record.json').write_text(json.dumps(was))
    done = tl('reproduce', folder, '--out', tmp_path/'b', cwd=tmp_path)
    new, = (tmp_path/'b'/'parts').iterdir()
    assert record(new)['model']['engine'] == 'openvino', done.stderr[-2000:]
    assert record(new)['choices'] == was['choices']
    assert record(new)['reproduces']['verdict'] == 'within tolerance'


# Nobody is told

SILENT = '''
import os, socket, sys
def no(*args, **kwargs): raise AssertionError('it wants to call out')
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = no
told = []
sys.addaudithook(lambda event, args: told.append(event) if event in ('socket.connect', 'socket.getaddrinfo',
                                                                    'socket.sendto', 'socket.gethostbyname') else None)
import torch, tl_notebooks
from tl_notebooks.learn.precision import whole_body
from tl_notebooks.learn.vision import image_net
net, x = image_net('resnet18', 3, 'random', 64)[0].eval(), torch.rand(4, 3, 64, 64)
net.micro_batch = 4
for _ in range(2): assert whole_body(net, x, 'fp32')(x)[0].shape == (4, 1024)
assert sys.modules['openvino_telemetry'] is None and not told, told
from openvino import convert_model # even by the way that would
convert_model(torch.nn.Linear(3, 3), example_input=torch.zeros(1, 3))
assert not told and not any(m.startswith('openvino_telemetry.') for m in sys.modules)
print('silent')
'''

def test_no_word_to_anybody(tmp_path):
    (tmp_path/'home').mkdir()
    env = {k: v for k,v in os.environ.items() if not k.startswith('XDG') and k not in ('CI', 'OMP_NUM_THREADS')}
    env |= dict(HOME=str(tmp_path/'home'), USERPROFILE=str(tmp_path/'home'), TL_NOTEBOOKS_CACHE=str(tmp_path/'cache'),
                MPLCONFIGDIR=str(tmp_path/'matplotlib'))
    done = subprocess.run([sys.executable, '-c', SILENT], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0 and done.stdout.split()[-1] == 'silent', done.stderr[-2000:]
    assert [*(tmp_path/'home').rglob('*')] == []


def test_a_plain_import_would_have_loaded_what_calls_out():
    "So the test above can fail"
    code = "import os, sys; os.environ['CI'] = '1'; import openvino; print('openvino_telemetry.main' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'True', done.stderr
