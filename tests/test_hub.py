"""Names on the hub: commits, files, and the message for a name that cannot be loaded."""

import resource
import shutil
import subprocess
import time

import pytest
from conftest import ROOT
from huggingface_hub import close_session, constants
from loopback import Hub

from posttrain import data, hub


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A hub without repositories for this process, and an empty cache."""
    server = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    ask(server.url, monkeypatch)
    yield server
    server.close()


def ask(address, monkeypatch):
    """Let the client ask the hub of this address, in a new session."""
    files = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    close_session()


def publish(server, name, folder, *paths, **options):
    """Publish a model of small files; return its commit."""
    folder.mkdir(exist_ok=True)
    for path in paths:
        (folder / path).write_text(f"{path} of {name}")
    return server.publish("models", name, folder, **options)


def names_in(folder):
    """List the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_newest_commit_or_the_one_named(online, tmp_path):
    """The newest commit is used, or an older one by its name without asking the hub again."""
    first = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == first
    second = publish(online, "a/b", tmp_path / "a", "vocab.json")
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == second
    requests = len(online.requests)
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b", commit=first)) == first
    assert len(online.requests) == requests
    assert hub.commit_of(tmp_path) is None


def test_pickles_only_where_there_are_no_safetensors(online, tmp_path):
    """If a model has both, only the safetensors are downloaded."""
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    publish(online, "a/both", tmp_path / "a", *both)
    publish(online, "a/old", tmp_path / "b", "config.json", "pytorch_model.bin")
    folder = hub.fetch("BASE_MODEL", "a/both")
    assert names_in(folder) == ["config.json", "model.safetensors"]
    assert names_in(hub.fetch("BASE_MODEL", "a/old")) == ["config.json", "pytorch_model.bin"]


def test_model_that_is_here_already_is_found_without_asking(online, tmp_path, monkeypatch):
    """Neither is anything downloaded, even the rest of a model of which a part is here."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    assert hub.find_model("a/b", commit) is None
    assert hub.find_model("a/b", None) is None
    assert hub.find_model("no folder, and no name", None) is None
    assert online.requests == []
    folder = hub.fetch("REWARD_MODEL", "a/b")
    requests = len(online.requests)
    assert hub.find_model("a/b", commit) == hub.find_model("a/b", None) == folder
    (folder / "model.safetensors").unlink()
    assert hub.find_model("a/b", commit) is None
    assert len(online.requests) == requests
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.find_model("~/a", None) == tmp_path / "a"


def test_unknown_and_private_names(online):
    """The hub gives the same answer for both, so the message covers both."""
    refusal = "BASE_MODEL = 'facebook/opt-35m' cannot be loaded .* the spelling.*HF_TOKEN"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "facebook/opt-35m")
    refusal = "DATASET = 'Anthropic/hh-rlfh' cannot be loaded .* Check the spelling"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("DATASET", "Anthropic/hh-rlfh", data.list_files("base"))


def test_gated_name(online, tmp_path):
    """For a gated model, the message says how to get access."""
    publish(online, "a/gated", tmp_path / "a", "config.json", "model.safetensors", gated=True)
    refusal = "REWARD_MODEL = 'a/gated' cannot be loaded .* gated: ask for access"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("REWARD_MODEL", "a/gated")


def test_commit_that_is_gone(online, tmp_path):
    """A commit that is missing on the hub and in the cache is refused."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    refusal = r"BASE_MODEL = 'a/b' cannot be loaded .* gone from the hub\. Set FRESH"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "a/b", commit="0" * 40)


def test_no_network(online, monkeypatch, tmp_path):
    """Without a network the cache is used; if it is empty, the message names it."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    ask("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    refusal = r"BASE_MODEL = 'a/c' cannot be loaded .* in the cache, .*/cache\. .* a network"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "a/c")


def test_offline(online, monkeypatch, tmp_path):
    """Under HF_HUB_OFFLINE a filled cache is enough; if it is empty, the message names it."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    refusal = "BASE_MODEL = 'a/c' cannot be loaded .* in the cache.* HF_HUB_OFFLINE forbids asking"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", "a/c")


