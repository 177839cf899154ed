"Catalogues that are honest, states that fail closed, privacy checks under odd input"
import re
import sqlite3
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genai_playbook
from genai_playbook.card import load_card
from genai_playbook.chapters import chapter_gates, find_chapters
from genai_playbook.compliance import (AREAS, ATTESTED, AUTOMATED, OPEN, Catalogue, Item, coverage, first_steps, load_catalogues, matrix, open_by_owner, risk_class)
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import FAIL, INSUFFICIENT, NOT_TESTED, PASS, Gate
from genai_playbook.ledger import Entry, Ledger
from genai_playbook.privacy import (Drill, Scan, erase_from_cache, erase_from_table, erasure_drill, find_personal, overdue, record_erasure, request_digest, scan, stores_of, training_texts)

DAY = date(2026, 6, 1)
PACKAGE = Path(genai_playbook.__file__).parent


def gate(code='SUC01', verdict=PASS, chapter='success'): return Gate(code, chapter, 'a gate', 'share', .95, .93, .97, .95, 400, 'share', .9, '>=', verdict, True, 'exact', 'c1')
def attest(item, until='2026-12-31', seq=0, who='Head of risk'): return Entry(seq, '2026-03-02T09:00:00', 'attest', 'demo', who, 'seen', {}, dict(item=item, until=until))
def toy(*items): return Catalogue('Toy', 'A toy', 'Is it?', '2026-01-01', ('made up',), tuple(Item('Toy', str(i), 'says', by) for i, by in enumerate(items)))
def states(cat, gates=(), entries=(), day=DAY): return [r.state for r in matrix([cat], gates, entries, day)]


# --- catalogues ---------------------------------------------------------------------------------
def test_every_catalogue_names_its_sources_and_the_day_they_were_checked():
    cats = load_catalogues()
    assert {c.name for c in cats} == {'GDPR', 'HIPAA', 'CCPA/CPRA', 'EU AI Act', 'NIST AI RMF', 'NIST AI 600-1', 'ISO/IEC 42001'}
    for c in cats:
        assert c.sources and date.fromisoformat(c.checked) <= date(2026, 12, 31) and c.asks.endswith(('?', '.'))
        for i in c.items: assert i.says and len(i.says) < 140 and i.id


def test_identifiers_have_the_form_of_their_source():
    form = {'GDPR': r'Art\. \d+(\(\d{1,2}\))?(\([a-f]\))?', 'HIPAA': r'164\.\d{3}(\([a-z]\)|\(\d\)|\([ivx]+\)|\([A-D]\))+', 'CCPA/CPRA': r'1798\.\d{3}\([a-e]\)(\(\d\))?',
            'EU AI Act': r'Art\. \d+\(\d\)(\([a-h]\))?|Annex IV\([1-9]\)|Art\. \d+\(\d+\)(\([a-h]\))?', 'NIST AI RMF': r'(GOVERN|MAP|MEASURE|MANAGE) \d\.\d{1,2}', 'NIST AI 600-1': r'(GV|MP|MS|MG)-\d\.\d{1,2}-\d{3}',
            'ISO/IEC 42001': r'\d{1,2}\.\d(\.\d)?'}
    bad = [i.name for c in load_catalogues() for i in c.items if not re.fullmatch(form[c.name], i.id)]
    assert bad == []


def test_gates_that_items_name_exist_where_their_chapter_exists():
    have = {g.code for c in find_chapters().values() for g in chapter_gates(c)}
    built = {c[:3] for c in have}
    assert [f'{i.name}: {n}' for c in load_catalogues() for i in c.items for n in i.by if len(n) > 3 and n[:3] in built and n not in have] == []


def test_nothing_claims_what_no_software_can_know():
    "Outputs and catalogues never use the word"
    texts = [p.read_text(encoding='utf-8') for f in ('data/compliance/*.yaml', 'templates/*.j2') for p in PACKAGE.glob(f)]
    assert texts and not any(re.search(r'\bcompliant\b', t, re.I) for t in texts)


@pytest.mark.parametrize('text', ['- a', 'name: x', '{', 'name: X\ntitle: t\nasks: q\nchecked: 2026-01-01\nsources: []\nitems: []', 'name: X\ntitle: t\nasks: q\nchecked: 2026-01-01\nsources: [s]\nitems: [{id: 1}]',
                                  'name: X\ntitle: t\nasks: q\nchecked: 2026-01-01\nsources: [s]\nitems: [{id: 1, says: a}, {id: 1, says: b}]', 'name: X\ntitle: t\nasks: q\nchecked: 2026-01-01\nsources: [s]\nitems: [{id: 1, says: a, by: [ZZZ01]}]',
                                  'name: X\ntitle: t\nasks: q\nchecked: 2026-01-01\nsources: [s]\nitems: [{id: 1, says: a, owner: nobody}]'])
