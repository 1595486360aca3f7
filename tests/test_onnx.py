"""ONNX classifiers: taken in, asked and grown; what they answer is what ONNX Runtime alone says of the files, before
and after."""
import os
import shutil
import warnings

import numpy as np
import pytest
from conftest import tl

import tl_notebooks  # noqa: F401  before timm and torchvision
import timm
import torch
import torchvision
import transformers
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.data.samples import PARTS, make_parts
from tl_notebooks.expand.classes import family_tree, merge_models
from tl_notebooks.expand.door import expand
from tl_notebooks.learn.backbones import load_image_model
from tl_notebooks.models.adopt import NotTheSame, adopt
from tl_notebooks.models.save import load_model

onnx, ort = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
torch.set_num_threads(1)

NORMAL = dict(size=48, scale=48, resize='squish', interpolation='bilinear_exact', mean=[.5]*3, std=[.5]*3)


def export(model, path, size=48, opset=None, dynamo=False, batch=None):
    "What torch's exporters write"
    given = dict(dynamic_shapes=({0: 'n'},)) if dynamo else dict(
        input_names=['pixels'], output_names=['scores'], dynamic_axes=None if batch else {'pixels': {0: 'n'}})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(model.eval(), (torch.rand(batch or 2, 3, size, size),), path, dynamo=dynamo, verbose=False,
                          opset_version=opset, **given)
    return path


