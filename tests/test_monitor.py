"The request log under threads, processes, crashes and hostile content; metrics that cannot grow"
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace as ns

import numpy as np
import pytest

from genai_playbook.budget import Tariff
from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer, Chunk, Model, RowPrompt
from genai_playbook.monitor import (ERRORS, FEEDBACK, OWN, REQUEST, Metrics, Monitored, RequestLog, error_type, monitored, read_log, request_record, signals_of,
                                    span_exporter, with_feedback)

SECRET = 'my IBAN is DE33 1234 5678 5511 3396 02'


class Bot(Model):
    "Answers with what it was asked"
    name, about, live, deterministic, digest = 'bot', {}, True, True, 'b'*64
    def __init__(self, breaks=None): self.breaks = breaks
    def answer(self, prompts, progress=None):
        if self.breaks: raise self.breaks
        return [Answer(f'you said {p}', 5, 7, 'stop', .25, tier='model') for p in prompts]
    def stream(self, prompt):
        yield Chunk('you said ', .1, 2)
        if self.breaks: raise self.breaks
        yield Chunk(prompt, .2, 5, Answer(f'you said {prompt}', 5, 7, 'stop', .2, .1))


def line(i, at=None, **kw): return request_record(Answer('x', 1, 1, 'stop', .1), 'bot', 1e9 + i if at is None else at, f'r{i}', **kw)


def write(path, *records): path.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in records))


def test_threads_lose_and_mix_nothing(tmp_path):
    log = RequestLog(tmp_path/'log')
    threads = [threading.Thread(target=lambda k=k: [log.write(line(1000*k + i, extra={'pad': 'ä'*5000})) for i in range(60)]) for k in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    data = read_log(tmp_path/'log')
    assert len(data.requests) == 480 and data.lines == 480 and log.lost == 0 and not data.counts['unreadable lines']


WRITER = '''
import sys
from genai_playbook.monitor import RequestLog, request_record
from genai_playbook.models import Answer
log = RequestLog(sys.argv[1])
i = 0
while i < int(sys.argv[3]):
    log.write(request_record(Answer('x', 1, 1, 'stop', .1), 'bot', 1e9 + i, f'{sys.argv[2]}-{i}', extra={'pad': 'x'*20_000}))
    i += 1
    print(i, flush=True)
'''


def test_processes_and_one_that_is_killed(tmp_path):
    start = lambda name, n: subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path/'log'), name, str(n)], stdout=subprocess.PIPE, text=True)
    a, b, victim = start('a', 80), start('b', 80), start('victim', 10**9)
    for _ in range(5): victim.stdout.readline()
    victim.send_signal(signal.SIGKILL)
    wrote = 5 + len(victim.stdout.read().splitlines())
    a.communicate(timeout=120)
    b.communicate(timeout=120)
    victim.wait(10)
    data = read_log(tmp_path/'log')
    names = [r.split('-')[0] for r in data.requests['gen_ai.response.id']]
    assert names.count('a') == 80 == names.count('b') and wrote <= names.count('victim') <= wrote + 1
    assert data.counts['unreadable lines'] + data.counts['half-written last lines'] <= 1


