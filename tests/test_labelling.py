"Labelling under bad conditions: files cut off or written by two kernels, wrong labels, empty and large tasks"
import json
import multiprocessing
import subprocess
import sys
import threading

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_playbook.errors import PlaybookError
from genai_playbook.labelling import (Adjudication, LabelFile, LabelTask, Session, conflicts, disputes, final_labels, hear, label_task, label_widget,
                                      labelled_rows, order_of, reviews_of, shown, write_feedback)
from genai_playbook.monitor import RequestLog, read_log
from genai_playbook.reviewers import read_reviews, reviewer_table


def a_task(folder, n=6, **kw): return LabelTask(folder/'labels.jsonl', {f'q{i}': dict(answer=f'answer {i}') for i in range(n)}, **kw)


def finish(session, label='right'):
    while session.current: session.give(label(session.current) if callable(label) else label)


# -- the file --

def test_half_a_line_at_the_end_is_no_label_and_in_nobodys_way(tmp_path):
    task = a_task(tmp_path)
    s = Session(task, 'ada')
    s.give('right')
    s.give('wrong')
    whole = task.path.read_bytes()
    for cut in range(len(whole.splitlines()[0])+1, len(whole)):
        task.path.write_bytes(whole[:cut])
        again = Session(task, 'ada')
        assert again.done == 1 and again.current == s.order[1]
        again.give('right')
        assert [r['label'] for r in Session(task, 'ada').said.values()] == ['right', 'right']


def test_what_is_no_label_is_counted_and_left_out(tmp_path):
    task = a_task(tmp_path)
    good = dict(event='label', reviewer='ada', item='q1', label='right')
    bad = [json.dumps(good | more) for more in (dict(item=['q1']), dict(label={}), dict(event=None), dict(event='drop', reviewer='nobody'))]
    lines = ['', 'null', '7', '[]', '"x"', '{}', '{"event":1}', '\xff', '['*3000, *bad, json.dumps(good), 'NaN']
    task.path.write_bytes('\n'.join(lines).encode('latin1')+b'\n')
    file = LabelFile(task)
    file.refresh()
    assert list(file.given['ada']) == ['q1'] and file.unreadable == 10 and file.foreign == 3 and list(file.given) == ['ada']


def test_any_text_may_be_an_id_a_label_or_a_name(tmp_path):
    task = LabelTask(tmp_path/'l.jsonl', {'\ud800': {}, 'ü\n"': {}}, labels=['да', 'no\u2028'])
    finish(Session(task, 'Zoë\udfff'), 'no\u2028')
    assert Session(task, 'Zoë\udfff').done == 2 and set(final_labels(task)) == set(task.items)


def test_labels_of_another_task_in_the_same_file_do_not_count(tmp_path):
    finish(Session(LabelTask(tmp_path/'labels.jsonl', {'q0': {}, 'other': {}}, labels=['yes', 'no']), 'ada'), 'yes')
    s = Session(a_task(tmp_path), 'ada')
    assert s.done == 0 and s.file.foreign == 2 and final_labels(s.task) == {}


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    s = Session(a_task(tmp_path), 'ada')
    finish(s)
    s.task.path.write_text('')
    s.file.refresh()
    assert s.done == 0 and s.give('right') and Session(s.task, 'ada').done == 1


def test_a_label_that_cannot_be_saved_is_not_counted(tmp_path):
    (tmp_path/'labels.jsonl').mkdir()
    s = Session(a_task(tmp_path), 'ada')
    with pytest.raises(PlaybookError, match=r'could not be saved in labels\.jsonl'): s.give('right')
    assert s.done == 0 and 'could not be saved' in hear(s, dict(do='label', label='right', item=s.current))['said']


def test_a_killed_kernel_loses_nothing_that_was_answered(tmp_path):
    code = ('import sys\nfrom genai_playbook.labelling import *\nfrom pathlib import Path\n'
            f'task = LabelTask(Path({str(tmp_path/"labels.jsonl")!r}), {{f"q{{i}}": {{}} for i in range(5000)}})\ns = Session(task, "ada")\n'
            'while s.current:\n    item = s.current\n    s.give("right")\n    print(item, flush=True)')
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as p:
        told = [p.stdout.readline().strip() for _ in range(40)]
        p.kill()
    again = Session(a_task(tmp_path, 5000), 'ada')
    assert set(told) <= set(again.said) and again.current == again.order[again.done]


def _label(folder, who, wait):
    s = Session(a_task(folder, 60), who)
    wait.wait()
    finish(s, 'right' if who == 'ada' else 'wrong')


def test_two_kernels_may_write_the_same_file(tmp_path):
    context = multiprocessing.get_context('fork')
    together = context.Barrier(3)
    kernels = [context.Process(target=_label, args=(tmp_path, who, together)) for who in ('ada', 'ben', 'cleo')]
    for k in kernels: k.start()
    for k in kernels: k.join(60)
    file = LabelFile(a_task(tmp_path, 60))
    file.refresh()
    assert [k.exitcode for k in kernels] == [0]*3 and file.unreadable == 0
    assert {who: len(said) for who, said in file.given.items()} == dict(ada=60, ben=60, cleo=60)


