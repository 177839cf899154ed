"Incidents: hostile text, half-written logs, clocks that disagree, two people at once"
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace as ns

import pytest

from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.incident import (SEVERITIES, follow_up, incidents, open_incident, postmortem, record_drill, record_rollback, runbook,
                                     runbook_holes, timeline_rows, version_before)
from genai_playbook.ledger import Ledger, served_at

NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)


@pytest.fixture
def now(): return [NOW]


@pytest.fixture
def log(tmp_path, now): return Ledger(tmp_path/'ledger.sqlite', lambda: now[0])


@pytest.fixture(scope='module')
def card(): return load_card('demo')


@pytest.mark.parametrize('kw', [dict(severity='sev1'), dict(severity=''), dict(who='  '), dict(what=''), dict(poc=''), dict(began=datetime(2026, 1, 1)), dict(severity=None)])
def test_what_is_refused_leaves_no_trace(log, kw):
    args = dict(poc='demo', who='On call', what='errors') | kw
    with pytest.raises(PlaybookError, match='nothing was written'): open_incident(log, **args)
    assert len(log) == 0


@pytest.mark.parametrize('id, step', [('INC-9', 'told'), ('', 'told'), ('INC-0', 'open'), ('INC-0', 'fixed'), ('INC-0', None)])
def test_a_step_that_cannot_be(log, id, step):
    open_incident(log, 'demo', 'On call', 'errors')
    with pytest.raises(PlaybookError, match='nothing was written'): follow_up(log, id, step, 'On call', 'done')
    assert len(log) == 1


def test_steps_in_any_order_but_none_after_the_end(log, now):
    open_incident(log, 'demo', 'On call', 'errors', 'SEV1', began=NOW-timedelta(minutes=2))
    for step in ('told', 'mitigated', 'told', 'closed'):
        now[0] += timedelta(minutes=1)
        follow_up(log, 'INC-0', step, 'On call', step)
    with pytest.raises(PlaybookError, match='closed'): follow_up(log, 'INC-0', 'told', 'On call', 'again')
    it = incidents(log)[0]
    assert (it.seconds('open'), it.seconds('told'), it.seconds('mitigated'), it.closed) == (120, 180, 240, True)


def test_incidents_that_interleave_stay_apart(log):
    a, b = open_incident(log, 'demo', 'A', 'one'), open_incident(log, 'other', 'B', 'two')
    follow_up(log, f'INC-{b.seq}', 'closed', 'B', 'done')
    follow_up(log, f'INC-{a.seq}', 'mitigated', 'A', 'done')
    assert [i.steps for i in incidents(log)] == [['open', 'mitigated'], ['open', 'closed']]
    assert [i.what for i in incidents(log, 'other')] == ['two']


def test_two_people_at_once_get_two_incidents(tmp_path):
    path = tmp_path/'ledger.sqlite'
    def one(i): open_incident(Ledger(path), 'demo', f'person {i}', f'errors {i}')
    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len({i.id for i in incidents(Ledger(path))}) == 8


def test_entries_of_another_hand_do_not_break_the_reading(log):
    log.append('incident', 'GOV02', 'an entry written by hand, without a step', 'demo')
    log.append('incident', 'somebody', 'a follow-up of nothing', 'demo', step='told', incident=77)
    open_incident(log, 'demo', 'On call', 'errors')
    assert [i.what for i in incidents(log)] == ['an entry written by hand, without a step', 'errors']


def test_a_postmortem_of_an_incident_written_by_hand(log, card):
    log.append('incident', 'GOV02', 'by hand', 'demo')
    text = postmortem(card, incidents(log)[0])
    assert 'nobody knows when it began' in text and 'not yet' in text


def test_text_of_strangers_stays_text(log, card):
    evil = '<script>alert(1)</script> | a | b\n## heading [x](http://evil.example)'
    open_incident(log, 'demo', evil, evil)
    follow_up(log, 'INC-0', 'mitigated', 'On call', evil, harm=evil)
    text = postmortem(card, incidents(log)[0], events=[dict(at=1., what=evil, because=evil)], impact={evil: evil})
    assert '<script>' not in text and '\n## heading' not in text and '[x](http' not in text
    row = next(line for line in text.splitlines() if line.startswith('| +0.0'))
    assert row.replace('\\|', '').count('|') == 4


def test_the_version_before_is_never_the_one_that_was_rolled_back(log):
    assert version_before([]) is None
    for m in 'abc': log.append('promote', 'Lead', 'approved', 'demo', dict(model=m*64))
    assert version_before(log.entries()) == 'b'*64
    record_rollback(log, 'demo', 'On call', 'errors', 'b'*64)
    assert version_before(log.entries()) == 'a'*64
    log.append('promote', 'Lead', 'mended', 'demo', dict(model='d'*64))
    assert version_before(log.entries()) == 'b'*64
    log.append('promote', 'Lead', 'without a digest', 'demo')
    assert version_before(log.entries()) == 'b'*64


def test_a_drill_changes_nothing_about_what_is_served(log):
    log.append('promote', 'Lead', 'approved', 'demo', dict(model='a'*64))
    record_drill(log, 'demo', 'Head of operations', dict(drills=3, dropped=0, real=[dict(secret='x')]))
    assert served_at(log, 'demo', NOW).entry.kind == 'promote' and not incidents(log)
    assert log.entries('drill')[0].facts == dict(drills=3, dropped=0)
    with pytest.raises(PlaybookError, match='empty'): record_drill(log, 'demo', ' ', dict(drills=3))


def test_a_rollback_to_nowhere_is_refused(log):
    with pytest.raises(PlaybookError, match='digest'): record_rollback(log, 'demo', 'On call', 'errors', '')
    assert len(log) == 0


def bare(**sections): return ns(name='bare', sections=sections, spec=ns(owners=ns(model_dump=lambda: dict(product=None, technical=None, risk=None))))


def test_a_runbook_of_a_card_that_names_nobody():
    assert len(runbook_holes(bare())) == 6
    text = runbook(bare())
    assert text.count('nobody is named') >= 3 and 'Nobody has measured' in text and 'nothing to go back to' in text
    assert all(s in text for s in SEVERITIES)


def test_the_runbook_names_what_did_not_pass(card):
    gates = [dict(code='SEC03', name='Answers that leak', verdict='FAIL', advice='Take the data out | of training', note=''), dict(code='LAT01', name='fast', verdict='PASS', advice='', note='')]
    text = runbook(card, dict(drills=2, dropped=1), gates)
    assert 'SEC03' in text and 'LAT01' not in text and '1 requests dropped' in text and 'leak' in text


def test_a_timeline_counts_from_the_beginning_and_leaves_old_promotions_out(log, now):
    log.append('promote', 'Lead', 'long ago', 'demo', dict(model='a'*64))
    now[0] += timedelta(days=3)
    log.append('promote', 'Lead', 'an hour before', 'demo', dict(model='b'*64))
    now[0] += timedelta(hours=1)
    open_incident(log, 'demo', 'On call', 'errors')
    rows = timeline_rows(incidents(log)[0], log.entries(), [dict(at=-5., what='promote', because='')])
    assert [(r['at'], r['what'].split(':')[0]) for r in rows] == [(-3600., 'promote'), (-5., 'promote'), (0., 'open')]
