"""Models trained elsewhere: taken in as backbones and as models, beside the framework's own forward pass and
processor."""
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from conftest import tl

import tl_notebooks  # noqa: F401  before timm and torchvision
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.data.samples import PARTS, make_parts, sample_path
from tl_notebooks.data.texts import read_texts
from tl_notebooks.expand.door import expand
from tl_notebooks.learn.text import text_learner, text_net
from tl_notebooks.learn.vision import image_learner, image_net, image_tensor
from tl_notebooks.models.adopt import adopt
from tl_notebooks.models.save import load_model

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp('parts')
    make_parts(root, kinds=PARTS[:2], n=8, size=64)
    return read_images(root, valid_pct=.25, test_pct=.25)


def timm_model(arch='resnet18', n=3, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=n, **kwargs)
    for m in model.modules(): # running statistics that are not those of a fresh network
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
    return model.eval()


def pooled(maps): return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)


# --- bodies

@pytest.mark.parametrize('how', ['plain', 'no head', 'module.', 'model.', '_orig_mod.', 'learner.model.', 'ema', 'tar'])
def test_a_checkpoint_gives_the_body_that_its_library_runs(how, tmp_path):
    model, x = timm_model(), torch.rand(2, 3, 64, 64)
    state, path = model.state_dict(), tmp_path/'own.pth'
    if how == 'no head': state = {k: v for k,v in state.items() if not k.startswith('fc.')}
    if how.endswith('.'): state = {how + k: v for k,v in state.items()} | {'loss.weight': torch.zeros(3)}
    if how == 'ema': state = {'epoch': 3, 'state_dict': timm_model(seed=1).state_dict(), 'state_dict_ema': state}
    if how == 'tar': state, path = {'state_dict': state, 'best': .9}, tmp_path/'own.pth.tar'
    torch.save(state, path)
    net, info = image_net('resnet18', 2, path, size=64)
    with torch.no_grad(): assert torch.allclose(net.eval().features(x), pooled(model.forward_features(x)), atol=1e-5)
    assert (info['name'], info['licence'], info['assumed']) == (path.name, None, ['mean', 'std'])


@pytest.mark.parametrize('what', ['timm', 'torchvision', 'state', 'own'])
@torch.no_grad()
def test_a_module_or_a_state_dict_is_a_backbone(what):
    x = torch.rand(2, 3, 64, 64)
    if what == 'torchvision':
        torch.manual_seed(0); model = torchvision.models.resnet18(num_classes=3).eval()
        want = pooled(torch.nn.Sequential(*[*model.children()][:-2])(x))
    elif what == 'own':
        model = torch.nn.Sequential(timm_model(), torch.nn.ReLU(), torch.nn.Linear(3, 4)).eval()
        want = model[:2](x)
    else: model = timm_model(); want = pooled(model.forward_features(x))
    given = dict(backbone='resnet18', weights=model.state_dict()) if what == 'state' else dict(backbone=model)
    net, info = image_net(**given, n_classes=2, size=64, mean='0.5', std=[.2, .2, .2])
    assert torch.allclose(net.eval().features(x), want, atol=1e-5)
    assert (info['licence'], info['mean'], info['std']) == (None, [.5]*3, [.2]*3) and 'assumed' not in info
    assert info['library'] == dict(timm='timm', torchvision='torchvision', state='timm', own=None)[what]


def vit(folder, processor=True, n=3):
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
                                    image_size=48, patch_size=16, id2label={i: f'kind {i}' for i in range(n)},
                                    label2id={f'kind {i}': i for i in range(n)})
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    if processor: transformers.ViTImageProcessor(size=dict(height=48, width=48)).save_pretrained(folder)
    return model


def test_a_folder_of_transformers_is_an_image_backbone(tmp_path, parts):
    model, x = vit(tmp_path/'vit'), torch.rand(2, 3, 48, 48)
    learn = image_learner(parts, tmp_path/'vit', precision='fp32', seed=0)
    with torch.no_grad():
        want = model.vit(x).last_hidden_state[:,0]
        assert torch.allclose(learn.model.eval().features(x), want, atol=1e-5)
    assert (learn.info['size'], learn.info['mean'], learn.info['licence']) == (48, [.5]*3, None)
    assert 'assumed' not in learn.info
    with learn.no_bar(): learn.probe()
    learn.save_model(tmp_path/'saved')
    again = load_model(tmp_path/'saved')
    with torch.no_grad(): assert torch.equal(again.net(x), learn.model.eval()(x))
    vit(tmp_path/'bare', processor=False)
    assert image_net(tmp_path/'bare', 2)[1]['assumed'] == ['mean', 'std']


