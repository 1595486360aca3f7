"""New words: old texts keep their bits on every kind of tokenizer, saved models come back, and certificates tell what
changed."""
import copy
import json
import random
import re
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import record, tl

import tl_notebooks  # noqa: F401  before fastai and transformers: it guards torchvision

from tl_notebooks.expand import words as vocabulary
from tl_notebooks.models import folder as artifact
from tl_notebooks.models.folder import Model, read_manifest, save_model
from tl_notebooks.judge.certificate import Limits
from tl_notebooks.core import InputError, seed_everything
from tl_notebooks.heads.statistics import statistics_state
from tl_notebooks.learn.backbones import load_text_model
from tl_notebooks.learn.text import text_learner
from tl_notebooks.data.texts import read_texts
from tl_notebooks.expand.words import expand_words
from tl_notebooks.expand.tokens import (add_words, fit_rows, fold_word, grow_embeddings, new_ids, token_figures,
                                        token_ids, train_words, word_pieces)

KINDS = ('bert', 'roberta', 'gpt2', 'xlnet', 'camembert')
WORDS = ('gefitinib', 'linalo', 'erlotinib', 'xerostomia')
PLAIN = ('the cat sat on the mat', 'a linear model', 'we gave it twice', 'growth of the cell', 'our dog has a house',
         'he sees it', 'no effect on the man')
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def tokenizer(kind):
    "The real WordPiece of MiniLM; byte-level BPE and Unigram, trained here by the library that trains such things"
    import transformers as T
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    if kind == 'bert': return load_text_model('minilm_l6')[1]
    corpus = [*PLAIN, 'lines and linings of gefit and erlot', '(the cat), a mat. no; yes!']*20
    if kind in ('roberta', 'gpt2'):
        t = Tokenizer(models.BPE()); t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, show_progress=False,
                                                          special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        m = json.loads(t.to_str())['model']
        more = dict(unk_token='<unk>', bos_token='<s>', eos_token='</s>') if kind == 'gpt2' else {}
        return (T.GPT2Tokenizer if kind == 'gpt2' else T.RobertaTokenizer)(vocab=m['vocab'],
                merges=[tuple(p) for p in m['merges']], **more)
    t = Tokenizer(models.Unigram()); t.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ['<unk>', '<s>', '</s>', '<cls>', '<sep>', '<pad>', '<mask>', '<eod>', '<eop>']
    t.train_from_iterator([*corpus, 'bcdfghjklmnpqrstvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_,.;:!?()\'"'],
                          trainers.UnigramTrainer(vocab_size=160, show_progress=False, special_tokens=special,
                                                  unk_token='<unk>'))
    vocab = [tuple(v) for v in json.loads(t.to_str())['model']['vocab']]
    return (T.XLNetTokenizer if kind == 'xlnet' else T.CamembertTokenizer)(vocab=vocab)


def network(kind, n):
    import transformers as T
    seed_everything(0)
    if kind == 'bert': return T.BertModel(T.BertConfig(vocab_size=n, **SMALL))
    if kind == 'roberta': return T.RobertaModel(T.RobertaConfig(vocab_size=n, pad_token_id=1, **SMALL))
    if kind == 'camembert': return T.CamembertModel(T.CamembertConfig(vocab_size=n, pad_token_id=1, **SMALL))
    if kind == 'gpt2':
        return T.GPT2Model(T.GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=2))
    return T.XLNetModel(T.XLNetConfig(vocab_size=n, d_model=32, n_layer=2, n_head=2, d_inner=32))


@pytest.fixture(scope='module')
def toks(): return {k: tokenizer(k) for k in KINDS}


def texts_of_all_sorts(n, seed=0):
    "Words, new words, new words inside others, in other cases, with all sorts of things around them"
    r, parts = random.Random(seed), [*WORDS, *(w for p in PLAIN for w in p.split())]
    def one():
        w = r.choice(parts)
        return r.choice([w, w, w, w + 's', 'pre' + w, w.upper(), w.title(), w + '2', '2' + w, w + '_x', f'({w})',
                         w + '.', w + ',', w + '-like', f"{w}'s", w[:-1], w*2, f'"{w}"', w + 'é', '\t' + w, w + '\n'])
    return [' '.join(one() for _ in range(r.randint(1, 7))) for _ in range(n)]


# Tokenizers

