"""A diffusers pipeline on disk: found, checked and hashed, read from safetensors only.

`python -m export.source --write-sums DIR` writes the SHA256SUMS.json that later runs are checked against.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from artifact.errors import UserError, nearest
from export import hub
from export.digests import SUMS, checked_digests, write_sums
from export.json_object import read_json
from export.quantised import mark, quantised, refuse_quantised
from export.safetensors_index import WeightIndex, read_header
from export.weight_files import PLAIN_NAME, module_weights, weight_files

BUNDLED = Path(__file__).parent / "bundled"
INDEX = "model_index.json"
GENERATION = "generation.json"


@dataclass(frozen=True)
class Source:
    """A pipeline's directory. `name` as the user gave it, `index` its model_index.json.

    `sha256` covers every config, tokenizer file and weight file that is read, by relative name, so that one model
    has one hash on every machine. `generation` are keyword arguments of the pipeline's call.
    """

    root: Path
    name: str
    index: dict[str, Any]
    sha256: str
    generation: dict[str, Any]

    @property
    def pipeline(self) -> str:
        """Class name of the diffusers pipeline."""
        return self.index["_class_name"]

    @property
    def modules(self) -> dict[str, str]:
        """{folder: class name} of everything the pipeline is made of, in the order of model_index.json."""
        return modules_of(self.index)

    @cached_property
    def variant(self) -> str | None:
        """ "fp16" where a module's weights exist only in that variant, else None."""
        loaded = [f for m in self.modules for f in weight_files(self.root / m)]
        return "fp16" if any("fp16" in f.name for f in loaded) else None

    def config(self, module: str) -> dict[str, Any]:
        """The module's config.json (or scheduler_config.json). Raises UserError where it is missing or damaged."""
        return _config(self.root / module)

    def weights(self, module: str) -> WeightIndex:
        """Where the module's tensors lie. Raises UserError where there are none, only pickles, or damaged ones."""
        return module_weights(self.root / module)


def open_source(model: str) -> Source:
    """Open a bundled name, a directory or a hub id, and check all that will be read of it.

    Raises UserError where there is no such model, it is no diffusers directory, its weights are pickles, truncated,
    not where their index says, quantised already, not finite or not the known ones, or its generation.json is no JSON
    object. Headers are checked before the weights are read through.
    """
    root = _locate(model)
    if not (root / INDEX).is_file():
        raise UserError(
            f"{root} holds no {INDEX}, so it is no diffusers pipeline: give the directory that `save_pretrained` wrote."
        )
    index = read_json(root / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise UserError(f"{root / INDEX} names no pipeline class: save the pipeline again with `save_pretrained`.")
    generation = _generation(root, index)
    from export.families import MODULES  # late: families import torch, which a bad name should not wait for

    for module, cls in modules_of(index).items():
        if cls in MODULES:
            folder = root / module
            refuse_quantised(folder, _config(folder), module_weights(folder))
    digests = checked_digests(root, _files_read(root, index))
    total = hashlib.sha256("".join(f"{n}\0{d}\n" for n, d in sorted(digests.items())).encode()).hexdigest()
    return Source(root, model, index, total, generation)


def bundled_names() -> list[str]:
    """Names of the models that come with the project."""
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{INDEX}"))


def modules_of(index: dict[str, Any]) -> dict[str, str]:
    """{folder: class} of model_index.json. Raises UserError for code that is not diffusers' or transformers' own."""
    found = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or value[1] is None:
            continue
        library, cls = value
        if not PLAIN_NAME.fullmatch(name):
            raise UserError(f"{INDEX} names a folder {name!r}: only plain names are read.")
        if library not in ("diffusers", "transformers", "stable_diffusion"):
            raise UserError(
                f"{name} is {library}.{cls}, code that comes with the model: it is never run; only classes of "
                "diffusers and transformers are read."
            )
        found[name] = cls
    return found


def _locate(model: str) -> Path:
    """The directory of a bundled name, a path or a hub id."""
    if model in bundled_names():
        return BUNDLED / model
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        if path.suffix == ".gguf":
            raise quantised(path, "GGUF")
        if path.suffix == ".safetensors" and (found := mark(read_header(path))) is not None:
            raise quantised(path, found[1])
        raise UserError(
            f"{path} is one file, not a diffusers directory: convert it with diffusers, "
            "`StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIR)`, and give DIR."
        )
    if hub.HUB_ID.fullmatch(model) and not model.startswith("."):
        return hub.download(model)
    known = nearest(model, bundled_names()) if bundled_names() else "no model is bundled."
    raise UserError(f"There is no model {model!r}; {known} A directory or a hub id also does.")


def _generation(root: Path, index: dict[str, Any]) -> dict[str, Any]:
    """generation.json, or what the family's row says."""
    if (root / GENERATION).is_file():
        return read_json(root / GENERATION)
    from export.families import pipeline_row

    return dict(pipeline_row(index["_class_name"]).generation(lambda module: _config(root / module)))


def _config(folder: Path) -> dict[str, Any]:
    plain = folder / "config.json"
    return read_json(plain if plain.is_file() else folder / "scheduler_config.json")


def _files_read(root: Path, index: dict[str, Any]) -> list[Path]:
    """Every file that the compiler or the pipeline reads, in the order of their names."""
    files = [root / INDEX, *([root / GENERATION] if (root / GENERATION).is_file() else [])]
    for module in modules_of(index):
        folder = root / module
        files += [p for p in folder.glob("*") if p.suffix in (".json", ".txt", ".model") and p.is_file()]
        files += weight_files(folder)
    return sorted(set(files))


def main(arguments: list[str]) -> int:
    """`--write-sums DIR`."""
    if len(arguments) != 2 or arguments[0] != "--write-sums":
        print("usage: python -m export.source --write-sums DIR", file=sys.stderr)
        return 2
    sums = write_sums(Path(arguments[1]))
    print(f"{Path(arguments[1]) / SUMS}: {len(sums)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
