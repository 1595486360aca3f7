"Everything is read from settings.ini, which nbdev reads too."
import configparser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = configparser.ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license='Apache-2.0', license_files=['LICENSE'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=['Programming Language :: Python :: 3', 'Framework :: Jupyter', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    # The use-case notebooks travel inside the package; they have one home, nbs/usecases.
    packages=[*find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]), f"{cfg['lib_name']}.usecases"],
    package_dir={f"{cfg['lib_name']}.usecases": 'nbs/usecases'},
    package_data={'': ['*.json'], cfg['lib_name']: ['templates/*'], f"{cfg['lib_name']}.data": ['samples/**/*.*'],
                  f"{cfg['lib_name']}.usecases": ['*.ipynb']},
    python_requires=f">={cfg['min_python']}",
    install_requires=[*cfg['requirements'].split(),
                      *(f"{r} ; sys_platform == 'linux' and platform_machine == 'x86_64'"
                        for r in cfg['linux_x86_64_requirements'].split())],
    extras_require={'parquet': ['pyarrow>=15'], 'heif': cfg['heif_requirements'].split(), 'onnx': cfg['onnx_requirements'].split(),
                    'distributed': ['accelerate>=1.0'], 'dvc': ['dvc>=3.60,<4', 'dvclive>=3.48,<4'],
                    'tensorboard': ['tensorboard>=2.16'], 'serve': cfg['serve_requirements'].split(),
                    'dev': ' '.join(cfg[f'{k}_requirements'] for k in ('dev', 'onnx', 'serve')).split()},
    # The second lets nbdev link the names of this package between its pages.
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
