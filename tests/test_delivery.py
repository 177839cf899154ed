"Feedback, retraining, the pipeline and chapter 11 on bad days: dirty rows, failing and dying trainings, held candidates, cards without anything"
import json
import os
import random
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.card import load_card
from genai_playbook.comparing import NOT_WORSE
from genai_playbook.delivery import GATES, Loss, Section, explore, fires, flaws, plot_losses, replayed, slice_losses, worst_loss
from genai_playbook.delivery_drills import PROBES, forbidden, history_drill, let_through
from genai_playbook.demo import csv_text, feedback_rows
from genai_playbook.errors import PlaybookError
from genai_playbook.experiments import analyse
from genai_playbook.feedback import AGAIN, EMPTY, KNOWN, TORN, UNREVIEWED, held_out, intake, leaked, read_feedback, refusals, text_key
from genai_playbook.head_to_head import Side
from genai_playbook.pipeline import HELD, OPEN, READY, Findings, by_success, decided, due, promote, promote_poc, retrain, retrain_poc, roll_back, roll_back_poc
from genai_playbook.registry import LedgerRegistry, champion, history_problems, registry_of
from genai_playbook.retraining import Rule, alone, grown, retraining_due, train_with, trained, write_card
from genai_playbook.stats import Estimate

DEMO = Path(sys.modules['genai_playbook'].__file__).parent/'data'/'demo'
CARD = '''poc: mine
outcome: {promise: it works}
model: {kind: python, target: "bot:old", deterministic: true}
data: {evaluation: rows.csv, columns: {cluster: talk, slices: [kind]}}
success: {target: 0.5}
'''
BOT = '''import json, pathlib
def _known(): return json.loads((pathlib.Path(__file__).parent/'known.json').read_text())
def old(prompt): return 'yes' if prompt.endswith('even') else 'no'
def new(prompt): return 'yes'
def worse(prompt): return 'no' if prompt.startswith('q1') else old(prompt)
def learn(card, rows, out, seed): return dict(target='bot:new')
def learn_worse(card, rows, out, seed): return dict(target='bot:worse')
def crash(card, rows, out, seed):
    (out/'half').write_text('a model')
    raise ValueError('password=hunter2')
def nothing(card, rows, out, seed): return None
'''


@pytest.fixture
def home(tmp_path):
    "A POC whose model is a function; every answer should be yes"
    (tmp_path/'bot.py').write_text(BOT)
    rows = [dict(id=f'e{i}', talk=f't{i//2}', prompt=f'q{i} {"even" if i % 2 == 0 else "odd"}', reference='yes', kind='a' if i < 60 else 'b') for i in range(120)]
    pd.DataFrame(rows).to_csv(tmp_path/'rows.csv', index=False)
    fb = [dict(id=f'f{i}', talk=f'u{i}', prompt=f'new {i}', reference='yes', kind='a', reviewed_by='somebody') for i in range(40)]
    pd.DataFrame(fb).to_csv(tmp_path/'feedback.csv', index=False)
    (tmp_path/'poc.yaml').write_text(CARD + 'delivery: {train: "bot:learn", rehearsal: "bot:learn", feedback: feedback.csv, chapters: [success]}\n')
    return tmp_path


def once(home, train='bot:learn', **kw):
    card = load_card(home)
    return retrain(card, train, read_feedback(card, 'feedback.csv'), registry_of(card), home, **kw)


def steps(home): return [e.facts.get('step') for e in registry_of(load_card(home)).ledger.entries('retrain')]


# --- feedback -----------------------------------------------------------------------------------
def feedback_of(home, *rows):
    base = dict(id='x', talk='x', prompt='a question', reference='an answer', kind='a', reviewed_by='me')
    pd.DataFrame([base | dict(id=f'x{i}', talk=f'x{i}', prompt=f'a question {i}') | r for i, r in enumerate(rows)]).to_csv(home/'feedback.csv', index=False)
    card = load_card(home)
    rows = read_feedback(card, 'feedback.csv')
    return list(refusals(card, rows, card.evaluation()))


