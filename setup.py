"Adds what pyproject.toml cannot say: requirements from settings.ini, and nbs/ shipped inside the package"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters='=')
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
reqs = {k: v.split('\n')[1:] for k, v in cfg['requirements'].items()}

setup(
    install_requires=reqs.pop('base'), extras_require=reqs,
    packages=find_packages(include=['genai_playbook*']) + ['genai_playbook.nbs'],
    package_dir={'genai_playbook.nbs': 'nbs'},
    package_data={'genai_playbook': ['py.typed', '*.json', 'data/**/*', 'templates/**/*'], 'genai_playbook.nbs': ['*.ipynb', '*/*.ipynb']})
