"transformers loads what was exported for it, without this package; a hub gets the bytes of the folder."
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from conftest import tl
from test_export import TEXTS, images, sentences, theirs, timm_answers  # noqa: F401  fixtures

import torch
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.data.samples import PARTS, make_parts
from tl_notebooks.learn.vision import image_learner
from tl_notebooks.models import save as _save  # noqa: F401  gives learners `save_model`
from tl_notebooks.models.export import export
from tl_notebooks.models.save import load_model

PIPELINE = """
import sys, json
class Never:
    def find_spec(self, name, *rest):
        if name.split('.')[0] in ('tl_notebooks', 'fastai'): raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Never())
GUARD
from transformers import pipeline
ask = pipeline(sys.argv[1], model=sys.argv[2])
print(json.dumps([{r['label']: r['score'] for r in ask(i, top_k=9)} for i in sys.argv[3:]]))
"""
# torchvision beside a torch without CUDA lacks two operators, see the toolchain; a working one needs no such line
GUARD = """
import torch
lib = torch.library.Library('torchvision', 'FRAGMENT')
for n in ('nms', 'qnms'):
    if not hasattr(torch.ops.torchvision, n): lib.define(n + '(Tensor dets, Tensor scores, float t) -> Tensor')
"""


def by_pipeline(task, folder, *items):
    # -S: no .pth file is obeyed, so this package's own guard is not there either
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'PYTHONPATH': sysconfig.get_path('purelib')}
    done = subprocess.run([sys.executable, '-S', '-c', PIPELINE.replace('GUARD', GUARD), task, folder,
                           *map(str, items)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_of_timm_in_transformers(theirs, images, tmp_path):  # noqa: F811
    model, folder = theirs
    done = tl('export', folder, '--to', 'huggingface', '--out', tmp_path/'hf', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = [tmp_path/f'{i}.png' for i in (0, 4)]
    for p,i in zip(paths, (0, 4)): images[i].save(p)
    found = by_pipeline('image-classification', tmp_path/'hf', *paths)
    got = np.array([[f[c] for c in ('bolt', 'nut', 'pin')] for f in found])
    assert np.abs(got - timm_answers(model, [images[0], images[4]])).max() < 1e-5
    meta = yaml.safe_load((tmp_path/'hf'/'README.md').read_text().split('---')[1])
    assert (meta['pipeline_tag'], meta['library_name']) == ('image-classification', 'transformers')


def test_a_model_that_was_trained_here_in_transformers(tmp_path):
    "Its head sees averages and maxima behind a BatchNorm; what it says comes from its own folder"
    make_parts(tmp_path/'parts', kinds=PARTS[:2], n=6, size=64)
    learn = image_learner(read_images(tmp_path/'parts', valid_pct=.25, test_pct=.25), size=64, precision='fp32', seed=0)
    with learn.no_bar(): learn.probe()
    learn.save_model(tmp_path/'model', metrics=dict(accuracy=dict(value=.9, low=.8, high=.95, n=40)))
    export(tmp_path/'model', tmp_path/'hf', 'huggingface')
    files = sorted((tmp_path/'parts').rglob('*.png'))[:2] or sorted((tmp_path/'parts').rglob('*.jpg'))[:2]
    found = by_pipeline('image-classification', tmp_path/'hf', *files)
    for f,p in zip(found, load_model(tmp_path/'model').predict(files)):
        assert f == pytest.approx(p.probabilities, abs=1e-4)
    card = (tmp_path/'hf'/'README.md').read_text()
    assert '| accuracy | 0.900 (0.800 … 0.950, n=40) |' in card and 'license: apache-2.0' in card


def test_texts_in_transformers(sentences, tmp_path):  # noqa: F811
    model, tok, folder = sentences
    export(folder, tmp_path/'hf', 'huggingface')
    found = by_pipeline('text-classification', tmp_path/'hf', *TEXTS[:3])
    with torch.no_grad():
        want = torch.cat([model(**tok(t, return_tensors='pt')).logits for t in TEXTS[:3]]).softmax(1).numpy()
    assert np.allclose([[f['good'], f['bad']] for f in found], want, atol=1e-5)


def test_what_has_no_place_there_is_named(tmp_path):
    make_parts(tmp_path/'parts', kinds=PARTS[:2], n=6, size=64)
    data = read_images(tmp_path/'parts', valid_pct=.25, test_pct=.25)
    learn = image_learner(data, size=64, precision='fp32', seed=0, features='both')
    with learn.no_bar(): learn.probe()
    learn.save_model(tmp_path/'model', metrics={})
    with pytest.raises(InputError, match='its head sees several blocks, for which transformers has no place'):
        export(tmp_path/'model', tmp_path/'hf', 'huggingface')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'parts']


class Hub(BaseHTTPRequestHandler):
    "As much of a hub as an upload talks to"
    protocol_version, files, token, made = 'HTTP/1.1', {}, 'Bearer hf_test', []

    def log_message(self, *args): pass

    def answer(self, what, status=200, **headers):
        body = json.dumps(what).encode()
        self.send_response(status)
        for k,v in dict({'Content-Type': 'application/json', 'Content-Length': len(body)}, **headers).items():
            self.send_header(k, str(v))
        self.end_headers(); self.wfile.write(body)

    def body(self):
        if n := self.headers.get('Content-Length'): return self.rfile.read(int(n))
        out = b''
        while size := int(self.rfile.readline(), 16): out += self.rfile.read(size); self.rfile.readline()
        self.rfile.readline()
        return out

    def do_GET(self):
        self.answer(dict(sha='0'*40, id='me/x', siblings=[], name='me', type='user', auth={}))

    def do_PUT(self):
        data = self.body()
        self.files[hashlib.sha256(data).hexdigest()] = data
        self.answer({})

    def do_POST(self):
        data, base = self.body(), f"http://{self.headers['Host']}"
        if 'authorization' not in {k.lower() for k in self.headers} or self.headers['Authorization'] != self.token:
            return self.answer(dict(error='no token'), 401)
        if self.path.endswith('/repos/create'):
            self.made.append(json.loads(data)); return self.answer(dict(url=f'{base}/me/x', id='me/x'))
        if 'validate-yaml' in self.path: return self.answer(dict(errors=[], warnings=[]))
        if 'preupload' in self.path: return self.answer(dict(files=[
            dict(path=f['path'], shouldIgnore=False, uploadMode='lfs' if f['size'] > 9999 else 'regular')
            for f in json.loads(data)['files']]))
        if 'lfs/objects/batch' in self.path: return self.answer(dict(transfer='basic', objects=[
            dict(o, actions=dict(upload=dict(href=f"{base}/put/{o['oid']}"))) for o in json.loads(data)['objects']]))
        if '/commit/' in self.path:
            for line in map(json.loads, data.splitlines()): self.commit(line)
            return self.answer(dict(commitUrl=f'{base}/me/x/commit/1', commitOid='1'*40, success=True))
        self.answer(dict(error='what?'), 404)

    def commit(self, line):
        import base64
        v = line['value']
        if line['key'] == 'file': self.files[v['path']] = base64.b64decode(v['content'])
        if line['key'] == 'lfsFile': self.files[v['path']] = self.files[v['oid']]


def test_a_hub_gets_the_bytes_of_the_folder(theirs, tmp_path):  # noqa: F811
    done = export(theirs[1], tmp_path/'onnx')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_TOKEN='hf_test', HF_HUB_DISABLE_XET='1',
               HF_HOME=str(tmp_path/'home'), HF_HUB_OFFLINE='0')
    pushed = tl('push', done.folder, 'me/x', cwd=tmp_path, env=env)
    assert pushed.returncode == 0, pushed.stderr[-2000:]
    assert re.fullmatch(r'http://127.0.0.1:\d+/me/x', pushed.stdout.splitlines()[-1])
    assert 'private' in json.dumps(Hub.made[0])
    for p in done.folder.iterdir(): assert Hub.files[p.name] == p.read_bytes()
    refused = tl('push', done.folder, 'me/x', cwd=tmp_path, env=env | dict(HF_TOKEN='hf_other'))
    server.shutdown()
    assert refused.returncode == 2 and 'the hub refuses' in refused.stderr, refused.stderr[-2000:]
