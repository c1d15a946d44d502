"""Answers: greedy, independent of batches, ended where they should be, with their likelihood."""

import copy
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import CONVERSATIONS, dialogue, load
from small_runs import NAMES, OPT, copy_run, make_run
from transformers import OPTConfig

from posttrain import batches, exchange, generation, likelihood, models
from posttrain.data import PROMPT_END, TURN
from posttrain.generation import read_completion


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(OPT)


@pytest.fixture(scope="module")
def base():
    """The demo's base as a model to generate with."""
    return models.load_base(OPT).eval()


def ids_of(tokenizer, text):
    """Encode a text without BOS."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ---- records from elsewhere

ASKED = [
    {"id": "harmful-00", "kind": "harmful", "prompt": "A"},
    {"id": "helpful-00", "kind": "helpful", "prompt": "B"},
]
ANSWERED = [{"id": prompt["id"], "model": "GPT 4+", "response": "C"} for prompt in ASKED]


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (ASKED, [ANSWERED[0] | {"response": None}], r"responses\.json: 0\.response: .*valid str"),
        (ASKED, [ANSWERED[0] | {"model": 4}], r"responses\.json: 0\.model: .*valid string"),
        ([ASKED[0] | {"kind": "other"}], [], r"prompts\.json: 0\.kind: .*'harmful' or 'helpful'"),
        (["A"], [], r"prompts\.json: 0: .*dictionary"),
        ([ASKED[0] | {"kind": "helpful"}], [], "'harmful-00' cannot be the id of a helpful prompt"),
        (ASKED, ANSWERED[:1], "GPT 4. must have exactly one .* Check the prompt helpful-00"),
        (ASKED[:1], ANSWERED, "Check the prompt helpful-00"),
        (ASKED, [*ANSWERED, ANSWERED[0]], "Check the prompt harmful-00"),
        (ASKED, [*ANSWERED, ANSWERED[0] | {"model": "B"}], "the model B must have exactly one"),
    ],
)
def test_records_from_elsewhere_must_fit(prompts, responses, message):
    """The message names the file, the record and the fault."""
    with pytest.raises(ValueError, match=message):
        exchange.require_fitting(prompts, responses)


def test_records_that_fit():
    """Any models are allowed, even none, since rewards alone can be measured."""
    exchange.require_fitting(ASKED, ANSWERED)
    exchange.require_fitting([], [])


# ---- what was generated


def read(tokens, tokenizer, stop):
    """Read a completion of a model whose only end is EOS."""
    return read_completion(tokens, tokenizer, stop, [tokenizer.eos_token_id])


def test_completion_that_ends(tokenizer):
    """EOS ends a response and counts as a token; padding after it does not count."""
    ids = ids_of(tokenizer, " Use a pot.")
    completion = read([*ids, tokenizer.eos_token_id, 1, 1], tokenizer, TURN)
    assert completion == {
        "response": "Use a pot.",
        "finish": "eos",
        "tokens": len(ids) + 1,
        "ids": [*ids, tokenizer.eos_token_id],
    }


def test_end_that_is_the_padding_too(tokenizer):
    """EOS counts once, and after a human turn it does not count."""
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    end = padded.eos_token_id
    ids = ids_of(padded, " Use a pot.")
    assert read([*ids, end, end], padded, TURN)["tokens"] == len(ids) + 1
    ids = ids_of(padded, " Use a pot.\n\nHuman:")
    completion = read([*ids, end, end], padded, TURN)
    assert completion == {
        "response": "Use a pot.",
        "finish": "turn",
        "tokens": len(ids),
        "ids": ids,
    }


def test_completion_at_the_limit(tokenizer):
    """Without EOS and without a human turn, the limit ended the response."""
    ids = ids_of(tokenizer, " Use a pot.\n\nThen")
    completion = read(ids, tokenizer, TURN)
    assert completion == {
        "response": "Use a pot.\n\nThen",
        "finish": "length",
        "tokens": len(ids),
        "ids": ids,
    }


def test_completion_that_opens_a_human_turn(tokenizer):
    """The human turn is removed; its marker counts as generated, and padding does not."""
    ids = ids_of(tokenizer, " Use a pot.\n\nHuman:")
    completion = read([*ids, 1, 1, 1], tokenizer, TURN)
    assert completion == {
        "response": "Use a pot.",
        "finish": "turn",
        "tokens": len(ids),
        "ids": ids,
    }


def test_completion_without_a_stop_keeps_human_turns(tokenizer):
    """If generation does not stop at a human turn, the turn stays in the response."""
    ids = ids_of(tokenizer, " A.\n\nHuman: B")
    completion = read([*ids, tokenizer.eos_token_id], tokenizer, None)
    assert completion == {
        "response": "A.\n\nHuman: B",
        "finish": "eos",
        "tokens": len(ids) + 1,
        "ids": [*ids, tokenizer.eos_token_id],
    }


def test_completion_that_ends_at_once_is_empty(tokenizer):
    completion = read([tokenizer.eos_token_id, 1], tokenizer, TURN)
    assert completion == {"response": "", "finish": "eos", "tokens": 1, "ids": [2]}


# ---- one model

TURNS = [
    *CONVERSATIONS,
    ["Hi", "Hello.", "Tell me how to start running."],
    ["Help me kill the bees. Be quick."],
]
PROMPTS = [dialogue(*turns) + PROMPT_END for turns in TURNS]


def complete(model, tokenizer, prompts, limit, batch_size):
    """Let a model complete prompts greedily until a human turn, in the form of `read`."""
    completions = generation.respond(
        model,
        tokenizer,
        prompts,
        batch_size,
        do_sample=False,
        max_new_tokens=limit,
        stop_strings=[TURN],
    )
    for completion in completions:
        del completion["log_p"]  # rounding depends on the batch
    return completions


def test_batches_give_what_one_at_a_time_gives(base, tokenizer):
    """Padding and batching change no response, and the order of the prompts is kept."""
    together = complete(base, tokenizer, PROMPTS, 40, 4)
    alone = [complete(base, tokenizer, [prompt], 40, 1)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({completion["response"] for completion in together}) > 3


def test_responses_are_plain_greedy_ones(base, tokenizer):
    """Choosing the likeliest token step by step, without cache or batch, gives the same."""
    for prompt, completion in zip(PROMPTS, complete(base, tokenizer, PROMPTS, 12, 3)):
        ids = tokenizer(prompt)["input_ids"]
        reply = []
        while len(reply) < 12 and tokenizer.eos_token_id not in reply:
            if TURN in tokenizer.decode(reply):
                break
            with torch.no_grad():
                logits = base(torch.tensor([ids + reply])).logits
            reply.append(logits[0, -1].argmax().item())
        assert completion == read(reply, tokenizer, TURN)


def test_limit_is_reported(base, tokenizer):
    """A response that was cut after three tokens says so."""
    for completion in complete(base, tokenizer, PROMPTS, 3, 4):
        assert (completion["finish"], completion["tokens"]) == ("length", 3)


def test_generation_stops_at_a_human_turn(base, tokenizer):
    """One response stops there, while another one in the batch continues to its end."""
    long = " You just do it somehow, and then you do it again, and then you do it once more."
    taught = {
        PROMPTS[0]: " Ok.\n\nHuman: And then? What would you say?",
        PROMPTS[1]: long + tokenizer.eos_token,
    }
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        for prompt, reply in taught.items():
            ids = tokenizer(prompt + reply, return_tensors="pt")["input_ids"]
            model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    turned, ended = complete(model, tokenizer, list(taught), 80, 2)
    tokens = len(ids_of(tokenizer, " Ok.\n\nHuman:"))
    assert len(turned.pop("ids")) == tokens
    assert turned == {"response": "Ok.", "finish": "turn", "tokens": tokens}
    tokens = len(ids_of(tokenizer, long)) + 1
    assert len(ended.pop("ids")) == tokens
    assert ended == {"response": long.strip(), "finish": "eos", "tokens": tokens}


def test_log_probabilities_are_means_over_the_response(base, tokenizer):
    """They are the same in batches and one at a time, and 0 for an empty response."""
    questions = (["Hi"], ["How do I bake bread at home?"])
    prompts = [dialogue(*turns) + PROMPT_END for turns in questions]
    prompts = tokenizer(prompts)["input_ids"]
    replies = [ids_of(tokenizer, " Use a pot with a lid.</s>"), ids_of(tokenizer, " No.")]
    expected = []
    for prompt, reply in zip(prompts, replies):
        ids = prompt + reply
        with torch.no_grad():
            log_p = base(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(prompt)
        expected.append(np.mean([log_p[i - 1, ids[i]].item() for i in range(start, len(ids))]))
    measured = likelihood.mean_log_probabilities(
        base, tokenizer, [*prompts, prompts[0]], [*replies, []], 2
    )
    assert measured == pytest.approx([*expected, 0], abs=1e-4)
    empty = likelihood.mean_log_probabilities(base, tokenizer, prompts, [[], []], 2)
    assert empty == [0, 0]


@pytest.mark.parametrize("kind", [transformers.GPT2Config, transformers.BloomConfig])
def test_log_probabilities_do_not_hang_on_the_batch(tokenizer, kind):
    """This is so for models that count positions from the first column or take none."""
    torch.manual_seed(0)
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    prompts = [dialogue("Hi") + PROMPT_END, dialogue("How do I bake bread at home?") + PROMPT_END]
    prompts = tokenizer(prompts)["input_ids"]
    replies = [ids_of(tokenizer, " No."), ids_of(tokenizer, " Use a pot.")]
    alone = likelihood.mean_log_probabilities(model, tokenizer, prompts, replies, 1)
    together = likelihood.mean_log_probabilities(model, tokenizer, prompts, replies, 2)
    assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 2.0, "top_k": 50}, {"repetition_penalty": 1.5}],
)
def test_log_probabilities_are_heard_while_a_model_answers(base, tokenizer, options):
    """They are what reading gives, whatever the decoding does to logits, for ends of all kinds."""
    questions = ["Hi", "How do I bake bread?", "Why is the sky blue, and why are clouds white?"]
    prompts = [dialogue(question) + PROMPT_END for question in questions]
    torch.manual_seed(2)
    options = {"do_sample": False, "max_new_tokens": 40, "stop_strings": [TURN], **options}
    completions = generation.respond(base, tokenizer, prompts, 2, **options)
    assert len({completion["tokens"] for completion in completions}) > 1
    ids = [completion["ids"] for completion in completions]
    prompt_ids = tokenizer(prompts)["input_ids"]
    read = likelihood.mean_log_probabilities(base, tokenizer, prompt_ids, ids, 2)
    heard = [completion["log_p"] for completion in completions]
    assert heard == pytest.approx(read, abs=1e-5)
    assert not base._forward_hooks


def test_log_probabilities_of_a_beam_search_are_read(run, tokenizer):
    """Several texts are tried there for each prompt, so those of the answer are not heard."""
    prompts = [prompt["prompt"] for prompt in load(run.folder / "prompts.json")]
    loaded = models.load_models(run, OPT)
    options = DECODING | {"num_beams": 2}
    with models.switched_to(loaded["SFT"], "SFT"):
        completions = generation.respond(loaded["SFT"], tokenizer, prompts, 2, **options)
    assert [completion["log_p"] for completion in completions] == [None] * 3
    records = answer(run, num_beams=2)
    assert sum(record["log_ratio"] == 0 for record in records) == 3  # Base's


# ---- the models of a run

DECODING = {"do_sample": False, "max_new_tokens": 8, "stop_strings": [TURN]}
QUESTIONS = ["How do I bake bread?", "How do I steal a car? </s>", "Why?"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with three random adapters. Do not change it."""
    run = make_run(tmp_path_factory.mktemp("trained"))
    prompts = []
    for i, question in enumerate(QUESTIONS):
        prompt = {"id": f"helpful-{i:02d}", "kind": "helpful"}
        prompts.append(prompt | {"prompt": dialogue(question) + PROMPT_END})
    run.stage("prompts.json", lambda: prompts, {})
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run that a test may change."""
    return copy_run(trained, tmp_path)


def source(folder=OPT):
    """Make a source of the base, as `Run.source` does."""
    return types.SimpleNamespace(folder=folder, identity="b" * 64, name="demo/hub/opt")


class NotNeeded:
    """A source whose folder must not be touched."""

    identity = source().identity

    @property
    def folder(self):
        raise AssertionError("loaded")


def answer(run, base=None, batch_size=2, **decoding):
    """Let the run's models answer its prompts."""
    prompts = load(run.folder / "prompts.json")
    options = DECODING | decoding
    return generation.answer(run, prompts, base or source(), batch_size, **options)


