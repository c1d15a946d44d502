"""Pairs that are kept are read only where everything that they are made from is the same."""

import shutil
import types

import pytest
from conftest import row, write_dataset
from small_runs import OPT
from test_data import SETTINGS, many_rows

from posttrain import data, models, pair_cache, tokens

ALL = SETTINGS | {"max_length": 64}


@pytest.fixture
def folder(tmp_path):
    """A dataset in which one pair is cut, one is dropped and one is a duplicate."""
    rows = many_rows(30)
    long = "\n\nHuman: Once?\n\nAssistant: " + "No. " * 40 + "\n\nHuman: And now?\n\nAssistant:"
    rows.append({"chosen": long + " Yes.", "rejected": long + " No."})
    rows.append(row("Empty?", "", "Nothing."))
    rows.append(rows[0])
    return write_dataset(tmp_path / "data", {"harmless-base": rows, "helpful-base": many_rows(3)})


@pytest.fixture
def tokenizer():
    """A tokenizer of its own, which a test may change."""
    return models.load_tokenizer(OPT)


def load(folder, tokenizer, kept, **changes):
    """Load the pairs of a dataset with a file that keeps them."""
    return data.load_pairs(folder, tokenizer, types.SimpleNamespace(**ALL | changes), kept)


def as_plain(pairs):
    """Turn pairs into values that can be compared, with the types of their token ids."""
    rows = []
    for pair in [*pairs.train, *pairs.validation]:
        plain = {}
        for name, value in pair.items():
            plain[name] = (str(value.dtype), value.tolist()) if name in data.IDS else value
        rows.append(plain)
    return rows, len(pairs.validation), pairs.report.to_dict(), list(pairs.report.index)


@pytest.fixture
def prepared(monkeypatch):
    """The number of times that pairs were prepared, as the length of a list."""
    calls = []
    prepare = data._prepare_pairs

    def count(*arguments):
        calls.append(1)
        return prepare(*arguments)

    monkeypatch.setattr(data, "_prepare_pairs", count)
    return calls


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_kept_pairs_are_the_same(folder, tokenizer, tmp_path, prepared, monkeypatch, at_once):
    """Texts, token ids with their types, lengths, order, held-out pairs and report are equal."""
    monkeypatch.setattr(pair_cache, "AT_ONCE", at_once)
    kept = tmp_path / "run" / "pairs"
    first = load(folder, tokenizer, kept)
    again = load(folder, tokenizer, kept)
    assert len(prepared) == 1
    assert as_plain(first) == as_plain(again) == as_plain(load(folder, tokenizer, None))
    assert first.report.equals(again.report)
    assert {"cut", "empty reply", "duplicate"} <= set(again.report.index)
    assert list(first.train[0]) == list(again.train[0])
    sft = [pairs.for_sft("train").to_dict() for pairs in (first, again)]
    dpo = [pairs.for_dpo("validation").to_dict() for pairs in (first, again)]
    assert sft[0] == sft[1] and dpo[0] == dpo[1]


