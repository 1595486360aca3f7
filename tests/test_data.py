"""Whatever is wrong with a folder of images is said in one message that names the place; what is right is read exactly,
and split fairly."""
import ast
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from tl_notebooks.core import InputError
from tl_notebooks.data.decode import open_image
from tl_notebooks.data.images import read_images
from tl_notebooks.data.problems import KINDS, Problem, problem_report
from tl_notebooks.data.splits import split_items

REAL = Path(__file__).parents[1].parent/'shared'/'data'


# ---- writers that are not this project's
# ------------------------------------------------------------------------------

def png(pixels, depth, colour, extra=b''):
    "A PNG from an (h, w, channels) array of `depth` bits, by the PNG specification"
    h, w, c = pixels.shape
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    if depth == 16: lines = pixels.astype('>u2').reshape(h, -1).view('u1')
    elif depth == 8: lines = pixels.astype('u1').reshape(h, -1)
    else:
        bits = np.unpackbits(pixels.astype('u1')[..., None], axis=-1)[..., 8-depth:].reshape(h, -1)
        lines = np.packbits(bits, axis=1)
    body = b''.join(b'\0' + l.tobytes() for l in lines)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + extra
            + chunk(b'IDAT', zlib.compress(body)) + chunk(b'IEND', b''))

def png_chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

def tiff(pixels, bits, form=1):
    "An uncompressed grey TIFF from an (h, w) array of 12, 16 or 32 bits (`form` 3: float), by the TIFF specification"
    h, w = pixels.shape
    if bits == 12:
        nibbles = np.unpackbits(pixels.astype('>u2').reshape(h, w, 1).view('u1'), axis=-1)[..., 4:].reshape(h, -1)
        body = np.packbits(nibbles, axis=1).tobytes()
    else: body = pixels.astype({16:'<u2', 32:'<i4' if form == 2 else '<f4'}[bits]).tobytes()
    tags = [(256,3,w), (257,3,h), (258,3,bits), (259,3,1), (262,3,1), (273,4,8), (277,3,1), (278,3,h),
            (279,4,len(body)), (339,3,form)]
    ifd = struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', t, k, 1, v) for t,k,
                                                  v in tags) + struct.pack('<I', 0)
    return b'II*\0' + struct.pack('<I', 8 + len(body)) + body + ifd

def saved(array, **kw):
    "Bytes of an (h, w, 3) array as Pillow writes it"
    f = io.BytesIO()
    Image.fromarray(array).save(f, **kw)
    return f.getvalue()

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (5, 7), dtype='uint8')
RGB = rng.integers(0, 256, (5, 7, 3), dtype='uint8')
RGBA = rng.integers(0, 256, (5, 7, 4), dtype='uint8')
DEEP = rng.integers(0, 65536, (5, 7), dtype='uint16')

def grey3(a): return np.repeat(np.asarray(a)[..., None], 3, axis=2)
def on_white(rgb, alpha):
    a = np.asarray(alpha)[..., None]/255
    return rgb*a + 255*(1 - a)

def palette(transparent=None):
    colours = rng.integers(0, 256, (16, 3), dtype='uint8')
    index = rng.integers(0, 16, (5, 7), dtype='uint8')
    im = Image.fromarray(index).convert('L'); im = Image.frombytes('P', im.size, index.tobytes())
    im.putpalette(colours.tobytes())
    f = io.BytesIO(); im.save(f, 'PNG', **({} if transparent is None else {'transparency': transparent}))
    want = colours[index].astype(float)
    if transparent is not None: want[index == transparent] = 255
    return f.getvalue(), want

def cmyk():
    a = rng.integers(0, 256, (5, 7, 4), dtype='uint8')
    f = io.BytesIO(); Image.frombytes('CMYK', (7, 5), a.tobytes()).save(f, 'TIFF')
    return f.getvalue(), 255*(1 - a[..., :3]/255)*(1 - a[..., 3:]/255)

def pgm(top):
    a = rng.integers(0, top + 1, (5, 7)).astype('>u2')
    return b'P5 7 5 %d\n' % top + a.tobytes(), grey3(a*(255/top))

MODES = { # name: (bytes, expected pixels, tolerance)
    'grey 1 bit': (png(GREY[..., None] & 1, 1, 0), grey3((GREY & 1)*255), 0),
    'grey 2 bit': (png(GREY[..., None] & 3, 2, 0), grey3((GREY & 3)*85), 0),
    'grey 4 bit': (png(GREY[..., None] & 15, 4, 0), grey3((GREY & 15)*17), 0),
    'grey 8 bit': (png(GREY[..., None], 8, 0), grey3(GREY), 0),
    'grey 16 bit png': (png(DEEP[..., None], 16, 0), grey3(DEEP >> 8), 0),
    'grey 16 bit tiff': (tiff(DEEP, 16), grey3(DEEP >> 8), 0),
    'grey 12 bit tiff': (tiff(DEEP >> 4, 12), grey3(DEEP >> 8), 0),
    'grey 16 bit in 32': (tiff(DEEP.astype('i4'), 32, 2), grey3(DEEP >> 8), 0),
    'grey 16 bit pgm': (*pgm(65535), 1),
    'grey 12 bit pgm': (*pgm(4095), 1),
    'float tiff': (tiff(GREY/255, 32, 3), grey3(GREY), 0),
    'colour 8 bit': (png(RGB, 8, 2), RGB, 0),
    'colour 16 bit': (png(RGB.astype(int)*256 + 77, 16, 2), RGB, 0),
    'colour with alpha': (png(RGBA, 8, 6), on_white(RGBA[..., :3], RGBA[..., 3]), 1),
    'colour with alpha 16 bit': (png(RGBA.astype(int)*257, 16, 6), on_white(RGBA[..., :3], RGBA[..., 3]), 1),
    'grey with alpha': (png(RGBA[..., :2], 8, 4), on_white(grey3(RGBA[..., 0]), RGBA[..., 1]), 1),
    'colour with a transparent one': (png(RGB, 8, 2, png_chunk(b'tRNS', struct.pack('>3H', *map(int, RGB[0,0])))),
                                      np.where((RGB == RGB[0,0]).all(-1, keepdims=True), 255, RGB), 0),
    'grey with a transparent one': (png(GREY[..., None], 8, 0, png_chunk(b'tRNS', struct.pack('>H', int(GREY[0,0])))),
                                    grey3(np.where(GREY == GREY[0,0], 255, GREY)), 0),
    'palette': (*palette(), 0),
    'palette with a transparent one': (*palette(3), 0),
    'cmyk': (*cmyk(), 1),
    'bmp': (saved(RGB, format='BMP'), RGB, 0),
    'webp': (saved(RGB, format='WEBP', lossless=True), RGB, 0),
    'jp2': (saved(RGB, format='JPEG2000'), RGB, 0),
}

