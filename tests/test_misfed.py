"""Malformed data: used as it is meant, or counted under a reason; no crash, no neighbour touched, no control token.

Cases by hand and by kind of damage, and properties of parsing, cutting and cleaning put to the test with hypothesis.
"""

import gzip
import json
import math
from collections import Counter

import pytest
from conftest import dialogue, execute, load, row, write_rows
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_runs import check_run
from transformers import AutoTokenizer

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
    "a prompt of a million words": (line(both(f"\n\nHuman: {'word ' * 1_000_000}{ASSISTANT} ")), "too long"),
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
SETTINGS = {"subsets": "base", "max_pairs": None, "validation_pairs": 1, "max_length": 512, "seed": 0}


def write_lines(folder, lines, split="train"):
    """Write a dataset whose harmless-base has these lines in one split, good rows elsewhere; return its name."""
    for subset in ("harmless-base", "helpful-base"):
        for name in ("train", "test"):
            write_rows(folder, subset, name, [row(f"{subset} {name}", "A.", "B.")])
    with gzip.open(folder / "harmless-base" / f"{split}.jsonl.gz", "wb") as file:
        file.write(b"".join(one + b"\n" for one in lines))
    return str(folder)


def kept(main, dataset, tokenizer):
    """Return the pairs that the data path keeps of harmless-base, as texts, and the report on them."""
    training, validation, report = main.prepare_data(SETTINGS | {"dataset": dataset}, tokenizer)
    pairs = [pair for pair in training + validation if pair["subset"] == "harmless-base"]
    return {(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs}, report["harmless-base"]


@pytest.fixture(scope="module")
def neighbours(main, tokenizer, tmp_path_factory):
    """What the data path keeps of six good rows alone."""
    pairs, report = kept(main, write_lines(tmp_path_factory.mktemp("good"), map(line, GOOD)), tokenizer)
    assert len(pairs) == 6
    assert report["read"] == 6
    return pairs


def test_there_are_enough_cases():
    """At least 60 malformed or odd lines."""
    assert len(CASES) >= 60
    assert {reason for _, reason in CASES.values()} <= REASONS | {"too long", None}


@pytest.mark.parametrize("name", CASES)
def test_malformed_line(main, tokenizer, neighbours, tmp_path, name):
    """A line before and after good ones: used, or counted under its reason, and the others are as without it."""
    bad, reason = CASES[name]
    for place, lines in (("first", [bad, *map(line, GOOD)]), ("last", [*map(line, GOOD), bad])):
        pairs, report = kept(main, write_lines(tmp_path / place, lines), tokenizer)
        assert neighbours <= pairs
        assert report["read"] == 7
        assert sum(report[one] for one in [*REASONS, "too long"]) == bool(reason)
        assert report[reason] == 1 or reason is None
        assert len(pairs) == 6 + (reason is None)
        for pair in pairs:
            ids = tokenizer("".join(pair), add_special_tokens=False)["input_ids"]
            assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_gzip_cut_short(main, tokenizer, tmp_path, keep):
    """The rows before the cut are used, and the cut is counted and named."""
    rows = [row(f"Question {i}: {'why ' * (i % 7)}", f"Well, {i}.", f"Go, {i * i}.") for i in range(3000)]
    dataset = write_lines(tmp_path, map(line, rows))
    path = tmp_path / "harmless-base" / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    pairs, report = kept(main, dataset, tokenizer)
    assert report["file cut short or damaged"] == 1
    assert 0 < len(pairs) == report["read"] - 1 < 3000
    assert all(f"Well, {i}." in {pair[1] for pair in pairs} for i in range(len(pairs)))


def test_gzip_damaged_in_the_middle(main, tokenizer, tmp_path):
    """A changed byte is found by the checksum or by the code, and counted; no row is wrong before it."""
    dataset = write_lines(tmp_path, map(line, GOOD * 50))
    path = tmp_path / "harmless-base" / "train.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # of the checksum
    path.write_bytes(bytes(content))
    assert kept(main, dataset, tokenizer)[1]["file cut short or damaged"] == 1
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="harmless-base/train has the columns"):
        kept(main, dataset, tokenizer)


