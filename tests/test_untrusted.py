"""Files that were handed over: nothing in them runs, and what models wrote shows as text wherever it is shown."""

import ast
import json
import os
import pickle
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from conftest import MODELS, ROOT, execute, load
from papermill.exceptions import PapermillExecutionError
from test_interrupted import checkpoints, interrupted  # noqa: F401  (fixtures)
from test_training import MADE, ROWS, TEXTS, pairs, settings  # noqa: F401  (fixtures)

HOSTILE = ["<script>alert(1)</script>", "a | b || c", "`code` ```fence```", r"\input{/etc/passwd} \write18{ls}",
           "$x^2$ $$y$$", "<img src=x onerror=alert(1)>", "&lt;b&gt; &amp;", "[link](javascript:alert(1))", "# heading",
           "%comment {group} ~tilde ^hat _under_ *star*", "</td></tr></table><b>", r"\(math\) \[math\]",
           "two\n\nlines"]


# ---- nothing runs

class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_pickle(path, ran):
    """Write pickles that would make the folder `ran`, as torch writes them."""
    torch.save({"weight": torch.zeros(1), "payload": Payload(ran)}, path)


def test_payload_works(tmp_path):
    """The pickles of these tests would do what they threaten with."""
    write_pickle(tmp_path / "a.bin", tmp_path / "ran")
    torch.load(tmp_path / "a.bin", weights_only=False)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").rmdir()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("instead", [True, False])
