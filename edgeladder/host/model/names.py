"""Names of models: open_clip's, OpenAI's and the Hugging Face hub's for the same weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeladder.core.errors import ConfigError
from edgeladder.core.spelling import nearest

# models of edgeladder's own: name -> module with `load(pretrained) -> Backbone`
LOCAL_MODELS = {
    "nano": "edgeladder.host.model.nano_model",
    "nano-vit": "edgeladder.host.model.nano_vit",
}
SCHEMAS = ("hf-hub:", "local-dir:")  # open_clip's own, before a repository or a folder

_USUAL = ("openai", "webli", "datacompdr", "dfn2b", "laion2b_s34b_b79k")  # preferred tags, in order
# repositories that hold, for another library, weights which open_clip has under a tag
_SAME_WEIGHTS = {
    "openai/clip-vit-base-patch16": ("ViT-B-16", "openai"),
    "openai/clip-vit-base-patch32": ("ViT-B-32", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14", "openai"),
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336", "openai"),
    "google/siglip-base-patch16-224": ("ViT-B-16-SigLIP", "webli"),
    "google/siglip-base-patch16-256": ("ViT-B-16-SigLIP-256", "webli"),
    "google/siglip-base-patch16-384": ("ViT-B-16-SigLIP-384", "webli"),
    "google/siglip-base-patch16-512": ("ViT-B-16-SigLIP-512", "webli"),
    "google/siglip-base-patch16-256-multilingual": ("ViT-B-16-SigLIP-i18n-256", "webli"),
    "google/siglip-large-patch16-256": ("ViT-L-16-SigLIP-256", "webli"),
    "google/siglip-large-patch16-384": ("ViT-L-16-SigLIP-384", "webli"),
    "google/siglip2-base-patch16-224": ("ViT-B-16-SigLIP2", "webli"),
    "google/siglip2-base-patch16-256": ("ViT-B-16-SigLIP2-256", "webli"),
    "google/siglip2-base-patch16-384": ("ViT-B-16-SigLIP2-384", "webli"),
    "google/siglip2-base-patch32-256": ("ViT-B-32-SigLIP2-256", "webli"),
}


@dataclass(frozen=True)
class Named:
    """Which model somebody means."""

    name: str  # open_clip's, one of ours, or `hf-hub:...` and `local-dir:...` as they are
    tag: str | None = None  # of the weights that the name stands for; None: it names none

    @property
    def schema(self) -> bool:
        """Whether the name itself says where definition and weights lie."""
        return self.name.startswith(SCHEMAS)


def named(model: str) -> Named:
    """The model that a name means, in any of its spellings.

    `ViT-B/16`, `ViT-B-16`, `ViT-L/14@336px`, `openai/clip-vit-base-patch16`, `hf-hub:ORG/REPO`,
    `https://huggingface.co/ORG/REPO`, `local-dir:FOLDER`.

    Raises:
        ConfigError: unknown; the nearest name is suggested.
    """
    if model in LOCAL_MODELS:
        return Named(model)
    if model.startswith("local-dir:"):
        return Named(model)
    repository = re.sub(r"^(hf-hub:|https?://(www\.)?(huggingface\.co|hf\.co)/)", "", model)
    repository = repository.strip("/")
    known = hub_models().get(repository.lower())
    if known is not None:
        return Named(*known)
    if repository != model:
        return Named(f"hf-hub:{repository}")
    return Named(canonical(model))


def hub_models() -> dict[str, tuple[str, str]]:
    """Repositories of the hub, in lower case -> open_clip's name and tag of what they hold."""
    import open_clip

    found: dict[str, tuple[str, str]] = dict(_SAME_WEIGHTS)
    for name, tag in open_clip.list_pretrained():
        if name.endswith("-quickgelu"):  # the same weights; the tag says which activation is theirs
            continue
        config = open_clip.get_pretrained_cfg(name, tag) or {}
        repository = str(config.get("hf_hub") or "").rstrip("/")
        if repository.count("/") == 1:
            found.setdefault(repository.lower(), (name, tag))
    return found


def canonical(model: str) -> str:
    """open_clip's spelling of a model name: `ViT-B/16` and `ViT-B-16` are the same.

    Raises:
        ConfigError: unknown; the nearest name is suggested.
    """
    if model in LOCAL_MODELS:
        return model
    import open_clip

    known: list[str] = open_clip.list_models()
    folded = {name.lower(): name for name in known}
    wanted = model.replace("/", "-").lower().replace("@", "-")
    for spelling in (wanted, wanted.removesuffix("px")):  # OpenAI writes ViT-L/14@336px
        if spelling in folded:
            return folded[spelling]
    guess = nearest(wanted, [*folded, *LOCAL_MODELS])
    raise ConfigError(
        f"unknown model {model!r}",
        where="--model",
        remedy=(f"did you mean {folded.get(guess, guess)!r}? " if guess else "")
        + "`edgeladder models` lists what works; hf-hub:ORG/REPO names a repository in "
        "open_clip's format",
    )


def usual_tag(name: str) -> str | None:
    """The pretrained tag people mean when they name the model alone."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    return next((tag for tag in _USUAL if tag in tags), tags[0] if tags else None)