@pytest.mark.parametrize('row,why', [(dict(reviewed_by=''), UNREVIEWED), (dict(reviewed_by='  '), UNREVIEWED), (dict(prompt=''), EMPTY), (dict(reference=' '), EMPTY), (dict(id='e5'), KNOWN), (dict(talk='t3'), KNOWN),
                                     (dict(prompt='q4 even'), KNOWN), (dict(prompt='  Q4   EVEN!! '), KNOWN), (dict(prompt='ｑ４ ｅｖｅｎ'), KNOWN), ({}, '')])
def test_a_row_that_must_not_be_learned_says_why(home, row, why): assert feedback_of(home, row) == [why]


def test_duplicates_count_once_and_contradictions_not_at_all(home):
    same = dict(id='d', prompt='the same')
    assert feedback_of(home, same, same) == ['', AGAIN]
    assert feedback_of(home, same, same | dict(reference='another answer')) == [TORN, TORN]
    assert feedback_of(home, same, same | dict(prompt='another message')) == [TORN, TORN]
    assert feedback_of(home, dict(prompt='one'), dict(prompt='ONE.')) == ['', AGAIN]
    assert feedback_of(home, dict(prompt='one'), dict(prompt='ONE.', reference='other')) == [TORN, TORN]
    assert feedback_of(home, dict(prompt='one'), dict(prompt='one', reference='other', reviewed_by='')) == ['', UNREVIEWED]  # who did not sign contradicts nobody


@pytest.mark.parametrize('columns,named', [('id,prompt,reference', 'reviewed_by'), ('id,prompt,reviewed_by', 'reference'), ('prompt,reference,reviewed_by', 'id'), ('a,b', 'id, prompt, reference, reviewed_by')])
def test_feedback_without_its_columns_is_one_sentence(home, columns, named):
    (home/'feedback.csv').write_text(f'{columns}\n{",".join("x" for _ in columns.split(","))}\n')
    with pytest.raises(PlaybookError, match=named): read_feedback(load_card(home), 'feedback.csv')
    with pytest.raises(PlaybookError): read_feedback(load_card(home), 'gone.csv')


def test_no_conversation_ever_lies_on_both_sides_whatever_comes_later():
    card, rng = load_card('demo'), random.Random(1)
    rows = read_feedback(card, 'feedback.csv')
    train, held = set(), set()
    for _ in range(3):
        part = intake(card, rows.iloc[sorted(rng.sample(range(len(rows)), 500))], share=.2)
        train |= set(part.training['cluster']); held |= set(part.evaluation['cluster'])
        assert leaked(card, part.training) == 0 and part.training['reviewed_by'].notna().all()
    assert not train & held and .1 < len(held)/len(train | held) < .3


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_conversations(cluster, a, b):
    assert held_out(cluster, min(a, b)) <= held_out(cluster, max(a, b)) and text_key(text_key(cluster)) == text_key(cluster) == text_key(f' {cluster} !')


def test_every_planted_row_is_refused_and_an_empty_file_is_no_crash(home):
    card = load_card(home)
    planted = forbidden(card.evaluation())
    got = intake(card, planted)
    assert len(got.training['id']) == len(got.evaluation['id']) == 0 and sum(got.refused.values()) == len(planted) == 250
    assert intake(card, planted.head(0)).refused == {} and len(forbidden(card.evaluation().drop(columns='reference'))) == 0


def test_evaluation_rows_in_the_training_file_are_counted(home):
    card = load_card(home)
    assert leaked(card, card.evaluation()) == 120 and leaked(card, read_feedback(card, 'feedback.csv')) == 0


def test_the_demo_feedback_is_what_its_generator_makes():
    assert (DEMO/'feedback.csv').read_bytes() == csv_text(feedback_rows()).encode()