def test_download_that_broke_off(online, monkeypatch, tmp_path):
    """A partial model is completed with a network and refused by name without one."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    folder = hub.fetch("BASE_MODEL", "a/b")
    (folder / "model.safetensors").unlink()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        refusal = "BASE_MODEL = 'a/b' cannot be loaded .* Only a part of it is in .*network"
        with pytest.raises(ValueError, match=refusal):
            hub.fetch("BASE_MODEL", "a/b")
    hub.fetch("BASE_MODEL", "a/b")
    assert names_in(folder) == ["config.json", "model.safetensors"]


def test_repository_without_weights(online, tmp_path):
    """Without config or weights it is not a model, and its files are listed."""
    publish(online, "a/config", tmp_path / "a", "config.json")
    publish(online, "a/weights", tmp_path / "b", "model.safetensors")
    publish(online, "a/text", tmp_path / "c", "README.md")
    files = {
        "a/config": r"\['config\.json'\]",
        "a/weights": r"\['model\.safetensors'\]",
        "a/text": r"\[\]",
        str(tmp_path / "a"): r"\['config\.json'\]",
    }
    for name, listed in files.items():
        refusal = rf"BASE_MODEL = '{name}' is not a model\. .* contains {listed}\."
        with pytest.raises(ValueError, match=refusal):
            hub.fetch("BASE_MODEL", name)


def test_dataset_in_another_layout(online, tmp_path):
    """A dataset without HH-RLHF's files is refused, and the missing file is named."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.parquet").write_bytes(b"")
    online.publish("datasets", "a/other", tmp_path / "a")
    folder = hub.fetch("DATASET", "a/other", data.list_files("base"))
    refusal = r"DATASET: .* has no file harmless-base/train\.jsonl\.gz\. .* as in Anthropic"
    with pytest.raises(ValueError, match=refusal):
        data.read_split(folder, "harmless-base", "train")


@pytest.mark.parametrize(
    "name", ["nowhere", "no/such/folder", "data/nowhere", "demo/hub/optt", ".", "~/x", "/no/such"]
)
def test_folder_that_is_not_there(tmp_path, monkeypatch, name):
    """For any kind of path, the message names the setting and its value."""
    monkeypatch.chdir(tmp_path)
    refusal = f"DATASET = '{name}' (cannot be loaded|is not a model)"
    with pytest.raises(ValueError, match=refusal) as error:
        hub.fetch("DATASET", name)
    hint = "demo/hub are part of the repository: start in its folder"
    assert (hint in str(error.value)) == name.startswith("demo/hub")


def test_stand_ins_that_are_not_there(monkeypatch):
    """In the repository the message says how they are made."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="are made by `python demo/build.py`"):
        hub.fetch("BASE_MODEL", "demo/hub/optt")


# ---- what belongs to a model


def test_what_lies_beside_a_model_is_not_downloaded(online, tmp_path):
    """Adapters, leftovers of a training, texts and subfolders are not read with a model."""
    model = ["chat_template.jinja", "config.json", "merges.txt", "model.safetensors", "spm.model"]
    (tmp_path / "a" / "onnx").mkdir(parents=True)
    others = [
        "adapter_config.json", "adapter_model.safetensors", "training_args.bin", "README.md",
        "LICENSE.txt", "trainer_state.json", "onnx/config.json", "onnx/model.safetensors",
    ]  # fmt: skip
    publish(online, "a/b", tmp_path / "a", *model, *others)
    assert names_in(hub.fetch("BASE_MODEL", "a/b")) == model


def test_pickles_of_a_model_with_an_adapter_beside_it(online, tmp_path):
    """An adapter's safetensors do not count as the model's weights."""
    files = ["adapter_config.json", "adapter_model.safetensors", "config.json"]
    publish(online, "a/b", tmp_path / "a", *files, "optimizer.bin", "pytorch_model.bin")
    assert names_in(hub.fetch("BASE_MODEL", "a/b")) == ["config.json", "pytorch_model.bin"]


ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("beside", [[], ["tokenizer.json"], ["config.json", "optimizer.bin"]])
def test_adapter_alone_is_refused_as_such(online, tmp_path, beside):
    """On the hub and in a folder, the message says what to name instead."""
    publish(online, "a/b", tmp_path / "a", *ADAPTER, *beside)
    for name in ("a/b", str(tmp_path / "a")):
        refusal = f"BASE_MODEL = '{name}' is an adapter, .*base_model_name_or_path.* merged into"
        with pytest.raises(ValueError, match=refusal):
            hub.fetch("BASE_MODEL", name)


@pytest.mark.parametrize("file", ["optimizer.bin", "training_args.bin", "adapter_model.bin"])
def test_no_other_file_of_that_kind_counts_as_weights(tmp_path, file):
    """A folder with a config and such a file is not a model."""
    for name in ("config.json", file):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=f"is not a model.*'{file}'"):
        hub.fetch("BASE_MODEL", str(tmp_path))


def test_identity_follows_from_what_is_loaded(tmp_path):
    """It changes with each file that is loaded, and with no other."""
    loaded = ["config.json", "model.safetensors", "pytorch_model.bin", "merges.txt", "a.jinja"]
    for name in loaded:
        (tmp_path / name).write_text("x")
    before = hub.identify(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("README.md", "LICENSE", ".gitattributes", "train.log", "log.txt", "a.png"):
        (tmp_path / name).write_text("x")
    for name in ("runs/config.json", ".hidden.json", *ADAPTER, "optimizer.bin"):
        (tmp_path / name).write_text("x")
    assert hub.identify(tmp_path) == before
    identities = {before}
    for name in loaded:
        (tmp_path / name).write_text("y")
        identities.add(hub.identify(tmp_path))
    (tmp_path / "tokenizer.json").write_text("x")
    identities.add(hub.identify(tmp_path))
    assert len(identities) == len(loaded) + 2


# ---- folders


def test_home_folder_in_a_name(monkeypatch, tmp_path):
    """~ is the user's home, and relative names and a slash at the end are names of folders too."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "opt").mkdir(exist_ok=True)
        (tmp_path / "opt" / file).write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.fetch("BASE_MODEL", "~/opt") == tmp_path / "opt"
    monkeypatch.chdir(tmp_path)
    for name in ("opt", "opt/", "./opt", "../" + tmp_path.name + "/opt"):
        assert hub.fetch("BASE_MODEL", name).samefile(tmp_path / "opt")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 331\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "pytorch_model.bin"])
