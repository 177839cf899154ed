"Adds what pyproject.toml cannot say: requirements from settings.ini, and nbs/ shipped inside the package"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters='=')
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
here = Path(__file__).parent
nbs = {'.'.join(('genai_playbook', *p.relative_to(here).parts)): p.relative_to(here).as_posix() for p in (here/'nbs', *sorted((here/'nbs').iterdir())) if p.is_dir() and not p.name.startswith('.')}
reqs = {k: v.split('\n')[1:] for k, v in cfg['requirements'].items()}

setup(
    install_requires=reqs.pop('base'), extras_require=reqs,
    packages=find_packages(include=['genai_playbook*']) + list(nbs),
    package_dir=nbs,
    package_data={'genai_playbook': ['py.typed', '*.json', 'data/**/*', 'templates/**/*'], **{p: ['*.ipynb'] for p in nbs}})
