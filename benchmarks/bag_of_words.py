"""How far one gets on preference pairs without a language model: a bag of words with lengths.

A logistic regression learns from the training pairs which of two replies to the same prompt was
chosen. It sees how often each word occurs in each reply, and how many words the replies have, but
neither the prompt nor the order of the words. What it reaches is the least that a model which reads
should surpass.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

WORD = re.compile(r"\w+(?:['’]\w+)?")
FEWEST_REPLIES = 3  # training replies that a word must occur in
PENALTIES = tuple(10.0**power for power in range(-4, 2))

Pair = Mapping[str, Any]


def list_words(text: str) -> list[str]:
    """List the words of a text in small letters."""
    return WORD.findall(text.lower())


def build_vocabulary(pairs: Sequence[Pair]) -> list[str]:
    """List the words that occur in at least FEWEST_REPLIES replies of some pairs, sorted."""
    replies_with = Counter()
    for pair in pairs:
        for reply in (pair["chosen"], pair["rejected"]):
            replies_with.update(sorted(set(list_words(reply))))
    return sorted(word for word, n in replies_with.items() if n >= FEWEST_REPLIES)


def count_words(replies: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Count the words of replies.

    Args:
        replies: the texts.
        vocabulary: the words that are counted.

    Returns:
        An array of shape (replies, words + 1). The last column is the number of all words of a
        reply, whether they are in the vocabulary or not.
    """
    place = {word: i for i, word in enumerate(vocabulary)}
    counts = np.zeros((len(replies), len(vocabulary) + 1))
    for row, reply in zip(counts, replies):
        words = list_words(reply)
        for word in words:
            if word in place:
                row[place[word]] += 1
        row[-1] = len(words)
    return counts


def compare_replies(pairs: Sequence[Pair], vocabulary: Sequence[str]) -> np.ndarray:
    """Subtract the counts of each pair's rejected reply from those of its chosen reply."""
    chosen = count_words([pair["chosen"] for pair in pairs], vocabulary)
    rejected = count_words([pair["rejected"] for pair in pairs], vocabulary)
    return chosen - rejected


def loss_of(weights: np.ndarray, differences: np.ndarray) -> float:
    """Compute the mean negative log-probability that the chosen replies are the chosen ones."""
    return float(np.logaddexp(0, -differences @ weights).mean())


def fit(differences: np.ndarray, penalty: float) -> np.ndarray:
    """Fit a logistic regression without intercept, so that the order of two replies is no matter.

    Args:
        differences: the counts of the chosen minus those of the rejected replies, of shape
            (pairs, features).
        penalty: the weight of half the squared length of the weights, which is added to the loss.

    Returns:
        The weights, of shape (features,).
    """

    def measure(weights: np.ndarray) -> tuple[float, np.ndarray]:
        wrong = expit(-differences @ weights)
        loss = loss_of(weights, differences) + penalty / 2 * weights @ weights
        gradient = -differences.T @ wrong / len(differences) + penalty * weights
        return loss, gradient

    start = np.zeros(differences.shape[1])
    return minimize(measure, start, jac=True, method="L-BFGS-B").x


def predict(
    training: Sequence[Pair], held_out: Sequence[Pair], test: Sequence[Pair]
) -> tuple[np.ndarray, float]:
    """Learn from training pairs, choose the penalty by held-out pairs, and compare test pairs.

    The penalty is that with the smallest loss on the held-out pairs. The number of words is divided
    by the root mean square of its differences, since it is larger than the count of a word.

    Args:
        training: pairs with the texts "chosen" and "rejected".
        held_out: other such pairs.
        test: other such pairs, by which nothing is chosen.

    Returns:
        The margins of the test pairs, of shape (pairs,), and the penalty. A margin is the log-odds
        that the chosen reply is the chosen one.
    """
    vocabulary = build_vocabulary(training)
    learned = compare_replies(training, vocabulary)
    scale = np.ones(learned.shape[1])
    scale[-1] = max(1.0, np.sqrt((learned[:, -1] ** 2).mean()))
    checked = compare_replies(held_out, vocabulary) / scale
    fitted = {penalty: fit(learned / scale, penalty) for penalty in PENALTIES}
    penalty = min(fitted, key=lambda penalty: loss_of(fitted[penalty], checked))
    return compare_replies(test, vocabulary) / scale @ fitted[penalty], penalty
