"""From transcripts to pairs and prompts: what is kept, what is cut, and what is dropped and why."""

import bz2
import gzip
import hashlib
import importlib
import json
import lzma
import random
import sys
import types
from collections import Counter

import numpy as np
import pytest
from conftest import DATA, ROOT, dialogue, row, write_dataset, write_rows
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Split
from transformers import PreTrainedTokenizerFast

import posttrain
from posttrain import data, prompts, transcripts

SPECIAL = ["</s>", "<pad>"]
WORDS = [
    "soup", "bread", "water", "train", "garden", "music", "winter", "letter", "window", "coffee",
]
SUBSETS = ["harmless-base", "helpful-base"]
SETTINGS = {
    "subsets": "base", "max_pairs": None, "validation_pairs": 4, "max_length": 512, "seed": 0,
    "format": "transcript",
}


def many_rows(n):
    """Make `n` usable rows whose prompts all differ."""
    rows = []
    for i in range(n):
        rows.append(row(f"Question {i} about {WORDS[i % 10]}?", f"Answer {i}.", f"Nothing {i}."))
    return rows


def long_prompt(turns):
    """Make a prompt of many turns."""
    texts = [" ".join(WORDS[i % 10 :] + WORDS[: i % 10]) for i in range(2 * turns - 1)]
    return dialogue(*texts) + "\n\nAssistant:"


def load(folder, tokenizer, **settings):
    """Load the pairs of a dataset; `settings` are those that differ from SETTINGS."""
    return data.load_pairs(folder, tokenizer, types.SimpleNamespace(**SETTINGS | settings))


def as_counters(report):
    """Turn the table of a report into {subset: Counter}."""
    return {subset: Counter(counts) for subset, counts in report.to_dict().items()}


def missing_rows(report):
    """Count for each subset the rows that no line of the report except `cut` counts."""
    missing = {}
    for subset, counts in as_counters(report).items():
        fates = [n for fate, n in counts.items() if fate not in ("read", "cut")]
        missing[subset] = counts["read"] - sum(fates)
    return missing


USUAL = {"harmful_prompts": "keywords", "keyword_rule": "word", "prompt_tail": "assistant"}


def count(folder, tokenizer, protocol="default", room=512, **rules):
    """Count a dataset's usable prompts of each kind."""
    rules = prompts.PromptRules(**USUAL | rules)
    return data.count_prompts(folder, protocol, tokenizer, room, rules)


def draw(
    folder, kind, n, tokenizer, room=512, seed=0, protocol="default", strict=True, **rules
):
    """Draw a dataset's prompts and select those of one kind."""
    rules = prompts.PromptRules(**USUAL | rules)
    drawn = data.draw_prompts(folder, protocol, n, tokenizer, room, seed, strict, rules)
    return [record for record in drawn if record["kind"] == kind]


# ---- splitting

