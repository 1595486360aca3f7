"An image, a text or a scene in whatever form it is at hand gets its file's answer, from learners and models."
import io

import numpy as np
import pytest
import tl_notebooks # noqa: F401  first: it guards torchvision
import torch
from PIL import Image
from fastai.learner import load_learner
from fastai.vision.core import PILImage
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.expand.door import expand
from tl_notebooks.judge import evidence
from tl_notebooks.judge import evaluate as _evaluate # noqa: F401  gives learners `evaluate`
from tl_notebooks.learn.vision import image_learner
from tl_notebooks.models.save import load_model

KINDS = ('bolt', 'gear', 'nut')


def forms(file):
    "The pixels of a file as people hold them; Pillow and NumPy are what made them"
    pixels = np.asarray(Image.open(file).convert('RGB'))
    return dict(str=str(file), Path=file, bytes=file.read_bytes(), PIL=Image.open(file), PILImage=PILImage.create(file),
                array=pixels, floats=pixels/255, tensor=torch.from_numpy(pixels.copy()).permute(2, 0, 1))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp('images')
    for k,kind in enumerate(KINDS):
        (home/kind).mkdir()
        for i in range(10):
            pixels = np.random.default_rng([k, i]).integers(0, 255, (30, 40, 3), dtype=np.uint8)//(k + 1)
            Image.fromarray(pixels).save(home/kind/f'{i}.png')
    return read_images(home)


@pytest.fixture(scope='module')
def learn(images, tmp_path_factory):
    home = tmp_path_factory.mktemp('learner')
    out = image_learner(images, 'resnet18', 'random', 32, augment=False, precision='fp32', engine='torch', seed=0,
                        path=home)
    out.probe()
    return out


@pytest.fixture(scope='module')
def model(learn, tmp_path_factory): return load_model(learn.save_model(tmp_path_factory.mktemp('model')/'m'))