def test_a_folder_of_timm_says_what_its_images_are_like(tmp_path):
    from timm.models import save_for_hf
    model = timm_model('resnet10t', n=3)
    model.pretrained_cfg = model.pretrained_cfg | dict(license='mit', mean=(.1, .2, .3))
    save_for_hf(model, tmp_path/'own', model_config=dict(label_names=['a', 'b', 'c']))
    net, info = image_net(tmp_path/'own', 2)
    assert (info['name'], info['licence'], info['mean']) == ('own', 'mit', [.1, .2, .3]) and 'assumed' not in info
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(net.eval().features(x), pooled(model.forward_features(x)), atol=1e-5)


def test_a_module_of_ones_own_learns_but_is_not_kept_in_a_folder(parts, tmp_path):
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2))
    learn = image_learner(parts, own, size=32, mean=.5, std=.5, precision='fp32', seed=0)
    with learn.no_bar(), learn.no_logging(): learn.probe(); learn.fine_tune(1)
    with pytest.raises(InputError, match='Sequential of your own, whose code no model folder can hold'):
        learn.save_model(tmp_path/'m')
    assert not (tmp_path/'m').exists()


def test_the_architecture_that_would_fit_is_named(tmp_path):
    torch.save(timm_model('resnet26').state_dict(), tmp_path/'r.pth')
    with pytest.raises(InputError, match=r'unexpected \(layer1.0.*They would fit timm/resnet26'):
        image_net('resnet18', 2, tmp_path/'r.pth')


@pytest.mark.parametrize('name', ['r.pth', 'r.onnx', 'r.safetensors'])
def test_who_expands_a_file_is_told_how_it_is_taken_in(name, tmp_path):
    (tmp_path/name).write_bytes(b'x')
    with pytest.raises(InputError, match=f'is a file.*tl adopt .*{name}$'):
        expand(tmp_path/name, tmp_path, tmp_path/'out')


@pytest.mark.parametrize('mean', ['0.5,0.5', 'a', '1,2,x', [1, 2]])
def test_a_wrong_mean_is_refused(mean):
    with pytest.raises(InputError, match='`mean` is .*accepted: three numbers'):
        image_net('resnet18', 2, 'random', mean=mean)


def tokenizer(folder, words=('good', 'bad', 'movie', 'plot', 'Great', 'the', 'a', 'was'), **kwargs):
    "A tokenizer of whole words, as transformers reads it"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    vocab = {w: i for i,w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *words])}
    t = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]',
                                                     special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', unk_token='[UNK]',
                                                cls_token='[CLS]',
                                                sep_token='[SEP]', eos_token='[SEP]', model_max_length=32, **kwargs)
    if folder: fast.save_pretrained(folder)
    return fast


def bert(folder, n=3, **kwargs):
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=32, num_labels=n, **kwargs)
    model = transformers.BertForSequenceClassification(config).eval()
    if folder: model.save_pretrained(folder)
    tokenizer(folder)
    return model


@pytest.mark.parametrize('how', ['folder', 'file', 'state', 'module'])
def test_a_language_model_with_another_head_is_a_backbone(how, tmp_path):
    model = bert(tmp_path/'m')
    other = transformers.BertForSequenceClassification(transformers.AutoConfig.from_pretrained(tmp_path/'m')).eval()
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, -1]])
    given = dict(backbone=str(tmp_path/'m'))
    if how != 'folder':
        model = other
        if how == 'file':
            save_file({f'module.{k}': v.contiguous() for k,v in other.state_dict().items()}, tmp_path/'w.safetensors')
        given['weights'] = tmp_path/'w.safetensors' if how == 'file' else other.state_dict()
        if how == 'module': given = dict(backbone=other, tok=tokenizer(None))
    net, _, info = text_net(**given, n_classes=2)
    with torch.no_grad():
        h = model.bert(ids.clamp(min=0), attention_mask=(ids >= 0).long()).last_hidden_state
        want = torch.stack([h[0].mean(0), h[1,:3].mean(0)])
        assert torch.allclose(net.eval().features(ids), want, atol=1e-5)
    assert info['licence'] is None


def test_a_language_model_needs_its_tokenizer(tmp_path):
    with pytest.raises(InputError, match='accepted: that as `tok` too'): text_net(bert(None), 2)
    with pytest.raises(InputError, match='is a Linear; accepted: models of transformers'):
        text_net(torch.nn.Linear(1, 1), 2)
    data = read_texts(sample_path('reviews'))
    learn = text_learner(data, bert(None), tok=tokenizer(None), max_tokens=16, precision='fp32')
    with learn.no_bar(): learn.probe()
    assert learn.save_model(tmp_path/'m').is_dir() and load_model(tmp_path/'m').classes == data.classes


# --- models

TIMM = ['resnet10t', 'efficientnet_lite0', 'mobilenetv3_small_050', 'convnext_atto', 'vit_tiny_patch16_224',
        'regnetx_002',
        'tiny_vit_5m_224', 'efficientvit_m0', 'mixer_s32_224', 'ghostnet_050']
TORCHVISION = ['resnet18', 'mobilenet_v2', 'shufflenet_v2_x0_5', 'mnasnet0_5', 'efficientnet_b0']