# -- sessions --

def test_the_same_reviewer_twice_labels_each_item_once(tmp_path):
    one, two = (Session(a_task(tmp_path), 'ada') for _ in range(2))
    seen = two.current
    assert one.give('right') and not two.give('wrong', item=seen)   # the second window still showed the first item
    assert two.current == one.current and two.give('wrong') and one.give('right')
    assert len({i for i in one.said}) == 3 and list(one.said) == one.order[:3]
    assert two.undo() == one.order[2]                               # the latest word of the reviewer, in whichever window
    one.file.refresh()
    assert one.current == one.order[2]


def test_two_threads_under_one_name(tmp_path):
    sessions = [Session(a_task(tmp_path, 40), 'ada') for _ in range(2)]
    def work(s):
        try: finish(s)
        except PlaybookError as e: assert 'every item has its label' in str(e)
    threads = [threading.Thread(target=work, args=(s,)) for s in sessions]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert len(reviews_of(sessions[0].task)) == 40


@pytest.mark.parametrize('name', ['', '  ', 'ADA', 'ada ', 'Ada'])
def test_names_are_not_mixed_up(tmp_path, name):
    Session(a_task(tmp_path), 'ada').give('right')
    if name.strip() == 'ada': assert Session(a_task(tmp_path), name).done == 1
    else:
        with pytest.raises(PlaybookError, match='name'): Session(a_task(tmp_path), name)


def test_unknown_labels_and_too_many(tmp_path):
    s = Session(a_task(tmp_path), 'ada')
    for label in ('Right', '', None, 1):
        with pytest.raises(PlaybookError, match='none of the labels'): s.give(label)
    finish(s)
    with pytest.raises(PlaybookError, match='every item'): s.give('right')
    assert s.texts() == {} and shown(s)['item'] is None and shown(s)['count'] == '6 of 6'


def test_undo_at_the_start_does_nothing(tmp_path):
    s = Session(a_task(tmp_path), 'ada')
    assert s.undo() is None and not s.task.path.exists()
    assert hear(s, dict(do='undo'))['said'] == 'There is nothing to undo.'
    s.give('right')
    assert s.undo() == s.current and s.undo() is None and s.done == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(['right', 'wrong', 'undo', 'restart']), max_size=25))
def test_any_sequence_of_keys_is_a_stack_that_survives(tmp_path_factory, keys):
    task = a_task(tmp_path_factory.mktemp('keys'), 8)
    s, stack = Session(task, 'ada'), []
    for k in keys:
        if k == 'restart': s = Session(task, 'ada')
        elif k == 'undo':
            s.undo()
            stack = stack[:-1]
        elif s.current:
            stack.append(k)
            s.give(k)
        assert [r['label'] for r in s.said.values()] == stack and s.done == len(stack)
        assert s.current == (s.order[len(stack)] if len(stack) < 8 else None)


def test_messages_of_a_window_that_makes_no_sense_change_nothing(tmp_path):
    s = Session(a_task(tmp_path), 'ada')
    odd = dict(do='label', label=['right'], item='q0'), dict(do='label', label='right', item='elsewhere'), dict(do='drop', item=3)
    for m in ({}, dict(do=None), dict(do='label'), *odd):
        assert hear(s, m)['done'] == 0
    assert not s.task.path.exists()


# -- orders and tasks --

def test_orders_are_everybodys_own_complete_and_stable(tmp_path):
    task, larger = (a_task(tmp_path, n, gold={f'q{i}': 'right' for i in range(0, 40, 8)}) for n in (40, 60))
    orders = {who: order_of(task, who) for who in map(str, range(20))}
    assert len({tuple(o) for o in orders.values()}) == 20 and all(set(o) == set(task.items) for o in orders.values())
    for who, o in orders.items():
        assert all(sum(i in task.gold for i in o[k:k+8]) == 1 for k in range(0, 40, 8))
        rest = [i for i in o if i not in task.gold]
        assert [i for i in order_of(larger, who) if i in set(rest)] == rest
    assert order_of(a_task(tmp_path, 40, seed=1), '1') != order_of(a_task(tmp_path, 40), '1')


def test_every_answer_known_or_none(tmp_path):
    for gold in ({}, {f'q{i}': 'wrong' for i in range(6)}): assert sorted(order_of(a_task(tmp_path, gold=gold), 'a')) == [f'q{i}' for i in range(6)]
    assert order_of(a_task(tmp_path, 1, gold=dict(q0='right')), 'a') == ['q0']


CANNOT_BE = [(dict(n=0), 'no item'), *((dict(labels=l), 'two to nine') for l in (['right'], ['a', 'a'], list('abcdefghij'))),
             (dict(gold=dict(q9='right')), 'belongs to no item'), (dict(gold=dict(q1='Right')), 'none of the labels')]