def test_a_learner_and_its_model_take_all_forms(images, learn, model):
    file = images.files('test')[0]
    x = torch.from_numpy(np.asarray(Image.open(file).resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    mean, std = (torch.tensor(learn.info[k]).view(3, 1, 1) for k in ('mean', 'std'))
    with torch.no_grad(): want = learn.model.eval()(((x/255 - mean)/std)[None]).softmax(1)[0] # the oracle: torch alone
    for name,item in forms(file).items():
        label, number, probs = learn.predict(item)
        torch.testing.assert_close(probs.as_subclass(torch.Tensor), want, rtol=1e-4, atol=1e-5, msg=name)
        said = model.predict(item)
        assert (label, int(number), said.label) == (KINDS[int(want.argmax())], int(want.argmax()), label), name
        np.testing.assert_allclose([*said.probabilities.values()], want, rtol=1e-4, atol=1e-5)


def test_a_list_has_a_list_of_answers(images, learn, model):
    files = images.files('test')
    mixed = [f if i % 2 else np.asarray(Image.open(f)) for i,f in enumerate(files)]
    alone = [learn.predict(f)[0] for f in files]
    assert [label for label,_,_ in learn.predict(mixed)] == alone == [p.label for p in model.predict(mixed)]
    probs, _ = learn.get_preds(dl=learn.dls.test_dl(files)) # fastai's own way, with paths
    torch.testing.assert_close(probs, torch.stack([p for _,_,p in learn.predict(mixed)]).as_subclass(torch.Tensor),
                               rtol=1e-4, atol=1e-5)
    assert learn.predict([]) == [] == model.predict([])
    assert len(model.predict(np.stack([np.asarray(Image.open(f)) for f in files]))) == len(files) # a batch


def test_an_exported_learner_predicts_as_before(images, learn):
    learn.export('learner.pkl')
    back = load_learner(learn.path/'learner.pkl')
    for item in forms(images.files('test')[1]).values():
        assert back.predict(item)[0] == learn.predict(item)[0]
    assert (learn.path/'learner.pkl').stat().st_size < 1.2*sum(t.numel()*4 for t in learn.model.state_dict().values())


def test_one_that_is_no_image_says_so(images, model, tmp_path):
    (tmp_path/'a.png').write_bytes(b'text')
    for bad in (str(tmp_path/'a.png'), b'text', np.zeros((3, 4), 'int32'), np.full((2, 2, 3), 7.)):
        with pytest.raises(InputError, match='cannot be read as an image'): model.predict(bad)
    given = Image.open(images.files('test')[0]); exif = given.getexif(); exif[0x0112] = 6
    f = io.BytesIO(); given.save(f, 'JPEG', exif=exif); turned = Image.open(f); size = turned.size
    model.predict(turned); assert turned.size == size # it is turned for the network, not for its owner


def test_a_probe_freezes_what_it_stands_on(learn):
    "`lr_find` then trains the head alone, on kept features: no layer before it moves or is asked"
    body = {k: v.clone() for k,v in learn.model.body.state_dict().items()}
    assert not any(p.requires_grad for p in learn.model.body.parameters())
    with learn.no_bar(): learn.lr_find(num_it=10, show_plot=False)
    assert learn.frozen_prefix.report # read from the cache
    assert all(torch.equal(v, body[k]) for k,v in learn.model.body.state_dict().items())
    learn.unfreeze(); assert all(p.requires_grad for p in learn.model.body.parameters())


def test_things_show_themselves_shortly(learn, model):
    shown = [learn.probe_result, learn.evaluate(), model, model.predict(np.zeros((8, 8, 3), np.uint8))]
    for thing in shown:
        assert len(repr(thing)) < 500 and '<table' in thing._repr_html_() and 'np.float' not in repr(thing), repr(thing)


def test_texts(tmp_path):
    "A `str` is the text; a file is its `Path`"
    from transformers import BertConfig, BertModel, BertTokenizerFast
    from tl_notebooks.data.texts import read_texts
    from tl_notebooks.learn.text import text_learner
    words = 'good fine nice bad poor sad it is a film'.split()
    (tmp_path/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]))
    BertTokenizerFast(str(tmp_path/'vocab.txt')).save_pretrained(tmp_path/'bert')
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=15, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32)).save_pretrained(tmp_path/'bert')
    r = np.random.default_rng(0)
    rows = [f'it is a {w} {r.choice(words)} film {i},{l}' for i in range(12) for l,ws in (('good', words[:3]),
            ('bad', words[3:6])) for w in ws[:1]]
    (tmp_path/'t.csv').write_text('text,label\n' + '\n'.join(rows))
    learn = text_learner(read_texts(tmp_path/'t.csv'), str(tmp_path/'bert'), precision='fp32', engine='torch')
    learn.probe()
    text = 'it is a good film'
    (tmp_path/'one.txt').write_text(text)
    model = load_model(learn.save_model(tmp_path/'m'))
    want = learn.predict(text)
    for item in (tmp_path/'one.txt', text.encode()):
        assert torch.equal(learn.predict(item)[2], want[2])
        assert model.predict(item).probabilities == model.predict(text).probabilities
    assert [a for a,_,_ in learn.predict([text, 'sad', text])][::2] == [want[0]]*2
    assert model.predict(text).label == want[0]
    with pytest.raises(InputError, match='holds 24 texts'): model.predict(tmp_path/'t.csv')
    with pytest.raises(InputError, match='is no text'): model.predict(Image.new('RGB', (4, 4)))


def test_what_is_at_hand_says_what_it_is(images, learn, model, tmp_path):
    assert len(images) == 30 and repr(images) == (
        f"ImageData: 30 items of 3 classes; train {len(images.subset('train'))}, valid {len(images.subset('valid'))}, "
        f"test {len(images.subset('test'))}")
    groups = len(learn.model.param_groups()); learn.freeze()
    assert repr(learn) == f'TransferLearner: resnet18, 3 classes, 1 of {groups} layer groups train'
    assert repr(evidence.interval(9, 10)) == '0.900 (0.596 … 0.982, n=10)' # Wilson's, of statsmodels 0.14
    assert model(images.files('test')[0]).label == model.predict(images.files('test')[0]).label
    for place in (tmp_path, tmp_path/'none.png'):
        with pytest.raises(InputError, match=r'cannot be read as an image \(.*\)\.$'): model(place) # nothing to remove


def test_a_certificate_without_limits_passes_no_sentence(learn, model, images, tmp_path):
    (tmp_path/'new'/'cup').mkdir(parents=True)
    for i in range(8):
        pixels = np.random.default_rng([9, i]).integers(100, 140, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path/'new'/'cup'/f'{i}.png')
    done = expand(model.manifest['folder'], tmp_path/'new', tmp_path/'larger')
    page = (done.folder/'certificate.html').read_text()
    assert 'passes no sentence' in page and 'nothing old was judged' in page and '<span class="pass"' not in page
    assert '`' not in page.split('</style>')[1] and 'no limits were asked for' in repr(done)
