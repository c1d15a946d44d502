"""From transcripts to pairs and prompts: what is kept, what is dropped for which reason, what is cut; odd data."""

import gzip
import hashlib
import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from conftest import DATA, ROOT, dialogue, row, write_dataset, write_rows
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Split
from transformers import PreTrainedTokenizerFast

from posttrain import hh
from posttrain.models import plain

SPECIAL = ["</s>", "<pad>"]
WORDS = ["soup", "bread", "water", "train", "garden", "music", "winter", "letter", "window", "coffee"]
SUBSETS = ["harmless-base", "helpful-base"]
SETTINGS = {"subsets": "base", "max_pairs": None, "validation_pairs": 4, "max_length": 512, "seed": 0}


def many_rows(n):
    """Return `n` sound rows with prompts that all differ."""
    return [row(f"Question {i} about {WORDS[i % 10]}?", f"Answer {i}.", f"Nothing {i}.") for i in range(n)]


def unaccounted(report):
    """Return per subset how many rows are missing from the report, or in it twice."""
    return {subset: counts["read"] - sum(n for name, n in counts.items() if name not in ("read", "cut"))
            for subset, counts in report.items()}


def prepare(folder, tokenizer, **settings):
    """Return what `load_pairs` makes of a dataset, the report as {subset: Counter}."""
    training, validation, report = hh.load_pairs(folder, tokenizer, **SETTINGS | settings)
    return training, validation, {subset: Counter(counts) for subset, counts in report.to_dict().items()}


def draw(folder, kind, n, tokenizer, room=512, seed=0, protocol="default"):
    """Return the prompts of one kind that are drawn of a dataset."""
    drawn = hh.draw_prompts(folder, protocol, n, tokenizer, room, seed)
    return [record for record in drawn if record["kind"] == kind]


def test_reply_begins_after_the_last_marker():
    """Earlier turns belong to the prompt, and so do markers in the human's words."""
    text = dialogue("Hi", "Hello.", "And now?", "Now this.")
    prompt, reply = hh.split_transcript(text)
    assert prompt == dialogue("Hi", "Hello.", "And now?") + "\n\nAssistant:"
    assert reply == "Now this."


def test_reply_keeps_its_paragraphs():
    """A blank line does not end a reply."""
    assert hh.split_transcript(dialogue("Hi", "One.\n\nTwo.\n\n- three"))[1] == "One.\n\nTwo.\n\n- three"


def test_reply_is_stripped_and_may_be_empty():
    """Space around a reply goes, and nothing but space is an empty reply."""
    assert hh.split_transcript("\n\nHuman: Hi\n\nAssistant:  ok \n")[1] == "ok"
    assert hh.split_transcript("\n\nHuman: Hi\n\nAssistant:")[1] == ""


def test_prompt_and_reply_make_up_the_transcript():
    """Nothing is lost between the two parts, non-ASCII text included."""
    text = dialogue("Wie heißt das?", "Käse 🧀.", "再见?", "再见。")
    prompt, reply = hh.split_transcript(text)
    assert f"{prompt} {reply}" == text


def test_transcript_without_assistant_is_refused():
    """Without an assistant turn there is no reply."""
    with pytest.raises(ValueError, match="no assistant turn"):
        hh.split_transcript("\n\nHuman: Hi")


