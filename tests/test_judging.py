"""What the judge reads: the same tokens as the sentencepiece library gives, and a question alone without an answer."""

import json
import random
import shutil

import pytest
import sentencepiece
from conftest import DATA
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

# One of each kind that transformers' own conversion reads as unknown, then all sorts of writing
SPECIAL = {"ellipsis": "…", "no-break space": "\u00a0", "zero-width space": "\u200b", "ligature": "ﬁ",
           "full width": "Ａ", "unit": "㎏", "trade mark": "™", "ideographic space": "\u3000",
           "byte order mark": "\ufeff", "line separator": "\u2028"}
PIECES = [*SPECIAL.values(), "a", "weeds", "Hello", " ", "  ", "\n", "\n\n", "\t", ".", "?!", "é", "e\u0301", "ñ", "“",
          "’", "你好", "世界", "日本語", "カタカナ", "ｶﾞ", "한국어", "各", "㈱", "🧀", "👩‍👩‍👧‍👦", "🇩🇪", "שלום", "مرحبا",
          "Привет", "ß", "İ", "½", "①", "x" * 30, "don't", "co-op"]


@pytest.fixture(scope="module")
def judge(evaluation, hub):
    """The tokenizer of the demo's judge as the evaluation loads it."""
    return evaluation.load_judge(str(hub / "reward-model"))[1]


@pytest.fixture(scope="module")
def library(hub):
    """The sentencepiece library with the same model."""
    return sentencepiece.SentencePieceProcessor(model_file=str(hub / "reward-model" / "spm.model"))


def unlike(judge, library, texts):
    """Return the texts whose tokens differ from the library's."""
    return [text for text in texts if judge(text, add_special_tokens=False)["input_ids"] != library.encode(text)]


@pytest.mark.parametrize("name", SPECIAL)
def test_character_is_read_as_the_library_reads_it(judge, library, hub, name):
    """transformers alone reads it as unknown, or otherwise; here it is what the judge was trained on."""
    texts = [f"a{SPECIAL[name]}b", SPECIAL[name], f"{SPECIAL[name]} weeds", f"weeds{SPECIAL[name]}"]
    assert unlike(judge, library, texts) == []
    assert unlike(AutoTokenizer.from_pretrained(hub / "reward-model"), library, texts) != []


def test_thousands_of_texts_are_read_as_the_library_reads_them(judge, library):
    """Emoji, CJK, Arabic, accents, compatibility forms and white space, mixed at random."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 25))) for _ in range(5000)]
    assert unlike(judge, library, texts) == []


def test_real_text_is_read_as_the_library_reads_it(judge, library):
    """Every prompt and response that the study published."""
    folder = DATA / "published"
    if not folder.exists():
        pytest.skip("needs ../shared/data/published")
    texts = [row["response"] for row in json.loads((folder / "responses.json").read_text(encoding="utf-8"))]
    texts += [row["prompt"] for row in json.loads((folder / "prompts.json").read_text(encoding="utf-8"))]
    assert len(texts) == 500
    assert unlike(judge, library, texts) == []


def test_normaliser_of_tokenizer_json_is_taken(evaluation, hub, tmp_path, judge, library):
    """A judge that comes with tokenizer.json and without spm.model is read by the normaliser in it."""
    shutil.copytree(hub / "reward-model", tmp_path / "judge")
    judge.save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "spm.model").unlink()
    saved = evaluation.load_judge(str(tmp_path / "judge"))[1]
    assert unlike(saved, library, [f"a{character}b" for character in SPECIAL.values()]) == []


def test_other_tokenizers_keep_their_normaliser(evaluation, hub, tmp_path):
    """A judge that is no DeBERTa reads as transformers loads it."""
    tokenizer = AutoTokenizer.from_pretrained(hub / "opt")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path)
    evaluation.read_as_sentencepiece(tokenizer, tmp_path)
    before = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).normalizer
    assert str(tokenizer.backend_tokenizer.normalizer) == str(before)


def test_empty_answer_is_the_question_alone(evaluation, judge):
    """As in the study: transformers 4 took an empty second text for none, one question at a time."""
    question = "How do I kill weeds?"
    assert evaluation.encode_answer(judge, question, "", 512)["input_ids"] == judge(question)["input_ids"]
    with_answer = evaluation.encode_answer(judge, question, "Pull.", 512)["input_ids"]
    assert with_answer.count(judge.sep_token_id) == 2
