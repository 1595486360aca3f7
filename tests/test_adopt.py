"""Models trained elsewhere: taken in as backbones and as models, with the oracle's own forward pass and processor beside
them."""
import pytest

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


@pytest.mark.parametrize('mean', ['0.5,0.5', 'a', '1,2,x', [1, 2]])
def test_a_wrong_mean_is_refused(mean):
    with pytest.raises(InputError, match='`mean` is .*accepted: three numbers'): image_net('resnet18', 2, 'random', mean=mean)


def tokenizer(folder, words=('good', 'bad', 'movie', 'plot', 'Great', 'the', 'a', 'was'), **kwargs):
    "A tokenizer of whole words, as transformers reads it"
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    vocab = {w: i for i,w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *words])}
    t = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=t, pad_token='[PAD]', unk_token='[UNK]', cls_token='[CLS]',
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
    with pytest.raises(InputError, match='is a Linear; accepted: models of transformers'): text_net(torch.nn.Linear(1, 1), 2)
    data = read_texts(sample_path('reviews'))
    learn = text_learner(data, bert(None), tok=tokenizer(None), max_tokens=16, precision='fp32')
    with learn.no_bar(): learn.probe()
    assert learn.save_model(tmp_path/'m').is_dir() and load_model(tmp_path/'m').classes == data.classes


# --- models

TIMM = ['resnet10t', 'efficientnet_lite0', 'mobilenetv3_small_050', 'convnext_atto', 'vit_tiny_patch16_224', 'regnetx_002',
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
    return model, LogisticRegression().fit(model.encode(texts), np.array(['x', 'y', 'z'][:k])[rng.integers(0, k, 30)]), texts


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
