"What `tl export` makes answers as the model's own framework does, in programs that know nothing of this package."
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, tl
from PIL import Image

import tl_notebooks  # noqa: F401  before timm
import timm
import torch
from test_adopt import timm_model, tokenizer
from tl_notebooks.core import InputError
from tl_notebooks.models import export as door
from tl_notebooks.models.adopt import adopt
from tl_notebooks.models.save import load_model

torch.set_num_threads(1)
SHAPES = [(37, 41), (300, 64), (1, 1), (96, 97), (700, 1001)]  # height, width


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    "A model of timm, and its folder after it was taken in"
    root, model = tmp_path_factory.mktemp('adopted'), timm_model('resnet10t')
    torch.save(model.state_dict(), root/'own.pth')
    adopt(root/'own.pth', root/'model', arch='resnet10t', classes='bolt,nut,pin', size=64, scale=72,
          interpolation='bicubic', mean='0.5,0.4,0.3', std='0.2')
    return model, root/'model'


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(s[::-1], 3) for s in SHAPES]


def timm_answers(model, images, interpolation='bicubic'):
    "By timm's own preparation and network"
    how = dict(input_size=(3, 64, 64), interpolation=interpolation, mean=(.5, .4, .3), std=(.2,)*3, crop_pct=64/72)
    prepare = timm.data.create_transform(**how, is_training=False)
    with torch.no_grad(): return torch.cat([model(prepare(im)[None]) for im in images]).softmax(1).numpy()


def test_onnx_runtime_alone_gives_the_answers_of_timm(theirs, images, tmp_path):
    model, folder = theirs
    done = tl('export', folder, '--out', tmp_path/'onnx', cwd=tmp_path)
    assert done.returncode == 0 and '100.0% of the decisions on 18 made-up images' in done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path/'onnx')
    session = onnxruntime.InferenceSession(tmp_path/'onnx'/'model.onnx')
    got = np.concatenate([session.run(None, {'images': np.asarray(im)[None]})[0] for im in images])
    want = timm_answers(model, images)
    assert np.abs(got - want).max() < 1e-5 and np.ptp(want, axis=0).max() > .01
    assert np.array_equal(got.argmax(1), want.argmax(1))
    several = session.run(None, {'images': np.stack([np.asarray(images[0])]*3)})[0]
    assert np.allclose(several, got[0], atol=1e-5)
    assert (tmp_path/'onnx'/'classes.txt').read_text() == 'bolt\nnut\npin\n'


def test_preparation_that_is_left_behind_fails_the_export(theirs, tmp_path, monkeypatch):
    "As if the image had been stretched instead of cut: the file is not written"
    whole = door.image_graph
    def stretched(model, *more):
        model.task.reading = model.task.reading | dict(resize='squish', scale=None)
        graph = whole(model, *more)
        model.task.reading = model.task.reading | dict(resize='short', scale=72)
        return graph
    monkeypatch.setattr(door, 'image_graph', stretched)
    with pytest.raises(door.NotTheSame, match='does not answer as the folder does.*Nothing was kept'):
        door.export(load_model(theirs[1]), tmp_path/'onnx')
    assert not [*tmp_path.iterdir()]


TORCHLESS = """
import sys
class Never:
    def find_spec(self, name, *rest):
        if name.split('.')[0] in ('torch', 'onnx', 'fastai', 'transformers', 'timm', 'pandas'):
            raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Never())
import json
from tl_notebooks.models.exported import Exported
model = Exported(sys.argv[1], 1)
print(json.dumps([p.tolist() for p in model.answer([model.take(t) for t in sys.argv[2:]])]))
"""


