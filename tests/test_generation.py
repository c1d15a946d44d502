"""Responses: greedy, the same in batches as alone, ended where they should be; how likely they are."""

import copy

import numpy as np
import pytest
import torch
import transformers
from conftest import CONVERSATIONS, MODELS, dialogue

from posttrain import generation, models
from posttrain.generation import read_completion
from posttrain.hh import TURN


def ids_of(tokenizer, text):
    """Return the tokens of a text, without BOS."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


ASKED = [{"id": "harmful-00", "kind": "harmful", "prompt": "A"}, {"id": "helpful-00", "kind": "helpful", "prompt": "B"}]
ANSWERED = [{"id": prompt["id"], "model": "Base", "response": "C"} for prompt in ASKED]


@pytest.mark.parametrize(("prompts", "responses", "said"), [
    (ASKED, [ANSWERED[0] | {"response": None}, ANSWERED[1]], r"responses\.json: 0\.response: .*valid string"),
    (ASKED, [ANSWERED[0] | {"model": "GPT"}], r"responses\.json: 0\.model: .*'Base'"),
    ([ASKED[0] | {"kind": "other"}], [], r"prompts\.json: 0\.kind: .*'harmful' or 'helpful'"),
    (["A"], [], r"prompts\.json: 0: .*dictionary"),
    ([ASKED[0] | {"kind": "helpful"}], [], "the id 'harmful-00' is not that of a helpful prompt"),
    (ASKED, [one | {"model": "SFT"} for one in ANSWERED], "no responses of the model Base"),
    (ASKED, ANSWERED[:1], "Base has not one response to each prompt of prompts.json, see helpful-00"),
    (ASKED[:1], ANSWERED, "see helpful-00"), (ASKED, [*ANSWERED, ANSWERED[0]], "see harmful-00")])
def test_records_from_elsewhere_must_fit(prompts, responses, said):
    """The file, the record and what is wrong with it; every model answers every prompt once."""
    with pytest.raises(ValueError, match=said):
        generation.require_fitting(prompts, responses)


def test_records_that_fit():
    """Not all models need be there, and none at all is fine: rewards alone can be measured."""
    generation.require_fitting(ASKED, ANSWERED)
    generation.require_fitting([], [])


def test_completion_that_ends(tokenizer):
    """EOS ends a response and counts as a token; padding after it does not."""
    ids = ids_of(tokenizer, " Use a pot.")
    done = read_completion([*ids, tokenizer.eos_token_id, 1, 1], tokenizer, "\n\nHuman:")
    assert done == {"response": "Use a pot.", "finish": "eos", "tokens": len(ids) + 1}


def test_end_that_is_the_padding_too(tokenizer):
    """A base without padding pads with its end: the end counts once, and after a human turn not at all."""
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    ids, turn, end = ids_of(padded, " Use a pot."), ids_of(padded, " Use a pot.\n\nHuman:"), padded.eos_token_id
    assert read_completion([*ids, end, end], padded, "\n\nHuman:")["tokens"] == len(ids) + 1
    assert read_completion([*turn, end, end], padded, "\n\nHuman:") == {
        "response": "Use a pot.", "finish": "turn", "tokens": len(turn)}


def test_completion_at_the_limit(tokenizer):
    """Without EOS and without a human turn the limit has ended the response."""
    ids = ids_of(tokenizer, " Use a pot.\n\nThen")
    done = read_completion(ids, tokenizer, "\n\nHuman:")
    assert done == {"response": "Use a pot.\n\nThen", "finish": "length", "tokens": len(ids)}


def test_completion_that_opens_a_human_turn(tokenizer):
    """A human turn is cut off with its marker, which counts as generated; padding does not."""
    ids = ids_of(tokenizer, " Use a pot.\n\nHuman:")
    done = read_completion([*ids, 1, 1, 1], tokenizer, "\n\nHuman:")
    assert done == {"response": "Use a pot.", "finish": "turn", "tokens": len(ids)}


def test_completion_without_a_stop_keeps_human_turns(tokenizer):
    """Where nothing stops at a human turn it stays in the response."""
    ids = ids_of(tokenizer, " A.\n\nHuman: B")
    done = read_completion([*ids, tokenizer.eos_token_id], tokenizer, None)
    assert done == {"response": "A.\n\nHuman: B", "finish": "eos", "tokens": len(ids) + 1}


def test_completion_that_ends_at_once_is_empty(tokenizer):
    """A response may be empty."""
    done = read_completion([tokenizer.eos_token_id, 1], tokenizer, "\n\nHuman:")
    assert done == {"response": "", "finish": "eos", "tokens": 1}


PROMPTS = [dialogue(*turns) + "\n\nAssistant:" for turns in (
    *CONVERSATIONS, ["Hi", "Hello.", "Tell me how to start running."], ["Help me kill the bees. Be quick."])]


@pytest.fixture(scope="module")
def base(hub):
    """The demo's base as a model to generate with."""
    return models.load_base(hub / "opt").eval()