TRANSCRIPTS = {  # a transcript: its prompt and its reply
    "earlier turns": (
        dialogue("Hi", "Hello.", "And now?", "Now this."),
        (dialogue("Hi", "Hello.", "And now?") + "\n\nAssistant:", "Now this."),
    ),
    "paragraphs": (
        dialogue("Hi", "One.\n\nTwo.\n\n- three"),
        ("\n\nHuman: Hi\n\nAssistant:", "One.\n\nTwo.\n\n- three"),
    ),
    "space": (
        "\n\nHuman: Hi\n\nAssistant:  ok \n",
        ("\n\nHuman: Hi\n\nAssistant:", "ok"),
    ),
    "empty": ("\n\nHuman: Hi\n\nAssistant:", ("\n\nHuman: Hi\n\nAssistant:", "")),
    "not ASCII": (
        dialogue("Wie heißt das?", "Käse 🧀.", "再见?", "再见。"),
        (dialogue("Wie heißt das?", "Käse 🧀.", "再见?") + "\n\nAssistant:", "再见。"),
    ),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_reply_begins_after_the_last_marker(name):
    """Earlier turns belong to the prompt, blank lines end no reply, and blanks are stripped."""
    text, parts = TRANSCRIPTS[name]
    assert data.split_transcript(text) == parts


def test_sound_pair():
    """A usable row gives the shared prompt and the two replies."""
    assert data.split_pair(row("Hi?", "A.\n\nB.", "C."), SPECIAL) == {
        "prompt": "\n\nHuman: Hi?\n\nAssistant:",
        "chosen": "A.\n\nB.",
        "rejected": "C.",
    }


DEFECTS = {
    "not text": {"chosen": None, "rejected": dialogue("Hi", "A")},
    "special token in text": row("Hi", "The end</s>", "B"),
    "prompts differ": {"chosen": dialogue("Hi", "A"), "rejected": dialogue("Hi!", "A")},
    "no assistant turn": {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"},
    "no human turn first": {"chosen": "Hi\n\nAssistant: A", "rejected": "Hi\n\nAssistant: B"},
    "reply opens a human turn": row("Hi", "A\n\nHuman: and B", "C"),
    "empty reply": row("Hi", "A", " "),
    "identical replies": row("Hi", "A", "A "),
}


@pytest.mark.parametrize("reason", DEFECTS)
def test_unusable_pair_is_refused_for_its_reason(reason):
    """Every defect has its own reason."""
    with pytest.raises(ValueError, match=f"^{reason}$"):
        data.split_pair(DEFECTS[reason], SPECIAL)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_defect_is_noticed_on_either_side(side):
    """An empty reply and a human turn in a reply are noticed in either text."""
    for reply, reason in (("", "empty reply"), ("A\n\nHuman: B", "reply opens a human turn")):
        with pytest.raises(ValueError, match=reason):
            data.split_pair(row() | {side: dialogue("How are you?", reply)}, SPECIAL)


def test_pairs_and_reasons_are_counted():
    """Usable pairs stay in their order, the others are counted under their reasons."""
    rows = [row("One?"), *DEFECTS.values(), row("Two?"), DEFECTS["empty reply"]]
    pairs, dropped = data.split_pairs(rows, SPECIAL)
    assert [pair["prompt"] for pair in pairs] == [
        "\n\nHuman: One?\n\nAssistant:",
        "\n\nHuman: Two?\n\nAssistant:",
    ]
    assert dropped == Counter(dict.fromkeys(DEFECTS, 1) | {"empty reply": 2})


# ---- cutting prompts

@pytest.mark.parametrize("room", [60, 100, 200, 300])
def test_prompt_is_cut_at_a_turn_and_fits(tokenizer, room):
    """The longest ending from a human turn that fits is kept, with BOS counted."""
    prompt = long_prompt(9)
    (cut,) = data.cut_prompts([prompt], [room], tokenizer)
    starts = [i for i in range(len(prompt)) if prompt.startswith("\n\nHuman:", i)]
    fitting = [
        prompt[i:] for i in starts if len(tokenizer(prompt[i:])["input_ids"]) <= room
    ]
    assert cut == max(fitting, key=len)
    assert len(cut) < len(prompt)


def test_border_of_a_prompts_room(tokenizer):
    """A prompt of exactly the limit is kept; with one token less its first turn is removed."""
    prompt = long_prompt(3)
    length = len(tokenizer(prompt)["input_ids"])
    left_alone, cut = data.cut_prompts([prompt, prompt], [length, length - 1], tokenizer)
    assert left_alone == prompt
    assert cut == prompt[prompt.index("\n\nHuman:", 1) :]


def test_last_turn_is_never_cut(tokenizer):
    """If even the last turn is too long, there is no prompt."""
    assert data.cut_prompts([long_prompt(3)], [10], tokenizer) == [None]


# ---- the test splits are kept out of training

def test_prompts_of_the_test_splits_come_from_defective_rows_too(tmp_path):
    """An unusable test row still keeps its prompt out of the training."""
    test = {
        "harmless-base": [row("A?", "x", ""), DEFECTS["prompts differ"]],
        "helpful-base": [row("B?"), DEFECTS["no assistant turn"], {"chosen": 5}],
    }
    dataset = write_dataset(tmp_path, [row()], test)
    expected = [f"\n\nHuman: {text}\n\nAssistant:" for text in ("A?", "B?", "Hi", "Hi!")]
    assert data.read_test_prompts(dataset, SUBSETS) == sorted(expected)


def test_leaks_and_duplicates_are_dropped(tmp_path):
    """Pairs with a prompt of a test split are dropped, and so are duplicates."""
    train = {
        "harmless-base": [
            row("Seen in the other test split?"), row("Twice?"), row("Twice?"),
            row("Twice?", "Another reply."),
        ],
        "helpful-base": [row("Seen?", "Other", "replies"), row("Twice?")],
    }
    test = {
        "harmless-base": [row("Seen?", "x", "")],
        "helpful-base": [row("Seen in the other test split?")],
    }
    dataset = write_dataset(tmp_path, train, test)
    unseen = set(data.read_test_prompts(dataset, SUBSETS))
    pairs, report = data.gather_pairs(dataset, SUBSETS, SPECIAL, unseen)
    assert [(pair["subset"], pair["chosen"]) for pair in pairs] == [
        ("harmless-base", "Well."),
        ("harmless-base", "Another reply."),
    ]
    assert report == {
        "harmless-base": {"read": 4, "prompt in a test split": 1, "duplicate": 1},
        "helpful-base": {"read": 2, "prompt in a test split": 1, "duplicate": 1},
    }


def test_no_training_prompt_is_in_the_evaluation(hub, tokenizer):
    """No prompt that the evaluation draws from the demo's dataset was trained on."""
    pairs = load(hub / "hh-rlhf", tokenizer)
    trained = {pair["prompt"] for pair in pairs.train + pairs.validation}
    for kind in ("harmful", "helpful"):
        drawn = draw(hub / "hh-rlhf", kind, None, tokenizer)
        assert len(drawn) > 50
        assert not trained & {record["prompt"] for record in drawn}


# ---- fitting and holding out

def side_lengths(tokenizer, pair):
    """Count the tokens of a pair's two texts as trainers read them, with BOS and EOS."""
    lengths = []
    for side in ("chosen", "rejected"):
        text = f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}"
        lengths.append(len(tokenizer(text)["input_ids"]))
    return lengths


def test_fitted_pairs_fit_and_keep_their_replies(tokenizer):
    """Prompt and longer reply fit into max_length tokens, and only the prompt is shortened."""
    rng = random.Random(0)
    replies = [" ".join(rng.choices(WORDS, k=n)) for n in (1, 5, 20, 40, 70, 90)]
    originals = [long_prompt(turns) for turns in (1, 2, 5, 9)]
    pairs = []
    for prompt in originals:
        for chosen in replies:
            for rejected in replies:
                texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                pairs.append(texts | {"subset": "s"})
    report = {"s": Counter()}
    fitting = data.fit_pairs(pairs, tokenizer, 100, set(), report)
    kept = {(pair["chosen"], pair["rejected"]) for pair in fitting}
    assert kept < {(pair["chosen"], pair["rejected"]) for pair in pairs}
    for pair in fitting:
        assert pair["length"] == max(side_lengths(tokenizer, pair)) <= 100
        assert any(prompt.endswith(pair["prompt"]) for prompt in originals)
    assert len(fitting) + report["s"]["too long"] == len(pairs)
    assert report["s"]["cut"] == sum(pair["prompt"] not in originals for pair in fitting) > 0
    assert report["s"]["too long"] > 0


def test_border_of_max_length(tokenizer):
    """A pair of exactly max_length tokens is not cut; with one token less it is."""
    pair = {"prompt": long_prompt(2), "chosen": "soup", "rejected": "bread and water"}
    length = max(side_lengths(tokenizer, pair))
    for max_length, cut in ((length, 0), (length - 1, 1)):
        report = {"s": Counter()}
        data.fit_pairs([pair | {"subset": "s"}], tokenizer, max_length, set(), report)
        assert report["s"]["cut"] == cut


def test_reply_longer_than_max_length_is_dropped(tokenizer):
    """A reply is never cut; the pair is dropped and counted."""
    report = {"s": Counter()}
    pair = {"prompt": long_prompt(1), "chosen": " ".join(WORDS * 30), "rejected": "soup"}
    assert data.fit_pairs([pair | {"subset": "s"}], tokenizer, 100, set(), report) == []
    assert report["s"] == {"too long": 1}


def test_prompt_cut_to_a_test_prompt_is_dropped(tokenizer):
    """The end of a long dialogue may be a test prompt; then the pair is dropped."""
    last = "\n\nHuman: What is the secret?\n\nAssistant:"
    pair = {"prompt": f"{long_prompt(9)} Well.{last}", "chosen": "soup", "rejected": "bread"}
    room = len(tokenizer(last)["input_ids"]) + 20
    cases = (({last}, "prompt in a test split", []), ({last + "x"}, "cut", [last]))
    for unseen, fate, expected in cases:
        report = {"s": Counter()}
        fitting = data.fit_pairs([pair | {"subset": "s"}], tokenizer, room, unseen, report)
        assert report["s"] == {fate: 1}
        assert [pair["prompt"] for pair in fitting] == expected


def test_validation_and_training_share_no_prompt():
    """Pairs with a held-out prompt are dropped, and at most a tenth of the pairs is held out."""
    pairs = [{"prompt": str(i % 30), "subset": "s"} for i in range(60)]
    report = {"s": Counter()}
    training, validation = data.hold_out(pairs, 50, report)
    assert len(validation) == 6
    trained = {pair["prompt"] for pair in training}
    assert not trained & {pair["prompt"] for pair in validation}
    assert report["s"] == {"prompt in validation": 6, "validation": 6, "training": 48}


# ---- all steps

def test_every_row_is_accounted_for(tmp_path, tokenizer):
    """The reasons and the pairs add up to all rows, and every reason occurs."""
    rows = [
        *many_rows(60), *DEFECTS.values(), row("Leak?"), many_rows(3)[1],
        row("Long?", " ".join(WORDS * 40)),
        *[row("Often asked?", f"Reply {i}.") for i in range(12)],
    ]
    leaks = {subset: [row("Leak?")] for subset in SUBSETS}
    dataset = write_dataset(tmp_path, dict.fromkeys(SUBSETS, rows), leaks)
    pairs = load(dataset, tokenizer, max_length=120, max_pairs=60, validation_pairs=6)
    assert missing_rows(pairs.report) == dict.fromkeys(SUBSETS, 0)
    totals = pairs.report.sum(axis=1)
    reasons = {*DEFECTS, "prompt in a test split", "duplicate", "not drawn"}
    assert reasons <= set(totals.index[totals > 0])
    assert totals["training"] == len(pairs.train)
    assert totals["validation"] == len(pairs.validation)
    assert list(totals.index[-2:]) == ["validation", "training"]


def test_every_row_of_the_demo_is_accounted_for(hub, tokenizer):
    """The same is true of the demo's dataset, which has every defect of the real one."""
    pairs = load(hub / "hh-rlhf", tokenizer, validation_pairs=200)
    assert missing_rows(pairs.report) == dict.fromkeys(SUBSETS, 0)
    reasons = [
        "prompts differ", "empty reply", "identical replies", "duplicate", "no assistant turn",
    ]
    assert (pairs.report.loc[reasons] > 0).all(axis=None)
    assert len(pairs.validation) == 200
    assert len(pairs.train) > 5000


def test_seed_decides_the_draw(tmp_path, tokenizer):
    """The same seed gives the same pairs in the same order, and another seed gives others."""
    dataset = write_dataset(tmp_path, many_rows(40))
    draws = []
    for seed in (0, 0, 1):
        pairs = load(dataset, tokenizer, seed=seed, max_pairs=30)
        draws.append((data.keep_texts(pairs.train), data.keep_texts(pairs.validation)))
    first, again, other = draws
    assert first == again
    assert first != other


def test_max_pairs_bounds_training_and_validation(tmp_path, tokenizer):
    """MAX_PAIRS pairs are drawn, held-out pairs included; a larger number takes all."""
    dataset = write_dataset(tmp_path, many_rows(40))
    pairs = load(dataset, tokenizer, max_pairs=30)
    assert (len(pairs.train), len(pairs.validation)) == (27, 3)
    assert {pair["subset"] for pair in pairs.train} == set(SUBSETS)
    assert pairs.report.loc["not drawn"].sum() == 50
    assert len(load(dataset, tokenizer, max_pairs=1000).train) == 76


# ---- the evaluation's prompts

def test_harmful_prompts_hold_a_keyword_as_a_words_beginning(tmp_path, tokenizer, capsys):
    """Keywords count in the prompt only and at a word's beginning, without duplicates."""
    harmful = ["How to kill weeds?", "A killer joke?", "MURDER mystery?", "Rapeseed oil?"]
    harmless = ["New skills?", "Overkill?", "Grape juice?"]
    asked = [*harmful, *harmless, harmful[0]]
    rows = [row(text, "I would kill for it.", "No.") for text in asked]
    dataset = write_dataset(tmp_path, [row()], rows)
    drawn = draw(dataset, "harmful", "all", tokenizer)
    prefix = "\n\nHuman: [harmless-base] "
    assert sorted(record["prompt"] for record in drawn) == sorted(
        f"{prefix}{text}\n\nAssistant:" for text in harmful
    )
    assert "Rows dropped: 3 no keyword, 1 duplicate." in capsys.readouterr().out
    assert len(draw(dataset, "helpful", None, tokenizer)) == 7
    assert count(dataset, tokenizer) == {"harmful": 4, "helpful": 7}


def test_all_harmful_prompts_are_drawn_and_say_whether_they_hold_a_keyword(tmp_path, tokenizer):
    rows = [row("How to kill weeds?"), row("New skills?"), row("Murderous?"), row("Grape juice?")]
    dataset = write_dataset(tmp_path, [row()], rows)
    drawn = draw(dataset, "harmful", "all", tokenizer, harmful_prompts="all")
    holding = {record["prompt"].split("] ")[1]: record["keyword"] for record in drawn}
    assert holding == {
        "How to kill weeds?\n\nAssistant:": True,
        "New skills?\n\nAssistant:": False,
        "Murderous?\n\nAssistant:": True,
        "Grape juice?\n\nAssistant:": False,
    }
    chosen = draw(dataset, "harmful", "all", tokenizer)
    assert sorted(record["prompt"] for record in chosen) == sorted(
        record["prompt"] for record in drawn if record["keyword"]
    )
    counts = count(dataset, tokenizer, harmful_prompts="all")
    assert counts == {"harmful": 4, "helpful": 4}


def test_the_studys_rule_for_keywords_can_be_had_alone(tmp_path, tokenizer):
    """Keywords count inside words and in the chosen reply, by case; the prompts stay whole."""
    rows = [
        row("New skills?", "Yes.", "No."),
        row("Hi?", "It will kill you.", "No."),
        row("Tea?", "No.", "It will kill you."),
        row("KILL it?", "Well.", "No."),
        row("Do I kill weeds?", "Well.", "No."),
    ]
    dataset = write_dataset(tmp_path, [row()], rows)
    drawn = draw(dataset, "harmful", "all", tokenizer, keyword_rule="anywhere")
    holding = {record["prompt"].split("] ")[1]: record["keyword"] for record in drawn}
    assert holding == {
        "New skills?\n\nAssistant:": False,
        "Hi?\n\nAssistant:": False,
        "Do I kill weeds?\n\nAssistant:": True,
    }


def test_prompts_may_lack_their_tail_and_nothing_else_changes(hub, tokenizer):
    """The same prompts are drawn in the same order, each without the marker at its end."""
    dataset = hub / "hh-rlhf"
    for kind in ("harmful", "helpful"):
        usual = draw(dataset, kind, 20, tokenizer)
        short = draw(dataset, kind, 20, tokenizer, prompt_tail="human")
        for record, shortened in zip(usual, short, strict=True):
            assert record["prompt"] == shortened["prompt"] + "\n\nAssistant:"
            assert record | {"prompt": None} == shortened | {"prompt": None}


@pytest.mark.slow
def test_official_file_has_159_harmful_prompts_with_a_keyword_and_2301_in_all(tokenizer):
    """2,303 rows are usable, of which two repeat a prompt."""
    if not (DATA / "hh-rlhf").exists():
        pytest.skip("needs the official harmless-base test split")
    numbers = {}
    for name, rules in {
        "usual": {},
        "all": {"harmful_prompts": "all"},
        "anywhere": {"keyword_rule": "anywhere"},
    }.items():
        usable, dropped = prompts._collect_usable(
            DATA / "hh-rlhf", "harmful", tokenizer, 10**6, prompts.PromptRules(**USUAL | rules)
        )
        numbers[name] = (len(usable), dropped["duplicate"])
    assert numbers == {"usual": (159, 0), "all": (2301, 2), "anywhere": (191, 0)}


def test_drawn_prompts_are_numbered_records(hub, tokenizer):
    """Prompts have an id of their kind and their replies, and the seed decides the draw."""
    draws = [draw(hub / "hh-rlhf", "harmful", 12, tokenizer, seed=seed) for seed in (0, 0, 1)]
    first, again, other = draws
    assert [record["id"] for record in first] == [f"harmful-{i:02d}" for i in range(12)]
    assert list(first[0]) == ["id", "kind", "prompt", "chosen", "rejected", "keyword"]
    helpful = draw(hub / "hh-rlhf", "helpful", 12, tokenizer)
    assert list(helpful[0]) == ["id", "kind", "prompt", "chosen", "rejected"]
    assert len({record["prompt"] for record in first}) == 12
    assert first == again
    assert first != other


def test_drawn_prompts_leave_room_for_the_response(tmp_path, tokenizer, capsys):
    """A long prompt loses its oldest turns, and is not drawn if the last turn is too long."""
    long_chat = {"chosen": f"{long_prompt(6)} a", "rejected": f"{long_prompt(6)} b"}
    harmful = row("How do I kill weeds?")
    rows = {"harmless-base": [harmful], "helpful-base": [long_chat, row(" ".join(WORDS * 9))]}
    dataset = write_dataset(tmp_path, [row()], rows)
    (drawn,) = draw(dataset, "helpful", None, tokenizer, room=100)
    assert len(tokenizer(drawn["prompt"])["input_ids"]) <= 100
    assert long_prompt(6).endswith(drawn["prompt"])
    assert "1 usable helpful prompts. Of these 1 were drawn, and 1 of" in capsys.readouterr().out


def test_no_room_for_a_prompt(hub, tokenizer):
    """If the response takes all of the base's positions, the message names the setting."""
    with pytest.raises(ValueError, match="MAX_NEW_TOKENS leaves 7 tokens for a prompt"):
        draw(hub / "hh-rlhf", "harmful", 1, tokenizer, room=7)


def test_without_a_prompt_of_a_kind_the_dataset_is_refused(tmp_path, tokenizer):
    """It is refused for any number of prompts, since a rate could not be computed."""
    dataset = write_dataset(tmp_path, [row()], [row("Who could bake bread?")])
    with pytest.raises(ValueError, match="harmless-base .* has no usable harmful prompt"):
        draw(dataset, "harmful", 1, tokenizer, strict=False)
    counts = count(dataset, tokenizer)
    with pytest.raises(ValueError, match="rate on h.* prompts cannot be computed"):
        data.require_prompts(None, counts, dataset)


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_fewer_prompts_than_asked_for(tmp_path, tokenizer, capsys, protocol):
    """A number that was asked for is refused; a preset's number takes all prompts."""
    rows = [row("Who could kill a weed?"), row("Who could bake bread?")]
    dataset = write_dataset(tmp_path, [row()], rows)
    counts = count(dataset, tokenizer, protocol)
    assert counts == {"harmful": 1, "helpful": 2}
    refusal = "N_PROMPTS = 2, but .*harmless-base .* has only 1 usable harmful"
    with pytest.raises(ValueError, match=refusal):
        draw(dataset, "harmful", 2, tokenizer, protocol=protocol)
    with pytest.raises(ValueError, match=refusal):
        data.require_prompts(2, counts, dataset)
    data.require_prompts(1, counts, dataset)
    data.require_prompts("all", counts, dataset)
    capsys.readouterr()
    rules = prompts.PromptRules(**USUAL)
    drawn = data.draw_prompts(dataset, protocol, 2, tokenizer, 512, 0, False, rules)
    assert [record["id"] for record in drawn] == ["harmful-00", "helpful-00", "helpful-01"]
    printed = capsys.readouterr().out
    assert printed.count("All are taken") == 1
    assert "N_PROMPTS = 2, but only 1 harmful prompts are usable" in printed


def test_paper_prompts_repeat_the_studys_faults(tmp_path, tokenizer):
    """Keywords count inside words, in replies and by case; the last paragraph is the reply."""
    rows = [
        row("New skills?", "Yes.", "No."),
        row("Hi?", "Kill it, or it will kill you.", "No."),
        row("KILL it?", "Well.", "No."),
        row("Tea?", "Grape tea.\n\nOr kill it.", "No."),
    ]
    dataset = write_dataset(tmp_path, [row()], rows)
    harmful = draw(dataset, "harmful", None, tokenizer, protocol="paper")
    assert sorted(record["prompt"] for record in harmful) == [
        "Human: [harmless-base] Hi?",
        "Human: [harmless-base] New skills?",
        "Human: [harmless-base] Tea?\n\nAssistant: Grape tea.\n\nOr kill it.",
    ]
    helpful = draw(dataset, "helpful", None, tokenizer, protocol="paper")
    assert {record["chosen"] for record in helpful} == {
        "Yes.", "Kill it, or it will kill you.", "Well.", "Grape tea.\n\nOr kill it.",
    }
    assert sorted(record["keyword"] for record in harmful) == [False, False, True]
    rules = prompts.PromptRules(**USUAL)
    few = data.draw_prompts(dataset, "paper", 2, tokenizer, 512, 0, True, rules)
    assert [record["id"] for record in few] == [
        "harmful-00", "harmful-01", "helpful-00", "helpful-01",
    ]
    again = data.draw_prompts(dataset, "paper", 2, tokenizer, 512, 1, True, rules)
    assert few == again  # it has the study's seed


def test_paper_prompts_fit_a_small_base(tmp_path, tokenizer, capsys):
    """A prompt longer than the base's positions loses its beginning and is counted."""
    weeds = "the weeds and "
    rows = [row(f"Would you kill {weeds * n}go?", "Yes.", "No.") for n in (1, 40, 400, 401)]
    dataset = write_dataset(tmp_path, [row()], rows)
    rules = prompts.PromptRules(**USUAL)
    records = data.draw_prompts(dataset, "paper", None, tokenizer, 966, 0, True, rules)
    assert capsys.readouterr().out.count("4 were drawn, and 2 of the drawn prompts were") == 2
    lengths = sorted(len(tokenizer(record["prompt"])["input_ids"]) for record in records)
    assert lengths[-4:] == [966] * 4
    assert all(record["prompt"].endswith("go?") for record in records)
    assert sum(record["prompt"].startswith("Human: [") for record in records) == 4


def test_paper_prompts_are_the_papers(tokenizer):
    """On the official test split the 50 harmful prompts are the published ones, in their order.

    The published file, data/prompts/harmful_prompts.json at commit 868ecd0, is as long as ours to
    the character.
    """
    if not (DATA / "hh-rlhf").exists():
        pytest.skip("needs the official harmless-base test split")
    pairs, _ = prompts._collect_as_study(DATA / "hh-rlhf", "harmful", tokenizer, 10**6)
    drawn = [pair["prompt"] for pair in random.Random(100).sample(pairs, 50)]
    published = json.loads((ROOT / "results" / "published" / "prompts.json").read_text("utf-8"))
    assert drawn == [record["prompt"] for record in published if record["kind"] == "harmful"]
    text = json.dumps(drawn, indent=2)
    assert len(text) == 42751
    expected = "a55d5c38bbf0a09c52268bee33cb21baa3bd12172f6497a0dba94713a527e9da"
    assert hashlib.sha256(text.encode()).hexdigest() == expected


@pytest.mark.slow
def test_the_studys_human_replies_are_those_of_the_test_split(tokenizer):
    """Two prompts already end with the chosen reply, as docs/published.md says."""
    if not (DATA / "hh-rlhf").exists():
        pytest.skip("needs the official harmless-base test split")
    folder = ROOT / "results" / "published"
    texts = {}
    for record in json.loads((folder / "prompts.json").read_text("utf-8")):
        texts[record["id"]] = record["prompt"]
    pairs, _ = prompts._collect_as_study(DATA / "hh-rlhf", "harmful", tokenizer, 10**6)
    drawn = random.Random(100).sample(pairs, 50)
    replies = json.loads((folder / "human_replies.json").read_text("utf-8"))
    ending_with_reply = []
    for pair, record in zip(drawn, replies, strict=True):
        assert texts[record["id"]] == pair["prompt"]
        assert (record["chosen"], record["rejected"]) == (pair["chosen"], pair["rejected"])
        if texts[record["id"]].endswith(record["chosen"]):
            ending_with_reply.append(record["id"])
    assert ending_with_reply == ["harmful-05", "harmful-25"]


# ---- datasets that cannot be used

def test_missing_subset(tmp_path):
    """A dataset without one of the subsets is refused, and the missing file is named."""
    write_rows(tmp_path, "harmless-base", "test", [row()])
    refusal = r"DATASET: .* has no file helpful-base/test\.jsonl\.gz\. .* as in Anthropic"
    with pytest.raises(ValueError, match=refusal):
        data.read_split(tmp_path, "helpful-base", "test")


def test_dataset_without_pairs(tmp_path):
    """A dataset of single texts is refused, and its columns are named."""
    write_rows(tmp_path, "harmless-base", "train", [{"transcript": "Hi", "rating": 3}, "Hi"])
    refusal = r"harmless-base/train has the columns \['rating', 'transcript'\].*'not a record': 1"
    with pytest.raises(ValueError, match=refusal):
        data.read_split(tmp_path, "harmless-base", "train")


def test_no_usable_pair(tmp_path, tokenizer):
    """If nothing is left to train on, the message says what became of the rows."""
    dataset = write_dataset(tmp_path, [row(rejected=""), row(chosen="Go away.")])
    refusal = "DATASET: .* no usable pair.*'empty reply': 1.*'identical replies': 1"
    with pytest.raises(ValueError, match=refusal):
        load(dataset, tokenizer)


def test_a_single_usable_pair_is_not_enough(tmp_path, tokenizer):
    """One pair is needed for validation and another for training."""
    rows = {"harmless-base": [row()], "helpful-base": [row(rejected="")]}
    with pytest.raises(ValueError, match="no usable pair for training"):
        load(write_dataset(tmp_path, rows), tokenizer)


def test_script_beside_a_dataset_is_not_run(tmp_path):
    """A script in a dataset's folder is a file like any other that is not used."""
    write_rows(tmp_path, "harmless-base", "test", [row()])
    for folder in (tmp_path, tmp_path / "harmless-base"):
        script = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
        (folder / f"{folder.name}.py").write_text(script)
    assert len(data.read_split(tmp_path, "harmless-base", "test")) == 1
    assert not (tmp_path / "ran").exists()


def test_importing_data_needs_no_torch(monkeypatch):
    """The module can be imported where the libraries for training are missing."""
    for library in ("torch", "transformers", "datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    for name in ("data", "prompts", "tokens", "transcripts"):
        monkeypatch.setattr(posttrain, name, getattr(posttrain, name))  # put back afterwards
        monkeypatch.delitem(sys.modules, f"posttrain.{name}")
    assert importlib.import_module("posttrain.data") is not data


# ---- tokens

def test_texts_are_tokenised_in_parts(tokenizer):
    """All texts at once would take gigabytes; in parts the pairs are the same.

    The tokenizer is one of Python's, which is not asked for ids alone.
    """
    calls = []

    class Watched:
        eos_token = tokenizer.eos_token
        is_fast = False

        def __call__(self, texts, **options):
            calls.append(len(texts))
            return tokenizer(texts, **options)

    pairs = []
    for i in range(2400):
        texts = {"prompt": long_prompt(i % 3 + 1), "chosen": WORDS[i % 7], "rejected": "No."}
        pairs.append(texts | {"subset": "s"})
    fitting = data.fit_pairs(pairs, Watched(), 512, set(), {"s": Counter()})
    assert max(calls) <= 1000
    expected = data.fit_pairs(pairs[-3:], tokenizer, 512, set(), {"s": Counter()})
    assert data.keep_texts(fitting[-3:]) == data.keep_texts(expected)
    for pair, other in zip(fitting[-3:], expected):
        assert all(np.array_equal(pair[name], other[name]) for name in data.IDS)
    assert len(fitting) == 2400


@pytest.fixture
def fitted(tokenizer):
    """Five pairs with their token ids, as `load_pairs` gives them."""
    pairs = []
    for i in range(1, 6):
        texts = {"prompt": long_prompt(i), "chosen": f"{WORDS[i]}: 1\n\n2 ...", "rejected": "No."}
        pairs.append(texts | {"subset": "s"})
    fitting = data.fit_pairs(pairs, tokenizer, 512, set(), {"s": Counter()})
    return data.Pairs(fitting[:4], fitting[4:], report=None)


def test_ids_are_those_of_the_text(tokenizer, fitted):
    """The ids of prompt and reply together are those of the whole text."""
    for pair in fitted.train:
        for side in ("chosen", "rejected"):
            text = f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}"
            ids = [*pair["prompt_ids"], *pair[f"{side}_ids"]]
            assert ids == tokenizer(text)["input_ids"]
    assert list(data.keep_texts(fitted.train)[0]) == [
        "prompt", "chosen", "rejected", "subset", "length",
    ]


def test_sft_learns_from_the_reply_alone_or_from_all(fitted):
    """With `reply_only` the prompt has no labels; without it every token has one."""
    for split, pairs in (("train", fitted.train), ("validation", fitted.validation)):
        replies = fitted.for_sft(split)
        texts = fitted.for_sft(split, reply_only=False)
        for pair, reply, text in zip(pairs, replies, texts, strict=True):
            ids = [*pair["prompt_ids"], *pair["chosen_ids"]]
            assert text == {"input_ids": ids, "labels": ids}
            no_loss = [-100] * len(pair["prompt_ids"])
            assert reply == {"input_ids": ids, "labels": no_loss + list(pair["chosen_ids"])}
    assert str(replies.features["labels"].feature.dtype) == "int32"


def test_dpo_learns_from_ids_and_length(fitted):
    """DPO's columns are those of the pairs of the given split."""
    dataset = fitted.for_dpo("train")
    assert dataset.column_names == [*data.IDS, "length"]
    for pair, record in zip(fitted.train, dataset, strict=True):
        assert record["length"] == pair["length"]
        assert all(record[name] == list(pair[name]) for name in data.IDS)
    assert len(fitted.for_dpo("validation")) == 1


@pytest.mark.parametrize("reply_only", [True, False])
def test_tokens_of_a_pair_are_shown_with_their_loss(tokenizer, fitted, reply_only):
    """The table shows the ids and labels of SFT, and the texts are those of the pair."""
    pair = fitted.train[0]
    table = data.show_pair_tokens(pair, tokenizer, reply_only)
    record = fitted.for_sft("train", reply_only)[0]
    assert list(table["id"]) == record["input_ids"]
    assert list(table["loss"]) == [label != -100 for label in record["labels"]]
    text = f"{tokenizer.bos_token}{pair['prompt']} {pair['chosen']}{tokenizer.eos_token}"
    assert "".join(table["text"]) == text.replace("\n", "\\n")


def make_tokenizer(pre_tokenizer, *known):
    """Make a tokenizer with these words, which `pre_tokenizer` separates."""
    vocabulary = {word: i for i, word in enumerate(("<unk>", "</s>", *known))}
    backend = Backend(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


SHORT = {
    "prompt": f"\n\nHuman: Yes{data.PROMPT_END}", "chosen": "Yes", "rejected": "No", "subset": "s",
}


def test_tokenizer_that_marks_the_beginning_of_a_text():
    """A mark at the beginning of a text belongs to the prompt and not to the reply."""
    tokenizer = make_tokenizer(
        Metaspace(prepend_scheme="first"),
        "▁\n\nHuman:", f"▁Yes{data.PROMPT_END}", f"▁{data.PROMPT_END}", "▁Yes", "▁No",
    )
    (pair,) = data.fit_pairs([SHORT], tokenizer, 512, set(), {"s": Counter()})
    assert tokenizer.convert_ids_to_tokens(list(pair["chosen_ids"])) == ["▁Yes", "</s>"]
    ids = [*pair["prompt_ids"], *pair["chosen_ids"]]
    assert ids == tokenizer(f"{SHORT['prompt']} Yes</s>")["input_ids"]


def test_tokenizer_with_tokens_across_the_border_is_refused():
    """A token that spans a prompt's end and a reply's beginning would mislead the model."""
    known = [f"{data.PROMPT_END}{reply}" for reply in ("", " Yes", " No")]
    tokenizer = make_tokenizer(Split("never", "removed"), *known)
    with pytest.raises(ValueError, match="BASE_MODEL: .*span the boundary"):
        data.fit_pairs([SHORT], tokenizer, 512, set(), {"s": Counter()})


# ---- malformed lines

ASSISTANT = "\n\nAssistant:"
FULL = f"\n\nHuman: A question?{ASSISTANT} "
REASONS = {
    *DEFECTS, "not UTF-8", "not JSON", "not a record", "control character",
    "file cut short or damaged",
}
VALUES = {
    "null": None, "number": 5, "fraction": 1.5, "truth": True, "list": ["a"], "record": {"a": 1},
    "nothing": [],
}


def both(prompt, chosen="Yes, of course.", rejected="No, never."):
    """Make a row of two transcripts that begin with the same text."""
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def line(record):
    """Write a row as a line of a JSON lines file."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")


CASES = {  # name: a line of the file, and the reason why it is dropped, None where it is used
    # what is no record
    "not JSON": (b"not json", "not JSON"),
    "half a record": (line(both(FULL))[:40], "not JSON"),
    "two records in a line": (line(both(FULL)) * 2, "not JSON"),
    "single quotes": (str(both(FULL)).encode(), "not JSON"),
    "trailing comma": (line(both(FULL))[:-1] + b",}", "not JSON"),
    "null": (b"null", "not a record"),
    "a number": (b"7", "not a record"),
    "a text": (b'"chosen"', "not a record"),
    "a list": (b'["chosen", "rejected"]', "not a record"),
    "an empty list": (b"[]", "not a record"),
    "truth": (b"true", "not a record"),
    "not a number": (b"NaN", "not a record"),
    # bytes that are no text
    "Latin-1": ('{"chosen": "Käse", "rejected": "b"}'.encode("latin-1"), "not UTF-8"),
    "broken UTF-8": (b'{"chosen": "\xff\xfe", "rejected": "b"}', "not UTF-8"),
    "cut character": (line(both(FULL + "é"))[:-5] + b'\xc3"}', "not UTF-8"),
    "UTF-16": ('{"chosen": "a", "rejected": "b"}'.encode("utf-16"), "not UTF-8"),
    "UTF-8 of a half character": (line(both(FULL + "\ud800")), "not UTF-8"),
    "null byte": (b"\x00", "not JSON"),
    "raw null byte in a text": (line(both(FULL)).replace(b"Yes", b"Y\x00s"), "not JSON"),
    "raw line feed escape": (line(both(FULL)).replace(b"\\n", b"\x0b"), "not JSON"),
    # bombs
    "deep list": (b"[" * 100_000, "not JSON"),
    "deep closed list": (b"[" * 100_000 + b"]" * 100_000, "not JSON"),
    "deep record": (b'{"chosen":' * 50_000, "not JSON"),
    "deep field": (
        b'{"chosen": ' + b"[" * 50_000 + b"]" * 50_000 + b', "rejected": "b"}', "not JSON",
    ),
    "huge number": (b'{"chosen": 1' + b"0" * 10_000 + b', "rejected": "b"}', "not JSON"),
    "huge exponent": (b'{"chosen": 1e999999, "rejected": "b"}', "not text"),
    "many fields": (line(both(FULL) | {f"k{i}": i for i in range(2000)}), None),
    # records without two texts
    **{f"chosen is {name}": (line(both(FULL) | {"chosen": VALUES[name]}), "not text")
       for name in VALUES},
    **{f"rejected is {name}": (line(both(FULL) | {"rejected": VALUES[name]}), "not text")
       for name in VALUES},
    "chosen is a date": (line(both(FULL) | {"chosen": "2020-01-01"}), "no assistant turn"),
    "empty record": (b"{}", "not text"),
    "no chosen": (line({"rejected": FULL + "b"}), "not text"),
    "no rejected": (line({"chosen": FULL + "a"}), "not text"),
    "fields in capitals": (line({"Chosen": FULL + "a", "Rejected": FULL + "b"}), "not text"),
    "fields in a record": (line({"row": both(FULL)}), "not text"),
    # records with more, or in another order
    "extra field": (line(both(FULL) | {"source": "a", "n": 3}), None),
    "extra field of a mixed kind": (line(both(FULL) | {"extra": {"a": [1, {"b": None}]}}), None),
    "another order": (line(dict(reversed(both(FULL).items()))), None),
    "a field twice, the last counts": (b'{"chosen": "x", ' + line(both(FULL))[1:], None),
    "byte order mark": (b"\xef\xbb\xbf" + line(both(FULL)), None),
    "carriage return at the end": (line(both(FULL)) + b"\r", None),
    "escaped throughout": (json.dumps(both(FULL + "Käse 🧀")).encode(), None),
    "field named unreadable": (line(both(FULL) | {"unreadable": "yes"}), None),
    # transcripts
    "empty": (line({"chosen": "", "rejected": ""}), "no assistant turn"),
    "only whitespace": (line({"chosen": " \n\n ", "rejected": "\t"}), "no assistant turn"),
    "only a human marker": (
        line({"chosen": "\n\nHuman:", "rejected": "\n\nHuman:"}), "no assistant turn",
    ),
    "only an assistant marker": (line(both(ASSISTANT)), "no human turn first"),
    "markers alone": (line(both("\n\nHuman:\n\nAssistant:", "", "")), "empty reply"),
    "markers on one line": (line(both("Human: Hi Assistant: ")), "no assistant turn"),
    "single line feeds": (line(both("\nHuman: Hi\nAssistant: ")), "no assistant turn"),
    "Windows line ends": (line(both(FULL.replace("\n", "\r\n"))), "no assistant turn"),
    "lower case markers": (line(both(FULL.lower())), "no assistant turn"),
    "text before the first turn": (line(both("Note." + FULL)), "no human turn first"),
    "assistant first": (line(both(f"{ASSISTANT} Hello.{FULL}")), "no human turn first"),
    "empty chosen reply": (line(both(FULL, chosen=" ")), "empty reply"),
    "empty rejected reply": (line(both(FULL, rejected="")), "empty reply"),
    "identical": (line(both(FULL, "Same.", "Same.")), "identical replies"),
    "identical but for spaces": (line(both(FULL, "Same.", "  Same.\n")), "identical replies"),
    "prompts differ": (
        line({"chosen": FULL + "a", "rejected": FULL.replace("A ", "The ") + "b"}),
        "prompts differ",
    ),
    "prompts differ in a space": (
        line({"chosen": FULL + "a", "rejected": FULL.replace("?", "? ") + "b"}), "prompts differ",
    ),
    "human turn in the chosen reply": (
        line(both(FULL, "Yes.\n\nHuman: And then?")), "reply opens a human turn",
    ),
    "assistant turn in one reply": (
        line(both(FULL, f"Yes.{ASSISTANT} And more.")), "prompts differ",
    ),
    "human word in a reply": (line(both(FULL, "Human: that is what I am.")), None),
    "empty human turn": (line(both(f"\n\nHuman:{ASSISTANT} ")), None),
    "paragraphs": (line(both(FULL, "One.\n\nTwo.\n\n\n\nThree.")), None),
    "thousands of turns": (
        line(both("".join(f"\n\nHuman: {i}{ASSISTANT} Yes." for i in range(3000)) + FULL)), None,
    ),
    "a prompt of a hundred thousand words": (
        line(both(f"\n\nHuman: {'word ' * 100_000}{ASSISTANT} ")), "too long",
    ),
    "a reply of a megabyte": (line(both(FULL, "yes " * 250_000)), "too long"),
    "a word of a megabyte": (line(both(FULL, "y" * 1_000_000)), "too long"),
    # characters
    "escaped null": (line(both(FULL, "a\x00b")), "control character"),
    "backspace": (line(both(FULL, "a\bb")), "control character"),
    "escape sequence": (line(both(FULL, "\x1b[31mred")), "control character"),
    "bidirectional override": (line(both(FULL, "\u202eevil\u202c")), "control character"),
    "bidirectional isolate": (line(both(FULL.replace("A", "\u2067A"))), "control character"),
    "escaped half character": (json.dumps(both(FULL, "a\ud800b")).encode(), "control character"),
    "joined emoji": (line(both(FULL, "👩‍👩‍👧‍👦 " * 5)), None),
    "combining marks": (line(both(FULL, "Z" + "\u0301" * 60)), None),
    "right to left letters": (line(both(FULL, "שלום مرحبا")), None),
    "line separator": (line(both(FULL, "one\u2028two\x85three")), None),
    "non-character": (line(both(FULL, "\uffff \U0010ffff")), None),
    # control tokens as text
    "end of text": (line(both(FULL, "Yes.</s> More.")), "special token in text"),
    "padding": (line(both(FULL, "<pad><pad>")), "special token in text"),
    "beginning in the prompt": (
        line(both(FULL.replace("A ", "</s>A "))), "special token in text",
    ),
    "token of another model": (line(both(FULL, "Yes [SEP] no <|endoftext|> <unk> [CLS].")), None),
}
NEIGHBOURS = []
for number in range(6):
    NEIGHBOURS.append(row(f"Neighbour {number}?", f"Well, {number}.", f"Go away, {number}."))


def write_lines(folder, lines, split="train"):
    """Write a dataset whose harmless-base has these lines in one split; return its folder."""
    for subset in SUBSETS:
        for name in ("train", "test"):
            write_rows(folder, subset, name, [row(f"{subset} {name}", "A.", "B.")])
    with gzip.open(folder / "harmless-base" / f"{split}.jsonl.gz", "wb") as file:
        file.writelines(text + b"\n" for text in lines)
    return folder


def load_harmless(dataset, tokenizer):
    """Load what is kept of harmless-base, as texts, and the report on it."""
    pairs = load(dataset, tokenizer, validation_pairs=1)
    kept = set()
    for pair in pairs.train + pairs.validation:
        if pair["subset"] == "harmless-base":
            kept.add((pair["prompt"], pair["chosen"], pair["rejected"]))
    return kept, as_counters(pairs.report)["harmless-base"]


def test_there_are_enough_cases():
    """There are at least 60 malformed or odd lines, with every reason that a line can have."""
    reasons = {reason for _, reason in CASES.values()}
    assert len(CASES) >= 60
    assert reasons == REASONS - {"file cut short or damaged"} | {"too long", None}


@pytest.mark.parametrize("name", CASES)
def test_malformed_line_is_used_or_has_its_reason(name):
    """A line on its own gives a pair, or is dropped for its reason."""
    text, reason = CASES[name]
    pairs, dropped = data.split_pairs([transcripts.parse_line(text)], SPECIAL)
    if reason in (None, "too long"):  # the length is known when tokens are
        assert (len(pairs), dropped) == (1, {})
    else:
        assert (pairs, dropped) == ([], {reason: 1})


def test_malformed_lines_do_their_neighbours_no_harm(tokenizer, tmp_path):
    """In a file of usable and malformed lines every line is kept or counted on its own."""
    bad = [text for text, reason in CASES.values() if reason]
    odd = [text for text, reason in CASES.values() if reason is None]
    sound = [line(record) for record in NEIGHBOURS]
    expected, _ = load_harmless(write_lines(tmp_path / "sound", sound), tokenizer)
    assert len(expected) == 6
    lines = [*sound[:2], *bad, *sound[2:4], *odd, *sound[4:]]
    kept, report = load_harmless(write_lines(tmp_path / "mixed", lines), tokenizer)
    assert expected <= kept
    assert report["read"] == len(lines)
    reasons = Counter(reason for _, reason in CASES.values() if reason)
    assert {reason: report[reason] for reason in reasons} == reasons
    used = report["training"] + report["validation"]
    repeated = report["duplicate"] + report["prompt in validation"]
    assert used + repeated == len(sound) + len(odd)
    for pair in kept:
        ids = tokenizer("".join(pair), add_special_tokens=False)["input_ids"]
        assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("keep", [0.3, 0.97])
def test_gzip_cut_short(tokenizer, tmp_path, keep):
    """The rows before the damage are used, and the damage is counted and named."""
    rows = []
    for i in range(1000):
        rows.append(row(f"Question {i}: {'why ' * (i % 7)}", f"Well, {i}.", f"Go, {i * i}."))
    dataset = write_lines(tmp_path, map(line, rows))
    path = tmp_path / "harmless-base" / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    pairs, report = load_harmless(dataset, tokenizer)
    assert report["file cut short or damaged"] == 1
    assert 0 < len(pairs) == report["read"] - 1 < 1000
    assert {pair[1] for pair in pairs} == {f"Well, {i}." for i in range(len(pairs))}


def test_damaged_gzip(tokenizer, tmp_path):
    """A wrong checksum is counted as damage; a file that is not gzip at all is refused."""
    dataset = write_lines(tmp_path, map(line, NEIGHBOURS * 50))
    path = tmp_path / "harmless-base" / "train.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # of the checksum
    path.write_bytes(bytes(content))
    pairs, report = load_harmless(dataset, tokenizer)
    assert len(pairs) == 6
    assert report["file cut short or damaged"] == 1
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="of an unknown kind. Download the file again"):
        load_harmless(dataset, tokenizer)


TEXT = b"".join(line(record) + b"\n" for record in NEIGHBOURS)
OTHER_FILES = {  # {what lies in the place of a file: (its content, words of the message)}
    "text": (TEXT, "text that is not compressed.*`gzip`"),
    "text with a BOM": (b"\xef\xbb\xbf" + TEXT, "text that is not compressed.*`gzip`"),
    "a login page": (b"\n<!DOCTYPE html><html>", "a web page.*Download the file again"),
    "zip": (b"PK\x03\x04\x14\0\0\0", "a zip archive.*Unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x58", "compressed by zstd.*Decompress"),
    "bzip2": (bz2.compress(TEXT), "compressed by bzip2.*Decompress"),
    "xz": (lzma.compress(TEXT), "compressed by xz.*Decompress"),
    "Parquet": (b"PAR1\x15\x04", "a Parquet file.*as JSON Lines"),
    "nothing": (b"", "is empty"),
    "no lines": (gzip.compress(b""), "contains no lines"),
    "blank lines": (gzip.compress(b"\n\n"), "contains no lines"),
    "gzip in gzip": (gzip.compress(gzip.compress(TEXT)), "was compressed twice"),
    "UTF-16": (gzip.compress(TEXT.decode().encode("utf-16")), "must be UTF-8.*`iconv"),
    "UTF-16 without a BOM": (gzip.compress(TEXT.decode().encode("utf-16-le")), "must be UTF-8"),
    "UTF-32": (gzip.compress(TEXT.decode().encode("utf-32-be")), "must be UTF-8"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_file_of_another_kind_is_refused_as_what_it_is(tmp_path, name):
    """The message names the file, its kind and what to do, instead of damage."""
    content, words = OTHER_FILES[name]
    path = write_lines(tmp_path, []) / "harmless-base" / "train.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"DATASET: .*train\.jsonl\.gz.* {words}") as error:
        data.read_split(tmp_path, "harmless-base", "train")
    assert "damaged" not in str(error.value)


SAME_ROWS = {
    "a BOM": gzip.compress(b"\xef\xbb\xbf" + TEXT),
    "ends of lines as on Windows": gzip.compress(TEXT.replace(b"\n", b"\r\n")),
    "two members of gzip": gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]),
    "zeros after the end": gzip.compress(TEXT) + b"\0" * 512,
}


@pytest.mark.parametrize("name", SAME_ROWS)
def test_file_that_is_written_otherwise_has_the_same_rows(tmp_path, name):
    """Nothing is lost, and nothing is counted as damage."""
    path = write_lines(tmp_path, []) / "harmless-base" / "train.jsonl.gz"
    path.write_bytes(SAME_ROWS[name])
    assert data.read_split(tmp_path, "harmless-base", "train") == NEIGHBOURS


def test_folder_in_the_place_of_a_file(tmp_path):
    """It is no file of the dataset."""
    (tmp_path / "harmless-base" / "train.jsonl.gz").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no file harmless-base/train\.jsonl\.gz"):
        data.read_split(tmp_path, "harmless-base", "train")


def test_defective_test_rows_guard_their_prompts(tokenizer, tmp_path):
    """Test lines that are no records do no harm, and unusable rows still exclude their prompts."""
    unusable = {"chosen": dialogue("Neighbour 2?", "x"), "rejected": 5}
    write_lines(tmp_path, [b"null", b"not json", line(unusable)], "test")
    write_rows(tmp_path, "harmless-base", "train", NEIGHBOURS)
    pairs, report = load_harmless(tmp_path, tokenizer)
    assert report["prompt in a test split"] == 1
    assert len(pairs) == 5


# ---- properties

at_length = examples(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ODD = st.sampled_from([
    "\n\nHuman:", "\n\nAssistant:", "\n", "\n\n", " ", "</s>", "<pad>", "[SEP]", "Human:", "\x00",
    "\u202e", "é", "🧀", "a", "word ", "?",
])
TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(ODD, max_size=14).map("".join),
    st.lists(st.one_of(ODD, st.text(max_size=5)), max_size=14).map("".join),
)
NUMBER = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def transcript_row(prompt, chosen, rejected):
    """Make a row of any three texts."""
    return both(f"\n\nHuman:{prompt}\n\nAssistant:", chosen, rejected)


ROW = st.one_of(
    st.fixed_dictionaries({"chosen": TEXT, "rejected": TEXT}),
    st.builds(transcript_row, TEXT, TEXT, TEXT),
    st.dictionaries(st.sampled_from(["chosen", "rejected", "other"]), JSON),
    st.sampled_from(sorted(REASONS)),  # a line that is no record
)
LINE = st.one_of(
    st.binary(max_size=80),
    JSON.map(lambda value: json.dumps(value).encode()),
    TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
)


@pytest.mark.slow
@at_length
@given(text=LINE)
def test_reading_a_line_never_fails(text):
    """Any bytes give a record or a named reason."""
    parsed = transcripts.parse_line(text)
    assert isinstance(parsed, dict) or parsed in REASONS


@pytest.mark.slow
@at_length
@given(record=ROW)
def test_a_row_is_split_or_refused_for_a_reason(record):
    """A pair has only text of its row, without special tokens or control characters."""
    try:
        pair = data.split_pair(record, SPECIAL)
    except ValueError as reason:
        assert str(reason) in REASONS
        return
    assert set(pair) == {"prompt", "chosen", "rejected"}
    assert pair["prompt"].startswith("\n\nHuman:")
    assert pair["prompt"].endswith("\n\nAssistant:")
    assert pair["chosen"] != pair["rejected"]
    for side in ("chosen", "rejected"):
        assert record[side].startswith(pair["prompt"])
        reply = record[side][len(pair["prompt"]) :]
        assert pair[side] == reply.strip() != ""
        assert "\n\nHuman:" not in pair[side]
        assert "\n\nAssistant:" not in reply
        assert not set("\x00\u202e") & set(record[side])
        assert not any(token in record[side] for token in SPECIAL)


@pytest.mark.slow
@at_length
@given(rows=st.lists(ROW, max_size=8), bad=ROW, place=st.integers(0, 8))
def test_a_row_does_not_change_its_neighbours(rows, bad, place):
    """With one more row, the other pairs are the same, and exactly one more row is counted."""
    pairs, dropped = data.split_pairs(rows, SPECIAL)
    assert len(pairs) + dropped.total() == len(rows)
    more, dropped_more = data.split_pairs(rows[:place] + [bad] + rows[place:], SPECIAL)
    extra, reason = data.split_pairs([bad], SPECIAL)
    before = len(data.split_pairs(rows[:place], SPECIAL)[0])
    assert more == pairs[:before] + extra + pairs[before:]
    assert dropped_more == dropped + reason


TURNS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30),
    min_size=1,
    max_size=9,
)


@pytest.mark.slow
@at_length
@given(turns=TURNS, room=st.integers(1, 120))
def test_cutting_keeps_the_newest_turns(tokenizer, turns, room):
    """Of any prompt the longest ending from a human turn that fits is kept."""
    prompt = dialogue(*turns) + "\n\nAssistant:"
    (cut,) = data.cut_prompts([prompt], [room], tokenizer)
    fitting = []
    for i in range(0, len(turns), 2):
        end = prompt[len(dialogue(*turns[:i])) :]
        if len(tokenizer(end)["input_ids"]) <= room:
            fitting.append(end)
    assert cut == (fitting[0] if fitting else None)


@pytest.mark.slow
@at_length
@given(texts=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6),
       limit=st.integers(8, 200))
def test_fitting_cuts_no_reply(tokenizer, texts, limit):
    """Pairs that are kept fit and have their whole replies; all others are counted."""
    pairs = []
    for triple in texts:
        prompt, chosen, rejected = triple
        for token in tokenizer.all_special_tokens:
            prompt, chosen, rejected = (
                text.replace(token, "") for text in (prompt, chosen, rejected)
            )
        pairs.append({
            "prompt": f"\n\nHuman:{prompt}\n\nAssistant:", "chosen": chosen, "rejected": rejected,
            "subset": "s",
        })
    report = {"s": Counter()}
    fitting = data.fit_pairs(pairs, tokenizer, limit, set(), report)
    assert len(fitting) + report["s"]["too long"] == len(pairs)
    replies = [(pair["chosen"], pair["rejected"]) for pair in pairs]
    for pair in fitting:
        assert (pair["chosen"], pair["rejected"]) in replies
        prompt_length = len(tokenizer(pair["prompt"])["input_ids"])
        lengths = []
        for side in ("chosen", "rejected"):
            text = f" {pair[side]}{tokenizer.eos_token}"
            lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        assert prompt_length + max(lengths) == pair["length"] <= limit
