"""One's own questions to the models of a run: in Python, on the command line and in the form."""

import html
import io
import json
import re
import shutil
import sys

import pexpect
import pytest
import small_models
import torch
from conftest import MODELS, ROOT, command, contents_of, execute, load, places, states
from small_runs import OPT
from test_chat import save_chat_base

from posttrain import dialogue, dialogue_form, dialogue_terminal, generation, models
from posttrain.__main__ import main
from posttrain.dialogue import Dialogue, Reply, open_dialogue
from posttrain.notebooks import read_functions
from posttrain.record import Model, source_of
from posttrain.rewards import compute_rewards
from posttrain.run import Run
from posttrain.transcripts import TURN

QUESTION = "How do I bake bread?"
NEXT = "And rye?"
REFUSED = {
    "empty": ("", "The question is empty"),
    "blank": (" \n ", "The question is empty"),
    "escape sequence": ("Why \x1b[31m?", "contains control characters"),
    "half a character": ("Why \udcff?", "contains control characters"),
    "human turn": (f"Why?{TURN} And then?", "contains the marker 'Human:'"),
    "assistant turn": ("Why?\n\nAssistant: So.", "contains the marker 'Assistant:'"),
    "too long": ("Why is that? " * 400, "would have .* tokens, but only .* fit beside an answer"),
}


def open_run(folder):
    """Open the demo run of a folder, such as `demo_run` or `copied_run`."""
    return Run(folder.folder / "results", "demo")


@pytest.fixture(scope="module")
def asked(demo_run):
    """A conversation with the demo run, which every test begins anew."""
    opened = open_dialogue(open_run(demo_run))
    yield opened
    opened.close()


@pytest.fixture
def talking(asked):
    """A new conversation with the demo run, without random numbers drawn."""
    asked.start_over()
    asked._seed = 0
    return asked


def answers_of(replies):
    return {reply.model: reply.answer for reply in replies}


@pytest.fixture(scope="module")
def two_answers(asked):
    """What the models answer to a question and to the next one in the same conversation."""
    asked.start_over()
    return [answers_of(asked.ask(QUESTION)), answers_of(asked.ask(NEXT))]


def change_judge(run, **entry):
    """Let a run's record name another judge."""
    run.note(sources={"reward_model": {"commit": None, "sha256": None} | entry})


# ---- answers


def test_first_turn_is_answered_and_judged_as_in_the_evaluation(talking, demo_run):
    """The prompts of prompts.json that have one turn, asked by hand."""
    prompts = load(demo_run.run / "prompts.json")
    single = [prompt for prompt in prompts if prompt["prompt"].count(TURN) == 1][:4]
    assert len(single) == 4
    for prompt in single:
        talking.start_over()
        question = prompt["prompt"].removeprefix(f"{TURN} ").removesuffix("\n\nAssistant:")
        replies = talking.ask(question)
        assert [reply.model for reply in replies] == MODELS
        for file, field in {"responses": "response", "scores": "reward"}.items():
            rows = load(demo_run.run / f"{file}.json")
            rows = [row for row in rows if row["id"] == prompt["id"] and row["model"] in MODELS]
            known = [row[field] for row in rows]
            if file == "responses":
                assert [reply.answer for reply in replies] == known
                assert [reply.finish for reply in replies] == [row["finish"] for row in rows]
            else:
                assert [reply.reward for reply in replies] == pytest.approx(known, abs=1e-4)