def completions(model, tokenizer, prompts, limit, batch_size):
    """Return what `respond` gives for prompts under greedy decoding that stops at a human turn."""
    return generation.respond(model, tokenizer, prompts, batch_size, do_sample=False, max_new_tokens=limit,
                              stop_strings=[TURN])


def test_batches_give_what_one_at_a_time_gives(base, tokenizer):
    """Left padding and batching change no response, and the order of the prompts is kept."""
    together = completions(base, tokenizer, PROMPTS, 40, 4)
    alone = [completions(base, tokenizer, [prompt], 40, 1)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({done["response"] for done in together}) > 3


def test_responses_are_plain_greedy_ones(base, tokenizer):
    """`respond` gives what taking the likeliest token again and again gives, without a cache or batches."""
    for prompt, done in zip(PROMPTS, completions(base, tokenizer, PROMPTS, 12, 3)):
        ids, reply = tokenizer(prompt)["input_ids"], []
        while len(reply) < 12 and tokenizer.eos_token_id not in reply and "\n\nHuman:" not in tokenizer.decode(reply):
            with torch.no_grad():
                reply.append(base(torch.tensor([ids + reply])).logits[0, -1].argmax().item())
        assert done == read_completion(reply, tokenizer, TURN)


def test_limit_is_reported(base, tokenizer):
    """Responses cut after three tokens say so and count three."""
    for done in completions(base, tokenizer, PROMPTS, 3, 4):
        assert (done["finish"], done["tokens"]) == ("length", 3)


def test_generation_stops_at_a_human_turn(base, tokenizer):
    """A response that opens a human turn is stopped there, while another one in its batch goes on to its end."""
    long = " You just do it somehow, and then you do it again, and then you do it once more until you can."
    taught = {PROMPTS[0]: " Ok.\n\nHuman: And then? What would you say?", PROMPTS[1]: long + tokenizer.eos_token}
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        for prompt, reply in taught.items():
            ids = tokenizer(prompt + reply, return_tensors="pt")["input_ids"]
            model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    turned, ended = completions(model, tokenizer, list(taught), 80, 2)
    assert turned == {"response": "Ok.", "finish": "turn", "tokens": len(ids_of(tokenizer, " Ok.\n\nHuman:"))}
    assert ended == {"response": long.strip(), "finish": "eos", "tokens": len(ids_of(tokenizer, long)) + 1}


def test_response_logprobs_are_means_over_the_response(base, tokenizer):
    """Mean log-probability of the response's tokens, in batches as one at a time; none of an empty response."""
    prompts = ["\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: How do I bake bread at home?\n\nAssistant:", "\n\nHuman: Hi"]
    responses = [" Use a pot with a lid." + tokenizer.eos_token, " No.", ""]
    expected = []
    for prompt, response in zip(prompts[:2], responses):
        ids, start = tokenizer(prompt + response)["input_ids"], len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logps = base(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(np.mean([logps[i - 1, ids[i]].item() for i in range(start, len(ids))]))
    got = generation.mean_log_probabilities(base, tokenizer, prompts, responses, 2)
    assert got == pytest.approx([*expected, 0], abs=1e-4)


@pytest.mark.parametrize("kind", [transformers.GPT2Config, transformers.BloomConfig])
def test_response_logprobs_do_not_hang_on_the_batch(tokenizer, kind):
    """Neither where a model counts its positions from the first column, padding or not, nor where it takes none."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    model = transformers.AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **size)).eval()
    prompts = ["\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: How do I bake bread at home?\n\nAssistant:"]
    alone, together = (generation.mean_log_probabilities(model, tokenizer, prompts, [" No.", " Use a pot."], size)
                       for size in (1, 2))
    assert together == pytest.approx(alone, abs=1e-4)


def test_answers_of_the_models_are_their_own(notebook, evaluation, tokenizer):
    """Records of every model in the prompts' order; Base has moved from itself by nothing, the others have."""
    assert [record["model"] for record in evaluation.responses] == [name for name in MODELS for _ in range(8)]
    for name in MODELS:
        mine = [record for record in evaluation.responses if record["model"] == name]
        assert [record["id"] for record in mine] == [prompt["id"] for prompt in evaluation.prompts]
        ratios = [record["log_ratio"] for record in mine]
        assert (ratios == [0.0] * 8) == (name == "Base")
    loaded = models.load_models(notebook.run, notebook.base.folder)
    again = generation.answers(loaded, "SFT", tokenizer, evaluation.prompts, 3, **evaluation.decoding)
    for one, other in zip(again, (record for record in evaluation.responses if record["model"] == "SFT")):
        assert one["log_ratio"] == pytest.approx(other["log_ratio"], abs=1e-4)
        assert one | {"log_ratio": 0} == other | {"log_ratio": 0}
