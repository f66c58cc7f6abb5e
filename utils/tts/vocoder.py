"""Vocoders: log-mels to samples, by Griffin-Lim or by a HiFi-GAN checkpoint in its authors' format."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.tts.hifigan import HiFiGAN, HiFiGANConfig, HiFiGANStream, fold_weight_norm
from utils.errors import UserError
from utils.features.mel import checked_mel, import_torchaudio
from utils.features.recipe import RECIPES, MelRecipe, require_same
from utils.files import read_json

GRIFFIN_LIM = "griffin-lim"
ITERATIONS = 32
MOMENTUM = 0.99
UNMIX_STEPS = 20

CONFIG = "config.json"
PIECE = 64  # frames that HiFi-GAN converts at once: larger pieces exceed the processor's cache


class Vocoder(Protocol):
    """Turns log-mels of `recipe` into audio at its sample rate."""

    name: str
    recipe: MelRecipe
    can_stream: bool

    def __call__(self, mel: np.ndarray) -> np.ndarray:
        """Natural-log mels (t, n_mels) float32 to samples (t * hop_length,) float32 in -1..1.

        A frame has the same place in the samples as in the audio that it was extracted from. `UserError` for values
        that are not finite, `ValueError` for another shape.
        """

    def stream(self, mels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pieces (t, n_mels) of any lengths to pieces (s,) of samples, each as soon as it is final.

        Together they equal `__call__` on all frames to 1e-4; memory does not grow with the number of pieces.
        `UserError` at once if the vocoder cannot stream.
        """


def load_vocoder(name: str, recipe: MelRecipe, device: str | torch.device = "cpu") -> Vocoder:
    """The vocoder called `name` for mels of `recipe`: "griffin-lim", or the path of a HiFi-GAN checkpoint.

    The path is a checkpoint file with its config.json beside it, or a folder with both. `UserError` if it cannot be
    loaded or is for another recipe.
    """
    if name == GRIFFIN_LIM:
        return GriffinLim(recipe)
    if not Path(name).exists():
        raise UserError(
            f"there is no vocoder {name}: give {GRIFFIN_LIM}, or the file or folder of a HiFi-GAN checkpoint"
        )
    return HiFiGANVocoder(Path(name), recipe, device)


