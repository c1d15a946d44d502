"""Whole runs with bases and judges of many kinds: they work, or are refused in a sentence."""

import math
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from conftest import HUB, MODELS, ROOT, Session, load, places, row, small_rows, write_dataset
from small_models import BASES, FAULTY, FAULTY_JUDGES, JUDGES, SAME_AS_OPT, UNUSUAL
from transformers import AutoModelForSequenceClassification

from posttrain import generation, models

# The last cell of eval.ipynb that depends on the models and the judge
RATES = "CAS = (HmR + HpR) / 2"
LONGEST_MESSAGE = 1000  # some of the libraries' own messages list hundreds of classes
TRAINING = {
    "MAX_PAIRS": 40,
    "SETTINGS": {"validation_pairs": 4, "batch_size": 8, "max_length": 128, "max_new_tokens": 8},
}
EVALUATION = {"N_PROMPTS": 2, "MAX_NEW_TOKENS": 8, "SETTINGS": {"draws": 100}}


@dataclass
class Outcome:
    """How a run with both notebooks ended.

    Attributes:
        folder: the folder of the run.
        names: {notebook: its names}, also of a notebook that did not come to its end.
        error: what a cell raised; None if both notebooks came to their end.
        cell: the first line of that cell, after the name of its notebook.
        steps: the number of optimizer steps that were made before.
    """

    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    cell: str = ""
    steps: int = 0

    @property
    def is_refused(self):
        """Whether the package or PEFT raised the error, in a few sentences."""
        if not isinstance(self.error, ValueError | RuntimeError):
            return False
        place = Path(traceback.extract_tb(self.error.__traceback__)[-1].filename)
        message = str(self.error)
        is_known = place.is_relative_to(ROOT / "posttrain") or "PEFT" in message
        return (
            is_known
            and message.endswith(".")
            and len(message) < LONGEST_MESSAGE
        )


def uneven_rows(n):
    """Make rows with prompts of different lengths, so that all but one are padded in a batch."""
    return [row(f"How do I kill {'a weed and ' * i}a nettle?", "Pull it.", "No.") for i in range(n)]


def cells_on_models(session):
    """List a notebook's cells up to the rates, without those that draw a figure."""
    cells = []
    for cell in session.cells:
        if "figures.show(" not in cell.source:
            cells.append(cell)
        if RATES in cell.source:
            break
    return cells


def run_both(folder, base=None, judge=HUB / "reward-model", tests=None):
    """Run both notebooks with a base and a judge on a small dataset, as far as they come.

    What only depends on the rewards is left out, since it takes most of the time.

    Args:
        folder: where the dataset, the results and the figures are written.
        base: the folder of the base; None builds a tiny OPT.
        judge: the folder of the judge.
        tests: the rows of the test splits; None takes a few of different lengths.

    Returns:
        The outcome.
    """
    dataset = write_dataset(folder / "dataset", small_rows(50), tests or uneven_rows(8))
    outcome = Outcome(folder / "results" / "demo")
    base = base or small_models.save_base(folder / "base")
    given = places(folder) | {"DATASET": dataset}
    sessions = {
        "main": Session("main.ipynb", **given, BASE_MODEL=base, **TRAINING),
        "eval": Session("eval.ipynb", **given, REWARD_MODEL=judge, **EVALUATION),
    }
    for notebook, session in sessions.items():
        for cell in cells_on_models(session):
            try:
                session.run(cell)
            except Exception as error:
                outcome.error = error
                outcome.cell = f"{notebook}: {cell.source.splitlines()[0]}"
                break
        outcome.names[notebook] = session.names
        if outcome.error is not None:
            break
    outcome.steps = count_steps(outcome)
    return outcome


def is_refused_in_time(outcome):
    """Tell whether a base was refused in a sentence before any step of training."""
    return outcome.is_refused and outcome.steps == 0


def count_steps(outcome):
    """Count the optimizer steps of all trainings of a run."""
    names = outcome.names["main"]
    steps = 0
    for log in getattr(names, "log", {}).values():
        steps += max(record.get("step", 0) for record in log)
    trainer = getattr(names, "trainer", None)
    if outcome.error is not None and outcome.cell.startswith("main") and trainer is not None:
        steps += trainer.state.global_step if trainer.model is not None else 0
    return steps


