"""Preference data of other formats become a folder in HH-RLHF's layout, or a sentence says why."""

import gzip
import json
import os
import subprocess
import sys
import zipfile

import pandas as pd
import pytest
from conftest import ROOT, write_dataset
from datasets import Dataset, DatasetDict
from loopback import Hub

from posttrain import data, hub
from posttrain.conversations import FOLDED, SHARED, convert_row
from posttrain.converting import convert, tabulate_report
from posttrain.reading import read_source
from posttrain.settings import evaluation
from posttrain.transcripts import CONVERSION

N = 30  # pairs of a source

QUESTION, GOOD, BAD = "What is a lute?", "It is an instrument.", "It is a dance."
PAIR = {"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:", "chosen": GOOD, "rejected": BAD}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def transcript(reply, question=QUESTION):
    return f"\n\nHuman: {question}\n\nAssistant: {reply}"


def row(prompt=QUESTION, chosen=GOOD, rejected=BAD):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def talk(*messages, chosen=None, rejected=None):
    return row(list(messages), chosen or [assistant(GOOD)], rejected or [assistant(BAD)])


FORMATS = {  # each means PAIR
    "standard, explicit": row(),
    "standard, explicit, a transcript as prompt": row(PAIR["prompt"]),
    "standard, explicit, a transcript without its last marker": row(f"Human: {QUESTION}"),
    "transcripts": {"chosen": transcript(GOOD), "rejected": transcript(BAD)},
    "transcripts without line breaks at their beginning": {
        "chosen": transcript(GOOD).lstrip(),
        "rejected": transcript(BAD).lstrip(),
    },
    "transcripts beside a prompt": row(QUESTION, transcript(GOOD), transcript(BAD)),
    "conversational, explicit": talk(user(QUESTION)),
    "conversational, implicit": {
        "chosen": [user(QUESTION), assistant(GOOD)],
        "rejected": [user(QUESTION), assistant(BAD)],
    },
    "conversations beside a prompt of text": row(
        QUESTION, [user(QUESTION), assistant(GOOD)], [user(QUESTION), assistant(BAD)]
    ),
    "conversations beside a prompt of messages": talk(
        user(QUESTION),
        chosen=[user(QUESTION), assistant(GOOD)],
        rejected=[user(QUESTION), assistant(BAD)],
    ),
    "messages beside a prompt of text": row(QUESTION, [assistant(GOOD)], [assistant(BAD)]),
    "messages in parts": talk(
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ),
    "messages as JSON": row(*(json.dumps(part) for part in talk(user(QUESTION)).values())),
    "messages as Python": row(*(str(part) for part in talk(user(QUESTION)).values())),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pair(name):
    assert convert_row(FORMATS[name]) == (PAIR, [])


def test_shared_first_words_of_replies_stay_in_the_replies():
    """TRL's own way would move them into the prompt, where the prompt is implicit."""
    chosen, rejected = "It is an instrument.", "It is an insect."
    pair, _ = convert_row({"chosen": transcript(chosen), "rejected": transcript(rejected)})
    assert (pair["chosen"], pair["rejected"]) == (chosen, rejected)


def test_implicit_prompt_of_plain_texts_ends_with_a_whole_word():
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    pair, changes = convert_row(texts)
    assert pair == {
        "prompt": "\n\nHuman: The sky is\n\nAssistant:", "chosen": "blue.", "rejected": "black."
    }  # fmt: skip
    assert changes == [SHARED]


def test_earlier_turns_are_kept():
    pair, _ = convert_row(talk(user("Hello."), assistant("Hello!\n\nYes?"), user(QUESTION)))
    start = "\n\nHuman: Hello.\n\nAssistant: Hello!\n\nYes?"
    assert pair["prompt"] == start + PAIR["prompt"]


def test_system_turn_is_put_before_the_first_human_turn():
    pair, changes = convert_row(talk({"role": "system", "content": "Be brief."}, user(QUESTION)))
    assert pair["prompt"] == f"\n\nHuman: Be brief.\n\n{QUESTION}\n\nAssistant:"
    assert changes == [FOLDED]


IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
DROPPED = {
    "an image column": (row() | {"images": ["a.png"]}, "images"),
    "an image in a message": (talk(IMAGE), "images"),
    "sound": (talk({"role": "user", "content": [{"type": "audio"}]}), "content of another kind"),
    "a column of tools": (row() | {"tools": [{"name": "search"}]}, "tools"),
    "what a tool says": (talk(user("a"), {"role": "tool", "content": "b"}), "tools"),
    "a tool that is called": (
        talk(user("a"), assistant(None) | {"tool_calls": [{"name": "b"}]}, user("c")), "tools"
    ),
    "another role": (talk(user("a"), {"role": "critic", "content": "b"}), "other role"),
    "no rejected reply": (row(rejected=None), "unpaired, or an empty reply"),
    "no replies": (row(chosen=[], rejected=[]), "unpaired, or an empty reply"),
    "equal replies": (row(chosen=BAD), "identical replies"),
    "equal but for blanks": (row(chosen=f" {BAD}\n"), "identical replies"),
    "equal messages": (talk(user("a"), chosen=[assistant(BAD)]), "identical replies"),
    "a reply of blanks": (row(chosen=" \n "), "empty reply"),
    "an empty prompt": (row(" "), "empty turn"),
    "no word in common": ({"chosen": "Yes. ", "rejected": "No."}, "no prompt"),
    "a human's marker": (row(chosen="a\n\nHuman: b"), "turn marker in a message"),
    "an assistant's marker": (talk(user("a\n\nAssistant: b")), "turn marker in a message"),
    "a marker after the system's turn": (
        talk({"role": "system", "content": "a"}, user("Human: b")), "turn marker in a message"
    ),
    "two human turns": (
        talk(user("a"), user("b")), "turns do not alternate, or the last one is not the human's"
    ),
    "a prompt that ends with the assistant": (
        talk(user("a"), assistant("b")),
        "turns do not alternate, or the last one is not the human's",
    ),
    "a system turn in the middle": (
        talk(user("a"), {"role": "system", "content": "b"}, user("c")),
        "turns do not alternate, or the last one is not the human's",
    ),
    "conversations that part early": (
        {
            "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
            "rejected": [user("a"), assistant("e"), user("f"), assistant("g")],
        },
        "prompts differ, or a reply is not one message of the assistant",
    ),
    "transcripts that part early": (
        {"chosen": transcript(GOOD, "a"), "rejected": transcript(BAD, "b")}, "prompts differ"
    ),
    "a number": (row(chosen=5), "neither texts nor messages"),
    "a text and messages": (row(chosen=[assistant(GOOD)]), "neither texts nor messages"),
    "messages without a role": (row(chosen=[{"content": "a"}]), "neither texts nor messages"),
    "messages that do not end": (row(chosen='[{"role": "a"'), "messages that cannot be read"),
    "a control character": (row(chosen="a\x00"), "control character"),
    "a line that could not be read": ("not JSON", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPPED)
def test_row_that_cannot_be_used_has_its_reason(name):
    unusable, reason = DROPPED[name]
    with pytest.raises(ValueError) as error:
        convert_row(unusable)
    assert str(error.value) == reason


# ---- files


def make_rows(n=N, conversational=True, word="lute"):
    rows = []
    for i in range(n):
        question = f"What is {word} {i}?"
        prompt = [user(question)] if conversational else question
        replies = [f"It is good {i}.", f"It is bad {i}."]
        if conversational:
            replies = [[assistant(reply)] for reply in replies]
        rows.append(row(prompt, *replies))
    return rows


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [part if isinstance(part, str) else json.dumps(part) for part in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def compress(path):
    compressed = path.with_name(path.name + ".gz")
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return compressed


def write_source(folder, kind, conversational):
    """Write the rows as a file or folder of some kind."""
    rows = make_rows(conversational=conversational)
    folder.mkdir()
    lines = write_lines(folder / "pairs.jsonl", rows)
    table = Dataset.from_list(rows)
    if kind in ("jsonl", "folder"):
        return lines if kind == "jsonl" else folder
    if kind == "jsonl.gz":
        return compress(lines)
    if kind == "zip":
        with zipfile.ZipFile(folder / "pairs.zip", "w") as archive:
            archive.write(lines, "pairs.jsonl")
        return folder / "pairs.zip"
    if kind == "json":
        (folder / "pairs.json").write_text(json.dumps(rows, indent=1))
    elif kind == "parquet":
        table.to_parquet(str(folder / "pairs.parquet"))
    elif kind.startswith("csv"):
        texts = [{name: as_cell(part) for name, part in pair.items()} for pair in rows]
        pd.DataFrame(texts).to_csv(folder / "pairs.csv", index=False)
        if kind == "csv.gz":
            return compress(folder / "pairs.csv")
    else:
        table.save_to_disk(str(folder / "saved"))
        if kind == "saved":
            return folder / "saved"
        (arrow,) = (folder / "saved").glob("*.arrow")
        arrow.rename(folder / "pairs.arrow")
    return folder / f"pairs.{kind}"


def as_cell(part):
    return part if isinstance(part, str) else json.dumps(part)


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "texts"])
@pytest.mark.parametrize(
    "kind",
    ["jsonl", "jsonl.gz", "zip", "json", "folder", "parquet", "csv", "csv.gz", "arrow", "saved"],
)
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, kind, conversational):
    source = write_source(tmp_path / "source", kind, conversational)
    report = convert({"harmful": str(source)}, tmp_path / "out")
    assert report["kinds"]["harmful"]["kept"] == {"train": 27, "test": 3}
    assert report["kinds"]["harmful"]["dropped"] == {}
    rows = [*read(tmp_path / "out"), *read(tmp_path / "out", split="test")]
    expected = [transcript(f"It is good {i}.", f"What is lute {i}?") for i in range(N)]
    assert sorted(pair["chosen"] for pair in rows) == sorted(expected)


