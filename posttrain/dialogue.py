"""Ask all models of a run one's own questions, several turns long, each in its own conversation."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import release_memory
from pydantic import BaseModel

from posttrain import processes, settings
from posttrain.comparisons import format_fixed
from posttrain.files import read_json, write
from posttrain.generation import is_chat, respond, room_for_prompt
from posttrain.hub import find_model, identify
from posttrain.judging import encode_answers, read_question
from posttrain.models import load_judge, load_models, load_tokenizer, plain, switched_to
from posttrain.notebooks import read_functions
from posttrain.preparation import EVAL, require_own_name
from posttrain.rewards import compute_rewards
from posttrain.sources import Source
from posttrain.tokens import encode_prompts
from posttrain.transcripts import CONTROL, PROMPT_END, TURN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from posttrain.judging import JudgeInput
    from posttrain.run import Run

FILE = "chat.json"
# Nucleus sampling (Holtzman et al. 2020) from the models' own probabilities. transformers would
# otherwise keep the 50 likeliest tokens only.
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
# Settings of the evaluation that answers and rewards depend on
NEEDED = ("reward_model", "max_new_tokens", "judge_length", "judge_tokens")


class Reply(BaseModel):
    """A model's answer to a question, as it is kept in chat.json.

    Attributes:
        conversation: the number of the conversation in the file, 0 while it is not kept.
        turn: the number of the question in its conversation.
        question: the question.
        model: the model's name.
        answer: what it answered.
        finish: how the answer ended, as in responses.json.
        reward: the judge's reward, None without a judge.
        seed: the seed that the answer was drawn with, None if it is greedy.
    """

    conversation: int = 0
    turn: int
    question: str
    model: str
    answer: str
    finish: str
    reward: float | None = None
    seed: int | None

    def list_remarks(self) -> str:
        """Write what is known of the answer beside its words."""
        remarks = []
        if self.reward is not None:
            remarks.append(f"reward {format_fixed(self.reward, 2)}")
        if not self.answer:
            remarks.append("empty")
        if self.finish == "length":
            remarks.append("cut off at the token limit")
        return ", ".join(remarks)


class Dialogue:
    """A conversation with each model of a run, all of which are asked the same questions.

    A model goes on from its own earlier answers. The models and the judge are loaded with the first
    question and stay in memory until `close`.

    Attributes:
        run: the run.
        names: the names of its models.
        without_rewards: why the answers have no rewards; "" if they have, or if this is not known
            yet.
    """

    def __init__(
        self,
        run: Run,
        evaluation: settings.Evaluation,
        base: Source,
        judge: Source,
        of_pair: JudgeInput,
        of_conversation: JudgeInput,
    ):
        """Prepare a conversation. Nothing is loaded or written.

        Args:
            run: a run with models.
            evaluation: the settings of eval.ipynb for this run.
            base: the run's base model.
            judge: the judge, which is asked only if it need not be downloaded.
            of_pair: a function `(tokenizer, question, answer)` that encodes what the judge reads.
            of_conversation: such a function for a judge that has a chat template.

        Raises:
            ValueError: if the run lacks its models, or several processes are at work.
        """
        require_models(run)
        self.run = run
        self.names = [model.name for model in run.models]
        self.without_rewards = ""
        self._evaluation = evaluation
        self._base = base
        self._judge_source = judge
        self._inputs = (of_pair, of_conversation)
        self._chat = is_chat(run)
        self._seed = 0
        self._models: dict[str, PreTrainedModel] = {}
        self._judge: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self.start_over()

    def start_over(self) -> None:
        """Begin a new conversation."""
        self._transcripts = dict.fromkeys(self.names, "")
        self._turn = 0
        self._conversation = 0

    def load(self) -> None:
        """Load the models, and the judge if it is here, unless they are loaded.

        Raises:
            ValueError: if a model's files are not those that were trained.
        """
        if not self._models:
            self._tokenizer = load_tokenizer(self._base.folder)
            self._room = room_for_prompt(self._base.folder, self._evaluation.max_new_tokens)
            self._models = load_models(self.run, self._base.folder, self.names)
        if self._judge is None and not self.without_rewards:
            try:
                self._judge = load_judge_at_hand(self._judge_source)
            except ValueError as error:
                self.without_rewards = f"The answers have no rewards. {error}"

    def close(self) -> None:
        """Free the memory of the models and the judge."""
        self._models = {}
        self._judge = None
        release_memory()

    def ask(self, question: str, sample: bool = False) -> list[Reply]:
        """Let every model answer a question in its conversation.

        If the question is refused or the answers are interrupted, all conversations stay as they
        were.

        Args:
            question: the question. A special token that is spelled in it is read as plain text.
            sample: whether the answers are drawn; otherwise they are greedy, as in eval.ipynb.

        Returns:
            A reply of each model, in the order of the run.

        Raises:
            ValueError: if the question is empty, too long or no plain text, or the models cannot be
                loaded.
        """
        question = question.strip()
        _require_text(question)
        self.load()
        prompts = {}
        for name, transcript in self._transcripts.items():
            prompts[name] = f"{transcript}{TURN} {question}{PROMPT_END}"
        self._require_room(prompts)
        replies = []
        try:
            for name, prompt in prompts.items():
                answered = self._answer(name, prompt, sample)
                reply = Reply(
                    turn=self._turn + 1,
                    question=question,
                    model=name,
                    answer=answered["response"],
                    finish=answered["finish"],
                    seed=self._seed if sample else None,
                )
                if self._judge is not None:
                    reply.reward = self._rate(name, prompt, reply.answer)
                replies.append(reply)
        except BaseException:  # such as Ctrl-C or no memory, in the middle of anything
            self._models = {}  # an adapter may be left in the base's weights
            raise
        for reply in replies:
            self._transcripts[reply.model] = f"{prompts[reply.model]} {reply.answer}".rstrip()
        self._turn += 1
        if sample:
            self._seed += 1
        return replies

    def keep(self, replies: list[Reply]) -> None:
        """Add replies to chat.json in the run's folder.

        Raises:
            ValueError: if chat.json is damaged, or the run is a part of the repository.
            RuntimeError: if another process is writing into the run's folder.
        """
        require_own_name(self.run.name, str(self.run.folder.parent))
        with self.run.hold():
            kept = read_kept(self.run)
            if not self._conversation:
                self._conversation = 1 + max((reply.conversation for reply in kept), default=0)
            for reply in replies:
                reply.conversation = self._conversation
            write(self.run.path(FILE), [reply.model_dump() for reply in [*kept, *replies]])

    def _require_room(self, prompts: Mapping[str, str]) -> None:
        """Refuse a conversation for which a model has too few positions."""
        texts = [plain(prompt, self._tokenizer) for prompt in prompts.values()]
        encoded = encode_prompts(texts, self._tokenizer, "prompts", self._chat)
        name, longest = max(zip(prompts, map(len, encoded)), key=lambda pair: pair[1])
        if longest > self._room:
            remedy = "Ask something shorter"
            if self._turn:
                remedy += ", or start over"
            raise ValueError(
                f"The conversation with {name} would have {longest} tokens, but only {self._room} "
                f"fit beside an answer of {self._evaluation.max_new_tokens}. {remedy}."
            )

    def _answer(self, name: str, prompt: str, sample: bool) -> dict[str, Any]:
        """Let a model continue a prompt as in eval.ipynb, or draw its answer."""
        decoding = {"max_new_tokens": self._evaluation.max_new_tokens, "stop_strings": [TURN]}
        decoding |= SAMPLING if sample else {"do_sample": False}
        text = plain(prompt, self._tokenizer)
        model = self._models[name]
        devices = [model.device] if model.device.type == "cuda" else []
        with switched_to(model, name), torch.random.fork_rng(devices, enabled=sample):
            if sample:
                torch.manual_seed(self._seed)
            (completion,) = respond(
                model, self._tokenizer, [text], 1, name, self._chat, **decoding
            )
        return completion

    def _rate(self, name: str, prompt: str, answer: str) -> float:
        """Let the judge rate an answer as in eval.ipynb."""
        judge, tokenizer = self._judge
        of_pair, of_conversation = self._inputs
        judge_input = of_pair if tokenizer.chat_template is None else of_conversation
        texts = [(read_question(prompt), answer)]
        encoded = encode_answers(judge, tokenizer, judge_input, texts, name)
        (reward,) = compute_rewards(
            judge, tokenizer, encoded, self._evaluation.judge_tokens, "judge"
        )
        return reward


def open_dialogue(run: Run) -> Dialogue:
    """Prepare a conversation with the models of a run, as its record describes them.

    Args:
        run: the run. It need not have been evaluated.

    Raises:
        ValueError: if the run lacks its models, its base was changed, or several processes are at
            work.
    """
    from posttrain import chat_judges, models

    require_models(run)
    record = run.record
    evaluated = record.settings.get("evaluation", {})
    values = {name: evaluated[name] for name in NEEDED if name in evaluated}
    preset = evaluated.get("preset") or record.preset or "full"
    evaluation = settings.choose(settings.Evaluation, preset, values)
    base = run.source("base_model", record.sources["base_model"]["name"])
    known = record.sources.get("reward_model", {"name": evaluation.reward_model})
    commit = known.get("commit")
    judge = Source(
        "reward_model", known["name"], commit or known.get("sha256"), commit, files=None
    )
    used = {"s": evaluation, "models": models, "chat_judges": chat_judges}
    inputs = read_functions(EVAL, ("judge_input", "conversation_input"), used)
    return Dialogue(run, evaluation, base, judge, *inputs)


def require_models(run: Run) -> None:
    """Refuse a run that lacks models, and several processes, each of which would ask the questions.

    Raises:
        ValueError: if that is so.
    """
    if processes.count() > 1:
        raise ValueError("Questions are asked in one process. Leave PROCESSES and torchrun out.")
    record = run.record
    if record.imported:
        raise ValueError(
            f"{run.folder} contains imported results, so there is no model to ask. Choose "
            "a run that was trained here."
        )
    if not record.models or "base_model" not in record.sources:
        raise ValueError(
            f"{run.folder} has no models yet. Run main.ipynb with RUN = {run.name!r} first."
        )
    for model in record.models:
        if model.place is not None and not run.path(model.place).exists():
            raise ValueError(
                f"{run.path(model.place)} is missing, so {model.name} cannot be asked. Restore "
                "it, or train the run again. (Runs of the repository come without their models.)"
            )


def load_judge_at_hand(judge: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a judge and its tokenizer without downloading anything.

    Raises:
        ValueError: if the judge is not here, is not the one that the run began with, or does not
            work.
    """
    folder = find_model(judge.name, judge.commit)
    if folder is None:
        raise ValueError(
            f"The judge {judge.name} is neither a folder nor in the hub's cache. eval.ipynb "
            "downloads it when it evaluates the run."
        )
    if judge.identity not in (None, identify(folder)):
        raise ValueError(f"The judge {judge.name} has changed since it judged the run.")
    return load_judge(folder)


