"""The pack as ComfyUI and an artist see it: inputs, names, help pages, languages, start-up."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import clients.comfyui_node as pack
from clients.comfyui_node import choice, comfy_api, dispatcher
from clients.comfyui_node.dispatcher import ClientCache, Dispatcher
from ditmesh.errors import DitmeshError, Unauthenticated, Unavailable

from .fakes import card

FOLDER = Path(pack.__file__).parent
ROOT = FOLDER.parents[1]
NODES = sorted(pack.NODE_CLASS_MAPPINGS)
LANGUAGES = ("en", "zh")

KSAMPLER = (
    *("model", "seed", "steps", "cfg", "sampler_name", "scheduler"),
    *("positive", "negative", "latent_image", "denoise"),
)
KSAMPLER_ADVANCED = (
    *("model", "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler"),
    *("positive", "negative", "latent_image", "start_at_step", "end_at_step"),
    "return_with_leftover_noise",
)


@pytest.fixture(autouse=True)
def comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists that ComfyUI fills."""
    monkeypatch.setattr(comfy_api, "sampler_names", lambda: ["euler", "dpmpp_2m"])
    monkeypatch.setattr(comfy_api, "scheduler_names", lambda: ["simple"])


def input_names(node: str) -> list[str]:
    kinds = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    return [*kinds["required"], *kinds.get("optional", {})]


@pytest.mark.parametrize(
    ("node", "names"),
    [("XDiTKSampler", KSAMPLER), ("XDiTKSamplerAdvanced", KSAMPLER_ADVANCED)],
)
def test_samplers_have_ksamplers_inputs_in_its_order(node: str, names: tuple[str, ...]) -> None:
    """So that one replaces the other in a workflow; the dispatcher comes last and is optional."""
    kinds = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    assert tuple(kinds["required"]) == names
    assert list(kinds["optional"]) == ["xdit_dispatcher"]


