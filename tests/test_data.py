"""From transcripts to training pairs: what is kept, what is dropped for which reason, what is cut."""

import random
from collections import Counter

import pytest
from conftest import dialogue, row, write_dataset

SPECIAL = ["</s>", "<pad>"]
WORDS = ["soup", "bread", "water", "train", "garden", "music", "winter", "letter", "window", "coffee"]
SUBSETS = ["harmless-base", "helpful-base"]
SETTINGS = {"subsets": "base", "max_pairs": None, "validation_pairs": 4, "max_length": 512,
            "seed": 0}


def many_rows(n):
    """Return `n` sound rows with prompts that all differ."""
    return [row(f"Question {i} about {WORDS[i % 10]}?", f"Answer {i}.", f"Nothing {i}.") for i in range(n)]


def unaccounted(report):
    """Return per subset how many rows are missing from the report, or in it twice."""
    return {subset: counts["read"] - sum(n for name, n in counts.items() if name not in ("read", "cut"))
            for subset, counts in report.items()}


def prepare(main, folder, tokenizer, **settings):
    """Return what `prepare_data` makes of a dataset."""
    return main.prepare_data(SETTINGS | {"dataset": str(folder)} | settings, tokenizer)


def test_reply_begins_after_the_last_marker(main):
    """Earlier turns belong to the prompt, and so do markers in the human's words."""
    text = dialogue("Hi", "Hello.", "And now?", "Now this.")
    prompt, reply = main.split_transcript(text)
    assert prompt == dialogue("Hi", "Hello.", "And now?") + "\n\nAssistant:"
    assert reply == "Now this."


def test_reply_keeps_its_paragraphs(main):
    """A blank line does not end a reply."""
    assert main.split_transcript(dialogue("Hi", "One.\n\nTwo.\n\n- three"))[1] == "One.\n\nTwo.\n\n- three"


def test_reply_is_stripped_and_may_be_empty(main):
    """Space around a reply goes, and nothing but space is an empty reply."""
    assert main.split_transcript("\n\nHuman: Hi\n\nAssistant:  ok \n")[1] == "ok"
    assert main.split_transcript("\n\nHuman: Hi\n\nAssistant:")[1] == ""


def test_prompt_and_reply_make_up_the_transcript(main):
    """Nothing is lost between the two parts, non-ASCII text included."""
    text = dialogue("Wie heißt das?", "Käse 🧀.", "再见?", "再见。")
    prompt, reply = main.split_transcript(text)
    assert f"{prompt} {reply}" == text


def test_transcript_without_assistant_is_refused(main):
    """Without an assistant turn there is no reply."""
    with pytest.raises(ValueError, match="no assistant turn"):
        main.split_transcript("\n\nHuman: Hi")


def test_sound_pair(main):
    """A sound row gives the shared prompt and the two replies."""
    assert main.parse_pair(row("Hi?", "A.\n\nB.", "C."), SPECIAL) == {
        "prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": "A.\n\nB.", "rejected": "C."}


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
def test_unfit_pair_is_dropped_for_its_reason(main, reason):
    """Every defect has its own reason."""
    with pytest.raises(ValueError, match=f"^{reason}$"):
        main.parse_pair(DEFECTS[reason], SPECIAL)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_defect_is_found_on_either_side(main, side):
    """An empty reply and a human turn in a reply are found in the chosen and in the rejected text."""
    for reply, reason in (("", "empty reply"), ("A\n\nHuman: B", "reply opens a human turn")):
        with pytest.raises(ValueError, match=reason):
            main.parse_pair(row() | {side: dialogue("How are you?", reply)}, SPECIAL)


def test_pairs_and_reasons_are_counted(main):
    """Usable pairs stay in their order, the others are counted under their reasons."""
    rows = [row("One?"), *DEFECTS.values(), row("Two?"), DEFECTS["empty reply"]]
    pairs, dropped = main.parse_pairs(rows, SPECIAL)
    assert [pair["prompt"] for pair in pairs] == [f"\n\nHuman: {n}?\n\nAssistant:" for n in ("One", "Two")]
    assert dropped == Counter(dict.fromkeys(DEFECTS, 1) | {"empty reply": 2})


def long_prompt(turns):
    """Return a prompt of many turns."""
    words = [" ".join(WORDS[i % 10 :] + WORDS[: i % 10]) for i in range(2 * turns - 1)]
    return dialogue(*words) + "\n\nAssistant:"


@pytest.mark.parametrize("room", [60, 100, 200, 391])
def test_prompt_is_cut_at_a_turn_and_fits(main, tokenizer, room):
    """A cut prompt is the longest end of the prompt that begins with a human turn and fits, counted with its BOS."""
    prompt = long_prompt(9)
    cut = main.cut_prompt(prompt, room, tokenizer)
    ends = [prompt[i:] for i in range(len(prompt)) if prompt.startswith("\n\nHuman:", i)]
    fitting = [end for end in ends if len(tokenizer(end)["input_ids"]) <= room]
    assert cut == max(fitting, key=len)
    assert len(cut) < len(prompt)


