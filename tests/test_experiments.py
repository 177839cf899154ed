"Experiments on logs that nobody would write on purpose"
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.errors import PlaybookError
from genai_playbook.experiment_plan import preference, team_draft
from genai_playbook.experiments import DONT, KEEP_RUNNING, SHIP, Metric, analyse, draw, read_assignments, required_users


def log(users=2000, effect=0., rows=3, seed=0, arms=('A', 'B')):
    "Users who come back, a share that arm B raises, and a time that it does not"
    rng = np.random.default_rng(seed)
    arm, base = rng.integers(0, len(arms), users), rng.normal(size=users)
    u = np.r_[np.arange(users), rng.integers(0, users, users*(rows - 1))]
    at = pd.Timestamp('2026-05-01', tz='UTC') + pd.to_timedelta(np.sort(rng.random(len(u)))*14, unit='D')
    solved = (rng.random(len(u)) < .6 + effect*(arm[u] > 0))*1
    return pd.DataFrame(dict(user=[f'u{i}' for i in u], arm=np.array(list(arms))[arm[u]], at=at, solved=solved, seconds=10 + base[u] + rng.normal(size=len(u)), before=base[u]))


@pytest.mark.parametrize('effect, verdict', [(.12, SHIP), (-.12, DONT), (0., KEEP_RUNNING)])
def test_the_three_verdicts(effect, verdict):
    e = analyse(log(effect=effect), 'solved', 'A', guardrails=[Metric('seconds', better='lower')])
    assert e.verdict == verdict, e.because
    assert (e.n_to_go == 0) == (verdict != KEEP_RUNNING)
    assert e.winner == ('B' if verdict == SHIP else None)
    assert list(e.rows['metric']) == ['solved', 'seconds']


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_files_say_what_the_frame_says(tmp_path, kind):
    frame = log(600, .3)
    path = tmp_path/f'log.{kind}'
    if kind == 'csv': frame.to_csv(path, index=False)
    else: path.write_text(frame.to_json(orient='records', lines=True, date_format='iso', date_unit='us'), encoding='utf-8')
    assert analyse(path, 'solved', 'A').rows.round(9).equals(analyse(frame, 'solved', 'A').rows.round(9))


def test_bad_logs_are_refused_in_one_sentence():
    for change, says in [(lambda f: f.drop(columns='arm'), 'no column `arm`'), (lambda f: f.iloc[:0], 'no rows'), (lambda f: f.assign(user=None), 'has no user')]:
        with pytest.raises(PlaybookError, match=says): read_assignments(change(log(50)))
    with pytest.raises(PlaybookError, match='effect must be'): required_users(0, sd=1)


def told(e, *says):
    said = ' '.join([e.because, *e.notes])
    for s in says: assert s in said, said
    return e


def test_rows_that_come_twice_count_once_and_order_is_no_matter():
    frame = log(800, .1)
    want = analyse(frame, 'solved', 'A').rows
    twice = told(analyse(pd.concat([frame, frame.iloc[::3]]), 'solved', 'A'), '800 rows came twice')
    shuffled = told(analyse(frame.sample(frac=1, random_state=1), 'solved', 'A'), 'out of order')
    for e in twice, shuffled: pd.testing.assert_frame_equal(e.rows, want)
    assert analyse(frame, 'solved', 'A').notes == ()
    numbered = frame.assign(id=np.arange(len(frame)))
    again = numbered.iloc[:5].assign(solved=1)  # the same id with another value is the same row, sent twice
    assert told(analyse(pd.concat([numbered, again]), 'solved', 'A'), '5 rows came twice').rows.equals(want)


def test_equal_rows_of_a_coarse_log_are_no_repeats():
    daily = log(800, .1)[['user', 'arm', 'at', 'solved']].assign(at=lambda f: f['at'].dt.floor('D'))
    assert daily.duplicated().sum() > 50  # the same user solved twice on the same day
    e = told(analyse(daily, 'solved', 'A'), 'too coarse to tell a repeat')
    assert e.rows.equals(analyse(daily.assign(id=range(len(daily))), 'solved', 'A').rows)


def test_an_arm_without_rows():
    one = log(1000).query('arm == "A"')
    assert told(analyse(one, 'solved', 'A'), 'nothing to compare it with yet').verdict == KEEP_RUNNING
    gone = told(analyse(one, 'solved', 'A', shares=dict(A=1, B=1)), 'split', 'B: 0 users')
    assert gone.verdict == DONT and not gone.sound
    few = told(analyse(one.iloc[:4], 'solved', 'A', shares=dict(A=1, B=1)), 'an arm has no users yet')
    assert few.verdict == KEEP_RUNNING and few.sound and few.n_to_go is None