def photographs(n=8):
    "Images of several shapes with natural structure"
    from sklearn.datasets import load_sample_images
    from PIL import Image
    out = [Image.fromarray(i) for i in load_sample_images().images]
    rng = torch.Generator().manual_seed(0)
    while len(out) < n:
        w, h, x, y = (int(v) for v in torch.randint(60, 380, (4,), generator=rng))
        out.append(out[len(out) % 2].crop((x % 240, y % 180, x % 240 + w, y % 180 + h)))
    return out


def same(model, folder, *x):
    "Greatest difference of the scores in units of the largest, on an input that the framework's own code is given too"
    with torch.no_grad(): theirs, ours = model.eval()(*x), load_model(folder).net.cpu()(*x)
    theirs = getattr(theirs, 'logits', theirs)
    return float((theirs - ours).abs().max()/theirs.abs().max().clamp(min=1))


@pytest.mark.parametrize('arch', TIMM)
def test_a_model_of_timm_answers_and_prepares_as_timm_does(arch, tmp_path):
    from timm.models import save_for_hf
    small = dict(img_size=96) if arch.startswith('vit_') else {}
    model = timm_model(arch, **small)
    save_for_hf(model, tmp_path/'own', model_config=dict(label_names=['a', 'b', 'c']))
    done = adopt(tmp_path/'own', tmp_path/'m')
    pre, again = done.report['preparation'], load_model(done.folder)
    assert same(model, done.folder, torch.randn(2, 3, *[pre['size']]*2)) < 1e-5 and again.classes == ['a', 'b', 'c']
    side = dict(input_size=(3, 96, 96)) if small else {}
    tfm = timm.data.create_transform(**timm.data.resolve_data_config(side, model=model))
    std = torch.tensor(pre['std']).view(3, 1, 1)
    for im in photographs():
        ours = again.task.normal(image_tensor(im, **again.task.reading)[None].to(again.device))[0].cpu()
        assert ((ours - tfm(im)).abs()*std*255).max() <= 2


@pytest.mark.parametrize('arch', TORCHVISION)
def test_a_state_dict_of_torchvision_answers_as_torchvision_does(arch, tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, num_classes=3).eval()
    torch.save({f'module.{k}': v for k,v in model.state_dict().items()}, tmp_path/'own.pth')
    done = adopt(tmp_path/'own.pth', tmp_path/'m', arch=f'torchvision/{arch}', classes='a,b,c')
    assert same(model, done.folder, torch.randn(2, 3, 224, 224)) < 1e-5
    assert done.report['assumed'] == ['size', 'resize', 'interpolation', 'mean', 'std'], 'the file does not say'
    assert load_model(done.folder).manifest['backbone']['licence'] is None
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    again = load_model(done.folder)
    for im in photographs(4):
        ours = again.task.normal(image_tensor(im, **again.task.reading)[None].to(again.device))[0].cpu()
        assert ((ours - preset(im)).abs()*torch.tensor(preset.std).view(3, 1, 1)*255).max() <= 2


def labelled(n): return dict(id2label={i: f'kind {i}' for i in range(n)}, label2id={f'kind {i}': i for i in range(n)})

def hf_image(family):
    "A small classifier of a family and its own processor"
    t, n = transformers, labelled(3)
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64)
    if family == 'vit': return t.ViTForImageClassification(t.ViTConfig(**small, **n)), t.ViTImageProcessor(
        size=dict(height=64, width=64))
    if family == 'convnext': return t.ConvNextForImageClassification(t.ConvNextConfig(
        hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, **n)), t.ConvNextImageProcessor(size=dict(shortest_edge=96))
    if family == 'resnet': return t.ResNetForImageClassification(t.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], **n)), t.ConvNextImageProcessor(
            size=dict(shortest_edge=64), crop_pct=.875, resample=3)
    if family == 'mobilevit': return t.MobileViTForImageClassification(t.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 12, 16, 16, 20, 32], num_attention_heads=2,
        **n)), t.MobileViTImageProcessor(size=dict(shortest_edge=72), crop_size=dict(height=64, width=64))
    return t.Dinov2ForImageClassification(t.Dinov2Config(**{k: v for k,v in small.items() if k != 'intermediate_size'},
                                                         patch_size=16, **n)), t.BitImageProcessor(
        size=dict(shortest_edge=73), crop_size=dict(height=64, width=64), resample=3)


