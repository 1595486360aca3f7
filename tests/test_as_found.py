"Data as people have it: what their tools write is read as it is meant, or refused with a word that helps."
import codecs
import csv
import io
import json
import mailbox
import os
import unicodedata
from email.message import EmailMessage

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

import conftest
from tl_notebooks.core import InputError
from tl_notebooks.data.decode import open_image
from tl_notebooks.data.images import read_images
from tl_notebooks.data.listing import list_inputs
from tl_notebooks.data.splits import compare_files, list_items, list_sources
from tl_notebooks.data.tables import read_csv
from tl_notebooks.data.texts import Unread, list_texts, read_texts
from tl_notebooks.runs.params import Param, check_params
from tl_notebooks.runs.sweep import parse_values


# ---- what is read, written by other programs
# ------------------------------------------------------------------------

def solid(n, form='PNG'):
    f = io.BytesIO()
    Image.new('RGB', (16, 16), (n % 256, n//256 % 256, 90)).save(f, form)
    return f.getvalue()

def picture(seed, size=64):
    "An image with content: coarse blocks and noise"
    r = np.random.default_rng(seed)
    low = np.kron(r.integers(0, 200, (8, 8, 3)), np.ones((size//8, size//8, 1)))
    return Image.fromarray(np.clip(low + r.integers(0, 50, (size, size, 3)), 0, 255).astype('uint8'))

def tree(root, spec): return conftest.tree(root, spec, solid)
GOOD = {f'{c}/{i}.png': 100*k + i for k,c in enumerate(('bolt', 'nut')) for i in range(6)}

def pairs(data): return dict(zip(data.items.path, data.items.label))
WANT = {p: p.split('/')[0] for p in GOOD}

def rows(*more, head='path,label', make=lambda p: f'{p},{p.split("/")[0]}'):
    return '\n'.join([head, *map(make, GOOD), *more]) + '\n'

def images(root, *given, **kw): return read_images(root, *given, progress=False, **kw)

def refusal(read, *args, **kw):
    with pytest.raises(InputError) as e: read(*args, **kw)
    return str(e.value)


# ---- images: tables
# ----------------------------------------------------------------------------------------------------

FORMS = { # name: (file, content, parameters)
    'comma': ('d.csv', rows(), {}),
    'byte order mark': ('d.csv', codecs.BOM_UTF8 + rows().encode(), {}),
    'semicolon': ('d.csv', rows().replace(',', ';'), {}),
    'tab in a .csv': ('d.csv', rows().replace(',', '\t'), {}),
    'tsv': ('d.tsv', rows().replace(',', '\t'), {}),
    'bar': ('d.csv', rows().replace(',', '|'), {}),
    'utf-16': ('d.csv', rows().encode('utf-16'), {}),
    'utf-16 big-endian': ('d.csv', codecs.BOM_UTF16_BE + rows().encode('utf-16-be'), {}),
    'utf-16 without a mark': ('d.csv', rows().encode('utf-16-le'), {}),
    'latin-1': ('d.csv', rows(head='path,label,note', make=lambda p: f'{p},{p.split("/")[0]},Größe').encode('latin-1'),
                {}),
    "Excel's own first line": ('d.csv', 'sep=;\r\n' + rows().replace(',', ';').replace('\n', '\r\n'), {}),
    'lines of an old Mac': ('d.csv', rows().replace('\n', '\r').encode(), {}),
    'commas at the end': ('d.csv', rows().replace('\n', ',,,\n'), {}),
    'an index of pandas': ('d.csv', rows(head=',path,label', make=lambda p: f'7,{p},{p.split("/")[0]}'), {}),
    'backslashes': ('d.csv', rows().replace('/', '\\'), {}),
    'capitals in the header': ('d.csv', rows(head='Path,Label'), {}),
    'json lines': ('d.jsonl', '\n'.join(json.dumps(dict(path=p, label=l)) for p,l in WANT.items()), {}),
    'other names': ('d.csv', rows(head='img,kind'), dict(path_column='img', label='kind')),
    'Hugging Face csv': ('metadata.csv', rows(head='file_name,label'), {}),
    'Hugging Face json lines': ('metadata.jsonl', '\n'.join(json.dumps(dict(file_name=p, label=l))
                                                            for p,l in WANT.items()), {}),
    'ids': ('d.csv', rows().replace('.png', ''), {}),
    'ids and their suffix': ('d.csv', rows().replace('.png', ''), dict(suffix='.png')),
    'a suffix without its dot': ('d.csv', rows().replace('.png', ''), dict(suffix='png')),
    'capitals in names': ('d.csv', rows().replace('.png', '.PNG'), {}),
    'another machine': ('d.csv', rows(make=lambda p: f'/home/anna/project/{p},{p.split("/")[0]}'), {}),
    'another Windows': ('d.csv', rows(make=lambda p: 'C:\\data\\' + p.replace('/', '\\') + f',{p.split("/")[0]}'), {}),
    'lists of one': ('d.csv', rows(make=lambda p: f'{p},"[\'{p.split("/")[0]}\']"'), {}),
}

@pytest.mark.parametrize('name', FORMS)
def test_a_table_of_images(name, tmp_path):
    file, content, kw = FORMS[name]
    data = images(tree(tmp_path, {**GOOD, file: content})/file, **kw)
    assert pairs(data) == WANT and data.split_source == 'made'

@pytest.mark.parametrize('name', ['metadata.csv', 'metadata.jsonl'])
def test_hugging_face_folders(name, tmp_path):
    "imagefolder: the table lies in the folder, or in that of each split"
    table = FORMS['Hugging Face csv' if name.endswith('csv') else 'Hugging Face json lines'][1]
    data = images(tree(tmp_path/'one', {**GOOD, name: table}))
    assert pairs(data) == WANT
    flat = {p.replace('/', '_'): l for p,l in WANT.items()}
    def part(names, start):
        made = {n: start + 500 + k for k,n in enumerate(names)}
        text = 'file_name,label\n' + ''.join(f'{n},{flat[n]}\n' for n in names)
        return made | {name: text if name.endswith('csv') else '\n'.join(
            json.dumps(dict(file_name=n, label=flat[n])) for n in names)}
    spec = {f'{s}/{k}': v for s,start in (('train', 0), ('test', 1000)) for k,v in part([*flat], start).items()}
    data = images(tree(tmp_path/'two', spec))
    assert data.counts()['test'] == {'bolt': 6, 'nut': 6} and data.made == ['valid']

def in_splits(*splits):
    "`GOOD` in each of these folders, with other contents: files, and a table of them"
    made = {f'{s}/{p.replace("/", "_")}': 1000*k + n for k,s in enumerate(splits) for p,n in GOOD.items()}
    return made, ''.join(f'{p},{p.split("/")[-1].split("_")[0]}\n' for p in made)

@pytest.mark.parametrize('name, splits', [('metadata.csv', ('train', 'test')), ('d.csv', ('img/Train', 'img/val')),
                                          ('metadata.csv', ('a/train', 'b/validation', 'a/test'))])
def test_folders_of_splits_in_the_paths_of_a_table(name, splits, tmp_path):
    made, table = in_splits(*splits)
    tree(tmp_path, {**made, name: 'file_name,label\n' + table, splits[0] + '/more.png': 7777})
    data = images(tmp_path)
    given = {'val': 'valid', 'test': 'test'}
    last = data.items[data.items.path.str.startswith(splits[-1])]
    assert {*last.split} == {given[splits[-1].split('/')[-1]]} and len(last) == 12
    assert any('splits are those of the folders' in n and '`-p split=none`' in n for n in data.notes)
    assert any(f'images that the table does not list, left out: 1, such as {splits[0]}/more' in n for n in data.notes)
    assert not any('of the folders' in n for n in images(tmp_path, split='none').notes)

def test_folders_that_are_no_splits_for_all_paths_are_said(tmp_path):
    made, table = in_splits('train', 'test', 'extra')
    data = images(tree(tmp_path, {**made, 'metadata.csv': 'file_name,label\n' + table}))
    assert data.made == ['valid', 'test'] and any("as 'extra' stand beside" in n for n in data.notes)

@pytest.mark.parametrize('prefix', ['dataset/', 'dataset/images/', 'https://example.org/a%20b/', '/home/x/', 'C:\\x\\',
                                    './data/', 's3://bucket/'])
def test_paths_from_where_the_table_was_made(prefix, tmp_path):
    "By their last parts, if those name one file"
    flat = {p.replace('/', '_'): n for p,n in GOOD.items()}
    tree(tmp_path, {f'images/{p}': n for p,n in flat.items()})
    (tmp_path/'d.csv').write_text('path,label\n' + ''.join(f'{prefix}{p},{p.split("_")[0]}\n' for p in flat))
    data = images(tmp_path/'d.csv')
    assert len(data.items) == 12 and data.items.path.str.startswith('images/').all()
    assert any('found by their last parts' in n for n in data.notes)

def test_a_path_in_a_folder_that_is_there_is_not_sought_elsewhere(tmp_path):
    tree(tmp_path, {**GOOD, 'bolt/99.png': 99, 'test/77.png': 77, 'd.csv': rows('nut/99.png,nut', 'train/77.png,nut')})
    text = refusal(images, tmp_path/'d.csv')
    assert 'nut/99.png: no such file' in text and 'train/77.png: no such file' in text

def test_a_class_is_one_however_its_accents_are_written(tmp_path):
    nfd, nfc = (unicodedata.normalize(f, 'Grün') for f in ('NFD', 'NFC'))
    tree(tmp_path/'d', {f'{s}/{c}/{i}.png': 100*k + 10*j + i for k,s in enumerate(('train', 'valid'))
                        for j,c in enumerate((nfd if k else nfc, 'rot')) for i in range(6)})
    assert images(tmp_path/'d').classes == [nfc, 'rot']
    tree(tmp_path/'t', {**GOOD, 'd.csv': 'path,label\n' + ''.join(
        f'{p},{p[:1] if p[0] == "b" else (nfc, nfd)[i % 2]}\n' for i,p in enumerate(GOOD))})
    assert images(tmp_path/'t'/'d.csv').classes == [nfc, 'b'] or images(tmp_path/'t'/'d.csv').classes == ['b', nfc]

def test_a_folder_beside_the_table(tmp_path):
    "Kaggle: train.csv with ids, and a folder train"
    spec = {f'train/{p.replace("/", "_")}': n for p,n in GOOD.items()}
    table = 'id,breed\n' + ''.join(f'{p.replace("/", "_").removesuffix(".png")},{l}\n' for p,l in WANT.items())
    root = tree(tmp_path, {**spec, 'train.csv': table})
    text = refusal(images, root/'train.csv')
    assert '`-p path=id -p label=breed` of `tl run`' in text and '--path-column id --label-column breed' in text
    text = refusal(images, root/'train.csv', path_column='id', label='breed')
    assert '`-p folder=train -p suffix=.png` of `tl run`' in text and '`--folder train --suffix .png`' in text
    data = images(root/'train.csv', path_column='id', label='breed', folder='train', suffix='.png')
    assert len(data.items) == 12 and data.items.path.str.startswith('train/').all()
    assert "is no folder in" in refusal(images, root/'train.csv', path_column='id', label='breed', folder='trian')

def test_absolute_paths_lead_into_the_data_or_nowhere(tmp_path):
    tree(tmp_path/'d', GOOD)
    (tmp_path/'d'/'d.csv').write_text(rows(make=lambda p: f'{tmp_path}/d/{p},{p.split("/")[0]}'))
    assert pairs(images(tmp_path/'d'/'d.csv')) == WANT
    tree(tmp_path/'other', {'bolt/0.png': 999}) # a file that is there is meant, not one of its name
    (tmp_path/'d'/'d.csv').write_text(rows(f'{tmp_path}/other/bolt/0.png,bolt'))
    assert f'{tmp_path}/other/bolt/0.png: an absolute path' in refusal(images, tmp_path/'d'/'d.csv')

def test_a_base_name_that_two_files_have_is_not_guessed(tmp_path):
    tree(tmp_path, {**GOOD, 'd.csv': rows('/home/anna/0.png,bolt')})
    assert '/home/anna/0.png: an absolute path' in refusal(images, tmp_path/'d.csv')

def test_names_that_a_mac_took_apart(tmp_path):
    nfd, nfc = (unicodedata.normalize(f, 'mütter') for f in ('NFD', 'NFC'))
    tree(tmp_path, {k.replace('nut', nfd): v for k,v in GOOD.items()})
    (tmp_path/'d.csv').write_text('path,label\n' + ''.join(f'{p.replace("nut", nfc)},{l}\n' for p,l in WANT.items()))
    data = images(tmp_path/'d.csv')
    assert len(data.items) == 12 and any('another spelling' in n for n in data.notes)

def test_a_table_of_texts_is_no_table_of_images(tmp_path):
    (tmp_path/'d.csv').write_text('text,label\nso good,a\nso bad,b\n')
    assert 'This looks like a table of texts' in refusal(images, tmp_path/'d.csv')


# ---- splits that other tools name
# --------------------------------------------------------------------------------------

SPLIT_COLUMNS = { # header: (value for train, valid, test); None: no such rows
    'is_valid': ('False', 'True', None), 'is_valid ': ('0', '1', None), 'IsValid': ('no', 'YES', None),
    'is_test': ('false', None, 'true'), 'validation': ('0', '1', None), 'is_train': ('1', None, '0'),
    'set': ('TRAIN', 'Val', 'Test'), 'subset': ('training', 'validation', 'testing'),
    'partition': ('train', 'dev', 'test'), 'fold': ('train', 'valid', 'test'), 'Fold': ('Train', None, 'Test'),
    'Usage': ('Training', 'PublicTest', 'PrivateTest'), 'usage': ('train', 'Public', 'Private'),
    'partition ': ('0', '1', '2'), 'set ': ('tr', 'va', 'te'), 'Data Split': ('Train set', None, 'Test set'),
    'is_holdout': ('False', None, 'True'), 'phase': ('Training data', 'val_split', None),
    'data_split': ('train', 'val', None), 'Split': ('Train', 'Val', 'Test'), 'which': ('train', 'val', 'test'),
}

@pytest.mark.parametrize('column', SPLIT_COLUMNS)
@pytest.mark.parametrize('of', ['images', 'texts'])
def test_a_split_column(of, column, tmp_path):
    "Rows keep the split that the table gives them, whatever the column is called, and that is said"
    says = SPLIT_COLUMNS[column]
    want = {p: ('train', 'valid', 'test')[i % 3 if says[i % 3] else 0] for i,p in enumerate(sorted(GOOD))}
    word = {s: w for s,w in zip(('train', 'valid', 'test'), says)}
    lines = [f'{p if of == "images" else "words of " + p},{WANT[p]},{word[s]}' for p,s in want.items()]
    name = 'path' if of == 'images' else 'text'
    (tree(tmp_path, GOOD)/'d.csv').write_text('\n'.join([f'{name},label,{column}', *lines]) + '\n')
    data = images(tmp_path/'d.csv') if of == 'images' else read_texts(tmp_path/'d.csv')
    key = data.items.path if of == 'images' else data.items.text.str.removeprefix('words of ')
    got = dict(zip(key, data.items.split))
    assert data.split_source == 'given'
    assert all(got[p] == s for p,s in want.items() if s != 'train') # what is made comes out of train only
    if column != 'Split': assert any('splits are those of column' in n for n in data.notes)

@pytest.mark.parametrize('values', ['0 1 2 3 4', 'red white blue', 'en de fr'])
@pytest.mark.parametrize('column', ['fold', 'set', 'subset'])
def test_what_is_called_a_split_and_is_none_is_to_be_left_out(column, values, tmp_path):
    values = values.split()
    lines = [f'{p},{WANT[p]},{values[i % len(values)]}' for i,p in enumerate(GOOD)]
    (tree(tmp_path, GOOD)/'d.csv').write_text('\n'.join([f'path,label,{column}', *lines]) + '\n')
    text = refusal(images, tmp_path/'d.csv')
    assert f"column '{column}'" in text and f"'{values[1]}'" in text and '`-p split=none` leaves it out' in text
    data = images(tmp_path/'d.csv', split='none')
    assert data.split_source == 'made' and f"columns not used: '{column}'" in data.notes

def test_a_column_of_many_values_is_no_split(tmp_path):
    (tree(tmp_path, GOOD)/'d.csv').write_text('path,label,set\n' + ''.join(
        f'{p},{WANT[p]},S{i}\n' for i,p in enumerate(GOOD)))
    assert "columns not used: 'set'" in images(tmp_path/'d.csv').notes

def test_a_column_called_valid_is_asked_about(tmp_path):
    "Rows to validate on, or rows that are good"
    (tree(tmp_path, GOOD)/'d.csv').write_text('path,label,valid\n' + ''.join(
        f'{p},{WANT[p]},{int(i % 3 == 0)}\n' for i,p in enumerate(GOOD)))
    assert '`-p split=valid`' in (text := refusal(images, tmp_path/'d.csv')) and '`-p split=none`' in text
    assert images(tmp_path/'d.csv', split='none').split_source == 'made'
    got = images(tmp_path/'d.csv', split='valid').items
    assert {*got.path[got.split == 'valid']} == {p for i,p in enumerate(GOOD) if i % 3 == 0}

def test_splits_can_be_named_and_left_out(tmp_path):
    lines = [f'{p},{WANT[p]},{("train", "test")[i % 2]},{("train", "val")[i % 2]}' for i,p in enumerate(GOOD)]
    (tree(tmp_path, GOOD)/'d.csv').write_text('\n'.join(['path,label,a,b', *lines]) + '\n')
    assert images(tmp_path/'d.csv', split='b').made == ['test']
    assert images(tmp_path/'d.csv', split='none').split_source == 'made'
    assert "no column 'c' for `split`" in refusal(images, tmp_path/'d.csv', split='c')
    lines = [f'{p},{WANT[p]},holdout' if i else f'{p},{WANT[p]},train' for i,p in enumerate(GOOD)]
    (tmp_path/'d.csv').write_text('\n'.join(['path,label,subset', *lines]) + '\n')
    assert "have the split 'holdout'" in refusal(images, tmp_path/'d.csv')

def test_a_flag_that_is_not_always_one_is_refused(tmp_path):
    "Else validation rows would be trained on"
    says = ['True', 'False', 'False']*4
    (tree(tmp_path, GOOD)/'d.csv').write_text('path,label,is_valid\n' + ''.join(
        f'{p},{WANT[p]},{"maybe" if i == 5 else says[i]}\n' for i,p in enumerate(GOOD)))
    assert "1 rows have the split 'maybe'" in refusal(images, tmp_path/'d.csv')
    (tmp_path/'d.csv').write_text('path,label,Usage\n' + ''.join(
        f'{p},{WANT[p]},{("Public", "Private")[i % 2]}\n' for i,p in enumerate(GOOD)))
    assert "no row has the split 'train' by 'Usage'; `-p split=none`" in refusal(images, tmp_path/'d.csv')

def test_a_column_for_each_label_and_a_table_without_a_header_are_named(tmp_path):
    (tree(tmp_path, GOOD)/'d.csv').write_text('path,bolt,nut\n' + ''.join(
        f'{p},{int(l == "bolt")},{int(l == "nut")}\n' for p,l in WANT.items()))
    assert "'bolt', 'nut' look like a column for each label" in refusal(images, tmp_path/'d.csv')
    (tmp_path/'d.csv').write_text(rows().split('\n', 1)[1])
    assert 'The first line looks like a row' in refusal(images, tmp_path/'d.csv')

def test_folders_called_training_and_testing(tmp_path):
    spec = {f'{s}/{p}': n + 1000*k for k,s in enumerate(('Training', 'Testing')) for p,n in GOOD.items()}
    data = images(tree(tmp_path, spec))
    assert data.counts()['test'] == {'bolt': 6, 'nut': 6} and data.made == ['valid']


# ---- several labels
# ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('sep', [';', '|', ' ', ', ', '/'])
def test_several_labels_in_one_are_refused(sep, tmp_path):
    labels = ['road', 'clear', f'road{sep}clear']
    tree(tmp_path, GOOD)
    with open(tmp_path/'d.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('path', 'label'), *((p, labels[i % 3]) for i,p in enumerate(GOOD))])
    text = refusal(images, tmp_path/'d.csv')
    assert 'several labels (4)' in text and 'One label an item is what is supported' in text
    assert len(images(tmp_path/'d.csv', on_bad='skip').items) == 8

def in_turn(labels): return 'path,label\n' + ''.join(f'{p},{labels[i % 3]}\n' for i,p in enumerate(GOOD))

def test_several_labels_where_none_stands_alone(tmp_path):
    labels = ['road;clear', 'clear;rain', 'road']
    (tree(tmp_path, GOOD)/'d.csv').write_text(in_turn(labels))
    assert 'several labels (8)' in refusal(images, tmp_path/'d.csv')

def test_a_comma_between_labels_of_which_one_stands_alone(tmp_path):
    rows = [('path', 'label'), *((p, ('road', 'road,clear')[i % 2]) for i,p in enumerate(GOOD))]
    with open(tree(tmp_path, GOOD)/'d.csv', 'w', newline='') as f: csv.writer(f).writerows(rows)
    assert 'several labels (6)' in refusal(images, tmp_path/'d.csv')

def label_table(root, labels, head='label'):
    with open(root/'d.csv', 'w', newline='') as f:
        csv.writer(f).writerows([('text', head), *((f'sailing {i}', labels[i % len(labels)]) for i in range(24))])
    return root/'d.csv'

@pytest.mark.parametrize('sep', [',', ', ', '+', ' & '])
def test_labels_that_recombine_are_several(sep, tmp_path):
    labels = [f'praise{sep}urgent', f'question{sep}urgent', f'praise{sep}calm', f'question{sep}calm']
    assert 'several labels (24)' in refusal(read_texts, label_table(tmp_path, labels))

@pytest.mark.parametrize('labels', ['road+clear,road', 'road & clear,road', 'road+clear,road,rain'])
def test_a_sum_beside_a_plain_label_is_several(labels, tmp_path):
    assert "is 'clear', 'road'" in refusal(read_texts, label_table(tmp_path, labels.split(',')))

def test_tags_in_a_row_are_several(tmp_path):
    "Kaggle's Planet"
    tags = ['haze primary', 'agriculture clear primary water', 'clear primary', 'clear primary water',
            'agriculture clear primary', 'haze primary water', 'cloudy', 'haze agriculture primary']
    assert 'several labels' in refusal(read_texts, label_table(tmp_path, tags, 'tags'), label='tags')
    assert 'several labels' in refusal(read_texts, label_table(tmp_path, tags))

@pytest.mark.parametrize('labels', [
    ['Paris, France', 'Lyon, France', 'Bonn, Germany'], ['C', 'C++'], ['A', 'A+', 'B'], ['R&D', 'sales'],
    ['large nut', 'small nut', 'large bolt', 'small bolt'], ['red wine', 'white wine', 'sweet red wine'],
    ['tench, Tinca tinca', 'goldfish, Carassius auratus'], ['1,0', '1,5', '2,0', '2,5'], ['R&B', 'R&D']])
def test_names_of_more_than_one_word_are_names(labels, tmp_path):
    assert {*read_texts(label_table(tmp_path, labels)).classes} == {*labels}

ONE = ['["blue"]', "['blue']", '[["blue"]]', '{"name": "blue"}', '[{"label": "blue"}]', '{"choices": ["blue"]}',
       '["blue", null]', '[blue]', '{blue}', '{"red": false, "blue": true}', '{"label": "blue", "score": 0.9}',
       '{"id": 3, "name": "blue"}', "{'label': 'blue'}", '{name: blue}', "('blue',)"]
SEVERAL = ['["blue", "red"]', "['blue' 'red']", '[blue, red]', '{"red": true, "blue": true}', '[["blue"], ["red"]]',
           '{"choices": ["blue", "red"]}', '[{"label": "blue"}, {"label": "red"}]', '{"blue": 1, "red": 1}', '[1 0 1]',
           '{blue,red}', '[[0, 4, "blue"]]', '{"blue": 0.3, "red": 0.7}', "['blue'\n 'red']"]

@pytest.mark.parametrize('label', ONE)
@pytest.mark.parametrize('write', ['as text', 'as an object'])
def test_one_label_in_brackets_is_that_label(write, label, tmp_path):
    if write == 'as text': return one_label(label_table(tmp_path, ['green', label]))
    try: label = json.loads(label)
    except ValueError: return
    (tmp_path/'d.jsonl').write_text('\n'.join(
        json.dumps(dict(text=f'sailing {i}', label=label if i % 2 else 'green')) for i in range(24)))
    one_label(tmp_path/'d.jsonl')

def one_label(table): assert read_texts(table).classes == ['blue', 'green']

@pytest.mark.parametrize('label', SEVERAL)
def test_several_labels_in_brackets_are_refused(label, tmp_path):
    text = refusal(read_texts, label_table(tmp_path, ['green', label]))
    assert 'several labels (12)' in text and 'One label an item is what is supported' in text

def test_names_in_round_brackets_are_names(tmp_path):
    assert read_texts(label_table(tmp_path, ['(nut)', 'bolt (M8)'])).classes == ['(nut)', 'bolt (M8)']

def test_names_with_blanks_are_names(tmp_path):
    labels = ['large nut', 'small nut', 'M8/M10']
    (tree(tmp_path, GOOD)/'d.csv').write_text(in_turn(labels))
    assert images(tmp_path/'d.csv').classes == ['large nut', 'M8/M10', 'small nut']

@pytest.mark.parametrize('write', ['json lines', 'csv'])
def test_lists_of_labels(write, tmp_path):
    made = [dict(text=f'sailing {i}', labels=[['praise'], ['question']][i % 2]) for i in range(12)]
    def put(rows):
        if write == 'csv':
            f = io.StringIO(); w = csv.DictWriter(f, ['text', 'labels']); w.writeheader(); w.writerows(rows)
            (tmp_path/'d.csv').write_text(f.getvalue()); return tmp_path/'d.csv'
        (tmp_path/'d.jsonl').write_text('\n'.join(map(json.dumps, rows))); return tmp_path/'d.jsonl'
    assert read_texts(put(made)).classes == ['praise', 'question']
    text = refusal(read_texts, put([*made, dict(text='both', labels=['praise', 'question'])]))
    assert 'several labels (1)' in text and "'praise', 'question'" in text
    data = read_texts(put([*made, dict(text='neither', labels=[])]))
    assert data.unlabelled == ['neither']


# ---- copies, litter and links
# ------------------------------------------------------------------------------------------

def test_copies_by_tools_are_left_out(tmp_path):
    "Thumbnails of a Synology, of a gallery, of a shop; what a Mac and Windows put beside files"
    small = {f'{p.split("/")[0]}/@eaDir/{p.split("/")[1]}/SYNOPHOTO_THUMB_M.jpg': 9 for p in GOOD}
    named = {'bolt/0_thumb.png': 500, 'bolt/thumb_1.png': 501, 'nut/2-150x150.png': 502, 'nut/thumbs/3.png': 503,
             'nut/.thumbnails/4.png': 504}
    litter = {'__MACOSX/bolt/._0.png': b'x', '__MACOSX/nut/._0.png': b'x', 'Thumbs.db': b'x', 'nut/.DS_Store': b'x',
              'nut/desktop.ini': 'x', '$RECYCLE.BIN/x.png': b''}
    tree(tmp_path, {**GOOD, **small, **named, **litter})
    for p in named: picture(len(p), 8).save(tmp_path/p)
    data = images(tmp_path)
    assert pairs(data) == WANT and not data.problems
    assert 'thumbnails of other images, left out: 4, such as bolt/0_thumb.png' in data.notes

def test_a_file_that_is_called_a_thumbnail_and_has_no_original_is_an_image(tmp_path):
    data = images(tree(tmp_path, {**GOOD, 'nut/9_thumb.png': 900, 'nut/view-640x480.png': 901}))
    assert len(data.items) == 14

def test_a_file_that_is_called_a_thumbnail_and_is_as_large_is_an_image(tmp_path):
    data = images(tree(tmp_path, {**GOOD, 'nut/0_10x20.png': 900, 'nut/tn_1.png': 901, 'bolt/thumbs/2.png': 902}))
    assert len(data.items) == 15

def test_a_folder_of_thumbnails_beside_the_classes_is_none(tmp_path):
    tree(tmp_path, {**GOOD, 'thumbs/x.png': 1}); (tmp_path/'thumbs'/'x.png').unlink()
    for i in range(5): picture(i, 8).save(tmp_path/'thumbs'/('tn_0.png' if i == 4 else f'{i}.png'))
    data = images(tmp_path)
    assert pairs(data) == WANT and any('thumbnails of other images, left out: 5' in n for n in data.notes)
    for i in range(6): picture(50 + i, 64).save(tmp_path/'thumbs'/f'{i}.png') # larger than those: of thumbs
    assert images(tmp_path).classes == ['bolt', 'nut', 'thumbs']

@pytest.mark.parametrize('seed', range(3))
def test_versions_of_roboflow_stay_in_one_split(seed, tmp_path):
    "Three versions of each source that no look could tell are one"
    for k,c in enumerate(('bolt', 'nut')):
        for i in range(6):
            for v in range(3):
                f = tmp_path/'train'/c/f'img{i:02d}_jpg.rf.{f"{k}{i}{v}"*11}.png'
                f.parent.mkdir(parents=True, exist_ok=True); picture(1000*k + 10*i + v).save(f)
    items = images(tmp_path, seed=seed).items
    source = items.label + items.path.str.extract(r'(img\d+)', expand=False)
    assert (items.split.groupby(source).nunique() == 1).all() and items.split.nunique() == 3

def test_links_are_followed(tmp_path):
    "Files that are links into DVC's cache, and class folders that are links to another disk"
    for k,p in enumerate(GOOD):
        store = tmp_path/'.dvc'/'cache'/f'{k:02x}'; store.mkdir(parents=True); (store/'abc').write_bytes(solid(GOOD[p]))
        (tmp_path/'data'/p).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'data'/p).symlink_to(store/'abc')
    data = images(tmp_path/'data')
    assert pairs(data) == WANT
    (tmp_path/'linked').mkdir()
    for c in ('bolt', 'nut'): (tmp_path/'linked'/c).symlink_to(tmp_path/'data'/c)
    assert images(tmp_path/'linked').fingerprint == data.fingerprint
    (tmp_path/'data'/'d.csv').write_text(rows())
    assert pairs(images(tmp_path/'data'/'d.csv')) == WANT

def test_a_link_that_leads_back_ends(tmp_path):
    tree(tmp_path/'d', GOOD); (tmp_path/'d'/'nut'/'up').symlink_to(tmp_path)
    assert 'nut/up: a link to a folder' in refusal(images, tmp_path/'d')


# ---- images: what is in a file
# -----------------------------------------------------------------------------------------

def deep(path, seed, bits, label, colour=False):
    "An image of 16 bits that uses `bits`; one class is bright on the left, the other on the right"
    a = np.random.default_rng(seed).integers(0, 1 << bits, (32, 32, 3) if colour else (32, 32))
    a[:, 16:] //= 1 if label else 8
    a[:, :16] //= 8 if label else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    if not colour: return Image.fromarray(a.astype('uint16')).save(path)
    import cv2
    cv2.imwrite(str(path), a.astype('uint16')[..., ::-1])

@pytest.mark.parametrize('bits, ext, colour', [(12, 'png', False), (12, 'tif', False), (8, 'png', False),
                                               (10, 'png', True), (12, 'tif', True), (16, 'png', False)])
def test_narrow_images_of_16_bits_are_seen(bits, ext, colour, tmp_path):
    "The range is found over all, said, and the same for each; none is black or a copy of another"
    for k,c in enumerate(('left', 'right')):
        for i in range(5): deep(tmp_path/c/f'{i}.{ext}', 10*k + i, bits, k, colour)
    data = images(tmp_path)
    assert len(data.items) == 10 and data.near['families'] == 0 and data.depth == bits
    assert any(f'16 bits use {bits} of them' in n for n in data.notes) == (bits < 16)
    a = np.asarray(open_image(tmp_path/'left'/f'0.{ext}', depth=data.depth)).astype(int)
    assert a.max() > 230 and a[:, :16].mean() > 3*a[:, 16:].mean()
    if bits < 16:
        # what goes beyond is refused, and so is what a model of 8 bits cannot know
        deep(tmp_path/'x.png', 9, 16, 0)
        assert 'pixels up to' in refusal(open_image, tmp_path/'x.png', depth=bits)
        assert 'what is white is unknown' in refusal(open_image, tmp_path/'left'/f'0.{ext}', depth=None)

def test_a_dark_image_stays_dark_among_others(tmp_path):
    for k,c in enumerate(('left', 'right')):
        for i in range(5): deep(tmp_path/c/f'{i}.png', 10*k + i, 12, k)
    Image.fromarray(np.full((32, 32), 300, 'uint16')).save(tmp_path/'left'/'dark.png')
    data = images(tmp_path)
    assert data.depth == 12 and np.asarray(open_image(tmp_path/'left'/'dark.png', depth=12)).max() == 300 >> 4

def test_a_few_images_that_use_far_more_bits_are_named(tmp_path):
    for k,c in enumerate(('left', 'right')):
        for i in range(5): deep(tmp_path/c/f'{i}.png', 10*k + i, 8, k)
    deep(tmp_path/'left'/'wide.png', 99, 16, 0)
    assert any('most of 11 images of 16 bits use 8 of them (up to 255), but 1 use up to 16, such as left/wide.png' in n
               for n in images(tmp_path).notes)

def test_avif_and_heic(tmp_path):
    tree(tmp_path, GOOD)
    heic = bytes.fromhex('00000018667479706865696300000000') + b'mif1heic' + bytes(2000)
    (tmp_path/'nut'/'IMG_1.HEIC').write_bytes(heic)
    text = refusal(images, tmp_path)
    assert 'nut/IMG_1.HEIC: ' in text and ('pillow-heif' in text or 'damaged' in text)
    os.unlink(tmp_path/'nut'/'IMG_1.HEIC')
    if not features.check('avif'): pytest.skip('this Pillow is built without AVIF')
    picture(1).save(tmp_path/'nut'/'a.avif'); picture(2).save(tmp_path/'nut'/'b.avif')
    os.rename(tmp_path/'nut'/'b.avif', tmp_path/'nut'/'b.jpg') # as browsers save them
    assert len(images(tmp_path).items) == 14

def test_heic_is_read_where_its_package_is(tmp_path):
    heif = pytest.importorskip('pillow_heif', reason='the extra heif is not installed')
    heif.from_pillow(picture(5)).save(tmp_path/'a.HEIC', quality=95)
    im = open_image(tmp_path/'a.HEIC')
    assert im.mode == 'RGB' and np.abs(np.asarray(im).astype(int) - np.asarray(picture(5))).mean() < 20

def test_large_comments_in_a_png_are_no_damage(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text('workflow', 'x'*3_000_000, zip=True); info.add_itxt('prompt', 'y'*2_000_000)
    picture(3).save(tmp_path/'a.png', pnginfo=info)
    assert np.array_equal(np.asarray(open_image(tmp_path/'a.png')), np.asarray(picture(3)))
    data = (tmp_path/'a.png').read_bytes()
    (tmp_path/'cut.png').write_bytes(data[:len(data)*2//3])
    assert 'cannot be read' in refusal(open_image, tmp_path/'cut.png')

@pytest.mark.parametrize('read', [images, read_texts, lambda p: list_inputs([p]), lambda p: list_texts([p])])
@pytest.mark.parametrize('name', ['d.zip', 'd.tar.gz', 'd.7z'])
def test_an_archive_is_to_be_unpacked(name, read, tmp_path):
    (tmp_path/name).write_bytes(b'PK')
    assert 'is an archive; unpack it first' in refusal(read, tmp_path/name)


# ---- texts: tables
# -----------------------------------------------------------------------------------------------------

PLAIN = [(f'{c} sailing, number {i}', c) for c in ('good', 'poor') for i in range(8)]
def plain(*more, **kw):
    f = io.StringIO(); csv.writer(f, **kw).writerows([('text', 'label'), *PLAIN, *more])
    return f.getvalue()
def texts(data): return sorted(zip(data.items.text, data.items.label))

TABLES = {
    'utf-16': ('d.csv', plain().encode('utf-16')), 'utf-16 tsv': ('d.tsv', plain(delimiter='\t').encode('utf-16')),
    'bar': ('d.csv', plain(delimiter='|')), 'semicolon': ('d.csv', plain(delimiter=';')),
    "Kaggle's commas": ('d.csv', plain().replace('\r\n', ',,,\r\n')),
    'json in utf-16': ('d.json', json.dumps([dict(text=t, label=l) for t,l in PLAIN]).encode('utf-16')),
}

@pytest.mark.parametrize('name', TABLES)
def test_a_table_of_texts(name, tmp_path):
    file, content = TABLES[name]
    assert texts(read_texts(tree(tmp_path, {file: content})/file)) == sorted(PLAIN)

def test_latin_1_is_read_and_said(tmp_path):
    more = [(f'{t} café £', l) for t,l in PLAIN]
    f = io.StringIO(); csv.writer(f).writerows([('text', 'label'), *more])
    (tmp_path/'d.csv').write_bytes(f.getvalue().encode('latin-1'))
    data = read_texts(tmp_path/'d.csv')
    assert texts(data) == sorted(more) and 'd.csv is not UTF-8; it was read as Windows-1252' in data.notes[0]

@pytest.mark.parametrize('order', ['text label', 'label text', 'id text label', 'text label id'])
def test_quotes_that_swallow_rows_are_listed(order, tmp_path):
    "60 rows, and a quote that opens in one and closes some rows later: no row is lost without a word"
    made = [dict(id=f'n{i}', text=f'the {("fine", "poor")[i % 2]} room {i} was seen', label=('good', 'bad')[i % 2])
            for i in range(60)]
    made[20]['text'], made[23]['text'] = '"' + made[20]['text'], made[23]['text'] + ' 5"'
    names = order.split()
    (tmp_path/'d.csv').write_text('\n'.join([','.join(names), *(','.join(r[n] for n in names) for r in made)]) + '\n')
    if len(read_csv(tmp_path/'d.csv').rows) == 60: return # a quote inside a field is a letter
    text = refusal(read_texts, tmp_path/'d.csv')
    assert 'bad row (1)' in text and 'opens in line 22' in text and 'line 25' in text
    data = read_texts(tmp_path/'d.csv', on_bad='skip')
    assert len(data.items) == 56 and data.classes == ['bad', 'good'] and not data.items.text.str.contains('\n').any()

IDS = {'numbers': '{}', 'names of files': 'img_{:03d}.png', 'hexadecimal': '{:08x}-ab{:02x}', 'words': None,
       'times': '2024-05-01 10:{:02d}'}

@pytest.mark.parametrize('order', ['id,text', 'text,id'])
@pytest.mark.parametrize('form', IDS)
def test_quotes_that_swallow_rows_to_predict_are_listed(form, order, tmp_path):
    "No column repeats: rows are seen by what is written like an id"
    words = [a + b for a in ('oak', 'elm', 'fir', 'yew', 'ash', 'box', 'bay')
             for b in ('moor', 'hill', 'dale', 'wood', 'ton', 'ham')]
    made = [dict(id=IDS[form].format(i*7919 + 11, i) if form == 'hexadecimal' else IDS[form].format(i) if IDS[form]
                 else words[i], text=f'the room of {words[i]} was seen') for i in range(40)]
    made[4]['text'], made[14]['text'] = '"' + made[4]['text'], made[14]['text'] + '"'
    names = order.split(',')
    (tmp_path/'d.csv').write_text('\n'.join([order, *(','.join(r[n] for n in names) for r in made)]) + '\n')
    got = list_texts([tmp_path/'d.csv'], unread=True)
    bad = [t for _,t in got if isinstance(t, Unread)]
    assert len(got) == 30 and len(bad) == 1 and 'opens in line 6' in bad[0] and 'line 16' in bad[0]

def test_swallowed_rows_are_seen_where_a_time_repeats_once(tmp_path):
    made = [f'2024-05-{i % 28 + 1:02d} 10:{max(i, 1):02d},the room {i} was seen' for i in range(40)]
    made[1] = made[0].replace('room 0', 'room 1')
    made[4], made[14] = made[4].replace(',', ',"'), made[14] + '"'
    (tmp_path/'d.csv').write_text('\n'.join(['when,text', *made]) + '\n')
    assert sum(isinstance(t, Unread) for _,t in list_texts([tmp_path/'d.csv'], unread=True)) == 1

@pytest.mark.parametrize('order', ['id,text', 'text,id'])
def test_letters_to_predict_are_no_lost_rows(order, tmp_path):
    f = io.StringIO()
    text = 'Dear {0},\nthank you, all,\n1, milk\n2, bread {0}\n3, tea\n\nin 2024, yours, Bob'
    csv.writer(f).writerows([order.split(','), *([dict(text=text.format(i), id=i)[c] for c in order.split(',')]
                                                 for i in range(20))])
    (tmp_path/'d.csv').write_text(f.getvalue(), newline='')
    assert not any(isinstance(t, Unread) for _,t in list_texts([tmp_path/'d.csv'], unread=True))

def test_an_open_quote_names_the_line_where_it_opens(tmp_path):
    lines = [f'the room {i} was fine,good' for i in range(40)]
    lines[10] = '"' + lines[10]
    (tmp_path/'d.csv').write_text('\n'.join(['text,label', *lines]) + '\n')
    assert 'line 12: a quote opens here and never closes' in refusal(read_texts, tmp_path/'d.csv')
    lines[20] = '"the room, again",good'
    (tmp_path/'d.csv').write_text('\n'.join(['text,label', *lines]) + '\n')
    assert 'line 12: a quote opens here and closes in the middle of line 22' in refusal(read_texts, tmp_path/'d.csv')

def test_texts_of_many_lines_are_no_lost_rows(tmp_path):
    letters = [(f'Dear {n},\nthank you, all,\n"good", as ever\n\nyours, Bob', c) for c in ('good', 'poor')
               for n in 'abcdefgh']
    f = io.StringIO(); csv.writer(f).writerows([('text', 'label'), *((f'{t} {l}', l) for t,l in letters)])
    (tmp_path/'d.csv').write_text(f.getvalue(), newline='')
    assert len(read_texts(tmp_path/'d.csv').items) == 16

@pytest.mark.parametrize('head, text', [('text,label', 'Dear all,\nmilk,1\nbread,0\nBob {}'),
                                        ('label,text', 'Dear all,\n1, we meet\n0, we eat\nBob {}')])
def test_lists_in_a_text_are_no_lost_rows(head, text, tmp_path):
    f = io.StringIO()
    order = head.split(',')
    csv.writer(f).writerows([order, *([dict(text=text.format(i), label=i % 2)[c] for c in order] for i in range(20))])
    (tmp_path/'d.csv').write_text(f.getvalue(), newline='')
    assert len(read_texts(tmp_path/'d.csv').items) == 20

def test_quotes_in_a_tsv_may_be_letters(tmp_path):
    lines = [f'"room {i} was fine\tgood' if i % 7 == 0 else f'room {i} was "poor"\tbad' for i in range(40)]
    (tmp_path/'d.tsv').write_text('\n'.join(['text\tlabel', *lines]) + '\n')
    data = read_texts(tmp_path/'d.tsv')
    assert len(data.items) == 40 and 'quotes in d.tsv are read as letters' in data.notes

def test_the_rest_of_a_text_in_a_column_without_a_name_is_listed(tmp_path):
    text = plain().replace('\r\n', ',,\r\n') + 'so good, that I,poor, would come again,\r\n'
    (tmp_path/'d.csv').write_text(text)
    assert 'd.csv:18: has' in (said := refusal(read_texts, tmp_path/'d.csv')) and 'fields' in said or 'no name' in said

@pytest.mark.parametrize('values', [('en', 'de'), ('1', '0'), ('spam', 'ham')])
@pytest.mark.parametrize('column', ['from', 'sender', 'subject', 'title'])
def test_a_column_that_nobody_named_does_not_leak(column, values, tmp_path):
    "A language in a column called `from`, a class in one called `subject`"
    f = io.StringIO()
    csv.writer(f).writerows([('text', 'label', column), *((f'item {i} arrived', 'ab'[i % 2], values[i % 2])
                                                          for i in range(20))])
    (tmp_path/'d.csv').write_text(f.getvalue())
    data = read_texts(tmp_path/'d.csv')
    assert sorted(data.items.text) == sorted(f'item {i} arrived' for i in range(20))
    assert f"columns not used: '{column}'" in data.notes
    assert data.columns == dict(text='text', label='label', subject='none', sender='none')

def test_columns_of_mails_are_said_and_can_be_left_out(tmp_path):
    f = io.StringIO()
    csv.writer(f).writerows([('body', 'label', 'from', 'subject'),
                             *((f'item {i}', 'ab'[i % 2], f'{i}@b.org', f'news {i}') for i in range(20))])
    (tmp_path/'d.csv').write_text(f.getvalue())
    data = read_texts(tmp_path/'d.csv')
    assert 'From: 3@b.org\nSubject: news 3\n\nitem 3' in {*data.items.text}
    assert any('`-p sender=none` `-p subject=none` leaves that out' in n for n in data.notes)
    data = read_texts(tmp_path/'d.csv', subject='none', sender='none')
    assert {*data.items.text} == {f'item {i}' for i in range(20)}
    data = read_texts(tmp_path/'d.csv', subject='from', sender='none')
    assert 'Subject: 3@b.org\n\nitem 3' in {*data.items.text}

def test_what_a_model_remembers_is_read_where_it_is(tmp_path):
    (tmp_path/'d.csv').write_text('v1,v2,from\nham,see you,a@b.org\n')
    assert list_texts([tmp_path/'d.csv'], dict(text='v2', subject='none', sender='none')) == [
        (f'{tmp_path}/d.csv:2', 'see you')]
    assert list_texts([tmp_path/'d.csv'], dict(text='gone'), text='v1')[0][1].endswith('ham')
    text = refusal(list_texts, [tmp_path/'d.csv'], dict(text='gone'))
    assert '`--text-column v2` of `tl expand` and `tl predict`' in text


# ---- mails
# -------------------------------------------------------------------------------------------------------------

def mail(k, good, subject=True, html=False):
    m = EmailMessage()
    m['From'], m['To'] = f'{"anna" if good else "promo"}{k}@example.org', 'me@example.org'
    if subject: m['Subject'] = f'hello {k}'
    body = f'{"minutes of the meeting" if good else "you won a prize"} number {k}'
    m.set_content(f'<p>{body}</p>' if html else body + '\nFrom here on: 10:00 sharp.\n',
                  subtype='html' if html else 'plain')
    return m

def boxes(root, n=8):
    "One mbox per class, as Python's mailbox module writes it"
    for c,good in (('ham', 1), ('spam', 0)):
        (root/c).mkdir(parents=True)
        box = mailbox.mbox(root/c/f'{c}.mbox')
        for k in range(n): box.add(mailbox.mboxMessage(mail(k, good)))
        box.close()
    return root

def singles(root, name='{}.eml', n=8, start=b''):
    for c,good in (('ham', 1), ('spam', 0)):
        for k in range(n):
            f = root/c/name.format(k); f.parent.mkdir(parents=True, exist_ok=True)
            f.write_bytes(start + bytes(mail(k, good)))
    return root

LINE = b'From x@y.org Mon Jan  1 00:00:00 2024\n'

def test_mails_in_every_keeping_are_the_same_mails(tmp_path):
    want = texts(read_texts(singles(tmp_path/'eml')))
    assert len(want) == 16
    assert texts(read_texts(boxes(tmp_path/'mbox'))) == want
    assert texts(read_texts(singles(tmp_path/'line', start=LINE))) == want
    assert texts(read_texts(singles(tmp_path/'maildir', 'cur/17040672{:02d}.M1P1.host:2,S'))) == want
    assert texts(read_texts(singles(tmp_path/'new', 'new/17040672{:02d}.M1P1.host'))) == want
    assert texts(read_texts(singles(tmp_path/'hash', '{:05d}.7c53336b37003a9286aba55d2945844c'))) == want
    assert texts(read_texts(singles(tmp_path/'number', '103{:02d}'))) == want
    for c,good in (('ham', 1), ('spam', 0)): # four mails a file
        (tmp_path/'several'/c).mkdir(parents=True)
        for j in range(2): (tmp_path/'several'/c/f'{j}.eml').write_bytes(b''.join(
            LINE + bytes(mail(4*j + k, good)) .replace(b'\nFrom here', b'\n>From here') + b'\n' for k in range(4)))
    assert texts(read_texts(tmp_path/'several')) == want

FROM = {'dated': LINE, 'of a mailer': b'From MAILER-DAEMON Fri Jul  8 12:08:34 2011\n',
        'without a date': b'From x@y.org\n', 'of a mailer without a date': b'From MAILER-DAEMON\n',
        'a bar': b'From - Mon Jan  1 00:00:00 2024\n'}

@pytest.mark.parametrize('line', FROM)
@pytest.mark.parametrize('between', [b'', b'\n'])
@pytest.mark.parametrize('start, end', [(b'', b'\n'), (codecs.BOM_UTF8, b'\n'), (b'', b'\r\n')])
def test_an_mbox_of_other_programs(start, end, between, line, tmp_path):
    "Without blank lines between mails, with a byte order mark, with other lines From"
    mails = [bytes(mail(k, 1)).rstrip() + b'\n' for k in range(4)]
    box = start + b''.join(FROM[line] + m + between for m in mails).replace(b'\n', end)
    (tmp_path/'a.mbox').write_bytes(box)
    assert [t.splitlines()[1] for _,t in list_texts([tmp_path/'a.mbox'])] == [f'Subject: hello {k}' for k in range(4)]

def test_a_line_from_in_a_body_begins_no_mail(tmp_path):
    body = b'Dear all,\nFrom here on: 10:00\nNote: bring a pen\n\nFrom Anna\nTo: me\n'
    (tmp_path/'a.mbox').write_bytes(b''.join(LINE + b'From: x@y.org\nSubject: s\n\n' + body for _ in range(2)))
    assert len(list_texts([tmp_path/'a.mbox'])) == 2

@pytest.mark.parametrize('said', ['iso-8859-1', 'windows-1252', 'latin1', 'us-ascii', 'iso-8859-15', 'koi8-r', 'utf-8'])
def test_utf_8_under_another_name_stays_utf_8(said, tmp_path):
    head = f'From: x@y.org\nSubject: s\nContent-Type: text/plain; charset={said}\nContent-Transfer-Encoding: 8bit\n\n'
    (tmp_path/'a.eml').write_bytes((head + 'Grüße, 5 € für café').encode())
    assert list_texts([tmp_path/'a.eml'])[0][1].endswith('Grüße, 5 € für café')

@pytest.mark.parametrize('said, text', [('iso-8859-1', 'Grüße, café'), ('windows-1252', '5 € “so”'),
                                        ('koi8-r', 'Привет'), ('gb2312', '你好，世界'), ('shift_jis', 'こんにちは'),
                                        ('windows-1251', 'Привет')])
def test_what_is_in_the_set_that_it_names_is_read_by_it(said, text, tmp_path):
    head = f'From: x@y.org\nSubject: s\nContent-Type: text/plain; charset={said}\nContent-Transfer-Encoding: 8bit\n\n'
    (tmp_path/'a.eml').write_bytes(head.encode() + text.encode(said))
    assert list_texts([tmp_path/'a.eml'])[0][1].endswith(text)

def test_mails_without_a_suffix_are_among_what_a_record_compares(tmp_path):
    root = singles(tmp_path, '103{:02d}')
    data = read_texts(root)
    items, sources = list_items(data), list_sources(data)
    assert len(sources) == 16 and compare_files(root, items, sources)['changed'] == []
    (root/'ham'/'10303').write_bytes(b'Subject: x\n\nother')
    assert [c[0] for c in compare_files(root, items, sources)['changed']] == ['ham/10303']

def test_a_maildir_is_read_from_cur_and_new_not_from_tmp(tmp_path):
    root = singles(tmp_path, 'cur/{}:2,S'); (root/'ham'/'new').mkdir(); (root/'spam'/'new').mkdir()
    (root/'ham'/'tmp').mkdir(); (root/'ham'/'tmp'/'half').write_bytes(b'From: x')
    assert len(read_texts(root).items) == 16 and len(list_texts([root/'ham'])) == 8
    assert 'is a maildir, and so of one class only' in refusal(read_texts, root/'ham')

def test_boxes_that_apple_mail_exports(tmp_path):
    "A folder Inbox.mbox with the file mbox in it, and a table of contents"
    want = texts(read_texts(boxes(tmp_path/'plain')))
    for c in ('ham', 'spam'):
        inside = tmp_path/'apple'/c/'Inbox.mbox'
        inside.mkdir(parents=True)
        (inside/'mbox').write_bytes((tmp_path/'plain'/c/f'{c}.mbox').read_bytes())
        (inside/'table_of_contents').write_bytes(b'\0\1\2')
    assert texts(read_texts(tmp_path/'apple')) == want
    assert not any(isinstance(t, Unread) for _,t in list_texts([tmp_path/'apple'], unread=True))

def test_an_mbox_alone_has_one_class(tmp_path):
    assert 'a file of mails, and so of one class only' in refusal(read_texts, boxes(tmp_path)/'ham'/'ham.mbox')

def test_predicting_an_mbox_is_predicting_each_mail(tmp_path):
    got = list_texts([boxes(tmp_path)/'ham'/'ham.mbox'])
    assert [n.rpartition(':')[2] for n,_ in got] == [*map(str, range(1, 9))]
    assert [t.splitlines()[0] for _,t in got] == [f'From: anna{k}@example.org' for k in range(8)]

def test_odd_bodies(tmp_path):
    root = singles(tmp_path)
    (root/'spam'/'subject.eml').write_bytes(b'From: x@y.org\r\nSubject: You won the prize\r\n\r\n')
    (root/'spam'/'stub.eml').write_bytes(
        b'From: x@y.org\r\nSubject: alt\r\nContent-Type: multipart/alternative; boundary=B\r\n\r\n--B\r\nContent-Type: '
        b'text/plain\r\n\r\nHTML only.\r\n--B\r\nContent-Type: text/html\r\n\r\n<p>casino bonus and loans for all who '
        b'read this</p>\r\n--B--\r\n')
    (root/'ham'/'html.eml').write_bytes(bytes(mail(50, 1, html=True)))
    wrong = 'Content-Type: text/plain; charset=us-ascii\r\n\r\nGrüße, café\r\n'
    (root/'ham'/'wrong.eml').write_bytes(wrong.encode('cp1252'))
    (root/'ham'/'apple.emlx').write_bytes(b'%d\n' % len(m := bytes(mail(51, 1))) + m + b'<plist></plist>')
    items = read_texts(root).items
    found = dict(zip(items.path, items.text))
    assert found['spam/subject.eml'] == 'From: x@y.org\nSubject: You won the prize'
    assert 'casino bonus' in found['spam/stub.eml'] and 'minutes of the meeting number 50' in found['ham/html.eml']
    assert found['ham/wrong.eml'] == 'Grüße, café' and 'plist' not in found['ham/apple.emlx']

def test_outlook_is_told_what_to_export(tmp_path):
    root = singles(tmp_path)
    (root/'spam'/'a.msg').write_bytes(bytes.fromhex('d0cf11e0a1b11ae1') + bytes(600))
    text = refusal(read_texts, root)
    assert "spam/a.msg: suffix '.msg'; Outlook's own format; save it as .eml" in text
    assert len(read_texts(root, on_bad='skip').items) == 16

def test_folders_of_texts_without_a_label(tmp_path):
    "aclImdb: train/pos, train/neg, train/unsup, and files that are none of them"
    spec = {f'{s}/{c}/{k}.txt': f'{s} {c} {k} words' for s in ('train', 'test') for c in ('pos', 'neg')
            for k in range(5)}
    spec |= {f'train/unsup/{k}.txt': f'unsup {k}' for k in range(5)} | {'train/labeledBow.feat': '9 0:9', 'README': 'x'}
    text = refusal(read_texts, tree(tmp_path, spec))
    assert "train/labeledBow.feat: suffix '.feat'" in text and '1 problem in' in text
    data = read_texts(tmp_path, on_bad='skip')
    assert data.classes == ['neg', 'pos'] and len(data.unlabelled) == 5

def test_images_are_no_texts(tmp_path):
    assert 'holds 12 images and no texts' in refusal(read_texts, tree(tmp_path, GOOD))

def test_a_table_without_a_header_says_so(tmp_path):
    (tmp_path/'d.csv').write_text(''.join(f'"the {w} room {i} of the old house",{w}\n' for i in range(9)
                                          for w in ('good', 'bad')))
    assert 'The first line looks like a row' in refusal(read_texts, tmp_path/'d.csv')


# ---- what is predicted
# -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('given', [
    'no/such.eml', 'mails/foo bar.eml', 'my mails/inbox 2024.eml', 'new mails.csv', './note', '~/mails/1',
    'C:\\mails\\1', 'mails/ham', 'letter.docx', 'box.mbox', '0.MSG', 'mails/2024/01/inbox', 'data/2024/07/mails',
    'inbox/2024/1', '2024/07/mails', 'folder/', 'my old folder/', 'my folder/with spaces/in the name/x', 'img.heic',
    'a.xml', 'notes.yaml', 'data.jsonl.bz2', 'a.7z', 'mails\\2024\\inbox', 'a/b/'])
def test_what_looks_like_a_path_and_is_not_there_is_no_text(given):
    assert 'does not exist' in refusal(list_texts, [given])

@pytest.mark.parametrize('given', [
    'good and/or cheap, 24/7', 'works well', 'see https://example.org', '3/4 of it is fine', 'great.',
    'The price/quality ratio is fine, and it arrived on time', 'nice and/\nor so',
    'The score was 3/4 and/or better', '10/10', 'good 24/7', 'price/quality 10/10', 'on 12/05/2024 it broke',
    'he/she said that his/her money came back', 'input/output, read/write and start/stop work', 'it costs 4.5/5'])
def test_a_text_is_a_text(given): assert list_texts([given]) == [(given, given)]

def test_what_is_empty_is_answered_by_its_reason(tmp_path):
    "Of a folder, of a table and typed; a mail with a subject says something"
    spec = {'a.txt': b'', 'b.txt': ' \n\t', 'c.txt': codecs.BOM_UTF8, 'd.eml': b'', 'e.eml': b'From: x@y.org\n\n\n',
            'f.txt': 'fine', 'g.eml': b'From: x@y.org\nSubject: prize\n\n', 'h.txt': b'\xff\xfe\0',
            'i.eml': b'\xff\xfe\0', 'j.eml': b'\xff\xfe', 'k.txt': '\u200b\n'}
    got = {n.rpartition('/')[2]: t for n,t in list_texts([tree(tmp_path, spec)], unread=True)}
    assert {*got} == {*spec} and sorted(n for n,t in got.items() if not isinstance(t, Unread)) == ['f.txt', 'g.eml']
    (tmp_path/'d.csv').write_text('id,text\n1,fine\n2,\n3,"  "\n4,good\n')
    got = [t for _,t in list_texts([tmp_path/'d.csv'], unread=True)]
    assert [isinstance(t, Unread) for t in got] == [False, True, True, False] and 'empty' in got[1]
    assert [isinstance(t, Unread) for _,t in list_texts(['', ' ', 'fine'], unread=True)] == [True, True, False]

def test_one_text_that_cannot_be_read_stops_no_other(tmp_path):
    spec = {'a.txt': 'fine', 'b.txt': b'Gr\xfc\xdfe', 'c.pdf': b'%PDF', 'd.msg': b'x', 'e': 'no suffix',
            'd.csv': 'text\nx\n'}
    got = dict((n.rpartition('/')[2], t) for n,t in list_texts([tree(tmp_path, spec)], unread=True))
    assert got['a.txt'] == 'fine' and got['e'] == 'no suffix' and len(got) == 6
    assert 'not UTF-8' in got['b.txt'] and 'suffix' in got['c.pdf'] and '.eml' in got['d.msg']
    assert sorted(k for k,t in got.items() if isinstance(t, Unread)) == ['b.txt', 'c.pdf', 'd.csv', 'd.msg']
    assert 'not UTF-8' in refusal(list_texts, [tmp_path])

def test_what_only_begins_like_a_readme_is_an_item(tmp_path):
    "README.md and the like say what data is; license_plate_0.jpg is data, to learn from and to predict"
    aside = {'README.md': 'x', 'LICENSE': 'x', 'licence.txt': 'x', 'PROVENANCE.md': 'x', 'README.roboflow.txt': 'x'}
    some = ['license_plate_0.jpg', 'readme.jpg', 'Licence.png', 'README_en.png', 'provenance-1.png']
    tree(tmp_path/'a', {n: i for i,n in enumerate(some)} | aside)
    assert sorted(n.name for n in list_inputs([tmp_path/'a']).values()) == sorted(some)
    mails = ['License renewal.eml', 'readme please.txt']
    tree(tmp_path/'m', {n: f'Subject: {n}\n\nHello' for n in mails} | aside)
    assert sorted(n.split('/')[-1] for n,_ in list_texts([tmp_path/'m'])) == sorted(mails)
    assert len(images(tree(tmp_path/'t', GOOD | aside)).items) == len(GOOD)
    assert 'license_plate_0.png: lies in no class' in refusal(images, tree(tmp_path/'t', {'license_plate_0.png': 9}))

def test_all_files_of_a_folder_are_answered_for(tmp_path):
    spec = {'a.png': 1, 'b.txt': 'x', 'c.pdf': b'%PDF', '__MACOSX/._a.png': b'x',
            '@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg': b'x', 'README.md': 'x', '.hidden.png': b'x'}
    root = tree(tmp_path, spec)
    assert [*map(str, list_inputs([root], others=True).values())] == ['a.png', 'b.txt', 'c.pdf']
    assert [*map(str, list_inputs([root]).values())] == ['a.png']
    (root/'gone.png').symlink_to('nowhere.png')
    assert 'gone.png' in [*map(str, list_inputs([root], others=True).values())]

def test_a_number_that_papermill_made_of_a_name_is_explained():
    text = refusal(check_params, {'data': Param('data', 'str', '')}, {'data': 2024})
    assert 'found 2024; accepted: text. With papermill: `-r data 2024`' in text

@pytest.mark.parametrize('given, noted', [('car,bike', True), ('car, bike', True), ('"car,bike"', False),
                                          ('car', False), ('["car", "bike"]', False)])
def test_text_with_commas_is_several_values_and_that_is_said(given, noted, capsys):
    parse_values(Param('classes', 'str', ''), given)
    said = capsys.readouterr().err
    assert bool(said) == noted
    if noted: assert f"""{given!r} is 2 values of `classes`; if it is one, type -p 'classes="{given}"'""" in said
    parse_values(Param('lr', 'float', .1), '0.1,0.2')
    assert not capsys.readouterr().err
