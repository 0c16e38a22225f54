"""Small models of every class, directories that transformers wrote, and a hub on loopback."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vilt_fast

SIZES = dict(
    vocab_size=30,
    max_position_embeddings=10,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    image_size=16,
    patch_size=8,
)
CLASSES = {
    "ViltModel": {},
    "ViltForMaskedLM": {},
    "ViltForQuestionAnswering": {"num_labels": 5},
    "ViltForImagesAndTextClassification": {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 3},
    "ViltForImageAndTextRetrieval": {},
    "ViltForTokenClassification": {"num_labels": 4},
}


class Helpers:
    """What several test files need; a fixture, because tests/ is no package."""

    classes = tuple(CLASSES)

    @staticmethod
    def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
        """Every parameter random, so that one that is not loaded shows."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model

    @classmethod
    def make(cls, name: str, seed: int = 0, **fields: Any) -> Any:
        """Our random model of a class."""
        config = vilt_fast.ViltConfig(**{**SIZES, **CLASSES.get(name, {}), **fields})
        return cls.randomise(getattr(vilt_fast, name)(config), seed).eval()

    @classmethod
    def theirs(cls, name: str, seed: int = 0, **fields: Any) -> Any:
        """transformers' random model of a class."""
        transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers is the oracle")
        config = transformers.ViltConfig(**{**SIZES, **CLASSES[name], **fields})
        return cls.randomise(getattr(transformers, name)(config), seed).eval()

    @staticmethod
    def copy(model: nn.Module) -> dict[str, torch.Tensor]:
        """The values of a model now."""
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @staticmethod
    def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
        """Same names, same bits."""
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="session")
def helpers() -> type[Helpers]:
    return Helpers


COMMITS = {"main": "a" * 40, "old": "b" * 40}


class Hub:
    """Answers HEAD and GET of /REPO/resolve/REVISION/FILE as the hub does: text itself, weights by a redirect with
    X-Linked-Size and X-Linked-ETag. The folder holds team/NAME/REVISION/FILE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken = False  # answers 500
        self.tokens: dict[str, str] = {}  # repository -> the token that opens it
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.store_url = f"http://localhost:{self.server.server_port}/store"  # another host, as the real one is
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Nothing listens any more."""
        self.server.shutdown()
        self.server.server_close()

    def add(self, repository: str, source: Path, revision: str = "main") -> None:
        """Serve the files of a directory."""
        target = self.folder / repository / revision
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        if not self.path.startswith(("/team/", "/store/", "/api/models/")):
            return self._answer(404, b"")  # the client's own errands
        self.hub.requests.append((self.command, self.path))
        if self.hub.broken:
            return self._answer(500, b"")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "store":
            return self._answer(200, (self.hub.folder / "/".join(parts[1:])).read_bytes())
        if parts[:2] == ["api", "models"]:
            repository, revision, name = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", None
        else:
            repository, revision, name = "/".join(parts[:-3]), parts[-2], parts[-1]
        self._find(repository, revision, name)

    do_GET = do_HEAD  # noqa: N815

    def _find(self, repository: str, revision: str, name: str | None) -> None:
        token = self.hub.tokens.get(repository)
        if not (self.hub.folder / repository).is_dir() or (
            token is not None and self.headers.get("authorization") != f"Bearer {token}"
        ):
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repository in self.hub.gated:
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        revision = {commit: branch for branch, commit in COMMITS.items()}.get(revision, revision)
        folder = self.hub.folder / repository / revision
        if not folder.is_dir():
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": COMMITS[revision]}
        if name is None:
            files = [{"rfilename": path.name} for path in folder.iterdir()]
            content = {"id": repository, "sha": COMMITS[revision], "siblings": files}
            return self._answer(200, json.dumps(content).encode())
        path = folder / name
        if not path.is_file():
            return self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        if path.suffix in (".json", ".txt"):
            return self._answer(200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        headers |= {
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Location": f"{self.hub.store_url}/{path.relative_to(self.hub.folder).as_posix()}",
        }
        self._answer(302, b"", headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback that this process's huggingface_hub asks, with a cache of its own at `tmp_path / "cache"`."""
    from huggingface_hub import constants, file_download

    hub = Hub(tmp_path / "hub")
    hub.folder.mkdir()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # before 1.0 each module has its own copies
        monkeypatch.setattr(module, "ENDPOINT", hub.url, raising=module is constants)
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=module is constants)
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path / "cache"), raising=module is constants)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    yield hub
    hub.close()