def test_prompt_in_a_defective_test_row_is_kept_out_of_training(main, tokenizer, tmp_path):
    """Test rows that cannot be used still guard their prompts, and test lines that are no records do no harm."""
    lines = [b"null", b"not json", line({"chosen": dialogue("Neighbour 2, how are you?", "x"), "rejected": 5})]
    dataset = write_lines(tmp_path, lines, "test")
    with gzip.open(tmp_path / "harmless-base" / "train.jsonl.gz", "wb") as file:
        file.write(b"".join(line(one) + b"\n" for one in GOOD))
    pairs, report = kept(main, dataset, tokenizer)
    assert report["prompt in a test split"] == 1
    assert len(pairs) == 5


def test_all_at_once_through_whole_runs(hub, tmp_path):
    """With all malformed lines in all four files both notebooks run to their end, the paper's way of drawing too."""
    dataset, bad = tmp_path / "data", [content for content, _ in CASES.values()]
    for subset in ("harmless-base", "helpful-base"):
        for split, n in (("train", 60), ("test", 40)):
            with gzip.open(hub / "hh-rlhf" / subset / f"{split}.jsonl.gz") as file:
                good = [one.rstrip(b"\n") for one in file][:n]
            path = dataset / subset / f"{split}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(path, "wb") as file:
                file.write(b"".join(one + b"\n" for one in bad[:40] + good + bad[40:]))
    places = {"PRESET": "demo", "DATASET": dataset, "RESULTS": tmp_path / "results", "FIGURES": tmp_path / "figures"}
    execute("main.ipynb", tmp_path / "main.ipynb", **places)
    rows = load(tmp_path / "results" / "demo" / "run.json")["data"]
    expected = Counter(reason for _, reason in CASES.values() if reason in REASONS)
    for counts in rows:
        assert counts["read"] == 60 + len(CASES)
        for reason in ("not UTF-8", "not JSON", "not a record", "not text", "control character"):
            assert counts[reason] == expected[reason], reason
    execute("eval.ipynb", tmp_path / "eval.ipynb", **places, N_PROMPTS=5, MAX_NEW_TOKENS=8)
    check_run(tmp_path / "results" / "demo", 5)
    execute("eval.ipynb", tmp_path / "eval.ipynb", **places, N_PROMPTS=2, MAX_NEW_TOKENS=8, PROTOCOL="paper",
            FRESH=True)
    check_run(tmp_path / "results" / "demo", 2)


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
def test_reading_a_line_never_fails(main, data):
    """Any bytes are a record or a named reason."""
    found = main.read_row(data)
    assert isinstance(found, dict) or found in REASONS


@quick
@given(one=ROW)
def test_parsing_keeps_or_names(main, one):
    """Any row gives a pair that holds what its texts hold, and no control token or character, or a named reason."""
    try:
        pair = main.parse_pair(one, ["</s>", "<pad>"])
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
def test_a_row_does_not_change_its_neighbours(main, rows, bad, place):
    """With a row more, the pairs of all others are the same, and exactly one row more is kept or counted."""
    pairs, dropped = main.parse_pairs(rows, ["</s>", "<pad>"])
    assert len(pairs) + dropped.total() == len(rows)
    more, dropped_more = main.parse_pairs(rows[:place] + [bad] + rows[place:], ["</s>", "<pad>"])
    extra, reason = main.parse_pairs([bad], ["</s>", "<pad>"])
    before = len(main.parse_pairs(rows[:place], ["</s>", "<pad>"])[0])
    assert more == pairs[:before] + extra + pairs[before:]
    assert dropped_more == dropped + reason


@quick
@given(turns=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30), min_size=1,
                      max_size=9), room=st.integers(1, 120))
