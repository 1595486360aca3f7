"""Whatever form texts come in, what went in comes out; what is wrong with them is said in one message that names the
place."""
import ast
import base64
import codecs
import csv
import io
import json
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from email import policy
from email.header import Header
from email.message import EmailMessage
from email.mime.text import MIMEText

import pandas as pd
import pytest
from conftest import need, tree
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit
from test_data import as_nobody, open_tmp  # noqa: F401

from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.data.problems import KINDS
from tl_notebooks.data.texts import (content_hash, draw_labels, find_columns, html_text, label_typos, mail_text,
                                     read_mail, read_texts)


# ---- writers that are not this project's
# ------------------------------------------------------------------------------

def table(*rows, head='text label', **kw):
    "A CSV as Python's csv module writes it"
    f = io.StringIO()
    csv.writer(f, **kw).writerows([head.split(), *rows])
    return f.getvalue()

def objects(*rows, head='text label'): return [dict(zip(head.split(), r)) for r in rows]
def lines(*rows, **kw): return '\n'.join(json.dumps(r) for r in objects(*rows, **kw)) + '\n'

def put(root, text, name='d.csv'):
    "A file of that content, and its path"
    return tree(root, {name: text})/name

def refusal(*args, **kw):
    "The message with which `read_texts` refuses"
    with pytest.raises(InputError) as e: read_texts(*args, **kw)
    return str(e.value)

def same(a, b):
    "The same data, in the same order, with the same splits"
    assert a.fingerprint == b.fingerprint and a.classes == b.classes and a.unlabelled == b.unlabelled
    assert a.items[['text', 'label', 'split']].equals(b.items[['text', 'label', 'split']])

ODD = ['He said "no", twice; then left', 'two\nlines', 'two\r\n\r\nparagraphs, "quoted"', 'a\ttab', 'naïve café',
       '日本語、テキスト', '🙂 fine', 'semi;colon;s',
       'NULL', 'nan', '007', '1e5', 'True', "it's", '""', '\\n', ',', 'x'*140_000]
ROWS = [(t, ('poor', 'good')[i%2]) for i,t in enumerate(ODD)]
PLAIN = [(f'{c} sailing, number {i}', c) for c in ('good', 'poor') for i in range(8)]
GIVEN = [(f'{c} {s} {i}', c, s) for s in ('train', 'valid', 'test') for c in ('good', 'poor') for i in range(3)]
MANY = [(f'{c} voyage {i}', c) for c in ('negative', 'positive') for i in range(60)]
THREE = 'text label split'


# ---- one table, many forms
# --------------------------------------------------------------------------------------------

def frame(rows): return pd.DataFrame(objects(*rows))
def parquet(p):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed; it is what reads and writes Parquet')
    frame(ROWS).to_parquet(p)

FORMS = { # name: (file, content)
    'comma': ('d.csv', table(*ROWS)),
    'semicolon': ('d.csv', table(*ROWS, delimiter=';')),
    'semicolon below a blank line': ('d.csv', '\n' + table(*ROWS, delimiter=';')),
    'tab': ('d.csv', table(*ROWS, delimiter='\t')),
    'tsv': ('d.TSV', table(*ROWS, delimiter='\t')),
    'all quoted': ('d.csv', table(*ROWS, quoting=csv.QUOTE_ALL)),
    'unix line ends': ('d.csv', table(*ROWS, lineterminator='\n')),
    'blank lines': ('d.csv', table(*ROWS) + '\r\n\r\n'),
    'byte order mark': ('d.csv', codecs.BOM_UTF8 + table(*ROWS, quoting=csv.QUOTE_ALL).encode()),
    'columns exchanged': ('d.csv', table(*((c, t) for t,c in ROWS), head='label text')),
    'capitals and other columns': ('D.CSV', table(*((i, t, c, '') for i,(t,c) in enumerate(ROWS)),
                                                  head='id Text LABEL note')),
    'pandas csv': ('d.csv', lambda p: frame(ROWS).to_csv(p)),
    'json lines': ('d.jsonl', lines(*ROWS)),
    'ndjson': ('d.ndjson', lines(*ROWS).replace('\n', '\r\n\r\n')),
    'json lines in utf-8': ('d.jsonl', codecs.BOM_UTF8 + '\n'.join(json.dumps(r, ensure_ascii=False)
        for r in objects(*ROWS)).encode()),
    'pandas json lines': ('d.jsonl', lambda p: frame(ROWS).to_json(p, orient='records', lines=True)),
    'json list': ('d.json', json.dumps(objects(*ROWS))),
    'json list indented': ('d.json', json.dumps(objects(*ROWS), indent=1, ensure_ascii=False)),
    'parquet': ('d.parquet', parquet),
    'folder of .txt': ('d', lambda p: tree(p, {f'{c}/{i}.txt': t for i,(t,c) in enumerate(ROWS)})),
}

@pytest.mark.parametrize('form', FORMS)
def test_the_same_rows_are_the_same_data(form, tmp_path):
    name, content = FORMS[form]
    d = read_texts(put(tmp_path, content, name))
    assert Counter(zip(d.items.text, d.items.label)) == Counter(ROWS)
    assert [(t, d.classes[n]) for s in ('train', 'valid', 'test') for t,n in zip(d.texts(s), d.labels(s))] == [
        (r.text, r.label) for s in ('train', 'valid', 'test') for r in d.items.itertuples() if r.split == s]
    same(d, read_texts(put(tmp_path/'other', table(*ROWS))))

