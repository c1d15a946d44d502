"""Ask the models of a run one's own questions in a form below a notebook's cell."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import pandas as pd
from IPython.display import display

from posttrain import processes
from posttrain.conclusions import list_words
from posttrain.dialogue import FILE, Dialogue, Reply, describe_decoding, show_controls
from posttrain.tables import print_paragraphs, texts

if TYPE_CHECKING:
    from posttrain.judging import JudgeInput
    from posttrain.run import Run
    from posttrain.settings import Evaluation
    from posttrain.sources import Source

# The conversation of the form that was shown last, whose models are freed when another is shown
_shown: list[Dialogue] = []


class Form:
    """A form that asks all models of a run.

    Attributes:
        question, ask, way, keep, over: what is filled in and clicked on.
        status, answers, printed: where a sentence, the answers, and what is printed are shown.
        box: all of it.
    """

    def __init__(self, dialogue: Dialogue):
        """Build the form."""
        import ipywidgets

        self._dialogue = dialogue
        self._replies: list[Reply] = []
        wide = {"width": "95%"}
        self.question = ipywidgets.Textarea(placeholder="Your question", layout=wide)
        self.ask = ipywidgets.Button(description="Ask", button_style="primary")
        self.way = ipywidgets.ToggleButtons(
            options=["greedy", "sampled"], style={"button_width": "6em"}, layout={"width": "15em"}
        )
        self.keep = ipywidgets.Checkbox(
            description=f"keep in {FILE}", indent=False, layout={"width": "auto"}
        )
        self.over = ipywidgets.Button(description="Start over")
        self.status = ipywidgets.HTML()
        self.answers = ipywidgets.HTML()
        self.printed = ipywidgets.Output()
        self.ask.on_click(self._ask)
        self.over.on_click(self._start_over)
        buttons = ipywidgets.HBox([self.ask, self.way, self.keep, self.over])
        self.box = ipywidgets.VBox(
            [self.question, buttons, self.status, self.answers, self.printed]
        )

    def _ask(self, _: object) -> None:
        """Ask what is filled in, and show the answers or why there are none."""
        self.ask.disabled = self.over.disabled = True
        self._say("The models are answering. Before the first answer they have to be loaded.")
        replies = None
        with self.printed:  # progress bars, and what the package prints
            try:
                replies = self._dialogue.ask(self.question.value, self.way.value == "sampled")
                self._replies += replies
                self.answers.value = tabulate_replies(self._replies)
                self.question.value = ""
                self._say(f"{describe_decoding(replies)} {self._dialogue.without_rewards}")
                if self.keep.value:
                    self._dialogue.keep(replies)
            except (ValueError, RuntimeError, OSError) as error:
                self._say(str(error))
            except KeyboardInterrupt:
                state = "as they were before this question"
                if replies is not None:
                    state = "with this question and its answers"
                self._say(f"Interrupted. The conversations are {state}.")
            except Exception as error:  # a button has no other place to show it
                self._say(f"{type(error).__name__}: {error}")
        self.printed.clear_output()
        self.ask.disabled = self.over.disabled = False

    def _say(self, sentence: str) -> None:
        """Show a sentence below the buttons."""
        self.status.value = html.escape(sentence)

    def _start_over(self, _: object) -> None:
        """Begin a new conversation."""
        self._dialogue.start_over()
        self._replies = []
        self.answers.value = ""
        self._say("A new conversation begins.")


def show_form(
    run: Run,
    evaluation: Evaluation,
    base: Source,
    judge: Source,
    of_pair: JudgeInput,
    of_conversation: JudgeInput,
) -> Form | None:
    """Show a form that asks all models of a run; nothing is loaded before the first question.

    Without models or ipywidgets a sentence takes its place. The arguments are those of `Dialogue`.
    """
    if processes.count() > 1:
        return None
    while _shown:
        _shown.pop().close()
    try:
        dialogue = Dialogue(run, evaluation, base, judge, of_pair, of_conversation)
        form = Form(dialogue)
    except ModuleNotFoundError as error:
        if error.name != "ipywidgets":
            raise
        print_paragraphs(
            [
                "The form needs the package ipywidgets: install it with `pip install ipywidgets` "
                f"and restart the kernel. `make chat RUN={run.name}` asks on the command line."
            ]
        )
        return None
    except ValueError as error:
        print_paragraphs([str(error)])
        return None
    _shown.append(dialogue)
    names = list_words(dialogue.names)
    print_paragraphs([f"In a running notebook, the form below this line asks {names}."])
    display(form.box)
    return form


def tabulate_replies(replies: list[Reply]) -> str:
    """Write replies as an HTML table with a row for each question, in which texts stay texts."""
    columns: dict[str, dict[str, str]] = {}
    for reply in replies:
        remarks = reply.list_remarks()
        head = f"[{remarks}]\n" if remarks else ""
        question = f"{reply.turn}. {show_controls(reply.question)}"
        columns.setdefault(reply.model, {})[question] = head + show_controls(reply.answer)
    return texts(pd.DataFrame(columns)).to_html()
