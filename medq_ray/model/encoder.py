"""Image and text embeddings by open_clip: the embedded tiny encoder, a local folder or a model of the hub.

Floor 2, and the only home of open_clip. The embedded encoder stands where BiomedCLIP stands in the paper (Sec. 2.3).
Like BiomedCLIP, and unlike the embedded base model, it has seen captions that name every degradation: it was trained
on synthetic images of all cells (`python -m medq_ray.model.assets.train encoder`), at seeds that no world uses. The
base model's vision tower is a copy of its tower: it can see the rare degradations, and has no words for them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from medq_ray.schema import Encoder

PREFIXES = ("local-dir:", "hf-hub:")


class OpenClipEncoder:
    """Unit vectors of images and texts in the space of one open_clip model, on the GPU if there is one."""

    def __init__(self, location: str):
        """Load `location`, 'local-dir:PATH' or 'hf-hub:ORG/NAME', with its own preprocessing and tokenizer."""
        import open_clip
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model, self.preprocess = open_clip.create_model_from_pretrained(location)
        self.model = model.float().eval().to(self.device)
        self.tokenizer = open_clip.get_tokenizer(location)
        self.dim = self.texts(["an image"]).shape[1]

    def images(self, pixels: list[np.ndarray]) -> np.ndarray:
        """uint8 (H, W, 3) arrays of any sizes -> float32 (N, dim), rows of unit length."""
        import torch
        from PIL import Image

        if not pixels:
            return np.zeros((0, self.dim), np.float32)
        batch = torch.stack([self.preprocess(Image.fromarray(image)) for image in pixels])
        with torch.inference_mode():
            return self._unit(self.model.encode_image(batch.to(self.device)))

    def texts(self, texts: list[str]) -> np.ndarray:
        """Strings, cut at the model's context length -> float32 (N, dim), rows of unit length."""
        import torch

        if not texts:
            return np.zeros((0, self.dim), np.float32)
        with torch.inference_mode():
            return self._unit(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)))

    @staticmethod
    def _unit(rows) -> np.ndarray:
        from torch.nn.functional import normalize

        return normalize(rows.float(), dim=-1).cpu().numpy()


def text_embedder(name: str, batch_size: int) -> Callable[[list[str]], np.ndarray]:
    """The text tower of the encoder that `encoder.name` names: n strings -> float32 (n, dim), `batch_size` at a time.
    Each call loads it, and raises as `load_encoder`: between calls its memory is an engine's."""

    def embed(texts: list[str]) -> np.ndarray:
        encoder, starts = load_encoder(name), range(0, len(texts), batch_size)
        return np.concatenate([encoder.texts(texts[low : low + batch_size]) for low in starts])

    return embed


def encoder_folder(name: str) -> Path | None:
    """The local folder of the encoder that `encoder.name` names, None for one of the hub. Imports nothing heavy.

    Raises ValueError naming the setting when it has another form or the folder holds no open_clip model.
    """
    if not (name == "embedded" or name.startswith(PREFIXES)):
        raise ValueError(f"encoder.name={name!r} is none of 'embedded', 'local-dir:PATH', 'hf-hub:ORG/NAME'")
    if name.startswith("hf-hub:"):
        return None
    local = Path(name.removeprefix("local-dir:"))
    folder = Path(__file__).parent / "assets" / "encoder" if name == "embedded" else local
    if not (folder / "open_clip_config.json").is_file():
        raise ValueError(f"encoder.name={name!r} cannot be loaded: {folder} has no open_clip_config.json")
    return folder


def load_encoder(name: str) -> Encoder:
    """The encoder that `encoder.name` names: 'embedded', 'local-dir:PATH' or 'hf-hub:ORG/NAME'.

    Raises ValueError naming the setting when there is no such encoder or it cannot be loaded.
    """
    from safetensors import SafetensorError

    folder = encoder_folder(name)
    location = name if folder is None else f"local-dir:{folder}"
    try:
        return OpenClipEncoder(location)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"encoder.name={name!r} cannot be loaded: {reason}") from error