@pytest.mark.parametrize('char', ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c'], ids=ascii)
@pytest.mark.parametrize('name, write', [('d.csv', table), ('d.jsonl',
                                                            lambda *r: '\n'.join(json.dumps(o, ensure_ascii=False)
        for o in objects(*r)))],
                         ids=['csv', 'jsonl'])
def test_a_row_ends_where_its_format_says(name, write, char, tmp_path):
    rows = [*PLAIN, (f'one{char}two', 'good')]
    assert Counter(read_texts(put(tmp_path, write(*rows), name)).items.text) == Counter(t for t,_ in rows)

@pytest.mark.parametrize('given', [7, 7.0, '7', ' 7 '])
def test_a_whole_number_is_a_label(given, tmp_path):
    rows = [(t, given if c == 'good' else 10) for t,c in PLAIN]
    for p in (put(tmp_path, lines(*rows), 'd.jsonl'), put(tmp_path, json.dumps(objects(*rows)), 'd.json')):
        assert read_texts(p).classes == ['7', '10']

@pytest.mark.parametrize('values', [[1, 0, None], ['a', 'b', None], [True, False, None]],
                         ids=['Int64', 'string', 'boolean'])
def test_a_cell_that_holds_nothing_is_empty_in_parquet(values, tmp_path, monkeypatch):
    held = frame([(f'{v} {i}', v) for v in values for i in range(6)])
    held['label'] = held.label.convert_dtypes()
    monkeypatch.setattr(pd, 'read_parquet', lambda *_: held) # what pandas gives back for its nullable types
    d = read_texts(put(tmp_path, b'PAR1', 'd.parquet'))
    assert len(d.classes) == 2 and d.unlabelled == sorted((f'None {i}' for i in range(6)), key=content_hash)

def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    def absent(*_): raise ImportError('Unable to find a usable engine')
    monkeypatch.setattr(pd, 'read_parquet', absent)
    text = refusal(put(tmp_path, b'PAR1', 'd.parquet'))
    assert 'd.parquet' in text and ' -m pip install ' in text and 'pyarrow' in text and 'CSV' in text

def test_fields_that_some_objects_lack_are_empty(tmp_path):
    rows = objects(*PLAIN) + [{'text': 'no label'}, {'text': 'null label', 'label': None},
                              {'label': 'good', 'text': 'more', 'extra': [1]}]
    d = read_texts(put(tmp_path, '\n'.join(map(json.dumps, rows)), 'd.jsonl'))
    assert sorted(d.unlabelled) == ['no label', 'null label'] and 'more' in set(d.items.text)

def test_a_long_field_leaves_the_limit_of_the_csv_module_alone(tmp_path):
    limit = csv.field_size_limit()
    assert max(map(len, read_texts(put(tmp_path, table(*ROWS))).items.text)) > limit
    assert csv.field_size_limit() == limit
    refusal(put(tmp_path, 'text,label\n"open'))
    assert csv.field_size_limit() == limit

def test_a_table_may_be_a_link(tmp_path):
    put(tmp_path/'store', table(*PLAIN), '0a1b2c.csv')
    (tmp_path/'d.csv').symlink_to(tmp_path/'store'/'0a1b2c.csv')
    same(read_texts(tmp_path/'d.csv'), read_texts(tmp_path/'store'))

def test_a_surrogate_alone_is_no_crash(tmp_path):
    # as cut by a program that counts in UTF-16
    text = lines(*PLAIN) + '{"text": "half an emoji \\ud83d", "label": "good"}\n'
    try: assert len(read_texts(put(tmp_path, text, 'd.jsonl')).items) == 17
    except InputError as e: assert 'd.jsonl:17' in str(e)

def test_place_of_a_row(tmp_path):
    d = read_texts(put(tmp_path, table(*PLAIN)))
    assert {p: t for p,t in zip(d.items.path, d.items.text)} == {f'd.csv:{i}': t for i,(t,_) in enumerate(PLAIN, 2)}
    assert d.given == str(tmp_path/'d.csv') and d.root == tmp_path.resolve()


# ---- fingerprint and splits
# -------------------------------------------------------------------------------------------

NEAR = [*MANY, *((t.upper(), c) for t,c in MANY), *((t.replace(' ', '  '), c) for t,c in MANY)]
WAYS = [(f'{t}, way {i}', c) for i in range(3) for t,c in PLAIN]

@pytest.mark.parametrize('rows', [WAYS, NEAR, [*PLAIN, ('Who knows', ''), ('who  knows', ''), ('nobody', '')]],
                         ids=['distinct', 'near copies', 'unlabelled near copies'])
def test_row_order_changes_nothing(rows, tmp_path):
    first = read_texts(put(tmp_path, table(*rows)))
    for seed in range(4):
        same(first, read_texts(put(tmp_path/f'{seed}', table(*random.Random(seed).sample(rows, len(rows))),
                                   f'{seed}.csv')))

def test_row_order_changes_nothing_with_groups_and_given_splits(tmp_path):
    grouped, given = [(t, c, f'g{i%9}') for i,(t,c) in enumerate(MANY)], [(f'{t}, way {k}', c, s) for t,c,
            s in GIVEN for k in range(3)]
    for rows, kw in ((grouped, dict(head='text label who')), (given, dict(head=THREE))):
        group = dict(group='who') if rows is grouped else {}
        first = read_texts(put(tmp_path, table(*rows, **kw)), **group)
        for seed in range(4):
            same(first, read_texts(put(tmp_path, table(*random.Random(seed).sample(rows, len(rows)), **kw), 'e.csv'),
                                   **group))

CHANGES = {'a letter': lambda r: [('good sailing, number O', *r[0][1:]), *r[1:]],
           'a capital': lambda r: [('Good sailing, number 0', *r[0][1:]), *r[1:]],
           'a blank': lambda r: [('good  sailing, number 0', *r[0][1:]), *r[1:]],
           'a label': lambda r: [(r[0][0], 'poor'), *r[1:]],
           'one row less': lambda r: r[1:], 'one row more': lambda r: [*r, ('new', 'good')],
           'one row twice': lambda r: [*r, r[0]],
           'one unlabelled': lambda r: [*r, ('new', '')], 'no label': lambda r: [(r[0][0], ''), *r[1:]]}

@pytest.mark.parametrize('change', CHANGES)
def test_one_change_is_another_fingerprint(change, tmp_path):
    assert read_texts(put(tmp_path, table(*CHANGES[change](PLAIN)))).fingerprint != read_texts(put(tmp_path,
            table(*PLAIN), 'e.csv')).fingerprint

def test_a_given_split_is_part_of_the_fingerprint(tmp_path):
    moved = [(t, c, 'train' if (t, s) == ('good valid 0', 'valid') else s) for t,c,s in GIVEN]
    a, b = (read_texts(put(tmp_path, table(*r, head=THREE))) for r in (GIVEN, moved))
    assert a.fingerprint != b.fingerprint and a.split_source == b.split_source == 'given'

def test_another_process_finds_the_same(tmp_path):
    p = put(tmp_path, table(*MANY, *((f'loose {i}', '') for i in range(20))))
    code = ("import sys; from tl_notebooks.data.texts import *; d = read_texts(sys.argv[1]); e = draw_labels(d, 5, 1); "
            "heavy = sorted({'torch', 'transformers', 'fastai'} & set(sys.modules)); "
            "print([d.fingerprint, e.fingerprint, d.texts('test'), e.texts('train'), e.unlabelled, heavy])")
    done = subprocess.run([sys.executable, '-c', code, p], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONHASHSEED': '7', 'PYTHONUTF8': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    d = read_texts(p); e = draw_labels(d, 5, 1)
    assert ast.literal_eval(done.stdout) == [d.fingerprint, e.fingerprint, d.texts('test'), e.texts('train'),
                                             e.unlabelled, []]

def test_shares_are_those_of_scikit_learn(tmp_path):
    rows = [(f'{c} {i}', c) for c,n in (('a', 101), ('b', 40), ('c', 17)) for i in range(n)]
    labels, d = [c for _,c in rows], read_texts(put(tmp_path, table(*rows)), valid_pct=.3, test_pct=.1,
                                                check_typos=False)
    for s, share in (('valid', .3), ('test', .1)):
        _, theirs = next(StratifiedShuffleSplit(1, test_size=share, random_state=0).split(labels, labels))
        assert all(abs(d.counts()[s][c] - n) <= 1 for c,n in Counter(labels[i] for i in theirs).items())

def test_seed_decides_the_split(tmp_path):
    a, b, c = (read_texts(put(tmp_path, table(*MANY)), seed=s) for s in (0, 0, 1))
    same(a, b)
    assert a.counts() == c.counts() and a.texts('test') != c.texts('test')

@pytest.mark.parametrize('names, mean, made', [
    (('train', 'valid', 'test'), 'train valid test', ''), (('Train', 'Validation', 'TEST'), 'train valid test', ''),
    ((' train', 'val ', 'test'), 'train valid test', ''), (('train', 'dev', 'test'), 'train valid test', ''),
    (('train', 'train', 'test'), 'train train test', 'valid'), (('train', 'valid', 'valid'), 'train valid valid',
                                                                'test'),
    (('train', 'train', 'train'), 'train train train', 'valid test'), (('', '', ''), 'train train train',
        'valid test')])
def test_given_splits_stay_and_missing_ones_come_out_of_train(names, mean, made, tmp_path):
    to, was = (dict(zip(('train', 'valid', 'test'), n)) for n in (names, mean.split()))
    d = read_texts(put(tmp_path, table(*((t, c, to[s]) for t,c,s in GIVEN), head=THREE)))
    assert d.made == made.split() and d.split_source == ('given' if any(names) else 'made')
    before = {t: was[s] for t,_,s in GIVEN}
    assert all(s == before[t] or before[t] == 'train' and s in d.made for t,s in zip(d.items.text, d.items.split))
    assert all(n for s in d.counts().values() for n in s.values())

@pytest.mark.parametrize('names', ['train.csv valid.csv test.csv', 'reviews_train.tsv reviews_dev.tsv reviews_test.tsv',
                                   'TRAIN.jsonl Val.jsonl Test.jsonl',
                                   'train-2024.json validation-2024.json test-2024.json',
                                   'train.csv dev.jsonl test.tsv'])
def test_file_names_give_splits(names, tmp_path):
    writers = {'csv': table, 'tsv': lambda *r: table(*r, delimiter='\t'), 'jsonl': lines,
               'json': lambda *r: json.dumps(objects(*r))}
    tree(tmp_path, {n: writers[n.rsplit('.')[-1]](*((t, c) for t,c,k in GIVEN if k == s)) for n,
                    s in zip(names.split(), ('train', 'valid', 'test'))})
    d = read_texts(tree(tmp_path, {'PROVENANCE.txt': 'x', 'README.md': 'x', '.hidden.csv': 'x'}))
    assert (d.split_source, d.made) == ('given', []) and sorted(zip(d.items.text, d.items.label,
            d.items.split)) == sorted(GIVEN)
    same(d, read_texts(put(tmp_path/'one', table(*GIVEN, head=THREE))))

@pytest.mark.parametrize('seed', range(3))
def test_groups_stay_whole(seed, tmp_path):
    rows = [(f'{c} {g} {i}', c, f'customer {g}') for g in range(12) for c in ('good', 'poor') for i in range(1 + g%4)]
    d = read_texts(put(tmp_path, table(*rows, head='text label customer')), group='customer', seed=seed)
    assert (d.items.groupby('group').split.nunique() == 1).all() and d.items.group.nunique() == 12
    assert all(n for s in d.counts().values() for n in s.values())

def test_copies_stay_together_and_are_mentioned(tmp_path):
    for seed in range(4):
        d = read_texts(put(tmp_path, table(*NEAR)), seed=seed)
        key = d.items.text.str.lower().str.split().str.join(' ')
        assert (d.items.groupby(key).split.nunique() == 1).all() and len(d.items) == len(NEAR)
    assert '240 texts are copies of another in the same split; kept' in d.notes

def test_groups_that_leave_a_split_without_a_class_are_refused(tmp_path):
    rows = [(f'{c} {i}', c, 'one' if c == 'poor' else f'{i}') for c in ('good', 'poor') for i in range(9)]
    text = refusal(put(tmp_path, table(*rows, head='text label g')), group='g')
    assert "class 'poor' has 9 usable texts in 1 distinct texts or groups to train on; at least 3 needed" in text

def test_summaries(tmp_path):
    d = read_texts(put(tmp_path, table(*PLAIN, ('one two three four five', ''),
                                       *((f'more {i}', 'good') for i in range(30)))))
    said, kept = d.describe(), d.as_json()
    parts = '46 texts of 2 classes', '1 more without a label', '2 to 4 words', d.fingerprint[
            :12], 'made here', "uneven: 38 of 'good', 8 of 'poor'"
    for part in parts: assert part in said
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept and (kept['n'], kept['n_unlabelled'],
            kept['fingerprint']) == (46, 1, d.fingerprint)


# ---- folders
# ----------------------------------------------------------------------------------------------------------

FILES = {f'{c}/{i}.txt': t for i,(t,c) in enumerate(PLAIN)}

@pytest.mark.parametrize('encode', [str.encode, lambda t: t.encode('utf-8-sig'), lambda t: t.encode('utf-16'),
                                    lambda t: codecs.BOM_UTF16_BE + t.encode('utf-16-be'),
                                    lambda t: f'\n {t} \n'.encode()], ids=['utf-8', 'utf-8 with mark', 'utf-16',
        'utf-16 big-endian', 'blanks around'])
def test_a_text_file_is_read_in_its_encoding(encode, tmp_path):
    rows = [(f'{t}: Grüße, 日本, 🙂\nnext line', c) for t,c in PLAIN]
    same(read_texts(tree(tmp_path/'d', {f'{c}/{i}.TXT': encode(t) for i,(t,c) in enumerate(rows)})),
         read_texts(put(tmp_path, table(*rows))))

@pytest.mark.parametrize('top', [('train', 'valid', 'test'), ('Train', 'Val', 'Test')])
def test_folders_give_splits(top, tmp_path):
    to = dict(zip(('train', 'valid', 'test'), top))
    d = read_texts(tree(tmp_path/'d', {f'{to[s]}/{c}/{i}.txt': t for i,(t,c,s) in enumerate(GIVEN)}))
    assert d.split_source == 'given' and {(d.root/p).read_text() for p in d.items.path} == {t for t,*_ in GIVEN}
    same(d, read_texts(put(tmp_path, table(*GIVEN, head=THREE))))

def test_files_that_are_no_texts_are_passed_over_where_they_are_usual(tmp_path):
    usual = 'PROVENANCE.txt README.md LICENSE samples.json .git/x good/.DS_Store good/Thumbs.db'.split()
    d = read_texts(tree(tmp_path, {**FILES, **dict.fromkeys(usual, 'x')}))
    assert len(d.items) == 16 and not d.problems

@pytest.mark.parametrize('names', [['d.csv'], ['train.csv', 'test.csv']])
def test_tables_beside_class_folders_are_refused(names, tmp_path):
    tree(tmp_path, {**FILES, **{n: table(*PLAIN) for n in names}})
    text = refusal(tmp_path)
    for part in (*names, "'good', 'poor'", 'Give the path of the table'): assert part in text
    assert len(read_texts(tmp_path/names[0]).items) == 16

@pytest.mark.parametrize('role', ['text', 'label', 'group'])
def test_a_column_of_a_folder_without_tables_is_refused(role, tmp_path):
    # else groups that were asked for are not kept
    assert f'`{role}`' in refusal(tree(tmp_path, FILES), **{role: 'thread'})


# ---- mail
# -------------------------------------------------------------------------------------------------------------

def mail(text='', html='', subject='Lunch', sender='Zoe <zoe@example.org>', **kw):
    "A message as Python's email package builds it"
    m = EmailMessage()
    m['Subject'], m['From'], m['To'] = subject, sender, 'sam@example.org'
    if text: m.set_content(text, **kw)
    if html: (m.add_alternative if text else m.set_content)(html, subtype='html', **kw)
    return m

def raw(*head, body='see you at one', kind='text/plain; charset=utf-8'):
    "A message written by hand; headers may be bytes"
    top = [h if isinstance(h, bytes) else h.encode() for h in (*head, f'Content-Type: {kind}')]
    return b'\n'.join([*top, b'', body if isinstance(body, bytes) else body.encode(), b''])

WORDS = {'us-ascii': 'See you at one,\nSam = Zoe.', 'utf-8': 'Grüße, 日本, 🙂\nund = mehr',
         'latin-1': 'Grüße aus Köln,\nbis morgen: déjà vu.',
         'cp1252': '“Price”: 5 €\n– Zoë', 'iso-8859-2': 'Żółć, łąka\nświt',
         'koi8-r': 'Привет, завтра в шесть.\nДо встречи!',
         'shift_jis': '明日の会議は六時です。\nよろしく。', 'iso-2022-jp': '明日の会議は六時です。\nよろしく。', 'gb2312': '明天见\n再见'}
WAY = {'as built': policy.default, 'as sent': policy.SMTP}

@pytest.mark.parametrize('charset', WORDS)
def test_a_body_comes_out_as_it_went_in(charset):
    for coding in ('base64', 'quoted-printable', '8bit'):
        for way in WAY.values():
            got = read_mail(mail(WORDS[charset], charset=charset, cte=coding).as_bytes(policy=way))
            assert got == {'from': 'Zoe <zoe@example.org>', 'subject': 'Lunch', 'text': WORDS[charset]}, (coding, way)

HTML = ('<html><head><style>p {color: red}</style></head><body>'
        '<p>Gr&uuml;&szlig;e,<br>see&nbsp;you</p><script>var a = "<p>";</script></body></html>')
INNER = mail('forwarded words')

def attached(m):
    "`m` with an attachment of each kind"
    m.add_attachment('attached words', filename='a.txt')
    m.add_attachment('<p>attached page</p>', subtype='html', filename='a.html')
    m.add_attachment(b'%PDF attached', 'application', 'pdf', filename='a.pdf')
    m.add_attachment(b'\x89PNG', 'image', 'png', filename='a.png', disposition='inline')
    m.add_attachment('BEGIN:VCALENDAR attached', subtype='calendar')
    return m

def with_mail_attached(): m = mail('plain words'); m.add_attachment(INNER); return m
def with_picture():
    m = mail(html='<p>plain <img src="cid:a@b"> words</p>')
    m.add_related(b'\x89PNG', 'image', 'png', cid='<a@b>')
    return m
def in_parts(*bodies):
    m = EmailMessage(); m.make_mixed()
    for b in bodies: p = EmailMessage(); p.set_content(b); m.attach(p)
    return m

MAILS = { # name: (message, its text)
    'plain': (mail('plain words'), 'plain words'),
    'plain and html': (mail('plain words', '<p>other words</p>'), 'plain words'),
    'html': (mail(html=HTML), 'Grüße,\nsee you'),
    'html in base64': (mail(html=HTML, charset='utf-8', cte='base64'), 'Grüße,\nsee you'),
    'html in koi8-r': (mail(html='<p>' + WORDS['koi8-r'].replace('\n', '<br>'), charset='koi8-r'), WORDS['koi8-r']),
    'blank and html': (mail(' \n', '<p>plain words</p>'), 'plain words'),
    'attachments': (attached(mail('plain words')), 'plain words'),
    'attachments to html': (attached(mail(html='<p>plain words</p>')), 'plain words'),
    'attachments to both': (attached(mail('plain words', '<p>other</p>')), 'plain words'),
    'a mail attached': (with_mail_attached(), 'plain words'),
    'an image inside': (with_picture(), 'plain words'),
    'two plain parts': (in_parts('plain words', 'more of them'), 'plain words\nmore of them'),
    'only an attachment': (attached(mail()), ''),
    'no body': (mail(), ''),
}

@pytest.mark.parametrize('name', MAILS)
def test_a_mail_is_what_its_reader_sees(name):
    m, text = MAILS[name]
    for way in WAY.values():
        got = read_mail(m.as_bytes(policy=way))
        assert got['text'] == text and set(got) == {'from', 'subject', 'text'}, way

@pytest.mark.parametrize('name', ['plain', 'plain and html', 'attachments', 'attachments to both', 'a mail attached'])
def test_the_body_is_the_one_that_python_finds(name):
    m = MAILS[name][0]
    assert read_mail(m.as_bytes())['text'] == m.get_body(('plain', 'html')).get_content().strip()

@pytest.mark.parametrize('subject', ['Grüße', 'Привет, завтра?', '明日の会議 [1]', '🙂',
                                     'déjà vu: ' + 'très long sujet, '*12 + 'fin',
                                     'plain ' + 'and long '*30 + 'end', '', '=?'])
def test_headers_come_out_as_they_went_in(subject):
    for way in (*WAY.values(), policy.SMTPUTF8):
        got = read_mail(mail('x', subject=subject, sender='Zoë Müller <zoe@example.org>').as_bytes(policy=way))
        assert got == {'from': 'Zoë Müller <zoe@example.org>', 'subject': subject, 'text': 'x'}, way

@pytest.mark.parametrize('charset', ['latin-1', 'koi8-r', 'shift_jis', 'iso-2022-jp', 'gb2312'])
def test_headers_of_older_programs(charset):
    m, line = MIMEText(WORDS[charset], 'plain', charset), WORDS[charset].split('\n')[0]
    m['Subject'], m['From'] = Header(line, charset), Header('Zoe', charset).encode() + ' <zoe@example.org>'
    assert read_mail(m.as_bytes()) == {'from': 'Zoe <zoe@example.org>', 'subject': line, 'text': WORDS[charset]}

NO_SET = ('=no-such-set', '=""', '="utf-8', '=rot13', '=idna', '=undefined', '="\0"', '==?utf-8?q?x?=', "*=x'y'z", '*',
          '=us-ascii')

@pytest.mark.parametrize('kind', [*(f'text/plain; charset{c}' for c in NO_SET), 'text/plain', 'text/plain;;;', 'text',
                                  ';'])
def test_a_character_set_that_cannot_be_is_no_obstacle(kind):
    for body in ('see you at one', 'Grüße, 日本'):
        assert read_mail(raw('Subject: Lunch', kind=kind, body=body))['text'] == body

@pytest.mark.parametrize('kind', ['text/plain; charset=no-such-set', 'text/plain; charset=utf-8',
                                  'text/plain; charset=us-ascii', 'text/plain'])
def test_bytes_that_are_no_utf8_are_those_of_an_older_program(kind):
    assert read_mail(raw(kind=kind, body='“5 €”, Grüße'.encode('cp1252')))['text'] == '“5 €”, Grüße'

@pytest.mark.parametrize('charset, data, part', [
    ('utf-8', 'Grüße aus Köln, 日本'.encode()[:-1], 'Grüße aus Köln, 日'), # cut off
    # one letter of the larger set
    ('gb2312', '朱镕基总理在这里说了很多话'.encode('gbk'), '总理在这里说了很多话')])
def test_a_letter_that_is_lost_costs_no_others(charset, data, part):
    assert part in read_mail(raw(kind=f'text/plain; charset={charset}', body=data))['text']

HEADS = { # name: (header lines, sender and subject as they must come out; None: whatever, but text)
    'none': ([], '', ''), 'nothing in it': (['From:', 'Subject:'], '', ''),
    'folded': (['From: Zoe\n  <zoe@example.org>', 'Subject: see\n\tyou'], 'Zoe <zoe@example.org>', 'see you'),
    'capitals': (['FROM: Zoe <zoe@example.org>', 'SUBJECT: Lunch'], 'Zoe <zoe@example.org>', 'Lunch'),
    'two words in code': (['Subject: =?utf-8?q?Gr=C3=BC?= =?utf-8?q?=C3=9Fe?='], '', 'Grüße'),
    'letters for bytes': (['Subject: =?koi8-r?b?' + base64.b64encode('Привет'.encode('koi8-r')).decode() + '?='], '',
                          'Привет'),
    'raw utf-8': (['Subject: Grüße', 'From: Zoë <zoe@example.org>'], 'Zoë <zoe@example.org>', 'Grüße'),
    'raw latin-1': ([b'Subject: Gr\xfc\xdfe', b'From: Zo\xeb <zoe@example.org>'], None, None),
    'unknown set': (['Subject: =?no-such-set?q?Lunch?='], '', 'Lunch'),
    'unknown set, high bytes': (['Subject: =?no-such-set?q?caf=E9?='], '', None),
    'wrong set': (['Subject: =?utf-8?q?caf=E9?=', 'From: =?utf-8?q?Zo=EB?= <zoe@example.org>'], None, None),
    'not base64': (['Subject: =?utf-8?b?!!!?=', 'From: =?utf-8?b?a?= <a@b.org>'], None, None),
    'open word': (['Subject: =?utf-8?q?abc', 'From: =?utf-8?q?abc'], None, None),
    'open quote': (['From: "Zoe <zoe@example.org>'], None, ''), 'open bracket': (['From: Zoe <zoe@example.org'], None,
        ''),
    'open comment': (['From: (Zoe'], None, ''),
    'brackets': (['From: <<<>>>', 'Subject: <<<>>>'], None, '<<<>>>'), 'no address': (['From: @'], None, ''),
    'domain': (['From: a@[', 'Subject: a@['], None, 'a@['),
    'backslash': (['From: "\\', 'Subject: \\'], None, '\\'), 'commas': (['From: ,,,;:'], None, ''),
    'no colon': (['From: x@example.org', 'Subject Lunch'], None, None),
    'zero byte': ([b'Subject: a\0b', b'From: \0'], None, None), 'address list': (['From: list: a@b.org, c@d.org;'],
        None, ''),
    'half a group': (['From: list:'], None, ''),
    'half a file name': (['Content-Disposition: inline; filename*'], '', ''),
    'a thousand comments': (['From: ' + '('*3000], None, ''),
}

@pytest.mark.parametrize('name', HEADS)
def test_a_damaged_header_costs_nothing_else(name, tmp_path):
    head, sender, subject = HEADS[name]
    data = raw('To: sam@example.org', *head)
    got = read_mail(data)
    for v in got.values(): v.encode()
    assert 'see you at one' in got['text'] and (name == 'no colon' or got['text'] == 'see you at one')
    assert sender is None or got['from'] == sender
    assert subject is None or got['subject'] == subject
    read_texts(tree(tmp_path, {**FILES, 'good/x.eml': data}))

def test_a_header_that_the_library_cannot_parse_is_taken_as_it_stands(monkeypatch):
    # as several versions of Python do for some address or other
    def fail(*_): raise IndexError('string index out of range')
    monkeypatch.setattr(policy.EmailPolicy, 'header_fetch_parse', lambda self, name,
                        value: fail() if name.lower() == 'from' else value)
    assert read_mail(raw('From: Zoe <zoe@example.org>', 'Subject: Lunch')) == {'from': 'Zoe <zoe@example.org>',
            'subject': 'Lunch', 'text': 'see you at one'}

def read(data):
    "Whatever the bytes are, strings that can be written"
    try: return [v.encode() for v in read_mail(data).values()]
    except Exception as e: raise AssertionError(f'{data!r} ends in {e!r}') from e

@pytest.mark.parametrize('name', [n for n in MAILS if n not in ('plain', 'no body')])
def test_damage_never_ends_in_an_exception(name):
    data, r = MAILS[name][0].as_bytes(), random.Random(0)
    for n in range(60):
        bad = bytearray(data[:r.randrange(1, len(data))] if n%3 == 0 else data)
        for _ in range(r.choice([1, 3, 10, 30])):
            bad[r.randrange(len(bad))] = r.choice([r.randrange(256), *b'\n<>"=?;:\\()@[],\xff'])
        read(bytes(bad))

@pytest.mark.parametrize('header', ['From', 'Subject', 'Content-Type', 'Content-Disposition',
                                    'Content-Transfer-Encoding'])
def test_nonsense_in_a_header_never_ends_in_an_exception(header):
    r, bits = random.Random(0), [*(bytes([b]) for b in b'<>"\\()@,;:= []*.\'a0\0\xff'), b'=?utf-8?q?', b'=?utf-8?b?',
                                 b'=FF', b'?=', b'\n ', b'*0',
                                 b'%ff', b'charset', b'text/plain', b'text/html', b'multipart/mixed', b'boundary',
                                 b'attachment', b'filename']
    for _ in range(800):
        read(header.encode() + b': ' + b''.join(r.choices(bits, k=r.randrange(1, 8))) + b'\n\nsee you at one\n')

@pytest.mark.parametrize('data', [b'', b'\n', b'no header at all', b'\xff\xfe\0',
                                  b'From zoe Mon Jan 1\nSubject: Lunch\n\nsee you', b'Subject: Lunch'])
def test_what_is_hardly_a_mail_is_read_as_far_as_it_goes(data):
    got = read_mail(data)
    assert all(isinstance(v, str) for v in got.values()) and got['subject'] == 'Lunch'*(b'Lunch' in data)

def test_a_mail_of_parts_in_parts_without_end_stops_no_folder(tmp_path):
    deep = b''.join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (i, i) for i in range(3000))
    files = tree(tmp_path, {**FILES, 'good/z.eml': deep})
    assert 'good/z.eml: not a mail that can be read' in refusal(files) and len(read_texts(files,
            on_bad='skip').items) == 16

def test_one_mail_is_one_text(tmp_path):
    rows = [(f'{t}\n\nZoë', c) for t,c in PLAIN]
    mails = {f'{c}/{i}.{("eml", "EML")[i%2]}': mail(t, subject=f'Grüße {i}').as_bytes(policy=policy.SMTP) for i,
             (t,c) in enumerate(rows)}
    d = read_texts(tree(tmp_path/'d', mails))
    assert set(zip(d.items.text, d.items.label)) == {(f'From: Zoe <zoe@example.org>\nSubject: Grüße {i}\n\n{t}', c)
                                                     for i,(t,c) in enumerate(rows)}
    wide = [(t, f'Grüße {i}', 'Zoe <zoe@example.org>', c) for i,(t,c) in enumerate(rows)]
    same(d, read_texts(put(tmp_path, table(*wide, head='body subject from label'))))

@pytest.mark.parametrize('sender, subject, text, want', [
    ('a@b', 's', 't', 'From: a@b\nSubject: s\n\nt'), ('', ' s ', 't\n', 'Subject: s\n\nt'),
    ('a', '', 't', 'From: a\n\nt'),
    (' ', '', ' t ', 't'), ('', '', '', '')])
def test_what_is_not_known_of_a_mail_is_not_mentioned(sender, subject, text, want):
    assert mail_text(sender, subject, text) == want

BLOCKS = ( # block-level, list and table elements of the HTML standard
    'address article aside blockquote center dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 '
    'h3 h4 h5 h6 header hgroup hr legend li '
    'main nav ol p pre search section summary table td th title tr ul').split()

def test_words_of_two_blocks_are_not_one_word():
    assert [t for t in BLOCKS if html_text(f'<{t}>one</{t}><{t}>two</{t}>three').split() != ['one', 'two',
            'three']] == []

@pytest.mark.parametrize('html, want', [
    ('to<b>geth</b>er', 'together'), ('a<br>b<br/>c', 'a\nb\nc'), ('1 &lt; 2 &amp; 3 &#8364; &euro; &bogus;',
        '1 < 2 & 3 € € &bogus;'),
    ('a &nbsp; \t b', 'a b'), ('<p>one\nline</p>', 'one line'), ('<pre>two\nlines</pre>of\none', 'two\nlines\nof one'),
    ('<tr><td>a</td><td>b</td></tr><tr><td>c', 'a b\nc'), ('<!-- not --><p>seen', 'seen'),
    ('<STYLE>x</STYLE><Script>y</Script>seen', 'seen'), ('<p>seen</style></script> too', 'seen too'),
    ('a < b', 'a < b'), ('', ''),
    ('<p>one<p>two', 'one\ntwo'), ('<![if !vml]><p>word</p><![endif]>', 'word'), ('<a href="x>y">link</a>', 'link')])
def test_html_is_what_its_reader_sees(html, want): assert html_text(html) == want

@pytest.mark.parametrize('rest', ['<![bogus', '<![bogus x]><p>more', '<', '<!', '<!--', '</', '<p', '<a href="', '&',
                                  '&#', '&#xffffffff;', '<?', '<!doctype',
                                  '<script>', '\0'])
def test_damaged_html_keeps_what_came_before(rest): assert html_text('<p>kept</p>' + rest).startswith('kept')


# ---- columns
# ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('names, given, want', [
    ('text label', {}, dict(text='text', label='label')), ('Review Stars', {}, dict(text='Review', label='Stars')),
    ('id sentence sentiment', {}, dict(text='sentence', label='sentiment')),
    ('category body subject from', {}, dict(text='body', label='category', subject='subject', sender='from')),
    ('target tweet split', {}, dict(text='tweet', label='target', split='split')),
    ('text review label y', {}, dict(text='text', label='label')), ('a b c', dict(text='c', label='a', group='b'),
        dict(text='c', label='a', group='b')),
    ('text label note', dict(text='note'), dict(text='note', label='label')),
    ('text label source', dict(group='source', text='', label=''), dict(text='text', label='label', group='source')),
    # what was given is that, and nothing else
    ('text class rating', dict(group='class'), dict(text='text', label='rating', group='class')),
    ('title label', dict(text='title'), dict(text='title', label='label')),
    ('text label group', {}, dict(text='text', label='label')),
    ('text sentence', dict(label='text'), dict(text='sentence', label='text'))])
