"What becomes of notebooks on the pages: signatures and examples that can be read, and a place for every page."
import ast
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT/'docs'))
import contents     # noqa: E402
import examples     # noqa: E402


def test_a_signature_is_plain_python():
    shown = ('---\n\n[source](https://a.org/x.py#L1){target="_blank"}\n\n### f\n\n```python\ndef f(\n'
             '    a:NoneType=None, # See [`g`](https://a.org/g.html#g)\n    b:pathlib.Path | None=None\n'
             ')->__main__.Square:\n```\n\n*Two lines\nof text, see [`g`](https://a.org/g.html)*')
    text = examples.readable(shown)
    assert text == ('### f\n\n```python\ndef f(\n    a=None, # See g\n    b:Path | None=None\n) -> Square:\n```\n\n'
                    'Two lines\nof text, see [`g`](https://a.org/g.html)')


def test_nothing_is_said_of_what_has_no_docstring():
    text = examples.readable('### f\n\n```python\ndef f(\n):\n```\n\n*Call self as a function.*')
    assert text == '### f\n\n```python\ndef f(\n):\n```'


@pytest.mark.parametrize('cell,shown', [
    ('test_eq(f(1), [2, 3])', 'f(1)  # [2, 3]'),
    ('test_close(f(1), .5, .01) # as published', 'f(1)  # about .5  # as published'),
    ("test_fail(lambda: f(0), contains='more than 0')", 'f(0)  # refused: more than 0'),
    ('x = f(1)\n# why\nassert x == 2', 'x = f(1)\n# why\nx  # 2'),
    ('a = 1; test_eq(a, 1)', 'a = 1\na  # 1'),
    ("test_eq(f('ü'), 'ü') # ä", "f('ü')  # 'ü'  # ä"),
    ('assert 0 < x', 'assert 0 < x')])
def test_an_assertion_becomes_an_example(cell, shown):
    assert examples.as_example(cell) == (shown, False)
    ast.parse(shown)


def test_checks_are_folded_and_what_is_none_stays():
    loop = 'for x in (1, 2): test_eq(f(x), x)'
    assert examples.as_example(loop) == (loop, True)
    assert examples.as_example('for x in (1, 2): print(x)') == ('for x in (1, 2): print(x)', False)
    assert examples.as_example('\n'.join(['test_eq(a, 1)']*9))[1]


def test_every_page_has_one_place():
    "Also one that nobody has named"
    pages = [*(f'guides/{p.stem}.ipynb' for p in (ROOT/'nbs'/'guides').glob('*.ipynb')), 'guides/new.ipynb',
             'usecases/parts.ipynb', 'usecases/new.ipynb', 'benchmarks/heads.ipynb', 'learn/vision.ipynb',
             'learn/new.ipynb', 'core.ipynb', 'cli.ipynb', 'all.ipynb', 'index.ipynb', 'CHANGELOG.md']
    parts = contents.parts(pages)
    listed = sum(parts.values(), []) + contents.members('learn', pages) + contents.internals(pages)
    listed = [p for p in listed if not p.startswith('reference/') and p != 'internals.md']
    assert sorted(listed) == sorted(p for p in pages if p != 'index.ipynb')
    assert parts['Start'][0] == 'guides/quickstart.ipynb' and [*parts][-1] == 'The project'
    assert contents.internals(pages) == ['learn/new.ipynb', 'core.ipynb']