def onnx_scores(path, x):
    "The first output of a file, by ONNX Runtime and nothing else"
    s = ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return s.run(None, {s.get_inputs()[0].name: x} if isinstance(x, np.ndarray) else x)[0]


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp('parts')
    make_parts(root, kinds=PARTS[:5], n=8, size=64)
    return read_images(root, valid_pct=0., test_pct=.25)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "Classifiers of three classes, each by another exporter"
    root = tmp_path_factory.mktemp('exported')
    torch.manual_seed(0)
    export(timm.create_model('resnet10t', num_classes=3), root/'dynamo.onnx', dynamo=True)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=3)
    body = load_image_model('efficientnet_lite0')[0].state_dict()
    net.load_state_dict({k: v for k,v in body.items() if 'classifier' not in k}, strict=False)
    export(net, root/'opset11.onnx', opset=11)
    net = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    export(torch.nn.Sequential(net, torch.nn.Softmax(1)), root/'softmax.onnx', opset=13)
    export(timm.create_model('test_vit', num_classes=3, img_size=48), root/'fixed.onnx', opset=17, batch=4)
    nn, body = torch.nn, [torch.nn.Conv2d(3, 16, 3, 2), torch.nn.BatchNorm2d(16), torch.nn.Hardswish()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 24, 1), nn.Hardswish(), nn.Conv2d(24, 3, 1),
                        nn.Flatten())
    export(net, root/'conv.onnx', opset=13) # a head like MobileNetV3's, and one like SqueezeNet's
    export(nn.Sequential(*body, nn.Conv2d(16, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), root/'maps.onnx', opset=17)
    return root


KINDS = ['dynamo', 'opset11', 'softmax', 'fixed', 'conv', 'maps']

@pytest.fixture(scope='module')
def adopted(exported, parts, tmp_path_factory):
    "Of each file a folder without old items, and of three one with all"
    out, known = tmp_path_factory.mktemp('adopted'), parts.only(PARTS[:3])
    for kind in KINDS: adopt(exported/f'{kind}.onnx', out/f'{kind} none', classes=known.classes, **NORMAL)
    for kind in ('dynamo', 'opset11', 'maps'):
        adopt(exported/f'{kind}.onnx', out/f'{kind} all', classes=known.classes, data=known, **NORMAL)
    return out


def pixels(parts, model, split='test'):
    "Images as the network takes them: the same for both sides"
    return model.task.normal(torch.stack([model.task.take(f) for f in parts.files(split)])).numpy()


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_answers_as_it_did(kind, exported, adopted, parts):
    model = load_model(adopted/f'{kind} none')
    x = pixels(parts, model)
    want = np.concatenate([onnx_scores(exported/f'{kind}.onnx', x[i:i+4]) for i in range(0, 8, 4)])
    probs = np.array([[*p.probabilities.values()] for p in model.predict(parts.files('test')[:8], bs=5)])
    if kind != 'softmax': want = np.exp(want - want.max(1, keepdims=True))
    np.testing.assert_allclose(probs, want/want.sum(1, keepdims=True), atol=1e-6)
    assert sorted(p.name for p in model.manifest['folder'].iterdir()) == ['manifest.json', 'model.onnx']
    assert model.manifest['backbone']['library'] == 'onnx' and model.manifest['adopted']['same']['passed']


@pytest.mark.parametrize('kind', KINDS)
def test_old_scores_are_the_same_to_the_bit_by_onnx_runtime_alone(kind, exported, adopted, parts, tmp_path):
    "Twice: a class beside three, and then one more; the second file is read back before it grows"
    done = expand(adopted/f'{kind} none', parts.only(PARTS[3:4]), tmp_path/'a', mode='keep-scores')
    more = expand(done.folder, parts.only(PARTS[4:5]), tmp_path/'b', mode='keep-scores')
    files, logits = [exported/f'{kind}.onnx', tmp_path/'a'/'model.onnx', tmp_path/'b'/'model.onnx'], []
    x = np.random.default_rng(0).normal(0, 1, (4, 3, 48, 48)).astype('f')
    for i,path in enumerate(files):
        model = onnx.load(path)
        if kind == 'softmax': # the scores before it; after it nothing can be the same
            model.graph.output.insert(0, onnx.helper.make_tensor_value_info(
                next(n for n in model.graph.node if n.op_type == 'Softmax').input[0], 1, None))
        onnx.save(model, tmp_path/f'{i}.onnx')
        logits.append(onnx_scores(tmp_path/f'{i}.onnx', x))
    assert [l.shape[1] for l in logits] == [3, 4, 5]
    assert np.array_equal(logits[1][:,:3], logits[0]) and np.array_equal(logits[2][:,:4], logits[1])
    out, = [o for o in onnx.load(files[2]).graph.output]
    assert out.name == onnx.load(files[0]).graph.output[0].name and out.type.tensor_type.shape.dim[1].dim_value == 5
    onnx.checker.check_model(onnx.load(files[2]), full_check=True)
    with torch.no_grad(): ours = load_model(more.folder).net.cpu()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(logits[2], ours, atol=1e-5*max(1, np.abs(ours).max()))


def test_a_head_that_is_a_convolution_is_solved_on_the_mean_of_its_maps(exported, adopted, parts, tmp_path):
    from ridge_oracle import joint_logits
    whole, some, model = onnx.load(exported/'maps.onnx'), parts.only(PARTS[:4]), load_model(adopted/'maps all')
    done = expand(adopted/'maps all', parts.only(PARTS[3:4]), tmp_path/'a', mode='exact')
    at = [n for n in whole.graph.node if n.op_type == 'Conv'][-1].input[0]
    whole.graph.output.insert(0, onnx.helper.make_tensor_value_info(at, 1, None)); onnx.save(whole, tmp_path/'f.onnx')
    x, test = (onnx_scores(tmp_path/'f.onnx', pixels(some, model, s)).astype(float).mean((2, 3))
               for s in ('train', 'test'))
    classes = load_model(done.folder).classes
    want, _ = joint_logits(x, np.array([classes.index(l) for l in some.subset('train').label]), 4, test)
    got = onnx_scores(tmp_path/'a'/'model.onnx', pixels(some, model))
    np.testing.assert_allclose(got, want, atol=1e-3*np.abs(want).max())
    assert [n.op_type for n in onnx.load(tmp_path/'a'/'model.onnx').graph.node].count('Conv') == 1


@pytest.mark.parametrize('inputs', ['float16', 'float32'])
def test_half_precision_is_taken_in_as_single_and_said_so(inputs, exported, parts, tmp_path):
    "Against the same file in float32 whose numbers were rounded to float16 and back by numpy"
    from onnxruntime.transformers.float16 import convert_float_to_float16
    model, keep = onnx.load(exported/'conv.onnx'), inputs == 'float32'
    onnx.save(convert_float_to_float16(onnx.load(exported/'conv.onnx'), keep_io_types=keep), tmp_path/'half.onnx')
    for t in model.graph.initializer:
        a = onnx.numpy_helper.to_array(t)
        if a.dtype == 'f4': t.CopyFrom(onnx.numpy_helper.from_array(a.astype('f2').astype('f4'), t.name))
    onnx.save(model, tmp_path/'single.onnx')
    done = adopt(tmp_path/'half.onnx', tmp_path/'m', classes=PARTS[:3], **NORMAL)
    own = load_model(done.folder); x = pixels(parts, own)
    with torch.no_grad(): ours = own.net.cpu()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, onnx_scores(tmp_path/'single.onnx', x), atol=1e-5)
    theirs = onnx_scores(tmp_path/'half.onnx', x if keep else x.astype('f2')).astype('f4')
    assert 0 < np.abs(ours - theirs).max() < .01 and 'numbers are float16; it is adopted as float32' in done.lines()[-2]
    grown = expand(done.folder, parts.only(PARTS[3:4]), tmp_path/'n', mode='keep-scores')
    assert np.array_equal(onnx_scores(tmp_path/'m'/'model.onnx', x), onnx_scores(grown.folder/'model.onnx', x)[:,:3])


