"Logs of other engines: versions, repeats, errors, several systems, damaged files, and a card that needs nothing but a log"
import json
import struct
import zipfile
import zlib

import pandas as pd
import pyarrow as pa
import pytest

from genai_playbook.card import CardError, load_card
from genai_playbook.importing import asked, format_of, number, read_results, result_columns, said
from genai_playbook.tables import DataError


@pytest.fixture
def write(tmp_path):
    def write(name, value, lines=False):
        text = value if isinstance(value, str) else '\n'.join(map(json.dumps, value)) if lines else json.dumps(value)
        (tmp_path/name).write_text(text, encoding='utf-8')
        return tmp_path/name
    return write


def sample(i, text='On its way.', epoch=1, grade='C', **more):
    "A sample of Inspect"
    return dict(id=i, epoch=epoch, input=f'Where is order {i}?', target='On its way.', metadata=dict(region='north', facts=['a', 'b']), scores=dict(match=dict(value=grade, answer=text, explanation='…')),
                output=dict(model='mock/1', choices=[dict(message=dict(role='assistant', content=text), stop_reason='max_tokens')], completion=text, usage=dict(input_tokens=7, output_tokens=3), time=.5)) | more


def inspect_log(*samples): return dict(version=2, status='success', eval=dict(task='parcels', model='mock/1'), samples=list(samples))


# --- Inspect --------------------------------------------------------------------------------------
def test_inspect_json(write):
    chat = [dict(role='system', content='Be brief.'), dict(role='user', content=[dict(type='image', image='x.png'), dict(type='text', text='And now?')]), dict(role='assistant', content='No.')]
    failed = sample(3, output=dict(choices=[], completion=''), scores=None, error=dict(message='rate limit', traceback='…'))
    old = sample('4', target=['Lost.', 'Gone.'], input=chat, scores=dict(grade=dict(value=dict(tone='P', tact=2)), ok=dict(value=True)))
    del old['output']['completion']
    df = read_results(write('log.json', inspect_log(sample(1), sample(2, 'Lost.', grade='I'), failed, old)))
    assert df.id.tolist() == ['1', '2', '3', '4'] and df.reference.tolist() == ['On its way.'] * 3 + ['Lost.'] and df.prompt[3] == 'And now?' and df.answer[3] == 'On its way.'
    assert df['score.match'].tolist()[:2] == [1, 0] and df['score.grade.tone'][3] == .5 and df['score.grade.tact'][3] == 2 and df['score.ok'][3] == 1
    assert pd.isna(df.answer[2]) and df.error[2] == 'rate limit' and df.error.notna().sum() == 1
    assert (df.seconds[0], df.tokens_in[0], df.tokens_out[0], df.finish_reason[0]) == (.5, 7, 3, 'length') and df['metadata.facts'][0] == '["a", "b"]' and 'cluster' not in df


def test_epochs_share_a_cluster(write):
    df = read_results(write('log.json', inspect_log(*(sample(i, epoch=e) for e in (1, 2) for i in (1, 2)))))
    assert df.id.tolist() == ['1', '2', '1#2', '2#2'] and df.cluster.tolist() == ['1', '2', '1', '2']


def test_inspect_attachments_are_put_back(write):
    long = sample(1, input='attachment://abc123 and attachment://nowhere', attachments=dict(abc123='A long letter'))
    assert read_results(write('log.json', inspect_log(long))).prompt[0] == 'A long letter and attachment://nowhere'