def test_columns_are_found_by_name(names, given, want): assert find_columns(names.split(), 'x', given) == want

@pytest.mark.parametrize('names, given, parts', [
    ('a label', {}, ['which column is the text?', "'a', 'label'", 'sentence', '`-p text=a` of `tl run`',
                         '`--text-column a`']),
    ('text b', {}, ['which column is the label?', 'sentiment', '`-p label=b` of `tl run`']),
    ('a b', {}, ['which column is the text and which the label?', '-p text=', '-p label=']),
    ('text b', dict(text='b', label='b'), ["column 'b' is given for `text` and for `label`"]),
    ('text label', dict(text='txet'), ["no column 'txet' for `text`", "Did you mean 'text'?"]),
    ('text label', dict(label='Label'), ["no column 'Label' for `label`", "Did you mean 'label'?"]),
    ('text label prompt_id', dict(group='promt_id'), ["no column 'promt_id' for `group`",
                                                      "Did you mean 'prompt_id'?"])])
def test_columns_that_are_not_there_are_named(names, given, parts, tmp_path):
    with pytest.raises(InputError) as e: find_columns(names.split(), '`d.csv`', given)
    text = refusal(put(tmp_path, table(*(['x']*len(names.split()),), head=names)), **given)
    for part in (*parts, 'd.csv'): assert part in str(e.value) and part in text