# --- training -----------------------------------------------------------------------------------
def tried(home, train, **kw):
    card = load_card(home)
    return trained(card, train, read_feedback(card, 'feedback.csv'), home/'releases', **kw)


@pytest.mark.parametrize('train,said', [('bot:gone', 'gone'), ('nomodule:f', 'no module'), ('bot', 'names no function'), ('bot:nothing', 'said nothing'), (['false'], 'exit code 1'), (['/no/such/program'], 'cannot be started'),
                                        (['sh', '-c', 'echo not json > {out}/model.json'], 'no JSON'), (['sh', '-c', 'echo [] > {out}/model.json'], 'said nothing')])
def test_a_training_that_fails_is_one_sentence_and_leaves_no_release(home, train, said):
    with pytest.raises(PlaybookError, match=said): tried(home, train)
    assert [p.name for p in (home/'releases').iterdir() if not p.name.startswith('.')] == []


def test_a_training_that_takes_too_long_is_stopped(home):
    (home/'out').mkdir()
    with pytest.raises(PlaybookError, match='more than 0.2 seconds'): train_with(['sleep', '30'], load_card(home), pd.DataFrame(dict(a=[1])), home/'out', timeout=.2)


def test_a_release_is_found_again_and_another_seed_or_row_is_another(home):
    one, settings_, known = tried(home, 'bot:learn')
    assert (settings_, known) == (dict(target='bot:new'), False) and tried(home, 'bot:learn')[0::2] == (one, True)
    assert tried(home, 'bot:learn', seed=1)[0] != one and tried(home, 'bot:learn_worse')[0] == one  # the code is the file that a function stands in
    (home/'feedback.csv').write_text((home/'feedback.csv').read_text() + 'f99,u99,more,yes,a,me\n')
    assert tried(home, 'bot:learn')[0] != one


DIES = '''
import os, signal, sys
from pathlib import Path
from genai_playbook.card import load_card
from genai_playbook.feedback import read_feedback
from genai_playbook.retraining import trained
card = load_card(sys.argv[1])
trained(card, ['sh', '-c', 'mkdir {out}/model && echo half > {out}/model/weights && kill -9 $PPID && sleep 1'], read_feedback(card, 'feedback.csv'), Path(sys.argv[1])/'releases')
'''


def test_killed_while_training_no_half_model_is_left_and_the_lock_is_free(home):
    assert subprocess.run([sys.executable, '-c', DIES, str(home)]).returncode == -signal.SIGKILL
    assert [p.name for p in (home/'releases').iterdir() if not p.name.startswith('.')] == []
    assert tried(home, 'bot:learn')[2] is False and not list((home/'releases').glob('.*.partial'))


def test_two_trainings_of_one_poc_do_not_run_side_by_side(home):
    with alone(home/'releases'):
        with pytest.raises(PlaybookError, match='Another training is at work'): tried(home, 'bot:learn')


def test_a_card_in_another_folder_finds_its_files_and_is_otherwise_the_same(home, tmp_path_factory):
    card, there = load_card('demo-hardened'), tmp_path_factory.mktemp('there')
    c, old = write_card(card, dict(max_new_tokens=39), there/'x.yaml'), card.digests()
    assert {k for k, v in c.digests().items() if v != old[k]} <= {'card', 'model', 'fallbacks', 'thresholds'} and len(c.evaluation()) == 4000
    mine = write_card(load_card(home), dict(target='bot:new'), there/'mine.yaml')  # its module stays where it was
    assert mine.system().answer(['q odd'])[0].text == 'yes' and len(mine.evaluation()) == 120 and {k for k, v in mine.digests().items() if v != load_card(home).digests()[k]} == {'card', 'model', 'thresholds'}
    assert grown(load_card(home), pd.DataFrame(), there) is None