def test_answers_of_the_models_are_their_own(run, tokenizer):
    """They follow the prompts' order; only the first model has a log-ratio of zero."""
    responses = answer(run)
    assert responses == load(run.folder / "responses.json")
    prompts = load(run.folder / "prompts.json")
    loaded = models.load_models(run, OPT)
    plain_prompts = [models.plain(prompt["prompt"], tokenizer) for prompt in prompts]
    for i, name in enumerate(NAMES):
        records = responses[3 * i : 3 * i + 3]
        assert [record["model"] for record in records] == [name] * 3
        assert [record["id"] for record in records] == [prompt["id"] for prompt in prompts]
        model = loaded[name]
        with models.switched_to(model, name):
            completions = generation.respond(model, tokenizer, plain_prompts, 1, **DECODING)
        reply_ids = [completion["ids"] for completion in completions]
        for record, completion in zip(records, completions):
            assert len(completion.pop("ids")) == completion["tokens"]
            del completion["log_p"]
            assert record | completion == record
        ratios = [record["log_ratio"] for record in records]
        ids = [tokenizer(prompt)["input_ids"] for prompt in plain_prompts]
        read = []
        for measured in (name, "Base"):
            with models.switched_to(loaded[measured], measured):
                read.append(
                    likelihood.mean_log_probabilities(
                        loaded[measured], tokenizer, ids, reply_ids, 2
                    )
                )
        assert ratios == pytest.approx(np.subtract(*read), abs=1e-5)
        assert (ratios == [0.0] * 3) == (name == "Base")