def torchless(folder, *items):
    done = subprocess.run([sys.executable, '-c', TORCHLESS, folder, *items], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


def test_a_folder_answers_where_torch_cannot_be_imported(theirs, images, tmp_path):
    model, folder = theirs
    images[1].save(tmp_path/'a.png')
    door.export(folder, tmp_path/'onnx')
    assert np.allclose(torchless(tmp_path/'onnx', tmp_path/'a.png'), timm_answers(model, images[1:2]), atol=1e-4)
    door.export(folder, tmp_path/'ov', 'openvino')
    assert np.allclose(torchless(tmp_path/'ov', tmp_path/'a.png'), timm_answers(model, images[1:2]), atol=1e-3)


@pytest.fixture(scope='module')
def sentences(tmp_path_factory):
    "A classifier of transformers, its tokenizer, and its folder after it was taken in"
    import transformers
    root = tmp_path_factory.mktemp('texts')
    torch.manual_seed(0)
    tok = tokenizer(root/'bert')
    config = transformers.BertConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=64, max_position_embeddings=64, initializer_range=.6,
                                     id2label={0: 'good', 1: 'bad'}, label2id=dict(good=0, bad=1))
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(root/'bert')
    adopt(root/'bert', root/'model')
    return model, tok, root/'model'


TEXTS = ['good movie', 'the plot was bad bad bad', 'Great', 'a '*200, '']


def test_texts_go_in_by_the_tokenizer_file(sentences, tmp_path):
    model, tok, folder = sentences
    done = door.export(folder, tmp_path/'onnx')
    with torch.no_grad():
        want = torch.cat([model(**tok(t, return_tensors='pt', truncation=True, max_length=32)).logits
                          for t in TEXTS]).softmax(1).numpy()
    assert np.allclose(torchless(tmp_path/'onnx', *TEXTS)[:4], want[:4], atol=1e-4) and done.parity.passed
    assert want.std(0).max() > .05


@pytest.fixture(scope='module')
def knowing(tmp_path_factory):
    "A model that was trained here and keeps what it learned from, and its data"
    from tl_notebooks.data.images import read_images
    from tl_notebooks.data.samples import PARTS, make_parts
    from tl_notebooks.learn.vision import image_learner
    from tl_notebooks.models import save as _save  # noqa: F401  gives learners `save_model`
    root = tmp_path_factory.mktemp('knowing')
    make_parts(root/'parts', kinds=PARTS[:2], n=16, size=64)
    data = read_images(root/'parts', valid_pct=.5, test_pct=.25)
    learn = image_learner(data, backbone='timm/resnet10t', weights='random', size=64, precision='fp32', seed=0)
    with learn.no_bar(): learn.probe()
    Image.open(data.files('test')[0]).resize((640, 481)).save(root/'large.png')
    Image.new('RGB', (70, 50), 'lime').save(root/'lime.png')
    return learn.save_model(root/'model'), [*data.files('test'), root/'large.png', root/'lime.png']


@pytest.mark.parametrize('to', ['onnx', 'openvino'])
def test_what_is_unknown_to_the_folder_is_unknown_to_the_file(knowing, tmp_path, to):
    "Beside `tl predict --unknown` of the folder, from the first image on"
    folder, files = knowing
    door.export(folder, tmp_path/'e', to, items=[str(f) for f in files])
    want = [*load_model(folder).predict(files, unknown=.4)]
    model = door.Exported(tmp_path/'e')
    got = model.answers([model.take(f) for f in files])
    known = np.array([p.p_known for p in want])
    assert np.allclose([g['p_known'] for g in got], known, atol=1e-6) and known.min() <= .4 < known.max()
    assert np.allclose([g['probabilities'] for g in got], [[*p.probabilities.values()] for p in want], atol=1e-4)
    model.need_unknown(.4)
    with pytest.raises(InputError, match='accepted: 0.0'): model.need_unknown(.001)