# --- when ---------------------------------------------------------------------------------------
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([True, False, None]), max_size=8), st.integers(0, 1000), st.integers(0, 200) | st.none(), st.integers(1, 4))
def test_a_trigger_always_says_why_and_missing_windows_decide_nothing(alarms, reviewed, days, windows):
    last, rule = None if days is None else NOW-timedelta(days=days), Rule(windows, 500, 90)
    t = retraining_due(alarms, reviewed, last, NOW, rule)
    seen = [a for a in alarms if a is not None]
    assert t.because and t == retraining_due(seen, reviewed, last, NOW, rule)
    assert t.due == (len(seen) >= windows and all(seen[-windows:]) or reviewed >= 500 or days is not None and days >= 90)


def test_feedback_is_counted_since_the_last_training(home):
    card, rule = load_card(home), Rule(2, 40, 90)
    rows, reg = read_feedback(card, 'feedback.csv'), registry_of(card)
    assert due(reg, rows, rule=rule).due
    once(home)
    assert not due(reg, rows, rule=rule).due and due(reg, rows, [True, True], rule).due
    assert due(reg, rows, rule=rule, now=datetime.now(timezone.utc)+timedelta(days=91)).because == 'the model is 91 days old'


# --- the pipeline -------------------------------------------------------------------------------
def test_a_better_candidate_is_ready_registered_once_and_promoted_by_nobody(home):
    r = once(home)
    assert (r.verdict, r.version.number, r.against.number) == (READY, 2, 1) and 'better' in r.because and len(r.card.evaluation()) > 120
    assert steps(home) == ['registered', 'asked', 'trained', 'gated', 'compared', 'registered', 'decided']
    again = once(home)
    assert again.known and again.version.number == 2 and steps(home)[7:] == ['asked', 'trained', 'gated', 'compared', 'decided']
    reg = registry_of(load_card(home))
    assert reg.moves() == [] and history_problems(reg) == []
    with pytest.raises(PlaybookError, match='nobody has approved it'): promote_poc(home, 2, 'Release job', 'it is better')


def test_a_candidate_that_is_worse_or_fails_a_gate_is_held_and_cannot_be_promoted_even_when_signed(home):
    (home/'bot.py').write_text(BOT.replace("return dict(target='bot:new')", "return dict(target='bot:worse')"))
    r = once(home, gating=lambda card, side: Findings(('SEC01',), (), 'SEC01 failed'))
    assert r.verdict == HELD and 'SEC01 failed' in r.because and 'worse' in r.because and 'kind = b' in r.because
    reg = registry_of(load_card(home))
    reg.ledger.append('decision', 'Head', 'I want it', 'mine', dict(r.version.digests, evidence='e'), go=True)
    with pytest.raises(PlaybookError, match='SEC01 failed'): promote(reg, 2, 'Release job', 'signed')


def test_from_a_signature_to_a_rollback(home):
    once(home)
    card = load_card(home)
    reg = registry_of(card)
    for v in reg.versions():
        reg.ledger.append('decision', 'Head', 'fine', 'mine', dict(v.digests, evidence=f'e{v.number}'), go=True)
        promote_poc(home, v.number, 'Release job', 'signed')
    r = once(home)
    assert r.against.number == 2 and 'same system' in str(r.compared['notes'])  # the champion is what serves, not what the card names
    assert roll_back_poc(home, 'On call', 'errors').version == 1 and champion(reg).number == 1
    with pytest.raises(PlaybookError, match='nothing to go back to'): roll_back(reg, 'On call', 'errors')
    (home/'bot.py').write_text(BOT + '\n# touched\n')
    with pytest.raises(PlaybookError, match='Version 2 cannot serve: model changed'): promote(reg, 2, 'Release job', 'signed')
    with pytest.raises(PlaybookError, match='Version 1, which serves, cannot be asked: model changed'): once(home)