def test_arms_that_nobody_planned_or_meant():
    with pytest.raises(PlaybookError, match='arm `b` is in the log but not in shares.*did you mean `B`'): analyse(log(50, arms=('A', 'b')), 'solved', 'A', shares=dict(A=1, B=1))
    with pytest.raises(PlaybookError, match='no arm `control`'): analyse(log(50), 'solved', 'control')
    with pytest.raises(PlaybookError, match='above 0'): analyse(log(50), 'solved', 'A', shares=dict(A=1, B=0))


def test_another_split_than_planned_is_no_experiment():
    e = told(analyse(log(3000, .2), 'solved', 'A', shares=dict(A=9, B=1)), 'not the planned one')
    assert (e.verdict, e.sound, e.winner, e.verdicts) == (DONT, False, None, dict(B=SHIP))


def test_users_in_two_arms():
    frame = log(2000, .15)
    some = frame.assign(arm=np.where(frame['user'].isin([f'u{i}' for i in range(8)]) & (np.arange(len(frame)) % 2 == 0), 'B', frame['arm']))
    e = told(analyse(some, 'solved', 'A'), 'users were in several arms and are left out')
    assert e.verdict == SHIP and e.estimate('B').n < 2000
    by_visit = frame.assign(arm=np.where(np.random.default_rng(0).random(len(frame)) < .5, 'A', 'B'))
    e = told(analyse(by_visit, 'solved', 'A'), 'mend the assignment')
    assert e.verdict == DONT and not e.sound


def test_missing_values_never_help():
    frame = log(3000, .12)
    whole = analyse(frame, 'solved', 'A').estimate('B')
    holes = frame.assign(solved=frame['solved'].where(frame.index % 50 > 0))
    e = analyse(holes, 'solved', 'A').estimate('B')
    assert e.low < whole.low and e.high > whole.high and e.unscored == int(holes['solved'].isna().sum())
    equal = log(3000)
    lost = equal.assign(solved=equal['solved'].where((equal['arm'] == 'A') | (equal['solved'] == 1)))  # B's failures were never written
    assert analyse(lost, 'solved', 'A').verdict == KEEP_RUNNING
    open_ended = told(analyse(frame.assign(seconds=frame['seconds'].where(frame.index != 7)), 'seconds', 'A'), '1 rows have no value and could have any')
    assert open_ended.verdict == KEEP_RUNNING and open_ended.n_to_go is None
    infinite = frame.assign(seconds=np.where(frame.index == 7, np.inf, frame['seconds']))
    assert analyse(infinite, 'seconds', 'A').verdict == KEEP_RUNNING
    assert analyse(frame.assign(solved=np.nan), 'solved', 'A').verdict == KEEP_RUNNING


def test_days_without_rows():
    frame = log(3000, .12)
    day = frame['at'].dt.day
    assert told(analyse(frame[~day.isin([5, 6])], 'solved', 'A'), 'No arm has a row on 2 of 14 days (2026-05-05, 2026-05-06)').verdict == SHIP
    silent = told(analyse(frame[(day != 5) | (frame['arm'] == 'A')], 'solved', 'A'), 'Arm B has no row on 2026-05-05')
    assert silent.verdict == DONT and not silent.sound


def test_a_metric_that_never_changes():
    frame = log(1000).assign(five=5., none=0)
    e = told(analyse(frame, 'five', 'A'), 'same value')
    assert e.verdict == KEEP_RUNNING and e.n_to_go is None
    assert analyse(frame, Metric('five', bounds=(0, 10)), 'A').rows['verdict'].tolist() == ['open']
    leaks = Metric('none', better='lower', margin=.02)  # no leak among a thousand users: shown to be rare, not to be none
    assert analyse(frame, 'solved', 'A', [leaks]).rows['verdict'].tolist() == ['open', 'clears']
    assert analyse(frame, 'solved', 'A', [Metric('none', better='lower', margin=.002)]).rows['verdict'].tolist() == ['open', 'open']


def test_the_time_before():
    frame = log(1500)
    with_, without = (analyse(frame, 'seconds', 'A', pre=p) for p in ('before', None))
    assert with_.rows['explained'][0] > .4 and np.ptp(with_.rows[['low', 'high']].iloc[0]) < .8*np.ptp(without.rows[['low', 'high']].iloc[0])
    half = analyse(frame.assign(before=frame['before'].where(frame['user'].str[-1].isin(list('01234')))), 'seconds', 'A', pre='before')
    assert .1 < half.rows['explained'][0] < 1 and np.ptp(half.rows[['low', 'high']].iloc[0]) < np.ptp(without.rows[['low', 'high']].iloc[0])
    for change, says in [({}, 'no column `old`'), (dict(old=np.nan), 'has no value'), (dict(old=frame['before'] + (frame['arm'] == 'B')), 'cannot be from before')]:
        e = told(analyse(frame.assign(**change), 'seconds', 'A', pre='old'), says)
        pd.testing.assert_frame_equal(e.rows, without.rows)
    with pytest.raises(PlaybookError, match='some users have several'): analyse(frame, 'seconds', 'A', pre='solved')