def test_each_model_goes_on_from_its_own_answers(talking, demo_run):
    first = answers_of(talking.ask(QUESTION))
    assert len(set(first.values())) > 1
    second = talking.ask(NEXT)
    run, tokenizer = open_run(demo_run), models.load_tokenizer(OPT)
    loaded = models.load_models(run, OPT)
    judge, judge_tokenizer = models.load_judge(small_models.HUB / "reward-model")
    for reply in second:
        assert (reply.turn, reply.question) == (2, NEXT)
        before = f"{TURN} {QUESTION}\n\nAssistant: {first[reply.model]}".rstrip()
        prompt = {"id": "a", "prompt": f"{before}{TURN} {NEXT}\n\nAssistant:"}
        (expected,) = generation.answer_as(
            reply.model, loaded, tokenizer, [prompt], 1,
            do_sample=False, max_new_tokens=48, stop_strings=[TURN],
        )  # fmt: skip
        assert reply.answer == expected["response"]
        question = f"{before}{TURN} {NEXT}".strip()
        read = judge_tokenizer(question, reply.answer)
        (reward,) = compute_rewards(judge, judge_tokenizer, [read], 512)
        assert reply.reward == pytest.approx(reward, abs=1e-4)


def test_conversations_in_the_chat_template(tmp_path):
    """The prompts of both turns are those of the template, which main.ipynb's `ask` writes too."""
    folder = save_chat_base(tmp_path / "base", "Qwen2.5")
    run = Run(tmp_path / "results", "chat")
    run.note(preset="demo", settings={"training": {"format": "chat"}})
    run.add_model(Model(name="Base", base=str(folder), adapter=None))
    base = run.source("base_model", str(folder))
    talking = open_dialogue(run)
    (reply,) = talking.ask(QUESTION)
    assert [reply.answer] == generation.ask(run, "Base", [QUESTION], base, max_new_tokens=48)
    (second,) = talking.ask(NEXT)
    asked = f"{QUESTION}\n\nAssistant: {reply.answer}{TURN} {NEXT}"
    tokenizer = models.load_tokenizer(folder)
    prompt = f"{TURN} {asked}\n\nAssistant:"
    assert "<|im_start|>" in tokenizer.decode(
        generation.encode_prompts([prompt], tokenizer, "prompts", True)[0]
    )
    (expected,) = generation.respond(
        models.load_base(folder), tokenizer, [prompt], 1, chat=True,
        do_sample=False, max_new_tokens=48, stop_strings=[TURN],
    )  # fmt: skip
    assert second.answer == expected["response"]


def test_sampled_answers_follow_from_their_seed(talking):
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        talking.start_over()
        talking._seed = 0
        first = talking.ask(QUESTION, sample=True)
        talking.start_over()
        second = talking.ask(QUESTION, sample=True)
        assert [reply.seed for reply in first + second] == [0] * 4 + [1] * 4
        runs.append([answers_of(first), answers_of(second)])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]
    assert torch.equal(torch.get_rng_state(), state)
    talking.start_over()
    assert {reply.seed for reply in talking.ask(QUESTION)} == {None}


def test_special_tokens_are_read_as_text(talking, monkeypatch):
    prompts = []

    def respond(model, tokenizer, texts, *args, **options):
        prompts.extend(texts)
        return generation.respond(model, tokenizer, texts, *args, **options)

    monkeypatch.setattr(dialogue, "respond", respond)
    replies = talking.ask("Is </s> the end?")
    assert {reply.question for reply in replies} == {"Is </s> the end?"}
    assert prompts == [f"{TURN} Is < /s> the end?\n\nAssistant:"] * 4


@pytest.mark.parametrize("name", REFUSED)
def test_refused_question_changes_nothing(two_answers, talking, name):
    """The next one is answered as if it had not been asked, in the second turn too."""
    question, message = REFUSED[name]
    answered = []
    for good in (QUESTION, NEXT):
        with pytest.raises(ValueError, match=message):
            talking.ask(question)
        answered.append(answers_of(talking.ask(good)))
    assert answered == two_answers


def test_the_longest_question_fits_exactly(talking):
    """Prompt, answer and the slack fill the positions; one token more is refused."""
    tokenizer = models.load_tokenizer(OPT)
    room = load(OPT / "config.json")["max_position_embeddings"] - 48 - generation.SLACK
    question = "a" + " a" * (room - len(tokenizer(f"{TURN} a\n\nAssistant:")["input_ids"]))
    assert len(tokenizer(f"{TURN} {question}\n\nAssistant:")["input_ids"]) == room
    assert talking.ask(question)[0].turn == 1
    talking.start_over()
    with pytest.raises(ValueError, match=f"would have {room + 1} tokens, but only {room} fit"):
        talking.ask(question + " a")


