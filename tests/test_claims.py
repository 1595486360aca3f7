"What is claimed of a model from elsewhere is measured as its own framework would measure it."
import json
import shutil

import tl_notebooks # noqa: F401  before timm
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score
from timm.data import create_transform, resolve_data_config
from conftest import page, record, tl
from tl_notebooks.core import InputError
from tl_notebooks.data.samples import make_parts
from tl_notebooks.judge.audit import audit, check_claim
from tl_notebooks.judge.claims import _class_names, catalogue_model, spellings
from tl_notebooks.judge.evidence import interval
from tl_notebooks.judge.labelled import read_labelled
from tl_notebooks.learn.backbones import find_entry, load_image_model

KINDS = ['gear', 'nut', 'pin']
CARD = '''---
model-index:
- name: m
  results:
  - dataset: {name: parts}
    metrics: [{type: accuracy, value: 93.5}]
---
'''


@pytest.fixture(scope='module')
def parts(tmp_path_factory): return make_parts(tmp_path_factory.mktemp('claims')/'parts', kinds=KINDS, n=8, size=64)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A network of timm with weights made here, as timm saves it for the hub, with a card"
    home = tmp_path_factory.mktemp('timm')/'net'
    home.mkdir()
    torch.manual_seed(3)
    net = timm.create_model('resnet10t', num_classes=4)
    save_file(net.state_dict(), home/'model.safetensors')
    cfg = dict(input_size=[3, 64, 64], interpolation='bicubic', crop_pct=1., mean=[.5]*3, std=[.5]*3,
               label_names=['gear', 'Nut', 'Pin, dowel', 'worm'])
    (home/'config.json').write_text(json.dumps(dict(architecture='resnet10t', num_classes=4, pretrained_cfg=cfg)))
    (home/'README.md').write_text(CARD)
    return home


def right_by_timm(net, cfg, files, rows):
    "How often timm alone is right"
    tfm = create_transform(**resolve_data_config({}, pretrained_cfg=cfg))
    with torch.no_grad():
        said = [int(net.eval()(tfm(Image.open(f).convert('RGB'))[None]).argmax()) for f in files]
    return round(accuracy_score(rows, said)*len(rows))


def test_a_folder_of_timm_is_held_against_its_card(folder, parts):
    data, cfg = read_labelled(parts, progress=False), json.loads((folder/'config.json').read_text())['pretrained_cfg']
    net = timm.create_model('resnet10t', num_classes=4)
    net.load_state_dict(load_file(folder/'model.safetensors'))
    files = [data.root/p for p in data.items.path]
    right = right_by_timm(net, cfg, files, [KINDS.index(l) for l in data.items.label])
    found = check_claim(folder, data)
    assert found['claimed'] == .935 and found['value'] == right/len(files) and found['n'] == len(files)
    assert found['verdict'] == 'does not hold' and found['by'] == 'its card, on parts'
    among = next(n for n in found['notes'] if 'chooses among 4 classes' in n)
    assert 'of which the data has 3' in among
    stated = check_claim(folder, data, claim=.05) # a claim that is stated goes before the card
    assert stated['claimed'] == .05 and stated['by'] == 'you' and stated['verdict'] != 'does not hold'


def test_where_nobody_claims_anything_it_is_said_how_a_claim_is_stated(folder, parts, tmp_path):
    shutil.copytree(folder, tmp_path/'net')
    (tmp_path/'net'/'README.md').unlink()
    found = check_claim(tmp_path/'net', read_labelled(parts, progress=False))
    assert found['claimed'] is None and found['n'] == 24 and '--claim 0.75' in found['verdict']


def test_a_name_of_the_catalogue_is_measured_with_its_own_classes(tmp_path):
    "The weights that come with the package; classes by a lemma, by WordNet's number and by one that it does not know"
    made = make_parts(tmp_path/'made', kinds=['screw', 'gear', 'nut', 'pin'], n=4, size=64)
    names = dict(screw='screw', gear='n03598930', nut='Hook_claw', pin='rivet') # 3598930: jigsaw puzzle
    for was,now in names.items(): shutil.move(made/was, tmp_path/'data'/now)
    done = tl('audit', 'data', '--model', 'efficientnet_lite0', '--out', 'runs', cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path/done.stdout.splitlines()[-1]
    found = json.loads((run/'audit.json').read_text())['claim']
    assert found['claimed'] == .7483 and found['verdict'] == 'does not hold' and found['n'] == 12
    assert 'ImageNet-1k val' in found['by'] and any('4 items of classes' in n for n in found['notes'])
    assert record(run)['findings']['claim'] == found and 'does not hold' in page(run/'report.html')
    info = timm.data.ImageNetInfo('imagenet-1k')
    rows = {next(i for i in range(1000) if name in info.index_to_description(i).split(', ')): at
            for name,at in (('screw', 'screw'), ('jigsaw puzzle', 'n03598930'), ('hook', 'Hook_claw'))}
    net, _ = load_image_model('efficientnet_lite0')
    pairs = [(f, row) for row,at in rows.items() for f in sorted((tmp_path/'data'/at).iterdir())]
    cfg = timm.get_pretrained_cfg('tf_efficientnet_lite0.in1k').to_dict()
    right = right_by_timm(net, cfg, *zip(*pairs))
    assert found['value'] == right/12 and found['low'] == interval(right, 12).low


def test_classes_that_nothing_matches_are_one_message(folder, tmp_path):
    other = make_parts(tmp_path/'other', kinds=['screw', 'spring'], n=4, size=64)
    with pytest.raises(InputError, match='it knows none of the 2 classes of the data .*accepted|Accepted'):
        audit(other, model=folder)
    for name,says in (('minilm_l6', 'no classes of its own'), ('resnet81', 'as a name'),
                      ('ssdlite320_mobilenet_v3_large', 'is a detector')):
        with pytest.raises(InputError, match=says): audit(other, model=name)


def test_every_name_of_an_imagenet_class_leads_to_it_unless_it_is_of_two():
    info = timm.data.ImageNetInfo('imagenet-1k')
    classes, numbers = _class_names(find_entry('efficientnet_lite0'))
    assert len({*classes}) == 1000 and numbers == info.label_names()
    names = spellings(classes, numbers)
    assert all(names[k] == c for k,c in zip(numbers, classes))
    lemmas = [[l.strip().casefold() for l in info.index_to_description(i).split(',')] for i in range(1000)]
    count = {l: sum(l in own for own in lemmas) for l in ('crane', 'goldfish', 'tench', 'cardigan')}
    whole = {l for own in lemmas for l in own[:len(own) == 1]} # a class that is called so, and not also so
    assert {l: l in names for l in count} == {l: n == 1 or l in whole and l != 'crane' for l,n in count.items()}
    assert names['cardigan'] == 'cardigan' and count['cardigan'] == 2
    assert np.isclose(catalogue_model('efficientnet_lite0', .5).said['value'], .5)