def test_prompt_that_fits_is_left_alone(main, tokenizer):
    """A prompt of exactly the room's length is not cut; one token less room and its first turn goes."""
    prompt = long_prompt(3)
    length = len(tokenizer(prompt)["input_ids"])
    assert main.cut_prompt(prompt, length, tokenizer) == prompt
    assert main.cut_prompt(prompt, length - 1, tokenizer) != prompt


def test_last_turn_is_never_cut(main, tokenizer):
    """Where the last turn alone is too long, there is no prompt left."""
    assert main.cut_prompt(long_prompt(3), 10, tokenizer) is None


def test_prompts_of_the_test_splits_come_from_defective_rows_too(main, tmp_path):
    """A test row that cannot be used still keeps its prompt out of the training."""
    dataset = write_dataset(tmp_path, [row()], {"harmless-base": [row("A?", "x", ""), DEFECTS["prompts differ"]],
                                                "helpful-base": [row("B?"), DEFECTS["no assistant turn"]]})
    prompts = main.test_prompts(dataset, SUBSETS)
    assert prompts == {f"\n\nHuman: {text}\n\nAssistant:" for text in ("A?", "Hi", "Hi!", "B?")}


def test_leak_and_duplicates_are_dropped(main, tmp_path):
    """A training pair whose prompt is in any test split goes, and so does the second of two equal pairs."""
    train = {"harmless-base": [row("Seen in the other test split?"), row("Twice?"), row("Twice?"),
                               row("Twice?", "Another reply.")],
             "helpful-base": [row("Seen?", "Other", "replies"), row("Twice?")]}
    test = {"harmless-base": [row("Seen?", "x", "")], "helpful-base": [row("Seen in the other test split?")]}
    dataset = write_dataset(tmp_path, train, test)
    pairs, report = main.gather_pairs(dataset, SUBSETS, SPECIAL, main.test_prompts(dataset, SUBSETS))
    assert [(pair["subset"], pair["chosen"]) for pair in pairs] == [("harmless-base", "Well."),
                                                                    ("harmless-base", "Another reply.")]
    assert report == {"harmless-base": {"read": 4, "prompt in a test split": 1, "duplicate": 1},
                      "helpful-base": {"read": 2, "prompt in a test split": 1, "duplicate": 1}}


def true_length(tokenizer, pair):
    """Return the tokens of a pair's longer side as the trainers see it: BOS, prompt, space, reply, EOS."""
    return max(len(tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}")["input_ids"])
               for side in ("chosen", "rejected"))


def test_fitted_pairs_fit_and_keep_their_replies(main, tokenizer):
    """Prompt and longer reply take at most max_length tokens; the prompt gives way, the replies stay whole."""
    rng = random.Random(0)
    replies = [" ".join(rng.choices(WORDS, k=n)) for n in (1, 5, 20, 40, 70, 90)]
    pairs = [{"prompt": long_prompt(turns), "chosen": a, "rejected": b, "subset": "s"}
             for turns in (1, 2, 5, 9) for a in replies for b in replies]
    report = {"s": Counter()}
    fitting = main.fit_pairs(pairs, tokenizer, 200, set(), report)
    kept = {(pair["chosen"], pair["rejected"]) for pair in fitting}
    assert kept < {(pair["chosen"], pair["rejected"]) for pair in pairs}
    assert max(true_length(tokenizer, pair) for pair in fitting) <= 200
    assert all(pair["length"] >= true_length(tokenizer, pair) for pair in fitting)
    assert all(pair["length"] == true_length(tokenizer, pair) for pair in fitting if pair["prompt"] == long_prompt(1))
    assert len(fitting) + report["s"]["too long"] == len(pairs)
    originals = {long_prompt(turns) for turns in (1, 2, 5, 9)}
    assert report["s"]["cut"] == sum(pair["prompt"] not in originals for pair in fitting) > 0
    assert report["s"]["too long"] > 0


def test_pair_of_exactly_max_length_is_not_cut(main, tokenizer):
    """The limit itself is allowed, one token more is not."""
    pair = {"prompt": long_prompt(2), "chosen": "soup", "rejected": "bread and water", "subset": "s"}
    length = true_length(tokenizer, pair)
    for max_length, cut in ((length, 0), (length - 1, 1)):
        report = {"s": Counter()}
        main.fit_pairs([pair], tokenizer, max_length, set(), report)
        assert report["s"]["cut"] == cut