def test_pointer_in_a_clone_of_a_model(tmp_path, file):
    """The file is named, and so is the command that fetches it; other files may be pointers."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "tf_model.h5").write_text(POINTER)
    assert hub.fetch("BASE_MODEL", str(tmp_path)) == tmp_path
    (tmp_path / file).write_text(POINTER)
    refusal = f"BASE_MODEL = '.*' was cloned without .*: in .*, {file} only .* `git lfs pull`"
    with pytest.raises(ValueError, match=refusal):
        hub.fetch("BASE_MODEL", str(tmp_path))


def test_pointer_in_a_clone_of_a_dataset(tmp_path):
    """Only the files that a run uses count."""
    files = data.list_files("base")
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(POINTER)
    refusal = "harmless-base/train.jsonl.gz, harmless-base/test.jsonl.gz only .* `git lfs pull`"
    with pytest.raises(ValueError, match=f"DATASET = .* {refusal}"):
        hub.fetch("DATASET", str(tmp_path), files[:2])


# ---- reasons of the network


LOGIN_PAGE = (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html>Welcome to our Wi-Fi")
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
FAULTS = {  # {what the hub does: (its answer, words of the message)}
    "a wrong token": ((401, BAD_TOKEN, b"{}"), "token is wrong.*`hf auth login`.*unset HF_TOKEN"),
    "an expired token": ((401, {}, b"{}"), "has expired.*`hf auth login`.*unset HF_TOKEN"),
    "a forbidden page": ((403, {}, b"{}"), "forbids access.*browser.*token the right to read"),
    "a proxy's question": ((407, {}, b"{}"), "proxy .* refused.*user:password@host"),
    "too many requests": ((429, {}, b"{}"), "too many requests.*Wait .*`hf auth login`"),
    "an error of its own": ((500, {}, b"{}"), r"a fault at the moment \(status 500\).*later"),
    "an overload": ((503, {}, b"<html>"), r"a fault at the moment \(status 503\).*status\.hugg"),
    "another server": ((404, {}, b"Not here"), "status 404.* is not the hub.*HF_ENDPOINT"),
    "a login page": (LOGIN_PAGE, "is not the hub.*login page of a network.*in a browser"),
    "a way in circles": ((302, {"Location": "/api/models/a/b"}, b""), "is not the hub.*login page"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_answer_of_the_hub_has_its_own_reason(online, tmp_path, fault):
    """It is given for the first question to the hub and for a file, and names no other reason."""
    answer, words = FAULTS[fault]
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    online.fault = ("/api/models/a/b", *answer)
    with pytest.raises(ValueError, match=f"BASE_MODEL = 'a/b' cannot be loaded .*{words}") as error:
        hub.fetch("BASE_MODEL", "a/b")
    assert "disk" not in str(error.value)
    assert "spelling" not in str(error.value)


def test_token_that_is_taken_for_a_missing_repository(certificate, online, monkeypatch, tmp_path):
    """Over TLS the client says that there is no such repository if the token has expired."""
    server = Hub(certificate)
    publish(server, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    server.fault = ("/api", 401, {"X-Error-Message": "User Access Token is expired"}, b"{}")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    ask(server.url, monkeypatch)
    with pytest.raises(ValueError, match=r"\(RepositoryNotFoundError\)\. The hub does .* token"):
        hub.fetch("BASE_MODEL", "a/b")
    server.close()


@pytest.mark.parametrize("fault", ["a login page", "a forbidden page"])
def test_fault_in_the_middle_of_a_download(online, tmp_path, fault):
    """Files may be refused although the hub has listed them."""
    answer, words = FAULTS[fault]
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    online.fault = ("/resolve/", *answer)
    with pytest.raises(ValueError, match=words):
        hub.fetch("BASE_MODEL", "a/b")


@pytest.mark.parametrize("fault", ["a wrong token", "too many requests", "an overload"])
def test_refused_requests_are_no_matter_if_the_cache_is_full(online, tmp_path, fault):
    """What is in the cache is used."""
    commit = publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    hub.fetch("BASE_MODEL", "a/b")
    online.fault = ("/", *FAULTS[fault][0])
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit


def test_part_in_the_cache_and_a_hub_that_refuses_the_rest(online, tmp_path):
    """The message names both."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    (hub.fetch("BASE_MODEL", "a/b") / "model.safetensors").unlink()
    online.fault = ("/api", 503, {}, b"")
    with pytest.raises(ValueError, match=r"Only a part of it is in .*\. The hub has a fault"):
        hub.fetch("BASE_MODEL", "a/b")


