"""What stands where in the pages, and under which name. What is not named here comes at the end of its part; a page of
the library that is not named is one of the internals."""

START = [f'guides/{n}' for n in 'quickstart predict bring_your_own unknown alarm streets export glossary'.split()]
# from what is common to what is rare, each building on those before it
TUTORIALS = 'parts expand_parts audit watch reviews mail crossing vocabulary adopt rank forecast'.split()
GUIDES = 'data_layouts experiments sweep_on_a_cluster work_with_dvc'.split()
LATER = 'guides/extend',

# part of the reference → (its title, a line about it, page → name)
API = {
    'data': ('Data', 'Read, checked, split and fingerprinted.', {
        'images': 'Read images', 'texts': 'Read texts', 'boxes': 'Read images with boxes',
        'splits': 'Split into training, validation and test', 'samples': 'Built-in samples', 'draw': 'Draw images'}),
    'learn': ('Learners', 'fastai learners for images, texts and boxes, on pretrained networks.', {
        'backbones': 'Pretrained networks', 'vision': 'Image learner', 'text': 'Text learner',
        'detection': 'Box learner', 'learner': 'Learner', 'stages': 'Stages of training',
        'resume': 'Go on after an interruption', 'box_predict': 'Predict boxes'}),
    'heads': ('Heads', 'Heads in closed form, and what features to give them.', {
        'ridge': 'Ridge head', 'statistics': 'Class statistics', 'features': 'Random projection',
        'calibrate': 'Calibration', 'unknown': 'Score of what is unknown'}),
    'models': ('Models', 'A model on disk: saved, loaded, asked, taken in from elsewhere, handed on.', {
        'folder': 'Model folder: load, predict, save', 'save': 'Save and load', 'adopt': 'Adopt a model',
        'export': 'Hand a model on'}),
    'expand': ('Expansion', 'A model and new data become a larger model.', {
        'door': 'Expand', 'classes': 'Expand by classes', 'boxes': 'Expand by kinds of objects',
        'words': 'Expand by words'}),
    'judge': ('Judgement', 'What to trust: intervals, tests, certificates.', {
        'evidence': 'Intervals and tests', 'evaluate': 'Evaluate a learner', 'box_scores': 'Scores of boxes',
        'certificate': 'Certificate', 'plots': 'Plots', 'audit': 'Audit', 'box_audit': 'Audit of boxes',
        'claims': 'Claims of models', 'watch': 'Watch', 'rank': 'Rank backbones',
        'forecast': 'Forecast'}),
    'runs': ('Runs', 'Use cases run, found again, compared, repeated.', {
        'run': 'A run', 'history': 'Runs found again', 'sweep': 'Many runs', 'reproduce': 'A run again',
        'report': 'Report', 'record': 'Record', 'dvc': 'DVC'}),
    'serve': ('Serving', 'A model behind HTTP.', {'http': 'Serve a model'}),
}
NAMES = {'all.ipynb': 'Python: all names', 'cli.ipynb': 'Command line: tl', 'core.ipynb': 'Errors, hashes, locks',
         **{f'{part}/{page}.ipynb': name for part,(_, _, pages) in API.items() for page,name in pages.items()}}


def parts(pages:list[str]) -> dict[str, list[str]]:
    "caption → pages, of all pages that there are (`heads/ridge.ipynb`, `CHANGELOG.md`), in order"
    def some(names, folder='', rest=''):
        named = [p for n in names if (p := f'{folder}{n}.ipynb') in pages]
        return named + [p for p in pages if rest and p.startswith(rest) and p not in named]
    start, later = some(START), some(LATER)
    return {'Start': start, 'Tutorials': some(TUTORIALS, 'usecases/', 'usecases/'),
            'Guides': [p for p in some(GUIDES, 'guides/', 'guides/') if p not in start + later],
            'Reference': some(('cli', 'all')) + [f'reference/{part}.md' for part in API if members(part, pages)],
            'Benchmarks': some((), rest='benchmarks/'),
            'The project': [p for p in pages if p.endswith('.md')] + later + ['internals.md']}


def members(part:str, pages:list[str]) -> list[str]:
    "The pages of one part of the reference"
    return [p for n in API[part][2] if (p := f'{part}/{n}.ipynb') in pages]


def internals(pages:list[str]) -> list[str]:
    "The pages of the library that only its own code needs, from the ground floor up"
    others = 'usecases/', 'guides/', 'benchmarks/'
    return [p for p in pages if p.endswith('.ipynb') and not p.startswith(others) and p not in NAMES
            and p != 'index.ipynb'] + ['core.ipynb']


def tree(names:list[str], caption:str='') -> str:
    "A table of contents that is seen at the side only"
    return '\n'.join(['```{toctree}', ':hidden:', *([f':caption: {caption}'] if caption else []), '',
                      *(n.rpartition('.')[0] for n in names), '```'])


def listing(title:str, about:str, pages:list[str], says:dict[str, str]) -> str:
    "A page that lists pages of `says` (page → title and line) and has them below it at the side; links from the root"
    rows = [f'| [{says[p][0]}](/{p}) | {says[p][1]} |' for p in pages]
    return '\n\n'.join([f'# {title}', about, '\n'.join(['| page | what it holds |', '|---|---|', *rows]),
                        tree([f'/{p}' for p in pages])])