@pytest.mark.parametrize(('kw', 'says'), CANNOT_BE)
def test_tasks_that_cannot_be(tmp_path, kw, says):
    with pytest.raises(PlaybookError, match=says): a_task(tmp_path, **kw)


def test_tables_that_cannot_be_labelled(tmp_path):
    rows = pd.DataFrame(dict(id=[1, 1], prompt=['a', None], answer=['b', float('nan')], known=['right', 'maybe']))
    for bad, kw, says in ((rows, {}, 'have the id `1`'), (rows.drop(columns='answer'), {}, 'no column `answer`'), (rows[:0], {}, 'nothing to label'),
                          (rows.assign(id=[1, 2]), dict(gold='known'), '`maybe` is none'), (rows.assign(id=[1, 2]), dict(gold='knwn'), 'did you mean `known`')):
        with pytest.raises(PlaybookError, match=says): label_task(bad, tmp_path/'l.jsonl', **kw)
    assert label_task(rows.assign(id=[1, 2]), tmp_path/'l.jsonl').items['2'] == dict(prompt='', answer='')


# -- what becomes of the labels --

def test_wrong_known_answers_are_found_and_settled(tmp_path):
    task = a_task(tmp_path, gold=dict(q0='wrong', q1='right'))
    for who in ('ada', 'ben'): finish(Session(task, who))
    assert conflicts(task).to_dict('index') == {'q0': dict(why='all contradict the known answer', ada='right', ben='right', known='wrong', settled='')}
    assert 'q0' not in final_labels(task)
    desk = Adjudication(task, 'cleo')
    assert desk.texts() == {'answer': 'answer 0', 'labels given': 'right, right'}
    desk.give('right')
    assert final_labels(task)['q0'] == 'right' and conflicts(task).loc['q0', 'settled'] == 'right' and desk.current is None
    assert desk.undo() == 'q0' and 'q0' not in final_labels(task)
    assert set(reviews_of(task)['reviewer']) == {'ada', 'ben'}     # who settles is no reviewer


def test_a_careless_reviewer_is_seen_through_the_known_answers(tmp_path):
    task = a_task(tmp_path, 200, gold={f'q{i}': 'right' for i in range(80)})
    finish(Session(task, 'ada'))
    finish(Session(task, 'ben'), lambda i: 'right' if int(i[1:]) % 2 else 'wrong')
    table = reviewer_table(read_reviews(reviews_of(task)))
    assert table['items'].to_dict() == dict(ada=80, ben=80) and table['accuracy'].to_dict() == dict(ada=1., ben=.5)
    assert len(disputes(LabelFile(task))) == 0 and len(conflicts(task)) == 100   # a file that was not read yet knows nothing


def test_labels_become_columns_and_feedback(tmp_path):
    task, rows = a_task(tmp_path, 4, gold=dict(q3='wrong')), pd.DataFrame(dict(id=['q0', 'q1', 'q2', 'q3', 'else']))
    assert labelled_rows(task, rows)['human'].isna().all()
    finish(Session(task, 'ada'), lambda i: dict(q0='right', q1='wrong').get(i, 'right'))
    assert labelled_rows(task, rows)['human'].tolist()[:4] == [1, 0, 1, 0]
    log = RequestLog(tmp_path/'log.jsonl')
    for _ in range(2): assert write_feedback(task, log, dict(right=1, wrong=0)) == 4
    said = read_log(log.path).feedback
    assert len(said) == 8 and said.drop_duplicates('gen_ai.response.id').set_index('gen_ai.response.id')['value'].to_dict() == dict(q0=1, q1=0, q2=1, q3=0)
    with pytest.raises(PlaybookError, match='`wrong` worth'): write_feedback(task, log, dict(right=1))
    with pytest.raises(PlaybookError, match='`good` is none'): labelled_rows(task, rows, 'good')


def test_ten_thousand_items(tmp_path):
    task = a_task(tmp_path, 10_000, gold={f'q{i}': 'right' for i in range(0, 10_000, 10)})
    words = [dict(event='label', reviewer=who, item=i, label='right', seconds=1., order=k) for who in ('ada', 'ben') for k, i in enumerate(order_of(task, who)[:9990])]
    lines = map(json.dumps, words)
    task.path.write_text('\n'.join(lines)+'\n')
    s = Session(task, 'ada')
    assert s.done == 9990
    for _ in range(10): assert hear(s, dict(do='label', label='wrong', item=s.current))['said'] == 'Saved: wrong.'
    assert s.current is None and len(reviews_of(task)) == 19_990 and 9_980 <= len(final_labels(task)) <= 10_000


def test_a_saved_notebook_keeps_a_count_and_no_prompt(tmp_path):
    pytest.importorskip('anywidget')
    w = label_widget(Session(a_task(tmp_path), 'ada'))
    data, _ = w._repr_mimebundle_()
    assert data['text/markdown'] == data['text/plain'] == 'ada: 0 of 6 labelled, kept in `labels.jsonl`' and 'application/vnd.jupyter.widget-view+json' in data
    assert not any('answer 0' in str(v) for v in w.get_state().values())
    w.close()