@pytest.mark.parametrize('family', ['vit', 'convnext', 'resnet', 'mobilevit', 'dinov2'])
def test_an_image_model_of_transformers_answers_and_prepares_as_transformers_does(family, tmp_path):
    torch.manual_seed(0)
    model, processor = hf_image(family)
    model.save_pretrained(tmp_path/'own'); processor.save_pretrained(tmp_path/'own')
    done = adopt(tmp_path/'own', tmp_path/'m')
    again, pre = load_model(done.folder), done.report['preparation']
    assert done.report['prepared_by'] == 'its own processor' and again.classes == ['kind 0', 'kind 1', 'kind 2']
    for im in photographs(6):
        x = processor(images=im, return_tensors='pt')['pixel_values']
        ours = again.task.normal(image_tensor(im, **again.task.reading)[None].to(again.device)).cpu()
        assert ((ours - x).abs()*torch.tensor(pre['std']).view(3, 1, 1)*255).max() <= 2
        assert same(model, done.folder, x) < 1e-5


def hf_text(family):
    t, n = transformers, labelled(3)
    small = dict(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                 max_position_embeddings=40, pad_token_id=0, eos_token_id=3)
    if family == 'bert': return t.BertForSequenceClassification(t.BertConfig(**small, **n))
    if family == 'roberta': return t.RobertaForSequenceClassification(t.RobertaConfig(**small, **n))
    if family == 'distilbert': return t.DistilBertForSequenceClassification(t.DistilBertConfig(
        vocab_size=12, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40, **n))
    if family == 'gpt2': return t.GPT2ForSequenceClassification(t.GPT2Config(
        vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=40, pad_token_id=0, eos_token_id=3, **n))
    if family == 'modernbert': return t.ModernBertForSequenceClassification(t.ModernBertConfig(
        **small, bos_token_id=2, cls_token_id=2, sep_token_id=3, **n))
    return t.ElectraForSequenceClassification(t.ElectraConfig(**small, embedding_size=16, **n))


@pytest.mark.parametrize('family', ['bert', 'roberta', 'distilbert', 'gpt2', 'modernbert', 'electra'])
def test_a_text_model_of_transformers_answers_as_its_pipeline_does(family, tmp_path):
    torch.manual_seed(0)
    model = hf_text(family).eval()
    model.save_pretrained(tmp_path/'own'); tokenizer(tmp_path/'own')
    done = adopt(tmp_path/'own', tmp_path/'m')
    texts = ['the movie was good', 'bad', 'a plot Great ' * 9, 'unheard of words']
    pipe = transformers.pipeline('text-classification', model=str(tmp_path/'own'), top_k=None, device='cpu')
    again = load_model(done.folder)
    for text,p in zip(texts, again.predict(texts)):
        theirs = {r['label']: r['score'] for r in pipe([text], truncation=True)[0]}
        assert max(abs(p.probabilities[c] - theirs[c]) for c in theirs) < 1e-5
    assert again.manifest['backbone']['model'] == model.config.model_type


@pytest.mark.parametrize('kind', ['torchvision', 'timm', 'other head'])
def test_what_fastai_saved_answers_as_its_learner_does(kind, parts, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Resize, resnet18, vision_learner
    dls = ImageDataLoaders.from_folder(parts.root, valid_pct=.3, seed=0, item_tfms=Resize(64), bs=4, num_workers=0)
    arch = 'resnet10t' if kind == 'timm' else resnet18
    learn = vision_learner(dls, arch, pretrained=False, path=tmp_path,
                           **(dict(lin_ftrs=[20], concat_pool=False) if kind == 'other head' else {}))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    learn.save('own', with_opt=False)
    name = 'timm/resnet10t' if kind == 'timm' else 'torchvision/resnet18'
    done = adopt(tmp_path/'models'/'own.pth', tmp_path/'m', arch=name, classes=[*dls.vocab], size=64, mean=0, std=1)
    files = parts.files('test')
    with learn.no_bar(): theirs, _ = learn.get_preds(dl=dls.test_dl(files))
    ours = load_model(done.folder).predict(files)
    assert max(abs(p.probabilities[c] - t[i]) for p,t in zip(ours, theirs) for i,c in enumerate(dls.vocab)) < 1e-3
    learn.save('with optimiser')
    with pytest.raises(InputError, match=r"learn.save\('name', with_opt=False\)"):
        adopt(tmp_path/'models'/'with optimiser.pth', tmp_path/'n', arch=name, classes=[*dls.vocab])


def sentences(folder, pooling='mean', normalize=True, k=3):
    "A sentence transformer and scikit-learn's logistic regression on what it gives"
    import numpy as np
    from sentence_transformers import SentenceTransformer, models
    from sklearn.linear_model import LogisticRegression
    bert(folder/'..'/'inner')
    parts = [models.Transformer(str(folder/'..'/'inner'), max_seq_length=16), models.Pooling(16, pooling)]
    model = SentenceTransformer(modules=parts + [models.Normalize()]*normalize, device='cpu')
    model.save(str(folder))
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(['good', 'bad', 'movie', 'plot', 'Great', 'the', 'a', 'was'], 5)) for _ in range(30)]
    return model, LogisticRegression().fit(model.encode(texts), np.array(['x', 'y', 'z'][:k])[rng.integers(0, k,
            30)]), texts


