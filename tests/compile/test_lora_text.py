"""LoRAs of a text encoder with 4-bit weights: columns of its layers' branches, as of the denoiser's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from artifact.manifest import Artifact
from engines.session import Session
from engines.trt import plan
from engines.trt.refit import structure_sha256
from engines.trt.versions import Version
from export.lora.__main__ import app
from export.lora.apply import apply, remove
from export.lora.engines import advice
from export.pipeline import load_pipeline
from export.source import open_source
from passes.lora import ranks
from passes.verify_tensorrt import objection
from tests.compile import loras
from tests.compile.test_lora import DENOISER, data_files, distance, hashes, node
from tests.passes.nodewise import oracle, svdq_nodes
from tests.passes.plugin_nodes import attributes, compute, constants

TEXT = "text_encoder_2"
FOUR_BIT = ("q", "k", "v", "o", "wi_0", "wi_1")
PRESETS = ("svdq-int4", "int4-rtn")
IDS = np.arange(2, 26, dtype=np.int64).reshape(2, 12)
T5 = loras.random(
    {n: s for n, s in loras.linears("shapes-dit", TEXT).items() if n.split(".")[-1] in (*FOUR_BIT, "wo")}, TEXT
)
BOTH = T5 | loras.random({"transformer_blocks.0.attn.to_k": (192, 192), "x_embedder": (192, 64)}, DENOISER)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def artifact(built_text: Path, tmp_path: Path) -> Path:
    """An artifact of the test's own."""
    return Path(shutil.copytree(built_text, tmp_path / "artifact"))


@pytest.fixture(scope="module")
def folded(built_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact with a LoRA of rank 4 on every linear of T5 and on two of the transformer."""
    root = tmp_path_factory.mktemp("lora")
    apply(Path(shutil.copytree(built_text, root / "out")), [loras.as_peft(root / "both.safetensors", BOTH)], [0.5])
    return root / "out"


def text_graph(root: Path, preset: str = PRESETS[0], form: str = "models") -> ir.Model:
    opened = Artifact.open(root)
    return ir.load(opened.path(opened.manifest["components"][TEXT][form][preset]))


def in_torch(adapters: list[tuple[loras.Matrices, float]], four_bit: Path | None = None) -> np.ndarray:
    """What transformers' T5 gives with the LoRAs merged, in float32; its weights those of `four_bit`, if given."""
    pipe = load_pipeline(open_source("shapes-dit"))
    for layer in svdq_nodes(text_graph(four_bit)) if four_bit else ():
        held = constants(layer)
        scales = np.repeat(held["wscale"].astype(np.float32), 64, axis=1)
        weight = pipe.text_encoder_2.get_submodule(layer.name).weight
        weight.data.copy_(torch.from_numpy(held["qweight"].astype(np.float32) * scales))
    loras.merge(pipe, adapters)
    with torch.no_grad():
        return pipe.text_encoder_2(torch.from_numpy(IDS))[0].numpy()


def in_onnx(root: Path, preset: str) -> np.ndarray:
    (found,) = Session(Artifact.open(root).model(TEXT, preset), preset, threads=1).run({"input_ids": IDS}).values()
    return found


def test_its_text_is_torch_s_with_the_lora_merged_up_to_the_quantisation_there_was(
    built_text: Path, folded: Path
) -> None:
    plain, merged = in_torch([]), in_torch([(BOTH, 0.5)])
    before = distance(in_onnx(built_text, PRESETS[0]), plain)
    assert distance(merged, plain) > 1.5 * before > 1e-3
    assert distance(in_onnx(folded, PRESETS[0]), merged) <= 1.2 * before + 5e-3
    # Activations are not quantised: from the 4-bit weights on, nothing is lost.
    assert distance(in_onnx(folded, PRESETS[0]), in_torch([(BOTH, 0.5)], built_text)) < 5e-3
    assert distance(in_onnx(folded, "fp16"), merged) < 5e-3


def test_4_bit_layers_gain_columns_and_16_bit_ones_are_merged_in_both_forms(built_text: Path, folded: Path) -> None:
    before = {n.name: constants(n) for n in svdq_nodes(text_graph(built_text))}
    lowered = text_graph(folded, form="tensorrt")
    packed = {n.name: n for n in svdq_nodes(lowered)}
    for after in svdq_nodes(text_graph(folded)):
        new, other = constants(after), packed.pop(after.name)
        assert after.attributes["rank"].as_int() == other.attributes["rank"].as_int() == 16
        for field, old in before[after.name].items():
            np.testing.assert_array_equal(new[field].astype(np.float32), old.astype(np.float32))
        a, b = T5[f"{TEXT}.{after.name}"]
        product = new["down"].astype(np.float64) @ new["up"].astype(np.float64)
        np.testing.assert_allclose(product, 0.5 * loras.product(a, b).T, atol=1e-3)
        x = np.random.default_rng(0).standard_normal((3, a.shape[1])).astype(np.float16)
        np.testing.assert_array_equal(compute(x, constants(other), attributes(other))[0], oracle(after, x)[0])
    assert not packed and objection(lowered) is None
    held, base = (text_graph(root).graph.initializers for root in (folded, built_text))
    wide = [name for name in held if name.endswith(".wo.weight")]
    assert len(wide) == 2
    for name in wide:
        a, b = T5[f"{TEXT}.{name.removesuffix('.weight')}"]
        value = held[name].const_value.numpy()
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, base[name].const_value.numpy() + 0.5 * loras.product(a, b), atol=2e-6)
        np.testing.assert_array_equal(lowered.graph.initializers[name].const_value.numpy(), value)