def test_a_training_that_crashes_leaves_the_champion_and_says_where_it_stopped(home):
    with pytest.raises(ValueError): once(home, 'bot:crash')
    assert steps(home) == ['registered', 'asked'] and once(home).version.number == 2


def test_without_a_reviewed_row_nothing_is_trained(home):
    fb = pd.read_csv(home/'feedback.csv').assign(reviewed_by='')
    fb.to_csv(home/'feedback.csv', index=False)
    with pytest.raises(PlaybookError, match='nothing to learn from: .*40 not reviewed'): once(home)


def test_one_of_many_reasons_is_enough_to_hold_and_doubt_is_never_ready():
    fine = dict(verdict=NOT_WORSE, headline='not worse.', worse=[])
    assert decided(Findings((), (), ''), fine)[0] == READY
    for found, compared in ((Findings(('A',), ('B',), ''), fine), (Findings((), (), ''), fine | dict(worse=['x'])), (Findings((), (), ''), fine | dict(verdict='worse'))): assert decided(found, compared)[0] == HELD
    for found, compared in ((Findings((), ('chapter bias',), ''), fine), (Findings((), (), ''), fine | dict(verdict='cannot tell')), (Findings((), (), ''), fine | dict(verdict=''))): assert decided(found, compared)[0] == OPEN


def test_a_card_without_training_says_what_to_write(home):
    (home/'poc.yaml').write_text(CARD)
    with pytest.raises(PlaybookError, match='delivery.train'): retrain_poc(home)
    (home/'poc.yaml').write_text(CARD + 'delivery: {train: "bot:learn"}\n')
    with pytest.raises(PlaybookError, match='delivery.feedback'): retrain_poc(home)
    (home/'poc.yaml').write_text(CARD + 'delivery: {train: "bot:learn", feedback: feedback.csv}\n')
    t = retrain_poc(home, if_due=True)
    assert not t.due and '40 of 500 rows' in t.because and not (home/'ledger.sqlite').exists()
    with pytest.raises(PlaybookError, match='delivery'):
        (home/'poc.yaml').write_text(CARD + 'delivery: {trian: x}\n')
        load_card(home)


def test_gating_by_success_compares_a_bound():
    card = load_card('demo')
    side = lambda k, n: Side('x', pd.DataFrame({'id': range(n), 'score.solved': [1.]*k + [0.]*(n-k)}), {}, {}, '')
    assert by_success(card, side(400, 400)).failed == () and by_success(card, side(400, 400)).open == ()
    assert by_success(card, side(10, 20)).failed == ('SUC01',) and by_success(card, side(20, 20)).open == ('SUC01',) and by_success(card, side(0, 0)).open == ('SUC01',)


# --- chapter 11 ---------------------------------------------------------------------------------
def test_codes_and_which_gates_stop_a_release():
    assert [g.code for g in GATES] == [f'DEL{i:02d}' for i in range(1, 11)] and [g.code for g in GATES if g.hard] == ['DEL01', 'DEL02', 'DEL05', 'DEL06', 'DEL07']
    s = Section()
    assert all(getattr(s, g.key.split('.')[1], g.default) == g.default for g in GATES)


@pytest.mark.parametrize('probe', PROBES)
def test_no_probe_comes_through_and_each_is_refused_for_its_own_reason(tmp_path, probe):
    said = []
    real = LedgerRegistry.move
    def move(self, *args, **kw):
        try: return real(self, *args, **kw)
        except PlaybookError as e:
            said.append(str(e))
            raise
    with pytest.MonkeyPatch.context() as m:
        m.setattr(LedgerRegistry, 'move', move)
        assert let_through(probe, tmp_path) is False
    want = dict([('nobody approved it', 'nobody has approved'), ('a later run says NO-GO', 'the evidence about it says NO-GO'), ('a hard gate failed in the pipeline', 'SEC01 failed'), ('an unknown version', 'no version 9'),
                 ('compared with what serves no more', 'somebody was faster'), ('it serves already', 'serves already'), ('a decision without evidence', 'names no evidence')])
    assert len(said) == 1 and want.get(probe, 'approved|only 1 of|NO-GO').split('|')[0] in said[0] or any(w in said[0] for w in ('approved', 'only 1 of', 'NO-GO'))