def test_reply_longer_than_max_length_is_dropped(main, tokenizer):
    """No reply is cut: the pair goes, under its reason, be the prompt as short as it may."""
    report = {"s": Counter()}
    pair = {"prompt": long_prompt(1), "chosen": " ".join(WORDS * 30), "rejected": "soup", "subset": "s"}
    assert main.fit_pairs([pair], tokenizer, 100, set(), report) == []
    assert report["s"] == {"too long": 1}


def test_prompt_cut_to_one_of_a_test_split_is_dropped(main, tokenizer, tmp_path):
    """What a long dialogue asks last may be a test prompt by itself: the pair goes, under that reason."""
    last = "\n\nHuman: What is the secret?\n\nAssistant:"
    pair = {"prompt": long_prompt(9) + " Well." + last, "chosen": "soup", "rejected": "bread", "subset": "s"}
    room = len(tokenizer(last)["input_ids"]) + 20
    for unseen, fate in (({last}, "prompt in a test split"), ({last + "x"}, "cut")):
        report = {"s": Counter()}
        fitting = main.fit_pairs([pair], tokenizer, room, unseen, report)
        assert report["s"] == {fate: 1}
        assert [pair["prompt"] for pair in fitting] == [last] * (fate == "cut")


def test_validation_and_training_share_no_prompt(main):
    """Pairs with a held-out prompt are dropped, and at most a tenth of the pairs is held out."""
    pairs = [{"prompt": str(i % 30), "subset": "s"} for i in range(60)]
    report = {"s": Counter()}
    training, held_out = main.split_pairs(pairs, 50, report)
    assert len(held_out) == 6
    assert not {pair["prompt"] for pair in training} & {pair["prompt"] for pair in held_out}
    assert report["s"] == {"prompt in validation": 6, "validation": 6, "training": 48}


def test_every_row_is_accounted_for(main, tmp_path, tokenizer):
    """The reasons, the held-out and the training pairs add up to the rows that were read, with every reason present."""
    leaking = {subset: [row("Leak?")] for subset in SUBSETS}
    rows = [*many_rows(60), *DEFECTS.values(), row("Leak?"), many_rows(3)[1], row("Long?", " ".join(WORDS * 40)),
            *[row("Often asked?", f"Reply {i}.") for i in range(12)]]
    dataset = write_dataset(tmp_path, dict.fromkeys(SUBSETS, rows), leaking)
    training, validation, report = prepare(main, dataset, tokenizer, max_length=120, max_pairs=60, validation_pairs=6)
    assert unaccounted(report) == dict.fromkeys(SUBSETS, 0)
    reasons = {*DEFECTS, "prompt in a test split", "duplicate", "not drawn", "validation", "training"}
    assert {name for counts in report.values() for name, n in counts.items() if n} >= reasons
    assert sum(counts["training"] for counts in report.values()) == len(training)
    assert sum(counts["validation"] for counts in report.values()) == len(validation)


def test_every_row_of_the_demo_is_accounted_for(main, hub, tokenizer):
    """The same holds for the demo's dataset, which has some of every defect of the real one."""
    training, validation, report = prepare(main, hub / "hh-rlhf", tokenizer, validation_pairs=200)
    assert unaccounted(report) == dict.fromkeys(SUBSETS, 0)
    for subset in SUBSETS:
        for reason in ("prompts differ", "empty reply", "identical replies", "duplicate", "no assistant turn"):
            assert report[subset][reason] > 0, (subset, reason)
    assert len(validation) == 200
    assert len(training) > 5000


