"A model in this process: exact, complete, and clear about a folder that is none"
import json
import shutil
import threading

import pytest

from conftest import make_tiny_model
from genai_playbook.errors import PlaybookError
from genai_playbook.local_model import TransformersModel, folder_digest

PROMPTS = ['where is it?', 'a', 'my parcel is late, very late', 'Grüße 🎉', 'x'*80, 'two words', 'address']


def load(folder, **kw): return TransformersModel(folder, **dict(max_new_tokens=10, device='cpu') | kw)


@pytest.fixture(scope='module')
def tiny(tiny_model): return load(tiny_model)


def by_generate(m, prompt, n=10):
    ids = m._encode(prompt)
    import torch
    return m.loaded.net.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=n, do_sample=False, pad_token_id=0)[0, len(ids):].tolist()


def test_the_loop_is_generate(tiny):
    for batch in (PROMPTS, PROMPTS[:1], PROMPTS[::-1]):
        for p, a in zip(batch, tiny.answer(batch)):
            assert a.text==tiny._text(by_generate(tiny, p)) and a.error is None and a.tokens_in==len(tiny._encode(p)) and -6<a.logprob<0


def test_rows_end_when_they_end(tiny_model):
    m = load(tiny_model, max_new_tokens=30)
    free = {p: by_generate(m, p, 30) for p in PROMPTS}
    m.loaded.ends = {free[PROMPTS[0]][3], free[PROMPTS[2]][7]} # some token that they do write
    m.loaded.net.generation_config.eos_token_id = list(m.loaded.ends)
    answers = m.answer(PROMPTS)
    assert {a.finish_reason for a in answers}=={'stop', 'length'}
    for p, a in zip(PROMPTS, answers):
        want = by_generate(m, p, 30)
        assert (a.tokens_out, a.finish_reason)==(len(want), 'stop' if want[-1] in m.loaded.ends else 'length') and a.text==m._text(want)


def test_log_probability_is_the_model_s(tiny):
    import torch
    a, = tiny.answer(PROMPTS[:1])
    ids, new = tiny._encode(PROMPTS[0]), by_generate(tiny, PROMPTS[0])
    with torch.inference_mode(): logp = tiny.loaded.net(torch.tensor([ids+new])).logits[0].log_softmax(-1)
    assert a.logprob==pytest.approx(sum(logp[len(ids)-1+i, t].item() for i, t in enumerate(new))/len(new), abs=1e-4)


def test_bad_prompts_among_good_ones(tiny):
    prompts = ['fine', '', None, 'x'*300, [dict(role='user', content='hi'), dict(role='assistant', content='yes?'), dict(role='user', content='bye')], 'y'*235]
    answers = tiny.answer(prompts)
    assert [a.error is None for a in answers]==[True, False, False, False, True, True]
    assert 'empty' in answers[1].error and answers[3].error=='the prompt has 303 tokens, but the model reads at most 256'
    assert answers[0].text==tiny.answer(['fine'])[0].text
    long, = load(tiny.path, max_new_tokens=50).answer(['y'*235])
    assert (long.tokens_out, long.finish_reason)==(256-238, 'length') # what is left of the context


def test_a_prompt_that_breaks_its_batch_stands_alone(tiny_model):
    m = load(tiny_model, batch_size=7)
    poison, net = m._encode('two words'), m.loaded.net
    class Fragile:
        def __getattr__(self, k): return getattr(net, k)
        def __call__(self, **kw):
            if poison in [[t for t in row if t] for row in kw['input_ids'].tolist()]: raise IndexError('kaputt')
            return net(**kw)
    m.loaded.net = Fragile()
    answers = m.answer(PROMPTS)
    assert [a.error for a in answers]==[None]*5+['IndexError: kaputt', None] and m._largest==7


