"""How much faster a thousand prompts are in batches than one by one: the same `answer`, uncached, in one run

    python benchmarks/answers.py                                    # the demo: its model, its prompts
    python benchmarks/answers.py --model FOLDER --max-new-tokens 24 # another model, made-up prompts

One by one is timed on every fifth prompt and scaled up (`--every 1`: on each)."""
import argparse
import random
import time


def demo(n: int):
    from genai_playbook.card import load_card
    card = load_card('demo')
    return card.system().uncached, [p for p in card.prompts(card.evaluation(n=n)) if p is not None][:n]


def made_up(folder: str, n: int, **settings):
    from genai_playbook.local_model import TransformersModel
    rnd, words = random.Random(0), 'where is my parcel order number delivered on monday refund amount euro please change the address'.split()
    return TransformersModel(folder, **settings), [' '.join(rnd.choices(words, k=rnd.randint(20, 40))) for _ in range(n)]


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

    start = time.perf_counter()
    together = model.answer(prompts)
    batched = time.perf_counter()-start

    some = range(0, len(prompts), a.every)
    start = time.perf_counter()
    alone = [model.answer([prompts[i]])[0] for i in some]
    single = (time.perf_counter()-start)/len(some)*len(prompts)

    same = sum(together[i].text==x.text for i, x in zip(some, alone))
    tokens = sum(x.tokens_out or 0 for x in together)
    print(f'{len(prompts):,} prompts, {tokens:,} tokens out, {sum(x.error is not None for x in together)} errors, about {model.about}')
    print(f'batched {batched:.2f} s, one by one {single:.1f} s, ratio {single/batched:.1f}; {same} of {len(alone)} answers are the same')


if __name__=='__main__': main()