def test_columns_are_named(tmp_path):
    rows = [(c, 'x', t) for t,c in PLAIN]
    same(read_texts(put(tmp_path, table(*rows, head='note text kommentar')), text='kommentar', label='note'),
         read_texts(put(tmp_path, table(*PLAIN), 'e.csv')))
    tree(tmp_path/'d', {'train.csv': table(*PLAIN), 'test.csv': table(*PLAIN, head='text lable')})
    assert "`test.csv`: which column is the label? Its columns are 'text', 'lable'" in refusal(tmp_path/'d')


# ---- bad inputs
# -------------------------------------------------------------------------------------------------------

def given(*more, **kw): return {'d.csv': table(*GIVEN, *more, head=THREE, **kw)}
def plain(*more): return {'d.csv': table(*PLAIN, *more)}
GROUPED = [(*r, f'{i}') for i,r in enumerate(GIVEN)]

# name: (files, what is given below the root, keywords, fragments of the message, kind; None: not a matter of skipping)
BAD = {
    'empty': (plain(('', 'good')), 'd.csv', {}, ['d.csv:18: empty'], 'empty text'),
    'blank': (plain((' \n\t', 'good')), 'd.csv', {}, ['nothing but blanks'], 'empty text'),
    'json null': ({'d.jsonl': lines(*PLAIN, (None, 'good'))}, 'd.jsonl', {}, ['d.jsonl:17: empty'], 'empty text'),
    'only a subject': ({'d.csv': table(*((t, t, c) for t,c in PLAIN), ('', 'hello', 'good'),
                                       head='text subject label')}, 'd.csv', {}, ['d.csv:18: empty'],
        'empty text'),
    'contradiction': (plain(('good sailing, number 0', 'poor')), 'd.csv', {},
                      ["d.csv:18: labelled 'poor'; same text as `d.csv:2`, labelled 'good'"],
        'two labels'),
    'contradiction in other letters': (plain(('GOOD  sailing,\nnumber 0', 'poor')), 'd.csv', {},
                                       ["labelled 'poor'; same text as `d.csv:2`, labelled 'good'"],
        'two labels'),
    'leak': (given(('good train 0', 'good', 'test')), 'd.csv', {},
             ['d.csv:2: in train; same text as `d.csv:20` in test'], 'leak'),
    'leak in other letters': (given(('Good Train 0 ', 'good', 'valid')), 'd.csv', {},
                              ['d.csv:2: in train; same text as `d.csv:20` in valid'], 'leak'),
    'leak into valid': (given(('good valid 0', 'good', 'test')), 'd.csv', {},
                        ['d.csv:8: in valid; same text as `d.csv:20` in test'], 'leak'),
    'leak between tables': ({'train.csv': table(*PLAIN), 'test.csv': table(('good sailing, number 3', 'good'))}, '', {},
        ['train.csv:5: in train; same text as `test.csv:2` in test'], 'leak'),
    'group leak': ({'d.csv': table(*GROUPED, ('new', 'good', 'test', '0'), head=f'{THREE} who')}, 'd.csv',
                   dict(group='who'),
        ['d.csv:2: in train; same group as `d.csv:20` in test'], 'leak'),
    'typo': ({'d.csv': table(*MANY, ('new', 'postive'))}, 'd.csv', {},
             ["label 'postive' (1 of 121) looks like 'positive'", '`-p check_typos=false`', '--check-typos false'],
             'typo'),
    'case': (plain(('new', 'Good')), 'd.csv', {}, ["'Good', 'good' differ only in case or blanks"], 'spelling'),
    'blanks': (plain(('new', 'so so'), ('new 2', 'so  so')), 'd.csv', {},
               ["'so  so', 'so so' differ only in case or blanks"], 'spelling'),
    'unicode form': (plain(('new', 'm\u00fcde'), ('new 2', 'mu\u0308de')), 'd.csv', {},
                     ['differ only in case or blanks'], 'spelling'),
    'split name': (given(('new', 'good', 'tset'), ('new 2', 'good', 'tset')), 'd.csv', {},
                   ["2 rows of `d.csv` have the split 'tset'. Did you mean 'test'?"],
        'split'),
    'split name of a copy': (given(('good train 0', 'good', 'tset')), 'd.csv', {},
                             ["1 rows of `d.csv` have the split 'tset'"], 'split'),
    'some splits': (given(('new', 'good', '')), 'd.csv', {}, ['1 of 19 rows have no split; fill in all or none'],
                    'split'),
    'no train': ({'d.csv': table(*(r for r in GIVEN if r[2] != 'train'), head=THREE)}, 'd.csv', {},
                 ["no row has the split 'train'"], 'split'),
    'class only in test': (given(('new', 'odd', 'test')), 'd.csv', {},
                           ["class 'odd' has texts in valid or test, but none in train"], 'split'),
    'fields': (plain(('new',), ('new', 'good', 'more')), 'd.csv', {}, ['d.csv:18: has 1 fields, the header has 2',
        'd.csv:19: has 3 fields'], 'bad row'),
    'too few': (plain(('new', 'odd'), ('new 2', 'odd')), 'd.csv', {},
                ["class 'odd' has 2 usable texts to train on; at least 3 needed"], 'too few'),
    'too few distinct': (plain(*((w, 'odd') for w in ('new', 'New', 'NEW', ' new '))), 'd.csv', {},
                         ["class 'odd' has 4 usable texts in 1 distinct texts"],
        'too few'),
    'one class': ({'d.csv': table(*PLAIN[:8])}, 'd.csv', {}, ["the only one is 'good'"], 'one class'),
    'no label at all': ({'d.csv': table(('one', ''), ('two', ''))}, 'd.csv', {}, ['there is none'], 'one class'),
    'no rows': ({'d.csv': table()}, 'd.csv', {}, ['there is none'], 'one class'),
    'nothing but empty': ({'d.csv': table(('', 'good'), ('', 'poor'))}, 'd.csv', {},
                          ['empty text (2)', 'there is none'], 'one class'),
    'txt not utf-8': ({**FILES, 'good/z.txt': b'Gr\xfc\xdfe'}, '', {},
                      ['good/z.txt: not UTF-8 (byte 2); save it as UTF-8'], 'unreadable'),
    'half a letter of utf-16': ({**FILES, 'good/z.txt': 'ab'.encode('utf-16') + b'c'}, '', {}, ['good/z.txt: not UTF-'],
                                'unreadable'),
    'txt empty': ({**FILES, 'good/z.txt': b''}, '', {}, ['good/z.txt: empty'], 'empty text'),
    'txt with a mark only': ({**FILES, 'good/z.txt': codecs.BOM_UTF8 + b' \n'}, '', {},
                             ['good/z.txt: nothing but blanks'], 'empty text'),
    'mail without a body and a subject': ({**FILES, 'good/z.eml': mail(subject='').as_bytes()}, '', {},
                                          ['good/z.eml: empty'], 'empty text'),
    'zero bytes of mail': ({**FILES, 'good/z.eml': b''}, '', {}, ['good/z.eml: empty'], 'empty text'),
    'two labels in folders': ({**FILES, 'poor/z.txt': 'good sailing, number 1'}, '', {},
        ["poor/z.txt: labelled 'poor'; same text as `good/1.txt`, labelled 'good'"], 'two labels'),
    'another kind of file': ({**FILES, 'good/z.docx': b'PK'}, '', {}, ["good/z.docx: suffix '.docx'",
        'Accepted: .txt and .eml'], 'not a text'),
    'a text beside the classes': ({**FILES, 'z.txt': 'x'}, '', {}, ['z.txt: lies in no class folder'], 'no label'),
    'broken link': ({**FILES, 'good/z.txt': lambda p: p.symlink_to('gone.txt')}, '', {},
                    ['good/z.txt: a link to nothing'], 'missing'),
    'empty class': ({**FILES, 'odd': None}, '', {}, ['odd: no text in it'], 'empty class'),
    'folder case': ({**FILES, 'Good/x.txt': 'new'}, '', {}, ["'Good', 'good' differ only in case or blanks"],
                    'spelling'),
    'no class folders': ({'a.txt': 'x', 'b.txt': 'y'}, '', {}, ['2 texts, but no folders that say'], 'layout'),
    'nothing': ({'d': None}, 'd', {}, ['there is none'], 'one class'),
    'unknown letters': ({'d.csv': 'text,label\nПривет,good\n'.encode('cp1251')}, 'd.csv', {},
                        ['is not UTF-8 (byte 11)', 'Save it as UTF-8'], None),
    'one row not utf-8': ({'d.csv': table(*((f'{t} ü', c) for t,c in PLAIN)).encode() + b'\xfc,good\n'}, 'd.csv', {},
                          ['d.csv:18: holds bytes that are not UTF-8'], 'bad row'),
    'json lines not utf-8': ({'d.jsonl': lines(*MANY*20).encode() + b'{"text": "\xfc"}'}, 'd.jsonl', {},
        [f'is not UTF-8 (byte {len(lines(*MANY*20)) + 10:,})'], None),
    'open quote': ({'d.csv': 'text,label\nx,good\n"y,good\n'}, 'd.csv', {}, ['cannot be read: line 3'], None),
    'empty file': ({'d.csv': ''}, 'd.csv', {}, ['is empty. Accepted: a header'], None),
    'empty json lines': ({'d.jsonl': '\n\n'}, 'd.jsonl', {}, ['is empty. Accepted: '], None),
    'empty list': ({'d.json': '[]'}, 'd.json', {}, ['is empty. Accepted: '], None),
    'damaged line': ({'d.jsonl': lines(*PLAIN[:2]) + '\n{"text": "x", "label"\n' + lines(*PLAIN[2:])}, 'd.jsonl', {},
        ['line 4 is not JSON', 'one object per line'], None),
    'cut off line': ({'d.jsonl': lines(*PLAIN)[:-9]}, 'd.jsonl', {}, ['line 16 is not JSON'], None),
    'damaged list': ({'d.json': '[\n{"text": "x", "label": "good"},\n{"text": "y", "label": "good"}\n{"text": "z"}\n]'},
                     'd.json', {},
        ['line 4 is not JSON', 'a list of objects'], None),
    'line without names': ({'d.jsonl': lines(*PLAIN[:2]) + '["x", "good"]\n'}, 'd.jsonl', {},
                           ['entry 3 is no object with named fields. Accepted: {"text"'],
        None),
    'list of texts': ({'d.json': '["x", "y"]'}, 'd.json', {}, ['entry 1 is no object'], None),
    'object': ({'d.json': '{"data": []}'}, 'd.json', {}, ['Accepted: '], None),
    'number': ({'d.json': '5'}, 'd.json', {}, ['Accepted: '], None),
    'null': ({'d.json': 'null'}, 'd.json', {}, ['Accepted: '], None),
    'brackets': ({'d.json': '['*200_000}, 'd.json', {}, ['is not JSON'], None),
    'not parquet': ({'d.parquet': b'PAR1'}, 'd.parquet', {}, ['d.parquet`', 'arquet'], None),
    'column twice': ({'d.csv': 'text,label,text\nx,y,z\n'}, 'd.csv', {}, ["column 'text' occurs twice. Keep one."],
                     None),
    'spreadsheet': ({'d.xlsx': b'PK'}, 'd.xlsx', {},
                    ['is a file of another kind. Accepted: a table (.csv, .tsv, .jsonl'], None),
    'one mail': (FILES, 'good/1.txt', {}, ['is a file of another kind. Accepted: '], None),
    'does not exist': (plain(), 'dd.csv', {}, ["does not exist. Did you mean '/", "/d.csv'?"], None),
    'several tables': ({'a.csv': table(*PLAIN), 'b.jsonl': lines(*PLAIN)}, '', {},
        ["holds 2 tables: 'a.csv', 'b.jsonl'. Accepted: one, or one each for train, valid and test"], None),
    'a split twice': ({'train.csv': table(*PLAIN), 'train.tsv': table(*PLAIN)}, '', {},
                      ["holds 2 tables: 'train.csv', 'train.tsv'"], None),
    'a folder like a table': ({'d.csv/x.txt': 'x'}, '', {}, ['d.csv` is not a file'], None),
}