def test_a_probe_that_comes_through_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr('genai_playbook.registry.against', lambda *args: '')
    assert let_through('nobody approved it', tmp_path) is True


def test_a_registry_that_forgets_is_found_by_the_drill(tmp_path, monkeypatch):
    assert history_drill(tmp_path, 1, moves=10, questions=30)[0] == 0
    monkeypatch.setattr('genai_playbook.delivery_drills.served_then', lambda reg, t: 1)  # knows only one champion, as an alias does
    (tmp_path/'b').mkdir()
    assert history_drill(tmp_path/'b', 1, moves=10, questions=30)[0] > 10


def sides(n=200, flip=()):
    t = pd.DataFrame({'id': [str(i) for i in range(n)], 'slice.kind': ['a' if i < n//2 else 'b' for i in range(n)], 'score.solved': 1., 'answer': 'yes'})
    return Side('old', t, dict(metric='m', solved_from=1.), {}, ''), Side('new', t.assign(**{'score.solved': [0. if i in flip else 1. for i in range(n)]}), dict(metric='m', solved_from=1.), {}, '')


def test_a_slice_that_pays_for_the_others_is_on_top_and_bounds_hold_for_all():
    losses = slice_losses(*sides(flip=range(0, 60)))
    assert losses[0].name == 'kind = a' and losses[0].estimate.low > .3 and losses[1].estimate.value == 0
    w = worst_loss(losses)
    assert (w.value, w.low, w.high) == (losses[0].estimate.value, losses[0].estimate.low, losses[0].estimate.high)
    assert not worst_loss([]).enough and worst_loss([]).n == 0 and worst_loss([Loss('x', Estimate(float('nan'), -1, 1, 0, 'm', enough=False))]).enough is False
    import matplotlib.pyplot as plt
    plt.close(plot_losses(losses, .1))
    explore(Rule())


def test_a_replay_puts_each_user_in_one_arm():
    log = replayed(*sides(), pd.date_range('2026-01-01', periods=200, freq='h'))
    assert log.groupby('user')['arm'].nunique().max() == 1 and 60 < (log['arm'] == 'candidate').sum() < 140 and list(log) == ['user', 'arm', 'at', 'solved', 'words']


def test_an_experiment_is_void_when_users_go_missing_or_change_arms_and_open_when_there_are_few():
    log = lambda a, b: pd.DataFrame(dict(user=[f'u{i}' for i in range(a+b)], arm=['old']*a + ['new']*b, at='2026-01-01', solved=1.))
    crossed = pd.concat([log(500, 510), log(500, 510).head(40).assign(arm='new')])
    found = [flaws(analyse(x, 'solved', 'old')) for x in (log(500, 510), log(500, 700), crossed, log(40, 40), log(40, 400))]
    assert [(e.value, e.enough) for e in found] == [(0, True), (1, True), (1, True), (0, False), (1, True)]


def test_single_alarms_call_for_nothing():
    rng = random.Random(2)
    pairs = [fires([rng.random() < .05, rng.random() < .05], Rule()) for _ in range(4000)]
    assert sum(pairs) < 25 and fires([True, True], Rule()) and not fires([], Rule())


def test_bad_settings_are_named(home):
    for bad in ('loss: 2', 'train: {a: b}', 'windows: 0', 'experiment: {log: x}', 'recall: 1'):
        (home/'poc.yaml').write_text(CARD + f'delivery: {{{bad}}}\n')
        with pytest.raises(PlaybookError, match='delivery'): load_card(home)
    assert os.environ.get('GENAI_PLAYBOOK_DATA') and json.loads(json.dumps(Section().model_dump()))