def test_with_old_items_it_is_joint_training(exported, adopted, parts, tmp_path):
    "The head that scikit-learn comes to, on features that the file gives as one more output; then merged with another"
    from ridge_oracle import joint_logits
    folder, model = adopted/'opset11 all', load_model(adopted/'opset11 all')
    done = expand(folder, parts.only(PARTS[3:4]), tmp_path/'a', mode='exact')
    whole = onnx.load(exported/'opset11.onnx')
    at = next(n for n in whole.graph.node if n.op_type == 'Gemm').input[0]
    whole.graph.output.insert(0, onnx.helper.make_tensor_value_info(at, 1, None)); onnx.save(whole, tmp_path/'f.onnx')
    some = parts.only(PARTS[:4])
    def same(folder, d):
        classes = load_model(folder).classes
        x, test = (onnx_scores(tmp_path/'f.onnx', pixels(d, model, s)).astype(float) for s in ('train', 'test'))
        want, _ = joint_logits(x, np.array([classes.index(l) for l in d.subset('train').label]), len(classes), test)
        got = onnx_scores(folder/'model.onnx', pixels(d, model))
        np.testing.assert_allclose(got, want, atol=1e-3*np.abs(want).max())
        assert np.ptp(want, 0).max() > .1*np.abs(want).max(), 'all scores alike would agree with anything'
    same(done.folder, some)
    other = expand(folder, parts.only(PARTS[4:5]), tmp_path/'b', mode='exact')
    both = merge_models(done.folder, other.folder, tmp_path/'c', folder)
    same(both, parts)
    with pytest.raises(InputError, match='different bodies'):
        merge_models(done.folder, adopted/'dynamo all', tmp_path/'d')
    fewer = expand(both, '', tmp_path/'e', remove=[PARTS[0]], rename={PARTS[1]: 'other'})
    assert onnx_scores(fewer.folder/'model.onnx', pixels(parts, model)).shape[1] == 4
    assert {*load_model(fewer.folder).classes} == {'other', *PARTS[2:5]}
    assert 'opset11.onnx' in family_tree(fewer.folder)[0] and len(family_tree(fewer.folder)) == 6


def test_what_trains_is_refused(adopted, parts, tmp_path):
    files, labels = parts.files('train'), parts.subset('train').label
    with pytest.raises(InputError, match='layers cannot be trained'):
        load_model(adopted/'dynamo all').learner(files[:4], labels[:4])
    with pytest.raises(InputError, match='layers cannot be trained.*keep-scores'):
        expand(adopted/'dynamo all', parts.only(PARTS[3:4]), tmp_path/'x', mode='fine-tune')
    assert [*tmp_path.iterdir()] == []


def test_a_changed_file_is_noticed(adopted, tmp_path):
    shutil.copytree(adopted/'dynamo none', tmp_path/'m')
    b = bytearray((tmp_path/'m'/'model.onnx').read_bytes()); b[9999] ^= 1; (tmp_path/'m'/'model.onnx').write_bytes(b)
    with pytest.raises(InputError, match='model.onnx` was changed'): load_model(tmp_path/'m')