@pytest.mark.parametrize('kind', KINDS)
def test_only_whole_new_words_are_read_differently(toks, kind):
    "Oracle: word boundaries of Python's `re`, and the old tokenizer"
    tok, parts = toks[kind], lambda t: [json.loads(t.backend_tokenizer.to_str())[k]
                                        for k in ('model', 'added_tokens', 'normalizer', 'decoder')]
    before = parts(tok)
    grown = add_words(tok, WORDS)
    ids = new_ids(tok, grown)
    assert parts(tok) == before and [*ids.values()] == [*range(len(tok), len(tok) + len(WORDS))]
    assert tok.get_vocab().items() <= grown.get_vocab().items()
    texts, seen = texts_of_all_sorts(800), 0
    for t, old, new in zip(texts, token_ids(tok, texts), token_ids(grown, texts)):
        want = [w for w in re.findall(r'\w+', fold_word(tok, t)) if w in WORDS]
        assert [i for i in new if i in ids.values()] == [ids[w] for w in want], t
        if not want: assert new == old, t
        seen += not want
    assert 100 < seen < 700


@pytest.mark.parametrize('kind', KINDS)
def test_grown_tokenizers_come_back_and_grow_again(toks, kind, tmp_path):
    from transformers import AutoTokenizer
    tok, texts = toks[kind], texts_of_all_sorts(100, 1)
    first = add_words(tok, WORDS[:2])
    first.save_pretrained(tmp_path/'a')
    assert {p.name for p in (tmp_path/'a').iterdir()} == {'tokenizer.json', 'tokenizer_config.json'}
    back = AutoTokenizer.from_pretrained(tmp_path/'a')
    second, both = add_words(back, WORDS[2:]), add_words(tok, WORDS)
    for t in texts:
        assert back(t)['input_ids'] == first(t)['input_ids'] and second(t)['input_ids'] == both(t)['input_ids']
        assert second.decode(second(t)['input_ids'], skip_special_tokens=True) == both.decode(both(t)['input_ids'],
                skip_special_tokens=True)
    assert 'gave gefitinib twice' in both.decode(both('we gave gefitinib twice')['input_ids'])
    for name in ('pad_token_id', 'mask_token_id', 'eos_token_id', 'cls_token_id', 'all_special_ids', 'padding_side'):
        assert getattr(second, name) == getattr(tok, name), name


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('words, says', [(['zyxim'], 'is known'), ([''], 'is empty'),
                                         (['zyxin', 'zyxin'], 'there twice'), (['two words'], 'has a blank'),
                                         ([], 'none given'), (['---'], 'is no word')])
def test_words_that_cannot_be_added_are_named(toks, kind, words, says):
    with pytest.raises(InputError, match=says): add_words(add_words(toks[kind], ['zyxim']), words)
    special = toks[kind].eos_token or toks[kind].sep_token
    with pytest.raises(InputError, match='special token'): add_words(toks[kind], [special])


def test_tokens_saved_are_counted_not_promised(toks):
    tok = toks['bert']
    grown, texts = add_words(tok, WORDS), texts_of_all_sorts(200)
    f = token_figures(tok, grown, iter(texts))
    a, b = (sum(len(t.tokenize(x)) for x in texts) for t in (tok, grown))
    assert f['tokens_before'][
            'value'] == pytest.approx(
            a/200) and f['tokens_after']['value'] == pytest.approx(b/200) and f['saved']['value'] == pytest.approx((a
            - b)/200)


# Networks

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('init', ['mean', 'random'])
def test_old_rows_and_outputs_keep_their_bits(toks, kind, init):
    "Oracle: the network before, and transformers' own way of resizing"
    tok = toks[kind]
    grown, model = add_words(tok, WORDS), network(kind, len(tok)).eval()
    was, theirs = copy.deepcopy(model), copy.deepcopy(model)
    rows = grow_embeddings(model, tok, grown, init)
    theirs.resize_token_embeddings(len(grown), mean_resizing=False)
    assert {k: v.shape for k,v in model.state_dict().items()} == {k: v.shape for k,
            v in theirs.state_dict().items()} and model.config.vocab_size == len(grown)
    now, old = model.get_input_embeddings().weight.detach(), was.get_input_embeddings().weight.detach()
    assert torch.equal(now[:len(old)], old)
    if init == 'mean':
        for w,i in new_ids(tok, grown).items():
            torch.testing.assert_close(now[i], old[word_pieces(tok, [w])[0]].mean(0))
    with torch.no_grad():
        for t in PLAIN:
            assert torch.equal(model(torch.tensor([grown(t)['input_ids']]))[0],
                               was(torch.tensor([tok(t)['input_ids']]))[0])
        model(torch.tensor([grown('we gave gefitinib')['input_ids']]))
    assert [*rows] == [*new_ids(tok, grown).values()]


