"What README.md and the guides show can be typed: commands are ones, variables have values, names in Python exist."
import ast
import builtins
import json
import re
import shlex

import pytest

from conftest import ROOT

GUIDES = [ROOT/'nbs'/'guides'/f'{n}.ipynb' for n in ('quickstart', 'predict', 'unknown', 'export', 'alarm', 'streets')]
ASSIGNED = re.compile(r'([A-Z]+)=\$\((tl .*)\)$')


def text_of(path):
    "A page's text: README.md, or the prose of a notebook"
    if path.suffix == '.md': return path.read_text(encoding='utf-8')
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def blocks(path, language):
    return re.findall(rf'^```{language}\n(.*?)^```', text_of(path), re.M | re.S)


def lines(path):
    "Lines of the page's shell blocks, without their comments"
    found = [l.strip() for b in blocks(path, 'sh') for l in b.splitlines()]
    return [w for l in found if (w := re.sub(r'(^|\s+)#\s.*$', '', l))]


def commands(path):
    return [m[2] if (m := ASSIGNED.match(l)) else l for l in lines(path) if ASSIGNED.match(l) or l.startswith('tl ')]


def test_the_pages_have_commands():
    assert len(commands(ROOT/'README.md')) > 20 and all(len(commands(g)) > 1 for g in GUIDES)


@pytest.mark.parametrize('line', sorted({c for p in (ROOT/'README.md', *GUIDES) for c in commands(p)}))
def test_each_command_is_one(line):
    from tl_notebooks.cli import make_parser
    from tl_notebooks.runs.params import find_usecase, usecase_params
    words = shlex.split(re.sub(r'\s+[<>]\s+\S+', '', line))
    args = make_parser().parse_args(words[1:])
    if args.command in ('run', 'sweep'):
        assert {p.partition('=')[0] for p in args.p} <= usecase_params(find_usecase(args.usecase)).keys()


@pytest.mark.parametrize('path', [ROOT/'README.md', GUIDES[0]], ids=lambda p: p.stem)
def test_what_a_line_needs_an_earlier_one_has_made(path):
    "Variables, and the folders and files that are named; what a reader brings for `tl adopt` is the exception"
    values, made = set(), {'film.mp4'}
    for line in lines(path):
        assert {*re.findall(r'\$([A-Z]+)', line)} <= values, line
        for word in re.findall(r'(?<![\w/])((?:my_|new_|tl_notebooks/)[\w./]+)', line.partition('--correct')[0]):
            if line.startswith(('cp ', 'mkdir ')): made |= {*line.split()}
            elif not line.startswith('tl adopt'):
                assert word.split('/')[0] in made or (ROOT/word).exists(), f'{line}: {word} is not there yet'
        if m := ASSIGNED.match(line): values.add(m[1])
    assert values >= {'RUN', 'MODEL'}


def test_make_knows_the_targets_that_are_named():
    named = {w for l in lines(ROOT/'README.md') if l.startswith('make ') for w in l.split()[1:2]}
    targets = {*re.findall(r'^([a-z]+):', (ROOT/'Makefile').read_text(), re.M)}
    assert named and named <= targets


@pytest.mark.parametrize('path', [ROOT/'README.md', *GUIDES], ids=lambda p: p.stem)
def test_python_that_is_shown_calls_what_there_is(path):
    import tl_notebooks.all as door
    from tl_notebooks.learn.learner import TransferLearner
    from tl_notebooks.models.folder import Model
    for block in blocks(path, 'python'):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Call): continue
            f = node.func
            if isinstance(f, ast.Name): assert hasattr(builtins, f.id) or hasattr(door, f.id), f.id
            elif isinstance(f.value, ast.Name) and f.value.id == 'learn': assert hasattr(TransferLearner, f.attr)
            elif isinstance(f.value, ast.Name) and f.value.id == 'model': assert hasattr(Model, f.attr)