@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name, tmp_path):
    files, below, kw, parts, kind = BAD[name]
    text = refusal(tree(tmp_path/'d', files)/below, **kw)
    for part in (*parts, str(tmp_path), below): assert part in text
    assert kind is None or f'\n{kind} (' in text

@pytest.mark.parametrize('name', [n for n,(*_,kind) in BAD.items() if kind])
def test_skip_leaves_out_bad_rows_and_never_forgives_structure(name, tmp_path):
    files, below, kw, parts, kind = BAD[name]
    root = tree(tmp_path/'d', files)
    if not KINDS[kind][0]:
        assert kind in refusal(root/below, on_bad='skip', **kw).splitlines()[-1].split('no answer to: ')[1]
        return
    d = read_texts(root/below, on_bad='skip', **kw)
    assert kind in {p.kind for p in d.problems} and not {p.path for p in d.problems} & set(d.items.path)
    assert d.as_json()['n_skipped'] == len(d.problems) == len(d.as_json()['skipped'])
    key = d.items.text.str.lower().str.split().str.join(' ')
    assert (d.items.groupby(key)[['label', 'split']].nunique() == 1).all(axis=None)
    assert (d.items[d.items.group != ''].groupby('group').split.nunique() == 1).all()

def test_skip_is_the_same_as_removing_the_rows(tmp_path):
    good = [*GIVEN, *((f'{c} more {i}', c, 'train') for c in ('good', 'poor') for i in range(3))]
    rows = [*good, ('good train 0', 'good', 'test'), ('', 'good', 'train'), ('good train 1', 'poor', 'train')]
    d = read_texts(put(tmp_path, table(*rows, head=THREE) + 'x,good\r\n'), on_bad='skip')
    assert Counter(p.kind for p in d.problems) == {'leak': 1, 'empty text': 1, 'two labels': 2, 'bad row': 1}
    kept = [r for r in good if r[0] not in ('good train 0', 'good train 1')] + [('good train 0', 'good', 'test')]
    same(d, read_texts(put(tmp_path, table(*kept, head=THREE), 'e.csv')))