def test_a_half_written_line_costs_only_itself(tmp_path):
    path, log = tmp_path/'log', RequestLog(tmp_path/'log')
    log.write(line(1))
    whole = path.read_bytes()
    for cut in (1, len(whole)//2, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert read_log(path).counts['half-written last lines'] == 1
        log.write(line(2))
        data = read_log(path)
        assert set(data.requests['gen_ai.response.id']) == {'r1', 'r2'}
        assert data.counts['unreadable lines'] + data.counts['duplicate ids'] == 1  # cut just before its line feed it is whole, and a duplicate


def test_what_people_wrote_reaches_no_line_by_default(tmp_path):
    path = tmp_path/'log'
    log = RequestLog(path)
    signals = lambda message, answer: dict(words=len(message.split()))
    monitored(Bot(), log, signals).answer([SECRET, [dict(role='user', content=SECRET)]])
    for bot in (Bot(), Bot(ValueError(SECRET)), Bot(RuntimeError(SECRET))):
        with contextlib.suppress(ValueError, RuntimeError): list(monitored(bot, log).stream(SECRET))
    with pytest.raises(ValueError): monitored(Bot(ValueError(SECRET)), log).answer([SECRET])
    Monitored(Bot(), log)._log('x', Answer(error=f'no answer to {SECRET!r}'))
    assert 'IBAN' not in path.read_text() and 'DE33' not in path.read_text()
    data = read_log(path)
    assert list(data.requests['error.type'].dropna()) == ['ValueError', 'RuntimeError', 'ValueError', '_OTHER'] and signals_of(data.requests)['words'].tolist()[:2] == [9, 9]
    RequestLog(path, content=True).write({})
    kept = RequestLog(tmp_path/'kept', content=True)
    monitored(Bot(), kept).answer([SECRET])
    rec = json.loads((tmp_path/'kept').read_text())
    assert rec['gen_ai.input.messages'][0]['parts'][0]['content'] == SECRET and rec['gen_ai.output.messages'][0]['finish_reason'] == 'stop'


def test_a_log_that_cannot_be_written_costs_no_answer(tmp_path):
    log = RequestLog(tmp_path)  # a folder
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = monitored(Bot(), log).answer(['a', 'b'])
    assert [a.text for a in found] == ['you said a', 'you said b'] and log.lost == 2 and len(caught) == 1
    good = RequestLog(tmp_path/'log', also=[lambda rec: 1/0])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        monitored(Bot(), good, signals=lambda m, a: 1/0, extra=lambda p: 1/0).answer(['a'])
    assert good.lost == 2 and len(read_log(tmp_path/'log').requests) == 1


@pytest.mark.parametrize('prompt', ['', 'x\ud800', [], None, 5, [dict(role='user')], 'a\nb\r\n\u2028c'])
def test_odd_prompts_leave_one_whole_line(tmp_path, prompt):
    monitored(Bot(), RequestLog(tmp_path/'log', content=True), signals=lambda m, a: dict(n=np.int64(3), x=float('nan'))).answer([prompt])
    data = read_log(tmp_path/'log')
    assert len(data.requests) == 1 and data.lines == 1


def test_ids_tie_feedback_to_answers(tmp_path):
    log, prompt = RequestLog(tmp_path/'log', clock=iter(np.arange(1e9, 1e9 + 100)).__next__), RowPrompt('hello', 'q7')
    first, second = monitored(Bot(), log).answer([prompt, prompt])
    assert first.request_id != second.request_id and first.text == 'you said hello'
    log.feedback(second.request_id, 'thumb', 0.)
    log.feedback(second.request_id, 'thumb', 1.)
    log.feedback('unknown', 'thumb', 1.)
    log.feedback(first.request_id, 'other', label='fine')
    data = read_log(tmp_path/'log')
    said = with_feedback(data, 'thumb')
    assert np.isnan(said[0]) and said[1] == 1. and data.counts['feedback on unknown requests'] == 1
    assert data.requests[OWN + 'row'].tolist() == ['q7', 'q7']
    with pytest.raises(PlaybookError, match='needs the id'): log.feedback('', 'thumb', 1.)


def test_the_reader_counts_what_it_cannot_use(tmp_path):
    path = tmp_path/'log'
    ok = [line(0), line(2), line(1), line(3, at=1e9 + 9000)]
    bad = ['{"a": ', '[1]', 'null', '\x00\x00', '[' * 5000, {**line(4), 'timestamp': 'noon'}, {**line(5), 'gen_ai.response.id': None}, {**line(6), 'timestamp': True}, {'event.name': 'else'}, line(0)]
    write(path, *ok, '', *bad, {'event.name': FEEDBACK, 'timestamp': 1e9, 'gen_ai.response.id': 'r1', 'gen_ai.evaluation.name': 'thumb', 'gen_ai.evaluation.score.value': 'high'})
    with open(path, 'ab') as f: f.write(b'{"event.name": "\xff')
    data = read_log(path)
    assert data.requests['gen_ai.response.id'].tolist() == ['r0', 'r1', 'r2', 'r3']
    assert data.counts == {'unreadable lines': 5, 'half-written last lines': 1, 'records without id or time': 3, 'records of other kinds': 1, 'duplicate ids': 1, 'times out of order': 1,
                           'gaps': 1, 'feedback on unknown requests': 0}
    assert with_feedback(data, 'thumb').isna().all()
    assert '5 unreadable lines' in data.report and sum(data.complete) == 4 and len(data.complete) == 13
    assert data.lines == 16


def test_empty_missing_and_rotated_logs(tmp_path):
    (tmp_path/'empty').write_text('')
    data = read_log(tmp_path/'empty')
    assert len(data.requests) == 0 and data.complete == [] and not len(with_feedback(data, 'thumb'))
    with pytest.raises(PlaybookError, match='no request log'): read_log(tmp_path/'none')
    write(tmp_path/'a', line(0), line(1))
    write(tmp_path/'b', line(1), line(2))
    assert len(read_log(tmp_path/'a', tmp_path/'b').requests) == 3


def test_an_incomplete_record_is_incomplete(tmp_path):
    no_tokens, failed = line(1), request_record(Answer(error='timed out'), 'bot', 1e9, 'f')
    del no_tokens['gen_ai.usage.input_tokens']
    write(tmp_path/'log', line(0), no_tokens, failed)
    data = read_log(tmp_path/'log')
    assert dict(zip(data.requests['gen_ai.response.id'], data.complete)) == dict(r0=True, r1=False, f=True)


def test_metrics_do_not_grow_with_hostile_labels(tmp_path):
    m = Metrics(['bot'], latency=.3, ttft=.15, price=Tariff(1., 2.).cost, monitors=['topics'])
    for i in range(300): m(request_record(Answer(error=f'E{i}Error: x'), f'model{i}', 1e9, f'r{i}'))
    for i in range(300): m({'event.name': FEEDBACK, 'gen_ai.evaluation.name': f'n{i}', 'gen_ai.evaluation.score.value': i % 2})
    m.alarms(['topics', 'never heard of'])
    text = m.text()
    assert text.count('\n') < 200 and m.registry.get_sample_value('genai_playbook_alarm', dict(monitor='topics')) == 1
    assert m.registry.get_sample_value('genai_playbook_requests_total', dict(gen_ai_request_model='other', tier='model', error_type='other')) == 300
    bot = monitored(Bot(), RequestLog(tmp_path/'log', also=[m]))
    bot.answer(['a']*4)
    list(bot.stream('b'))
    at = lambda name, **kw: m.registry.get_sample_value(name, dict(gen_ai_request_model='bot', **kw))
    assert at('gen_ai_client_operation_duration_seconds_bucket', le='0.3') == 5 == at('gen_ai_client_operation_duration_seconds_count')
    assert at('gen_ai_client_operation_time_to_first_chunk_seconds_bucket', le='0.15') == 1
    assert at('genai_playbook_cost_total') == pytest.approx(5*(5*1 + 7*2)/1e6) and at('gen_ai_client_token_usage_sum', gen_ai_token_type='output') == 35
    assert {s.name for f in m.registry.collect() for s in f.samples if not s.name.endswith('_created')} <= m.exported()
    Metrics(['bot'])  # a second one in the same process does not collide


def test_errors_have_classes_that_are_bounded():
    for text in ('TimeoutError', 'HTTP 503 from x', 'BadPrompt: empty', 'the request timed out', SECRET, '', 'lower: case'): assert error_type(text) in ERRORS
    assert error_type(None) is None


def test_spans_carry_the_record_and_its_times():
    made = []
    class Tracer:
        def start_span(self, name, **kw):
            made.append(span := ns(name=name, **kw, status=None))
            span.set_status, span.end = lambda s: setattr(span, 'status', s), lambda at: setattr(span, 'ended', at)
            return span
    pytest.importorskip('opentelemetry')
    export = span_exporter(Tracer())
    export(line(0, at=1e9))
    export(request_record(Answer(error='timed out'), 'bot', 1e9, 'f'))
    export({'event.name': FEEDBACK})
    ok, bad = made
    assert ok.name == 'chat bot' and ok.ended - ok.start_time == 100_000_000 and ok.attributes['gen_ai.usage.input_tokens'] == 1 and ok.status is None
    assert bad.attributes['error.type'] == 'timeout' and bad.status is not None and 'event.name' not in bad.attributes


def test_exporting_without_opentelemetry_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'opentelemetry', None)
    with pytest.raises(PlaybookError, match='pip install'): span_exporter()


def test_the_wrapper_is_a_model_like_its_own(tmp_path):
    bot = monitored(Bot(), RequestLog(tmp_path/'log'))
    assert bot.name == 'bot' and bot.live and bot.deterministic and len(bot.digest) == 64 and isinstance(bot.uncached, Monitored)
    assert [c.text for c in bot.stream('hi')] == ['you said ', 'hi'] and not os.path.exists(tmp_path/'other')
    assert json.loads((tmp_path/'log').read_text())['event.name'] == REQUEST