@pytest.mark.parametrize('name', MODES)
def test_every_mode_becomes_the_right_rgb(name, tmp_path):
    data, want, tol = MODES[name]
    (tmp_path/'x').write_bytes(data)
    im = open_image(tmp_path/'x')
    assert im.mode == 'RGB'
    assert np.abs(np.asarray(im).astype(float) - want).max() <= tol

TURNS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1,0,2),
         6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1,0,2), 8: np.rot90}

@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('turn', TURNS)
def test_exif_orientation(turn, form, tmp_path):
    exif = Image.Exif(); exif[0x0112] = turn
    kw = {'lossless': True} if form == 'WEBP' else {}
    plain = np.asarray(Image.open(io.BytesIO(saved(RGB, format=form, **kw))).convert('RGB'))
    (tmp_path/'x').write_bytes(saved(RGB, format=form, exif=exif.tobytes(), **kw))
    assert np.array_equal(np.asarray(open_image(tmp_path/'x')), TURNS[turn](plain))

def test_orientation_that_does_not_exist_changes_nothing(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 77
    (tmp_path/'x').write_bytes(saved(RGB, format='PNG', exif=exif.tobytes()))
    assert np.array_equal(np.asarray(open_image(tmp_path/'x')), RGB)

@pytest.mark.parametrize('value', [-1, 70000])
def test_grey_without_a_known_scale_is_refused(value, tmp_path):
    (tmp_path/'x').write_bytes(tiff(np.full((2,2), value), 32, 2))
    with pytest.raises(InputError, match='accepted in mode I: 0 to 65535'): open_image(tmp_path/'x')

def test_float_without_a_known_scale_is_refused(tmp_path):
    (tmp_path/'x').write_bytes(tiff(np.full((2,2), np.nan), 32, 3))
    with pytest.raises(InputError, match='accepted in mode F: 0 to 1'): open_image(tmp_path/'x')


# ---- damage
# -----------------------------------------------------------------------------------------------------------

y, x = np.mgrid[:24, :32]
SCENE = np.clip(np.stack([x*7, y*9, (x + y)*4], -1) + rng.integers(0, 20, (24, 32, 3)), 0, 255).astype('uint8')
WHOLE = {'jpg': dict(format='JPEG'), 'progressive jpg': dict(format='JPEG', progressive=True),
         'png': dict(format='PNG'),
         'bmp': dict(format='BMP'), 'gif': dict(format='GIF'), 'tiff': dict(format='TIFF'), 'ppm': dict(format='PPM'),
         'lzw tiff': dict(format='TIFF', compression='tiff_lzw'), 'webp': dict(format='WEBP'),
         'jp2': dict(format='JPEG2000')}

@pytest.mark.filterwarnings('ignore::UserWarning:PIL') # Pillow comments on damaged metadata
@pytest.mark.parametrize('lenient', [False, True], ids=['strict', 'lenient'])
@pytest.mark.parametrize('name', WHOLE)
def test_a_cut_file_is_noticed_or_nothing_was_lost(name, lenient, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', lenient)
    data, file, refused = saved(SCENE, **WHOLE[name]), tmp_path/'x', 0
    file.write_bytes(data); want = np.asarray(open_image(file))
    cuts = sorted({*range(1, len(data), max(1, len(data)//40)), *range(len(data) - 12, len(data))})
    for n in cuts:
        file.write_bytes(data[:n])
        try: assert np.array_equal(np.asarray(open_image(file)), want), f'{n} of {len(data)} bytes pass for the whole'
        except InputError as e: refused += 1; assert str(file) in str(e)
    assert refused >= 0.6*len(cuts)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient

@pytest.mark.filterwarnings('ignore::UserWarning:PIL') # Pillow comments on damaged metadata
@pytest.mark.parametrize('name', WHOLE)
def test_damage_never_ends_in_another_exception(name, tmp_path):
    data, r = saved(SCENE, **WHOLE[name]), random.Random(0)
    for _ in range(40):
        bad = bytearray(data)
        for _ in range(r.choice([1, 3, 10])): bad[r.randrange(len(bad))] = r.randrange(256)
        (tmp_path/'x').write_bytes(bad)
        try: open_image(tmp_path/'x', max_pixels=10**6)
        except InputError as e: assert 'cannot be read as an image (' in str(e)

def bomb(w, h):
    return b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + png_chunk(b'IDAT',
            b'x'*99)

@pytest.mark.parametrize('size', [(60000, 60000), (10000, 10000)]) # beyond, and just within, what Pillow itself refuses
def test_a_bomb_is_refused_by_its_header(size, tmp_path):
    (tmp_path/'x.png').write_bytes(bomb(*size))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(InputError, match=f'{size[0]:,} × {size[1]:,} pixels; accepted: 50,000,000'):
            open_image(tmp_path/'x.png')

def test_switches_of_pillow_are_restored_by_the_last_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    limit, passed = Image.MAX_IMAGE_PIXELS, []
    data = saved(SCENE, format='JPEG')
    (tmp_path/'half.jpg').write_bytes(data[:len(data)//2]); (tmp_path/'whole.jpg').write_bytes(data)
    def work():
        for i in range(40):
            try: open_image(tmp_path/('half.jpg' if i%2 else 'whole.jpg')); passed.append(i%2)
            except InputError: passed.append('refused')
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert Counter(passed) == {0: 80, 'refused': 80}
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS == limit


# ---- bad inputs
# -------------------------------------------------------------------------------------------------------

def solid(n, form='PNG'): return saved(np.full((6, 6, 3), (n%256, n//256, 77), 'uint8'), format=form)
CUT = saved(SCENE, format='JPEG')[:400]

def tree(root, spec): return conftest.tree(root, spec, solid)

def link(to): return lambda p: p.symlink_to(to)
GOOD = {f'{c}/{i}.png': 100*k + i for k,c in enumerate(('bolt', 'nut')) for i in range(4)}
GIVEN = {f'{s}/{c}/{i}.png': 1000*j + 100*k + i for j,s in enumerate(('train', 'valid', 'test'))
         for k,c in enumerate(('bolt', 'nut')) for i in range(3)}
def rows(*more, head='path,label', ext=''): return '\n'.join([head, *(f'{p},{p[:3]}{ext}' for p in GOOD), *more]) + '\n'
def table(*more, **kw): return {**GOOD, 'd.csv': rows(*more, **kw)}
def without(spec, *names): return {k: v for k,v in spec.items() if not k.startswith(names)}

BAD = { # name: (files, what is given below the root, fragments of the message, kind; None: not a matter of skipping)
    'zero bytes': ({**GOOD, 'nut/z.png': b''}, '', ['nut/z.png: the file has zero bytes'], 'zero bytes'),
    'truncated': ({**GOOD, 'nut/z.jpg': CUT}, '', ['nut/z.jpg: truncated after 400 bytes'], 'truncated'),
    'text as jpg': ({**GOOD, 'nut/z.jpg': 'hello'}, '', ['nut/z.jpg: not an image in a format that is read (5 bytes)'],
                    'unreadable'),
    'cut header': ({**GOOD, 'nut/z.jpg': CUT[:9]}, '', ['nut/z.jpg: truncated after 9 bytes'], 'truncated'),
    'damaged header': ({**GOOD, 'nut/z.bmp': b'BM' + b'\0'*60}, '', ['nut/z.bmp: damaged: '], 'unreadable'),
    'only a signature': ({**GOOD, 'nut/z.png': b'\x89PNG\r\n\0\0'}, '',
                         ['nut/z.png: begins like PNG, but what follows'], 'unreadable'),
    'bomb': ({**GOOD, 'nut/z.png': bomb(60000, 60000)}, '', ['nut/z.png: 60,000 × 60,000 pixels'], 'too large'),
    'pipe': ({**GOOD, 'nut/z.png': os.mkfifo}, '', ['nut/z.png: not an ordinary file'], 'unreadable'),
    'suffix': ({**GOOD, 'nut/z.docx': b'x'}, '', ["nut/z.docx: suffix '.docx'", 'Accepted: .bmp'], 'not an image'),
    'heic': ({**GOOD, 'nut/z.heic': b'x'}, '', ['nut/z.heic: not an image in a format that is read'], 'unreadable'),
    'csv beside classes': ({**GOOD, 'd.csv': 'path,label'}, '', ['d.csv: suffix',
        'to use this list, give its own path'], 'not an image'),
    'loose image': ({**GOOD, 'z.png': 9}, '', ['z.png: lies in no class folder'], 'no label'),
    'loose in split': ({**GIVEN, 'train/z.png': 9}, '', ['train/z.png: lies in no class folder'], 'no label'),
    'link out': ({**GOOD, 'nut/z.png': link('/etc/hostname')}, '', ['nut/z.png: not an image in a format'],
                 'unreadable'),
    'broken link': ({**GOOD, 'nut/z.png': link('gone.png')}, '', ['nut/z.png: a link to nothing'], 'missing'),
    'circular link': ({**GOOD, 'nut/z.png': link('z.png')}, '', ['nut/z.png: '], 'unreadable'),
    'linked folder': ({**GOOD, 'zinc': link('nut')}, '', ['zinc: a link to a folder'], 'layout'),
    'link to what it lies in': ({**GOOD, 'nut/up': link('..')}, '', ['nut/up: a link to a folder'], 'layout'),
    'two labels': ({**GOOD, 'nut/z.png': 0}, '',
                   ["nut/z.png: labelled 'nut'; same image as `bolt/0.png`, labelled 'bolt'"], 'two labels'),
    'leak': ({**GIVEN, 'test/nut/z.png': 100}, '',
             ['train/nut/0.png: in train; same image as `test/nut/z.png` in test'], 'leak'),
    'leak in another format': ({**GIVEN, 'test/nut/z.bmp': solid(100, 'BMP')}, '',
                               ['train/nut/0.png: in train; same image'], 'leak'),
    'leak into valid': ({**GIVEN, 'test/nut/z.png': 1100}, '', ['valid/nut/0.png: in valid; same image as `test'],
                        'leak'),
    'splits among classes': ({**GOOD, 'test/z.png': 9}, '',
                             ["split folders ('test') and others ('bolt', 'nut') stand side by side"], 'layout'),
    'no train': (without(GIVEN, 'train'), '', ["there is 'test', 'valid', but no folder 'train'"], 'split'),
    'valid twice': ({**GIVEN, 'val/nut/9.png': 9}, '', ["2 folders mean 'valid': 'val', 'valid'"], 'split'),
    'class only in test': ({**GIVEN, 'test/washer/z.png': 9}, '',
                           ["class 'washer' has images in valid or test, but none in train"], 'split'),
    'labels one deeper': ({f'{s}/{k}': v + 50*i for i,s in enumerate('ab') for k,v in GOOD.items()}, '',
                          ["a: its subfolders 'bolt', 'nut' could be"], 'layout'),
    'splits one deeper': ({**GOOD, 'nut/test/z.png': 9}, '',
                          ["nut: its subfolders 'test' could be what the label or split is"], 'layout'),
    'wrapped': ({f'data/{k}': v for k,v in GOOD.items()}, '',
                ["data: the only class, and it holds only folders ('bolt', 'nut')"], 'layout'),
    'case': ({**GOOD, **{f'Nut/{i}.png': 200 + i for i in range(4)}}, '',
             ["'Nut', 'nut' differ only in case or blanks"], 'spelling'),
    'blank': ({f'{k.replace("/", " /")}': v for k,v in GOOD.items()}, '', ["label 'nut ' begins or ends with a blank"],
              'spelling'),
    'unicode form': ({**{k.replace('nut', 'm\u00fctter'): v for k,v in GOOD.items()}, 'mu\u0308tter/1.png': 9}, '',
                     ['differ only in case or blanks'], 'spelling'),
    'empty class': ({**GOOD, 'washer': None}, '', ['washer: no image in it'], 'empty class'),
    'too few': ({**GOOD, 'washer/1.png': 9, 'washer/2.png': 10}, '',
                ["class 'washer' has 2 usable images to train on; at least 3"], 'too few'),
    'too few distinct': ({**GOOD, **{f'washer/{i}.png': 9 for i in range(5)}}, '',
                         ["class 'washer' has 5 usable images in 1 distinct images or groups"], 'too few'),
    'one class': ({k: v for k,v in GOOD.items() if 'nut' in k}, '', ["the only one is 'nut'"], 'one class'),
    'only images': ({'1.png': 1, '2.png': 2}, '', ['holds 2 images, but no folders that say what they show'], None),
    'only images in splits': ({'train/1.png': 1, 'test/2.png': 2}, '', ['train: 1 images, but no folders that say'],
                              'layout'),
    'nothing': ({}, '', ['holds no files, none an image'], None),
    'other files': ({'a.txt': 'x'}, '', ['holds 1 files, none an image'], None),
    'does not exist': (GOOD, 'nutt', ["does not exist. Did you mean '/", "/d/nut'?"], None),
    'zip': ({'d.zip': b'PK'}, 'd.zip', ['is an archive; unpack it first'], None),
    'tar.gz': ({'d.tar.gz': b'x'}, 'd.tar.gz', ['is an archive; unpack it first'], None),
    'image': (GOOD, 'nut/1.png', ['is a file, but not a CSV. Accepted: a folder with one subfolder per class'], None),
    'several csv': ({'a.csv': 'x', 'b.csv': 'x'}, '', ["holds 2 CSV files: 'a.csv', 'b.csv'"], None),
    'csv: no column': ({'d.csv': 'file,label\n'}, 'd.csv', ["'path' missing. Accepted: a header with path,label"],
                       None),
    'csv: near column': ({'d.csv': 'path,lable\n'}, 'd.csv', ["'label' missing", "Did you mean 'lable'?"], None),
    'csv: splits': ({'d.csv': 'path,label,splits\n'}, 'd.csv', ["'splits' is not read. Did you mean 'split'?"], None),
    'csv: Group': ({'d.csv': 'path,label,Group\n'}, 'd.csv', ["'Group' is not read. Did you mean 'group'?"], None),
    'csv: column twice': ({'d.csv': 'path,label,label\n'}, 'd.csv', ["'label' occurs twice"], None),
    'csv: empty': ({'d.csv': ' \n'}, 'd.csv', ['is empty. Accepted: a header'], None),
    'csv: no rows': ({'d.csv': 'path,label\n'}, 'd.csv', ['one class (1)', 'there is none'], 'one class'),
    'csv: unknown letters': ({'d.csv': 'path,label\nгайка.png,a\n'.encode('cp1251')}, 'd.csv',
                             ['is not UTF-8 (byte 11), UTF-16 nor Windows-1252'], None),
    'csv: open quote': ({'d.csv': 'path,label\n"a.png,nut\n'}, 'd.csv', ['cannot be read: line'], None),
    'csv: out': (table('../x.png,nut'), 'd.csv', ["../x.png: leads out of the CSV's folder (line 10)"], 'outside'),
    'csv: absolute': (table('/etc/x.png,nut'), 'd.csv', ['/etc/x.png: an absolute path; accepted: relative'],
                      'outside'),
    'csv: drive': (table('C:\\x.png,nut'), 'd.csv', ['C:/x.png: an absolute path'], 'outside'),
    'csv: link out': ({**table('z.png,nut'), 'z.png': link('/etc/hostname')}, 'd.csv',
                      ['z.png: not an image in a format'], 'unreadable'),
    'csv: missing': (table('nut/99.png,nut'), 'd.csv', ['nut/99.png: no such file (line 10)'], 'missing'),
    'csv: no path': (table(',nut'), 'd.csv', ['no path (line 10)'], 'bad row'),
    'csv: zero byte': (table('a\0.png,nut'), 'd.csv', ['line 10'], None if sys.version_info < (3,11) else 'bad row'),
    'csv: long name': (table('a'*5000 + ',nut'), 'd.csv', ['aaa…: cannot be followed: File name too long (line 10)'],
                       'unreadable'),
    'csv: a folder': (table('nut,nut'), 'd.csv', ['nut: a folder, not a file'], 'unreadable'),
    'csv: fields': (table('nut/1.png'), 'd.csv', ['line 10 has 1 fields, the header has 2'], 'bad row'),
    'csv: repeated': (table('./nut//1.png,nut'), 'd.csv', ['nut/1.png: line 10 repeats line 7'], 'bad row'),
    'csv: two labels': (table('nut/1.png,bol'), 'd.csv', ["nut/1.png: labelled 'nut' in line 7 and 'bol' in line 10"],
                        'two labels'),
    'csv: no label': (table('z.png, ') | {'z.png': 9}, 'd.csv', ['z.png: the label is empty (line 10)'], 'no label'),
    'csv: split name': (table(head='path,label,split', ext=',trian'), 'd.csv',
                        ["have the split 'trian'. Did you mean 'train'"], 'split'),
    'csv: some splits': ({**table('z.png,nut,', head='path,label,split', ext=',train'), 'z.png': 9}, 'd.csv',
                         ['1 of 9 rows have no split; fill in all or none'], 'split'),
    'csv: no train': (table(head='path,label,split', ext=',test'), 'd.csv', ["no row has the split 'train'"], 'split'),
    'csv: group leak': ({**table('z.png,nut,test,7', 'y.png,nut,train,7', head='path,label,split,group', ext=',train,'),
                         'y.png': 8, 'z.png': 9},
                        'd.csv', ['y.png: in train; same group as `z.png` in test'], 'leak'),
    'csv: one group': ({**GOOD, 'd.csv': rows(head='path,label,group', ext=',1')}, 'd.csv',
                       ['in 1 distinct images or groups'], 'too few'),
}

@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named(name, tmp_path):
    files, given, parts, kind = BAD[name]
    root = tree(tmp_path/'d', files) if files else (tmp_path/'d').mkdir() or tmp_path/'d'
    with pytest.raises(InputError) as e: read_images(root/given, progress=False)
    for part in parts: assert part in str(e.value)
    assert kind is None or f'\n{kind} (' in str(e.value)

@pytest.mark.parametrize('name', [n for n,(*_,kind) in BAD.items() if kind])
def test_skip_leaves_out_bad_files_and_never_forgives_structure(name, tmp_path):
    files, given, parts, kind = BAD[name]
    root = tree(tmp_path/'d', files)
    if not KINDS[kind][0]:
        with pytest.raises(InputError, match=f'no answer to: .*{kind}'):
            read_images(root/given, on_bad='skip', progress=False)
        return
    d = read_images(root/given, on_bad='skip', progress=False)
    assert kind in {p.kind for p in d.problems}
    assert not {p.path for p in d.problems if p.kind != 'bad row'} & set(d.items.path)
    assert d.as_json()['n_skipped'] == len(d.problems) == len(d.as_json()['skipped'])
    if given: return
    for p in d.problems: (root/p.path).unlink()
    again = read_images(root, on_bad='skip', progress=False) # what was left out had no say in anything else
    assert again.fingerprint == d.fingerprint
    json.dumps(d.as_json(), allow_nan=False)

@pytest.mark.parametrize('kw, part', [
    (dict(on_bad='warn'), "`on_bad` is 'warn'"), (dict(valid_pct=20), '`valid_pct` is 20'),
    (dict(test_pct=-.1), '`test_pct` is -0.1'),
    (dict(test_pct=float('nan')), '`test_pct` is nan'), (dict(valid_pct='0.2'), "`valid_pct` is '0.2'"),
    (dict(valid_pct=.5, test_pct=.5), 'leaves nothing to train on'), (dict(seed=-1), '`seed` is -1'),
    (dict(seed=1.5), '`seed` is 1.5'),
    (dict(max_items=0), '`max_items` is 0'), (dict(min_per_class=True), '`min_per_class` is True'),
    (dict(max_pixels=0), '`max_pixels` is 0'),
    (dict(min_per_class=5), 'at least 5 needed'), (dict(max_pixels=35), '6 × 6 pixels; accepted: 35')])
def test_parameters_are_named(kw, part, tmp_path):
    with pytest.raises(InputError) as e: read_images(tree(tmp_path, GOOD), progress=False, **kw)
    assert part in str(e.value)

def test_all_problems_come_at_once(tmp_path):
    root = tree(tmp_path, {**GOOD, 'nut/a.png': b'', 'nut/b.jpg': CUT, 'nut/c.txt': 'x', 'z.png': 5, 'washer': None,
                           'Bolt/1.png': 300})
    with pytest.raises(InputError) as e: read_images(root, progress=False)
    for kind in ('zero bytes', 'truncated', 'not an image', 'no label', 'empty class', 'spelling', 'too few'):
        assert f'\n{kind} (1)' in str(e.value)
    assert 'leave out the 4 that can be left out' in str(e.value)

def test_a_thousand_problems_fit_on_a_screen():
    text = problem_report([Problem(k, f'{i}.png', 'x') for k in ('truncated', 'missing') for i in range(500)], 'd',
                          1000)
    assert len(text.splitlines()) < 60 and 'truncated (500)' in text and text.count('… and 475 more') == 2

def test_names_that_are_not_text_stay_on_one_line(tmp_path):
    if sys.platform != 'linux': pytest.skip('only Linux allows file names that are not text')
    tree(tmp_path, GOOD)
    open(os.fsencode(tmp_path/'nut') + b'/\xff.png', 'wb').close()
    (tmp_path/'nut'/'new\nline.png').write_bytes(b'')
    with pytest.raises(InputError) as e: read_images(tmp_path, progress=False)
    assert 'the file name is not UTF-8' in str(e.value) and r'new\nline.png: the file has zero bytes' in str(e.value)
    str(e.value).encode()

def test_silent_files_and_subdivided_classes(tmp_path):
    root = tree(tmp_path, {**GOOD, 'PROVENANCE.txt': 'x', 'README.md': 'x', 'LICENSE': 'x', 'samples.json': '{}',
                           '.git/x': 'x',
                           'nut/.hidden.png': b'', 'nut/Thumbs.db': b'x', 'nut/cam1/a.png': 40,
                           'nut/cam1/deep/b.png': 41})
    d = read_images(root, progress=False)
    assert not d.problems and len(d.items) == 10 and set(d.items.label) == {'bolt', 'nut'}
    with pytest.raises(InputError, match='nut/README.md: suffix'):
        read_images(tree(tmp_path, {'nut/README.md': 'x'}), progress=False)


# ---- permissions: as root they do not bite, so a child gives its rights up
# ---------------------------------------------

def as_nobody(work):
    "The result of `work()` in a forked child without special rights"
    if not hasattr(os, 'fork'): pytest.skip('needs fork and POSIX permissions')
    r, w = os.pipe()
    if not (pid := os.fork()):
        try:
            if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
            text = work()
        except BaseException as e: text = f'{type(e).__name__}: {e}'
        os.write(w, text.encode()[:60000]); os._exit(0)
    os.close(w)
    with open(r, 'rb') as f: text = f.read().decode()
    os.waitpid(pid, 0)
    return text

@pytest.fixture
def open_tmp():
    "A temporary folder that any user can enter; pytest's own belong to one user"
    d = Path(tempfile.mkdtemp()); d.chmod(0o755)
    yield d
    for p in [d, *d.rglob('*')]:
        if p.is_dir(): p.chmod(0o755)
    shutil.rmtree(d)

def test_unreadable_folder_and_file_are_named(open_tmp):
    tree(open_tmp, {**GOOD, 'washer/1.png': 9})
    (open_tmp/'washer').chmod(0); (open_tmp/'nut'/'1.png').chmod(0)
    text = as_nobody(lambda: repr(read_images(open_tmp, progress=False)))
    assert text.startswith('InputError: ') and 'washer: cannot be opened: Permission denied' in text
    assert ('nut/1.png: cannot be opened: Permission denied' in text
            and '\nfolder (1): Make the folder readable.' in text)
    open_tmp.chmod(0)
    assert 'cannot be opened: Permission denied' in as_nobody(lambda: repr(read_images(open_tmp, progress=False)))

def test_a_read_only_folder_is_enough(open_tmp):
    tree(open_tmp, GOOD)
    for p in [*open_tmp.rglob('*'), open_tmp]: p.chmod(0o555 if p.is_dir() else 0o444)
    before = {p: p.stat().st_mtime_ns for p in open_tmp.rglob('*')}
    assert as_nobody(lambda: f'{len(read_images(open_tmp, progress=False).items)}') == '8'
    assert before == {p: p.stat().st_mtime_ns for p in open_tmp.rglob('*')}


# ---- what is read
# -----------------------------------------------------------------------------------------------------

def test_table_against_the_files_themselves(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6
    turned = saved(SCENE, format='JPEG', exif=exif.tobytes())
    d = read_images(tree(tmp_path, {**GOOD, 'nut/turned.jpg': turned, 'nut/deep.png': MODES['grey 16 bit png'][0]}),
                    progress=False)
    sums = subprocess.run(['sha256sum', *d.items.path], cwd=tmp_path, capture_output=True, text=True,
                          check=True).stdout.split()[::2]
    assert list(d.items.sha256) == sums
    assert list(d.items.columns) == ['path', 'label', 'split', 'group', 'sha256', 'width', 'height', 'mode']
    row = d.items.set_index('path').loc
    assert tuple(row['nut/turned.jpg'][['width', 'height']]) == (24, 32) # upright
    assert row['nut/deep.png']['mode'].startswith('I')
    for s in ('train', 'valid', 'test'):
        assert [f.parent.name for f in d.files(s)] == [d.classes[i] for i in d.labels(s)] == list(d.subset(s).label)

def test_csv_says_the_same_as_folders(tmp_path):
    root = tree(tmp_path, {**GIVEN, 'd.csv': 'path,label,split,note\n'
                           + ''.join(f'{p},{p.split("/")[1]},{p.split("/")[0]},x\n' for p in GIVEN)})
    by_list = read_images(root/'d.csv', progress=False)
    (root/'d.csv').rename(root/'.d.csv')
    assert read_images(root, progress=False).fingerprint == by_list.fingerprint

def test_the_order_of_rows_says_nothing(tmp_path):
    lines, got = rows().splitlines(), []
    for seed in range(3):
        random.Random(seed).shuffle(body := lines[1:])
        got.append(read_images(tree(tmp_path, {**GOOD, 'd.csv': '\n'.join([lines[0], *body])})/'d.csv', progress=False))
    assert all(d.items.equals(got[0].items) and d.fingerprint == got[0].fingerprint for d in got)

def test_a_folder_with_one_csv_is_that_csv(tmp_path):
    tree(tmp_path, {f'images/{k.replace("/", "_")}': v for k,v in GOOD.items()})
    text = 'path,label\r\n' + ''.join(f'images\\{k.replace("/", "_")},{k[:3]}\r\n' for k in GOOD)
    (tmp_path/'d.csv').write_bytes(b'\xef\xbb\xbf' + text.encode()) # as a spreadsheet on Windows writes it
    d = read_images(tmp_path, progress=False)
    assert d.classes == ['bol', 'nut'] and d.items.path.str.startswith('images/').all()

def test_labels_are_text(tmp_path):
    text = 'path,label\n' + ''.join(f'{p},{"NA" if "nut" in p else "007"}\n' for p in GOOD)
    assert read_images(tree(tmp_path, {**GOOD, 'd.csv': text})/'d.csv', progress=False).classes == ['007', 'NA']

def test_classes_are_in_natural_order(tmp_path):
    d = read_images(tree(tmp_path, {f'M{m}/{i}.png': 10*m + i for m in (10, 9, 1) for i in range(3)}), progress=False)
    assert d.classes == ['M1', 'M9', 'M10']

def test_fingerprint_knows_content_not_place(tmp_path, monkeypatch):
    d = read_images(tree(tmp_path/'a', GIVEN), progress=False)
    shutil.copytree(tmp_path/'a', tmp_path/'elsewhere')
    for p in (tmp_path/'elsewhere').rglob('*.png'): os.utime(p, (1, 1))
    real = os.scandir
    class Backwards:
        def __init__(self, p): self.e = sorted(real(p), key=lambda e: e.name, reverse=True)
        def __enter__(self): return self.e
        def __exit__(self, *a): pass
    monkeypatch.setattr(os, 'scandir', Backwards)
    with pytest.raises(InputError) as err:
        read_images(tree(tmp_path/'bad', {**GOOD, 'nut/y.txt': 'x', 'nut/z.txt': 'x'}), progress=False)
    assert str(err.value).index('nut/y.txt') < str(err.value).index('nut/z.txt')
    e = read_images(tmp_path/'elsewhere', progress=False)
    assert e.fingerprint == d.fingerprint and e.items.equals(d.items)
    monkeypatch.undo()
    changes = [lambda r: (r/'train/nut/0.png').write_bytes(solid(999)),
               lambda r: (r/'train/nut/0.png').rename(r/'train/nut/9.png'),
               lambda r: (r/'train/nut/0.png').rename(r/'train/bolt/9.png'),
               lambda r: (r/'train/nut/0.png').rename(r/'test/nut/9.png'),
               lambda r: (r/'valid/nut/0.png').unlink()]
    seen = {d.fingerprint}
    for i, change in enumerate(changes):
        shutil.copytree(tmp_path/'a', tmp_path/f'{i}'); change(tmp_path/f'{i}')
        seen.add(read_images(tmp_path/f'{i}', progress=False).fingerprint)
    assert len(seen) == 1 + len(changes)

@pytest.mark.parametrize('have, made, source', [
    ('', ['valid', 'test'], 'made'), ('train', ['valid', 'test'], 'given'), ('train test', ['valid'], 'given'),
    ('train val', ['test'], 'given'), ('Train Validation TEST', [], 'given')])
def test_missing_splits_come_out_of_train_only(have, made, source, tmp_path):
    names = have.split() or ['']
    root = tree(tmp_path, {f'{s}/{c}/{i}.png' if s else f'{c}/{i}.png': 1000*j + 100*k + i
                           for j,s in enumerate(names) for k,c in enumerate(('bolt', 'nut')) for i in range(10)})
    d = read_images(root, progress=False)
    assert (d.made, d.split_source) == (made, source)
    assert all(d.counts()[s] == {'bolt': 2, 'nut': 2} for s in made)
    from_where = d.items[d.items.split.isin(made)].path
    assert not have or from_where.str.lower().str.startswith('train/').all()
    assert sum(sum(c.values()) for c in d.counts().values()) == len(d.items) == 20*len(names)

def test_no_test_where_none_is_wanted(tmp_path):
    d = read_images(tree(tmp_path, GOOD), test_pct=0, progress=False)
    assert sum(d.counts()['test'].values()) == 0 and d.made == ['valid'] and 'there is no test split' in d.notes
    with pytest.raises(InputError, match="Did you mean 'test'"): d.subset('tests')

def test_copies_never_cross_a_split_that_is_made(tmp_path):
    many = {f'{c}/{i}_{j}.{f.lower()}': solid(100*k + i, f) for k,c in enumerate(('bolt', 'nut')) for i in range(8)
            for j in range(2) for f in ('PNG', 'BMP')}
    root = tree(tmp_path, many)
    for seed in range(5):
        d = read_images(root, seed=seed, progress=False)
        d.items['picture'] = d.items.path.str.split('_').str[0]
        assert (d.items.groupby('picture').split.nunique() == 1).all()
    assert '48 images are copies of another in the same split; kept' in d.notes

def test_groups_of_a_csv_stay_together(tmp_path):
    files = {f'{c}/{i}{j}.png': 1000*k + 10*i + j for k,c in enumerate(('bolt', 'nut')) for i in range(2)
             for j in range(10)}
    text = 'path,label,group\n' + ''.join(f'{p},{p[:3]},{int(p[-5])//2}\n' for p in files)
    d = read_images(tree(tmp_path, {**files, 'd.csv': text})/'d.csv', progress=False)
    assert (d.items.groupby('group').split.nunique() == 1).all() and d.items.group.nunique() == 5
    assert all(n for s in d.counts().values() for n in s.values())

def test_max_items_keeps_proportions(tmp_path):
    root = tree(tmp_path, {f'{c}/{i}.png': 100*k + i for k,(c,n) in enumerate({'bolt': 40, 'nut': 20,
            'few': 3}.items()) for i in range(n)})
    d = read_images(root, max_items=33, progress=False)
    assert d.items.label.value_counts().to_dict() == {'bolt': 20, 'nut': 10, 'few': 3}
    assert read_images(root, max_items=33, progress=False).fingerprint == d.fingerprint
    assert len(read_images(root, max_items=500, progress=False).items) == 63

def test_seed_decides_the_split(tmp_path):
    root = tree(tmp_path, {f'{c}/{i}.png': 100*k + i for k,c in enumerate(('bolt', 'nut')) for i in range(20)})
    a, b, c = (read_images(root, seed=s, progress=False) for s in (0, 0, 1))
    assert a.items.equals(b.items) and not a.items.split.equals(c.items.split)
    assert a.counts() == c.counts()

def test_torch_is_not_imported():
    code = ("import sys, tl_notebooks.data.images; print(sorted({'torch','torchvision','fastai','timm'} & "
            "set(sys.modules)))")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=True).stdout.strip() == '[]'


# ---- splits against scikit-learn and arithmetic
# -----------------------------------------------------------------------

def cases(n=60):
    r = random.Random(0)
    for seed in range(n):
        f = [r.uniform(.3, 1), r.uniform(.05, .5), r.uniform(.05, .5)]
        labels = [c for c in range(r.randint(2, 8)) for _ in range(r.choice([1, 2, 3, 4, 7, 30, 101]))]
        r.shuffle(labels)
        yield labels, dict(zip(('train', 'valid', 'test'), (x/sum(f) for x in f))), seed

def test_shares_are_exact_to_less_than_one_item_and_nobody_goes_without():
    for labels, fractions, seed in cases():
        got = Counter(zip(labels, split_items(labels, None, fractions, seed).tolist()))
        for c, n in Counter(labels).items():
            assert sum(got[c,s] for s in fractions) == n
            if n >= 3: assert all(got[c,s] >= 1 for s in fractions)
            if n*min(fractions.values()) >= 1: assert all(abs(got[c,s] - n*f) < 1 for s,f in fractions.items())

def test_same_shares_as_scikit_learn():
    for labels, fractions, seed in cases():
        labels = [c for c in labels if labels.count(c) >= 30]
        if len(set(labels)) < 2: continue
        f = fractions['test']
        ours = Counter(np.array(labels)[split_items(labels, None, {'train': 1 - f, 'test': f},
                                                    seed) == 'test'].tolist())
        _, test = next(StratifiedShuffleSplit(1, test_size=f, random_state=seed).split(labels, labels))
        theirs = Counter(np.array(labels)[test].tolist())
        assert all(abs(ours[c] - theirs[c]) <= 1 for c in set(labels))

def test_every_item_has_the_same_chance():
    labels, n = ['a']*20 + ['b']*10, 1500
    test = np.mean([split_items(labels, seed=s) == 'test' for s in range(n)], axis=0)
    assert np.abs(test - .2).max() < 4.5*np.sqrt(.2*.8/n)

def test_a_large_group_may_be_tested_too():
    groups = ['big']*4 + [f'{i}' for i in range(26)]
    where = Counter(split_items(['a']*30, groups, seed=s)[0].item() for s in range(300))
    # room: 18, 6 and 6
    assert all(n >= 30 for n in where.values()) and len(where) == 3 and where['train'] > where['test']

def test_groups_stay_whole_and_every_class_is_everywhere():
    r = random.Random(1)
    for seed in range(60):
        sizes = {c: [r.choice([1, 1, 2, 5, 20]) for _ in range(r.randint(3, 12))] for c in 'abcd'}
        labels = [c for c,v in sizes.items() for n in v for _ in range(n)]
        groups = [f'{c}{i}' for c,v in sizes.items() for i,n in enumerate(v) for _ in range(n)]
        s = pd.DataFrame({'label': labels, 'group': groups, 'split': split_items(labels, groups, seed=seed)})
        assert (s.groupby('group').split.nunique() == 1).all()
        assert (s.groupby('label').split.nunique() == 3).all()
        assert split_items(labels, groups, seed=seed).tolist() == s.split.tolist()

def test_groups_over_several_classes_divide_as_well_as_scikit_learn():
    ours, theirs = [], []
    for seed in range(20):
        g = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), g.integers(3, 30, 40))
        labels = g.choice(3, len(groups), p=[.6, .3, .1])
        split = split_items(labels.tolist(), groups.tolist(), seed=seed)
        assert all(len(set(split[groups == k])) == 1 for k in range(40))
        def off(test): return np.abs(np.bincount(labels[test], minlength=3)/np.bincount(labels) - .2).mean()
        ours.append(off(split == 'test'))
        _, test = next(StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups))
        theirs.append(off(test))
    assert np.mean(ours) <= np.mean(theirs) + .01

def test_a_missing_group_is_none():
    a = split_items(['a']*30, [None, '', float('nan')]*10, seed=3)
    assert Counter(a.tolist()) == {'train': 18, 'valid': 6, 'test': 6}
    with pytest.raises(ValueError, match='30 labels, but 2 groups'): split_items(['a']*30, ['x', 'y'])

@pytest.mark.parametrize('fractions', [{'train': .5, 'test': .6}, {'train': 1.2, 'test': -.2}, {'train': '1'},
                                       {'train': float('nan')}])
def test_shares_must_make_a_whole(fractions):
    with pytest.raises(InputError, match='sum to 1'): split_items(['a']*9, None, fractions)


# ---- real data
# --------------------------------------------------------------------------------------------------------

def provenance(name):
    if not (REAL/name).is_dir():
        pytest.skip(f'the data set {name} is not on this machine (it is not part of the project)')
    line = next(l for l in (REAL/name/'PROVENANCE.txt').read_text().splitlines() if l.startswith('Counts:'))
    return ast.literal_eval(line.split(':', 1)[1].strip())

def test_lego6_as_its_provenance_says():
    want = provenance('lego6')
    d = read_images(REAL/'lego6', progress=False)
    got = d.items.path.str.rsplit('/', n=1).str[0].value_counts().to_dict()
    assert got == want and not d.problems and d.classes == ['3001', '3003', '3004', '3010', '3039', '3660']
    assert d.counts()['test'] == {c: 60 for c in d.classes} and d.counts()['valid'] == {c: 30 for c in d.classes}

def test_electronic_components_as_its_provenance_says():
    want = provenance('electronic_components')
    d = read_images(REAL/'electronic_components', progress=False)
    assert d.items.label.value_counts().to_dict() == want
    assert d.counts() == {s: {c: n for c in want} for s,n in (('train', 30), ('valid', 10), ('test', 10))}