def test_all_problems_come_at_once(tmp_path):
    rows = [*((t, c, 'train') for t,c in MANY), *((f'{t} again', c, 'test') for t,c in MANY[::6]),
            ('', 'positive', 'train'), ('positive voyage 1', 'negative', 'train'),
            ('positive voyage 2', 'positive', 'test'), ('new 1', 'postive', 'train'),
            ('new 2', 'Positive', 'train'), ('new 3', 'positive', 'tset'), ('new 4', 'positive')]
    text = refusal(put(tmp_path, table(*rows, head=THREE)))
    for part in ('empty text (1)', 'two labels (2)', 'leak (1)', 'typo (1)', 'spelling (1)', 'split (', 'bad row (1)',
                 "split 'tset'",
                 'd.csv:148: has 2 fields', 'leave out the 5 that can be left out',
                 '`on_bad=skip` is no answer to: spelling, typo, split'):
        assert part in text
    text = refusal(tree(tmp_path/'d', {**FILES, 'good/y.txt': b'\xff', 'good/z.txt': '',
                                       'poor/z.txt': 'good sailing, number 1', 'z.docx': b'', 'odd': None}))
    for part in ('unreadable (1)', 'empty text (1)', 'two labels (2)', 'not a text (1)', 'empty class (1)'):
        assert part in text