@pytest.mark.parametrize('error', ['DefaultCPUAllocator: not enough memory', 'HIP out of memory', MemoryError()])
def test_out_of_memory(tiny_model, error):
    m, sizes = load(tiny_model, batch_size=6), []
    net, want = m.loaded.net, [a.text for a in m.answer(PROMPTS)]
    class Small:
        def __getattr__(self, k): return getattr(net, k)
        def __call__(self, **kw):
            if kw['input_ids'].shape[1]>1: sizes.append(len(kw['input_ids']))
            if len(kw['input_ids'])>2: raise error if isinstance(error, Exception) else RuntimeError(error)
            return net(**kw)
    m.loaded.net = Small()
    assert [a.text for a in m.answer(PROMPTS)]==want and sizes==[6, 3, 1, 2, 3, 1, 2, 1]
    del sizes[:]
    m.answer(PROMPTS)
    assert max(sizes)==1 and m.about['batch_size']==6


def test_no_memory_at_all(tiny_model):
    m = load(tiny_model)
    class None_:
        def __getattr__(self, k, net=m.loaded.net): return getattr(net, k)
        def __call__(self, **kw): raise MemoryError
    m.loaded.net = None_()
    assert [a.error for a in m.answer(['a', 'b'])]==['MemoryError']*2


def test_sampling_belongs_to_the_prompt(tiny_model):
    m = load(tiny_model, temperature=1.)
    together = [a.text for a in m.answer(PROMPTS)]
    assert together==[m.answer([p])[0].text for p in PROMPTS]==[a.text for a in load(tiny_model, temperature=1., batch_size=2).answer(PROMPTS)]
    assert together!=[a.text for a in load(tiny_model, temperature=1., seed=1).answer(PROMPTS)]
    cold = load(tiny_model, temperature=1e-4)
    assert [a.text for a in cold.answer(PROMPTS)]==[a.text for a in load(tiny_model).answer(PROMPTS)]
    free = load(tiny_model, temperature=1., seed=None)
    assert not free.deterministic and m.deterministic and len({free.answer(['a'])[0].text for _ in range(5)})>1


def test_sampling_follows_the_probabilities(tiny):
    import torch
    with torch.inference_mode(): p = tiny.loaded.net(torch.tensor([tiny._encode('a')])).logits[0, -1].softmax(-1)
    n, counts = 2000, torch.zeros(len(p))
    from genai_playbook.local_model import _decode
    with torch.inference_mode():
        for step in _decode(tiny.loaded, [tiny._encode('a')]*n, [1]*n, 1., list(range(n))):
            for _, t, _ in step: counts[t] += 1
    top = p.argsort(descending=True)[:5]
    assert ((counts[top]/n-p[top]).abs() < 5*(p[top]*(1-p[top])/n).sqrt()).all()


def test_streaming(tiny):
    for p in PROMPTS:
        *chunks, last = tiny.stream(p)
        a, = tiny.answer([p])
        assert ''.join(c.text for c in [*chunks, last])==last.answer.text==a.text and sum(c.tokens for c in [*chunks, last])==a.tokens_out
        assert all(x.seconds<=y.seconds for x, y in zip(chunks, chunks[1:])) and last.answer.first_token_seconds<=last.answer.seconds
    *chunks, last = tiny.stream('')
    assert not chunks and last.answer.error=='the prompt is empty'
    stream = tiny.stream('a')
    next(stream); stream.close()


def test_without_template_and_pad(tmp_path):
    m = load(make_tiny_model(tmp_path/'plain', template=False, pad=False))
    assert m.loaded.pad==2
    answers = m.answer(['a', 'bcd', [dict(role='system', content='a'), dict(role='user', content='bcd')]])
    assert [a.tokens_in for a in answers]==[1, 3, 5] and not any(a.error for a in answers)
    assert [m._text(by_generate(m, p)) for p in ('a', 'bcd')]==[a.text for a in answers[:2]]


def test_a_template_that_refuses(tiny_model):
    m = load(tiny_model)
    m.loaded.tok.chat_template = "{% if messages[0].role=='system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}"
    a, b = m.answer([[dict(role='system', content='x'), dict(role='user', content='y')], 'z'])
    assert 'no system role' in a.error and b.error is None


def changed(tiny_model, tmp_path, **files):
    folder = tmp_path/'changed'
    shutil.copytree(tiny_model, folder)
    for name, text in files.items():
        path = folder/name.replace('__', '.')
        if text is None: path.unlink()
        else: path.write_bytes(text)
    return folder


