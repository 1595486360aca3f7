"""README.md and the pages in _docs/, both made from the notebooks, without Quarto.

    python docs/build.py site              # nbs/ → _proc/ (nbdev) → _proc/_site/ (adapted) → _docs/ (Sphinx)
    python docs/build.py readme [--check]  # nbs/index.ipynb → README.md; --check only compares
"""
import argparse
import ast
import base64
import configparser
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
import contents # noqa: E402
from examples import as_example, readable # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SITE, OUT = ROOT/'_proc'/'_site', ROOT/'_docs'
EXECUTED = ['parts']                                # use cases that the site shows with their results
PACKAGES = 'data frozen heads learn models judge expand runs serve'.split()  # of the library, from the ground floor up
PROMPTS = 'code_prompt_show', 'code_prompt_hide'   # what is written where a cell is folded
END = '<!-- the end of a notebook -->'
PROJECT = ['CONTRIBUTING.md', 'CHANGELOG.md']       # pages that are not notebooks
MADE = '<!-- Made from nbs/index.ipynb by `make export`; edit it there. -->'
LINK = re.compile(r'(?P<pre>\]\(|\b(?:src|href)=")(?P<to>[^)\s"#]+)(?P<at>#[^)\s"]*)?(?=[)\s"])')
FENCE = re.compile(r'(^(`{3,}|~{3,}).*?^\2`*$|`[^`\n]+`)', re.M | re.S)


def settings() -> dict:
    "What settings.ini says; nbdev reads the same file"
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def relink(text:str, new) -> str:
    "Replace each link target outside code by `new(target, anchor)`; `None` leaves it as it is"
    def one(m):
        to = new(m['to'], m['at'] or '')
        return m[0] if to is None else m['pre'] + to
    parts, last = [], 0
    for code in FENCE.finditer(text):
        if text[code.end():code.end()+2] == '](': continue     # [`name`](link)
        parts += [LINK.sub(one, text[last:code.start()]), code[0]]
        last = code.end()
    return ''.join(parts) + LINK.sub(one, text[last:])


def means(to:str, source:str) -> str|None:
    """The file in the checkout that a link in `source` means.

    source : path of a notebook or page from the root, as `nbs/index.ipynb`
    Returns a path from the root, or None for another site's address.
    A link counts from its notebook's folder (as in JupyterLab) or from the root (as in README.md).
    Raises ValueError if neither is there.
    """
    if re.match(r'[a-z][a-z0-9+.-]*:|//|\{', to): return None
    for base in (ROOT/source).parent, ROOT:
        path = Path(os.path.normpath(base/to))
        if path.exists() and path.is_relative_to(ROOT): return path.relative_to(ROOT).as_posix()
    raise ValueError(f"{source}: the link `{to}` leads nowhere; accepted: a path from the notebook's folder or from "
                     f"the root.")


# README

def readme() -> str:
    "The text of README.md: prose as it stands, code fenced, with what it printed"
    source = 'nbs/index.ipynb'
    cells = [as_text(c) for c in nbformat.read(ROOT/source, 4).cells if not {'hide', 'include'} & directives(c).keys()]
    return relink('\n\n'.join([MADE, *filter(None, cells)]) + '\n', lambda to,at: (p := means(to, source)) and p + at)


def as_text(cell) -> str:
    "One cell as markdown"
    source = undirected(cell).strip()
    if cell.cell_type != 'code': return source if cell.cell_type == 'markdown' else ''
    lang = 'sh' if source.startswith(('!', '%%bash')) else 'python'
    source = re.sub(r'^(!|%%bash\n)', '', source)
    shown = ''.join(printed(o) for o in cell.outputs).strip()
    return '\n\n'.join(f'```{l}\n{t}\n```' for l,t in ((lang, source), ('', shown)) if t)


def printed(output) -> str:
    "What an output shows as text"
    if output.output_type == 'stream': return output.text if output.name == 'stdout' else ''
    return output.get('data', {}).get('text/plain', '')


def write_readme(check:bool) -> None:
    "Write README.md, or end with an error where it differs"
    path, text = ROOT/'README.md', readme()
    if not check: path.write_text(text, encoding='utf-8'); return print('README.md')
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        sys.exit('README.md differs from nbs/index.ipynb. Edit the notebook, then run `make export`.')


# Notebooks as nbdev leaves them → pages that MyST reads

def directives(cell) -> dict:
    "nbdev's `#| name: value` lines at the top of a code cell"
    if cell.cell_type != 'code': return {}
    return {m[1]: m[2].strip() for m in re.finditer(r'^#\|\s*([\w-]+):?(.*)$', cell.source, re.M)}


def undirected(cell) -> str:
    "A cell's source without directives"
    return re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M) if cell.cell_type == 'code' else cell.source