def test_long_conversation_ends_with_a_remedy(talking):
    with pytest.raises(ValueError, match="or start over") as refusal:
        for _ in range(100):
            talking.ask("Why is that so, and what would you do in my place? " * 5)
    assert re.search(f"conversation with ({'|'.join(map(re.escape, MODELS))})", str(refusal.value))
    talking.start_over()
    assert talking.ask(QUESTION)[0].turn == 1


def test_interrupted_answers_change_nothing(two_answers, talking, monkeypatch):
    """Ctrl-C at the second model, while its adapter is merged into the base's weights."""
    first = answers_of(talking.ask(QUESTION))

    def respond(*args, **options):
        if args[4] == "SFT":
            raise KeyboardInterrupt
        return generation.respond(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(dialogue, "respond", respond)
        with pytest.raises(KeyboardInterrupt):
            talking.ask(NEXT)
    assert talking._models == {}  # which are loaded again, whatever was left in their weights
    assert [first, answers_of(talking.ask(NEXT))] == two_answers


# ---- the judge


def test_the_judge_reads_what_the_notebook_says(talking, demo_run):
    """The functions are those of eval.ipynb, whose source the run's record has."""
    inputs = load(demo_run.run / "run.json")["artifacts"]["scores.json/SFT"]["inputs"]
    assert source_of(talking._inputs[0]) == inputs["judge_input"]
    names = ("conversation_input", "judge_input")
    assert [function.__name__ for function in read_functions("eval.ipynb", names, {})] == [*names]


def test_judge_with_a_chat_template_reads_a_conversation(copied_run, tmp_path):
    run = open_run(copied_run)
    folder = small_models.save_chat_judge(tmp_path / "judge")
    change_judge(run, name=str(folder))
    talking = open_dialogue(run)
    replies = talking.ask(QUESTION)
    judge, tokenizer = models.load_judge(folder)
    for reply in replies:
        turns = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": reply.answer},
        ]
        (reward,) = compute_rewards(
            judge, tokenizer, [tokenizer.apply_chat_template(turns)], 512
        )
        assert reply.reward == pytest.approx(reward, abs=1e-4)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"name": "some/judge", "commit": "0" * 40}, "neither a folder nor in the hub's cache"),
        ({"name": "no/such", "commit": None}, "neither a folder nor in the hub's cache"),
        ({"name": "~/a judge"}, "neither a folder nor in the hub's cache"),
        ({"name": "demo/hub/reward-model", "sha256": "0" * 64}, "has changed since it judged"),
        ({"name": "demo/hub/opt"}, "has 2 labels"),
    ],
)
def test_without_a_judge_the_answers_have_no_rewards(copied_run, talking, entry, reason):
    run = open_run(copied_run)
    change_judge(run, **entry)
    lonely = open_dialogue(run)
    replies = lonely.ask(QUESTION)
    assert answers_of(replies) == answers_of(talking.ask(QUESTION))
    assert {reply.reward for reply in replies} == {None}
    assert lonely.without_rewards.startswith("The answers have no rewards. ")
    assert reason in lonely.without_rewards


# ---- runs that cannot be asked