@pytest.mark.parametrize('pooling, normalize, k', [('mean', True, 3), ('cls', False, 3), ('mean', False, 2)])
def test_a_sentence_transformer_answers_as_scikit_learn_on_it_does(pooling, normalize, k, tmp_path, monkeypatch):
    import joblib
    model, head, texts = sentences(tmp_path/'own', pooling, normalize, k)
    joblib.dump(head, tmp_path/'own'/'model_head.pkl')
    with pytest.raises(InputError, match='is a pickle') as e: adopt(tmp_path/'own', tmp_path/'m')
    lines = str(e.value).split('save what is needed:\n')[1]
    monkeypatch.chdir(tmp_path/'own')
    exec('\n'.join(l[4:] for l in lines.splitlines()), {})
    done = adopt(tmp_path/'own', tmp_path/'m')
    theirs = head.predict_proba(model.encode(texts))
    for p,t in zip(load_model(done.folder).predict(texts), theirs):
        assert max(abs(p.probabilities[c] - v) for c,v in zip(head.classes_, t)) < 1e-5


# --- going on

@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    "Two kinds of parts learned by timm and torch alone, on a pretrained body; images of these and of a third kind"
    import torch.nn.functional as F
    from tl_notebooks.data.decode import open_image
    from tl_notebooks.learn.backbones import load_image_model
    root = tmp_path_factory.mktemp('elsewhere')
    make_parts(root/'all', kinds=PARTS[:3], n=16, size=96)
    for i,kind in enumerate(PARTS[:3]):
        for j,p in enumerate(sorted((root/'all'/kind).iterdir())):
            place = root/(('judge new' if i == 2 else 'judge') if j % 4 == 3 else 'new' if i == 2
                          else 'old')/kind/p.name
            place.parent.mkdir(parents=True, exist_ok=True); p.rename(place)
            if place.parts[-3] == 'old' and j < 1:
                (root/'one'/kind).mkdir(parents=True); shutil.copy(place, root/'one'/kind)
    model = timm.create_model('tf_efficientnet_lite0', num_classes=2)
    body = load_image_model('efficientnet_lite0')[0].state_dict()
    model.load_state_dict({k: v for k,v in body.items() if 'classifier' not in k}, strict=False)
    files = [(p, i) for i,kind in enumerate(PARTS[:2]) for p in sorted((root/'old'/kind).iterdir())]
    tfm = timm.data.create_transform((3, 96, 96), is_training=False, crop_pct=1., mean=(.5,)*3, std=(.5,)*3)
    with torch.no_grad():
        x = model.eval().forward_features(torch.stack([tfm(open_image(p)) for p,_ in files])).mean((2, 3))
    y, torch_opt = torch.tensor([i for _,i in files]), torch.optim.AdamW(model.classifier.parameters(), 1e-2)
    for _ in range(80):
        loss = F.cross_entropy(model.classifier(x), y); torch_opt.zero_grad(); loss.backward(); torch_opt.step()
    torch.save(model.state_dict(), root/'own.pth')
    return root, model.eval()


def taken(root, out, **kwargs):
    return adopt(root/'own.pth', out, arch='tf_efficientnet_lite0', classes=PARTS[:2], size=96, scale=96, mean=.5,
                 std=.5,
                 interpolation='bilinear_exact', **kwargs)


@pytest.fixture(scope='module')
def adopted(elsewhere, tmp_path_factory):
    "The same without old items, with one of each class, and with all"
    root, out = elsewhere[0], tmp_path_factory.mktemp('adopted')
    return {k: taken(root, out/k, data=d).folder for k,d in dict(none='', one=root/'one', all=root/'old').items()}


def files_of(folder): return [(p, p.parent.name) for p in sorted(folder.glob('*/*.*'))]


def scores(folder, files):
    m = load_model(folder)
    with torch.inference_mode(): return m.net.head(m.features(files).to(m.device)).cpu()


