"""Makes `tl_notebooks/data/samples`: parts and street junctions with boxes, drawn by arithmetic, and maintenance notes.

Run it as `python tests/make_samples.py [FOLDER]`; the same versions of numpy and Pillow give the same bytes.
Reviews and mails stand beside them in the package: they are written by hand.
"""
import json
import math
import random
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

def _tri(t):
    "Triangle wave of period 1, from 1 (at whole numbers) down to -1 and back"
    return np.abs(t % 1*2 - 1)*2 - 1

def _dist(x, y): return np.sqrt(x*x + y*y) # only steps that every processor rounds alike

def _angle(x, y):
    "Polar angle in turns, 0 to 1; in double precision, where processors agree to far below a grey level"
    return (np.arctan2(y.astype(np.float64), x)/(2*math.pi) % 1).astype(np.float32)

def _plate(d, thick, edge=.03):
    "Height of a sheet with outline `d` and rounded edges of radius `edge`"
    r = np.clip(d + edge, 0, edge)
    return np.where(d < 0, thick - edge + np.sqrt(np.maximum(edge*edge - r*r, 0)), 0)

def _lathe(y, r, axis):
    "Height of a lying body of revolution: radius `r` at each point, its axis at height `axis` and along x"
    return np.where(np.abs(y) < r, axis + np.sqrt(np.maximum(r*r - y*y, 0)), 0)

def _box(x, y, w, h): return np.maximum(np.abs(x) - w, np.abs(y) - h)
def _hex(x, y): return np.maximum(np.abs(x)*np.float32(.8660254) + np.abs(y)/2, np.abs(y))

_SHAPES = {}
def _part(f):
    "Register a shape: `f(x, y, r)` gives the height at table points `x`, `y`, with dimensions drawn from `r`"
    _SHAPES[f.__name__.strip('_')] = f
    return f

def _thread(x, y, R, pitch, depth, start):
    "Radius of a rod of radius `R` with a thread of `depth` where x > `start`"
    return R - depth*(.5 - .5*_tri((x + pitch*y/(4*R))/pitch))*(x > start)

def _head(x, y, r, sides):
    "Height of a bolt's (6 sides) or screw's (round) head seen from above"
    rho, a, w = _dist(x, y), r.uniform(.62, .78), r.uniform(.06, .1)
    d = (_hex(x, y) if sides else rho) - a
    H = np.where(d < 0, _plate(d, r.uniform(.3, .5), .03) - np.maximum(rho - a*.97, 0)*.8, 0)
    grips = np.abs(y) - w, np.minimum(_box(x, y, w, .4), _box(x, y, .4, w)), _hex(x, y) - .33
    grip = grips[r.integers(3)] if not sides else grips[2] + (r.random() < .6)
    if not sides: H = H*(1 - .4*(rho/a)**2)
    H = np.where((grip < 0) & (d < 0), np.maximum(H - .18, .02), H)
    return np.maximum(H, _plate(rho - .95, .07, .03)) if r.random() < .3 else H

@_part
def _bolt(x, y, r):
    if r.random() < .15: return _head(x, y, r, 6)
    R = r.uniform(.14, .22)
    A, k, start = R*r.uniform(1.55, 1.8), R*r.uniform(1.1, 1.5), r.uniform(-.75, .25)
    rod = np.minimum(_thread(x, y, R, R*r.uniform(.34, .5), R*r.uniform(.16, .24), start), R*.7 + (1 - x))
    H = _lathe(y, np.where((x > k - 1) & (x < 1), rod, 0), A)
    faces = [math.radians(r.uniform(-30, 30) + a) for a in (-60, 0, 60)]
    z = np.min([(A - y*math.sin(a))/math.cos(a) for a in faces if math.cos(a) > .05], axis=0)
    z = np.minimum(z, A*1.08 - np.maximum(.18*k - 1 - x, 0)*.5)
    wide = max(abs(math.sin(a + math.pi/6)) for a in faces)*A/math.cos(math.pi/6)
    head = np.where((_box(x + 1 - k/2, y, k/2, wide) < 0) & (z > 0), A + z, 0)
    flange = _lathe(y, np.where(np.abs(x + 1 - k) < .22*k, A*1.35, 0), A) if r.random() < .3 else 0
    return np.maximum(np.maximum(H, head), flange)

@_part
def _screw(x, y, r):
    if r.random() < .15: return _head(x, y, r, 0)
    R, k, tip = r.uniform(.13, .19), r.uniform(.16, .3), r.uniform(.25, .5)
    Rh, u = R*r.uniform(1.8, 2.3), np.clip((x + 1)/k, 0, 1)
    rod = _thread(x, y, R, R*r.uniform(.6, .95), R*r.uniform(.28, .42), r.uniform(-.7, -.1))
    rod = rod*np.clip((1 - x)/tip, 0, 1)
    form = r.integers(3)
    head = [Rh - (Rh - R)*np.clip(u*1.2 - .2, 0, 1), Rh*np.sqrt(np.maximum(1 - (1 - u)**2, 0)),
            Rh*np.clip(.8 + 3*u, 0, 1)][form]
    H = _lathe(y, np.where(x > k - 1, rod, 0), Rh)
    H = np.maximum(H, _lathe(y, np.where((x > -1) & (x < k - 1), head, 0), Rh))
    slot = (np.abs(y) < R*.25) & (x < k*.35 - 1) # the end of the slot, seen from the side
    return np.where(slot, np.minimum(H, Rh*1.1), H)

@_part
def _pin(x, y, r):
    R, bevel = r.uniform(.13, .24), r.uniform(.04, .12)
    rod = np.minimum(R, R - bevel + (1 - np.abs(x)))
    if r.random() < .5:
        at, w = r.uniform(.55, .85), r.uniform(.02, .05)
        for a in ((at,) if r.random() < .5 else (at, -at)): rod = np.where(np.abs(x - a) < w, R*.78, rod)
    head = r.random() < .45
    H = _lathe(y, np.where(np.abs(x) < 1, rod, 0), R*1.5)
    if head:
        k, Rh = r.uniform(.09, .18), R*r.uniform(1.45, 1.8)
        H = np.maximum(H, _lathe(y, np.where((x > -1) & (x < k - 1), np.minimum(Rh, Rh - .04 + (x + 1)), 0), R*1.5))
    hole = _dist(x - r.uniform(.5, .7), y) - R*r.uniform(.35, .45)
    return np.where(hole < 0, R*.5, H) if r.random() < .5 else H

