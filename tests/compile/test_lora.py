"""LoRAs in a built artifact: what it computes with them is the merged model, and without them what it was."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from artifact import manifest as manifests
from artifact.files import sha256
from artifact.manifest import Artifact
from bench.train_lora import train
from engines.external import pieces
from engines.session import Session
from engines.trt import plan
from engines.trt.refit import structure_sha256
from engines.trt.versions import Version
from export.lora import state
from export.lora.apply import apply, remove
from export.lora.engines import advice
from export.pipeline import load_pipeline
from export.source import open_source
from passes.lora import ranks
from passes.presets import plugin_form
from passes.write import write_model
from plugins.svdq_linear.spec import padded_rank
from tests.compile import loras
from tests.passes.nodewise import oracle, svdq_nodes
from tests.passes.plugin_nodes import attributes, compute, constants

DENOISER, PRESET = "transformer", "svdq-int4"
MODEL = {DENOISER: "shapes-dit", "unet": "shapes-unet"}
QKV = "transformer_blocks.0.attn.to_qkv"
ALL = loras.random(loras.linears("shapes-dit", DENOISER), DENOISER)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    """An artifact of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "artifact"))


@pytest.fixture(scope="module")
def folded(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact with a LoRA of rank 4 on every linear of the transformer."""
    root = tmp_path_factory.mktemp("lora")
    apply(Path(shutil.copytree(built, root / "out")), [loras.as_peft(root / "all.safetensors", ALL)], [])
    return root / "out"


def hashes(root: Path) -> dict[str, str]:
    found = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.name.startswith(".lock"))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def data_files(root: Path) -> dict[str, str]:
    """Hashes of a LoRA's data by preset and form. The graphs name their state, which is the file's."""
    names = Artifact.open(root).manifest["lora"]["files"]
    return {n.split(".lora-")[0] + n.split(".lora-")[1][12:]: sha256(root / n) for n in names if n.endswith(".data")}


@functools.cache
def inputs(module: str = DENOISER) -> dict[str, torch.Tensor]:
    """What the pipeline gives its denoiser in a step: random numbers would drive it beyond float16."""
    pipe = load_pipeline(open_source(MODEL[module]))
    seen: list[dict[str, Any]] = []
    getattr(pipe, module).register_forward_pre_hook(
        lambda _, args, given: seen.append({**dict(zip(("sample", "timestep"), args, strict=False)), **given}),
        with_kwargs=True,
    )
    prompts = ["a large red circle at the top on white", "a small blue square left of a large green cross on grey"]
    generator = torch.Generator().manual_seed(0)
    pipe(prompts, num_inference_steps=2, height=64, width=64, generator=generator, output_type="latent")
    found = {name: value for name, value in seen[1].items() if isinstance(value, torch.Tensor)}
    return found | {"timestep": found["timestep"].expand(len(found.get("sample", found["timestep"])))}


def in_torch(adapters: Sequence[tuple[loras.Matrices, float]] = (), module: str = DENOISER) -> np.ndarray:
    """What diffusers' denoiser gives with the LoRAs merged, in float32."""
    pipe = load_pipeline(open_source(MODEL[module]))
    loras.merge(pipe, adapters)
    return computed(pipe, module)


def computed(pipe: Any, module: str) -> np.ndarray:
    with torch.no_grad():
        return getattr(pipe, module)(**inputs(module), return_dict=False)[0].numpy()


def in_onnx(root: Path, preset: str, module: str = DENOISER) -> np.ndarray:
    session = Session(Artifact.open(root).model(module, preset), preset, threads=1)
    names = session.inputs
    (found,) = session.run({k: v.numpy() for k, v in inputs(module).items() if k in names}).values()
    return found


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def graph(root: Path, preset: str = PRESET, form: str = "models") -> ir.Model:
    artifact = Artifact.open(root)
    return ir.load(artifact.path(artifact.manifest["components"][DENOISER][form][preset]))


def node(root: Path, name: str, form: str = "models") -> ir.Node:
    return next(n for n in svdq_nodes(graph(root, form=form)) if n.name == name)


def test_the_16_bit_graph_is_torch_s_with_the_lora_merged(built: Path, folded: Path) -> None:
    merged, plain = in_torch([(ALL, 1.0)]), in_torch()
    assert distance(merged, plain) > 0.1  # the LoRA does something
    assert distance(in_onnx(folded, "fp16"), merged) < max(5e-3, 2 * distance(in_onnx(built, "fp16"), plain))


@pytest.mark.parametrize("preset", ["svdq-int4", "int4-rtn"])
def test_the_4_bit_graph_is_as_close_to_it_as_without_a_lora(built: Path, folded: Path, preset: str) -> None:
    before = distance(in_onnx(built, preset), in_torch())
    assert distance(in_onnx(folded, preset), in_torch([(ALL, 1.0)])) <= 1.2 * before + 5e-3


def test_every_node_gains_its_lora_s_product(built: Path, folded: Path) -> None:
    """Merged q/k/v, both halves of a split proj_out, weight-only modulations: y grows by x·A·B."""
    before = {n.name: n for n in svdq_nodes(graph(built))}
    for after in svdq_nodes(graph(folded)):
        name = str(after.name)
        a, b = expected(name)
        k = a.shape[1]
        x = np.random.default_rng(0).standard_normal((5, k)).astype(np.float16)
        old, new = (constants(n) for n in (before[name], after))
        rank = old["down"].shape[1] if "down" in old else 0
        for field in ("qweight", "wscale", "inv_smooth", "bias"):
            np.testing.assert_array_equal(new[field].astype(np.float32), old[field].astype(np.float32))
        down, up = new["down"][:, rank:].astype(np.float64), new["up"][rank:].astype(np.float64)
        exact = x.astype(np.float64) @ (b @ a).T
        bound = 2.0**-10 * (np.abs(x).astype(np.float64) @ np.abs(down) @ np.abs(up))
        assert (np.abs(x.astype(np.float64) @ down @ up - exact) <= bound).all(), name
        assert after.attributes["rank"].as_int() == padded_rank(rank + (12 if "qkv" in name else 4))


def expected(layer: str) -> tuple[np.ndarray, np.ndarray]:
    """A [r, K] and B [N, r] of a layer of the graph, from the pairs of the linears that it was made of."""
    if layer.endswith((".proj_out.0", ".proj_out.1")):
        a, b = ALL[f"{DENOISER}.{layer[:-2]}"]
        return (a[:, :192] if layer.endswith("0") else a[:, 192:]).astype(np.float64), b.astype(np.float64)
    for merged, members in (
        ("to_qkv", ("to_q", "to_k", "to_v")),
        ("add_qkv_proj", ("add_q_proj", "add_k_proj", "add_v_proj")),
    ):
        if layer.endswith(merged):
            pairs = [ALL[f"{DENOISER}.{layer.removesuffix(merged)}{m}"] for m in members]
            b = np.zeros((sum(len(p[1]) for p in pairs), 4 * len(pairs)))
            for i, (_, part) in enumerate(pairs):
                b[i * len(part) : (i + 1) * len(part), 4 * i : 4 * i + 4] = part
            return np.concatenate([p[0] for p in pairs]).astype(np.float64), b
    a, b = ALL[f"{DENOISER}.{layer}"]
    return a.astype(np.float64), b.astype(np.float64)


def test_both_forms_agree_and_have_what_did_not_change_in_the_base_s_files(folded: Path) -> None:
    lowered = {n.name: n for n in svdq_nodes(graph(folded, form="tensorrt"))}
    for portable in svdq_nodes(graph(folded)):
        other = lowered.pop(portable.name)
        x = np.random.default_rng(0).standard_normal((3, other.attributes["k"].as_int())).astype(np.float16)
        np.testing.assert_array_equal(compute(x, constants(other), attributes(other))[0], oracle(portable, x)[0])
    assert not lowered
    artifact = Artifact.open(folded)
    used = {p.file.name for p in pieces(artifact.tensorrt(DENOISER, PRESET))}
    assert {"svdq-int4.onnx.data", "svdq-int4.trt.onnx.data"} < used
    for name in artifact.manifest["lora"]["files"]:
        if name.endswith(".onnx"):
            own = names_in(artifact.path(name))
            assert own and all(n.endswith((".down", ".up", ".weight")) for n in own), own


def names_in(path: Path) -> list[str]:
    """The weights that lie in a graph's own data file."""
    held = {str(v.name): v.const_value for v in ir.load(path).graph.initializers.values()}
    return [n for n, t in held.items() if isinstance(t, ir.ExternalTensor) and t.location == f"{path.name}.data"]


def test_removing_and_replacing_restore_every_byte(artifact: Path, tmp_path: Path) -> None:
    before = hashes(artifact)
    first = loras.as_peft(tmp_path / "first.safetensors", ALL)
    second = loras.as_peft(tmp_path / "second.safetensors", loras.only(ALL, "attn", "x_embedder"))
    apply(artifact, [first], [0.5], PRESET)
    assert {n: h for n, h in hashes(artifact).items() if n in before and n != "manifest.json"} == {
        n: h for n, h in before.items() if n != "manifest.json"
    }
    apply(artifact, [second], [], PRESET)
    replaced = hashes(artifact)
    remove(artifact)
    assert hashes(artifact) == before
    apply(artifact, [second], [], PRESET)
    assert hashes(artifact) == replaced
    apply(artifact, [second], [], PRESET)  # once more: nothing to do
    assert hashes(artifact) == replaced


def test_kohya_s_and_diffusers_files_of_one_lora_give_the_same_weights(artifact: Path, tmp_path: Path) -> None:
    apply(artifact, [loras.as_peft(tmp_path / "peft.safetensors", ALL, alpha=2)], [0.5], PRESET)
    peft = data_files(artifact)
    apply(artifact, [loras.as_kohya(tmp_path / "kohya.safetensors", ALL, alpha=2)], [0.5], PRESET)
    assert data_files(artifact) == peft and len(peft) == 2


def test_several_loras_add_up_with_their_strengths(artifact: Path, tmp_path: Path) -> None:
    one = loras.only(ALL, "attn", "ff.", "norm_out")
    two = loras.random({"transformer_blocks.0.attn.to_v": (192, 192), "x_embedder": (192, 64)}, DENOISER, 24, seed=9)
    paths = [loras.as_peft(tmp_path / f"{i}.safetensors", m) for i, m in enumerate((one, two, one))]
    apply(artifact, paths, [0.5, 1.0, -0.25])
    wanted = in_torch([(one, 0.5), (two, 1.0), (one, -0.25)])
    assert distance(in_onnx(artifact, "fp16"), wanted) < 5e-3
    assert ranks(graph(artifact))[QKV] == 32 + padded_rank(12 + 24 + 12)
    adapters = Artifact.open(artifact).manifest["lora"]["adapters"]
    assert [(a["strength"], a["rank"], len(a["layers"])) for a in adapters] == [
        (0.5, 4, len(one)), (1.0, 24, 2), (-0.25, 4, len(one)),
    ]  # fmt: skip


def test_a_lora_on_one_member_of_a_merged_layer_costs_only_that(artifact: Path, tmp_path: Path) -> None:
    k = loras.random({"transformer_blocks.0.attn.to_k": (192, 192)}, DENOISER, rank=16)
    apply(artifact, [loras.as_peft(tmp_path / "k.safetensors", k)], [], PRESET)
    before, after = {PRESET: 32}[PRESET], node(artifact, QKV)
    assert after.attributes["rank"].as_int() == before + 16
    up = constants(after)["up"][before:]
    assert not up[:, :192].any() and up[:, 192:384].any() and not up[:, 384:].any()
    manifest = Artifact.open(artifact).manifest
    assert manifest["lora"]["ranks"][PRESET] == {DENOISER: {QKV: [32, 48]}}
    row = manifest["layers"][PRESET][DENOISER][QKV]
    assert row["rank"] == 48
    remove(artifact)
    assert (
        row["bytes"] - Artifact.open(artifact).manifest["layers"][PRESET][DENOISER][QKV]["bytes"]
        == 16 * (192 + 576) * 2
    )


def test_a_fused_q_k_v_of_the_file_shares_its_down_projection(artifact: Path, tmp_path: Path) -> None:
    """FLUX's own names, which diffusers converts: img_attn_qkv has one A and three times the rows of B."""
    rng = np.random.default_rng(4)
    a = rng.standard_normal((16, 192)).astype(np.float32) / 14
    b = rng.standard_normal((576, 16)).astype(np.float32) / 10
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    arrays = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": np.float32(8)}
    apply(artifact, [loras.saved(tmp_path / "bfl.safetensors", arrays)], [], PRESET)
    after = node(artifact, QKV)
    assert after.attributes["rank"].as_int() == 48  # 32 and 16, not 32 and three times 16
    weights = constants(after)
    found = weights["down"][:, 32:].astype(np.float64) @ weights["up"][32:].astype(np.float64)
    np.testing.assert_allclose(found, 0.5 * (b.astype(np.float64) @ a).T, atol=2e-3)


def with_reserve(root: Path, reserve: int) -> None:
    """Lower the artifact's 4-bit preset again with room, as `--reserve-rank` does, and record it."""
    path = root / DENOISER / f"{PRESET}.onnx"
    model = plugin_form(reserve)(ir.load(path)).model
    target = path.with_name(f"{PRESET}.trt.onnx")
    for old in (target, target.with_name(f"{target.name}.data")):
        old.unlink()
    files = write_model(model, target, shared=[path.with_name(f"{path.name}.data")])
    content = dict(Artifact.open(root, verify=False).manifest)
    content["files"] |= manifests.record(root, [str(f.relative_to(root)) for f in files])
    content.pop("format")
    (root / "manifest.json").unlink()
    manifests.write(root, content | {"reserve_rank": reserve})


def shapes_of(model: ir.Model) -> dict[str, Any]:
    return {str(v.name): (v.dtype, tuple(v.shape or ())) for v in model.graph.initializers.values()}


def test_with_room_the_plugin_form_keeps_its_shapes_and_without_it_grows(artifact: Path, tmp_path: Path) -> None:
    with_reserve(artifact, 16)
    before = graph(artifact, form="tensorrt")
    apply(artifact, [loras.as_peft(tmp_path / "r4.safetensors", ALL)], [], PRESET)
    after = graph(artifact, form="tensorrt")
    assert shapes_of(after) == shapes_of(before) and ranks(after) == ranks(before)
    wide = loras.random(loras.linears("shapes-dit", DENOISER), DENOISER, rank=24)
    apply(artifact, [loras.as_peft(tmp_path / "r24.safetensors", wide)], [], PRESET)
    grown = ranks(graph(artifact, form="tensorrt"))
    assert grown[QKV] == padded_rank(32 + 3 * 24) and grown["transformer_blocks.0.ff.net.2"] == 64
    assert grown["transformer_blocks.0.norm1.linear"] == 32


def test_one_preset_alone_can_have_a_lora(artifact: Path, tmp_path: Path) -> None:
    before = Artifact.open(artifact).manifest["components"]
    apply(artifact, [loras.as_peft(tmp_path / "a.safetensors", ALL)], [], PRESET)
    after = Artifact.open(artifact).manifest["components"]
    for form in ("models", "tensorrt"):
        assert after[DENOISER][form][PRESET] != before[DENOISER][form][PRESET]
        assert {p: m for p, m in after[DENOISER][form].items() if p != PRESET} == {
            p: m for p, m in before[DENOISER][form].items() if p != PRESET
        }


def test_a_lora_of_a_text_encoder_is_merged_for_all_presets(artifact: Path, tmp_path: Path) -> None:
    text = {n: s for n, s in loras.linears("shapes-dit", "text_encoder").items() if "self_attn" in n or "mlp" in n}
    matrices = loras.random(text, "text_encoder")
    before = ir.load(Artifact.open(artifact).model("text_encoder", "fp16")).graph.initializers
    files = []
    for write, name in ((loras.as_peft, "peft"), (loras.as_kohya, "kohya")):
        apply(artifact, [write(tmp_path / f"{name}.safetensors", matrices)], [2.0])
        opened = Artifact.open(artifact)
        assert len({opened.model("text_encoder", p) for p in opened.manifest["presets"]}) == 1
        assert opened.tensorrt("text_encoder", PRESET) == opened.model("text_encoder", "fp16")
        files.append(data_files(artifact))
        after = ir.load(opened.model("text_encoder", "fp16")).graph.initializers
        for name_, (a, b) in matrices.items():
            weight = next(w for w in after if name_.endswith(w.removesuffix(".weight")))
            wanted = before[weight].const_value.numpy() + 2 * loras.product(a, b)
            np.testing.assert_allclose(after[weight].const_value.numpy(), wanted, atol=4e-3)
    assert files[0] == files[1] and list(files[0]) == ["text_encoder/fp16.onnx.data"]


def test_convolutions_of_a_unet_are_merged_and_its_linears_folded(built_unet: Path, tmp_path: Path) -> None:
    shapes = loras.linears("shapes-unet", "unet") | loras.linears("shapes-unet", "unet", kernel=True)
    matrices = loras.random(shapes, "unet")
    root = Path(shutil.copytree(built_unet, tmp_path / "unet"))
    before = Artifact.open(root)
    weights = ir.load(before.model("unet", "fp16")).graph.initializers
    own = ranks(ir.load(before.model("unet", PRESET)))
    without = distance(in_onnx(root, PRESET, "unet"), plain := in_torch((), "unet"))
    apply(root, [loras.as_kohya(tmp_path / "kohya.safetensors", matrices, alpha=2)], [2.0])
    whole = in_torch([(matrices, 1.0)], "unet")
    assert distance(whole, plain) > 0.1
    assert distance(in_onnx(root, "fp16", "unet"), whole) < 5e-3
    assert distance(in_onnx(root, PRESET, "unet"), whole) <= 1.2 * without + 5e-3
    after = Artifact.open(root)
    assert len(after.manifest["lora"]["adapters"][0]["layers"]) == len(matrices)
    merged = ir.load(after.model("unet", "fp16")).graph.initializers
    for name, (a, b) in matrices.items():
        weight = f"{name.removeprefix('unet.')}.weight"
        wanted = weights[weight].const_value.numpy() + loras.product(a, b)  # 2.0 times alpha / rank = 0.5
        np.testing.assert_allclose(merged[weight].const_value.numpy(), wanted, rtol=2e-3, atol=2e-3, err_msg=name)
    grown = ranks(ir.load(after.model("unet", PRESET)))
    assert grown.keys() == own.keys() and all(grown[name] == own[name] + 16 for name in own)
    quantised = ir.load(after.model("unet", PRESET)).graph.initializers
    kept = [w for w in merged if w in quantised and f"unet.{w.removesuffix('.weight')}" in matrices]
    assert any(merged[w].const_value.numpy().ndim == 4 for w in kept)  # convolutions, merged there as well
    for name in kept:
        np.testing.assert_array_equal(quantised[name].const_value.numpy(), merged[name].const_value.numpy())


def test_the_command_says_which_engines_to_refit_and_which_to_build_again(artifact: Path, tmp_path: Path) -> None:
    with_reserve(artifact, 16)
    opened = Artifact.open(artifact)
    for component, preset, refittable in (
        (DENOISER, PRESET, True),
        (DENOISER, "int4-rtn", True),
        (DENOISER, "fp16", False),
        ("vae_decoder", PRESET, True),
    ):
        path = artifact / plan.DIRECTORY / plan.name(component, preset, 87, Version(10, 3))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"engine")
        graph = opened.tensorrt(component, preset)
        plan.write(path, {
            "component": component, "preset": preset, "sm": "87", "tensorrt": "10.3.0", "plugin_sha256": None,
            "plugin_in_plan": False, "onnx_sha256": plan.graph_sha256(opened, graph), "source_sha256": "5" * 64,
            "profiles": [], "refittable": refittable, "structure_sha256": structure_sha256(opened, graph),
            "weight_streaming": False, "builder": "api",
        })  # fmt: skip
    said = advice(opened)
    assert said == ["report.html and the reference images are those of the model without LoRAs"]
    said = advice(apply(artifact, [loras.as_peft(tmp_path / "r4.safetensors", ALL)], []))
    assert said[:2] == [
        f"to refit, with `python -m engines.build {artifact} --refit`: {DENOISER}.{PRESET}.sm87.trt10.3.plan",
        f"to build again, with `python -m engines.build {artifact}`: {DENOISER}.fp16.sm87.trt10.3.plan, "
        f"{DENOISER}.int4-rtn.sm87.trt10.3.plan",
    ]


