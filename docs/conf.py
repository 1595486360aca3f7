"Sphinx settings; `docs/build.py` writes the pages that Sphinx reads."
import configparser
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent)) # for slug
cfg = configparser.ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project, author, release = cfg['title'], cfg['author'], cfg['version']
copyright = cfg['copyright']
extensions = ['myst_nb']
exclude_patterns = ['**/.ipynb_checkpoints']

nb_execution_mode = 'off'       # a page shows what its notebook showed when it was run
nb_output_stderr = 'remove'     # progress bars
nb_code_prompt_show, nb_code_prompt_hide = 'Source', 'Source'
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
myst_heading_slug_func = 'slug.slug'
suppress_warnings = [
    'myst.header',                  # nbdev puts functions at level 3, also where a page has no level 2
    'misc.highlighting_failure',    # a cell may hold what the highlighter cannot read
    'mystnb.unknown_mime_type',
]

html_theme = 'furo'
html_title = cfg['title']
html_show_sourcelink = html_copy_source = False
html_show_sphinx = False
html_static_path, html_css_files = ['static'], ['site.css']
html_theme_options = {'light_css_variables': {'color-brand-primary': '#2563a8', 'color-brand-content': '#2563a8'}}
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'  # furo brings them