def test_skewed_values_wait():
    frame = log(400)
    spent = frame.assign(spent=np.where(frame['user'] == 'u3', 1e5, 1.) + np.random.default_rng(0).random(len(frame)))
    assert told(analyse(spent, 'spent', 'A'), 'too skewed').verdict == KEEP_RUNNING


@pytest.mark.parametrize('change, says', [
    (lambda f: f.assign(at='yesterday'), 'times such as'), (lambda f: f.assign(at=pd.NaT), 'have no time'), (lambda f: f.assign(arm=''), 'has no arm'),
    (lambda f: f.rename(columns=dict(user='users')), 'did you mean `users`'), (lambda f: f.assign(solved='yes'), 'should hold numbers'), (lambda f: f.drop(columns='solved'), 'no column `solved`')])
def test_what_cannot_be_read_is_one_sentence(change, says):
    with pytest.raises(PlaybookError, match=says) as e: analyse(change(log(50)), 'solved', 'A')
    assert '\n' not in str(e.value)


def test_a_half_written_log(tmp_path):
    path = tmp_path/'log.jsonl'
    path.write_text('{"user": "a", "arm": "A", "at": "2026-05-01T00:00:00", "solved": 1}\n{"user": "b", "ar')
    with pytest.raises(PlaybookError, match='log.jsonl:2: not JSON'): analyse(path, 'solved', 'A')


def test_arguments_that_mean_nothing():
    for call, says in [(lambda: Metric('m', better='more'), "better must be"), (lambda: Metric('m', least=-1), 'least must be'), (lambda: Metric('m', margin=0), 'margin'),
                       (lambda: analyse(log(50), 'solved', 'A', level=5), 'level'), (lambda: analyse(log(50), 'solved', 'A', planned=0), 'planned'),
                       (lambda: required_users(.1), 'either sd'), (lambda: required_users(.1, rate=.95), 'shares between'), (lambda: required_users(1e-9, sd=1), 'larger one')]:
        with pytest.raises(PlaybookError, match=says): call()


def test_swapping_arms_or_units_changes_nothing_else():
    frame = log(1200, .1)
    there, back = analyse(frame, 'seconds', 'A').estimate('B'), analyse(frame, 'seconds', 'B').estimate('A')
    np.testing.assert_allclose([there.value, there.low, there.high], [-back.value, -back.high, -back.low])
    ms = analyse(frame.assign(seconds=frame['seconds']*1000), 'seconds', 'A').estimate('B')
    np.testing.assert_allclose([ms.value, ms.low, ms.high], 1000*np.array([there.value, there.low, there.high]))
    less = analyse(frame, Metric('seconds', better='lower'), 'A')
    np.testing.assert_allclose(less.rows[['difference', 'low', 'high']].iloc[0], [there.value, there.low, there.high])
    np.testing.assert_allclose(less.estimate('B').low, -there.high)


def test_the_worse_arm_stops_and_the_better_one_ships_among_several():
    rng = np.random.default_rng(0)
    frame = log(6000, arms='ABCD')
    gain = frame['arm'].map(dict(A=0, B=-.15, C=.15, D=0))
    e = analyse(frame.assign(solved=(rng.random(len(frame)) < .6 + gain)*1), 'solved', 'A')
    assert (e.verdict, e.winner, e.verdicts) == (SHIP, 'C', dict(B=DONT, C=SHIP, D=KEEP_RUNNING))


def test_looking_at_equal_arms_ships_nothing():
    frame = log(1500, arms='ABC', rows=2)
    assert not any(analyse(frame[frame['at'] <= when], m, 'A', shares=dict(A=1, B=1, C=1)).verdict == SHIP for when in frame['at'].iloc[::150] for m in ('solved', 'seconds'))


def test_so_many_more_users_of_the_same_kind_do_decide():
    frame = log(1500, .04)
    early = analyse(frame, 'solved', 'A')
    assert early.verdict == KEEP_RUNNING and early.n_to_go > 0
    def copies(k): return pd.concat([frame.assign(user=frame['user'] + f'.{i}') for i in range(k)])
    k = early.n_to_go//1500 + 1
    assert analyse(copies(k + 1), 'solved', 'A').verdict == SHIP and analyse(copies(k), 'solved', 'A').verdict == KEEP_RUNNING