@pytest.mark.parametrize("node", NODES)
def test_every_input_is_a_parameter_and_has_a_tooltip(node: str) -> None:
    """What ComfyUI passes is what the function takes."""
    cls = pack.NODE_CLASS_MAPPINGS[node]
    kinds = cls.INPUT_TYPES()
    taken = getattr(cls, cls.FUNCTION).__code__
    parameters = set(taken.co_varnames[1 : taken.co_argcount])
    assert parameters == {*input_names(node), *kinds.get("hidden", {})}
    for group in ("required", "optional"):
        for name, (_, options) in kinds.get(group, {}).items():
            assert options.get("tooltip"), name
    assert cls.DESCRIPTION
    assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES)
    assert node in pack.NODE_DISPLAY_NAME_MAPPINGS


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_every_node_is_explained_in_every_language(node: str, language: str) -> None:
    """A help page, and a translation of each input that the node has, and of no other."""
    # ComfyUI falls back to the page without a language, so that is the English one.
    name = node if language == "en" else f"{node}/{language}"
    page = FOLDER / pack.WEB_DIRECTORY / "docs" / f"{name}.md"
    assert page.read_text(encoding="utf-8").startswith("# ")
    definitions = json.loads(
        (FOLDER / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    )
    assert sorted(definitions) == NODES
    assert definitions[node]["display_name"]
    translated = definitions[node]["inputs"]
    assert sorted(translated) == sorted(input_names(node))
    assert all(entry["name"] and entry["tooltip"] for entry in translated.values())


def test_loading_the_pack_loads_nothing_else() -> None:
    """ComfyUI starts no slower: neither torch nor gRPC nor ditmesh is imported by the pack."""
    code = (
        "import sys, clients.comfyui_node; "
        "heavy = {'torch', 'grpc', 'google', 'numpy', 'ditmesh', 'comfy'} & set(sys.modules); "
        "print(*sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_pack_is_python_3_10(path: Path) -> None:
    """The oldest Python of a supported ComfyUI reads every module."""
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_the_pack_installs_no_torch() -> None:
    """ComfyUI brings its own, and another would replace it."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    lines = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for named in (lines, project["project"]["dependencies"]):
        names = {re.split(r"[^a-z]", each)[0] for each in named}
        assert names == {"ditmesh", "grpcio", "protobuf", "safetensors", "numpy"}


def workflows() -> list[Path]:
    return sorted((FOLDER / "example_workflows").glob("*.json"))


def test_there_are_example_workflows() -> None:
    """The four that the README names."""
    assert len(workflows()) == 4


@pytest.mark.parametrize("path", workflows(), ids=lambda path: path.stem)
def test_example_workflows_fit_the_nodes(path: Path) -> None:
    """Each has a thumbnail, sound links, and as many widget values as its nodes have widgets."""
    assert path.with_suffix(".jpg").is_file()
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert any(node["type"].startswith("XDiT") for node in nodes.values())
    for link, source, slot, target, entry, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][entry]["link"] == link
        assert nodes[source]["outputs"][slot]["type"] == kind
    for node in nodes.values():
        if node["type"] in pack.NODE_CLASS_MAPPINGS:
            assert len(node["widgets_values"]) == len(widgets(node["type"]))


def widgets(node: str) -> list[str]:
    kinds = pack.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    names = []
    for name, (kind, options) in {**kinds["required"], **kinds.get("optional", {})}.items():
        if kind in ("STRING", "INT", "FLOAT", "BOOLEAN") or isinstance(kind, list):
            names.append(name)
            names += ["control"] * bool(options.get("control_after_generate"))
    return names


def test_one_connection_serves_equal_dispatchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever terms they give a single job, until the token in the environment changes."""
    made: list[Dispatcher] = []
    cache = ClientCache(lambda given: made.append(given) or object())
    monkeypatch.setenv(dispatcher.TOKEN_VARIABLE, "one")
    first = cache.get(Dispatcher("a:1"))
    assert cache.get(Dispatcher("a:1", timeout_s=9.0, fallback="group only")) is first
    assert cache.get(Dispatcher("b:1")) is not first
    monkeypatch.setenv(dispatcher.TOKEN_VARIABLE, "two")
    assert cache.get(Dispatcher("a:1")) is not first
    assert len(made) == 3


def test_a_dropped_connection_is_made_anew() -> None:
    """The old one is closed; others stay."""
    closed: list[Dispatcher] = []

    def connect(given: Dispatcher) -> Any:
        return SimpleNamespace(close=lambda: closed.append(given))

    cache = ClientCache(connect)
    first, other = cache.get(Dispatcher("a:1")), cache.get(Dispatcher("b:1"))
    cache.drop(Dispatcher("a:1"))
    assert closed == [Dispatcher("a:1")]
    assert cache.get(Dispatcher("a:1")) is not first
    assert cache.get(Dispatcher("b:1")) is other
    cache.close()
    assert len(closed) == 3


def test_a_connection_that_once_failed_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the cluster is back, the first try finds it; when it is not, one new try is enough."""
    answers: list[Any] = [Unavailable("old"), "the cluster", Unavailable("down"), Unavailable("so")]
    made: list[Dispatcher] = []

    def answer() -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def connect(given: Dispatcher) -> Any:
        made.append(given)
        return SimpleNamespace(cluster=answer, close=lambda: None)

    monkeypatch.setattr(dispatcher, "_CLIENTS", ClientCache(connect))
    monkeypatch.setattr(comfy_api, "raise_if_cancelled", lambda: None)
    here = Dispatcher("here:1")
    here.client()
    assert here.cluster() == "the cluster"
    with pytest.raises(Unavailable, match="so"):
        here.cluster()
    assert (len(made), answers) == (3, [])


def test_no_dispatcher_means_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or this machine's cluster."""
    monkeypatch.delenv(dispatcher.ADDRESS_VARIABLE, raising=False)
    assert Dispatcher.from_environment().address == dispatcher.DEFAULT_ADDRESS
    monkeypatch.setenv(dispatcher.ADDRESS_VARIABLE, "gpus:50050")
    assert Dispatcher.from_environment().address == "gpus:50050"


def test_the_token_is_no_part_of_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI writes inputs into error reports and pictures."""
    monkeypatch.setenv(dispatcher.TOKEN_VARIABLE, "secret")
    assert "secret" not in repr(Dispatcher.from_environment())


def test_a_single_model_need_not_be_named() -> None:
    """Of several, the name decides; the error lists them."""
    one, two = card("one"), card("two", has_pipeline=True)
    assert choice.pick([one], "", "here", False) is one
    assert choice.pick([one, two], "two", "here", False) is two
    assert choice.pick([one, two], "", "here", True) is two
    with pytest.raises(choice.NoModel, match="choose one of: one, two"):
        choice.pick([one, two], "", "here", False)
    with pytest.raises(choice.NoModel, match="'three'; there are: one, two"):
        choice.pick([one, two], "three", "here", False)
    with pytest.raises(choice.NoModel, match=r"can encode prompts.*none"):
        choice.pick([one], "", "here", True)


@pytest.mark.parametrize(
    ("error", "started"), [(Unavailable("it is down"), True), (Unauthenticated("no token"), False)]
)
def test_a_cluster_that_cannot_be_asked_has_no_model(
    monkeypatch: pytest.MonkeyPatch, error: DitmeshError, started: bool
) -> None:
    """The error names it and says why, and what would start one where none answers."""

    def cluster(self: Dispatcher) -> Any:
        raise error

    monkeypatch.setattr(Dispatcher, "cluster", cluster)
    with pytest.raises(choice.NoModel, match=rf"at here:1 cannot be used: {error}") as told:
        choice.choose_model(Dispatcher("here:1"), "")
    assert ("ditmesh up" in str(told.value)) is started