@pytest.mark.parametrize('had', ['none', 'one', 'all'])
def test_a_class_is_added_beside_the_head_whatever_is_left_of_old_items(had, elsewhere, adopted, tmp_path):
    (root, model), judge = elsewhere, files_of(elsewhere[0]/'judge') + files_of(elsewhere[0]/'judge new')
    done = expand(adopted[had], root/'new', tmp_path/'larger', mode='keep-scores',
                  old=root/'judge' if had != 'none' else '')
    c, paths = done.certificate, [p for p,_ in judge]
    before, after = scores(adopted[had], paths), scores(done.folder, paths)
    assert torch.equal(after[:,:2], before) and c['new_classes'] == [PARTS[2]]
    from tl_notebooks.data.decode import open_image
    tfm = timm.data.create_transform((3, 96, 96), is_training=False, crop_pct=1., mean=(.5,)*3, std=(.5,)*3)
    with torch.no_grad(): theirs = model(torch.stack([tfm(open_image(p)) for p in paths]))
    assert torch.allclose(after[:,:2], theirs, atol=.2), 'Pillow and our reader differ by a level at most'
    right = (after.argmax(1).numpy() == [PARTS.index(l) for _,l in judge]).mean()
    known = {'none': [], 'one': files_of(root/'one'), 'all': files_of(root/'old')}[had] + files_of(root/'new')
    from sklearn.neighbors import NearestCentroid
    features = load_model(adopted['all']).features
    y = [PARTS.index(l) for _,l in known]
    baseline = 1/3 if had != 'one' else NearestCentroid().fit(features([p for p,_ in known]), y).score(
        features(paths), [PARTS.index(l) for _,l in judge])
    assert right >= baseline, (right, baseline)
    assert c['old_items'] == {k: dict(none=0, one=1, all=12)[had] for k in PARTS[:2]}
    notes = ' '.join(c['notes'])
    assert ('there are no items of the old classes' in notes) == (had == 'none')
    assert ('come from few items: 1 to 1 of each' in notes) == (had == 'one')
    if had == 'none': assert 'cannot be judged' in notes


def test_with_old_items_an_adopted_model_is_joint_training(elsewhere, adopted, tmp_path):
    """Whether they are given when it is adopted, or when it is expanded: the head that scikit-learn comes to on all
    items"""
    import numpy as np
    from ridge_oracle import joint_logits
    root, paths = elsewhere[0], [p for p,_ in files_of(elsewhere[0]/'judge')]
    model = load_model(adopted['all'])
    items = files_of(root/'old') + files_of(root/'new')
    x, test = model.features([p for p,_ in items]).double().numpy(), model.features(paths).double().numpy()
    want, _ = joint_logits(x, np.array([PARTS.index(l) for _,l in items]), 3, test)
    first = expand(adopted['all'], root/'new', tmp_path/'a', mode='exact', test_pct=0.)
    later = expand(adopted['none'], root/'new', tmp_path/'b', mode='exact', test_pct=0., old=root/'old')
    for folder in (first.folder, later.folder):
        np.testing.assert_allclose(scores(folder, paths).numpy(), want, atol=1e-3*max(1, np.abs(want).max()))
    fewer = expand(first.folder, '', tmp_path/'c', remove=[PARTS[0]])
    assert load_model(fewer.folder).classes == [*PARTS[1:3]]


def two_of(folder, out):
    for kind in PARTS[:2]:
        (out/kind).mkdir(parents=True)
        for p in sorted((folder/kind).iterdir())[:2]: shutil.copy(p, out/kind)
    return out


def test_with_few_old_items_the_head_looks_through_the_old_scores(elsewhere, adopted, tmp_path):
    "One image of each old class: every new score is a linear function of the old ones and of one number more"
    root, paths = elsewhere[0], [p for p,_ in files_of(elsewhere[0]/'judge') + files_of(elsewhere[0]/'judge new')]
    done = expand(adopted['one'], root/'new', tmp_path/'m', mode='few', test_pct=0.)
    c, old, new = done.certificate, scores(adopted['one'], paths).numpy(), scores(done.folder, paths).numpy()
    assert c['mode'] == 'few' and 'solved on the scores of the one that was adopted' in ' '.join(c['notes'])
    assert c['head']['kind'] == "solved on the old head's scores" and c['head']['left_out'] is None
    auto = expand(adopted['one'], root/'new', tmp_path/'auto', test_pct=0.) # which is what happens where nobody says
    assert np.array_equal(scores(auto.folder, paths).numpy()[:,:2], old) and auto.certificate['mode'] == 'keep-scores'
    assert 'there are 1 to 1 old items of each class, and one cannot be left out' in ' '.join(auto.certificate['notes'])
    assert np.linalg.matrix_rank(new - new.mean(0), tol=1e-3*np.ptp(new)) <= old.shape[1] + 1
    two = taken(root, tmp_path/'two', data=two_of(root/'old', tmp_path/'few')).folder
    c = expand(two, root/'new', tmp_path/'auto 2', test_pct=0.).certificate
    assert 'there are 2 to 2 old items of each class, each left out' in ' '.join(c['notes']) or c['mode'] == 'exact'
    for bad in (dict(mode='few', remove=[PARTS[0]]), dict(mode='few', rename={PARTS[0]: 'x'}, data='')):
        with pytest.raises(InputError, match='`few` is for an adopted model'):
            expand(adopted['one'], bad.pop('data', root/'new'), tmp_path/'x', **bad)


def test_without_old_items_a_head_is_not_solved_again(elsewhere, adopted, tmp_path):
    for kwargs in (dict(mode='exact'), dict(mode='fine-tune'), dict(mode='auto', remove=[PARTS[0]])):
        with pytest.raises(InputError, match='adopted without old items.*--mode keep-scores'):
            expand(adopted['none'], elsewhere[0]/'new', tmp_path/'x', **kwargs)
    grown = expand(adopted['none'], elsewhere[0]/'new', tmp_path/'y')
    assert grown.certificate['mode'] == 'keep-scores'
    with pytest.raises(InputError, match="no statistics of 'M|has no statistics of"):
        expand(grown.folder, elsewhere[0]/'new', tmp_path/'z', remove=[PARTS[0]])
    assert not (tmp_path/'x').exists() and not (tmp_path/'z').exists()


