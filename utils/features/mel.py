"""Log-mel spectrograms by torchaudio: the front end of preprocessing, training and recognition."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.features.recipe import MelRecipe


def import_torchaudio() -> Any:
    """Imports torchaudio, also where its compiled part does not match the installed torch.

    torchaudio's PyPI wheel links CUDA libraries and raises OSError at import with a CPU-only torch. The transforms
    used here are plain Python over torch, so the import is repeated with a stub of the compiled part.
    """
    try:
        return importlib.import_module("torchaudio")
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _stub_extension()
        return importlib.import_module("torchaudio")


def _stub_extension() -> types.ModuleType:
    """Provides the names that torchaudio's Python files import from its compiled part, and reports it unavailable."""

    def unavailable(*_: object, **__: object) -> None:
        raise RuntimeError("this part of torchaudio needs its compiled library, which does not match this torch")

    module = types.ModuleType("torchaudio._extension")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module._check_cuda_version = lambda: None
    module.fail_if_no_align = lambda function: unavailable
    return module


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Makes torch compute on one thread: products split over threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class LogMel(nn.Module):
    """Log-mel energies as a `MelRecipe` says: samples (b, s) float32 at the recipe's rate -> (b, t, n_mels).

    t is `recipe.frames(s)`, which must not be 0. Samples that are too large give values that are not finite.
    """

    def __init__(self, recipe: MelRecipe) -> None:
        super().__init__()
        transforms = import_torchaudio().transforms
        self.recipe = recipe
        self.spectrogram = transforms.Spectrogram(
            n_fft=recipe.n_fft,
            win_length=recipe.win_length,
            hop_length=recipe.hop_length,
            window_fn=torch.hann_window,
            power=2.0,
            center=False,
        )
        self.mel_scale = transforms.MelScale(
            n_mels=recipe.n_mels,
            sample_rate=recipe.sample_rate,
            f_min=recipe.f_min,
            f_max=recipe.f_max,
            n_stft=recipe.n_fft // 2 + 1,
            norm=None if recipe.mel_norm == "none" else recipe.mel_norm,
            mel_scale=recipe.mel_scale,
        )

    def forward(self, samples: Tensor) -> Tensor:
        recipe = self.recipe
        mode = "reflect" if recipe.padding == "hifigan" else "constant"
        padded = nn.functional.pad(samples, recipe.pad, mode=mode)
        power = self.spectrogram(padded) + recipe.power_floor  # (b, n_fft / 2 + 1, t)
        spectrum = power.sqrt() if recipe.power == 1.0 else power
        return self.mel_scale(spectrum).clamp_min(recipe.log_floor).log().mT


class MelExtractor:
    """Extractor of log-mel frames from a waveform, as a `MelRecipe` says."""

    def __init__(self, recipe: MelRecipe) -> None:
        self.recipe = recipe
        self._log_mel = LogMel(recipe)

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Turns a waveform (S,) float32 at the recipe's rate into log-mel energies (T, n_mels) float32.

        T is `recipe.frames(S)`.

        Raises:
            UserError: T would be 0, or samples are so large that the energies are not finite.
        """
        self.recipe.require_frame(len(waveform))
        samples = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
        mel = self._log_mel(samples[None])[0]
        if not mel.isfinite().all():
            raise UserError(f"the features are not finite: samples reach {np.abs(waveform).max():.3g}")
        return mel.contiguous().numpy()


class MelStream:
    """Log-mel frames of a waveform that arrives in pieces: those that `MelExtractor` gives of the whole.

    It holds fewer samples than a window. `UserError` for a recipe whose frames reach beyond the audio.
    """

    def __init__(self, extractor: MelExtractor) -> None:
        if extractor.recipe.padding != "none":
            raise UserError(f"mels with padding {extractor.recipe.padding} cannot stream: it needs the end")
        self._extractor = extractor
        self._held = np.empty(0, np.float32)

    def push(self, waveform: np.ndarray) -> np.ndarray:
        """Takes the next samples (s,) and returns the frames that they complete, (t, n_mels), maybe none."""
        recipe = self._extractor.recipe
        held = np.concatenate([self._held, waveform])
        frames = recipe.frames(len(held))
        self._held = held[frames * recipe.hop_length :]
        if not frames:
            return np.empty((0, recipe.n_mels), np.float32)
        return self._extractor(held)


def checked_mel(mel: np.ndarray, recipe: MelRecipe) -> np.ndarray:
    """Returns `mel` (T, n_mels) as contiguous float32.

    Raises:
        ValueError: its shape is another.
        UserError: it holds NaN or inf.
    """
    if mel.ndim != 2 or mel.shape[1] != recipe.n_mels:
        raise ValueError(f"mels must be of shape (T, {recipe.n_mels}), not {mel.shape}")
    if not np.isfinite(mel).all():
        raise UserError("the mel holds values that are not finite, so no waveform can be made from it")
    return np.ascontiguousarray(mel, dtype=np.float32)
