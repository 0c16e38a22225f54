"""Files of a model: a directory, or a repository of a hub that is served on loopback as the real one is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vilt_fast
from vilt_fast import checkpoints
from vilt_fast.checkpoints.hub import find_file, is_hub_id


@pytest.fixture
def model_on_hub(hub_server, helpers, tmp_path):
    """team/small: a model at main, another one, sharded, at old."""
    models = {"main": helpers.make("ViltForQuestionAnswering", 1), "old": helpers.make("ViltForQuestionAnswering", 2)}
    for revision, model in models.items():
        model.save_pretrained(tmp_path / revision, max_shard_size="5GB" if revision == "main" else "8KB")
        hub_server.add("team/small", tmp_path / revision, revision)
    return models


# --- directories ---------------------------------------------------------------------------------------------------


def test_a_directory(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    assert find_file(tmp_path, "config.json") == tmp_path / "config.json"
    assert find_file(str(tmp_path), "vocab.txt", required=False) is None
    with pytest.raises(FileNotFoundError, match=r"no vocab\.txt in the directory .* holds: config\.json"):
        find_file(tmp_path, "vocab.txt")
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileNotFoundError, match="holds: nothing"):
        find_file(tmp_path / "sub", "vocab.txt")
    monkeypatch.chdir(tmp_path)
    assert find_file("sub", "vocab.txt", required=False) is None  # a directory, although it could be a hub id


@pytest.mark.parametrize(
    "name",
    [
        "./team/small",
        "../team",
        "/no/such/directory",
        "~/no such",
        "a/b/c",
        "team\\small",
        "weights/vilt_vqa.ckpt",
        "model.safetensors",
        "",
        ".",
        "x/",
        "a--b",
        "é/x",
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_what_can_only_be_a_path_is_not_sent_to_the_hub(hub_server, tmp_path, monkeypatch, name, required):
    monkeypatch.chdir(tmp_path)
    if name == ".":
        name = "./"
        (tmp_path / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "sub")
        assert find_file(name, "config.json", required=False) is None
    else:
        with pytest.raises(FileNotFoundError, match="no directory .*config.json"):
            find_file(name, "config.json", required=required)
    with pytest.raises(FileNotFoundError, match="no directory"):
        find_file(Path("team/small"), "config.json")
    assert hub_server.requests == []


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is a file"):
        find_file(tmp_path / "model.ckpt", "config.json")
    with pytest.raises(ValueError, match="name_or_path: got None"):
        find_file(None, "config.json")


def test_hub_ids():
    for name in ("dandelin/vilt-b32-mlm", "bert-base-uncased", "a", "A.b/c_d-1"):
        assert is_hub_id(name)
    for name in ("a/b/c", "-a", "a-", "a/.b", "a..b/c", "x" * 97, "a b", "a/b.git", Path("a/b")):
        assert not is_hub_id(name)


# --- repositories --------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_once_and_then_found_without_the_hub(hub_server, model_on_hub, helpers, monkeypatch):
    loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small")
    assert helpers.same(loaded.state_dict(), model_on_hub["main"].state_dict())
    gets = [path for method, path in hub_server.requests if method == "GET"]
    assert len(gets) == 2 and any("/store/" in path for path in gets)  # the config; the weights from the store
    vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small")
    assert [path for method, path in hub_server.requests if method == "GET"] == gets
    asked = len(hub_server.requests)
    again = vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small", local_files_only=True)
    assert helpers.same(again.state_dict(), loaded.state_dict())
    assert len(hub_server.requests) == asked
    hub_server.close()  # no HF_HUB_OFFLINE, and nobody answers
    again = vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small")
    assert helpers.same(again.state_dict(), loaded.state_dict())


def test_a_sharded_revision(hub_server, model_on_hub, helpers):
    for revision in ("old", "b" * 40):
        loaded = vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small", revision=revision)
        assert helpers.same(loaded.state_dict(), model_on_hub["old"].state_dict())
    shards = {Path(path).name for method, path in hub_server.requests if method == "GET" and "-of-" in path}
    assert len(shards) > 1
    offline = vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small", revision="old", local_files_only=True)
    assert helpers.same(offline.state_dict(), model_on_hub["old"].state_dict())


def test_weights_of_a_revision(hub_server, model_on_hub, helpers, tmp_path):
    hub = {"revision": "old", "cache_dir": tmp_path / "mine", "token": None, "local_files_only": False}
    assert checkpoints.stored_dtype("team/small", **hub) == torch.float32
    model = vilt_fast.ViltForQuestionAnswering(model_on_hub["old"].config)
    checkpoints.load_weights(model, "team/small", **{**hub, "local_files_only": True})
    assert helpers.same(model.state_dict(), model_on_hub["old"].state_dict())


def test_an_unknown_option_of_the_hub(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    for name in ("team/small", tmp_path / "weights.safetensors"):
        with pytest.raises(TypeError, match="version"):
            checkpoints.load_weights(torch.nn.Linear(1, 1), name, version="old")
        with pytest.raises(TypeError, match="version"):
            checkpoints.stored_dtype(name, version="old")


def test_a_cache_of_ones_own(hub_server, model_on_hub, tmp_path):
    path = find_file("team/small", "config.json", cache_dir=tmp_path / "mine")
    assert path.is_relative_to(tmp_path / "mine") and not (tmp_path / "cache").exists()
    assert find_file("team/small", "config.json", cache_dir=tmp_path / "mine", local_files_only=True) == path


def test_what_the_hub_has_not(hub_server, model_on_hub):
    with pytest.raises(FileNotFoundError, match=r"no vocab\.txt in the hub repository 'team/small'"):
        find_file("team/small", "vocab.txt")
    assert find_file("team/small", "vocab.txt", required=False) is None
    assert find_file("team/small", "vocab.txt", local_files_only=True, required=False) is None
    for required in (True, False):
        with pytest.raises(FileNotFoundError, match=r"no directory 'team/absent', and no hub repository of that name"):
            find_file("team/absent", "config.json", required=required)
        with pytest.raises(FileNotFoundError, match="no revision 'v9' of the hub repository 'team/small'"):
            find_file("team/small", "config.json", revision="v9", required=required)
        hub_server.gated.add("team/small")
        with pytest.raises(FileNotFoundError, match="gated"):
            find_file("team/small", "new.json", required=required)
        hub_server.gated.clear()


def test_no_weights_on_the_hub(hub_server, tmp_path, helpers):
    helpers.make("ViltModel").config.save_pretrained(tmp_path / "empty")
    hub_server.add("team/empty", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no weights in 'team/empty' \(looked for model\.safetensors, .*bin"):
        vilt_fast.ViltModel.from_pretrained("team/empty")


def test_a_shard_that_the_hub_has_not(hub_server, model_on_hub):
    shard = sorted((hub_server.folder / "team/small/old").glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        vilt_fast.ViltForQuestionAnswering.from_pretrained("team/small", revision="old")


def test_a_private_repository_needs_its_token(hub_server, model_on_hub):
    hub_server.tokens["team/small"] = "hf_secret"
    with pytest.raises(FileNotFoundError, match="token="):
        find_file("team/small", "config.json")
    assert find_file("team/small", "config.json", token="hf_secret").is_file()


@pytest.mark.parametrize("required", [True, False])
def test_offline_and_not_cached(hub_server, required):
    with pytest.raises(FileNotFoundError, match="config.json of the hub repository 'team/small' is not in the local"):
        find_file("team/small", "config.json", local_files_only=True, required=required)
    assert hub_server.requests == []


def test_a_hub_that_fails(hub_server, model_on_hub, monkeypatch):
    import huggingface_hub.utils._http as http

    if hasattr(http, "time"):  # its pauses between attempts
        monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    hub_server.broken = True
    with pytest.raises(OSError, match="config.json of the hub repository 'team/small'"):
        find_file("team/small", "config.json")


def test_a_download_that_breaks_off_leaves_no_file(hub_server, model_on_hub, monkeypatch):
    """The store gives half of the bytes that the hub announced."""
    weights = hub_server.folder / "team/small/main/model.safetensors"
    whole = weights.read_bytes()
    answer = hub_server.server.RequestHandlerClass._answer

    def half(handler, status, content, headers=None):
        answer(handler, status, content[: len(content) // 2] if "/store/" in handler.path else content, headers)

    monkeypatch.setattr(hub_server.server.RequestHandlerClass, "_answer", half)
    with pytest.raises(OSError):
        find_file("team/small", "model.safetensors")
    monkeypatch.setattr(hub_server.server.RequestHandlerClass, "_answer", answer)
    assert find_file("team/small", "model.safetensors").read_bytes() == whole


SCRIPT = """
import sys
from vilt_fast.checkpoints.hub import find_file
print("huggingface_hub" in sys.modules)
for name in sys.argv[1:]:
    try:
        print(find_file(name, "config.json"))
    except FileNotFoundError as error:
        print("not found:", error)
