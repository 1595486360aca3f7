"A server answers as its model does, refuses what it cannot take, and outlives clients and versions of the model."
import base64
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import psutil
import pytest
from conftest import tl
from PIL import Image
from test_export import images, knowing, sentences, theirs  # noqa: F401  fixtures

from tl_notebooks.models.export import export

pytest.importorskip('fastapi')


@pytest.fixture(scope='module')
def folders(theirs, sentences, tmp_path_factory):  # noqa: F811
    root = tmp_path_factory.mktemp('exported')
    return export(theirs[1], root/'images').folder, export(sentences[2], root/'texts').folder


NO_TORCH = """
import sys
class Never:
    def find_spec(self, name, *rest):
        if name.split('.')[0] in ('torch', 'onnx', 'fastai', 'transformers', 'timm', 'pandas'):
            raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Never())
from tl_notebooks.cli import main
sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def serving(*args, token='', torch=False, **env):
    "A server in a process where torch cannot be imported, unless it may; gives (process, port)"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {**os.environ, 'TL_SERVE_TOKEN': token, **env}
    program = ['-m', 'tl_notebooks'] if torch else ['-c', NO_TORCH]
    p = subprocess.Popen([sys.executable, *program, 'serve', *map(str, args), '--port', str(port), '--threads', '1'],
                         env=env, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                if ask(port, 'GET', '/health')[0] == 200: break
            assert p.poll() is None, p.stderr.read()
            time.sleep(.1)
        yield p, port
    finally:
        if p.poll() is None: p.terminate()
        p.wait(20)


def ask(port, method, path, body=None, kind=None, **headers):
    c = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    if kind: headers['Content-Type'] = kind
    c.request(method, path, body, headers)
    r = c.getresponse()
    data = r.read()
    c.close()
    return r.status, json.loads(data) if 'json' in r.headers.get('content-type', '') else data.decode()


def form(*files):
    "The body of a form with some files, and its content type"
    parts = [b'--x\r\nContent-Disposition: form-data; name="files"; filename="f%d"\r\n'
             b'Content-Type: application/octet-stream\r\n\r\n%s\r\n' % (i, f) for i,f in enumerate(files)]
    return b''.join(parts) + b'--x--\r\n', 'multipart/form-data; boundary=x'


def png(image):
    out = io.BytesIO(); image.save(out, 'PNG')
    return out.getvalue()


def by_onnx(folder, image):
    session = onnxruntime.InferenceSession(folder/'model.onnx')
    return session.run(None, {'images': np.asarray(image)[None]})[0][0]


def probs(prediction): return [*prediction['probabilities'].values()]


def test_files_base64_and_texts_get_the_answers_of_the_file(folders, images, tmp_path):  # noqa: F811
    data, kept = [png(im) for im in images], tmp_path/'kept'
    want = [by_onnx(folders[0], im) for im in images]
    with serving(folders[0], f'words={folders[1]}', '--keep', kept) as (p, port):
        body, kind = form(*data)
        status, found = ask(port, 'POST', '/predict', body, kind)
        assert status == 200 and np.allclose([probs(f) for f in found['predictions']], want, atol=1e-5)
        sent = json.dumps(dict(images=[base64.b64encode(d).decode() for d in data]))
        assert ask(port, 'POST', '/predict', sent, 'application/json') == (200, found)
        assert ask(port, 'POST', '/predict', data[0], 'image/png')[1]['predictions'] == found['predictions'][:1]
        one, text = (ask(port, 'POST', '/models/words/predict', json.dumps(dict(texts=t)), 'application/json')[1]
                     for t in (['good movie', 'bad'], ['bad']))
        assert text['predictions'][0]['label'] == one['predictions'][1]['label'] and len(one['predictions']) == 2
        assert sorted(q.suffix for q in kept.iterdir()) == ['.png']*11 + ['.txt']*3
        status, m = ask(port, 'GET', '/model')
        assert m['classes'] == ['bolt', 'nut', 'pin'] and 'pipeline_tag: image-classification' in m['card']
        assert 'tl_items_total 14' in ask(port, 'GET', '/metrics')[1]
        assert '/predict' in ask(port, 'GET', '/openapi.json')[1]['paths']
        assert 'drop images here' in ask(port, 'GET', '/')[1]
        p.send_signal(signal.SIGTERM)
        assert p.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.parametrize('exported', [True, False])
def test_unknown_items_are_called_so_as_by_predict(knowing, theirs, tmp_path, exported):  # noqa: F811
    from tl_notebooks.models.save import load_model
    folder, files = knowing
    served = export(folder, tmp_path/'e').folder if exported else folder
    want = [*load_model(folder).predict(files, unknown=.4)]
    with serving(served, '--unknown', .4, torch=not exported) as (_, port):
        status, found = ask(port, 'POST', '/predict', *form(*[f.read_bytes() for f in files]))
    assert status == 200 and [f['label'] for f in found['predictions']] == [p.label for p in want]
    assert [f['p_known'] for f in found['predictions']] == pytest.approx([p.p_known for p in want], abs=1e-6)
    assert 'unknown' in {p.label for p in want} != {'unknown'}
    other = export(theirs[1], tmp_path/'x').folder
    for wrong, says in ((served, '0.001, and'), (other, 'cannot tell what is unknown')):
        done = tl('serve', wrong, '--unknown', .001, '--port', 0, cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr, done.stderr


def test_what_cannot_be_taken_has_a_status_and_a_reason(folders, images):  # noqa: F811
    good, bomb = png(images[0]), png(Image.new('RGB', (3000, 3000)))
    body, kind = form(good, b'no image')
    with serving(folders[0], '--max-bytes', 100_000, '--max-pixels', 1_000_000, '--seconds', 2, '--max-items', 3,
                 token='s3cret') as (_, port):
        key = dict(Authorization='Bearer s3cret')
        assert ask(port, 'GET', '/health')[0] == 200
        for wrong in ({}, dict(Authorization='Bearer s3cre'), dict(Authorization='s3cret '*1000)):
            assert ask(port, 'POST', '/predict', good, 'image/png', **wrong)[0] == 401
        status, found = ask(port, 'POST', '/predict', body, kind, **key)
        assert status == 200 and 'label' in found['predictions'][0]
        assert 'cannot be read (not an image' in found['predictions'][1]['error']
        for status, data, kind_ in ((422, b'no image', 'image/png'), (422, bomb, "image/png"),
                                    (400, b"{", "application/json"),
                                    (422, b'{"images": ["*"]}', 'application/json'),
                                    (422, b'{"images": []}', 'application/json'),
                                    (413, b'x'*200_000, 'image/png'), (415, b'x', 'text/csv'), (400, b'x', kind),
                                    (413, *form(*[good]*4)), (422, b'', 'image/png')):
            got, why = ask(port, 'POST', '/predict', data, kind_, **key)
            assert got == status and why['error'], (got, status, data[:30], why)
        assert ask(port, 'POST', '/models/none/predict', good, 'image/png', **key)[0] == 404
        slow = socket.create_connection(('127.0.0.1', port))
        slow.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n'
                     b'Authorization: Bearer s3cret\r\n\r\nx')
        assert ask(port, 'POST', '/predict', good, 'image/png', **key)[0] == 200 # meanwhile
        assert b' 408 ' in slow.recv(1000)
        slow.close()


def test_more_than_the_queue_holds_is_told_to_come_again(folders, images):  # noqa: F811
    data = json.dumps(dict(images=[base64.b64encode(png(images[1])).decode()]*8))
    with serving(folders[0], '--max-waiting', 8) as (_, port), ThreadPoolExecutor(12) as pool:
        codes = [*pool.map(lambda _: ask(port, 'POST', '/predict', data, 'application/json')[0], range(24))]
        assert {*codes} == {200, 429} and ask(port, 'POST', '/predict', data, 'application/json')[0] == 200


def test_a_new_version_takes_over_without_a_lost_request(folders, images, theirs, tmp_path):  # noqa: F811
    import torch
    from tl_notebooks.models.save import load_model
    model = load_model(theirs[1])
    with torch.no_grad(): model.net.head[1].bias[:] = torch.tensor([0., 20., 0.])
    from tl_notebooks.models import export as door
    model.manifest['sha256'] = 'new'
    door.export(model, tmp_path/'next')
    shutil.copytree(folders[0], tmp_path/'live')
    data, codes, labels, stop = png(images[0]), [], [], threading.Event()
    def client():
        while not stop.is_set():
            status, found = ask(port, 'POST', '/predict', data, 'image/png')
            codes.append(status); labels.append(found['predictions'][0]['label'])
    with serving(tmp_path/'live') as (_, port):
        threads = [threading.Thread(target=client) for _ in range(2)]
        for t in threads: t.start()
        os.rename(tmp_path/'live', tmp_path/'was'); os.rename(tmp_path/'next', tmp_path/'live')
        until = time.time() + 20
        while 'nut' not in labels and time.time() < until: time.sleep(.1)
        stop.set()
        for t in threads: t.join()
    assert {*codes} == {200} and labels[0] == 'bolt' and labels[-1] == 'nut'


def raw(port, data):
    "What comes back for bytes on a socket, as far as the other side sends any"
    with socket.create_connection(('127.0.0.1', port), timeout=20) as s, contextlib.suppress(OSError):
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        return s.recv(200)
    return b''


def test_hostile_requests_are_refused_and_leave_nothing_behind(folders, images):  # noqa: F811
    rng, good = np.random.default_rng(0), png(images[0])
    def fuzzed():
        data = bytearray(good)
        for at in rng.integers(0, len(good), 20): data[at] = rng.integers(256)
        return bytes(data[:rng.integers(1, len(data))])
    post = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n'
    lines = [b'GET /' + b'a'*500_000 + b' HTTP/1.1\r\n\r\n', b'GET / HTTP/1.1\r\nX: ' + b'b'*2_000_000 + b'\r\n\r\n',
             post + b'Content-Length: -1\r\n\r\n', post + b'Content-Length: 99\r\n\r\nx', rng.bytes(500),
             b'\x16\x03\x01', post + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n']
    bodies = [b'{', b'[', b'null', b'{"images": 3}', b'{"images": [["a"]]}', b'['*100_000,
              b'\xff\xfe', b'{"images": [""]}']
    codes = []
    with serving(folders[0], '--seconds', 5) as (p, port):
        memory = psutil.Process(p.pid).memory_info
        for round_ in range(4):
            for _ in range(60): codes.append(ask(port, 'POST', '/predict', fuzzed(), 'image/png'))
            for b in bodies: codes.append(ask(port, 'POST', '/predict', b, 'application/json'))
            for b in lines: assert b' 200 ' not in raw(port, b)[:20]
            if round_ == 1: before = memory().rss
        assert ask(port, 'POST', '/predict', good, 'image/png')[0] == 200
        assert p.poll() is None and memory().rss < before*1.05 + 10e6
    assert {c for c,_ in codes} <= {200, 400, 422} and len(codes) > 250
    assert all(why['error'] for c,why in codes if c != 200)


def test_a_port_that_cannot_be_had_is_named_before_a_model_is_loaded(folders):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        for port in (taken.getsockname()[1], 99_999):
            done = subprocess.run([sys.executable, '-c', NO_TORCH, 'serve', folders[0], '--port', str(port)],
                                  capture_output=True, text=True, timeout=60)
            assert done.returncode == 2 and f'127.0.0.1:{port} cannot be listened on' in done.stderr, done.stderr