def test_sound_pair():
    """A sound row gives the shared prompt and the two replies."""
    assert hh.split_pair(row("Hi?", "A.\n\nB.", "C."), SPECIAL) == {
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
def test_unfit_pair_is_dropped_for_its_reason(reason):
    """Every defect has its own reason."""
    with pytest.raises(ValueError, match=f"^{reason}$"):
        hh.split_pair(DEFECTS[reason], SPECIAL)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_defect_is_found_on_either_side(side):
    """An empty reply and a human turn in a reply are found in the chosen and in the rejected text."""
    for reply, reason in (("", "empty reply"), ("A\n\nHuman: B", "reply opens a human turn")):
        with pytest.raises(ValueError, match=reason):
            hh.split_pair(row() | {side: dialogue("How are you?", reply)}, SPECIAL)


def test_pairs_and_reasons_are_counted():
    """Usable pairs stay in their order, the others are counted under their reasons."""
    rows = [row("One?"), *DEFECTS.values(), row("Two?"), DEFECTS["empty reply"]]
    pairs, dropped = hh.split_pairs(rows, SPECIAL)
    assert [pair["prompt"] for pair in pairs] == [f"\n\nHuman: {n}?\n\nAssistant:" for n in ("One", "Two")]
    assert dropped == Counter(dict.fromkeys(DEFECTS, 1) | {"empty reply": 2})


def long_prompt(turns):
    """Return a prompt of many turns."""
    words = [" ".join(WORDS[i % 10 :] + WORDS[: i % 10]) for i in range(2 * turns - 1)]
    return dialogue(*words) + "\n\nAssistant:"


@pytest.mark.parametrize("room", [60, 100, 200, 391])
def test_prompt_is_cut_at_a_turn_and_fits(tokenizer, room):
    """A cut prompt is the longest end of the prompt that begins with a human turn and fits, counted with its BOS."""
    prompt = long_prompt(9)
    (cut,) = hh.cut_prompts([prompt], [room], tokenizer)
    ends = [prompt[i:] for i in range(len(prompt)) if prompt.startswith("\n\nHuman:", i)]
    fitting = [end for end in ends if len(tokenizer(end)["input_ids"]) <= room]
    assert cut == max(fitting, key=len)
    assert len(cut) < len(prompt)


def test_prompt_that_fits_is_left_alone(tokenizer):
    """A prompt of exactly the room's length is not cut; one token less room and its first turn goes."""
    prompt = long_prompt(3)
    length = len(tokenizer(prompt)["input_ids"])
    whole, cut = hh.cut_prompts([prompt, prompt], [length, length - 1], tokenizer)
    assert whole == prompt
    assert cut != prompt


def test_last_turn_is_never_cut(tokenizer):
    """Where the last turn alone is too long, there is no prompt left."""
    assert hh.cut_prompts([long_prompt(3)], [10], tokenizer) == [None]


def test_prompts_of_the_test_splits_come_from_defective_rows_too(tmp_path):
    """A test row that cannot be used still keeps its prompt out of the training."""
    dataset = write_dataset(tmp_path, [row()], {"harmless-base": [row("A?", "x", ""), DEFECTS["prompts differ"]],
                                                "helpful-base": [row("B?"), DEFECTS["no assistant turn"]]})
    prompts = hh.read_test_prompts(dataset, SUBSETS)
    assert prompts == sorted(f"\n\nHuman: {text}\n\nAssistant:" for text in ("A?", "Hi", "Hi!", "B?"))


def test_leak_and_duplicates_are_dropped(tmp_path):
    """A training pair whose prompt is in any test split goes, and so does the second of two equal pairs."""
    train = {"harmless-base": [row("Seen in the other test split?"), row("Twice?"), row("Twice?"),
                               row("Twice?", "Another reply.")],
             "helpful-base": [row("Seen?", "Other", "replies"), row("Twice?")]}
    test = {"harmless-base": [row("Seen?", "x", "")], "helpful-base": [row("Seen in the other test split?")]}
    dataset = write_dataset(tmp_path, train, test)
    pairs, report = hh.gather_pairs(dataset, SUBSETS, SPECIAL, hh.read_test_prompts(dataset, SUBSETS))
    assert [(pair["subset"], pair["chosen"]) for pair in pairs] == [("harmless-base", "Well."),
                                                                    ("harmless-base", "Another reply.")]
    assert report == {"harmless-base": {"read": 4, "prompt in a test split": 1, "duplicate": 1},
                      "helpful-base": {"read": 2, "prompt in a test split": 1, "duplicate": 1}}


def true_length(tokenizer, pair):
    """Return the tokens of a pair's longer side as the trainers see it: BOS, prompt, space, reply, EOS."""
    return max(len(tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}")["input_ids"])
               for side in ("chosen", "rejected"))


def test_fitted_pairs_fit_and_keep_their_replies(tokenizer):
    """Prompt and longer reply take at most max_length tokens; the prompt gives way, the replies stay whole."""
    rng = random.Random(0)
    replies = [" ".join(rng.choices(WORDS, k=n)) for n in (1, 5, 20, 40, 70, 90)]
    pairs = [{"prompt": long_prompt(turns), "chosen": a, "rejected": b, "subset": "s"}
             for turns in (1, 2, 5, 9) for a in replies for b in replies]
    report = {"s": Counter()}
    fitting = hh.fit_pairs(pairs, tokenizer, 200, set(), report)
    kept = {(pair["chosen"], pair["rejected"]) for pair in fitting}
    assert kept < {(pair["chosen"], pair["rejected"]) for pair in pairs}
    assert max(true_length(tokenizer, pair) for pair in fitting) <= 200
    assert all(pair["length"] >= true_length(tokenizer, pair) for pair in fitting)
    assert all(pair["length"] == true_length(tokenizer, pair) for pair in fitting if pair["prompt"] == long_prompt(1))
    assert len(fitting) + report["s"]["too long"] == len(pairs)
    originals = {long_prompt(turns) for turns in (1, 2, 5, 9)}
    assert report["s"]["cut"] == sum(pair["prompt"] not in originals for pair in fitting) > 0
    assert report["s"]["too long"] > 0


def test_pair_of_exactly_max_length_is_not_cut(tokenizer):
    """The limit itself is allowed, one token more is not."""
    pair = {"prompt": long_prompt(2), "chosen": "soup", "rejected": "bread and water", "subset": "s"}
    length = true_length(tokenizer, pair)
    for max_length, cut in ((length, 0), (length - 1, 1)):
        report = {"s": Counter()}
        hh.fit_pairs([pair], tokenizer, max_length, set(), report)
        assert report["s"]["cut"] == cut


def test_reply_longer_than_max_length_is_dropped(tokenizer):
    """No reply is cut: the pair goes, under its reason, be the prompt as short as it may."""
    report = {"s": Counter()}
    pair = {"prompt": long_prompt(1), "chosen": " ".join(WORDS * 30), "rejected": "soup", "subset": "s"}
    assert hh.fit_pairs([pair], tokenizer, 100, set(), report) == []
    assert report["s"] == {"too long": 1}


def test_prompt_cut_to_one_of_a_test_split_is_dropped(tokenizer, tmp_path):
    """What a long dialogue asks last may be a test prompt by itself: the pair goes, under that reason."""
    last = "\n\nHuman: What is the secret?\n\nAssistant:"
    pair = {"prompt": long_prompt(9) + " Well." + last, "chosen": "soup", "rejected": "bread", "subset": "s"}
    room = len(tokenizer(last)["input_ids"]) + 20
    for unseen, fate in (({last}, "prompt in a test split"), ({last + "x"}, "cut")):
        report = {"s": Counter()}
        fitting = hh.fit_pairs([pair], tokenizer, room, unseen, report)
        assert report["s"] == {fate: 1}
        assert [pair["prompt"] for pair in fitting] == [last] * (fate == "cut")


def test_validation_and_training_share_no_prompt():
    """Pairs with a held-out prompt are dropped, and at most a tenth of the pairs is held out."""
    pairs = [{"prompt": str(i % 30), "subset": "s"} for i in range(60)]
    report = {"s": Counter()}
    training, held_out = hh.hold_out(pairs, 50, report)
    assert len(held_out) == 6
    assert not {pair["prompt"] for pair in training} & {pair["prompt"] for pair in held_out}
    assert report["s"] == {"prompt in validation": 6, "validation": 6, "training": 48}


def test_every_row_is_accounted_for(tmp_path, tokenizer):
    """The reasons, the held-out and the training pairs add up to the rows that were read, with every reason present."""
    leaking = {subset: [row("Leak?")] for subset in SUBSETS}
    rows = [*many_rows(60), *DEFECTS.values(), row("Leak?"), many_rows(3)[1], row("Long?", " ".join(WORDS * 40)),
            *[row("Often asked?", f"Reply {i}.") for i in range(12)]]
    dataset = write_dataset(tmp_path, dict.fromkeys(SUBSETS, rows), leaking)
    training, validation, report = prepare(dataset, tokenizer, max_length=120, max_pairs=60, validation_pairs=6)
    assert unaccounted(report) == dict.fromkeys(SUBSETS, 0)
    reasons = {*DEFECTS, "prompt in a test split", "duplicate", "not drawn", "validation", "training"}
    assert {name for counts in report.values() for name, n in counts.items() if n} >= reasons
    assert sum(counts["training"] for counts in report.values()) == len(training)
    assert sum(counts["validation"] for counts in report.values()) == len(validation)


def test_every_row_of_the_demo_is_accounted_for(hub, tokenizer):
    """The same holds for the demo's dataset, which has some of every defect of the real one."""
    training, validation, report = prepare(hub / "hh-rlhf", tokenizer, validation_pairs=200)
    assert unaccounted(report) == dict.fromkeys(SUBSETS, 0)
    for subset in SUBSETS:
        for reason in ("prompts differ", "empty reply", "identical replies", "duplicate", "no assistant turn"):
            assert report[subset][reason] > 0, (subset, reason)
    assert len(validation) == 200
    assert len(training) > 5000


def test_seed_decides_the_draw(tmp_path, tokenizer):
    """The same seed gives the same pairs in the same order, another seed others."""
    dataset = write_dataset(tmp_path, many_rows(40))
    first, again, other = ([*map(hh.texts, prepare(dataset, tokenizer, seed=seed, max_pairs=30)[:2])]
                           for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_max_pairs_bounds_training_and_validation(tmp_path, tokenizer):
    """MAX_PAIRS pairs are drawn from both subsets; those held out are among them; more than there are takes all."""
    dataset = write_dataset(tmp_path, many_rows(40))
    training, validation, report = prepare(dataset, tokenizer, max_pairs=30)
    assert (len(training), len(validation)) == (27, 3)
    assert {pair["subset"] for pair in training} == set(SUBSETS)
    assert sum(counts["not drawn"] for counts in report.values()) == 50
    assert len(prepare(dataset, tokenizer, max_pairs=1000)[0]) == 76


def test_no_training_prompt_is_in_the_test_split(hub, tokenizer):
    """What the evaluation draws was not trained on."""
    training, validation, _ = prepare(hub / "hh-rlhf", tokenizer)
    trained = {pair["prompt"] for pair in training + validation}
    for kind in ("harmful", "helpful"):
        drawn = draw(hub / "hh-rlhf", kind, None, tokenizer)
        assert len(drawn) > 50
        assert not trained & {record["prompt"] for record in drawn}


def test_harmful_prompts_hold_a_keyword_as_a_word_beginning(tmp_path, tokenizer):
    """Keywords count in the prompt alone and at a word's beginning; helpful prompts need none; each is drawn once."""
    asked = ["How to kill weeds?", "A killer joke?", "MURDER mystery?", "Rapeseed oil?", "New skills?", "Overkill?",
             "Grape juice?", "Murder mystery?"]
    rows = [row(text, "I would kill for it.", "No.") for text in [*asked, asked[0]]]
    dataset = write_dataset(tmp_path, [row()], rows)
    harmful = draw(dataset, "harmful", None, tokenizer)
    texts = {record["prompt"].split("] ")[1].removesuffix("\n\nAssistant:") for record in harmful}
    assert texts == {*asked[:4], asked[7]}
    assert len(harmful) == 5
    assert len(draw(dataset, "helpful", None, tokenizer)) == 8


def test_drawn_prompts_are_numbered_records(hub, tokenizer):
    """Prompts carry an id of their kind, their replies come along, and the seed decides which are drawn."""
    first, again, other = (draw(hub / "hh-rlhf", "harmful", 12, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert [record["id"] for record in first] == [f"harmful-{i:02d}" for i in range(12)]
    assert all(list(record) == ["id", "kind", "prompt", "chosen", "rejected"] for record in first)
    assert len({record["prompt"] for record in first}) == 12
    assert first == again != other


def test_drawn_prompts_leave_room_for_the_response(tmp_path, tokenizer):
    """A long prompt loses its oldest turns; one whose last turn is too long is not drawn."""
    long_chat = {"chosen": f"{long_prompt(6)} a", "rejected": f"{long_prompt(6)} b"}
    rows = {"harmless-base": [long_chat], "helpful-base": [long_chat, row(" ".join(WORDS * 9))]}
    dataset = write_dataset(tmp_path, [row()], rows)
    (drawn,) = draw(dataset, "helpful", None, tokenizer, room=100)
    assert len(tokenizer(drawn["prompt"])["input_ids"]) <= 100
    assert long_prompt(6).endswith(drawn["prompt"])


def test_no_room_for_a_prompt(hub, tokenizer):
    """Where the response takes all of the base's positions, the message names the setting."""
    with pytest.raises(ValueError, match="MAX_NEW_TOKENS leaves 7 tokens for a prompt"):
        draw(hub / "hh-rlhf", "harmful", 1, tokenizer, room=7)


def test_fewer_prompts_than_asked_for(tmp_path, tokenizer):
    """The message names the setting, the split and how many there are, under the study's protocol too."""
    dataset = write_dataset(tmp_path, [row()], [row("Who could kill a weed?"), row("Who could bake bread?")])
    for protocol in ("default", "paper"):
        with pytest.raises(ValueError, match="N_PROMPTS = 2, but .*harmless-base .* has only 1 usable harmful"):
            draw(dataset, "harmful", 2, tokenizer, protocol=protocol)
    assert len(draw(dataset, "helpful", None, tokenizer)) == 2


# ---- the study's prompts

def test_paper_prompts_repeat_the_studys_faults(tmp_path, tokenizer):
    """Keywords inside words and in the reply, case counts, the last paragraph is the reply, no `Assistant:` tail."""
    rows = [row("New skills?", "Yes.", "No."), row("Hi?", "Kill it, or it will kill you.", "No."),
            row("KILL it?", "Well.", "No."), row("Tea?", "Grape tea.\n\nOr kill it.", "No.")]
    dataset = write_dataset(tmp_path, [row()], rows)
    records = hh.draw_prompts(dataset, "paper", None, tokenizer, 512, 0)
    asked = {record["id"]: record["prompt"] for record in records}
    assert sorted(prompt for id_, prompt in asked.items() if id_.startswith("harmful")) == [
        "Human: [harmless-base] Hi?", "Human: [harmless-base] New skills?",
        "Human: [harmless-base] Tea?\n\nAssistant: Grape tea.\n\nOr kill it."]
    assert sum(id_.startswith("helpful") for id_ in asked) == 4
    assert {record["chosen"] for record in records} == {"Yes.", "Kill it, or it will kill you.", "Well.",
                                                        "Grape tea.\n\nOr kill it."}
    few, again = (hh.draw_prompts(dataset, "paper", 2, tokenizer, 512, seed) for seed in (0, 1))
    assert [record["id"] for record in few] == ["harmful-00", "harmful-01", "helpful-00", "helpful-01"]
    assert few == again  # it has a seed of its own


def test_paper_prompts_fit_a_small_base(tmp_path, tokenizer, capsys):
    """A prompt longer than the base's positions loses its beginning before generation, and is counted."""
    rows = [row("Would you kill " + "the weeds and " * n + "go?", "Yes.", "No.") for n in (1, 40, 400, 401)]
    records = hh.draw_prompts(write_dataset(tmp_path, [row()], rows), "paper", None, tokenizer, 966, 0)
    assert capsys.readouterr().out.count("2 of 4 ") == 2
    lengths = sorted(len(tokenizer(record["prompt"])["input_ids"]) for record in records)
    assert lengths[-4:] == [966] * 4
    assert all(record["prompt"].endswith("go?") for record in records)
    assert sum(record["prompt"].startswith("Human: [") for record in records) == 4


def test_paper_prompts_are_the_papers_own(tokenizer):
    """On the official test split the 50 harmful prompts are the published ones, in their order.

    The published file, data/prompts/harmful_prompts.json at commit 868ecd0, is as long as ours to the character.
    """
    if not (DATA / "hh-rlhf").exists():
        pytest.skip("needs ../shared/data/hh-rlhf, the official harmless-base test split")
    found = hh._paper_prompts(DATA / "hh-rlhf", "harmful", tokenizer, 10**6)
    prompts = [pair["prompt"] for pair in random.Random(100).sample(found, 50)]
    published = json.loads((DATA / "published" / "prompts.json").read_text(encoding="utf-8"))
    assert prompts == [record["prompt"] for record in published if record["kind"] == "harmful"]
    text = json.dumps(prompts, indent=2)
    assert len(text) == 42751
    expected = "a55d5c38bbf0a09c52268bee33cb21baa3bd12172f6497a0dba94713a527e9da"
    assert hashlib.sha256(text.encode()).hexdigest() == expected


# ---- datasets that cannot be used

def test_missing_subset(tmp_path):
    """A dataset without one of the subsets."""
    write_rows(tmp_path, "harmless-base", "test", [row()])
    with pytest.raises(ValueError, match=r"DATASET: .* has no helpful-base/test\.jsonl\.gz, as Anthropic"):
        hh.read_split(tmp_path, "helpful-base", "test")


def test_dataset_without_pairs(tmp_path):
    """A dataset of single texts: the message says which columns it has."""
    write_rows(tmp_path, "harmless-base", "train", [{"transcript": dialogue("Hi", "Hello."), "rating": 3}])
    with pytest.raises(ValueError, match=r"harmless-base/train has the columns \['rating', 'transcript'\].*chosen"):
        hh.read_split(tmp_path, "harmless-base", "train")


def test_no_usable_pair(tmp_path, tokenizer):
    """Where cleaning leaves nothing to train on, the message says what became of the rows."""
    dataset = write_dataset(tmp_path, [row(rejected=""), row(chosen="Go away.")])
    with pytest.raises(ValueError, match="DATASET: .* no usable pair.*'empty reply': 1.*'identical replies': 1"):
        prepare(dataset, tokenizer)


def test_one_usable_pair_is_not_enough(tmp_path, tokenizer):
    """One pair is needed for validation, one for training."""
    one = {"harmless-base": [row()], "helpful-base": [row(rejected="")]}
    with pytest.raises(ValueError, match="no usable pair for training"):
        prepare(write_dataset(tmp_path, one), tokenizer)


def test_script_beside_a_dataset_is_not_run(hub, tmp_path):
    """A script in a dataset's folder is data like any other that is not asked for."""
    write_rows(tmp_path, "harmless-base", "test", [row()])
    for folder in (tmp_path, tmp_path / "harmless-base"):
        (folder / f"{folder.name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert len(hh.read_split(tmp_path, "harmless-base", "test")) == 1
    assert not (tmp_path / "ran").exists()


def test_knows_no_torch():
    """Preparing data needs no torch: the module can be imported where there is none."""
    code = "import sys; sys.modules['torch'] = None; import posttrain.hh"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_texts_are_tokenised_in_parts(tokenizer):
    """All texts at once would hold gigabytes of tokens; in parts the lengths are the same."""
    calls = []

    class Watched:
        eos_token = tokenizer.eos_token

        def __call__(self, texts, **options):
            calls.append(len(texts))
            return tokenizer(texts, **options)

    many = [{"prompt": long_prompt(i % 3 + 1), "chosen": WORDS[i % 7], "rejected": "No.", "subset": "s"}
            for i in range(2400)]
    fitting = hh.fit_pairs(many, Watched(), 512, set(), {"s": {}})
    assert max(calls) <= 1000
    whole = hh.fit_pairs(many, tokenizer, 512, set(), {"s": {}})
    assert hh.texts(fitting) == hh.texts(whole)
    assert len(fitting) == 2400


# ---- tokens

def test_ids_are_those_of_the_whole_text(tokenizer):
    """Prompt and reply, told apart, are the tokens of the two together; SFT's labels are those of the reply alone."""
    pairs = [{"prompt": long_prompt(i), "chosen": f"{WORDS[i]}: 1\n\n2 ...", "rejected": "No.", "subset": "s"}
             for i in range(1, 6)]
    fitting = hh.fit_pairs(pairs, tokenizer, 512, set(), {"s": Counter()})
    for pair, learned, whole in zip(fitting, hh.sft_rows(fitting, True), hh.sft_rows(fitting, False), strict=True):
        for side in ("chosen", "rejected"):
            text = f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}"
            assert [*pair["prompt_ids"], *pair[f"{side}_ids"]] == tokenizer(text)["input_ids"]
        assert whole["input_ids"].tolist() == whole["labels"].tolist() == learned["input_ids"].tolist()
        assert learned["labels"].tolist() == [-100] * len(pair["prompt_ids"]) + list(pair["chosen_ids"])
    assert hh.texts(fitting) == [pair | {"length": fit["length"]} for pair, fit in zip(pairs, fitting)]


def words(pre_tokenizer, *known):
    """Return a tokenizer of these words, where `pre_tokenizer` cuts them."""
    known = ("<unk>", "</s>", *known)
    backend = Backend(WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


SHORT = {"prompt": f"\n\nHuman: Yes{hh.PROMPT_END}", "chosen": "Yes", "rejected": "No", "subset": "s"}


def test_tokenizer_that_marks_the_beginning_of_a_text():
    """A reply is not the beginning of a text: where such a mark is put, it stays with the prompt."""
    tokenizer = words(Metaspace(prepend_scheme="first"), "▁\n\nHuman:", f"▁Yes{hh.PROMPT_END}", f"▁{hh.PROMPT_END}",
                      "▁Yes", "▁No")
    (fit,) = hh.fit_pairs([SHORT], tokenizer, 512, set(), {"s": Counter()})
    assert tokenizer.convert_ids_to_tokens(list(fit["chosen_ids"])) == ["▁Yes", "</s>"]
    assert [*fit["prompt_ids"], *fit["chosen_ids"]] == tokenizer(f"{SHORT['prompt']} Yes</s>")["input_ids"]


def test_tokenizer_with_tokens_over_the_border_is_refused():
    """Where the last token of a prompt holds the first word of the reply, a model would be asked something else."""
    tokenizer = words(Split("never", "removed"), *(f"{hh.PROMPT_END}{reply}" for reply in ("", " Yes", " No")))
    with pytest.raises(ValueError, match="BASE_MODEL: .*over the border"):
        hh.fit_pairs([SHORT], tokenizer, 512, set(), {"s": Counter()})


# ---- malformed lines

PROMPT = "\n\nHuman: A question?"
REASONS = {"not UTF-8", "not JSON", "not a record", "not text", "control character", "special token in text",
           "no assistant turn", "prompts differ", "no human turn first", "reply opens a human turn", "empty reply",
           "identical replies", "file cut short or damaged"}


def both(prompt, chosen="Yes, of course.", rejected="No, never."):
    """Return a row of two transcripts that begin with one prompt text."""
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def line(data):
    """Return a row as a line of a JSON lines file."""
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")


ASSISTANT = "\n\nAssistant:"
FULL = PROMPT + ASSISTANT + " "
WORD = {"null": None, "number": 5, "fraction": 1.5, "truth": True, "list": ["a"], "record": {"a": 1}, "nothing": [],
        "date": "2020-01-01"}
CASES = {  # name: (a line of the file, the reason why it is dropped, None where it is used)
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
    "Latin-1": ("{\"chosen\": \"Käse\", \"rejected\": \"b\"}".encode("latin-1"), "not UTF-8"),
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
    "deep field": (b'{"chosen": ' + b"[" * 50_000 + b"]" * 50_000 + b', "rejected": "b"}', "not JSON"),
    "huge number": (b'{"chosen": 1' + b"0" * 10_000 + b', "rejected": "b"}', "not JSON"),
    "huge exponent": (b'{"chosen": 1e999999, "rejected": "b"}', "not text"),
    "many fields": (json.dumps(both(FULL) | {f"k{i}": i for i in range(2000)}).encode(), None),
    # records without two texts
    **{f"chosen is {name}": (line(both(FULL) | {"chosen": value}), "not text") for name, value in WORD.items()
       if name != "date"},
    **{f"rejected is {name}": (line(both(FULL) | {"rejected": value}), "not text") for name, value in WORD.items()
       if name != "date"},
    "chosen is a date": (line(both(FULL) | {"chosen": WORD["date"]}), "no assistant turn"),
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
    "only a human marker": (line({"chosen": "\n\nHuman:", "rejected": "\n\nHuman:"}), "no assistant turn"),
    "only an assistant marker": (line(both(ASSISTANT)), "no human turn first"),
    "markers alone": (line({"chosen": "\n\nHuman:\n\nAssistant:", "rejected": "\n\nHuman:\n\nAssistant:"}),
                      "empty reply"),
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
    "prompts differ": (line({"chosen": FULL + "a", "rejected": FULL.replace("A ", "The ") + "b"}), "prompts differ"),
    "prompts differ in a space": (line({"chosen": FULL + "a", "rejected": FULL.replace("?", "? ") + "b"}),
                                  "prompts differ"),
    "human turn in the chosen reply": (line(both(FULL, "Yes.\n\nHuman: And then?")), "reply opens a human turn"),
    "assistant turn in one reply": (line(both(FULL, f"Yes.{ASSISTANT} And more.")), "prompts differ"),
    "human word in a reply": (line(both(FULL, "Human: that is what I am.")), None),
    "empty human turn": (line(both(f"\n\nHuman:{ASSISTANT} ")), None),
    "paragraphs": (line(both(FULL, "One.\n\nTwo.\n\n\n\nThree.")), None),
    "thousands of turns": (line(both("".join(f"\n\nHuman: {i}{ASSISTANT} Yes." for i in range(3000)) + FULL)), None),
    "a prompt of a hundred thousand words": (line(both(f"\n\nHuman: {'word ' * 100_000}{ASSISTANT} ")), "too long"),
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
    "beginning in the prompt": (line(both(FULL.replace("A ", "</s>A "))), "special token in text"),
    "unknown token of another model": (line(both(FULL, "Yes [SEP] no <|endoftext|> <unk> [CLS].")), None),
}
GOOD = [row(f"Neighbour {i}, how are you?", f"Well, {i}.", f"Go away, {i}.") for i in range(6)]


def write_lines(folder, lines, split="train"):
    """Write a dataset whose harmless-base has these lines in one split, good rows elsewhere; return its name."""
    for subset in ("harmless-base", "helpful-base"):
        for name in ("train", "test"):
            write_rows(folder, subset, name, [row(f"{subset} {name}", "A.", "B.")])
    with gzip.open(folder / "harmless-base" / f"{split}.jsonl.gz", "wb") as file:
        file.write(b"".join(one + b"\n" for one in lines))
    return folder


def kept(dataset, tokenizer):
    """Return the pairs that the data path keeps of harmless-base, as texts, and the report on them."""
    training, validation, report = prepare(dataset, tokenizer, validation_pairs=1)
    pairs = [pair for pair in training + validation if pair["subset"] == "harmless-base"]
    return {(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs}, report["harmless-base"]


@pytest.fixture(scope="module")
def neighbours(tokenizer, tmp_path_factory):
    """What the data path keeps of six good rows alone."""
    pairs, report = kept(write_lines(tmp_path_factory.mktemp("good"), map(line, GOOD)), tokenizer)
    assert len(pairs) == 6
    assert report["read"] == 6
    return pairs


def test_there_are_enough_cases():
    """At least 60 malformed or odd lines."""
    assert len(CASES) >= 60
    assert {reason for _, reason in CASES.values()} <= REASONS | {"too long", None}


@pytest.mark.parametrize("name", CASES)
def test_malformed_line(tokenizer, neighbours, tmp_path, name):
    """A line before and after good ones: used, or counted under its reason, and the others are as without it."""
    bad, reason = CASES[name]
    for place, lines in (("first", [bad, *map(line, GOOD)]), ("last", [*map(line, GOOD), bad])):
        pairs, report = kept(write_lines(tmp_path / place, lines), tokenizer)
        assert neighbours <= pairs
        assert report["read"] == 7
        assert sum(report[one] for one in [*REASONS, "too long"]) == bool(reason)
        assert report[reason] == 1 or reason is None
        assert len(pairs) == 6 + (reason is None)
        for pair in pairs:
            ids = tokenizer("".join(pair), add_special_tokens=False)["input_ids"]
            assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_gzip_cut_short(tokenizer, tmp_path, keep):
    """The rows before the cut are used, and the cut is counted and named."""
    rows = [row(f"Question {i}: {'why ' * (i % 7)}", f"Well, {i}.", f"Go, {i * i}.") for i in range(3000)]
    dataset = write_lines(tmp_path, map(line, rows))
    path = tmp_path / "harmless-base" / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    pairs, report = kept(dataset, tokenizer)
    assert report["file cut short or damaged"] == 1
    assert 0 < len(pairs) == report["read"] - 1 < 3000
    assert all(f"Well, {i}." in {pair[1] for pair in pairs} for i in range(len(pairs)))


def test_gzip_damaged_in_the_middle(tokenizer, tmp_path):
    """A changed byte is found by the checksum or by the code, and counted; no row is wrong before it."""
    dataset = write_lines(tmp_path, map(line, GOOD * 50))
    path = tmp_path / "harmless-base" / "train.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # of the checksum
    path.write_bytes(bytes(content))
    assert kept(dataset, tokenizer)[1]["file cut short or damaged"] == 1
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="harmless-base/train has the columns"):
        kept(dataset, tokenizer)


def test_prompt_in_a_defective_test_row_is_kept_out_of_training(tokenizer, tmp_path):
    """Test rows that cannot be used still guard their prompts, and test lines that are no records do no harm."""
    lines = [b"null", b"not json", line({"chosen": dialogue("Neighbour 2, how are you?", "x"), "rejected": 5})]
    dataset = write_lines(tmp_path, lines, "test")
    with gzip.open(tmp_path / "harmless-base" / "train.jsonl.gz", "wb") as file:
        file.write(b"".join(line(one) + b"\n" for one in GOOD))
    pairs, report = kept(dataset, tokenizer)
    assert report["prompt in a test split"] == 1
    assert len(pairs) == 5


# ---- properties

quick = examples(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "\n", "\n\n", " ", "</s>", "<pad>", "[SEP]", "Human:", "\x00",
                       "\u202e", "é", "🧀", "a", "word ", "?"])
TEXT = st.one_of(st.text(max_size=60), st.lists(ODD, max_size=14).map("".join),
                 st.lists(st.one_of(ODD, st.text(max_size=5)), max_size=14).map("".join))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)
ROW = st.one_of(st.fixed_dictionaries({"chosen": TEXT, "rejected": TEXT}),
                st.builds(lambda prompt, chosen, rejected: {"chosen": f"\n\nHuman:{prompt}\n\nAssistant:{chosen}",
                                                            "rejected": f"\n\nHuman:{prompt}\n\nAssistant:{rejected}"},
                          TEXT, TEXT, TEXT),
                st.dictionaries(st.sampled_from(["chosen", "rejected", "other"]), JSON),
               st.sampled_from(sorted(REASONS)))  # a line that is no record


@quick
@given(data=st.one_of(st.binary(max_size=80), JSON.map(lambda data: json.dumps(data).encode()), TEXT.map(
    lambda text: text.encode("utf-8", "surrogatepass"))))
def test_reading_a_line_never_fails(data):
    """Any bytes are a record or a named reason."""
    found = hh._read_row(data)
    assert isinstance(found, dict) or found in REASONS


@quick
@given(one=ROW)
def test_parsing_keeps_or_names(one):
    """Any row gives a pair that holds what its texts hold, and no control token or character, or a named reason."""
    try:
        pair = hh.split_pair(one, ["</s>", "<pad>"])
    except ValueError as reason:
        assert str(reason) in REASONS
        return
    assert set(pair) == {"prompt", "chosen", "rejected"}
    assert pair["prompt"].startswith("\n\nHuman:")
    assert pair["prompt"].endswith("\n\nAssistant:")
    assert pair["chosen"] != pair["rejected"]
    for side in ("chosen", "rejected"):
        assert pair[side] == pair[side].strip() != ""
        assert pair["prompt"] + one[side][len(pair["prompt"]) :] == one[side]
        assert one[side][len(pair["prompt"]) :].strip() == pair[side]
        assert "\n\nHuman:" not in pair[side]
        assert "\n\nAssistant:" not in one[side][len(pair["prompt"]) :]
        assert not set("\x00\u202e") & set(one[side])
        assert "</s>" not in one[side]


@quick
@given(rows=st.lists(ROW, max_size=8), bad=ROW, place=st.integers(0, 8))
def test_a_row_does_not_change_its_neighbours(rows, bad, place):
    """With a row more, the pairs of all others are the same, and exactly one row more is kept or counted."""
    pairs, dropped = hh.split_pairs(rows, ["</s>", "<pad>"])
    assert len(pairs) + dropped.total() == len(rows)
    more, dropped_more = hh.split_pairs(rows[:place] + [bad] + rows[place:], ["</s>", "<pad>"])
    extra, reason = hh.split_pairs([bad], ["</s>", "<pad>"])
    before = len(hh.split_pairs(rows[:place], ["</s>", "<pad>"])[0])
    assert more == pairs[:before] + extra + pairs[before:]
    assert dropped_more == dropped + reason


@quick
@given(turns=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30), min_size=1,
                      max_size=9), room=st.integers(1, 120))
def test_cutting_keeps_the_newest_turns(tokenizer, turns, room):
    """What is left of a prompt is its end, from a human turn on, fits, and with a turn more would not have fitted."""
    starts = [f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)]
    prompt = "".join(starts) + "\n\nAssistant:"
    (cut,) = hh.cut_prompts([prompt], [room], tokenizer)
    ends = [prompt[len("".join(starts[:i])) :] for i in range(0, len(starts), 2)]
    fitting = [end for end in ends if len(tokenizer(end)["input_ids"]) <= room]
    assert cut == (fitting[0] if fitting else None)


@quick
@given(pairs=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6), limit=st.integers(8, 200))
def test_fitting_cuts_no_reply(tokenizer, pairs, limit):
    """Pairs that stay have their replies whole and fit the limit with the end of text; all others are counted."""
    rows = [{"prompt": f"\n\nHuman:{plain(prompt, tokenizer)}\n\nAssistant:", "subset": "s",
             "chosen": plain(chosen, tokenizer), "rejected": plain(rejected, tokenizer)}
            for prompt, chosen, rejected in pairs]
    report = {"s": Counter()}
    fitting = hh.fit_pairs(rows, tokenizer, limit, set(), report)
    assert len(fitting) + report["s"]["too long"] == len(rows)
    texts = [(one["chosen"], one["rejected"]) for one in rows]
    for pair in fitting:
        assert (pair["chosen"], pair["rejected"]) in texts
        longest = max(len(tokenizer(f" {pair[side]}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"])
                      for side in ("chosen", "rejected"))
        assert len(tokenizer(pair["prompt"])["input_ids"]) + longest <= limit
        assert pair["length"] <= limit