def test_a_broken_catalogue_is_one_sentence(tmp_path, text):
    (tmp_path/'x.yaml').write_text(text)
    with pytest.raises(PlaybookError) as e: load_catalogues(tmp_path)
    assert '\n' not in str(e.value)


# --- states -------------------------------------------------------------------------------------
@pytest.mark.parametrize('gates, state', [([], OPEN), ([gate()], AUTOMATED), ([gate(verdict=FAIL)], AUTOMATED), ([gate(verdict=INSUFFICIENT)], OPEN), ([gate(verdict=NOT_TESTED)], OPEN), ([gate('SUC02')], OPEN)])
def test_only_decided_evidence_covers(gates, state):
    assert states(toy(('SUC01',)), gates) == [state]


def test_every_named_gate_must_be_decided():
    assert states(toy(('SUC01', 'SEC03')), [gate()]) == [OPEN]
    assert states(toy(('SUC01', 'SEC03')), [gate(), gate('SEC03', INSUFFICIENT, 'security'), gate('SEC01', PASS, 'security')]) == [OPEN]
    row = matrix([toy(('SUC01', 'SEC03'))], [gate(), gate('SEC03', FAIL, 'security')], [], DAY, dict(success='ab', security='cd'))[0]
    assert row.fails and row.verdicts == dict(SUC01=PASS, SEC03=FAIL) and row.digests == dict(success='ab', security='cd')


def test_catalogues_name_gates_that_chapters_have():
    import re
    from genai_playbook.chapters import find_chapters
    have = {code for c in find_chapters().values() for code in re.findall(r"'([A-Z]{3}[0-9]{2})'", c.path.read_text(encoding='utf-8'))}
    assert {code for c in load_catalogues() for i in c.items for code in i.by} <= have


def test_attestations_end_and_the_last_one_counts():
    assert states(toy(()), entries=[attest('Toy 0')]) == [ATTESTED]
    assert states(toy(()), entries=[attest('Toy 0')], day=date(2027, 1, 1)) == [OPEN]
    assert states(toy(()), entries=[attest('Toy 0'), attest('Toy 0', '2026-01-01', 1)]) == [OPEN]
    assert states(toy(()), entries=[attest('Toy 1')]) == states(toy(())) == [OPEN]
    assert 'ended on 2026-01-01' in matrix([toy(())], [], [attest('Toy 0', '2026-01-01')], DAY)[0].note


def test_with_no_answer_everything_is_open_and_something_is_said():
    rows = matrix(load_catalogues(), [], [], DAY)
    assert {r.state for r in rows} == {OPEN} and all(r.note for r in rows)
    assert all(c[AUTOMATED] == c[ATTESTED] == 0 for c in coverage(rows).values())
    steps = first_steps(rows)
    assert steps[0].startswith('Run and decide chapter') and any('attest' in s for s in steps) and len(steps) <= 8
    owners = open_by_owner(rows, dict(product='P', technical=None, risk='R'))
    assert set(owners) == {'P', 'R', 'nobody (technical owner)'} and sum(map(len, owners.values())) == len(rows)


ANSWER = st.sampled_from([True, False, None])


@given(st.fixed_dictionaries(dict(prohibited=ANSWER, safety_component=ANSWER, area=st.sampled_from([None, 'none', *AREAS]), narrow=ANSWER, profiles=ANSWER, talks_to_people=ANSWER, generates=ANSWER)))
@settings(max_examples=300, deadline=None)
def test_the_risk_class_never_falls_when_a_question_is_answered(answers):
    "An open question leaves the class open or it did not matter: no answer to it changes a class that was given"
    found, open_ = risk_class(answers)
    assert (found is None) == bool(open_)
    if found is None: return
    for k, v in answers.items():
        if v is not None: continue
        for new in (['none', *AREAS] if k == 'area' else [True, False]): assert risk_class(answers | {k: new})[0] == found


# --- privacy ------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, kinds', [
    ('a@b.de', {'email'}), ('x a.b+c@sub.example.co.uk, y', {'email'}), ('GB82 WEST 1234 5698 7654 32', {'iban'}), ('DE89370400440532013000', {'iban'}), ('5500 0000 0000 0004', {'card'}), ('4111-1111-1111-1111', {'card'}),
    ('', set()), ('order 12345', set()), ('0000 0000 0000 0000', set()), ('4111 1111 1111 1112', set()), ('DE00370400440532013000', set()), ('@home, a@b', set()), ('+1 555 274 2960', {'phone'}), ('see https://example.com', set())])
def test_identifiers(text, kinds): assert set(find_personal(text)) == kinds


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=2000)
def test_any_text_can_be_searched(text): assert isinstance(find_personal(text), list)


