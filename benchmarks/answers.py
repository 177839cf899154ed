"""How much faster a thousand prompts are in batches than one by one, uncached, in one run

One by one is measured twice: with transformers' own `generate()` in a loop, which is what people write first, and with our `answer` on one prompt at a time, which is already
quicker. Both are interleaved, prompt by prompt, so that a busy machine slows both.

    python benchmarks/answers.py                                    # the demo: its model, its prompts
    python benchmarks/answers.py --model FOLDER --max-new-tokens 24 # another model, made-up prompts

One by one is timed on every fifth prompt and scaled up (`--every 1`: on each); batches are the median of five passes."""
import argparse
import random
import statistics
import time


def demo(n: int):
    from genai_playbook.card import load_card
    card = load_card('demo')
    return card.system().uncached, [p for p in card.prompts(card.evaluation(n=n)) if p is not None][:n]


def made_up(folder: str, n: int, **settings):
    from genai_playbook.local_model import TransformersModel
    rnd, words = random.Random(0), 'where is my parcel order number delivered on monday refund amount euro please change the address'.split()
    return TransformersModel(folder, **settings), [' '.join(rnd.choices(words, k=rnd.randint(20, 40))) for _ in range(n)]


def generate(model, prompt: str) -> str:
    "One answer as a notebook's first version gets it: template, tokenizer, generate, decode"
    tok, net = model.loaded.tok, model.loaded.net
    x = tok.apply_chat_template([dict(role='user', content=str(prompt))], add_generation_prompt=True, return_tensors='pt', return_dict=True) if tok.chat_template else tok(str(prompt), return_tensors='pt')
    out = net.generate(**x, max_new_tokens=model.max_new_tokens, do_sample=False)
    return tok.decode(out[0, x['input_ids'].shape[1]:], skip_special_tokens=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--model', help='folder of a transformers model; left out: the demo')
    p.add_argument('--n', type=int, default=1000)
    p.add_argument('--every', type=int, default=5)
    p.add_argument('--batch-size', type=int, default=64)
    p.add_argument('--max-new-tokens', type=int, default=24)
    a = p.parse_args()
    model, prompts = made_up(a.model, a.n, batch_size=a.batch_size, max_new_tokens=a.max_new_tokens) if a.model else demo(a.n)
    model.answer(prompts[:8])  # loading and warming up are nobody's merit

    def timed(work, into):
        start = time.perf_counter()
        res = work()
        into.append(time.perf_counter()-start)
        return res
    batched, alone, loop, generated = [], [], [], []
    bare = getattr(model, 'model', model)
    generate(bare, prompts[0])
    some = range(0, len(prompts), a.every)
    singles = []
    for k in range(5):
        together = timed(lambda: model.answer(prompts), batched)
        for i in some[k::5]:
            singles.append((i, timed(lambda i=i: model.answer([prompts[i]]), alone)[0]))
            generated.append((i, timed(lambda i=i: generate(bare, prompts[i]), loop)))
    t, single, plain = statistics.median(batched), statistics.mean(alone)*len(prompts), statistics.mean(loop)*len(prompts)

    same = sum(together[i].text==x.text for i, x in singles)
    agree = sum(together[i].text.strip()==x.strip() for i, x in generated)
    tokens = sum(x.tokens_out or 0 for x in together)
    print(f'{len(prompts):,} prompts, {tokens:,} tokens out, {sum(x.error is not None for x in together)} errors, about {model.about}')
    print(f'batches                    {t:6.2f} s  ({min(batched):.2f} to {max(batched):.2f})')
    print(f'generate(), one by one     {plain:6.1f} s  ratio {plain/t:.1f}; {agree} of {len(generated)} answers are the same')
    print(f'answer(), one by one       {single:6.1f} s  ratio {single/t:.1f}; {same} of {len(singles)} answers are the same')


if __name__=='__main__': main()
