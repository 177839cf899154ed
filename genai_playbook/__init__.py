"""From generative-AI proof of concept to production: notebooks that measure, gate and record

Modules:

- `genai_playbook.forking`: Kernels forked from one process that has imported the heavy libraries, and done nothing else
- `genai_playbook.lab`: A workspace beside the card, opened in JupyterLab: start_here and the chapters as copies that point at it
- `genai_playbook.runner`: Runs chapters through papermill, more strictly than papermill does, and keeps what they said in a run folder
- `genai_playbook.scaling`: More than one machine, or more than one card: executors, matrices of POCs and models, and answers to a million prompts"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = dict(PlaybookError='errors', run='runner', Progress='runner', load_card='card', Card='card', Answer='models', Estimate='stats', GateSpec='evidence', Gate='evidence', gate='evidence',
             not_tested='evidence', record='evidence', read_evidence='evidence', decide='evidence', Decision='evidence', find_chapters='chapters')
__all__ = ['__version__', *_HOME]  # noqa: PLE0604


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__(): return __all__