@_part
def _spring(x, y, r):
    R, n = r.uniform(.2, .36), int(r.integers(7, 14))
    pitch = 2/n
    w = pitch*r.uniform(.15, .24)
    def strands(sign, shift): # wires from (0, -R) to (pitch/2, R), or back for the lower half
        t = np.clip(y/R, -1, 1)
        c = x - sign*t*pitch/4 - shift*pitch
        c = c - pitch*np.clip(np.round(c/pitch), -(n//2) + (n % 2 == 0), n//2 - (n % 2 == 0)*shift*2)
        d = _dist(c/math.hypot(1, pitch/(4*R)), np.maximum(np.abs(y) - R, 0))
        return np.where(d < w, sign*R*np.sqrt(np.maximum(1 - t*t, 0)) + np.sqrt(np.maximum(w*w - d*d, 0)) + R + w, 0)
    return np.maximum(strands(1, 0), strands(-1, .5))

@_part
def _nut(x, y, r):
    rho, flange = _dist(x, y), r.random() < .25
    a, t = r.uniform(.78, .86)*(.82 if flange else 1), r.uniform(.3, .5)
    hole = a*r.uniform(.48, .62)
    d = np.maximum(_hex(x, y) - a, hole - rho)
    H = _plate(d, t, .025) - np.maximum(rho - a, 0)*.8 - np.maximum(hole*1.14 - rho, 0)*1.2
    H = np.where(d < 0, H, 0)
    turns = t*(.55 + .5*(rho/hole - 1)) + .03*_tri(rho/(hole*.055))
    H = np.maximum(H, np.where((rho < hole) & (rho > hole*.84), turns, 0))
    return np.maximum(H, _plate(np.maximum(rho - .98, hole - rho), .12, .05)) if flange else H

@_part
def _wing_nut(x, y, r):
    x = np.abs(x)
    a, w = math.radians(r.uniform(30, 65)), r.uniform(.19, .26)
    c, s, cx, cy = math.cos(a), math.sin(a), r.uniform(.52, .64), -.3
    u, v = (x - cx)*c - (y - cy)*s, (x - cx)*s + (y - cy)*c
    ear = np.sqrt(u*u/3 + v*v) - w                          # an ellipse that leans outward
    n = math.hypot(cx - .2, cy - .15)
    arm = np.abs((x - .2)*(cy - .15) - (y - .15)*(cx - .2))/n - w*.75
    arm = np.maximum(arm, np.maximum(x - cx, .15 - x))
    H = np.maximum(_plate(ear, .36, .1), _plate(arm, .36, .08))
    return np.maximum(H, _lathe(x, (.27 + .15*(y + .16))*((y > -.16) & (y < .5)), .3))

@_part
def _washer(x, y, r):
    rho, outer = _dist(x, y), r.uniform(.86, .96)
    inner, thick = outer*r.uniform(.42, .62), r.uniform(.07, .14)
    d = np.maximum(rho - outer, inner - rho)
    form = r.random()
    if form < .2: # star: teeth inside or outside that bite
        teeth = .10*np.clip(.5 - 2*_tri(_angle(x, y)*int(r.integers(9, 16))), 0, 1)
        d = np.maximum(rho - outer + teeth, inner - rho) if form < .1 else np.maximum(rho - outer, inner + teeth - rho)
    if form > .75: # split: a gap and ends that stand up
        d = np.maximum(d, np.where(x > 0, .05 - np.abs(y + .2*(rho - .7)), -1))
        return _plate(d, thick + .1 + .08*np.sign(y)*np.clip(x, 0, 1), .04)
    return _plate(d, thick, r.uniform(.02, .06))

@_part
def _bearing(x, y, r):
    rho, bore, t = _dist(x, y), r.uniform(.3, .42), r.uniform(.26, .38)
    lip, rim = bore + r.uniform(.1, .15), .94 - r.uniform(.1, .15)
    H = np.maximum(_plate(np.maximum(rho - .94, rim - rho), t, .035), _plate(np.maximum(rho - lip, bore - rho), t,
            .035))
    mid, half = (lip + rim)/2, (rim - lip)/2
    gap = np.abs(rho - mid)
    if r.random() < .45: # a shield with a step
        return np.maximum(H, np.maximum(_plate(gap - half*.96, t*.8 - .06, .01), _plate(gap - half*.62, t*.8, .02)))
    n = int(math.pi*mid/half*r.uniform(.6, .8))
    ball2 = gap*gap + ((_angle(x, y)*n % 1 - .5)*rho*(2*math.pi/n))**2
    ball = np.where(ball2 < .9*half*half, t*.35 + .9*np.sqrt(np.maximum(.9*half*half - ball2, 0)), 0)
    return np.maximum(np.maximum(H, ball), np.maximum(_plate(gap - half*.97, t*.25, .01),
                                                      _plate(gap - half*.5, t*.55, .02)))

@_part
def _gear(x, y, r):
    rho, turn, n = _dist(x, y), _angle(x, y), int(r.integers(12, 33))
    tooth, t, bore = min(3.4/n, .2), r.uniform(.2, .34), r.uniform(.16, .3)
    d = (rho - .96 + tooth*np.clip(.5 - r.uniform(1.2, 1.7)*_tri(turn*n), 0, 1))*.8
    d = np.maximum(d, bore - rho)
    if r.random() < .5: d = np.maximum(d, -_box(x, y - bore, bore*.28, bore*.35))
    web = rho < .92 - 2*tooth
    if r.random() < .4:
        k = int(r.integers(4, 7))
        spot = _dist(rho - (bore + .94 - 2*tooth)/2 - .03, ((turn*k % 1) - .5)*rho*(2*math.pi/k))
        d = np.maximum(d, (.8 - tooth*2 - bore)*.3 - spot)
    H = _plate(d, t, .02)
    if r.random() < .6: H = np.where(web & (rho > bore + .12) & (d < 0), H - t*r.uniform(.3, .5), H)
    return np.where((rho < bore + .12) & (d < 0), H + r.uniform(0, .12), H)

@_part
def _bracket(x, y, r):
    w, t, long = r.uniform(.2, .29), r.uniform(.08, .14), r.uniform(.72, .95)
    x, y = x + .55, y + .55
    d = np.minimum(_box(x - long*.75, y, long*.75 + w, w), _box(x, y - .78, w, .78 + w))
    size, sink = w*r.uniform(.3, .45), r.random() < .5
    holes = np.min([_dist(x - a, y - b) for a, b in ((long*1.45, 0), (long*.75, 0), (0, .8), (0, 1.5))], axis=0) - size
    H = _plate(np.maximum(d, -holes), t, .025)
    if sink: H = np.where((holes < size*.6) & (H > 0), np.maximum(t*.3, H - (size*.6 - holes)*.5), H)
    if r.random() < .35: H = np.where((y < .07 - w) & (d < 0), t + .3, H)
    return H

PARTS = tuple(_SHAPES)

def _noise(r, size, nx, ny=None):
    "(size, size) smooth noise with about `nx` by `ny` bumps, values around 0 and mostly within ±1"
    a = r.random((int(ny or nx) + 1, int(nx) + 1), dtype=np.float32)*2 - 1
    return np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling.BICUBIC))

def _fractal(r, size, n): return sum(_noise(r, size, n*2**i)/2**i for i in range(4))/1.6