@pytest.mark.parametrize('kind', KINDS)
def test_training_rows_leaves_all_else_alone(toks, kind):
    tok = toks[kind]
    grown, model = add_words(tok, WORDS), network(kind, len(tok)).eval()
    rows, texts = grow_embeddings(model, tok, grown), [f'{a} {w} {b}' for w in WORDS for a in PLAIN for b in PLAIN[:3]]
    before = {k: v.clone() for k,v in model.state_dict().items()}
    assert fit_rows(model, tok, grown, texts, rows, steps=4)['texts'] == len(texts)
    found = train_words(model, tok, grown, texts[::2], texts[1::2], rows, steps=3, bs=8)
    assert found.kind == ('next token' if kind == 'gpt2' else 'masked token')
    name = next(n for n,p in model.named_parameters() if p is model.get_input_embeddings().weight)
    for k,v in model.state_dict().items():
        if k == name:
            assert torch.equal(v[:rows.start], before[k][:rows.start]) and not torch.equal(v[rows.start:],
                    before[k][rows.start:])
        else: assert torch.equal(v, before[k]), k


# Saved models

@pytest.fixture(scope='module')
def work(toks, tmp_path_factory):
    "Labelled texts, a corpus, and a saved model of two classes on each kind of network"
    root = tmp_path_factory.mktemp('vocabulary')
    rows = [(f'{w} {v} {o}', 'drug') for w in WORDS for v in ('has', 'sees')
            for o in ('growth', 'the cell', 'it', 'the man')] + [(f'{a} {v}', 'plain') for a in PLAIN
            for v in ('has', 'sees', 'it', 'twice')]
    (root/'labelled.jsonl').write_text('\n'.join(json.dumps(dict(text=t, label=l)) for t,l in rows))
    (root/'corpus.txt').write_text('\n'.join(f'{t} too' for t,_ in rows))
    (root/'words.txt').write_text('\n'.join(WORDS))
    (root/'zyxin.txt').write_text('zyxin\n')
    for kind in KINDS:
        network(kind, len(toks[kind])).save_pretrained(root/kind); toks[kind].save_pretrained(root/kind)
    def model(kind):
        if not (root/f'model-{kind}').exists():
            data = read_texts(root/'labelled.jsonl', valid_pct=.2, test_pct=.3)
            learn = text_learner(data, str(root/kind) if kind != 'minilm' else 'minilm_l6', seed=0, precision='fp32',
                                 max_tokens=32, cache=False, model_dir=tempfile.gettempdir())
            with learn.no_bar(): learn.probe()
            save_model(root/f'model-{kind}', learn.model, learn.info, data.classes,
                       statistics=statistics_state(learn.statistics), tok=learn.tok, head=dict(kind='solved'))
        return root/f'model-{kind}'
    return root, model


@pytest.mark.parametrize('kind', [*KINDS, 'minilm'])
def test_a_model_grows_is_saved_and_comes_back(work, kind, tmp_path):
    "Oracle for the new model: transformers, from the folder's own configuration and tokenizer"
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    root, model = work
    grow = lambda out: expand_words(model(kind), tmp_path/out, root/'words.txt', root/'corpus.txt',
                                    root/'labelled.jsonl', fit_steps=10, limits=Limits(max_old_drop=1.))
    done, again = grow('a'), grow('b')
    c, u = done.certificate, done.certificate['vocabulary']['unchanged']
    assert done.passed and c[
            'body_bit_identical'] and u[
            'texts'] >= len(
            PLAIN) and u['logits_bit_identical'] and u['features_bit_identical'] and u['greatest_logit_change'] == 0
    assert c['vocabulary'][
            'tokens'][
            'tokens_after'][
            'value'] < c[
            'vocabulary'][
            'tokens'][
            'tokens_before']['value'] and c['vocabulary']['fitted']['after'] <= c['vocabulary']['fitted']['before']
    assert (done.folder/'weights.safetensors').read_bytes() == (again.folder/'weights.safetensors').read_bytes()
    old, new = Model(model(kind)), Model(done.folder)
    assert new.manifest['parent'] == old.manifest['sha256'] and {'certificate.json', 'certificate.html',
            'statistics.safetensors'} <= {*new.manifest['files']}
    assert [*old.predict(PLAIN)] == [*new.predict(PLAIN)] and all(p.label
            for p in new.predict(['gefitinib has linalo', '']))
    theirs = AutoModel.from_config(AutoConfig.from_pretrained(done.folder)).eval()
    theirs.load_state_dict({k.removeprefix('body.model.'): v for k,v in new.net.state_dict().items()
                            if k.startswith('body.model.')}, strict=False)
    ids = torch.tensor([AutoTokenizer.from_pretrained(done.folder)('we gave gefitinib twice')['input_ids']])
    last = new.net.body.n_blocks
    at = list(new.net.body.layers).index(last)*new.net.body.width if last in new.net.body.layers else None
    if at is not None:
        with torch.no_grad():
            torch.testing.assert_close(new.features(['we gave gefitinib twice'])[0,at:at+new.net.body.width],
                                       theirs(ids)[0][0].mean(0), rtol=1e-3, atol=1e-4)