def read_kept(run: Run) -> list[Reply]:
    """Read the replies that are kept in chat.json; none if there is no such file.

    Raises:
        ValueError: if the file is damaged.
    """
    path = run.path(FILE)
    try:
        return read_json(path, list[Reply]) if path.exists() else []
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged. Move it away, or leave KEEP out.") from error


def _require_text(question: str) -> None:
    """Refuse a question that is empty or would not be read as one turn of plain text."""
    if not question:
        raise ValueError("The question is empty. Type one.")
    if CONTROL.search(question):
        raise ValueError("The question contains control characters. Type it without them.")
    for marker in (TURN, PROMPT_END):
        if marker in question:
            raise ValueError(
                f"The question contains the marker {marker.strip()!r} after a blank line, which "
                "would begin another turn. Leave the blank line out."
            )


def describe_decoding(replies: list[Reply]) -> str:
    """Say how the answers to a question were decoded."""
    seed = replies[0].seed
    if seed is None:
        return "Greedy answers."
    temperature, top_p = (SAMPLING[name] for name in ("temperature", "top_p"))
    return f"Answers drawn with seed {seed}, temperature {temperature:g} and top-p {top_p:g}."


def show_controls(text: str) -> str:
    r"""Write every character that is not shown itself as its escape, such as \x1b.

    Line breaks stay. A terminal would obey an escape sequence in an answer.
    """
    shown = []
    for character in text:
        is_control = unicodedata.category(character).startswith("C") and character != "\n"
        shown.append(character.encode("unicode_escape").decode() if is_control else character)
    return "".join(shown)