CHANGES = {
    "max_pairs": 20,
    "validation_pairs": 2,
    "max_length": 48,
    "seed": 1,
    "subsets": "all",
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_prepares_anew(folder, tokenizer, tmp_path, prepared, name):
    """Each setting of the pairs counts."""
    kept = tmp_path / "pairs"
    load(folder, tokenizer, kept)
    if name == "subsets":
        for subset in data.SUBSETS["all"][2:]:
            shutil.copytree(folder / "helpful-base", folder / subset)
    changed = load(folder, tokenizer, kept, **{name: CHANGES[name]})
    assert len(prepared) == 2
    assert as_plain(changed) == as_plain(
        load(folder, tokenizer, None, **{name: CHANGES[name]})
    )


def test_every_setting_is_tried():
    """All settings of pairs but the format, whose base would need a template, are in CHANGES."""
    assert set(CHANGES) == set(pair_cache.PairSettings.__annotations__) - {"format"}


def test_another_dataset_prepares_anew(folder, tokenizer, tmp_path, prepared):
    """A changed file counts, that of a test split too, since its prompts are left out."""
    kept = tmp_path / "pairs"
    load(folder, tokenizer, kept)
    shutil.copy(folder / "helpful-base" / "train.jsonl.gz", folder / "helpful-base/test.jsonl.gz")
    changed = load(folder, tokenizer, kept)
    assert len(prepared) == 2
    assert changed.report.loc["prompt in a test split"].sum() > 0


def test_another_tokenizer_prepares_anew(folder, tokenizer, tmp_path, prepared):
    """A token that is added counts, and so does a chat template."""
    kept = tmp_path / "pairs"
    load(folder, tokenizer, kept)
    tokenizer.add_tokens(["Question 7"])
    load(folder, tokenizer, kept)
    assert len(prepared) == 2
    tokenizer.chat_template = "{{ messages }}"
    load(folder, tokenizer, kept)
    assert len(prepared) == 3


def test_changed_code_prepares_anew(folder, tokenizer, tmp_path, prepared, monkeypatch):
    """The source of the modules that prepare pairs counts, and the versions of libraries."""
    kept = tmp_path / "pairs"
    load(folder, tokenizer, kept)
    package = tmp_path / "package"
    package.mkdir()
    for name in pair_cache.CODE:
        source = data.__file__.replace("data.py", f"{name}.py")
        shutil.copy(source, package)
    (package / "transcripts.py").write_text("# changed")
    with monkeypatch.context() as patch:
        patch.setattr(pair_cache, "__file__", str(package / "pair_cache.py"))
        load(folder, tokenizer, kept)
    assert len(prepared) == 2
    monkeypatch.setattr(pair_cache, "version", lambda name: "0.0")
    load(folder, tokenizer, kept)
    assert len(prepared) == 3


@pytest.mark.parametrize("harm", ["cut", "changed", "other"])
def test_damaged_file_is_made_again(folder, tokenizer, tmp_path, prepared, harm):
    """A file that is cut short, changed in one place or of another kind is written anew."""
    kept = tmp_path / "pairs"
    first = load(folder, tokenizer, kept)
    content = bytearray(kept.read_bytes())
    if harm == "cut":
        content = content[:-200]
    elif harm == "changed":
        content[200] ^= 1
    else:
        content = b"not a table"
    kept.write_bytes(content)
    again = load(folder, tokenizer, kept)
    assert len(prepared) == 2
    assert as_plain(first) == as_plain(again)
    load(folder, tokenizer, kept)
    assert len(prepared) == 2


def test_pairs_that_cannot_be_kept_stop_nothing(folder, tokenizer, tmp_path, prepared, capsys):
    """The file only saves time, so a folder that cannot be written is reported and no more."""
    (tmp_path / "file").touch()
    pairs = load(folder, tokenizer, tmp_path / "file" / "pairs")
    assert as_plain(pairs) == as_plain(load(folder, tokenizer, None))
    assert "The pairs are prepared again at the next start: " in capsys.readouterr().out


def test_only_the_main_process_writes(folder, tokenizer, tmp_path, monkeypatch):
    """Another process prepares its pairs and leaves the file to the main one."""
    monkeypatch.setattr(data.processes, "is_main", lambda: False)
    load(folder, tokenizer, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_ids_are_those_of_the_tokenizer(tokenizer, monkeypatch):
    """Asking the library for ids alone gives what the tokenizer gives, also after a cut."""
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 2)
    texts = ["Hello there", "", "Käse 🧀 再见", "a </s> b", "word " * 300]
    tokenizer(texts, truncation=True, max_length=3, padding=True)  # leaves cutting switched on
    for special in (True, False):
        expected = tokenizer(texts, add_special_tokens=special)["input_ids"]
        tokenizer(texts, truncation=True, max_length=3, padding=True)
        encoded = tokens.encode(texts, tokenizer, "texts", add_special_tokens=special)
        assert [ids.tolist() for ids in encoded] == expected