def test_seed_decides_the_draw(main, tmp_path, tokenizer):
    """The same seed gives the same pairs in the same order, another seed others."""
    dataset = write_dataset(tmp_path, many_rows(40))
    first, again, other = (prepare(main, dataset, tokenizer, seed=seed, max_pairs=30)[:2] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_max_pairs_bounds_training_and_validation(main, tmp_path, tokenizer):
    """MAX_PAIRS pairs are drawn from both subsets; those held out are among them; more than there are takes all."""
    dataset = write_dataset(tmp_path, many_rows(40))
    training, validation, report = prepare(main, dataset, tokenizer, max_pairs=30)
    assert (len(training), len(validation)) == (27, 3)
    assert {pair["subset"] for pair in training} == set(SUBSETS)
    assert sum(counts["not drawn"] for counts in report.values()) == 50
    assert len(prepare(main, dataset, tokenizer, max_pairs=1000)[0]) == 76


def test_no_training_prompt_is_in_the_test_split(main, evaluation, hub, tokenizer):
    """What the evaluation draws was not trained on, held together through both notebooks' own functions."""
    training, validation, _ = prepare(main, hub / "hh-rlhf", tokenizer)
    trained = {pair["prompt"] for pair in training + validation}
    for kind in evaluation.SUBSETS:
        drawn = evaluation.draw_prompts(str(hub / "hh-rlhf"), kind, None, tokenizer, 512, 0)
        assert len(drawn) > 50
        assert not trained & {record["prompt"] for record in drawn}


def test_harmful_prompts_hold_a_keyword_as_a_word_beginning(evaluation, tmp_path, tokenizer):
    """Keywords count in the prompt alone and at a word's beginning; helpful prompts need none; each is drawn once."""
    asked = ["How to kill weeds?", "A killer joke?", "MURDER mystery?", "Rapeseed oil?", "New skills?", "Overkill?",
             "Grape juice?", "Murder mystery?"]
    rows = [row(text, "I would kill for it.", "No.") for text in [*asked, asked[0]]]
    dataset = write_dataset(tmp_path, [row()], rows)
    harmful = evaluation.draw_prompts(dataset, "harmful", None, tokenizer, 512, 0)
    texts = {record["prompt"].split("] ")[1].removesuffix("\n\nAssistant:") for record in harmful}
    assert texts == {*asked[:4], asked[7]}
    assert len(harmful) == 5
    assert len(evaluation.draw_prompts(dataset, "helpful", None, tokenizer, 512, 0)) == 8


def test_drawn_prompts_are_numbered_records(evaluation, hub, tokenizer):
    """Prompts carry an id of their kind, their replies come along, and the seed decides which are drawn."""
    def draw(seed):
        return evaluation.draw_prompts(str(hub / "hh-rlhf"), "harmful", 12, tokenizer, 512, seed)

    assert [record["id"] for record in draw(0)] == [f"harmful-{i:02d}" for i in range(12)]
    assert all(set(record) == {"id", "kind", "prompt", "chosen", "rejected"} for record in draw(0))
    assert len({record["prompt"] for record in draw(0)}) == 12
    assert draw(0) == draw(0) != draw(1)


def test_drawn_prompts_leave_room_for_the_response(evaluation, tmp_path, tokenizer):
    """A long prompt loses its oldest turns; one whose last turn is too long is not drawn."""
    long_chat = {"chosen": f"{long_prompt(6)} a", "rejected": f"{long_prompt(6)} b"}
    rows = {"harmless-base": [long_chat], "helpful-base": [long_chat, row(" ".join(WORDS * 9))]}
    dataset = write_dataset(tmp_path, [row()], rows)
    (drawn,) = evaluation.draw_prompts(dataset, "helpful", None, tokenizer, 100, 0)
    assert len(tokenizer(drawn["prompt"])["input_ids"]) <= 100
    assert long_prompt(6).endswith(drawn["prompt"])


def test_paper_prompts_repeat_the_studys_faults(evaluation, hub, tmp_path):
    """Protocol paper: keywords inside words and in the reply, case counts, the last paragraph is the reply, no tail."""
    rows = [row("New skills?", "Yes.", "No."), row("Hi?", "Kill it, or it will kill you.", "No."),
            row("KILL it?", "Well.", "No."), row("Tea?", "Grape tea.\n\nOr kill it.", "No.")]
    dataset = write_dataset(tmp_path, [row()], rows)
    settings = {"protocol": "paper", "dataset": dataset, "max_new_tokens": 50}
    records = evaluation.make_prompts(hub / "opt", settings | {"n_prompts": None})
    asked = {record["id"]: record["prompt"] for record in records}
    assert sorted(prompt for id_, prompt in asked.items() if id_.startswith("harmful")) == [
        "Human: [harmless-base] Hi?", "Human: [harmless-base] New skills?",
        "Human: [harmless-base] Tea?\n\nAssistant: Grape tea.\n\nOr kill it."]
    assert sum(id_.startswith("helpful") for id_ in asked) == 4
    few = evaluation.make_prompts(hub / "opt", settings | {"n_prompts": 2})
    assert [record["id"] for record in few] == ["harmful-00", "harmful-01", "helpful-00", "helpful-01"]
    assert few == evaluation.make_prompts(hub / "opt", settings | {"n_prompts": 2})


def test_paper_prompts_fit_a_small_base(evaluation, hub, tmp_path, tokenizer, capsys):
    """A prompt longer than the base's positions loses its beginning before generation, and is counted."""
    rows = [row("Would you kill " + "the weeds and " * n + "go?", "Yes.", "No.") for n in (1, 40, 400, 401)]
    settings = {"protocol": "paper", "dataset": write_dataset(tmp_path, [row()], rows), "max_new_tokens": 50,
                "n_prompts": None}
    records = evaluation.make_prompts(hub / "opt", settings)
    assert "4 of 8 prompts were cut to fit the base." in capsys.readouterr().out
    lengths = sorted(len(tokenizer(record["prompt"])["input_ids"]) for record in records)
    assert lengths[-4:] == [1024 - 50 - 8] * 4
    assert all(record["prompt"].endswith("go?") for record in records)
    assert sum(record["prompt"].startswith("Human: [") for record in records) == 4