def heading(raw:str) -> str:
    "Front matter, as nbdev writes it, as a title and a line below it"
    import yaml
    front = yaml.safe_load(raw.strip().strip('-')) or {}
    return '\n\n'.join([f"# {front['title']}", *([front['description']] if front.get('description') else [])])


def adapt(cell) -> list:
    "The cells of a page that stand for one cell: none, itself, or markdown instead of `show_doc`"
    from nbformat.v4 import new_markdown_cell
    if not cell.source.strip(): return []
    if cell.cell_type == 'raw':
        return [new_markdown_cell(heading(cell.source))] if cell.source.startswith('---') else []
    if cell.cell_type == 'markdown':
        cell.source = re.sub(r'^(# .+\n+)> ', r'\1', cell.source)
        return [] if cell.source.startswith(('<!-- WARNING', END)) else [cell]
    found = directives(cell)
    if {'hide', 'default_exp', 'export'} & found.keys() or found.get('include') == 'false': return []
    cell.source = undirected(cell).strip()
    if cell.source.startswith('show_doc('):
        shown = [o.data['text/markdown'] for o in cell.outputs if 'text/markdown' in o.get('data', {})]
        return [new_markdown_cell(readable(text)) for text in shown]
    fold = 'code-fold' in found
    if not fold and found.get('eval') == 'false': cell.source, fold = as_example(cell.source)
    if fold and 'code-fold' not in found: cell.metadata['mystnb'] = dict.fromkeys(PROMPTS, 'Checks')
    cell.metadata['tags'] = ['hide-input'] if fold else ['remove-input'] if found.get('echo') == 'false' else []
    return [cell] if cell.source else []


def page_of(source:str) -> str:
    "The page made from a notebook or text: `nbs/heads/00_ridge.ipynb` → `heads/ridge.ipynb`"
    path = Path(source)
    if path.suffix != '.ipynb': return source
    return (path.relative_to('nbs').parent/re.sub(r'^\d\d_', '', path.name)).as_posix()


def anchors(nb) -> set[str]:
    "The anchors of a page's headings"
    from slug import slug
    text = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
    text = FENCE.sub(lambda m: '' if m[2] else m[0], text)      # a `# comment` in a block of code is no heading
    return {slug(h) for h in re.findall(r'^#+ (.+)$', text, re.M)}


def nearest(at:str, there:set[str]) -> str:
    "nbdev links every symbol; one without a heading leads to its class, or else to the page"
    while at and at[1:] not in there: at = at.rpartition('.')[0]
    return at


def write_page(source:str, nb, pages:dict, heads:dict, files:set) -> None:
    """Write a notebook (or text, where `nb` is a str) into `SITE`, its links leading to pages.

    source : path from the root
    pages  : source → page, of the whole site
    heads  : page → anchors
    files  : grows by the other files that the page links to
    """
    page, web = pages[source], settings()['doc_host'] + settings()['doc_baseurl'] + '/'
    def new(to, at):
        if to.startswith(web):                          # a link made by nbdev
            to = Path(to.removeprefix(web)).with_suffix('.ipynb').as_posix()
            at = nearest(at, heads[to])
        else:
            path = means(to, source)
            if path is None: return None
            path = 'nbs/index.ipynb' if path in ('README.md', 'nbs') else path
            if path not in pages: files.add(path)
            to = pages.get(path, path)
        return os.path.relpath(to, Path(page).parent) + at
    (SITE/page).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(nb, str): return (SITE/page).write_text(relink(nb, new), encoding='utf-8')
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = relink(c.source, new)
    nbformat.write(nb, SITE/page)


def says(nb) -> tuple[str, str]:
    "Title and line of a page"
    title, line = re.match(r'# (.+)\n*(?:> )?(.*)', nb.cells[0].source).groups()
    return title, line


def name_page(page:str, nb) -> None:
    "A page of the library gets a name that a reader knows, and below it the module's"
    title, line = says(nb)
    module = f"{settings()['lib_name']}.{page.removesuffix('.ipynb').replace('/', '.')}"
    nb.cells[0].source = f"# {contents.NAMES.get(page, module)}\n\n{line}\n\n`from {module} import …`"


def write_lists(pages:list[str], made:dict) -> None:
    "The pages that list others: one for each part of the reference, and the internals"
    said = {page: says(nb) for page,nb in made.items() if not isinstance(nb, str)}
    (SITE/'reference').mkdir(parents=True, exist_ok=True)
    for part,(title, about, _) in contents.API.items():
        if not (some := contents.members(part, pages)): continue
        (SITE/'reference'/f'{part}.md').write_text(contents.listing(title, about, some, said), encoding='utf-8')
    about = 'Modules that only the library itself needs. CONTRIBUTING says how they fit together.'
    text = contents.listing('Internals', about, contents.internals(pages), said)
    (SITE/'internals.md').write_text(text, encoding='utf-8')