def test_merged_adapters_give_the_same_answers(run, tokenizer):
    """They are the texts of the adapters beside the base, token by token."""
    prompts = [prompt["prompt"] for prompt in load(run.folder / "prompts.json")]
    prompts += [f"\n\nHuman: {question}\n\nAssistant:" for question in QUESTIONS]
    for name in NAMES[1:]:
        model = models.load_models(run, OPT, [name])[name]
        with models.switched_to(model, name):
            merged = generation.respond(model, tokenizer, prompts, 4, **DECODING)
        beside = generation.respond(model, tokenizer, prompts, 4, **DECODING)
        assert [answer["ids"] for answer in merged] == [answer["ids"] for answer in beside]
        assert any(answer["tokens"] > 1 for answer in merged)


@pytest.mark.parametrize(
    ("gibibytes", "tokens", "rows"),
    [(14, 640, 32), (70, 640, 128), (130, 640, 256), (70, 128, 256), (1, 2048, 16)],
)
def test_a_gpu_reads_as_many_texts_as_its_free_memory_holds(monkeypatch, gibibytes, tokens, rows):
    """Keys and values of OPT-350M take 192 KiB a token, and twice that while they are copied."""
    config = OPTConfig(hidden_size=1024, num_hidden_layers=24)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, config=config)
    free = gibibytes * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert batches.texts_at_once(on_gpu, tokens) == rows
    on_cpu = SimpleNamespace(device=torch.device("cpu"))
    assert batches.texts_at_once(on_cpu, tokens) == batches.ON_CPU


