"""Stand-ins for the torch modules of a diffusers pipeline: their interface outside, an engine inside.

They hold no weights. `dtype` is float32 whatever the graph computes in: between two calls the latents stay float32 and
each session casts what it is fed. Importing this file imports torch and diffusers; `engines.pipeline` does so when a
pipeline is built.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution, EncoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from artifact.errors import UserError
from engines import qwen_image
from engines.backends import Runner

# Outputs that are one layer's hidden states, by the index that torch's tuple of all layers has them at.
_HIDDEN = {"penultimate_hidden_state": -2}
# Denoisers whose pipeline says something in another form than the graph reads it in.
_COMPLETED = {"QwenImageTransformer2DModel": qwen_image.completed}


class EngineModule(torch.nn.Module):
    """What pipelines ask of every module: `config` as the torch class has it, `dtype`, `device`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


class Denoiser(EngineModule):
    """A FLUX-like transformer or a UNet: predicts from `hidden_states` or `sample` and the timestep.

    Takes the keywords of the torch class's forward; those without a value, and options that only steer torch, are
    left out. Raises UserError for a tensor that the graph has no input for (a ControlNet's residuals, say).
    """

    def __init__(self, config: dict[str, Any], class_name: str, session: Runner) -> None:
        torch_class = getattr(diffusers, class_name)
        super().__init__(with_defaults(torch_class, config))
        self.session = session
        self.before_step: Callable[[float], None] | None = None  # hears the timestep of every call
        self._completed = _COMPLETED.get(class_name, lambda feeds, given: feeds)
        self._positional = list(inspect.signature(torch_class.forward).parameters)[1:]
        if "projection_class_embeddings_input_dim" in self.config:  # where SDXL's pipeline looks for this width
            width = self.config["projection_class_embeddings_input_dim"]
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        given.update(given.pop("added_cond_kwargs", None) or {})  # SDXL's text_embeds and time_ids
        batch = given[self._positional[0]].shape[0]
        feeds = {k: as_array(v) for k, v in given.items() if torch.is_tensor(v) or (k == "timestep" and v is not None)}
        feeds["timestep"] = np.broadcast_to(feeds["timestep"], (batch,))
        feeds = self._completed(feeds, given)
        if self.before_step is not None:
            self.before_step(float(feeds["timestep"][0]))
        predicted = torch.from_numpy(next(iter(self.session.run(feeds).values())))
        return Transformer2DModelOutput(sample=predicted) if return_dict else (predicted,)

    @contextlib.contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """diffusers' hook for feature caching; an engine caches nothing."""
        yield


class TextEncoder(EngineModule):
    """The text model of CLIP (± projection), T5, Gemma-2 or Qwen2.5-VL: token ids int64 [B, L] to embeddings."""

    def __init__(self, config: dict[str, Any], class_name: str, session: Runner) -> None:
        super().__init__(getattr(transformers, class_name).config_class.from_dict(config))
        self.session = session
        self._layers = dict(_HIDDEN)
        if not class_name.startswith("CLIP"):  # all others' last hidden state is that of their last layer, normalised
            self._layers["last_hidden_state"] = -1

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        feeds = {"input_ids": as_array(input_ids)}
        if "attention_mask" in self.session.inputs:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            feeds["attention_mask"] = as_array(mask)
        elif attention_mask is not None and not bool(attention_mask.bool().all()):
            raise UserError(
                f"The graph of {self.session.name!r} has no attention_mask, the pipeline wants one: "
                "rebuild the artifact."
            )
        values = {k: torch.from_numpy(v) for k, v in self.session.run(feeds).items()}
        layers = {index: values[name] for name, index in self._layers.items() if name in values}
        hidden = HiddenStates(self.session.name, layers) if output_hidden_states else None
        plain = {k: v for k, v in values.items() if k not in _HIDDEN}
        output_class = CLIPTextModelOutput if "text_embeds" in plain else BaseModelOutputWithPooling
        output = output_class(**plain, hidden_states=hidden)
        return output if return_dict else output.to_tuple()


class HiddenStates:
    """The layers' hidden states that the graph gives, by index, as torch's tuple of all of them has them."""

    def __init__(self, name: str, layers: dict[int, torch.Tensor]) -> None:
        self._name, self._layers = name, layers

    def __getitem__(self, index: int) -> torch.Tensor:
        if index not in self._layers:
            have = ", ".join(map(str, self._layers)) or "none"
            raise UserError(
                f"The graph of {self._name!r} gives hidden states {have}, not {index}: call the pipeline "
                "without clip_skip, or rebuild the artifact with this layer."
            )
        return self._layers[index]


class Vae(EngineModule):
    """An autoencoder of two graphs; `encoder` is None where the artifact holds no image-to-image."""

    def __init__(self, config: dict[str, Any], class_name: str, decoder: Runner, encoder: Runner | None) -> None:
        super().__init__(with_defaults(getattr(diffusers, class_name), config))
        self.decoder_session, self.encoder_session = decoder, encoder
        if "temperal_downsample" in self.config:  # where Qwen-Image's pipelines look for the scale
            self.temperal_downsample = self.config["temperal_downsample"]

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latents [B, C, h, w] to images [B, 3, H, W], about -1..1; of one frame each where both have that axis."""
        image = _only_output(self.decoder_session, z)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Images [B, 3, H, W] in -1..1 to the distribution of their latents (AutoencoderDC: to the latents)."""
        if self.encoder_session is None:
            raise UserError("The artifact holds no vae_encoder: build it again with image-to-image, or give no image.")
        if "latent" in self.encoder_session.outputs:
            latent = _only_output(self.encoder_session, x)
            return EncoderOutput(latent=latent) if return_dict else (latent,)
        posterior = DiagonalGaussianDistribution(_only_output(self.encoder_session, x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def _only_output(session: Runner, value: torch.Tensor) -> torch.Tensor:
    outputs = session.run({session.inputs[0]: as_array(value)})
    return torch.from_numpy(next(iter(outputs.values())))


def as_array(value: Any) -> np.ndarray:
    """A tensor or number as a numpy array (bfloat16, which numpy lacks, as float32)."""
    if not torch.is_tensor(value):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def with_defaults(torch_class: type, config: dict[str, Any]) -> FrozenDict:
    """`config` completed as diffusers does it: with the defaults of the class's constructor."""
    parameters = inspect.signature(torch_class).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return FrozenDict({**defaults, **config})