def test_cutting_keeps_the_newest_turns(main, tokenizer, turns, room):
    """What is left of a prompt is its end, from a human turn on, fits, and with a turn more would not have fitted."""
    starts = [f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)]
    prompt = "".join(starts) + "\n\nAssistant:"
    cut = main.cut_prompt(prompt, room, tokenizer)
    ends = [prompt[len("".join(starts[:i])) :] for i in range(0, len(starts), 2)]
    fitting = [end for end in ends if len(tokenizer(end)["input_ids"]) <= room]
    assert cut == (fitting[0] if fitting else None)


@quick
@given(pairs=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6), limit=st.integers(8, 200))
def test_fitting_cuts_no_reply(main, evaluation, tokenizer, pairs, limit):
    """Pairs that stay have their replies whole and fit the limit with the end of text; all others are counted."""
    rows = [{"prompt": f"\n\nHuman:{evaluation.as_text(prompt, tokenizer)}\n\nAssistant:", "subset": "s",
             "chosen": evaluation.as_text(chosen, tokenizer), "rejected": evaluation.as_text(rejected, tokenizer)}
            for prompt, chosen, rejected in pairs]
    report = {"s": Counter()}
    fitting = main.fit_pairs(rows, tokenizer, limit, set(), report)
    assert len(fitting) + report["s"]["too long"] == len(rows)
    texts = [(one["chosen"], one["rejected"]) for one in rows]
    for pair in fitting:
        assert (pair["chosen"], pair["rejected"]) in texts
        longest = max(len(tokenizer(f" {pair[side]}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"])
                      for side in ("chosen", "rejected"))
        assert len(tokenizer(pair["prompt"])["input_ids"]) + longest <= limit
        assert pair["length"] <= limit


@pytest.fixture(scope="module")
def judge_tokenizer(hub):
    """The tokenizer of the demo's judge, whose control tokens are [CLS], [SEP] and others."""
    return AutoTokenizer.from_pretrained(hub / "reward-model", truncation_side="left")


@quick
@given(question=TEXT, answer=TEXT)
def test_judge_reads_control_tokens_as_text(evaluation, judge_tokenizer, question, answer):
    """Nothing in a question or an answer is read as control: one [CLS], two [SEP], put by the tokenizer, no more."""
    encoded = evaluation.encode_answer(judge_tokenizer, question + "[SEP]", "[CLS]" + answer + "[MASK]", 512)
    found = Counter(judge_tokenizer.convert_ids_to_tokens(encoded["input_ids"]))
    assert (found["[CLS]"], found["[SEP]"], found["[MASK]"], found["[PAD]"]) == (1, 2, 0, 0)


@quick
@given(text=TEXT)
def test_text_for_a_model_holds_no_control_token(evaluation, tokenizer, text):
    """`as_text` leaves nothing that a tokenizer takes for control, and texts without such tokens as they are."""
    clean = evaluation.as_text(text + "</s>", tokenizer)
    assert not set(tokenizer(clean, add_special_tokens=False)["input_ids"]) & set(tokenizer.all_special_ids)
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert evaluation.as_text(text, tokenizer) == text


@quick
@given(data=JSON)
def test_json_comes_back_as_it_was(main, tmp_path, data):
    """What is written is read back the same, and its fingerprint is that of what was written."""
    try:
        main.write_json(tmp_path / "a.json", data)
    except UnicodeEncodeError:  # half characters are no text
        return
    assert main.read_json(tmp_path / "a.json") == data
    assert main.fingerprint(main.read_json(tmp_path / "a.json")) == main.fingerprint(data)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, -2.0000001, 1e-300, math.pi])
def test_rewards_come_back_to_the_bit(main, tmp_path, reward):
    """A finished batch that was read from its file is what was computed."""
    main.write_json(tmp_path / "a.json", [[0, reward]])
    assert main.read_json(tmp_path / "a.json") == [[0, reward]]