def test_what_cannot_be_exported_is_said(theirs, tmp_path):
    for given, says in ((['--to', 'onxx'], "Did you mean 'onnx'?"), (['--precision', 'fp8'], "`precision` is 'fp8'"),
                        (['--items', 'gone'], 'gone')):
        done = tl('export', theirs[1], '--out', tmp_path/'x', *given, cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr and not [*tmp_path.iterdir()], done.stderr
    with pytest.raises(InputError, match='exists already'): door.export(theirs[1], tmp_path)


@pytest.mark.parametrize('precision,to', [('fp16', 'onnx'), ('int8', 'onnx'), ('fp16', 'openvino'),
                                          ('int8', 'openvino')])
def test_fewer_bits_are_a_smaller_file_that_decides_alike(theirs, tmp_path, precision, to):
    "Compared with timm, on images that the scales of int8 were not taken from"
    model, folder = theirs
    rng = np.random.default_rng(1)
    shown = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((90, 70), 3) for _ in range(24)]
    (tmp_path/'items').mkdir()
    for i,im in enumerate(shown): im.save(tmp_path/'items'/f'{i:02}.png')
    done = door.export(folder, tmp_path/'small', to, precision, tmp_path/'items')
    size = sum(f.stat().st_size for f in done.folder.glob('model.*'))
    assert size < (folder/'weights.safetensors').stat().st_size*dict(fp16=.6, int8=.5)[precision]
    got = np.stack(door.Exported(done.folder).answer([np.asarray(im) for im in shown[1::2]]))
    want = timm_answers(model, shown[1::2])
    assert np.abs(got - want).max() < .1 and 0 < done.parity.probability < .1
    assert done.parity.n == dict(fp16=24, int8=12)[precision] and done.parity.decisions >= .98
    if (precision, to) == ('int8', 'onnx'):  # scaled by what comes out of an activation, not by what goes in
        nodes = onnx.load(done.folder/'model.onnx').graph.node
        made = {o: n.op_type for n in nodes for o in n.output}
        assert {made[n.input[0]] for n in nodes if n.op_type == 'Relu'} <= {'Add'}
    wrong = tl('export', folder, '--out', tmp_path/'x', '--precision', 'int8', cwd=tmp_path)
    assert wrong.returncode == 2 and '--items PATH' in wrong.stderr


def test_a_text_model_in_8_bits_scales_each_text_by_itself(sentences, tmp_path):
    model, tok, folder = sentences
    given = [' '.join(np.random.default_rng(i).choice(['good', 'bad', 'movie', 'a', 'the'], 6)) for i in range(40)]
    done = door.export(folder, tmp_path/'small', precision='int8', items=given)
    assert 'DynamicQuantizeLinear' in {n.op_type for n in onnx.load(done.folder/'model.onnx').graph.node}
    with torch.no_grad(): want = torch.cat([model(**tok(t, return_tensors='pt')).logits for t in given]).softmax(1)
    got = np.stack(door.Exported(done.folder).answer(given))
    assert np.abs(got - want.numpy()).max() < .2 and done.parity.decisions >= .98


def test_the_lines_of_the_guide_run_without_this_package(theirs, images, tmp_path):
    page = json.loads((ROOT/'nbs'/'guides'/'export.ipynb').read_text())
    text = ''.join(line for c in page['cells'] for line in c['source'])
    code = text.split('with onnxruntime, numpy and Pillow:\n\n```python\n')[1].split('```')[0]
    images[1].save(tmp_path/'image.jpg', quality=95)
    door.export(theirs[1], tmp_path/'for_production')
    done = subprocess.run([sys.executable, '-c', "import sys; sys.modules['tl_notebooks'] = None\n" + code],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want, label = timm_answers(theirs[0], [Image.open(tmp_path/'image.jpg')])[0], done.stdout.split()
    assert label[0] == ['bolt', 'nut', 'pin'][want.argmax()] and abs(float(label[1]) - want.max()) < 1e-4


def test_the_lines_of_the_guide_run_in_node(theirs, images, tmp_path):
    node = shutil.which('node')
    have = node and subprocess.run([node, '-e', "require('onnxruntime-web'); require('sharp')"], cwd=tmp_path,
                                   capture_output=True).returncode == 0
    if not have: pytest.skip('node with onnxruntime-web and sharp is not here (npm install, and NODE_PATH)')
    page = json.loads((ROOT/'nbs'/'guides'/'export.ipynb').read_text())
    code = ''.join(line for c in page['cells'] for line in c['source']).split('```js\n')[1].split('```')[0]
    images[1].save(tmp_path/'image.jpg', format='PNG')
    door.export(theirs[1], tmp_path/'for_production')
    (tmp_path/'use.js').write_text(code)
    done = subprocess.run([node, 'use.js'], cwd=tmp_path, capture_output=True, text=True)
    want, label = timm_answers(theirs[0], images[1:2])[0], done.stdout.split()
    assert done.returncode == 0, done.stderr[-1000:]
    assert label[0] == ['bolt', 'nut', 'pin'][want.argmax()] and abs(float(label[1]) - want.max()) < 1e-4
