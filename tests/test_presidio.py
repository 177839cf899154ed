"The presidio extra with a stand-in: same shape as our own detectors, lazily imported, clear words when it is missing"
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from genai_playbook.detector_card import span_cards
from genai_playbook.errors import PlaybookError
from genai_playbook.guards import replacing
from genai_playbook.personal import NOT_COVERED, Span
from genai_playbook.presidio import not_covered, presidio_finder


class Engine:
    "Finds one name, and junk beside it."
    def analyze(self, text, entities, language, score_threshold):
        at = text.find('Eva Holm')
        hit = lambda a, b: SimpleNamespace(start=a, end=b, entity_type='PERSON', score=.9)
        return [hit(at, at+8), hit(at, at+8), hit(5, 5), hit(0, 10**6)] if at >= 0 else []


@pytest.fixture
def fake(monkeypatch):
    module = ModuleType('presidio_analyzer')
    module.AnalyzerEngine = Engine
    monkeypatch.setitem(sys.modules, 'presidio_analyzer', module)


def test_places_are_ours(fake):
    find = presidio_finder()
    assert find('Ask Eva Holm.') == [Span(4, 12, 'name')] and find('') == []
    assert not_covered() == ()
    card = span_cards([find('Ask Eva Holm.')], [[Span(4, 12, 'name')]], ['name'])['name']
    assert (card.tp, card.fp, card.fn) == (1, 0, 0)


def test_a_guard_of_it_names_what_it_takes_out(fake):
    assert replacing(presidio_finder(), 'names')('Ask Eva Holm.') == 'Ask [name].'


def test_what_it_may_not_read_is_refused(fake):
    with pytest.raises(PlaybookError, match='at most'): presidio_finder(most=10)('x'*11)
    with pytest.raises(PlaybookError, match='no entity'): presidio_finder(['MOOD'])


def test_missing_is_said(monkeypatch):
    monkeypatch.setattr('genai_playbook.presidio.installed', lambda: False)
    with pytest.raises(PlaybookError, match=r'pip install genai_playbook\[presidio\]'): presidio_finder()
    assert not_covered() == NOT_COVERED


def test_importing_ours_does_not_import_theirs():
    code = 'import sys, genai_playbook.presidio; sys.exit(any(m.startswith(("presidio_analyzer", "spacy")) for m in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