def eval_file(path, samples, zstd=False):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED if zstd else zipfile.ZIP_DEFLATED) as z:
        z.writestr('header.json', '{}')
        plain = {f'samples/{s["id"]}_epoch_{s["epoch"]}.json': json.dumps(s).encode() for s in samples}
        for name, data in plain.items(): z.writestr(name, pa.compress(data, codec='zstd', asbytes=True) if zstd else data)
        z.writestr('summaries.json', '[]')
    if not zstd: return path
    raw = bytearray(path.read_bytes())
    for i in zipfile.ZipFile(path).infolist():   # what Python cannot write: method 93, with the size and checksum of the unpacked bytes
        if (data := plain.get(i.filename)) is None: continue
        name = i.filename.encode()
        for sign, at, length in ((b'PK\x03\x04', 8, 30), (b'PK\x01\x02', 10, 46)):
            start = next(k for k in range(len(raw)) if raw[k:k+4] == sign and raw[k+length:k+length+len(name)] == name)
            raw[start+at:start+at+2] = struct.pack('<H', 93)
            raw[start+at+6:start+at+10] = struct.pack('<L', zlib.crc32(data))
            raw[start+at+14:start+at+18] = struct.pack('<L', len(data))
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize('zstd', [False, True])
def test_inspect_eval(tmp_path, zstd):
    path = eval_file(tmp_path/'log.eval', [sample(i, 'Lost. ' * 50, epoch=e) for i in (10, 2) for e in (2, 1)], zstd)
    df = read_results(path)
    assert format_of(path) == 'inspect' and df.id.tolist() == ['2', '10', '2#2', '10#2'] and df.answer[0] == 'Lost. ' * 50
    raw = path.read_bytes()
    path.write_bytes(raw[:len(raw)//2])
    with pytest.raises(DataError, match='inspect log convert'): read_results(path)


@pytest.mark.parametrize('log', [dict(version=2, eval=dict(task='x')), inspect_log()])
def test_inspect_without_samples(write, log):
    with pytest.raises(DataError, match='holds no samples'): read_results(write('log.json', log))


# --- lm-eval --------------------------------------------------------------------------------------
def generated(i, text='It is 4.', **more):
    return dict(doc_id=i, doc=dict(question=f'2+{i}?', answer=4), target='4', arguments=dict(gen_args_0=dict(arg_0=f'Q: 2+{i}?\nA:', arg_1=dict(until=['\n']))), resps=[[text]], filtered_resps=['4'], filter='strict-match',
                metrics=['exact_match'], exact_match=1., doc_hash='a', prompt_hash='b', target_hash='c') | more


def choice(i, logliks, target='1', contexts=('The sky is',) * 3, ends=(' green', ' blue', ' red'), **more):
    return dict(doc_id=i, doc=dict(query='x'), target=target, arguments={f'gen_args_{k}': dict(arg_0=c, arg_1=e) for k, (c, e) in enumerate(zip(contexts, ends))},
                resps=[[[str(x), 'False']] for x in logliks], filtered_resps=[[str(x), 'False'] for x in logliks], filter='none', metrics=['acc'], acc=0.) | more


def test_lm_eval_generation(write):
    other = generated(0, filtered_resps=['It is 4.'], filter='flexible-extract', exact_match=0.)
    df = read_results(write('samples_gsm_2026.jsonl', [generated(0), other, generated(1, resps=[['a', 'b']], filtered_resps=['a'])], lines=True))
    assert df.id.tolist() == ['0', '1', '1#2'] and df.answer.tolist() == ['It is 4.', 'a', 'b'] and df.cluster.tolist() == ['0', '1', '1']
    assert df.loc[0, ['extracted', 'extracted.flexible-extract', 'score.exact_match', 'score.exact_match.flexible-extract']].tolist() == ['4', 'It is 4.', 1, 0]
    assert df.prompt[0] == 'Q: 2+0?\nA:' and df.reference[0] == '4' and df['doc.question'][1] == '2+1?' and 'score.doc_hash' not in df


def test_lm_eval_choices(write):
    winogrande = choice(2, [-3., -9.], '0', ('Ann', 'Bob'), (' is tall.',) * 2)
    df = read_results(write('samples.jsonl', [choice(0, [-3., -1., -2.]), choice(1, [-1., -3., -2.]), winogrande, choice(3, [-1, -2, -3], ' green')], lines=True))
    assert df.answer.tolist() == ['blue', 'green', 'Ann', 'green'] and df.reference.tolist() == ['blue', 'blue', 'Ann', ' green'] and 'extracted' not in df


def test_lm_eval_older_forms(write):
    "Arguments as lists, metrics unnamed, the file one array"
    old = generated(0, arguments=[['Q', dict(until=[])]], target=4)
    del old['metrics'], old['filter']
    df = read_results(write('samples.jsonl', [old]))
    assert (df.prompt[0], df.reference[0], df['score.exact_match'][0]) == ('Q', '4', 1)
    chat = json.dumps([dict(role='user', content='2+2?')])
    assert read_results(write('chat.jsonl', [generated(0, arguments=dict(gen_args_0=dict(arg_0=[chat], arg_1={})))], lines=True)).prompt[0] == '2+2?'


def test_lm_eval_what_cannot_be_judged(write):
    rolling = generated(0, arguments=dict(gen_args_0=dict(arg_0='A long text')), resps=[[-77.]], filtered_resps=[-77.])
    with pytest.raises(DataError, match='log-likelihoods but no answers'): read_results(write('a.jsonl', [rolling], lines=True))
    with pytest.raises(DataError, match='single continuation'): read_results(write('b.jsonl', [choice(0, [-1.], contexts=('The sky is',))], lines=True))
    with pytest.raises(DataError, match='log_samples'): read_results(write('c.json', dict(results=dict(arc=dict(acc=.5)), configs={}, versions={})))


# --- promptfoo ------------------------------------------------------------------------------------
def result(i, text='On its way.', **more):
    return dict(id=f'uuid-{i}', promptIdx=0, testIdx=i, provider=dict(id='openai:parcel-1', label=''), prompt=dict(raw=f'Answer: {i}', label='Answer: {{q}}'), vars=dict(q=str(i)), testCase={'vars': dict(q=str(i)), 'assert': [dict(type='equals', value='On its way.')]},
                response=dict(output=text, cached=False, tokenUsage=dict(total=12, prompt=9, completion=3)), success=True, score=1, latencyMs=420, namedScores=dict(tact=.5), failureReason=0) | more


def promptfoo(*results): return dict(evalId='eval-1', results=dict(version=3, prompts=[], results=list(results), stats={}), config={}, shareableUrl=None)


def test_promptfoo(write):
    chat = json.dumps([dict(role='system', content='x'), dict(role='user', content='Where?')])
    wrong = result(1, 'Lost.', success=False, score=0, error='Expected output …', failureReason=1, prompt=dict(raw=chat), response=dict(output='Lost.', cached=True))
    broke = result(2, response=None, error='API error: 500', failureReason=2, success=False)
    df = read_results(write('results.json', promptfoo(result(0), wrong, broke, result(3, dict(day='Monday'), vars=dict(q='3', expected='On Monday.')), result(4, testCase={'assert': [dict(type='similar', value='{{ q }}')]}))))
    assert df.id.tolist() == list('01234') and df.prompt[1] == 'Where?' and df.answer[3] == '{"day": "Monday"}' and df.reference.tolist()[2:] == ['On its way.', 'On Monday.', '4']
    assert df.error.tolist()[2] == 'API error: 500' and df.error.notna().sum() == 1 and pd.isna(df.answer[2])
    assert df.seconds[0] == .42 and pd.isna(df.seconds[1]) and df.tokens_in[0] == 9 and df['score.success'].tolist()[:2] == [1, 0] and df['score.tact'][0] == .5 and df['vars.q'][1] == '1'


def test_promptfoo_forms(write):
    assert read_results(write('r.jsonl', [result(0), result(1)], lines=True)).answer.tolist() == ['On its way.'] * 2
    assert read_results(write('r2.json', dict(results=[result(0, vars=dict(id='q7'))]))).id.tolist() == ['q7']
    repeated = read_results(write('r3.json', promptfoo(*(result(i, prompt=dict(raw='Q'), vars=dict(q=q)) for i, q in enumerate('aabb')))))
    assert repeated.id.tolist() == ['0', '0#2', '2', '2#2'] and repeated.cluster.tolist() == list('0022')   # numbered as if they were four tests
    two = promptfoo(result(0), result(0, provider='openai:parcel-2'))
    with pytest.raises(DataError, match='2 systems .openai:parcel-1, prompt 0; openai:parcel-2, prompt 0.*one at a time'): read_results(write('two.json', two))
    with pytest.raises(DataError, match='2 systems'): read_results(write('prompts.json', promptfoo(result(0), result(0, promptIdx=1))))


# --- MLflow ---------------------------------------------------------------------------------------
def test_mlflow(write, tmp_path):
    cols = ['inputs', 'ground_truth', 'outputs', 'token_count', 'exact_match/v1/score', 'toxicity/v1', 'toxicity/v1/justification']
    data = [['Where?', 'Here.', 'Here.', 2, 1, .01, 'kind'], ['When?', None, 'Now.', 2, 0, .02, None]]
    df = read_results(write('eval_results_table.json', dict(columns=cols, data=data)))
    assert df[['id', 'prompt', 'answer']].values.tolist() == [['0', 'Where?', 'Here.'], ['1', 'When?', 'Now.']] and df.reference[0] == 'Here.' and pd.isna(df.reference[1])
    assert df['score.exact_match'].tolist() == [1, 0] and df['score.toxicity'].tolist() == [.01, .02] and df['token_count'].tolist() == [2, 2]
    table = pd.DataFrame(data, columns=cols)
    table.to_parquet(tmp_path/'t.parquet')
    assert format_of(tmp_path/'t.parquet') == 'mlflow' and read_results(tmp_path/'t.parquet').answer.tolist() == ['Here.', 'Now.']
    table[cols[:3]].to_csv(tmp_path/'t.csv', index=False)   # bears no mark of MLflow
    assert format_of(tmp_path/'t.csv') == 'table' and read_results(tmp_path/'t.csv', 'mlflow').prompt.tolist() == ['Where?', 'When?']
    with pytest.raises(DataError, match='no column of this table is called `outputs`'): read_results(write('x.json', dict(columns=['a'], data=[['b']])))


def test_mlflow_genai(write):
    rows = [dict(trace_id='tr-1', request='{"question": "Where?"}', response='"Here."', expectations=dict(expected_response='Here.'), **{'safety/value': 'yes', 'safety/rationale': 'fine'})]
    df = read_results(write('t.jsonl', rows, lines=True), 'mlflow')
    assert df.loc[0, ['id', 'prompt', 'reference', 'answer', 'score.safety']].tolist() == ['tr-1', 'Where?', 'Here.', 'Here.', 1]
    assert said({'choices': [{'message': {'content': 'Hi'}}]}) == 'Hi' and asked('[not json') == '[not json' and asked('[1]') == '[1]' and number([1]) is None


# --- what is none of them -------------------------------------------------------------------------
@pytest.mark.parametrize('text, why', [('{"name": "x"}', 'no Inspect log.*its keys: name'), ('[]', 'no Inspect log'), ('3', 'no Inspect log'), ('{', 'not JSON'), ('[' * 100_000, 'not JSON|nested'), ('{"samples": [{}]}', 'not built like results of inspect'),
    ('{"samples": [3]}', 'not built like'), ('{"results": {"results": []}}', 'no answers'), ('{"results": {"results": [{"vars": 3}]}}', 'not built like'), ('{"columns": ["outputs"], "data": [[1, 2]]}', 'not built like'), ('{"columns": [], "data": []}', 'outputs')])
def test_other_json(write, text, why):
    with pytest.raises(DataError, match=why): read_results(write('x.json', text))


def test_a_format_may_be_named(write):
    path = write('mine.jsonl', [dict(id='a', prompt='x', answer='y')], lines=True)
    assert format_of(path) == 'table' and result_columns(path) == ['id', 'prompt', 'answer'] and read_results(path, 'table').answer[0] == 'y'
    with pytest.raises(DataError, match='unknown format `promptfo`; did you mean `promptfoo`'): read_results(path, 'promptfo')
    with pytest.raises(DataError, match='not built like results of lm-eval'): read_results(path, 'lm-eval')
    with pytest.raises(DataError, match='not built like results of inspect|no samples'): read_results(path, 'inspect')
    with pytest.raises(DataError, match='cannot be read'): read_results(path.with_name('gone.json'))


def test_a_changed_file_is_read_again_and_a_caller_may_change_what_it_got(write):
    path = write('log.json', inspect_log(sample(1)))
    df = read_results(path)
    df.loc[0, 'answer'] = 'changed'
    assert read_results(path).answer[0] == 'On its way.'
    write('log.json', inspect_log(sample(1, 'Gone, alas.')))
    assert read_results(path).answer[0] == 'Gone, alas.'


# --- in a card ------------------------------------------------------------------------------------
def poc(write, model, evaluation, more=''):
    return write('poc.yaml', f'poc: mine\noutcome: {{promise: answers}}\nmodel: {model}\ndata: {{evaluation: {evaluation}{more}}}\n')


def test_one_log_is_enough_for_a_card(write):
    write('log.json', inspect_log(sample(1), sample(2, 'Lost.', grade='I'), sample(1, epoch=2)))
    card = load_card(poc(write, '{kind: recorded, path: log.json}', './log.json', ', columns: {slices: [metadata.region]}'))
    rows = card.evaluation()
    answers = card.system().answer(card.prompts(rows))
    assert [a.text for a in answers] == ['On its way.', 'Lost.', 'On its way.'] and [a.seconds for a in answers] == [.5] * 3 and answers[0].tokens_in == 7
    assert rows.cluster.nunique() == 2 and card.slices() == ['metadata.region'] and set(card.digests()) >= {'model', 'data.evaluation'}


def test_an_engines_own_numbers_do_not_join_another_file(write):
    write('cases.csv', 'id,prompt,reference\n1,Something else,x\n9,Where is order 1?,y\n')
    write('log.json', inspect_log(sample(1)))
    card = load_card(poc(write, '{kind: recorded, path: log.json}', 'cases.csv'))
    with pytest.warns(UserWarning, match='1 of 2 prompts'): answers = card.system().answer(card.prompts(card.evaluation()))
    assert [a.text for a in answers] == ['', 'On its way.']
    card = load_card(poc(write, '{kind: recorded, path: log.json, id: id}', 'cases.csv'))
    with pytest.warns(UserWarning): assert [a.text for a in card.system().answer(card.prompts(card.evaluation()))] == ['On its way.', '']


def test_a_log_that_cannot_be_used_is_an_error_of_the_card(write):
    write('cases.csv', 'id,prompt\n1,x\n')
    write('package.json', dict(name='x'))
    with pytest.raises(CardError, match='poc.yaml:3: model.path: package.json: no Inspect log'): load_card(poc(write, '{kind: recorded, path: package.json}', 'cases.csv'))
    with pytest.raises(CardError, match='data.evaluation: package.json: no Inspect log'): load_card(poc(write, '{kind: recorded, path: cases.csv, answer: prompt}', 'package.json'))
    write('log.json', inspect_log(sample(1)))
    with pytest.raises(CardError, match='model.answer: there is no column `text`.*columns: id, prompt'): load_card(poc(write, '{kind: recorded, path: log.json, answer: text}', 'cases.csv'))
    with pytest.raises(CardError, match='model.format'): load_card(poc(write, '{kind: recorded, path: log.json, format: inspct}', 'cases.csv'))


def test_a_table_with_an_engines_column_names_stays_a_table(write):
    write('mine.csv', 'inputs,outputs,targets,quality/score\nWhere?,Here.,Here.,1\n')
    write('other.csv', 'inputs,outputs,targets,quality/score\nWhere?,Here.,Here.,1\n')
    for data in ('other.csv', 'mine.csv'):
        form = 'table' if data == 'mine.csv' else 'mlflow'
        card = load_card(poc(write, f'{{kind: recorded, path: mine.csv, format: {form}, answer: outputs, prompt: inputs}}', data, ', columns: {prompt: inputs, reference: targets}'))
        assert card.system().answer(card.prompts(card.evaluation()))[0].text == 'Here.'
    card = load_card(poc(write, '{kind: recorded, path: mine.csv}', 'mine.csv'))
    assert card.evaluation().loc[0, ['prompt', 'reference', 'score.quality']].tolist() == ['Where?', 'Here.', 1] and card.system().answer(card.prompts(card.evaluation()))[0].text == 'Here.'
