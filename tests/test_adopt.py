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
from tl_notebooks.learn.vision import image_learner, image_net
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
