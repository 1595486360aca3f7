"What nbdev leaves on a page, as a reader wants it: signatures without links, and examples in place of assertions."
import ast
import re

WIDE = 100          # columns of an example; what is said of it goes below where it does not fit
SHORT = 8           # statements; more of them are checks, not an example
LINKED = re.compile(r'\[(`?)([^\]`]+)\1\]\(https?://[^)\s]*\)')


def readable(markdown:str) -> str:
    "`show_doc` output without rule, source link and links in code; a docstring in columns keeps them"
    text = re.sub(r'^---\n+', '', markdown)
    text = re.sub(r'^\[source\]\(.*\n+', '', text, flags=re.M)
    head, _, rest = text.partition('\n```\n')
    summary, _, more = rest.strip().partition('\n\n')
    summary = re.sub(r'^\*(.*?)\*(?=\n|$)', r'\1', summary, flags=re.S)
    if summary == 'Call self as a function.': summary = ''
    if re.search(r'^\s*[\w`, ]+ +: ', more, re.M): more = '```text\n' + LINKED.sub(r'\2', more).rstrip() + '\n```'
    return '\n\n'.join(filter(None, [f'{signature(head)}\n```', summary, more]))


def signature(text:str) -> str:
    "A signature in plain Python: no links, no names of modules, `class` where nbdev writes `def`"
    text = LINKED.sub(r'\2', text)
    text = re.sub(r'\b(?:__main__|pathlib|collections\.abc|tl_notebooks(?:\.\w+)+)\.(?=[A-Z])', '', text)
    text = re.sub(r':\s*NoneType=None', '=None', text)
    text = re.sub(r'^def (?=(\w+\.)*[A-Z]\w*\()', 'class ', text, flags=re.M)
    return re.sub(r'\)->', ') -> ', re.sub(r'^\)->None:', '):', text, flags=re.M))


def as_example(source:str) -> tuple[str, bool]:
    """A cell that asserts something, as an example, and whether it is more than one.

    `test_eq(f(x), 3)` becomes `f(x)  # 3`, `test_fail(lambda: f(0), contains='…')` becomes `f(0)  # refused: …`.
    The second is True for long cells and those with loops and helpers: checks, which a page folds.
    """
    try: tree = ast.parse(source)
    except SyntaxError: return source, False
    tests = any(isinstance(n, ast.Assert) or _test_of(n) for n in ast.walk(tree))
    if not tests: return source, False
    if len(tree.body) > SHORT or any(hasattr(n, 'body') for n in tree.body): return source, True
    return '\n'.join(_statement(n, source) for n in tree.body), False


def _test_of(node) -> str:
    "The name of the test function that is called; '' where none is"
    name = getattr(node.func, 'id', '') if isinstance(node, ast.Call) else ''
    return name if name.startswith('test_') else ''


def _statement(node, source:str) -> str:
    "One statement, with the comments around it, and what it gives in a comment in place of an assertion"
    lines, text = source.splitlines(), lambda n: ast.get_source_segment(source, n)
    before, at = [], node.lineno - 2
    while at >= 0 and lines[at].startswith('#'): before.insert(0, lines[at]); at -= 1
    after = re.search(r'\s(#.*)$', lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode())
    note = after[1].lstrip('# ') if after else ''
    code, said = text(node), ''
    call = node.value if isinstance(node, ast.Expr) else None
    if _test_of(call) in ('test_eq', 'test_close') and len(call.args) > 1:
        code, said = text(call.args[0]), ('about ' if _test_of(call) == 'test_close' else '') + text(call.args[1])
    elif _test_of(call) == 'test_fail' and call.args and isinstance(call.args[0], ast.Lambda):
        why = next((k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)), 'an error')
        code, said = text(call.args[0].body), f'refused: {why}'
    elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.Eq):
        code, said = text(node.test.left), ' == '.join(map(text, node.test.comparators))
    said = '  # '.join(filter(None, [' '.join(said.split()), note]))
    fits = len(code.splitlines()[-1]) + len(said) + 4 <= WIDE
    shown = [f'{code}  # {said}'] if said and fits else [code, f'# {said}'] if said else [code]
    return '\n'.join([*before, *shown])