def test_a_kill_at_any_moment_leaves_the_state_before_or_the_state_after(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = loras.as_peft(tmp_path / "a.safetensors", loras.only(ALL, "blocks.0.attn"))
    before = Artifact.open(artifact).manifest
    real, count = os.replace, 0

    class Killed(BaseException):
        pass

    def dies_at(moment: int) -> Any:
        def replace(a: Any, b: Any) -> None:
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            real(a, b)

        return replace

    states = []
    for moment in range(40):
        count = 0
        monkeypatch.setattr(os, "replace", dies_at(moment))
        try:
            apply(artifact, [path], [], PRESET)
        except Killed:
            monkeypatch.setattr(os, "replace", real)
            assert Artifact.open(artifact).manifest == before  # and every file of it is whole
            states.append("before")
            continue
        break
    monkeypatch.setattr(os, "replace", real)
    assert len(states) >= 5  # a graph and its data in both forms, and the manifest
    names = set(Artifact.open(artifact).manifest["files"])
    left = {str(p.relative_to(artifact)) for p in artifact.glob("*/*.lora-*")}
    assert left <= names and not list(artifact.glob("*/.*.partial"))
    assert state.KEY in Artifact.open(artifact).manifest


@pytest.mark.parametrize("module", MODEL)
def test_a_lora_that_training_has_made_is_folded_as_torch_computes_it(
    request: pytest.FixtureRequest, tmp_path: Path, module: str
) -> None:
    """bench/train_lora.py in a few steps: every layer that it trains is one of the artifact's."""
    built = request.getfixturevalue("built" if module == DENOISER else "built_unet")
    root = Path(shutil.copytree(built, tmp_path / "artifact"))
    pipe = load_pipeline(open_source(MODEL[module]))
    saved = train(pipe, "red", steps=8, rank=8, seed=0, pictures=16)
    path = loras.saved(tmp_path / "trained.safetensors", {name: t.numpy() for name, t in saved.items()})
    plain, trained = in_torch((), module), computed(pipe, module)
    before = distance(in_onnx(root, PRESET, module), plain)
    apply(root, [path], [])
    assert len(Artifact.open(root).manifest["lora"]["adapters"][0]["layers"]) == len(saved) // 2
    assert distance(in_onnx(root, "fp16", module), trained) < min(2e-3, distance(trained, plain) / 3)
    assert distance(in_onnx(root, PRESET, module), trained) <= 1.2 * before + 5e-3