def test_a_million_rows_take_seconds():
    frame = log(330_000, .01).assign(user=lambda f: f['user'].factorize()[0])
    start = time.process_time()
    e = analyse(frame, 'solved', 'A', guardrails=[Metric('seconds', better='lower')], pre='before')
    assert len(frame) > 980_000 and e.verdict == SHIP
    assert len(e.looks) == 25
    assert time.process_time() - start < 30, 'seconds of one core; about 2 when nothing else runs'


def test_a_picture_of_every_verdict():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    for frame in log(1000, .2), log(20), log(100).query('arm == "A"'): plt.close(draw(analyse(frame, 'solved', 'A')))


@given(st.lists(st.integers(0, 30), max_size=12, unique=True), st.lists(st.integers(0, 30), max_size=12, unique=True), st.integers(0, 12), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_team_draft_shows_each_item_once_and_is_fair(a, b, n, seed):
    shown, team = team_draft(a, b, n, seed)
    assert len(shown) == len(set(shown)) == len(team) == min(n, len({*a, *b})) and set(shown) <= {*a, *b}
    for side, ranking in (('A', a), ('B', b)):
        own = [x for x, t in zip(shown, team) if t == side]
        assert own == [x for x in ranking if x in own]
    if a and b and len({*a} & {*b}) == len(a) == len(b): assert abs(team.count('A') - team.count('B')) <= 1


def test_preferences_from_nothing():
    assert not preference([]).enough and not preference([None, None]).enough
    with pytest.raises(PlaybookError, match='between 0'): preference([2])


def test_what_json_calls_true(tmp_path):
    frame = log(600, .3)
    want = analyse(frame, 'solved', 'A').rows
    as_bool = frame.assign(solved=frame['solved'] == 1, note=[dict(a=1)]*len(frame))
    path = tmp_path/'log.jsonl'
    path.write_text(as_bool.to_json(orient='records', lines=True, date_format='iso', date_unit='us'), encoding='utf-8')
    as_bool.drop(columns='note').to_csv(tmp_path/'log.csv', index=False)
    for source in as_bool, path, tmp_path/'log.csv': pd.testing.assert_frame_equal(analyse(source, 'solved', 'A').rows, want)


def test_an_id_of_users_removes_nobody():
    frame = log(600, .3)
    assert analyse(frame.assign(id=frame['user']), 'solved', 'A').rows.equals(analyse(frame, 'solved', 'A').rows)


def test_missing_users_count_as_worst_with_a_pre_period_too():
    frame = log(3000)
    lost = frame.assign(solved=frame['solved'].where((frame['arm'] == 'A') | (frame['solved'] == 1)))
    e = analyse(lost, 'solved', 'A', pre='before')
    assert e.verdict == KEEP_RUNNING and e.n_to_go is None and e.estimate('B').low < 0 < e.estimate('B').value


def test_a_guardrail_by_name_alone():
    frame = log(2000, .2).assign(errors=0)
    assert analyse(frame, 'solved', 'A', 'seconds').rows['metric'].tolist() == ['solved', 'seconds']
    e = told(analyse(frame, 'solved', 'A', ['errors']), 'give margin')
    assert e.verdict == KEEP_RUNNING and e.n_to_go is None
    with pytest.raises(PlaybookError, match='arm `C` has no metric `solved`'): e.estimate('C')


def test_a_confidence_is_not_a_level():
    with pytest.raises(PlaybookError, match='chance of a false claim, such as .05'): analyse(log(50), 'solved', 'A', level=.95)
    with pytest.raises(PlaybookError, match='chance of a false claim, such as .05'): required_users(.1, sd=1, level=.95)
    with pytest.raises(PlaybookError, match='two columns are called `user`'): read_assignments(log(50), names=dict(user='arm'))


def test_a_small_arm_without_events_says_little():
    def rare(old, new): return pd.DataFrame(dict(user=range(old + new), arm=['A']*old + ['B']*new, at=pd.Timestamp('2026-05-01'), solved=[i % 39 == 0 for i in range(old)] + [0]*new))
    e = told(analyse(rare(1153, 155), 'solved', 'A', shares=dict(A=9, B=1)), 'too skewed')  # chance of none: .9744¹⁵⁵ = 1.8 %
    assert e.verdict == KEEP_RUNNING and e.estimate('B').high > 0
    assert analyse(rare(18_000, 2000), 'solved', 'A', shares=dict(A=9, B=1)).verdict == DONT