def test_a_thousand_problems_fit_on_a_screen(tmp_path):
    text = refusal(put(tmp_path, table(*PLAIN, *(('', 'good') for _ in range(1000)))))
    assert len(text.splitlines()) < 60 and 'empty text (1,000)' in text and 'more' in text

def test_what_is_counted_is_texts(tmp_path):
    assert '1 problem in 17 texts.' in refusal(put(tmp_path, table(*PLAIN, ('', 'good'))))
    assert '1 problem in 17 texts.' in refusal(tree(tmp_path/'d', {**FILES, 'good/z.txt': ''}))

def test_a_split_name_of_a_copy_is_named_for_images_too(tmp_path):
    for i in range(8): Image.new('RGB', (8, 8), (40*(i//2), 0, 90)).save(tmp_path/f'{i}.png')
    put(tmp_path, 'path,label,split\n' + ''.join(f'{i}.png,{"ab"[i//4]},{("train", "tset")[i%2]}\n' for i in range(8)))
    with pytest.raises(InputError, match="4 rows have the split 'tset'. Did you mean 'test'"):
        read_images(tmp_path/'d.csv', progress=False)

def test_what_is_said_to_be_accepted_is(tmp_path):
    # a table of texts has no column of paths
    for text in (refusal(''), refusal(tree(tmp_path/'a', {'a.txt': 'x'}))): assert 'path,label' not in text

@pytest.mark.parametrize('kw, part', [
    (dict(on_bad='warn'), "`on_bad` is 'warn'; accepted: 'error' or 'skip'"),
    (dict(valid_pct=20), '`valid_pct` is 20; accepted'),
    (dict(test_pct=-.1), '`test_pct` is -0.1'), (dict(test_pct=float('nan')), '`test_pct` is nan'),
    (dict(valid_pct='0.2'), "`valid_pct` is '0.2'"),
    (dict(valid_pct=.5, test_pct=.5), 'leaves nothing to train on'),
    (dict(seed=-1), '`seed` is -1'), (dict(seed=1.5), '`seed` is 1.5'), (dict(max_items=0), '`max_items` is 0'),
    (dict(min_per_class=True), '`min_per_class` is True'), (dict(min_per_class=9), 'at least 9 needed'),
    (dict(names={'god': 'x'}), "has no label 'god'. Did you mean 'good'?"), (dict(names={'1': 'x'}), 'Accepted: ')])
def test_parameters_are_named(kw, part, tmp_path): assert part in refusal(put(tmp_path, table(*PLAIN)), **kw)

@pytest.mark.parametrize('name', ['d.csv', 'd.tsv', 'd.jsonl', 'd.json', 'folder', 'good/0.txt'])
def test_what_may_not_be_opened_is_named(name, open_tmp):  # noqa: F811
    if name == 'folder': place = open_tmp/name; place.mkdir()
    else: place = put(open_tmp, 'text,label\n', name)
    tree(open_tmp, FILES) if name in FILES else None
    place.chmod(0)
    text = as_nobody(lambda: repr(read_texts(open_tmp if name in FILES else place)))
    assert text.startswith('InputError: ') and name in text and 'Permission denied' in text


# ---- what makes two texts the same
# ------------------------------------------------------------------------------------

@pytest.mark.parametrize('a, b', [('Good  value', ' good value\n'), ('Straße', 'STRASSE'), ('caf\u00e9', 'cafe\u0301'),
                                  ('ﬁne', 'fine'), ('ｆｕｌｌ', 'full'),
                                  ('a\u00a0b', 'a b'), ('ΟΔΟΣ', 'οδος'), ('ǰ', 'ǰ'.upper()), ('ΐ', 'ΐ'.upper()),
                                  ('', ' \n')])
def test_case_blanks_and_unicode_form_do_not_count(a, b): assert content_hash(a) == content_hash(b)

@pytest.mark.parametrize('a, b', [('Good value', 'Good value!'), ('resume', 'résumé'), ('ab', 'a b'), ('1', '2'),
                                  ('не', 'He')])
def test_letters_and_marks_do(a, b): assert content_hash(a) != content_hash(b)

def test_every_letter_by_the_rule_of_the_unicode_standard():
    def fold(s): # compatibility caseless match, D146
        n = unicodedata.normalize
        return n('NFKD', n('NFKD', n('NFD', s).casefold()).casefold())
    apart = [f'U+{k:04X}' for k in range(33, 0x1fbff) if not 0xd800 <= k < 0xe000 and (c := chr(k)) and c.upper() != c
             and fold(c) == fold(c.upper())
             and content_hash(f'x{c}y') != content_hash(f'x{c.upper()}y')]
    assert not apart

@pytest.mark.parametrize('labels, slip', [
    (['positive']*60 + ['negative']*60 + ['postive'], ['postive']), (['part 1']*60 + ['part 2'], []),
    (['1']*60 + ['2'], []), (['v1.0']*60 + ['v1.1'], []),
    (['Good']*60 + ['good'], []), (['positive']*10 + ['postive'], []),
    (['positive']*20 + ['postive'], ['postive']), (['positive']*60 + ['negative'], []), (['spam']*60 + ['ham']*2, []),
    ([], []), (['a'], []),
    (['M10_bolt']*60 + ['M8_bolt'], []), (['M10_bolt']*60 + ['M10_bold'], ['M10_bold']),
    (['positive']*99 + ['postive', 'positve'], ['positve', 'postive'])])
def test_a_rare_label_that_is_nearly_a_frequent_one(labels, slip):
    found = label_typos(labels)
    assert [p.detail.split("'")[1] for p in found] == slip and all(p.kind == 'typo' for p in found)
    assert label_typos(random.Random(0).sample(labels, len(labels))) == found

def test_typos_are_classes_where_that_is_said(tmp_path):
    p = put(tmp_path, table(*MANY, *((f'new {i}', 'postive') for i in range(3))))
    assert 'typo (1)' in refusal(p) and read_texts(p, check_typos=False).classes == ['negative', 'positive', 'postive']


# ---- unlabelled, few, renamed
# -----------------------------------------------------------------------------------------

def test_unlabelled_texts_are_used_once_and_never_those_of_a_labelled_one(tmp_path):
    loose = [(f'loose {i}', '') for i in range(9)]
    d = read_texts(put(tmp_path, table(*PLAIN, *loose, *((t.upper(), '') for t,_ in PLAIN), ('LOOSE  1', ' '))))
    assert sorted(t.lower().replace('  ', ' ') for t in d.unlabelled) == [t for t,_ in loose] and len(d.items) == 16
    assert d.as_json()['n_unlabelled'] == 9 and not d.problems

@pytest.mark.parametrize('seed', range(3))
def test_unlabelled_texts_of_a_group_that_is_tested_are_left_out(seed, tmp_path):
    rows = [(f'{c} {g} {i}', c, f'g{g}') for g in range(9) for c in ('good', 'poor') for i in range(2)]
    rows += [(f'loose {g}', '', f'g{g}') for g in range(11)] + [('free', '', '')]
    d = read_texts(put(tmp_path, table(*rows, head='text label who')), group='who', seed=seed)
    train = set(d.items.group[d.items.split == 'train'])
    assert set(d.unlabelled) == {'free', 'loose 9', 'loose 10', *(f'loose {g[1:]}'
            for g in train)} and 0 < len(train) < 9

def test_an_unlabelled_copy_of_a_text_of_such_a_group_is_left_out_too(tmp_path):
    rows = [(f'{c} {g} {i}', c, f'g{g}') for g in range(9) for c in ('good', 'poor') for i in range(2)]
    rows += [(f'loose {g}', '', f'g{g}') for g in range(9)] + [(f'LOOSE {g}', '', '') for g in range(9)]
    d = read_texts(put(tmp_path, table(*rows, head='text label who')), group='who')
    assert {t.lower() for t in d.unlabelled} == {f'loose {g[1:]}' for g in d.items.group[d.items.split == 'train']}

def test_unlabelled_rows_need_no_split(tmp_path):
    d = read_texts(put(tmp_path, table(*GIVEN, ('loose', '', ''), head=THREE)))
    assert d.unlabelled == ['loose'] and d.split_source == 'given' and not d.made

@pytest.fixture(scope='module')
def many(tmp_path_factory): return read_texts(put(tmp_path_factory.mktemp('many'), table(*MANY, ('loose', ''))))

@pytest.mark.parametrize('n', [2, 5, 36])
def test_draw_labels_keeps_so_many_of_each_class(n, many):
    few = draw_labels(many, n, keep_valid=True)
    assert few.counts() == {**many.counts(),
                            'train': {c: n
                                      for c in many.classes}} and few.made == many.made and few.classes == many.classes
    assert all(few.texts(s) == many.texts(s) and (few.labels(s) == many.labels(s)).all() for s in ('valid', 'test'))
    assert sorted([*few.texts('train'), *few.unlabelled]) == sorted([*many.texts('train'), 'loose'])
    assert dict(zip(few.items.text, few.items.label)).items() <= dict(MANY).items()
    assert len(many.items) == 120 and many.unlabelled == ['loose']

def test_draw_labels_is_decided_by_its_seed(many):
    a, b, c = (draw_labels(many, 5, s, True) for s in (0, 0, 1))
    same(a, b)
    assert a.texts('train') != c.texts('train') and len({a.fingerprint, c.fingerprint, many.fingerprint}) == 3

def test_every_label_has_the_same_chance(many):
    n, k, of = 400, 9, 36
    kept = Counter(t for s in range(n) for t in draw_labels(many, k, s).texts('train'))
    assert len(kept) == 2*of and max(abs(v/n - k/of) for v in kept.values()) < 4.5*(k/of*(1 - k/of)/n)**.5

@pytest.mark.parametrize('n, parts', [
    (37, ["`labels` is 37 of each class", "'negative' has 36; 'positive' has 36", 'Accepted: up to 36']),
    (1, ['`labels` is 1; accepted: a whole number from 2']), (2.5, ['`labels` is 2.5']), (True, ['`labels` is True'])])
def test_draw_labels_says_what_there_is(n, parts, many):
    with pytest.raises(InputError) as e: draw_labels(many, n)
    for part in parts: assert part in str(e.value)

@pytest.mark.parametrize('names', [{'good': 'fine', 'poor': 'bad'}, {'good': 'poor', 'poor': 'good'}, {'good': '好'}])
def test_names_change_names_only(names, tmp_path):
    a, b = (read_texts(put(tmp_path, table(*PLAIN)), names=n) for n in (None, names))
    assert [names.get(l, l) for l in a.items.label] == b.items.label.tolist() and a.items.text.equals(b.items.text)
    assert b.classes == sorted(names.get(c, c) for c in a.classes) and a.fingerprint != b.fingerprint
    same(b, read_texts(put(tmp_path, table(*((t, names.get(c, c)) for t,c in PLAIN)))))

def test_names_may_join_classes_and_mend_their_spelling(tmp_path):
    rows = [*PLAIN, *((f'new {i}', 'Good') for i in range(3)), *((f'odd {i}', 'dreadful') for i in range(3))]
    d = read_texts(put(tmp_path, table(*rows)), names={'Good': 'good', 'dreadful': 'poor'})
    assert d.items.label.value_counts().to_dict() == {'good': 11, 'poor': 11}

def test_max_items(tmp_path):
    p, mixed = put(tmp_path, table(*MANY)), put(tmp_path, table(*random.Random(0).sample(MANY, 120)), 'mixed.csv')
    d = read_texts(p, max_items=50)
    assert len(d.items) == 50 and set(zip(d.items.text, d.items.label)) <= set(MANY)
    same(d, read_texts(mixed, max_items=50))
    same(read_texts(p), read_texts(p, max_items=500))
    assert d.fingerprint != read_texts(p, max_items=50, seed=1).fingerprint

@pytest.mark.parametrize('seed', range(4))
def test_max_items_makes_no_split_that_was_given(seed, tmp_path):
    held = [(f'{c} {s} {i}', c, s) for s in ('valid', 'test') for c in ('negative', 'positive') for i in range(2)]
    d = read_texts(put(tmp_path, table(*((t, c, 'train') for t,c in MANY), *held, head=THREE)), max_items=30, seed=seed)
    # else training texts become the test
    assert d.made == [] and {t.split()[1] for t in d.texts('valid') + d.texts('test')} == {'valid', 'test'}

@pytest.mark.parametrize('seed', range(4))
def test_max_items_loses_no_class_without_a_word(seed, tmp_path):
    p = put(tmp_path, table(*MANY, *((f'odd {i}', 'odd') for i in range(3))))
    try: assert read_texts(p, max_items=12, seed=seed).classes == ['negative', 'odd', 'positive']
    except InputError as e: assert "'odd'" in str(e)


# ---- real data
# --------------------------------------------------------------------------------------------------------

def sheet(p): return pd.read_csv(p, dtype=str, keep_default_na=False)
def folded(texts): return texts.map(lambda t: ' '.join(unicodedata.normalize('NFKC', t).casefold().split()))

def test_sst2_has_the_splits_of_its_files():
    root = need('reviews_sst2')
    theirs = pd.concat(sheet(root/f'stsa_binary_{n}.csv').assign(split=s) for n,
                       s in (('train', 'train'), ('dev', 'valid'), ('test', 'test')))
    assert len(theirs) == 6920 + 872 + 1821 # as PROVENANCE.txt says
    d = read_texts(root, on_bad='skip', names={'0': 'negative', '1': 'positive'})
    key = folded(theirs.text)
    clean = (theirs.groupby(key).label.transform('nunique') == 1)
    order = theirs.split.map(dict(train=0, valid=1, test=2))
    clean &= order == order.where(clean, -1).groupby(key).transform('max')
    want = Counter(zip(theirs.text[clean].str.strip(), theirs.label[clean].map({'0': 'negative', '1': 'positive'}),
                       theirs.split[clean]))
    assert Counter(zip(d.items.text, d.items.label, d.items.split)) == want
    assert len(d.problems) == (~clean).sum() and d.split_source == 'given' and d.made == [] and not d.unlabelled
    assert f'leak ({len(d.problems)})' in refusal(root)

def test_human_vs_machine_divides_no_prompt():
    p = need('human_vs_machine')/'human_vs_llm.csv'
    d = read_texts(p, group='prompt_id', on_bad='skip')
    theirs = sheet(p)
    assert (d.items.groupby('group').split.nunique() == 1).all() and set(d.items.group) <= set(theirs.prompt_id)
    assert len(theirs) == 9345 == len(d.items) + len(d.problems) and d.classes == ['human', 'machine']
    assert all(abs((d.items.split == s).mean() - .2) < .02 for s in ('valid', 'test'))
    where = dict(zip(d.items.text, d.items.group))
    assert all(where[t] == g for t,g in zip(theirs.text.str.strip(), theirs.prompt_id) if t in where
               and t.count(' ') > 20)

@pytest.fixture(scope='module')
def spam(): return need('mail_spamassassin')/'spamassassin.csv'

def test_spamassassin_has_twenty_empty_bodies_and_can_be_read_without(spam):
    theirs, text = sheet(spam), refusal(spam)
    empty = theirs.text.str.strip() == ''
    # as PROVENANCE.txt says; no subject and text under both labels
    assert empty.sum() == 20 and 'empty text (20)' in text and 'two labels' not in text
    d = read_texts(spam, on_bad='skip')
    assert len(d.items) == 6046 - 20 and {p.path.split(':')[0]
                                          for p in d.problems} == {'spamassassin.csv'} and len(d.problems) == 20
    assert d.items.label.value_counts(
            ).to_dict() == theirs.label[~empty].value_counts().to_dict() and d.split_source == 'made'
    assert (d.items.groupby(folded(d.items.text)).split.nunique() == 1).all()
    want = 'Subject: ' + theirs.subject.str.split().str.join(' ') + '\n\n' + theirs.text.str.strip()
    assert set(want[~empty & (theirs.subject.str.strip() != '')]) <= set(d.items.text)

def test_spamassassin_without_subjects_says_all_at_once(spam, tmp_path):
    theirs = sheet(spam)[['text', 'label']]
    empty, key = theirs.text.str.strip() == '', folded(theirs.text)
    two = ~empty & (theirs.groupby(key).label.transform('nunique') > 1)
    part = theirs[empty | two | (theirs.index%20 == 0)]
    part.to_csv(tmp_path/'d.csv', index=False)
    text = refusal(tmp_path/'d.csv')
    assert two.sum() and all(s in text for s in ('empty text (20)', f'two labels ({two.sum():,})',
                                                 f'leave out the {20 + two.sum():,} that can be left out'))
    d = read_texts(tmp_path/'d.csv', on_bad='skip')
    assert len(d.items) == len(part) - 20 - two.sum() and (d.items.groupby(folded(d.items.text))[['split',
            'label']].nunique() == 1).all(axis=None)