def test_every_preset_tells_of_the_layers_that_it_shares(built_text: Path, folded: Path) -> None:
    before, after = (Artifact.open(root).manifest for root in (built_text, folded))
    assert len({after["components"][TEXT]["models"][p] for p in PRESETS}) == 1
    names = {n.removeprefix(f"{TEXT}.") for n in T5 if n.split(".")[-1] in FOUR_BIT}
    for preset in PRESETS:
        grown = after["lora"]["ranks"][preset]
        assert grown[TEXT] == dict.fromkeys(names, [0, 16])
        assert set(grown[DENOISER]) == {"transformer_blocks.0.attn.to_qkv"}
        for name in names:
            old, new = (m["layers"][preset][TEXT][name] for m in (before, after))
            assert new["rank"] == 16 and new["bytes"] - old["bytes"] == 16 * (old["n"] + old["k"]) * 2
    assert set(after["lora"]["ranks"]) == set(PRESETS) and "fp16" not in after["layers"]


def test_the_list_names_the_components(folded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app([str(folded), "--list"], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert f"strength 0.5  rank 4  {len(BOTH)} layers" in said[0]
    for preset in PRESETS:
        assert f"{preset}: the rank of 12 4-bit layers of {TEXT} grows by 16" in said
        assert f"{preset}: the rank of 1 4-bit layers of {DENOISER} grows by 16" in said
    assert said[-1] == "fp16: merged into 16-bit weights"


def test_removing_and_replacing_restore_every_byte(artifact: Path, tmp_path: Path) -> None:
    before = hashes(artifact)
    paths = [loras.as_peft(tmp_path / f"{i}.safetensors", m) for i, m in enumerate((BOTH, loras.only(T5, ".q", "wo")))]
    apply(artifact, paths[:1], [])
    apply(artifact, paths[1:], [0.5])
    replaced = hashes(artifact)
    remove(artifact)
    assert hashes(artifact) == before
    apply(artifact, paths[1:], [0.5])
    assert hashes(artifact) == replaced


def test_kohya_s_and_diffusers_files_of_one_lora_give_the_same_weights(artifact: Path, tmp_path: Path) -> None:
    """kohya calls FLUX's T5 its third text encoder, diffusers its second."""
    found = []
    for write in (loras.as_peft, loras.as_kohya):
        apply(artifact, [write(tmp_path / "a.safetensors", BOTH, alpha=2)], [0.5], PRESETS[0])
        found.append(data_files(artifact))
    assert found[0] == found[1]
    assert {name.split("/")[0] for name in found[0]} == {TEXT, DENOISER}


def test_several_loras_share_a_branch_and_one_preset_alone_can_have_them(artifact: Path, tmp_path: Path) -> None:
    wide = loras.random({n.removeprefix(f"{TEXT}."): (len(b), a.shape[1]) for n, (a, b) in T5.items()}, TEXT, rank=24)
    paths = [loras.as_peft(tmp_path / f"{i}.safetensors", m) for i, m in enumerate((T5, wide))]
    apply(artifact, paths, [1.0, -0.5], PRESETS[0])
    assert set(ranks(text_graph(artifact)).values()) == {32}
    assert set(ranks(text_graph(artifact, PRESETS[1])).values()) == {0}
    wanted = in_torch([(T5, 1.0), (wide, -0.5)], artifact)
    assert distance(in_onnx(artifact, PRESETS[0]), wanted) < 5e-3
    assert distance(in_onnx(artifact, "fp16"), in_torch([])) < 5e-3
    assert node(artifact, "transformer_blocks.0.attn.to_qkv").attributes["rank"].as_int() == 32  # not T5's affair


@pytest.mark.parametrize(("rank", "said"), [(16, "to refit"), (24, "to build again")])
def test_its_engine_is_refitted_within_the_reserved_rank(artifact: Path, tmp_path: Path, rank: int, said: str) -> None:
    opened = Artifact.open(artifact)
    graph = opened.tensorrt(TEXT, PRESETS[0])
    path = artifact / plan.DIRECTORY / plan.name(TEXT, PRESETS[0], 87, Version(10, 3))
    path.parent.mkdir()
    path.write_bytes(b"engine")
    plan.write(path, {
        "component": TEXT, "preset": PRESETS[0], "sm": "87", "tensorrt": "10.3.0", "plugin_sha256": None,
        "plugin_in_plan": False, "onnx_sha256": plan.graph_sha256(opened, graph), "source_sha256": "5" * 64,
        "profiles": [], "refittable": True, "structure_sha256": structure_sha256(opened, graph),
        "weight_streaming": False, "builder": "api",
    })  # fmt: skip
    assert not [line for line in advice(opened) if path.name in line]
    lora = loras.random({"encoder.block.0.layer.0.SelfAttention.q": (128, 128)}, TEXT, rank=rank)
    (line,) = [x for x in advice(apply(artifact, [loras.as_peft(tmp_path / "r.safetensors", lora)], [])) if TEXT in x]
    assert line.startswith(said)