def test_a_file_whose_head_would_answer_otherwise_is_not_kept(exported, tmp_path, monkeypatch):
    from tl_notebooks.learn import onnx_file
    was = onnx_file.keep_rows
    monkeypatch.setattr(onnx_file, 'keep_rows', lambda net, w, b: was(net, w.flip(0), b.flip(0)))
    with pytest.raises(NotTheSame, match='does not answer the same'):
        adopt(exported/'opset11.onnx', tmp_path/'m', classes='a,b,c', **NORMAL)
    assert [*tmp_path.iterdir()] == []


def test_a_larger_file_with_other_old_scores_is_not_kept(adopted, parts, tmp_path, monkeypatch):
    from tl_notebooks.learn import onnx_file
    was = onnx_file._with_parts
    def wrong(model, body, parts):
        for t in model.graph.initializer: # the head's bias
            if list(t.dims) == [3]:
                t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t) + 1e-6, t.name))
        return was(model, body, parts)
    monkeypatch.setattr(onnx_file, '_with_parts', wrong)
    with pytest.raises(RuntimeError, match='other old scores'):
        expand(adopted/'opset11 none', parts.only(PARTS[3:4]), tmp_path/'m', mode='keep-scores')
    assert [*tmp_path.iterdir()] == []


# --- images in other shapes