@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "training_args.bin", "weights.pt", "x.pkl"])
def test_pickle_in_an_adapter_is_refused(evaluation, demo_run, tmp_path, name, instead):
    """An adapter with a pickle, in place of its safetensors or beside them, is named and not loaded."""
    shutil.copytree(demo_run.run / "adapters", tmp_path / "run" / "adapters")
    folder = tmp_path / "run" / "adapters" / "dpo"
    if instead:
        (folder / "adapter_model.safetensors").unlink()
        (folder / "made.json").unlink()
    write_pickle(folder / name, tmp_path / "ran")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        evaluation.load_all(load(demo_run.run / "run.json"), tmp_path / "run", "demo/hub/opt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_pickle_in_a_checkpoint_does_not_run(main, checkpoints, settings, tokenizer, pairs, tmp_path, name):  # noqa: F811
    """A checkpoint of somebody else's, sealed, whose pickles hold more than numbers: named, or never read."""
    shutil.rmtree(checkpoints / "checkpoint-2")
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints" / "sft" / "checkpoint-3"
    shutil.copytree(checkpoints / "checkpoint-3", folder)
    write_pickle(folder / name, tmp_path / "ran")
    made = load(folder / "made.json") | {"files": main.hash_files(folder)}
    main.write_json(folder / "made.json", made)
    record = {"settings": settings, "models": [
        {"name": "SFT", "base": settings["base_model"], "adapter": "adapters/sft"}]}

    def go_on():
        main.train("SFT", record, settings["base_model"], run, MADE["made_from"], lambda checkpoints, rows:
                   main.sft_trainer(settings, tokenizer, pairs, pairs[:2], checkpoints, rows), tokenizer, TEXTS)

    if name == "training_args.bin":  # the trainer writes it and never reads it
        go_on()
    else:
        with pytest.raises(ValueError, match="checkpoint-3 holds more than a checkpoint does. Move it away"):
            go_on()
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_model_does_not_run(main, hub, tmp_path):
    """A base whose config names code of its own is loaded without it, or refused where it cannot be."""
    shutil.copytree(hub / "opt", tmp_path / "opt")
    (tmp_path / "opt" / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    config = load(tmp_path / "opt" / "config.json")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "opt" / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    assert main.identify_model("BASE_MODEL", str(tmp_path / "opt"))
    main.load_base(str(tmp_path / "opt"))
    (tmp_path / "opt" / "config.json").write_text(json.dumps(config | {"auto_map": auto_map, "model_type": "evil"}))
    with pytest.raises(ValueError, match="BASE_MODEL: .* holds no model"):
        main.identify_model("BASE_MODEL", str(tmp_path / "opt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["main.ipynb", "eval.ipynb"])
def test_no_library_asks_whether_code_may_run(name):
    """Wherever a notebook loads by name, code beside the model is forbidden; in Jupyter one would be asked."""
    cells = load(ROOT / name)["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
             and ast.unparse(node.func).endswith(".from_pretrained")]
    auto = [node for node in calls if ast.unparse(node.func).startswith("Auto")]
    assert {ast.unparse(node.func) for node in calls if node not in auto} <= {"PeftModel.from_pretrained",
                                                                             "PeftConfig.from_pretrained"}
    assert len(auto) >= 4
    for node in auto:
        assert {"trust_remote_code": "False"}.items() <= {k.arg: ast.unparse(k.value) for k in node.keywords}.items()


def test_sealed_pickle_is_refused_in_main(main, demo_run, tmp_path):
    """A pickle in the SFT adapter, named in made.json too, stops main.ipynb before SFT+DPO is trained on it."""
    folder = tmp_path / "adapters" / "sft"
    shutil.copytree(demo_run.run / "adapters" / "sft", folder)
    write_pickle(folder / "adapter_model.bin", tmp_path / "ran")
    made = load(folder / "made.json")
    main.write_json(folder / "made.json", made | {"files": main.hash_files(folder)})
    record = load(demo_run.run / "run.json")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle, which can run code"):
        main.train("SFT", record, None, tmp_path, made["made_from"], None, None, None)


def test_dataset_beside_a_script_is_data(main, hub, tmp_path):
    """A script in a dataset's folder is not run."""
    shutil.copytree(hub / "hh-rlhf", tmp_path / "data")
    for name in ("data", "hh-rlhf", "harmless-base"):
        (tmp_path / "data" / f"{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    assert len(main.load_split(str(tmp_path / "data"), "harmless-base", "test")) == 300
    assert not (tmp_path / "ran").exists()


# ---- paths stay in the run's folder

@pytest.mark.parametrize("name", [
    "../../elsewhere", "../sft", "adapters/../../sft", "/etc", "/", "..", "adapters/../..", "./../x", "a/b/c", "~/x",
    "C:\\models", "//server/share", "\x00", "models/../../../opt", "file:///etc", "https://example.org/x"])
@pytest.mark.parametrize("field", ["base", "adapter"])
def test_path_out_of_the_run_is_refused(evaluation, demo_run, tmp_path, field, name):
    """A path in run.json that leaves the folder, and is not the base that the settings name, is refused by name."""
    record = load(demo_run.run / "run.json")
    record["models"][2][field] = name
    evaluation.write_json(tmp_path / "run.json", record)
    with pytest.raises(ValueError, match=r"run\.json names .* which is not in the run's folder"):
        evaluation.read_run(tmp_path)


def test_paths_that_may_be_in_a_record(evaluation, tmp_path):
    """What lies in the folder, hub names, and the base as the settings give it, also seen from the run's folder."""
    (tmp_path / "adapters" / "sft").mkdir(parents=True)
    (tmp_path / "adapters" / "sft" / "adapter_model.safetensors").write_bytes(b"")
    assert evaluation.locate("adapters/sft", tmp_path, "x/y") == str(tmp_path / "adapters" / "sft")
    for base in ("/data/opt", "demo/hub/opt", "facebook/opt-350m"):
        assert evaluation.locate(base, tmp_path, base) == base
    assert evaluation.locate("../../demo/hub/opt", tmp_path, "demo/hub/opt") == "demo/hub/opt"
    with pytest.raises(ValueError, match="names 'facebook/opt-125m', which is not in the run's folder, nor the base"):
        evaluation.locate("facebook/opt-125m", tmp_path, "facebook/opt-350m")


@pytest.mark.parametrize("damage", [
    "", "{", "null", "[]", "{}", '{"settings": 3}', '{"preset": "demo", "settings": {}, "models": []}', "[" * 10_000,
    '{"preset": "demo", "settings": {}, "models": {}, "environment": {}}',
    '{"preset": "demo", "settings": {"base_model": "x", "dataset": "y"}, "models": [3], "environment": {}}',
    '{"preset": "demo", "settings": {"base_model": "x"}, "models": [{"name": "Base"}], "environment": {}}',
    *(f'{{"preset": "demo", "settings": {{"base_model": "x", "dataset": "y"}}, "models": [{row}], "environment": {{}}}}'
      for row in ('{"name": "Base"}', '{"name": "Base", "base": "x"}', '{"name": "Base", "base": "x", "adapter": 5}',
                  '{"name": "Base", "base": 3, "adapter": null}', '{"name": ["Base"], "base": "x", "adapter": null}'))])
def test_damaged_run_json_is_named(evaluation, tmp_path, damage):
    """Whatever is the matter with run.json, the message says that it is damaged, and which file it is."""
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        evaluation.read_run(tmp_path)


def test_lost_run_json_is_named(evaluation, tmp_path):
    """A run without its run.json is no folder of rewards from elsewhere, which scores.json alone makes one."""
    (tmp_path / "scores.json").write_text("[]")
    assert evaluation.read_run(tmp_path) is None
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds neither run\.json nor scores\.json alone: run main\.ipynb"):
        evaluation.read_run(tmp_path)


# ---- what was changed by hand

@pytest.mark.parametrize("name", ["prompts.json", "responses.json", "scores.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "edited", "[]", "{}"])
def test_raw_file_that_was_changed_is_refused(evaluation, demo_run, tmp_path, name, damage):
    """A raw file that is not what was made is named, with the way out."""
    for file in (name, "eval.json"):
        shutil.copy(demo_run.run / file, tmp_path)
    path = tmp_path / name
    text = path.read_text(encoding="utf-8")
    path.write_text({"cut": text[:-20], "empty": "", "edited": text.replace("0", "1", 1)}.get(damage, damage),
                    encoding="utf-8")
    made_from = load(tmp_path / "eval.json")["files"][name]["made_from"]
    with pytest.raises(ValueError, match=rf"{name} (is damaged|was changed).*FRESH = True"):
        evaluation.made_once(path, None, made_from, {}, {})
    path.write_text(json.dumps(json.loads(text)), encoding="utf-8")  # another layout, the same contents
    assert evaluation.made_once(path, None, made_from, {}, {}) == json.loads(text)


@pytest.mark.parametrize("damage", [None, "", "{}", '{"files": []}', '{"files": {}}'])
def test_raw_file_without_its_record_is_refused(evaluation, demo_run, tmp_path, damage):
    """Without eval.json, or with a damaged one, it is not known what a raw file was made from."""
    shutil.copy(demo_run.run / "prompts.json", tmp_path)
    if damage is not None:
        (tmp_path / "eval.json").write_text(damage)
    with pytest.raises(ValueError, match="eval.json is damaged|eval.json does not say what it was made from"):
        evaluation.made_once(tmp_path / "prompts.json", None, {}, {}, {})


def test_adapter_that_was_changed_stops_the_evaluation(demo_run, tmp_path):
    """An adapter that is not the one that was made is named by the notebook itself."""
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run)
    weights = run / "adapters" / "dpo" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PapermillExecutionError, match="adapters/dpo is not whole: adapter_model.safetensors is dam"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", PRESET="demo", RUN="demo", RESULTS=run.parent,
                FIGURES=tmp_path / "figures")


def test_adapters_that_were_trained_again_stop_the_evaluation(main, demo_run, tmp_path):
    """Responses of other adapters than those that are there are refused, with the model's name."""
    run = tmp_path / "results" / "demo"
    shutil.copytree(demo_run.run, run)
    shutil.rmtree(run / "adapters" / "dpo")
    shutil.copytree(run / "adapters" / "sft", run / "adapters" / "dpo")
    made = load(run / "adapters" / "dpo" / "made.json")
    made["made_from"]["model"] = "DPO"
    main.write_json(run / "adapters" / "dpo" / "made.json", made)
    with pytest.raises(PapermillExecutionError, match=r"responses.json was made with DPO = 'sha256 \w+', now it is"):
        execute("eval.ipynb", tmp_path / "eval.ipynb", PRESET="demo", RUN="demo", RESULTS=run.parent,
                FIGURES=tmp_path / "figures")


# ---- what is shown is text

class Texts(HTMLParser):
    """Collects the tags and the text of an HTML document."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_response_is_shown_as_text(evaluation, monkeypatch, text):
    """In the side-by-side a response, a prompt and a label are text: no tag, no formula, every letter there."""
    rows = [{"id": "harmful-00", "kind": "harmful", "model": model, "prompt": text, "response": text, "reward": 1.0,
             "label": "harmless"} for model in MODELS]
    responses = [{"id": "harmful-00", "model": model, "response": text, "finish": "eos"} for model in MODELS]
    shown = []
    monkeypatch.setattr(evaluation, "display", shown.append)
    evaluation.show_texts(evaluation.side_by_side(rows, responses, "harmful", 4))
    html = shown[0]._repr_html_()
    found = Texts(html)
    assert found.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert found.text.count(text) == 5
    assert "tex2jax_ignore mathjax_ignore" in html
    assert shown[0]._repr_latex_() is None  # no other way of showing it
    assert not hasattr(shown[0], "_repr_markdown_")


LATEX = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
         **{f"\\{letter}": letter for letter in "%_&#${}"}}


@pytest.mark.parametrize("text", [text.replace("\n", " ") for text in HOSTILE])
def test_labels_in_tables_are_text(evaluation, tmp_path, text):
    """A run, model or judge whose name is markup stands in the tables letter by letter, and as no command."""
    table = pd.DataFrame([{"Model": "Base"} | dict.fromkeys(evaluation.MEASURES, "1 [0, 2]")])
    evaluation.write_summary(tmp_path, table, [{"model": "Base"}], text, "Note.")
    markdown = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()[0]
    assert not re.search(r"(?<!\\)[`*_{}\[\]<>|$#~]", re.sub(r"\\\\", "", markdown))
    assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", markdown) == f"Run {text}. Note."
    latex = re.search(r"\\caption\{(.*)\}\n", (tmp_path / "summary.tex").read_text(encoding="utf-8"))[1]
    plain = re.sub("|".join(map(re.escape, LATEX)), "", latex)
    assert not set(plain) & set("\\%_&#${}~^")
    assert re.sub("|".join(map(re.escape, LATEX)), lambda code: LATEX[code[0]], latex) == f"Run {text}. Note."
    assert pd.read_csv(tmp_path / "summary.csv")["run"].tolist() == [text]


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_in_figures_are_text(main, tmp_path, text):
    """A figure's label is drawn as it is: a dollar sign begins no formula, and none that is broken stops the run."""
    figure = main.plt.figure()
    main.save_figure(figure, tmp_path / "a", text + "$")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.pdf"}
    assert not figure._supxlabel.get_parse_math()