# A use case with its results

def finished_run(name:str) -> Path|None:
    "The newest good run in outputs/ of the notebook as it is now, with all parameters as they stand in it"
    sha = hashlib.sha256((ROOT/'nbs'/'usecases'/f'{name}.ipynb').read_bytes()).hexdigest()
    for record in sorted((ROOT/'outputs'/name).glob('*/record.json'), reverse=True):
        try: found = json.loads(record.read_text(encoding='utf-8'))
        except ValueError: continue
        notebook, good = record.with_name('notebook.ipynb'), (found.get('status'),
                                                              found.get('notebook_sha256')) == ('ok', sha)
        if good and notebook.exists() and 'injected-parameters' not in notebook.read_text(encoding='utf-8'):
            return record.parent
    return None


def executed(name:str):
    "The executed notebook of a use case, from outputs/ or from a run made now, without this machine's paths"
    with tempfile.TemporaryDirectory() as tmp:
        run = finished_run(name)
        if run is None:
            print(f'running `{name}` for its page (some minutes; a run with its defaults in outputs/ would be taken) …',
                  flush=True)
            command = [sys.executable, '-m', 'tl_notebooks', 'run', name, '--out', tmp]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            if done.returncode: sys.exit(f'docs: `tl run {name}` ended with exit code {done.returncode}')
            run = Path(done.stdout.strip().splitlines()[-1])
        text = (run/'notebook.ipynb').read_text(encoding='utf-8')
        for path,instead in ((run.parents[1], 'outputs'), (ROOT, '.'), (tempfile.gettempdir(), '…'),
                             (Path.home(), '~')):
            text = text.replace(str(path), instead)
    nb = nbformat.reads(text, 4)
    nb.cells = [c for c in nb.cells
                if not {'injected-parameters', 'papermill-error-cell-tag'} & set(c.metadata.get('tags', []))]
    return nb


# The site

def sources() -> list[str]:
    "Every notebook and page of the site, as paths from the root, in the order of the contents"
    nbs = [p for folder in ('', *PACKAGES, 'usecases', 'guides', 'benchmarks')
           for p in sorted((ROOT/'nbs'/folder).glob('[!_.]*.ipynb'))]
    return [p.relative_to(ROOT).as_posix() for p in nbs] + [p for p in PROJECT if (ROOT/p).exists()]


def for_nbdev(nb):
    """A notebook of which nbdev runs nothing but definitions, imports and `show_doc`, and shows all but tests.

    - nbdev runs each cell that holds an import, wherever in the cell, but not the cells before it: tests are marked.
    - The module itself comes first: an annotation may name a class that is defined further down.
    - Exported definitions are shown, folded: `exports`.
    - Of the title's cell nbdev keeps the title and the `>` line: the rest gets a cell of its own.
    """
    lib = settings()['lib_name']
    module = next((m[1] for c in nb.cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M))), None)
    for c in nb.cells:
        if c.cell_type != 'code': continue
        try: tree = ast.parse(undirected(c)).body
        except SyntaxError: continue
        imports = [isinstance(t, (ast.Import, ast.ImportFrom)) for t in tree]
        shows = [ast.unparse(t).startswith('show_doc(') for t in tree]
        if {'export', 'exporti'} & directives(c).keys():
            if not all(imports): c.source = re.sub(r'^#\|\s*exporti?\s*$', '#| exports', c.source, flags=re.M)
        elif not all(i or s for i,s in zip(imports, shows)): c.source = f'#| eval: false\n{c.source}'
    nb.cells.append(nbformat.v4.new_markdown_cell(END)) # nbdev looks at the cell after each definition
    if module: nb.cells.insert(1, nbformat.v4.new_code_cell(f'#| hide\nfrom {lib}.{module} import *'))
    title, rest = re.match(r'((?:# .*\n*)?(?:> .*\n*)?)((?s:.*))', nb.cells[0].source).groups()
    if title and rest: nb.cells[0].source = title; nb.cells.insert(1, nbformat.v4.new_markdown_cell(rest))
    return nb


def by_nbdev(names:list[str]) -> None:
    "nbdev's pass over notebooks: signatures, hidden cells, links between symbols; from nbs/ into _proc/"
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as tmp:
        for name in names:
            copied = Path(tmp)/Path(name).relative_to('nbs')
            copied.parent.mkdir(exist_ok=True)
            nbformat.write(for_nbdev(nbformat.read(ROOT/name, 4)), copied)
        proc_nbs(tmp, n_workers=0, force=True)