def read(folder, kind="harmful", split="train"):
    return data.read_split(folder, data.MEASURED[kind], split)


def test_values_that_look_like_numbers_or_like_nothing_are_texts_in_csv(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": str(i), "rejected": "None"} for i in range(N)]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    convert({"helpful": str(tmp_path / "a.csv")}, tmp_path / "out")
    assert transcript("None", "9?") in [pair["rejected"] for pair in read_all(tmp_path / "out")]


def read_all(folder):
    return [*read(folder, "helpful"), *read(folder, "helpful", "test")]


def test_broken_lines_of_json_are_counted(tmp_path):
    """One line in a hundred is no JSON, another one has other types, a third is not UTF-8."""
    rows = make_rows(297)
    lines = [json.dumps(part) for part in [*rows, row(chosen=5), row("5", "6", "7")]]
    lines.insert(7, '{"prompt": [')
    content = "\n".join(lines).encode() + b'\n{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(content)
    report = convert({"harmful": str(tmp_path / "a.jsonl")}, tmp_path / "out")
    dropped = {"not JSON": 1, "neither texts nor messages": 1, "not UTF-8": 1}
    assert report["kinds"]["harmful"]["dropped"] == dropped
    assert report["kinds"]["harmful"]["read"] == 301
    pairs = [*read(tmp_path / "out"), *read(tmp_path / "out", split="test")]
    assert transcript("6", "5") in [pair["chosen"] for pair in pairs]  # no number has become of it


def test_broken_lines_of_csv_are_counted(tmp_path):
    lines = ["prompt,chosen,rejected", *(f"q{i},a{i},b{i}" for i in range(N)), "q,a,b,c,d", "q"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    report = convert({"harmful": str(tmp_path / "a.csv")}, tmp_path / "out")
    assert report["kinds"]["harmful"]["dropped"] == {"unpaired, or an empty reply": 2}


# ---- splits


def test_split_that_is_made_shares_no_prompt_and_is_always_the_same(tmp_path):
    """Pairs with the same prompt stay together; the order of the rows makes no difference."""
    rows = make_rows(100)
    again = [row(part["prompt"], [assistant(f"Better {i}.")], part["rejected"])
             for i, part in enumerate(rows)]  # fmt: skip
    for name, order in {"a": [*rows, *again], "b": [*again[::-1], *rows[::-1]]}.items():
        source = write_lines(tmp_path / f"{name}.jsonl", order)
        report = convert({"harmful": str(source)}, tmp_path / name)
        assert report["kinds"]["harmful"]["kept"] == {"train": 180, "test": 20}
        assert "no prompt is in both" in report["kinds"]["harmful"]["splits"]["test"]
    asked = [set(data.read_test_prompts(tmp_path / name, ["harmless-base"])) for name in "ab"]
    assert asked[0] == asked[1] and len(asked[0]) == 10
    trained = {data.split_pair(part, ())["prompt"] for part in read(tmp_path / "a")}
    assert not trained & asked[0] and len(trained) == 90


def test_prompt_of_one_kinds_test_split_is_in_no_training_split(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", make_rows())
    other = write_lines(tmp_path / "b.jsonl", make_rows() + make_rows(word="harp"))
    out = tmp_path / "out"
    report = convert({"harmful": str(source), "helpful": str(other)}, out)
    asked = set(data.read_test_prompts(out, ["harmless-base", "helpful-base"]))
    for kind in ("harmful", "helpful"):
        trained = {data.split_pair(part, ())["prompt"] for part in read(out, kind)}
        assert not trained & asked
    table = tabulate_report(report)
    fates = [name for name in table.index if name.startswith(("dropped", "kept"))]
    assert dict(table.loc[fates].sum()) == dict(table.loc["read"]) == {"harmful": 30, "helpful": 60}
    assert table.loc["dropped: prompt in a test split"].sum() > 0


def test_splits_of_the_source_are_kept(tmp_path):
    splits = {"train": make_rows(20), "validation": make_rows(5, word="harp"),
              "test": make_rows(4, word="drum")}  # fmt: skip
    for name, rows in splits.items():
        write_lines(tmp_path / "source" / f"{name}.jsonl", rows)
    for named, kept, words in (
        ("", {"train": 20, "test": 4}, ("lute", "drum")),
        ("::validation,test", {"train": 5, "test": 4}, ("harp", "drum")),
        ("::train", {"train": 18, "test": 2}, ("lute", "lute")),
    ):
        out = tmp_path / f"out{len(named)}"
        report = convert({"harmful": f"{tmp_path / 'source'}{named}"}, out)
        assert report["kinds"]["harmful"]["kept"] == kept
        for split, word in zip(("train", "test"), words):
            assert all(f"What is {word} " in part["chosen"] for part in read(out, split=split))


def test_same_source_gives_the_same_bytes(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", make_rows())
    for out in ("one", "two"):
        convert({"helpful": str(source)}, tmp_path / out)
    one, two = tmp_path / "one", tmp_path / "two"
    files = [path.relative_to(one) for path in one.rglob("*.*")]
    assert len(files) == 3  # two splits and the report
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()


# ---- bad input


def refused(tmp_path, source, message):
    """Check that a source is refused with a sentence, and that nothing is written."""
    good = write_lines(tmp_path / "good.jsonl", make_rows())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        convert({"helpful": str(good), "harmful": str(source)}, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


BAD_ROWS = {
    "missing columns": (
        [{"question": "a", "response_0": "b", "response_1": "c"}] * N,
        r"has the columns question, response_0, response_1, .*\nprompt, chosen, rejected: texts",
    ),
    "unpaired": ([{"prompt": "a", "completion": "b", "label": True}] * N, "prompt"),
    "one-sided": ([{"chosen": "a", "rejected": None}] * N, "no usable pair.*unpaired.*30"),
    "equal": ([row(rejected=GOOD)] * N, "no usable pair.*'identical replies': 30"),
    "one prompt": ([row()] * N, "no pair for the train split.*two different prompts"),
    "no JSON at all": (["Hello."] * N, "no readable row"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_source_without_usable_pairs_is_refused(tmp_path, name):
    rows, message = BAD_ROWS[name]
    refused(tmp_path, write_lines(tmp_path / "bad.jsonl", rows), message)


def test_source_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("import datasets\n")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    write_lines(tmp_path / "splits" / "one.jsonl", make_rows())
    DatasetDict(
        odd=Dataset.from_list(make_rows()), other=Dataset.from_list(make_rows())
    ).save_to_disk(str(tmp_path / "odd"))
    for source, message in {
        "empty": "There is no file with data in it",
        "empty.jsonl": "there is no row in it",
        "script": "dataset script",
        "damaged.parquet": "cannot be read",
        "odd": "the splits are odd, other. Name",
        "splits::nosplit": "the splits are train. Name",
        "nowhere": "no such folder",
    }.items():
        refused(tmp_path, tmp_path / source, message)


def test_folder_that_is_not_empty_is_refused(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", make_rows())
    out = tmp_path / "out"
    out.mkdir()
    convert({"helpful": str(source)}, out)
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="OUT: .*not empty"):
        convert({"helpful": str(source)}, out)
    assert sorted(out.rglob("*")) == before


# ---- what follows


def test_harmful_prompts_are_chosen_by_keywords_in_hh_rlhf_alone(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", make_rows())
    convert({"harmful": str(source)}, tmp_path / "out")
    out = {"DATASET": str(tmp_path / "out")}
    (tmp_path / "copy").mkdir()
    assert evaluation("demo").harmful_prompts == "keywords"
    assert evaluation("quick").harmful_prompts == "keywords"
    assert evaluation("quick", DATASET=str(tmp_path / "copy")).harmful_prompts == "keywords"
    assert evaluation("quick", DATASET="another/dataset").harmful_prompts == "all"
    assert evaluation("demo", **out).harmful_prompts == "all"
    assert evaluation("demo", **out, HARMFUL_PROMPTS="keywords").harmful_prompts == "keywords"
    assert evaluation("demo", **out, PROTOCOL="paper").harmful_prompts == "keywords"


@pytest.mark.parametrize("subsets", ["base", "all"])
def test_subsets_that_are_there_are_read(tmp_path, subsets):
    source = write_lines(tmp_path / "a.jsonl", make_rows())
    convert({"helpful": str(source)}, tmp_path / "out")
    assert data.list_subsets(tmp_path / "out", subsets) == ("helpful-base",)
    (tmp_path / "out" / CONVERSION).unlink()  # HH-RLHF itself must have all of them
    assert data.list_subsets(tmp_path / "out", subsets) == data.SUBSETS[subsets]


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "posttrain", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_source_and_dataset_are_read_by_their_names_on_the_hub(tmp_path):
    """From the hub to a folder, and that folder, published in turn, is read by `load_pairs`."""
    hub = Hub()
    (tmp_path / "source").mkdir()
    Dataset.from_list(make_rows()).to_parquet(str(tmp_path / "source" / "train.parquet"))
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("import datasets\n")
    commit = hub.publish("datasets", "some/pairs", tmp_path / "source")
    hub.publish("datasets", "some/script", tmp_path / "script")
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    out = tmp_path / "out"
    done = command("data", "HARMFUL=some/pairs", f"OUT={out}", **online)
    assert done.returncode == 0, done.stderr
    assert f"some/pairs (commit {commit})" in done.stdout
    assert "kept for train       27" in done.stdout
    for name, message in (("some/unknown", "does not exist"), ("some/script", "dataset script")):
        failed = command("data", f"HARMFUL={name}", f"OUT={tmp_path / 'no'}", **online)
        assert failed.returncode == 1 and message in failed.stderr
        assert "Traceback" not in failed.stderr and not (tmp_path / "no").exists()
    hub.publish("datasets", "some/converted", out)
    code = (
        "from posttrain import data, hub; folder = hub.fetch('DATASET', 'some/converted', "
        "data.list_files('all')); print(data.list_subsets(folder, 'all'), "
        "len(data.read_split(folder, 'harmless-base', 'train')))"
    )
    asking = [sys.executable, "-c", code]
    read = subprocess.run(
        asking, cwd=ROOT, env=os.environ | online, capture_output=True, text=True
    )
    assert read.stdout.endswith("('harmless-base',) 27\n"), read.stderr
    hub.close()


def test_command_names_what_is_missing(tmp_path):
    for arguments in ([f"OUT={tmp_path / 'out'}"], ["HARMFUL=a/b"]):
        failed = command("data", *arguments)
        assert failed.returncode == 1 and "HARMFUL, HELPFUL, OUT: name" in failed.stderr


# ---- whole runs


def demo_source(folder, kind):
    """Write pairs of the demo's training split as messages in Parquet."""
    rows = data.read_split(ROOT / "demo/hub/hh-rlhf", data.MEASURED[kind], "train")[:400]
    pairs, _ = data.split_pairs(rows, [])
    messages = []
    for pair in pairs:
        turns = pair["prompt"].removesuffix(data.PROMPT_END).split(data.TURN)
        if len(turns) == 2 and data.PROMPT_END not in turns[1]:
            messages.append(
                talk(
                    user(turns[1]),
                    chosen=[assistant(pair["chosen"])],
                    rejected=[assistant(pair["rejected"])],
                )  # fmt: skip
            )
    assert len(messages) > 100
    folder.mkdir(exist_ok=True)
    Dataset.from_list(messages).to_parquet(str(folder / f"{kind}.parquet"))
    return folder / f"{kind}.parquet"


MISSING = {"harmful": "HpR", "helpful": "HmR"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [("harmful",), ("helpful",), ("harmful", "helpful")], ids="+".join
)
def test_whole_run_on_converted_data(tmp_path, kinds):
    """Both notebooks run; with one kind of prompts they say what they cannot compute."""
    sources = [f"{kind.upper()}={demo_source(tmp_path / 'source', kind)}" for kind in kinds]
    out = tmp_path / "out"
    converted = command("data", *sources, f"OUT={out}")
    assert converted.returncode == 0, converted.stderr
    done = command(
        "run", "PRESET=demo", f"DATASET={out}", "MAX_PAIRS=100", "N_PROMPTS=10", "RUN=own",
        "MAX_NEW_TOKENS=8", f"RESULTS={tmp_path / 'results'}", 'SETTINGS={"draws": 200}',
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "results" / "own"
    measured = json.loads((run / "metrics.json").read_text())
    rates = [rate for rate in ("HmR", "HpR", "CAS") if rate in measured["models"][-1]]
    said = [caution for caution in measured["cautions"] if "cannot be computed" in caution]
    compared = {record["measure"] for record in measured["comparisons"]}
    if len(kinds) == 2:
        assert rates == ["HmR", "HpR", "CAS"] and not said
    else:
        (caution,) = said
        missing = MISSING[kinds[0]]
        assert rates == [({"HmR", "HpR"} - {missing}).pop()]
        assert f"{missing} and CAS cannot be computed" in caution
        assert caution in (run / "summary.md").read_text()
        assert f"so {missing} and CAS will not be computed" in " ".join(
            json.dumps(json.loads((run / "main.ipynb").read_text())).replace("\\n", " ").split()
        )
    assert rates == [rate for rate in ("HmR", "HpR", "CAS") if rate in compared]
    prompts = json.loads((run / "prompts.json").read_text())
    assert {prompt["kind"] for prompt in prompts} == set(kinds) and len(prompts) == 10 * len(kinds)
    assert "report.html" in done.stdout and (run / "report.html").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('What?,"He said "yes" to me",no', "quotes or separators are not those of a CSV file"),
        ('What?,"He said', "quotes or separators are not those of a CSV file"),
    ],
)
def test_broken_quotes_of_a_csv_file_are_explained(tmp_path, line, message):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\n" + "Why?,So.,No.\n" * 300 + line, encoding="utf-8")
    with pytest.raises(ValueError, match=f"HELPFUL = .*pairs.csv' cannot be read.*{message}"):
        read_source("HELPFUL", str(path))


def test_long_cell_of_a_csv_file_is_read(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(f"prompt,chosen,rejected\nWhy?,{'So ' * 50_000},No.\n", encoding="utf-8")
    (row,) = read_source("HELPFUL", str(path)).rows["train"]
    assert len(row["chosen"]) == 150_000


def test_broken_line_among_many_is_counted(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."})
    path.write_text(f"{good}\n" * 310 + "{this is not json\n", encoding="utf-8")
    rows = read_source("HELPFUL", str(path)).rows["train"]
    assert len(rows) == 311
    assert [row for row in rows if isinstance(row, str)] == ["not JSON"]


def test_both_kinds_are_not_read_as_one(tmp_path):
    folder = write_dataset(tmp_path / "hh", [], [])
    with pytest.raises(ValueError, match="contains several datasets, .*harmless-base, .*Name one"):
        read_source("HELPFUL", str(folder))
    source = str(folder / "harmless-base")
    with pytest.raises(ValueError, match="both name the same source"):
        convert({"harmful": source, "helpful": source}, tmp_path / "out")


def test_file_in_the_place_of_a_dataset_is_to_be_converted(tmp_path):
    (tmp_path / "pairs.parquet").touch()
    with pytest.raises(ValueError, match="is a file. Write its pairs into a folder first"):
        hub.fetch("DATASET", str(tmp_path / "pairs.parquet"), ["a"])