def test_login_page_that_the_network_leads_to(online, monkeypatch):
    """A redirect to the page of another server is noticed."""
    portal = Hub()
    portal.fault = ("/login", *LOGIN_PAGE)
    online.fault = ("/api", 302, {"Location": f"{portal.url}/login"}, b"")
    with pytest.raises(ValueError, match="is not the hub.*login page"):
        hub.fetch("BASE_MODEL", "a/b")
    portal.close()


@pytest.fixture
def certificate(tmp_path):
    """A file with a self-signed certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    path = tmp_path / "certificate.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path, "-out",
        tmp_path / "public.pem", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True)
    path.write_text(path.read_text() + (tmp_path / "public.pem").read_text())
    return path


def test_certificate_that_is_not_trusted(certificate, online, monkeypatch, tmp_path):
    """The message names SSL_CERT_FILE, and with it the model is fetched."""
    server = Hub(certificate)
    commit = publish(server, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    ask(server.url, monkeypatch)
    with pytest.raises(ValueError, match=r"certificate of https.* not trusted.*SSL_CERT_FILE"):
        hub.fetch("BASE_MODEL", "a/b")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    close_session()
    assert hub.commit_of(hub.fetch("BASE_MODEL", "a/b")) == commit
    server.close()


def test_server_without_encryption(online, monkeypatch):
    """A proxy that does not speak TLS is no certificate's fault."""
    ask(online.url.replace("http:", "https:"), monkeypatch)
    with pytest.raises(ValueError, match=r"No encrypted connection to https://127\.0\.0\.1"):
        hub.fetch("BASE_MODEL", "a/b")


def test_name_that_no_server_has(online, monkeypatch):
    """An address that cannot be looked up is named."""
    ask("http://hub.invalid", monkeypatch)
    with pytest.raises(ValueError, match=r"hub\.invalid was not found \(DNS\).*network connection"):
        hub.fetch("BASE_MODEL", "a/b")


def test_hub_that_does_not_answer(online, monkeypatch, tmp_path):
    """After some attempts the message names the settings of the waiting time."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    online.silent = "GET .*/resolve/"
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's attempts
    with pytest.raises(ValueError, match=r"did not answer in time\..* HF_HUB_DOWNLOAD_TIMEOUT"):
        hub.fetch("BASE_MODEL", "a/b")


def test_proxy_that_is_not_there(online, monkeypatch):
    """A connection that is refused is explained with the proxy."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ask("http://hub.example", monkeypatch)
    with pytest.raises(ValueError, match="hub.example cannot be reached.* HTTPS_PROXY"):
        hub.fetch("BASE_MODEL", "a/b")


def test_proxy_that_refuses(online, monkeypatch):
    """A connection error that is not an OSError is explained too."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, online.url)
    online.fault = ("", 407, {}, b"")
    ask("https://hub.example", monkeypatch)
    with pytest.raises(ValueError, match=r"\(ProxyError\)\. The proxy .* refused .*user:password"):
        hub.fetch("BASE_MODEL", "a/b")


# ---- reasons of the disk


def test_cache_that_cannot_be_written(online, monkeypatch, tmp_path):
    """The folder is named, and the network is not suspected."""
    publish(online, "a/b", tmp_path / "a", "config.json", "model.safetensors")
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    refusal = r"The cache, .*/file/cache, cannot be used \(Not a directory.*Set HF_HUB_CACHE"
    with pytest.raises(ValueError, match=refusal) as error:
        hub.fetch("BASE_MODEL", "a/b")
    assert "network" not in str(error.value)


def test_full_disk(online, tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    publish(online, "a/b", tmp_path / "a", "config.json")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"x" * 2**20)
    online.publish("models", "a/b", tmp_path / "a")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(ValueError, match="no room left on the disk .*Free some space"):
            hub.fetch("BASE_MODEL", "a/b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_name_that_is_too_long_for_a_file():
    """The file system's own reason is given."""
    with pytest.raises(ValueError, match=r"cannot be read \(File name too long: x+\)"):
        hub.fetch("BASE_MODEL", "x" * 300)