def by_hand(path, shape, kind=1, ops=(), k=3):
    "Mean of each channel, one hidden layer, a head; `ops`: what follows"
    rng, h = np.random.default_rng(0), onnx.helper
    numbers = dict(w=rng.normal(0, 1, (3, 16)), head=rng.normal(0, 1, (16, k)), bias=rng.normal(0, 1, k))
    axes = [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [h.make_node('Cast', ['x'], ['c'], to=1), h.make_node('ReduceMean', ['c'], ['p'], axes=axes, keepdims=0),
             h.make_node('MatMul', ['p', 'w'], ['q']), h.make_node('Tanh', ['q'], ['f']),
             h.make_node('MatMul', ['f', 'head'], ['m']), h.make_node('Add', ['bias', 'm'], ['s0'])]
    for i,op in enumerate(ops):
        nodes.append(h.make_node(op, [f's{i}'], [f's{i+1}'], domain='own' if op == 'Own' else ''))
    g = h.make_graph(nodes, 'g', [h.make_tensor_value_info('x', kind, shape)],
                     [h.make_tensor_value_info(f's{len(ops)}', 1, [shape[0], k])],
                     [onnx.numpy_helper.from_array(v.astype('f'), n) for n,v in numbers.items()])
    path.write_bytes(h.make_model(g, opset_imports=[h.make_opsetid('', 12), h.make_opsetid('own', 1)],
                                  ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize('how', ['channels last', 'bytes', 'one at a time'])
def test_images_as_other_tools_want_them(how, parts, tmp_path):
    shape, kind = {'channels last': (['n', 48, 48, 3], 1), 'bytes': (['n', 'h', 'w', 3], 2),
                   'one at a time': ([1, 3, 48, 48], 1)}[how]
    path = by_hand(tmp_path/'own.onnx', shape, kind)
    given = {k: v for k,v in NORMAL.items() if how != 'bytes' or k not in ('mean', 'std')}
    adopt(path, tmp_path/'m', classes='a,b,c', **given)
    model, files = load_model(tmp_path/'m'), parts.files('test')[:3]
    x = np.stack([model.task.take(f).numpy() for f in files])
    x = x if how == 'bytes' else ((x/255 - .5)/.5).astype('f')
    if shape[-1] == 3: x = x.transpose(0, 2, 3, 1)
    want = np.concatenate([onnx_scores(path, x[i:i+1]) for i in range(3)])
    with torch.inference_mode(): got = model.net.head(model.features(files).to(model.device)).cpu().numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)
    done = expand(tmp_path/'m', parts.only(PARTS[3:4]), tmp_path/'n', mode='keep-scores')
    assert np.array_equal(onnx_scores(done.folder/'model.onnx', x[:1])[:,:3], want[:1])


# --- texts

WORDS = '[PAD] [UNK] [CLS] [SEP] the movie was good bad plot a Great'.split()

@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    "A small BERT with its tokenizer.json: exported for any length, and for one text of 16 tokens without a mask"
    from tokenizers import Tokenizer, models, pre_tokenizers
    root = tmp_path_factory.mktemp('texts')
    t = Tokenizer(models.WordLevel({w: i for i,w in enumerate(WORDS)}, unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.save(str(root/'tokenizer.json'))
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, num_labels=3)).eval()
    ids = torch.randint(1, 12, (2, 16))
    axes = {k: {0: 'n', 1: 't'} for k in ('input_ids', 'attention_mask')}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(model, (), root/'bert.onnx', kwargs=dict(input_ids=ids, attention_mask=ids*0 + 1),
                          dynamo=False, input_names=[*axes], output_names=['logits'], dynamic_axes=axes,
                          opset_version=14)
        torch.onnx.export(model, (), root/'fixed.onnx', kwargs=dict(input_ids=ids[:1]), dynamo=False,
                          input_names=['input_ids'], opset_version=14)
    return root, model


SOME = ['the movie was good', 'bad plot', 'a Great movie was a bad plot the plot', 'good']

@pytest.mark.parametrize('kind', ['bert', 'fixed'])
def test_a_text_classifier_answers_and_grows(kind, texts, tmp_path):
    "bert: with a mask, whatever stands behind a short text's end; fixed: 16 tokens, and no mask"
    root, own = texts
    adopt(root/f'{kind}.onnx', tmp_path/'m', classes='x,y,z', tokenizer=root/'tokenizer.json')
    model = load_model(tmp_path/'m')
    assert model.task.pre['max_tokens'] == dict(bert=32, fixed=16)[kind]
    with torch.inference_mode():
        got = model.net.head(model.features(SOME, bs=4).to(model.device)).cpu()
        ids = [[WORDS.index(w) for w in t.split()] for t in SOME]
        if kind == 'fixed': want = torch.cat([own(torch.tensor([i + [0]*(16 - len(i))])).logits for i in ids])
        else: want = torch.cat([own(torch.tensor([i])).logits for i in ids])
    assert torch.allclose(got, want, atol=1e-5)
    (tmp_path/'new.csv').write_text('text,label\n' + ''.join(f'the plot was {a} {b},plot\n' for a in WORDS[4:]
                                                              for b in WORDS[4:]))
    done = expand(tmp_path/'m', tmp_path/'new.csv', tmp_path/'n', mode='keep-scores')
    feeds = dict(input_ids=np.array([ids[0] + [0]*12]))
    if kind == 'bert': feeds['attention_mask'] = (feeds['input_ids'] > 0).astype(np.int64)
    old, new = (onnx_scores(p, feeds) for p in (root/f'{kind}.onnx', done.folder/'model.onnx'))
    assert new.shape == (1, 4) and np.array_equal(new[:,:3], old)
    assert sorted(p.name for p in done.folder.iterdir()) == [
        'certificate.html', 'certificate.json', 'learned.safetensors', 'manifest.json', 'model.onnx',
        'statistics.safetensors', 'tokenizer.json', 'tokenizer_config.json']


# --- requests that are wrong

def test_the_command_takes_in_a_file_and_grows_it(exported, parts, tmp_path):
    files = ('dynamo.onnx', 'dynamo.onnx.data') # torch keeps the numbers beside the file
    for f in files: shutil.copy(exported/f, tmp_path)
    run = tl('adopt', files[0], '--classes', ','.join(PARTS[:3]), '--mean', '.5', '--std', '.5', '--out', 'm',
             cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == 'm', run.stderr
    assert 'scores: greatest difference to its own code' in run.stderr and '3 classes on 512 features' in run.stderr
    for f in files: (tmp_path/f).unlink() # the folder is whole
    for p,label in zip(parts.files('train'), parts.subset('train').label):
        (tmp_path/'new'/PARTS[3]).mkdir(parents=True, exist_ok=True)
        if label == PARTS[3]: shutil.copy(p, tmp_path/'new'/label)
    run = tl('expand', 'm', '--data', 'new', '--mode', 'keep-scores', '--out', 'n', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert family_tree(tmp_path/'n')[0].startswith('dynamo.onnx, weights')


def wrong(kind, folder, exported):
    "A file that must be refused, and what the message says"
    own, image = folder/'own.onnx', ['n', 3, 48, 48]
    if kind == 'no onnx': own.write_text('hello, world\n'*9); return own, 'no ONNX file'
    if kind == 'empty': own.write_bytes(b''); return own, 'no ONNX file'
    if kind == 'truncated': own.write_bytes((exported/'opset11.onnx').read_bytes()[:100_000]); return own, 'damaged or'
    if kind == 'custom': return by_hand(own, image, ops=('Own',)), r'custom operators \(own::Own\)'
    if kind == 'unknown': return by_hand(own, image, ops=('Softmax', 'Nonsense')), 's2` comes from Nonsense'
    if kind == 'sigmoid': return by_hand(own, image, ops=('Sigmoid',)), 's1` comes from Sigmoid'
    if kind == 'one score': return by_hand(own, image, k=1), '1 scores, but there are 3|gives one score'
    if kind == 'classes': return by_hand(own, image, k=4), 'gives 4 scores, but there are 3 class names'
    if kind == 'grey': return by_hand(own, ['n', 1, 48, 48]), r"takes `x` of float32 \('\?', 1, 48, 48\)"
    if kind == 'size': return by_hand(own, ['n', 3, 32, 32]), 'does not take images of 48 pixels'
    if kind == 'double': return by_hand(own, image, kind=11), 'takes `x` of float64'
    if kind == 'relu':
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                                  torch.nn.Flatten())
        return export(net, own), 'Flatten of GlobalAveragePool of Relu'
    model = onnx.load_model_from_string((exported/'opset11.onnx').read_bytes())
    if kind == 'old':
        model.opset_import[0].version = 9; onnx.save(model, own); return own, 'has opset 9; accepted: 11 and later'
    if kind in ('outside', 'link', 'missing', 'short'):
        secret = folder.parent/f'{folder.name} secret.bin'
        onnx.save(model, own, save_as_external_data=True, location='numbers.bin', size_threshold=0)
        shutil.move(folder/'numbers.bin', secret)
        if kind == 'missing': return own, 'numbers.bin`, which is missing'
        if kind == 'short': (folder/'numbers.bin').write_bytes(secret.read_bytes()[:99]); return own, 'is too short'
        if kind == 'link': (folder/'numbers.bin').symlink_to(secret); return own, 'numbers.bin`, which lies outside'
        model = onnx.load(own, load_external_data=False)
        for t in model.graph.initializer:
            for e in t.external_data:
                if e.key == 'location': e.value = f'../{secret.name}'
        own.write_bytes(model.SerializeToString())
        return own, 'which lies outside its folder. It was not read'
    raise ValueError(kind)


WRONG = ['no onnx', 'empty', 'truncated', 'custom', 'unknown', 'sigmoid', 'one score', 'classes', 'grey', 'size',
         'double', 'relu', 'old', 'outside', 'link', 'missing', 'short']

@pytest.mark.parametrize('kind', WRONG)
def test_what_cannot_be_taken_in_is_refused_in_one_message(kind, exported, tmp_path):
    (tmp_path/'in').mkdir()
    path, says = wrong(kind, tmp_path/'in', exported)
    with pytest.raises(InputError, match=says): adopt(path, tmp_path/'out'/'m', classes='a,b,c', **NORMAL)
    assert not (tmp_path/'out').exists()


def test_a_tokenizer_is_wanted_where_there_are_tokens(texts, exported, tmp_path):
    shutil.copy(texts[0]/'bert.onnx', tmp_path)
    with pytest.raises(InputError, match='tokenizer.json` does not exist. Accepted: `--tokenizer`'):
        adopt(tmp_path/'bert.onnx', tmp_path/'m', classes='a,b,c')
    (tmp_path/'tokenizer.json').write_text('{}')
    with pytest.raises(InputError, match='no tokenizer that can be read'):
        adopt(tmp_path/'bert.onnx', tmp_path/'m', classes='a,b,c')
    with pytest.raises(InputError, match='takes images, which have no `tokenizer`'):
        adopt(exported/'opset11.onnx', tmp_path/'m', classes='a,b,c', tokenizer=texts[0])
    with pytest.raises(InputError, match='is about ONNX files'):
        adopt(os.devnull, tmp_path/'m', classes='a,b,c', tokenizer=texts[0])
    assert not (tmp_path/'m').exists()