def test_an_adopted_model_learns_on_as_a_fastai_learner(elsewhere, adopted):
    (root, _), model = elsewhere, load_model(adopted['none'])
    items = files_of(root/'old')
    learn = model.learner([p for p,_ in items], [l for _,l in items], [p for p,_ in files_of(root/'judge')][:8],
                          [l for _,l in files_of(root/'judge')][:8], augment=False)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.freeze_to(-2); learn.fit_one_cycle(1, 1e-4)
    assert learn.validate()[0] != before and len(model.net.param_groups()) == 6


def test_the_family_tree_begins_at_the_file(elsewhere, adopted, tmp_path):
    import hashlib
    from tl_notebooks.expand.classes import family_tree
    done = expand(adopted['none'], elsewhere[0]/'new', tmp_path/'m', mode='keep-scores')
    sha, lines = hashlib.sha256((elsewhere[0]/'own.pth').read_bytes()).hexdigest(), family_tree(done.folder)
    assert 'own.pth' in lines[0] and 'licence unknown' in lines[0]
    assert sha[:16] in lines[1] and len(lines) == 4 and PARTS[2] in lines[3]


def test_texts_go_on_too(tmp_path):
    bert(tmp_path/'own')
    (tmp_path/'new.csv').write_text('text,label\n' + ''.join(f'the movie was bad {w} a,worse\nplot plot {w},plot\n'
                                                              for w in ('good', 'the', 'a', 'was', 'movie', 'Great')))
    adopt(tmp_path/'own', tmp_path/'m', classes='x,y,z')
    done = expand(tmp_path/'m', tmp_path/'new.csv', tmp_path/'n', mode='keep-scores')
    texts = ['the movie was good', 'bad plot']
    a, b = (load_model(f) for f in (tmp_path/'m', done.folder))
    with torch.inference_mode():
        assert torch.equal(a.net.head(a.features(texts)), b.net.head(b.features(texts))[:,:3])
    assert b.classes == ['x', 'y', 'z', 'plot', 'worse']
    with pytest.raises(InputError, match='was adopted as a whole'):
        expand(tmp_path/'m', '', tmp_path/'w', words=tmp_path/'new.csv')


# --- requests that are wrong

def test_the_command_takes_in_a_model_and_says_how_it_was_checked(elsewhere, tmp_path):
    root = elsewhere[0]
    run = tl('adopt', root/'own.pth', '--arch', 'tf_efficientnet_lite0', '--classes', ','.join(PARTS[:2]), '--size', 96,
             '--data', root/'old', '--out', 'm', cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == 'm', run.stderr
    assert 'scores: greatest difference to its own code' in run.stderr and 'is right on 2' in run.stderr
    assert 'do not say how images were prepared; assumed' in run.stderr
    run = tl('predict', 'm', *[p for p,_ in files_of(root/'judge')][:2], cwd=tmp_path)
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 3, run.stderr


def test_a_model_that_would_answer_otherwise_is_not_kept(elsewhere, tmp_path, monkeypatch):
    "A fault in taking over, planted: the head's rows in another order"
    from tl_notebooks.models import adopt as module
    was = module.keep_rows
    monkeypatch.setattr(module, 'keep_rows', lambda net, w, b: was(net, w.flip(0), b.flip(0)))
    with pytest.raises(module.NotTheSame, match='does not answer the same.*Nothing was kept'):
        taken(elsewhere[0], tmp_path/'m')
    assert [*tmp_path.iterdir()] == []


class Payload:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (os.mkdir, (self.path,))


def wrong(kind, folder):
    "A source that must be refused, and what the message says"
    own, given = folder/'own.pth', dict(arch='resnet18', classes='a,b,c')
    state = timm_model().state_dict()
    if kind == 'pickle': (folder/'export.pkl').write_bytes(pickle.dumps(Payload(folder/'ran'))); return (
        folder/'export.pkl', given, "load_learner\\('export.pkl'\\)")
    if kind == 'payload':
        torch.save({'model': state, 'x': Payload(folder/'ran')}, own); return own, given, 'would run code'
    torch.save(state, own)
    if kind == 'architecture':
        return own, given | dict(arch='resnet34'), 'missing .layer1.2.*They would fit timm/resnet18'
    if kind == 'truncated': own.write_bytes(own.read_bytes()[:5000]); return own, given, 'damaged or incomplete'
    if kind == 'classes': return own, given | dict(classes='a,b'), 'gives 3 scores, but there are 2 class names'
    if kind == 'no classes':
        return own, given | dict(classes=''), 'gives 3 scores and does not say what they are called'
    if kind == 'twice': return own, given | dict(classes='a,b,a'), "'a' is empty or there more than once"
    if kind == 'no arch': return own, given | dict(arch=''), 'Accepted: `--arch`'
    if kind == 'no such arch': return own, given | dict(arch='resnet81'), "Did you mean .*resnet18"
    if kind == 'no head': torch.save({k: v for k,v in state.items() if 'fc' not in k}, own); return (
        own, given, 'missing .fc.weight')
    if kind == 'header':
        own = folder/'h.safetensors'; own.write_bytes((4 << 30).to_bytes(8, 'little') + b'{}'*9); return (
        own, given, 'h.safetensors.*damaged or incomplete')
    if kind == 'two heads':
        t = transformers
        t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, image_size=32)).save_pretrained(folder/'d')
        return folder/'d', {}, 'a mean of two heads'
    if kind == 'body':
        bert(folder/'b').bert.save_pretrained(folder/'b')
        return folder/'b', {}, 'without a head of a classifier.*-p backbone='
    if kind == 'gone': return folder/'gone.pth', given, 'does not exist'
    if kind == 'ours':
        adopt(own, folder/'m', **given, size=32); return folder/'m', {}, 'a model of this project already'
    if kind == 'no folder': (folder/'e').mkdir(); return folder/'e', {}, 'config.json` does not exist'
    if kind == 'code':
        bert(folder/'c'); c = json.loads((folder/'c'/'config.json').read_text())
        c |= dict(model_type='unheard_of', auto_map={'AutoConfig': 'evil.C',
                                                     'AutoModelForSequenceClassification': 'evil.M'})
        (folder/'c'/'config.json').write_text(json.dumps(c))
        (folder/'c'/'evil.py').write_text(f"import os; os.mkdir({str(folder/'ran')!r})")
        return folder/'c', {}, 'cannot be loaded'
    raise ValueError(kind)