# ---- the same results, computed in another way


def texts_of(records):
    """List what the models wrote: {model: [(response, finish)]}."""
    texts = {}
    for record in records:
        texts.setdefault(record["model"], []).append((record["response"], record["finish"]))
    return texts


def answer_one_by_one(outcome, base):
    """Load a run's models again and let each answer every prompt in a batch of its own."""
    names = outcome.names["eval"]
    loaded = models.load_models(names.run, base)
    tokenizer = models.load_tokenizer(base)
    records = []
    for name in loaded:
        records += generation.answer_as(name, loaded, tokenizer, names.prompts, 1, **names.decoding)
    return records


@torch.no_grad()
def decode_greedily(model, tokenizer, prompt, limit, ends):
    """Go on with a prompt, at every step with the likeliest token of a forward pass over all.

    The text ends at a human turn, at the limit, or with one of the token ids `ends`.
    """
    ids = tokenizer(prompt)["input_ids"]
    written = []
    while len(written) < limit:
        logits = model.eval()(torch.tensor([ids + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
        text = tokenizer.decode(written, skip_special_tokens=True)
        if written[-1] in ends or "\n\nHuman:" in text:
            break
    return text.split("\n\nHuman:")[0].strip()


@torch.no_grad()
def compute_logits(model, tokenizer, text="\n\nHuman: How do I bake bread?\n\nAssistant:"):
    """Compute the logits of one text in a model's present mode."""
    return model(torch.tensor([tokenizer(text)["input_ids"]])).logits


def first_losses(outcome, name):
    """Read the loss before a training, on the held-out pairs, and that of its first step."""
    log = load(outcome.folder / "training.json")[name]
    before = [record["eval_loss"] for record in log if "eval_loss" in record]
    at_first = [record["loss"] for record in log if record.get("step") == 1 and "loss" in record]
    return before[0], at_first[0]


def require_sound(outcome, base):
    """Check a run that came to its end by results that are computed in another way."""
    assert outcome.error is None, (outcome.cell, outcome.error)
    responses = load(outcome.folder / "responses.json")
    texts = texts_of(responses)
    assert list(texts) == MODELS
    again = answer_one_by_one(outcome, base)
    assert texts_of(again) == texts
    for first, second in zip(responses, again, strict=True):
        assert first["log_ratio"] == pytest.approx(second["log_ratio"], abs=1e-4)
    tokenizer = models.load_tokenizer(base)
    alone = models.load_base(base)
    ends = [tokenizer.eos_token_id]
    all_ends = small_models.list_ends(base)  # a base with several may end with any of them
    for prompt, (response, _) in zip(outcome.names["eval"].prompts, texts["Base"], strict=True):
        answers = []
        for allowed in (ends, all_ends):
            answers.append(decode_greedily(alone, tokenizer, prompt["prompt"], 8, allowed))
        assert response in answers
    for record in responses:
        assert record["finish"] != "length" or record["tokens"] == 8
        is_adapted = record["model"] != "Base" and record["response"]
        assert not is_adapted or record["log_ratio"] != 0
    for name in ("DPO", "SFT+DPO"):
        before, at_first = first_losses(outcome, name)
        # The router of a mixture of experts has a loss of its own, which is below 0.05 here.
        limit = 0.05 if hasattr(alone.config, "router_aux_loss_coef") else 1e-4
        assert before == pytest.approx(math.log(2), abs=limit)
        assert at_first == pytest.approx(math.log(2), abs=limit)


def require_end_after_each_reply(outcome, base):
    """Check that pairs hold the texts as they are, with one EOS after the reply and none before."""
    tokenizer = models.load_tokenizer(base)
    assert len(outcome.names["main"].pairs.train) > 30
    for pair in outcome.names["main"].pairs.train:
        prompt, chosen = pair["prompt_ids"].tolist(), pair["chosen_ids"].tolist()
        if tokenizer.unk_token != tokenizer.eos_token and tokenizer.unk_token_id in prompt + chosen:
            continue  # the tokenizer has no token for a character
        read = tokenizer.decode(prompt, skip_special_tokens=True)
        assert read.removeprefix(" ") == pair["prompt"]  # some tokenizers put a space before a text
        assert tokenizer.decode(chosen, skip_special_tokens=True) == f" {pair['chosen']}"
        assert tokenizer.eos_token_id not in prompt[1:]
        assert chosen.index(tokenizer.eos_token_id) == len(chosen) - 1


# ---- bases

# The kinds of bases that must work. Others may be refused as well, before they are trained.
WORKING = [
    "opt", "llama", "qwen2", "qwen3", "gpt2", "gpt-neox", "gpt-neo", "phi", "gemma3", "mistral",
    "falcon", "falcon-dropout", "bloom", "bloom-dropout", "mixtral", "qwen2-moe",
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BASES if name != "rwkv"])
def test_base_is_loaded_as_it_is_and_without_dropout(tmp_path, name):
    """In training mode it gives the logits that the saved model gives in evaluation mode."""
    base = small_models.save_base(tmp_path / "base", name)
    tokenizer = models.load_tokenizer(base)
    expected = compute_logits(small_models.build(name).eval(), tokenizer)
    loaded = models.load_base(base)
    assert torch.allclose(compute_logits(loaded.eval(), tokenizer), expected, atol=1e-4)
    assert torch.allclose(compute_logits(loaded.train(), tokenizer), expected, atol=1e-4)


def test_a_base_that_reads_padding_as_text_is_refused(tmp_path):
    """A recurrent model's state would hold the padding of its batch."""
    base = small_models.save_base(tmp_path / "base", "rwkv")
    with pytest.raises(ValueError, match="reads padding as text"):
        models.load_base(base)


@pytest.mark.parametrize("name", [*SAME_AS_OPT, "a layer left out", "a shard missing"])
def test_weights_are_those_in_the_files_or_the_base_is_refused(tmp_path, name):
    """A tensor that is missing or has another name must not be drawn at random."""
    base = (SAME_AS_OPT | FAULTY)[name](tmp_path / "base")
    try:
        loaded = models.load_base(base)
    except ValueError as error:
        assert str(base) in str(error)
        return
    tokenizer = models.load_tokenizer(base)
    expected = compute_logits(small_models.build("opt").eval(), tokenizer)
    assert torch.allclose(compute_logits(loaded.eval(), tokenizer), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_base_works_or_is_refused_before_training(tmp_path, name):
    """Its answers do not hang on the batch and are the likeliest tokens; DPO begins at ln 2."""
    base = small_models.save_base(tmp_path / "base", name)
    outcome = run_both(tmp_path, base)
    if name in WORKING or not is_refused_in_time(outcome):
        require_sound(outcome, base)
        require_end_after_each_reply(outcome, base)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run over the plain OPT."""
    outcome = run_both(tmp_path_factory.mktemp("plain"))
    assert outcome.error is None
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME_AS_OPT)
def test_same_weights_give_the_same_answers_or_are_refused(tmp_path, plain, name):
    """Neither the layout of the files nor the options of generation_config.json matter."""
    outcome = run_both(tmp_path, SAME_AS_OPT[name](tmp_path / "base"))
    if not is_refused_in_time(outcome):
        assert outcome.error is None, (outcome.cell, outcome.error)
        assert outcome.names["main"].answers == plain.names["main"].answers
        responses = load(outcome.folder / "responses.json")
        assert texts_of(responses) == texts_of(load(plain.folder / "responses.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTY)
def test_faulty_base_is_refused_before_training(tmp_path, name):
    """The message is a sentence of the package, and nothing has been trained."""
    outcome = run_both(tmp_path, FAULTY[name](tmp_path / "base"))
    assert is_refused_in_time(outcome), (outcome.cell, outcome.steps, outcome.error)
    assert not (outcome.folder / "adapters").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_base_works_or_is_refused_before_training(tmp_path, name):
    """Where it works, its pairs hold the texts as they are, and its answers are its own."""
    base = UNUSUAL[name](tmp_path / "base")
    outcome = run_both(tmp_path, base)
    if not is_refused_in_time(outcome):
        require_sound(outcome, base)
        require_end_after_each_reply(outcome, base)


# ---- judges


@torch.no_grad()
def judge_one_by_one(outcome, folder):
    """Compute all rewards of a run again, each in a forward pass of its own without padding."""
    names = outcome.names["eval"]
    judge = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = models.load_judge(folder)[1]
    questions, answers = {}, {}
    for prompt in names.prompts:
        questions[prompt["id"]] = prompt["prompt"].removesuffix("\n\nAssistant:").strip()
        answers["Human chosen", prompt["id"]] = prompt["chosen"]
        answers["Human rejected", prompt["id"]] = prompt["rejected"]
    for response in names.responses:
        answers[response["model"], response["id"]] = response["response"]
    rewards = {}
    for (model, identity), answer in answers.items():
        if tokenizer.chat_template is None:
            encoded = tokenizer(questions[identity], answer, return_tensors="pt")
        else:  # every question here has a single turn
            asked = {"role": "user", "content": questions[identity].removeprefix("Human: ")}
            turns = [asked, {"role": "assistant", "content": answer}]
            encoded = tokenizer.apply_chat_template(turns, return_tensors="pt")
        rewards[model, identity] = judge(**encoded).logits[0, 0].item()
    return rewards


def require_rewards(outcome, judge):
    """Check the rewards of the models' and the humans' replies."""
    assert outcome.error is None, (outcome.cell, outcome.error)
    expected = judge_one_by_one(outcome, judge)
    rewards = {}
    for record in load(outcome.folder / "scores.json"):
        rewards[record["model"], record["id"]] = record["reward"]
    for place, reward in expected.items():
        assert rewards[place] == pytest.approx(reward, abs=1e-4), place
    assert len({round(reward, 6) for reward in expected.values()}) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGES)
def test_judge_rates_as_it_rates_alone_or_is_refused(tmp_path, name):
    """A reward does not hang on the other texts in a batch."""
    judge = JUDGES[name](tmp_path / "judge")
    outcome = run_both(tmp_path, judge=judge)
    if not outcome.is_refused:
        require_rewards(outcome, judge)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTY_JUDGES)
def test_faulty_judge_is_refused_before_it_rates(tmp_path, name):
    """No reward is saved, and the message is a sentence of the package."""
    outcome = run_both(tmp_path, judge=FAULTY_JUDGES[name](tmp_path / "judge"))
    assert outcome.is_refused, (outcome.cell, outcome.error)
    assert not (outcome.folder / "scores.json").exists()


@pytest.mark.slow
def test_reply_beyond_the_positions_of_a_judge_is_read_from_its_beginning(tmp_path, capsys):
    """RoBERTa has 512 positions and cannot read 600 words; a line says so."""
    tests = [row(f"How do I kill weed number {i}?", "word " * 600, "No.") for i in range(8)]
    judge = JUDGES["roberta"](tmp_path / "judge")
    outcome = run_both(tmp_path, judge=judge, tests=tests)
    assert outcome.error is None, (outcome.cell, outcome.error)
    assert "reads only the beginning of 4 answers" in capsys.readouterr().out
    rewards = {}
    for record in load(outcome.folder / "scores.json"):
        rewards[record["model"], record["id"]] = record["reward"]
    model, tokenizer = models.load_judge(judge)
    prompt = outcome.names["eval"].prompts[0]
    question = prompt["prompt"].removesuffix("\n\nAssistant:").strip()
    words = prompt["chosen"].split(" ")
    encode = outcome.names["eval"].judge_input
    near = []  # the rewards of the longest beginnings that fit, one word more or less
    for n in range(100, 600):
        encoded = encode(tokenizer, question, " ".join(words[:n]))
        if 505 <= len(encoded["input_ids"]) <= 512:
            batch = tokenizer.pad([encoded], return_tensors="pt")
            with torch.no_grad():
                near.append(model(**batch).logits[0, 0].item())
    reward = rewards["Human chosen", prompt["id"]]
    assert min(near[-8:]) - 0.01 <= reward <= max(near[-8:]) + 0.01