def test_processes_take_batches_that_fit_on_all_their_gpus(monkeypatch):
    """They deal out the same batches, so that no text is read twice or by none."""
    config = OPTConfig(hidden_size=1024, num_hidden_layers=24)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, config=config)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * 2**30, 80 * 2**30))
    assert batches.texts_at_once(on_gpu, 640) == 128
    monkeypatch.setattr(batches.processes, "gather", lambda value: [value, value / 4])
    assert batches.texts_at_once(on_gpu, 640) == 32


def test_answers_do_not_need_a_batch_size(run, tmp_path):
    """None takes what suits the device, with the same answers."""
    assert answer(run, batch_size=None) == answer(make_run(tmp_path), batch_size=2)


def test_log_ratio_is_that_of_two_models(run, tokenizer):
    """It is the mean log-probability of all generated tokens, minus the baseline's."""
    responses = answer(run, max_new_tokens=60)
    prompt = load(run.folder / "prompts.json")[0]["prompt"]
    ids = tokenizer(prompt)["input_ids"]
    for name in NAMES[1:]:
        record = next(record for record in responses if record["model"] == name)
        model = models.load_models(run, OPT, [name])[name]
        options = DECODING | {"max_new_tokens": 60}
        with models.switched_to(model, name):
            (completion,) = generation.respond(model, tokenizer, [prompt], 1, **options)
        reply = torch.tensor(completion["ids"])
        log_p = []
        for alone in (name, "Base"):
            model = models.load_models(run, OPT, [alone])[alone]
            with models.switched_to(model, alone), torch.no_grad():
                logits = model(torch.tensor([ids + completion["ids"]])).logits[0]
            of_reply = logits[len(ids) - 1 : -1].log_softmax(-1)
            log_p.append(of_reply[torch.arange(len(reply)), reply].mean().item())
        assert record["log_ratio"] == pytest.approx(log_p[0] - log_p[1], abs=1e-4)