@pytest.mark.parametrize('kind', ['pickle', 'payload', 'architecture', 'truncated', 'classes', 'no classes', 'twice',
                                  'no arch',
                                  'no such arch', 'no head', 'header', 'two heads', 'body', 'gone', 'ours', 'no folder',
                                  'code'])
def test_what_cannot_be_taken_in_is_refused_in_one_message(kind, tmp_path):
    source, given, says = wrong(kind, tmp_path)
    with pytest.raises(InputError, match=f'(?s){says}'): adopt(source, tmp_path/'out'/'m', **given)
    assert not (tmp_path/'out').exists() and not (tmp_path/'ran').exists()


# --- preparation

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "Models that learned from images prepared in one way, by torch alone, and labelled images of several shapes"
    from PIL import Image
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp('shapes')
    for i in range(240): # a red and a blue bar at the left or right: colour, place and level matter
        w, h, kind = (int(v) for v in (*rng.integers(40, 160, 2), i % 4))
        a = rng.normal(128, 20, (h, w, 3)); at = slice(0, w//5) if kind % 2 else slice(w - w//5, w)
        a[:,at,0 if kind < 2 else 2] += 70
        p = root/('old' if i < 120 else 'rest')/f'kind {kind}'/f'{i}.png'; p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(a.clip(0, 255))).save(p)
    return root


RIGHT = dict(size=48, scale=48, resize='squish', interpolation='bilinear_exact', mean=[.5]*3, std=[.5]*3)
WRONG = [dict(resize='short'), dict(mean=[0.]*3, std=[1.]*3), dict(order='bgr'), dict(resize='pad')]

@pytest.mark.parametrize('arch', ['resnet10t', 'mobilenetv3_small_050'])
def test_a_wrong_preparation_is_found_and_a_right_one_is_left_alone(arch, trained, tmp_path):
    from tl_notebooks.data.decode import open_image
    from tl_notebooks.models.variants import normalized
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=4)
    files = files_of(trained/'rest')
    x, y = normalized([open_image(p) for p,_ in files], RIGHT), torch.tensor([int(l[-1]) for _,l in files])
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(12):
        for at in torch.randperm(len(y)).split(24):
            loss = torch.nn.functional.cross_entropy(model(x[at]), y[at]); opt.zero_grad(); loss.backward(); opt.step()
    torch.save(model.state_dict(), tmp_path/'own.pth')
    found = []
    for i,change in enumerate([{}, *WRONG]):
        said = RIGHT | change
        done = adopt(tmp_path/'own.pth', tmp_path/f'm{i}', arch=arch, classes=[f'kind {k}' for k in range(4)],
                     data=trained/'old', **said)
        found.append(done.report['preparation_checked']['better'])
    assert found[0] == [], 'a false alarm'
    assert sum(bool(f) for f in found[1:]) >= 3, found
    assert '--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5' in found[2] and found[3][:1] == ['--order rgb'], found