def read_page(source:str):
    "What a page is made from: text, a use case with its results, or a notebook after nbdev's pass; adapted"
    if not source.endswith('.ipynb'): return (ROOT/source).read_text(encoding='utf-8')
    path = Path(source).relative_to('nbs')
    nb = executed(path.stem) if path.parent.name == 'usecases' and path.stem in EXECUTED else nbformat.read(
            ROOT/'_proc'/path, 4)
    plot = lead(nb)
    nb.cells = [a for c in nb.cells for a in adapt(c)]
    nb.cells[1:1] = plot
    describe_images(nb)
    return nb


def lead(nb) -> list:
    "The plot of the cell tagged `story`, for the top of the page, without the code"
    for c in nb.cells:
        shown = [o for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
        if 'story' in c.metadata.get('tags', []) and shown:
            return [nbformat.v4.new_code_cell('…', outputs=shown[:1], metadata=dict(tags=['remove-input']))]
    return []


def describe_images(nb) -> None:
    "Alternative texts for the plots: what the figure's file or its output says, or else the sentence that led to it"
    prose = ''
    for c in nb.cells:
        if c.cell_type == 'markdown':
            found = [l for l in c.source.splitlines() if l and l[0] not in '#|`-']
            prose = found[0] if found else prose
        for o in c.get('outputs', []):
            if 'image/png' not in o.get('data', {}): continue
            said = o.metadata.get('image/png', {}).get('alt') or f'Plot. {prose}'
            alt = re.sub(r'[*`]|\]\([^)]*\)|\[', '', text_of_png(o.data['image/png']) or said)
            c.metadata.setdefault('mystnb', {})['image'] = dict(alt=alt[:400])


def text_of_png(data:str) -> str:
    "What a figure of a run says of itself in its file, or ''"
    from PIL import Image
    return Image.open(io.BytesIO(base64.b64decode(data))).info.get('Description', '')


def write_pages() -> set[str]:
    "nbdev's pass over the notebooks, then ours; gives the files that pages link to"
    pages, files = {s: page_of(s) for s in sources()}, set()
    by_nbdev([s for s in pages if s.endswith('.ipynb')])
    made = {s: read_page(s) for s in pages}
    heads = {pages[s]: anchors(nb) for s,nb in made.items() if not isinstance(nb, str)}
    library = lambda s: re.match(rf"nbs/(\d\d_|({'|'.join(PACKAGES)})/)", s)
    for s in filter(library, made): name_page(pages[s], made[s])
    trees = '\n\n'.join(contents.tree(some, caption) for caption,some in contents.parts([*pages.values()]).items())
    made['nbs/index.ipynb'].cells.append(nbformat.v4.new_markdown_cell(trees))
    write_lists([*pages.values()], {pages[s]: nb for s,nb in made.items()})
    for s,nb in made.items(): write_page(s, nb, pages, heads, files)
    return files


def for_everyone(html:str) -> str:
    "What theme and extension leave out: code that scrolls is reached by the keyboard, side headings have a level"
    html = html.replace('<p class="caption" role="heading">', '<p class="caption" role="heading" aria-level="2">')
    html = html.replace('<summary aria-label="Toggle hidden content">', '<summary>')     # it hid the word that is seen
    return re.sub(r'<pre>', '<pre tabindex="0">', html)


def build_site() -> None:
    "Build _docs/; any warning, a dead link among them, is an error"
    from sphinx.cmd.build import main as sphinx
    files = write_pages()
    for f in files: copy(ROOT/f, SITE/f)
    built = ROOT/'_proc'/'_html'    # myst-nb leaves a folder beside the pages; and a failed build keeps the old pages
    folders = ['-c', ROOT/'docs', '-d', ROOT/'_proc'/'.doctrees', SITE, built]
    if sphinx(['-q', '-b', 'html', '-W', '--keep-going', *map(str, folders)]):
        sys.exit('docs: see the warnings above')
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(built, OUT)
    for page in OUT.rglob('*.html'): page.write_text(for_everyone(page.read_text(encoding='utf-8')), encoding='utf-8')
    for f in files: copy(ROOT/f, OUT/f)         # for <img src="…">, which Sphinx does not follow
    print(f'{(OUT/"index.html").relative_to(ROOT)}: {len(list(OUT.rglob("*.html")))} pages')


def copy(src:Path, dst:Path) -> None:
    "Copy a file, or make the folder that is linked to"
    dst.parent.mkdir(parents=True, exist_ok=True)
    if src.is_file(): shutil.copy2(src, dst)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = ap.add_subparsers(dest='what', required=True)
    sub.add_parser('site', help='build _docs/')
    sub.add_parser('readme', help='write README.md').add_argument('--check', action='store_true', help='only compare')
    args = ap.parse_args()
    try: write_readme(args.check) if args.what == 'readme' else build_site()
    except ValueError as e: sys.exit(f'docs: {e}')