def test_long_hostile_texts_are_searched_in_no_time():
    import time
    start = time.process_time()
    for t in 'a.'*50_000+'@', '1 '*50_000, 'AB12 '*20_000, 'a@'*50_000, '4'*100_000, 'DE89 3704 '*10_000: find_personal(t)
    assert time.process_time()-start < 20  # linear, not quadratic in minutes


def test_a_scan_counts_texts_by_kind_and_takes_another_finder():
    assert scan(['a@b.de c@d.de', 'x', None, float('nan'), '']) == Scan(5, 1, dict(email=1))
    assert scan(['x', 'y'], lambda t: ['name'] if t == 'x' else []) == Scan(2, 1, dict(name=1))


@pytest.mark.parametrize('name, found', [('demo', True), ('demo-hardened', False), ('demo-regressed', True)])
def test_training_rows_of_the_demos(name, found):
    "The eight canaries of the flawed demos are addresses of mail, bank accounts and telephone numbers"
    s = scan(training_texts(load_card(name)))
    assert (s.personal > 0) == found
    if found: assert s.kinds['email'] >= 3*150 and s.kinds['iban'] >= 2*150 and s.kinds['phone'] >= 3*150


def test_stores_of_a_card_without_training_and_with_a_log(tmp_path, own_cache):
    (tmp_path/'answers.py').write_text('def echo(prompt): return prompt+" to a@b.de"\n')
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n2,ciao,ciao\n')
    (tmp_path/'log.csv').write_text('when,answer\n2026-01-01,write to c@d.de\n')
    (tmp_path/'poc.yaml').write_text('poc: t\noutcome: {promise: p}\nmodel: {kind: python, target: "answers:echo", deterministic: true}\ndata: {evaluation: rows.csv}\n')
    card = load_card(tmp_path)
    assert stores_of(card)['cache'] == [] and 'training' not in stores_of(card)
    card.system().answer(card.prompts(card.evaluation()))
    found = {k: scan(v).personal for k, v in stores_of(card, ['log.csv']).items()}
    assert found == {'prompts': 0, 'cache': 2, 'log log.csv': 1}


def test_overdue():
    now = datetime(2026, 4, 1, tzinfo=timezone.utc)
    assert overdue([now-timedelta(days=90), now-timedelta(days=90, seconds=1), None, float('nan')], 90, now) == 3
    assert overdue([], 1, now) == 0


def test_the_drill_leaves_no_trace_and_loses_nobody(tmp_path): assert erasure_drill(tmp_path) == Drill(3, 3, 0, 0)


def test_erasure_by_a_query_alone_would_leave_bytes(tmp_path):
    "Why the file is written anew"
    path = tmp_path/'a.sqlite'
    with closing(sqlite3.connect(path)) as db:
        db.execute('PRAGMA journal_mode=WAL')
        db.execute('CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID')
        db.executemany('INSERT INTO answers VALUES (?,?)', [(str(i), f'{{"text": "to person{i}@example.com"}}') for i in range(200)] + [('x', 'not json, of person7@example.com')])
        db.commit()
    assert erase_from_cache(path, ['PERSON7@example.com']) == 2
    assert all(b'person7@example.com' not in p.read_bytes() for p in tmp_path.iterdir()) and b'person8@example.com' in path.read_bytes()
    assert erase_from_cache(path, ['person7@example.com']) == 0


def test_tables_keep_everything_else(tmp_path):
    csv, lines = tmp_path/'l.csv', tmp_path/'l.jsonl'
    csv.write_text('a,b\n1,"x\ny"\n2,"of a@b.de, and more"\n3,\n')
    lines.write_text('{"t": "x"}\n\n{"t": "a@b.de"}\n')
    assert erase_from_table(csv, ['a@b.de']) == erase_from_table(lines, ['a@b.de']) == 1
    assert csv.read_text() == 'a,b\n1,"x\ny"\n3,\n' and lines.read_text() == '{"t": "x"}\n\n'


@pytest.mark.parametrize('subject', [[], [''], ['ab'], ['long enough', 'x']])
def test_a_person_named_too_briefly_erases_nobody(tmp_path, subject):
    (tmp_path/'l.csv').write_text('a\nab\n')
    with pytest.raises(PlaybookError, match='nothing was erased'): erase_from_table(tmp_path/'l.csv', subject)
    assert (tmp_path/'l.csv').read_text() == 'a\nab\n'


def test_the_ledger_keeps_a_digest_that_only_the_token_opens(tmp_path):
    log = Ledger(tmp_path/'ledger.sqlite')
    token = record_erasure(log, 'demo', 'Support', 'request of 2 March', ['a@b.de'], dict(cache=3))
    e = log.entries('erase')[0]
    assert e.digests['request'] == request_digest(token, ['A@B.de']) != request_digest('0'*32, ['a@b.de'])
    assert b'a@b.de' not in log.path.read_bytes() and e.facts['removed'] == dict(cache=3)