"""


@pytest.mark.parametrize("known", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once(hub_server, model_on_hub, caplog, known):
    if known:
        find_file("team/small", "config.json")
    hub_server.close()
    name = "team/small" if known else "misspelt"
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=f"'{name}' is not in the local cache.* and the hub cannot be reached"):
        find_file(name, "vocab.txt")
    if known:
        assert find_file(name, "vocab.txt", required=False) is None
    assert time.perf_counter() - start < 5 and not caplog.records  # it would wait for half a minute, and say so


def test_the_environment_variables(hub_server, model_on_hub, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, which huggingface_hub reads when it is imported: by us, not before."""
    environment = {**os.environ, "HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path / "home")}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        environment.pop(name, None)

    def run(*names: str, **more: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *names],
            env={**environment, **more},
            text=True,
            capture_output=True,
            cwd=tmp_path,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        imported, *lines = done.stdout.splitlines()
        assert imported == "False"
        return lines

    path = Path(run("team/small")[0])
    assert path.is_relative_to(tmp_path / "home")
    assert path.read_bytes() == (hub_server.folder / "team/small/main/config.json").read_bytes()
    asked = len(hub_server.requests)
    assert asked > 0
    offline = run("team/small", "team/other", HF_HUB_OFFLINE="1")
    assert Path(offline[0]) == path
    assert offline[1].startswith("not found: config.json of the hub repository 'team/other' is not in the local cache")
    assert len(hub_server.requests) == asked