def test_changed_adapter_is_refused_until_it_is_restored(copied_run):
    run = open_run(copied_run)
    path = run.path("adapters/dpo/adapter_model.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    talking = open_dialogue(run)
    with pytest.raises(ValueError, match="adapters/dpo is missing, was changed, or is not the one"):
        talking.ask(QUESTION)
    path.write_bytes(content)
    assert len(talking.ask(QUESTION)) == 4


def test_a_run_that_is_trained_in_part_answers_with_what_it_has(copied_run):
    run = open_run(copied_run)
    shutil.rmtree(run.folder)
    run.note(preset="demo")
    with pytest.raises(ValueError, match="has no models yet. Run main.ipynb with RUN = 'demo'"):
        open_dialogue(run)
    run.add_model(Model(name="Base", base="demo/hub/opt", adapter=None))
    run.source("base_model", "demo/hub/opt")
    before = states(run.folder, "run.json")
    (reply,) = open_dialogue(run).ask(QUESTION)
    assert reply.model == "Base"
    assert reply.reward is not None  # by the preset's judge
    assert states(run.folder, "run.json") == before


def test_a_run_without_its_adapters_is_refused_before_anything_is_loaded(copied_run, capsys):
    run = open_run(copied_run)
    opened = open_dialogue(run)
    given = (opened._evaluation, opened._base, opened._judge_source, *opened._inputs)
    shutil.rmtree(run.path("adapters/dpo"))
    with pytest.raises(ValueError, match="adapters/dpo is missing, so DPO cannot be asked"):
        open_dialogue(run)
    assert dialogue_form.show_form(run, *given) is None
    assert "come without their models" in " ".join(capsys.readouterr().out.split())


def test_imported_run_has_nobody_to_ask():
    run = Run(ROOT / "results", "published")
    with pytest.raises(ValueError, match="imported results, so there is no model to ask"):
        open_dialogue(run)


def test_several_processes_are_refused(demo_run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="Questions are asked in one process"):
        dialogue.require_models(open_run(demo_run))


# ---- what is kept


def test_nothing_is_written_unless_it_is_asked_for(talking, demo_run):
    before = contents_of(demo_run.folder)
    talking.ask(QUESTION)
    talking.ask(NEXT, sample=True)
    assert contents_of(demo_run.folder) == before


def test_kept_conversations_follow_each_other(copied_run):
    run = open_run(copied_run)
    before = states(run.folder, *(path.name for path in run.folder.glob("[!.]*")))
    for number in (1, 3):
        talking = open_dialogue(run)
        talking.keep(talking.ask(QUESTION))
        talking.keep(talking.ask(NEXT, sample=True))
        talking.start_over()
        talking.ask("Is this kept?")
        talking.start_over()
        talking.keep(talking.ask(QUESTION))
        kept = load(run.folder / "chat.json")
        assert max(row["conversation"] for row in kept) == number + 1
    assert [row["model"] for row in kept] == MODELS * 6
    numbers = [(row["conversation"], row["turn"]) for row in kept[::4]]
    assert numbers == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1)]
    assert kept[4]["seed"] == 0
    assert kept[0] == {
        "conversation": 1, "turn": 1, "question": QUESTION, "model": "Base", "seed": None,
        "answer": kept[0]["answer"], "finish": kept[0]["finish"], "reward": kept[0]["reward"],
    }  # fmt: skip
    assert all(isinstance(row["reward"], float) for row in kept)
    (run.folder / "chat.json").rename(copied_run.folder / "aside.json")
    names = [path.name for path in run.folder.glob("[!.]*")]
    assert states(run.folder, *names) == before


def test_what_is_kept_is_not_written_over(copied_run):
    """A damaged file, another process that writes, and a run of the repository are refused."""
    run = open_run(copied_run)
    talking = open_dialogue(run)
    replies = talking.ask(QUESTION)
    (run.folder / "chat.json").write_text('[{"turn": 1}]')
    with pytest.raises(ValueError, match="chat.json is damaged"):
        talking.keep(replies)
    assert (run.folder / "chat.json").read_text() == '[{"turn": 1}]'
    talking.run = Run(ROOT / "results", "example")
    with pytest.raises(ValueError, match="is a run of the repository, which must not be"):
        talking.keep(replies)


# ---- the command line


def chat(folder, lines, *given):
    """Pipe lines into the command."""
    return command("chat", "RUN=demo", f"RESULTS={folder.folder / 'results'}", *given, input=lines)