def _belt(r, u, v, s): return .5 + .2*_tri(u*r.uniform(14, 34))*_tri(v*r.uniform(14, 34)) + .15*_fractal(r, s, 4)
def _wood(r, u, v, s):
    grain = _noise(r, s, 2, 5)
    return .5 + .22*_tri(v*r.uniform(2, 5) + grain*.5 + .15*_noise(r, s, 3, 30)) + .25*_noise(r, s, 5, s//4)
def _paper(r, u, v, s):
    lines = (_tri(u*r.integers(3, 9)) > .965) | (_tri(v*r.integers(3, 9)) > .965)
    return .5 + .12*_fractal(r, s, 8) - .5*lines*(r.random() < .4)
def _paint(r, u, v, s): return .5 + .10*_noise(r, s, s//5) + .15*_fractal(r, s, 2)
def _brushed(r, u, v, s): return .5 + .35*_noise(r, s, 4, s//3) + .2*_fractal(r, s, 2)
def _concrete(r, u, v, s): return .5 + .35*_fractal(r, s, 5) + .2*_noise(r, s, s//3)
_GROUNDS = {_belt: ('#1c1f22 #3c4145', '#16302a #2f5c4c', '#1f2c44 #3b5277'),
    _wood: ('#8a5a33 #c79762', '#5b3a22 #94683f', '#b58a5a #e3c497'),
    _paper: ('#d8d5cc #f4f2ea', '#c2a078 #d9bb92', '#b9bec2 #e4e7e8'),
    _paint: ('#27517a #4d7fae', '#7a2f2a #a9564d', '#3f6a4a #6d9a76', '#8d8f8c #b9bbb6', '#b58a22 #dcb449'),
    _brushed: ('#6d7176 #a4a9ae', '#4a4c50 #85888c'), _concrete: ('#6f6c66 #a8a49b', '#4b4a49 #7e7b77')}

def _rgb(code): return np.array([int(code[i:i+2], 16) for i in (1, 3, 5)], np.float32)/255

def _ground(r, size):
    "(size, size, 3) colours of a surface of random kind, colour and direction"
    make = list(_GROUNDS)[r.integers(len(_GROUNDS))]
    dark, light = (_rgb(c) for c in _GROUNDS[make][r.integers(len(_GROUNDS[make]))].split())
    v, u = np.mgrid[:size, :size].astype(np.float32)/size
    a = r.uniform(-.15, .15)
    m = np.rot90(make(r, u + a*v, v - a*u, size), r.integers(4)).astype(np.float32)
    return dark + m[..., None]*(light - dark)

_METALS = tuple(map(_rgb, '#a9adb3 #c6cacd #8c8f94 #cfa95a #c08a66 #34363a #4a4542 #c9b878 #6f7f9c'.split()))

def _soft(a, k):
    "Blur `a` over about `k` pixels"
    n = max(2, round(len(a)/k))
    im = Image.fromarray(np.ascontiguousarray(a, np.float32)).resize((n, n), Image.Resampling.BOX)
    return np.asarray(im.resize(a.shape[::-1], Image.Resampling.BICUBIC))

def _shift(a, dx, dy):
    "`a` moved by whole pixels, edges repeated: the value at (y, x) is that of `a` at (y-dy, x-dx)"
    n = len(a)
    m = max(abs(dx), abs(dy))
    return np.pad(a, m, mode='edge')[m-dy:m-dy+n, m-dx:m-dx+n]

def _shadow(H, lx, ly, slope, soft, steps=8):
    """How much lamp light is blocked, 0 to 1.

    H      : (n, n) float32 heights in pixels
    lx, ly : unit vector on the table towards the lamp; `slope` is the ray's rise per pixel
    soft   : width of the half-shadow in pixels
    """
    S, reach = np.zeros_like(H), float(H.max())/slope
    for t in reach*(np.arange(steps) + .7)/steps:
        S = np.maximum(S, np.clip((_shift(H, -round(lx*t), -round(ly*t)) - H - t*slope)*.4, 0, 1))
    return np.clip(_soft(S, soft), 0, 1)

def _zoom(a, n): return np.asarray(Image.fromarray(a).resize((n, n), Image.Resampling.BILINEAR))

def _mirror(gx, nz, toward, lamp, rough, r):
    "Brightness of the room and of the lamp in a surface with normal height `nz`, leaning `toward` the lamp"
    up, side = 2*nz*nz - 1, 2*nz*toward
    room = .30 + .25*np.clip(up, 0, 1) + .35*np.clip(1.6*side, -.6, 1) + .16*_tri(side*1.3 + gx*nz*.7 + r.uniform(0, 1))
    glint = np.clip(up*lamp[2] + side*math.hypot(*lamp[:2]), 0, 1)
    for _ in range(3): glint = glint*glint
    return room, glint*(glint*(1 - rough) + rough)*(1 - .6*rough)

def _light(H, ground, metal, r):
    """Colours of a part lit from a random side.

    H : (n, n) float32 heights in pixels; ground : (n, n, 3); metal : (3,). Returns (n, n, 3) float32, 1 is white.
    Source: Blinn 1977, Models of light reflection for computer synthesized pictures.
    """
    n, a, slope, rough = len(H), r.uniform(0, 2*math.pi), r.uniform(.6, 1.6), r.uniform(.1, .6)
    lx, ly, lz = lamp = [c/math.hypot(1, slope) for c in (math.cos(a), math.sin(a), slope)]
    # grain, and never quite flat
    G = H + rough*.22*_noise(r, n, n//3, n//r.integers(3, 30)) + .8*_noise(r, n, 9)*(H > 0)
    P = np.pad(G, 1, mode='edge')
    gx, gy = np.clip((P[1:-1, 2:] - P[1:-1, :-2])/2, -4, 4), np.clip((P[2:, 1:-1] - P[:-2, 1:-1])/2, -4, 4)
    nz = 1/np.sqrt(1 + gx*gx + gy*gy)
    toward = -(gx*lx + gy*ly)*nz
    facing = np.clip(lz*nz + toward, 0, 1)
    lit = 1 - r.uniform(.55, .85)*_zoom(_shadow(H[::2, ::2]/2, math.cos(a), math.sin(a), slope, r.uniform(3, 9)), n)
    crease = np.clip(1 + (H - _soft(H, n/24))*(6/n) - .35*(H == 0)*_soft(H > 0, n/20), .35, 1.1)
    room, glint = _mirror(gx, nz, toward, lamp, rough, r)
    part = metal*(1.25*crease*(.3*facing + room*(.6 + .4*lit)))[..., None] + (r.uniform(.35, .9)*glint*lit)[..., None]
    table = ground*((.45 + .65*facing*lit)*np.clip(crease, 0, 1))[..., None]
    return np.where((H > 0)[..., None], part*(.45 + .55*lit)[..., None], table)

def _slant(rgb, H, vx, vy):
    "The view from a slant: what is `h` pixels high moves by `h*(vx, vy)`, upper layers over lower ones"
    n, tilt = len(H), max(math.hypot(vx, vy), 1e-6)
    source = np.arange(n*n, dtype=np.int32).reshape(n, n)
    seen = source.copy()
    for t in np.arange(1, float(H.max())*tilt + 1.5, 1.5).tolist():
        dx, dy = round(vx*t/tilt), round(vy*t/tilt)
        np.copyto(seen, _shift(source, dx, dy), where=_shift(H, dx, dy) >= t/tilt)
    return rgb.reshape(-1, 3)[seen]

def _layer(n, draw_on, soft=.6):
    "(n, n, 1) opacity, 0 to 1, of what `draw_on` draws in white"
    im = Image.new('L', (n, n))
    draw_on(ImageDraw.Draw(im))
    return np.asarray(im.filter(ImageFilter.GaussianBlur(soft)), np.float32)[..., None]/255

def _scratches(d, n, r):
    for _ in range(r.integers(0, 7)):
        (x, y), (dx, dy) = r.uniform(0, n, 2), r.normal(0, n/8, 2)
        d.line([x, y, x + dx, y + dy], fill=int(r.integers(60, 160)))
    for x, y in r.uniform(0, n, (r.integers(0, 25), 2)): d.point([x, y], fill=int(r.integers(100, 255)))

def _chips(d, n, r):
    for _ in range(r.integers(1, 6)):
        (x, y), w, (a, b) = r.uniform(0, n, 2), r.uniform(.01, .035)*n, sorted(r.uniform(0, 360, 2))
        d.arc([x - w, y - w*.7, x + w, y + w*.7], a, b, fill=int(r.integers(150, 255)), width=int(r.integers(1, 4)))

def _corner(d, n, r):
    a, near = r.uniform(0, 2*math.pi), r.uniform(.4, .5, 2)
    at = [(a - .8, near[0]), (a + .8, near[1]), (a + .8, 2), (a - .8, 2)]
    d.polygon([(n/2 + math.cos(b)*q*n, n/2 + math.sin(b)*q*n) for b, q in at], fill=255)

def _dirt(rgb, r):
    "Scratches, dust, sometimes chips, and now and then an obstacle across a corner, drawn over (n, n, 3) colours"
    n, things = len(rgb), '#e9e4d6 #2b2b2d #c9b98f #8a8d90 #b4574a #d8dde0'.split()
    rgb = rgb + _layer(n, lambda d: _scratches(d, n, r))*np.float32(r.choice([-.35, .4]))
    if r.random() < .35: rgb = rgb + _layer(n, lambda d: _chips(d, n, r))*(.75 - rgb)
    if r.random() < .12: rgb = rgb + _layer(n, lambda d: _corner(d, n, r), n/90)*(_rgb(r.choice(things)) - rgb)
    return rgb

def _photo(rgb, n, r):
    "8-bit photograph, (n, n) pixels, of the scene `rgb`"
    v, u = np.mgrid[:len(rgb), :len(rgb)].astype(np.float32)/len(rgb) - .5
    gain = r.uniform(.8, 1.2)*(1 - r.uniform(0, .7)*(u*u + v*v) + r.uniform(-.25, .25)*u + r.uniform(-.25, .25)*v)
    rgb = rgb*gain[..., None]*r.uniform([.94, .97, .9], [1.06, 1.03, 1.1]).astype(np.float32)
    rgb = rgb*1.3/(1 + .3*rgb)
    im = Image.fromarray((np.clip(rgb, 0, 1)*255).astype(np.uint8)).resize((n, n), Image.Resampling.BOX)
    a = np.asarray(im.filter(ImageFilter.GaussianBlur(r.uniform(0, .9))), np.float32)
    for channels, most in ((1, 6), (3, 3)): a = a + r.standard_normal((n, n, channels), np.float32)*r.uniform(.5, most)
    return Image.fromarray(np.clip(a + .5, 0, 255).astype(np.uint8))

def _place(r, size):
    "Table coordinates x, y of each pixel, as seen from a random place, and the pixels per unit"
    s, a = size/2*r.uniform(.48, .9), r.uniform(0, 2*np.pi)
    v, u = np.mgrid[:size, :size].astype(np.float32) + .5
    off = np.clip(r.normal(0, .07 if r.random() < .85 else .16, 2), -.26, .26)*size
    u, v = u - float(size/2 + off[0]), v - float(size/2 + off[1])
    w = 1 + (u*r.uniform(-.3, .3) + v*r.uniform(-.3, .3))/size
    u, v, c, d = u/(w*s), v/(w*s), math.cos(a), math.sin(a)
    return c*u + d*v, c*v - d*u, s

def draw_part(
    kind:str,      # One of `PARTS`
    seed:int,      # Which picture of that kind, 0 or more; the same seed gives the same picture
    size:int=160,  # Width and height in pixels
) -> Image.Image:  # RGB
    "A photograph-like picture of a part: random build, metal, place, light, background and camera"
    r, n = np.random.default_rng([seed, zlib.crc32(kind.encode())]), size*3//2 # drawn larger, then shrunk: smooth edges
    x, y, scale = _place(r, n)
    H = np.maximum(_SHAPES[kind](x, y, r.spawn(1)[0]), 0).astype(np.float32)*scale
    metal = _METALS[r.integers(len(_METALS))]*np.float32(r.uniform(.85, 1.1))
    tilt, toward = r.uniform(0, .4), r.uniform(0, 2*math.pi)
    rgb = _slant(_light(H, _ground(r, n), metal, r), H, tilt*math.cos(toward), tilt*math.sin(toward))
    return _photo(_dirt(rgb, r), size, r)

SCENE_CLASSES = ('car', 'pedestrian', 'cyclist')

class _View:
    "A camera: pixels of points at `a`, `b` on the ground and `y` metres above it"
    def __init__(self, r, w, h):
        self.w, self.h, self.f, self.up = w, h, w*r.uniform(.75, 1.25), r.choice([r.uniform(1.6, 2.6), r.uniform(3, 7)])
        self.cx, self.horizon = w*r.uniform(.42, .58), h*r.uniform(.24, .42) - h*.015*(self.up - 3)
        turn = math.radians(r.uniform(-38, 38))
        self.c, self.s, self.x0, self.z0 = math.cos(turn), math.sin(turn), r.uniform(-3, 3), r.uniform(8, 20)
    def camera(self, a, b): return self.x0 + self.c*a - self.s*b, self.z0 + self.s*a + self.c*b
    def px(self, a, b, y=0.):
        x, z = self.camera(a, b)
        return self.cx + self.f*x/z, self.horizon + self.f*(self.up - y)/z
    def scale(self, a, b): return self.f/self.camera(a, b)[1] # pixels per metre
    def eye(self): return -self.c*self.x0 - self.s*self.z0, self.s*self.x0 - self.c*self.z0
    def face(self, points, near=1.):
        "Pixels of a polygon of points (a, b, y), cut off where it comes too near"
        cam, out = [(*self.camera(a, b), self.up - y) for a,b,y in points], []
        for (x,z,y), (u,v,w) in zip(cam, cam[1:] + cam[:1]):
            if z >= near: out.append((x/z, y/z))
            if (z >= near) != (v >= near):
                t = (near - z)/(v - z)
                out.append(((x + t*(u - x))/near, (y + t*(w - y))/near))
        return [(self.cx + self.f*x, self.horizon + self.f*y) for x,y in out]

class _Pen:
    "Draws on a picture and on the map of what is seen where"
    def __init__(self, w, h):
        self.size, self.im, self.ids, self.id, self.whole = (w, h), Image.new('RGB', (w, h)), Image.new('L',
                (w, h)), 0, {}
        self.sheets, self.fog, self.mist = [ImageDraw.Draw(self.im), ImageDraw.Draw(self.ids)], np.ones(3), 0.
    def begin(self, id=0, distance=0., fog=None, reach=220.):
        "What follows belongs to object `id`, 0 for scenery"
        self.id, self.mist, self.sheets = id, 1 - math.exp(-distance/reach), self.sheets[:2]
        if id: self.whole[id] = Image.new('1', self.size); self.sheets.append(ImageDraw.Draw(self.whole[id]))
    def _fills(self, c):
        c = np.clip(np.asarray(c)*(1 - self.mist) + self.fog*self.mist, 0, 1)*255
        return tuple(int(v) for v in c), self.id, 1
    def poly(self, points, c):
        p = [(round(x), round(y)) for x,y in points]
        if len(p) > 2:
            for d,fill in zip(self.sheets, self._fills(c)): d.polygon(p, fill=fill)
    def line(self, points, c, width):
        p, k = [(round(x), round(y)) for x,y in points], max(1, round(width))
        for d,fill in zip(self.sheets, self._fills(c)): d.line(p, fill=fill, width=k, joint='curve' if k > 3 else None)
        if k > 3:
            for x,y in (p[0], p[-1]): self.oval(x, y, k/2, k/2, c)
    def oval(self, x, y, rx, ry, c):
        box = [round(x - rx), round(y - ry), max(round(x + rx), round(x - rx)), max(round(y + ry), round(y - ry))]
        for d,fill in zip(self.sheets, self._fills(c)): d.ellipse(box, fill=fill)

def _hull(points):
    "Corners of the convex hull, in order"
    p, out = sorted({(round(x), round(y)) for x,y in points}), []
    if len(p) < 3: return [p[0], *p] # too far away to be more
    for sweep in (p, p[::-1]):
        half = []
        for q in sweep:
            while len(half) > 1 and (half[-1][0] - half[-2][0])*(q[1] - half[-2][1]) <= (half[-1][1]
                    - half[-2][1])*(q[0] - half[-2][0]):
                half.pop()
            half.append(q)
        out += half[:-1]
    return out

_CARS = dict( # length, outline (share of the length from the back, height), side windows
    sedan=(4.5, [(0,.35),(0,.85),(.03,.98),(.17,1.02),(.29,1.4),(.56,1.43),(.74,1.0),(.96,.82),(1,.66),(1,.35)],
           [[(.25,1.04),(.31,1.34),(.43,1.36),(.43,1.04)], [(.46,1.04),(.46,1.36),(.56,1.35),(.69,1.03)]]),
    hatch=(3.9, [(0,.35),(0,.9),(.04,1.08),(.15,1.47),(.55,1.52),(.75,1.04),(.96,.86),(1,.66),(1,.35)],
           [[(.12,1.08),(.2,1.4),(.38,1.43),(.38,1.06)], [(.41,1.06),(.41,1.43),(.55,1.43),(.69,1.06)]]),
    suv=(4.6, [(0,.45),(0,1.05),(.03,1.2),(.1,1.72),(.6,1.76),(.75,1.2),(.96,1.08),(1,.85),(1,.45)],
         [[(.1,1.22),(.14,1.62),(.36,1.66),(.36,1.22)], [(.39,1.22),(.39,1.66),(.59,1.67),(.7,1.22)]]),
    van=(5.2, [(0,.4),(0,1.95),(.03,2.1),(.74,2.1),(.88,1.3),(.98,1.05),(1,.8),(1,.4)],
         [[(.68,1.3),(.68,1.85),(.76,1.85),(.85,1.3)]]),
    pickup=(5.1, [(0,.5),(0,1.05),(.37,1.05),(.41,1.65),(.6,1.7),(.73,1.15),(.97,1.05),(1,.8),(1,.5)],
            [[(.43,1.16),(.45,1.58),(.58,1.6),(.68,1.16)]]))
_PAINTS = tuple(map(_rgb,
                    '#e9e9e6 #c9ccd0 #8f949a #3d4146 #17181b #8d1f22 #b8342c #1f3f73 #3566a8 #2f5d45 #c9a13a #6d4a33 '
                    '#d9d2bd #54707c'.split()))

def _car(pen, view, a, b, angle, r, sun):
    "Draw a car that stands at `a`, `b` and heads for `angle`; returns its lamps: (a, b, y, in front?)"
    L, outline, panes = _CARS[r.choice([*_CARS])]
    wide, paint, c, s = r.uniform(.84, .93), _PAINTS[r.integers(len(_PAINTS))]*r.uniform(.85,
            1.1), math.cos(angle), math.sin(angle)
    at = lambda l, w, y: (a + c*l - s*w, b + s*l + c*w, y)
    half = lambda y: wide - .22*max(0., y - .95)
    ea, eb = view.eye(); ea, eb = ea - a, eb - b
    eye_l, side = c*ea + s*eb, 1 if c*eb - s*ea > 0 else -1
    pts, glass = [((t - .5)*L, y) for t,y in outline], np.array([.16, .2, .24])*r.uniform(.8, 1.5)
    pen.poly(_hull([view.px(*at(l, w, y)[:2], y) for l in (-L*.45, L*.45) for w in (-wide, wide) for y in (.1, .5)]),
             (.05, .05, .06))
    strips = []
    for (l,y), (m,z) in zip(pts, pts[1:]):
        if (eye_l - l)*(l*0 + z - y)*-1 + (view.up - y)*(m - l) > 0:
            pane = min(y, z) > .9 and abs(z - y) > .25
            lit = .62 + .38*max(0., (m - l)/math.hypot(m - l, z - y)) + .08*(z < y)
            strips.append((math.hypot(eye_l - (l + m)/2, view.up - (y + z)/2),
                           [at(l, -half(y), y), at(l, half(y), y), at(m, half(z), z), at(m, -half(z), z)],
                           glass if pane else paint*lit))
    for _,quad,col in sorted(strips, key=lambda q: -q[0]): pen.poly(view.face(quad), col)
    flank = lambda shape, out=0.: view.face([at((t - .5)*L, side*(half(y) + out), y) for t,y in shape])
    pen.poly(flank(outline), paint*(.72 + .2*sun))
    for p in panes: pen.poly(flank(p, .01), glass)
    pen.poly(flank([(.02, .36), (.02, .48), (.98, .48), (.98, .36)], .01), paint*.5)
    for t in (.19, .81): _wheel(pen, view, lambda x, y: at((t - .5)*L + x, side*(wide + .01), y))
    return _lamps(pen, view, at, L, wide, outline, eye_l)

def _wheel(pen, view, at):
    for radius, col in ((.34, (.05, .05, .055)), (.2, (.5, .51, .53)), (.06, (.2, .2, .2))):
        pen.poly(view.face([at(radius*math.cos(t), .34 + radius*math.sin(t))
                            for t in np.linspace(0, 2*math.pi, 13)[:-1]]), col)

def _lamps(pen, view, at, L, wide, outline, eye_l):
    "Lamps and number plate of the end that can be seen"
    front, y = eye_l > 0, .72 if outline[0][1] < .4 else .88
    if abs(eye_l) < L/2: return []
    l = (L/2 + .02)*(1 if front else -1)
    for w in (-1, 1):
        pen.poly(view.face([at(l, w*wide*k, v) for k,v in ((.62, y - .09), (.96, y - .07), (.96, y + .08),
                                                           (.66, y + .07))]),
                                                           (.95, .95, .9) if front else (.62, .06, .06))
    pen.poly(view.face([at(l, k, v) for k,v in ((-.26, .48), (.26, .48), (.26, .6), (-.26, .6))]), (.88, .88, .84))
    return [(*at(l, w*wide*.8, y), front) for w in (-1, 1)]

_CLOTHES = tuple(map(_rgb,
                     '#20242b #3b3f4a #5a3030 #8e2f2f #2c4870 #4f7396 #36543b #7b7a45 #a98b5d #d8d2c4 #c8603a #6a4a78 '
                     '#b9b9bd #101114'.split()))
_SKIN = tuple(map(_rgb, '#f0cdb0 #d9a780 #a8744f #70482f'.split()))

def _pick(r, of): return of[r.integers(len(of))]*r.uniform(.85, 1.12)

def _limb(pen, put, start, joints, c, width, s):
    "A limb as a chain of (length, angle from hanging down, forwards positive)"
    pts = [start]
    for n,t in joints: pts.append((pts[-1][0] + n*math.sin(t), pts[-1][1] - n*math.cos(t)))
    pen.line([put(*p) for p in pts], c, width*s)
    return pts[-1]

def _pedestrian(pen, x, y, s, r, tall=None):
    "Draw somebody whose feet are at pixel (x, y), with `s` pixels per metre"
    k, way, side = tall or r.choice([r.uniform(1.55, 1.9), r.uniform(1.5, 1.8),
                                     r.uniform(1.05, 1.4)])/1.75, r.choice([-1, 1]), r.random() < .6
    put = lambda u, v: (x + way*u*s*k, y - v*s*k)
    top, legs, skin, hair = _pick(r, _CLOTHES), _pick(r, _CLOTHES), _pick(r, _SKIN), _pick(r, _CLOTHES)*.6
    step, broad, d = (r.uniform(.1, .55) if side else r.uniform(.03, .12))*r.choice([-1, 1]), (.15 if side
            else .22)*r.uniform(.9, 1.2), 0 if side else .09
    s *= k
    for sign, dark in ((-1, .72), (1, 1)):
        bend = max(0., -sign*step)*.9
        foot = _limb(pen, put, (sign*d, .9), [(.43, sign*step + bend*.3), (.41, sign*step - bend)], legs*dark, .15, s)
        pen.line([put(*foot), put(foot[0] + (.13 if side else .02), foot[1])], (.07*dark, .06, .06), .09*s)
        if sign < 0:
            _limb(pen, put, (-broad*.8*(not side), 1.4), [(.29, step*.9), (.26, step*.9 + .35*side)], top*.7, .1, s)
    coat = r.random()
    hem, flare = (.5, .1) if coat < .2 else (.62, .17) if coat < .35 else (.84, 0)
    pen.poly([put(*p) for p in ((-broad*.85, 1.45), (broad*.85, 1.45), (broad, 1.2), (broad*.85 + flare, hem),
                                (-broad*.85 - flare, hem), (-broad, 1.2))], top if hem != .62 else legs)
    pen.poly([put(*p) for p in ((-broad*.85, 1.45), (0, 1.5), (broad*.85, 1.45), (broad, 1.15), (broad*.85, .95),
                                (-broad*.85, .95), (-broad, 1.15))], top)
    if r.random() < .3:
        pen.poly([put(*p) for p in ((-broad - .16, 1.4), (-broad*.6, 1.42), (-broad*.6, 1.0), (-broad - .18, 1.02))],
                 _pick(r, _CLOTHES))
    hand = _limb(pen, put, (broad*.8*(not side), 1.4), [(.29, -step*.9 if side else .12), (.26, -step*.9 + .4*side)],
                 top*.92, .1, s)
    pen.oval(*put(*hand), .05*s, .05*s, skin)
    if r.random() < .25:
        pen.poly([put(hand[0] + u, hand[1] + v) for u,v in ((-.16, -.05), (.16, -.05), (.18, -.36), (-.18, -.36))],
                 _pick(r, _CLOTHES))
    pen.line([put(0, 1.44), put(.02*side, 1.56)], skin, .09*s)
    pen.oval(*put(.02*side, 1.64), .1*s, .125*s, skin)
    pen.oval(*put(-.02*side, 1.69), .108*s, .085*s, hair)

def _bicycle(pen, x, y, s, r, turn, rider=True):
    "Draw a bicycle at pixel (x, y), seen from the side (`turn` 0) to the front (1), with its rider or without"
    narrow, way = 1 - .82*turn, r.choice([-1, 1])
    put = lambda u, v: (x + way*u*s*narrow, y - v*s)
    tube, tyre, w = _pick(r, _PAINTS), np.full(3, .07), max(1., .045*s)
    for u in (-.52, .52):
        ring = [put(u + .33*math.cos(t), .34 + .33*math.sin(t)) for t in np.linspace(0, 2*math.pi, 21)]
        pen.line(ring, tyre, max(w, .055*s*(1 + turn)))
        if narrow*s > 22:
            for t in (.3, 1.35, 2.4):
                pen.line([put(u + .3*math.cos(t), .34 + .3*math.sin(t)), put(u - .3*math.cos(t), .34 - .3*math.sin(t))],
                         (.45, .45, .47), 1)
    crank, seat, neck, bar = (-.05, .3), (-.22, .92), (.36, .86), (.4, 1.02)
    for p,q in ((crank, seat), (crank, neck), ((-.18, .8), neck), ((-.52, .34), crank), ((-.52, .34), (-.19, .84)),
                ((.52, .34), bar)):
        pen.line([put(*p), put(*q)], tube, w)
    pen.line([put(-.32, .95), put(-.1, .95)], tyre, .07*s)
    hold = .28*turn*s
    bx, by = put(*bar); pen.line([(bx - hold - .04*s, by), (bx + hold + .04*s, by)], tyre, w)
    if rider: _rider(pen, put, s, r, turn, bx, by, hold)

def _rider(pen, put, s, r, turn, bx, by, hold):
    top, legs, skin, t = _pick(r, _CLOTHES), _pick(r, _CLOTHES), _pick(r, _SKIN), r.uniform(0, 2*math.pi)
    lean, hip = r.uniform(.1, .34), (-.2, 1.0)
    neck = (hip[0] + lean + .12, 1.48 - lean*.25)
    for phase, dark, off in ((t + math.pi, .7, -1), (t, 1, 1)):
        foot = (-.05 + .17*math.cos(phase), .3 + .17*math.sin(phase))
        knee = ((hip[0] + foot[0])/2 + .24, (hip[1] + foot[1])/2 + .08)
        pts, shift = [put(*hip), put(*knee), put(*foot)], off*.11*turn*s
        pen.line([(px + shift, py) for px,py in pts], legs*dark, .14*s)
        pen.line([(pts[-1][0] + shift, pts[-1][1]), (put(foot[0] + .15, foot[1])[0] + shift, pts[-1][1])],
                 (.06, .06, .07), .08*s)
    (hx, hy), (nx, ny), broad = put(*hip), put(*neck), (.11 + .1*turn)*s
    pen.poly([(hx - broad*.85, hy + .05*s), (hx + broad*.85, hy + .05*s), (nx + broad, ny), (nx - broad, ny)], top)
    for off in (-1, 1):
        ex, ey = (nx + bx)/2 + off*(.05 + .22*turn)*s, (ny + by)/2 + .06*s
        pen.line([(nx + off*broad*.8, ny + .04*s), (ex, ey), (bx + off*hold, by)], top*(.75 if off < 0 else .95),
                 .085*s)
    x, y = put(neck[0] + .06, neck[1] + .17)
    pen.line([(nx, ny), (x, y)], skin, .09*s)
    pen.oval(x, y, .1*s, .125*s, skin)
    if r.random() < .6:
        pen.poly([(x - .125*s, y - .02*s), (x - .1*s, y - .12*s), (x, y - .165*s), (x + .1*s, y - .12*s),
                  (x + .125*s, y - .02*s)], _pick(r, _PAINTS))
    else: pen.oval(x, y - .05*s, .108*s, .085*s, _pick(r, _CLOTHES)*.6)

def _tree(pen, x, y, s, r):
    tall, wide = r.uniform(4, 7), r.uniform(1.2, 2.2)
    pen.line([(x, y), (x + r.uniform(-.2, .2)*s, y - tall*.6*s)], (.27, .2, .15), .24*s)
    leaf = np.array([r.uniform(.14, .32), r.uniform(.28, .42), r.uniform(.1, .2)])
    for u,v,k in sorted(zip(r.normal(0, .45, 22), r.uniform(.45, 1, 22), r.uniform(.3, .55, 22)), key=lambda p: p[1]):
        pen.oval(x + u*wide*s, y - v*tall*s, k*wide*s, k*wide*s*.85, leaf*(.65 + .5*v + r.uniform(-.1, .1)))

def _lamp(pen, x, y, s, r):
    pen.line([(x, y), (x, y - 6*s)], (.3, .31, .32), .13*s)
    pen.line([(x, y - 6*s), (x + .9*s, y - 6.1*s)], (.3, .31, .32), .1*s)
    pen.poly([(x + u*s, y - v*s) for u,v in ((.6, 6.18), (1.2, 6.2), (1.25, 6.02), (.62, 6))], (.85, .83, .7))

def _signal(pen, x, y, s, r):
    pen.line([(x, y), (x, y - 3.3*s)], (.22, .23, .24), .12*s)
    pen.poly([(x + u*s, y - v*s) for u,v in ((-.17, 2.4), (.17, 2.4), (.17, 3.4), (-.17, 3.4))], (.08, .09, .09))
    on = r.integers(3)
    for i,c in enumerate(((.9, .12, .1), (.95, .7, .1), (.15, .85, .35))):
        pen.oval(x, y - (3.23 - .32*i)*s, .11*s, .11*s, np.array(c)*(1 if i == on else .22))

def _bin(pen, x, y, s, r):
    c = _pick(r, _PAINTS)*.7
    pen.poly([(x + u*s, y - v*s) for u,v in ((-.26, 0), (.26, 0), (.31, .95), (-.31, .95))], c)
    pen.poly([(x + u*s, y - v*s) for u,v in ((-.35, .92), (.35, .92), (.3, 1.08), (-.3, 1.08))], c*.7)

def _hydrant(pen, x, y, s, r):
    for rx, top, c in ((.13, .7, (.7, .12, .1)), (.2, .5, (.62, .1, .09))):
        pen.poly([(x - rx*s, y), (x + rx*s, y), (x + rx*s, y - top*s), (x - rx*s, y - top*s)], c)
    pen.oval(x, y - .72*s, .14*s, .12*s, (.75, .14, .12))

def _board(pen, x, y, s, r):
    "An advertisement: a frame, a plain ground, and somebody printed on it"
    for u in (-.5, .5): pen.line([(x + u*s, y), (x + u*s, y - .8*s)], (.25, .25, .27), .1*s)
    for m, c in ((.06, np.full(3, .2)), (0, _pick(r, _PAINTS)*.5 + .45)):
        pen.poly([(x + u*s, y - v*s) for u,v in ((-.75 - m, .7 - m), (.75 + m, .7 - m), (.75 + m, 2.6 + m),
                                                 (-.75 - m, 2.6 + m))], c)
    _pedestrian(pen, x + r.uniform(-.25, .25)*s, y - .78*s, s*.93, r, 1.)
    for v in (2.42, 2.3): pen.line([(x - .6*s, y - v*s), (x + r.uniform(.1, .6)*s, y - v*s)], (.2, .2, .25), .06*s)

_THINGS = dict(tree=(_tree, 1.), lamp=(_lamp, .3), signal=(_signal, .3), bin=(_bin, .5), hydrant=(_hydrant, .3),
               board=(_board, .9),
               bicycle=(lambda pen, x, y, s, r: _bicycle(pen, x, y, s, r, r.uniform(0, .6), False), 1.))

def _street(pen, view, r, half, walk):
    "Draw the ground; `half` a road's width and the pavement's width in metres"
    def rect(a0, b0, a1, b1, c, k=1.):
        pen.poly(view.face([(a0, b0, 0), (a1, b0, 0), (a1, b1, 0), (a0, b1, 0)]), c*k)
    earth, stone, tar, paint = _pick(r, (np.array([.34, .4, .25]), np.array([.5, .47, .42]),
                                         np.array([.42, .42, .41]))), np.full(3, r.uniform(.52, .68)), np.full(3,
            r.uniform(.27, .4)), np.full(3, r.uniform(.78, .93))
    rect(-300, -300, 300, 300, earth)
    edge, far = half + walk, 300
    for k, w, c in ((0, edge, stone), (1, half + .18, stone*.72), (2, half, tar)):
        rect(-far, -w, far, w, c); rect(-w, -far, w, far, c)
    worn = r.uniform(.8, 1)
    def both(a0, b0, a1, b1):
        for f in (1, -1): rect(f*a0, b0, f*a1, b1, paint*worn); rect(b0, f*a0, b1, f*a1, paint*worn)
    for a in np.arange(half + 6.5, 90, 6): both(a, -.07, a + 3, .07)
    both(half + 4.6, -half + .3, half + 5, -.2)
    for b in np.arange(-half + .35, half - .3, .95): both(half + 1.2, b, half + 3.8, b + .5)
    for _ in range(r.integers(4, 14)):
        a, b = r.uniform(-40, 40), r.uniform(-half, half)*.9
        if r.random() < .5: a, b = b, a
        rect(a, b, a + r.uniform(.4, 3), b + r.uniform(.3, 1.4), tar, r.uniform(.8, 1.1))

def _houses(view, r, edge):
    "Footprints (a0, b0, a1, b1, height) of houses on the corners, none between camera and junction"
    out = []
    for sa in (-1, 1):
        for sb in (-1, 1):
            for along in (0, 1):
                at = edge + r.uniform(.5, 3)
                while at < 70 and r.random() < .9:
                    long, deep, back = r.uniform(8, 18), r.uniform(8, 12), edge + r.uniform(.3, 2)
                    box = sorted((sa*at, sa*(at + long))), sorted((sb*back, sb*(back + deep)))
                    if along: box = sorted((sa*back, sa*(back + deep))), sorted((sb*at, sb*(at + long)))
                    (a0, a1), (b0, b1) = box
                    if min(view.camera(a, b)[1] for a in (a0, a1) for b in (b0, b1)) > view.z0 - 3 and not any(a0 < A1
                            and A0 < a1 and b0 < B1 and B0 < b1 for A0,B0,A1,B1,_ in out):
                        out.append((a0, b0, a1, b1, r.choice([r.uniform(4, 8), r.uniform(8, 22)])))
                    at += long + r.choice([0, r.uniform(1, 9)])
    return out

def _hidden(view, houses, a, b):
    "Whether a house stands between the camera and the point"
    ea, eb = view.eye()
    return any(A0 < ea + t*(a - ea) < A1 and B0 < eb + t*(b - eb) < B1 for A0,B0,A1,B1,
               _ in houses for t in np.linspace(.2, 1, 40))

def _house(pen, view, r, h, night):
    "Draw the walls that face the camera, and their windows; returns those that are lit"
    a0, b0, a1, b1, top = h
    wall, (ea, eb) = _pick(r,
                           tuple(map(_rgb,
                                     '#b9a58a #a8563f #d8cdb8 #8b8f94 #c9b48a #9a8478 #7d8a92 #e0dcd2'.split(
            )))), view.eye()
    step, shop, lights = r.uniform(2.4, 3.6), r.random() < .5, []
    for p,q,seen,k in (((a0, b0), (a0, b1), ea < a0, .8), ((a1, b0), (a1, b1), ea > a1, .9),
                       ((a0, b0), (a1, b0), eb < b0, 1.), ((a0, b1), (a1, b1), eb > b1, .95)):
        if not seen: continue
        at = lambda t, y: (p[0] + t*(q[0] - p[0]), p[1] + t*(q[1] - p[1]), y)
        pen.poly(view.face([at(0, 0), at(1, 0), at(1, top), at(0, top)]), wall*k)
        n = int(max(abs(q[0] - p[0]), abs(q[1] - p[1]))/step)
        for y in np.arange(.5 if shop else 1., top - 1.9, 2.9):
            for i in range(n):
                lo, hi = (i + .22)/n, (i + .78)/n
                lit = night and r.random() < .3
                pane = view.face([at(lo, y), at(hi, y), at(hi, y + 1.7), at(lo, y + 1.7)])
                pen.poly(pane, (1., .9, .62) if lit else np.array([.2, .24, .3])*r.uniform(.7, 1.5))
                if lit and len(pane) > 2: lights.append(pane)
    return lights

def _spots(view, r, half, walk, houses):
    "Things and where they stand: (distance, kind, a, b, angle), at random"
    taken, out = [], []
    lane, edge = half/2, half + walk
    def turn(a, b, angle, flip): return (b, a, math.pi/2 - angle) if flip else (a, b, angle)
    def car():
        w = r.choice([-1, 1])
        if r.random() < .2:
            return turn(w*r.uniform(half + 7, 45), r.choice([-1, 1])*(half - .95), r.choice([0, math.pi]),
                        r.random() < .5)
        return turn(r.uniform(-48, 48), -w*lane + r.normal(0, .15), 0. if w > 0 else math.pi, r.random() < .5)
    def walker():
        d, flip = r.choice([-1, 1]), r.random() < .5
        if r.random() < .4: return turn(d*(half + r.uniform(1.3, 3.7)), r.uniform(-half, half), 0., flip)
        return turn(d*r.uniform(half + .5, 38), r.choice([-1, 1])*r.uniform(half + .4, edge - .3), 0., flip)
    def rider():
        w = r.choice([-1, 1])
        return turn(r.uniform(-32, 32), -w*(half - r.uniform(.5, 1.3)), 0. if w > 0 else math.pi, r.random() < .5)
    def thing():
        return turn(r.choice([-1, 1])*r.uniform(half + .8, 36), r.choice([-1, 1])*(half + r.choice([.5, walk - .4])),
                    0., r.random() < .5)
    def put(kind, where, n, room, tries=60):
        for _ in range(tries):
            if n <= 0: return
            a, b, angle = where()
            x, z = view.camera(a, b)
            if not 4.5 + 2.5*(kind == 'car') < z < 62 or abs(view.f*x/z + view.cx - view.w/2) > view.w*.5 or view.px(a,
                    b)[1] > view.h*.98:
                continue
            if any((a - p)**2 + (b - q)**2 < (room + k)**2 for p,q,k in taken) or _hidden(view, houses, a, b): continue
            taken.append((a, b, room)); out.append((z, kind, a, b, angle + r.normal(0, .04))); n -= 1
    put('car', car, r.integers(1, 8), 2.4); put('cyclist', rider, r.integers(0, 5), .8)
    put('pedestrian', walker, r.integers(0, 8), .3)
    for kind in _THINGS:
        put(kind, thing, r.integers(0, 4 if kind in ('tree', 'bicycle') else 2 if kind == 'board' else 3),
            _THINGS[kind][1]*.6)
    return sorted(out, key=lambda o: -o[0])

_LIGHTS = dict(sun=((1.04, 1., .93), '#7fb0e0 #dbe8f2'), cloud=((.86, .88, .9), '#b4bcc4 #dfe2e4'),
               dusk=((.62, .5, .48), '#5d5f86 #e0a27a'),
               rain=((.6, .63, .67), '#8a939b #b9bfc3'), night=((.27, .28, .37), '#0a0e1c #232a3e'))

def _sky(pen, view, r, kind):
    w, h = pen.size
    top, low = (_rgb(c) for c in _LIGHTS[kind][1].split())
    t = np.clip(2*np.arange(h//2)/max(view.horizon, 1), 0, 1)[:, None, None].astype(np.float32)
    cloud = np.asarray(Image.fromarray(_fractal(r, 96, 3)).resize((w//2, h//2), Image.Resampling.BICUBIC))[..., None]
    sky = top + (low - top)*t + np.clip(cloud, 0, 1)*np.float32(.05 if kind == 'night' else .22)
    pen.im.paste(Image.fromarray((np.clip(sky, 0, 1)*255).astype(np.uint8)).resize((w, h)))
    pen.fog = low

def _shadows(pen, view, r, spots, kind):
    "Grain on the ground; darker below things, and beside them where the sun is out"
    w, h = pen.size
    mask = Image.new('L', (w//2, h//2))
    d, way, long = ImageDraw.Draw(mask), r.uniform(0, 2*math.pi), r.uniform(.5, 1.8) if kind == 'sun' else .12
    for z,what,a,b,angle in spots:
        tall, l, m = dict(car=(1.4, 2.1, .85), tree=(5.5, .9, .9), lamp=(6, .06, .06), cyclist=(1.6, .8, .15),
                          bicycle=(1, .8, .08), board=(2.5, .7, .08)).get(what, (1.6, .2, .16))
        c, s = math.cos(angle), math.sin(angle)
        foot = [(a + c*i*l - s*j*m, b + s*i*l + c*j*m) for i in (-1, 1) for j in (-1, 1)]
        foot += [(p + math.cos(way)*tall*long, q + math.sin(way)*tall*long) for p,q in foot]
        if all(view.camera(p, q)[1] > 1 for p,q in foot):
            d.polygon(_hull([(x/2, y/2) for x,y in (view.px(p, q) for p,q in foot)]),
                      fill=150 if kind in ('sun', 'night') else 100)
    dark = (255 - np.asarray(mask.filter(ImageFilter.GaussianBlur(1.2)), np.float32))*(.93
            + .07*_ground_grain(r, w//2, h//2, view))
    shade = Image.fromarray(np.clip(dark, 0, 255).astype(np.uint8)).resize((w, h))
    pen.im.paste(ImageChops.multiply(pen.im, Image.merge('RGB', [shade]*3)))

def _ground_grain(r, w, h, view):
    "(h, w) noise around 0 that grows finer towards the horizon, and none above it"
    fine = r.standard_normal((h, w), np.float32)*np.float32(r.uniform(.2, .6))
    wide = np.asarray(Image.fromarray(r.standard_normal((24, 14), np.float32)).resize((w, h), Image.Resampling.BICUBIC))
    return (fine + wide)*(np.arange(h) > view.horizon/2)[:, None]

def _lighting(rgb, view, kind, lamps, spots, lit):
    "(h, w, 3) colours under the light of `kind`; at dusk and night with lamps and lit windows"
    bare, rgb = rgb, rgb*np.float32(_LIGHTS[kind][0])
    if kind not in ('night', 'dusk', 'rain') or (kind != 'night' and not lamps): return rgb
    k, (h, w) = 4, rgb.shape[:2] # pixels of the pen for one of these sheets
    sheet, glow = Image.new('L', (w//2, h//2)), Image.new('RGB', (w//2, h//2))
    d, g = ImageDraw.Draw(sheet), ImageDraw.Draw(glow)
    for p in lit: g.polygon([(x/k, y/k) for x,y in p], fill=(150, 120, 60) if kind == 'night' else (60, 45, 20))
    # what stands before a window is darker than it
    glow.paste((0, 0, 0), mask=Image.fromarray(((bare[:h//2*2:2, :w//2*2:2, 0] < .55)*255).astype(np.uint8)))
    for z,what,a,b,_ in spots if kind == 'night' else ():
        if what == 'lamp':
            x, y = view.px(a, b); s = view.scale(a, b)/k
            d.ellipse([x/k - 6*s, y/k - 1.8*s, x/k + 6*s, y/k + 1.8*s], fill=190); x, y = view.px(a, b, 6)
            g.ellipse([x/k + .5*s, y/k - .4*s, x/k + 1.4*s, y/k + .4*s], fill=(255, 220, 150))
    for a,b,y,front,angle in lamps:
        s, (x, v) = view.scale(a, b)/k, view.px(a, b, y)
        e = max(.16*s, .7)
        g.ellipse([x/k - e, v/k - e, x/k + e, v/k + e], fill=(255, 250, 225) if front else (210, 20, 15))
        far = [(a + t*math.cos(angle + q), b + t*math.sin(angle + q)) for t,
               q in ((.3, 0), (12, .28), (14, 0), (12, -.28))]
        if front and kind != 'rain' and all(view.camera(*p)[1] > 1 for p in far):
            d.polygon([(p[0]/k, p[1]/k) for p in (view.px(*q) for q in far)], fill=130)
    light = np.asarray(sheet.filter(ImageFilter.GaussianBlur(5)).resize((w, h), Image.Resampling.BILINEAR),
                       np.float32)[..., None]/255
    shine = np.asarray(glow.filter(ImageFilter.GaussianBlur(1.6)).resize((w, h), Image.Resampling.BILINEAR),
                       np.float32)/255
    return rgb*(1 + light*np.float32([3.6, 3.3, 2.5])) + shine*np.float32(1.1 if kind == 'night' else .6)

def _shot(rgb, w, h, r, kind):
    "8-bit photograph of (h, w, 3) colours"
    im = Image.fromarray((np.clip(rgb*np.float32(r.uniform(.85, 1.2)), 0, 1)*255).astype(np.uint8))
    if kind == 'rain':
        veil = Image.new('L', im.size); d = ImageDraw.Draw(veil)
        for x, y in zip(r.uniform(0, w, 260), r.uniform(0, h, 260)):
            n = r.uniform(6, 20); d.line([x, y, x + n*.2, y + n], fill=int(r.integers(15, 60)), width=1)
        im.paste((214, 218, 222), mask=veil)
    im = im.filter(ImageFilter.GaussianBlur(r.uniform(0, .7)))
    a, v = np.asarray(im, np.float32), r.uniform(0, .35)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    a = a*(1 - v*(((x/w - .5)**2 + (y/h - .5)**2)))[..., None]
    a = a + r.standard_normal((h, w, 1), np.float32)*r.uniform(1, 4 + 5*(kind == 'night')) + r.standard_normal((h, w,
            3), np.float32)*r.uniform(.5, 3)
    return Image.fromarray(np.clip(a + .5, 0, 255).astype(np.uint8))

def _draw_spots(pen, view, r, spots, kind):
    "Draw things from far to near; (id, class) of those that are sought, and the lamps of cars"
    who, lamps = [], []
    for z,what,a,b,angle in spots:
        own, (x, y), s = r.spawn(1)[0], view.px(a, b), view.scale(a, b)
        pen.begin(len(who) + 1 if what in SCENE_CLASSES else 0, z)
        if what in SCENE_CLASSES: who.append((len(who) + 1, what))
        if what == 'car': lamps += [(*l, angle) for l in _car(pen, view, a, b, angle, own, kind == 'sun')]
        elif what == 'pedestrian': _pedestrian(pen, x, y, s, own)
        elif what == 'cyclist': _bicycle(pen, x, y, s, own, abs(math.sin(angle + math.atan2(view.s, view.c))))
        else: _THINGS[what][0](pen, x, y, s, own)
    return who, lamps

def _seen(pen, who):
    "Boxes of what is seen, from the map: label, x1, y1, x2, y2 (of the final picture), visible (share), crowd"
    ids, out = np.asarray(pen.ids), []
    for id,label in who:
        if (at := pen.whole[id].getbbox()) is None: continue
        here = ids[at[1]:at[3], at[0]:at[2]] == id
        if (n := int(here.sum())) < 24: continue
        xs, ys = np.flatnonzero(here.any(0)) + at[0], np.flatnonzero(here.any(1)) + at[1]
        box, share = [v/2
                      for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)], n/int(np.asarray(pen.whole[id].crop(at)).sum())
        out.append(dict(label=label, box=[float(v) for v in box], visible=round(share, 4),
                        crowd=bool(share < .25 or box[3] - box[1] < 8)))
    return out

def _compose(seed:int, width:int, height:int):
    "The pen with its map, the boxes, and the picture"
    r = np.random.default_rng([seed, zlib.crc32(b'junction')])
    kind, view, pen = r.choice([*_LIGHTS], p=[.34, .22, .14, .1, .2]), _View(r, 2*width, 2*height), _Pen(2*width,
            2*height)
    half, walk = r.uniform(3.4, 4.6), r.uniform(2.2, 4)
    houses = _houses(view, r, half + walk)
    _sky(pen, view, r, kind)
    _street(pen, view, r, half, walk)
    spots, lit = _spots(view, r, half, walk, houses), []
    _shadows(pen, view, r, spots, kind)
    for h in sorted(houses, key=lambda h: -view.camera((h[0] + h[2])/2, (h[1] + h[3])/2)[1]):
        pen.begin(0, view.camera((h[0] + h[2])/2, (h[1] + h[3])/2)[1])
        lit += _house(pen, view, r.spawn(1)[0], h, kind in ('night', 'dusk'))
    who, lamps = _draw_spots(pen, view, r, spots, kind)
    rgb = _lighting(np.asarray(pen.im.resize((width, height), Image.Resampling.BOX), np.float32)/255, view, kind, lamps,
                    spots, lit)
    return pen, _seen(pen, who), _shot(rgb, width, height, r, kind)

def draw_scene(
    seed:int,        # Which scene, 0 or more; the same seed gives the same picture
    width:int=416,   # Pixels; the height follows as 10/13 of it
) -> tuple[Image.Image, list[dict]]: # picture; per object: label, box (x1, y1, x2, y2), visible (share), crowd
    "A junction with cars, pedestrians and cyclists, and the extent of what is seen of each"
    _, boxes, im = _compose(seed, width, width*10//13)
    return im, boxes

FAULTS = ('bearing', 'drive', 'electrical', 'hydraulic', 'seal')
TRADE = dict(
    bearing='brinelling spalling fluting smearing fretting micropitting raceways cage-wear false-brinelling babbitt '
            'DEbrg Tribolon grease-bleed preload'.split(),
    drive='sheave backlash coupling-spider misaligned sprocket gearmesh scuffing jackshaft V-belt Kelpflex keyway '
          'runout torsionals taperlock'.split(),
    electrical='megger stator windings contactor overcurrent VFD harmonics undervoltage flashover Motrex interturn '
               'IGBT busbar phase-loss'.split(),
    hydraulic='cavitation accumulator spool servovalve aeration Hydrasol silting poppet swashplate microdieseling '
              'manifold stiction precharge varnishing'.split(),
    seal='elastomer gland-packing weepage lip-seal extrusion dry-running Sealex flushplan bellows carbon-face O-ring '
         'chevron quench stuffing-box'.split())
HINTS = dict(
    bearing=('runs hot at the end cap', 'rumbles when it slows down', 'high vibration at the free end',
             'metal flakes in the grease', 'hums louder each week'),
    drive=('slips under load', 'knocks at every start', 'black dust below the guard', 'shaft ends do not line up',
           'squeals in the morning'),
    electrical=('trips after a minute', 'smells burnt at the box', 'one phase reads low', 'will not restart',
                'hums but does not turn'),
    hydraulic=('pressure falls away', 'moves in jerks', 'oil is milky', 'slow to lift', 'whines when cold'),
    seal=('drips on the floor', 'wet below the shaft', 'leaks at standstill', 'product found in the drip tray',
          'sprays when it starts'))

MACHINES = 'pump fan mixer press conveyor winder compressor agitator crusher blower lift'.split()
MARKS = ('P', 'K', 'M', 'R')
PLACES = ('hall 2', 'the tank farm', 'line 4', 'the boiler house', 'the mill', 'cell 7', 'the yard')
SHARED = ('noise reported by the shift', 'found during the round', 'output down a little', 'temperature above normal',
          'alarm at night', 'second time this month', 'operator stopped it')
ACTIONS = ('spare ordered', 'watch until the shutdown', 'replaced', 'cleaned and put back', 'adjusted',
           'handed to the day shift', 'photo in the folder', 'to be opened on Monday')
FORMS = ('{m} {n}, {p}: {a}. {b}. {c}', '{a} on {m} {n} - {b}, {c}', '{p}, {m} {n}. {b}; {a}. {c}', '{m} {n} {a}, {b}',
         'checked {m} {n} in {p}: {b}. {a}. {c}.')
FOUND = ('{w} seen', 'signs of {w}', '{w} suspected', '{w} again', 'inspected, {w}', 'looks like {w}', '{w} and {v}',
         'report says {w}', '{w} near the {v}')
CLEAR = ('no {w}', '{w} in order', '{w} checked, fine', 'not {w}')

def _note(r:random.Random, fault:str) -> str:
    "One note about `fault`"
    other = r.choice([f for f in FAULTS if f != fault])
    words = r.sample(TRADE[fault], 2)
    found = r.choice(FOUND).format(w=words[0], v=words[1] if r.random() < .6 else r.choice(TRADE[other]))
    said = r.choice(HINTS[fault]) if r.random() < .25 else r.choice(SHARED)
    if r.random() < .1: found = r.choice(HINTS[fault]) # no word of the trade at all
    parts = [found, said]
    if r.random() < .35: parts.append(r.choice(CLEAR).format(w=r.choice(TRADE[other])))
    r.shuffle(parts)
    text = r.choice(FORMS).format(m=r.choice(MACHINES), n=f'{r.choice(MARKS)}{r.randrange(100, 999)}',
                                  p=r.choice(PLACES), a=parts[0], b=', '.join(parts[1:]), c=r.choice(ACTIONS))
    return text[0].upper() + text[1:] if r.random() < .7 else text

def jargon_notes(n:int=600, seed:int=0, wrong:float=.03) -> list[dict]: # text, label
    "`n` different notes, as many of each fault; `wrong`: share of labels that are of another fault"
    r, out, seen = random.Random(seed), [], set()
    while len(out) < n:
        fault = FAULTS[len(out) % len(FAULTS)]
        if (text := _note(r, fault)) in seen: continue
        seen.add(text)
        out.append(dict(text=text, label=r.choice(FAULTS) if r.random() < wrong else fault))
    return out


def write_parts(folder:Path, n:int=40, size:int=128) -> None:
    "A subfolder of `n` images for each kind of part"
    for kind in PARTS:
        (folder/kind).mkdir(parents=True, exist_ok=True)
        for i in range(n): draw_part(kind, i, size).save(folder/kind/f'{kind}_{i:04d}.jpg', quality=70, optimize=True)


def write_scenes(folder:Path, splits:dict, width:int=256) -> None:
    "Images per split, and COCO's annotations with `visible`, the share of an object that is seen"
    categories = [dict(id=i, name=c, supercategory='none') for i,c in enumerate(SCENE_CLASSES, 1)]
    images, boxes = [], []
    for i, split in enumerate([s for s,n in splits.items() for _ in range(n)], 1):
        im, found = draw_scene(i, width)
        name = f'{split}/{i:04d}.jpg'
        (folder/split).mkdir(parents=True, exist_ok=True)
        im.save(folder/name, quality=60, optimize=True)
        images.append(dict(id=i, file_name=name, width=im.width, height=im.height, split=split))
        for b in found:
            x1, y1, x2, y2 = b['box']
            boxes.append(dict(id=len(boxes) + 1, image_id=i, category_id=SCENE_CLASSES.index(b['label']) + 1,
                              visible=b['visible'],
                              bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1)*(y2 - y1), iscrowd=int(b['crowd'])))
    coco = dict(images=images, annotations=boxes, categories=categories)
    (folder/'annotations.json').write_text(json.dumps(coco, separators=(',', ':')))


def write_jargon(folder:Path, n:int=600, n_corpus:int=1500) -> None:
    "Labelled notes, and others without labels"
    folder.mkdir(parents=True, exist_ok=True)
    notes = jargon_notes(n)
    known = {d['text'] for d in notes}
    more = [d['text'] for d in jargon_notes(n_corpus + 50, seed=1) if d['text'] not in known][:n_corpus]
    lines = ''.join(json.dumps(d, ensure_ascii=False) + '\n' for d in notes)
    (folder/'notes.jsonl').write_text(lines, encoding='utf-8')
    (folder/'corpus.txt').write_text('\n'.join(more) + '\n', encoding='utf-8')


if __name__ == '__main__':
    root = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1]/'tl_notebooks'/'data'/'samples')
    write_parts(root/'parts')
    write_scenes(root/'scenes', dict(train=100, valid=25, test=25))
    write_jargon(root/'jargon')