def test_a_thaw_says_what_it_costs(work, tmp_path):
    root, model = work
    loose = expand_words(model('bert'), tmp_path/'loose', root/'words.txt', root/'corpus.txt', root/'labelled.jsonl',
                         train=2, thaw=1, limits=Limits(max_logit_change=0.))
    c = loose.certificate
    assert not loose.passed and not c[
            'body_bit_identical'] and not c[
            'vocabulary']['unchanged']['logits_bit_identical'] and Model(loose.folder).statistics() is None
    assert c['vocabulary']['training']['after_thaw'] and any('left out' in n for n in c['notes'])
    solved = expand_words(model('bert'), tmp_path/'solved', root/'words.txt', root/'corpus.txt',
                          learn=root/'labelled.jsonl', train=2, thaw=1)
    m = Model(solved.folder)
    assert m.statistics(
            ).n == 60 and m.manifest[
            'head']['kind'] == 'solved' and solved.certificate['vocabulary']['head'] == 'solved anew'
    assert m.statistics().sums.shape[1] == m.net.n_features
    page = (solved.folder/'certificate.html').read_text()
    assert 'gefitinib' in page and 'after the thaw' in page and '<script' not in page


@pytest.mark.parametrize('where', ['fit_rows', 'train_words', 'save_model'])
def test_an_interrupt_leaves_nothing(work, tmp_path, monkeypatch, where):
    root, model = work
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(artifact if where == 'save_model' else vocabulary, where, stop)
    before = (model('bert')/'weights.safetensors').read_bytes()
    with pytest.raises(KeyboardInterrupt):
        expand_words(model('bert'), tmp_path/'x', root/'words.txt', root/'corpus.txt', train=1)
    assert [*tmp_path.iterdir()] == [] and (model('bert')/'weights.safetensors').read_bytes() == before


def test_the_command_line(work, tmp_path):
    root, model = work
    done = tl('expand', model('bert'), '--words', root/'words.txt', '--corpus', root/'corpus.txt', '--old',
              root/'labelled.jsonl', '--out', tmp_path/'new', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip().splitlines()[-1]) == tmp_path/'new' and read_manifest(
            tmp_path/'new')['lineage'] and 'tokens per text' in done.stderr
    found = tl('expand', model('bert'), '--corpus', root/'corpus.txt', '--max-words', 2, '--out', tmp_path/'found',
               cwd=tmp_path)
    assert found.returncode == 0 and len(
            json.loads((tmp_path/'found'/'certificate.json').read_text())['vocabulary']['words']) == 2


@pytest.mark.parametrize('args, says', [
    (('--words', 'none.txt', '--corpus', 'corpus.txt'), 'is no file'),
    (('--words', 'zyxin.txt'), 'no texts to measure by'), (('--corpus', 'none'), 'does not exist'),
    (('--corpus', 'corpus.txt', '--thaw', '9', '--train', '1'), '`thaw` is 9'),
    (('--corpus', 'corpus.txt', '--remove', 'drug'), 'accepted')])
def test_a_wrong_request_is_refused(work, tmp_path, args, says, capsys, monkeypatch):
    from tl_notebooks.cli import main
    root, model = work
    monkeypatch.chdir(root)
    code, err = main(['expand', str(model('bert')), *args, '--out', str(tmp_path/'x')]), capsys.readouterr().err
    assert code == 2 and says in err and not (tmp_path/'x').exists(), err[-1500:]


# The use case

def test_use_case_through_papermill(tmp_path):
    done = tl('run', 'vocabulary', '--out', tmp_path, '-p', 'labels=8', '-p', 'draws=2', '-p', 'fit_steps=4', '-p',
              'precision=fp32', '-p', 'max_words=30', '-p', 'max_tokens=32', cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.strip().splitlines()[-1])
    rec = record(folder)
    assert next(iter(rec['metrics'])) == 'accuracy' and 'accuracy' in rec['control'] and rec['status'] == 'ok'
    assert {p.stem for p in (folder/'figures').iterdir()} == {'tokens', 'draws',
                                                              'kept'} and (folder/'report.html').is_file()
    m = Model(folder)
    assert len(m.manifest['lineage']) == 1 and rec[
            'certificate']['vocabulary']['unchanged']['greatest_logit_change'] in (0, None, 0.)