def test_command_answers_scripted_lines(demo_run, talking):
    """Each bad line is answered by a sentence, and the next question works."""
    before = contents_of(demo_run.folder)
    bad = "".join(f"{line}\n" for line in ("", "/foo", "Why \x1b[31m?", "Why is that so? " * 200))
    lines = f"{QUESTION}\n{bad}{NEXT}\n/sample\n{NEXT}\n/greedy\n/new\n{QUESTION}\n/quit\n{NEXT}\n"
    done = chat(demo_run, lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 3250  # the long line is repeated as it is
    parts = done.stdout.split("\n> ")
    assert parts[0].split("\n")[0].startswith("Type a question. Base, SFT, DPO and SFT+DPO")
    assert "/new starts over" in " ".join(parts[0].split())
    expected = [
        QUESTION, "\nThe question is empty. Type one.", "/foo\nThere is no command /foo. /new",
        "Why \\x1b[31m?\nThe question contains control characters", "Why is that so?", NEXT,
        "/sample\n", NEXT, "/greedy\n", "/new\nA new conversation begins", QUESTION, "/quit",
    ]  # fmt: skip
    for part, beginning in zip(parts[1:], expected, strict=True):
        assert part.startswith(beginning)
    assert "or start over" in " ".join(parts[5].split())
    assert parts[11].strip("\n") == parts[1].strip("\n")
    assert "Answers drawn with seed 0, temperature 1 and top-p 0.95." in parts[8]
    first = parts[1].split("\n\n", 1)[1]
    for reply in talking.ask(QUESTION):
        assert f"{reply.model} ({reply.list_remarks()})" in first
        assert reply.answer.split()[-1] in first
    assert max(map(len, first.splitlines())) <= 80
    assert contents_of(demo_run.folder) == before


def chat_here(monkeypatch, folder, lines, *given):
    """Let the command read lines in this process, which has started already."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode()), "utf-8"))
        main(["chat", "RUN=demo", f"RESULTS={folder.folder / 'results'}", *given])


def test_command_keeps_answers_where_it_is_asked_to(copied_run, monkeypatch, capsys):
    chat_here(monkeypatch, copied_run, f"{QUESTION}\n{NEXT}", "KEEP=True")
    rows = load(copied_run.run / "chat.json")
    assert [row["model"] for row in rows] == MODELS * 2
    assert [row["turn"] for row in rows[::4]] == [1, 2]
    assert "Kept in" in capsys.readouterr().out
    assert not list(copied_run.run.glob("*.tmp"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "RUN: name the run whose models are asked, as in make chat RUN=demo."),
        (["RUN=none"], "none has no run.json. Run main.ipynb with the same RUN and RESULTS first."),
        (["RUN=old"], "was written by an earlier version of this repository"),
        (["RUN=damaged"], "run.json is damaged"),
        (["RUN=demo", "PROCESSES=2"], "PROCESSES: chat does its work in one process."),
        (["RUN=demo", "KEEP=perhaps"], "KEEP = 'perhaps': Input should be a valid boolean"),
    ],
)
def test_command_refuses_by_a_sentence(tmp_path, given, message):
    artifact = {"made_from": {}, "sha256": "x", "seconds": 1, "environment": {}}
    for name, text in {
        "old": json.dumps({"run": "old", "artifacts": {"adapters/sft": artifact}}),
        "damaged": "{",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as refusal:
        main(["chat", f"RESULTS={tmp_path}", *given])
    assert message in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_command_does_not_begin_with_a_damaged_file(copied_run, monkeypatch, capsys):
    (copied_run.run / "chat.json").write_text("{")
    with pytest.raises(SystemExit, match="chat.json is damaged"):
        chat_here(monkeypatch, copied_run, QUESTION, "KEEP=True")
    assert "reward" not in capsys.readouterr().out


def test_terminal_is_not_sent_what_it_would_obey(capsys):
    answer = "one\x1b]0;title\x07\r\x9b31m\u202etwo\tthree\n\x00" + "long " * 40
    reply = Reply(turn=1, question="", model="Base", answer=answer, finish="length", seed=None)
    dialogue_terminal._print_replies([reply])
    printed = capsys.readouterr().out
    assert all(character.isprintable() for character in printed.replace("\n", ""))
    assert "one\\x1b]0;title\\x07\\r\\x9b31m\\u202etwo\\tthree" in printed
    assert "Base (cut off at the token limit)" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_empty_answer_is_called_empty():
    reply = Reply(turn=1, question="", model="A", answer="", finish="eos", reward=-1.5, seed=None)
    assert reply.list_remarks() == "reward −1.50, empty"


def test_ctrl_c_leads_back_to_the_prompt_under_make(demo_run, tmp_path):
    """Twice, since make itself ends at the second one. Ctrl-D ends the conversation."""
    line = f"{sys.executable} -m posttrain chat RUN=demo RESULTS={demo_run.folder / 'results'}"
    (tmp_path / "Makefile").write_text(f"chat:\n\t@{line}\n")
    child = pexpect.spawn(
        "make", ["-f", str(tmp_path / "Makefile"), "chat"], cwd=ROOT, encoding="utf-8", timeout=120
    )
    child.expect(r"/quit\s+ends")
    for _ in range(2):
        child.expect_exact("> ")
        child.sendintr()
        child.expect("Ctrl-D ends")
    child.sendline(QUESTION)
    child.expect(r"SFT\+DPO \(reward")
    child.expect_exact("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (0, None)


def test_interruption_during_an_answer_is_said(talking, monkeypatch, capsys):
    def respond(*args, **options):
        if "And rye?" in args[2][0]:
            raise KeyboardInterrupt
        return generation.respond(*args, **options)

    monkeypatch.setattr(dialogue_terminal, "_read_lines", lambda: [QUESTION, NEXT, QUESTION])
    monkeypatch.setattr(dialogue, "respond", respond)
    dialogue_terminal.talk(talking, keep=False)
    printed = capsys.readouterr().out
    assert printed.count("Greedy answers.") == 2
    assert printed.count("Interrupted. The conversations are as they were") == 1


# ---- the form


def show(run, **changes):
    """Show the form as the last cell of eval.ipynb does."""
    opened = open_dialogue(run)
    judge = changes.get("judge", opened._judge_source)
    return dialogue_form.show_form(
        run, opened._evaluation, opened._base, judge, *opened._inputs
    )


@pytest.fixture
def form(demo_run):
    shown = show(open_run(demo_run))
    yield shown
    shown._dialogue.close()


def click(form, question, way="greedy"):
    """Fill in a question and click on Ask; return the sentence below the buttons."""
    form.question.value = question
    form.way.value = way
    form.ask.click()
    assert not form.ask.disabled
    return html.unescape(form.status.value)


def test_form_loads_nothing_before_the_first_question(form):
    assert form._dialogue._models == {}
    assert form._dialogue._judge is None


def test_form_answers_as_the_dialogue_does(form, talking):
    sentence = click(form, QUESTION)
    assert sentence.strip() == "Greedy answers."
    assert form.question.value == ""
    click(form, NEXT)
    expected = [*talking.ask(QUESTION), *talking.ask(NEXT)]
    assert form.answers.value.count("<tr>") == 3
    for name in MODELS:
        assert f">{name}</th>" in form.answers.value
    for reply in expected:
        cell = f"[{reply.list_remarks()}]\n{reply.answer}"
        assert f">{html.escape(cell, quote=True).replace('&#x27;', '&#39;')}</td>" in (
            form.answers.value.replace("&#34;", "&quot;")
        )
    form.over.click()
    assert "A new conversation begins." in form.status.value
    assert form.answers.value == ""
    click(form, QUESTION)
    assert form.answers.value.count("<tr>") == 2


def test_form_samples(form):
    assert "drawn with seed 0, temperature 1 and top-p 0.95" in click(form, QUESTION, "sampled")
    assert "drawn with seed 1" in click(form, QUESTION, "sampled")
    assert click(form, QUESTION).startswith("Greedy")


@pytest.mark.parametrize("name", REFUSED)
def test_form_says_what_is_wrong_and_goes_on(form, name):
    question, message = REFUSED[name]
    assert re.search(message, click(form, question))
    assert form.question.value == question  # so that it can be corrected
    assert form.answers.value == ""
    assert click(form, QUESTION).startswith("Greedy answers.")


def test_form_says_that_an_adapter_was_changed_and_goes_on(copied_run):
    form = show(open_run(copied_run))
    path = copied_run.run / "adapters" / "sft" / "adapter_config.json"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    assert "adapters/sft is missing, was changed" in click(form, QUESTION)
    path.write_bytes(content)
    assert click(form, QUESTION).startswith("Greedy answers.")


def test_form_shows_texts_as_texts(form):
    click(form, "<b>Is $x$ bold?</b>")
    assert "&lt;b&gt;Is $x$ bold?&lt;/b&gt;" in form.answers.value
    assert "<b>" not in form.answers.value
    reply = Reply(
        turn=1, question="q", model="<i>", answer="<script>\x1b", finish="eos", seed=None
    )
    table = dialogue_form.tabulate_replies([reply])
    assert "<script>" not in table
    assert "&lt;script&gt;\\x1b" in table


def test_form_keeps_only_what_is_ticked(copied_run):
    form = show(open_run(copied_run))
    click(form, QUESTION)
    assert not (copied_run.run / "chat.json").exists()
    form.keep.value = True
    click(form, NEXT)
    assert [row["question"] for row in load(copied_run.run / "chat.json")] == [NEXT] * 4


def test_form_is_interrupted_and_goes_on(form, monkeypatch):
    def respond(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dialogue, "respond", respond)
        assert click(form, QUESTION).startswith("Interrupted.")
    assert click(form, QUESTION).startswith("Greedy answers.")


def test_form_says_why_there_are_no_rewards(copied_run):
    run = open_run(copied_run)
    change_judge(run, name="some/<judge>")
    form = show(run)
    assert "The answers have no rewards. The judge some/<judge> is" in click(form, QUESTION)
    assert "<judge>" not in form.status.value


def test_form_that_is_shown_again_frees_the_models(demo_run):
    first = show(open_run(demo_run))
    click(first, QUESTION)
    assert first._dialogue._models
    show(open_run(demo_run))
    assert (first._dialogue._models, first._dialogue._judge) == ({}, None)


def test_without_widgets_a_sentence_says_how_to_get_them(demo_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert show(open_run(demo_run)) is None
    assert "pip install ipywidgets" in capsys.readouterr().out


def test_without_models_a_sentence_says_so(capsys, demo_run):
    opened = open_dialogue(open_run(demo_run))
    given = (opened._evaluation, opened._base, opened._judge_source, *opened._inputs)
    assert dialogue_form.show_form(Run(ROOT / "results", "published"), *given) is None
    said = " ".join(capsys.readouterr().out.split())
    assert "imported results, so there is no model to ask" in said


def test_other_processes_show_no_form(demo_run, monkeypatch, capsys):
    opened = open_dialogue(open_run(demo_run))
    given = (opened._evaluation, opened._base, opened._judge_source, *opened._inputs)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert dialogue_form.show_form(opened.run, *given) is None
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_last_cell_of_the_evaluation_is_the_form(copied_run, talking):
    """It loads nothing when it is executed, and answers when it is clicked."""
    before = contents_of(copied_run.folder)
    names = execute("eval.ipynb", **places(copied_run.folder))
    assert isinstance(names.form._dialogue, Dialogue)
    assert names.form._dialogue._models == {}
    assert contents_of(copied_run.folder).keys() == before.keys()
    before = contents_of(copied_run.folder)
    click(names.form, QUESTION)
    assert contents_of(copied_run.folder) == before
    for reply in talking.ask(QUESTION):
        assert f"[{reply.list_remarks()}]" in names.form.answers.value
