"""Beam search in plain Python, and the list of all that it could find."""

import itertools
import math

import numpy as np


def score(toy, prompt, tokens, *, alpha, beta=0.0, source_length=None):
    """The score of a hypothesis, from its definition."""
    history, total, coverage = list(prompt), 0.0, np.zeros(toy.looks.shape[-1])
    for token in tokens:
        total += toy.logprobs(history)[token]
        if beta:
            coverage += toy.attends(history, source_length)
        history.append(token)
    value = total / ((5 + len(tokens)) / 6) ** alpha
    if beta:
        value += beta * sum(math.log(min(c, 1.0)) for c in coverage[:source_length])
    return value


def everything(toy, prompt, *, vocabulary, end, max_tokens, **scoring):
    """All hypotheses, the best first: those that ended, then those that were cut."""
    others = [token for token in range(vocabulary) if token != end]
    ended = [
        (*tokens, end)
        for size in range(max_tokens)
        for tokens in itertools.product(others, repeat=size)
    ]
    cut = list(itertools.product(others, repeat=max_tokens))
    ranked = []
    for group in (ended, cut):
        scored = [(score(toy, prompt, tokens, **scoring), tokens) for tokens in group]
        ranked += sorted(scored, reverse=True)
    return ranked


def search(toy, prompt, *, beams, vocabulary, end, max_tokens, **scoring):
    """Beam search as `beam_search` documents it, without stopping early."""
    alive, complete = [(0.0, ())], []
    for _ in range(max_tokens):
        candidates = []
        for total, tokens in alive:
            logprobs = toy.logprobs([*prompt, *tokens])
            for token in range(vocabulary):
                longer = (*tokens, token)
                if token == end:
                    complete.append((score(toy, prompt, longer, **scoring), longer))
                else:
                    candidates.append((total + logprobs[token], longer))
        alive = sorted(candidates, reverse=True)[:beams]
    cut = [(score(toy, prompt, tokens, **scoring), tokens) for _, tokens in alive]
    return (sorted(complete, reverse=True) + sorted(cut, reverse=True))[:beams]