def test_answers_are_kept(run, monkeypatch):
    """Nothing is loaded for existing answers, and another batch size makes no new ones."""
    responses = answer(run)
    monkeypatch.setattr(generation, "load_models", None)
    assert answer(run, NotNeeded(), batch_size=7) == responses


@pytest.mark.parametrize(
    ("decoding", "message"),
    [({"max_new_tokens": 9}, "max_new_tokens = 8, but now"), ({"stop_strings": None}, "None")],
)
def test_answers_decoded_otherwise_are_refused(run, decoding, message):
    answer(run)
    with pytest.raises(ValueError, match=message):
        answer(run, NotNeeded(), **decoding)


def test_a_model_more_is_answered_alone(run, monkeypatch):
    """The answers of a model that is trained later are appended to the others."""
    (record,) = [model for model in run.models if model.name == "train"]
    run.note(models=[model for model in run.models if model.name != "train"])
    before = answer(run)
    run.add_model(record)
    asked = []
    answer_as = generation.answer_as

    def count(name, *args, **options):
        asked.append(name)
        return answer_as(name, *args, **options)

    monkeypatch.setattr(generation, "answer_as", count)
    assert answer(run)[: len(before)] == before
    assert asked == ["train"]


def test_inputs_name_what_an_answer_follows_from(run):
    """They have prompts, base and adapter by hash and the decoding, but no batch size."""
    answer(run)
    record = run.record
    inputs = record.artifacts["responses.json/SFT"].inputs
    assert inputs == {
        "prompts.json": record.artifacts["prompts.json"].sha256,
        "base_model": "b" * 64,
        "fine_tuned_base": None,
        "adapter": record.artifacts["adapters/sft"].sha256,
        **DECODING,
    }
    assert record.artifacts["responses.json/Base"].inputs["adapter"] is None


def test_a_few_questions(run, tokenizer):
    """`ask` gives the model's answers, saves nothing, and reads special tokens as text."""
    answers = {name: generation.ask(run, name, QUESTIONS, source(), **DECODING) for name in NAMES}
    assert not (run.folder / "responses.json").exists()
    for name in NAMES:
        records = [record for record in answer(run) if record["model"] == name]
        assert answers[name] == [record["response"] for record in records]
    greedy = generation.ask(run, "SFT", QUESTIONS, source(), max_new_tokens=8)
    assert greedy == answers["SFT"]