@pytest.mark.parametrize('files, says', [(dict(config__json=None), 'has no configuration'), (dict(model__safetensors=None), r'has no weights \(`\*.safetensors`\)$'), (dict(tokenizer__json=None), 'has no tokenizer'),
    (dict(config__json=b'{'), 'cannot be loaded'), (dict(config__json=b'{"model_type": "no_such_model"}'), 'cannot be loaded'), (dict(model__safetensors=b'garbage'*10), 'cannot be loaded'), (dict(model__safetensors=b''), 'cannot be loaded'),
    (dict(tokenizer__json=b'[]'), 'cannot be loaded')])
def test_folders_that_are_no_model(tiny_model, tmp_path, files, says):
    with pytest.raises(PlaybookError, match=says) as e: load(changed(tiny_model, tmp_path, **files)).answer(['a'])
    assert '\n' not in str(e.value) and len(str(e.value))<420 and 'Error' not in type(e.value.__cause__).__name__


def test_weights_that_do_not_fit(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file
    for change, says in ((lambda w: w.pop('model.norm.weight'), '1 tensors are missing .* `model.norm.weight`'), (lambda w: w.update({'model.norm.weight': w['model.norm.weight'][:7].clone()}), 'model.norm.weight|cannot be loaded')):
        folder = changed(tiny_model, tmp_path)
        weights = load_file(folder/'model.safetensors')
        change(weights)
        save_file(weights, folder/'model.safetensors', metadata=dict(format='pt'))
        with pytest.raises(PlaybookError, match=says): load(folder).answer(['a'])
        shutil.rmtree(folder)


def test_weights_that_are_no_numbers(tiny_model):
    m = load(tiny_model)
    m.loaded.net.lm_head.weight.data[:] = float('nan')
    assert 'no number' in m.answer(['a'])[0].error


def test_a_tokenizer_of_another_model(tiny_model, tmp_path):
    folder = make_tiny_model(tmp_path/'small', vocab_size=100)
    a, = load(folder).answer(['é'])
    assert 'belong together' in a.error


def test_local_folders_never_ask_the_hub(tiny_model, monkeypatch, tmp_path):
    import socket
    def no(*a, **k): raise AssertionError('network')
    monkeypatch.setattr(socket, 'getaddrinfo', no)
    assert load(tiny_model).answer(['a'])[0].error is None
    for path in (tmp_path/'none', './none', 'a/b/c'):
        with pytest.raises(PlaybookError, match='is no folder'): load(path).answer(['a'])
    with pytest.raises(PlaybookError, match='no revisions'): load(tiny_model, revision='main')
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(PlaybookError, match='neither a folder here nor a model that the hub gives'): load('some-org/some-model', revision='abc', local_files_only=True).answer(['a'])


def test_the_digest(tiny_model, tmp_path):
    base = load(tiny_model).digest
    assert base==load(tiny_model, seed=5, batch_size=3, device='cpu').digest
    assert len({base, load(tiny_model, max_new_tokens=9).digest, load(tiny_model, temperature=.5).digest, load(tiny_model, temperature=.5, seed=1).digest, load(tiny_model, dtype='bfloat16').digest})==5
    folder = changed(tiny_model, tmp_path, README__md=b'new')
    assert folder_digest(folder)==folder_digest(tiny_model)
    (folder/'generation_config.json').write_text(json.dumps(dict(eos_token_id=3)))
    assert folder_digest(folder)!=folder_digest(tiny_model)


def test_what_it_says_of_itself(tiny_model):
    m = load(tiny_model, dtype='bfloat16')
    before = m.about
    m.answer(['a'])
    assert before==m.about and m.about['dtype']=='bfloat16' and m.about['device']=='cpu' and m.about['threads']>=1 and str(tiny_model.parent) not in str(m.about)+repr(m)
    assert load(tiny_model).about['dtype']=='float32'


def test_loading_once_from_many_threads(tiny_model):
    m, nets = load(tiny_model), set()
    threads = [threading.Thread(target=lambda: (nets.add(id(m.loaded)), m.answer(PROMPTS))) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(nets)==1


def test_progress(tiny_model):
    seen = []
    load(tiny_model, batch_size=4).answer([*PROMPTS, ''], lambda *at: seen.append(at))
    assert seen==[(5, 8), (8, 8)]
    assert load(tiny_model).answer([])==[]