class GriffinLim:
    """The fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard 2013) on the CPU, for any recipe.

    The phases start at zero, so the same mels give the same samples; random phases were no better. Audio whose peak
    exceeds 1 is scaled to a peak of 1. `UserError` for a recipe whose frames overlap by less than half.
    """

    name = GRIFFIN_LIM
    can_stream = False

    def __init__(self, recipe: MelRecipe) -> None:
        if 2 * recipe.hop_length > recipe.win_length:
            raise UserError(
                "Griffin-Lim needs frames that overlap by half or more, and the mel recipe has "
                f"a hop_length of {recipe.hop_length} with a win_length of {recipe.win_length}"
            )
        self.recipe = recipe
        self._functional = import_torchaudio().functional
        self._window = torch.hann_window(recipe.win_length)
        self._filters = self._functional.melscale_fbanks(
            n_freqs=recipe.n_fft // 2 + 1,
            f_min=recipe.f_min,
            f_max=recipe.f_max,
            n_mels=recipe.n_mels,
            sample_rate=recipe.sample_rate,
            norm=None if recipe.mel_norm == "none" else recipe.mel_norm,
            mel_scale=recipe.mel_scale,
        )  # (n_fft / 2 + 1, n_mels)
        # The most that audio within -1..1 can have: a bin of its spectrum is at most the sum of the window.
        self._ceiling = (self._filters.sum(0) * self._window.sum() ** recipe.power).log()
        # Frames added before and after, because torch cuts n_fft // 2 samples off both ends.
        self._margin = 1 + math.ceil(recipe.n_fft // 2 / recipe.hop_length)

    @torch.no_grad()
    def __call__(self, mel: np.ndarray) -> np.ndarray:
        mel = checked_mel(mel, self.recipe)
        if len(mel) == 0:
            return np.zeros(0, np.float32)
        # Mirrored frames, because the recipe reflects the audio at its ends.
        mirrored = np.pad(mel, ((self._margin, self._margin), (0, 0)), mode="symmetric")
        waveform = self._functional.griffinlim(
            self.magnitudes(torch.from_numpy(mirrored))[None],
            window=self._window,
            n_fft=self.recipe.n_fft,
            hop_length=self.recipe.hop_length,
            win_length=self.recipe.win_length,
            power=1.0,
            n_iter=ITERATIONS,
            momentum=MOMENTUM,
            length=None,
            rand_init=False,
        )[0]
        # torchaudio centers frame t on sample t * hop_length; the recipe's first frame is centered on this one.
        center = self.recipe.n_fft // 2 - self.recipe.pad[0]
        start = self._margin * self.recipe.hop_length - center
        samples = waveform[start : start + len(mel) * self.recipe.hop_length]
        return (samples / samples.abs().max().clamp_min(1.0)).numpy()

    def magnitudes(self, mel: Tensor) -> Tensor:
        """Non-negative magnitudes (n_fft / 2 + 1, t) whose log-mels approximate `mel` (t, n_mels).

        Multiplicative updates that minimize the generalized Kullback-Leibler divergence (Lee and Seung 2001, equation
        5), which weights errors relative to the energy, as log-mels do. Each bin starts at the weighted mean of its
        bands, which keeps the spectrum smooth between the bands.
        """
        floor = torch.tensor(math.log(self.recipe.log_floor))
        energies = mel.clamp_min(floor).minimum(self._ceiling).exp().T  # (n_mels, t)
        tiny = torch.finfo(torch.float32).tiny
        shares = self._filters / self._filters.sum(1, keepdim=True).clamp_min(tiny)
        spectrum = shares @ (energies / self._filters.sum(0)[:, None].clamp_min(tiny))
        for _ in range(UNMIX_STEPS):
            spectrum = spectrum * (shares @ (energies / (self._filters.T @ spectrum).clamp_min(tiny)))
        return spectrum if self.recipe.power == 1.0 else spectrum.sqrt()

    def stream(self, mels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        raise UserError(
            "Griffin-Lim cannot stream, because every sample depends on all frames: give a HiFi-GAN checkpoint"
        )


class HiFiGANVocoder:
    """The generator of a published HiFi-GAN checkpoint; `UserError` as in `load_vocoder`."""

    can_stream = True

    def __init__(self, path: Path, recipe: MelRecipe, device: str | torch.device) -> None:
        file = find_checkpoint(path)
        config, own_recipe = read_config(file.with_name(CONFIG))
        require_same(own_recipe, recipe, f"the vocoder {path}", "the mels")
        self.name, self.recipe = str(path), recipe
        self.model = load_generator(file, config).to(device)
        self._device = torch.device(device)

    def __call__(self, mel: np.ndarray) -> np.ndarray:
        mel = checked_mel(mel, self.recipe)
        pieces = (mel[start : start + PIECE] for start in range(0, len(mel), PIECE))
        return np.concatenate([np.zeros(0, np.float32), *self.stream(pieces)])

    def stream(self, mels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        stream = HiFiGANStream(self.model)
        for mel in mels:
            yield from self._push(stream, checked_mel(mel, self.recipe), last=False)
        yield from self._push(stream, np.zeros((0, self.recipe.n_mels), np.float32), last=True)

    def _push(self, stream: HiFiGANStream, mel: np.ndarray, last: bool) -> Iterator[np.ndarray]:
        """The samples that `mel` completes, if any."""
        # By default newer GPUs round convolutions to 10 bits, and the pieces would differ from one single pass.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            samples = stream.push(torch.from_numpy(mel).T[None].to(self._device), last)[0]
        if len(samples):
            yield samples.cpu().numpy()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file at `path`, or the one in the folder `path`.

    The authors call generators g_00000000 or generator_NAME, and the rest of their training checkpoints do_00000000.
    """
    if not path.is_dir():
        return path
    files = sorted(file for file in path.iterdir() if file.is_file() and _is_checkpoint(file))
    if not files:
        raise UserError(f"the folder {path} holds no HiFi-GAN checkpoint")
    if len(files) > 1:
        raise UserError(f"{path} holds {len(files)} checkpoints, give one: {', '.join(map(str, files))}")
    return files[0]


def _is_checkpoint(file: Path) -> bool:
    named = file.name.startswith(("g_", "generator")) and not file.suffix
    return named or (file.suffix in (".pt", ".pth", ".tar", ".ckpt") and not file.name.startswith("do_"))


def read_config(path: Path) -> tuple[HiFiGANConfig, MelRecipe]:
    """Reads a published config.json: the generator's shape, and the recipe of the mels it was trained on."""
    fields = read_json(path)
    try:
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
        config, recipe = HiFiGANConfig.from_dict(fields), _recipe(fields)
        if config.hop_length != recipe.hop_length:
            raise ValueError(
                f"upsample_rates give a hop of {config.hop_length} samples, hop_size is {recipe.hop_length}"
            )
    except KeyError as error:
        raise UserError(f"{path} is not the configuration of a HiFi-GAN: {error.args[0]} missing") from error
    except (ValueError, UserError) as error:
        raise UserError(f"{path} is not the configuration of a HiFi-GAN: {error}") from error
    return config, recipe


def _recipe(fields: dict[str, Any]) -> MelRecipe:
    """The recipe of the public HiFi-GAN code, with the values of its configuration."""
    rate, f_max = fields["sampling_rate"], fields["fmax"]
    return dataclasses.replace(
        RECIPES["hifigan-22k"],
        sample_rate=rate,
        n_fft=fields["n_fft"],
        win_length=fields["win_size"],
        hop_length=fields["hop_size"],
        n_mels=fields["num_mels"],
        f_min=fields["fmin"],
        f_max=rate / 2 if f_max is None and isinstance(rate, int) else f_max,
    )


def load_generator(path: Path, config: HiFiGANConfig) -> HiFiGAN:
    """Loads a generator onto the CPU, with the weight norm folded in and without gradients."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own: EOFError, RuntimeError, UnpicklingError ...
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be loaded: {reason}") from error
    state = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise UserError(f'{path} is not a HiFi-GAN checkpoint: it has no weights under "generator"')
    try:
        state = fold_weight_norm({name: tensor.float() for name, tensor in state.items()})
    except ValueError as error:
        raise UserError(f"the weights of {path} are damaged: {error}") from error
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise UserError(f"{path} holds weights that are not finite numbers")
    with torch.device("meta"):  # shapes only: no random initialization
        model = HiFiGAN(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()  # after a headline; it names every key or shape that differs
        raise UserError(f"the weights of {path} do not fit its {CONFIG}: {reason[:200]}") from error
    return model.eval().requires_grad_(False)
